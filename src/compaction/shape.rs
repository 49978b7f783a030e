//! The geometry that strategies share: which segments must travel together, and how large things
//! are.
//!
//! Pure functions of a [`Tree`]; called by the strategies and, for [`Space`], by `stats`.

use super::{Action, Busy, Job, KeyRange, OutputRun, Situation};
use crate::sync::Arc;
use crate::version::{LEVELS, Run, Segment, Tree};
use std::ops::Bound;

/// The last level.
pub(super) const BOTTOM: usize = LEVELS - 1;

/// A span of keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span<'a> {
    /// Inclusive; `None` is unbounded.
    pub(super) lower: Option<&'a [u8]>,
    pub(super) upper: Bound<&'a [u8]>,
}

impl<'a> Span<'a> {
    /// All keys.
    pub(super) const ALL: Span<'static> = Span { lower: None, upper: Bound::Unbounded };

    /// From the first to the last key of some segments; `None` if there are none.
    pub(super) fn of(segments: impl IntoIterator<Item = &'a Arc<Segment>>) -> Option<Span<'a>> {
        let mut segments = segments.into_iter();
        let first = segments.next()?;
        let mut span = Span {
            lower: Some(&first.meta.first_key),
            upper: Bound::Included(&first.meta.last_key),
        };
        segments.for_each(|segment| span.cover(segment));
        Some(span)
    }

    /// Makes it cover a segment too.
    fn cover(&mut self, segment: &'a Segment) {
        let (first, last) = (&segment.meta.first_key[..], &segment.meta.last_key[..]);
        self.lower = self.lower.map(|lower| lower.min(first));
        let covered = match self.upper {
            Bound::Included(upper) => last <= upper,
            Bound::Excluded(upper) => last < upper,
            Bound::Unbounded => true,
        };
        if !covered {
            self.upper = Bound::Included(last);
        }
    }
}

/// The segments that share keys with a span in the runs of some levels, newest run first, and with
/// each all that shares keys with it in the older of those runs. Runs without any are left out.
///
/// Newer runs keep what shares keys only with what was taken from older ones: it is newer, and may
/// stay above.
pub(super) fn gather<'a>(
    tree: &'a Tree,
    levels: std::ops::RangeInclusive<usize>,
    mut span: Span<'a>,
) -> Vec<&'a [Arc<Segment>]> {
    let mut taken = Vec::new();
    for run in tree.levels.get(levels).unwrap_or(&[]).iter().flatten() {
        let part = run.within(span.lower, span.upper);
        if !part.is_empty() {
            for segment in part {
                span.cover(segment);
            }
            taken.push(part);
        }
    }
    taken
}

/// A job that brings what was gathered into the oldest run of a level, or begins that run. If it
/// can, it moves the segments.
pub(super) fn merge_into(tree: &Tree, level: usize, inputs: &[&[Arc<Segment>]]) -> Option<Job> {
    let target = tree.levels.get(level)?.last().map(Run::number);
    let single = inputs.len() == 1;
    let is_there =
        |s: &Arc<Segment>| usize::from(s.meta.level) == level && Some(s.meta.run) == target;
    let stays = inputs.iter().copied().flatten().any(is_there);
    Some(Job {
        keyspace: tree.id,
        inputs: inputs.iter().map(|part| part.to_vec()).collect(),
        action: if single && !stays { Action::Move } else { Action::Merge },
        output_level: level as u8,
        output: OutputRun::Join(target),
        piece_bytes: None,
    })
}

/// Merges all runs of a level, but what jobs at work hold back, into a new run of the next one. At
/// the last level that may hold runs, into the oldest of them. `None` if fewer than two runs can.
///
/// A segment stays if it is busy, or if it shares keys with one that stays in an older run: it
/// must not overtake that.
pub(super) fn merge_runs(tree: &Tree, level: usize, last: usize, busy: &Busy) -> Option<Job> {
    let mut staying: Vec<&Arc<Segment>> = Vec::new();
    let mut inputs: Vec<Vec<Arc<Segment>>> = Vec::new();
    for run in tree.levels.get(level)?.iter().rev() {
        let stays = |s: &&Arc<Segment>| {
            busy.has(s)
                || staying.iter().any(|other| other.overlaps(&s.meta.first_key, &s.meta.last_key))
        };
        let (stay, go): (Vec<_>, Vec<_>) = run.segments.iter().partition(stays);
        staying.extend(stay);
        if !go.is_empty() {
            inputs.push(go.into_iter().cloned().collect());
        }
    }
    inputs.reverse();
    let oldest = tree.levels.get(level)?.last().map(Run::number);
    // In place, the output must not end up in one run with what shares keys with it.
    if inputs.len() < 2 || level >= last && !staying.is_empty() {
        return None;
    }
    let job = Job {
        keyspace: tree.id,
        inputs,
        action: Action::Merge,
        output_level: (level + 1).min(last) as u8,
        output: if level < last { OutputRun::New } else { OutputRun::Join(oldest) },
        piece_bytes: None,
    };
    busy.admits(&job).then_some(job)
}

/// The segments of a tree from which a manual compaction has to take something: all but those in
/// the oldest run of the bottom.
pub(super) fn above_bottom(tree: &Tree) -> impl Iterator<Item = &Arc<Segment>> {
    let bottom_runs = tree.levels.get(BOTTOM).map_or(0, Vec::len);
    let upper = tree.runs().count() - bottom_runs.min(1);
    tree.runs().take(upper).flat_map(|run| &run.segments)
}

/// Brings a range into the oldest run of the bottom, slice by slice.
pub(super) fn pick_to_bottom(
    tree: &Tree,
    range: &KeyRange<'_>,
    now: &Situation<'_>,
    segment_bytes: u64,
) -> Option<Job> {
    // A run that was never cut would drag everything into one job: cut it first.
    let merge_first = tree.levels.first().is_some_and(|runs| {
        runs.len() > 1
            && runs.iter().flat_map(|run| &run.segments).any(|s| range.concerns(s))
            && slices_per_segment(tree, 0) > CUT_WELL
    });
    if merge_first && let Some(job) = merge_runs(tree, 0, BOTTOM - 1, now.busy) {
        return Some(job);
    }
    let wanted: Vec<_> = above_bottom(tree).filter(|s| range.concerns(s)).collect();
    if wanted.is_empty() {
        return None;
    }
    let due = |span: Span<'_>| {
        wanted.iter().any(|s| {
            span.lower.is_none_or(|lower| *lower <= s.meta.last_key[..])
                && match span.upper {
                    Bound::Included(upper) => s.meta.first_key[..] <= *upper,
                    Bound::Excluded(upper) => s.meta.first_key[..] < *upper,
                    Bound::Unbounded => true,
                }
        })
    };
    slices(tree, 0).filter(|span| due(*span)).find_map(|span| {
        let inputs = gather(tree, 0..=BOTTOM, span);
        let pieces = pieces(&inputs, now.garbage_known, segment_bytes);
        let job = Job { piece_bytes: Some(pieces), ..merge_into(tree, BOTTOM, &inputs)? };
        now.busy.admits(&job).then_some(job)
    })
}

/// The spans into which the oldest run of the bottom cuts the keys: each from the first key of a
/// segment to that of the next, the outer ones open. Small neighbours, which together stay below
/// `join_bytes`, make one. One span if there is no such run.
pub(super) fn slices(tree: &Tree, join_bytes: u64) -> impl Iterator<Item = Span<'_>> {
    let bottom = tree.levels.get(BOTTOM).and_then(|runs| runs.last());
    let segments = bottom.map_or(&[][..], |run| &run.segments);
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= segments.len().max(1) {
            return None;
        }
        let start = at;
        let mut bytes = segments.get(at).map_or(0, |s| s.meta.file_len);
        at += 1;
        while let Some(next) = segments.get(at).filter(|s| bytes + s.meta.file_len < join_bytes) {
            bytes += next.meta.file_len;
            at += 1;
        }
        let first = segments.get(start).filter(|_| start > 0);
        let next = segments.get(at);
        Some(Span {
            lower: first.map(|s| &s.meta.first_key[..]),
            upper: next.map_or(Bound::Unbounded, |s| Bound::Excluded(&s.meta.first_key[..])),
        })
    })
}

/// Up to how many segments of the bottom a segment above may meet on average, for its level to
/// count as cut.
pub(super) const CUT_WELL: f64 = 2.5;

/// How many segments of the bottom's oldest run a segment of a level meets on average.
pub(super) fn slices_per_segment(tree: &Tree, level: usize) -> f64 {
    let Some(bottom) = tree.levels.get(BOTTOM).and_then(|runs| runs.last()) else { return 1.0 };
    let (mut met, mut count) = (0usize, 0usize);
    for segment in tree.levels.get(level).into_iter().flatten().flat_map(|run| &run.segments) {
        let (first, last) = (&segment.meta.first_key[..], &segment.meta.last_key[..]);
        met += bottom.within(Some(first), Bound::Included(last)).len().max(1);
        count += 1;
    }
    if count == 0 { 1.0 } else { met as f64 / count as f64 }
}

/// The bytes and entries of some segments.
#[derive(Clone, Copy, Debug, Default)]
struct Mass {
    bytes: u64,
    entries: u64,
    garbage: u64,
    tombstone_bytes: u64,
}

impl Mass {
    fn of<'a>(segments: impl IntoIterator<Item = &'a Arc<Segment>>) -> Mass {
        segments.into_iter().fold(Mass::default(), |sum, s| Mass {
            bytes: sum.bytes + s.meta.file_len,
            entries: sum.entries + s.meta.entries,
            garbage: sum.garbage + s.garbage_bytes(),
            tombstone_bytes: sum.tombstone_bytes
                + s.meta.file_len / s.meta.entries.max(1) * s.meta.tombstones,
        })
    }
}

/// What of a tree is dead weight: an estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Space {
    /// In the oldest run.
    pub(crate) oldest: u64,
    /// In all newer ones.
    pub(crate) newer: u64,
    /// Superseded, of both.
    pub(crate) garbage: u64,
}

impl Space {
    /// Of a whole tree.
    pub(crate) fn of(tree: &Tree, garbage_known: bool) -> Space {
        Self::without(tree, garbage_known, &Busy::default())
    }

    /// Of a tree from which the newer segments are gone that jobs are merging away.
    pub(super) fn without(tree: &Tree, garbage_known: bool, busy: &Busy) -> Space {
        let runs: Vec<&Run> = tree.runs().collect();
        let Some((oldest, newer)) = runs.split_last() else { return Space::default() };
        let oldest = Mass::of(&oldest.segments);
        let newer = Mass::of(newer.iter().flat_map(|run| &run.segments).filter(|s| !busy.has(s)));
        Self::estimate(oldest, newer, garbage_known)
    }

    fn estimate(oldest: Mass, newer: Mass, garbage_known: bool) -> Space {
        let total = oldest.bytes + newer.bytes;
        let garbage = if garbage_known {
            oldest.garbage + newer.garbage + newer.tombstone_bytes
        } else {
            let entry = oldest.bytes as f64 / oldest.entries.max(1) as f64;
            (newer.entries as f64 * entry) as u64
        };
        // An estimate may not say that nothing lives.
        let garbage = garbage.min(total / 10 * 9);
        Space { oldest: oldest.bytes, newer: newer.bytes, garbage }
    }

    /// All of it.
    pub(crate) fn total(&self) -> u64 {
        self.oldest + self.newer
    }

    /// How many times as large it is as what lives in it.
    pub(crate) fn amplification(&self) -> f64 {
        self.total().max(1) as f64 / (self.total() - self.garbage).max(1) as f64
    }
}

/// The size at which to cut a merge, so that it gives pieces of about equal size, none larger than
/// one and a half segments.
pub(super) fn pieces(inputs: &[&[Arc<Segment>]], garbage_known: bool, segment_bytes: u64) -> u64 {
    let (oldest, newer) = match inputs.split_last() {
        Some((oldest, newer)) => (Mass::of(*oldest), Mass::of(newer.iter().copied().flatten())),
        None => return segment_bytes,
    };
    let space = Space::estimate(oldest, newer, garbage_known);
    let most = space.total();
    // What is assumed about garbage may be all wrong; what is known is not by much.
    let doubt = if garbage_known { space.garbage / 4 } else { space.garbage / 2 };
    let expected = most - space.garbage + doubt;
    let count = (expected as f64 / segment_bytes as f64).round().max(1.0);
    let piece = ((expected + doubt) as f64 / count * 1.05) as u64;
    piece.clamp(1, segment_bytes / 2 * 3)
}
