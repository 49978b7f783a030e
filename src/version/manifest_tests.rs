use super::manifest::{encode_record, read};
use super::state_tests::{add, create, edit, next, segment};
use super::*;
use crate::checksum::checksum;
use crate::error::{Error, ErrorKind, Result};
use crate::types::{KeyspaceId, LogId, SegmentId, SeqNo};
use crate::vfs::{Env, Failure, OpenMode, SimVfs};
use proptest::prelude::*;
use std::path::Path;

const DIR: &str = "/db";

fn dir() -> &'static Path {
    Path::new(DIR)
}

fn env() -> Env {
    let env = Env::in_memory(3);
    env.vfs.create_dir_all(dir()).unwrap();
    env
}

fn bytes_of(env: &Env) -> Vec<u8> {
    let file = env.vfs.open(&dir().join("MANIFEST"), OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn overwrite(env: &Env, bytes: &[u8]) {
    let path = dir().join("MANIFEST");
    if env.vfs.exists(&path).unwrap() {
        env.vfs.remove_file(&path).unwrap();
    }
    env.vfs.open(&path, OpenMode::CreateNew).unwrap().write_all_at(bytes, 0).unwrap();
}

fn initial() -> Edit {
    edit([next(1, 2, 1, 1), create(0, "default"), Change::LogFloor(LogId(1))])
}

fn make(env: &Env) -> Result<(Manifest, ManifestState)> {
    Manifest::create(env, dir(), [5; 16], 99, &initial())
}

/// Adds segment `n` in a run of its own.
fn step(n: u64) -> Edit {
    edit([add(segment(n, n, "a", "m")), next(n + 1, 2, 1, n + 1), Change::Flushed(SeqNo(n * 10))])
}

/// A manifest of five edits, the offsets at which their first copies start and the last one ends,
/// and the state after each.
fn sample(env: &Env) -> (Vec<u8>, Vec<usize>, Vec<ManifestState>) {
    let (mut manifest, mut state) = make(env).unwrap();
    let mut offsets = vec![64, bytes_of(env).len()];
    let mut states = vec![state.clone()];
    for n in 1..5 {
        manifest.commit(&mut state, &step(n)).unwrap();
        states.push(state.clone());
        offsets.push(bytes_of(env).len());
    }
    (bytes_of(env), offsets, states)
}

/// Opens the manifest made of `bytes`, commits on top of it and opens it again.
fn open_and_go_on(bytes: &[u8]) -> Result<(ManifestState, Vec<String>)> {
    let env = env();
    overwrite(&env, bytes);
    let (mut manifest, mut state, notices) = Manifest::open(&env, dir())?;
    let opened = state.clone();
    assert_eq!(Manifest::inspect(&env, dir()).unwrap().0, opened);
    let n = state.next_segment.0;
    manifest.commit(&mut state, &step(n)).unwrap();
    let (_, again, clean) = Manifest::open(&env, dir()).unwrap();
    assert_eq!(again, state);
    assert!(clean.is_empty(), "what was healed stays healed: {clean:?}");
    Ok((opened, notices))
}

fn is_damage_at(outcome: &Result<(ManifestState, Vec<String>)>, at: usize) -> bool {
    matches!(outcome, Err(Error::Corruption { offset, .. }) if *offset == at as u64)
}

#[test]
fn what_was_committed_is_there_when_opened() {
    let env = env();
    assert!(!Manifest::exists(&env, dir()).unwrap());
    assert_eq!(Manifest::open(&env, dir()).unwrap_err().kind(), ErrorKind::Io);
    let (bytes, _, states) = sample(&env);
    assert!(Manifest::exists(&env, dir()).unwrap());
    assert_eq!(make(&env).unwrap_err().kind(), ErrorKind::Io, "it is not overwritten");
    assert_eq!(bytes_of(&env), bytes);
    env.vfs.open(&dir().join("MANIFEST.new"), OpenMode::CreateNew).unwrap();
    let (_, state, notices) = Manifest::open(&env, dir()).unwrap();
    assert_eq!(Some(&state), states.last());
    assert_eq!((state.uuid, state.hash_seed, state.edit_number), ([5; 16], 99, 5));
    assert!(notices.is_empty());
    assert_eq!(env.vfs.read_dir(dir()).unwrap(), ["MANIFEST"]);
    assert_eq!(bytes_of(&env), bytes, "a sound manifest is left as it is");
}

#[test]
fn what_is_open_for_reading_knows_the_last_edit_that_readers_see_and_takes_none() {
    let env = env();
    let (mut manifest, mut state) = make(&env).unwrap();
    let last_seen = || Manifest::load_to_read(&env, dir()).unwrap().0.last_seen();
    assert_eq!(last_seen(), 1, "the first edit may stand for any");
    let clear = Change::Clear { id: KeyspaceId(0), seqno: SeqNo(4) };
    let forget = Change::ForgetClears { id: KeyspaceId(0), seqno: SeqNo(4) };
    let edits = [
        (step(1), 1),
        (edit([clear]), 3),
        (step(2), 3),
        (edit([forget]), 3),
        (edit([next(5, 2, 2, 5), create(1, "other")]), 6),
        (edit([Change::DropKeyspace(KeyspaceId(1))]), 7),
        (edit([Change::LogFloor(LogId(2))]), 7),
        (edit([Change::Flushed(SeqNo(30)), next(6, 2, 2, 6)]), 7),
        // What was in no log.
        (edit([Change::Flushed(SeqNo(40)), add(segment(6, 6, "a", "m")), next(7, 2, 2, 7)]), 10),
        (edit([add(segment(7, 7, "a", "m")), next(8, 2, 2, 8), Change::Flushed(SeqNo(70))]), 10),
    ];
    for (edit, expected) in edits {
        manifest.commit(&mut state, &edit).unwrap();
        assert_eq!(last_seen(), expected, "{edit:?}");
    }
    let (bytes, before) = (bytes_of(&env), state.clone());
    let (unsettled, mut state, _) = Manifest::load_to_read(&env, dir()).unwrap();
    let mut manifest = unsettled.for_reading();
    assert!(matches!(manifest.commit(&mut state, &edit([])), Err(Error::Poisoned { .. })));
    assert_eq!((bytes_of(&env), state), (bytes, before));
}

#[test]
fn an_edit_that_does_not_fit_is_refused_and_nothing_is_written() {
    let env = env();
    let (mut manifest, mut state) = make(&env).unwrap();
    let (bytes, before) = (bytes_of(&env), state.clone());
    let wrong = edit([Change::RemoveSegment(SegmentId(7))]);
    assert!(manifest.commit(&mut state, &wrong).is_err());
    assert_eq!((bytes_of(&env), &state), (bytes, &before));
    manifest.commit(&mut state, &step(1)).unwrap();
    let wrong = edit([create(3, "uncovered")]);
    assert!(Manifest::create(&env, Path::new("/none"), [0; 16], 0, &wrong).is_err());
}

#[test]
fn every_bit_flip_is_healed_or_an_error_of_the_header() {
    let (bytes, _, states) = sample(&env());
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let outcome = open_and_go_on(&flipped);
        if bit < 64 * 8 {
            assert!(is_damage_at(&outcome, 0), "bit {bit}");
            continue;
        }
        let (state, notices) = outcome.unwrap();
        assert_eq!(Some(&state), states.last(), "bit {bit}");
        assert_eq!(notices.len(), 1, "bit {bit}: {notices:?}");
    }
}

#[test]
fn two_damaged_copies_are_damage_in_the_middle_and_a_torn_tail_at_the_end() {
    let (bytes, offsets, states) = sample(&env());
    for (n, pair) in offsets.windows(2).enumerate() {
        let half = (pair[1] - pair[0]) / 2;
        for at in (0..half).step_by(3) {
            let mut broken = bytes.clone();
            broken[pair[0] + at] ^= 0x10;
            broken[pair[0] + half + (at * 7) % half] ^= 1;
            let outcome = open_and_go_on(&broken);
            if n < 4 {
                assert!(is_damage_at(&outcome, pair[0]), "edit {n} at {at}");
            } else {
                let (state, notices) = outcome.unwrap();
                assert_eq!(state, states[3]);
                assert_eq!(notices.len(), 1);
            }
        }
        // The second copy of one edit and the first of the next: both are healed.
        if n > 0 {
            let mut broken = bytes.clone();
            broken[pair[0] - 1] ^= 1;
            broken[pair[0] + 30] ^= 1;
            let (state, notices) = open_and_go_on(&broken).unwrap();
            assert_eq!(Some(&state), states.last());
            assert_eq!(notices.len(), 1);
        }
    }
}

#[test]
fn a_manifest_cut_anywhere_gives_the_edits_that_are_there() {
    let (bytes, offsets, states) = sample(&env());
    for cut in 0..=bytes.len() {
        for filler in [&[][..], &[0; 200], &[0xa5; 200]] {
            let outcome = open_and_go_on(&[&bytes[..cut], filler].concat());
            // One copy of an edit will do.
            let complete =
                offsets.windows(2).filter(|pair| pair[0] + (pair[1] - pair[0]) / 2 <= cut).count();
            if complete == 0 {
                assert!(matches!(outcome, Err(Error::Corruption { .. })), "{cut}");
                continue;
            }
            let (state, notices) = outcome.unwrap();
            // The last copy may end in zeros, which the filler gives back.
            let healed = states.get(complete) == Some(&state) && filler.first() == Some(&0);
            assert!(state == states[complete - 1] || healed, "{cut}");
            let clean = offsets.contains(&cut) && filler.is_empty();
            assert_eq!(notices.len(), usize::from(!clean), "{cut} {notices:?}");
        }
    }
}

#[test]
fn a_newer_version_is_refused_as_such() {
    let (mut bytes, ..) = sample(&env());
    for (at, value, kind) in [
        (8, 2, ErrorKind::Unsupported),
        (8, 0, ErrorKind::Corruption),
        (12, 1, ErrorKind::Corruption),
    ] {
        let mut changed = bytes.clone();
        changed[at] = value;
        let sum = checksum(0, 0, &changed[..56]);
        changed[56..64].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(open_and_go_on(&changed).unwrap_err().kind(), kind);
    }
    // So is a change of an unknown kind, in a record that is sound.
    let salt = u64::from_le_bytes(bytes[40..48].try_into().unwrap());
    encode_record(&mut bytes, 0, salt, 6, &[99, 0]);
    assert_eq!(open_and_go_on(&bytes).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn sound_records_that_break_a_rule_are_damage() {
    let (bytes, offsets, states) = sample(&env());
    let salt = u64::from_le_bytes(bytes[40..48].try_into().unwrap());
    let end = bytes.len();
    let with = |number, payload: &[u8], top: u8| {
        let mut bytes = bytes.clone();
        encode_record(&mut bytes, 0, salt, number, payload);
        bytes[end + 15] = top;
        let sum = checksum(salt, end as u64, &bytes[end + 8..]);
        bytes[end..end + 8].copy_from_slice(&sum.to_le_bytes());
        open_and_go_on(&bytes)
    };
    assert!(is_damage_at(&with(6, &[], 1), end), "a reserved byte");
    assert!(is_damage_at(&with(7, &[], 0), end), "a number left out");
    assert!(is_damage_at(&with(6, &[5, 1, 50], 0), end), "a segment that is not there");
    assert!(is_damage_at(&with(5, &[], 0), end), "a copy that differs");
    assert_eq!(with(6, &[], 0).unwrap().0.edit_number, 6, "an empty edit, once");
    assert_eq!(Some(&with(2, &[1], 0).unwrap().0), states.last(), "one read long ago");
    let mut overlap = Vec::new();
    let twins = [add(segment(5, 5, "a", "c")), add(segment(6, 5, "b", "d")), next(7, 2, 1, 7)];
    edit(twins).encode(&mut overlap);
    assert!(is_damage_at(&with(6, &overlap, 0), 64), "segments of a run that overlap");
    // An edit with one copy only makes the file be written anew.
    let mut single = bytes.clone();
    encode_record(&mut single, 0, salt, 6, &[]);
    encode_record(&mut single, 0, salt, 7, &[]);
    encode_record(&mut single, 0, salt, 7, &[]);
    let (state, notices) = open_and_go_on(&single).unwrap();
    assert_eq!((state.edit_number, notices.len()), (7, 1));
    // A record at another place, or of another manifest, is none.
    let mut moved = bytes.clone();
    moved.extend_from_slice(&bytes[offsets[4]..]);
    let (state, notices) = open_and_go_on(&moved).unwrap();
    assert_eq!((Some(&state), notices.len()), (states.last(), 1));
    let mut foreign = bytes[..offsets[4]].to_vec();
    encode_record(&mut foreign, 0, salt ^ 1, 5, &[]);
    assert_eq!(open_and_go_on(&foreign).unwrap().0, states[3]);
}

#[test]
fn lookalikes_of_records_cannot_make_the_search_quadratic() {
    let (mut bytes, ..) = sample(&env());
    let total = bytes.len() + 200_000;
    while bytes.len() + 48 < total {
        let left = (total - bytes.len() - 48) as u64;
        bytes.extend_from_slice(&[7; 8]);
        bytes.extend_from_slice(&left.to_le_bytes());
        bytes.extend_from_slice(&6u64.to_le_bytes());
    }
    bytes.resize(total, 0);
    assert_eq!(read(&bytes, dir()).unwrap_err().kind(), ErrorKind::Corruption);
}

#[test]
fn a_grown_manifest_is_replaced_by_its_state() {
    let env = env();
    let (mut manifest, mut state) = make(&env).unwrap();
    let mut longest = 0;
    let mut rolls = 0;
    let mut before = 0;
    for n in 1..12_000u64 {
        let mut changes = step(n);
        if n > 100 {
            changes.changes.push(Change::RemoveSegment(SegmentId(n - 100)));
        }
        manifest.commit(&mut state, &changes).unwrap();
        let len = env.vfs.open(&dir().join("MANIFEST"), OpenMode::Read).unwrap().len().unwrap();
        rolls += u64::from(len < before);
        longest = longest.max(len);
        before = len;
        if n % 500 == 0 || len < 30_000 {
            let (reopened, notices) = Manifest::inspect(&env, dir()).unwrap();
            assert_eq!(reopened, state);
            assert!(notices.is_empty());
        }
    }
    assert!(rolls >= 1 && longest < (1 << 20) + 4096, "{rolls} {longest}");
    assert_eq!(env.vfs.read_dir(dir()).unwrap(), ["MANIFEST"]);
    let (_, reopened, _) = Manifest::open(&env, dir()).unwrap();
    assert_eq!(reopened, state);
    assert_eq!(state.edit_number, 12_000);
}

/// A database whose next commit replaces the manifest.
fn about_to_roll() -> (SimVfs, Env, Manifest, ManifestState) {
    let vfs = SimVfs::new(0);
    let env = vfs.env(4);
    env.vfs.create_dir_all(dir()).unwrap();
    let (mut manifest, mut state) = make(&env).unwrap();
    let name = "n".repeat(300_000);
    let edits =
        [edit([create(1, &name), next(1, 2, 2, 1)]), edit([Change::DropKeyspace(KeyspaceId(1))])];
    for edit in edits {
        manifest.commit(&mut state, &edit).unwrap();
    }
    assert!(bytes_of(&env).len() < 1 << 20);
    (vfs, env, manifest, state)
}

fn rolling_edit() -> Edit {
    let name = "m".repeat(400_000);
    edit([create(2, &name), Change::DropKeyspace(KeyspaceId(2)), next(1, 2, 3, 1)])
}

#[test]
fn a_failure_at_any_step_of_a_commit_loses_nothing() {
    let (vfs, _, mut manifest, mut state) = about_to_roll();
    let before = vfs.changes();
    manifest.commit(&mut state, &rolling_edit()).unwrap();
    let steps = vfs.changes() - before;
    // Write and sync; remove, create, write, sync, rename, sync the directory.
    assert_eq!(steps, 8);
    for k in 0..=steps {
        for fault in [Failure::Refused, Failure::Half, Failure::Done] {
            for sticky in [false, true] {
                let (vfs, env, mut manifest, mut state) = about_to_roll();
                let old = state.clone();
                let new = state.with(&rolling_edit()).unwrap();
                vfs.fail(k, sticky, fault);
                let outcome = manifest.commit(&mut state, &rolling_edit());
                vfs.heal();
                let at = format!("{k} {fault:?} {sticky}");
                assert_eq!(outcome.is_ok(), k >= 2, "{at}");
                assert_eq!(state, if outcome.is_ok() { new.clone() } else { old.clone() }, "{at}");
                let copy = bytes_of(&env);
                let again = manifest.commit(&mut state, &edit([Change::Flushed(SeqNo(9))]));
                // A failed write is cut off again, unless that fails too.
                let poisoned = k == 0 && sticky || k == 1 || k == 6 || k == 7;
                assert_eq!(again.is_err(), poisoned, "{at}: {again:?}");
                if let Err(error) = again {
                    assert_eq!(error.kind(), ErrorKind::Poisoned);
                    assert_eq!(bytes_of(&env), copy, "{at}: the file is left alone");
                }
                let (mut reopened, mut found, _) = Manifest::open(&env, dir()).unwrap();
                assert_eq!(env.vfs.read_dir(dir()).unwrap(), ["MANIFEST"]);
                if k >= 2 || !poisoned {
                    assert_eq!(found, state, "{at}");
                } else {
                    assert!(found == old || found == new, "{at}");
                }
                reopened.commit(&mut found, &edit([Change::Flushed(SeqNo(10))])).unwrap();
                assert_eq!(Manifest::inspect(&env, dir()).unwrap(), (found, vec![]));
            }
        }
    }
}

#[test]
fn a_failure_while_creating_or_healing_leaves_what_was_there() {
    let (bytes, offsets, states) = sample(&env());
    for k in 0..6 {
        for fault in [Failure::Refused, Failure::Half, Failure::Done] {
            for sticky in [false, true] {
                let vfs = SimVfs::new(0);
                let env = vfs.env(4);
                env.vfs.create_dir_all(dir()).unwrap();
                vfs.fail(k, sticky, fault);
                let outcome = make(&env);
                vfs.heal();
                let there = Manifest::exists(&env, dir()).unwrap();
                // To be told that a leftover that is not there could not be removed is no failure.
                let harmless = |first| k < first && fault == Failure::Done && !sticky;
                assert_eq!(outcome.is_ok(), harmless(1), "{k} {fault:?} {sticky}");
                assert!(!there || k >= 4 || harmless(1), "{k} {fault:?} {sticky}");
                if there {
                    assert_eq!(Manifest::open(&env, dir()).unwrap().1, states[0]);
                } else {
                    make(&env).unwrap();
                }
                // The same with a manifest whose tail is torn.
                overwrite(&env, &bytes[..offsets[4] + 9]);
                vfs.fail(k, sticky, fault);
                let outcome = Manifest::open(&env, dir());
                vfs.heal();
                assert_eq!(outcome.is_ok(), harmless(2), "{k} {fault:?} {sticky}");
                assert_eq!(Manifest::open(&env, dir()).unwrap().1, states[3]);
            }
        }
    }
}

#[test]
fn one_copy_written_is_enough_and_both_are_there_again_after_opening() {
    let (bytes, offsets, states) = sample(&env());
    let half = (offsets[5] - offsets[4]) / 2;
    // A crash in the middle of the last commit: only the second copy reached the disk.
    let mut torn = bytes.clone();
    torn[offsets[4]..offsets[4] + half].fill(0);
    let env = env();
    overwrite(&env, &torn);
    let (_, state, notices) = Manifest::open(&env, dir()).unwrap();
    assert_eq!((Some(&state), notices.len()), (states.last(), 1));
    let healed = bytes_of(&env);
    for bit in 64 * 8..healed.len() * 8 {
        let mut flipped = healed.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Some(&read(&flipped, dir()).unwrap().state), states.last());
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
        manifest_bytes(&data);
    }

    /// Overwrites any span: what comes out is an error or one of the states that were.
    #[test]
    fn overwritten_manifests_give_errors_or_former_states(
        place in any::<prop::sample::Index>(),
        patch in prop::collection::vec(any::<u8>(), 1..100),
    ) {
        let (mut bytes, _, states) = sample(&env());
        let at = place.index(bytes.len());
        bytes.iter_mut().skip(at).zip(patch).for_each(|(byte, new)| *byte = new);
        match open_and_go_on(&bytes) {
            Ok((state, _)) => prop_assert!(states[3..].contains(&state)),
            Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Corruption),
        }
    }
}
