//! Memtables: the writes that are in the log and not yet in a segment, sorted, in memory.
//!
//! One memtable serves all keyspaces, so that a batch over several of them is flushed whole. The
//! rest of the engine sees the trait [`Memtable`]; [`SkipMemtable`] implements it: an arena keeps the
//! bytes, a hash index finds the newest version of a key, and leaves of 64 keys under a lock-free
//! skiplist keep the order.
//!
//! Invariants: entries are only added, never changed or removed; the sequence numbers of a key rise
//! from insert to insert. One thread at a time inserts (the committer); any number read meanwhile and never
//! wait. A reader sees every entry whose insert returned before its read began. Called by the write
//! path (insert), the read path (get, cursor) and flushes (cursor).

#[allow(unsafe_code)] // Bytes that are read while more are appended, without a lock.
mod arena;
mod ends;
mod hash_index;
mod leaf;
mod leaf_index;
mod leaves;
mod skip;

pub(crate) use skip::{Marks, SkipMemtable};

use crate::cursor::Cursor;
use crate::deletes::RangeDeletes;
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
    /// Adds an entry, or of kind [`Kind::DeleteRange`] a range tombstone. The key and value are copied. `hash` is any hash of the key: the same in
    /// every call for this keyspace and key, and spread over all 64 bits.
    fn insert(
        &self,
        keyspace: KeyspaceId,
        key: &[u8],
        hash: u64,
        seqno: SeqNo,
        kind: Kind,
        value: &[u8],
    );

    /// Asks for the memory that a `get` or an `insert` with this hash looks at first. Worth it some
    /// hundred nanoseconds ahead.
    fn prefetch(&self, hash: u64);

    /// The newest version of `key` at or before `snapshot`; tombstones are versions too. `hash` as
    /// for `insert`. The value may outlive the memtable.
    fn get(&self, keyspace: KeyspaceId, key: &[u8], hash: u64, snapshot: SeqNo)
    -> Option<MemEntry>;

    /// Shows the versions of `key` at or before `snapshot`, newest first, until `take` says that it has
    /// seen enough, and says whether it did.
    fn versions(
        &self,
        keyspace: KeyspaceId,
        key: &[u8],
        hash: u64,
        snapshot: SeqNo,
        take: &mut dyn FnMut(MemEntry) -> bool,
    ) -> bool;

    /// The range tombstones of a keyspace, if there are any. What is added later does not show.
    fn range_deletes(&self, keyspace: KeyspaceId) -> Option<Arc<RangeDeletes>>;

    /// The newest range tombstone that covers a key and is not after a snapshot.
    fn range_delete(&self, keyspace: KeyspaceId, key: &[u8], snapshot: SeqNo) -> Option<SeqNo>;

    /// A cursor over the entries of one keyspace. It may or may not show entries that are added
    /// after it was made, and keeps the entries alive.
    fn cursor(self: Arc<Self>, keyspace: KeyspaceId) -> Box<dyn Cursor>;

    /// The memory that the entries take, bookkeeping and index included, in bytes. An estimate that
    /// rather exceeds.
    fn allocated_bytes(&self) -> usize;

    /// How many entries there are, range tombstones among them.
    fn entries(&self) -> usize;

    /// The keyspaces that have entries or range tombstones here, in order.
    fn keyspaces(&self) -> Vec<KeyspaceId>;
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(test)]
mod tests;
