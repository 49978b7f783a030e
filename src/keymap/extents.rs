//! What a page number of the map means: the extent table.
//!
//! A page number (`vbn`) is an extent of 256 pages and a page in it. Each live segment has as many
//! extents as its pages need, in any order. Extent 0 is never handed out, so page number 0 can mean
//! "empty". [`Extents`] is the table that readers resolve with: immutable once published.
//! [`Allocator`] hands extents out, lowest first, so that page numbers stay narrow.
//!
//! Invariants: an extent belongs to one segment at a time and is handed out again only after the
//! table without its segment was published. Called by the rest of `keymap`. The table may be shared
//! between threads; the allocator belongs to the committer.

use super::MapSegment;
use super::table::MAX_WIDTH;
use crate::sync::Arc;
use crate::types::KeyspaceId;
use std::collections::BTreeSet;

/// Pages in an extent.
const EXTENT: u32 = 256;

/// Extents there may be.
const MAX_EXTENTS: u32 = 1 << (MAX_WIDTH - EXTENT.trailing_zeros());

/// Pages that an entry can start on: the numbers are 16 bits wide.
const MAX_PAGES: u32 = 1 << 16;

/// An extent that no segment has.
const FREE: u32 = u32::MAX;

/// A live segment as readers see it.
#[derive(Debug)]
pub(super) struct Slot<S> {
    pub(super) segment: Arc<S>,
    pub(super) keyspace: KeyspaceId,
    /// Lower is newer.
    pub(super) rank: u64,
}

/// The page numbers of all live segments.
#[derive(Debug)]
pub(super) struct Extents<S> {
    /// Slot and extent index within the segment (8 bits) by extent.
    extents: Vec<u32>,
    slots: Vec<Slot<S>>,
}

impl<S: MapSegment> Extents<S> {
    /// The table of these segments: object, rank, extents in the order of pages.
    pub(super) fn new<'a>(
        segments: impl Iterator<Item = (&'a Arc<S>, u64, &'a [u32])>,
        size: u32,
    ) -> Extents<S> {
        let mut table = Extents { extents: vec![FREE; size as usize], slots: Vec::new() };
        for (segment, rank, extents) in segments {
            let slot = table.slots.len() as u32;
            for (index, extent) in extents.iter().enumerate() {
                if let Some(entry) = table.extents.get_mut(*extent as usize) {
                    *entry = slot << 8 | index as u32;
                }
            }
            let (segment, keyspace) = (Arc::clone(segment), segment.keyspace());
            table.slots.push(Slot { segment, keyspace, rank });
        }
        table
    }

    /// The slot and the page in its segment. `None` if no live segment has this number.
    #[inline]
    pub(super) fn resolve(&self, vbn: u32) -> Option<(u32, u32)> {
        let entry = *self.extents.get((vbn / EXTENT) as usize)?;
        (entry != FREE).then_some((entry >> 8, (entry & 0xff) * EXTENT + vbn % EXTENT))
    }

    /// A slot that [`Extents::resolve`] gave.
    #[inline]
    pub(super) fn slot(&self, slot: u32) -> Option<&Slot<S>> {
        self.slots.get(slot as usize)
    }

    /// Slots there are.
    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The bytes it takes, segments not counted.
    pub(super) fn bytes(&self) -> u64 {
        (self.extents.len() * size_of::<u32>() + self.slots.len() * size_of::<Slot<S>>()) as u64
    }
}

/// The page number of a page of the segment that has these extents, in the order of pages.
#[inline]
pub(super) fn vbn(extents: &[u32], page: u16) -> Option<u32> {
    let extent = extents.get((u32::from(page) / EXTENT) as usize)?;
    Some(extent * EXTENT + u32::from(page) % EXTENT)
}

/// Hands out extents.
#[derive(Debug)]
pub(super) struct Allocator {
    free: BTreeSet<u32>,
    /// The lowest extent such that none from it on is in use.
    end: u32,
}

impl Allocator {
    pub(super) fn new() -> Self {
        Allocator { free: BTreeSet::new(), end: 1 }
    }

    /// Extents for so many pages. `None` if there are not enough left; then none was taken.
    pub(super) fn allocate(&mut self, pages: u32) -> Option<Arc<[u32]>> {
        let wanted = pages.min(MAX_PAGES).div_ceil(EXTENT) as usize;
        let fresh = wanted.saturating_sub(self.free.len()) as u32;
        if fresh > MAX_EXTENTS - self.end {
            return None;
        }
        let mut taken = Vec::with_capacity(wanted);
        while taken.len() < wanted {
            let extent = self.free.pop_first().unwrap_or_else(|| {
                self.end += 1;
                self.end - 1
            });
            taken.push(extent);
        }
        Some(taken.into())
    }

    /// Takes extents back.
    pub(super) fn free(&mut self, extents: &[u32]) {
        self.free.extend(extents);
        // Free extents at the end are forgotten, so that the table shrinks.
        while self.free.last().is_some_and(|last| *last + 1 == self.end) {
            self.free.pop_last();
            self.end -= 1;
        }
    }

    /// The length of the extent table.
    pub(super) fn end(&self) -> u32 {
        self.end
    }

    /// The highest page number that may be in use.
    pub(super) fn top_vbn(&self) -> u32 {
        (self.end * EXTENT - 1).min((1 << MAX_WIDTH) - 1)
    }
}
