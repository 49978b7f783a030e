//! Models of the shared `fsync`: whoever hears that its append is durable is right, whatever other
//! writers, rotations and failures do meanwhile; what failed is not tried again; nobody that waits is
//! forgotten.

use super::*;
use crate::sync::Arc;
use crate::sync::modeled::{Mistake, explore, makes};
use loom::sync::Mutex as Lock;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread;

/// A file: how much was written, and how much of it a crash leaves.
#[derive(Default)]
struct File {
    written: AtomicU64,
    durable: AtomicU64,
}

struct Model {
    files: [File; 2],
    /// The log that takes writes, under the writers' lock.
    writer: Lock<u64>,
    syncer: Syncer<u64>,
    /// Syncs that are yet to succeed; the next one fails.
    fails_after: AtomicU64,
    poisoned: AtomicBool,
    /// How often one waited for others.
    gathered: AtomicU64,
    /// Up to where each log says that it is durable.
    mentioned: [AtomicU64; 2],
}

impl Model {
    fn new(fails_after: u64) -> Arc<Model> {
        Arc::new(Model {
            files: Default::default(),
            writer: Lock::new(0),
            syncer: Syncer::new(0, (LogId(0), 0)),
            fails_after: AtomicU64::new(fails_after),
            poisoned: AtomicBool::new(false),
            gathered: AtomicU64::new(0),
            mentioned: Default::default(),
        })
    }

    fn append(&self) -> Position {
        let log = self.writer.lock().unwrap();
        let end = self.files[*log as usize].written.fetch_add(1, Ordering::Relaxed) + 1;
        let position = (LogId(*log), end);
        self.syncer.note_appended(end);
        position
    }

    fn rotate(&self) {
        let mut log = self.writer.lock().unwrap();
        self.syncer.begin_log(*log + 1, (LogId(*log + 1), 0));
        *log += 1;
    }

    fn sync_files(&self, files: &[(LogId, u64)]) -> Result<(), ()> {
        assert!(!self.poisoned.load(Ordering::Relaxed), "a failed sync is tried again");
        for (id, file) in files {
            assert_eq!(id.0, *file);
            let file = &self.files[*file as usize];
            // What is written after the call may be left out.
            let written = file.written.load(Ordering::Acquire);
            thread::yield_now();
            if self.fails_after.load(Ordering::Relaxed) == 0 {
                self.poisoned.store(true, Ordering::Release);
                return Err(());
            }
            self.fails_after.fetch_sub(1, Ordering::Relaxed);
            file.durable.fetch_max(written, Ordering::Release);
        }
        Ok(())
    }

    fn write(&self, without_check: bool) {
        let position = self.append();
        let check = || {
            let poisoned = !without_check && self.poisoned.load(Ordering::Acquire);
            if poisoned { Err(()) } else { Ok(()) }
        };
        // Looks twice, as `commit` looks a few times.
        let gather = |is_complete: &dyn Fn() -> bool| {
            self.gathered.fetch_add(1, Ordering::Relaxed);
            if !is_complete() {
                thread::yield_now();
                is_complete();
            }
        };
        // If nobody is in the way, as `commit` does.
        let conclude = |durable: Position| {
            if let Ok(log) = self.writer.try_lock()
                && *log == durable.0.0
            {
                self.mentioned[*log as usize].fetch_max(durable.1, Ordering::Release);
                self.syncer.note_mentioned(durable.1);
            }
        };
        let sync = |files: &[(LogId, u64)]| self.sync_files(files);
        let outcome = self.syncer.sync_to(position, check, gather, sync, conclude);
        if let Ok(mentioned) = outcome {
            self.assert_durable(position);
            let says = |log: u64| self.mentioned[log as usize].load(Ordering::Acquire);
            let newer = position.0.0 == 0 && says(1) > 0;
            assert!(!mentioned || newer || says(position.0.0) >= position.1, "nothing says so");
        } else {
            assert!(self.poisoned.load(Ordering::Acquire));
        }
    }

    /// All that was written before a position is durable: older logs too.
    fn assert_durable(&self, (log, end): Position) {
        for (n, file) in self.files.iter().enumerate().take(log.0 as usize + 1) {
            let written = file.written.load(Ordering::Acquire);
            let end = if n as u64 == log.0 { end } else { written };
            assert!(file.durable.load(Ordering::Acquire) >= end, "said to be durable, and is not");
        }
    }
}

fn model(fails_after: u64, rotates: bool) {
    let model = Model::new(fails_after);
    let without_check = makes(Mistake::OfTheModel) && fails_after < 3;
    let write = || {
        let model = Arc::clone(&model);
        move || model.write(without_check)
    };
    let mut others = vec![thread::spawn(write())];
    if rotates {
        let model = Arc::clone(&model);
        others.push(thread::spawn(move || model.rotate()));
    } else {
        others.push(thread::spawn(write()));
    }
    write()();
    others.into_iter().for_each(|other| other.join().unwrap());
}

#[test]
fn loom_what_is_said_to_be_durable_is() {
    explore("syncer: three writers", None, || model(100, false));
}

/// Two threads that come again: the second time, each may be waited for. One that is alone in the end
/// gets through.
fn come_again() {
    let model = Model::new(100);
    let other = Arc::clone(&model);
    let other = thread::spawn(move || (0..2).for_each(|_| other.write(false)));
    (0..2).for_each(|_| model.write(false));
    other.join().unwrap();
    let state = model.syncer.lock();
    assert!(!state.syncing && state.expected <= 4);
    assert!(model.syncer.entered() <= 4 && state.begun <= model.syncer.entered());
}

/// One thread is never kept waiting.
fn alone() {
    let model = Model::new(100);
    (0..3).for_each(|_| model.write(false));
    assert_eq!(model.gathered.load(Ordering::Relaxed), 0);
}

#[test]
fn loom_who_is_expected_may_come_or_not() {
    explore("syncer: two writers, two writes each", None, come_again);
    explore("syncer: one writer, three writes", None, alone);
}

#[test]
fn loom_older_logs_are_durable_first() {
    explore("syncer: two writers and a rotation", None, || model(100, true));
}

#[test]
fn loom_a_failed_sync_is_not_tried_again() {
    explore("syncer: three writers, the first sync fails", None, || model(0, false));
    explore("syncer: three writers, the second sync fails", None, || model(1, false));
}

#[test]
#[should_panic(expected = "said to be durable")]
fn loom_finds_that_later_appends_are_counted_as_synced() {
    explore("", Some(Mistake::OfTheModel), || model(100, false));
}

#[test]
#[should_panic(expected = "tried again")]
fn loom_finds_a_second_try() {
    explore("", Some(Mistake::OfTheModel), || model(0, false));
}
