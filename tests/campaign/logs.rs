//! What is in the logs of a store, and what must come of damage to them, by FORMAT.md section 4 alone.
//!
//! Reads logs that are sound. [`fate`] says what opening must do about damage, and so what a test
//! holds the library against.

use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Where the first record of a log is.
pub const HEADER: usize = 64;

const RECORD_HEADER: usize = 26;

/// One record of a log.
#[derive(Clone, Debug)]
pub struct Record {
    pub offset: usize,
    pub end: usize,
    /// The last operation before it.
    pub before: u64,
    /// Up to where the log was known to be durable when it was written.
    pub durable: usize,
}

/// One log.
#[derive(Clone, Debug)]
pub struct Log {
    pub name: String,
    /// The id in its header.
    id: u64,
    /// The log before this one.
    predecessor: u64,
    pub records: Vec<Record>,
    /// Where the records end.
    pub end: usize,
    /// The last operation before it.
    pub before: u64,
}

/// The checksum of the bytes that start at an offset.
pub fn checksum(salt: u64, offset: usize, bytes: &[u8]) -> u64 {
    let seed = salt.wrapping_add((offset as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    xxh3_64_with_seed(bytes, seed)
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn record_at(bytes: &[u8], salt: u64, offset: usize) -> Option<Record> {
    let header = bytes.get(offset..offset + RECORD_HEADER)?;
    let payload = (u64_at(header, 8) & 0xff_ffff_ffff) as usize;
    let end = offset.checked_add(RECORD_HEADER)?.checked_add(payload)?;
    let rest = bytes.get(offset + 8..end)?;
    if checksum(salt, offset, rest) != u64_at(header, 0) {
        return None;
    }
    let distance = u32::from_le_bytes(header[22..26].try_into().expect("four bytes"));
    let durable = if distance == u32::MAX { 0 } else { offset - distance as usize };
    Some(Record { offset, end, before: u64_at(header, 14) - 1, durable })
}

/// Reads a log up to the first record that does not verify.
pub fn read(name: &str, bytes: &[u8]) -> Log {
    let salt = u64_at(bytes, 24);
    let mut records: Vec<Record> = Vec::new();
    let mut end = HEADER;
    while let Some(record) = record_at(bytes, salt, end) {
        end = record.end;
        records.push(record);
    }
    Log {
        name: name.to_owned(),
        id: u64_at(bytes, 16),
        predecessor: u64_at(bytes, 32),
        records,
        end,
        before: u64_at(bytes, 48),
    }
}

/// Whether a file is a log.
pub fn is_log(name: &str) -> bool {
    name.ends_with(".wal")
}

/// The logs that count, oldest first.
pub fn chain(files: &BTreeMap<String, Vec<u8>>) -> Vec<Log> {
    let logs = files.iter().filter(|(name, bytes)| is_log(name) && bytes.len() >= HEADER);
    let mut logs: Vec<Log> = logs.map(|(name, bytes)| read(name, bytes)).collect();
    // Of two neighbours the newer one follows on the older one, or the older ones do not count.
    for i in (1..logs.len()).rev() {
        if logs[i].predecessor != logs[i - 1].id {
            logs.drain(..i);
            break;
        }
    }
    logs
}

/// What opening must do about damage to the records of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Refuse, and name this offset of the log.
    Damage { offset: usize },
    /// Take it for a torn tail that begins at this offset: what is left ends with this operation.
    Torn { offset: usize, last: u64 },
}

/// What must come of damage to the bytes from `from` to `to` of log `i` of a chain, which lie among
/// its records. `None`: there are no records there.
pub fn fate(chain: &[Log], i: usize, from: usize, to: usize) -> Option<Fate> {
    let log = &chain[i];
    let hit = log.records.iter().find(|record| record.end > from && record.offset < to)?;
    let offset = hit.offset;
    let behind = log.records.iter().filter(|record| record.offset >= to);
    let later = chain[i + 1..].iter().flat_map(|log| &log.records);
    let is_proven = behind.into_iter().any(|record| record.durable > offset)
        || later.into_iter().any(|record| record.durable > HEADER);
    Some(if is_proven { Fate::Damage { offset } } else { Fate::Torn { offset, last: hit.before } })
}
