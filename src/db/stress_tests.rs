//! Readers beside a writer, flushes, compactions, and a key map whose shards are dropped and rebuilt
//! at random: no read misses what is there, none gives what was overwritten before it began.
//!
//! A key's value is the number of its last write, and two arrays say which number was begun and
//! which acknowledged: what a read gives must lie between the number acknowledged before it began and
//! the one begun when it ended. `ASHLAR_STRESS_GETS` sets how many reads there are.

use crate::vfs::{Entropy, Env, SeededEntropy};
use crate::{Background, Compaction, Compression, Db, WriteBatch};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const KEYS: usize = 4000;
const PAIRS: u64 = 50;

#[derive(Default)]
struct Findings {
    gets: AtomicU64,
    false_misses: AtomicU64,
    stale: AtomicU64,
    torn: AtomicU64,
}

impl Findings {
    fn wrong(&self) -> u64 {
        [&self.false_misses, &self.stale, &self.torn]
            .map(|n| n.load(Ordering::Relaxed))
            .iter()
            .sum()
    }
}

struct Stress {
    db: Db,
    begun: Vec<AtomicU64>,
    acknowledged: Vec<AtomicU64>,
    done: AtomicBool,
    found: Findings,
}

/// Every fourth key is now and then deleted: by each fourth of its writes.
fn is_deletion(key: usize, number: u64) -> bool {
    key.is_multiple_of(4) && number % 4 == 3
}

fn name(key: usize) -> [u8; 8] {
    // Spread, so that neighbours in time are not neighbours in order.
    (key as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes()
}

fn pair(n: u64, half: char) -> String {
    format!("pair {n} {half}")
}

impl Stress {
    fn new(seed: u64) -> Stress {
        let db = Db::builder("/db")
            .env(Env::in_memory(seed))
            .background(Background::Threads(1))
            .compression(Compression::None)
            .compaction(Compaction::Lazy)
            .level0_runs(3)
            .write_buffer_bytes(96 << 10)
            .segment_bytes(64 << 10)
            .open()
            .unwrap();
        let numbers = || (0..KEYS).map(|_| AtomicU64::new(0)).collect();
        let (begun, acknowledged) = (numbers(), numbers());
        let (done, found) = (AtomicBool::new(false), Findings::default());
        Stress { db, begun, acknowledged, done, found }
    }

    fn write(&self, seed: u64) {
        let rng = SeededEntropy::new(seed);
        for round in 1u64.. {
            if self.done.load(Ordering::Relaxed) {
                return;
            }
            let r = rng.next_u64();
            let key = r as usize % KEYS;
            let number = self.begun[key].load(Ordering::Relaxed) + 1;
            self.begun[key].store(number, Ordering::SeqCst);
            if is_deletion(key, number) {
                self.db.delete(name(key)).unwrap();
            } else {
                let mut value = [7; 64];
                value[..8].copy_from_slice(&number.to_le_bytes());
                value[8..16].copy_from_slice(&(key as u64).to_le_bytes());
                self.db.put(name(key), value).unwrap();
            }
            self.acknowledged[key].store(number, Ordering::SeqCst);
            if round.is_multiple_of(16) {
                let n = r >> 32;
                let mut batch = WriteBatch::new();
                for half in ['a', 'b'] {
                    batch.put(pair(n % PAIRS, half), round.to_le_bytes());
                }
                self.db.write(batch).unwrap();
            }
        }
    }

    /// One read, and whether it may be so.
    fn get(&self, key: usize, read: impl Fn(&[u8]) -> crate::Result<Option<crate::Value>>) {
        let least = self.acknowledged[key].load(Ordering::SeqCst);
        let got = read(&name(key)).unwrap();
        let most = self.begun[key].load(Ordering::SeqCst);
        self.judge(key, got.as_deref(), least, most);
    }

    fn judge(&self, key: usize, got: Option<&[u8]>, least: u64, most: u64) {
        self.found.gets.fetch_add(1, Ordering::Relaxed);
        match got {
            None => {
                let may_be_absent = (least..=most).any(|n| n == 0 || is_deletion(key, n));
                self.found.false_misses.fetch_add(u64::from(!may_be_absent), Ordering::Relaxed);
            }
            Some(value) => {
                let number = u64::from_le_bytes(value[..8].try_into().unwrap());
                let whose = u64::from_le_bytes(value[8..16].try_into().unwrap());
                assert_eq!(whose, key as u64, "another key's value");
                let fits = (least..=most).contains(&number) && !is_deletion(key, number);
                self.found.stale.fetch_add(u64::from(!fits), Ordering::Relaxed);
            }
        }
    }

    fn read(&self, seed: u64, gets: u64) {
        let rng = SeededEntropy::new(seed);
        while self.found.gets.load(Ordering::Relaxed) < gets {
            for _ in 0..200 {
                self.get(rng.next_u64() as usize % KEYS, |key| self.db.get(key));
            }
            self.read_pair(rng.next_u64() % PAIRS);
            self.read_at_snapshot(&rng);
        }
    }

    /// The halves of a batch, together or not at all.
    fn read_pair(&self, n: u64) {
        let halves = self.db.multi_get(&[pair(n, 'a'), pair(n, 'b')]).unwrap();
        self.found.torn.fetch_add(u64::from(halves[0] != halves[1]), Ordering::Relaxed);
    }

    /// A snapshot is of the moment when it was made, and stays.
    fn read_at_snapshot(&self, rng: &SeededEntropy) {
        let keys: Vec<usize> = (0..8).map(|_| rng.next_u64() as usize % KEYS).collect();
        let least: Vec<u64> =
            keys.iter().map(|key| self.acknowledged[*key].load(Ordering::SeqCst)).collect();
        let snapshot = self.db.snapshot();
        let most: Vec<u64> =
            keys.iter().map(|key| self.begun[*key].load(Ordering::SeqCst)).collect();
        let first: Vec<_> = keys.iter().map(|key| snapshot.get(name(*key)).unwrap()).collect();
        for (i, key) in keys.iter().enumerate() {
            self.judge(*key, first[i].as_deref(), least[i], most[i]);
        }
        for _ in 0..20 {
            self.get(rng.next_u64() as usize % KEYS, |key| self.db.get(key));
        }
        for (key, first) in keys.iter().zip(first) {
            let again = snapshot.get(name(*key)).unwrap();
            self.found.torn.fetch_add(u64::from(again != first), Ordering::Relaxed);
        }
    }

    /// Drops and rebuilds shards, as a lack of memory or a damaged section would.
    fn disturb(&self, seed: u64) {
        let rng = SeededEntropy::new(seed);
        while !self.done.load(Ordering::Relaxed) {
            self.db.inner().disturb_key_map(rng.next_u64());
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn run(self, gets: u64) -> Findings {
        std::thread::scope(|scope| {
            scope.spawn(|| self.write(1));
            scope.spawn(|| self.disturb(2));
            let readers = [3, 4].map(|seed| {
                let this = &self;
                scope.spawn(move || this.read(seed, gets))
            });
            for reader in readers {
                if let Err(panic) = reader.join() {
                    self.done.store(true, Ordering::Relaxed);
                    std::panic::resume_unwind(panic);
                }
            }
            self.done.store(true, Ordering::Relaxed);
        });
        self.db.check_key_map().unwrap();
        let stats = self.db.stats();
        assert!(stats.flushes > 10 && stats.compactions > 10, "{stats}");
        assert!(stats.reads.blocks > gets / 4, "the map was hardly asked: {stats}");
        self.found
    }
}

#[test]
fn readers_beside_everything_miss_nothing_and_see_nothing_stale() {
    let gets = std::env::var("ASHLAR_STRESS_GETS").ok().and_then(|n| n.parse().ok());
    let found = Stress::new(11).run(gets.unwrap_or(2_000_000));
    let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
    assert_eq!(
        (count(&found.false_misses), count(&found.stale), count(&found.torn)),
        (0, 0, 0),
        "false misses, stale and torn reads in {} gets",
        count(&found.gets)
    );
}

/// The test can fail: with the read state published before the map knows the new segments, it does.
#[test]
fn the_stress_test_finds_a_wrong_order() {
    let stress = Stress::new(12);
    stress.db.inner().publish_before_map.store(true, Ordering::Relaxed);
    let found = stress.run(1_000_000);
    assert!(found.wrong() > 0, "a memtable left before the map knew its segment: nobody saw it");
}
