//! What is kept of random versions, by a law: every reader, at every snapshot and at every time from
//! now on, makes of it what it made before.

use super::merge::LentEntry;
use super::output::OlderData;
use super::versions::{Filtering, Retention, Sink, Versions};
use crate::error::{Error, Result};
use crate::filter::Verdict;
use crate::iter::{Fold, View};
use crate::merge::{Append, MergeError, MergeFn, MergeOperator};
use crate::sync::Arc;
use crate::types::{Kind, MAX_VALUE_LEN, SeqNo};
use crate::vfs::{Entropy, SeededEntropy};
use bytes::Bytes;

/// A version: number, kind, value as stored.
type Version = (u64, Kind, Vec<u8>);

#[derive(Default)]
struct Kept {
    versions: Vec<Version>,
    failures: usize,
}

impl Sink for Kept {
    fn write(&mut self, key: &[u8], seqno: SeqNo, kind: Kind, value: &[u8]) -> Result<()> {
        assert_eq!(key, b"k");
        self.versions.push((seqno.0, kind, value.to_vec()));
        Ok(())
    }

    fn failed(&mut self, _: Error) {
        self.failures += 1;
    }
}

fn kept(versions: &[Version], retention: &Retention, is_bottom: bool) -> Kept {
    // Where something older may be, every question about it is answered with yes.
    let older = if is_bottom { OlderData::default() } else { OlderData::everywhere() };
    let (mut decide, mut kept) = (Versions::new(retention, older), Kept::default());
    for (seqno, kind, value) in versions {
        let entry = LentEntry { key: b"k", seqno: SeqNo(*seqno), kind: *kind, value };
        decide.add(b"k", &entry, &mut kept).unwrap();
    }
    decide.end(b"k", &mut kept).unwrap();
    kept
}

/// What a reader makes of the versions of a key, with others below; an error is one like another.
fn seen(
    versions: &[Version],
    below: &[Version],
    view: View,
    operator: &dyn MergeOperator,
) -> std::result::Result<Option<Bytes>, ()> {
    let mut fold = Fold::new(&view);
    for (seqno, kind, value) in versions.iter().chain(below) {
        let visible = SeqNo(*seqno) <= view.snapshot;
        if visible && fold.add(SeqNo(*seqno), *kind, Bytes::from(value.clone())) {
            break;
        }
    }
    let folded = fold.finish(b"k", "ks", Some(operator)).map_err(|_| ())?;
    Ok(folded.map(|folded| folded.value))
}

fn until(expiry: u64, value: &[u8]) -> Vec<u8> {
    [&expiry.to_le_bytes(), value].concat()
}

/// Prepends, and removes at a zero: order counts, and so does what there was.
fn prepending(is_combinable: bool) -> Arc<dyn MergeOperator> {
    struct Prepend(bool);
    impl MergeOperator for Prepend {
        fn name(&self) -> &'static str {
            "prepend"
        }

        fn merge(
            &self,
            _: &[u8],
            existing: Option<&[u8]>,
            operands: &[&[u8]],
        ) -> std::result::Result<Option<Vec<u8>>, MergeError> {
            let add = |value: Option<Vec<u8>>, operand: &&[u8]| {
                (operand.last() != Some(&0))
                    .then(|| [operand, &value.unwrap_or_default()[..]].concat())
            };
            Ok(operands.iter().fold(existing.map(<[u8]>::to_vec), add))
        }

        fn combine(
            &self,
            _: &[u8],
            operands: &[&[u8]],
        ) -> std::result::Result<Option<Vec<u8>>, MergeError> {
            if !self.0 || operands.iter().any(|operand| operand.last() == Some(&0)) {
                return Ok(None);
            }
            Ok(Some(operands.iter().rev().copied().collect::<Vec<_>>().concat()))
        }
    }
    Arc::new(Prepend(is_combinable))
}

#[test]
fn every_reader_sees_what_it_saw() {
    const SEEDS: u64 = if cfg!(miri) { 40 } else { 30_000 };
    let operators =
        [Arc::new(Append) as Arc<dyn MergeOperator>, prepending(true), prepending(false)];
    let (mut fewer, mut merged, mut combined) = (0, 0, 0);
    for seed in 0..SEEDS {
        let rng = SeededEntropy::new(seed);
        let below = |n: u64| rng.next_u64() % n;
        let operator = &operators[below(3) as usize];
        let now = below(60);
        let mut versions: Vec<Version> = Vec::new();
        let mut seqno = 40 + below(60);
        for _ in 0..1 + below(9) {
            let value = vec![below(5) as u8; 1 + below(2) as usize];
            // Few different times, so that some expire together.
            let expiry = 20 * below(6);
            versions.push(match below(10) {
                0 => (seqno, Kind::Delete, Vec::new()),
                1 | 2 => (seqno, Kind::Put, value),
                3 => (seqno, Kind::PutUntil, until(expiry, &value)),
                4..=7 => (seqno, Kind::Merge, value),
                _ => (seqno, Kind::MergeUntil, until(expiry, &value)),
            });
            seqno = seqno.saturating_sub(1 + below(12));
            if seqno == 0 {
                break;
            }
        }
        let is_bottom = below(2) == 0;
        let lowest = versions.last().unwrap().0;
        let underneath: Vec<Version> = if is_bottom {
            Vec::new()
        } else {
            let all = [
                (lowest - 1, Kind::Put, b"x".to_vec()),
                (lowest - 1, Kind::Delete, Vec::new()),
                (lowest - 1, Kind::PutUntil, until(now + below(30), b"y")),
                (lowest - 1, Kind::Merge, b"z".to_vec()),
            ];
            vec![all[below(4) as usize].clone()]
        };
        let mut boundaries: Vec<SeqNo> = (0..below(4)).map(|_| SeqNo(below(101))).collect();
        boundaries.push(SeqNo(101));
        boundaries.sort();
        boundaries.dedup();
        let mut clears: Vec<SeqNo> = (0..below(3) / 2).map(|_| SeqNo(below(101))).collect();
        clears.sort();
        let mut retention = Retention::new(boundaries.clone(), clears.clone());
        (retention.expired_by, retention.operator) = (now, Some(Arc::clone(operator)));
        if below(8) == 0 {
            retention.operator = None;
        }
        // With a filter all those see what they saw who were there before.
        let mut readers = &boundaries[..];
        if below(4) == 0 {
            let last_is_snapshot = below(2) == 0;
            readers = if last_is_snapshot { readers } else { &readers[..readers.len() - 1] };
            retention.filter = Some(Filtering {
                filter: Arc::new(|_: &[u8], value: &[u8]| match value.first() {
                    Some(1) => Verdict::Remove,
                    Some(2) => Verdict::Change(vec![9]),
                    _ => Verdict::Keep,
                }),
                keyspace: "ks".to_owned(),
                snapshot: readers.last().copied(),
            });
        }
        let kept = kept(&versions, &retention, is_bottom);
        assert_eq!(kept.failures, 0);
        assert!(kept.versions.windows(2).all(|pair| pair[0].0 > pair[1].0), "{:?}", kept.versions);
        assert!(kept.versions.len() <= versions.len());
        for snapshot in readers {
            let floor = clears.iter().rev().copied().find(|clear| clear <= snapshot);
            // From now on: nobody looks back.
            for later in [0, 1, 19, 20, 40, 60, 80, 100] {
                let view = View { snapshot: *snapshot, floor, now_ms: now + later };
                let before = seen(&versions, &underneath, view, &**operator);
                let after = seen(&kept.versions, &underneath, view, &**operator);
                assert_eq!(
                    after, before,
                    "seed {seed}: {versions:?} over {underneath:?} with {retention:?} at {view:?}: {:?}",
                    kept.versions
                );
            }
        }
        fewer += u64::from(kept.versions.len() < versions.len());
        let is_put = |v: &Version| matches!(v.1, Kind::Put | Kind::PutUntil);
        let new = |v: &&Version| !versions.iter().any(|old| (old.1, &old.2) == (v.1, &v.2));
        merged += u64::from(kept.versions.iter().filter(new).any(is_put));
        combined += u64::from(kept.versions.iter().filter(new).any(|v| v.1.is_merge()));
    }
    assert!(cfg!(miri) || fewer > SEEDS / 3 && merged > SEEDS / 10 && combined > SEEDS / 20);
}

#[test]
fn a_filter_is_asked_about_the_newest_value_alone() {
    let put = |n: u64| (n, Kind::Put, vec![n as u8]);
    let versions = [put(9), put(8), put(5), put(4), put(2)];
    let removing = |snapshots: &[u64], is_bottom: bool| {
        let boundaries = snapshots.iter().copied().chain([9]).map(SeqNo).collect();
        let mut retention = Retention::new(boundaries, Vec::new());
        let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
        let filter = {
            let asked = Arc::clone(&asked);
            move |_: &[u8], value: &[u8]| {
                asked.lock().unwrap().push(value[0]);
                Verdict::Remove
            }
        };
        let snapshot = snapshots.last().copied().map(SeqNo);
        let keyspace = String::new();
        retention.filter = Some(Filtering { filter: Arc::new(filter), keyspace, snapshot });
        let kept = kept(&versions, &retention, is_bottom).versions;
        let asked = asked.lock().unwrap().clone();
        (asked, kept)
    };
    assert_eq!(removing(&[], true), (vec![9], vec![]));
    let tombstone = (9, Kind::Delete, vec![]);
    assert_eq!(removing(&[], false), (vec![9], vec![tombstone.clone()]));
    let old = (0, Kind::Put, vec![2]);
    assert_eq!(removing(&[2, 4], true), (vec![9], vec![tombstone, put(4), old.clone()]));
    // One more than that was published before the look at the snapshots may be seen by a new one.
    let mut retention = Retention::new(vec![SeqNo(4)], Vec::new());
    let filter = Arc::new(|_: &[u8], _: &[u8]| Verdict::Remove);
    retention.filter = Some(Filtering { filter, keyspace: String::new(), snapshot: None });
    let kept = kept(&[put(5), put(4)], &retention, true).versions;
    assert_eq!(kept, [put(5)]);
}

#[test]
fn a_chain_ends_as_one_value_where_nothing_is_below() {
    let versions: Vec<Version> =
        (1..=1000).rev().map(|n| (n, Kind::Merge, vec![n as u8])).collect();
    let mut retention = Retention::new(vec![SeqNo(1000)], Vec::new());
    retention.operator = Some(Arc::new(Append));
    let at_the_bottom = kept(&versions, &retention, true).versions;
    let expected: Vec<u8> = (1..=1000).map(|n| n as u8).collect();
    assert_eq!(at_the_bottom, [(0, Kind::Put, expected.clone())]);
    let above = kept(&versions, &retention, false).versions;
    assert_eq!(above, [(1000, Kind::Merge, expected)]);
    // No operator can be told: all stay.
    retention.operator = None;
    assert_eq!(kept(&versions, &retention, true).versions, versions);
}

#[test]
fn operands_are_not_merged_across_a_snapshot() {
    let versions = [(9, Kind::Merge, vec![9]), (6, Kind::Merge, vec![6]), (3, Kind::Put, vec![3])];
    let mut retention = Retention::new(vec![SeqNo(7), SeqNo(9)], Vec::new());
    retention.operator = Some(Arc::new(Append));
    let kept = kept(&versions, &retention, true).versions;
    assert_eq!(kept, [(9, Kind::Merge, vec![9]), (0, Kind::Put, vec![3, 6])]);
}

#[test]
fn what_an_operator_fails_on_stays_as_it_is() {
    let versions: Vec<Version> =
        vec![(3, Kind::Merge, vec![1]), (2, Kind::Merge, vec![2]), (1, Kind::Put, vec![0])];
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut retention = Retention::new(vec![SeqNo(3)], Vec::new());
    retention.operator =
        Some(Arc::new(MergeFn::associative("angry", |_, _, _| -> Option<Vec<u8>> {
            panic!("no")
        })));
    let kept = kept(&versions, &retention, true);
    std::panic::set_hook(hook);
    assert_eq!(kept.failures, 2, "once for the whole, once for the operands");
    let numbers: Vec<_> = kept.versions.iter().map(|(_, kind, value)| (*kind, value)).collect();
    let before: Vec<_> = versions.iter().map(|(_, kind, value)| (*kind, value)).collect();
    assert_eq!(numbers, before);
}

#[test]
fn without_an_operator_no_operand_waits() {
    let retention = Retention::new(vec![SeqNo(4), SeqNo(9)], Vec::new());
    let (mut decide, mut kept) = (Versions::new(&retention, OlderData::default()), Kept::default());
    let put = (1, Kind::Put, vec![1]);
    let operands: Vec<Version> = [9, 8, 4, 3].map(|n| (n, Kind::Merge, vec![n as u8])).into();
    for (n, (seqno, kind, value)) in operands.iter().chain([&put]).enumerate() {
        let entry = LentEntry { key: b"k", seqno: SeqNo(*seqno), kind: *kind, value };
        decide.add(b"k", &entry, &mut kept).unwrap();
        assert_eq!(kept.versions.len(), n + 1, "it is written as soon as it is met");
    }
    decide.end(b"k", &mut kept).unwrap();
    assert_eq!(kept.versions[..4], operands);
    assert_eq!(kept.versions[4..], [(0, Kind::Put, vec![1])]);
}

/// Takes the lengths only.
struct Lengths(Vec<usize>, usize);

impl Sink for Lengths {
    fn write(&mut self, _: &[u8], _: SeqNo, _: Kind, value: &[u8]) -> Result<()> {
        self.0.push(value.len());
        Ok(())
    }

    fn failed(&mut self, _: Error) {
        self.1 += 1;
    }
}

#[test]
#[cfg(target_pointer_width = "64")]
#[cfg_attr(miri, ignore)] // It asks for four gibibytes of zeros, none of which is ever touched.
fn what_would_be_too_long_with_its_expiry_stays_as_it_is() {
    let operator = MergeFn::associative("zeros", |_, _, _| Some(vec![0; MAX_VALUE_LEN - 7]));
    let mut retention = Retention::new(vec![SeqNo(9)], Vec::new());
    retention.operator = Some(Arc::new(operator));
    for is_bottom in [true, false] {
        let older = if is_bottom { OlderData::default() } else { OlderData::everywhere() };
        let (mut decide, mut kept) = (Versions::new(&retention, older), Lengths(Vec::new(), 0));
        for n in [9, 8] {
            let value = &until(1000, &[n as u8; 3]);
            let entry = LentEntry { key: b"k", seqno: SeqNo(n), kind: Kind::MergeUntil, value };
            decide.add(b"k", &entry, &mut kept).unwrap();
        }
        decide.end(b"k", &mut kept).unwrap();
        assert_eq!((kept.0, kept.1), (vec![11, 11], 1 + usize::from(is_bottom)));
    }
}
