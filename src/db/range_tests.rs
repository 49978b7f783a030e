//! Ranges over segments: keys of many versions, bounds at the edges of blocks, and damage.

use super::*;
use crate::segment::SegmentReader;
use crate::vfs::{Entropy, Env, OpenMode, SeededEntropy};
use crate::{Background, BlockInfo, Compression, ErrorKind, IterOptions, Key, Value};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;

const DIR: &str = "/db";

fn open(env: &Env, cache_bytes: usize, compression: Compression) -> Db {
    Db::builder(DIR)
        .env(env.clone())
        .background(Background::Manual)
        .compression(compression)
        .cache_bytes(cache_bytes)
        .open()
        .unwrap()
}

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

fn rows(items: impl Iterator<Item = Result<(Key, Value)>>) -> Rows {
    items.map(|item| item.unwrap()).map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
}

#[test]
fn older_versions_at_the_end_of_a_range_are_found_in_the_next_block() {
    for compression in [Compression::None, Compression::default()] {
        for cache_bytes in [0, 8 << 20] {
            let env = Env::in_memory(1);
            let db = open(&env, cache_bytes, compression);
            let random = SeededEntropy::new(5);
            let noise = || (0..25).flat_map(|_| random.next_u64().to_le_bytes()).collect();
            db.put("a", "first").unwrap();
            db.put("z", "last").unwrap();
            let held: Vec<(Snapshot, Vec<u8>)> = (0..200)
                .map(|_| {
                    let value: Vec<u8> = noise();
                    db.put("hot", &value).unwrap();
                    (db.snapshot(), value)
                })
                .collect();
            db.flush().unwrap();
            for (snapshot, value) in &held {
                let expected = vec![(b"hot".to_vec(), value.clone())];
                assert_eq!(rows(snapshot.get_range("hot"..="hot")), expected);
                assert_eq!(rows(snapshot.get_range("b"..="hot")), expected);
                assert_eq!(rows(snapshot.get_range("hot"..="hot").rev()), expected);
                assert_eq!(rows(snapshot.get_range("hot".."z").rev()), expected);
                assert_eq!(rows(snapshot.get_range("a".."hot")).len(), 1);
                let behind = (Bound::Excluded("hot"), Bound::<&str>::Unbounded);
                assert_eq!(rows(snapshot.get_range::<&str>(behind).rev()).len(), 1);
            }
        }
    }
}

#[test]
fn ranges_over_keys_of_many_versions_equal_the_model_at_every_snapshot() {
    for seed in 0..12u64 {
        let rng = SeededEntropy::new(seed);
        let env = Env::in_memory(seed);
        let cache_bytes = [0, 30_000, 8 << 20][seed as usize % 3];
        // Runs of several segments, and of one.
        let segment_bytes = if seed % 2 == 0 { 64 << 10 } else { 64 << 20 };
        let db = Db::builder(DIR)
            .env(env)
            .background(Background::Manual)
            .compression(Compression::None)
            .cache_bytes(cache_bytes)
            .segment_bytes(segment_bytes)
            .open()
            .unwrap();
        let mut model = BTreeMap::new();
        let mut held = Vec::new();
        let name =
            |n: u64| if n == 0 { vec![] } else { vec![b'k'; n as usize % 5 + n as usize / 5] };
        for _ in 0..900 {
            let r = rng.next_u64();
            let key = name((r >> 8) % 12);
            if r.is_multiple_of(5) {
                db.delete(&key).unwrap();
                model.remove(&key);
            } else {
                let len = (r >> 24) as usize % if seed % 2 == 0 { 3000 } else { 400 };
                let value = vec![(r >> 16) as u8; len];
                db.put(&key, &value).unwrap();
                model.insert(key, value);
            }
            match (r >> 40) % 120 {
                0..30 => held.push((db.snapshot(), model.clone())),
                30 => db.flush().unwrap(),
                32 => while db.step().unwrap() {},
                33 => db.compact_range::<&[u8]>(..).unwrap(),
                34 => {
                    db.clear().unwrap();
                    model.clear();
                }
                _ => {}
            }
        }
        held.push((db.snapshot(), model));
        for round in 0..600u64 {
            let r = rng.next_u64();
            let (snapshot, model) = &held[(r >> 8) as usize % held.len()];
            let bound = |r: u64| match r % 5 {
                0 | 1 => Bound::Included(name((r >> 8) % 13)),
                2 | 3 => Bound::Excluded(name((r >> 8) % 13)),
                _ => Bound::Unbounded,
            };
            let bounds = (bound(rng.next_u64()), bound(rng.next_u64()));
            let within = |key: &&Vec<u8>| std::ops::RangeBounds::<Vec<u8>>::contains(&bounds, *key);
            let keys: Vec<_> = model.keys().filter(within).cloned().collect();
            let fill_cache = round % 2 == 0;
            let options = IterOptions { fill_cache, ..IterOptions::default() };
            let mut iter = snapshot.range_with(bounds.clone(), options);
            // What is left between the ends; a seek moves one of them to either side.
            let (mut from, mut to) = (0, keys.len());
            for _ in 0..40 {
                let r = rng.next_u64();
                let probe = name((r >> 16) % 13);
                match r % 12 {
                    0 => {
                        iter.seek(&probe);
                        from = keys.partition_point(|key| *key < probe);
                        continue;
                    }
                    1 => {
                        iter.seek_back(&probe);
                        to = keys.partition_point(|key| *key <= probe);
                        continue;
                    }
                    _ => {}
                }
                let forward = r & 16 == 0;
                let got = match (forward, r & 32 == 0) {
                    (true, true) => {
                        iter.next().map(|e| e.unwrap()).map(|(k, v)| (k.to_vec(), v.to_vec()))
                    }
                    (false, true) => {
                        iter.next_back().map(|e| e.unwrap()).map(|(k, v)| (k.to_vec(), v.to_vec()))
                    }
                    (true, false) => {
                        iter.next_entry().map(|e| e.unwrap()).map(|(k, v)| (k.to_vec(), v.to_vec()))
                    }
                    (false, false) => iter
                        .next_entry_back()
                        .map(|e| e.unwrap())
                        .map(|(k, v)| (k.to_vec(), v.to_vec())),
                };
                let at = match forward {
                    true if from < to => {
                        from += 1;
                        Some(from - 1)
                    }
                    false if from < to => {
                        to -= 1;
                        Some(to)
                    }
                    _ => None,
                };
                let want = at.map(|at| (keys[at].clone(), model[&keys[at]].clone()));
                assert_eq!(got, want, "seed {seed}, {bounds:?}");
                if want.is_none() {
                    // It gives nothing more until a seek.
                    iter.seek("");
                    from = 0;
                }
            }
        }
    }
}

#[test]
fn a_scan_ahead_pushes_nothing_out_of_the_cache() {
    let env = Env::in_memory(2);
    one_segment(&env, Compression::None);
    let db = open(&env, 120_000, Compression::None);
    db.fill_key_map().unwrap();
    let read_hot = || (0..40).for_each(|n| assert!(db.get(key(2 * n)).unwrap().is_some()));
    (0..4).for_each(|_| read_hot());
    for forward in [true, false] {
        let iter = db.get_range::<&[u8]>(..);
        let seen = if forward { rows(iter) } else { rows(iter.rev()) };
        assert_eq!(seen.len(), 3000);
        let before = db.stats();
        read_hot();
        let reads = db.stats().reads.since(&before.reads);
        assert_eq!((reads.blocks, reads.cached_blocks), (40, 40));
    }
}

fn key(n: u32) -> Vec<u8> {
    format!("key {n:06}").into_bytes()
}

/// A database of one segment, and its blocks.
fn one_segment(env: &Env, compression: Compression) -> (PathBuf, Vec<BlockInfo>) {
    let db = open(env, 0, compression);
    let rng = SeededEntropy::new(3);
    for n in 0..3000 {
        let value: Vec<u8> = (0..12).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
        db.put(key(2 * n), value).unwrap();
    }
    db.flush().unwrap();
    drop(db);
    let mut names = env.vfs.read_dir(Path::new(DIR)).unwrap();
    names.retain(|name| name.ends_with(".seg"));
    assert_eq!(names.len(), 1);
    let path = Path::new(DIR).join(&names[0]);
    let reader = SegmentReader::open_in(env, &path).unwrap();
    let blocks = reader.blocks().collect::<Result<Vec<_>>>().unwrap();
    (path, blocks)
}

#[test]
fn damage_is_met_by_ranges_that_ask_for_its_keys_and_by_no_others() {
    for compression in [Compression::None, Compression::default()] {
        for cache_bytes in [0, 8 << 20] {
            let env = Env::in_memory(2);
            let (path, blocks) = one_segment(&env, compression);
            assert!(blocks.len() > 40, "{}", blocks.len());
            let file = env.vfs.open(&path, OpenMode::ReadWrite).unwrap();
            for bad in [0, 1, blocks.len() / 2, blocks.len() - 2, blocks.len() - 1] {
                let at = blocks[bad].offset + 200;
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 8], at).unwrap();
                check_around(&open(&env, cache_bytes, compression), &blocks, bad);
                file.write_all_at(&byte, at).unwrap();
            }
        }
    }
}

#[test]
fn a_bulk_get_that_meets_damage_fails_whole_and_spoils_no_other() {
    for cache_bytes in [0, 8 << 20] {
        let env = Env::in_memory(2);
        let (path, blocks) = one_segment(&env, Compression::None);
        let bad = blocks.len() / 2;
        let file = env.vfs.open(&path, OpenMode::ReadWrite).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, blocks[bad].offset + 200).unwrap();
        file.write_all_at(&[byte[0] ^ 8], blocks[bad].offset + 200).unwrap();
        let db = open(&env, cache_bytes, Compression::None);
        let is_lost = |n: u32| {
            (&blocks[bad].first_key[..]..=&blocks[bad].last_key[..]).contains(&&key(2 * n)[..])
        };
        let (lost, sound): (Vec<u32>, Vec<u32>) = (0..3000).partition(|n| is_lost(*n));
        assert!(!lost.is_empty() && sound.len() > 2000);
        let all = |numbers: &[u32]| numbers.iter().map(|n| key(2 * n)).collect::<Vec<_>>();
        // Without the map, and with it.
        for _ in 0..2 {
            for lost in [lost[0], lost[lost.len() / 2], lost[lost.len() - 1]] {
                for around in [&sound[..5], &sound[sound.len() - 40..], &[]] {
                    let mut keys = all(around);
                    keys.insert(around.len() / 2, key(2 * lost));
                    let error = db.multi_get(&keys).unwrap_err();
                    assert!(matches!(&error, Error::Corruption { file, .. } if *file == path));
                    let found = db.multi_get(&all(around)).unwrap();
                    assert!(found.len() == around.len() && found.iter().all(Option::is_some));
                }
            }
            assert!(db.multi_get(&all(&sound)).unwrap().iter().all(Option::is_some));
            db.fill_key_map().unwrap();
        }
    }
}

fn check_around(db: &Db, blocks: &[BlockInfo], bad: usize) {
    let entries = |blocks: &[BlockInfo]| blocks.iter().map(|b| b.entries as usize).sum::<usize>();
    let (before, behind) = (entries(&blocks[..bad]), entries(&blocks[bad + 1..]));
    let last_before = bad.checked_sub(1).map(|at| blocks[at].last_key.to_vec());
    let first_behind = blocks.get(bad + 1).map(|block| block.first_key.to_vec());
    for fill_cache in [false, true] {
        let options = IterOptions { fill_cache, ..IterOptions::default() };
        // Twice: what is cached by then must not hide or spread it.
        for _ in 0..2 {
            if let Some(last) = &last_before {
                assert_eq!(rows(db.range_with(..=last.clone(), options)).len(), before);
                // Older versions of the last key may be in the bad block, where a walk back begins.
                let backward = db.range_with(..last.clone(), options).rev();
                assert_eq!(rows(backward).len(), before - 1);
            }
            if let Some(first) = &first_behind {
                let range = || db.range_with(first.clone().., options);
                assert_eq!(rows(range()).len(), behind);
                assert_eq!(rows(range().rev()).len(), behind);
            }
            let mut iter = db.range_with::<&[u8]>(.., options);
            let met = iter.by_ref().take_while(|item| item.is_ok()).count();
            assert_eq!(met, before, "forward, up to block {bad}");
            assert!(iter.next().is_none() && iter.next_back().is_none());
            // The other end was moved: this one meets the damage again.
            iter.seek_back([0xff]);
            assert!(iter.next().unwrap().is_err() && iter.next().is_none());
            if let Some(first) = &first_behind {
                iter.seek(first);
                assert_eq!(rows(iter.by_ref()).len(), behind);
            }
            let mut iter = db.range_with::<&[u8]>(.., options);
            let mut met = 0;
            let error = loop {
                match iter.next_entry_back() {
                    Some(Ok(_)) => met += 1,
                    Some(Err(error)) => break error,
                    None => panic!("the end was reached"),
                }
            };
            assert_eq!((met, error.kind()), (behind, ErrorKind::Corruption), "backward");
            assert!(iter.next().is_none() && iter.next_back().is_none());
            if last_before.is_some() {
                let middle = &blocks[bad / 2].first_key;
                iter.seek_back(middle);
                let rest = entries(&blocks[..bad / 2]) + 1;
                assert_eq!(rows(iter.by_ref().rev()).len(), rest);
            }
            // From both ends: each gives what it can reach, whatever the other met.
            let mut iter = db.range_with::<&[u8]>(.., options);
            (0..before).for_each(|_| assert!(iter.next().unwrap().is_ok()));
            (0..behind).for_each(|_| assert!(iter.next_back().unwrap().is_ok()));
            assert!(iter.next().unwrap().is_err() && iter.next().is_none());
        }
    }
}
