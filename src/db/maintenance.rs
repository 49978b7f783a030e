//! What a user can ask to be done to the whole database: keyspaces, flush, compaction.

use super::commit::Writer;
use super::event::CompactionReason;
use super::keyspace::MAX_KEYSPACE_NAME;
use super::keyspace_core::KeyspaceCore;
use super::keyspace_options::KeyspaceOptions;
use super::observe::{Compacting, Task};
use super::options::Background;
use super::{DEFAULT_ID, Inner, MemSlot, ReadState};
use crate::compaction::{Busy, Job, KeyRange, Mood, Situation};
use crate::error::{Error, Result};
use crate::hash::keyspace_seed;
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::types::{KeyspaceId, SegmentId, SeqNo};
use crate::version::{Change, Edit, KeyspaceSettings, RunNo, Segment, Tree, Version};
use crate::wal::{KeyspaceNote, NotedKeyspace};
use std::cell::Cell;
use std::ops::Bound;
use std::time::Duration;

impl Inner {
    pub(super) fn next_ids(&self, keyspace: KeyspaceId) -> Change {
        Change::Next {
            segment: SegmentId(self.ids.segment.load(Ordering::Relaxed)),
            log: crate::types::LogId(self.ids.log.load(Ordering::Relaxed)),
            keyspace,
            run: RunNo(self.ids.run.load(Ordering::Relaxed)),
        }
    }

    /// The keyspace of this name, created if it is missing, and changed as the options ask.
    pub(super) fn open_keyspace(
        &self,
        name: &str,
        options: &KeyspaceOptions,
    ) -> Result<Arc<KeyspaceCore>> {
        let refuse = |reason| Error::InvalidKeyspaceName { name: name.to_owned(), reason };
        if name.is_empty() {
            return Err(refuse("it must not be empty"));
        }
        if name.len() > MAX_KEYSPACE_NAME {
            return Err(refuse("it must be at most 255 bytes long"));
        }
        self.check_open()?;
        let ready_made = self.options.ready_made_operators;
        // If it is as it is to be, nothing is written.
        let as_it_is = |core: &KeyspaceCore| -> Result<bool> {
            let now = core.settings();
            Ok(options.settings(name, now.clone())? == now)
        };
        let find = || self.keyspaces.lock().get(name).cloned();
        if let Some(core) = find()
            && as_it_is(&core)?
        {
            let operator = options.operator(Some(&core), name, &core.settings(), ready_made)?;
            options.equip(&core, operator);
            return Ok(core);
        }
        let mut writer = self.writer.lock();
        self.check_writable()?;
        let known = find();
        let now = known.as_ref().map_or_else(KeyspaceSettings::default, |core| core.settings());
        let settings = options.settings(name, now.clone())?;
        // Before anything is written: who is refused has changed nothing.
        let operator = options.operator(known.as_deref(), name, &settings, ready_made)?;
        if let Some(core) = known.as_ref().filter(|_| settings == now) {
            options.equip(core, operator);
            return Ok(Arc::clone(core));
        }
        // What the user saw before must not be lost while the keyspace stays.
        self.make_all_durable()?;
        let mut committer = self.committer.lock();
        let mut changes = Vec::new();
        let core = match known {
            Some(core) => core,
            None => {
                let id = committer.state.next_keyspace;
                let next = id.0.checked_add(1).ok_or_else(|| refuse("all ids are used up"))?;
                changes.push(Change::CreateKeyspace { id, name: name.to_owned() });
                changes.push(self.next_ids(KeyspaceId(next)));
                let seed = keyspace_seed(committer.state.hash_seed, id);
                let (name, now) = (name.to_owned(), now.clone());
                KeyspaceCore::new(self.database, seed, id, name, now)
            }
        };
        if settings != now {
            changes.push(Change::SetOptions { id: core.id, settings: settings.clone() });
        }
        self.commit_edit(&mut committer, Edit { changes })?;
        // Not before the manifest has its name; and first, so that who finds the name finds the operator.
        options.equip(&core, operator);
        core.set_settings(settings);
        self.publish_version(&Version::build(&committer.state, &committer.live));
        self.witness(&mut writer);
        self.keyspaces.lock().insert(name.to_owned(), Arc::clone(&core));
        self.tell(&mut writer, || KeyspaceNote::One(noted(&core, SeqNo::ZERO)));
        Ok(core)
    }

    /// Sees to it that the log says which keyspaces there are, if change feeds are wanted. Before anything
    /// in a log takes a number.
    pub(super) fn tell_keyspaces(&self, writer: &mut Writer) -> Result<()> {
        if !self.shelf.is_used() || writer.log.tells_keyspaces() {
            return Ok(());
        }
        let state = self.state.load();
        let last_clear = |id| state.version.trees.get(&id)?.clears.last().copied();
        let keyspaces = self.keyspaces.lock();
        let all =
            keyspaces.values().map(|core| noted(core, last_clear(core.id).unwrap_or_default()));
        let mut all: Vec<_> = all.collect();
        drop(keyspaces);
        all.sort_unstable_by_key(|keyspace| keyspace.id);
        writer.log.append_keyspaces(&KeyspaceNote::All(all))
    }

    /// Tells change feeds what was just done to a keyspace. If that fails, another log will be begun, which
    /// says it all.
    pub(super) fn tell(&self, writer: &mut Writer, note: impl FnOnce() -> KeyspaceNote) {
        if !self.shelf.is_used() {
            return;
        }
        let told = if writer.log.tells_keyspaces() {
            writer.log.append_keyspaces(&note())
        } else {
            self.tell_keyspaces(writer)
        };
        if let Err(error) = told {
            tracing::warn!(%error, "cannot note in the log what was done to a keyspace");
        }
    }

    /// Notes in the log that the manifest's last edit is durable, so that an older manifest is not
    /// taken for the newest. If that fails, the edit is no less durable.
    pub(super) fn witness(&self, writer: &mut Writer) {
        let edit = self.manifest_edit.load(Ordering::Acquire);
        if let Err(error) = writer.log.append_witness(edit) {
            tracing::warn!(%error, "cannot note in the log what the manifest holds");
        }
    }

    pub(super) fn publish_version(&self, version: &Version) {
        let version = Arc::new(version.clone());
        self.change_state(|state| {
            ReadState::new(Arc::clone(&state.active), state.frozen.clone(), version)
        });
    }

    pub(super) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }

    pub(super) fn drop_keyspace(&self, name: &str) -> Result<()> {
        let mut writer = self.writer.lock();
        self.check_writable()?;
        let core = self.keyspaces.lock().get(name).cloned();
        let core = core.ok_or_else(|| Error::KeyspaceNotFound { name: name.to_owned() })?;
        if core.id == DEFAULT_ID {
            let reason = "the default keyspace cannot be dropped; clear it instead";
            return Err(Error::InvalidKeyspaceName { name: name.to_owned(), reason });
        }
        self.make_all_durable()?;
        let mut committer = self.committer.lock();
        let changes = vec![Change::DropKeyspace(core.id)];
        self.commit_edit(&mut committer, Edit { changes })?;
        self.witness(&mut writer);
        core.dropped.store(true, Ordering::Release);
        self.keyspaces.lock().remove(name);
        self.tell(&mut writer, || KeyspaceNote::Dropped(core.id));
        let gone: Vec<_> =
            committer.live.values().filter(|s| s.meta.keyspace == core.id).cloned().collect();
        for segment in &gone {
            committer.live.remove(&segment.meta.id);
        }
        self.publish_version(&Version::build(&committer.state, &committer.live));
        // Nobody asks for these keys any more, so the map may lag behind, and writes need not wait.
        drop(writer);
        self.change_map(&gone, &[], false);
        for segment in gone {
            segment.mark_obsolete();
        }
        Ok(())
    }

    pub(super) fn clear(&self, core: &Arc<KeyspaceCore>) -> Result<()> {
        {
            let mut writer = self.writer.lock();
            self.check_writable()?;
            core.check_live()?;
            if writer.log.must_rotate() {
                self.rotate(&mut writer)?;
            }
            self.tell_keyspaces(&mut writer)?;
            // A sequence number of its own, so that a snapshot of the moment before is not
            // touched. The log is synced up to it: the clear is durable, so what came before it
            // must be.
            let seqno = writer.log.next_seqno();
            writer.log.append_skip()?;
            self.sync.note_appended(writer.log.end());
            self.make_all_durable()?;
            // So that damage to the skip cannot be mistaken for a torn tail.
            let end = writer.log.end();
            writer.log.mark_durable(end);
            writer.log.append_mark()?;
            self.sync.note_appended(writer.log.end());
            let mut committer = self.committer.lock();
            let changes = vec![Change::Clear { id: core.id, seqno }];
            self.commit_edit(&mut committer, Edit { changes })?;
            self.publish_version(&Version::build(&committer.state, &committer.live));
            drop(committer);
            // In front of the number: who sees that finds out what it stands for.
            self.tell(&mut writer, || KeyspaceNote::One(noted(core, seqno)));
            writer.written.note_all(core.id);
            self.visible.store(seqno.0, Ordering::Release);
            self.witness(&mut writer);
        }
        self.announce_work();
        Ok(())
    }

    pub(super) fn approximate_size(
        &self,
        core: &Arc<KeyspaceCore>,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
    ) -> Result<u64> {
        self.check_open()?;
        core.check_live()?;
        let state = self.state.load_full();
        let Some(tree) = state.version.trees.get(&core.id) else { return Ok(0) };
        let mut bytes = 0;
        for segment in tree.segments() {
            bytes += segment.reader().approximate_bytes(lower, upper)?;
        }
        Ok(bytes)
    }

    /// Freezes the active memtable if there is anything in it.
    pub(super) fn freeze(&self) -> Result<()> {
        let mut writer = self.writer.lock();
        self.check_writable()?;
        if writer.active.table.entries() > 0 { self.rotate(&mut writer) } else { Ok(()) }
    }

    pub(super) fn flush(&self) -> Result<()> {
        self.freeze()?;
        let newest = self.state.load().frozen.first().cloned();
        let Some(newest) = newest else { return Ok(()) };
        let is_newest = |slot: &&Arc<MemSlot>| Arc::ptr_eq(slot, &newest);
        let waiting = || self.state.load().frozen.iter().any(|slot| is_newest(&slot));
        // Entries of this memtable and the older ones that are not flushed yet.
        let left = || {
            let state = self.state.load();
            let slots = state.frozen.iter().skip_while(|slot| !is_newest(slot));
            slots.map(|slot| slot.table.entries() as u64).sum::<u64>()
        };
        let (total, most) = (left(), Cell::new(0));
        let report = |passed: u64| {
            if self.options.progress.is_some() {
                most.set(most.get().max(total.saturating_sub(left().saturating_sub(passed))));
                self.report(Task::Flush, most.get(), total);
            }
        };
        while waiting() {
            report(self.counters.flush_passed.load(Ordering::Relaxed));
            self.check_writable()?;
            if self.options.background == Background::Manual {
                self.flush_oldest_watched(&report)?;
                continue;
            }
            let mut background = self.background.lock();
            if let Some(error) = &background.flush_error {
                return Err(error.clone());
            }
            if background.stopping {
                return Err(Error::Closed);
            }
            if waiting() {
                self.work.notify_all();
                self.progress.wait_for(&mut background, Duration::from_millis(100));
            }
        }
        report(0);
        Ok(())
    }

    pub(super) fn wait_idle(&self) -> Result<()> {
        if self.options.background == Background::Manual {
            while self.step()? {}
            return Ok(());
        }
        self.background.lock().waiting += 1;
        let outcome = self.wait_until_idle();
        self.background.lock().waiting -= 1;
        outcome
    }

    fn wait_until_idle(&self) -> Result<()> {
        loop {
            self.check_writable()?;
            let mut background = self.background.lock();
            if background.stopping {
                return Err(Error::Closed);
            }
            let state = self.state.load();
            let at_work = background.flushing || background.compacting > 0;
            if !at_work && state.frozen.is_empty() {
                let quarantine = self.quarantine();
                let now = self.situation(&quarantine, Mood::Calm);
                if !state.version.trees.values().any(|t| self.pick(t, &now).is_some()) {
                    return Ok(());
                }
            }
            let failed = background.compaction_error.as_ref();
            if let Some(error) = background.flush_error.as_ref().or(failed) {
                return Err(error.clone());
            }
            drop(state);
            self.work.notify_all();
            self.progress.wait_for(&mut background, Duration::from_millis(100));
        }
    }

    pub(super) fn compact_range(
        &self,
        core: &Arc<KeyspaceCore>,
        first: Option<&[u8]>,
        last: Option<&[u8]>,
    ) -> Result<()> {
        core.check_live()?;
        self.flush()?;
        let range = self.range_until_now(first, last);
        let unfiltered = SegmentId(self.ids.segment.load(Ordering::Relaxed));
        let pick = |tree: &Tree, now: &Situation<'_>| self.strategy.pick_range(tree, &range, now);
        let total = {
            let state = self.state.load();
            let segments = state.version.trees.get(&core.id).into_iter().flat_map(|t| t.segments());
            segments.filter(|s| range.concerns(s)).map(|s| s.meta.file_len).sum()
        };
        let compacting = Compacting::new(self, total);
        // What an operator or a filter fails on, or a damaged value, keeps nothing else from being compacted.
        let mut failure = None;
        while self.run_when_free(core.id, &pick, &compacting, &mut failure)? {}
        if self.options.merges() {
            self.clean_in_place(core.id, first, last, unfiltered, &compacting, &mut failure)?;
        }
        compacting.end();
        failure.map_or(Ok(()), Err)
    }

    /// Keys for a manual compaction of what is there now.
    pub(super) fn range_until_now<'a>(
        &self,
        first: Option<&'a [u8]>,
        last: Option<&'a [u8]>,
    ) -> KeyRange<'a> {
        let limit = SeqNo(self.visible.load(Ordering::Acquire));
        let next_run = RunNo(self.ids.run.load(Ordering::Relaxed));
        KeyRange { first, last, limit, next_run }
    }

    /// Rewrites the segments below level 0 that carry tombstones or old versions, each in its run:
    /// they came there while a snapshot needed those, and nothing will come down on them by itself.
    /// If there is a filter, also those with ids before `unfiltered`.
    fn clean_in_place(
        &self,
        keyspace: KeyspaceId,
        first: Option<&[u8]>,
        last: Option<&[u8]>,
        unfiltered: SegmentId,
        compacting: &Compacting<'_>,
        failure: &mut Option<Error>,
    ) -> Result<()> {
        let in_range = |s: &Arc<Segment>| {
            first.is_none_or(|first| *first <= s.meta.last_key[..])
                && last.is_none_or(|last| s.meta.first_key[..] <= *last)
        };
        let state = self.state.load_full();
        let Some(tree) = state.version.trees.get(&keyspace) else { return Ok(()) };
        let filters = self.filter_of(keyspace).is_some();
        let stale = |s: &Arc<Segment>| {
            filters && s.meta.id < unfiltered
                || s.meta.tombstones > 0
                || s.has_operands()
                || self.holds_hidden(tree, s)
                || s.holds_versions()
        };
        let segments = tree.segments().filter(|s| s.meta.level > 0 && in_range(s) && stale(s));
        let ids: Vec<SegmentId> = segments.map(|s| s.meta.id).collect();
        for id in ids {
            // Looked up anew: it may have gone, or moved to another level, since.
            let pick = |tree: &Tree, now: &Situation<'_>| {
                let segment = tree.segments().find(|s| s.meta.id == id)?;
                let job = Job::rewrite(segment);
                (segment.meta.level > 0 && now.busy.admits(&job)).then_some(job)
            };
            self.run_when_free(keyspace, &pick, compacting, failure)?;
        }
        Ok(())
    }

    /// Runs the job that `pick` gives, once no other job has any of its segments. `false` if it
    /// gives none. What first kept one from merging, filtering or moving a value goes to `failure`.
    fn run_when_free(
        &self,
        keyspace: KeyspaceId,
        pick: &dyn Fn(&Tree, &Situation<'_>) -> Option<Job>,
        compacting: &Compacting<'_>,
        failure: &mut Option<Error>,
    ) -> Result<bool> {
        loop {
            self.check_writable()?;
            let mut background = self.background.lock();
            if background.stopping {
                return Err(Error::Closed);
            }
            let state = self.state.load();
            let Some(tree) = state.version.trees.get(&keyspace) else { return Ok(false) };
            let nothing = Busy::default();
            let alone = self.situation(&nothing, Mood::Busy);
            let Some(wanted) = pick(tree, &alone) else { return Ok(false) };
            let quarantined = self.quarantined.lock();
            if let Some(error) = wanted.segments().find_map(|s| quarantined.get(&s.meta.id)) {
                return Err(error.clone());
            }
            drop(quarantined);
            if let Some(job) = pick(tree, &self.situation(&background.busy, Mood::Busy)) {
                background.busy.take(&job);
                background.compacting += 1;
                drop(state);
                drop(background);
                let bytes = job.bytes();
                let share = |share| compacting.within(bytes, share);
                let failed = self.run_claimed(&job, CompactionReason::Asked, &share)?;
                compacting.add(bytes);
                *failure = failure.take().or(failed);
                return Ok(true);
            }
            drop(state);
            self.progress.wait_for(&mut background, Duration::from_millis(100));
        }
    }
}

fn noted(core: &KeyspaceCore, cleared: SeqNo) -> NotedKeyspace {
    NotedKeyspace { id: core.id, name: core.name.clone(), cleared }
}
