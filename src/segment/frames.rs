//! The cached data blocks of one segment, by the page on which they begin.
//!
//! A lookup is two loads of pointers and no hash table, and counts no reference: what it looks at is
//! kept by a guard (`arc_swap`, hazard-pointer style). Pointers stand in chunks that are made when a
//! block comes, and given up when they are empty and all chunks together take much of the cache: so a
//! cache much smaller than the store wastes little on empty places. Which blocks are there is marked
//! in a few bits besides, which stay in the processor's caches: so one that is not there costs no
//! load from memory.
//!
//! Once the cache is full a block must be met twice in an era of the cache's to get in
//! ([`wants`](Frames::wants)): what is read once leaves what is read often where it is, and costs no
//! more than the reading.
//!
//! Invariants: the cache is told of each block that comes and goes, once, with the bytes it takes, and
//! of its coming first; a block that is evicted lives on while someone looks at it. Any number of threads read and insert;
//! what one removes another may be about to use, which costs a second load and nothing else.
//! Called by the reader; evicted from by the cache.

use super::{Block, BlockCache};
use crate::prefetch::prefetch;
use crate::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, ArcSwapOption};
use crate::types::PAGE;

/// Pages of a chunk.
const CHUNK: usize = if cfg!(all(test, loom)) { 2 } else { 32 };

/// See the module's text.
pub(crate) struct Frames {
    cache: Arc<dyn BlockCache>,
    chunks: Box<[ArcSwapOption<Chunk>]>,
    /// For the pages of each chunk.
    marks: Box<[Marks]>,
}

/// A bit for each page of a chunk, whether that is there or not.
struct Marks {
    /// Blocks that may be there. Every block that is there is marked, but for the moment in which it comes.
    there: AtomicU32,
    /// Blocks that were looked at since the cache last asked.
    touched: AtomicU32,
    /// An era, and below it a bit for each block that was met in it and not kept. A hint: what two
    /// threads note at once may be lost.
    met: AtomicU64,
}

struct Chunk {
    cache: Arc<dyn BlockCache>,
    held: AtomicU32,
    slots: [Slot; CHUNK],
}

struct Slot {
    block: ArcSwapOption<Block>,
    /// Where a lookup in the block will look first: a hint, so that this memory comes while the
    /// block's own record does.
    hot: AtomicUsize,
}

impl Chunk {
    fn new(cache: &Arc<dyn BlockCache>) -> Self {
        cache.grow(size_of::<Chunk>() as u64);
        Chunk {
            cache: Arc::clone(cache),
            held: AtomicU32::new(0),
            slots: std::array::from_fn(|_| Slot {
                block: ArcSwapOption::empty(),
                hot: AtomicUsize::new(0),
            }),
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.cache.shrink(size_of::<Chunk>() as u64);
        for block in self.slots.iter().filter_map(|slot| slot.block.swap(None)) {
            self.cache.release(cost(&block));
        }
    }
}

/// Where a page's block stands, if it is here.
struct Place<'a> {
    chunk: &'a ArcSwapOption<Chunk>,
    marks: &'a Marks,
    at: usize,
}

impl Place<'_> {
    fn bit(&self) -> u32 {
        1 << self.at
    }

    /// Whether the block may be here.
    #[inline]
    fn is_marked(&self) -> bool {
        self.marks.there.load(Ordering::Relaxed) & self.bit() != 0
    }
}

/// What a cached block takes, in bytes.
fn cost(block: &Block) -> u64 {
    block.bytes() as u64
}

impl Frames {
    /// Room for the blocks of a segment with so many data pages. Takes three quarters of a byte
    /// a page.
    pub(super) fn new(cache: Arc<dyn BlockCache>, pages: u64) -> Arc<Frames> {
        let chunks = pages.div_ceil(CHUNK as u64);
        let marks = |_| Marks {
            there: AtomicU32::new(0),
            touched: AtomicU32::new(0),
            met: AtomicU64::new(0),
        };
        let marks = (0..chunks).map(marks).collect();
        let chunks = (0..chunks).map(|_| ArcSwapOption::empty()).collect();
        Arc::new(Frames { cache, chunks, marks })
    }

    /// Whether the block that begins at a page, and is not here, should be kept once it is read. If
    /// not, it is noted that it was met.
    pub(super) fn wants(&self, page: u64) -> bool {
        let Some(era) = self.cache.era() else { return true };
        let Some(Place { marks: Marks { met, .. }, .. }) = self.place(page) else { return false };
        let (before, bit) = (met.load(Ordering::Relaxed), 1 << (page % CHUNK as u64));
        let era = u64::from(era) << 32;
        let bits = if before & !0xffff_ffff == era { before } else { era };
        if bits & bit == 0 {
            met.store(bits | bit, Ordering::Relaxed);
        }
        bits & bit != 0
    }

    /// Says how many blocks that were looked up were here, and how many were not.
    pub(super) fn count(&self, hits: u64, misses: u64) {
        self.cache.count(hits, misses);
    }

    #[inline]
    fn place(&self, page: u64) -> Option<Place<'_>> {
        let chunk = usize::try_from(page / CHUNK as u64).ok()?;
        let at = (page % CHUNK as u64) as usize;
        Some(Place { chunk: self.chunks.get(chunk)?, marks: self.marks.get(chunk)?, at })
    }

    /// Asks for the memory that [`with`](Self::with) reads for this page.
    #[inline]
    pub(super) fn approach(&self, page: u64) {
        if let Some(place) = self.place(page)
            && place.is_marked()
            && let Some(chunk) = place.chunk.load().as_ref()
            && let Some(slot) = chunk.slots.get(place.at)
        {
            prefetch(std::ptr::from_ref(slot).addr());
        }
    }

    /// Asks for what a look at this page's block reads first, if it is here.
    #[inline]
    pub(super) fn foresee(&self, page: u64) {
        if let Some(place) = self.place(page)
            && place.is_marked()
            && let Some(chunk) = place.chunk.load().as_ref()
            && let Some(slot) = chunk.slots.get(place.at)
            && let Some(block) = slot.block.load().as_ref()
        {
            prefetch(Arc::as_ptr(block).addr());
            let hot = slot.hot.load(Ordering::Relaxed);
            prefetch(hot);
            prefetch(hot.wrapping_sub(64));
        }
    }

    /// Asks for what a search in this page's block reads first, if it is here. Where that is follows
    /// from nothing but the hint, if the block is one page and its entries are of about one length; so it need not
    /// wait for anything of the block.
    #[inline]
    pub(super) fn foresee_search(&self, page: u64) {
        if let Some(place) = self.place(page)
            && place.is_marked()
            && let Some(chunk) = place.chunk.load().as_ref()
            && let Some(slot) = chunk.slots.get(place.at)
            && let Some(block) = slot.block.load().as_ref()
        {
            prefetch(Arc::as_ptr(block).addr());
            let hot = slot.hot.load(Ordering::Relaxed);
            prefetch(hot);
            prefetch(hot.wrapping_sub(64));
            let entries = hot % PAGE;
            for eighth in [4, 2, 6, 1, 3, 5, 7] {
                prefetch(hot - entries + entries * eighth / 8);
            }
        }
    }

    /// Looks at the block that begins at a page, if it is here. [`count`](Self::count) is for the
    /// caller.
    #[inline]
    pub(super) fn with<T>(&self, page: u64, look: impl FnOnce(&Arc<Block>) -> T) -> Option<T> {
        let place = self.place(page)?;
        if !place.is_marked() {
            return None;
        }
        let chunk = place.chunk.load();
        let slot = chunk.as_ref()?.slots.get(place.at)?;
        let hot = slot.hot.load(Ordering::Relaxed);
        prefetch(hot);
        // The offsets, which stand before the hash bytes.
        prefetch(hot.wrapping_sub(64));
        let block = slot.block.load();
        let block = block.as_ref()?;
        // Written once, then only read, until the cache asks.
        let touched = &place.marks.touched;
        if touched.load(Ordering::Relaxed) & place.bit() == 0 {
            touched.fetch_or(place.bit(), Ordering::Relaxed);
        }
        Some(look(block))
    }

    /// Keeps a block, if the cache has room for it in the end.
    pub(super) fn insert(self: &Arc<Self>, page: u64, block: &Arc<Block>) {
        let Some(place) = self.place(page) else { return };
        let chunk = match place.chunk.load_full() {
            Some(chunk) => chunk,
            None => {
                let fresh = Arc::new(Chunk::new(&self.cache));
                let none: Option<Arc<Chunk>> = None;
                let before = place.chunk.compare_and_swap(&none, Some(Arc::clone(&fresh)));
                before.as_ref().map_or(fresh, Arc::clone)
            }
        };
        let Some(slot) = chunk.slots.get(place.at) else { return };
        slot.hot.store(block.hot_address(), Ordering::Relaxed);
        // Before anyone can take it away again, and the chunk with it: no release comes first.
        self.cache.charge(cost(block));
        let none: Option<Arc<Block>> = None;
        let came = slot.block.compare_and_swap(&none, Some(Arc::clone(block))).is_none();
        // Behind the block, and also behind another's: so whoever takes the mark away takes a block
        // that came before it.
        place.marks.there.fetch_or(place.bit(), Ordering::AcqRel);
        if came {
            chunk.held.fetch_add(1, Ordering::Relaxed);
            drop(chunk);
            self.cache.admit(self, page);
        } else {
            self.cache.release(cost(block));
        }
    }

    /// Asks for a block to go. It stays, once, if it was looked at since the last time: then `false`.
    pub(crate) fn evict(&self, page: u64) -> bool {
        let Some(place) = self.place(page) else { return true };
        let Some(chunk) = place.chunk.load_full() else { return true };
        let Some(slot) = chunk.slots.get(place.at) else { return true };
        let bit = place.bit();
        if place.marks.touched.fetch_and(!bit, Ordering::Relaxed) & bit != 0
            && slot.block.load().is_some()
        {
            return false;
        }
        // In front of the block: a mark for nothing costs a lookup, a block without one is lost.
        place.marks.there.fetch_and(!bit, Ordering::AcqRel);
        if let Some(block) = slot.block.swap(None) {
            self.cache.release(cost(&block));
            // Making a chunk and dropping it takes longer than reading a page.
            if chunk.held.fetch_sub(1, Ordering::Relaxed) == 1 && self.cache.is_crowded() {
                // A block that comes in between is lost to the cache, and released with the chunk.
                place.chunk.compare_and_swap(&Some(chunk), None);
            }
        }
        true
    }

    /// The pages whose blocks are here.
    #[cfg(test)]
    pub(crate) fn pages(&self) -> Vec<u64> {
        let holds = |page: &u64| {
            let Place { chunk, at, .. } = self.place(*page).unwrap();
            chunk.load().as_ref().is_some_and(|chunk| chunk.slots[at].block.load().is_some())
        };
        (0..(self.chunks.len() * CHUNK) as u64).filter(holds).collect()
    }
}

#[cfg(all(test, loom))]
#[path = "frames_loom_tests.rs"]
mod loom_tests;
