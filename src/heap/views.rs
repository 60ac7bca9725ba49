//! Views, in one table by number.

use super::size::ArenaKind;
use crate::units::{Address, Bytes, GRANULE, make_room};

/// The number of a view in its heap.
pub(crate) type ViewId = u32;

/// One handle of physical memory at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) address: Address,
    pub(crate) bytes: Bytes,
    /// The number of the handle in the device's store.
    pub(crate) handle: u32,
    pub(crate) active: bool,
    pub(crate) kind: ArenaKind,
    pub(crate) range: u32,
    /// Of a borrowed view: the part that is this heap's.
    pub(crate) part: Option<(Address, Address)>,
}

impl View {
    pub(crate) fn end(&self) -> Address {
        self.address + self.bytes
    }
}

/// A view as it is kept, in a third of the bytes: there are many, and each that passes or moves is
/// a look at another one.
#[derive(Debug)]
struct Entry {
    /// Its address and its bytes are so many granules, of which an address space has 2^27.
    at: u32,
    granules: u32,
    handle: u32,
    range: u32,
    kind: ArenaKind,
    active: bool,
    /// Whether a part of it is noted.
    borrowed: bool,
}

/// All views of a heap; numbers are reused.
#[derive(Debug, Default)]
pub(super) struct ViewTable {
    entries: Vec<Option<Entry>>,
    vacant: Vec<ViewId>,
    /// The parts of those that are borrowed, which are few.
    parts: Vec<(ViewId, (Address, Address))>,
}

impl ViewTable {
    /// How many numbers there are, those among them that are not in use.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// A view, where there is one of that number.
    pub(super) fn get(&self, id: ViewId) -> Option<View> {
        self.entries.get(id as usize)?.as_ref().map(|entry| self.view(id, entry))
    }

    /// Every view.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ViewId, View)> + '_ {
        let entries = (0..).zip(&self.entries);
        entries.filter_map(|(id, entry)| Some((id, self.view(id, entry.as_ref()?))))
    }

    #[inline]
    fn view(&self, id: ViewId, entry: &Entry) -> View {
        let &Entry { at, granules, handle, range, kind, active, borrowed } = entry;
        let (address, bytes) = (u64::from(at) * GRANULE, u64::from(granules) * GRANULE);
        let of_it = |(other, _): &&(ViewId, _)| *other == id;
        let part = if borrowed { self.parts.iter().find(of_it) } else { None };
        let part = part.map(|&(_, part)| part);
        View { address, bytes, handle, active, kind, range, part }
    }

    pub(super) fn insert(&mut self, view: View) -> ViewId {
        let View { address, bytes, handle, kind, range, part, .. } = view;
        let mut id = ViewId::MAX;
        self.insert_row((address, range, kind), &[(handle, bytes)], |new, _, _| id = new);
        self.set_active(id, view.active);
        if part.is_some() {
            self.set_part(id, part);
        }
        id
    }

    /// Adds active views of these handles side by side. `each` is told the number of every one, its
    /// handle, and how many granules it has.
    #[inline]
    pub(super) fn insert_row(
        &mut self,
        (address, range, kind): (Address, u32, ArenaKind),
        handles: &[(u32, Bytes)],
        mut each: impl FnMut(ViewId, u32, u32),
    ) {
        debug_assert!(address.is_multiple_of(GRANULE) && address / GRANULE < u64::from(u32::MAX));
        let ViewTable { entries, vacant, .. } = self;
        make_room(entries, handles.len().saturating_sub(vacant.len()));
        let mut at = (address / GRANULE) as u32;
        for &(handle, bytes) in handles {
            debug_assert!(bytes.is_multiple_of(GRANULE));
            let granules = (bytes / GRANULE) as u32;
            let entry = Entry { at, granules, handle, range, kind, active: true, borrowed: false };
            at += granules;
            let id = match vacant.pop() {
                Some(id) => {
                    entries[id as usize] = Some(entry);
                    id
                }
                None => {
                    entries.push(Some(entry));
                    (entries.len() - 1) as ViewId
                }
            };
            each(id, handle, granules);
        }
    }

    /// Forgets a view.
    #[inline]
    pub(super) fn remove(&mut self, id: ViewId) {
        let gone = self.entries[id as usize].take();
        debug_assert!(gone.as_ref().is_some_and(|entry| !entry.borrowed));
        self.vacant.push(id);
    }

    /// Notes whether a view is active; gives its handle, where there is such a view.
    #[inline]
    pub(super) fn set_active(&mut self, id: ViewId, active: bool) -> Option<u32> {
        let entry = self.entries.get_mut(id as usize)?.as_mut()?;
        entry.active = active;
        Some(entry.handle)
    }

    /// Notes the part of a view that is borrowed, or that it is not.
    pub(super) fn set_part(&mut self, id: ViewId, part: Option<(Address, Address)>) {
        let Some(entry) = self.entries.get_mut(id as usize).and_then(Option::as_mut) else {
            return;
        };
        entry.borrowed = part.is_some();
        self.parts.retain(|(other, _)| *other != id);
        self.parts.extend(part.map(|part| (id, part)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_told_as_it_was_noted() {
        let mut views = ViewTable::default();
        let view = |at: u64, granules: u64, kind, part| {
            let (address, bytes) = (at * GRANULE, granules * GRANULE);
            View { address, bytes, handle: at as u32, active: true, kind, range: 3, part }
        };
        // At the end of the address space; borrowed in part; and one after the other in one place.
        let far = view((1 << 27) - 9, 9, ArenaKind::Large, None);
        let part = Some((5 * GRANULE + 512, 6 * GRANULE - 512));
        let borrowed = view(5, 1, ArenaKind::Small, part);
        let ids = [far, borrowed].map(|view| views.insert(view));
        assert_eq!(ids.map(|id| views.get(id)), [Some(far), Some(borrowed)]);
        assert_eq!(views.set_active(ids[0], false), Some(far.handle));
        assert_eq!(views.get(ids[0]), Some(View { active: false, ..far }));
        views.remove(ids[0]);
        assert_eq!((views.get(ids[0]), views.set_active(ids[0], true)), (None, None));
        let third = view(8, 4, ArenaKind::Large, None);
        assert_eq!((views.insert(third), views.len()), (ids[0], 2));
        views.set_part(ids[1], None);
        let whole = View { part: None, ..borrowed };
        let all: Vec<_> = views.iter().collect();
        assert_eq!(all, [(ids[0], third), (ids[1], whole)]);
        assert!(views.get(2).is_none() && views.parts.is_empty());
    }
}
