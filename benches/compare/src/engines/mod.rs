//! The engines behind one trait.
//!
//! Every operation is one virtual call, the same for all. A [`Session`] is what one thread works
//! with, so that engines that want per-thread state (a reader slot, a cursor) can keep it. A read gives
//! the value to a closure, so that engines that need not copy do not.

mod ashlar;
mod fjall;
mod lmdb;
mod redb;
#[cfg(feature = "rocksdb")]
mod rocks;
mod sled;

use crate::data::KEY;
use crate::settings::Settings;
use std::collections::BTreeMap;
use std::path::Path;

pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What an acknowledged write survives that was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// The death of the process.
    Process,
    /// Nothing: the last moments before the process dies are lost. The comparison favours it.
    Nothing,
}

pub type Key = [u8; KEY];

pub trait Engine: Send + Sync {
    /// What one thread works with. Made and used in that thread.
    fn session(&self) -> Outcome<Box<dyn Session + '_>>;
    /// Makes the data durable and brings what was written to where it will stay: write buffers are
    /// flushed, and compactions that are known to be due are waited for.
    fn settle(&self) -> Outcome;
    /// Figures of its own, for the record.
    fn stats(&self) -> BTreeMap<&'static str, f64>;
    /// Closes in order.
    fn close(self: Box<Self>) -> Outcome;
}

pub trait Session {
    fn put(&mut self, key: &Key, value: &[u8]) -> Outcome;
    /// Returns when the write survives power loss.
    fn put_sync(&mut self, key: &Key, value: &[u8]) -> Outcome;
    fn delete(&mut self, key: &Key) -> Outcome;
    /// All or nothing. `values` holds `value_bytes` for each key.
    fn write_batch(&mut self, keys: &[Key], values: &[u8], value_bytes: usize) -> Outcome;
    /// Whether the key is there; if so its value goes to `found`.
    fn get(&mut self, key: &Key, found: &mut dyn FnMut(&[u8])) -> Outcome<bool>;
    /// Up to `limit` entries from `start` on, or from the end of the store that the direction begins
    /// with. `start` itself belongs to it in both directions. Gives how many there were.
    fn scan(
        &mut self,
        start: Option<&Key>,
        limit: u64,
        reverse: bool,
        entry: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Outcome<u64>;
}

/// What was built.
pub const NAMES: &[&str] = &[
    "ashlardb",
    #[cfg(feature = "rocksdb")]
    "rocksdb",
    "fjall",
    "lmdb",
    "redb",
    "sled",
];

pub fn open(name: &str, dir: &Path, settings: &Settings) -> Outcome<Box<dyn Engine>> {
    Ok(match name {
        "ashlardb" => Box::new(ashlar::Ashlar::open(dir, settings)?),
        #[cfg(feature = "rocksdb")]
        "rocksdb" => Box::new(rocks::Rocks::open(dir, settings)?),
        "fjall" => Box::new(fjall::Fjall::open(dir, settings)?),
        "lmdb" => Box::new(lmdb::Lmdb::open(dir, settings)?),
        "redb" => Box::new(redb::Redb::open(dir, settings)?),
        "sled" => Box::new(sled::Sled::open(dir, settings)?),
        _ => return Err(format!("no engine is called {name}; there are {NAMES:?}").into()),
    })
}

/// What a write that is not synced survives.
#[must_use]
pub fn guarantee(name: &str) -> Guarantee {
    match name {
        "redb" | "sled" => Guarantee::Nothing,
        _ => Guarantee::Process,
    }
}

/// The version that was built, from the lock file.
#[must_use]
pub fn version(name: &str) -> String {
    let package = match name {
        "lmdb" => "lmdb-master-sys",
        "rocksdb" => "librocksdb-sys",
        other => other,
    };
    let lock = include_str!("../../Cargo.lock");
    let found = lock.split("[[package]]").find_map(|section| {
        let mut lines = section.lines().filter(|line| !line.is_empty());
        let named = lines.next()? == format!("name = \"{package}\"");
        named.then(|| lines.next()?.strip_prefix("version = \"")?.strip_suffix('"'))?
    });
    let found = found.unwrap_or("unknown");
    // The C++ is in the build metadata of its crate.
    found.split_once('+').map_or(found, |(_, inner)| inner).to_string()
}

/// Calls `write` until enough time has passed since the last durable commit to make one: for engines
/// that keep what was not synced only in memory.
pub struct Timer {
    last: std::time::Instant,
    turn: u32,
}

impl Timer {
    pub fn new() -> Self {
        Timer { last: std::time::Instant::now(), turn: 0 }
    }

    /// Whether 200 ms have passed; looks at the clock now and then.
    pub fn due(&mut self) -> bool {
        self.turn = self.turn.wrapping_add(1);
        if !self.turn.is_multiple_of(16) || self.last.elapsed().as_millis() < 200 {
            return false;
        }
        self.last = std::time::Instant::now();
        true
    }
}
