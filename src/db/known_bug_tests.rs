//! Mistakes that engines have made with merge operands and range tombstones, each with a test that has
//! its name.

use crate::merge::{AddI64, MergeFn};
use crate::vfs::{Entropy, Env, SeededEntropy};
use crate::{Background, Builder, Compaction, Compression, Db, Snapshot};
use std::collections::BTreeSet;

pub(super) const STRATEGIES: [Compaction; 3] =
    [Compaction::Lazy, Compaction::Leveled, Compaction::Tiered];

pub(super) fn builder(env: &Env, compaction: Compaction) -> Builder {
    Db::builder("/db")
        .env(env.clone())
        .background(Background::Manual)
        .compaction(compaction)
        .compression(Compression::None)
        .level0_runs(2)
        .write_buffer_bytes(64 << 10)
        .segment_bytes(64 << 10)
        .level1_bytes(64 << 10)
        .check_key_map(true)
}

fn key(n: u32) -> String {
    format!("{n:05}")
}

fn fill(db: &Db, numbers: impl IntoIterator<Item = u32>) {
    for n in numbers {
        db.put(key(n), n.to_le_bytes().repeat(40)).unwrap();
    }
}

fn numbers(range: crate::RangeIter) -> BTreeSet<u32> {
    range.map(|entry| entry.unwrap().0.escape_ascii().to_string().parse().unwrap()).collect()
}

fn there(db: &Db) -> BTreeSet<u32> {
    numbers(db.get_range::<&[u8]>(..))
}

#[test]
fn range_tombstones_are_not_lost_when_an_input_has_none() {
    for (seed, strategy) in (0..8).flat_map(|seed| STRATEGIES.map(|strategy| (seed, strategy))) {
        let env = Env::in_memory(seed);
        let rng = SeededEntropy::new(seed);
        let mut db = builder(&env, strategy).open().unwrap();
        fill(&db, 0..2000);
        db.compact_range::<&[u8]>(..).unwrap();
        let mut left: BTreeSet<u32> = (0..2000).collect();
        for step in 0..30 {
            let below = |n: u64| (rng.next_u64() % n) as u32;
            let (from, len) = (below(2000), below(300));
            match step % 5 {
                0 => {
                    db.delete_range(key(from)..key(from + len)).unwrap();
                    left.retain(|n| !(from..from + len).contains(n));
                }
                // Flushes without any tombstone, beside and over the deleted ranges.
                1 | 3 => {
                    let new = (from..(from + len / 3).min(2000)).step_by(3);
                    fill(&db, new.clone());
                    left.extend(new);
                    db.flush().unwrap();
                }
                2 => db.compact_range(key(from)..key(from + len)).unwrap(),
                _ if below(2) == 0 => drop(db.step().unwrap()),
                _ => {
                    drop(db);
                    db = builder(&env, strategy).open().unwrap();
                }
            }
            assert_eq!(there(&db), left, "{strategy:?}, seed {seed}, step {step}");
        }
        db.wait_idle().unwrap();
        db.compact_range::<&[u8]>(..).unwrap();
        assert_eq!(there(&db), left, "{strategy:?}, seed {seed}");
    }
}

#[test]
fn range_tombstones_do_not_leak_into_older_snapshots() {
    for strategy in STRATEGIES {
        let env = Env::in_memory(4);
        let db = builder(&env, strategy).open().unwrap();
        fill(&db, 0..600);
        let mut left: BTreeSet<u32> = (0..600).collect();
        let mut snapshots: Vec<(Snapshot, BTreeSet<u32>)> = Vec::new();
        let check = |snapshots: &[(Snapshot, BTreeSet<u32>)], what: &str| {
            for (at, (snapshot, then)) in snapshots.iter().enumerate() {
                let found = numbers(snapshot.get_range::<&[u8]>(..));
                assert_eq!(found, *then, "{strategy:?}, {what}: snapshot {at}");
                for n in [0, 99, 100, 250, 599] {
                    assert_eq!(snapshot.get(key(n)).unwrap().is_some(), then.contains(&n), "{n}");
                }
            }
        };
        for step in 0..6 {
            snapshots.push((db.snapshot(), left.clone()));
            db.delete_range(key(step * 100)..key(step * 100 + 130)).unwrap();
            left.retain(|n| !(step * 100..step * 100 + 130).contains(n));
            snapshots.push((db.snapshot(), left.clone()));
            fill(&db, [step * 100 + 50]);
            left.insert(step * 100 + 50);
            check(&snapshots, "in memory");
            db.flush().unwrap();
            check(&snapshots, "flushed");
            if step % 2 == 1 {
                db.compact_range::<&[u8]>(..).unwrap();
                db.wait_idle().unwrap();
                check(&snapshots, "compacted");
            }
        }
        // The older half goes first, then the rest.
        for _ in 0..2 {
            snapshots.drain(..snapshots.len().div_ceil(2));
            db.compact_range::<&[u8]>(..).unwrap();
            db.wait_idle().unwrap();
            check(&snapshots, "fewer snapshots");
        }
        assert_eq!(there(&db), left);
    }
}

#[test]
fn range_tombstones_are_right_at_the_edges_of_segments() {
    let edges = |db: &Db| -> Vec<u32> {
        let number = |key: &crate::Key| key.escape_ascii().to_string().parse().unwrap();
        db.segments().iter().flat_map(|s| [number(&s.first_key), number(&s.last_key)]).collect()
    };
    let made = |env: &Env| {
        let db = builder(env, Compaction::Leveled).open().unwrap();
        fill(&db, 0..3000);
        db.compact_range::<&[u8]>(..).unwrap();
        db
    };
    let all = edges(&made(&Env::in_memory(0)));
    assert!(all.len() > 10, "{all:?}");
    // From an edge, or beside it, to another one, or beside that.
    for (at, offset) in (0..all.len() - 2).step_by(3).flat_map(|at| [(at, 0), (at, 1)]) {
        let (from, to) = (all[at] + offset, all[at + 2] + 1 - offset);
        let env = Env::in_memory(0);
        let mut db = made(&env);
        assert_eq!(edges(&db), all, "it is the same database");
        let before = db.snapshot();
        db.delete_range(key(from)..key(to)).unwrap();
        let left: BTreeSet<u32> = (0..3000).filter(|n| !(from..to).contains(n)).collect();
        assert_eq!(there(&db), left, "{from}..{to}");
        db.flush().unwrap();
        assert_eq!(there(&db), left, "{from}..{to}, flushed");
        assert_eq!(before.get_range::<&[u8]>(..).count(), 3000);
        drop(before);
        db.wait_idle().unwrap();
        assert_eq!(there(&db), left, "{from}..{to}, tidied up");
        drop(db);
        db = builder(&env, Compaction::Leveled).open().unwrap();
        assert_eq!(there(&db), left, "{from}..{to}, opened again");
    }
}

#[test]
fn merge_operands_are_applied_once() {
    for (seed, strategy) in (0..6).flat_map(|seed| STRATEGIES.map(|strategy| (seed, strategy))) {
        let env = Env::in_memory(seed);
        let rng = SeededEntropy::new(seed);
        let open = || builder(&env, strategy).merge_operator(AddI64).open().unwrap();
        let sum =
            |db: &Db| i64::from_le_bytes(db.get("n").unwrap().unwrap()[..].try_into().unwrap());
        let mut db = open();
        let mut expected = 0;
        let mut held = Vec::new();
        for step in 0..120 {
            match rng.next_u64() % 12 {
                0 => db.flush().unwrap(),
                1 => db.compact_range::<&[u8]>(..).unwrap(),
                2 => drop(db.step().unwrap()),
                3 => held.push((db.snapshot(), expected)),
                4 => held.clear(),
                5 => {
                    // It dies; what it had in memory comes from the log again.
                    held.clear();
                    drop(db);
                    db = open();
                }
                _ => {
                    let n = 1 << (step % 40);
                    db.merge("n", i64::to_le_bytes(n)).unwrap();
                    expected += n;
                }
            }
            if expected == 0 {
                continue;
            }
            assert_eq!(sum(&db), expected, "{strategy:?}, seed {seed}, step {step}");
            for (snapshot, then) in held.iter().filter(|(_, then)| *then > 0) {
                let found = snapshot.get("n").unwrap().unwrap();
                assert_eq!(found, i64::to_le_bytes(*then), "{strategy:?}, seed {seed}");
            }
        }
        db.checkpoint("/copy", &mut |_, _| {}).unwrap();
        let copy = Db::builder("/copy").env(env.clone()).merge_operator(AddI64).open().unwrap();
        assert_eq!(sum(&copy), expected, "a copy");
        drop(copy);
        drop((held, db));
        builder(&env, strategy).repair_into("/new", &mut |_, _| {}).unwrap();
        let new = Db::builder("/new").env(env.clone()).merge_operator(AddI64).open().unwrap();
        assert_eq!(sum(&new), expected, "what was repaired");
    }
}

#[test]
fn operands_of_a_key_are_not_split_at_the_edge_of_a_segment() {
    // It cannot combine operands, so that all of them stay as long as snapshots need them.
    let concat = || {
        MergeFn::new("concat", |_, existing: Option<&[u8]>, operands: &[&[u8]]| {
            let all = existing.into_iter().chain(operands.iter().copied());
            Some(all.flatten().copied().collect())
        })
    };
    let env = Env::in_memory(1);
    let db = builder(&env, Compaction::Leveled).merge_operator(concat()).open().unwrap();
    let mut snapshots = Vec::new();
    for n in 0..60_u8 {
        db.put(format!("{n}"), [n; 2000]).unwrap();
        db.put(format!("z{n}"), [n; 2000]).unwrap();
        db.merge("key", vec![n; 4000]).unwrap();
        snapshots.push(db.snapshot());
    }
    let check = |what: &str| {
        let segments = db.segments();
        let runs: BTreeSet<(usize, usize)> = segments.iter().map(|s| (s.level, s.run)).collect();
        for run in runs {
            let of_run: Vec<_> = segments.iter().filter(|s| (s.level, s.run) == run).collect();
            let apart = of_run.windows(2).all(|pair| pair[0].last_key < pair[1].first_key);
            assert!(apart, "{what}: two segments of a run share a key");
        }
        for (n, snapshot) in snapshots.iter().enumerate() {
            let value = snapshot.get("key").unwrap().unwrap();
            let expected = (0..=n as u8).flat_map(|n| vec![n; 4000]);
            assert!(value.iter().copied().eq(expected), "{what}: snapshot {n}");
        }
    };
    db.flush().unwrap();
    check("flushed");
    db.compact_range::<&[u8]>(..).unwrap();
    check("compacted");
    assert!(db.segments().len() > 2, "there are edges");
}
