//! What every strategy must keep, on layouts of any kind: no job lets an older version overtake a
//! newer one, none takes what another has, and each layout comes to rest.

use super::tests::{Ids, KS, home, now, segment};
use super::*;
use crate::types::SegmentId;
use crate::version::{LEVELS, Run, SegmentHome, SegmentMeta};
use crate::vfs::{Entropy, SeededEntropy};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

fn strategies() -> Vec<(&'static str, Box<dyn Strategy>)> {
    let segment_bytes = 12_000;
    let lazy = |runs| LazyLeveling { runs, segment_bytes, alpha_busy: 0.25, alpha_calm: 0.08 };
    let leveled = Leveled { level0_runs: 3, level1_bytes: 20_000, ratio: 3 };
    vec![
        ("lazy", Box::new(lazy(3))),
        ("lazy, eager", Box::new(lazy(1))),
        ("leveled", Box::new(leveled)),
        ("tiered", Box::new(Tiered { runs: 3, segment_bytes })),
        ("fifo", Box::new(Fifo { max_bytes: 60_000, max_age: Some(Duration::from_secs(1)) })),
    ]
}

/// Segments to build layouts from, made once: opening files is what takes time.
struct Quarry {
    segments: Vec<Arc<Segment>>,
    rng: SeededEntropy,
    next: Cell<u64>,
}

impl Quarry {
    fn new(home: &SegmentHome, seed: u64) -> Quarry {
        let ids = Ids(Cell::new(0));
        let mut segments = Vec::new();
        for start in (0..240u8).step_by(6) {
            for len in [1, 4, 9, 30, 120] {
                let end = start.saturating_add(len).min(250);
                segments.push(segment(home, &ids, start..end, 1));
            }
        }
        let quarry = Quarry { segments, rng: SeededEntropy::new(seed), next: Cell::new(1 << 20) };
        // Some are read by ranges, and what is made of them too: they go on asking to be merged.
        for segment in quarry.segments.iter().filter(|_| quarry.below(2) == 0) {
            (0..quarry.below(60)).for_each(|_| segment.note_seek());
        }
        quarry
    }

    fn below(&self, n: usize) -> usize {
        (self.rng.next_u64() % n as u64) as usize
    }

    /// A segment of these keys, under a name of its own.
    fn place(&self, of: &SegmentMeta, level: usize, run: u64) -> Arc<Segment> {
        let shape = self.segments.iter().find(|s| s.meta.first_key == of.first_key);
        let shape = shape.unwrap_or(&self.segments[0]);
        let id = SegmentId(self.next.replace(self.next.get() + 1));
        let meta = SegmentMeta { id, level: level as u8, run: RunNo(run), ..of.clone() };
        shape.renamed(Arc::new(meta))
    }

    fn layout(&self) -> Tree {
        let mut levels: Vec<Vec<Run>> = vec![Vec::new(); LEVELS];
        let mut number = 100;
        for (level, runs) in levels.iter_mut().enumerate() {
            let count = if self.below(2) == 0 { 0 } else { self.below(5) };
            for _ in 0..count {
                let mut segments: Vec<Arc<Segment>> = Vec::new();
                let wide = self.below(2) == 0;
                for _ in 0..1 + self.below(8) {
                    let at = &self.segments[self.below(self.segments.len())];
                    let (first, last) = (&at.meta.first_key, &at.meta.last_key);
                    let apart = !segments.iter().any(|s| s.overlaps(first, last));
                    if apart && (wide || at.meta.entries < 20) {
                        segments.push(self.place(&at.meta, level, number));
                    }
                }
                segments.sort_by(|a, b| a.meta.first_key.cmp(&b.meta.first_key));
                if !segments.is_empty() {
                    runs.push(Run { segments });
                    number -= 1;
                }
            }
        }
        Tree { id: KS, hash_seed: 0, clears: vec![], deletes: Arc::default(), levels }
    }
}

/// Where the output goes, among all runs newest first: the number of runs that are newer than it.
fn runs_above_output(tree: &Tree, job: &Job) -> usize {
    let level = usize::from(job.output_level);
    let above: usize = tree.levels[..level].iter().map(Vec::len).sum();
    let newer_there = match job.output {
        OutputRun::New => 0,
        OutputRun::Join(None) => {
            assert!(tree.levels[level].is_empty(), "the run to join is known");
            0
        }
        OutputRun::Join(Some(run)) => {
            assert!(tree.levels[level].iter().any(|r| r.number() == run), "it is there");
            tree.levels[level].iter().filter(|r| r.number() > run).count()
        }
    };
    above + newer_there
}

fn check(name: &str, tree: &Tree, job: &Job) {
    let is_input = |s: &Arc<Segment>| job.segments().any(|i| i.meta.id == s.meta.id);
    let runs: Vec<_> = tree.runs().collect();
    let goal = match job.action {
        Action::Drop => runs.len(),
        _ => runs_above_output(tree, job),
    };
    for (at, run) in runs.iter().enumerate() {
        for input in run.segments.iter().filter(|s| is_input(s)) {
            assert!(job.action == Action::Drop || at <= goal, "{name}: data goes up");
            let passed = runs.get(at + 1..goal.max(at + 1)).unwrap_or(&[]);
            for other in passed.iter().flat_map(|run| &run.segments) {
                let meets = other.overlaps(&input.meta.first_key, &input.meta.last_key);
                assert!(!meets || is_input(other), "{name}: {input:?} overtakes {other:?}");
            }
        }
    }
    let first = job.segments().map(|s| &s.meta.first_key).min().unwrap();
    let last = job.segments().map(|s| &s.meta.last_key).max().unwrap();
    if let (OutputRun::Join(Some(_)), Some(target)) = (job.output, runs.get(goal)) {
        for other in target.segments.iter().filter(|s| !is_input(s)) {
            assert!(!other.overlaps(first, last), "{name}: the output run would overlap");
        }
    }
    // Newest first, as the merge expects.
    let place = |s: &Arc<Segment>| {
        runs.iter().position(|r| r.segments.iter().any(|o| o.meta.id == s.meta.id)).unwrap()
    };
    let order: Vec<usize> = job.inputs.iter().map(|part| place(&part[0])).collect();
    assert!(order.is_sorted_by(|a, b| a < b), "{name}: inputs out of order");
    for part in &job.inputs {
        assert!(part.iter().all(|s| place(s) == place(&part[0])));
        assert!(part.is_sorted_by(|a, b| a.meta.last_key < b.meta.first_key));
    }
    if job.action == Action::Move {
        assert_eq!(job.inputs.len(), 1);
    }
}

/// The tree once the job is done, with one segment for each input of the oldest run.
fn done(quarry: &Quarry, tree: &Tree, job: &Job, next_run: &mut u64) -> Tree {
    let mut metas: Vec<Arc<Segment>> = tree.segments().cloned().collect();
    metas.retain(|s| !job.segments().any(|i| i.meta.id == s.meta.id));
    let level = usize::from(job.output_level);
    let run = match job.output {
        OutputRun::Join(Some(run)) => run.0,
        OutputRun::Join(None) if !tree.levels[level].is_empty() => {
            tree.levels[level].last().unwrap().number().0
        }
        _ => {
            *next_run += 1;
            *next_run
        }
    };
    if job.action != Action::Drop {
        // As if newer entries superseded all others: what is left has the shape of the oldest
        // inputs, and of each other that shares no keys with what is there already.
        let mut out: Vec<Arc<Segment>> = Vec::new();
        for s in job.inputs.iter().rev().flatten() {
            if !out.iter().any(|o| o.overlaps(&s.meta.first_key, &s.meta.last_key)) {
                out.push(quarry.place(&s.meta, level, run));
            }
        }
        metas.extend(out);
    }
    let mut levels: Vec<BTreeMap<std::cmp::Reverse<u64>, Vec<Arc<Segment>>>> =
        vec![BTreeMap::new(); LEVELS];
    for s in metas {
        let level = usize::from(s.meta.level);
        levels[level].entry(std::cmp::Reverse(s.meta.run.0)).or_default().push(s);
    }
    let runs = |runs: BTreeMap<_, Vec<Arc<Segment>>>| {
        let run = |mut segments: Vec<Arc<Segment>>| {
            segments.sort_by(|a, b| a.meta.first_key.cmp(&b.meta.first_key));
            assert!(segments.is_sorted_by(|a, b| a.meta.last_key < b.meta.first_key));
            Run { segments }
        };
        runs.into_values().map(run).collect()
    };
    Tree {
        id: KS,
        hash_seed: 0,
        clears: vec![],
        deletes: Arc::default(),
        levels: levels.into_iter().map(runs).collect(),
    }
}

#[test]
fn no_strategy_lets_older_data_overtake_on_any_layout_and_each_comes_to_rest() {
    let home = home();
    let quarry = Quarry::new(&home, 11);
    let (mut jobs, mut rounds) = (0, 0);
    for _ in 0..150 {
        let start = quarry.layout();
        for (name, strategy) in strategies() {
            for mood in [Mood::Busy, Mood::Calm] {
                let mut tree = start.clone();
                let mut next_run = 1000;
                let nothing = Busy::default();
                let mut left = 2000;
                loop {
                    let now = Situation { mood, now_ms: 500, ..now(&nothing) };
                    let Some(job) = strategy.pick(&tree, &now) else { break };
                    check(name, &tree, &job);
                    tree = done(&quarry, &tree, &job, &mut next_run);
                    jobs += 1;
                    left -= 1;
                    assert!(left > 0, "{name} does not come to rest");
                }
                rounds += 1;
                if name.starts_with("lazy") {
                    assert!(tree.levels.iter().all(|runs| runs.len() < 9), "runs are bounded");
                }
            }
        }
    }
    assert!(jobs > 5 * rounds);
}

#[test]
fn a_manual_compaction_brings_every_layout_to_its_resting_place() {
    let home = home();
    let quarry = Quarry::new(&home, 12);
    for round in 0..150 {
        let start = quarry.layout();
        let bounds = [quarry.below(250) as u8, quarry.below(250) as u8];
        let (first, last) = ([bounds[0].min(bounds[1])], [bounds[0].max(bounds[1])]);
        let part = KeyRange {
            first: Some(&first),
            last: Some(&last),
            limit: SeqNo(1000),
            next_run: RunNo(u64::MAX),
        };
        let all =
            KeyRange { first: None, last: None, limit: SeqNo(1000), next_run: RunNo(u64::MAX) };
        for (name, strategy) in strategies() {
            for range in [part, all] {
                let mut tree = start.clone();
                let mut next_run = 1000;
                let nothing = Busy::default();
                for left in (0..2000).rev() {
                    assert!(left > 0, "{name}, round {round}: does not come to an end");
                    let Some(job) = strategy.pick_range(&tree, &range, &now(&nothing)) else {
                        break;
                    };
                    check(name, &tree, &job);
                    tree = done(&quarry, &tree, &job, &mut next_run);
                }
                let runs = tree.runs().filter(|r| r.segments.iter().any(|s| range.concerns(s)));
                assert!(name == "fifo" || runs.count() <= 1, "{name}: one run is left in range");
            }
        }
    }
}

#[test]
fn jobs_at_work_are_apart() {
    let home = home();
    let quarry = Quarry::new(&home, 13);
    let mut beside = 0;
    for _ in 0..300 {
        let tree = quarry.layout();
        for (name, strategy) in strategies() {
            let mut busy = Busy::default();
            let mut jobs: Vec<Job> = Vec::new();
            while let Some(job) =
                strategy.pick(&tree, &Situation { mood: Mood::Calm, ..now(&busy) })
            {
                check(name, &tree, &job);
                for other in &jobs {
                    let shared = |s: &Arc<Segment>| other.segments().any(|o| Arc::ptr_eq(o, s));
                    assert!(!job.segments().any(shared), "{name}: two jobs share a segment");
                    let (one, two) = (job.claim().unwrap(), other.claim().unwrap());
                    assert!(job.action == Action::Drop || !one.meets(&two), "{name}: one span");
                    beside += 1;
                }
                busy.take(&job);
                jobs.push(job);
            }
            for job in &jobs {
                busy.release(job);
            }
            assert!(busy.segments.is_empty() && busy.claims.is_empty());
        }
    }
    assert!(beside > 300, "{beside}");
}

#[test]
fn fifo_drops_the_oldest_until_the_rest_fits_and_what_is_too_old() {
    let home = home();
    let quarry = Quarry::new(&home, 14);
    let of = |at: usize| &quarry.segments[at].meta;
    let run = |at: usize, number| Run { segments: vec![quarry.place(of(at), 0, number)] };
    let mut levels: Vec<Vec<Run>> = vec![Vec::new(); LEVELS];
    levels[0] = vec![run(3, 9), run(3, 8), run(8, 7), run(3, 6)];
    let tree = Tree { id: KS, hash_seed: 0, clears: vec![], deletes: Arc::default(), levels };
    let numbers = |job: Option<Job>| -> Vec<u64> {
        job.map_or(vec![], |job| job.segments().map(|s| s.meta.run.0).collect())
    };
    let total: u64 = tree.segments().map(|s| s.meta.file_len).sum();
    let pick = |max_bytes, now_ms, busy: &Busy| {
        let fifo = Fifo { max_bytes, max_age: Some(Duration::from_secs(10)) };
        numbers(fifo.pick(&tree, &Situation { now_ms, ..now(busy) }))
    };
    let nothing = Busy::default();
    assert_eq!(pick(total, 0, &nothing), [0u64; 0]);
    assert_eq!(pick(total - 1, 0, &nothing), [6]);
    assert_eq!(pick(total / 2, 0, &nothing), [7, 6]);
    assert_eq!(pick(total, 10_001, &nothing), [9, 8, 7, 6]);
    assert_eq!(pick(total, 10_000, &nothing), [0u64; 0]);
    // What newer ones share keys with stays, and holds them back.
    let mut busy = Busy::default();
    busy.exclude(tree.levels[0][3].segments.iter().map(|s| s.meta.id));
    assert_eq!(pick(total, 10_001, &busy), [0u64; 0], "all share keys with the oldest");
}

/// A second job, chosen while the first was dropping what exceeded the cap, counted that once more
/// and dropped as much again of what was to stay.
#[test]
fn fifo_jobs_at_once_drop_no_more_than_one_alone() {
    let home = home();
    let quarry = Quarry::new(&home, 15);
    // One run for each time slice, none sharing keys with another.
    let run = |(at, number): (usize, u64)| {
        let of = &quarry.segments[at * 5].meta;
        Run { segments: vec![quarry.place(of, 0, number)] }
    };
    let mut levels: Vec<Vec<Run>> = vec![Vec::new(); LEVELS];
    levels[0] = [(3, 9), (2, 8), (1, 7), (0, 6)].map(run).into();
    let tree = Tree { id: KS, hash_seed: 0, clears: vec![], deletes: Arc::default(), levels };
    let total: u64 = tree.segments().map(|s| s.meta.file_len).sum();
    let fifo = Fifo { max_bytes: total - 1, max_age: None };
    let mut busy = Busy::default();
    let job = fifo.pick(&tree, &now(&busy)).unwrap();
    assert_eq!(job.segments().map(|s| s.meta.run.0).collect::<Vec<_>>(), [6]);
    busy.take(&job);
    assert!(fifo.pick(&tree, &now(&busy)).is_none(), "the rest fits");
}
