//! `ashlar checkpoint`, `backup`, `backups` and `restore`: copies of a database.

use crate::args::{Backup, BackupList, Checkpoint, Restore};
use crate::failure::Failure;
use crate::open;
use crate::output::{Output, answer, count, human_bytes};
use crate::progress::Progress;
use crate::verify::{damage_json, place_line};
use ashlardb::{BackupInfo, Backups, DamagedPlace, Error};
use serde_json::{Map, Value, json};

pub fn checkpoint(args: &Checkpoint, json: bool) -> Result<(), Failure> {
    let db = open::existing(&args.db)?;
    let progress = Progress::bytes(Some(0));
    db.checkpoint(&args.new, &mut |done, total| progress.set(done, total))?;
    drop(progress);
    db.close()?;
    let new = args.new.display();
    answer(json, &json!({ "copy": new.to_string() }), format_args!("copied to {new}"))
}

pub fn backup(args: &Backup, json: bool) -> Result<(), Failure> {
    let db = open::existing(&args.db)?;
    let progress = Progress::bytes(Some(0));
    let report = db.backup(&args.dir, &mut |done, total| progress.set(done, total))?;
    db.close()?;
    let removed = match args.keep {
        Some(keep) => {
            progress.message("removing older backups".to_owned());
            Backups::open(&args.dir)?.prune(keep as usize)?
        }
        None => Vec::new(),
    };
    drop(progress);
    let mut document = info_json(&report.backup);
    document.insert("new_segments".into(), report.new_segments.into());
    document.insert("new_bytes".into(), report.new_bytes.into());
    document.insert("removed".into(), json!(removed));
    let pruned = match removed.len() {
        0 => String::new(),
        n => format!("; {} removed", count(n as u64, "older backup")),
    };
    let line = format!(
        "backup {}: {}, {}, of which {} new{pruned}",
        report.backup.number,
        count(report.backup.segments as u64, "segment"),
        human_bytes(report.backup.bytes),
        human_bytes(report.new_bytes),
    );
    answer(json, &Value::Object(document), line)
}

pub fn list(args: &BackupList, json: bool) -> Result<(), Failure> {
    let backups = Backups::open(&args.dir)?;
    let mut output = Output::new();
    let mut damaged = 0;
    for (number, info) in backups.list()? {
        let verified = match &info {
            Ok(_) if args.verify => verify(&backups, number)?,
            _ => Vec::new(),
        };
        damaged += u64::from(info.is_err() || !verified.is_empty());
        if json {
            output.line(Value::Object(listed_json(number, &info, &verified, args.verify)))?;
            continue;
        }
        match info {
            Ok(info) => output.line(info_line(&info, args.verify && verified.is_empty()))?,
            Err(error) => output.line(format_args!("{number}: {error}"))?,
        }
        for place in &verified {
            output.line(place_line(place))?;
        }
    }
    output.finish()?;
    if damaged == 0 {
        return Ok(());
    }
    let damaged = count(damaged, "backup");
    Err(Failure::Damaged(format!("{damaged} damaged: the others can be restored")))
}

fn verify(backups: &Backups, number: u64) -> Result<Vec<DamagedPlace>, Failure> {
    let progress = Progress::bytes(Some(0));
    progress.message(format!("backup {number}"));
    Ok(backups.verify(number, &mut |done, total| progress.set(done, total))?)
}

pub fn restore(args: &Restore, json: bool) -> Result<(), Failure> {
    let backups = Backups::open(&args.dir)?;
    let number = match args.number {
        Some(number) => number,
        None => newest(&backups, args)?,
    };
    let progress = Progress::bytes(Some(0));
    backups.restore(number, &args.new, &mut |done, total| progress.set(done, total))?;
    drop(progress);
    let new = args.new.display();
    let document = json!({ "number": number, "restored": new.to_string() });
    answer(json, &document, format_args!("backup {number} restored to {new}"))
}

/// The newest backup. If its manifest cannot be read, that is said, and no older one taken for it.
fn newest(backups: &Backups, args: &Restore) -> Result<u64, Failure> {
    let newest = backups.list()?.pop();
    let dir = args.dir.display();
    match newest {
        Some((number, Ok(_))) => Ok(number),
        Some((number, Err(error))) => Err(Failure::Data(format!(
            "{error}; this is the newest backup, {number}: `ashlar backups {dir}` lists the others, for \
             --number"
        ))),
        None => Err(Failure::Data(format!("{dir} has no backups yet"))),
    }
}

fn info_line(info: &BackupInfo, is_verified: bool) -> String {
    format!(
        "{}: {}, {}, {}, made {} ms after the Unix epoch{}",
        info.number,
        count(info.keyspaces.len() as u64, "keyspace"),
        count(info.segments as u64, "segment"),
        human_bytes(info.bytes),
        info.created_ms,
        if is_verified { ", no damage found" } else { "" }
    )
}

fn info_json(info: &BackupInfo) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("number".into(), info.number.into());
    object.insert("created_ms".into(), info.created_ms.into());
    object.insert("last_seqno".into(), info.last_seqno.0.into());
    object.insert("keyspaces".into(), json!(info.keyspaces));
    object.insert("segments".into(), info.segments.into());
    object.insert("bytes".into(), info.bytes.into());
    object
}

fn listed_json(
    number: u64,
    info: &Result<BackupInfo, Error>,
    damage: &[DamagedPlace],
    is_verified: bool,
) -> Map<String, Value> {
    let mut object = match info {
        Ok(info) => info_json(info),
        Err(error) => {
            let mut object = Map::new();
            object.insert("number".into(), number.into());
            object.insert("error".into(), error.to_string().into());
            object
        }
    };
    if is_verified && info.is_ok() {
        let damage = damage.iter().map(|place| Value::Object(damage_json(place)));
        object.insert("damage".into(), damage.collect());
    }
    object
}
