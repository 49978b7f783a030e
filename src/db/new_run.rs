//! Segments that are written beside the database, and become part of a keyspace all at once.
//!
//! ```text
//! entries ─▶ NewRun ─▶ files that nothing names, their entries without numbers
//!                        │  under the writer's lock: memtables flushed, a number S taken, a new log
//!                        ▼
//!                      one edit of the manifest: the log floor, S, the segments with S for all entries
//! ```
//!
//! The number is not known while the files are written, so the manifest gives it: an entry that carries
//! none has the smallest number of its segment. Everything written before is in segments by then,
//! and what comes later is newer; so the run belongs in front of all others, or, where nothing shares
//! keys with it, to the bottom.
//!
//! The key map knows the segments before, because to learn their keys takes time that writers should not
//! wait for: under a number that nobody reads at. Point reads without a snapshot that meet it there look
//! again: see `point`.
//!
//! The log has the number as a skip, and behind the edit, if there are change feeds, a note that says
//! for what. Before that is published, the transactions that are open are told of the keys.
//!
//! Invariants: until the edit nothing names the files, and if it does not come to that they are
//! removed, by the next open at the latest; the edit's number is in no other entry. A run belongs to one
//! thread at a time. Called by `ingest` and `bulk`.

use super::batch::check_sizes;
use super::commit::Writer;
use super::keyspace_core::KeyspaceCore;
use super::{Inner, MemSlot, ReadState};
use crate::compaction::{OutputRun, OutputSpec, meta_of, remove_segments};
use crate::deletes::RangeDeletes;
use crate::error::{Error, Result};
use crate::segment::SegmentWriter;
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::types::{Kind, SegmentId, SeqNo};
use crate::version::{Change, Edit, LEVELS, RunNo, Segment, SegmentMeta, Version};
use crate::wal::KeyspaceNote;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The number of what nobody is to see yet: above all that are given out.
const UNPUBLISHED: SeqNo = SeqNo(u64::MAX - 1);

/// The level where nothing older can be.
const BOTTOM: u8 = (LEVELS - 1) as u8;

/// How many entries pass between two looks at whether the database is open.
const CHECK_EVERY: u64 = 1024;

/// Puts on their way into a keyspace, in segments that nothing names. Dropped, it removes them.
pub(super) struct NewRun {
    inner: Arc<Inner>,
    core: Arc<KeyspaceCore>,
    spec: OutputSpec,
    /// How many of the cuts lie behind.
    cuts_passed: usize,
    /// When puts expire that do not say so themselves, if they do.
    usual_expiry_ms: Option<u64>,
    open: Option<(SegmentId, PathBuf, SegmentWriter)>,
    finished: Vec<Arc<SegmentMeta>>,
    last_key: Vec<u8>,
    entries: u64,
    /// A value with its expiry.
    expiring: Vec<u8>,
}

impl std::fmt::Debug for NewRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewRun")
            .field("keyspace", &self.core.name)
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}

impl NewRun {
    pub(super) fn begin(inner: &Arc<Inner>, core: &Arc<KeyspaceCore>) -> Result<NewRun> {
        inner.check_writable()?;
        core.check_live()?;
        let state = inner.state.load_full();
        let tree = state.version.trees.get(&core.id);
        let tree = tree.ok_or_else(|| Error::KeyspaceDropped { name: core.name.clone() })?;
        let mut spec = inner.output_spec(tree, 0, SeqNo::ZERO, &RangeDeletes::default());
        spec.segment.numbered_from = SeqNo(inner.visible.load(Ordering::Acquire) + 1);
        let usual_expiry_ms = match core.usual_ttl_ms() {
            None => None,
            Some(ttl_ms) => Some(inner.expiry_after(ttl_ms)?),
        };
        Ok(NewRun {
            inner: Arc::clone(inner),
            core: Arc::clone(core),
            spec,
            cuts_passed: 0,
            usual_expiry_ms,
            open: None,
            finished: Vec::new(),
            last_key: Vec::new(),
            entries: 0,
            expiring: Vec::new(),
        })
    }

    /// How many entries it has.
    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// Adds a key above the one before. It expires as the keyspace's entries do if it does not say itself
    /// when, and never if that is the end of time. After an error the run is worthless.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8], expires_ms: Option<u64>) -> Result<()> {
        let expiry = expires_ms.or(self.usual_expiry_ms).filter(|expiry| *expiry != u64::MAX);
        check_sizes(key, value, expiry.is_some())?;
        if self.entries > 0 && *key <= self.last_key[..] {
            return Err(Error::OutOfOrder { entry: self.entries });
        }
        if self.entries.is_multiple_of(CHECK_EVERY) {
            self.inner.check_writable()?;
            self.core.check_live()?;
        }
        let at_cut = self.pass_cuts(key);
        let is_full = |writer: &SegmentWriter| {
            let bytes = writer.estimated_bytes();
            writer.is_full()
                || bytes + value.len() as u64 > self.spec.segment_bytes
                || at_cut && bytes >= self.spec.min_piece_bytes
        };
        if self.open.as_ref().is_some_and(|(_, _, writer)| is_full(writer)) {
            self.close()?;
        }
        let (_, _, writer) = match &mut self.open {
            Some(open) => open,
            none => {
                let id = self.inner.ids.next_segment();
                let path = self.inner.home.path(id);
                let options = self.spec.segment.clone();
                let writer = SegmentWriter::create_in(&self.inner.home.env, &path, options)?;
                none.insert((id, path, writer))
            }
        };
        match expiry {
            None => writer.add(key, SeqNo::ZERO, Kind::Put, value)?,
            Some(expiry) => {
                self.expiring.clear();
                self.expiring.extend_from_slice(&expiry.to_le_bytes());
                self.expiring.extend_from_slice(value);
                writer.add(key, SeqNo::ZERO, Kind::PutUntil, &self.expiring)?;
            }
        }
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
        self.entries += 1;
        Ok(())
    }

    /// Whether a cut lies behind the key before and not behind this one.
    fn pass_cuts(&mut self, key: &[u8]) -> bool {
        let ahead = self.spec.cuts.get(self.cuts_passed..).unwrap_or_default();
        let passed = ahead.iter().take_while(|cut| cut[..] <= *key).count();
        self.cuts_passed += passed;
        passed > 0
    }

    fn close(&mut self) -> Result<()> {
        let Some((id, path, writer)) = self.open.take() else { return Ok(()) };
        match writer.finish_file() {
            Ok(info) => {
                self.finished.push(Arc::new(meta_of(id, self.core.id, 0, &info)));
                Ok(())
            }
            Err(error) => {
                self.remove(&path);
                Err(error)
            }
        }
    }

    fn remove(&self, path: &Path) {
        if let Err(error) = self.inner.home.env.vfs.remove_file(path) {
            // Nothing names the file; the next open removes it.
            tracing::warn!(path = %path.display(), %error, "cannot remove a segment");
        }
    }

    /// Makes everything that was added part of the keyspace, at once and durably. Gives how many entries
    /// that were.
    pub(super) fn finish(mut self) -> Result<u64> {
        self.close()?;
        if self.finished.is_empty() {
            return Ok(0);
        }
        let (inner, core) = (Arc::clone(&self.inner), Arc::clone(&self.core));
        let _after = inner.events.after();
        let dir = &inner.home.dir;
        inner.home.env.vfs.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))?;
        let mut segments = std::mem::take(&mut self.finished);
        let adopt = |segments: &mut _| inner.adopt(&core, segments);
        let outcome = inner.observe_load(&core, self.entries, &mut segments, adopt);
        // What is left of them goes with the run.
        self.finished = segments;
        outcome.map(|()| self.entries)
    }
}

impl Drop for NewRun {
    fn drop(&mut self) {
        if let Some((_, path, writer)) = self.open.take() {
            drop(writer);
            self.remove(&path);
        }
        remove_segments(&self.inner.home, &self.finished);
    }
}

impl Inner {
    /// When something expires that is to live so long from now on.
    fn expiry_after(&self, ttl_ms: u64) -> Result<u64> {
        self.now_ms().checked_add(ttl_ms).filter(|expiry| *expiry != u64::MAX).ok_or(
            Error::InvalidTtl {
                ttl_ms: u128::from(ttl_ms),
                reason: "reaches past the end of time: leave it out",
            },
        )
    }

    /// Makes the segments of a new run, in key order, part of a keyspace. Those that are left in the list
    /// nobody knows.
    fn adopt(&self, core: &KeyspaceCore, segments: &mut Vec<Arc<SegmentMeta>>) -> Result<()> {
        // In front of all others, so that whoever looks for one of their keys meets them first.
        let (run, smallest, largest) = (RunNo(u64::MAX >> 8), UNPUBLISHED, UNPUBLISHED);
        let unpublished = |meta: &Arc<SegmentMeta>| {
            let meta = SegmentMeta { run, smallest, largest, ..SegmentMeta::clone(meta) };
            Segment::open(&self.home, Arc::new(meta), true)
        };
        let known: Vec<Arc<Segment>> = segments.iter().map(unpublished).collect::<Result<_>>()?;
        self.change_map(&[], &known, true);
        let outcome = self.adopt_known(core, segments, &known);
        if outcome.is_err() {
            self.change_map(&known, &[], false);
            if !segments.is_empty() {
                // With whoever reads them still.
                for segment in &known {
                    segment.mark_obsolete();
                }
                segments.clear();
            }
        }
        outcome
    }

    /// The same for segments that the key map knows.
    fn adopt_known(
        &self,
        core: &KeyspaceCore,
        segments: &mut Vec<Arc<SegmentMeta>>,
        known: &[Arc<Segment>],
    ) -> Result<()> {
        let (Some(first), Some(last)) = (segments.first(), segments.last()) else { return Ok(()) };
        let (first, last) = (first.first_key.clone(), last.last_key.clone());
        // Most of what is in memory goes while others may write.
        self.flush()?;
        let mut writer = self.writer.lock();
        let writer = &mut *writer;
        self.check_writable()?;
        core.check_live()?;
        if writer.log.must_rotate() || writer.active.table.entries() > 0 {
            self.rotate(writer)?;
        }
        // Before the number is taken: or it would count as flushed, and the moment in front of it be lost.
        self.flush_frozen()?;
        self.tell_keyspaces(writer)?;
        // A number of its own, so that a snapshot of the moment before does not see it. The header of the
        // new log makes it durable, and that no older log is needed the edit says.
        let seqno = writer.log.next_seqno();
        writer.log.append_skip()?;
        self.sync.note_appended(writer.log.end());
        self.rotate(writer)?;
        self.tell_keyspaces(writer)?;
        let claim = |taking: bool| {
            let busy = &mut self.background.lock().busy;
            if taking {
                busy.take_span(core.id, BOTTOM, &first, &last)
            } else {
                busy.release_span(core.id, BOTTOM, &first, &last)
            }
        };
        // No job at work will write to the bottom there.
        let has_bottom = self.options.merges() && claim(true);
        let outcome = self.commit_adopted(writer, core, seqno, segments, known, has_bottom);
        if has_bottom {
            claim(false);
        }
        outcome?;
        let id = core.id;
        for segment in known {
            let meta = &segment.meta;
            writer.written.note_span(id, &meta.first_key, &meta.last_key);
        }
        // In front of the number: who sees that finds out what it stands for.
        self.tell(writer, || KeyspaceNote::Loaded { id, seqno, first, last });
        self.witness(writer);
        self.visible.store(seqno.0, Ordering::Release);
        self.remove_old_logs();
        self.announce_work();
        Ok(())
    }

    /// Flushes every memtable that is frozen. For the holder of the writer's lock.
    fn flush_frozen(&self) -> Result<()> {
        while !self.state.load().frozen.is_empty() {
            if self.flush_oldest()? {
                continue;
            }
            self.check_writable()?;
            let mut background = self.background.lock();
            if background.stopping {
                return Err(Error::Closed);
            }
            if background.flushing {
                self.progress.wait_for(&mut background, Duration::from_millis(100));
            }
        }
        Ok(())
    }

    /// The edit, and what follows from it, but for publishing the number.
    fn commit_adopted(
        &self,
        writer: &mut Writer,
        core: &KeyspaceCore,
        seqno: SeqNo,
        segments: &mut Vec<Arc<SegmentMeta>>,
        known: &[Arc<Segment>],
        has_bottom: bool,
    ) -> Result<()> {
        let mut committer = self.committer.lock();
        let committer = &mut *committer;
        // Under this lock it is the newest.
        let version = Arc::clone(&self.state.load().version);
        let (Some(tree), Some(first), Some(last)) =
            (version.trees.get(&core.id), segments.first(), segments.last())
        else {
            return Err(Error::KeyspaceDropped { name: core.name.clone() });
        };
        let (lower, upper) = (Some(&first.first_key[..]), Bound::Included(&last.last_key[..]));
        let is_alone = has_bottom && tree.runs().all(|run| run.within(lower, upper).is_empty());
        let (level, output) =
            if is_alone { (BOTTOM, OutputRun::Join(None)) } else { (0, OutputRun::New) };
        let numbered = |meta: &Arc<SegmentMeta>| {
            let (smallest, largest) = (seqno, seqno);
            Arc::new(SegmentMeta { level, smallest, largest, ..SegmentMeta::clone(meta) })
        };
        let added = self.place(&committer.state, segments.iter().map(numbered).collect(), output);
        // Opened before the commit: a segment that cannot be read back must not be named.
        let open = |meta: &Arc<SegmentMeta>| Segment::open(&self.home, Arc::clone(meta), true);
        let opened: Vec<Arc<Segment>> = added.iter().map(open).collect::<Result<_>>()?;
        let bytes: u64 = added.iter().map(|meta| meta.file_len).sum();
        // In this order, which tells readers beside the writer that these entries were in no log.
        let mut changes = vec![Change::LogFloor(writer.log.id()), Change::Flushed(seqno)];
        changes.extend(added.into_iter().map(Change::AddSegment));
        changes.push(self.next_ids(committer.state.next_keyspace));
        let committed = self.commit_edit(committer, Edit { changes });
        if committed.is_ok() || committer.manifest.is_poisoned() {
            // Named, or nobody knows.
            segments.clear();
        }
        committed?;
        self.counters.ingested_bytes.fetch_add(bytes, Ordering::Relaxed);
        for segment in &opened {
            committer.live.insert(segment.meta.id, Arc::clone(segment));
        }
        let version = Arc::new(Version::build(&committer.state, &committer.live));
        // The map first, as after a flush.
        self.change_map(known, &opened, false);
        known.iter().zip(&opened).for_each(|(known, opened)| known.superseded(opened));
        // The old one stands for logs that are not needed any more.
        let slot = MemSlot::new(writer.log.id());
        writer.active = Arc::clone(&slot);
        self.change_state(|state| ReadState::new(slot, state.frozen.clone(), version));
        Ok(())
    }
}
