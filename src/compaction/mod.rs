//! Compaction: merging segments so that old versions go and reads have few runs to look at.
//!
//! Deciding and doing are apart. A [`Strategy`] is a pure function from a keyspace's [`Tree`] to the
//! next [`Job`]; [`output`] carries a job's merge out and says what may be dropped on the way.
//! Committing the result (manifest, then the new version) is the database's.
//!
//! Invariants:
//! - Of two versions of a key the newer one comes first in the order of levels, and in a level of
//!   runs by falling number. Every strategy keeps this, so each accepts what another left.
//! - What a job takes from a run, it takes with everything that shares keys with it in the runs
//!   between there and where the output goes ([`shape::gather`]).
//! - Jobs at work share no segment, and two into the same level share no span of keys ([`Busy`]):
//!   so neither can part a run that the other writes to, or overtake it.
//! - All versions of one key stay in one segment of a run and travel together; no version that a
//!   snapshot may need is dropped, but by FIFO; a tombstone goes only when nothing older than it
//!   remains outside the job.
//!
//! No locks, no shared state. Called by the database's background work.

mod fifo;
mod lazy;
mod leveled;
mod merge;
mod output;
mod shape;
mod tiered;
mod versions;

pub(crate) use fifo::Fifo;
pub(crate) use lazy::{ALPHA_BUSY, ALPHA_CALM, LazyLeveling};
pub(crate) use leveled::Leveled;
pub(crate) use merge::{Entries, InputMerge, LentEntry};
pub(crate) use output::{
    KeyTest, LIVE_SHARE, OlderData, Output, OutputSpec, StopTest, meta_of, remove_segments,
    write_run,
};
pub(crate) use shape::Space;
pub(crate) use tiered::Tiered;
pub(crate) use versions::{Filtering, Retention};

use crate::slice::Key;
use crate::sync::Arc;
use crate::types::{KeyspaceId, SegmentId, SeqNo};
use crate::version::{RunNo, Segment, Tree};
use std::collections::HashSet;

/// Which run of its level a job's output goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputRun {
    /// This one, which the level had when the job was chosen (it may be empty by the commit). Or,
    /// if the level had none then, the oldest that is there at the commit, else a new one.
    Join(Option<RunNo>),
    /// A new one, newer than all that the level has at the commit.
    New,
}

/// What is done with a job's inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// They are merged into new segments.
    Merge,
    /// They are given to the output run as they are: they are of one run, and nothing in the runs
    /// between or in the output run shares keys with them.
    Move,
    /// They go. Nothing older shares keys with them.
    Drop,
}

/// One piece of work.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) keyspace: KeyspaceId,
    /// The segments that are replaced, newest run first; those of one run in key order.
    pub(crate) inputs: Vec<Vec<Arc<Segment>>>,
    pub(crate) action: Action,
    pub(crate) output_level: u8,
    pub(crate) output: OutputRun,
    /// The size at which the output is cut into segments, if not the database's, in bytes.
    pub(crate) piece_bytes: Option<u64>,
}

impl Job {
    /// A job that writes a segment anew where it is.
    pub(crate) fn rewrite(segment: &Arc<Segment>) -> Job {
        Job {
            keyspace: segment.meta.keyspace,
            inputs: vec![vec![Arc::clone(segment)]],
            action: Action::Merge,
            output_level: segment.meta.level,
            output: OutputRun::Join(Some(segment.meta.run)),
            // It is to stay one segment.
            piece_bytes: Some(segment.meta.file_len.saturating_mul(2)),
        }
    }

    /// A job that removes segments of one keyspace, if there are any.
    pub(crate) fn drop_all(segments: Vec<Arc<Segment>>) -> Option<Job> {
        let keyspace = segments.first()?.meta.keyspace;
        Some(Job {
            keyspace,
            inputs: vec![segments],
            action: Action::Drop,
            output_level: 0,
            output: OutputRun::New,
            piece_bytes: None,
        })
    }

    /// The segments that the job replaces.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.inputs.iter().flatten()
    }

    /// The bytes that the job reads.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments().map(|s| s.meta.file_len).sum()
    }

    fn claim(&self) -> Option<Claim> {
        let first = self.segments().map(|s| &s.meta.first_key).min()?.clone();
        let last = self.segments().map(|s| &s.meta.last_key).max()?.clone();
        Some(Claim { keyspace: self.keyspace, level: self.output_level, first, last })
    }
}

/// The keys between which a job at work will write to a level.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    keyspace: KeyspaceId,
    level: u8,
    first: Key,
    last: Key,
}

impl Claim {
    fn meets(&self, other: &Claim) -> bool {
        self.keyspace == other.keyspace
            && self.level == other.level
            && self.first <= other.last
            && other.first <= self.last
    }
}

/// What jobs at work have taken, and what may not be touched for another reason.
#[derive(Clone, Debug, Default)]
pub(crate) struct Busy {
    segments: HashSet<SegmentId>,
    claims: Vec<Claim>,
}

impl Busy {
    /// Whether the segment is taken.
    pub(crate) fn has(&self, segment: &Segment) -> bool {
        self.segments.contains(&segment.meta.id)
    }

    /// Whether the job can run beside those at work.
    pub(crate) fn admits(&self, job: &Job) -> bool {
        let free = !job.segments().any(|s| self.has(s));
        let dropping = job.action == Action::Drop;
        free && (dropping
            || job.claim().is_some_and(|claim| !self.claims.iter().any(|c| c.meets(&claim))))
    }

    /// Takes what a job needs, until [`release`](Self::release).
    pub(crate) fn take(&mut self, job: &Job) {
        self.segments.extend(job.segments().map(|s| s.meta.id));
        self.claims.extend(job.claim().filter(|_| job.action != Action::Drop));
    }

    /// Gives back what [`take`](Self::take) took.
    pub(crate) fn release(&mut self, job: &Job) {
        for segment in job.segments() {
            self.segments.remove(&segment.meta.id);
        }
        if let Some(claim) = job.claim().filter(|_| job.action != Action::Drop)
            && let Some(at) = self.claims.iter().position(|c| *c == claim)
        {
            self.claims.swap_remove(at);
        }
    }

    /// Takes a span of keys of a level for segments that come from elsewhere, unless a job at work has
    /// some of it.
    pub(crate) fn take_span(
        &mut self,
        keyspace: KeyspaceId,
        level: u8,
        first: &Key,
        last: &Key,
    ) -> bool {
        let claim = Claim { keyspace, level, first: first.clone(), last: last.clone() };
        let is_free = !self.claims.iter().any(|other| other.meets(&claim));
        self.claims.extend(is_free.then_some(claim));
        is_free
    }

    /// Gives back what [`take_span`](Self::take_span) took. Whether it had.
    pub(crate) fn release_span(
        &mut self,
        keyspace: KeyspaceId,
        level: u8,
        first: &Key,
        last: &Key,
    ) -> bool {
        let claim = Claim { keyspace, level, first: first.clone(), last: last.clone() };
        let at = self.claims.iter().position(|other| *other == claim);
        at.map(|at| self.claims.swap_remove(at)).is_some()
    }

    /// Keeps segments from being taken.
    pub(crate) fn exclude(&mut self, segments: impl IntoIterator<Item = SegmentId>) {
        self.segments.extend(segments);
    }
}

/// Whether writes are coming in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// They are: only what is due is done.
    Busy,
    /// They are not: there is time to tidy up.
    Calm,
}

/// What a strategy must know besides the tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation<'a> {
    pub(crate) busy: &'a Busy,
    pub(crate) mood: Mood,
    /// Milliseconds since the Unix epoch, as in a segment's properties.
    pub(crate) now_ms: u64,
    /// Whether [`Segment::garbage_bytes`] is kept up. If not, each newer entry is taken to
    /// supersede one of the oldest run.
    pub(crate) garbage_known: bool,
}

/// Keys for a manual compaction. It minds only what was there when it began, so that it ends although
/// writes go on: segments with entries up to `limit`, and of level 0 the runs before `next_run`. The
/// number alone does not tell, since a flush leaves it out where nothing older is hidden.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyRange<'a> {
    /// Inclusive; `None` is unbounded.
    pub(crate) first: Option<&'a [u8]>,
    /// Inclusive; `None` is unbounded.
    pub(crate) last: Option<&'a [u8]>,
    pub(crate) limit: SeqNo,
    pub(crate) next_run: RunNo,
}

impl KeyRange<'_> {
    /// Whether the compaction is about the segment.
    pub(crate) fn concerns(&self, segment: &Segment) -> bool {
        self.last.is_none_or(|last| segment.meta.first_key[..] <= *last)
            && self.first.is_none_or(|first| *first <= segment.meta.last_key[..])
            && segment.meta.smallest <= self.limit
            && (segment.meta.level > 0 || segment.meta.run < self.next_run)
    }
}

/// Decides what to compact next. Pure functions: the same arguments give the same job. None costs
/// more than a few comparisons of keys a segment.
pub(crate) trait Strategy: Send + Sync {
    /// The most urgent job that can run beside those at work, if one is due. Doing one job after
    /// another until none is due comes to an end, if nothing is written meanwhile.
    fn pick(&self, tree: &Tree, now: &Situation<'_>) -> Option<Job>;

    /// A job that brings some of a range nearer to where the strategy lets data rest; `None` once
    /// all of it is there. For a manual compaction.
    fn pick_range(&self, tree: &Tree, range: &KeyRange<'_>, now: &Situation<'_>) -> Option<Job>;

    /// How many bytes must be rewritten before nothing is due while writes come in: an estimate,
    /// for `stats`.
    fn debt(&self, tree: &Tree, garbage_known: bool) -> u64;

    /// How many times as many runs wait in level 0 as it takes to begin with them. Writes are held
    /// back above 2. Zero if they never wait for anything.
    fn backlog(&self, tree: &Tree) -> f64;

    /// The keys at which a flush, or a merge into a level above the bottom, is to cut its output,
    /// rising.
    fn cuts(&self, tree: &Tree) -> Vec<Key> {
        let _ = tree;
        Vec::new()
    }
}

#[cfg(test)]
mod lazy_tests;
#[cfg(test)]
mod merge_tests;
#[cfg(test)]
mod strategy_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod versions_tests;
