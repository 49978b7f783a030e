//! The iterator that users hold: a range of one keyspace, as of one moment, from both ends.
//!
//! Each end has a merge of its own, made when that end is first used, so that a plain forward scan
//! pays nothing for the other direction. The two ends meet at keys: neither passes the last key
//! that the other gave.

use super::{MergeCursor, View};
use crate::cursor::{Cursor, Seek};
use crate::error::Result;
use crate::slice::{Key, Value};
use crate::types::Kind;
use bytes::Bytes;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

/// After this many versions of one key in a row, an end seeks past the rest instead of stepping.
const STEPS_BEFORE_SEEK: u32 = 4;

/// Where a [`RangeIter`] gets its cursors; it also keeps alive all that they read.
pub(crate) trait CursorSource: Send + Sync {
    /// A fresh cursor over each source of the keyspace.
    fn cursors(&self) -> Result<Vec<Box<dyn Cursor>>>;
}

/// Iterates over a range of keys in order, from the front, from the back, or both.
///
/// It shows the database as of the moment it was made, whatever is written meanwhile, and keeps the
/// files it reads alive. It is owned (`'static`) and `Send`. After an error it gives nothing more,
/// from either end, until the next seek; it never ends early without an error.
///
/// Making one costs nothing; the first step at an end costs one index search and at most one block
/// read for each sorted run; later steps read each block once.
pub struct RangeIter {
    source: Arc<dyn CursorSource>,
    view: View,
    keys_only: bool,
    lower: Bound<Bytes>,
    upper: Bound<Bytes>,
    front: End,
    back: End,
    done: bool,
}

/// One end.
struct End {
    merge: Option<MergeCursor>,
    /// The last key given, or the bound where a seek put the end: this end goes on past it.
    limit: Bound<Bytes>,
}

impl End {
    fn new() -> Self {
        End { merge: None, limit: Bound::Unbounded }
    }
}

impl std::fmt::Debug for RangeIter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RangeIter").field("lower", &self.lower).field("upper", &self.upper).finish()
    }
}

fn as_slice(bound: &Bound<Bytes>) -> Bound<&[u8]> {
    match bound {
        Bound::Included(key) => Bound::Included(key),
        Bound::Excluded(key) => Bound::Excluded(key),
        Bound::Unbounded => Bound::Unbounded,
    }
}

/// Whether `key` is at or past the lower bound.
fn above(bound: &Bound<Bytes>, key: &[u8]) -> bool {
    match bound {
        Bound::Included(b) => key >= &b[..],
        Bound::Excluded(b) => key > &b[..],
        Bound::Unbounded => true,
    }
}

/// Whether `key` is at or before the upper bound.
fn below(bound: &Bound<Bytes>, key: &[u8]) -> bool {
    match bound {
        Bound::Included(b) => key <= &b[..],
        Bound::Excluded(b) => key < &b[..],
        Bound::Unbounded => true,
    }
}

/// A range's bounds as owned bytes.
pub(crate) fn owned_bounds<K: AsRef<[u8]>>(
    range: &impl RangeBounds<K>,
) -> (Bound<Bytes>, Bound<Bytes>) {
    let own = |bound: Bound<&K>| bound.map(|key| Bytes::copy_from_slice(key.as_ref()));
    (own(range.start_bound()), own(range.end_bound()))
}

impl RangeIter {
    /// An iterator over what `view` may see between the bounds. A reversed range is empty.
    pub(crate) fn new(
        source: Arc<dyn CursorSource>,
        view: View,
        (lower, upper): (Bound<Bytes>, Bound<Bytes>),
        keys_only: bool,
    ) -> Self {
        RangeIter {
            source,
            view,
            keys_only,
            lower,
            upper,
            front: End::new(),
            back: End::new(),
            done: false,
        }
    }

    /// Puts the front at the first key of the range that is at or after `key`: the next `next()`
    /// gives that one. Works in both directions and after the end or an error; the back stays.
    /// Costs one index search and at most one block read for each sorted run.
    pub fn seek(&mut self, key: impl AsRef<[u8]>) {
        self.front =
            End { merge: None, limit: Bound::Included(Bytes::copy_from_slice(key.as_ref())) };
        self.done = false;
    }

    /// Puts the back at the last key of the range that is at or before `key`: the next
    /// `next_back()` gives that one. The mirror image of [`seek`](Self::seek).
    pub fn seek_back(&mut self, key: impl AsRef<[u8]>) {
        self.back =
            End { merge: None, limit: Bound::Included(Bytes::copy_from_slice(key.as_ref())) };
        self.done = false;
    }

    /// Whether a key that the front has reached is still to be given.
    fn front_may_give(&self, key: &[u8]) -> bool {
        below(&self.upper, key) && below(&self.back.limit, key)
    }

    fn back_may_give(&self, key: &[u8]) -> bool {
        above(&self.lower, key) && above(&self.front.limit, key)
    }

    fn advance_front(&mut self) -> Result<Option<(Key, Value)>> {
        let mut merge = match self.front.merge.take() {
            Some(merge) => merge,
            None => {
                let mut merge = MergeCursor::new(self.source.cursors()?);
                merge.seek(match (as_slice(&self.front.limit), as_slice(&self.lower)) {
                    (Bound::Included(at), _) if above(&self.lower, at) => Seek::AtOrAfter(at),
                    (Bound::Excluded(at), _) if above(&self.lower, at) => Seek::After(at),
                    (_, Bound::Included(at)) => Seek::AtOrAfter(at),
                    (_, Bound::Excluded(at)) => Seek::After(at),
                    (_, Bound::Unbounded) => Seek::First,
                })?;
                merge
            }
        };
        if let Bound::Excluded(given) = &self.front.limit
            && merge.valid()
            && merge.key() == given
        {
            // Only now, so that an entry is given even if what follows it cannot be read.
            skip_key_forward(&mut merge, given)?;
        }
        while merge.valid() && self.front_may_give(merge.key()) {
            if merge.seqno() > self.view.snapshot {
                merge.next()?;
                continue;
            }
            // The newest version that this view may see decides about the key.
            let key = merge.key_bytes();
            if merge.kind() == Kind::Delete || self.view.is_cleared(merge.seqno()) {
                skip_key_forward(&mut merge, &key)?;
                continue;
            }
            let value = if self.keys_only { Bytes::new() } else { merge.value() };
            self.front.limit = Bound::Excluded(key.clone());
            self.front.merge = Some(merge);
            return Ok(Some((Key(key), Value(value))));
        }
        Ok(None)
    }

    fn advance_back(&mut self) -> Result<Option<(Key, Value)>> {
        let mut merge = match self.back.merge.take() {
            Some(merge) => merge,
            None => {
                let mut merge = MergeCursor::new(self.source.cursors()?);
                merge.seek(match (as_slice(&self.back.limit), as_slice(&self.upper)) {
                    (Bound::Included(at), _) if below(&self.upper, at) => Seek::AtOrBefore(at),
                    (Bound::Excluded(at), _) if below(&self.upper, at) => Seek::Before(at),
                    (_, Bound::Included(at)) => Seek::AtOrBefore(at),
                    (_, Bound::Excluded(at)) => Seek::Before(at),
                    (_, Bound::Unbounded) => Seek::Last,
                })?;
                merge
            }
        };
        while merge.valid() && self.back_may_give(merge.key()) {
            // The cursor is at the oldest version of a key; the newest visible one decides.
            let key = merge.key_bytes();
            let mut newest: Option<(Kind, bool, Bytes)> = None;
            let mut steps = 0;
            while merge.valid() && merge.key() == key && merge.seqno() <= self.view.snapshot {
                let value = if self.keys_only { Bytes::new() } else { merge.value() };
                newest = Some((merge.kind(), self.view.is_cleared(merge.seqno()), value));
                steps += 1;
                if steps > STEPS_BEFORE_SEEK {
                    newest = self.newest_visible(&mut merge, &key)?;
                    break;
                }
                merge.prev()?;
            }
            if merge.valid() && merge.key() == key {
                // Versions after the snapshot are left, however many.
                merge.seek(Seek::Before(&key))?;
            }
            if let Some((kind, false, value)) = newest
                && kind != Kind::Delete
            {
                self.back.limit = Bound::Excluded(key.clone());
                self.back.merge = Some(merge);
                return Ok(Some((Key(key), Value(value))));
            }
        }
        Ok(None)
    }

    /// Finds the newest visible version of `key` from the front of its versions, for a key with too
    /// many to step over from the back.
    fn newest_visible(
        &self,
        merge: &mut MergeCursor,
        key: &Bytes,
    ) -> Result<Option<(Kind, bool, Bytes)>> {
        merge.seek(Seek::AtOrAfter(key))?;
        while merge.valid() && merge.key() == key {
            if merge.seqno() <= self.view.snapshot {
                let value = if self.keys_only { Bytes::new() } else { merge.value() };
                return Ok(Some((merge.kind(), self.view.is_cleared(merge.seqno()), value)));
            }
            merge.next()?;
        }
        Ok(None)
    }

    /// Turns the outcome of a step into an item, and fuses.
    fn item(&mut self, step: Result<Option<(Key, Value)>>) -> Option<Result<(Key, Value)>> {
        match step {
            Ok(Some(entry)) => Some(Ok(entry)),
            Ok(None) => {
                self.done = true;
                None
            }
            Err(error) => {
                self.done = true;
                Some(Err(error))
            }
        }
    }
}

/// Moves a merge past the remaining versions of `key`.
fn skip_key_forward(merge: &mut MergeCursor, key: &Bytes) -> Result<()> {
    for _ in 0..STEPS_BEFORE_SEEK {
        merge.next()?;
        if !merge.valid() || merge.key() != key {
            return Ok(());
        }
    }
    merge.seek(Seek::After(key))
}

impl Iterator for RangeIter {
    type Item = Result<(Key, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let step = self.advance_front();
        self.item(step)
    }
}

impl DoubleEndedIterator for RangeIter {
    fn next_back(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let step = self.advance_back();
        self.item(step)
    }
}

impl std::iter::FusedIterator for RangeIter {}
