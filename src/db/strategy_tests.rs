//! Every strategy on small databases, against a model: random operations, jobs that overlap, and
//! another strategy at each reopening. After every edit the order of versions is checked.

use super::event::CompactionReason;
use super::*;
use crate::compaction::{Job, Mood};
use crate::cursor::{Cursor, Seek};
use crate::segment::CursorOptions;
use crate::version::{RunCursor, Segment, Tree};
use crate::vfs::{Clock, Entropy, Env, ManualClock, MemVfs, SeededEntropy};
use crate::{Background, Compaction, Compression, WriteBatch};
use std::collections::BTreeMap;
use std::time::Duration;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

const ALL: [Compaction; 4] = [
    Compaction::Lazy,
    Compaction::Leveled,
    Compaction::Tiered,
    Compaction::Fifo { max_bytes: u64::MAX, max_age: None },
];

fn tree(db: &Db) -> Arc<Tree> {
    Arc::clone(&db.inner().state.load().version.trees[&DEFAULT_ID])
}

/// For every key: its versions, by level and run, have falling sequence numbers.
fn check_order(tree: &Tree) {
    let mut newest: BTreeMap<Vec<u8>, SeqNo> = BTreeMap::new();
    for run in tree.runs() {
        let options = CursorOptions { fill_cache: false, readahead: false };
        let mut cursor = RunCursor::new(run.segments.clone(), options);
        cursor.seek(Seek::First).unwrap();
        while cursor.valid() {
            let seqno = cursor.seqno();
            let above = newest.insert(cursor.key().to_vec(), seqno);
            assert!(above.is_none_or(|above| above > seqno), "an older version is above a newer");
            cursor.next().unwrap();
        }
    }
    for runs in &tree.levels {
        assert!(runs.is_sorted_by(|a, b| a.number() > b.number()));
    }
}

struct Sim {
    rng: SeededEntropy,
    vfs: Arc<MemVfs>,
    clock: Arc<ManualClock>,
    compaction: Compaction,
    runs: usize,
    db: Option<Db>,
    model: Model,
    snapshots: Vec<(Snapshot, Model)>,
    /// Chosen, and not yet done.
    jobs: Vec<Job>,
}

impl Sim {
    fn new(seed: u64, compaction: Compaction) -> Sim {
        let mut sim = Sim {
            rng: SeededEntropy::new(seed),
            vfs: Arc::default(),
            clock: Arc::default(),
            compaction,
            runs: 2 + seed as usize % 3,
            db: None,
            model: Model::new(),
            snapshots: Vec::new(),
            jobs: Vec::new(),
        };
        sim.open();
        sim
    }

    fn below(&self, n: u64) -> u64 {
        self.rng.next_u64() % n
    }

    fn db(&self) -> &Db {
        self.db.as_ref().unwrap()
    }

    fn open(&mut self) {
        let vfs = Arc::clone(&self.vfs) as _;
        let clock = Arc::clone(&self.clock) as _;
        let env = Env { vfs, clock, entropy: Arc::new(SeededEntropy::new(self.below(1 << 40))) };
        let builder = Db::builder("/db")
            .env(env)
            .background(Background::Manual)
            .compaction(self.compaction)
            .level0_runs(self.runs)
            .write_buffer_bytes(64 << 10)
            .segment_bytes(64 << 10)
            .level1_bytes(64 << 10)
            .compression(Compression::None);
        self.db = Some(builder.open().unwrap());
    }

    fn key(&self) -> Vec<u8> {
        format!("{:05}", self.below(500)).into_bytes()
    }

    fn put(&mut self, key: Vec<u8>) {
        let value = vec![self.rng.next_u64() as u8; self.below(900) as usize];
        self.db().put(&key, &value).unwrap();
        self.model.insert(key, value);
    }

    fn finish_jobs(&mut self) {
        while !self.jobs.is_empty() {
            let at = self.below(self.jobs.len() as u64) as usize;
            let job = self.jobs.swap_remove(at);
            self.db().inner().run_claimed(&job, CompactionReason::Due, &|_| {}).unwrap();
            check_order(&tree(self.db()));
        }
    }

    fn check(&self) {
        let all = self.db().get_range::<&[u8]>(..).map(|e| e.unwrap());
        let all: Vec<_> = all.map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        assert!(all.iter().map(|(k, v)| (k, v)).eq(self.model.iter()), "{:?}", self.compaction);
        for key in (0..20).map(|_| self.key()) {
            let got = self.db().get(&key).unwrap();
            assert_eq!(got.as_deref(), self.model.get(&key).map(|v| &v[..]));
        }
        for (snapshot, model) in &self.snapshots {
            let all = snapshot.get_range::<&[u8]>(..).map(|e| e.unwrap());
            assert!(all.map(|(k, v)| (k.to_vec(), v.to_vec())).eq(model.clone()));
        }
    }

    fn write(&mut self) {
        match self.below(10) {
            // A stretch of rising keys.
            0 => {
                let from = self.below(500);
                for n in from..from + self.below(60) {
                    self.put(format!("{n:05}").into_bytes());
                }
            }
            1 => {
                let from = self.below(500);
                let mut batch = WriteBatch::new();
                for n in from..from + self.below(150) {
                    let key = format!("{n:05}").into_bytes();
                    batch.delete(&key);
                    self.model.remove(&key);
                }
                self.db().write(batch).unwrap();
            }
            2..=4 => {
                for _ in 0..self.below(20) {
                    let key = self.key();
                    self.db().delete(&key).unwrap();
                    self.model.remove(&key);
                }
            }
            _ => {
                for _ in 0..self.below(60) {
                    let key = self.key();
                    self.put(key);
                }
            }
        }
    }

    fn step(&mut self) {
        match self.below(100) {
            0..=34 => self.write(),
            35..=54 => {
                self.db().flush().unwrap();
                check_order(&tree(self.db()));
            }
            // Jobs are chosen now and done later, in any order, with flushes between.
            55..=74 if self.jobs.len() < 4 => {
                let mood = if self.below(3) == 0 { Mood::Calm } else { Mood::Busy };
                let job = self.db().inner().claim(mood).map(|(job, _)| job);
                self.jobs.extend(job);
            }
            55..=84 if !self.jobs.is_empty() => {
                let at = self.below(self.jobs.len() as u64) as usize;
                let job = self.jobs.swap_remove(at);
                self.db().inner().run_claimed(&job, CompactionReason::Due, &|_| {}).unwrap();
                check_order(&tree(self.db()));
            }
            85..=88 => {
                self.finish_jobs();
                let mut range = [self.key(), self.key()];
                range.sort();
                self.db().compact_range(&range[0][..]..=&range[1][..]).unwrap();
                check_order(&tree(self.db()));
            }
            89 => {
                self.finish_jobs();
                self.db().compact_range::<&[u8]>(..).unwrap();
                check_order(&tree(self.db()));
            }
            90..=91 if self.snapshots.len() < 3 => {
                self.snapshots.push((self.db().snapshot(), self.model.clone()));
            }
            90..=93 => drop(self.snapshots.pop()),
            94 if self.below(5) == 0 => {
                self.db().clear().unwrap();
                self.model.clear();
            }
            95..=96 => {
                self.finish_jobs();
                self.db().wait_idle().unwrap();
            }
            // So many that they pay for merges.
            98 => {
                for _ in 0..200 {
                    let mut range = self.db().get_range(self.key()..);
                    range.next().transpose().unwrap();
                }
            }
            97 => {
                self.finish_jobs();
                self.snapshots.clear();
                self.db.take().unwrap().close().unwrap();
                self.compaction = ALL[self.below(4) as usize];
                self.runs = 1 + self.below(4) as usize;
                self.open();
                check_order(&tree(self.db()));
            }
            _ => self.check(),
        }
    }
}

#[test]
fn no_strategy_and_no_change_of_strategy_loses_or_revives_anything() {
    for seed in 0..40 {
        let mut sim = Sim::new(seed, ALL[seed as usize % 4]);
        for _ in 0..300 {
            sim.step();
        }
        sim.finish_jobs();
        sim.check();
        sim.snapshots.clear();
        sim.db().compact_range::<&[u8]>(..).unwrap();
        sim.check();
        if !matches!(sim.compaction, Compaction::Fifo { .. }) {
            let tree = tree(sim.db());
            assert!(tree.runs().count() <= 1, "{:?}", sim.compaction);
            assert!(tree.segments().all(|s| s.meta.tombstones == 0));
            let entries: u64 = tree.segments().map(|s| s.meta.entries).sum();
            assert_eq!(entries, sim.model.len() as u64, "nothing superfluous is left");
        }
    }
}

fn open(compaction: Compaction, clock: &Arc<ManualClock>) -> Db {
    let env = Env { clock: Arc::clone(clock) as _, ..Env::in_memory(1) };
    Db::builder("/db")
        .env(env)
        .background(Background::Manual)
        .compaction(compaction)
        .write_buffer_bytes(64 << 10)
        .segment_bytes(64 << 10)
        .level1_bytes(128 << 10)
        .compression(Compression::None)
        .open()
        .unwrap()
}

fn written(db: &Db) -> u64 {
    let stats = db.stats();
    stats.flushed_bytes + stats.compacted_bytes
}

/// Writes `count` times at random to `keys` keys, doing what is due after each flush.
fn overwrite(db: &Db, keys: u64, count: u64) {
    let rng = SeededEntropy::new(5);
    for _ in 0..count {
        db.put((rng.next_u64() % keys).to_be_bytes(), [7; 100]).unwrap();
        while db.inner().flush_oldest().unwrap() || db.inner().compact_one().unwrap() {}
    }
}

#[test]
fn lazy_leveling_writes_little_and_stays_small() {
    let clock = Arc::default();
    let mut amounts = Vec::new();
    for compaction in [Compaction::Lazy, Compaction::Leveled] {
        let db = open(compaction, &clock);
        overwrite(&db, 10_000, 20_000);
        let before = written(&db);
        let mut sizes = Vec::new();
        for _ in 0..20 {
            overwrite(&db, 10_000, 2_000);
            sizes.push(db.stats().segment_bytes());
        }
        amounts.push((written(&db) - before) as f64 / (40_000.0 * 108.0));
        let keyspace = &db.stats().keyspaces[0];
        assert!(keyspace.range_runs <= 2 * 16 + 2, "{}", keyspace.range_runs);
        db.wait_idle().unwrap();
        let (idle, amplified) =
            (db.stats().segment_bytes(), db.stats().keyspaces[0].space_amplification());
        db.compact_range::<&[u8]>(..).unwrap();
        let least = db.stats().segment_bytes();
        sizes.sort_unstable();
        let times = |bytes: u64| bytes as f64 / least as f64;
        assert!(times(sizes[10]) < 1.55, "{compaction:?}: median {:.2}", times(sizes[10]));
        if compaction == Compaction::Lazy {
            assert!(times(idle) < 1.29 && amplified < 1.26, "{} {amplified}", times(idle));
        }
    }
    assert!(amounts[0] < 0.75 * amounts[1], "written for each byte put: {amounts:?}");
}

#[test]
fn sequential_writes_are_written_about_once() {
    let db = open(Compaction::Lazy, &Arc::default());
    for n in 0..40_000u64 {
        db.put(n.to_be_bytes(), [7; 100]).unwrap();
        while db.inner().flush_oldest().unwrap() || db.inner().compact_one().unwrap() {}
    }
    db.flush().unwrap();
    let amplified = written(&db) as f64 / (40_000.0 * 108.0);
    assert!(amplified < 1.35, "{amplified}");
    let segments = db.stats().keyspaces[0].levels[6].segments as u64;
    let average = db.stats().segment_bytes() / segments;
    assert!(average >= 16 << 10, "no crumbs: {average}");
}

#[test]
fn tidying_up_waits_for_a_second_with_few_writes() {
    let clock: Arc<ManualClock> = Arc::default();
    let db = open(Compaction::Lazy, &clock);
    let inner = db.inner();
    for n in 0..8_000u64 {
        db.put(n.to_be_bytes(), [7; 100]).unwrap();
    }
    db.compact_range::<&[u8]>(..).unwrap();
    for n in (0..8_000u64).step_by(3) {
        db.put(n.to_be_bytes(), [8; 100]).unwrap();
    }
    db.flush().unwrap();
    while inner.compact(Mood::Busy).unwrap() {}
    let runs = || tree(&db).runs().count();
    assert!(runs() > 1);
    assert!(!inner.compact_one().unwrap(), "something was written");
    clock.sleep(Duration::from_millis(900));
    assert!(!inner.compact_one().unwrap());
    // Of a write buffer, a sixty-fourth is so little that it does not count; more does.
    db.put("few", [7; 800]).unwrap();
    clock.sleep(Duration::from_millis(200));
    db.put("more", [7; 800]).unwrap();
    assert!(!inner.compact_one().unwrap());
    clock.sleep(Duration::from_millis(900));
    db.put("few again", [7; 800]).unwrap();
    clock.sleep(Duration::from_millis(200));
    assert!(inner.compact_one().unwrap());
    while inner.compact_one().unwrap() {}
    assert!(db.stats().keyspaces[0].space_amplification() <= 1.25);
}

#[test]
fn a_database_that_was_just_opened_is_not_calm() {
    let clock: Arc<ManualClock> = Arc::default();
    clock.sleep(Duration::from_secs(3600));
    let env = Env { clock: Arc::clone(&clock) as _, ..Env::in_memory(1) };
    let open = || Db::builder("/db").env(env.clone()).background(Background::Manual).open();
    let db = open().unwrap();
    for _ in 0..2 {
        db.put("key", "value").unwrap();
        db.flush().unwrap();
    }
    drop(db);
    let db = open().unwrap();
    assert!(!db.inner().compact_one().unwrap(), "writes may be about to come");
    clock.sleep(Duration::from_secs(1));
    assert!(db.inner().compact_one().unwrap());
}

#[test]
fn runs_that_range_reads_look_into_are_merged_while_writes_come_in() {
    let db = open(Compaction::Lazy, &Arc::default());
    let inner = db.inner();
    let fill = |step: usize| {
        for n in (0..8_000u64).step_by(step) {
            db.put(n.to_be_bytes(), [7; 100]).unwrap();
        }
        db.flush().unwrap();
    };
    fill(1);
    db.compact_range::<&[u8]>(..).unwrap();
    fill(40);
    fill(50);
    let rest = || while inner.compact(Mood::Busy).unwrap() {};
    rest();
    let runs = || tree(&db).runs().count();
    assert_eq!(runs(), 3);
    let seeks = || tree(&db).segments().map(|s| s.seeks()).max().unwrap();
    // Point reads and steps do not count, and the bottom costs no one run more.
    for n in 0..2_000u64 {
        db.get(n.to_be_bytes()).unwrap();
    }
    db.get_range::<&[u8]>(..).for_each(|entry| drop(entry.unwrap()));
    assert!(seeks() <= 1);
    let bottom = |segment: &Segment| segment.meta.level == 6;
    for n in 0..8_000u64 {
        db.get_range(n.to_be_bytes()..).next().unwrap().unwrap();
    }
    assert!(tree(&db).segments().all(|s| bottom(s) == (s.seeks() == 0)));
    rest();
    assert_eq!(runs(), 1, "they have paid for it");
}

#[test]
fn fifo_keeps_to_its_cap_and_its_age_and_what_stays_is_the_newest() {
    let clock: Arc<ManualClock> = Arc::default();
    let max_bytes = 400 << 10;
    let max_age = Some(Duration::from_secs(60));
    let db = open(Compaction::Fifo { max_bytes, max_age }, &clock);
    for n in 0..20_000u64 {
        db.put(n.to_be_bytes(), [7; 100]).unwrap();
        while db.step().unwrap() {}
        assert!(db.stats().segment_bytes() <= max_bytes);
    }
    let kept: Vec<_> = db.get_range::<&[u8]>(..).map(|e| e.unwrap().0.to_vec()).collect();
    assert!(kept.len() > 2_000 && kept.len() < 8_000, "{}", kept.len());
    let newest = (20_000 - kept.len() as u64..20_000).map(|n| n.to_be_bytes().to_vec());
    assert!(newest.eq(kept));
    let stats = db.stats();
    assert_eq!((stats.compacted_bytes, stats.moves), (0, 0));
    assert!(stats.drops > 0);
    assert_eq!(db.inner().pressure.load(Ordering::Relaxed), 0, "nothing to wait for");
    db.flush().unwrap();
    db.compact_range::<&[u8]>(..).unwrap();
    assert!(db.stats().segment_bytes() > 0);
    clock.sleep(Duration::from_secs(61));
    while db.step().unwrap() {}
    assert_eq!(db.stats().segment_bytes(), 0);
    assert_eq!(db.first().unwrap(), None);
}

/// As is documented: what is dropped is gone, also where something was merged into it.
#[test]
fn fifo_drops_what_operands_were_merged_into() {
    let clock: Arc<ManualClock> = Arc::default();
    let max_age = Some(Duration::from_secs(60));
    let fifo = Compaction::Fifo { max_bytes: u64::MAX, max_age };
    let db = open(fifo, &clock);
    let options = crate::KeyspaceOptions::new().merge_operator(crate::merge::Append);
    let last = db.keyspace_with("last", &options).unwrap();
    for operand in ["a", "b", "c"] {
        last.merge("k", operand).unwrap();
        db.flush().unwrap();
        clock.sleep(Duration::from_secs(25));
    }
    let value = || last.get("k").unwrap().map(|value| value.to_vec());
    assert_eq!(value().unwrap(), b"abc");
    while db.step().unwrap() {}
    assert_eq!(value().unwrap(), b"bc");
    assert!(db.verify(&mut |_, _| {}).unwrap().is_sound());
    clock.sleep(Duration::from_secs(61));
    while db.step().unwrap() {}
    assert_eq!(value(), None);
}
