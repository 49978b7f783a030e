//! Sizes, shapes and counts of a database.

use super::Inner;
use super::histogram::{Histogram, Tally, nanoseconds};
use super::point::ReadStats;
use crate::compaction::Space;
use crate::error::Error;
use crate::sync::atomic::{AtomicU64, Ordering};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Counted since the database was opened.
#[derive(Debug, Default)]
pub(super) struct Counters {
    operations: AtomicU64,
    /// Bytes of operations as logged.
    written_bytes: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) flushes: AtomicU64,
    pub(super) flushed_bytes: AtomicU64,
    pub(super) ingested_bytes: AtomicU64,
    pub(super) compactions: AtomicU64,
    pub(super) compacted_bytes: AtomicU64,
    pub(super) moves: AtomicU64,
    pub(super) drops: AtomicU64,
    stalls: AtomicU64,
    stalled_ns: AtomicU64,
    pub(super) flush_times: Tally,
    pub(super) compaction_times: Tally,
    pub(super) sync_times: Tally,
    stall_times: Tally,
    /// Operations of batches, but for those of one operation that were written without one.
    pub(super) batches: Tally,
    /// Entries that the flush under way has passed.
    pub(super) flush_passed: AtomicU64,
    /// Delay that was ordered and is still too short to sleep for.
    saved_up_ns: AtomicU64,
}

/// Delays are saved up until they make this much.
const WORTH_SLEEPING_NS: u64 = 1_000_000;

impl Counters {
    /// Under the writer's lock, so that nobody else adds.
    pub(super) fn written(&self, operations: u64, bytes: u64) {
        let add =
            |sum: &AtomicU64, n| sum.store(sum.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        add(&self.operations, operations);
        add(&self.written_bytes, bytes);
    }

    /// Bytes of operations as logged, so far.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn stalled(&self, time: Duration) {
        let ns = nanoseconds(time);
        self.stalls.fetch_add(1, Ordering::Relaxed);
        self.stalled_ns.fetch_add(ns, Ordering::Relaxed);
        self.stall_times.record(ns);
    }

    /// Adds to the delay that is due, unless it would be worth sleeping for then.
    pub(super) fn save_up_little(&self, ns: u64) -> bool {
        let due = self.saved_up_ns.load(Ordering::Relaxed).saturating_add(ns);
        let is_little = due < WORTH_SLEEPING_NS;
        if is_little {
            self.saved_up_ns.fetch_add(ns, Ordering::Relaxed);
        }
        is_little
    }

    /// Adds to the delay that is due; gives it out once it is worth sleeping for.
    pub(super) fn save_up_delay(&self, ns: u64) -> Duration {
        let due = self.saved_up_ns.fetch_add(ns, Ordering::Relaxed) + ns;
        if due < WORTH_SLEEPING_NS {
            return Duration::ZERO;
        }
        self.saved_up_ns.store(0, Ordering::Relaxed);
        Duration::from_nanos(due)
    }
}

/// One level of a keyspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LevelStats {
    /// Sorted runs.
    pub runs: usize,
    /// Segments in them.
    pub segments: usize,
    /// Length of their files, in bytes.
    pub file_bytes: u64,
    /// Entries, tombstones and old versions included.
    pub entries: u64,
    /// Point tombstones among them.
    pub tombstones: u64,
    /// Bytes of keys and values.
    pub raw_bytes: u64,
    /// Bytes of data blocks.
    pub block_bytes: u64,
    /// Bytes of padding in them.
    pub padding_bytes: u64,
}

/// One keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyspaceStats {
    /// Its name.
    pub name: String,
    /// Its levels, newest first.
    pub levels: Vec<LevelStats>,
    /// Estimated bytes that compactions must rewrite before nothing is due while writes come in.
    pub compaction_debt_bytes: u64,
    /// Sorted runs that a range read merges at most, memtables not counted: its read amplification.
    pub range_runs: usize,
    /// Estimated bytes of the segments that newer ones supersede.
    pub garbage_bytes: u64,
    /// Value segments: see
    /// [`KeyspaceOptions::separate_values_above`](crate::KeyspaceOptions::separate_values_above).
    pub value_segments: usize,
    /// Bytes of values in them.
    pub value_bytes: u64,
    /// Of these bytes, those that entries refer to; old versions too.
    pub referenced_value_bytes: u64,
}

impl KeyspaceStats {
    /// How many times as large the segments are as what lives in them, by the estimate of
    /// `garbage_bytes`; 1 if there are none. While the key map is not resident as a whole, every
    /// newer entry is taken to supersede an older one, so for data that is only added to this is
    /// then too much.
    #[must_use]
    pub fn space_amplification(&self) -> f64 {
        let total: u64 = self.levels.iter().map(|level| level.file_bytes).sum();
        total.max(1) as f64 / total.saturating_sub(self.garbage_bytes).max(1) as f64
    }
}

/// The key map: from a key's hash to the block that holds the key, in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct KeyMapStats {
    /// Its parts. Each is in memory as a whole or not at all.
    pub shards: u32,
    /// Those in memory.
    pub resident_shards: u32,
    /// Entries in them: one for each key in each segment that has it.
    pub entries: u64,
    /// Bytes of memory, everything included.
    pub bytes: u64,
    /// The share of their slots that is taken, 0 to 1.
    pub load: f64,
    /// Entries that are not in the first place where they are looked for.
    pub displaced: u64,
    /// Entries that found no room among the places where they are looked for.
    pub spilled: u64,
    /// Shards that were built anew, since the database was opened.
    pub rebuilds: u64,
    /// Shards given up for lack of room or because of damage, since the database was opened.
    pub dropped: u64,
}

impl KeyMapStats {
    /// Bytes of memory for each entry; 0 if there are none.
    #[must_use]
    pub fn bytes_per_entry(&self) -> f64 {
        if self.entries == 0 { 0.0 } else { self.bytes as f64 / self.entries as f64 }
    }
}

/// How long things took, and how large they were, since the database was opened. Times are in
/// nanoseconds of the database's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Histograms {
    /// Flushes that ended well.
    pub flush_ns: Histogram,
    /// Compactions that rewrote something and ended well.
    pub compaction_ns: Histogram,
    /// Times that a write was held back.
    pub stall_ns: Histogram,
    /// Syncs of the log, failed ones too.
    pub sync_ns: Histogram,
    /// Operations in each batch; a write without a batch is one of one operation.
    pub batch_operations: Histogram,
    /// Point reads, if [`Builder::read_histograms`](crate::Builder::read_histograms) is on: one for each
    /// key of a `multi_get`, and what a closure given to `get_with` takes included.
    pub get_ns: Histogram,
}

/// A database, as of one moment. Counts are since it was opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Per keyspace, by name.
    pub keyspaces: Vec<KeyspaceStats>,
    /// Memory in memtables, in bytes.
    pub memtable_bytes: u64,
    /// Memtables, the active one included.
    pub memtables: usize,
    /// Bytes in the block cache.
    pub cache_bytes: u64,
    /// Cache lookups that found their block.
    pub cache_hits: u64,
    /// Cache lookups that did not.
    pub cache_misses: u64,
    /// The key map.
    pub key_map: KeyMapStats,
    /// What point reads did.
    pub reads: ReadStats,
    /// Segment files open now.
    pub open_files: usize,
    /// Snapshots alive.
    pub snapshots: usize,
    /// The sequence number of the last write.
    pub last_seqno: u64,
    /// Operations written.
    pub operations: u64,
    /// Bytes of operations written, as logged.
    pub written_bytes: u64,
    /// Bytes that flushes wrote.
    pub flushed_bytes: u64,
    /// Bytes of segments that came from files or sorted entries.
    pub ingested_bytes: u64,
    /// Bytes that compactions wrote.
    pub compacted_bytes: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Compactions done that rewrote something.
    pub compactions: u64,
    /// Compactions done that only moved segments down.
    pub moves: u64,
    /// Segments dropped because of age or the cap on the files.
    pub drops: u64,
    /// Syncs of the log.
    pub syncs: u64,
    /// Times that a write was held back.
    pub stalls: u64,
    /// How long in all.
    pub stalled: Duration,
    /// How long things took, and how large they were.
    pub histograms: Histograms,
    /// Times that a listener or a progress callback panicked.
    pub callback_panics: u64,
    /// Events that no listener heard of, because too many stalls waited for it.
    pub events_left_out: u64,
    /// The failure of the last flush or compaction, until one succeeds; or what kept the last compaction
    /// that succeeded from merging, filtering or moving a value, which it left as it was.
    pub background_error: Option<Error>,
    /// Segments that compactions found damaged and leave alone, with the damage.
    pub quarantined: Vec<Error>,
    /// Why writes are refused, if they are.
    pub poisoned: Option<String>,
    /// What opening found that was not as it should be and could be dealt with.
    pub recovery_notices: Vec<String>,
}

impl Stats {
    /// Length of all live segment files, in bytes.
    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        self.levels().map(|level| level.file_bytes).sum()
    }

    /// The share of the data blocks that is padding, 0 to 1.
    #[must_use]
    pub fn padding_ratio(&self) -> f64 {
        let padding: u64 = self.levels().map(|level| level.padding_bytes).sum();
        let blocks: u64 = self.levels().map(|level| level.block_bytes).sum();
        if blocks == 0 { 0.0 } else { padding as f64 / blocks as f64 }
    }

    /// Bytes written to the log and to segments for each byte of operations, or 0 before any. What came
    /// from files or sorted entries counts as it came, and as written once.
    #[must_use]
    pub fn write_amplification(&self) -> f64 {
        let came = self.written_bytes + self.ingested_bytes;
        let written = came + self.flushed_bytes + self.compacted_bytes;
        if came == 0 { 0.0 } else { written as f64 / came as f64 }
    }

    fn levels(&self) -> impl Iterator<Item = &LevelStats> {
        self.keyspaces.iter().flat_map(|keyspace| &keyspace.levels)
    }
}

/// Bytes for people: three significant figures and a binary unit.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut n = bytes as f64;
    let mut unit = 0;
    while n >= 1024.0 && unit + 1 < UNITS.len() {
        n /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{n:.1} {}", UNITS[unit]) }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for keyspace in &self.keyspaces {
            writeln!(f, "keyspace {}", keyspace.name)?;
            writeln!(
                f,
                "  {:<6} {:>5} {:>9} {:>11} {:>12} {:>11} {:>8}",
                "level", "runs", "segments", "bytes", "entries", "tombstones", "padding"
            )?;
            for (number, level) in keyspace.levels.iter().enumerate() {
                if level.segments == 0 {
                    continue;
                }
                writeln!(
                    f,
                    "  {:<6} {:>5} {:>9} {:>11} {:>12} {:>11} {:>7.1}%",
                    number,
                    level.runs,
                    level.segments,
                    size(level.file_bytes),
                    level.entries,
                    level.tombstones,
                    100.0 * level.padding_bytes as f64 / level.block_bytes.max(1) as f64,
                )?;
            }
            writeln!(
                f,
                "  about {} superseded, space amplified {:.2} times; ranges merge {} runs",
                size(keyspace.garbage_bytes),
                keyspace.space_amplification(),
                keyspace.range_runs
            )?;
            if keyspace.value_segments > 0 {
                let (all, used) = (keyspace.value_bytes, keyspace.referenced_value_bytes);
                let count = keyspace.value_segments;
                writeln!(f, "  {} of values in {count} segments, {} used", size(all), size(used))?;
            }
            if keyspace.compaction_debt_bytes > 0 {
                writeln!(f, "  compaction is {} behind", size(keyspace.compaction_debt_bytes))?;
            }
        }
        writeln!(f, "segments       {}", size(self.segment_bytes()))?;
        writeln!(f, "padding        {:.1}% of the data blocks", 100.0 * self.padding_ratio())?;
        writeln!(f, "memtables      {} in {}", size(self.memtable_bytes), self.memtables)?;
        writeln!(
            f,
            "block cache    {}, {} hits, {} misses",
            size(self.cache_bytes),
            self.cache_hits,
            self.cache_misses
        )?;
        let map = &self.key_map;
        writeln!(
            f,
            "key map        {} for {} entries, {:.2} bytes each; load {:.3}, {:.1}% displaced, {} of {} \
             shards in memory",
            size(map.bytes),
            map.entries,
            map.bytes_per_entry(),
            map.load,
            100.0 * map.displaced as f64 / map.entries.max(1) as f64,
            map.resident_shards,
            map.shards
        )?;
        let reads = &self.reads;
        writeln!(
            f,
            "point reads    {}, {} of them from memtables, {} without the key map",
            reads.gets, reads.memtable_hits, reads.unmapped
        )?;
        writeln!(
            f,
            "               {:.4} blocks each by the key map; {} read in vain, {} cached",
            reads.blocks_per_get(),
            reads.wasted_blocks,
            reads.cached_blocks
        )?;
        writeln!(f, "open files     {}", self.open_files)?;
        writeln!(f, "snapshots      {}", self.snapshots)?;
        writeln!(
            f,
            "written        {} operations, {}, amplified {:.2} times",
            self.operations,
            size(self.written_bytes),
            self.write_amplification()
        )?;
        writeln!(
            f,
            "background     {} flushes, {} compactions, {} moves",
            self.flushes, self.compactions, self.moves
        )?;
        writeln!(f, "stalls         {}, {:?} in all", self.stalls, self.stalled)?;
        let h = &self.histograms;
        let times = [
            ("flush", &h.flush_ns),
            ("compaction", &h.compaction_ns),
            ("stall", &h.stall_ns),
            ("sync", &h.sync_ns),
            ("get", &h.get_ns),
        ];
        for (what, times) in times.into_iter().filter(|(_, times)| times.count() > 0) {
            let time = Duration::from_nanos;
            writeln!(
                f,
                "each {what:<10}{:.1?} in the middle, {:.1?} for 1 in 100, {:.1?} at most",
                time(times.p50()),
                time(times.p99()),
                time(times.max())
            )?;
        }
        if let Some(error) = &self.background_error {
            writeln!(f, "background work failed: {error}")?;
        }
        for error in &self.quarantined {
            writeln!(f, "left alone: {error}")?;
        }
        if let Some(reason) = &self.poisoned {
            writeln!(f, "writes are refused: {reason}")?;
        }
        for notice in &self.recovery_notices {
            writeln!(f, "at open: {notice}")?;
        }
        Ok(())
    }
}

impl Inner {
    fn histograms(&self) -> Histograms {
        let c = &self.counters;
        // While others write, this may be a batch off.
        let operations = c.operations.load(Ordering::Relaxed);
        let mut batch_operations = c.batches.load();
        batch_operations.record_many(1, operations.saturating_sub(batch_operations.sum()));
        let mut get_ns = Histogram::default();
        for stripe in self.read_times.iter().flatten() {
            get_ns.merge(&stripe.load());
        }
        Histograms {
            flush_ns: c.flush_times.load(),
            compaction_ns: c.compaction_times.load(),
            stall_ns: c.stall_times.load(),
            sync_ns: c.sync_times.load(),
            batch_operations,
            get_ns,
        }
    }

    pub(super) fn stats(&self) -> Stats {
        let state = self.state.load_full();
        let names: Vec<_> = self.keyspaces.lock().values().cloned().collect();
        let mut keyspaces: Vec<KeyspaceStats> = names
            .iter()
            .filter_map(|core| {
                let tree = state.version.trees.get(&core.id)?;
                let levels = tree.levels.iter().map(|runs| {
                    let mut level = LevelStats { runs: runs.len(), ..LevelStats::default() };
                    for segment in runs.iter().flat_map(|run| &run.segments) {
                        let properties = segment.reader().properties();
                        level.segments += 1;
                        level.file_bytes += segment.meta.file_len;
                        level.entries += segment.meta.entries;
                        level.tombstones += segment.meta.tombstones;
                        level.raw_bytes += properties.raw_bytes;
                        let blocks = segment.reader().data_bytes();
                        level.block_bytes += blocks;
                        level.padding_bytes += blocks.saturating_sub(properties.stored_bytes);
                    }
                    level
                });
                let listed = tree.segments().flat_map(|segment| segment.values());
                let values: BTreeMap<_, _> = listed.map(|(used, file)| (used.id, file)).collect();
                let (all, used) = values.values().fold((0, 0), |(all, used), file| {
                    let (bytes, referenced) = file.bytes();
                    (all + bytes, used + referenced)
                });
                Some(KeyspaceStats {
                    name: core.name.clone(),
                    levels: levels.collect(),
                    value_segments: values.len(),
                    value_bytes: all,
                    referenced_value_bytes: used,
                    compaction_debt_bytes: self.strategy.debt(tree, self.garbage_known()),
                    range_runs: tree.runs().count(),
                    garbage_bytes: Space::of(tree, self.garbage_known()).garbage,
                })
            })
            .collect();
        keyspaces.sort_by(|a, b| a.name.cmp(&b.name));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let reads = ReadStats::from_sums(self.reads.sums());
        let (hits, misses) = self.home.cache.lookups();
        // Point reads through the key map count for themselves. A sum is read before the other.
        let cache_hits = hits + reads.cached_blocks;
        let cache_misses = misses + reads.blocks.saturating_sub(reads.cached_blocks);
        let background = self.background.lock();
        let c = &self.counters;
        let failed = background.flush_error.as_ref();
        let failed = failed.or(background.compaction_error.as_ref());
        let failed = failed.or(background.left_as_it_was.as_ref()).cloned();
        drop(background);
        let mut quarantined: Vec<_> = self.quarantined.lock().clone().into_iter().collect();
        quarantined.sort_by_key(|(id, _)| *id);
        let map = self.keymap.stats();
        let key_map = KeyMapStats {
            shards: crate::keymap::SHARDS as u32,
            resident_shards: map.resident,
            entries: map.entries,
            bytes: map.table_bytes + map.spill_bytes + map.extent_bytes,
            load: map.load,
            displaced: map.displaced,
            spilled: map.spilled,
            rebuilds: map.rebuilds,
            dropped: map.dropped,
        };
        Stats {
            key_map,
            reads,
            keyspaces,
            memtable_bytes: state.memtables().map(|s| s.table.allocated_bytes() as u64).sum(),
            memtables: state.memtables().count(),
            cache_bytes: self.home.cache.bytes(),
            cache_hits,
            cache_misses,
            open_files: self.home.files.open_files(),
            snapshots: self.snapshots.len(),
            last_seqno: self.visible.load(Ordering::Acquire),
            operations: count(&c.operations),
            written_bytes: count(&c.written_bytes),
            flushed_bytes: count(&c.flushed_bytes),
            ingested_bytes: count(&c.ingested_bytes),
            compacted_bytes: count(&c.compacted_bytes),
            flushes: count(&c.flushes),
            compactions: count(&c.compactions),
            moves: count(&c.moves),
            drops: count(&c.drops),
            syncs: count(&c.syncs),
            stalls: count(&c.stalls),
            stalled: Duration::from_nanos(count(&c.stalled_ns)),
            histograms: self.histograms(),
            callback_panics: self.events.panics(),
            events_left_out: self.events.left_out(),
            background_error: failed,
            quarantined: quarantined.into_iter().map(|(_, error)| error).collect(),
            poisoned: self.poisoned.lock().clone(),
            recovery_notices: self.recovery_notices.clone(),
        }
    }
}
