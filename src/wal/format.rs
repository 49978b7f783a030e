//! The fixed layouts of a log file: its name, its header and the header of a record.
//!
//! Offsets below are those of the tables in FORMAT.md, section 4.

use super::ops::MIN_OP_LEN;
use crate::checksum::checksum;
use crate::coding::{u32_at, u64_at};
use crate::error::Malformed;
use crate::types::{LogId, SeqNo};

/// The length of a log's header, in bytes: where the first record starts.
pub(crate) const HEADER_LEN: u64 = 64;

/// The length of a record's header, in bytes.
pub(crate) const RECORD_HEADER_LEN: usize = 26;

/// The longest payload that a record's length field can say.
pub(super) const MAX_PAYLOAD_LEN: u64 = (1 << 40) - 1;

/// A record of batches.
pub(super) const KIND_GROUP: u8 = 1;

/// A record that only says what is durable.
pub(super) const KIND_MARK: u8 = 2;

/// A record that takes one sequence number and changes nothing.
pub(super) const KIND_SKIP: u8 = 3;

/// A record that says which edit of the manifest was durable when it was written: its payload, a
/// number of 8 bytes. Optional.
pub(super) const KIND_WITNESS: u8 = 0x81;

/// A record that says which keyspaces there are, for change feeds: see `keyspaces`. Optional.
pub(super) const KIND_KEYSPACES: u8 = 0x82;

/// Record kinds with this bit may be skipped by a reader that does not know them.
pub(super) const KIND_OPTIONAL: u8 = 0x80;

/// The distance to the durable point when it does not fit.
const FAR: u32 = u32::MAX;

const MAGIC: &[u8; 8] = b"ASHLRWAL";
const VERSION: u32 = 1;

/// The name of a log file: its id in decimal, 20 digits.
pub(crate) fn log_file_name(id: LogId) -> String {
    format!("{:020}.wal", id.0)
}

/// The id of the log with this name; `None` if it is not the name of a log.
pub(crate) fn parse_log_file_name(name: &str) -> Option<LogId> {
    let digits = name.strip_suffix(".wal")?;
    if digits.len() != 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().map(LogId)
}

/// The header of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogHeader {
    pub(super) id: LogId,
    /// Random; goes into the checksum of every record, so that those of no other log verify here.
    pub(super) salt: u64,
    /// The log before this one, and where its records end.
    pub(super) predecessor: Option<(LogId, u64)>,
    /// The last operation before this log.
    pub(super) last_seqno: SeqNo,
}

impl LogHeader {
    pub(super) fn encode(&self, database: u64) -> [u8; HEADER_LEN as usize] {
        let (predecessor, end) = self.predecessor.unwrap_or((LogId(0), 0));
        let mut out = [0; HEADER_LEN as usize];
        out[0..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..24].copy_from_slice(&self.id.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.salt.to_le_bytes());
        out[32..40].copy_from_slice(&predecessor.0.to_le_bytes());
        out[40..48].copy_from_slice(&end.to_le_bytes());
        out[48..56].copy_from_slice(&self.last_seqno.0.to_le_bytes());
        let sum = checksum(database, 0, &out[..56]);
        out[56..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Decodes the first bytes of a log. `None`: they do not verify, so nothing can be said. An
    /// error: they do, and mean something else than a header of this version.
    pub(super) fn decode(bytes: &[u8], database: u64) -> Result<Option<LogHeader>, Malformed> {
        let word = |at| u64_at(bytes, at);
        let (Some(covered), Some(sum)) = (bytes.get(..56), word(56)) else { return Ok(None) };
        if checksum(database, 0, covered) != sum {
            return Ok(None);
        }
        if !covered.starts_with(MAGIC) {
            return Err(Malformed::Damaged("it is not a write-ahead log"));
        }
        match u32_at(bytes, 8) {
            Some(VERSION) => {}
            Some(0) | None => return Err(Malformed::Damaged("its format version is 0")),
            Some(_) => {
                return Err(Malformed::Unsupported("a log format that a newer version writes"));
            }
        }
        let fields = (word(16), word(24), word(32), word(40), word(48));
        let (Some(id), Some(salt), Some(before), Some(end), Some(last_seqno)) = fields else {
            return Ok(None);
        };
        if u32_at(bytes, 12) != Some(0) {
            return Err(Malformed::Damaged("a reserved field of the log header is set"));
        }
        if matches!(id, 0 | u64::MAX) {
            return Err(Malformed::Damaged("the log has an impossible id"));
        }
        let predecessor = match (before, end) {
            (0, 0) => None,
            (1.., HEADER_LEN..) if before < id => Some((LogId(before), end)),
            _ => return Err(Malformed::Damaged("the log header names an impossible predecessor")),
        };
        let last_seqno = SeqNo(last_seqno);
        Ok(Some(LogHeader { id: LogId(id), salt, predecessor, last_seqno }))
    }
}

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) sum: u64,
    pub(super) payload_len: u64,
    pub(super) kind: u8,
    pub(super) seqno: SeqNo,
    back: u32,
}

impl RecordHeader {
    /// The header at the start of `bytes`; `None` if they are too few.
    #[inline]
    pub(super) fn decode(bytes: &[u8]) -> Option<RecordHeader> {
        let bytes: &[u8; RECORD_HEADER_LEN] = bytes.first_chunk()?;
        let payload_len =
            u64::from(u32_at(bytes, 8)?) | u64::from(*bytes.get(12)?).wrapping_shl(32);
        Some(RecordHeader {
            sum: u64_at(bytes, 0)?,
            payload_len,
            kind: *bytes.get(13)?,
            seqno: SeqNo(u64_at(bytes, 14)?),
            back: u32_at(bytes, 22)?,
        })
    }

    /// The length of the record, header included.
    pub(super) fn len(&self) -> u64 {
        self.payload_len + RECORD_HEADER_LEN as u64
    }

    /// Up to where the log was known durable when this record was written at `offset`. Zero if it
    /// was too far back to say; `None` if it would lie in front of the file.
    pub(super) fn durable(&self, offset: u64) -> Option<u64> {
        if self.back == FAR { Some(0) } else { offset.checked_sub(u64::from(self.back)) }
    }

    /// Whether a record that starts at `offset` may look like this, given that operation `next` is
    /// the first one at or behind `from`. Cheap, and rarely true of anything but a record.
    #[inline]
    pub(super) fn is_plausible(&self, offset: u64, from: u64, next: SeqNo) -> bool {
        let length_fits_kind = match self.kind {
            KIND_GROUP => self.payload_len > MIN_OP_LEN,
            KIND_MARK | KIND_SKIP => self.payload_len == 0,
            kind => kind & KIND_OPTIONAL != 0,
        };
        let ops_max = offset.saturating_sub(from) / MIN_OP_LEN;
        length_fits_kind
            && self.seqno.0.checked_sub(next.0).is_some_and(|ops| ops <= ops_max)
            && self.durable(offset).is_some()
    }
}

/// The edit of the manifest that a witness mentions; zero if its payload is of another length.
pub(super) fn witnessed(payload: &[u8]) -> u64 {
    payload.try_into().map_or(0, u64::from_le_bytes)
}

/// Fills in the header of `record`, whose payload is there already, for `offset` of its log.
pub(super) fn seal_record(
    record: &mut [u8],
    salt: u64,
    kind: u8,
    seqno: SeqNo,
    offset: u64,
    durable: u64,
) {
    let len = (record.len() - RECORD_HEADER_LEN) as u64;
    let back = u32::try_from(offset.saturating_sub(durable)).unwrap_or(FAR);
    record[8..13].copy_from_slice(&len.to_le_bytes()[..5]);
    record[13] = kind;
    record[14..22].copy_from_slice(&seqno.0.to_le_bytes());
    record[22..26].copy_from_slice(&back.to_le_bytes());
    let sum = checksum(salt, offset, &record[8..]);
    record[..8].copy_from_slice(&sum.to_le_bytes());
}

/// Whether `record`, header and payload, is what was written at `offset` of the log with `salt`.
pub(super) fn verifies(record: &[u8], salt: u64, offset: u64) -> bool {
    match (record.get(8..), u64_at(record, 0)) {
        (Some(covered), Some(sum)) => checksum(salt, offset, covered) == sum,
        _ => false,
    }
}
