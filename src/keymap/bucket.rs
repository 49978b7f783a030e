//! One cache line of the key map: fourteen slots and what a probe needs to know about them.
//!
//! Word 0 holds a 4-bit tag per slot (bits 0 to 55), a 4-bit count of the stored entries that found
//! this bucket full and passed on (bits 56 to 59), and one flag per fingerprint class that says
//! whether an entry of that class did (bits 60 to 63). Words 1 to 7 hold two 32-bit entries each.
//! An entry of zero is an empty slot.
//!
//! Invariants: the count never falls below the number of entries that passed. It saturates at 15
//! and then stays, because what was not counted cannot be taken back. The flags are cleared when
//! the count returns to zero. Plain values; called by `table`.

/// Slots in a bucket.
pub(super) const SLOTS: usize = 14;

/// The tags, without count and flags.
const ONES: u64 = 0x0011_1111_1111_1111;
const HIGHS: u64 = 0x0088_8888_8888_8888;
const SEVENS: u64 = 0x7777_7777_7777_7777;

const COUNT_SHIFT: u32 = 56;
const COUNT_ONE: u64 = 1 << COUNT_SHIFT;
const FLAGS_SHIFT: u32 = 60;
const COUNT_AND_FLAGS: u64 = 0xff << COUNT_SHIFT;

/// The count that is never taken down again.
pub(super) const STICKY: u64 = 15;

/// Fourteen slots in 64 bytes.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Bucket([u64; 8]);

impl Bucket {
    /// No entry, nothing passed.
    pub(super) const EMPTY: Bucket = Bucket([0; 8]);

    /// The slots whose tag is `tag`, empty ones among them. Exact: no false positive.
    #[inline]
    pub(super) fn tagged(&self, tag: u32) -> Slots {
        let differ = self.0[0] ^ (u64::from(tag) * ONES);
        // The high bit of a nibble survives where the nibble is zero; no carry leaves a nibble.
        Slots(!(((differ & SEVENS) + SEVENS) | differ) & HIGHS)
    }

    /// The entry in a slot; zero if there is none.
    #[inline]
    pub(super) fn entry(&self, slot: usize) -> u32 {
        (self.0[(1 + slot / 2) & 7] >> ((slot & 1) * 32)) as u32
    }

    /// The first empty slot.
    #[inline]
    pub(super) fn free(&self) -> Option<usize> {
        (0..SLOTS).find(|slot| self.entry(*slot) == 0)
    }

    /// Puts an entry with its tag into a slot; an entry of zero empties it.
    #[inline]
    pub(super) fn put(&mut self, slot: usize, tag: u32, entry: u32) {
        let at = slot as u32 * 4;
        self.0[0] = (self.0[0] & !(15 << at)) | (u64::from(tag) << at);
        self.set(slot, entry);
    }

    /// Replaces the entry in a slot and leaves its tag.
    #[inline]
    pub(super) fn set(&mut self, slot: usize, entry: u32) {
        let word = &mut self.0[(1 + slot / 2) & 7];
        let at = (slot & 1) * 32;
        *word = (*word & !(0xffff_ffff << at)) | (u64::from(entry) << at);
    }

    /// The tag of a slot.
    pub(super) fn tag(&self, slot: usize) -> u32 {
        ((self.0[0] >> (slot * 4)) & 15) as u32
    }

    /// Whether an entry of this tag's class may have passed on.
    #[inline]
    pub(super) fn passed(&self, tag: u32) -> bool {
        (self.0[0] >> (FLAGS_SHIFT + (tag & 3))) & 1 != 0
    }

    /// The number of entries that passed, up to [`STICKY`].
    #[inline]
    pub(super) fn count(&self) -> u64 {
        (self.0[0] >> COUNT_SHIFT) & 15
    }

    /// Records that an entry passes on.
    #[inline]
    pub(super) fn pass(&mut self, tag: u32) {
        if self.count() < STICKY {
            self.0[0] += COUNT_ONE;
        }
        self.0[0] |= 1 << (FLAGS_SHIFT + (tag & 3));
    }

    /// Takes [`Bucket::pass`] back.
    #[inline]
    pub(super) fn unpass(&mut self) {
        match self.count() {
            STICKY => {}
            0 => debug_assert!(false, "more entries taken back than passed"),
            1 => self.0[0] &= !COUNT_AND_FLAGS,
            _ => self.0[0] -= COUNT_ONE,
        }
    }
}

/// A set of slots: the high bit of each slot's nibble.
#[derive(Debug)]
pub(super) struct Slots(u64);

impl Iterator for Slots {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let slot = self.0.trailing_zeros() as usize / 4;
        self.0 &= self.0 - 1;
        Some(slot)
    }
}
