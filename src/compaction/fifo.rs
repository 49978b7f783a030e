//! First in, first out: nothing is merged, the oldest segments are dropped.
//!
//! For logs, time series and caches. An entry is written once, by its flush. Space is the cap and
//! one flush. A range read merges all runs, so the cap and the size of a write buffer say how many
//! that can be. What is dropped is gone for snapshots too.
//!
//! Invariant: a segment goes only if no older one that stays shares keys with it. So what was
//! superseded or deleted never comes back.

use super::shape::BOTTOM;
use super::{Action, Job, KeyRange, OutputRun, Situation, Strategy};
use crate::sync::Arc;
use crate::version::{Segment, Tree};
use std::time::Duration;

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fifo {
    /// What the files of a keyspace may have together.
    pub(crate) max_bytes: u64,
    /// How old a segment may become.
    pub(crate) max_age: Option<Duration>,
}

impl Strategy for Fifo {
    fn pick(&self, tree: &Tree, now: &Situation<'_>) -> Option<Job> {
        // What another job is dropping no longer counts, or the same excess would be dropped twice.
        let counted = tree.segments().filter(|s| !now.busy.has(s));
        let mut bytes: u64 = counted.map(|s| s.bytes_with_values()).sum();
        let created = |s: &Segment| s.reader().properties().created_ms;
        let is_old = |s: &Segment| {
            // A clock that was set back makes no segment old.
            let age = Duration::from_millis(now.now_ms.saturating_sub(created(s)));
            self.max_age.is_some_and(|max| age > max)
        };
        let runs: Vec<_> = tree.runs().collect();
        let mut staying: Vec<&Arc<Segment>> = Vec::new();
        let mut dropped: Vec<Vec<Arc<Segment>>> = Vec::new();
        for run in runs.into_iter().rev() {
            let mut segments: Vec<_> = run.segments.iter().collect();
            segments.sort_by_key(|s| (created(s), s.meta.id));
            let mut gone = Vec::new();
            for segment in segments {
                let (first, last) = (&segment.meta.first_key, &segment.meta.last_key);
                let wanted = bytes > self.max_bytes || is_old(segment);
                let free = !now.busy.has(segment);
                if wanted && free && !staying.iter().any(|s| s.overlaps(first, last)) {
                    bytes -= segment.bytes_with_values();
                    gone.push(Arc::clone(segment));
                } else {
                    staying.push(segment);
                }
            }
            if !gone.is_empty() {
                gone.sort_by(|a, b| a.meta.first_key.cmp(&b.meta.first_key));
                dropped.push(gone);
            }
        }
        dropped.reverse();
        (!dropped.is_empty()).then(|| Job {
            keyspace: tree.id,
            inputs: dropped,
            action: Action::Drop,
            output_level: BOTTOM as u8,
            output: OutputRun::New,
            piece_bytes: None,
        })
    }

    /// Nothing is ever merged.
    fn pick_range(&self, _: &Tree, _: &KeyRange<'_>, _: &Situation<'_>) -> Option<Job> {
        None
    }

    fn debt(&self, _: &Tree, _: bool) -> u64 {
        0
    }

    fn backlog(&self, _: &Tree) -> f64 {
        0.0
    }
}
