//! What is kept of files in memory, under a budget: verified blocks and open file handles.
//!
//! [`SharedCache`] holds the partitions of indexes, filters and hash runs, and keeps the books of the
//! data blocks, which stand in a table of each segment ([`Frames`]); blocks go by CLOCK (second
//! chance; Corbató 1968); [`FilePool`] holds open files, by their number. Parts and files are keyed by a
//! segment's id, which is never reused, so nothing stale can be found under a new file's name.
//!
//! Invariants: the weight of what is held stays within the budget (but for a quarter of a byte a page
//! of open segments: see [`Frames`]); what is evicted lives on while
//! someone uses it. Thread-safe, sharded or locked briefly; no I/O happens under a lock of the
//! block cache. Called by the version room (which binds segments to them) and by `stats`.

use crate::error::{Error, Result};
use crate::segment::{BlockCache, FileSource, Frames, Part};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, Striped, Weak};
use crate::types::SegmentId;
use crate::vfs::{OpenMode, Vfs, VfsFile};
use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
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

/// Hashes the key of a part: two numbers that nobody outside chooses, so that mixing them is enough.
#[derive(Clone, Copy, Debug, Default)]
struct PartHash(u64);

impl Hasher for PartHash {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // The multiplier of Fibonacci hashing (Knuth, TAOCP 3, section 6.4).
        self.0 = (self.0.rotate_left(26) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        // Pages are multiples of 4096 and differ in the middle bits; fold the high ones down.
        self.0 ^ (self.0 >> 32)
    }
}

/// The cache that all segments of a database share.
pub(crate) struct SharedCache {
    parts: Cache<(u64, u64), Part, PartWeight, BuildHasherDefault<PartHash>>,
    /// Hits and misses.
    lookups: Striped<2>,
    /// What parts and blocks may take together, in bytes.
    budget: u64,
    /// What the tables of blocks take, in bytes.
    table_bytes: AtomicU64,
    /// What blocks take, in bytes, and how many there are.
    block_bytes: AtomicU64,
    blocks: AtomicUsize,
    /// The blocks, in the order in which they are asked to go.
    clock: Mutex<VecDeque<(Weak<Frames>, u64)>>,
}

impl SharedCache {
    /// A cache of at most `bytes` bytes. Zero keeps nothing.
    pub(crate) fn new(bytes: usize) -> Self {
        let items = (bytes / 4096).max(16);
        // Parts are few and small; only of a store much larger than the cache may they fill half.
        let parts = bytes as u64 / 2;
        let (hasher, lifecycle) = (BuildHasherDefault::default(), DefaultLifecycle::default());
        SharedCache {
            parts: Cache::with(items, parts, PartWeight, hasher, lifecycle),
            lookups: Striped::default(),
            budget: bytes as u64,
            table_bytes: AtomicU64::new(0),
            block_bytes: AtomicU64::new(0),
            blocks: AtomicUsize::new(0),
            clock: Mutex::default(),
        }
    }

    /// Evicts blocks until the budget holds: those that nobody looked at since the last round.
    fn trim(&self) {
        let held = || self.block_bytes.load(Ordering::Relaxed);
        let others = self.parts.weight() + self.table_bytes.load(Ordering::Relaxed);
        let limit = self.budget.saturating_sub(others);
        if held() <= limit {
            return;
        }
        let mut clock = self.clock.lock();
        // Twice round every block has had its second chance.
        for _ in 0..2 * clock.len() {
            if held() <= limit {
                break;
            }
            let Some((frames, page)) = clock.pop_front() else { break };
            if frames.upgrade().is_some_and(|frames| !frames.evict(page)) {
                clock.push_back((frames, page));
            }
        }
    }

    /// The bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        let blocks = self.block_bytes.load(Ordering::Relaxed);
        self.parts.weight() + blocks + self.table_bytes.load(Ordering::Relaxed)
    }

    /// Lookups that found their part, and that did not, since the start.
    pub(crate) fn lookups(&self) -> (u64, u64) {
        let [hits, misses] = self.lookups.sums();
        (hits, misses)
    }
}

impl BlockCache for SharedCache {
    fn get(&self, file: u64, offset: u64) -> Option<Part> {
        let found = self.parts.get(&(file, offset));
        self.count(found.is_some());
        found
    }

    fn insert(&self, file: u64, offset: u64, part: Part) {
        self.parts.insert((file, offset), part);
        self.trim();
    }

    fn charge(&self, bytes: u64) {
        self.block_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.blocks.fetch_add(1, Ordering::Relaxed);
    }

    fn admit(&self, frames: &Arc<Frames>, page: u64) {
        let blocks = self.blocks.load(Ordering::Relaxed);
        let mut clock = self.clock.lock();
        clock.push_back((Arc::downgrade(frames), page));
        if clock.len() > 2 * blocks + 1024 {
            // Most are of segments that are gone.
            clock.retain(|(frames, _)| frames.strong_count() > 0);
        }
        drop(clock);
        self.trim();
    }

    fn release(&self, bytes: u64) {
        self.block_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.blocks.fetch_sub(1, Ordering::Relaxed);
    }

    fn grow(&self, bytes: u64) {
        self.table_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn shrink(&self, bytes: u64) {
        self.table_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.bytes() + bytes + ENTRY_OVERHEAD <= self.budget
    }

    fn is_crowded(&self) -> bool {
        self.table_bytes.load(Ordering::Relaxed) > self.budget / 8
    }

    fn count(&self, hit: bool) {
        self.lookups.add([u64::from(hit), u64::from(!hit)]);
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
    use crate::compression::Compression;
    use crate::segment::{PointIndex, SegmentOptions, SegmentReader, SegmentWriter};
    use crate::vfs::{Env, MemVfs};

    /// Some segments of one block a key, read through one cache.
    fn segments(cache: &Arc<SharedCache>, count: u64, blocks: u32) -> Vec<SegmentReader> {
        let env = Env::in_memory(3);
        env.vfs.create_dir_all(Path::new("/")).unwrap();
        let open = |id: u64| {
            let path = PathBuf::from(format!("/{id}"));
            let options =
                SegmentOptions { compression: Compression::None, ..SegmentOptions::default() };
            let mut writer = SegmentWriter::create_in(&env, &path, options).unwrap();
            for key in 0..blocks {
                writer.put(&key.to_be_bytes(), &[7; 4000]).unwrap();
            }
            writer.finish().unwrap();
            let pool = Arc::new(FilePool::new(Arc::clone(&env.vfs), 8));
            let source = Arc::new(PooledFile { pool, id: SegmentId(id), path: path.clone() });
            let cache = (Arc::clone(cache) as Arc<dyn BlockCache>, id);
            SegmentReader::open_with(source, path, Some(cache), PointIndex::HashRun).unwrap()
        };
        (0..count).map(open).collect()
    }

    fn get(reader: &SegmentReader, key: u32) {
        assert_eq!(reader.get(&key.to_be_bytes()).unwrap().unwrap().len(), 4000);
    }

    #[test]
    fn the_cache_holds_its_budget_and_keeps_what_is_looked_at() {
        let budget = 100 * 5000;
        let cache = Arc::new(SharedCache::new(budget));
        let readers = segments(&cache, 4, 300);
        for round in 0..5 {
            for key in 0..300 {
                for reader in &readers {
                    get(reader, key);
                    // Hot from the second round on: looked at more than once a round.
                    get(&readers[0], key % 10);
                }
                assert!(cache.bytes() <= budget as u64, "{} in round {round}", cache.bytes());
            }
        }
        let before = cache.lookups();
        (0..10).for_each(|key| get(&readers[0], key));
        assert_eq!(cache.lookups().1, before.1, "what is hot stays");
        assert!(cache.bytes() > budget as u64 / 2, "and the room is used");
        drop(readers);
        assert_eq!(cache.block_bytes.load(Ordering::Relaxed), 0, "gone with their segments");
        assert_eq!(cache.table_bytes.load(Ordering::Relaxed), 0);
        assert_eq!(cache.blocks.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn blocks_come_and_go_under_many_threads_and_the_books_stay_right() {
        let budget = 60 * 5000;
        let cache = Arc::new(SharedCache::new(budget));
        let readers = segments(&cache, 2, 200);
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                let readers = &readers;
                scope.spawn(move || {
                    for n in 0..20_000u32 {
                        let n = n.wrapping_mul(2_654_435_761).wrapping_add(thread);
                        get(&readers[(n >> 20) as usize % 2], n % 200);
                    }
                });
            }
        });
        // A thread may be about to admit when another looks, so a few blocks more.
        assert!(cache.bytes() <= budget as u64, "{}", cache.bytes());
        drop(readers);
        assert_eq!(cache.block_bytes.load(Ordering::Relaxed), 0);
        assert_eq!(cache.blocks.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_cache_of_nothing_keeps_nothing() {
        let cache = Arc::new(SharedCache::new(0));
        let readers = segments(&cache, 1, 20);
        (0..20).for_each(|key| get(&readers[0], key));
        assert_eq!(cache.bytes(), 0);
    }

    #[test]
    fn the_books_forget_segments_that_are_gone() {
        let cache = Arc::new(SharedCache::new(1 << 30));
        for _ in 0..20 {
            let readers = segments(&cache, 1, 200);
            (0..200).for_each(|key| get(&readers[0], key));
        }
        assert!(cache.clock.lock().len() < 2000, "{}", cache.clock.lock().len());
    }

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
