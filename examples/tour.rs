//! The main job on real data: the Unicode Character Database goes in, is looked up and scanned both
//! ways, partly deleted, flushed, compacted, reopened and verified. Prints counts and times.
//!
//! `cargo run --release --example tour`

use ashlardb::{Db, WriteBatch};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/unicode/UnicodeData.txt");

type Rows<'a> = BTreeMap<&'a str, &'a str>;
type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn report(what: &str, count: u64, unit: &str, took: Duration) {
    let rate = count as f64 / took.as_secs_f64().max(1e-9);
    let ms = took.as_secs_f64() * 1e3;
    println!("{what:<22} {count:>8} {unit:<8} {ms:>9.2} ms {rate:>12.0} a second");
}

/// Fails with what was expected if a check does not hold.
fn check(ok: bool, what: &str) -> Outcome {
    if ok { Ok(()) } else { Err(format!("expected {what}").into()) }
}

/// Everything that can be read must be exactly `rows`, from either end.
fn check_all(db: &Db, rows: &Rows<'_>) -> Outcome {
    let start = Instant::now();
    let mut want = rows.iter();
    for entry in db.get_range::<&str>(..) {
        let (key, value) = entry?;
        let same = want.next().is_some_and(|(k, v)| key == *k && value == *v);
        check(same, "the rows in order")?;
    }
    check(want.next().is_none(), "every row, forwards")?;
    report("scan", rows.len() as u64, "rows", start.elapsed());
    let start = Instant::now();
    let mut want = rows.keys().rev();
    for entry in db.get_range::<&str>(..).rev() {
        let same = want.next().is_some_and(|k| entry.as_ref().is_ok_and(|(key, _)| key == *k));
        check(same, "the rows in reverse order")?;
    }
    check(want.next().is_none(), "every row, backwards")?;
    report("scan in reverse", rows.len() as u64, "rows", start.elapsed());
    let start = Instant::now();
    for (key, value) in rows {
        check(db.get(key)?.is_some_and(|found| found == *value), "every key to be found")?;
    }
    report("get", rows.len() as u64, "rows", start.elapsed());
    Ok(())
}

fn main() -> Outcome {
    let text = std::fs::read_to_string(DATA)?;
    let mut rows: Rows<'_> = text.lines().filter_map(|line| line.split_once(';')).collect();
    let dir = std::env::temp_dir().join(format!("ashlardb-tour-{}", std::process::id()));
    println!("{} rows of {DATA}", rows.len());
    println!("into {}\n", dir.display());
    let outcome = tour(&dir, &mut rows);
    std::fs::remove_dir_all(&dir)?;
    outcome
}

fn tour(dir: &std::path::Path, rows: &mut Rows<'_>) -> Outcome {
    let db = Db::open(dir)?;
    let all: Vec<_> = rows.iter().map(|(k, v)| (*k, *v)).collect();

    let start = Instant::now();
    for chunk in all.chunks(1000) {
        let mut batch = WriteBatch::new();
        for (key, value) in chunk {
            batch.put(key, value);
        }
        db.write(batch)?;
    }
    report("import", all.len() as u64, "rows", start.elapsed());
    check_all(&db, rows)?;

    println!();
    let start = Instant::now();
    let capitals = db.get_range("0041"..="005A").count() as u64;
    report("range 0041..=005A", capitals, "rows", start.elapsed());
    check(capitals == rows.range("0041"..="005A").count() as u64, "the capital letters")?;
    let start = Instant::now();
    let arrows = db.prefix("219").rev().count() as u64;
    report("prefix 219, reverse", arrows, "rows", start.elapsed());
    check(arrows == rows.keys().filter(|k| k.starts_with("219")).count() as u64, "the arrows")?;

    println!();
    let snapshot = db.snapshot();
    let start = Instant::now();
    let gone: Vec<&str> = rows.keys().copied().step_by(3).collect();
    for key in &gone {
        db.delete(key)?;
        rows.remove(key);
    }
    report("delete every third", gone.len() as u64, "rows", start.elapsed());
    check(db.get(gone[0])?.is_none(), "a deleted row to be gone")?;
    check(snapshot.get(gone[0])?.is_some(), "the snapshot to keep it")?;
    drop(snapshot);

    let start = Instant::now();
    db.flush()?;
    report("flush", db.stats().flushed_bytes, "bytes", start.elapsed());
    let start = Instant::now();
    db.compact_range::<&str>(..)?;
    report("compact", db.stats().segment_bytes(), "bytes", start.elapsed());
    check_all(&db, rows)?;
    db.close()?;

    println!();
    let start = Instant::now();
    let db = Db::open(dir)?;
    report("reopen", 1, "database", start.elapsed());
    check_all(&db, rows)?;
    let start = Instant::now();
    let found = db.verify(&mut |_, _| {})?;
    check(found.is_sound(), "a sound database")?;
    let entries = found.segments.iter().map(|segment| segment.report.entries).sum();
    report("verify", entries, "entries", start.elapsed());
    check(entries == rows.len() as u64, "one entry a row after the compaction")?;

    println!("\n{}", db.stats());
    println!("{} rows in place, everything as expected", rows.len());
    Ok(())
}
