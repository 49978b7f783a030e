//! Compaction: merging segments so that reads have few runs to look at and old versions go.
//!
//! Deciding and doing are apart. A [`Strategy`] is a pure function from a keyspace's [`Tree`] to the
//! next [`Job`]; [`output`] carries a job's merge out and says what may be dropped on the way.
//! Committing the result (manifest, then the new version) is the database's.
//!
//! Invariants: all versions of one key stay in one segment of a run and travel together; no version
//! that a snapshot may need is dropped; a tombstone goes only when nothing older than it remains
//! outside the job. No locks, no shared state. Called by the database's background work.

mod leveled;
mod output;

pub(crate) use leveled::Leveled;
pub(crate) use output::{OlderData, Output, OutputSpec, Retention, remove_segments, write_run};

use crate::sync::Arc;
use crate::types::{KeyspaceId, SegmentId};
use crate::version::{Segment, Tree};
use std::collections::HashSet;

/// One piece of work: merge the inputs into the run at a level.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) keyspace: KeyspaceId,
    /// The segments to merge, newest run first; those of one run adjacent and in key order.
    pub(crate) inputs: Vec<Vec<Arc<Segment>>>,
    pub(crate) output_level: u8,
    /// Whether the inputs can be given to the output level as they are: one run, and nothing there
    /// that they overlap.
    pub(crate) trivial_move: bool,
}

impl Job {
    /// The segments that the job replaces.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.inputs.iter().flatten()
    }

    /// The bytes that the job reads.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments().map(|s| s.meta.file_len).sum()
    }
}

/// Decides what to compact next.
pub(crate) trait Strategy: Send + Sync {
    /// The most urgent job, if one is due. Segments in `busy` belong to jobs under way, or may not
    /// be touched, and must not be inputs.
    fn pick(&self, tree: &Tree, busy: &HashSet<SegmentId>) -> Option<Job>;

    /// A job that moves everything between two keys (inclusive; `None` is unbounded) out of
    /// `level` into the next, for a manual compaction.
    fn pick_range(
        &self,
        tree: &Tree,
        level: usize,
        first: Option<&[u8]>,
        last: Option<&[u8]>,
        busy: &HashSet<SegmentId>,
    ) -> Option<Job>;

    /// How many bytes must be rewritten before nothing is due: an estimate, for `stats`.
    fn debt(&self, tree: &Tree) -> u64;
}

#[cfg(test)]
mod tests;
