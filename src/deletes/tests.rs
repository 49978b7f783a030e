//! Range tombstones against lists of them.

use super::*;
use crate::vfs::{Entropy, SeededEntropy};

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

#[test]
fn bounds_become_spans() {
    use Bound::{Excluded, Included, Unbounded};
    fn of(lower: Bound<&[u8]>, upper: Bound<&[u8]>) -> Option<(Vec<u8>, Vec<u8>)> {
        KeySpan::of(lower, upper).map(|span| (span.start.to_vec(), span.end.to_vec()))
    }
    let some = |start: &[u8], end: &[u8]| Some((start.to_vec(), end.to_vec()));
    assert_eq!(of(Unbounded, Unbounded), some(b"", b""));
    assert_eq!(of(Included(b"a"), Excluded(b"b")), some(b"a", b"b"));
    assert_eq!(of(Excluded(b"a"), Included(b"b")), some(b"a\0", b"b\0"));
    assert_eq!(of(Included(b"b"), Included(b"b")), some(b"b", b"b\0"));
    for (lower, upper) in [(&b"b"[..], &b"b"[..]), (b"b", b"a"), (b"", b"")] {
        assert_eq!(of(Included(lower), Excluded(upper)), None);
        assert_eq!(of(Excluded(lower), Excluded(upper)), None);
    }
    // Behind the longest keys there is no room for one byte more.
    let long = |last: u8| [vec![0xff; MAX_KEY_LEN - 1], vec![last]].concat();
    assert_eq!(of(Excluded(&long(7)), Unbounded), some(&long(8), b""));
    assert_eq!(of(Excluded(&long(0xff)), Unbounded), None);
    assert_eq!(of(Unbounded, Included(&long(0xff))), some(b"", b""));
    let mut carried = vec![1; 2];
    carried.resize(MAX_KEY_LEN, 0xff);
    assert_eq!(of(Unbounded, Included(&carried)), some(b"", &[1, 2]));
}

#[test]
fn a_search_tells_what_a_list_tells() {
    let keys: Vec<String> = (0..26)
        .flat_map(|n| {
            let key = char::from(b'a' + n);
            [String::new(), key.to_string(), format!("{key}\0"), format!("{key}{key}")]
        })
        .collect();
    const SEEDS: u64 = if cfg!(miri) { 4 } else { 400 };
    const STEPS: u64 = if cfg!(miri) { 40 } else { 210 };
    for seed in 0..SEEDS {
        let rng = SeededEntropy::new(seed);
        let key = || &keys[rng.next_u64() as usize % keys.len()];
        let mut deletes = RangeDeletes::default();
        let mut list: Vec<(SeqNo, KeySpan)> = Vec::new();
        for step in 0..STEPS {
            // Up to a place, then down to few: so chunks are merged, parted and joined.
            let removes = if step < STEPS * 2 / 3 { 8 } else { 2 };
            if rng.next_u64().is_multiple_of(removes) && !list.is_empty() {
                let (seqno, _) = list.swap_remove(rng.next_u64() as usize % list.len());
                assert!(deletes.remove(seqno) && !deletes.remove(seqno));
            } else if let Some(span) = KeySpan::new(bytes(key()), bytes(key())) {
                // In the order of their numbers, or not.
                let seqno = SeqNo(if seed % 2 == 0 { step + 1 } else { step * 7 % STEPS + 1 });
                let is_new = !list.iter().any(|(known, _)| *known == seqno);
                assert_eq!(deletes.add(seqno, span.clone()), is_new);
                if is_new {
                    list.push((seqno, span));
                }
            }
            deletes.check();
        }
        let covers = |span: &KeySpan, key: &str| {
            span.start[..] <= *key.as_bytes() && span.is_before_end(key.as_bytes())
        };
        for key in &keys {
            let mut covering: Vec<SeqNo> =
                list.iter().filter(|(_, s)| covers(s, key)).map(|(n, _)| *n).collect();
            covering.sort();
            assert_eq!(
                deletes.covers(key.as_bytes()),
                !covering.is_empty(),
                "seed {seed}: {key:?}"
            );
            for snapshot in (0..=STEPS).step_by(9).map(SeqNo) {
                let newest = covering.iter().copied().filter(|n| *n <= snapshot).max();
                assert_eq!(
                    deletes.newest(key.as_bytes(), snapshot),
                    newest,
                    "seed {seed}: {key:?}"
                );
            }
        }
        for _ in 0..20 {
            let (mut first, mut last) = (key(), key());
            if first > last {
                std::mem::swap(&mut first, &mut last);
            }
            let number = || SeqNo(rng.next_u64() % STEPS);
            let (largest, until) = (number(), number());
            let (from, to) = (first.as_bytes(), last.as_bytes());
            // Between two of these keys there are others, but no ends of ranges.
            let hidden = keys
                .iter()
                .filter(|k| first <= *k && *k <= last)
                .all(|k| list.iter().any(|(n, s)| *n >= largest && *n <= until && covers(s, k)));
            assert_eq!(deletes.hide(from, to, largest, until), hidden, "seed {seed}");
            let mut within: Vec<SeqNo> = deletes.within(from, to).collect();
            within.sort();
            within.dedup();
            let meets =
                |span: &KeySpan| keys.iter().any(|k| first <= k && k <= last && covers(span, k));
            let mut expected: Vec<SeqNo> =
                list.iter().filter(|(_, span)| meets(span)).map(|(n, _)| *n).collect();
            expected.sort();
            assert_eq!(within, expected, "seed {seed}");
        }
    }
}

fn span(from: usize, to: usize) -> KeySpan {
    KeySpan::new(bytes(&format!("{from:06}")), bytes(&format!("{to:06}"))).unwrap()
}

/// How many numbers all chunks have.
fn numbers(deletes: &RangeDeletes) -> usize {
    deletes.chunks.iter().map(|chunk| chunk.numbers()).sum()
}

#[test]
fn ranges_in_each_other_take_no_more_than_so_much_each() {
    const COUNT: usize = if cfg!(miri) { 100 } else { 3_000 };
    type Shape = fn(usize) -> KeySpan;
    let shapes: [Shape; 4] = [
        |n| span(n, 2 * COUNT - n),
        |n| span(COUNT - n, COUNT + n + 1),
        |n| span(0, n + 1),
        |n| span(COUNT - n, COUNT + 1),
    ];
    for (which, shape) in shapes.into_iter().enumerate() {
        for rising in [true, false] {
            let mut deletes = RangeDeletes::default();
            for n in 0..COUNT {
                let seqno = if rising { n + 1 } else { COUNT - n };
                assert!(deletes.add(SeqNo(seqno as u64), shape(n)));
            }
            assert_eq!(deletes.len(), COUNT);
            assert!(numbers(&deletes) <= NUMBERS * COUNT, "{which}: {}", numbers(&deletes));
            assert!(deletes.bytes() <= 2_000 * COUNT, "{which}: {}", deletes.bytes());
            deletes.check();
            for n in 0..COUNT {
                deletes.remove(SeqNo(n as u64 + 1));
            }
            assert!(deletes.is_empty() && deletes.bytes() == 0);
        }
    }
}

#[test]
fn ranges_beside_each_other_come_into_few_chunks_which_copies_share() {
    const COUNT: usize = if cfg!(miri) { 200 } else { 5_000 };
    let mut deletes = RangeDeletes::default();
    let mut copied = 0;
    for n in 0..COUNT {
        // As an iterator holds it.
        let held = deletes.clone();
        deletes.add(SeqNo(n as u64 + 1), span(2 * n, 2 * n + 1));
        let is_shared = |chunk: &Arc<Chunk>| held.chunks.iter().any(|c| Arc::ptr_eq(c, chunk));
        let own = deletes.chunks.iter().filter(|chunk| !is_shared(chunk));
        copied += own.map(|chunk| chunk.len()).sum::<usize>();
        assert!(deletes.chunks.len() <= 12, "{}", deletes.chunks.len());
    }
    deletes.check();
    assert!(copied <= 2 * SMALL * COUNT, "{copied}");
}

#[test]
fn what_is_removed_leaves_no_cuts() {
    let mut deletes = RangeDeletes::default();
    deletes.add(SeqNo(1), span(0, 100));
    let alone = deletes.bytes();
    for n in 1..20 {
        deletes.add(SeqNo(n + 1), span(n as usize, 100 - n as usize));
    }
    for n in 1..20 {
        deletes.remove(SeqNo(n + 1));
        deletes.check();
    }
    assert_eq!((deletes.bytes(), numbers(&deletes)), (alone, 1));
}

#[test]
fn those_with_the_same_tombstones_are_equal() {
    let (mut forth, mut back) = (RangeDeletes::default(), RangeDeletes::default());
    for n in 0..100 {
        forth.add(SeqNo(n as u64 + 1), span(n, 2 * n + 1));
        back.add(SeqNo(100 - n as u64), span(99 - n, 2 * (99 - n) + 1));
    }
    assert_eq!(forth, back);
    back.remove(SeqNo(50));
    assert_ne!(forth, back);
    back.add(SeqNo(50), span(49, 98));
    assert_ne!(forth, back, "another range");
}
