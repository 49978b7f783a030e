//! What a lookup gives back: where the key may be, newest first.
//!
//! Invariants: falling age, each page of a segment once. Two candidates are held without an
//! allocation; more are rare, as a key has one place in each of few runs and fingerprints seldom
//! collide. A value of the caller's: it keeps its segments alive. Called by `get` and its callers.

use super::MapSegment;
use crate::sync::Arc;
use std::cmp::Reverse;

#[derive(Debug)]
struct Found<S> {
    rank: u64,
    segment: Arc<S>,
    page: u32,
}

/// Where a key may be: pairs of segment and page, newest segment first.
#[derive(Debug)]
pub(crate) struct Candidates<S> {
    first: Option<Found<S>>,
    second: Option<Found<S>>,
    /// The others, newest last once settled.
    rest: Vec<Found<S>>,
}

impl<S: MapSegment> Candidates<S> {
    pub(super) fn new() -> Self {
        Candidates { first: None, second: None, rest: Vec::new() }
    }

    /// Takes a candidate in. [`settle`](Self::settle) comes behind the last.
    pub(super) fn push(&mut self, segment: &Arc<S>, rank: u64, page: u32) {
        if self.first.iter().chain(&self.second).any(|other| other.is(segment, page)) {
            return;
        }
        let found = Found { rank, segment: Arc::clone(segment), page };
        let Some(found) = displace(&mut self.first, found) else { return };
        let Some(found) = displace(&mut self.second, found) else { return };
        self.rest.push(found);
    }

    /// Puts all in order. At once, since a key that every run of many holds has as many places.
    pub(super) fn settle(&mut self) {
        if self.rest.len() > 1 {
            let place = |f: &Found<S>| (Reverse(f.rank), Arc::as_ptr(&f.segment).addr(), f.page);
            self.rest.sort_unstable_by_key(place);
            self.rest.dedup_by(|a, b| a.is(&b.segment, b.page));
        }
    }
}

impl<S> Found<S> {
    fn is(&self, segment: &Arc<S>, page: u32) -> bool {
        self.page == page && Arc::ptr_eq(&self.segment, segment)
    }
}

/// Leaves the newer of two in `place` and gives the other back, if there are two.
fn displace<S>(place: &mut Option<Found<S>>, found: Found<S>) -> Option<Found<S>> {
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
        let found = self.first.take().or_else(|| self.second.take());
        found.or_else(|| self.rest.pop()).map(|found| (found.segment, found.page))
    }
}
