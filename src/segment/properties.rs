//! What a segment says of itself (FORMAT.md 3.6). Read when it is opened.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::format::OPTIONAL;
use super::values::Reference;
use crate::coding::{Reader, put_u16, put_u32, put_u64};
use crate::error::Malformed;
use crate::types::{KeyspaceId, SegmentId, SeqNo};

/// The properties of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// When it was written, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// How many entries it holds: versions of keys, tombstones included.
    pub entries: u64,
    /// How many of them are point tombstones.
    pub tombstones: u64,
    /// How many of them are merge operands.
    pub merge_operands: u64,
    /// How many of them are range tombstones.
    pub range_tombstones: u64,
    /// How many different keys there are.
    pub distinct_keys: u64,
    /// How many data blocks there are.
    pub blocks: u64,
    /// The first key.
    pub first_key: Vec<u8>,
    /// The smallest sequence number.
    pub smallest_seqno: SeqNo,
    /// The largest sequence number.
    pub largest_seqno: SeqNo,
    /// The sum of the lengths of all keys and values, in bytes.
    pub raw_bytes: u64,
    /// What the data blocks store, headers included and padding not, in bytes.
    pub stored_bytes: u64,
    /// The keyspace that it was written for; `None` in a standalone segment.
    pub keyspace: Option<KeyspaceId>,
    /// The seed of its key hashes.
    pub hash_seed: u64,
    /// Of range deletes up to this number, nothing is left here that they hide. Zero if that is not known.
    pub deletes_applied: SeqNo,
    /// The entries carry no numbers: all have one that their database's manifest gives them, at least this
    /// one. Zero if that is not so.
    pub numbered_from: SeqNo,
    /// How many of the entries expire.
    pub expiring: u64,
    /// When the first of these does, in milliseconds since the Unix epoch; 0 if there are none.
    pub first_expiry_ms: u64,
    /// When the last of these does.
    pub last_expiry_ms: u64,
    /// The value segments that entries refer to, by number.
    pub value_segments: Vec<ValueUse>,
}

/// A value segment that a segment refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ValueUse {
    /// Its number, which is also in its file's name.
    pub id: SegmentId,
    /// The length of its file, in bytes.
    pub file_len: u64,
    /// The checksum in its footer, by which a swapped file is noticed.
    pub checksum: u64,
    /// How many entries refer to it.
    pub values: u64,
    /// What the values that they refer to take there, in bytes.
    pub bytes: u64,
}

/// What stands for "no keyspace" on disk.
const STANDALONE: u32 = u32::MAX;
const LAST_ID: u16 = 14;
const FIRST_KEY: u16 = 6;
const KEYSPACE: u16 = 11;
/// Written only where they are not zero.
const OPTIONAL_IDS: [u16; 5] = [16, 0x8010, 0x8011, 0x8012, 0x8013];
/// Written only if there are any.
const VALUE_SEGMENTS: u16 = 0x8014;
const VALUE_USE_LEN: usize = 40;

impl Properties {
    /// The section's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let keyspace = self.keyspace.map_or(STANDALONE, |id| id.0).to_le_bytes();
        let mut out = Vec::new();
        for id in 1..=LAST_ID {
            let integer = self.integer(id).unwrap_or_default().to_le_bytes();
            let value: &[u8] = match id {
                FIRST_KEY => &self.first_key,
                KEYSPACE => &keyspace,
                _ => &integer,
            };
            put_u16(&mut out, id);
            put_u32(&mut out, value.len() as u32);
            out.extend_from_slice(value);
        }
        for id in OPTIONAL_IDS {
            if let Some(integer) = self.integer(id).filter(|integer| *integer != 0) {
                put_u16(&mut out, id);
                put_u32(&mut out, 8);
                out.extend_from_slice(&integer.to_le_bytes());
            }
        }
        if !self.value_segments.is_empty() {
            put_u16(&mut out, VALUE_SEGMENTS);
            put_u32(&mut out, (self.value_segments.len() * VALUE_USE_LEN) as u32);
            for ValueUse { id, file_len, checksum, values, bytes } in &self.value_segments {
                for number in [id.0, *file_len, *checksum, *values, *bytes] {
                    put_u64(&mut out, number);
                }
            }
        }
        out
    }

    fn integer(&self, id: u16) -> Option<u64> {
        Some(match id {
            1 => self.created_ms,
            2 => self.entries,
            3 => self.tombstones,
            4 => self.merge_operands,
            5 => self.blocks,
            7 => self.smallest_seqno.0,
            8 => self.largest_seqno.0,
            9 => self.raw_bytes,
            10 => self.stored_bytes,
            12 => self.hash_seed,
            13 => self.distinct_keys,
            14 => self.range_tombstones,
            16 => self.numbered_from.0,
            0x8010 => self.deletes_applied.0,
            0x8011 => self.expiring,
            0x8012 => self.first_expiry_ms,
            0x8013 => self.last_expiry_ms,
            _ => return None,
        })
    }

    fn integer_mut(&mut self, id: u16) -> Option<&mut u64> {
        Some(match id {
            1 => &mut self.created_ms,
            2 => &mut self.entries,
            3 => &mut self.tombstones,
            4 => &mut self.merge_operands,
            5 => &mut self.blocks,
            7 => &mut self.smallest_seqno.0,
            8 => &mut self.largest_seqno.0,
            9 => &mut self.raw_bytes,
            10 => &mut self.stored_bytes,
            12 => &mut self.hash_seed,
            13 => &mut self.distinct_keys,
            14 => &mut self.range_tombstones,
            16 => &mut self.numbered_from.0,
            0x8010 => &mut self.deletes_applied.0,
            0x8011 => &mut self.expiring,
            0x8012 => &mut self.first_expiry_ms,
            0x8013 => &mut self.last_expiry_ms,
            _ => return None,
        })
    }

    /// Counts an entry that expires.
    pub(crate) fn note_expiry(&mut self, expiry_ms: u64) {
        let first = if self.expiring == 0 { expiry_ms } else { self.first_expiry_ms };
        self.expiring += 1;
        self.first_expiry_ms = first.min(expiry_ms);
        self.last_expiry_ms = self.last_expiry_ms.max(expiry_ms);
    }

    /// Whether all entries have expired by a time, but for tombstones. What the numbers are is the
    /// file's word: they need not fit together.
    pub(crate) fn have_expired(&self, by_ms: u64) -> bool {
        self.expiring > 0
            && self.expiring.checked_add(self.tombstones) == Some(self.entries)
            && self.last_expiry_ms <= by_ms
    }

    /// Counts an entry that refers to a value.
    #[cold]
    pub(crate) fn note_reference(&mut self, reference: &Reference) {
        let uses = &mut self.value_segments;
        let found = match uses.binary_search_by_key(&reference.file, |used| used.id) {
            Ok(at) => uses.get_mut(at),
            Err(at) => {
                uses.insert(at, ValueUse { id: reference.file, ..ValueUse::default() });
                uses.get_mut(at)
            }
        };
        if let Some(used) = found {
            used.values += 1;
            used.bytes += reference.record_len();
        }
    }

    fn decode_value_segments(value: &[u8]) -> Result<Vec<ValueUse>, Malformed> {
        let (mut uses, mut reader) = (Vec::<ValueUse>::new(), Reader::new(value));
        while !reader.is_empty() {
            let used = ValueUse {
                id: SegmentId(reader.u64()?),
                file_len: reader.u64()?,
                checksum: reader.u64()?,
                values: reader.u64()?,
                bytes: reader.u64()?,
            };
            if used.values == 0 || uses.last().is_some_and(|last| last.id >= used.id) {
                return Err(Malformed::Damaged("the list of value segments is not valid"));
            }
            uses.push(used);
        }
        Ok(uses)
    }

    /// Decodes the section.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Properties, Malformed> {
        const WRONG_LEN: Malformed = Malformed::Damaged("a property has the wrong length");
        let mut properties = Properties::default();
        let mut reader = Reader::new(bytes);
        let mut last = 0;
        let mut known = 0;
        while !reader.is_empty() {
            let id = reader.u16()?;
            let len = reader.u32()? as usize;
            let value = reader.bytes(len)?;
            if id <= last {
                return Err(Malformed::Damaged("the properties are out of order"));
            }
            last = id;
            known += u16::from((1..=LAST_ID).contains(&id));
            if let Some(integer) = properties.integer_mut(id) {
                *integer = value.try_into().map(u64::from_le_bytes).map_err(|_| WRONG_LEN)?;
            } else if id == FIRST_KEY {
                if len > crate::types::MAX_KEY_LEN {
                    return Err(WRONG_LEN);
                }
                properties.first_key = value.to_vec();
            } else if id == VALUE_SEGMENTS {
                properties.value_segments = Self::decode_value_segments(value)?;
            } else if id == KEYSPACE {
                let id = value.try_into().map(u32::from_le_bytes).map_err(|_| WRONG_LEN)?;
                properties.keyspace = (id != STANDALONE).then_some(KeyspaceId(id));
            } else if id & OPTIONAL == 0 {
                return Err(Malformed::Unsupported("it has a required property that is not known"));
            }
        }
        if known != LAST_ID {
            return Err(Malformed::Damaged("a property is missing"));
        }
        Ok(properties)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Properties {
        Properties {
            created_ms: 1,
            entries: 2,
            tombstones: 3,
            merge_operands: 4,
            range_tombstones: 5,
            distinct_keys: 6,
            blocks: 7,
            first_key: b"first".to_vec(),
            smallest_seqno: SeqNo(8),
            largest_seqno: SeqNo(9),
            raw_bytes: 10,
            stored_bytes: 11,
            keyspace: Some(KeyspaceId(12)),
            hash_seed: 13,
            deletes_applied: SeqNo(14),
            numbered_from: SeqNo(18),
            expiring: 15,
            first_expiry_ms: 16,
            last_expiry_ms: 17,
            value_segments: [18, 19]
                .map(|id| ValueUse {
                    id: SegmentId(id),
                    file_len: 20,
                    checksum: 21,
                    values: 22,
                    bytes: 23,
                })
                .to_vec(),
        }
    }

    #[test]
    fn a_list_of_value_segments_that_is_not_one_is_damaged() {
        let with = |change: &dyn Fn(&mut Vec<ValueUse>)| {
            let mut properties = sample();
            change(&mut properties.value_segments);
            Properties::decode(&properties.encode())
        };
        assert!(with(&|_| {}).is_ok());
        assert!(matches!(with(&|uses| uses.swap(0, 1)), Err(Malformed::Damaged(_))));
        assert!(matches!(with(&|uses| uses[1].id = uses[0].id), Err(Malformed::Damaged(_))));
        assert!(matches!(with(&|uses| uses[0].values = 0), Err(Malformed::Damaged(_))));
        let mut bytes = sample().encode();
        bytes.pop();
        let len = bytes.len() - 79;
        bytes[len - 4..len].copy_from_slice(&79_u32.to_le_bytes());
        assert!(Properties::decode(&bytes).is_err());
    }

    #[test]
    fn properties_round_trip() {
        let mut properties = sample();
        assert_eq!(Properties::decode(&properties.encode()), Ok(properties.clone()));
        properties.keyspace = None;
        properties.first_key.clear();
        (properties.deletes_applied, properties.numbered_from) = (SeqNo::ZERO, SeqNo::ZERO);
        (properties.expiring, properties.first_expiry_ms) = (0, 0);
        assert_eq!(Properties::decode(&properties.encode()), Ok(properties));
    }

    #[test]
    fn unknown_optional_ones_are_skipped_required_ones_are_not() {
        // None of the optional ones, which come last.
        let sample = || Properties {
            deletes_applied: SeqNo::ZERO,
            numbered_from: SeqNo::ZERO,
            expiring: 0,
            first_expiry_ms: 0,
            last_expiry_ms: 0,
            value_segments: Vec::new(),
            ..sample()
        };
        let with = |id: u16| {
            let mut bytes = sample().encode();
            put_u16(&mut bytes, id);
            put_u32(&mut bytes, 2);
            bytes.extend_from_slice(b"xy");
            Properties::decode(&bytes)
        };
        assert_eq!(with(0x8015), Ok(sample()));
        assert!(matches!(with(15), Err(Malformed::Unsupported(_))));
        assert!(matches!(with(16), Err(Malformed::Damaged(_))));
        assert!(matches!(with(14), Err(Malformed::Damaged(_))));
        let bytes = sample().encode();
        for len in 0..bytes.len() {
            assert!(Properties::decode(&bytes[..len]).is_err());
        }
        let mut wrong_len = bytes;
        wrong_len[2] = 7;
        assert!(Properties::decode(&wrong_len).is_err());
    }

    #[test]
    fn numbers_that_do_not_fit_together_are_no_harm() {
        let some = Properties { entries: 5, tombstones: 2, expiring: 3, ..Properties::default() };
        let some = Properties { last_expiry_ms: 9, ..some };
        assert!(some.have_expired(9) && !some.have_expired(8));
        for (expiring, tombstones) in [(0, 5), (2, 2), (u64::MAX, 6), (6, u64::MAX)] {
            let other = Properties { tombstones, expiring, ..some.clone() };
            assert!(!other.have_expired(9), "{other:?}");
        }
    }
}
