//! The loaded parts of a segment's block index, found without a search in the cache.
//!
//! The cache (or, of a reader that stands alone, its metadata) owns the parts, under its budget; here
//! are weak handles on them, which a reader follows at each seek. One whose part was evicted leads
//! nowhere, and the part is loaded through the cache again. Any number of threads. Called by the reader.

use super::index::{IndexPartition, IndexRoot};
use crate::sync::{Arc, ArcSwapOption, OnceLock, Weak};

/// See the module's text.
#[derive(Default)]
pub(super) struct IndexSlots {
    root: OnceLock<Slot<IndexRoot>>,
    partitions: OnceLock<Box<[Slot<IndexPartition>]>>,
}

struct Slot<T>(ArcSwapOption<Weak<T>>);

impl<T> Slot<T> {
    fn empty() -> Self {
        Slot(ArcSwapOption::empty())
    }

    fn get(&self) -> Option<Arc<T>> {
        self.0.load().as_ref()?.upgrade()
    }

    fn put(&self, part: &Arc<T>) {
        self.0.swap(Some(Arc::new(Arc::downgrade(part))));
    }
}

impl IndexSlots {
    /// The root, if it is in memory.
    #[inline]
    pub(super) fn root(&self) -> Option<Arc<IndexRoot>> {
        self.root.get()?.get()
    }

    /// Remembers the root.
    pub(super) fn put_root(&self, root: &Arc<IndexRoot>) {
        self.root.get_or_init(Slot::empty).put(root);
    }

    /// A partition, if it is in memory.
    #[inline]
    pub(super) fn partition(&self, number: usize) -> Option<Arc<IndexPartition>> {
        self.partitions.get()?.get(number)?.get()
    }

    /// Remembers a partition, of so many in all.
    pub(super) fn put_partition(&self, number: usize, of: usize, part: &Arc<IndexPartition>) {
        let slots = self.partitions.get_or_init(|| (0..of).map(|_| Slot::empty()).collect());
        if let Some(slot) = slots.get(number) {
            slot.put(part);
        }
    }
}
