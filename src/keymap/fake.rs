//! Segments made of vectors, with faults to order, for the tests of the map.

use super::{MapSegment, Slices};
use crate::error::{Error, Result};
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex};
use crate::types::{KeyspaceId, SegmentId};
use std::path::Path;

/// The shards that keys fall into, so that each holds many.
pub(super) const SPREAD: [u8; 4] = [0, 1, 77, 255];

/// A generator of numbers (SplitMix64).
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

pub(super) fn mix(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// The hash of a key: in one of the shards of [`SPREAD`].
pub(super) fn hash_of(key: u64, keyspace: KeyspaceId) -> u64 {
    let hash = mix(key ^ (u64::from(keyspace.0) << 48));
    let shard = SPREAD[(hash >> 62) as usize];
    (hash & (u64::MAX >> 8)) | u64::from(shard) << 56
}

/// Makes faulty segments behave when it is set.
pub(super) type Truce = Arc<AtomicBool>;

/// What happens meanwhile.
pub(super) type Hook = Box<dyn FnOnce() + Send>;

/// A segment.
pub(super) struct Fake {
    pub(super) id: SegmentId,
    pub(super) keyspace: KeyspaceId,
    /// Key and page, rising.
    pub(super) keys: Vec<(u64, u16)>,
    /// 40-bit hash and page, rising.
    run: Arc<Vec<(u64, u16)>>,
    pub(super) garbage: AtomicU64,
    /// Times its run was opened.
    pub(super) opened: AtomicUsize,
    /// Whether opening its run fails.
    pub(super) no_run: AtomicBool,
    /// Whether reading a slice fails: the shard, or more than 255 for none.
    pub(super) bad_slice: AtomicU64,
    /// How many more times the operating system will refuse to open it.
    pub(super) refusals: AtomicU64,
    /// Whether the bad slice is readable but out of order.
    pub(super) garbled: AtomicBool,
    /// Called once, when its run is opened next.
    pub(super) hook: Mutex<Option<Hook>>,
    truce: Truce,
}

impl Fake {
    /// A segment of these keys, which rise; so many keys share a page.
    pub(super) fn new(
        id: u64,
        keyspace: u32,
        keys: &[u64],
        per_page: usize,
        truce: &Truce,
    ) -> Fake {
        let keyspace = KeyspaceId(keyspace);
        let pages = keys.iter().enumerate().map(|(i, key)| (*key, (i / per_page) as u16));
        let keys: Vec<_> = pages.collect();
        let hashes = keys.iter().map(|(key, page)| (hash_of(*key, keyspace) >> 24, *page));
        let mut run: Vec<_> = hashes.collect();
        run.sort_unstable();
        Fake::of(id, keyspace, keys, run, truce)
    }

    /// A segment with the hash run given.
    pub(super) fn of(
        id: u64,
        keyspace: KeyspaceId,
        keys: Vec<(u64, u16)>,
        run: Vec<(u64, u16)>,
        truce: &Truce,
    ) -> Fake {
        Fake {
            id: SegmentId(id),
            keyspace,
            keys,
            run: Arc::new(run),
            garbage: AtomicU64::new(0),
            opened: AtomicUsize::new(0),
            no_run: AtomicBool::new(false),
            bad_slice: AtomicU64::new(u64::MAX),
            refusals: AtomicU64::new(0),
            garbled: AtomicBool::new(false),
            hook: Mutex::new(None),
            truce: Arc::clone(truce),
        }
    }

    /// The same segment as another object.
    pub(super) fn again(&self) -> Fake {
        let run = self.run.to_vec();
        let fake = Fake::of(self.id.0, self.keyspace, self.keys.clone(), run, &self.truce);
        fake.no_run.store(self.no_run.load(Ordering::Relaxed), Ordering::Relaxed);
        fake.bad_slice.store(self.bad_slice.load(Ordering::Relaxed), Ordering::Relaxed);
        fake.garbled.store(self.garbled.load(Ordering::Relaxed), Ordering::Relaxed);
        fake
    }

    /// The page a key starts on.
    pub(super) fn page(&self, key: u64) -> Option<u32> {
        let at = self.keys.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        Some(u32::from(self.keys[at].1))
    }

    fn faulty(&self) -> bool {
        !self.truce.load(Ordering::Relaxed)
    }
}

impl MapSegment for Fake {
    fn id(&self) -> SegmentId {
        self.id
    }

    fn keyspace(&self) -> KeyspaceId {
        self.keyspace
    }

    fn covers(&self, key: &[u8]) -> bool {
        let Some(((first, _), (last, _))) = self.keys.first().zip(self.keys.last()) else {
            return false;
        };
        key >= first.to_be_bytes().as_slice() && key <= last.to_be_bytes().as_slice()
    }

    fn pages(&self) -> u32 {
        self.keys.iter().map(|(_, page)| u32::from(*page) + 1).max().unwrap_or(0)
    }

    fn keys(&self) -> u64 {
        self.run.len() as u64
    }

    fn slices(&self) -> Result<Box<dyn Slices>> {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let hook = self.hook.lock().take();
        if let Some(hook) = hook {
            hook();
        }
        if self.refusals.load(Ordering::Relaxed) > 0 {
            self.refusals.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::io(
                "open",
                Path::new("fake"),
                std::io::Error::other("too many files"),
            ));
        }
        if self.faulty() && self.no_run.load(Ordering::Relaxed) {
            return Err(Error::corruption(Path::new("fake"), 0, "no hash run"));
        }
        let bad = self.bad_slice.load(Ordering::Relaxed);
        let bad = if self.faulty() { bad } else { u64::MAX };
        let garbled = self.garbled.load(Ordering::Relaxed);
        Ok(Box::new(FakeSlices { run: Arc::clone(&self.run), bad, garbled, buffer: Vec::new() }))
    }

    fn add_garbage(&self, entries: u64) {
        self.garbage.fetch_add(entries, Ordering::Relaxed);
    }
}

struct FakeSlices {
    run: Arc<Vec<(u64, u16)>>,
    bad: u64,
    garbled: bool,
    buffer: Vec<(u64, u16)>,
}

impl Slices for FakeSlices {
    fn slice(&mut self, slice: u8) -> Result<&[(u64, u16)]> {
        let start = self.run.partition_point(|(h40, _)| h40 >> 32 < u64::from(slice));
        let end = self.run.partition_point(|(h40, _)| h40 >> 32 <= u64::from(slice));
        let entries = &self.run[start..end];
        if u64::from(slice) != self.bad {
            return Ok(entries);
        }
        if !self.garbled {
            return Err(Error::corruption(Path::new("fake"), 0, "a bad slice"));
        }
        self.buffer = entries.iter().rev().copied().collect();
        self.buffer.push((u64::MAX >> 24, 0));
        self.buffer.push((u64::from(slice) << 32, 0));
        Ok(&self.buffer)
    }
}
