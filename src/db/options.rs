//! Options of a database and of single operations, and their checks.
//!
//! None of them is stored, but those of the default keyspace: each holds for the handle that was opened
//! with it, and a database may be reopened with others at any time. What a file needs to be read (codec, filter, sizes) is in the
//! file; compression, filter and size options act on files written from then on. The key-hash seed
//! and the keyspaces are the database's own and are in its manifest.

use super::event::EventListener;
use super::histogram::Tally;
use super::keyspace_options::KeyspaceOptions;
use super::listener::Listener;
use super::observe::{OnProgress, Progress};
use super::{DatabaseReport, Db, ReadOnlyDb, RepairReport};
use crate::compaction::{ALPHA_BUSY, ALPHA_CALM, Fifo, LazyLeveling, Leveled, Strategy, Tiered};
use crate::compression::Compression;
use crate::error::{Error, Result};
use crate::filter::CompactionFilter;
use crate::keymap::MapOptions;
use crate::merge::MergeOperator;
use crate::sync::{Arc, STRIPES};
use crate::vfs::Env;
use crate::wal::Recovery;
use std::path::{Path, PathBuf};
use std::time::Duration;

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

/// How segments are compacted. Not stored: a database may be reopened with another strategy, which
/// takes what it finds and changes it bit by bit.
///
/// What each costs, for a database of `n` write buffers. *Written* is how many times an entry is
/// written to segments under random overwrites, its flush included; *space* is the size of the files
/// against that of the newest versions; *runs* is what a range read merges.
///
/// | | written | space | runs | for |
/// |---|---|---|---|---|
/// | `Lazy` | 3.5, and 1 for each level of runs below the first | 1.33 or `level0_runs` flushes; 1.25 once it rests | up to 2 × `level0_runs` a level | nearly everything |
/// | `Leveled` | up to 10 for each level | 1.1 to 1.4 | `level0_runs` + 1 a level | reading ranges far more than writing |
/// | `Tiered` | log(n) / log(`level0_runs`) | up to `level0_runs` | `level0_runs` a level | writing, and room to spare |
/// | `Fifo` | 1 | the cap | all flushes within the cap | logs, time series, caches |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compaction {
    /// Lazy leveling, the default: runs above, one sorted run at the bottom, which is merged in
    /// small slices when about a quarter of the files is superseded and `level0_runs` runs lie above
    /// it, and further when next to nothing (a sixty-fourth of a write buffer) is written for a second. What
    /// range reads look into again and again is merged once they have cost as much as that does. So a database of few flushes may take twice
    /// its size while it is written to. A merge needs room for one slice; only the first, which makes
    /// the bottom of all runs, for as much again as there is.
    #[default]
    Lazy,
    /// Every level below the first is one sorted run, ten times as large as the one above.
    Leveled,
    /// Runs of about the same size are merged into one of the next level. A merge needs as much
    /// room again as it reads.
    Tiered,
    /// Nothing is merged; the oldest segments are dropped, **with what they hold**, also from
    /// snapshots. A compaction asked for by hand does nothing but flush. Merge operands that were
    /// flushed later than the value that they belong to, or than older operands, go on without it:
    /// what they come to is then what the operator makes of those that are left. So this is for
    /// operators with which a window of the last operands makes sense, like
    /// [`Append`](crate::merge::Append) or [`Max`](crate::merge::Max), and not for counters.
    Fifo {
        /// The cap on the segments of each keyspace, in bytes. Exceeded by at most one flush. Below
        /// the size of one flush nothing is kept.
        max_bytes: u64,
        /// Segments older than this are dropped too, by the time that they were written.
        max_age: Option<Duration>,
    },
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
#[expect(clippy::struct_excessive_bools, reason = "each is an option by itself")]
pub(crate) struct Options {
    pub(crate) env: Env,
    pub(crate) create_if_missing: bool,
    pub(crate) cache_bytes: usize,
    pub(crate) write_buffer_bytes: usize,
    pub(crate) write_buffers: usize,
    pub(crate) compression: Compression,
    pub(crate) bloom_bits_per_key: Option<u8>,
    pub(crate) hash_runs: bool,
    pub(crate) key_map_bytes: u64,
    pub(crate) key_map_fingerprint_bits: u32,
    pub(crate) check_key_map: bool,
    pub(crate) durability: Durability,
    pub(crate) background: Background,
    pub(crate) max_open_files: usize,
    pub(crate) segment_bytes: u64,
    pub(crate) compaction: Compaction,
    pub(crate) level0_runs: Option<usize>,
    pub(crate) level1_bytes: u64,
    pub(crate) recovery: Recovery,
    pub(crate) keep_log_bytes: u64,
    pub(crate) read_histograms: bool,
    pub(crate) listener: Option<Listener>,
    pub(crate) progress: Option<OnProgress>,
    /// Of the default keyspace.
    pub(crate) keyspace: KeyspaceOptions,
    pub(crate) ready_made_operators: bool,
    pub(crate) transaction_bytes: usize,
    pub(crate) ignore_conflicts: bool,
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
                bloom_bits_per_key: None,
                hash_runs: true,
                key_map_bytes: 512 << 20,
                key_map_fingerprint_bits: 32,
                check_key_map: false,
                durability: Durability::default(),
                background: Background::default(),
                max_open_files: 512,
                segment_bytes: 64 << 20,
                compaction: Compaction::default(),
                level0_runs: None,
                level1_bytes: 256 << 20,
                recovery: Recovery::default(),
                keep_log_bytes: 0,
                read_histograms: false,
                listener: None,
                progress: None,
                keyspace: KeyspaceOptions::default(),
                ready_made_operators: false,
                transaction_bytes: 64 * MIB,
                ignore_conflicts: false,
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

    /// The budget of the cache for blocks, indexes, filters and hash runs, in bytes. Default 64 MiB. The memory
    /// comes in regions of 2 MiB (256 KiB for a cache of less than 32 MiB), of which a few may be part
    /// empty. Values that are kept longer than the cache keeps their blocks come on top.
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

    /// The size of the bloom filters of new segments, in bits a key; 0 writes none, at most 64. 10
    /// passes about 1 % of absent keys. Default none, since [hash runs](Self::hash_runs) say more;
    /// without these, 10.
    pub fn bloom_bits_per_key(mut self, bits: u8) -> Self {
        self.options.bloom_bits_per_key = Some(bits);
        self
    }

    /// Whether new segments get a hash run (from a key's hash to its block, about 5.3 bytes a key on
    /// disk) and point reads use those that are there. Default true. Without them there is no key
    /// map, and point reads ask the bloom filter and the block index of each sorted run.
    pub fn hash_runs(mut self, on: bool) -> Self {
        self.options.hash_runs = on;
        self
    }

    /// The budget of the key map, in bytes of memory. Default 512 MiB. It takes 5 to 6 bytes for
    /// each key in each sorted run (up to 6.4 where it was just rebuilt), and no more than that: the
    /// budget is only its limit. For keys
    /// beyond, point reads ask the hash run of each sorted run: the share of such reads grows
    /// smoothly as the budget shrinks. 0 turns the map off. While a 256th part of the map is
    /// rebuilt, it exceeds this by so much.
    pub fn key_map_bytes(mut self, bytes: u64) -> Self {
        self.options.key_map_bytes = bytes;
        self
    }

    /// Lets the key map tell keys apart by so few bits, so that tests meet collisions.
    #[doc(hidden)]
    pub fn key_map_fingerprint_bits(mut self, bits: u32) -> Self {
        self.options.key_map_fingerprint_bits = bits;
        self
    }

    /// Holds the key map against the segments after every edit, and panics if they differ. For tests:
    /// it reads all hash runs each time.
    #[doc(hidden)]
    pub fn check_key_map(mut self, check: bool) -> Self {
        self.options.check_key_map = check;
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

    /// How segments are compacted. Default [`Compaction::Lazy`].
    pub fn compaction(mut self, compaction: Compaction) -> Self {
        self.options.compaction = compaction;
        self
    }

    /// How many runs a level collects before they are merged, 1 to 64: level 0 for
    /// [`Compaction::Leveled`], every level above the bottom otherwise; no matter for
    /// [`Compaction::Fifo`]. More is cheaper to write and dearer to read ranges from. A merge takes
    /// two runs at least. Default 16, for `Leveled` 4, for the others 8.
    ///
    /// Writes are slowed down once level 0 has twice as many.
    pub fn level0_runs(mut self, runs: usize) -> Self {
        self.options.level0_runs = Some(runs);
        self
    }

    /// With [`Compaction::Leveled`]: what level 1 may hold, in bytes, at least 64 KiB; each level
    /// below holds ten times the one above. Default 256 MiB.
    pub fn level1_bytes(mut self, bytes: u64) -> Self {
        self.options.level1_bytes = bytes;
        self
    }

    /// What to do with a log that does not end cleanly. Default [`Recovery::TolerateTornTail`].
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.options.recovery = recovery;
        self
    }

    /// How many bytes of logs are kept for [`Db::changes_since`] beyond those that recovery needs, the
    /// newest first. Default 0: logs go as soon as they are flushed, and there are no change feeds. With
    /// more than that each log also says which keyspaces there are. What is kept costs room on the disk and
    /// nothing else: opening replays no more. Opening with 0 removes it.
    pub fn keep_log_bytes(mut self, bytes: u64) -> Self {
        self.options.keep_log_bytes = bytes;
        self
    }

    /// Whether [`Stats::histograms`](crate::Stats::histograms) tells how long point reads take. Default
    /// false: looking at the clock twice costs each of them some 50 nanoseconds, and the histogram takes
    /// 128 KiB of memory.
    pub fn read_histograms(mut self, on: bool) -> Self {
        self.options.read_histograms = on;
        self
    }

    /// Who hears of flushes, compactions, stalls and trouble: see [`EventListener`]. Default nobody.
    /// Costs reads and writes nothing.
    pub fn listener(mut self, listener: Arc<dyn EventListener>) -> Self {
        self.options.listener = Some(Listener(listener));
        self
    }

    /// Who hears how far something is that takes long and that a caller waits for: `open`, `flush`,
    /// `compact_range`, `ingest` and `fill_key_map`. `verify` and `repair_into` take a callback of their own.
    /// Default nobody.
    ///
    /// It is called on the thread that waits: at the beginning, now and then, and at the end, if that
    /// is a good one. It must not call the database, and what it does delays the work. If it panics,
    /// that is logged and counted in [`Stats::callback_panics`](crate::Stats::callback_panics), and the
    /// work goes on. What threads of the database do by themselves it does not hear of:
    /// [`listener`](Self::listener) is for that.
    ///
    /// ```
    /// # fn main() -> ashlardb::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// let db = ashlardb::Db::builder(dir.path().join("db"))
    ///     .on_progress(|p| eprintln!("{:?}: {} of {}", p.task, p.done, p.total))
    ///     .open()?;
    /// # db.close()
    /// # }
    /// ```
    pub fn on_progress(mut self, callback: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.options.progress = Some(OnProgress(Arc::new(callback)));
        self
    }

    /// The merge operator of the default keyspace; of others see [`Db::keyspace_with`]. Once it was
    /// opened with one, it needs that each time.
    pub fn merge_operator(mut self, operator: impl MergeOperator + 'static) -> Self {
        self.options.keyspace = self.options.keyspace.merge_operator(operator);
        self
    }

    /// What compactions of the default keyspace ask about values; of other keyspaces see
    /// [`Db::keyspace_with`]. Not kept: see [`CompactionFilter`].
    pub fn compaction_filter(mut self, filter: impl CompactionFilter + 'static) -> Self {
        self.options.keyspace = self.options.keyspace.compaction_filter(filter);
        self
    }

    /// Whether keyspaces that were written with one of the [ready-made merge operators](crate::merge) get
    /// it without being given it, by its name: for tools that open any database. One whose default keyspace
    /// needs another operator can be opened then, too; to read there what was merged, and to open
    /// such a keyspace by its name, is [`Error::MergeOperator`] as ever. Default false.
    pub fn ready_made_operators(mut self, on: bool) -> Self {
        self.options.ready_made_operators = on;
        self
    }

    /// How long what is put or merged in the default keyspace from now on lives, unless it says
    /// otherwise; `None`: for ever. Of other keyspaces see [`Db::keyspace_with`].
    pub fn default_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.options.keyspace = self.options.keyspace.default_ttl(ttl);
        self
    }

    /// The budget for what is remembered of writes while transactions are open, in bytes of memory. Default
    /// 64 MiB. About what the keys take that are written while the oldest of them is open; beyond that the
    /// commits of the oldest give [`Error::Conflict`].
    pub fn transaction_bytes(mut self, bytes: usize) -> Self {
        self.options.transaction_bytes = bytes;
        self
    }

    /// Lets transactions commit in spite of conflicts, so that tests see what these are good for.
    #[doc(hidden)]
    pub fn ignore_conflicts(mut self, ignore: bool) -> Self {
        self.options.ignore_conflicts = ignore;
        self
    }

    /// Values of the default keyspace of more than so many bytes go into value segments; of other keyspaces
    /// see [`Db::keyspace_with`], and of what that means
    /// [`KeyspaceOptions::separate_values_above`](crate::KeyspaceOptions::separate_values_above).
    pub fn separate_values_above(mut self, bytes: u64) -> Self {
        self.options.keyspace = self.options.keyspace.separate_values_above(bytes);
        self
    }

    /// Opens the database, recovering what a crash left.
    ///
    /// Reads the manifest, each segment's footer and properties, and the logs that are not flushed.
    /// Of these logs it writes anew, to the same place, what is not known to be durable: a sync that
    /// failed before may have lost it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`]; [`Error::MergeOperator`] if the default keyspace has a merge operator and
    /// not this one; [`Error::InvalidTtl`]; [`Error::Locked`] at once if it is open elsewhere;
    /// [`Error::NotADatabase`] for a directory that holds something else, or, without
    /// [`create_if_missing`](Self::create_if_missing), nothing; [`Error::UnsupportedFormat`] for one
    /// written by a newer version; [`Error::Corruption`] with file and offset; [`Error::DiskFull`];
    /// [`Error::Io`]; [`Error::Poisoned`] if the new log cannot be synced: open again.
    pub fn open(self) -> Result<Db> {
        self.options.validate()?;
        Db::open_with(&self.path, self.options)
    }

    /// Opens the database to read it as it is now, also while another process, or this one, has it open for
    /// writing. Nothing is written, created, renamed or removed, and no lock is taken or asked for: any
    /// number may do this at once, in a directory that cannot be written to as well. See [`ReadOnlyDb`] for
    /// what it then shows, and for how long.
    ///
    /// Reads what [`open`](Self::open) reads, the manifest twice: the logs that are not flushed are
    /// replayed into memory. If a writer changes too much in between, it begins again, up to 20 times with
    /// short rests. Of the options, those about reading matter: `env`, `cache_bytes`, `key_map_bytes`,
    /// `hash_runs`, `max_open_files`, `recovery`; and `write_buffer_bytes` and `background` in so far
    /// as that the logs are replayed in two threads, and the key map filled by another, unless it is
    /// [`Background::Manual`].
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`]; [`Error::NotADatabase`] if there is none, whatever
    /// [`create_if_missing`](Self::create_if_missing) says; [`Error::Outdated`] if a writer was faster each
    /// time: try again; [`Error::UnsupportedFormat`]; [`Error::Corruption`] with file and offset;
    /// [`Error::Io`]. With [`Recovery::Strict`] a writer that is just writing looks like a torn tail.
    pub fn open_read_only(self) -> Result<ReadOnlyDb> {
        self.options.validate()?;
        ReadOnlyDb::open_with(&self.path, self.options)
    }

    /// Reads every byte of a database that is not open and checks it: the manifest, the logs that are
    /// needed and every live segment. Changes nothing, and needs nothing to be sound: it works on
    /// databases that [`open`](Self::open) refuses. `progress` is called with the bytes done and the
    /// bytes in all.
    ///
    /// What the manifest needs and is missing is damage; so is a manifest that cannot be read: then every
    /// segment file in the directory is verified alone. A torn end of the logs, as any crash may leave, is
    /// a notice. Costs and memory as [`Db::verify`]. Of the options only the environment matters. The
    /// directory is locked; where it has no lock file, an empty one is created.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] if the database is open; [`Error::NotADatabase`] if there is none;
    /// [`Error::UnsupportedFormat`] for one that a newer version wrote; [`Error::Io`] if a file cannot
    /// be opened. Damage is in the report.
    pub fn verify(self, progress: &mut dyn FnMut(u64, u64)) -> Result<DatabaseReport> {
        super::verify::verify_closed(&self.path, &self.options.env, progress)
    }

    /// Reads a damaged database and writes a new one at `target`, with everything that can be saved.
    /// The damaged one is not changed. `progress` is called with the bytes read and the bytes in all.
    ///
    /// Saved are the newest versions of all keys: of each live segment every entry of every sound block, and
    /// every sound record of the logs, those behind damage too. Keyspaces keep their names and options;
    /// clears, removals and deletes of ranges are heeded. Merge operands are saved as they are, which needs
    /// no operator, and with what expires goes when it does. Where a lost block may have hidden an older
    /// value, or hidden it by a removal, or held what operands were merged into, what there is is kept, and
    /// the report says of how many keys this is so. If the manifest cannot be read, all segment files are
    /// taken: then names and options of keyspaces are lost, clears and deletes of ranges are forgotten, keys
    /// that were removed may be back, and operands may be merged twice.
    ///
    /// `target` must not exist, or be an empty directory. It is synced and closed when this returns. Until
    /// then it has a file `UNFINISHED` and no manifest, and cannot be opened: so it is after an error or a
    /// crash, and then to be removed by hand. The new database is written with the options of this builder.
    /// Costs a read of the damaged database and a write of the new one, and memory for what is in the
    /// logs. The directory is locked; where it has no lock file, an empty one is created.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`]; [`Error::Locked`] if the database is open; [`Error::NotADatabase`] if
    /// there is none; [`Error::NotEmpty`] if the target holds anything; [`Error::UnsupportedFormat`] if a newer version, or
    /// a build with a codec that is missing here, wrote it; [`Error::Io`] if a file cannot be opened, or
    /// the target cannot be written. Damage is in the report.
    pub fn repair_into(
        self,
        target: impl AsRef<Path>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<RepairReport> {
        self.options.validate()?;
        super::repair::repair(&self.path, &self.options, target.as_ref(), progress)
    }
}

impl Options {
    /// Whether the default keyspace may lack its operator: a tool can do without, since there are other
    /// keyspaces, and more to look at than values.
    pub(super) fn does_without_operator(&self) -> bool {
        self.ready_made_operators && self.keyspace.changes_nothing()
    }

    pub(crate) fn bloom_bits(&self) -> u8 {
        self.bloom_bits_per_key.unwrap_or(if self.hash_runs { 0 } else { 10 })
    }

    /// What point reads record how long they took, if they do: a part for each stripe of threads.
    pub(super) fn read_times(&self) -> Option<Box<[Tally]>> {
        self.read_histograms.then(|| (0..STRIPES).map(|_| Tally::default()).collect())
    }

    pub(crate) fn key_map(&self) -> MapOptions {
        MapOptions {
            budget_bytes: if self.hash_runs { self.key_map_bytes } else { 0 },
            fingerprint_bits: self.key_map_fingerprint_bits,
        }
    }

    fn runs_per_level(&self) -> usize {
        let usual = match self.compaction {
            Compaction::Lazy => 16,
            Compaction::Leveled => 4,
            Compaction::Tiered | Compaction::Fifo { .. } => 8,
        };
        self.level0_runs.unwrap_or(usual)
    }

    /// Whether the strategy ever merges anything.
    pub(crate) fn merges(&self) -> bool {
        !matches!(self.compaction, Compaction::Fifo { .. })
    }

    /// The strategy that the options ask for.
    pub(crate) fn strategy(&self) -> Box<dyn Strategy> {
        let (runs, segment_bytes) = (self.runs_per_level(), self.segment_bytes);
        match self.compaction {
            Compaction::Lazy => Box::new(LazyLeveling {
                runs,
                segment_bytes,
                alpha_busy: ALPHA_BUSY,
                alpha_calm: ALPHA_CALM,
            }),
            Compaction::Leveled => {
                Box::new(Leveled { level0_runs: runs, level1_bytes: self.level1_bytes, ratio: 10 })
            }
            Compaction::Tiered => Box::new(Tiered { runs, segment_bytes }),
            Compaction::Fifo { max_bytes, max_age } => Box::new(Fifo { max_bytes, max_age }),
        }
    }

    fn validate(&self) -> Result<()> {
        fn check(ok: bool, option: &'static str, reason: &str) -> Result<()> {
            if ok { Ok(()) } else { Err(Error::InvalidOption { option, reason: reason.into() }) }
        }
        check(
            // All that there is, where memory is addressed with 32 bits.
            (64 << 10..=4 << 30).contains(&(self.write_buffer_bytes as u64)),
            "write_buffer_bytes",
            "must be from 64 KiB to 4 GiB",
        )?;
        check((2..=64).contains(&self.write_buffers), "write_buffers", "must be from 2 to 64")?;
        check(self.bloom_bits() <= 64, "bloom_bits_per_key", "must be at most 64")?;
        check(self.max_open_files >= 8, "max_open_files", "must be at least 8")?;
        check(
            (64 << 10..=240 << 20).contains(&self.segment_bytes),
            "segment_bytes",
            "must be from 64 KiB to 240 MiB",
        )?;
        check((1..=64).contains(&self.runs_per_level()), "level0_runs", "must be from 1 to 64")?;
        if let Compaction::Fifo { max_bytes, .. } = self.compaction {
            check(max_bytes > 0, "compaction", "a FIFO without room for anything keeps nothing")?;
        }
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
