//! Some range tombstones, cut into fragments.
//!
//! Invariants: fragments do not overlap and are not empty; each has the numbers of all tombstones of the
//! chunk that cover it, rising, at least one; where two touch, their numbers differ. A plain value. Called
//! by the collection around it, which keeps chunks so small or so flat that the numbers are few.

use super::KeySpan;
use crate::types::SeqNo;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// What a fragment takes besides its numbers, and a tombstone besides its keys and fragments, in bytes:
/// nodes of trees that are half full.
const FRAGMENT_BYTES: usize = 240;
const TOMBSTONE_BYTES: usize = 176;

/// The part of the keys between two places, as its start is the key of the map that it is in.
#[derive(Clone, Debug)]
struct Fragment {
    /// Exclusive; an empty one is none.
    end: Bytes,
    /// Of the tombstones that cover it, rising.
    seqnos: Vec<SeqNo>,
}

impl Fragment {
    fn holds(&self, key: &[u8]) -> bool {
        self.end.is_empty() || *key < self.end[..]
    }
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(super) struct Chunk {
    all: BTreeMap<SeqNo, KeySpan>,
    fragments: BTreeMap<Bytes, Fragment>,
    /// How many numbers the fragments have together.
    numbers: usize,
    /// The length of the keys of all tombstones.
    key_bytes: usize,
    /// Merging it with the chunk behind it would give too many numbers.
    pub(super) is_sealed: bool,
}

/// The newest of rising numbers that is not after a snapshot.
fn newest_of(seqnos: &[SeqNo], snapshot: SeqNo) -> Option<SeqNo> {
    seqnos.get(..seqnos.partition_point(|seqno| *seqno <= snapshot))?.last().copied()
}

impl Chunk {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// The greatest number; zero if it is empty.
    pub(super) fn largest(&self) -> SeqNo {
        self.all.last_key_value().map_or(SeqNo::ZERO, |(seqno, _)| *seqno)
    }

    /// The least number; zero if it is empty.
    #[cfg(test)]
    pub(super) fn smallest(&self) -> SeqNo {
        self.all.first_key_value().map_or(SeqNo::ZERO, |(seqno, _)| *seqno)
    }

    pub(super) fn contains(&self, seqno: SeqNo) -> bool {
        self.all.contains_key(&seqno)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SeqNo, &KeySpan)> {
        self.all.iter().map(|(seqno, span)| (*seqno, span))
    }

    pub(super) fn numbers(&self) -> usize {
        self.numbers
    }

    /// The memory that it takes, in bytes: an estimate that rather exceeds.
    pub(super) fn bytes(&self) -> usize {
        // A vector has up to twice the room that it needs.
        let numbers = 2 * size_of::<SeqNo>() * self.numbers;
        let fragments = FRAGMENT_BYTES * self.fragments.len();
        TOMBSTONE_BYTES * self.all.len() + fragments + numbers + self.key_bytes
    }

    /// Adds one of which it does not have the number.
    pub(super) fn add(&mut self, seqno: SeqNo, span: KeySpan) {
        self.cut(&span.start);
        self.cut(&span.end);
        // Up to where it is covered already; `None`: to the end of all keys.
        let mut from = Some(span.start.clone());
        let mut gaps = Vec::new();
        for (start, fragment) in self.fragments.range_mut::<[u8], _>(span.as_bounds()) {
            if let Some(from) = from.filter(|from| from < start) {
                gaps.push((from, start.clone()));
            }
            let at = fragment.seqnos.partition_point(|known| *known < seqno);
            fragment.seqnos.insert(at, seqno);
            self.numbers += 1;
            from = Some(fragment.end.clone()).filter(|end| !end.is_empty());
        }
        if let Some(from) = from.filter(|from| span.end.is_empty() || *from < span.end) {
            gaps.push((from, span.end.clone()));
        }
        self.numbers += gaps.len();
        for (start, end) in gaps {
            self.fragments.insert(start, Fragment { end, seqnos: vec![seqno] });
        }
        self.key_bytes += span.start.len() + span.end.len();
        self.all.insert(seqno, span);
    }

    /// The last fragment that starts before a place.
    fn before(&mut self, at: &Bytes) -> Option<(&Bytes, &mut Fragment)> {
        let before = (Bound::Unbounded, Bound::Excluded(at));
        self.fragments.range_mut::<Bytes, _>(before).next_back()
    }

    /// Sees to it that no fragment lies on both sides of a place.
    fn cut(&mut self, at: &Bytes) {
        let Some((_, fragment)) = self.before(at).filter(|(_, f)| f.holds(at)) else { return };
        let behind = fragment.clone();
        fragment.end = at.clone();
        self.numbers += behind.seqnos.len();
        self.fragments.insert(at.clone(), behind);
    }

    /// Makes one of two fragments that touch at a place and have the same numbers.
    fn join(&mut self, at: &Bytes) {
        let Some(behind) = self.fragments.get(at) else { return };
        let (end, seqnos) = (behind.end.clone(), behind.seqnos.clone());
        let joined = self.before(at).filter(|(_, f)| f.end == *at && f.seqnos == seqnos);
        let Some((_, fragment)) = joined else { return };
        fragment.end = end;
        self.numbers -= seqnos.len();
        self.fragments.remove(at);
    }

    /// Takes one away. `false` if there is none of this number.
    pub(super) fn remove(&mut self, seqno: SeqNo) -> bool {
        let Some(span) = self.all.remove(&seqno) else { return false };
        self.key_bytes -= span.start.len() + span.end.len();
        let mut places = Vec::new();
        for (start, fragment) in self.fragments.range_mut::<[u8], _>(span.as_bounds()) {
            fragment.seqnos.retain(|known| *known != seqno);
            self.numbers -= 1;
            places.push(start.clone());
        }
        for start in &places {
            if self.fragments.get(start).is_some_and(|fragment| fragment.seqnos.is_empty()) {
                self.fragments.remove(start);
            }
        }
        // Only at its ends: what differed within by others still does.
        for place in [&span.start, &span.end] {
            self.join(place);
        }
        true
    }

    /// The fragment that a key is in, and where it starts.
    fn at(&self, key: &[u8]) -> Option<(&Bytes, &Fragment)> {
        let up_to = (Bound::Unbounded, Bound::Included(key));
        let last = self.fragments.range::<[u8], _>(up_to).next_back();
        last.filter(|(_, fragment)| fragment.holds(key))
    }

    pub(super) fn covers(&self, key: &[u8]) -> bool {
        self.at(key).is_some()
    }

    /// The newest that covers a key and is not after a snapshot, and from where up to where it is that,
    /// as far as is known here.
    pub(super) fn newest(&self, key: &[u8], snapshot: SeqNo) -> Option<(SeqNo, &Bytes, &Bytes)> {
        let (start, fragment) = self.at(key)?;
        Some((newest_of(&fragment.seqnos, snapshot)?, start, &fragment.end))
    }

    /// The numbers of the tombstones that cover some key between the two, both inclusive: some of them
    /// several times.
    pub(super) fn within(&self, first: &[u8], last: &[u8]) -> impl Iterator<Item = SeqNo> {
        let behind = (first < last).then_some((Bound::Excluded(first), Bound::Included(last)));
        let behind = behind.map(|bounds| self.fragments.range::<[u8], _>(bounds));
        let all = self.at(first).into_iter().chain(behind.into_iter().flatten());
        all.flat_map(|(_, fragment)| fragment.seqnos.iter().copied())
    }

    /// Checks the invariants.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut before: Option<&Fragment> = None;
        let ends_before =
            |end: &Bytes, other: &Bytes| !end.is_empty() && (other.is_empty() || end < other);
        for (start, fragment) in &self.fragments {
            if let Some(Fragment { end, seqnos }) = before {
                assert!(!end.is_empty() && end <= start, "they overlap");
                assert!(end < start || *seqnos != fragment.seqnos, "they are one");
            }
            assert!(fragment.holds(start), "one is empty");
            let covering: Vec<SeqNo> = self
                .iter()
                .filter(|(_, s)| s.start <= *start && !ends_before(&s.end, &fragment.end))
                .map(|(seqno, _)| seqno)
                .collect();
            assert_eq!(fragment.seqnos, covering);
            assert!(!covering.is_empty());
            before = Some(fragment);
        }
        let numbers: usize = self.fragments.values().map(|fragment| fragment.seqnos.len()).sum();
        let key_bytes: usize = self.all.values().map(|s| s.start.len() + s.end.len()).sum();
        assert_eq!((self.numbers, self.key_bytes), (numbers, key_bytes));
    }
}
