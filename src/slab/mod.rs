//! Memory for data blocks, apart from the heap's: regions cut into slots of one length each.
//!
//! Blocks come on one thread and go on another, by the thousand. A general allocator keeps what is
//! freed for the thread that had it, so that a full cache comes to take twice its size. Here a slot
//! goes back to its region, from whichever thread; a region without a block goes back to the system;
//! and regions of large caches lie in huge pages, so that reading a block costs fewer misses of the
//! processor's address cache.
//!
//! ```text
//! Slabs   class 4096:  region [slot|slot|slot|…|slot]  region […]
//!         class 4608:  …                               8 classes to each doubling
//! ```
//!
//! Lengths of slots rise by an eighth at most, so no more is wasted. The first region of a class has
//! pages of the usual size: what is not used of it does not become resident, so that a class with few
//! blocks takes little. One region of either kind is kept for the next that is needed.
//!
//! A [`Space`] is memory for one block: a slot, or the heap's where there is none to be had: for a
//! block of unusual length, or because the system gives no more. Nothing here panics or fails.
//!
//! Invariants: a slot is given out once until it comes back; a region stays where it is while one of
//! its slots is out; a slot keeps its slabs alive, so bytes outlive cache and database. A lock of a
//! class is held for moments, and no other lock is taken below it but that of the spare regions.
//! Thread-safe. Called by the segment room, for blocks; the block cache owns the slabs. The memtable's
//! arena takes [`Memory`] by itself.

mod memory;
#[cfg(test)]
mod tests;

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex};
use bytes::Bytes;
pub(crate) use memory::Memory;
use std::ptr::NonNull;

/// The lengths of slots are multiples of this.
const UNIT: usize = 512;

/// Classes to each doubling of the length.
const STEPS: usize = 8;

/// The shortest slot.
const SHORTEST: usize = UNIT * STEPS;

/// The longest slot.
const LONGEST: usize = SHORTEST << DOUBLINGS;
const DOUBLINGS: usize = 4;
const CLASSES: usize = DOUBLINGS * STEPS + 1;

/// The length of a huge page, and of the regions of a cache that uses them.
const HUGE: usize = 2 << 20;

/// The length of the regions of other caches.
const SMALL: usize = 256 << 10;

/// Caches of so many bytes use huge pages.
const HUGE_FROM: usize = 32 << 20;

/// What the records of a slot take that shares its bytes: itself, a count and what the heap adds.
const OWNER: usize = size_of::<Slot>() + 32;

/// The class of the slots for so many bytes. `None`: they would waste more than an eighth, or there
/// are none.
fn class_of(len: usize) -> Option<usize> {
    if len <= SHORTEST - SHORTEST / STEPS || len > LONGEST {
        return None;
    }
    let units = len.div_ceil(UNIT).max(STEPS);
    let doublings = (units / STEPS).ilog2() as usize;
    Some(doublings * STEPS + units.div_ceil(1 << doublings) - STEPS)
}

/// The length of the slots of a class.
fn slot_len(class: usize) -> usize {
    ((STEPS + class % STEPS) << (class / STEPS)) * UNIT
}

/// See the module's text.
pub(crate) struct Slabs {
    /// The length of a region.
    region_len: usize,
    huge: bool,
    /// Where regions come from.
    source: fn(usize, bool) -> Option<Memory>,
    classes: [Mutex<Class>; CLASSES],
    /// How many bytes regions take, spare ones among them.
    held: AtomicU64,
    /// Regions that were given up: at most one with huge pages, and one without.
    spare: Mutex<Vec<Memory>>,
}

/// The slots of one length.
#[derive(Default)]
struct Class {
    /// By their numbers, which slots bear.
    regions: Vec<Option<Region>>,
    /// Numbers without a region.
    vacant: Vec<u32>,
    /// Regions with a free slot. The last is used first, so that the others may become empty.
    open: Vec<u32>,
}

struct Region {
    memory: Memory,
    /// A bit for each free slot.
    free: Box<[u64]>,
    free_slots: usize,
    slots: usize,
}

impl Region {
    fn new(memory: Memory, slots: usize) -> Region {
        let word = |at: usize| match slots - at * 64 {
            rest @ 0..64 => (1 << rest) - 1,
            _ => u64::MAX,
        };
        let free = (0..slots.div_ceil(64)).map(word).collect();
        Region { memory, free, free_slots: slots, slots }
    }

    /// Takes the first free slot.
    fn take(&mut self) -> Option<usize> {
        let (at, word) = self.free.iter_mut().enumerate().find(|(_, word)| **word != 0)?;
        let bit = word.trailing_zeros();
        *word &= *word - 1;
        self.free_slots -= 1;
        Some(at * 64 + bit as usize)
    }

    fn give_back(&mut self, slot: usize) {
        if let Some(word) = self.free.get_mut(slot / 64) {
            debug_assert_eq!(*word & 1 << (slot % 64), 0, "a slot comes back once");
            *word |= 1 << (slot % 64);
            self.free_slots += 1;
        }
    }
}

impl Class {
    /// Adds a region with free slots. Says its number.
    fn add(&mut self, region: Region) -> u32 {
        let number = self.vacant.pop().unwrap_or(self.regions.len() as u32);
        match self.regions.get_mut(number as usize) {
            Some(place) => *place = Some(region),
            None => self.regions.push(Some(region)),
        }
        self.open.push(number);
        number
    }

    /// Takes a region away, all of whose slots are free.
    fn remove(&mut self, number: u32) -> Option<Region> {
        let region = self.regions.get_mut(number as usize)?.take();
        self.vacant.push(number);
        if let Some(at) = self.open.iter().rposition(|open| *open == number) {
            self.open.remove(at);
        }
        region
    }
}

impl Slabs {
    /// Slabs for a cache of so many bytes. Takes no memory yet.
    pub(crate) fn new(cache_bytes: usize) -> Slabs {
        Slabs::with_source(cache_bytes, Memory::map)
    }

    fn with_source(cache_bytes: usize, source: fn(usize, bool) -> Option<Memory>) -> Slabs {
        let huge = cache_bytes >= HUGE_FROM;
        let region_len = if huge { HUGE } else { SMALL };
        let classes = std::array::from_fn(|_| Mutex::default());
        let (held, spare) = (AtomicU64::new(0), Mutex::default());
        Slabs { region_len, huge, source, classes, held, spare }
    }

    /// The bytes that regions take beyond so many that are used, and beyond a few regions, which may
    /// always be part empty.
    pub(crate) fn unused_beyond(&self, used: u64) -> u64 {
        let few = 4 * self.region_len as u64;
        self.held.load(Ordering::Relaxed).saturating_sub(used + few)
    }

    /// A slot of at least so many bytes, if there is one to be had. What it holds is arbitrary.
    fn slot(self: &Arc<Self>, len: usize) -> Option<Slot> {
        let number = class_of(len)?;
        let slot_len = slot_len(number);
        let mut class = self.classes.get(number)?.lock();
        let region_number = match class.open.last() {
            Some(open) => *open,
            None => {
                let is_first = class.vacant.len() == class.regions.len();
                let memory = self.region(self.huge && !is_first)?;
                class.add(Region::new(memory, self.region_len / slot_len))
            }
        };
        let region = class.regions.get_mut(region_number as usize)?.as_mut()?;
        let index = region.take()?;
        let start = region.memory.at(index * slot_len)?;
        if region.free_slots == 0 {
            class.open.pop();
        }
        drop(class);
        let (slabs, class) = (Arc::clone(self), number as u8);
        Some(Slot { slabs, start, len, index: index as u16, class, region: region_number })
    }

    /// Memory for a region: a spare one, or new.
    fn region(&self, huge: bool) -> Option<Memory> {
        let mut spare = self.spare.lock();
        if let Some(at) = spare.iter().position(|memory| memory.is_huge() == huge) {
            return Some(spare.swap_remove(at));
        }
        drop(spare);
        let memory = (self.source)(self.region_len, huge)?;
        self.held.fetch_add(self.region_len as u64, Ordering::Relaxed);
        Some(memory)
    }

    /// Takes a slot back.
    fn give_back(&self, slot: &Slot) {
        let Some(class) = self.classes.get(usize::from(slot.class)) else { return };
        let mut class = class.lock();
        let Some(Some(region)) = class.regions.get_mut(slot.region as usize) else { return };
        region.give_back(usize::from(slot.index));
        let (free, slots) = (region.free_slots, region.slots);
        if free == 1 {
            class.open.push(slot.region);
        }
        if free < slots {
            return;
        }
        let region = class.remove(slot.region);
        drop(class);
        if let Some(Region { memory, .. }) = region {
            let mut spare = self.spare.lock();
            if !spare.iter().any(|other| other.is_huge() == memory.is_huge()) {
                spare.push(memory);
                return;
            }
            // Not under the lock: it takes the system a while to take it back.
            drop(spare);
            drop(memory);
            self.held.fetch_sub(self.region_len as u64, Ordering::Relaxed);
        }
    }

    /// How many regions have a slot in use, and how many are spare.
    #[cfg(test)]
    pub(crate) fn regions(&self) -> (usize, usize) {
        let used = |class: &Mutex<Class>| class.lock().regions.iter().flatten().count();
        (self.classes.iter().map(used).sum(), self.spare.lock().len())
    }
}

/// A piece of a region that nobody else has.
pub(crate) struct Slot {
    slabs: Arc<Slabs>,
    start: NonNull<u8>,
    /// How many of its bytes are asked for.
    len: usize,
    region: u32,
    index: u16,
    class: u8,
}

// SAFETY: a slot owns its piece of memory, as a box would: the region's bit for it is not set while it
// is out, so no other slot covers the same bytes, and the region is not freed.
unsafe impl Send for Slot {}
// SAFETY: as above; a shared slot is only read.
unsafe impl Sync for Slot {}

impl Slot {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: `start` and the `len` bytes from there, at most the class's length, lie within the
        // region's memory, which is initialized from the start and stays mapped while this slot is out.
        // Nobody else has a slot that covers them; the borrow keeps other views of this one away.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Slot {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as for `as_mut`; the borrow keeps writers away.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slabs.give_back(self);
    }
}

/// Memory for one block. See the module's text.
pub(crate) enum Space {
    /// Of a slab.
    Slot(Slot),
    /// Of its own.
    Heap(Vec<u8>),
}

impl Space {
    /// So many bytes, which hold anything, of the slabs, if these have them.
    pub(crate) fn of(slabs: Option<&Arc<Slabs>>, len: usize) -> Space {
        match Space::of_slabs(slabs, len) {
            Some(space) => space,
            None => Space::Heap(vec![0; len]),
        }
    }

    /// So many bytes of the slabs, if these have them.
    pub(crate) fn of_slabs(slabs: Option<&Arc<Slabs>>, len: usize) -> Option<Space> {
        slabs.and_then(|slabs| slabs.slot(len)).map(Space::Slot)
    }

    /// To read.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Space::Slot(slot) => slot.as_ref(),
            Space::Heap(bytes) => bytes,
        }
    }

    /// To write.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Space::Slot(slot) => slot.as_mut(),
            Space::Heap(bytes) => bytes,
        }
    }

    /// What it takes once its bytes are shared, in bytes.
    pub(crate) fn taken(&self) -> usize {
        match self {
            Space::Slot(slot) => slot_len(usize::from(slot.class)) + OWNER,
            Space::Heap(bytes) => bytes.capacity() + OWNER,
        }
    }

    /// Shares its bytes. They keep it until the last share is gone.
    pub(crate) fn freeze(self) -> Bytes {
        match self {
            Space::Slot(slot) => Bytes::from_owner(slot),
            Space::Heap(bytes) => Bytes::from(bytes),
        }
    }
}
