//! What a run keeps, against the history it came from; and what the strategy picks.

use super::*;
use crate::cache::{FilePool, SharedCache};
use crate::cursor::{Cursor, Seek};
use crate::error::Error;
use crate::hash::key_hash;
use crate::iter::{MergeCursor, View};
use crate::memtable::{Memtable, SkipMemtable};
use crate::segment::{CursorOptions, SegmentOptions};
use crate::types::{Kind, SeqNo};
use crate::version::{LEVELS, Run, RunCursor, RunNo, SegmentHome, SegmentMeta};
use crate::vfs::{Entropy, Env, SeededEntropy};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::PathBuf;

pub(super) const KS: KeyspaceId = KeyspaceId(1);

pub(super) fn home() -> SegmentHome {
    let env = Env::in_memory(1);
    let dir = PathBuf::from("/db");
    env.vfs.create_dir_all(&dir).unwrap();
    SegmentHome {
        values: Arc::default(),
        points: crate::segment::PointIndex::HashRun,
        cache: Arc::new(SharedCache::new(1 << 20)),
        files: Arc::new(FilePool::new(Arc::clone(&env.vfs), 64)),
        env,
        dir,
    }
}

pub(super) fn spec(level: u8, segment_bytes: u64) -> OutputSpec {
    let segment = SegmentOptions {
        keyspace: Some(KS),
        compression: crate::compression::Compression::None,
        ..SegmentOptions::default()
    };
    let (cuts, min_piece_bytes, separate_above) = (vec![], 0, None);
    OutputSpec {
        keyspace: KS,
        level,
        segment,
        segment_bytes,
        cuts,
        min_piece_bytes,
        separate_above,
        value_segment_bytes: segment_bytes,
    }
}

const SCAN: CursorOptions = CursorOptions { fill_cache: false, readahead: true };

pub(super) struct Ids(pub(super) Cell<u64>);

impl Ids {
    pub(super) fn next(&self) -> SegmentId {
        self.0.set(self.0.get() + 1);
        SegmentId(self.0.get())
    }
}

type Entry = (Vec<u8>, u64, Kind);

fn all(cursor: &mut dyn Cursor) -> Vec<Entry> {
    let mut entries = Vec::new();
    cursor.seek(Seek::First).unwrap();
    while cursor.valid() {
        entries.push((cursor.key().to_vec(), cursor.seqno().0, cursor.kind()));
        cursor.next().unwrap();
    }
    entries
}

/// What a reader at a snapshot sees of a history, given the clears at or before that snapshot.
fn seen(entries: &[Entry], snapshot: SeqNo, clears: &[SeqNo]) -> BTreeMap<Vec<u8>, ()> {
    let floor = clears.iter().copied().filter(|clear| *clear <= snapshot).max();
    let view = View { snapshot, floor, now_ms: 0 };
    let mut newest: BTreeMap<Vec<u8>, (u64, Kind)> = BTreeMap::new();
    for (key, seqno, kind) in entries {
        if SeqNo(*seqno) <= snapshot && newest.get(key).is_none_or(|(old, _)| old < seqno) {
            newest.insert(key.clone(), (*seqno, *kind));
        }
    }
    newest
        .into_iter()
        .filter(|(_, (seqno, kind))| *kind == Kind::Put && !view.is_cleared(SeqNo(*seqno)))
        .map(|(key, _)| (key, ()))
        .collect()
}

#[test]
fn every_reader_sees_after_a_merge_what_it_saw_before_and_nothing_superfluous_is_kept() {
    for seed in 0..300u64 {
        let rng = SeededEntropy::new(seed);
        let home = home();
        let tables: Vec<_> = (0..3).map(|_| Arc::new(SkipMemtable::default())).collect();
        for seqno in 1..=200u64 {
            let r = rng.next_u64();
            let kind = if r >> 62 == 0 { Kind::Delete } else { Kind::Put };
            let key = [(r >> 8) as u8 % 30];
            tables[(r % 3) as usize].insert(
                KS,
                &key,
                key_hash(&key, 0),
                SeqNo(seqno),
                kind,
                b"value",
            );
        }
        let mut boundaries: Vec<SeqNo> =
            (0..rng.next_u64() % 4).map(|_| SeqNo(rng.next_u64() % 200)).collect();
        boundaries.push(SeqNo(200));
        boundaries.sort();
        boundaries.dedup();
        let mut clears: Vec<SeqNo> =
            (0..rng.next_u64() % 3).map(|_| SeqNo(rng.next_u64() % 201)).collect();
        clears.sort();
        let retention = Retention::new(boundaries.clone(), clears.clone());
        let cursors = || tables.iter().map(|t| Arc::clone(t).cursor(KS) as Box<dyn Cursor>);
        let before = all(&mut MergeCursor::new(cursors().collect()));
        let ids = Ids(Cell::new(0));
        let output = write_run(
            &home,
            &mut MergeCursor::new(cursors().collect()),
            &retention,
            OlderData::default(),
            &spec(1, 200),
            &|| ids.next(),
            &|_| false,
        )
        .unwrap();
        let segments: Vec<_> = output
            .segments
            .iter()
            .map(|m| Segment::open(&home, Arc::clone(m), true).unwrap())
            .collect();
        for pair in segments.windows(2) {
            assert!(pair[0].meta.last_key < pair[1].meta.first_key, "a key was parted");
        }
        let after = all(&mut RunCursor::new(segments, SCAN));
        for snapshot in &boundaries {
            assert_eq!(
                seen(&after, *snapshot, &clears),
                seen(&before, *snapshot, &clears),
                "seed {seed}, at {snapshot}, of {boundaries:?} with clears {clears:?}"
            );
        }
        let mut per_key = BTreeMap::new();
        for (key, seqno, kind) in &after {
            *per_key.entry(key).or_insert(0) += 1;
            let oldest = SeqNo(*seqno) <= boundaries[0];
            assert!(!oldest || *kind == Kind::Put, "a tombstone that hides nothing was kept");
            assert!(!oldest || !clears.is_empty() || *seqno == 0, "a number nobody needs was kept");
        }
        assert!(per_key.values().all(|n| *n <= boundaries.len()), "a shadowed version was kept");
    }
}

#[test]
fn an_input_out_of_order_stops_the_merge() {
    let (home, ids) = (home(), Ids(Cell::new(0)));
    let unsorted = vec![segment(&home, &ids, 20..30, 1), segment(&home, &ids, 0..10, 2)];
    let retention = Retention::new(vec![SeqNo(1000)], vec![]);
    let mut cursor = RunCursor::new(unsorted, SCAN);
    let older = OlderData::default();
    let next = || ids.next();
    // Cut after each entry, so that the segment writer could not notice.
    let outcome = write_run(&home, &mut cursor, &retention, older, &spec(1, 1), &next, &|_| false);
    assert!(matches!(outcome, Err(Error::OutOfOrder { .. })));
    assert_eq!(home.env.vfs.read_dir(&home.dir).unwrap().len(), 2, "what was written is removed");
}

#[test]
fn a_run_of_few_large_values_looks_whether_to_stop_too() {
    let (home, ids) = (home(), Ids(Cell::new(0)));
    let retention = Retention::new(vec![SeqNo(1000)], vec![]);
    let table = Arc::new(SkipMemtable::default());
    for n in 0..16u8 {
        let value = vec![n; 1 << 20];
        table.insert(KS, &[n], key_hash(&[n], 0), SeqNo(u64::from(n) + 1), Kind::Put, &value);
    }
    let run = |entries: &mut dyn Cursor, separate_above| {
        let told = Cell::new((0, 0));
        let stop = |since| {
            told.set((told.get().0 + 1, told.get().1 + since));
            false
        };
        let spec = OutputSpec { separate_above, ..spec(1, 16 << 20) };
        let (older, next) = (OlderData::default(), || ids.next());
        let output = write_run(&home, entries, &retention, older, &spec, &next, &stop).unwrap();
        let open = |meta: &Arc<SegmentMeta>| {
            let segment = Segment::open(&home, Arc::clone(meta), true).unwrap();
            segment.mark_live();
            segment
        };
        assert_eq!(told.get(), (4, 16), "as often as four mebibytes are there");
        output.segments.iter().map(open).collect::<Vec<_>>()
    };
    run(&mut *(Arc::clone(&table) as Arc<dyn Memtable>).cursor(KS), None);
    let separated = run(&mut *(Arc::clone(&table) as Arc<dyn Memtable>).cursor(KS), Some(100));
    assert!(separated.iter().any(|segment| !segment.values().is_empty()));
    // Where only references pass, what they stand for may have to be read.
    run(&mut RunCursor::new(separated, SCAN), Some(100));
}

/// One segment with the given keys as puts (or tombstones) at a place.
pub(super) fn segment(
    home: &SegmentHome,
    ids: &Ids,
    keys: std::ops::Range<u8>,
    seqno: u64,
) -> Arc<Segment> {
    let table = Arc::new(SkipMemtable::default());
    for key in keys {
        table.insert(KS, &[key], key_hash(&[key], 0), SeqNo(seqno), Kind::Put, &[seqno as u8; 300]);
    }
    // A boundary in front keeps the sequence numbers.
    let retention = Retention::new(vec![SeqNo(0), SeqNo(1000)], vec![]);
    let mut cursor = table.cursor(KS);
    let older = OlderData::default();
    let next = || ids.next();
    let spec = spec(0, 1 << 20);
    let output =
        write_run(home, &mut *cursor, &retention, older, &spec, &next, &|_| false).unwrap();
    assert_eq!(output.segments.len(), 1);
    Segment::open(home, Arc::clone(&output.segments[0]), true).unwrap()
}

/// A tree from level, run and key ranges.
pub(super) fn tree(
    home: &SegmentHome,
    ids: &Ids,
    shape: &[(usize, u64, std::ops::Range<u8>)],
) -> Tree {
    let mut levels: Vec<Vec<Run>> = vec![Vec::new(); LEVELS];
    for (level, run, keys) in shape {
        let segment = segment(home, ids, keys.clone(), *run);
        let meta = SegmentMeta {
            level: *level as u8,
            run: RunNo(*run),
            ..SegmentMeta::clone(&segment.meta)
        };
        let segment = segment.with_meta(Arc::new(meta));
        let runs = &mut levels[*level];
        match runs.iter_mut().find(|r| r.segments[0].meta.run == RunNo(*run)) {
            Some(found) => found.segments.push(segment),
            None => runs.push(Run { segments: vec![segment] }),
        }
    }
    for runs in &mut levels {
        runs.sort_by_key(|run| std::cmp::Reverse(run.segments[0].meta.run));
    }
    Tree { id: KS, hash_seed: 0, clears: vec![], deletes: Arc::default(), levels }
}

pub(super) fn starts(job: &Job) -> Vec<Vec<u8>> {
    let first = |s: &Arc<Segment>| s.meta.first_key[0];
    job.inputs.iter().map(|run| run.iter().map(first).collect()).collect()
}

pub(super) fn now(busy: &Busy) -> Situation<'_> {
    Situation { busy, mood: Mood::Busy, now_ms: 0, garbage_known: false }
}

pub(super) fn without(segments: impl IntoIterator<Item = SegmentId>) -> Busy {
    let mut busy = Busy::default();
    busy.exclude(segments);
    busy
}

const LEVELED: Leveled = Leveled { level0_runs: 2, level1_bytes: 200_000, ratio: 10 };

#[test]
fn level_0_moves_down_whole_with_what_it_overlaps() {
    let (home, ids) = (home(), Ids(Cell::new(0)));
    let none = Busy::default();
    let one = tree(&home, &ids, &[(0, 9, 0..5)]);
    assert!(LEVELED.pick(&one, &now(&none)).is_none(), "too few runs");
    let shape = [(0, 9, 10..15), (0, 8, 12..20), (1, 1, 0..5), (1, 1, 13..14), (1, 1, 30..35)];
    let full = tree(&home, &ids, &shape);
    let job = LEVELED.pick(&full, &now(&none)).unwrap();
    assert_eq!((job.output_level, job.action), (1, Action::Merge));
    assert_eq!(job.output, OutputRun::Join(Some(RunNo(1))));
    assert_eq!(starts(&job), [vec![10], vec![12], vec![13]], "newest first");
    for segment in job.segments() {
        let busy = without([segment.meta.id]);
        assert!(LEVELED.pick(&full, &now(&busy)).is_none(), "two jobs would share a segment");
    }
}

#[test]
fn a_full_level_gives_the_segment_that_costs_least_and_moves_it_free_if_it_can() {
    let (home, ids) = (home(), Ids(Cell::new(0)));
    let shape = [(1, 1, 0..20), (1, 1, 20..40), (1, 1, 60..80), (2, 2, 0..30), (2, 2, 30..50)];
    let full = tree(&home, &ids, &shape);
    let tight = Leveled { level1_bytes: 3000, ..LEVELED };
    let job = tight.pick(&full, &now(&Busy::default())).unwrap();
    assert_eq!((job.output_level, job.action), (2, Action::Move));
    assert_eq!(starts(&job), [vec![60]]);
    let busy = without([job.segments().next().unwrap().meta.id]);
    let job = tight.pick(&full, &now(&busy)).unwrap();
    assert_eq!(job.action, Action::Merge);
    assert_eq!(starts(&job), [vec![0], vec![0]]);
    assert!(tight.debt(&full, false) > 0);
    assert_eq!(LEVELED.debt(&full, false), 0);
}

#[test]
fn a_manual_compaction_takes_what_the_range_touches() {
    let (home, ids) = (home(), Ids(Cell::new(0)));
    let shape = [(1, 1, 0..10), (1, 1, 20..30), (2, 2, 25..27), (2, 2, 40..50)];
    let full = tree(&home, &ids, &shape);
    let none = Busy::default();
    let pick = |first: Option<u8>, last: Option<u8>| {
        let first = first.map(|k| [k]);
        let last = last.map(|k| [k]);
        let (first, last) = (first.as_ref().map(|k| &k[..]), last.as_ref().map(|k| &k[..]));
        let range = KeyRange { first, last, limit: SeqNo(1000), next_run: RunNo(u64::MAX) };
        LEVELED.pick_range(&full, &range, &now(&none)).map(|job| starts(&job))
    };
    assert_eq!(pick(Some(9), Some(12)), Some(vec![vec![0]]));
    assert_eq!(pick(Some(10), Some(19)), None);
    assert_eq!(pick(Some(10), None), Some(vec![vec![20], vec![25]]));
    assert_eq!(pick(None, None), Some(vec![vec![0]]));
}
