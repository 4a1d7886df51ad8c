//! Which words of an array are in use: extents are taken and given back.

use std::collections::{BTreeMap, BTreeSet};

/// The free extents of an array, never two adjacent ones.
#[derive(Debug, Clone, Default)]
pub(super) struct Extents {
    /// Length by offset.
    free: BTreeMap<u32, u32>,
    /// The same as lengths with their offsets.
    lengths: BTreeSet<(u32, u32)>,
}

/// A run of words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Extent {
    pub(super) offset: u32,
    pub(super) length: u32,
}

impl Extents {
    /// All `length` words are free.
    pub(super) fn new(length: u32) -> Self {
        let mut extents = Self::default();
        extents.insert(0, length);
        extents
    }

    fn insert(&mut self, offset: u32, length: u32) {
        self.free.insert(offset, length);
        self.lengths.insert((length, offset));
    }

    fn remove(&mut self, offset: u32) -> Option<u32> {
        let length = self.free.remove(&offset)?;
        self.lengths.remove(&(length, offset));
        Some(length)
    }

    /// How many words are free, in runs of whatever length.
    pub(super) fn free(&self) -> u32 {
        self.free.values().sum()
    }

    /// Takes `length` words of the shortest run that has them, so that long runs stay for long lists; `None` where
    /// there is no such run. No words need no place.
    pub(super) fn take(&mut self, length: u32) -> Option<Extent> {
        if length == 0 {
            return Some(Extent::default());
        }
        let &(_, offset) = self.lengths.range((length, 0)..).next()?;
        self.reserve(Extent { offset, length });
        Some(Extent { offset, length })
    }

    /// Takes this very extent, as far as it is free.
    pub(super) fn reserve(&mut self, extent: Extent) {
        let Extent { offset, length } = extent;
        let Some((&start, &free)) = self.free.range(..=offset).next_back() else {
            return;
        };
        let end = offset + length;
        if length == 0 || end > start + free {
            return;
        }
        self.remove(start);
        if start < offset {
            self.insert(start, offset - start);
        }
        if end < start + free {
            self.insert(end, start + free - end);
        }
    }

    /// Gives an extent back.
    pub(super) fn give(&mut self, extent: Extent) {
        let Extent {
            mut offset,
            mut length,
        } = extent;
        if length == 0 {
            return;
        }
        if let Some((&start, &free)) = self.free.range(..offset).next_back()
            && start + free == offset
        {
            self.remove(start);
            offset = start;
            length += free;
        }
        if let Some(free) = self.remove(offset + length) {
            length += free;
        }
        self.insert(offset, length);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_taken_never_overlaps_and_all_comes_back(steps in proptest::collection::vec((any::<bool>(), 0..40u32), 0..200)) {
            let mut extents = Extents::new(256);
            let mut taken: Vec<Extent> = Vec::new();
            for (take, number) in steps {
                if take {
                    if let Some(extent) = extents.take(number) {
                        for other in &taken {
                            prop_assert!(
                                number == 0 || other.length == 0
                                    || extent.offset >= other.offset + other.length
                                    || other.offset >= extent.offset + extent.length
                            );
                        }
                        prop_assert!(extent.offset + extent.length <= 256);
                        taken.push(extent);
                    }
                } else if !taken.is_empty() {
                    let extent = taken.swap_remove(number as usize % taken.len());
                    extents.give(extent);
                }
            }
            for extent in taken {
                extents.give(extent);
            }
            prop_assert_eq!(extents.take(256), Some(Extent { offset: 0, length: 256 }));
        }
    }

    #[test]
    fn an_extent_found_in_the_maps_is_reserved() {
        let mut extents = Extents::new(10);
        extents.reserve(Extent { offset: 3, length: 4 });
        assert_eq!(extents.take(4), None);
        assert_eq!(extents.take(3), Some(Extent { offset: 0, length: 3 }));
        assert_eq!(extents.take(3), Some(Extent { offset: 7, length: 3 }));
    }
}
