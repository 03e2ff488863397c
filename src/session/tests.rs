//! The session against a made-up target on the other end of a socket pair.

use super::{Answer, Scrollback, Shared, read_frame};
use protocol::link::{self, FRAME_MAX, Refusal, Request, Row, ToHost, ToTarget, VmState};
use protocol::units::{Pages, VmId};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};

fn pair() -> (Arc<Shared>, UnixStream) {
    let (host, target) = UnixStream::pair().unwrap();
    let reader = host.try_clone().unwrap();
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        changed: Condvar::new(),
        link: Mutex::new(host),
        decoder: Mutex::default(),
    });
    let listening = Arc::clone(&shared);
    std::thread::spawn(move || listening.read_link(reader));
    (shared, target)
}

fn say(target: &mut UnixStream, message: &ToHost<'_>) {
    target.write_all(link::encode(message, &mut [0; FRAME_MAX]).unwrap()).unwrap();
}

#[test]
fn an_answer_reaches_whoever_asked() {
    let (shared, mut target) = pair();
    let (first, first_answers) = shared.submit(Request::VmList).unwrap();
    let (second, second_answers) = shared.submit(Request::Ping).unwrap();
    let mut frame = read_frame(&mut target).unwrap();
    let asked: ToTarget<'_> = link::decode(&mut frame).unwrap();
    assert_eq!(asked, ToTarget::Request { id: first, request: Request::VmList });
    say(&mut target, &ToHost::Done { id: second, outcome: Ok(()) });
    let row = Row::Vm { vm: VmId(3), name: "web", state: VmState::Paused, group: None };
    say(&mut target, &ToHost::Row { id: first, row });
    say(&mut target, &ToHost::Done { id: first, outcome: Ok(()) });
    assert!(matches!(second_answers.recv().unwrap(), Answer::Done(Ok(()))));
    let Answer::Row(line, _) = first_answers.recv().unwrap() else { panic!("no row") };
    assert_eq!(*line, row.into());
    assert!(matches!(first_answers.recv().unwrap(), Answer::Done(Ok(()))));
}

#[test]
fn the_end_of_the_link_wakes_everybody() {
    let (shared, target) = pair();
    let (_, answers) = shared.submit(Request::Ping).unwrap();
    drop(target);
    assert!(answers.recv().is_err());
    assert!(shared.submit(Request::Ping).is_err());
}

#[test]
fn scroll_back_keeps_the_end() {
    let mut console = Scrollback::default();
    console.push(b"first");
    assert_eq!(console.since(2), b"rst");
    console.push(&vec![b'x'; super::SCROLL_BACK_BYTES]);
    console.push(b"last");
    assert_eq!(console.end(), 5 + super::SCROLL_BACK_BYTES as u64 + 4);
    assert!(console.since(0).ends_with(b"xlast"));
    assert_eq!(console.since(0).len(), super::SCROLL_BACK_BYTES);
    assert_eq!(console.since(console.end() - 2), b"st");
    assert_eq!(console.since(console.end() + 9), b"");
}

#[test]
fn too_many_guest_pages_are_refused_with_the_numbers() {
    let refusal = Refusal::GuestPages { asked: Pages(96 << 8), free: Pages(24 << 8) };
    let text = super::refusal_text(refusal);
    assert!(text.contains("96 MiB asked, 24 MiB left") && text.contains("host.memory"), "{text}");
}
