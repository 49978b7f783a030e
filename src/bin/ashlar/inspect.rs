//! `ashlar stats`, `compact` and `keyspace`: a database as a whole.

use crate::args::{self, Compact, Database, Named};
use crate::bytes::escape;
use crate::failure::Failure;
use crate::open;
use crate::output::{Output, answer};
use crate::plot;
use crate::point::done;
use ashlardb::{Error, Histogram, KeyspaceStats, Stats};
use serde_json::{Value, json};

pub fn stats(args: &args::Stats, json: bool) -> Result<(), Failure> {
    let db = open::to_read(&args.db)?;
    // It fills in the background; what is shown should not depend on how far that is.
    db.fill_key_map();
    let (stats, segments) = (db.stats(), db.segments());
    // With its bar, if the map had no room for all.
    drop(db);
    if let Some(path) = &args.plot {
        let drawing = plot::svg(&segments);
        std::fs::write(path, drawing).map_err(|e| Failure::file("write", path, &e))?;
    }
    answer(json, &stats_json(&stats), stats.to_string().trim_end())
}

fn stats_json(stats: &Stats) -> Value {
    json!({
        "keyspaces": stats.keyspaces.iter().map(keyspace_json).collect::<Vec<_>>(),
        "segment_bytes": stats.segment_bytes(),
        "padding_ratio": stats.padding_ratio(),
        "memtable_bytes": stats.memtable_bytes,
        "memtables": stats.memtables,
        "cache_bytes": stats.cache_bytes,
        "cache_hits": stats.cache_hits,
        "cache_misses": stats.cache_misses,
        "key_map": {
            "shards": stats.key_map.shards,
            "resident_shards": stats.key_map.resident_shards,
            "entries": stats.key_map.entries,
            "bytes": stats.key_map.bytes,
            "bytes_per_entry": stats.key_map.bytes_per_entry(),
            "load": stats.key_map.load,
            "displaced": stats.key_map.displaced,
            "spilled": stats.key_map.spilled,
            "rebuilds": stats.key_map.rebuilds,
            "dropped": stats.key_map.dropped,
        },
        "point_reads": {
            "gets": stats.reads.gets,
            "memtable_hits": stats.reads.memtable_hits,
            "unmapped": stats.reads.unmapped,
            "candidates": stats.reads.candidates,
            "blocks": stats.reads.blocks,
            "cached_blocks": stats.reads.cached_blocks,
            "wasted_blocks": stats.reads.wasted_blocks,
        },
        "open_files": stats.open_files,
        "snapshots": stats.snapshots,
        "last_seqno": stats.last_seqno,
        "operations": stats.operations,
        "written_bytes": stats.written_bytes,
        "flushed_bytes": stats.flushed_bytes,
        "ingested_bytes": stats.ingested_bytes,
        "compacted_bytes": stats.compacted_bytes,
        "write_amplification": stats.write_amplification(),
        "flushes": stats.flushes,
        "compactions": stats.compactions,
        "moves": stats.moves,
        "drops": stats.drops,
        "syncs": stats.syncs,
        "stalls": stats.stalls,
        "stalled_ms": u64::try_from(stats.stalled.as_millis()).unwrap_or(u64::MAX),
        "flush_ns": histogram_json(&stats.histograms.flush_ns),
        "compaction_ns": histogram_json(&stats.histograms.compaction_ns),
        "stall_ns": histogram_json(&stats.histograms.stall_ns),
        "sync_ns": histogram_json(&stats.histograms.sync_ns),
        "background_error": stats.background_error.as_ref().map(Error::to_string),
        "quarantined": stats.quarantined.iter().map(Error::to_string).collect::<Vec<_>>(),
        "poisoned": stats.poisoned,
        "recovery_notices": stats.recovery_notices,
    })
}

fn histogram_json(histogram: &Histogram) -> Value {
    json!({
        "count": histogram.count(),
        "mean": histogram.mean(),
        "p50": histogram.p50(),
        "p99": histogram.p99(),
        "p999": histogram.p999(),
        "max": histogram.max(),
    })
}

fn keyspace_json(keyspace: &KeyspaceStats) -> Value {
    let levels = keyspace.levels.iter().map(|level| {
        json!({
            "runs": level.runs,
            "segments": level.segments,
            "file_bytes": level.file_bytes,
            "entries": level.entries,
            "tombstones": level.tombstones,
            "raw_bytes": level.raw_bytes,
            "block_bytes": level.block_bytes,
            "padding_bytes": level.padding_bytes,
        })
    });
    json!({
        "name": keyspace.name,
        "levels": levels.collect::<Vec<_>>(),
        "compaction_debt_bytes": keyspace.compaction_debt_bytes,
        "range_runs": keyspace.range_runs,
        "garbage_bytes": keyspace.garbage_bytes,
        "space_amplification": keyspace.space_amplification(),
        "value_segments": keyspace.value_segments,
        "value_bytes": keyspace.value_bytes,
        "referenced_value_bytes": keyspace.referenced_value_bytes,
    })
}

pub fn compact(args: &Compact, json: bool) -> Result<(), Failure> {
    let db = open::existing(&args.db)?;
    let names = match &args.keyspace {
        Some(name) => vec![name.clone()],
        None => db.keyspaces(),
    };
    for name in &names {
        open::keyspace(&db, Some(name))?.compact_range::<&[u8]>(..)?;
    }
    db.close()?;
    done(json)
}

pub fn list_keyspaces(args: &Database, json: bool) -> Result<(), Failure> {
    let db = open::to_read(&args.db)?;
    let names = db.keyspaces();
    let mut output = Output::new();
    if json {
        output.line(json!(names))?;
    } else {
        for name in &names {
            output.line(escape(name.as_bytes()))?;
        }
    }
    output.finish()
}

pub fn create_keyspace(args: &Named, json: bool) -> Result<(), Failure> {
    let db = open::or_create(&args.db)?;
    db.keyspace(&args.name)?;
    db.close()?;
    done(json)
}

pub fn drop_keyspace(args: &Named, json: bool) -> Result<(), Failure> {
    let db = open::existing(&args.db)?;
    if !db.keyspaces().contains(&args.name) {
        return Err(Error::KeyspaceNotFound { name: args.name.clone() }.into());
    }
    db.drop_keyspace(&args.name)?;
    db.close()?;
    done(json)
}
