//! A look into the bytes of a data block, for one key: only what the lookup touches is decoded.
//!
//! The block's checksum and header are checked first, always; then the hash bytes, and of each entry
//! whose hash byte fits its offset, lengths, flags and kind. What other entries say is not looked at, so
//! an ill-formed one (which a sound checksum leaves to a wrong writer) is met only by lookups that
//! touch it, by cursors and by `verify`. Cached blocks, checked whole, are looked up in the same way.
//!
//! Total: any bytes give an outcome or an error. Pure functions and plain values; the buffers are
//! lent by the thread that reads. Called by point lookups.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::block::{Entry, Lookup, SHORT, check_flags, for_each_match, inflate, seqno_len, stored};
use super::format::{
    BlockHeader, ENTRY_HEADER_LEN, FLAG_KIND, FLAG_SAME_KEY, FLAG_SEQNO, MAX_BLOCK_PAGES,
    trailer_len,
};
use crate::coding::{u16_at, u32_at, u64_at};
use crate::compression::CODEC_NONE;
use crate::error::Malformed;
use crate::hash::hash_byte;
use crate::types::{Kind, PAGE, SeqNo};
use std::cell::Cell;

/// A raw payload whose header was checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peek<'a> {
    pub(super) payload: &'a [u8],
    pub(super) pages: u32,
    pub(super) entries: usize,
    pub(super) common: usize,
    /// Where the entries end.
    pub(super) prefixes: usize,
    pub(super) offsets: usize,
    pub(super) hashes: usize,
    /// The number of the entries that carry none.
    pub(super) unnumbered: SeqNo,
}

impl<'a> Peek<'a> {
    /// Checks checksum and header of the padded block that lies at `offset` of a file with this
    /// salt. A compressed payload is unpacked to `raw`.
    pub(super) fn open(
        block: &'a [u8],
        salt: u64,
        offset: u64,
        raw: &'a mut Vec<u8>,
    ) -> Result<Peek<'a>, Malformed> {
        let header = BlockHeader::decode(block, salt, offset)?;
        let stored = stored(&header, block)?;
        if header.codec == CODEC_NONE {
            return Peek::of(stored, &header);
        }
        inflate(&header, stored, raw)?;
        Peek::of(raw, &header)
    }

    /// Finds the trailer of a raw payload.
    pub(super) fn of(payload: &'a [u8], header: &BlockHeader) -> Result<Peek<'a>, Malformed> {
        let entries = usize::from(header.entries);
        let width = usize::from(header.prefix_width);
        let prefixes = payload
            .len()
            .checked_sub(trailer_len(entries, width))
            .ok_or(Malformed::Damaged("the block is shorter than its trailer"))?;
        let offsets = prefixes + width * entries;
        Ok(Peek {
            payload,
            pages: header.pages,
            entries,
            common: usize::from(header.common),
            prefixes,
            offsets,
            hashes: offsets + 2 * entries,
            unnumbered: SeqNo::ZERO,
        })
    }

    /// Entry `i`, checked.
    #[inline]
    pub(super) fn entry(&self, i: usize) -> Result<Entry, Malformed> {
        let bytes = self.payload;
        if i >= self.entries {
            return Err(SHORT);
        }
        let start = usize::from(u16_at(bytes, self.offsets + 2 * i).ok_or(SHORT)?);
        let key_len = usize::from(u16_at(bytes, start).ok_or(SHORT)?);
        let value_len = u32_at(bytes, start + 2).ok_or(SHORT)?;
        let flags = *bytes.get(start + 6).ok_or(SHORT)?;
        check_flags(flags, value_len)?;
        if key_len < self.common {
            return Err(Malformed::Damaged("a key is shorter than the common prefix"));
        }
        let key = start + ENTRY_HEADER_LEN + seqno_len(flags);
        let value = key + key_len;
        let end = usize::try_from(value_len)
            .ok()
            .and_then(|len| value.checked_add(len))
            .filter(|end| *end <= self.prefixes)
            .ok_or(SHORT)?;
        let seqno = match flags & FLAG_SEQNO {
            0 => self.unnumbered,
            _ => SeqNo(u64_at(bytes, start + 7).ok_or(SHORT)?),
        };
        Ok(Entry {
            key: key..value,
            value: value..end,
            seqno,
            kind: Kind::from_u8(flags & FLAG_KIND).ok_or(SHORT)?,
            same_key: flags & FLAG_SAME_KEY != 0,
        })
    }

    fn is_key(&self, entry: &Entry, key: &[u8]) -> bool {
        self.payload.get(entry.key.clone()) == Some(key)
    }

    /// The value of an entry of this block.
    pub(super) fn value(&self, entry: &Entry) -> &'a [u8] {
        self.payload.get(entry.value.clone()).unwrap_or_default()
    }

    /// Whether versions of `key` (with hash `hash`) are here whose newest one is in a block before.
    #[inline]
    pub(super) fn goes_on_with(&self, key: &[u8], hash: u64) -> Result<bool, Malformed> {
        // The hash byte first: a lookup reads that anyway, but seldom the first entry.
        if self.payload.get(self.hashes) != Some(&hash_byte(hash)) {
            return Ok(false);
        }
        let first = self.entry(0)?;
        Ok(first.same_key && self.is_key(&first, key))
    }

    /// The newest version of `key` (with hash `hash`) at or before `snapshot`.
    // Left to itself the compiler keeps it, and `for_each_match`, apart from bulk reads: 2 % of those.
    #[expect(clippy::inline_always, reason = "measured")]
    #[inline(always)]
    pub(super) fn lookup(
        &self,
        key: &[u8],
        hash: u64,
        snapshot: SeqNo,
    ) -> Result<Lookup, Malformed> {
        let hashes = self.payload.get(self.hashes..self.hashes + self.entries).ok_or(SHORT)?;
        let (mut found, mut is_here, mut damage) = (None, false, None);
        for_each_match(hashes, hash_byte(hash), |i| {
            match self.entry(i) {
                Ok(entry) if self.is_key(&entry, key) => {
                    is_here = true;
                    if entry.seqno <= snapshot {
                        found = Some(entry);
                    }
                }
                Ok(_) => {}
                Err(error) => damage = Some(error),
            }
            found.is_some() || damage.is_some()
        });
        if let Some(damage) = damage {
            return Err(damage);
        }
        Ok(match found {
            Some(entry) => Lookup::Found(entry),
            None if !is_here => Lookup::Absent,
            None if self.is_key(&self.entry(self.entries - 1)?, key) => Lookup::GoOn,
            None => Lookup::Hidden,
        })
    }
}

/// Where a block that is not kept is read to: memory that each thread uses again.
#[derive(Default)]
pub(super) struct Buffers {
    /// The block as stored. As long as the longest one yet.
    block: Vec<u8>,
    /// Its payload, unpacked.
    raw: Vec<u8>,
}

thread_local! {
    static BUFFERS: Cell<Buffers> =
        const { Cell::new(Buffers { block: Vec::new(), raw: Vec::new() }) };
}

impl Buffers {
    /// Takes the thread's buffers. Who reads again before they are given back gets others.
    pub(super) fn take() -> Buffers {
        // A thread that is shutting down may have lost them.
        BUFFERS.try_with(Cell::take).unwrap_or_default()
    }

    /// Gives them back; what is too long to be kept for nothing is freed.
    pub(super) fn give_back(mut self) {
        const LONGEST: usize = MAX_BLOCK_PAGES * PAGE;
        if self.raw.capacity() > LONGEST {
            self.raw = Vec::new();
        }
        // As above: then they are freed now.
        BUFFERS.try_with(|buffers| buffers.set(self)).unwrap_or_default();
    }

    /// Room for a block of so many bytes; what was read already stays.
    pub(super) fn room(&mut self, len: usize) -> &mut [u8] {
        if self.block.len() < len {
            self.block.resize(len, 0);
        }
        self.block.get_mut(..len).unwrap_or_default()
    }

    /// The block of so many bytes that was read, and where to unpack its payload to.
    pub(super) fn parts(&mut self, len: usize) -> (&[u8], &mut Vec<u8>) {
        (self.block.get(..len).unwrap_or_default(), &mut self.raw)
    }
}
