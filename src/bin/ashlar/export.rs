//! `ashlar export`: rows of a keyspace into a file.

use crate::args::Export;
use crate::bytes::escape;
use crate::failure::Failure;
use crate::open;
use crate::output::count;
use crate::progress::Progress;
use crate::rows::{Format, cbor, csv, delimiter, jsonl, tsv};
use ashlardb::{IterOptions, ReadOnlyKeyspace};
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;

pub fn run(args: &Export, json: bool) -> Result<(), Failure> {
    let format = Format::choose(args.format, &args.file)?;
    let delimiter = delimiter(args.delimiter.as_deref(), format)?;
    let range = open::range(&args.bounds, args.hex)?;

    // The database first: if it is missing, no file is overwritten.
    let db = open::to_read(&args.db)?;
    let keyspace = open::keyspace_to_read(&db, args.keyspace.as_deref())?;
    let to_stdout = args.file == Path::new("-");
    let target = if to_stdout { None } else { Some(args.file.as_path()) };
    let out: Box<dyn Write> = match target {
        None => Box::new(io::stdout().lock()),
        Some(path) => Box::new(File::create(path).map_err(|e| Failure::file("create", path, &e))?),
    };
    let mut out = BufWriter::with_capacity(1 << 16, out);
    // On a terminal, a bar among the rows would only be in the way.
    let progress = (!to_stdout || !io::stdout().is_terminal()).then(Progress::rows);

    let mut rows = 0;
    let how = How { format, delimiter, drop_expiry: args.drop_expiry };
    let result = write_all(&keyspace, range, &how, &mut out, target, || {
        rows += 1;
        if let Some(progress) = &progress {
            progress.add(1);
        }
    });
    drop(progress);
    if let (Err(failure), Some(path)) = (&result, target) {
        return Err(Failure::Data(format!(
            "{failure}; {} holds only what comes before it",
            path.display()
        )));
    }
    result?;

    // Where rows went to standard output, nothing else may.
    if to_stdout {
        return Ok(());
    }
    let document = serde_json::json!({ "rows": rows });
    crate::output::answer(json, &document, format_args!("{} exported", count(rows, "row")))
}

/// How rows are written.
struct How {
    format: Format,
    delimiter: u8,
    drop_expiry: bool,
}

fn write_all(
    keyspace: &ReadOnlyKeyspace,
    range: open::Range,
    how: &How,
    out: &mut impl Write,
    target: Option<&Path>,
    mut written: impl FnMut(),
) -> Result<(), Failure> {
    let fail = |error: io::Error| match target {
        None => Failure::output(error),
        Some(path) => Failure::file("write to", path, &error),
    };
    // Every row is read once, so none is worth a place in the cache.
    let options = IterOptions { keys_only: false, fill_cache: false };
    let mut rows = keyspace.range_with(range, options);
    while let Some(row) = rows.next() {
        let (key, value) = row?;
        let expiry = rows.expires_ms().filter(|_| !how.drop_expiry);
        match how.format {
            Format::Tsv => tsv::write(out, &key, &value, expiry).map_err(fail)?,
            Format::Jsonl => jsonl::write(out, &key, &value, expiry).map_err(fail)?,
            Format::Cbor => cbor::write(out, &key, &value, expiry).map_err(fail)?,
            Format::Csv if expiry.is_some() => {
                return Err(Failure::Data(format!(
                    "CSV cannot carry when the row of key {} expires. Use --format jsonl, tsv or cbor, \
                     or leave that out with --drop-expiry",
                    escape(&key)
                )));
            }
            Format::Csv => {
                let carried = csv::write(out, how.delimiter, &key, &value).map_err(fail)?;
                carried.map_err(|why| {
                    Failure::Data(format!(
                        "CSV cannot carry the row of key {}: {why}. Use --format jsonl, tsv or cbor",
                        escape(&key)
                    ))
                })?;
            }
        }
        written();
    }
    out.flush().map_err(fail)
}
