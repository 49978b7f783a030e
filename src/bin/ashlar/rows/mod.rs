//! Rows in files: TSV, CSV, JSON lines and CBOR, a reader and a writer of each.
//!
//! Readers give one [`Line`] for each row, sound or not, with the number of the line it starts on;
//! blank lines are none. They hold one row in memory. What a writer writes, its reader reads back.

pub mod cbor;
pub mod csv;
pub mod jsonl;
pub mod tsv;

use crate::failure::Failure;
use std::io::{self, BufRead};
use std::path::Path;

/// How rows are written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Key, tab, value, with escapes
    Tsv,
    /// Columns, quoted where needed
    Csv,
    /// A JSON object a line
    Jsonl,
    /// A sequence of CBOR arrays of key and value
    Cbor,
}

impl Format {
    /// The format asked for, or else the one that the file's name tells.
    pub fn choose(asked: Option<Format>, path: &Path) -> Result<Format, Failure> {
        let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        match (asked, extension.as_deref()) {
            (Some(format), _) => Ok(format),
            (None, Some("tsv" | "tab")) => Ok(Format::Tsv),
            (None, Some("csv")) => Ok(Format::Csv),
            (None, Some("jsonl" | "ndjson")) => Ok(Format::Jsonl),
            (None, Some("cbor" | "cborseq")) => Ok(Format::Cbor),
            (None, _) if path == Path::new("-") => Err(Failure::Usage(
                "standard input and output have no name to tell the format: add --format".into(),
            )),
            (None, _) => Err(Failure::Usage(format!(
                "the name of {} does not tell its format: add --format",
                path.display()
            ))),
        }
    }
}

/// The delimiter of CSV, from the command line.
pub fn delimiter(asked: Option<&str>, format: Format) -> Result<u8, Failure> {
    match (asked, format) {
        (None, _) => Ok(b','),
        (Some(_), Format::Tsv | Format::Jsonl | Format::Cbor) => {
            Err(Failure::Usage("--delimiter goes with --format csv only".into()))
        }
        (Some("\\t" | "\t"), Format::Csv) => Ok(b'\t'),
        (Some(text), Format::Csv) => match text.as_bytes() {
            [c] if c.is_ascii() && !matches!(c, b'"' | b'\n' | b'\r') => Ok(*c),
            _ => Err(Failure::Usage(format!(
                "the delimiter {text:?} is not one ASCII character other than a quote or a line end"
            ))),
        },
    }
}

/// Which columns of TSV and CSV to take, counted from 0.
#[derive(Clone, Copy, Debug)]
pub struct Columns {
    pub key: usize,
    /// `None`: all but the key's.
    pub value: Option<usize>,
}

impl Columns {
    /// The key, and the columns that make up the value.
    fn pick<'a>(&self, columns: &[&'a [u8]]) -> Result<(&'a [u8], Vec<&'a [u8]>), String> {
        let column = |index: usize| {
            columns
                .get(index)
                .copied()
                .ok_or_else(|| format!("there is no column {}, only {}", index + 1, columns.len()))
        };
        let key = column(self.key)?;
        let value = match self.value {
            Some(index) => vec![column(index)?],
            None => {
                let rest = columns.iter().enumerate().filter(|(i, _)| *i != self.key);
                rest.map(|(_, column)| *column).collect()
            }
        };
        if value.is_empty() {
            return Err("there is only one column, so a key without a value".into());
        }
        Ok((key, value))
    }
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    /// When it expires, if it does, in milliseconds since the Unix epoch.
    pub expires_ms: Option<u64>,
}

/// What a row in a file turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// The line it starts on, or in CBOR the item that it is, counted from 1.
    pub number: u64,
    /// The row, or what is wrong with it.
    pub row: Result<Row, String>,
}

/// The rows of a file. An `Err` is a failed read and ends them.
pub type Lines<'a> = Box<dyn Iterator<Item = io::Result<Line>> + 'a>;

/// The lines of a text that are not blank, with their numbers and without their ends.
struct TextLines<R> {
    input: R,
    number: u64,
}

impl<R: BufRead> Iterator for TextLines<R> {
    type Item = io::Result<(u64, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut line = Vec::new();
            match self.input.read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) => self.number += 1,
                Err(error) => return Some(Err(error)),
            }
            for end in *b"\n\r" {
                if line.last() == Some(&end) {
                    line.pop();
                }
            }
            if !line.is_empty() {
                return Some(Ok((self.number, line)));
            }
        }
    }
}

/// The rows of the lines that `parse` understands.
fn text_rows<'a>(
    input: impl BufRead + 'a,
    parse: impl Fn(&[u8]) -> Result<Row, String> + 'a,
) -> Lines<'a> {
    let lines = TextLines { input, number: 0 };
    Box::new(lines.map(move |line| line.map(|(number, text)| Line { number, row: parse(&text) })))
}

#[cfg(test)]
mod tests;
