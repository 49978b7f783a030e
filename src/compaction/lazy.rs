//! Lazy leveling: runs above, one sorted run at the bottom, merged slice by slice.
//!
//! ```text
//! level 0      ▬▬▬▬  ▬▬▬▬▬▬▬▬▬  ▬▬      flushed runs, cut where segments of the bottom begin
//! level 1..5   ▬▬▬▬▬▬▬▬  ▬▬▬▬▬▬▬▬▬▬     runs merged from those above, cut likewise
//! level 6      ▬▬▬▬ ▬▬▬▬ ▬▬▬▬ ▬▬▬▬▬     the bottom: one run
//!              └──┘ a slice: one segment of the bottom and all above that shares keys with it
//! ```
//!
//! # When
//!
//! The bottom is merged when the estimated space amplification exceeds `1 + a` (`a` = [`ALPHA_BUSY`]
//! while writes come in, [`ALPHA_CALM`] otherwise), or when what lies above exceeds [`GROWTH`] times
//! the bottom. While writes come in `runs` runs must lie above it besides: a small database takes in
//! many flushes at once, since a point read costs the same however many runs there are.
//! Each time it is one slice: the one that gains most for what it rewrites. So slices
//! are merged all the time and in turn, and a uniformly overwritten one has collected `2a` of its
//! size when its turn comes: an entry is rewritten `(1 + 2a) / 2a` times by the bottom (2.5 times at
//! `a` = 1/3), however large the database is. No merge is larger than a slice.
//!
//! # Runs
//!
//! A level's runs count by their size: those of which slices took most hardly count. When they make
//! `runs` whole ones (half as many again if slices empty the level), or when there are
//! [`MOST_RUNS`] times `runs` of whatever size, they are merged
//! into a new run of the next level (level 5: into one of its own). So a range read merges at most
//! `2 × runs` runs of each level, and with flushes of `m` bytes `log(a × bottom / m) / log(runs)`
//! levels are in use: at 16 runs, 64 MiB and 1 TiB three or four. Level 0 can exceed this while
//! compaction is behind, which back-pressure ends. When nothing is written, [`CALM_RUNS`] whole runs of
//! a level are merged, so that range reads have few.
//!
//! If a level's segments are much wider than a slice (the pieces would have been too small), slices
//! are not taken from it and those above it: they would drag half of the bottom along. It empties
//! by merging runs.
//!
//! # Range reads
//!
//! Each seek counts for the segments above the bottom that it had to look into. When those of a slice,
//! or of a level's runs, have cost as much as merging them does, they are merged ([`SEEK_BYTES`]): so
//! what reads and merges cost together is at most about twice what it would be if one had known, and who
//! never reads ranges pays nothing. LevelDB's "seek compaction" is the idea's source.
//!
//! # Sequential writes
//!
//! What shares no keys with anything older moves to the bottom as it is, unless it is so small that
//! the bottom would fill with crumbs; crumbs are merged when there is time.
//!
//! Source: lazy leveling is from Dayan and Idreos, "Dostoevsky", SIGMOD 2018.

use super::shape::{
    BOTTOM, CUT_WELL, Span, above_bottom, gather, merge_into, merge_runs, pick_to_bottom, pieces,
    slices, slices_per_segment,
};
use super::{Action, Job, KeyRange, Mood, OutputRun, Situation, Space, Strategy};
use crate::slice::Key;
use crate::sync::Arc;
use crate::version::{Run, Segment, Tree};

/// The share of dead weight that is let be while writes come in.
pub(crate) const ALPHA_BUSY: f64 = 1.0 / 3.0;
/// The same when none do.
pub(crate) const ALPHA_CALM: f64 = 0.25;
/// New data is merged into the bottom at this share of it.
const GROWTH: f64 = 0.7;
/// How many times `runs` a level may have, if they are small.
const MOST_RUNS: usize = 2;
/// How many whole runs a level may have when nothing is written.
const CALM_RUNS: usize = 4;
/// What a seek in one more run costs, in bytes merged in the same time: some 256. Twice that, since
/// somebody waits for the read and nobody for the merge.
const SEEK_BYTES: u64 = 512;

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LazyLeveling {
    /// So many whole runs of a level are merged into one.
    pub(crate) runs: usize,
    /// The size of a segment.
    pub(crate) segment_bytes: u64,
    pub(crate) alpha_busy: f64,
    pub(crate) alpha_calm: f64,
}

/// How many runs of the size of its largest a level has.
pub(super) fn whole_runs(level: &[Run]) -> f64 {
    let largest = level.iter().map(Run::bytes).max().unwrap_or(0).max(1);
    level.iter().map(Run::bytes).sum::<u64>() as f64 / largest as f64
}

impl LazyLeveling {
    fn alpha(&self, mood: Mood) -> f64 {
        match mood {
            Mood::Busy => self.alpha_busy,
            Mood::Calm => self.alpha_calm,
        }
    }

    /// What a bottom segment may have at least, in bytes.
    fn crumb(&self) -> u64 {
        self.segment_bytes / 4
    }

    fn is_crowded(&self, level: &[Run]) -> bool {
        level.len() >= MOST_RUNS * self.runs
    }

    /// Whether a level has its runs. One that slices empty may have half as many again.
    fn is_full(&self, level: &[Run], sliced: bool) -> bool {
        let runs = self.runs.max(2) as f64 * if sliced { 1.5 } else { 1.0 };
        // Files of equal content differ by a little.
        whole_runs(level) + 0.1 >= runs
    }

    fn merge(&self, tree: &Tree, inputs: &[&[Arc<Segment>]], now: &Situation<'_>) -> Option<Job> {
        let pieces = pieces(inputs, now.garbage_known, self.segment_bytes);
        let job = Job { piece_bytes: Some(pieces), ..merge_into(tree, BOTTOM, inputs)? };
        now.busy.admits(&job).then_some(job)
    }

    /// Segments of the newest run that has some which share no keys with anything older.
    fn free_move(&self, tree: &Tree, now: &Situation<'_>) -> Option<Job> {
        let runs: Vec<&Run> = tree.runs().collect();
        let target = tree.levels[BOTTOM].last().map(Run::number);
        for (at, run) in runs.iter().enumerate() {
            let is_target = tree.levels[BOTTOM].last().is_some_and(|b| std::ptr::eq(b, *run));
            if is_target {
                break;
            }
            let older = &runs[at + 1..];
            let is_free = |s: &&Arc<Segment>| {
                let Some(Span { lower, upper }) = Span::of([*s]) else { return false };
                s.meta.tombstones == 0
                    && s.meta.file_len >= self.crumb()
                    && !now.busy.has(s)
                    && older.iter().rev().all(|other| other.within(lower, upper).is_empty())
            };
            // One at a time, so that the span between two is nobody's.
            if let Some(free) = run.segments.iter().find(is_free) {
                let job = Job {
                    keyspace: tree.id,
                    inputs: vec![vec![Arc::clone(free)]],
                    action: Action::Move,
                    output_level: BOTTOM as u8,
                    output: OutputRun::Join(target),
                    piece_bytes: None,
                };
                if now.busy.admits(&job) {
                    return Some(job);
                }
            }
        }
        None
    }

    /// The first level of those from which slices are taken: it and all below are cut well.
    fn slices_from(tree: &Tree) -> usize {
        let cut_well = |level: &usize| {
            tree.levels[*level].is_empty() || slices_per_segment(tree, *level) <= CUT_WELL
        };
        (0..BOTTOM).rev().take_while(cut_well).last().unwrap_or(BOTTOM)
    }

    /// Whether the bottom is to be merged.
    fn is_due(&self, space: &Space, runs_above: usize, mood: Mood) -> bool {
        let enough = if mood == Mood::Busy { self.runs } else { 1 };
        runs_above >= enough
            && (space.amplification() > 1.0 + self.alpha(mood)
                || space.newer as f64 > GROWTH * space.oldest as f64)
    }

    /// The slice that gains most for what it rewrites.
    fn slice(&self, tree: &Tree, from: usize, now: &Situation<'_>) -> Option<Job> {
        // Below this, merging costs more than the space is worth.
        let alpha = self.alpha(now.mood);
        let least = alpha / (1.0 + alpha) / 2.0;
        let gain = |inputs: &[&[Arc<Segment>]]| {
            let Some((oldest, newer)) = inputs.split_last() else { return 0.0 };
            let upper: u64 = newer.iter().copied().flatten().map(|s| s.meta.file_len).sum();
            let below: u64 = oldest.iter().map(|s| s.meta.file_len).sum();
            let garbage: u64 = oldest.iter().map(|s| s.garbage_bytes()).sum();
            (upper + garbage) as f64 / (upper + below).max(1) as f64
        };
        let mut found: Vec<(f64, Vec<&[Arc<Segment>]>)> = slices(tree, self.segment_bytes / 2)
            .map(|span| gather(tree, from..=BOTTOM, span))
            .filter(|inputs| inputs.len() > 1)
            .map(|inputs| (gain(&inputs), inputs))
            .filter(|(gain, _)| *gain >= least)
            .collect();
        found.sort_by(|a, b| b.0.total_cmp(&a.0));
        found.into_iter().find_map(|(_, inputs)| self.merge(tree, &inputs, now))
    }

    /// While there is no bottom: all of it becomes the bottom.
    fn first_bottom(&self, tree: &Tree, now: &Situation<'_>) -> Option<Job> {
        let runs = tree.runs().count();
        let full = self.is_full(&tree.levels[0], false) || self.is_crowded(&tree.levels[0]);
        let due = full || now.mood == Mood::Calm && runs > 1;
        if !tree.levels[BOTTOM].is_empty() || !due {
            return None;
        }
        self.merge(tree, &gather(tree, 0..=BOTTOM, Span::ALL), now)
    }

    /// What seeks have paid for: the slice that is worth most, or else the runs of a level.
    fn paid_by_seeks(&self, tree: &Tree, from: usize, now: &Situation<'_>) -> Option<Job> {
        let paid = |s: &Arc<Segment>| s.seeks().saturating_mul(SEEK_BYTES);
        // If many together are worth their merge, then at least one is.
        if !above_bottom(tree).any(|s| paid(s) >= s.meta.file_len) {
            return None;
        }
        let sum = |inputs: &[&[Arc<Segment>]], of: &dyn Fn(&Arc<Segment>) -> u64| -> f64 {
            inputs.iter().copied().flatten().map(of).sum::<u64>() as f64
        };
        let worth = |inputs: &[&[Arc<Segment>]]| {
            let newer = &inputs[..inputs.len().saturating_sub(1)];
            sum(newer, &paid) / sum(inputs, &|s| s.meta.file_len).max(1.0)
        };
        let mut found: Vec<_> = slices(tree, self.segment_bytes / 2)
            .map(|span| gather(tree, from..=BOTTOM, span))
            .map(|inputs| (worth(&inputs), inputs))
            .filter(|(worth, _)| *worth >= 1.0)
            .collect();
        found.sort_by(|a, b| b.0.total_cmp(&a.0));
        // The best may be busy or damaged.
        let slice = found.into_iter().find_map(|(_, inputs)| self.merge(tree, &inputs, now));
        if slice.is_some() {
            return slice;
        }
        // Of what can be merged now: what others have paid for is theirs.
        let is_worth_it = |job: &Job| {
            let (runs, seeks) = (job.inputs.len() as f64, job.segments().map(paid).sum::<u64>());
            // One run remains.
            seeks as f64 * (runs - 1.0) / runs >= job.bytes() as f64
        };
        let runs_of = |level: usize| merge_runs(tree, level, BOTTOM - 1, now.busy);
        (0..BOTTOM).filter_map(runs_of).find(is_worth_it)
    }

    /// Neighbours in the bottom that are too small.
    fn join_crumbs(&self, tree: &Tree, now: &Situation<'_>) -> Option<Job> {
        let run = tree.levels[BOTTOM].last()?;
        let mut from = 0;
        while from < run.segments.len() {
            let crumbs = |s: &&Arc<Segment>| s.meta.file_len < self.crumb() && !now.busy.has(s);
            let mut bytes = 0;
            let part: Vec<_> = run.segments[from..]
                .iter()
                .take_while(crumbs)
                .take_while(|s| {
                    bytes += s.meta.file_len;
                    bytes <= self.segment_bytes
                })
                .cloned()
                .collect();
            from += part.len().max(1);
            if part.len() > 1
                && let Some(job) = self.merge(tree, &[&part], now)
            {
                return Some(Job { piece_bytes: Some(self.segment_bytes * 3 / 2), ..job });
            }
        }
        None
    }
}

impl Strategy for LazyLeveling {
    fn pick(&self, tree: &Tree, now: &Situation<'_>) -> Option<Job> {
        if let Some(segment) = tree.segments().find(|s| s.needs_rewrite() && !now.busy.has(s)) {
            let job = Job::rewrite(segment);
            if now.busy.admits(&job) {
                return Some(job);
            }
        }
        if let Some(job) = self.free_move(tree, now).or_else(|| self.first_bottom(tree, now)) {
            return Some(job);
        }
        if tree.levels[BOTTOM].is_empty() {
            return None;
        }
        let from = Self::slices_from(tree);
        let merge = |level: usize| merge_runs(tree, level, BOTTOM - 1, now.busy);
        // Slices do not empty these; the others only if they keep up.
        let urgent = |level: &usize| {
            let runs = &tree.levels[*level];
            self.is_crowded(runs) || *level < from && self.is_full(runs, false)
        };
        if let Some(job) = (0..BOTTOM).filter(urgent).find_map(merge) {
            return Some(job);
        }
        let space = Space::without(tree, now.garbage_known, now.busy);
        let runs_above = tree.runs().count() - 1;
        let due = self.is_due(&space, runs_above, now.mood);
        if due && let Some(job) = self.slice(tree, from, now) {
            return Some(job);
        }
        if let Some(job) =
            (from..BOTTOM).filter(|level| self.is_full(&tree.levels[*level], true)).find_map(merge)
        {
            return Some(job);
        }
        if let Some(job) = self.paid_by_seeks(tree, from, now) {
            return Some(job);
        }
        if now.mood == Mood::Busy {
            return None;
        }
        // What cannot be cut into slices yet can once it is larger.
        if due && let Some(job) = (0..from.min(BOTTOM)).find_map(merge) {
            return Some(job);
        }
        let many = |level: &usize| whole_runs(&tree.levels[*level]) + 0.1 >= CALM_RUNS as f64;
        if let Some(job) = (0..BOTTOM).filter(many).find_map(merge) {
            return Some(job);
        }
        self.join_crumbs(tree, now)
    }

    fn pick_range(&self, tree: &Tree, range: &KeyRange<'_>, now: &Situation<'_>) -> Option<Job> {
        pick_to_bottom(tree, range, now, self.segment_bytes)
    }

    fn debt(&self, tree: &Tree, garbage_known: bool) -> u64 {
        let mut debt = 0;
        let from = Self::slices_from(tree);
        for (at, level) in tree.levels[..BOTTOM].iter().enumerate() {
            if self.is_full(level, at >= from) || self.is_crowded(level) {
                debt += level.iter().map(Run::bytes).sum::<u64>();
            }
        }
        let space = Space::of(tree, garbage_known);
        let runs_above = tree.runs().count().saturating_sub(1);
        if !tree.levels[BOTTOM].is_empty() && self.is_due(&space, runs_above, Mood::Busy) {
            // With what is above goes as much of the bottom as lies below it.
            let allowed = self.alpha_busy * space.oldest as f64;
            let upper: u64 = above_bottom(tree).map(|s| s.meta.file_len).sum();
            let excess = (upper as f64 - allowed).max(0.0);
            debt += (excess * (1.0 + space.oldest as f64 / upper.max(1) as f64)) as u64;
        }
        debt
    }

    fn backlog(&self, tree: &Tree) -> f64 {
        let crowd = tree.levels[0].len() as f64 / MOST_RUNS as f64;
        whole_runs(&tree.levels[0]).max(crowd) / self.runs as f64
    }

    fn cuts(&self, tree: &Tree) -> Vec<Key> {
        let bottom = tree.levels[BOTTOM].last();
        bottom.map_or(Vec::new(), |run| {
            run.segments.iter().skip(1).map(|s| s.meta.first_key.clone()).collect()
        })
    }
}
