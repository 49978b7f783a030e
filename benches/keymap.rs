//! The key map: blocks read and time taken by point reads over many overlapping runs, with the map
//! and without; its memory; disk after a full compaction; the first get after opening; lookups
//! after churn.
//!
//! `cargo bench --bench keymap -- [KEYS] [points|churn]`: 20,000,000 keys of 16 + 100 bytes in eight
//! runs, then a quarter as many for the churn. Takes about 8 GiB of memory, so that every block is
//! cached, and 6 GiB of disk.

mod common;

use ashlardb::{Compaction, Compression, Db, ReadStats};
use common::{key, shuffle};
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

const RUNS: u64 = 8;
const GIB: usize = 1 << 30;
const ROUNDS: usize = 5;

fn value(n: u64, round: u64) -> [u8; 100] {
    let mut value = [b'v'; 100];
    value[..8].copy_from_slice(&n.to_be_bytes());
    value[8..16].copy_from_slice(&round.to_be_bytes());
    value
}

/// A store whose runs nobody merges, read by the map or by filter and index.
fn open(dir: &Path, keys: u64, map: bool) -> Db {
    Db::builder(dir)
        .compression(Compression::None)
        .compaction(Compaction::Tiered)
        .level0_runs(64)
        .bloom_bits_per_key(10)
        .cache_bytes(6 * GIB)
        .key_map_bytes(if map { GIB as u64 } else { 0 })
        .hash_runs(map)
        .write_buffer_bytes((keys as usize / 1000 * 400_000).clamp(1 << 20, 4 * GIB))
        .open()
        .expect("open")
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The median of several rounds, in nanoseconds a get.
fn time_gets(db: &Db, count: u64, pick: impl Fn(u64) -> u64, present: bool) -> f64 {
    let round = |round: usize| {
        let start = Instant::now();
        for i in 0..count {
            let n = pick(shuffle(i + count * round as u64));
            let found = black_box(db.get(key(n)).expect("get"));
            // Whoever gets a value looks at it.
            let right = found.as_ref().is_some_and(|value| value[..8] == n.to_be_bytes());
            assert!(right == present && found.is_some() == present, "key {n}");
        }
        start.elapsed().as_secs_f64() * 1e9 / count as f64
    };
    median((0..ROUNDS).map(round).collect())
}

fn points(keys: u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("db");
    let db = open(&path, keys, true);
    let start = Instant::now();
    for run in 0..RUNS {
        // Every run holds keys from all over, so that all runs overlap.
        for n in (run..keys).step_by(RUNS as usize) {
            db.put(key(n), value(n, 0)).expect("put");
        }
        db.flush().expect("flush");
    }
    db.wait_idle().expect("wait_idle");
    println!("load          {keys} keys in {:.1} s", start.elapsed().as_secs_f64());
    let stats = db.stats();
    let runs: usize = stats.keyspaces.iter().flat_map(|k| &k.levels).map(|l| l.runs).sum();
    println!("runs          {runs}");
    assert!(runs >= 7, "the runs must not be merged");
    drop(db);

    let mut figures = Vec::new();
    for map in [true, false] {
        let start = Instant::now();
        let db = open(&path, keys, map);
        let opened = start.elapsed();
        let first = db.get(key(keys / 2)).expect("get").expect("a key that was put");
        let ready = start.elapsed();
        assert_eq!(first, value(keys / 2, 0));
        println!("map {map}: open {opened:.1?}, first get after {ready:.1?}");
        if map {
            let (mut during, mut i) = (0u64, 0);
            while db.stats().key_map.resident_shards < db.stats().key_map.shards {
                for _ in 0..1000 {
                    let n = shuffle(i) % (2 * keys);
                    let found = db.get(key(n)).expect("get");
                    assert_eq!(found.is_some(), n < keys, "while the map fills, key {n}");
                    assert!(found.is_none_or(|found| found == value(n, 0)));
                    (during, i) = (during + 1, i + 1);
                }
            }
            println!(
                "map filled after {:.2?}; {during} gets meanwhile, all right",
                start.elapsed()
            );
        }
        for n in 0..keys {
            assert!(db.get(key(n)).expect("get").is_some());
        }
        let count = 2_000_000.min(keys);
        let before = db.stats().reads;
        let hit = time_gets(&db, count, |r| r % keys, true);
        let hits = db.stats().reads.since(&before);
        let before = db.stats().reads;
        let miss = time_gets(&db, count, |r| keys + r % keys, false);
        let misses = db.stats().reads.since(&before);
        let a_get = |n: u64, of: &ReadStats| n as f64 / of.gets as f64;
        println!(
            "map {map}: hit {hit:.0} ns, {:.5} blocks ({:.5} cached, {:.5} wasted), {:.4} candidates",
            a_get(hits.blocks, &hits),
            a_get(hits.cached_blocks, &hits),
            a_get(hits.wasted_blocks, &hits),
            a_get(hits.candidates, &hits),
        );
        println!(
            "map {map}: miss {miss:.0} ns, {:.6} blocks, {:.6} candidates",
            a_get(misses.blocks, &misses),
            a_get(misses.candidates, &misses)
        );
        figures.push((hit, miss));
        if map {
            let batch = time_multi_gets(&db, count, keys);
            println!("map {map}: multi_get of 64, {batch:.0} ns a key");
            let m = db.stats().key_map;
            println!(
                "map: {} entries, {} bytes, {:.3} bytes an entry, load {:.3}, {} displaced",
                m.entries,
                m.bytes,
                m.bytes_per_entry(),
                m.load,
                m.displaced
            );
        }
    }
    println!(
        "with the map, hits take 1/{:.2}, misses 1/{:.2}",
        figures[1].0 / figures[0].0,
        figures[1].1 / figures[0].1
    );

    let db = Db::builder(&path).compression(Compression::None).open().expect("open");
    let start = Instant::now();
    db.compact_range::<&[u8]>(..).expect("compact");
    let disk = db.stats().segment_bytes();
    println!(
        "compacted     in {:.1} s, disk {disk} bytes, {:.4} times the raw bytes",
        start.elapsed().as_secs_f64(),
        disk as f64 / (keys * 116) as f64
    );
}

fn time_multi_gets(db: &Db, count: u64, keys: u64) -> f64 {
    let round = |round: u64| {
        let start = Instant::now();
        for i in (0..count).step_by(64) {
            let batch: Vec<_> =
                (i..i + 64).map(|i| key(shuffle(i + count * round) % keys)).collect();
            assert!(db.multi_get(&batch).expect("multi_get").iter().all(Option::is_some));
        }
        start.elapsed().as_secs_f64() * 1e9 / count as f64
    };
    median((0..ROUNDS as u64).map(round).collect())
}

fn churn(keys: u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let db = Db::builder(dir.path().join("db"))
        .compression(Compression::None)
        .cache_bytes(2 * GIB)
        .open()
        .expect("open");
    for n in 0..keys {
        db.put(key(n), value(n, 0)).expect("put");
    }
    let settle = || {
        db.flush().expect("flush");
        db.wait_idle().expect("wait_idle");
        db.fill_key_map().expect("fill");
    };
    settle();
    let count = 2_000_000.min(keys);
    // An absent key costs a lookup in the map and nothing else.
    let absent = |r: u64| (1 << 40) + r % keys;
    let fresh = time_gets(&db, count, absent, false);
    let start = Instant::now();
    for i in 0..4 * keys {
        let r = shuffle(i + (1 << 50));
        let n = r % keys;
        if r >> 61 == 0 {
            db.delete(key(n)).expect("delete");
        } else {
            db.put(key(n), value(n, i)).expect("put");
        }
    }
    println!("churn         {} operations in {:.1} s", 4 * keys, start.elapsed().as_secs_f64());
    let busy = time_gets(&db, count, absent, false);
    settle();
    let after = time_gets(&db, count, absent, false);
    let m = db.stats().key_map;
    println!(
        "lookup        fresh {fresh:.0} ns, right after the churn {busy:.0} ns, settled {after:.0} ns: {:.3} times",
        after / fresh
    );
    println!(
        "map: {} entries, {:.3} bytes an entry, load {:.3}, {} displaced, {} rebuilds",
        m.entries,
        m.bytes_per_entry(),
        m.load,
        m.displaced,
        m.rebuilds
    );
    print!("{}", db.stats());
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--test") {
        return;
    }
    let keys = arguments.iter().find_map(|a| a.parse().ok()).unwrap_or(20_000_000u64);
    let asked = |what: &str| arguments.iter().any(|argument| argument == what);
    if !asked("churn") {
        points(keys);
    }
    if !asked("points") {
        churn(keys / 4);
    }
}
