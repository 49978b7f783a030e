//! One `fsync` for all that wait for one.
//!
//! Knows what is appended and how far it is durable, and sees to it that one caller at a time syncs,
//! for all. What is a file and how it is synced the caller says.
//!
//! Invariants: nobody hears that a position is durable before a sync ended well that began after
//! the position was appended; after a sync that failed nobody does, and none is tried again. Called by
//! `commit`; the models beside it explore the schedules.

use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::types::LogId;

/// A place in the sequence of logs: everything before it was appended.
pub(super) type Position = (LogId, u64);

/// What is appended, and how far it is durable.
pub(super) struct SyncState<F> {
    /// Logs before the current one that are not synced yet, oldest first.
    pub(super) older: Vec<(LogId, F)>,
    pub(super) current: F,
    pub(super) appended: Position,
    pub(super) durable: Position,
    /// Up to where a record says that it is durable, so that damage is not taken for a torn tail.
    pub(super) mentioned: Position,
    syncing: bool,
}

/// See the module's text.
pub(super) struct Syncer<F> {
    state: Mutex<SyncState<F>>,
    synced: Condvar,
}

impl<F: Clone> Syncer<F> {
    /// Appends go to this file of this log; all before `appended` is in it, and not durable.
    pub(super) fn new(current: F, appended: Position) -> Self {
        let durable = (appended.0, 0);
        let (older, mentioned) = (Vec::new(), appended);
        let state = SyncState { older, current, appended, durable, mentioned, syncing: false };
        Syncer { state: Mutex::new(state), synced: Condvar::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, SyncState<F>> {
        self.state.lock()
    }

    /// Returns once everything before `position` is durable.
    ///
    /// `sync` syncs logs in this order. `check` says whether that may be tried; once a sync has
    /// failed it never may, and `sync` sees to that before it returns.
    pub(super) fn sync_to<E>(
        &self,
        position: Position,
        check: impl FnOnce() -> Result<(), E>,
        sync: impl FnOnce(&[(LogId, F)]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut state = self.state.lock();
        loop {
            if state.durable >= position {
                return Ok(());
            }
            if !state.syncing {
                break;
            }
            self.synced.wait(&mut state);
        }
        check()?;
        state.syncing = true;
        let target = state.appended;
        // Older logs first: what is durable must be a prefix.
        let mut files = state.older.clone();
        files.push((target.0, state.current.clone()));
        drop(state);
        let outcome = sync(&files);
        let mut state = self.state.lock();
        state.syncing = false;
        #[cfg(all(test, loom))]
        let target = match crate::sync::modeled::makes(crate::sync::modeled::Mistake::OfTheModel) {
            true => state.appended,
            false => target,
        };
        if outcome.is_ok() {
            state.durable = state.durable.max(target);
            state.older.retain(|(id, _)| *id >= target.0);
        }
        drop(state);
        self.synced.notify_all();
        outcome
    }
}

#[cfg(all(test, loom))]
#[path = "syncer_loom_tests.rs"]
mod loom_tests;
