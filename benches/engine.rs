//! The field's workloads, one operation each: 16-byte keys, 100-byte values, default options but
//! for compression, which is off. `cargo bench --bench engine`; a name as argument picks some.

use ashlardb::{
    Compression, Db, Durability, SegmentOptions, SegmentReader, SegmentWriter, WriteBatch,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How many keys the read workloads have.
const KEYS: u64 = 1_000_000;

fn open(dir: &std::path::Path) -> Db {
    Db::builder(dir.join("db"))
        .compression(Compression::None)
        .cache_bytes(256 << 20)
        .open()
        .expect("open")
}

/// SplitMix64's finisher: a fixed shuffle of the integers.
fn shuffle(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn key(n: u64) -> [u8; 16] {
    let mut key = *b"user000000000000";
    key[8..].copy_from_slice(&n.to_be_bytes());
    key
}

fn value(n: u64) -> [u8; 100] {
    let mut value = [0; 100];
    for (i, chunk) in value.chunks_mut(8).enumerate() {
        let word = shuffle(n + i as u64).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    value
}

fn fills(c: &mut Criterion) {
    let mut group = c.benchmark_group("fill");
    group.throughput(Throughput::Elements(1)).sample_size(10);
    group.measurement_time(Duration::from_secs(5));
    let fill = |group: &mut criterion::BenchmarkGroup<'_, _>, name: &str, next: fn(u64) -> u64| {
        let dir = tempfile::tempdir().expect("a directory");
        let db = open(dir.path());
        let mut n = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                n += 1;
                db.put(key(next(n)), value(n)).expect("put");
            });
        });
    };
    fill(&mut group, "fillseq", |n| n);
    fill(&mut group, "fillrandom", shuffle);
    fill(&mut group, "overwrite", |n| shuffle(n) % 100_000);
    {
        let dir = tempfile::tempdir().expect("a directory");
        let db = open(dir.path());
        let mut n = 0;
        group.throughput(Throughput::Elements(1000));
        group.bench_function("fillbatch", |b| {
            b.iter(|| {
                let mut batch = WriteBatch::new();
                for _ in 0..1000 {
                    n += 1;
                    batch.put(key(shuffle(n)), value(n));
                }
                db.write(batch).expect("write");
            });
        });
        group.throughput(Throughput::Elements(1));
    }
    for threads in [1, 4] {
        let dir = tempfile::tempdir().expect("a directory");
        let db = open(dir.path());
        let base = std::sync::atomic::AtomicU64::new(0);
        group.bench_function(format!("fillsync/{threads}"), |b| {
            b.iter_custom(|iterations| {
                let start = Instant::now();
                std::thread::scope(|scope| {
                    for _ in 0..threads {
                        scope.spawn(|| {
                            for _ in 0..iterations.div_ceil(threads) {
                                let n = base.fetch_add(1, Ordering::Relaxed);
                                let mut batch = WriteBatch::new();
                                batch.put(key(shuffle(n)), value(n));
                                db.write_with(batch, Durability::Sync).expect("write");
                            }
                        });
                    }
                });
                start.elapsed()
            });
        });
    }
    group.finish();
}

fn reads(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let db = open(dir.path());
    for n in 0..KEYS {
        db.put(key(shuffle(n)), value(n)).expect("put");
    }
    db.flush().expect("flush");
    db.wait_idle().expect("wait_idle");
    let mut group = c.benchmark_group("read");
    group.throughput(Throughput::Elements(1));
    let mut n = 0u64;
    group.bench_function("readrandom", |b| {
        b.iter(|| {
            n += 1;
            let found = db.get(key(shuffle(shuffle(n) % KEYS))).expect("get");
            assert!(black_box(found).is_some());
        });
    });
    group.bench_function("readmissing", |b| {
        b.iter(|| {
            n += 1;
            let found = db.get(key(shuffle(n.wrapping_add(KEYS << 8)))).expect("get");
            assert!(black_box(found).is_none());
        });
    });
    let mut iter = db.get_range::<&[u8]>(..);
    group.bench_function("readseq", |b| {
        b.iter(|| {
            if black_box(iter.next()).is_none() {
                iter = db.get_range::<&[u8]>(..);
            }
        });
    });
    let mut iter = db.get_range::<&[u8]>(..);
    group.bench_function("readreverse", |b| {
        b.iter(|| {
            if black_box(iter.next_back()).is_none() {
                iter = db.get_range::<&[u8]>(..);
            }
        });
    });
    group.bench_function("seekrandom10", |b| {
        b.iter(|| {
            n += 1;
            let from = key(shuffle(n));
            for entry in db.get_range(&from[..]..).take(10) {
                black_box(entry.expect("an entry"));
            }
        });
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                db.put(key(shuffle(shuffle(n) % KEYS)), value(n)).expect("put");
            }
        });
        group.bench_function("readwhilewriting", |b| {
            b.iter(|| {
                n += 1;
                let found = db.get(key(shuffle(shuffle(n) % KEYS))).expect("get");
                assert!(black_box(found).is_some());
            });
        });
        stop.store(true, Ordering::Relaxed);
    });
    group.finish();
}

fn segments(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("bench.seg");
    let options = SegmentOptions { compression: Compression::None, ..SegmentOptions::default() };
    let mut writer = SegmentWriter::create(&path, options).expect("create");
    const ROWS: u64 = 500_000;
    for n in 0..ROWS {
        writer.put(&key(n * 2), &value(n)).expect("put");
    }
    writer.finish().expect("finish");
    let reader = SegmentReader::open(&path).expect("open");
    let mut group = c.benchmark_group("segment");
    group.throughput(Throughput::Elements(1));
    let mut n = 0;
    group.bench_function("segment_get", |b| {
        b.iter(|| {
            n += 1;
            let found = reader.get(&key(shuffle(n) % ROWS * 2)).expect("get");
            assert!(black_box(found).is_some());
        });
    });
    let mut iter = reader.get_range::<&[u8]>(..);
    group.bench_function("segment_range", |b| {
        b.iter(|| {
            if black_box(iter.next()).is_none() {
                iter = reader.get_range::<&[u8]>(..);
            }
        });
    });
    group.finish();
}

criterion_group!(benches, fills, reads, segments);
criterion_main!(benches);
