//! A decoded data block: searches and entries (FORMAT.md 3.3). Lookups of a key are in `peek`.
//!
//! ```text
//! payload   0 ..............|.......|........|........|.........|....
//!           entries          zeros   prefixes offsets  hash bytes zeros
//! ```
//!
//! A block is one shared buffer; keys and values handed out are views into it. Decoding checks the
//! checksum and every offset and length once, so that the accessors are plain arithmetic; they are
//! total all the same. Immutable, hence shared freely between threads.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::format::{
    BLOCK_HEADER_LEN, BlockHeader, ENTRY_HEADER_LEN, FLAG_KIND, FLAG_RESERVED, FLAG_SEQNO,
    common_prefix_len, prefix_of, trailer_len,
};
use super::peek::Peek;
use super::step::entry_at;
use crate::coding::{u16_at, u32_at, u64_at};
use crate::compression::{CODEC_LZ4, CODEC_NONE, CODEC_ZSTD, decompress};
use crate::cursor::front;
use crate::error::Malformed;
use crate::hash::{hash_byte, key_hash};
use crate::prefetch::prefetch;
use crate::slab::{Slabs, Space};
use crate::types::{Kind, SeqNo};
use bytes::{Buf, Bytes};
use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

/// A data block in memory.
pub(crate) struct Block {
    payload: Bytes,
    /// What that takes in memory, in bytes.
    taken: usize,
    /// Its length in the file.
    pages: u32,
    entries: usize,
    width: usize,
    common: usize,
    /// Where the prefixes, the offsets and the hash bytes start in the payload.
    prefixes: usize,
    offsets: usize,
    hashes: usize,
    /// The number of the entries that carry none.
    unnumbered: SeqNo,
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Block")
            .field("entries", &self.entries)
            .field("payload_len", &self.payload.len())
            .finish_non_exhaustive()
    }
}

/// An entry of a block; the ranges are of its payload.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: Range<usize>,
    pub(crate) value: Range<usize>,
    pub(crate) seqno: SeqNo,
    pub(crate) kind: Kind,
    /// The key is that of the entry before.
    pub(crate) same_key: bool,
}

/// The outcome of a point lookup in one block.
#[derive(Debug)]
pub(crate) enum Lookup {
    Found(Entry),
    /// Versions of the key are here and none behind, but not one is visible.
    Hidden,
    Absent,
    /// Versions of the key are here, not one is visible, and they may go on in the next block.
    GoOn,
}

/// How many cache lines a walk asks for when it begins.
const WALK_LINES: usize = 8;

/// The bytes of a padded block, by what may be done with them.
pub(super) enum Stored<'a> {
    /// They may be shared: a raw payload stays where it is.
    Shared(Bytes),
    /// They are the block's own.
    Own(Space),
    /// They will soon be others: what is kept of them is copied.
    Passing(&'a [u8]),
}

impl Stored<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Stored::Shared(bytes) => bytes,
            Stored::Own(space) => space.bytes(),
            Stored::Passing(bytes) => bytes,
        }
    }
}

/// What the heap and the counts of references add to a block's record, in bytes.
const COUNTS: usize = 32;

pub(super) const SHORT: Malformed = Malformed::Damaged("an entry runs out of its block");

#[cfg(all(test, loom))]
impl Block {
    /// A block without entries, for models of those that keep blocks.
    pub(super) fn of_zeros(len: usize) -> Block {
        let payload = Bytes::from(vec![0; len]);
        Block {
            taken: payload.len(),
            payload,
            pages: 1,
            entries: 0,
            width: 0,
            common: 0,
            prefixes: 0,
            offsets: 0,
            hashes: 0,
            unnumbered: SeqNo::ZERO,
        }
    }
}

impl Block {
    /// Decodes the padded block that lies at `offset` of a file with this salt.
    pub(crate) fn decode(
        block: &Bytes,
        salt: u64,
        offset: u64,
    ) -> Result<(Block, BlockHeader), Malformed> {
        Block::decode_from(Stored::Shared(block.clone()), None, salt, offset)
    }

    /// The same, whoever has the bytes; what memory it needs is taken from the slabs.
    pub(super) fn decode_from(
        from: Stored<'_>,
        slabs: Option<&Arc<Slabs>>,
        salt: u64,
        offset: u64,
    ) -> Result<(Block, BlockHeader), Malformed> {
        let header = BlockHeader::decode(from.bytes(), salt, offset)?;
        let stored = stored(&header, from.bytes())?;
        if header.codec != CODEC_NONE {
            let mut raw = Space::of(slabs, raw_len(&header)?);
            decompress(header.codec, stored, raw.bytes_mut())?;
            let taken = raw.taken();
            return Ok((Block::parse(raw.freeze(), taken, &header)?, header));
        }
        let (taken, mut payload) = match from {
            Stored::Shared(block) => (block.len(), block),
            Stored::Own(space) => (space.taken(), space.freeze()),
            Stored::Passing(block) => {
                let mut space = Space::of(slabs, block.len());
                space.bytes_mut().copy_from_slice(block);
                (space.taken(), space.freeze())
            }
        };
        // All behind the header: `stored` has checked that.
        payload.advance(BLOCK_HEADER_LEN.min(payload.len()));
        Ok((Block::parse(payload, taken, &header)?, header))
    }

    /// Checks all offsets and lengths of a raw payload.
    fn parse(payload: Bytes, taken: usize, header: &BlockHeader) -> Result<Block, Malformed> {
        let Peek { pages, entries, common, prefixes, offsets, hashes, .. } =
            Peek::of(&payload, header)?;
        let width = usize::from(header.prefix_width);
        let unnumbered = SeqNo::ZERO;
        let block = Block {
            payload,
            taken,
            pages,
            entries,
            width,
            common,
            prefixes,
            offsets,
            hashes,
            unnumbered,
        };
        let bytes: &[u8] = &block.payload;
        let mut end = 0;
        for i in 0..entries {
            if u16_at(bytes, offsets + 2 * i).map(usize::from) != Some(end) {
                return Err(Malformed::Damaged("an entry does not start where the last one ends"));
            }
            let key_len = usize::from(u16_at(bytes, end).ok_or(SHORT)?);
            let value_len = u32_at(bytes, end + 2).ok_or(SHORT)?;
            let flags = *bytes.get(end + 6).ok_or(SHORT)?;
            check_flags(flags, value_len)?;
            if key_len < block.common {
                return Err(Malformed::Damaged("a key is shorter than the common prefix"));
            }
            let len = ENTRY_HEADER_LEN + seqno_len(flags) + key_len;
            end = usize::try_from(value_len)
                .ok()
                .and_then(|value_len| end.checked_add(len)?.checked_add(value_len))
                .filter(|end| *end <= prefixes)
                .ok_or(SHORT)?;
        }
        if header.codec != CODEC_NONE && end != prefixes {
            return Err(Malformed::Damaged("the block's entries do not reach its trailer"));
        }
        Ok(block)
    }

    /// The same block, of a segment whose entries have this number if they carry none.
    pub(super) fn numbered(self, unnumbered: SeqNo) -> Block {
        Block { unnumbered, ..self }
    }

    /// The number of the entries that carry none.
    #[inline]
    pub(super) fn unnumbered(&self) -> SeqNo {
        self.unnumbered
    }

    /// How many entries it has.
    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// Where in the payload its hash bytes are.
    #[cfg(test)]
    pub(super) fn hash_bytes_at(&self) -> usize {
        self.hashes
    }

    /// Where in memory a lookup looks first: at the hash bytes.
    pub(crate) fn hot_address(&self) -> usize {
        self.payload.as_ptr().addr() + self.hashes
    }

    /// Its length in the file, in pages.
    pub(crate) fn pages(&self) -> u32 {
        self.pages
    }

    /// The same bytes as point lookups see them.
    #[inline]
    pub(super) fn peek(&self) -> Peek<'_> {
        Peek {
            payload: &self.payload,
            pages: self.pages,
            entries: self.entries,
            common: self.common,
            prefixes: self.prefixes,
            offsets: self.offsets,
            hashes: self.hashes,
            unnumbered: self.unnumbered,
        }
    }

    /// The raw payload.
    pub(super) fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// What it occupies in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.taken + size_of::<Block>() + COUNTS
    }

    /// The length of the raw payload, in bytes.
    pub(crate) fn payload_len(&self) -> usize {
        self.payload.len()
    }

    /// A view of the payload; empty if the range is not within.
    pub(crate) fn view(&self, range: &Range<usize>) -> &[u8] {
        self.payload.get(range.clone()).unwrap_or_default()
    }

    /// The same, sharing the memory.
    pub(crate) fn share(&self, range: &Range<usize>) -> Bytes {
        if self.payload.get(range.clone()).is_none() {
            return Bytes::new();
        }
        self.payload.slice(range.clone())
    }

    #[inline]
    fn start(&self, i: usize) -> Option<usize> {
        if i >= self.entries {
            return None;
        }
        u16_at(&self.payload, self.offsets + 2 * i).map(usize::from)
    }

    /// Entry `i`, if there is one.
    pub(crate) fn entry(&self, i: usize) -> Option<Entry> {
        entry_at(self, self.start(i)?)
    }

    /// The key of entry `i`; empty if there is none.
    #[inline]
    pub(crate) fn key(&self, i: usize) -> &[u8] {
        let entry = self.start(i).and_then(|start| self.payload.get(start..)).unwrap_or_default();
        let Some([k0, k1, .., flags]) = entry.first_chunk::<ENTRY_HEADER_LEN>() else { return &[] };
        let key = ENTRY_HEADER_LEN + seqno_len(*flags);
        let len = usize::from(u16::from_le_bytes([*k0, *k1]));
        entry.get(key..key + len).unwrap_or_default()
    }

    /// The first entry whose key is at or after `key`; the number of entries if there is none.
    pub(crate) fn lower_bound(&self, key: &[u8]) -> usize {
        self.partition(key, false)
    }

    /// The first entry whose key is after `key`; the number of entries if there is none.
    pub(crate) fn upper_bound(&self, key: &[u8]) -> usize {
        self.partition(key, true)
    }

    fn prefix(&self, i: usize) -> u64 {
        let at = self.prefixes + i * self.width;
        match self.width {
            2 => u16_at(&self.payload, at).map(u64::from),
            4 => u32_at(&self.payload, at).map(u64::from),
            _ => u64_at(&self.payload, at),
        }
        .unwrap_or_default()
    }

    fn partition(&self, key: &[u8], after: bool) -> usize {
        if self.width == 0 {
            let target = front(key);
            return self.search(after, |i| {
                let here = self.key(i);
                front(here).cmp(&target).then_with(|| here.cmp(key))
            });
        }
        // The prefixes stand for what follows the common prefix, which `key` may not share.
        let common = self.key(0).get(..self.common).unwrap_or_default();
        let (head, rest) = key.split_at(self.common.min(key.len()));
        match head.cmp(common) {
            Ordering::Less => return 0,
            Ordering::Greater => return self.entries,
            Ordering::Equal => {}
        }
        let target = prefix_of(rest, self.width);
        self.search(after, |i| self.prefix(i).cmp(&target).then_with(|| self.key(i).cmp(key)))
    }

    fn search(&self, after: bool, compare: impl Fn(usize) -> Ordering) -> usize {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = low + (high - low) / 2;
            let order = compare(middle);
            if order == Ordering::Less || (after && order == Ordering::Equal) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Asks for the memory that a search for a key looks at first.
    pub(super) fn foresee_search(&self) {
        let offsets = self.payload.get(self.offsets..self.hashes).unwrap_or_default();
        let step = (self.entries / 32).max(1) * 2;
        for start in offsets.as_chunks().0.iter().skip(step / 2).step_by(step) {
            self.foresee(usize::from(u16::from_le_bytes(*start)));
        }
    }

    /// Asks for the memory that a walk from an entry on looks at first.
    pub(super) fn foresee_walk(&self, i: usize, forward: bool) {
        let Some(start) = self.start(i) else { return };
        for line in 1..WALK_LINES {
            self.foresee(if forward { start + 64 * line } else { start.wrapping_sub(64 * line) });
        }
    }

    /// Asks for the memory at a place in the payload.
    #[inline]
    pub(super) fn foresee(&self, at: usize) {
        prefetch(self.payload.as_ptr().addr().wrapping_add(at));
    }

    /// The checks that decoding leaves out because a sound checksum makes them redundant unless
    /// the writer was wrong: order, hash bytes, prefixes, "same key" flags, zeros. `before` is the
    /// last key and sequence number that were read in front of it, `gap` whether a block between
    /// could not be read; `stored` is the padded block.
    pub(crate) fn check(
        &self,
        stored: &[u8],
        header: &BlockHeader,
        before: Option<(&[u8], SeqNo)>,
        gap: bool,
        hash_seed: u64,
    ) -> Result<(), &'static str> {
        let zero = |bytes: Option<&[u8]>| bytes.is_some_and(|b| b.iter().all(|b| *b == 0));
        let end = self.entry(self.entries - 1).map_or(0, |last| last.value.end);
        if !zero(self.payload.get(end..self.prefixes))
            || !zero(self.payload.get(self.hashes + self.entries..))
        {
            return Err("padding inside the payload is not zero");
        }
        let stored_end = BLOCK_HEADER_LEN + usize::try_from(header.stored).unwrap_or(usize::MAX);
        if !zero(stored.get(stored_end.min(stored.len())..)) {
            return Err("padding behind the payload is not zero");
        }
        if common_prefix_len(self.key(0), self.key(self.entries - 1)) < self.common {
            return Err("the common prefix is not common to all keys");
        }
        let mut before = before;
        for i in 0..self.entries {
            let Some(entry) = self.entry(i) else { return Err("an entry does not decode") };
            let key = self.view(&entry.key);
            if let Some((last, seqno)) = before {
                match last.cmp(key) {
                    Ordering::Greater => return Err("keys are out of order"),
                    Ordering::Equal if seqno <= entry.seqno => {
                        return Err("versions of a key are out of order");
                    }
                    _ => {}
                }
            }
            let same_key = before.is_some_and(|(last, _)| last == key);
            if same_key != entry.same_key && !(gap && i == 0) {
                return Err("a \"same key\" flag is wrong");
            }
            let hash = hash_byte(key_hash(key, hash_seed));
            if self.payload.get(self.hashes + i) != Some(&hash) {
                return Err("a hash byte is wrong");
            }
            let rest = key.get(self.common..).unwrap_or_default();
            if self.width != 0 && self.prefix(i) != prefix_of(rest, self.width) {
                return Err("a key prefix is wrong");
            }
            before = Some((key, entry.seqno));
        }
        Ok(())
    }

    /// Bytes that mean something: header and payload without padding.
    pub(crate) fn used_bytes(&self, header: &BlockHeader) -> u64 {
        if header.codec != CODEC_NONE {
            return BLOCK_HEADER_LEN as u64 + header.stored;
        }
        let end = self.entry(self.entries - 1).map_or(0, |last| last.value.end);
        (BLOCK_HEADER_LEN + end + trailer_len(self.entries, self.width)) as u64
    }
}

pub(super) fn seqno_len(flags: u8) -> usize {
    if flags & FLAG_SEQNO != 0 { 8 } else { 0 }
}

pub(super) fn check_flags(flags: u8, value_len: u32) -> Result<(), Malformed> {
    let kind = flags & FLAG_KIND;
    if flags & FLAG_RESERVED != 0 {
        return Err(Malformed::Damaged("a reserved flag of an entry is set"));
    }
    match Kind::from_u8(kind) {
        Some(Kind::Put) => Ok(()),
        Some(Kind::Delete) if value_len != 0 => Err(Malformed::Damaged("a tombstone has a value")),
        Some(Kind::DeleteRange) => {
            Err(Malformed::Unsupported("a range tombstone in a block needs a newer library"))
        }
        Some(kind) if kind.is_away() && value_len as usize != kind.least_value() => {
            Err(Malformed::Damaged("a reference to a value has the wrong length"))
        }
        Some(kind) if (value_len as usize) < kind.least_value() => {
            Err(Malformed::Damaged("an entry's value has no room for its expiry"))
        }
        Some(_) => Ok(()),
        None if Kind::is_reserved(kind) => {
            Err(Malformed::Unsupported("an entry's kind needs a newer library"))
        }
        None => Err(Malformed::Damaged("an entry's kind is not valid")),
    }
}

/// The payload as stored, of a padded block.
pub(super) fn stored<'a>(header: &BlockHeader, block: &'a [u8]) -> Result<&'a [u8], Malformed> {
    let room = block.get(BLOCK_HEADER_LEN..).unwrap_or_default();
    if header.codec == CODEC_NONE {
        if header.stored != header.raw || header.raw != room.len() as u64 {
            return Err(Malformed::Damaged("a raw block's lengths do not fit"));
        }
        return Ok(room);
    }
    usize::try_from(header.stored)
        .ok()
        .and_then(|len| room.get(..len))
        .ok_or(Malformed::Damaged("the block's stored length is too long"))
}

/// Decompresses a payload to `raw`.
pub(super) fn inflate(
    header: &BlockHeader,
    stored: &[u8],
    raw: &mut Vec<u8>,
) -> Result<(), Malformed> {
    raw.resize(raw_len(header)?, 0);
    decompress(header.codec, stored, raw)
}

/// The length of a compressed payload once it is unpacked, if it is one that this codec can reach
/// from so many bytes, so that a wrong length cannot ask for memory without bounds.
fn raw_len(header: &BlockHeader) -> Result<usize, Malformed> {
    let Some(limit) = raw_limit(header.codec, header.stored) else { return Ok(0) };
    if header.raw > limit {
        return Err(Malformed::Damaged("the block's raw length cannot be right"));
    }
    usize::try_from(header.raw).map_err(|_| SHORT)
}

/// The greatest length that a codec can reach from so many bytes; `None` of a codec that is not known.
pub(super) fn raw_limit(codec: u8, stored: u64) -> Option<u64> {
    // LZ4: a length byte adds at most 255. Zstandard: a block of 128 KiB takes 4 bytes at least.
    let factor = match codec {
        CODEC_LZ4 => 255,
        CODEC_ZSTD => 32_768,
        _ => return None,
    };
    Some((stored + 16).saturating_mul(factor))
}

/// Calls `hit` with the position of each byte equal to `byte`, rising, until it returns true. Eight
/// bytes are compared at a time.
#[inline(always)]
pub(super) fn for_each_match(bytes: &[u8], byte: u8, mut hit: impl FnMut(usize) -> bool) {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    let pattern = u64::from(byte) * 0x0101_0101_0101_0101;
    let (words, rest) = bytes.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let difference = u64::from_le_bytes(*word) ^ pattern;
        // The top bit of each byte of `hits` says that this byte of `difference` is zero: adding
        // 0x7f to the low seven bits carries into the top bit unless they are all zero.
        let mut hits = !(((difference & LOW) + LOW) | difference | LOW);
        while hits != 0 {
            if hit(at * 8 + hits.trailing_zeros() as usize / 8) {
                return;
            }
            hits &= hits - 1;
        }
    }
    let base = words.len() * 8;
    for (i, candidate) in rest.iter().enumerate() {
        if *candidate == byte && hit(base + i) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matching_bytes_are_found_exactly() {
        let bytes: Vec<u8> =
            (0..1000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 & 7).collect();
        for start in 0..9 {
            for byte in [0, 1, 7, 0x80, 0xff] {
                let slice = &bytes[start..500];
                let mut found = Vec::new();
                for_each_match(slice, byte, |i| {
                    found.push(i);
                    false
                });
                let expected: Vec<usize> = (0..slice.len()).filter(|i| slice[*i] == byte).collect();
                assert_eq!(found, expected);
            }
        }
        let mut tricky = Vec::new();
        for_each_match(&[0, 1, 0x80, 0x81, 0, 0xff, 0x7f, 1], 0, |i| {
            tricky.push(i);
            false
        });
        assert_eq!(tricky, [0, 4]);
    }
}
