//! `ashlar verify`: every byte of a database, or of one segment.

use crate::args::Verify;
use crate::bytes::escape;
use crate::failure::Failure;
use crate::open;
use crate::output::{Output, count, insert_bytes};
use crate::progress::Progress;
use ashlardb::{Damage, Error, SegmentReader, VerifyReport};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// A segment that was read from end to end.
struct Checked {
    file: PathBuf,
    /// The keyspace it belongs to, if it was found through its database.
    keyspace: Option<String>,
    report: VerifyReport,
}

pub fn run(args: &Verify, json: bool) -> Result<(), Failure> {
    let reports = match check(args) {
        Ok(reports) => reports,
        // What is too damaged to be opened is damaged all the same.
        Err(Failure::Database(error @ Error::Corruption { .. })) => {
            if json {
                let mut output = Output::new();
                output.line(json!({ "damaged": true, "error": error.to_string() }))?;
                output.finish()?;
            }
            return Err(Failure::Damaged(error.to_string()));
        }
        Err(failure) => return Err(failure),
    };

    let places: u64 = reports.iter().map(|r| r.report.damage.len() as u64).sum();
    let mut output = Output::new();
    if json {
        let segments: Vec<Value> = reports.iter().map(report_json).collect();
        output.line(json!({ "damaged": places > 0, "segments": segments }))?;
    } else {
        for line in reports.iter().flat_map(report_lines) {
            output.line(line)?;
        }
        if places == 0 {
            output.line(format_args!(
                "{} read, no damage found",
                count(reports.len() as u64, "segment")
            ))?;
        }
    }
    output.finish()?;
    if places > 0 {
        return Err(Failure::Damaged(format!(
            "{} damaged. All other keys can be read: `ashlar export` with --from and --to around \
             the damage saves them, or restore the files named from a copy",
            count(places, "place")
        )));
    }
    Ok(())
}

fn check(args: &Verify) -> Result<Vec<Checked>, Failure> {
    if args.path.is_file() {
        let segment = SegmentReader::open(&args.path)?;
        let progress = Progress::bytes(Some(segment.file_len()));
        let report = segment.verify_with(&mut |done, total| progress.set(done, total))?;
        return Ok(vec![Checked { file: args.path.clone(), keyspace: None, report }]);
    }
    let db = open::existing(&args.path)?;
    let progress = Progress::bytes(Some(0));
    let reports = db.verify(&mut |done, total| progress.set(done, total))?;
    let checked = reports.into_iter().map(|segment| Checked {
        file: segment.file,
        keyspace: Some(segment.keyspace),
        report: segment.report,
    });
    Ok(checked.collect())
}

fn report_json(segment: &Checked) -> Value {
    let damage: Vec<Value> = segment
        .report
        .damage
        .iter()
        .map(|damage| {
            let mut place = Map::new();
            place.insert("offset".into(), damage.offset.into());
            place.insert("block".into(), damage.block.into());
            place.insert("what".into(), damage.what.clone().into());
            if let Some((above, up_to)) = &damage.key_range {
                insert_bytes(&mut place, "above_key", above);
                insert_bytes(&mut place, "up_to_key", up_to);
            }
            Value::Object(place)
        })
        .collect();
    json!({
        "file": segment.file.to_string_lossy(),
        "keyspace": segment.keyspace,
        "sound_blocks": segment.report.blocks,
        "sound_entries": segment.report.entries,
        "damage": damage,
    })
}

fn report_lines(segment: &Checked) -> Vec<String> {
    let place = |damage: &Damage| {
        let keys = damage.key_range.as_ref().map_or(String::new(), |(above, up_to)| {
            format!("; it affects the keys above {} up to {}", escape(above), escape(up_to))
        });
        format!(
            "{}: damaged at byte {}: {}{keys}",
            segment.file.display(),
            damage.offset,
            damage.what
        )
    };
    segment.report.damage.iter().map(place).collect()
}
