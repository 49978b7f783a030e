//! Comma-separated rows (RFC 4180, any delimiter).
//!
//! The `csv` crate does the quoting. It reads from [`Records`], which hands it one record at a time:
//! so the line numbers are right where fields span lines and where lines are blank, and a quote that is
//! never closed is an error instead of one field that holds the rest of the file.

use super::{Columns, Line, Lines, Row};
use csv::{ByteRecord, Reader, ReaderBuilder, Terminator, WriterBuilder};
use std::io::{self, BufRead, Read, Write};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The rows of a file.
pub fn read<'a>(input: impl BufRead + 'a, delimiter: u8, columns: Columns) -> Lines<'a> {
    let records = Records {
        input,
        delimiter,
        current: Vec::new(),
        handed_on: 0,
        start_line: 0,
        next_line: 1,
        unclosed: false,
    };
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .from_reader(records);
    Box::new(std::iter::from_fn(move || next(&mut reader, delimiter, columns).transpose()))
}

fn next<R: BufRead>(
    reader: &mut Reader<Records<R>>,
    delimiter: u8,
    columns: Columns,
) -> io::Result<Option<Line>> {
    let mut record = ByteRecord::new();
    if !reader.read_byte_record(&mut record)? {
        return Ok(None);
    }
    let records = reader.get_ref();
    let row = if records.unclosed {
        Err("a quote is opened and never closed".into())
    } else {
        parse(&record, delimiter, columns)
    };
    Ok(Some(Line { number: records.start_line, row }))
}

fn parse(record: &ByteRecord, delimiter: u8, columns: Columns) -> Result<Row, String> {
    let fields: Vec<&[u8]> = record.iter().collect();
    let (key, value) = columns.pick(&fields)?;
    let value = match value.as_slice() {
        [single] => single.to_vec(),
        several => {
            let mut joined = Vec::new();
            write_record(&mut joined, delimiter, several).map_err(|e| e.to_string())?;
            joined.pop(); // The line feed.
            joined
        }
    };
    Ok(Row { key: key.to_vec(), value, expires_ms: None })
}

fn write_record(out: &mut dyn Write, delimiter: u8, fields: &[&[u8]]) -> io::Result<()> {
    let mut writer = WriterBuilder::new()
        .delimiter(delimiter)
        .terminator(Terminator::Any(b'\n'))
        .buffer_capacity(256)
        .from_writer(out);
    writer.write_record(fields)?;
    writer.flush()
}

/// Writes one row. The inner error says why CSV cannot carry it.
pub fn write(
    out: &mut dyn Write,
    delimiter: u8,
    key: &[u8],
    value: &[u8],
) -> io::Result<Result<(), &'static str>> {
    if str::from_utf8(key).is_err() || str::from_utf8(value).is_err() {
        return Ok(Err("it is not UTF-8"));
    }
    // At the start of a file, readers take it for an encoding and drop it.
    if key.starts_with(BYTE_ORDER_MARK) {
        return Ok(Err("its key starts with a byte order mark"));
    }
    write_record(out, delimiter, &[key, value])?;
    Ok(Ok(()))
}

/// Hands on one record at a time, blank lines left out.
struct Records<R> {
    input: R,
    delimiter: u8,
    /// The text of the record that is being handed on.
    current: Vec<u8>,
    handed_on: usize,
    /// The line that the record starts on.
    start_line: u64,
    next_line: u64,
    /// The input ended inside the record's quotes.
    unclosed: bool,
}

/// Where in a record a byte stands.
#[derive(Clone, Copy, PartialEq)]
enum State {
    FieldStart,
    Unquoted,
    Quoted,
    /// After a quote in quotes: the end of the field, unless a second one follows.
    QuoteInQuotes,
}

impl State {
    fn after(self, byte: u8, delimiter: u8) -> State {
        match (self, byte) {
            (State::Quoted, b'"') => State::QuoteInQuotes,
            (State::Quoted, _) => State::Quoted,
            (State::FieldStart | State::QuoteInQuotes, b'"') => State::Quoted,
            (_, b'\n' | b'\r') => State::FieldStart,
            (_, byte) if byte == delimiter => State::FieldStart,
            _ => State::Unquoted,
        }
    }
}

impl<R: BufRead> Records<R> {
    fn advance(&mut self) -> io::Result<()> {
        self.current.clear();
        self.handed_on = 0;
        let mut state = State::FieldStart;
        loop {
            let before = self.current.len();
            if self.input.read_until(b'\n', &mut self.current)? == 0 {
                // Asked again at the end, this must not forget what the last record was.
                self.unclosed |= before > 0;
                return Ok(());
            }
            if before == 0 {
                self.start_line = self.next_line;
            }
            self.next_line += 1;
            if self.start_line == 1 && before == 0 && self.current.starts_with(BYTE_ORDER_MARK) {
                self.current.drain(..BYTE_ORDER_MARK.len());
            }
            for byte in &self.current[before..] {
                state = state.after(*byte, self.delimiter);
            }
            if state == State::Quoted {
                continue;
            }
            if !matches!(self.current.as_slice(), b"\n" | b"\r\n" | b"") {
                return Ok(());
            }
            self.current.clear();
        }
    }
}

impl<R: BufRead> Read for Records<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.handed_on == self.current.len() {
            self.advance()?;
        }
        let rest = &self.current[self.handed_on..];
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        self.handed_on += n;
        Ok(n)
    }
}
