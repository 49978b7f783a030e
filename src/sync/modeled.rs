//! What stands in for the primitives while loom explores the models (`RUSTFLAGS="--cfg loom"`).
//!
//! Atomics, locks and condition variables are loom's behind the methods that the rooms use. `Arc`
//! stays the standard library's: what a reference count orders is not explored, so nothing here
//! proves more than the crates that it replaces promise. Also here: how a model is run, and the
//! mistakes that can be switched on, so that each model is shown to find one.
//!
//! A model runs on one thread of the operating system, so that a thread-local value is shared by
//! its threads, and is no part of what is explored.

use loom::sync as checked;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A mistake that the primitives make on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// 64-bit atomics take every order as relaxed.
    Relaxed64,
    /// Atomics of a word's size take every order as relaxed.
    RelaxedSize,
    /// Pointers to shared objects are swapped without an order.
    RelaxedSwap,
    /// One that the model itself makes.
    OfTheModel,
}

thread_local! {
    static MISTAKE: Cell<Option<Mistake>> = const { Cell::new(None) };
}

/// Whether this mistake is to be made.
pub(crate) fn makes(mistake: Mistake) -> bool {
    MISTAKE.get() == Some(mistake)
}

/// Explores the schedules of a model and says how many there were. Within `LOOM_MAX_PREEMPTIONS` (3
/// unless told) all are, or so many that `LOOM_MAX_DURATION` seconds or `LOOM_MAX_PERMUTATIONS` are
/// spent.
pub(crate) fn explore(name: &str, mistake: Option<Mistake>, model: fn()) {
    use std::sync::atomic::{AtomicU64, Ordering};
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            MISTAKE.set(None);
        }
    }
    let _restore = Restore;
    MISTAKE.set(mistake);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.max_branches = builder.max_branches.max(10_000);
    // So often the limits are looked at.
    builder.checkpoint_interval = 500;
    let schedules = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&schedules);
    let start = Instant::now();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let bound = builder.preemption_bound.map_or_else(String::new, |n| format!("{n}"));
    let seconds = start.elapsed().as_secs_f64();
    let schedules = schedules.load(Ordering::Relaxed);
    println!("loom: {schedules} schedules in {seconds:.1} s, {bound} preemptions: {name}");
}

pub(crate) mod atomic {
    use super::{Mistake, makes};
    use loom::sync::atomic as checked;
    pub(crate) use std::sync::atomic::Ordering;

    fn ordered(order: Ordering, mistake: Mistake) -> Ordering {
        if makes(mistake) { Ordering::Relaxed } else { order }
    }

    macro_rules! atomic {
        ($name:ident, $value:ty, $mistake:expr, [$($rmw:ident)*]) => {
            #[derive(Debug)]
            pub(crate) struct $name(checked::$name);

            impl $name {
                pub(crate) fn new(value: $value) -> Self {
                    $name(checked::$name::new(value))
                }

                pub(crate) fn load(&self, order: Ordering) -> $value {
                    self.0.load(ordered(order, $mistake))
                }

                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    self.0.store(value, ordered(order, $mistake))
                }

                $(pub(crate) fn $rmw(&self, value: $value, order: Ordering) -> $value {
                    self.0.$rmw(value, ordered(order, $mistake))
                })*
            }

            impl Default for $name {
                fn default() -> Self {
                    $name::new(<$value>::default())
                }
            }
        };
    }

    atomic!(AtomicU64, u64, Mistake::Relaxed64, [fetch_add fetch_sub fetch_max]);
    atomic!(AtomicU32, u32, Mistake::OfTheModel, [fetch_add fetch_sub fetch_or fetch_and]);
    atomic!(AtomicUsize, usize, Mistake::RelaxedSize, [fetch_add fetch_sub]);
    atomic!(AtomicBool, bool, Mistake::OfTheModel, []);
}

/// A lock that does not poison.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(checked::Mutex<T>);

pub(crate) struct MutexGuard<'a, T>(Option<checked::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(checked::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(self.0.lock().ok())
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok().map(|guard| MutexGuard(Some(guard)))
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is locked")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("it is locked")
    }
}

/// Shared or exclusive.
#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(checked::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        RwLock(checked::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> checked::RwLockReadGuard<'_, T> {
        self.0.read().expect("locks do not poison here")
    }

    pub(crate) fn write(&self) -> checked::RwLockWriteGuard<'_, T> {
        self.0.write().expect("locks do not poison here")
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar(checked::Condvar);

impl Condvar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.0.take().expect("it is locked");
        guard.0 = self.0.wait(held).ok();
    }

    /// Time does not pass in a model.
    pub(crate) fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _: Duration) {
        self.wait(guard);
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// A cell that is set once.
pub(crate) struct OnceLock<T> {
    is_set: checked::atomic::AtomicBool,
    value: std::sync::OnceLock<T>,
}

impl<T> OnceLock<T> {
    pub(crate) fn new() -> Self {
        let is_set = checked::atomic::AtomicBool::new(false);
        OnceLock { is_set, value: std::sync::OnceLock::new() }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        if self.is_set.load(atomic::Ordering::Acquire) { self.value.get() } else { None }
    }

    /// One thread sets, as in all uses that are explored.
    pub(crate) fn set(&self, value: T) -> Result<(), T> {
        self.value.set(value)?;
        self.is_set.store(true, atomic::Ordering::Release);
        Ok(())
    }

    pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        if self.get().is_none() {
            assert!(self.set(make()).is_ok(), "one thread sets");
        }
        self.get().expect("it is set")
    }
}

impl<T> Default for OnceLock<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// What a load gives.
pub(crate) struct Guard<T>(T);

impl<T> Deref for Guard<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// A pointer to a shared object that is replaced as a whole. A load takes what a store released, and
/// may, as any atomic load, give what was there before. Keeps all that was in it, until it is dropped.
pub(crate) struct ArcSwap<T> {
    at: checked::atomic::AtomicUsize,
    held: std::sync::Mutex<Vec<Arc<T>>>,
}

impl<T> ArcSwap<T> {
    pub(crate) fn new(value: Arc<T>) -> Self {
        let at = checked::atomic::AtomicUsize::new(0);
        ArcSwap { at, held: std::sync::Mutex::new(vec![value]) }
    }

    pub(crate) fn from_pointee(value: T) -> Self {
        Self::new(Arc::new(value))
    }

    pub(crate) fn load_full(&self) -> Arc<T> {
        let relaxed = makes(Mistake::RelaxedSwap);
        let order = if relaxed { atomic::Ordering::Relaxed } else { atomic::Ordering::Acquire };
        let at = self.at.load(order);
        Arc::clone(&self.held.lock().expect("no panic within")[at])
    }

    pub(crate) fn load(&self) -> Guard<Arc<T>> {
        Guard(self.load_full())
    }

    /// Stores are made by one thread at a time, under a lock of its own.
    pub(crate) fn store(&self, value: Arc<T>) {
        let at = {
            let mut held = self.held.lock().expect("no panic within");
            held.push(value);
            held.len() - 1
        };
        let relaxed = makes(Mistake::RelaxedSwap);
        let order = if relaxed { atomic::Ordering::Relaxed } else { atomic::Ordering::Release };
        self.at.store(at, order);
    }
}

/// The same for one that may be missing. Lets go of what was in it, as its users count on that; so
/// loads give the newest value.
pub(crate) struct ArcSwapOption<T>(checked::Mutex<Option<Arc<T>>>);

fn is_same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

impl<T> ArcSwapOption<T> {
    pub(crate) fn empty() -> Self {
        ArcSwapOption(checked::Mutex::new(None))
    }

    pub(crate) fn load_full(&self) -> Option<Arc<T>> {
        self.0.lock().expect("no panic within").clone()
    }

    pub(crate) fn load(&self) -> Guard<Option<Arc<T>>> {
        Guard(self.load_full())
    }

    pub(crate) fn swap(&self, value: Option<Arc<T>>) -> Option<Arc<T>> {
        let mut held = self.0.lock().expect("no panic within");
        std::mem::replace(&mut *held, value)
    }

    /// What was there: replaced if it was `current`.
    pub(crate) fn compare_and_swap(
        &self,
        current: &Option<Arc<T>>,
        new: Option<Arc<T>>,
    ) -> Guard<Option<Arc<T>>> {
        let mut held = self.0.lock().expect("no panic within");
        let before = held.clone();
        if is_same(before.as_ref(), current.as_ref()) {
            *held = new;
        }
        drop(held);
        Guard(before)
    }
}

/// Tells the model checker of plain memory that is written in pieces, each once: what is read must
/// have been written before, in an order that the threads agree on.
pub(crate) struct Watched(std::sync::Mutex<BTreeMap<usize, loom::cell::UnsafeCell<()>>>);

impl Watched {
    pub(crate) fn new() -> Self {
        Watched(std::sync::Mutex::default())
    }

    pub(crate) fn written(&self, piece: Range<usize>) {
        let cell = loom::cell::UnsafeCell::new(());
        cell.with_mut(|_| ());
        self.0.lock().expect("no panic within").insert(piece.end, cell);
    }

    pub(crate) fn read(&self, end: usize) {
        let pieces = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        pieces.range(..=end).for_each(|(_, cell)| cell.with(|_| ()));
    }
}
