//! A hint to the processor that a cache line will be needed soon, so that waiting times overlap.
//!
//! It reads nothing: a wrong address costs time, no more. Called where a measurement showed that it
//! pays: by the key map for batches, by the block cache, by the cursors of segments and
//! memtables.

/// Asks for the cache line at this address. Any address will do, even one that is not mapped.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
#[inline]
pub(crate) fn prefetch(address: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: the instruction is part of SSE, which every x86-64 processor has. It is a hint: it
    // neither faults nor changes what the program sees, whatever the address, so the pointer need
    // not be valid for reads, and it is never dereferenced.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::without_provenance(address)) }
}

/// Does nothing: this processor's hint is not in the stable standard library.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(crate) fn prefetch(_: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_may_be_asked_for() {
        let line = [7_u8; 64];
        for address in [0, 1, usize::MAX, line.as_ptr().addr(), line.as_ptr().addr() + 4096] {
            prefetch(address);
        }
        assert_eq!(line, [7; 64]);
    }
}
