//! A memtable of three parts: an arena with the entries, a hash index for point reads, and leaves
//! under a `crossbeam_skiplist` for the order of the keys.
//!
//! A point read is one probe of the index and a look at the entry; older versions of the key are
//! chained behind the newest one. The leaves are for cursors. They copy the part that they need of a
//! leaf (places, not bytes), and search again for the next: nothing borrows from the skiplist, so
//! cursors are owned and `Send`.
//!
//! An insert appends to the arena, then puts the key into its leaf, then into the index: whoever
//! finds an entry finds all its bytes. Inserts hold a lock against each other, readers none.

use super::arena::{Arena, ArenaWriter, Entry, NewEntry, Ref, Spot};
use super::hash_index::HashIndex;
use super::leaf::{Part, Slot};
use super::leaves::{LeafWriter, Leaves};
use super::{MemEntry, Memtable};
use crate::cursor::{Cursor, Seek, Shown};
use crate::deletes::{KeySpan, RangeDeletes};
use crate::error::Result;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, RwLock};
use crate::types::{KeyspaceId, Kind, SeqNo};
use bytes::Bytes;
use std::collections::BTreeMap;

struct Writer {
    arena: ArenaWriter,
    leaves: LeafWriter,
}

/// What a memtable has, so that readers need not ask it. Each is set before what it stands for is
/// published.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    range_deletes: AtomicBool,
    expiring: AtomicBool,
}

impl Marks {
    /// Whether ranges were deleted.
    #[inline]
    pub(crate) fn has_range_deletes(&self) -> bool {
        self.range_deletes.load(Ordering::Acquire)
    }

    /// Whether there are entries that expire.
    #[inline]
    pub(crate) fn has_expiring(&self) -> bool {
        self.expiring.load(Ordering::Acquire)
    }
}

/// See the module's text.
pub(crate) struct SkipMemtable {
    writer: Mutex<Writer>,
    arena: Arc<Arena>,
    index: HashIndex,
    pub(super) leaves: Arc<Leaves>,
    entries: AtomicUsize,
    deletes: RwLock<BTreeMap<KeyspaceId, Arc<RangeDeletes>>>,
    marks: Arc<Marks>,
    /// What they take, in bytes.
    delete_bytes: AtomicUsize,
}

impl SkipMemtable {
    /// What it is known to have, for who reads often.
    pub(crate) fn marks(&self) -> Arc<Marks> {
        Arc::clone(&self.marks)
    }
}

impl Default for SkipMemtable {
    fn default() -> Self {
        let writer = ArenaWriter::new();
        let arena = Arc::clone(writer.arena());
        let leaf_writer = LeafWriter::new(Arc::clone(&arena));
        SkipMemtable {
            index: HashIndex::default(),
            leaves: Arc::clone(leaf_writer.leaves()),
            writer: Mutex::new(Writer { arena: writer, leaves: leaf_writer }),
            arena,
            entries: AtomicUsize::new(0),
            deletes: RwLock::default(),
            marks: Arc::default(),
            delete_bytes: AtomicUsize::new(0),
        }
    }
}

impl SkipMemtable {
    #[cold]
    fn delete_range(&self, keyspace: KeyspaceId, start: &[u8], seqno: SeqNo, end: &[u8]) {
        let span = KeySpan::new(Bytes::copy_from_slice(start), Bytes::copy_from_slice(end));
        debug_assert!(span.is_some(), "an empty range is not written");
        let Some(span) = span else { return };
        let _writer = self.writer.lock();
        // Readers go on with what there was meanwhile.
        let before = self.deletes.read().get(&keyspace).cloned().unwrap_or_default();
        let mut deletes = RangeDeletes::clone(&before);
        deletes.add(seqno, span);
        let others = self.delete_bytes.load(Ordering::Relaxed) - before.bytes();
        self.delete_bytes.store(others + deletes.bytes(), Ordering::Relaxed);
        self.deletes.write().insert(keyspace, Arc::new(deletes));
        self.entries.store(self.entries.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.marks.range_deletes.store(true, Ordering::Release);
    }

    /// What lies there, if that is a version of this key.
    #[inline]
    fn version(&self, at: Ref, keyspace: KeyspaceId, key: &[u8]) -> Option<(Ref, Entry<'_>)> {
        let entry = self.arena.entry(at)?;
        (entry.key() == key && entry.keyspace() == keyspace).then_some((at, entry))
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
        if kind == Kind::DeleteRange {
            return self.delete_range(keyspace, key, seqno, value);
        }
        if kind.expires() {
            self.marks.expiring.store(true, Ordering::Relaxed);
        }
        let mut writer = self.writer.lock();
        let writer = &mut *writer;
        let is_older = |at: Ref| {
            self.arena.entry(at).is_some_and(|entry| {
                let is_older = entry.key() == key && entry.keyspace() == keyspace;
                debug_assert!(
                    !is_older || entry.seqno() < seqno,
                    "the versions of a key come in order"
                );
                is_older
            })
        };
        self.index.put(hash, is_older, |prev| {
            let at = writer.arena.append(NewEntry { keyspace, key, seqno, kind, prev, value });
            writer.leaves.put(keyspace, key, prev, at);
            at
        });
        // Only under the lock.
        self.entries.store(self.entries.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn prefetch(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    fn get(
        &self,
        keyspace: KeyspaceId,
        key: &[u8],
        hash: u64,
        snapshot: SeqNo,
    ) -> Option<MemEntry> {
        let newest = self.index.find(hash, |at| self.version(at, keyspace, key));
        let (mut at, mut entry) = newest?;
        while entry.seqno() > snapshot {
            at = entry.prev()?;
            entry = self.arena.entry(at)?;
        }
        let (seqno, kind) = (entry.seqno(), entry.kind());
        Some(MemEntry { seqno, kind, value: self.arena.value(at) })
    }

    fn versions(
        &self,
        keyspace: KeyspaceId,
        key: &[u8],
        hash: u64,
        snapshot: SeqNo,
        take: &mut dyn FnMut(MemEntry) -> bool,
    ) -> bool {
        let mut next = self.index.find(hash, |at| self.version(at, keyspace, key));
        while let Some((at, entry)) = next {
            let (seqno, kind) = (entry.seqno(), entry.kind());
            if seqno <= snapshot && take(MemEntry { seqno, kind, value: self.arena.value(at) }) {
                return true;
            }
            next = entry.prev().and_then(|older| Some((older, self.arena.entry(older)?)));
        }
        false
    }

    fn range_deletes(&self, keyspace: KeyspaceId) -> Option<Arc<RangeDeletes>> {
        if !self.marks.has_range_deletes() {
            return None;
        }
        self.deletes.read().get(&keyspace).cloned()
    }

    fn range_delete(&self, keyspace: KeyspaceId, key: &[u8], snapshot: SeqNo) -> Option<SeqNo> {
        if !self.marks.has_range_deletes() {
            return None;
        }
        self.deletes.read().get(&keyspace)?.newest(key, snapshot)
    }

    fn cursor(self: Arc<Self>, keyspace: KeyspaceId) -> Box<dyn Cursor> {
        let (leaves, arena) = (Arc::clone(&self.leaves), Arc::clone(&self.arena));
        Box::new(SkipCursor::new(leaves, arena, keyspace))
    }

    fn allocated_bytes(&self) -> usize {
        self.arena.allocated_bytes()
            + self.index.allocated_bytes()
            + self.leaves.allocated_bytes()
            + self.delete_bytes.load(Ordering::Relaxed)
    }

    fn entries(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    fn keyspaces(&self) -> Vec<KeyspaceId> {
        let mut found = Vec::new();
        let mut from = Some(KeyspaceId(0));
        while let Some(keyspace) = from.and_then(|from| self.leaves.keyspace_from(from)) {
            found.push(keyspace);
            from = keyspace.0.checked_add(1).map(KeyspaceId);
        }
        if self.marks.has_range_deletes() {
            found.extend(self.deletes.read().keys());
            found.sort_unstable();
            found.dedup();
        }
        found
    }
}

/// How many entries ahead a cursor asks for memory: in the order of the keys each entry lies
/// somewhere else.
const AHEAD: usize = 8;

/// A cursor over one keyspace of a memtable.
struct SkipCursor {
    leaves: Arc<Leaves>,
    keyspace: KeyspaceId,
    /// The entry that the cursor is at.
    spot: Spot,
    current: Option<Ref>,
    /// The newer versions of its key, the newest first.
    newer: Vec<Ref>,
    /// Keys of one leaf, in order, and the place there of the cursor's key.
    run: Vec<Slot>,
    at: usize,
    /// Whether the run has all keys of its leaf that are behind its first one.
    to_the_end: bool,
    /// The run is that of the seek that was begun.
    aimed: bool,
}

impl SkipCursor {
    fn new(leaves: Arc<Leaves>, arena: Arc<Arena>, keyspace: KeyspaceId) -> Self {
        SkipCursor {
            leaves,
            keyspace,
            spot: Spot::new(arena),
            current: None,
            newer: Vec::new(),
            run: Vec::new(),
            at: 0,
            to_the_end: false,
            aimed: false,
        }
    }

    /// Takes the run where a seek leads.
    fn take_run(&mut self, to: Seek<'_>) {
        let (part, forward) = match to {
            Seek::First => (Part::AtOrAfter(b""), true),
            Seek::AtOrAfter(key) => (Part::AtOrAfter(key), true),
            Seek::After(key) => (Part::After(key), true),
            Seek::Last => (Part::All, false),
            Seek::AtOrBefore(key) => (Part::AtOrBefore(key), false),
            Seek::Before(key) => (Part::Before(key), false),
        };
        if forward {
            self.leaves.forward(self.keyspace, part, &mut self.run);
        } else {
            self.leaves.backward(self.keyspace, part, &mut self.run);
        }
    }

    fn go_to(&mut self, at: Option<Ref>) {
        self.current = at;
        self.spot.set(at);
    }

    /// Goes to the newest version of the key at a place in the run, or to none.
    fn go_to_newest(&mut self, at: usize) {
        self.newer.clear();
        self.at = at;
        self.go_to(self.run.get(at).map(|slot| slot.newest));
    }

    /// The same for the oldest version.
    fn go_to_oldest(&mut self, at: usize) {
        self.go_to_newest(at);
        while self.go_to_older() {}
    }

    /// Goes to the next older version, if there is one.
    fn go_to_older(&mut self) -> bool {
        let Some(older) = self.spot.entry().and_then(|entry| entry.prev()) else { return false };
        self.newer.extend(self.current);
        self.go_to(Some(older));
        true
    }

    fn ask_for(&self, at: impl Iterator<Item = usize>) {
        for slot in at.filter_map(|at| self.run.get(at)) {
            self.spot.arena().prefetch(slot.newest);
        }
    }

    /// The run is new, and the cursor goes to its first key.
    fn begin(&mut self) {
        self.to_the_end = true;
        self.go_to_newest(0);
    }

    /// The run is new, and the cursor goes to its last key.
    fn begin_at_the_end(&mut self) {
        self.to_the_end = false;
        self.go_to_oldest(self.run.len().wrapping_sub(1));
    }
}

impl Cursor for SkipCursor {
    fn aim(&mut self, to: Seek<'_>) -> Result<()> {
        // It is at none meanwhile: the run is not the one it was at.
        self.go_to(None);
        self.take_run(to);
        self.aimed = true;
        if let Seek::First | Seek::AtOrAfter(_) | Seek::After(_) = to {
            self.ask_for(0..2);
        } else {
            self.ask_for(self.run.len().wrapping_sub(1)..self.run.len());
        }
        Ok(())
    }

    fn seek(&mut self, to: Seek<'_>) -> Result<()> {
        if !std::mem::take(&mut self.aimed) {
            self.take_run(to);
        }
        match to {
            Seek::First | Seek::AtOrAfter(_) | Seek::After(_) => self.begin(),
            _ => self.begin_at_the_end(),
        }
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        if !self.valid() || self.go_to_older() {
            return Ok(());
        }
        if self.at == 0 {
            self.ask_for(1..AHEAD);
        }
        if self.at + 1 < self.run.len() {
            self.ask_for(std::iter::once(self.at + AHEAD));
            self.go_to_newest(self.at + 1);
            return Ok(());
        }
        if let Some(entry) = self.spot.entry() {
            let key = entry.key();
            if self.to_the_end {
                self.leaves.following(self.keyspace, key, &mut self.run);
            } else {
                self.leaves.forward(self.keyspace, Part::After(key), &mut self.run);
            }
        }
        self.begin();
        Ok(())
    }

    fn prev(&mut self) -> Result<()> {
        if !self.valid() {
            return Ok(());
        }
        if let Some(newer) = self.newer.pop() {
            self.go_to(Some(newer));
            return Ok(());
        }
        if let Some(before) = self.at.checked_sub(1) {
            self.ask_for(before.checked_sub(AHEAD).into_iter());
            self.go_to_oldest(before);
            return Ok(());
        }
        if let Some(entry) = self.spot.entry() {
            self.leaves.backward(self.keyspace, Part::Before(entry.key()), &mut self.run);
        }
        self.begin_at_the_end();
        Ok(())
    }

    fn stride(&mut self, forward: bool) -> Option<Shown<'_>> {
        if !self.valid() || !self.newer.is_empty() {
            return None;
        }
        if forward {
            if self.at + 1 >= self.run.len() {
                return None;
            }
            if self.at == 0 {
                self.ask_for(1..AHEAD);
            }
            self.ask_for(std::iter::once(self.at + AHEAD));
            self.go_to_newest(self.at + 1);
            return Some(self.shown());
        }
        let has_older = |cursor: &Self| cursor.spot.entry().is_none_or(|e| e.prev().is_some());
        let before = self.at.checked_sub(1)?;
        if has_older(self) {
            return None;
        }
        self.go_to_newest(before);
        if has_older(self) {
            self.go_to_newest(before + 1);
            return None;
        }
        self.ask_for(before.checked_sub(AHEAD).into_iter());
        Some(self.shown())
    }

    fn unstride(&mut self, forward: bool) {
        let from = if forward { self.at.checked_sub(1) } else { self.at.checked_add(1) };
        self.go_to_newest(from.unwrap_or(self.at));
    }

    fn valid(&self) -> bool {
        self.spot.is_set()
    }

    fn key(&self) -> &[u8] {
        self.spot.entry().map_or(&[], |entry| entry.key())
    }

    fn seqno(&self) -> SeqNo {
        self.spot.entry().map_or(SeqNo::ZERO, |entry| entry.seqno())
    }

    fn kind(&self) -> Kind {
        self.spot.entry().map_or(Kind::Delete, |entry| entry.kind())
    }

    fn key_bytes(&self) -> Bytes {
        self.spot.key_bytes()
    }

    fn value(&self) -> Bytes {
        self.spot.value()
    }

    fn value_ref(&self) -> &[u8] {
        self.spot.entry().map_or(&[], |entry| entry.value())
    }

    fn is_newest(&self) -> bool {
        self.newer.is_empty()
    }

    fn skip_newer(&mut self, key: &[u8], snapshot: SeqNo) -> Result<()> {
        while self.valid() && self.seqno() > snapshot && self.key() == key {
            if !self.go_to_older() {
                return self.next();
            }
        }
        Ok(())
    }
}
