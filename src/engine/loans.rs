//! Loans: what is left of handles beside live blocks serves other requests, of any heap, through a
//! second mapping of the handle (see `heap::lend`). Nothing moves for it.
//!
//! A loan ends when nothing lives in what was borrowed and somebody looks for memory: the
//! borrower's view is dormant then, and the lender's block free. The streams of the two are ordered
//! both times, as where a handle passes between them.

use super::grow::{Effort, Request};
use super::shards::Shard;
use super::{Engine, Growth};
use crate::device::DeviceResult;
use crate::error::Result;
use crate::heap::{ArenaKind, Heap, Remainder};
use crate::lock::MutexGuard;
use crate::observe::Action;
use crate::pages::Place;
use crate::units::{Address, Bytes};

/// A part of a handle that is in use at another place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loan {
    pub(super) handle: u32,
    /// The lender's heap, and the block there.
    pub(super) lender: u32,
    pub(super) block: u32,
    /// The borrower's heap, and the view there.
    pub(super) borrower: u32,
    pub(super) view: u32,
}

/// What a heap could lend.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) shard: u32,
    pub(super) part: Remainder,
}

/// How many loans a request looks at.
const LOOKS: usize = 64;

/// The heap whose lock the caller holds.
type Held<'a, 'b> = Option<(u32, &'a mut MutexGuard<'b, Heap>)>;

impl Engine {
    /// Lends `bytes` at `start`, in a remainder, to the request's heap: the handle is mapped at
    /// `address`, in a hole, as well. False where it is not free any more, or where the streams
    /// cannot be ordered because one is being captured.
    pub(super) fn borrow(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        Request { shard: borrower, kind, .. }: Request,
        Source { shard: lender, part }: Source,
        (start, bytes): (Address, Bytes),
        address: Address,
    ) -> Result<bool> {
        let span = (start, bytes);
        let Some(block) = self.lend(growth, heap, borrower, (lender, part.kind), span)? else {
            return Ok(false);
        };
        let (number, length) = (part.handle, part.view.1);
        let from = address + (start - part.view.0);
        let Some((view, slots)) = heap.borrow((address, length), number, (from, from + bytes))
        else {
            self.end_lending(lender, block, &mut Some((borrower, heap)));
            return Ok(false);
        };
        let place = Place { shard: borrower, view, address, kind };
        if let Err(error) = growth.store.map(number, address) {
            heap.repay(view);
            if growth.store.is_closed(number, address) {
                // Mapped and useless: a dormant view, until it can be unmapped or made accessible.
                growth.store.lend(number, place);
                growth.store.end_loan(number, (borrower, view), heap.mark());
                self.note_closed(growth, address);
            } else {
                heap.drop_dormant(view);
            }
            self.end_lending(lender, block, &mut Some((borrower, heap)));
            return Err(error.into());
        }
        growth.store.lend(number, place);
        growth.loans.push(Loan { handle: number, lender, block, borrower, view });
        growth.moving.spend(&self.policy);
        self.publish(borrower, &slots);
        self.note_mapped(address, length);
        self.record_memory(Action::SegmentUnmap, lender, start, bytes);
        self.record_memory(Action::SegmentMap, borrower, from, bytes);
        Ok(true)
    }

    /// The lender's part of it: gives the block that is lent. Work queued on the taker's stream
    /// runs after whatever still uses it.
    fn lend(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        taker: u32,
        (lender, kind): (u32, ArenaKind),
        (start, bytes): (Address, Bytes),
    ) -> Result<Option<u32>> {
        if lender == taker {
            return Ok(heap.lend(start, bytes, kind));
        }
        let (Some(from), Some(to)) = (self.shards.get(lender), self.shards.get(taker)) else {
            return Ok(None);
        };
        let mut other = from.heap.lock();
        let Some(since) = other.free_since(start, bytes, kind) else {
            growth.lost += 1;
            return Ok(None);
        };
        if !self.order_after(growth, (from, since), to)? {
            return Ok(None);
        }
        Ok(other.lend(start, bytes, kind))
    }

    /// A block that was lent is free memory of the lender again.
    fn end_lending(&self, lender: u32, block: u32, held: &mut Held<'_, '_>) {
        match held {
            Some((number, heap)) if *number == lender => heap.take_back(block),
            _ => {
                if let Some(shard) = self.shards.get(lender) {
                    shard.heap.lock().take_back(block);
                }
            }
        }
    }

    /// As [`recall`](Engine::recall); with the usual effort the less often the more loans there
    /// are, so that a request looks at no more than about 64 of them on average.
    pub(super) fn recall_in_turn(
        &self,
        growth: &mut Growth,
        held: (u32, &mut MutexGuard<'_, Heap>),
        effort: Effort,
    ) -> DeviceResult<bool> {
        growth.unrecalled += 1;
        if effort == Effort::Usual && growth.unrecalled * LOOKS < growth.loans.len() {
            return Ok(false);
        }
        growth.unrecalled = 0;
        self.recall(growth, Some(held), effort)
    }

    /// Ends loans in which nothing lives; true where there was one. The usual effort ends those
    /// that keep a handle from being idle, as far as nothing queued uses them.
    pub(super) fn recall(
        &self,
        growth: &mut Growth,
        mut held: Held<'_, '_>,
        effort: Effort,
    ) -> DeviceResult<bool> {
        let (mut at, mut any) = (0, false);
        while at < growth.loans.len() {
            if effort == Effort::Usual {
                let passed = self.in_no_way(&growth.loans[at..], &held);
                if passed > 0 {
                    at += passed;
                    continue;
                }
            }
            if self.end_loan(growth, &mut held, growth.loans[at], effort)? {
                growth.loans.swap_remove(at);
                any = true;
                continue;
            }
            at += 1;
        }
        Ok(any)
    }

    /// How many of these loans are of one lender and keep no handle of it from being idle, before
    /// the first that does.
    fn in_no_way(&self, loans: &[Loan], held: &Held<'_, '_>) -> usize {
        let Some(first) = loans.first() else {
            return 0;
        };
        let count = |heap: &Heap| {
            let of_lender = loans.iter().take_while(|loan| loan.lender == first.lender);
            of_lender.take_while(|loan| !heap.is_idle_but_for_loans(loan.block)).count()
        };
        match held {
            Some((number, heap)) if *number == first.lender => count(heap),
            _ => self.shards.get(first.lender).map_or(0, |lender| count(&lender.heap.lock())),
        }
    }

    fn end_loan(
        &self,
        growth: &mut Growth,
        held: &mut Held<'_, '_>,
        loan: Loan,
        effort: Effort,
    ) -> DeviceResult<bool> {
        let (Some(lender), Some(borrower)) =
            (self.shards.get(loan.lender), self.shards.get(loan.borrower))
        else {
            return Ok(false);
        };
        let repaid = match held {
            Some((number, heap)) if *number == loan.borrower => {
                self.repay(growth, (borrower, heap), lender, loan, effort)?
            }
            _ => self.repay(growth, (borrower, &mut borrower.heap.lock()), lender, loan, effort)?,
        };
        if repaid {
            self.end_lending(loan.lender, loan.block, held);
        }
        Ok(repaid)
    }

    /// Lets every loan give back what nobody uses at its ends; true where there was anything.
    pub(super) fn shrink_loans(
        &self,
        growth: &mut Growth,
        held: (u32, &mut MutexGuard<'_, Heap>),
    ) -> DeviceResult<bool> {
        let (mut held, mut any) = (Some(held), false);
        for at in 0..growth.loans.len() {
            if let Some(block) = self.shrink_loan(growth, &mut held, growth.loans[at])? {
                growth.loans[at].block = block;
                any = true;
            }
        }
        Ok(any)
    }

    /// Lets a loan give back what nobody uses at its ends; gives what is the lender's block then.
    fn shrink_loan(
        &self,
        growth: &mut Growth,
        held: &mut Held<'_, '_>,
        loan: Loan,
    ) -> DeviceResult<Option<u32>> {
        let (Some(lender), Some(borrower)) =
            (self.shards.get(loan.lender), self.shards.get(loan.borrower))
        else {
            return Ok(None);
        };
        let ends = match held {
            Some((number, heap)) if *number == loan.borrower => {
                self.repay_ends(growth, (borrower, heap), lender, loan)?
            }
            _ => self.repay_ends(growth, (borrower, &mut borrower.heap.lock()), lender, loan)?,
        };
        Ok(ends.map(|ends| match held {
            Some((number, heap)) if *number == loan.lender => heap.take_ends_back(loan.block, ends),
            _ => lender.heap.lock().take_ends_back(loan.block, ends),
        }))
    }

    /// The borrower's part of it; gives how much it is at both ends.
    fn repay_ends(
        &self,
        growth: &mut Growth,
        (borrower, heap): (&Shard, &mut MutexGuard<'_, Heap>),
        lender: &Shard,
        loan: Loan,
    ) -> DeviceResult<Option<(Bytes, Bytes)>> {
        let Some((ends, since)) = heap.free_ends(loan.view) else {
            return Ok(None);
        };
        let whose = (borrower, &mut **heap, since);
        if !self.goes_back_in_order(growth, whose, lender, Effort::Reshape)? {
            return Ok(None);
        }
        let at = heap.view(loan.view).map(|view| view.address);
        let part = heap.repay_ends(loan.view, ends);
        let place = growth.store.handle(loan.handle).and_then(|handle| handle.active);
        if let (Some(at), Some((from, to)), Some(place)) = (at, part, place) {
            for (start, bytes) in [(from, ends.0), (to - ends.1, ends.1)] {
                if bytes > 0 {
                    let back = place.address + (start - at);
                    self.record_memory(Action::SegmentUnmap, borrower.number, start, bytes);
                    self.record_memory(Action::SegmentMap, lender.number, back, bytes);
                }
            }
        }
        Ok(part.map(|_| ends))
    }

    /// Whether the lender's work comes after the borrower's uses of memory that is free since a
    /// mark, or is made to. A stream that was retired is not asked, and cannot wait for anything:
    /// what goes back to its heap must not be in use any more.
    fn goes_back_in_order(
        &self,
        growth: &mut Growth,
        (borrower, heap, since): (&Shard, &mut Heap, u64),
        lender: &Shard,
        effort: Effort,
    ) -> DeviceResult<bool> {
        if borrower.number == lender.number {
            return Ok(true);
        }
        let is_over = self.deferred.lock().is_retired(lender.stream);
        if effort == Effort::Usual && (is_over || borrower.stream != lender.stream) {
            let passed = self.look_at_marks(&mut growth.marks, borrower, heap, since);
            if passed <= since {
                return Ok(false);
            }
        }
        if !is_over {
            return self.order_after(growth, (borrower, since), lender);
        }
        Ok(effort == Effort::Usual || self.deferred.lock().drain(borrower.stream)?)
    }

    /// The borrower's part of the end, where nothing lives in what was borrowed. Work queued on the
    /// lender's stream runs after whatever still uses it.
    fn repay(
        &self,
        growth: &mut Growth,
        (borrower, heap): (&Shard, &mut MutexGuard<'_, Heap>),
        lender: &Shard,
        loan: Loan,
        effort: Effort,
    ) -> DeviceResult<bool> {
        if effort == Effort::Reshape {
            heap.flush_quick();
        }
        let Some(since) = heap.unused_since(loan.view) else {
            return Ok(false);
        };
        if !self.goes_back_in_order(growth, (borrower, heap, since), lender, effort)? {
            return Ok(false);
        }
        let part = heap.view(loan.view).and_then(|view| Some((view.address, view.part?)));
        let Some((address, bytes)) = heap.repay(loan.view) else {
            return Ok(false);
        };
        let place = growth.store.handle(loan.handle).and_then(|handle| handle.active);
        if let Some(((at, (from, to)), place)) = part.zip(place) {
            self.record_memory(Action::SegmentUnmap, borrower.number, from, to - from);
            let back = place.address + (from - at);
            self.record_memory(Action::SegmentMap, lender.number, back, to - from);
        }
        self.retract(address, bytes);
        growth.store.end_loan(loan.handle, (loan.borrower, loan.view), heap.mark());
        Ok(true)
    }
}

#[cfg(test)]
#[path = "loans_tests.rs"]
mod tests;
