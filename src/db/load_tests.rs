//! Files and sorted entries that come in beside other work, and files that are odd but right.

use super::DEFAULT_ID;
use super::ingest_tests::{Map, contents, entries, file, key, manual, map, segment_files, value};
use crate::compaction::Mood;
use crate::segment::fuzzing::reseal;
use crate::segment::{SegmentOptions, SegmentWriter};
use crate::types::{Kind, SeqNo};
use crate::version::{LEVELS, Segment};
use crate::vfs::{Call, Env, OpenMode, SimVfs};
use crate::{Db, Error, Key, KeyspaceOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[test]
fn names_of_files_do_not_matter_nor_does_it_that_one_was_taken_before() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    let place = |dir: &str, entries| {
        let dir = Path::new("/files").join(dir);
        env.vfs.create_dir_all(&dir).unwrap();
        let path = dir.join("00000000000000000001.seg");
        let made = file(&env, "made", entries);
        env.vfs.rename(&made, &path).unwrap();
        path
    };
    let files = [place("a", entries(50..90, 1)), place("b", entries(0..50, 1))];
    for _ in 0..3 {
        assert_eq!(db.ingest(&files).unwrap(), 90);
        assert_eq!(contents(&db.default), map(0..90, 1));
        db.put(key(3), "between").unwrap();
    }
    db.ingest(&files).unwrap();
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(contents(&db.default), map(0..90, 1));
    assert_eq!(segment_files(&env), db.segments().len());
}

/// A segment by itself has at least one entry, so that there is none to take in.
#[test]
fn a_file_that_was_not_finished_is_refused() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    let path = Path::new("/unfinished");
    let mut writer = SegmentWriter::create_in(&env, path, SegmentOptions::default()).unwrap();
    let refused = || assert!(matches!(db.ingest([path]), Err(Error::Corruption { .. })));
    refused();
    writer.put(b"a", &[7; 100_000]).unwrap();
    refused();
    drop(writer);
    refused();
    assert_eq!((segment_files(&env), contents(&db.default).len()), (0, 0));
}

/// What has expired counts as put all the same: it hides what was there.
#[test]
fn what_has_expired_in_a_file_hides_what_was_there() {
    let env = Env::in_memory(1);
    let now = env.clock.unix_ms();
    let db = manual(&env).open().unwrap();
    let usual = KeyspaceOptions::new().default_ttl(Duration::from_secs(9));
    let usual = db.keyspace_with("usual", &usual).unwrap();
    let path = Path::new("/expiring");
    let mut writer = SegmentWriter::create_in(&env, path, SegmentOptions::default()).unwrap();
    let hour = 3_600_000;
    for (key, expiry) in [("a", now), ("b", now + hour), ("c", now)] {
        let value = [&u64::to_le_bytes(expiry)[..], b"new"].concat();
        writer.add(key.as_bytes(), SeqNo::ZERO, Kind::PutUntil, &value).unwrap();
    }
    writer.put(b"d", b"new").unwrap();
    writer.finish().unwrap();
    for space in [&db.default, &usual] {
        space.put("a", "old").unwrap();
        space.put("b", "old").unwrap();
        assert_eq!(space.ingest([path]).unwrap(), 4);
        for step in 0..2 {
            let (mut rows, mut found) = (space.get_range::<&[u8]>(..), Vec::new());
            while let Some(row) = rows.next() {
                let (key, value) = row.unwrap();
                assert_eq!(value, b"new");
                found.push((key[0], rows.expires_ms()));
            }
            // The file's own word counts, and the keyspace's where it says nothing.
            let d = (space.name() == "usual").then_some(now + 9000);
            assert_eq!(found, [(b'b', Some(now + hour)), (b'd', d)], "{step}");
            assert_eq!(space.get("a").unwrap(), None);
            db.flush().unwrap();
            space.compact_range::<&[u8]>(..).unwrap();
        }
    }
}

#[test]
fn loads_at_the_same_time_count_in_the_order_in_which_they_end() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    let space = db.keyspace("s").unwrap();
    let (mut one, mut two) = (space.bulk_loader().unwrap(), space.bulk_loader().unwrap());
    let mut lost = space.bulk_loader().unwrap();
    for n in 0..2000 {
        one.put(key(n), value(n, 1)).unwrap();
        two.put(key(n), value(n, 2)).unwrap();
        lost.put(key(n), value(n, 3)).unwrap();
    }
    space.put(key(5), "before both").unwrap();
    db.flush().unwrap();
    // Files that nothing names yet are in nobody's way.
    assert!(segment_files(&env) > 1 + db.segments().len());
    assert!(db.verify(&mut |_, _| {}).unwrap().is_sound());
    db.checkpoint("/copy", &mut |_, _| {}).unwrap();
    two.finish().unwrap();
    assert_eq!(contents(&space), map(0..2000, 2));
    space.delete_range(key(0)..key(1000)).unwrap();
    one.finish().unwrap();
    assert_eq!(contents(&space), map(0..2000, 1));
    space.clear().unwrap();
    let mut last = space.bulk_loader().unwrap();
    last.put(key(7), value(7, 4)).unwrap();
    space.clear().unwrap();
    last.finish().unwrap();
    assert_eq!(contents(&space), map([7], 4), "what is cleared was there before the load");
    // Another keyspace of that name.
    db.drop_keyspace("s").unwrap();
    let again = db.keyspace("s").unwrap();
    assert!(matches!(lost.finish(), Err(Error::KeyspaceDropped { .. })));
    assert_eq!(contents(&again), Map::new());
    db.wait_idle().unwrap();
    drop(space);
    assert_eq!(segment_files(&env), db.segments().len());
    let copy = Db::builder("/copy").env(env.clone()).open().unwrap();
    let copied = copy.keyspace("s").unwrap();
    assert_eq!(copied.get(key(5)).unwrap().unwrap(), "before both");
    assert_eq!(contents(&copied).len(), 1);
}

/// Its files are in the directory, so nobody else may open that.
#[test]
fn a_loader_keeps_a_closed_database_locked() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    let mut loader = db.bulk_loader().unwrap();
    for n in 0..2000 {
        loader.put(key(n), value(n, 1)).unwrap();
    }
    let mut idle = db.bulk_loader().unwrap();
    db.close().unwrap();
    assert!(matches!(manual(&env).open(), Err(Error::Locked { .. })));
    assert!(segment_files(&env) > 1);
    assert!(matches!(idle.put("a", "1"), Err(Error::Closed)));
    assert!(matches!(loader.finish(), Err(Error::Closed)));
    assert!(matches!(manual(&env).open(), Err(Error::Locked { .. })));
    drop(idle);
    assert_eq!(segment_files(&env), 0);
    let db = manual(&env).open().unwrap();
    assert_eq!(contents(&db.default), Map::new());
    assert_eq!(db.bulk_load(entries(0..10, 1)).unwrap(), 10);
}

#[test]
fn a_full_disk_refuses_a_load_which_leaves_nothing() {
    let vfs = SimVfs::new(1);
    let env = vfs.env(1);
    let db = manual(&env).open().unwrap();
    for (key, value) in entries(0..100, 1) {
        db.put(key, value).unwrap();
    }
    db.flush().unwrap();
    let path: PathBuf = file(&env, "f", entries(50..3000, 2));
    let (files, used) = (segment_files(&env), vfs.used());
    let mut refused = 0;
    let mut room = 0;
    while segment_files(&env) == files {
        vfs.set_capacity(vfs.used() + room);
        room += 8 << 10;
        match db.ingest([&path]) {
            Ok(entries) => assert_eq!(entries, 2950),
            Err(Error::DiskFull { .. }) => {
                refused += 1;
                assert_eq!(segment_files(&env), files, "with {room} bytes");
                assert_eq!(contents(&db.default), map(0..100, 1), "with {room} bytes");
                assert!(vfs.used() < used + (64 << 10), "{} bytes, {used} before", vfs.used());
            }
            Err(error) => panic!("with {room} bytes: {error}"),
        }
    }
    assert!(refused > 20, "{refused}");
    vfs.set_capacity(u64::MAX);
    let mut model = map(0..50, 1);
    model.extend(map(50..3000, 2));
    assert_eq!(contents(&db.default), model);
    db.put("z", "1").unwrap();
    db.delete("z").unwrap();
    drop(db);
    let db = manual(&env).open().unwrap();
    assert_eq!(contents(&db.default), model);
}

/// What was checked of a file must be what is taken in.
#[test]
fn a_file_that_is_replaced_meanwhile_is_refused() {
    let vfs = SimVfs::new(1);
    let env = vfs.env(1);
    let db = manual(&env).open().unwrap();
    let files = [file(&env, "a", entries(0..50, 1)), file(&env, "b", entries(100..150, 1))];
    let (other, second) = (file(&env, "c", entries(100..150, 2)), files[1].clone());
    vfs.before_each_change(move |vfs, call| {
        // All of them were looked at by then.
        assert_eq!(call, Call::Create);
        vfs.forget_hook();
        vfs.env(2).vfs.rename(&other, &second).unwrap();
    });
    match db.ingest(&files) {
        Err(Error::Corruption { file, .. }) => assert_eq!(file, files[1]),
        outcome => panic!("{outcome:?}"),
    }
    assert_eq!((segment_files(&env), contents(&db.default)), (0, Map::new()));
}

/// While the edit is made, no job is begun that would write around it.
#[test]
fn the_place_at_the_bottom_is_taken_until_the_load_is_there() {
    let vfs = SimVfs::new(1);
    let db = manual(&vfs.env(1)).open().unwrap();
    let bound = |n| Key(key(n).into_bytes().into());
    let span = |from: u32, to: u32| (bound(from), bound(to));
    let inner = Arc::clone(db.inner());
    let is_free = move |(first, last): &(Key, Key)| {
        let busy = &mut inner.background.lock().busy;
        let bottom = (LEVELS - 1) as u8;
        let is_free = busy.take_span(DEFAULT_ID, bottom, first, last);
        is_free && busy.release_span(DEFAULT_ID, bottom, first, last)
    };
    let (around, beside) = (span(0, 900), span(500, 900));
    assert!(is_free(&around) && is_free(&beside));
    let taken = Arc::new(AtomicU64::new(0));
    let (looks, look, spans) =
        (Arc::clone(&taken), is_free.clone(), (around.clone(), beside.clone()));
    vfs.before_each_change(move |_, _| {
        looks.fetch_add(u64::from(!look(&spans.0)), Ordering::Relaxed);
        assert!(look(&spans.1));
    });
    assert_eq!(db.bulk_load(entries(100..200, 1)).unwrap(), 100);
    vfs.forget_hook();
    assert!(taken.load(Ordering::Relaxed) > 0);
    assert!(is_free(&around) && is_free(&beside));
}

/// Reads may have found it under the number that nobody reads at, and still be under way.
#[test]
fn a_file_stays_while_it_is_read_as_it_was_before_it_had_a_number() {
    let env = Env::in_memory(1);
    let db = manual(&env).max_open_files(8).open().unwrap();
    db.bulk_load(entries(0..10, 1)).unwrap();
    let of_the_tree = || db.inner().state.load_full().version.trees[&DEFAULT_ID].clone();
    let found = of_the_tree().segments().next().unwrap().clone();
    let before = Segment::open(&db.inner().home, Arc::clone(&found.meta), true).unwrap();
    before.superseded(&found);
    drop(found);
    db.clear().unwrap();
    db.wait_idle().unwrap();
    assert_eq!((db.segments().len(), segment_files(&env)), (0, 1));
    assert_eq!(before.reader().get(key(3).as_bytes()).unwrap().unwrap(), value(3, 1));
    drop(before);
    assert_eq!(segment_files(&env), 0);
}

/// A repair takes the number from the manifest: what was written while the files were made is older.
#[test]
fn a_repair_knows_that_a_load_counts_from_its_end() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    // Because of it, entries keep their numbers.
    let snapshot = db.snapshot();
    let mut loader = db.bulk_loader().unwrap();
    for (key, value) in entries(0..100, 1) {
        db.put(key, value).unwrap();
    }
    db.flush().unwrap();
    for (key, value) in entries(20..50, 2) {
        loader.put(key, value).unwrap();
    }
    loader.finish().unwrap();
    let model = contents(&db.default);
    assert_eq!(model[&key(20)], value(20, 2));
    drop((snapshot, db));
    manual(&env).repair_into("/new", &mut |_, _| {}).unwrap();
    let repaired = Db::builder("/new").env(env.clone()).open().unwrap();
    assert_eq!(contents(&repaired.default), model);
}

/// Without a manifest nobody knows whether a load came to its end: what is there of it is taken, and the
/// report says so.
#[test]
fn a_repair_without_a_manifest_doubts_loads() {
    for (is_cut_short, has_manifest) in [(true, false), (false, false), (true, true)] {
        let vfs = SimVfs::new(1);
        let env = vfs.env(1);
        let db = manual(&env).open().unwrap();
        for (key, value) in entries(0..100, 1) {
            db.put(key, value).unwrap();
        }
        db.flush().unwrap();
        let mut loader = db.bulk_loader().unwrap();
        for (key, value) in entries(50..2000, 2) {
            loader.put(key, value).unwrap();
        }
        let left = if is_cut_short { Some(loader) } else { loader.finish().map(|_| None).unwrap() };
        let env = Env { vfs: Arc::new(vfs.process_death()), ..Env::in_memory(7) };
        if !has_manifest {
            env.vfs.remove_file(Path::new("/db/MANIFEST")).unwrap();
        }
        let report = manual(&env).repair_into("/new", &mut |_, _| {}).unwrap();
        let doubts: Vec<_> =
            report.uncertain.iter().filter(|doubt| doubt.what.contains("past the log")).collect();
        assert_eq!(doubts.len(), usize::from(!has_manifest), "{report:?}");
        assert!(doubts.iter().all(|doubt| doubt.keyspace.as_deref() == Some("default")));
        let repaired = Db::builder("/new").env(env.clone()).open().unwrap();
        let is_there = repaired.get(key(300)).unwrap().is_some();
        assert_eq!(is_there, !has_manifest, "what was taken is what the report speaks of");
        drop((left, db));
    }
}

/// The counts in a file's properties are its word.
#[test]
fn a_file_that_lies_about_its_entries_is_refused() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    let lying = |name: &str, from: u32| {
        let path = file(&env, name, entries(from..from + 10, 1));
        let sound = env.vfs.open(&path, OpenMode::Read).unwrap();
        let mut bytes = vec![0; sound.len().unwrap() as usize];
        sound.read_exact_at(&mut bytes, 0).unwrap();
        // Entries, and distinct keys.
        for id in [2_u16, 13] {
            let written =
                |n: u64| [&id.to_le_bytes()[..], &8_u32.to_le_bytes(), &n.to_le_bytes()].concat();
            let at = bytes.windows(14).rposition(|window| window == written(10)).unwrap();
            bytes[at..at + 14].copy_from_slice(&written(u64::MAX));
        }
        reseal(&mut bytes);
        let path = path.with_extension("lies");
        let file = env.vfs.open(&path, OpenMode::CreateNew).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        path
    };
    let files = [lying("a", 0), lying("b", 100)];
    let error = db.ingest(&files).unwrap_err();
    assert!(matches!(&error, Error::Corruption { file, .. } if *file == files[0]), "{error}");
    assert!(contents(&db.default).is_empty());
    assert_eq!(segment_files(&env), 0);
}

/// A compaction that takes in what was loaded, before that is published, keeps what readers see until then.
#[test]
fn a_compaction_in_front_of_the_number_takes_nothing_away() {
    let vfs = SimVfs::new(1);
    let env = vfs.env(1);
    let db = manual(&env).open().unwrap();
    for round in 0..8 {
        for (key, value) in entries(0..100, round) {
            db.put(key, value).unwrap();
        }
        db.flush().unwrap();
    }
    db.fill_key_map().unwrap();
    let before = map(0..100, 7);
    let (other, expected) = (db.clone(), before.clone());
    let (done, seqno) = (Arc::new(AtomicU64::new(0)), db.snapshot().seqno());
    let compacted = Arc::clone(&done);
    vfs.before_each_change(move |_, _| {
        let inner = other.inner();
        let state = inner.state.load_full();
        let tree = &state.version.trees[&DEFAULT_ID];
        let is_there = tree.segments().any(|segment| segment.meta.largest > seqno);
        let is_visible = inner.visible.load(Ordering::Acquire) > seqno.0;
        if !is_there || is_visible || compacted.load(Ordering::Relaxed) > 0 {
            return;
        }
        compacted.fetch_add(1, Ordering::Relaxed);
        drop(state);
        while inner.compact(Mood::Busy).unwrap() || inner.compact(Mood::Calm).unwrap() {
            compacted.fetch_add(1, Ordering::Relaxed);
        }
        assert_eq!(contents(&other.default), expected);
    });
    db.bulk_load(entries(50..150, 9)).unwrap();
    vfs.forget_hook();
    assert!(done.load(Ordering::Relaxed) > 1, "a job came in between");
    let mut after = before;
    after.extend(map(50..150, 9));
    assert_eq!(contents(&db.default), after);
    drop(db);
    assert_eq!(contents(&manual(&env).open().unwrap().default), after);
}
