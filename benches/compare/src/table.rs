//! Records as Markdown.

use crate::data;
use crate::plan;
use crate::record::Record;
use crate::summary::{MACHINE, OURS, Summary, raw_rate, summaries, write_amplification};
use crate::targets::{Metric, Peer, TARGETS, Target};
use std::fmt::Write;

/// Three significant digits, with k or M.
#[must_use]
pub fn number(value: f64) -> String {
    let (value, unit) = match value.abs() {
        v if v >= 999_500.0 => (value / 1e6, "M"),
        v if v >= 9_995.0 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match value.abs() {
        v if v >= 99.95 || v == 0.0 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$}{unit}")
}

fn micros(nanos: f64) -> String {
    number(nanos / 1e3)
}

fn row(out: &mut String, cells: &[String]) {
    out.push_str("| ");
    out.push_str(&cells.join(" | "));
    out.push_str(" |\n");
}

fn head(out: &mut String, cells: &[String]) {
    row(out, cells);
    row(out, &vec!["---".to_string(); cells.len()]);
}

fn show(value: Option<f64>, how: impl Fn(f64) -> String) -> String {
    value.map_or("–".to_string(), how)
}

/// All tables of all settings.
#[must_use]
pub fn markdown(records: &[Record]) -> String {
    let mut out = String::new();
    for summary in &summaries(records) {
        let _ = writeln!(out, "## {}\n", summary.title);
        let _ = writeln!(out, "Medians of {} runs on {}.\n", summary.runs(), summary.machine);
        targets(&mut out, summary);
        rates(&mut out, summary);
        latencies(&mut out, summary);
        resources(&mut out, summary);
        limits(&mut out, summary);
    }
    out
}

fn what(target: &Target) -> String {
    let workload = target.workload;
    match target.metric {
        Metric::Rate => workload.to_string(),
        Metric::WriterRate => format!("{workload}, the writer"),
        Metric::P99 => format!("{workload}, p99"),
        Metric::WriteAmplification => format!("{workload}, write amplification"),
        Metric::Seconds => workload.to_string(),
        Metric::DiskBytes => format!("{workload}, disk after settling"),
        Metric::PeakMemory => "peak memory less the key map".to_string(),
    }
}

fn figure(metric: Metric, value: f64) -> String {
    match metric {
        Metric::Rate | Metric::WriterRate => format!("{}/s", number(value)),
        Metric::P99 => format!("{} µs", micros(value)),
        Metric::WriteAmplification => format!("{value:.2}"),
        Metric::Seconds => format!("{} ms", number(value * 1e3)),
        Metric::DiskBytes | Metric::PeakMemory => format!("{} MB", number(value / 1e6)),
    }
}

fn targets(out: &mut String, summary: &Summary<'_>) {
    let mut titles = ["", OURS, "against", "its figure", "times better", "wanted", ""];
    titles[0] = "workload";
    head(out, &titles.map(ToString::to_string));
    let (mut reached, mut all) = (0, 0);
    for target in TARGETS {
        let compression = target.compression.is_none_or(|name| name == summary.compression);
        if !compression || (target.cached && !summary.cached) {
            continue;
        }
        let (workload, metric) = (target.workload, target.metric);
        let Some(ratio) = summary.ratio(workload, metric, target.peer) else { continue };
        let (name, theirs) = match target.peer {
            Peer::Raw => ("the system calls", summary.over_runs(OURS, workload, &raw_rate)),
            peer => {
                let best = summary.best(workload, metric, peer).unwrap_or("–");
                (best, summary.value(best, workload, metric))
            }
        };
        let passed = ratio >= target.at_least;
        all += 1;
        reached += u32::from(passed);
        let ours = summary.value(OURS, workload, metric);
        let cells = [
            what(target),
            show(ours, |value| figure(metric, value)),
            name.to_string(),
            show(theirs, |value| figure(metric, value)),
            format!("{ratio:.2}"),
            format!("{:.2}", target.at_least),
            if passed { "reached" } else { "**missed**" }.to_string(),
        ];
        row(out, &cells);
    }
    let _ = writeln!(out, "\n{reached} of {all} reached.\n");
}

fn rates(out: &mut String, summary: &Summary<'_>) {
    let engines = summary.engines();
    let mut titles = vec!["operations a second".to_string()];
    for engine in &engines {
        let mark = if summary.promises_less(engine) { "\\*" } else { "" };
        titles.push(format!("{engine}{mark} {}", summary.version(engine)));
    }
    titles.extend(["÷ best LSM", "÷ LMDB", "÷ best peer"].map(ToString::to_string));
    head(out, &titles);
    for workload in summary.workloads() {
        let mut cells = vec![workload.to_string()];
        for engine in &engines {
            let rate = summary.value(engine, workload, Metric::Rate);
            let writer = summary.value(engine, workload, Metric::WriterRate);
            let writer = writer.map_or(String::new(), |rate| format!(" + {}", number(rate)));
            cells.push(show(rate, number) + &writer);
        }
        for peer in [Peer::BestLsm, Peer::Lmdb, Peer::Best] {
            cells.push(show(summary.ratio(workload, Metric::Rate, peer), |r| format!("{r:.2}")));
        }
        row(out, &cells);
    }
    out.push_str(
        "\nReads and writes of workloads that do both are counted together; `+` is the writer beside. \
         Scans of all are in entries.\n\\* loses its last unsynced writes when the process dies; not \
         a peer where it writes without syncing.\n\n",
    );
}

fn latencies(out: &mut String, summary: &Summary<'_>) {
    let engines = summary.engines();
    let mut titles = vec!["p50 / p99 / p99.9, µs".to_string()];
    titles.extend(engines.iter().map(ToString::to_string));
    head(out, &titles);
    for workload in summary.workloads() {
        let mut cells = vec![workload.to_string()];
        for engine in &engines {
            let of = |figure: &dyn Fn(&Record) -> u64| {
                let value = summary.over_runs(engine, workload, &|r| Some(figure(r) as f64));
                show(value, micros)
            };
            let (p50, p99, p999) = (of(&|r| r.p50), of(&|r| r.p99), of(&|r| r.p999));
            cells.push(if p50 == p999 { p50 } else { format!("{p50} / {p99} / {p999}") });
        }
        row(out, &cells);
    }
    out.push_str("\nOf a batch for fillbatch, of a whole scan for readseq and readreverse.\n\n");
}

fn resources(out: &mut String, summary: &Summary<'_>) {
    let engines = summary.engines();
    let mut titles = vec!["resources".to_string()];
    titles.extend(engines.iter().map(ToString::to_string));
    head(out, &titles);
    let mut line = |what: String, figure: &dyn Fn(&str) -> Option<f64>, how: fn(f64) -> String| {
        let values: Vec<_> = engines.iter().map(|engine| figure(engine)).collect();
        if values.iter().any(Option::is_some) {
            let cells = values.into_iter().map(|value| show(value, how));
            row(out, &std::iter::once(what).chain(cells).collect::<Vec<_>>());
        }
    };
    for workload in summary.workloads().into_iter().filter(|workload| plan::writes(workload)) {
        if workload.starts_with("ycsb") || workload.starts_with("fillsync") {
            continue;
        }
        let get = |engine: &str, name: &str| {
            summary.over_runs(engine, workload, &|record| record.get(name))
        };
        line(
            format!("{workload}: written, settled, for each byte put"),
            &|engine| summary.over_runs(engine, workload, &write_amplification),
            |value| format!("{value:.2}"),
        );
        line(format!("{workload}: settling, s"), &|e| get(e, "settle_seconds"), number);
        line(format!("{workload}: disk, MB"), &|e| Some(get(e, "disk_bytes")? / 1e6), number);
    }
    for workload in summary.workloads() {
        if ["fillrandom", "readrandom", "overwrite", "readseq"].contains(&workload) {
            let peak = |engine: &str| {
                summary.over_runs(engine, workload, &|r| Some(r.get("peak_rss")? / 1e6))
            };
            line(format!("{workload}: peak memory, MB"), &peak, number);
            let cpu = |engine: &str| {
                let of = |r: &Record| Some(r.get("cpu_seconds")? / r.seconds);
                summary.over_runs(engine, workload, &of)
            };
            line(format!("{workload}: processors used"), &cpu, |value| format!("{value:.2}"));
        }
    }
    out.push_str("\nLMDB's memory is mostly the mapped file, which the system may take back.\n\n");
}

fn limits(out: &mut String, summary: &Summary<'_>) {
    if summary.limits().is_empty() {
        return;
    }
    head(out, &["limits of the machine", "a second", "p50 / p99, µs"].map(ToString::to_string));
    for limit in summary.limits() {
        let of = |figure: &dyn Fn(&Record) -> f64| {
            summary.over_runs(MACHINE, &limit, &|record| Some(figure(record)))
        };
        let name = match limit.as_str() {
            "append-fdatasync" => "append 140 bytes and fdatasync",
            "overwrite-fdatasync" => "overwrite 140 bytes of a written file and fdatasync",
            "pread4k" => "pread of 4 KiB at random from the page cache",
            "seqwrite-mb" => "sequential write and fdatasync, MB",
            "dram-load" => "dependent loads from 256 MiB of memory",
            other => other,
        };
        // Its latencies are of 1024 loads.
        let each = if limit == "dram-load" { 1024.0 } else { 1.0 };
        let p50 = show(of(&|r| r.p50 as f64 / each), micros);
        let p99 = show(of(&|r| r.p99 as f64 / each), micros);
        let rate = show(of(&|r| r.rate), number);
        row(out, &[name.to_string(), rate, format!("{p50} / {p99}")]);
    }
    let _ = writeln!(out, "\nKeys have {} bytes.\n", data::KEY);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::record;

    #[test]
    fn numbers_have_three_digits() {
        let cases = [
            (0.0, "0"),
            (1.234, "1.23"),
            (9.999, "10.0"),
            (99.96, "100"),
            (1234.0, "1234"),
            (12_345.0, "12.3k"),
            (999_900.0, "1.00M"),
            (12_345_678.0, "12.3M"),
        ];
        for (value, want) in cases {
            assert_eq!(number(value), want);
        }
    }

    #[test]
    fn a_table_says_what_is_reached() {
        let records = [
            record(0, OURS, "readrandom", 5e5),
            record(0, "rocksdb", "readrandom", 1e5),
            record(0, "lmdb", "readrandom", 4.5e5),
            record(0, "machine", "pread4k", 1e6),
        ];
        let text = markdown(&records);
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
        assert_eq!(
            line("| readrandom |"),
            "| readrandom | 500k/s | rocksdb | 100k/s | 5.00 | 4.00 | reached |"
        );
        assert!(text.contains("| lmdb | 450k/s | 1.11 | 1.30 | **missed** |"), "{text}");
        assert!(text.contains("2 of 3 reached"), "{text}");
        assert!(text.contains("| pread of 4 KiB at random from the page cache | 1.00M |"));
    }
}
