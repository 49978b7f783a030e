//! Range tombstones: which keys a range delete hides, and from whom.
//!
//! ```text
//! tombstones      a────────────────m @ 7      e────────k @ 9
//! fragments       a───e @ 7 · e────k @ 7 9 · k────m @ 7
//! ```
//!
//! A range delete with number `n` hides what is within its range and not newer than `n` from readers at or
//! after `n`. The ranges are cut where another begins or ends, so that one search tells all that cover a
//! key. Range tombstones do not lie in segments among the entries: the log has them, then the memtable they
//! were written beside, then the manifest, until nothing is left that they hide. So none is ever cut at the
//! edge of a segment, and a segment that lies within one goes without being read.
//!
//! Ranges that lie in each other would make as many fragments as there are tombstones, each with as many
//! numbers. So they are kept in *chunks*, each with the tombstones of a span of numbers, in which a
//! tombstone costs [`NUMBERS`] numbers at most. New ones go into the newest chunk while that is small;
//! full ones are merged as long as that makes few numbers, which gives a few chunks of growing size where
//! ranges lie beside each other, and many small ones where they lie in each other. A copy shares the
//! chunks, so that whoever adds to one of two copies, copies a small chunk.
//!
//! Invariants: the numbers of a chunk are below those of the next; no chunk is empty. A plain value. Called
//! by the memtables' and the manifest's keepers, reads, flushes and compactions.

mod chunk;
#[cfg(test)]
mod tests;

use crate::cursor::Hidden;
use crate::sync::Arc;
use crate::types::{MAX_KEY_LEN, SeqNo};
use bytes::Bytes;
use chunk::Chunk;
use std::ops::Bound;

/// A range of keys, not empty. The end is exclusive; an empty one is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeySpan {
    pub(crate) start: Bytes,
    pub(crate) end: Bytes,
}

/// The least key above `key`, if there is one: keys have a greatest length.
fn successor(key: &[u8]) -> Option<Bytes> {
    if key.len() < MAX_KEY_LEN {
        return Some([key, &[0]].concat().into());
    }
    let at = key.iter().rposition(|byte| *byte != 0xff)?;
    let mut above = key.get(..=at).unwrap_or_default().to_vec();
    if let Some(last) = above.last_mut() {
        *last += 1;
    }
    Some(above.into())
}

impl KeySpan {
    /// The span of these bytes, unless it is empty.
    pub(crate) fn new(start: Bytes, end: Bytes) -> Option<KeySpan> {
        (end.is_empty() || start < end).then_some(KeySpan { start, end })
    }

    /// What lies between two bounds, unless that is nothing.
    pub(crate) fn of(lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> Option<KeySpan> {
        let copy = Bytes::copy_from_slice;
        let start = match lower {
            Bound::Unbounded => Bytes::new(),
            Bound::Included(key) => copy(key),
            Bound::Excluded(key) => successor(key)?,
        };
        let end = match upper {
            Bound::Unbounded => Bytes::new(),
            // Nothing is before the first key of all.
            Bound::Excluded([]) => return None,
            Bound::Excluded(key) => copy(key),
            Bound::Included(key) => successor(key).unwrap_or_default(),
        };
        KeySpan::new(start, end)
    }

    fn as_bounds(&self) -> (Bound<&[u8]>, Bound<&[u8]>) {
        let end = match &self.end[..] {
            [] => Bound::Unbounded,
            end => Bound::Excluded(end),
        };
        (Bound::Included(&self.start), end)
    }

    /// Whether `key` comes before the end.
    #[cfg(test)]
    fn is_before_end(&self, key: &[u8]) -> bool {
        self.end.is_empty() || *key < self.end[..]
    }
}

/// To so many tombstones a chunk grows before it is merged with others.
const SMALL: usize = 32;

/// So many numbers a tombstone costs at most, on the average of a chunk: as `SMALL` that lie in each other.
const NUMBERS: usize = SMALL;

/// Range tombstones of one keyspace.
#[derive(Clone, Debug, Default)]
pub(crate) struct RangeDeletes {
    chunks: Vec<Arc<Chunk>>,
}

impl PartialEq for RangeDeletes {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for RangeDeletes {}

fn is_heavy(chunk: &Chunk) -> bool {
    chunk.numbers() > NUMBERS * chunk.len()
}

/// Both in one, unless that has too many numbers.
fn merged(older: &Chunk, newer: &Chunk) -> Option<Chunk> {
    let mut both = older.clone();
    for (seqno, span) in newer.iter() {
        both.add(seqno, span.clone());
        // What is still to come makes up for no more than this.
        if both.numbers() > NUMBERS * (older.len() + newer.len()) {
            return None;
        }
    }
    Some(both)
}

/// One that has too many numbers, in parts that have not.
fn split(chunk: &Chunk, parts: &mut Vec<Arc<Chunk>>) {
    let mut halves = [Chunk::default(), Chunk::default()];
    for (at, (seqno, span)) in chunk.iter().enumerate() {
        halves[usize::from(at >= chunk.len() / 2)].add(seqno, span.clone());
    }
    for half in halves {
        if is_heavy(&half) { split(&half, parts) } else { parts.push(Arc::new(half)) }
    }
}

impl RangeDeletes {
    /// Whether there is none.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len()).sum()
    }

    /// The memory that they take, in bytes: an estimate that rather exceeds. Costs a step for each chunk.
    pub(crate) fn bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes()).sum()
    }

    /// All of them, by rising number.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (SeqNo, &KeySpan)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// The place of the chunk that has a number, or would.
    fn place_of(&self, seqno: SeqNo) -> usize {
        self.chunks.partition_point(|chunk| chunk.largest() < seqno)
    }

    /// Adds one. `false`, and nothing changes, if there is one of this number.
    pub(crate) fn add(&mut self, seqno: SeqNo, span: KeySpan) -> bool {
        let at = self.place_of(seqno);
        if let Some(chunk) = self.chunks.get_mut(at) {
            if chunk.contains(seqno) {
                return false;
            }
            let chunk = Arc::make_mut(chunk);
            chunk.add(seqno, span);
            if is_heavy(chunk) {
                let mut parts = Vec::new();
                split(chunk, &mut parts);
                self.chunks.splice(at..=at, parts);
            }
            return true;
        }
        if let Some(newest) = self.chunks.last_mut().filter(|chunk| chunk.len() < SMALL) {
            let newest = Arc::make_mut(newest);
            newest.add(seqno, span);
            if newest.len() == SMALL {
                self.merge_newest();
            }
        } else {
            let mut newest = Chunk::default();
            newest.add(seqno, span);
            self.chunks.push(Arc::new(newest));
        }
        true
    }

    /// Merges the newest chunk with those before it that are not much larger.
    fn merge_newest(&mut self) {
        while let [.., older, newest] = &mut self.chunks[..]
            && !older.is_sealed
            && older.len() <= 2 * newest.len()
        {
            let Some(both) = merged(older, newest) else {
                Arc::make_mut(older).is_sealed = true;
                return;
            };
            *older = Arc::new(both);
            self.chunks.pop();
        }
    }

    /// Takes one away. `false` if there is none of this number.
    pub(crate) fn remove(&mut self, seqno: SeqNo) -> bool {
        let at = self.place_of(seqno);
        let Some(chunk) = self.chunks.get_mut(at).filter(|chunk| chunk.contains(seqno)) else {
            return false;
        };
        let chunk = Arc::make_mut(chunk);
        chunk.remove(seqno);
        chunk.is_sealed = false;
        if chunk.len() == 0 {
            self.chunks.remove(at);
        } else if is_heavy(chunk) {
            let mut parts = Vec::new();
            split(chunk, &mut parts);
            self.chunks.splice(at..=at, parts);
        } else {
            self.join_small(at);
        }
        if let Some(before) = at.checked_sub(1) {
            self.join_small(before);
        }
        true
    }

    /// Merges a chunk with the next if there is little in both.
    fn join_small(&mut self, at: usize) {
        if let Some([older, newer]) = self.chunks.get_mut(at..at + 2)
            && older.len() + newer.len() <= SMALL
            && let Some(both) = merged(older, newer)
        {
            *older = Arc::new(both);
            self.chunks.remove(at + 1);
        }
    }

    /// Takes over all of another.
    pub(crate) fn add_all(&mut self, other: &RangeDeletes) {
        for (seqno, span) in other.iter() {
            self.add(seqno, span.clone());
        }
    }

    /// Whether any covers a key.
    pub(crate) fn covers(&self, key: &[u8]) -> bool {
        self.chunks.iter().any(|chunk| chunk.covers(key))
    }

    /// The newest that covers a key and is not after a snapshot.
    pub(crate) fn newest(&self, key: &[u8], snapshot: SeqNo) -> Option<SeqNo> {
        // What an older chunk has is older.
        let mut newest_first = self.chunks.iter().rev();
        newest_first.find_map(|chunk| chunk.newest(key, snapshot)).map(|(newest, ..)| newest)
    }

    /// The same with the keys around it that this one covers, as far as is known here.
    pub(crate) fn newest_around(&self, key: &[u8], snapshot: SeqNo) -> Option<Hidden<'_>> {
        let mut newest_first = self.chunks.iter().rev();
        let (newest, start, end) = newest_first.find_map(|chunk| chunk.newest(key, snapshot))?;
        Some(Hidden { newest, start, end })
    }

    /// The numbers of the tombstones that cover some key between the two, both inclusive: some of them
    /// several times.
    pub(crate) fn within(&self, first: &[u8], last: &[u8]) -> impl Iterator<Item = SeqNo> {
        self.chunks.iter().flat_map(move |chunk| chunk.within(first, last))
    }

    /// Whether all keys between the two, both inclusive, are covered by tombstones not after `until` and
    /// not before `largest`: then nothing there that is not newer than `largest` is left for who reads
    /// at `until` or later.
    pub(crate) fn hide(&self, first: &[u8], last: &[u8], largest: SeqNo, until: SeqNo) -> bool {
        let mut reached = first;
        loop {
            let chunks = self.chunks.iter().filter(|chunk| chunk.largest() >= largest);
            let hiding = chunks.filter_map(|chunk| chunk.newest(reached, until));
            let mut furthest = reached;
            for (_, _, end) in hiding.filter(|(newest, ..)| *newest >= largest) {
                if end.is_empty() || *last < end[..] {
                    return true;
                }
                furthest = furthest.max(&end[..]);
            }
            if furthest == reached {
                return false;
            }
            reached = furthest;
        }
    }

    /// Checks the invariants.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        for chunk in &self.chunks {
            chunk.check();
            assert!(chunk.len() > 0 && !is_heavy(chunk));
        }
        assert!(self.chunks.is_sorted_by(|a, b| a.largest() < b.smallest()));
    }
}
