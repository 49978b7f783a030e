//! The database's promises, one by one. Random operations at length are in `tests/model.rs`.

use crate::vfs::{Clock, Env, Failure, ManualClock, MemVfs, OpenMode, SimVfs, Vfs};
use crate::{
    Background, Builder, Compression, Db, Durability, Error, ErrorKind, IterOptions, MAX_KEY_LEN,
    Recovery, WriteBatch,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const DIR: &str = "/db";

fn manual(env: &Env) -> Builder {
    Db::builder(DIR).env(env.clone()).background(Background::Manual).write_buffer_bytes(64 << 10)
}

fn env_on(vfs: MemVfs) -> Env {
    Env { vfs: Arc::new(vfs), ..Env::in_memory(5) }
}

fn files(env: &Env, ending: &str) -> Vec<PathBuf> {
    let mut names = env.vfs.read_dir(Path::new(DIR)).unwrap();
    names.retain(|name| name.ends_with(ending));
    names.sort();
    names.iter().map(|name| Path::new(DIR).join(name)).collect()
}

fn keys(iter: impl Iterator<Item = crate::Result<(crate::Key, crate::Value)>>) -> Vec<Vec<u8>> {
    iter.map(|entry| entry.unwrap().0.to_vec()).collect()
}

#[test]
fn a_second_opener_is_told_at_once_and_snapshots_and_iterators_keep_the_lock() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    db.put("a", "1").unwrap();
    assert!(matches!(manual(&env).open(), Err(Error::Locked { .. })));
    let snapshot = db.snapshot();
    let mut iter = db.get_range::<&[u8]>(..);
    drop(db);
    assert!(matches!(manual(&env).open(), Err(Error::Locked { .. })));
    assert_eq!(snapshot.get("a").unwrap().unwrap(), b"1");
    drop(snapshot);
    assert!(matches!(manual(&env).open(), Err(Error::Locked { .. })));
    assert_eq!(iter.next().unwrap().unwrap().0, b"a");
    drop(iter);
    let db = manual(&env).open().unwrap();
    assert_eq!(db.get("a").unwrap().unwrap(), b"1");
}

#[test]
fn after_a_close_every_handle_says_closed() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    let (other, keyspace) = (db.clone(), db.keyspace("k").unwrap());
    let (snapshot, mut iter) = (db.snapshot(), db.get_range::<&[u8]>(..));
    db.put("a", "1").unwrap();
    db.close().unwrap();
    assert!(matches!(other.put("b", ""), Err(Error::Closed)));
    assert!(matches!(other.get("a"), Err(Error::Closed)));
    assert!(matches!(keyspace.delete("b"), Err(Error::Closed)));
    assert!(matches!(snapshot.get("a"), Err(Error::Closed)));
    assert!(matches!(iter.next(), Some(Err(Error::Closed))));
    assert!(iter.next().is_none());
    assert!(matches!(other.flush(), Err(Error::Closed)));
    assert!(matches!(other.wait_idle(), Err(Error::Closed)));
    assert!(matches!(other.sync(), Err(Error::Closed)));
    assert!(matches!(other.compact_range::<&[u8]>(..), Err(Error::Closed)));
    assert!(matches!(other.clear(), Err(Error::Closed)));
    assert!(matches!(other.drop_keyspace("k"), Err(Error::Closed)));
}

#[test]
fn too_long_keys_and_batches_are_refused_and_leave_nothing() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    let long = vec![b'k'; MAX_KEY_LEN + 1];
    assert!(matches!(db.put(&long, ""), Err(Error::KeyTooLong { len: 65_536 })));
    assert!(matches!(db.delete(&long), Err(Error::KeyTooLong { .. })));
    assert_eq!(db.get(&long).unwrap(), None);
    let mut batch = WriteBatch::new();
    batch.put("a", "1").put(&long, "").put("b", "2");
    assert!(matches!(db.write(batch), Err(Error::KeyTooLong { .. })));
    assert_eq!(db.first().unwrap(), None);
    let (key, value) = (&long[..MAX_KEY_LEN], vec![b'v'; 1 << 20]);
    db.put(key, &value).unwrap();
    db.put("", "").unwrap();
    for _ in 0..2 {
        assert_eq!(db.get(key).unwrap().unwrap(), value);
        assert_eq!(db.get("").unwrap().unwrap(), b"");
        db.flush().unwrap();
    }
    db.delete("").unwrap();
    assert_eq!(db.get("").unwrap(), None);
}

#[test]
fn within_a_batch_the_later_operation_wins() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    let mut batch = WriteBatch::new();
    batch.put("a", "1").delete("a").put("b", "1").put("b", "2").delete("c").put("c", "3");
    assert_eq!(batch.len(), 6);
    db.write(batch).unwrap();
    for _ in 0..2 {
        assert_eq!(db.multi_get(&["a", "b", "c"]).unwrap().map_str(), ["-", "2", "3"]);
        db.flush().unwrap();
    }
}

trait MapStr {
    fn map_str(self) -> Vec<String>;
}

impl MapStr for Vec<Option<crate::Value>> {
    fn map_str(self) -> Vec<String> {
        let text = |v: crate::Value| String::from_utf8(v.to_vec()).unwrap();
        self.into_iter().map(|v| v.map_or("-".to_owned(), text)).collect()
    }
}

#[test]
fn options_that_make_no_sense_are_refused_by_name() {
    let refused = |builder: Builder| match builder.env(Env::in_memory(1)).open() {
        Err(Error::InvalidOption { option, .. }) => option,
        other => panic!("{other:?}"),
    };
    let db = || Db::builder(DIR);
    assert_eq!(refused(db().write_buffer_bytes(0)), "write_buffer_bytes");
    assert_eq!(refused(db().write_buffers(1)), "write_buffers");
    assert_eq!(refused(db().bloom_bits_per_key(65)), "bloom_bits_per_key");
    assert_eq!(refused(db().max_open_files(0)), "max_open_files");
    assert_eq!(refused(db().segment_bytes(1)), "segment_bytes");
    assert_eq!(refused(db().level0_runs(0)), "level0_runs");
    assert_eq!(refused(db().level1_bytes(0)), "level1_bytes");
    assert_eq!(refused(db().background(Background::Threads(0))), "background");
    if cfg!(feature = "zstd") {
        assert_eq!(refused(db().compression(Compression::Zstd(99))), "compression");
    } else {
        assert_eq!(refused(db().compression(Compression::Zstd(3))), "compression");
    }
}

#[test]
fn a_directory_that_is_no_database_is_left_alone() {
    let env = Env::in_memory(1);
    let missing = manual(&env).create_if_missing(false).open();
    assert!(matches!(missing, Err(Error::NotADatabase { .. })));
    assert!(!env.vfs.exists(Path::new(DIR)).unwrap());
    env.vfs.create_dir_all(Path::new(DIR)).unwrap();
    env.vfs.open(&Path::new(DIR).join("thesis.doc"), OpenMode::CreateNew).unwrap();
    for create in [false, true] {
        let foreign = manual(&env).create_if_missing(create).open();
        assert!(matches!(foreign, Err(Error::NotADatabase { .. })));
        assert_eq!(env.vfs.read_dir(Path::new(DIR)).unwrap(), ["thesis.doc"]);
    }
}

#[test]
fn a_lost_manifest_is_an_error_and_not_a_new_database() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    db.put("a", "1").unwrap();
    drop(db);
    env.vfs.remove_file(&Path::new(DIR).join("MANIFEST")).unwrap();
    assert!(matches!(manual(&env).open(), Err(Error::NotADatabase { .. })));
    assert_eq!(files(&env, ".wal").len(), 1);
}

#[test]
fn an_interrupted_creation_is_begun_again() {
    for k in 0.. {
        let faulty = SimVfs::new(0);
        let env = faulty.env(3);
        faulty.fail(k, true, Failure::Refused);
        let opened = manual(&env).open();
        faulty.heal();
        if opened.is_ok() {
            assert!(k > 5, "creation makes several changes");
            break;
        }
        drop(opened);
        let db = manual(&env).open().unwrap_or_else(|error| panic!("change {k}: {error}"));
        db.put("a", "1").unwrap();
    }
}

#[test]
fn a_failed_sync_poisons_writes_and_not_reads_and_a_reopen_recovers() {
    let faulty = SimVfs::new(0);
    let env = faulty.env(3);
    let db = manual(&env).open().unwrap();
    let put = |key: &str| {
        let mut batch = WriteBatch::new();
        batch.put(key, "1");
        db.write_with(batch, Durability::Sync)
    };
    put("a").unwrap();
    // The write of the record is change 0, the sync change 1.
    faulty.fail(1, false, Failure::Refused);
    assert_eq!(put("b").unwrap_err().kind(), ErrorKind::Io);
    for _ in 0..2 {
        assert!(matches!(put("c"), Err(Error::Poisoned { .. })));
        assert!(matches!(db.sync(), Err(Error::Poisoned { .. })));
        assert!(matches!(db.flush(), Err(Error::Poisoned { .. })));
    }
    assert_eq!(db.get("a").unwrap().unwrap(), b"1");
    assert!(db.stats().poisoned.is_some());
    drop(db);
    let db = manual(&env).open().unwrap();
    assert_eq!(db.get("a").unwrap().unwrap(), b"1");
    assert_eq!(db.get("c").unwrap(), None);
    db.put("d", "1").unwrap();
}

#[test]
fn what_a_failed_sync_forgot_is_written_again_by_the_next_open() {
    // After the failure the file can still be read, and syncing it again succeeds, but what the
    // failed sync was to make durable is not on the disk unless it is written once more.
    for seed in 0..40 {
        let vfs = SimVfs::new(seed);
        let env = vfs.env(seed);
        let db = manual(&env).open().unwrap();
        db.put("a", "1").unwrap();
        db.put("b", [7; 3000]).unwrap();
        // Counted among the changes: the log's sync, or the manifest's behind it.
        vfs.fail(seed % 3, false, Failure::Refused);
        let created = db.keyspace("k").is_ok();
        vfs.heal();
        drop(db);
        let db = manual(&env).open().unwrap();
        let keyspaces = db.keyspaces();
        assert!(!created || keyspaces.len() == 2);
        db.sync().unwrap();
        let env = env_on(vfs.power_loss(seed));
        let db = manual(&env).open().unwrap();
        assert_eq!(db.get("a").unwrap().as_deref(), Some(&b"1"[..]), "seed {seed}");
        assert_eq!(db.get("b").unwrap().as_deref(), Some(&[7; 3000][..]), "seed {seed}");
        assert_eq!(db.keyspaces(), keyspaces, "seed {seed}");
    }
}

#[test]
fn a_log_that_is_read_wrong_once_does_not_look_torn() {
    for k in 0..40 {
        let vfs = SimVfs::new(k);
        let env = vfs.env(k);
        let db = manual(&env).open().unwrap();
        db.put("a", "1").unwrap();
        db.put("b", "2").unwrap();
        drop(db);
        vfs.fail_any(k, false, Failure::FlippedRead);
        let opened = manual(&env).open();
        vfs.heal();
        let db = match opened {
            Ok(db) => db,
            Err(_) => manual(&env).open().unwrap(),
        };
        assert_eq!(db.get("a").unwrap().as_deref(), Some(&b"1"[..]), "call {k}");
        assert_eq!(db.get("b").unwrap().as_deref(), Some(&b"2"[..]), "call {k}");
    }
}

#[test]
fn a_full_disk_refuses_writes_and_loses_nothing() {
    for fault in [Failure::Refused, Failure::Half, Failure::Done] {
        let faulty = SimVfs::new(0);
        let env = faulty.env(3);
        let db = manual(&env).open().unwrap();
        db.put("a", "1").unwrap();
        faulty.fail(0, true, fault);
        assert!(db.put("b", "lost").is_err());
        assert!(db.put("c", "lost").is_err());
        assert_eq!(db.get("a").unwrap().unwrap(), b"1");
        faulty.heal();
        db.put("d", "1").expect("there is room again");
        assert_eq!(db.get("b").unwrap(), None);
        if fault == Failure::Refused {
            db.close().unwrap();
        } else {
            drop(db);
        }
        let db = manual(&env).open().unwrap();
        assert_eq!(db.get("a").unwrap().unwrap(), b"1");
        assert_eq!(db.get("d").unwrap().unwrap(), b"1");
        assert_eq!(db.get("b").unwrap(), None);
        assert_eq!(db.get("c").unwrap(), None);
    }
}

#[test]
fn a_failed_flush_or_compaction_changes_nothing_and_works_later() {
    for k in 0..60 {
        let faulty = SimVfs::new(0);
        let env = faulty.env(3);
        let db = manual(&env).level0_runs(2).compression(Compression::None).open().unwrap();
        for round in 0..3 {
            for n in 0..100u32 {
                db.put(n.to_be_bytes(), vec![round; 100]).unwrap();
            }
            if round < 2 {
                db.flush().unwrap();
            }
        }
        faulty.fail(k, false, Failure::Refused);
        let outcome = db.flush().and_then(|()| db.wait_idle());
        faulty.heal();
        let check = |db: &Db| {
            let all: Vec<_> = db.get_range::<&[u8]>(..).map(|e| e.unwrap()).collect();
            assert_eq!(all.len(), 100);
            assert!(all.iter().all(|(_, value)| *value == vec![2; 100]), "change {k}");
        };
        check(&db);
        drop(db);
        let db = manual(&env).open().unwrap_or_else(|error| panic!("change {k}: {error}"));
        check(&db);
        db.flush().unwrap();
        db.wait_idle().unwrap();
        check(&db);
        let report = db.verify(&mut |_, _| {}).unwrap();
        assert!(report.is_sound(), "{report:?}");
        if outcome.is_ok() {
            assert!(k > 5);
            return;
        }
    }
    panic!("every change failed");
}

#[test]
fn a_snapshot_sees_its_moment_through_flush_and_compaction() {
    let env = Env::in_memory(1);
    let db = manual(&env).level0_runs(1).open().unwrap();
    let empty = db.snapshot();
    let other = db.keyspace("other").unwrap();
    let mut snapshots = Vec::new();
    for n in 0..5u8 {
        db.put("a", [n]).unwrap();
        other.put("b", [n]).unwrap();
        snapshots.push(db.snapshot());
        if n == 2 {
            db.delete("a").unwrap();
            snapshots.push(db.snapshot());
        }
        db.flush().unwrap();
    }
    for _ in 0..2 {
        let seen: Vec<_> = snapshots.iter().map(|s| s.get("a").unwrap().map(|v| v[0])).collect();
        assert_eq!(seen, [Some(0), Some(1), Some(2), None, Some(3), Some(4)]);
        let seen: Vec<_> =
            snapshots.iter().map(|s| s.of(&other).unwrap().get("b").unwrap().unwrap()[0]).collect();
        assert_eq!(seen, [0, 1, 2, 2, 3, 4]);
        assert_eq!(empty.get("a").unwrap(), None);
        assert_eq!(empty.get_range::<&[u8]>(..).count(), 0);
        db.compact_range::<&[u8]>(..).unwrap();
        other.compact_range::<&[u8]>(..).unwrap();
    }
    drop((snapshots, empty));
    db.put("a", "x").unwrap();
    db.compact_range::<&[u8]>(..).unwrap();
    let entries: u64 = db.stats().keyspaces[0].levels.iter().map(|l| l.entries).sum();
    assert_eq!(entries, 1, "old versions go once no snapshot needs them");
}

#[test]
fn tombstones_hide_what_is_below_and_go_at_the_bottom() {
    let env = Env::in_memory(1);
    let db = manual(&env).level0_runs(1).open().unwrap();
    for n in 0..100u8 {
        db.put([n], [0; 50]).unwrap();
    }
    db.compact_range::<&[u8]>(..).unwrap();
    for n in 0..100u8 {
        db.delete([n]).unwrap();
    }
    db.flush().unwrap();
    assert_eq!(db.stats().keyspaces[0].levels[0].tombstones, 100);
    assert_eq!(db.get_range::<&[u8]>(..).count(), 0);
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(db.stats().segment_bytes(), 0);
    assert_eq!(files(&env, ".seg").len(), 0);
    assert_eq!(db.get([7]).unwrap(), None);
}

#[test]
fn a_manual_compaction_cleans_the_bottom_too() {
    let env = Env::in_memory(1);
    let db = manual(&env).level0_runs(1).open().unwrap();
    db.put("a", "1").unwrap();
    db.put("b", "1").unwrap();
    let snapshot = db.snapshot();
    db.delete("a").unwrap();
    db.put("b", "2").unwrap();
    db.compact_range::<&[u8]>(..).unwrap();
    let entries = |db: &Db| db.stats().keyspaces[0].levels.iter().map(|l| l.entries).sum::<u64>();
    assert_eq!(entries(&db), 4, "the snapshot needs all of it");
    drop(snapshot);
    db.compact_range("x"..).unwrap();
    assert_eq!(entries(&db), 4, "out of range");
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(entries(&db), 1);
    assert_eq!(keys(db.get_range::<&[u8]>(..)), [b"b"]);
}

#[test]
fn a_clear_is_seen_by_later_readers_only_and_survives() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    let other = db.keyspace("other").unwrap();
    for n in 0..50u8 {
        db.put([n], "flushed").unwrap();
        other.put([n], "kept").unwrap();
    }
    db.flush().unwrap();
    db.put("m", "in memory").unwrap();
    let before = db.snapshot();
    db.clear().unwrap();
    assert_eq!(db.get_range::<&[u8]>(..).count(), 0);
    assert_eq!(db.get([3]).unwrap(), None);
    assert_eq!(db.get("m").unwrap(), None);
    db.put("new", "1").unwrap();
    let between = db.snapshot();
    db.clear().unwrap();
    assert_eq!(between.get("new").unwrap().unwrap(), b"1");
    assert_eq!(between.get([3]).unwrap(), None);
    db.wait_idle().unwrap();
    assert_eq!(before.get_range::<&[u8]>(..).count(), 51, "the snapshot holds it");
    assert_eq!(other.get_range::<&[u8]>(..).count(), 50);
    db.put("newer", "2").unwrap();
    drop((before, between));
    db.flush().unwrap();
    db.wait_idle().unwrap();
    assert_eq!(keys(db.get_range::<&[u8]>(..)), [b"newer"]);
    let entries: u64 = db.stats().keyspaces[0].levels.iter().map(|l| l.entries).sum();
    assert_eq!(entries, 1, "what was cleared is gone from the files");
    drop((db, other));
    let db = manual(&env).open().unwrap();
    assert_eq!(keys(db.get_range::<&[u8]>(..)), [b"newer"]);
    assert_eq!(db.keyspace("other").unwrap().get_range::<&[u8]>(..).count(), 50);
}

#[test]
fn a_dropped_keyspace_is_gone_for_good_and_its_id_is_not_reused() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    let first = db.keyspace("k").unwrap();
    first.put("a", "old").unwrap();
    db.flush().unwrap();
    first.put("b", "in the log").unwrap();
    let snapshot = db.snapshot();
    let mut iter = first.get_range::<&[u8]>(..);
    db.drop_keyspace("k").unwrap();
    assert_eq!(iter.next().unwrap().unwrap().0, b"a", "an iterator keeps what it reads");
    assert!(matches!(first.get("a"), Err(Error::KeyspaceDropped { .. })));
    assert!(matches!(first.put("a", ""), Err(Error::KeyspaceDropped { .. })));
    assert!(matches!(first.clear(), Err(Error::KeyspaceDropped { .. })));
    assert!(matches!(
        first.get_range::<&[u8]>(..).next(),
        Some(Err(Error::KeyspaceDropped { .. }))
    ));
    assert!(matches!(snapshot.of(&first).unwrap().get("a"), Err(Error::KeyspaceDropped { .. })));
    let mut batch = WriteBatch::new();
    batch.put("x", "").put_in(&first, "y", "");
    assert!(matches!(db.write(batch), Err(Error::KeyspaceDropped { .. })));
    assert_eq!(db.get("x").unwrap(), None);
    assert!(matches!(db.drop_keyspace("k"), Err(Error::KeyspaceNotFound { .. })));
    assert!(matches!(db.drop_keyspace("default"), Err(Error::InvalidKeyspaceName { .. })));
    let second = db.keyspace("k").unwrap();
    assert!(second.id() > first.id());
    assert_eq!(second.get("a").unwrap(), None);
    assert!(matches!(first.get("a"), Err(Error::KeyspaceDropped { .. })));
    drop((db, first, second, snapshot, iter));
    let db = manual(&env).open().unwrap();
    assert_eq!(db.keyspaces(), ["default", "k"]);
    assert_eq!(db.keyspace("k").unwrap().get_range::<&[u8]>(..).count(), 0);
    assert_eq!(files(&env, ".seg").len(), 0);
}

#[test]
fn keyspace_names_are_checked_and_handles_do_not_mix_databases() {
    let (one, two) = (Env::in_memory(1), Env::in_memory(2));
    let (db, foreign) = (manual(&one).open().unwrap(), manual(&two).open().unwrap());
    for name in ["", &"x".repeat(256)] {
        assert!(matches!(db.keyspace(name), Err(Error::InvalidKeyspaceName { .. })));
    }
    db.keyspace(&"x".repeat(255)).unwrap();
    let theirs = foreign.keyspace("k").unwrap();
    let mut batch = WriteBatch::new();
    batch.put_in(&theirs, "a", "");
    assert!(matches!(db.write(batch), Err(Error::WrongDatabase)));
    assert!(matches!(db.snapshot().of(&theirs), Err(Error::WrongDatabase)));
}

#[test]
fn leftovers_of_an_interrupted_job_go_and_strangers_stay() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    db.put("a", "1").unwrap();
    db.flush().unwrap();
    drop(db);
    let stray = Path::new(DIR).join("00000000000000000077.seg");
    let stranger = Path::new(DIR).join("notes.txt");
    for path in [&stray, &stranger, &Path::new(DIR).join("MANIFEST.new")] {
        env.vfs.open(path, OpenMode::CreateNew).unwrap();
    }
    let db = manual(&env).open().unwrap();
    assert!(!env.vfs.exists(&stray).unwrap());
    assert!(!env.vfs.exists(&Path::new(DIR).join("MANIFEST.new")).unwrap());
    assert!(env.vfs.exists(&stranger).unwrap());
    assert_eq!(db.get("a").unwrap().unwrap(), b"1");
}

#[test]
fn a_missing_or_swapped_segment_is_caught_at_open() {
    let vfs = MemVfs::default();
    let env = env_on(vfs.clone());
    let db = manual(&env).open().unwrap();
    for n in 0..2u8 {
        db.put([n], [n; 100]).unwrap();
        db.flush().unwrap();
    }
    drop(db);
    let segments = files(&env, ".seg");
    let swapped = vfs.fork();
    swapped.rename(&segments[0], Path::new("/db/t")).unwrap();
    swapped.rename(&segments[1], &segments[0]).unwrap();
    swapped.rename(Path::new("/db/t"), &segments[1]).unwrap();
    assert!(matches!(manual(&env_on(swapped)).open(), Err(Error::Corruption { .. })));
    let missing = vfs.fork();
    missing.remove_file(&segments[0]).unwrap();
    match manual(&env_on(missing)).open() {
        Err(Error::Corruption { file, .. }) => assert_eq!(file, segments[0]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_damaged_block_costs_its_own_keys_only_and_verify_names_it() {
    let vfs = MemVfs::default();
    let env = env_on(vfs);
    let open = || {
        let builder = manual(&env).compression(Compression::None).level0_runs(1);
        builder.write_buffer_bytes(1 << 20).open().unwrap()
    };
    let db = open();
    for n in 0..1000u32 {
        db.put(n.to_be_bytes(), [7; 100]).unwrap();
    }
    db.flush().unwrap();
    drop(db);
    let segment = &files(&env, ".seg")[0];
    let file = env.vfs.open(segment, OpenMode::ReadWrite).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 4096 * 5 + 99).unwrap();
    file.write_all_at(&[byte[0] ^ 4], 4096 * 5 + 99).unwrap();
    let db = open();
    let lost: Vec<u32> = (0..1000u32).filter(|n| db.get(n.to_be_bytes()).is_err()).collect();
    assert!((20..40).contains(&lost.len()), "{lost:?}");
    let report = db.verify(&mut |_, _| {}).unwrap();
    assert_eq!(report.damage.len(), 1);
    let damage = &report.damage[0];
    assert_eq!((damage.offset, damage.block), (4096 * 5, Some(5)));
    let (first, last) = damage.key_range.clone().unwrap();
    for n in &lost {
        assert!(first[..] <= n.to_be_bytes()[..] && n.to_be_bytes()[..] <= last[..]);
    }
    // An iterator gives what is in front, then the error, then nothing.
    let mut iter = db.get_range::<&[u8]>(..);
    let sound = iter.by_ref().take_while(|e| e.is_ok()).count();
    assert_eq!(sound, lost[0] as usize);
    assert!(iter.next().is_none() && iter.next_back().is_none());
    iter.seek((lost.last().unwrap() + 1).to_be_bytes());
    assert_eq!(iter.flatten().count(), 999 - *lost.last().unwrap() as usize);
    // A compaction that meets it fails once, and leaves the segment alone from then on.
    db.put(5u32.to_be_bytes(), "new").unwrap();
    db.flush().unwrap();
    assert!(matches!(db.wait_idle(), Err(Error::Corruption { .. })));
    let stats = db.stats();
    assert_eq!(stats.quarantined.len(), 1);
    assert!(stats.background_error.is_some());
    db.wait_idle().unwrap();
    assert_eq!(db.get(5u32.to_be_bytes()).unwrap().unwrap(), b"new");
}

#[test]
fn a_newer_format_is_refused_as_such() {
    let env = Env::in_memory(1);
    drop(manual(&env).open().unwrap());
    let manifest = env.vfs.open(&Path::new(DIR).join("MANIFEST"), OpenMode::Read).unwrap();
    let mut uuid = [0; 16];
    manifest.read_exact_at(&mut uuid, 16).unwrap();
    let salt = crate::checksum::uuid_salt(&uuid);
    for path in [Path::new(DIR).join("MANIFEST"), files(&env, ".wal")[0].clone()] {
        let fork = env.vfs.open(&path, OpenMode::ReadWrite).unwrap();
        let mut header = [0; 64];
        fork.read_exact_at(&mut header, 0).unwrap();
        let old = header;
        header[8] = 2;
        let salt = if path.ends_with("MANIFEST") { 0 } else { salt };
        let sum = crate::checksum::checksum(salt, 0, &header[..56]);
        header[56..].copy_from_slice(&sum.to_le_bytes());
        fork.write_all_at(&header, 0).unwrap();
        assert!(matches!(manual(&env).open(), Err(Error::UnsupportedFormat { .. })), "{path:?}");
        fork.write_all_at(&old, 0).unwrap();
    }
    manual(&env).open().unwrap();
}

#[test]
fn recovery_tells_a_torn_tail_from_damage() {
    let vfs = MemVfs::default();
    let env = env_on(vfs.clone());
    let db = manual(&env).open().unwrap();
    for n in 0..20u8 {
        db.put([n], "value").unwrap();
        if n == 9 {
            db.sync().unwrap();
        }
    }
    let died = vfs.fork();
    drop(db);
    let log = files(&env, ".wal").pop().unwrap();
    let flip = |fork: &MemVfs, at: u64| {
        let file = fork.open(&log, OpenMode::ReadWrite).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    let len = died.open(&log, OpenMode::Read).unwrap().len().unwrap();
    let torn = died.fork();
    flip(&torn, len - 1);
    let db = manual(&env_on(torn.fork())).open().unwrap();
    assert_eq!(db.get_range::<&[u8]>(..).count(), 19);
    assert_eq!(db.stats().recovery_notices.len(), 1);
    let strict = manual(&env_on(torn)).recovery(Recovery::Strict).open();
    assert!(matches!(strict, Err(Error::Corruption { .. })));
    let damaged = died.fork();
    flip(&damaged, 200);
    match manual(&env_on(damaged.fork())).open() {
        Err(Error::Corruption { file, offset, .. }) => {
            assert_eq!((&file, offset < 200), (&log, true))
        }
        other => panic!("{other:?}"),
    }
    let db = manual(&env_on(damaged)).recovery(Recovery::PointInTime).open().unwrap();
    assert!(db.get_range::<&[u8]>(..).count() < 10);
}

#[test]
fn what_was_discarded_stays_discarded_and_new_writes_survive_another_crash() {
    let vfs = MemVfs::default();
    let env = env_on(vfs.clone());
    let db = manual(&env).open().unwrap();
    for n in 0..10u8 {
        db.put([n], "first life").unwrap();
    }
    let died = vfs.fork();
    drop(db);
    let log = files(&env, ".wal").pop().unwrap();
    let file = died.open(&log, OpenMode::ReadWrite).unwrap();
    // A hole in the middle: the records behind it are sound, and must not come back.
    file.write_all_at(&[0; 10], 64 + 34 + 5 * 42).unwrap();
    let mut vfs = died;
    for life in 1..4u8 {
        let env = env_on(vfs.clone());
        let db = manual(&env).open().unwrap();
        let all = keys(db.get_range::<&[u8]>(..));
        assert_eq!(all.iter().filter(|k| k.len() == 1).count(), 5, "life {life}");
        assert_eq!(all.iter().filter(|k| k.len() == 2).count(), usize::from(life) - 1);
        db.put([life, 0], "later").unwrap();
        vfs = vfs.fork();
    }
}

#[test]
fn logs_do_not_pile_up() {
    let env = Env::in_memory(1);
    for round in 0..40u8 {
        let db = manual(&env).open().unwrap();
        db.put([round], "v").unwrap();
        db.wait_idle().unwrap();
        assert!(files(&env, ".wal").len() < 20, "round {round}");
        assert_eq!(db.get_range::<&[u8]>(..).count(), usize::from(round) + 1);
    }
    let db = manual(&env).open().unwrap();
    db.flush().unwrap();
    drop(db);
    assert_eq!(files(&env, ".wal").len(), 1);
    for _ in 0..3 {
        drop(manual(&env).open().unwrap());
        assert_eq!(files(&env, ".wal").len(), 1, "an idle database keeps one log");
    }
}

#[test]
fn open_files_stay_within_their_limit() {
    let env = Env::in_memory(1);
    let db = manual(&env).max_open_files(8).cache_bytes(0).level0_runs(64).open().unwrap();
    for n in 0..30u8 {
        db.put([n], [n; 100]).unwrap();
        db.flush().unwrap();
    }
    for n in 0..30u8 {
        assert!(db.get([n]).unwrap().is_some());
        assert!(db.stats().open_files <= 8);
    }
    assert_eq!(db.get_range::<&[u8]>(..).count(), 30);
    assert!(db.stats().open_files <= 8);
}

#[test]
fn keys_only_iterators_give_keys_and_others_may_leave_the_cache_alone() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    for n in 0..200u8 {
        db.put([n], [n; 100]).unwrap();
    }
    db.flush().unwrap();
    let options = IterOptions { keys_only: true, fill_cache: false };
    let entries: Vec<_> = db.range_with::<&[u8]>(.., options).map(|e| e.unwrap()).collect();
    assert_eq!(entries.len(), 200);
    assert!(entries.iter().all(|(_, value)| value.is_empty()));
    let cold = db.stats().cache_bytes;
    assert_eq!(db.get_range::<&[u8]>(..).rev().count(), 200);
    assert!(db.stats().cache_bytes > cold + 10_000);
}

#[test]
fn a_value_from_a_cached_block_is_not_copied() {
    let env = Env::in_memory(1);
    let db = manual(&env).compression(Compression::None).open().unwrap();
    db.put("a", [1; 1000]).unwrap();
    db.flush().unwrap();
    let (one, two) = (db.get("a").unwrap().unwrap(), db.get("a").unwrap().unwrap());
    assert_eq!(one.as_ptr(), two.as_ptr());
}

#[test]
fn approximate_sizes_follow_the_data() {
    let env = Env::in_memory(1);
    let db = manual(&env).compression(Compression::None).open().unwrap();
    for n in 0..1000u32 {
        db.put(n.to_be_bytes(), [0; 996]).unwrap();
    }
    assert_eq!(db.approximate_size::<&[u8]>(..).unwrap() % 4096, 0);
    db.flush().unwrap();
    let all = db.approximate_size::<&[u8]>(..).unwrap();
    assert!((1_000_000..1_200_000).contains(&all), "{all}");
    let half = db.approximate_size(&500u32.to_be_bytes()[..]..).unwrap();
    assert!(half.abs_diff(all / 2) < 20_000, "{half}");
    assert_eq!(db.approximate_size(&5000u32.to_be_bytes()[..]..).unwrap(), 0);
    let reversed = &[9u8][..]..&[3u8][..];
    assert_eq!(db.approximate_size(reversed).unwrap(), 0);
}

#[test]
fn writes_into_full_buffers_wait_for_flushes_and_lose_nothing() {
    // Two small buffers, so that writes run into full ones again and again.
    let clock = Arc::new(ManualClock::default());
    let env = Env { clock: Arc::clone(&clock) as Arc<dyn Clock>, ..Env::in_memory(1) };
    let db = Db::builder(DIR)
        .env(env)
        .write_buffer_bytes(64 << 10)
        .write_buffers(2)
        .segment_bytes(64 << 10)
        .level1_bytes(64 << 10)
        .open()
        .unwrap();
    for n in 0..20_000u32 {
        db.put(n.to_be_bytes(), [0; 100]).unwrap();
    }
    db.wait_idle().unwrap();
    let stats = db.stats();
    assert!(stats.flushes > 10 && stats.compactions > 0, "{stats}");
    assert_eq!(db.get_range::<&[u8]>(..).count(), 20_000);
}

#[test]
fn readers_and_iterators_agree_while_writers_and_compactions_run() {
    let env = Env::in_memory(1);
    let db = Db::builder(DIR)
        .env(env)
        .write_buffer_bytes(64 << 10)
        .segment_bytes(64 << 10)
        .level1_bytes(128 << 10)
        .level0_runs(2)
        .background(Background::Threads(2))
        .open()
        .unwrap();
    const PAIRS: u32 = 200;
    let write = |round: u32| {
        let mut batch = WriteBatch::new();
        for n in 0..PAIRS {
            batch.put(n.to_be_bytes(), [&round.to_be_bytes()[..], &[0; 60]].concat());
        }
        db.write(batch).unwrap();
    };
    write(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            (1..400).for_each(write);
            done.store(true, Ordering::Release);
        });
        for reader in 0..2u32 {
            let (db, done) = (&db, &done);
            scope.spawn(move || {
                let round = |value: &[u8]| u32::from_be_bytes(value[..4].try_into().unwrap());
                let mut newest = 0;
                while !done.load(Ordering::Acquire) {
                    let keys = [0u32, 7, PAIRS - 1].map(u32::to_be_bytes);
                    let values = db.multi_get(&keys).unwrap();
                    let rounds: Vec<u32> =
                        values.iter().map(|v| round(v.as_ref().unwrap())).collect();
                    assert!(rounds.iter().all(|r| *r == rounds[0]), "half a batch: {rounds:?}");
                    assert!(rounds[0] >= newest, "time ran backwards");
                    newest = rounds[0];
                    let all: Vec<u32> = if reader == 0 {
                        db.get_range::<&[u8]>(..).map(|e| round(&e.unwrap().1)).collect()
                    } else {
                        db.get_range::<&[u8]>(..).rev().map(|e| round(&e.unwrap().1)).collect()
                    };
                    assert_eq!(all.len(), PAIRS as usize);
                    assert!(all.iter().all(|r| *r == all[0] && *r >= newest));
                }
            });
        }
    });
    db.wait_idle().unwrap();
    assert!(db.stats().compactions > 0);
}
