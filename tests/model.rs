//! A million random operations against a `BTreeMap`, over several option sets.
//!
//! Everything that can be asked of a database is asked at random: puts, deletes, batches over
//! keyspaces, point and range reads both ways, snapshots, clears, keyspaces created and dropped,
//! flushes, compactions, clean reopens and reopens of a copy of the files taken while the database
//! was open (the death of the process). A run follows from its seed; a failure prints the seed.

use ashlardb::vfs::{Entropy, Env, MemVfs, SeededEntropy};
use ashlardb::{
    Background, Builder, Compaction, Compression, Db, Durability, IterOptions, Key, Keyspace,
    Snapshot, Value, WriteBatch,
};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

type Map = BTreeMap<Vec<u8>, Vec<u8>>;
type Keyspaces = BTreeMap<String, Map>;

const STRATEGIES: [Compaction; 4] = [
    Compaction::Lazy,
    Compaction::Leveled,
    Compaction::Tiered,
    // Nothing is dropped, so that the model holds.
    Compaction::Fifo { max_bytes: u64::MAX, max_age: None },
];

const NAMES: [&str; 4] = ["default", "a", "b", "c"];

struct Run {
    rng: SeededEntropy,
    vfs: Arc<MemVfs>,
    make: fn(Builder) -> Builder,
    db: Option<Db>,
    handles: BTreeMap<String, Keyspace>,
    model: Keyspaces,
    snapshots: Vec<(Snapshot, Keyspaces)>,
    keys: u64,
    /// Whether each reopening takes another compaction strategy than that of `make`.
    restless: bool,
    /// The most shards of the key map that were in memory.
    resident: u32,
}

impl Run {
    fn new(seed: u64, keys: u64, make: fn(Builder) -> Builder) -> Run {
        let mut run = Run {
            rng: SeededEntropy::new(seed),
            vfs: Arc::default(),
            make,
            db: None,
            handles: BTreeMap::new(),
            model: Keyspaces::from([("default".to_owned(), Map::new())]),
            snapshots: Vec::new(),
            keys,
            restless: false,
            resident: 0,
        };
        run.open();
        run
    }

    fn below(&self, n: u64) -> u64 {
        self.rng.next_u64() % n
    }

    fn open(&mut self) {
        let env = Env { vfs: Arc::clone(&self.vfs) as _, ..Env::in_memory(self.rng.next_u64()) };
        let mut builder = (self.make)(Db::builder("/db").env(env));
        if self.restless {
            builder = builder.compaction(STRATEGIES[self.below(4) as usize]);
        }
        let db = builder.open().expect("open");
        assert_eq!(db.keyspaces(), self.model.keys().cloned().collect::<Vec<_>>());
        self.handles =
            self.model.keys().map(|n| (n.clone(), db.keyspace(n).expect("keyspace"))).collect();
        self.db = Some(db);
    }

    fn db(&self) -> &Db {
        self.db.as_ref().expect("open")
    }

    fn key(&self) -> Vec<u8> {
        let n = self.below(self.keys);
        // Several shapes: fixed width, short with shared prefixes, empty, long now and then.
        match n % 4 {
            0 => format!("{n:08}").into_bytes(),
            1 => vec![(n % 3) as u8 * 127; (n % 40) as usize],
            2 => [b"prefix-of-some-length/", &n.to_be_bytes()[5..]].concat(),
            _ => n.to_be_bytes()[6..].repeat(1 + usize::from(n % 97 == 3) * 200),
        }
    }

    fn value(&self) -> Vec<u8> {
        let r = self.rng.next_u64();
        let len = match r % 100 {
            0 => 0,
            1 => 5000 + (r >> 8) % 3000,
            2 if (r >> 40).is_multiple_of(50) => 70_000 + (r >> 8) % 9000,
            _ => (r >> 8) % 120,
        };
        (0..len).map(|i| ((r >> (i % 5)) ^ (i * (r >> 60))) as u8).collect()
    }

    fn some_keyspace(&self) -> String {
        let at = self.below(self.model.len() as u64) as usize;
        self.model.keys().nth(at).expect("there is one").clone()
    }

    fn bounds(&self) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
        let one = || match self.below(3) {
            0 => Bound::Included(self.key()),
            1 => Bound::Excluded(self.key()),
            _ => Bound::Unbounded,
        };
        (one(), one())
    }

    fn check_range(
        &self,
        mut iter: impl DoubleEndedIterator<Item = ashlardb::Result<(Key, Value)>>,
        model: &Map,
        bounds: (Bound<Vec<u8>>, Bound<Vec<u8>>),
    ) {
        let empty = match (&bounds.0, &bounds.1) {
            (Bound::Included(a), Bound::Included(b)) => a > b,
            (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => {
                a >= b
            }
            _ => false,
        };
        let mut want: Vec<(&Vec<u8>, &Vec<u8>)> =
            if empty { Vec::new() } else { model.range(bounds).collect() };
        let mut from_front = want.drain(..).collect::<std::collections::VecDeque<_>>();
        let limit = 1 + self.below(60);
        let style = self.below(3);
        for step in 0..limit {
            let forward = style == 0 || style == 2 && step % 3 != 0;
            let (got, want) = if forward {
                (iter.next(), from_front.pop_front())
            } else {
                (iter.next_back(), from_front.pop_back())
            };
            let got = got.map(|item| item.expect("an entry"));
            assert_eq!(
                got.as_ref().map(|(k, v)| (&k[..], &v[..])),
                want.map(|(k, v)| (&k[..], &v[..]))
            );
            if want.is_none() {
                assert!(iter.next().is_none() && iter.next_back().is_none());
                break;
            }
        }
    }

    /// One random operation.
    fn step(&mut self) {
        let name = self.some_keyspace();
        let handle = self.handles[&name].clone();
        match self.below(1000) {
            0..=379 => {
                let (key, value) = (self.key(), self.value());
                handle.put(&key, &value).expect("put");
                self.model.get_mut(&name).unwrap().insert(key, value);
            }
            380..=479 => {
                let key = self.key();
                handle.delete(&key).expect("delete");
                self.model.get_mut(&name).unwrap().remove(&key);
            }
            480..=539 => {
                let mut batch = WriteBatch::new();
                for _ in 0..self.below(12) {
                    let name = self.some_keyspace();
                    let (key, model) = (self.key(), self.model.get_mut(&name).unwrap());
                    if self.rng.next_u64().is_multiple_of(4) {
                        batch.delete_in(&self.handles[&name], &key);
                        model.remove(&key);
                    } else {
                        let value = vec![self.rng.next_u64() as u8; 20];
                        batch.put_in(&self.handles[&name], &key, &value);
                        model.insert(key, value);
                    }
                }
                let durability =
                    if self.below(2) == 0 { Durability::Sync } else { Durability::Buffered };
                self.db().write_with(batch, durability).expect("write");
            }
            540..=839 => {
                let key = self.key();
                let want = self.model[&name].get(&key);
                let got = handle.get(&key).expect("get");
                assert_eq!(got.as_deref(), want.map(|v| &v[..]), "key {key:?}");
            }
            840..=859 => {
                let keys: Vec<_> = (0..self.below(20)).map(|_| self.key()).collect();
                let got = handle.multi_get(&keys).expect("multi_get");
                for (key, got) in keys.iter().zip(got) {
                    assert_eq!(got.as_deref(), self.model[&name].get(key).map(|v| &v[..]));
                }
            }
            860..=919 => {
                let bounds = self.bounds();
                let iter = handle.range_with(
                    bounds.clone(),
                    IterOptions { fill_cache: self.below(2) == 0, ..IterOptions::default() },
                );
                self.check_range(iter, &self.model[&name], bounds);
            }
            920..=929 => {
                let prefix = self.key();
                let prefix = &prefix[..prefix.len().min(self.below(4) as usize)];
                let end = prefix.iter().rposition(|b| *b != 255).map(|at| {
                    let mut end = prefix[..=at].to_vec();
                    end[at] += 1;
                    end
                });
                let upper = end.map_or(Bound::Unbounded, Bound::Excluded);
                let bounds = (Bound::Included(prefix.to_vec()), upper);
                self.check_range(handle.prefix(prefix), &self.model[&name], bounds);
            }
            930..=934 => {
                let model = &self.model[&name];
                let entry = |e: Option<(Key, Value)>| e.map(|(k, v)| (k.to_vec(), v.to_vec()));
                let want = |e: Option<(&Vec<u8>, &Vec<u8>)>| e.map(|(k, v)| (k.clone(), v.clone()));
                assert_eq!(entry(handle.first().unwrap()), want(model.first_key_value()));
                assert_eq!(entry(handle.last().unwrap()), want(model.last_key_value()));
            }
            935..=937 => {
                if self.snapshots.len() >= 4 {
                    let at = self.below(4) as usize;
                    self.snapshots.swap_remove(at);
                }
                self.snapshots.push((self.db().snapshot(), self.model.clone()));
            }
            938..=967 => {
                if let Some((snapshot, model)) =
                    self.snapshots.get(self.below(4) as usize % self.snapshots.len().max(1))
                    && let Some(model) = model.get(&name)
                {
                    let view = snapshot.of(&handle).expect("of");
                    let key = self.key();
                    match view.get(&key) {
                        Ok(got) => {
                            assert_eq!(got.as_deref(), model.get(&key).map(|v| &v[..]), "{key:?}");
                            let bounds = self.bounds();
                            self.check_range(view.get_range(bounds.clone()), model, bounds);
                        }
                        // The name was dropped and created anew since.
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            968..=971 => self.db().flush().expect("flush"),
            972..=989 => {
                self.db().step().expect("step");
            }
            990 => {
                let mut range = [self.key(), self.key()];
                range.sort();
                handle.compact_range(&range[0][..]..=&range[1][..]).expect("compact_range");
            }
            991 if self.below(4) == 0 => {
                handle.clear().expect("clear");
                self.model.get_mut(&name).unwrap().clear();
            }
            992 => {
                let name = NAMES[self.below(4) as usize];
                let handle = self.db().keyspace(name).expect("keyspace");
                self.model.entry(name.to_owned()).or_default();
                self.handles.insert(name.to_owned(), handle);
            }
            993 if name != "default" && self.below(4) == 0 => {
                self.db().drop_keyspace(&name).expect("drop");
                self.model.remove(&name);
                self.handles.remove(&name);
                assert!(matches!(handle.get(b"x"), Err(ashlardb::Error::KeyspaceDropped { .. })));
                assert!(matches!(
                    handle.put(b"x", b""),
                    Err(ashlardb::Error::KeyspaceDropped { .. })
                ));
                // What a snapshot saw of it is gone with it.
                for (_, model) in &mut self.snapshots {
                    model.remove(&name);
                }
            }
            994 if self.below(3) == 0 => {
                self.snapshots.clear();
                self.handles.clear();
                drop(handle);
                self.db.take().unwrap().close().expect("close");
                self.open();
            }
            995 if self.below(3) == 0 => {
                // The process dies: what it wrote is in the files, nothing else is.
                let fork = Arc::new(self.vfs.fork());
                self.snapshots.clear();
                self.handles.clear();
                self.db = None;
                self.vfs = fork;
                self.open();
            }
            _ => {
                self.db().wait_idle().expect("wait_idle");
            }
        }
    }

    fn check_everything(&mut self) {
        self.resident = self.resident.max(self.db().stats().key_map.resident_shards);
        for (name, model) in &self.model {
            let handle = &self.handles[name];
            let all: Vec<_> =
                handle.get_range::<&[u8]>(..).map(|item| item.expect("an entry")).collect();
            assert_eq!(all.len(), model.len());
            for ((key, value), want) in all.iter().zip(model) {
                assert_eq!((&key[..], &value[..]), (&want.0[..], &want.1[..]));
            }
            let back: Vec<_> = handle.get_range::<&[u8]>(..).rev().map(|i| i.unwrap().0).collect();
            assert!(back.iter().rev().eq(all.iter().map(|(key, _)| key)));
        }
        let report = self.db().verify(&mut |_, _| {}).expect("verify");
        assert!(report.is_sound(), "{report:?}");
    }
}

fn run(name: &str, keys: u64, make: fn(Builder) -> Builder) {
    run_with(name, keys, false, make);
}

fn run_with(name: &str, keys: u64, restless: bool, make: fn(Builder) -> Builder) {
    const SEEDS: u64 = 2;
    // Twelve option sets, two seeds each: well over a million operations in all.
    const OPERATIONS: u64 = 60_000;
    for seed in 0..SEEDS {
        let mut run = Run::new(seed * 7919 + keys, keys, make);
        run.restless = restless;
        for operation in 0..OPERATIONS {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.step()));
            assert!(outcome.is_ok(), "{name}: seed {seed} failed at operation {operation}");
            if operation % (OPERATIONS / 4) == 0 {
                run.check_everything();
            }
        }
        run.db().compact_range::<&[u8]>(..).expect("compact");
        run.check_everything();
        run.handles.clear();
        run.snapshots.clear();
        run.db.take().unwrap().close().expect("close");
        run.open();
        run.check_everything();
        assert_eq!(run.resident > 0, name != "filters", "{name}: {} shards", run.resident);
        assert_eq!(run.resident == 256, name != "short" && name != "filters", "{name}");
    }
}

fn small(builder: Builder) -> Builder {
    builder
        .background(Background::Manual)
        .write_buffer_bytes(64 << 10)
        .segment_bytes(64 << 10)
        .level1_bytes(128 << 10)
        .cache_bytes(256 << 10)
        .check_key_map(true)
}

#[test]
fn small_buffers_and_lz4() {
    run("small", 3000, small);
}

#[test]
fn a_key_map_that_can_hardly_tell_keys_apart() {
    run("collisions", 3200, |builder| small(builder).key_map_fingerprint_bits(2));
}

#[test]
fn a_key_map_with_room_for_a_part() {
    run("short", 2200, |builder| small(builder).key_map_bytes(14 << 10));
}

#[test]
fn filters_and_no_hash_runs() {
    run("filters", 2600, |builder| small(builder).hash_runs(false));
}

#[test]
fn no_compression_no_filter_hardly_a_cache() {
    run("plain", 2000, |builder| {
        small(builder)
            .compression(Compression::None)
            .bloom_bits_per_key(0)
            .cache_bytes(0)
            .max_open_files(8)
    });
}

#[test]
fn zstd_with_few_hot_keys() {
    run("hot", 40, |builder| small(builder).compression(zstd()).level0_runs(2));
}

fn zstd() -> Compression {
    if cfg!(feature = "zstd") { Compression::Zstd(1) } else { Compression::None }
}

#[test]
fn every_flush_is_compacted_at_once() {
    run("eager", 5000, |builder| small(builder).level0_runs(1).write_buffers(2));
}

#[test]
fn leveled() {
    run("leveled", 4000, |builder| small(builder).compaction(Compaction::Leveled).level0_runs(2));
}

#[test]
fn tiered() {
    run("tiered", 2500, |builder| small(builder).compaction(Compaction::Tiered).level0_runs(3));
}

#[test]
fn another_strategy_at_each_reopening() {
    run_with("restless", 3500, true, |builder| small(builder).level0_runs(3));
}

#[test]
fn leveled_with_background_threads() {
    run("leveled threads", 2800, |builder| {
        small(builder).compaction(Compaction::Leveled).background(Background::Threads(2))
    });
}

#[test]
fn background_threads() {
    run("threads", 3000, |builder| small(builder).background(Background::Threads(2)));
}

#[test]
fn a_database_in_real_files_reopens_with_other_options() {
    let dir = tempfile::tempdir().unwrap();
    let path: &Path = &dir.path().join("db");
    let mut model = Map::new();
    let rng = SeededEntropy::new(77);
    for round in 0..6u64 {
        let builder = Db::builder(path)
            .write_buffer_bytes((64 << 10) << (round % 3))
            .segment_bytes(64 << 10)
            .level1_bytes(64 << 10)
            .compression([Compression::None, Compression::default()][round as usize % 2])
            .hash_runs(round % 4 != 1)
            .bloom_bits_per_key([10, 0, 20][round as usize % 3]);
        let db = builder.open().unwrap();
        for (key, value) in &model {
            assert_eq!(db.get(key).unwrap().as_deref(), Some(&value[..]));
        }
        for _ in 0..20_000 {
            let r = rng.next_u64();
            let key = (r % 4000).to_be_bytes().to_vec();
            if r >> 62 == 0 {
                db.delete(&key).unwrap();
                model.remove(&key);
            } else {
                let value = r.to_le_bytes().repeat((r >> 8) as usize % 12);
                db.put(&key, &value).unwrap();
                model.insert(key, value);
            }
        }
        if round % 2 == 0 {
            db.close().unwrap();
        }
    }
    let db = Db::open(path).unwrap();
    let all: Vec<_> = db.get_range::<&[u8]>(..).map(|e| e.unwrap()).collect();
    assert!(all.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).eq(model));
}
