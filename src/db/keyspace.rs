//! Keyspaces: separate sets of keys in one database, written together and recovered together.

use super::Handle;
use super::batch::{WriteBatch, ttl_ms};
use super::keyspace_core::KeyspaceCore;
use super::read::{ReadFrom, forward_reads};
use crate::error::Result;
use crate::sync::Arc;
use crate::types::{KeyspaceId, Kind};
use bytes::Bytes;
use std::ops::{Bound, RangeBounds};
use std::time::Duration;

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

    /// Sets a key for a time: from then on it is absent, as if it had been removed, also for what was
    /// there before. Rounded up to milliseconds, by the database's clock; where that steps back, time
    /// stands still until it is there again. A snapshot goes on seeing
    /// what had not expired when it was made, an iterator likewise. Costs as for [`put`](Self::put), 8
    /// bytes, and a look at the clock; compactions remove what has expired.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidTtl`](crate::Error::InvalidTtl) if the time is zero or too long to be written down;
    /// and as for [`put`](Self::put).
    pub fn put_with_ttl(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> Result<()> {
        let (inner, ttl_ms) = (&self.handle.inner, ttl_ms(ttl)?);
        inner.write_for_a_time(&self.core, Kind::Put, key.as_ref(), value.as_ref(), ttl_ms)
    }

    /// Sets a key until a time, in milliseconds since the Unix epoch by the database's clock: from then on it is
    /// absent, as with [`put_with_ttl`](Self::put_with_ttl). A time that has passed is accepted, and
    /// removes the key; `u64::MAX` is never, also where the keyspace has a default time to live. For
    /// copies of what [`RangeIter::expires_ms`](crate::RangeIter::expires_ms) told.
    ///
    /// # Errors
    ///
    /// As for [`put`](Self::put).
    pub fn put_until(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        expires_ms: u64,
    ) -> Result<()> {
        let mut batch = WriteBatch::new();
        batch.put_in_until(self, key, value, expires_ms);
        self.handle.inner.write(batch, self.handle.inner.options.durability)
    }

    /// Merges an operand into the value of a key, whatever that is, by the keyspace's
    /// [merge operator](crate::merge): without reading it, so that concurrent merges lose nothing.
    /// Costs as for [`put`](Self::put); a read then costs a lookup in each memtable and sorted run down to the
    /// last put, and a step and the operator's work for each operand, until flushes and compactions have
    /// merged them. A memtable merges none: a key that takes a million operands between two flushes costs
    /// a million steps with each read.
    ///
    /// # Errors
    ///
    /// [`Error::MergeOperator`](crate::Error::MergeOperator) if the keyspace has no operator;
    /// [`Error::MergeFailed`](crate::Error::MergeFailed) if that refuses the operand; and as for
    /// [`put`](Self::put).
    pub fn merge(&self, key: impl AsRef<[u8]>, operand: impl AsRef<[u8]>) -> Result<()> {
        let (key, operand) = (key.as_ref(), operand.as_ref());
        self.core.check_operand(key, operand)?;
        self.handle.inner.write_one(&self.core, Kind::Merge, key, operand)
    }

    /// Merges an operand for a time: from then on it is as if it had never been merged. So a sum of
    /// such operands is the sum of those that have not expired. Operands that expire at different times cannot be
    /// combined before they do. Otherwise as [`merge`](Self::merge).
    ///
    /// # Errors
    ///
    /// Those of [`merge`](Self::merge) and [`put_with_ttl`](Self::put_with_ttl).
    pub fn merge_with_ttl(
        &self,
        key: impl AsRef<[u8]>,
        operand: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> Result<()> {
        let (key, operand, ttl_ms) = (key.as_ref(), operand.as_ref(), ttl_ms(ttl)?);
        self.core.check_operand(key, operand)?;
        self.handle.inner.write_for_a_time(&self.core, Kind::Merge, key, operand, ttl_ms)
    }

    /// Removes a key; succeeds also if it is not there. Costs as for [`put`](Self::put).
    ///
    /// # Errors
    ///
    /// As for [`put`](Self::put).
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.handle.inner.write_one(&self.core, Kind::Delete, key.as_ref(), b"")
    }

    /// Removes every key of a range, at once, whatever their number. A reversed range is empty. Snapshots
    /// taken before still see the keys. Costs as for [`put`](Self::put). Until compactions have removed what it hides, the range takes
    /// memory, and every read of the keyspace costs a search among such ranges; segments that lie
    /// within it go without their blocks being read.
    ///
    /// # Errors
    ///
    /// As for [`put`](Self::put); [`Error::KeyTooLong`](crate::Error::KeyTooLong) also for a bound.
    pub fn delete_range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<()> {
        let mut batch = WriteBatch::new();
        batch.delete_range_in(self, range);
        self.handle.inner.write(batch, self.handle.inner.options.durability)
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
    /// them, whole. Memtables do not count, nor do values in value segments. Costs one index search for each end and segment.
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
    /// is lost then. [`Error::MergeFailed`](crate::Error::MergeFailed) after all is done, if the merge
    /// operator failed: what it was to merge is there as it was.
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
        ReadFrom { inner: &self.handle.inner, core: &self.core, snapshot: None }
    }

    forward_reads!();
}
