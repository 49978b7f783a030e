//! What a listener hears: all of it, in order, in pairs, whatever fails; and what it may do meanwhile.

use super::*;
use crate::db::listener::{Events, Listener};
use crate::vfs::{Env, Failure, OpenMode, SimVfs};
use crate::{Background, Builder, Compression, Db, Durability, WriteBatch};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

const DIR: &str = "/db";

/// Keeps what it hears.
#[derive(Clone, Default)]
struct Ear(Arc<Mutex<Vec<Event>>>);

impl Ear {
    fn heard(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }
}

impl EventListener for Ear {
    fn on_event(&self, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

pub(in crate::db) fn builder(env: &Env, background: Background) -> Builder {
    Db::builder(DIR)
        .env(env.clone())
        .background(background)
        .write_buffer_bytes(64 << 10)
        .segment_bytes(64 << 10)
        .level0_runs(3)
        .compression(Compression::None)
}

pub(in crate::db) fn key(n: u32) -> [u8; 4] {
    n.to_be_bytes()
}

/// Everything that makes jobs. Stops at the first error.
pub(in crate::db) fn script(db: &Db) -> crate::Result<()> {
    let other = db.keyspace("other")?;
    for round in 0..6_u32 {
        for n in 0..1500 {
            db.put(key(n * 7 % 1500), [round as u8; 40])?;
        }
        other.put(key(round), [0; 100])?;
        db.flush()?;
        if round == 4 {
            other.clear()?;
        }
        db.wait_idle()?;
    }
    db.delete(key(3))?;
    db.compact_range::<&[u8]>(..)?;
    other.put("last", "")?;
    other.compact_range("a".."z")?;
    db.wait_idle()
}

/// The same with few changes of files, each of which may fail.
fn short_script(db: &Db) -> crate::Result<()> {
    for round in 0..4_u8 {
        for n in 0..10 {
            db.put(key(n), [round; 500])?;
        }
        db.flush()?;
        db.step()?;
    }
    db.bulk_load((5..15).map(|n| (key(n), [9; 500])))?;
    db.compact_range::<&[u8]>(..)
}

/// Holds what was heard against itself: each job begins, then ends, once. Gives back the live segments
/// that follow from it.
fn check(heard: &[Event]) -> BTreeSet<SegmentId> {
    assert!(matches!(heard.first(), Some(Event::RecoveryDone { .. })), "{heard:#?}");
    let (mut flushes, mut compactions, mut loads) = (Vec::new(), Vec::new(), Vec::new());
    let (mut jobs, mut made, mut gone) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for event in &heard[1..] {
        match event {
            Event::RecoveryDone { .. } => panic!("twice"),
            Event::FlushBegin(flush) => {
                assert!(jobs.insert(flush.job), "job {} twice", flush.job);
                assert!(flush.entries > 0 && flush.memory_bytes > 0);
                flushes.push(flush.clone());
            }
            Event::FlushEnd { flush, outputs, bytes_written, error, .. } => {
                let begun = flushes.iter().position(|begun| begun == flush);
                flushes.remove(begun.expect("it was begun"));
                assert!(error.is_none() || (outputs.is_empty() && *bytes_written == 0));
                made.extend(outputs.iter().copied());
            }
            Event::CompactionBegin(compaction) => {
                assert!(jobs.insert(compaction.job), "job {} twice", compaction.job);
                assert!(!compaction.inputs.is_empty() && compaction.bytes > 0);
                compactions.push(compaction.clone());
            }
            Event::CompactionEnd { compaction, outputs, bytes_written, error, .. } => {
                let begun = compactions.iter().position(|begun| begun == compaction);
                compactions.remove(begun.expect("it was begun"));
                match compaction.action {
                    CompactionAction::Move if error.is_none() => {
                        assert_eq!(*outputs, compaction.inputs);
                    }
                    CompactionAction::Drop => assert!(outputs.is_empty()),
                    _ => assert_eq!(outputs.is_empty(), *bytes_written == 0),
                }
                if error.is_none() && compaction.action != CompactionAction::Move {
                    for input in &compaction.inputs {
                        assert!(gone.insert(*input), "{input} was replaced twice");
                    }
                    made.extend(outputs.iter().copied());
                }
            }
            Event::LoadBegin(load) => {
                assert!(jobs.insert(load.job), "job {} twice", load.job);
                assert!(load.entries > 0 && load.bytes > 0);
                loads.push(load.clone());
            }
            Event::LoadEnd { load, error, .. } => {
                loads.remove(loads.iter().position(|begun| begun == load).expect("it was begun"));
                if error.is_none() {
                    made.extend(load.segments.iter().copied());
                }
            }
            _ => {}
        }
    }
    assert!(loads.is_empty(), "what began must end: {heard:#?}");
    assert!(flushes.is_empty() && compactions.is_empty(), "what began must end: {heard:#?}");
    assert!(gone.is_subset(&made));
    made.difference(&gone).copied().collect()
}

fn count(heard: &[Event], what: impl Fn(&Event) -> bool) -> u64 {
    heard.iter().filter(|event| what(event)).count() as u64
}

fn segments(db: &Db) -> BTreeSet<SegmentId> {
    db.segments().iter().map(|segment| segment.id).collect()
}

fn merged(event: &Event) -> bool {
    matches!(event, Event::CompactionEnd { compaction, error: None, .. }
        if compaction.action == CompactionAction::Merge)
}

#[test]
fn a_run_by_hand_is_told_whole_in_order_and_the_same_each_time() {
    let run = || {
        let (ear, vfs) = (Ear::default(), SimVfs::new(3));
        let builder = builder(&vfs.env(3), Background::Manual);
        let db = builder.clone().listener(Arc::new(ear.clone())).open().unwrap();
        assert_eq!(ear.heard().len(), 1, "opening is told before it returns");
        script(&db).unwrap();
        let (heard, stats) = (ear.heard(), db.stats());
        assert_eq!(check(&heard), segments(&db));
        let flushed = |e: &Event| matches!(e, Event::FlushEnd { error: None, .. });
        assert_eq!(count(&heard, flushed), stats.flushes);
        assert_eq!(count(&heard, merged), stats.compactions);
        assert_eq!(stats.histograms.flush_ns.count(), stats.flushes);
        assert_eq!(stats.histograms.compaction_ns.count(), stats.compactions);
        let (mut flushed, mut compacted) = (0, 0);
        for event in &heard {
            match event {
                Event::FlushEnd { bytes_written, .. } => flushed += bytes_written,
                Event::CompactionEnd { bytes_written, .. } => compacted += bytes_written,
                _ => {}
            }
        }
        assert_eq!((flushed, compacted), (stats.flushed_bytes, stats.compacted_bytes));
        for reason in [CompactionReason::Due, CompactionReason::Asked, CompactionReason::Spent] {
            let is_such =
                |e: &Event| matches!(e, Event::CompactionBegin(info) if info.reason == reason);
            assert!(count(&heard, is_such) > 0, "{reason:?}");
        }
        db.put("x", "y").unwrap();
        drop(db);
        let again = Ear::default();
        let db = builder.listener(Arc::new(again.clone())).open().unwrap();
        let told = again.heard();
        let [Event::RecoveryDone { recovery, notices, .. }] = &told[..] else { panic!("{told:?}") };
        assert_eq!((recovery.logs, recovery.operations), (1, 1));
        assert!(recovery.records > 0 && recovery.log_bytes > 0);
        assert_eq!(recovery.segments, db.segments().len() as u64);
        assert!(notices.is_empty(), "{notices:?}");
        format!("{heard:?}")
    };
    assert_eq!(run(), run());
}

#[test]
fn a_load_is_told_with_the_flush_that_it_needs() {
    for background in [Background::Manual, Background::Threads(1)] {
        let (ear, env) = (Ear::default(), Env::in_memory(5));
        let builder = builder(&env, background).listener(Arc::new(ear.clone()));
        let db = builder.open().unwrap();
        db.put(key(1), "x").unwrap();
        db.bulk_load((0..2000).map(|n| (key(n), [7; 100]))).unwrap();
        db.wait_idle().unwrap();
        let live = segments(&db);
        assert!(db.bulk_load([(key(2), "y"), (key(2), "z")]).is_err());
        db.close().unwrap();
        let heard = ear.heard();
        assert_eq!(check(&heard), live);
        let flushed = |e: &Event| matches!(e, Event::FlushEnd { error: None, .. });
        assert_eq!(count(&heard, flushed), 1);
        let load = heard.iter().find_map(|event| match event {
            Event::LoadEnd { load, error: None, .. } => Some(load),
            _ => None,
        });
        let load = load.expect("it is told");
        assert_eq!((&load.keyspace[..], load.entries), ("default", 2000));
        assert!(load.segments.len() > 2 && load.bytes > 200_000, "{load:?}");
        assert_eq!(count(&heard, |e| matches!(e, Event::LoadBegin(_))), 1);
    }
}

#[test]
fn what_fails_is_told_to_its_end() {
    let (mut failed, mut poisoned) = (0, 0);
    for (k, failure) in (0..240).zip([Failure::Refused, Failure::Done].iter().cycle()) {
        let (ear, vfs) = (Ear::default(), SimVfs::new(k));
        let builder = builder(&vfs.env(k), Background::Manual).listener(Arc::new(ear.clone()));
        let db = builder.open().unwrap();
        vfs.fail(k, false, *failure);
        let outcome = short_script(&db);
        // Tells what came of a write, too.
        drop(db.step());
        let (heard, stats) = (ear.heard(), db.stats());
        assert_eq!(check(&heard), segments(&db), "change {k}");
        let refused = count(&heard, |e| matches!(e, Event::Poisoned { .. }));
        assert_eq!(refused, u64::from(stats.poisoned.is_some()), "change {k}: {outcome:?}");
        poisoned += refused;
        let is_failed = |e: &Event| {
            matches!(
                e,
                Event::FlushEnd { error: Some(_), .. }
                    | Event::CompactionEnd { error: Some(_), .. }
            )
        };
        failed += count(&heard, is_failed);
    }
    assert!(failed > 5 && poisoned > 0, "{failed} jobs failed, {poisoned} times refused");
}

#[test]
fn a_damaged_segment_is_told_of_once() {
    let (ear, env) = (Ear::default(), Env::in_memory(1));
    let builder = builder(&env, Background::Manual).listener(Arc::new(ear.clone()));
    let db = builder.cache_bytes(0).open().unwrap();
    for round in 0..2_u8 {
        (0..100).for_each(|n| db.put(key(n), [round; 40]).unwrap());
        db.flush().unwrap();
    }
    let damaged = db.segments()[0].id;
    let path = Path::new(DIR).join(format!("{damaged:020}.seg"));
    let file = env.vfs.open(&path, OpenMode::ReadWrite).unwrap();
    file.write_all_at(b"damage", 1000).unwrap();
    db.compact_range::<&[u8]>(..).unwrap_err();
    db.compact_range::<&[u8]>(..).unwrap_err();
    let heard = ear.heard();
    assert_eq!(check(&heard), segments(&db));
    let of = |event: &Event| match event {
        Event::SegmentQuarantined { segment, error } => Some((*segment, error.kind())),
        _ => None,
    };
    let told: Vec<_> = heard.iter().filter_map(of).collect();
    assert_eq!(told, [(damaged, crate::ErrorKind::Corruption)]);
}

#[test]
fn threads_tell_the_same_and_a_close_waits_for_it() {
    let (ear, env) = (Ear::default(), Env::in_memory(2));
    let listener = Arc::new(ear.clone());
    let held = Arc::downgrade(&listener);
    let builder = builder(&env, Background::Threads(2)).listener(listener);
    let db = builder.open().unwrap();
    script(&db).unwrap();
    db.sync().unwrap();
    db.wait_idle().unwrap();
    let (live, stats) = (segments(&db), db.stats());
    db.close().unwrap();
    let heard = ear.heard();
    assert_eq!(check(&heard), live);
    assert_eq!(count(&heard, merged), stats.compactions);
    assert!(held.upgrade().is_none(), "a closed database lets go of its listener");
}

#[test]
fn a_compaction_that_a_close_cuts_short_is_told_to_its_end() {
    let (ear, env) = (Ear::default(), Env::in_memory(4));
    let builder = builder(&env, Background::Threads(1)).listener(Arc::new(ear.clone()));
    let db = builder.open().unwrap();
    for n in 0..20_000 {
        db.put(key(n), [1; 100]).unwrap();
    }
    let asker = db.clone();
    let asks = std::thread::spawn(move || asker.compact_range::<&[u8]>(..));
    db.put("some", "thing").unwrap();
    db.close().unwrap();
    let outcome = asks.join().unwrap();
    assert!(outcome.is_ok() || matches!(outcome, Err(Error::Closed)), "{outcome:?}");
    check(&ear.heard());
}

#[test]
fn a_listener_that_panics_harms_nothing() {
    for background in [Background::Manual, Background::Threads(1)] {
        let calls = Arc::new(AtomicU64::new(0));
        let called = Arc::clone(&calls);
        let listener = move |event: &Event| {
            called.fetch_add(1, Ordering::Relaxed);
            assert!(matches!(event, Event::Poisoned { .. }), "on purpose");
        };
        let db = builder(&Env::in_memory(1), background).listener(Arc::new(listener));
        let db = db.open().unwrap();
        script(&db).unwrap();
        assert_eq!(db.get(key(5)).unwrap().unwrap(), [5; 40]);
        let other = db.clone();
        db.close().unwrap();
        let panics = other.stats().callback_panics;
        assert!(panics > 10);
        assert_eq!(panics, calls.load(Ordering::Relaxed));
    }
}

/// Calls everything that waits for background work, from within one event.
#[test]
fn a_listener_may_call_the_database_and_wait_for_it() {
    for background in [Background::Manual, Background::Threads(1)] {
        let slot: Arc<OnceLock<Db>> = Arc::default();
        let (own, times) = (Arc::clone(&slot), Arc::new(AtomicU64::new(0)));
        let (seen, done) = (AtomicU64::new(0), Arc::clone(&times));
        let listener = move |event: &Event| {
            let Some(db) = own.get() else { return };
            if !matches!(event, Event::FlushEnd { .. } | Event::CompactionBegin(_))
                || seen.fetch_add(1, Ordering::Relaxed) > 3
            {
                return;
            }
            for n in 0..3000 {
                db.put(key(100_000 + n), [9; 60]).unwrap();
            }
            db.write_with(WriteBatch::new(), Durability::Sync).unwrap();
            db.flush().unwrap();
            db.compact_range::<&[u8]>(..).unwrap();
            db.wait_idle().unwrap();
            assert!(db.stats().flushes > 0);
            done.fetch_add(1, Ordering::Relaxed);
        };
        // So small that writes wait for flushes.
        let db = builder(&Env::in_memory(1), background).write_buffers(2);
        let db = db.listener(Arc::new(listener)).open().unwrap();
        assert!(slot.set(db.clone()).is_ok());
        for n in 0..5000 {
            db.put(key(n), [1; 60]).unwrap();
        }
        db.flush().unwrap();
        db.wait_idle().unwrap();
        while times.load(Ordering::Relaxed) < 4 && db.stats().callback_panics == 0 {
            std::thread::yield_now();
        }
        assert_eq!(db.stats().callback_panics, 0, "no call of it failed");
        db.close().unwrap();
    }
}

#[test]
fn a_listener_may_close_the_database_and_hold_its_last_handle() {
    for background in [Background::Manual, Background::Threads(1)] {
        let env = Env::in_memory(1);
        let slot: Arc<Mutex<Option<Db>>> = Arc::default();
        let own = Arc::clone(&slot);
        let (sender, receiver) = std::sync::mpsc::channel();
        let listener = move |event: &Event| {
            if let Event::FlushEnd { .. } = event
                && let Some(db) = own.lock().unwrap().take()
            {
                sender.send(db.close().is_ok()).unwrap();
            }
        };
        let db = builder(&env, background).listener(Arc::new(listener)).open().unwrap();
        *slot.lock().unwrap() = Some(db.clone());
        db.put("a", "b").unwrap();
        // A flush, unless the close of the listener comes first.
        match db.flush() {
            Ok(()) | Err(Error::Closed) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(receiver.recv().unwrap());
        assert!(matches!(db.put("a", "c"), Err(Error::Closed)));
        drop(db);
        // Once its threads are gone, nobody holds the directory any more.
        let builder = builder(&env, background);
        let mut tries = 0;
        let db = loop {
            match builder.clone().open() {
                Err(Error::Locked { .. }) if tries < 10_000 => std::thread::yield_now(),
                other => break other.unwrap(),
            }
            tries += 1;
        };
        assert_eq!(db.get("a").unwrap().unwrap(), b"b");
    }
}

#[test]
fn a_write_that_waits_is_told_of() {
    let (ear, env) = (Ear::default(), Env::in_memory(1));
    let builder = Db::builder(DIR).env(env).listener(Arc::new(ear.clone()));
    let db = builder.open().unwrap();
    db.put("small", "").unwrap();
    db.inner().pressure.store(900, Ordering::Relaxed);
    db.put("large", vec![1; 1 << 20]).unwrap();
    let stats = db.stats();
    db.close().unwrap();
    let of = |event: &Event| match event {
        Event::WriteStall { delay, cause } => Some((*delay, *cause)),
        _ => None,
    };
    let stalls: Vec<_> = ear.heard().iter().filter_map(of).collect();
    assert_eq!(stalls, [(stats.stalled, StallCause::Behind)]);
    let told = &stats.histograms.stall_ns;
    assert_eq!((told.count(), u128::from(told.max())), (1, stats.stalled.as_nanos()));
}

#[test]
fn of_many_stalls_some_are_left_out_and_of_nothing_else() {
    let ear = Ear::default();
    let events = Events::new(Some(Listener(Arc::new(ear.clone()))), true);
    let stall = || Event::WriteStall { delay: Duration::ZERO, cause: StallCause::Behind };
    let poisoned = || Event::Poisoned { reason: String::new() };
    for _ in 0..3 {
        for _ in 0..1100 {
            events.emit(stall);
            events.emit(poisoned);
        }
        drop(events.after());
    }
    let heard = ear.heard();
    assert_eq!(count(&heard, |e| matches!(e, Event::WriteStall { .. })), 3000);
    assert_eq!(count(&heard, |e| matches!(e, Event::Poisoned { .. })), 3300);
    assert_eq!(events.left_out(), 300);
}
