//! mClock's Algorithm 1 as printed, in floating point: the slow reference that the pitfalls are shown on.

use std::collections::VecDeque;

/// Tags of one request.
#[derive(Clone, Copy, Debug)]
struct Tags {
    r: f64,
    l: f64,
    p: f64,
}

/// One VM: its controls, its requests, the tags of its newest one.
#[derive(Clone, Debug)]
struct Vm {
    r: f64,
    l: f64,
    w: f64,
    queue: VecDeque<Tags>,
    last: Tags,
    in_device: u32,
}

impl Vm {
    /// Share tag of its oldest request, or of the one to come.
    fn p(&self) -> f64 {
        self.queue.front().map_or(self.last.p + step(self.w), |tags| tags.p)
    }
}

/// The algorithm. Times in seconds.
#[derive(Clone, Debug, Default)]
pub struct Printed {
    /// Is a VM active while it has requests in the device? The paper does not say.
    in_device_is_active: bool,
    vms: Vec<Vm>,
}

fn step(rate: f64) -> f64 {
    if rate > 0.0 { 1.0 / rate } else { 0.0 }
}

impl Printed {
    /// Without VMs; a VM with requests in the device counts as active.
    pub fn with_active_device() -> Self {
        Self { in_device_is_active: true, vms: Vec::new() }
    }

    /// Adds a VM with reservation, limit (0: none) and weight.
    pub fn add(&mut self, r: f64, l: f64, w: f64) {
        let never = Tags { r: f64::MIN, l: f64::MIN, p: f64::MIN };
        self.vms.push(Vm { r, l, w, queue: VecDeque::new(), last: never, in_device: 0 });
    }

    /// RequestArrival.
    pub fn arrive(&mut self, t: f64, vm: usize) {
        let counts = self.in_device_is_active;
        let is_active = |v: &Vm| !v.queue.is_empty() || (counts && v.in_device > 0);
        if !is_active(&self.vms[vm]) {
            let active = || self.vms.iter().filter(|v| is_active(v));
            let least = active().map(Vm::p).fold(f64::INFINITY, f64::min);
            if least.is_finite() {
                for other in self.vms.iter_mut().filter(|v| is_active(v)) {
                    other.queue.iter_mut().for_each(|tags| tags.p -= least - t);
                    other.last.p -= least - t;
                }
            }
        }
        let v = &mut self.vms[vm];
        let r = if v.r > 0.0 { (v.last.r + step(v.r)).max(t) } else { f64::INFINITY };
        let l = if v.l > 0.0 { (v.last.l + step(v.l)).max(t) } else { t };
        let p = (v.last.p + step(v.w)).max(t);
        v.last = Tags { r, l, p };
        v.queue.push_back(v.last);
    }

    /// ScheduleRequest, without the queue depth.
    pub fn pick(&mut self, t: f64) -> Option<usize> {
        let least = |vms: &[Vm], eligible: &dyn Fn(&Tags) -> bool, tag: &dyn Fn(&Tags) -> f64| {
            let heads = vms.iter().enumerate().filter_map(|(i, v)| v.queue.front().map(|q| (i, q)));
            heads
                .filter(|(_, tags)| eligible(tags))
                .min_by(|(_, a), (_, b)| tag(a).total_cmp(&tag(b)))
                .map(|(i, _)| i)
        };
        let by_reservation = least(&self.vms, &|tags| tags.r <= t, &|tags| tags.r);
        let chosen =
            by_reservation.or_else(|| least(&self.vms, &|tags| tags.l <= t, &|tags| tags.p))?;
        let v = &mut self.vms[chosen];
        v.queue.pop_front();
        v.in_device += 1;
        if by_reservation.is_none() && v.r > 0.0 {
            v.queue.iter_mut().for_each(|tags| tags.r -= step(v.r));
            v.last.r -= step(v.r);
        }
        Some(chosen)
    }

    /// RequestCompletion.
    pub fn complete(&mut self, vm: usize) {
        self.vms[vm].in_device -= 1;
    }
}
