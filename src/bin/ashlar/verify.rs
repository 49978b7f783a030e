//! `ashlar verify`: every byte of a database, or of one segment. Changes neither.

use crate::args::Verify;
use crate::bytes::escape;
use crate::failure::Failure;
use crate::output::{Output, count, insert_bytes};
use crate::progress::Progress;
use ashlardb::{DamagedPlace, DatabaseReport, Db, SegmentReader};
use serde_json::{Map, Value, json};
use std::path::Path;

pub fn run(args: &Verify, json: bool) -> Result<(), Failure> {
    if args.path.is_file() {
        return segment(&args.path, json);
    }
    let progress = Progress::bytes(Some(0));
    let report = Db::builder(&args.path).verify(&mut |done, total| progress.set(done, total))?;
    drop(progress);
    let mut output = Output::new();
    if json {
        output.line(report_json(&report))?;
    } else {
        for place in &report.damage {
            output.line(place_line(place))?;
        }
        for notice in &report.notices {
            output.line(format_args!("note: {notice}"))?;
        }
        if report.is_sound() {
            output.line(format_args!(
                "{} and {} read, no damage found",
                count(report.segments.len() as u64, "segment"),
                count(report.logs.len() as u64, "log")
            ))?;
        }
    }
    output.finish()?;
    damaged(
        report.damage.len(),
        "`ashlar repair` saves everything else into a new database, or restore the files named \
         from a copy",
    )
}

/// Verifies a single segment file.
fn segment(path: &Path, json: bool) -> Result<(), Failure> {
    let segment = SegmentReader::open(path)?;
    let progress = Progress::bytes(Some(segment.file_len()));
    let report = segment.verify_with(&mut |done, total| progress.set(done, total))?;
    drop(progress);
    let mut output = Output::new();
    let file = path.to_string_lossy();
    if json {
        let damage: Vec<Value> = report
            .damage
            .iter()
            .map(|damage| {
                place_json(damage.offset, damage.block, damage.key_range.as_ref(), &damage.what)
            })
            .map(Value::Object)
            .collect();
        let segment = json!({
            "file": file,
            "keyspace": null,
            "sound_blocks": report.blocks,
            "sound_entries": report.entries,
            "damage": damage,
        });
        output.line(json!({ "damaged": !report.is_sound(), "segments": [segment] }))?;
    } else {
        for damage in &report.damage {
            let keys = keys(damage.key_range.as_ref());
            output.line(format_args!(
                "{file}: damaged at byte {}: {}{keys}",
                damage.offset, damage.what
            ))?;
        }
        if report.is_sound() {
            output.line("1 segment read, no damage found")?;
        }
    }
    output.finish()?;
    damaged(report.damage.len(), "all other keys can be read")
}

fn damaged(places: usize, advice: &str) -> Result<(), Failure> {
    if places == 0 {
        return Ok(());
    }
    Err(Failure::Damaged(format!("{} damaged: {advice}", count(places as u64, "place"))))
}

fn keys(range: Option<&(Vec<u8>, Vec<u8>)>) -> String {
    range.map_or(String::new(), |(above, up_to)| {
        format!("; it affects the keys above {} up to {}", escape(above), escape(up_to))
    })
}

/// A damaged place for people.
pub fn place_line(place: &DamagedPlace) -> String {
    let keys = keys(place.key_range.as_ref());
    let keyspace = match &place.keyspace {
        Some(name) if !keys.is_empty() => format!(" of keyspace {name:?}"),
        _ => String::new(),
    };
    let (file, offset, what) = (place.file.display(), place.offset, &place.what);
    format!("{file}: damaged at byte {offset}: {what}{keys}{keyspace}")
}

/// Adds a range of keys to an object.
pub fn insert_range(object: &mut Map<String, Value>, range: Option<&(Vec<u8>, Vec<u8>)>) {
    if let Some((above, up_to)) = range {
        insert_bytes(object, "above_key", above);
        insert_bytes(object, "up_to_key", up_to);
    }
}

fn place_json(
    offset: u64,
    block: Option<u32>,
    range: Option<&(Vec<u8>, Vec<u8>)>,
    what: &str,
) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("offset".into(), offset.into());
    object.insert("block".into(), block.into());
    object.insert("what".into(), what.into());
    insert_range(&mut object, range);
    object
}

/// A damaged place as JSON.
pub fn damage_json(place: &DamagedPlace) -> Map<String, Value> {
    let mut object = place_json(place.offset, place.block, place.key_range.as_ref(), &place.what);
    object.insert("file".into(), place.file.to_string_lossy().into());
    object.insert("keyspace".into(), place.keyspace.clone().into());
    object
}

fn report_json(report: &DatabaseReport) -> Value {
    let segments = report.segments.iter().map(|segment| {
        let damage = segment.report.damage.iter().map(|damage| {
            let range = damage.key_range.as_ref();
            Value::Object(place_json(damage.offset, damage.block, range, &damage.what))
        });
        json!({
            "file": segment.file.to_string_lossy(),
            "keyspace": segment.keyspace,
            "sound_blocks": segment.report.blocks,
            "sound_entries": segment.report.entries,
            "damage": damage.collect::<Vec<_>>(),
        })
    });
    let values = report.value_segments.iter().map(|values| {
        json!({
            "file": values.file.to_string_lossy(),
            "keyspace": values.keyspace,
            "sound_values": values.values,
        })
    });
    let logs = report.logs.iter().map(|log| {
        json!({
            "file": log.file.to_string_lossy(),
            "sound_records": log.records,
            "sound_bytes": log.bytes,
        })
    });
    let damage = report.damage.iter().map(|place| Value::Object(damage_json(place)));
    json!({
        "damaged": !report.is_sound(),
        "damage": damage.collect::<Vec<_>>(),
        "notices": report.notices,
        "segments": segments.collect::<Vec<_>>(),
        "value_segments": values.collect::<Vec<_>>(),
        "logs": logs.collect::<Vec<_>>(),
    })
}
