//! The synchronization primitives that the rooms above may use, in one place.
//!
//! A model checker replaces them here and nowhere else: with `RUSTFLAGS="--cfg loom"` the unit tests
//! get loom's, and the tests called `loom_` explore the schedules of small models. A program that
//! uses this library gets the real ones, with that flag too. Poisoning is not a concern: these locks
//! do not poison, and no lock is held across code of the user's. Called by every room.

#[cfg(all(test, loom))]
pub(crate) mod modeled;
#[cfg(all(test, loom))]
pub(crate) use modeled::{
    ArcSwap, ArcSwapOption, Condvar, Mutex, MutexGuard, OnceLock, RwLock, Watched, atomic,
};

#[cfg(not(all(test, loom)))]
pub(crate) use arc_swap::{ArcSwap, ArcSwapOption};
#[cfg(not(all(test, loom)))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::OnceLock;
#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::atomic;

/// What an [`ArcSwap`] held when it was loaded, kept without counting a reference.
#[cfg(not(all(test, loom)))]
pub(crate) type Loaded<T> = arc_swap::Guard<Arc<T>>;
#[cfg(all(test, loom))]
pub(crate) type Loaded<T> = modeled::Guard<Arc<T>>;

pub(crate) use std::sync::{Arc, Weak};

// Of statistics, which order nothing.
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Where a model checker would hear of plain memory that is written in pieces while others read what
/// was written before. Nothing, otherwise.
#[cfg(not(all(test, loom)))]
pub(crate) struct Watched;

#[cfg(not(all(test, loom)))]
#[allow(clippy::unused_self)] // The stand-in uses it.
impl Watched {
    pub(crate) fn new() -> Self {
        Watched
    }

    /// This piece is being written.
    #[inline]
    pub(crate) fn written(&self, _: std::ops::Range<usize>) {}

    /// Everything up to here is read.
    #[inline]
    pub(crate) fn read(&self, _: usize) {}
}

/// How many stripes there are: what many threads write to at once is cut into so many.
pub(crate) const STRIPES: usize = 16;

/// The stripe of the calling thread, which it shares with few others.
#[inline]
pub(crate) fn stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static STRIPE: usize = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES;
    }
    // A thread that is shutting down may have lost its number; any stripe will do.
    STRIPE.try_with(|stripe| *stripe).unwrap_or(0)
}

#[repr(align(64))]
#[derive(Debug)]
struct Stripe<const N: usize>([AtomicU64; N]);

/// `N` counters that many threads add to without sharing cache lines: each thread has a stripe, which
/// it shares with few others. Adding costs a few nanoseconds; reading sums the stripes.
#[derive(Debug)]
pub(crate) struct Striped<const N: usize>([Stripe<N>; STRIPES]);

impl<const N: usize> Default for Striped<N> {
    fn default() -> Self {
        Striped(std::array::from_fn(|_| Stripe(std::array::from_fn(|_| AtomicU64::new(0)))))
    }
}

impl<const N: usize> Striped<N> {
    /// Adds to the counters of the calling thread's stripe.
    #[inline]
    pub(crate) fn add(&self, amounts: [u64; N]) {
        for (counter, amount) in self.0[stripe()].0.iter().zip(amounts) {
            if amount > 0 {
                counter.fetch_add(amount, Ordering::Relaxed);
            }
        }
    }

    /// The sums.
    pub(crate) fn sums(&self) -> [u64; N] {
        std::array::from_fn(|i| {
            self.0.iter().map(|stripe| stripe.0[i].load(Ordering::Relaxed)).sum()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn striped_counters_lose_nothing_to_other_threads() {
        let counters = Striped::<2>::default();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| (0..1000).for_each(|n| counters.add([1, n % 2])));
            }
        });
        assert_eq!(counters.sums(), [20_000, 10_000]);
    }
}
