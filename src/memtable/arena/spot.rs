//! One entry of an arena, found once and read often.
//!
//! Invariants: a [`Spot`] keeps its arena and is at a published entry of it or at none; that entry
//! neither moves nor changes. So to read it is to read a header, without looking up chunks.

use super::entry::{Entry, HEADER, Ref, entry_len};
use super::{Arena, hand_out};
use crate::sync::Arc;
use bytes::Bytes;
use std::ptr::NonNull;

/// The address of an entry.
#[derive(Clone, Copy)]
struct Address(NonNull<u8>);

// SAFETY: the bytes behind it are only ever read (see `Chunk`).
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

impl Address {
    #[inline]
    fn of(entry: Entry<'_>) -> Self {
        Address(NonNull::from(entry.bytes()).cast())
    }

    /// # Safety
    ///
    /// It is the address of an entry whose arena lives throughout `'a`.
    #[inline]
    unsafe fn entry<'a>(self) -> Option<Entry<'a>> {
        // SAFETY: `of` was given a whole entry, header included, and published bytes do not change.
        // Every value is a valid byte array, and its alignment is one.
        let header = unsafe { self.0.cast::<[u8; HEADER]>().as_ref() };
        // SAFETY: the entry's header still says what it said to `of`, so this is the length of the
        // slice that the address came from.
        let bytes = unsafe { std::slice::from_raw_parts(self.0.as_ptr(), entry_len(header)) };
        Entry::decode(bytes)
    }
}

/// See the module's text.
pub(in crate::memtable) struct Spot {
    arena: Arc<Arena>,
    /// Of an entry of `arena`.
    address: Option<Address>,
}

impl Spot {
    /// At no entry.
    pub(in crate::memtable) fn new(arena: Arc<Arena>) -> Self {
        Spot { arena, address: None }
    }

    pub(in crate::memtable) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Goes to an entry, or to none.
    #[inline]
    pub(in crate::memtable) fn set(&mut self, at: Option<Ref>) {
        self.address = at.and_then(|at| self.arena.entry(at)).map(Address::of);
    }

    #[inline]
    pub(in crate::memtable) fn is_set(&self) -> bool {
        self.address.is_some()
    }

    /// The entry, if it is at one.
    #[inline]
    pub(in crate::memtable) fn entry(&self) -> Option<Entry<'_>> {
        let address = self.address?;
        // SAFETY: the address is of an entry of `arena`, which is kept as long as the borrow.
        unsafe { address.entry() }
    }

    /// The entry's key, for as long as the caller likes.
    pub(in crate::memtable) fn key_bytes(&self) -> Bytes {
        self.hand_out(self.entry().map(|entry| entry.key()))
    }

    /// The entry's value, for as long as the caller likes.
    pub(in crate::memtable) fn value(&self) -> Bytes {
        self.hand_out(self.entry().map(|entry| entry.value()))
    }

    fn hand_out(&self, bytes: Option<&[u8]>) -> Bytes {
        // SAFETY: the callers give bytes of an entry of this arena.
        bytes.map_or_else(Bytes::new, |bytes| unsafe { hand_out(&self.arena, bytes) })
    }
}
