//! The synchronization primitives that the rooms above may use, in one place.
//!
//! A model checker replaces them here and nowhere else. Poisoning is not a concern: these locks do
//! not poison, and no lock is held across code of the user's. Called by every room.

pub(crate) use arc_swap::ArcSwap;
pub(crate) use parking_lot::{Condvar, Mutex, RwLock};
pub(crate) use std::sync::Arc;
pub(crate) use std::sync::atomic;
