//! Blocks by where they start, in one sorted list: looked up many times for each time that one
//! comes or goes.

use super::block::BlockId;
use crate::units::Address;

#[derive(Debug, Default)]
pub(super) struct ByAddress {
    list: Vec<(Address, BlockId)>,
}

impl ByAddress {
    /// How many start before an address.
    fn before(&self, address: Address) -> usize {
        self.list.partition_point(|&(start, _)| start < address)
    }

    /// Adds a block, in place of one that starts there.
    pub(super) fn insert(&mut self, start: Address, id: BlockId) {
        let at = self.before(start);
        match self.list.get_mut(at) {
            Some(same) if same.0 == start => same.1 = id,
            _ => self.list.insert(at, (start, id)),
        }
    }

    pub(super) fn remove(&mut self, start: Address) {
        let at = self.before(start);
        if self.list.get(at).is_some_and(|&(found, _)| found == start) {
            self.list.remove(at);
        }
    }

    /// The block that starts at an address.
    pub(super) fn get(&self, start: Address) -> Option<BlockId> {
        self.list.get(self.before(start)).filter(|&&(found, _)| found == start).map(|found| found.1)
    }

    /// The last block that starts before an address.
    pub(super) fn last_before(&self, address: Address) -> Option<BlockId> {
        Some(self.list[self.before(address).checked_sub(1)?].1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn blocks_are_found_by_where_they_start() {
        let mut random = 7u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % below
        };
        let (mut list, mut all) = (ByAddress::default(), BTreeMap::new());
        for id in 0..5000 {
            let start = next(50);
            if next(2) == 0 {
                list.insert(start, id);
                all.insert(start, id);
            } else {
                list.remove(start);
                all.remove(&start);
            }
            let at = next(52);
            assert_eq!(list.get(at), all.get(&at).copied());
            assert_eq!(list.last_before(at), all.range(..at).next_back().map(|(_, &id)| id));
        }
    }
}
