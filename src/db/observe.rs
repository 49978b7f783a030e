//! What is seen of flushes, compactions and other long work: events, spans, times, progress.
//!
//! The work itself is in `background`, `maintenance`, `verify` and `repair`, and is handed in here as a
//! closure: so each job has its beginning and its end told, whatever becomes of it. Nothing here changes
//! what the work does. Times are those of the injected clock. Nothing is held while a callback of the
//! user's is called, and one that panics is caught.

use super::event::{
    CompactionAction, CompactionInfo, CompactionReason, Event, FlushInfo, LoadInfo,
};
use super::keyspace_core::KeyspaceCore;
use super::listener::Events;
use super::{Inner, MemSlot};
use crate::compaction::{Action, Job};
use crate::error::{Error, Result};
use crate::sync::Arc;
use crate::types::{KeyspaceId, SegmentId};
use crate::version::{Segment, SegmentMeta};
use crate::vfs::Clock;
use std::cell::Cell;
use std::time::Duration;
use tracing::field::Empty;

/// What takes long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Task {
    /// Opening: logs are read back. Counted in bytes of logs.
    Recovery,
    /// [`Db::flush`](crate::Db::flush). Counted in entries.
    Flush,
    /// [`compact_range`](crate::Keyspace::compact_range). Counted in bytes of segments that are read,
    /// each as often as it is; the total grows when there turns out to be more to do.
    Compaction,
    /// [`ingest`](crate::Keyspace::ingest). Counted in entries of the files, each twice: when it is copied,
    /// and when it is read again to check its file.
    Ingest,
    /// [`Db::fill_key_map`](crate::Db::fill_key_map), and that of a [`ReadOnlyDb`](crate::ReadOnlyDb).
    /// Counted in parts of the map, of which some stay undone if it has no room for all.
    KeyMap,
}

/// How far something long is that a caller waits for: see
/// [`Builder::on_progress`](crate::Builder::on_progress).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// What it is.
    pub task: Task,
    /// How much of it is done. Never falls.
    pub done: u64,
    /// How much there is in all, as far as that is known. `done` when it ends well.
    pub total: u64,
}

/// A callback for progress, among the options.
#[derive(Clone)]
pub(crate) struct OnProgress(pub(crate) Arc<dyn Fn(Progress) + Send + Sync>);

impl std::fmt::Debug for OnProgress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnProgress")
    }
}

/// What a job made.
#[derive(Debug, Default)]
pub(super) struct Made {
    pub(super) outputs: Vec<SegmentId>,
    pub(super) bytes_written: u64,
    pub(super) entries_in: u64,
    pub(super) entries_out: u64,
    /// What a merge operator or a filter failed with, so that something was left as it is.
    pub(super) failure: Option<Error>,
}

impl Made {
    pub(super) fn ids<'a>(metas: impl IntoIterator<Item = &'a Arc<SegmentMeta>>) -> Vec<SegmentId> {
        metas.into_iter().map(|meta| meta.id).collect()
    }
}

/// How long something takes.
pub(super) struct Watch<'a> {
    clock: &'a dyn Clock,
    start: Duration,
}

impl<'a> Watch<'a> {
    pub(super) fn start(clock: &'a dyn Clock) -> Self {
        Watch { clock, start: clock.monotonic() }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.clock.monotonic().saturating_sub(self.start)
    }

    /// Notes in a span how long it took: in its field `micros`.
    pub(super) fn note(&self, span: &tracing::Span) {
        span.record("micros", self.elapsed().as_micros() as u64);
    }
}

/// How far the reading of logs is, while a database is opened.
pub(super) struct Recovering<'a> {
    events: &'a Events,
    callback: Option<&'a OnProgress>,
    done: u64,
    told: u64,
    total: u64,
}

impl<'a> Recovering<'a> {
    /// Of so many bytes in all. Asks for that only if anybody wants to know.
    pub(super) fn new(
        events: &'a Events,
        callback: Option<&'a OnProgress>,
        total: impl FnOnce() -> u64,
    ) -> Self {
        let total = if callback.is_some() { total() } else { 0 };
        let start = Recovering { events, callback, done: 0, told: 0, total };
        start.tell();
        start
    }

    /// About so many bytes were read. Tells of it about a hundred times in all.
    pub(super) fn add(&mut self, bytes: usize) {
        if self.callback.is_some() {
            self.done = (self.done + bytes as u64).min(self.total);
            if self.done - self.told >= (self.total / 100).max(4096) {
                self.told = self.done;
                self.tell();
            }
        }
    }

    /// All is read.
    pub(super) fn end(mut self) {
        self.done = self.total;
        self.tell();
    }

    fn tell(&self) {
        if let Some(callback) = self.callback {
            let progress = Progress { task: Task::Recovery, done: self.done, total: self.total };
            self.events.call("a progress callback", || callback.0(progress));
        }
    }
}

/// What is done of a call of `compact_range`.
pub(super) struct Compacting<'a> {
    inner: &'a Inner,
    done: Cell<u64>,
    total: Cell<u64>,
}

impl<'a> Compacting<'a> {
    /// Of about so many bytes.
    pub(super) fn new(inner: &'a Inner, total: u64) -> Self {
        Compacting { inner, done: Cell::new(0), total: Cell::new(total) }
    }

    /// A share, 0 to 1, of a job that reads so many bytes is done.
    pub(super) fn within(&self, bytes: u64, share: f64) {
        let part = ((bytes as f64 * share) as u64).min(bytes);
        self.total.set(self.total.get().max(self.done.get() + bytes));
        self.inner.report(Task::Compaction, self.done.get() + part, self.total.get());
    }

    /// A job is done that read so many bytes.
    pub(super) fn add(&self, bytes: u64) {
        self.done.set(self.done.get() + bytes);
        self.within(0, 0.0);
    }

    /// Nothing is left to do.
    pub(super) fn end(&self) {
        let total = self.total.get();
        self.inner.report(Task::Compaction, total, total);
    }
}

impl Inner {
    pub(super) fn watch(&self) -> Watch<'_> {
        Watch::start(&*self.home.env.clock)
    }

    /// Tells whoever asked how far something is. Not to be called with anything held.
    pub(super) fn report(&self, task: Task, done: u64, total: u64) {
        if let Some(callback) = &self.options.progress {
            self.events.call("a progress callback", || callback.0(Progress { task, done, total }));
        }
    }

    /// Tells how much of the key map is in memory. `most` was told before; some may have gone since.
    pub(super) fn report_key_map(&self, most: &mut u64) {
        if self.options.progress.is_some() {
            *most = u64::from(self.keymap.stats().resident).max(*most);
            self.report(Task::KeyMap, *most, crate::keymap::SHARDS as u64);
        }
    }

    fn keyspace_name(&self, id: KeyspaceId) -> String {
        let keyspaces = self.keyspaces.lock();
        let found = keyspaces.values().find(|core| core.id == id);
        found.map_or_else(|| format!("(dropped) {id}"), |core| core.name.clone())
    }

    /// Runs a flush and has it told.
    pub(super) fn observe_flush(
        &self,
        slot: &MemSlot,
        flush: impl FnOnce() -> Result<Made>,
    ) -> Result<()> {
        let flush_info = FlushInfo {
            job: self.events.next_job(),
            entries: slot.table.entries() as u64,
            memory_bytes: slot.table.allocated_bytes() as u64,
        };
        let FlushInfo { job, entries, memory_bytes } = flush_info;
        let span = tracing::debug_span!(
            "flush",
            job,
            entries,
            bytes_in = memory_bytes,
            bytes_out = Empty,
            segments = Empty,
            micros = Empty,
        );
        let begun = self.events.begin(|| Event::FlushBegin(flush_info.clone()));
        let watch = self.watch();
        let outcome = span.in_scope(flush);
        let duration = watch.elapsed();
        watch.note(&span);
        let (made, error) = parts(outcome);
        span.record("bytes_out", made.bytes_written);
        span.record("segments", made.outputs.len());
        if error.is_none() {
            self.counters.flush_times.record_time(duration);
        }
        let told = error.clone();
        begun.end(|| Event::FlushEnd {
            flush: flush_info,
            outputs: made.outputs,
            bytes_written: made.bytes_written,
            duration,
            error: told,
        });
        error.map_or(Ok(()), Err)
    }

    /// Makes new segments part of a keyspace and has it told.
    pub(super) fn observe_load(
        &self,
        core: &KeyspaceCore,
        entries: u64,
        segments: &mut Vec<Arc<SegmentMeta>>,
        adopt: impl FnOnce(&mut Vec<Arc<SegmentMeta>>) -> Result<()>,
    ) -> Result<()> {
        let info = LoadInfo {
            job: self.events.next_job(),
            keyspace: core.name.clone(),
            entries,
            segments: Made::ids(segments.iter()),
            bytes: segments.iter().map(|meta| meta.file_len).sum(),
        };
        let span = tracing::debug_span!(
            "load",
            job = info.job,
            keyspace = info.keyspace,
            entries,
            segments = info.segments.len(),
            bytes = info.bytes,
            micros = Empty,
        );
        let begun = self.events.begin(|| Event::LoadBegin(info.clone()));
        let watch = self.watch();
        let outcome = span.in_scope(|| adopt(segments));
        let duration = watch.elapsed();
        watch.note(&span);
        let error = outcome.as_ref().err().cloned();
        begun.end(|| Event::LoadEnd { load: info, duration, error });
        outcome
    }

    /// Runs a compaction and has it told. Gives what a merge operator or a filter failed with.
    pub(super) fn observe_job(
        &self,
        job: &Job,
        reason: CompactionReason,
        run: impl FnOnce() -> Result<Made>,
    ) -> Result<Option<Error>> {
        let action = match job.action {
            Action::Move if self.may_move(job) => CompactionAction::Move,
            Action::Move | Action::Merge => CompactionAction::Merge,
            Action::Drop => CompactionAction::Drop,
        };
        let level = match action {
            CompactionAction::Drop => job.segments().next().map_or(0, |s| s.meta.level),
            _ => job.output_level,
        };
        let inputs: Vec<_> = job.segments().collect();
        self.observe_compaction(job.keyspace, level, &inputs, reason, action, run)
    }

    /// Removes segments that nobody sees any more, and has it told.
    pub(super) fn observe_drop(
        &self,
        keyspace: KeyspaceId,
        gone: &[Arc<Segment>],
        remove: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let level = gone.first().map_or(0, |s| s.meta.level);
        let inputs: Vec<_> = gone.iter().collect();
        let (reason, action) = (CompactionReason::Spent, CompactionAction::Drop);
        let run = || remove().map(|()| Made::default());
        self.observe_compaction(keyspace, level, &inputs, reason, action, run).map(drop)
    }

    fn observe_compaction(
        &self,
        keyspace: KeyspaceId,
        level: u8,
        inputs: &[&Arc<Segment>],
        reason: CompactionReason,
        action: CompactionAction,
        run: impl FnOnce() -> Result<Made>,
    ) -> Result<Option<Error>> {
        let info = CompactionInfo {
            job: self.events.next_job(),
            keyspace: self.keyspace_name(keyspace),
            reason,
            action,
            level: usize::from(level),
            inputs: inputs.iter().map(|s| s.meta.id).collect(),
            bytes: inputs.iter().map(|s| s.meta.file_len).sum(),
        };
        let span = tracing::debug_span!(
            "compaction",
            job = info.job,
            keyspace = info.keyspace,
            level,
            ?action,
            ?reason,
            segments_in = inputs.len(),
            bytes_in = info.bytes,
            segments_out = Empty,
            bytes_out = Empty,
            entries_in = Empty,
            entries_out = Empty,
            micros = Empty,
        );
        let begun = self.events.begin(|| Event::CompactionBegin(info.clone()));
        let watch = self.watch();
        let outcome = span.in_scope(run);
        let duration = watch.elapsed();
        watch.note(&span);
        let (made, error) = parts(outcome);
        span.record("segments_out", made.outputs.len());
        span.record("bytes_out", made.bytes_written);
        span.record("entries_in", made.entries_in);
        span.record("entries_out", made.entries_out);
        if error.is_none() && action == CompactionAction::Merge {
            self.counters.compaction_times.record_time(duration);
        }
        let told = error.clone().or_else(|| made.failure.clone());
        begun.end(|| Event::CompactionEnd {
            compaction: info,
            outputs: made.outputs,
            bytes_written: made.bytes_written,
            entries_in: made.entries_in,
            entries_out: made.entries_out,
            duration,
            error: told,
        });
        error.map_or(Ok(made.failure), Err)
    }

    /// Whether a job that is to move its segments does so: a tombstone that has reached the bottom should
    /// go, not move; operands should be merged, and values filtered.
    pub(super) fn may_move(&self, job: &Job) -> bool {
        self.filter_of(job.keyspace).is_none()
            && job.segments().all(|s| s.meta.tombstones == 0 && !s.has_operands())
    }
}

fn parts(outcome: Result<Made>) -> (Made, Option<Error>) {
    match outcome {
        Ok(made) => (made, None),
        Err(error) => (Made::default(), Some(error)),
    }
}

#[cfg(test)]
#[path = "observe_tests.rs"]
mod tests;
