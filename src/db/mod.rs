//! The database: open, recovery, writes, reads, background work, close.
//!
//! ```text
//! Db, Keyspace ── Handle ──┐  the last one dropped stops the threads
//! Snapshot, RangeIter ─────┴─ Inner: directory lock, writer, committer, published read state
//! ```
//!
//! Three locks order all changes, and are taken in this order: the *writer* (log and active
//! memtable: one commit group at a time), the *committer* (manifest and live segments: one edit at a
//! time), the *state* (what readers see is replaced). Readers take none of them: they load the
//! published [`ReadState`], and for a point read share the lock of one shard of the key map.
//!
//! Invariants: a write is in the log before it is in the memtable, and in the memtable before its
//! sequence number is published; a memtable leaves the read state in the same step in which its
//! segments enter it, and the key map knows these before; memtables are flushed oldest first. Everything public is `Send + Sync`.

mod background;
mod backup;
mod batch;
mod bulk;
mod changes;
mod commit;
mod copy;
mod event;
mod histogram;
mod ingest;
mod keyspace;
mod keyspace_core;
mod keyspace_options;
mod layout;
mod listener;
mod log_shelf;
mod maintenance;
mod new_run;
mod observe;
mod open;
mod options;
mod point;
#[cfg(feature = "metrics")]
mod publish;
mod queue;
mod read;
mod read_only;
mod refill;
mod repair;
mod repair_cursor;
mod repair_report;
mod snapshot;
mod snapshot_list;
mod spent;
mod stats;
mod syncer;
mod transact;
mod transaction;
mod transaction_commit;
mod transaction_range;
mod transaction_reads;
mod transaction_steps;
mod transaction_writes;
mod turns;
mod unfinished;
mod verify;
mod written;

pub use backup::{BackupInfo, BackupReport, Backups};
pub use batch::{MAX_BATCH_BYTES, WriteBatch};
pub use bulk::BulkLoader;
pub use changes::{Change, ChangeBatch, ChangeIter, ChangedKeyspace};
pub use event::{
    CompactionAction, CompactionInfo, CompactionReason, Event, EventListener, FlushInfo, LoadInfo,
    RecoveryInfo, StallCause,
};
pub use histogram::Histogram;
pub use keyspace::{DEFAULT_KEYSPACE, Keyspace, MAX_KEYSPACE_NAME};
pub use keyspace_options::KeyspaceOptions;
pub use layout::SegmentSummary;
pub use observe::{Progress, Task};
pub use options::{Background, Builder, Compaction, Durability, IterOptions};
pub use point::ReadStats;
pub use read_only::{ReadOnlyDb, ReadOnlyKeyspace};
pub use repair_report::{LostPlace, RepairReport, SavedKeyspace, Uncertainty};
pub use snapshot::Snapshot;
pub use stats::{Histograms, KeyMapStats, KeyspaceStats, LevelStats, Stats};
pub use transact::TransactionOptions;
pub use transaction::Transaction;
pub use transaction_range::TransactionRange;
pub use verify::{DamagedPlace, DatabaseReport, LogReport, SegmentReport, ValueSegmentReport};

use crate::compaction::Strategy;
use crate::deletes::RangeDeletes;
use crate::error::{Error, Result};
use crate::keymap::KeyMap;
use crate::memtable::{Marks, Memtable, SkipMemtable};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Arc, ArcSwap, Condvar, Mutex, Striped};
use crate::types::{KeyspaceId, LogId, SegmentId, SeqNo};
use crate::version::{LiveSegments, Manifest, ManifestState, Segment, SegmentHome, Tree, Version};
use crate::vfs::{VfsFile, VfsLock};
use background::BackgroundState;
use commit::Writer;
use histogram::Tally;
use keyspace_core::KeyspaceCore;
use listener::Events;
use log_shelf::LogShelf;
use options::Options;
use queue::CommitQueue;
use read::{ReadFrom, forward_reads};
use snapshot_list::{Moment, SnapshotList};
use std::collections::HashMap;
use std::ops::RangeBounds;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;
use syncer::{Position, Syncer};
use turns::Turns;

/// An open database. Cheap to clone, `Send + Sync`: clone it into every thread.
///
/// The methods that name no keyspace use the one called [`DEFAULT_KEYSPACE`]. Dropping the last
/// handle (of the database or of a keyspace) stops the background threads and keeps everything
/// acknowledged; what is only in memtables is replayed from the log at the next open.
#[derive(Clone, Debug)]
pub struct Db {
    default: Keyspace,
}

/// What the handles share. Dropping it stops the threads.
pub(crate) struct Handle {
    inner: Arc<Inner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Handle {
    fn stop(&self) {
        self.inner.background.lock().stopping = true;
        self.inner.work.notify_all();
        self.inner.progress.notify_all();
        // Taken first: a listener that closes the database while this waits is not to wait for it.
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a background thread panicked");
            }
        }
        self.inner.events.stop();
    }
}

/// A memtable, and what must be known to let go of its log.
pub(crate) struct MemSlot {
    table: Arc<dyn Memtable>,
    /// What the table has.
    marks: Arc<Marks>,
    /// The oldest log that has entries of this memtable or a newer one.
    first_log: LogId,
    /// Its newest entry; set when it is frozen.
    last_seqno: AtomicU64,
}

impl MemSlot {
    fn new(first_log: LogId) -> Arc<Self> {
        let table = SkipMemtable::default();
        let (marks, last_seqno) = (table.marks(), AtomicU64::new(0));
        Arc::new(MemSlot { table: Arc::new(table), marks, first_log, last_seqno })
    }
}

/// What readers see. Immutable; replaced as a whole.
pub(crate) struct ReadState {
    /// The memtable that takes writes.
    active: Arc<MemSlot>,
    /// Those that wait to be flushed, newest first.
    frozen: Vec<Arc<MemSlot>>,
    version: Arc<Version>,
    /// Whether there are range tombstones anywhere but in the active memtable.
    has_range_deletes: bool,
    /// The same for entries that expire.
    has_expiring: bool,
}

impl ReadState {
    fn new(active: Arc<MemSlot>, frozen: Vec<Arc<MemSlot>>, version: Arc<Version>) -> ReadState {
        let has_range_deletes = frozen.iter().any(|slot| slot.marks.has_range_deletes())
            || version.trees.values().any(|tree| !tree.deletes.is_empty());
        let has_expiring =
            version.has_expiring || frozen.iter().any(|slot| slot.marks.has_expiring());
        ReadState { active, frozen, version, has_range_deletes, has_expiring }
    }

    /// Whether anything expires that a reader sees who has asked for the published number before. Else
    /// nobody needs to look at the clock.
    #[inline]
    fn has_expiring(&self) -> bool {
        self.has_expiring || self.active.marks.has_expiring()
    }

    /// Whether there are range tombstones anywhere. Those that are not, no reader sees who has asked for
    /// the published number before.
    #[inline]
    fn has_range_deletes(&self) -> bool {
        self.has_range_deletes || self.active.marks.has_range_deletes()
    }

    /// The newest range tombstone that covers a key and is not after a snapshot.
    #[cold]
    fn range_delete(&self, tree: &Tree, key: &[u8], snapshot: SeqNo) -> Option<SeqNo> {
        let in_memory = |slot: &Arc<MemSlot>| slot.table.range_delete(tree.id, key, snapshot);
        let newest = self.memtables().filter_map(in_memory).max();
        newest.max(tree.deletes.newest(key, snapshot))
    }

    /// The range tombstones of a keyspace, by where they are.
    fn range_deletes(&self, tree: &Tree) -> Vec<Arc<RangeDeletes>> {
        if !self.has_range_deletes() {
            return Vec::new();
        }
        let in_memory = self.memtables().filter_map(|slot| slot.table.range_deletes(tree.id));
        let all = in_memory.chain([Arc::clone(&tree.deletes)]);
        all.filter(|deletes| !deletes.is_empty()).collect()
    }

    /// All memtables, newest first.
    fn memtables(&self) -> impl Iterator<Item = &Arc<MemSlot>> {
        std::iter::once(&self.active).chain(&self.frozen)
    }
}

/// The manifest and what it names.
struct Committer {
    manifest: Manifest,
    state: ManifestState,
    live: LiveSegments,
}

/// Numbers that are never used twice.
#[derive(Debug, Default)]
struct Ids {
    segment: AtomicU64,
    log: AtomicU64,
    run: AtomicU64,
}

impl Ids {
    fn next_segment(&self) -> SegmentId {
        SegmentId(self.segment.fetch_add(1, Ordering::Relaxed))
    }
}

/// The database itself. Lives until the last handle, snapshot and iterator is gone.
pub(crate) struct Inner {
    options: Options,
    home: SegmentHome,
    strategy: Box<dyn Strategy>,
    /// Tells the databases of one process apart.
    database: u64,
    /// What the keyspaces' hash seeds are made from.
    hash_seed: u64,
    /// Binds logs to this database.
    log_salt: u64,
    ids: Ids,
    queue: CommitQueue<WriteBatch, Result<Position>>,
    writer: Mutex<Writer>,
    /// The logs that change feeds can read.
    shelf: Arc<LogShelf>,
    sync: Syncer<Arc<dyn VfsFile>>,
    committer: Mutex<Committer>,
    /// Held while `state` is replaced.
    state_change: Mutex<()>,
    state: ArcSwap<ReadState>,
    /// Where keys are: every edit reaches it before readers get the state that knows of it.
    keymap: KeyMap<Segment>,
    /// What point reads did: see [`ReadStats`].
    reads: Striped<{ point::READ_COUNTERS }>,
    /// How long point reads take, if that is asked for.
    read_times: Option<Box<[Tally]>>,
    /// What a listener is to hear.
    events: Events,
    /// The last edit of the manifest.
    manifest_edit: AtomicU64,
    /// The newest sequence number that readers see.
    visible: AtomicU64,
    snapshots: SnapshotList<ReadState>,
    /// Of exclusive transactions.
    turns: Turns,
    keyspaces: Mutex<HashMap<String, Arc<KeyspaceCore>>>,
    default_core: Arc<KeyspaceCore>,
    background: Mutex<BackgroundState>,
    /// Of the search for what nobody sees any more: see `spent`.
    last_look: Mutex<spent::LastLook>,
    /// Segments that a job found damaged, and the damage: never picked again. A lock of its own,
    /// under which no other is taken.
    quarantined: Mutex<HashMap<SegmentId, Error>>,
    /// Something to do for the background threads.
    work: Condvar,
    /// A piece of background work ended.
    progress: Condvar,
    /// How far compaction is behind, 0 to 1000: see `background`.
    pressure: AtomicU32,
    /// Whether every write buffer but the active one waits to be flushed.
    last_buffer: AtomicBool,
    closed: AtomicBool,
    /// Whether the last flush failed.
    flush_failed: AtomicBool,
    /// Why writes are refused, once they are.
    poisoned: Mutex<Option<String>>,
    is_poisoned: AtomicBool,
    counters: stats::Counters,
    /// What `publish_metrics` has recorded of the histograms.
    #[cfg(feature = "metrics")]
    published: Mutex<Histograms>,
    /// What opening found and could deal with.
    recovery_notices: Vec<String>,
    /// Publishes the read state before the map knows the new segments: a mistake for tests to find.
    #[cfg(test)]
    publish_before_map: AtomicBool,
    /// Keeps other writers out; none if it is open for reading only. Last, so that it is released last.
    _lock: Option<Box<dyn VfsLock>>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("dir", &self.inner.home.dir).finish_non_exhaustive()
    }
}

impl Inner {
    /// Refuses writes from now on.
    fn poison(&self, error: &Error) {
        let mut reason = self.poisoned.lock();
        if reason.is_none() {
            tracing::error!(%error, "writes are refused from now on");
            *reason = Some(error.to_string());
            self.events.emit(|| Event::Poisoned { reason: error.to_string() });
        }
        self.is_poisoned.store(true, Ordering::Release);
    }

    /// Whether writes are taken.
    fn check_writable(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        if self.is_poisoned.load(Ordering::Acquire) {
            let reason = self.poisoned.lock().clone().unwrap_or_default();
            return Err(Error::Poisoned { reason });
        }
        Ok(())
    }

    /// Drops or rebuilds some shard of the key map.
    #[cfg(test)]
    fn disturb_key_map(&self, chance: u64) {
        let shard = (chance >> 8) as u8;
        if chance.is_multiple_of(2) {
            self.keymap.drop_shard(shard);
        } else {
            self.keymap.rebuild_shard(shard);
        }
    }

    /// Replaces what readers see.
    fn change_state(&self, change: impl FnOnce(&ReadState) -> ReadState) {
        let held = self.state_change.lock();
        let next = change(&self.state.load());
        self.state.store(Arc::new(next));
        self.note_pressure(&held);
    }

    fn register_snapshot(&self) -> Moment {
        let moment = self.snapshots.register(&self.visible, || self.home.env.clock.unix_ms());
        self.snapshots.hold(moment, || self.state.load_full());
        moment
    }

    fn release_snapshot(&self, moment: Moment) {
        self.snapshots.release(moment);
    }

    /// The snapshots, rising, and last the published number; and by when what has expired is seen by
    /// nobody.
    fn boundaries(&self) -> (Vec<SeqNo>, u64) {
        self.snapshots.boundaries(&self.visible, || self.home.env.clock.unix_ms())
    }

    /// The time by which entries expire, in milliseconds since the Unix epoch. It does not step back
    /// behind what a job or a snapshot went by: until the clock is there again, it stands.
    fn now_ms(&self) -> u64 {
        self.snapshots.time(self.home.env.clock.unix_ms())
    }
}

impl Db {
    /// Opens the database in a directory with default options, creating it if it is missing.
    ///
    /// # Errors
    ///
    /// See [`Builder::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Db> {
        Self::builder(path).open()
    }

    /// Options for opening the database in a directory.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder::new(path.as_ref())
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.default.handle.inner
    }

    /// Sets a key. See [`Keyspace::put`].
    ///
    /// # Errors
    ///
    /// See [`Keyspace::put`].
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.default.put(key, value)
    }

    /// Removes a key. See [`Keyspace::delete`].
    ///
    /// # Errors
    ///
    /// See [`Keyspace::put`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.default.delete(key)
    }

    /// Sets a key for a time. See [`Keyspace::put_with_ttl`].
    ///
    /// # Errors
    ///
    /// See [`Keyspace::put_with_ttl`].
    pub fn put_with_ttl(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> Result<()> {
        self.default.put_with_ttl(key, value, ttl)
    }

    /// Sets a key until a time, in milliseconds since the Unix epoch. See [`Keyspace::put_until`].
    ///
    /// # Errors
    ///
    /// See [`Keyspace::put_until`].
    pub fn put_until(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        expires_ms: u64,
    ) -> Result<()> {
        self.default.put_until(key, value, expires_ms)
    }

    /// Merges an operand into a key. See [`Keyspace::merge`].
    ///
    /// # Errors
    ///
    /// See [`Keyspace::merge`].
    pub fn merge(&self, key: impl AsRef<[u8]>, operand: impl AsRef<[u8]>) -> Result<()> {
        self.default.merge(key, operand)
    }

    /// Merges an operand into a key for a time. See [`Keyspace::merge_with_ttl`].
    ///
    /// # Errors
    ///
    /// See [`Keyspace::merge_with_ttl`].
    pub fn merge_with_ttl(
        &self,
        key: impl AsRef<[u8]>,
        operand: impl AsRef<[u8]>,
        ttl: Duration,
    ) -> Result<()> {
        self.default.merge_with_ttl(key, operand, ttl)
    }

    /// Removes every key of a range. See [`Keyspace::delete_range`].
    ///
    /// # Errors
    ///
    /// See [`Keyspace::delete_range`].
    pub fn delete_range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<()> {
        self.default.delete_range(range)
    }

    /// Removes every key of the default keyspace. See [`Keyspace::clear`].
    ///
    /// # Errors
    ///
    /// See [`Keyspace::clear`].
    pub fn clear(&self) -> Result<()> {
        self.default.clear()
    }

    /// About how many bytes a range takes on disk. See [`Keyspace::approximate_size`].
    ///
    /// # Errors
    ///
    /// See [`Keyspace::approximate_size`].
    pub fn approximate_size<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<u64> {
        self.default.approximate_size(range)
    }

    /// Compacts a range of the default keyspace. See [`Keyspace::compact_range`].
    ///
    /// # Errors
    ///
    /// See [`Keyspace::compact_range`].
    pub fn compact_range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<()> {
        self.default.compact_range(range)
    }

    /// Applies a batch, all or nothing, with the database's durability. An empty one does nothing.
    ///
    /// # Errors
    ///
    /// Those of [`Keyspace::put`], [`Error::BatchTooLarge`], and [`Error::WrongDatabase`] if a
    /// keyspace of another database was used. After any of them nothing of the batch was written,
    /// but for a failed `fsync`: see [`Keyspace::put`].
    pub fn write(&self, batch: WriteBatch) -> Result<()> {
        let inner = self.inner();
        inner.write(batch, inner.options.durability)
    }

    /// Applies a batch with a durability of its own.
    ///
    /// # Errors
    ///
    /// As for [`write`](Self::write).
    pub fn write_with(&self, batch: WriteBatch, durability: Durability) -> Result<()> {
        self.inner().write(batch, durability)
    }

    /// A consistent view of all keyspaces as of now. Costs a lock and no I/O.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self)
    }

    /// The keyspace of this name, created if it is missing. Creating one syncs the log and adds an
    /// edit to the manifest: it is durable when this returns.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKeyspaceName`] if the name is empty or longer than [`MAX_KEYSPACE_NAME`]
    /// bytes; [`Error::MergeOperator`] if it has a merge operator that was not given yet: see
    /// [`keyspace_with`](Self::keyspace_with); those of [`Keyspace::put`].
    pub fn keyspace(&self, name: &str) -> Result<Keyspace> {
        self.keyspace_with(name, &KeyspaceOptions::default())
    }

    /// The keyspace of this name with options, created if it is missing. Changing what an existing one
    /// has costs the same as creating it, and is durable when this returns.
    ///
    /// # Errors
    ///
    /// Those of [`keyspace`](Self::keyspace); [`Error::MergeOperator`] if the keyspace has another merge
    /// operator than the one given, or has one and none is given nor was before, in this process;
    /// [`Error::InvalidTtl`].
    pub fn keyspace_with(&self, name: &str, options: &KeyspaceOptions) -> Result<Keyspace> {
        let core = self.inner().open_keyspace(name, options)?;
        Ok(Keyspace { handle: Arc::clone(&self.default.handle), core })
    }

    /// The names of all keyspaces, in order.
    #[must_use]
    pub fn keyspaces(&self) -> Vec<String> {
        let mut names: Vec<String> = self.inner().keyspaces.lock().keys().cloned().collect();
        names.sort();
        names
    }

    /// Drops a keyspace with everything in it; handles to it give [`Error::KeyspaceDropped`] from
    /// then on. Its files go when the last reader lets go of them. Durable when this returns.
    ///
    /// # Errors
    ///
    /// [`Error::KeyspaceNotFound`]; [`Error::InvalidKeyspaceName`] for the default one, which
    /// cannot be dropped; those of [`Keyspace::put`].
    pub fn drop_keyspace(&self, name: &str) -> Result<()> {
        self.inner().drop_keyspace(name)
    }

    /// Makes every write acknowledged so far durable. Costs one `fsync`, shared with concurrent
    /// callers, and one small record in the log that says so; just after a log was begun, up to two
    /// `fsync` more, for which writers wait.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the `fsync` failed: writes are then refused with [`Error::Poisoned`], reads
    /// go on, and opening again recovers.
    pub fn sync(&self) -> Result<()> {
        let inner = self.inner();
        let _after = inner.events.after();
        inner.check_writable()?;
        inner.sync_all()
    }

    /// Writes the memtables out into segments and waits for it.
    ///
    /// # Errors
    ///
    /// Those of [`Keyspace::put`].
    pub fn flush(&self) -> Result<()> {
        let _after = self.inner().events.after();
        self.inner().flush()
    }

    /// Waits until no flush or compaction is due. With [`Background::Manual`] it does the work
    /// itself. Does not flush the active memtable.
    ///
    /// # Errors
    ///
    /// The error of a flush or compaction that failed.
    pub fn wait_idle(&self) -> Result<()> {
        let _after = self.inner().events.after();
        self.inner().wait_idle()
    }

    /// Does one piece of background work, if any is due, on the caller's thread: one flush, or else
    /// one compaction. `false`: nothing was due. For [`Background::Manual`].
    ///
    /// # Errors
    ///
    /// The error of the flush or compaction. What it was to replace is still there.
    pub fn step(&self) -> Result<bool> {
        let _after = self.inner().events.after();
        self.inner().step()
    }

    /// Brings the key map into memory and waits for it, as far as its budget allows. Opening does not
    /// wait for it: it fills in the background, or with [`Background::Manual`] step by step. Costs
    /// one pass over the hash runs, about 5.3 bytes and some tens of nanoseconds a key.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn fill_key_map(&self) -> Result<()> {
        let inner = self.inner();
        let _after = inner.events.after();
        let mut most = 0;
        while inner.fill_map() {
            inner.report_key_map(&mut most);
            if inner.closed.load(Ordering::Acquire) {
                return Err(Error::Closed);
            }
        }
        inner.report_key_map(&mut most);
        Ok(())
    }

    /// Holds the key map against the segments. Reads all hash runs.
    #[doc(hidden)]
    pub fn check_key_map(&self) -> std::result::Result<(), String> {
        self.inner().keymap.check()
    }

    /// Sizes, shapes and counts, as of now. Costs a walk over the list of segments.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner().stats()
    }

    /// Reads every byte of the manifest, of the logs that are still needed and of every live segment,
    /// and checks it. `progress` is called with the bytes done and the bytes in all. Damage is reported,
    /// not returned as an error; reads and writes go on meanwhile: what they add later is not looked at.
    ///
    /// Costs a read of all files, and memory for the longest record of a log and for 8 bytes a key of
    /// the largest segment. Writers wait while the logs are opened. [`Builder::verify`] does the same
    /// for a database that is not open, or cannot be opened.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`]; [`Error::Io`] if a file cannot be opened; [`Error::UnsupportedFormat`].
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<DatabaseReport> {
        self.inner().verify(progress)
    }

    /// Closes the database: syncs the log, stops the threads, refuses every further call on any
    /// handle with [`Error::Closed`]. The directory is unlocked when the last handle, snapshot and
    /// iterator is gone. Dropping all handles does the same, but for the sync.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the sync failed; the database is closed all the same.
    pub fn close(self) -> Result<()> {
        let inner = self.inner();
        let synced = inner.check_writable().and_then(|()| inner.close_log());
        inner.closed.store(true, Ordering::Release);
        self.default.handle.stop();
        synced
    }

    fn read_from(&self) -> ReadFrom<'_> {
        self.default.read_from()
    }

    forward_reads!();
}

/// The id of the keyspace that every database has.
const DEFAULT_ID: KeyspaceId = KeyspaceId(0);

#[cfg(test)]
mod tests;

#[cfg(test)]
mod delete_range_tests;
#[cfg(test)]
mod filter_tests;
#[cfg(test)]
mod found_tests;
#[cfg(test)]
mod hidden_tests;
#[cfg(test)]
mod ingest_tests;
#[cfg(test)]
mod known_bug_tests;
#[cfg(test)]
mod known_version_tests;
#[cfg(test)]
mod load_tests;
#[cfg(test)]
mod merge_tests;
#[cfg(test)]
mod moment_tests;
#[cfg(test)]
mod point_tests;
#[cfg(test)]
mod range_tests;
#[cfg(test)]
mod repair_tests;
#[cfg(test)]
mod spent_tests;
#[cfg(test)]
mod strategy_tests;
#[cfg(test)]
mod stress_tests;
#[cfg(test)]
mod values_copy_tests;
#[cfg(test)]
mod values_job_tests;
#[cfg(test)]
mod values_tests;
#[cfg(test)]
mod walk_tests;
