//! What synced writes leave in the log files, and that waiting for a group ends.

use super::super::{Background, Db, Durability, WriteBatch};
use crate::error::Error;
use crate::types::LogId;
use crate::vfs::{Call, Env, Failure, ManualClock, OpenMode, SimVfs};
use crate::wal::log_file_name;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const DIR: &str = "/db";

fn builder(env: &Env) -> crate::Builder {
    Db::builder(DIR)
        .env(env.clone())
        .background(Background::Manual)
        .write_buffer_bytes(64 << 10)
        .durability(Durability::Sync)
}

fn log_len(env: &Env, id: LogId) -> u64 {
    let path = Path::new(DIR).join(log_file_name(id));
    env.vfs.open(&path, OpenMode::Read).unwrap().len().unwrap()
}

/// The current log, and where its records end.
fn end(db: &Db) -> (LogId, u64) {
    let writer = db.inner().writer.lock();
    (writer.log.id(), writer.log.end())
}

#[test]
fn only_logs_with_synced_writes_have_zeros_ahead_and_none_once_they_are_done_with() {
    let env = Env::in_memory(1);
    let db = builder(&env).durability(Durability::Buffered).open().unwrap();
    for n in 0..100u32 {
        db.put(n.to_be_bytes(), "v").unwrap();
        db.sync().unwrap();
    }
    let (id, len) = end(&db);
    assert_eq!(log_len(&env, id), len);
    let mut batch = WriteBatch::new();
    batch.put("k", "v");
    db.write_with(batch, Durability::Sync).unwrap();
    assert!(log_len(&env, id) > end(&db).1);
    // A rotation cuts the log, and the new one is as new.
    let inner = db.inner();
    let (id, len) = end(&db);
    inner.rotate(&mut inner.writer.lock()).unwrap();
    assert_eq!(log_len(&env, id), len);
    db.put("b", "v").unwrap();
    let (id, len) = end(&db);
    assert_eq!(log_len(&env, id), len);
    let mut batch = WriteBatch::new();
    batch.put("k", "v");
    db.write_with(batch, Durability::Sync).unwrap();
    assert!(log_len(&env, id) > end(&db).1);
    let keep = db.clone();
    db.close().unwrap();
    assert_eq!(log_len(&env, id), end(&keep).1);
    drop(keep);
    let db = builder(&env).recovery(crate::Recovery::Strict).open().unwrap();
    assert_eq!(db.stats().recovery_notices, [] as [&str; 0]);
    assert_eq!(db.get("b").unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn a_database_that_is_not_closed_opens_over_its_zeros_and_verifies() {
    let env = Env::in_memory(1);
    let db = builder(&env).open().unwrap();
    for n in 0..50u32 {
        db.put(n.to_be_bytes(), "v").unwrap();
    }
    assert_eq!(db.verify(&mut |_, _| {}).unwrap().damage.len(), 0);
    let (id, len) = end(&db);
    drop(db);
    assert!(log_len(&env, id) > len);
    let report = builder(&env).verify(&mut |_, _| {}).unwrap();
    assert_eq!((report.damage.len(), report.notices.len()), (0, 0), "{report:?}");
    assert_eq!(report.logs.last().unwrap().bytes, len);
    let db = builder(&env).recovery(crate::Recovery::Strict).open().unwrap();
    assert_eq!(count(&db), 50);
}

/// Once the first zeros are there, a synced write changes no length.
#[test]
fn a_synced_write_writes_a_record_and_a_mark() {
    let vfs = SimVfs::new(0);
    let db = builder(&vfs.env(1)).open().unwrap();
    (0..20u32).for_each(|n| db.put(n.to_be_bytes(), "v").unwrap());
    let (before, used) = (vfs.changes(), vfs.used());
    (20..30u32).for_each(|n| db.put(n.to_be_bytes(), "v").unwrap());
    assert_eq!((vfs.changes() - before, vfs.used()), (30, used));
}

/// More threads than one, with a clock that runs and one that stands still: whoever waits for a group
/// goes on without it.
#[test]
fn waiting_for_a_group_ends() {
    let running = Env { clock: Env::default().clock, ..Env::in_memory(1) };
    let standing = Env { clock: Arc::new(ManualClock::default()), ..Env::in_memory(1) };
    for env in [running, standing] {
        let db = builder(&env).background(Background::default()).open().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                let db = &db;
                scope.spawn(move || {
                    for n in 0..50 * (thread + 1) {
                        db.put([thread, n].map(u32::to_be_bytes).concat(), "v").unwrap();
                    }
                });
            }
        });
        assert!(db.stats().syncs <= 500);
        drop(db);
        let db = builder(&env).open().unwrap();
        assert_eq!(count(&db), 500);
    }
}

/// Threads that write, sync and switch logs while some call to the files fails, a sync perhaps: what
/// any of them was told is durable survives a loss of power, and all of them hear something.
#[test]
fn what_was_acknowledged_to_threads_survives_whatever_call_failed() {
    for k in (0..600).step_by(29) {
        let vfs = SimVfs::new(k);
        let db = builder(&vfs.env(k)).open().unwrap();
        // A sync takes a while, so that others come meanwhile, who wait.
        let slow = |_: &SimVfs, call| {
            if call == Call::Sync {
                wait(Duration::from_micros(50));
            }
        };
        vfs.before_each_change(slow);
        vfs.fail(k, false, [Failure::Refused, Failure::Done, Failure::NoSpace][k as usize % 3]);
        let write = |thread: u32| {
            let mut acknowledged = Vec::new();
            for n in 0..40u32 {
                let key = [thread, n].map(u32::to_be_bytes).concat();
                let mut batch = WriteBatch::new();
                batch.put(&key, [thread as u8; 2000]);
                let synced = match n % 4 {
                    // What was not synced as it was written is by the time that all is.
                    0 => db.write_with(batch, Durability::Buffered).and_then(|()| db.sync()),
                    1 => db.put(&key, [thread as u8; 2000]),
                    _ => db.write(batch),
                };
                if synced.is_ok() {
                    if n % 8 == thread {
                        // At once, before another sync.
                        let left = Env { vfs: Arc::new(vfs.power_loss(k)), ..Env::in_memory(k) };
                        assert!(builder(&left).open().unwrap().get(&key).unwrap().is_some());
                    }
                    acknowledged.push(key);
                }
            }
            acknowledged
        };
        let acknowledged: Vec<_> = std::thread::scope(|scope| {
            let write = &write;
            let threads = [0, 1, 2, 3].map(|thread| scope.spawn(move || write(thread)));
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let poisoned = db.inner().is_poisoned.load(Ordering::Relaxed);
        assert!(poisoned || acknowledged.len() > 155, "one call, one group: call {k}");
        for seed in 0..3 {
            let left = Env { vfs: Arc::new(vfs.power_loss(seed)), ..Env::in_memory(seed) };
            let db = builder(&left).open().unwrap();
            for key in &acknowledged {
                assert!(db.get(key).unwrap().is_some_and(|v| v.len() == 2000), "call {k}");
            }
        }
    }
}

fn two_buffers() -> Db {
    builder(&Env::in_memory(1))
        .background(Background::Threads(1))
        .write_buffers(2)
        .durability(Durability::Buffered)
        .open()
        .unwrap()
}

/// A leader that had waited for room took another buffer, although one that was alone had used the
/// last of it up meanwhile.
#[test]
fn a_leader_looks_again_whether_there_is_room() {
    let db = two_buffers();
    let inner = db.inner();
    // Nothing is flushed meanwhile.
    let committer = inner.committer.lock();
    db.put("a", "v").unwrap();
    let mut writer = inner.writer.lock();
    inner.rotate(&mut writer).unwrap();
    std::thread::scope(|scope| {
        let leader = scope.spawn(|| db.put("b", "v"));
        // It has queued up, and waits for the lock, unless it is slow.
        wait(Duration::from_millis(50));
        let mut batch = WriteBatch::new();
        batch.put("c", [0; 70_000]);
        batch.hash_keys(inner.hash_seed);
        inner.commit_batches(&mut writer, std::iter::once(&batch)).unwrap();
        drop(writer);
        wait(Duration::from_millis(50));
        assert_eq!(inner.state.load().frozen.len(), 1);
        drop(committer);
        leader.join().unwrap().unwrap();
    });
    assert_eq!(count(&db), 3);
}

/// What was noted of an older state, after a newer one's, let writers go past the last buffer.
#[test]
fn the_last_buffer_is_known_whoever_looks_at_the_same_time() {
    for _ in 0..100 {
        let db = two_buffers();
        let inner = db.inner();
        let committer = inner.committer.lock();
        db.put("a", "v").unwrap();
        let quarantined = inner.quarantined.lock();
        std::thread::scope(|scope| {
            scope.spawn(|| inner.update_pressure());
            scope.spawn(|| inner.rotate(&mut inner.writer.lock()).unwrap());
            wait(Duration::from_millis(1));
            drop(quarantined);
        });
        assert!(inner.last_buffer.load(Ordering::Relaxed));
        drop(committer);
    }
}

/// A batch that says something else than it was given was taken as far as it could be read, without a
/// word.
#[test]
fn what_was_logged_and_cannot_be_inserted_stops_writes() {
    let db = builder(&Env::in_memory(1)).open().unwrap();
    let mut batch = WriteBatch::new();
    batch.put("a", "v").put("b", "v");
    batch.ops.pop();
    assert!(matches!(db.write(batch), Err(Error::Corruption { .. })));
    assert!(matches!(db.put("c", "v"), Err(Error::Poisoned { .. })));
}

fn count(db: &Db) -> usize {
    db.get_range::<&[u8]>(..).inspect(|entry| assert!(entry.is_ok())).count()
}

/// Lets other threads go on for a while.
fn wait(time: Duration) {
    Env::default().clock.sleep(time);
}
