//! Memtables: the writes that are in the log and not yet in a segment, sorted, in memory.
//!
//! One memtable serves all keyspaces, so that a batch over several of them is flushed whole. The
//! rest of the engine sees the trait [`Memtable`]; [`SkipMemtable`] implements it on a lock-free
//! skiplist.
//!
//! Invariants: entries are only added, never changed or removed; a (keyspace, key, sequence number)
//! comes once. One thread at a time inserts (the committer); any number read meanwhile and never
//! wait. A reader sees every entry whose insert returned before its read began. Called by the write
//! path (insert), the read path (get, cursor) and flushes (cursor).

mod skip;

pub(crate) use skip::SkipMemtable;

use crate::cursor::Cursor;
use crate::sync::Arc;
use crate::types::{KeyspaceId, Kind, SeqNo};
use bytes::Bytes;

/// The newest version of a key that a read may see.
#[derive(Clone, Debug)]
pub(crate) struct MemEntry {
    pub(crate) seqno: SeqNo,
    pub(crate) kind: Kind,
    pub(crate) value: Bytes,
}

/// A sorted table of recent writes.
pub(crate) trait Memtable: Send + Sync {
    /// Adds an entry. The key and value are copied.
    fn insert(&self, keyspace: KeyspaceId, key: &[u8], seqno: SeqNo, kind: Kind, value: &[u8]);

    /// The newest version of `key` at or before `snapshot`; tombstones are versions too.
    fn get(&self, keyspace: KeyspaceId, key: &[u8], snapshot: SeqNo) -> Option<MemEntry>;

    /// A cursor over the entries of one keyspace. It may or may not show entries that are added
    /// after it was made, and keeps the memtable alive.
    fn cursor(self: Arc<Self>, keyspace: KeyspaceId) -> Box<dyn Cursor>;

    /// The memory that the entries take, bookkeeping and index included, in bytes. An estimate that
    /// rather exceeds.
    fn allocated_bytes(&self) -> usize;

    /// How many entries there are.
    fn entries(&self) -> usize;

    /// The keyspaces that have entries here, in order.
    fn keyspaces(&self) -> Vec<KeyspaceId>;
}

#[cfg(test)]
mod tests;
