//! The write path: groups of batches into the log, then into the memtable, then published.
//!
//! Writers queue up. The one in front leads: it takes what waits behind it, appends all of it to the
//! log as one record, inserts it, publishes it and hands the lead on. Those that asked for
//! durability then wait for one `fsync` that covers them all, while the next group is already being
//! appended (Helland, Sammer, Lyon, Carr, Garrett, Reuter, "Group Commit Timers and High Volume
//! Transaction Systems", HPTS 1987, without the timers).

use super::batch::{WriteBatch, check_sizes};
use super::keyspace_core::KeyspaceCore;
use super::options::{Background, Durability};
use super::queue::Commits;
use super::syncer::Position;
use super::{DEFAULT_ID, Inner, MemSlot, ReadState};
use crate::coding::put_varint;
use crate::error::{Error, Result};
use crate::hash::{key_hash, keyspace_seed};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::types::{Kind, LogId};
use crate::vfs::VfsFile;
use crate::wal::{LOG_HEADER_LEN, LogWriter};
use std::time::Duration;

/// The log that takes writes and the memtable that they go to.
pub(super) struct Writer {
    pub(super) log: LogWriter,
    pub(super) active: Arc<MemSlot>,
}

impl Commits<WriteBatch> for Inner {
    type Outcome = Result<Position>;

    fn bytes(batch: &WriteBatch) -> u64 {
        batch.bytes()
    }

    fn wait_for_room(&self, own: &WriteBatch) -> std::result::Result<(), Self::Outcome> {
        self.wait_for_room_of(own.bytes()).map_err(Err)
    }

    /// Appends, inserts and publishes; an outcome for each batch.
    fn commit_group(&self, group: &[WriteBatch]) -> Vec<Self::Outcome> {
        let mut writer = self.writer.lock();
        // A keyspace is dropped under the writer's lock, so this holds until the group is done.
        let refused: Vec<Option<Error>> = group
            .iter()
            .map(|batch| batch.keyspaces.iter().find_map(|core| core.check_live().err()))
            .collect();
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
        batch.check()?;
        if batch.keyspaces.iter().any(|core| core.database != self.database) {
            return Err(Error::WrongDatabase);
        }
        self.check_writable()?;
        if batch.is_empty() {
            return if durability == Durability::Sync { self.sync_all() } else { Ok(()) };
        }
        self.check_flushes()?;
        let position = self.queue.commit(batch, self)?;
        match durability {
            Durability::Buffered => Ok(()),
            Durability::Sync => self.sync_to(position),
        }
    }

    /// Commits one operation as a batch of its own.
    pub(super) fn write_one(
        &self,
        core: &Arc<KeyspaceCore>,
        kind: Kind,
        key: &[u8],
        value: &[u8],
    ) -> Result<()> {
        check_sizes(key, value)?;
        let mut batch = WriteBatch::new();
        // Room for the operation's own header: exact enough that the value is not copied twice.
        batch.ops.reserve_exact(key.len() + value.len() + 24);
        if core.id != DEFAULT_ID {
            batch.uses(core);
        }
        batch.push(core.id, kind, key, value);
        self.write(batch, self.options.durability)
    }

    fn commit_batches<'a>(
        &self,
        writer: &mut Writer,
        group: impl Iterator<Item = &'a WriteBatch> + Clone,
    ) -> Result<Position> {
        self.check_writable()?;
        let full = writer.active.table.allocated_bytes() >= self.options.write_buffer_bytes;
        if writer.log.must_rotate() || full {
            self.rotate(writer)?;
        }
        let (log, durable) = self.sync.lock().durable;
        if log == writer.log.id() {
            writer.log.mark_durable(durable);
        }
        writer.log.append_witness(self.manifest_edit.load(Ordering::Acquire))?;
        let first = writer.log.next_seqno();
        let payload = writer.log.payload();
        let mut count = 0;
        for batch in group.clone() {
            put_varint(payload, batch.count);
            payload.extend_from_slice(&batch.ops);
            count += batch.count;
        }
        let bytes = payload.len() as u64;
        writer.log.append_payload(first, count)?;
        let position = (writer.log.id(), writer.log.end());
        {
            let mut sync = self.sync.lock();
            sync.appended = position;
            sync.mentioned = sync.mentioned.max(mentioned(&writer.log));
        }
        let mut seqno = first;
        for op in group.flat_map(WriteBatch::operations) {
            // The batch encoded these bytes itself, so this cannot fail; if it did, what is logged
            // and what is in memory would differ.
            let op = op.map_err(|malformed| {
                let error = malformed.at(&self.home.dir, 0);
                self.poison(&error);
                error
            })?;
            let hash = key_hash(op.key, keyspace_seed(self.hash_seed, op.keyspace));
            writer.active.table.insert(op.keyspace, op.key, hash, seqno, op.kind, op.value);
            seqno.0 += 1;
        }
        debug_assert_eq!(seqno.0, first.0 + count);
        self.visible.store(writer.log.last_seqno().0, Ordering::Release);
        self.counters.written(count, bytes);
        Ok(position)
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
        let slot = MemSlot::new(id);
        {
            let mut sync = self.sync.lock();
            let old = std::mem::replace(&mut sync.current, log.file());
            sync.older.push((writer.log.id(), old));
            sync.appended = (id, log.end());
        }
        writer.active.last_seqno.store(writer.log.last_seqno().0, Ordering::Release);
        writer.log = log;
        writer.active = Arc::clone(&slot);
        self.change_state(|state| {
            let mut frozen = state.frozen.clone();
            // An empty one, left when an append failed, needs no flush.
            if state.active.table.entries() > 0 {
                frozen.insert(0, Arc::clone(&state.active));
            }
            ReadState { active: slot, frozen, version: Arc::clone(&state.version) }
        });
        self.announce_work();
        Ok(())
    }

    /// Makes everything appended so far durable, as [`Inner::sync_to`] does.
    pub(super) fn sync_all(&self) -> Result<()> {
        let appended = self.sync.lock().appended;
        self.sync_to(appended)
    }

    /// Returns once everything before `position` is durable, and the log says so: damage to it is
    /// an error at the next open then, not a torn tail. Not for holders of the writer's lock.
    fn sync_to(&self, position: Position) -> Result<()> {
        self.make_durable(position)?;
        if self.sync.lock().mentioned < position {
            self.mention_durable(&mut self.writer.lock());
        }
        Ok(())
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
        let mut sync = self.sync.lock();
        sync.mentioned = sync.mentioned.max(mentioned(&writer.log));
    }

    /// Makes everything appended so far durable. For holders of the writer's lock, who append a
    /// record afterwards.
    pub(super) fn make_all_durable(&self) -> Result<()> {
        let appended = self.sync.lock().appended;
        self.make_durable(appended)
    }

    /// Returns once everything before `position` is durable. One caller syncs for all that wait.
    fn make_durable(&self, position: Position) -> Result<()> {
        let check = || {
            // After a failed sync the file's state is unknown: it is never tried again.
            if self.is_poisoned.load(Ordering::Acquire) { self.check_writable() } else { Ok(()) }
        };
        self.sync.sync_to(position, check, |files| {
            let sync = |(id, file): &(LogId, Arc<dyn VfsFile>)| {
                let path = || self.home.dir.join(crate::wal::log_file_name(*id));
                file.sync_data().map_err(|e| Error::io("sync", &path(), e))
            };
            let outcome = files.iter().try_for_each(sync);
            self.counters.syncs.fetch_add(1, Ordering::Relaxed);
            outcome.inspect_err(|error| self.poison(error))
        })
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
    fn wait_for_room_of(&self, bytes: u64) -> Result<()> {
        if matches!(self.options.background, Background::Manual) {
            return Ok(());
        }
        const SLICE: Duration = Duration::from_millis(50);
        let mut delay = self.delay(bytes).min(Duration::from_secs(1));
        if !delay.is_zero() {
            self.counters.stalled(delay);
        }
        while !delay.is_zero() && !self.stopping() {
            let slice = delay.min(SLICE);
            self.home.env.clock.sleep(slice);
            delay -= slice;
        }
        let full = || {
            let state = self.state.load();
            state.frozen.len() + 1 >= self.options.write_buffers
                && state.active.table.allocated_bytes() >= self.options.write_buffer_bytes
        };
        if !full() {
            return Ok(());
        }
        let start = self.home.env.clock.monotonic();
        let mut background = self.background.lock();
        while full() {
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
        self.sync.lock().appended = (writer.log.id(), end);
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
        self.sync.lock().appended = (writer.log.id(), writer.log.end());
        self.make_all_durable()
    }
}

/// Up to where the log's records say that it is durable. A log that says no more than that its header
/// is says nothing, neither of itself nor of those before it: so much is true of each from the
/// beginning.
fn mentioned(log: &LogWriter) -> Position {
    let upto = log.mentioned();
    if upto > LOG_HEADER_LEN { (log.id(), upto) } else { (LogId(0), 0) }
}
