use super::*;
use crate::deletes::KeySpan;
use crate::error::Malformed;
use crate::slice::Key;
use crate::sync::Arc;
use crate::types::{KeyspaceId, LogId, SegmentId, SeqNo};
use bytes::Bytes;
use proptest::prelude::*;

pub(super) fn segment(id: u64, run: u64, first: &str, last: &str) -> SegmentMeta {
    SegmentMeta {
        id: SegmentId(id),
        keyspace: KeyspaceId(0),
        level: 1,
        run: RunNo(run),
        file_len: id.wrapping_add(8192),
        checksum: u64::MAX - id,
        entries: 10,
        tombstones: 3,
        smallest: SeqNo(5),
        largest: SeqNo(300),
        first_key: Key(Bytes::copy_from_slice(first.as_bytes())),
        last_key: Key(Bytes::copy_from_slice(last.as_bytes())),
    }
}

pub(super) fn add(segment: SegmentMeta) -> Change {
    Change::AddSegment(Arc::new(segment))
}

pub(super) fn next(segment: u64, log: u64, keyspace: u32, run: u64) -> Change {
    Change::Next {
        segment: SegmentId(segment),
        log: LogId(log),
        keyspace: KeyspaceId(keyspace),
        run: RunNo(run),
    }
}

pub(super) fn create(id: u32, name: &str) -> Change {
    Change::CreateKeyspace { id: KeyspaceId(id), name: name.into() }
}

pub(super) fn edit(changes: impl IntoIterator<Item = Change>) -> Edit {
    Edit { changes: changes.into_iter().collect() }
}

/// Two keyspaces, two segments of one run; numbers up to 10 are free to use.
fn sample() -> ManifestState {
    let mut state = ManifestState::empty([9; 16], 77);
    let first = edit([
        next(10, 10, 10, 10),
        create(0, "default"),
        create(1, "other"),
        add(segment(1, 1, "b", "d")),
        add(segment(2, 1, "e", "g")),
        Change::LogFloor(LogId(4)),
        Change::Flushed(SeqNo(300)),
        Change::Clear { id: KeyspaceId(1), seqno: SeqNo(20) },
    ]);
    state.apply(&first).unwrap();
    state
}

#[test]
fn every_change_round_trips_and_nothing_shorter_decodes() {
    let changes = [
        create(u32::MAX, "naïve"),
        create(0, ""),
        Change::DropKeyspace(KeyspaceId(300)),
        Change::Clear { id: KeyspaceId(1), seqno: SeqNo(u64::MAX) },
        add(segment(u64::MAX, 0, "", &"z".repeat(65_535))),
        Change::RemoveSegment(SegmentId(128)),
        Change::LogFloor(LogId(1 << 40)),
        Change::Flushed(SeqNo(0)),
        next(1, u64::MAX, u32::MAX, 4),
        Change::ForgetClears { id: KeyspaceId(1), seqno: SeqNo(7) },
        Change::AddRangeDeletes {
            id: KeyspaceId(1),
            deletes: vec![
                (SeqNo(7), KeySpan { start: "a".into(), end: "b".into() }),
                (SeqNo(300), KeySpan { start: "".into(), end: "".into() }),
            ],
        },
        Change::ForgetRangeDeletes { id: KeyspaceId(1), seqnos: vec![SeqNo(7), SeqNo(300)] },
        Change::SetOptions { id: KeyspaceId(1), settings: KeyspaceSettings::default() },
        Change::SetOptions {
            id: KeyspaceId(1),
            settings: KeyspaceSettings {
                merge_operator: Some("sum".to_owned()),
                default_ttl_ms: u64::MAX,
                separate_above: Some(300),
            },
        },
    ];
    for change in &changes {
        let one = edit([change.clone()]);
        let mut bytes = Vec::new();
        one.encode(&mut bytes);
        assert_eq!(Edit::decode(&bytes), Ok(one));
        for cut in 1..bytes.len().min(200) {
            assert!(Edit::decode(&bytes[..cut]).is_err(), "{change:?} cut to {cut}");
        }
    }
    let all = edit(changes);
    let mut bytes = Vec::new();
    all.encode(&mut bytes);
    assert_eq!(Edit::decode(&bytes), Ok(all));
    assert_eq!(Edit::decode(&[]), Ok(Edit::default()));
}

#[test]
fn unknown_changes_are_skipped_if_optional_and_unsupported_if_not() {
    assert_eq!(Edit::decode(&[0x80, 2, 9, 9, 5, 1, 3]).unwrap().changes.len(), 1);
    for kind in [0, 13, 14, 0x7f] {
        let outcome = Edit::decode(&[kind, 2, 0, 0]);
        assert!(matches!(outcome, Err(Malformed::Unsupported(_))), "kind {kind}");
    }
    let damaged = |bytes: &[u8]| matches!(Edit::decode(bytes), Err(Malformed::Damaged(_)));
    assert!(damaged(&[5, 2, 1, 1]), "bytes to spare");
    assert!(damaged(&[1, 4, 0, 2, 0xff, 0xff]), "a name that is not UTF-8");
    assert!(damaged(&[2, 5, 0xff, 0xff, 0xff, 0xff, 0x10]), "a keyspace of 33 bits");
    assert!(damaged(&[5, 0xff, 0xff, 0xff, 0xff, 0x0f]), "a body longer than the edit");
}

#[test]
fn edits_change_the_state_as_they_say() {
    let mut state = sample();
    assert_eq!((state.edit_number, state.log_floor, state.flushed), (1, LogId(4), SeqNo(300)));
    let key = KeyspaceId(1);
    // A segment moves to another level, and a keyspace's name is free once it is dropped.
    let moved = SegmentMeta { level: 2, ..segment(1, 2, "b", "d") };
    let step = edit([
        Change::RemoveSegment(SegmentId(1)),
        add(moved.clone()),
        Change::Clear { id: key, seqno: SeqNo(20) },
        Change::Clear { id: key, seqno: SeqNo(30) },
        Change::Clear { id: key, seqno: SeqNo(40) },
        Change::ForgetClears { id: key, seqno: SeqNo(30) },
    ]);
    state.apply(&step).unwrap();
    assert_eq!(*state.segments[&SegmentId(1)], moved);
    assert_eq!(state.keyspaces[&key].clears, [SeqNo(40)]);
    let step =
        edit([Change::DropKeyspace(KeyspaceId(0)), create(10, "default"), next(10, 10, 11, 10)]);
    state.apply(&step).unwrap();
    assert!(state.segments.is_empty(), "segments go with their keyspace");
    assert_eq!(state.keyspaces[&KeyspaceId(10)].name, "default");
    assert_eq!(state.edit_number, 3);
}

#[test]
fn an_edit_that_breaks_a_rule_changes_nothing() {
    let bad = |segment: SegmentMeta| vec![add(segment)];
    let good = segment(3, 1, "h", "k");
    let clear = |id, seqno| vec![Change::Clear { id: KeyspaceId(id), seqno: SeqNo(seqno) }];
    let cases = [
        ("segment id twice", bad(segment(1, 3, "x", "y"))),
        ("overlap at a key", bad(segment(3, 1, "g", "k"))),
        ("overlap around", bad(segment(3, 1, "a", "z"))),
        (
            "overlap of two new ones",
            vec![add(segment(3, 2, "a", "c")), add(segment(4, 2, "b", "d"))],
        ),
        ("keys swapped", bad(segment(3, 2, "b", "a"))),
        ("seqnos swapped", bad(SegmentMeta { smallest: SeqNo(301), ..good.clone() })),
        ("empty", bad(SegmentMeta { entries: 0, tombstones: 0, ..good.clone() })),
        ("tombstones", bad(SegmentMeta { tombstones: 11, ..good.clone() })),
        ("no such level", bad(SegmentMeta { level: 7, ..segment(3, 2, "h", "k") })),
        ("no keyspace", bad(SegmentMeta { keyspace: KeyspaceId(2), ..good.clone() })),
        ("segment id not covered", bad(segment(10, 2, "b", "d"))),
        ("run not covered", bad(segment(3, 10, "b", "d"))),
        (
            "segment of a dropped keyspace",
            vec![Change::DropKeyspace(KeyspaceId(0)), add(good.clone())],
        ),
        ("missing segment removed", vec![Change::RemoveSegment(SegmentId(3))]),
        (
            "segment removed twice",
            vec![Change::RemoveSegment(SegmentId(1)), Change::RemoveSegment(SegmentId(1))],
        ),
        ("keyspace id in use", vec![create(1, "new")]),
        ("keyspace id used before", vec![create(5, "new")]),
        ("keyspace id not covered", vec![create(10, "new")]),
        ("keyspace name in use", vec![create(10, "other"), next(10, 10, 11, 10)]),
        ("standalone id", vec![create(u32::MAX, "new"), next(10, 10, u32::MAX, 10)]),
        ("missing keyspace dropped", vec![Change::DropKeyspace(KeyspaceId(2))]),
        ("missing keyspace cleared", clear(2, 50)),
        ("clear goes back", clear(1, 19)),
        (
            "missing keyspace forgotten",
            vec![Change::ForgetClears { id: KeyspaceId(2), seqno: SeqNo(1) }],
        ),
        ("floor goes back", vec![Change::LogFloor(LogId(3))]),
        ("floor not covered", vec![Change::LogFloor(LogId(11))]),
        ("flushed goes back", vec![Change::Flushed(SeqNo(299))]),
        ("next segment goes back", vec![next(9, 10, 10, 10)]),
        ("next log goes back", vec![next(10, 9, 10, 10)]),
        ("next keyspace goes back", vec![next(10, 10, 9, 10)]),
        ("next run goes back", vec![next(10, 10, 10, 9)]),
    ];
    for (what, changes) in cases {
        let mut state = sample();
        let mut all = vec![Change::Flushed(SeqNo(300)), add(segment(5, 5, "m", "n"))];
        all.extend(changes);
        let outcome = state.apply(&Edit { changes: all });
        assert!(matches!(outcome, Err(Malformed::Damaged(_))), "{what}");
        assert_eq!(state, sample(), "{what}");
    }
    sample().apply(&edit([add(good)])).unwrap();
    let mut elsewhere = segment(3, 1, "a", "z");
    elsewhere.level = 2;
    sample().apply(&edit([add(elsewhere)])).unwrap();
}

#[test]
fn a_snapshot_edit_gives_the_same_state() {
    let state = sample();
    let mut again = ManifestState::empty(state.uuid, state.hash_seed);
    again.apply(&state.snapshot_edit()).unwrap();
    assert_eq!(again, state);
}

fn any_change() -> impl Strategy<Value = Change> {
    let keyspace = (0..4u32).prop_map(KeyspaceId);
    prop_oneof![
        (keyspace.clone(), "[ab]").prop_map(|(id, name)| Change::CreateKeyspace { id, name }),
        keyspace.clone().prop_map(Change::DropKeyspace),
        (keyspace.clone(), 0..9u64)
            .prop_map(|(id, seqno)| Change::Clear { id, seqno: SeqNo(seqno) }),
        (keyspace, 0..9u64)
            .prop_map(|(id, seqno)| Change::ForgetClears { id, seqno: SeqNo(seqno) }),
        (0..9u64, 0..4u64, "[a-e]", "[a-e]", 0..2u8).prop_map(|(id, run, first, last, level)| {
            let (first, last) = (first.clone().min(last.clone()), first.max(last));
            add(SegmentMeta { level, ..segment(id, run, &first, &last) })
        }),
        (0..9u64).prop_map(|id| Change::RemoveSegment(SegmentId(id))),
        (0..9u64).prop_map(|id| Change::LogFloor(LogId(id))),
        (0..9u64).prop_map(|seqno| Change::Flushed(SeqNo(seqno))),
        (0..9u64, 0..9u64, 0..4u32, 0..5u64).prop_map(|(a, b, c, d)| next(a, b, c, d)),
    ]
}

proptest! {
    /// Whatever edits apply, the state stays one that a snapshot reproduces, and every sorted run
    /// stays apart.
    #[test]
    fn states_that_edits_lead_to_are_sound(
        edits in prop::collection::vec(prop::collection::vec(any_change(), 0..4), 0..20),
    ) {
        let mut state = ManifestState::empty([1; 16], 2);
        state.apply(&edit([next(4, 4, 1, 3), create(0, "z")])).unwrap();
        for changes in edits {
            let before = state.clone();
            if state.apply(&Edit { changes }).is_err() {
                prop_assert_eq!(&state, &before);
                continue;
            }
            prop_assert_eq!(state.edit_number, before.edit_number + 1);
            let mut again = ManifestState::empty(state.uuid, state.hash_seed);
            again.apply(&state.snapshot_edit()).unwrap();
            again.edit_number = state.edit_number;
            prop_assert_eq!(&again, &state);
            for (a, one) in &state.segments {
                prop_assert!(state.keyspaces.contains_key(&one.keyspace));
                for (b, two) in state.segments.iter().filter(|(b, _)| *b > a) {
                    let apart = one.last_key < two.first_key || two.last_key < one.first_key;
                    let same = (one.keyspace, one.level, one.run)
                        == (two.keyspace, two.level, two.run);
                    prop_assert!(apart || !same, "{} {}", a, b);
                }
            }
        }
    }
}
