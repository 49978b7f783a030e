//! The iterator that users hold: a range of one keyspace, as of one moment, from both ends.
//!
//! Each end has a merge of its own, made when that end is first used, so that a plain forward scan
//! pays nothing for the other direction. The two ends meet at keys: neither passes the last key
//! that the other gave.

use super::fold::{Folded, without_expiry};
use super::{MergeCursor, RangeSource, View};
use crate::cursor::{Bounds, Cursor, Hidden, Seek, Shown};
use crate::deletes::RangeDeletes;
use crate::error::{Error, Result};
use crate::slice::{Key, Value};
use crate::types::{Kind, SeqNo};
use bytes::Bytes;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

/// After this many versions that a view may not see, an end searches instead of stepping: past the
/// newer versions of a key, or past what a range tombstone hides in the runs that are older than it.
const STEPS_BEFORE_SEEK: u32 = 4;

/// Where a [`RangeIter`] gets its cursors; it also keeps alive all that they read.
pub(crate) trait CursorSource: Send + Sync {
    /// A fresh cursor over each source of the keyspace that may have keys within the bounds. Beyond
    /// them it may or may not show entries.
    fn cursors(&self, bounds: &Arc<Bounds>) -> Result<Vec<RangeSource>>;

    /// The value that a reference leads to, from an entry of one of these cursors.
    fn fetch(&self, reference: &[u8]) -> Result<Bytes>;

    /// What the versions of a key come to that the view may see.
    fn fold(&self, key: &[u8], view: &View) -> Result<Option<Folded>>;

    /// What to report if a source does not show its keys in order.
    fn out_of_order(&self) -> Error;
}

/// Iterates over a range of keys in order, from the front, from the back, or both.
///
/// It shows the database as of the moment it was made, whatever is written meanwhile, and keeps the
/// files it reads alive. It is owned (`'static`) and `Send`. After an error it gives nothing more,
/// from either end, until the next seek; it never ends early without an error.
///
/// As an [`Iterator`] it hands out keys and values that share the memory of what they were read from.
/// [`next_entry`](Self::next_entry) and [`next_entry_back`](Self::next_entry_back) lend them instead,
/// until the next step, which saves the counting of references; the two kinds of steps may be mixed.
///
/// Making one costs nothing; the first step at an end costs one index search and at most one block
/// read for each sorted run that has keys in the range; later steps read each block once.
pub struct RangeIter {
    source: Arc<dyn CursorSource>,
    view: View,
    /// The range tombstones that may hide something.
    deletes: Vec<Arc<RangeDeletes>>,
    keys_only: bool,
    bounds: Arc<Bounds>,
    front: End,
    back: End,
    done: bool,
}

/// One end.
#[derive(Default)]
struct End {
    merge: Option<MergeCursor<RangeSource>>,
    at: At,
    /// The last key given, or where a seek put the end: this end goes on past it.
    limit: Limit,
    key: Vec<u8>,
    /// The last key given is the merge's: limit and key are still to be set to that.
    lags: bool,
    /// The value of the key given, where it is not the merge's.
    value: Option<Folded>,
}

/// What a range makes of the version that decides about a key.
enum Decision {
    Absent,
    /// Absent because its range was deleted.
    Deleted,
    /// The entry as it is.
    Plain,
    /// The key with this value.
    With(Folded),
}

/// Whether a range tombstone that the view sees hides a version of a key.
#[inline]
fn is_deleted(deletes: &[Arc<RangeDeletes>], key: &[u8], seqno: SeqNo, view: &View) -> bool {
    !deletes.is_empty() && {
        let newest = |deletes: &Arc<RangeDeletes>| deletes.newest(key, view.snapshot);
        deletes.iter().filter_map(newest).any(|newest| seqno <= newest)
    }
}

/// The range around a key that the newest of the range tombstones covers which the view sees.
fn hidden_around<'a>(
    deletes: &'a [Arc<RangeDeletes>],
    key: &[u8],
    view: &View,
) -> Option<Hidden<'a>> {
    let around = |deletes: &'a Arc<RangeDeletes>| deletes.newest_around(key, view.snapshot);
    deletes.iter().filter_map(around).max_by_key(|hidden| hidden.newest)
}

/// What a version that the view may see makes of its key, if no newer one does.
#[inline]
fn decide(
    merge: &MergeCursor<RangeSource>,
    view: &View,
    deletes: &[Arc<RangeDeletes>],
    source: &dyn CursorSource,
    keys_only: bool,
) -> Result<Decision> {
    // What it is of almost all.
    if deletes.is_empty() && merge.kind() == Kind::Put && !view.is_cleared(merge.seqno()) {
        return Ok(Decision::Plain);
    }
    look_closer(merge, view, deletes, source, keys_only)
}

#[inline(never)]
fn look_closer(
    merge: &MergeCursor<RangeSource>,
    view: &View,
    deletes: &[Arc<RangeDeletes>],
    source: &dyn CursorSource,
    keys_only: bool,
) -> Result<Decision> {
    if is_deleted(deletes, merge.key(), merge.seqno(), view) {
        return Ok(Decision::Deleted);
    }
    if view.is_cleared(merge.seqno()) {
        return Ok(Decision::Absent);
    }
    let value = match merge.kind() {
        Kind::Put => return Ok(Decision::Plain),
        // Nobody looks at its value.
        Kind::PutAway if keys_only => return Ok(Decision::Plain),
        Kind::Delete | Kind::DeleteRange => None,
        Kind::PutUntil => {
            let (expiry, value) = without_expiry(Kind::PutUntil, merge.value());
            (expiry > view.now_ms).then_some(Folded { value, expiry })
        }
        kind @ (Kind::PutAway | Kind::PutAwayUntil) => {
            let (expiry, reference) = without_expiry(kind, merge.value());
            let value = match expiry > view.now_ms {
                false => None,
                true if keys_only => Some(Bytes::new()),
                true => Some(source.fetch(&reference)?),
            };
            value.map(|value| Folded { value, expiry })
        }
        Kind::Merge | Kind::MergeUntil => source.fold(merge.key(), view)?,
    };
    Ok(value.map_or(Decision::Absent, Decision::With))
}

impl At {
    fn given(deletes: &[Arc<RangeDeletes>]) -> At {
        if deletes.is_empty() { At::Given } else { At::Among }
    }
}

/// Where an end's merge is.
#[derive(Clone, Copy, Default)]
enum At {
    /// At what is to be looked at next.
    #[default]
    Ahead,
    /// At what was given last.
    Given,
    /// The same where range tombstones may hide what comes.
    Among,
    /// At what was given last, with another value than the entry's.
    Made,
    /// At what was given last, which was sought among several versions of its key.
    Sought,
}

#[derive(Clone, Copy, Default)]
enum Limit {
    #[default]
    None,
    /// This end goes on at its `key`.
    At,
    /// It goes on behind that.
    Past,
}

impl End {
    fn starting_at(key: &[u8]) -> Self {
        End { limit: Limit::At, key: key.to_vec(), ..End::default() }
    }

    /// Brings limit and key up to date. Before the merge moves, and before the other end looks.
    #[inline]
    fn note(&mut self) {
        if self.lags {
            self.lags = false;
            self.limit = Limit::Past;
            self.key.clear();
            self.key.extend_from_slice(self.merge.as_ref().map_or(&[], |merge| merge.key()));
        }
    }

    /// What the merge is at.
    #[inline]
    fn lend(&self, keys_only: bool) -> (&[u8], &[u8]) {
        let Some(merge) = &self.merge else { return (&[], &[]) };
        let (key, value) = merge.lend();
        (key, if keys_only { &[] } else { value })
    }

    /// The same, to keep.
    #[inline]
    fn share(&self, keys_only: bool) -> (Key, Value) {
        let Some(merge) = &self.merge else { return <(Key, Value)>::default() };
        let value = if keys_only { Bytes::new() } else { merge.value() };
        (Key(merge.key_bytes()), Value(value))
    }

    /// What was given after a step that was no stride: the value may be another than the merge's.
    fn lend_given(&self, keys_only: bool) -> (&[u8], &[u8]) {
        match (&self.value, &self.merge) {
            (Some(folded), Some(merge)) if !keys_only => (merge.key(), &folded.value),
            _ => self.lend(keys_only),
        }
    }

    /// The same, to keep.
    fn share_given(&self, keys_only: bool) -> (Key, Value) {
        match (&self.value, &self.merge) {
            (Some(folded), Some(merge)) if !keys_only => {
                (Key(merge.key_bytes()), Value(folded.value.clone()))
            }
            _ => self.share(keys_only),
        }
    }

    /// Whether a key comes after this limit of the front.
    #[inline]
    fn is_before(&self, key: &[u8]) -> bool {
        match self.limit {
            Limit::None => true,
            Limit::At => *key >= self.key[..],
            Limit::Past => *key > self.key[..],
        }
    }

    /// Whether a key comes before this limit of the back.
    #[inline]
    fn is_behind(&self, key: &[u8]) -> bool {
        match self.limit {
            Limit::None => true,
            Limit::At => *key <= self.key[..],
            Limit::Past => *key < self.key[..],
        }
    }
}

impl std::fmt::Debug for RangeIter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Bounds { lower, upper } = &*self.bounds;
        f.debug_struct("RangeIter").field("lower", lower).field("upper", upper).finish()
    }
}

fn as_slice(bound: &Bound<Bytes>) -> Bound<&[u8]> {
    bound.as_ref().map(|key| &key[..])
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
        deletes: Vec<Arc<RangeDeletes>>,
        (lower, upper): (Bound<Bytes>, Bound<Bytes>),
        keys_only: bool,
    ) -> Self {
        let bounds = Arc::new(Bounds { lower, upper });
        let (front, back) = (End::default(), End::default());
        RangeIter { source, view, deletes, keys_only, bounds, front, back, done: false }
    }

    /// Puts the front at the first key of the range that is at or after `key`: the next `next()`
    /// gives that one. Works in both directions and after the end or an error; the back stays.
    /// Costs one index search and at most one block read for each sorted run.
    pub fn seek(&mut self, key: impl AsRef<[u8]>) {
        self.front = End::starting_at(key.as_ref());
        self.done = false;
    }

    /// Puts the back at the last key of the range that is at or before `key`: the next
    /// `next_back()` gives that one. The mirror image of [`seek`](Self::seek).
    pub fn seek_back(&mut self, key: impl AsRef<[u8]>) {
        self.back = End::starting_at(key.as_ref());
        self.done = false;
    }

    /// The next key and value from the front, lent until the next step; otherwise as `next()`. Costs
    /// no allocation and no reference count for each entry, and never waits for a lock.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let db = ashlardb::Db::open(dir.path().join("db"))?;
    /// db.put("a", "1")?;
    /// db.put("b", "22")?;
    /// let mut bytes = 0;
    /// let mut entries = db.get_range("a".."c");
    /// while let Some(entry) = entries.next_entry() {
    ///     let (key, value) = entry?;
    ///     bytes += key.len() + value.len();
    /// }
    /// assert_eq!(bytes, 5);
    /// # Ok(())
    /// # }
    /// ```
    pub fn next_entry(&mut self) -> Option<Result<(&[u8], &[u8])>> {
        if self.stride_front() {
            return Some(Ok(self.front.lend(self.keys_only)));
        }
        match self.step_front()? {
            Ok(()) => Some(Ok(self.front.lend_given(self.keys_only))),
            Err(error) => Some(Err(error)),
        }
    }

    /// The next key and value from the back, lent until the next step; otherwise as `next_back()`.
    pub fn next_entry_back(&mut self) -> Option<Result<(&[u8], &[u8])>> {
        if self.stride_back() {
            return Some(Ok(self.back.lend(self.keys_only)));
        }
        match self.step_back()? {
            Ok(()) => Some(Ok(self.back.lend_given(self.keys_only))),
            Err(error) => Some(Err(error)),
        }
    }

    /// When the entry that was last given from the front expires, in milliseconds since the Unix epoch;
    /// `None`: never. Of a value that was merged from parts, when the last of these does.
    #[must_use]
    pub fn expires_ms(&self) -> Option<u64> {
        let given = self.front.value.as_ref().map(|folded| folded.expiry);
        given.filter(|expiry| *expiry != u64::MAX)
    }

    fn advance_front(&mut self) -> Result<bool> {
        let RangeIter { source, view, deletes, keys_only, bounds, front, back, .. } = self;
        front.note();
        front.value = None;
        let merge = match &mut front.merge {
            // Only now, so that an entry is given even if what follows it cannot be read.
            Some(merge) => {
                if let At::Given | At::Among | At::Made = front.at {
                    if bounds.end_at(&front.key) {
                        return Ok(false);
                    }
                    merge.pass(&front.key)?;
                }
                merge
            }
            none => {
                let mut merge = MergeCursor::new(source.cursors(bounds)?);
                let limit = match front.limit {
                    Limit::None => Bound::Unbounded,
                    Limit::At => Bound::Included(&front.key[..]),
                    Limit::Past => Bound::Excluded(&front.key[..]),
                };
                merge.seek(match (limit, as_slice(&bounds.lower)) {
                    (Bound::Included(at), _) if bounds.above(at) => Seek::AtOrAfter(at),
                    (Bound::Excluded(at), _) if bounds.above(at) => Seek::After(at),
                    (_, Bound::Included(at)) => Seek::AtOrAfter(at),
                    (_, Bound::Excluded(at)) => Seek::After(at),
                    (_, Bound::Unbounded) => Seek::First,
                })?;
                none.insert(merge)
            }
        };
        front.at = At::Ahead;
        let (mut hidden, mut deleted) = (0, 0);
        while merge.valid() && bounds.below(merge.key()) && back.is_behind(merge.key()) {
            if merge.seqno() > view.snapshot {
                hidden += 1;
                if hidden <= STEPS_BEFORE_SEEK {
                    merge.next()?;
                } else {
                    let key = merge.key().to_vec();
                    merge.pass_newer(&key, view.snapshot)?;
                    hidden = 0;
                }
                continue;
            }
            // The newest version that this view may see decides about the key. Where the order of a
            // source is wrong, a search for what lies behind one may lead back, for ever.
            if matches!(front.limit, Limit::Past) && *merge.key() <= front.key[..] {
                return Err(source.out_of_order());
            }
            match decide(merge, view, deletes, &**source, *keys_only)? {
                Decision::Absent => {}
                Decision::Deleted => deleted += 1,
                Decision::Plain => {
                    (front.at, front.lags) = (At::given(deletes), true);
                    return Ok(true);
                }
                Decision::With(value) => {
                    (front.at, front.lags, front.value) = (At::Made, true, Some(value));
                    return Ok(true);
                }
            }
            front.key.clear();
            front.key.extend_from_slice(merge.key());
            front.limit = Limit::Past;
            merge.pass(&front.key)?;
            if deleted > STEPS_BEFORE_SEEK {
                deleted = 0;
                if let Some(hidden) = hidden_around(deletes, &front.key, view) {
                    merge.pass_hidden(&hidden)?;
                }
            }
        }
        Ok(false)
    }

    fn advance_back(&mut self) -> Result<bool> {
        let RangeIter { source, view, deletes, keys_only, bounds, front, back, .. } = self;
        back.note();
        back.value = None;
        let merge = match &mut back.merge {
            Some(merge) => {
                match back.at {
                    At::Ahead => {}
                    _ if bounds.begin_at(&back.key) => return Ok(false),
                    At::Given | At::Among | At::Made => merge.prev()?,
                    At::Sought => merge.pass_back(&back.key)?,
                }
                merge
            }
            none => {
                let mut merge = MergeCursor::new(source.cursors(bounds)?);
                let limit = match back.limit {
                    Limit::None => Bound::Unbounded,
                    Limit::At => Bound::Included(&back.key[..]),
                    Limit::Past => Bound::Excluded(&back.key[..]),
                };
                merge.seek(match (limit, as_slice(&bounds.upper)) {
                    (Bound::Included(at), _) if bounds.below(at) => Seek::AtOrBefore(at),
                    (Bound::Excluded(at), _) if bounds.below(at) => Seek::Before(at),
                    (_, Bound::Included(at)) => Seek::AtOrBefore(at),
                    (_, Bound::Excluded(at)) => Seek::Before(at),
                    (_, Bound::Unbounded) => Seek::Last,
                })?;
                none.insert(merge)
            }
        };
        back.at = At::Ahead;
        let mut deleted = 0;
        while merge.valid() && bounds.above(merge.key()) && front.is_before(merge.key()) {
            // The cursor is at the oldest version of a key; the newest visible one decides.
            let is_only = merge.is_only_version();
            let is_visible = if is_only {
                merge.seqno() <= view.snapshot
            } else {
                let key = merge.key().to_vec();
                let is_visible = merge.newest_visible(&key, view.snapshot)?;
                if !is_visible {
                    merge.pass_back(&key)?;
                    if merge.valid() && *merge.key() >= key[..] {
                        return Err(source.out_of_order());
                    }
                    continue;
                }
                is_visible
            };
            if matches!(back.limit, Limit::Past) && *merge.key() >= back.key[..] {
                return Err(source.out_of_order());
            }
            let decision = if is_visible {
                decide(merge, view, deletes, &**source, *keys_only)?
            } else {
                Decision::Absent
            };
            let given = match decision {
                Decision::Plain => Some(At::given(deletes)),
                Decision::With(value) => {
                    back.value = Some(value);
                    Some(At::Made)
                }
                Decision::Deleted => {
                    deleted += 1;
                    None
                }
                Decision::Absent => None,
            };
            if let Some(at) = given {
                (back.at, back.lags) = (if is_only { at } else { At::Sought }, true);
                return Ok(true);
            }
            back.key.clear();
            back.key.extend_from_slice(merge.key());
            back.limit = Limit::Past;
            if is_only {
                merge.prev()?;
            } else {
                merge.pass_back(&back.key)?;
            }
            if deleted > STEPS_BEFORE_SEEK {
                deleted = 0;
                if let Some(hidden) = hidden_around(deletes, &back.key, view) {
                    merge.pass_hidden(&hidden)?;
                }
            }
        }
        Ok(false)
    }

    /// Takes the usual step from the front, see [`MergeCursor::stride`]. If it is not that, says `false`,
    /// and [`step_front`](Self::step_front) goes on from where the front was.
    #[inline]
    fn stride_front(&mut self) -> bool {
        let RangeIter { view, bounds, front, back, done, .. } = self;
        let (At::Given, Some(merge), false) = (front.at, &mut front.merge, *done) else {
            return matches!(front.at, At::Among) && self.stride_among(true);
        };
        back.note();
        let wants = |entry: Shown<'_>| {
            view.shows(&entry) && bounds.below(entry.key) && back.is_behind(entry.key)
        };
        let strode = merge.stride(true, wants);
        front.lags |= strode;
        strode
    }

    /// The same from the back.
    #[inline]
    fn stride_back(&mut self) -> bool {
        let RangeIter { view, bounds, front, back, done, .. } = self;
        let (At::Given, Some(merge), false) = (back.at, &mut back.merge, *done) else {
            return matches!(back.at, At::Among) && self.stride_among(false);
        };
        front.note();
        let wants = |entry: Shown<'_>| {
            view.shows(&entry) && bounds.above(entry.key) && front.is_before(entry.key)
        };
        let strode = merge.stride(false, wants);
        back.lags |= strode;
        strode
    }

    /// The same from either end where range tombstones may hide what comes. Apart, because most
    /// databases have none.
    #[cold]
    fn stride_among(&mut self, is_front: bool) -> bool {
        let RangeIter { view, deletes, bounds, front, back, done, .. } = self;
        let (end, other) = if is_front { (front, back) } else { (back, front) };
        let (At::Among, Some(merge), false) = (end.at, &mut end.merge, *done) else {
            return false;
        };
        other.note();
        let strode = merge.stride(is_front, |entry| {
            let is_within = if is_front {
                bounds.below(entry.key) && other.is_behind(entry.key)
            } else {
                bounds.above(entry.key) && other.is_before(entry.key)
            };
            view.shows(&entry) && is_within && !is_deleted(deletes, entry.key, entry.seqno, view)
        });
        end.lags |= strode;
        strode
    }

    fn step_front(&mut self) -> Option<Result<()>> {
        if self.done {
            return None;
        }
        self.back.note();
        let step = self.advance_front();
        if step.is_err() {
            // It is at no entry, which must not pass for the end.
            self.front.merge = None;
        }
        self.item(step)
    }

    fn step_back(&mut self) -> Option<Result<()>> {
        if self.done {
            return None;
        }
        self.front.note();
        let step = self.advance_back();
        if step.is_err() {
            self.back.merge = None;
        }
        self.item(step)
    }

    /// Turns the outcome of a step into an item, and fuses.
    #[inline]
    fn item(&mut self, step: Result<bool>) -> Option<Result<()>> {
        match step {
            Ok(true) => Some(Ok(())),
            Ok(false) => {
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

impl Iterator for RangeIter {
    type Item = Result<(Key, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.stride_front() {
            return Some(Ok(self.front.share(self.keys_only)));
        }
        let step = self.step_front()?;
        Some(step.map(|()| self.front.share_given(self.keys_only)))
    }
}

impl DoubleEndedIterator for RangeIter {
    fn next_back(&mut self) -> Option<Self::Item> {
        if self.stride_back() {
            return Some(Ok(self.back.share(self.keys_only)));
        }
        let step = self.step_back()?;
        Some(step.map(|()| self.back.share_given(self.keys_only)))
    }
}

impl std::iter::FusedIterator for RangeIter {}
