//! The key map: one table in memory over all live segments that takes a key's hash to the pages
//! that may hold the key.
//!
//! Derived from the segments' hash runs, never persisted, and droppable at any moment, shard by
//! shard. A shard that is not resident answers "do not know"; the caller then asks the segments.
//!
//! Invariants:
//! - A resident shard is exactly the multiset {(hash, page)} of all distinct keys of all live
//!   segments in its slice of the hashes. Not "the newest only": which entry is newer is decided at
//!   lookup, by the rank of its segment.
//! - Every page number in a shard resolves in the extent table that is loaded while the shard's
//!   lock is held, and all ranks of one lookup come from that one table. For that, an edit
//!   publishes the new segments, then passes over the shards, then publishes the table without
//!   the removed segments, and only then are their page numbers free to be used again.
//! - An edit reaches each shard in one critical section: a lookup sees all of it or nothing.
//! - Trouble of any kind (a hash run that cannot be read, an entry that is not where it must be,
//!   no room) makes a shard non-resident. It never fails an edit, and it never makes an answer
//!   wrong.
//!
//! Thread safety: lookups run in parallel under a shard's read lock, without I/O. Edits, builds and
//! drops take the committer's lock; a build reads hash runs outside it. Lock order: committer,
//! shard. Segments are called, and may be dropped, under these locks: they must not call back.
//! Called by the database.

mod bucket;
mod candidates;
mod edit;
mod extents;
mod fill;
mod runs;
mod table;

#[cfg(test)]
mod bench_tests;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod thread_tests;

pub(crate) use candidates::Candidates;

use crate::error::Result;
use crate::prefetch::prefetch;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, ArcSwap, Mutex, RwLock};
use crate::types::{KeyspaceId, SegmentId};
use edit::Committer;
use extents::Extents;
use table::{Buckets, Table};

/// Shards: one for each value of a hash's top 8 bits.
pub(crate) const SHARDS: usize = 256;

/// What the map asks of a segment.
pub(crate) trait MapSegment: Send + Sync + 'static {
    /// Its name.
    fn id(&self) -> SegmentId;

    /// The keyspace whose keys it holds.
    fn keyspace(&self) -> KeyspaceId;

    /// Whether the key is between its first and its last key, both included. No I/O.
    fn covers(&self, key: &[u8]) -> bool;

    /// Its data pages; every page that an entry starts on is below.
    fn pages(&self) -> u32;

    /// Its distinct keys.
    fn keys(&self) -> u64;

    /// Opens its hash run.
    ///
    /// # Errors
    ///
    /// If it has none, or it is damaged, or the operating system refuses.
    fn slices(&self) -> Result<Box<dyn Slices>>;

    /// Hears that about so many of its entries have newer versions: when such are flushed, when it
    /// is merged from what had such, and for what was there before, when the map is first filled.
    fn add_garbage(&self, entries: u64);
}

/// An open hash run.
pub(crate) trait Slices {
    /// The entries of one slice, the hashes whose top 8 bits are `slice`: 40-bit hash and page,
    /// rising by hash.
    ///
    /// # Errors
    ///
    /// If the slice is damaged, or the operating system refuses.
    fn slice(&mut self, slice: u8) -> Result<&[(u64, u16)]>;
}

/// How a map is set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapOptions {
    /// Bytes that tables, spill lists and extent table may take together. Shards that do not fit
    /// are not resident. While a shard is rebuilt, one more is held. Zero turns the map off.
    pub(crate) budget_bytes: u64,
    /// The low bits of a hash that tell entries apart, at most 32. For tests: few bits make
    /// collisions of everything.
    pub(crate) fingerprint_bits: u32,
}

#[cfg(test)]
impl MapOptions {
    /// A map of at most so many bytes.
    pub(crate) fn with_budget(budget_bytes: u64) -> Self {
        MapOptions { budget_bytes, fingerprint_bits: 32 }
    }
}

/// A change of the set of live segments. Segments are given with their rank: lower is newer.
pub(crate) struct MapEdit<'a, S> {
    /// Segments that become live.
    pub(crate) added: &'a [(Arc<S>, u64)],
    /// Segments that are live no more.
    pub(crate) removed: &'a [SegmentId],
    /// Live segments that get a new object or rank; what they hold stays the same.
    pub(crate) moved: &'a [(Arc<S>, u64)],
    /// Whether what is added came from a memtable: then it supersedes what was there.
    pub(crate) is_flush: bool,
}

/// What a map holds, takes and did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct MapStats {
    /// Entries in resident shards.
    pub(crate) entries: u64,
    /// Bytes of their tables.
    pub(crate) table_bytes: u64,
    /// Bytes of their spill lists.
    pub(crate) spill_bytes: u64,
    /// Bytes of the extent table.
    pub(crate) extent_bytes: u64,
    /// Resident shards, of 256.
    pub(crate) resident: u32,
    /// Entries per slot, over all resident shards.
    pub(crate) load: f64,
    /// Entries that are not in their home bucket.
    pub(crate) displaced: u64,
    /// Entries in spill lists.
    pub(crate) spilled: u64,
    /// Shards that were resident and were built again, since the start.
    pub(crate) rebuilds: u64,
    /// Shards that were resident and were given up for trouble or lack of room, since the start.
    pub(crate) dropped: u64,
    /// All bytes per entry; zero without entries.
    pub(crate) bytes_per_entry: f64,
}

/// One shard. Alone on its cache lines, because every lookup writes to its lock.
#[repr(align(128))]
struct Shard<T> {
    /// `None`: not resident.
    table: RwLock<Option<T>>,
    /// Whether a lookup missed it.
    wanted: AtomicBool,
    /// Address and number of the table's buckets. Hints: they may be stale.
    address: AtomicUsize,
    buckets: AtomicU32,
}

impl<T> Shard<T> {
    fn new() -> Self {
        Shard {
            table: RwLock::new(None),
            wanted: AtomicBool::new(false),
            address: AtomicUsize::new(0),
            buckets: AtomicU32::new(0),
        }
    }

    /// Says where the table's buckets are now.
    fn hint(&self, (address, buckets): (usize, u32)) {
        self.address.store(address, Ordering::Relaxed);
        self.buckets.store(buckets, Ordering::Relaxed);
    }

    /// Notes that a lookup would have liked it resident. Writes at most once.
    fn want(&self) {
        if !self.wanted.load(Ordering::Relaxed) {
            self.wanted.store(true, Ordering::Relaxed);
        }
    }
}

/// The key map. `T` is the table inside a shard.
pub(crate) struct KeyMap<S: MapSegment, T = Buckets> {
    options: MapOptions,
    shards: Box<[Shard<T>]>,
    extents: ArcSwap<Extents<S>>,
    committer: Mutex<Committer<S>>,
    rebuilds: AtomicU64,
    dropped: AtomicU64,
    /// Whether every shard is resident.
    complete: AtomicBool,
    /// Makes edits delete in one critical section and insert in the next: a mistake for tests to
    /// find.
    #[cfg(test)]
    torn: AtomicBool,
}

impl<S: MapSegment> KeyMap<S> {
    /// A map without segments, all of its shards non-resident.
    pub(crate) fn new(options: MapOptions) -> Self {
        KeyMap::with_tables(options)
    }
}

impl<S: MapSegment, T: Table> KeyMap<S, T> {
    fn with_tables(options: MapOptions) -> Self {
        let committer = Committer::new();
        KeyMap {
            options,
            shards: (0..SHARDS).map(|_| Shard::new()).collect(),
            extents: ArcSwap::from_pointee(committer.extents()),
            committer: Mutex::new(committer),
            rebuilds: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            complete: AtomicBool::new(false),
            #[cfg(test)]
            torn: AtomicBool::new(false),
        }
    }

    /// Where the key may be, newest segment first: every live segment that holds the key is among
    /// them, with the page that the key starts on; others may be too. Segments of other keyspaces
    /// and segments whose keys do not reach so far are left out.
    ///
    /// `None` if the shard is not resident. It is then noted as wanted. No I/O; allocates only for
    /// more than two candidates. `hash` is the whole 64-bit hash of the key.
    pub(crate) fn get(&self, hash: u64, keyspace: KeyspaceId, key: &[u8]) -> Option<Candidates<S>> {
        let shard = &self.shards[shard_of(hash)];
        // Declared before the lock, so dropped after it: the last user of an old extent table
        // frees segments.
        let mut found = Candidates::new();
        let table = shard.table.read();
        let Some(entries) = &*table else {
            drop(table);
            shard.want();
            return None;
        };
        let mut sound = true;
        entries.candidates(h40(hash), |vbn| {
            // Loaded under the lock: see the invariants.
            let extents = found.extents(|| self.extents.load());
            let slot = extents.resolve(vbn).and_then(|(number, page)| {
                extents.slot(number).map(|slot| (number, slot, page)) //
            });
            match slot {
                Some((number, slot, page)) => {
                    if slot.keyspace == keyspace && slot.segment.covers(key) {
                        let rank = slot.rank;
                        found.push(number, rank, page);
                    }
                }
                None => sound = false,
            }
        });
        drop(table);
        found.settle();
        debug_assert!(sound, "a page number without a segment");
        // The segments themselves know better than a map in doubt.
        sound.then_some(found)
    }

    /// Says that [`KeyMap::get`] will soon be asked for this hash. Without effect on any answer.
    ///
    /// A lookup waits for memory once, and its lock keeps the processor from looking
    /// ahead. Hints for a whole batch of keys let the waiting times overlap; one for a single key lets it
    /// overlap with whatever comes before the lookup.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        let shard = &self.shards[shard_of(hash)];
        let buckets = shard.buckets.load(Ordering::Relaxed);
        if buckets > 0 {
            let address = shard.address.load(Ordering::Relaxed);
            prefetch(address.wrapping_add(table::home_offset(h40(hash), buckets)));
        }
    }

    /// What it holds, takes and did. Looks at each shard in turn, so edits may fall in between.
    pub(crate) fn stats(&self) -> MapStats {
        let mut stats = MapStats {
            extent_bytes: self.extents.load().bytes(),
            rebuilds: self.rebuilds.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            ..MapStats::default()
        };
        let mut slots = 0;
        for shard in &self.shards {
            let Some(shape) = shard.table.read().as_ref().map(Table::shape) else { continue };
            stats.resident += 1;
            stats.entries += shape.entries as u64;
            stats.table_bytes += shape.table_bytes;
            stats.spill_bytes += shape.spill_bytes;
            stats.displaced += shape.displaced as u64;
            stats.spilled += shape.spilled as u64;
            slots += shape.slots;
        }
        if stats.entries > 0 {
            let bytes = stats.table_bytes + stats.spill_bytes + stats.extent_bytes;
            stats.load = stats.entries as f64 / slots as f64;
            stats.bytes_per_entry = bytes as f64 / stats.entries as f64;
        }
        stats
    }

    /// Whether segments hear all that newer ones supersede ([`MapSegment::add_garbage`]): if every
    /// shard is resident.
    pub(crate) fn counts_garbage(&self) -> bool {
        self.complete.load(Ordering::Relaxed)
    }

    /// Whether there is no map at all.
    fn is_off(&self) -> bool {
        self.options.budget_bytes == 0
    }
}

/// The part of a hash that hash runs and tables know.
#[inline]
fn h40(hash: u64) -> u64 {
    hash >> 24
}

/// The shard of a hash.
#[inline]
fn shard_of(hash: u64) -> usize {
    (hash >> 56) as usize
}
