//! CBOR (RFC 8949): a sequence (RFC 8742) of arrays of key and value, both byte strings, and when the row
//! expires, if it does, as an unsigned integer.
//!
//! What stands for a line number is that of the item. Behind an item that is not well-formed nobody knows
//! where the next one begins, so that is a failed read.

use super::{Line, Lines, Row};
use ciborium::Value;
use std::io::{self, BufRead, Write};

/// The rows of a file.
pub fn read<'a>(input: impl BufRead + 'a) -> Lines<'a> {
    let (mut input, mut number) = (input, 0);
    let mut next = move || {
        let is_end = loop {
            match input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                bytes => break bytes?.is_empty(),
            }
        };
        if is_end {
            return Ok(None);
        }
        number += 1;
        let item = ciborium::from_reader(&mut input).map_err(|error| match error {
            ciborium::de::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                invalid(number, "is cut short".to_owned())
            }
            ciborium::de::Error::Io(error) => error,
            error => invalid(number, format!("is not well-formed CBOR: {error}")),
        })?;
        Ok(Some(Line { number, row: parse(item) }))
    };
    let mut failed = false;
    Box::new(std::iter::from_fn(move || {
        let line = if failed { None } else { next().transpose() };
        failed = matches!(line, Some(Err(_)));
        line
    }))
}

fn invalid(number: u64, what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("item {number} {what}"))
}

fn parse(item: Value) -> Result<Row, String> {
    let parts = item.into_array().map_err(|_| "the item is not an array of key and value")?;
    let bytes = |part: Value, name: &str| match part {
        Value::Bytes(bytes) => Ok(bytes),
        Value::Text(text) => Ok(text.into_bytes()),
        _ => Err(format!("the {name} is neither a byte string nor a text string")),
    };
    let mut parts = parts.into_iter();
    let (Some(key), Some(value)) = (parts.next(), parts.next()) else {
        return Err("the array lacks a key or a value".into());
    };
    let expires_ms = match parts.next() {
        None => None,
        Some(expiry) => {
            let expiry = expiry.into_integer().ok().and_then(|n| u64::try_from(n).ok());
            Some(expiry.ok_or("what follows the value is not an expiry: an unsigned integer")?)
        }
    };
    if parts.next().is_some() {
        return Err("the array has more than key, value and expiry".into());
    }
    Ok(Row { key: bytes(key, "key")?, value: bytes(value, "value")?, expires_ms })
}

/// Writes one row.
pub fn write(
    out: &mut dyn Write,
    key: &[u8],
    value: &[u8],
    expires_ms: Option<u64>,
) -> io::Result<()> {
    let mut parts = vec![Value::Bytes(key.to_vec()), Value::Bytes(value.to_vec())];
    parts.extend(expires_ms.map(|expiry| Value::Integer(expiry.into())));
    ciborium::into_writer(&Value::Array(parts), out).map_err(|error| match error {
        ciborium::ser::Error::Io(error) => error,
        error @ ciborium::ser::Error::Value(_) => io::Error::other(error.to_string()),
    })
}
