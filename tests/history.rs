//! Many threads on few keys, while memtables are flushed, segments compacted and the key map dropped and
//! rebuilt: each history of their calls must have an order that explains it.
//!
//! A history is some hundred calls of several threads, each with the moments of its invocation and its
//! return. It is judged twice: key by key, as registers, and as a whole, as one store. In the whole a
//! batch is one write, and a `multi_get`, a range or a snapshot (with all that is ever read from it) is
//! one read: so batches are never seen in part, a snapshot is the state after a prefix of the
//! commits, and a later one is never older. What is read twice from a snapshot must be the same, also long after.
//!
//! `ASHLAR_HISTORIES` sets how many histories there are.

#[path = "history/judge.rs"]
mod judge;

use ashlardb::vfs::{Entropy, Env, SeededEntropy};
use ashlardb::{
    Background, Builder, Compaction, Compression, Db, Durability, Snapshot, WriteBatch,
};
use judge::{Call, Effect, Values, judge, of_key};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const KEYS: usize = 6;
const CALLS: usize = 25;

fn name(key: usize) -> String {
    format!("key {key}")
}

/// A value from its number, which is used once.
fn value(number: u64) -> Vec<u8> {
    let mut value = number.to_le_bytes().to_vec();
    value.resize(8 + (number % 7 * 60) as usize, 7);
    value
}

/// The number in a value; zero for none.
fn number(value: Option<&[u8]>) -> u64 {
    value.map_or(0, |value| u64::from_le_bytes(value[..8].try_into().expect("eight bytes")))
}

/// What a broken store does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Now and then a get gives what was there before.
    StaleGet,
    /// A batch is two writes.
    SplitBatch,
    /// A `multi_get` reads key by key.
    TornMultiGet,
    /// A snapshot may be of a moment before it was asked for.
    OldSnapshot,
    /// Now and then a write is lost.
    LostWrite,
}

/// The database, or one that is broken.
struct Store {
    db: Db,
    fault: Option<Fault>,
    previous: Mutex<([u64; KEYS], Option<Snapshot>)>,
    clock: AtomicU64,
    numbers: AtomicU64,
    chance: SeededEntropy,
}

impl Store {
    fn new(db: Db, fault: Option<Fault>, seed: u64) -> Store {
        Store {
            db,
            fault,
            previous: Mutex::default(),
            clock: AtomicU64::new(0),
            numbers: AtomicU64::new(1),
            chance: SeededEntropy::new(seed),
        }
    }

    /// The next moment.
    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn fails(&self, fault: Fault) -> bool {
        self.fault == Some(fault) && self.chance.next_u64().is_multiple_of(8)
    }

    fn write(&self, values: &[(usize, u64)]) {
        if self.fails(Fault::LostWrite) {
            return;
        }
        if self.fault == Some(Fault::StaleGet) {
            let mut previous = self.previous.lock().expect("no panic within");
            for (key, _) in values {
                previous.0[*key] = self.get(*key);
            }
        }
        if let [(key, number)] = values {
            match number {
                0 => self.db.delete(name(*key)).expect("delete"),
                _ => self.db.put(name(*key), value(*number)).expect("put"),
            }
        } else if self.fault == Some(Fault::SplitBatch) {
            for one in values {
                self.write(std::slice::from_ref(one));
            }
        } else {
            let mut batch = WriteBatch::new();
            for (key, number) in values {
                match number {
                    0 => batch.delete(name(*key)),
                    _ => batch.put(name(*key), value(*number)),
                };
            }
            self.db.write(batch).expect("write");
        }
    }

    fn get(&self, key: usize) -> u64 {
        number(self.db.get(name(key)).expect("get").as_deref())
    }

    fn read(&self, key: usize) -> u64 {
        if self.fails(Fault::StaleGet) {
            return self.previous.lock().expect("no panic within").0[key];
        }
        self.get(key)
    }

    fn multi_get(&self, keys: &[usize]) -> Values {
        if self.fault == Some(Fault::TornMultiGet) {
            return keys.iter().map(|key| (*key, self.get(*key))).collect();
        }
        let names: Vec<String> = keys.iter().map(|key| name(*key)).collect();
        let found = self.db.multi_get(&names).expect("multi_get");
        keys.iter().zip(found).map(|(key, found)| (*key, number(found.as_deref()))).collect()
    }

    fn snapshot(&self) -> Snapshot {
        if self.fault == Some(Fault::OldSnapshot) {
            let mut previous = self.previous.lock().expect("no panic within");
            return previous.1.replace(self.db.snapshot()).unwrap_or_else(|| self.db.snapshot());
        }
        self.db.snapshot()
    }
}

/// All keys, in a range read from either end.
fn in_range(
    entries: impl DoubleEndedIterator<Item = ashlardb::Result<Entry>>,
    back: bool,
) -> Values {
    let mut values: Values = (0..KEYS).map(|key| (key, 0)).collect();
    let mut fill = |entry: ashlardb::Result<Entry>| {
        let (key, value) = entry.expect("an entry");
        let at = (0..KEYS).find(|n| key == name(*n).as_bytes()).expect("a key of ours");
        values[at].1 = number(Some(&value[..]));
    };
    if back {
        entries.rev().for_each(&mut fill)
    } else {
        entries.for_each(&mut fill)
    }
    values
}

type Entry = (ashlardb::Key, ashlardb::Value);

/// A snapshot, and what was read from it.
struct Held {
    snapshot: Snapshot,
    read: [Option<u64>; KEYS],
    /// Which of the thread's calls took it, while that history lasts.
    call: Option<usize>,
}

impl Held {
    fn read(&mut self, key: usize) {
        let got = number(self.snapshot.get(name(key)).expect("get at a snapshot").as_deref());
        let first = *self.read[key].get_or_insert(got);
        assert_eq!(got, first, "key {key} changed in {:?}", self.snapshot);
    }
}

/// A thread, through all histories.
struct Client {
    rng: SeededEntropy,
    held: Vec<Held>,
}

impl Client {
    fn run(&mut self, store: &Store) -> Vec<Call> {
        let mut calls = Vec::new();
        for _ in 0..CALLS {
            self.call(store, &mut calls);
        }
        for held in &mut self.held {
            let Some(call) = held.call.take() else { continue };
            (0..KEYS).for_each(|key| held.read(key));
            let all = held.read.iter().enumerate().map(|(key, n)| (key, n.expect("it was read")));
            calls[call].effect = Effect::Read(all.collect());
        }
        calls
    }

    fn call(&mut self, store: &Store, calls: &mut Vec<Call>) {
        let r = self.rng.next_u64();
        let (key, other) = (r as usize % KEYS, (r >> 8) as usize % KEYS);
        let new = |deletes: bool| {
            if deletes { 0 } else { store.numbers.fetch_add(1, Ordering::Relaxed) }
        };
        let what = (r >> 16) % 100;
        let written: Option<Values> = match what {
            0..28 => Some(vec![(key, new(false))]),
            28..34 => Some(vec![(key, new(true))]),
            34..46 if key != other => Some(vec![(key, new(false)), (other, new(r >> 60 == 0))]),
            _ => None,
        };
        let invoked = store.now();
        let effect = match (written, what) {
            (Some(values), _) => {
                store.write(&values);
                Effect::Write(values)
            }
            (_, ..76) => Effect::Read(vec![(key, store.read(key))]),
            (_, 76..86) => {
                let keys = [key, (key + 1) % KEYS, (key + 2) % KEYS];
                Effect::Read(store.multi_get(&keys))
            }
            (_, 86..92) => {
                let entries = store.db.get_range("key ".."key~");
                // What it gives was settled when it was made.
                let returned = store.now();
                let effect = Effect::Read(in_range(entries, what.is_multiple_of(2)));
                calls.push(Call { invoked, returned, effect });
                return;
            }
            (_, 92..96) => {
                let snapshot = store.snapshot();
                if self.held.len() > 3 {
                    let gone = self.held.swap_remove((r >> 32) as usize % 4);
                    if let Some(call) = gone.call {
                        let read = gone.read.iter().enumerate();
                        let read = read.filter_map(|(key, n)| Some((key, (*n)?))).collect();
                        calls[call].effect = Effect::Read(read);
                    }
                }
                self.held.push(Held { snapshot, read: [None; KEYS], call: Some(calls.len()) });
                Effect::Read(Vec::new())
            }
            _ => {
                if let Some(at) = ((r >> 32) as usize).checked_rem(self.held.len()) {
                    self.held[at].read(key);
                }
                return;
            }
        };
        calls.push(Call { invoked, returned: store.now(), effect });
    }
}

/// Other keys come and go, buffers are flushed, everything is compacted, the key map is filled again.
fn disturb(store: &Store, done: &AtomicBool, seed: u64) {
    let rng = SeededEntropy::new(seed);
    while !done.load(Ordering::Relaxed) {
        let r = rng.next_u64();
        match r % 200 {
            0 => store.db.compact_range::<&[u8]>(..).expect("compact"),
            1..4 => store.db.flush().expect("flush"),
            4..8 => store.db.fill_key_map().expect("fill"),
            _ => {
                let filler = [b"abc", b"kez", b"xyz"][(r >> 8) as usize % 3];
                let key = [filler, &(r >> 20).to_le_bytes()[..3]].concat();
                store.db.put(key, value(r >> 8)).expect("put");
            }
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Runs and judges histories, until one has no order. How many calls there were.
fn run(store: &Store, threads: usize, histories: usize, seed: u64) -> Result<usize, String> {
    let mut clients: Vec<Client> = (0..threads as u64)
        .map(|n| Client { rng: SeededEntropy::new(seed * 100 + n), held: Vec::new() })
        .collect();
    let mut start = vec![0; KEYS];
    let mut calls = 0;
    for history in 0..histories {
        let mut all: Vec<Vec<Call>> = std::thread::scope(|scope| {
            let running: Vec<_> =
                clients.iter_mut().map(|client| scope.spawn(|| client.run(store))).collect();
            running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let end: Values = (0..KEYS).map(|key| (key, store.get(key))).collect();
        start = {
            let (invoked, returned) = (store.now(), store.now());
            all.push(vec![Call { invoked, returned, effect: Effect::Read(end.clone()) }]);
            calls += all.iter().map(Vec::len).sum::<usize>();
            for key in 0..KEYS {
                judge(&of_key(&all, key), &start)
                    .map_err(|what| format!("history {history}, key {key}: {what}"))?;
            }
            judge(&all, &start).map_err(|what| format!("history {history}, all keys: {what}"))?;
            end.iter().map(|(_, value)| *value).collect()
        };
    }
    Ok(calls)
}

/// The same beside [`disturb`].
fn run_disturbed(
    store: &Store,
    threads: usize,
    histories: usize,
    seed: u64,
) -> Result<usize, String> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| disturb(store, &done, seed));
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _done = Done(&done);
        run(store, threads, histories, seed)
    })
}

fn histories() -> usize {
    let set = std::env::var("ASHLAR_HISTORIES").ok();
    set.map_or(1200, |n| n.parse().expect("ASHLAR_HISTORIES is a number"))
}

fn small(builder: Builder) -> Builder {
    builder
        .write_buffer_bytes(64 << 10)
        .write_buffers(3)
        .segment_bytes(64 << 10)
        .level1_bytes(64 << 10)
        .level0_runs(2)
        .cache_bytes(64 << 10)
}

fn check(builder: Builder, threads: usize, histories: usize, seed: u64) {
    let store = Store::new(small(builder).open().expect("open"), None, seed);
    let calls =
        run_disturbed(&store, threads, histories, seed).unwrap_or_else(|what| panic!("{what}"));
    store.db.check_key_map().expect("the key map is right");
    let stats = store.db.stats();
    println!(
        "{histories} histories of {threads} threads have an order: {calls} calls, {} flushes, {} compactions",
        stats.flushes, stats.compactions
    );
    assert!(
        histories < 50 || stats.flushes > 3 && stats.compactions > 1,
        "nothing went on: {stats}"
    );
}

#[test]
fn histories_in_memory_have_an_order() {
    let builder = |seed| Db::builder("/db").env(Env::in_memory(seed));
    let share = histories() / 4;
    check(builder(1).compaction(Compaction::Lazy), 8, share, 1);
    check(builder(2).compaction(Compaction::Leveled).compression(Compression::None), 4, share, 2);
    // Shards of the key map come and go, and hardly anything is cached.
    check(builder(3).key_map_bytes(20 << 10).cache_bytes(0), 6, share, 3);
}

#[test]
fn histories_in_a_directory_have_an_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let builder = Db::builder(dir.path().join("db"));
    let builder = builder.durability(Durability::Sync).background(Background::Threads(2));
    check(builder.compaction(Compaction::Tiered), 6, histories() / 4, 4);
}

/// The test can fail: each fault is found.
#[test]
fn histories_of_a_broken_store_have_none() {
    let faults = [
        Fault::StaleGet,
        Fault::SplitBatch,
        Fault::TornMultiGet,
        Fault::OldSnapshot,
        Fault::LostWrite,
    ];
    for (seed, fault) in faults.into_iter().enumerate() {
        let builder = small(Db::builder("/db").env(Env::in_memory(seed as u64)));
        let store = Store::new(builder.open().expect("open"), Some(fault), seed as u64);
        let found = run_disturbed(&store, 8, 3000, seed as u64);
        println!("{fault:?}: {}", found.as_ref().map_or_else(|what| &what[..60], |_| "not found"));
        assert!(found.is_err(), "{fault:?} was not found");
    }
}
