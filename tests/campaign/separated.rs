//! How often values lay in value segments, and were moved out of one, in the rows that do such things by chance:
//! a row in which that never happens has not tried it.
//!
//! `recovery` has few workloads at its CI size, and `fsync` short ones, so that none may come to a move: there it is
//! enough that values are separated.

use ashlardb::{Builder, CompactionReason, Db, Event};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The rows whose databases separate values in some of their configurations.
const ROWS: [&str; 5] = ["power", "recovery", "faults", "fsync", "same"];

static FLUSHES: AtomicU64 = AtomicU64::new(0);
static MOVES: AtomicU64 = AtomicU64::new(0);

/// What was counted so far.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    /// Flushes after which there were value segments.
    flushes: u64,
    /// Compactions that were only there to empty one.
    moves: u64,
}

impl Counts {
    pub fn now() -> Counts {
        let [flushes, moves] = [&FLUSHES, &MOVES].map(|count| count.load(Ordering::Relaxed));
        Counts { flushes, moves }
    }

    /// What a row came to, in words; an error if one of the counts is zero that should not be.
    pub fn of_row(name: &str, before: Counts) -> Option<Result<String, String>> {
        if !ROWS.contains(&name) {
            return None;
        }
        let now = Counts::now();
        let (flushes, moves) = (now.flushes - before.flushes, now.moves - before.moves);
        let text = format!(
            "{name}: value segments after {flushes} flushes; {moves} compactions to empty one"
        );
        let is_tried = flushes > 0 && (moves > 0 || matches!(name, "recovery" | "fsync"));
        Some(if is_tried { Ok(text) } else { Err(text) })
    }
}

/// Counts the compactions of a database.
pub fn watched(builder: Builder) -> Builder {
    builder.listener(Arc::new(|event: &Event| {
        if let Event::CompactionEnd { compaction, error: None, .. } = event
            && compaction.reason == CompactionReason::Unreferenced
        {
            MOVES.fetch_add(1, Ordering::Relaxed);
        }
    }))
}

/// Called after a flush.
pub fn flushed(db: &Db) {
    if db.stats().keyspaces.iter().any(|keyspace| keyspace.value_segments > 0) {
        FLUSHES.fetch_add(1, Ordering::Relaxed);
    }
}
