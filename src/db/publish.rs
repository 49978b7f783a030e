//! The statistics for the facade of the `metrics` crate (feature `metrics`).
//!
//! Everything is taken from [`Stats`] when somebody asks: nothing is counted twice, and what reads and
//! writes cost is the same with the feature and without. The names are in tables here, and for users in
//! docs/metrics.md, which a test holds against them. Nothing is held while a recorder is called.

use super::histogram::Histogram;
use super::stats::{Histograms, KeyspaceStats, LevelStats, Stats};
use super::{Db, Inner};
use metrics::{Label, Unit};

/// Name, unit, what it says, and where it comes from.
type Table<S, N> = &'static [(&'static str, Unit, &'static str, fn(&S) -> N)];

const COUNTERS: Table<Stats, u64> = &[
    ("ashlardb_operations_total", Unit::Count, "Operations written.", |s| s.operations),
    ("ashlardb_written_bytes_total", Unit::Bytes, "Operations written, as logged.", |s| {
        s.written_bytes
    }),
    ("ashlardb_flushed_bytes_total", Unit::Bytes, "What flushes wrote.", |s| s.flushed_bytes),
    ("ashlardb_ingested_bytes_total", Unit::Bytes, "Segments that were loaded.", |s| {
        s.ingested_bytes
    }),
    ("ashlardb_compacted_bytes_total", Unit::Bytes, "What compactions wrote.", |s| {
        s.compacted_bytes
    }),
    ("ashlardb_flushes_total", Unit::Count, "Flushes done.", |s| s.flushes),
    ("ashlardb_compactions_total", Unit::Count, "Compactions that rewrote something.", |s| {
        s.compactions
    }),
    ("ashlardb_moves_total", Unit::Count, "Compactions that only moved segments.", |s| s.moves),
    ("ashlardb_drops_total", Unit::Count, "Segments dropped for age or a cap.", |s| s.drops),
    ("ashlardb_syncs_total", Unit::Count, "Syncs of the log.", |s| s.syncs),
    ("ashlardb_stalls_total", Unit::Count, "Times that a write was held back.", |s| s.stalls),
    ("ashlardb_cache_hits_total", Unit::Count, "Lookups in the cache that found a block.", |s| {
        s.cache_hits
    }),
    ("ashlardb_cache_misses_total", Unit::Count, "Those that did not.", |s| s.cache_misses),
    ("ashlardb_gets_total", Unit::Count, "Point reads.", |s| s.reads.gets),
    ("ashlardb_memtable_hits_total", Unit::Count, "Those that a memtable answered.", |s| {
        s.reads.memtable_hits
    }),
    ("ashlardb_unmapped_gets_total", Unit::Count, "Those that the key map had nothing for.", |s| {
        s.reads.unmapped
    }),
    ("ashlardb_callback_panics_total", Unit::Count, "Panics of listeners and callbacks.", |s| {
        s.callback_panics
    }),
    ("ashlardb_events_left_out_total", Unit::Count, "Events that no listener heard of.", |s| {
        s.events_left_out
    }),
];

const GAUGES: Table<Stats, f64> = &[
    ("ashlardb_memtable_bytes", Unit::Bytes, "Memory in memtables.", |s| s.memtable_bytes as f64),
    ("ashlardb_memtables", Unit::Count, "Memtables.", |s| s.memtables as f64),
    ("ashlardb_cache_bytes", Unit::Bytes, "Memory in the cache.", |s| s.cache_bytes as f64),
    ("ashlardb_key_map_bytes", Unit::Bytes, "Memory in the key map.", |s| s.key_map.bytes as f64),
    ("ashlardb_key_map_entries", Unit::Count, "Entries in the key map.", |s| {
        s.key_map.entries as f64
    }),
    ("ashlardb_key_map_resident_ratio", Unit::Count, "The part of it that is in memory.", |s| {
        f64::from(s.key_map.resident_shards) / f64::from(s.key_map.shards.max(1))
    }),
    ("ashlardb_segment_bytes", Unit::Bytes, "Live segment files.", |s| s.segment_bytes() as f64),
    ("ashlardb_padding_ratio", Unit::Count, "The part of data blocks that is padding.", |s| {
        s.padding_ratio()
    }),
    ("ashlardb_write_amplification", Unit::Count, "Bytes written for each of operations.", |s| {
        s.write_amplification()
    }),
    ("ashlardb_open_files", Unit::Count, "Open segment files.", |s| s.open_files as f64),
    ("ashlardb_snapshots", Unit::Count, "Snapshots alive.", |s| s.snapshots as f64),
    ("ashlardb_quarantined_segments", Unit::Count, "Segments found damaged.", |s| {
        s.quarantined.len() as f64
    }),
    ("ashlardb_background_failed", Unit::Count, "1 while background work fails.", |s| {
        f64::from(u8::from(s.background_error.is_some()))
    }),
    ("ashlardb_poisoned", Unit::Count, "1 once writes are refused.", |s| {
        f64::from(u8::from(s.poisoned.is_some()))
    }),
];

const OF_KEYSPACE: Table<KeyspaceStats, f64> = &[
    ("ashlardb_keyspace_debt_bytes", Unit::Bytes, "What compaction is behind.", |k| {
        k.compaction_debt_bytes as f64
    }),
    ("ashlardb_keyspace_garbage_bytes", Unit::Bytes, "What newer segments supersede.", |k| {
        k.garbage_bytes as f64
    }),
    ("ashlardb_keyspace_value_bytes", Unit::Bytes, "Values in value segments.", |k| {
        k.value_bytes as f64
    }),
    ("ashlardb_keyspace_referenced_value_bytes", Unit::Bytes, "What of them is in use.", |k| {
        k.referenced_value_bytes as f64
    }),
    ("ashlardb_keyspace_space_amplification", Unit::Count, "Files for what lives in them.", |k| {
        k.space_amplification()
    }),
    ("ashlardb_keyspace_range_runs", Unit::Count, "Sorted runs that a range merges.", |k| {
        k.range_runs as f64
    }),
];

const OF_LEVEL: Table<LevelStats, f64> = &[
    ("ashlardb_level_bytes", Unit::Bytes, "Segment files.", |l| l.file_bytes as f64),
    ("ashlardb_level_segments", Unit::Count, "Segments.", |l| l.segments as f64),
    ("ashlardb_level_runs", Unit::Count, "Sorted runs.", |l| l.runs as f64),
    ("ashlardb_level_entries", Unit::Count, "Entries.", |l| l.entries as f64),
];

type Part<T> = fn(&Histograms) -> &T;

/// Of what comes rarely: each value is recorded.
const RECORDED: &[(&str, &str, Part<Histogram>)] = &[
    ("ashlardb_flush_seconds", "Flushes.", |h| &h.flush_ns),
    ("ashlardb_compaction_seconds", "Compactions that rewrote something.", |h| &h.compaction_ns),
    ("ashlardb_stall_seconds", "Writes that were held back.", |h| &h.stall_ns),
    ("ashlardb_sync_seconds", "Syncs of the log.", |h| &h.sync_ns),
];

/// Of what comes by the million: quantiles, with what one of the unit is.
const QUANTILES: &[(&str, Unit, f64, &str, Part<Histogram>)] = &[
    ("ashlardb_get_seconds", Unit::Seconds, 1e-9, "Point reads.", |h| &h.get_ns),
    ("ashlardb_batch_operations", Unit::Count, 1.0, "Operations of a batch.", |h| {
        &h.batch_operations
    }),
];

/// The values of the label `quantile`.
const SHARES: [(&str, f64); 4] = [("0.5", 0.5), ("0.99", 0.99), ("0.999", 0.999), ("1", 1.0)];

impl Db {
    /// Publishes the statistics through the facade of the `metrics` crate, to whatever recorder is
    /// installed. To be called as often as an exporter is asked, say every ten seconds. Costs as much
    /// as [`stats`](Self::stats), and a call of the recorder for each name; nothing is counted for it
    /// otherwise.
    ///
    #[doc = include_str!("../../docs/metrics.md")]
    pub fn publish_metrics(&self) {
        self.inner().publish_metrics();
    }
}

impl Inner {
    fn publish_metrics(&self) {
        let stats = self.stats();
        let database = Label::new("database", self.home.dir.display().to_string());
        let own = vec![database.clone()];
        for (name, unit, what, value) in COUNTERS {
            metrics::describe_counter!(*name, *unit, *what);
            metrics::counter!(*name, own.clone()).absolute(value(&stats));
        }
        set(GAUGES, &stats, &own);
        for keyspace in &stats.keyspaces {
            let name = Label::new("keyspace", keyspace.name.clone());
            set(OF_KEYSPACE, keyspace, &[database.clone(), name.clone()]);
            for (number, level) in keyspace.levels.iter().enumerate() {
                let number = Label::new("level", number.to_string());
                set(OF_LEVEL, level, &[database.clone(), name.clone(), number]);
            }
        }
        let now = &stats.histograms;
        let before = std::mem::replace(&mut *self.published.lock(), now.clone());
        for (name, what, part) in RECORDED {
            metrics::describe_histogram!(*name, Unit::Seconds, *what);
            let histogram = metrics::histogram!(*name, own.clone());
            for (nanoseconds, times) in part(now).since(part(&before)) {
                let times = usize::try_from(times).unwrap_or(usize::MAX);
                histogram.record_many(nanoseconds as f64 * 1e-9, times);
            }
        }
        for (name, unit, one, what, part) in QUANTILES {
            metrics::describe_gauge!(*name, *unit, *what);
            for (label, share) in SHARES {
                let labels = vec![database.clone(), Label::new("quantile", label)];
                metrics::gauge!(*name, labels).set(part(now).quantile(share) as f64 * one);
            }
        }
    }
}

fn set<S: 'static>(table: Table<S, f64>, from: &S, labels: &[Label]) {
    for (name, unit, what, value) in table {
        metrics::describe_gauge!(*name, *unit, *what);
        metrics::gauge!(*name, labels.to_vec()).set(value(from));
    }
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
