//! The order of a memtable's entries: a `crossbeam_skiplist` of pointers into the arena.
//!
//! Entries are ordered by (keyspace, key, falling sequence number), one node each. A node holds the
//! keyspace, the first twelve bytes of the key and the entry's address: most comparisons on the way
//! down touch nothing else.
//!
//! Invariants: every pointer in a [`Sorted`] is to an entry of the arena that it keeps, and pointers
//! leave it only into a [`Run`], which keeps the `Sorted`. So a pointer that can be followed is to a
//! published entry, which neither moves nor changes. One thread inserts; any number read.

use super::entry::{Entry, HEADER, Ref, entry_len};
use super::{Arena, hand_out};
use crate::prefetch::prefetch;
use crate::sync::Arc;
use crate::types::{KeyspaceId, SeqNo};
use bytes::Bytes;
use crossbeam_skiplist::SkipMap;
use std::borrow::Borrow;
use std::cmp;
use std::ops::Bound;
use std::ptr::NonNull;

/// The address of an entry.
#[derive(Clone, Copy)]
struct Address(NonNull<u8>);

// SAFETY: the bytes behind it are only ever read (see `Chunk`).
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

impl Address {
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

/// What is compared first: the keyspace and the first twelve bytes of the key, padded with zeros, as
/// one big-endian number. Unequal numbers order as (keyspace, key) does.
type Prefix = (u64, u64);

fn prefix(keyspace: KeyspaceId, key: &[u8]) -> Prefix {
    let mut padded = [0; 16];
    padded[..4].copy_from_slice(&keyspace.0.to_be_bytes());
    let len = key.len().min(12);
    padded[4..4 + len].copy_from_slice(&key[..len]);
    let number = u128::from_be_bytes(padded);
    ((number >> 64) as u64, number as u64)
}

/// An entry in the order.
struct Node {
    prefix: Prefix,
    address: Address,
}

/// What a node takes on average, its tower and the allocator's rounding included: 24 bytes, a
/// counter, and two pointers on average, rounded up to 16 with a header of 8.
const NODE_BYTES: usize = 64;

impl Node {
    fn keyspace(&self) -> KeyspaceId {
        KeyspaceId((self.prefix.0 >> 32) as u32)
    }
}

/// A place in the order, of an entry or of a search for one.
#[derive(Clone, Copy)]
struct Place<'a> {
    prefix: Prefix,
    key: &'a [u8],
    seqno: SeqNo,
}

/// What a search and a node have in common, so that a search needs no node of its own.
trait HasPlace {
    fn prefix(&self) -> Prefix;
    /// Key and sequence number: in a node, behind the pointer.
    fn rest(&self) -> (&[u8], SeqNo);
}

impl HasPlace for Node {
    #[inline]
    fn prefix(&self) -> Prefix {
        self.prefix
    }

    #[inline]
    fn rest(&self) -> (&[u8], SeqNo) {
        // SAFETY: a node is made for an entry of the arena of the `Sorted` that the node is put
        // into, and is read only through a borrow of that `Sorted`, which keeps the arena. (Dropping
        // a node does not follow its address.)
        let entry = unsafe { self.address.entry() };
        entry.map_or((&[], SeqNo::ZERO), |entry| (entry.key(), entry.seqno()))
    }
}

impl HasPlace for Place<'_> {
    #[inline]
    fn prefix(&self) -> Prefix {
        self.prefix
    }

    #[inline]
    fn rest(&self) -> (&[u8], SeqNo) {
        (self.key, self.seqno)
    }
}

#[inline]
fn compare<A: HasPlace + ?Sized, B: HasPlace + ?Sized>(a: &A, b: &B) -> cmp::Ordering {
    a.prefix().cmp(&b.prefix()).then_with(|| {
        let ((key_a, seqno_a), (key_b, seqno_b)) = (a.rest(), b.rest());
        key_a.cmp(key_b).then_with(|| seqno_b.cmp(&seqno_a))
    })
}

macro_rules! ordered_by_place {
    ($type:ty) => {
        impl Ord for $type {
            #[inline]
            fn cmp(&self, other: &Self) -> cmp::Ordering {
                compare(self, other)
            }
        }

        impl PartialOrd for $type {
            #[inline]
            fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
                Some(self.cmp(other))
            }
        }

        impl PartialEq for $type {
            fn eq(&self, other: &Self) -> bool {
                self.cmp(other) == cmp::Ordering::Equal
            }
        }

        impl Eq for $type {}
    };
}

ordered_by_place!(Node);
ordered_by_place!(dyn HasPlace + '_);

impl<'a> Borrow<dyn HasPlace + 'a> for Node {
    fn borrow(&self) -> &(dyn HasPlace + 'a) {
        self
    }
}

/// Where a [`Run`] starts. A key's versions run from the newest to the oldest.
#[derive(Clone, Copy, Debug)]
pub(in crate::memtable) enum Start<'a> {
    /// In front of the newest version of the key.
    Before(&'a [u8]),
    /// In front of the newest version of the key at or before the number.
    At(&'a [u8], SeqNo),
    /// Behind the oldest version of the key.
    Behind(&'a [u8]),
    /// At the end of the keyspace.
    End,
}

/// See the module's text.
pub(in crate::memtable) struct Sorted {
    map: SkipMap<Node, ()>,
    arena: Arc<Arena>,
}

impl Sorted {
    /// Nothing, in the order to be, of the entries of this arena.
    pub(in crate::memtable) fn new(arena: Arc<Arena>) -> Self {
        Sorted { map: SkipMap::new(), arena }
    }

    /// Adds the entry of the arena at this place. An entry of its keyspace, key and sequence number
    /// must not be there yet.
    pub(in crate::memtable) fn insert(&self, at: Ref) {
        let Some(entry) = self.arena.entry(at) else { return };
        let prefix = prefix(entry.keyspace(), entry.key());
        self.map.insert(Node { prefix, address: Address::of(entry) }, ());
    }

    /// The first keyspace, from this one on, that has entries.
    pub(in crate::memtable) fn keyspace_from(&self, from: KeyspaceId) -> Option<KeyspaceId> {
        let place = Place { prefix: prefix(from, b""), key: b"", seqno: SeqNo::MAX };
        let node = self.map.lower_bound::<dyn HasPlace>(Bound::Included(&place))?;
        Some(node.key().keyspace())
    }

    /// The memory of the nodes, in bytes: an estimate that rather exceeds.
    pub(in crate::memtable) fn allocated_bytes(&self) -> usize {
        self.map.len() * NODE_BYTES
    }
}

/// Consecutive entries of one keyspace, in the direction in which they were collected.
pub(in crate::memtable) struct Run {
    sorted: Arc<Sorted>,
    keyspace: KeyspaceId,
    /// Addresses of entries of `sorted`'s arena.
    entries: Vec<Address>,
}

impl Run {
    /// No entries.
    pub(in crate::memtable) fn new(sorted: Arc<Sorted>, keyspace: KeyspaceId) -> Self {
        Run { sorted, keyspace, entries: Vec::new() }
    }

    pub(in crate::memtable) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry at a place in the run.
    #[inline]
    pub(in crate::memtable) fn get(&self, at: usize) -> Option<Entry<'_>> {
        let address = self.entries.get(at)?;
        // SAFETY: addresses in a run come from `sorted`, whose arena is kept as long as the run.
        unsafe { address.entry() }
    }

    /// The key of the entry at a place in the run, for as long as the caller likes.
    pub(in crate::memtable) fn key_bytes(&self, at: usize) -> Bytes {
        self.hand_out(self.get(at).map(|entry| entry.key()))
    }

    /// The value of the entry at a place in the run, for as long as the caller likes.
    pub(in crate::memtable) fn value(&self, at: usize) -> Bytes {
        self.hand_out(self.get(at).map(|entry| entry.value()))
    }

    fn hand_out(&self, bytes: Option<&[u8]>) -> Bytes {
        // SAFETY: the callers give bytes of an entry of the run, which lie in this arena.
        bytes.map_or_else(Bytes::new, |bytes| unsafe { hand_out(&self.sorted.arena, bytes) })
    }

    /// Collects up to `want` entries forwards or backwards from a start.
    pub(in crate::memtable) fn fill(&mut self, start: Start<'_>, forward: bool, want: usize) {
        let (keyspace, key, seqno) = match start {
            Start::Before(key) => (self.keyspace, key, SeqNo::MAX),
            Start::At(key, seqno) => (self.keyspace, key, seqno),
            Start::Behind(key) => (self.keyspace, key, SeqNo::ZERO),
            Start::End => match self.keyspace.0.checked_add(1) {
                Some(next) => (KeyspaceId(next), &[][..], SeqNo::MAX),
                None => return self.collect(forward, Bound::Unbounded, want),
            },
        };
        let place = Place { prefix: prefix(keyspace, key), key, seqno };
        // The newest and the oldest number of all belong to the key.
        let in_front = matches!(start, Start::Before(_) | Start::At(..));
        let inside = in_front == forward && !matches!(start, Start::End);
        let bound: Bound<&dyn HasPlace> =
            if inside { Bound::Included(&place) } else { Bound::Excluded(&place) };
        self.collect(forward, bound, want);
    }

    /// Collects up to `want` entries behind (or, backwards, in front of) the one at a place in the
    /// run. Leaves the run as it is if there is no such place.
    pub(in crate::memtable) fn refill(&mut self, from: usize, forward: bool, want: usize) {
        let Some(address) = self.entries.get(from).copied() else { return };
        // SAFETY: as in `get`. The entry's lifetime is not tied to `entries`, which changes below,
        // but it ends before `sorted`, which does not.
        let Some(entry) = (unsafe { address.entry() }) else { return };
        let from = Node { prefix: prefix(self.keyspace, entry.key()), address };
        self.collect(forward, Bound::Excluded(&from), want);
    }

    fn collect(&mut self, forward: bool, bound: Bound<&dyn HasPlace>, want: usize) {
        self.entries.clear();
        let map = &self.sorted.map;
        let mut next = if forward {
            map.lower_bound::<dyn HasPlace>(bound)
        } else {
            map.upper_bound::<dyn HasPlace>(bound)
        };
        while let Some(entry) = next {
            if entry.key().keyspace() != self.keyspace {
                break;
            }
            let address = entry.key().address;
            // In the order of the keys each entry lies somewhere else: without this, a scan waits for
            // every one of them and takes half as long again.
            prefetch(address.0.addr().get());
            self.entries.push(address);
            if self.entries.len() >= want {
                break;
            }
            next = if forward { entry.next() } else { entry.prev() };
        }
    }
}
