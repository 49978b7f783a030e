//! Reads what is left of a damaged segment: every entry of every sound block, in order.
//!
//! ```text
//! footer    one flipped bit is mended; else the uuid in it is taken as it stands: it is the salt
//! table     without it there is no index
//! index     without it, or where a part of it is damaged, blocks are found by their own headers
//! blocks    each is taken if its checksum, and everything that verifying looks at, is right
//! ```
//!
//! Invariants: nothing is taken that a checksum over it does not confirm, so that a wrong guess about
//! the rest of the file finds nothing rather than something wrong; every stretch that is passed over is
//! told, with the keys that it may have held, before an entry behind it is shown.
//!
//! Called by repair. The file is not changed. A cursor belongs to one thread at a time.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::block::Entry;
use super::format::{
    FOOTER_LEN, Footer, SECTION_INDEX_PARTITIONS, SECTION_PROPERTIES, decode_table,
};
use super::index::{Handle, IndexPartition, IndexRoot, TopLevel};
use super::metadata::{SegmentMetadata, check_section, file_len, read_at};
use super::{Block, Damage, FileSource, Properties, SegmentReader};
use crate::checksum::{checksum, mend_one_bit};
use crate::coding::{u32_at, u64_at};
use crate::cursor::{Cursor, Seek};
use crate::error::{Error, Malformed, Result};
use crate::sync::{Arc, RwLock};
use crate::types::{Kind, PAGE, SeqNo};
use crate::vfs::VfsFile;
use bytes::Bytes;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A segment, opened as far as it can be.
#[derive(Debug)]
pub(crate) struct Salvage {
    reader: SegmentReader,
    /// What it says of itself, if that can be read.
    pub(crate) properties: Option<Properties>,
    /// What is wrong with its end. No keys are lost by that.
    pub(crate) damage: Vec<Damage>,
    /// The footer's checksum, as it is recorded and as it should be: the same in a sound footer.
    sums: [u64; 2],
}

impl Salvage {
    /// Opens a segment. Reads its end only.
    ///
    /// # Errors
    /// [`Error::Corruption`] if the file is shorter than a footer, [`Error::Io`] if the end cannot be
    /// read at all, [`Error::UnsupportedFormat`].
    pub(crate) fn open(source: Arc<dyn FileSource>, path: PathBuf) -> Result<Salvage> {
        let mut damage = Vec::new();
        let file = source.file()?;
        let end = read_end(file.as_ref(), &path, &mut damage)?;
        let reader = SegmentReader::salvaging(source, path, end.meta);
        // Without a manifest, a number is taken that is not above the true one.
        let least = end.properties.as_ref().map_or(SeqNo::ZERO, |p| p.numbered_from);
        let reader = reader.numbered(least);
        Ok(Salvage { reader, properties: end.properties, damage, sums: end.sums })
    }

    /// The same for a segment of which the manifest says what the smallest number of its entries is.
    pub(crate) fn numbered(self, smallest: SeqNo) -> Salvage {
        Salvage { reader: self.reader.numbered(smallest), ..self }
    }

    /// Whether it is the segment with this checksum in its footer, as far as one can tell: damage to
    /// either the checksum or what it covers leaves the other.
    pub(crate) fn is(&self, footer_checksum: u64) -> bool {
        self.sums.contains(&footer_checksum)
    }

    /// The last key, if it can be read.
    pub(crate) fn last_key(&self) -> Option<Vec<u8>> {
        self.reader.last_key().ok().map(Into::into)
    }

    /// A cursor over what can be read. `span` are the first and the last key, as far as they are known;
    /// `tell` hears of each damaged place.
    pub(crate) fn cursor(
        self,
        hash_seed: u64,
        (first, last): (Option<Vec<u8>>, Option<Vec<u8>>),
        tell: Box<dyn FnMut(Told) + Send>,
    ) -> SalvageCursor {
        SalvageCursor {
            reader: self.reader,
            hash_seed,
            tell,
            top: None,
            next_part: 0,
            stretch: Stretch::Done,
            number: Some(0),
            low: first.clone(),
            first,
            last,
            before: None,
            gap: false,
            missing: None,
            at: None,
        }
    }
}

struct End {
    meta: SegmentMetadata,
    properties: Option<Properties>,
    sums: [u64; 2],
}

/// Reads footer, section table and properties, each as far as it can be read.
fn read_end(file: &dyn VfsFile, path: &Path, damage: &mut Vec<Damage>) -> Result<End> {
    let mut note = |error: Error| match error {
        Error::Corruption { offset, what, .. } => {
            damage.push(Damage { offset, block: None, key_range: None, what });
            Ok(())
        }
        error @ Error::Io { .. } => {
            let what = error.to_string();
            damage.push(Damage { offset: 0, block: None, key_range: None, what });
            Ok(())
        }
        other => Err(other),
    };
    let len = file_len(file, path)?;
    let footer_at = len.saturating_sub(FOOTER_LEN as u64);
    let bytes = read_at(file, path, footer_at, len - footer_at, len)?;
    let cut = || Malformed::Damaged("it is not a segment, or was cut short").at(path, footer_at);
    let recorded = u64_at(&bytes, 88).ok_or_else(cut)?;
    let decoded = Footer::decode(&bytes, len);
    let (footer, sums) = match decoded {
        Ok((footer, sum)) => (footer, [sum; 2]),
        Err(malformed) => {
            note(malformed.at(path, footer_at))?;
            match mend_one_bit(&bytes, FOOTER_LEN, |bytes| Footer::decode(bytes, len).ok()) {
                Some((footer, sum)) => (footer, [sum; 2]),
                None => {
                    let computed = checksum(0, len, bytes.get(..88).unwrap_or_default());
                    (guess_footer(&bytes, len).ok_or_else(cut)?, [recorded, computed])
                }
            }
        }
    };
    let read = |offset, wanted| read_at(file, path, offset, wanted, len);
    let salt = footer.salt();
    let table = read(footer.table_offset, footer.table_len).and_then(|bytes| {
        decode_table(&bytes, &footer).map_err(|malformed| malformed.at(path, footer.table_offset))
    });
    let sections = match table {
        Ok(sections) => sections,
        // There is no table to a footer that was guessed, which was noted.
        Err(error) if footer.table_len > 0 => note(error).map(|()| Vec::new())?,
        Err(_) => Vec::new(),
    };
    let section = sections.iter().find(|section| section.id == SECTION_PROPERTIES);
    let properties = section.map(|section| {
        let bytes = read(section.offset, section.len)?;
        check_section(&bytes, section, salt)
            .and_then(|()| Properties::decode(&bytes))
            .map_err(|malformed| malformed.at(path, section.offset))
    });
    let properties = match properties {
        Some(Err(error)) => note(error).map(|()| None)?,
        Some(Ok(properties)) => Some(properties),
        None => None,
    };
    let meta = SegmentMetadata {
        footer_checksum: recorded,
        salt,
        sections,
        properties: properties.clone().unwrap_or_default(),
        footer,
        parts: RwLock::new(HashMap::new()),
    };
    Ok(End { meta, properties, sums })
}

/// What a footer may have been that cannot be mended: the uuid as it stands, and blocks anywhere in
/// front of where the data ended, if that makes sense, or else in the whole file.
fn guess_footer(bytes: &[u8], len: u64) -> Option<Footer> {
    let page = PAGE as u64;
    let end = u64_at(bytes, 16).filter(|end| *end > 0 && *end <= len && end.is_multiple_of(page));
    Some(Footer {
        uuid: *bytes.first_chunk()?,
        meta_offset: end.unwrap_or(len / page * page),
        table_offset: len,
        table_len: 0,
        table_checksum: 0,
        file_len: len,
    })
}

/// What a cursor tells of a damaged place.
#[derive(Debug)]
pub(crate) enum Told {
    /// The entries of a block, or of pages where no block can be found, are lost. The upper end of the
    /// key range may be the first key behind them, of which then nothing is lost.
    Lost { damage: Damage, with_high: bool },
    /// A part of the index cannot be read, which by itself loses nothing.
    Found(Damage),
    /// So many bytes were read.
    Read(u64),
}

/// Which blocks come next.
enum Stretch {
    Index {
        index: Arc<IndexPartition>,
        next: usize,
    },
    /// Pages of which no index is left, and the separator of the last block in them, if known.
    Scan {
        page: u32,
        end: u32,
        high: Option<Vec<u8>>,
    },
    Done,
}

/// A cursor over the sound blocks of a segment. It goes forward only: it is at no entry after any
/// seek but [`Seek::First`], and after `prev`.
pub(crate) struct SalvageCursor {
    reader: SegmentReader,
    hash_seed: u64,
    tell: Box<dyn FnMut(Told) + Send>,
    top: Option<TopLevel>,
    next_part: usize,
    stretch: Stretch,
    /// The number of the next block, if known.
    number: Option<u32>,
    /// At or above every key in front of the next block, if known; at first the first key.
    low: Option<Vec<u8>>,
    first: Option<Vec<u8>>,
    last: Option<Vec<u8>>,
    /// The last entry of the last sound block.
    before: Option<(Bytes, SeqNo)>,
    /// Something behind it was passed over.
    gap: bool,
    /// Pages where no block was found, up to here.
    missing: Option<Damage>,
    at: Option<(Block, usize, Entry)>,
}

impl SalvageCursor {
    fn start(&mut self) -> Result<()> {
        self.number = Some(0);
        self.next_part = 0;
        self.low = self.first.clone();
        (self.before, self.gap, self.missing, self.at) = (None, false, None, None);
        match self.reader.read_index_root() {
            Ok(IndexRoot::Single(index)) => {
                self.top = None;
                self.stretch = Stretch::Index { index, next: 0 };
                Ok(())
            }
            Ok(IndexRoot::Partitioned(top)) => {
                self.top = Some(top);
                self.enter_part()
            }
            Err(error) => {
                self.top = None;
                self.number = None;
                let end = u32::try_from(self.reader.data_bytes() / PAGE as u64).unwrap_or(u32::MAX);
                self.stretch = Stretch::Scan { page: 0, end, high: self.last.clone() };
                // A table that cannot be read was found at opening.
                if self.reader.inner.meta.sections.is_empty() {
                    return Ok(());
                }
                self.found(error)
            }
        }
    }

    /// Goes on to the next partition of the index, if there is one.
    fn enter_part(&mut self) -> Result<()> {
        let number = self.next_part;
        self.next_part += 1;
        self.stretch = Stretch::Done;
        let Some(top) = self.top.as_ref().filter(|top| number < top.len()) else { return Ok(()) };
        match self.reader.read_index_partition(top, number) {
            Ok(index) => {
                self.stretch = Stretch::Index { index: Arc::new(index), next: 0 };
                Ok(())
            }
            Err(error) => {
                if let Some(blocks) = top.index().block(number) {
                    let (page, end) = (blocks.first_page, blocks.first_page + blocks.pages);
                    let high = Some(top.index().separator(number));
                    self.stretch = Stretch::Scan { page, end, high };
                }
                self.number = None;
                self.found(error)
            }
        }
    }

    /// Notes that a part of the index is damaged.
    fn found(&mut self, error: Error) -> Result<()> {
        let base = self.reader.inner.meta.section(SECTION_INDEX_PARTITIONS);
        let base = base.map_or(0, |section| section.offset);
        let damage = judge(error, base)?;
        (self.tell)(Told::Found(damage));
        Ok(())
    }

    /// Finds the next sound block and goes to its first entry.
    fn advance(&mut self) -> Result<()> {
        self.at = None;
        loop {
            match &mut self.stretch {
                Stretch::Done => return Ok(()),
                Stretch::Index { index, next } => {
                    let Some(handle) = index.block(*next) else {
                        self.enter_part()?;
                        continue;
                    };
                    let separator = index.separator(*next);
                    *next += 1;
                    let number = self.number;
                    self.number = number.map(|number| number.saturating_add(1));
                    let block = self.block(&handle, true);
                    let low = self.low.replace(separator.clone());
                    match block {
                        Ok(block) => {
                            self.enter(block);
                            return Ok(());
                        }
                        Err(error) => {
                            let mut damage = judge(error, handle.offset())?;
                            damage.block = number;
                            damage.key_range = low.map(|low| (low, separator));
                            self.gap = true;
                            (self.tell)(Told::Lost { damage, with_high: true });
                        }
                    }
                }
                Stretch::Scan { page, end, high } if *page >= *end => {
                    let high = high.take();
                    self.tell_missing(high.as_deref(), true);
                    self.low = high;
                    self.enter_part()?;
                }
                Stretch::Scan { page, end, .. } => {
                    let (first_page, left) = (*page, *end - *page);
                    let offset = u64::from(first_page) * PAGE as u64;
                    let head = self.reader.read(offset, 12).unwrap_or_default();
                    let pages = u32_at(&head, 8).filter(|n| *n > 0 && *n <= left).unwrap_or(1);
                    let handle = Handle { first_page, pages, entries: 0 };
                    let block = self.block(&handle, false);
                    if let Stretch::Scan { page, .. } = &mut self.stretch {
                        *page += if block.is_ok() { pages } else { 1 };
                    }
                    match block {
                        Ok(block) => {
                            let goes_on = block.entry(0).is_some_and(|entry| entry.same_key);
                            self.tell_missing(Some(block.key(0)), goes_on);
                            self.low = Some(block.key(block.len() - 1).to_vec());
                            self.enter(block);
                            return Ok(());
                        }
                        Err(error) => {
                            let damage = judge(error, offset)?;
                            self.missing.get_or_insert(damage);
                            self.gap = true;
                        }
                    }
                }
            }
        }
    }

    /// Tells of the pages that were passed over since the last sound block, if there were any.
    fn tell_missing(&mut self, high: Option<&[u8]>, with_high: bool) {
        let Some(mut damage) = self.missing.take() else { return };
        damage.key_range = self.low.clone().zip(high.map(<[u8]>::to_vec));
        (self.tell)(Told::Lost { damage, with_high });
    }

    /// Reads a block and checks everything that verifying would.
    fn block(&mut self, handle: &Handle, is_indexed: bool) -> Result<Block> {
        let offset = handle.offset();
        let bytes = Bytes::from(self.reader.read(offset, handle.len())?);
        (self.tell)(Told::Read(handle.len()));
        let (block, header) = Block::decode(&bytes, self.reader.inner.meta.salt, offset)
            .map_err(|malformed| self.reader.malformed(malformed, offset))?;
        let block = block.numbered(self.reader.inner.unnumbered);
        let damaged = |what: &str| Error::corruption(self.reader.path(), offset, what);
        if is_indexed && header.entries != handle.entries {
            return Err(damaged("the block's entry count is not the one in the index"));
        }
        let before = self.before.as_ref().map(|(key, seqno)| (&key[..], *seqno));
        block.check(&bytes, &header, before, self.gap, self.hash_seed).map_err(damaged)?;
        Ok(block)
    }

    fn enter(&mut self, block: Block) {
        let last = block.entry(block.len().saturating_sub(1));
        self.before = last.map(|entry| (block.share(&entry.key), entry.seqno));
        self.gap = false;
        self.at = block.entry(0).map(|entry| (block, 0, entry));
    }
}

/// What is lost by an error that is about the file's state. Others, such as a codec that this build
/// does not have, say nothing about that.
fn judge(error: Error, at: u64) -> Result<Damage> {
    let (offset, what) = match error {
        Error::Corruption { offset, what, .. } => (offset, what),
        Error::Io { .. } => (at, error.to_string()),
        other => return Err(other),
    };
    Ok(Damage { offset, block: None, key_range: None, what })
}

impl Cursor for SalvageCursor {
    fn seek(&mut self, to: Seek<'_>) -> Result<()> {
        self.at = None;
        self.stretch = Stretch::Done;
        if !matches!(to, Seek::First) {
            return Ok(());
        }
        self.start()?;
        self.advance()
    }

    fn next(&mut self) -> Result<()> {
        let Some((block, i, _)) = self.at.take() else { return Ok(()) };
        match block.entry(i + 1) {
            Some(entry) => {
                self.at = Some((block, i + 1, entry));
                Ok(())
            }
            None => self.advance(),
        }
    }

    fn prev(&mut self) -> Result<()> {
        self.at = None;
        Ok(())
    }

    fn valid(&self) -> bool {
        self.at.is_some()
    }

    fn key(&self) -> &[u8] {
        self.at.as_ref().map_or(&[], |(block, _, entry)| block.view(&entry.key))
    }

    fn seqno(&self) -> SeqNo {
        self.at.as_ref().map_or(SeqNo::ZERO, |(_, _, entry)| entry.seqno)
    }

    fn kind(&self) -> Kind {
        self.at.as_ref().map_or(Kind::Delete, |(_, _, entry)| entry.kind)
    }

    fn key_bytes(&self) -> Bytes {
        self.at.as_ref().map_or_else(Bytes::new, |(block, _, entry)| block.share(&entry.key))
    }

    fn value(&self) -> Bytes {
        self.at.as_ref().map_or_else(Bytes::new, |(block, _, entry)| block.share(&entry.value))
    }

    fn value_ref(&self) -> &[u8] {
        self.at.as_ref().map_or(&[], |(block, _, entry)| block.view(&entry.value))
    }
}
