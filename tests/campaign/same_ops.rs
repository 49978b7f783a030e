//! The operations of the row `same`, and what a sorted map answers to them.

use crate::same::Reads;
use crate::workload::Rng;
use ashlardb::{DEFAULT_KEYSPACE, Result};
use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::hash::{DefaultHasher, Hasher};
use std::ops::Bound;
use std::rc::Rc;

pub const NAMES: [&str; 3] = [DEFAULT_KEYSPACE, "second", "third"];

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
    Put(u8, K, V),
    Delete(u8, K),
    Batch(Vec<(u8, K, Option<V>)>, bool),
    /// Reads a keyspace, or what a snapshot has of it.
    Read(Option<u8>, u8, Read),
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
    let mut id = 0;
    let mut value = || {
        id += 1;
        V(id)
    };
    let key = |rng: &Rng| {
        // Some keys are changed over and over.
        let below = if rng.one_in(3) { 60 } else { KEYS };
        K((rng.below(below) * 7 % KEYS) as u16)
    };
    let space = |rng: &Rng| if rng.one_in(3) { 1 + rng.below(2) as u8 } else { 0 };
    let create = [Op::Create(1), Op::Create(2)];
    let rest = (create.len()..count).map(|_| match rng.below(1000) {
        0..300 => Op::Put(space(&rng), key(&rng), value()),
        300..390 => Op::Delete(space(&rng), key(&rng)),
        390..470 => {
            let changes = (0..1 + rng.below(40))
                .map(|_| (space(&rng), key(&rng), (!rng.one_in(4)).then(&mut value)))
                .collect();
            Op::Batch(changes, rng.one_in(4))
        }
        470..880 => Op::Read(None, space(&rng), read(&rng, &key)),
        880..940 => Op::Read(Some(rng.below(3) as u8), space(&rng), read(&rng, &key)),
        940..950 => Op::Take(rng.below(3) as u8),
        950..956 => Op::LetGo(rng.below(3) as u8),
        956..962 => Op::Create(1 + rng.below(2) as u8),
        962 if rng.one_in(2) => Op::Drop(1 + rng.below(2) as u8),
        963 if rng.one_in(3) => Op::Clear(space(&rng)),
        962..977 => Op::Flush,
        977..980 => Op::Idle,
        980..991 => Op::Sync,
        991..994 => Op::Compact(space(&rng), key(&rng), key(&rng)),
        994..996 => Op::Close,
        996..998 => Op::Kill,
        _ => Op::Crash,
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
        let mut give = |entry: Option<(&Vec<u8>, &Rc<[u8]>)>, keys_only: bool| {
            if let Some((key, value)) = entry {
                note(key, Some(if keys_only { b"" } else { value }));
            }
            entry.is_some()
        };
        match self {
            Read::Get(key) => {
                let key = key.bytes();
                note(&key, model.get(&key).map(|value| &value[..]));
            }
            Read::MultiGet(keys) => {
                for key in keys {
                    let key = key.bytes();
                    note(&key, model.get(&key).map(|value| &value[..]));
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
type Contents = BTreeMap<Vec<u8>, Rc<[u8]>>;

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
        Op::Put(space, key, value) => {
            let (_, contents) = spaces.get_mut(space)?;
            Rc::make_mut(contents).insert(key.bytes(), value.bytes().into());
        }
        Op::Delete(space, key) => {
            let (_, contents) = spaces.get_mut(space)?;
            Rc::make_mut(contents).remove(&key.bytes());
        }
        Op::Batch(changes, _) => {
            for (space, key, value) in changes {
                let Some((_, contents)) = spaces.get_mut(space) else { continue };
                match value {
                    Some(value) => {
                        Rc::make_mut(contents).insert(key.bytes(), value.bytes().into());
                    }
                    None => drop(Rc::make_mut(contents).remove(&key.bytes())),
                }
            }
        }
        Op::Read(None, space, read) => return Some(read.ask_model(&spaces.get(space)?.1)),
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
