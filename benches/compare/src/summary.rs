//! Medians and ratios of records: what tables and plots are made of.
//!
//! A ratio is made within a run and then the median is taken over the runs, so that a machine that
//! was slower during one run does not matter.

use crate::plan;
use crate::record::Record;
use crate::targets::{Metric, Peer};
use std::collections::{BTreeMap, BTreeSet};

pub const OURS: &str = "ashlardb";
pub const MACHINE: &str = "machine";
const LSMS: [&str; 2] = ["rocksdb", "fjall"];
/// In this order they are shown.
const ENGINES: [&str; 6] = [OURS, "rocksdb", "fjall", "lmdb", "redb", "sled"];

/// The records of one kind of settings.
pub struct Summary<'a> {
    pub title: String,
    pub machine: String,
    pub compression: String,
    /// Whether the cache holds the data.
    pub cached: bool,
    runs: BTreeSet<u32>,
    by: BTreeMap<(u32, &'a str, &'a str), Vec<&'a Record>>,
}

/// The middle one, or the mean of the two in the middle.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

fn larger_is_better(metric: Metric) -> bool {
    matches!(metric, Metric::Rate | Metric::WriterRate)
}

/// One summary for each kind of settings, in the order they came.
#[must_use]
pub fn summaries(records: &[Record]) -> Vec<Summary<'_>> {
    let mut all: Vec<Summary<'_>> = Vec::new();
    for record in records {
        let s = &record.settings;
        let title = format!(
            "{}: {} records of {} + {} bytes, compression {}, cache {} MiB",
            s.preset,
            s.records,
            crate::data::KEY,
            s.value,
            s.compression,
            s.cache_mib
        );
        let at = all.iter().position(|summary| summary.title == title).unwrap_or_else(|| {
            all.push(Summary {
                title,
                machine: record.machine.clone(),
                compression: s.compression.clone(),
                cached: (s.cache_mib as u64) << 20 > s.records * (16 + s.value as u64),
                runs: BTreeSet::new(),
                by: BTreeMap::new(),
            });
            all.len() - 1
        });
        let summary = &mut all[at];
        summary.runs.insert(record.run);
        let key = (record.run, record.engine.as_str(), record.workload.as_str());
        summary.by.entry(key).or_default().push(record);
    }
    all
}

impl Summary<'_> {
    #[must_use]
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    #[must_use]
    pub fn engines(&self) -> Vec<&'static str> {
        let there = |engine: &&str| self.by.keys().any(|(_, name, _)| name == engine);
        ENGINES.into_iter().filter(there).collect()
    }

    /// Workloads that were measured, in the order of the plan.
    #[must_use]
    pub fn workloads(&self) -> Vec<&'static str> {
        let there = |workload: &&str| {
            self.by.keys().any(|(_, engine, name)| name == workload && *engine != MACHINE)
        };
        plan::workloads().into_iter().filter(there).collect()
    }

    #[must_use]
    pub fn version(&self, engine: &str) -> String {
        let found = self.by.iter().find(|((_, name, _), _)| *name == engine);
        found.map_or(String::new(), |(_, records)| records[0].version.clone())
    }

    #[must_use]
    pub fn limits(&self) -> BTreeSet<String> {
        let limits = self.by.keys().filter(|(_, engine, _)| *engine == MACHINE);
        limits.map(|(_, _, name)| (*name).to_string()).collect()
    }

    /// Whether unsynced writes of this engine promise less than those of the others.
    #[must_use]
    pub fn promises_less(&self, engine: &str) -> bool {
        let found = self.by.iter().find(|((_, name, _), _)| *name == engine);
        found.is_some_and(|(_, records)| !records[0].survives)
    }

    /// Any figure of one run.
    fn in_run(&self, run: u32, engine: &str, workload: &str, of: &Figure<'_>) -> Option<f64> {
        let records = self.by.get(&(run, engine, workload))?;
        median(records.iter().filter_map(|record| of(record)).collect())
    }

    /// The median over the runs of any figure.
    #[must_use]
    pub fn over_runs(&self, engine: &str, workload: &str, of: &Figure<'_>) -> Option<f64> {
        let runs = self.runs.iter();
        median(runs.filter_map(|run| self.in_run(*run, engine, workload, of)).collect())
    }

    /// The median over the runs of what is compared.
    #[must_use]
    pub fn value(&self, engine: &str, workload: &str, metric: Metric) -> Option<f64> {
        let runs = self.runs.iter();
        median(runs.filter_map(|run| self.metric(*run, engine, workload, metric)).collect())
    }

    fn metric(&self, run: u32, engine: &str, workload: &str, metric: Metric) -> Option<f64> {
        let of: &Figure<'_> = match metric {
            Metric::Rate => &|record| Some(record.rate),
            Metric::WriterRate => &|record| record.get("writer_rate"),
            Metric::P99 => &|record| Some(record.p99 as f64),
            Metric::WriteAmplification => &write_amplification,
            Metric::Seconds => &|record| Some(record.seconds),
            Metric::DiskBytes => &|record| record.get("disk_bytes"),
            Metric::PeakMemory => return self.peak_memory(run, engine),
        };
        self.in_run(run, engine, workload, of)
    }

    /// The most over the workloads that share the store of fillrandom, less the key map.
    fn peak_memory(&self, run: u32, engine: &str) -> Option<f64> {
        let records = self.by.iter().filter(|((r, e, _), _)| *r == run && *e == engine);
        let shared = records.flat_map(|(_, records)| records).filter(|r| r.group == "random");
        let map = |record: &Record| record.get("stats_key_map_bytes").unwrap_or(0.0);
        let peaks = shared.filter_map(|record| Some(record.get("peak_rss")? - map(record)));
        peaks.max_by(f64::total_cmp)
    }

    /// The peer of that kind that did best in the median.
    #[must_use]
    pub fn best(&self, workload: &str, metric: Metric, peer: Peer) -> Option<&'static str> {
        let weaker = plan::writes(workload) && !workload.starts_with("fillsync");
        let peers = self.engines().into_iter().filter(|engine| match peer {
            Peer::BestLsm => LSMS.contains(engine),
            Peer::Lmdb => *engine == "lmdb",
            Peer::Best => *engine != OURS && !(weaker && self.promises_less(engine)),
            Peer::Raw => false,
        });
        let valued = peers.filter_map(|name| Some((name, self.value(name, workload, metric)?)));
        let sign = if larger_is_better(metric) { 1.0 } else { -1.0 };
        valued.max_by(|a, b| (sign * a.1).total_cmp(&(sign * b.1))).map(|(name, _)| name)
    }

    /// How many times better ashlardb is, the best peer chosen anew in each run.
    #[must_use]
    pub fn ratio(&self, workload: &str, metric: Metric, peer: Peer) -> Option<f64> {
        let weaker = plan::writes(workload) && !workload.starts_with("fillsync");
        let of_run = |run: &u32| {
            let ours = self.metric(*run, OURS, workload, metric)?;
            if peer == Peer::Raw {
                return Some(ours / self.in_run(*run, OURS, workload, &raw_rate)?);
            }
            let ratios = self.engines().into_iter().filter_map(|engine| {
                let counts = match peer {
                    Peer::BestLsm => LSMS.contains(&engine),
                    Peer::Lmdb => engine == "lmdb",
                    _ => engine != OURS && !(weaker && self.promises_less(engine)),
                };
                let theirs = counts.then(|| self.metric(*run, engine, workload, metric))??;
                Some(if larger_is_better(metric) { ours / theirs } else { theirs / ours })
            });
            ratios.min_by(f64::total_cmp)
        };
        median(self.runs.iter().filter_map(of_run).collect())
    }
}

/// A figure of a record.
pub type Figure<'a> = dyn Fn(&Record) -> Option<f64> + 'a;

/// The rate of the system calls alone, where it was measured.
#[must_use]
pub fn raw_rate(record: &Record) -> Option<f64> {
    record.get("raw_rate")
}

/// Bytes written to disk, settling included, for each byte put.
#[must_use]
pub fn write_amplification(record: &Record) -> Option<f64> {
    Some(record.get("settled_written_bytes")? / record.get("user_bytes").filter(|b| *b > 0.0)?)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::settings::Settings;

    pub fn record(run: u32, engine: &str, workload: &str, rate: f64) -> Record {
        Record {
            run,
            engine: engine.to_string(),
            version: "1.0".to_string(),
            group: "random".to_string(),
            workload: workload.to_string(),
            settings: Settings::preset("primary").unwrap(),
            machine: "a machine".to_string(),
            ops: 1,
            seconds: 1.0 / rate,
            rate,
            p50: 1,
            p99: (1e9 / rate) as u64,
            p999: 3,
            max: 4,
            timed: 1,
            survives: engine != "redb",
            more: BTreeMap::new(),
        }
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn ratios_are_made_within_runs() {
        // The machine is ten times slower in the second run, and the third has no ashlardb.
        let mut records = Vec::new();
        for (run, speed) in [(0, 10.0), (1, 1.0), (3, 2.0)] {
            records.push(record(run, OURS, "readrandom", 40.0 * speed));
            records.push(record(run, "rocksdb", "readrandom", 10.0 * speed));
            records.push(record(run, "fjall", "readrandom", 8.0 * speed));
            records.push(record(run, "lmdb", "readrandom", 20.0 * speed));
        }
        records.push(record(2, "rocksdb", "readrandom", 1.0));
        let summaries = summaries(&records);
        let summary = &summaries[0];
        assert_eq!((summaries.len(), summary.runs()), (1, 4));
        let ratio = |peer| summary.ratio("readrandom", Metric::Rate, peer);
        assert_eq!(ratio(Peer::BestLsm), Some(4.0));
        assert_eq!(ratio(Peer::Lmdb), Some(2.0));
        assert_eq!(ratio(Peer::Best), Some(2.0));
        let better = summary.ratio("readrandom", Metric::Seconds, Peer::BestLsm).unwrap();
        assert!((better - 4.0).abs() < 1e-9, "times are compared the other way round");
        assert_eq!(summary.best("readrandom", Metric::P99, Peer::Best), Some("lmdb"));
        assert_eq!(summary.ratio("overwrite", Metric::Rate, Peer::Best), None);
    }

    #[test]
    fn writes_that_promise_less_do_not_count() {
        let mut records = Vec::new();
        for workload in ["fillrandom", "readrandom", "fillsync4"] {
            for (engine, rate) in [(OURS, 8.0), ("rocksdb", 4.0), ("redb", 16.0)] {
                records.push(record(0, engine, workload, rate));
            }
        }
        let summaries = summaries(&records);
        let ratio = |workload| summaries[0].ratio(workload, Metric::Rate, Peer::Best);
        assert_eq!(ratio("fillrandom"), Some(2.0));
        assert_eq!(ratio("readrandom"), Some(0.5));
        assert_eq!(ratio("fillsync4"), Some(0.5));
    }

    #[test]
    fn the_key_map_is_not_counted_as_memory() {
        let mut ours = record(0, OURS, "fillrandom", 1.0);
        ours.more.insert("peak_rss".to_string(), 100.0);
        ours.more.insert("stats_key_map_bytes".to_string(), 20.0);
        let mut theirs = record(0, "fjall", "readseq", 1.0);
        theirs.more.insert("peak_rss".to_string(), 160.0);
        let records = [ours, theirs];
        let ratio = summaries(&records)[0].ratio("fillrandom", Metric::PeakMemory, Peer::BestLsm);
        assert_eq!(ratio, Some(2.0));
    }
}
