//! Zeros behind the records of a log that is being synced: they are its end, whatever becomes of them.

use super::tests::*;
use super::*;
use crate::error::{Error, ErrorKind};
use crate::types::{LogId, PAGE};
use crate::vfs::{Call, Env, Failure, MemVfs, SimVfs};
use std::path::Path;
use std::sync::Arc;

fn sim() -> (SimVfs, Env) {
    let vfs = SimVfs::new(0);
    let env = vfs.env(1);
    env.vfs.create_dir_all(Path::new(DIR)).unwrap();
    env.vfs.sync_dir(Path::new("/")).unwrap();
    (vfs, env)
}

fn on(vfs: MemVfs) -> Env {
    Env { vfs: Arc::new(vfs), ..Env::in_memory(1) }
}

/// As a synced write does it.
fn append_synced(log: &mut LogWriter, n: u32) {
    append(log, n).unwrap();
    log.write_ahead();
    sync(log);
    log.append_mark().unwrap();
}

#[test]
fn a_log_ends_where_its_zeros_begin() {
    let env = env();
    let mut log = create(&env, 1, None).unwrap();
    for n in 0..500 {
        append_synced(&mut log, n);
        let bytes = read(&env, 1);
        assert!(bytes.len() as u64 > log.end() && bytes.len().is_multiple_of(PAGE));
        assert!(bytes.len() as u64 <= 2 * log.end() + 2 * PAGE as u64);
        assert!(bytes[log.end() as usize..].iter().all(|byte| *byte == 0));
    }
    let (seen, outcome) = replayed(&env, Recovery::Strict).unwrap();
    assert_eq!(seen.len(), 500);
    assert_eq!((outcome.last_log, outcome.torn), (Some((LogId(1), log.end())), None));
    // A log that follows gives the end, and what is behind it is not looked at.
    let mut next = create(&env, 2, Some(&log)).unwrap();
    append(&mut next, 500).unwrap();
    let mut bytes = read(&env, 1);
    bytes[log.end() as usize + 3] = 1;
    write(&env, 1, &bytes);
    assert_eq!(replayed(&env, Recovery::Strict).unwrap().0.len(), 501);
}

#[test]
fn what_is_cut_off_has_its_own_length() {
    let env = env();
    let mut log = create(&env, 1, None).unwrap();
    append_synced(&mut log, 0);
    log.cut_ahead();
    assert_eq!(read(&env, 1).len() as u64, log.end());
    log.write_ahead();
    append_synced(&mut log, 1);
    assert_eq!(read(&env, 1).len() as u64, log.end(), "none are written any more");
    assert_eq!(replayed(&env, Recovery::Strict).unwrap().0, [0, 1]);
}

#[test]
fn zeros_are_not_written_behind_large_records() {
    let env = env();
    let mut log = create(&env, 1, None).unwrap();
    for _ in 0..3 {
        let bytes = batch(&[put(b"1234", &[7; 100_000])]);
        log.append(log.next_seqno(), 1, &[&bytes]).unwrap();
        log.write_ahead();
        assert_eq!(read(&env, 1).len() as u64, log.end());
    }
    append_synced(&mut log, 3);
    assert!(read(&env, 1).len() as u64 > log.end());
}

#[test]
fn a_flipped_bit_among_the_zeros_loses_nothing() {
    let env = env();
    let mut log = create(&env, 1, None).unwrap();
    (0..4).for_each(|n| append_synced(&mut log, n));
    let sound = read(&env, 1);
    for at in log.end() as usize..sound.len() {
        let mut bytes = sound.clone();
        bytes[at] ^= 1 << (at % 8);
        write(&env, 1, &bytes);
        for recovery in [TOLERATE, Recovery::PointInTime] {
            let (seen, outcome) = replayed(&env, recovery).unwrap();
            assert_eq!(seen, [0, 1, 2, 3]);
            assert_eq!(outcome.last_log, Some((LogId(1), log.end())));
        }
    }
}

#[test]
fn a_flipped_bit_in_the_last_synced_record_before_zeros_is_reported() {
    let env = env();
    let mut log = create(&env, 1, None).unwrap();
    (0..3).for_each(|n| append_synced(&mut log, n));
    let start = log.end() as usize;
    append_synced(&mut log, 3);
    let end = log.durable() as usize;
    assert!(start < end && (end as u64) < log.end());
    let sound = read(&env, 1);
    for at in start..end {
        let mut bytes = sound.clone();
        bytes[at] ^= 1 << (at % 8);
        write(&env, 1, &bytes);
        for recovery in [TOLERATE, Recovery::Strict] {
            assert!(is_damage(&replayed(&env, recovery), 1, start as u64), "byte {at}");
        }
    }
}

#[test]
fn zeros_that_cannot_be_written_lose_nothing_and_are_not_tried_again() {
    let failures =
        [Failure::Refused, Failure::NoSpace, Failure::Half, Failure::Interrupted, Failure::Done];
    for failure in failures {
        for k in 0..6 {
            for sticky in [false, true] {
                let (vfs, env) = sim();
                let mut log = create(&env, 1, None).unwrap();
                // More than a page, so that there are several pieces.
                for n in 0..200 {
                    append(&mut log, n).unwrap();
                }
                let before = vfs.changes();
                vfs.fail(k, sticky, failure);
                log.write_ahead();
                vfs.heal();
                let pieces = vfs.changes() - before;
                let end = log.end();
                let failed = k < 3;
                assert_eq!(pieces, if failed { k + 2 } else { 3 }, "{failure:?} {k}");
                assert!(!log.must_rotate());
                if failed && (!sticky || failure == Failure::NoSpace) {
                    assert_eq!(read(&env, 1).len() as u64, end);
                }
                let before = vfs.changes();
                append(&mut log, 200).unwrap();
                log.write_ahead();
                assert_eq!(vfs.changes() - before, 1, "only the record is written");
                sync(&mut log);
                log.append_mark().unwrap();
                for seed in 0..5 {
                    let seen = replayed(&on(vfs.power_loss(seed)), Recovery::Strict).unwrap().0;
                    assert_eq!(seen.len(), 201, "{failure:?} {k}");
                }
            }
        }
    }
}

/// At every change of a log with zeros, and of the zeros themselves.
#[test]
fn a_crash_at_any_point_leaves_a_prefix_with_all_that_was_synced() {
    let (vfs, env) = sim();
    let mut log = create(&env, 1, None).unwrap();
    let written = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let synced = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let images = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let order = std::sync::atomic::Ordering::Relaxed;
    let (w, s, i) = (Arc::clone(&written), Arc::clone(&synced), Arc::clone(&images));
    vfs.before_each_change(move |vfs, _: Call| {
        let (written, synced) = (w.load(order), s.load(order));
        let seeds = (0..6).map(|seed| vfs.power_loss(seed));
        for image in seeds.chain([vfs.process_death()]) {
            let (seen, _) = replayed(&on(image), TOLERATE).unwrap();
            assert!(seen.iter().copied().eq(0..seen.len() as u32));
            assert!((synced..=written).contains(&(seen.len() as u32)));
            i.fetch_add(1, order);
        }
    });
    for n in 0..150 {
        written.store(n + 1, order);
        append(&mut log, n).unwrap();
        if n % 4 != 3 {
            log.write_ahead();
            sync(&mut log);
            synced.store(n + 1, order);
            log.append_mark().unwrap();
        }
        if n == 120 {
            log.cut_ahead();
        }
    }
    vfs.forget_hook();
    assert!(images.load(order) > 2000);
}

/// Verifying an open database met the end of the file too early, when the log was cut meanwhile.
#[test]
fn a_walk_over_an_open_log_goes_on_when_its_zeros_are_cut_off() {
    let env = env();
    let mut log = create(&env, 1, None).unwrap();
    (0..50).for_each(|n| append_synced(&mut log, n));
    let mut logs = open_logs(&env, Path::new(DIR), LogId(1), log.id()).unwrap();
    logs.end_at(log.end());
    log.cut_ahead();
    let mut seen = 0;
    let floor = Some(LogId(1));
    let walk = logs.walk(Path::new(DIR), Some(DATABASE), floor, Some(log.end()), &mut |_, _| {
        seen += 1;
        Ok(())
    });
    let walk = walk.unwrap();
    assert_eq!((seen, walk.holes.len(), logs.bytes()), (50, 0, log.end()));
}

/// Nothing may be appended to a log whose last append failed, and no zeros either.
#[test]
fn a_log_that_must_rotate_gets_no_zeros() {
    let (vfs, env) = sim();
    let mut log = create(&env, 1, None).unwrap();
    append_synced(&mut log, 0);
    vfs.fail(0, false, Failure::Half);
    assert_eq!(append(&mut log, 1).unwrap_err().kind(), ErrorKind::Io);
    let len = read(&env, 1).len() as u64;
    assert_eq!(len, log.end(), "the zeros were cut off with the rest of the record");
    log.write_ahead();
    assert_eq!(read(&env, 1).len() as u64, len);
    assert!(matches!(log.append_mark(), Err(Error::Poisoned { .. })));
}
