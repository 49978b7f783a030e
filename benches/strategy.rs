//! What compaction strategies cost: loads keys in random order, overwrites them uniformly, and
//! reports speed, bytes written and disk for each strategy in a fresh directory.
//!
//! `cargo bench --bench strategy -- [KEYS] [OVERWRITES] [STRATEGY...]`: 10,000,000 keys of 16 + 100
//! bytes, 50,000,000 overwrites, `lazy` and `leveled` (also: `tiered`). Write buffer, segments and
//! level 1 shrink in proportion below 10,000,000 keys.

mod common;

use ashlardb::{Compaction, Compression, Db, Stats};
use common::{key, shuffle};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MIB: f64 = 1024.0 * 1024.0;
const FULL_KEYS: u64 = 10_000_000;
/// Key and value.
const PUT_BYTES: u64 = 16 + 100;
const SAMPLE_EVERY: Duration = Duration::from_millis(250);

fn value(n: u64) -> [u8; 100] {
    let mut value = [b'v'; 100];
    for (i, chunk) in value.chunks_mut(8).enumerate() {
        let word = shuffle(n ^ ((i as u64 + 1) << 40)).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    value
}

fn open(path: &std::path::Path, compaction: Compaction, keys: u64) -> Db {
    let share = (keys as f64 / FULL_KEYS as f64).min(1.0);
    let scaled = |mib: u64| (((mib << 20) as f64 * share) as u64).max(128 << 10);
    Db::builder(path)
        .compaction(compaction)
        .compression(Compression::None)
        .write_buffer_bytes(scaled(64) as usize)
        .segment_bytes(scaled(64))
        .level1_bytes(scaled(256))
        .open()
        .expect("open")
}

fn rewritten(stats: &Stats) -> u64 {
    stats.flushed_bytes + stats.compacted_bytes
}

fn median(samples: &mut [u64]) -> u64 {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or(0)
}

/// Puts `count` times and samples the size of the segments meanwhile.
fn phase(db: &Db, name: &str, count: u64, put: impl Fn(u64)) -> Vec<u64> {
    let before = db.stats();
    let done = AtomicBool::new(false);
    let start = Instant::now();
    let samples = std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut samples = Vec::new();
            while !done.load(Ordering::Acquire) {
                samples.push(db.stats().segment_bytes());
                std::thread::sleep(SAMPLE_EVERY);
            }
            samples
        });
        (0..count).for_each(put);
        done.store(true, Ordering::Release);
        sampler.join().expect("the sampler")
    });
    let seconds = start.elapsed().as_secs_f64();
    let stats = db.stats();
    let written = rewritten(&stats) - rewritten(&before);
    println!(
        "  {name:<10} {:>9.0} puts/s  {:>9.1} MiB written, {:.2} for each byte put; stalled {:.1?}",
        count as f64 / seconds,
        written as f64 / MIB,
        written as f64 / (count * PUT_BYTES) as f64,
        stats.stalled.saturating_sub(before.stalled),
    );
    samples
}

fn measure(name: &str, compaction: Compaction, keys: u64, overwrites: u64) {
    println!("{name}: {keys} keys, {overwrites} overwrites");
    let dir = tempfile::tempdir().expect("a directory");
    let db = open(&dir.path().join("db"), compaction, keys);
    phase(&db, "load", keys, |n| db.put(key(n), value(n)).expect("put"));
    let start = Instant::now();
    let mut disk = phase(&db, "overwrite", overwrites, |n| {
        let k = shuffle(n ^ 0x5555_5555_0000_0000) % keys;
        db.put(key(k), value(n)).expect("put");
    });
    let runs: usize = db.stats().keyspaces.iter().map(|k| k.range_runs).sum();
    let (max, median) = (disk.iter().copied().max().unwrap_or(0), median(&mut disk));
    let before = rewritten(&db.stats());
    db.flush().expect("flush");
    let backlog = Instant::now();
    db.wait_idle().expect("wait_idle");
    let total = start.elapsed().as_secs_f64();
    let idle = db.stats();
    println!(
        "  at rest    {:>9.1} s later, {:.1} MiB written for it; {:.0} puts/s in all",
        backlog.elapsed().as_secs_f64(),
        (rewritten(&idle) - before) as f64 / MIB,
        overwrites as f64 / total,
    );
    if std::env::var_os("STATS").is_some() {
        print!("{idle}");
    }
    db.compact_range::<&[u8]>(..).expect("compact");
    let least = db.stats().segment_bytes();
    let times = |bytes: u64| bytes as f64 / least as f64;
    println!(
        "  disk       median {:.1} MiB ({:.2}), max {:.1} MiB ({:.2}), at rest {:.1} MiB ({:.2}), compacted {:.1} MiB; {runs} runs",
        median as f64 / MIB,
        times(median),
        max as f64 / MIB,
        times(max),
        idle.segment_bytes() as f64 / MIB,
        times(idle.segment_bytes()),
        least as f64 / MIB,
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--test") {
        return;
    }
    let mut numbers = arguments.iter().filter_map(|a| a.parse::<u64>().ok());
    let keys = numbers.next().unwrap_or(FULL_KEYS).max(1);
    let overwrites = numbers.next().unwrap_or(keys * 5);
    let all = [
        ("lazy", Compaction::Lazy, true),
        ("leveled", Compaction::Leveled, true),
        ("tiered", Compaction::Tiered, false),
    ];
    let named = |name: &str| arguments.iter().any(|argument| argument == name);
    let any_named = all.iter().any(|(name, ..)| named(name));
    for (name, compaction, usual) in all {
        if named(name) || usual && !any_named {
            measure(name, compaction, keys, overwrites);
        }
    }
}
