//! A memtable on `crossbeam_skiplist::SkipMap`, with compact keys.
//!
//! Each entry is one node and one allocation: the key and the value lie back to back in one buffer,
//! and the first eight bytes of the key stand in the node as an integer, so that most comparisons
//! on the way down touch no second cache line.
//!
//! Cursors copy a chunk of entries (references to their buffers, not the bytes) and descend again
//! for the next chunk: nothing borrows from the map, so cursors are owned and `Send`.

use super::{MemEntry, Memtable};
use crate::cursor::{Cursor, Seek};
use crate::error::Result;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::types::{KeyspaceId, Kind, SeqNo};
use bytes::Bytes;
use crossbeam_skiplist::SkipMap;
use std::borrow::Borrow;
use std::cmp;
use std::ops::Bound;

/// What an entry costs besides its key and value: the skiplist node with its tower, two allocation
/// headers and rounding, the shared-buffer record once a reader has taken a reference.
const ENTRY_OVERHEAD: usize = 144;

/// How many entries a cursor fetches at first, and at most, in one descent.
const CHUNK_MIN: usize = 4;
const CHUNK_MAX: usize = 64;

/// See the module's text.
#[derive(Default)]
pub(crate) struct SkipMemtable {
    map: SkipMap<Node, ()>,
    allocated: AtomicUsize,
    entries: AtomicUsize,
}

/// A whole entry, ordered by (keyspace, key, falling sequence number).
#[derive(Clone)]
struct Node {
    prefix: u64,
    seqno: SeqNo,
    keyspace: KeyspaceId,
    key_len: u16,
    kind: Kind,
    /// The key, then the value.
    data: Bytes,
}

/// The first eight bytes of a key as a big-endian integer, padded with zeros: unequal prefixes
/// order as the keys do.
fn prefix(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(first) => u64::from_be_bytes(*first),
        None => {
            let mut padded = [0; 8];
            padded[..key.len()].copy_from_slice(key);
            u64::from_be_bytes(padded)
        }
    }
}

/// A place in the order, of an entry or of a search for one.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place<'a> {
    keyspace: KeyspaceId,
    prefix: u64,
    key: &'a [u8],
    seqno: SeqNo,
}

impl<'a> Place<'a> {
    fn new(keyspace: KeyspaceId, key: &'a [u8], seqno: SeqNo) -> Self {
        Place { keyspace, prefix: prefix(key), key, seqno }
    }
}

impl Ord for Place<'_> {
    #[inline]
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        self.keyspace
            .cmp(&other.keyspace)
            .then_with(|| self.prefix.cmp(&other.prefix))
            .then_with(|| self.key.cmp(other.key))
            .then_with(|| other.seqno.cmp(&self.seqno))
    }
}

impl PartialOrd for Place<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Node {
    fn key(&self) -> &[u8] {
        &self.data[..usize::from(self.key_len)]
    }

    fn value(&self) -> Bytes {
        self.data.slice(usize::from(self.key_len)..)
    }
}

/// What a search and a node have in common, so that a search needs no node of its own.
trait HasPlace {
    fn place(&self) -> Place<'_>;
}

impl HasPlace for Node {
    #[inline]
    fn place(&self) -> Place<'_> {
        Place { keyspace: self.keyspace, prefix: self.prefix, key: self.key(), seqno: self.seqno }
    }
}

impl HasPlace for Place<'_> {
    #[inline]
    fn place(&self) -> Place<'_> {
        *self
    }
}

impl<'a> Borrow<dyn HasPlace + 'a> for Node {
    fn borrow(&self) -> &(dyn HasPlace + 'a) {
        self
    }
}

impl Ord for dyn HasPlace + '_ {
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for dyn HasPlace + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn HasPlace + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for dyn HasPlace + '_ {}

impl Ord for Node {
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for Node {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for Node {}

impl SkipMemtable {
    /// The first node at or after the bound.
    fn lower(&self, bound: Bound<&dyn HasPlace>) -> Option<Entry<'_>> {
        self.map.lower_bound::<dyn HasPlace>(bound)
    }

    /// The last node at or before the bound.
    fn upper(&self, bound: Bound<&dyn HasPlace>) -> Option<Entry<'_>> {
        self.map.upper_bound::<dyn HasPlace>(bound)
    }
}

type Entry<'a> = crossbeam_skiplist::map::Entry<'a, Node, ()>;

impl Memtable for SkipMemtable {
    fn insert(&self, keyspace: KeyspaceId, key: &[u8], seqno: SeqNo, kind: Kind, value: &[u8]) {
        let mut data = Vec::with_capacity(key.len() + value.len());
        data.extend_from_slice(key);
        data.extend_from_slice(value);
        let key_len = u16::try_from(key.len()).expect("keys are checked before they are logged");
        let node = Node {
            prefix: prefix(key),
            seqno,
            keyspace,
            key_len,
            kind,
            data: Bytes::from(data.into_boxed_slice()),
        };
        self.map.insert(node, ());
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.allocated.fetch_add(key.len() + value.len() + ENTRY_OVERHEAD, Ordering::Relaxed);
    }

    fn get(&self, keyspace: KeyspaceId, key: &[u8], snapshot: SeqNo) -> Option<MemEntry> {
        let place = Place::new(keyspace, key, snapshot);
        let entry = self.lower(Bound::Included(&place))?;
        let node = entry.key();
        (node.keyspace == keyspace && node.key() == key).then(|| MemEntry {
            seqno: node.seqno,
            kind: node.kind,
            value: node.value(),
        })
    }

    fn cursor(self: Arc<Self>, keyspace: KeyspaceId) -> Box<dyn Cursor> {
        Box::new(SkipCursor {
            table: self,
            keyspace,
            chunk: Vec::new(),
            at: 0,
            forward: true,
            want: CHUNK_MIN,
        })
    }

    fn allocated_bytes(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }

    fn entries(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    fn keyspaces(&self) -> Vec<KeyspaceId> {
        let mut found = Vec::new();
        let mut next = Some(KeyspaceId(0));
        while let Some(from) = next {
            let place = Place::new(from, b"", SeqNo::MAX);
            let Some(entry) = self.lower(Bound::Included(&place)) else { break };
            let keyspace = entry.key().keyspace;
            found.push(keyspace);
            next = keyspace.0.checked_add(1).map(KeyspaceId);
        }
        found
    }
}

/// A cursor over one keyspace of a memtable.
struct SkipCursor {
    table: Arc<SkipMemtable>,
    keyspace: KeyspaceId,
    /// Consecutive entries, in the direction of travel.
    chunk: Vec<Node>,
    at: usize,
    forward: bool,
    /// How many entries the next descent fetches: few at first, since most seeks are for a few.
    want: usize,
}

impl SkipCursor {
    /// Replaces the chunk by the entries from a bound on, in the given direction.
    fn fill(&mut self, forward: bool, bound: Bound<&dyn HasPlace>) {
        self.chunk.clear();
        self.at = 0;
        self.forward = forward;
        let mut next = if forward { self.table.lower(bound) } else { self.table.upper(bound) };
        while let Some(entry) = next {
            if entry.key().keyspace != self.keyspace {
                break;
            }
            self.chunk.push(entry.key().clone());
            if self.chunk.len() >= self.want {
                break;
            }
            next = if forward { entry.next() } else { entry.prev() };
        }
        self.want = (self.want * 2).min(CHUNK_MAX);
    }

    fn step(&mut self, forward: bool) {
        let Some(current) = self.chunk.get(self.at) else { return };
        if self.forward == forward && self.at + 1 < self.chunk.len() {
            self.at += 1;
            return;
        }
        let from = current.clone();
        self.fill(forward, Bound::Excluded(&from));
    }
}

impl Cursor for SkipCursor {
    fn seek(&mut self, to: Seek<'_>) -> Result<()> {
        self.want = CHUNK_MIN;
        let keyspace = self.keyspace;
        // A key's versions run from SeqNo::MAX down to zero, so those two stand just before the
        // first and at the last of them.
        let newest = |key| Place::new(keyspace, key, SeqNo::MAX);
        let oldest = |key| Place::new(keyspace, key, SeqNo::ZERO);
        match to {
            Seek::First => self.fill(true, Bound::Included(&newest(b""))),
            Seek::AtOrAfter(key) => self.fill(true, Bound::Included(&newest(key))),
            Seek::After(key) => self.fill(true, Bound::Excluded(&oldest(key))),
            Seek::Last => match keyspace.0.checked_add(1) {
                Some(next) => {
                    let end = Place::new(KeyspaceId(next), b"", SeqNo::MAX);
                    self.fill(false, Bound::Excluded(&end));
                }
                None => self.fill(false, Bound::Unbounded),
            },
            Seek::AtOrBefore(key) => self.fill(false, Bound::Included(&oldest(key))),
            Seek::Before(key) => self.fill(false, Bound::Excluded(&newest(key))),
        }
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
        self.at < self.chunk.len()
    }

    fn key(&self) -> &[u8] {
        self.chunk.get(self.at).map_or(&[], Node::key)
    }

    fn seqno(&self) -> SeqNo {
        self.chunk.get(self.at).map_or(SeqNo::ZERO, |node| node.seqno)
    }

    fn kind(&self) -> Kind {
        self.chunk.get(self.at).map_or(Kind::Delete, |node| node.kind)
    }

    fn key_bytes(&self) -> Bytes {
        self.chunk
            .get(self.at)
            .map_or_else(Bytes::new, |node| node.data.slice(..usize::from(node.key_len)))
    }

    fn value(&self) -> Bytes {
        self.chunk.get(self.at).map_or_else(Bytes::new, Node::value)
    }
}
