//! A sorted file, written once and read anywhere: `cargo run --example segments`.
//!
//! No database: one segment file with an index, a filter and checksums, which any number of threads and
//! processes can look up and scan. To build one, keys must come in order.

use ashlardb::{Result, SegmentOptions, SegmentReader, SegmentWriter};

const DATA: &str = include_str!("../testdata/unicode/UnicodeData.txt");

fn main() -> Result<()> {
    let path = std::env::temp_dir().join(format!("ashlardb-names-{}.seg", std::process::id()));
    // Characters by name.
    let mut rows: Vec<(&str, &str)> =
        DATA.lines().filter_map(|line| line.split_once(';')).collect::<Vec<_>>();
    rows = rows.iter().filter_map(|(code, rest)| Some((rest.split(';').next()?, *code))).collect();
    rows.sort_unstable();
    rows.dedup_by_key(|row| row.0);

    let mut writer = SegmentWriter::create(&path, SegmentOptions::default())?;
    for (name, code) in &rows {
        writer.put(name.as_bytes(), code.as_bytes())?;
    }
    let written = writer.finish()?;
    println!("{} names in {} bytes", rows.len(), written.file_len);

    // All that is needed to look up is read here, once; a reader is shared between threads.
    let reader = SegmentReader::open(&path)?;
    std::thread::scope(|scope| {
        for names in rows.chunks(rows.len().div_ceil(4)) {
            let reader = &reader;
            scope.spawn(move || {
                for (name, code) in names {
                    let found = reader.get(name.as_bytes()).expect("it can be read");
                    assert_eq!(found.as_deref(), Some(code.as_bytes()));
                }
            });
        }
    });
    for entry in reader.get_range("GREEK SMALL LETTER A".."GREEK SMALL LETTER C") {
        let (name, code) = entry?;
        println!("U+{} {}", code.escape_ascii(), name.escape_ascii());
    }
    drop(reader);
    std::fs::remove_file(&path).expect("what was made can be removed");
    Ok(())
}
