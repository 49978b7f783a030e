//! The order of a memtable's keys: leaves of up to 64 keys, indexed by a skiplist.
//!
//! A key is appended to its leaf; leaves are put in order when a cursor or a split asks for it. A
//! leaf that is full is split into two new ones. First the right one is published, then the left one
//! takes the place of the old one, which stays as it was for those who are reading it.
//!
//! So a reader that looked up a leaf may meet one that has lost its upper half meanwhile: it looks at
//! the next separator after it took the leaf, and goes on there if that is not behind what it seeks.
//! Or it meets one that still has its upper half: it goes on behind the last key that it saw.
//!
//! The writer finds the leaf of a key in an index of its own ([`Ends`]), in half the time that the
//! skiplist needs.
//!
//! Invariants: one [`LeafWriter`] for a [`Leaves`]; any number read meanwhile and never wait. A key
//! has one slot, in one leaf; the slot leads to its newest version and from there to the older ones.
//! What was put before a read began is found by it.

use super::arena::{Arena, Ref};
use super::ends::{At, Ends};
use super::leaf::{Leaf, Part, Slot};
use super::leaf_index::{LeafIndex, Node, Place, Separator};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::types::KeyspaceId;

/// See the module's text.
pub(super) struct Leaves {
    index: LeafIndex,
    arena: Arc<Arena>,
    allocated: AtomicUsize,
}

/// What a leaf takes, with its counts and the allocator's header.
const LEAF_BYTES: usize = size_of::<Leaf>() + 32;

impl Leaves {
    /// The first keyspace, from this one on, that has keys.
    pub(super) fn keyspace_from(&self, from: KeyspaceId) -> Option<KeyspaceId> {
        let node = self.index.at_or_after(&Place::new(from, &[][..]))?;
        Some(node.place().keyspace())
    }

    /// The memory of the leaves and their index, in bytes: an estimate that rather exceeds.
    pub(super) fn allocated_bytes(&self) -> usize {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Copies a part of a leaf, in order: of the leaf of this node, or of one behind it, as long as
    /// `goes_on` takes the next separator. Gives the node of the leaf, and the next one.
    fn copy<'a>(
        &self,
        mut node: Node<'a>,
        part: Part<'_>,
        goes_on: impl Fn(&[u8]) -> bool,
        run: &mut Vec<Slot>,
    ) -> (Node<'a>, Option<Node<'a>>) {
        loop {
            let leaf = node.leaf().load();
            // After the leaf was taken: if it has lost its upper half, the next node has that.
            let next =
                node.next().filter(|next| next.place().keyspace() == node.place().keyspace());
            match next {
                Some(next) if goes_on(next.place().key()) => node = next,
                next => {
                    leaf.copy(&self.arena, part, run);
                    return (node, next);
                }
            }
        }
    }

    /// Fills `run` with all slots of a part of the first leaf that has some, in order: the part from
    /// or behind a key. None if there are none.
    pub(super) fn forward(&self, keyspace: KeyspaceId, part: Part<'_>, run: &mut Vec<Slot>) {
        run.clear();
        let (Part::AtOrAfter(key) | Part::After(key)) = part else { return };
        let Some(node) = self.index.at_or_before(&Place::new(keyspace, key)) else { return };
        // A keyspace's first leaf begins at the empty key.
        if node.place().keyspace() == keyspace {
            let (_, next) = self.copy(node, part, |separator| separator <= key, run);
            self.first_of(next, run);
        }
    }

    /// The same for the keys behind the last one of a run, which had all keys of its leaf that are
    /// behind its own first one.
    pub(super) fn following(&self, keyspace: KeyspaceId, last: &[u8], run: &mut Vec<Slot>) {
        run.clear();
        let next = self.index.after(&Place::new(keyspace, last));
        self.first_of(next.filter(|next| next.place().keyspace() == keyspace), run);
    }

    fn first_of<'a>(&'a self, mut next: Option<Node<'a>>, run: &mut Vec<Slot>) {
        while run.is_empty()
            && let Some(node) = next
        {
            next = self.copy(node, Part::All, |_| false, run).1;
        }
    }

    /// Fills `run` with all slots of a part of the last leaf that has some, in order: the part up to
    /// or before a key, or all. None if there are none.
    pub(super) fn backward(&self, keyspace: KeyspaceId, part: Part<'_>, run: &mut Vec<Slot>) {
        run.clear();
        let node = match part {
            Part::AtOrBefore(key) => self.index.at_or_before(&Place::new(keyspace, key)),
            Part::Before(key) => self.index.before(&Place::new(keyspace, key)),
            _ => match keyspace.0.checked_add(1) {
                Some(next) => self.index.before(&Place::new(KeyspaceId(next), &[][..])),
                None => self.index.last(),
            },
        };
        let here = |node: &Node<'_>| node.place().keyspace() == keyspace;
        let Some(node) = node.filter(here) else { return };
        let goes_on = |separator: &[u8]| match part {
            Part::AtOrBefore(key) => separator <= key,
            Part::Before(key) => separator < key,
            _ => true,
        };
        let (mut node, _) = self.copy(node, part, goes_on, run);
        while run.is_empty()
            && let Some(before) = self.index.before(node.place()).filter(here)
        {
            let end = node.place().key();
            let read = self.copy(before, Part::Before(end), |separator| separator < end, run);
            node = read.0;
        }
    }
}

/// The one that adds keys.
pub(super) struct LeafWriter {
    leaves: Arc<Leaves>,
    ends: Ends,
}

impl LeafWriter {
    /// No keys, of what will be in this arena.
    pub(super) fn new(arena: Arc<Arena>) -> Self {
        let index = LeafIndex::default();
        let leaves = Arc::new(Leaves { index, arena, allocated: AtomicUsize::new(0) });
        LeafWriter { leaves, ends: Ends::default() }
    }

    pub(super) fn leaves(&self) -> &Arc<Leaves> {
        &self.leaves
    }

    /// Adds a version of a key: the entry at `new`, which is chained to the one before, at `old`.
    pub(super) fn put(&mut self, keyspace: KeyspaceId, key: &[u8], old: Option<Ref>, new: Ref) {
        let place = Place::new(keyspace, key);
        let at = self.ends.at_or_before(&place);
        let Some(leaf) = self.ends.leaf(at).filter(|found| found.0.keyspace() == keyspace) else {
            return self.add(at, Separator::new(keyspace, Vec::new()), Leaf::of_one(0, key, new));
        };
        let leaf = leaf.1;
        match old {
            Some(old) => leaf.replace(old, new),
            None if leaf.append(&self.leaves.arena, key, new) => (),
            None => self.split(at, &place, new),
        }
    }

    /// Splits a leaf to make room for a key.
    fn split(&mut self, at: At, place: &Place<'_>, new: Ref) {
        let leaves = Arc::clone(&self.leaves);
        let Some(node) = leaves.index.at_or_before(place) else { return };
        let (low, keyspace) = (node.place().key(), node.place().keyspace());
        let next = node.next().filter(|next| next.place().keyspace() == keyspace);
        let high = next.as_ref().map(|next| next.place().key());
        let split = node.leaf().load().split(&leaves.arena, (place.key(), new), (low, high));
        let left = split.left.map(Arc::new);
        if let Some(left) = &left {
            self.ends.replace(at, Arc::clone(left));
        }
        // First the right one: until then it is the old leaf that has its keys.
        self.add(at, Separator::new(keyspace, split.separator), split.right);
        if let Some(left) = left {
            node.leaf().store(left);
        }
    }

    /// Adds a leaf behind another.
    fn add(&mut self, behind: At, separator: Separator, leaf: Leaf) {
        let leaf = Arc::new(leaf);
        // The separator is in both indexes.
        let key = (separator.place().key().len() + 8).next_multiple_of(16);
        let bytes = LEAF_BYTES + LeafIndex::NODE_BYTES + Ends::BYTES + 2 * key;
        self.leaves.allocated.fetch_add(bytes, Ordering::Relaxed);
        self.ends.add(behind, separator.clone(), Arc::clone(&leaf));
        self.leaves.index.add(separator, leaf);
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
