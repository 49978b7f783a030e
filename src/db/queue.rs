//! The writers' queue: who commits next, and what together.
//!
//! The writer that finds nobody leading leads: it commits its own batch together with what waits, tells
//! each its outcome, and hands the lead to the first of those that came meanwhile. Knows nothing of
//! logs and memtables: [`Commits`] does.
//!
//! A writer that is alone needs none of this: [`CommitQueue::alone`] lets it take what a leader would
//! enter by ([`Commits::enter`]) if it is free, and so costs that lock and no other.
//!
//! Invariants: one leads at a time; a batch is in one group; its writer returns when that group is
//! done, with its outcome; while a writer waits, somebody leads or was just woken to; nobody is alone
//! while somebody leads, but for one that began before. Called by `commit`; the models beside it
//! explore the schedules.

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Condvar, Mutex};
use std::collections::VecDeque;

/// A group is closed at this size, so that the writers in it do not wait for too much of others'.
const GROUP_BYTES: u64 = 1 << 20;

/// How a group is committed.
pub(super) trait Commits<B> {
    /// What a writer hears.
    type Outcome;

    /// What the one that commits holds, and nobody else.
    type Entered<'a>
    where
        Self: 'a;

    /// The size of a batch, for the limit of a group.
    fn bytes(batch: &B) -> u64;

    /// Called by the one that leads, before its group is gathered: waits until there is room.
    ///
    /// # Errors
    ///
    /// The outcome of its own batch, which is then not committed.
    fn wait_for_room(&self, own: &B) -> Result<(), Self::Outcome>;

    /// Called by the one that leads: waits until nobody else commits. What comes meanwhile is still
    /// gathered. `None` if one that was alone took the room meanwhile.
    fn enter(&self) -> Option<Self::Entered<'_>>;

    /// Commits a group; an outcome for each batch.
    fn commit_group(&self, entered: Self::Entered<'_>, group: &[B]) -> Vec<Self::Outcome>;
}

/// See the module's text.
pub(super) struct CommitQueue<B, O> {
    state: Mutex<State<B, O>>,
    /// The same as `State::leading`, for a look without the lock.
    is_led: AtomicBool,
}

struct State<B, O> {
    leading: bool,
    waiting: VecDeque<Arc<Waiter<B, O>>>,
}

struct Waiter<B, O> {
    turn: Mutex<Turn<B, O>>,
    wake: Condvar,
}

enum Turn<B, O> {
    /// In the queue.
    Waiting(B),
    /// In a group that is being committed.
    Taken,
    /// To lead the next group.
    Lead(B),
    Done(O),
}

impl<B, O> Default for CommitQueue<B, O> {
    fn default() -> Self {
        CommitQueue {
            state: Mutex::new(State { leading: false, waiting: VecDeque::new() }),
            is_led: AtomicBool::new(false),
        }
    }
}

impl<B, O> CommitQueue<B, O> {
    /// Gives `enter` a try if nobody leads: what it returns is for one batch to be committed without
    /// the queue. If it fails, the batch must be queued.
    ///
    /// Whoever leads is not overtaken again and again: those that come after it wait behind it.
    #[inline]
    pub(super) fn alone<T>(&self, enter: impl FnOnce() -> Option<T>) -> Option<T> {
        // What excludes others is what `enter` takes; this only keeps the order fair.
        if self.is_led.load(Ordering::Relaxed) { None } else { enter() }
    }

    /// Commits a batch, alone or with others; waits for it.
    pub(super) fn commit(&self, batch: B, to: &impl Commits<B, Outcome = O>) -> O {
        let mut queue = self.state.lock();
        if !queue.leading {
            queue.leading = true;
            self.is_led.store(true, Ordering::Relaxed);
            drop(queue);
            return self.lead(batch, to);
        }
        let waiter =
            Arc::new(Waiter { turn: Mutex::new(Turn::Waiting(batch)), wake: Condvar::new() });
        queue.waiting.push_back(Arc::clone(&waiter));
        drop(queue);
        let mut turn = waiter.turn.lock();
        loop {
            match std::mem::replace(&mut *turn, Turn::Taken) {
                Turn::Done(outcome) => return outcome,
                Turn::Lead(batch) => {
                    drop(turn);
                    return self.lead(batch, to);
                }
                waiting => *turn = waiting,
            }
            waiter.wake.wait(&mut turn);
        }
    }

    /// Commits the caller's batch together with what waits, then hands the lead on.
    fn lead<C: Commits<B, Outcome = O>>(&self, own: B, to: &C) -> O {
        let outcome = loop {
            if let Err(refused) = to.wait_for_room(&own) {
                break refused;
            }
            if let Some(entered) = to.enter() {
                break self.commit_with_others(own, entered, to);
            }
        };
        self.hand_on();
        outcome
    }

    fn commit_with_others<'a, C: Commits<B, Outcome = O>>(
        &self,
        own: B,
        entered: C::Entered<'a>,
        to: &'a C,
    ) -> O {
        let mut bytes = C::bytes(&own);
        let mut batches = vec![own];
        let mut followers = Vec::new();
        let mut queue = self.state.lock();
        while bytes < GROUP_BYTES
            && let Some(waiter) = queue.waiting.pop_front()
        {
            let mut turn = waiter.turn.lock();
            if let Turn::Waiting(batch) = std::mem::replace(&mut *turn, Turn::Taken) {
                bytes += C::bytes(&batch);
                batches.push(batch);
            }
            drop(turn);
            followers.push(waiter);
        }
        drop(queue);
        let mut outcomes = to.commit_group(entered, &batches).into_iter();
        debug_assert_eq!(outcomes.len(), batches.len(), "an outcome for each batch");
        let own = outcomes.next().expect("an outcome for each batch");
        for (waiter, outcome) in followers.into_iter().zip(outcomes) {
            *waiter.turn.lock() = Turn::Done(outcome);
            waiter.wake.notify_one();
        }
        own
    }

    fn hand_on(&self) {
        #[cfg(all(test, loom))]
        if crate::sync::modeled::makes(crate::sync::modeled::Mistake::OfTheModel) {
            if self.state.lock().waiting.is_empty() {
                self.state.lock().leading = false;
                self.is_led.store(false, Ordering::Relaxed);
                return;
            }
        }
        let mut queue = self.state.lock();
        match queue.waiting.pop_front() {
            Some(next) => {
                drop(queue);
                let mut turn = next.turn.lock();
                if let Turn::Waiting(batch) = std::mem::replace(&mut *turn, Turn::Taken) {
                    *turn = Turn::Lead(batch);
                }
                drop(turn);
                next.wake.notify_one();
            }
            None => {
                queue.leading = false;
                self.is_led.store(false, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(all(test, loom))]
#[path = "queue_loom_tests.rs"]
mod loom_tests;
