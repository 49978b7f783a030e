//! Writes a segment, entry by entry in order, into a new file.
//!
//! ```text
//! add → cutter (waiting entries) → out (sealed blocks) → file
//!                                ↘ index builder, key hashes, counts → meta block at finish
//! ```
//!
//! Memory: 8 bytes a key for bloom filter and hash run, 16 while finishing, about 33 bytes a block
//! for the index and the hash run, a write buffer of 256 KiB, and the longest entry. An error of the file system is final: every later
//! call returns it.

use super::cutter::{Cut, Cutter};
use super::format::{
    BLOCK_HEADER_LEN, ENTRY_HEADER_LEN, FLAG_SAME_KEY, FLAG_SEQNO, FOOTER_LEN, Footer, MAX_KEYS,
    MAX_START_PAGES, SECTION_BLOOM, SECTION_BLOOM_PARTITIONS, SECTION_HASH_RUN,
    SECTION_HASH_RUN_PARTITIONS, SECTION_INDEX, SECTION_INDEX_PARTITIONS, SECTION_LAST_KEY,
    SECTION_PROPERTIES, SECTION_TAG, Section, encode_table,
};
use super::index::{IndexBuilder, shortest_separator};
use super::{
    Properties, Reference, SegmentInfo, SegmentOptions, ValueIdentity, bloom, hash_run,
    hash_run_build,
};
use crate::checksum::{checksum, uuid_salt};
use crate::compression::Compression;
use crate::error::{Error, Result};
use crate::hash::{hash_byte, key_hash};
use crate::types::{Kind, MAX_KEY_LEN, MAX_VALUE_LEN, PAGE, SegmentId, SeqNo, split_expiry};
use crate::vfs::{Env, OpenMode, VfsFile};
use std::cmp::Ordering;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Sealed blocks are written to the file in pieces of at least this many bytes.
const WRITE_LEN: usize = 256 << 10;
/// Index and bloom filter are cut into partitions above this many bytes (FORMAT.md 3.4, 3.5).
const PARTITION_LEN: usize = 64 << 10;
/// Pages kept free for what waits when the segment is declared full: at most 64 KiB of entries, which take
/// at most 34 pages in whatever blocks they end up, in front of one that may be huge.
const PAGES_RESERVED: u32 = 64;

/// Writes one segment file. Used by one thread at a time; `Send`.
pub struct SegmentWriter {
    env: Env,
    file: Arc<dyn VfsFile>,
    path: PathBuf,
    options: SegmentOptions,
    partition_len: usize,
    uuid: [u8; 16],
    cutter: Cutter,
    index: IndexBuilder,
    /// Of each distinct key, in order; empty if nobody needs them.
    hashes: Vec<u64>,
    /// Of each block in which a key starts: its page, and how many do.
    starts: Vec<(u16, u32)>,
    hash_run_single_max: usize,
    properties: Properties,
    last_key: Vec<u8>,
    last_seqno: SeqNo,
    last_hash: u64,
    /// The last key of the block before the one being collected, which still lacks its separator.
    block_end: Vec<u8>,
    out: Vec<u8>,
    /// What was written to the file, and pages cut (written or in `out`).
    written: u64,
    pages: u32,
    failed: Option<Error>,
}

impl std::fmt::Debug for SegmentWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentWriter")
            .field("path", &self.path)
            .field("entries", &self.properties.entries)
            .finish_non_exhaustive()
    }
}

impl SegmentWriter {
    /// Creates the file, which must not exist, on the operating system's file system.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]; [`Error::Io`].
    pub fn create(path: impl AsRef<Path>, options: SegmentOptions) -> Result<SegmentWriter> {
        SegmentWriter::create_in(&Env::default(), path, options)
    }

    /// The same in another environment. If writing is given up, the file is left as it is: remove
    /// it. It does not open as a segment.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]; [`Error::Io`].
    pub fn create_in(
        env: &Env,
        path: impl AsRef<Path>,
        options: SegmentOptions,
    ) -> Result<SegmentWriter> {
        let path = path.as_ref();
        let invalid = |option, reason: &str| Error::InvalidOption { option, reason: reason.into() };
        if !matches!(options.prefix_width, 0 | 2 | 4 | 8) {
            return Err(invalid("prefix_width", "it must be 0, 2, 4 or 8 bytes"));
        }
        if options.bloom_bits_per_key > 64 {
            return Err(invalid("bloom_bits_per_key", "at most 64 are of use; 10 is usual"));
        }
        let cutter = Cutter::new(options.compression, options.prefix_width)
            .map_err(|reason| invalid("compression", reason))?;
        let file = env
            .vfs
            .open(path, OpenMode::CreateNew)
            .map_err(|error| Error::io("create", path, error))?;
        let uuid = env.uuid();
        let properties = Properties {
            created_ms: env.clock.unix_ms(),
            smallest_seqno: SeqNo::MAX,
            keyspace: options.keyspace,
            hash_seed: options.hash_seed.unwrap_or_else(|| env.entropy.next_u64()),
            deletes_applied: options.deletes_applied,
            numbered_from: options.numbered_from,
            ..Properties::default()
        };
        Ok(SegmentWriter {
            env: env.clone(),
            file,
            path: path.to_path_buf(),
            options,
            partition_len: PARTITION_LEN,
            uuid,
            cutter,
            index: IndexBuilder::default(),
            hashes: Vec::new(),
            starts: Vec::new(),
            hash_run_single_max: hash_run_build::SINGLE_MAX,
            properties,
            last_key: Vec::new(),
            last_seqno: SeqNo::MAX,
            last_hash: 0,
            block_end: Vec::new(),
            out: Vec::new(),
            written: 0,
            pages: 0,
            failed: None,
        })
    }

    /// Cuts index and bloom filter at another length, so that tests need not be large.
    #[cfg(test)]
    pub(crate) fn set_partition_len(&mut self, len: usize) {
        self.partition_len = len;
    }

    /// Cuts a hash run of more keys than this into partitions, so that tests need not be large.
    #[cfg(test)]
    pub(crate) fn set_hash_run_single_max(&mut self, keys: usize) {
        self.hash_run_single_max = keys;
    }

    /// Adds a key, which must be above the one before, and its value.
    ///
    /// # Errors
    /// [`Error::OutOfOrder`], [`Error::KeyTooLong`], [`Error::ValueTooLong`] and
    /// [`Error::SegmentFull`] leave the writer as it was; [`Error::Io`] is final.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.add(key, SeqNo::ZERO, Kind::Put, value)
    }

    /// Adds an entry: keys rise, and for one key sequence numbers fall.
    pub(crate) fn add(&mut self, key: &[u8], seqno: SeqNo, kind: Kind, value: &[u8]) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if key.len() > MAX_KEY_LEN {
            return Err(Error::KeyTooLong { len: key.len() });
        }
        if value.len() > MAX_VALUE_LEN {
            return Err(Error::ValueTooLong { len: value.len() });
        }
        // A tombstone has no value, whatever the caller says.
        let value = if kind == Kind::Delete { &[] } else { value };
        if kind.is_away() {
            Self::reference(kind, value)?;
        }
        let first = self.properties.entries == 0;
        let order = if first { Ordering::Greater } else { key.cmp(&self.last_key) };
        let same_key = order == Ordering::Equal;
        if order == Ordering::Less || same_key && seqno >= self.last_seqno {
            return Err(Error::OutOfOrder { entry: self.properties.entries });
        }
        // Versions of a key must not be parted, so only a new key can find the segment full; the
        // last limit, at 8 TiB, is that of page numbers.
        if !same_key && self.properties.distinct_keys >= MAX_KEYS {
            return Err(Error::SegmentFull { what: "it has 8388608 keys" });
        }
        if !same_key && self.pages >= MAX_START_PAGES - PAGES_RESERVED || self.pages >= u32::MAX / 2
        {
            return Err(Error::SegmentFull { what: "it has 256 MiB of data blocks" });
        }
        if !same_key {
            self.last_hash = key_hash(key, self.properties.hash_seed);
            if self.options.bloom_bits_per_key > 0 || self.options.hash_run {
                self.hashes.push(self.last_hash);
            }
        }
        let hash = self.last_hash;
        self.cutter
            .push(hash_byte(hash), |out| encode_entry(out, key, seqno, kind, value, same_key));
        let properties = &mut self.properties;
        if first {
            properties.first_key = key.to_vec();
        }
        properties.entries += 1;
        properties.tombstones += u64::from(kind == Kind::Delete);
        properties.merge_operands += u64::from(kind.is_merge());
        if kind.expires() {
            properties.note_expiry(split_expiry(kind, value).0);
        }
        if kind.is_away()
            && let Ok(reference) = Self::reference(kind, value)
        {
            properties.note_reference(&reference);
        }
        properties.distinct_keys += u64::from(!same_key);
        properties.smallest_seqno = properties.smallest_seqno.min(seqno);
        properties.largest_seqno = properties.largest_seqno.max(seqno);
        properties.raw_bytes += (key.len() + value.len()) as u64;
        if !same_key {
            self.last_key.clear();
            self.last_key.extend_from_slice(key);
        }
        self.last_seqno = seqno;
        if self.cutter.is_due() { self.cut(false) } else { Ok(()) }
    }

    /// What an entry refers to.
    #[cold]
    fn reference(kind: Kind, value: &[u8]) -> Result<Reference> {
        let reference = Reference::decode(split_expiry(kind, value).1);
        reference.map_err(|_| Error::InvalidOption {
            option: "value",
            reason: "a reference to a value has the wrong length".to_owned(),
        })
    }

    /// Says what the value segments are that entries refer to. Needed before finishing if any do; `None`
    /// of one leaves its identity open, and then nobody accepts the segment.
    pub(crate) fn identify_values(
        &mut self,
        identity: impl Fn(SegmentId) -> Option<ValueIdentity>,
    ) {
        for used in &mut self.properties.value_segments {
            if let Some(ValueIdentity { file_len, checksum }) = identity(used.id) {
                (used.file_len, used.checksum) = (file_len, checksum);
            }
        }
    }

    /// Whether it is time to finish: little room is left for more keys.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.properties.distinct_keys >= MAX_KEYS - (MAX_KEYS >> 5)
            || self.pages >= MAX_START_PAGES - (MAX_START_PAGES >> 4)
    }

    /// About how long the data blocks are so far, in bytes.
    #[must_use]
    pub fn estimated_bytes(&self) -> u64 {
        u64::from(self.pages) * PAGE as u64 + self.cutter.estimated_bytes()
    }

    /// How many entries were added.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.properties.entries
    }

    /// Writes what is left and makes file and directory entry durable.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if nothing was added: a segment has at least one entry;
    /// [`Error::Io`]. Then the file is no segment: remove it.
    pub fn finish(self) -> Result<SegmentInfo> {
        let (env, path) = (self.env.clone(), self.path.clone());
        let info = self.finish_file()?;
        let dir = path.parent().unwrap_or(Path::new(""));
        env.vfs.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?;
        Ok(info)
    }

    /// The same, but the directory entry is for the caller to make durable.
    pub(crate) fn finish_file(mut self) -> Result<SegmentInfo> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if self.properties.entries == 0 {
            return Err(Error::InvalidOption {
                option: "segment",
                reason: "it has no entries: add at least one before finishing".into(),
            });
        }
        self.cut(true)?;
        self.index.separator(&self.last_key);
        let footer_checksum = self.write_meta();
        self.flush()?;
        self.file.sync_data().map_err(|error| Error::io("sync", &self.path, error))?;
        Ok(SegmentInfo {
            uuid: self.uuid,
            file_len: self.written,
            footer_checksum,
            data_bytes: u64::from(self.pages) * PAGE as u64,
            last_key: self.last_key,
            properties: self.properties,
        })
    }

    fn cut(&mut self, finishing: bool) -> Result<()> {
        while let Some(cut) = self.cutter.next(finishing) {
            self.write_block(&cut);
            if self.out.len() >= WRITE_LEN {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn write_block(&mut self, cut: &Cut) {
        if self.index.len() > 0 {
            let separator = shortest_separator(&self.block_end, self.cutter.key(0));
            self.index.separator(&separator);
        }
        self.block_end.clear();
        self.block_end.extend_from_slice(self.cutter.key(cut.entries - 1));
        self.index.block(self.pages, cut.entries as u16);
        let starting = self.cutter.distinct_keys(cut.entries);
        if self.options.hash_run && starting > 0 {
            match u16::try_from(self.pages) {
                Ok(page) => self.starts.push((page, starting)),
                // `add` lets no key start that far back; if one did, no run could say where.
                Err(_) => self.options.hash_run = false,
            }
        }
        let offset = u64::from(self.pages) * PAGE as u64;
        let used = self.cutter.write(cut, &mut self.out, uuid_salt(&self.uuid), offset);
        debug_assert!(used >= BLOCK_HEADER_LEN && used <= cut.pages * PAGE);
        self.properties.blocks += 1;
        self.properties.stored_bytes += used as u64;
        self.pages += cut.pages as u32;
        self.cutter.drop_front(cut.entries);
    }

    fn flush(&mut self) -> Result<()> {
        if let Err(error) = self.file.write_all_at(&self.out, self.written) {
            let error = Error::io("write", &self.path, error);
            self.failed = Some(error.clone());
            return Err(error);
        }
        self.written += self.out.len() as u64;
        self.out.clear();
        if self.out.capacity() > 8 * WRITE_LEN {
            self.out.shrink_to(2 * WRITE_LEN);
        }
        Ok(())
    }

    /// Appends sections, section table and footer; gives the footer's checksum. The sections that
    /// opening reads come last, so that one read at the end of the file gets them all.
    fn write_meta(&mut self) -> u64 {
        let salt = uuid_salt(&self.uuid);
        let meta_offset = u64::from(self.pages) * PAGE as u64;
        let mut meta = Vec::new();
        let mut sections = Vec::new();
        let mut put = |meta: &mut Vec<u8>, id: u16, bytes: &[u8], summed: bool| {
            let offset = meta_offset + meta.len() as u64;
            let sum = if summed { checksum(salt, offset, bytes) } else { 0 };
            meta.extend_from_slice(bytes);
            sections.push(Section { id, offset, len: bytes.len() as u64, checksum: sum });
        };
        let (partitions, root) = self.index.finish(self.pages, self.partition_len, |at, bytes| {
            checksum(salt, meta_offset + at, bytes)
        });
        if let Some(partitions) = partitions {
            put(&mut meta, SECTION_INDEX_PARTITIONS, &partitions, false);
        }
        put(&mut meta, SECTION_INDEX, &root, true);
        if self.options.bloom_bits_per_key > 0 {
            let base = meta_offset + meta.len() as u64;
            let bits = self.options.bloom_bits_per_key;
            let (partitions, root) =
                bloom::build(&self.hashes, bits, &self.uuid, self.partition_len, |at, bytes| {
                    checksum(salt, base + at, bytes)
                });
            if let Some(partitions) = partitions {
                put(&mut meta, SECTION_BLOOM_PARTITIONS, &partitions, false);
            }
            put(&mut meta, SECTION_BLOOM, &root, true);
        }
        if let Some(run) = self.hash_run(meta_offset + meta.len() as u64) {
            if let Some(partitions) = run.partitions {
                put(&mut meta, SECTION_HASH_RUN_PARTITIONS, &partitions, true);
            }
            put(&mut meta, SECTION_HASH_RUN, &run.root, true);
        }
        let mut tag = vec![self.options.compression.codec()];
        let level = if let Compression::Zstd(level) = self.options.compression { level } else { 0 };
        tag.extend_from_slice(&level.to_le_bytes());
        put(&mut meta, SECTION_TAG, &tag, true);
        put(&mut meta, SECTION_LAST_KEY, &self.last_key, true);
        put(&mut meta, SECTION_PROPERTIES, &self.properties.encode(), true);
        let table = encode_table(&sections);
        let table_offset = meta_offset + meta.len() as u64;
        let (footer, footer_checksum) = Footer {
            uuid: self.uuid,
            meta_offset,
            table_offset,
            table_len: table.len() as u64,
            table_checksum: checksum(salt, table_offset, &table),
            file_len: table_offset + table.len() as u64 + FOOTER_LEN as u64,
        }
        .encode();
        self.out.extend_from_slice(&meta);
        self.out.extend_from_slice(&table);
        self.out.extend_from_slice(&footer);
        footer_checksum
    }

    /// The hash run, whose partitions are to lie at `base`, if there is to be one. Uses up the
    /// hashes.
    fn hash_run(&mut self, base: u64) -> Option<hash_run_build::HashSections> {
        if !self.options.hash_run {
            return None;
        }
        let mut entries = std::mem::take(&mut self.hashes);
        let mut hashes = entries.iter_mut();
        for (page, keys) in &self.starts {
            for hash in hashes.by_ref().take(*keys as usize) {
                *hash = hash_run::h40(*hash) << 16 | u64::from(*page);
            }
        }
        debug_assert_eq!(hashes.len(), 0, "every key starts in some block");
        let salt = uuid_salt(&self.uuid);
        hash_run_build::build(entries, self.hash_run_single_max, |at, bytes| {
            checksum(salt, base + at, bytes)
        })
    }

    /// How often a block was compressed.
    #[cfg(test)]
    pub(crate) fn compressions(&self) -> u64 {
        self.cutter.compressions
    }
}

#[inline]
fn encode_entry(
    out: &mut Vec<u8>,
    key: &[u8],
    seqno: SeqNo,
    kind: Kind,
    value: &[u8],
    same_key: bool,
) {
    let mut flags = kind as u8;
    let mut header_len = ENTRY_HEADER_LEN;
    if seqno != SeqNo::ZERO {
        flags |= FLAG_SEQNO;
        header_len += 8;
    }
    if same_key {
        flags |= FLAG_SAME_KEY;
    }
    // In one piece, so that the buffer is looked at once.
    let mut header = [0; ENTRY_HEADER_LEN + 8];
    header[..2].copy_from_slice(&(key.len() as u16).to_le_bytes());
    header[2..6].copy_from_slice(&(value.len() as u32).to_le_bytes());
    header[6] = flags;
    header[ENTRY_HEADER_LEN..].copy_from_slice(&seqno.0.to_le_bytes());
    out.reserve(header_len + key.len() + value.len());
    out.extend_from_slice(&header[..header_len]);
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}
