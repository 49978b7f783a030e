//! Point lookups: from a key to its version, by page, by hash run, or by bloom filter and index.
//!
//! A hash run gives the pages where a key with this hash may start, so that a lookup neither asks
//! the filter nor searches the index, and an absent key costs no block. Without a hash run that can
//! be used, filter and index answer: the data blocks are the truth, and the rest only leads there.
//! Called by the reader's `get` and by the database, which also looks up by pages it remembers.
//! Every function takes `&self` and may run on several threads.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::block::{Lookup, Stored};
use super::bloom::{Filter, FilterRoot, partition_of};
use super::format::{
    MAX_BLOCK_PAGES, MAX_RAW, SECTION_BLOOM, SECTION_BLOOM_PARTITIONS, SECTION_HASH_RUN,
    SECTION_HASH_RUN_PARTITIONS, Section,
};
use super::hash_run::{HashPartition, HashRoot, Scope, h40, slice_of};
use super::peek::{Buffers, Peek};
use super::reader::SegmentReader;
use super::{Block, Found, Part};
use crate::coding::u32_at;
use crate::error::{Error, Malformed, Result};
use crate::slab::Space;
use crate::slice::Lent;
use crate::types::{Kind, PAGE, SeqNo};
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageLookup<T = Found> {
    /// What was made of the newest version at or before the snapshot.
    pub(crate) found: Option<T>,
    /// The newest version of the key, visible or not, is in the block. If not, the block was looked
    /// at in vain: it is not the one where the key starts.
    pub(crate) key_there: bool,
    /// Blocks looked at: the first, and those with older versions.
    pub(crate) blocks: u32,
    /// How many of them came from the cache.
    pub(crate) cached: u32,
}

impl<T> Default for PageLookup<T> {
    fn default() -> Self {
        PageLookup { found: None, key_there: false, blocks: 0, cached: 0 }
    }
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
            if let Some(frames) = &self.inner.frames {
                let (blocks, hits) = (u64::from(looked.blocks), u64::from(looked.cached));
                frames.count(hits, blocks - hits);
            }
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
            let looked = block.peek().lookup(key, hash, snapshot);
            match looked.map_err(|malformed| self.malformed(malformed, handle.offset()))? {
                Lookup::Found(entry) => {
                    let value = block.share(&entry.value);
                    return Ok(Some(Found { seqno: entry.seqno, kind: entry.kind, value }));
                }
                Lookup::Absent | Lookup::Hidden => break,
                Lookup::GoOn => next = self.following(position)?,
            }
        }
        Ok(None)
    }

    /// The same as [`look_up_at`](Self::look_up_at), and takes what is found along.
    pub(crate) fn get_at_page(
        &self,
        page: u32,
        key: &[u8],
        hash: u64,
        snapshot: SeqNo,
    ) -> Result<PageLookup> {
        let mut take =
            |seqno, kind, value: Lent<'_>| Found { seqno, kind, value: value.to_bytes() };
        self.look_up_at(page, key, hash, snapshot, &mut take)
    }

    /// Looks a key up in the block that begins at `page` (a page number of the file), without the
    /// block index, and goes on to the blocks behind as long as they may hold older versions of it.
    /// The answer counts only if the key's newest version is in that block (`key_there`): a block
    /// in which older versions go on says nothing of the key. `take` gets what is found, at most
    /// once, where it lies. Whoever calls counts the cache's hits.
    ///
    /// # Errors
    /// [`Error::Corruption`] also if no block begins there; else as for any block.
    pub(crate) fn look_up_at<T>(
        &self,
        page: u32,
        key: &[u8],
        hash: u64,
        snapshot: SeqNo,
        take: &mut impl FnMut(SeqNo, Kind, Lent<'_>) -> T,
    ) -> Result<PageLookup<T>> {
        let mut looked = PageLookup::default();
        let mut next = u64::from(page);
        loop {
            let is_first = looked.blocks == 0;
            let mut found = None;
            let mut look = |block: Peek<'_>, owner: Option<&Bytes>| {
                if is_first && block.goes_on_with(key, hash)? {
                    return Ok((false, 0));
                }
                Ok(match block.lookup(key, hash, snapshot)? {
                    Lookup::Found(entry) => {
                        let value = block.value(&entry);
                        let lent = match owner {
                            Some(owner) => Lent::within(value, owner),
                            None => Lent::passing(value),
                        };
                        found = Some(take(entry.seqno, entry.kind, lent));
                        (true, 0)
                    }
                    Lookup::Absent => (false, 0),
                    Lookup::Hidden => (true, 0),
                    Lookup::GoOn => (true, block.pages),
                })
            };
            let ((key_there, go_on), cached) = self.look_at_page(next, &mut look)?;
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

    /// Looks at the block that begins at a page, and says whether it came from the cache. If not,
    /// the cache keeps it from now on, or it passes through a buffer.
    #[inline]
    fn look_at_page<T>(&self, page: u64, look: &mut impl Look<T>) -> Result<(T, bool)> {
        let mut cached = true;
        let held = self.inner.frames.as_ref().and_then(|frames| {
            frames.with(page, |block| look(block.peek(), Some(block.payload()))) //
        });
        let looked = match held {
            Some(looked) => {
                looked.map_err(|malformed| self.malformed(malformed, page * PAGE as u64))
            }
            None => {
                cached = false;
                if self.wants_block(page) {
                    let bytes = self.read_block_at(page)?;
                    self.look_and_keep(page, bytes, look)
                } else {
                    let mut buffers = Buffers::take();
                    let looked = self.look_in_passing(page, &mut buffers, look);
                    buffers.give_back();
                    looked
                }
            }
        };
        Ok((looked?, cached))
    }

    /// Checks all of a block, keeps it and looks at it.
    fn look_and_keep<T>(&self, page: u64, bytes: Space, look: &mut impl Look<T>) -> Result<T> {
        let offset = page * PAGE as u64;
        let malformed = |malformed| self.malformed(malformed, offset);
        let block = Arc::new(self.decode_at(offset, bytes)?);
        self.keep_block(page, &block);
        look(block.peek(), Some(block.payload())).map_err(malformed)
    }

    fn decode_at(&self, offset: u64, bytes: Space) -> Result<Block> {
        let (bytes, salt) = (Stored::Own(bytes), self.inner.meta.salt);
        let decoded = Block::decode_from(bytes, self.slabs(), salt, offset);
        let block = decoded.map_err(|malformed| self.malformed(malformed, offset))?.0;
        Ok(block.numbered(self.inner.unnumbered))
    }

    /// Reads a block to a buffer and looks at it; a long one to memory of its own, which may be shared.
    fn look_in_passing<T>(
        &self,
        page: u64,
        buffers: &mut Buffers,
        look: &mut impl Look<T>,
    ) -> Result<T> {
        let offset = page * PAGE as u64;
        let malformed = |malformed| self.malformed(malformed, offset);
        let left = self.pages_left(page)?;
        let head = buffers.room(PAGE);
        self.read_into(offset, head)?;
        let pages = self.pages_of(head, page, left)?;
        if pages > MAX_BLOCK_PAGES {
            let bytes = self.read_block_at(page)?;
            let block = self.decode_at(offset, bytes)?;
            return look(block.peek(), Some(block.payload())).map_err(malformed);
        }
        let len = pages * PAGE;
        if pages > 1 {
            let rest = buffers.room(len).get_mut(PAGE..).unwrap_or_default();
            self.read_into(offset + PAGE as u64, rest)?;
        }
        let (bytes, raw) = buffers.parts(len);
        let block = Peek::open(bytes, self.inner.meta.salt, offset, raw).map_err(malformed)?;
        let block = Peek { unnumbered: self.inner.unnumbered, ..block };
        look(block, None).map_err(malformed)
    }

    /// How many pages there are from this one on, which must be one of the data blocks'.
    fn pages_left(&self, page: u64) -> Result<u64> {
        match self.data_pages().saturating_sub(page) {
            0 => {
                let offset = page * PAGE as u64;
                Err(Error::corruption(&self.inner.path, offset, "it lies behind the data blocks"))
            }
            left => Ok(left),
        }
    }

    /// How many pages the block takes that begins with these bytes, at most `left`.
    fn pages_of(&self, head: &[u8], page: u64, left: u64) -> Result<usize> {
        let pages = u32_at(head, 8).unwrap_or_default();
        if pages == 0 || u64::from(pages) > left {
            let what = "the block's length does not fit the data blocks";
            return Err(Error::corruption(&self.inner.path, page * PAGE as u64, what));
        }
        Ok(pages as usize)
    }

    /// Reads the bytes of the block that begins at a page, as many as it says: at most up to the
    /// end of the data blocks. Its checksum is for the caller.
    fn read_block_at(&self, page: u64) -> Result<Space> {
        let (offset, page_len) = (page * PAGE as u64, PAGE as u64);
        let left = self.pages_left(page)?;
        let head = self.read_space(offset, page_len)?;
        let pages = self.pages_of(head.bytes(), page, left)?;
        if pages == 1 {
            return Ok(head);
        }
        let all = pages.checked_mul(PAGE).and_then(|len| Space::of_slabs(self.slabs(), len));
        let Some(mut all) = all else {
            let mut all = head.bytes().to_vec();
            self.read_onto(offset + page_len, (pages as u64 - 1) * page_len, &mut all)?;
            return Ok(Space::Heap(all));
        };
        if let Some((first, rest)) = all.bytes_mut().split_at_mut_checked(PAGE) {
            first.copy_from_slice(head.bytes());
            self.read_into(offset + page_len, rest)?;
        }
        Ok(all)
    }

    /// Whether the cache, if there is one, should keep this block, which it does not hold.
    pub(super) fn wants_block(&self, page: u64) -> bool {
        self.inner.frames.as_ref().is_some_and(|frames| frames.wants(page))
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

/// What is done with the block of a lookup; the shared memory that it lies in, if it does.
trait Look<T>: FnMut(Peek<'_>, Option<&Bytes>) -> std::result::Result<T, Malformed> {}

impl<T, F: FnMut(Peek<'_>, Option<&Bytes>) -> std::result::Result<T, Malformed>> Look<T> for F {}

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
