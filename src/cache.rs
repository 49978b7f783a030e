//! What is kept of files in memory, under a budget: verified blocks and open file handles.
//!
//! [`SharedCache`] holds decoded data blocks and the partitions of indexes and filters, by the
//! bytes they take; [`FilePool`] holds open files, by their number. Both are keyed by a segment's
//! id, which is never reused, so nothing stale can be found under a new file's name.
//!
//! Invariants: the weight of what is held stays within the budget; what is evicted lives on while
//! someone uses it. Thread-safe, sharded or locked briefly; no I/O happens under a lock of the
//! block cache. Called by the version room (which binds segments to them) and by `stats`.

use crate::error::{Error, Result};
use crate::segment::{BlockCache, FileSource, Part};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex};
use crate::types::SegmentId;
use crate::vfs::{OpenMode, Vfs, VfsFile};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What an entry costs besides its part: the cache's own records.
const ENTRY_OVERHEAD: u64 = 96;

#[derive(Clone, Copy, Debug)]
struct PartWeight;

impl Weighter<(u64, u64), Part> for PartWeight {
    fn weight(&self, _: &(u64, u64), part: &Part) -> u64 {
        part.bytes() as u64 + ENTRY_OVERHEAD
    }
}

/// The cache that all segments of a database share.
pub(crate) struct SharedCache {
    parts: Cache<(u64, u64), Part, PartWeight>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl SharedCache {
    /// A cache of at most `bytes` bytes. Zero keeps nothing.
    pub(crate) fn new(bytes: usize) -> Self {
        let items = (bytes / 4096).max(16);
        SharedCache {
            parts: Cache::with_weighter(items, bytes as u64, PartWeight),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// The bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts.weight()
    }

    /// Lookups that found their part, and that did not, since the start.
    pub(crate) fn lookups(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }
}

impl BlockCache for SharedCache {
    fn get(&self, file: u64, offset: u64) -> Option<Part> {
        let found = self.parts.get(&(file, offset));
        let count = if found.is_some() { &self.hits } else { &self.misses };
        count.fetch_add(1, Ordering::Relaxed);
        found
    }

    fn insert(&self, file: u64, offset: u64, part: Part) {
        self.parts.insert((file, offset), part);
    }
}

/// Open files, at most so many; the one used longest ago is closed first.
///
/// A handle that a read holds at this instant stays open until the read ends, so the bound may be
/// exceeded by the number of reads in flight.
pub(crate) struct FilePool {
    vfs: Arc<dyn Vfs>,
    limit: usize,
    state: Mutex<PoolState>,
}

#[derive(Default)]
struct PoolState {
    open: HashMap<SegmentId, (u64, Arc<dyn VfsFile>)>,
    tick: u64,
}

impl FilePool {
    /// A pool of at most `limit` open files (at least one).
    pub(crate) fn new(vfs: Arc<dyn Vfs>, limit: usize) -> Self {
        FilePool { vfs, limit: limit.max(1), state: Mutex::default() }
    }

    /// How many files are open now.
    pub(crate) fn open_files(&self) -> usize {
        self.state.lock().open.len()
    }

    /// Closes a file that is about to be removed.
    pub(crate) fn forget(&self, id: SegmentId) {
        self.state.lock().open.remove(&id);
    }

    fn get(&self, id: SegmentId, path: &Path) -> Result<Arc<dyn VfsFile>> {
        let mut state = self.state.lock();
        state.tick += 1;
        let tick = state.tick;
        if let Some((used, file)) = state.open.get_mut(&id) {
            *used = tick;
            return Ok(Arc::clone(file));
        }
        while state.open.len() >= self.limit {
            // A scan of the pool, but only when a file must be opened, which costs far more.
            let oldest = state.open.iter().min_by_key(|(_, (used, _))| *used).map(|(id, _)| *id);
            match oldest {
                Some(oldest) => state.open.remove(&oldest),
                None => break,
            };
        }
        let file = self.vfs.open(path, OpenMode::Read).map_err(|e| Error::io("open", path, e))?;
        state.open.insert(id, (tick, Arc::clone(&file)));
        Ok(file)
    }
}

/// One file of a pool.
pub(crate) struct PooledFile {
    pub(crate) pool: Arc<FilePool>,
    pub(crate) id: SegmentId,
    pub(crate) path: PathBuf,
}

impl FileSource for PooledFile {
    fn file(&self) -> Result<Arc<dyn VfsFile>> {
        self.pool.get(self.id, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::MemVfs;

    #[test]
    fn the_pool_holds_its_limit_and_closes_the_file_used_longest_ago() {
        let vfs = Arc::new(MemVfs::default());
        vfs.create_dir_all(Path::new("/d")).unwrap();
        let path = |n: u64| PathBuf::from(format!("/d/{n}"));
        for n in 0..5 {
            vfs.open(&path(n), OpenMode::CreateNew).unwrap();
        }
        let pool = FilePool::new(Arc::clone(&vfs) as Arc<dyn Vfs>, 2);
        for n in [0, 1, 0, 2] {
            pool.get(SegmentId(n), &path(n)).unwrap();
            assert!(pool.open_files() <= 2);
        }
        // File 1 was closed to make room for 2, so removing it shows only there.
        for n in 0..3 {
            vfs.remove_file(&path(n)).unwrap();
        }
        assert!(pool.get(SegmentId(0), &path(0)).is_ok());
        assert!(pool.get(SegmentId(2), &path(2)).is_ok());
        assert!(pool.get(SegmentId(1), &path(1)).is_err());
        pool.forget(SegmentId(0));
        assert_eq!(pool.open_files(), 1);
    }
}
