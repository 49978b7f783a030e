//! Any sequence of operations gives what the same operations on a `BTreeMap` give, whatever is flushed,
//! compacted, reopened or looked at through a snapshot in between. Runs in memory, with background work
//! stepped by hand, so that a sequence always does the same.

#![no_main]

use arbitrary::Arbitrary;
use ashlardb::vfs::Env;
use ashlardb::{
    Background, DEFAULT_KEYSPACE, Db, Durability, Keyspace, MAX_KEY_LEN, RangeIter, Snapshot,
    WriteBatch,
};
use std::collections::BTreeMap;
use std::ops::Bound;

/// So that a run stays short.
const OPERATIONS_MAX: usize = 200;

/// The smallest memtables, segments and levels that the engine accepts, so that short sequences have many.
const SMALLEST_BYTES: usize = 64 << 10;

/// Few keys, so that operations meet: one of 64 short ones, or rarely any.
#[derive(Arbitrary, Clone, Debug)]
enum FuzzKey {
    Short(u8),
    Alike(u8),
    Any(Vec<u8>),
}

impl FuzzKey {
    fn bytes(&self) -> Vec<u8> {
        match self {
            FuzzKey::Short(n) => vec![n % 64],
            // Long common prefixes, and keys that are prefixes of others.
            FuzzKey::Alike(n) => vec![b'x'; usize::from(*n)],
            FuzzKey::Any(bytes) => bytes[..bytes.len().min(MAX_KEY_LEN)].to_vec(),
        }
    }
}

#[derive(Arbitrary, Clone, Debug)]
enum FuzzValue {
    Bytes(Vec<u8>),
    /// Many of these fill blocks; the longest have blocks of their own.
    Long(u8, u16),
}

impl FuzzValue {
    fn bytes(&self) -> Vec<u8> {
        match self {
            FuzzValue::Bytes(bytes) => bytes.clone(),
            FuzzValue::Long(byte, len) => vec![*byte; usize::from(*len) * 2],
        }
    }
}

#[derive(Arbitrary, Clone, Debug)]
enum FuzzBound {
    Unbounded,
    Included(FuzzKey),
    Excluded(FuzzKey),
}

impl FuzzBound {
    fn bound(&self) -> Bound<Vec<u8>> {
        match self {
            FuzzBound::Unbounded => Bound::Unbounded,
            FuzzBound::Included(key) => Bound::Included(key.bytes()),
            FuzzBound::Excluded(key) => Bound::Excluded(key.bytes()),
        }
    }
}

/// One part of a batch; `None` deletes.
type Change = (bool, FuzzKey, Option<FuzzValue>);

#[derive(Arbitrary, Clone, Debug)]
enum Operation {
    /// The first field says in which of the two keyspaces.
    Put(bool, FuzzKey, FuzzValue),
    Delete(bool, FuzzKey),
    Batch(Vec<Change>, bool),
    Get(bool, FuzzKey),
    /// For each item, whether to take it from the front.
    Range(bool, FuzzBound, FuzzBound, Vec<bool>),
    Clear(bool),
    Flush,
    Step,
    Compact(bool, FuzzBound, FuzzBound),
    TakeSnapshot,
    /// Compares the snapshot with what was there when it was taken.
    CheckSnapshot,
    DropSnapshot,
    Reopen {
        close: bool,
    },
}

#[derive(Arbitrary, Clone, Debug)]
struct Scenario {
    seed: u64,
    /// So much more than the smallest memtable.
    write_buffer_kib: u8,
    /// So many runs in level 0, and one more, before they are merged.
    level0_runs: u8,
    operations: Vec<Operation>,
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// What must hold the same.
struct World {
    env: Env,
    write_buffer_bytes: usize,
    level0_runs: usize,
    open: Option<Open>,
    models: [Model; 2],
}

/// The database and everything that keeps it open.
struct Open {
    db: Db,
    keyspaces: [Keyspace; 2],
    snapshot: Option<([Snapshot; 2], [Model; 2])>,
}

impl World {
    fn new(scenario: &Scenario) -> World {
        let mut world = World {
            env: Env::in_memory(scenario.seed),
            write_buffer_bytes: SMALLEST_BYTES + usize::from(scenario.write_buffer_kib) * 1024,
            level0_runs: 1 + usize::from(scenario.level0_runs % 4),
            open: None,
            models: Default::default(),
        };
        world.reopen(false);
        world
    }

    fn reopen(&mut self, close: bool) {
        if let Some(Open { db, keyspaces, snapshot }) = self.open.take() {
            // What is still held after the close must not matter, and must be gone before opening.
            if close {
                db.close().expect("closing a healthy database succeeds");
            } else {
                drop(db);
            }
            drop((keyspaces, snapshot));
        }
        let db = Db::builder("db")
            .env(self.env.clone())
            .background(Background::Manual)
            .write_buffer_bytes(self.write_buffer_bytes)
            .segment_bytes(SMALLEST_BYTES as u64)
            .level1_bytes(SMALLEST_BYTES as u64)
            .level0_runs(self.level0_runs)
            .open()
            .expect("a healthy database opens");
        let keyspaces = [DEFAULT_KEYSPACE, "other"]
            .map(|name| db.keyspace(name).expect("a keyspace can be opened or created"));
        self.open = Some(Open { db, keyspaces, snapshot: None });
    }

    fn apply(&mut self, operation: &Operation) {
        if let Operation::Reopen { close } = operation {
            return self.reopen(*close);
        }
        let Some(open) = &mut self.open else { unreachable!("it is open between operations") };
        let keyspaces = &open.keyspaces;
        match operation {
            Operation::Reopen { .. } => {}
            Operation::Put(other, key, value) => {
                let at = usize::from(*other);
                let (key, value) = (key.bytes(), value.bytes());
                keyspaces[at].put(&key, &value).expect("a put succeeds");
                self.models[at].insert(key, value);
            }
            Operation::Delete(other, key) => {
                let at = usize::from(*other);
                keyspaces[at].delete(key.bytes()).expect("a delete succeeds");
                self.models[at].remove(&key.bytes());
            }
            Operation::Batch(changes, sync) => {
                let mut batch = WriteBatch::new();
                for (other, key, value) in changes {
                    let at = usize::from(*other);
                    match value {
                        Some(value) => {
                            batch.put_in(&keyspaces[at], key.bytes(), value.bytes());
                            self.models[at].insert(key.bytes(), value.bytes());
                        }
                        None => {
                            batch.delete_in(&keyspaces[at], key.bytes());
                            self.models[at].remove(&key.bytes());
                        }
                    }
                }
                let durability = if *sync { Durability::Sync } else { Durability::Buffered };
                open.db.write_with(batch, durability).expect("a batch succeeds");
            }
            Operation::Get(other, key) => {
                let at = usize::from(*other);
                let key = key.bytes();
                let value = keyspaces[at].get(&key).expect("a get succeeds");
                assert_eq!(value.as_deref(), self.models[at].get(&key).map(Vec::as_slice));
                let there = keyspaces[at].contains_key(&key).expect("a look succeeds");
                assert_eq!(there, value.is_some());
            }
            Operation::Range(other, from, to, ends) => {
                let at = usize::from(*other);
                let range = (from.bound(), to.bound());
                let expected = model_range(&self.models[at], &range);
                check_range(keyspaces[at].get_range(range), &expected, ends);
            }
            Operation::Clear(other) => {
                let at = usize::from(*other);
                keyspaces[at].clear().expect("a clear succeeds");
                self.models[at].clear();
            }
            Operation::Flush => open.db.flush().expect("a flush succeeds"),
            Operation::Step => {
                open.db.step().expect("a step succeeds");
            }
            Operation::Compact(other, from, to) => {
                let range = (from.bound(), to.bound());
                keyspaces[usize::from(*other)].compact_range(range).expect("compaction succeeds");
            }
            Operation::TakeSnapshot => {
                let snapshot = open.db.snapshot();
                let both = [&keyspaces[0], &keyspaces[1]]
                    .map(|keyspace| snapshot.of(keyspace).expect("they are of one database"));
                open.snapshot = Some((both, self.models.clone()));
            }
            Operation::CheckSnapshot => {
                if let Some((snapshots, models)) = &open.snapshot {
                    for (snapshot, model) in snapshots.iter().zip(models) {
                        let everything = (Bound::Unbounded, Bound::Unbounded);
                        let expected = model_range(model, &everything);
                        check_range(snapshot.get_range::<Vec<u8>>(everything), &expected, &[]);
                    }
                }
            }
            Operation::DropSnapshot => open.snapshot = None,
        }
    }

    /// Everything, forwards and backwards.
    fn check(&self) {
        let Some(open) = &self.open else { unreachable!("it is open between operations") };
        for (keyspace, model) in open.keyspaces.iter().zip(&self.models) {
            let everything = (Bound::Unbounded, Bound::Unbounded);
            let expected = model_range(model, &everything);
            check_range(keyspace.get_range::<Vec<u8>>(everything.clone()), &expected, &[]);
            let backwards = vec![false; expected.len() + 1];
            check_range(keyspace.get_range::<Vec<u8>>(everything), &expected, &backwards);
        }
    }
}

type Entries<'a> = Vec<(&'a Vec<u8>, &'a Vec<u8>)>;

/// `BTreeMap::range` panics on some bounds that a database must take for an empty range.
fn model_range<'a>(model: &'a Model, range: &(Bound<Vec<u8>>, Bound<Vec<u8>>)) -> Entries<'a> {
    let starts = |key: &Vec<u8>| match &range.0 {
        Bound::Unbounded => true,
        Bound::Included(from) => key >= from,
        Bound::Excluded(from) => key > from,
    };
    let ends = |key: &Vec<u8>| match &range.1 {
        Bound::Unbounded => true,
        Bound::Included(to) => key <= to,
        Bound::Excluded(to) => key < to,
    };
    model.iter().filter(|(key, _)| starts(key) && ends(key)).collect()
}

/// Takes items from the ends that `ends` says (from the front once it is used up) and compares.
fn check_range(mut range: RangeIter, expected: &Entries<'_>, ends: &[bool]) {
    let mut ends = ends.iter().chain(std::iter::repeat(&true));
    let mut expected = expected.iter();
    loop {
        let front = ends.next().is_none_or(|front| *front);
        let (entry, expected) = if front {
            (range.next(), expected.next())
        } else {
            (range.next_back(), expected.next_back())
        };
        let entry = entry.map(|entry| entry.expect("a read succeeds"));
        let entry = entry.as_ref().map(|(key, value)| (&key[..], &value[..]));
        assert_eq!(entry, expected.map(|(key, value)| (key.as_slice(), value.as_slice())));
        if entry.is_none() {
            // Once at the end, always at the end, from either side.
            assert!(range.next().is_none() && range.next_back().is_none());
            return;
        }
    }
}

libfuzzer_sys::fuzz_target!(|scenario: Scenario| {
    let mut world = World::new(&scenario);
    for operation in scenario.operations.iter().take(OPERATIONS_MAX) {
        world.apply(operation);
    }
    world.check();
    world.reopen(false);
    world.check();
    world.reopen(true);
    world.check();
});
