//! Work of one request in the scheduler: add, decide, complete, with N backlogged clients.
//!
//! `mclock_op N OPS` runs OPS of them in a function of its own, `measured`, so that callgrind can count it alone:
//! `valgrind --tool=callgrind --toggle-collect='*measured*' mclock_op 100 10000`, instructions divided by OPS.

use io_sched_server::{
    cost::Cost,
    dispatch::{Dispatcher, Pulled, Queued},
    sched::{NodeId, Scheduler, mclock::MClock},
};
use protocol::{io::Controls, units::Nanos};

/// Requests per second of the imagined device.
const RATE: u64 = 100_000;

type Subject<const N: usize> = Dispatcher<MClock<N, 1>, u32, N, 4>;

fn request(item: u32, now: Nanos) -> Queued<u32> {
    let sector = u64::from(item).wrapping_mul(0x9e37_79b9) << 8;
    Queued { item, arrival: now, sector, bytes: 4096, cost: Cost::ONE, elsewhere: (0, 0) }
}

/// A third of the clients with a reservation, a third with a limit that does not bind, all with weights.
fn controls(client: usize, clients: usize) -> Controls {
    let fair = (RATE / clients as u64) as u32;
    Controls {
        reservation: if client.is_multiple_of(3) { fair / 2 + 1 } else { 0 },
        limit: if client % 3 == 1 { fair * 4 + 4 } else { 0 },
        shares: 1000 + (client % 7) as u32 * 100,
        ..Controls::default()
    }
}

#[inline(never)]
fn measured<const N: usize>(subject: &mut Subject<N>, start: Nanos, ops: u64) -> (u64, Nanos) {
    let mut now = start;
    let mut last: NodeId = 0;
    let mut sum = 0;
    for op in 0..ops {
        now.0 += 1_000_000_000 / RATE;
        subject.add(now, last, request(op as u32, now));
        if let Pulled::Request(dispatched) = subject.pull(now, |_| false) {
            last = dispatched.client;
            sum += u64::from(dispatched.queued.item);
            subject.completed(now, last);
        }
    }
    (sum, now)
}

fn run<const N: usize>(ops: u64) -> u64 {
    let mut subject = Box::new(Subject::<N>::new(MClock::new(), 8));
    let mut now = Nanos(1);
    for client in 0..N {
        subject.policy().attach(now, client as NodeId, None, &controls(client, N));
        now.0 += 1000;
        for _ in 0..2 {
            subject.add(now, client as NodeId, request(client as u32, now));
        }
    }
    measured(&mut subject, now, ops).0
}

fn main() {
    let mut words = std::env::args().skip(1);
    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
    let (clients, ops) = (number().unwrap_or(100), number().unwrap_or(10_000));
    let work = move || match clients {
        1 => run::<1>(ops),
        10 => run::<10>(ops),
        100 => run::<100>(ops),
        1000 => run::<1000>(ops),
        10_000 => run::<10_000>(ops),
        _ => 0,
    };
    // The largest is several MiB and is built on the stack.
    let thread = std::thread::Builder::new().stack_size(256 << 20).spawn(work);
    match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(sum)) => println!("{clients} clients, {ops} operations, checksum {sum}"),
        _ => std::process::exit(1),
    }
}
