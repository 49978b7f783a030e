//! Budgets, admission and eviction of blocks; the limit of open files.

use super::*;
use crate::compression::Compression;
use crate::cursor::{Cursor, Seek};
use crate::segment::{CursorOptions, PointIndex, SegmentOptions, SegmentReader, SegmentWriter};
use crate::vfs::{Env, MemVfs};
use std::io;

/// Some segments of one block a key, read through one cache.
fn segments(cache: &Arc<SharedCache>, count: u64, blocks: u32) -> Vec<SegmentReader> {
    segments_with(cache, count, blocks, Compression::None)
}

fn segments_with(
    cache: &Arc<SharedCache>,
    count: u64,
    blocks: u32,
    compression: Compression,
) -> Vec<SegmentReader> {
    segments_of(cache, count, blocks, compression, 4000)
}

fn segments_of(
    cache: &Arc<SharedCache>,
    count: u64,
    blocks: u32,
    compression: Compression,
    len: usize,
) -> Vec<SegmentReader> {
    let env = Env::in_memory(3);
    env.vfs.create_dir_all(Path::new("/")).unwrap();
    let open = |id: u64| {
        let path = PathBuf::from(format!("/{id}"));
        let options = SegmentOptions { compression, ..SegmentOptions::default() };
        let mut writer = SegmentWriter::create_in(&env, &path, options).unwrap();
        for key in 0..blocks {
            writer.put(&key.to_be_bytes(), &vec![7; len]).unwrap();
        }
        writer.finish().unwrap();
        let pool = Arc::new(FilePool::new(Arc::clone(&env.vfs), 8));
        let source = Arc::new(PooledFile::new(pool, SegmentId(id), path.clone()));
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
fn blocks_lie_in_slabs_which_values_outlive_and_weigh_what_they_take() {
    for compression in [Compression::None, Compression::default()] {
        let cache = Arc::new(SharedCache::new(8 << 20));
        let readers = segments_with(&cache, 2, 200, compression);
        let table = |cache: &SharedCache| cache.table_bytes.load(Ordering::Relaxed);
        assert_eq!(cache.slabs.regions(), (0, 0), "none before a block is read");
        let mut values: Vec<_> =
            (0..200u32).map(|key| readers[0].get(&key.to_be_bytes()).unwrap().unwrap()).collect();
        let mut cursor = readers[1].cursor(CursorOptions { fill_cache: true, readahead: false });
        cursor.seek(Seek::First).unwrap();
        while cursor.valid() {
            values.push(crate::Value(cursor.value()));
            cursor.next().unwrap();
        }
        drop(cursor);
        let blocks = cache.blocks.load(Ordering::Relaxed) as u64;
        let bytes = cache.block_bytes.load(Ordering::Relaxed);
        let stored: u64 = readers.iter().map(|reader| reader.data_bytes()).sum();
        assert!(blocks > 0 && table(&cache) > 0);
        // A slot each, and the records; those of 4096 bytes fit exactly.
        assert!(bytes > stored + 100 * blocks, "{bytes} of {stored} in {blocks}");
        if compression == Compression::None {
            assert_eq!(blocks, 400);
            assert!(bytes < stored + 300 * blocks, "{bytes} of {stored} in {blocks}");
        }
        let (used, _) = cache.slabs.regions();
        assert!(used as u64 >= bytes >> 18, "{used} regions for {bytes}");
        drop(readers);
        assert_eq!((cache.blocks.load(Ordering::Relaxed), table(&cache)), (0, 0));
        let slabs = Arc::downgrade(&cache.slabs);
        drop(cache);
        assert!(values.len() == 400 && values.iter().all(|value| *value == [7; 4000]));
        assert!(slabs.upgrade().is_some_and(|slabs| slabs.regions().0 == used));
        values.truncate(1);
        assert_eq!(slabs.upgrade().map(|slabs| slabs.regions()), Some((1, 1)));
        drop(values);
        assert!(slabs.upgrade().is_none());
    }
}

#[test]
fn regions_that_values_hold_open_weigh_up_to_half_the_budget() {
    let budget = 8 << 20;
    let cache = Arc::new(SharedCache::new(budget));
    let before = segments_of(&cache, 1, 1500, Compression::None, 4000);
    let read = |reader: &SegmentReader, key: u32| {
        // At the second meeting it is kept, from the third on the value lies in the cached block.
        let get = || reader.get(&key.to_be_bytes()).unwrap().unwrap();
        (get(), get(), get()).2
    };
    let values: Vec<_> = (0..1500).map(|key| read(&before[0], key)).step_by(30).collect();
    drop(before);
    assert_eq!(cache.blocks.load(Ordering::Relaxed), 0);
    let (open, _) = cache.slabs.regions();
    assert!(open > 20, "{open} regions are held open");
    // Blocks of another length cannot use them.
    let after = segments_of(&cache, 1, 1000, Compression::None, 20_000);
    (0..1000).for_each(|key| drop(read(&after[0], key)));
    let (used, spare) = cache.slabs.regions();
    assert!((used + spare) * (256 << 10) < budget * 3 / 2 + (2 << 20), "{used} regions");
    let blocks = cache.block_bytes.load(Ordering::Relaxed);
    assert!(blocks > (budget / 3) as u64, "enough is left: {blocks}");
    drop(values);
    (0..1000).for_each(|key| drop(read(&after[0], key)));
    let blocks = cache.block_bytes.load(Ordering::Relaxed);
    assert!(blocks > (budget / 4 * 3) as u64, "all of it again: {blocks}");
}

/// A file of whose data the system gives no more than up to `end`, once it is said where they end.
#[derive(Debug)]
struct Short {
    file: Arc<dyn VfsFile>,
    end: u64,
    data_end: AtomicU64,
}

impl VfsFile for Short {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let is_cut = offset < self.data_end.load(Ordering::Relaxed);
        let left = if is_cut { self.end.saturating_sub(offset) } else { u64::MAX };
        let n = left.min(buf.len() as u64) as usize;
        self.file.read_at(&mut buf[..n], offset)
    }
    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

struct ShortSource(Arc<Short>);

impl FileSource for ShortSource {
    fn file(&self) -> Result<Arc<dyn VfsFile>> {
        Ok(Arc::clone(&self.0) as Arc<dyn VfsFile>)
    }
}

/// Memory of blocks is used again, also for the same block. Where a read gives too little by then, that
/// is damage: what stood in that memory would verify.
#[test]
fn a_read_that_gives_too_little_shows_nothing_that_was_read_before() {
    for (len, pages) in [(4000, 1), (20_000, 5)] {
        let env = Env::in_memory(3);
        env.vfs.create_dir_all(Path::new("/")).unwrap();
        let path = Path::new("/1");
        let options =
            SegmentOptions { compression: Compression::None, ..SegmentOptions::default() };
        let mut writer = SegmentWriter::create_in(&env, path, options).unwrap();
        for key in 0..40u32 {
            writer.put(&key.to_be_bytes(), &vec![7; len]).unwrap();
        }
        writer.finish().unwrap();
        // Within a block; of a long one the first page is left.
        let end = (20 * pages * PAGE + PAGE.min((pages - 1) * PAGE) + 100) as u64;
        let file = env.vfs.open(path, OpenMode::Read).unwrap();
        let file = Arc::new(Short { file, end, data_end: AtomicU64::new(0) });
        let cache = Arc::new(SharedCache::new(0));
        let source = Arc::new(ShortSource(Arc::clone(&file)));
        let shared = (Arc::clone(&cache) as Arc<dyn BlockCache>, 1);
        let reader =
            SegmentReader::open_with(source, path.into(), Some(shared), PointIndex::HashRun);
        let reader = reader.unwrap();
        let get =
            |key: u32| -> Result<usize> { Ok(reader.get(&key.to_be_bytes())?.unwrap().len()) };
        let walk = |key: u32| -> Result<usize> {
            let mut cursor = reader.cursor(CursorOptions { fill_cache: false, readahead: false });
            cursor.seek(Seek::AtOrAfter(&key.to_be_bytes()))?;
            Ok(cursor.value().len())
        };
        let check = |key: u32, found: Result<usize>, is_sound: bool| match found {
            Ok(found) => assert!(is_sound && found == len, "{key}"),
            Err(error) => {
                assert!(!is_sound, "{key}: {error}");
                assert!(matches!(error, Error::Corruption { .. }), "{error}");
            }
        };
        let data_end = reader.data_bytes();
        for key in 0..40 {
            for looks in [&get as &dyn Fn(u32) -> Result<usize>, &walk] {
                // Read to a buffer and to a slot by turns. Both hold the block then.
                for is_cut in [false, true].into_iter().flat_map(|is_cut| [is_cut; 4]) {
                    file.data_end.store(if is_cut { data_end } else { 0 }, Ordering::Relaxed);
                    check(key, looks(key), !is_cut || key < 20);
                }
            }
        }
        let used = cache.slabs.regions();
        assert!(used.0 + used.1 > 0, "blocks were read to slots");
    }
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
fn a_full_cache_takes_in_what_is_met_twice_in_an_era() {
    let cache = Arc::new(SharedCache::new(100 * 5000));
    let readers = segments(&cache, 1, 1000);
    let misses = || cache.lookups().1;
    // Everything while there is room.
    (0..50).for_each(|key| get(&readers[0], key));
    let before = misses();
    (0..50).for_each(|key| get(&readers[0], key));
    assert_eq!(misses(), before);
    // Full, and all of it read again; then others are read once.
    (0..150).for_each(|key| get(&readers[0], key));
    let held = cache.blocks.load(Ordering::Relaxed);
    let era = cache.era().expect("it is full");
    (200..900).for_each(|key| get(&readers[0], key));
    assert_eq!(cache.era(), Some(era), "what is met once replaces nothing");
    let before = misses();
    (0..50).for_each(|key| get(&readers[0], key));
    assert_eq!(misses(), before);
    // The second time lets in, the third finds.
    for (round, missed) in [(1, 1), (2, 0)] {
        let before = misses();
        get(&readers[0], 899);
        assert_eq!(misses() - before, missed, "in round {round}");
    }
    // What a later era meets first is not let in.
    for key in 0..2 * (held / ERA_SHARE + ERA_MIN) as u32 {
        (0..2).for_each(|_| get(&readers[0], 910 + key));
    }
    assert!(cache.era().is_some_and(|now| now > era));
    for missed in [1, 1, 0] {
        let before = misses();
        get(&readers[0], 300);
        assert_eq!(misses() - before, missed);
    }
    assert!(cache.bytes() <= cache.budget);
}

#[test]
fn even_reads_of_a_larger_store_replace_little_and_hot_blocks_come_in() {
    let cache = Arc::new(SharedCache::new(200 * 5000));
    let readers = segments(&cache, 2, 1000);
    let mut state = 7u64;
    let mut random = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let came = || {
        let clock = cache.clock.lock();
        let era = cache.era.load(Ordering::Relaxed) as usize;
        let held = cache.blocks.load(Ordering::Relaxed);
        era * (held / ERA_SHARE + ERA_MIN) + clock.came
    };
    (0..2000).for_each(|_| get(&readers[random() as usize % 2], random() % 1000));
    let before = (came(), cache.lookups().1);
    (0..20_000).for_each(|_| get(&readers[random() as usize % 2], random() % 1000));
    let (came, misses) = (came() - before.0, cache.lookups().1 - before.1);
    assert!(came * 5 < misses as usize, "{came} of {misses} were let in");
    // A new hot set that fits gets in.
    for _ in 0..20 {
        (0..100).for_each(|key| get(&readers[0], key));
    }
    let before = cache.lookups().1;
    (0..100).for_each(|key| get(&readers[0], key));
    assert!(cache.lookups().1 - before < 10);
    assert!(cache.bytes() <= cache.budget);
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
    assert!(cache.clock.lock().blocks.len() < 2000);
}

#[test]
fn the_pool_holds_its_limit_and_closes_the_file_used_longest_ago() {
    let vfs = Arc::new(MemVfs::default());
    vfs.create_dir_all(Path::new("/d")).unwrap();
    let path = |n: u64| PathBuf::from(format!("/d/{n}"));
    for n in 0..5 {
        vfs.open(&path(n), OpenMode::CreateNew).unwrap();
    }
    let pool = Arc::new(FilePool::new(Arc::clone(&vfs) as Arc<dyn Vfs>, 2));
    let file = |n| PooledFile::new(Arc::clone(&pool), SegmentId(n), path(n));
    let files = [file(0), file(1), file(2)];
    for n in [0, 1, 0, 2] {
        files[n].file().unwrap();
        assert!(pool.open_files() <= 2);
    }
    // File 1 was closed to make room for 2, so removing it shows only there.
    for n in 0..3 {
        vfs.remove_file(&path(n)).unwrap();
    }
    let mut reads = 0;
    let mut read = |file: &PooledFile| {
        file.with(&mut |_| {
            reads += 1;
            Ok(())
        })
    };
    assert!(read(&files[0]).is_ok() && files[0].file().is_ok());
    assert!(read(&files[2]).is_ok() && files[2].file().is_ok());
    assert!(matches!(read(&files[1]), Err(Error::Io { .. })) && files[1].file().is_err());
    assert_eq!(reads, 2);
    // Where another process may have removed it, that is no fault of the system's.
    pool.expect_removals();
    let gone = files[1].file().map(|_| ()).unwrap_err();
    assert!(matches!(gone, Error::Outdated { path: gone } if gone == path(1)));
    pool.forget(SegmentId(0));
    assert_eq!(pool.open_files(), 1);
    drop(files);
    assert_eq!(pool.open_files(), 0);
}

#[test]
fn threads_that_read_more_files_than_may_be_open_all_get_theirs() {
    let vfs = Arc::new(MemVfs::default());
    vfs.create_dir_all(Path::new("/d")).unwrap();
    let pool = Arc::new(FilePool::new(Arc::clone(&vfs) as Arc<dyn Vfs>, 3));
    let files: Vec<PooledFile> = (0..8u64)
        .map(|n| {
            let path = PathBuf::from(format!("/d/{n}"));
            let file = vfs.open(&path, OpenMode::CreateNew).unwrap();
            file.write_all_at(&n.to_le_bytes(), 0).unwrap();
            PooledFile::new(Arc::clone(&pool), SegmentId(n), path)
        })
        .collect();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (files, pool) = (&files, &pool);
            scope.spawn(move || {
                for n in 0..3000 {
                    let n = (n * (thread + 1)) % 8;
                    let mut read = [0; 8];
                    let filled = files[n].with(&mut |file| {
                        file.read_exact_at(&mut read, 0)
                            .map_err(|e| Error::io("read", Path::new("x"), e))
                    });
                    filled.unwrap();
                    assert_eq!(u64::from_le_bytes(read), n as u64);
                    assert!(pool.open_files() <= 3);
                }
            });
        }
    });
}
