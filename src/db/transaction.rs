//! Transactions: reads and writes, in any keyspaces, that are one step for everybody else.
//!
//! ```text
//! begin ── reads at a snapshot, under the own writes; what is read is noted ── commit
//!   │                                                                            │
//!   └ from here on commits note what they write to ──────── does any of it meet what was read?
//! ```
//!
//! Optimistic: nothing is locked meanwhile. At its commit, under the writer's lock, a transaction
//! is held against what was written since it began (see `written`); if nothing that it read is
//! among that, its reads would give the same now, so it is as if all of it happened now, and its
//! writes go the way of any batch. Else it conflicts, and nothing is written. One that wrote
//! nothing is as if it happened when it began, and one that read nothing is a batch: neither can
//! conflict.
//!
//! Invariants: a transaction's snapshot is the newest number when it is entered into the writer's
//! record, both under the writer's lock; a read is noted before it is made; what a transaction
//! wrote is nowhere but in it until its commit. Called by users. `transaction_commit` has the
//! commit, `transaction_range` the ranges.

use super::Handle;
use super::batch::ttl_ms;
use super::keyspace::Keyspace;
use super::keyspace_core::KeyspaceCore;
use super::options::Durability;
use super::read::prefix_bounds;
use super::snapshot_list::Moment;
use super::transaction_range::TransactionRange;
use super::transaction_steps::{Keyspaces, bounds_of, slice_of};
use super::written::ChunkNo;
use crate::error::Result;
use crate::slice::Value;
use crate::sync::{Arc, Mutex};
use crate::types::SeqNo;
use std::ops::RangeBounds;
use std::time::Duration;

/// Reads and writes that take effect together or not at all, as if nobody else had been there. Made
/// by [`Db::begin`](crate::Db::begin); [`Db::transact`](crate::Db::transact) repeats one until it
/// succeeds.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let db = ashlardb::Db::open(dir.path().join("db"))?;
/// db.put("alice", "70")?;
/// let tx = db.begin();
/// assert_eq!(tx.get("alice")?.unwrap(), "70");
/// tx.put("alice", "60")?;
/// tx.put("bob", "10")?;
/// assert_eq!(tx.get("bob")?.unwrap(), "10"); // its own writes are there,
/// assert!(db.get("bob")?.is_none()); // for nobody else
/// tx.commit()?;
/// assert_eq!(db.get("bob")?.unwrap(), "10");
///
/// let tx = db.begin();
/// let balance = tx.get("alice")?.unwrap();
/// db.put("alice", "0")?; // somebody else
/// tx.put("bob", balance)?;
/// assert!(matches!(tx.commit(), Err(ashlardb::Error::Conflict)));
/// # Ok(())
/// # }
/// ```
///
/// # Isolation
///
/// Transactions are strictly serializable, among each other and with every other write: those that
/// commit are as if they had been executed one after the other, each at some moment between its
/// begin and the return of its commit. A transaction reads the database as of its begin, and on top
/// of that what it has written itself. Its commit gives [`Error::Conflict`](crate::Error::Conflict)
/// if anything that it read was written since by others, or by the same thread but not through it:
/// a key that it looked up, whether there or not; a range as far as an iterator walked; a keyspace
/// that was cleared. That includes writes that changed nothing. What is only written conflicts with
/// nothing: of two puts the later one counts, as always. So `put`, `delete`, `merge` and
/// `delete_range` alone never conflict, and counting up by [`merge`](Self::merge) conflicts less
/// than by `get` and `put`.
///
/// What expires, expires for a transaction by the time of its begin, like for a
/// [`Snapshot`](crate::Snapshot): that time passes is not a write, and nothing conflicts with it.
/// So a transaction may commit that saw what has expired since. Each is serializable with its own
/// time; only these times need not rise from one to the next. What it writes for a time lives from
/// its commit on. Likewise, what [`Compaction::Fifo`](crate::Compaction::Fifo) drops is no write.
///
/// # Cost
///
/// Begin and end each take, for a moment, the lock under which writes are committed; no I/O. While
/// transactions are open every write notes its keys for them, within
/// [`transaction_bytes`](crate::Builder::transaction_bytes). A transaction keeps in memory what it
/// writes (its commit a second time, as a batch), and the keys that it looked up; of ranges only
/// the ends. A commit costs a search for each key that others have written since the begin, and
/// what a batch costs. Like a snapshot, as which `stats` counts it, it keeps old versions on disk
/// while it is open.
///
/// `Send + Sync`; all methods may be called while an iterator is alive. Dropping it rolls it back.
/// It counts as a handle to the database.
pub struct Transaction {
    pub(super) handle: Arc<Handle>,
    pub(super) default: Arc<KeyspaceCore>,
    pub(super) moment: Moment,
    /// What was written from there on it does not see.
    pub(super) start: ChunkNo,
    /// It is in the writer's record.
    pub(super) is_recorded: bool,
    has_turn: bool,
    pub(super) keyspaces: Mutex<Keyspaces>,
}

impl std::fmt::Debug for Transaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transaction").field("seqno", &self.seqno()).finish_non_exhaustive()
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let inner = &self.handle.inner;
        if self.is_recorded {
            inner.writer.lock().written.release(self.start);
        }
        inner.release_snapshot(self.moment);
        if self.has_turn {
            inner.turns.pass();
        }
    }
}

impl Transaction {
    pub(super) fn begin(handle: &Arc<Handle>, exclusive: bool) -> Self {
        let inner = &handle.inner;
        if exclusive {
            // First: what the one before wrote must be seen.
            inner.turns.take();
        }
        let mut writer = inner.writer.lock();
        let start = writer.written.begin();
        let moment = inner.register_snapshot();
        drop(writer);
        Transaction {
            handle: Arc::clone(handle),
            default: Arc::clone(&inner.default_core),
            moment,
            start,
            is_recorded: true,
            has_turn: exclusive,
            keyspaces: Mutex::default(),
        }
    }

    /// The sequence number up to which it sees what others wrote.
    #[must_use]
    pub fn seqno(&self) -> SeqNo {
        self.moment.seqno
    }

    /// The value of a key of the default keyspace, or `None` if it is not there. Counts as a read
    /// of the key, unless the transaction itself has put or deleted it. Costs as
    /// [`Db::get`](crate::Db::get).
    ///
    /// # Errors
    ///
    /// Those of [`Db::get`](crate::Db::get); never [`Error::Conflict`](crate::Error::Conflict).
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.look_up(&self.default, key.as_ref())
    }

    /// The same for a key of a keyspace.
    ///
    /// # Errors
    ///
    /// Those of [`get`](Self::get); [`Error::WrongDatabase`](crate::Error::WrongDatabase).
    pub fn get_in(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        self.look_up(self.core(keyspace)?, key.as_ref())
    }

    /// The entries of a range of the default keyspace, in order, from either end, as of now. Counts
    /// as a read as far as it is walked: see [`TransactionRange`]. A reversed range is empty.
    /// Errors come as items.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let db = ashlardb::Db::open(dir.path().join("db"))?;
    /// db.put("job 1", "")?;
    /// db.put("job 2", "")?;
    /// let tx = db.begin();
    /// for entry in tx.get_range("job".."k") {
    ///     tx.delete(entry?.0)?;
    /// }
    /// db.put("job 3", "")?; // somebody else
    /// assert!(matches!(tx.commit(), Err(ashlardb::Error::Conflict)));
    /// # Ok(())
    /// # }
    /// ```
    pub fn get_range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> TransactionRange<'_> {
        self.range(&self.default, bounds_of(&range))
    }

    /// The same for a range of a keyspace.
    ///
    /// # Errors
    ///
    /// [`Error::WrongDatabase`](crate::Error::WrongDatabase); all others come as items.
    pub fn get_range_in<K: AsRef<[u8]>>(
        &self,
        keyspace: &Keyspace,
        range: impl RangeBounds<K>,
    ) -> Result<TransactionRange<'_>> {
        Ok(self.range(self.core(keyspace)?, bounds_of(&range)))
    }

    /// The entries of the default keyspace whose keys start with `prefix`, as
    /// [`get_range`](Self::get_range).
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> TransactionRange<'_> {
        let (lower, upper) = prefix_bounds(prefix.as_ref());
        self.range(&self.default, (slice_of(&lower), slice_of(&upper)))
    }

    /// The same in a keyspace.
    ///
    /// # Errors
    ///
    /// As for [`get_range_in`](Self::get_range_in).
    pub fn prefix_in(
        &self,
        keyspace: &Keyspace,
        prefix: impl AsRef<[u8]>,
    ) -> Result<TransactionRange<'_>> {
        let (lower, upper) = prefix_bounds(prefix.as_ref());
        Ok(self.range(self.core(keyspace)?, (slice_of(&lower), slice_of(&upper))))
    }

    /// Sets a key of the default keyspace. Nothing but memory is touched before the commit.
    ///
    /// # Errors
    ///
    /// [`Error::KeyTooLong`](crate::Error::KeyTooLong),
    /// [`Error::ValueTooLong`](crate::Error::ValueTooLong),
    /// [`Error::KeyspaceDropped`](crate::Error::KeyspaceDropped).
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.set(&self.default, key.as_ref(), value.as_ref(), self.default.usual_ttl_ms())
    }

    /// Sets a key of a keyspace.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put); [`Error::WrongDatabase`](crate::Error::WrongDatabase).
    pub fn put_in(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<()> {
        let core = self.core(keyspace)?;
        self.set(core, key.as_ref(), value.as_ref(), core.usual_ttl_ms())
    }

    /// Sets a key of the default keyspace for a time: see
    /// [`Db::put_with_ttl`](crate::Db::put_with_ttl). The time runs from the commit.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put); [`Error::InvalidTtl`](crate::Error::InvalidTtl).
    pub fn put_with_ttl(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> Result<()> {
        self.set(&self.default, key.as_ref(), value.as_ref(), Some(ttl_ms(ttl)?))
    }

    /// Sets a key of a keyspace for a time, which runs from the commit.
    ///
    /// # Errors
    ///
    /// Those of [`put_with_ttl`](Self::put_with_ttl);
    /// [`Error::WrongDatabase`](crate::Error::WrongDatabase).
    pub fn put_in_with_ttl(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> Result<()> {
        self.set(self.core(keyspace)?, key.as_ref(), value.as_ref(), Some(ttl_ms(ttl)?))
    }

    /// Merges an operand into a key of the default keyspace: see [`Db::merge`](crate::Db::merge).
    /// That reads nothing, so it conflicts with nothing; to [`get`](Self::get) the key does.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put); [`Error::MergeOperator`](crate::Error::MergeOperator),
    /// [`Error::MergeFailed`](crate::Error::MergeFailed).
    pub fn merge(&self, key: impl AsRef<[u8]>, operand: impl AsRef<[u8]>) -> Result<()> {
        let usual = self.default.usual_ttl_ms();
        self.merge_into(&self.default, key.as_ref(), operand.as_ref(), usual)
    }

    /// Merges an operand into a key of a keyspace.
    ///
    /// # Errors
    ///
    /// Those of [`merge`](Self::merge); [`Error::WrongDatabase`](crate::Error::WrongDatabase).
    pub fn merge_in(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        operand: impl AsRef<[u8]>,
    ) -> Result<()> {
        let core = self.core(keyspace)?;
        self.merge_into(core, key.as_ref(), operand.as_ref(), core.usual_ttl_ms())
    }

    /// Merges an operand into a key of the default keyspace for a time, which runs from the commit:
    /// see [`Db::merge_with_ttl`](crate::Db::merge_with_ttl).
    ///
    /// # Errors
    ///
    /// Those of [`merge`](Self::merge); [`Error::InvalidTtl`](crate::Error::InvalidTtl).
    pub fn merge_with_ttl(
        &self,
        key: impl AsRef<[u8]>,
        operand: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> Result<()> {
        self.merge_into(&self.default, key.as_ref(), operand.as_ref(), Some(ttl_ms(ttl)?))
    }

    /// Merges an operand into a key of a keyspace for a time, which runs from the commit.
    ///
    /// # Errors
    ///
    /// Those of [`merge_with_ttl`](Self::merge_with_ttl);
    /// [`Error::WrongDatabase`](crate::Error::WrongDatabase).
    pub fn merge_in_with_ttl(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        operand: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> Result<()> {
        let core = self.core(keyspace)?;
        self.merge_into(core, key.as_ref(), operand.as_ref(), Some(ttl_ms(ttl)?))
    }

    /// Removes a key of the default keyspace, if it is there.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put).
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.remove(&self.default, key.as_ref())
    }

    /// Removes a key of a keyspace, if it is there.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put); [`Error::WrongDatabase`](crate::Error::WrongDatabase).
    pub fn delete_in(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<()> {
        self.remove(self.core(keyspace)?, key.as_ref())
    }

    /// Removes every key of a range of the default keyspace: see
    /// [`Db::delete_range`](crate::Db::delete_range). With the commit, also keys that others have
    /// put there since the begin.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put).
    pub fn delete_range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<()> {
        self.remove_range(&self.default, bounds_of(&range))
    }

    /// Removes every key of a range of a keyspace.
    ///
    /// # Errors
    ///
    /// Those of [`delete_range`](Self::delete_range);
    /// [`Error::WrongDatabase`](crate::Error::WrongDatabase).
    pub fn delete_range_in<K: AsRef<[u8]>>(
        &self,
        keyspace: &Keyspace,
        range: impl RangeBounds<K>,
    ) -> Result<()> {
        self.remove_range(self.core(keyspace)?, bounds_of(&range))
    }

    /// Commits with the database's durability. See [`commit_with`](Self::commit_with).
    ///
    /// Whatever comes of it, the transaction is used up: reading or writing with it afterwards does not
    /// compile.
    ///
    /// ```compile_fail,E0382
    /// fn commit_and_go_on(tx: ashlardb::Transaction) -> ashlardb::Result<()> {
    ///     tx.commit()?;
    ///     tx.put("apple", "red")
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`commit_with`](Self::commit_with).
    pub fn commit(self) -> Result<()> {
        let durability = self.handle.inner.options.durability;
        self.commit_with(durability)
    }

    /// Makes what was written visible, all at once and as durable as asked, if nothing that was
    /// read was written by others since the begin. Waits as any write does while background work is
    /// behind.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`](crate::Error::Conflict), also if others wrote more meanwhile than
    /// [`transaction_bytes`](crate::Builder::transaction_bytes) can tell: begin anew;
    /// [`Error::KeyspaceDropped`](crate::Error::KeyspaceDropped) if a keyspace that was read or
    /// written is gone; [`Error::BatchTooLarge`](crate::Error::BatchTooLarge); those of
    /// [`Db::put`](crate::Db::put). After any of them nothing was written, but for a failed
    /// `fsync`: see there. A transaction that wrote nothing succeeds while the database is open;
    /// with [`Durability::Sync`], if what was written before by others can be synced.
    pub fn commit_with(mut self, durability: Durability) -> Result<()> {
        let handle = Arc::clone(&self.handle);
        let position = handle.inner.commit_transaction(&mut self, durability)?;
        // What others wait for: its turn, and old versions. What it wrote is visible.
        drop(self);
        handle.inner.await_durable(position, durability)
    }

    /// Forgets everything, as dropping it does.
    pub fn rollback(self) {}
}

#[cfg(test)]
#[path = "transaction_tests.rs"]
mod tests;
