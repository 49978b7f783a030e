//! Opening to read, beside a writer that goes on.
//!
//! What is there is read by the same code as at any opening, which changes nothing before everything was
//! found sound; and here nothing is changed after that either. Segments and value segments stay open, so that
//! it does not matter when the writer removes them; logs are in memtables when opening ends.
//!
//! A writer may be at work between any two calls. Files never change but at their end, and are removed
//! only after an edit of the manifest that does not need them, so whatever it does comes out as an error
//! (a file is missing, a chain has a gap, a record is half there), and never twice the same. So: begin
//! again after an error, and believe one that comes twice, word for word.
//!
//! One thing need not show: keyspaces are created, dropped and cleared, and take in files and sorted
//! entries, in the manifest, between operations in the logs. Witnesses in the logs tell of most of that;
//! but they are optional. So the manifest is read again at the end. If no edit since the first reading was
//! of that kind, all operations that were read belong to the keyspaces that were read, and nothing is
//! missing between them: a state that there was.

use super::keyspace_core::KeyspaceCore;
use super::keyspace_options::KeyspaceOptions;
use super::listener::Events;
use super::log_shelf::LogShelf;
use super::open::{Loaded, Parts, Recovered, load, segment_home};
use super::options::{Background, Options};
use super::read::{ReadFrom, forward_reads};
use super::refill::Memtables;
use super::stats::Stats;
use super::{ChangeIter, Handle, Inner, SegmentSummary};
use crate::error::{Error, Result};
use crate::sync::atomic;
use crate::sync::{Arc, Mutex};
use crate::types::{KeyspaceId, LogId, SeqNo};
use crate::version::{MANIFEST_NAME, Manifest};
use crate::vfs::{Env, ReadOnlyVfs};
use crate::wal::{LogWriter, Recovery, feed_logs};
use std::cmp::Ordering;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::time::Duration;

/// How often opening is tried while a writer changes what is being read.
const TRIES: u32 = 20;

/// A database that is open for reading only: see
/// [`Builder::open_read_only`](crate::Builder::open_read_only). Cheap to clone, `Send + Sync`.
///
/// It shows one state for as long as it lives: what opening the database would have recovered if the writer
/// had died at some moment while this was opened. That is a prefix of the writer's commits, batches whole,
/// with everything that was acknowledged before, and perhaps what was just being committed; of what is not
/// durable yet, a loss of power may still take the end away. [`reopen`](Self::reopen) gives a newer state.
///
/// The writer is not held up, and goes on removing files. Those that are needed here stay open, up to
/// [`max_open_files`](crate::Builder::max_open_files) of them, and can be read although they are removed
/// (their room on the disk comes free when this is dropped). Beyond that number, files are closed and opened
/// again: if one is gone then, the read fails with [`Error::Outdated`], and it is time to
/// [`reopen`](Self::reopen). No read ever gives another answer than that of the state.
#[derive(Clone, Debug)]
pub struct ReadOnlyDb {
    default: ReadOnlyKeyspace,
    /// The oldest log that was needed, and the newest with its end.
    logs: (LogId, (LogId, u64)),
}

/// A keyspace of a [`ReadOnlyDb`]. Cheap to clone, `Send + Sync`.
#[derive(Clone)]
pub struct ReadOnlyKeyspace {
    handle: Arc<Handle>,
    core: Arc<KeyspaceCore>,
}

impl std::fmt::Debug for ReadOnlyKeyspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadOnlyKeyspace").field("name", &self.core.name).finish_non_exhaustive()
    }
}

impl ReadOnlyDb {
    pub(super) fn open_with(dir: &Path, options: Options) -> Result<ReadOnlyDb> {
        let span = tracing::info_span!("open to read", dir = %dir.display());
        let _entered = span.enter();
        let (inner, logs) = read_in_peace(dir, &options)?;
        let inner = Arc::new(inner);
        let handle = Handle { inner: Arc::clone(&inner), threads: Mutex::new(Vec::new()) };
        if options.background != Background::Manual {
            handle.threads.lock().extend(inner.start_map_thread()?);
        }
        let (core, options) = (Arc::clone(&inner.default_core), &inner.options);
        match equip(&inner, &core, &options.keyspace) {
            Err(Error::MergeOperator { .. }) if options.does_without_operator() => {}
            equipped => equipped?,
        }
        Ok(ReadOnlyDb { default: ReadOnlyKeyspace { handle: Arc::new(handle), core }, logs })
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.default.handle.inner
    }

    /// The database as it is now, with the same options. This one goes on showing what it does. Costs as
    /// much as opening.
    ///
    /// # Errors
    ///
    /// Those of [`Builder::open_read_only`](crate::Builder::open_read_only).
    pub fn reopen(&self) -> Result<ReadOnlyDb> {
        let inner = self.inner();
        ReadOnlyDb::open_with(&inner.home.dir, inner.options.clone())
    }

    /// The sequence number of the last operation that it shows.
    #[must_use]
    pub fn seqno(&self) -> SeqNo {
        SeqNo(self.inner().visible.load(atomic::Ordering::Acquire))
    }

    /// A keyspace, which was written without a merge operator or was opened here with it. Costs no I/O.
    ///
    /// # Errors
    ///
    /// [`Error::KeyspaceNotFound`] if none has this name; [`Error::MergeOperator`] if it needs its operator.
    pub fn keyspace(&self, name: &str) -> Result<ReadOnlyKeyspace> {
        self.keyspace_with(name, &KeyspaceOptions::default())
    }

    /// A keyspace, with its merge operator. A time to live changes nothing here. Costs no I/O.
    ///
    /// # Errors
    ///
    /// [`Error::KeyspaceNotFound`] if none has this name; [`Error::MergeOperator`] if it needs an operator,
    /// or another one.
    pub fn keyspace_with(&self, name: &str, options: &KeyspaceOptions) -> Result<ReadOnlyKeyspace> {
        let core = self.inner().known_keyspace(name)?;
        equip(self.inner(), &core, options)?;
        Ok(ReadOnlyKeyspace { handle: Arc::clone(&self.default.handle), core })
    }

    /// The names of all keyspaces, in order.
    #[must_use]
    pub fn keyspaces(&self) -> Vec<String> {
        let mut names: Vec<String> = self.inner().keyspaces.lock().keys().cloned().collect();
        names.sort();
        names
    }

    /// About how many bytes a range takes on disk. See
    /// [`Keyspace::approximate_size`](crate::Keyspace::approximate_size).
    ///
    /// # Errors
    ///
    /// See [`ReadOnlyKeyspace::approximate_size`].
    pub fn approximate_size<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<u64> {
        self.default.approximate_size(range)
    }

    /// Brings the key map into memory and waits for it. See [`Db::fill_key_map`](crate::Db::fill_key_map).
    /// Where a hash run cannot be read, its keys are looked for without the map.
    pub fn fill_key_map(&self) {
        let inner = self.inner();
        let mut most = 0;
        while inner.fill_map() {
            inner.report_key_map(&mut most);
        }
        inner.report_key_map(&mut most);
    }

    /// Sizes, shapes and counts. What is counted about writing is zero. Costs a walk over the list of
    /// segments.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.inner().stats()
    }

    /// Every live segment. See [`Db::segments`](crate::Db::segments).
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentSummary> {
        self.inner().segments()
    }

    /// The committed batches that come after a sequence number, up to the state that this shows: see
    /// [`Db::changes_since`](crate::Db::changes_since). What comes later, [`reopen`](Self::reopen) shows. So
    /// a process without the writer's handle can follow it.
    ///
    /// Costs opening each log that is kept. The logs are not held open: the writer may remove one before it
    /// is read.
    ///
    /// # Errors
    ///
    /// As for [`Db::changes_since`](crate::Db::changes_since), but for the option, which only the
    /// writer needs.
    pub fn changes_since(&self, seqno: SeqNo) -> Result<ChangeIter> {
        let (inner, (floor, newest)) = (self.inner(), self.logs);
        let home = &inner.home;
        let found = feed_logs(&home.env, &home.dir, inner.log_salt, newest, floor, u64::MAX);
        ChangeIter::new(inner, Arc::new(LogShelf::new(u64::MAX, found)), seqno)
    }

    fn read_from(&self) -> ReadFrom<'_> {
        self.default.read_from()
    }

    forward_reads!();
}

impl ReadOnlyKeyspace {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Its id: never reused, not even after the keyspace was dropped.
    #[must_use]
    pub fn id(&self) -> KeyspaceId {
        self.core.id
    }

    /// About how many bytes of segment files the keys of a range take: the blocks that can hold
    /// them, whole. Memtables do not count. Costs one index search for each end and segment.
    ///
    /// # Errors
    ///
    /// [`Error::Corruption`], [`Error::Io`] and [`Error::Outdated`] from reading an index.
    pub fn approximate_size<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> Result<u64> {
        fn bound<K: AsRef<[u8]>>(b: Bound<&K>) -> Bound<&[u8]> {
            b.map(|key| key.as_ref())
        }
        let inner = &self.handle.inner;
        inner.approximate_size(&self.core, bound(range.start_bound()), bound(range.end_bound()))
    }

    fn read_from(&self) -> ReadFrom<'_> {
        ReadFrom { inner: &self.handle.inner, core: &self.core, snapshot: None }
    }

    forward_reads!();
}

/// Gives a keyspace the operator that it needs to be read.
fn equip(inner: &Inner, core: &KeyspaceCore, options: &KeyspaceOptions) -> Result<()> {
    let settings = core.settings();
    options.settings(&core.name, settings.clone())?;
    let ready_made = inner.options.ready_made_operators;
    core.give_operator(options.operator(Some(core), &core.name, &settings, ready_made)?);
    Ok(())
}

impl Inner {
    fn known_keyspace(&self, name: &str) -> Result<Arc<KeyspaceCore>> {
        let known = self.keyspaces.lock().get(name).cloned();
        known.ok_or_else(|| Error::KeyspaceNotFound { name: name.to_owned() })
    }
}

type LogEnds = (LogId, (LogId, u64));

/// Reads a database until no writer came in between. See the module's text.
fn read_in_peace(dir: &Path, options: &Options) -> Result<(Inner, LogEnds)> {
    // What a writer does must not be taken for damage that is to be put up with.
    let mut recovery = match options.recovery {
        Recovery::PointInTime => Recovery::TolerateTornTail,
        other => other,
    };
    let mut last: Option<Error> = None;
    let mut pause = Duration::from_millis(1);
    for _ in 0..TRIES {
        match read_once(dir, options, recovery) {
            Ok(Some(read)) => return Ok(read),
            Ok(None) => last = None,
            Err(error) => {
                let again = last.as_ref().is_some_and(|last| last.to_string() == error.to_string());
                if !may_come_from_a_writer(&error) || again && recovery == options.recovery {
                    return Err(error);
                }
                if again {
                    recovery = options.recovery;
                }
                last = Some(error);
            }
        }
        options.env.clock.sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    Err(Error::Outdated { path: dir.to_path_buf() })
}

/// Whether an error may be due to what a writer did while files were read.
fn may_come_from_a_writer(error: &Error) -> bool {
    match error {
        Error::Corruption { .. } => true,
        Error::Io { source, .. } => {
            matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
        }
        _ => false,
    }
}

/// Reads a database. Nothing if a writer created, dropped or cleared a keyspace meanwhile.
fn read_once(
    dir: &Path,
    options: &Options,
    recovery: Recovery,
) -> Result<Option<(Inner, LogEnds)>> {
    let vfs = Arc::new(ReadOnlyVfs(Arc::clone(&options.env.vfs)));
    let env = Env { vfs, ..options.env.clone() };
    check_exists(&env, dir)?;
    let home = segment_home(env.clone(), dir, options);
    let with_recovery = Options { recovery, ..options.clone() };
    // Nothing happens that a listener could hear of.
    let events = Events::new(None, true);
    let loaded = load(home, &with_recovery, &events, Manifest::load_to_read(&env, dir)?)?;
    let Loaded { home, unsettled, state, live, read, mut notices } = loaded;
    let (later, now, _) = Manifest::load_to_read(&env, dir)?;
    let goes_on = match now.edit_number.cmp(&state.edit_number) {
        // An edit that could not be written whole was taken back.
        Ordering::Less => false,
        Ordering::Equal => now == state,
        Ordering::Greater => now.uuid == state.uuid && later.last_seen() <= state.edit_number,
    };
    if !goes_on {
        return Ok(None);
    }
    notices.extend(read.notices);
    for notice in &notices {
        tracing::debug!(%notice, "found at open");
    }
    let end = read.replayed.last_log.unwrap_or((state.log_floor, 0));
    // A clear that has its number and is not in the manifest yet: that is a moment before it.
    let clears = state.keyspaces.values().filter_map(|keyspace| keyspace.clears.last());
    let mut last_seqno = read.replayed.last_seqno;
    let in_front = SeqNo(last_seqno.0.saturating_sub(1));
    if read.replayed.ends_in_skip
        && in_front >= state.flushed
        && clears.max().is_none_or(|clear| *clear < last_seqno)
    {
        last_seqno = in_front;
    }
    let Memtables { active, frozen, .. } = read.filler.finish();
    let log = LogWriter::refusing(dir, end, last_seqno);
    let recovered = Recovered { active, frozen, last_seqno, log, notices: Vec::new() };
    home.files.expect_removals();
    let logs = (state.log_floor, end);
    let parts = Parts {
        options: options.clone(),
        home,
        manifest: unsettled.for_reading(),
        state,
        live,
        recovered,
        shelf: LogShelf::new(0, Vec::new()),
        events,
        notices,
        lock: None,
    };
    let inner = parts.assemble();
    // Nobody has a handle to write with; and were there one, nothing would come of it.
    inner.is_poisoned.store(true, atomic::Ordering::Release);
    Ok(Some((inner, logs)))
}

fn check_exists(env: &Env, dir: &Path) -> Result<()> {
    let refuse = |why: &str| {
        let (path, why) = (dir.to_path_buf(), why.to_owned());
        Err(Error::NotADatabase { path, why })
    };
    if !env.vfs.exists(dir).map_err(|error| Error::io("look for", dir, error))? {
        return refuse("there is no such directory");
    }
    let manifest = dir.join(MANIFEST_NAME);
    if !env.vfs.exists(&manifest).map_err(|error| Error::io("look for", &manifest, error))? {
        return refuse("it has no MANIFEST");
    }
    Ok(())
}

#[cfg(all(test, not(loom)))]
#[path = "read_only_tests.rs"]
mod tests;
