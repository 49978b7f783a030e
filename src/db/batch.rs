//! Batches: several writes, in any keyspaces, that take effect together or not at all.

use super::keyspace::Keyspace;
use super::keyspace_core::KeyspaceCore;
use super::options::Durability;
use crate::deletes::KeySpan;
use crate::error::{Error, Result};
use crate::hash::{key_hash, keyspace_seed};
use crate::sync::Arc;
use crate::types::{EXPIRY_LEN, KeyspaceId, Kind, MAX_KEY_LEN, MAX_VALUE_LEN, split_expiry};
use crate::wal::{Op, Ops, encode_expiring, encode_op};
use std::ops::{Bound, RangeBounds};
use std::time::Duration;

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
    /// Of what expires: where in `ops` it says when. Until the batch is written, how long it lives
    /// stands there, in milliseconds.
    expiries: Vec<usize>,
    /// Which operations say themselves when they expire, counted from zero.
    fixed: Vec<u64>,
    /// Something is merged in the default keyspace, whose operator the batch does not know.
    merges_in_default: bool,
    refused: Option<Error>,
}

/// A time to live in milliseconds, rounded up.
pub(super) fn ttl_ms(ttl: Duration) -> Result<u64> {
    let ttl_ms = ttl.as_nanos().div_ceil(1_000_000);
    let refuse = |reason| Error::InvalidTtl { ttl_ms, reason };
    match u64::try_from(ttl_ms) {
        Ok(0) => Err(refuse("is none: at least a millisecond is needed")),
        Ok(ttl_ms) => Ok(ttl_ms),
        Err(_) => Err(refuse("is too long to be written down: leave it out")),
    }
}

/// Refuses keys and values over the limits.
pub(super) fn check_sizes(key: &[u8], value: &[u8], expires: bool) -> Result<()> {
    if key.len() > MAX_KEY_LEN {
        return Err(Error::KeyTooLong { len: key.len() });
    }
    if value.len() > MAX_VALUE_LEN - if expires { EXPIRY_LEN } else { 0 } {
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
        self.push(KeyspaceId(0), Kind::Put, key.as_ref(), value.as_ref(), None)
    }

    /// Sets a key of the default keyspace for a time: see
    /// [`Keyspace::put_with_ttl`](crate::Keyspace::put_with_ttl). The time runs from when the batch is
    /// written.
    pub fn put_with_ttl(
        &mut self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> &mut Self {
        self.push_for_a_time(KeyspaceId(0), Kind::Put, key.as_ref(), value.as_ref(), ttl)
    }

    /// Sets a key of the default keyspace until a time, in milliseconds since the Unix epoch: see
    /// [`Keyspace::put_until`](crate::Keyspace::put_until).
    pub fn put_until(
        &mut self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        expires_ms: u64,
    ) -> &mut Self {
        self.push_until(KeyspaceId(0), Kind::Put, key.as_ref(), value.as_ref(), expires_ms)
    }

    /// Merges an operand into a key of the default keyspace: see
    /// [`Keyspace::merge`](crate::Keyspace::merge). Whether the operator takes it is seen when the batch
    /// is written.
    pub fn merge(&mut self, key: impl AsRef<[u8]>, operand: impl AsRef<[u8]>) -> &mut Self {
        self.merges_in_default = true;
        self.push(KeyspaceId(0), Kind::Merge, key.as_ref(), operand.as_ref(), None)
    }

    /// Merges an operand into a key of the default keyspace for a time: see
    /// [`Keyspace::merge_with_ttl`](crate::Keyspace::merge_with_ttl).
    pub fn merge_with_ttl(
        &mut self,
        key: impl AsRef<[u8]>,
        operand: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> &mut Self {
        self.merges_in_default = true;
        self.push_for_a_time(KeyspaceId(0), Kind::Merge, key.as_ref(), operand.as_ref(), ttl)
    }

    /// Removes a key of the default keyspace, if it is there.
    pub fn delete(&mut self, key: impl AsRef<[u8]>) -> &mut Self {
        self.push(KeyspaceId(0), Kind::Delete, key.as_ref(), b"", None)
    }

    /// Sets a key of a keyspace.
    pub fn put_in(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> &mut Self {
        self.uses(keyspace.core());
        let ttl_ms = keyspace.core().usual_ttl_ms();
        self.push(keyspace.core().id, Kind::Put, key.as_ref(), value.as_ref(), ttl_ms)
    }

    /// Sets a key of a keyspace for a time: see
    /// [`Keyspace::put_with_ttl`](crate::Keyspace::put_with_ttl). The time runs from when the batch is
    /// written.
    pub fn put_in_with_ttl(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> &mut Self {
        self.uses(keyspace.core());
        self.push_for_a_time(keyspace.core().id, Kind::Put, key.as_ref(), value.as_ref(), ttl)
    }

    /// Sets a key of a keyspace until a time, in milliseconds since the Unix epoch: see
    /// [`Keyspace::put_until`](crate::Keyspace::put_until).
    pub fn put_in_until(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        expires_ms: u64,
    ) -> &mut Self {
        self.uses(keyspace.core());
        self.push_until(keyspace.core().id, Kind::Put, key.as_ref(), value.as_ref(), expires_ms)
    }

    /// Merges an operand into a key of a keyspace: see [`Keyspace::merge`](crate::Keyspace::merge).
    pub fn merge_in(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        operand: impl AsRef<[u8]>,
    ) -> &mut Self {
        let (core, key, operand) = (keyspace.core(), key.as_ref(), operand.as_ref());
        self.uses(core);
        self.refuse(core.check_operand(key, operand));
        self.push(core.id, Kind::Merge, key, operand, core.usual_ttl_ms())
    }

    /// Merges an operand into a key of a keyspace for a time: see
    /// [`Keyspace::merge_with_ttl`](crate::Keyspace::merge_with_ttl).
    pub fn merge_in_with_ttl(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        operand: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> &mut Self {
        let (core, key, operand) = (keyspace.core(), key.as_ref(), operand.as_ref());
        self.uses(core);
        self.refuse(core.check_operand(key, operand));
        self.push_for_a_time(core.id, Kind::Merge, key, operand, ttl)
    }

    /// Removes a key of a keyspace, if it is there.
    pub fn delete_in(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> &mut Self {
        self.uses(keyspace.core());
        self.push(keyspace.core().id, Kind::Delete, key.as_ref(), b"", None)
    }

    /// Removes every key of a range of the default keyspace: see
    /// [`Keyspace::delete_range`](crate::Keyspace::delete_range).
    pub fn delete_range<K: AsRef<[u8]>>(&mut self, range: impl RangeBounds<K>) -> &mut Self {
        self.push_range(KeyspaceId(0), &range)
    }

    /// Removes every key of a range of a keyspace: see
    /// [`Keyspace::delete_range`](crate::Keyspace::delete_range).
    pub fn delete_range_in<K: AsRef<[u8]>>(
        &mut self,
        keyspace: &Keyspace,
        range: impl RangeBounds<K>,
    ) -> &mut Self {
        self.uses(keyspace.core());
        self.push_range(keyspace.core().id, &range)
    }

    fn push_range<K: AsRef<[u8]>>(
        &mut self,
        keyspace: KeyspaceId,
        range: &impl RangeBounds<K>,
    ) -> &mut Self {
        let lower = range.start_bound().map(AsRef::as_ref);
        let upper = range.end_bound().map(AsRef::as_ref);
        for bound in [lower, upper] {
            if let Bound::Included(key) | Bound::Excluded(key) = bound {
                self.refuse(check_sizes(key, b"", false));
            }
        }
        match KeySpan::of(lower, upper) {
            Some(span) => self.push(keyspace, Kind::DeleteRange, &span.start, &span.end, None),
            None => self,
        }
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
        self.expiries.clear();
        self.fixed.clear();
        self.merges_in_default = false;
        self.refused = None;
    }

    pub(super) fn uses(&mut self, core: &Arc<KeyspaceCore>) {
        if !self.keyspaces.iter().any(|known| Arc::ptr_eq(known, core)) {
            self.keyspaces.push(Arc::clone(core));
        }
    }

    /// Remembers the first error.
    fn refuse(&mut self, outcome: Result<()>) {
        if let (Err(error), None) = (outcome, &self.refused) {
            self.refused = Some(error);
        }
    }

    fn push_for_a_time(
        &mut self,
        keyspace: KeyspaceId,
        kind: Kind,
        key: &[u8],
        value: &[u8],
        ttl: Duration,
    ) -> &mut Self {
        match ttl_ms(ttl) {
            Ok(ttl_ms) => self.push(keyspace, kind, key, value, Some(ttl_ms)),
            Err(error) => {
                self.refuse(Err(error));
                self
            }
        }
    }

    /// Adds an operation that says itself when it expires, in milliseconds since the Unix epoch.
    pub(super) fn push_until(
        &mut self,
        keyspace: KeyspaceId,
        kind: Kind,
        key: &[u8],
        value: &[u8],
        expires_ms: u64,
    ) -> &mut Self {
        self.push(keyspace, kind.expiring(), key, value, Some(expires_ms))
    }

    /// Adds an operation; with a time to live, or if the kind expires, with when it does.
    pub(super) fn push(
        &mut self,
        keyspace: KeyspaceId,
        kind: Kind,
        key: &[u8],
        value: &[u8],
        ttl_ms: Option<u64>,
    ) -> &mut Self {
        if self.refused.is_some() {
            return self;
        }
        if let Err(error) = check_sizes(key, value, ttl_ms.is_some()) {
            self.refused = Some(error);
            return self;
        }
        let added = (key.len() as u64).saturating_add(value.len() as u64);
        if self.count > 0 && self.bytes().saturating_add(added) > MAX_BATCH_BYTES {
            let bytes = self.bytes().saturating_add(added);
            self.refused = Some(Error::BatchTooLarge { bytes, limit: MAX_BATCH_BYTES });
            return self;
        }
        let op = Op { keyspace, kind: kind.lasting(), key, value };
        match ttl_ms {
            // When it expires, which nothing will change.
            Some(expires_ms) if kind.expires() => {
                self.fixed.push(self.count);
                if expires_ms == u64::MAX {
                    encode_op(&mut self.ops, op);
                } else {
                    encode_expiring(&mut self.ops, op, expires_ms);
                }
            }
            None => encode_op(&mut self.ops, op),
            Some(ttl_ms) => self.expiries.push(encode_expiring(&mut self.ops, op, ttl_ms)),
        }
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

    /// What the batch could not know of the default keyspace: holds its operands against the merge
    /// operator, and gives what has no time to live the keyspace's.
    pub(super) fn settle_default(&mut self, core: &KeyspaceCore) -> Result<()> {
        let is_ours = |op: &Op<'_>| op.keyspace == core.id;
        if self.merges_in_default {
            for op in self.operations().map_while(std::result::Result::ok).filter(is_ours) {
                if op.kind.is_merge() {
                    core.check_operand(op.key, split_expiry(op.kind, op.value).1)?;
                }
            }
        }
        let Some(usual_ms) = core.usual_ttl_ms() else { return Ok(()) };
        let mut settled = WriteBatch::new();
        settled.ops.reserve(self.ops.len() + self.len() * EXPIRY_LEN);
        let mut fixed = self.fixed.iter().copied().peekable();
        for (at, op) in (0..).zip(self.operations().map_while(std::result::Result::ok)) {
            let Op { keyspace, kind, key, value } = op;
            let (ttl_ms, value) = split_expiry(kind, value);
            if fixed.next_if_eq(&at).is_some() {
                settled.push_until(keyspace, kind.lasting(), key, value, ttl_ms);
                continue;
            }
            let ttl_ms = match kind {
                Kind::PutUntil | Kind::MergeUntil => Some(ttl_ms),
                Kind::Put | Kind::Merge if is_ours(&op) => Some(usual_ms),
                _ => None,
            };
            settled.push(keyspace, kind.lasting(), key, value, ttl_ms);
        }
        settled.check()?;
        (self.ops, self.count, self.expiries) = (settled.ops, settled.count, settled.expiries);
        self.fixed = settled.fixed;
        Ok(())
    }

    /// Sets when what lives for a time expires.
    pub(super) fn settle_expiries(&mut self, now_ms: impl FnOnce() -> u64) -> Result<()> {
        if self.expiries.is_empty() {
            return Ok(());
        }
        let now_ms = now_ms();
        for at in self.expiries.drain(..) {
            let field = self.ops.get_mut(at..).and_then(|ops| ops.first_chunk_mut::<EXPIRY_LEN>());
            let Some(field) = field else { continue };
            let ttl_ms = u64::from_le_bytes(*field);
            let expiry = now_ms.checked_add(ttl_ms).filter(|expiry| *expiry != u64::MAX);
            let expiry = expiry.ok_or(Error::InvalidTtl {
                ttl_ms: u128::from(ttl_ms),
                reason: "reaches past the end of time: leave it out",
            })?;
            *field = expiry.to_le_bytes();
        }
        Ok(())
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
