//! Figures of the map: bytes and nanoseconds. Not run by default:
//! `cargo test --release --lib keymap::bench_tests -- --ignored --nocapture`.

use super::fake::{Fake, Rng, mix};
use super::{KeyMap, MapEdit, MapOptions};
use crate::sync::Arc;
use crate::sync::atomic::AtomicBool;
use crate::types::{KeyspaceId, SegmentId};
use std::hint::black_box;
use std::time::Instant;

const KEYS: u64 = 20_000_000;
const SEGMENTS: u64 = 7;
const SPACE: KeyspaceId = KeyspaceId(0);

/// A segment of those keys that leave this remainder, on pages that `turn` shifts.
fn segment(id: u64, part: u64, turn: u64) -> (Arc<Fake>, u64) {
    let own = (part..KEYS).step_by(SEGMENTS as usize);
    let mut run: Vec<(u64, u16)> = own
        .map(|key| (mix(key) >> 24, (((key / SEGMENTS / 44) + turn * 13) & 0xffff) as u16))
        .collect();
    run.sort_unstable();
    // Covers all keys, and all pages.
    let keys = vec![(0, 0), (u64::MAX, u16::MAX)];
    let fake = Fake::of(id, SPACE, keys, run, &Arc::new(AtomicBool::new(false)));
    (Arc::new(fake), id)
}

fn lookups(map: &KeyMap<Fake>, what: &str, first: u64) {
    let mut rng = Rng(3);
    let keys: Vec<u64> = (0..2_000_000).map(|_| first + rng.below(KEYS)).collect();
    let get = |key: u64| {
        let found = map.get(mix(key), SPACE, &key.to_be_bytes()).unwrap();
        found.map(|(_, page)| u64::from(page) + (1 << 32)).sum::<u64>()
    };
    for round in 0..6 {
        let hints = round % 2 == 1;
        let start = Instant::now();
        let mut sum = 0;
        for batch in keys.chunks(64) {
            if hints {
                for key in batch {
                    map.prefetch(mix(*key));
                }
            }
            sum += batch.iter().map(|key| get(*key)).sum::<u64>();
        }
        let took = start.elapsed().as_nanos() as f64 / keys.len() as f64;
        let each = (sum >> 32) as f64 / keys.len() as f64;
        println!("{what}, hints {hints}: {took:.1} ns a lookup, {each:.4} candidates");
        black_box(sum);
    }
}

#[test]
#[ignore = "takes a minute and 2 GB, and asserts nothing"]
fn figures() {
    let map = KeyMap::<Fake>::new(MapOptions::with_budget(1 << 40));
    let mut live: Vec<_> = (0..SEGMENTS).map(|part| segment(part, part, 0)).collect();
    map.apply(MapEdit { added: &live, removed: &[], moved: &[], is_flush: false });
    let start = Instant::now();
    while map.fill_next() {}
    println!("build: {:.1} ns an entry", start.elapsed().as_nanos() as f64 / KEYS as f64);
    println!("{:?}", map.stats());
    lookups(&map, "hit", 0);
    lookups(&map, "miss", 1 << 40);

    let mut took = 0;
    for turn in 1..=4 {
        for part in 0..SEGMENTS {
            let next = segment(turn * SEGMENTS + part, part, turn);
            let old = SegmentId(live[part as usize].0.id.0);
            let added = [next];
            let start = Instant::now();
            map.apply(MapEdit { added: &added, removed: &[old], moved: &[], is_flush: false });
            took += start.elapsed().as_nanos();
            let [next] = added;
            live[part as usize] = next;
        }
    }
    println!("move: {:.1} ns an entry", took as f64 / (4 * KEYS) as f64);

    churn(&map, &mut live);
    println!("{:?}", map.stats());
    lookups(&map, "hit after churn", 0);
    lookups(&map, "miss after churn", 1 << 40);
}

/// Takes a small part of the keys out and puts it back in, until each key had its turn four times.
fn churn(map: &KeyMap<Fake>, live: &mut Vec<(Arc<Fake>, u64)>) {
    let parts = 56;
    let keys = vec![(0, 0), (u64::MAX, u16::MAX)];
    let make = |id: u64, part: u64| {
        let own = (part..KEYS).step_by(parts as usize);
        let mut run: Vec<(u64, u16)> =
            own.map(|key| (mix(key) >> 24, ((key / 300) & 0xffff) as u16)).collect();
        run.sort_unstable();
        let fake = Fake::of(id, SPACE, keys.clone(), run, &Arc::new(AtomicBool::new(false)));
        (Arc::new(fake), id)
    };
    let removed: Vec<SegmentId> = live.iter().map(|(segment, _)| segment.id).collect();
    let mut next = 1000;
    let mut fresh = |part| {
        next += 1;
        make(next, part)
    };
    let mut small: Vec<_> = (0..parts).map(&mut fresh).collect();
    map.apply(MapEdit { added: &small, removed: &removed, moved: &[], is_flush: false });
    live.clear();
    // One part is always out, so that what comes back finds its places taken.
    map.apply(MapEdit { added: &[], removed: &[small[0].0.id], moved: &[], is_flush: false });
    let mut took = 0;
    for step in 0..4 * parts as usize {
        let (out, goes) = (step % parts as usize, (step + 1) % parts as usize);
        let again = [fresh(out as u64)];
        let old = [small[goes].0.id];
        let start = Instant::now();
        map.apply(MapEdit { added: &again, removed: &old, moved: &[], is_flush: false });
        took += start.elapsed().as_nanos();
        let [again] = again;
        small[out] = again;
    }
    let last = [fresh(0)];
    map.apply(MapEdit { added: &last, removed: &[], moved: &[], is_flush: false });
    println!("delete and insert: {:.1} ns an entry", took as f64 / (4 * KEYS) as f64);
    live.extend(small);
}
