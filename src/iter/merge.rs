//! Several cursors as one, in order.
//!
//! There are few sources (memtables and sorted runs, usually under ten): they stand in order in a flat
//! list, with sixteen bytes of each one's key. A source that stays ahead of the second is followed
//! without looking at the others; one that falls behind moves down the list.
//!
//! Besides the steps of a cursor there are steps over whole keys, for ranges: they move only the
//! sources that hold the key, and search instead of stepping where it has many versions.

use crate::cursor::{Cursor, Hidden, Seek, Shown, front};
use crate::error::Result;
use crate::types::{Kind, SeqNo};
use bytes::Bytes;
use std::cmp::Ordering;

/// After this many versions of one key in a row, a source seeks past the rest instead of stepping.
const STEPS_BEFORE_SEEK: u32 = 4;

/// A cursor over the union of its sources.
pub(crate) struct MergeCursor<C = Box<dyn Cursor>> {
    sources: Vec<C>,
    /// The sources that are at an entry, in the direction of travel.
    order: Vec<Head>,
    /// The source that is at the entry shown, if any: the first in order, but where a method says
    /// otherwise.
    current: Option<usize>,
    forward: bool,
}

/// A source in the order.
#[derive(Clone, Copy)]
struct Head {
    /// The first sixteen bytes of its key.
    prefix: u128,
    source: usize,
}

#[inline]
fn is_at(cursor: &impl Cursor, key: &[u8]) -> bool {
    cursor.valid() && cursor.key() == key
}

/// From a version of a key, forward to the next key.
fn pass(cursor: &mut impl Cursor, key: &[u8]) -> Result<()> {
    let mut steps = 0;
    loop {
        // Once, or in a segment whose order is wrong this might never end.
        if steps == STEPS_BEFORE_SEEK {
            cursor.seek(Seek::After(key))?;
        } else {
            cursor.next()?;
        }
        steps += 1;
        if !is_at(cursor, key) {
            return Ok(());
        }
    }
}

/// From a version of a key, backward to the key before.
fn pass_back(cursor: &mut impl Cursor, key: &[u8]) -> Result<()> {
    if cursor.is_newest() {
        cursor.prev()?;
    }
    if cursor.valid() && cursor.key() >= key {
        cursor.seek(Seek::Before(key))?;
    }
    Ok(())
}

/// From the oldest version of a key to its newest one at or before a snapshot, if there is one.
fn newest_visible(cursor: &mut impl Cursor, key: &[u8], snapshot: SeqNo) -> Result<bool> {
    if cursor.seqno() > snapshot {
        return Ok(false);
    }
    for _ in 0..STEPS_BEFORE_SEEK {
        if cursor.is_newest() {
            return Ok(true);
        }
        cursor.prev()?;
        if !is_at(cursor, key) || cursor.seqno() > snapshot {
            break;
        }
    }
    cursor.seek(Seek::AtOrAfter(key))?;
    cursor.skip_newer(key, snapshot)?;
    Ok(is_at(cursor, key))
}

impl<C: Cursor> MergeCursor<C> {
    /// A cursor over these sources, at no entry yet. No two of them may hold the same key with the
    /// same sequence number.
    pub(crate) fn new(sources: Vec<C>) -> Self {
        let order = Vec::with_capacity(sources.len());
        MergeCursor { sources, order, current: None, forward: true }
    }

    /// Which source is at the entry shown, if any: its place in what `new` was given. Of sources
    /// that hold the same version of a key, the first is shown first, going forward.
    pub(crate) fn source(&self) -> Option<usize> {
        self.current
    }

    /// Whether `a` comes before `b` in the direction of travel.
    #[inline]
    fn ahead(&self, a: Head, b: Head) -> bool {
        if a.prefix == b.prefix {
            self.ahead_of_tie(a.source, b.source)
        } else {
            (a.prefix < b.prefix) == self.forward
        }
    }

    fn ahead_of_tie(&self, a: usize, b: usize) -> bool {
        let (one, other) = (&self.sources[a], &self.sources[b]);
        let order = one.key().cmp(other.key()).then_with(|| other.seqno().cmp(&one.seqno()));
        match order {
            Ordering::Equal => a < b,
            Ordering::Less => self.forward,
            Ordering::Greater => !self.forward,
        }
    }

    fn head(&self, source: usize) -> Head {
        Head { prefix: front(self.sources[source].key()), source }
    }

    /// Puts all sources in order.
    fn select(&mut self) {
        self.order.clear();
        for source in 0..self.sources.len() {
            if self.sources[source].valid() {
                let head = self.head(source);
                let at = self.order.iter().rposition(|before| self.ahead(*before, head));
                self.order.insert(at.map_or(0, |at| at + 1), head);
            }
        }
        self.show_first();
    }

    #[inline]
    fn show_first(&mut self) {
        self.current = self.order.first().map(|head| head.source);
    }

    /// After the first source in order has moved on in the direction of travel.
    #[inline]
    fn select_after(&mut self, moved: usize) {
        debug_assert!(self.order.first().is_some_and(|head| head.source == moved));
        if self.sources[moved].valid() {
            self.reorder(self.head(moved));
        } else {
            self.order.remove(0);
        }
        self.show_first();
    }

    /// Puts the first in order, which is this now, where it belongs.
    #[inline]
    fn reorder(&mut self, head: Head) {
        let mut at = 0;
        while let Some(next) = self.order.get(at + 1).copied()
            && !self.ahead(head, next)
        {
            self.order[at] = next;
            at += 1;
        }
        self.order[at] = head;
    }

    /// From the entry shown to the one that follows in the direction of travel, where that is the
    /// usual step: within what its source has at hand, from a key to another of which (going backward)
    /// there is one version. Only if `wants` takes what is there; else it stays, and says `false`.
    #[inline]
    pub(crate) fn stride(&mut self, forward: bool, wants: impl FnOnce(Shown<'_>) -> bool) -> bool {
        let Some(head) = self.order.first().copied() else { return false };
        if self.current != Some(head.source) || self.forward != forward {
            return false;
        }
        let second = self.order.get(1).copied();
        // Perhaps the same key.
        if second.is_some_and(|second| second.prefix == head.prefix) {
            return false;
        }
        let source = &mut self.sources[head.source];
        let Some(shown) = source.stride(forward) else { return false };
        let prefix = front(shown.key);
        let Some(second) = second.filter(|s| s.prefix == prefix || (s.prefix < prefix) == forward)
        else {
            if wants(shown) {
                self.order[0].prefix = prefix;
                return true;
            }
            source.unstride(forward);
            return false;
        };
        let other = &self.sources[second.source];
        let is_usual = second.prefix != prefix
            && (forward
                || other.is_newest()
                    && self.order.get(2).is_none_or(|third| third.prefix != second.prefix));
        if is_usual && wants(other.shown()) {
            self.reorder(Head { prefix, source: head.source });
            self.show_first();
            return true;
        }
        self.sources[head.source].unstride(forward);
        false
    }

    /// Moves every source but the current one to the other side of the entry shown.
    fn turn(&mut self, current: usize) -> Result<()> {
        let key = self.sources[current].key_bytes();
        let seqno = self.sources[current].seqno();
        self.forward = !self.forward;
        let forward = self.forward;
        for (i, cursor) in self.sources.iter_mut().enumerate() {
            if i == current {
                continue;
            }
            cursor.seek(if forward { Seek::AtOrAfter(&key) } else { Seek::AtOrBefore(&key) })?;
            while cursor.valid()
                && cursor.key() == key
                && (if forward { cursor.seqno() > seqno } else { cursor.seqno() < seqno })
            {
                if forward { cursor.next()? } else { cursor.prev()? }
            }
        }
        Ok(())
    }

    #[inline]
    fn step(&mut self, forward: bool) -> Result<()> {
        let Some(current) = self.current else { return Ok(()) };
        // Whatever fails below leaves the cursor at no entry.
        self.current = None;
        let turned = self.forward != forward;
        if turned {
            self.turn(current)?;
        }
        let source = &mut self.sources[current];
        if forward {
            source.next()?
        } else {
            source.prev()?
        }
        if turned {
            self.select();
        } else {
            self.select_after(current);
        }
        Ok(())
    }

    /// On a walk forward, goes past all versions of `key`. Does nothing if another key is shown.
    #[inline]
    pub(crate) fn pass(&mut self, key: &[u8]) -> Result<()> {
        debug_assert!(self.forward, "a walk forward");
        while let Some(current) = self.current
            && is_at(&self.sources[current], key)
        {
            self.current = None;
            pass(&mut self.sources[current], key)?;
            self.select_after(current);
        }
        Ok(())
    }

    /// On a walk forward, goes to the first version of `key`, which is shown, at or before a
    /// snapshot, or past the key.
    pub(crate) fn pass_newer(&mut self, key: &[u8], snapshot: SeqNo) -> Result<()> {
        debug_assert!(self.forward, "a walk forward");
        self.current = None;
        for source in &mut self.sources {
            if is_at(source, key) && source.seqno() > snapshot {
                source.skip_newer(key, snapshot)?;
            }
        }
        self.select();
        Ok(())
    }

    /// Goes on in the direction of the walk past what a range tombstone hides, as far as the sources
    /// can skip that. They are where the walk has brought them.
    pub(crate) fn pass_hidden(&mut self, hidden: &Hidden<'_>) -> Result<()> {
        self.current = None;
        for source in &mut self.sources {
            if source.valid() && hidden.covers(source.key()) {
                source.pass_hidden(hidden, self.forward)?;
            }
        }
        self.select();
        Ok(())
    }

    /// On a walk backward: whether the entry shown is the only version of its key.
    #[inline]
    pub(crate) fn is_only_version(&self) -> bool {
        let Some(current) = self.current else { return false };
        let is_other = |(first, second): (&Head, &Head)| {
            first.prefix != second.prefix || self.sources[second.source].key() != self.key()
        };
        self.sources[current].is_newest()
            && self.order.first().zip(self.order.get(1)).is_none_or(is_other)
    }

    /// On a walk backward, from the oldest version of `key` to its newest one at or before a
    /// snapshot, if there is one. After that only [`pass_back`](Self::pass_back) goes on. No source
    /// leaves the key, so that what lies before it need not be readable.
    pub(crate) fn newest_visible(&mut self, key: &[u8], snapshot: SeqNo) -> Result<bool> {
        self.current = None;
        let mut newest: Option<(usize, SeqNo)> = None;
        for (i, source) in self.sources.iter_mut().enumerate() {
            if is_at(source, key) && newest_visible(source, key, snapshot)? {
                let seqno = source.seqno();
                if newest.is_none_or(|(_, best)| seqno > best) {
                    newest = Some((i, seqno));
                }
            }
        }
        self.current = newest.map(|(i, _)| i);
        Ok(newest.is_some())
    }

    /// Goes backward past all versions of `key`, where some sources are and the others are before.
    pub(crate) fn pass_back(&mut self, key: &[u8]) -> Result<()> {
        self.current = None;
        self.forward = false;
        for source in &mut self.sources {
            if source.valid() && source.key() >= key {
                pass_back(source, key)?;
            }
        }
        self.select();
        Ok(())
    }
}

impl<C: Cursor> Cursor for MergeCursor<C> {
    fn seek(&mut self, to: Seek<'_>) -> Result<()> {
        self.current = None;
        self.forward = matches!(to, Seek::First | Seek::AtOrAfter(_) | Seek::After(_));
        if self.sources.len() > 1 {
            // Each stage waits for memory that the stage before has asked for. The runs first: while
            // their memory comes, memtables have enough to do.
            for source in self.sources.iter_mut().rev() {
                source.aim(to)?;
            }
            for _ in 0..2 {
                for source in &mut self.sources {
                    source.meet();
                }
            }
        }
        for source in &mut self.sources {
            source.seek(to)?;
        }
        self.select();
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        self.step(true)
    }

    #[inline]
    fn prev(&mut self) -> Result<()> {
        self.step(false)
    }

    #[inline]
    fn valid(&self) -> bool {
        self.current.is_some()
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.current.map_or(&[], |i| self.sources[i].key())
    }

    #[inline]
    fn seqno(&self) -> SeqNo {
        self.current.map_or(SeqNo::ZERO, |i| self.sources[i].seqno())
    }

    #[inline]
    fn kind(&self) -> Kind {
        self.current.map_or(Kind::Delete, |i| self.sources[i].kind())
    }

    fn key_bytes(&self) -> Bytes {
        self.current.map_or_else(Bytes::new, |i| self.sources[i].key_bytes())
    }

    fn value(&self) -> Bytes {
        self.current.map_or_else(Bytes::new, |i| self.sources[i].value())
    }

    #[inline]
    fn lend(&self) -> (&[u8], &[u8]) {
        self.current.map_or((&[], &[]), |i| self.sources[i].lend())
    }

    #[inline]
    fn value_ref(&self) -> &[u8] {
        self.current.map_or(&[], |i| self.sources[i].value_ref())
    }
}
