//! A modelled disk as a delay line before a real one.
//!
//! Every request goes to both. The real disk moves the data and says how it went; the model only says when the answer may
//! leave: a request is answered when both are done with it, so never earlier than the model says, and never with
//! anything but what the disk answered. Without a model the line is not there.

use protocol::units::Nanos;

use crate::{
    device::{BlockDevice, DeviceRequest, DeviceStatus, TAGS},
    model::Model,
};

/// A disk behind a model.
#[derive(Clone, Debug)]
pub struct DelayLine<D, M = Model> {
    disk: D,
    model: Option<M>,
    /// What the disk answered before the model was done.
    answers: [DeviceStatus; TAGS],
    /// Tags with such an answer.
    answered: u64,
    /// Tags the model is done with and the disk is not.
    overdue: u64,
    late: u64,
}

const fn bit(tag: u8) -> u64 {
    1 << (tag % TAGS as u8)
}

impl<D: BlockDevice, M: BlockDevice> DelayLine<D, M> {
    /// A line in front of `disk`, both idle.
    pub const fn new(disk: D, model: Option<M>) -> Self {
        let answers = [DeviceStatus::Ok; TAGS];
        Self { disk, model, answers, answered: 0, overdue: 0, late: 0 }
    }

    /// The disk.
    pub const fn disk(&self) -> &D {
        &self.disk
    }

    /// The disk, for what is not a request.
    pub const fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }

    /// Is there a model?
    pub const fn is_modelled(&self) -> bool {
        self.model.is_some()
    }

    /// Is there a request that the model is done with and the disk is not?
    pub const fn is_overdue(&self) -> bool {
        self.overdue != 0
    }

    /// Requests that the disk answered later than the model wanted: what the model does not explain.
    pub const fn late(&self) -> u64 {
        self.late
    }

    fn take(&mut self, tag: u8) -> Option<(u8, DeviceStatus)> {
        if self.answered & bit(tag) == 0 {
            return None;
        }
        self.answered &= !bit(tag);
        Some((tag, self.answers[usize::from(tag) % TAGS]))
    }
}

impl<D: BlockDevice, M: BlockDevice> BlockDevice for DelayLine<D, M> {
    fn submit(&mut self, now: Nanos, request: &DeviceRequest) {
        if let Some(model) = &mut self.model {
            model.submit(now, request);
        }
        self.disk.submit(now, request);
    }

    fn poll(&mut self, now: Nanos) -> Option<(u8, DeviceStatus)> {
        if self.model.is_none() {
            return self.disk.poll(now);
        }
        while let Some((tag, status)) = self.disk.poll(now) {
            self.answers[usize::from(tag) % TAGS] = status;
            self.answered |= bit(tag);
        }
        while let Some((tag, _)) = self.model.as_mut().and_then(|model| model.poll(now)) {
            if let Some(answer) = self.take(tag) {
                return Some(answer);
            }
            self.overdue |= bit(tag);
        }
        let ready = self.overdue & self.answered;
        if ready == 0 {
            return None;
        }
        let tag = ready.trailing_zeros() as u8;
        self.overdue &= !bit(tag);
        self.late += 1;
        self.take(tag)
    }

    fn next_event(&self) -> Option<Nanos> {
        let model = self.model.as_ref().and_then(BlockDevice::next_event);
        match (self.disk.next_event(), model) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

#[cfg(test)]
mod tests {
    use protocol::ring::BlkOperation;

    use super::*;
    use crate::{device::Buffer, model::Bucket};

    /// A disk that answers when the test says.
    #[derive(Default)]
    struct Hand {
        given: Vec<u8>,
        answers: Vec<(u8, DeviceStatus)>,
    }

    impl BlockDevice for Hand {
        fn submit(&mut self, _: Nanos, request: &DeviceRequest) {
            self.given.push(request.tag);
        }

        fn poll(&mut self, _: Nanos) -> Option<(u8, DeviceStatus)> {
            self.answers.pop()
        }

        fn next_event(&self) -> Option<Nanos> {
            None
        }
    }

    /// 1000 requests per second and half a millisecond, none saved up.
    fn line() -> DelayLine<Hand, Bucket> {
        let mut line = DelayLine::new(Hand::default(), Some(Bucket::new(1000, 0)));
        for tag in 0..3 {
            let buffer = Buffer::Scratch { offset: 0 };
            let operation = BlkOperation::Read;
            let request = DeviceRequest { tag, operation, sector: 0, length: 512, buffer };
            line.submit(Nanos(0), &request);
        }
        line
    }

    const MICRO: u64 = 1000;

    #[test]
    fn what_the_disk_answers_early_waits_for_the_model() {
        let mut line = line();
        assert_eq!(line.disk().given, [0, 1, 2], "carried out at once");
        line.disk_mut().answers = vec![(2, DeviceStatus::Ok), (1, DeviceStatus::Error)];
        assert_eq!(line.poll(Nanos(1499 * MICRO)), None);
        assert_eq!(line.next_event(), Some(Nanos(1500 * MICRO)));
        line.disk_mut().answers = vec![(0, DeviceStatus::Unsupported)];
        let at = |line: &mut DelayLine<Hand, Bucket>, micros| line.poll(Nanos(micros * MICRO));
        assert_eq!(at(&mut line, 1500), Some((0, DeviceStatus::Unsupported)));
        assert_eq!(at(&mut line, 2499), None, "an error is no quicker");
        assert_eq!(at(&mut line, 3600), Some((1, DeviceStatus::Error)));
        assert_eq!(at(&mut line, 3600), Some((2, DeviceStatus::Ok)));
        assert_eq!(at(&mut line, 9999), None);
        assert_eq!((line.late(), line.next_event()), (0, None));
    }

    #[test]
    fn what_the_disk_answers_late_is_passed_on_at_once_and_counted() {
        let mut line = line();
        line.disk_mut().answers = vec![(1, DeviceStatus::Ok)];
        assert_eq!(line.poll(Nanos(2600 * MICRO)), Some((1, DeviceStatus::Ok)));
        assert!(line.is_overdue(), "request 0 is the disk's alone now");
        assert_eq!(line.poll(Nanos(2600 * MICRO)), None);
        line.disk_mut().answers = vec![(0, DeviceStatus::Error)];
        assert_eq!(line.poll(Nanos(2601 * MICRO)), Some((0, DeviceStatus::Error)));
        assert_eq!((line.late(), line.is_overdue()), (1, false));
    }

    #[test]
    fn without_a_model_there_is_no_line() {
        let mut line: DelayLine<Hand> = DelayLine::new(Hand::default(), None);
        line.disk_mut().answers = vec![(7, DeviceStatus::Error)];
        assert_eq!(line.poll(Nanos(0)), Some((7, DeviceStatus::Error)));
        assert_eq!((line.poll(Nanos(0)), line.next_event()), (None, None));
        assert!(!line.is_modelled());
    }
}
