//! A range as a transaction sees it: the database as of its begin, and what it has written itself.
//!
//! Each end gives the nearer of what the database and the own writes have next, from where it is.
//! An entry of the database that is not its turn yet is kept for that end's next step; when the
//! database has nothing left in the middle, one end may still take what the other one kept.

use super::keyspace_core::KeyspaceCore;
use super::transaction::Transaction;
use super::transaction_steps::Walk;
use super::transaction_writes::Writes;
use crate::deletes::KeySpan;
use crate::error::Result;
use crate::iter::RangeIter;
use crate::slice::{Key, Value};
use crate::sync::Arc;
use bytes::Bytes;
use std::cmp::Ordering;
use std::iter::FusedIterator;
use std::ops::Bound;

/// After so many entries in a row that lie in a range which the transaction deleted, an end
/// searches behind that range instead of stepping.
const STEPS_BEFORE_SEEK: u32 = 8;

/// Iterates over a range within a [`Transaction`], in order, from the front, from the back, or
/// both.
///
/// It shows the database as of the transaction's begin with what the transaction had written when
/// the iterator was made; what is written later does not change it. What it walks over counts as
/// read: a range up to its end, or, if it is dropped before it got there, as far as it came. After
/// an error it gives nothing more, and the whole range counts as read.
///
/// Costs as [`RangeIter`], and a search among the transaction's own writes each step. A transaction
/// that writes while an iterator is alive copies the keys of what it has written to that keyspace,
/// once.
pub struct TransactionRange<'t> {
    transaction: &'t Transaction,
    core: Arc<KeyspaceCore>,
    /// `None`: the range is empty.
    walk: Option<Walk>,
    below: RangeIter,
    own: Arc<Writes>,
    bounds: Bounds,
    front: End,
    back: End,
    /// The whole range was walked, or cannot be.
    done: bool,
}

/// Where it begins, and where it ends, exclusive.
struct Bounds {
    start: Bytes,
    /// `None`: nowhere.
    end: Option<Bytes>,
}

/// One end.
#[derive(Default)]
struct End {
    /// The last key looked at.
    at: Option<Bytes>,
    /// What the database has next from here.
    next: Option<(Key, Value)>,
}

impl std::fmt::Debug for TransactionRange<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransactionRange").field("below", &self.below).finish_non_exhaustive()
    }
}

impl<'t> TransactionRange<'t> {
    /// Of what lies in `span`, in the database as `below` shows it. `walk` is told what was walked.
    pub(super) fn new(
        transaction: &'t Transaction,
        core: Arc<KeyspaceCore>,
        span: Option<KeySpan>,
        walk: Option<Walk>,
        below: RangeIter,
        own: Arc<Writes>,
    ) -> Self {
        let done = span.is_none();
        let (start, end) = span.map(|span| (span.start, span.end)).unwrap_or_default();
        let bounds = Bounds { start, end: Some(end).filter(|end| !end.is_empty()) };
        let (front, back) = (End::default(), End::default());
        TransactionRange { transaction, core, walk, below, own, bounds, front, back, done }
    }

    /// What lies between the ends, of the own writes.
    fn bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let lower = match &self.front.at {
            Some(at) => Bound::Excluded(&at[..]),
            None => Bound::Included(&self.bounds.start[..]),
        };
        let upper = match (&self.back.at, &self.bounds.end) {
            (Some(end), _) | (None, Some(end)) => Bound::Excluded(&end[..]),
            (None, None) => Bound::Unbounded,
        };
        (lower, upper)
    }

    /// What the database has next at an end, but for what the transaction deleted with a range.
    fn next_below(&mut self, forward: bool) -> Result<Option<(Key, Value)>> {
        let mut hidden = 0;
        loop {
            let (own, other) = if forward {
                (&mut self.front.next, &mut self.back.next)
            } else {
                (&mut self.back.next, &mut self.front.next)
            };
            let next = match own.take() {
                Some(entry) => Some(entry),
                None => {
                    let step = if forward { self.below.next() } else { self.below.next_back() };
                    step.transpose()?.or_else(|| other.take())
                }
            };
            let Some((key, value)) = next else { return Ok(None) };
            // What was written to such a key afterwards does not depend on it either.
            let Some((start, end)) = self.own.deleted_around(&key) else {
                return Ok(Some((key, value)));
            };
            hidden += 1;
            if hidden == STEPS_BEFORE_SEEK {
                hidden = 0;
                match (forward, end.is_empty()) {
                    (true, false) => self.below.seek(end),
                    // The last one in the range is still hidden, and taken for that.
                    (false, _) => self.below.seek_back(start),
                    (true, true) => {}
                }
            }
        }
    }

    /// The next entry at an end.
    fn step(&mut self, forward: bool) -> Result<Option<(Key, Value)>> {
        loop {
            let below = self.next_below(forward)?;
            let own = self.own.outermost(self.bounds(), forward);
            let order = match (&below, own) {
                (None, None) => return Ok(None),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((below, _)), Some((own, _))) if forward => below[..].cmp(&own[..]),
                (Some((below, _)), Some((own, _))) => own[..].cmp(&below[..]),
            };
            let end = |range: &mut Self, at: &Bytes| {
                let end = if forward { &mut range.front } else { &mut range.back };
                end.at = Some(at.clone());
            };
            match (order, below, own) {
                (Ordering::Less, Some((key, value)), _) => {
                    end(self, &key.0);
                    return Ok(Some((key, value)));
                }
                (order, below, Some((key, cell))) => {
                    let is_below = order == Ordering::Equal;
                    let value = below.as_ref().filter(|_| is_below).map(|(_, value)| &value[..]);
                    let value = cell.value(&self.core, key, value)?;
                    let key = key.clone();
                    end(self, &key);
                    if !is_below {
                        let end = if forward { &mut self.front } else { &mut self.back };
                        end.next = below;
                    }
                    if let Some(value) = value {
                        return Ok(Some((Key(key), Value(value))));
                    }
                }
                _ => return Ok(None),
            }
        }
    }

    fn item(&mut self, forward: bool) -> Option<Result<(Key, Value)>> {
        if self.done {
            return None;
        }
        let step = self.step(forward);
        self.done = !matches!(step, Ok(Some(_)));
        step.transpose()
    }

    /// What was walked.
    fn walked(&self) -> impl Iterator<Item = KeySpan> {
        let Bounds { start, end } = &self.bounds;
        let lower = Bound::Included(&start[..]);
        let upper = end.as_ref().map_or(Bound::Unbounded, |end| Bound::Excluded(&end[..]));
        let included = |at: &'_ Bytes| Bound::Included(at.clone());
        let spans = if self.done {
            [KeySpan::of(lower, upper), None]
        } else {
            let front = self.front.at.as_ref().map(included);
            let back = self.back.at.as_ref().map(included);
            let front = front.and_then(|at| KeySpan::of(lower, at.as_ref().map(|at| &at[..])));
            let back = back.and_then(|at| KeySpan::of(at.as_ref().map(|at| &at[..]), upper));
            [front, back]
        };
        spans.into_iter().flatten()
    }
}

impl Drop for TransactionRange<'_> {
    fn drop(&mut self) {
        if let Some(walk) = self.walk.take() {
            self.transaction.end_walk(&walk, self.walked());
        }
    }
}

impl Iterator for TransactionRange<'_> {
    type Item = Result<(Key, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.item(true)
    }
}

impl DoubleEndedIterator for TransactionRange<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.item(false)
    }
}

impl FusedIterator for TransactionRange<'_> {}
