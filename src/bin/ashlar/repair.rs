//! `ashlar repair`: what can be read of a damaged database, into a new one.

use crate::args::Repair;
use crate::bytes::escape;
use crate::failure::Failure;
use crate::output::{Output, count};
use crate::progress::Progress;
use crate::verify::{damage_json, insert_range, place_line};
use ashlardb::{Db, RepairReport, Uncertainty};
use serde_json::{Map, Value, json};

pub fn run(args: &Repair, json: bool) -> Result<(), Failure> {
    let progress = Progress::bytes(Some(0));
    let repair = Db::builder(&args.db);
    let report = repair.repair_into(&args.new, &mut |done, total| progress.set(done, total))?;
    drop(progress);
    let mut output = Output::new();
    if json {
        output.line(report_json(&report))?;
    } else {
        for line in report_lines(&report) {
            output.line(line)?;
        }
    }
    output.finish()?;
    if report.is_complete() {
        return Ok(());
    }
    let lost = count(report.lost.len() as u64, "place");
    Err(Failure::Damaged(format!(
        "{lost} could not be read; {} holds everything else",
        args.new.display()
    )))
}

fn report_lines(report: &RepairReport) -> Vec<String> {
    let mut lines = Vec::new();
    for place in &report.lost {
        lines.push(format!("lost: {}", place_line(&place.place)));
    }
    for uncertain in &report.uncertain {
        lines.push(uncertain_line(uncertain));
    }
    lines.extend(report.notices.iter().map(|notice| format!("note: {notice}")));
    for keyspace in &report.keyspaces {
        let keys = count(keyspace.keys, "key");
        lines.push(format!("{keys} saved in keyspace {:?}", keyspace.name));
    }
    lines
}

fn uncertain_line(uncertain: &Uncertainty) -> String {
    let keyspace = match &uncertain.keyspace {
        Some(name) => format!(" in keyspace {name:?}"),
        None => String::new(),
    };
    let keys = match &uncertain.key_range {
        Some((above, up_to)) => {
            format!(" of the keys above {} up to {}", escape(above), escape(up_to))
        }
        None => String::new(),
    };
    format!("uncertain{keyspace}{keys}: {}", uncertain.what)
}

fn report_json(report: &RepairReport) -> Value {
    let keyspaces = report.keyspaces.iter().map(
        |keyspace| json!({ "name": keyspace.name, "keys": keyspace.keys, "bytes": keyspace.bytes }),
    );
    let lost = report.lost.iter().map(|lost| {
        let mut object = damage_json(&lost.place);
        object.insert("older".into(), lost.older.into());
        Value::Object(object)
    });
    let uncertain = report.uncertain.iter().map(|uncertain| {
        let mut object = Map::new();
        object.insert("keyspace".into(), uncertain.keyspace.clone().into());
        object.insert("what".into(), uncertain.what.clone().into());
        insert_range(&mut object, uncertain.key_range.as_ref());
        Value::Object(object)
    });
    json!({
        "complete": report.is_complete(),
        "keyspaces": keyspaces.collect::<Vec<_>>(),
        "lost": lost.collect::<Vec<_>>(),
        "uncertain": uncertain.collect::<Vec<_>>(),
        "notices": report.notices,
    })
}
