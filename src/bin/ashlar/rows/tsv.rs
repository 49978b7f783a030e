//! Tab-separated rows: `key TAB value`, both escaped (see [`crate::bytes`]), and of a row that expires
//! `TAB \@` and when, in milliseconds since the Unix epoch.

use super::{Columns, Lines, Row, text_rows};
use crate::bytes::{escape, unescape};
use std::io::{self, BufRead, Write};

/// What a column begins with that says when the row expires.
const EXPIRY: &[u8] = b"\\@";

/// The rows of a file.
pub fn read<'a>(input: impl BufRead + 'a, columns: Columns) -> Lines<'a> {
    text_rows(input, move |line| parse(line, columns))
}

fn parse(line: &[u8], columns: Columns) -> Result<Row, String> {
    let mut fields: Vec<&[u8]> = line.split(|byte| *byte == b'\t').collect();
    // No escape begins so.
    let expiry = fields.pop_if(|last| last.starts_with(EXPIRY));
    let expires_ms = expiry.map(|field| {
        let number = str::from_utf8(&field[EXPIRY.len()..]).ok().and_then(|n| n.parse().ok());
        number.ok_or("what follows \\@ is not a time in milliseconds")
    });
    let (key, value) = columns.pick(&fields)?;
    let hint = |what| format!("{what} (a file without escapes: --format csv --delimiter '\\t')");
    Ok(Row {
        key: unescape(key).map_err(hint)?,
        value: unescape(&value.join(&b'\t')).map_err(hint)?,
        expires_ms: expires_ms.transpose()?,
    })
}

/// Writes one row.
pub fn write(
    out: &mut dyn Write,
    key: &[u8],
    value: &[u8],
    expires_ms: Option<u64>,
) -> io::Result<()> {
    write!(out, "{}\t{}", escape(key), escape(value))?;
    match expires_ms {
        Some(expiry) => writeln!(out, "\t\\@{expiry}"),
        None => writeln!(out),
    }
}
