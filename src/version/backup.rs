//! The manifest of a backup: one moment of a database, and the files that hold it (FORMAT.md, section 9).
//!
//! ```text
//! 0        88
//! | header | bytes: an edit, the whole state | a file hash for each segment, by rising id | value segments |
//! ```
//!
//! A plain value and its bytes, written once and never changed. Called by the backups of `db`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::edit::Edit;
use super::state::ManifestState;
use crate::checksum::checksum;
use crate::coding::{Reader, put_bytes, put_u32, put_u64, u64_at};
use crate::error::{Malformed, Result};
use crate::types::SegmentId;
use std::collections::BTreeMap;
use std::path::Path;

const MAGIC: &[u8; 8] = b"ASHLRBAK";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 88;

/// What a backup holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BackupManifest {
    /// Which backup of its directory this is.
    pub(crate) number: u64,
    /// When it was made, in milliseconds since the Unix epoch.
    pub(crate) created_ms: u64,
    /// The state of the database, but for the number of its last edit.
    pub(crate) state: ManifestState,
    /// The hash of each segment's file.
    pub(crate) hashes: BTreeMap<SegmentId, u64>,
    /// The value segments that the segments list.
    pub(crate) values: BTreeMap<SegmentId, BackedUpValues>,
}

/// A value segment in a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BackedUpValues {
    /// Its length in bytes.
    pub(crate) file_len: u64,
    /// The checksum of its footer.
    pub(crate) checksum: u64,
    /// The hash of its file.
    pub(crate) hash: u64,
}

impl BackupManifest {
    /// The bytes of the file.
    pub(crate) fn encode(&self, salt: u64) -> Vec<u8> {
        let mut edit = Vec::new();
        self.state.snapshot_edit().encode(&mut edit);
        let mut payload = Vec::new();
        put_bytes(&mut payload, &edit);
        for id in self.state.segments.keys() {
            put_u64(&mut payload, self.hashes.get(id).copied().unwrap_or_default());
        }
        if !self.values.is_empty() {
            put_u64(&mut payload, self.values.len() as u64);
        }
        for (id, values) in &self.values {
            for number in [id.0, values.file_len, values.checksum, values.hash] {
                put_u64(&mut payload, number);
            }
        }
        encode_sealed(self, salt, &payload)
    }

    /// Decodes the whole file.
    pub(crate) fn decode(bytes: &[u8], path: &Path) -> Result<BackupManifest> {
        let (header, payload) = Header::decode(bytes).map_err(|wrong| wrong.at(path, 0))?;
        header.read(payload).map_err(|wrong| wrong.at(path, HEADER_LEN as u64))
    }
}

/// The bytes of a file with this payload, whatever that is.
pub(super) fn encode_sealed(manifest: &BackupManifest, salt: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN + payload.len());
    out.extend_from_slice(MAGIC);
    put_u32(&mut out, VERSION);
    put_u32(&mut out, 0);
    out.extend_from_slice(&manifest.state.uuid);
    put_u64(&mut out, manifest.state.hash_seed);
    put_u64(&mut out, salt);
    put_u64(&mut out, manifest.number);
    put_u64(&mut out, manifest.created_ms);
    put_u64(&mut out, payload.len() as u64);
    put_u64(&mut out, checksum(salt, HEADER_LEN as u64, payload));
    let sum = checksum(0, 0, &out);
    put_u64(&mut out, sum);
    out.extend_from_slice(payload);
    out
}

struct Header {
    uuid: [u8; 16],
    hash_seed: u64,
    number: u64,
    created_ms: u64,
}

impl Header {
    /// The header and the payload, whose checksums are right.
    fn decode(bytes: &[u8]) -> std::result::Result<(Header, &[u8]), Malformed> {
        let short = Malformed::Damaged("it is not the manifest of a backup, or cut short");
        let (header, payload) = bytes.split_at_checked(HEADER_LEN).ok_or(short)?;
        if !header.starts_with(MAGIC) {
            return Err(short);
        }
        let summed = header.get(..HEADER_LEN - 8).ok_or(short)?;
        if u64_at(header, HEADER_LEN - 8) != Some(checksum(0, 0, summed)) {
            return Err(Malformed::Damaged("the header does not match its checksum"));
        }
        let mut reader = Reader::new(header.get(MAGIC.len()..).ok_or(short)?);
        match reader.u32()? {
            VERSION => {}
            0 => return Err(Malformed::Damaged("its format version is 0")),
            _ => return Err(Malformed::Unsupported("a backup that a newer version made")),
        }
        if reader.u32()? != 0 {
            return Err(Malformed::Damaged("a reserved field of the header is set"));
        }
        let uuid = *reader.bytes(16)?.first_chunk().ok_or(short)?;
        let (hash_seed, salt) = (reader.u64()?, reader.u64()?);
        let (number, created_ms) = (reader.u64()?, reader.u64()?);
        if reader.u64()? != payload.len() as u64 {
            return Err(Malformed::Damaged("it has another length than its header says"));
        }
        if reader.u64()? != checksum(salt, HEADER_LEN as u64, payload) {
            return Err(Malformed::Damaged("the payload does not match its checksum"));
        }
        Ok((Header { uuid, hash_seed, number, created_ms }, payload))
    }

    fn read(self, payload: &[u8]) -> std::result::Result<BackupManifest, Malformed> {
        let Header { uuid, hash_seed, number, created_ms } = self;
        let mut reader = Reader::new(payload);
        let edit = Edit::decode(reader.prefixed_bytes()?)?;
        let mut state = ManifestState::empty(uuid, hash_seed).with(&edit)?;
        state.edit_number = 0;
        let mut hashes = BTreeMap::new();
        for id in state.segments.keys() {
            hashes.insert(*id, reader.u64()?);
        }
        let values = Self::read_values(&mut reader, &state)?;
        if !reader.is_empty() {
            return Err(Malformed::Damaged("it has bytes to spare"));
        }
        Ok(BackupManifest { number, created_ms, state, hashes, values })
    }

    /// The value segments, of which there may be none at all.
    fn read_values(
        reader: &mut Reader<'_>,
        state: &ManifestState,
    ) -> std::result::Result<BTreeMap<SegmentId, BackedUpValues>, Malformed> {
        let mut values = BTreeMap::new();
        if reader.is_empty() {
            return Ok(values);
        }
        let wrong = Malformed::Damaged("its list of value segments is not valid");
        let (count, mut last) = (reader.u64()?, None);
        if count == 0 {
            return Err(wrong);
        }
        for _ in 0..count {
            let id = SegmentId(reader.u64()?);
            let (file_len, checksum, hash) = (reader.u64()?, reader.u64()?, reader.u64()?);
            // The ids are those of segments, and rise.
            let is_new = id < state.next_segment && !state.segments.contains_key(&id);
            if !is_new || last.is_some_and(|last| last >= id) {
                return Err(wrong);
            }
            last = Some(id);
            values.insert(id, BackedUpValues { file_len, checksum, hash });
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::super::state_tests::{add, create, edit, next, segment};
    use super::*;
    use crate::error::Error;
    use crate::types::SeqNo;
    use crate::version::Change;

    fn sample() -> BackupManifest {
        let changes = edit([
            next(9, 2, 3, 8),
            create(0, "default"),
            create(2, "stock"),
            Change::Flushed(SeqNo(77)),
            add(segment(3, 7, "a", "m")),
            add(segment(8, 7, "n", "z")),
        ]);
        let mut state = ManifestState::empty([5; 16], 99).with(&changes).unwrap();
        state.edit_number = 0;
        let hashes = BTreeMap::from([(SegmentId(3), 0x33), (SegmentId(8), 0x88)]);
        let values = BTreeMap::new();
        BackupManifest { number: 12, created_ms: 1_767_225_600_000, state, hashes, values }
    }

    fn with_values() -> BackupManifest {
        let values = BackedUpValues { file_len: 4592, checksum: 5, hash: 6 };
        let other = BackedUpValues { file_len: 99, ..values };
        BackupManifest {
            values: BTreeMap::from([(SegmentId(2), values), (SegmentId(7), other)]),
            ..sample()
        }
    }

    fn decode(bytes: &[u8]) -> Result<BackupManifest> {
        BackupManifest::decode(bytes, Path::new("b"))
    }

    #[test]
    fn what_is_written_is_read() {
        let manifest = sample();
        assert_eq!(decode(&manifest.encode(7)).unwrap(), manifest);
        let empty = BackupManifest::default();
        assert_eq!(decode(&empty.encode(0)).unwrap(), empty);
        let manifest = with_values();
        assert_eq!(decode(&manifest.encode(7)).unwrap(), manifest);
    }

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let manifest = BackupManifest { number: 2, created_ms: 3, ..BackupManifest::default() };
        let bytes = manifest.encode(4);
        let mut expected = b"ASHLRBAK\x01\0\0\0\0\0\0\0".to_vec();
        expected.extend([0; 24]);
        for n in [4, 2, 3, 13, checksum(4, 88, &bytes[88..])] {
            put_u64(&mut expected, n);
        }
        let sum = checksum(0, 0, &expected);
        put_u64(&mut expected, sum);
        // An edit of 12 bytes: next numbers, log floor, flushed number.
        expected.extend([12, 8, 4, 0, 0, 0, 0, 6, 1, 0, 7, 1, 0]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_damage() {
        let bytes = sample().encode(0x1234_5678);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(matches!(decode(&flipped), Err(Error::Corruption { .. })), "{at}:{bit}");
            }
            assert!(matches!(decode(&bytes[..at]), Err(Error::Corruption { .. })), "{at}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(decode(&longer), Err(Error::Corruption { .. })));
    }

    #[test]
    fn what_is_sealed_and_makes_no_sense_is_refused() {
        let sealed = |payload: &[u8]| decode(&encode_sealed(&sample(), 0, payload));
        let manifest = sample();
        let bytes = manifest.encode(0);
        let payload = &bytes[HEADER_LEN..];
        assert_eq!(sealed(payload).unwrap(), manifest);
        for cut in 0..payload.len() {
            assert!(matches!(sealed(&payload[..cut]), Err(Error::Corruption { .. })), "{cut}");
        }
        let (without, sealed_with) = (payload.len(), with_values().encode(0));
        let with = &sealed_with[HEADER_LEN..];
        assert_eq!(sealed(with).unwrap().values.len(), 2);
        for cut in without + 1..with.len() {
            assert!(matches!(sealed(&with[..cut]), Err(Error::Corruption { .. })), "{cut}");
        }
        // The id of the first: of a segment, behind the second, of no file yet.
        for id in [3, 7, 8, 9] {
            let mut with = with.to_vec();
            with[without + 8] = id;
            assert!(matches!(sealed(&with), Err(Error::Corruption { offset: 88, .. })), "{id}");
        }
        let none = [payload, &[0; 8]].concat();
        assert!(matches!(sealed(&none), Err(Error::Corruption { offset: 88, .. })));
        let spare = [payload, &[0]].concat();
        assert!(matches!(sealed(&spare), Err(Error::Corruption { offset: 88, .. })));
        // A change of a kind that this version does not know.
        assert!(matches!(sealed(&[2, 99, 0]), Err(Error::UnsupportedFormat { .. })));
        let mut newer = bytes.clone();
        newer[8] = 2;
        let sum = checksum(0, 0, &newer[..80]);
        newer[80..88].copy_from_slice(&sum.to_le_bytes());
        assert!(matches!(decode(&newer), Err(Error::UnsupportedFormat { .. })));
    }
}
