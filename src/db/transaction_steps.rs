//! What the methods of a transaction do, keyspace by keyspace.
//!
//! Invariant: the lock on what was done is held while that is looked at or changed, and no longer:
//! neither a read of the database nor a merge operator runs under it. Called by `transaction`.

use super::Inner;
use super::batch::check_sizes;
use super::keyspace::Keyspace;
use super::keyspace_core::KeyspaceCore;
use super::options::IterOptions;
use super::read::ReadFrom;
use super::transaction::Transaction;
use super::transaction_range::TransactionRange;
use super::transaction_reads::Reads;
use super::transaction_writes::{Base, Lasting, Writes};
use crate::deletes::KeySpan;
use crate::error::{Error, Result};
use crate::slice::Value;
use crate::sync::Arc;
use crate::types::KeyspaceId;
use bytes::Bytes;
use std::ops::{Bound, RangeBounds};

/// What a transaction did in one keyspace.
pub(super) struct Touched {
    pub(super) core: Arc<KeyspaceCore>,
    pub(super) reads: Reads,
    /// Shared with the iterators that are alive; copied if it is written to meanwhile.
    pub(super) writes: Arc<Writes>,
}

/// What it did in each, in the order of their ids: few, mostly.
pub(super) type Keyspaces = Vec<Touched>;

fn place_of(keyspaces: &[Touched], id: KeyspaceId) -> std::result::Result<usize, usize> {
    keyspaces.binary_search_by_key(&id, |touched| touched.core.id)
}

/// What it did in one.
pub(super) fn touched_in(keyspaces: &[Touched], id: KeyspaceId) -> Option<&Touched> {
    keyspaces.get(place_of(keyspaces, id).ok()?)
}

/// An iterator of a transaction.
pub(super) struct Walk {
    keyspace: KeyspaceId,
    number: u64,
}

impl Transaction {
    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.handle.inner
    }

    pub(super) fn core<'k>(&self, keyspace: &'k Keyspace) -> Result<&'k Arc<KeyspaceCore>> {
        if keyspace.core.database == self.default.database {
            Ok(&keyspace.core)
        } else {
            Err(Error::WrongDatabase)
        }
    }

    fn read_from<'a>(&'a self, core: &'a Arc<KeyspaceCore>) -> ReadFrom<'a> {
        ReadFrom { inner: self.inner(), core, snapshot: Some(self.moment) }
    }

    /// Looks at what was done in a keyspace.
    fn touch<R>(&self, core: &Arc<KeyspaceCore>, look: impl FnOnce(&mut Touched) -> R) -> R {
        let mut keyspaces = self.keyspaces.lock();
        let at = place_of(&keyspaces, core.id).unwrap_or_else(|at| {
            let (core, reads, writes) = (Arc::clone(core), Reads::default(), Arc::default());
            keyspaces.insert(at, Touched { core, reads, writes });
            at
        });
        look(&mut keyspaces[at])
    }

    pub(super) fn look_up(&self, core: &Arc<KeyspaceCore>, key: &[u8]) -> Result<Option<Value>> {
        let below = self.read_from(core);
        below.check()?;
        let own = self.touch(core, |touched| {
            let cell = touched.writes.cell(key).cloned();
            let is_deleted = cell.is_none() && touched.writes.deleted_around(key).is_some();
            if !is_deleted && cell.as_ref().is_none_or(|cell| cell.needs_below()) {
                touched.reads.look_up(key);
            }
            if is_deleted { Some(None) } else { cell.map(Some) }
        });
        match own {
            None => below.get(key),
            Some(None) => Ok(None),
            Some(Some(cell)) => {
                let below = if cell.needs_below() { below.get(key)? } else { None };
                Ok(cell.value(core, key, below.as_deref())?.map(Value))
            }
        }
    }

    pub(super) fn range(
        &self,
        core: &Arc<KeyspaceCore>,
        (lower, upper): (Bound<&[u8]>, Bound<&[u8]>),
    ) -> TransactionRange<'_> {
        let own = |bound: Bound<&[u8]>| bound.map(Bytes::copy_from_slice);
        let span = KeySpan::of(lower, upper);
        let (walk, writes) = self.touch(core, |touched| {
            let walk = span.clone().map(|span| touched.reads.begin_walk(span));
            (walk, Arc::clone(&touched.writes))
        });
        let walk = walk.map(|number| Walk { keyspace: core.id, number });
        let below = self.read_from(core).range((own(lower), own(upper)), IterOptions::default());
        TransactionRange::new(self, Arc::clone(core), span, walk, below, writes)
    }

    /// For iterators that go.
    pub(super) fn end_walk(&self, walk: &Walk, walked: impl Iterator<Item = KeySpan>) {
        let mut keyspaces = self.keyspaces.lock();
        if let Ok(at) = place_of(&keyspaces, walk.keyspace) {
            keyspaces[at].reads.end_walk(walk.number, walked);
        }
    }

    fn write(&self, core: &Arc<KeyspaceCore>, write: impl FnOnce(&mut Writes)) -> Result<()> {
        core.check_live()?;
        self.touch(core, |touched| write(Arc::make_mut(&mut touched.writes)));
        Ok(())
    }

    pub(super) fn set(
        &self,
        core: &Arc<KeyspaceCore>,
        key: &[u8],
        value: &[u8],
        ttl_ms: Option<u64>,
    ) -> Result<()> {
        check_sizes(key, value, ttl_ms.is_some())?;
        let value = Lasting { bytes: Bytes::copy_from_slice(value), ttl_ms };
        self.write(core, |writes| writes.set(key, Base::Value(value)))
    }

    pub(super) fn merge_into(
        &self,
        core: &Arc<KeyspaceCore>,
        key: &[u8],
        operand: &[u8],
        ttl_ms: Option<u64>,
    ) -> Result<()> {
        check_sizes(key, operand, ttl_ms.is_some())?;
        core.check_operand(key, operand)?;
        let operand = Lasting { bytes: Bytes::copy_from_slice(operand), ttl_ms };
        self.write(core, |writes| writes.merge(key, operand))
    }

    pub(super) fn remove(&self, core: &Arc<KeyspaceCore>, key: &[u8]) -> Result<()> {
        check_sizes(key, b"", false)?;
        self.write(core, |writes| writes.set(key, Base::Absent))
    }

    pub(super) fn remove_range(
        &self,
        core: &Arc<KeyspaceCore>,
        (lower, upper): (Bound<&[u8]>, Bound<&[u8]>),
    ) -> Result<()> {
        for bound in [lower, upper] {
            if let Bound::Included(key) | Bound::Excluded(key) = bound {
                check_sizes(key, b"", false)?;
            }
        }
        match KeySpan::of(lower, upper) {
            Some(span) => self.write(core, |writes| writes.delete_range(span)),
            None => core.check_live(),
        }
    }
}

pub(super) fn bounds_of<'a, K: AsRef<[u8]> + 'a>(
    range: &'a impl RangeBounds<K>,
) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    (range.start_bound().map(AsRef::as_ref), range.end_bound().map(AsRef::as_ref))
}

pub(super) fn slice_of(bound: &Bound<Bytes>) -> Bound<&[u8]> {
    bound.as_ref().map(|key| &key[..])
}
