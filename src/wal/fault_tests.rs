use super::tests::*;
use super::*;
use crate::error::ErrorKind;
use crate::types::{LogId, SeqNo};
use crate::vfs::{Failure, SimVfs};
use proptest::prelude::*;
use std::path::Path;

#[test]
fn a_failed_append_leaves_nothing_and_stops_the_log() {
    for fault in [Failure::Refused, Failure::Half, Failure::Done] {
        for sticky in [false, true] {
            let vfs = SimVfs::new(0);
            let env = vfs.env(1);
            env.vfs.create_dir_all(Path::new(DIR)).unwrap();
            let mut log = create(&env, 1, None).unwrap();
            append(&mut log, 0).unwrap();
            let (end, last) = (log.end(), log.last_seqno());
            vfs.fail(0, sticky, fault);
            assert_eq!(append(&mut log, 1).unwrap_err().kind(), ErrorKind::Io);
            vfs.heal();
            assert_eq!((log.end(), log.last_seqno()), (end, last));
            assert!(log.must_rotate());
            assert_eq!(append(&mut log, 1).unwrap_err().kind(), ErrorKind::Poisoned);
            assert_eq!(log.append_mark().unwrap_err().kind(), ErrorKind::Poisoned);
            sync(&mut log);
            assert_eq!(log.durable(), end);
            if !sticky {
                assert_eq!(read(&env, 1).len() as u64, end);
            }
            let mut next = create(&env, 2, Some(&log)).unwrap();
            append(&mut next, 1).unwrap();
            assert_eq!(replayed(&env, Recovery::Strict).unwrap().0, [0, 1], "{fault:?}");
        }
    }
}

#[test]
fn a_log_that_could_not_be_created_leaves_no_trace_or_says_so() {
    for k in 0..8 {
        for fault in [Failure::Refused, Failure::Half, Failure::Done] {
            for sticky in [false, true] {
                let vfs = SimVfs::new(0);
                let env = vfs.env(1);
                env.vfs.create_dir_all(Path::new(DIR)).unwrap();
                let mut one = create(&env, 1, None).unwrap();
                append(&mut one, 0).unwrap();
                vfs.fail(k, sticky, fault);
                let outcome = create(&env, 2, Some(&one));
                vfs.heal();
                match outcome {
                    Ok(_) => assert!(k >= 4),
                    Err(error) if error.kind() == ErrorKind::Poisoned => {
                        // A sync failed, or the file could not be removed again.
                        assert!(sticky || k == 2 || k == 3);
                    }
                    Err(_) => {
                        // A file that was created although that failed is empty, and replay passes over it.
                        let created = k == 0 && fault == Failure::Done;
                        let names = env.vfs.read_dir(Path::new(DIR)).unwrap();
                        assert_eq!(names.len(), 1 + usize::from(created));
                        append(&mut one, 1).unwrap();
                        let mut three = create(&env, 3, Some(&one)).unwrap();
                        append(&mut three, 2).unwrap();
                        assert_eq!(replayed(&env, Recovery::Strict).unwrap().0, [0, 1, 2]);
                    }
                }
            }
        }
    }
}

#[test]
fn a_record_out_of_sequence_is_refused_before_it_is_written() {
    let env = env();
    let mut log = create(&env, 1, None).unwrap();
    let bytes = batch(&[put(b"1234", b"")]);
    for (first, ops) in [(0, 1), (2, 1), (1, 0)] {
        assert!(log.append(SeqNo(first), ops, &[&bytes]).is_err());
    }
    log.append(SeqNo(1), 1, &[&bytes]).unwrap();
    let end = Some((LogId(1), log.end()));
    let dir = Path::new(DIR);
    assert!(LogWriter::create(&env, dir, DATABASE, LogId(2), end, SeqNo::MAX).is_err());
    let mut last =
        LogWriter::create(&env, dir, DATABASE, LogId(2), end, SeqNo(u64::MAX - 2)).unwrap();
    last.append(SeqNo(u64::MAX - 1), 1, &[&bytes]).unwrap();
    assert!(last.append(SeqNo::MAX, 1, &[&bytes]).is_err());
    let (seen, outcome) = replay_from(&env, 2, TOLERATE);
    assert_eq!((seen.len(), outcome.unwrap().last_seqno), (1, SeqNo(u64::MAX - 1)));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
        wal_bytes(&data);
    }

    /// Overwrites anything in a synced chain; what comes out is an error or a prefix.
    #[test]
    fn overwritten_chains_give_errors_or_prefixes(
        id in 1..4u64,
        place in any::<prop::sample::Index>(),
        patch in prop::collection::vec(any::<u8>(), 1..80),
        cut in any::<bool>(),
    ) {
        let env = env();
        let [.., mut three] = three_logs(&env);
        sync(&mut three);
        append(&mut three, 9).unwrap();
        let mut bytes = read(&env, id);
        let at = place.index(bytes.len());
        if cut {
            bytes.truncate(at);
        } else {
            bytes.iter_mut().skip(at).zip(patch).for_each(|(byte, new)| *byte = new);
        }
        write(&env, id, &bytes);
        for recovery in ALL {
            match replayed(&env, recovery) {
                Ok((seen, _)) => prop_assert!(seen.iter().copied().eq(0..seen.len() as u32)),
                Err(error) => prop_assert!(matches!(
                    error.kind(),
                    ErrorKind::Corruption | ErrorKind::Unsupported
                )),
            }
        }
    }

    /// Power loss: of what was not synced, any sectors of 512 bytes survive and the others are
    /// zeros or garbage. Everything acknowledged as durable is there, and nothing but a prefix.
    #[test]
    fn power_loss_leaves_a_prefix_with_everything_durable(
        steps in prop::collection::vec((0..8u8, 0..900usize), 1..40),
        survives in prop::collection::vec(0..3u8, 1..60),
    ) {
        let env = env();
        let mut logs = vec![create(&env, 1, None).unwrap()];
        let mut synced = vec![read(&env, 1)];
        let (mut written, mut acknowledged) = (0u32, 0);
        for (kind, size) in steps {
            let id = logs.len() as u64 + 1;
            let log = logs.last_mut().unwrap();
            match kind {
                0 => {
                    // A sync takes the older logs first.
                    for (log, synced) in logs.iter_mut().zip(&mut synced) {
                        sync(log);
                        *synced = read(&env, log.id().0);
                    }
                    acknowledged = written;
                }
                1 => {
                    let new = create(&env, id, Some(log)).unwrap();
                    logs.push(new);
                    synced.push(read(&env, id));
                }
                2 => log.append_mark().unwrap(),
                3 => log.write_ahead(),
                _ => {
                    let value = vec![kind; size];
                    let bytes = batch(&[put(&written.to_be_bytes(), &value)]);
                    log.append(log.next_seqno(), 1, &[&bytes]).unwrap();
                    written += 1;
                }
            }
        }
        let mut fate = survives.iter().cycle();
        for (log, synced) in logs.iter().zip(&synced) {
            let mut bytes = read(&env, log.id().0);
            let sectors = bytes.chunks_mut(512).zip((0..).step_by(512));
            for (sector, start) in sectors {
                let old = synced.get(start..).unwrap_or_default();
                let old = &old[..old.len().min(sector.len())];
                if old == sector {
                    continue;
                }
                let lost = match fate.next() {
                    Some(0) => continue,
                    Some(1) => 0,
                    _ => 0xc3,
                };
                sector.fill(lost);
                sector[..old.len()].copy_from_slice(old);
            }
            write(&env, log.id().0, &bytes);
        }
        let (seen, outcome) = replayed(&env, TOLERATE).unwrap();
        prop_assert!(seen.iter().copied().eq(0..seen.len() as u32));
        prop_assert!((acknowledged..=written).contains(&(seen.len() as u32)));
        // Recovery goes on in a new log; then all is as if nothing had happened.
        let dir = Path::new(DIR);
        remove_logs(&env, dir, &outcome.discarded).unwrap();
        let last = outcome.last_seqno;
        let id = LogId(logs.len() as u64 + 1);
        let mut next = LogWriter::create(&env, dir, DATABASE, id, outcome.last_log, last).unwrap();
        append(&mut next, seen.len() as u32).unwrap();
        let (again, _) = replayed(&env, Recovery::Strict).unwrap();
        prop_assert!(again.iter().copied().eq(0..=seen.len() as u32));
    }
}

/// A device that reads wrong again and again made a log that had been closed look torn.
#[test]
fn a_log_that_reads_differently_each_time_is_not_torn() {
    for failure in [Failure::FlippedRead, Failure::MisplacedRead] {
        let vfs = SimVfs::new(3);
        let env = vfs.env(1);
        env.vfs.create_dir_all(Path::new(DIR)).unwrap();
        let mut log = create(&env, 1, None).unwrap();
        for n in 0..100 {
            append(&mut log, n).unwrap();
        }
        sync(&mut log);
        for k in 0..10 {
            vfs.fail_any(k, true, failure);
            let outcome = replayed(&env, Recovery::TolerateTornTail);
            vfs.heal();
            match outcome {
                Ok((seen, _)) => assert_eq!(seen.len(), 100, "{failure:?} {k}"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Corruption, "{failure:?} {k}"),
            }
        }
    }
}
