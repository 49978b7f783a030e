//! Batches: several writes, in any keyspaces, that take effect together or not at all.

use super::keyspace::Keyspace;
use super::keyspace_core::KeyspaceCore;
use super::options::Durability;
use crate::error::{Error, Result};
use crate::hash::{key_hash, keyspace_seed};
use crate::sync::Arc;
use crate::types::{KeyspaceId, Kind, MAX_KEY_LEN, MAX_VALUE_LEN};
use crate::wal::{Op, Ops, encode_op};

/// The most that a batch of more than one operation may hold, in bytes as logged (1 GiB). A single
/// operation may be as large as its key and value may.
pub const MAX_BATCH_BYTES: u64 = 1 << 30;

/// Writes to be applied together by [`Db::write`](crate::Db::write).
///
/// Within a batch the later operation on a key wins. A key or value that is too long, or a batch
/// that grows past [`MAX_BATCH_BYTES`], is remembered and refused by `write`, before anything is
/// written. Holds a copy of every key and value; not synchronized.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    pub(super) ops: Vec<u8>,
    pub(super) count: u64,
    /// The keyspaces used besides the default one, each once.
    pub(super) keyspaces: Vec<Arc<KeyspaceCore>>,
    /// The hashes of the keys, in order; empty until the batch is written.
    pub(super) hashes: Vec<u64>,
    /// How it is to be written.
    pub(super) durability: Durability,
    refused: Option<Error>,
}

/// Refuses keys and values over the limits.
pub(super) fn check_sizes(key: &[u8], value: &[u8]) -> Result<()> {
    if key.len() > MAX_KEY_LEN {
        return Err(Error::KeyTooLong { len: key.len() });
    }
    if value.len() > MAX_VALUE_LEN {
        return Err(Error::ValueTooLong { len: value.len() });
    }
    Ok(())
}

impl WriteBatch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key of the default keyspace.
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> &mut Self {
        self.push(KeyspaceId(0), Kind::Put, key.as_ref(), value.as_ref())
    }

    /// Removes a key of the default keyspace, if it is there.
    pub fn delete(&mut self, key: impl AsRef<[u8]>) -> &mut Self {
        self.push(KeyspaceId(0), Kind::Delete, key.as_ref(), b"")
    }

    /// Sets a key of a keyspace.
    pub fn put_in(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> &mut Self {
        self.uses(keyspace.core());
        self.push(keyspace.core().id, Kind::Put, key.as_ref(), value.as_ref())
    }

    /// Removes a key of a keyspace, if it is there.
    pub fn delete_in(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> &mut Self {
        self.uses(keyspace.core());
        self.push(keyspace.core().id, Kind::Delete, key.as_ref(), b"")
    }

    /// How many operations it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from(self.count).unwrap_or(usize::MAX)
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What it holds, in bytes as logged.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ops.len() as u64
    }

    /// Empties it, keeping its memory for the next use.
    pub fn clear(&mut self) {
        self.ops.clear();
        self.count = 0;
        self.keyspaces.clear();
        self.hashes.clear();
        self.refused = None;
    }

    pub(super) fn uses(&mut self, core: &Arc<KeyspaceCore>) {
        if !self.keyspaces.iter().any(|known| Arc::ptr_eq(known, core)) {
            self.keyspaces.push(Arc::clone(core));
        }
    }

    pub(super) fn push(
        &mut self,
        keyspace: KeyspaceId,
        kind: Kind,
        key: &[u8],
        value: &[u8],
    ) -> &mut Self {
        if self.refused.is_some() {
            return self;
        }
        if let Err(error) = check_sizes(key, value) {
            self.refused = Some(error);
            return self;
        }
        let added = (key.len() as u64).saturating_add(value.len() as u64);
        if self.count > 0 && self.bytes().saturating_add(added) > MAX_BATCH_BYTES {
            let bytes = self.bytes().saturating_add(added);
            self.refused = Some(Error::BatchTooLarge { bytes, limit: MAX_BATCH_BYTES });
            return self;
        }
        encode_op(&mut self.ops, Op { keyspace, kind, key, value });
        self.count += 1;
        self
    }

    /// The operations, in order.
    pub(super) fn operations(&self) -> Ops<'_> {
        Ops::new(&self.ops, self.count)
    }

    /// Refuses keyspaces that were dropped.
    pub(super) fn check_live(&self) -> Result<()> {
        self.keyspaces.iter().try_for_each(|core| core.check_live())
    }

    /// Computes the hashes of all keys for a database with this seed. They are needed under its
    /// writer's lock, which nobody should hold for that.
    pub(super) fn hash_keys(&mut self, hash_seed: u64) {
        let mut seed = (KeyspaceId(0), keyspace_seed(hash_seed, KeyspaceId(0)));
        self.hashes.clear();
        self.hashes.reserve_exact(self.len());
        for op in Ops::new(&self.ops, self.count).map_while(std::result::Result::ok) {
            if op.keyspace != seed.0 {
                seed = (op.keyspace, keyspace_seed(hash_seed, op.keyspace));
            }
            self.hashes.push(key_hash(op.key, seed.1));
        }
    }

    /// The error of the first operation that could not be taken, if any.
    pub(super) fn check(&self) -> Result<()> {
        self.refused.clone().map_or(Ok(()), Err)
    }
}
