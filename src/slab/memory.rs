//! Memory straight from the system, in large pieces. It is zero, and a page of it becomes resident
//! when it is first written.
//!
//! On Linux it can lie in huge pages, if the system's administrator left that possible. Under Miri,
//! which has no system, it comes from the heap. Called by the slabs and by the memtable's arena.

use std::ptr::NonNull;

#[cfg(miri)]
use heap::Mapping;
#[cfg(not(miri))]
use memmap2::MmapMut as Mapping;

/// A piece of memory, owned. It does not move.
pub(crate) struct Memory {
    start: NonNull<u8>,
    len: usize,
    huge: bool,
    /// What `start` points into.
    _mapping: Mapping,
}

// SAFETY: the memory is this value's own, wherever that is; nothing here reads or writes it.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// So many bytes, a power of two. `huge`: in one or more huge pages, if that can be, which its
    /// length and place then fit. `None` if the system gives none.
    pub(crate) fn map(len: usize, huge: bool) -> Option<Memory> {
        let mut mapping = Mapping::map_anon(len).ok()?;
        if huge && mapping.as_mut_ptr().align_offset(len) != 0 {
            // What lies in front of the aligned part and behind it is never touched.
            mapping = Mapping::map_anon(len.checked_mul(2)?).ok()?;
        }
        let start = mapping.as_mut_ptr();
        let skipped = if huge { start.align_offset(len) } else { 0 };
        let start = NonNull::new(start.wrapping_add(skipped))?;
        let huge = huge && advise_huge(&mapping);
        Some(Memory { start, len, huge, _mapping: mapping })
    }

    /// Whether it lies in huge pages, as far as the system has them.
    pub(crate) fn is_huge(&self) -> bool {
        self.huge
    }

    /// The place of a byte.
    pub(crate) fn at(&self, offset: usize) -> Option<NonNull<u8>> {
        debug_assert!(offset < self.len);
        NonNull::new(self.start.as_ptr().wrapping_add(offset))
    }
}

/// Asks for huge pages. Says whether the system took it.
#[cfg(all(target_os = "linux", not(miri)))]
fn advise_huge(mapping: &Mapping) -> bool {
    mapping.advise(memmap2::Advice::HugePage).is_ok()
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn advise_huge(_: &Mapping) -> bool {
    false
}

#[cfg(miri)]
mod heap {
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::io;

    /// Stands in for a mapping.
    pub(super) struct Mapping {
        start: *mut u8,
        layout: Layout,
    }

    impl Mapping {
        pub(super) fn map_anon(len: usize) -> io::Result<Mapping> {
            let layout = Layout::from_size_align(len.max(1), 4096).map_err(io::Error::other)?;
            // SAFETY: the layout's size is not zero.
            let start = unsafe { alloc_zeroed(layout) };
            if start.is_null() {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            Ok(Mapping { start, layout })
        }

        pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
            self.start
        }
    }

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: it was allocated with this layout, and nobody has it but this value.
            unsafe { dealloc(self.start, self.layout) }
        }
    }
}
