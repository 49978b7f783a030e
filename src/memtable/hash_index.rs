//! From the hash of a key to its newest entry: an open-addressing table of single words.
//!
//! A slot is one word: 24 bits of the hash (the tag) over the 40 bits of a [`Ref`]; zero is free. The
//! place of a slot is the tag's top bits, then upwards, so that a table doubles without reading a
//! key. The hash's top six bits choose one of 64 tables that grow by themselves: no insert waits
//! for more than a sixty-fourth of the index to be copied.
//!
//! Invariants: one thread at a time calls [`HashIndex::put`]; any number call [`HashIndex::find`]
//! meanwhile and never wait. A slot, once taken, keeps its tag and its place in its table; a table
//! keeps at least three tenths of its slots free. A put ends with one store (Release) into the
//! table in use; a table is filled before it comes into use, and one that went out of use stays as
//! it was until the last reader let go of it. So a find that begins after a put returned sees it.
//! What a slot says is a hint about bytes that somebody else keeps: the caller checks them.

use super::arena::{REF_BITS, Ref};
use crate::prefetch::prefetch;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, ArcSwap};

/// Fewer and smaller tables keep models small.
const IS_MODEL: bool = cfg!(all(test, loom));

const SHARD_BITS: u32 = if IS_MODEL { 1 } else { 6 };
const TAG_BITS: u32 = u64::BITS - REF_BITS;

/// Each table begins with so many slots, as a power of two.
const FIRST_BITS: u32 = if IS_MODEL { 1 } else { 3 };

/// See the module's text.
pub(super) struct HashIndex {
    shards: Box<[ArcSwap<Table>]>,
    allocated: AtomicUsize,
}

/// The slots of one shard.
struct Table {
    slots: Box<[AtomicU64]>,
    bits: u32,
    /// How many are taken.
    taken: AtomicUsize,
}

/// The bits of a hash that a slot keeps: those behind the shard's.
fn tag(hash: u64) -> u64 {
    (hash << SHARD_BITS) >> REF_BITS
}

impl Table {
    fn new(bits: u32) -> Self {
        let slots = (0..1usize << bits).map(|_| AtomicU64::new(0)).collect();
        Table { slots, bits, taken: AtomicUsize::new(0) }
    }

    fn bytes(&self) -> usize {
        size_of_val(&*self.slots) + size_of::<Self>() + size_of::<[usize; 4]>()
    }

    #[inline]
    fn home(&self, tag: u64) -> usize {
        (tag >> (TAG_BITS - self.bits)) as usize
    }

    /// The slots in which a tag may be, in the order in which they are to be tried.
    #[inline]
    fn probe(&self, tag: u64) -> impl Iterator<Item = &AtomicU64> {
        let (front, back) = self.slots.split_at(self.home(tag).min(self.slots.len()));
        back.iter().chain(front)
    }

    /// Puts a word whose key is not in the table into a free slot, of which there are some.
    fn add(&self, word: u64) {
        let free = self.probe(word >> REF_BITS).find(|slot| slot.load(Ordering::Relaxed) == 0);
        let slot = free.expect("a table that is filled has free slots");
        slot.store(word, Ordering::Release);
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    fn is_full(&self) -> bool {
        (self.taken.load(Ordering::Relaxed) + 1) * 10 > self.slots.len() * 7
    }

    /// The same in twice the slots.
    fn doubled(&self) -> Self {
        let next = Table::new(self.bits + 1);
        for slot in &self.slots {
            let word = slot.load(Ordering::Relaxed);
            if word != 0 {
                next.add(word);
            }
        }
        next
    }
}

impl Default for HashIndex {
    fn default() -> Self {
        let table = || Arc::new(Table::new(FIRST_BITS));
        let shards: Box<[ArcSwap<Table>]> =
            (0..1 << SHARD_BITS).map(|_| ArcSwap::new(table())).collect();
        let tables: usize = shards.iter().map(|shard| shard.load().bytes()).sum();
        let allocated = AtomicUsize::new(tables + size_of_val(&*shards));
        HashIndex { shards, allocated }
    }
}

impl HashIndex {
    fn shard(&self, hash: u64) -> &ArcSwap<Table> {
        &self.shards[(hash >> (u64::BITS - SHARD_BITS)) as usize]
    }

    /// What `take` makes of the first entry that it takes, among those put under this hash or one
    /// with the same tag.
    #[inline]
    pub(super) fn find<T>(&self, hash: u64, take: impl Fn(Ref) -> Option<T>) -> Option<T> {
        let table = self.shard(hash).load();
        let tag = tag(hash);
        for slot in table.probe(tag) {
            let word = slot.load(Ordering::Acquire);
            if word == 0 {
                return None;
            }
            if word >> REF_BITS == tag {
                let at = Ref::from_bits(word & ((1 << REF_BITS) - 1));
                if let Some(taken) = at.and_then(&take) {
                    return Some(taken);
                }
            }
        }
        None
    }

    /// Puts what `make` gives under this hash, in the place of the entry that `is_older` takes, if
    /// there is one, which `make` is told.
    pub(super) fn put(
        &self,
        hash: u64,
        is_older: impl Fn(Ref) -> bool,
        make: impl FnOnce(Option<Ref>) -> Ref,
    ) {
        let shard = self.shard(hash);
        let table = shard.load();
        let tag = tag(hash);
        let word = |at: Ref| tag << REF_BITS | at.to_bits();
        for slot in table.probe(tag) {
            let found = slot.load(Ordering::Relaxed);
            if found == 0 {
                if table.is_full() && table.bits < TAG_BITS {
                    break;
                }
                slot.store(word(make(None)), Ordering::Release);
                table.taken.fetch_add(1, Ordering::Relaxed);
                return;
            }
            if found >> REF_BITS == tag
                && let Some(older) = Ref::from_bits(found & ((1 << REF_BITS) - 1))
                && is_older(older)
            {
                slot.store(word(make(Some(older))), Ordering::Release);
                return;
            }
        }
        assert!(
            table.bits < TAG_BITS,
            "a memtable holds at most 2^24 keys for each part of its index"
        );
        let next = table.doubled();
        next.add(word(make(None)));
        self.allocated.fetch_add(next.bytes() - table.bytes(), Ordering::Relaxed);
        shard.store(Arc::new(next));
    }

    /// Asks for the memory that a find or a put under this hash will look at.
    pub(super) fn prefetch(&self, hash: u64) {
        let table = self.shard(hash).load();
        if let Some(slot) = table.slots.get(table.home(tag(hash))) {
            prefetch(std::ptr::from_ref(slot).addr());
        }
    }

    /// The memory of the tables in use, in bytes.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
