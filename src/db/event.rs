//! What a database tells a listener about. How it gets there is in `listener`.

use crate::error::Error;
use crate::types::SegmentId;
use std::time::Duration;

/// Hears of what a database does. Set by [`Builder::listener`](crate::Builder::listener).
///
/// It is called with one event after another, never with two at a time, and with nothing of the
/// database held: it may call the database and wait for it. While it runs, events wait, but the
/// database does not. It runs on a thread of its own, soon after what it hears of happened. With
/// [`Background::Manual`](crate::Background::Manual) it runs on the thread of a caller instead: of
/// `open`, `step`, `flush`, `compact_range`, `wait_idle`, `fill_key_map`, `sync`, a synced write, a load
/// or `close`, just before that returns; events from within a listener's own calls come when it has
/// returned.
///
/// Each event that begins something is followed by one that ends it, whatever happens, with the same
/// job number. If so many [`Event::WriteStall`] wait that a thousand are not yet heard of, further ones
/// are left out, and counted in [`Stats::events_left_out`](crate::Stats::events_left_out); no others
/// are. A call that panics is counted in [`Stats::callback_panics`](crate::Stats::callback_panics) and
/// logged, and the next event comes all the same.
///
/// Closing the database, or dropping its last handle, waits until it has heard everything; then the
/// database lets go of it. A listener that keeps a handle of the database keeps it open, until
/// [`Db::close`](crate::Db::close).
///
/// Every `Fn(&Event)` is one:
///
/// ```
/// use ashlardb::{Db, Event};
/// use std::sync::Arc;
///
/// # fn main() -> ashlardb::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// let listener = |event: &Event| {
///     if let Event::CompactionEnd { compaction, bytes_written, duration, .. } = event {
///         println!("{}: {bytes_written} bytes in {duration:?}", compaction.keyspace);
///     }
/// };
/// let db = Db::builder(dir.path().join("db")).listener(Arc::new(listener)).open()?;
/// # db.close()
/// # }
/// ```
pub trait EventListener: Send + Sync + 'static {
    /// Hears of an event.
    fn on_event(&self, event: &Event);
}

impl<F: Fn(&Event) + Send + Sync + 'static> EventListener for F {
    fn on_event(&self, event: &Event) {
        self(event);
    }
}

/// Something that a database did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// The database was opened, and what a crash left was recovered: the first event.
    #[non_exhaustive]
    RecoveryDone {
        /// What was read.
        recovery: RecoveryInfo,
        /// What was found that was not as it should be and could be dealt with.
        notices: Vec<String>,
        /// How long opening took.
        duration: Duration,
    },
    /// A memtable is about to be written out.
    FlushBegin(FlushInfo),
    /// That is over.
    #[non_exhaustive]
    FlushEnd {
        /// As in [`Event::FlushBegin`].
        flush: FlushInfo,
        /// The new segments.
        outputs: Vec<SegmentId>,
        /// The bytes written to them.
        bytes_written: u64,
        /// How long it took.
        duration: Duration,
        /// Why it failed, if it did; it is tried again. [`Error::Closed`] if the database was closed
        /// meanwhile.
        error: Option<Error>,
    },
    /// Segments are about to be replaced.
    CompactionBegin(CompactionInfo),
    /// That is over.
    #[non_exhaustive]
    CompactionEnd {
        /// As in [`Event::CompactionBegin`].
        compaction: CompactionInfo,
        /// The segments in their place; the same ones if they only moved.
        outputs: Vec<SegmentId>,
        /// The bytes written to them.
        bytes_written: u64,
        /// The entries read.
        entries_in: u64,
        /// Those of them that were kept.
        entries_out: u64,
        /// How long it took.
        duration: Duration,
        /// Why it failed, if it did: then nothing was replaced. [`Error::Closed`] if the database
        /// was closed meanwhile. With [`Error::MergeFailed`] the job is done, and operands that a merge
        /// operator failed on stay as they are; with [`Error::FilterFailed`], values that were to be filtered; with
        /// [`Error::Corruption`] of a value segment, the values in it that are damaged.
        error: Option<Error>,
    },
    /// Entries of [files](crate::Keyspace::ingest), or [sorted](crate::Keyspace::bulk_load) ones, are in
    /// segments and about to become part of a keyspace.
    LoadBegin(LoadInfo),
    /// That is over.
    #[non_exhaustive]
    LoadEnd {
        /// As in [`Event::LoadBegin`].
        load: LoadInfo,
        /// How long it took, without the writing of the segments.
        duration: Duration,
        /// Why it failed, if it did: then nothing was loaded, and the segments go.
        error: Option<Error>,
    },
    /// A write was held back because background work is behind. Told when the wait is over.
    #[non_exhaustive]
    WriteStall {
        /// How long.
        delay: Duration,
        /// What it waited for.
        cause: StallCause,
    },
    /// Writes are refused from now on with [`Error::Poisoned`]: open the database again.
    #[non_exhaustive]
    Poisoned {
        /// Why.
        reason: String,
    },
    /// A compaction found a segment damaged; it is left alone from now on. `verify` tells more.
    #[non_exhaustive]
    SegmentQuarantined {
        /// Which one.
        segment: SegmentId,
        /// The damage.
        error: Error,
    },
}

/// What opening a database read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryInfo {
    /// Live segments.
    pub segments: u64,
    /// Logs that were replayed.
    pub logs: u64,
    /// Records in them.
    pub records: u64,
    /// The bytes of these.
    pub log_bytes: u64,
    /// Operations in them that were not in segments yet.
    pub operations: u64,
}

/// A flush.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlushInfo {
    /// Its number, of flushes, compactions and loads together, since the database was opened.
    pub job: u64,
    /// The entries of the memtable.
    pub entries: u64,
    /// The memory that it takes, in bytes.
    pub memory_bytes: u64,
}

/// A compaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompactionInfo {
    /// Its number, of flushes, compactions and loads together, since the database was opened.
    pub job: u64,
    /// The name of the keyspace.
    pub keyspace: String,
    /// Why it is done.
    pub reason: CompactionReason,
    /// What is done.
    pub action: CompactionAction,
    /// The level that the segments go to; where they are, if they are dropped.
    pub level: usize,
    /// The segments that are replaced.
    pub inputs: Vec<SegmentId>,
    /// The length of their files, in bytes.
    pub bytes: u64,
}

/// A load of files or of sorted entries.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadInfo {
    /// Its number, of flushes, compactions and loads together, since the database was opened.
    pub job: u64,
    /// The name of the keyspace.
    pub keyspace: String,
    /// How many entries it has.
    pub entries: u64,
    /// The new segments.
    pub segments: Vec<SegmentId>,
    /// The length of their files, in bytes.
    pub bytes: u64,
}

/// Why segments are compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CompactionReason {
    /// The strategy says that it is due.
    Due,
    /// There is time to tidy up.
    Idle,
    /// Somebody called `compact_range`.
    Asked,
    /// Nobody sees any more what the segments hold: it was cleared, deleted with its range, or has
    /// expired.
    Spent,
    /// Little of a value segment is still referred to: that moves out of it.
    Unreferenced,
}

/// What is done with a compaction's inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CompactionAction {
    /// They are merged into new segments.
    Merge,
    /// They are given to another level as they are.
    Move,
    /// They go.
    Drop,
}

/// What a write waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StallCause {
    /// Nothing: it was slowed down, so that flushes and compactions keep up.
    Behind,
    /// The end of a flush, since every write buffer was full.
    BuffersFull,
}

#[cfg(test)]
#[path = "event_tests.rs"]
pub(super) mod tests;
