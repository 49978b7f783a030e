//! How an entry lies in the arena.
//!
//! A header of 24 bytes, little-endian, then the key, then the value; no padding:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | sequence number |
//! | 8 | kind |
//! | 9..14 | the previous version of the same key: a [`Ref`], zero for none |
//! | 14..18 | keyspace |
//! | 18..20 | length of the key |
//! | 20..24 | length of the value |
//!
//! Decoding is total: any bytes give an entry within them, or none. Pure functions over borrowed
//! bytes.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use crate::types::{KeyspaceId, Kind, SeqNo};

/// The size of the header, in bytes.
pub(super) const HEADER: usize = 24;

/// How many bits of a [`Ref`] are used.
pub(in crate::memtable) const REF_BITS: u32 = 40;

/// Where an entry lies: the number of its chunk, from one, and its offset there, 20 bits each. Any
/// bits may be looked up; those that no arena gave out find nothing or nonsense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::memtable) struct Ref(u64);

impl Ref {
    const OFFSET_BITS: u32 = 20;

    /// The number of chunks that can be told apart.
    pub(super) const CHUNKS: usize = (1 << (REF_BITS - Self::OFFSET_BITS)) - 1;
    /// How far into a chunk an entry may begin.
    pub(super) const OFFSETS: usize = 1 << Self::OFFSET_BITS;

    /// The place `offset` in a chunk; both within the limits above.
    pub(super) fn new(chunk: usize, offset: usize) -> Self {
        debug_assert!(chunk < Self::CHUNKS && offset < Self::OFFSETS);
        Ref((chunk as u64 + 1) << Self::OFFSET_BITS | offset as u64)
    }

    /// From what [`Ref::to_bits`] gave; zero stands for none.
    pub(in crate::memtable) fn from_bits(bits: u64) -> Option<Self> {
        (bits != 0).then_some(Ref(bits))
    }

    /// A number that is not zero and takes [`REF_BITS`] bits.
    pub(in crate::memtable) fn to_bits(self) -> u64 {
        self.0
    }

    pub(super) fn chunk(self) -> Option<usize> {
        ((self.0 >> Self::OFFSET_BITS) as usize).checked_sub(1)
    }

    pub(super) fn offset(self) -> usize {
        self.0 as usize & (Self::OFFSETS - 1)
    }
}

/// An entry to be stored.
#[derive(Clone, Copy)]
pub(in crate::memtable) struct NewEntry<'a> {
    pub(in crate::memtable) keyspace: KeyspaceId,
    pub(in crate::memtable) key: &'a [u8],
    pub(in crate::memtable) seqno: SeqNo,
    pub(in crate::memtable) kind: Kind,
    pub(in crate::memtable) prev: Option<Ref>,
    pub(in crate::memtable) value: &'a [u8],
}

impl NewEntry<'_> {
    /// The header. Lengths are within [`MAX_KEY_LEN`](crate::types::MAX_KEY_LEN) and
    /// [`MAX_VALUE_LEN`](crate::types::MAX_VALUE_LEN): they are checked before anything is logged.
    pub(super) fn header(&self) -> [u8; HEADER] {
        let key_len = u16::try_from(self.key.len()).expect("keys are checked before the log");
        let value_len = u32::try_from(self.value.len()).expect("values are checked before the log");
        let [p0, p1, p2, p3, p4, ..] = self.prev.map_or(0, Ref::to_bits).to_le_bytes();
        let [s0, s1, s2, s3, s4, s5, s6, s7] = self.seqno.0.to_le_bytes();
        let [n0, n1, n2, n3] = self.keyspace.0.to_le_bytes();
        let [k0, k1] = key_len.to_le_bytes();
        let [v0, v1, v2, v3] = value_len.to_le_bytes();
        let kind = self.kind as u8;
        [
            s0, s1, s2, s3, s4, s5, s6, s7, kind, p0, p1, p2, p3, p4, n0, n1, n2, n3, k0, k1, v0,
            v1, v2, v3,
        ]
    }
}

/// The length of the entry that begins with this header.
pub(super) fn entry_len(header: &[u8; HEADER]) -> usize {
    let [.., k0, k1, v0, v1, v2, v3] = *header;
    HEADER
        + usize::from(u16::from_le_bytes([k0, k1]))
        + u32::from_le_bytes([v0, v1, v2, v3]) as usize
}

/// A stored entry.
#[derive(Clone, Copy)]
pub(in crate::memtable) struct Entry<'a> {
    header: &'a [u8; HEADER],
    /// Header, key and value.
    bytes: &'a [u8],
}

impl<'a> Entry<'a> {
    /// The entry at the front of these bytes, if they hold it all.
    #[inline]
    pub(super) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER>()?;
        let bytes = bytes.get(..entry_len(header))?;
        Some(Entry { header, bytes })
    }

    /// All its bytes.
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    fn key_len(&self) -> usize {
        let [.., k0, k1, _, _, _, _] = *self.header;
        usize::from(u16::from_le_bytes([k0, k1]))
    }

    #[inline]
    pub(in crate::memtable) fn key(&self) -> &'a [u8] {
        self.bytes.get(HEADER..HEADER + self.key_len()).unwrap_or_default()
    }

    #[inline]
    pub(in crate::memtable) fn value(&self) -> &'a [u8] {
        self.bytes.get(HEADER + self.key_len()..).unwrap_or_default()
    }

    #[inline]
    pub(in crate::memtable) fn seqno(&self) -> SeqNo {
        let [s0, s1, s2, s3, s4, s5, s6, s7, ..] = *self.header;
        SeqNo(u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]))
    }

    #[inline]
    pub(in crate::memtable) fn kind(&self) -> Kind {
        let [_, _, _, _, _, _, _, _, kind, ..] = *self.header;
        Kind::from_u8(kind).unwrap_or(Kind::Delete)
    }

    #[inline]
    pub(in crate::memtable) fn keyspace(&self) -> KeyspaceId {
        let [.., n0, n1, n2, n3, _, _, _, _, _, _] = *self.header;
        KeyspaceId(u32::from_le_bytes([n0, n1, n2, n3]))
    }

    /// The previous version of the same key.
    #[inline]
    pub(in crate::memtable) fn prev(&self) -> Option<Ref> {
        let [_, _, _, _, _, _, _, _, _, p0, p1, p2, p3, p4, ..] = *self.header;
        Ref::from_bits(u64::from_le_bytes([p0, p1, p2, p3, p4, 0, 0, 0]))
    }
}
