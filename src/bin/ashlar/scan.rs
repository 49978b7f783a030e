//! `ashlar scan`: rows in the order of their keys.

use crate::args::Scan;
use crate::bytes::{escape, to_hex};
use crate::failure::Failure;
use crate::open;
use crate::output::{Output, row_json};
use ashlardb::{IterOptions, Key, Value};

pub fn run(args: &Scan, json: bool) -> Result<(), Failure> {
    let range = open::range(&args.bounds, args.hex)?;
    let db = open::to_read(&args.db)?;
    let keyspace = open::keyspace_to_read(&db, args.keyspace.as_deref())?;
    let options = IterOptions { keys_only: args.keys_only, fill_cache: false };
    let rows = keyspace.range_with(range, options);
    let rows: Box<dyn Iterator<Item = ashlardb::Result<(Key, Value)>>> =
        if args.reverse { Box::new(rows.rev()) } else { Box::new(rows) };
    let limit = args.limit.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));

    let text = if args.hex { to_hex } else { escape };
    let mut output = Output::new();
    for row in rows.take(limit) {
        let (key, value) = row?;
        let value = (!args.keys_only).then_some(&value[..]);
        match value {
            _ if json => output.line(row_json(&key, value))?,
            Some(value) => output.line(format_args!("{}\t{}", text(&key), text(value)))?,
            None => output.line(text(&key))?,
        }
    }
    output.finish()
}
