//! Opening: create or recover, then start the threads.
//!
//! A new database is written (manifest, first log) and then recovered like any other, so that there
//! is one way for a database to come into being. A crash during recovery is just another crash:
//! nothing is removed before all that is needed was read, and what is removed was not needed.

use super::background::BackgroundState;
use super::commit::Writer;
use super::event::{Event, RecoveryInfo};
use super::keyspace::{DEFAULT_KEYSPACE, Keyspace};
use super::keyspace_core::KeyspaceCore;
use super::keyspace_options::give_ready_made;
use super::listener::Events;
use super::log_shelf::LogShelf;
use super::observe::{Recovering, Watch};
use super::options::{Background, Options};
use super::queue::CommitQueue;
use super::refill::{Filler, MAX_REPLAYED_LOGS, Memtables};
use super::snapshot_list::SnapshotList;
use super::syncer::Syncer;
use super::turns::Turns;
use super::verify::len_of;
use super::written::Written;
use super::{Committer, DEFAULT_ID, Db, Handle, Ids, Inner, MemSlot, ReadState};
use crate::cache::{FilePool, SharedCache};
use crate::checksum::uuid_salt;
use crate::error::{Error, Result};
use crate::hash::{key_hash, keyspace_seed};
use crate::keymap::{KeyMap, MapEdit};
use crate::segment::PointIndex;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Arc, ArcSwap, Condvar, Mutex, Striped};
use crate::types::{KeyspaceId, LogId, SegmentId, SeqNo};
use crate::version::{
    Change, Edit, LiveSegments, MANIFEST_NAME, MANIFEST_NEW_NAME, Manifest, ManifestState, RunNo,
    Segment, SegmentHome, Unsettled, Version, parse_segment_file_name, parse_value_file_name,
    remove_leftovers,
};
use crate::vfs::{Env, OpenMode, VfsLock};
use crate::wal::{
    LOG_HEADER_LEN, LogWriter, Recovery, Replayed, feed_logs, log_file_name, parse_log_file_name,
    remove_logs, renew, replay,
};
use std::collections::HashMap;
use std::path::Path;
use tracing::field::Empty;

pub(super) const LOCK_NAME: &str = "LOCK";

impl Db {
    pub(super) fn open_with(dir: &Path, options: Options) -> Result<Db> {
        let lock = lock_directory(dir, &options)?;
        let (inner, background) = recover(dir, options, lock)?;
        let inner = Arc::new(inner);
        let handle =
            Arc::new(Handle { inner: Arc::clone(&inner), threads: Mutex::new(Vec::new()) });
        let _after = inner.events.after();
        inner.events.start(&inner)?;
        if let Background::Threads(compactions) = background {
            *handle.threads.lock() = inner.start_threads(compactions)?;
        }
        let core = match inner.open_keyspace(DEFAULT_KEYSPACE, &inner.options.keyspace) {
            Err(Error::MergeOperator { .. }) if inner.options.does_without_operator() => {
                Arc::clone(&inner.default_core)
            }
            opened => opened?,
        };
        Ok(Db { default: Keyspace { handle, core } })
    }
}

/// Checks that the directory is a database, or may become one, and locks it.
fn lock_directory(dir: &Path, options: &Options) -> Result<Box<dyn VfsLock>> {
    let vfs = &options.env.vfs;
    let not_a_database =
        |why: &str| Error::NotADatabase { path: dir.to_path_buf(), why: why.to_owned() };
    let exists = vfs.exists(dir).map_err(|e| Error::io("look for", dir, e))?;
    if !exists {
        if !options.create_if_missing {
            return Err(not_a_database("there is no such directory"));
        }
        create_dirs(&options.env, dir)?;
    }
    let names = vfs.read_dir(dir).map_err(|e| Error::io("list", dir, e))?;
    if !names.iter().any(|name| name == MANIFEST_NAME) {
        if !options.create_if_missing {
            return Err(not_a_database("it has no MANIFEST"));
        }
        // A creation that was interrupted leaves a lock, the first log with nothing in it and
        // perhaps an unfinished manifest. Anything else is not ours to overwrite.
        for name in &names {
            let path = dir.join(name);
            let is_log = parse_log_file_name(name).is_some();
            if parse_segment_file_name(name).is_some()
                || parse_value_file_name(name).is_some()
                || is_log && file_len(&options.env, &path)? > LOG_HEADER_LEN
            {
                return Err(not_a_database("its MANIFEST is missing, but its data is there"));
            }
            if !is_log && name != LOCK_NAME && name != MANIFEST_NEW_NAME {
                return Err(not_a_database("it is not empty, and not a database"));
            }
        }
    }
    let path = dir.join(LOCK_NAME);
    let lock = vfs.lock(&path).map_err(|e| Error::io("lock", &path, e))?;
    lock.ok_or_else(|| Error::Locked { path: dir.to_path_buf() })
}

/// Creates a directory and the missing ones above it, durably but for the last entry, which
/// `create` syncs.
pub(super) fn create_dirs(env: &Env, dir: &Path) -> Result<()> {
    let mut missing = Vec::new();
    for ancestor in dir.ancestors().skip(1).filter(|a| !a.as_os_str().is_empty()) {
        if env.vfs.exists(ancestor).map_err(|e| Error::io("look for", ancestor, e))? {
            break;
        }
        missing.push(ancestor);
    }
    env.vfs.create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    for parent in missing.iter().filter_map(|created| created.parent()) {
        env.vfs.sync_dir(parent).map_err(|e| Error::io("sync", parent, e))?;
    }
    Ok(())
}

fn file_len(env: &Env, path: &Path) -> Result<u64> {
    let file = env.vfs.open(path, OpenMode::Read).map_err(|e| Error::io("open", path, e))?;
    file.len().map_err(|e| Error::io("read", path, e))
}

/// Takes back clears that are newer than the end of the logs, after a point-in-time recovery: the
/// numbers that they hide will be given out again.
fn undo_clears(
    last_seqno: SeqNo,
    manifest: &mut Manifest,
    state: &mut ManifestState,
) -> Result<Vec<String>> {
    let mut changes = Vec::new();
    let mut notices = Vec::new();
    for (id, keyspace) in &state.keyspaces {
        let Some(newest) = keyspace.clears.last().filter(|clear| **clear > last_seqno) else {
            continue;
        };
        changes.push(Change::ForgetClears { id: *id, seqno: *newest });
        let before = keyspace.clears.iter().filter(|clear| **clear <= last_seqno);
        changes.extend(before.map(|seqno| Change::Clear { id: *id, seqno: *seqno }));
        let name = &keyspace.name;
        notices.push(format!("undid a clear of keyspace {name:?}: it lies past the damage"));
    }
    if !changes.is_empty() {
        manifest.commit(state, &Edit { changes })?;
    }
    Ok(notices)
}

/// Writes the files of an empty database. The manifest comes last: with it, the database exists.
fn create(env: &Env, dir: &Path) -> Result<()> {
    remove_leftovers(env, dir, |name| {
        parse_log_file_name(name).is_some() || name == MANIFEST_NEW_NAME
    })?;
    let first = LogId(1);
    let uuid = env.uuid();
    LogWriter::create(env, dir, uuid_salt(&uuid), first, None, SeqNo::ZERO)?;
    let changes = vec![
        Change::CreateKeyspace { id: DEFAULT_ID, name: DEFAULT_KEYSPACE.to_owned() },
        Change::LogFloor(first),
        Change::Next {
            segment: SegmentId(1),
            log: LogId(2),
            keyspace: KeyspaceId(1),
            run: RunNo(1),
        },
    ];
    // A database whose directory can vanish must not begin to exist.
    if let Some(parent) = dir.parent() {
        env.vfs.sync_dir(parent).map_err(|e| Error::io("sync", parent, e))?;
    }
    Manifest::create(env, dir, uuid, env.entropy.next_u64(), &Edit { changes })?;
    Ok(())
}

/// What replaying the logs gave, before anything was changed. Some of it may still be on its way into
/// the memtables.
pub(super) struct Read {
    pub(super) filler: Filler,
    pub(super) replayed: Replayed,
    /// How many operations are on that way.
    pub(super) operations: u64,
    pub(super) notices: Vec<String>,
}

/// Everything that opening reads. All of it was found sound, and nothing was changed.
pub(super) struct Loaded {
    pub(super) home: SegmentHome,
    pub(super) unsettled: Unsettled,
    pub(super) state: ManifestState,
    pub(super) live: LiveSegments,
    pub(super) read: Read,
    pub(super) notices: Vec<String>,
}

/// A database with a log to write to.
pub(super) struct Recovered {
    pub(super) active: Arc<MemSlot>,
    pub(super) frozen: Vec<Arc<MemSlot>>,
    pub(super) last_seqno: SeqNo,
    pub(super) log: LogWriter,
    pub(super) notices: Vec<String>,
}

/// What a database is put together from.
pub(super) struct Parts {
    pub(super) options: Options,
    pub(super) home: SegmentHome,
    pub(super) manifest: Manifest,
    pub(super) state: ManifestState,
    pub(super) live: LiveSegments,
    pub(super) recovered: Recovered,
    pub(super) shelf: LogShelf,
    pub(super) events: Events,
    pub(super) notices: Vec<String>,
    pub(super) lock: Option<Box<dyn VfsLock>>,
}

/// Replays the logs into memtables and changes nothing: a database that is refused is left as it is.
fn read_logs(
    env: &Env,
    dir: &Path,
    options: &Options,
    state: &ManifestState,
    mut progress: Recovering<'_>,
) -> Result<Read> {
    let log_salt = uuid_salt(&state.uuid);
    let threads = options.background != Background::Manual;
    let mut filler = Filler::new(state.log_floor, options.write_buffer_bytes, threads);
    let mut operations = 0;
    let replayed =
        replay(env, dir, log_salt, state.log_floor, options.recovery, &mut |log, seqno, op| {
            filler.at(log, seqno);
            progress.add(op.key.len() + op.value.len());
            if seqno <= state.flushed {
                return Ok(());
            }
            if state.keyspaces.contains_key(&op.keyspace) {
                let hash = key_hash(op.key, keyspace_seed(state.hash_seed, op.keyspace));
                filler.push(&op, hash, seqno);
                operations += 1;
            } else if op.keyspace >= state.next_keyspace {
                let path = dir.join(log_file_name(log));
                let what = format!("it writes to keyspace {}, which never was", op.keyspace);
                return Err(Error::corruption(&path, 0, what));
            }
            // What was written to a keyspace that was dropped since is gone with it.
            Ok(())
        })?;
    let mut notices = Vec::new();
    if let Some(torn) = &replayed.torn {
        notices.push(format!(
            "{} ends at byte {} in a torn tail, as after a crash; {} bytes behind it are left",
            log_file_name(torn.log),
            torn.offset,
            torn.bytes
        ));
    }
    if let Some(damage) = &replayed.damage {
        notices.push(format!("replay ended at damage: {damage}"));
    }
    if replayed.last_log.is_none() {
        let path = dir.join(log_file_name(state.log_floor));
        return Err(Error::corruption(&path, 0, "the manifest needs this log, and it is missing"));
    }
    if replayed.manifest_edit > state.edit_number && options.recovery != Recovery::PointInTime {
        let (found, noted) = (state.edit_number, replayed.manifest_edit);
        let what = format!(
            "it ends at edit {found}, but the log notes that edit {noted} was durable: its end was lost, or it is an older one"
        );
        return Err(Error::corruption(&dir.join(MANIFEST_NAME), 0, what));
    }
    if replayed.base > state.flushed {
        let path = dir.join(log_file_name(state.log_floor));
        return Err(Error::corruption(&path, 0, "operations before this log are nowhere"));
    }
    if replayed.last_seqno < state.flushed {
        let path = dir.join(log_file_name(state.log_floor));
        return Err(Error::corruption(&path, 0, "the logs end before what was flushed from them"));
    }
    // The log is synced before a clear is recorded, so if it ends in front of one, damage took its
    // end, although that looked like a torn tail.
    let newest_clear = state.keyspaces.values().filter_map(|k| k.clears.last()).max();
    if options.recovery != Recovery::PointInTime
        && newest_clear.is_some_and(|clear| *clear > replayed.last_seqno)
    {
        let (log, end) = replayed.last_log.unwrap_or((state.log_floor, 0));
        let what = "the log ends before a clear that the manifest has: its end was damaged";
        return Err(Error::corruption(&dir.join(log_file_name(log)), end, what));
    }
    progress.end();
    Ok(Read { filler, replayed, operations, notices })
}

/// Makes durable what was replayed, removes what was not, and begins a new log.
fn begin_log(
    env: &Env,
    dir: &Path,
    state: &ManifestState,
    read: Read,
    threads: bool,
) -> Result<Recovered> {
    let Read { filler, replayed, mut notices, .. } = read;
    let log_salt = uuid_salt(&state.uuid);
    remove_logs(env, dir, &replayed.discarded)?;
    for log in &replayed.discarded {
        let name = log_file_name(*log);
        notices.push(format!("removed {name}: what it holds, if anything, comes after a gap"));
    }
    // What will be shown to users from now on must survive as long as what they write next.
    renew(env, dir, log_salt, &replayed.uncertain, threads)?;
    let last_seqno = replayed.last_seqno;
    let newest = replayed.logs.iter().copied().max().unwrap_or(state.log_floor);
    let id = LogId(newest.0.saturating_add(1)).max(state.next_log);
    let mut log = LogWriter::create(env, dir, log_salt, id, replayed.last_log, last_seqno)?;
    if last_seqno > state.flushed {
        // Or damage to the end of what was replayed would look like a torn tail the next time.
        log.append_proof()?;
    }
    let Memtables { mut active, mut frozen, logs_in_active } = filler.finish();
    if active.table.entries() == 0 {
        // If another is to be flushed before it, the logs that it stands for must stay as long as it: they
        // may have numbers of operations that were not applied.
        if frozen.is_empty() {
            active = MemSlot::new(id);
        }
    } else if logs_in_active >= MAX_REPLAYED_LOGS {
        active.last_seqno.store(last_seqno.0, Ordering::Release);
        frozen.insert(0, std::mem::replace(&mut active, MemSlot::new(id)));
    }
    Ok(Recovered { active, frozen, last_seqno, log, notices })
}

/// What the segments of a database in `dir` share.
pub(super) fn segment_home(env: Env, dir: &Path, options: &Options) -> SegmentHome {
    SegmentHome {
        dir: dir.to_path_buf(),
        cache: Arc::new(SharedCache::new(options.cache_bytes)),
        files: Arc::new(FilePool::new(Arc::clone(&env.vfs), options.max_open_files)),
        points: if options.hash_runs { PointIndex::HashRun } else { PointIndex::Filter },
        values: Arc::default(),
        env,
    }
}

/// Opens the segments that a manifest names, and reads the logs.
pub(super) fn load(
    home: SegmentHome,
    options: &Options,
    events: &Events,
    (unsettled, state, notices): (Unsettled, ManifestState, Vec<String>),
) -> Result<Loaded> {
    if state.keyspaces.get(&DEFAULT_ID).is_none_or(|k| k.name != DEFAULT_KEYSPACE) {
        let path = home.dir.join(MANIFEST_NAME);
        return Err(Error::corruption(&path, 0, "the default keyspace is missing"));
    }
    let mut live = LiveSegments::new();
    for meta in state.segments.values() {
        let segment = Segment::open(&home, meta.clone(), false)?;
        segment.mark_live();
        live.insert(meta.id, segment);
    }
    let (env, dir, floor) = (&home.env, &home.dir, state.log_floor);
    let progress =
        Recovering::new(events, options.progress.as_ref(), || log_bytes(env, dir, floor));
    let read = read_logs(env, dir, options, &state, progress)?;
    Ok(Loaded { home, unsettled, state, live, read, notices })
}

/// The length of all logs from `floor` on, for progress only.
fn log_bytes(env: &Env, dir: &Path, floor: LogId) -> u64 {
    let names = env.vfs.read_dir(dir).unwrap_or_default();
    let needed = |name: &&String| parse_log_file_name(name).is_some_and(|id| id >= floor);
    names.iter().filter(needed).map(|name| len_of(env, &dir.join(name))).sum()
}

fn recover(
    dir: &Path,
    mut options: Options,
    lock: Box<dyn VfsLock>,
) -> Result<(Inner, Background)> {
    let env = options.env.clone();
    let span = tracing::info_span!("open", dir = %dir.display(), segments = Empty, micros = Empty);
    let _entered = span.enter();
    let watch = Watch::start(&*env.clock);
    // Not left among the options, so that a closed database lets go of it.
    let by_hand = options.background == Background::Manual;
    let events = Events::new(options.listener.take(), by_hand);
    let manifest_path = dir.join(MANIFEST_NAME);
    if !env.vfs.exists(&manifest_path).map_err(|e| Error::io("look for", &manifest_path, e))? {
        create(&env, dir)?;
    }
    let home = segment_home(env.clone(), dir, &options);
    let found = Manifest::load(&env, dir)?;
    let recovery = tracing::info_span!(
        "recovery",
        logs = Empty,
        records = Empty,
        operations = Empty,
        bytes_in = Empty,
        micros = Empty,
    );
    let recovery_watch = Watch::start(&*env.clock);
    let loaded = recovery.in_scope(|| load(home, &options, &events, found))?;
    let Loaded { home, mut unsettled, mut state, live, read, mut notices } = loaded;
    let found = RecoveryInfo {
        segments: live.len() as u64,
        logs: read.replayed.logs.len() as u64,
        records: read.replayed.records,
        log_bytes: read.replayed.bytes,
        operations: read.operations,
    };
    if read.replayed.manifest_edit > state.edit_number {
        // Accepted by point-in-time recovery. The log's word for later edits stays, so the edits to
        // come are numbered on behind these, or no other open would accept the database again.
        let (found, noted) = (state.edit_number, read.replayed.manifest_edit);
        notices.push(format!(
            "the manifest ends at edit {found}, but edit {noted} was durable: what it changed is lost"
        ));
        state.edit_number = noted.min(u64::MAX - 2);
        unsettled.rewrite();
    }
    // Everything was found sound. Now it may be changed, the manifest first, because of which all
    // else is.
    let mut manifest = unsettled.settle(&state)?;
    let threads = options.background != Background::Manual;
    let replayed_to = read.replayed.last_log;
    let mut recovered = recovery.in_scope(|| begin_log(&env, dir, &state, read, threads))?;
    recovery.record("logs", found.logs);
    recovery.record("records", found.records);
    recovery.record("operations", found.operations);
    recovery.record("bytes_in", found.log_bytes);
    recovery_watch.note(&recovery);
    drop(recovery);
    notices.append(&mut recovered.notices);
    notices.extend(undo_clears(recovered.last_seqno, &mut manifest, &mut state)?);
    for notice in &notices {
        tracing::warn!(%notice, "found at open");
    }
    let shelf = find_shelf(&env, dir, &options, &state, replayed_to);
    shelf.begin(recovered.log.id(), recovered.last_seqno, 0);
    let kept = shelf.retire(state.log_floor);
    // Everything needed was read: what the manifest does not name can go.
    remove_leftovers(&env, dir, |name| {
        name == MANIFEST_NEW_NAME
            || parse_segment_file_name(name).is_some_and(|id| !state.segments.contains_key(&id))
            || parse_value_file_name(name).is_some_and(|id| home.values.get(id).is_none())
            || parse_log_file_name(name)
                .is_some_and(|id| id < state.log_floor && !kept.contains(&id))
    })?;
    let background = options.background;
    let lock = Some(lock);
    let parts =
        Parts { options, home, manifest, state, live, recovered, shelf, events, notices, lock };
    let inner = parts.assemble();
    inner.settle_floor()?;
    inner.update_pressure();
    span.record("segments", found.segments);
    watch.note(&span);
    let (notices, duration) = (inner.recovery_notices.clone(), watch.elapsed());
    inner.events.emit(|| Event::RecoveryDone { recovery: found, notices, duration });
    Ok((inner, background))
}

/// The logs that change feeds can read, if there are to be any. `replayed_to` is where the last log ends
/// that was replayed.
fn find_shelf(
    env: &Env,
    dir: &Path,
    options: &Options,
    state: &ManifestState,
    replayed_to: Option<(LogId, u64)>,
) -> LogShelf {
    let budget = options.keep_log_bytes;
    let found = match replayed_to.filter(|_| budget > 0) {
        Some(newest) => {
            feed_logs(env, dir, uuid_salt(&state.uuid), newest, state.log_floor, budget)
        }
        None => Vec::new(),
    };
    LogShelf::new(budget, found)
}

impl Parts {
    /// The database. Nothing is read or written.
    pub(super) fn assemble(self) -> Inner {
        let Parts { options, home, manifest, state, live, recovered, shelf, events, notices, lock } =
            self;
        static DATABASES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let database = DATABASES.fetch_add(1, Ordering::Relaxed);
        let keyspaces: HashMap<_, _> = state
            .keyspaces
            .iter()
            .map(|(id, keyspace)| {
                let (name, settings) = (keyspace.name.clone(), keyspace.settings.clone());
                let seed = keyspace_seed(state.hash_seed, *id);
                (name.clone(), KeyspaceCore::new(database, seed, *id, name, settings))
            })
            .collect();
        if options.ready_made_operators {
            for core in keyspaces.values() {
                give_ready_made(core);
            }
        }
        let default_core = Arc::clone(&keyspaces[DEFAULT_KEYSPACE]);
        let version = Arc::new(Version::build(&state, &live));
        let keymap = KeyMap::new(options.key_map());
        // Reads nothing: the shards are filled in the background.
        let added: Vec<_> = live.values().map(|s| (Arc::clone(s), s.rank())).collect();
        keymap.apply(MapEdit { added: &added, removed: &[], moved: &[], is_flush: false });
        let ids = Ids {
            segment: AtomicU64::new(state.next_segment.0),
            log: AtomicU64::new(recovered.log.id().0.saturating_add(1)),
            run: AtomicU64::new(state.next_run.0),
        };
        let position = (recovered.log.id(), recovered.log.end());
        let strategy = options.strategy();
        let work = BackgroundState::starting(home.env.clock.monotonic());
        let manifest_edit = AtomicU64::new(state.edit_number);
        Inner {
            home,
            strategy,
            database,
            hash_seed: state.hash_seed,
            log_salt: uuid_salt(&state.uuid),
            ids,
            queue: CommitQueue::default(),
            shelf: Arc::new(shelf),
            sync: Syncer::new(recovered.log.file(), position),
            writer: Mutex::new(Writer {
                log: recovered.log,
                active: Arc::clone(&recovered.active),
                written: Written::new(options.transaction_bytes),
            }),
            committer: Mutex::new(Committer { manifest, state, live }),
            state_change: Mutex::new(()),
            state: ArcSwap::from_pointee(ReadState::new(
                recovered.active,
                recovered.frozen,
                version,
            )),
            keymap,
            reads: Striped::default(),
            read_times: options.read_times(),
            events,
            manifest_edit,
            visible: AtomicU64::new(recovered.last_seqno.0),
            snapshots: SnapshotList::default(),
            turns: Turns::default(),
            keyspaces: Mutex::new(keyspaces),
            default_core,
            background: Mutex::new(work),
            last_look: Mutex::default(),
            quarantined: Mutex::new(HashMap::new()),
            work: Condvar::new(),
            progress: Condvar::new(),
            pressure: AtomicU32::new(0),
            last_buffer: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            flush_failed: AtomicBool::new(false),
            poisoned: Mutex::new(None),
            is_poisoned: AtomicBool::new(false),
            counters: super::stats::Counters::default(),
            #[cfg(feature = "metrics")]
            published: Mutex::default(),
            recovery_notices: notices,
            #[cfg(test)]
            publish_before_map: AtomicBool::new(false),
            options,
            _lock: lock,
        }
    }
}

impl Inner {
    /// After recovery: if no memtable needs the replayed logs, says so and removes them.
    fn settle_floor(&self) -> Result<()> {
        let state = self.state.load_full();
        let oldest = state.frozen.last().unwrap_or(&state.active).first_log;
        {
            let mut committer = self.committer.lock();
            if oldest <= committer.state.log_floor {
                return Ok(());
            }
            let flushed = SeqNo(self.visible.load(Ordering::Acquire));
            let flushed = if state.memtables().all(|s| s.table.entries() == 0) {
                flushed
            } else {
                SeqNo::ZERO
            };
            let changes = vec![
                Change::LogFloor(oldest),
                Change::Flushed(flushed.max(committer.state.flushed)),
                self.next_ids(committer.state.next_keyspace),
            ];
            self.commit_edit(&mut committer, Edit { changes })?;
        }
        self.remove_old_logs();
        Ok(())
    }
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
