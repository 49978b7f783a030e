//! Values in value segments, through the whole database. The files themselves are tested beside
//! `segment::values`; random operations are in `tests/model.rs`.

use crate::filter::Verdict;
use crate::merge::Append;
use crate::vfs::{Entropy, Env, Failure, ManualClock, MemVfs, OpenMode, SeededEntropy, SimVfs};
use crate::{
    Background, Builder, Compaction, Compression, DamagedPlace, Db, Durability, Error, IterOptions,
    KeyspaceOptions, WriteBatch,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const DIR: &str = "/db";

fn manual(env: &Env) -> Builder {
    Db::builder(DIR)
        .env(env.clone())
        .background(Background::Manual)
        .compression(Compression::None)
        .write_buffer_bytes(1 << 20)
        .check_key_map(true)
        .separate_values_above(100)
}

/// A value that no other key, and no other time, has.
fn long(key: &str, time: u32) -> Vec<u8> {
    format!("{key}/{time} ").repeat(4000 / (key.len() + 3)).into_bytes()
}

fn value_files(env: &Env) -> BTreeSet<String> {
    let names = env.vfs.read_dir(Path::new(DIR)).unwrap();
    names.into_iter().filter(|name| name.ends_with(".val")).collect()
}

fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

fn read_file(env: &Env, name: &str) -> Vec<u8> {
    let file = env.vfs.open(&path(name), OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn write_at(env: &Env, name: &str, bytes: &[u8], at: u64) {
    let file = env.vfs.open(&path(name), OpenMode::ReadWrite).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

/// Every value, read in every way; and no file is there that nothing refers to.
fn check(db: &Db, env: &Env, model: &BTreeMap<String, Vec<u8>>) {
    check_values(db, model);
    no_strays(db, env);
}

fn check_values(db: &Db, model: &BTreeMap<String, Vec<u8>>) {
    let expected: Vec<_> = model.iter().map(|(k, v)| (k.clone().into_bytes(), v.clone())).collect();
    let own = |e: crate::Result<(crate::Key, crate::Value)>| {
        e.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()
    };
    let forth: Vec<_> = db.get_range::<&[u8]>(..).map(own).collect();
    assert!(forth == expected, "{:?}", forth.iter().map(|(k, v)| (k, v.len())).collect::<Vec<_>>());
    let mut back: Vec<_> = db.get_range::<&[u8]>(..).rev().map(own).collect();
    back.reverse();
    assert!(back == expected);
    let mut lent = Vec::new();
    let mut entries = db.get_range::<&[u8]>(..);
    while let Some(entry) = entries.next_entry() {
        let (key, value) = entry.unwrap();
        lent.push((key.to_vec(), value.to_vec()));
    }
    assert!(lent == expected);
    let options = IterOptions { keys_only: true, ..IterOptions::default() };
    let keys = db.range_with::<&[u8]>(.., options).map(own);
    assert!(keys.eq(expected.iter().map(|(key, _)| (key.clone(), Vec::new()))));
    let keys: Vec<_> = model.keys().collect();
    let all = db.multi_get(&keys).unwrap();
    let (mut buffer, snapshot) = (Vec::new(), db.snapshot());
    for (at, (key, value)) in model.iter().enumerate() {
        assert!(all[at].as_deref() == Some(value), "{key}");
        assert!(db.get(key).unwrap().as_deref() == Some(value), "{key}");
        assert!(db.get_with(key, |v| v == value).unwrap() == Some(true), "{key}");
        assert!(db.get_into(key, &mut buffer).unwrap() && buffer == *value, "{key}");
        assert!(db.contains_key(key).unwrap(), "{key}");
        assert!(snapshot.get(key).unwrap().as_deref() == Some(value), "{key}");
    }
}

fn no_strays(db: &Db, env: &Env) {
    let listed: usize = db.stats().keyspaces.iter().map(|keyspace| keyspace.value_segments).sum();
    assert_eq!(value_files(env).len(), listed);
    let names = env.vfs.read_dir(Path::new(DIR)).unwrap();
    let segments = names.iter().filter(|name| name.ends_with(".seg")).count();
    assert_eq!(segments, db.segments().len());
}

fn keys(n: u32) -> impl Iterator<Item = String> {
    (0..n).map(|n| format!("key{n:03}"))
}

#[test]
fn long_values_are_written_once_and_read_in_every_way() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    let mut model = BTreeMap::new();
    for time in 0..4 {
        for key in keys(40).skip(10 * time as usize).take(10) {
            db.put(&key, long(&key, time)).unwrap();
            db.put(key.clone() + "-short", "s").unwrap();
            model.insert(key.clone(), long(&key, time));
            model.insert(key + "-short", b"s".to_vec());
        }
        check(&db, &env, &model);
        db.flush().unwrap();
    }
    check(&db, &env, &model);
    let files = value_files(&env);
    assert_eq!(files.len(), 4);
    let stats = db.stats();
    assert!(stats.segment_bytes() < 40 * 1024, "{stats}");
    assert!(stats.flushed_bytes > 160_000 && stats.keyspaces[0].value_bytes > 150_000);
    db.compact_range::<&[u8]>(..).unwrap();
    check(&db, &env, &model);
    assert_eq!(value_files(&env), files, "a compaction leaves the values where they are");
    assert!(db.stats().compacted_bytes < 20 * 1024, "{}", db.stats());
    drop(db);
    // The length is the keyspace's, and stays.
    let db = manual(&env).open().unwrap();
    check(&db, &env, &model);
    drop(db);
    let db = Db::builder(DIR).env(env.clone()).background(Background::Manual).open().unwrap();
    db.put("more", long("more", 1)).unwrap();
    db.flush().unwrap();
    model.insert("more".into(), long("more", 1));
    assert_eq!(value_files(&env).len(), 5);
    check(&db, &env, &model);
    // Turned off, it leaves what there is; what must move comes back to the segments.
    let options = KeyspaceOptions::new().separate_values_above(u64::MAX);
    db.keyspace_with("default", &options).unwrap();
    db.put("here", long("here", 1)).unwrap();
    db.flush().unwrap();
    model.insert("here".into(), long("here", 1));
    assert_eq!(value_files(&env).len(), 5);
    for key in keys(40).filter(|key| !key.ends_with('0')) {
        db.delete(&key).unwrap();
        model.remove(&key);
    }
    db.compact_range::<&[u8]>(..).unwrap();
    db.wait_idle().unwrap();
    check(&db, &env, &model);
    assert_eq!(value_files(&env).len(), 1, "that of the one added last");
    assert!(db.verify(&mut |_, _| {}).unwrap().is_sound());
}

#[test]
fn values_of_every_length_around_the_threshold() {
    let env = Env::in_memory(1);
    let db = manual(&env).segment_bytes(64 << 10).open().unwrap();
    let other = db.keyspace_with("all", &KeyspaceOptions::new().separate_values_above(0)).unwrap();
    let lengths = [0, 1, 31, 32, 33, 99, 100, 101, 4096, 65_503, 65_504, 65_536, 300_000];
    for (n, len) in lengths.into_iter().enumerate() {
        db.put(format!("{n:02}"), vec![n as u8; len]).unwrap();
        other.put(format!("{n:02}"), vec![n as u8; len]).unwrap();
    }
    for _ in 0..2 {
        db.flush().unwrap();
        for (n, len) in lengths.into_iter().enumerate() {
            let key = format!("{n:02}");
            assert!(db.get(&key).unwrap().unwrap() == vec![n as u8; len]);
            assert!(other.get(&key).unwrap().unwrap() == vec![n as u8; len]);
        }
        db.compact_range::<&[u8]>(..).unwrap();
        other.compact_range::<&[u8]>(..).unwrap();
    }
    let stats = db.stats();
    let record = |len: usize| 20 + len as u64;
    let sum = |above: usize| lengths.iter().filter(|len| **len > above).map(|l| record(*l)).sum();
    let values = |n: usize| stats.keyspaces[n].referenced_value_bytes;
    assert_eq!((stats.keyspaces[0].name.as_str(), values(0)), ("all", sum(0)));
    assert_eq!(values(1), sum(100));
    assert!(stats.keyspaces[1].value_segments > 1, "they are closed like segments");
}

#[test]
fn a_value_segment_goes_with_its_last_reference() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    let mut model = BTreeMap::new();
    let put = |model: &mut BTreeMap<_, _>, key: String, time| {
        db.put(&key, long(&key, time)).unwrap();
        model.insert(key.clone(), long(&key, time));
    };
    keys(10).for_each(|key| put(&mut model, key, 1));
    db.flush().unwrap();
    let first = value_files(&env);
    let old = model.clone();
    let snapshot = db.snapshot();
    keys(10).for_each(|key| put(&mut model, key, 2));
    db.compact_range::<&[u8]>(..).unwrap();
    // The snapshot's versions refer to it.
    assert!(value_files(&env).is_superset(&first));
    for (key, value) in &old {
        assert!(snapshot.get(key).unwrap().as_deref() == Some(value));
    }
    let mut iterator = snapshot.get_range::<&[u8]>(..);
    assert!(iterator.next().unwrap().unwrap().1 == old["key000"]);
    drop(snapshot);
    db.compact_range::<&[u8]>(..).unwrap();
    db.wait_idle().unwrap();
    // Nothing live does, but the iterator can still read there.
    assert!(value_files(&env).is_superset(&first));
    assert!(iterator.all(|entry| {
        entry.is_ok_and(|(key, value)| value == old[std::str::from_utf8(&key).unwrap()])
    }));
    drop(iterator);
    assert!(value_files(&env).is_disjoint(&first), "{:?}", value_files(&env));
    check(&db, &env, &model);
    // Whole segments go without being read, and their values with them.
    db.delete_range("a".."z").unwrap();
    db.flush().unwrap();
    db.wait_idle().unwrap();
    check(&db, &env, &BTreeMap::new());
    let other =
        db.keyspace_with("other", &KeyspaceOptions::new().separate_values_above(9)).unwrap();
    for round in 0..2 {
        other.put("k", long("k", round)).unwrap();
        db.put("k", long("k", round)).unwrap();
        db.flush().unwrap();
        assert_eq!(value_files(&env).len(), 2);
        if round == 0 {
            other.clear().unwrap();
            db.clear().unwrap();
            db.wait_idle().unwrap();
        } else {
            db.drop_keyspace("other").unwrap();
            db.delete("k").unwrap();
            db.compact_range::<&[u8]>(..).unwrap();
        }
        no_strays(&db, &env);
        assert_eq!(value_files(&env).len(), 0);
    }
}

#[test]
fn what_little_is_left_in_a_value_segment_moves() {
    for compaction in [Compaction::Lazy, Compaction::Leveled, Compaction::Tiered] {
        let env = Env::in_memory(1);
        let db = manual(&env).compaction(compaction).open().unwrap();
        let mut model = BTreeMap::new();
        for time in 1..=2 {
            for key in keys(40).take(if time == 1 { 40 } else { 30 }) {
                db.put(&key, long(&key, time)).unwrap();
                model.insert(key.clone(), long(&key, time));
            }
            db.flush().unwrap();
        }
        let files: Vec<_> = value_files(&env).into_iter().collect();
        assert_eq!(files.len(), 2);
        db.compact_range::<&[u8]>(..).unwrap();
        check(&db, &env, &model);
        let is_lazy = compaction == Compaction::Lazy;
        assert!(!is_lazy || value_files(&env).contains(&files[0]), "a quarter of it is in use");
        let before = db.stats().compacted_bytes;
        db.wait_idle().unwrap();
        let written = db.stats().compacted_bytes - before;
        assert!(!value_files(&env).contains(&files[0]) && value_files(&env).contains(&files[1]));
        let is_little = (40_000..60_000).contains(&written);
        assert!(!is_lazy || is_little, "{written}: what was moved, and no more");
        check(&db, &env, &model);
        let usage = &db.stats().keyspaces[0];
        assert_eq!(usage.referenced_value_bytes, usage.value_bytes);
        db.wait_idle().unwrap();
        assert_eq!(db.stats().compacted_bytes - before, written, "that was all");
        drop(db);
        let db = manual(&env).open().unwrap();
        check(&db, &env, &model);
        assert!(db.verify(&mut |_, _| {}).unwrap().is_sound());
    }
}

#[test]
fn merges_and_filters_see_the_value_and_not_the_reference() {
    let env = Env::in_memory(1);
    let filter = |_: &[u8], value: &[u8]| match value.first() {
        Some(b'x') => Verdict::Remove,
        Some(b'c') => Verdict::Change(value.to_ascii_uppercase()),
        _ => Verdict::Keep,
    };
    let open = || manual(&env).merge_operator(Append).compaction_filter(filter).open().unwrap();
    let db = open();
    let mut model = BTreeMap::new();
    for key in ["a", "c", "x"] {
        db.put(key, long(key, 1)).unwrap();
    }
    db.flush().unwrap();
    let mut expected = long("a", 1);
    for n in 0..3 {
        let snapshot = db.snapshot();
        db.merge("a", [b'0' + n; 200]).unwrap();
        assert!(snapshot.get("a").unwrap().unwrap() == expected);
        expected.extend([b'0' + n; 200]);
        assert!(db.get("a").unwrap().unwrap() == expected);
        assert!(db.first().unwrap().unwrap().1 == expected);
        db.flush().unwrap();
        assert!(db.get("a").unwrap().unwrap() == expected);
        db.compact_range::<&[u8]>(..).unwrap();
        assert!(db.get("a").unwrap().unwrap() == expected);
        let before = expected.len() - 200;
        assert!(snapshot.get("a").unwrap().unwrap() == expected[..before]);
    }
    db.compact_range::<&[u8]>(..).unwrap();
    db.wait_idle().unwrap();
    model.insert("a".to_owned(), expected);
    model.insert("c".to_owned(), long("c", 1).to_ascii_uppercase());
    check(&db, &env, &model);
    assert!(db.stats().segment_bytes() < 12 * 1024, "what was merged and changed is separated too");
    drop(db);
    check(&open(), &env, &model);
}

#[test]
fn a_value_in_a_value_segment_may_expire() {
    let clock = Arc::new(ManualClock::default());
    let env = Env { clock: Arc::clone(&clock) as _, ..Env::in_memory(3) };
    let ms = Duration::from_millis(1);
    let db = manual(&env).open().unwrap();
    let mut model = BTreeMap::new();
    for key in keys(6) {
        let ttl = if *key < *"key003" { 50 * ms } else { 5000 * ms };
        db.put_with_ttl(&key, long(&key, 1), ttl).unwrap();
        model.insert(key.clone(), long(&key, 1));
    }
    check(&db, &env, &model);
    db.flush().unwrap();
    check(&db, &env, &model);
    let early = db.snapshot();
    clock.advance(49 * ms);
    check(&db, &env, &model);
    clock.advance(ms);
    assert!(early.get("key001").unwrap().unwrap() == model["key001"]);
    model.retain(|key, _| key.as_str() >= "key003");
    check(&db, &env, &model);
    drop(early);
    db.compact_range::<&[u8]>(..).unwrap();
    check(&db, &env, &model);
    assert_eq!(db.get("key001").unwrap(), None);
    assert!(!db.contains_key("key001").unwrap());
    clock.advance(5000 * ms);
    db.wait_idle().unwrap();
    check(&db, &env, &BTreeMap::new());
    assert_eq!(value_files(&env).len(), 0, "the segment went unread, and its values with it");
}

#[test]
fn keys_alone_are_read_without_their_values() {
    let vfs = SimVfs::new(1);
    let env = vfs.env(1);
    let db = manual(&env).open().unwrap();
    for key in keys(5) {
        db.put(&key, long(&key, 1)).unwrap();
    }
    let ttl = Duration::from_secs(3600);
    db.put_with_ttl("key005", long("key005", 1), ttl).unwrap();
    db.flush().unwrap();
    let keys_only = || IterOptions { keys_only: true, ..IterOptions::default() };
    // Once for the blocks, which stay in the cache. Then nothing is left to be read but values.
    for is_warm in [false, true] {
        let before = vfs.calls();
        assert_eq!(db.range_with::<&[u8]>(.., keys_only()).flatten().count(), 6);
        assert_eq!(db.range_with::<&[u8]>(.., keys_only()).rev().flatten().count(), 6);
        assert_eq!(db.range_with("key001".."key004", keys_only()).flatten().count(), 3);
        assert!(keys(6).all(|key| db.contains_key(&key).unwrap()));
        assert!(!is_warm || vfs.calls() == before, "{} calls", vfs.calls() - before);
    }
    let before = vfs.calls();
    assert_eq!(db.get_range::<&[u8]>(..).flatten().count(), 6);
    assert!(vfs.calls() - before >= 6);
    for name in value_files(&env) {
        let len = read_file(&env, &name).len() - 96;
        write_at(&env, &name, &vec![0; len], 0);
    }
    assert_eq!(db.range_with::<&[u8]>(.., keys_only()).flatten().count(), 6);
    assert_eq!(db.range_with::<&[u8]>(.., keys_only()).rev().flatten().count(), 6);
    assert!(db.contains_key("key002").unwrap() && !db.contains_key("none").unwrap());
    assert!(db.get("key002").is_err() && db.first().is_err());
}

/// Keys with a value each, half of them in value segments; one of these is damaged.
fn damaged(env: &Env) -> (Db, BTreeMap<String, Vec<u8>>, String) {
    let db = manual(env).open().unwrap();
    let mut model = BTreeMap::new();
    for key in keys(20) {
        let value = if key.ends_with(['1', '3', '5', '7', '9']) { long(&key, 1) } else { vec![1] };
        db.put(&key, &value).unwrap();
        model.insert(key, value);
    }
    db.flush().unwrap();
    let name = value_files(env).into_iter().next().unwrap();
    let text = b"key007/1 ";
    let bytes = read_file(env, &name);
    let at = bytes.windows(text.len()).position(|window| window == text).unwrap();
    write_at(env, &name, &[bytes[at + 50] ^ 4], at as u64 + 50);
    (db, model, name)
}

#[test]
fn a_damaged_value_costs_its_key_alone_and_is_named() {
    let env = Env::in_memory(1);
    let (db, mut model, name) = damaged(&env);
    for (key, value) in &model {
        match db.get(key) {
            Ok(read) => assert!(read.unwrap() == *value, "{key}"),
            Err(Error::Corruption { file, .. }) => {
                assert_eq!((key.as_str(), file), ("key007", path(&name)));
            }
            Err(error) => panic!("{error}"),
        }
    }
    let items: Vec<_> = db.get_range::<&[u8]>(..).collect();
    assert!(items.len() == 8 && matches!(&items[7], Err(Error::Corruption { .. })));
    let report = db.verify(&mut |_, _| {}).unwrap();
    assert_eq!(report.damage.len(), 1);
    assert_eq!((report.damage[0].file.clone(), report.value_segments[0].values), (path(&name), 9));
    // So is what comes over the footer, which was read long ago.
    let bytes = read_file(&env, &name);
    let at = bytes.len() - 60;
    write_at(&env, &name, &[bytes[at] ^ 4], at as u64);
    let report = db.verify(&mut |_, _| {}).unwrap();
    let footer = report.damage.iter().find(|place| place.offset == bytes.len() as u64 - 96);
    assert!(report.damage.len() == 2 && footer.is_some(), "{:?}", report.damage);
    write_at(&env, &name, &bytes[at..=at], at as u64);
    // Compactions go on; what should move, but the damaged one, moves; and that ends.
    for key in keys(20).filter(|key| !key.ends_with(['7', '9'])) {
        db.put(&key, "new").unwrap();
        model.insert(key, b"new".to_vec());
    }
    db.compact_range::<&[u8]>(..).unwrap();
    // The work is done, so waiting for it succeeds; what it could not read is named.
    db.wait_idle().unwrap();
    let stats = db.stats();
    let left = stats.background_error.as_ref().unwrap();
    assert!(matches!(left, Error::Corruption { file, .. } if *file == path(&name)), "{left}");
    assert_eq!(stats.quarantined.len(), 0);
    assert!(value_files(&env).contains(&name) && value_files(&env).len() == 2);
    let compacted = stats.compacted_bytes;
    db.wait_idle().unwrap();
    assert_eq!(db.stats().compacted_bytes, compacted, "it is not tried again and again");
    for (key, value) in &model {
        match db.get(key) {
            Ok(read) => assert!(read.unwrap() == *value, "{key}"),
            Err(error) => assert!(key == "key007", "{error}"),
        }
    }
    drop(db);
    // Closed, the same is found; a repair saves the rest.
    let report = manual(&env).verify(&mut |_, _| {}).unwrap();
    assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
    assert_eq!(report.damage[0].file, path(&name));
    let report = manual(&env).repair_into("/new", &mut |_, _| {}).unwrap();
    assert_eq!(report.lost.len(), 1, "{report:?}");
    let place = &report.lost[0].place;
    let key = b"key007".to_vec();
    assert_eq!((&place.file, &place.key_range), (&path(&name), &Some((key.clone(), key))));
    model.remove("key007");
    let new = Db::builder("/new").env(env.clone()).background(Background::Manual).open().unwrap();
    let found: BTreeMap<_, _> = new
        .get_range::<&[u8]>(..)
        .map(|e| e.map(|(k, v)| (String::from_utf8(k.to_vec()).unwrap(), v.to_vec())).unwrap())
        .collect();
    assert!(found == model);
    assert!(new.stats().keyspaces[0].value_segments > 0, "as its options say");
}

#[test]
fn waiting_for_background_work_succeeds_beside_damaged_values() {
    let env = Env::in_memory(1);
    let db = manual(&env).write_buffer_bytes(8 << 20).open().unwrap();
    // Many keyspaces, in each of which a value segment is to be emptied that has damaged values.
    let spaces: Vec<_> = (0..20)
        .map(|n| {
            let options = KeyspaceOptions::new().separate_values_above(100);
            let space = db.keyspace_with(&format!("{n:02}"), &options).unwrap();
            keys(10).for_each(|key| space.put(&key, long(&key, 1)).unwrap());
            space
        })
        .collect();
    db.flush().unwrap();
    for space in &spaces {
        keys(7).for_each(|key| space.delete(&key).unwrap());
    }
    db.flush().unwrap();
    drop(spaces);
    let names = value_files(&env);
    drop(db);
    for name in &names {
        let bytes = read_file(&env, name);
        let at = bytes.windows(6).position(|window| window == b"key008").unwrap();
        write_at(&env, name, &[bytes[at + 50] ^ 4], at as u64 + 50);
    }
    let db = manual(&env).background(Background::Threads(1)).open().unwrap();
    db.wait_idle().unwrap();
    for name in db.keyspaces().iter().filter(|name| *name != "default") {
        let space = db.keyspace(name).unwrap();
        for key in keys(10).skip(7) {
            match space.get(&key) {
                Ok(value) => assert!(value.unwrap() == long(&key, 1)),
                Err(error) => {
                    assert!(key == "key008" && matches!(error, Error::Corruption { .. }));
                }
            }
        }
    }
    assert_eq!(
        value_files(&env).intersection(&names).count(),
        20,
        "nothing unreadable is thrown away"
    );
    let usage = db.stats();
    let referenced = usage.keyspaces.iter().map(|keyspace| keyspace.referenced_value_bytes);
    assert!(referenced.sum::<u64>() < 20 * 13_000 && usage.background_error.is_some());
    drop(db);
}

#[test]
fn a_damaged_value_stays_as_it_is_when_it_is_to_be_merged_or_filtered() {
    let env = Env::in_memory(1);
    let filter = |_: &[u8], value: &[u8]| match value {
        [b'k', b'e', b'y', ..] => Verdict::Remove,
        _ => Verdict::Keep,
    };
    let (db, _, name) = damaged(&env);
    drop(db);
    let text = b"key009/1 ";
    let bytes = read_file(&env, &name);
    let at = bytes.windows(text.len()).position(|window| window == text).unwrap();
    write_at(&env, &name, &[bytes[at + 50] ^ 4], at as u64 + 50);
    let db = manual(&env).merge_operator(Append).compaction_filter(filter).open().unwrap();
    db.merge("key007", "x").unwrap();
    db.merge("key008", "x").unwrap();
    db.flush().unwrap();
    let is_it =
        |error: &Error| matches!(error, Error::Corruption { file, .. } if *file == path(&name));
    // It says so, and all else is done.
    assert!(is_it(&db.compact_range::<&[u8]>(..).unwrap_err()));
    db.wait_idle().unwrap();
    for key in ["key007", "key009"] {
        assert!(is_it(&db.get(key).unwrap_err()), "{key}");
        assert!(key == "key007" || db.contains_key(key).unwrap());
    }
    assert_eq!(db.get("key008").unwrap().unwrap(), [1, b'x']);
    assert!(db.get("key001").unwrap().is_none(), "the filter removed it");
    assert_eq!(db.stats().quarantined.len(), 0);
    // Mended, it is merged and filtered as if nothing had been.
    drop(db);
    let mut bytes = read_file(&env, &name);
    for text in [&b"key007/1 "[..], b"key009/1 "] {
        let at = bytes.windows(text.len()).position(|window| window == text).unwrap() + 50;
        bytes[at] ^= 4;
        write_at(&env, &name, &bytes[at..=at], at as u64);
    }
    let db = manual(&env).merge_operator(Append).compaction_filter(filter).open().unwrap();
    assert_eq!(db.get("key007").unwrap().unwrap(), [&long("key007", 1)[..], b"x"].concat());
    db.compact_range::<&[u8]>(..).unwrap();
    assert!(db.get("key007").unwrap().is_none() && db.get("key009").unwrap().is_none());
}

#[test]
fn a_lost_or_swapped_value_segment_is_noticed_when_the_database_is_opened() {
    for what in ["lost", "swapped", "cut", "footer"] {
        let env = Env::in_memory(1);
        let db = manual(&env).open().unwrap();
        for time in 0..2 {
            db.put(format!("{time}"), long("k", time)).unwrap();
            db.put(format!("{time}-short"), "short").unwrap();
            db.flush().unwrap();
        }
        drop(db);
        let names: Vec<_> = value_files(&env).into_iter().collect();
        let bytes = read_file(&env, &names[0]);
        match what {
            "lost" => env.vfs.remove_file(&path(&names[0])).unwrap(),
            // Of the same length, and sound.
            "swapped" => write_at(&env, &names[0], &read_file(&env, &names[1]), 0),
            "cut" => env
                .vfs
                .open(&path(&names[0]), OpenMode::ReadWrite)
                .and_then(|file| file.set_len(bytes.len() as u64 - 1))
                .unwrap(),
            _ => write_at(&env, &names[0], &[bytes[bytes.len() - 50] ^ 1], bytes.len() as u64 - 50),
        }
        let refused = manual(&env).open().unwrap_err();
        let is_it = |file: &PathBuf| *file == path(&names[0]);
        assert!(
            matches!(&refused, Error::Corruption { file, .. } if is_it(file)),
            "{what}: {refused}"
        );
        let report = manual(&env).verify(&mut |_, _| {}).unwrap();
        assert_eq!(report.damage.len(), 1, "{what}: {:?}", report.damage);
        assert!(is_it(&report.damage[0].file), "{what}");
        let range = report.damage[0].key_range.clone();
        assert_eq!(range, Some((b"0".to_vec(), b"0-short".to_vec())), "{what}");
        let report = manual(&env).repair_into("/new", &mut |_, _| {}).unwrap();
        let new = Db::builder("/new").env(env.clone()).open().unwrap();
        let is_mended = what == "footer";
        assert_eq!(report.lost.len(), usize::from(!is_mended), "{what}: {report:?}");
        assert_eq!(new.get("0").unwrap().is_some(), is_mended, "{what}");
        assert!(new.get("1").unwrap().unwrap() == long("k", 1), "{what}");
        assert_eq!(new.get("0-short").unwrap().unwrap(), "short", "{what}");
    }
}

#[test]
fn repair_takes_an_older_version_for_a_lost_value_and_says_so() {
    let env = Env::in_memory(1);
    let db = manual(&env).merge_operator(Append).open().unwrap();
    for time in 0..2 {
        db.put("k", long("k", time)).unwrap();
        db.put("m", long("m", time)).unwrap();
        db.flush().unwrap();
    }
    db.merge("m", "+").unwrap();
    drop(db);
    let names: Vec<_> = value_files(&env).into_iter().collect();
    env.vfs.remove_file(&path(&names[1])).unwrap();
    let report = manual(&env).repair_into("/new", &mut |_, _| {}).unwrap();
    let older: u64 = report.lost.iter().map(|lost| lost.older).sum();
    assert_eq!((report.lost.len(), older), (2, 2), "{report:?}");
    let is_named = |place: &DamagedPlace| place.file == path(&names[1]);
    assert!(report.lost.iter().all(|lost| is_named(&lost.place)), "{report:?}");
    assert!(!report.is_complete());
    let new = Db::builder("/new").env(env.clone()).merge_operator(Append).open().unwrap();
    assert!(new.get("k").unwrap().unwrap() == long("k", 0));
    assert!(new.get("m").unwrap().unwrap() == [&long("m", 0)[..], b"+"].concat());
}

#[test]
fn files_that_nothing_refers_to_are_removed_at_the_next_opening() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    db.put("k", long("k", 1)).unwrap();
    db.flush().unwrap();
    drop(db);
    let names = value_files(&env);
    for name in ["00000000000000000077.val", "notes.val"] {
        let file = env.vfs.open(&path(name), OpenMode::CreateNew).unwrap();
        file.write_all_at(b"whatever", 0).unwrap();
    }
    let report = manual(&env).verify(&mut |_, _| {}).unwrap();
    assert!(report.is_sound() && report.notices.iter().any(|notice| notice.contains("77.val")));
    let db = manual(&env).open().unwrap();
    let left: BTreeSet<_> = names.into_iter().chain(["notes.val".to_owned()]).collect();
    assert_eq!(value_files(&env), left, "other names are left alone");
    assert!(db.get("k").unwrap().unwrap() == long("k", 1));
    drop(db);
    // With values but without a manifest it is no directory for a new database.
    env.vfs.remove_file(&path("MANIFEST")).unwrap();
    for name in env.vfs.read_dir(Path::new(DIR)).unwrap() {
        if !name.ends_with(".val") {
            env.vfs.remove_file(&path(&name)).unwrap();
        }
    }
    assert!(matches!(manual(&env).open(), Err(Error::NotADatabase { .. })));
}

#[test]
fn a_failed_flush_or_compaction_leaves_no_values_behind() {
    let mut failures = 0;
    for k in 0..50 {
        for failure in [Failure::Refused, Failure::Half] {
            let faulty = SimVfs::new(0);
            let env = faulty.env(3);
            let open = || manual(&env).level0_runs(2).check_key_map(false).open();
            let db = open().unwrap();
            let mut model = BTreeMap::new();
            for time in 0..3 {
                for key in keys(12).skip(time as usize) {
                    db.put(&key, long(&key, time)).unwrap();
                    model.insert(key.clone(), long(&key, time));
                }
                if time < 2 {
                    db.flush().unwrap();
                }
            }
            faulty.fail(k, false, failure);
            let outcome = db.flush().and_then(|()| db.wait_idle());
            faulty.heal();
            failures += u32::from(outcome.is_err());
            let is_poisoned = db.stats().poisoned.is_some();
            if outcome.is_err() && !is_poisoned {
                // It was no removal that failed.
                db.flush().unwrap();
                no_strays(&db, &env);
            }
            let db = if is_poisoned {
                drop(db);
                open().unwrap_or_else(|error| panic!("change {k}: {error}"))
            } else {
                db
            };
            db.flush().and_then(|()| db.wait_idle()).unwrap();
            check_values(&db, &model);
            drop(db);
            check(&open().unwrap(), &env, &model);
        }
    }
    assert!(failures > 20, "{failures}");
}

type State = BTreeMap<String, Vec<u8>>;

/// What a crash left must be the state before or after the write under way.
fn recovers(image: MemVfs, allowed: &[State], further: bool) -> Result<(), String> {
    let env = Env { vfs: Arc::new(image), ..Env::in_memory(5) };
    let db = manual(&env).open().map_err(|error| error.to_string())?;
    let mut found = State::new();
    for entry in db.get_range::<&[u8]>(..) {
        let (key, value) = entry.map_err(|error| error.to_string())?;
        found.insert(String::from_utf8(key.to_vec()).unwrap(), value.to_vec());
    }
    if !allowed.contains(&found) {
        let show = |state: &State| {
            let entry = |(k, v): (&String, &Vec<u8>)| format!("{k}:{}", v.len());
            state.iter().map(entry).collect::<Vec<_>>().join(" ")
        };
        return Err(format!("{} is none of {:?}", show(&found), allowed.iter().map(show)));
    }
    no_strays(&db, &env);
    if further {
        let compacted = db.compact_range::<&[u8]>(..).and_then(|()| db.wait_idle());
        compacted.map_err(|error| error.to_string())?;
        check(&db, &env, &found);
    }
    let report = db.verify(&mut |_, _| {}).map_err(|error| error.to_string())?;
    if report.is_sound() { Ok(()) } else { Err(format!("{:?}", report.damage)) }
}

#[test]
fn power_is_lost_at_every_change() {
    let mut images = 0;
    for seed in 0..4 {
        let vfs = SimVfs::new(seed);
        let env = vfs.env(seed);
        let db =
            manual(&env).level0_runs(1 + seed as usize % 3).check_key_map(false).open().unwrap();
        let allowed = Arc::new(Mutex::new((vec![State::new()], None::<String>, 0)));
        {
            let allowed = Arc::clone(&allowed);
            vfs.before_each_change(move |vfs, call| {
                let mut allowed = allowed.lock().unwrap();
                if allowed.1.is_none() {
                    let image = vfs.power_loss(seed << 32 | vfs.changes());
                    let outcome = recovers(image, &allowed.0, vfs.changes().is_multiple_of(4));
                    allowed.1 = outcome.err().map(|what| format!("before {call:?}: {what}"));
                    allowed.2 += 1;
                }
            });
        }
        let rng = SeededEntropy::new(seed);
        let mut state = State::new();
        for step in 0..50_u32 {
            let r = rng.next_u64();
            let key = format!("k{}", r % 7);
            match (r >> 8) % 10 {
                0..=5 => {
                    let len = [5, 90, 110, 3000, 40_000][(r >> 16) as usize % 5];
                    let value: Vec<u8> = long(&key, step).repeat(12)[..len].to_vec();
                    let mut next = state.clone();
                    next.insert(key.clone(), value.clone());
                    allowed.lock().unwrap().0 = vec![state, next.clone()];
                    let mut batch = WriteBatch::new();
                    batch.put(&key, &value);
                    db.write_with(batch, Durability::Sync).unwrap();
                    state = next;
                }
                6 => {
                    let mut next = state.clone();
                    next.remove(&key);
                    allowed.lock().unwrap().0 = vec![state, next.clone()];
                    let mut batch = WriteBatch::new();
                    batch.delete(&key);
                    db.write_with(batch, Durability::Sync).unwrap();
                    state = next;
                }
                7 => db.flush().unwrap(),
                8 => db.compact_range::<&[u8]>(..).unwrap(),
                _ => db.wait_idle().unwrap(),
            }
            allowed.lock().unwrap().0 = vec![state.clone()];
        }
        vfs.forget_hook();
        check(&db, &env, &state);
        let allowed = allowed.lock().unwrap();
        assert_eq!(allowed.1, None, "seed {seed}");
        images += allowed.2;
    }
    assert!(images > 400, "{images}");
}

#[test]
fn a_cap_on_bytes_counts_values_too() {
    let env = Env::in_memory(1);
    let max_bytes = 200_000;
    let fifo = Compaction::Fifo { max_bytes, max_age: None };
    let db = manual(&env).compaction(fifo).open().unwrap();
    for time in 0..12 {
        for key in keys(10) {
            let key = format!("{time:02}/{key}");
            db.put(&key, long(&key, time)).unwrap();
        }
        db.flush().unwrap();
        db.wait_idle().unwrap();
        let bytes: u64 =
            value_files(&env).iter().map(|name| read_file(&env, name).len() as u64).sum();
        assert!(bytes <= max_bytes, "{bytes}");
        no_strays(&db, &env);
    }
    assert!(value_files(&env).len() >= 3);
    assert!(db.get("00/key000").unwrap().is_none() && db.get("11/key009").unwrap().is_some());
}

#[test]
fn reads_beside_overwrites_and_collection_find_every_value() {
    const ROUNDS: u32 = if cfg!(miri) { 3 } else { 60 };
    let env = Env::in_memory(1);
    let db = manual(&env)
        .background(Background::Threads(2))
        .write_buffer_bytes(128 << 10)
        .level0_runs(2)
        .check_key_map(false)
        .open()
        .unwrap();
    let is_of = |key: &[u8], value: &[u8]| value.len() > 3000 && value.starts_with(key);
    for key in keys(40) {
        db.put(&key, long(&key, 0)).unwrap();
    }
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (db, done) = (&db, &done);
            scope.spawn(move || {
                let mut rounds = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) || rounds < 2 {
                    let snapshot = db.snapshot();
                    for key in keys(40) {
                        let value = db.get(&key).unwrap().unwrap();
                        assert!(is_of(key.as_bytes(), &value), "{key}");
                    }
                    let of_now = || db.get_range::<&[u8]>(..);
                    let source =
                        if reader == 0 { snapshot.get_range::<&[u8]>(..) } else { of_now() };
                    let mut count = 0;
                    for entry in source {
                        let (key, value) = entry.unwrap();
                        assert!(is_of(&key, &value));
                        count += 1;
                    }
                    assert_eq!(count, 40);
                    rounds += 1;
                }
            });
        }
        let rng = SeededEntropy::new(1);
        for time in 1..=ROUNDS {
            for _ in 0..20 {
                let key = format!("key{:03}", rng.next_u64() % 40);
                db.put(&key, long(&key, time)).unwrap();
            }
            if time % 20 == 0 {
                db.compact_range::<&[u8]>(..).unwrap();
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    db.flush().unwrap();
    db.wait_idle().unwrap();
    let usage = &db.stats().keyspaces[0];
    assert!(usage.value_bytes <= 2 * usage.referenced_value_bytes, "{usage:?}");
    no_strays(&db, &env);
}
