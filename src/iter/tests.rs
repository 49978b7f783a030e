//! Merges and ranges over random sources against a `BTreeMap`.

use super::*;
use crate::cursor::{Bounds, Cursor, Seek};
use crate::error::{Error, Result};
use crate::hash::key_hash;
use crate::memtable::{Memtable, SkipMemtable};
use crate::sync::Arc;
use crate::types::{KeyspaceId, Kind};
use crate::vfs::{Entropy, SeededEntropy};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};

const KS: KeyspaceId = KeyspaceId(3);

fn everything() -> Arc<Bounds> {
    Arc::new(Bounds { lower: Bound::Unbounded, upper: Bound::Unbounded })
}

fn wrong_order() -> Error {
    Error::corruption(std::path::Path::new("/db"), 0, "out of order")
}

struct Tables(Vec<Arc<SkipMemtable>>);

impl CursorSource for Tables {
    fn cursors(&self, _: &Arc<Bounds>) -> Result<Vec<RangeSource>> {
        Ok(self.0.iter().map(|t| RangeSource::Memtable(Arc::clone(t).cursor(KS))).collect())
    }

    fn fetch(&self, _: &[u8]) -> Result<Bytes> {
        unreachable!("nothing lies elsewhere")
    }

    fn fold(&self, _: &[u8], _: &View) -> Result<Option<Folded>> {
        unreachable!("only puts and removals")
    }

    fn out_of_order(&self) -> Error {
        wrong_order()
    }
}

type History = Vec<(Vec<u8>, Kind, u64)>;

fn random(seed: u64, keys: u64) -> (Arc<Tables>, History) {
    let rng = SeededEntropy::new(seed);
    let tables: Vec<_> = (0..4).map(|_| Arc::new(SkipMemtable::default())).collect();
    let mut history = Vec::new();
    for seqno in 1..=600u64 {
        let r = rng.next_u64();
        let key = format!("{:02}", (r >> 8) % keys).into_bytes();
        let kind = if r >> 62 == 0 { Kind::Delete } else { Kind::Put };
        let value = if kind == Kind::Put { seqno.to_le_bytes().to_vec() } else { vec![] };
        tables[(r % 4) as usize].insert(KS, &key, key_hash(&key, 0), SeqNo(seqno), kind, &value);
        history.push((key, kind, seqno));
    }
    (Arc::new(Tables(tables)), history)
}

fn model(history: &History, view: View) -> BTreeMap<Vec<u8>, u64> {
    let mut map = BTreeMap::new();
    for (key, kind, seqno) in history {
        let s = SeqNo(*seqno);
        if s > view.snapshot || view.is_cleared(s) {
            continue;
        }
        match kind {
            Kind::Put => map.insert(key.clone(), *seqno),
            _ => map.remove(key),
        };
    }
    map
}

#[test]
fn a_merge_walks_the_union_both_ways_and_turns_anywhere() {
    let (tables, history) = random(5, 40);
    let mut all: Vec<_> = history.iter().map(|(k, _, s)| (k.clone(), *s)).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    let mut merge = MergeCursor::new(tables.cursors(&everything()).unwrap());
    merge.seek(Seek::First).unwrap();
    let rng = SeededEntropy::new(9);
    let mut at = 0usize;
    for _ in 0..20_000 {
        assert_eq!((merge.key(), merge.seqno().0), (&all[at].0[..], all[at].1));
        let r = rng.next_u64();
        if r.is_multiple_of(50) {
            let key = &all[(r >> 8) as usize % all.len()].0;
            if r & 64 == 0 {
                merge.seek(Seek::AtOrAfter(key)).unwrap();
                at = all.partition_point(|e| e.0 < *key);
            } else {
                merge.seek(Seek::AtOrBefore(key)).unwrap();
                at = all.partition_point(|e| e.0 <= *key) - 1;
            }
        } else if (r & 1 == 0 || at == 0) && at + 1 < all.len() {
            merge.next().unwrap();
            at += 1;
        } else {
            merge.prev().unwrap();
            at -= 1;
        }
    }
}

#[test]
fn ranges_from_both_ends_equal_the_model_at_every_snapshot() {
    for (seed, keys) in [(1, 90), (2, 7)] {
        let (tables, history) = random(seed, keys);
        let rng = SeededEntropy::new(seed + 100);
        for round in 0..400u64 {
            let snapshot = SeqNo(rng.next_u64() % 620);
            let floor = (round % 3 == 0).then(|| SeqNo(rng.next_u64() % (snapshot.0 + 1)));
            let view = View { snapshot, floor, now_ms: 0 };
            let bound = |r: u64| {
                let key = Bytes::from(format!("{:02}", (r >> 8) % (keys + 2)));
                match r % 3 {
                    0 => Bound::Included(key),
                    1 => Bound::Excluded(key),
                    _ => Bound::Unbounded,
                }
            };
            let bounds = (bound(rng.next_u64()), bound(rng.next_u64()));
            let mut want: std::collections::VecDeque<_> = model(&history, view)
                .into_iter()
                .filter(|(k, _)| {
                    (as_slice_test(&bounds.0), as_slice_test(&bounds.1)).contains_key(k)
                })
                .collect();
            let mut iter = RangeIter::new(
                Arc::clone(&tables) as Arc<dyn CursorSource>,
                view,
                vec![],
                bounds,
                false,
            );
            loop {
                let lent = |step: Option<Result<(&[u8], &[u8])>>| {
                    step.map(|r| r.unwrap()).map(|(k, v)| (k.to_vec(), v.to_vec()))
                };
                let owned = |step: Option<Result<(crate::Key, crate::Value)>>| {
                    step.map(|r| r.unwrap()).map(|(k, v)| (k.to_vec(), v.to_vec()))
                };
                let (got, want) = match rng.next_u64() % 4 {
                    0 => (owned(iter.next()), want.pop_front()),
                    1 => (owned(iter.next_back()), want.pop_back()),
                    2 => (lent(iter.next_entry()), want.pop_front()),
                    _ => (lent(iter.next_entry_back()), want.pop_back()),
                };
                assert_eq!(got, want.clone().map(|(k, s)| (k, s.to_le_bytes().to_vec())));
                if want.is_none() {
                    break;
                }
            }
            assert!(iter.next().is_none() && iter.next_back().is_none());
        }
    }
}

use bytes::Bytes;

fn as_slice_test(bound: &Bound<Bytes>) -> Bound<Vec<u8>> {
    bound.as_ref().map(|b| b.to_vec())
}

trait ContainsKey {
    fn contains_key(&self, key: &[u8]) -> bool;
}

impl ContainsKey for (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    fn contains_key(&self, key: &[u8]) -> bool {
        let lower = match &self.0 {
            Bound::Included(b) => key >= &b[..],
            Bound::Excluded(b) => key > &b[..],
            Bound::Unbounded => true,
        };
        let upper = match &self.1 {
            Bound::Included(b) => key <= &b[..],
            Bound::Excluded(b) => key < &b[..],
            Bound::Unbounded => true,
        };
        lower && upper
    }
}

#[test]
fn seeks_move_either_end_within_the_range() {
    let table = Arc::new(SkipMemtable::default());
    for n in 0..100u64 {
        table.insert(KS, &[n as u8], key_hash(&[n as u8], 0), SeqNo(n + 1), Kind::Put, b"");
    }
    let tables = Arc::new(Tables(vec![table]));
    let view = View { snapshot: SeqNo::MAX, floor: None, now_ms: 0 };
    let bounds =
        (Bound::Included(Bytes::from_static(&[10])), Bound::Excluded(Bytes::from_static(&[90])));
    let mut iter = RangeIter::new(tables, view, vec![], bounds, true);
    let first = |i: Option<Result<(crate::Key, crate::Value)>>| i.map(|r| r.unwrap().0[0]);
    assert_eq!(first(iter.next()), Some(10));
    iter.seek([50]);
    assert_eq!(first(iter.next()), Some(50));
    iter.seek([3]);
    assert_eq!(first(iter.next()), Some(10), "a seek stays within the range");
    assert_eq!(first(iter.next_back()), Some(89));
    iter.seek_back([200]);
    assert_eq!(first(iter.next_back()), Some(89));
    iter.seek_back([20]);
    assert_eq!(first(iter.next_back()), Some(20));
    iter.seek([19]);
    assert_eq!(first(iter.next()), Some(19));
    assert_eq!(first(iter.next()), None);
    iter.seek_back([255]);
    assert_eq!(first(iter.next()), Some(20), "the ends opened again");
}

#[test]
fn an_error_is_given_once_and_nothing_after_it() {
    struct Broken;
    impl CursorSource for Broken {
        fn cursors(&self, _: &Arc<Bounds>) -> Result<Vec<RangeSource>> {
            Err(Error::Closed)
        }

        fn fetch(&self, _: &[u8]) -> Result<Bytes> {
            unreachable!("nothing lies elsewhere")
        }

        fn fold(&self, _: &[u8], _: &View) -> Result<Option<Folded>> {
            unreachable!("only puts and removals")
        }

        fn out_of_order(&self) -> Error {
            wrong_order()
        }
    }
    let view = View { snapshot: SeqNo::MAX, floor: None, now_ms: 0 };
    let mut iter =
        RangeIter::new(Arc::new(Broken), view, vec![], (Bound::Unbounded, Bound::Unbounded), false);
    assert!(matches!(iter.next(), Some(Err(Error::Closed))));
    assert!(iter.next().is_none() && iter.next_back().is_none());
}

/// Counts the steps and searches of the cursor that it wraps.
struct Counted(Box<dyn Cursor>, Arc<AtomicUsize>);

impl Counted {
    fn count(&self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

impl Cursor for Counted {
    fn seek(&mut self, to: Seek<'_>) -> Result<()> {
        self.count();
        self.0.seek(to)
    }

    fn next(&mut self) -> Result<()> {
        self.count();
        self.0.next()
    }

    fn prev(&mut self) -> Result<()> {
        self.count();
        self.0.prev()
    }

    fn valid(&self) -> bool {
        self.0.valid()
    }

    fn key(&self) -> &[u8] {
        self.0.key()
    }

    fn seqno(&self) -> SeqNo {
        self.0.seqno()
    }

    fn kind(&self) -> Kind {
        self.0.kind()
    }

    fn key_bytes(&self) -> Bytes {
        self.0.key_bytes()
    }

    fn value(&self) -> Bytes {
        self.0.value()
    }

    fn value_ref(&self) -> &[u8] {
        self.0.value_ref()
    }

    fn skip_newer(&mut self, key: &[u8], snapshot: SeqNo) -> Result<()> {
        self.count();
        self.0.skip_newer(key, snapshot)
    }
}

struct CountedTables(Arc<Tables>, Arc<AtomicUsize>);

impl CursorSource for CountedTables {
    fn cursors(&self, _: &Arc<Bounds>) -> Result<Vec<RangeSource>> {
        let counted = |t: &Arc<SkipMemtable>| {
            let cursor = Counted(Arc::clone(t).cursor(KS), Arc::clone(&self.1));
            RangeSource::Memtable(Box::new(cursor))
        };
        Ok(self.0.0.iter().map(counted).collect())
    }

    fn fetch(&self, _: &[u8]) -> Result<Bytes> {
        unreachable!("nothing lies elsewhere")
    }

    fn fold(&self, _: &[u8], _: &View) -> Result<Option<Folded>> {
        unreachable!("only puts and removals")
    }

    fn out_of_order(&self) -> Error {
        wrong_order()
    }
}

#[test]
fn thousands_of_versions_of_a_key_are_passed_by_searching() {
    const VERSIONS: u64 = 5000;
    let table = Arc::new(SkipMemtable::default());
    for n in 0..3 * VERSIONS {
        let key = [(n / VERSIONS) as u8];
        table.insert(KS, &key, key_hash(&key, 0), SeqNo(n + 1), Kind::Put, &n.to_le_bytes());
    }
    let tables = Arc::new(Tables(vec![table]));
    let middle = VERSIONS + VERSIONS / 2;
    for snapshot in [1, VERSIONS - 10, VERSIONS, middle, 3 * VERSIONS] {
        for backward in [false, true] {
            let count = Arc::new(AtomicUsize::new(0));
            let source = Arc::new(CountedTables(Arc::clone(&tables), Arc::clone(&count)));
            let view = View { snapshot: SeqNo(snapshot), floor: None, now_ms: 0 };
            let iter =
                RangeIter::new(source, view, vec![], (Bound::Unbounded, Bound::Unbounded), false);
            let entries: Result<Vec<_>> =
                if backward { iter.rev().collect() } else { iter.collect() };
            let mut got: Vec<_> =
                entries.unwrap().into_iter().map(|(k, v)| (k[0], v.to_vec())).collect();
            if backward {
                got.reverse();
            }
            let newest = |key: u64| ((key + 1) * VERSIONS).min(snapshot) - 1;
            let keys = snapshot.div_ceil(VERSIONS);
            let want: Vec<_> =
                (0..keys).map(|key| (key as u8, newest(key).to_le_bytes().to_vec())).collect();
            assert_eq!(got, want, "at {snapshot}");
            let steps = count.load(Ordering::Relaxed);
            assert!(steps < 60, "{steps} steps at {snapshot}, backward: {backward}");
        }
    }
}

/// Tombstones, in an order that no memtable has, found as if it were right.
struct Jumbled {
    entries: Vec<(Vec<u8>, u64)>,
    at: Option<usize>,
}

impl Cursor for Jumbled {
    fn seek(&mut self, to: Seek<'_>) -> Result<()> {
        let keys = || self.entries.iter().map(|(key, _)| &key[..]);
        self.at = match to {
            Seek::First => Some(0),
            Seek::Last => Some(self.entries.len() - 1),
            Seek::AtOrAfter(wanted) => keys().position(|key| key >= wanted),
            Seek::After(wanted) => keys().position(|key| key > wanted),
            Seek::AtOrBefore(wanted) => keys().rposition(|key| key <= wanted),
            Seek::Before(wanted) => keys().rposition(|key| key < wanted),
        };
        Ok(())
    }
    fn next(&mut self) -> Result<()> {
        self.at = self.at.map(|at| at + 1).filter(|at| *at < self.entries.len());
        Ok(())
    }
    fn prev(&mut self) -> Result<()> {
        self.at = self.at.and_then(|at| at.checked_sub(1));
        Ok(())
    }
    fn valid(&self) -> bool {
        self.at.is_some()
    }
    fn key(&self) -> &[u8] {
        self.at.map_or(&[], |at| &self.entries[at].0)
    }
    fn seqno(&self) -> SeqNo {
        SeqNo(self.at.map_or(0, |at| self.entries[at].1))
    }
    fn kind(&self) -> Kind {
        Kind::Delete
    }
    fn key_bytes(&self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(self.key())
    }
    fn value(&self) -> bytes::Bytes {
        bytes::Bytes::new()
    }
    fn value_ref(&self) -> &[u8] {
        &[]
    }
    fn is_newest(&self) -> bool {
        self.key().first() == Some(&b'm')
    }
}

#[test]
fn a_source_whose_order_is_wrong_is_an_error_and_not_a_walk_without_end() {
    /// Whether it is wrong in front.
    struct Wrong(bool);
    impl CursorSource for Wrong {
        fn cursors(&self, _: &Arc<Bounds>) -> Result<Vec<RangeSource>> {
            let keys = |names: &[&[u8]]| names.iter().map(|name| name.to_vec()).collect::<Vec<_>>();
            let rising = keys(&[b"m1", b"m2", b"m3", b"m4", b"m5", b"m6"]);
            let mut entries: Vec<_> = rising.into_iter().map(|key| (key, 1)).collect();
            // Many versions of a key that belongs to the other side: past them it is searched.
            let many = |name: &[u8]| (1..=8).rev().map(|n| (name.to_vec(), n)).collect::<Vec<_>>();
            if self.0 {
                entries.splice(0..0, many(b"z"));
            } else {
                entries.extend(many(b"a"));
            }
            Ok(vec![RangeSource::Memtable(Box::new(Jumbled { entries, at: None }))])
        }

        fn fetch(&self, _: &[u8]) -> Result<Bytes> {
            unreachable!("nothing lies elsewhere")
        }

        fn fold(&self, _: &[u8], _: &View) -> Result<Option<Folded>> {
            unreachable!("only puts and removals")
        }

        fn out_of_order(&self) -> Error {
            wrong_order()
        }
    }
    let all = || (Bound::Unbounded, Bound::Unbounded);
    let view = View { snapshot: SeqNo(100), floor: None, now_ms: 0 };
    let ends: [fn(&mut RangeIter) -> bool; 2] = [
        |range| matches!(range.next(), Some(Err(Error::Corruption { .. }))),
        |range| matches!(range.next_back(), Some(Err(Error::Corruption { .. }))),
    ];
    for (end, in_front) in ends.into_iter().zip([false, true]) {
        let mut range = RangeIter::new(Arc::new(Wrong(in_front)), view, vec![], all(), false);
        assert!(end(&mut range), "{in_front}");
        assert!(range.next().is_none() && range.next_back().is_none());
    }
}
