//! Deletes of ranges, through the whole database. Random operations are in `tests/model.rs`.

use crate::merge::Append;
use crate::vfs::{Entropy, Env, SeededEntropy, SimVfs};
use crate::{Background, Builder, Compaction, Compression, Db, Error, WriteBatch};
use std::collections::BTreeMap;
use std::ops::Bound;

fn manual(env: &Env) -> Builder {
    Db::builder("/db")
        .env(env.clone())
        .background(Background::Manual)
        .write_buffer_bytes(64 << 10)
        .segment_bytes(64 << 10)
        .compression(Compression::None)
        .check_key_map(true)
}

fn key(n: u32) -> String {
    format!("{n:06}")
}

fn fill(db: &Db, numbers: impl IntoIterator<Item = u32>) {
    for n in numbers {
        db.put(key(n), n.to_le_bytes().repeat(25)).unwrap();
    }
}

fn there(db: &Db) -> Vec<String> {
    let name = |k: crate::Key| String::from_utf8(k.to_vec()).unwrap();
    let forth: Vec<_> = db.get_range::<&[u8]>(..).map(|e| name(e.unwrap().0)).collect();
    let mut back: Vec<_> = db.get_range::<&[u8]>(..).rev().map(|e| name(e.unwrap().0)).collect();
    back.reverse();
    assert_eq!(forth, back);
    forth
}

fn keys(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    numbers.into_iter().map(key).collect()
}

fn tombstones(db: &Db) -> usize {
    db.inner().state.load().version.trees[&super::DEFAULT_ID].deletes.len()
}

fn segments(db: &Db) -> usize {
    db.inner().state.load().version.trees[&super::DEFAULT_ID].segments().count()
}

#[test]
fn a_range_is_gone_at_once_and_does_not_come_back() {
    for place in 0..6 {
        let env = Env::in_memory(place);
        let mut db = manual(&env).open().unwrap();
        fill(&db, 0..100);
        if place > 0 {
            db.flush().unwrap();
        }
        if place > 1 {
            db.compact_range::<&[u8]>(..).unwrap();
        }
        let before = db.snapshot();
        db.delete_range(key(20)..key(60)).unwrap();
        fill(&db, [30]);
        let left = || keys((0..20).chain([30]).chain(60..100));
        if place > 2 {
            db.flush().unwrap();
        }
        if place > 3 {
            db.compact_range::<&[u8]>(..).unwrap();
        }
        assert_eq!(there(&db), left(), "{place}");
        assert_eq!(db.get(key(20)).unwrap(), None);
        assert_eq!(db.multi_get(&[key(59), key(60)]).unwrap()[0], None);
        assert_eq!(before.get_range::<&[u8]>(..).count(), 100, "a snapshot sees what was");
        assert!(before.get(key(40)).unwrap().is_some());
        drop(before);
        if place > 4 {
            drop(db);
            db = manual(&env).open().unwrap();
        }
        assert_eq!(there(&db), left(), "{place}");
        db.compact_range::<&[u8]>(..).unwrap();
        db.wait_idle().unwrap();
        assert_eq!(there(&db), left(), "{place}");
        assert_eq!(tombstones(&db), 0, "nothing is left that it hides, so it is forgotten");
        let entries: u64 = db.stats().keyspaces[0].levels.iter().map(|l| l.entries).sum();
        assert_eq!(entries, 61, "{place}");
        fill(&db, 20..60);
        assert_eq!(there(&db), keys(0..100), "{place}");
        assert!(db.verify(&mut |_, _| {}).unwrap().is_sound());
    }
}

#[test]
fn whole_segments_go_without_being_read() {
    let vfs = SimVfs::new(1);
    let db = manual(&vfs.env(1)).compaction(Compaction::Leveled).check_key_map(false);
    let db = db.open().unwrap();
    fill(&db, 0..20_000);
    db.compact_range::<&[u8]>(..).unwrap();
    let before = segments(&db);
    assert!(before > 10, "{before}");
    db.delete_range(key(100)..key(19_900)).unwrap();
    db.flush().unwrap();
    let compacted = db.stats().compacted_bytes;
    // With the key map in memory, hash runs would be read, to take them out of it.
    let reads = vfs.calls() - vfs.changes();
    while db.inner().drop_spent().unwrap() {}
    assert_eq!(vfs.calls() - vfs.changes(), reads, "nothing was read for that");
    assert!(segments(&db) <= 4, "{}", segments(&db));
    assert_eq!(db.stats().compacted_bytes, compacted, "nothing was merged for that");
    assert_eq!(there(&db), keys((0..100).chain(19_900..20_000)));
    assert_eq!(tombstones(&db), 1, "it still hides something");
    db.wait_idle().unwrap();
    assert_eq!((tombstones(&db), there(&db).len()), (0, 200));
}

#[test]
fn bounds_of_all_kinds() {
    let env = Env::in_memory(1);
    let all = || keys(0..10);
    type Range = (Bound<String>, Bound<String>);
    let cases: [(Range, Vec<u32>); 8] = [
        ((Bound::Unbounded, Bound::Unbounded), vec![]),
        ((Bound::Included(key(3)), Bound::Included(key(5))), vec![0, 1, 2, 6, 7, 8, 9]),
        ((Bound::Excluded(key(3)), Bound::Excluded(key(5))), vec![0, 1, 2, 3, 5, 6, 7, 8, 9]),
        ((Bound::Unbounded, Bound::Excluded(key(8))), vec![8, 9]),
        ((Bound::Excluded(key(1)), Bound::Unbounded), vec![0, 1]),
        ((Bound::Included(key(5)), Bound::Excluded(key(5))), (0..10).collect()),
        ((Bound::Included(key(7)), Bound::Included(key(2))), (0..10).collect()),
        ((Bound::Excluded(key(4)), Bound::Excluded(key(4))), (0..10).collect()),
    ];
    let db = manual(&env).open().unwrap();
    for (range, left) in cases {
        fill(&db, 0..10);
        let seqno = db.snapshot().seqno();
        db.delete_range(range.clone()).unwrap();
        assert_eq!(there(&db), keys(left.clone()), "{range:?}");
        assert_eq!(db.snapshot().seqno() == seqno, left.len() == 10, "an empty range is nothing");
    }
    fill(&db, 0..10);
    let long = vec![b'x'; crate::MAX_KEY_LEN + 1];
    assert!(matches!(db.delete_range(&long[..]..), Err(Error::KeyTooLong { .. })));
    assert!(matches!(db.delete_range(..&long[..]), Err(Error::KeyTooLong { .. })));
    assert!(matches!(db.delete_range(&long[..]..&b"a"[..]), Err(Error::KeyTooLong { .. })));
    assert_eq!(there(&db), all());
    let longest = vec![0xff; crate::MAX_KEY_LEN];
    db.put(&longest, "last").unwrap();
    db.delete_range::<&[u8]>((Bound::Excluded(&longest[..]), Bound::Unbounded)).unwrap();
    assert_eq!(db.get(&longest).unwrap().unwrap(), "last");
    db.delete_range(&longest[..]..=&longest[..]).unwrap();
    assert_eq!(db.get(&longest).unwrap(), None);
    db.put("", "first").unwrap();
    db.delete_range::<&str>(..).unwrap();
    assert_eq!(there(&db).len(), 0);
}

#[test]
fn in_a_batch_the_later_wins() {
    let env = Env::in_memory(1);
    let db = manual(&env).merge_operator(Append).open().unwrap();
    let other = db.keyspace("other").unwrap();
    fill(&db, 0..10);
    other.put("k", "v").unwrap();
    let mut batch = WriteBatch::new();
    batch.put(key(3), "before").delete_range(key(2)..key(7)).put(key(4), "after");
    batch.merge(key(5), "operand").delete_range_in(&other, .."z").put_in(&other, "l", "w");
    db.write(batch).unwrap();
    for step in 0..3 {
        assert_eq!(there(&db), keys([0, 1, 4, 5, 7, 8, 9]), "{step}");
        assert_eq!(db.get(key(4)).unwrap().unwrap(), "after");
        assert_eq!(db.get(key(5)).unwrap().unwrap(), "operand", "what it was merged into is gone");
        assert_eq!((other.get("k").unwrap(), other.get("l").unwrap().unwrap().len()), (None, 1));
        if step == 0 { db.flush().unwrap() } else { db.compact_range::<&[u8]>(..).unwrap() }
    }
}

#[test]
fn many_small_ranges_come_to_an_end() {
    let env = Env::in_memory(1);
    let mut db = manual(&env).open().unwrap();
    fill(&db, 0..3_000);
    db.flush().unwrap();
    db.wait_idle().unwrap();
    let snapshot = db.snapshot();
    for n in (0..3_000).step_by(2) {
        db.delete_range(key(n)..key(n + 1)).unwrap();
    }
    db.flush().unwrap();
    assert_eq!(tombstones(&db), 1_500);
    db.wait_idle().unwrap();
    assert_eq!(tombstones(&db), 1_500, "a snapshot needs what they hide");
    assert_eq!(there(&db), keys((1..3_000).step_by(2)));
    assert_eq!(snapshot.get_range::<&[u8]>(..).count(), 3_000);
    drop(snapshot);
    drop(db);
    db = manual(&env).open().unwrap();
    assert_eq!((tombstones(&db), there(&db).len()), (1_500, 1_500), "they are in the manifest");
    db.wait_idle().unwrap();
    assert_eq!((tombstones(&db), there(&db).len()), (0, 1_500));
    db = {
        drop(db);
        manual(&env).open().unwrap()
    };
    assert_eq!((tombstones(&db), there(&db).len()), (0, 1_500));
}

#[test]
fn a_database_of_nothing_but_a_range_delete_survives() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    db.put("a", "1").unwrap();
    db.flush().unwrap();
    db.delete_range("a"..).unwrap();
    drop(db);
    let db = manual(&env).open().unwrap();
    assert_eq!(db.get("a").unwrap(), None);
    db.flush().unwrap();
    drop(db);
    let db = manual(&env).open().unwrap();
    assert_eq!(db.get("a").unwrap(), None);
    db.wait_idle().unwrap();
    assert_eq!((tombstones(&db), segments(&db)), (0, 0));
}

#[test]
fn a_repair_minds_range_deletes_and_keeps_operands() {
    let env = Env::in_memory(1);
    let db = manual(&env).merge_operator(Append).open().unwrap();
    fill(&db, 0..50);
    db.put("chain", "a").unwrap();
    db.flush().unwrap();
    let snapshot = db.snapshot();
    db.delete_range(key(10)..key(20)).unwrap();
    db.merge("chain", "b").unwrap();
    db.flush().unwrap();
    db.delete_range(key(30)..key(40)).unwrap();
    db.merge("chain", "c").unwrap();
    db.merge("alone", "x").unwrap();
    db.sync().unwrap();
    drop(snapshot);
    drop(db);
    let report = manual(&env).repair_into("/new", &mut |_, _| {}).unwrap();
    assert!(report.lost.is_empty(), "{report:?}");
    let open = || Db::builder("/new").env(env.clone()).background(Background::Manual);
    assert!(matches!(open().open(), Err(Error::MergeOperator { .. })));
    let db = open().merge_operator(Append).open().unwrap();
    let mut left = keys((0..10).chain(20..30).chain(40..50));
    left.extend(["alone".to_owned(), "chain".to_owned()]);
    assert_eq!(there(&db), left);
    assert_eq!(db.get("chain").unwrap().unwrap(), "abc");
    db.merge("chain", "d").unwrap();
    db.put("alone", "y").unwrap();
    assert_eq!(db.get("chain").unwrap().unwrap(), "abcd");
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(db.get("chain").unwrap().unwrap(), "abcd");
    assert_eq!(db.get("alone").unwrap().unwrap(), "y");
}

/// Random puts, deletes of keys and of ranges, snapshots, flushes, compactions, reopens: against a map.
#[test]
fn random_ranges_against_a_model() {
    const SEEDS: u64 = if cfg!(miri) { 1 } else { 60 };
    for seed in 0..SEEDS {
        let rng = SeededEntropy::new(seed);
        let below = |n: u64| (rng.next_u64() % n) as u32;
        let env = Env::in_memory(seed);
        let strategies = [Compaction::Lazy, Compaction::Leveled, Compaction::Tiered];
        let compaction = strategies[below(3) as usize];
        let open = || {
            let builder = manual(&env).compaction(compaction).level0_runs(2);
            builder.hash_runs(seed % 4 != 0).open().unwrap()
        };
        let mut db = open();
        let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut snapshots: Vec<(crate::Snapshot, BTreeMap<String, Vec<u8>>)> = Vec::new();
        for step in 0..400_u32 {
            match below(100) {
                0..=54 => {
                    let (key, value) = (key(below(200)), vec![step as u8; 1 + below(800) as usize]);
                    db.put(&key, &value).unwrap();
                    model.insert(key, value);
                }
                55..=64 => {
                    let key = key(below(200));
                    db.delete(&key).unwrap();
                    model.remove(&key);
                }
                65..=76 => {
                    let (from, to) = (below(210), below(210));
                    db.delete_range(key(from)..key(to)).unwrap();
                    model.retain(|k, _| *k < key(from) || *k >= key(to));
                }
                77..=80 => snapshots.push((db.snapshot(), model.clone())),
                81..=83 if !snapshots.is_empty() => {
                    snapshots.swap_remove(below(snapshots.len() as u64) as usize);
                }
                84..=88 => db.flush().unwrap(),
                89..=94 => drop(db.step().unwrap()),
                95 => db.compact_range(key(below(200))..).unwrap(),
                96 => db.wait_idle().unwrap(),
                97 => {
                    snapshots.clear();
                    drop(db);
                    db = open();
                }
                _ => {}
            }
            let probe = key(below(200));
            let got = db.get(&probe).unwrap();
            assert_eq!(got.as_deref(), model.get(&probe).map(|v| &v[..]), "seed {seed}, {step}");
            for (snapshot, then) in &snapshots {
                let got = snapshot.get(&probe).unwrap();
                assert_eq!(got.as_deref(), then.get(&probe).map(|v| &v[..]), "seed {seed}, {step}");
            }
            if step % 10 == 0 {
                assert_eq!(
                    there(&db),
                    model.keys().cloned().collect::<Vec<_>>(),
                    "seed {seed}, {step}"
                );
                for (snapshot, then) in &snapshots {
                    let got = snapshot.get_range::<&[u8]>(..).map(|e| e.unwrap().0.to_vec());
                    assert!(got.eq(then.keys().map(|k| k.as_bytes().to_vec())), "{seed}, {step}");
                }
            }
        }
        snapshots.clear();
        db.flush().unwrap();
        db.wait_idle().unwrap();
        assert_eq!(there(&db), model.keys().cloned().collect::<Vec<_>>(), "seed {seed}");
        assert_eq!(tombstones(&db), 0, "seed {seed}: with {compaction:?}");
        assert!(db.verify(&mut |_, _| {}).unwrap().is_sound());
    }
}
