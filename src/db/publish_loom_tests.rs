//! Models of what readers see: the read state, the published number, the key map and the list of
//! snapshots, beside a writer and a flush that drops what nobody needs, or beside an ingest.
//!
//! The list of snapshots is the real one. The rest is what is left of the database if it has one
//! key, whose versions are the numbers 1, 2, 3: a memtable is the range of the versions that it
//! has, a segment a list of them, the key map the newest version in segments. The steps are those of
//! `commit_batches`, `rotate`, `install` and the read paths, in their order and with their orderings.

use super::*;
use crate::sync::modeled::{Mistake, explore, makes};
use crate::sync::{Arc, ArcSwap, RwLock};
use loom::sync::atomic::AtomicU64 as Told;
use loom::thread;

struct Memtable {
    first: u64,
    /// Zero while it is empty. What orders it is `visible` alone: an index that is weaker than the
    /// real one.
    newest: crate::sync::atomic::AtomicUsize,
}

impl Memtable {
    fn new(first: u64) -> Arc<Memtable> {
        Arc::new(Memtable { first, newest: crate::sync::atomic::AtomicUsize::new(0) })
    }

    fn get(&self, snapshot: u64) -> Option<u64> {
        let version = snapshot.min(self.newest.load(Ordering::Relaxed) as u64);
        (version >= self.first).then_some(version)
    }
}

struct ReadState {
    active: Arc<Memtable>,
    frozen: Option<Arc<Memtable>>,
    segment: Vec<u64>,
}

struct Store {
    visible: AtomicU64,
    /// How many writes were acknowledged.
    told: Told,
    state_change: Mutex<()>,
    state: ArcSwap<ReadState>,
    map: RwLock<Option<u64>>,
    snapshots: SnapshotList<ReadState>,
}

impl Store {
    fn new() -> Arc<Store> {
        let state = ReadState { active: Memtable::new(1), frozen: None, segment: Vec::new() };
        Arc::new(Store {
            visible: AtomicU64::new(0),
            told: Told::new(0),
            state_change: Mutex::new(()),
            state: ArcSwap::from_pointee(state),
            map: RwLock::new(None),
            snapshots: SnapshotList::default(),
        })
    }

    fn change_state(&self, change: impl FnOnce(&ReadState) -> ReadState) {
        let _held = self.state_change.lock();
        let next = change(&self.state.load());
        self.state.store(Arc::new(next));
    }

    fn write(&self, active: &Memtable, version: u64) {
        active.newest.store(version as usize, Ordering::Relaxed);
        self.visible.store(version, Ordering::Release);
        self.told.store(version, Ordering::Release);
    }

    fn rotate(&self, next: u64) -> Arc<Memtable> {
        let slot = Memtable::new(next);
        let active = Arc::clone(&slot);
        self.change_state(|state| {
            let frozen = Some(Arc::clone(&state.active));
            ReadState { active, frozen, segment: state.segment.clone() }
        });
        slot
    }

    /// Flushes what is frozen, and merges it with the segment there is.
    fn flush(&self, publish_before_map: bool) {
        let state = self.state.load_full();
        let Some(frozen) = &state.frozen else { return };
        let (boundaries, _) = self.snapshots.boundaries(&self.visible, || 0);
        let newest = frozen.newest.load(Ordering::Relaxed) as u64;
        let all: Vec<u64> = state.segment.iter().copied().chain(frozen.first..=newest).collect();
        let needed = |b: &SeqNo| all.iter().copied().filter(|v| *v <= b.0).max();
        let segment: Vec<u64> = boundaries.iter().filter_map(needed).collect();
        let publish = |segment| {
            self.change_state(|state| ReadState {
                active: Arc::clone(&state.active),
                frozen: None,
                segment,
            });
        };
        let newest = segment.iter().copied().max();
        if publish_before_map {
            publish(segment);
            *self.map.write() = newest;
        } else {
            *self.map.write() = newest;
            publish(segment);
        }
    }

    /// Takes a version in past the memtable, which is empty, and gives the next one.
    fn ingest(&self, version: u64) -> Arc<Memtable> {
        *self.map.write() = Some(u64::MAX - 1);
        *self.map.write() = Some(version);
        let slot = Memtable::new(version + 1);
        let active = Arc::clone(&slot);
        self.change_state(|state| {
            let segment = state.segment.iter().copied().chain([version]).collect();
            ReadState { active, frozen: None, segment }
        });
        self.visible.store(version, Ordering::Release);
        slot
    }

    /// A point read beside an ingest: what the map has is not published perhaps.
    fn get_published(&self, take_all: bool) -> Option<u64> {
        let found = self.get();
        if take_all || found <= Some(self.visible.load(Ordering::Acquire)) {
            return found;
        }
        let snapshot = self.register(false);
        Self::newest(&self.state.load(), snapshot)
    }

    /// A point read without a snapshot, through the map.
    fn get(&self) -> Option<u64> {
        let state = self.state.load();
        let snapshot = self.visible.load(Ordering::Acquire);
        let frozen = || state.frozen.as_ref()?.get(snapshot);
        state.active.get(snapshot).or_else(frozen).or_else(|| *self.map.read())
    }

    fn newest(state: &ReadState, snapshot: u64) -> Option<u64> {
        let frozen = || state.frozen.as_ref()?.get(snapshot);
        let segment = || state.segment.iter().copied().filter(|v| *v <= snapshot).max();
        state.active.get(snapshot).or_else(frozen).or_else(segment)
    }

    /// A range read without a snapshot: what it gives, and the number that it is of.
    fn range(&self, number_first: bool) -> (Option<u64>, u64) {
        if number_first {
            let snapshot = self.visible.load(Ordering::Acquire);
            return (Self::newest(&self.state.load(), snapshot), snapshot);
        }
        loop {
            let state = self.state.load_full();
            let snapshot = self.visible.load(Ordering::Acquire);
            if Arc::ptr_eq(&state, &self.state.load()) {
                return (Self::newest(&state, snapshot), snapshot);
            }
        }
    }

    fn register(&self, in_two_steps: bool) -> u64 {
        if !in_two_steps {
            return self.snapshots.register(&self.visible, || 0).seqno.0;
        }
        let seqno = self.visible.load(Ordering::Acquire);
        let moment = Moment { seqno: SeqNo(seqno), now_ms: 0 };
        self.snapshots.held.lock().insert(moment, Held { count: 1, state: None });
        seqno
    }
}

/// A writer, a flush, and a reader; the last is the main thread.
fn beside(read: impl FnOnce(&Store)) {
    let store = Store::new();
    let first = Arc::clone(&store.state.load().active);
    store.write(&first, 1);
    let writer = thread::spawn({
        let store = Arc::clone(&store);
        move || {
            store.write(&first, 2);
            let second = store.rotate(3);
            store.write(&second, 3);
        }
    });
    let flush = thread::spawn({
        let store = Arc::clone(&store);
        move || store.flush(makes(Mistake::OfTheModel))
    });
    read(&store);
    writer.join().unwrap();
    flush.join().unwrap();
    assert_eq!(store.get(), Some(3), "in the end");
}

fn gets() {
    beside(|store| {
        let told = store.told.load(Ordering::Acquire);
        let got = store.get();
        assert!(got >= Some(told), "{got:?} after {told} was acknowledged");
    });
}

fn ranges() {
    beside(|store| {
        let told = store.told.load(Ordering::Acquire);
        let (got, snapshot) = store.range(makes(Mistake::OfTheModel));
        assert!(snapshot >= told);
        assert_eq!(got, Some(snapshot), "of a range");
    });
}

fn snapshots() {
    beside(|store| {
        let snapshot = store.register(makes(Mistake::OfTheModel));
        for _ in 0..2 {
            let got = Store::newest(&store.state.load(), snapshot);
            assert_eq!(got, Some(snapshot), "of a snapshot");
        }
        store.snapshots.release(Moment { seqno: SeqNo(snapshot), now_ms: 0 });
        assert_eq!(store.snapshots.len(), 0);
    });
}

/// A job that filters, unless a snapshot sees what it would change, and a snapshot that is made meanwhile.
/// There are two states: what is read is 1 in the first, and 2 in the second.
fn filters() {
    let list = Arc::new(SnapshotList::<u64>::default());
    let (visible, state) = (Arc::new(AtomicU64::new(1)), Arc::new(ArcSwap::from_pointee(1)));
    let job = thread::spawn({
        let (list, visible, state) = (Arc::clone(&list), Arc::clone(&visible), Arc::clone(&state));
        move || {
            let says_so_late = makes(Mistake::OfTheModel);
            let early = (!says_so_late).then(|| list.filtering());
            let (boundaries, _) = list.boundaries(&visible, || 0);
            assert_eq!(boundaries, [SeqNo(1)]);
            let is_seen = list.newest().is_some();
            let late = says_so_late.then(|| list.filtering());
            if !is_seen {
                state.store(Arc::new(2));
            }
            drop((early, late));
        }
    });
    let moment = list.register(&visible, || 0);
    list.hold(moment, || state.load_full());
    let read = || *list.state(moment).unwrap_or_else(|| state.load_full());
    assert_eq!(read(), read(), "of a snapshot");
    list.release(moment);
    assert_eq!((list.len(), list.state(moment)), (0, None));
    job.join().unwrap();
}

#[test]
fn loom_a_snapshot_sees_one_thing_beside_a_filter() {
    explore("publish: a snapshot beside a compaction that filters", None, filters);
}

#[test]
#[should_panic(expected = "of a snapshot")]
fn loom_finds_that_a_job_says_too_late_that_it_filters() {
    explore("", Some(Mistake::OfTheModel), filters);
}

#[test]
fn loom_a_get_sees_what_was_acknowledged() {
    explore("publish: a get beside a write, a rotation and a flush", None, gets);
}

#[test]
fn loom_a_range_is_of_one_moment() {
    explore("publish: a range beside a write, a rotation and a flush", None, ranges);
}

#[test]
fn loom_a_snapshot_keeps_its_versions() {
    explore("publish: a snapshot beside a write, a rotation and a flush", None, snapshots);
}

#[test]
#[should_panic(expected = "was acknowledged")]
fn loom_finds_that_the_state_comes_before_the_map() {
    explore("", Some(Mistake::OfTheModel), gets);
}

#[test]
#[should_panic(expected = "of a range")]
fn loom_finds_that_the_number_is_read_before_the_state() {
    explore("", Some(Mistake::OfTheModel), ranges);
}

#[test]
#[should_panic(expected = "of a snapshot")]
fn loom_finds_that_a_snapshot_is_registered_in_two_steps() {
    explore("", Some(Mistake::OfTheModel), snapshots);
}

#[test]
#[should_panic(expected = "of a snapshot")]
fn loom_finds_that_the_number_is_published_without_an_order() {
    explore("", Some(Mistake::Relaxed64), snapshots);
}

fn ingests() {
    let store = Store::new();
    let first = Arc::clone(&store.state.load().active);
    store.write(&first, 1);
    store.rotate(2);
    store.flush(false);
    let ingest = thread::spawn({
        let store = Arc::clone(&store);
        move || {
            let active = store.ingest(2);
            store.write(&active, 3);
        }
    });
    let got = store.get_published(makes(Mistake::OfTheModel));
    let (then, snapshot) = store.range(false);
    assert_eq!(then, Some(snapshot), "of a range");
    assert!(then >= got && got >= Some(1), "{then:?} after {got:?} was seen");
    let again = store.get_published(makes(Mistake::OfTheModel));
    assert!(again >= then, "{again:?} after {then:?} was seen");
    ingest.join().unwrap();
    assert_eq!(store.get(), Some(3), "in the end");
}

#[test]
fn loom_what_an_ingest_brings_is_seen_by_all_or_none() {
    explore("publish: gets and a range beside an ingest and a write", None, ingests);
}

#[test]
#[should_panic(expected = "was seen")]
fn loom_finds_that_a_get_takes_what_is_not_published() {
    explore("", Some(Mistake::OfTheModel), ingests);
}
