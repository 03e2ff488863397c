//! Disks that exist only in virtual time: for deterministic experiments and tests, and as a
//! [delay line](crate::delay::DelayLine) before the real disk.
//!
//! A model serves the requests it was given in its own order and time; it moves no data. Whoever drives it asks for the
//! next event and moves time there.

mod devices;

pub use devices::{Array, Bucket, Curve, Positioning, Rotational, Ssd, Steps};

use protocol::{
    system::{DiskModel, MODEL_STEPS_MAX},
    units::Nanos,
};

use crate::device::{BlockDevice, DeviceRequest, DeviceStatus, TAGS};

/// How long a device that serves one request after the other takes.
pub trait Service {
    /// Time to serve `request`, started at `now`.
    fn time(&mut self, now: Nanos, request: &DeviceRequest) -> Nanos;
}

/// A device with one server and a queue in order of arrival.
#[derive(Clone, Debug)]
pub struct Fifo<S> {
    service: S,
    queue: heapless::Deque<DeviceRequest, TAGS>,
    /// Request in service, and when it will be done.
    current: Option<(DeviceRequest, Nanos)>,
}

impl<S: Service> Fifo<S> {
    /// An idle device.
    pub const fn new(service: S) -> Self {
        Self { service, queue: heapless::Deque::new(), current: None }
    }

    fn begin(&mut self, now: Nanos) {
        if self.current.is_none()
            && let Some(request) = self.queue.pop_front()
        {
            let time = self.service.time(now, &request);
            self.current = Some((request, Nanos(now.0 + time.0.max(1))));
        }
    }
}

impl<S: Service> BlockDevice for Fifo<S> {
    fn submit(&mut self, now: Nanos, request: &DeviceRequest) {
        let fits = self.queue.push_back(*request).is_ok();
        debug_assert!(fits, "no more requests than tags");
        self.begin(now);
    }

    fn poll(&mut self, now: Nanos) -> Option<(u8, DeviceStatus)> {
        let (request, done) = self.current.take_if(|(_, done)| *done <= now)?;
        self.begin(done);
        Some((request.tag, DeviceStatus::Ok))
    }

    fn next_event(&self) -> Option<Nanos> {
        self.current.map(|(_, done)| done)
    }
}

/// A model that a system description can name.
#[derive(Clone, Debug)]
pub enum Model {
    /// The paper's array.
    Array(Fifo<Array<MODEL_STEPS_MAX>>),
    /// A positioning time and a bandwidth.
    Positioning(Fifo<Positioning>),
    /// The HP 97560.
    Rotational(Fifo<Rotational>),
    /// Channels side by side.
    Ssd(Ssd),
    /// A cloud volume.
    Bucket(Bucket),
}

impl Model {
    /// The model described, at rest.
    pub fn new(described: &DiskModel) -> Self {
        match described {
            DiskModel::Array { steps } => {
                let mut curve = heapless::Vec::<_, MODEL_STEPS_MAX>::new();
                curve.extend(steps.iter().map(|step| (step.from, step.requests_per_second)));
                Self::Array(Fifo::new(Array::new(Steps::of(&curve))))
            }
            DiskModel::Positioning { position, bytes_per_second } => {
                let bytes_per_second = (*bytes_per_second).max(1);
                Self::Positioning(Fifo::new(Positioning::new(*position, bytes_per_second)))
            }
            DiskModel::Hp97560 => Self::Rotational(Fifo::new(Rotational::hp_97560())),
            DiskModel::Ssd { channels } => Self::Ssd(Ssd::new(usize::from(*channels))),
            DiskModel::Bucket { requests_per_second, burst } => {
                Self::Bucket(Bucket::new(*requests_per_second, *burst))
            }
        }
    }

    const fn device(&self) -> &dyn BlockDevice {
        match self {
            Self::Array(device) => device,
            Self::Positioning(device) => device,
            Self::Rotational(device) => device,
            Self::Ssd(device) => device,
            Self::Bucket(device) => device,
        }
    }

    const fn device_mut(&mut self) -> &mut dyn BlockDevice {
        match self {
            Self::Array(device) => device,
            Self::Positioning(device) => device,
            Self::Rotational(device) => device,
            Self::Ssd(device) => device,
            Self::Bucket(device) => device,
        }
    }
}

impl BlockDevice for Model {
    fn submit(&mut self, now: Nanos, request: &DeviceRequest) {
        self.device_mut().submit(now, request);
    }

    fn poll(&mut self, now: Nanos) -> Option<(u8, DeviceStatus)> {
        self.device_mut().poll(now)
    }

    fn next_event(&self) -> Option<Nanos> {
        self.device().next_event()
    }
}

#[cfg(test)]
mod tests {
    use protocol::ring::BlkOperation;

    use super::*;
    use crate::device::Buffer;

    fn request(tag: u8, sector: u64, length: u32) -> DeviceRequest {
        let buffer = Buffer::Scratch { offset: 0 };
        DeviceRequest { tag, operation: BlkOperation::Read, sector, length, buffer }
    }

    /// Serves `requests` (sector, length), at most `depth` at once; returns the time it took.
    fn run(device: &mut impl BlockDevice, depth: usize, requests: &[(u64, u32)]) -> u64 {
        let mut rest = requests.iter();
        let mut free: Vec<u8> = (0..depth as u8).collect();
        let mut now = 0;
        loop {
            while let Some(tag) = free.pop() {
                let Some((sector, length)) = rest.next() else { break };
                device.submit(Nanos(now), &request(tag, *sector, *length));
            }
            let Some(next) = device.next_event() else { return now };
            now = next.0;
            while let Some((tag, _)) = device.poll(Nanos(now)) {
                free.push(tag);
            }
        }
    }

    fn random(count: usize, sectors: u64, length: u32) -> Vec<(u64, u32)> {
        let mut state = 7u64;
        let next = |state: &mut u64| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *state >> 20
        };
        (0..count).map(|_| (next(&mut state) % sectors, length)).collect()
    }

    #[test]
    fn the_array_serves_at_its_rate() {
        let mut array = Fifo::new(Array::new(Curve::constant(1600)));
        assert_eq!(run(&mut array, 32, &random(1600, 1 << 20, 4096)), 1_000_000_000);
    }

    #[test]
    fn positioning_is_paid_once_per_run() {
        let line = || Fifo::new(Positioning::new(Nanos::from_millis(5), 60_000_000));
        let scattered = run(&mut line(), 4, &random(100, 1 << 30, 8192));
        assert_eq!(scattered, 100 * (5_000_000 + 136_533));
        let run_on: Vec<_> = (0..100).map(|i| (i * 16, 8192)).collect();
        assert!(run(&mut line(), 4, &run_on) < 20_000_000);
    }

    #[test]
    fn the_rotational_disk_is_an_hp_97560() {
        // 8 KiB at random: about 9 ms of seek, 7.5 ms of half a turn, 3.3 ms of transfer.
        let mut disk = Fifo::new(Rotational::hp_97560());
        let per_request = run(&mut disk, 1, &random(500, Rotational::SECTORS, 8192)) / 500;
        assert!((18_000_000..28_000_000).contains(&per_request), "{per_request}");
        let mut disk = Fifo::new(Rotational::hp_97560());
        let sequential: Vec<_> = (0..500).map(|i| (i * 16, 8192)).collect();
        let per_request = run(&mut disk, 4, &sequential) / 500;
        assert!(per_request < 6_000_000, "{per_request}");
    }

    #[test]
    fn the_ssd_gains_from_depth_and_the_bucket_does_not() {
        let one = run(&mut Ssd::new(8), 1, &random(1000, 1 << 20, 4096));
        let deep = run(&mut Ssd::new(8), 32, &random(1000, 1 << 20, 4096));
        assert!(deep * 5 < one, "{one} {deep}");
        let mut bucket = Bucket::new(1000, 100);
        let long = run(&mut bucket, 32, &random(2100, 1 << 20, 4096));
        assert!((1_950_000_000..2_050_000_000).contains(&long), "{long}");
    }
}
