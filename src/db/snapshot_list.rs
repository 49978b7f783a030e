//! The snapshots that jobs respect.
//!
//! Invariant: jobs read the list and the published number under the lock under which snapshots read
//! that number and enter the list. So a job whose boundaries lack a snapshot ended its look before the
//! snapshot was made, and counts on no number newer than the snapshot's. Called by `Inner`; the
//! models beside it explore the schedules.

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::types::SeqNo;
use std::collections::BTreeMap;

/// See the module's text.
#[derive(Default)]
pub(super) struct SnapshotList(Mutex<BTreeMap<SeqNo, usize>>);

impl SnapshotList {
    /// A snapshot of the newest number that readers see.
    pub(super) fn register(&self, visible: &AtomicU64) -> SeqNo {
        let mut snapshots = self.0.lock();
        let seqno = SeqNo(visible.load(Ordering::Acquire));
        *snapshots.entry(seqno).or_insert(0) += 1;
        seqno
    }

    /// Lets go of one.
    pub(super) fn release(&self, seqno: SeqNo) {
        let mut snapshots = self.0.lock();
        if let Some(count) = snapshots.get_mut(&seqno) {
            *count -= 1;
            if *count == 0 {
                snapshots.remove(&seqno);
            }
        }
    }

    /// The snapshots, rising, and last the published number.
    pub(super) fn boundaries(&self, visible: &AtomicU64) -> Vec<SeqNo> {
        let snapshots = self.0.lock();
        let visible = SeqNo(visible.load(Ordering::Acquire));
        let mut boundaries: Vec<SeqNo> = snapshots.keys().copied().collect();
        if boundaries.last() != Some(&visible) {
            boundaries.push(visible);
        }
        boundaries
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.lock().values().sum()
    }
}

#[cfg(all(test, loom))]
#[path = "publish_loom_tests.rs"]
mod loom_tests;
