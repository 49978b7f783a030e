//! A child process: opens one engine's store, runs workloads on it, prints a record for each.

use crate::data::{Order, Rng, key};
use crate::engines::{self, Engine, Guarantee, Outcome};
use crate::plan;
use crate::proc;
use crate::record::Record;
use crate::settings::Settings;
use crate::work::{Done, Store};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What a child is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    pub engine: String,
    pub dir: PathBuf,
    pub group: String,
    pub rising: bool,
    pub steps: Vec<String>,
    pub settings: Settings,
    pub run: u32,
    pub machine: String,
}

/// Printed when a store is ready for its process to be killed.
pub const READY: &str = "ready";

/// Runs a job.
pub fn main(job: &str) -> Outcome {
    let job: Job = serde_json::from_str(job)?;
    match job.steps.first().map(String::as_str) {
        Some("open" | "open-after-kill") => return open_only(&job),
        Some("dirty") => return fill_and_wait(&job),
        _ => {}
    }
    let engine = engines::open(&job.engine, &job.dir, &job.settings)?;
    let order = if job.rising { Order::Rising } else { Order::Random };
    let store = Store::new(&*engine, &job, order, 0);
    for workload in &job.steps {
        let record = measure(&job, &store, workload)
            .map_err(|error| format!("{} in {workload}: {error}", job.engine))?;
        print(&record)?;
    }
    drop(store);
    engine.close()
}

fn print(record: &Record) -> Outcome {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, record)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

fn measure(job: &Job, store: &Store<'_>, workload: &str) -> Outcome<Record> {
    proc::reset_peak();
    let (io, cpu) = (proc::io(), proc::cpu_seconds());
    let Done { measured, user_bytes, mut more } = store.run(workload)?;
    let during = proc::io().since(&io);
    let mut note = |name: &str, value: f64| {
        more.insert(name.to_string(), value);
    };
    note("cpu_seconds", proc::cpu_seconds() - cpu);
    note("wchar", during.wchar as f64);
    note("written_bytes", during.written as f64);
    note("read_bytes", during.read as f64);
    note("disk_bytes_at_end", proc::disk_bytes(&job.dir) as f64);
    if plan::writes(workload) {
        note("user_bytes", user_bytes as f64);
        let seconds = settle(store.engine, job.settings.quiet)?;
        let all = proc::io().since(&io);
        note("settle_seconds", seconds);
        note("settled_wchar", all.wchar as f64);
        note("settled_written_bytes", all.written as f64);
        note("settled_cancelled_bytes", all.cancelled as f64);
        note("settled_cpu_seconds", proc::cpu_seconds() - cpu);
    }
    note("disk_bytes", proc::disk_bytes(&job.dir) as f64);
    note("peak_rss", proc::peak_rss() as f64);
    note("anon_rss", proc::anon_rss() as f64);
    for (name, value) in store.engine.stats() {
        note(&format!("stats_{name}"), value);
    }
    let latencies = &measured.latencies;
    Ok(Record {
        ops: measured.ops,
        seconds: measured.seconds,
        rate: measured.rate,
        p50: latencies.quantile(0.5),
        p99: latencies.quantile(0.99),
        p999: latencies.quantile(0.999),
        max: latencies.max(),
        timed: latencies.count(),
        more,
        ..blank(job, workload)
    })
}

fn blank(job: &Job, workload: &str) -> Record {
    Record {
        run: job.run,
        engine: job.engine.clone(),
        version: engines::version(&job.engine),
        group: job.group.clone(),
        workload: workload.to_string(),
        settings: job.settings.clone(),
        machine: job.machine.clone(),
        ops: 0,
        seconds: 0.0,
        rate: 0.0,
        p50: 0,
        p99: 0,
        p999: 0,
        max: 0,
        timed: 0,
        survives: engines::guarantee(&job.engine) == Guarantee::Process,
        more: std::collections::BTreeMap::new(),
    }
}

/// Settles a store: what the engine does for it, and then until nothing is written and next to no
/// processor time is used for so long. Gives the time without that last wait.
fn settle(engine: &dyn Engine, quiet: f64) -> Outcome<f64> {
    let start = Instant::now();
    engine.settle()?;
    let limit = start + Duration::from_secs(600);
    let mut since = Instant::now();
    let (mut written, mut cpu) = (proc::io().wchar, proc::cpu_seconds());
    while since.elapsed().as_secs_f64() < quiet && Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(100));
        let now = (proc::io(), proc::cpu_seconds());
        if now.0.wchar > written + (64 << 10) || now.1 > cpu + 0.02 {
            since = Instant::now();
        }
        (written, cpu) = (now.0.wchar, now.1);
    }
    Ok((since - start).as_secs_f64())
}

/// From nothing open to the first value read.
fn open_only(job: &Job) -> Outcome {
    let key = key(Order::Random, Rng::new(u64::from(job.run)).below(job.settings.records));
    let start = Instant::now();
    let engine = engines::open(&job.engine, &job.dir, &job.settings)?;
    let opened = start.elapsed();
    let there = engine.session()?.get(&key, &mut |_| ())?;
    let took = start.elapsed();
    if !there {
        return Err(format!("{}: a record is not there after opening", job.engine).into());
    }
    let nanos = took.as_nanos() as u64;
    let mut record = Record {
        ops: 1,
        seconds: took.as_secs_f64(),
        rate: 1.0 / took.as_secs_f64(),
        p50: nanos,
        p99: nanos,
        p999: nanos,
        max: nanos,
        timed: 1,
        ..blank(job, &job.steps[0])
    };
    record.more.insert("open_seconds".to_string(), opened.as_secs_f64());
    record.more.insert("disk_bytes".to_string(), proc::disk_bytes(&job.dir) as f64);
    record.more.insert("peak_rss".to_string(), proc::peak_rss() as f64);
    print(&record)?;
    engine.close()
}

/// Overwrites a fifth of the records, says so, and waits to be killed.
fn fill_and_wait(job: &Job) -> Outcome {
    let engine = engines::open(&job.engine, &job.dir, &job.settings)?;
    let store = Store::new(&*engine, &job, Order::Random, job.settings.records);
    store.run("dirty")?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{READY}")?;
    out.flush()?;
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
