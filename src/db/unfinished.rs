//! The directory of a new database, until it is one.
//!
//! ```text
//! UNFINISHED · LOCK        durable before anything else is there
//! segments                 the caller's work, each synced
//! first log                empty; with it every name in the directory is durable
//! MANIFEST                 last, by rename: from here on it is a database
//! ```
//!
//! Invariants: nothing is written into a directory that holds something; before the manifest is there, the
//! marker keeps the directory from being opened, and from being taken for an empty one. What an error or
//! a crash leaves stays, to be removed by hand. Called by repair, checkpoint and restore; the directory
//! is locked, so that one thread at a time has it.

use super::open::{LOCK_NAME, create_dirs};
use crate::cache::{FilePool, SharedCache};
use crate::checksum::uuid_salt;
use crate::error::{Error, Result};
use crate::segment::PointIndex;
use crate::sync::Arc;
use crate::types::LogId;
use crate::version::{Manifest, ManifestState, SegmentHome};
use crate::vfs::{Env, OpenMode, VfsLock};
use crate::wal::LogWriter;
use std::io;
use std::path::{Path, PathBuf};

/// Stands in the directory until the database is complete.
const MARKER_NAME: &str = "UNFINISHED";

/// The log that a new database begins with.
pub(super) const FIRST_LOG: LogId = LogId(1);

/// The id of the log after that.
pub(super) const NEXT_LOG: LogId = LogId(2);

/// See the module's text.
pub(super) struct Unfinished {
    dir: PathBuf,
    _lock: Box<dyn VfsLock>,
}

impl Unfinished {
    /// Whether a directory may become a database: it is empty, or there is none. Gives whether there
    /// is one.
    pub(super) fn check(env: &Env, dir: &Path) -> Result<bool> {
        if !env.vfs.exists(dir).map_err(|error| Error::io("look for", dir, error))? {
            return Ok(false);
        }
        let names = env.vfs.read_dir(dir).map_err(|error| Error::io("list", dir, error))?;
        if names.is_empty() { Ok(true) } else { Err(Error::NotEmpty { path: dir.to_path_buf() }) }
    }

    /// Makes the directory, or takes an empty one, and marks it durably as unfinished.
    pub(super) fn create(env: &Env, dir: &Path) -> Result<Unfinished> {
        if !Unfinished::check(env, dir)? {
            create_dirs(env, dir)?;
        }
        let marker = dir.join(MARKER_NAME);
        env.vfs.open(&marker, OpenMode::CreateNew).and_then(|file| file.sync_data()).map_err(
            |error| match error.kind() {
                // Somebody else was faster.
                io::ErrorKind::AlreadyExists => Error::NotEmpty { path: dir.to_path_buf() },
                _ => Error::io("create", &marker, error),
            },
        )?;
        let path = dir.join(LOCK_NAME);
        let lock = env.vfs.lock(&path).map_err(|error| Error::io("lock", &path, error))?;
        let lock = lock.ok_or_else(|| Error::Locked { path: dir.to_path_buf() })?;
        let parent = dir.parent().into_iter();
        for dir in parent.chain([dir]) {
            env.vfs.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?;
        }
        Ok(Unfinished { dir: dir.to_path_buf(), _lock: lock })
    }

    /// The home of its segments, for writing them.
    pub(super) fn home(&self, env: &Env, max_open_files: usize) -> SegmentHome {
        writing_home(env, &self.dir, max_open_files)
    }

    /// Makes it a database in this state, whose segments hold every operation and lie in the directory,
    /// synced. The state's UUID is not used: each database has its own. From now on it is written to apart
    /// from any other, and no log of either may be taken for one of the other's. Its hash seed is the one
    /// that the segments were written with, and stays.
    pub(super) fn complete(self, env: &Env, state: &ManifestState) -> Result<()> {
        let (dir, uuid) = (&self.dir, env.uuid());
        // It syncs the directory, and so what the manifest is about to name.
        let log = LogWriter::create(env, dir, uuid_salt(&uuid), FIRST_LOG, None, state.flushed);
        log.map_err(|error| match error {
            // That is said to those that write to a database.
            Error::Poisoned { reason } => Error::io("complete", dir, io::Error::other(reason)),
            other => other,
        })?;
        Manifest::create(env, dir, uuid, state.hash_seed, &state.snapshot_edit())?;
        let marker = dir.join(MARKER_NAME);
        env.vfs.remove_file(&marker).map_err(|error| Error::io("remove", &marker, error))?;
        env.vfs.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))
    }
}

/// A home for segments that are written and not read.
pub(super) fn writing_home(env: &Env, dir: &Path, max_open_files: usize) -> SegmentHome {
    SegmentHome {
        env: env.clone(),
        dir: dir.to_path_buf(),
        cache: Arc::new(SharedCache::new(0)),
        files: Arc::new(FilePool::new(Arc::clone(&env.vfs), max_open_files)),
        points: PointIndex::HashRun,
        values: Arc::default(),
    }
}
