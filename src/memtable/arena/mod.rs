//! The bytes of a memtable's entries: an append-only store of chunks that never move.
//!
//! Invariants: there is one [`ArenaWriter`] for an [`Arena`]; it writes only behind what it has
//! published, so published bytes never change, and they stay where they are until the arena is
//! dropped. Any number of threads read published bytes meanwhile and never wait. A [`Ref`] is
//! checked against what is published, so that no bits in it can reach other memory.
//!
//! Chunks double from 4 KiB to 1 MiB; an entry that would waste much of one gets a chunk of its
//! own. In a large arena they come two at a time straight from the system, in huge pages where it has
//! them, and go back to it. Called by the memtable only; `unsafe` is allowed in this room and nowhere else in the
//! memtable.
//!
//! Miri runs the tests of this room under tree borrows. Tests of the memtable, which drop a
//! skiplist need `-Zmiri-disable-stacked-borrows` instead: `crossbeam_skiplist` 0.1.3 frees its nodes
//! through shared references, which no aliasing model allows, and `-Zmiri-ignore-leaks`: the epochs
//! behind it keep garbage until the process ends. All other checks stay on.

mod chunks;
mod entry;
mod spot;

pub(super) use entry::{Entry, NewEntry, REF_BITS, Ref};
pub(super) use spot::Spot;

use crate::prefetch::prefetch;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicUsize, Ordering};
use bytes::Bytes;
use chunks::{Chunk, ChunkList};
use entry::HEADER;
use std::ptr::NonNull;

/// Chunks grow from the first size to the second.
const FIRST_CHUNK: usize = 4 << 10;
const FULL_CHUNK: usize = 1 << 20;

/// From this one on, full chunks come in pairs. The second of a pair is not counted before it is used,
/// though its memory may be resident: by then that is little of the arena.
const PAIRS_FROM: usize = 16;

/// Up to this size a value is handed out as a copy: that costs what a shared handle costs, and lets
/// go of the arena.
const COPY_MAX: usize = 1024;

/// See the module's text.
#[derive(Default)]
pub(super) struct Arena {
    chunks: ChunkList,
    allocated: AtomicUsize,
}

impl Arena {
    /// The entry at a place; none where there is none. Costs one memory access besides the entry's.
    #[inline]
    pub(super) fn entry(&self, at: Ref) -> Option<Entry<'_>> {
        let chunk = self.chunks.get(at.chunk()?)?;
        Entry::decode(chunk.published().get(at.offset()..)?)
    }

    /// Asks for the memory of the entry at a place, if it is in the arena.
    #[inline]
    pub(super) fn prefetch(&self, at: Ref) {
        let chunk = at.chunk().and_then(|number| self.chunks.get(number));
        if let Some(chunk) = chunk {
            let address = chunk.published().as_ptr().addr() + at.offset();
            // Key and value of a small entry.
            prefetch(address);
            prefetch(address + 64);
        }
    }

    /// The value of the entry at a place, for as long as the caller likes.
    pub(super) fn value(self: &Arc<Self>, at: Ref) -> Bytes {
        let Some(entry) = self.entry(at) else { return Bytes::new() };
        // SAFETY: the value lies in a chunk of this arena.
        unsafe { hand_out(self, entry.value()) }
    }

    /// The memory of all chunks, in bytes.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }
}

/// The one that appends to an arena.
pub(super) struct ArenaWriter {
    arena: Arc<Arena>,
    /// How many chunks there are.
    chunks: usize,
    /// The chunk being filled.
    current: usize,
    used: usize,
    size: usize,
    /// The second of a pair of chunks, of which the first is in the arena.
    second: Option<Chunk>,
}

impl ArenaWriter {
    /// An empty arena, to be read through [`ArenaWriter::arena`].
    pub(super) fn new() -> Self {
        let arena = Arc::new(Arena::default());
        ArenaWriter { arena, chunks: 0, current: 0, used: 0, size: 0, second: None }
    }

    pub(super) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Copies an entry into the arena.
    ///
    /// # Panics
    ///
    /// After 2^20 - 1 chunks, that is, with 256 GiB or more in one memtable.
    pub(super) fn append(&mut self, entry: NewEntry<'_>) -> Ref {
        let header = entry.header();
        let len = HEADER + entry.key.len() + entry.value.len();
        let (number, offset) = self.place(len);
        let chunk = self.arena.chunks.get(number).expect("it was added");
        // SAFETY: this is the only writer of the arena and is borrowed mutably, so no one else
        // appends.
        unsafe { chunk.append([&header, entry.key, entry.value]) };
        Ref::new(number, offset)
    }

    /// Finds room: a chunk, and the offset at which its next entry begins.
    fn place(&mut self, len: usize) -> (usize, usize) {
        if len > self.size - self.used {
            if len > FULL_CHUNK / 4 {
                return (self.add_chunk(len), 0);
            }
            let next = (self.size * 2).clamp(FIRST_CHUNK, FULL_CHUNK);
            self.size = next.max(len.next_power_of_two());
            self.current = self.add_chunk(self.size);
            self.used = 0;
        }
        let offset = self.used;
        self.used += len;
        (self.current, offset)
    }

    fn add_chunk(&mut self, size: usize) -> usize {
        let number = self.chunks;
        assert!(number < Ref::CHUNKS, "a memtable holds at most {} chunks", Ref::CHUNKS);
        let paired = size == FULL_CHUNK && number >= PAIRS_FROM;
        let chunk = if paired { self.full_chunk() } else { Chunk::new(size) };
        let listed = self.arena.chunks.add(number, chunk);
        self.chunks += 1;
        self.arena.allocated.fetch_add(size + listed, Ordering::Relaxed);
        number
    }

    fn full_chunk(&mut self) -> Chunk {
        if let Some(second) = self.second.take() {
            return second;
        }
        let Some([first, second]) = Chunk::pair(FULL_CHUNK) else { return Chunk::new(FULL_CHUNK) };
        self.second = Some(second);
        first
    }
}

/// Bytes of an arena's entry, as a handle that outlives the memtable.
///
/// # Safety
///
/// The bytes lie in a chunk of this arena.
unsafe fn hand_out(arena: &Arc<Arena>, bytes: &[u8]) -> Bytes {
    if bytes.len() <= COPY_MAX {
        return Bytes::copy_from_slice(bytes);
    }
    Bytes::from_owner(Shared { bytes: NonNull::from(bytes), _arena: Arc::clone(arena) })
}

/// What a handle keeps.
struct Shared {
    bytes: NonNull<[u8]>,
    _arena: Arc<Arena>,
}

// SAFETY: the bytes are published bytes of an arena: nobody writes them, and any thread may read
// them. The arena may be dropped by any thread.
unsafe impl Send for Shared {}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `hand_out` is told that the bytes lie in the arena. They were borrowed from it, so
        // they are published and never change, and they stay in place while the arena is kept here.
        unsafe { self.bytes.as_ref() }
    }
}

#[cfg(test)]
mod tests;
