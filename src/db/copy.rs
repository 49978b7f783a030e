//! Copies of an open database: the moment that a copy shows, and the checkpoint.
//!
//! ```text
//! flush ── moment ──┬─ live segments ── link, or copy ──┐
//! (no lock held)    └─ memtables ────── write_run ──────┴─ Unfinished::complete
//! ```
//!
//! A copy holds what was published when its moment was taken: under the writer's and the committer's
//! locks, held for as long as it takes to copy the list of segments. Everything else happens outside of
//! them, while writers, flushes and compactions go on. The log is not needed: most is in segments, because
//! a flush comes first, and what was written since is in the memtables, from where it goes into segments
//! of the copy. So a copy begins with an empty log, and it makes no difference how much of the source's log
//! is synced.
//!
//! Invariants: a moment lies between two commit groups, and between two edits of the manifest that users
//! can see, so that batches, clears and keyspaces are in it whole or not at all, and in their order; it
//! keeps its segments' files. The source is only read, but for the flush. Called by `Db`, and by `backup`.

use super::unfinished::{FIRST_LOG, NEXT_LOG, Unfinished};
use super::{Db, Inner, ReadState};
use crate::checksum::FileHash;
use crate::compaction::{Entries, LentEntry, OlderData, Retention, write_run};
use crate::cursor::{Cursor, Seek};
use crate::error::{Error, Result};
use crate::iter::MergeCursor;
use crate::memtable::Memtable;
use crate::segment::{SegmentReader, ValueUse};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::types::{KeyspaceId, SegmentId, SeqNo};
use crate::version::{
    ManifestState, Segment, SegmentHome, SegmentMeta, ValueFile, value_file_name,
};
use crate::vfs::{Env, OpenMode};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

/// How much is copied at a time, in bytes.
const PIECE: usize = 1 << 20;

/// A database at one moment.
pub(super) struct Moment {
    /// What its manifest says, with the logs of a new database, and flushed up to the last operation.
    state: ManifestState,
    live: Vec<Arc<Segment>>,
    /// The memtables, and the runs below them.
    read: Arc<ReadState>,
}

/// What a copy is to hold.
pub(super) struct Content {
    /// What its manifest is to say.
    pub(super) state: ManifestState,
    /// The segments that it shares with the source. Their files stay as long as this does.
    pub(super) live: Vec<Arc<Segment>>,
    /// The segments that were written for it.
    pub(super) tail: Vec<Arc<SegmentMeta>>,
    /// The value segments that those list.
    pub(super) tail_values: Vec<ValueUse>,
}

impl Content {
    /// The value segments that the shared segments list, by id.
    pub(super) fn live_values(&self) -> BTreeMap<SegmentId, &Arc<ValueFile>> {
        let listed = self.live.iter().flat_map(|segment| segment.values());
        listed.map(|(used, file)| (used.id, file)).collect()
    }
}

impl Db {
    /// Makes a copy of the database in the directory `target`, while it is used. `target` must not exist,
    /// or be an empty directory. `progress` is called with the bytes done and the bytes in all.
    ///
    /// The copy shows one moment between the call and the return: everything that was acknowledged before
    /// the call, synced or not, and of what is written meanwhile a prefix, batches whole. It is a database
    /// of its own, synced and closed when this returns, without a log to replay; what is written to one of
    /// the two then does not show in the other. Until then it has a file `UNFINISHED` and no manifest, and
    /// cannot be opened: so it is after an error or a crash, and then to be removed by hand.
    ///
    /// Costs a flush, and a hard link for each segment: on the same file system the two share their files'
    /// space, until compactions replace them, and their fate, if a disk goes bad (for that, there is
    /// [`backup`](Self::backup)). Where there can be no links, the files are copied. Writers are held up
    /// for as long as it takes to copy the list of segments. Damage to segments is not looked for; it is
    /// in the copy as well.
    ///
    /// # Errors
    ///
    /// [`Error::NotEmpty`] if the target holds anything, with nothing changed; [`Error::Io`] or
    /// [`Error::DiskFull`] if it cannot be written; the error of a flush that failed; [`Error::Poisoned`],
    /// [`Error::Closed`]. None of them harms this database.
    pub fn checkpoint(
        &self,
        target: impl AsRef<Path>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        self.inner().checkpoint(target.as_ref(), progress)
    }
}

impl Inner {
    /// See [`Db::checkpoint`].
    pub(super) fn checkpoint(
        &self,
        target: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let span = tracing::info_span!("checkpoint", dir = %target.display());
        let _entered = span.enter();
        self.check_writable()?;
        let env = &self.home.env;
        Unfinished::check(env, target)?;
        self.flush()?;
        let moment = self.moment()?;
        let new = Unfinished::create(env, target)?;
        let home = new.home(env, self.options.max_open_files);
        let content = self.write_tail(moment, &home)?;
        let segments = content
            .live
            .iter()
            .map(|segment| (segment.path(), home.path(segment.meta.id), segment.meta.file_len));
        let values = content.live_values().into_iter().map(|(id, file)| {
            (file.path(), target.join(value_file_name(id)), file.identity().file_len)
        });
        let files: Vec<_> = segments.chain(values).collect();
        let mut done: u64 = content.tail.iter().map(|meta| meta.file_len).sum();
        done += content.tail_values.iter().map(|used| used.file_len).sum::<u64>();
        let total = done + files.iter().map(|(.., len)| len).sum::<u64>();
        progress(done, total);
        for (from, to, len) in &files {
            self.check_open()?;
            link_or_copy(env, from, to, *len, &mut |bytes| progress(done + bytes, total))?;
            done += len;
            progress(done, total);
        }
        new.complete(env, &content.state)
    }

    /// This moment.
    pub(super) fn moment(&self) -> Result<Moment> {
        // No group is committed meanwhile, no keyspace created, dropped or cleared,
        let _writer = self.writer.lock();
        self.check_writable()?;
        // and no flush or compaction changes where what was committed is.
        let committer = self.committer.lock();
        let mut state = committer.state.clone();
        state.flushed = SeqNo(self.visible.load(Ordering::Acquire));
        (state.log_floor, state.next_log) = (FIRST_LOG, NEXT_LOG);
        let live = state.segments.keys().map(|id| Arc::clone(&committer.live[id])).collect();
        Ok(Moment { state, live, read: self.state.load_full() })
    }

    /// Writes what a moment has in memtables only into new segments, each synced, which are the newest run
    /// of the top level.
    pub(super) fn write_tail(&self, moment: Moment, home: &SegmentHome) -> Result<Content> {
        let Moment { mut state, live, read } = moment;
        let last = state.flushed;
        let tables: Vec<&Arc<dyn Memtable>> = read.memtables().map(|slot| &slot.table).collect();
        let keyspaces: BTreeSet<KeyspaceId> =
            tables.iter().flat_map(|table| table.keyspaces()).collect();
        let (_, expired_by) = self.boundaries();
        let mut written = Vec::new();
        for id in keyspaces {
            // Of one that was dropped there may be entries, but no tree.
            let Some(tree) = read.version.trees.get(&id) else { continue };
            let cursors = tables.iter().map(|table| Arc::clone(table).cursor(id)).collect();
            let mut entries = UpTo { cursor: MergeCursor::new(cursors), last };
            let mut deletes = Arc::clone(&tree.deletes);
            for own in tables.iter().rev().filter_map(|table| table.range_deletes(id)) {
                for (seqno, span) in own.iter().filter(|(seqno, _)| *seqno <= last) {
                    Arc::make_mut(&mut deletes).add(seqno, span.clone());
                }
            }
            if let Some(keyspace) = state.keyspaces.get_mut(&id) {
                keyspace.deletes = Arc::clone(&deletes);
            }
            let (clears, operator) = (tree.clears.clone(), self.operator_of(id));
            let spec = self.output_spec(tree, 0, last, &deletes);
            let (boundaries, filter) = (vec![last], None);
            let retention = Retention { boundaries, clears, deletes, expired_by, operator, filter };
            let older = OlderData::new(tree.runs().map(|run| run.segments.clone()));
            let next_id = || self.ids.next_segment();
            let stop = |_| self.stopping();
            let output = write_run(home, &mut entries, &retention, older, &spec, &next_id, &stop)?;
            if let Some(error) = output.failure {
                // Operands are copied as they are; whoever reads them gets the error.
                tracing::error!(%error, "a copy leaves operands unmerged");
            }
            written.extend(output.segments);
        }
        let run = state.next_run;
        state.next_run.0 += u64::from(!written.is_empty());
        let mut tail = Vec::with_capacity(written.len());
        let mut tail_values = BTreeMap::new();
        for meta in written {
            let meta = Arc::new(SegmentMeta { run, ..SegmentMeta::clone(&meta) });
            if !home.values.settle(meta.id).is_empty() {
                let reader = SegmentReader::open_in(&home.env, home.path(meta.id))?;
                let uses = reader.properties().value_segments.iter();
                tail_values.extend(uses.map(|used| (used.id, *used)));
            }
            state.next_segment = state.next_segment.max(SegmentId(meta.id.0 + 1));
            state.segments.insert(meta.id, Arc::clone(&meta));
            tail.push(meta);
        }
        if let Some((last, _)) = tail_values.last_key_value() {
            state.next_segment = state.next_segment.max(SegmentId(last.0 + 1));
        }
        let tail_values = tail_values.into_values().collect();
        Ok(Content { state, live, tail, tail_values })
    }
}

/// The entries up to an operation. What is added to a memtable meanwhile is behind that.
struct UpTo {
    cursor: MergeCursor,
    last: SeqNo,
}

impl UpTo {
    fn settle(&mut self) -> Result<()> {
        while self.cursor.valid() && self.cursor.seqno() > self.last {
            Cursor::next(&mut self.cursor)?;
        }
        Ok(())
    }
}

impl Entries for UpTo {
    fn first(&mut self) -> Result<()> {
        self.cursor.seek(Seek::First)?;
        self.settle()
    }

    fn next(&mut self) -> Result<()> {
        Cursor::next(&mut self.cursor)?;
        self.settle()
    }

    fn entry(&self) -> Option<LentEntry<'_>> {
        Entries::entry(&self.cursor)
    }
}

/// Puts a file of this length under another name: as a link, or where there can be none as a copy, synced.
fn link_or_copy(
    env: &Env,
    from: &Path,
    to: &Path,
    len: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    match env.vfs.hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(error) if cannot_link(&error) => copy_file(env, from, to, len, progress).map(drop),
        Err(error) => Err(Error::io("link", to, error)),
    }
}

/// Whether an error says that these two names cannot be those of one file: on another device, on a file
/// system without links, or on one that has or allows no more of them.
fn cannot_link(error: &io::Error) -> bool {
    use io::ErrorKind::{CrossesDevices, PermissionDenied, TooManyLinks, Unsupported};
    matches!(error.kind(), CrossesDevices | PermissionDenied | TooManyLinks | Unsupported)
}

/// Copies a file of this length to where nothing is, syncs the copy, and gives the file's hash.
/// `progress` is called with the bytes copied.
pub(super) fn copy_file(
    env: &Env,
    from: &Path,
    to: &Path,
    len: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<u64> {
    let new =
        env.vfs.open(to, OpenMode::CreateNew).map_err(|error| Error::io("create", to, error))?;
    let hash = read_file(env, from, len, &mut |at, bytes| {
        new.write_all_at(bytes, at).map_err(|error| Error::io("write", to, error))?;
        progress(at + bytes.len() as u64);
        Ok(())
    })?;
    new.sync_data().map_err(|error| Error::io("sync", to, error))?;
    Ok(hash)
}

/// Reads a file of this length piece by piece, and gives its hash. `sink` gets each piece and where it
/// begins.
///
/// # Errors
/// [`Error::Corruption`] if it is missing or has another length; [`Error::Io`]; what `sink` gives.
pub(super) fn read_file(
    env: &Env,
    path: &Path,
    len: u64,
    sink: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<u64> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Error::corruption(path, 0, "it is needed, and it is missing"),
        io::ErrorKind::UnexpectedEof => Error::corruption(path, 0, "it was cut while it was read"),
        _ => Error::io("read", path, error),
    };
    let file = env.vfs.open(path, OpenMode::Read).map_err(failed)?;
    let found = file.len().map_err(failed)?;
    if found != len {
        let what = format!("it has {found} bytes, and should have {len}");
        return Err(Error::corruption(path, 0, what));
    }
    let mut hash = FileHash::default();
    let mut buffer = vec![0; PIECE.min(usize::try_from(len).unwrap_or(PIECE))];
    let mut at = 0;
    while at < len {
        let n = usize::try_from(len - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        let Some(piece) = buffer.get_mut(..n) else { break };
        file.read_exact_at(piece, at).map_err(failed)?;
        hash.add(piece);
        sink(at, piece)?;
        at += n as u64;
    }
    Ok(hash.value())
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
pub(super) mod tests;
