//! What ashlardb is to reach beside its peers: one small table.
//!
//! A ratio is always "how many times better": of rates ashlardb's by theirs, of latencies, times and bytes
//! theirs by ashlardb's. So every row asks for a ratio that is at least something.

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    Rate,
    /// Of the writer beside the reader.
    WriterRate,
    P99,
    /// Bytes written to disk, settling included, for each byte put.
    WriteAmplification,
    /// Time to the first value.
    Seconds,
    DiskBytes,
    /// The most of all workloads on one store, less the key map.
    PeakMemory,
}

/// With whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The better of RocksDB and fjall.
    BestLsm,
    Lmdb,
    /// The best of all others; where it writes, of those whose writes promise as much.
    Best,
    /// The same system calls and nothing else, measured by turns with ashlardb.
    Raw,
}

pub struct Target {
    pub workload: &'static str,
    pub metric: Metric,
    pub peer: Peer,
    pub at_least: f64,
    /// Holds for this compression alone.
    pub compression: Option<&'static str>,
    /// Holds with a cache that holds the data alone.
    pub cached: bool,
}

const fn target(workload: &'static str, metric: Metric, peer: Peer, at_least: f64) -> Target {
    Target { workload, metric, peer, at_least, compression: None, cached: false }
}

use Metric::{DiskBytes, P99, PeakMemory, Rate, Seconds, WriteAmplification, WriterRate};
use Peer::{Best, BestLsm, Lmdb, Raw};

pub const TARGETS: &[Target] = &[
    target("fillrandom", Rate, BestLsm, 2.5),
    target("overwrite", Rate, BestLsm, 2.5),
    target("deleterandom", Rate, BestLsm, 2.0),
    target("fillseq", Rate, BestLsm, 2.0),
    target("fillbatch", Rate, BestLsm, 2.5),
    target("fillsync1", Rate, Raw, 0.95),
    target("fillsync1", Rate, Best, 1.0),
    target("fillsync4", Rate, Best, 2.5),
    target("readrandom", Rate, BestLsm, 4.0),
    target("readrandom", Rate, Lmdb, 1.3),
    target("readmissing", Rate, Best, 3.0),
    target("readhot", Rate, Lmdb, 1.3),
    target("ycsb-c", Rate, Lmdb, 1.3),
    target("readwhilewriting", Rate, Lmdb, 1.2),
    target("readwhilewriting-free", Rate, BestLsm, 4.0),
    target("readwhilewriting-free", WriterRate, BestLsm, 1.3),
    target("seekrandom10", Rate, BestLsm, 4.0),
    target("seekrandom100", Rate, BestLsm, 4.0),
    Target { cached: true, ..target("seekrandom10", Rate, Lmdb, 1.1) },
    target("readseq", Rate, BestLsm, 3.5),
    target("readreverse", Rate, BestLsm, 3.5),
    target("ycsb-a", Rate, Best, 2.0),
    target("ycsb-f", Rate, Best, 2.0),
    target("ycsb-b", Rate, Best, 1.3),
    target("ycsb-d", Rate, Best, 1.1),
    target("ycsb-e", Rate, BestLsm, 5.0),
    target("readrandom", P99, BestLsm, 1.0),
    target("fillrandom", P99, BestLsm, 1.0),
    target("fillrandom", WriteAmplification, BestLsm, 1.0 / 1.1),
    target("overwrite", WriteAmplification, BestLsm, 1.0 / 0.8),
    target("fillrandom", PeakMemory, BestLsm, 1.0),
    target("open", Seconds, BestLsm, 1.0),
    target("open-after-kill", Seconds, BestLsm, 1.0),
    Target { compression: Some("none"), ..target("fillrandom", DiskBytes, BestLsm, 1.0 / 1.2) },
    Target { compression: Some("none"), ..target("overwrite", DiskBytes, BestLsm, 1.0 / 1.2) },
    Target { compression: Some("lz4"), ..target("fillrandom", DiskBytes, BestLsm, 1.0 / 1.1) },
    Target { compression: Some("lz4"), ..target("overwrite", DiskBytes, BestLsm, 1.0 / 1.1) },
];
