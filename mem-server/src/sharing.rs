//! Content sharing: finding equal pages, merging them, and giving copies back on writes.

use protocol::mem::{Refusal, Sharing};
use protocol::units::VmId;

use crate::hash::mix;
use crate::mechanism::{Mechanism, Page};
use crate::page::{Entry, Frame, PageOp, PageState};
use crate::policy::large::Demotion;
use crate::server::{Fault, FaultKind, Server};
use crate::share::{Domain, Found};

/// What became of a scanned page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scanned {
    /// Not a page that can be shared.
    Skipped,
    /// Nothing like it known: it is now.
    Hinted,
    /// Known by its hint, and still alone.
    Alone,
    /// Merged with another page or with the frame of zeros.
    Merged,
    /// Another page with its hash has other contents: ineligible until its state changes.
    FalseMatch,
}

impl Server<'_> {
    /// The VM's trust domain; `None` if it shares nothing.
    fn domain(&self, vm: VmId) -> Option<Domain> {
        match self.vm(vm)?.memory.controls.sharing {
            Sharing::None => None,
            Sharing::Vm => Some(Domain::vm(vm.0 as u8)),
            // An impossible group is a VM on its own.
            Sharing::Group(group) => Some(Domain::group(group).unwrap_or(Domain::vm(vm.0 as u8))),
        }
    }

    fn page(&self, vm: VmId, index: u32) -> Option<(Page, Entry)> {
        let record = self.vm(vm)?;
        let gfn = record.memory.gfn_of(index);
        Some((Page { vm, index, gfn }, self.entries[(record.base + index) as usize]))
    }

    fn mark(&mut self, vm: VmId, index: u32, change: impl FnOnce(Entry) -> Entry) {
        if let Some(Some(record)) = self.vms.get(vm.0 as usize) {
            let entry = &mut self.entries[(record.base + index) as usize];
            *entry = change(*entry);
        }
    }

    /// Looks at one page, and merges it if its contents are known.
    pub fn scan_page(&mut self, vm: VmId, index: u32, mechanism: &mut impl Mechanism) -> Scanned {
        let Some((page, entry)) = self.page(vm, index) else { return Scanned::Skipped };
        let Some(domain) = self.domain(vm) else { return Scanned::Skipped };
        if entry.state() != PageState::Private || entry.is_ineligible() {
            return Scanned::Skipped;
        }
        let frame = Frame(entry.value());
        if mechanism.is_zero(frame) {
            return self.merge_zero(page, frame, mechanism);
        }
        let hash = mechanism.hash(frame, self.policy.secret ^ mix(u64::from(domain.number())));
        let key = domain.key(hash);
        match self.share.find(key) {
            None => {
                self.share.insert_hint(key, vm.0 as u8, index);
                Scanned::Hinted
            }
            Some((at, Found::Shared(common))) => self.merge(page, frame, at, common, mechanism),
            Some((at, Found::Hint { vm: other, index: other_index })) => {
                let other = VmId(u16::from(other));
                if (other, other_index) == (vm, index) {
                    return Scanned::Alone;
                }
                if !self.hint_holds(other, other_index, domain, key, mechanism) {
                    self.share.remove(at);
                    self.share.insert_hint(key, vm.0 as u8, index);
                    return Scanned::Hinted;
                }
                let Some((_, held)) = self.page(other, other_index) else {
                    return Scanned::Skipped;
                };
                let common = Frame(held.value());
                // Nobody may write either page from the comparison on.
                self.unmap(vm, index, Demotion::Sharing, mechanism);
                if !mechanism.equal(frame, common) {
                    return self.false_match(page);
                }
                self.share.promote(at, common);
                let mapped = held.is_mapped();
                self.change(other, other_index, PageOp::Share, at);
                if mapped {
                    self.mark(other, other_index, |entry| entry.mapped(false));
                }
                self.change(vm, index, PageOp::Share, at);
                self.ledger.free_frame(frame);
                Scanned::Merged
            }
        }
    }

    /// Whether the page a hint names is still there with the contents hinted at. It cannot be written any more if so.
    fn hint_holds(
        &mut self,
        vm: VmId,
        index: u32,
        domain: Domain,
        key: u64,
        mechanism: &mut impl Mechanism,
    ) -> bool {
        let in_domain = self.domain(vm) == Some(domain);
        let inside = self.vm(vm).is_some_and(|record| u64::from(index) < record.memory.size.0);
        if !in_domain || !inside {
            return false;
        }
        let Some((_, entry)) = self.page(vm, index) else { return false };
        if entry.state() != PageState::Private || entry.is_ineligible() {
            return false;
        }
        self.demote(vm, index, Demotion::Sharing, mechanism);
        if self.page(vm, index).is_some_and(|(_, entry)| !entry.is_mapped()) {
            // It may have kept a capability.
            self.unmap(vm, index, Demotion::Sharing, mechanism);
        }
        let Some((page, entry)) = self.page(vm, index) else { return false };
        if entry.is_writable() {
            if mechanism.protect(page, false).is_err() {
                return false;
            }
            self.mark(vm, index, |entry| entry.mapped(false));
        }
        let secret = self.policy.secret ^ mix(u64::from(domain.number()));
        domain.key(mechanism.hash(Frame(entry.value()), secret)) == key
    }

    fn merge_zero(&mut self, page: Page, frame: Frame, mechanism: &mut impl Mechanism) -> Scanned {
        self.unmap(page.vm, page.index, Demotion::Sharing, mechanism);
        // Again, now that nobody can write it.
        if !mechanism.is_zero(frame) {
            return Scanned::Alone;
        }
        self.change(page.vm, page.index, PageOp::ShareZero, 0);
        self.ledger.free_frame(frame);
        Scanned::Merged
    }

    fn merge(
        &mut self,
        page: Page,
        frame: Frame,
        at: u32,
        common: Frame,
        mechanism: &mut impl Mechanism,
    ) -> Scanned {
        self.unmap(page.vm, page.index, Demotion::Sharing, mechanism);
        if !mechanism.equal(frame, common) {
            return self.false_match(page);
        }
        if !self.share.add_reference(at) {
            return Scanned::Alone;
        }
        self.change(page.vm, page.index, PageOp::Share, at);
        self.ledger.free_frame(frame);
        Scanned::Merged
    }

    fn false_match(&mut self, page: Page) -> Scanned {
        self.counters.false_matches += 1;
        self.mark(page.vm, page.index, Entry::ineligible);
        Scanned::FalseMatch
    }

    /// A write to a page that others see: it gets a frame of its own.
    pub(crate) fn break_share(
        &mut self,
        page: Page,
        base: u32,
        mechanism: &mut impl Mechanism,
    ) -> Fault {
        let entry = self.entries[(base + page.index) as usize];
        if entry.state() == PageState::Shared && self.share.count(entry.value()) == 1 {
            return self.unshare(page, base, entry, mechanism);
        }
        // Breaks may use the reserve that first touches leave alone.
        let frame = match self.allocate(page.vm, base, page.index) {
            Some(frame) => frame,
            None => {
                if let Err(refusal) = self.make_room(page.vm, mechanism) {
                    return Fault::Refused(refusal);
                }
                match self.allocate(page.vm, base, page.index) {
                    Some(frame) => frame,
                    None => return Fault::Refused(Refusal::NoMemory),
                }
            }
        };
        // Making room may have taken this very page.
        let entry = self.entries[(base + page.index) as usize];
        match entry.state() {
            PageState::Zero => mechanism.zero(frame),
            PageState::Shared => mechanism.copy(self.frame_of(entry), frame),
            _ => {
                self.ledger.free_frame(frame);
                return Fault::Refused(Refusal::NoMemory);
            }
        }
        self.unmap(page.vm, page.index, Demotion::Sharing, mechanism);
        self.drop_contents(entry);
        self.change(page.vm, page.index, PageOp::Break, frame.0);
        self.finish_break(page, base, frame, FaultKind::Break, mechanism)
    }

    /// A write to a shared page whose other sharers are gone: its frame is its own again.
    fn unshare(
        &mut self,
        page: Page,
        base: u32,
        entry: Entry,
        mechanism: &mut impl Mechanism,
    ) -> Fault {
        self.unmap(page.vm, page.index, Demotion::Sharing, mechanism);
        let Some(frame) = self.share.drop_reference(entry.value()) else {
            return Fault::Refused(Refusal::Lost);
        };
        self.change(page.vm, page.index, PageOp::Unshare, frame.0);
        self.finish_break(page, base, frame, FaultKind::Break, mechanism)
    }

    fn finish_break(
        &mut self,
        page: Page,
        base: u32,
        frame: Frame,
        kind: FaultKind,
        mechanism: &mut impl Mechanism,
    ) -> Fault {
        match self.map(page, frame, true, mechanism) {
            Ok(()) => {
                self.set_mapped(page, base, true, kind);
                Fault::Mapped
            }
            // The page is private now and not mapped; the next touch tries again.
            Err(refusal) => Fault::Refused(refusal),
        }
    }
}
