//! Who hears what of a shared sync.

use super::*;
use std::sync::atomic::AtomicUsize;

fn at(log: u64, end: u64) -> Position {
    (LogId(log), end)
}

fn never(_: &dyn Fn() -> bool) {}

/// What the last log says of itself is nothing that the next one says.
#[test]
fn a_log_that_is_begun_says_nothing_yet() {
    let syncer = Syncer::new("one", at(1, 64));
    syncer.note_appended(200);
    let said = syncer.sync_to(at(1, 200), || Ok::<_, ()>(()), never, |_| Ok(()), |_| {});
    assert_eq!((said, syncer.durable_in_current()), (Ok(false), 200));
    syncer.note_mentioned(200);
    assert!(syncer.is_mentioned(at(1, 200)) && !syncer.is_mentioned(at(1, 201)));
    syncer.begin_log("two", at(2, 64));
    assert_eq!((syncer.durable_in_current(), syncer.appended()), (0, at(2, 64)));
    assert!(syncer.is_mentioned(at(1, 200)) && !syncer.is_mentioned(at(1, 201)));
    assert!(!syncer.is_mentioned(at(2, 64)));
    // Nor is it durable, and the one before goes first.
    let files = |files: &[(LogId, &str)]| {
        assert_eq!(files, [(LogId(1), "one"), (LogId(2), "two")]);
        Ok(())
    };
    let conclude = |durable| {
        assert_eq!(durable, at(2, 64));
        syncer.note_mentioned(64);
    };
    assert_eq!(syncer.sync_to(at(2, 64), || Ok::<_, ()>(()), never, files, conclude), Ok(true));
    assert_eq!(syncer.durable_in_current(), 64);
}

/// Those that a sync covers hear so, and what was said of it meanwhile; of those that came too late
/// one syncs, for all of them. When that fails, all hear of it.
#[test]
fn each_that_waits_has_its_answer() {
    for fails in [false, true] {
        let syncer = Syncer::new((), at(1, 64));
        let syncs = AtomicUsize::new(0);
        let failed = AtomicUsize::new(0);
        let check = || if failed.load(Ordering::Acquire) > 0 { Err(()) } else { Ok(()) };
        let wait_for = |waiting| {
            while syncer.lock().waiting.len() < waiting {
                std::thread::yield_now();
            }
        };
        // The first one waits until two others wait that it covers, and three that it does not.
        let sync = |_: &[(LogId, ())]| {
            let nth = syncs.fetch_add(1, Ordering::AcqRel);
            if nth == 0 {
                wait_for(2);
                syncer.note_appended(300);
                wait_for(5);
            }
            if nth == 1 && fails {
                failed.store(1, Ordering::Release);
                return Err(());
            }
            Ok(())
        };
        let write = |end: u64| {
            let conclude = |durable: Position| syncer.note_mentioned(durable.1);
            syncer.sync_to(at(1, end), check, never, sync, conclude)
        };
        std::thread::scope(|scope| {
            syncer.note_appended(200);
            let first = scope.spawn(|| write(200));
            while syncs.load(Ordering::Acquire) == 0 {
                std::thread::yield_now();
            }
            let covered: Vec<_> = [100, 200].map(|end| scope.spawn(move || write(end))).into();
            wait_for(2);
            let late: Vec<_> = [300, 250, 300].map(|end| scope.spawn(move || write(end))).into();
            assert_eq!(first.join().unwrap(), Ok(true));
            for one in covered {
                assert_eq!(one.join().unwrap(), Ok(true));
            }
            let outcome = if fails { Err(()) } else { Ok(true) };
            for one in late {
                assert_eq!(one.join().unwrap(), outcome);
            }
        });
        assert_eq!(syncs.load(Ordering::Relaxed), 2);
        assert!(!syncer.lock().syncing && syncer.lock().waiting.is_empty());
    }
}
