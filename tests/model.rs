//! A million random operations against a `BTreeMap`, over several option sets.
//!
//! Everything that can be asked of a database is asked at random: puts, deletes, merges, all for ever or
//! for a time, batches over keyspaces, loads of sorted entries and of files, transactions with others'
//! writes in between, point and range reads both ways, snapshots, clears, keyspaces created and
//! dropped, flushes, compactions, clean reopens and reopens of a copy of the files taken while the
//! database was open (the death of the process); now and then everything is read, also by a reader beside it, from a
//! checkpoint and from a backup that was restored. A run follows from its seed; a failure prints the seed.

use ashlardb::filter::Verdict;
use ashlardb::merge::{Append, MergeFn};
use ashlardb::vfs::{Clock, Entropy, Env, ManualClock, MemVfs, SeededEntropy, Vfs};
use ashlardb::{
    Background, Backups, Builder, Compaction, CompactionReason, Compression, Db, Durability, Event,
    IterOptions, Key, Keyspace, KeyspaceOptions, SegmentOptions, SegmentWriter, Snapshot,
    Transaction, Value, WriteBatch,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

type Map = BTreeMap<Vec<u8>, Cell>;
type Keyspaces = BTreeMap<String, Map>;
/// What a snapshot gave, by keyspace and key.
type Seen = RefCell<BTreeMap<(String, Vec<u8>), Option<Vec<u8>>>>;

/// What was written to a key since its last removal: a value, what was merged into it, and until when
/// each counts.
#[derive(Clone, Debug, Default)]
struct Cell {
    base: Option<(Vec<u8>, u64)>,
    operands: Vec<(Vec<u8>, u64)>,
    appends: bool,
    filtered: bool,
}

impl Cell {
    fn value(&self, now: u64) -> Option<Vec<u8>> {
        let value = self.unfiltered(now)?;
        if self.filtered { filtered(value) } else { Some(value) }
    }

    fn unfiltered(&self, now: u64) -> Option<Vec<u8>> {
        let base = self.base.as_ref().filter(|(_, expiry)| *expiry > now);
        let operands = self.operands.iter().filter(|(_, expiry)| *expiry > now);
        let mut operands = operands.map(|(operand, _)| operand).peekable();
        let value = base.map(|(value, _)| value.clone());
        if operands.peek().is_none() {
            return value;
        }
        if self.appends {
            return Some(operands.fold(value.unwrap_or_default(), |v, o| [v, o.clone()].concat()));
        }
        operands.fold(value, |value, operand| prepend(value, operand))
    }
}

/// What a value of keyspace `f` comes to, now or later: its compaction filter removes or changes some.
fn filtered(value: Vec<u8>) -> Option<Vec<u8>> {
    match value.first() {
        Some(254) => None,
        Some(253) => Some(vec![253]),
        _ => Some(value),
    }
}

/// What is to be held against the model.
fn shown(name: &str, value: &[u8]) -> Option<Vec<u8>> {
    if name == "f" { filtered(value.to_vec()) } else { Some(value.to_vec()) }
}

fn judge(_: &[u8], value: &[u8]) -> Verdict {
    match filtered(value.to_vec()) {
        None => Verdict::Remove,
        Some(new) if new != value => Verdict::Change(new),
        Some(_) => Verdict::Keep,
    }
}

/// A merge that is neither commutative nor associative, and now and then removes.
fn prepend(value: Option<Vec<u8>>, operand: &[u8]) -> Option<Vec<u8>> {
    (operand.first() != Some(&7)).then(|| [operand, &value.unwrap_or_default()].concat())
}

fn delete_range(model: &mut Map, bounds: &(Bound<Vec<u8>>, Bound<Vec<u8>>)) {
    model.retain(|key, _| !std::ops::RangeBounds::contains(bounds, key));
}

/// A clock of which the tests alone say what time it is, however long anything waits.
#[derive(Debug, Default)]
struct TestClock {
    unix_ms: AtomicU64,
    rest: ManualClock,
}

impl Clock for TestClock {
    fn unix_ms(&self) -> u64 {
        self.unix_ms.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> Duration {
        self.rest.monotonic()
    }

    fn sleep(&self, duration: Duration) {
        self.rest.sleep(duration);
    }
}

/// What lives for a time in keyspace `c` if nothing else is said.
const USUAL: Duration = Duration::from_millis(900);

fn options(name: &str) -> KeyspaceOptions {
    match name {
        "b" => {
            KeyspaceOptions::new().merge_operator(MergeFn::new("prepend", |_, value, operands| {
                operands.iter().fold(value.map(<[u8]>::to_vec), |v, operand| prepend(v, operand))
            }))
        }
        "c" => KeyspaceOptions::new().merge_operator(Append).default_ttl(USUAL),
        "f" => KeyspaceOptions::new().compaction_filter(judge).separate_values_above(80),
        "a" => KeyspaceOptions::new().merge_operator(Append).separate_values_above(50),
        _ => KeyspaceOptions::new().merge_operator(Append),
    }
}

const STRATEGIES: [Compaction; 4] = [
    Compaction::Lazy,
    Compaction::Leveled,
    Compaction::Tiered,
    // Nothing is dropped, so that the model holds.
    Compaction::Fifo { max_bytes: u64::MAX, max_age: None },
];

const NAMES: [&str; 5] = ["default", "a", "b", "c", "f"];

/// A write of a transaction, or beside it.
#[derive(Debug)]
struct Effect {
    name: String,
    key: Vec<u8>,
    what: What,
}

#[derive(Debug)]
enum What {
    Put(Vec<u8>, Option<Duration>),
    Merge(Vec<u8>, Option<Duration>),
    Delete,
    DeleteRange((Bound<Vec<u8>>, Bound<Vec<u8>>)),
}

impl Effect {
    fn in_transaction(&self, tx: &Transaction, handle: &Keyspace) {
        let key = &self.key;
        let done = match &self.what {
            What::Put(value, None) => tx.put_in(handle, key, value),
            What::Put(value, Some(ttl)) => tx.put_in_with_ttl(handle, key, value, *ttl),
            What::Merge(value, None) => tx.merge_in(handle, key, value),
            What::Merge(value, Some(ttl)) => tx.merge_in_with_ttl(handle, key, value, *ttl),
            What::Delete => tx.delete_in(handle, key),
            What::DeleteRange(bounds) => tx.delete_range_in(handle, bounds.clone()),
        };
        done.expect("a write of a transaction");
    }

    fn by_others(&self, handle: &Keyspace) {
        let key = &self.key;
        let done = match &self.what {
            What::Put(value, None) => handle.put(key, value),
            What::Put(value, Some(ttl)) => handle.put_with_ttl(key, value, *ttl),
            What::Merge(value, None) => handle.merge(key, value),
            What::Merge(value, Some(ttl)) => handle.merge_with_ttl(key, value, *ttl),
            What::Delete => handle.delete(key),
            What::DeleteRange(bounds) => handle.delete_range(bounds.clone()),
        };
        done.expect("a write");
    }

    /// Does it to the model, as of now.
    fn note(&self, run: &mut Run) {
        let now = run.now();
        let usual = (self.name == "c").then_some(USUAL);
        let expiry = |ttl: &Option<Duration>| {
            ttl.or(usual).map_or(u64::MAX, |ttl| now + ttl.as_millis() as u64)
        };
        match &self.what {
            What::Put(value, ttl) => {
                run.note_put(&self.name, &self.key, value.clone(), expiry(ttl));
            }
            What::Merge(value, ttl) => {
                let cell = run.cell(&self.name, &self.key);
                cell.operands.push((value.clone(), expiry(ttl)));
            }
            What::Delete => {
                run.model.get_mut(&self.name).unwrap().remove(&self.key);
            }
            What::DeleteRange(bounds) => {
                delete_range(run.model.get_mut(&self.name).unwrap(), bounds);
            }
        }
    }

    fn touches(&self, name: &str, key: &Vec<u8>) -> bool {
        self.name == name
            && match &self.what {
                What::DeleteRange(bounds) => std::ops::RangeBounds::contains(bounds, key),
                _ => self.key == *key,
            }
    }

    /// Whether it is to something in these bounds, if that is easily said.
    fn meets(&self, name: &str, bounds: &(Bound<Vec<u8>>, Bound<Vec<u8>>)) -> Option<bool> {
        match (&self.what, bounds) {
            _ if self.name != name => Some(false),
            (What::DeleteRange(_), (Bound::Included(one), Bound::Included(other)))
                if one == other =>
            {
                Some(self.touches(name, one))
            }
            (What::DeleteRange(_), _) => None,
            _ => Some(std::ops::RangeBounds::contains(bounds, &self.key)),
        }
    }
}

struct Run {
    rng: SeededEntropy,
    vfs: Arc<MemVfs>,
    make: fn(Builder) -> Builder,
    db: Option<Db>,
    handles: BTreeMap<String, Keyspace>,
    model: Keyspaces,
    clock: Arc<TestClock>,
    snapshots: Vec<(Snapshot, Keyspaces, u64, Seen)>,
    keys: u64,
    /// Whether each reopening takes another compaction strategy than that of `make`.
    restless: bool,
    /// The most shards of the key map that were in memory.
    resident: u32,
    /// The most value segments that the default keyspace had.
    value_segments: usize,
    /// Compactions that were only there to empty value segments.
    moves: Arc<AtomicU64>,
    /// How many copies were made.
    copies: u64,
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
            clock: Arc::default(),
            snapshots: Vec::new(),
            keys,
            restless: false,
            resident: 0,
            value_segments: 0,
            moves: Arc::default(),
            copies: 0,
        };
        run.open();
        run
    }

    fn below(&self, n: u64) -> u64 {
        self.rng.next_u64() % n
    }

    fn env(&self) -> Env {
        Env {
            vfs: Arc::clone(&self.vfs) as _,
            clock: Arc::clone(&self.clock) as _,
            ..Env::in_memory(self.rng.next_u64())
        }
    }

    fn builder(&self, dir: &str) -> Builder {
        (self.make)(Db::builder(dir).env(self.env())).merge_operator(Append)
    }

    fn open(&mut self) {
        let mut builder = self.builder("/db");
        if self.restless {
            builder = builder.compaction(STRATEGIES[self.below(4) as usize]);
        }
        let moves = Arc::clone(&self.moves);
        let listener = move |event: &Event| {
            if let Event::CompactionEnd { compaction, error: None, .. } = event
                && compaction.reason == CompactionReason::Unreferenced
            {
                moves.fetch_add(1, Ordering::Relaxed);
            }
        };
        let db = builder.listener(Arc::new(listener)).open().expect("open");
        assert_eq!(db.keyspaces(), self.model.keys().cloned().collect::<Vec<_>>());
        let handle = |name: &String| {
            let handle = db.keyspace_with(name, &options(name)).expect("keyspace");
            (name.clone(), handle)
        };
        self.handles = self.model.keys().map(handle).collect();
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

    fn now(&self) -> u64 {
        self.clock.unix_ms()
    }

    /// How long something is to live, if that is said, and when it so expires in a keyspace.
    fn ttl(&self, name: &str) -> (Option<Duration>, u64) {
        let ttl = (self.below(4) == 0).then(|| Duration::from_millis(1 + 100 * self.below(30)));
        let lives = ttl.or((name == "c").then_some(USUAL));
        (ttl, lives.map_or(u64::MAX, |lives| self.now() + lives.as_millis() as u64))
    }

    /// The cell of a key in the model.
    fn cell(&mut self, name: &str, key: &[u8]) -> &mut Cell {
        let cell = self.model.get_mut(name).unwrap().entry(key.to_vec()).or_default();
        (cell.appends, cell.filtered) = (name != "b", name == "f");
        cell
    }

    fn note_put(&mut self, name: &str, key: &[u8], value: Vec<u8>, expiry: u64) {
        let cell = self.cell(name, key);
        (cell.base, cell.operands) = (Some((value, expiry)), Vec::new());
    }

    /// A file of the segment writer.
    fn file(&self, entries: &BTreeMap<Vec<u8>, Vec<u8>>) -> PathBuf {
        let env = Env { vfs: Arc::clone(&self.vfs) as _, ..Env::in_memory(1) };
        env.vfs.create_dir_all(Path::new("/files")).expect("create");
        let path = PathBuf::from("/files/part");
        let options = SegmentOptions::default();
        let mut writer = SegmentWriter::create_in(&env, &path, options).expect("create");
        for (key, value) in entries {
            writer.put(key, value).expect("put");
        }
        writer.finish().expect("finish");
        path
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

    /// Of these the keys between are few, mostly.
    fn narrow_bounds(&self) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
        let start = self.key();
        let mut end = start.clone();
        match self.below(10) {
            0 => end = self.key(),
            1..=6 => end.push(self.below(256) as u8),
            _ => {
                if let Some(last) = end.last_mut() {
                    *last = last.saturating_add(self.below(4) as u8);
                }
            }
        }
        let start =
            if self.below(2) == 0 { Bound::Included(start) } else { Bound::Excluded(start) };
        let end = match self.below(40) {
            0 => Bound::Unbounded,
            1..=19 => Bound::Included(end),
            _ => Bound::Excluded(end),
        };
        (start, end)
    }

    fn check_range(
        &self,
        name: &str,
        iter: impl DoubleEndedIterator<Item = ashlardb::Result<(Key, Value)>>,
        model: &Map,
        now: u64,
        bounds: (Bound<Vec<u8>>, Bound<Vec<u8>>),
    ) {
        let empty = match (&bounds.0, &bounds.1) {
            (Bound::Included(a), Bound::Included(b)) => a > b,
            (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => {
                a >= b
            }
            _ => false,
        };
        let mut from_front: VecDeque<(&Vec<u8>, Vec<u8>)> = VecDeque::new();
        if !empty {
            let there = |(key, cell): (_, &Cell)| Some((key, cell.value(now)?));
            from_front.extend(model.range(bounds).filter_map(there));
        }
        let mut iter = iter.filter_map(|item| {
            let (key, value) = item.expect("an entry");
            Some((key, shown(name, &value)?))
        });
        let limit = 1 + self.below(60);
        let style = self.below(3);
        for step in 0..limit {
            let forward = style == 0 || style == 2 && step % 3 != 0;
            let (got, want) = if forward {
                (iter.next(), from_front.pop_front())
            } else {
                (iter.next_back(), from_front.pop_back())
            };
            assert_eq!(
                got.as_ref().map(|(k, v)| (&k[..], &v[..])),
                want.as_ref().map(|(k, v)| (&k[..], &v[..]))
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
            0..=299 => {
                let (key, mut value) = (self.key(), self.value());
                if name == "f" {
                    value.insert(0, 248 + self.below(8) as u8);
                }
                let (ttl, expiry) = self.ttl(&name);
                match ttl {
                    Some(ttl) => handle.put_with_ttl(&key, &value, ttl).expect("put"),
                    None => handle.put(&key, &value).expect("put"),
                }
                self.note_put(&name, &key, value, expiry);
            }
            300..=379 if name != "f" => {
                let (key, mut operand) = (self.key(), self.value());
                operand.truncate(12);
                let (ttl, expiry) = self.ttl(&name);
                match ttl {
                    Some(ttl) => handle.merge_with_ttl(&key, &operand, ttl).expect("merge"),
                    None => handle.merge(&key, &operand).expect("merge"),
                }
                self.cell(&name, &key).operands.push((operand, expiry));
            }
            380..=389 => {
                let bounds = self.narrow_bounds();
                handle.delete_range(bounds.clone()).expect("delete_range");
                delete_range(self.model.get_mut(&name).unwrap(), &bounds);
            }
            390..=479 => {
                let key = self.key();
                handle.delete(&key).expect("delete");
                self.model.get_mut(&name).unwrap().remove(&key);
            }
            480..=539 => {
                let mut batch = WriteBatch::new();
                for _ in 0..self.below(12) {
                    let name = self.some_keyspace();
                    let (key, handle) = (self.key(), self.handles[&name].clone());
                    let value = vec![self.rng.next_u64() as u8; 20];
                    let (ttl, expiry) = self.ttl(&name);
                    let choice = self.below(4);
                    if choice == 0 && self.below(3) == 0 {
                        let bounds = self.narrow_bounds();
                        batch.delete_range_in(&handle, bounds.clone());
                        delete_range(self.model.get_mut(&name).unwrap(), &bounds);
                        continue;
                    }
                    if choice == 0 {
                        batch.delete_in(&handle, &key);
                        self.model.get_mut(&name).unwrap().remove(&key);
                        continue;
                    }
                    let unnamed = name == "default" && self.below(2) == 0;
                    let merges = choice == 1 && name != "f";
                    match (merges, unnamed, ttl) {
                        (true, true, None) => batch.merge(&key, &value),
                        (true, true, Some(ttl)) => batch.merge_with_ttl(&key, &value, ttl),
                        (true, false, None) => batch.merge_in(&handle, &key, &value),
                        (true, false, Some(ttl)) => {
                            batch.merge_in_with_ttl(&handle, &key, &value, ttl)
                        }
                        (false, true, None) => batch.put(&key, &value),
                        (false, true, Some(ttl)) => batch.put_with_ttl(&key, &value, ttl),
                        (false, false, None) => batch.put_in(&handle, &key, &value),
                        (false, false, Some(ttl)) => {
                            batch.put_in_with_ttl(&handle, &key, &value, ttl)
                        }
                    };
                    if merges {
                        self.cell(&name, &key).operands.push((value, expiry));
                    } else {
                        self.note_put(&name, &key, value, expiry);
                    }
                }
                let durability =
                    if self.below(2) == 0 { Durability::Sync } else { Durability::Buffered };
                self.db().write_with(batch, durability).expect("write");
            }
            540..=839 => {
                let key = self.key();
                let want = self.model[&name].get(&key).and_then(|cell| cell.value(self.now()));
                let got = handle.get(&key).expect("get").and_then(|got| shown(&name, &got));
                assert_eq!(got, want, "key {key:?}");
            }
            840..=841 => self.transaction(),
            842..=859 => {
                let keys: Vec<_> = (0..self.below(20)).map(|_| self.key()).collect();
                let got = handle.multi_get(&keys).expect("multi_get");
                for (key, got) in keys.iter().zip(got) {
                    let want = self.model[&name].get(key).and_then(|c| c.value(self.now()));
                    assert_eq!(got.and_then(|got| shown(&name, &got)), want);
                }
            }
            860..=919 => {
                let bounds = self.bounds();
                let iter = handle.range_with(
                    bounds.clone(),
                    IterOptions { fill_cache: self.below(2) == 0, ..IterOptions::default() },
                );
                self.check_range(&name, iter, &self.model[&name], self.now(), bounds);
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
                self.check_range(
                    &name,
                    handle.prefix(prefix),
                    &self.model[&name],
                    self.now(),
                    bounds,
                );
            }
            930 => {
                let (ttl, expiry) = self.ttl(&name);
                let entries: BTreeMap<Vec<u8>, Vec<u8>> =
                    (0..self.below(60)).map(|_| (self.key(), self.value())).collect();
                let count = entries.len() as u64;
                if ttl.is_none() && count > 0 && self.below(2) == 0 {
                    let file = self.file(&entries);
                    assert_eq!(handle.ingest([&file]).expect("ingest"), count);
                    self.vfs.remove_file(&file).expect("remove");
                } else {
                    let mut loader = handle.bulk_loader().expect("bulk_loader");
                    for (key, value) in &entries {
                        match ttl {
                            Some(_) => loader.put_until(key, value, expiry).expect("put_until"),
                            None => loader.put(key, value).expect("put"),
                        }
                    }
                    assert_eq!(loader.finish().expect("finish"), count);
                }
                for (key, value) in entries {
                    self.note_put(&name, &key, value, expiry);
                }
            }
            931..=934 if name != "f" => {
                let now = self.now();
                let there = |(k, cell): (&Vec<u8>, &Cell)| Some((k.clone(), cell.value(now)?));
                let mut model = self.model[&name].iter().filter_map(there);
                let entry = |e: Option<(Key, Value)>| e.map(|(k, v)| (k.to_vec(), v.to_vec()));
                let first = model.next();
                assert_eq!(entry(handle.last().unwrap()), model.next_back().or(first.clone()));
                assert_eq!(entry(handle.first().unwrap()), first);
            }
            935..=937 => {
                if self.snapshots.len() >= 4 {
                    let at = self.below(4) as usize;
                    self.snapshots.swap_remove(at);
                }
                let seen = Seen::default();
                self.snapshots.push((self.db().snapshot(), self.model.clone(), self.now(), seen));
            }
            938..=967 => {
                let at = self.below(4) as usize % self.snapshots.len().max(1);
                let key = self.key();
                if let Some((snapshot, model, now, seen)) = self.snapshots.get(at)
                    && let Some(model) = model.get(&name)
                {
                    let view = snapshot.of(&handle).expect("of");
                    match view.get(&key) {
                        Ok(got) => {
                            let want = model.get(&key).and_then(|cell| cell.value(*now));
                            let got = got.map(|got| got.to_vec());
                            // Whatever the filter has removed or changed by now.
                            let (mut seen, place) =
                                (seen.borrow_mut(), (name.clone(), key.clone()));
                            assert_eq!(*seen.entry(place).or_insert_with(|| got.clone()), got);
                            assert_eq!(got.and_then(|got| shown(&name, &got)), want, "{key:?}");
                            let bounds = self.bounds();
                            let range = view.get_range(bounds.clone());
                            self.check_range(&name, range, model, *now, bounds);
                        }
                        // The name was dropped and created anew since.
                        Err(error) => panic!("{error}"),
                    }
                }
            }
            968 => {
                let ms = 10 * self.below(20);
                self.clock.unix_ms.fetch_add(ms, Ordering::Relaxed);
            }
            969..=971 => self.db().flush().expect("flush"),
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
                let name = NAMES[self.below(5) as usize];
                let handle = self.db().keyspace_with(name, &options(name)).expect("keyspace");
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
                for (_, model, _, _) in &mut self.snapshots {
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
                let stats = self.db().stats();
                let default = stats.keyspaces.iter().find(|keyspace| keyspace.name == "default");
                let count = default.map_or(0, |keyspace| keyspace.value_segments);
                self.value_segments = self.value_segments.max(count);
            }
        }
    }

    /// A transaction of some operations, between which others write now and then, and what becomes of it.
    fn transaction(&mut self) {
        let tx = self.db().begin();
        let began = self.now();
        // While it is open, the model is what it sees; what others see is apart.
        let mut others = self.model.clone();
        let mut writes: Vec<Effect> = Vec::new();
        let (mut reads, mut written, mut is_certain) = (Vec::new(), Vec::new(), true);
        let mut has_conflict = false;
        for _ in 0..self.below(16) {
            let name = self.some_keyspace();
            let handle = self.handles[&name].clone();
            let key = self.key();
            let point = || (Bound::Included(key.clone()), Bound::Included(key.clone()));
            match self.below(12) {
                0..=3 => {
                    let own = writes.iter().any(|write| write.touches(&name, &key));
                    let want = self.model[&name].get(&key).and_then(|cell| cell.value(began));
                    let got = tx.get_in(&handle, &key).expect("get_in");
                    assert_eq!(got.and_then(|got| shown(&name, &got)), want);
                    // What it wrote itself may be all that it has to look at.
                    reads.push((name, point(), !own));
                }
                // How far a range has walked depends on what the filter has removed by now.
                4..=5 if name == "f" => {}
                4..=5 => {
                    let (bounds, steps) = (self.narrow_bounds(), 1 + self.below(5) as usize);
                    let backward = self.below(2) == 0;
                    let mut range = tx.get_range_in(&handle, bounds.clone()).expect("get_range_in");
                    let mut want: Vec<_> = self.model[&name]
                        .iter()
                        .filter(|(key, _)| std::ops::RangeBounds::contains(&bounds, *key))
                        .filter_map(|(key, cell)| Some((key.clone(), cell.value(began)?)))
                        .collect();
                    if backward {
                        want.reverse();
                    }
                    let ends = want.len() < steps;
                    want.truncate(steps);
                    let next = |_| if backward { range.next_back() } else { range.next() };
                    let got: Vec<_> =
                        (0..steps).map_while(next).map(|item| item.unwrap()).collect();
                    let got: Vec<_> = got.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
                    assert_eq!(got, want);
                    let last = want.pop().map(|(key, _)| Bound::Included(key));
                    let walked = match last.filter(|_| !ends) {
                        Some(last) if backward => (last, bounds.1),
                        Some(last) => (bounds.0, last),
                        None => bounds,
                    };
                    reads.push((name, walked, true));
                }
                choice => {
                    let effect = self.effect(name, key, choice == 6);
                    if choice < 10 {
                        effect.in_transaction(&tx, &handle);
                        effect.note(self);
                        writes.push(effect);
                        continue;
                    }
                    effect.by_others(&handle);
                    std::mem::swap(&mut self.model, &mut others);
                    effect.note(self);
                    std::mem::swap(&mut self.model, &mut others);
                    written.push(effect);
                    self.clock.unix_ms.fetch_add(self.below(3) * 50, Ordering::Relaxed);
                }
            }
        }
        for write in &written {
            for (name, bounds, counts) in &reads {
                match write.meets(name, bounds) {
                    Some(true) if *counts => has_conflict = true,
                    Some(false) => {}
                    _ => is_certain = false,
                }
            }
        }
        self.model = others;
        if self.below(4) == 0 {
            return tx.rollback();
        }
        match tx.commit() {
            Ok(()) => {
                // One that only read never conflicts; a range may be of nothing.
                let wrote = writes.iter().any(|w| !matches!(w.what, What::DeleteRange(_)));
                assert!(!has_conflict || !wrote, "{written:?} after {reads:?}");
                for write in &writes {
                    write.note(self);
                }
            }
            Err(ashlardb::Error::Conflict) => {
                assert!(has_conflict || !is_certain, "{written:?} after {reads:?}");
                assert!(!writes.is_empty());
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// A write, of a range if that is asked for.
    fn effect(&self, name: String, key: Vec<u8>, of_range: bool) -> Effect {
        let (value, ttl) = (vec![self.rng.next_u64() as u8; 9], self.ttl(&name).0);
        let what = match self.below(4) {
            _ if of_range => What::DeleteRange(self.narrow_bounds()),
            0 => What::Delete,
            1 if name != "f" => What::Merge(value, ttl),
            _ => What::Put(value, ttl),
        };
        Effect { name, key, what }
    }

    fn check_everything(&mut self) {
        self.resident = self.resident.max(self.db().stats().key_map.resident_shards);
        let now = self.now();
        for (name, model) in &self.model {
            let handle = &self.handles[name];
            let there = |(key, cell): (_, &Cell)| Some((key, cell.value(now)?));
            let model: Vec<(&Vec<u8>, Vec<u8>)> = model.iter().filter_map(there).collect();
            let entry = |item: ashlardb::Result<(Key, Value)>| {
                let (key, value) = item.expect("an entry");
                Some((key, shown(name, &value)?))
            };
            let all: Vec<_> = handle.get_range::<&[u8]>(..).filter_map(entry).collect();
            assert_eq!(all.len(), model.len());
            for ((key, value), want) in all.iter().zip(&model) {
                assert_eq!((&key[..], &value[..]), (&want.0[..], &want.1[..]));
            }
            let back: Vec<_> = handle.get_range::<&[u8]>(..).rev().filter_map(entry).collect();
            assert!(back.iter().rev().eq(&all));
        }
        let report = self.db().verify(&mut |_, _| {}).expect("verify");
        assert!(report.is_sound(), "{report:?}");
    }

    /// A checkpoint, a backup that is restored and a reader beside the database have all of it.
    fn check_copies(&mut self) {
        self.copies += 1;
        let db = self.db();
        // So that the reader's files stay.
        db.wait_idle().expect("background work");
        let reader = self.builder("/db").open_read_only().expect("a reader");
        assert_eq!(reader.keyspaces(), db.keyspaces());
        for name in self.model.keys() {
            let keyspace = reader.keyspace_with(name, &options(name)).expect("keyspace");
            self.check_copy(name, keyspace.get_range::<&[u8]>(..));
            self.check_copy(name, keyspace.get_range::<&[u8]>(..).rev());
        }
        let dirs = [format!("/copy-{}", self.copies), format!("/restored-{}", self.copies)];
        db.checkpoint(&dirs[0], &mut |_, _| {}).expect("a checkpoint");
        let number = db.backup("/backups", &mut |_, _| {}).expect("a backup").backup.number;
        let backups = Backups::open_in(&self.env(), "/backups").expect("backups");
        backups.restore(number, &dirs[1], &mut |_, _| {}).expect("restored");
        for dir in dirs {
            let copy = self.builder(&dir).create_if_missing(false).open().expect("a copy");
            assert_eq!(copy.keyspaces(), db.keyspaces());
            for name in self.model.keys() {
                let keyspace = copy.keyspace_with(name, &options(name)).expect("keyspace");
                self.check_copy(name, keyspace.get_range::<&[u8]>(..));
                self.check_copy(name, keyspace.get_range::<&[u8]>(..).rev());
            }
        }
    }

    /// Whether these are all entries of a keyspace, in either order.
    fn check_copy(&self, name: &str, iter: impl Iterator<Item = ashlardb::Result<(Key, Value)>>) {
        let now = self.now();
        let entry = |item: ashlardb::Result<(Key, Value)>| {
            let (key, value) = item.expect("an entry");
            Some((key.to_vec(), shown(name, &value)?))
        };
        let mut found: Vec<(Vec<u8>, Vec<u8>)> = iter.filter_map(entry).collect();
        if found.first() > found.last() {
            found.reverse();
        }
        let there = |(key, cell): (&Vec<u8>, &Cell)| Some((key.clone(), cell.value(now)?));
        assert!(self.model[name].iter().filter_map(there).eq(found), "keyspace {name}");
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
                run.check_copies();
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
        if name.contains("values") {
            let moves = run.moves.load(Ordering::Relaxed);
            assert!(run.value_segments > 3 && moves > 3, "{} {moves}", run.value_segments);
        }
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
fn values_in_value_segments() {
    run("values", 1500, |builder| small(builder).separate_values_above(20));
}

#[test]
fn values_in_value_segments_with_background_threads() {
    run("values, threads", 900, |builder| {
        small(builder).separate_values_above(60).background(Background::Threads(2))
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
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
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
