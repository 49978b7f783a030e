//! Leveled compaction: level 0 takes flushes as they come; every level below is one sorted run, each
//! ten times as large as the one above.
//!
//! Reads and space are cheap (a key is in at most one segment of each level), writes dear (each byte
//! is rewritten about once for each key range it shares with the level below, so up to ten times a
//! level). Source: LevelDB's and RocksDB's design documents.

use super::{Job, Strategy};
use crate::sync::Arc;
use crate::types::SegmentId;
use crate::version::{LEVELS, Run, Segment, Tree};
use std::collections::HashSet;

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leveled {
    /// Level 0 is merged into level 1 once it has this many runs.
    pub(crate) level0_runs: usize,
    /// What level 1 may hold, in bytes.
    pub(crate) level1_bytes: u64,
    /// How many times as much each further level may hold.
    pub(crate) ratio: u64,
}

fn any_busy<'a>(
    segments: impl IntoIterator<Item = &'a Arc<Segment>>,
    busy: &HashSet<SegmentId>,
) -> bool {
    segments.into_iter().any(|s| busy.contains(&s.meta.id))
}

/// The segments of a level's single run that share keys with the given range.
fn overlapping(level: &[Run], first: &[u8], last: &[u8]) -> Vec<Arc<Segment>> {
    let segments = level.iter().flat_map(|run| &run.segments);
    let mut found: Vec<_> = segments.filter(|s| s.overlaps(first, last)).cloned().collect();
    found.sort_by(|a, b| a.meta.first_key.cmp(&b.meta.first_key));
    found
}

/// The smallest and the largest key of some segments.
fn key_span<'a>(
    segments: impl IntoIterator<Item = &'a Arc<Segment>>,
) -> Option<(&'a [u8], &'a [u8])> {
    segments.into_iter().fold(None, |span, s| {
        let (first, last) = (&s.meta.first_key[..], &s.meta.last_key[..]);
        Some(span.map_or((first, last), |(f, l): (&[u8], &[u8])| (f.min(first), l.max(last))))
    })
}

impl Leveled {
    fn capacity(&self, level: usize) -> u64 {
        let powers = u32::try_from(level.saturating_sub(1)).unwrap_or(u32::MAX);
        self.level1_bytes.saturating_mul(self.ratio.saturating_pow(powers))
    }

    /// How full a level is: at 1.0 and above, work is due. Segments under way count as gone.
    fn score(&self, tree: &Tree, level: usize, busy: &HashSet<SegmentId>) -> f64 {
        let runs = &tree.levels[level];
        if level == 0 {
            return runs.len() as f64 / self.level0_runs as f64;
        }
        let bytes: u64 = runs
            .iter()
            .flat_map(|run| &run.segments)
            .filter(|s| !busy.contains(&s.meta.id))
            .map(|s| s.meta.file_len)
            .sum();
        bytes as f64 / self.capacity(level) as f64
    }

    /// All of level 0 with what it overlaps in level 1.
    fn level0_job(tree: &Tree, busy: &HashSet<SegmentId>) -> Option<Job> {
        let runs = &tree.levels[0];
        let (first, last) = key_span(runs.iter().flat_map(|run| &run.segments))?;
        let below = overlapping(&tree.levels[1], first, last);
        let mut inputs: Vec<Vec<Arc<Segment>>> =
            runs.iter().map(|run| run.segments.clone()).collect();
        if any_busy(inputs.iter().flatten().chain(&below), busy) {
            return None;
        }
        let trivial_move = below.is_empty() && inputs.len() == 1;
        if !below.is_empty() {
            inputs.push(below);
        }
        Some(Job { keyspace: tree.id, inputs, output_level: 1, trivial_move })
    }

    /// Some adjacent segments of a level below 0 with what they overlap in the next.
    fn down_job(
        tree: &Tree,
        level: usize,
        picked: Vec<Arc<Segment>>,
        busy: &HashSet<SegmentId>,
    ) -> Option<Job> {
        let (first, last) = key_span(&picked)?;
        let below = overlapping(&tree.levels[level + 1], first, last);
        if any_busy(picked.iter().chain(&below), busy) {
            return None;
        }
        let trivial_move = below.is_empty();
        let mut inputs = vec![picked];
        if !below.is_empty() {
            inputs.push(below);
        }
        Some(Job { keyspace: tree.id, inputs, output_level: level as u8 + 1, trivial_move })
    }

    /// The segment of a level whose move down rewrites the least of the next level for its size.
    fn cheapest_down_job(tree: &Tree, level: usize, busy: &HashSet<SegmentId>) -> Option<Job> {
        let segments = tree.levels[level].iter().flat_map(|run| &run.segments);
        segments
            .filter_map(|segment| {
                let job = Self::down_job(tree, level, vec![Arc::clone(segment)], busy)?;
                Some((job.bytes() as f64 / segment.meta.file_len.max(1) as f64, job))
            })
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, job)| job)
    }
}

impl Strategy for Leveled {
    fn pick(&self, tree: &Tree, busy: &HashSet<SegmentId>) -> Option<Job> {
        let mut due: Vec<(f64, usize)> = (0..LEVELS - 1)
            .map(|level| (self.score(tree, level, busy), level))
            .filter(|(score, _)| *score >= 1.0)
            .collect();
        due.sort_by(|a, b| b.0.total_cmp(&a.0));
        due.into_iter().find_map(|(_, level)| match level {
            0 => Self::level0_job(tree, busy),
            _ => Self::cheapest_down_job(tree, level, busy),
        })
    }

    fn pick_range(
        &self,
        tree: &Tree,
        level: usize,
        first: Option<&[u8]>,
        last: Option<&[u8]>,
        busy: &HashSet<SegmentId>,
    ) -> Option<Job> {
        let in_range = |s: &&Arc<Segment>| {
            last.is_none_or(|last| s.meta.first_key[..] <= *last)
                && first.is_none_or(|first| *first <= s.meta.last_key[..])
        };
        if level == 0 {
            let hit = tree.levels[0].iter().flat_map(|run| &run.segments).any(|s| in_range(&s));
            return hit.then(|| Self::level0_job(tree, busy)).flatten();
        }
        let segments = tree.levels[level].iter().flat_map(|run| &run.segments);
        let picked = segments.filter(in_range).find(|s| !busy.contains(&s.meta.id))?;
        Self::down_job(tree, level, vec![Arc::clone(picked)], busy)
    }

    fn debt(&self, tree: &Tree) -> u64 {
        let bytes = |level: usize| tree.levels[level].iter().map(Run::bytes).sum::<u64>();
        let mut debt = 0;
        if tree.levels[0].len() >= self.level0_runs {
            debt += bytes(0) + bytes(1);
        }
        for level in 1..LEVELS - 1 {
            let over = bytes(level).saturating_sub(self.capacity(level));
            debt += over.saturating_mul(self.ratio + 1);
        }
        debt
    }
}
