//! Merges and ranges over random sources against a `BTreeMap`.

use super::*;
use crate::cursor::{Cursor, Seek};
use crate::error::{Error, Result};
use crate::hash::key_hash;
use crate::memtable::{Memtable, SkipMemtable};
use crate::sync::Arc;
use crate::types::{KeyspaceId, Kind};
use crate::vfs::{Entropy, SeededEntropy};
use std::collections::BTreeMap;
use std::ops::Bound;

const KS: KeyspaceId = KeyspaceId(3);

struct Tables(Vec<Arc<SkipMemtable>>);

impl CursorSource for Tables {
    fn cursors(&self) -> Result<Vec<Box<dyn Cursor>>> {
        Ok(self.0.iter().map(|t| Arc::clone(t).cursor(KS)).collect())
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
            Kind::Delete => map.remove(key),
        };
    }
    map
}

#[test]
fn a_merge_walks_the_union_both_ways_and_turns_anywhere() {
    let (tables, history) = random(5, 40);
    let mut all: Vec<_> = history.iter().map(|(k, _, s)| (k.clone(), *s)).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    let mut merge = MergeCursor::new(tables.cursors().unwrap());
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
            let view = View { snapshot, floor };
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
            let mut iter =
                RangeIter::new(Arc::clone(&tables) as Arc<dyn CursorSource>, view, bounds, false);
            loop {
                let (got, want) = if rng.next_u64().is_multiple_of(2) {
                    (iter.next(), want.pop_front())
                } else {
                    (iter.next_back(), want.pop_back())
                };
                let got = got.map(|r| r.unwrap()).map(|(k, v)| (k.to_vec(), v.to_vec()));
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
    let view = View { snapshot: SeqNo::MAX, floor: None };
    let bounds =
        (Bound::Included(Bytes::from_static(&[10])), Bound::Excluded(Bytes::from_static(&[90])));
    let mut iter = RangeIter::new(tables, view, bounds, true);
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
        fn cursors(&self) -> Result<Vec<Box<dyn Cursor>>> {
            Err(Error::Closed)
        }
    }
    let view = View { snapshot: SeqNo::MAX, floor: None };
    let mut iter =
        RangeIter::new(Arc::new(Broken), view, (Bound::Unbounded, Bound::Unbounded), false);
    assert!(matches!(iter.next(), Some(Err(Error::Closed))));
    assert!(iter.next().is_none() && iter.next_back().is_none());
}
