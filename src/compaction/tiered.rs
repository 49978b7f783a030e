//! Tiered compaction: runs of about the same size are merged into one of the next level.
//!
//! Writes are as cheap as merging allows: an entry is rewritten once for each level, and the number
//! of levels grows with the logarithm of the size to the base `runs`. Space is dear: superseded
//! entries stay until the runs with them meet, so that with few keys that are overwritten often the
//! files can be `runs` times as large as what lives, and a merge needs as much room again as it
//! reads. A range read merges up to `runs` runs of each level, the bottom included.
//!
//! Source: Jagadish, Narayan, Seshadri, Sudarshan and Kanneganti, "Incremental Organization for Data
//! Recording and Warehousing", VLDB 1997.

use super::shape::{BOTTOM, merge_runs, pick_to_bottom};
use super::{Job, KeyRange, Situation, Strategy};
use crate::version::{Run, Tree};

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiered {
    /// So many runs of a level are merged into one.
    pub(crate) runs: usize,
    /// The size of a segment.
    pub(crate) segment_bytes: u64,
}

impl Tiered {
    fn is_full(&self, level: &[Run]) -> bool {
        level.len() >= self.runs.max(2)
    }
}

impl Strategy for Tiered {
    fn pick(&self, tree: &Tree, now: &Situation<'_>) -> Option<Job> {
        let full = (0..=BOTTOM).filter(|level| self.is_full(&tree.levels[*level]));
        full.map(|level| merge_runs(tree, level, BOTTOM, now.busy)).find_map(|job| job)
    }

    fn pick_range(&self, tree: &Tree, range: &KeyRange<'_>, now: &Situation<'_>) -> Option<Job> {
        pick_to_bottom(tree, range, now, self.segment_bytes)
    }

    fn debt(&self, tree: &Tree, _garbage_known: bool) -> u64 {
        let full = tree.levels.iter().filter(|level| self.is_full(level));
        full.flatten().map(Run::bytes).sum()
    }

    fn backlog(&self, tree: &Tree) -> f64 {
        tree.levels[0].len() as f64 / self.runs as f64
    }
}
