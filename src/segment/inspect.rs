//! What a segment is made of, for people: sections and blocks.

use super::Block;
use super::format::{SECTION_TAG, section_name};
use super::reader::{Position, SegmentReader};
use crate::compression::Compression;
use crate::error::{Malformed, Result};
use crate::slice::Key;
use crate::types::PAGE;
use bytes::Bytes;

/// One section of the meta block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SectionInfo {
    /// Its number in the format.
    pub id: u16,
    /// What it holds.
    pub name: &'static str,
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// One data block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Its number, from 0.
    pub number: u32,
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// Its length in pages of 4096 bytes.
    pub pages: u32,
    /// How many entries it holds.
    pub entries: u32,
    /// The payload as stored, in bytes. In a block that is not compressed it includes padding.
    pub stored: u64,
    /// The payload once decompressed, in bytes.
    pub raw: u64,
    /// The number of its codec: 0 none, 1 LZ4, 2 Zstandard.
    pub codec: u8,
    /// Padding, in bytes.
    pub padding: u64,
    /// The first key.
    pub first_key: Key,
    /// The last key.
    pub last_key: Key,
    /// Its separator in the block index: not below its last key, and below the first key of the
    /// next block.
    pub separator: Key,
}

/// The data blocks in order; a damaged one is an error, and the next item is the block behind it.
/// After an error in the index it ends.
#[derive(Debug)]
pub struct Blocks {
    reader: SegmentReader,
    next: Next,
    number: u32,
}

#[derive(Debug)]
enum Next {
    First,
    Behind(Position),
    Done,
}

impl SegmentReader {
    /// The sections of the meta block, in the order of the file. Costs no I/O.
    #[must_use]
    pub fn sections(&self) -> Vec<SectionInfo> {
        let section = |s: &super::format::Section| SectionInfo {
            id: s.id,
            name: section_name(s.id),
            offset: s.offset,
            len: s.len,
        };
        self.inner.meta.sections.iter().map(section).collect()
    }

    /// The codec that the writer used where a block shrank. Costs one read.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io); [`Error::Corruption`](crate::Error::Corruption);
    /// [`Error::UnsupportedFormat`](crate::Error::UnsupportedFormat) for a codec unknown here.
    pub fn compression(&self) -> Result<Compression> {
        let section = self.section(SECTION_TAG)?;
        let tag = self.read_section(&section)?;
        let wrong = |malformed| Err(self.malformed(malformed, section.offset));
        match tag.split_first() {
            Some((codec, level)) if level.len() == 4 => {
                let level = level.first_chunk().map_or(0, |bytes| i32::from_le_bytes(*bytes));
                match Compression::from_codec(*codec, level) {
                    Some(compression) => Ok(compression),
                    None => wrong(Malformed::Unsupported("its codec is unknown")),
                }
            }
            _ => wrong(Malformed::Damaged("the compression tag has the wrong length")),
        }
    }

    /// The data blocks, each read and checked when the iterator comes to it; the cache is not used.
    #[must_use]
    pub fn blocks(&self) -> Blocks {
        Blocks { reader: self.clone(), next: Next::First, number: 0 }
    }

    fn block_info(&self, position: &Position, number: u32) -> Result<Option<BlockInfo>> {
        let Some(handle) = position.handle() else { return Ok(None) };
        let bytes = Bytes::from(self.read(handle.offset(), handle.len())?);
        let (block, header) = Block::decode(&bytes, self.inner.meta.salt, handle.offset())
            .map_err(|malformed| self.malformed(malformed, handle.offset()))?;
        let key = |i: usize| Key(block.entry(i).map(|e| block.share(&e.key)).unwrap_or_default());
        Ok(Some(BlockInfo {
            number,
            offset: handle.offset(),
            pages: header.pages,
            entries: u32::from(header.entries),
            stored: header.stored,
            raw: header.raw,
            codec: header.codec,
            padding: (u64::from(header.pages) * PAGE as u64)
                .saturating_sub(block.used_bytes(&header)),
            first_key: key(0),
            last_key: key(block.len() - 1),
            separator: Key(position.separator().into()),
        }))
    }
}

impl Iterator for Blocks {
    type Item = Result<BlockInfo>;

    fn next(&mut self) -> Option<Self::Item> {
        let position = match std::mem::replace(&mut self.next, Next::Done) {
            Next::First => self.reader.edge(false),
            Next::Behind(position) => self.reader.following(position),
            Next::Done => return None,
        };
        let position = match position {
            Ok(position) => position?,
            Err(error) => return Some(Err(error)),
        };
        let number = self.number;
        self.number = number.saturating_add(1);
        let info = self.reader.block_info(&position, number);
        self.next = Next::Behind(position);
        info.transpose()
    }
}
