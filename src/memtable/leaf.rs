//! A leaf: up to 64 keys of one keyspace, in the order in which they came.
//!
//! A slot is eight bytes of a key, after those that all keys of the leaf share, and where the key's
//! newest version lies. Most comparisons look at the eight bytes alone.
//!
//! Invariants: one thread writes; any number read meanwhile and never wait. A slot below the count
//! keeps its key for ever; its newest version is replaced by newer ones, which are chained to the
//! older. The slot is written before the count (Release) that covers it, its key's bytes before its
//! version (Release).

use super::arena::{Arena, Ref};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::cmp;
use std::hint::select_unpredictable;

/// Fewer keep models small.
pub(super) const SLOTS: usize = if cfg!(any(miri, all(test, loom))) { 4 } else { 64 };

/// A slot, copied out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    prefix: u64,
    pub(super) newest: Ref,
}

#[derive(Default)]
struct SharedSlot {
    prefix: AtomicU64,
    newest: AtomicU64,
}

impl SharedSlot {
    #[inline]
    fn load(&self) -> Option<Slot> {
        let newest = Ref::from_bits(self.newest.load(Ordering::Acquire))?;
        Some(Slot { prefix: self.prefix.load(Ordering::Relaxed), newest })
    }

    /// Not yet below the count.
    fn fill(&self, slot: Slot) {
        self.prefix.store(slot.prefix, Ordering::Relaxed);
        self.newest.store(slot.newest.to_bits(), Ordering::Release);
    }
}

/// Which keys are wanted of a leaf.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part<'a> {
    All,
    AtOrAfter(&'a [u8]),
    After(&'a [u8]),
    AtOrBefore(&'a [u8]),
    Before(&'a [u8]),
}

/// See the module's text.
pub(super) struct Leaf {
    /// How many slots are filled; above, shifted by [`COUNT_BITS`], how many from the first on are in
    /// order.
    state: AtomicUsize,
    /// So many bytes are the same in all keys.
    shared: usize,
    slots: [SharedSlot; SLOTS],
}

const COUNT_BITS: u32 = 8;

/// The eight bytes behind the shared ones, padded with zeros, as a big-endian number.
fn prefix(key: &[u8], shared: usize) -> u64 {
    let rest = key.get(shared..).unwrap_or_default();
    if let Some(eight) = rest.first_chunk::<8>() {
        return u64::from_be_bytes(*eight);
    }
    let mut padded = [0; 8];
    padded[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(padded)
}

/// The key of the entry at a place.
pub(super) fn key_at(arena: &Arena, at: Ref) -> &[u8] {
    arena.entry(at).map_or(&[], |entry| entry.key())
}

#[inline]
fn compare(arena: &Arena, a: &Slot, b: &Slot) -> cmp::Ordering {
    let keys = || key_at(arena, a.newest).cmp(key_at(arena, b.newest));
    a.prefix.cmp(&b.prefix).then_with(keys)
}

/// The first of these slots, which are in order, whose eight bytes are not below `prefix`. Every
/// search takes the same steps, without a branch that depends on the keys.
fn first_from(slots: &[Slot], prefix: u64) -> usize {
    let is_below = |at: usize| slots.get(at).is_some_and(|slot| slot.prefix < prefix);
    let (mut from, mut len) = (0, slots.len());
    while len > 1 {
        let half = len / 2;
        from = select_unpredictable(is_below(from + half - 1), from + half, from);
        len -= half;
    }
    from + usize::from(is_below(from))
}

impl Leaf {
    /// A leaf of these slots, which are in order and not too many. `shared` bytes are the same in all
    /// keys that will ever be in it; the slots were made with that number.
    fn new(shared: usize, slots: &[Slot]) -> Self {
        let leaf = Leaf {
            state: AtomicUsize::new(slots.len() << COUNT_BITS | slots.len()),
            shared,
            slots: std::array::from_fn(|_| SharedSlot::default()),
        };
        leaf.slots.iter().zip(slots).for_each(|(shared, slot)| shared.fill(*slot));
        leaf
    }

    /// A leaf of one key.
    pub(super) fn of_one(shared: usize, key: &[u8], at: Ref) -> Self {
        Self::new(shared, &[Slot { prefix: prefix(key, shared), newest: at }])
    }

    /// The filled slots, and how many of them are in order.
    #[inline]
    fn filled(&self) -> (&[SharedSlot], usize) {
        let state = self.state.load(Ordering::Acquire);
        let count = (state & ((1 << COUNT_BITS) - 1)).min(SLOTS);
        (&self.slots[..count], (state >> COUNT_BITS).min(count))
    }

    /// Adds a key that is not there yet; not if the leaf is full.
    pub(super) fn append(&self, arena: &Arena, key: &[u8], at: Ref) -> bool {
        let (filled, mut in_order) = self.filled();
        let count = filled.len();
        let Some(free) = self.slots.get(count) else { return false };
        let slot = Slot { prefix: prefix(key, self.shared), newest: at };
        let rises = in_order == count
            && filled.last().and_then(|last| last.load()).is_none_or(|last| {
                last.prefix
                    .cmp(&slot.prefix)
                    .then_with(|| key_at(arena, last.newest).cmp(key))
                    .is_lt()
            });
        in_order += usize::from(rises);
        free.fill(slot);
        self.state.store(in_order << COUNT_BITS | (count + 1), Ordering::Release);
        true
    }

    /// Puts the newest version of a key into the place of the one before, which must be there.
    pub(super) fn replace(&self, old: Ref, new: Ref) {
        let (filled, _) = self.filled();
        let old = old.to_bits();
        let slot = filled.iter().find(|slot| slot.newest.load(Ordering::Relaxed) == old);
        let slot = slot.expect("the older version has a slot in the leaf of its key");
        slot.newest.store(new.to_bits(), Ordering::Release);
    }

    fn compare_key(&self, arena: &Arena, slot: &Slot, prefix: u64, key: &[u8]) -> cmp::Ordering {
        debug_assert!(self.shared <= key.len());
        slot.prefix.cmp(&prefix).then_with(|| key_at(arena, slot.newest).cmp(key))
    }

    /// Copies the slots of a part into `run`, in order. The keys that limit the part share what the
    /// leaf's keys share.
    pub(super) fn copy(&self, arena: &Arena, part: Part<'_>, run: &mut Vec<Slot>) {
        run.clear();
        let (filled, in_order) = self.filled();
        let (sorted, tail) = filled.split_at(in_order);
        let load = |slots: &mut Vec<Slot>, from: &[SharedSlot]| {
            slots.extend(from.iter().filter_map(|slot| slot.load()))
        };
        // Most are in order already: a sort of all takes longer.
        let put = |run: &mut Vec<Slot>, slot: Slot| {
            let at = first_from(run, slot.prefix);
            let behind = &run[at..];
            let ties = behind.iter().take_while(|next| next.prefix == slot.prefix).count();
            let is_before = |tie: &Slot| compare(arena, tie, &slot).is_lt();
            run.insert(at + behind[..ties].partition_point(is_before), slot);
        };
        let (key, at_end, keeps): (_, _, fn(cmp::Ordering) -> bool) = match part {
            Part::All => {
                load(run, sorted);
                tail.iter().filter_map(|slot| slot.load()).for_each(|slot| put(run, slot));
                return;
            }
            Part::AtOrAfter(key) => (key, true, cmp::Ordering::is_ge),
            Part::After(key) => (key, true, cmp::Ordering::is_gt),
            Part::AtOrBefore(key) => (key, false, cmp::Ordering::is_le),
            Part::Before(key) => (key, false, cmp::Ordering::is_lt),
        };
        let prefix = prefix(key, self.shared);
        let kept = |slot: &Slot| keeps(self.compare_key(arena, slot, prefix, key));
        let cut =
            sorted.partition_point(|slot| slot.load().is_some_and(|slot| kept(&slot)) != at_end);
        load(run, if at_end { &sorted[cut..] } else { &sorted[..cut] });
        let tail = tail.iter().filter_map(|slot| slot.load());
        tail.filter(|slot| kept(slot)).for_each(|slot| put(run, slot));
    }

    /// What a full leaf becomes when a key is added that it has no room for: two leaves, and the key
    /// that separates them, or, if all keys came in order, a second leaf of the new key alone.
    /// `low` is at or before all keys of the leaf and `high` behind them, if there are any behind.
    pub(super) fn split(
        &self,
        arena: &Arena,
        (key, at): (&[u8], Ref),
        (low, high): (&[u8], Option<&[u8]>),
    ) -> Split {
        let mut all = Vec::with_capacity(SLOTS + 1);
        self.copy(arena, Part::All, &mut all);
        let new = Slot { prefix: prefix(key, self.shared), newest: at };
        let place = all.partition_point(|slot| compare(arena, slot, &new).is_lt());
        let (_, in_order) = self.filled();
        if place == SLOTS && in_order == SLOTS {
            let last = all.last().map_or(&[][..], |last| key_at(arena, last.newest));
            let right = Leaf::new(self.shared, &[new]);
            return Split { left: None, separator: separator(last, key).to_vec(), right };
        }
        all.insert(place, new);
        // Behind the last leaf keys may be added in an order that is almost the keys'.
        let middle = if high.is_none() { all.len() * 7 / 8 } else { all.len() / 2 };
        let (left, right) = all.split_at_mut(middle);
        let ends = (left.last(), right.first());
        let [last, first] =
            [ends.0, ends.1].map(|slot| slot.map_or(&[][..], |slot| key_at(arena, slot.newest)));
        let separator = separator(last, first);
        Split {
            left: Some(self.half(arena, left, low, Some(separator))),
            right: self.half(arena, right, separator, high),
            separator: separator.to_vec(),
        }
    }

    /// A leaf of these slots of this one, of the keys from `low` on and before `high`.
    fn half(&self, arena: &Arena, slots: &mut [Slot], low: &[u8], high: Option<&[u8]>) -> Leaf {
        let mut shared = self.shared;
        let (first, last) = (slots.first().map(|s| s.prefix), slots.last().map(|s| s.prefix));
        let told_apart_by = |a: u64, b: u64| u64::BITS - (a ^ b).leading_zeros();
        // To read all keys costs much: when little is left of the eight bytes, and then at once.
        if first.zip(last).is_some_and(|(first, last)| told_apart_by(first, last) <= 32) {
            let more = high.map_or(0, |high| common(low, high));
            if more > shared {
                shared = more;
                for slot in &mut *slots {
                    slot.prefix = prefix(key_at(arena, slot.newest), shared);
                }
            }
        }
        Leaf::new(shared, slots)
    }
}

/// See [`Leaf::split`].
pub(super) struct Split {
    /// What replaces the leaf, if anything.
    pub(super) left: Option<Leaf>,
    /// Behind all keys of the left leaf, and at or before all keys of the right.
    pub(super) separator: Vec<u8>,
    pub(super) right: Leaf,
}

/// How many bytes two keys share at their fronts.
fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The shortest front of `after` that is behind `before`, which is before it.
fn separator<'a>(before: &[u8], after: &'a [u8]) -> &'a [u8] {
    after.get(..=common(before, after)).unwrap_or(after)
}
