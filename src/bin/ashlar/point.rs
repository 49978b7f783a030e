//! `ashlar get`, `set` and `rm`: one key.

use crate::args::{Get, Rm, Set};
use crate::bytes::{escape, from_argument, to_hex};
use crate::failure::Failure;
use crate::open;
use crate::output::{Output, row_json};
use ashlardb::{Durability, WriteBatch};
use std::io::{self, Read};

pub fn get(args: &Get, json: bool) -> Result<(), Failure> {
    let key = from_argument(&args.key, args.hex)?;
    let db = open::to_read(&args.db)?;
    let keyspace = open::keyspace_to_read(&db, args.keyspace.as_deref())?;
    let Some(value) = keyspace.get(&key)? else {
        return Err(Failure::NotFound(format!("there is no key {}", escape(&key))));
    };
    let mut output = Output::new();
    if json {
        output.line(row_json(&key, Some(&value)))?;
    } else if args.hex {
        output.line(to_hex(&value))?;
    } else {
        output.bytes(&value)?;
        if !args.raw {
            output.bytes(b"\n")?;
        }
    }
    output.finish()
}

pub fn set(args: &Set, json: bool) -> Result<(), Failure> {
    let key = from_argument(&args.key, args.hex)?;
    let value = match &args.value {
        Some(value) => from_argument(value, args.hex)?,
        None => {
            let mut value = Vec::new();
            let read = io::stdin().lock().read_to_end(&mut value);
            read.map_err(|e| Failure::Data(format!("cannot read standard input: {e}")))?;
            value
        }
    };
    let db = open::or_create(&args.db)?;
    let keyspace = open::keyspace_or_create(&db, args.keyspace.as_deref())?;
    let mut batch = WriteBatch::new();
    batch.put_in(&keyspace, key, value);
    db.write_with(batch, durability(args.sync))?;
    drop(keyspace);
    db.close()?;
    done(json)
}

pub fn rm(args: &Rm, json: bool) -> Result<(), Failure> {
    let key = from_argument(&args.key, args.hex)?;
    let db = open::existing(&args.db)?;
    let keyspace = open::keyspace(&db, args.keyspace.as_deref())?;
    let mut batch = WriteBatch::new();
    batch.delete_in(&keyspace, key);
    db.write_with(batch, durability(args.sync))?;
    drop(keyspace);
    db.close()?;
    done(json)
}

fn durability(sync: bool) -> Durability {
    if sync { Durability::Sync } else { Durability::Buffered }
}

/// Success needs no words, but a program that asked for a document gets one.
pub fn done(json: bool) -> Result<(), Failure> {
    if !json {
        return Ok(());
    }
    let mut output = Output::new();
    output.line(serde_json::json!({ "ok": true }))?;
    output.finish()
}
