//! The worked segment of FORMAT.md section 7.

use super::bytes::{u16_at, u32_at, u64_at};
use super::segment::{self, BLOOM, FOOTER, INDEX, LAST_KEY, PAGE, PROPERTIES, PROPERTY_NAMES, TAG};
use std::fmt::Write;

const HEADING: &str = "## 7. A worked segment";
const BYTES_A_LINE: usize = 16;

/// The lines of the dump: offset and bytes.
pub fn parse(text: &str) -> Vec<(usize, Vec<u8>)> {
    let (_, section) = text.split_once(&format!("{HEADING}\n")).expect("section 7");
    let lines = section.lines().filter_map(|line| {
        let (offset, rest) = line.split_at_checked(4)?;
        let offset = usize::from_str_radix(offset, 16).ok()?;
        let bytes = rest.strip_prefix("  ")?.split("  ").next()?;
        let bytes = bytes.split(' ').map(|byte| u8::from_str_radix(byte, 16).ok());
        Some((offset, bytes.collect::<Option<Vec<u8>>>()?))
    });
    lines.collect()
}

/// The text with a new dump in the place of the fenced block of section 7.
pub fn replace(text: &str, file: &[u8]) -> String {
    let (head, section) = text.split_once(&format!("{HEADING}\n")).expect("section 7");
    let (before, rest) = section.split_once("```text\n").expect("a block");
    let (_, after) = rest.split_once("\n```").expect("its end");
    format!("{head}{HEADING}\n{before}```text\n{}\n```{after}", dump(file).trim_end())
}

struct Dump<'a> {
    file: &'a [u8],
    at: usize,
    out: String,
}

impl Dump<'_> {
    fn title(&mut self, title: &str) {
        writeln!(self.out, "\n      {title}").expect("a string");
    }

    /// The next field and what it means.
    fn field(&mut self, length: usize, meaning: &str) {
        let mut meaning = meaning;
        for bytes in self.file[self.at..self.at + length].chunks(BYTES_A_LINE) {
            let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let line = format!("{:04x}  {:<47}  {meaning}", self.at, hex.join(" "));
            writeln!(self.out, "{}", line.trim_end()).expect("a string");
            meaning = "";
            self.at += bytes.len();
        }
    }

    /// Zeros up to there.
    fn zeros(&mut self, end: usize, meaning: &str) {
        assert!(self.file[self.at..end].iter().all(|byte| *byte == 0));
        let n = end - self.at;
        writeln!(self.out, "{:04x}  … {n} zeros: {meaning}", self.at).expect("a string");
        self.at = end;
    }

    fn text(&self, at: usize, length: usize) -> String {
        format!("\"{}\"", String::from_utf8_lossy(&self.file[at..at + length]))
    }
}

/// Every byte of the tiny segment, field by field.
fn dump(file: &[u8]) -> String {
    let mut d = Dump { file, at: 0, out: String::new() };
    let layout = segment::layout(file);
    let n = usize::from(u16_at(file, 22));
    let width = usize::from(file[25]);
    d.out.push_str("      data block 0: header\n");
    d.field(8, "checksum of bytes 0x0008 to 0x0fff, o = 0");
    d.field(4, "length: 1 page");
    d.field(5, "stored: 4064");
    d.field(5, "raw: 4064");
    d.field(2, "3 entries");
    d.field(1, "codec: none");
    d.field(1, "prefix width: 4");
    d.field(2, "common prefix: 2 bytes, \"an\"");
    d.field(4, "reserved");
    d.title("data block 0: entries; the payload starts at 0x0020");
    for i in 0..n {
        let key = usize::from(u16_at(file, d.at));
        let value = u32_at(file, d.at + 2) as usize;
        d.field(2, &format!("entry {i}: key length {key}"));
        d.field(4, &format!("value length {value}"));
        d.field(1, "flags: kind 1, put; no sequence number, no expiry, another key");
        d.field(key, &format!("key {}", d.text(d.at, key)));
        if value > 0 {
            d.field(value, &format!("value {}", d.text(d.at, value)));
        }
    }
    let trailer = PAGE - ((width + 3) * n).next_multiple_of(8);
    d.zeros(trailer, "padding");
    d.title("data block 0: trailer, 24 bytes: (4 + 3) × 3 = 21, rounded up");
    let mut start = 32;
    for i in 0..n {
        let key = usize::from(u16_at(file, start));
        let rest = d.text(start + 9, key - 2);
        d.field(width, &format!("prefix {i}: of {rest}, most significant byte last"));
        start += 7 + key + u32_at(file, start + 2) as usize;
    }
    for i in 0..n {
        d.field(2, &format!("offset {i}: entry {i} starts at 0x{:04x}", 32 + u16_at(file, d.at)));
    }
    for i in 0..n {
        d.field(1, &format!("hash byte {i}"));
    }
    d.field(PAGE - d.at, "zeros up to a multiple of 8");

    for section in &layout.sections {
        let (start, end) = (section.offset, section.offset + section.length);
        assert_eq!(d.at, start);
        match section.id {
            INDEX => {
                d.title("section 1, block index");
                let common = usize::from(u16_at(file, start + 5));
                d.field(1, "layout: single");
                d.field(4, "n: 1 block");
                d.field(2, &format!("c: the separators have {common} bytes in common"));
                d.field(2, "reserved");
                d.field(common, &format!("the common prefix, {}", d.text(d.at, common)));
                d.field(8, "prefix of what follows it in separator 0: nothing");
                d.field(4, "block 0 starts at page 0");
                d.field(4, "the last block ends where page 1 starts");
                d.field(2, "block 0 has 3 entries");
                d.field(4, "the tail of separator 0 starts at 0 of the tails");
                d.field(4, "and ends at 0: there are no tails");
            }
            BLOOM => {
                d.title("section 3, bloom filter");
                d.field(1, "layout: single");
                d.field(1, "filter version: 1");
                d.field(8, &format!("m: {} bytes of bits", u64_at(file, d.at)));
                d.field(4, &format!("k: {} probes", u32_at(file, d.at)));
                d.field(16, "K0");
                d.field(16, "K1");
                d.field(end - d.at, "bits");
            }
            TAG => {
                d.title("section 6, compression tag");
                d.field(1, "codec: none");
                d.field(4, "level: 0");
            }
            LAST_KEY => {
                d.title("section 7, last key");
                d.field(section.length, &d.text(start, section.length));
            }
            PROPERTIES => {
                d.title("section 5, properties");
                while d.at < end {
                    let (id, length) = (u16_at(file, d.at), u32_at(file, d.at + 2) as usize);
                    let name = PROPERTY_NAMES.iter().find(|(known, _)| *known == id);
                    let meaning = match name {
                        None => format!("6 first_key: {}", d.text(d.at + 6, length)),
                        Some((11, name)) => format!("11 {name}: none, standalone"),
                        Some((12, name)) => format!("12 {name}"),
                        Some((id, name)) => format!("{id} {name}: {}", u64_at(file, d.at + 6)),
                    };
                    d.field(6 + length, &meaning);
                }
            }
            other => panic!("section {other} is not in the tiny segment"),
        }
        assert_eq!(d.at, end);
    }
    d.title("section table");
    d.field(4, &format!("{} sections", layout.sections.len()));
    for section in &layout.sections {
        d.field(2, &format!("section id {}", section.id));
        d.field(2, "reserved");
        d.field(8, &format!("offset 0x{:04x}", section.offset));
        d.field(8, &format!("length {}", section.length));
        d.field(8, "checksum");
    }
    d.title("footer");
    let uuid_at = d.at;
    d.field(16, "UUID");
    d.field(8, &format!("meta_offset: 0x{:04x}", layout.meta_offset));
    d.field(8, &format!("table_offset: 0x{:04x}", layout.table_offset));
    d.field(8, &format!("table_length: {}", layout.table_length));
    d.field(8, "checksum of the section table");
    d.field(8, &format!("file length: {}", file.len()));
    d.field(4, "format version: 1");
    d.field(20, "reserved");
    d.field(8, "magic: \"ASHLRSEG\"");
    d.field(
        8,
        &format!("checksum of the 88 bytes from 0x{uuid_at:04x}, salt 0, o = {}", file.len()),
    );
    assert_eq!((d.at, d.at - uuid_at), (file.len(), FOOTER));
    d.out
}
