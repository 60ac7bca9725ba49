//! What is mapped in one reservation, found by its granule: each call that maps or opens memory
//! asks several times.

use super::vmm::Mapping;

/// Granules of one part of the table. Parts are there where something was mapped in them.
const PART: usize = 256;

/// One granule of a reservation.
#[derive(Clone, Copy, Debug, Default)]
struct Page {
    /// How many granules the mapping over it has before it, plus one; 0 where nothing is mapped.
    behind: u32,
    /// In the first granule of a mapping: all of it.
    mapping: Mapping,
}

/// The mappings of one reservation, by granules from its start. No two overlap.
#[derive(Debug, Default)]
pub(super) struct Pages {
    parts: Vec<Option<Box<[Page; PART]>>>,
}

impl Pages {
    fn page(&self, granule: usize) -> Option<&Page> {
        self.parts.get(granule / PART)?.as_ref().map(|part| &part[granule % PART])
    }

    /// The pages of `[from, to)` that lie in the part of `from`, of which there is at least one.
    #[inline]
    fn pages_mut(&mut self, from: usize, to: usize) -> &mut [Page] {
        let part = from / PART;
        if self.parts.len() <= part {
            self.parts.resize_with(part + 1, || None);
        }
        let part = self.parts[part].get_or_insert_with(|| Box::new([Page::default(); PART]));
        let first = from % PART;
        &mut part[first..PART.min(first + to - from)]
    }

    /// Where the mapping over a granule starts, and the mapping.
    pub(super) fn over(&self, granule: usize) -> Option<(usize, &Mapping)> {
        let behind = self.page(granule)?.behind.checked_sub(1)? as usize;
        let first = granule - behind;
        self.page(first).map(|page| (first, &page.mapping))
    }

    /// The mapping that starts at a granule.
    pub(super) fn get_mut(&mut self, granule: usize) -> Option<&mut Mapping> {
        let page = self.parts.get_mut(granule / PART)?.as_mut()?;
        let page = &mut page[granule % PART];
        (page.behind == 1).then_some(&mut page.mapping)
    }

    /// Where the first mapping over any granule of `[from, to)` starts.
    pub(super) fn first_in(&self, from: usize, to: usize) -> Option<usize> {
        let mut at = from;
        while at < to {
            match self.parts.get(at / PART) {
                None => return None,
                Some(None) => at = (at / PART + 1) * PART,
                Some(Some(part)) => {
                    if let Some(before) = part[at % PART].behind.checked_sub(1) {
                        return Some(at - before as usize);
                    }
                    at += 1;
                }
            }
        }
        None
    }

    /// Notes a mapping that starts at a granule, where nothing is mapped.
    pub(super) fn insert(&mut self, first: usize, mapping: Mapping) {
        let (mut at, end) = (first, first + mapping.granules());
        while at < end {
            let pages = self.pages_mut(at, end);
            if at == first {
                pages[0].mapping = mapping;
            }
            for page in pages {
                at += 1;
                page.behind = (at - first) as u32;
            }
        }
    }

    /// Forgets the mapping that starts at a granule.
    pub(super) fn remove(&mut self, first: usize) -> Option<Mapping> {
        let mapping = *self.get_mut(first)?;
        let (mut at, end) = (first, first + mapping.granules());
        while at < end {
            let pages = self.pages_mut(at, end);
            at += pages.len();
            pages.iter_mut().for_each(|page| page.behind = 0);
        }
        Some(mapping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::HandleId;
    use crate::units::GRANULE;

    #[test]
    fn mappings_are_found_at_each_of_their_granules_and_nowhere_else() {
        let mut pages = Pages::default();
        let mapping = |number: u64, granules: u64| Mapping {
            bytes: granules * GRANULE,
            handle: HandleId(number),
            accessible: false,
        };
        // One over the border of two parts, one behind a part that is not there.
        let placed = [(PART - 2, 5), (PART + 3, 1), (4 * PART, 2)];
        for (number, (first, granules)) in placed.into_iter().enumerate() {
            assert_eq!(pages.first_in(first, first + granules), None);
            pages.insert(first, mapping(number as u64, granules as u64));
        }
        for (number, (first, granules)) in placed.into_iter().enumerate() {
            for granule in first..first + granules {
                let (start, over) = pages.over(granule).unwrap();
                assert_eq!((start, over.handle.0), (first, number as u64));
                assert_eq!(pages.first_in(granule, granule + 1), Some(first));
                assert_eq!(pages.get_mut(granule).is_some(), granule == first);
            }
        }
        assert_eq!(pages.first_in(0, PART), Some(PART - 2));
        assert_eq!(pages.first_in(PART + 4, 9 * PART), Some(4 * PART));
        assert_eq!(pages.first_in(4 * PART + 2, 99 * PART), None);
        assert!(pages.over(PART + 4).is_none() && pages.over(77 * PART).is_none());
        assert_eq!(pages.remove(PART - 2).map(|gone| gone.handle.0), Some(0));
        assert!((PART - 2..PART + 3).all(|granule| pages.over(granule).is_none()));
        assert!(pages.remove(PART - 2).is_none() && pages.over(PART + 3).is_some());
    }
}
