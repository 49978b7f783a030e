//! The hash run of a segment, slice by slice, for rebuilding a map over many segments.
//!
//! A slice is all entries whose hash has the same top 8 bits: a partition of a run that is cut. It
//! is read from the file and checked each time; neither the cache nor what point lookups remember
//! has a part in it. One thread at a time; `Send`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::format::{PartRef, SECTION_HASH_RUN, SECTION_HASH_RUN_PARTITIONS};
use super::hash_run::{HashLayout, Scope, read_entries};
use super::reader::SegmentReader;
use crate::checksum::checksum;
use crate::error::{Error, Result};

/// The slices of one hash run; see [`SegmentReader::hash_slices`].
#[derive(Debug)]
pub(crate) struct HashSlices {
    reader: SegmentReader,
    source: Source,
    /// The last partition read, or all of a single one.
    entries: Vec<(u64, u16)>,
    bytes: Vec<u8>,
}

#[derive(Debug)]
enum Source {
    Single,
    /// Offset in the file of the section, and the partitions in it.
    Partitioned(u64, Vec<PartRef>),
}

impl SegmentReader {
    /// Whether the segment has a hash run. Costs no I/O, so it says nothing of damage.
    pub(crate) fn has_hash_run(&self) -> bool {
        self.inner.meta.section(SECTION_HASH_RUN).is_some()
    }

    /// The hash run, to be read slice by slice. Costs one read: all of a run of one partition, 5 KiB
    /// of another.
    ///
    /// # Errors
    /// [`Error::Corruption`] if there is none, or it is damaged; [`Error::UnsupportedFormat`] if it
    /// is of a later version; [`Error::Io`].
    pub(crate) fn hash_slices(&self) -> Result<HashSlices> {
        let meta = &self.inner.meta;
        let section = self.section(SECTION_HASH_RUN)?;
        let partitions = meta.section(SECTION_HASH_RUN_PARTITIONS);
        let root = self.read_section(&section)?;
        let wrong = |malformed| self.malformed(malformed, section.offset);
        let layout = HashLayout::decode(&root, partitions.map_or(0, |s| s.len)).map_err(wrong)?;
        let mut entries = Vec::new();
        let source = match layout {
            HashLayout::Single(bytes) => {
                let sink = |hash, page| entries.push((hash, page));
                read_entries(&bytes, Scope::All, self.data_pages(), sink).map_err(wrong)?;
                Source::Single
            }
            HashLayout::Partitioned(parts) => {
                Source::Partitioned(partitions.map_or(0, |s| s.offset), parts)
            }
        };
        Ok(HashSlices { reader: self.clone(), source, entries, bytes: Vec::new() })
    }
}

impl HashSlices {
    /// The top 40 bits of the hash, and the page, of every key whose hash has these top 8 bits;
    /// sorted. Costs one read of the slice, or a search if the run has only one partition.
    ///
    /// # Errors
    /// [`Error::Corruption`]: the slice is damaged; [`Error::Io`]. Other slices may be sound.
    pub(crate) fn slice(&mut self, slice: u8) -> Result<&[(u64, u16)]> {
        let (base, part) = match &self.source {
            Source::Single => {
                let first = u64::from(slice) << 32;
                let start = self.entries.partition_point(|(hash, _)| *hash < first);
                let end = self.entries.partition_point(|(hash, _)| *hash < first + (1 << 32));
                return Ok(self.entries.get(start..end).unwrap_or_default());
            }
            Source::Partitioned(base, parts) => (*base, parts.get(usize::from(slice)).copied()),
        };
        let reader = &self.reader;
        let wrong = |at, what| Error::corruption(&reader.inner.path, at, what);
        let part = part.ok_or_else(|| wrong(base, "a partition is missing"))?;
        let offset = base + part.offset;
        self.entries.clear();
        self.bytes.clear();
        reader.read_onto(offset, u64::from(part.len), &mut self.bytes)?;
        if checksum(reader.inner.meta.salt, offset, &self.bytes) != part.checksum {
            return Err(wrong(offset, "a partition's checksum does not match"));
        }
        let entries = &mut self.entries;
        let sink = |hash, page| entries.push((hash, page));
        read_entries(&self.bytes, Scope::Slice(slice), reader.data_pages(), sink)
            .map_err(|malformed| reader.malformed(malformed, offset))?;
        Ok(&self.entries)
    }
}
