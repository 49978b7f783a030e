//! What the machine itself can do, measured in the same run as the engines.

use crate::data::{Rng, mix};
use crate::engines::Outcome;
use crate::hist::Histogram;
use crate::record::Record;
use crate::settings::Settings;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The file that is written once and read at random.
const FILE: u64 = 1 << 30;
/// What a log record of one put of 16 + 100 bytes may take.
const LOG_RECORD: usize = 140;
/// Each rate is measured for so long.
const SECONDS: f64 = 2.0;

/// Repeats `work` for a time; gives operations, seconds and latencies.
fn repeat(seconds: f64, mut work: impl FnMut(u64) -> Outcome) -> Outcome<(u64, f64, Histogram)> {
    let mut latencies = Histogram::default();
    let start = Instant::now();
    let (mut ops, mut before) = (0, start);
    loop {
        work(ops)?;
        ops += 1;
        let now = Instant::now();
        latencies.add((now - before).as_nanos() as u64);
        before = now;
        let passed = (now - start).as_secs_f64();
        if passed >= seconds {
            return Ok((ops, passed, latencies));
        }
    }
}

/// Measures all limits in `dir`.
pub fn limits(dir: &Path, run: u32, settings: &Settings, machine: &str) -> Outcome<Vec<Record>> {
    let quick = settings.seconds < 1.0;
    let seconds = if quick { settings.seconds } else { SECONDS };
    let bytes = if quick { FILE / 16 } else { FILE };
    let path = dir.join("limits");
    let mut records = Vec::new();
    let mut keep = |workload: &str, (ops, seconds, latencies): (u64, f64, Histogram), unit: f64| {
        records.push(Record {
            run,
            engine: "machine".to_string(),
            version: String::new(),
            group: String::new(),
            workload: workload.to_string(),
            settings: settings.clone(),
            machine: machine.to_string(),
            ops,
            seconds,
            rate: ops as f64 * unit / seconds,
            p50: latencies.quantile(0.5),
            p99: latencies.quantile(0.99),
            p999: latencies.quantile(0.999),
            max: latencies.max(),
            timed: latencies.count(),
            survives: true,
            more: BTreeMap::new(),
        });
    };
    keep("seqwrite-mb", write_file(&path, bytes)?, 1.0);
    let file = File::open(&path)?;
    let (mut rng, mut page) = (Rng::new(1), [0; 4096]);
    let read = |_| Ok(file.read_exact_at(&mut page, rng.below(bytes / 4096) * 4096)?);
    keep("pread4k", repeat(seconds, read)?, 1.0);
    let record = [0x5a; LOG_RECORD];
    let file = OpenOptions::new().write(true).open(&path)?;
    let slots = bytes / LOG_RECORD as u64;
    keep(
        "overwrite-fdatasync",
        repeat(seconds, |nth| {
            file.write_all_at(&record, (nth % slots) * LOG_RECORD as u64)?;
            Ok(file.sync_data()?)
        })?,
        1.0,
    );
    fs::remove_file(&path)?;
    let file = File::create(&path)?;
    keep(
        "append-fdatasync",
        repeat(seconds, |nth| {
            file.write_all_at(&record, nth * LOG_RECORD as u64)?;
            Ok(file.sync_data()?)
        })?,
        1.0,
    );
    fs::remove_file(&path)?;
    // One operation is 1024 dependent loads.
    let chain = chain(if quick { 16 << 20 } else { 256 << 20 });
    let mut at = 0usize;
    let chased = repeat(seconds, |_| {
        (0..1024).for_each(|_| at = chain[at] as usize);
        Ok(())
    })?;
    std::hint::black_box(at);
    keep("dram-load", chased, 1024.0);
    Ok(records)
}

/// Overwrites and syncs records one after the other in a file that is written already.
pub struct RawSync {
    path: PathBuf,
    file: File,
    next: u64,
}

impl RawSync {
    const BYTES: u64 = 16 << 20;

    pub fn new(path: &Path) -> Outcome<Self> {
        let path = path.to_path_buf();
        write_file(&path, Self::BYTES)?;
        let file = OpenOptions::new().write(true).open(&path)?;
        Ok(RawSync { path, file, next: 0 })
    }

    /// For a time. Gives operations and seconds.
    pub fn run(&mut self, time: Duration) -> Outcome<(u64, f64)> {
        let slots = Self::BYTES / LOG_RECORD as u64;
        let (ops, seconds, _) = repeat(time.as_secs_f64(), |_| {
            self.file.write_all_at(&[0x5a; LOG_RECORD], self.next % slots * LOG_RECORD as u64)?;
            self.next += 1;
            Ok(self.file.sync_data()?)
        })?;
        Ok((ops, seconds))
    }
}

impl Drop for RawSync {
    fn drop(&mut self) {
        // Of no use to anyone, and no harm if it stays.
        drop(fs::remove_file(&self.path));
    }
}

/// Writes a file in pieces of 1 MiB, synced at the end. Operations are megabytes (10^6).
fn write_file(path: &Path, bytes: u64) -> Outcome<(u64, f64, Histogram)> {
    let mut piece = vec![0u8; 1 << 20];
    for (nth, chunk) in piece.chunks_exact_mut(8).enumerate() {
        chunk.copy_from_slice(&mix(nth as u64).to_le_bytes());
    }
    let file = File::create(path)?;
    let mut latencies = Histogram::default();
    let start = Instant::now();
    for nth in 0..bytes >> 20 {
        let before = Instant::now();
        file.write_all_at(&piece, nth << 20)?;
        latencies.add(before.elapsed().as_nanos() as u64);
    }
    file.sync_data()?;
    Ok((bytes / 1_000_000, start.elapsed().as_secs_f64(), latencies))
}

/// A single cycle through so many bytes of memory, in random order, one step for each cache line.
fn chain(bytes: usize) -> Vec<u32> {
    const STEP: usize = 16;
    let lines = bytes / (STEP * 4);
    let mut order: Vec<u32> = (0..lines as u32).collect();
    let mut rng = Rng::new(3);
    for last in (1..lines).rev() {
        order.swap(last, rng.below(last as u64 + 1) as usize);
    }
    let mut chain = vec![0u32; lines * STEP];
    for (nth, line) in order.iter().enumerate() {
        let next = order[(nth + 1) % lines];
        chain[*line as usize * STEP] = next * STEP as u32;
    }
    chain
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_chain_goes_through_every_line() {
        let chain = super::chain(64 * 1000);
        let (mut at, mut steps) = (0, 0);
        loop {
            at = chain[at] as usize;
            steps += 1;
            if at == 0 {
                break;
            }
        }
        assert_eq!(steps, 1000);
    }
}
