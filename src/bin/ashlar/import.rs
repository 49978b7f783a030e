//! `ashlar import`: rows of a file into a keyspace.

use crate::args::Import;
use crate::failure::Failure;
use crate::open;
use crate::output::{answer, count};
use crate::progress::Progress;
use crate::rows::{Columns, Format, Line, Lines, Row, cbor, csv, delimiter, jsonl, tsv};
use ashlardb::{BulkLoader, Db, Durability, Keyspace, MAX_KEY_LEN, MAX_VALUE_LEN, WriteBatch};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

/// A batch is committed when it holds this many bytes, even if more rows would be allowed: it is held in
/// memory, and the library limits what one commit may hold.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// So many bytes of sorted rows are worth loading as a whole. Until then they are held in memory.
const LOAD_FROM: usize = 8 << 20;

/// About what a row takes in memory besides its key and value.
const ROW_BYTES: usize = 100;

/// How many of the rows left out are named.
const BAD_ROWS_NAMED_MAX: usize = 5;

pub fn run(args: &Import, json: bool) -> Result<(), Failure> {
    let format = Format::choose(args.format, &args.file)?;
    let delimiter = delimiter(args.delimiter.as_deref(), format)?;
    let has_columns = matches!(format, Format::Tsv | Format::Csv);
    if !has_columns && (args.key_column.is_some() || args.value_column.is_some() || args.header) {
        return Err(Failure::Usage(
            "--key-column, --value-column and --header go with tsv and csv only".into(),
        ));
    }
    let columns = Columns {
        key: args.key_column.unwrap_or(1) as usize - 1,
        value: args.value_column.map(|column| column as usize - 1),
    };

    // The input first: if it is missing, no database is created.
    let (input, total) = open_input(&args.file)?;
    let progress = Progress::bytes(total);
    let input = BufReader::with_capacity(1 << 16, progress.watch(input));
    let lines = read(input, format, delimiter, columns);
    let lines = lines.skip(usize::from(args.header));

    let db = open::or_create(&args.db)?;
    let keyspace = open::keyspace_or_create(&db, args.keyspace.as_deref())?;
    let may_load = !args.sync && keyspace.first()?.is_none();
    let mut import = Importer {
        stage: if may_load { Stage::Held(Vec::new()) } else { Stage::Batches },
        last_key: None,
        db: &db,
        keyspace: &keyspace,
        batch: WriteBatch::new(),
        batch_rows_max: args.batch as usize,
        batch_bytes: 0,
        durability: if args.sync { Durability::Sync } else { Durability::Buffered },
        rows: 0,
        bytes: 0,
        bad: Vec::new(),
        skipped: 0,
    };
    let result = import.all(lines, args.skip_bad, &progress);
    // Also after an error, so that the rows it counts are there for good.
    let committed = import.settle().and_then(|()| import.commit()).and_then(|()| Ok(db.sync()?));
    drop(progress);
    if let Err(what) = result {
        let and_then = committed.err().map_or(String::new(), |e| format!(", then {e}"));
        let (file, rows) = (args.file.display(), count(import.rows, "row"));
        return Err(Failure::Data(format!("{file}: {what}{and_then}. {rows} imported")));
    }
    committed?;
    let Importer { rows, bytes, bad, skipped, .. } = import;
    drop(keyspace);
    db.close()?;

    let document = serde_json::json!({
        "rows": rows,
        "bytes": bytes,
        "skipped": skipped,
        "bad": bad.iter().map(|(line, what)| serde_json::json!({ "line": line, "error": what }))
            .collect::<Vec<_>>(),
    });
    if skipped > 0 && !json {
        eprintln!("{} left out:", count(skipped, "row"));
        for (line, what) in &bad {
            eprintln!("  line {line}: {what}");
        }
        if skipped > bad.len() as u64 {
            eprintln!("  and {} more", skipped - bad.len() as u64);
        }
    }
    answer(json, &document, format_args!("{} imported", count(rows, "row")))
}

fn open_input(path: &Path) -> Result<(Box<dyn Read>, Option<u64>), Failure> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let fail = |error| Failure::file("open", path, &error);
    let file = File::open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}

fn read<'a>(
    input: impl BufRead + 'a,
    format: Format,
    delimiter: u8,
    columns: Columns,
) -> Lines<'a> {
    match format {
        Format::Tsv => tsv::read(input, columns),
        Format::Csv => csv::read(input, delimiter, columns),
        Format::Jsonl => jsonl::read(input),
        Format::Cbor => cbor::read(input),
    }
}

/// Where rows go.
enum Stage {
    /// Nowhere yet: so far they are sorted, and not many.
    Held(Vec<Row>),
    /// They were many, and are sorted so far.
    Loading(Box<BulkLoader>),
    /// To batches, for good.
    Batches,
}

/// An import under way. `rows`, `bytes` and `skipped` count what is done.
struct Importer<'a> {
    db: &'a Db,
    keyspace: &'a Keyspace,
    stage: Stage,
    /// The last key, before it goes to batches.
    last_key: Option<Vec<u8>>,
    batch: WriteBatch,
    batch_rows_max: usize,
    batch_bytes: usize,
    durability: Durability,
    rows: u64,
    bytes: u64,
    bad: Vec<(u64, String)>,
    skipped: u64,
}

impl Importer<'_> {
    /// Takes all lines; the error says where and why it ended before.
    fn all(
        &mut self,
        lines: impl Iterator<Item = io::Result<Line>>,
        skip_bad: bool,
        progress: &Progress,
    ) -> Result<(), String> {
        let mut last_line = 0;
        for line in lines {
            let line = line.map_err(|e| format!("cannot read on after line {last_line}: {e}"))?;
            last_line = line.number;
            match line.row.and_then(check_sizes) {
                Ok(row) => self.take(row).map_err(|e| format!("line {last_line}: {e}"))?,
                Err(what) if skip_bad => {
                    self.skipped += 1;
                    if self.bad.len() < BAD_ROWS_NAMED_MAX {
                        self.bad.push((last_line, what));
                    }
                }
                Err(what) => {
                    return Err(format!(
                        "line {last_line}: {what}. Mend the line and import again, or leave such \
                         lines out with --skip-bad"
                    ));
                }
            }
            if self.batch.is_empty() {
                let loading = match &self.stage {
                    Stage::Loading(loader) => loader.entries(),
                    Stage::Held(_) | Stage::Batches => 0,
                };
                progress.message(format!("{} rows", self.rows + loading));
            }
        }
        Ok(())
    }

    fn take(&mut self, row: Row) -> Result<(), Failure> {
        if matches!(self.stage, Stage::Batches) {
            return self.add(row);
        }
        if self.last_key.as_ref().is_some_and(|last| row.key <= *last) {
            self.settle()?;
            return self.add(row);
        }
        self.last_key = Some(row.key.clone());
        self.batch_bytes += row.key.len() + row.value.len();
        match &mut self.stage {
            Stage::Loading(loader) => load(loader, &row)?,
            Stage::Held(rows) => {
                rows.push(row);
                if self.batch_bytes + rows.len() * ROW_BYTES >= LOAD_FROM {
                    let mut loader = self.keyspace.bulk_loader()?;
                    rows.iter().try_for_each(|row| load(&mut loader, row))?;
                    self.stage = Stage::Loading(Box::new(loader));
                }
            }
            Stage::Batches => {}
        }
        Ok(())
    }

    /// What was taken so far goes into the keyspace, or to batches; and so does what comes.
    fn settle(&mut self) -> Result<(), Failure> {
        match std::mem::replace(&mut self.stage, Stage::Batches) {
            Stage::Batches => {}
            Stage::Loading(loader) => {
                self.rows += loader.finish()?;
                self.bytes += std::mem::take(&mut self.batch_bytes) as u64;
            }
            Stage::Held(rows) => {
                self.batch_bytes = 0;
                rows.into_iter().try_for_each(|row| self.add(row))?;
            }
        }
        Ok(())
    }

    fn add(&mut self, row: Row) -> Result<(), Failure> {
        self.batch_bytes += row.key.len() + row.value.len();
        match row.expires_ms {
            None => self.batch.put_in(self.keyspace, row.key, row.value),
            Some(expiry) => self.batch.put_in_until(self.keyspace, row.key, row.value, expiry),
        };
        if self.batch.len() >= self.batch_rows_max || self.batch_bytes >= BATCH_BYTES_MAX {
            self.commit()?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<(), Failure> {
        let batch = std::mem::replace(&mut self.batch, WriteBatch::new());
        let bytes = std::mem::take(&mut self.batch_bytes);
        if batch.is_empty() {
            return Ok(());
        }
        let rows = batch.len() as u64;
        self.db.write_with(batch, self.durability)?;
        self.rows += rows;
        self.bytes += bytes as u64;
        Ok(())
    }
}

fn load(loader: &mut BulkLoader, row: &Row) -> Result<(), Failure> {
    match row.expires_ms {
        None => loader.put(&row.key, &row.value)?,
        Some(expiry) => loader.put_until(&row.key, &row.value, expiry)?,
    }
    Ok(())
}

fn check_sizes(row: Row) -> Result<Row, String> {
    if row.key.len() > MAX_KEY_LEN {
        return Err(format!(
            "the key has {} bytes, and at most {MAX_KEY_LEN} are allowed",
            row.key.len()
        ));
    }
    if row.value.len() > MAX_VALUE_LEN {
        return Err(format!(
            "the value has {} bytes, and at most {MAX_VALUE_LEN} are allowed",
            row.value.len()
        ));
    }
    Ok(row)
}
