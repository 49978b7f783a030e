//! `ashlar changes`: what was committed, batch by batch, out of the logs.

use crate::args::Changes;
use crate::bytes::{escape, to_hex};
use crate::failure::Failure;
use crate::open;
use crate::output::{Output, insert_bytes};
use ashlardb::{Change, ChangeBatch, SeqNo};
use serde_json::{Map, Value, json};

pub fn run(args: &Changes, json: bool) -> Result<(), Failure> {
    let db = open::to_read(&args.db)?;
    let text = if args.hex { to_hex } else { escape };
    let mut output = Output::new();
    for batch in db.changes_since(SeqNo(args.since))? {
        let batch = batch?;
        if json {
            output.line(batch_json(&batch))?;
        } else {
            for change in &batch.changes {
                output.line(format_args!("{}\t{}", batch.last, line(change, text)))?;
            }
        }
    }
    output.finish()
}

/// When a value expires, in milliseconds since the Unix epoch, as a column; nothing if it does not.
fn until(expires_ms: Option<u64>) -> String {
    expires_ms.map_or(String::new(), |at| format!("\t{at}"))
}

fn line(change: &Change, text: fn(&[u8]) -> String) -> String {
    let name = |name: &str| escape(name.as_bytes());
    match change {
        Change::Put { keyspace, key, value, expires_ms } => {
            let until = until(*expires_ms);
            format!("put\t{}\t{}\t{}{until}", name(&keyspace.name), text(key), text(value))
        }
        Change::Merge { keyspace, key, operand, expires_ms } => {
            let until = until(*expires_ms);
            format!("merge\t{}\t{}\t{}{until}", name(&keyspace.name), text(key), text(operand))
        }
        Change::DeleteRange { keyspace, start, end } => {
            let end = end.as_ref().map_or(String::new(), |end| format!("\t{}", text(end)));
            format!("delete-range\t{}\t{}{end}", name(&keyspace.name), text(start))
        }
        Change::Delete { keyspace, key } => {
            format!("delete\t{}\t{}", name(&keyspace.name), text(key))
        }
        Change::Clear { keyspace } => format!("clear\t{}", name(&keyspace.name)),
        Change::Keyspaces(keyspaces) => {
            let names: Vec<_> = keyspaces.iter().map(|keyspace| name(&keyspace.name)).collect();
            format!("keyspaces\t{}", names.join("\t"))
        }
        Change::Loaded { keyspace, first, last } => {
            format!("loaded\t{}\t{}\t{}", name(&keyspace.name), text(first), text(last))
        }
        _ => "unknown".to_owned(),
    }
}

fn batch_json(batch: &ChangeBatch) -> Value {
    let changes = batch.changes.iter().map(|change| {
        let mut object = Map::new();
        match change {
            Change::Put { keyspace, key, value, expires_ms } => {
                object.insert("put".into(), json!(&*keyspace.name));
                insert_bytes(&mut object, "key", key);
                insert_bytes(&mut object, "value", value);
                object.extend(expires_ms.map(|at| ("expires_ms".into(), json!(at))));
            }
            Change::Merge { keyspace, key, operand, expires_ms } => {
                object.insert("merge".into(), json!(&*keyspace.name));
                insert_bytes(&mut object, "key", key);
                insert_bytes(&mut object, "operand", operand);
                object.extend(expires_ms.map(|at| ("expires_ms".into(), json!(at))));
            }
            Change::DeleteRange { keyspace, start, end } => {
                object.insert("delete_range".into(), json!(&*keyspace.name));
                insert_bytes(&mut object, "start", start);
                if let Some(end) = end {
                    insert_bytes(&mut object, "end", end);
                }
            }
            Change::Delete { keyspace, key } => {
                object.insert("delete".into(), json!(&*keyspace.name));
                insert_bytes(&mut object, "key", key);
            }
            Change::Clear { keyspace } => {
                object.insert("clear".into(), json!(&*keyspace.name));
            }
            Change::Keyspaces(keyspaces) => {
                let keyspaces = keyspaces.iter();
                let named = keyspaces.map(|k| json!({ "id": k.id.0, "name": &*k.name }));
                object.insert("keyspaces".into(), named.collect());
            }
            Change::Loaded { keyspace, first, last } => {
                object.insert("loaded".into(), json!(&*keyspace.name));
                insert_bytes(&mut object, "first", first);
                insert_bytes(&mut object, "last", last);
            }
            _ => {
                object.insert("unknown".into(), json!(true));
            }
        }
        Value::Object(object)
    });
    let (first, last) = (batch.first.0, batch.last.0);
    json!({ "first": first, "last": last, "changes": changes.collect::<Vec<_>>() })
}
