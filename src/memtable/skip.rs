//! A memtable of three parts: an arena with the entries, a hash index for point reads, and a
//! `crossbeam_skiplist` for the order.
//!
//! A point read is one probe of the index and a look at the entry; older versions of the key are
//! chained behind the newest one. The skiplist is for cursors. They collect a run of entries
//! (addresses, not bytes) and descend again for the next: nothing borrows from the skiplist, so
//! cursors are owned and `Send`.
//!
//! An insert appends to the arena, then adds to the skiplist, then to the index: whoever finds an
//! entry finds all its bytes. Inserts hold a lock against each other, readers none.

use super::arena::{Arena, ArenaWriter, Entry, NewEntry, Ref, Run, Sorted, Start};
use super::hash_index::HashIndex;
use super::{MemEntry, Memtable};
use crate::cursor::{Cursor, Seek};
use crate::error::Result;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex};
use crate::types::{KeyspaceId, Kind, SeqNo};
use bytes::Bytes;

/// How many entries a cursor fetches at first, and at most, in one descent.
const CHUNK_MIN: usize = 4;
const CHUNK_MAX: usize = 64;

/// See the module's text.
pub(crate) struct SkipMemtable {
    writer: Mutex<ArenaWriter>,
    arena: Arc<Arena>,
    index: HashIndex,
    sorted: Arc<Sorted>,
    entries: AtomicUsize,
}

impl Default for SkipMemtable {
    fn default() -> Self {
        let writer = ArenaWriter::new();
        let arena = Arc::clone(writer.arena());
        SkipMemtable {
            writer: Mutex::new(writer),
            index: HashIndex::default(),
            sorted: Arc::new(Sorted::new(Arc::clone(&arena))),
            arena,
            entries: AtomicUsize::new(0),
        }
    }
}

impl SkipMemtable {
    /// The newest version of a key, and where it lies.
    #[inline]
    fn newest(&self, keyspace: KeyspaceId, key: &[u8], hash: u64) -> Option<(Ref, Entry<'_>)> {
        self.index.find(hash, |at| {
            let entry = self.arena.entry(at)?;
            (entry.key() == key && entry.keyspace() == keyspace).then_some((at, entry))
        })
    }
}

impl Memtable for SkipMemtable {
    fn insert(
        &self,
        keyspace: KeyspaceId,
        key: &[u8],
        hash: u64,
        seqno: SeqNo,
        kind: Kind,
        value: &[u8],
    ) {
        let mut writer = self.writer.lock();
        let prev = self.newest(keyspace, key, hash);
        debug_assert!(
            prev.is_none_or(|(_, newest)| newest.seqno() < seqno),
            "the versions of a key come in order"
        );
        let prev = prev.map(|(at, _)| at);
        let at = writer.append(NewEntry { keyspace, key, seqno, kind, prev, value });
        self.sorted.insert(at);
        self.index.put(hash, prev, at);
        self.entries.fetch_add(1, Ordering::Relaxed);
    }

    fn get(
        &self,
        keyspace: KeyspaceId,
        key: &[u8],
        hash: u64,
        snapshot: SeqNo,
    ) -> Option<MemEntry> {
        let (mut at, mut entry) = self.newest(keyspace, key, hash)?;
        while entry.seqno() > snapshot {
            at = entry.prev()?;
            entry = self.arena.entry(at)?;
        }
        let (seqno, kind) = (entry.seqno(), entry.kind());
        Some(MemEntry { seqno, kind, value: self.arena.value(at) })
    }

    fn cursor(self: Arc<Self>, keyspace: KeyspaceId) -> Box<dyn Cursor> {
        Box::new(SkipCursor {
            run: Run::new(Arc::clone(&self.sorted), keyspace),
            at: 0,
            forward: true,
            want: CHUNK_MIN,
        })
    }

    fn allocated_bytes(&self) -> usize {
        self.arena.allocated_bytes() + self.index.allocated_bytes() + self.sorted.allocated_bytes()
    }

    fn entries(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    fn keyspaces(&self) -> Vec<KeyspaceId> {
        let mut found = Vec::new();
        let mut from = Some(KeyspaceId(0));
        while let Some(keyspace) = from.and_then(|from| self.sorted.keyspace_from(from)) {
            found.push(keyspace);
            from = keyspace.0.checked_add(1).map(KeyspaceId);
        }
        found
    }
}

/// A cursor over one keyspace of a memtable.
struct SkipCursor {
    run: Run,
    /// The current entry in the run, or past its end for none.
    at: usize,
    /// The direction in which the run was collected.
    forward: bool,
    /// How many entries the next descent fetches: few at first, since most seeks are for a few.
    want: usize,
}

impl SkipCursor {
    /// The number of entries to fetch now; the next time it is more.
    fn more(&mut self) -> usize {
        let want = self.want;
        self.want = (want * 2).min(CHUNK_MAX);
        want
    }

    fn step(&mut self, forward: bool) {
        if !self.valid() {
            return;
        }
        if self.forward == forward && self.at + 1 < self.run.len() {
            self.at += 1;
            return;
        }
        let want = self.more();
        self.run.refill(self.at, forward, want);
        self.at = 0;
        self.forward = forward;
    }
}

impl Cursor for SkipCursor {
    fn seek(&mut self, to: Seek<'_>) -> Result<()> {
        let (start, forward) = match to {
            Seek::First => (Start::Before(b""), true),
            Seek::AtOrAfter(key) => (Start::Before(key), true),
            Seek::After(key) => (Start::Behind(key), true),
            Seek::Last => (Start::End, false),
            Seek::AtOrBefore(key) => (Start::Behind(key), false),
            Seek::Before(key) => (Start::Before(key), false),
        };
        self.want = CHUNK_MIN;
        let want = self.more();
        self.run.fill(start, forward, want);
        self.at = 0;
        self.forward = forward;
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        self.step(true);
        Ok(())
    }

    fn prev(&mut self) -> Result<()> {
        self.step(false);
        Ok(())
    }

    fn valid(&self) -> bool {
        self.at < self.run.len()
    }

    fn key(&self) -> &[u8] {
        self.run.get(self.at).map_or(&[], |entry| entry.key())
    }

    fn seqno(&self) -> SeqNo {
        self.run.get(self.at).map_or(SeqNo::ZERO, |entry| entry.seqno())
    }

    fn kind(&self) -> Kind {
        self.run.get(self.at).map_or(Kind::Delete, |entry| entry.kind())
    }

    fn key_bytes(&self) -> Bytes {
        self.run.key_bytes(self.at)
    }

    fn value(&self) -> Bytes {
        self.run.value(self.at)
    }

    fn value_ref(&self) -> &[u8] {
        self.run.get(self.at).map_or(&[], |entry| entry.value())
    }

    fn is_newest(&self) -> bool {
        // The neighbour on the side of the newer versions, if it was collected.
        let neighbour = if self.forward { self.at.checked_sub(1) } else { Some(self.at + 1) };
        let neighbour = neighbour.and_then(|at| self.run.get(at));
        neighbour.is_some_and(|neighbour| neighbour.key() != self.key())
    }

    fn skip_newer(&mut self, key: &[u8], snapshot: SeqNo) -> Result<()> {
        for _ in 0..CHUNK_MIN {
            if !self.valid() || self.seqno() <= snapshot || self.key() != key {
                return Ok(());
            }
            self.step(true);
        }
        if self.valid() && self.seqno() > snapshot && self.key() == key {
            self.run.fill(Start::At(key, snapshot), true, CHUNK_MIN);
            (self.at, self.forward) = (0, true);
        }
        Ok(())
    }
}
