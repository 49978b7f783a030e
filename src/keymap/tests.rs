//! The map over segments of the tests' own: random edits with everything that can go wrong, and
//! each rule by itself.

use super::extents::{Allocator, Extents, vbn};
use super::fake::{Fake, Rng, SPREAD, Truce, hash_of};
use super::oracle::Oracle;
use super::table::{Buckets, Table};
use super::{Candidates, KeyMap, MapEdit, MapOptions, MapSegment};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::types::{KeyspaceId, SegmentId};
use std::collections::BTreeSet;
use std::slice::from_ref;

const LARGE: MapOptions = MapOptions { budget_bytes: 1 << 40, fingerprint_bits: 32 };

fn edit<S>() -> MapEdit<'static, S> {
    MapEdit { added: &[], removed: &[], moved: &[], is_flush: false }
}

fn fill<T: Table>(map: &KeyMap<Fake, T>) {
    while map.fill_next() {}
}

fn get<T: Table>(map: &KeyMap<Fake, T>, keyspace: u32, key: u64) -> Option<Candidates<Fake>> {
    let keyspace = KeyspaceId(keyspace);
    map.get(hash_of(key, keyspace), keyspace, &key.to_be_bytes())
}

fn pairs(found: Option<Candidates<Fake>>) -> Option<Vec<(u64, u32)>> {
    found.map(|found| found.map(|(segment, page)| (segment.id.0, page)).collect())
}

/// A map, the segments that it must know newest first, and the numbers given out.
struct World<T> {
    map: KeyMap<Fake, T>,
    truce: Truce,
    live: Vec<(Arc<Fake>, u64)>,
    next_id: u64,
    next_rank: u64,
    keys: u64,
    per_page: usize,
    rng: Rng,
}

impl<T: Table> World<T> {
    fn new(options: MapOptions, keys: u64, seed: u64) -> Self {
        World {
            map: KeyMap::with_tables(options),
            truce: Arc::new(AtomicBool::new(false)),
            live: Vec::new(),
            next_id: 1,
            next_rank: 1 << 40,
            keys,
            per_page: 3,
            rng: Rng(seed),
        }
    }

    fn segment(&mut self, keyspace: u32, keys: &[u64]) -> Arc<Fake> {
        let id = self.next_id;
        self.next_id += 1;
        Arc::new(Fake::new(id, keyspace, keys, self.per_page, &self.truce))
    }

    fn some_keys(&mut self, n: u64) -> Vec<u64> {
        let keys: BTreeSet<u64> = (0..n).map(|_| self.rng.below(self.keys)).collect();
        keys.into_iter().collect()
    }

    fn flush(&mut self, n: u64) {
        let mut added = Vec::new();
        for keyspace in 0..1 + self.rng.below(2) as u32 {
            let keys = self.some_keys(n);
            self.next_rank -= 1;
            added.push((self.segment(keyspace, &keys), self.next_rank));
        }
        self.map.apply(MapEdit { added: &added, is_flush: true, ..edit() });
        added.drain(..).for_each(|pair| self.live.insert(0, pair));
    }

    /// Merges a run of segments of one keyspace into up to two, some keys lost.
    fn merge(&mut self) {
        let keyspace = self.rng.below(2) as u32;
        let of: Vec<usize> =
            (0..self.live.len()).filter(|i| self.live[*i].0.keyspace.0 == keyspace).collect();
        if of.len() < 2 {
            return;
        }
        let start = self.rng.below(of.len() as u64 - 1) as usize;
        let end = (start + 2 + self.rng.below(3) as usize).min(of.len());
        let inputs = &of[start..end];
        let lossy = self.rng.below(3) == 0;
        let mut keys: BTreeSet<u64> = BTreeSet::new();
        for i in inputs {
            keys.extend(self.live[*i].0.keys.iter().map(|(key, _)| *key));
        }
        keys.retain(|_| !lossy || self.rng.below(10) > 0);
        let keys: Vec<u64> = keys.into_iter().collect();
        let rank = self.live[inputs[0]].1;
        let cut = if self.rng.below(2) == 0 { keys.len() } else { keys.len() / 3 };
        let removed: Vec<SegmentId> = inputs.iter().map(|i| self.live[*i].0.id).collect();
        let at = inputs[0];
        let mut added = Vec::new();
        for part in [&keys[..cut], &keys[cut..]] {
            if !part.is_empty() {
                added.push((self.segment(keyspace, part), rank));
            }
        }
        self.map.apply(MapEdit { added: &added, removed: &removed, ..edit() });
        self.live.retain(|(segment, _)| !removed.contains(&segment.id));
        let at = at.min(self.live.len());
        self.live.splice(at..at, added);
        self.live.sort_by_key(|(_, rank)| *rank);
    }

    fn move_one(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let at = self.rng.below(self.live.len() as u64) as usize;
        let (segment, rank) = &self.live[at];
        // Ranks of flushes are apart by one: a move keeps to its own or jumps to the front.
        let rank = if self.rng.below(2) == 0 { *rank } else { self.next_rank - 1 };
        self.next_rank = self.next_rank.min(rank);
        let moved = [(Arc::new(segment.again()), rank)];
        self.map.apply(MapEdit { moved: &moved, ..edit() });
        let [moved] = moved;
        self.live[at] = moved;
        self.live.sort_by_key(|(_, rank)| *rank);
    }

    fn remove_one(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let at = self.rng.below(self.live.len() as u64) as usize;
        let (segment, _) = self.live.remove(at);
        self.map.apply(MapEdit { removed: &[segment.id], ..edit() });
    }

    /// Breaks the hash run of a live segment, or mends it.
    fn break_one(&mut self) {
        if self.live.is_empty() {
            return;
        }
        let at = self.rng.below(self.live.len() as u64) as usize;
        let segment = &self.live[at].0;
        let kind = self.rng.below(6);
        segment.no_run.store(kind == 0, Ordering::Relaxed);
        segment.garbled.store(kind == 1, Ordering::Relaxed);
        let slice = u64::from(SPREAD[self.rng.below(4) as usize]);
        segment.bad_slice.store(if kind < 3 { slice } else { 1000 }, Ordering::Relaxed);
    }

    fn check(&mut self, probes: u64) {
        self.truce.store(true, Ordering::Relaxed);
        self.map.check().unwrap();
        self.truce.store(false, Ordering::Relaxed);
        for _ in 0..probes {
            let key = self.rng.below(self.keys);
            let keyspace = self.rng.below(2) as u32;
            let resident = self.resident(hash_of(key, KeyspaceId(keyspace)));
            let found = get(&self.map, keyspace, key);
            assert_eq!(found.is_some(), resident);
            if let Some(found) = found {
                self.check_get(keyspace, key, found);
            }
        }
        let budget = self.map.options.budget_bytes;
        let stats = self.map.stats();
        let tables = stats.table_bytes + stats.spill_bytes;
        assert!(tables == 0 || tables + stats.extent_bytes <= budget, "{stats:?}");
    }

    fn resident(&self, hash: u64) -> bool {
        self.map.shards[(hash >> 56) as usize].table.read().is_some()
    }

    fn check_get(&self, keyspace: u32, key: u64, found: Candidates<Fake>) {
        let found: Vec<_> = found.collect();
        let mut last = 0;
        for (segment, page) in &found {
            let (known, rank) =
                self.live.iter().find(|(live, _)| live.id == segment.id).expect("live");
            assert!(Arc::ptr_eq(known, segment), "the object is the latest");
            assert!(last <= *rank, "newest first");
            last = *rank;
            assert!(segment.keyspace.0 == keyspace && segment.covers(&key.to_be_bytes()));
            assert!(*page < segment.pages());
        }
        for (segment, _) in &self.live {
            let page = segment.page(key).filter(|_| segment.keyspace.0 == keyspace);
            let same = |(f, p): &&(Arc<Fake>, u32)| Arc::ptr_eq(f, segment) && Some(*p) == page;
            assert_eq!(found.iter().filter(same).count(), usize::from(page.is_some()));
        }
    }

    fn step(&mut self) {
        match self.rng.below(20) {
            0..6 => {
                let n = 1 + self.rng.below(self.keys / 4);
                self.flush(n);
            }
            6..10 if self.live.len() > 3 => self.merge(),
            10 => self.move_one(),
            11 if self.live.len() > 6 => self.remove_one(),
            12 => self.break_one(),
            13 => self.map.drop_shard(SPREAD[self.rng.below(4) as usize]),
            14 => drop(self.map.rebuild_shard(SPREAD[self.rng.below(4) as usize])),
            15 => self.live.iter().for_each(|(segment, _)| {
                segment.no_run.store(false, Ordering::Relaxed);
                segment.bad_slice.store(1000, Ordering::Relaxed);
            }),
            16 => drop(self.map.fill_next()),
            _ => fill(&self.map),
        }
    }
}

fn random_edits<T: Table>(options: MapOptions, keys: u64, seed: u64, steps: usize) -> World<T> {
    let mut world = World::<T>::new(options, keys, seed);
    for _ in 0..steps {
        world.step();
        world.check(60);
        if world.live.len() > 14 {
            world.merge();
            world.check(10);
        }
    }
    world
}

#[test]
fn random_edits_keep_the_invariant() {
    let (mut rebuilds, mut dropped) = (0, 0);
    for seed in 0..12 {
        let stats = random_edits::<Buckets>(LARGE, 3000, seed, 120).map.stats();
        rebuilds += stats.rebuilds;
        dropped += stats.dropped;
    }
    assert!(rebuilds > 100 && dropped > 20, "{rebuilds} {dropped}");
    random_edits::<Buckets>(LARGE, 60_000, 100, 60);
}

#[test]
fn random_edits_keep_the_invariant_when_everything_collides() {
    let options = MapOptions { fingerprint_bits: 2, ..LARGE };
    for seed in 0..4 {
        random_edits::<Buckets>(options, 400, seed, 100);
    }
    random_edits::<Buckets>(MapOptions { fingerprint_bits: 8, ..LARGE }, 4000, 9, 80);
}

#[test]
fn random_edits_keep_the_invariant_over_the_oracle() {
    for seed in 0..4 {
        random_edits::<Oracle>(LARGE, 3000, seed, 120);
    }
}

#[test]
fn random_edits_keep_within_any_budget() {
    for (seed, budget_bytes) in [(1, 60_000), (2, 90_000), (3, 130_000), (4, 1000), (5, 1)] {
        let options = MapOptions { budget_bytes, ..LARGE };
        random_edits::<Buckets>(options, 3000, seed, 150);
        random_edits::<Oracle>(options, 3000, seed, 60);
    }
}

/// A map that is full, over so many segments of the same keys; the last is the newest.
fn resident(segments: u64, keys: u64) -> World<Buckets> {
    let mut world = World::new(LARGE, keys, 5);
    let all: Vec<u64> = (0..keys).collect();
    for _ in 0..segments {
        world.next_rank -= 1;
        let pair = (world.segment(0, &all), world.next_rank);
        world.live.insert(0, pair);
    }
    let live = world.live.clone();
    world.map.apply(MapEdit { added: &live, ..edit() });
    fill(&world.map);
    assert_eq!(world.map.stats().resident, 256);
    world
}

#[test]
fn nothing_is_read_before_something_is_resident() {
    let mut world = World::<Buckets>::new(LARGE, 100, 1);
    let segment = world.segment(0, &[1, 2, 3]);
    world.map.apply(MapEdit { added: &[(Arc::clone(&segment), 1)], ..edit() });
    assert_eq!(segment.opened.load(Ordering::Relaxed), 0);
    assert!(get(&world.map, 0, 1).is_none());
    fill(&world.map);
    assert_eq!(pairs(get(&world.map, 0, 1)), Some(vec![(1, 0)]));
    assert_eq!(pairs(get(&world.map, 0, 99)), Some(vec![]));
    assert_eq!(pairs(get(&world.map, 1, 1)), Some(vec![]));
}

#[test]
fn a_wanted_shard_is_filled_first() {
    let world = resident(2, 5000);
    (0..=255).for_each(|shard| world.map.drop_shard(shard));
    let key = (0..).find(|key| hash_of(*key, KeyspaceId(0)) >> 56 == 255).unwrap();
    assert!(get(&world.map, 0, key).is_none());
    assert!(world.map.fill_next());
    assert_eq!(pairs(get(&world.map, 0, key)).unwrap().len(), 2);
    let resident = world.map.stats().resident;
    assert!(resident > 0 && resident < 256, "in portions, so that edits get their turn");
}

#[test]
fn an_edit_during_a_build_is_not_lost() {
    let keys: Vec<u64> = (0..4000).collect();
    let truce: Truce = Arc::new(AtomicBool::new(false));
    let make = |id, keys: &[u64], per_page| Arc::new(Fake::new(id, 0, keys, per_page, &truce));
    // What goes on while shard 77 is built, and where its keys are to be found then.
    type Meanwhile = fn(&KeyMap<Fake>, Arc<Fake>, SegmentId);
    let cases: [(Meanwhile, &[u64]); 4] = [
        (|map, new, _| map.apply(MapEdit { added: &[(new, 0)], ..edit() }), &[2, 1]),
        (
            |map, new, old| map.apply(MapEdit { added: &[(new, 0)], removed: &[old], ..edit() }),
            &[2],
        ),
        (|map, _, old| map.apply(MapEdit { removed: &[old], ..edit() }), &[]),
        (|map, _, _| assert!(map.rebuild_shard(77)), &[1]),
    ];
    for (meanwhile, expected) in cases {
        let map = Arc::new(KeyMap::<Fake>::new(LARGE));
        let old = make(1, &keys, 3);
        map.apply(MapEdit { added: &[(Arc::clone(&old), 1)], ..edit() });
        fill(&map);
        map.drop_shard(77);
        let (new, shared) = (make(2, &keys, 5), Arc::clone(&map));
        let id = old.id;
        *old.hook.lock() = Some(Box::new(move || meanwhile(&shared, new, id)));
        assert!(map.fill_next());
        assert!(old.hook.lock().is_none());
        map.check().unwrap();
        assert_eq!(map.stats().resident, 256);
        let key = (0..).find(|key| hash_of(*key, KeyspaceId(0)) >> 56 == 77).unwrap();
        let found = pairs(get(&map, 0, key)).unwrap();
        assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn candidates_come_newest_first_and_hold_no_allocation_for_two() {
    for segments in 1..9 {
        let mut world = resident(segments, 300);
        let ids: Vec<u64> = world.live.iter().map(|(segment, _)| segment.id.0).collect();
        let found = pairs(get(&world.map, 0, 17)).unwrap();
        assert_eq!(found, ids.iter().map(|id| (*id, 5)).collect::<Vec<_>>());

        // A move changes the order, not the shards.
        let (oldest, _) = world.live.pop().unwrap();
        let before = world.map.stats();
        let moved = [(Arc::new(oldest.again()), 0)];
        world.map.apply(MapEdit { moved: &moved, ..edit() });
        assert_eq!(pairs(get(&world.map, 0, 17)).unwrap()[0].0, oldest.id.0);
        assert_eq!(before, world.map.stats());
        let [moved] = moved;
        world.live.insert(0, moved);
        world.check(200);
    }
}

#[test]
fn a_key_in_each_of_many_segments_has_its_places_in_order() {
    let truce: Truce = Arc::default();
    let map = KeyMap::<Fake>::new(MapOptions::with_budget(1 << 30));
    // Ages in no order.
    let segment = |n: u64| {
        let keys: Vec<u64> = if n.is_multiple_of(3) { vec![7, 1000 + n] } else { vec![7] };
        (Arc::new(Fake::new(n + 1, 0, &keys, 1, &truce)), n * 7919 % 3001)
    };
    let added: Vec<_> = (0..3000).map(segment).collect();
    map.apply(MapEdit { added: &added, ..edit() });
    fill(&map);
    let found: Vec<u64> =
        pairs(get(&map, 0, 7)).unwrap().into_iter().map(|(id, _)| (id - 1) * 7919 % 3001).collect();
    assert_eq!(found.len(), 3000);
    assert!(found.is_sorted_by(|a, b| a < b));
}

#[test]
fn a_flush_reports_what_it_supersedes() {
    let mut world = resident(3, 4000);
    let keys: Vec<u64> = (0..4000).step_by(4).collect();
    let stranger: Vec<u64> = (10_000..10_500).collect();
    let flushed = (world.segment(0, &keys), 10);
    let other = (world.segment(1, &stranger), 11);
    world.map.apply(MapEdit { added: &[flushed, other], is_flush: true, ..edit() });
    let garbage = |world: &World<Buckets>, at: usize| -> u64 {
        world.live[at].0.garbage.load(Ordering::Relaxed)
    };
    // Of the three that were there, filling found two superseded.
    assert_eq!((garbage(&world, 0), garbage(&world, 1), garbage(&world, 2)), (1000, 4000, 4000));
    // What is merged supersedes nothing, but may be superseded by what was not merged.
    let (newer, older) = ((world.segment(0, &keys), 9), (world.segment(0, &keys), 1000));
    let (above, below) = (Arc::clone(&newer.0), Arc::clone(&older.0));
    world.map.apply(MapEdit { added: &[newer, older], ..edit() });
    assert_eq!((garbage(&world, 0), garbage(&world, 1)), (1000, 4000));
    assert_eq!(above.garbage.load(Ordering::Relaxed), 0);
    assert_eq!(below.garbage.load(Ordering::Relaxed), 1000);
}

#[test]
fn what_the_operating_system_refused_is_tried_again_without_an_edit() {
    let mut world = World::<Buckets>::new(LARGE, 10, 5);
    let segment = world.segment(0, &[1, 2, 3]);
    segment.refusals.store(1, Ordering::Relaxed);
    world.map.apply(MapEdit { added: &[(Arc::clone(&segment), 1)], ..edit() });
    assert!(!world.map.fill_next(), "not at once, again and again");
    assert_eq!(world.map.stats().resident, 0);
    fill(&world.map);
    assert_eq!(world.map.stats().resident, 256);
}

#[test]
fn a_bad_slice_costs_its_shard_until_the_segment_is_gone() {
    let mut world = resident(2, 5000);
    let all: Vec<u64> = (0..5000).collect();
    for garbled in [false, true] {
        let bad = world.segment(0, &all);
        bad.bad_slice.store(77, Ordering::Relaxed);
        bad.garbled.store(garbled, Ordering::Relaxed);
        world.map.apply(MapEdit { added: &[(Arc::clone(&bad), 5)], ..edit() });
        fill(&world.map);
        assert_eq!(world.map.stats().resident, 255);
        // Not tried again for an edit that only adds.
        let opened = bad.opened.load(Ordering::Relaxed);
        let more = world.segment(0, &[1]);
        world.map.apply(MapEdit { added: &[(Arc::clone(&more), 4)], ..edit() });
        let after = bad.opened.load(Ordering::Relaxed);
        fill(&world.map);
        assert!(after <= opened + 1 && bad.opened.load(Ordering::Relaxed) == after);
        assert_eq!(world.map.stats().resident, 255);
        world.map.apply(MapEdit { removed: &[bad.id, more.id], ..edit() });
        fill(&world.map);
        assert_eq!(world.map.stats().resident, 256);
        world.check(200);
    }
}

#[test]
fn a_segment_without_a_hash_run_turns_the_map_off_while_it_lives() {
    let mut world = resident(2, 1000);
    let bad = world.segment(0, &[5, 6]);
    bad.no_run.store(true, Ordering::Relaxed);
    world.map.apply(MapEdit { added: &[(Arc::clone(&bad), 5)], ..edit() });
    assert!(!world.map.fill_next());
    let stats = world.map.stats();
    assert_eq!((stats.resident, stats.entries, stats.dropped), (0, 0, 256));
    assert!(get(&world.map, 0, 5).is_none());
    // It got its run: another object of the same segment.
    let mended = bad.again();
    mended.no_run.store(false, Ordering::Relaxed);
    world.map.apply(MapEdit { moved: &[(Arc::new(mended), 5)], ..edit() });
    fill(&world.map);
    assert_eq!(pairs(get(&world.map, 0, 5)).unwrap().len(), 3);
    world.map.check().unwrap();
}

#[test]
fn an_entry_that_is_not_there_costs_its_shard_only() {
    let mut world = resident(1, 5000);
    // Behind the map's back.
    let key = (0..5000).find(|key| hash_of(*key, KeyspaceId(0)) >> 56 == 77).unwrap();
    {
        let mut shard = world.map.shards[77].table.write();
        let table = shard.as_mut().unwrap();
        let h40 = hash_of(key, KeyspaceId(0)) >> 24;
        let mut vbn = 0;
        table.candidates(h40, |found| vbn = found);
        assert!(table.remove(h40, vbn));
    }
    assert!(world.map.check().unwrap_err().starts_with("shard 77"));
    world.per_page = 7;
    let all: Vec<u64> = (0..5000).collect();
    let merged = (world.segment(0, &all), 1);
    let id = world.live[0].0.id;
    world.map.apply(MapEdit { added: from_ref(&merged), removed: &[id], ..edit() });
    world.live = vec![merged];
    assert_eq!((world.map.stats().resident, world.map.stats().dropped), (255, 1));
    world.check(500);
    fill(&world.map);
    assert_eq!(world.map.stats().resident, 256);
    world.check(500);
}

#[test]
fn check_sees_what_is_wrong() {
    let world = resident(2, 5000);
    let key = (0..5000).find(|key| hash_of(*key, KeyspaceId(0)) >> 56 == 1).unwrap();
    let h40 = hash_of(key, KeyspaceId(0)) >> 24;
    let mut vbns = Vec::new();
    let at = &world.map.shards[1].table;
    at.read().as_ref().unwrap().candidates(h40, |found| vbns.push(found));
    let change = |f: &dyn Fn(&mut Buckets)| f(at.write().as_mut().unwrap());
    for (harm, heal) in [
        (vec![(vbns[0], 0)], vec![(0, vbns[0])]),
        (vec![(0, vbns[0])], vec![(vbns[0], 0)]),
        (vec![(vbns[0], vbns[0] + 1)], vec![(vbns[0] + 1, vbns[0])]),
    ] {
        for (steps, sound) in [(harm, false), (heal, true)] {
            for (old, new) in steps {
                change(&|table| match (old, new) {
                    (0, new) => table.insert(h40, new),
                    (old, 0) => assert!(table.remove(h40, old)),
                    (old, new) => assert!(table.relocate(h40, old, new)),
                });
            }
            assert_eq!(world.map.check().is_ok(), sound);
        }
    }
}

#[test]
fn a_map_without_budget_is_off() {
    let mut world = World::<Buckets>::new(MapOptions::with_budget(0), 100, 1);
    let segment = world.segment(0, &[1, 2, 3]);
    world.map.apply(MapEdit { added: &[(Arc::clone(&segment), 1)], is_flush: true, ..edit() });
    assert!(!world.map.fill_next() && !world.map.rebuild_shard(0));
    assert!(get(&world.map, 0, 1).is_none());
    let stats = world.map.stats();
    assert_eq!((stats.resident, stats.table_bytes, stats.dropped), (0, 0, 0));
    assert_eq!(Arc::strong_count(&segment), 1);
}

#[test]
fn a_budget_makes_part_of_the_map_resident() {
    let full = resident(1, 40_000).map.stats();
    // Four shards hold everything; the others are empty, of one bucket each.
    let large = (full.table_bytes - 252 * 64) / 4;
    let mut world = World::<Buckets>::new(
        MapOptions::with_budget(full.table_bytes + full.extent_bytes - large / 2),
        40_000,
        5,
    );
    let all: Vec<u64> = (0..40_000).collect();
    let segment = (world.segment(0, &all), 1);
    world.map.apply(MapEdit { added: from_ref(&segment), ..edit() });
    fill(&world.map);
    world.live = vec![segment];
    let stats = world.map.stats();
    assert!(stats.resident < 256 && stats.entries >= 20_000, "{stats:?}");
    world.check(1000);
    // Grown shards are given up where they do not fit.
    let more: Vec<u64> = (40_000..60_000).collect();
    let more = (world.segment(0, &more), 0);
    world.keys = 60_000;
    world.map.apply(MapEdit { added: from_ref(&more), ..edit() });
    world.live.insert(0, more);
    world.check(1000);
    assert!(world.map.stats().dropped > 0);
}

#[test]
fn removed_segments_are_let_go_and_their_page_numbers_used_again() {
    let mut world = resident(3, 30_000);
    let (segment, _) = world.live[1].clone();
    let bytes = world.map.stats().extent_bytes;
    world.map.apply(MapEdit { removed: &[segment.id], ..edit() });
    world.live.remove(1);
    assert_eq!(Arc::strong_count(&segment), 1);
    world.check(300);
    let all: Vec<u64> = (0..30_000).collect();
    let again = (world.segment(0, &all), 2);
    world.map.apply(MapEdit { added: from_ref(&again), ..edit() });
    world.live.insert(0, again);
    world.check(300);
    assert_eq!(world.map.stats().extent_bytes, bytes);
    for (segment, _) in std::mem::take(&mut world.live) {
        world.map.apply(MapEdit { removed: &[segment.id], ..edit() });
    }
    world.check(300);
    let stats = world.map.stats();
    assert_eq!((stats.entries, stats.extent_bytes), (0, 4));
}

#[test]
fn growth_and_shrinkage_keep_the_load_in_its_band() {
    let mut world = World::<Buckets>::new(LARGE, 400_000, 3);
    fill(&world.map);
    for i in 0..40 {
        let keys: Vec<u64> = (i * 10_000..(i + 1) * 10_000).collect();
        let segment = (world.segment(0, &keys), 1000 - i);
        world.map.apply(MapEdit { added: from_ref(&segment), is_flush: true, ..edit() });
        world.live.push(segment);
        let stats = world.map.stats();
        // The shards without keys hold a bucket each.
        let bytes = (stats.table_bytes - 252 * 64) as f64 / stats.entries as f64;
        assert!(bytes <= if i < 2 { 7.0 } else { 6.55 }, "{i} {bytes}");
        assert!(stats.displaced as f64 <= 0.13 * stats.entries as f64, "{stats:?}");
    }
    world.check(300);
    assert!(world.map.stats().rebuilds < 4 * 40, "most edits fit in place");
    while world.live.len() > 4 {
        let (segment, _) = world.live.remove(0);
        world.map.apply(MapEdit { removed: &[segment.id], ..edit() });
        let stats = world.map.stats();
        let bytes = (stats.table_bytes - 252 * 64) as f64 / stats.entries as f64;
        assert!(bytes <= 6.6, "{bytes}");
    }
    world.check(300);
}

#[test]
fn extents_are_handed_out_lowest_first_and_never_number_zero() {
    let mut allocator = Allocator::new();
    let [a, b, c] = [1, 257, 65_536].map(|pages| allocator.allocate(pages).unwrap());
    assert_eq!((&*a, &*b, c.len()), (&[1][..], &[2, 3][..], 256));
    assert_eq!((vbn(&b, 255), vbn(&b, 256), vbn(&b, 512)), (Some(767), Some(768), None));
    assert_eq!(allocator.top_vbn(), 260 * 256 - 1);
    allocator.free(&b);
    allocator.free(&a);
    // Pages beyond what a start page can name need no numbers.
    let d = allocator.allocate(u32::MAX).unwrap();
    assert_eq!((d.len(), &d[..4]), (256, &[1, 2, 3, 260][..]));
    allocator.free(&c);
    allocator.free(&d);
    assert_eq!(allocator.end(), 1);

    // All there are, and no more.
    let all: Vec<_> = std::iter::from_fn(|| allocator.allocate(65_536)).collect();
    assert_eq!(all.len(), (1 << 22) / 256 - 1);
    let rest = allocator.allocate(255 * 256).unwrap();
    assert_eq!(vbn(&rest, 255 * 256 - 1), Some((1 << 30) - 1));
    assert!(allocator.allocate(1).is_none() && allocator.allocate(0).is_some());
    allocator.free(&all[3]);
    assert_eq!(allocator.allocate(65_536).unwrap(), all[3]);
}

#[test]
fn page_numbers_resolve_to_their_segment_and_page() {
    let world = resident(3, 9000);
    let live = world.live.iter().zip([&[3_u32, 1][..], &[7], &[2, 5]]);
    let live = live.map(|((segment, rank), extents)| (segment, *rank, extents));
    let extents = Extents::new(live, 8);
    let at = |vbn| {
        let (slot, page) = extents.resolve(vbn)?;
        Some((extents.slot(slot)?.segment.id.0, page))
    };
    let ids: Vec<u64> = world.live.iter().map(|(segment, _)| segment.id.0).collect();
    assert_eq!((at(3 * 256), at(256 + 9)), (Some((ids[0], 0)), Some((ids[0], 265))));
    assert_eq!((at(7 * 256 + 255), at(5 * 256)), (Some((ids[1], 255)), Some((ids[2], 256))));
    assert_eq!((at(0), at(4 * 256), at(8 * 256), at(u32::MAX)), (None, None, None, None));
}

#[test]
fn hints_follow_the_tables_and_are_never_needed() {
    let world = resident(1, 20_000);
    let hints = |shard: u8| {
        let shard = &world.map.shards[usize::from(shard)];
        let kept = (shard.address.load(Ordering::Relaxed), shard.buckets.load(Ordering::Relaxed));
        let table = shard.table.read();
        assert_eq!(kept, table.as_ref().map_or((0, 0), Table::hint));
        kept
    };
    for shard in SPREAD {
        assert!(hints(shard).1 > 1);
        assert!(world.map.rebuild_shard(shard));
        hints(shard);
        world.map.drop_shard(shard);
        assert_eq!(hints(shard), (0, 0));
        // A stale hint does no harm.
        world.map.shards[usize::from(shard)].hint((12_345, 99));
    }
    (0..1000).for_each(|key| world.map.prefetch(hash_of(key, KeyspaceId(0))));
}
