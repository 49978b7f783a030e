//! Standard output, and rows as JSON. A reader that goes away (`| head`) ends the command quietly.

use crate::bytes::to_hex;
use crate::failure::Failure;
use serde_json::{Map, Value};
use std::fmt::Display;
use std::io::{self, BufWriter, StdoutLock, Write};

/// Buffered standard output. [`Output::finish`] must be called, or the end may be lost.
pub struct Output(BufWriter<StdoutLock<'static>>);

impl Output {
    pub fn new() -> Output {
        Output(BufWriter::new(io::stdout().lock()))
    }

    /// One line.
    pub fn line(&mut self, line: impl Display) -> Result<(), Failure> {
        writeln!(self.0, "{line}").map_err(Failure::output)
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.0.write_all(bytes).map_err(Failure::output)
    }

    /// Hands everything on.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.0.flush().map_err(Failure::output)
    }
}

/// Prints one line: the document if `json`, else the text.
pub fn answer(json: bool, document: &Value, text: impl Display) -> Result<(), Failure> {
    let mut output = Output::new();
    if json {
        output.line(document)?;
    } else {
        output.line(text)?;
    }
    output.finish()
}

/// Adds bytes to an object: as `name` if they are UTF-8, else as `name_hex`.
pub fn insert_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_hex"), to_hex(bytes).into()),
    };
}

/// A row as a JSON object; without its value if that is not wanted.
pub fn row_json(key: &[u8], value: Option<&[u8]>) -> Value {
    let mut row = Map::new();
    insert_bytes(&mut row, "key", key);
    if let Some(value) = value {
        insert_bytes(&mut row, "value", value);
    }
    Value::Object(row)
}

/// A number of bytes for people.
pub fn human_bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// `1 row`, `2 rows`.
pub fn count(n: u64, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}
