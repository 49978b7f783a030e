//! The interface that every ordered source of entries offers: memtables, segments, merges of them.
//!
//! Entries are ordered by key, rising, and for one key by sequence number, falling (newest first).
//! A cursor is at one entry or at none ("not valid"). After an error it is not valid until the next
//! `seek`. Owned and `Send`, used by one thread at a time. Implemented by the memtable, segment,
//! version and iterator rooms.

use crate::error::Result;
use crate::types::{Kind, SeqNo};
use bytes::Bytes;
use std::ops::Bound;

/// Where a range of keys begins and ends.
#[derive(Debug)]
pub(crate) struct Bounds {
    pub(crate) lower: Bound<Bytes>,
    pub(crate) upper: Bound<Bytes>,
}

impl Bounds {
    /// Whether `key` is at or past the start.
    #[inline]
    pub(crate) fn above(&self, key: &[u8]) -> bool {
        match &self.lower {
            Bound::Included(bound) => key >= &bound[..],
            Bound::Excluded(bound) => key > &bound[..],
            Bound::Unbounded => true,
        }
    }

    /// Whether `key` is at or before the end.
    #[inline]
    pub(crate) fn below(&self, key: &[u8]) -> bool {
        match &self.upper {
            Bound::Included(bound) => key <= &bound[..],
            Bound::Excluded(bound) => key < &bound[..],
            Bound::Unbounded => true,
        }
    }

    /// Whether `key` is the first that there may be.
    #[inline]
    pub(crate) fn begin_at(&self, key: &[u8]) -> bool {
        matches!(&self.lower, Bound::Included(bound) if key == &bound[..])
    }

    /// Whether `key` is the last that there may be.
    #[inline]
    pub(crate) fn end_at(&self, key: &[u8]) -> bool {
        matches!(&self.upper, Bound::Included(bound) if key == &bound[..])
    }
}

/// Where to go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seek<'a> {
    /// The first entry of all.
    First,
    /// The first entry whose key is at or after this: the newest version of that key.
    AtOrAfter(&'a [u8]),
    /// The first entry whose key is after this.
    After(&'a [u8]),
    /// The last entry of all: the oldest version of the last key.
    Last,
    /// The last entry whose key is at or before this: the oldest version of that key.
    AtOrBefore(&'a [u8]),
    /// The last entry whose key is before this.
    Before(&'a [u8]),
}

/// The first sixteen bytes of a key, big-endian, padded with zeros: unequal ones order as the keys do.
#[inline]
pub(crate) fn front(key: &[u8]) -> u128 {
    if let Some(first) = key.first_chunk::<16>() {
        return u128::from_be_bytes(*first);
    }
    if let (Some(first), Some(last)) = (key.first_chunk::<8>(), key.last_chunk::<8>()) {
        // The last eight bytes overlap the first; what is not new is shifted out.
        let new = 8 * (key.len() as u32 - 8);
        let low = u64::from_be_bytes(*last).unbounded_shl(64 - new);
        return u128::from(u64::from_be_bytes(*first)) << 64 | u128::from(low);
    }
    key.iter().zip(0..8).fold(0, |n, (byte, i)| n | u128::from(*byte) << (120 - 8 * i))
}

/// An entry without its value, lent.
#[derive(Clone, Copy)]
pub(crate) struct Shown<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) seqno: SeqNo,
    pub(crate) kind: Kind,
}

/// A range of keys that a range tombstone covers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hidden<'a> {
    /// The tombstone's number.
    pub(crate) newest: SeqNo,
    pub(crate) start: &'a [u8],
    /// Exclusive; an empty one is none.
    pub(crate) end: &'a [u8],
}

impl Hidden<'_> {
    /// Whether it covers a key.
    pub(crate) fn covers(&self, key: &[u8]) -> bool {
        *self.start <= *key && self.ends_behind(key)
    }

    /// Whether a key comes before its end.
    pub(crate) fn ends_behind(&self, key: &[u8]) -> bool {
        self.end.is_empty() || *key < *self.end
    }
}

/// A position in an ordered sequence of entries.
pub(crate) trait Cursor: Send {
    /// Begins a `seek` there: finds out what memory it will need and asks for that, so that the
    /// waiting times of several cursors overlap. Then [`meet`](Self::meet), twice, then `seek`, which must
    /// be to the same place. Optional, and by default nothing.
    fn aim(&mut self, _to: Seek<'_>) -> Result<()> {
        Ok(())
    }
    /// See [`aim`](Self::aim).
    fn meet(&mut self) {}
    /// Goes there, from wherever it is; to none if there is no such entry.
    fn seek(&mut self, to: Seek<'_>) -> Result<()>;
    /// Goes to the following entry, or to none. Does nothing when not valid.
    fn next(&mut self) -> Result<()>;
    /// Goes to the preceding entry, or to none. Does nothing when not valid.
    fn prev(&mut self) -> Result<()>;
    /// Goes to the next key's newest version (backward: to the key before, if that has one version
    /// here), where that needs no reading: it neither fails nor waits. Gives what it is at then. Else it
    /// stays, and gives nothing; by default always.
    fn stride(&mut self, _forward: bool) -> Option<Shown<'_>> {
        None
    }
    /// Takes back a stride, if nothing was done since.
    fn unstride(&mut self, _forward: bool) {}
    /// Whether it is at an entry. The methods below may be called only then; otherwise they give
    /// empty or arbitrary values, but never panic.
    fn valid(&self) -> bool;
    /// The entry's key.
    fn key(&self) -> &[u8];
    /// The entry's sequence number.
    fn seqno(&self) -> SeqNo;
    /// What the entry says.
    fn kind(&self) -> Kind;
    /// The key, sharing the source's memory.
    fn key_bytes(&self) -> Bytes;
    /// The value, sharing the source's memory. Empty for a tombstone.
    fn value(&self) -> Bytes;
    /// The value, for as long as the cursor stays. Empty for a tombstone.
    fn value_ref(&self) -> &[u8];
    /// Key, sequence number and kind at once.
    fn shown(&self) -> Shown<'_> {
        Shown { key: self.key(), seqno: self.seqno(), kind: self.kind() }
    }
    /// Key and value at once.
    fn lend(&self) -> (&[u8], &[u8]) {
        (self.key(), self.value_ref())
    }
    /// Whether the entry is the newest version of its key here. `false` also if that is not known.
    fn is_newest(&self) -> bool {
        false
    }
    /// From a key of a range that a tombstone covers, goes on past what the tombstone hides for certain,
    /// where that can be skipped: forward or backward. By default nothing can.
    fn pass_hidden(&mut self, _hidden: &Hidden<'_>, _forward: bool) -> Result<()> {
        Ok(())
    }
    /// From a version of `key`, goes to the first one at or before `snapshot`, or to what follows
    /// the key if there is none.
    fn skip_newer(&mut self, key: &[u8], snapshot: SeqNo) -> Result<()> {
        while self.valid() && self.seqno() > snapshot && self.key() == key {
            self.next()?;
        }
        Ok(())
    }
}

impl<C: Cursor + ?Sized> Cursor for Box<C> {
    fn aim(&mut self, to: Seek<'_>) -> Result<()> {
        (**self).aim(to)
    }

    fn meet(&mut self) {
        (**self).meet()
    }

    fn seek(&mut self, to: Seek<'_>) -> Result<()> {
        (**self).seek(to)
    }

    fn next(&mut self) -> Result<()> {
        (**self).next()
    }

    fn prev(&mut self) -> Result<()> {
        (**self).prev()
    }

    fn stride(&mut self, forward: bool) -> Option<Shown<'_>> {
        (**self).stride(forward)
    }

    fn unstride(&mut self, forward: bool) {
        (**self).unstride(forward)
    }

    fn valid(&self) -> bool {
        (**self).valid()
    }

    fn key(&self) -> &[u8] {
        (**self).key()
    }

    fn seqno(&self) -> SeqNo {
        (**self).seqno()
    }

    fn kind(&self) -> Kind {
        (**self).kind()
    }

    fn key_bytes(&self) -> Bytes {
        (**self).key_bytes()
    }

    fn value(&self) -> Bytes {
        (**self).value()
    }

    fn value_ref(&self) -> &[u8] {
        (**self).value_ref()
    }

    fn shown(&self) -> Shown<'_> {
        (**self).shown()
    }

    fn lend(&self) -> (&[u8], &[u8]) {
        (**self).lend()
    }

    fn is_newest(&self) -> bool {
        (**self).is_newest()
    }

    fn pass_hidden(&mut self, hidden: &Hidden<'_>, forward: bool) -> Result<()> {
        (**self).pass_hidden(hidden, forward)
    }

    fn skip_newer(&mut self, key: &[u8], snapshot: SeqNo) -> Result<()> {
        (**self).skip_newer(key, snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::front;

    #[test]
    fn the_front_of_a_key_is_its_first_bytes_and_zeros() {
        let long: Vec<u8> = (0..40u8).map(|i| i.wrapping_mul(89).wrapping_add(200)).collect();
        for len in 0..=20 {
            for start in 0..20 {
                let key = &long[start..start + len];
                let mut padded = [0; 16];
                let shown = len.min(16);
                padded[..shown].copy_from_slice(&key[..shown]);
                assert_eq!(front(key), u128::from_be_bytes(padded), "{key:?}");
            }
        }
    }
}
