//! Idle memory that lies side by side but is too short for a request by a part of it: the run is
//! continued into the hole behind or before it, so that only the rest has to be moved there.

use std::cmp::Reverse;

use super::grow::Request;
use super::{Engine, Growth};
use crate::error::Result;
use crate::heap::{ArenaKind, Heap, IdleRun};
use crate::lock::MutexGuard;
use crate::units::{Address, Bytes, GRANULE, align_up};

/// At how many runs a request looks, the longest first.
const RUNS: usize = 8;

/// A run with a hole beside it, by its place among the runs.
#[derive(Clone, Copy, Debug)]
struct Place {
    run: usize,
    /// What the request needs of the hole, and whether that lies before the run.
    lacking: (Address, Address),
    before: bool,
    /// Whose hole it is, if not the request's heap's.
    owner: Option<u32>,
}

impl Engine {
    /// Makes the longest run of idle views with a hole beside it that is long enough, whoever has
    /// them, the heap's own, for the plan to find; true where anything changed hands. The parts of
    /// runs are by address. No call to the driver: work queued on the request's stream runs after
    /// whatever still uses the views.
    pub(super) fn extend_a_run(
        &self,
        growth: &mut Growth,
        heap: &mut MutexGuard<'_, Heap>,
        request: Request,
        parts: &[&IdleRun],
    ) -> Result<bool> {
        if request.kind == ArenaKind::Small {
            return Ok(false);
        }
        let runs = runs(parts, request.bytes, request.bytes / self.policy.run_share);
        if runs.is_empty() {
            return Ok(false);
        }
        let mut best = None;
        look_beside(&runs, request, (None, heap), &mut best);
        // Private pools keep their addresses.
        let others = self.shards.iter().filter(|(_, shard)| shard.pool().is_none());
        for (number, shard) in others.filter(|(number, _)| *number != request.shard) {
            if best.is_some_and(|best: Place| best.run == 0) {
                break;
            }
            look_beside(&runs, request, (Some(number), &shard.heap.lock()), &mut best);
        }
        let Some(Place { run, lacking, before, owner }) = best else {
            return Ok(false);
        };
        let others = runs[run].iter().filter(|part| part.heap != request.shard);
        let taken: Vec<_> = others.map(|part| (part.heap, (part.start, part.end))).collect();
        if owner.is_none() && taken.is_empty() {
            return Ok(false);
        }
        if self.take_over_all(growth, heap, request, taken)?
            && let Some(shard) = owner.and_then(|owner| self.shards.get(owner))
            && let Some(ceded) = shard.heap.lock().cede_hole(request.kind, lacking, before)
        {
            heap.adopt(&ceded);
        }
        Ok(true)
    }
}

/// The longest runs of at least so many bytes, as far as they are shorter than the request.
fn runs<'a, 'b>(parts: &'a [&'b IdleRun], bytes: Bytes, least: Bytes) -> Vec<&'a [&'b IdleRun]> {
    let mut runs: Vec<_> = parts.chunk_by(|one, next| one.end == next.start).collect();
    let length = |run: &[&IdleRun]| run[run.len() - 1].end - run[0].start;
    runs.retain(|run| (least..bytes).contains(&length(run)));
    runs.sort_by_key(|run| Reverse(length(run)));
    runs.truncate(RUNS);
    runs
}

/// Looks for a hole of one heap beside a run, longer than the best one so far or else as long and
/// of the request's heap.
fn look_beside(
    runs: &[&[&IdleRun]],
    request: Request,
    (owner, heap): (Option<u32>, &Heap),
    best: &mut Option<Place>,
) {
    let most = best.map_or(runs.len(), |best| best.run);
    for (at, run) in runs[..most].iter().enumerate() {
        let (from, to) = (run[0].start, run[run.len() - 1].end);
        let lacking = align_up(request.bytes - (to - from), GRANULE);
        let fits = |at, before| heap.hole_beside(request.kind, at, before) >= lacking;
        let (span, before) = if fits(to, false) {
            ((to, to + lacking), false)
        } else if fits(from, true) {
            ((from - lacking, from), true)
        } else {
            continue;
        };
        *best = Some(Place { run: at, lacking: span, before, owner });
        return;
    }
}
