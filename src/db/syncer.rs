//! One `fsync` for all that wait for one.
//!
//! Knows what is appended and how far it is durable, and sees to it that one caller at a time syncs,
//! for all. What is a file and how it is synced the caller says.
//!
//! Threads that write and sync in turn would split into two groups, of which one waits while the other
//! one's sync runs. So the one that is to sync waits a little until as many have come as took part in the
//! last sync or came during it. A thread that is alone expects itself, and does not wait.
//!
//! How soon all are back decides how many syncs there are in a second. So each that waits is woken by
//! itself, once, and has its answer then: it takes no lock that others want. Those that came too late
//! for a sync sleep on, but for one that is to sync next.
//!
//! Invariants: nobody hears that a position is durable before a sync ended well that began after
//! the position was appended; after a sync that failed nobody does, and none is tried again; while one
//! waits, another syncs or was woken to. Called by `commit`; the models beside it explore the schedules.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard};
use crate::types::LogId;

/// A place in the sequence of logs: everything before it was appended.
pub(super) type Position = (LogId, u64);

/// Which logs there are, and how far they are durable.
pub(super) struct SyncState<F> {
    /// Logs before the current one that are not synced yet, oldest first.
    pub(super) older: Vec<(LogId, F)>,
    /// The log that is appended to.
    current: (LogId, F),
    pub(super) durable: Position,
    /// Up to where records of the logs before the current one, or of it when it was begun, say that
    /// all is durable.
    mentioned: Position,
    /// Somebody syncs, or gathers those that are to be synced for.
    syncing: bool,
    /// `Syncer::entered` when the last sync began.
    begun: u64,
    /// How many are expected to want the next one.
    expected: u64,
    /// Those that wait for somebody's sync, in the order in which they came.
    waiting: Vec<(Position, Arc<Waiter>)>,
}

struct Waiter {
    answer: Mutex<Option<Answer>>,
    wake: Condvar,
}

enum Answer {
    /// What it waits for is durable; whether a record says so.
    Durable { mentioned: bool },
    /// To look again: to sync, or to hear that nobody may.
    Look,
}

impl Waiter {
    fn new() -> Arc<Waiter> {
        Arc::new(Waiter { answer: Mutex::new(None), wake: Condvar::new() })
    }

    fn wait(&self) -> Answer {
        let mut answer = self.answer.lock();
        loop {
            match answer.take() {
                Some(answer) => return answer,
                None => self.wake.wait(&mut answer),
            }
        }
    }

    fn tell(&self, answer: Answer) {
        *self.answer.lock() = Some(answer);
        self.wake.notify_one();
    }
}

/// See the module's text.
pub(super) struct Syncer<F> {
    state: Mutex<SyncState<F>>,
    /// The end of what is appended to the current log. Replaced under the lock together with the log;
    /// else it rises, by whoever appends.
    end: AtomicU64,
    /// Up to where the current log is durable, written under the lock: the second half of `durable`
    /// if the first is that log, else zero.
    durable_end: AtomicU64,
    /// Up to where a record of the current log says that it is durable, so that damage is not taken
    /// for a torn tail. Replaced under the lock together with the log; else it rises, by whoever
    /// appends. Zero: nothing is said, neither of this log nor of those before it.
    mentioned_end: AtomicU64,
    /// How often somebody came that needed a sync. Changed under the lock.
    entered: AtomicU64,
    /// How long the last sync took, in nanoseconds, as whoever calls says.
    pub(super) lasted: AtomicU64,
}

/// More are not waited for.
const EXPECTED_MAX: u64 = 64;

impl<F: Clone> Syncer<F> {
    /// Appends go to this file of this log; all before `appended` is in it, and not durable.
    pub(super) fn new(current: F, appended: Position) -> Self {
        let durable = (appended.0, 0);
        let (older, mentioned) = (Vec::new(), appended);
        let current = (appended.0, current);
        let (syncing, begun, expected) = (false, 0, 0);
        let waiting = Vec::new();
        let state =
            SyncState { older, current, durable, mentioned, syncing, begun, expected, waiting };
        Syncer {
            state: Mutex::new(state),
            end: AtomicU64::new(appended.1),
            durable_end: AtomicU64::new(0),
            mentioned_end: AtomicU64::new(0),
            entered: AtomicU64::new(0),
            lasted: AtomicU64::new(0),
        }
    }

    /// Notes that the current log was appended to, up to `end`. For the one that appends.
    #[inline]
    pub(super) fn note_appended(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    /// Notes that another log is appended to from now on. For the one that appends.
    pub(super) fn begin_log(&self, file: F, appended: Position) {
        let mut state = self.state.lock();
        state.mentioned = self.mentioned_of(&state);
        let old = std::mem::replace(&mut state.current, (appended.0, file));
        state.older.push(old);
        self.end.store(appended.1, Ordering::Release);
        self.durable_end.store(0, Ordering::Release);
        self.mentioned_end.store(0, Ordering::Release);
    }

    /// Notes that a record of the current log says that it is durable up to here. For the one that
    /// appends.
    #[inline]
    pub(super) fn note_mentioned(&self, upto: u64) {
        if upto > self.mentioned_end.load(Ordering::Relaxed) {
            self.mentioned_end.store(upto, Ordering::Release);
        }
    }

    /// Whether a record says that all before this is durable.
    pub(super) fn is_mentioned(&self, position: Position) -> bool {
        self.mentioned_of(&self.state.lock()) >= position
    }

    fn mentioned_of(&self, state: &SyncState<F>) -> Position {
        match self.mentioned_end.load(Ordering::Acquire) {
            0 => state.mentioned,
            upto => state.mentioned.max((state.current.0, upto)),
        }
    }

    fn entered(&self) -> u64 {
        self.entered.load(Ordering::Relaxed)
    }

    /// The end of what is appended.
    pub(super) fn appended(&self) -> Position {
        self.appended_of(&self.state.lock())
    }

    fn appended_of(&self, state: &SyncState<F>) -> Position {
        (state.current.0, self.end.load(Ordering::Acquire))
    }

    /// Up to where the log is durable that is appended to; zero if nothing is known. For the one that
    /// appends.
    #[inline]
    pub(super) fn durable_in_current(&self) -> u64 {
        self.durable_end.load(Ordering::Acquire)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, SyncState<F>> {
        self.state.lock()
    }

    /// Returns once everything before `position` is durable; whether a record says so.
    ///
    /// `sync` syncs logs in this order. `check` says whether that may be tried; once a sync has
    /// failed it never may, and `sync` sees to that before it returns. `gather` is called if more are
    /// expected to come than have, and returns at the latest when what it is given says that they are
    /// all there, or whenever it likes. `conclude` is called after a sync that ended well, before
    /// others hear of it, with the position that is durable: it may note that in the log, and must not
    /// wait for anyone.
    pub(super) fn sync_to<E>(
        &self,
        position: Position,
        check: impl FnOnce() -> Result<(), E>,
        gather: impl FnOnce(&dyn Fn() -> bool),
        sync: impl FnOnce(&[(LogId, F)]) -> Result<(), E>,
        conclude: impl FnOnce(Position),
    ) -> Result<bool, E> {
        let mut state = self.state.lock();
        let mut has_entered = false;
        loop {
            if state.durable >= position {
                return Ok(self.mentioned_of(&state) >= position);
            }
            if !has_entered {
                has_entered = true;
                self.entered.store(self.entered() + 1, Ordering::Relaxed);
            }
            if !state.syncing {
                break;
            }
            let waiter = Waiter::new();
            state.waiting.push((position, Arc::clone(&waiter)));
            drop(state);
            if let Answer::Durable { mentioned } = waiter.wait() {
                return Ok(mentioned);
            }
            state = self.state.lock();
        }
        if let Err(refused) = check() {
            tell_all_to_look(state);
            return Err(refused);
        }
        state.syncing = true;
        let complete = state.begun + state.expected;
        if self.entered() < complete {
            drop(state);
            gather(&|| self.entered() >= complete);
            state = self.state.lock();
        }
        let before = std::mem::replace(&mut state.begun, self.entered());
        let target = self.appended_of(&state);
        // Older logs first: what is durable must be a prefix.
        let mut files = state.older.clone();
        files.push(state.current.clone());
        drop(state);
        let outcome = sync(&files);
        #[cfg(all(test, loom))]
        let target = match crate::sync::modeled::makes(crate::sync::modeled::Mistake::OfTheModel) {
            true => self.appended(),
            false => target,
        };
        if outcome.is_ok() {
            conclude(target);
        }
        let mut state = self.state.lock();
        state.syncing = false;
        state.expected = (self.entered() - before).min(EXPECTED_MAX);
        if let Err(failed) = outcome {
            tell_all_to_look(state);
            return Err(failed);
        }
        state.durable = state.durable.max(target);
        if state.durable.0 == state.current.0 {
            self.durable_end.store(state.durable.1, Ordering::Release);
        }
        state.older.retain(|(id, _)| *id >= target.0);
        let mentioned = self.mentioned_of(&state);
        let durable = state.durable;
        let (done, mut late): (Vec<_>, Vec<_>) =
            state.waiting.drain(..).partition(|(position, _)| *position <= durable);
        let next = if late.is_empty() { None } else { Some(late.remove(0)) };
        state.waiting = late;
        drop(state);
        if let Some((_, next)) = next {
            next.tell(Answer::Look);
        }
        for (position, waiter) in done {
            waiter.tell(Answer::Durable { mentioned: mentioned >= position });
        }
        Ok(mentioned >= position)
    }
}

/// After a failure, which all that wait are to hear of.
fn tell_all_to_look<F>(mut state: MutexGuard<'_, SyncState<F>>) {
    let waiting = std::mem::take(&mut state.waiting);
    drop(state);
    for (_, waiter) in waiting {
        waiter.tell(Answer::Look);
    }
}

#[cfg(all(test, not(loom)))]
#[path = "syncer_tests.rs"]
mod tests;

#[cfg(all(test, loom))]
#[path = "syncer_loom_tests.rs"]
mod loom_tests;
