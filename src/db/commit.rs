//! The write path: groups of batches into the log, then into the memtable, then published.
//!
//! A writer that finds nobody else commits its batch at once, under the writer's lock and no other:
//! one operation is encoded straight into the log's buffer. Else writers queue up. The one in front
//! leads: it takes what waits behind it, appends all of it to the
//! log as one record, inserts it, publishes it and hands the lead on. Those that asked for
//! durability then wait for one `fsync` that covers them all, while the next group is already being
//! appended (Helland, Sammer, Lyon, Carr, Garrett, Reuter, "Group Commit Timers and High Volume
//! Transaction Systems", HPTS 1987, without the timers).

use super::batch::{WriteBatch, check_sizes};
use super::event::{Event, StallCause};
use super::keyspace_core::KeyspaceCore;
use super::options::{Background, Durability};
use super::queue::Commits;
use super::syncer::Position;
use super::written::Written;
use super::{DEFAULT_ID, Inner, MemSlot, ReadState};
use crate::coding::put_varint;
use crate::error::{Error, Result};
use crate::hash::{key_hash, keyspace_seed};
use crate::sync::atomic::Ordering;
use crate::sync::{Arc, MutexGuard};
use crate::types::{Kind, LogId, SeqNo};
use crate::vfs::VfsFile;
use crate::wal::{LOG_HEADER_LEN, LogWriter, Op, RECORD_HEADER_LEN, encode_op, encoded_len};
use std::time::Duration;

/// How many operations of a batch ahead of its insert the memtable is told of a key.
const AHEAD: usize = 8;

/// The log that takes writes and the memtable that they go to.
pub(super) struct Writer {
    pub(super) log: LogWriter,
    pub(super) active: Arc<MemSlot>,
    /// For the transactions that are open.
    pub(super) written: Written,
}

impl Commits<WriteBatch> for Inner {
    type Outcome = Result<Position>;
    type Entered<'a> = MutexGuard<'a, Writer>;

    fn bytes(batch: &WriteBatch) -> u64 {
        batch.bytes()
    }

    fn wait_for_room(&self, own: &WriteBatch) -> std::result::Result<(), Self::Outcome> {
        self.wait_for_room_of(own.bytes()).map_err(Err)
    }

    fn enter(&self) -> Option<MutexGuard<'_, Writer>> {
        let writer = self.writer.lock();
        let is_manual = matches!(self.options.background, Background::Manual);
        (is_manual || !self.is_full()).then_some(writer)
    }

    /// Appends, inserts and publishes; an outcome for each batch.
    fn commit_group(
        &self,
        mut writer: MutexGuard<'_, Writer>,
        group: &[WriteBatch],
    ) -> Vec<Self::Outcome> {
        // A keyspace is dropped under the writer's lock, so this holds until the group is done.
        let refused: Vec<Option<Error>> =
            group.iter().map(|batch| batch.check_live().err()).collect();
        let accepted = || group.iter().zip(&refused).filter(|(_, r)| r.is_none()).map(|(b, _)| b);
        let outcome = if accepted().next().is_none() {
            Err(Error::Closed)
        } else {
            self.commit_batches(&mut writer, accepted())
        };
        refused.into_iter().map(|r| r.map_or_else(|| outcome.clone(), Err)).collect()
    }
}

impl Inner {
    /// Commits a batch; returns when it is visible and as durable as asked.
    pub(super) fn write(&self, batch: WriteBatch, durability: Durability) -> Result<()> {
        let position = self.write_visibly(batch, durability)?;
        self.await_durable(position, durability)
    }

    /// Commits a batch; returns when it is visible, with what it must wait for to be durable.
    pub(super) fn write_visibly(
        &self,
        mut batch: WriteBatch,
        durability: Durability,
    ) -> Result<Position> {
        self.check_batch(&batch)?;
        if batch.is_empty() {
            return Ok(self.sync.appended());
        }
        self.settle(&mut batch, durability)?;
        match self.enter_alone(batch.bytes()) {
            Some(mut writer) => {
                batch.check_live()?;
                self.commit_batches(&mut writer, std::iter::once(&batch))
            }
            None => self.queue.commit(batch, self),
        }
    }

    /// Waits until everything before `position` is as durable as asked.
    pub(super) fn await_durable(&self, position: Position, durability: Durability) -> Result<()> {
        match durability {
            Durability::Buffered => Ok(()),
            Durability::Sync => self.sync_to(position),
        }
    }

    /// Whether a batch, and at this moment any, may be written.
    pub(super) fn check_batch(&self, batch: &WriteBatch) -> Result<()> {
        batch.check()?;
        if batch.keyspaces.iter().any(|core| core.database != self.database) {
            return Err(Error::WrongDatabase);
        }
        self.check_writable()
    }

    /// Makes a batch ready to be committed.
    pub(super) fn settle(&self, batch: &mut WriteBatch, durability: Durability) -> Result<()> {
        self.check_flushes()?;
        batch.settle_default(&self.default_core)?;
        batch.settle_expiries(|| self.now_ms())?;
        batch.hash_keys(self.hash_seed);
        batch.durability = durability;
        Ok(())
    }

    /// The writer's lock, if nobody else commits and background work demands no wait.
    #[inline]
    pub(super) fn enter_alone(&self, bytes: u64) -> Option<MutexGuard<'_, Writer>> {
        self.queue.alone(|| self.writer.try_lock().filter(|_| self.has_room(bytes)))
    }

    /// Commits one operation as a batch of its own.
    pub(super) fn write_one(
        &self,
        core: &Arc<KeyspaceCore>,
        kind: Kind,
        key: &[u8],
        value: &[u8],
    ) -> Result<()> {
        if let Some(ttl_ms) = core.usual_ttl_ms()
            && kind != Kind::Delete
        {
            return self.write_for_a_time(core, kind, key, value, ttl_ms);
        }
        check_sizes(key, value, false)?;
        let op = Op { keyspace: core.id, kind, key, value };
        let hash = key_hash(key, core.hash_seed);
        if !self.flush_failed.load(Ordering::Acquire)
            && let Some(mut writer) = self.enter_alone(encoded_len(&op) as u64)
        {
            let position = self.commit_op(&mut writer, core, op, hash)?;
            drop(writer);
            return match self.options.durability {
                Durability::Buffered => Ok(()),
                Durability::Sync => self.sync_to(position),
            };
        }
        let mut batch = WriteBatch::new();
        // Exact enough that the value is not copied twice.
        batch.ops.reserve_exact(encoded_len(&op));
        if core.id != DEFAULT_ID {
            batch.uses(core);
        }
        batch.push(core.id, kind, key, value, None);
        self.write(batch, self.options.durability)
    }

    /// Commits one operation that expires, as a batch of its own.
    pub(super) fn write_for_a_time(
        &self,
        core: &Arc<KeyspaceCore>,
        kind: Kind,
        key: &[u8],
        value: &[u8],
        ttl_ms: u64,
    ) -> Result<()> {
        let mut batch = WriteBatch::new();
        batch.uses(core);
        batch.push(core.id, kind, key, value, Some(ttl_ms));
        self.write(batch, self.options.durability)
    }

    /// Commits one operation as a batch of its own.
    fn commit_op(
        &self,
        writer: &mut Writer,
        core: &KeyspaceCore,
        op: Op<'_>,
        hash: u64,
    ) -> Result<Position> {
        self.prepare(writer)?;
        core.check_live()?;
        // While the log is written.
        writer.active.table.prefetch(hash);
        let payload = writer.log.payload();
        put_varint(payload, 1);
        encode_op(payload, op);
        let seqno = self.append(writer, 1, self.options.durability)?;
        writer.written.note(&op);
        writer.active.table.insert(op.keyspace, op.key, hash, seqno, op.kind, op.value);
        Ok(self.publish(writer))
    }

    pub(super) fn commit_batches<'a>(
        &self,
        writer: &mut Writer,
        group: impl Iterator<Item = &'a WriteBatch> + Clone,
    ) -> Result<Position> {
        self.prepare(writer)?;
        let payload = writer.log.payload();
        let (mut count, mut durability) = (0, Durability::Buffered);
        for batch in group.clone() {
            if batch.durability == Durability::Sync {
                durability = Durability::Sync;
            }
            put_varint(payload, batch.count);
            payload.extend_from_slice(&batch.ops);
            count += batch.count;
        }
        let first = self.append(writer, count, durability)?;
        let sizes = group.clone().map(|batch| batch.count);
        let mut seqno = first;
        for batch in group {
            for (at, op) in batch.operations().enumerate() {
                if let Some(coming) = batch.hashes.get(at + AHEAD) {
                    writer.active.table.prefetch(*coming);
                }
                // The batch encoded these bytes itself, so this cannot fail; if it did, what is
                // logged and what is in memory would differ.
                let op = op.map_err(|malformed| {
                    let error = malformed.at(&self.home.dir, 0);
                    self.poison(&error);
                    error
                })?;
                let hash = batch.hashes.get(at).copied();
                let hash = hash.unwrap_or_else(|| {
                    key_hash(op.key, keyspace_seed(self.hash_seed, op.keyspace))
                });
                writer.written.note(&op);
                writer.active.table.insert(op.keyspace, op.key, hash, seqno, op.kind, op.value);
                seqno.0 += 1;
            }
        }
        debug_assert_eq!(seqno.0, first.0 + count);
        sizes.for_each(|operations| self.counters.batches.record(operations));
        Ok(self.publish(writer))
    }

    /// Before a group: begins another log and memtable if that is due, and sees to it that the log
    /// says what is durable.
    fn prepare(&self, writer: &mut Writer) -> Result<()> {
        self.check_writable()?;
        let full = writer.active.table.allocated_bytes() >= self.options.write_buffer_bytes;
        if writer.log.must_rotate() || full {
            self.rotate(writer)?;
        }
        writer.log.mark_durable(self.sync.durable_in_current());
        let edit = self.manifest_edit.load(Ordering::Acquire);
        if writer.log.witnessed() < edit { self.begin_group(writer, edit) } else { Ok(()) }
    }

    /// Before the first group of a log, and after an edit of the manifest.
    #[cold]
    fn begin_group(&self, writer: &mut Writer, edit: u64) -> Result<()> {
        writer.log.append_witness(edit)?;
        self.tell_keyspaces(writer)
    }

    /// Appends the group whose operations were put into the log's payload. `durability` says whether
    /// somebody is about to sync it.
    fn append(&self, writer: &mut Writer, count: u64, durability: Durability) -> Result<SeqNo> {
        let first = writer.log.next_seqno();
        let start = writer.log.end();
        writer.log.append_payload(first, count)?;
        self.sync.note_appended(writer.log.end());
        self.note_mentioned(&writer.log);
        let record = writer.log.end() - start;
        self.counters.written(count, record - RECORD_HEADER_LEN as u64);
        if durability == Durability::Sync {
            writer.log.write_ahead();
        }
        Ok(first)
    }

    /// Shows readers what was appended and inserted.
    fn publish(&self, writer: &Writer) -> Position {
        self.visible.store(writer.log.last_seqno().0, Ordering::Release);
        (writer.log.id(), writer.log.end())
    }

    /// Freezes the active memtable and begins another, with a log of its own.
    pub(super) fn rotate(&self, writer: &mut Writer) -> Result<()> {
        let id = LogId(self.ids.log.fetch_add(1, Ordering::Relaxed));
        let predecessor = Some((writer.log.id(), writer.log.end()));
        let (env, dir) = (&self.home.env, &self.home.dir);
        let log =
            LogWriter::create(env, dir, self.log_salt, id, predecessor, writer.log.last_seqno());
        let log = log.inspect_err(|error| {
            // A trace of the new log may be left, which says that the old one ends here.
            if matches!(error, Error::Poisoned { .. }) {
                self.poison(error);
            }
        })?;
        // One without entries, left when an append failed, needs no flush; but its logs may have
        // numbers that nothing was written under, and stay until what comes next is flushed.
        let is_empty = writer.active.table.entries() == 0;
        let slot = MemSlot::new(if is_empty { writer.active.first_log } else { id });
        self.shelf.begin(id, writer.log.last_seqno(), writer.log.end());
        self.sync.begin_log(log.file(), (id, log.end()));
        writer.active.last_seqno.store(writer.log.last_seqno().0, Ordering::Release);
        writer.log.cut_ahead();
        writer.log = log;
        writer.active = Arc::clone(&slot);
        self.change_state(|state| {
            let mut frozen = state.frozen.clone();
            if !is_empty {
                frozen.insert(0, Arc::clone(&state.active));
            }
            ReadState::new(slot, frozen, Arc::clone(&state.version))
        });
        self.announce_work();
        Ok(())
    }

    /// Makes everything appended so far durable, as [`Inner::sync_to`] does.
    pub(super) fn sync_all(&self) -> Result<()> {
        self.sync_to(self.sync.appended())
    }

    /// Returns once everything before `position` is durable, and the log says so: damage to it is
    /// an error at the next open then, not a torn tail. Not for holders of the writer's lock.
    fn sync_to(&self, position: Position) -> Result<()> {
        let _after = self.events.after();
        let gather = |is_complete: &dyn Fn() -> bool| self.gather(is_complete);
        let is_mentioned = self.make_durable(position, gather, |durable| {
            // For all that wait for this sync, before they come back and want the same lock.
            if let Some(mut writer) = self.writer.try_lock() {
                self.mention(&mut writer, durable);
            }
        })?;
        if !is_mentioned {
            let mut writer = self.writer.lock();
            // Another one that waited for the same sync may have been here meanwhile.
            if !self.sync.is_mentioned(position) {
                self.mention_durable(&mut writer);
            }
        }
        Ok(())
    }

    /// Appends what shows that the logs are durable up to here, if a single record does.
    fn mention(&self, writer: &mut Writer, durable: Position) {
        if writer.log.must_rotate() || durable.0 != writer.log.id() || durable.1 <= LOG_HEADER_LEN {
            return;
        }
        writer.log.mark_durable(durable.1);
        if let Err(error) = writer.log.append_mark() {
            tracing::warn!(%error, "cannot note in the log what is durable");
        }
        self.note_mentioned(&writer.log);
    }

    /// Appends what shows how far the logs are durable. If that fails, or the log takes no more
    /// records after a failed append, nothing acknowledged is in danger; the next sync or close says
    /// it for all logs.
    fn mention_durable(&self, writer: &mut Writer) {
        if writer.log.must_rotate() {
            return;
        }
        let mut append = || {
            if self.sync.lock().durable.0 != writer.log.id() {
                // Another log was begun meanwhile, which can only speak for older ones as a whole.
                self.make_all_durable()?;
            }
            writer.log.mark_durable(self.sync.lock().durable.1);
            if writer.log.durable() <= LOG_HEADER_LEN {
                writer.log.append_proof()
            } else {
                writer.log.append_mark()
            }
        };
        if let Err(error) = append() {
            tracing::warn!(%error, "cannot note in the log what is durable");
            if matches!(error, Error::Poisoned { .. }) {
                self.poison(&error);
            }
        }
        self.note_mentioned(&writer.log);
    }

    /// Notes up to where the log's records say that it is durable. A log that says no more than that
    /// its header is says nothing, neither of itself nor of those before it: so much is true of each
    /// from the beginning.
    fn note_mentioned(&self, log: &LogWriter) {
        if log.mentioned() > LOG_HEADER_LEN {
            self.sync.note_mentioned(log.mentioned());
        }
    }

    /// Makes everything appended so far durable. For holders of the writer's lock, who append a
    /// record afterwards.
    pub(super) fn make_all_durable(&self) -> Result<()> {
        self.make_durable(self.sync.appended(), |_| {}, |_| {}).map(|_| ())
    }

    /// Waits a little for the others that are expected to want the same sync: half as long as the last
    /// one took, within bounds, and only if others wanted that, so that a writer that is alone never
    /// waits. Waking a thread on another processor may take a third of a fast sync. Looks only so often
    /// that a clock that stands still does no harm.
    fn gather(&self, is_complete: &dyn Fn() -> bool) {
        const LEAST: Duration = Duration::from_micros(30);
        const MOST: Duration = Duration::from_micros(500);
        const LOOKS: u32 = 1000;
        if matches!(self.options.background, Background::Manual) {
            return;
        }
        let lasted = Duration::from_nanos(self.sync.lasted.load(Ordering::Relaxed));
        let patience = (lasted / 2).clamp(LEAST, MOST);
        let clock = &self.home.env.clock;
        let start = clock.monotonic();
        for _ in 0..LOOKS {
            if is_complete() || clock.monotonic().saturating_sub(start) >= patience {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Returns once everything before `position` is durable; whether a record says so. One caller
    /// syncs for all that wait, calls `gather` before that if it expects more of them, and `conclude`
    /// after it.
    fn make_durable(
        &self,
        position: Position,
        gather: impl FnOnce(&dyn Fn() -> bool),
        conclude: impl FnOnce(Position),
    ) -> Result<bool> {
        let check = || {
            // After a failed sync the file's state is unknown: it is never tried again.
            if self.is_poisoned.load(Ordering::Acquire) { self.check_writable() } else { Ok(()) }
        };
        let sync = |files: &[(LogId, Arc<dyn VfsFile>)]| {
            let sync = |(id, file): &(LogId, Arc<dyn VfsFile>)| {
                let path = || self.home.dir.join(crate::wal::log_file_name(*id));
                file.sync_data().map_err(|e| Error::io("sync", &path(), e))
            };
            let start = self.home.env.clock.monotonic();
            let outcome = files.iter().try_for_each(sync);
            let lasted = self.home.env.clock.monotonic().saturating_sub(start);
            self.sync.lasted.store(lasted.as_nanos() as u64, Ordering::Relaxed);
            self.counters.sync_times.record_time(lasted);
            self.counters.syncs.fetch_add(1, Ordering::Relaxed);
            outcome.inspect_err(|error| self.poison(error))
        };
        self.sync.sync_to(position, check, gather, sync, conclude)
    }

    /// Refuses writes while memtables cannot be flushed. The flush is tried again twice a second.
    fn check_flushes(&self) -> Result<()> {
        if self.flush_failed.load(Ordering::Acquire)
            && self.options.background != Background::Manual
            && let Some(error) = &self.background.lock().flush_error
        {
            return Err(error.clone());
        }
        Ok(())
    }

    /// Before a write: waits as background work demands. See `background` for the formula.
    pub(super) fn wait_for_room_of(&self, bytes: u64) -> Result<()> {
        if matches!(self.options.background, Background::Manual) {
            return Ok(());
        }
        const SLICE: Duration = Duration::from_millis(50);
        let mut delay = self.delay(bytes).min(Duration::from_secs(1));
        let ordered = delay;
        if !ordered.is_zero() {
            self.counters.stalled(ordered);
        }
        while !delay.is_zero() && !self.stopping() {
            let slice = delay.min(SLICE);
            self.home.env.clock.sleep(slice);
            delay -= slice;
        }
        if !ordered.is_zero() {
            let cause = StallCause::Behind;
            self.events.emit(|| Event::WriteStall { delay: ordered, cause });
        }
        if !self.is_full() {
            return Ok(());
        }
        let start = self.home.env.clock.monotonic();
        let mut background = self.background.lock();
        while self.is_full() {
            self.check_writable()?;
            if background.stopping {
                return Err(Error::Closed);
            }
            if let Some(error) = &background.flush_error {
                return Err(error.clone());
            }
            self.work.notify_all();
            // The timeout only guards against a notice that came between the two checks.
            self.progress.wait_for(&mut background, Duration::from_millis(100));
        }
        drop(background);
        let waited = self.home.env.clock.monotonic().saturating_sub(start);
        self.counters.stalled(waited);
        let cause = StallCause::BuffersFull;
        self.events.emit(|| Event::WriteStall { delay: waited, cause });
        Ok(())
    }

    /// Ends the log cleanly: what is in it is durable, and says so.
    pub(super) fn close_log(&self) -> Result<()> {
        let mut writer = self.writer.lock();
        if writer.log.must_rotate() {
            // Even if there is no room for a new log.
            self.make_all_durable()?;
            // The new log's header says where the old one ends, in front of what failed.
            self.rotate(&mut writer)?;
        }
        // Marks and witnesses at the end are not synced yet, and the last mark speaks for them too.
        let end = writer.log.end();
        self.sync.note_appended(end);
        self.make_all_durable()?;
        writer.log.mark_durable(end);
        if end <= LOG_HEADER_LEN && self.state.load().memtables().any(|m| m.table.entries() > 0) {
            // A mark in a log with nothing in it would say nothing of those before it.
            writer.log.append_proof().inspect_err(|error| {
                if matches!(error, Error::Poisoned { .. }) {
                    self.poison(error);
                }
            })?;
        } else {
            writer.log.append_mark()?;
        }
        writer.log.cut_ahead();
        self.sync.note_appended(writer.log.end());
        self.make_all_durable()
    }
}

#[cfg(test)]
#[path = "commit_tests.rs"]
mod tests;
