//! Classes, reuse, what becomes of regions, refusal, and threads.

use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const LENGTHS: [usize; 8] = [3585, 4096, 4097, 5000, 9000, 40_000, 65_535, 65_536];

fn slabs(cache_bytes: usize) -> Arc<Slabs> {
    Arc::new(Slabs::new(cache_bytes))
}

fn filled(slabs: &Arc<Slabs>, len: usize, byte: u8) -> Space {
    let mut space = Space::of_slabs(Some(slabs), len).unwrap();
    assert_eq!(space.bytes().len(), len);
    space.bytes_mut().fill(byte);
    space
}

/// Whether these are so many of this byte. Compared as a whole, which Miri does fast.
fn is_all(bytes: &[u8], byte: u8) -> bool {
    bytes == vec![byte; bytes.len()]
}

fn address(space: &Space) -> usize {
    space.bytes().as_ptr().addr()
}

#[test]
fn classes_waste_an_eighth_at_most() {
    assert_eq!(class_of(4096), Some(0));
    assert_eq!((slot_len(0), slot_len(CLASSES - 1)), (4096, LONGEST));
    assert_eq!((class_of(3584), class_of(LONGEST + 1)), (None, None));
    let mut before = 0;
    for len in (3585..=LONGEST).step_by(if cfg!(miri) { 997 } else { 1 }) {
        let class = class_of(len).unwrap();
        let slot = slot_len(class);
        assert!(slot >= len && slot - len < slot / 8, "{len} in {slot}");
        assert!(class == before || class == before + 1 || cfg!(miri), "none is left out");
        before = class;
    }
    assert_eq!(before, CLASSES - 1);
    assert!((1..CLASSES).all(|class| slot_len(class) > slot_len(class - 1)));
}

#[test]
fn what_part_empty_regions_take_is_told() {
    let slabs = slabs(1 << 20);
    let a_region = SMALL / 4096;
    let mut held: Vec<_> = (0..8 * a_region).map(|_| filled(&slabs, 4096, 1)).collect();
    assert_eq!(slabs.unused_beyond((8 * SMALL) as u64), 0);
    assert_eq!(slabs.unused_beyond(0), (4 * SMALL) as u64, "but for four");
    let mut nth = 0;
    held.retain(|_| {
        nth += 1;
        nth % a_region == 0
    });
    assert_eq!(slabs.regions(), (8, 0));
    assert_eq!(slabs.unused_beyond(8 * 4096), (4 * SMALL - 8 * 4096) as u64);
    drop(held);
    assert_eq!((slabs.regions(), slabs.unused_beyond(0)), ((0, 1), 0));
    assert_eq!(slabs.held.load(Ordering::Relaxed), SMALL as u64);
}

#[test]
fn slots_do_not_overlap_and_are_used_again() {
    let slabs = slabs(1 << 20);
    let mut held = Vec::new();
    for round in 0..10u8 {
        for len in LENGTHS {
            held.push((len, round, filled(&slabs, len, round ^ len as u8)));
        }
    }
    for (len, round, space) in &held {
        assert!(is_all(space.bytes(), round ^ *len as u8), "{len}");
        let slot = slot_len(class_of(*len).unwrap());
        assert!((slot..slot + 200).contains(&space.taken()));
    }
    let (_, _, gone) = held.swap_remove(2);
    let (len, before) = (gone.bytes().len(), address(&gone));
    let regions = slabs.regions();
    drop(gone);
    assert_eq!(address(&filled(&slabs, len, 0)), before);
    assert_eq!(slabs.regions(), regions, "no region came for it");
}

#[test]
fn pages_lie_at_pages() {
    // A look at a block of a page is a look at one page of memory.
    for cache_bytes in [0, HUGE_FROM] {
        let slabs = slabs(cache_bytes);
        let held: Vec<_> = (0..100).map(|_| filled(&slabs, 4096, 1)).collect();
        assert!(held.iter().all(|space| address(space).is_multiple_of(4096)));
    }
}

#[test]
fn empty_regions_are_given_up_and_one_is_kept() {
    let slabs = slabs(1 << 20);
    let a_region = SMALL / 4096;
    let mut held: Vec<_> = (0..5 * a_region).map(|_| filled(&slabs, 4096, 1)).collect();
    assert_eq!(slabs.regions(), (5, 0));
    // One of each region stays: so do all regions.
    let mut left = held.split_off(4 * a_region + 1);
    left.extend((0..4).map(|region| held.swap_remove(region * a_region)));
    drop(held);
    assert_eq!(slabs.regions(), (5, 0));
    // Room enough for others.
    let others: Vec<_> = (0..4 * (a_region - 1)).map(|_| filled(&slabs, 4096, 2)).collect();
    assert_eq!(slabs.regions(), (5, 0));
    assert!(left.iter().all(|space| is_all(space.bytes(), 1)));
    drop((left, others));
    assert_eq!(slabs.regions(), (0, 1));
    // The one that is kept serves any class.
    let other = filled(&slabs, LONGEST, 3);
    assert_eq!(slabs.regions(), (1, 0));
    drop(other);
    assert_eq!(slabs.regions(), (0, 1));
}

#[test]
#[cfg(all(target_os = "linux", not(miri)))]
fn large_caches_use_huge_pages_but_for_the_first_region_of_a_class() {
    let slabs = slabs(HUGE_FROM);
    let Some(probe) = Memory::map(HUGE, true) else { return };
    let held: Vec<_> = (0..3 * HUGE / 4096).map(|_| filled(&slabs, 4096, 1)).collect();
    let class = slabs.classes[0].lock();
    let regions: Vec<_> = class.regions.iter().flatten().collect();
    // A system without huge pages has none to give.
    let expected = [false, probe.is_huge(), probe.is_huge()];
    assert_eq!(regions.iter().map(|region| region.memory.is_huge()).collect::<Vec<_>>(), expected);
    for region in regions.iter().skip(1) {
        assert!(region.memory.at(0).unwrap().addr().get().is_multiple_of(HUGE));
    }
    drop(class);
    drop(held);
    assert_eq!(slabs.regions(), (0, 1 + usize::from(probe.is_huge())), "one of each kind");
}

#[test]
fn where_the_system_gives_nothing_there_is_the_heap() {
    static LEFT: AtomicUsize = AtomicUsize::new(2);
    fn source(len: usize, huge: bool) -> Option<Memory> {
        LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).ok()?;
        Memory::map(len, huge)
    }
    let slabs = Arc::new(Slabs::with_source(0, source));
    let slots = SMALL / LONGEST;
    let mut held: Vec<_> = (0..3 * slots).map(|_| Space::of(Some(&slabs), LONGEST)).collect();
    let of_slabs = |space: &Space| matches!(space, Space::Slot(_));
    assert_eq!(held.iter().filter(|space| of_slabs(space)).count(), 2 * slots);
    for space in &mut held {
        assert_eq!(space.bytes_mut().len(), LONGEST);
        space.bytes_mut().fill(5);
    }
    assert!(held.last().unwrap().taken() >= LONGEST);
    // What came back is there for the next.
    held.remove(0);
    assert!(of_slabs(&Space::of(Some(&slabs), LONGEST)));
    // No class, no slabs.
    assert!(!of_slabs(&Space::of(Some(&slabs), LONGEST + 1)));
    assert!(!of_slabs(&Space::of(Some(&slabs), 0)));
    assert!(!of_slabs(&Space::of(None, 4096)));
}

#[test]
fn shared_bytes_outlive_their_slabs() {
    let slabs = slabs(1 << 20);
    let watch = Arc::downgrade(&slabs);
    let bytes = filled(&slabs, 4096, 9).freeze();
    let part = bytes.slice(100..200);
    drop((bytes, slabs));
    assert!(watch.upgrade().is_some());
    thread::spawn(move || assert_eq!(part, [9; 100][..])).join().unwrap();
    assert!(watch.upgrade().is_none(), "and go with them");
}

#[test]
fn threads_take_slots_and_give_back_those_of_others() {
    let rounds = if cfg!(miri) { 40 } else { 20_000 };
    let slabs = slabs(1 << 20);
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..4).map(|_| std::sync::mpsc::sync_channel::<(u8, Bytes)>(64)).unzip();
    thread::scope(|scope| {
        for (thread, receiver) in receivers.into_iter().enumerate() {
            let (slabs, sender) = (&slabs, senders[(thread + 1) % 4].clone());
            scope.spawn(move || {
                let mut own = Vec::new();
                for n in 0..rounds {
                    let byte = (n * 4 + thread) as u8;
                    let len = LENGTHS[n % 5];
                    own.push((byte, filled(slabs, len, byte).freeze()));
                    if n % 3 == 0 {
                        // Full, or the other has ended: then it goes here.
                        sender.try_send(own.swap_remove(0)).unwrap_or_default();
                    }
                    let others = receiver.try_iter().take(2);
                    for (byte, bytes) in others.chain((own.len() > 30).then(|| own.remove(n % 30)))
                    {
                        assert!(is_all(&bytes, byte));
                    }
                }
            });
        }
        drop(senders);
    });
    assert_eq!(slabs.regions(), (0, 1), "all are back");
    assert_eq!(Arc::strong_count(&slabs), 1);
}
