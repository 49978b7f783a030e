//! Background work: flushes, compactions, and holding writers back when it falls behind.
//!
//! One flush at a time, oldest memtable first; compactions beside it, none sharing a segment. The
//! threads only choose when; `flush_oldest` and `compact_one` do the work, and with
//! [`Background::Manual`](super::Background) the caller runs them by hand through the same code.
//!
//! # Back-pressure
//!
//! Writes are slowed smoothly, by time per byte. With `r` runs on the fullest level 0 and the option
//! `level0_runs` = `t`, compaction is behind by `x = (r - 2t) / 4t`. For lazy leveling `r` is how
//! many runs of the size of the largest the level makes, or half of all its runs if that is more:
//! runs that were mostly merged away hardly count. FIFO has nothing to wait for: `x = 0`. With all
//! other write buffers
//! waiting to be flushed and the active one filled to a share `f`, flushing is behind by
//! `x = 2f - 1`. With the larger `x`, cut to 0 … 0.99, a write is delayed by
//!
//! ```text
//! 10 ns × x² / (1 - x)   a byte
//! ```
//!
//! which is nothing at first, 100 MB/s at `x` = 0.62 and 1 MB/s at the end. Delays are saved up
//! until they make a millisecond, and one write waits at most a second. Only when every write buffer is full does a write wait for an
//! event: the end of a flush. A level that cannot be compacted because of damage does not count.

use super::event::{CompactionReason, Event};
use super::keyspace_core::KeyspaceCore;
use super::observe::Made;
use super::spent::range_deletes_of;
use super::{Background, Committer, Inner, MemSlot, ReadState};
use crate::compaction::{
    Action, Busy, Filtering, InputMerge, Job, Mood, OlderData, Output, OutputRun, OutputSpec,
    Retention, Situation, remove_segments, write_run,
};
use crate::deletes::RangeDeletes;
use crate::error::{Error, Result};
use crate::filter::CompactionFilter;
use crate::flush::{FlushPart, flush_memtable};
use crate::hash::key_hash;
use crate::keymap::MapEdit;
use crate::merge::MergeOperator;
use crate::segment::SegmentOptions;
use crate::sync::atomic::Ordering;
use crate::sync::{Arc, MutexGuard};
use crate::types::{KeyspaceId, LogId, SegmentId, SeqNo};
use crate::version::{
    Change, Edit, LEVELS, ManifestState, RunNo, Segment, SegmentMeta, Tree, Version,
};
use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a failed piece of work rests before it is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How long next to nothing must have been written for a database to count as calm.
const CALM_AFTER: Duration = Duration::from_secs(1);
/// How long one memtable at least is left alone in which ranges were deleted, after another.
const FREEZE_EVERY: Duration = Duration::from_secs(10);
/// How much that is: this share of a write buffer, which so would last for a minute.
const CALM_SHARE: usize = 64;

/// What the background threads share.
#[derive(Default)]
pub(super) struct BackgroundState {
    pub(super) flushing: bool,
    pub(super) compacting: usize,
    /// What belongs to jobs under way.
    pub(super) busy: Busy,
    /// The keyspace of the last job: the next one is looked for behind it, so that none starves.
    last_keyspace: Option<KeyspaceId>,
    /// Callers that wait for everything to be done.
    pub(super) waiting: usize,
    /// When a memtable was last frozen because ranges were deleted in it.
    froze_deletes: Option<Duration>,
    /// The bytes written in all when a thread last found that many had come, and when that was.
    quiet_since: (u64, Duration),
    /// The failure of the last flush, until one succeeds.
    pub(super) flush_error: Option<Error>,
    /// The failure of the last compaction, until one succeeds.
    pub(super) compaction_error: Option<Error>,
    /// What kept the last compaction that was done from merging, filtering or moving some value, which it
    /// left as it was: a merge operator or a filter that failed, or a damaged value segment.
    pub(super) left_as_it_was: Option<Error>,
    pub(super) stopping: bool,
}

impl BackgroundState {
    /// Of a database that is opened now: it is not calm yet.
    pub(super) fn starting(now: Duration) -> Self {
        BackgroundState { quiet_since: (0, now), ..BackgroundState::default() }
    }
}

impl Inner {
    /// Starts the threads that the options ask for.
    pub(super) fn start_threads(
        self: &Arc<Self>,
        compactions: usize,
    ) -> Result<Vec<JoinHandle<()>>> {
        let mut threads = vec![self.start_thread("flush", Inner::flush_oldest)?];
        threads.extend(self.start_map_thread()?);
        for _ in 0..compactions {
            threads.push(self.start_thread("compact", Inner::compact_one)?);
        }
        Ok(threads)
    }

    /// Starts the thread that fills the key map, if there is one.
    pub(super) fn start_map_thread(self: &Arc<Self>) -> Result<Option<JoinHandle<()>>> {
        let is_used = self.options.key_map().budget_bytes > 0;
        is_used.then(|| self.start_thread("map", |inner| Ok(inner.fill_map()))).transpose()
    }

    fn start_thread(
        self: &Arc<Self>,
        name: &str,
        work: fn(&Inner) -> Result<bool>,
    ) -> Result<JoinHandle<()>> {
        let inner = Arc::clone(self);
        std::thread::Builder::new()
            .name(format!("ashlar-{name}"))
            .spawn(move || inner.work_loop(work))
            .map_err(|e| Error::io("start a thread for", &self.home.dir, e))
    }

    /// Does one kind of work whenever it is due, until the threads are to stop.
    fn work_loop(&self, work: fn(&Inner) -> Result<bool>) {
        loop {
            let outcome = work(self);
            let mut background = self.background.lock();
            if background.stopping {
                return;
            }
            // Work that became due between the look and here was announced under this lock or is
            // found after the timeout. What failed rests a while; it is in `stats`.
            if !matches!(outcome, Ok(true)) {
                self.work.wait_for(&mut background, RETRY_AFTER);
            }
        }
    }

    /// Tells the background threads that there may be something to do.
    pub(super) fn announce_work(&self) {
        // Under the lock, so that a thread that has just looked in vain is already waiting.
        let _background = self.background.lock();
        self.work.notify_all();
    }

    pub(super) fn step(&self) -> Result<bool> {
        self.check_writable()?;
        let flushed_or_compacted =
            self.flush_oldest()? || self.compact(Mood::Busy)? || self.compact(Mood::Calm)?;
        Ok(flushed_or_compacted || self.fill_map())
    }

    pub(super) fn stopping(&self) -> bool {
        self.background.lock().stopping
    }

    /// Flushes the oldest frozen memtable, if there is one and no other flush is under way.
    pub(super) fn flush_oldest(&self) -> Result<bool> {
        self.flush_oldest_watched(&|_| {})
    }

    /// The same; `watch` hears now and then, with nothing held, how many entries are done.
    pub(super) fn flush_oldest_watched(&self, watch: &dyn Fn(u64)) -> Result<bool> {
        let slot = {
            let mut background = self.background.lock();
            let state = self.state.load();
            let Some(slot) = state.frozen.last().cloned() else { return Ok(false) };
            if background.flushing || self.is_poisoned.load(Ordering::Acquire) {
                return Ok(false);
            }
            background.flushing = true;
            slot
        };
        let outcome = self.observe_flush(&slot, || self.flush_slot(&slot, watch));
        let mut background = self.background.lock();
        background.flushing = false;
        let failed = !matches!(&outcome, Ok(()) | Err(Error::Closed));
        self.flush_failed.store(failed, Ordering::Release);
        match &outcome {
            Ok(()) => background.flush_error = None,
            Err(Error::Closed) => {}
            Err(error) => {
                tracing::error!(%error, "a flush failed");
                background.flush_error = Some(error.clone());
            }
        }
        drop(background);
        self.progress.notify_all();
        // What failed makes no work for others: two that fail would wake each other without a rest.
        if outcome.is_ok() {
            self.work.notify_all();
        }
        outcome.map(|()| true)
    }

    fn flush_slot(&self, slot: &Arc<MemSlot>, watch: &dyn Fn(u64)) -> Result<Made> {
        let version = Arc::clone(&self.state.load().version);
        let (boundaries, expired_by) = self.boundaries();
        let flushed = SeqNo(slot.last_seqno.load(Ordering::Acquire));
        let applied = flushed.min(boundaries[0]);
        let part = |keyspace| {
            let tree: &Tree = version.trees.get(&keyspace)?;
            let (boundaries, clears) = (boundaries.clone(), tree.clears.clone());
            let mut deletes = Arc::clone(&tree.deletes);
            if let Some(own) = slot.table.range_deletes(keyspace) {
                Arc::make_mut(&mut deletes).add_all(&own);
            }
            let operator = self.operator_of(keyspace);
            let spec = self.output_spec(tree, 0, applied, &deletes);
            let filter = None;
            let retention = Retention { boundaries, clears, deletes, expired_by, operator, filter };
            let is_absent = Box::new(|key: &[u8]| self.is_absent(tree, key, &[]));
            Some(FlushPart { tree, retention, spec, is_absent })
        };
        let next_id = || self.ids.next_segment();
        let passed = &self.counters.flush_passed;
        passed.store(0, Ordering::Relaxed);
        let stop = |since: u64| {
            watch(passed.fetch_add(since, Ordering::Relaxed) + since);
            self.stopping()
        };
        let outputs = flush_memtable(&self.home, &slot.table, &part, &next_id, &stop);
        // Before the memtable goes, or it would count twice.
        passed.store(0, Ordering::Relaxed);
        let outputs = outputs?;
        for error in outputs.iter().filter_map(|output| output.failure.as_ref()) {
            // What it was to merge is there as it was written; whoever reads it gets the error.
            tracing::error!(%error, "a flush leaves operands unmerged");
        }
        let mut made = Made::default();
        for output in &outputs {
            made.bytes_written += output.bytes_written;
            made.entries_in += output.entries_in;
            made.entries_out += output.entries_out;
            made.outputs.extend(Made::ids(&output.segments));
        }
        let segments = outputs.into_iter().flat_map(|output| output.segments).collect();
        self.install(Vec::new(), segments, OutputRun::New, Some((slot, flushed)))?;
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        self.counters.flushed_bytes.fetch_add(made.bytes_written, Ordering::Relaxed);
        self.remove_old_logs();
        Ok(made)
    }

    /// Whether no segment but these has a key: by the key map, so not known if that has nothing
    /// resident. Whatever older versions there are is in the map at any moment, in an input of the
    /// job that is about to move it or in its output; and nothing older is still in a memtable,
    /// since these are flushed in order.
    fn is_absent(&self, tree: &Tree, key: &[u8], inputs: &[Arc<Segment>]) -> bool {
        let is_input = |segment: &Segment| inputs.iter().any(|s| s.meta.id == segment.meta.id);
        let candidates = self.keymap.get(key_hash(key, tree.hash_seed), tree.id, key);
        candidates.is_some_and(|mut found| found.all(|(segment, _)| is_input(&segment)))
    }

    /// The keyspace with this id, if it is live.
    fn core_of(&self, keyspace: KeyspaceId) -> Option<Arc<KeyspaceCore>> {
        self.keyspaces.lock().values().find(|core| core.id == keyspace).cloned()
    }

    /// The merge operator of a keyspace, if it was given.
    pub(super) fn operator_of(&self, keyspace: KeyspaceId) -> Option<Arc<dyn MergeOperator>> {
        self.core_of(keyspace)?.shared_operator()
    }

    /// The compaction filter of a keyspace, if it was given, and the keyspace's name.
    pub(super) fn filter_of(
        &self,
        keyspace: KeyspaceId,
    ) -> Option<(Arc<dyn CompactionFilter>, String)> {
        let core = self.core_of(keyspace)?;
        core.filter().zip(Some(core.name.clone()))
    }

    /// For the committer only, under its lock.
    fn next_run(&self) -> RunNo {
        RunNo(self.ids.run.fetch_add(1, Ordering::Relaxed))
    }

    /// How a run is written from which nothing is left that these tombstones hide, up to the number
    /// `applied`.
    pub(super) fn output_spec(
        &self,
        tree: &Tree,
        level: u8,
        applied: SeqNo,
        deletes: &RangeDeletes,
    ) -> OutputSpec {
        let segment = SegmentOptions {
            // Files of those that delete no ranges say nothing of it.
            deletes_applied: if deletes.is_empty() { SeqNo::ZERO } else { applied },
            compression: self.options.compression,
            bloom_bits_per_key: self.options.bloom_bits(),
            hash_run: self.options.hash_runs,
            keyspace: Some(tree.id),
            hash_seed: Some(tree.hash_seed),
            ..SegmentOptions::default()
        };
        let segment_bytes = self.options.segment_bytes;
        let is_bottom = usize::from(level) == LEVELS - 1;
        OutputSpec {
            keyspace: tree.id,
            level,
            segment,
            segment_bytes,
            cuts: if is_bottom { Vec::new() } else { self.strategy.cuts(tree) },
            min_piece_bytes: OutputSpec::smallest_piece(segment_bytes),
            separate_above: self.core_of(tree.id).and_then(|core| core.settings().separate_above),
            value_segment_bytes: segment_bytes,
        }
    }

    /// Whether the segments' garbage is kept up.
    pub(super) fn garbage_known(&self) -> bool {
        self.keymap.counts_garbage()
    }

    /// What a strategy is to know.
    pub(super) fn situation<'a>(&self, busy: &'a Busy, mood: Mood) -> Situation<'a> {
        let now_ms = self.home.env.clock.unix_ms();
        Situation { busy, mood, now_ms, garbage_known: self.garbage_known() }
    }

    /// What a job may not touch because it is damaged.
    pub(super) fn quarantine(&self) -> Busy {
        let mut busy = Busy::default();
        busy.exclude(self.quarantined.lock().keys().copied());
        busy
    }

    /// Whether there is time to tidy up.
    fn is_calm(&self) -> bool {
        let written = self.counters.written_bytes();
        let little = (self.options.write_buffer_bytes / CALM_SHARE) as u64;
        let now = self.home.env.clock.monotonic();
        let mut background = self.background.lock();
        if written > background.quiet_since.0 + little {
            background.quiet_since = (written, now);
        }
        background.waiting > 0 || now.saturating_sub(background.quiet_since.1) >= CALM_AFTER
    }

    /// Does the most urgent compaction, if one is due; if there is time, one that tidies up.
    pub(super) fn compact_one(&self) -> Result<bool> {
        Ok(self.compact(Mood::Busy)?
            || self.is_calm() && (self.freeze_deletes()? || self.compact(Mood::Calm)?))
    }

    /// Freezes the active memtable if ranges were deleted in it: before it is flushed, nothing goes of what
    /// they hide, and every read looks for them there. Once in a while at most.
    pub(super) fn freeze_deletes(&self) -> Result<bool> {
        let state = self.state.load();
        if !state.active.marks.has_range_deletes() || !state.frozen.is_empty() {
            return Ok(false);
        }
        drop(state);
        let now = self.home.env.clock.monotonic();
        {
            let mut background = self.background.lock();
            let last = background.froze_deletes.replace(now);
            if last.is_some_and(|last| now.saturating_sub(last) < FREEZE_EVERY) {
                background.froze_deletes = last;
                return Ok(false);
            }
        }
        self.freeze()?;
        Ok(true)
    }

    pub(super) fn compact(&self, mood: Mood) -> Result<bool> {
        if self.is_poisoned.load(Ordering::Acquire) {
            return Ok(false);
        }
        if self.drop_spent()? {
            return Ok(true);
        }
        let Some((job, reason)) = self.claim(mood) else { return Ok(false) };
        self.run_claimed(&job, reason, &|_| {})?;
        Ok(true)
    }

    /// The most urgent job in a tree: the strategy's, or else one for range tombstones, or for values.
    pub(super) fn pick(&self, tree: &Tree, now: &Situation<'_>) -> Option<(Job, CompactionReason)> {
        let reason = match now.mood {
            Mood::Busy => CompactionReason::Due,
            Mood::Calm => CompactionReason::Idle,
        };
        let job = self.strategy.pick(tree, now).or_else(|| self.pick_for_hidden(tree, now));
        let for_values =
            || Some((self.pick_for_values(tree, now)?, CompactionReason::Unreferenced));
        job.map(|job| (job, reason)).or_else(for_values)
    }

    /// Chooses a job and marks what it needs as taken.
    pub(super) fn claim(&self, mood: Mood) -> Option<(Job, CompactionReason)> {
        let mut background = self.background.lock();
        if background.stopping {
            return None;
        }
        let mut busy = background.busy.clone();
        busy.exclude(self.quarantined.lock().keys().copied());
        let state = self.state.load();
        let trees = &state.version.trees;
        let last = background.last_keyspace;
        let (before, behind): (Vec<_>, Vec<_>) =
            trees.iter().partition(|(id, _)| last.is_some_and(|last| **id <= last));
        let now = self.situation(&busy, mood);
        let mut trees = behind.into_iter().chain(before);
        let (job, reason) = trees.find_map(|(_, tree)| self.pick(tree, &now))?;
        background.last_keyspace = Some(job.keyspace);
        background.busy.take(&job);
        background.compacting += 1;
        Some((job, reason))
    }

    /// Runs a job whose segments are marked busy, and unmarks them. `share` hears now and then, with
    /// nothing held, which share of it is done. Gives what kept it from merging, filtering or moving a
    /// value: the job is done all the same.
    pub(super) fn run_claimed(
        &self,
        job: &Job,
        reason: CompactionReason,
        share: &dyn Fn(f64),
    ) -> Result<Option<Error>> {
        let outcome = self.observe_job(job, reason, || self.run_job(job, share));
        let mut background = self.background.lock();
        background.compacting -= 1;
        background.busy.release(job);
        match &outcome {
            Ok(failure) => {
                if let Some(error) = failure {
                    tracing::error!(%error, "a compaction leaves values as they were");
                }
                background.compaction_error = None;
                background.left_as_it_was.clone_from(failure);
            }
            Err(Error::Closed) => {}
            Err(error) => {
                tracing::error!(%error, "a compaction failed");
                if let Error::Corruption { file, .. } | Error::UnsupportedFormat { file, .. } =
                    error
                {
                    // Trying again would fail again; what is sound elsewhere can still move.
                    let damaged = job.segments().filter(|s| s.path() == *file);
                    for segment in damaged {
                        let id = segment.meta.id;
                        self.quarantined.lock().insert(id, error.clone());
                        let error = error.clone();
                        self.events.emit(|| Event::SegmentQuarantined { segment: id, error });
                    }
                }
                background.compaction_error = Some(error.clone());
            }
        }
        drop(background);
        self.update_pressure();
        self.progress.notify_all();
        if outcome.is_ok() {
            self.work.notify_all();
        }
        outcome
    }

    fn run_job(&self, job: &Job, share: &dyn Fn(f64)) -> Result<Made> {
        let state = self.state.load_full();
        let Some(tree) = state.version.trees.get(&job.keyspace) else { return Ok(Made::default()) };
        let removed: Vec<Arc<Segment>> = job.segments().cloned().collect();
        if job.action == Action::Drop {
            self.counters.drops.fetch_add(removed.len() as u64, Ordering::Relaxed);
            self.install(removed, Vec::new(), job.output, None)?;
            return Ok(Made::default());
        }
        if job.action == Action::Move && self.may_move(job) {
            let moved = |s: &Arc<Segment>| {
                Arc::new(SegmentMeta { level: job.output_level, ..SegmentMeta::clone(&s.meta) })
            };
            let metas: Vec<_> = removed.iter().map(moved).collect();
            self.counters.moves.fetch_add(1, Ordering::Relaxed);
            let outputs = Made::ids(&metas);
            self.install(removed, metas, job.output, None)?;
            return Ok(Made { outputs, ..Made::default() });
        }
        let filter = self.filter_of(tree.id);
        // Before the look at the snapshots, and until readers see what came of the job.
        let _filtering = filter.as_ref().map(|_| self.snapshots.filtering());
        let (boundaries, expired_by) = self.boundaries();
        let applied = state.version.flushed.min(boundaries[0]);
        let (clears, deletes) = (tree.clears.clone(), Arc::clone(&tree.deletes));
        let operator = self.operator_of(tree.id);
        let mut spec = self.output_spec(tree, job.output_level, applied, &deletes);
        let filter = filter.map(|(filter, keyspace)| Filtering {
            filter,
            keyspace,
            snapshot: self.snapshots.newest(),
        });
        let retention = Retention { boundaries, clears, deletes, expired_by, operator, filter };
        let mut merge = InputMerge::new(job.inputs.clone());
        let is_absent = |key: &[u8]| self.is_absent(tree, key, &removed);
        let older = older_than(tree, &removed).unless(&is_absent);
        spec.segment_bytes = job.piece_bytes.unwrap_or(spec.segment_bytes);
        let entries: u64 = removed.iter().map(|s| s.meta.entries).sum();
        let passed = Cell::new(0_u64);
        let stop = |since: u64| {
            passed.set(passed.get() + since);
            share(passed.get() as f64 / entries.max(1) as f64);
            self.stopping()
        };
        let output = write_run(
            &self.home,
            &mut merge,
            &retention,
            older,
            &spec,
            &|| self.ids.next_segment(),
            &stop,
        )?;
        drop(merge);
        let Output { segments, bytes_written, entries_in, entries_out, failure } = output;
        let outputs = Made::ids(&segments);
        self.install(removed, segments, job.output, None)?;
        self.counters.compactions.fetch_add(1, Ordering::Relaxed);
        self.counters.compacted_bytes.fetch_add(bytes_written, Ordering::Relaxed);
        // The job is done: what could not be merged or filtered is there as it was.
        Ok(Made { outputs, bytes_written, entries_in, entries_out, failure })
    }

    /// Commits what a job made: one manifest edit, then the new version, then the old files go.
    ///
    /// Only now is it settled which runs the new segments are in: see [`OutputRun`]. If the keyspace
    /// was dropped or cleared meanwhile, so that an input is gone, what the job made for it is
    /// thrown away instead.
    pub(super) fn install(
        &self,
        removed: Vec<Arc<Segment>>,
        added: Vec<Arc<SegmentMeta>>,
        output: OutputRun,
        flushed: Option<(&Arc<MemSlot>, SeqNo)>,
    ) -> Result<()> {
        let mut committer = self.committer.lock();
        let committer = &mut *committer;
        let stale = removed.iter().any(|s| !committer.state.segments.contains_key(&s.meta.id));
        let (added, discarded): (Vec<_>, Vec<_>) = added
            .into_iter()
            .partition(|meta| !stale && committer.state.keyspaces.contains_key(&meta.keyspace));
        // A segment that was only to be moved has readers, perhaps; its file goes with the last.
        let is_new = |m: &&Arc<SegmentMeta>| !removed.iter().any(|s| s.meta.id == m.id);
        remove_segments(&self.home, discarded.iter().filter(is_new));
        if stale {
            return Ok(());
        }
        let added = self.place(&committer.state, added, output);
        // Opened before the commit: a segment that cannot be read back must not be named.
        let opened: Result<Vec<_>> = added
            .iter()
            .map(|meta| match committer.live.get(&meta.id) {
                Some(moved) => Ok(moved.with_meta(Arc::clone(meta))),
                None => Segment::open(&self.home, Arc::clone(meta), true),
            })
            .collect();
        let opened =
            opened.inspect_err(|_| remove_segments(&self.home, added.iter().filter(is_new)))?;
        let mut changes: Vec<Change> =
            removed.iter().map(|s| Change::RemoveSegment(s.meta.id)).collect();
        changes.extend(added.iter().cloned().map(Change::AddSegment));
        if let Some((slot, flushed)) = flushed {
            changes.extend(range_deletes_of(slot, &committer.state));
            changes.push(Change::LogFloor(self.floor_without(slot)));
            changes.push(Change::Flushed(flushed.max(committer.state.flushed)));
        }
        changes.push(self.next_ids(committer.state.next_keyspace));
        self.commit_edit(committer, Edit { changes }).inspect_err(|_| {
            // With a poisoned manifest nobody knows whether it names them.
            if !committer.manifest.is_poisoned() {
                remove_segments(&self.home, added.iter().filter(is_new));
            }
        })?;
        for segment in &removed {
            committer.live.remove(&segment.meta.id);
        }
        for segment in &opened {
            if !removed.iter().any(|s| s.meta.id == segment.meta.id) {
                segment.mark_live();
                // Theirs are the manifest's now, too.
                self.home.values.settle(segment.meta.id);
            }
            committer.live.insert(segment.meta.id, Arc::clone(segment));
        }
        let version = Arc::new(Version::build(&committer.state, &committer.live));
        let publish = || {
            self.change_state(|state| {
                let mut frozen = state.frozen.clone();
                if let Some((slot, _)) = flushed {
                    frozen.retain(|other| !Arc::ptr_eq(other, slot));
                }
                ReadState::new(Arc::clone(&state.active), frozen, version)
            });
        };
        #[cfg(test)]
        if self.publish_before_map.load(Ordering::Relaxed) {
            publish();
            self.change_map(&removed, &opened, flushed.is_some());
            return Ok(());
        }
        // The map first: a reader of the new state must find there what a memtable no longer has.
        self.change_map(&removed, &opened, flushed.is_some());
        publish();
        for segment in removed.iter().filter(|s| !committer.live.contains_key(&s.meta.id)) {
            segment.mark_obsolete();
        }
        Ok(())
    }

    /// Makes an edit known to the key map. What is among both the removed and the added has only
    /// moved.
    pub(super) fn change_map(
        &self,
        removed: &[Arc<Segment>],
        added: &[Arc<Segment>],
        is_flush: bool,
    ) {
        let was_there = |segment: &Segment| removed.iter().any(|r| r.meta.id == segment.meta.id);
        let stays = |segment: &Segment| added.iter().any(|a| a.meta.id == segment.meta.id);
        let ranked = |s: &Arc<Segment>| (Arc::clone(s), s.rank());
        let (moved, added): (Vec<_>, Vec<_>) =
            added.iter().map(ranked).partition(|(segment, _)| was_there(segment));
        let removed: Vec<SegmentId> =
            removed.iter().filter(|s| !stays(s)).map(|s| s.meta.id).collect();
        self.keymap.apply(MapEdit { added: &added, removed: &removed, moved: &moved, is_flush });
        if self.options.check_key_map
            && let Err(what) = self.keymap.check()
        {
            panic!("the key map is not what the segments say: {what}");
        }
    }

    /// Fills some shards of the key map, if any are missing.
    pub(super) fn fill_map(&self) -> bool {
        let watch = self.watch();
        let filled = self.keymap.fill_next();
        if filled && tracing::enabled!(tracing::Level::DEBUG) {
            let (map, micros) = (self.keymap.stats(), watch.elapsed().as_micros() as u64);
            let (shards, entries, bytes) = (map.resident, map.entries, map.table_bytes);
            tracing::debug!(shards, entries, bytes, micros, "filled a part of the key map");
        }
        filled
    }

    /// Gives new segments the number of their run, one for each keyspace and level. Under the
    /// committer's lock, so that a new run is newer than all others.
    pub(super) fn place(
        &self,
        state: &ManifestState,
        added: Vec<Arc<SegmentMeta>>,
        output: OutputRun,
    ) -> Vec<Arc<SegmentMeta>> {
        let mut runs = BTreeMap::new();
        let mut placed = Vec::with_capacity(added.len());
        for meta in added {
            let run = *runs.entry((meta.keyspace, meta.level)).or_insert_with(|| {
                // Taken even if it is not needed: so has every version numbered runs, and the
                // golden databases show it.
                let fresh = self.next_run();
                match output {
                    OutputRun::Join(Some(run)) => run,
                    OutputRun::Join(None) => oldest_run(state, &meta).unwrap_or(fresh),
                    OutputRun::New => fresh,
                }
            });
            placed.push(Arc::new(SegmentMeta { run, ..SegmentMeta::clone(&meta) }));
        }
        placed
    }

    /// Writes an edit. If that fails and what the manifest holds is unknown, writes are refused;
    /// else nothing has changed.
    pub(super) fn commit_edit(&self, committer: &mut Committer, edit: Edit) -> Result<()> {
        committer.manifest.commit(&mut committer.state, &edit).inspect_err(|error| {
            if committer.manifest.is_poisoned() {
                self.poison(error);
            }
        })?;
        self.manifest_edit.store(committer.state.edit_number, Ordering::Release);
        Ok(())
    }

    /// The oldest log still needed once `slot` is flushed.
    fn floor_without(&self, slot: &Arc<MemSlot>) -> LogId {
        let state = self.state.load();
        let mut newer = state.active.first_log;
        for other in &state.frozen {
            if Arc::ptr_eq(other, slot) {
                break;
            }
            newer = other.first_log;
        }
        newer
    }

    /// Removes the logs that the manifest no longer needs.
    pub(super) fn remove_old_logs(&self) {
        let floor = self.committer.lock().state.log_floor;
        {
            // What they held is durable in segments now.
            let mut sync = self.sync.lock();
            sync.older.retain(|(id, _)| *id >= floor);
        }
        let kept = self.shelf.retire(floor);
        let removed = crate::version::remove_leftovers(&self.home.env, &self.home.dir, |name| {
            let id = crate::wal::parse_log_file_name(name).filter(|id| *id < floor);
            id.is_some_and(|id| !kept.contains(&id))
        });
        if let Err(error) = removed {
            tracing::warn!(%error, "cannot remove an old log; the next flush tries again");
        }
    }

    /// Takes a fresh look at how far compaction is behind.
    pub(super) fn update_pressure(&self) {
        self.note_pressure(&self.state_change.lock());
    }

    /// The same for the one that keeps others from changing the state: what an older state said must
    /// not be noted after what a newer one says.
    pub(super) fn note_pressure(&self, _held: &MutexGuard<'_, ()>) {
        let state = self.state.load();
        let quarantined = self.quarantined.lock();
        let can_move = |tree: &&Arc<Tree>| {
            let mut segments = tree.levels[..2].iter().flatten().flat_map(|run| &run.segments);
            !segments.any(|s| quarantined.contains_key(&s.meta.id))
        };
        let trees = state.version.trees.values().filter(can_move);
        let backlog = trees.map(|tree| self.strategy.backlog(tree)).fold(0.0, f64::max);
        let behind = ((backlog - 2.0) / 4.0).clamp(0.0, 0.99);
        self.pressure.store((behind * 1000.0) as u32, Ordering::Relaxed);
        let last = state.frozen.len() + 1 >= self.options.write_buffers;
        self.last_buffer.store(last, Ordering::Relaxed);
    }

    /// How long a write of so many bytes is to wait. See the module's text.
    pub(super) fn delay(&self, bytes: u64) -> Duration {
        match self.delay_ns(bytes) {
            0 => Duration::ZERO,
            ns => self.counters.save_up_delay(ns),
        }
    }

    /// Whether a write of so many bytes may go on at once. What it owes is noted then.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        matches!(self.options.background, Background::Manual)
            || match self.delay_ns(bytes) {
                0 => !self.is_full(),
                ns => !self.is_full() && self.counters.save_up_little(ns),
            }
    }

    /// Whether every write buffer is full.
    pub(super) fn is_full(&self) -> bool {
        if !self.last_buffer.load(Ordering::Relaxed) {
            return false;
        }
        let state = self.state.load();
        state.frozen.len() + 1 >= self.options.write_buffers
            && state.active.table.allocated_bytes() >= self.options.write_buffer_bytes
    }

    /// What a write of so many bytes adds to the delay, in nanoseconds.
    fn delay_ns(&self, bytes: u64) -> u64 {
        const NS_PER_BYTE: f64 = 10.0;
        let pressure = self.pressure.load(Ordering::Relaxed);
        let last_buffer = self.last_buffer.load(Ordering::Relaxed);
        if pressure == 0 && !last_buffer {
            return 0;
        }
        let mut behind = f64::from(pressure) / 1000.0;
        if last_buffer {
            let filled = self.state.load().active.table.allocated_bytes() as f64
                / self.options.write_buffer_bytes as f64;
            behind = behind.max((2.0 * filled - 1.0).min(0.99));
        }
        if behind <= 0.0 {
            return 0;
        }
        (NS_PER_BYTE * behind * behind / (1.0 - behind) * bytes as f64) as u64
    }
}

/// The oldest run where a segment is to go.
fn oldest_run(state: &ManifestState, meta: &SegmentMeta) -> Option<RunNo> {
    let same_place =
        |other: &&Arc<SegmentMeta>| other.keyspace == meta.keyspace && other.level == meta.level;
    state.segments.values().filter(same_place).map(|there| there.run).min()
}

/// The runs that may hold older versions of what `inputs` hold: those behind the newest input, less
/// the inputs themselves.
fn older_than<'a>(tree: &Tree, inputs: &[Arc<Segment>]) -> OlderData<'a> {
    let ids: HashSet<SegmentId> = inputs.iter().map(|s| s.meta.id).collect();
    let is_input = |s: &Arc<Segment>| ids.contains(&s.meta.id);
    let mut reached = false;
    let mut older = Vec::new();
    for run in tree.runs() {
        reached |= run.segments.iter().any(is_input);
        if reached {
            let others: Vec<_> = run.segments.iter().filter(|s| !is_input(s)).cloned().collect();
            if !others.is_empty() {
                older.push(others);
            }
        }
    }
    OlderData::new(older)
}
