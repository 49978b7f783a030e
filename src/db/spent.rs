//! What is hidden from every reader goes: by clears, by deletes of ranges, and what has expired.
//!
//! Segments that lie wholly within what is hidden are removed without being read, but for the hash runs of
//! those that are in the key map. What lies there only in part is left to compactions; when nothing is, the
//! clear or the range tombstone is forgotten. Of a segment it is known up to which number range deletes were
//! minded when it was written: the property `deletes_applied`. So a tombstone ends when every segment that
//! meets its range is either newer than it or was written in its knowledge; when there is time, those that are
//! neither are written anew.
//!
//! What nobody sees is looked for without a lock, in a version. If there is nothing, it is not looked for
//! again before the version is another, a snapshot has gone, or something has expired since: [`LastLook`].
//!
//! Called by background work, by one thread at a time or several.

use super::{Inner, MemSlot};
use crate::compaction::{Job, LIVE_SHARE, Mood, Situation};
use crate::error::Result;
use crate::sync::Arc;
use crate::types::{SegmentId, SeqNo};
use crate::version::{Change, Edit, ManifestState, Run, Segment, Tree, Version};
use std::collections::HashSet;
use std::ops::Bound;

/// With more range tombstones than this, segments are written anew for them also while writes come in:
/// every read searches among them.
const MANY: usize = 1024;

/// What the manifest is told of the range tombstones of a memtable when that is flushed.
pub(super) fn range_deletes_of(
    slot: &MemSlot,
    state: &ManifestState,
) -> impl Iterator<Item = Change> {
    let keyspaces = slot.table.keyspaces().into_iter();
    let live = keyspaces.filter(|id| state.keyspaces.contains_key(id));
    live.filter_map(|id| {
        let deletes = slot.table.range_deletes(id)?;
        let deletes = deletes.iter().map(|(seqno, span)| (seqno, span.clone())).collect();
        Some(Change::AddRangeDeletes { id, deletes })
    })
}

/// Whether a segment has something that range tombstones up to a number hide.
fn holds_deleted(tree: &Tree, segment: &Segment, oldest: SeqNo) -> bool {
    !tree.deletes.is_empty() && segment.hidden_by(&tree.deletes).any(|seqno| seqno <= oldest)
}

/// A look for what nobody sees any more.
struct Look {
    version: Arc<Version>,
    /// The number that every reader sees, or a later one.
    oldest: SeqNo,
    /// What expires by this time has expired for every reader.
    expired_by: u64,
    /// When more will have expired, at the earliest.
    next_expiry_ms: u64,
    /// A segment could not go because it belongs to a job: when that fails, nothing else tells.
    met_busy: bool,
}

/// The last look that found nothing.
#[derive(Debug, Default)]
pub(super) struct LastLook {
    /// The edit of the version, and the oldest number.
    at: Option<(u64, SeqNo)>,
    next_expiry_ms: u64,
    /// How many looks there were that were not spared.
    #[cfg(test)]
    pub(super) count: u64,
}

impl LastLook {
    fn finds_nothing(&self, look: &Look) -> bool {
        self.at == Some((look.version.edit, look.oldest)) && look.expired_by < self.next_expiry_ms
    }
}

impl Inner {
    /// Removes what nobody sees any more, if that takes no reading, or forgets what hides nothing any more.
    pub(super) fn drop_spent(&self) -> Result<bool> {
        let version = Arc::clone(&self.state.load().version);
        let (boundaries, expired_by) = self.boundaries();
        let (oldest, next_expiry_ms) = (boundaries[0], u64::MAX);
        let mut look = Look { version, oldest, expired_by, next_expiry_ms, met_busy: false };
        {
            #[cfg_attr(not(test), expect(unused_mut))]
            let mut last = self.last_look.lock();
            if last.finds_nothing(&look) {
                return Ok(false);
            }
            #[cfg(test)]
            {
                last.count += 1;
            }
        }
        let version = Arc::clone(&look.version);
        for tree in version.trees.values() {
            if self.drop_cleared(tree, &mut look)?
                || self.drop_deleted(tree, &mut look)?
                || self.drop_expired(tree, &mut look)?
            {
                return Ok(true);
            }
        }
        if !look.met_busy {
            let mut last = self.last_look.lock();
            last.at = Some((look.version.edit, look.oldest));
            last.next_expiry_ms = look.next_expiry_ms;
        }
        Ok(false)
    }

    /// Leaves out what belongs to a job.
    fn without_busy(&self, mut segments: Vec<Arc<Segment>>, look: &mut Look) -> Vec<Arc<Segment>> {
        if !segments.is_empty() {
            let background = self.background.lock();
            let found = segments.len();
            segments.retain(|segment| !background.busy.has(segment));
            look.met_busy |= segments.len() < found;
        }
        segments
    }

    /// Removes segments, unless what was looked at is no longer the newest version: then it is time for
    /// another look.
    fn drop_segments(&self, look: &Look, gone: Vec<Arc<Segment>>) -> Result<bool> {
        let Some(job) = Job::drop_all(gone) else { return Ok(false) };
        {
            let mut background = self.background.lock();
            if self.state.load().version.edit != look.version.edit || !background.busy.admits(&job)
            {
                return Ok(true);
            }
            background.busy.take(&job);
        }
        let gone: Vec<Arc<Segment>> = job.segments().cloned().collect();
        let outcome = self.observe_drop(job.keyspace, &gone, || {
            self.install(gone.clone(), Vec::new(), job.output, None)
        });
        self.background.lock().busy.release(&job);
        self.progress.notify_all();
        outcome.map(|()| true)
    }

    /// Has the manifest forget something, unless what was looked at is no longer the newest version: then
    /// it is time for another look.
    fn forget(
        &self,
        look: &Look,
        change: impl FnOnce(&ManifestState) -> Option<Change>,
    ) -> Result<bool> {
        let mut committer = self.committer.lock();
        if self.state.load().version.edit != look.version.edit {
            return Ok(true);
        }
        let Some(change) = change(&committer.state) else { return Ok(false) };
        self.commit_edit(&mut committer, Edit { changes: vec![change] })?;
        self.publish_version(&Version::build(&committer.state, &committer.live));
        Ok(true)
    }

    /// Removes segments of which everything has expired. What they hide must not come back: so nothing
    /// older may share keys with them that stays.
    fn drop_expired(&self, tree: &Tree, look: &mut Look) -> Result<bool> {
        let by = look.expired_by;
        for segment in tree.segments().filter(|s| s.has_expired(u64::MAX) && !s.has_expired(by)) {
            let when = segment.reader().properties().last_expiry_ms;
            look.next_expiry_ms = look.next_expiry_ms.min(when);
        }
        let expired = tree.segments().filter(|s| s.has_expired(by)).cloned().collect();
        let expired = self.without_busy(expired, look);
        if expired.is_empty() {
            return Ok(false);
        }
        let expired: HashSet<SegmentId> = expired.iter().map(|s| s.meta.id).collect();
        let runs: Vec<&Run> = tree.runs().collect();
        let mut going: HashSet<SegmentId> = HashSet::new();
        let mut gone = Vec::new();
        for (at, run) in runs.iter().enumerate().rev() {
            for segment in run.segments.iter().filter(|s| expired.contains(&s.meta.id)) {
                let (first, last) = (&segment.meta.first_key[..], &segment.meta.last_key[..]);
                let hidden = |run: &&Run| {
                    let below = run.within(Some(first), Bound::Included(last));
                    below.iter().any(|s| !going.contains(&s.meta.id))
                };
                if !runs.iter().skip(at + 1).any(hidden) {
                    going.insert(segment.meta.id);
                    gone.push(Arc::clone(segment));
                }
            }
        }
        self.drop_segments(look, gone)
    }

    /// Removes segments that lie in ranges that were deleted, and forgets range tombstones.
    fn drop_deleted(&self, tree: &Tree, look: &mut Look) -> Result<bool> {
        let deletes = &tree.deletes;
        if deletes.is_empty() {
            return Ok(false);
        }
        let hidden = |s: &&Arc<Segment>| {
            deletes.hide(&s.meta.first_key, &s.meta.last_key, s.meta.largest, look.oldest)
        };
        let gone = tree.segments().filter(hidden).cloned().collect();
        let gone = self.without_busy(gone, look);
        if self.drop_segments(look, gone)? {
            return Ok(true);
        }
        // Everything older is in segments, or the tombstone would not be in the manifest.
        let needed: HashSet<SeqNo> = tree.segments().flat_map(|s| s.hidden_by(deletes)).collect();
        let numbers = deletes.iter().map(|(seqno, _)| seqno).take_while(|n| *n <= look.oldest);
        let seqnos: Vec<SeqNo> = numbers.filter(|seqno| !needed.contains(seqno)).collect();
        if seqnos.is_empty() {
            return Ok(false);
        }
        self.forget(look, |_| Some(Change::ForgetRangeDeletes { id: tree.id, seqnos }))
    }

    /// Removes segments whose every entry was cleared for every reader, and forgets clears.
    fn drop_cleared(&self, tree: &Tree, look: &mut Look) -> Result<bool> {
        let Some(clear) = tree.floor(look.oldest) else { return Ok(false) };
        let gone = tree.segments().filter(|s| s.meta.largest <= clear).cloned().collect();
        let gone = self.without_busy(gone, look);
        if self.drop_segments(look, gone)? {
            return Ok(true);
        }
        // Every reader is past this clear, so those before it say nothing more.
        let superseded = tree.clears.iter().rev().copied().find(|before| *before < clear);
        let remains = tree.segments().any(|s| s.meta.smallest <= clear);
        if remains && superseded.is_none() {
            return Ok(false);
        }
        self.forget(look, |state| {
            let is_spent = !remains && state.flushed >= clear;
            let seqno = if is_spent { Some(clear) } else { superseded }?;
            Some(Change::ForgetClears { id: tree.id, seqno })
        })
    }

    /// A job that writes a segment anew because a range tombstone hides some of it, or much of it has
    /// expired, if there is time for that; for range tombstones also if they are many.
    pub(super) fn pick_for_hidden(&self, tree: &Tree, now: &Situation<'_>) -> Option<Job> {
        let is_calm = now.mood == Mood::Calm;
        if !self.options.merges() || !is_calm && tree.deletes.len() <= MANY {
            return None;
        }
        let (boundaries, expired_by) = self.boundaries();
        let is_concerned = |s: &&Arc<Segment>| {
            holds_deleted(tree, s, boundaries[0]) || is_calm && s.is_half_expired(expired_by)
        };
        tree.segments().filter(is_concerned).map(Job::rewrite).find(|job| now.busy.admits(job))
    }

    /// A job that writes a segment anew so that its values move out of a value segment of which little is
    /// still referred to: as soon as it is less than half if there is time, else a quarter.
    pub(super) fn pick_for_values(&self, tree: &Tree, now: &Situation<'_>) -> Option<Job> {
        if !self.options.merges() {
            return None;
        }
        let part = if now.mood == Mood::Calm { LIVE_SHARE } else { 2 * LIVE_SHARE };
        let is_low = |s: &&Arc<Segment>| s.values().iter().any(|(_, file)| file.is_below(part));
        tree.segments().filter(is_low).map(Job::rewrite).find(|job| now.busy.admits(job))
    }

    /// Whether a segment has something that range tombstones hide from everybody, or that has expired
    /// for everybody.
    pub(super) fn holds_hidden(&self, tree: &Tree, segment: &Segment) -> bool {
        let (boundaries, expired_by) = self.boundaries();
        holds_deleted(tree, segment, boundaries[0]) || segment.holds_expired(expired_by)
    }
}
