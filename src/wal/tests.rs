use super::format::*;
use super::ops::{batches, encoded_len};
use super::replay::{Replayed, Torn};
use super::*;
use crate::error::{Error, ErrorKind, Malformed, Result};
use crate::types::{KeyspaceId, Kind, LogId, SeqNo};
use crate::vfs::{Env, OpenMode};
use std::path::Path;

pub(super) const DIR: &str = "/db";
pub(super) const DATABASE: u64 = 0xDB;
pub(super) const TOLERATE: Recovery = Recovery::TolerateTornTail;
pub(super) const ALL: [Recovery; 3] = [TOLERATE, Recovery::PointInTime, Recovery::Strict];

pub(super) fn env() -> Env {
    let env = Env::in_memory(7);
    env.vfs.create_dir_all(Path::new(DIR)).unwrap();
    env
}

pub(super) fn read(env: &Env, id: u64) -> Vec<u8> {
    let path = Path::new(DIR).join(log_file_name(LogId(id)));
    let file = env.vfs.open(&path, OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

pub(super) fn write(env: &Env, id: u64, bytes: &[u8]) {
    let path = Path::new(DIR).join(log_file_name(LogId(id)));
    if env.vfs.exists(&path).unwrap() {
        env.vfs.remove_file(&path).unwrap();
    }
    let file = env.vfs.open(&path, OpenMode::CreateNew).unwrap();
    file.write_all_at(bytes, 0).unwrap();
}

fn remove(env: &Env, id: u64) {
    env.vfs.remove_file(&Path::new(DIR).join(log_file_name(LogId(id)))).unwrap();
}

pub(super) fn create(env: &Env, id: u64, before: Option<&LogWriter>) -> Result<LogWriter> {
    let predecessor = before.map(|log| (log.id(), log.end()));
    let last = before.map_or(SeqNo(0), |log| log.last_seqno());
    LogWriter::create(env, Path::new(DIR), DATABASE, LogId(id), predecessor, last)
}

pub(super) fn put<'a>(key: &'a [u8], value: &'a [u8]) -> Op<'a> {
    Op { keyspace: KeyspaceId(3), kind: Kind::Put, key, value }
}

pub(super) fn batch(ops: &[Op<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    crate::coding::put_varint(&mut out, ops.len() as u64);
    for op in ops {
        encode_op(&mut out, *op);
    }
    out
}

/// Appends a record with one put of `n`.
pub(super) fn append(log: &mut LogWriter, n: u32) -> Result<()> {
    let bytes = batch(&[put(&n.to_be_bytes(), b"value")]);
    log.append(log.next_seqno(), 1, &[&bytes])
}

pub(super) fn sync(log: &mut LogWriter) {
    let end = log.end();
    log.file().sync_data().unwrap();
    log.mark_durable(end);
}

pub(super) type Seen = Vec<(SeqNo, Kind, Vec<u8>, Vec<u8>)>;

pub(super) fn replay_from(env: &Env, floor: u64, recovery: Recovery) -> (Seen, Result<Replayed>) {
    let mut seen = Seen::new();
    let outcome =
        replay(env, Path::new(DIR), DATABASE, LogId(floor), recovery, &mut |_, seqno, op| {
            assert_eq!(op.keyspace, KeyspaceId(3));
            seen.push((seqno, op.kind, op.key.to_vec(), op.value.to_vec()));
            Ok(())
        });
    (seen, outcome)
}

fn keys(seen: &Seen) -> Vec<u32> {
    seen.iter().map(|(_, _, key, _)| u32::from_be_bytes(key[..].try_into().unwrap())).collect()
}

/// What log 1 and its successors hold, as the numbers put.
pub(super) fn replayed(env: &Env, recovery: Recovery) -> Result<(Vec<u32>, Replayed)> {
    let (seen, outcome) = replay_from(env, 1, recovery);
    let outcome = outcome?;
    assert!(seen.iter().map(|entry| entry.0.0).eq(outcome.base.0 + 1..=outcome.last_seqno.0));
    Ok((keys(&seen), outcome))
}

pub(super) fn is_damage(outcome: &Result<(Vec<u32>, Replayed)>, id: u64, offset: u64) -> bool {
    let path = Path::new(DIR).join(log_file_name(LogId(id)));
    matches!(outcome, Err(Error::Corruption { file, offset: at, .. })
        if *file == path && *at == offset)
}

#[test]
fn groups_batches_and_operations_round_trip_with_their_numbers() {
    let env = env();
    let large = vec![0xab; 3 << 20];
    let first = [put(b"", b""), put(b"k", &large), put(&[0xff; 65_535], b"v")];
    let delete =
        [Op { keyspace: KeyspaceId(3), kind: Kind::Delete, key: b"gone", value: b"ignored" }];
    let last = SeqNo(41);
    let mut log = LogWriter::create(&env, Path::new(DIR), DATABASE, LogId(5), None, last).unwrap();
    log.append(SeqNo(42), 4, &[&batch(&first), &batch(&delete)]).unwrap();
    sync(&mut log);
    log.append_mark().unwrap();
    log.payload().extend_from_slice(&batch(&delete));
    log.append_payload(SeqNo(46), 1).unwrap();
    assert_eq!(log.last_seqno(), SeqNo(46));
    for op in first.iter().chain(&delete) {
        let mut out = Vec::new();
        encode_op(&mut out, *op);
        assert_eq!(out.len(), encoded_len(op));
    }
    let (seen, outcome) = replay_from(&env, 5, Recovery::Strict);
    let outcome = outcome.unwrap();
    let expected: Seen = vec![
        (SeqNo(42), Kind::Put, vec![], vec![]),
        (SeqNo(43), Kind::Put, b"k".to_vec(), large),
        (SeqNo(44), Kind::Put, vec![0xff; 65_535], b"v".to_vec()),
        (SeqNo(45), Kind::Delete, b"gone".to_vec(), vec![]),
        (SeqNo(46), Kind::Delete, b"gone".to_vec(), vec![]),
    ];
    assert!(seen == expected);
    assert_eq!((outcome.base, outcome.last_seqno), (SeqNo(41), SeqNo(46)));
    assert_eq!(outcome.last_log, Some((LogId(5), log.end())));
    assert_eq!(outcome.logs, [LogId(5)]);
    assert!(outcome.torn.is_none() && outcome.discarded.is_empty());
}

#[test]
fn batches_refuse_what_the_format_does_not_allow() {
    let check = |bytes: &[u8]| batches(bytes).find_map(|batch| batch.err());
    let damaged = |bytes: &[u8]| matches!(check(bytes), Some(Malformed::Damaged(_)));
    let unsupported = |bytes: &[u8]| matches!(check(bytes), Some(Malformed::Unsupported(_)));
    assert_eq!(check(&[1, 2, 0, 0]), None, "a delete of the empty key");
    assert!(damaged(&[0]), "no operations");
    assert!(damaged(&[2, 2, 0, 0]), "fewer operations than the count");
    assert!(damaged(&[1, 0, 0, 0]) && damaged(&[1, 7, 0, 0]), "kinds that can never be");
    assert!(damaged(&[1, 2 | 8, 0, 0]) && damaged(&[1, 2 | 32, 0, 0]), "reserved flags");
    assert!(unsupported(&[1, 5, 0, 0]) && unsupported(&[1, 6, 0, 0]), "kinds to come");
    assert_eq!(check(&[1, 3, 0, 0, 0]), None, "an empty operand");
    assert!(damaged(&[1, 2 | 16, 0, 0]), "a delete that expires");
    assert!(damaged(&[1, 1 | 16, 0, 0, 7, 1, 2, 3, 4, 5, 6, 7]), "no room for an expiry");
    assert_eq!(check(&[1, 3 | 16, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]), None, "an expiry");
    assert_eq!(check(&[1, 4, 0, 1, b'b', 0]), None, "a range without an end");
    assert!(damaged(&[1, 4, 0, 1, b'b', 1, b'b']), "a range of nothing");
    assert!(damaged(&[1, 2, 0xff, 0xff, 0xff, 0xff, 0x10, 0]), "a keyspace of 33 bits");
    let mut long = vec![1, 2, 0, 0x80, 0x80, 4];
    long.resize(6 + 65_536, 0);
    assert!(damaged(&long), "a key of 65,536 bytes");
    let mut endless = vec![0xff; 9];
    endless.extend([1, 2, 0, 0]);
    assert!(damaged(&endless), "2^64 operations in three bytes");
}

#[test]
fn file_names_are_twenty_digits() {
    assert_eq!(log_file_name(LogId(7)), "00000000000000000007.wal");
    assert_eq!(parse_log_file_name(&log_file_name(LogId(u64::MAX))), Some(LogId(u64::MAX)));
    for name in ["7.wal", "0000000000000000000７.wal", "00000000000000000007.seg", ".wal", ""] {
        assert_eq!(parse_log_file_name(name), None, "{name}");
    }
    assert_eq!(parse_log_file_name("99999999999999999999.wal"), None);
    assert_eq!(parse_log_file_name("+0000000000000000007.wal"), None);
}

/// A log of twelve records and the offset of each; synced after the sixth, so that records 7 to 11
/// tell that the first six are durable.
fn sample(env: &Env) -> (Vec<u8>, Vec<u64>, u64) {
    let mut log = create(env, 1, None).unwrap();
    let mut offsets = Vec::new();
    let mut durable = 0;
    for n in 0..12 {
        offsets.push(log.end());
        append(&mut log, n).unwrap();
        if n == 5 {
            sync(&mut log);
            durable = log.durable();
        }
    }
    offsets.push(log.end());
    (read(env, 1), offsets, durable)
}

/// How many whole records lie in front of `offset`.
fn whole_before(offsets: &[u64], offset: u64) -> usize {
    offsets.iter().filter(|start| **start <= offset).count() - 1
}

#[test]
fn a_log_cut_anywhere_gives_its_whole_records() {
    let env = env();
    let (bytes, offsets, _) = sample(&env);
    for cut in 0..=bytes.len() {
        for filler in [&[][..], &[0; 100], &[0x5a; 100]] {
            write(&env, 1, &[&bytes[..cut], filler].concat());
            let outcome = replayed(&env, TOLERATE);
            if cut < 64 {
                // Random bytes after a header that is incomplete are no log that was being created.
                if filler.first() == Some(&0x5a) && cut + filler.len() > 64 {
                    assert!(is_damage(&outcome, 1, 0), "{cut}");
                } else {
                    let (keys, outcome) = outcome.unwrap();
                    assert!(keys.is_empty() && outcome.last_log.is_none());
                    assert_eq!(outcome.discarded, [LogId(1)]);
                    assert!(replayed(&env, Recovery::Strict).is_err());
                }
                continue;
            }
            let (keys, outcome) = outcome.unwrap();
            let whole = whole_before(&offsets, cut as u64);
            assert!(keys.iter().copied().eq(0..whole as u32), "cut at {cut}");
            let end = offsets[whole];
            assert_eq!(outcome.last_log, Some((LogId(1), end)));
            let file_len = (cut + filler.len()) as u64;
            let clean = end == cut as u64 && filler.first() != Some(&0x5a);
            // A record may end in zeros that the file lacks, or its rest may be zeros: no matter.
            if clean {
                assert_eq!(outcome.torn, None);
                assert!(replayed(&env, Recovery::Strict).is_ok());
            } else if let Some(torn) = outcome.torn {
                let expected = Torn { log: LogId(1), offset: end, bytes: file_len - end };
                assert_eq!(torn, expected);
                assert!(replayed(&env, Recovery::Strict).is_err());
            } else {
                assert!(bytes[end as usize..cut].iter().all(|byte| *byte == 0));
            }
        }
    }
}

#[test]
fn every_bit_flip_is_damage_where_synced_and_a_shorter_prefix_behind() {
    let env = env();
    let (bytes, offsets, durable) = sample(&env);
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        write(&env, 1, &flipped);
        let at = (bit / 8) as u64;
        let outcome = replayed(&env, TOLERATE);
        let lenient = replayed(&env, Recovery::PointInTime);
        assert!(replayed(&env, Recovery::Strict).is_err());
        if at < 64 {
            assert!(is_damage(&outcome, 1, 0), "bit {bit} of the header");
            let (keys, lenient) = lenient.unwrap();
            assert!(keys.is_empty() && lenient.damage.is_some());
            continue;
        }
        let whole = whole_before(&offsets, at);
        let end = offsets[whole];
        let (keys, lenient) = lenient.unwrap();
        assert!(keys.iter().copied().eq(0..whole as u32), "bit {bit}");
        assert_eq!(lenient.last_log, Some((LogId(1), end)));
        if at < durable {
            assert!(is_damage(&outcome, 1, end), "bit {bit} was synced");
            assert!(lenient.damage.is_some() && lenient.torn.is_none());
        } else {
            let (keys, outcome) = outcome.unwrap();
            assert!(keys.iter().copied().eq(0..whole as u32), "bit {bit}");
            assert_eq!(outcome.torn.map(|torn| torn.offset), Some(end));
            assert!(lenient.damage.is_none() && lenient.torn.is_some());
        }
    }
}

#[test]
fn evidence_is_found_wherever_it_lies_in_a_piece_of_the_file() {
    // The search starts at byte 64 and reads 256 KiB at once: the mark's header straddles the end.
    for into in [0, 1, 12, 25, 26, 27] {
        let env = env();
        let mut log = create(&env, 1, None).unwrap();
        let overhead = 26 + 1 + 1 + 1 + 4 + 3;
        let value = vec![0xff; 256 * 1024 - into - overhead];
        log.append(SeqNo(1), 1, &[&batch(&[put(b"key", &value)])]).unwrap();
        assert_eq!(log.end(), 64 + 256 * 1024 - into as u64);
        sync(&mut log);
        log.append_mark().unwrap();
        let mut bytes = read(&env, 1);
        bytes[100] ^= 1;
        write(&env, 1, &bytes);
        assert!(is_damage(&replayed(&env, TOLERATE), 1, 64), "{into}");
    }
}

#[test]
fn a_durable_mark_protects_every_record_before_it() {
    let env = env();
    let mut log = create(&env, 1, None).unwrap();
    for n in 0..3 {
        append(&mut log, n).unwrap();
    }
    log.append_mark().unwrap();
    assert_eq!(log.end(), read(&env, 1).len() as u64);
    let unmarked = log.end();
    log.mark_durable(u64::MAX);
    assert_eq!(log.durable(), unmarked, "no more than there is");
    log.append_mark().unwrap();
    assert_eq!(log.end(), unmarked + 26);
    log.append_mark().unwrap();
    assert_eq!(log.end(), unmarked + 26, "nothing new to say");
    let bytes = read(&env, 1);
    for bit in 64 * 8..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        write(&env, 1, &flipped);
        let outcome = replayed(&env, TOLERATE);
        if (bit as u64) < unmarked * 8 {
            assert!(matches!(outcome, Err(Error::Corruption { .. })), "bit {bit}");
        } else {
            assert_eq!(outcome.unwrap().0, [0, 1, 2], "bit {bit} of the mark");
        }
    }
}

#[test]
fn damaged_spans_with_later_synced_evidence_are_found_across_pieces_of_the_file() {
    let env = env();
    let mut log = create(&env, 1, None).unwrap();
    let value = vec![1; 700_000];
    let large = batch(&[put(b"key", &value)]);
    for _ in 0..3 {
        log.append(log.next_seqno(), 1, &[&large]).unwrap();
    }
    sync(&mut log);
    let far = log.end();
    log.append(log.next_seqno(), 1, &[&large]).unwrap();
    let bytes = read(&env, 1);
    for at in [64, 72, 76, 90, 300_000, 262_143, 262_144, 262_169] {
        let mut broken = bytes.clone();
        broken[at..at + 3].copy_from_slice(&[0xee; 3]);
        write(&env, 1, &broken);
        assert!(is_damage(&replay_from(&env, 1, TOLERATE).1.map(|o| (vec![], o)), 1, 64), "{at}");
    }
    // Without the evidence, the same is a torn tail.
    let mut broken = bytes[..far as usize].to_vec();
    broken[90] ^= 1;
    write(&env, 1, &broken);
    assert_eq!(replay_from(&env, 1, TOLERATE).1.unwrap().torn.unwrap().offset, 64);
}

/// Three logs of three records each; the second and third synced (with the ones before them).
pub(super) fn three_logs(env: &Env) -> [LogWriter; 3] {
    let mut one = create(env, 1, None).unwrap();
    (0..3).for_each(|n| append(&mut one, n).unwrap());
    sync(&mut one);
    let mut two = create(env, 2, Some(&one)).unwrap();
    (3..6).for_each(|n| append(&mut two, n).unwrap());
    sync(&mut two);
    let mut three = create(env, 3, Some(&two)).unwrap();
    (6..9).for_each(|n| append(&mut three, n).unwrap());
    [one, two, three]
}

#[test]
fn logs_are_replayed_in_a_chain_from_the_floor() {
    let env = env();
    three_logs(&env);
    let (seen, outcome) = replayed(&env, Recovery::Strict).unwrap();
    assert!(seen.into_iter().eq(0..9));
    assert_eq!(outcome.logs, [LogId(1), LogId(2), LogId(3)]);
    let (seen, outcome) = replay_from(&env, 2, Recovery::Strict);
    assert_eq!(keys(&seen), [3, 4, 5, 6, 7, 8]);
    assert_eq!(outcome.unwrap().base, SeqNo(3));
    remove(&env, 1);
    assert_eq!(keys(&replay_from(&env, 2, Recovery::Strict).0).len(), 6);
    assert!(is_damage(&replayed(&env, TOLERATE), 2, 32), "the floor is missing");
    assert_eq!(replay_from(&env, 4, Recovery::Strict).1.unwrap().logs, []);
}

#[test]
fn a_missing_or_foreign_log_in_the_chain_is_damage() {
    let env = env();
    three_logs(&env);
    let two = read(&env, 2);
    remove(&env, 2);
    assert!(is_damage(&replayed(&env, TOLERATE), 3, 32));
    let (seen, outcome) = replayed(&env, Recovery::PointInTime).unwrap();
    assert_eq!(seen, [0, 1, 2]);
    assert_eq!(outcome.discarded, [LogId(3)]);
    // Log 1 under the name of log 2, and log 2 cut to nothing.
    let one = read(&env, 1);
    write(&env, 2, &one);
    assert!(is_damage(&replayed(&env, TOLERATE), 2, 16));
    assert_eq!(replayed(&env, Recovery::PointInTime).unwrap().0, [0, 1, 2]);
    write(&env, 2, &[]);
    assert!(is_damage(&replayed(&env, TOLERATE), 2, 0));
    // Log 2 with a record less than log 3 notes.
    let ends = record_offsets(&two);
    write(&env, 2, &two[..ends[2]]);
    assert_eq!(replayed(&env, TOLERATE).unwrap().0, [0, 1, 2, 3, 4], "log 3 proves nothing yet");
}

/// Where the records of a sound log start, and where the last ends.
fn record_offsets(log: &[u8]) -> Vec<usize> {
    let mut offsets = vec![64];
    while let Some(record) = RecordHeader::decode(&log[*offsets.last().unwrap()..]) {
        offsets.push(offsets.last().unwrap() + record.len() as usize);
    }
    offsets
}

#[test]
fn a_torn_log_with_successors_is_torn_or_damaged_as_the_later_logs_tell() {
    for synced in [false, true] {
        let env = env();
        let [one, _, mut three] = three_logs(&env);
        if synced {
            sync(&mut three);
            append(&mut three, 9).unwrap();
        }
        let offsets = record_offsets(&read(&env, 1));
        for (bytes, id) in [(read(&env, 1), 1), (read(&env, 2), 2)] {
            for cut in [offsets[2], offsets[2] + 5, one.end() as usize - 1] {
                write(&env, id, &bytes[..cut]);
                let outcome = replayed(&env, TOLERATE);
                if synced {
                    assert!(is_damage(&outcome, id, offsets[2] as u64), "{id} {cut}");
                    continue;
                }
                let (seen, outcome) = outcome.unwrap();
                let kept = 3 * (id as u32 - 1) + 2;
                assert!(seen.into_iter().eq(0..kept));
                assert_eq!(outcome.last_log, Some((LogId(id), offsets[2] as u64)));
                let later: Vec<_> = (id + 1..=3).rev().map(LogId).collect();
                assert_eq!(outcome.discarded, later, "newest first");
                assert!(replayed(&env, Recovery::Strict).is_err());
            }
            write(&env, id, &bytes);
        }
    }
}

#[test]
fn what_lies_past_the_end_that_the_successor_gives_does_not_count() {
    let env = env();
    let [mut one, two, _] = three_logs(&env);
    remove(&env, 3);
    // A record that failed but is there all the same, in front of more garbage.
    let one_end = one.end();
    append(&mut one, 77).unwrap();
    let mut bytes = read(&env, 1);
    bytes.extend_from_slice(&[0x33; 40]);
    write(&env, 1, &bytes);
    let (seen, outcome) = replayed(&env, Recovery::Strict).unwrap();
    assert!(seen.into_iter().eq(0..6));
    assert_eq!(outcome.last_log, Some((LogId(2), two.end())));
    // An end that no record ends at is damage.
    let (path, last) = (Path::new(DIR), SeqNo(3));
    remove(&env, 2);
    let end = bytes.len() as u64 - 40 - 1;
    LogWriter::create(&env, path, DATABASE, LogId(2), Some((LogId(1), end)), last).unwrap();
    let (seen, outcome) = replay_from(&env, 1, TOLERATE);
    assert!(is_damage(&outcome.map(|outcome| (vec![], outcome)), 1, one_end));
    assert_eq!(keys(&seen), [0, 1, 2], "the record that runs past it is not delivered");
    remove(&env, 2);
    // So is a last operation that is not the one noted.
    LogWriter::create(&env, path, DATABASE, LogId(2), Some((LogId(1), end + 1)), last).unwrap();
    assert!(matches!(replayed(&env, TOLERATE), Err(Error::Corruption { .. })));
}

#[test]
fn nothing_is_appended_behind_a_torn_tail_and_the_next_log_hides_it() {
    let env = env();
    let (bytes, offsets, _) = sample(&env);
    write(&env, 1, &bytes[..bytes.len() - 1]);
    let (_, outcome) = replayed(&env, TOLERATE).unwrap();
    assert_eq!(outcome.last_log, Some((LogId(1), offsets[11])));
    let (last_log, last) = (outcome.last_log, outcome.last_seqno);
    let mut next =
        LogWriter::create(&env, Path::new(DIR), DATABASE, LogId(2), last_log, last).unwrap();
    append(&mut next, 11).unwrap();
    sync(&mut next);
    append(&mut next, 12).unwrap();
    let (seen, outcome) = replayed(&env, Recovery::Strict).unwrap();
    assert!(seen.into_iter().eq(0..13));
    assert!(outcome.torn.is_none() && outcome.discarded.is_empty());
}

#[test]
fn logs_that_no_later_log_descends_from_are_strays() {
    let env = env();
    let [one, two, _] = three_logs(&env);
    // Log 3 was discarded, but its removal was undone by power loss; log 5 follows on log 2. Log 4
    // is the leftover of a creation that failed.
    write(&env, 4, &[0; 10]);
    let mut five = create(&env, 5, Some(&two)).unwrap();
    append(&mut five, 60).unwrap();
    let (seen, outcome) = replayed(&env, TOLERATE).unwrap();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 60]);
    assert_eq!(outcome.discarded, [LogId(4), LogId(3)]);
    remove_logs(&env, Path::new(DIR), &outcome.discarded).unwrap();
    remove_logs(&env, Path::new(DIR), &outcome.discarded).unwrap();
    assert_eq!(replayed(&env, Recovery::Strict).unwrap().1.discarded, []);
    drop(one);
}

#[test]
fn a_header_that_cannot_be_read_is_forgiven_only_to_an_empty_last_log() {
    let env = env();
    three_logs(&env);
    let (two, three) = (read(&env, 2), read(&env, 3));
    for bit in 0..64 * 8 {
        let mut flipped = three.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        write(&env, 3, &flipped);
        assert!(is_damage(&replayed(&env, TOLERATE), 3, 0), "{bit}");
        assert!(is_damage(&replayed(&env, Recovery::Strict), 3, 0), "{bit}");
        let (seen, outcome) = replayed(&env, Recovery::PointInTime).unwrap();
        assert!(seen.into_iter().eq(0..6) && outcome.damage.is_some());
        // The same without records: the log was being created.
        write(&env, 3, &flipped[..64]);
        let (seen, outcome) = replayed(&env, TOLERATE).unwrap();
        assert!(seen.into_iter().eq(0..6));
        assert_eq!(outcome.discarded, [LogId(3)]);
        assert!(replayed(&env, Recovery::Strict).is_err());
        write(&env, 3, &three);
        let mut flipped = two.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        write(&env, 2, &flipped);
        assert!(is_damage(&replayed(&env, TOLERATE), 2, 0), "{bit}");
        write(&env, 2, &two);
    }
}

#[test]
fn every_bit_of_a_chain_flipped_leaves_no_hole() {
    let env = env();
    let [one, two, mut three] = three_logs(&env);
    sync(&mut three);
    append(&mut three, 9).unwrap();
    let last_record = three.end() - (one.end() - 64) / 3;
    for (id, end) in [(1, one.end()), (2, two.end()), (3, three.end())] {
        let bytes = read(&env, id);
        assert_eq!(bytes.len() as u64, end);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            write(&env, id, &flipped);
            let outcome = replayed(&env, TOLERATE);
            if id == 3 && bit as u64 / 8 >= last_record {
                assert!(outcome.unwrap().0.into_iter().eq(0..9), "the unsynced last record");
            } else {
                assert!(matches!(outcome, Err(Error::Corruption { .. })), "log {id} bit {bit}");
            }
            let (seen, _) = replayed(&env, Recovery::PointInTime).unwrap();
            assert!(seen.len() < 10 && seen.iter().copied().eq(0..seen.len() as u32));
        }
        write(&env, id, &bytes);
    }
}

#[test]
fn stale_records_of_other_logs_and_places_are_not_replayed() {
    let env = env();
    let (bytes, offsets, _) = sample(&env);
    let record = offsets[1] as usize..offsets[2] as usize;
    // The same record at another place of the same log.
    let mut moved = bytes[..offsets[1] as usize].to_vec();
    moved.extend_from_slice(&bytes[offsets[2] as usize..]);
    write(&env, 1, &moved);
    assert_eq!(replayed(&env, TOLERATE).unwrap().0, [0]);
    // A record of a log with another salt, at the right place and with the right number.
    remove(&env, 1);
    let mut fresh = create(&env, 1, None).unwrap();
    append(&mut fresh, 100).unwrap();
    let mut recycled = read(&env, 1);
    recycled.extend_from_slice(&bytes[offsets[1] as usize..]);
    write(&env, 1, &recycled);
    let (seen, outcome) = replayed(&env, TOLERATE).unwrap();
    assert_eq!(seen, [100]);
    assert_eq!(outcome.torn.unwrap().offset, offsets[1]);
    assert!(bytes[record].iter().any(|byte| *byte != 0));
}

#[test]
fn a_log_of_another_database_is_damage() {
    let env = env();
    append(&mut create(&env, 1, None).unwrap(), 1).unwrap();
    let mut sink = |_, _, _: Op<'_>| Ok(());
    let outcome = replay(&env, Path::new(DIR), DATABASE + 1, LogId(1), TOLERATE, &mut sink);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Corruption);
}

#[test]
fn a_skip_takes_one_number_and_changes_nothing() {
    let env = env();
    let mut log = create(&env, 1, None).unwrap();
    append(&mut log, 1).unwrap();
    log.append_skip().unwrap();
    append(&mut log, 3).unwrap();
    let (seen, outcome) = replay_from(&env, 1, TOLERATE);
    assert_eq!(seen.iter().map(|entry| entry.0.0).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(outcome.unwrap().last_seqno, SeqNo(3));
}

#[test]
fn gaps_and_nonsense_in_records_that_verify_are_damage() {
    let good = batch(&[put(b"abcd", b"")]);
    let raw = |kind: u8, seqno: u64, durable: u64, payload: &[u8]| {
        let env = env();
        let log = create(&env, 1, None).unwrap();
        let salt = LogHeader::decode(&read(&env, 1), DATABASE).unwrap().unwrap().salt;
        let mut record = vec![0; RECORD_HEADER_LEN];
        record.extend_from_slice(payload);
        seal_record(&mut record, salt, kind, SeqNo(seqno), log.end(), durable);
        write(&env, 1, &[read(&env, 1), record].concat());
        replayed(&env, TOLERATE)
    };
    assert_eq!(raw(KIND_GROUP, 1, 64, &good).unwrap().0.len(), 1);
    assert!(is_damage(&raw(KIND_GROUP, 2, 64, &good), 1, 64), "a gap");
    assert!(is_damage(&raw(KIND_GROUP, 0, 64, &good), 1, 64), "backwards");
    assert!(is_damage(&raw(KIND_MARK, 2, 64, b""), 1, 64), "a mark with a gap");
    assert!(is_damage(&raw(KIND_MARK, 1, 64, b"x"), 1, 64), "a mark with a payload");
    assert!(is_damage(&raw(KIND_GROUP, 1, 64, b""), 1, 64), "no batch");
    assert!(is_damage(&raw(KIND_GROUP, 1, 64, &[&good[..], b"\0"].concat()), 1, 64), "no op");
    assert_eq!(raw(KIND_MARK, 1, 64, b"").unwrap().0.len(), 0);
    assert!(is_damage(&raw(KIND_SKIP, 1, 64, b"x"), 1, 64), "a skip with a payload");
    assert_eq!(raw(0x80, 99, 64, b"anything").unwrap().0.len(), 0, "optional kinds are skipped");
    for kind in [0, 4, 0x7f] {
        let outcome = raw(kind, 1, 64, &good);
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Unsupported, "kind {kind}");
    }
    let newer = [1, 5, 0, 0];
    assert_eq!(raw(KIND_GROUP, 1, 64, &newer).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn a_log_of_a_newer_format_version_is_refused_as_such() {
    let env = env();
    let (mut bytes, ..) = sample(&env);
    for (version, kind) in [(2, ErrorKind::Unsupported), (0, ErrorKind::Corruption)] {
        bytes[8] = version;
        let sum = crate::checksum::checksum(DATABASE, 0, &bytes[..56]);
        bytes[56..64].copy_from_slice(&sum.to_le_bytes());
        write(&env, 1, &bytes);
        assert_eq!(replayed(&env, TOLERATE).unwrap_err().kind(), kind);
    }
    assert_eq!(LogHeader::decode(&[0; 64], DATABASE), Ok(None), "zeros are no header");
}

#[test]
fn a_batch_is_delivered_whole_or_not_at_all_and_a_sink_error_ends_the_replay() {
    let env = env();
    let mut log = create(&env, 1, None).unwrap();
    append(&mut log, 0).unwrap();
    let value = 1u32.to_be_bytes();
    let batches = [batch(&[put(&value, b""), put(&value, b"")]), batch(&[put(&value, b"")])];
    let start = log.end() as usize;
    log.append(SeqNo(2), 3, &[&batches[0], &batches[1]]).unwrap();
    let bytes = read(&env, 1);
    for cut in start..bytes.len() {
        write(&env, 1, &bytes[..cut]);
        assert_eq!(replayed(&env, TOLERATE).unwrap().0, [0], "{cut}");
    }
    write(&env, 1, &bytes);
    let mut left = 2;
    let outcome = replay(&env, Path::new(DIR), DATABASE, LogId(1), TOLERATE, &mut |_, _, _| {
        left -= 1;
        if left == 0 { Err(Error::Closed) } else { Ok(()) }
    });
    assert!(matches!(outcome, Err(Error::Closed)));
    assert_eq!(left, 0);
}

#[test]
fn values_that_imitate_records_cannot_make_the_search_quadratic() {
    // Headers as they would follow, with any checksum, and each as long as what is left of the file,
    // which is what costs most. With numbers that cannot follow they are not even hashed.
    for (seqno, refused) in [(1u64, true), (1 << 40, false), (0, false)] {
        let env = env();
        let mut log = create(&env, 1, None).unwrap();
        let mut value = Vec::new();
        let total = 400_000u64;
        while (value.len() as u64) < total - 100 {
            let left = (total - 130).saturating_sub(value.len() as u64);
            value.extend_from_slice(&[9; 8]);
            value.extend_from_slice(&left.to_le_bytes()[..5]);
            value.push(KIND_GROUP);
            value.extend_from_slice(&seqno.to_le_bytes());
            value.extend_from_slice(&0u32.to_le_bytes());
        }
        log.append(SeqNo(1), 1, &[&batch(&[put(b"1234", &value)])]).unwrap();
        let mut bytes = read(&env, 1);
        assert_eq!(replayed(&env, TOLERATE).unwrap().0.len(), 1);
        bytes[70] ^= 1;
        write(&env, 1, &bytes);
        let outcome = replayed(&env, TOLERATE);
        assert_eq!(is_damage(&outcome, 1, 64), refused, "refused, not passed over");
        assert_eq!(outcome.is_err(), refused);
    }
}
