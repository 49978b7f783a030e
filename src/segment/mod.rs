//! Segments: immutable sorted files of keys and values (FORMAT.md section 3).
//!
//! ```text
//! 0            data block 0, data block 1, …     each a multiple of 4096 bytes
//! meta_offset  block index, bloom filter, hash run, compression tag, last key, properties
//!              section table
//! end - 96     footer
//! ```
//!
//! [`SegmentWriter`] takes entries in order and writes the file once; [`SegmentReader`] looks up
//! and scans. Both work alone on one file, with no database around. Entries are versions of keys:
//! key rising, then sequence number falling; a standalone segment has one version a key, without a
//! number.
//!
//! A database may keep long values in files of another kind, value segments, to which entries then refer:
//! `values` writes and reads these. Standalone segments have none.
//!
//! Invariants: every byte is covered by a checksum that binds it to the file and its place; bytes
//! from a file are checked when they are loaded, and any bytes at all give a value or a typed
//! error; a damaged data block costs only its own keys. Opening reads footer, section table and
//! properties; index, filter and hash run load on first use.
//!
//! Called by flush, compaction, the version room and the database; standalone by users. A reader
//! is `Send + Sync` and cheap to clone; a writer, a cursor and an iterator belong to one thread at a
//! time and are `Send`.

mod ahead;
#[cfg(test)]
mod ahead_tests;
mod block;
mod bloom;
mod cursor;
mod cutter;
#[cfg(test)]
mod damage_tests;
mod format;
mod frames;
#[doc(hidden)]
pub mod fuzzing;
mod hash_run;
mod hash_run_build;
#[cfg(test)]
mod hash_run_tests;
mod hash_slices;
mod index;
mod inspect;
mod metadata;
mod peek;
#[cfg(test)]
mod peek_tests;
mod point;
mod properties;
mod range;
mod reader;
mod salvage;
#[cfg(test)]
mod salvage_tests;
mod scan;
mod slots;
mod step;
#[cfg(test)]
mod stride_tests;
#[cfg(test)]
mod tests;
mod values;
mod verify;
mod verify_hash_run;
mod writer;

pub(crate) use block::Block;
pub(crate) use cursor::{CursorOptions, SegmentCursor};
pub(crate) use format::MAX_BLOCK_PAGES;
pub(crate) use frames::Frames;
pub(crate) use hash_slices::HashSlices;
pub use inspect::{BlockInfo, Blocks, SectionInfo};
pub use metadata::SegmentMetadata;
pub(crate) use point::PointIndex;
pub use properties::{Properties, ValueUse};
pub use range::SegmentRange;
pub use reader::SegmentReader;
pub(crate) use salvage::{Salvage, SalvageCursor, Told};
pub(crate) use scan::SegmentScan;
pub(crate) use values::{Reference, ValueIdentity, ValueReader, ValueReport, ValueWriter};
pub use verify::{Damage, VerifyReport};
pub use writer::SegmentWriter;

use crate::compression::Compression;
use crate::error::Result;
use crate::slab::Slabs;
use crate::types::{KeyspaceId, Kind, SeqNo};
use crate::vfs::VfsFile;
use bytes::Bytes;
use std::sync::Arc;

/// How a segment is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentOptions {
    /// The codec of data blocks. Default: LZ4 if this build has it.
    pub compression: Compression,
    /// Bits of bloom filter for each key, at most 64; 0 for no filter. 10 (the default) lets about
    /// one absent key in a hundred through.
    pub bloom_bits_per_key: u8,
    /// Bytes of key prefix, 0 (the default), 2, 4 or 8, kept beside each entry so that a search in
    /// a block touches fewer cache lines.
    pub prefix_width: u8,
    /// Whether to write a hash run (the default): 5 to 6 bytes a key that lead from a key straight
    /// to its block, which is faster than bloom filter and block index, and lets through fewer than
    /// one absent key in a hundred thousand.
    pub hash_run: bool,
    /// The keyspace that it belongs to; `None` (the default) for a standalone segment.
    pub keyspace: Option<KeyspaceId>,
    /// The seed of key hashes; `None` (the default) for a random one.
    pub hash_seed: Option<u64>,
    /// What [`Properties::deletes_applied`] is to say. Default zero.
    pub deletes_applied: SeqNo,
    /// What [`Properties::numbered_from`] is to say. Default zero.
    pub numbered_from: SeqNo,
}

impl Default for SegmentOptions {
    fn default() -> Self {
        SegmentOptions {
            compression: Compression::default(),
            bloom_bits_per_key: 10,
            prefix_width: 0,
            hash_run: true,
            keyspace: None,
            hash_seed: None,
            deletes_applied: SeqNo::ZERO,
            numbered_from: SeqNo::ZERO,
        }
    }
}

/// What became of a written segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its random identity.
    pub uuid: [u8; 16],
    /// The length of the file in bytes.
    pub file_len: u64,
    /// The checksum in its footer, which stands for all of its content.
    pub footer_checksum: u64,
    /// The length of its data blocks, padding included, in bytes.
    pub data_bytes: u64,
    /// The last key.
    pub last_key: Vec<u8>,
    /// What it says of itself.
    pub properties: Properties,
}

impl SegmentInfo {
    /// The share of the data blocks that is padding, 0 to 1.
    #[must_use]
    pub fn padding_ratio(&self) -> f64 {
        padding_ratio(self.data_bytes, self.properties.stored_bytes)
    }
}

fn padding_ratio(data_bytes: u64, stored_bytes: u64) -> f64 {
    if data_bytes == 0 {
        return 0.0;
    }
    data_bytes.saturating_sub(stored_bytes) as f64 / data_bytes as f64
}

/// An entry found by a point lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) seqno: SeqNo,
    pub(crate) kind: Kind,
    /// Empty for a tombstone.
    pub(crate) value: Bytes,
}

/// Where a reader gets its open file from: a database pools them.
pub(crate) trait FileSource: Send + Sync {
    /// The open file; always the same one.
    fn file(&self) -> Result<Arc<dyn VfsFile>>;

    /// Reads from it. Cheaper than [`file`](Self::file) where many threads do.
    fn with(&self, read: &mut dyn FnMut(&dyn VfsFile) -> Result<()>) -> Result<()> {
        read(self.file()?.as_ref())
    }
}

/// A piece of a segment, checked and decoded, as a cache holds it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    /// The section *block index*, as far as its layout goes.
    IndexRoot(Arc<index::IndexRoot>),
    /// A partition of the block index.
    Index(Arc<index::IndexPartition>),
    /// The section *bloom filter*, as far as its layout goes.
    BloomRoot(Arc<bloom::FilterRoot>),
    /// A partition of the bloom filter.
    Bloom(Arc<bloom::Filter>),
    /// The section *hash run*, as far as its layout goes.
    HashRoot(Arc<hash_run::HashRoot>),
    /// A partition of the hash run; `None` if it is damaged.
    HashRun(Arc<Option<hash_run::HashPartition>>),
}

impl Part {
    /// What it occupies in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Part::IndexRoot(root) => match root.as_ref() {
                index::IndexRoot::Single(index) => index.bytes(),
                index::IndexRoot::Partitioned(top) => top.bytes(),
            },
            Part::Index(index) => index.bytes(),
            Part::BloomRoot(root) => root.bytes(),
            Part::Bloom(filter) => filter.bytes(),
            Part::HashRoot(root) => root.bytes(),
            Part::HashRun(run) => {
                size_of::<Option<hash_run::HashPartition>>()
                    + run.as_ref().as_ref().map_or(0, hash_run::HashPartition::bytes)
            }
        }
    }
}

/// A cache of blocks and parts, shared by all readers. `file` is a number that is never reused,
/// `offset` that of the part in the file. Blocks stand in a table of each reader ([`Frames`]), of which
/// the cache keeps the books.
pub(crate) trait BlockCache: Send + Sync {
    /// Where the memory of blocks comes from; `None`: from the heap.
    fn slabs(&self) -> Option<&Arc<Slabs>> {
        None
    }
    /// The part, if it is there.
    fn get(&self, file: u64, offset: u64) -> Option<Part>;
    /// Offers a part; the cache may decline it.
    fn insert(&self, file: u64, offset: u64, part: Part);
    /// Hears that a block is about to be put into a table, and what it takes in bytes.
    fn charge(&self, bytes: u64);
    /// Hears that a block that was charged is in its table; may [evict](Frames::evict) any.
    fn admit(&self, frames: &Arc<Frames>, page: u64);
    /// Hears that a block is gone that took so many bytes.
    fn release(&self, bytes: u64);
    /// Hears that tables take so many bytes more.
    fn grow(&self, bytes: u64);
    /// Hears that tables take so many bytes less.
    fn shrink(&self, bytes: u64);
    /// Whether so many bytes more fit without pushing anything out.
    fn has_room(&self, bytes: u64) -> bool;
    /// Whether tables take so much that empty parts of them should go.
    fn is_crowded(&self) -> bool;
    /// Hears how many blocks that were looked up were there, and how many were not.
    fn count(&self, hits: u64, misses: u64);
    /// While it is full, the number of an era; else `None`. A block that is met for the second time
    /// in one era is worth keeping. Eras are as long as it takes to replace a small part of the blocks.
    fn era(&self) -> Option<u32>;
}
