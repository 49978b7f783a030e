//! Loads many keys in random order, reads them all back, compacts, and reports time, peak memory
//! and disk. `cargo bench --bench load -- [KEYS] [none|lz4]`, 10,000,000 keys and none by default.

mod common;

use ashlardb::{Compression, Db};
use common::{key, shuffle};
use std::time::Instant;

const MIB: f64 = 1024.0 * 1024.0;
const CACHE: usize = 64 << 20;
const BUFFER: usize = 64 << 20;
const BUFFERS: usize = 3;

/// Fifty random bytes and fifty that compress to nearly nothing.
fn value(n: u64) -> [u8; 100] {
    let mut value = [b'v'; 100];
    for (i, chunk) in value[..50].chunks_mut(8).enumerate() {
        let word = shuffle(n ^ ((i as u64 + 1) << 40)).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    value
}

/// The process's peak resident memory in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--test") {
        return;
    }
    let keys = arguments.iter().find_map(|a| a.parse().ok()).unwrap_or(10_000_000u64);
    let lz4 = arguments.iter().any(|argument| argument == "lz4");
    let compression = if lz4 { Compression::Lz4 } else { Compression::None };
    let dir = tempfile::tempdir().expect("a directory");
    let db = Db::builder(dir.path().join("db"))
        .compression(compression)
        .cache_bytes(CACHE)
        .write_buffer_bytes(BUFFER)
        .write_buffers(BUFFERS)
        .open()
        .expect("open");

    let timed = |what: &str, count: u64, start: Instant| {
        let seconds = start.elapsed().as_secs_f64();
        println!("{what:<10} {seconds:8.1} s {:10.0} a second", count as f64 / seconds);
    };
    let start = Instant::now();
    for n in 0..keys {
        db.put(key(n), value(n)).expect("put");
    }
    timed("load", keys, start);
    let start = Instant::now();
    for n in 0..keys {
        let n = shuffle(n) % keys;
        let found = db.get(key(n)).expect("get").expect("a key that was put");
        assert_eq!(found, value(n), "key {n}");
    }
    timed("read back", keys, start);
    let start = Instant::now();
    db.flush().expect("flush");
    db.wait_idle().expect("wait_idle");
    db.compact_range::<&[u8]>(..).expect("compact");
    timed("compact", keys, start);
    let start = Instant::now();
    let mut scanned = 0;
    for entry in db.get_range::<&[u8]>(..) {
        let (key, value) = entry.expect("an entry");
        assert_eq!((key.len(), value.len()), (16, 100));
        scanned += 1;
    }
    assert_eq!(scanned, keys);
    timed("scan", keys, start);

    let stats = db.stats();
    print!("{stats}");
    let raw = keys * 116;
    let disk = stats.segment_bytes();
    println!("disk       {disk} bytes, {:.4} times the raw bytes", disk as f64 / raw as f64);
    if let Some(peak) = peak_memory() {
        let budget = (BUFFERS * BUFFER + CACHE) as u64;
        println!(
            "peak       {:.1} MiB; write buffers and cache {:.1} MiB",
            peak as f64 / MIB,
            budget as f64 / MIB
        );
    }
}
