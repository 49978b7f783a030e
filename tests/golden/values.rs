//! A reader of value segments written from FORMAT.md section 10 alone: it shares no code with the library,
//! takes sound files, and panics where a rule is broken.

use super::bytes::{checksum, u32_at, u64_at};
use super::segment::decompress;
use std::collections::BTreeMap;

pub const FOOTER: usize = 96;
pub const RECORD: usize = 20;

/// A value segment that was read.
pub struct Values {
    pub footer_checksum: u64,
    pub file_length: u64,
    /// By the offset of the record: the 24 last bytes of a reference to it, and the value.
    pub records: BTreeMap<u64, ([u8; 24], Vec<u8>)>,
}

pub fn read(file: &[u8]) -> Values {
    let (body, footer) = file.split_at(file.len() - FOOTER);
    assert_eq!(&footer[80..88], b"ASHLRVAL");
    let length = file.len() as u64;
    assert_eq!(u64_at(footer, 88), checksum(0, u64_at(footer, 48), &footer[..88]), "footer");
    assert_eq!((u32_at(footer, 56), &footer[64..80]), (1, &[0; 16][..]));
    assert_eq!((u64_at(footer, 16), u64_at(footer, 48)), (body.len() as u64, length));
    let salt = u64_at(footer, 0) ^ u64_at(footer, 8);
    let (mut at, mut raw_bytes, mut records) = (0, 0, BTreeMap::new());
    while at < body.len() {
        let record = &body[at..];
        let (stored, raw) = (u32_at(record, 8) as usize, u32_at(record, 12) as usize);
        let record = &record[..RECORD + stored];
        assert_eq!(u64_at(record, 0), checksum(salt, at as u64, &record[8..]), "value");
        assert_eq!(record[17..20], [0; 3]);
        let value = match record[16] {
            0 => record[RECORD..].to_vec(),
            codec => decompress(codec, &record[RECORD..], raw),
        };
        assert_eq!(value.len(), raw);
        let mut reference = [0; 24];
        reference[..8].copy_from_slice(&(at as u64).to_le_bytes());
        reference[8..16].copy_from_slice(&record[8..16]);
        reference[16..].copy_from_slice(&record[..8]);
        records.insert(at as u64, (reference, value));
        raw_bytes += raw as u64;
        at += record.len();
    }
    assert_eq!((u64_at(footer, 24), u64_at(footer, 32)), (records.len() as u64, raw_bytes));
    Values { footer_checksum: u64_at(footer, 88), file_length: length, records }
}

/// What entries of kind 6 stand for, by the files of their database.
pub struct References<'a> {
    files: &'a super::database::Files,
    open: BTreeMap<u64, Values>,
}

impl<'a> References<'a> {
    pub fn new(files: &'a super::database::Files) -> References<'a> {
        References { files, open: BTreeMap::new() }
    }

    pub fn file(&mut self, id: u64) -> &Values {
        let file = || read(&self.files[&format!("{id:020}.val")]);
        self.open.entry(id).or_insert_with(file)
    }

    /// How many files were referred to.
    pub fn seen(&self) -> usize {
        self.open.len()
    }

    /// The value, and how much of the value segment it takes.
    pub fn value(&mut self, reference: &[u8]) -> (Vec<u8>, u64) {
        assert_eq!(reference.len(), 32);
        let (expected, value) = &self.file(u64_at(reference, 0)).records[&u64_at(reference, 8)];
        assert_eq!(reference[8..], *expected);
        (value.clone(), RECORD as u64 + u64::from(u32_at(reference, 16)))
    }
}
