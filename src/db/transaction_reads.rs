//! What a transaction has read of one keyspace: the keys that it looked up, the ranges that it
//! walked.
//!
//! A range counts as far as it was walked, so an iterator says only when it goes how far it came.
//! Until then all that it might walk counts: one that is never dropped costs conflicts, not
//! correctness. Plain values, for the transaction that owns them.

use crate::deletes::KeySpan;
use crate::types::Kind;
use crate::wal::Op;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Ranges of keys, joined where they overlap or touch: from where each starts to where it ends,
/// exclusive; an empty end is none.
#[derive(Clone, Debug, Default)]
pub(super) struct Spans(BTreeMap<Bytes, Bytes>);

/// The later of two ends.
fn later(one: Bytes, other: Bytes) -> Bytes {
    if one.is_empty() || other.is_empty() { Bytes::new() } else { one.max(other) }
}

impl Spans {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.0.iter()
    }

    pub(super) fn add(&mut self, span: KeySpan) {
        let KeySpan { mut start, mut end } = span;
        let up_to = (Bound::Unbounded, Bound::Included(&start[..]));
        if let Some((first, known)) = self.0.range::<[u8], _>(up_to).next_back()
            && (known.is_empty() || *known >= start)
        {
            (start, end) = (first.clone(), later(end, known.clone()));
        }
        loop {
            let from = (Bound::Included(&start[..]), Bound::Unbounded);
            let next = self.0.range::<[u8], _>(from).next();
            let Some((first, known)) = next.filter(|(s, _)| end.is_empty() || **s <= end) else {
                break;
            };
            end = later(end, known.clone());
            let first = first.clone();
            self.0.remove(&first);
        }
        self.0.insert(start, end);
    }

    /// The range that a key lies in: where it starts and ends.
    pub(super) fn around(&self, key: &[u8]) -> Option<(&Bytes, &Bytes)> {
        let up_to = (Bound::Unbounded, Bound::Included(key));
        let (start, end) = self.0.range::<[u8], _>(up_to).next_back()?;
        (end.is_empty() || *key < end[..]).then_some((start, end))
    }

    /// Whether a key lies in any.
    pub(super) fn have(&self, key: &[u8]) -> bool {
        !self.0.is_empty() && self.around(key).is_some()
    }

    /// Whether any has a key between `start` and `end`, exclusive; an empty end is none.
    fn meet(&self, start: &[u8], end: &[u8]) -> bool {
        let last = match end {
            [] => self.0.last_key_value(),
            end => self.0.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(end))).next_back(),
        };
        last.is_some_and(|(_, known)| known.is_empty() || known[..] > *start)
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Reads {
    keys: BTreeSet<Bytes>,
    walked: Spans,
    /// What iterators that still exist may walk.
    open: BTreeMap<u64, KeySpan>,
    next_walk: u64,
}

impl Reads {
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.walked.is_empty() && self.open.is_empty()
    }

    /// A key is looked up.
    pub(super) fn look_up(&mut self, key: &[u8]) {
        if !self.keys.contains(key) && !self.walked.have(key) {
            self.keys.insert(Bytes::copy_from_slice(key));
        }
    }

    /// An iterator begins; its number.
    pub(super) fn begin_walk(&mut self, span: KeySpan) -> u64 {
        self.next_walk += 1;
        self.open.insert(self.next_walk, span);
        self.next_walk
    }

    /// It ends, having walked this much.
    pub(super) fn end_walk(&mut self, walk: u64, walked: impl IntoIterator<Item = KeySpan>) {
        self.open.remove(&walk);
        walked.into_iter().for_each(|span| self.walked.add(span));
    }

    /// There will be no more: iterators that never ended have walked all that they might.
    pub(super) fn end(&mut self) {
        for span in std::mem::take(&mut self.open).into_values() {
            self.walked.add(span);
        }
    }

    /// Whether a write, of a key or a range, is to something that was read. Once all has
    /// [ended](Self::end).
    pub(super) fn are_met_by(&self, write: &Op<'_>) -> bool {
        if write.kind != Kind::DeleteRange {
            return self.keys.contains(write.key) || self.walked.have(write.key);
        }
        let (start, end) = (write.key, write.value);
        let end_bound = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
        // A log never has a range that ends where it starts, or before.
        let is_sound = end.is_empty() || start < end;
        is_sound && self.keys.range::<[u8], _>((Bound::Included(start), end_bound)).next().is_some()
            || self.walked.meet(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::KeyspaceId;
    use crate::vfs::{Entropy, SeededEntropy};

    /// The key of a number, in order; 0 is the empty key.
    fn key(n: u64) -> Bytes {
        Bytes::from(vec![7; n as usize])
    }

    fn span(start: u64, end: u64) -> KeySpan {
        let end = if end == 0 { Bytes::new() } else { key(end) };
        KeySpan::new(key(start), end).unwrap()
    }

    fn covers(span: (u64, u64), n: u64) -> bool {
        span.0 <= n && (span.1 == 0 || n < span.1)
    }

    #[test]
    fn reads_are_met_by_what_writes_to_them() {
        const KEYS: u64 = 14;
        let rng = SeededEntropy::new(5);
        let below = |n: u64| rng.next_u64() % n;
        let some_span = || {
            let start = below(KEYS);
            let end = start + 1 + below(KEYS - start);
            (start, if below(6) == 0 { 0 } else { end })
        };
        for _ in 0..3000 {
            let (mut reads, mut keys, mut spans) = (Reads::default(), Vec::new(), Vec::new());
            for _ in 0..below(6) {
                if below(2) == 0 {
                    let n = below(KEYS);
                    reads.look_up(&key(n));
                    keys.push(n);
                    continue;
                }
                let (whole, walked) = (some_span(), some_span());
                let walk = reads.begin_walk(span(whole.0, whole.1));
                // Some are never heard of again.
                if below(3) > 0 {
                    reads.end_walk(walk, [span(walked.0, walked.1)]);
                    spans.push(walked);
                } else {
                    spans.push(whole);
                }
            }
            assert_eq!(reads.is_empty(), keys.is_empty() && spans.is_empty());
            reads.end();
            assert!(reads.walked.iter().zip(reads.walked.iter().skip(1)).all(|(a, b)| a.1 < b.0));
            let is_read = |n: u64| keys.contains(&n) || spans.iter().any(|span| covers(*span, n));
            let keyspace = KeyspaceId(1);
            for n in 0..KEYS {
                let (key, value) = (&key(n)[..], &b"value"[..]);
                let write = Op { keyspace, kind: Kind::Merge, key, value };
                assert_eq!(reads.are_met_by(&write), is_read(n), "{n}: {reads:?}");
            }
            for _ in 0..10 {
                let written = some_span();
                let KeySpan { start, end } = span(written.0, written.1);
                let write = Op { keyspace, kind: Kind::DeleteRange, key: &start, value: &end };
                // Between two of these keys there are others, which only a span has.
                let expected = (0..KEYS + 2).any(|n| covers(written, n) && is_read(n));
                assert_eq!(reads.are_met_by(&write), expected, "{written:?}: {reads:?}");
            }
        }
    }
}
