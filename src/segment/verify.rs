//! Reads all of a segment and reports everything that is wrong with it.
//!
//! The file is read afresh: neither cache nor kept metadata can hide damage. A damaged block is
//! reported and the next one is read. Where a part of the block index is damaged, the blocks it
//! described are found by their own headers.

use super::bloom::{Filter, FilterRoot, partition_of};
use super::format::{
    SECTION_BLOOM, SECTION_BLOOM_PARTITIONS, SECTION_HASH_RUN_PARTITIONS, SECTION_INDEX,
    SECTION_INDEX_PARTITIONS, SECTION_LAST_KEY, SECTION_PROPERTIES, SECTION_TAG,
};
use super::index::{Handle, IndexPartition, IndexRoot};
use super::metadata::SegmentMetadata;
use super::reader::SegmentReader;
use super::verify_hash_run::{HashDamage, HashNotes};
use super::{Block, Properties, Reference};
use crate::coding::u32_at;
use crate::error::{Error, Result};
use crate::hash::key_hash;
use crate::types::{Kind, PAGE, SeqNo, split_expiry};
use bytes::Bytes;

/// The outcome of [`SegmentReader::verify`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Data blocks that were read and found sound.
    pub blocks: u64,
    /// Entries in them.
    pub entries: u64,
    /// What is wrong, in the order in which it was found. Empty: every byte is as it was written.
    pub damage: Vec<Damage>,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }
}

/// One thing that is wrong with a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where in the file the damaged structure starts, in bytes.
    pub offset: u64,
    /// The number of the data block, if it is one and the index could be read up to it.
    pub block: Option<u32>,
    /// The keys that cannot be read: above the first and up to the second (the first key of the
    /// segment counts as lost with block 0). `None` if no keys are lost, or it is not known which.
    pub key_range: Option<(Vec<u8>, Vec<u8>)>,
    /// What was found.
    pub what: String,
}

impl SegmentReader {
    /// Reads and checks everything: every checksum, every entry and its place in the order, hash
    /// bytes, prefixes, zeros, separators, bloom filter, hash run, properties. Costs a read of the
    /// whole file, and 8 bytes of memory for each key in a hash run.
    ///
    /// # Errors
    /// [`Error::UnsupportedFormat`] if some of it cannot be judged by this build; [`Error::Io`] if
    /// the file cannot be opened. Damage is not an error but in the report, and so is a part that
    /// the operating system cannot read.
    pub fn verify(&self) -> Result<VerifyReport> {
        self.verify_with(&mut |_, _| {})
    }

    /// The same; `progress` is called with bytes done and bytes in all.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub fn verify_with(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<VerifyReport> {
        self.verify_all(progress, Unreadable::Damage)
    }

    /// The same, but a part that the operating system cannot read is an error.
    ///
    /// # Errors
    /// As [`verify`](Self::verify), and [`Error::Io`].
    pub(crate) fn verify_readable(
        &self,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<VerifyReport> {
        self.verify_all(progress, Unreadable::Failure)
    }

    fn verify_all(
        &self,
        progress: &mut dyn FnMut(u64, u64),
        unreadable: Unreadable,
    ) -> Result<VerifyReport> {
        let mut verifier = Verifier {
            reader: self,
            unreadable,
            report: VerifyReport::default(),
            totals: Properties { smallest_seqno: SeqNo::MAX, ..Properties::default() },
            before: None,
            gap: false,
            all_read: true,
            filters: Vec::new(),
            filter_lacks: false,
            hash_notes: HashNotes::new(self),
            separator: None,
            number: Some(0),
            progress,
        };
        verifier.end_of_file()?;
        verifier.sections()?;
        verifier.load_filters()?;
        verifier.index()?;
        verifier.compare_totals()?;
        (verifier.progress)(self.file_len(), self.file_len());
        verifier.hash_run()
    }
}

/// What it is if the operating system cannot read a part.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    Damage,
    Failure,
}

struct Verifier<'a> {
    reader: &'a SegmentReader,
    unreadable: Unreadable,
    report: VerifyReport,
    /// The properties as they should be.
    totals: Properties,
    /// The last entry read.
    before: Option<(Vec<u8>, SeqNo)>,
    /// Something behind it could not be read.
    gap: bool,
    all_read: bool,
    filters: Vec<Filter>,
    filter_lacks: bool,
    hash_notes: HashNotes,
    /// The separator of the block before, if known.
    separator: Option<Vec<u8>>,
    /// The number of the next block, if known.
    number: Option<u32>,
    progress: &'a mut dyn FnMut(u64, u64),
}

type KeyRange = Option<(Vec<u8>, Vec<u8>)>;

impl Verifier<'_> {
    fn damage(&mut self, offset: u64, what: impl Into<String>) {
        self.report.damage.push(Damage { offset, block: None, key_range: None, what: what.into() });
    }

    /// Enters a failure into the report, unless it is one that says nothing about the file's state.
    fn note(
        &mut self,
        error: Error,
        at: u64,
        block: Option<u32>,
        key_range: KeyRange,
    ) -> Result<()> {
        let (offset, what) = match error {
            Error::Corruption { offset, what, .. } => (offset, what),
            Error::Io { .. } if self.unreadable == Unreadable::Damage => (at, error.to_string()),
            other => return Err(other),
        };
        self.report.damage.push(Damage { offset, block, key_range, what });
        Ok(())
    }

    /// The result if it is good; otherwise a line in the report.
    fn keep<T>(&mut self, result: Result<T>, at: u64) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) => self.note(error, at, None, None).map(|()| None),
        }
    }

    fn end_of_file(&mut self) -> Result<()> {
        let at = self.reader.inner.meta.footer.table_offset;
        let file = self.reader.file()?;
        let read = SegmentMetadata::read(file.as_ref(), &self.reader.inner.path);
        if let Some(read) = self.keep(read, at)? {
            let kept = &self.reader.inner.meta;
            if read.footer != kept.footer
                || read.sections != kept.sections
                || read.properties != kept.properties
            {
                self.damage(at, "the end of the file is not what it was when it was opened");
            }
        }
        Ok(())
    }

    fn sections(&mut self) -> Result<()> {
        for section in &self.reader.inner.meta.sections {
            // The partitions have checksums of their own, and the properties were just read.
            if section.is_partitions()
                || matches!(section.id, SECTION_PROPERTIES | SECTION_HASH_RUN_PARTITIONS)
            {
                continue;
            }
            let read = self.reader.read_section(section);
            let Some(bytes) = self.keep(read, section.offset)? else { continue };
            if section.id == SECTION_TAG {
                let (codec, level) = bytes.split_at(bytes.len().min(1));
                match (codec.first(), level.first_chunk::<4>()) {
                    (Some(codec), Some(level)) if bytes.len() == 5 => {
                        if *codec < 2 && *level != [0; 4] {
                            self.damage(section.offset, "a codec without levels has a level");
                        }
                    }
                    _ => self.damage(section.offset, "the compression tag has the wrong length"),
                }
            }
        }
        Ok(())
    }

    fn load_filters(&mut self) -> Result<()> {
        let reader = self.reader;
        let meta = &reader.inner.meta;
        let Some(section) = meta.section(SECTION_BLOOM) else { return Ok(()) };
        let partitions = meta.section(SECTION_BLOOM_PARTITIONS);
        // Its checksum was checked among the sections.
        let Ok(bytes) = reader.read_section(section) else { return Ok(()) };
        let root = FilterRoot::decode(&bytes, partitions.map_or(0, |s| s.len))
            .map_err(|malformed| reader.malformed(malformed, section.offset));
        match self.keep(root, section.offset)? {
            Some(FilterRoot::Single(filter)) => self.filters.push(filter),
            Some(FilterRoot::Partitioned(parts)) => {
                let base = partitions.map_or(0, |s| s.offset);
                for part in parts {
                    let offset = base + part.offset;
                    let filter =
                        reader.read_checked(offset, u64::from(part.len), part.checksum).and_then(
                            |bytes| Filter::decode(&bytes).map_err(|m| reader.malformed(m, offset)),
                        );
                    let filter = self.keep(filter, offset)?.unwrap_or(Filter::Unusable);
                    self.filters.push(filter);
                }
            }
            None => {}
        }
        Ok(())
    }

    fn index(&mut self) -> Result<()> {
        let section = self.reader.section(SECTION_INDEX)?;
        let end_page = (self.reader.data_bytes() / PAGE as u64) as u32;
        self.separator = Some(self.reader.properties().first_key.clone());
        let top = match self.reader.read_index_root() {
            Ok(IndexRoot::Single(index)) => return self.partition(&index, true),
            Ok(IndexRoot::Partitioned(top)) => top,
            Err(error) => {
                // A wrong checksum is already in the report.
                let reported = self.report.damage.iter().any(|d| d.offset == section.offset);
                if !reported || !matches!(error, Error::Corruption { .. }) {
                    self.note(error, section.offset, None, None)?;
                }
                return self.scan(0, end_page);
            }
        };
        let base = self.reader.section(SECTION_INDEX_PARTITIONS)?.offset;
        for number in 0..top.len() {
            match self.reader.read_index_partition(&top, number) {
                Ok(index) => self.partition(&index, number + 1 == top.len())?,
                Err(error) => {
                    let separator = top.index().separator(number);
                    let range = self.separator.clone().map(|low| (low, separator.clone()));
                    let offset = base + top.part(number).map_or(0, |part| part.offset);
                    self.note(error, offset, None, range)?;
                    if let Some(blocks) = top.index().block(number) {
                        self.scan(blocks.first_page, blocks.first_page + blocks.pages)?;
                    }
                    self.separator = Some(separator);
                }
            }
        }
        Ok(())
    }

    fn partition(&mut self, index: &IndexPartition, last: bool) -> Result<()> {
        for i in 0..index.len() {
            let Some(handle) = index.block(i) else { continue };
            let separator = index.separator(i);
            let is_last = last && i + 1 == index.len();
            match self.block(&handle, Some(handle.entries), Some((&separator, is_last))) {
                Ok(()) => {}
                Err(error) => {
                    let range = self.separator.clone().map(|low| (low, separator.clone()));
                    self.note(error, handle.offset(), self.number, range)?;
                    self.skip();
                }
            }
            self.separator = Some(separator);
            self.number = self.number.map(|number| number.saturating_add(1));
        }
        Ok(())
    }

    /// Finds the blocks of these pages without an index: each says how long it is. Pages where no
    /// block begins are passed over, one line in the report for each stretch.
    fn scan(&mut self, mut page: u32, end: u32) -> Result<()> {
        self.number = None;
        let mut lost = false;
        while page < end {
            let offset = u64::from(page) * PAGE as u64;
            let head = self.reader.read(offset, 12).unwrap_or_default();
            let pages = u32_at(&head, 8).unwrap_or_default();
            let fits = pages > 0 && pages <= end - page;
            let handle =
                Handle { first_page: page, pages: if fits { pages } else { 1 }, entries: 0 };
            self.separator = None;
            match self.block(&handle, None, None) {
                Ok(()) => {
                    lost = false;
                    page += handle.pages;
                }
                Err(error) => {
                    if !lost || matches!(error, Error::UnsupportedFormat { .. }) {
                        self.note(error, offset, None, None)?;
                    }
                    self.skip();
                    lost = true;
                    page += 1;
                }
            }
        }
        Ok(())
    }

    fn skip(&mut self) {
        self.gap = true;
        self.all_read = false;
    }

    /// Checks one block. An error means that its keys are lost or not to be trusted.
    fn block(
        &mut self,
        handle: &Handle,
        entries: Option<u16>,
        separator: Option<(&[u8], bool)>,
    ) -> Result<()> {
        let reader = self.reader;
        let offset = handle.offset();
        let damaged = |what: &str| Error::corruption(&reader.inner.path, offset, what);
        let bytes = Bytes::from(reader.read(offset, handle.len())?);
        let (block, header) = Block::decode(&bytes, reader.inner.meta.salt, offset)
            .map_err(|malformed| reader.malformed(malformed, offset))?;
        if entries.is_some_and(|entries| entries != header.entries) {
            return Err(damaged("the block's entry count is not the one in the index"));
        }
        let before = self.before.as_ref().map(|(key, seqno)| (key.as_slice(), *seqno));
        block
            .check(&bytes, &header, before, self.gap, reader.properties().hash_seed)
            .map_err(damaged)?;
        let (first, last) = (block.key(0), block.key(block.len() - 1));
        if let Some((separator, is_last)) = separator {
            if last > separator || (is_last && last != separator) {
                return Err(damaged("the block's separator in the index is wrong"));
            }
            let goes_on = self.gap || before.is_none_or(|(key, _)| key == first);
            if let Some(low) = &self.separator
                && (first < low.as_slice() || (first == low.as_slice() && !goes_on))
            {
                return Err(damaged("the separator in front of the block is wrong"));
            }
        }
        self.count(&block, handle.first_page);
        self.totals.stored_bytes += block.used_bytes(&header);
        self.before = block
            .entry(block.len() - 1)
            .map(|entry| (block.view(&entry.key).to_vec(), entry.seqno));
        self.gap = false;
        (self.progress)(offset + handle.len(), reader.file_len());
        Ok(())
    }

    fn count(&mut self, block: &Block, page: u32) {
        self.report.blocks += 1;
        self.report.entries += block.len() as u64;
        self.totals.blocks += 1;
        for i in 0..block.len() {
            let Some(entry) = block.entry(i) else { continue };
            let key = block.view(&entry.key);
            if self.totals.entries == 0 {
                self.totals.first_key = key.to_vec();
            }
            self.totals.entries += 1;
            self.totals.tombstones += u64::from(entry.kind == Kind::Delete);
            self.totals.merge_operands += u64::from(entry.kind.is_merge());
            if entry.kind.expires() {
                self.totals.note_expiry(split_expiry(entry.kind, block.view(&entry.value)).0);
            }
            if entry.kind.is_away()
                && let Ok(reference) =
                    Reference::decode(split_expiry(entry.kind, block.view(&entry.value)).1)
            {
                self.totals.note_reference(&reference);
            }
            self.totals.smallest_seqno = self.totals.smallest_seqno.min(entry.seqno);
            self.totals.largest_seqno = self.totals.largest_seqno.max(entry.seqno);
            self.totals.raw_bytes += (entry.key.len() + entry.value.len()) as u64;
            if entry.same_key {
                continue;
            }
            self.totals.distinct_keys += 1;
            let hash = key_hash(key, self.reader.properties().hash_seed);
            self.hash_notes.add(hash, page);
            let filter = match self.filters.as_slice() {
                [] => continue,
                [filter] => Some(filter),
                many => many.get(partition_of(hash, many.len())),
            };
            self.filter_lacks |= filter.is_some_and(|filter| !filter.may_contain(hash));
        }
    }

    fn compare_totals(&mut self) -> Result<()> {
        if self.filter_lacks {
            let offset = self.reader.section(SECTION_BLOOM)?.offset;
            self.damage(offset, "the bloom filter lacks a key of the segment");
        }
        if !self.all_read {
            return Ok(());
        }
        let properties = self.reader.properties();
        for (used, recorded) in
            self.totals.value_segments.iter_mut().zip(&properties.value_segments)
        {
            // What those are, the entries do not say.
            (used.file_len, used.checksum) = (recorded.file_len, recorded.checksum);
        }
        let expected = Properties {
            created_ms: properties.created_ms,
            keyspace: properties.keyspace,
            hash_seed: properties.hash_seed,
            deletes_applied: properties.deletes_applied,
            numbered_from: properties.numbered_from,
            ..std::mem::take(&mut self.totals)
        };
        if expected != *properties {
            let offset = self.reader.section(SECTION_PROPERTIES)?.offset;
            self.damage(offset, "the properties do not agree with the entries");
        }
        let section = self.reader.section(SECTION_LAST_KEY)?;
        if let (Ok(recorded), Some((last, _))) =
            (self.reader.read_section(&section), self.before.take())
            && recorded != last
        {
            self.damage(section.offset, "the last key is not that of the last entry");
        }
        Ok(())
    }

    /// Holds the hash run against the blocks; the end of verifying.
    fn hash_run(mut self) -> Result<VerifyReport> {
        let notes = std::mem::replace(&mut self.hash_notes, HashNotes::new(self.reader));
        for damage in notes.compare(self.reader, self.all_read) {
            match damage {
                HashDamage::Part(at, error) => self.note(error, at, None, None)?,
                HashDamage::Whole(at, what) => self.damage(at, what),
            }
        }
        Ok(self.report)
    }
}
