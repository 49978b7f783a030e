//! Bytes as text: the escapes of TSV and of messages, and hexadecimal.

use crate::failure::Failure;
use std::ffi::OsStr;
use std::fmt::Write;

/// The bytes as text that stands on one line and contains no tab and no control character.
/// [`unescape`] gives them back.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\t' => text.push_str("\\t"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\\' => text.push_str("\\\\"),
                // Control characters would reach the terminal; those past ASCII have two bytes.
                c if c.is_control() => push_numbers(&mut text, c.to_string().as_bytes()),
                c => text.push(c),
            }
        }
        push_numbers(&mut text, chunk.invalid());
    }
    text
}

fn push_numbers(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        write!(text, "\\x{byte:02x}").expect("writing to a string succeeds");
    }
}

/// The bytes that [`escape`] wrote, or what is wrong with the text.
pub fn unescape(text: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        match rest {
            [b't', ..] => bytes.push(b'\t'),
            [b'n', ..] => bytes.push(b'\n'),
            [b'r', ..] => bytes.push(b'\r'),
            [b'\\', ..] => bytes.push(b'\\'),
            [b'x', high, low, ..] => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => bytes.push(high << 4 | low),
                _ => return Err("\\x is not followed by two hexadecimal digits".into()),
            },
            [b'x', ..] => return Err("\\x is not followed by two hexadecimal digits".into()),
            [other, ..] => {
                return Err(format!(
                    "unknown escape \\{}: write \\\\ for a backslash",
                    other.escape_ascii()
                ));
            }
            [] => return Err("a backslash at the end: write \\\\ for a backslash".into()),
        }
        let used = if rest[0] == b'x' { 3 } else { 1 };
        rest = &rest[used..];
    }
    Ok(bytes)
}

/// Lower-case hexadecimal, two digits a byte.
pub fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a string succeeds");
    }
    text
}

/// The bytes of a hexadecimal text, or what is wrong with it.
pub fn from_hex(text: &[u8]) -> Result<Vec<u8>, String> {
    if !text.len().is_multiple_of(2) {
        return Err("hexadecimal needs two digits a byte, and the number of digits is odd".into());
    }
    text.chunks_exact(2)
        .map(|pair| match (digit(pair[0]), digit(pair[1])) {
            (Some(high), Some(low)) => Ok(high << 4 | low),
            _ => Err(format!("{:?} is not hexadecimal", pair.escape_ascii().to_string())),
        })
        .collect()
}

fn digit(c: u8) -> Option<u8> {
    char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

/// A key or value from the command line.
pub fn from_argument(argument: &OsStr, hex: bool) -> Result<Vec<u8>, Failure> {
    let bytes = argument.as_encoded_bytes();
    if hex { from_hex(bytes).map_err(Failure::Usage) } else { Ok(bytes.to_vec()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_survive_escaping_and_hex() {
        let all: Vec<u8> = (0..=255).chain("Ünïcödé \\x41 \u{9b} \u{10ffff}".bytes()).collect();
        for bytes in [&all[..], b"", b"\\", b"\xf0\x9f", b"\t\r\n"] {
            let text = escape(bytes);
            assert!(!text.chars().any(char::is_control), "{text}");
            assert_eq!(unescape(text.as_bytes()).as_deref(), Ok(bytes));
            assert_eq!(from_hex(to_hex(bytes).as_bytes()).as_deref(), Ok(bytes));
        }
        assert_eq!(escape("é\t\\\0".as_bytes()), "é\\t\\\\\\x00");
    }

    #[test]
    fn broken_escapes_are_refused() {
        for text in ["\\", "a\\q", "\\x", "\\x4", "\\x4g", "\\xé"] {
            assert!(unescape(text.as_bytes()).is_err(), "{text}");
        }
        for text in ["0", "0g", "+1", " 1"] {
            assert!(from_hex(text.as_bytes()).is_err(), "{text}");
        }
    }
}
