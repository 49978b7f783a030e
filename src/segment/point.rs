//! Point lookups: from a key to its version, by page, by hash run, or by bloom filter and index.
//!
//! A hash run gives the pages where a key with this hash may start, so that a lookup neither asks
//! the filter nor searches the index, and an absent key costs no block. Without a hash run that can
//! be used, filter and index answer: the data blocks are the truth, and the rest only leads there.
//! Called by the reader's `get` and by the database, which also looks up by pages it remembers.
//! Every function takes `&self` and may run on several threads.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::block::Lookup;
use super::bloom::{Filter, FilterRoot, partition_of};
use super::format::{
    MAX_BLOCK_PAGES, MAX_RAW, SECTION_BLOOM, SECTION_BLOOM_PARTITIONS, SECTION_HASH_RUN,
    SECTION_HASH_RUN_PARTITIONS, Section,
};
use super::hash_run::{HashPartition, HashRoot, Scope, h40, slice_of};
use super::reader::SegmentReader;
use super::{Block, Found, Part};
use crate::coding::u32_at;
use crate::error::{Error, Result};
use crate::types::{PAGE, SeqNo};
use bytes::Bytes;
use std::sync::Arc;

/// How a reader finds the block of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PointIndex {
    /// By the hash run; where there is none that can be used, as below.
    #[default]
    HashRun,
    /// By bloom filter and block index.
    Filter,
}

/// The outcome of a lookup in the block that begins at a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PageLookup {
    /// The newest version at or before the snapshot.
    pub(crate) found: Option<Found>,
    /// The newest version of the key, visible or not, is in the block. If not, the block was looked
    /// at in vain: it is not the one where the key starts.
    pub(crate) key_there: bool,
    /// Blocks looked at: the first, and those with older versions.
    pub(crate) blocks: u32,
    /// How many of them came from the cache.
    pub(crate) cached: u32,
}

impl SegmentReader {
    /// The newest version of a key at or before a snapshot, tombstones included. `hash` is the
    /// key's under the seed of this segment.
    pub(crate) fn get_at(&self, key: &[u8], hash: u64, snapshot: SeqNo) -> Result<Option<Found>> {
        if self.inner.points == PointIndex::HashRun
            && let Some(source) = self.hash_partition(hash)
            && let Some(run) = source.run()
        {
            let looked = self.get_by_run(run, key, hash, snapshot)?;
            // In vain: another key has the same 40 bits, or the run is wrong. That is so rare that
            // asking elsewhere costs nothing.
            if looked.key_there || looked.blocks == 0 {
                return Ok(looked.found);
            }
        }
        self.get_by_filter(key, hash, snapshot)
    }

    /// The same, by a partition of the hash run: the lookup in the block where the key starts, or
    /// in the last of those where it might have.
    fn get_by_run(
        &self,
        run: &HashPartition,
        key: &[u8],
        hash: u64,
        snapshot: SeqNo,
    ) -> Result<PageLookup> {
        let mut looked = PageLookup::default();
        let mut before = None;
        for i in run.probe(h40(hash)) {
            let page = run.page(i);
            if before.replace(page) == Some(page) {
                continue;
            }
            looked = self.get_at_page(u32::from(page), key, hash, snapshot)?;
            if looked.key_there {
                break;
            }
        }
        Ok(looked)
    }

    /// The same, by bloom filter and block index.
    pub(super) fn get_by_filter(
        &self,
        key: &[u8],
        hash: u64,
        snapshot: SeqNo,
    ) -> Result<Option<Found>> {
        if !self.may_contain(hash)? {
            return Ok(None);
        }
        let mut next = self.find(key, false)?;
        while let Some(position) = next {
            let Some(handle) = position.handle() else { break };
            let block = self.load_block(&handle, true)?;
            match block.lookup(key, hash, snapshot) {
                Lookup::Found(entry) => return Ok(Some(Found::new(&block, &entry))),
                Lookup::Absent | Lookup::Hidden => break,
                Lookup::GoOn => next = self.following(position)?,
            }
        }
        Ok(None)
    }

    /// Looks a key up in the block that begins at `page` (a page number of the file), without the
    /// block index, and goes on to the blocks behind as long as they may hold older versions of it.
    /// The answer counts only if the key's newest version is in that block (`key_there`): a block
    /// in which older versions go on says nothing of the key.
    ///
    /// # Errors
    /// [`Error::Corruption`] also if no block begins there; else as for any block.
    pub(crate) fn get_at_page(
        &self,
        page: u32,
        key: &[u8],
        hash: u64,
        snapshot: SeqNo,
    ) -> Result<PageLookup> {
        let mut looked = PageLookup::default();
        let mut next = u64::from(page);
        loop {
            let is_first = looked.blocks == 0;
            let look = |block: &Block| {
                if is_first && block.goes_on_with(key, hash) {
                    return (None, false, 0);
                }
                match block.lookup(key, hash, snapshot) {
                    Lookup::Found(entry) => (Some(Found::new(block, &entry)), true, 0),
                    Lookup::Absent => (None, false, 0),
                    Lookup::Hidden => (None, true, 0),
                    Lookup::GoOn => (None, true, block.pages()),
                }
            };
            let ((found, key_there, go_on), cached) = self.look_at_page(next, look)?;
            looked.blocks += 1;
            looked.cached += u32::from(cached);
            looked.key_there |= is_first && key_there;
            looked.found = found;
            next += u64::from(go_on);
            if go_on == 0 || next >= self.data_pages() {
                return Ok(looked);
            }
        }
    }

    /// Looks at the block that begins at a page, and says whether it came from the cache, which
    /// keeps it from now on.
    fn look_at_page<T>(&self, page: u64, look: impl Fn(&Block) -> T) -> Result<(T, bool)> {
        if let Some(frames) = &self.inner.frames
            && let Some(seen) = frames.with(page, |block| look(block))
        {
            return Ok((seen, true));
        }
        let bytes = self.read_block_at(page)?;
        let offset = page * PAGE as u64;
        let (block, _) = Block::decode(&bytes, self.inner.meta.salt, offset)
            .map_err(|malformed| self.malformed(malformed, offset))?;
        let block = Arc::new(block);
        self.keep_block(page, &block);
        Ok((look(&block), false))
    }

    /// Reads the bytes of the block that begins at a page, as many as it says: at most up to the
    /// end of the data blocks. Its checksum is for the caller.
    fn read_block_at(&self, page: u64) -> Result<Bytes> {
        let offset = page * PAGE as u64;
        let wrong = |what| Error::corruption(&self.inner.path, offset, what);
        let left = self.data_pages().saturating_sub(page);
        if left == 0 {
            return Err(wrong("it lies behind the data blocks"));
        }
        let page_len = PAGE as u64;
        let mut bytes = self.read(offset, page_len)?;
        let pages = u32_at(&bytes, 8).map_or(0, u64::from);
        if pages == 0 || pages > left {
            return Err(wrong("the block's length does not fit the data blocks"));
        }
        if pages > 1 {
            self.read_onto(offset + page_len, (pages - 1) * page_len, &mut bytes)?;
        }
        Ok(Bytes::from(bytes))
    }

    /// Offers a block to the cache, if there is one; blocks of more than 64 KiB, stored or raw, stay
    /// out. A huge value may have shrunk to few pages: it counts by what it takes in memory.
    pub(super) fn keep_block(&self, page: u64, block: &Arc<Block>) {
        if let Some(frames) = &self.inner.frames
            && block.pages() as usize <= MAX_BLOCK_PAGES
            && block.payload_len() <= MAX_RAW
        {
            frames.insert(page, block);
        }
    }

    pub(super) fn data_pages(&self) -> u64 {
        self.data_bytes() / PAGE as u64
    }

    /// The part of the hash run that has the entries of keys with this hash; `None` if it cannot be
    /// used. A damaged or newer one is remembered as such; one that could not be read is not.
    fn hash_partition(&self, hash: u64) -> Option<HashSource> {
        let section = self.inner.meta.section(SECTION_HASH_RUN)?;
        let root = match self.part(section.offset, || self.load_hash_root(section)) {
            Ok(Part::HashRoot(root)) => root,
            Ok(_) => return None,
            Err(error) => return Self::hash_run_failed(&error),
        };
        let part = match root.as_ref() {
            HashRoot::Single(_) => return Some(HashSource::Root(root)),
            HashRoot::Unusable => return None,
            HashRoot::Partitioned(parts) => *parts.get(usize::from(slice_of(h40(hash))))?,
        };
        let base = self.inner.meta.section(SECTION_HASH_RUN_PARTITIONS)?.offset;
        let offset = base + part.offset;
        let load = || {
            let scope = Scope::Slice(slice_of(h40(hash)));
            let run = self.read_checked(offset, u64::from(part.len), part.checksum);
            let run = run.and_then(|bytes| {
                HashPartition::decode(bytes, scope, self.data_pages())
                    .map_err(|malformed| self.malformed(malformed, offset))
            });
            Ok(Part::HashRun(Arc::new(Self::or_no_run(run.map(Some), None)?)))
        };
        match self.part(offset, load) {
            Ok(Part::HashRun(run)) => run.is_some().then_some(HashSource::Partition(run)),
            Ok(_) => None,
            Err(error) => Self::hash_run_failed(&error),
        }
    }

    fn hash_run_failed(error: &Error) -> Option<HashSource> {
        tracing::warn!(%error, "a hash run cannot be read; filter and index are used");
        None
    }

    fn load_hash_root(&self, section: &Section) -> Result<Part> {
        let partitions = self.inner.meta.section(SECTION_HASH_RUN_PARTITIONS).map_or(0, |s| s.len);
        let root = self.read_section(section).and_then(|bytes| {
            HashRoot::decode(&bytes, partitions, self.data_pages())
                .map_err(|malformed| self.malformed(malformed, section.offset))
        });
        Ok(Part::HashRoot(Arc::new(Self::or_no_run(root, HashRoot::Unusable)?)))
    }

    fn or_no_run<T>(loaded: Result<T>, unusable: T) -> Result<T> {
        match loaded {
            Err(error @ (Error::Corruption { .. } | Error::UnsupportedFormat { .. })) => {
                tracing::warn!(%error, "a hash run is damaged or newer and not used");
                Ok(unusable)
            }
            other => other,
        }
    }

    /// Whether the bloom filter lets a key with this hash through. A damaged filter lets all
    /// through: the data blocks have the answer, and `verify` reports the filter.
    pub(super) fn may_contain(&self, hash: u64) -> Result<bool> {
        let Some(section) = self.inner.meta.section(SECTION_BLOOM) else { return Ok(true) };
        let part = self.part(section.offset, || self.load_filter_root(section))?;
        let Part::BloomRoot(root) = part else { return Ok(true) };
        let parts = match root.as_ref() {
            FilterRoot::Single(filter) => return Ok(filter.may_contain(hash)),
            FilterRoot::Partitioned(parts) => parts,
        };
        let Some(part) = parts.get(partition_of(hash, parts.len())) else { return Ok(true) };
        let base = self.section(SECTION_BLOOM_PARTITIONS)?.offset;
        let offset = base + part.offset;
        let loaded = self.part(offset, || {
            let filter = self
                .read_checked(offset, u64::from(part.len), part.checksum)
                .and_then(|bytes| Filter::decode(&bytes).map_err(|m| self.malformed(m, offset)));
            Ok(Part::Bloom(Arc::new(Self::or_unusable(filter, Filter::Unusable)?)))
        })?;
        Ok(if let Part::Bloom(filter) = loaded { filter.may_contain(hash) } else { true })
    }

    fn load_filter_root(&self, section: &Section) -> Result<Part> {
        let partitions = self.inner.meta.section(SECTION_BLOOM_PARTITIONS).map_or(0, |s| s.len);
        let root = self.read_section(section).and_then(|bytes| {
            FilterRoot::decode(&bytes, partitions).map_err(|m| self.malformed(m, section.offset))
        });
        let root = Self::or_unusable(root, FilterRoot::Single(Filter::Unusable))?;
        Ok(Part::BloomRoot(Arc::new(root)))
    }

    fn or_unusable<T>(loaded: Result<T>, unusable: T) -> Result<T> {
        match loaded {
            Err(error @ Error::Corruption { .. }) => {
                tracing::warn!(%error, "a bloom filter is damaged and not used");
                Ok(unusable)
            }
            other => other,
        }
    }
}

/// Where the entries of a hash are, kept alive while they are looked at.
enum HashSource {
    Root(Arc<HashRoot>),
    Partition(Arc<Option<HashPartition>>),
}

impl HashSource {
    fn run(&self) -> Option<&HashPartition> {
        match self {
            HashSource::Root(root) => match root.as_ref() {
                HashRoot::Single(run) => Some(run),
                _ => None,
            },
            HashSource::Partition(run) => run.as_ref().as_ref(),
        }
    }
}
