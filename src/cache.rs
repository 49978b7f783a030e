//! What is kept of files in memory, under a budget: verified blocks and open file handles.
//!
//! [`SharedCache`] holds the partitions of indexes, filters and hash runs, and keeps the books of the
//! data blocks, which stand in a table of each segment ([`Frames`]); blocks go by CLOCK (second
//! chance; Corbató 1968); [`FilePool`] bounds how many files are open. Parts are keyed by a
//! segment's id, which is never reused, so nothing stale can be found under a new file's name.
//!
//! Once it is full, a block comes in when it is met for the second time in an era, which ends when
//! a share of the blocks was replaced: so few blocks are taken in that are not read again, however
//! large the store.
//!
//! Blocks have memory of their own ([`Slabs`]), and weigh what they take there, with their records. Regions
//! of it that stay part empty, because blocks of other lengths come now, or because values that users keep lie
//! in them, weigh too, up to half the budget.
//!
//! Invariants: the weight of what is held stays within the budget (but for three quarters of a byte a page
//! of open segments: see [`Frames`]); what is evicted lives on while
//! someone uses it. Thread-safe, sharded or locked briefly; no I/O happens under a lock of the
//! block cache. Called by the version room (which binds segments to them) and by `stats`.

use crate::error::{Error, Result};
use crate::segment::{BlockCache, FileSource, Frames, MAX_BLOCK_PAGES, Part};
use crate::slab::Slabs;
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, ArcSwapOption, Mutex, Striped, Weak};
use crate::types::{PAGE, SegmentId};
use crate::vfs::{OpenMode, Vfs, VfsFile};
use quick_cache::Weighter;
use quick_cache::sync::{Cache, DefaultLifecycle};
use std::collections::VecDeque;
use std::hash::{BuildHasherDefault, Hasher};
use std::path::{Path, PathBuf};

/// What an entry costs besides its part: the cache's own records.
const ENTRY_OVERHEAD: u64 = 96;

/// While there is room for that, or for a sixteenth of the cache, it is not full: a long block, and
/// what goes with it. So the gap that a long block leaves does not count as room.
const BLOCK_ROOM: u64 = (MAX_BLOCK_PAGES * PAGE) as u64 + 1024;

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

/// How many blocks are replaced in one era, for each that is held: a sixty-fourth. Then reads that
/// are spread evenly over a store of twice the cache replace a block at a twelfth of their misses.
const ERA_SHARE: usize = 64;

/// And at least so many.
const ERA_MIN: usize = 16;

/// The cache that all segments of a database share.
pub(crate) struct SharedCache {
    parts: Cache<(u64, u64), Part, PartWeight, BuildHasherDefault<PartHash>>,
    /// The memory of blocks.
    slabs: Arc<Slabs>,
    /// Hits and misses.
    lookups: Striped<2>,
    /// What parts and blocks may take together, in bytes.
    budget: u64,
    /// What the tables of blocks take, in bytes.
    table_bytes: AtomicU64,
    /// What parts take, in bytes, as of the last that came.
    part_bytes: AtomicU64,
    /// Held while that is counted, so that the last count sees all that came.
    part_count: Mutex<()>,
    /// What blocks take, in bytes, and how many there are.
    block_bytes: AtomicU64,
    blocks: AtomicUsize,
    /// The number of the era: see [`BlockCache::era`].
    era: AtomicU32,
    clock: Mutex<BlockClock>,
}

#[derive(Default)]
struct BlockClock {
    /// The blocks, in the order in which they are asked to go.
    blocks: VecDeque<(Weak<Frames>, u64)>,
    /// How many came in this era.
    came: usize,
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
            slabs: Arc::new(Slabs::new(bytes)),
            lookups: Striped::default(),
            budget: bytes as u64,
            table_bytes: AtomicU64::new(0),
            part_bytes: AtomicU64::new(0),
            part_count: Mutex::new(()),
            block_bytes: AtomicU64::new(0),
            blocks: AtomicUsize::new(0),
            era: AtomicU32::new(1),
            clock: Mutex::default(),
        }
    }

    /// Evicts blocks until the budget holds: those that nobody looked at since the last round.
    fn trim(&self) {
        if self.bytes() <= self.budget {
            return;
        }
        let mut clock = self.clock.lock();
        // Twice round every block has had its second chance.
        for _ in 0..2 * clock.blocks.len() {
            if self.bytes() <= self.budget {
                break;
            }
            let Some((frames, page)) = clock.blocks.pop_front() else { break };
            if frames.upgrade().is_some_and(|frames| !frames.evict(page)) {
                clock.blocks.push_back((frames, page));
            }
        }
    }

    /// The bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        let of = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed);
        let blocks = of(&self.block_bytes);
        let unused = self.slabs.unused_beyond(blocks).min(self.budget / 2);
        of(&self.part_bytes) + blocks + unused + of(&self.table_bytes)
    }

    /// Lookups that found their part, and that did not, since the start.
    pub(crate) fn lookups(&self) -> (u64, u64) {
        let [hits, misses] = self.lookups.sums();
        (hits, misses)
    }
}

impl BlockCache for SharedCache {
    fn slabs(&self) -> Option<&Arc<Slabs>> {
        Some(&self.slabs)
    }

    fn get(&self, file: u64, offset: u64) -> Option<Part> {
        let found = self.parts.get(&(file, offset));
        self.count(u64::from(found.is_some()), u64::from(found.is_none()));
        found
    }

    fn insert(&self, file: u64, offset: u64, part: Part) {
        self.parts.insert((file, offset), part);
        let counting = self.part_count.lock();
        self.part_bytes.store(self.parts.weight(), Ordering::Relaxed);
        drop(counting);
        self.trim();
    }

    fn charge(&self, bytes: u64) {
        self.block_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.blocks.fetch_add(1, Ordering::Relaxed);
    }

    fn admit(&self, frames: &Arc<Frames>, page: u64) {
        let blocks = self.blocks.load(Ordering::Relaxed);
        let mut clock = self.clock.lock();
        clock.blocks.push_back((Arc::downgrade(frames), page));
        if clock.blocks.len() > 2 * blocks + 1024 {
            // Most are of segments that are gone.
            clock.blocks.retain(|(frames, _)| frames.strong_count() > 0);
        }
        clock.came += 1;
        if clock.came >= blocks / ERA_SHARE + ERA_MIN {
            clock.came = 0;
            self.era.fetch_add(1, Ordering::Relaxed);
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

    fn count(&self, hits: u64, misses: u64) {
        self.lookups.add([hits, misses]);
    }

    fn era(&self) -> Option<u32> {
        let full = self.bytes() + BLOCK_ROOM.min(self.budget / 16) > self.budget;
        full.then(|| self.era.load(Ordering::Relaxed))
    }
}

/// Open files, at most so many; the one used longest ago is closed first.
///
/// A handle that a read holds at this instant stays open until the read ends, so the bound may be
/// exceeded by the number of reads in flight. Reads of open files take no lock.
pub(crate) struct FilePool {
    vfs: Arc<dyn Vfs>,
    limit: usize,
    /// Whether another process may remove files that are needed here.
    shared: AtomicBool,
    /// Rises by two with each file that is opened. What is used from then on bears the number
    /// behind: so of two files, the one used since is the younger.
    tick: AtomicU64,
    /// Those that have a file.
    open: Mutex<Vec<Arc<FileSlot>>>,
}

/// The place of a file, which may be open.
struct FileSlot {
    id: SegmentId,
    file: ArcSwapOption<OpenFile>,
    used: AtomicU64,
}

struct OpenFile(Arc<dyn VfsFile>);

impl FilePool {
    /// A pool of at most `limit` open files (at least one).
    pub(crate) fn new(vfs: Arc<dyn Vfs>, limit: usize) -> Self {
        let (limit, shared) = (limit.max(1), AtomicBool::new(false));
        FilePool { vfs, limit, shared, tick: AtomicU64::new(0), open: Mutex::default() }
    }

    /// From now on a file that is missing was removed by another process: no damage, but
    /// [`Error::Outdated`].
    pub(crate) fn expect_removals(&self) {
        self.shared.store(true, Ordering::Relaxed);
    }

    /// How many files are open now.
    pub(crate) fn open_files(&self) -> usize {
        self.open.lock().len()
    }

    /// Closes a file that is about to be removed.
    pub(crate) fn forget(&self, id: SegmentId) {
        self.close(|slot| slot.id == id);
    }

    fn close(&self, which: impl Fn(&FileSlot) -> bool) {
        let closed: Vec<_> = self.open.lock().extract_if(.., |slot| which(slot)).collect();
        for slot in closed {
            drop(slot.file.swap(None));
        }
    }

    fn open(&self, slot: &Arc<FileSlot>, path: &Path) -> Result<Arc<dyn VfsFile>> {
        let mut open = self.open.lock();
        if let Some(file) = &*slot.file.load() {
            return Ok(Arc::clone(&file.0));
        }
        while open.len() >= self.limit {
            // A scan of the pool, but only when a file must be opened, which costs far more.
            let used = |slot: &Arc<FileSlot>| slot.used.load(Ordering::Relaxed);
            match (0..open.len()).min_by_key(|at| used(&open[*at])) {
                Some(oldest) => drop(open.swap_remove(oldest).file.swap(None)),
                None => break,
            }
        }
        let file = self.vfs.open(path, OpenMode::Read).map_err(|error| {
            let is_gone = error.kind() == std::io::ErrorKind::NotFound;
            if is_gone && self.shared.load(Ordering::Relaxed) {
                return Error::Outdated { path: path.to_path_buf() };
            }
            Error::io("open", path, error)
        })?;
        let tick = self.tick.fetch_add(2, Ordering::Relaxed) + 2;
        slot.used.store(tick, Ordering::Relaxed);
        slot.file.swap(Some(Arc::new(OpenFile(Arc::clone(&file)))));
        open.push(Arc::clone(slot));
        Ok(file)
    }
}

/// One file of a pool. Dropping it closes the file.
pub(crate) struct PooledFile {
    pool: Arc<FilePool>,
    path: PathBuf,
    slot: Arc<FileSlot>,
}

impl PooledFile {
    /// A file that is opened when it is first read.
    pub(crate) fn new(pool: Arc<FilePool>, id: SegmentId, path: PathBuf) -> Self {
        let (file, used) = (ArcSwapOption::empty(), AtomicU64::new(0));
        PooledFile { pool, path, slot: Arc::new(FileSlot { id, file, used }) }
    }

    fn touch(&self) {
        // Written once, then only read, until the next file is opened.
        let now = self.pool.tick.load(Ordering::Relaxed) + 1;
        if self.slot.used.load(Ordering::Relaxed) != now {
            self.slot.used.store(now, Ordering::Relaxed);
        }
    }
}

impl Drop for PooledFile {
    fn drop(&mut self) {
        self.pool.close(|slot| std::ptr::eq(slot, &raw const *self.slot));
    }
}

impl FileSource for PooledFile {
    fn file(&self) -> Result<Arc<dyn VfsFile>> {
        if let Some(file) = &*self.slot.file.load() {
            self.touch();
            return Ok(Arc::clone(&file.0));
        }
        self.pool.open(&self.slot, &self.path)
    }

    fn with(&self, read: &mut dyn FnMut(&dyn VfsFile) -> Result<()>) -> Result<()> {
        if let Some(file) = &*self.slot.file.load() {
            self.touch();
            return read(file.0.as_ref());
        }
        read(self.file()?.as_ref())
    }
}

#[cfg(test)]
mod tests;
