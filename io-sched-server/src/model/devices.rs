//! The devices: the paper's array, a disk with an arm, an HP 97560, an SSD, a cloud volume.

use protocol::{ring::BlkOperation, units::Nanos};

use super::Service;
use crate::device::{BlockDevice, DeviceRequest, DeviceStatus, TAGS};

/// Requests per second over time: a step function of at most `N` steps.
#[derive(Clone, Debug)]
pub struct Steps<const N: usize> {
    steps: heapless::Vec<(Nanos, u32), N>,
    last: usize,
}

/// Long enough for any experiment.
pub type Curve = Steps<2048>;

impl<const N: usize> Steps<N> {
    /// Always the same.
    pub fn constant(rate: u32) -> Self {
        Self::of(&[(Nanos(0), rate)])
    }

    /// From each time on, that rate; times rise, the first is 0. What does not fit is dropped.
    pub fn of(steps: &[(Nanos, u32)]) -> Self {
        let mut kept = heapless::Vec::new();
        for step in steps {
            if kept.push(*step).is_err() {
                break;
            }
        }
        Self { steps: kept, last: 0 }
    }

    /// The rate at `now`; asked in rising order of time.
    pub fn at(&mut self, now: Nanos) -> u32 {
        while self.steps.get(self.last + 1).is_some_and(|(from, _)| *from <= now) {
            self.last += 1;
        }
        self.steps.get(self.last).map_or(1, |(_, rate)| (*rate).max(1))
    }
}

/// The paper's array: every request takes one over the rate of the moment.
#[derive(Clone, Debug)]
pub struct Array<const N: usize> {
    curve: Steps<N>,
}

impl<const N: usize> Array<N> {
    /// An array of this throughput.
    pub const fn new(curve: Steps<N>) -> Self {
        Self { curve }
    }
}

impl<const N: usize> Service for Array<N> {
    fn time(&mut self, now: Nanos, _: &DeviceRequest) -> Nanos {
        Nanos(1_000_000_000 / u64::from(self.curve.at(now)))
    }
}

/// A device with a positioning time and a bandwidth: the paper's cost model (equation 4) made real.
#[derive(Clone, Debug)]
pub struct Positioning {
    position: Nanos,
    bytes_per_second: u64,
    next_sector: u64,
}

impl Positioning {
    /// Tm and Bpeak of the paper.
    pub const fn new(position: Nanos, bytes_per_second: u64) -> Self {
        Self { position, bytes_per_second, next_sector: u64::MAX }
    }
}

impl Service for Positioning {
    fn time(&mut self, _: Nanos, request: &DeviceRequest) -> Nanos {
        let transfer = u64::from(request.length) * 1_000_000_000 / self.bytes_per_second;
        let moves = request.sector != self.next_sector;
        self.next_sector = request.sector + u64::from(request.length) / 512;
        Nanos(transfer + if moves { self.position.0 } else { 0 })
    }
}

/// A disk with an arm and a spindle, after the HP 97560.
///
/// Source: Ruemmler and Wilkes, "An introduction to disk drive modeling", IEEE Computer 27(3), 1994, and Kotz, Toh,
/// Radhakrishnan, "A detailed simulation model of the HP 97560 disk drive".
#[derive(Clone, Debug)]
pub struct Rotational {
    cylinder: u64,
    next_sector: u64,
    free_at: Nanos,
}

impl Rotational {
    /// Sectors per track, tracks per cylinder, cylinders.
    const TRACK: u64 = 72;
    const TRACKS: u64 = 19;
    const CYLINDERS: u64 = 1962;
    /// Sectors of the disk.
    pub const SECTORS: u64 = Self::TRACK * Self::TRACKS * Self::CYLINDERS;
    /// One turn at 4002 revolutions per minute.
    const TURN: u64 = 60_000_000_000 / 4002;
    /// Overhead of the controller.
    const OVERHEAD: u64 = 2_200_000;
    /// Seeks up to this many cylinders follow a root, longer ones a line.
    const SHORT_SEEK: u64 = 383;

    /// The disk, at rest at cylinder 0.
    pub const fn hp_97560() -> Self {
        Self { cylinder: 0, next_sector: u64::MAX, free_at: Nanos(0) }
    }

    const fn seek(distance: u64) -> u64 {
        if distance == 0 {
            0
        } else if distance <= Self::SHORT_SEEK {
            3_240_000 + 400 * (distance * 1_000_000).isqrt()
        } else {
            8_000_000 + 8_000 * distance
        }
    }
}

impl Service for Rotational {
    fn time(&mut self, now: Nanos, request: &DeviceRequest) -> Nanos {
        let sector = request.sector % Self::SECTORS;
        let sectors = u64::from(request.length) / 512;
        let transfer = sectors * Self::TURN / Self::TRACK;
        // The drive reads on into its buffer: the next sectors wait there if asked for soon.
        let is_read_ahead = sector == self.next_sector && now.0 <= self.free_at.0 + Self::TURN;
        let cylinder = sector / (Self::TRACK * Self::TRACKS);
        let wait = if is_read_ahead {
            0
        } else {
            let seek = Self::seek(cylinder.abs_diff(self.cylinder));
            let angle = (now.0 + Self::OVERHEAD + seek) % Self::TURN;
            let wanted = sector % Self::TRACK * Self::TURN / Self::TRACK;
            Self::OVERHEAD + seek + (wanted + Self::TURN - angle) % Self::TURN
        };
        self.cylinder = cylinder;
        self.next_sector = sector + sectors;
        let time = wait + transfer;
        self.free_at = Nanos(now.0 + time);
        Nanos(time)
    }
}

/// Requests under way, each with the time it will be done.
#[derive(Clone, Debug)]
struct UnderWay {
    done: [Option<Nanos>; TAGS],
}

impl UnderWay {
    const NONE: Self = Self { done: [None; TAGS] };

    fn start(&mut self, tag: u8, done: Nanos) {
        self.done[usize::from(tag) % TAGS] = Some(done);
    }

    fn next(&self) -> Option<(Nanos, u8)> {
        let done = |(tag, at): (usize, &Option<Nanos>)| at.map(|at| (at, tag as u8));
        self.done.iter().enumerate().filter_map(done).min()
    }

    fn take(&mut self, now: Nanos) -> Option<(u8, DeviceStatus)> {
        let (at, tag) = self.next()?;
        if at > now {
            return None;
        }
        self.done[usize::from(tag)] = None;
        Some((tag, DeviceStatus::Ok))
    }
}

/// A solid-state disk: channels side by side; a channel that has written much stops to clean.
#[derive(Clone, Debug)]
pub struct Ssd {
    channels: heapless::Vec<(Nanos, u32), 32>,
    under_way: UnderWay,
}

impl Ssd {
    const READ: u64 = 80_000;
    const WRITE: u64 = 25_000;
    /// Of one channel.
    const BYTES_PER_SECOND: u64 = 200_000_000;
    /// After this many bytes written a channel erases a block.
    const BLOCK: u32 = 4 << 20;
    const ERASE: u64 = 3_000_000;

    /// With this many channels, at most 32.
    pub fn new(channels: usize) -> Self {
        let mut free = heapless::Vec::new();
        while free.len() < channels.clamp(1, 32) && free.push((Nanos(0), 0)).is_ok() {}
        Self { channels: free, under_way: UnderWay::NONE }
    }
}

impl BlockDevice for Ssd {
    fn submit(&mut self, now: Nanos, request: &DeviceRequest) {
        let transfer = u64::from(request.length) * 1_000_000_000 / Self::BYTES_PER_SECOND;
        let count = self.channels.len() as u64;
        // Pages are spread over the channels by their address.
        let channel = (request.sector / 8 % count.max(1)) as usize;
        let Some((free_at, written)) = self.channels.get_mut(channel) else { return };
        let mut time = transfer;
        match request.operation {
            BlkOperation::Read => time += Self::READ,
            BlkOperation::Write => {
                time += Self::WRITE;
                *written += request.length;
                if *written >= Self::BLOCK {
                    *written = 0;
                    time += Self::ERASE;
                }
            }
            BlkOperation::Flush => time += Self::WRITE,
        }
        *free_at = Nanos(free_at.0.max(now.0) + time);
        self.under_way.start(request.tag, *free_at);
    }

    fn poll(&mut self, now: Nanos) -> Option<(u8, DeviceStatus)> {
        self.under_way.take(now)
    }

    fn next_event(&self) -> Option<Nanos> {
        self.under_way.next().map(|(at, _)| at)
    }
}

/// A cloud volume: quick while its tokens last, then exactly its rate, however many requests are sent.
#[derive(Clone, Debug)]
pub struct Bucket {
    /// Time of one token.
    period: u64,
    burst: u64,
    /// Time at which the bucket would be full.
    full_at: u64,
    under_way: UnderWay,
}

impl Bucket {
    const LATENCY: u64 = 500_000;

    /// `rate` requests per second, `burst` at once.
    pub fn new(rate: u32, burst: u32) -> Self {
        let period = 1_000_000_000 / u64::from(rate.max(1));
        Self { period, burst: u64::from(burst), full_at: 0, under_way: UnderWay::NONE }
    }
}

impl BlockDevice for Bucket {
    fn submit(&mut self, now: Nanos, request: &DeviceRequest) {
        self.full_at = self.full_at.max(now.0) + self.period;
        let granted = self.full_at.saturating_sub(self.burst * self.period).max(now.0);
        self.under_way.start(request.tag, Nanos(granted + Self::LATENCY));
    }

    fn poll(&mut self, now: Nanos) -> Option<(u8, DeviceStatus)> {
        self.under_way.take(now)
    }

    fn next_event(&self) -> Option<Nanos> {
        self.under_way.next().map(|(at, _)| at)
    }
}
