//! The snapshots that jobs respect.
//!
//! Invariant: jobs read the list and the published number under the lock under which snapshots read
//! that number and enter the list. So a job whose boundaries lack a snapshot ended its look before the
//! snapshot was made, and counts on no number newer than the snapshot's. The clock is read under that
//! lock too, and a clock that steps back is not followed: what a job takes for expired is expired for
//! every snapshot to come, and for every reader who sees what the job made. Called by `Inner`; the
//! models beside it explore the schedules.
//!
//! A job that filters changes what the newest readers see. One that does not know of a snapshot, because it
//! was made while the job is under way, would take that something away: so such a snapshot holds on to a read
//! state, as an iterator does, and is read from that. A job says that it filters before its look at the list
//! and until its result is published; so every snapshot is on the list in time, or holds a state, or sees
//! the result alone.

use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex};
use crate::types::SeqNo;
use std::collections::BTreeMap;

/// See the module's text. `S` is a read state.
pub(super) struct SnapshotList<S> {
    /// Those of each moment.
    held: Mutex<BTreeMap<Moment, Held<S>>>,
    /// The greatest time that was read under the lock, in milliseconds since the Unix epoch.
    latest_ms: AtomicU64,
    /// How many jobs filter.
    filtering: AtomicUsize,
    /// How many moments have a state of their own.
    with_state: AtomicUsize,
}

impl<S> Default for SnapshotList<S> {
    fn default() -> Self {
        SnapshotList {
            held: Mutex::new(BTreeMap::new()),
            latest_ms: AtomicU64::new(0),
            filtering: AtomicUsize::new(0),
            with_state: AtomicUsize::new(0),
        }
    }
}

/// As long as it lives, snapshots that are made hold on to a state.
pub(super) struct Filters<'a>(&'a AtomicUsize);

impl Drop for Filters<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a snapshot is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment {
    pub(super) seqno: SeqNo,
    /// In milliseconds since the Unix epoch: what expired by then is gone.
    pub(super) now_ms: u64,
}

/// The snapshots of one moment.
struct Held<S> {
    count: usize,
    /// What they are read from, if not from the newest state.
    state: Option<Arc<S>>,
}

impl<S> SnapshotList<S> {
    /// A snapshot of the newest number that readers see, and its time. `now_ms` reads the clock.
    pub(super) fn register(&self, visible: &AtomicU64, now_ms: impl FnOnce() -> u64) -> Moment {
        let mut held = self.held.lock();
        let seqno = SeqNo(visible.load(Ordering::Acquire));
        let moment = Moment { seqno, now_ms: self.advance(now_ms()) };
        held.entry(moment).or_insert(Held { count: 0, state: None }).count += 1;
        moment
    }

    /// Lets go of one.
    pub(super) fn release(&self, moment: Moment) {
        let mut held = self.held.lock();
        let Some(at) = held.get_mut(&moment) else { return };
        at.count -= 1;
        if at.count > 0 {
            return;
        }
        let last = held.remove(&moment);
        drop(held);
        // Not under the lock: files may go with it.
        if let Some(state) = last.and_then(|at| at.state) {
            self.with_state.fetch_sub(1, Ordering::Release);
            drop(state);
        }
    }

    /// Says that a job filters, from before its look at the list until its result is published.
    pub(super) fn filtering(&self) -> Filters<'_> {
        self.filtering.fetch_add(1, Ordering::SeqCst);
        Filters(&self.filtering)
    }

    /// For a snapshot that was just registered: holds on to a state for it, if a job filters.
    pub(super) fn hold(&self, moment: Moment, state: impl FnOnce() -> Arc<S>) {
        if self.filtering.load(Ordering::SeqCst) == 0 {
            return;
        }
        let state = state();
        let mut held = self.held.lock();
        if let Some(at) = held.get_mut(&moment)
            && at.state.is_none()
        {
            at.state = Some(state);
            self.with_state.fetch_add(1, Ordering::Release);
        }
    }

    /// The state that a snapshot is to be read from, if not from the newest.
    #[inline]
    pub(super) fn state(&self, moment: Moment) -> Option<Arc<S>> {
        if self.with_state.load(Ordering::Acquire) == 0 { None } else { self.find_state(moment) }
    }

    #[cold]
    fn find_state(&self, moment: Moment) -> Option<Arc<S>> {
        self.held.lock().get(&moment)?.state.clone()
    }

    /// The newest snapshot.
    pub(super) fn newest(&self) -> Option<SeqNo> {
        self.held.lock().keys().next_back().map(|moment| moment.seqno)
    }

    /// The snapshots, rising, and last the published number; and the time by which what has expired is
    /// seen by none of them, nor by one that will be made.
    pub(super) fn boundaries(
        &self,
        visible: &AtomicU64,
        now_ms: impl FnOnce() -> u64,
    ) -> (Vec<SeqNo>, u64) {
        let held = self.held.lock();
        let visible = SeqNo(visible.load(Ordering::Acquire));
        let mut boundaries: Vec<SeqNo> = held.keys().map(|moment| moment.seqno).collect();
        boundaries.push(visible);
        boundaries.dedup();
        let now_ms = self.advance(now_ms());
        let expired_by = held.keys().map(|moment| moment.now_ms).fold(now_ms, u64::min);
        (boundaries, expired_by)
    }

    /// The time for who is not on the list, given what the clock says. Asked after the state was
    /// loaded, it is not before any that the jobs behind that state went by.
    pub(super) fn time(&self, now_ms: u64) -> u64 {
        now_ms.max(self.latest_ms.load(Ordering::Relaxed))
    }

    /// The same under the lock, and noted.
    fn advance(&self, now_ms: u64) -> u64 {
        let now_ms = self.time(now_ms);
        self.latest_ms.store(now_ms, Ordering::Relaxed);
        now_ms
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.held.lock().values().map(|at| at.count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_time_is_that_of_the_snapshots_that_are_left() {
        let (list, visible) = (SnapshotList::<()>::default(), AtomicU64::new(5));
        let moments: Vec<Moment> =
            [100, 200, 300].map(|ms| list.register(&visible, || ms)).into_iter().collect();
        assert_eq!(list.boundaries(&visible, || 400), (vec![SeqNo(5)], 100));
        assert_eq!(list.len(), 3);
        // One number, several times: each counts as long as somebody holds it.
        list.release(moments[0]);
        assert_eq!(list.boundaries(&visible, || 400), (vec![SeqNo(5)], 200));
        list.release(moments[2]);
        visible.store(7, Ordering::Release);
        assert_eq!(list.boundaries(&visible, || 400), (vec![SeqNo(5), SeqNo(7)], 200));
        list.release(moments[1]);
        assert_eq!(list.boundaries(&visible, || 400), (vec![SeqNo(7)], 400));
        assert_eq!(list.len(), 0);
    }

    #[test]
    fn a_clock_that_steps_back_is_not_followed() {
        let (list, visible) = (SnapshotList::<()>::default(), AtomicU64::new(5));
        assert_eq!(list.boundaries(&visible, || 900).1, 900);
        // The job is still under way; what is made now must not see what it drops.
        let moment = list.register(&visible, || 400);
        assert_eq!(moment.now_ms, 900);
        assert_eq!((list.time(400), list.time(1000)), (900, 1000));
        assert_eq!(list.boundaries(&visible, || 300).1, 900);
        list.release(moment);
        assert_eq!(list.register(&visible, || 1200).now_ms, 1200);
        assert_eq!(list.time(0), 1200);
    }
}

#[cfg(all(test, loom))]
#[path = "publish_loom_tests.rs"]
mod loom_tests;
