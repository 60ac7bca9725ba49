//! Looking addresses up while the map changes, in every order that the memory model allows.

use std::sync::Arc;

use loom::thread;

use super::*;

/// An owner, with a number that the checker lets nobody read who has not seen it made.
type Owner = AtomicU32;
type Map = PageMap<Owner>;

fn owner(number: u32) -> Arc<Owner> {
    Arc::new(Owner::new(number))
}

/// The owner's number and the slot.
fn look(map: &Map, address: Address) -> Option<(u32, u32)> {
    map.get(address).map(|(owner, slot)| (owner.load(Ordering::Relaxed), slot))
}

#[test]
fn a_reader_sees_a_granule_without_an_owner_or_with_its_owner_and_slot() {
    loom::model(|| {
        let map = Arc::new(Map::new());
        let writer = Arc::clone(&map);
        let thread = thread::spawn(move || assert!(writer.set(0, &owner(7), 3)));
        let found = look(&map, 0);
        assert!(matches!(found, None | Some((7, 3))), "{found:?}");
        thread.join().unwrap();
        assert_eq!(look(&map, 0), Some((7, 3)));
        assert_eq!(look(&map, GRANULE), None);
    });
}

#[test]
fn a_new_owner_never_comes_with_an_old_slot() {
    loom::model(|| {
        let map = Arc::new(Map::new());
        assert!(map.set(0, &owner(1), 11));
        let writer = Arc::clone(&map);
        let thread = thread::spawn(move || {
            writer.clear(0);
            assert!(writer.set(0, &owner(2), 22));
        });
        let found = look(&map, 0);
        // The first owner may be read with what came after it; the heap finds that out.
        assert!(matches!(found, None | Some((1, 11 | 0 | 22)) | Some((2, 22))), "{found:?}");
        thread.join().unwrap();
        assert_eq!(look(&map, 0), Some((2, 22)));
    });
}

#[test]
fn who_was_given_an_address_finds_its_owner_and_slot() {
    loom::model(|| {
        let map = Arc::new(Map::new());
        assert!(map.set(0, &owner(1), 11));
        let given = Arc::new(AtomicU32::new(0));
        let (writer, gives) = (Arc::clone(&map), Arc::clone(&given));
        let thread = thread::spawn(move || {
            writer.clear(0);
            assert!(writer.set(0, &owner(2), 22));
            gives.store(1, Ordering::Release);
        });
        if given.load(Ordering::Acquire) == 1 {
            assert_eq!(look(&map, 0), Some((2, 22)));
        }
        thread.join().unwrap();
    });
}

#[test]
fn two_that_enter_granules_of_one_new_leaf_lose_neither() {
    loom::model(|| {
        let map = Arc::new(Map::new());
        let other = Arc::clone(&map);
        let thread = thread::spawn(move || assert!(other.set(0, &owner(1), 11)));
        assert!(map.set(GRANULE, &owner(2), 22));
        assert_eq!(look(&map, GRANULE), Some((2, 22)));
        thread.join().unwrap();
        assert_eq!((look(&map, 0), look(&map, GRANULE)), (Some((1, 11)), Some((2, 22))));
    });
}
