//! Iteration: many sorted sources as one, as of one moment.
//!
//! ```text
//! memtable cursor ─┐
//! memtable cursor ─┼─ MergeCursor ── visibility (View) ── RangeIter ── user
//! run cursor ──────┘        └────────────────────────────── flush, compaction
//! ```
//!
//! Invariants: a [`MergeCursor`] shows every version of every key in order; a [`RangeIter`] shows
//! each key at most once, with what the versions that its [`View`] may see come to (see [`Fold`]), and
//! never one that is removed or has expired;
//! what it shows does not change while it lives. Owned, `Send`, one thread at a time. Called by the
//! database's reads, by flushes and by compactions.

mod fold;
mod merge;
mod range;
mod source;

pub(crate) use fold::{Fold, Folded};
pub(crate) use merge::MergeCursor;
pub use range::RangeIter;
pub(crate) use range::{CursorSource, owned_bounds};
pub(crate) use source::RangeSource;

use crate::cursor::Shown;
use crate::types::{Kind, SeqNo};

/// What a read may see of one keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// Nothing after this.
    pub(crate) snapshot: SeqNo,
    /// Nothing at or before this: the last clear of the keyspace before the snapshot.
    pub(crate) floor: Option<SeqNo>,
    /// Nothing that expires by now: in milliseconds since the Unix epoch.
    pub(crate) now_ms: u64,
}

impl View {
    /// Whether a version with this sequence number was cleared away.
    #[inline]
    pub(crate) fn is_cleared(&self, seqno: SeqNo) -> bool {
        self.floor.is_some_and(|floor| seqno <= floor)
    }

    /// Whether a range gives the entry that a cursor is at just as it is, if no newer version of its key is
    /// visible. It may give others, after a second look.
    #[inline]
    fn shows(&self, entry: &Shown<'_>) -> bool {
        let Shown { seqno, kind, .. } = *entry;
        seqno <= self.snapshot && !self.is_cleared(seqno) && kind == Kind::Put
    }
}

#[cfg(test)]
mod tests;
