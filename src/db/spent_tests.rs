//! When it is looked for what nobody sees any more, and what goes then.

use crate::compaction::Job;
use crate::vfs::{Env, ManualClock, SimVfs};
use crate::{Background, Compression, Db};
use std::sync::Arc;
use std::time::Duration;

fn open(env: &Env) -> Db {
    let builder = Db::builder("/db").env(env.clone()).background(Background::Manual);
    builder.segment_bytes(64 << 10).compression(Compression::None).open().unwrap()
}

fn on_a_clock(seed: u64) -> (Env, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let env = Env { clock: Arc::clone(&clock) as Arc<_>, ..Env::in_memory(seed) };
    (env, clock)
}

fn looks(db: &Db) -> u64 {
    db.inner().last_look.lock().count
}

fn drops(db: &Db) -> bool {
    db.inner().drop_spent().unwrap()
}

fn segments(db: &Db) -> usize {
    db.inner().state.load().version.trees[&super::DEFAULT_ID].segments().count()
}

fn tombstones(db: &Db) -> usize {
    db.inner().state.load().version.trees[&super::DEFAULT_ID].deletes.len()
}

#[test]
fn what_was_looked_for_in_vain_is_not_looked_for_again() {
    let env = Env::in_memory(1);
    let db = open(&env);
    for n in 0..200 {
        db.put(format!("{n:03}"), vec![7; 500]).unwrap();
    }
    db.flush().unwrap();
    let snapshot = db.snapshot();
    for n in (0..200).step_by(5) {
        db.delete_range(format!("{n:03}")..format!("{:03}", n + 2)).unwrap();
    }
    db.flush().unwrap();
    while drops(&db) {}
    let before = looks(&db);
    for _ in 0..50 {
        assert!(!drops(&db));
    }
    assert_eq!((looks(&db), tombstones(&db)), (before, 40), "nothing has changed");
    // Another version is looked at.
    db.put("other", "1").unwrap();
    db.flush().unwrap();
    assert!(!drops(&db));
    assert_eq!(looks(&db), before + 1);
    // As it is when a snapshot has gone.
    db.delete_range::<&str>(..).unwrap();
    db.flush().unwrap();
    while drops(&db) {}
    assert!(segments(&db) > 0);
    drop(snapshot);
    assert!(drops(&db));
    while drops(&db) {}
    assert_eq!((segments(&db), tombstones(&db)), (0, 0));
}

#[test]
fn what_expires_is_looked_for_when_it_has_and_goes_without_being_read() {
    let (env, clock) = on_a_clock(1);
    let vfs = SimVfs::new(1);
    let db = open(&Env { vfs: Arc::new(vfs.clone()), ..env });
    for (key, seconds) in [("a", 10), ("b", 30)] {
        db.put_with_ttl(key, "1", Duration::from_secs(seconds)).unwrap();
        db.flush().unwrap();
    }
    assert!(!drops(&db));
    let reads = vfs.calls() - vfs.changes();
    for (step, (left, count)) in [(2, 1), (1, 3), (1, 3), (0, 5)].into_iter().enumerate() {
        while drops(&db) {}
        assert_eq!((segments(&db), looks(&db)), (left, count), "{step}");
        clock.advance(Duration::from_secs(11));
    }
    assert_eq!(vfs.calls() - vfs.changes(), reads, "nothing was read for that");
}

#[test]
fn what_hides_something_older_stays_when_it_has_expired() {
    let (env, clock) = on_a_clock(1);
    let db = open(&env);
    for n in 0..100 {
        db.put(format!("{n:02}"), vec![7; 3000]).unwrap();
    }
    db.compact_range::<&[u8]>(..).unwrap();
    let lasting = segments(&db);
    assert!(lasting > 2);
    db.put_with_ttl("50", "soon gone", Duration::from_secs(5)).unwrap();
    db.flush().unwrap();
    db.put_with_ttl("50", "gone too", Duration::from_secs(6)).unwrap();
    db.flush().unwrap();
    for key in ["alone", "alone"] {
        db.put_with_ttl(key, "1", Duration::from_secs(7)).unwrap();
        db.flush().unwrap();
    }
    clock.advance(Duration::from_secs(8));
    while drops(&db) {}
    assert_eq!(segments(&db), lasting + 2, "but where there is nothing older, all go at once");
    assert_eq!(db.get("50").unwrap(), None);
    assert_eq!(db.get_range::<&[u8]>(..).count(), 99);
}

#[test]
fn what_belongs_to_a_job_is_looked_for_again_when_that_has_failed() {
    let env = Env::in_memory(1);
    let db = open(&env);
    db.put("a", "1").unwrap();
    db.flush().unwrap();
    db.delete_range("a".."b").unwrap();
    db.flush().unwrap();
    let job = {
        let state = db.inner().state.load();
        let tree = &state.version.trees[&super::DEFAULT_ID];
        Job::rewrite(tree.segments().next().unwrap())
    };
    db.inner().background.lock().busy.take(&job);
    assert!(!drops(&db) && !drops(&db));
    db.inner().background.lock().busy.release(&job);
    assert!(drops(&db), "no edit told of it");
    while drops(&db) {}
    assert_eq!((segments(&db), tombstones(&db)), (0, 0));
}
