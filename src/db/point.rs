//! Point reads: the memtables, then one block of one segment.
//!
//! A read loads the read state first and the published sequence number second, asks the memtables
//! of that state, newest first, then the key map for the few places that may hold the key, newest
//! first, and reads a block there until the key turns up. Where the map has nothing resident, each
//! sorted run of the state's version is asked instead.
//!
//! The map is ahead of the state: an edit reaches every shard before readers get the state that
//! knows of it. Hence three rules.
//! - A read without a registered snapshot takes the newest version that it meets in a segment. A
//!   compaction that the state does not know yet may have dropped anything older.
//! - A version that looks cleared is looked up again if the state has changed meanwhile: once a clear
//!   is forgotten, versions newer than it may lose their numbers.
//! - An error at a candidate is the answer. Older data never stands in for what cannot be read.
//!
//! Readers take one lock, the shard's, shared and briefly; never while they read a block.

use super::read::ReadFrom;
use super::{Inner, ReadState};
use crate::error::Result;
use crate::hash::key_hash;
use crate::iter::View;
use crate::slice::Value;
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::types::{Kind, MAX_KEY_LEN, SeqNo};
use crate::version::Tree;
use bytes::Bytes;

/// How many keys of a `multi_get` have their places in the map fetched ahead.
const AHEAD: usize = 64;

/// What point reads did, as of one moment, counted since the database was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadStats {
    /// Point reads, one for each key of a `multi_get`.
    pub gets: u64,
    /// Those that a memtable answered.
    pub memtable_hits: u64,
    /// Those that no memtable answered and for which the key map had nothing resident.
    pub unmapped: u64,
    /// Places that the key map named.
    pub candidates: u64,
    /// Blocks read through the key map.
    pub blocks: u64,
    /// Blocks of these that were in the cache.
    pub cached_blocks: u64,
    /// Blocks of these that did not hold the key.
    pub wasted_blocks: u64,
}

impl ReadStats {
    pub(super) fn from_sums(sums: [u64; 7]) -> ReadStats {
        let [gets, memtable_hits, unmapped, candidates, blocks, cached_blocks, wasted_blocks] =
            sums;
        ReadStats {
            gets,
            memtable_hits,
            unmapped,
            candidates,
            blocks,
            cached_blocks,
            wasted_blocks,
        }
    }

    fn amounts(&self) -> [u64; 7] {
        [
            self.gets,
            self.memtable_hits,
            self.unmapped,
            self.candidates,
            self.blocks,
            self.cached_blocks,
            self.wasted_blocks,
        ]
    }

    /// What came after an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &ReadStats) -> ReadStats {
        let (now, then) = (self.amounts(), earlier.amounts());
        ReadStats::from_sums(std::array::from_fn(|i| now[i].saturating_sub(then[i])))
    }

    /// Blocks read for each get that no memtable answered and the key map served, or 0 before any.
    #[must_use]
    pub fn blocks_per_get(&self) -> f64 {
        let mapped = self.gets.saturating_sub(self.memtable_hits + self.unmapped);
        if mapped == 0 { 0.0 } else { self.blocks as f64 / mapped as f64 }
    }
}

/// A snapshot for the time of one call.
struct Registered<'a>(&'a Inner, SeqNo);

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.0.release_snapshot(self.1);
    }
}

/// What is looked up.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    key: &'a [u8],
    hash: u64,
    /// A registered snapshot; none for now.
    registered: Option<SeqNo>,
}

type Version = (SeqNo, Kind, Bytes);

impl ReadFrom<'_> {
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        self.check()?;
        let hash = key_hash(key, self.core.hash_seed);
        self.point(Wanted { key, hash, registered: self.snapshot })
    }

    pub(super) fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Value>>> {
        self.check()?;
        // Registered, so that no compaction takes half of a batch away between two keys.
        let registered = match self.snapshot {
            Some(_) => None,
            None => Some(Registered(self.inner, self.inner.register_snapshot())),
        };
        let snapshot = self.snapshot.or(registered.as_ref().map(|r| r.1));
        let mut values = Vec::with_capacity(keys.len());
        let mut hashes = [0; AHEAD];
        for chunk in keys.chunks(AHEAD) {
            for (key, hash) in chunk.iter().zip(&mut hashes) {
                *hash = key_hash(key.as_ref(), self.core.hash_seed);
                self.inner.keymap.prefetch(*hash);
            }
            for (key, hash) in chunk.iter().zip(&hashes) {
                let wanted = Wanted { key: key.as_ref(), hash: *hash, registered: snapshot };
                values.push(self.point(wanted)?);
            }
        }
        Ok(values)
    }

    fn point(&self, wanted: Wanted<'_>) -> Result<Option<Value>> {
        if wanted.key.len() > MAX_KEY_LEN {
            // No such key can have been written.
            return Ok(None);
        }
        self.inner.keymap.prefetch(wanted.hash);
        let mut tally = ReadStats { gets: 1, ..ReadStats::default() };
        let outcome = loop {
            let state = self.inner.state.load();
            let tree = self.tree(&state)?;
            // The number only now: see the module's text.
            let visible = || SeqNo(self.inner.visible.load(Ordering::Acquire));
            let snapshot = wanted.registered.unwrap_or_else(visible);
            let view = View { snapshot, floor: tree.floor(snapshot) };
            match self.newest(&state, tree, view, wanted, &mut tally) {
                Ok(Some((seqno, _, _)))
                    if view.is_cleared(seqno) && !Arc::ptr_eq(&state, &self.inner.state.load()) => {
                }
                Ok(found) => {
                    break Ok(found.and_then(|(seqno, kind, value)| {
                        let gone = kind == Kind::Delete || view.is_cleared(seqno);
                        (!gone).then_some(Value(value))
                    }));
                }
                Err(error) => break Err(error),
            }
        };
        self.inner.reads.add(tally.amounts());
        outcome
    }

    /// The newest version that the read may see, tombstones and cleared ones included.
    fn newest(
        &self,
        state: &ReadState,
        tree: &Tree,
        view: View,
        wanted: Wanted<'_>,
        tally: &mut ReadStats,
    ) -> Result<Option<Version>> {
        let Wanted { key, hash, registered } = wanted;
        for slot in state.memtables() {
            if let Some(found) = slot.table.get(self.core.id, key, hash, view.snapshot) {
                tally.memtable_hits += 1;
                return Ok(Some((found.seqno, found.kind, found.value)));
            }
        }
        let Some(candidates) = self.inner.keymap.get(hash, self.core.id, key) else {
            tally.unmapped += 1;
            let found = tree.get(key, hash, view.snapshot)?;
            return Ok(found.map(|found| (found.seqno, found.kind, found.value)));
        };
        let limit = registered.unwrap_or(SeqNo::MAX);
        for (segment, page) in candidates {
            let looked = segment.reader().get_at_page(page, key, hash, limit)?;
            tally.candidates += 1;
            tally.blocks += u64::from(looked.blocks);
            tally.cached_blocks += u64::from(looked.cached);
            if let Some(found) = looked.found {
                return Ok(Some((found.seqno, found.kind, found.value)));
            }
            tally.wasted_blocks += u64::from(!looked.key_there);
        }
        Ok(None)
    }
}
