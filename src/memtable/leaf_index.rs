//! The leaves by their lower ends: a `crossbeam_skiplist`.
//!
//! Invariants: a leaf has the keys from its separator on and before the next leaf's; a keyspace's
//! first separator is the empty key. Separators are added, never removed; the leaf behind one is
//! replaced as a whole. One thread writes; any number read meanwhile.

use super::leaf::Leaf;
use crate::sync::ArcSwap;
use crate::types::KeyspaceId;
use std::borrow::{Borrow, Cow};
use std::cmp;

/// A key of a keyspace. The first twelve bytes are compared first: with the keyspace in front and
/// zeros behind, as one big-endian number.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    front: (u64, u64),
    key: Cow<'a, [u8]>,
}

impl<'a> Place<'a> {
    pub(super) fn new(keyspace: KeyspaceId, key: impl Into<Cow<'a, [u8]>>) -> Self {
        let key = key.into();
        let mut padded = [0; 12];
        match key.first_chunk::<12>() {
            Some(twelve) => padded = *twelve,
            None => padded[..key.len()].copy_from_slice(&key),
        }
        let [k0, k1, k2, k3, rest @ ..] = padded;
        let front = u64::from(keyspace.0) << 32 | u64::from(u32::from_be_bytes([k0, k1, k2, k3]));
        Place { front: (front, u64::from_be_bytes(rest)), key }
    }

    #[inline]
    pub(super) fn keyspace(&self) -> KeyspaceId {
        KeyspaceId((self.front.0 >> 32) as u32)
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }
}

impl Ord for Place<'_> {
    #[inline]
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        self.front.cmp(&other.front).then_with(|| self.key.cmp(&other.key))
    }
}

impl PartialOrd for Place<'_> {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Place<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Place<'_> {}

/// The lower end of a leaf's keys.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Separator(Place<'static>);

impl Separator {
    pub(super) fn new(keyspace: KeyspaceId, key: Vec<u8>) -> Self {
        Separator(Place::new(keyspace, key))
    }
}

impl<'a> Borrow<Place<'a>> for Separator {
    fn borrow(&self) -> &Place<'a> {
        &self.0
    }
}

impl Separator {
    pub(super) fn place(&self) -> &Place<'static> {
        &self.0
    }
}

pub(super) use map::{LeafIndex, Node};

#[cfg(not(all(test, loom)))]
mod map {
    use super::{ArcSwap, Leaf, Place, Separator};
    use crossbeam_skiplist::SkipMap;
    use std::ops::Bound;
    use std::sync::Arc;

    /// See the module's text.
    #[derive(Default)]
    pub(in super::super) struct LeafIndex(SkipMap<Separator, ArcSwap<Leaf>>);

    /// A separator and its leaf.
    pub(in super::super) struct Node<'a>(
        crossbeam_skiplist::map::Entry<'a, Separator, ArcSwap<Leaf>>,
    );

    impl LeafIndex {
        /// The bytes of a node besides its separator's key and its leaf: the rounded tower of two
        /// pointers on average included.
        pub(in super::super) const NODE_BYTES: usize = 112;

        pub(in super::super) fn at_or_before(&self, place: &Place<'_>) -> Option<Node<'_>> {
            self.0.upper_bound(Bound::Included(place)).map(Node)
        }

        pub(in super::super) fn before(&self, place: &Place<'_>) -> Option<Node<'_>> {
            self.0.upper_bound(Bound::Excluded(place)).map(Node)
        }

        pub(in super::super) fn at_or_after(&self, place: &Place<'_>) -> Option<Node<'_>> {
            self.0.lower_bound(Bound::Included(place)).map(Node)
        }

        pub(in super::super) fn after(&self, place: &Place<'_>) -> Option<Node<'_>> {
            self.0.lower_bound(Bound::Excluded(place)).map(Node)
        }

        pub(in super::super) fn last(&self) -> Option<Node<'_>> {
            self.0.back().map(Node)
        }

        /// Adds a separator that is not there yet.
        pub(in super::super) fn add(&self, separator: Separator, leaf: Arc<Leaf>) {
            self.0.insert(separator, ArcSwap::new(leaf));
        }
    }

    impl Node<'_> {
        pub(in super::super) fn place(&self) -> &Place<'static> {
            self.0.key().place()
        }

        pub(in super::super) fn leaf(&self) -> &ArcSwap<Leaf> {
            self.0.value()
        }

        pub(in super::super) fn next(&self) -> Option<Self> {
            self.0.next().map(Node)
        }
    }
}

/// Stands in for the skiplist in the models: a linked list, whose links are released and acquired.
#[cfg(all(test, loom))]
mod map {
    use super::{ArcSwap, Leaf, Place, Separator};
    use crate::sync::OnceLock;
    use crate::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::Arc;

    struct Link {
        node: OnceLock<(Separator, ArcSwap<Leaf>)>,
        /// The number of the next link, from one; zero for none. That of the first node is the list's.
        next: AtomicUsize,
    }

    const LINKS: usize = 6;

    pub(in super::super) struct LeafIndex {
        links: [Link; LINKS],
        first: AtomicUsize,
    }

    impl Default for LeafIndex {
        fn default() -> Self {
            let links =
                std::array::from_fn(|_| Link { node: OnceLock::new(), next: AtomicUsize::new(0) });
            LeafIndex { links, first: AtomicUsize::new(0) }
        }
    }

    pub(in super::super) struct Node<'a>(&'a LeafIndex, usize);

    impl LeafIndex {
        pub(in super::super) const NODE_BYTES: usize = 0;

        fn follow(&self, link: &AtomicUsize) -> Option<Node<'_>> {
            Some(Node(self, link.load(Ordering::Acquire).checked_sub(1)?))
        }

        fn last_that(&self, is: impl Fn(&Place<'_>) -> bool) -> Option<Node<'_>> {
            let mut found = None;
            let mut next = self.follow(&self.first);
            while let Some(node) = next
                && is(node.place())
            {
                next = node.next();
                found = Some(node);
            }
            found
        }

        fn first_that(&self, is: impl Fn(&Place<'_>) -> bool) -> Option<Node<'_>> {
            let mut next = self.follow(&self.first);
            while let Some(node) = &next
                && !is(node.place())
            {
                next = node.next();
            }
            next
        }

        pub(in super::super) fn at_or_before(&self, place: &Place<'_>) -> Option<Node<'_>> {
            self.last_that(|at| at <= place)
        }

        pub(in super::super) fn before(&self, place: &Place<'_>) -> Option<Node<'_>> {
            self.last_that(|at| at < place)
        }

        pub(in super::super) fn at_or_after(&self, place: &Place<'_>) -> Option<Node<'_>> {
            self.first_that(|at| at >= place)
        }

        pub(in super::super) fn after(&self, place: &Place<'_>) -> Option<Node<'_>> {
            self.first_that(|at| at > place)
        }

        pub(in super::super) fn last(&self) -> Option<Node<'_>> {
            self.last_that(|_| true)
        }

        pub(in super::super) fn add(&self, separator: Separator, leaf: Arc<Leaf>) {
            let free = self.links.iter().position(|link| link.node.get().is_none());
            let free = free.expect("a model is small");
            let before = self.before(separator.place()).map(|node| node.1);
            let link = before.map_or(&self.first, |at| &self.links[at].next);
            self.links[free].next.store(link.load(Ordering::Relaxed), Ordering::Relaxed);
            assert!(self.links[free].node.set((separator, ArcSwap::new(leaf))).is_ok());
            link.store(free + 1, Ordering::Release);
        }
    }

    impl Node<'_> {
        fn node(&self) -> &(Separator, ArcSwap<Leaf>) {
            self.0.links[self.1].node.get().expect("it was linked")
        }

        pub(in super::super) fn place(&self) -> &Place<'static> {
            self.node().0.place()
        }

        pub(in super::super) fn leaf(&self) -> &ArcSwap<Leaf> {
            &self.node().1
        }

        pub(in super::super) fn next(&self) -> Option<Self> {
            self.0.follow(&self.0.links[self.1].next)
        }
    }
}
