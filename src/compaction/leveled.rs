//! Leveled compaction: level 0 takes flushes as they come; every level below is one sorted run, each
//! ten times as large as the one above.
//!
//! Reads and space are cheap (a key is in at most one segment of each level), writes dear (each byte
//! is rewritten about once for each key range it shares with the level below, so up to ten times a
//! level). What another strategy left is first brought to this shape, segment by segment. Source: LevelDB's and RocksDB's design documents.

use super::shape::{Span, gather, merge_into};
use super::{Busy, Job, KeyRange, Situation, Strategy};
use crate::sync::Arc;
use crate::version::{LEVELS, Run, Segment, Tree};
use std::ops::RangeInclusive;

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

impl Leveled {
    fn capacity(&self, level: usize) -> u64 {
        let powers = u32::try_from(level.saturating_sub(1)).unwrap_or(u32::MAX);
        self.level1_bytes.saturating_mul(self.ratio.saturating_pow(powers))
    }

    /// How full a level is: at 1.0 and above, work is due. Segments under way count as gone.
    fn score(&self, tree: &Tree, level: usize, busy: &Busy) -> f64 {
        let runs = &tree.levels[level];
        if level == 0 {
            return runs.len() as f64 / self.level0_runs as f64;
        }
        let bytes: u64 = runs
            .iter()
            .flat_map(|run| &run.segments)
            .filter(|s| !busy.has(s))
            .map(|s| s.meta.file_len)
            .sum();
        bytes as f64 / self.capacity(level) as f64
    }

    /// All of level 0 with what it overlaps in level 1.
    fn level0_job(tree: &Tree, busy: &Busy) -> Option<Job> {
        let span = Span::of(tree.levels[0].iter().flat_map(|run| &run.segments))?;
        let job = merge_into(tree, 1, &gather(tree, 0..=1, span))?;
        busy.admits(&job).then_some(job)
    }

    /// A segment of a level with what must go with it into another.
    fn down_job(
        tree: &Tree,
        levels: RangeInclusive<usize>,
        picked: &Arc<Segment>,
        busy: &Busy,
    ) -> Option<Job> {
        let to = *levels.end();
        let job = merge_into(tree, to, &gather(tree, levels, Span::of([picked])?))?;
        busy.admits(&job).then_some(job)
    }

    /// The segment of a run whose move down rewrites the least for its size.
    fn cheapest_down_job(
        tree: &Tree,
        levels: RangeInclusive<usize>,
        run: &Run,
        busy: &Busy,
    ) -> Option<Job> {
        let jobs = run.segments.iter().filter_map(|segment| {
            let job = Self::down_job(tree, levels.clone(), segment, busy)?;
            Some((job.bytes() as f64 / segment.meta.file_len.max(1) as f64, job))
        });
        jobs.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, job)| job)
    }

    /// Brings a level that another strategy left with several runs nearer to one.
    fn normalise(tree: &Tree, busy: &Busy) -> Option<Job> {
        (1..LEVELS).find_map(|level| {
            let (_, newer) = tree.levels[level].split_last()?;
            Self::cheapest_down_job(tree, level..=level, newer.first()?, busy)
        })
    }
}

impl Strategy for Leveled {
    fn pick(&self, tree: &Tree, now: &Situation<'_>) -> Option<Job> {
        if let Some(job) = Self::normalise(tree, now.busy) {
            return Some(job);
        }
        let mut due: Vec<(f64, usize)> = (0..LEVELS - 1)
            .map(|level| (self.score(tree, level, now.busy), level))
            .filter(|(score, _)| *score >= 1.0)
            .collect();
        due.sort_by(|a, b| b.0.total_cmp(&a.0));
        due.into_iter().find_map(|(_, level)| match level {
            0 => Self::level0_job(tree, now.busy),
            _ => {
                let run = tree.levels[level].first()?;
                Self::cheapest_down_job(tree, level..=level + 1, run, now.busy)
            }
        })
    }

    /// The deepest level that holds anything is the bottom: nothing moves below it, but for level
    /// 0, which is not sorted as a whole.
    fn pick_range(&self, tree: &Tree, range: &KeyRange<'_>, now: &Situation<'_>) -> Option<Job> {
        let segments = |level: usize| tree.levels[level].iter().flat_map(|run| &run.segments);
        let deepest = (0..LEVELS).rev().find(|level| !tree.levels[*level].is_empty())?;
        if segments(0).any(|s| range.concerns(s)) {
            return Self::level0_job(tree, now.busy);
        }
        let level = (1..=deepest).find(|level| {
            let one_too_many = tree.levels[*level].len() > 1;
            (one_too_many || *level < deepest) && segments(*level).any(|s| range.concerns(s))
        })?;
        if let Some((_, newer)) = tree.levels[level].split_last().filter(|(_, n)| !n.is_empty()) {
            let wanted = newer.iter().flat_map(|run| &run.segments);
            let job = wanted
                .filter(|s| range.concerns(s))
                .find_map(|s| Self::down_job(tree, level..=level, s, now.busy));
            if job.is_some() || level == deepest {
                return job;
            }
        }
        let wanted = segments(level).filter(|s| range.concerns(s));
        wanted.into_iter().find_map(|s| Self::down_job(tree, level..=level + 1, s, now.busy))
    }

    fn debt(&self, tree: &Tree, _garbage_known: bool) -> u64 {
        let bytes = |level: usize| tree.levels[level].iter().map(Run::bytes).sum::<u64>();
        let mut debt = 0;
        if tree.levels[0].len() >= self.level0_runs {
            debt += bytes(0) + bytes(1);
        }
        for level in 1..LEVELS {
            if tree.levels[level].len() > 1 {
                debt += bytes(level);
            }
        }
        for level in 1..LEVELS - 1 {
            let over = bytes(level).saturating_sub(self.capacity(level));
            debt += over.saturating_mul(self.ratio + 1);
        }
        debt
    }

    fn backlog(&self, tree: &Tree) -> f64 {
        tree.levels[0].len() as f64 / self.level0_runs as f64
    }
}
