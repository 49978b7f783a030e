//! AshlarDB: an embedded, ordered key-value engine of sorted segments.
//!
//! ```
//! use ashlardb::{Db, WriteBatch};
//!
//! # fn main() -> ashlardb::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! let db = Db::open(dir.path().join("db"))?;
//! db.put("apple", "red")?;
//! db.put("banana", "yellow")?;
//! assert_eq!(db.get("apple")?.unwrap(), b"red");
//!
//! let mut batch = WriteBatch::new();
//! batch.delete("apple").put("cherry", "red");
//! db.write(batch)?;
//!
//! let keys: Vec<_> = db.get_range("b"..).map(|entry| entry.map(|(key, _)| key)).collect::<Result<_, _>>()?;
//! assert_eq!(keys, ["banana", "cherry"]);
//! db.close()
//! # }
//! ```
//!
//! [`Db`] is the database: cheap to clone, shared between threads. [`Keyspace`]s are separate sets of
//! keys in it, [`Snapshot`]s hold a moment, [`Transaction`]s read and write as if they were alone,
//! [`RangeIter`]s walk a range from either end. A [`ReadOnlyDb`] reads beside a writer in another process, a
//! [`ChangeIter`] follows what is committed. Writes go
//! to a log and a memtable, then in the background into immutable segments, which compaction merges.
//! [`SegmentWriter`] and [`SegmentReader`] use the segment format alone, without a database.
//!
//! What else there is, with examples in [`guide`]: [merge operators](merge) change values without reading them,
//! time to live ([`Db::put_with_ttl`], [`KeyspaceOptions::default_ttl`]) has them expire,
//! [`Db::delete_range`] removes all keys of a range at once, a [compaction filter](filter) drops or changes
//! values by a rule of yours, and [`Db::transact`] runs a function as one [`Transaction`]. Much at a time goes
//! past the log by [`Db::bulk_load`], a [`BulkLoader`] or [`Db::ingest`]; long values can lie
//! [in files of their own](Builder::separate_values_above). [`Db::checkpoint`] and [`Db::backup`] copy a
//! database while it is used, and [`Backups`] restores; [`Db::changes_since`] is a feed of what is committed; an
//! [`EventListener`] hears of background work, and [`Builder::on_progress`] how far long calls are.
//!
//! What is promised about order, atomicity, isolation, durability and damage is in README.md; the
//! files are described to the byte in FORMAT.md. Everything public is `Send + Sync` unless it says
//! otherwise. Nothing here panics because of what is on disk.
//!
//! # Features
//!
//! `lz4` and `zstd` (both default) are the codecs of data blocks; without `zstd` no C is built.
//! `metrics` adds `Db::publish_metrics`, for the facade of the `metrics` crate. `cli` is for the command
//! `ashlar` only.

mod cache;
mod checksum;
mod coding;
mod compaction;
mod compression;
mod cursor;
mod db;
mod deletes;
mod error;
mod flush;
mod hash;
mod iter;
mod keymap;
mod memtable;
mod prefetch;
mod segment;
#[allow(unsafe_code)] // Memory that is cut to pieces and handed out.
mod slab;
mod slice;
mod sync;
mod types;
mod version;
mod wal;

pub mod filter;
pub mod merge;
pub mod vfs;

pub use compression::Compression;
pub use db::{
    Background, BackupInfo, BackupReport, Backups, Builder, BulkLoader, Change, ChangeBatch,
    ChangeIter, ChangedKeyspace, Compaction, CompactionAction, CompactionInfo, CompactionReason,
    DEFAULT_KEYSPACE, DamagedPlace, DatabaseReport, Db, Durability, Event, EventListener,
    FlushInfo, Histogram, Histograms, IterOptions, KeyMapStats, Keyspace, KeyspaceOptions,
    KeyspaceStats, LevelStats, LoadInfo, LogReport, LostPlace, MAX_BATCH_BYTES, MAX_KEYSPACE_NAME,
    Progress, ReadOnlyDb, ReadOnlyKeyspace, ReadStats, RecoveryInfo, RepairReport, SavedKeyspace,
    SegmentReport, SegmentSummary, Snapshot, StallCause, Stats, Task, Transaction,
    TransactionOptions, TransactionRange, Uncertainty, ValueSegmentReport, WriteBatch,
};
pub use error::{Error, ErrorKind, Result};
pub use iter::RangeIter;
pub use segment::{
    BlockInfo, Blocks, Damage, Properties, SectionInfo, SegmentInfo, SegmentMetadata,
    SegmentOptions, SegmentRange, SegmentReader, SegmentWriter, ValueUse, VerifyReport,
};
pub use slice::{Key, Value};
pub use types::{KeyspaceId, Kind, MAX_KEY_LEN, MAX_VALUE_LEN, PAGE, SegmentId, SeqNo};
pub use wal::Recovery;

/// Entry points of the fuzz targets: each takes any bytes for a part of the format. Not part of the
/// interface.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::segment::fuzzing::{data_block, segment_bytes, value_bytes};
    pub use crate::version::manifest_bytes;
    pub use crate::wal::wal_bytes;
}

/// The examples in README.md are tests too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

// Files that the guide refers to are not part of this documentation: the first definition counts.
/// [metrics]: https://docs.rs/crate/ashlardb/latest/source/docs/metrics.md
/// [reliability]: https://docs.rs/crate/ashlardb/latest/source/docs/reliability.md
///
#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/guide.md")]
pub mod guide {}
