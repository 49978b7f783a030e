//! Reads of ranges of which much was deleted, and what becomes of such a range when nothing else is done.

use crate::vfs::{Entropy, Env, ManualClock, SeededEntropy};
use crate::{Background, Builder, Compression, Db, RangeIter};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

fn builder(env: &Env) -> Builder {
    Db::builder("/db")
        .env(env.clone())
        .background(Background::Manual)
        .segment_bytes(64 << 10)
        .compression(Compression::None)
}

fn key(n: u32) -> String {
    format!("{n:06}")
}

fn numbers(range: impl Iterator<Item = crate::Result<(crate::Key, crate::Value)>>) -> Vec<u32> {
    let number = |key: &[u8]| std::str::from_utf8(key).unwrap().parse().unwrap();
    range.map(|entry| number(&entry.unwrap().0)).collect()
}

#[test]
fn a_range_read_passes_by_what_was_deleted() {
    const MANY: u32 = 20_000;
    let env = Env::in_memory(1);
    let db = builder(&env).open().unwrap();
    let fill = |n: u32| db.put(key(n), n.to_le_bytes().repeat(25)).unwrap();
    (0..MANY).for_each(fill);
    db.flush().unwrap();
    db.compact_range::<&[u8]>(..).unwrap();
    let before = db.snapshot();
    db.delete_range(key(10)..key(MANY - 10)).unwrap();
    let looks = || {
        let stats = db.stats();
        stats.cache_hits + stats.cache_misses
    };
    let mut left: Vec<u32> = (0..10).chain(MANY - 10..MANY).collect();
    let check = |left: &[u32], what: &str| {
        let start = looks();
        assert_eq!(numbers(db.get_range::<&[u8]>(..)), left, "{what}");
        assert_eq!(numbers(db.get_range(key(20)..).take(1)).first(), left.get(10), "{what}");
        let middle = looks();
        let mut back = numbers(db.get_range::<&[u8]>(..).rev());
        back.reverse();
        assert_eq!(back, left, "{what}");
        let (forth, back) = (middle - start, looks() - middle);
        assert!(forth < 60 && back < 60, "{what}: {forth} and {back} looks at blocks");
    };
    check(&left, "deleted in a memtable");
    db.flush().unwrap();
    check(&left, "deleted in the manifest");
    // What is newer shows, wherever it is.
    fill(5000);
    left.insert(10, 5000);
    check(&left, "and one put");
    db.flush().unwrap();
    fill(12_000);
    left.insert(11, 12_000);
    check(&left, "and one flushed");
    assert_eq!(before.get_range::<&[u8]>(..).count(), MANY as usize);
    assert_eq!(before.get_range::<&[u8]>(..).rev().count(), MANY as usize);
}

/// Steps from both ends until they meet.
fn from_both_ends(mut range: RangeIter, turns: &SeededEntropy) -> Vec<u32> {
    let (mut front, mut back) = (Vec::new(), Vec::new());
    loop {
        let is_front = turns.next_u64() & 64 == 0;
        let next = if is_front { range.next() } else { range.next_back() };
        let Some(entry) = next else { break };
        if is_front { &mut front } else { &mut back }.extend(numbers(std::iter::once(entry)));
    }
    back.reverse();
    front.extend(back);
    front
}

#[test]
fn deleted_ranges_hide_what_is_older_and_nothing_else() {
    const KEYS: u32 = 1000;
    const SEEDS: u64 = if cfg!(miri) { 1 } else { 60 };
    for seed in 0..SEEDS {
        let random = SeededEntropy::new(seed);
        let below = |n: u32| (random.next_u64() >> 16) as u32 % n;
        let env = Env::in_memory(seed);
        let db = builder(&env).level0_runs(2 + below(4) as usize).open().unwrap();
        let mut model = BTreeMap::new();
        let mut snapshots = Vec::new();
        for step in 0..40 {
            let from = below(KEYS);
            let to = from + below([20, 200, KEYS][below(3) as usize]);
            match below(8) {
                0..=2 => {
                    let by = 1 + below(3) as usize;
                    for n in (from..to.min(KEYS)).step_by(by) {
                        db.put(key(n), [step; 150]).unwrap();
                        model.insert(n, step);
                    }
                }
                3 | 4 => {
                    db.delete_range(key(from)..key(to)).unwrap();
                    model.retain(|n, _| *n < from || *n >= to);
                }
                5 => db.flush().unwrap(),
                6 => {
                    db.step().unwrap();
                }
                _ => snapshots.push((db.snapshot(), model.clone())),
            }
            if snapshots.len() > 3 {
                snapshots.remove(below(3) as usize);
            }
            let all: Vec<u32> = model.keys().copied().collect();
            assert_eq!(from_both_ends(db.get_range::<&[u8]>(..), &random), all, "seed {seed}");
            let some: Vec<u32> = model.range(from..to).map(|(n, _)| *n).collect();
            assert_eq!(numbers(db.get_range(key(from)..key(to))), some, "seed {seed}");
            let mut back = numbers(db.get_range(key(from)..key(to)).rev());
            back.reverse();
            assert_eq!(back, some, "seed {seed}");
            for (snapshot, then) in &snapshots {
                let all: Vec<u32> = then.keys().copied().collect();
                let range = snapshot.get_range::<&[u8]>(..);
                assert_eq!(from_both_ends(range, &random), all, "seed {seed}");
                let values: Vec<u8> =
                    snapshot.get_range::<&[u8]>(..).map(|entry| entry.unwrap().1[0]).collect();
                assert!(values.iter().eq(then.values()), "seed {seed}");
            }
        }
    }
}

#[test]
fn what_was_deleted_goes_though_nothing_else_is_written() {
    let clock = Arc::new(ManualClock::default());
    let env = Env { clock: Arc::clone(&clock) as _, ..Env::in_memory(3) };
    let db = builder(&env).background(Background::Threads(1)).open().unwrap();
    (0..2000).for_each(|n| db.put(key(n), [0; 100]).unwrap());
    db.flush().unwrap();
    db.delete_range::<&[u8]>(..).unwrap();
    let is_gone = || {
        let state = db.inner().state.load();
        let tree = &state.version.trees[&super::DEFAULT_ID];
        tree.segments().count() == 0 && tree.deletes.is_empty()
    };
    for _ in 0..2000 {
        // Time passes, of which the threads take notice now and then.
        clock.advance(Duration::from_secs(1));
        if is_gone() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(is_gone(), "it is still there");
    // One more soon after is left alone for a while.
    db.put("k", "v").unwrap();
    db.delete_range("a".."b").unwrap();
    assert!(!db.inner().freeze_deletes().unwrap(), "it was frozen again at once");
    clock.advance(Duration::from_secs(10));
    while db.inner().state.load().active.marks.has_range_deletes() {
        db.inner().freeze_deletes().unwrap();
    }
    assert_eq!(db.get("k").unwrap().unwrap(), "v");
}
