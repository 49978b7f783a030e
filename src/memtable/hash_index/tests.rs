//! The hash index against a list of what was put, and beside readers.

use super::*;
use crate::sync::atomic::AtomicBool;
use crate::vfs::{Entropy, SeededEntropy};

const ENTRIES: u64 = if cfg!(miri) { 1500 } else { 200_000 };

/// The entry of a number, and back.
fn at(n: u64) -> Ref {
    Ref::from_bits(n + 1).unwrap()
}

fn replace(index: &HashIndex, hash: u64, old: Option<Ref>, new: Ref) {
    let is_old = |at| Some(at) == old;
    index.put(hash, is_old, |found| {
        assert_eq!(found, old);
        new
    });
}

fn find(index: &HashIndex, hash: u64, n: u64) -> Option<Ref> {
    index.find(hash, |found| (found == at(n)).then_some(found))
}

#[test]
fn what_was_put_is_found_through_every_growth_and_nothing_else() {
    let rng = SeededEntropy::new(1);
    let index = HashIndex::default();
    let empty = index.allocated_bytes();
    let hashes: Vec<u64> = (0..ENTRIES).map(|_| rng.next_u64()).collect();
    for (n, hash) in hashes.iter().enumerate() {
        assert_eq!(find(&index, *hash, n as u64), None);
        replace(&index, *hash, None, at(n as u64));
        assert_eq!(find(&index, *hash, n as u64), Some(at(n as u64)));
    }
    for (n, hash) in hashes.iter().enumerate() {
        assert_eq!(find(&index, *hash, n as u64), Some(at(n as u64)));
    }
    let offered = std::cell::Cell::new(0);
    for _ in 0..ENTRIES {
        index.find(rng.next_u64(), |_| {
            offered.set(offered.get() + 1);
            None::<()>
        });
    }
    // Tags of 24 bits and shards of 6 rarely agree by chance.
    assert!(offered.get() <= ENTRIES / 500, "{offered:?} strangers looked at");
    let slots: usize = index.shards.iter().map(|s| s.load().slots.len()).sum();
    assert!(slots * 7 >= ENTRIES as usize * 10 && slots <= ENTRIES as usize * 4, "{slots} slots");
    let bytes = index.shards.iter().map(|s| s.load().bytes()).sum::<usize>() + 64 * 8;
    assert_eq!(index.allocated_bytes(), bytes);
    assert!(empty < 16 << 10, "{empty} bytes for nothing");
}

#[test]
fn hashes_that_agree_are_told_apart_by_the_entry() {
    // All at the very end of a shard: probes go round.
    let hash = u64::MAX;
    let index = HashIndex::default();
    for n in 0..200 {
        replace(&index, hash, None, at(n));
    }
    replace(&index, hash, Some(at(7)), at(1000));
    assert_eq!(find(&index, hash, 7), None);
    assert_eq!(find(&index, hash, 1000), Some(at(1000)));
    for n in (0..200).filter(|n| *n != 7) {
        assert_eq!(find(&index, hash, n), Some(at(n)));
    }
    assert_eq!(index.find(0, Some), None);
}

#[test]
fn a_replaced_entry_takes_no_further_slot() {
    let index = HashIndex::default();
    let before = index.allocated_bytes();
    replace(&index, 9, None, at(0));
    for n in 1..1000 {
        replace(&index, 9, Some(at(n - 1)), at(n));
    }
    assert_eq!(index.find(9, Some), Some(at(999)));
    assert_eq!(index.allocated_bytes(), before);
}

#[test]
fn readers_beside_a_growing_index_miss_nothing() {
    // A growth is short, and most of a table's life is not growth: many young tables, and keys of one
    // shard only, so that every reader is in the table that grows.
    let rounds = if cfg!(miri) { 2 } else { 60 };
    let entries = if cfg!(miri) { 400 } else { 30_000 };
    let hash = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> SHARD_BITS;
    for round in 0..rounds {
        let index = HashIndex::default();
        let put = AtomicU64::new(0);
        let done = AtomicBool::new(false);
        let start = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for reader in 0..2 {
                let (index, put, done, start) = (&index, &put, &done, &start);
                scope.spawn(move || {
                    let rng = SeededEntropy::new(2 * round + reader);
                    start.wait();
                    while !done.load(Ordering::Relaxed) {
                        let there = put.load(Ordering::Acquire);
                        for _ in 0..if there == 0 { 0 } else { 8 } {
                            let n = rng.next_u64() % there;
                            assert_eq!(find(index, hash(n), n), Some(at(n)), "of {there}");
                        }
                        // The newest: a growth may have just made room for it.
                        if let Some(n) = there.checked_sub(1) {
                            assert_eq!(find(index, hash(n), n), Some(at(n)));
                        }
                    }
                });
            }
            start.wait();
            for n in 0..entries {
                replace(&index, hash(n), None, at(n));
                put.store(n + 1, Ordering::Release);
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
