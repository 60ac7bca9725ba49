//! Finding heaps while others are added, in every order that the memory model allows.
//!
//! The first thread writes, and the one that it starts reads. The checker runs the first one to its
//! end, and then looks for orders with another outcome; of each variable it only remembers the last
//! access. A reader that came first would be forgotten over the writer's own reading.

use std::collections::BTreeSet;
use std::sync::Arc;

use loom::model::Builder;
use loom::thread;

use super::directory::front_place;
use super::*;

/// Every order in which threads are interrupted up to three times: few faults need more, and
/// without a limit the larger tests would take hours.
fn check(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

fn stream(number: u64) -> StreamId {
    StreamId(number * 64)
}

/// Streams that share one place of the front table, which the first of them has.
fn behind_each_other() -> [StreamId; 5] {
    let mut same = (1..).map(stream).filter(|&stream| front_place(stream) == 0);
    std::array::from_fn(|_| same.next().unwrap())
}

#[test]
fn two_threads_that_use_a_new_stream_agree_on_its_heap() {
    check(|| {
        let shards = Arc::new(Shards::new(0, None));
        let other = Arc::clone(&shards);
        let theirs = thread::spawn(move || other.for_stream(stream(1)).unwrap().number);
        let mine = shards.for_stream(stream(1)).unwrap().number;
        assert_eq!(theirs.join().unwrap(), mine);
        assert_eq!(shards.len(), 1);
    });
}

/// Finds the first two, the fourth or nothing, and never the fifth.
fn find_each(directory: &Directory, streams: &[StreamId; 5]) {
    for number in [0, 1] {
        let found = directory.find(streams[number]).expect("it was there before");
        assert_eq!((found.stream, found.number), (streams[number], number as u32));
    }
    if let Some(found) = directory.find(streams[3]) {
        assert_eq!((found.stream, found.number), (streams[3], 3));
        assert_eq!(found.lanes.load(Ordering::Relaxed), 1);
    }
    assert!(directory.find(streams[4]).is_none());
}

#[test]
fn a_stream_is_found_while_the_tables_grow() {
    check(|| {
        let shards = Arc::new(Shards::new(0, None));
        let streams = behind_each_other();
        // One in front; one in the first table, which the next one fills.
        streams[..2].iter().for_each(|&stream| assert!(shards.for_stream(stream).is_some()));
        let reader = Arc::clone(&shards);
        let thread = thread::spawn(move || find_each(&reader.directory, &streams));
        for (number, &stream) in (2..).zip(&streams[2..4]) {
            assert_eq!(shards.for_stream(stream).unwrap().number, number);
        }
        thread.join().unwrap();
        assert!(shards.directory.current.load(Ordering::Relaxed) > 0, "the tables have grown");
        for (number, &stream) in streams[..4].iter().enumerate() {
            assert_eq!(shards.for_stream(stream).unwrap().number, number as u32);
        }
    });
}

#[test]
fn all_numbers_below_the_count_are_heaps() {
    check(|| {
        let shards = Arc::new(Shards::new(0, None));
        let reader = Arc::clone(&shards);
        let thread = thread::spawn(move || {
            let count = reader.len();
            assert!(reader.iter().count() >= count as usize);
            for (number, shard) in reader.iter() {
                assert_eq!(shard.number, number);
                assert_eq!(shard.lanes.load(Ordering::Relaxed), 1);
            }
        });
        (0..3).for_each(|k| assert!(shards.for_stream(stream(k)).is_some()));
        thread.join().unwrap();
        assert_eq!(shards.iter().count(), 3);
    });
}

/// Fails unless the lanes of a stream are different heaps of that stream.
fn assert_lanes(shards: &Shards, first: &Shard) -> usize {
    let numbers: Vec<u32> = first.lanes().collect();
    let distinct: BTreeSet<u32> = numbers.iter().copied().collect();
    assert_eq!(distinct.len(), numbers.len(), "a lane counts twice in {numbers:?}");
    for &number in &numbers {
        assert_eq!(shards.get(number).expect("a heap").stream, first.stream);
    }
    numbers.len()
}

#[test]
fn lanes_are_different_heaps_of_the_stream_whenever_they_are_looked_at() {
    check(|| {
        let shards = Arc::new(Shards::new(0, None));
        let first = Arc::clone(shards.get(shards.for_stream(stream(1)).unwrap().number).unwrap());
        let other = (Arc::clone(&shards), Arc::clone(&first));
        let thread = thread::spawn(move || {
            let (shards, first) = other;
            assert_lanes(&shards, &first);
            assert_eq!(shards.lane_of(&first, 1).stream, first.stream);
            let alone = shards.find_alone(first.stream);
            assert!(alone.is_none_or(|found| found.number == first.number));
        });
        (0..=COLLISIONS).for_each(|turn| shards.collide(&first, 1 + turn as usize % 2));
        thread.join().unwrap();
        assert_eq!(assert_lanes(&shards, &first), 2);
        assert!(shards.find_alone(first.stream).is_none());
        assert_eq!(shards.lane_of(&first, 1).number, 1);
        assert_eq!(shards.lane_of(&first, 2).number, 0);
    });
}

#[test]
fn threads_that_collide_at_once_double_the_lanes_and_lose_no_heap() {
    check(|| {
        let shards = Arc::new(Shards::new(0, None));
        let first = Arc::clone(shards.get(shards.for_stream(stream(1)).unwrap().number).unwrap());
        let other = (Arc::clone(&shards), Arc::clone(&first));
        let collide = |shards: &Shards, first: &Shard, thread: usize| {
            (0..=COLLISIONS).for_each(|turn| shards.collide(first, thread + turn as usize % 2));
        };
        let thread = thread::spawn(move || collide(&other.0, &other.1, 1));
        collide(&shards, &first, 3);
        thread.join().unwrap();
        let lanes = assert_lanes(&shards, &first);
        assert!(matches!(lanes, 2 | 4), "{lanes} lanes");
        assert_eq!(shards.len() as usize, lanes);
    });
}
