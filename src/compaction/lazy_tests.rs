//! Which slices lazy leveling takes, when, and how they are cut.

use super::output::OutputSpec;
use super::tests::{Ids, KS, home, now, segment, spec, starts, tree, without};
use super::*;
use crate::memtable::{Memtable, SkipMemtable};
use crate::types::Kind;
use crate::version::Run;
use std::cell::Cell;

const LAZY: LazyLeveling =
    LazyLeveling { runs: 4, segment_bytes: 12_000, alpha_busy: 0.25, alpha_calm: 0.08 };

fn calm(busy: &Busy) -> Situation<'_> {
    Situation { mood: Mood::Calm, ..now(busy) }
}

#[test]
fn a_slice_takes_what_older_runs_share_with_it_and_leaves_newer_data_above() {
    let (home, ids) = (home(), Ids(Cell::new(0)));
    let none = Busy::default();
    let shape = [
        (0, 9, 10..60),
        (0, 8, 61..90),
        (0, 7, 35..40),
        (1, 5, 38..65),
        (6, 1, 0..30),
        (6, 1, 30..60),
        (6, 1, 62..90),
        (6, 1, 100..130),
    ];
    let full = tree(&home, &ids, &shape);
    // From the first slice, [.., 30): run 9 drags all that is older and shares keys with it.
    let first = shape::gather(&full, 0..=6, shape::slices(&full, 0).next().unwrap());
    let keys = |parts: Vec<&[Arc<Segment>]>| -> Vec<Vec<u8>> {
        parts.iter().map(|p| p.iter().map(|s| s.meta.first_key[0]).collect()).collect()
    };
    assert_eq!(keys(first), [vec![10], vec![35], vec![38], vec![0, 30, 62]]);
    // From the last: nothing is above it.
    let last = shape::gather(&full, 0..=6, shape::slices(&full, 0).last().unwrap());
    assert_eq!(keys(last), [[100]]);
    // Without level 0, run 5 drags its own; what is newer stays above.
    let third = shape::gather(&full, 1..=6, shape::slices(&full, 0).nth(2).unwrap());
    assert_eq!(keys(third), [vec![38], vec![30, 62]]);
    // Several segments make a slice if they are small.
    assert_eq!(shape::slices(&full, 1 << 20).count(), 1);
    let job = LAZY.pick(&full, &calm(&none)).unwrap();
    assert_eq!((job.output_level, job.output), (6, OutputRun::Join(Some(RunNo(1)))));
}

#[test]
fn slices_are_due_by_what_is_superseded() {
    let (home, ids) = (home(), Ids(Cell::new(0)));
    let (none, lazy) = (Busy::default(), LazyLeveling { runs: 3, ..LAZY });
    let mut shape = vec![(6, 1, 0..100), (6, 1, 100..200), (0, 5, 10..40), (0, 6, 120..150)];
    let few = tree(&home, &ids, &shape);
    assert!(lazy.pick(&few, &now(&none)).is_none(), "three tenths are let be");
    assert!(lazy.pick(&few, &calm(&none)).is_some(), "unless there is time");
    shape.push((0, 7, 110..160));
    let more = tree(&home, &ids, &shape);
    assert!(lazy.pick(&more, &now(&none)).is_some());
    let job = lazy.pick(&more, &now(&none)).unwrap();
    assert_eq!(starts(&job), [vec![110], vec![120], vec![100]], "the slice with most above it");
    // Known not to be garbage, it stays; known to be, it goes.
    let known = Situation { garbage_known: true, ..now(&none) };
    assert!(lazy.pick(&more, &known).is_none());
    more.levels[6][0].segments[0].add_garbage(90);
    let job = lazy.pick(&more, &known).unwrap();
    assert_eq!(starts(&job), [vec![10], vec![0]], "the slice with most garbage");
    assert_eq!(Space::of(&more, true).garbage, more.levels[6][0].segments[0].garbage_bytes());
}

#[test]
fn new_data_joins_the_bottom_once_there_is_much_of_it() {
    let (home, ids) = (home(), Ids(Cell::new(0)));
    let (none, lazy) = (Busy::default(), LazyLeveling { runs: 2, ..LAZY });
    let known = Situation { garbage_known: true, ..now(&none) };
    let less = tree(&home, &ids, &[(6, 1, 0..200), (0, 5, 0..60), (0, 6, 90..150)]);
    assert!(lazy.pick(&less, &known).is_none());
    let much = tree(&home, &ids, &[(6, 1, 0..200), (0, 5, 0..90), (0, 6, 90..170)]);
    assert!(lazy.pick(&much, &known).is_some());
    assert!(LAZY.pick(&much, &known).is_none(), "with more runs at a time");
}

#[test]
fn runs_are_merged_but_for_what_jobs_hold_back() {
    let (home, ids) = (home(), Ids(Cell::new(0)));
    let shape = [
        (0, 9, 0..20),
        (0, 9, 40..60),
        (0, 9, 80..99),
        (0, 8, 0..10),
        (0, 8, 50..90),
        (0, 7, 5..8),
        (0, 7, 40..45),
        (6, 1, 0..100),
    ];
    let full = tree(&home, &ids, &shape);
    let none = Busy::default();
    let job = shape::merge_runs(&full, 0, 5, &none).unwrap();
    assert_eq!((job.output_level, job.output), (1, OutputRun::New));
    assert_eq!(starts(&job), [vec![0, 40, 80], vec![0, 50], vec![5, 40]]);
    let busy = without([full.levels[0][2].segments[0].meta.id]);
    // 5..8 stays; so 0..10 and 0..20 may not pass it.
    let job = shape::merge_runs(&full, 0, 5, &busy).unwrap();
    assert_eq!(starts(&job), [vec![40, 80], vec![50], vec![40]]);
    // Beside it, only what is apart from it can follow.
    let mut busy = Busy::default();
    busy.take(&job);
    let beside = shape::merge_runs(&full, 0, 5, &busy).unwrap();
    assert_eq!(starts(&beside), [[0], [0], [5]]);
    busy.release(&job);
    let newest = &full.levels[0][0].segments;
    let outer = vec![vec![Arc::clone(&newest[0]), Arc::clone(&newest[2])]];
    busy.take(&Job { inputs: outer, ..job });
    assert!(shape::merge_runs(&full, 0, 5, &busy).is_none(), "it writes between these keys");
    // At the last level for runs, in place of the oldest.
    let job = shape::merge_runs(&full, 0, 0, &none).unwrap();
    assert_eq!((job.output_level, job.output), (0, OutputRun::Join(Some(RunNo(7)))));
}

#[test]
fn what_nothing_older_shares_keys_with_moves_to_the_bottom() {
    let (home, ids) = (home(), Ids(Cell::new(0)));
    let none = Busy::default();
    let shape = [(0, 9, 100..140), (0, 9, 190..220), (0, 8, 90..110), (6, 1, 0..80)];
    let full = tree(&home, &ids, &shape);
    let job = LAZY.pick(&full, &now(&none)).unwrap();
    assert_eq!((job.action, job.output), (Action::Move, OutputRun::Join(Some(RunNo(1)))));
    assert_eq!(starts(&job), [[190]], "100..140 hides parts of 90..110");
    let busy = without(job.segments().map(|s| s.meta.id));
    assert_eq!(starts(&LAZY.pick(&full, &now(&busy)).unwrap()), [[90]]);
    // A crumb does not move, until it has company.
    let lazy = LazyLeveling { segment_bytes: 40_000, ..LAZY };
    let crumb = tree(&home, &ids, &[(0, 9, 100..105), (6, 1, 0..80)]);
    assert!(LAZY.pick(&crumb, &now(&none)).is_some(), "large enough for small segments");
    assert!(lazy.pick(&crumb, &now(&none)).is_none());
    let crumbs = tree(&home, &ids, &[(6, 1, 0..5), (6, 1, 6..9), (6, 1, 10..60), (6, 1, 60..64)]);
    assert!(lazy.pick(&crumbs, &now(&none)).is_none());
    assert_eq!(starts(&lazy.pick(&crumbs, &calm(&none)).unwrap()), [[0, 6]]);
}

#[test]
fn levels_that_are_not_cut_are_left_to_merges_of_runs() {
    let (home, ids) = (home(), Ids(Cell::new(0)));
    let none = Busy::default();
    let mut shape: Vec<_> = (0..10u8).map(|n| (6, 1, n * 20..n * 20 + 20)).collect();
    for run in 5..8 {
        shape.push((0, run, 0..200));
    }
    let uncut = tree(&home, &ids, &shape);
    assert!(LAZY.pick(&uncut, &now(&none)).is_none(), "a slice would drag all of it along");
    shape.push((0, 8, 0..200));
    let uncut = tree(&home, &ids, &shape);
    let job = LAZY.pick(&uncut, &now(&none)).unwrap();
    assert_eq!((job.output_level, job.output), (1, OutputRun::New));
    assert_eq!(LAZY.cuts(&uncut).len(), 9);
}

#[test]
fn a_merge_is_cut_into_pieces_of_about_equal_size() {
    let (home, ids) = (home(), Ids(Cell::new(0)));
    let segments: Vec<_> = (0..4u8).map(|n| segment(&home, &ids, n * 50..n * 50 + 50, 1)).collect();
    let bytes: u64 = segments.iter().map(|s| s.meta.file_len).sum();
    let pieces =
        |count: usize, segment_bytes| shape::pieces(&[&segments[..count]], true, segment_bytes);
    assert!((bytes..bytes * 11 / 10).contains(&pieces(4, bytes)), "one, with some room");
    assert!((bytes / 2..bytes / 20 * 11).contains(&pieces(4, bytes / 2)), "two halves");
    assert!((bytes..bytes / 10 * 11).contains(&pieces(4, bytes * 10 / 14)), "never a tiny tail");
    assert!(pieces(4, bytes * 10 / 16) <= bytes / 20 * 11);
}

#[test]
fn output_is_cut_at_the_keys_asked_for_unless_the_piece_would_be_tiny() {
    let (home, ids) = (home(), Ids(Cell::new(100)));
    let table = Arc::new(SkipMemtable::default());
    for key in 0..200u8 {
        // Two versions of each key.
        table.insert(KS, &[key], u64::from(key), SeqNo(u64::from(key) + 1), Kind::Put, &[7; 300]);
        table.insert(KS, &[key], u64::from(key), SeqNo(u64::from(key) + 501), Kind::Put, &[7; 300]);
    }
    let retention = Retention::new(vec![SeqNo(0), SeqNo(300), SeqNo(1000)], vec![]);
    let write = |cuts: &[u8], min_piece_bytes| {
        let cuts = cuts.iter().map(|k| Key(vec![*k].into())).collect();
        let spec = OutputSpec { cuts, min_piece_bytes, ..spec(0, 1 << 20) };
        let mut cursor = Arc::clone(&table).cursor(KS);
        let next = || ids.next();
        let older = OlderData::default();
        write_run(&home, &mut *cursor, &retention, older, &spec, &next, &|_| false).unwrap()
    };
    let firsts = |output: &Output| -> Vec<u8> {
        output.segments.iter().map(|meta| meta.first_key[0]).collect()
    };
    assert_eq!(firsts(&write(&[], 1)), [0]);
    let cut = write(&[0, 50, 51, 90, 230], 1);
    assert_eq!(firsts(&cut), [0, 50, 51, 90]);
    assert_eq!(cut.entries_out, 400);
    for pair in cut.segments.windows(2) {
        assert!(pair[0].last_key < pair[1].first_key, "a key was parted");
    }
    // Twenty kilobytes are about 32 keys: the cut at 51 and that at 10 are passed over.
    assert_eq!(firsts(&write(&[10, 50, 51, 90], 20_000)), [0, 50, 90]);
    assert_eq!(firsts(&write(&[50, 90], 1 << 20)), [0]);
}

#[test]
fn what_range_reads_look_into_is_merged_once_they_have_paid_for_it() {
    let (home, ids) = (home(), Ids(Cell::new(0)));
    let none = Busy::default();
    let shape = [(0, 5, 10..40), (0, 6, 120..150), (6, 1, 0..100), (6, 1, 100..200)];
    let full = tree(&home, &ids, &shape);
    let lazy = LazyLeveling { runs: 8, alpha_busy: 1.0, ..LAZY };
    assert!(lazy.pick(&full, &now(&none)).is_none(), "nothing is due");
    let seek = |run: usize, times: u64| {
        (0..times).for_each(|_| full.levels[0][run].segments[0].note_seek());
    };
    // A seek into the slice of the older run costs what looking into that one more costs.
    let (upper, bottom) = (&full.levels[0][1].segments[0], &full.levels[6][0].segments[0]);
    let due = (upper.meta.file_len + bottom.meta.file_len).div_ceil(512);
    seek(1, due - 1);
    assert!(lazy.pick(&full, &now(&none)).is_none(), "a little less than it costs");
    seek(1, 1);
    let job = lazy.pick(&full, &now(&none)).unwrap();
    assert_eq!((starts(&job), job.output_level), (vec![vec![10], vec![0]], 6));
    // While that is under way, or cannot be read, another slice has its turn.
    seek(0, due + 50);
    let job = lazy.pick(&full, &now(&none)).unwrap();
    assert_eq!(starts(&job), [[120], [100]]);
    let mut busy = Busy::default();
    busy.take(&job);
    let job = lazy.pick(&full, &now(&busy)).unwrap();
    assert_eq!(starts(&job), [[10], [0]]);
    // The runs of a level are worth it before their slices are, if much lies below.
    let shape = [(0, 5, 10..40), (0, 6, 15..35), (0, 7, 12..38), (6, 1, 0..250)];
    let wide = tree(&home, &ids, &shape);
    assert!(lazy.pick(&wide, &now(&none)).is_none());
    let bytes: u64 = wide.levels[0].iter().map(Run::bytes).sum();
    let each = bytes.div_ceil(512).div_ceil(2);
    wide.levels[0].iter().for_each(|r| (0..each).for_each(|_| r.segments[0].note_seek()));
    let job = lazy.pick(&wide, &now(&none)).unwrap();
    assert_eq!((starts(&job), job.output_level), (vec![vec![12], vec![15], vec![10]], 1));
    // What a job at work has been paid for is no reason to merge others.
    let shape = [(0, 5, 10..40), (0, 6, 50..70), (0, 7, 55..75), (6, 1, 0..250)];
    let wide = tree(&home, &ids, &shape);
    (0..10 * each).for_each(|_| wide.levels[0][2].segments[0].note_seek());
    let mut busy = Busy::default();
    busy.exclude([wide.levels[0][2].segments[0].meta.id]);
    assert!(lazy.pick(&wide, &now(&busy)).is_none());
}
