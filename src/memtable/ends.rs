//! The writer's own index of the leaves: what the skiplist has too, in sorted arrays, two deep.
//!
//! The skiplist is for readers, who need no lock for it; a search in it is a walk from node to node,
//! which takes longer than all else that an insert does. The writer is alone and may move what it
//! keeps: two binary searches in adjacent memory find the leaf.
//!
//! Invariants: the separators and leaves are those of the skiplist. Every block has some; blocks and
//! what is in them are in order. Called by the leaf writer.

use super::leaf::Leaf;
use super::leaf_index::{Place, Separator};
use crate::sync::Arc;

/// How many leaves a block has at most.
const BLOCK: usize = if cfg!(any(miri, all(test, loom))) { 3 } else { 64 };

/// See the module's text.
#[derive(Default)]
pub(super) struct Ends {
    /// The first separators of the blocks.
    firsts: Vec<Separator>,
    blocks: Vec<Vec<(Separator, Arc<Leaf>)>>,
}

/// A leaf, by its block and its number there, from one; in front of all if that is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At(usize, usize);

impl Ends {
    /// What a leaf takes here, besides its separator's key: blocks are two thirds full, and grow by
    /// doubling.
    pub(super) const BYTES: usize = 2 * size_of::<(Separator, Arc<Leaf>)>();

    /// The last leaf that begins at or before a place.
    pub(super) fn at_or_before(&self, place: &Place<'_>) -> At {
        let is_before = |separator: &Separator| separator.place() <= place;
        let last = self.blocks.len().wrapping_sub(1);
        // Keys often come in order.
        if let Some(block) = self.blocks.last()
            && block.last().is_some_and(|last| is_before(&last.0))
        {
            return At(last, block.len());
        }
        let block = self.firsts.partition_point(is_before).saturating_sub(1);
        let leaves = self.blocks.get(block).map_or(&[][..], |block| block);
        At(block, leaves.partition_point(|leaf| is_before(&leaf.0)))
    }

    pub(super) fn leaf(&self, at: At) -> Option<(&Place<'static>, &Arc<Leaf>)> {
        let (separator, leaf) = self.blocks.get(at.0)?.get(at.1.checked_sub(1)?)?;
        Some((separator.place(), leaf))
    }

    /// Puts a leaf into the place of one that has the same separator.
    pub(super) fn replace(&mut self, at: At, leaf: Arc<Leaf>) {
        self.blocks[at.0][at.1 - 1].1 = leaf;
    }

    /// Adds a leaf behind the one that lies at or before its separator. Places of leaves that were
    /// found before mean others now.
    pub(super) fn add(&mut self, behind: At, separator: Separator, leaf: Arc<Leaf>) {
        if self.blocks.is_empty() {
            self.firsts.push(separator.clone());
            self.blocks.push(vec![(separator, leaf)]);
            return;
        }
        let At(at, place) = behind;
        let block = &mut self.blocks[at];
        if place == 0 {
            self.firsts[at] = separator.clone();
        }
        block.insert(place, (separator, leaf));
        if block.len() > BLOCK {
            // At the end leaves may come in order.
            let is_last = at + 1 == self.firsts.len();
            let right = block.split_off(if is_last { BLOCK } else { BLOCK / 2 });
            self.firsts.insert(at + 1, right[0].0.clone());
            self.blocks.insert(at + 1, right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memtable::arena::Ref;
    use crate::types::KeyspaceId;
    use crate::vfs::{Entropy, SeededEntropy};
    use std::collections::BTreeMap;

    #[test]
    fn every_leaf_is_found_from_its_separator_up_to_the_next() {
        let rng = SeededEntropy::new(1);
        for rises in [false, true] {
            let mut ends = Ends::default();
            let mut model = BTreeMap::new();
            for n in 1..if cfg!(miri) { 50 } else { 3000 } {
                let key = if rises { n } else { rng.next_u64() }.to_be_bytes();
                let place = Place::new(KeyspaceId(n as u32 % 2), key.to_vec());
                let at = ends.at_or_before(&place);
                let before = ends.leaf(at).map(|found| found.0.clone());
                let want = model.range(..=place.clone()).next_back();
                assert_eq!(before.as_ref(), want.map(|found: (&Place<'_>, _)| found.0));
                let leaf = Arc::new(Leaf::of_one(0, &key, Ref::from_bits(n).unwrap()));
                let separator = Separator::new(place.keyspace(), key.to_vec());
                ends.add(at, separator, Arc::clone(&leaf));
                model.insert(place, leaf);
            }
            for (place, leaf) in &model {
                let found = ends.leaf(ends.at_or_before(place)).unwrap();
                assert!(found.0 == place && Arc::ptr_eq(found.1, leaf));
            }
            assert!(ends.blocks.iter().all(|block| (1..=BLOCK).contains(&block.len())));
        }
    }
}
