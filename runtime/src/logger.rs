//! defmt's global logger: whole frames into the server's log page.
// UNSAFETY: defmt's Logger trait is unsafe, and its frame buffer is a static of this one thread.
#![expect(unsafe_code, reason = "implements defmt::Logger")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use protocol::ring::LogRing;

static PAGE: AtomicPtr<AtomicU64> = AtomicPtr::new(core::ptr::null_mut());
static WORDS: AtomicUsize = AtomicUsize::new(0);

/// Sets where frames go; before that they are dropped.
pub fn set_page(page: &'static [AtomicU64]) {
    PAGE.store(page.as_ptr().cast_mut(), Ordering::Relaxed);
    WORDS.store(page.len(), Ordering::Relaxed);
}

fn page() -> Option<&'static [AtomicU64]> {
    let start = PAGE.load(Ordering::Relaxed);
    if start.is_null() {
        return None;
    }
    // SAFETY: pointer and length come from one `'static` slice of atomics in set_page; a server is one thread, so both
    // belong to the same call.
    Some(unsafe { core::slice::from_raw_parts(start, WORDS.load(Ordering::Relaxed)) })
}

/// Longest frame: longer ones are dropped, not cut.
const FRAME_MAX: usize = 512;

struct Frame {
    bytes: [u8; FRAME_MAX],
    length: usize,
    is_overrun: bool,
}

impl Frame {
    fn push(&mut self, bytes: &[u8]) {
        match self.bytes.get_mut(self.length..self.length + bytes.len()) {
            Some(place) => {
                place.copy_from_slice(bytes);
                self.length += bytes.len();
            }
            None => self.is_overrun = true,
        }
    }

    fn finish(&mut self) {
        if !self.is_overrun
            && let (Some(page), Some(frame)) = (page(), self.bytes.get(..self.length))
        {
            LogRing::new(page).write_frame(frame);
        }
        self.length = 0;
        self.is_overrun = false;
    }
}

struct State {
    frame: UnsafeCell<Frame>,
    encoder: UnsafeCell<defmt::Encoder>,
    is_acquired: AtomicBool,
}

// SAFETY: a server is one thread, and `is_acquired` refuses a second user of the cells.
unsafe impl Sync for State {}

static STATE: State = State {
    frame: UnsafeCell::new(Frame { bytes: [0; FRAME_MAX], length: 0, is_overrun: false }),
    encoder: UnsafeCell::new(defmt::Encoder::new()),
    is_acquired: AtomicBool::new(false),
};

fn push(bytes: &[u8]) {
    // SAFETY: called from the encoder between acquire and release only; the flag makes that the one user.
    unsafe { (*STATE.frame.get()).push(bytes) };
}

/// The logger behind `defmt::info!`.
#[cfg_attr(target_os = "none", defmt::global_logger)]
#[derive(Debug)]
pub struct Logger;

// SAFETY: acquire refuses nesting, so write, flush and release run only between it and the matching release, on the one
// thread of the server; nothing here logs.
unsafe impl defmt::Logger for Logger {
    fn acquire() {
        assert!(!STATE.is_acquired.swap(true, Ordering::Relaxed), "logged while logging");
        // SAFETY: the flag was clear, so nobody else uses the encoder.
        unsafe { (*STATE.encoder.get()).start_frame(push) };
    }

    unsafe fn flush() {}

    unsafe fn release() {
        // SAFETY: between acquire and release, by the trait's contract.
        unsafe { (*STATE.encoder.get()).end_frame(push) };
        // SAFETY: as above; the encoder has finished with the frame.
        unsafe { (*STATE.frame.get()).finish() };
        STATE.is_acquired.store(false, Ordering::Relaxed);
    }

    unsafe fn write(bytes: &[u8]) {
        // SAFETY: between acquire and release, by the trait's contract.
        unsafe { (*STATE.encoder.get()).write(bytes, push) };
    }
}

#[cfg(target_os = "none")]
defmt::timestamp!("{=u64:us}", crate::clock::now().0 / 1000);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_reach_the_page_whole_or_not_at_all() {
        let page: &'static [AtomicU64] =
            Box::leak((0..16).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().into_boxed_slice());
        set_page(page);
        let mut frame = Frame { bytes: [0; FRAME_MAX], length: 0, is_overrun: false };
        frame.push(&[1, 2, 0]);
        frame.finish();
        frame.push(&[7; FRAME_MAX]);
        frame.push(&[7]); // does not fit: the frame is dropped
        frame.finish();
        let mut out = [0; 16];
        let count = LogRing::new(page).read(&mut out);
        assert_eq!(&out[..count], [1, 2, 0]);
    }
}
