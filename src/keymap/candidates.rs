//! What a lookup gives back: where the key may be, newest first.
//!
//! Invariants: falling age, each page of a segment once. Two candidates are held without an
//! allocation; more are rare, as a key has one place in each of few runs and fingerprints seldom
//! collide. A value of the caller's: it keeps the extent table that it came from, and by that its
//! segments, alive, and counts no reference for it. Called by `get` and its callers.

use super::MapSegment;
use super::extents::Extents;
use crate::sync::{Arc, Loaded};
use std::cmp::Reverse;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    rank: u64,
    slot: u32,
    page: u32,
}

/// Where a key may be: pairs of segment and page, newest segment first. Nothing for most keys that are
/// nowhere, so that these pay for nothing else.
pub(crate) struct Candidates<S>(Option<Several<S>>);

struct Several<S> {
    extents: Loaded<Extents<S>>,
    first: Option<Found>,
    second: Option<Found>,
    /// The others, newest last once settled.
    rest: Vec<Found>,
}

impl<S: MapSegment> Candidates<S> {
    pub(super) fn new() -> Self {
        Candidates(None)
    }

    /// The table that all candidates are resolved with; loaded for the first.
    #[inline]
    pub(super) fn extents(&mut self, load: impl FnOnce() -> Loaded<Extents<S>>) -> &Extents<S> {
        let begin = || Several { extents: load(), first: None, second: None, rest: Vec::new() };
        &self.0.get_or_insert_with(begin).extents
    }

    /// Takes a candidate in, of the table that was loaded. [`settle`](Self::settle) comes behind the last.
    pub(super) fn push(&mut self, slot: u32, rank: u64, page: u32) {
        let Some(several) = &mut self.0 else { return };
        let found = Found { rank, slot, page };
        if several.first == Some(found) || several.second == Some(found) {
            return;
        }
        let Some(found) = displace(&mut several.first, found) else { return };
        let Some(found) = displace(&mut several.second, found) else { return };
        several.rest.push(found);
    }

    /// Puts all in order. At once, since a key that every run of many holds has as many places.
    pub(super) fn settle(&mut self) {
        if let Some(Several { rest, .. }) = &mut self.0
            && rest.len() > 1
        {
            rest.sort_unstable_by_key(|f| (Reverse(f.rank), f.slot, f.page));
            rest.dedup();
        }
    }

    /// The next candidate, where it stands.
    #[inline]
    pub(crate) fn next_place(&mut self) -> Option<(&Arc<S>, u32)> {
        let Several { extents, first, second, rest } = self.0.as_mut()?;
        let found = first.take().or_else(|| second.take()).or_else(|| rest.pop())?;
        Some((&extents.slot(found.slot)?.segment, found.page))
    }
}

/// Leaves the newer of two in `place` and gives the other back, if there are two.
fn displace(place: &mut Option<Found>, found: Found) -> Option<Found> {
    match place {
        None => {
            *place = Some(found);
            None
        }
        Some(other) if other.rank <= found.rank => Some(found),
        Some(other) => Some(std::mem::replace(other, found)),
    }
}

impl<S: MapSegment> Iterator for Candidates<S> {
    type Item = (Arc<S>, u32);

    fn next(&mut self) -> Option<Self::Item> {
        self.next_place().map(|(segment, page)| (Arc::clone(segment), page))
    }
}
