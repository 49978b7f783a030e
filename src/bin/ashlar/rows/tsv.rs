//! Tab-separated rows: `key TAB value`, both escaped (see [`crate::bytes`]).

use super::{Columns, Lines, Row, text_rows};
use crate::bytes::{escape, unescape};
use std::io::{self, BufRead, Write};

/// The rows of a file.
pub fn read<'a>(input: impl BufRead + 'a, columns: Columns) -> Lines<'a> {
    text_rows(input, move |line| parse(line, columns))
}

fn parse(line: &[u8], columns: Columns) -> Result<Row, String> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b'\t').collect();
    let (key, value) = columns.pick(&fields)?;
    let hint = |what| format!("{what} (a file without escapes: --format csv --delimiter '\\t')");
    Ok(Row {
        key: unescape(key).map_err(hint)?,
        value: unescape(&value.join(&b'\t')).map_err(hint)?,
    })
}

/// Writes one row.
pub fn write(out: &mut dyn Write, key: &[u8], value: &[u8]) -> io::Result<()> {
    writeln!(out, "{}\t{}", escape(key), escape(value))
}
