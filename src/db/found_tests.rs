//! Bugs that reviews and tests found, each kept from coming back.

use super::*;
use crate::compaction::{Busy, Mood, OutputRun};
use crate::version::SegmentMeta;
use crate::vfs::{Call, Env, Failure, MemVfs, OpenMode, SimVfs};
use crate::{Background, Builder, Compaction, Compression, Recovery};
use std::path::PathBuf;

const DIR: &str = "/db";

fn manual(env: &Env) -> Builder {
    Db::builder(DIR)
        .env(env.clone())
        .background(Background::Manual)
        .write_buffer_bytes(64 << 10)
        .compression(Compression::None)
}

fn files(env: &Env, ending: &str) -> Vec<PathBuf> {
    let mut names = env.vfs.read_dir(Path::new(DIR)).unwrap();
    names.retain(|name| name.ends_with(ending));
    names.sort();
    names.iter().map(|name| Path::new(DIR).join(name)).collect()
}

fn flip(env: &Env, path: &Path, at: u64) {
    let file = env.vfs.open(path, OpenMode::ReadWrite).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn tree(db: &Db) -> Arc<crate::version::Tree> {
    Arc::clone(&db.inner().state.load().version.trees[&DEFAULT_ID])
}

/// Two jobs that moved segments into the same empty level at once gave it two runs; the next merge
/// took them for one, and deleted keys came back.
#[test]
fn two_jobs_into_an_empty_level_make_one_run() {
    let env = Env::in_memory(1);
    let db = manual(&env).level0_runs(64).open().unwrap();
    for key in ["a", "m"] {
        db.put(key, "v").unwrap();
        db.flush().unwrap();
    }
    let inner = db.inner();
    // Both jobs were chosen before either was committed.
    for segment in tree(&db).segments().rev_by_key() {
        let meta = SegmentMeta { level: 2, ..SegmentMeta::clone(&segment.meta) };
        inner.install(vec![segment], vec![Arc::new(meta)], OutputRun::Join(None), None).unwrap();
    }
    assert_eq!(tree(&db).levels[2].len(), 1);
    let keys = tree(&db).levels[2][0].segments.iter().map(|s| s.meta.first_key.to_vec()).collect();
    let keys: Vec<Vec<u8>> = keys;
    assert_eq!(keys, [b"a", b"m"]);
    for key in ["a", "m"] {
        db.delete(key).unwrap();
    }
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(db.first().unwrap(), None);
}

trait RevByKey {
    fn rev_by_key(self) -> Vec<Arc<crate::version::Segment>>;
}

impl<'a, I: Iterator<Item = &'a Arc<crate::version::Segment>>> RevByKey for I {
    fn rev_by_key(self) -> Vec<Arc<crate::version::Segment>> {
        let mut all: Vec<_> = self.cloned().collect();
        all.sort_by(|a, b| b.meta.first_key.cmp(&a.meta.first_key));
        all
    }
}

/// The last edit may be in the page cache only, if the process died before its sync. Opening removed
/// files because of it, and power loss then took the edit back.
#[test]
fn the_manifest_is_synced_before_opening_acts_on_it() {
    let faulty = SimVfs::new(0);
    let env = faulty.env(1);
    drop(manual(&env).open().unwrap());
    // The first change is the removal of an unfinished manifest, which nothing depends on; the
    // second writes the last edit once more.
    faulty.fail(2, false, Failure::Refused);
    match manual(&env).open() {
        Err(Error::Io { operation: "sync", path, .. }) => assert!(path.ends_with("MANIFEST")),
        other => panic!("something else came first: {other:?}"),
    }
}

/// A synced write must not be durable while an older log is not.
#[test]
fn a_sync_covers_the_older_logs_too() {
    let faulty = SimVfs::new(0);
    let env = faulty.env(1);
    let db = manual(&env).open().unwrap();
    let inner = db.inner();
    for key in ["a", "b", "c"] {
        db.put(key, "v").unwrap();
        inner.rotate(&mut inner.writer.lock()).unwrap();
    }
    db.put("d", "v").unwrap();
    let before = faulty.changes();
    db.sync().unwrap();
    assert_eq!(faulty.changes() - before, 5, "three older logs, the current one, and a mark");
    db.sync().unwrap();
    assert_eq!(faulty.changes() - before, 5, "nothing is left to do");
}

/// A clear whose place in the log was damaged hid what was written later, because the numbers that
/// it covers were given out again.
#[test]
fn a_clear_that_the_log_does_not_reach_hides_nothing_new() {
    let make = || {
        let env = Env::in_memory(1);
        let db = manual(&env).open().unwrap();
        db.put("a", "1").unwrap();
        db.put("b", "1").unwrap();
        db.clear().unwrap();
        drop(db);
        let log = files(&env, ".wal").pop().unwrap();
        (env, log)
    };
    let (env, log) = make();
    let len = env.vfs.open(&log, OpenMode::Read).unwrap().len().unwrap();
    // The skip record is followed by a mark and a witness, so this is no torn tail.
    flip(&env, &log, len - 34 - 26 - 5);
    assert!(matches!(manual(&env).open(), Err(Error::Corruption { .. })));
    // Without all three it looks like one, but the manifest knows better.
    let (env, log) = make();
    env.vfs.open(&log, OpenMode::ReadWrite).unwrap().set_len(len - 34 - 52).unwrap();
    assert!(matches!(manual(&env).open(), Err(Error::Corruption { .. })));
    let (env, log) = make();
    flip(&env, &log, 64 + 30);
    let db = manual(&env).recovery(Recovery::PointInTime).open().unwrap();
    for key in ["x", "y", "z"] {
        db.put(key, "new").unwrap();
        assert_eq!(db.get(key).unwrap().unwrap(), b"new");
    }
    drop(db);
    assert_eq!(manual(&env).open().unwrap().get_range::<&[u8]>(..).count(), 3);
}

/// A move that came too late, because its keyspace was dropped meanwhile, removed the file under the
/// iterators that read it.
#[test]
fn a_move_that_comes_too_late_leaves_the_file_to_its_readers() {
    let env = Env::in_memory(1);
    let db = manual(&env).level0_runs(1).open().unwrap();
    let keyspace = db.keyspace("k").unwrap();
    keyspace.put("a", "v").unwrap();
    db.flush().unwrap();
    let inner = db.inner();
    let state = inner.state.load_full();
    let removed: Vec<_> = state.version.trees[&keyspace.core.id].segments().cloned().collect();
    drop(state);
    let moved =
        |s: &Arc<crate::version::Segment>| SegmentMeta { level: 1, ..SegmentMeta::clone(&s.meta) };
    let metas = removed.iter().map(|s| Arc::new(moved(s))).collect();
    let mut iter = keyspace.get_range::<&[u8]>(..);
    db.drop_keyspace("k").unwrap();
    let id = removed[0].meta.id;
    inner.install(removed, metas, OutputRun::New, None).unwrap();
    inner.home.files.forget(id);
    assert_eq!(iter.next().unwrap().unwrap().0, b"a");
    drop(iter);
    assert!(files(&env, ".seg").is_empty(), "it goes with its last reader");
}

/// Each try of a flush that failed half way left the segments of the first keyspace behind.
#[test]
fn flushes_that_fail_leave_no_files() {
    let faulty = SimVfs::new(0);
    let env = faulty.env(3);
    let db = manual(&env).open().unwrap();
    let other = db.keyspace("o").unwrap();
    db.put("a", [1; 5000]).unwrap();
    other.put("a", [1; 5000]).unwrap();
    let inner = db.inner();
    inner.rotate(&mut inner.writer.lock()).unwrap();
    let mut failed = 0;
    for k in 0..20 {
        faulty.fail(k, false, Failure::Refused);
        let outcome = inner.flush_oldest();
        faulty.heal();
        if outcome.is_ok() || inner.is_poisoned.load(Ordering::Acquire) {
            break;
        }
        failed += 1;
        assert_eq!(files(&env, ".seg"), Vec::<PathBuf>::new(), "change {k}");
    }
    assert!(failed >= 6);
}

/// A damaged segment on level 0 stops its compaction for good; writes were held back for that.
#[test]
fn a_quarantined_level_does_not_hold_writers_back() {
    let env = Env::in_memory(1);
    let db = manual(&env).level0_runs(1).open().unwrap();
    let inner = db.inner();
    for n in 0..20u8 {
        db.put([n], "v").unwrap();
        db.flush().unwrap();
    }
    assert!(inner.pressure.load(Ordering::Relaxed) > 900);
    let id = tree(&db).levels[0][3].segments[0].meta.id;
    inner.quarantined.lock().insert(id, Error::Closed);
    inner.update_pressure();
    assert_eq!(inner.pressure.load(Ordering::Relaxed), 0);
}

/// The documented formula: nothing at first, about 100 MB/s at 0.62, about 1 MB/s at the end.
#[test]
fn delays_grow_smoothly_with_the_backlog() {
    let db = manual(&Env::in_memory(1)).open().unwrap();
    let inner = db.inner();
    let delay_ms = |pressure: u32| {
        inner.pressure.store(pressure, Ordering::Relaxed);
        inner.delay(1_000_000).as_millis()
    };
    assert_eq!(delay_ms(0), 0);
    assert_eq!(delay_ms(620), 10);
    assert_eq!(delay_ms(990), 980);
    let steps: Vec<u128> = (30..99).map(|percent| delay_ms(percent * 10)).collect();
    assert!(steps.windows(2).all(|pair| pair[0] <= pair[1] && pair[1] <= 2 * pair[0] + 1));
}

/// Clears of an idle keyspace were kept for ever.
#[test]
fn clears_do_not_pile_up() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    for _ in 0..50 {
        db.clear().unwrap();
        db.wait_idle().unwrap();
        assert!(tree(&db).clears.len() <= 1);
    }
}

/// After one refused append a close reported that writes are refused, although nothing was lost.
#[test]
fn a_close_after_a_refused_append_succeeds() {
    let faulty = SimVfs::new(0);
    let env = faulty.env(3);
    let db = manual(&env).open().unwrap();
    db.put("a", "1").unwrap();
    faulty.fail(0, true, Failure::Half);
    assert!(db.put("b", "1").is_err());
    faulty.heal();
    db.close().unwrap();
    let db = manual(&env).recovery(Recovery::Strict).open().unwrap();
    assert_eq!(db.get_range::<&[u8]>(..).count(), 1);
}

/// Each refused append began another log, with an empty memtable to flush.
#[test]
fn refused_appends_do_not_pile_up_memtables() {
    let faulty = SimVfs::new(0);
    let env = faulty.env(3);
    let db = manual(&env).open().unwrap();
    for _ in 0..10 {
        assert!(db.put("a", "1").is_ok());
        // The second write's record fails; the one after begins a new log.
        faulty.fail(0, false, Failure::Refused);
        assert!(db.put("b", "1").is_err());
        faulty.fail(0, true, Failure::Refused);
        assert!(db.put("c", "1").is_err());
        faulty.heal();
        db.flush().unwrap();
        assert_eq!(db.stats().memtables, 1);
    }
}

/// A manual compaction took what was flushed after it began for older data, because a flush of new
/// keys leaves their sequence numbers out: beside a steady writer it never ended.
#[test]
fn a_manual_compaction_leaves_later_flushes_alone() {
    for compaction in [Compaction::Lazy, Compaction::Leveled, Compaction::Tiered] {
        let env = Env::in_memory(1);
        let db = manual(&env).compaction(compaction).level0_runs(64).open().unwrap();
        db.put("a", "v").unwrap();
        db.compact_range::<&[u8]>(..).unwrap();
        let inner = db.inner();
        let range = inner.range_until_now(None, None);
        db.put("b", "v").unwrap();
        db.flush().unwrap();
        let nothing = Busy::default();
        let now = inner.situation(&nothing, Mood::Busy);
        assert!(inner.strategy.pick_range(&tree(&db), &range, &now).is_none(), "{compaction:?}");
        let range = inner.range_until_now(None, None);
        assert!(inner.strategy.pick_range(&tree(&db), &range, &now).is_some(), "{compaction:?}");
    }
}

/// What was synced last and then damaged looked like a torn tail if the process died before it wrote
/// anything else.
#[test]
fn damage_to_the_last_synced_record_is_no_torn_tail() {
    // What is done after the last synced write, which must not make a difference.
    let ways: [fn(&Db); 4] = [
        |_| {},
        |db| db.inner().rotate(&mut db.inner().writer.lock()).unwrap(),
        |db| {
            db.inner().rotate(&mut db.inner().writer.lock()).unwrap();
            db.sync().unwrap();
        },
        |db| {
            db.keyspace("other").unwrap();
        },
    ];
    for (n, way) in ways.into_iter().enumerate() {
        let env = Env::in_memory(1);
        let db = manual(&env).open().unwrap();
        for key in 0..5u8 {
            db.put([key], "a value").unwrap();
        }
        db.sync().unwrap();
        way(&db);
        drop(db);
        let log = files(&env, ".wal").remove(0);
        // Behind the header, the witness, and four of the five records.
        flip(&env, &log, 64 + 34 + 4 * 41 + 30);
        let opened = manual(&env).open();
        assert!(matches!(&opened, Err(Error::Corruption { file, .. }) if *file == log), "way {n}");
    }
}

/// The same after opening, which shows what it replayed and makes it durable.
#[test]
fn damage_to_what_was_replayed_is_no_torn_tail() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    db.put("key", "not synced").unwrap();
    drop(db);
    drop(manual(&env).open().unwrap());
    let log = files(&env, ".wal").remove(0);
    flip(&env, &log, 64 + 34 + 30);
    assert!(matches!(manual(&env).open(), Err(Error::Corruption { .. })));
}

/// A manifest that lost its last edit, or was put back from an earlier day, brought cleared keys back.
#[test]
fn an_older_manifest_is_not_taken_for_the_newest() {
    let changes: [fn(&Db); 4] = [
        |db| db.clear().unwrap(),
        |db| drop(db.keyspace("new").unwrap()),
        |db| db.drop_keyspace("old").unwrap(),
        |db| {
            db.flush().unwrap();
            db.put("behind", "the flush").unwrap();
        },
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let vfs = MemVfs::default();
        let env = Env { vfs: Arc::new(vfs.clone()), ..Env::in_memory(1) };
        let db = manual(&env).open().unwrap();
        db.keyspace("old").unwrap();
        db.put("key", "value").unwrap();
        let path = Path::new(DIR).join("MANIFEST");
        let len = env.vfs.open(&path, OpenMode::Read).unwrap().len().unwrap();
        change(&db);
        drop(db);
        manual(&Env { vfs: Arc::new(vfs.fork()), ..Env::in_memory(2) }).open().unwrap();
        env.vfs.open(&path, OpenMode::ReadWrite).unwrap().set_len(len).unwrap();
        let opened = manual(&env).open();
        assert!(matches!(opened, Err(Error::Corruption { .. })), "change {n}: {opened:?}");
        assert_eq!(env.vfs.open(&path, OpenMode::Read).unwrap().len().unwrap(), len);
    }
}

/// A manifest that could not be appended to for want of room refused writes until a reopen.
#[test]
fn a_disk_that_is_full_for_a_while_needs_no_reopen() {
    let vfs = SimVfs::new(1);
    let db = manual(&vfs.env(1)).open().unwrap();
    db.put("a", "1").unwrap();
    let segments = || {
        let names = crate::vfs::Vfs::read_dir(&vfs, Path::new(DIR)).unwrap();
        names.iter().filter(|name| name.ends_with(".seg")).count()
    };
    for room in [0, 20, 40, 60, 80, 100, 200, 1000, 5000, 9000, 13_000, 100_000] {
        vfs.set_capacity(vfs.used() + room);
        let full = [db.keyspace("k").err(), db.flush().err(), db.put("b", "2").err()];
        vfs.set_capacity(u64::MAX);
        assert!(full.iter().flatten().all(|e| matches!(e, Error::DiskFull { .. })), "{full:?}");
        db.put("c", "3").unwrap();
        assert_eq!(db.get("a").unwrap().unwrap(), b"1");
        db.flush().unwrap();
        assert_eq!(segments(), db.segments().len(), "nothing is left of what failed");
        if db.keyspaces().len() > 1 {
            db.drop_keyspace("k").unwrap();
        }
    }
    drop(db);
    let db = manual(&vfs.env(2)).open().unwrap();
    assert_eq!(db.get("a").unwrap().unwrap(), b"1");
    assert_eq!(db.get("c").unwrap().unwrap(), b"3");
}

/// While flushes fail in the background, writes say so; once one succeeds they are taken again.
#[test]
fn a_failed_flush_is_visible_on_the_next_write() {
    let vfs = SimVfs::new(1);
    let db = Db::builder(DIR).env(vfs.env(1)).open().unwrap();
    db.put("a", "1").unwrap();
    // Room for the log, and for no segment.
    vfs.set_capacity(vfs.used() + 2000);
    assert!(db.flush().is_err());
    match db.put("b", "2") {
        Err(Error::DiskFull { path, .. }) => assert_eq!(path.extension().unwrap(), "seg"),
        other => panic!("{other:?}"),
    }
    assert!(db.stats().background_error.is_some());
    vfs.set_capacity(u64::MAX);
    while let Err(error) = db.put("c", "3") {
        assert!(matches!(error, Error::DiskFull { .. }), "{error:?}");
        std::thread::yield_now();
    }
    assert_eq!(db.get("a").unwrap().unwrap(), b"1");
    assert_eq!(db.get("b").unwrap(), None);
    assert!(db.stats().poisoned.is_none());
}

fn sync_put(db: &Db, key: &str, len: usize) {
    let mut batch = WriteBatch::new();
    batch.put(key, vec![7; len]);
    db.write_with(batch, Durability::Sync).unwrap();
}

fn on(vfs: MemVfs) -> Env {
    Env { vfs: Arc::new(vfs), ..Env::in_memory(1) }
}

/// The last mark of a close said that the one in front of it was durable, which was not synced: power
/// loss between the two left what looks like damage, and the database was refused.
#[test]
fn a_mark_never_says_more_than_was_synced() {
    // Over all lengths the marks lie on both sides of the border of a sector.
    for len in (350..390).step_by(8) {
        let vfs = SimVfs::new(1);
        let db = manual(&vfs.env(1)).open().unwrap();
        sync_put(&db, "a", len);
        vfs.before_each_change(move |vfs, _| {
            for seed in 0..200 {
                let db = manual(&on(vfs.power_loss(seed))).open();
                let db = db.unwrap_or_else(|error| panic!("{len} bytes, seed {seed}: {error}"));
                assert!(db.get("a").unwrap().is_some(), "{len} bytes, seed {seed}");
            }
        });
        db.close().unwrap();
        vfs.forget_hook();
    }
}

/// A log begun during a sync seemed to say that the one before it was durable, but says nothing of it
/// before it is synced itself: damage to the synced write looked like a torn tail.
#[test]
fn a_sync_is_mentioned_even_if_a_log_is_begun_meanwhile() {
    let vfs = SimVfs::new(1);
    let env = vfs.env(1);
    let db = manual(&env).open().unwrap();
    let (other, once) = (db.clone(), std::sync::atomic::AtomicBool::new(true));
    vfs.before_each_change(move |_, call| {
        if call == Call::Sync && once.swap(false, std::sync::atomic::Ordering::Relaxed) {
            other.put("b", "1").unwrap();
        }
    });
    // Larger than a write buffer, so that the next write begins a log.
    sync_put(&db, "a", 100_000);
    vfs.forget_hook();
    assert_eq!(files(&env, ".wal").len(), 2);
    let env = on(vfs.process_death());
    flip(&env, &files(&env, ".wal")[0], 1000);
    assert!(matches!(manual(&env).open(), Err(Error::Corruption { .. })));
}

/// Point-in-time recovery accepted a manifest that had lost its end, but left the log's word for that
/// in place: every other way of opening the database was refused from then on.
#[test]
fn what_point_in_time_recovery_opened_can_be_opened_again() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    db.put("a", "1").unwrap();
    let path = Path::new(DIR).join("MANIFEST");
    let len = env.vfs.open(&path, OpenMode::Read).unwrap().len().unwrap();
    db.keyspace("k").unwrap();
    db.close().unwrap();
    env.vfs.open(&path, OpenMode::ReadWrite).unwrap().set_len(len).unwrap();
    assert!(matches!(manual(&env).open(), Err(Error::Corruption { .. })));
    let db = manual(&env).recovery(Recovery::PointInTime).open().unwrap();
    assert_eq!(db.stats().recovery_notices.len(), 1, "{:?}", db.stats().recovery_notices);
    db.close().unwrap();
    for _ in 0..2 {
        let db = manual(&env).open().unwrap();
        assert_eq!(db.get("a").unwrap().as_deref(), Some(&b"1"[..]));
        db.keyspace("k").unwrap();
        db.close().unwrap();
    }
}

/// A log with nothing in it said nothing of those before it when it was closed.
#[test]
fn a_close_covers_the_older_logs_too() {
    let env = Env::in_memory(1);
    let db = manual(&env).open().unwrap();
    db.put("a", "1").unwrap();
    let inner = db.inner();
    inner.rotate(&mut inner.writer.lock()).unwrap();
    db.close().unwrap();
    let logs = files(&env, ".wal");
    flip(&env, &logs[logs.len() - 2], 100);
    assert!(matches!(manual(&env).open(), Err(Error::Corruption { .. })));
}
