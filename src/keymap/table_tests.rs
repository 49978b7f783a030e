//! The bucket table against the oracle, its counters, its spill list, and its shape under churn.

use super::bucket::{Bucket, SLOTS, STICKY};
use super::fake::Rng;
use super::fill::check_table;
use super::oracle::Oracle;
use super::table::{Buckets, HOP_CAP, MAX_WIDTH, MIN_WIDTH, Table};

/// What both tables must hold.
struct Pair {
    table: Buckets,
    oracle: Oracle,
    entries: Vec<(u64, u32)>,
}

impl Pair {
    fn new(room: usize, top_vbn: u32, bits: u32) -> Pair {
        let table = Buckets::with_slots(room * 5 / 4, top_vbn, bits);
        Pair { table, oracle: Oracle::with_slots(room * 5 / 4, top_vbn, bits), entries: Vec::new() }
    }

    fn insert(&mut self, h40: u64, vbn: u32) {
        self.table.insert(h40, vbn);
        self.oracle.insert(h40, vbn);
        self.entries.push((h40, vbn));
    }

    fn relocate(&mut self, at: usize, new: u32) {
        let (h40, old) = self.entries[at];
        assert!(self.table.relocate(h40, old, new) && self.oracle.relocate(h40, old, new));
        self.entries[at].1 = new;
    }

    fn remove(&mut self, at: usize) {
        let (h40, vbn) = self.entries.swap_remove(at);
        assert!(self.table.remove(h40, vbn) && self.oracle.remove(h40, vbn));
    }

    /// Asks both tables for an entry that may not be there.
    fn remove_stranger(&mut self, h40: u64, vbn: u32, exact: bool) {
        if self.oracle.remove(h40, vbn) {
            assert!(self.table.remove(h40, vbn));
            let at = self.entries.iter().position(|entry| *entry == (h40, vbn)).unwrap();
            self.entries.swap_remove(at);
        } else if exact {
            assert!(!self.table.remove(h40, vbn) && !self.table.relocate(h40, vbn, 1));
        }
    }

    fn check(&mut self) {
        self.entries.sort_unstable();
        check_table(&self.oracle, &self.entries).unwrap();
        check_table(&self.table, &self.entries).unwrap();
    }
}

/// Random operations at a load that goes up and down.
fn run(seed: u64, slots: usize, load: f64, bits: u32, vbns: u32, hashes: u64) -> Pair {
    let mut rng = Rng(seed);
    let room = slots * 80 / 100;
    let mut pair = Pair::new(room, vbns.min(4000), bits);
    let most = (pair.table.shape().slots as f64 * load) as usize;
    let hash = |rng: &mut Rng| {
        let n = rng.below(hashes);
        (7 << 32) | (super::fake::mix(n) >> 32)
    };
    for step in 0..slots * 12 {
        let vbn = 1 + rng.below(u64::from(vbns)) as u32;
        let len = pair.entries.len();
        let growing = (step / (2 * slots)).is_multiple_of(2);
        match rng.below(10) {
            0..4 if len < most && (growing || len == 0) => {
                let h40 = hash(&mut rng);
                pair.insert(h40, vbn);
            }
            0..4 if len > most / 2 && !growing => pair.remove(rng.below(len as u64) as usize),
            4..8 if len > 0 => pair.relocate(rng.below(len as u64) as usize, vbn),
            8 if len > 0 => {
                pair.remove(rng.below(len as u64) as usize);
                let h40 = hash(&mut rng);
                pair.insert(h40, vbn);
            }
            9 => {
                let h40 = hash(&mut rng);
                pair.remove_stranger(h40, vbn, bits == 32 && hashes > 1 << 30);
            }
            _ => {}
        }
        if step % (slots * 2) == slots {
            pair.check();
        }
    }
    pair.check();
    pair
}

#[test]
fn the_table_agrees_with_the_oracle() {
    for seed in 0..4 {
        for load in [0.8, 0.86, 0.9] {
            run(seed, 3000, load, 32, 1 << 20, u64::MAX);
        }
        run(seed, 20, 0.9, 32, 1000, u64::MAX);
        run(seed, 1, 0.9, 32, 1000, u64::MAX);
        run(seed, 300, 0.9, 32, MAX_VBN, u64::MAX);
    }
}

const MAX_VBN: u32 = (1 << MAX_WIDTH) - 1;

#[test]
fn the_table_agrees_with_the_oracle_when_everything_collides() {
    for seed in 0..6 {
        // Two bits of fingerprint and few pages: many entries cannot be told apart, on crossing
        // paths, in and out of the spill list.
        run(seed, 1500, 0.9, 2, 3, u64::MAX);
        run(seed, 600, 0.95, 2, 40, 100);
        run(seed, 200, 0.95, 0, 2, 5000);
        run(seed, 15, 0.95, 2, 3, 50);
        run(seed, 60, 2.5, 2, 3, 50);
        run(seed, 300, 1.1, 1, 1, u64::MAX);
    }
}

#[test]
fn a_table_taken_empty_has_forgotten_who_passed() {
    for (seed, bits) in [(1, 32), (2, 32), (3, 4)] {
        let mut pair = run(seed, 5000, 0.86, bits, 1 << 16, u64::MAX);
        while !pair.entries.is_empty() {
            pair.remove(0);
        }
        let (sticky, counted) = pair.table.counted();
        // Paths may go full circle in theory only: the table is far longer than any.
        assert_eq!(counted, 0, "of {sticky} that stick");
        assert_eq!(pair.table.shape().displaced, 0);
        assert_eq!(pair.table.shape().entries, 0);
        pair.check();
    }
}

#[test]
fn a_bucket_finds_its_tags_exactly() {
    let mut rng = Rng(5);
    for _ in 0..2000 {
        let mut bucket = Bucket::EMPTY;
        let tags: Vec<u32> = (0..SLOTS).map(|_| rng.below(16) as u32 & rng.next() as u32).collect();
        for (slot, tag) in tags.iter().enumerate() {
            bucket.put(slot, *tag, slot as u32 + 1);
        }
        // Count and flags must not disturb.
        for _ in 0..rng.below(20) {
            bucket.pass(rng.below(16) as u32);
        }
        for tag in 0..16 {
            let expected: Vec<_> = (0..SLOTS).filter(|slot| tags[*slot] == tag).collect();
            assert_eq!(bucket.tagged(tag).collect::<Vec<_>>(), expected);
        }
        assert_eq!(bucket.free(), None);
        let gone = rng.below(SLOTS as u64) as usize;
        bucket.put(gone, 0, 0);
        assert_eq!(bucket.free(), Some(gone));
        assert!((0..SLOTS).all(|slot| slot == gone || bucket.entry(slot) == slot as u32 + 1));
    }
}

#[test]
fn the_count_saturates_and_then_stays() {
    let mut bucket = Bucket::EMPTY;
    for _ in 0..14 {
        bucket.pass(6);
    }
    bucket.pass(1);
    assert_eq!(bucket.count(), STICKY);
    assert!(bucket.passed(2) && bucket.passed(5) && !bucket.passed(0) && !bucket.passed(3));
    for _ in 0..100 {
        bucket.unpass();
    }
    assert_eq!(bucket.count(), STICKY);
    assert!(bucket.passed(6));

    let mut bucket = Bucket::EMPTY;
    for tag in 0..14 {
        bucket.pass(tag);
    }
    for left in (1..14).rev() {
        bucket.unpass();
        assert_eq!(bucket.count(), left);
        assert!(bucket.passed(0) && bucket.passed(3));
    }
    bucket.unpass();
    assert!((0..16).all(|tag| !bucket.passed(tag)));
}

#[test]
fn a_table_widens_in_place() {
    let mut rng = Rng(9);
    let mut pair = Pair::new(2000, 100, 32);
    assert_eq!(pair.table.width(), MIN_WIDTH);
    for _ in 0..1500 {
        pair.insert((3 << 32) | (rng.next() >> 32), 1 + rng.below(4000) as u32);
    }
    for width in MIN_WIDTH + 1..=MAX_WIDTH {
        let vbn = (1 << width) - 1;
        if width % 2 == 0 {
            pair.relocate(rng.below(1500) as usize, vbn);
        } else {
            pair.insert((3 << 32) | (rng.next() >> 32), vbn);
        }
        assert_eq!(pair.table.width(), width);
        pair.check();
    }
    // A removal does not widen, and finds nothing.
    let mut narrow = Buckets::with_slots(125, 1, 32);
    narrow.insert(5, 1);
    assert!(!narrow.remove(5, 1 << 20) && !narrow.relocate(5, 1 << 20, 2));
    assert!(narrow.remove(5, 1));
}

#[test]
fn entries_of_one_hash_spill_and_come_back() {
    let room = 14 * 200;
    let mut pair = Pair::new(room, 1 << 16, 32);
    let capped = SLOTS * HOP_CAP as usize;
    let hash = (9 << 32) | 0x1234_5678;
    for i in 0..capped as u32 + 100 {
        pair.insert(hash, i + 1);
    }
    assert_eq!(pair.table.shape().spilled, 100);
    pair.insert(hash + (1 << 26), 7); // Another home.
    pair.check();
    assert!(pair.table.strained());
    pair.table.settle();
    assert!(!pair.table.strained(), "a rebuild would not help");

    // Those in the buckets go; the spilled ones must stay in reach, and move in when relocated.
    for vbn in 1..=capped as u32 / 2 {
        let at = pair.entries.iter().position(|entry| *entry == (hash, vbn)).unwrap();
        pair.remove(at);
    }
    assert_eq!(pair.table.shape().spilled, 100);
    pair.check();
    for i in 0..100 {
        let spilled = (hash, capped as u32 + 1 + i);
        let at = pair.entries.iter().position(|entry| *entry == spilled).unwrap();
        pair.relocate(at, 50_000 + i);
    }
    assert_eq!(pair.table.shape().spilled, 0);
    pair.check();
    let (sticky, _) = pair.table.counted();
    assert!(sticky >= HOP_CAP as usize - 8, "{sticky}");
}

/// Fills a table and gives back its entries.
fn full(rng: &mut Rng, entries: usize) -> (Buckets, Vec<(u64, u32)>) {
    let mut all: Vec<_> =
        (0..entries).map(|_| (rng.next() >> 32, 1 + rng.below(1 << 22) as u32)).collect();
    all.sort_unstable();
    let mut table = Buckets::with_slots(entries * 5 / 4, 1 << 22, 32);
    for (h40, vbn) in &all {
        table.insert(*h40, *vbn);
    }
    table.settle();
    (table, all)
}

#[test]
fn a_new_table_is_compact_and_little_displaced() {
    let mut rng = Rng(1);
    for entries in [2000, 20_000, 80_000] {
        let (table, all) = full(&mut rng, entries);
        let shape = table.shape();
        assert!(shape.bytes() as f64 / entries as f64 <= 5.8, "{shape:?}");
        assert!(shape.displaced * 100 <= entries * 9, "{shape:?}");
        assert_eq!(shape.spilled, 0);
        assert!(!table.strained() && table.suits(entries));
        assert!(!table.suits(entries * 109 / 100) && !table.suits(entries * 86 / 100));
        check_table(&table, &all).unwrap();
    }
}

/// Four times its entries of random changes, rebuilt when strained. Gives back rebuilds, and the
/// largest displaced share.
fn churn(rng: &mut Rng, relocations: u64) -> (usize, f64) {
    let entries = 40_000;
    let (mut table, mut all) = full(rng, entries);
    let (mut rebuilds, mut worst) = (0, 0.0_f64);
    for step in 0..entries * 4 {
        let at = rng.below(all.len() as u64) as usize;
        let vbn = 1 + rng.below(1 << 22) as u32;
        let (h40, old) = all[at];
        if rng.below(100) < relocations {
            assert!(table.relocate(h40, old, vbn));
            all[at].1 = vbn;
        } else {
            assert!(table.remove(h40, old));
            all[at] = (rng.next() >> 32, vbn);
            table.insert(all[at].0, vbn);
        }
        let shape = table.shape();
        worst = worst.max(shape.displaced as f64 / shape.entries as f64);
        // An edit looks when it is through with a shard.
        if step % 500 == 499 && table.strained() {
            rebuilds += 1;
            all.sort_unstable();
            table = Buckets::with_slots(all.len() * 5 / 4, 1 << 22, 32);
            for (h40, vbn) in &all {
                table.insert(*h40, *vbn);
            }
            table.settle();
        }
    }
    all.sort_unstable();
    check_table(&table, &all).unwrap();
    (rebuilds, worst)
}

#[test]
fn churn_does_not_displace_without_bound() {
    let mut rng = Rng(77);
    // Relocations repair more than they harm: they alone never strain a table.
    let (rebuilds, worst) = churn(&mut rng, 100);
    assert!(rebuilds == 0 && worst < 0.10, "{rebuilds} {worst}");
    let (rebuilds, worst) = churn(&mut rng, 50);
    assert!(rebuilds <= 8 && worst < 0.14, "{rebuilds} {worst}");
    let (rebuilds, worst) = churn(&mut rng, 0);
    assert!(rebuilds <= 40 && worst < 0.14, "{rebuilds} {worst}");
}
