//! From what happens to the listener that hears of it.
//!
//! Whoever has something to tell puts it into a queue, whatever locks it holds: nothing is called then.
//! A thread takes from the queue and calls the listener. Under manual background work there is no such
//! thread; the public calls that do such work take from the queue when they are done with it and hold
//! nothing any more ([`Events::after`]). So the listener is never called with anything held, may call
//! the database, and is called once at a time and in order.
//!
//! Invariants: the queue's lock is a leaf, under which nothing is called or dropped that is the user's;
//! each job that was begun is ended ([`Begun`]), and the queue is given up only after that. A call
//! that panics is caught here, and counted. Called by `background`, `observe` and whoever has an event.

use super::Inner;
use super::event::{Event, EventListener};
use crate::error::{Error, Result};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Condvar, Mutex};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

/// How many stalls may wait to be heard of: they come by the thousand, and each is little news.
const STALLS_MAX: usize = 1000;

/// A listener among the options.
#[derive(Clone)]
pub(crate) struct Listener(pub(crate) Arc<dyn EventListener>);

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}

/// See the module's text.
pub(super) struct Events {
    /// Whether there is, or was, anybody to hear.
    listens: bool,
    /// Whether callers deliver, not a thread.
    by_hand: bool,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    jobs: AtomicU64,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    panics: AtomicU64,
    left_out: AtomicU64,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Event>,
    /// Stalls among those that wait.
    stalls: usize,
    /// Jobs begun and not ended.
    open: usize,
    /// Somebody delivers by hand.
    delivering: bool,
    closed: bool,
    listener: Option<Arc<dyn EventListener>>,
}

impl Queue {
    fn take(&mut self) -> Option<(Event, Arc<dyn EventListener>)> {
        let event = self.waiting.pop_front()?;
        let listener = Arc::clone(self.listener.as_ref()?);
        self.stalls -= usize::from(matches!(event, Event::WriteStall { .. }));
        Some((event, listener))
    }

    /// Lets go of the listener, if it has heard of everything there is. To be dropped without the lock.
    fn retire(&mut self) -> Option<Arc<dyn EventListener>> {
        let ended = self.open == 0;
        #[cfg(all(test, loom))]
        let ended = ended || crate::sync::modeled::makes(crate::sync::modeled::Mistake::OfTheModel);
        if self.closed && ended && self.waiting.is_empty() { self.listener.take() } else { None }
    }
}

impl Shared {
    /// Calls what is the user's.
    fn call(&self, what: &str, call: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(call)).is_err() {
            self.panics.fetch_add(1, Ordering::Relaxed);
            tracing::error!("{what} panicked; the database goes on");
        }
    }

    fn tell(&self, listener: &dyn EventListener, event: &Event) {
        self.call("an event listener", || listener.on_event(event));
    }

    fn let_go(&self, listener: Option<Arc<dyn EventListener>>) {
        self.call("letting go of an event listener", || drop(listener));
    }

    /// The thread's work, until the database is closed and all is told.
    fn tell_all(&self) {
        loop {
            let mut queue = self.queue.lock();
            let (event, listener) = loop {
                if let Some(next) = queue.take() {
                    break next;
                }
                let done = queue.retire();
                if queue.listener.is_none() {
                    drop(queue);
                    self.let_go(done);
                    return;
                }
                self.wake.wait(&mut queue);
            };
            drop(queue);
            self.tell(&*listener, &event);
        }
    }

    /// The same by hand, for what there is now. Within a call of the listener nothing is told: it
    /// comes when that has returned.
    fn tell_waiting(&self) {
        {
            let mut queue = self.queue.lock();
            if queue.delivering {
                return;
            }
            queue.delivering = true;
        }
        loop {
            let mut queue = self.queue.lock();
            let Some((event, listener)) = queue.take() else {
                queue.delivering = false;
                let done = queue.retire();
                drop(queue);
                self.let_go(done);
                return;
            };
            drop(queue);
            self.tell(&*listener, &event);
        }
    }
}

impl Events {
    pub(super) fn new(listener: Option<Listener>, by_hand: bool) -> Events {
        let listens = listener.is_some();
        let queue = Queue { listener: listener.map(|l| l.0), ..Queue::default() };
        let shared = Shared { queue: Mutex::new(queue), ..Shared::default() };
        let (thread, jobs) = (Mutex::new(None), AtomicU64::new(1));
        Events { listens, by_hand, shared: Arc::new(shared), thread, jobs }
    }

    /// Starts the thread that calls the listener, if there is one.
    pub(super) fn start(&self, inner: &Inner) -> Result<()> {
        if !self.listens || self.by_hand {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name("ashlar-events".to_owned())
            .spawn(move || shared.tell_all())
            .map_err(|e| Error::io("start a thread for", &inner.home.dir, e))?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// A number for a job.
    pub(super) fn next_job(&self) -> u64 {
        self.jobs.fetch_add(1, Ordering::Relaxed)
    }

    /// Has something told, if anybody listens. Calls nobody: to be used whatever is held.
    pub(super) fn emit(&self, event: impl FnOnce() -> Event) {
        if self.listens {
            self.put(event(), |_| {});
        }
    }

    fn put(&self, event: Event, count: impl FnOnce(&mut Queue)) {
        let mut queue = self.shared.queue.lock();
        count(&mut queue);
        if queue.listener.is_none() {
            return;
        }
        if matches!(event, Event::WriteStall { .. }) {
            if queue.stalls >= STALLS_MAX {
                self.shared.left_out.fetch_add(1, Ordering::Relaxed);
                return;
            }
            queue.stalls += 1;
        }
        queue.waiting.push_back(event);
        drop(queue);
        self.shared.wake.notify_one();
    }

    /// Has the beginning of a job told.
    pub(super) fn begin(&self, event: impl FnOnce() -> Event) -> Begun<'_> {
        if self.listens {
            self.put(event(), |queue| queue.open += 1);
        }
        Begun { events: self, ended: !self.listens }
    }

    /// Under manual background work: tells what there is to tell when what this returns is dropped.
    /// So to be the first thing that a public call makes, and held until it holds nothing else.
    #[must_use]
    pub(super) fn after(&self) -> Option<After<'_>> {
        (self.listens && self.by_hand).then_some(After(self))
    }

    fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake.notify_one();
    }

    /// Has what waits told, and then no more; waits for that, unless it is the listener that calls.
    /// Jobs that are under way are still told of.
    pub(super) fn stop(&self) {
        if !self.listens {
            return;
        }
        self.close();
        if self.by_hand {
            self.shared.tell_waiting();
            return;
        }
        let thread = {
            let mut held = self.thread.lock();
            let own = std::thread::current().id();
            if held.as_ref().is_some_and(|thread| thread.thread().id() == own) {
                return;
            }
            held.take()
        };
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that calls the listener panicked");
        }
    }

    /// Calls another callback of the user's, which may panic.
    pub(super) fn call(&self, what: &str, call: impl FnOnce()) {
        self.shared.call(what, call);
    }

    /// How often a callback panicked.
    pub(super) fn panics(&self) -> u64 {
        self.shared.panics.load(Ordering::Relaxed)
    }

    /// How many events nobody was told of.
    pub(super) fn left_out(&self) -> u64 {
        self.shared.left_out.load(Ordering::Relaxed)
    }
}

/// See [`Events::after`].
pub(super) struct After<'a>(&'a Events);

impl Drop for After<'_> {
    fn drop(&mut self) {
        self.0.shared.tell_waiting();
    }
}

/// A job that was begun and must be ended.
pub(super) struct Begun<'a> {
    events: &'a Events,
    ended: bool,
}

impl Begun<'_> {
    /// Has the end told.
    pub(super) fn end(mut self, event: impl FnOnce() -> Event) {
        if !self.ended {
            self.ended = true;
            self.events.put(event(), |queue| queue.open -= 1);
        }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // The job panicked. Nobody should wait for its end.
            self.events.shared.queue.lock().open -= 1;
            self.events.shared.wake.notify_one();
        }
    }
}

#[cfg(all(test, loom))]
#[path = "listener_loom_tests.rs"]
mod loom_tests;
