//! What a recorder is told, and that docs/metrics.md names all of it and nothing else.

use super::*;
use crate::vfs::Env;
use crate::{Background, Db, Durability};
use metrics::{Counter, CounterFn, Gauge, GaugeFn, HistogramFn, Key, KeyName, Metadata, Recorder};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

/// Keeps what it is told: counters and gauges by name and labels, and every value of histograms.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    described: BTreeSet<String>,
    values: BTreeMap<String, f64>,
    recorded: BTreeMap<String, Vec<f64>>,
}

struct Cell(Kept, String);

impl CounterFn for Cell {
    fn increment(&self, _: u64) {
        panic!("they are absolute");
    }

    fn absolute(&self, value: u64) {
        self.0.0.lock().unwrap().values.insert(self.1.clone(), value as f64);
    }
}

impl GaugeFn for Cell {
    fn increment(&self, _: f64) {
        panic!("they are set");
    }

    fn decrement(&self, _: f64) {
        panic!("they are set");
    }

    fn set(&self, value: f64) {
        self.0.0.lock().unwrap().values.insert(self.1.clone(), value);
    }
}

impl HistogramFn for Cell {
    fn record(&self, value: f64) {
        self.0.0.lock().unwrap().recorded.entry(self.1.clone()).or_default().push(value);
    }
}

impl Kept {
    fn cell(&self, key: &Key) -> Arc<Cell> {
        let labels: Vec<_> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        Arc::new(Cell(self.clone(), format!("{}{{{}}}", key.name(), labels.join(","))))
    }

    fn describe(&self, name: KeyName) {
        self.0.lock().unwrap().described.insert(name.as_str().to_owned());
    }

    fn value(&self, name: &str) -> f64 {
        let state = self.0.lock().unwrap();
        *state.values.get(name).unwrap_or_else(|| panic!("{name} is not in {:?}", state.values))
    }

    fn recorded(&self, name: &str) -> Vec<f64> {
        self.0.lock().unwrap().recorded.get(name).cloned().unwrap_or_default()
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, _: metrics::SharedString) {
        self.describe(name);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, _: metrics::SharedString) {
        self.describe(name);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, _: metrics::SharedString) {
        self.describe(name);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> metrics::Histogram {
        metrics::Histogram::from_arc(self.cell(key))
    }
}

#[test]
fn a_recorder_is_told_what_stats_say_and_each_time_what_is_new() {
    let (kept, env) = (Kept::default(), Env::in_memory(1));
    let builder = Db::builder("/db").env(env).background(Background::Manual).read_histograms(true);
    let db = builder.open().unwrap();
    let publish = || metrics::with_local_recorder(&kept, || db.publish_metrics());
    let other = db.keyspace("other").unwrap();
    for n in 0..100_u8 {
        db.put([n], "value").unwrap();
        db.get([n]).unwrap();
    }
    other.put("a", "b").unwrap();
    publish();
    let flushes = "ashlardb_flush_seconds{database=/db}";
    assert!(kept.recorded(flushes).is_empty());
    for round in 1..4 {
        db.put("a", "b").unwrap();
        db.flush().unwrap();
        for _ in 0..2 {
            publish();
            assert_eq!(kept.recorded(flushes).len(), round, "each is recorded once");
        }
    }
    let stats = db.stats();
    let name = |name: &str| kept.value(&format!("ashlardb_{name}{{database=/db}}"));
    let same = |name_of: &str, value: f64| assert_eq!(name(name_of).to_bits(), value.to_bits());
    same("operations_total", stats.operations as f64);
    same("flushes_total", 3.0);
    same("flushed_bytes_total", stats.flushed_bytes as f64);
    same("gets_total", 100.0);
    same("memtable_hits_total", 100.0);
    same("segment_bytes", stats.segment_bytes() as f64);
    same("write_amplification", stats.write_amplification());
    same("poisoned", 0.0);
    let bytes = kept.value("ashlardb_level_bytes{database=/db,keyspace=other,level=0}");
    assert!(bytes > 0.0);
    let runs = kept.value("ashlardb_keyspace_range_runs{database=/db,keyspace=default}");
    assert!((runs - 3.0).abs() < f64::EPSILON);
    let largest = kept.value("ashlardb_batch_operations{database=/db,quantile=1}");
    assert!((largest - 1.0).abs() < f64::EPSILON);

    let mut batch = crate::WriteBatch::new();
    batch.put("a", "1").put("b", "2");
    db.write_with(batch, Durability::Sync).unwrap();
    publish();
    let largest = kept.value("ashlardb_batch_operations{database=/db,quantile=1}");
    assert!((largest - 2.0).abs() < f64::EPSILON);
    let syncs = kept.recorded("ashlardb_sync_seconds{database=/db}").len();
    assert_eq!(syncs as u64, db.stats().syncs);
}

#[test]
fn the_table_for_users_names_each_metric_and_no_other() {
    let text = include_str!("../../docs/metrics.md");
    let in_text: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `ashlardb_")?.split('`').next())
        .map(|name| format!("ashlardb_{name}"))
        .collect();
    let kept = Kept::default();
    let builder = Db::builder("/db").env(Env::in_memory(1)).background(Background::Manual);
    let db = builder.open().unwrap();
    metrics::with_local_recorder(&kept, || db.publish_metrics());
    assert_eq!(kept.0.lock().unwrap().described, in_text);
}
