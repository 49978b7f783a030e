//! Watches what is allocated, so that damaged lengths that are believed are noticed.
//!
//! The allocator of the campaign is the system's, with a note of the largest piece that each thread
//! asked for.

#![expect(unsafe_code, reason = "an allocator is unsafe to write, however little it does")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The most that reading a small store may ask for in one piece, in bytes, whatever is in its
/// files. Sound ones need a 256 KiB read buffer and the largest value, twice.
pub const PIECE_MAX: usize = 2 << 20;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Watched;

#[global_allocator]
static HEAP: Watched = Watched;

fn note(size: usize) {
    // While a thread ends there is nothing to note it in.
    if let Ok(()) = LARGEST.try_with(|largest| largest.set(largest.get().max(size))) {}
}

// SAFETY: every call goes to the system's allocator as it came; noting a number in a thread-local
// cell without a destructor neither allocates nor unwinds.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the rules of `alloc`, which are the same here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: as above; `at` came from this allocator, that is, from the system's.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Runs something and gives the largest piece that this thread asked for meanwhile.
pub fn largest_piece<T>(run: impl FnOnce() -> T) -> (T, usize) {
    LARGEST.set(0);
    let outcome = run();
    (outcome, LARGEST.get())
}
