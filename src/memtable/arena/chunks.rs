//! The memory of an arena: chunks of bytes, and the list of them.
//!
//! Invariants: the first `published` bytes of a chunk are written and never change; what lies behind
//! belongs to the writer. A chunk in the list stays there until the list is dropped. One thread
//! appends (the caller of the unsafe functions sees to it), any number read without waiting.

use super::entry::Ref;
use crate::slab::Memory;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, OnceLock, Watched};
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

/// A fixed piece of memory that is filled from the front.
pub(super) struct Chunk {
    base: NonNull<u8>,
    /// What it is a part of; `None`: it has an allocation of its own.
    whole: Option<Arc<Memory>>,
    capacity: usize,
    published: AtomicUsize,
    watched: Watched,
}

// SAFETY: a chunk owns its memory, or its part of some: no other chunk has that part. Its written part is only read; the rest is touched by `append`
// alone, whose caller keeps all others out.
unsafe impl Send for Chunk {}
// SAFETY: as above; `published` orders the writes before the reads.
unsafe impl Sync for Chunk {}

impl Chunk {
    /// An empty chunk. The memory is not touched.
    pub(super) fn new(capacity: usize) -> Self {
        let memory: Box<[MaybeUninit<u8>]> = Box::new_uninit_slice(capacity);
        // A box is never null.
        let base = NonNull::from(Box::leak(memory)).cast();
        let published = AtomicUsize::new(0);
        Chunk { base, whole: None, capacity, published, watched: Watched::new() }
    }

    /// Two empty chunks of so many bytes each, a power of two: together in a huge page where the system
    /// has them. The memory is not touched, and goes back to the system with the second one.
    pub(super) fn pair(capacity: usize) -> Option<[Chunk; 2]> {
        let whole = Arc::new(Memory::map(capacity.checked_mul(2)?, true)?);
        let part = |number: usize| {
            let (published, watched) = (AtomicUsize::new(0), Watched::new());
            let base = whole.at(number * capacity)?;
            Some(Chunk { base, whole: Some(Arc::clone(&whole)), capacity, published, watched })
        };
        Some([part(0)?, part(1)?])
    }

    /// What was appended so far.
    #[inline]
    pub(super) fn published(&self) -> &[u8] {
        let len = self.published.load(Ordering::Acquire);
        self.watched.read(len);
        // SAFETY: the first `published` bytes lie within the allocation and were written before
        // that length was stored with Release; they do not change until the chunk is dropped, which
        // the borrow rules out.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), len) }
    }

    /// Appends the parts one after the other and publishes them together.
    ///
    /// # Panics
    ///
    /// If there is no room.
    ///
    /// # Safety
    ///
    /// No other thread appends to this chunk meanwhile.
    pub(super) unsafe fn append(&self, parts: [&[u8]; 3]) {
        let mut end = self.published.load(Ordering::Relaxed);
        let len: usize = parts.iter().map(|part| part.len()).sum();
        assert!(len <= self.capacity - end, "no room in the chunk");
        self.watched.written(end..end + len);
        for part in parts {
            // SAFETY: `end + part.len()` is within the allocation, as just checked. Bytes from `end`
            // on are not published, so no reference to them exists, and the caller keeps other
            // writers out; so `part` does not overlap them either.
            unsafe {
                ptr::copy_nonoverlapping(part.as_ptr(), self.base.as_ptr().add(end), part.len());
            }
            end += part.len();
        }
        self.published.store(end, Ordering::Release);
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if self.whole.is_some() {
            return;
        }
        let memory: *mut [u8] = ptr::slice_from_raw_parts_mut(self.base.as_ptr(), self.capacity);
        // SAFETY: the memory came from a box of this type and length, and is given back once. Bytes
        // need no initialization to be dropped as `MaybeUninit`.
        drop(unsafe { Box::from_raw(memory as *mut [MaybeUninit<u8>]) });
    }
}

/// How many chunks the first bucket of the list holds; each further one holds twice as many.
const FIRST_BUCKET: usize = 16;

/// So many buckets hold all chunks that a [`Ref`] can name.
const BUCKETS: usize = ((Ref::CHUNKS - 1) / FIRST_BUCKET + 1).ilog2() as usize + 1;

/// Chunks by number. Grows by buckets, so that nothing in it ever moves.
#[derive(Default)]
pub(super) struct ChunkList {
    buckets: [OnceLock<Box<[OnceLock<Chunk>]>>; BUCKETS],
}

impl ChunkList {
    /// The bucket of a chunk, and its place there. `None` for a number that is none.
    #[inline]
    fn locate(number: usize) -> Option<(usize, usize)> {
        // It wraps for what is no number of a chunk; then there is no bucket.
        let shifted = number.wrapping_add(FIRST_BUCKET);
        let bucket = (shifted / FIRST_BUCKET).checked_ilog2()?;
        Some((bucket as usize, shifted - (FIRST_BUCKET << bucket)))
    }

    /// The chunk of this number, if there is one.
    #[inline]
    pub(super) fn get(&self, number: usize) -> Option<&Chunk> {
        let (bucket, at) = Self::locate(number)?;
        self.buckets.get(bucket)?.get()?.get(at)?.get()
    }

    /// Lists a chunk under a number that has none yet. The bytes that the list grew by.
    pub(super) fn add(&self, number: usize, chunk: Chunk) -> usize {
        let (bucket, at) = Self::locate(number).expect("the number of a chunk");
        let size = FIRST_BUCKET << bucket;
        let slots =
            self.buckets[bucket].get_or_init(|| (0..size).map(|_| OnceLock::new()).collect());
        assert!(slots[at].set(chunk).is_ok(), "a chunk is listed once");
        if at == 0 { size * size_of::<OnceLock<Chunk>>() } else { 0 }
    }
}
