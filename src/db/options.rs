//! Options of a database and of single operations, and their checks.
//!
//! None of them is stored: each holds for the handle that was opened with it, and a database may be
//! reopened with others at any time. What a file needs to be read (codec, filter, sizes) is in the
//! file; compression, filter and size options act on files written from then on. The key-hash seed
//! and the keyspaces are the database's own and are in its manifest.

use super::Db;
use crate::compression::Compression;
use crate::error::{Error, Result};
use crate::vfs::Env;
use crate::wal::Recovery;
use std::path::{Path, PathBuf};

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Durability {
    /// Once the operating system has it: it survives the death of the process, but power loss or a
    /// crash of the system may take the last writes, newest first.
    #[default]
    Buffered,
    /// Once the device has it, and everything before it: it survives power loss. Concurrent synced
    /// writes share one `fsync`.
    Sync,
}

/// Who runs flushes and compactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Background {
    /// Threads of the database: one for flushes and this many for compactions (1 to 64).
    Threads(usize),
    /// Nobody, until [`Db::step`] is called: for tests that must be repeatable. Writes then never
    /// wait for background work.
    Manual,
}

impl Default for Background {
    fn default() -> Self {
        Background::Threads(1)
    }
}

/// How an iterator reads. The default reads values and fills the cache.
#[derive(Clone, Copy, Debug)]
pub struct IterOptions {
    /// Give empty values and do not look at the real ones.
    pub keys_only: bool,
    /// Put the blocks that are read into the cache. Turn it off for a long scan that should not
    /// push out what others use.
    pub fill_cache: bool,
}

impl Default for IterOptions {
    fn default() -> Self {
        IterOptions { keys_only: false, fill_cache: true }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) env: Env,
    pub(crate) create_if_missing: bool,
    pub(crate) cache_bytes: usize,
    pub(crate) write_buffer_bytes: usize,
    pub(crate) write_buffers: usize,
    pub(crate) compression: Compression,
    pub(crate) bloom_bits_per_key: u8,
    pub(crate) durability: Durability,
    pub(crate) background: Background,
    pub(crate) max_open_files: usize,
    pub(crate) segment_bytes: u64,
    pub(crate) level0_runs: usize,
    pub(crate) level1_bytes: u64,
    pub(crate) recovery: Recovery,
}

/// Opens a database with options. See [`Db::builder`].
#[derive(Clone, Debug)]
#[must_use = "nothing is opened before `open` is called"]
pub struct Builder {
    path: PathBuf,
    options: Options,
}

impl Builder {
    pub(crate) fn new(path: &Path) -> Self {
        const MIB: usize = 1 << 20;
        Builder {
            path: path.to_path_buf(),
            options: Options {
                env: Env::default(),
                create_if_missing: true,
                cache_bytes: 64 * MIB,
                write_buffer_bytes: 64 * MIB,
                write_buffers: 3,
                compression: Compression::default(),
                bloom_bits_per_key: 10,
                durability: Durability::default(),
                background: Background::default(),
                max_open_files: 512,
                segment_bytes: 64 << 20,
                level0_runs: 4,
                level1_bytes: 256 << 20,
                recovery: Recovery::default(),
            },
        }
    }

    /// The files, the clock and the randomness to use. Default: the operating system's.
    pub fn env(mut self, env: Env) -> Self {
        self.options.env = env;
        self
    }

    /// Whether a missing database is created (default) or is [`Error::NotADatabase`].
    pub fn create_if_missing(mut self, create: bool) -> Self {
        self.options.create_if_missing = create;
        self
    }

    /// The budget of the cache for blocks, indexes and filters, in bytes. Default 64 MiB.
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.options.cache_bytes = bytes;
        self
    }

    /// The size of one write buffer (memtable), in bytes of memory, 64 KiB to 4 GiB. Default
    /// 64 MiB. When it is full it is flushed into a segment. A single batch is held whole, so one
    /// that is larger than this exceeds it.
    pub fn write_buffer_bytes(mut self, bytes: usize) -> Self {
        self.options.write_buffer_bytes = bytes;
        self
    }

    /// How many write buffers there may be, the one being filled included, 2 to 64. Default 3.
    /// Writes wait when all are full.
    pub fn write_buffers(mut self, count: usize) -> Self {
        self.options.write_buffers = count;
        self
    }

    /// How new blocks are compressed. Default LZ4, or none without the feature `lz4`.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.options.compression = compression;
        self
    }

    /// The size of the bloom filters of new segments, in bits a key; 0 writes none, at most 64.
    /// Default 10, which passes about 1 % of absent keys.
    pub fn bloom_bits_per_key(mut self, bits: u8) -> Self {
        self.options.bloom_bits_per_key = bits;
        self
    }

    /// When writes are acknowledged that do not say so themselves. Default
    /// [`Durability::Buffered`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.options.durability = durability;
        self
    }

    /// Who runs flushes and compactions. Default one flush and one compaction thread.
    pub fn background(mut self, background: Background) -> Self {
        self.options.background = background;
        self
    }

    /// How many segment files may be open at a time, at least 8; reads in flight may exceed it by
    /// their own number. Default 512.
    pub fn max_open_files(mut self, count: usize) -> Self {
        self.options.max_open_files = count;
        self
    }

    /// The size at which a new segment is closed, in bytes, 64 KiB to 240 MiB. Default 64 MiB.
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.options.segment_bytes = bytes;
        self
    }

    /// How many flushed runs are collected before they are merged into level 1, 1 to 64. Default 4.
    pub fn level0_runs(mut self, runs: usize) -> Self {
        self.options.level0_runs = runs;
        self
    }

    /// What level 1 may hold, in bytes, at least 64 KiB; each level below holds ten times the one
    /// above. Default 256 MiB.
    pub fn level1_bytes(mut self, bytes: u64) -> Self {
        self.options.level1_bytes = bytes;
        self
    }

    /// What to do with a log that does not end cleanly. Default [`Recovery::TolerateTornTail`].
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.options.recovery = recovery;
        self
    }

    /// Opens the database, recovering what a crash left.
    ///
    /// Reads the manifest, each segment's footer and properties, and the logs that are not flushed.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`]; [`Error::Locked`] at once if it is open elsewhere;
    /// [`Error::NotADatabase`] for a directory that holds something else, or, without
    /// [`create_if_missing`](Self::create_if_missing), nothing; [`Error::UnsupportedFormat`] for one
    /// written by a newer version; [`Error::Corruption`] with file and offset; [`Error::Io`].
    pub fn open(self) -> Result<Db> {
        self.options.validate()?;
        Db::open_with(&self.path, self.options)
    }
}

impl Options {
    fn validate(&self) -> Result<()> {
        fn check(ok: bool, option: &'static str, reason: &str) -> Result<()> {
            if ok { Ok(()) } else { Err(Error::InvalidOption { option, reason: reason.into() }) }
        }
        check(
            (64 << 10..=4 << 30).contains(&self.write_buffer_bytes),
            "write_buffer_bytes",
            "must be from 64 KiB to 4 GiB",
        )?;
        check((2..=64).contains(&self.write_buffers), "write_buffers", "must be from 2 to 64")?;
        check(self.bloom_bits_per_key <= 64, "bloom_bits_per_key", "must be at most 64")?;
        check(self.max_open_files >= 8, "max_open_files", "must be at least 8")?;
        check(
            (64 << 10..=240 << 20).contains(&self.segment_bytes),
            "segment_bytes",
            "must be from 64 KiB to 240 MiB",
        )?;
        check((1..=64).contains(&self.level0_runs), "level0_runs", "must be from 1 to 64")?;
        check(self.level1_bytes >= 64 << 10, "level1_bytes", "must be at least 64 KiB")?;
        if let Background::Threads(threads) = self.background {
            check((1..=64).contains(&threads), "background", "takes 1 to 64 compaction threads")?;
        }
        if let Err(reason) = self.compression.available() {
            return Err(Error::InvalidOption { option: "compression", reason: reason.into() });
        }
        if let Compression::Zstd(level) = self.compression {
            check((-7..=22).contains(&level), "compression", "Zstandard levels are -7 to 22")?;
        }
        Ok(())
    }
}
