//! Reads a segment: opening, the block index, and the loading of blocks and parts for everyone else.
//! Point lookups are in `point`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::block::Stored;
use super::cursor::{CursorOptions, SegmentCursor};
use super::format::{
    MAX_BLOCK_PAGES, SECTION_INDEX, SECTION_INDEX_PARTITIONS, SECTION_LAST_KEY, Section,
};
use super::index::{Handle, IndexPartition, IndexRoot};
use super::metadata::{SegmentMetadata, check_section, read_at, read_into, read_onto, read_over};
use super::point::PointIndex;
use super::slots::IndexSlots;
use super::{Block, BlockCache, FileSource, Frames, Part, Properties, padding_ratio};
use crate::checksum::checksum;
use crate::cursor::Bounds;
use crate::error::{Error, Malformed, Result};
use crate::hash::key_hash;
use crate::slab::{Slabs, Space};
use crate::slice::{Key, Value};
use crate::types::{Kind, PAGE, SeqNo, split_expiry};
use crate::vfs::{Env, OpenMode, VfsFile};
use bytes::Bytes;
use std::cmp::Ordering;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Reads one segment file. `Send + Sync`; a clone shares everything and costs nothing.
#[derive(Clone)]
pub struct SegmentReader {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    source: Arc<dyn FileSource>,
    pub(super) path: PathBuf,
    pub(super) meta: Arc<SegmentMetadata>,
    pub(super) cache: Option<(Arc<dyn BlockCache>, u64)>,
    /// The cached data blocks, if there is a cache.
    pub(super) frames: Option<Arc<Frames>>,
    index: IndexSlots,
    pub(super) points: PointIndex,
    /// The number of the entries that carry none.
    pub(super) unnumbered: SeqNo,
}

impl std::fmt::Debug for SegmentReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentReader")
            .field("path", &self.inner.path)
            .field("metadata", &self.inner.meta)
            .finish_non_exhaustive()
    }
}

/// The file of a reader that stands alone.
struct Owned(Arc<dyn VfsFile>);

impl FileSource for Owned {
    fn file(&self) -> Result<Arc<dyn VfsFile>> {
        Ok(Arc::clone(&self.0))
    }
}

/// Where a block is in the index: which partition (0 of a single one), which block of it.
#[derive(Clone, Debug)]
pub(super) struct Position {
    pub(super) index: Arc<IndexPartition>,
    pub(super) part_number: usize,
    pub(super) block: usize,
}

impl Position {
    /// The separator of its block.
    pub(super) fn separator(&self) -> Vec<u8> {
        self.index.separator(self.block)
    }

    pub(super) fn handle(&self) -> Option<Handle> {
        self.index.block(self.block)
    }

    /// Whether all blocks behind this one, which ends with the key `last`, lie beyond the bounds.
    pub(super) fn ends(&self, bounds: &Bounds, last: &[u8]) -> bool {
        match &bounds.upper {
            Bound::Included(key) => match self.index.cmp_separator(self.block, key) {
                Ordering::Less => false,
                // Its versions may go on in the next block; then that begins with the separator.
                Ordering::Equal => last != &key[..],
                Ordering::Greater => true,
            },
            Bound::Excluded(key) => self.index.cmp_separator(self.block, key) != Ordering::Less,
            Bound::Unbounded => false,
        }
    }

    /// Whether this block and all in front of it lie before the bounds.
    pub(super) fn begins(&self, bounds: &Bounds) -> bool {
        match &bounds.lower {
            Bound::Included(key) => self.index.cmp_separator(self.block, key) == Ordering::Less,
            Bound::Excluded(key) => self.index.cmp_separator(self.block, key) != Ordering::Greater,
            Bound::Unbounded => false,
        }
    }
}

impl SegmentReader {
    /// Opens a segment on the operating system's file system. Reads the end of the file: footer,
    /// section table, properties; usually one read of 4 KiB.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Corruption`] if it is no segment, or its end is damaged;
    /// [`Error::UnsupportedFormat`].
    pub fn open(path: impl AsRef<Path>) -> Result<SegmentReader> {
        SegmentReader::open_in(&Env::default(), path)
    }

    /// The same in another environment.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(env: &Env, path: impl AsRef<Path>) -> Result<SegmentReader> {
        let path = path.as_ref();
        let source = open_file(env, path)?;
        SegmentReader::open_with(source, path.to_path_buf(), None, PointIndex::HashRun)
    }

    /// Opens a segment whose metadata was kept. Reads the footer only.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Error::Corruption`] if the file is another segment.
    pub fn with_metadata(
        path: impl AsRef<Path>,
        metadata: Arc<SegmentMetadata>,
    ) -> Result<SegmentReader> {
        SegmentReader::with_metadata_in(&Env::default(), path, metadata)
    }

    /// The same in another environment.
    ///
    /// # Errors
    /// As [`with_metadata`](Self::with_metadata).
    pub fn with_metadata_in(
        env: &Env,
        path: impl AsRef<Path>,
        metadata: Arc<SegmentMetadata>,
    ) -> Result<SegmentReader> {
        let path = path.as_ref();
        let source = open_file(env, path)?;
        metadata.check_same(source.file()?.as_ref(), path)?;
        let inner = Inner {
            source,
            path: path.to_path_buf(),
            meta: metadata,
            cache: None,
            frames: None,
            index: IndexSlots::default(),
            points: PointIndex::HashRun,
            unnumbered: SeqNo::ZERO,
        };
        Ok(SegmentReader { inner: Arc::new(inner) })
    }

    /// Opens a segment of a database. With a cache, parts are kept there under the given number;
    /// without, index, filter and hash run stay in the metadata and data blocks are not kept.
    /// `points` says how a key's block is found.
    pub(crate) fn open_with(
        source: Arc<dyn FileSource>,
        path: PathBuf,
        cache: Option<(Arc<dyn BlockCache>, u64)>,
        points: PointIndex,
    ) -> Result<SegmentReader> {
        let meta = Arc::new(SegmentMetadata::read(source.file()?.as_ref(), &path)?);
        let pages = meta.footer.meta_offset / PAGE as u64;
        let frames = cache.as_ref().map(|(cache, _)| Frames::new(Arc::clone(cache), pages));
        let (index, unnumbered) = (IndexSlots::default(), SeqNo::ZERO);
        let inner = Inner { source, path, meta, cache, frames, index, points, unnumbered };
        Ok(SegmentReader { inner: Arc::new(inner) })
    }

    /// The same for a segment of a database whose entries have this number if they carry none. To be
    /// called before anything else is.
    pub(crate) fn numbered(mut self, unnumbered: SeqNo) -> SegmentReader {
        match Arc::get_mut(&mut self.inner) {
            Some(inner) => inner.unnumbered = unnumbered,
            None => debug_assert!(false, "it is in use already"),
        }
        self
    }

    /// A reader with metadata that was put together from what can be read of a damaged file.
    pub(super) fn salvaging(
        source: Arc<dyn FileSource>,
        path: PathBuf,
        meta: SegmentMetadata,
    ) -> SegmentReader {
        let (meta, points) = (Arc::new(meta), PointIndex::Filter);
        let (index, unnumbered) = (IndexSlots::default(), SeqNo::ZERO);
        let (cache, frames) = (None, None);
        let inner = Inner { source, path, meta, cache, frames, index, points, unnumbered };
        SegmentReader { inner: Arc::new(inner) }
    }

    /// What was loaded so far, to open the same file again with.
    #[must_use]
    pub fn metadata(&self) -> Arc<SegmentMetadata> {
        Arc::clone(&self.inner.meta)
    }

    /// What the segment says of itself.
    #[must_use]
    pub fn properties(&self) -> &Properties {
        &self.inner.meta.properties
    }

    /// Its random identity.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.inner.meta.footer.uuid
    }

    /// The length of the file in bytes.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.inner.meta.footer.file_len
    }

    /// The checksum in the footer, which stands for all of the content.
    #[must_use]
    pub fn footer_checksum(&self) -> u64 {
        self.inner.meta.footer_checksum
    }

    /// The length of the data blocks, padding included, in bytes.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.inner.meta.footer.meta_offset
    }

    /// The share of the data blocks that is padding, 0 to 1.
    #[must_use]
    pub fn padding_ratio(&self) -> f64 {
        padding_ratio(self.data_bytes(), self.properties().stored_bytes)
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The last key. Costs one read.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corruption`].
    pub fn last_key(&self) -> Result<Key> {
        let section = self.section(SECTION_LAST_KEY)?;
        Ok(Key(self.read_section(&section)?))
    }

    /// The value of a key, if it is there and not deleted. Reads one block, or a few if the key has
    /// very many versions; for an absent key almost always none. What has expired is there: a segment
    /// has no clock. The hash run, or without one the
    /// block index, is read at the first lookups that need it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Corruption`] or [`Error::UnsupportedFormat`] if what holds the
    /// answer is damaged or not supported, or the value lies in a value segment of a database;
    /// [`Error::MergeOperator`] if it is to be merged into something.
    pub fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        let hash = key_hash(key, self.properties().hash_seed);
        match self.get_at(key, hash, SeqNo::MAX)? {
            Some(found) => self.proper_value(found.kind, found.value),
            None => Ok(None),
        }
    }

    /// What a version alone says that its key's value is.
    pub(super) fn proper_value(&self, kind: Kind, value: Bytes) -> Result<Option<Value>> {
        match kind {
            Kind::Delete | Kind::DeleteRange => Ok(None),
            Kind::Put | Kind::PutUntil => {
                let from = value.len() - split_expiry(kind, &value).1.len();
                Ok(Some(Value(value.slice(from..))))
            }
            Kind::PutAway | Kind::PutAwayUntil => Err(Error::UnsupportedFormat {
                file: self.inner.path.clone(),
                what: "the key's value is in a value segment: read it through its database"
                    .to_owned(),
            }),
            Kind::Merge | Kind::MergeUntil => Err(Error::MergeOperator {
                keyspace: self.inner.path.display().to_string(),
                reason:
                    "the newest version of the key is a merge operand: read it through its database"
                        .to_owned(),
            }),
        }
    }

    /// A cursor over all entries.
    pub(crate) fn cursor(&self, options: CursorOptions) -> SegmentCursor {
        SegmentCursor::new(self.clone(), options)
    }

    /// About how many bytes of data blocks hold the keys between two bounds: whole blocks, from
    /// the block index alone.
    pub(crate) fn approximate_bytes(
        &self,
        lower: Bound<&[u8]>,
        upper: Bound<&[u8]>,
    ) -> Result<u64> {
        let start = match lower {
            Bound::Unbounded => Some(0),
            Bound::Included(key) => self.find(key, false)?.and_then(|p| Some(p.handle()?.offset())),
            Bound::Excluded(key) => self.find(key, true)?.and_then(|p| Some(p.handle()?.offset())),
        };
        let end = match upper {
            Bound::Unbounded => None,
            Bound::Included(key) | Bound::Excluded(key) => {
                self.find(key, false)?.and_then(|p| p.handle()).map(|h| h.offset() + h.len())
            }
        };
        let data = self.data_bytes();
        Ok(end.unwrap_or(data).saturating_sub(start.unwrap_or(data)))
    }

    /// The first block whose separator is at or after the key (with `after`: after it).
    pub(super) fn find(&self, key: &[u8], after: bool) -> Result<Option<Position>> {
        let root = self.index_root()?;
        let part_number = match root.as_ref() {
            IndexRoot::Single(_) => 0,
            IndexRoot::Partitioned(top) => top.index().find(key, after),
        };
        let Some(mut position) = self.position(&root, part_number)? else { return Ok(None) };
        position.block = position.index.find(key, after);
        Ok(position.handle().is_some().then_some(position))
    }

    /// The first or the last block.
    pub(super) fn edge(&self, last: bool) -> Result<Option<Position>> {
        let root = self.index_root()?;
        let parts = match root.as_ref() {
            IndexRoot::Single(_) => 1,
            IndexRoot::Partitioned(top) => top.len(),
        };
        let Some(mut position) = self.position(&root, if last { parts - 1 } else { 0 })? else {
            return Ok(None);
        };
        if last {
            position.block = position.index.len() - 1;
        }
        Ok(Some(position))
    }

    /// The next block.
    pub(super) fn following(&self, mut position: Position) -> Result<Option<Position>> {
        position.block += 1;
        if position.block < position.index.len() {
            return Ok(Some(position));
        }
        self.position(&*self.index_root()?, position.part_number + 1)
    }

    /// The block before.
    pub(super) fn preceding(&self, mut position: Position) -> Result<Option<Position>> {
        if let Some(block) = position.block.checked_sub(1) {
            position.block = block;
            return Ok(Some(position));
        }
        let Some(part_number) = position.part_number.checked_sub(1) else { return Ok(None) };
        let Some(mut position) = self.position(&*self.index_root()?, part_number)? else {
            return Ok(None);
        };
        position.block = position.index.len() - 1;
        Ok(Some(position))
    }

    /// The first block of a partition, if there is such a partition.
    fn position(&self, root: &IndexRoot, part_number: usize) -> Result<Option<Position>> {
        let index = match root {
            IndexRoot::Single(index) if part_number == 0 => Arc::clone(index),
            IndexRoot::Partitioned(top) if part_number < top.len() => {
                self.index_partition(top, part_number)?
            }
            _ => return Ok(None),
        };
        Ok(Some(Position { index, part_number, block: 0 }))
    }

    pub(super) fn index_root(&self) -> Result<Arc<IndexRoot>> {
        if let Some(root) = self.inner.index.root() {
            return Ok(root);
        }
        let section = self.section(SECTION_INDEX)?;
        let part = self.part(section.offset, || {
            self.read_index_root().map(|root| Part::IndexRoot(Arc::new(root)))
        })?;
        let root = match part {
            Part::IndexRoot(root) => root,
            _ => self.read_index_root().map(Arc::new)?,
        };
        self.inner.index.put_root(&root);
        Ok(root)
    }

    /// Reads the index's root from the file, whatever is cached.
    pub(super) fn read_index_root(&self) -> Result<IndexRoot> {
        let section = self.section(SECTION_INDEX)?;
        let partitions = self.inner.meta.section(SECTION_INDEX_PARTITIONS).map_or(0, |s| s.len);
        let bytes = self.read_section(&section)?;
        IndexRoot::decode(&bytes, partitions, self.data_bytes() / PAGE as u64)
            .map_err(|malformed| self.malformed(malformed, section.offset))
    }

    fn index_partition(
        &self,
        top: &super::index::TopLevel,
        number: usize,
    ) -> Result<Arc<IndexPartition>> {
        if let Some(part) = self.inner.index.partition(number) {
            return Ok(part);
        }
        let base = self.section(SECTION_INDEX_PARTITIONS)?.offset;
        let offset = base + top.part(number).map_or(0, |part| part.offset);
        let load = || self.read_index_partition(top, number);
        let part = match self.part(offset, || load().map(|part| Part::Index(Arc::new(part))))? {
            Part::Index(part) => part,
            _ => load().map(Arc::new)?,
        };
        self.inner.index.put_partition(number, top.len(), &part);
        Ok(part)
    }

    /// Reads a partition of the index from the file, whatever is cached.
    pub(super) fn read_index_partition(
        &self,
        top: &super::index::TopLevel,
        number: usize,
    ) -> Result<IndexPartition> {
        let section = self.section(SECTION_INDEX_PARTITIONS)?;
        let part = top.part(number).ok_or_else(|| {
            Error::corruption(&self.inner.path, section.offset, "a partition is missing")
        })?;
        let offset = section.offset + part.offset;
        let bytes = self.read_checked(offset, u64::from(part.len), part.checksum)?;
        IndexPartition::decode(bytes)
            .and_then(|index| top.check_part(number, &index).map(|()| index))
            .map_err(|malformed| self.malformed(malformed, offset))
    }

    /// The block, from the cache if there is one. `fill` says whether to put it there; blocks of
    /// more than 64 KiB, stored or raw, never are.
    pub(super) fn load_block(&self, handle: &Handle, fill: bool) -> Result<Arc<Block>> {
        match self.cached_block(handle) {
            Some(block) => Ok(block),
            None => self.read_block(handle, fill),
        }
    }

    fn frames(&self, handle: &Handle) -> Option<&Arc<Frames>> {
        self.inner.frames.as_ref().filter(|_| handle.pages as usize <= MAX_BLOCK_PAGES)
    }

    /// The block, if it is cached.
    pub(super) fn cached_block(&self, handle: &Handle) -> Option<Arc<Block>> {
        // A block that was loaded by its page alone was not held against the index.
        let named = |block: &Arc<Block>| {
            let same = block.pages() == handle.pages && block.len() == usize::from(handle.entries);
            same.then(|| Arc::clone(block))
        };
        let frames = self.frames(handle)?;
        let held = frames.with(u64::from(handle.first_page), named);
        frames.count(u64::from(held.is_some()), u64::from(held.is_none()));
        held.flatten()
    }

    /// Asks for the memory that finding the block in the cache needs.
    pub(super) fn approach_block(&self, handle: &Handle) {
        if let Some(frames) = self.frames(handle) {
            frames.approach(u64::from(handle.first_page));
        }
    }

    /// Asks for the memory of a block that the walk will come to, if it is cached.
    pub(super) fn foresee_block(&self, handle: &Handle) {
        if let Some(frames) = self.frames(handle) {
            frames.foresee(u64::from(handle.first_page));
        }
    }

    /// Asks for the memory of a block that will be searched, if it is cached.
    pub(super) fn foresee_search(&self, handle: &Handle) {
        if let Some(frames) = self.frames(handle) {
            frames.foresee_search(u64::from(handle.first_page));
        }
    }

    /// The block, from the file.
    pub(super) fn read_block(&self, handle: &Handle, fill: bool) -> Result<Arc<Block>> {
        let space = self.read_space(handle.offset(), handle.len())?;
        let block = Arc::new(self.decode_block(handle, Stored::Own(space))?);
        let page = u64::from(handle.first_page);
        if fill && self.wants_block(page) {
            self.keep_block(page, &block);
        }
        Ok(block)
    }

    /// Puts a block into the cache if that pushes nothing out.
    pub(super) fn offer_block(&self, handle: &Handle, block: &Arc<Block>) {
        if let Some((cache, _)) = &self.inner.cache
            && cache.has_room(block.bytes() as u64)
        {
            self.keep_block(u64::from(handle.first_page), block);
        }
    }

    /// Decodes a block that was read from where `handle` says.
    pub(super) fn decode_block(&self, handle: &Handle, bytes: Stored<'_>) -> Result<Block> {
        let offset = handle.offset();
        let (block, header) = Block::decode_from(bytes, self.slabs(), self.inner.meta.salt, offset)
            .map_err(|malformed| self.malformed(malformed, offset))?;
        if header.entries != handle.entries {
            let what = "the block's entry count is not the one in the index";
            return Err(Error::corruption(&self.inner.path, offset, what));
        }
        Ok(block.numbered(self.inner.unnumbered))
    }

    /// Where the memory of blocks comes from.
    pub(super) fn slabs(&self) -> Option<&Arc<Slabs>> {
        self.inner.cache.as_ref().and_then(|(cache, _)| cache.slabs())
    }

    /// Reads bytes to memory for a block.
    pub(super) fn read_space(&self, offset: u64, len: u64) -> Result<Space> {
        let fits = usize::try_from(len).ok();
        match fits.and_then(|len| Space::of_slabs(self.slabs(), len)) {
            Some(mut space) => {
                self.read_into(offset, space.bytes_mut())?;
                Ok(space)
            }
            None => Ok(Space::Heap(self.read(offset, len)?)),
        }
    }

    /// Whether a cache keeps the data blocks.
    pub(super) fn has_cache(&self) -> bool {
        self.inner.cache.is_some()
    }

    /// A part of the meta block: from cache or metadata, else loaded and put there.
    pub(super) fn part(&self, offset: u64, load: impl FnOnce() -> Result<Part>) -> Result<Part> {
        let Some((cache, file)) = &self.inner.cache else {
            if let Some(part) = self.inner.meta.parts.read().get(&offset) {
                return Ok(part.clone());
            }
            let part = load()?;
            self.inner.meta.parts.write().insert(offset, part.clone());
            return Ok(part);
        };
        if let Some(part) = cache.get(*file, offset) {
            return Ok(part);
        }
        let part = load()?;
        cache.insert(*file, offset, part.clone());
        Ok(part)
    }

    /// The section with this id, which the caller needs.
    pub(super) fn section(&self, id: u16) -> Result<Section> {
        self.inner.meta.section(id).cloned().ok_or_else(|| {
            let offset = self.inner.meta.footer.table_offset;
            Error::corruption(&self.inner.path, offset, "a section that is needed is missing")
        })
    }

    /// Reads a section and checks its checksum.
    pub(super) fn read_section(&self, section: &Section) -> Result<Bytes> {
        let bytes = self.read(section.offset, section.len)?;
        check_section(&bytes, section, self.inner.meta.salt)
            .map_err(|malformed| self.malformed(malformed, section.offset))?;
        Ok(Bytes::from(bytes))
    }

    /// Reads bytes and checks their checksum.
    pub(super) fn read_checked(&self, offset: u64, len: u64, sum: u64) -> Result<Bytes> {
        let bytes = self.read(offset, len)?;
        if checksum(self.inner.meta.salt, offset, &bytes) != sum {
            let what = "a partition's checksum does not match";
            return Err(Error::corruption(&self.inner.path, offset, what));
        }
        Ok(Bytes::from(bytes))
    }

    /// Reads bytes.
    pub(super) fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let file = self.inner.source.file()?;
        read_at(file.as_ref(), &self.inner.path, offset, len, self.file_len())
    }

    /// Reads bytes, behind what the buffer holds.
    pub(super) fn read_onto(&self, offset: u64, len: u64, bytes: &mut Vec<u8>) -> Result<()> {
        let file = self.inner.source.file()?;
        read_onto(file.as_ref(), &self.inner.path, offset, len, self.file_len(), bytes)
    }

    /// Reads bytes in the place of what the buffer holds.
    pub(super) fn read_over(&self, offset: u64, len: u64, bytes: &mut Vec<u8>) -> Result<()> {
        let (path, file_len) = (&self.inner.path, self.file_len());
        self.inner.source.with(&mut |file| read_over(file, path, offset, len, file_len, bytes))
    }

    /// Fills a buffer.
    pub(super) fn read_into(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let (path, file_len) = (&self.inner.path, self.file_len());
        self.inner.source.with(&mut |file| read_into(file, path, offset, file_len, bytes))
    }

    /// The open file.
    pub(super) fn file(&self) -> Result<Arc<dyn VfsFile>> {
        self.inner.source.file()
    }

    pub(super) fn malformed(&self, malformed: Malformed, offset: u64) -> Error {
        malformed.at(&self.inner.path, offset)
    }
}

pub(super) fn open_file(env: &Env, path: &Path) -> Result<Arc<dyn FileSource>> {
    let file =
        env.vfs.open(path, OpenMode::Read).map_err(|error| Error::io("open", path, error))?;
    Ok(Arc::new(Owned(file)))
}
