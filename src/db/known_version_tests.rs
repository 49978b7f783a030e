//! Mistakes that engines have made with versions, snapshots and files, each with a test that has its name,
//! over all that puts values where they are or takes them away: memtables, loads, ingested files, value
//! segments; tombstones of keys and ranges, expiry, compaction filters.
//!
//! Those with merge operands and range tombstones are in `known_bug_tests`.

use super::ingest_tests::file;
use super::known_bug_tests::STRATEGIES;
use crate::filter::Verdict;
use crate::merge::Append;
use crate::vfs::{Entropy, Env, Failure, ManualClock, SeededEntropy, SimVfs};
use crate::{Builder, Compaction, Db, Snapshot};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

type Map = BTreeMap<String, Vec<u8>>;

/// Values that begin with an `x` go when a compaction meets them.
fn builder(env: &Env, compaction: Compaction) -> Builder {
    super::known_bug_tests::builder(env, compaction).merge_operator(Append).compaction_filter(
        |_: &[u8], value: &[u8]| match value.first() {
            Some(b'x') => Verdict::Remove,
            _ => Verdict::Keep,
        },
    )
}

fn key(n: u64) -> String {
    format!("{n:05}")
}

fn map(range: crate::RangeIter) -> Map {
    let text = |key: crate::Key| String::from_utf8(key.to_vec()).unwrap();
    range.map(|entry| entry.map(|(k, v)| (text(k), v.to_vec())).unwrap()).collect()
}

/// Everything, read in two ways.
fn there(db: &Db) -> Map {
    let found = map(db.get_range::<&[u8]>(..));
    for (key, value) in &found {
        assert!(db.get(key).unwrap().unwrap() == value[..], "{key}");
    }
    found
}

fn seen(snapshot: &Snapshot) -> Map {
    let found = map(snapshot.get_range::<&[u8]>(..));
    for (key, value) in &found {
        assert!(snapshot.get(key).unwrap().unwrap() == value[..], "{key}");
    }
    found
}

fn files(env: &Env, extension: &str) -> BTreeSet<String> {
    let names = env.vfs.read_dir(Path::new("/db")).unwrap();
    names.into_iter().filter(|name| name.ends_with(extension)).collect()
}

#[test]
fn the_oldest_snapshot_and_one_at_number_zero_go_on_seeing_what_they_saw() {
    for (seed, strategy) in (0..4).flat_map(|seed| STRATEGIES.map(|strategy| (seed, strategy))) {
        let clock = Arc::new(ManualClock::default());
        let env = Env { clock: Arc::clone(&clock) as _, ..Env::in_memory(seed) };
        let rng = SeededEntropy::new(seed);
        let separate = if seed % 2 == 0 { 100 } else { u64::MAX };
        let db = builder(&env, strategy).separate_values_above(separate).open().unwrap();
        // One operation, one snapshot: whatever is off by one is off for one of them.
        let mut snapshots = vec![(db.snapshot(), Map::new())];
        assert_eq!(snapshots[0].0.seqno().0, 0);
        let mut model = Map::new();
        for step in 0..90_u64 {
            let name = key(rng.next_u64() % 4);
            let long = [&[b'a' + (step % 20) as u8][..], &[step as u8; 300]].concat();
            match rng.next_u64() % 10 {
                0 => {
                    db.delete(&name).unwrap();
                    model.remove(&name);
                }
                1 => {
                    db.delete_range(&name[..]..).unwrap();
                    model.retain(|key, _| *key < name);
                }
                2 | 3 => {
                    db.merge(&name, [step as u8]).unwrap();
                    model.entry(name).or_default().push(step as u8);
                }
                4 => {
                    let path = file(&env, &key(step), [(name.clone(), long.clone())]);
                    db.ingest([path]).unwrap();
                    model.insert(name, long);
                }
                5 => {
                    db.bulk_load([(&name, &long)]).unwrap();
                    model.insert(name, long);
                }
                6 => {
                    // Gone for all that come later; for this snapshot time stands still.
                    db.put_with_ttl(&name, &long, Duration::from_millis(5)).unwrap();
                    model.insert(name.clone(), long);
                    snapshots.push((db.snapshot(), model.clone()));
                    clock.advance(Duration::from_millis(5));
                    model.remove(&name);
                }
                7 => {
                    let filtered = [b"x", &long[..]].concat();
                    db.put(&name, &filtered).unwrap();
                    model.insert(name.clone(), filtered);
                    // What may go at any time is seen by a snapshot as long as that lives.
                    snapshots.push((db.snapshot(), model.clone()));
                    db.put(&name, "after it").unwrap();
                    model.insert(name, b"after it".to_vec());
                }
                _ => {
                    db.put(&name, &long).unwrap();
                    model.insert(name, long);
                }
            }
            snapshots.push((db.snapshot(), model.clone()));
            if step % 11 == 10 {
                db.flush().unwrap();
            }
        }
        while !snapshots.is_empty() {
            db.compact_range::<&[u8]>(..).unwrap();
            db.wait_idle().unwrap();
            for (at, (snapshot, then)) in snapshots.iter().enumerate() {
                assert!(seen(snapshot) == *then, "{strategy:?}, seed {seed}: {at} from the oldest");
            }
            // The oldest one goes alone first, then more of them at once.
            snapshots.drain(..snapshots.len().div_ceil(20));
        }
        assert!(there(&db) == model, "{strategy:?}, seed {seed}");
    }
}

#[test]
fn what_was_removed_stays_so_while_an_older_version_lives_below() {
    let origins = ["flushed", "loaded", "ingested", "ingested beside a snapshot"];
    let removals = ["tombstone", "range tombstone", "expired", "filtered", "merged away"];
    for (strategy, origin) in STRATEGIES.iter().flat_map(|s| origins.map(|origin| (*s, origin))) {
        for (removal, with_map) in removals.iter().flat_map(|r| [(*r, true), (*r, false)]) {
            let what = format!("{strategy:?}, {origin}, {removal}, map {with_map}");
            let clock = Arc::new(ManualClock::default());
            let env = Env { clock: Arc::clone(&clock) as _, ..Env::in_memory(7) };
            let open = || {
                let builder = builder(&env, strategy).separate_values_above(200);
                builder.key_map_bytes(if with_map { 64 << 20 } else { 0 }).open().unwrap()
            };
            let mut db = open();
            let old: Map = (0..300).map(|n| (key(n), n.to_be_bytes().repeat(30))).collect();
            match origin {
                "flushed" => old.iter().for_each(|(key, value)| db.put(key, value).unwrap()),
                "loaded" => assert_eq!(db.bulk_load(&old).unwrap(), 300),
                _ => {
                    let snapshot = db.snapshot();
                    let path = file(&env, "old", old.clone());
                    assert_eq!(db.ingest([path]).unwrap(), 300);
                    assert_eq!((origin.len() > 8, seen(&snapshot).len()), (origin.len() > 8, 0));
                }
            }
            db.compact_range::<&[u8]>(..).unwrap();
            let older = db.snapshot();
            let mut left = old.clone();
            // Each third of the keys, in three flushes with something else in between.
            for round in 0..3_u64 {
                let gone = || (0..300).filter(move |n| n % 9 == round);
                for n in gone() {
                    match removal {
                        "tombstone" => db.delete(key(n)).unwrap(),
                        "range tombstone" => db.delete_range(key(n)..key(n + 1)).unwrap(),
                        "expired" => {
                            let brief = Duration::from_millis(1);
                            db.put_with_ttl(key(n), "brief", brief).unwrap();
                        }
                        _ => db.put(key(n), "x and older than it something else").unwrap(),
                    }
                    left.remove(&key(n));
                }
                if removal == "merged away" {
                    gone().for_each(|n| db.merge(key(n), " and more").unwrap());
                }
                clock.advance(Duration::from_millis(2));
                db.put(key(1000 + round), "other").unwrap();
                left.insert(key(1000 + round), b"other".to_vec());
                db.flush().unwrap();
                while db.step().unwrap() {}
            }
            // What a filter removes is to be gone once a compaction has passed over it, and for good.
            let judged = matches!(removal, "filtered" | "merged away");
            let check = |db: &Db, at: &str| {
                let mut found = there(db);
                if judged {
                    found.retain(|_, value| value.first() != Some(&b'x'));
                }
                assert!(found == left, "{what}, {at}");
            };
            check(&db, "merged by and by");
            assert!(seen(&older) == old, "{what}");
            drop(older);
            db.compact_range(key(100)..key(200)).unwrap();
            check(&db, "a part is compacted");
            drop(db);
            db = open();
            check(&db, "opened again");
            db.compact_range::<&[u8]>(..).unwrap();
            assert!(there(&db) == left, "{what}, compacted");
            drop(db);
            assert!(there(&open()) == left, "{what}, compacted and opened again");
        }
    }
}

#[test]
fn nothing_of_a_key_is_lost_where_an_output_is_past_its_size() {
    for (strategy, separate) in STRATEGIES.iter().flat_map(|s| [(*s, u64::MAX), (*s, 5000)]) {
        let env = Env::in_memory(1);
        let db = builder(&env, strategy).separate_values_above(separate).open().unwrap();
        // Outputs end at 64 KiB: values of three times that, and a key whose versions take much more.
        let mut model = Map::new();
        let mut snapshots = Vec::new();
        for n in 0..40_u64 {
            let long = n.to_be_bytes().repeat(25_000);
            let short = n.to_be_bytes().repeat(600);
            for (key, value) in [(key(n), &long), (key(20), &short), (key(n) + "+", &short)] {
                db.put(&key, value).unwrap();
                model.insert(key, value.clone());
            }
            if n % 8 == 3 {
                db.delete_range(key(n / 2)..key(n / 2 + 1)).unwrap();
                model.retain(|k, _| !(key(n / 2)..key(n / 2 + 1)).contains(k));
            }
            snapshots.push((db.snapshot(), model.clone()));
        }
        for round in 0..3 {
            match round {
                0 => db.flush().unwrap(),
                1 => db.compact_range::<&[u8]>(..).unwrap(),
                _ => {
                    snapshots.truncate(2);
                    db.compact_range::<&[u8]>(..).unwrap();
                }
            }
            for (snapshot, then) in &snapshots {
                assert!(seen(snapshot) == *then, "{strategy:?}, {separate}, {round}");
            }
            assert!(there(&db) == model, "{strategy:?}, {separate}, {round}");
        }
    }
}

#[test]
fn a_read_error_at_an_input_drops_nothing() {
    for (seed, separate) in [(1, u64::MAX), (2, 100)] {
        let mut failed = 0;
        for k in 0.. {
            let faulty = SimVfs::new(seed);
            let env = faulty.env(3);
            let open = |map| {
                let builder = builder(&env, Compaction::Leveled).separate_values_above(separate);
                // Nothing is cached: every block is read from its file.
                builder.cache_bytes(0).check_key_map(map).open().unwrap()
            };
            let db = open(false);
            let mut model = Map::new();
            for round in 0..2_u8 {
                for n in (0..60).skip(usize::from(round)).step_by(1 + usize::from(round)) {
                    let value = vec![round + 1; 120 + n % 7];
                    db.put(key(n as u64), &value).unwrap();
                    model.insert(key(n as u64), value);
                }
                let path = file(&env, &key(round.into()), [(key(7), vec![9; 500])]);
                db.ingest([path]).unwrap();
                model.insert(key(7), vec![9; 500]);
                db.delete_range(key(10)..key(12)).unwrap();
                model.retain(|k, _| !(key(10)..key(12)).contains(k));
                db.merge(key(20), "!").unwrap();
                model.entry(key(20)).or_default().push(b'!');
                db.put(key(30), "x: filtered").unwrap();
                model.remove(&key(30));
                db.flush().unwrap();
            }
            let calls = faulty.calls();
            faulty.fail_any(k, false, Failure::Refused);
            let outcome = db.compact_range::<&[u8]>(..);
            faulty.heal();
            failed += u32::from(outcome.is_err());
            let done = calls + k > faulty.calls();
            if db.stats().poisoned.is_none() {
                db.compact_range::<&[u8]>(..).unwrap();
                assert!(there(&db) == model, "call {k}, separated above {separate}");
            }
            drop(db);
            let db = open(true);
            db.compact_range::<&[u8]>(..).unwrap();
            assert!(there(&db) == model, "call {k}, separated above {separate}, opened again");
            if done {
                break;
            }
        }
        assert!(failed > 10, "{failed}");
    }
}

#[test]
fn no_file_goes_under_an_iterator() {
    for (strategy, separate) in STRATEGIES.iter().flat_map(|s| [(*s, u64::MAX), (*s, 100)]) {
        let env = Env::in_memory(1);
        let db = builder(&env, strategy).separate_values_above(separate).open().unwrap();
        let value = |n: u64, time: u8| [&n.to_be_bytes()[..], &[time; 400]].concat();
        for n in 0..500 {
            db.put(key(n), value(n, 1)).unwrap();
        }
        db.ingest([file(&env, "f", (500..600).map(|n| (key(n), value(n, 1))))]).unwrap();
        db.compact_range::<&[u8]>(..).unwrap();
        let old = (files(&env, ".seg"), files(&env, ".val"));
        assert_eq!(old.1.is_empty(), separate != 100);
        let mut forth = db.get_range::<&[u8]>(..);
        let mut back = db.get_range::<&[u8]>(..).rev();
        let first = forth.next().unwrap().unwrap();
        let last = back.next().unwrap().unwrap();
        assert!((&first.1[..], &last.1[..]) == (&value(0, 1)[..], &value(599, 1)[..]));
        // All of it becomes garbage, twice.
        for time in 2..4 {
            (0..600).for_each(|n| db.put(key(n), value(n, time)).unwrap());
            db.compact_range::<&[u8]>(..).unwrap();
            db.wait_idle().unwrap();
        }
        for (n, entry) in (1..600).zip(forth.by_ref()) {
            assert!(entry.unwrap().1 == value(n, 1)[..], "{n}");
        }
        for (n, entry) in (0..599).rev().zip(back.by_ref()) {
            assert!(entry.unwrap().1 == value(n, 1)[..], "{n}");
        }
        assert!(forth.next().is_none() && back.next().is_none());
        // Only once nobody reads them do they go; and what was lent from them stays.
        drop((forth, back));
        db.wait_idle().unwrap();
        assert!(files(&env, ".seg").is_disjoint(&old.0) && files(&env, ".val").is_disjoint(&old.1));
        assert!((&first.1[..], &last.1[..]) == (&value(0, 1)[..], &value(599, 1)[..]));
        assert_eq!(there(&db).len(), 600);
    }
}

#[test]
fn a_bulk_get_answers_for_each_key_as_often_as_it_is_asked() {
    for separate in [u64::MAX, 100] {
        let env = Env::in_memory(1);
        let db = builder(&env, Compaction::Lazy).separate_values_above(separate).open().unwrap();
        for n in 0..200 {
            db.put(key(n), n.to_be_bytes().repeat(30)).unwrap();
            db.merge(key(n), "+").unwrap();
        }
        db.delete_range(key(50)..key(60)).unwrap();
        for step in 0..3 {
            let asked: Vec<u64> =
                (0..400).map(|n| [n % 7, n / 2, 55, 300][n as usize % 4]).collect();
            let names: Vec<String> = asked.iter().copied().map(key).collect();
            let found = db.multi_get(&names).unwrap();
            assert_eq!(found.len(), asked.len());
            for (n, found) in asked.iter().zip(found) {
                let there = *n < 200 && !(50..60).contains(n);
                let expected = there.then(|| [&n.to_be_bytes().repeat(30)[..], b"+"].concat());
                assert!(found.as_deref() == expected.as_deref(), "{n}, {step}");
            }
            if step == 0 { db.flush().unwrap() } else { db.compact_range::<&[u8]>(..).unwrap() }
        }
    }
}
