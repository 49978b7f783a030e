//! Models of the table of cached blocks: what comes, goes and is looked at at the same time, and the
//! books that the cache keeps of it.

use super::*;
use crate::segment::Part;
use crate::sync::modeled::{Mistake, explore, makes};
use crate::sync::{Mutex, Weak};
use loom::thread;

/// What the cache was told.
#[derive(Default)]
struct Books {
    blocks: i64,
    block_bytes: i64,
    table_bytes: i64,
    /// The blocks that may be asked to go.
    clock: Vec<(Weak<Frames>, u64)>,
}

#[derive(Default)]
struct Cache(Mutex<Books>);

impl Cache {
    fn book(&self, blocks: i64, block_bytes: u64, table_bytes: i64) {
        let mut books = self.0.lock();
        books.blocks += blocks;
        books.block_bytes += blocks * block_bytes as i64;
        books.table_bytes += table_bytes;
        let right = books.blocks >= 0 && books.block_bytes >= 0 && books.table_bytes >= 0;
        // What panics below a lock that others take while they unwind would end the process.
        drop(books);
        assert!(right || std::thread::panicking(), "gone before it came");
    }

    fn evict_one(&self) {
        let Some((frames, page)) = self.0.lock().clock.pop() else { return };
        let Some(frames) = frames.upgrade() else { return };
        if !frames.evict(page) {
            self.0.lock().clock.push((Arc::downgrade(&frames), page));
        }
    }
}

impl BlockCache for Cache {
    fn get(&self, _: u64, _: u64) -> Option<Part> {
        None
    }

    fn insert(&self, _: u64, _: u64, _: Part) {}

    fn charge(&self, bytes: u64) {
        self.book(1, bytes, 0);
    }

    fn admit(&self, frames: &Arc<Frames>, page: u64) {
        self.0.lock().clock.push((Arc::downgrade(frames), page));
    }

    fn release(&self, bytes: u64) {
        self.book(-1, bytes, 0);
    }

    fn grow(&self, bytes: u64) {
        self.book(0, 0, bytes as i64);
    }

    fn shrink(&self, bytes: u64) {
        self.book(0, 0, -(bytes as i64));
    }

    fn has_room(&self, _: u64) -> bool {
        true
    }

    fn is_crowded(&self) -> bool {
        true
    }

    fn count(&self, _: u64, _: u64) {}

    fn era(&self) -> Option<u32> {
        None
    }
}

/// A block whose length says its page.
fn block(page: u64) -> Arc<Block> {
    Arc::new(Block::of_zeros(100 + page as usize))
}

fn setup(pages: &[u64]) -> (Arc<Cache>, Arc<Frames>) {
    let cache = Arc::new(Cache::default());
    let frames = Frames::new(Arc::clone(&cache) as Arc<dyn BlockCache>, 4);
    pages.iter().for_each(|page| frames.insert(*page, &block(*page)));
    (cache, frames)
}

fn look(frames: &Frames, page: u64) {
    let len = frames.with(page, |block| block.payload_len());
    assert!(len.is_none_or(|len| len == 100 + page as usize), "another page's block");
}

/// All threads are done: what the cache was told is what is there; and once the table is gone,
/// nothing is.
fn check(cache: &Cache, frames: Arc<Frames>) {
    let pages = frames.pages();
    let held: u64 = pages.iter().map(|page| cost(&block(*page))).sum();
    let found = |page: &u64| frames.with(*page, |_| ()).is_some();
    assert!(pages.iter().all(found), "a block that is there is not found");
    let chunks = frames.chunks.iter().filter(|chunk| chunk.load().is_some()).count();
    {
        let books = cache.0.lock();
        let told = (books.blocks as usize, books.block_bytes as u64, books.table_bytes as usize);
        drop(books);
        assert_eq!(told, (pages.len(), held, chunks * size_of::<Chunk>()));
    }
    drop(frames);
    let books = cache.0.lock();
    let left = (books.blocks, books.block_bytes, books.table_bytes);
    drop(books);
    assert_eq!(left, (0, 0, 0), "what is left in the books");
}

/// A block comes while its only neighbour goes, and the chunk with it.
fn come_and_go() {
    let (cache, frames) = setup(&[0]);
    let evictor = thread::spawn({
        let cache = Arc::clone(&cache);
        move || cache.evict_one()
    });
    let inserter = thread::spawn({
        let frames = Arc::clone(&frames);
        move || frames.insert(1, &block(1))
    });
    look(&frames, 0);
    evictor.join().unwrap();
    inserter.join().unwrap();
    look(&frames, 1);
    check(&cache, frames);
}

/// Two bring the same block, one takes blocks away.
fn twice() {
    let (cache, frames) = setup(&[]);
    let other = thread::spawn({
        let frames = Arc::clone(&frames);
        move || {
            frames.insert(0, &block(0));
            look(&frames, 0);
        }
    });
    let evictor = thread::spawn({
        let cache = Arc::clone(&cache);
        move || {
            cache.evict_one();
            cache.evict_one();
        }
    });
    if makes(Mistake::OfTheModel) && frames.with(0, |_| ()).is_none() {
        // As if looking and inserting were one step.
        let chunk = frames.chunks[0].load_full().unwrap_or_else(|| {
            let chunk = Arc::new(Chunk::new(&frames.cache));
            frames.chunks[0].swap(Some(Arc::clone(&chunk)));
            chunk
        });
        frames.cache.charge(cost(&block(0)));
        chunk.slots[0].block.swap(Some(block(0)));
        frames.cache.admit(&frames, 0);
    } else {
        frames.insert(0, &block(0));
    }
    other.join().unwrap();
    evictor.join().unwrap();
    check(&cache, frames);
}

/// A chunk is given up with a block in it, and the page comes again in another chunk.
fn again() {
    let (cache, frames) = setup(&[0]);
    let evictor = thread::spawn({
        let cache = Arc::clone(&cache);
        move || (0..3).for_each(|_| cache.evict_one())
    });
    frames.insert(1, &block(1));
    frames.insert(1, &block(1));
    evictor.join().unwrap();
    check(&cache, frames);
}

#[test]
fn loom_blocks_come_and_go() {
    explore("frames: insert, evict and read", None, come_and_go);
}

#[test]
fn loom_a_block_comes_twice() {
    explore("frames: the same block twice, and evictions", None, twice);
}

#[test]
fn loom_a_chunk_is_given_up_and_made_again() {
    explore("frames: a page comes again beside evictions", None, again);
}

#[test]
#[should_panic(expected = "assertion")]
fn loom_finds_that_looking_and_inserting_are_two_steps() {
    explore("", Some(Mistake::OfTheModel), twice);
}
