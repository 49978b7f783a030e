//! Readers against a committer: a key that is always in some live segment is always found. And the
//! same with a mistake in it, which the test must find.

use super::fake::{Fake, Rng, SPREAD, Truce, hash_of};
use super::{KeyMap, MapEdit, MapOptions};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::types::{KeyspaceId, SegmentId};
use std::thread;

const KEYS: u64 = 4000;
const SPACE: KeyspaceId = KeyspaceId(0);

/// What the readers saw.
#[derive(Default)]
struct Seen {
    gets: AtomicU64,
    /// Shards that were not resident.
    unknown: AtomicU64,
    /// Keys without a candidate that holds them.
    missed: AtomicU64,
    /// Candidates that were not in falling age: ids of segments tell here.
    disordered: AtomicU64,
}

impl Seen {
    fn look(&self, map: &KeyMap<Fake>, key: u64) {
        self.gets.fetch_add(1, Ordering::Relaxed);
        let Some(found) = map.get(hash_of(key, SPACE), SPACE, &key.to_be_bytes()) else {
            self.unknown.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (mut held, mut newest) = (false, u64::MAX);
        for (segment, page) in found {
            held |= segment.page(key) == Some(page);
            let disordered = segment.id.0 > newest;
            self.disordered.fetch_add(u64::from(disordered), Ordering::Relaxed);
            newest = segment.id.0;
        }
        self.missed.fetch_add(u64::from(!held), Ordering::Relaxed);
    }
}

/// Rewrites everything again and again, in changing layouts, while readers look. Stops after so
/// many edits, or once readers have missed something.
fn race(torn: bool, edits: u64) -> (Seen, super::MapStats) {
    let map = KeyMap::<Fake>::new(MapOptions::with_budget(1 << 30));
    map.torn.store(torn, Ordering::Relaxed);
    let truce: Truce = Arc::new(AtomicBool::new(false));
    let keys: Vec<u64> = (0..KEYS).collect();
    let mut next = 0;
    let mut segment = |keys: &[u64], per_page: usize| {
        next += 1;
        // Later is newer.
        (Arc::new(Fake::new(next, SPACE.0, keys, per_page, &truce)), u64::MAX - next)
    };
    let seen = Seen::default();
    let stop = AtomicBool::new(false);
    let mut live = vec![segment(&keys, 2)];
    map.apply(MapEdit { added: &live, removed: &[], moved: &[], is_flush: false });
    while map.fill_next() {}

    thread::scope(|scope| {
        for reader in 0..3 {
            let (seen, stop, map) = (&seen, &stop, &map);
            scope.spawn(move || {
                let mut rng = Rng(reader);
                while !stop.load(Ordering::Relaxed) {
                    seen.look(map, rng.below(KEYS));
                }
            });
        }
        // Builds that edits overtake.
        scope.spawn(|| {
            let mut rng = Rng(99);
            while !stop.load(Ordering::Relaxed) {
                if !torn {
                    map.drop_shard(SPREAD[rng.below(4) as usize]);
                }
                while map.fill_next() {}
                thread::yield_now();
            }
        });
        let mut rng = Rng(7);
        for _ in 0..edits {
            if torn && seen.missed.load(Ordering::Relaxed) > 0 {
                break;
            }
            let edit = rng.below(4);
            let per_page = 1 + rng.below(9) as usize;
            if edit < 2 && live.len() < 6 {
                // A flush of some keys.
                let some: Vec<u64> = keys.iter().copied().filter(|_| rng.below(3) == 0).collect();
                let added = [segment(&some, per_page)];
                map.apply(MapEdit { added: &added, removed: &[], moved: &[], is_flush: true });
                live.extend(added);
                continue;
            }
            // Everything into one segment, or three by key range.
            let cut = if edit == 2 { keys.len() } else { keys.len() / 3 + 1 };
            let added: Vec<_> = keys.chunks(cut).map(|keys| segment(keys, per_page)).collect();
            let removed: Vec<SegmentId> = live.iter().map(|(segment, _)| segment.id).collect();
            map.apply(MapEdit { added: &added, removed: &removed, moved: &[], is_flush: false });
            live = added;
        }
        stop.store(true, Ordering::Relaxed);
    });
    while map.fill_next() {}
    if !torn {
        map.check().unwrap();
    }
    (seen, map.stats())
}

#[test]
fn readers_never_miss_a_key() {
    let (seen, stats) = race(false, 1500);
    let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
    assert_eq!((count(&seen.missed), count(&seen.disordered)), (0, 0));
    let known = count(&seen.gets) - count(&seen.unknown);
    assert!(known > 10_000, "{known} of {}", count(&seen.gets));
    assert_eq!((stats.resident, stats.dropped), (256, 0));
}

#[test]
fn readers_find_the_gap_between_deleting_and_inserting() {
    let (seen, _) = race(true, 20_000);
    assert!(seen.missed.load(Ordering::Relaxed) > 0, "the test cannot see what it is for");
}
