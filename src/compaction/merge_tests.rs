//! What a job reads, against a merge of cursors over the same runs; and what is known of older data.

use super::merge::{Entries, InputMerge};
use super::tests::{Ids, KS, home, segment, spec};
use super::*;
use crate::cursor::Cursor;
use crate::error::Error;
use crate::hash::key_hash;
use crate::iter::MergeCursor;
use crate::memtable::{Memtable, SkipMemtable};
use crate::segment::CursorOptions;
use crate::types::{Kind, PAGE};
use crate::version::{RunCursor, SegmentHome};
use crate::vfs::{Entropy, OpenMode, SeededEntropy};
use std::cell::Cell;

type Row = (Vec<u8>, u64, Kind, Vec<u8>);

/// A run of random entries, cut into segments of about so many bytes.
fn run(
    home: &SegmentHome,
    ids: &Ids,
    rng: &SeededEntropy,
    next_seqno: &mut u64,
    common: &[u8],
    segment_bytes: u64,
) -> Vec<Arc<Segment>> {
    let table = Arc::new(SkipMemtable::default());
    for _ in 0..1 + rng.next_u64() % 400 {
        let r = rng.next_u64();
        // Few keys, of all lengths, many of them with the same first bytes.
        let mut key = common.to_vec();
        key.extend((0..r % 12).map(|i| if r >> (20 + i) & 1 == 0 { 0 } else { 7 }));
        let kind = if r >> 62 == 0 { Kind::Delete } else { Kind::Put };
        let value = vec![r as u8; (r >> 40) as usize % 200];
        *next_seqno += 1;
        table.insert(KS, &key, key_hash(&key, 0), SeqNo(*next_seqno), kind, &value);
    }
    // Every version has a reader.
    let boundaries = (0..=*next_seqno).map(SeqNo).collect();
    let retention = Retention::new(boundaries, vec![]);
    let (older, next) = (OlderData::default(), || ids.next());
    let mut cursor = table.cursor(KS);
    let spec = spec(0, segment_bytes);
    let output =
        write_run(home, &mut *cursor, &retention, older, &spec, &next, &|_| false).unwrap();
    output.segments.iter().map(|m| Segment::open(home, Arc::clone(m), true).unwrap()).collect()
}

fn rows(entries: &mut impl Entries) -> Vec<Row> {
    let mut rows = Vec::new();
    entries.first().unwrap();
    while let Some(entry) = entries.entry() {
        rows.push((entry.key.to_vec(), entry.seqno.0, entry.kind, entry.value.to_vec()));
        entries.next().unwrap();
    }
    rows
}

#[test]
fn a_merge_shows_what_cursors_over_the_same_runs_show() {
    for seed in 0..60 {
        let rng = SeededEntropy::new(seed);
        let (home, ids) = (home(), Ids(Cell::new(0)));
        let common = [b"".as_slice(), b"a", b"user:long"][seed as usize % 3];
        let segment_bytes = [1, 3000, 20_000, 1 << 20][(rng.next_u64() % 4) as usize];
        let mut seqno = 0;
        let mut runs: Vec<_> = (0..rng.next_u64() % 6)
            .map(|_| run(&home, &ids, &rng, &mut seqno, common, segment_bytes))
            .collect();
        runs.reverse();
        let options = CursorOptions { fill_cache: false, readahead: false };
        let cursor =
            |run: &Vec<_>| Box::new(RunCursor::new(run.clone(), options)) as Box<dyn Cursor>;
        let expected = rows(&mut MergeCursor::new(runs.iter().map(cursor).collect()));
        assert_eq!(rows(&mut InputMerge::new(runs)), expected, "seed {seed}");
    }
}

#[test]
fn a_damaged_block_ends_the_merge_with_an_error() {
    let (home, ids) = (home(), Ids(Cell::new(0)));
    let runs = vec![vec![segment(&home, &ids, 0..250, 2)], vec![segment(&home, &ids, 0..250, 1)]];
    let path = home.path(runs[1][0].meta.id);
    let file = home.env.vfs.open(&path, OpenMode::ReadWrite).unwrap();
    file.write_all_at(b"damage", 5 * PAGE as u64 + 100).unwrap();
    let mut merge = InputMerge::new(runs);
    merge.first().unwrap();
    let mut shown = 0;
    let error = loop {
        assert!(merge.entry().is_some(), "the end was reached");
        shown += 1;
        match merge.next() {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Corruption { .. }), "{error}");
    assert!(shown > 50 && merge.entry().is_none());
}

#[test]
fn older_data_is_told_exactly_for_rising_keys() {
    let (home, ids) = (home(), Ids(Cell::new(0)));
    for seed in 0..200 {
        let rng = SeededEntropy::new(seed);
        let mut spans = Vec::new();
        let runs: Vec<Vec<Arc<Segment>>> = (0..rng.next_u64() % 4)
            .map(|_| {
                let mut from = 0;
                let mut run = Vec::new();
                for _ in 0..rng.next_u64() % 4 {
                    let first = from + (rng.next_u64() % 8) as u8;
                    let end = first + 1 + (rng.next_u64() % 6) as u8;
                    spans.push(first..end);
                    run.push(segment(&home, &ids, first..end, 1));
                    from = end;
                }
                run
            })
            .collect();
        let mut older = OlderData::new(runs);
        for key in (0..60u8).filter(|_| !rng.next_u64().is_multiple_of(3)) {
            let expected = spans.iter().any(|span| span.contains(&key));
            assert_eq!(older.may_hold(&[key]), expected, "seed {seed}, key {key} in {spans:?}");
        }
    }
}
