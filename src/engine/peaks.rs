//! Exact peaks over heaps that are counted apart.
//!
//! A peak can only rise where something grows. Each heap has a *lease* on each quantity: how far it
//! may grow without a word to anybody. The leases of all heaps together are never above the peak,
//! so that as long as each heap keeps to its own, no new peak can come about, and nothing is
//! written that heaps share. A heap that exceeds a lease has it extended: from what is left below
//! the peak; then from what others do not need of theirs, which they lose; and if that does not
//! suffice either, all of it together is more than ever before, and the peak rises, exactly.
//!
//! A heap that nothing was taken from can have more lease than it needs only if it was given some,
//! or something was freed in it. So there is a list of *holders*, which a heap joins when it is
//! first used after it lost its surplus; only they are looked at. One thread that goes from heap to
//! heap at the peak pays for one other heap a step.
//!
//! Threads at work on heaps of their own at the same time would take surplus from each other again
//! and again. Where that is seen, surplus is taken for a 33rd of the time at most, and between that
//! a lease is extended by raising the peak, which then is an upper bound: it is too high by no more
//! than what was freed since surplus was taken last, and at most the sum of the heaps' own peaks.
//! A heap whose lock cannot be had counts with its lease, which may be more than it ever had.

use std::time::{Duration, Instant};

use super::padded::Padded;
use super::shards::{Shards, thread_number};
use crate::heap::{Heap, METRICS, metric};
use crate::lock::{Mutex, MutexGuard};

/// Two threads of which one needs more than is left within this time after the other was served
/// work at the same time.
const SAME_TIME_NS: u128 = 20_000;
/// How often that must be seen in a row, and for how long it is taken to go on, since the last need
/// of any of them.
const SAME_TIME_COUNT: u32 = 8;
const CROWD: Duration = Duration::from_millis(100);
/// A thread that needed more so many times with no other in between is alone, also where another
/// comes next: looking at the clock each time would cost a third of serving the need.
const ALONE: u32 = 16;
/// How often a heap is tried whose lock another thread has: it has it for some tens of
/// instructions, or for a driver call.
const TRIES: u32 = 200;
/// How often it is looked what is live, in vain, before the last answer does.
const LOOKS: u32 = 8;
/// Taking surplus while threads are at work at the same time is followed by so many times the time
/// that it took in which none is taken.
const REST: u32 = 32;
/// A lease is extended by at least so many times what is needed, where that is left.
const GROWTH: i64 = 16;

/// The peaks of one device.
#[derive(Debug)]
pub(crate) struct Peaks {
    state: Padded<Mutex<State>>,
}

/// What all heaps of a device come to.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    pub(crate) current: [i64; METRICS],
    pub(crate) peak: [i64; METRICS],
    /// Everything ever allocated, freed or not.
    pub(crate) added: [i64; METRICS],
}

#[derive(Debug)]
struct State {
    /// Sum of the heaps' leases; never above the peak.
    total: [i64; METRICS],
    peak: [i64; METRICS],
    /// The most bytes that were ever seen live: below the peak where that is an upper bound.
    seen: i64,
    /// The heaps whose leases may be above their values, by number.
    holders: Vec<u32>,
    /// Who needed more than was left last, and when that was served.
    thread: usize,
    since: Instant,
    in_a_row: u32,
    /// How often in a row that was the same thread. From [`ALONE`] on the time is not looked at.
    alone: u32,
    /// Until when threads are taken to be at work at the same time.
    crowd_until: Option<Instant>,
    /// Until when threads at work at the same time take no surplus from each other.
    rest_until: Instant,
}

impl Peaks {
    pub(crate) fn new() -> Self {
        Peaks {
            state: Padded(Mutex::new(State {
                total: [0; METRICS],
                peak: [0; METRICS],
                seen: 0,
                holders: Vec::new(),
                thread: 0,
                since: Instant::now(),
                in_a_row: 0,
                alone: 0,
                crowd_until: None,
                rest_until: Instant::now(),
            })),
        }
    }

    /// Called with the heap locked, before it changes. False where its stream is retired.
    #[inline]
    pub(crate) fn enter(&self, heap: &mut Heap) -> bool {
        if !heap.turn.is_ready() && !heap.turn.is_holder() {
            self.state.lock().register(heap);
        }
        !heap.turn.is_retired()
    }

    /// The stream of this heap, which is locked, retires: no call passes by `enter` any more.
    pub(crate) fn retire(&self, heap: &mut Heap) {
        heap.turn.set_retired(true);
    }

    /// Called with the heap locked, after it grew: extends its leases where it exceeds one.
    #[inline]
    pub(crate) fn leave(&self, shards: &Shards, heap: &mut Heap) {
        if heap.tally.is_exceeded() {
            self.extend(shards, heap);
        }
    }

    /// Gives up what the heap, which is locked, has of leases beyond its needs: for whoever keeps
    /// it locked while another grows, which then could not take that.
    pub(crate) fn yield_surplus(&self, heap: &mut Heap) {
        let mut state = self.state.lock();
        if heap.turn.is_holder() {
            state.take_surplus(heap);
            state.holders.retain(|&number| number != heap.number);
        }
    }

    #[cold]
    fn extend(&self, shards: &Shards, heap: &mut Heap) {
        let mut state = self.state.lock();
        state.register(heap);
        let (mut crowd, mut exact, short) = (false, false, state.is_short(heap));
        if short {
            crowd = state.at_the_same_time();
            let start = crowd.then(Instant::now);
            if start.is_none_or(|start| start >= state.rest_until) {
                exact = state.reclaim(shards, heap.number);
            }
            if let Some(start) = start.filter(|_| exact) {
                let end = Instant::now();
                state.rest_until = end + (end - start) * REST;
            }
        }
        state.grant(heap, crowd, exact);
        if short && state.alone < ALONE {
            // From here on: serving a need may take longer than what tells threads at work.
            state.since = Instant::now();
        }
    }

    /// Totals, peaks and everything ever added, of one moment: every heap is locked for it.
    pub(crate) fn read(&self, shards: &Shards) -> Reading {
        let all = shards.lock_all();
        let state = self.state.lock();
        let mut reading = Reading { peak: state.peak, ..Reading::default() };
        for heap in &all.heaps {
            add(&mut reading.current, &heap.tally.currents());
            add(&mut reading.added, &heap.tally.added());
        }
        reading
    }

    /// Sets every peak to the current value.
    pub(crate) fn reset(&self, shards: &Shards) {
        let mut all = shards.lock_all();
        let mut state = self.state.lock();
        for heap in &mut all.heaps {
            state.take_surplus(heap);
        }
        state.holders.clear();
        state.peak = state.total;
        state.seen = state.total[metric::BYTES];
    }

    /// The bytes that are live, where this heap is locked, and the most that were ever seen live:
    /// the peak, save that threads at work do not raise it by more than was there when somebody
    /// asked here, since policy must not take the sum of their peaks for the peak of their sum. For
    /// the same reason nothing is seen while another thread has a heap locked; the live bytes are
    /// those last seen then, at most.
    pub(crate) fn estimate(&self, shards: &Shards, heap: &Heap) -> (i64, i64) {
        for _ in 0..LOOKS {
            let mut state = self.state.lock();
            if let Some(now) = state.live(shards, heap) {
                state.seen = state.seen.max(now);
                return (now, state.seen);
            }
            // Whoever has it may want this lock.
            drop(state);
            std::thread::yield_now();
        }
        let seen = self.state.lock().seen;
        (seen, seen)
    }

    /// What is wrong, if anything, given that every heap is locked and none is added.
    pub(crate) fn fault(&self, heaps: &[&Heap]) -> Option<String> {
        let state = self.state.lock();
        let mut total = [0; METRICS];
        for heap in heaps {
            let (leases, values) = (heap.tally.leases(), heap.tally.currents());
            add(&mut total, leases);
            let number = heap.number;
            if values.iter().zip(leases).any(|(value, lease)| value > lease) {
                return Some(format!("heap {number} has {values:?} on leases of {leases:?}"));
            }
            if values != *leases && !state.holders.contains(&number) {
                return Some(format!("heap {number} has surplus and is no holder"));
            }
        }
        if total != state.total || total.iter().zip(state.peak).any(|(sum, peak)| *sum > peak) {
            return Some(format!("leases of {total:?}, kept {:?}, {:?}", state.total, state.peak));
        }
        None
    }
}

impl State {
    /// Makes a heap, which is locked, a holder.
    fn register(&mut self, heap: &mut Heap) {
        if !heap.turn.is_holder() {
            heap.turn.set_holder(true);
            self.holders.push(heap.number);
        }
    }

    /// Whether less is left below the peaks than the heap needs.
    fn is_short(&self, heap: &Heap) -> bool {
        let (values, leases) = (heap.tally.currents(), heap.tally.leases());
        (0..METRICS).any(|m| values[m] - leases[m] > self.peak[m] - self.total[m])
    }

    /// Whether this thread's need follows another's so closely, again and again, that both are at
    /// work; or did so a moment ago.
    fn at_the_same_time(&mut self) -> bool {
        let thread = thread_number();
        if thread == self.thread && self.crowd_until.is_none() {
            self.alone = self.alone.saturating_add(1);
            return false;
        }
        let alone = std::mem::take(&mut self.alone) >= ALONE;
        let now = Instant::now();
        if self.crowd_until.is_some_and(|until| now < until) {
            self.crowd_until = Some(now + CROWD);
            return true;
        }
        let close = !alone && now.duration_since(self.since).as_nanos() < SAME_TIME_NS;
        self.in_a_row = if close && thread != self.thread { self.in_a_row + 1 } else { 0 };
        self.thread = thread;
        self.crowd_until = (self.in_a_row > SAME_TIME_COUNT).then(|| now + CROWD);
        self.crowd_until.is_some()
    }

    /// Takes the surplus of all holders but one, which is a holder; false where the lock of one
    /// could not be had.
    fn reclaim(&mut self, shards: &Shards, except: u32) -> bool {
        let mut at = 0;
        while let Some(&number) = self.holders.get(at) {
            let heap = if number == except { None } else { patiently(shards, number) };
            match heap {
                Some(mut heap) => {
                    self.take_surplus(&mut heap);
                    self.holders.swap_remove(at);
                }
                None => at += 1,
            }
        }
        self.holders.len() == 1
    }

    /// The bytes that are live, where this heap is locked; `None` where another thread has one.
    fn live(&self, shards: &Shards, heap: &Heap) -> Option<i64> {
        let metric = metric::BYTES;
        let surplus = |heap: &Heap| heap.tally.leases()[metric] - heap.tally.current(metric);
        let mut now = self.total[metric] - surplus(heap);
        for &number in self.holders.iter().filter(|&&number| number != heap.number) {
            now -= surplus(&*patiently(shards, number)?);
        }
        Some(now)
    }

    /// Takes a heap's surplus, after which it is no holder.
    fn take_surplus(&mut self, heap: &mut Heap) {
        let values = heap.tally.currents();
        for (m, lease) in heap.tally.leases().iter().enumerate() {
            self.total[m] -= lease - values[m];
        }
        heap.tally.set_leases(values);
        heap.turn.set_holder(false);
    }

    /// Extends the leases of a heap: to what it needs, for which peaks rise if they must, and to
    /// room for growth by as much again, of which it gets no more than half of what is left. In a
    /// crowd each takes no more than it needs.
    fn grant(&mut self, heap: &mut Heap, crowd: bool, exact: bool) {
        let before = self.peak[metric::BYTES];
        let values = heap.tally.currents();
        let mut leases = *heap.tally.leases();
        let share = i64::from(!crowd);
        for m in 0..METRICS {
            let ahead = values[m] - leases[m];
            let need = ahead.max(0);
            let left = (self.peak[m] - self.total[m]).max(need);
            self.peak[m] = self.total[m] + left;
            let wanted = values[m].max(GROWTH * need) + ahead.min(0);
            let extra = wanted.min((left - need) >> 1).max(0) * share;
            leases[m] += need + extra;
            self.total[m] += need + extra;
        }
        heap.tally.set_leases(leases);
        if exact && self.peak[metric::BYTES] > before {
            self.seen = self.peak[metric::BYTES];
        }
    }
}

/// Tries a heap's lock for a while.
fn patiently(shards: &Shards, number: u32) -> Option<MutexGuard<'_, Heap>> {
    let shard = shards.get(number)?;
    (0..TRIES).find_map(|_| {
        let locked = shard.heap.try_lock_as_left();
        if locked.is_none() {
            std::hint::spin_loop();
        }
        locked
    })
}

fn add(sum: &mut [i64; METRICS], values: &[i64; METRICS]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heap::ArenaKind;
    use crate::units::StreamId;

    /// Heaps whose contents go up and down.
    struct Rig {
        shards: Shards,
        peaks: Peaks,
    }

    impl Rig {
        fn of(heaps: u64) -> Rig {
            let shards = Shards::new(0, None);
            (0..heaps).for_each(|stream| assert!(shards.for_stream(StreamId(stream)).is_some()));
            Rig { shards, peaks: Peaks::new() }
        }

        /// Counts an allocation of `bytes`, or the end of one where it is negative.
        fn change(&self, heap: u32, bytes: i64) {
            let mut heap = self.shards.get(heap).unwrap().heap.lock();
            assert!(self.peaks.enter(&mut heap));
            let size = bytes.unsigned_abs();
            if bytes > 0 {
                heap.tally.allocate(ArenaKind::Large, size, size);
            } else {
                heap.tally.free(ArenaKind::Large, size, size);
            }
            self.peaks.leave(&self.shards, &mut heap);
        }

        fn peak(&self) -> i64 {
            let all = self.shards.lock_all();
            let heaps: Vec<&Heap> = all.heaps.iter().map(|heap| &**heap).collect();
            assert_eq!(self.peaks.fault(&heaps), None);
            drop(heaps);
            drop(all);
            self.peaks.read(&self.shards).peak[metric::BYTES]
        }
    }

    #[test]
    fn heaps_that_take_turns_have_an_exact_peak() {
        let rig = Rig::of(3);
        let (mut now, mut peak, mut random) = ([0; 3], 0, 1_u64);
        for _ in 0..5000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (heap, size) = ((random >> 40) as usize % 3, (random >> 50) as i64 % 100 + 1);
            let change = if random >> 33 & 1 == 0 && now[heap] >= size { -size } else { size };
            now[heap] += change;
            rig.change(heap as u32, change);
            peak = peak.max(now.iter().sum());
            assert_eq!(rig.peak(), peak);
        }
    }

    #[test]
    fn below_the_peak_nobody_takes_from_others() {
        let rig = Rig::of(100);
        rig.change(0, 1000);
        rig.change(0, -1000);
        for _ in 0..3 {
            (0..100).for_each(|heap| rig.change(heap, 1));
            (0..100).for_each(|heap| rig.change(heap, -1));
        }
        let ready =
            rig.shards.iter().filter(|(_, shard)| shard.heap.lock().turn.is_ready()).count();
        assert_eq!(ready, 100);
        assert_eq!(rig.peak(), 1000);
    }

    #[test]
    fn a_busy_heap_counts_with_its_lease() {
        let rig = Rig::of(2);
        rig.change(0, 30);
        rig.change(0, -30);
        let busy = rig.shards.get(0).unwrap().heap.lock();
        rig.change(1, 20);
        let own = rig.shards.get(1).unwrap().heap.lock();
        assert_eq!(rig.peaks.estimate(&rig.shards, &own), (30, 30), "nothing new is seen");
        drop(own);
        drop(busy);
        assert_eq!(rig.peak(), 50, "the truth is 30");
        let own = rig.shards.get(1).unwrap().heap.lock();
        assert_eq!(rig.peaks.estimate(&rig.shards, &own), (20, 30), "policy knows it");
        drop(own);
        rig.peaks.reset(&rig.shards);
        assert_eq!(rig.peak(), 20);
        rig.change(1, -20);
        rig.change(0, 20);
        assert_eq!(rig.peak(), 20, "exact again");
    }

    /// Alternating needs of two threads are a crowd, unless one of them had many before.
    #[test]
    fn threads_in_turn_are_a_crowd_and_one_alone_is_not() {
        let rig = Rig::of(1);
        let mut state = rig.peaks.state.lock();
        let mut need = |times: u32| {
            let crowd = (0..times).map(|_| state.at_the_same_time()).last();
            state.since = Instant::now();
            // As if that had been another thread.
            state.thread = 0;
            crowd
        };
        for _ in 0..SAME_TIME_COUNT {
            assert_eq!(need(2), Some(false));
        }
        assert_eq!(need(ALONE + 1), Some(true), "the first of them belongs to the crowd");
        let rig = Rig::of(1);
        let mut state = rig.peaks.state.lock();
        for _ in 0..10 * SAME_TIME_COUNT {
            assert!(!(0..=ALONE).any(|_| state.at_the_same_time()));
            (state.since, state.thread) = (Instant::now(), 0);
        }
    }

    #[test]
    fn a_crowd_takes_surplus_from_time_to_time() {
        let rig = Rig::of(2);
        rig.change(0, 100);
        rig.change(0, -100);
        let (start, minute) = (Instant::now(), Duration::from_secs(60));
        rig.peaks.state.lock().crowd_until = Some(start + minute);
        rig.peaks.state.lock().rest_until = start + minute;
        rig.change(1, 50);
        assert_eq!(rig.peak(), 150, "the truth is 100");
        rig.peaks.state.lock().rest_until = start;
        rig.change(1, 70);
        assert_eq!(rig.peak(), 150, "the truth is 120");
        assert!(rig.peaks.state.lock().rest_until > start);
    }

    #[test]
    fn heaps_that_are_added_meanwhile_are_not_lost() {
        let rig = Rig::of(1);
        std::thread::scope(|scope| {
            let adding = scope.spawn(|| {
                for stream in 1..600 {
                    let number = rig.shards.for_stream(StreamId(stream)).unwrap().number;
                    rig.change(number, 2);
                    rig.change(number, -1);
                }
            });
            while !adding.is_finished() {
                rig.peaks.reset(&rig.shards);
                assert!(rig.peak() >= 0);
            }
        });
        rig.peaks.reset(&rig.shards);
        assert_eq!(rig.peak(), 599);
    }
}
