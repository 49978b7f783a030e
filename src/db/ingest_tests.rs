//! Files taken in and sorted entries loaded, through the whole database.

use super::DEFAULT_ID;
use crate::merge::Append;
use crate::segment::{SegmentOptions, SegmentWriter};
use crate::types::{Kind, SeqNo};
use crate::version::LEVELS;
use crate::vfs::{
    Clock, Entropy, Env, Failure, ManualClock, MemVfs, OpenMode, SeededEntropy, SimVfs,
};
use crate::{Background, Builder, Compaction, Compression, Db, Error, ErrorKind, Keyspace};
use crate::{KeyspaceOptions, Snapshot};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

pub(super) type Map = BTreeMap<String, Vec<u8>>;

pub(super) fn manual(env: &Env) -> Builder {
    Db::builder("/db")
        .env(env.clone())
        .background(Background::Manual)
        .write_buffer_bytes(64 << 10)
        .segment_bytes(64 << 10)
        .compression(Compression::None)
        .check_key_map(true)
}

pub(super) fn key(n: u32) -> String {
    format!("{n:06}")
}

pub(super) fn value(n: u32, what: u8) -> Vec<u8> {
    [&n.to_le_bytes()[..], &[what; 96]].concat()
}

/// A file of the segment writer.
pub(super) fn file(
    env: &Env,
    name: &str,
    entries: impl IntoIterator<Item = (String, Vec<u8>)>,
) -> PathBuf {
    env.vfs.create_dir_all(Path::new("/files")).unwrap();
    let path = Path::new("/files").join(name);
    let mut writer = SegmentWriter::create_in(env, &path, SegmentOptions::default()).unwrap();
    for (key, value) in entries {
        writer.put(key.as_bytes(), &value).unwrap();
    }
    writer.finish().unwrap();
    path
}

pub(super) fn entries(numbers: impl IntoIterator<Item = u32>, what: u8) -> Vec<(String, Vec<u8>)> {
    numbers.into_iter().map(|n| (key(n), value(n, what))).collect()
}

pub(super) fn map(numbers: impl IntoIterator<Item = u32>, what: u8) -> Map {
    entries(numbers, what).into_iter().collect()
}

/// Everything that is there, read in each way there is.
pub(super) fn contents(space: &Keyspace) -> Map {
    let text = |k: crate::Key| String::from_utf8(k.to_vec()).unwrap();
    let all = |entry: crate::Result<(crate::Key, crate::Value)>| {
        let (key, value) = entry.unwrap();
        (text(key), value.to_vec())
    };
    let found: Map = space.get_range::<&[u8]>(..).map(all).collect();
    let back: Map = space.get_range::<&[u8]>(..).rev().map(all).collect();
    assert_eq!(found, back);
    for (key, value) in &found {
        assert_eq!(space.get(key).unwrap().unwrap(), &value[..], "{key}");
    }
    found
}

fn of_snapshot(snapshot: &Snapshot) -> Map {
    let entry =
        |(k, v): (crate::Key, crate::Value)| (String::from_utf8(k.to_vec()).unwrap(), v.to_vec());
    let found: Map = snapshot.get_range::<&[u8]>(..).map(|e| entry(e.unwrap())).collect();
    for (key, value) in &found {
        assert_eq!(snapshot.get(key).unwrap().unwrap(), &value[..], "{key}");
    }
    found
}

pub(super) fn segment_files(env: &Env) -> usize {
    let names = env.vfs.read_dir(Path::new("/db")).unwrap();
    names.iter().filter(|name| name.ends_with(".seg")).count()
}

/// How many segments each level has.
fn levels(space: &Keyspace) -> Vec<usize> {
    let state = space.handle.inner.state.load_full();
    let levels = &state.version.trees[&space.core.id].levels;
    levels.iter().map(|runs| runs.iter().map(|run| run.segments.len()).sum()).collect()
}

#[test]
fn files_come_in_at_once_over_what_was_there() {
    for place in 0..8 {
        let env = Env::in_memory(place);
        let builder = || manual(&env).hash_runs(place != 7);
        let mut db = builder().open().unwrap();
        let mut space = db.default.clone();
        for (key, value) in entries(0..300, 1) {
            db.put(key, value).unwrap();
        }
        if place % 4 > 0 {
            db.flush().unwrap();
        }
        if place % 4 > 1 {
            db.compact_range::<&[u8]>(..).unwrap();
        }
        if place % 4 > 2 {
            db.delete_range(key(100)..key(200)).unwrap();
        }
        let before = contents(&space);
        let (snapshot, mut iter) = (db.snapshot(), db.get_range::<&[u8]>(..));
        let files = [
            file(&env, "b", entries((150..400).step_by(2), 2)),
            file(&env, "a", entries((50..149).step_by(3), 2)),
        ];
        assert_eq!(db.ingest(&files).unwrap(), 125 + 33);
        let mut model = before.clone();
        model.extend(map((150..400).step_by(2).chain((50..149).step_by(3)), 2));
        assert_eq!(contents(&space), model, "{place}");
        assert_eq!(of_snapshot(&snapshot), before, "a snapshot of before sees nothing of it");
        assert_eq!(iter.by_ref().count(), before.len());
        assert_eq!(db.snapshot().seqno(), SeqNo(snapshot.seqno().0 + 1));
        // What is written afterwards is newer.
        db.put(key(152), value(152, 3)).unwrap();
        db.delete(key(154)).unwrap();
        model.insert(key(152), value(152, 3));
        model.remove(&key(154));
        assert_eq!(contents(&space), model, "{place}");
        if place > 3 {
            drop((snapshot, iter, space));
            drop(db);
            db = builder().open().unwrap();
            space = db.default.clone();
            assert_eq!(contents(&space), model, "{place}: opened again");
        }
        db.flush().unwrap();
        db.compact_range::<&[u8]>(..).unwrap();
        db.wait_idle().unwrap();
        assert_eq!(contents(&space), model, "{place}: compacted");
        assert!(db.verify(&mut |_, _| {}).unwrap().is_sound());
        db.fill_key_map().unwrap();
        db.check_key_map().unwrap();
        assert_eq!(contents(&space), model, "{place}: the files are not needed any more");
    }
}

#[test]
fn what_is_deleted_before_or_after_is_told_apart_by_number() {
    let env = Env::in_memory(1);
    let mut db = manual(&env).open().unwrap();
    let path = |n: u32| file(&env, &format!("{n}"), entries(0..100, n as u8));
    db.put(key(500), "old").unwrap();
    db.clear().unwrap();
    db.delete_range(key(10)..key(90)).unwrap();
    db.ingest([path(1)]).unwrap();
    for step in 0..3 {
        assert_eq!(contents(&db.default), map(0..100, 1), "{step}");
        match step {
            0 => drop(std::mem::replace(&mut db, manual(&Env::in_memory(9)).open().unwrap())),
            _ => db.compact_range::<&[u8]>(..).unwrap(),
        }
        if step == 0 {
            db = manual(&env).open().unwrap();
        }
    }
    db.delete_range(key(20)..key(30)).unwrap();
    let left = || map((0..20).chain(30..100), 1);
    assert_eq!(contents(&db.default), left());
    db.flush().unwrap();
    assert_eq!(contents(&db.default), left());
    let snapshot = db.snapshot();
    db.clear().unwrap();
    assert_eq!(contents(&db.default), Map::new());
    assert_eq!(of_snapshot(&snapshot), left());
    db.ingest([path(2)]).unwrap();
    assert_eq!(contents(&db.default), map(0..100, 2));
    assert_eq!(of_snapshot(&snapshot), left());
    drop(snapshot);
    db.compact_range::<&[u8]>(..).unwrap();
    db.wait_idle().unwrap();
    assert_eq!(contents(&db.default), map(0..100, 2));
}

#[test]
fn operands_meet_what_came_in() {
    let env = Env::in_memory(1);
    let db = manual(&env).merge_operator(Append).open().unwrap();
    db.merge("a", "lost").unwrap();
    db.merge("b", "kept").unwrap();
    let path = file(&env, "f", [("a".to_owned(), b"1".to_vec()), ("c".to_owned(), b"2".to_vec())]);
    db.ingest([path]).unwrap();
    db.merge("a", "+").unwrap();
    db.merge("c", "+").unwrap();
    for step in 0..3 {
        let found = contents(&db.default);
        let found: Vec<_> = found.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        assert_eq!(found, [("a", &b"1+"[..]), ("b", b"kept"), ("c", b"2+")], "{step}");
        if step == 0 { db.flush().unwrap() } else { db.compact_range::<&[u8]>(..).unwrap() }
    }
}

#[test]
fn a_file_that_is_not_right_changes_nothing() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    for (key, value) in entries(0..100, 1) {
        db.put(key, value).unwrap();
    }
    db.flush().unwrap();
    db.put(key(7), value(7, 9)).unwrap();
    let model = contents(&db.default);
    let seqno = db.snapshot().seqno();
    let files = segment_files(&env);
    let good = file(&env, "good", entries(50..60, 2));
    let odd = |name: &str, keyspace, entries: &[(&str, u64, Kind)]| {
        let path = Path::new("/files").join(name);
        let options = SegmentOptions { keyspace, ..SegmentOptions::default() };
        let mut writer = SegmentWriter::create_in(&env, &path, options).unwrap();
        for (key, seqno, kind) in entries {
            let value: &[u8] = if *kind == Kind::Delete { b"" } else { b"a value" };
            writer.add(key.as_bytes(), SeqNo(*seqno), *kind, value).unwrap();
        }
        writer.finish().unwrap();
        path
    };
    let bytes_of = |path: &Path| {
        let file = env.vfs.open(path, OpenMode::Read).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let raw = |name: &str, bytes: &[u8]| {
        let path = Path::new("/files").join(name);
        let file = env.vfs.open(&path, OpenMode::CreateNew).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        path
    };
    let refused = |paths: &[PathBuf]| {
        let error = db.ingest(paths).unwrap_err();
        assert_eq!(segment_files(&env), files, "{error}: no file is left");
        assert_eq!(db.snapshot().seqno(), seqno, "{error}");
        assert_eq!(contents(&db.default), model, "{error}");
        error
    };
    let not_ingestible = |name: &str, error: Error| match &error {
        Error::NotIngestible { file, .. } => {
            assert!(file.ends_with(name), "{error}");
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        _ => panic!("{name}: {error}"),
    };
    let own = Path::new("/db").join(crate::version::segment_file_name(crate::SegmentId(1)));
    not_ingestible(
        &own.file_name().unwrap().to_string_lossy(),
        refused(&[good.clone(), own.clone()]),
    );
    let of_keyspace = odd("of_keyspace", Some(DEFAULT_ID), &[("a", 0, Kind::Put)]);
    not_ingestible("of_keyspace", refused(&[of_keyspace]));
    let removal = odd("removal", None, &[("a", 0, Kind::Put), ("b", 0, Kind::Delete)]);
    not_ingestible("removal", refused(&[good.clone(), removal]));
    not_ingestible("operand", refused(&[odd("operand", None, &[("a", 0, Kind::Merge)])]));
    not_ingestible("numbers", refused(&[odd("numbers", None, &[("a", 5, Kind::Put)])]));
    let versions = [("a", 5, Kind::Put), ("a", 0, Kind::Put)];
    not_ingestible("versions", refused(&[odd("versions", None, &versions)]));
    // Shared keys: at the border, within, and all.
    let next = file(&env, "next", entries(59..70, 2));
    not_ingestible("next", refused(&[next.clone(), good.clone()]));
    let inside = file(&env, "inside", entries([55], 2));
    not_ingestible("inside", refused(&[inside, good.clone()]));
    not_ingestible("good", refused(&[good.clone(), good.clone()]));
    // No segments, cut short, or damaged anywhere.
    assert!(matches!(refused(&[PathBuf::from("/files/none")]), Error::Io { .. }));
    assert!(matches!(refused(&[raw("empty", b"")]), Error::Corruption { .. }));
    assert!(matches!(refused(&[raw("text", &[b'x'; 9000])]), Error::Corruption { .. }));
    let bytes = bytes_of(&good);
    let apart = file(&env, "apart", entries(80..90, 2));
    assert!(matches!(refused(&[raw("cut", &bytes[..bytes.len() - 1])]), Error::Corruption { .. }));
    let step = if cfg!(miri) { 997 } else { 41 };
    for at in (0..bytes.len()).step_by(step) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        let error = refused(&[apart.clone(), raw(&format!("flipped {at}"), &damaged)]);
        let known = matches!(error, Error::Corruption { .. } | Error::UnsupportedFormat { .. });
        assert!(known, "{at}: {error}");
    }
    assert_eq!(db.ingest::<&Path>([]).unwrap(), 0);
    assert_eq!(db.snapshot().seqno(), seqno);
    assert_eq!(db.ingest([&good]).unwrap(), 10);
    db.drop_keyspace("no such").unwrap_err();
    let gone = db.keyspace("gone").unwrap();
    db.drop_keyspace("gone").unwrap();
    assert!(matches!(gone.ingest([&good]), Err(Error::KeyspaceDropped { .. })));
    let again = db.clone();
    db.close().unwrap();
    assert!(matches!(again.ingest([&good]), Err(Error::Closed)));
}

#[test]
fn a_load_goes_to_the_bottom_where_nothing_is() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    let space = db.keyspace("s").unwrap();
    db.put("elsewhere", "1").unwrap();
    assert_eq!(space.bulk_load(entries(1000..4000, 1)).unwrap(), 3000);
    let found = levels(&space);
    assert!(found[LEVELS - 1] > 3, "cut at the size of a segment: {found:?}");
    assert_eq!(found.iter().sum::<usize>(), found[LEVELS - 1]);
    assert_eq!(contents(&space), map(1000..4000, 1));
    // In front and behind there is room too, and it stays one run.
    space.bulk_load(entries(5000..5100, 1)).unwrap();
    space.bulk_load(entries(0..100, 1)).unwrap();
    let found = levels(&space);
    assert_eq!(found.iter().sum::<usize>(), found[LEVELS - 1]);
    let state = space.handle.inner.state.load_full();
    assert_eq!(state.version.trees[&space.core.id].levels[LEVELS - 1].len(), 1);
    drop(state);
    // A put in memory is in the way as well.
    space.put(key(6005), value(6005, 2)).unwrap();
    space.bulk_load(entries(6000..6010, 1)).unwrap();
    space.bulk_load(entries([3999, 4001], 3)).unwrap();
    assert_eq!(levels(&space)[0], 3, "one of a flush, two of loads");
    assert!(db.stats().ingested_bytes > 300_000);
    let mut model = map((0..100).chain(1000..4000).chain(5000..5100).chain(6000..6010), 1);
    model.extend(map([3999, 4001], 3));
    assert_eq!(contents(&space), model);
    drop(space);
    drop(db);
    let db = manual(&env).open().unwrap();
    let space = db.keyspace("s").unwrap();
    assert_eq!(contents(&space), model);
    db.wait_idle().unwrap();
    space.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(contents(&space), model);
    assert!(db.verify(&mut |_, _| {}).unwrap().is_sound());
}

#[test]
fn the_oldest_goes_first_also_after_a_load() {
    let env = Env::in_memory(1);
    let fifo = Compaction::Fifo { max_bytes: 1 << 40, max_age: None };
    let db = manual(&env).compaction(fifo).open().unwrap();
    db.put(key(1), value(1, 1)).unwrap();
    db.bulk_load(entries(10..20, 1)).unwrap();
    assert_eq!(levels(&db.default)[0], 2, "the bottom is what is dropped first");
}

/// A job that joins segments on both sides of a gap writes one that spans it.
#[test]
fn a_load_keeps_out_of_the_way_of_jobs_at_work() {
    let env = Env::in_memory(1);
    let db = manual(&env).compaction(Compaction::Leveled).level0_runs(2).open().unwrap();
    let inner = db.inner();
    for n in [10, 90] {
        db.bulk_load(entries([n], 1)).unwrap();
    }
    let tree = inner.state.load_full().version.trees[&DEFAULT_ID].clone();
    let bottom = &tree.levels[LEVELS - 1][0];
    let job = crate::compaction::Job {
        keyspace: DEFAULT_ID,
        inputs: vec![bottom.segments.clone()],
        action: crate::compaction::Action::Merge,
        output_level: (LEVELS - 1) as u8,
        output: crate::compaction::OutputRun::Join(Some(bottom.number())),
        piece_bytes: None,
    };
    {
        let mut background = inner.background.lock();
        background.busy.take(&job);
        background.compacting += 1;
    }
    db.bulk_load(entries(40..50, 3)).unwrap();
    assert_eq!(levels(&db.default)[0], 1, "not to the bottom now");
    inner.run_claimed(&job, crate::CompactionReason::Due, &|_| {}).unwrap();
    let mut model = map([10, 90], 1);
    model.extend(map(40..50, 3));
    assert_eq!(contents(&db.default), model);
    db.bulk_load(entries(100..110, 3)).unwrap();
    assert_eq!(levels(&db.default)[LEVELS - 1], 2, "what was taken was given back");
}

#[test]
fn a_load_that_is_not_sorted_loads_nothing() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    db.put(key(1), value(1, 1)).unwrap();
    db.flush().unwrap();
    let seqno = db.snapshot().seqno();
    let unchanged = |error: Error| {
        assert_eq!(segment_files(&env), 1, "{error}");
        assert_eq!(contents(&db.default), map([1], 1), "{error}");
        assert_eq!(db.snapshot().seqno(), seqno, "{error}");
        error
    };
    let mut numbers: Vec<u32> = (0..3000).collect();
    numbers.push(2999);
    let error = unchanged(db.bulk_load(entries(numbers.clone(), 2)).unwrap_err());
    assert!(matches!(error, Error::OutOfOrder { entry: 3000 }), "{error}");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    numbers.swap(1500, 1501);
    let error = unchanged(db.bulk_load(entries(numbers, 2)).unwrap_err());
    assert!(matches!(error, Error::OutOfOrder { entry: 1501 }), "{error}");
    let long = vec![b'x'; crate::MAX_KEY_LEN + 1];
    let error = unchanged(db.bulk_load([(&b"a"[..], ""), (&long[..], "")]).unwrap_err());
    assert!(matches!(error, Error::KeyTooLong { .. }), "{error}");
    let mut loader = db.bulk_loader().unwrap();
    loader.put("b", "1").unwrap();
    assert!(loader.put("a", "1").is_err());
    assert!(matches!(loader.put("c", "1"), Err(Error::OutOfOrder { .. })), "and so it stays");
    unchanged(loader.finish().unwrap_err());
    let mut loader = db.bulk_loader().unwrap();
    loader.put("b", "1").unwrap();
    assert_eq!(loader.entries(), 1);
    drop(loader);
    unchanged(Error::Closed);
    assert_eq!(db.bulk_loader().unwrap().finish().unwrap(), 0);
    unchanged(Error::Closed);
    let loader = db.bulk_loader().unwrap();
    db.clone().close().unwrap();
    assert_eq!(loader.finish().unwrap(), 0, "there is nothing to do");
    assert!(matches!(db.bulk_loader(), Err(Error::Closed)));
}

#[test]
fn what_is_loaded_may_expire() {
    let clock = Arc::new(ManualClock::default());
    clock.advance(Duration::from_secs(1000));
    let env = Env { clock: Arc::clone(&clock) as Arc<dyn Clock>, ..Env::in_memory(1) };
    let db = manual(&env).open().unwrap();
    let now = env.clock.unix_ms();
    let mut loader = db.bulk_loader().unwrap();
    loader.put_until("a", "1", now + 1000).unwrap();
    loader.put("b", "2").unwrap();
    loader.put_until("c", "3", now).unwrap();
    loader.put_until("d", "4", u64::MAX).unwrap();
    assert_eq!(loader.finish().unwrap(), 4);
    let usual = KeyspaceOptions::new().default_ttl(Duration::from_millis(500));
    let space = db.keyspace_with("usual", &usual).unwrap();
    space.bulk_load([("a", "1")]).unwrap();
    space.ingest([file(&env, "f", [("b".to_owned(), b"2".to_vec())])]).unwrap();
    let mut loader = space.bulk_loader().unwrap();
    loader.put_until("c", "3", u64::MAX).unwrap();
    loader.finish().unwrap();
    space.put_until("d", "4", u64::MAX).unwrap();
    space.put_until("e", "5", now + 1000).unwrap();
    let keys = |space: &Keyspace| contents(space).into_keys().collect::<Vec<_>>().concat();
    let expiries = |space: &Keyspace| {
        let (mut iter, mut found) = (space.get_range::<&[u8]>(..), Vec::new());
        while iter.next().transpose().unwrap().is_some() {
            found.push(iter.expires_ms().map(|expiry| expiry - now));
        }
        assert_eq!(iter.expires_ms(), None);
        found
    };
    for step in 0..3 {
        assert_eq!(keys(&db.default), "abd", "{step}");
        assert_eq!(expiries(&db.default), [Some(1000), None, None]);
        assert_eq!(keys(&space), "abcde", "{step}");
        assert_eq!(expiries(&space), [Some(500), Some(500), None, None, Some(1000)]);
        if step == 0 { db.flush().unwrap() } else { space.compact_range::<&[u8]>(..).unwrap() }
    }
    clock.advance(Duration::from_millis(500));
    assert_eq!((&keys(&db.default)[..], &keys(&space)[..]), ("abd", "cde"));
    clock.advance(Duration::from_millis(500));
    assert_eq!((&keys(&db.default)[..], &keys(&space)[..]), ("bd", "cd"));
    db.put_until("b", "gone", now).unwrap();
    assert_eq!(keys(&db.default), "d", "a time that has passed removes");
}

#[test]
fn a_batch_keeps_what_says_itself_when_it_expires() {
    let env = Env::in_memory(1);
    let db = manual(&env).default_ttl(Duration::from_millis(500)).open().unwrap();
    let mut batch = crate::WriteBatch::new();
    batch.put("a", "1").put_until("b", "2", u64::MAX).put_until("c", "3", 1000);
    batch.put_with_ttl("d", "4", Duration::from_secs(2)).delete("e").put_until("f", "6", 0);
    db.write(batch.clone()).unwrap();
    batch.clear();
    batch.put("g", "7");
    db.write(batch).unwrap();
    let mut iter = db.get_range::<&[u8]>(..);
    let mut found = Vec::new();
    while let Some(entry) = iter.next() {
        found.push((entry.unwrap().1.to_vec(), iter.expires_ms()));
    }
    let times = [Some(500), None, Some(1000), Some(2000), Some(500)];
    assert!(found.iter().map(|(value, _)| value[0]).eq(*b"12347"), "{found:?}");
    assert!(found.iter().map(|(_, expiry)| *expiry).eq(times), "{found:?}");
}

/// A value of parts lives as long as the last of them.
#[test]
fn the_expiry_of_what_was_merged() {
    let clock = Arc::new(ManualClock::default());
    let env = Env { clock: Arc::clone(&clock) as Arc<dyn Clock>, ..Env::in_memory(1) };
    let db = manual(&env).merge_operator(Append).open().unwrap();
    let ttl = Duration::from_millis;
    db.put_with_ttl("a", "1", ttl(10)).unwrap();
    db.merge_with_ttl("a", "2", ttl(20)).unwrap();
    db.put("b", "1").unwrap();
    db.merge_with_ttl("b", "2", ttl(20)).unwrap();
    db.put_with_ttl("c", "1", ttl(10)).unwrap();
    db.merge("c", "2").unwrap();
    db.put_with_ttl("d", "1", ttl(10)).unwrap();
    let mut iter = db.get_range::<&[u8]>(..);
    let mut found = Vec::new();
    while iter.next().transpose().unwrap().is_some() {
        found.push(iter.expires_ms());
    }
    assert_eq!(found, [Some(20), None, None, Some(10)]);
}

/// Loss of power and death of the process before each change that an ingest or a load makes: what is found
/// then is what was there before or all of it, and nothing is left behind.
#[test]
fn a_crash_leaves_all_or_nothing() {
    for case in 0..4u64 {
        let vfs = SimVfs::new(case);
        let env = vfs.env(case);
        let db = manual(&env).open().unwrap();
        let space = db.keyspace("s").unwrap();
        let before = map(0..60, 1);
        space.bulk_load(entries(0..30, 1)).unwrap();
        for (key, value) in entries(30..60, 1) {
            space.put(key, value).unwrap();
        }
        if case < 2 {
            db.sync().unwrap();
        }
        let files = [
            file(&env, "a", entries(20..50, 2)),
            file(&env, "b", entries((50..2000).step_by(2), 2)),
        ];
        let mut after = before.clone();
        after.extend(map((20..50).chain((50..2000).step_by(2)), 2));
        let images = Arc::new(AtomicU64::new(0));
        let (seen, count) = (Arc::new([AtomicU64::new(0), AtomicU64::new(0)]), Arc::clone(&images));
        let (old, new, sums) = (before.clone(), after.clone(), Arc::clone(&seen));
        let is_synced = case < 2;
        vfs.before_each_change(move |vfs, call| {
            let deaths = [(vfs.process_death(), true)];
            let losses = (0..3).map(|n| (vfs.power_loss(n ^ vfs.changes() << 4), is_synced));
            for (image, keeps_all) in losses.chain(deaths) {
                count.fetch_add(1, Ordering::Relaxed);
                let env = Env { vfs: Arc::new(image), ..Env::in_memory(7) };
                let db = manual(&env).open().unwrap_or_else(|e| panic!("{call:?}: {e}"));
                let space = db.keyspace("s").unwrap();
                let found = contents(&space);
                let is_new = found == new;
                sums[usize::from(is_new)].fetch_add(1, Ordering::Relaxed);
                if !is_new && (keeps_all || found.contains_key(&key(100))) {
                    assert!(found == old, "{call:?}: neither what was there nor all of it");
                }
                let named = db.segments().len();
                assert_eq!(segment_files(&env), named, "{call:?}: files are left");
                // It goes on as if nothing had been.
                space.put("z", "1").unwrap();
                db.flush().unwrap();
                space.compact_range::<&[u8]>(..).unwrap();
                assert_eq!(space.get("z").unwrap().unwrap(), "1");
                assert_eq!(contents(&space).len(), found.len() + 1);
            }
        });
        if case % 2 == 0 {
            space.ingest(&files).unwrap();
        } else {
            let all = (20..50).chain((50..2000).step_by(2));
            space.bulk_load(entries(all, 2)).unwrap();
        }
        vfs.forget_hook();
        assert_eq!(contents(&space), after);
        assert!(images.load(Ordering::Relaxed) > 60);
        assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) > 0), "both were seen: {seen:?}");
        // It is durable now, whatever comes.
        for n in 0..10 {
            let env = Env { vfs: Arc::new(vfs.power_loss(n)), ..Env::in_memory(7) };
            let db = manual(&env).open().unwrap();
            assert_eq!(contents(&db.keyspace("s").unwrap()), after);
        }
    }
}

/// An error at any call, once or from there on: the outcome is all or nothing, here and after a crash.
#[test]
fn an_error_leaves_all_or_nothing() {
    let mut failed = 0;
    for failure in [Failure::Refused, Failure::NoSpace, Failure::Half, Failure::Done] {
        for sticky in [false, true] {
            for k in 0.. {
                let vfs = SimVfs::new(k);
                let env = vfs.env(k);
                let db = manual(&env).open().unwrap();
                for (key, value) in entries(0..60, 1) {
                    db.put(key, value).unwrap();
                }
                let path = file(&env, "f", entries((50..1500).step_by(2), 2));
                let (before, mut after) = (map(0..60, 1), map(0..60, 1));
                after.extend(map((50..1500).step_by(2), 2));
                vfs.fail_any(k, sticky, failure);
                let calls = vfs.calls();
                let outcome = db.ingest([&path]);
                let reached = vfs.calls() - calls > k;
                vfs.heal();
                let what = format!("call {k}, {failure:?}, sticky {sticky}: {outcome:?}");
                let found = contents(&db.default);
                assert!(
                    found == if outcome.is_ok() { after.clone() } else { before.clone() },
                    "{what}"
                );
                assert_eq!(db.get(key(1400)).unwrap().is_some(), outcome.is_ok(), "{what}");
                failed += u32::from(outcome.is_err());
                let is_poisoned = db.put("z", "1").is_err();
                drop(db);
                let env = Env { vfs: Arc::new(vfs.process_death()), ..Env::in_memory(7) };
                let db = manual(&env).open().unwrap_or_else(|error| panic!("{what}: {error}"));
                let mut found = contents(&db.default);
                assert_eq!(found.remove("z").is_none(), is_poisoned, "{what}");
                let is_new = found == after;
                assert!(is_new || outcome.is_err() && found == before, "{what}");
                assert!(
                    !is_new || outcome.is_ok() || is_poisoned,
                    "{what}: it was said to have failed"
                );
                assert_eq!(segment_files(&env), db.segments().len(), "{what}");
                if !reached {
                    break;
                }
            }
        }
    }
    assert!(failed > 100, "{failed}");
}

/// The key map knows the new segments before their number is published.
#[test]
fn nobody_sees_it_before_all_do() {
    for hash_runs in [true, false] {
        let vfs = SimVfs::new(1);
        let env = vfs.env(1);
        let db = manual(&env).hash_runs(hash_runs).open().unwrap();
        for (key, value) in entries(0..100, 1) {
            db.put(key, value).unwrap();
        }
        db.flush().unwrap();
        db.fill_key_map().unwrap();
        let path = file(&env, "f", entries(50..150, 2));
        let (reader, in_map) = (db.clone(), Arc::new(AtomicU64::new(0)));
        let (was_in_map, may_see) = (Arc::clone(&in_map), Arc::new(AtomicBool::new(false)));
        let done = Arc::clone(&may_see);
        vfs.before_each_change(move |_, _| {
            let seqno = reader.snapshot().seqno();
            let keys = [key(60), key(120), key(10)];
            let many = reader.multi_get(&keys).unwrap();
            let found: Vec<_> = keys.iter().map(|key| reader.get(key).unwrap()).collect();
            assert_eq!(found, many);
            assert_eq!(of_snapshot(&reader.snapshot()), contents(&reader.default));
            let is_there = reader.inner().visible.load(Ordering::Acquire) > 100;
            assert_eq!(found[1].is_some(), is_there);
            assert_eq!(found[0].as_deref().unwrap()[4], if is_there { 2 } else { 1 });
            let trees = reader.inner().state.load_full();
            let segments = trees.version.trees[&DEFAULT_ID].segments().count();
            was_in_map.fetch_add(u64::from(segments > 1 && seqno.0 == 100), Ordering::Relaxed);
            done.store(is_there, Ordering::Relaxed);
        });
        db.ingest([path]).unwrap();
        vfs.forget_hook();
        assert!(in_map.load(Ordering::Relaxed) > 0, "a look came between map and number");
        assert!(may_see.load(Ordering::Relaxed) || db.get(key(120)).unwrap().is_some());
    }
}

/// Without the manifest, what was taken in counts as newer than what was there before.
#[test]
fn a_repair_knows_how_old_it_is() {
    for has_manifest in [true, false] {
        let env = Env::in_memory(1);
        let db = manual(&env).open().unwrap();
        // Because of it, entries keep their numbers.
        let snapshot = db.snapshot();
        for (key, value) in entries(0..100, 1) {
            db.put(key, value).unwrap();
        }
        db.flush().unwrap();
        db.bulk_load(entries(20..150, 2)).unwrap();
        for (key, value) in entries(30..40, 3) {
            db.put(key, value).unwrap();
        }
        db.flush().unwrap();
        drop(snapshot);
        drop(db);
        if !has_manifest {
            env.vfs.remove_file(Path::new("/db/MANIFEST")).unwrap();
        }
        manual(&env).repair_into("/new", &mut |_, _| {}).unwrap();
        let db = Db::builder("/new").env(env.clone()).background(Background::Manual);
        let mut model = map(0..20, 1);
        model.extend(map(20..150, 2));
        model.extend(map(30..40, 3));
        assert_eq!(contents(&db.open().unwrap().default), model, "{has_manifest}");
    }
}

/// Readers and a writer beside ingests and loads: every one of them is seen whole or not at all, and what
/// was seen once does not go back.
#[test]
fn threads_see_each_load_whole() {
    const ROUNDS: u64 = if cfg!(miri) { 3 } else { 60 };
    let env = Env::in_memory(1);
    let db = Db::builder("/db")
        .env(env.clone())
        .background(Background::Threads(1))
        .write_buffer_bytes(64 << 10)
        .segment_bytes(64 << 10)
        .level0_runs(2)
        .open()
        .unwrap();
    let names: Vec<String> = (0..40).map(|n| key(n * 7)).collect();
    let round_of = |value: Option<crate::Value>| {
        value.map_or(0, |value| u64::from_le_bytes(value[..8].try_into().unwrap()))
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (db, names, done, round_of) = (&db, &names, &done, &round_of);
        scope.spawn(move || {
            for n in 0u32.. {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                db.put(format!("other {}", n % 500), [7; 200]).unwrap();
            }
        });
        for reader in 0..2u64 {
            scope.spawn(move || {
                let rng = SeededEntropy::new(reader);
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    let (a, b) = (rng.next_u64() as usize % 40, rng.next_u64() as usize % 40);
                    let first = round_of(db.get(&names[a]).unwrap());
                    let second = round_of(db.get(&names[b]).unwrap());
                    assert!(last <= first && first <= second, "{last} {first} {second}");
                    let many = db.multi_get(names).unwrap();
                    let many: Vec<u64> = many.into_iter().map(round_of).collect();
                    assert!(many.iter().all(|round| *round == many[0]), "{many:?}");
                    assert!(second <= many[0]);
                    let range =
                        db.get_range(key(0)..key(1000)).map(|e| round_of(Some(e.unwrap().1)));
                    let range: Vec<u64> = range.collect();
                    assert!(range.iter().all(|round| *round == range[0]), "{range:?}");
                    last = range.first().copied().unwrap_or(0);
                    assert!(many[0] <= last);
                }
            });
        }
        for round in 1..=ROUNDS {
            let entries =
                || names.iter().map(|name| (name.clone(), [round.to_le_bytes(); 9].concat()));
            if round % 2 == 0 {
                db.bulk_load(entries()).unwrap();
            } else {
                db.ingest([file(&env, &format!("{round}"), entries())]).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(db.verify(&mut |_, _| {}).unwrap().is_sound());
    db.fill_key_map().unwrap();
    db.check_key_map().unwrap();
}

/// Random puts, deletes, loads, ingests, snapshots, flushes, compactions, reopens: against a map.
#[test]
fn random_loads_against_a_model() {
    const SEEDS: u64 = if cfg!(miri) { 1 } else { 60 };
    for seed in 0..SEEDS {
        let rng = SeededEntropy::new(seed);
        let below = |n: u64| (rng.next_u64() % n) as u32;
        let env = Env { vfs: Arc::new(MemVfs::default()), ..Env::in_memory(seed) };
        let strategies = [Compaction::Lazy, Compaction::Leveled, Compaction::Tiered];
        let compaction = strategies[below(3) as usize];
        let open = || {
            let builder = manual(&env).compaction(compaction).level0_runs(2);
            builder.hash_runs(seed % 4 != 0).open().unwrap()
        };
        let mut db = open();
        let mut model = Map::new();
        let mut snapshots: Vec<(Snapshot, Map)> = Vec::new();
        for step in 0..300_u32 {
            let what = step as u8;
            match below(100) {
                0..=39 => {
                    let n = below(400);
                    db.put(key(n), value(n, what)).unwrap();
                    model.insert(key(n), value(n, what));
                }
                40..=47 => {
                    let n = below(400);
                    db.delete(key(n)).unwrap();
                    model.remove(&key(n));
                }
                48..=52 => {
                    let (from, to) = (below(400), below(400));
                    db.delete_range(key(from)..key(to)).unwrap();
                    model.retain(|k, _| *k < key(from) || *k >= key(to));
                }
                53 => {
                    db.clear().unwrap();
                    model.clear();
                }
                54..=61 => {
                    let (from, by) = (below(400), 1 + below(3));
                    let numbers = || (from..from + below(300) + 1).step_by(by as usize);
                    let loaded = entries(numbers(), what);
                    db.bulk_load(loaded.clone()).unwrap();
                    model.extend(loaded);
                }
                62..=66 => {
                    let from = below(300);
                    let pieces = [
                        entries(from..from + 1 + below(50), what),
                        entries(from + 60..from + 61 + below(40), what),
                    ];
                    let name = |n: usize| format!("{step}-{n}");
                    let paths: Vec<PathBuf> =
                        (0..).zip(&pieces).map(|(n, e)| file(&env, &name(n), e.clone())).collect();
                    db.ingest(paths).unwrap();
                    model.extend(pieces.concat());
                }
                67..=72 => snapshots.push((db.snapshot(), model.clone())),
                73..=77 if !snapshots.is_empty() => {
                    snapshots.swap_remove(below(snapshots.len() as u64) as usize);
                }
                78..=81 => db.flush().unwrap(),
                82..=91 => drop(db.step().unwrap()),
                92 => db.compact_range(key(below(400))..).unwrap(),
                93 => db.wait_idle().unwrap(),
                94..=95 => {
                    snapshots.clear();
                    drop(db);
                    db = open();
                }
                _ => {}
            }
            let probe = key(below(400));
            let got = db.get(&probe).unwrap();
            assert_eq!(got.as_deref(), model.get(&probe).map(|v| &v[..]), "seed {seed}, {step}");
            for (snapshot, then) in &snapshots {
                let got = snapshot.get(&probe).unwrap();
                assert_eq!(got.as_deref(), then.get(&probe).map(|v| &v[..]), "seed {seed}, {step}");
            }
            if step % 20 == 0 {
                assert!(contents(&db.default) == model, "seed {seed}, {step}, {compaction:?}");
                for (snapshot, then) in &snapshots {
                    assert!(of_snapshot(snapshot) == *then, "seed {seed}, {step}, {compaction:?}");
                }
            }
        }
        snapshots.clear();
        db.flush().unwrap();
        db.wait_idle().unwrap();
        assert!(contents(&db.default) == model, "seed {seed}, {compaction:?}");
        assert!(db.verify(&mut |_, _| {}).unwrap().is_sound());
        assert_eq!(segment_files(&env), db.segments().len());
    }
}
