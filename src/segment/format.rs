//! The fixed structures of a segment file: footer, section table, block header (FORMAT.md 3.1-3.3).
//!
//! Encoders and decoders side by side. Decoders take any bytes and check, in this order: length,
//! magic, checksum, version, the rest; so damage is never mistaken for a newer format.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use crate::checksum::{checksum, uuid_salt};
use crate::coding::{Reader, put_u16, put_u32, put_u64, u64_at};
use crate::error::Malformed;
use crate::types::PAGE;

/// FORMAT.md 3.1.
pub(crate) const FOOTER_LEN: usize = 96;
const MAGIC: &[u8; 8] = b"ASHLRSEG";
const VERSION: u32 = 1;

/// FORMAT.md 3.3.
pub(crate) const BLOCK_HEADER_LEN: usize = 32;
/// The most pages of a block that holds more than one entry and is stored raw.
pub(crate) const MAX_BLOCK_PAGES: usize = 16;
/// The longest raw payload of a block of several entries: offsets are 16 bits wide.
pub(crate) const MAX_RAW: usize = MAX_BLOCK_PAGES * PAGE - BLOCK_HEADER_LEN;
/// An entry's fixed fields: key length, value length, flags.
pub(crate) const ENTRY_HEADER_LEN: usize = 7;

/// The newest version of a key starts below this page, so that 16 bits can name the page of any key.
pub(crate) const MAX_START_PAGES: u32 = 65_536;
/// The most distinct keys of a segment.
pub(crate) const MAX_KEYS: u64 = 8_388_608;

/// The kind and whether the entry expires: see [`Kind`](crate::types::Kind).
pub(crate) const FLAG_KIND: u8 = crate::types::KIND_BITS;
pub(crate) const FLAG_SEQNO: u8 = 1 << 3;
pub(crate) const FLAG_SAME_KEY: u8 = 1 << 5;
pub(crate) const FLAG_RESERVED: u8 = 0b1100_0000;

/// Section ids, FORMAT.md 6.
pub(crate) const SECTION_INDEX: u16 = 1;
pub(crate) const SECTION_INDEX_PARTITIONS: u16 = 2;
pub(crate) const SECTION_BLOOM: u16 = 3;
pub(crate) const SECTION_BLOOM_PARTITIONS: u16 = 4;
pub(crate) const SECTION_PROPERTIES: u16 = 5;
pub(crate) const SECTION_TAG: u16 = 6;
pub(crate) const SECTION_LAST_KEY: u16 = 7;
pub(crate) const SECTION_HASH_RUN: u16 = 0x8001;
pub(crate) const SECTION_HASH_RUN_PARTITIONS: u16 = 0x8002;
/// Sections and properties with this bit may be skipped by a reader that does not know them.
pub(crate) const OPTIONAL: u16 = 0x8000;

/// Layout numbers of the index, bloom and hash run sections.
pub(crate) const LAYOUT_SINGLE: u8 = 1;
pub(crate) const LAYOUT_PARTITIONED: u8 = 2;

/// The name of a section, for people.
pub(crate) fn section_name(id: u16) -> &'static str {
    match id {
        SECTION_INDEX => "block index",
        SECTION_INDEX_PARTITIONS => "block index partitions",
        SECTION_BLOOM => "bloom filter",
        SECTION_BLOOM_PARTITIONS => "bloom partitions",
        SECTION_PROPERTIES => "properties",
        SECTION_TAG => "compression tag",
        SECTION_LAST_KEY => "last key",
        SECTION_HASH_RUN => "hash run",
        SECTION_HASH_RUN_PARTITIONS => "hash run partitions",
        0x8003 => "keys-only block",
        _ => "unknown",
    }
}

/// The length of a block's trailer: prefixes, offsets and hash bytes, rounded up to 8.
pub(crate) fn trailer_len(entries: usize, prefix_width: usize) -> usize {
    ((prefix_width + 3) * entries).next_multiple_of(8)
}

/// The first `width` bytes of `rest` as a big-endian integer, padded with zeros.
pub(crate) fn prefix_of(rest: &[u8], width: usize) -> u64 {
    let mut bytes = [0u8; 8];
    for (to, from) in bytes.iter_mut().zip(rest.iter().take(width)) {
        *to = *from;
    }
    match width {
        2 => u64::from_be_bytes(bytes) >> 48,
        4 => u64::from_be_bytes(bytes) >> 32,
        _ => u64::from_be_bytes(bytes),
    }
}

/// How many first bytes two strings share.
pub(crate) fn common_prefix_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// The footer, without magic and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) uuid: [u8; 16],
    pub(crate) meta_offset: u64,
    pub(crate) table_offset: u64,
    pub(crate) table_len: u64,
    pub(crate) table_checksum: u64,
    pub(crate) file_len: u64,
}

impl Footer {
    /// The salt of every other checksum in the file.
    pub(crate) fn salt(&self) -> u64 {
        uuid_salt(&self.uuid)
    }

    /// The footer's bytes and its own checksum.
    pub(crate) fn encode(&self) -> (Vec<u8>, u64) {
        let mut out = Vec::with_capacity(FOOTER_LEN);
        out.extend_from_slice(&self.uuid);
        for n in [
            self.meta_offset,
            self.table_offset,
            self.table_len,
            self.table_checksum,
            self.file_len,
        ] {
            put_u64(&mut out, n);
        }
        put_u32(&mut out, VERSION);
        out.extend_from_slice(&[0; 20]);
        out.extend_from_slice(MAGIC);
        let sum = checksum(0, self.file_len, &out);
        put_u64(&mut out, sum);
        (out, sum)
    }

    /// Decodes the last 96 bytes of a file of `actual_len` bytes; also gives the footer's checksum.
    pub(crate) fn decode(bytes: &[u8], actual_len: u64) -> Result<(Footer, u64), Malformed> {
        const NOT_ONE: Malformed = Malformed::Damaged("it is not a segment, or was cut short");
        if bytes.len() != FOOTER_LEN || bytes.get(80..88) != Some(MAGIC) {
            return Err(NOT_ONE);
        }
        let mut reader = Reader::new(bytes);
        let mut uuid = [0; 16];
        uuid.copy_from_slice(reader.bytes(16)?);
        let footer = Footer {
            uuid,
            meta_offset: reader.u64()?,
            table_offset: reader.u64()?,
            table_len: reader.u64()?,
            table_checksum: reader.u64()?,
            file_len: reader.u64()?,
        };
        let version = reader.u32()?;
        let reserved = reader.bytes(20)?;
        let recorded = u64_at(bytes, 88).ok_or(NOT_ONE)?;
        let covered = bytes.get(..88).ok_or(NOT_ONE)?;
        if checksum(0, footer.file_len, covered) != recorded {
            return Err(Malformed::Damaged("the footer's checksum does not match"));
        }
        match version {
            VERSION => {}
            0 => return Err(Malformed::Damaged("the footer has format version 0")),
            _ => return Err(Malformed::Unsupported("its format version is newer than 1")),
        }
        if reserved.iter().any(|b| *b != 0) {
            return Err(Malformed::Damaged("a reserved field of the footer is not zero"));
        }
        if footer.file_len != actual_len {
            return Err(Malformed::Damaged("the file is not as long as its footer says"));
        }
        let end = footer.table_offset.checked_add(footer.table_len);
        if footer.meta_offset == 0
            || !footer.meta_offset.is_multiple_of(PAGE as u64)
            || footer.meta_offset > footer.table_offset
            || end.and_then(|end| end.checked_add(FOOTER_LEN as u64)) != Some(actual_len)
        {
            return Err(Malformed::Damaged("the footer's offsets do not fit together"));
        }
        Ok((footer, recorded))
    }
}

/// One line of the section table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) id: u16,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) checksum: u64,
}

impl Section {
    /// Whether the section consists of partitions that each have a checksum of their own, and has
    /// none itself.
    pub(crate) fn is_partitions(&self) -> bool {
        matches!(self.id, SECTION_INDEX_PARTITIONS | SECTION_BLOOM_PARTITIONS)
    }
}

const SECTION_LINE: usize = 28;

/// The section table's bytes.
pub(crate) fn encode_table(sections: &[Section]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + SECTION_LINE * sections.len());
    put_u32(&mut out, sections.len() as u32);
    for section in sections {
        put_u16(&mut out, section.id);
        put_u16(&mut out, 0);
        put_u64(&mut out, section.offset);
        put_u64(&mut out, section.len);
        put_u64(&mut out, section.checksum);
    }
    out
}

/// Decodes the section table, whose length the footer gave.
pub(crate) fn decode_table(bytes: &[u8], footer: &Footer) -> Result<Vec<Section>, Malformed> {
    if checksum(footer.salt(), footer.table_offset, bytes) != footer.table_checksum {
        return Err(Malformed::Damaged("the section table's checksum does not match"));
    }
    let mut reader = Reader::new(bytes);
    let count = reader.u32()? as usize;
    if !reader.remaining().is_multiple_of(SECTION_LINE)
        || reader.remaining() / SECTION_LINE != count
    {
        return Err(Malformed::Damaged("the section table's length does not fit its count"));
    }
    let mut sections: Vec<Section> = Vec::with_capacity(count);
    let mut at = footer.meta_offset;
    for _ in 0..count {
        let id = reader.u16()?;
        let reserved = reader.u16()?;
        let (offset, len, checksum) = (reader.u64()?, reader.u64()?, reader.u64()?);
        if reserved != 0 {
            return Err(Malformed::Damaged("a reserved field of the section table is not zero"));
        }
        if offset != at {
            return Err(Malformed::Damaged("the sections do not lie back to back"));
        }
        at = at
            .checked_add(len)
            .filter(|end| *end <= footer.table_offset)
            .ok_or(Malformed::Damaged("a section runs past the section table"))?;
        sections.push(Section { id, offset, len, checksum });
    }
    if at != footer.table_offset {
        return Err(Malformed::Damaged("the sections do not reach the section table"));
    }
    let mut ids: Vec<u16> = sections.iter().map(|section| section.id).collect();
    ids.sort_unstable();
    if ids.windows(2).any(|pair| pair.first() == pair.last()) {
        return Err(Malformed::Damaged("a section appears twice"));
    }
    if ids.iter().any(|id| *id & OPTIONAL == 0 && !(1..=7).contains(id)) {
        return Err(Malformed::Unsupported("it has a required section that is not known"));
    }
    let has = |id| ids.binary_search(&id).is_ok();
    if ![SECTION_INDEX, SECTION_PROPERTIES, SECTION_TAG, SECTION_LAST_KEY].into_iter().all(has) {
        return Err(Malformed::Damaged("a section that every segment has is missing"));
    }
    if has(SECTION_BLOOM_PARTITIONS) && !has(SECTION_BLOOM) {
        return Err(Malformed::Damaged("bloom partitions without a bloom filter section"));
    }
    Ok(sections)
}

/// One partition of a partitioned section, as its top level describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PartRef {
    /// Offset within the partitions section.
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) checksum: u64,
}

/// Appends the description of a partition.
pub(crate) fn put_part_ref(out: &mut Vec<u8>, part: &PartRef) {
    put_u64(out, part.offset);
    put_u32(out, part.len);
    put_u64(out, part.checksum);
}

/// Reads `count` descriptions of partitions that must fill a section of `section_len` bytes.
pub(crate) fn read_part_refs(
    reader: &mut Reader<'_>,
    count: usize,
    section_len: u64,
) -> Result<Vec<PartRef>, Malformed> {
    if reader.remaining() / 20 < count {
        return Err(Malformed::Damaged("its list of partitions ends too early"));
    }
    let mut parts = Vec::with_capacity(count);
    let mut at = 0u64;
    for _ in 0..count {
        let part = PartRef { offset: reader.u64()?, len: reader.u32()?, checksum: reader.u64()? };
        if part.offset != at {
            return Err(Malformed::Damaged("its partitions do not lie back to back"));
        }
        at = at.saturating_add(u64::from(part.len));
        parts.push(part);
    }
    if at != section_len {
        return Err(Malformed::Damaged("its partitions do not fill their section"));
    }
    Ok(parts)
}

/// The header of a data block, without its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockHeader {
    pub(crate) pages: u32,
    /// Payload bytes as stored.
    pub(crate) stored: u64,
    /// Payload bytes once decompressed.
    pub(crate) raw: u64,
    pub(crate) entries: u16,
    pub(crate) codec: u8,
    pub(crate) prefix_width: u8,
    pub(crate) common: u16,
}

impl BlockHeader {
    /// Writes header and checksum over the first 32 bytes of a block that is complete otherwise.
    #[cfg_attr(not(test), expect(clippy::indexing_slicing, reason = "it writes its own bytes"))]
    pub(crate) fn seal(&self, block: &mut [u8], salt: u64, offset: u64) {
        let mut out = Vec::with_capacity(BLOCK_HEADER_LEN - 8);
        put_u32(&mut out, self.pages);
        out.extend_from_slice(&self.stored.to_le_bytes()[..5]);
        out.extend_from_slice(&self.raw.to_le_bytes()[..5]);
        put_u16(&mut out, self.entries);
        out.push(self.codec);
        out.push(self.prefix_width);
        put_u16(&mut out, self.common);
        put_u32(&mut out, 0);
        block[8..BLOCK_HEADER_LEN].copy_from_slice(&out);
        let sum = checksum(salt, offset, &block[8..]);
        block[..8].copy_from_slice(&sum.to_le_bytes());
    }

    /// Decodes the header of a whole padded block that lies at `offset`; checks its checksum first.
    pub(crate) fn decode(block: &[u8], salt: u64, offset: u64) -> Result<BlockHeader, Malformed> {
        let sum = u64_at(block, 0).ok_or(Malformed::Damaged("the block is cut short"))?;
        let covered = block.get(8..).unwrap_or_default();
        if checksum(salt, offset, covered) != sum {
            return Err(Malformed::Damaged("the block's checksum does not match"));
        }
        let mut reader = Reader::new(covered);
        let pages = reader.u32()?;
        let u40 = |reader: &mut Reader<'_>| -> Result<u64, Malformed> {
            let mut bytes = [0; 8];
            for (to, from) in bytes.iter_mut().zip(reader.bytes(5)?) {
                *to = *from;
            }
            Ok(u64::from_le_bytes(bytes))
        };
        let stored = u40(&mut reader)?;
        let raw = u40(&mut reader)?;
        let header = BlockHeader {
            pages,
            stored,
            raw,
            entries: reader.u16()?,
            codec: reader.u8()?,
            prefix_width: reader.u8()?,
            common: reader.u16()?,
        };
        if reader.u32()? != 0 {
            return Err(Malformed::Damaged("a reserved field of the block is not zero"));
        }
        if u64::from(header.pages) * PAGE as u64 != block.len() as u64 {
            return Err(Malformed::Damaged("the block is not as long as the index says"));
        }
        if header.entries == 0 || header.stored > (block.len() - BLOCK_HEADER_LEN) as u64 {
            return Err(Malformed::Damaged("the block's header does not fit its length"));
        }
        if !matches!(header.prefix_width, 0 | 2 | 4 | 8)
            || (header.prefix_width == 0 && header.common != 0)
        {
            return Err(Malformed::Damaged("the block's prefix fields are not valid"));
        }
        if header.raw > MAX_RAW as u64 && header.entries != 1 {
            return Err(Malformed::Damaged("the block is too long for several entries"));
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(lines: &[(u16, u64)]) -> Result<Vec<Section>, Malformed> {
        let mut offset = 4096;
        let mut sections = Vec::new();
        for (id, len) in lines {
            sections.push(Section { id: *id, offset, len: *len, checksum: 1 });
            offset += len;
        }
        decode(&encode_table(&sections), offset)
    }

    fn decode(bytes: &[u8], table_offset: u64) -> Result<Vec<Section>, Malformed> {
        let mut footer = Footer {
            uuid: [4; 16],
            meta_offset: 4096,
            table_offset,
            table_len: bytes.len() as u64,
            table_checksum: 0,
            file_len: table_offset + (bytes.len() + FOOTER_LEN) as u64,
        };
        footer.table_checksum = checksum(footer.salt(), table_offset, bytes);
        let (encoded, sum) = footer.encode();
        assert_eq!(Footer::decode(&encoded, footer.file_len), Ok((footer.clone(), sum)));
        decode_table(bytes, &footer)
    }

    #[test]
    fn optional_sections_may_be_unknown_required_ones_may_not() {
        let needed = [(1, 10), (5, 20), (6, 5), (7, 0)];
        assert_eq!(table(&needed).unwrap().len(), 4);
        assert_eq!(table(&[&needed[..], &[(0x8001, 7), (0xffff, 0)]].concat()).unwrap().len(), 6);
        for unknown in [0, 8, 0x7fff] {
            let result = table(&[&needed[..], &[(unknown, 7)]].concat());
            assert!(matches!(result, Err(Malformed::Unsupported(_))));
        }
    }

    #[test]
    fn a_section_table_that_does_not_fit_together_is_damaged() {
        let damaged = |result| assert!(matches!(result, Err(Malformed::Damaged(_))), "{result:?}");
        damaged(table(&[(1, 10), (5, 20), (6, 5)]));
        damaged(table(&[(1, 10), (5, 20), (6, 5), (7, 0), (7, 0)]));
        damaged(table(&[(1, 10), (5, 20), (6, 5), (7, 0), (4, 9)]));
        let good = |offset| {
            let section = |id, offset, len| Section { id, offset, len, checksum: 1 };
            [section(1, offset, 10), section(5, 4106, 1), section(6, 4107, 1), section(7, 4108, 1)]
        };
        assert!(decode(&encode_table(&good(4096)), 4109).is_ok());
        damaged(decode(&encode_table(&good(4095)), 4109));
        damaged(decode(&encode_table(&good(4096)), 4110));
        damaged(decode(&encode_table(&good(4096)), 4108));
        let mut huge = good(4096);
        huge[3].len = u64::MAX;
        damaged(decode(&encode_table(&huge), 4109));
        let mut count = encode_table(&good(4096));
        count[0] = 5;
        damaged(decode(&count, 4109));
        count[..4].fill(0xff);
        damaged(decode(&count, 4109));
        let mut reserved = encode_table(&good(4096));
        reserved[6] = 1;
        damaged(decode(&reserved, 4109));
        damaged(decode(&[1, 2], 4109));
    }
}
