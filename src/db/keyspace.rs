//! Keyspaces: separate sets of keys in one database, written together and recovered together.

use super::Handle;
use super::keyspace_core::KeyspaceCore;
use super::read::{ReadFrom, forward_reads};
use crate::error::Result;
use crate::sync::Arc;
use crate::types::{KeyspaceId, Kind, SeqNo};
use bytes::Bytes;
use std::ops::{Bound, RangeBounds};

/// The name of the keyspace that every database has, and that the methods of `Db` use.
pub const DEFAULT_KEYSPACE: &str = "default";

/// The longest keyspace name, in bytes.
pub const MAX_KEYSPACE_NAME: usize = 255;

/// A handle to one keyspace. Cheap to clone, `Send + Sync`. Made by
/// [`Db::keyspace`](crate::Db::keyspace).
///
/// Once the keyspace is dropped every method gives [`Error::KeyspaceDropped`](crate::Error::KeyspaceDropped), also if another one
/// was created under the same name since.
#[derive(Clone)]
pub struct Keyspace {
    pub(super) handle: Arc<Handle>,
    pub(super) core: Arc<KeyspaceCore>,
}

impl std::fmt::Debug for Keyspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyspace").field("name", &self.core.name).finish_non_exhaustive()
    }
}

impl Keyspace {
    pub(super) fn core(&self) -> &Arc<KeyspaceCore> {
        &self.core
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Its id: never reused, not even after the keyspace was dropped.
    #[must_use]
    pub fn id(&self) -> KeyspaceId {
        self.core.id
    }

    /// Sets a key. Acknowledged as the database's `durability` option says. Costs one log append,
    /// shared with concurrent writers, and one memtable insert.
    ///
    /// # Errors
    ///
    /// [`Error::KeyTooLong`](crate::Error::KeyTooLong), [`Error::ValueTooLong`](crate::Error::ValueTooLong), [`Error::KeyspaceDropped`](crate::Error::KeyspaceDropped),
    /// [`Error::Poisoned`](crate::Error::Poisoned), [`Error::Closed`](crate::Error::Closed), [`Error::DiskFull`](crate::Error::DiskFull), [`Error::Io`](crate::Error::Io); and whatever a
    /// background flush failed with, until one succeeds: it is tried again twice a second. After any of
    /// them nothing was written, with one exception: if the `fsync` of a write with
    /// [`Durability::Sync`](crate::Durability::Sync) fails, the write is visible, later writes are
    /// refused, and whether it survives is open until the database is opened again.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.handle.inner.write_one(&self.core, Kind::Put, key.as_ref(), value.as_ref())
    }

    /// Removes a key; succeeds also if it is not there. Costs as for [`put`](Self::put).
    ///
    /// # Errors
    ///
    /// As for [`put`](Self::put).
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.handle.inner.write_one(&self.core, Kind::Delete, key.as_ref(), b"")
    }

    /// Removes every key, at once, whatever their number. Snapshots taken before still see them.
    /// Costs one log sync and one manifest edit; files go as soon as no snapshot needs them.
    ///
    /// # Errors
    ///
    /// As for [`put`](Self::put).
    pub fn clear(&self) -> Result<()> {
        self.handle.inner.clear(&self.core)
    }

    /// About how many bytes of segment files the keys of a range take: the blocks that can hold
    /// them, whole. Memtables do not count. Costs one index search for each end and segment.
    ///
    /// # Errors
    ///
    /// [`Error::KeyspaceDropped`](crate::Error::KeyspaceDropped), [`Error::Closed`](crate::Error::Closed), and [`Error::Corruption`](crate::Error::Corruption) or [`Error::Io`](crate::Error::Io) from
    /// reading an index.
    pub fn approximate_size<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<u64> {
        fn bound<K: AsRef<[u8]>>(b: Bound<&K>) -> Bound<&[u8]> {
            b.map(|key| key.as_ref())
        }
        let inner = &self.handle.inner;
        inner.approximate_size(&self.core, bound(range.start_bound()), bound(range.end_bound()))
    }

    /// Flushes, then compacts everything in a range down to the last level that holds anything, on
    /// the caller's thread. Reads and writes go on. Costs reading and writing the range once for
    /// each level.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put), and [`Error::Corruption`](crate::Error::Corruption) from a segment that it reads: nothing
    /// is lost then.
    pub fn compact_range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<()> {
        fn bound<K: AsRef<[u8]>>(b: Bound<&K>) -> Option<Bytes> {
            match b {
                Bound::Included(key) | Bound::Excluded(key) => {
                    Some(Bytes::copy_from_slice(key.as_ref()))
                }
                Bound::Unbounded => None,
            }
        }
        let (first, last) = (bound(range.start_bound()), bound(range.end_bound()));
        let _after = self.handle.inner.events.after();
        self.handle.inner.compact_range(&self.core, first.as_deref(), last.as_deref())
    }

    pub(super) fn read_from(&self) -> ReadFrom<'_> {
        ReadFrom { inner: &self.handle.inner, core: &self.core, snapshot: None::<SeqNo> }
    }

    forward_reads!();
}
