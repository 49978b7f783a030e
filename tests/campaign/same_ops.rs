//! The operations of the row `same`, and what a sorted map answers to them.

use crate::copies::Copying;
use crate::same::Reads;
use crate::workload::Rng;
use ashlardb::filter::Verdict;
use ashlardb::{DEFAULT_KEYSPACE, Result};
use std::cell::Cell;
use std::collections::btree_map::Range;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};
use std::ops::Bound;
use std::rc::Rc;

pub const NAMES: [&str; 3] = [DEFAULT_KEYSPACE, "second", "third"];

/// The keyspace in which compactions filter.
pub const FILTERED: u8 = 2;

/// The element that the compaction filter adds to sets, as it is written: above all others.
const MARK: [u8; 10] = [6, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

/// The compaction filter: adds an element to most sets. No answer tells whether it did so yet.
pub fn judge(key: &[u8], value: &[u8]) -> Verdict {
    if key.len().is_multiple_of(4) || value.ends_with(&MARK) {
        Verdict::Keep
    } else {
        Verdict::Change([value, &MARK].concat())
    }
}

/// How many keys there are.
const KEYS: u64 = 2500;

/// How many entries of a range are looked at, at most.
const ENTRIES: usize = 40;

/// One of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct K(u16);

impl K {
    pub fn bytes(self) -> Vec<u8> {
        match self.0 {
            0 => Vec::new(),
            // Prefixes of each other, and one that nothing can follow.
            n @ 1..40 => vec![0xff; usize::from(n)],
            n @ 40..200 => [&b"a/long/prefix/that/many/share/"[..], &n.to_be_bytes()].concat(),
            n @ 200..260 => vec![b'x'; usize::from(n)],
            n => format!("{}/{n}", n % 9).into_bytes(),
        }
    }
}

/// A value that no other change has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V(u32);

impl V {
    pub fn bytes(self) -> Vec<u8> {
        let id = self.0;
        let len = match id % 64 {
            0 => 0,
            1 | 2 => 1500 + id % 4000,
            3..20 => id % 400,
            _ => id % 90,
        };
        let word = Rng::new(u64::from(id)).next().to_le_bytes();
        let tail = (0..len as usize).map(|i| word[i % 8].wrapping_mul((i / 16) as u8 | 1));
        id.to_le_bytes().into_iter().chain(tail).collect()
    }

    /// The set of only this one, as the operator `SetUnion` has it. So that merging it twice is
    /// merging it once.
    pub fn set(self) -> Vec<u8> {
        set_of(&BTreeSet::from([self.bytes()]))
    }
}

fn set_of(elements: &BTreeSet<Vec<u8>>) -> Vec<u8> {
    let element = |e: &Vec<u8>| [&(e.len() as u32).to_le_bytes()[..], e].concat();
    elements.iter().flat_map(element).collect()
}

/// A change to a key, or to those from it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Whether it expires.
    Put(V, bool),
    Merge(V, bool),
    Delete,
    DeleteTo(K),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Forward,
    Backward,
    /// From both ends in turn, until they meet.
    Both,
}

/// A way of reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    Get(K),
    MultiGet(Vec<K>),
    Range { lower: Bound<K>, upper: Bound<K>, way: Way, keys_only: bool },
    Prefix(K, usize, Way),
    First,
    Last,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// One call for one change.
    Change(u8, K, Effect),
    Batch(Vec<(u8, K, Effect)>, bool),
    /// Puts for ever, or some that expire, in any order and of some keys more than once: sorted, and loaded.
    Load(u8, Vec<(K, V, bool)>),
    /// So much time passes that all expires that can.
    Pass,
    /// Reads a keyspace, or what a snapshot has of it.
    Read(Option<u8>, u8, Read),
    /// Reads what a copy has of a keyspace.
    ReadCopy(Copying, u8, Read),
    Take(u8),
    LetGo(u8),
    Create(u8),
    Drop(u8),
    Clear(u8),
    Flush,
    Idle,
    Sync,
    Compact(u8, K, K),
    Close,
    Kill,
    /// Loss of power with everything synced.
    Crash,
}

pub fn operations(seed: u64, count: usize) -> Vec<Op> {
    let rng = Rng::new(seed ^ 0x6C69_7374);
    let id = Cell::new(0);
    let value = || {
        id.set(id.get() + 1);
        V(id.get())
    };
    let write = |rng: &Rng| match rng.below(20) {
        0..5 => Effect::Merge(value(), false),
        5 => Effect::Merge(value(), true),
        6..8 => Effect::Put(value(), true),
        _ => Effect::Put(value(), false),
    };
    let key = |rng: &Rng| {
        // Some keys are changed over and over.
        let below = if rng.one_in(3) { 60 } else { KEYS };
        K((rng.below(below) * 7 % KEYS) as u16)
    };
    let space = |rng: &Rng| if rng.one_in(3) { 1 + rng.below(2) as u8 } else { 0 };
    let create = [Op::Create(1), Op::Create(2)];
    let rest = (create.len()..count).map(|_| match rng.below(1000) {
        0..300 => Op::Change(space(&rng), key(&rng), write(&rng)),
        300..385 => Op::Change(space(&rng), key(&rng), Effect::Delete),
        385..390 => Op::Change(space(&rng), key(&rng), Effect::DeleteTo(key(&rng))),
        390..470 => {
            let changes = (0..1 + rng.below(40))
                .map(|_| {
                    let effect = match rng.below(160) {
                        0 => Effect::DeleteTo(key(&rng)),
                        1..40 => Effect::Delete,
                        _ => write(&rng),
                    };
                    (space(&rng), key(&rng), effect)
                })
                .collect();
            Op::Batch(changes, rng.one_in(4))
        }
        470..880 => Op::Read(None, space(&rng), read(&rng, &key)),
        880..940 => Op::Read(Some(rng.below(3) as u8), space(&rng), read(&rng, &key)),
        940..950 => Op::Take(rng.below(3) as u8),
        950..956 => Op::LetGo(rng.below(3) as u8),
        956..961 => Op::Create(1 + rng.below(2) as u8),
        961 if rng.one_in(2) => Op::Pass,
        962 if rng.one_in(2) => Op::Drop(1 + rng.below(2) as u8),
        963 if rng.one_in(3) => Op::Clear(space(&rng)),
        961..977 => Op::Flush,
        977..980 => Op::Idle,
        980 if rng.one_in(3) => {
            let copying = rng.pick(&[Copying::Checkpoint, Copying::Backup, Copying::Reader]);
            Op::ReadCopy(copying, space(&rng), read(&rng, &key))
        }
        980..991 => Op::Sync,
        991..994 => Op::Compact(space(&rng), key(&rng), key(&rng)),
        994..996 => Op::Close,
        996..998 => Op::Kill,
        998 => Op::Crash,
        _ => {
            let (n, some_expire) = (1 + rng.below(90), rng.one_in(2));
            let puts = (0..n).map(|_| (key(&rng), value(), some_expire && rng.one_in(8)));
            Op::Load(space(&rng), puts.collect())
        }
    });
    create.iter().cloned().chain(rest).collect()
}

fn read(rng: &Rng, key: &dyn Fn(&Rng) -> K) -> Read {
    let way = rng.pick(&[Way::Forward, Way::Forward, Way::Backward, Way::Both]);
    let bound = || match rng.below(3) {
        0 => Bound::Included(key(rng)),
        1 => Bound::Excluded(key(rng)),
        _ => Bound::Unbounded,
    };
    match rng.below(40) {
        0..22 => Read::Get(key(rng)),
        22..26 => Read::MultiGet((0..rng.below(12)).map(|_| key(rng)).collect()),
        26..35 => {
            let (lower, upper) = (bound(), bound());
            Read::Range { lower, upper, way, keys_only: rng.one_in(4) }
        }
        35..38 => Read::Prefix(key(rng), rng.below(6) as usize, way),
        38 => Read::First,
        _ => Read::Last,
    }
}

fn prefix_of(key: K, len: usize) -> Vec<u8> {
    let mut bytes = key.bytes();
    bytes.truncate(len);
    bytes
}

/// What an entry looks like to whoever reads it.
type Note<'a> = dyn FnMut(&[u8], Option<&[u8]>) + 'a;

fn hashed(each: impl FnOnce(&mut Note<'_>) -> Result<()>) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    each(&mut |key, value| {
        let value = value.map(|value| value.strip_suffix(&MARK).unwrap_or(value));
        hasher.write_usize(key.len());
        hasher.write(key);
        hasher.write_usize(value.map_or(usize::MAX, <[u8]>::len));
        hasher.write(value.unwrap_or_default());
    })?;
    Ok(hasher.finish())
}

impl Read {
    /// Reads from a database; the answer, hashed.
    pub fn ask(&self, from: &impl Reads) -> Result<u64> {
        hashed(|note| self.each(from, note))
    }

    /// Reads from a database, and gives out what it answers.
    pub fn each(&self, from: &impl Reads, note: &mut Note<'_>) -> Result<()> {
        let (mut iter, way) = match self {
            Read::Get(key) => {
                let key = key.bytes();
                note(&key, from.get(&key)?.as_deref());
                return Ok(());
            }
            Read::MultiGet(keys) => {
                let keys: Vec<Vec<u8>> = keys.iter().map(|key| key.bytes()).collect();
                let keys: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
                for (key, value) in keys.iter().zip(from.multi_get(&keys)?) {
                    note(key, value.as_deref());
                }
                return Ok(());
            }
            Read::First | Read::Last => {
                let entry = if *self == Read::First { from.first()? } else { from.last()? };
                if let Some((key, value)) = entry {
                    note(&key, Some(&value));
                }
                return Ok(());
            }
            Read::Range { lower, upper, way, keys_only } => {
                let (lower, upper) = (lower.map(K::bytes), upper.map(K::bytes));
                let bounds = (lower.as_ref().map(|k| &k[..]), upper.as_ref().map(|k| &k[..]));
                (from.range(bounds, *keys_only), *way)
            }
            Read::Prefix(key, len, way) => (from.prefix(&prefix_of(*key, *len)), *way),
        };
        for n in 0..ENTRIES {
            let entry = match way {
                Way::Forward => iter.next(),
                Way::Backward => iter.next_back(),
                Way::Both if n % 2 == 0 => iter.next(),
                Way::Both => iter.next_back(),
            };
            let Some(entry) = entry else { break };
            let (key, value) = entry?;
            note(&key, Some(&value));
        }
        Ok(())
    }

    /// What the model answers, hashed.
    fn ask_model(&self, model: &Contents) -> u64 {
        let outcome = hashed(|note| {
            self.each_of_model(model, note);
            Ok(())
        });
        outcome.expect("a map does not fail")
    }

    fn each_of_model(&self, model: &Contents, note: &mut Note<'_>) {
        let mut entries = match self {
            Read::Range { lower, upper, .. } => {
                let bounds = (lower.map(K::bytes), upper.map(K::bytes));
                let is_backward = match (&bounds.0, &bounds.1) {
                    (Bound::Excluded(lower), Bound::Excluded(upper)) => lower >= upper,
                    (
                        Bound::Included(lower) | Bound::Excluded(lower),
                        Bound::Included(upper) | Bound::Excluded(upper),
                    ) => lower > upper,
                    _ => false,
                };
                if is_backward { Range::default() } else { model.range(bounds) }
            }
            Read::Prefix(prefix, len, _) => {
                let first = prefix_of(*prefix, *len);
                // Above every key with that prefix: none is as long.
                let last = [&first[..], &[0xff; 1000]].concat();
                model.range(first..last)
            }
            _ => model.range::<Vec<u8>, _>(..),
        };
        let mut give = |entry: Option<(&Vec<u8>, &Held)>, keys_only: bool| {
            if let Some((key, held)) = entry {
                note(key, Some(if keys_only { b"" } else { &held.bytes }));
            }
            entry.is_some()
        };
        match self {
            Read::Get(key) => {
                let key = key.bytes();
                note(&key, model.get(&key).map(|held| &held.bytes[..]));
            }
            Read::MultiGet(keys) => {
                for key in keys {
                    let key = key.bytes();
                    note(&key, model.get(&key).map(|held| &held.bytes[..]));
                }
            }
            Read::First => drop(give(entries.next(), false)),
            Read::Last => drop(give(entries.next_back(), false)),
            Read::Range { way, .. } | Read::Prefix(_, _, way) => {
                let keys_only = matches!(self, Read::Range { keys_only: true, .. });
                for n in 0..ENTRIES {
                    let from_front = *way == Way::Forward || *way == Way::Both && n % 2 == 0;
                    let entry = if from_front { entries.next() } else { entries.next_back() };
                    if !give(entry, keys_only) {
                        break;
                    }
                }
            }
        }
    }
}

/// What a keyspace holds.
type Contents = BTreeMap<Vec<u8>, Held>;

/// A value: a set of elements, of which some expire.
#[derive(Clone, Debug)]
struct Held {
    /// How it is written, for as long as nothing changes.
    bytes: Rc<[u8]>,
    elements: Vec<(V, bool)>,
}

impl Held {
    fn new(elements: Vec<(V, bool)>) -> Held {
        let set = elements.iter().map(|(value, _)| value.bytes()).collect();
        Held { bytes: set_of(&set).into(), elements }
    }
}

fn change(contents: &mut Contents, key: K, effect: Effect) {
    let bytes = key.bytes();
    match effect {
        Effect::Put(value, expires) => {
            contents.insert(bytes, Held::new(vec![(value, expires)]));
        }
        Effect::Merge(value, expires) => {
            let before = contents.remove(&bytes).map_or(Vec::new(), |held| held.elements);
            let elements = before.into_iter().chain([(value, expires)]).collect();
            contents.insert(bytes, Held::new(elements));
        }
        Effect::Delete => drop(contents.remove(&bytes)),
        Effect::DeleteTo(end) => {
            let end = end.bytes();
            contents.retain(|key, _| *key < bytes || *key >= end);
        }
    }
}

fn after_an_age(contents: &Contents) -> Contents {
    let mut after = contents.clone();
    for held in after.values_mut().filter(|held| held.elements.iter().any(|e| e.1)) {
        *held = Held::new(held.elements.iter().copied().filter(|e| !e.1).collect());
    }
    after.retain(|_, held| !held.elements.is_empty());
    after
}

/// The right answer to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    pub hash: u64,
}

/// The keyspaces that there are, each with a number that tells it from others that had its name.
type Spaces = BTreeMap<u8, (usize, Rc<Contents>)>;

/// The right answers. `None`: the operation makes no sense where it is, as on a keyspace that does
/// not exist.
pub fn answers(ops: &[Op]) -> Vec<Option<Expected>> {
    let mut spaces = Spaces::from([(0, (0, Rc::default()))]);
    let mut snapshots = BTreeMap::<u8, Spaces>::new();
    let mut answers = Vec::with_capacity(ops.len());
    for (at, op) in ops.iter().enumerate() {
        let hash = answer(at, op, &mut spaces, &mut snapshots);
        answers.push(hash.map(|hash| Expected { hash }));
    }
    answers
}

fn answer(
    at: usize,
    op: &Op,
    spaces: &mut Spaces,
    snapshots: &mut BTreeMap<u8, Spaces>,
) -> Option<u64> {
    match op {
        Op::Change(space, key, effect) => {
            let (_, contents) = spaces.get_mut(space)?;
            change(Rc::make_mut(contents), *key, *effect);
        }
        Op::Batch(changes, _) => {
            for (space, key, effect) in changes {
                if let Some((_, contents)) = spaces.get_mut(space) {
                    change(Rc::make_mut(contents), *key, *effect);
                }
            }
        }
        Op::Load(space, puts) => {
            let (_, contents) = spaces.get_mut(space)?;
            for (key, value, expires) in puts {
                change(Rc::make_mut(contents), *key, Effect::Put(*value, *expires));
            }
        }
        Op::Pass => {
            for (_, contents) in spaces.values_mut() {
                *contents = Rc::new(after_an_age(contents));
            }
        }
        Op::Read(None, space, read) | Op::ReadCopy(_, space, read) => {
            return Some(read.ask_model(&spaces.get(space)?.1));
        }
        Op::Read(Some(slot), space, read) => {
            let (number, _) = spaces.get(space)?;
            let (then, contents) = snapshots.get(slot)?.get(space)?;
            return (then == number).then(|| read.ask_model(contents));
        }
        Op::Take(slot) => drop(snapshots.insert(*slot, spaces.clone())),
        Op::LetGo(slot) => drop(snapshots.remove(slot)),
        Op::Create(space) => {
            spaces.entry(*space).or_insert((at, Rc::default()));
        }
        Op::Drop(space) => drop(spaces.remove(space)?),
        Op::Clear(space) => spaces.get_mut(space)?.1 = Rc::default(),
        Op::Compact(space, ..) => {
            spaces.get(space)?;
        }
        Op::Close | Op::Kill | Op::Crash => snapshots.clear(),
        Op::Flush | Op::Idle | Op::Sync => {}
    }
    Some(0)
}
