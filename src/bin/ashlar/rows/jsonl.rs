//! JSON lines: an object a line, with `key` or `key_hex` and `value` or `value_hex`; and `expires_ms`, if
//! the row expires.

use super::{Lines, Row, text_rows};
use crate::bytes::from_hex;
use crate::output::row_json;
use serde_json::{Deserializer, Value};
use std::io::{self, BufRead, Write};

/// The rows of a file.
pub fn read<'a>(input: impl BufRead + 'a) -> Lines<'a> {
    text_rows(input, parse)
}

/// Writes one row.
pub fn write(
    out: &mut dyn Write,
    key: &[u8],
    value: &[u8],
    expires_ms: Option<u64>,
) -> io::Result<()> {
    let mut row = row_json(key, Some(value));
    if let (Some(expiry), Value::Object(row)) = (expires_ms, &mut row) {
        row.insert("expires_ms".to_owned(), expiry.into());
    }
    writeln!(out, "{row}")
}

/// Reads the object member by member, because a value that is not a string is kept as it is
/// written: parsed and printed again, its large numbers would lose digits and its members their order.
fn parse(line: &[u8]) -> Result<Row, String> {
    let mut text = Text { rest: line };
    let (mut key, mut value, mut expires_ms) = (None, None, None);
    text.expect(b'{', "the line is not a JSON object")?;
    let mut first = true;
    while !text.skip(b'}') {
        if !first {
            text.expect(b',', "a comma is missing between members")?;
        }
        first = false;
        let (name, _) = text.value()?;
        text.expect(b':', "a colon is missing after a member's name")?;
        let (content, written) = text.value()?;
        let name = name.as_str().ok_or("a member's name is not a string")?;
        if name == "expires_ms" {
            let expiry = content.as_u64().ok_or("the member \"expires_ms\" is not a time")?;
            if expires_ms.replace(expiry).is_some() {
                return Err("the member \"expires_ms\" repeats another".into());
            }
            continue;
        }
        let (slot, bytes) = match (name, &content) {
            ("key", Value::String(text)) => (&mut key, text.clone().into_bytes()),
            ("key_hex", Value::String(text)) => (&mut key, from_hex(text.as_bytes())?),
            ("value", Value::String(text)) => (&mut value, text.clone().into_bytes()),
            ("value", _) => (&mut value, without_spaces(written)),
            ("value_hex", Value::String(text)) => (&mut value, from_hex(text.as_bytes())?),
            ("key" | "key_hex" | "value_hex", _) => {
                return Err(format!("the member {name:?} is not a string"));
            }
            _ => {
                return Err(format!(
                    "the member {name:?} is none of key, key_hex, value, value_hex, expires_ms"
                ));
            }
        };
        if slot.replace(bytes).is_some() {
            return Err(format!("the member {name:?} repeats another"));
        }
    }
    if !text.is_at_end() {
        return Err("something follows the JSON object".into());
    }
    Ok(Row {
        key: key.ok_or("the member \"key\" is missing")?,
        value: value.ok_or("the member \"value\" is missing")?,
        expires_ms,
    })
}

/// What is left of a JSON text.
struct Text<'a> {
    rest: &'a [u8],
}

impl<'a> Text<'a> {
    /// Passes this character if it comes next, after white space.
    fn skip(&mut self, character: u8) -> bool {
        self.rest = self.rest.trim_ascii_start();
        match self.rest {
            [first, rest @ ..] if *first == character => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn expect(&mut self, character: u8, otherwise: &str) -> Result<(), String> {
        if self.skip(character) { Ok(()) } else { Err(otherwise.into()) }
    }

    fn is_at_end(&self) -> bool {
        self.rest.trim_ascii_start().is_empty()
    }

    /// The next JSON value, and how it is written.
    fn value(&mut self) -> Result<(Value, &'a [u8]), String> {
        let mut values = Deserializer::from_slice(self.rest).into_iter::<Value>();
        let value = match values.next() {
            Some(Ok(value)) => value,
            Some(Err(error)) => return Err(format!("invalid JSON: {error}")),
            None => return Err("the JSON object is cut short".into()),
        };
        let (written, rest) = self.rest.split_at(values.byte_offset());
        self.rest = rest;
        Ok((value, written))
    }
}

/// Valid JSON without the white space between its parts.
fn without_spaces(json: &[u8]) -> Vec<u8> {
    let mut compact = Vec::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for &byte in json {
        if in_string || !byte.is_ascii_whitespace() {
            compact.push(byte);
        }
        if byte == b'"' && !escaped {
            in_string = !in_string;
        }
        escaped = in_string && byte == b'\\' && !escaped;
    }
    compact
}
