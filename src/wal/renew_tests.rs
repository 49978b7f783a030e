//! What replay read and nobody knew to be durable is so after it was renewed, or an error says why not.

use super::replay::PIECE;
use super::tests::*;
use super::*;
use crate::types::LogId;
use crate::vfs::{Env, Failure, OpenMode, SimVfs};
use std::path::Path;
use std::sync::Arc;

/// Four logs, of which the system shows all and a failed sync has lost all.
fn forgotten(seed: u64) -> (SimVfs, Env, u32) {
    forgotten_but(seed, 0)
}

/// The same, but for so many records of the first one, which had been synced.
fn forgotten_but(seed: u64, synced: u32) -> (SimVfs, Env, u32) {
    let vfs = SimVfs::new(seed);
    let env = vfs.env(seed);
    env.vfs.create_dir_all(Path::new(DIR)).unwrap();
    env.vfs.sync_dir(Path::new("/")).unwrap();
    let mut n = 0u32;
    let mut before: Option<LogWriter> = None;
    for id in 1..=4 {
        let mut log = create(&env, id, before.as_ref()).unwrap();
        // Within a piece that is read at once, over the end of it, and longer.
        for len in [10, 1000, PIECE as usize - 500, 20, 30, 2 * PIECE as usize, 40].repeat(2) {
            let bytes = batch(&[put(&n.to_be_bytes(), &vec![id as u8; len])]);
            log.append(log.next_seqno(), 1, &[&bytes]).unwrap();
            n += 1;
            if n == synced {
                sync(&mut log);
            }
        }
        vfs.fail(0, false, Failure::Refused);
        log.file().sync_data().unwrap_err();
        vfs.heal();
        before = Some(log);
    }
    (vfs, env, n)
}

fn on(vfs: crate::vfs::MemVfs) -> Env {
    Env { vfs: Arc::new(vfs), ..Env::in_memory(1) }
}

fn renew_all(env: &Env, read: &Replayed, threads: bool) -> crate::error::Result<()> {
    renew(env, Path::new(DIR), DATABASE, &read.uncertain, threads)
}

#[test]
fn several_logs_are_renewed_by_one_thread_or_two() {
    for threads in [false, true] {
        for seed in 0..4 {
            let (vfs, env, n) = forgotten(seed);
            let (seen, read) = replayed(&env, Recovery::Strict).unwrap();
            assert_eq!((seen.len() as u32, read.uncertain.len()), (n, 4));
            let lost = replayed(&on(vfs.power_loss(seed)), Recovery::TolerateTornTail);
            assert!(lost.is_ok_and(|(seen, _)| (seen.len() as u32) < n));
            renew_all(&env, &read, threads).unwrap();
            let (seen, _) = replayed(&on(vfs.power_loss(seed)), Recovery::Strict).unwrap();
            assert!(seen.into_iter().eq(0..n));
        }
    }
}

#[test]
fn whichever_log_cannot_be_renewed_the_error_comes_back() {
    for threads in [false, true] {
        let (vfs, env, _) = forgotten(0);
        let (_, read) = replayed(&env, Recovery::Strict).unwrap();
        let before = vfs.changes();
        renew_all(&env, &read, threads).unwrap();
        let changes = vfs.changes() - before;
        assert!(changes > 4 * 3);
        for k in 0..changes {
            let (vfs, env, _) = forgotten(0);
            let (_, read) = replayed(&env, Recovery::Strict).unwrap();
            vfs.fail(k, false, Failure::Refused);
            assert!(renew_all(&env, &read, threads).is_err(), "call {k}");
        }
    }
}

/// Logs become durable in any order. If power is lost in between, what is left has what had been
/// synced, and no gap.
#[test]
fn power_may_be_lost_between_logs_that_are_renewed_in_any_order() {
    const SYNCED: u32 = 9;
    let in_order = |seed, order| {
        let (vfs, env, n) = forgotten_but(seed, SYNCED);
        let (seen, mut read) = replayed(&env, Recovery::Strict).unwrap();
        assert_eq!((seen.len() as u32, read.uncertain.len()), (n, 4));
        match order {
            0 => {}
            1 => read.uncertain.reverse(),
            _ => read.uncertain.swap(1, 2),
        }
        (vfs, env, read)
    };
    for order in 0..3 {
        let threads = order == 2;
        let (vfs, env, read) = in_order(0, order);
        let before = vfs.changes();
        renew_all(&env, &read, threads).unwrap();
        let changes = vfs.changes() - before;
        let mut longest = 0;
        for k in (0..changes).step_by(2) {
            let (vfs, env, read) = in_order(k, order);
            vfs.fail(k, true, Failure::Refused);
            assert!(renew_all(&env, &read, threads).is_err(), "call {k}");
            for seed in 0..2 {
                let left = replayed(&on(vfs.power_loss(seed)), Recovery::TolerateTornTail);
                let (seen, left) = left.unwrap();
                let n = seen.len() as u32;
                assert!(n >= SYNCED && seen.into_iter().eq(0..n), "call {k}");
                assert!(left.damage.is_none());
                longest = longest.max(n);
            }
        }
        assert!(longest > SYNCED, "something was renewed");
    }
}

/// What is wrong when it is read again is not written.
#[test]
fn what_does_not_verify_any_more_is_not_made_durable() {
    let (vfs, env, _) = forgotten(0);
    let (_, read) = replayed(&env, Recovery::Strict).unwrap();
    let path = Path::new(DIR).join(log_file_name(LogId(2)));
    let file = env.vfs.open(&path, OpenMode::ReadWrite).unwrap();
    // In the second record.
    file.write_all_at(&[0x55], 300).unwrap();
    let before = vfs.changes();
    let error = renew_all(&env, &read, false).unwrap_err();
    assert!(matches!(error, crate::error::Error::Corruption { offset: 64..300, .. }), "{error}");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 300).unwrap();
    assert_eq!(byte, [0x55]);
    assert!(vfs.changes() > before, "the log before it was renewed");
}
