//! Writers whose every operation follows from a seed and a number, and models of what they wrote.
//!
//! Each writer owns the keys that begin with its number, in the default keyspace and in a shared
//! one, and a keyspace of its own that it clears, drops and creates. So whatever it reads of its own
//! is known exactly, whatever the others do. Operation `n` of a writer changes its [`Model`] in a
//! way that everybody can work out who has the model before it: the process that does it, and
//! the one that hears it was acknowledged. A value says which operation wrote it, and which ones merged into
//! it since.

use crate::process::Dice;
use ashlardb::merge::Append;
use ashlardb::{
    Builder, Compaction, Compression, DEFAULT_KEYSPACE, Db, Durability, Error, ErrorKind,
    IterOptions, Keyspace, KeyspaceOptions, RangeIter, Snapshot, TransactionOptions, Value,
    WriteBatch,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// The keyspace that all writers share, besides the default one.
pub const SHARED: &str = "shared";
/// Each batch sets this key in both shared keyspaces, to the same operation.
const PAIR: u32 = 0;

/// Set in the number of an operation that merged.
const MERGED: u64 = 1 << 63;
/// So many operations merge into a key before it is put anew.
const MOST_MERGED: usize = 40;
/// A time that does not come, and one that has passed, in milliseconds since 1970.
const NEVER_MS: u64 = 1 << 60;
const LONG_AGO_MS: u64 = 0;

/// Keys, and the operations that wrote them: one that put it, if any did, and those that merged since.
pub type Map = BTreeMap<u32, Vec<u64>>;

/// What one writer's keys are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    pub default: Map,
    pub shared: Map,
    pub own: Option<Map>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Default,
    Shared,
    Own,
}

/// What is done with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Put,
    /// A put that expires long after the test.
    PutForATime,
    /// A put that has expired when it is written: a deletion.
    PutTooLate,
    Merge,
    Delete,
}

#[derive(Clone, Debug)]
pub enum Op {
    Write(Place, u32, How),
    DeleteRange(Place, u32, u32),
    Batch(Vec<(Place, u32, How)>),
    /// The same in a transaction, which may be exclusive.
    Transact(Vec<(Place, u32, How)>, bool),
    /// Puts from this key on, so many, each so far from the one before: sorted, past the log.
    Load(Place, u32, u32, u32),
    Clear,
    Drop,
    Create,
    Flush,
    Sync,
    Compact(Place, u32, u32),
}

/// One writer.
#[derive(Clone, Debug)]
pub struct Script {
    pub seed: u64,
    pub writer: u64,
    /// How many keys it has in each keyspace.
    pub keys: u32,
    /// The longest value, but for a few.
    pub value_len: u64,
    /// One in so many writes is to be durable before it is acknowledged.
    pub sync_in: u64,
}

impl Model {
    fn map(&mut self, place: Place) -> Option<&mut Map> {
        match place {
            Place::Default => Some(&mut self.default),
            Place::Shared => Some(&mut self.shared),
            Place::Own => self.own.as_mut(),
        }
    }

    /// Whether little enough was merged into a key since it was put.
    fn may_merge(&self, place: Place, key: u32) -> bool {
        let map = match place {
            Place::Default => Some(&self.default),
            Place::Shared => Some(&self.shared),
            Place::Own => self.own.as_ref(),
        };
        map.and_then(|map| map.get(&key)).is_none_or(|history| history.len() < MOST_MERGED)
    }

    /// What operation `n` changes.
    pub fn apply(&mut self, n: u64, op: &Op) {
        let mut change = |place, key, how| {
            let Some(map) = self.map(place) else { return };
            match how {
                How::Put | How::PutForATime => drop(map.insert(key, vec![n])),
                How::Merge => map.entry(key).or_default().push(n | MERGED),
                How::Delete | How::PutTooLate => drop(map.remove(&key)),
            }
        };
        match op {
            Op::Write(place, key, how) => change(*place, *key, *how),
            Op::Batch(parts) | Op::Transact(parts, _) => {
                for (place, key, how) in parts {
                    change(*place, *key, *how);
                }
            }
            Op::DeleteRange(place, from, to) => {
                (*from..*to).for_each(|key| change(*place, key, How::Delete));
            }
            Op::Load(place, first, count, step) => {
                (0..*count).for_each(|i| change(*place, first + i * step, How::Put));
            }
            Op::Clear | Op::Create => self.own = Some(Map::new()),
            Op::Drop => self.own = None,
            Op::Flush | Op::Sync | Op::Compact(..) => {}
        }
    }
}

impl Script {
    /// The name of the keyspace that only this writer uses.
    pub fn own_name(&self) -> String {
        format!("own-{}", self.writer)
    }

    /// Operation `n`, and whether it is to be durable before it is acknowledged. `model` is what was
    /// there before.
    pub fn op(&self, n: u64, model: &Model) -> (Op, Durability) {
        let dice = Dice::of(&[self.seed, self.writer, n]);
        let durability =
            if dice.one_in(self.sync_in) { Durability::Sync } else { Durability::Buffered };
        let place = || match dice.below(5) {
            0 if model.own.is_some() => Place::Own,
            1 | 2 => Place::Shared,
            _ => Place::Default,
        };
        let key = || 1 + dice.below(u64::from(self.keys) - 1) as u32;
        // In one write no key twice, so that what is merged into is what was there.
        let parts = || {
            let mut parts: Vec<(Place, u32, How)> = Vec::new();
            for _ in 0..dice.below(8) {
                let (place, key) = (place(), key());
                if !parts.iter().any(|part| (part.0, part.1) == (place, key)) {
                    let how = match dice.below(8) {
                        0 | 1 => How::Delete,
                        2 | 3 if model.may_merge(place, key) => How::Merge,
                        4 => How::PutForATime,
                        _ => How::Put,
                    };
                    parts.push((place, key, how));
                }
            }
            parts.push((Place::Default, PAIR, How::Put));
            parts.push((Place::Shared, PAIR, How::Put));
            parts
        };
        let op = match dice.below(2000) {
            0 => Op::Compact(place(), key(), key()),
            1..5 => Op::Flush,
            5..10 => Op::Sync,
            10..14 if model.own.is_some() => Op::Clear,
            14..17 if model.own.is_some() => Op::Drop,
            10..400 if model.own.is_none() => Op::Create,
            17..23 => {
                let (first, step) = (key(), 1 + dice.below(3) as u32);
                let room = (self.keys - first).div_ceil(step);
                Op::Load(place(), first, 1 + dice.below(u64::from(room)) as u32, step)
            }
            23..35 => {
                let from = key();
                Op::DeleteRange(place(), from, from + 1 + dice.below(30) as u32)
            }
            35..550 => Op::Batch(parts()),
            550..700 => Op::Transact(parts(), dice.one_in(4)),
            700..930 => Op::Write(place(), key(), How::Delete),
            930..1000 => Op::Write(place(), key(), How::PutTooLate),
            1000..1100 => Op::Write(place(), key(), How::PutForATime),
            1100..1400 => {
                let (place, key) = (place(), key());
                let how = if model.may_merge(place, key) { How::Merge } else { How::Put };
                Op::Write(place, key, how)
            }
            _ => Op::Write(place(), key(), How::Put),
        };
        (op, durability)
    }

    /// What all keys of the writer begin with.
    pub fn prefix(&self) -> Vec<u8> {
        format!("{:02}/", self.writer).into_bytes()
    }

    pub fn key(&self, key: u32) -> Vec<u8> {
        let mut bytes = self.prefix();
        bytes.extend(format!("{key:06}").bytes());
        // Some are long, so that not all fit their blocks alike.
        let long = if key % 97 == 1 { 700 } else { key as usize % 13 };
        bytes.extend(std::iter::repeat_n(b'k', long));
        bytes
    }

    fn parse_key(&self, bytes: &[u8]) -> Option<u32> {
        let digits = bytes.strip_prefix(&self.prefix()[..])?.get(..6)?;
        let key = std::str::from_utf8(digits).ok()?.parse().ok()?;
        (self.key(key) == bytes).then_some(key)
    }

    /// What operation `n` sets a key to.
    pub fn value(&self, key: u32, n: u64) -> Vec<u8> {
        let dice = Dice::of(&[self.seed, self.writer, n, u64::from(key)]);
        let len = if dice.one_in(100) { self.value_len * 20 } else { self.value_len };
        let len = dice.below(len.max(1)) as usize;
        let mut bytes = n.to_be_bytes().to_vec();
        // Half of it compresses well.
        let salt = dice.next();
        bytes.extend((0..len).map(|i| if i % 2 == 0 { 7 } else { (salt >> (i % 57)) as u8 }));
        bytes
    }

    /// What these operations made of a key.
    pub fn whole(&self, key: u32, history: &[u64]) -> Vec<u8> {
        let part = |n: &u64| match n & MERGED {
            0 => self.value(key, *n),
            _ => n.to_be_bytes().to_vec(),
        };
        history.iter().flat_map(part).collect()
    }

    fn parse_whole(&self, key: u32, bytes: &[u8]) -> Option<Vec<u64>> {
        let n = u64::from_be_bytes(*bytes.first_chunk()?);
        let (mut history, operands) = match n & MERGED {
            0 => (vec![n], bytes.strip_prefix(&self.value(key, n)[..])?),
            _ => (Vec::new(), bytes),
        };
        for operand in operands.chunks(8) {
            history.push(u64::from_be_bytes(operand.try_into().ok()?));
        }
        (self.whole(key, &history) == bytes).then_some(history)
    }
}

/// A keyspace of the writers.
pub fn space(db: &Db, name: &str) -> ashlardb::Result<Keyspace> {
    db.keyspace_with(name, &KeyspaceOptions::new().merge_operator(Append))
}

/// An open database, as one writer uses it.
pub struct Hands {
    pub db: Db,
    pub default: Keyspace,
    pub shared: Keyspace,
    pub own: Option<Keyspace>,
    /// What the database was opened with.
    pub durability: Durability,
}

impl Hands {
    /// Takes hold of what is there, and creates what all writers need.
    pub fn new(db: &Db, script: &Script, durability: Durability) -> ashlardb::Result<Hands> {
        let shared = space(db, SHARED)?;
        let name = script.own_name();
        let own = db.keyspaces().contains(&name).then(|| space(db, &name)).transpose()?;
        let default = db.keyspace(DEFAULT_KEYSPACE)?;
        Ok(Hands { db: db.clone(), default, shared, own, durability })
    }

    /// Does operation `n`.
    pub fn perform(
        &mut self,
        script: &Script,
        n: u64,
        op: &Op,
        durability: Durability,
    ) -> ashlardb::Result<()> {
        match op {
            Op::Write(Place::Default, key, How::Put) if durability == self.durability => {
                self.db.put(script.key(*key), script.value(*key, n))
            }
            Op::Write(Place::Default, key, How::Merge) if durability == self.durability => {
                self.db.merge(script.key(*key), script.whole(*key, &[n | MERGED]))
            }
            Op::Write(Place::Shared, key, How::Delete) if durability == self.durability => {
                self.shared.delete(script.key(*key))
            }
            Op::Write(place, key, how) => {
                self.write(script, n, &[(*place, *key, *how)], durability)
            }
            Op::Batch(parts) => self.write(script, n, parts, durability),
            Op::DeleteRange(place, from, to) => {
                let mut batch = WriteBatch::new();
                if let Some(space) = self.space(*place) {
                    batch.delete_range_in(space, script.key(*from)..script.key(*to));
                }
                self.db.write_with(batch, durability)
            }
            Op::Transact(parts, exclusive) => {
                let options =
                    TransactionOptions::new().durability(durability).exclusive(*exclusive);
                self.db.transact_with(&options, |tx| {
                    for (place, key, how) in parts {
                        let (bytes, value) = (script.key(*key), script.value(*key, n));
                        let Some(space) = self.space(*place) else { continue };
                        match how {
                            How::Put => tx.put_in(space, bytes, value)?,
                            How::PutTooLate => unreachable!("transactions have none"),
                            How::PutForATime => {
                                tx.put_in_with_ttl(
                                    space,
                                    bytes,
                                    value,
                                    Duration::from_secs(1 << 40),
                                )?;
                            }
                            How::Merge => {
                                let operand = script.whole(*key, &[n | MERGED]);
                                let before = tx.get_in(space, &bytes)?;
                                tx.merge_in(space, &bytes, &operand)?;
                                let after = tx.get_in(space, &bytes)?;
                                let wanted =
                                    [before.as_deref().unwrap_or_default(), &operand].concat();
                                assert!(after.as_deref() == Some(&wanted[..]), "its own write");
                            }
                            How::Delete => tx.delete_in(space, bytes)?,
                        }
                    }
                    Ok(())
                })
            }
            Op::Load(place, first, count, step) => {
                let puts = (0..*count).map(|i| first + i * step);
                let puts = puts.map(|key| (script.key(key), script.value(key, n)));
                match (place, &self.own) {
                    (Place::Default, _) => self.db.bulk_load(puts)?,
                    (Place::Shared, _) => self.shared.bulk_load(puts)?,
                    (Place::Own, Some(own)) => own.bulk_load(puts)?,
                    (Place::Own, None) => 0,
                };
                Ok(())
            }
            Op::Clear => self.own.as_ref().map_or(Ok(()), Keyspace::clear),
            Op::Drop => {
                self.db.drop_keyspace(&script.own_name())?;
                self.own = None;
                Ok(())
            }
            Op::Create => {
                self.own = Some(space(&self.db, &script.own_name())?);
                Ok(())
            }
            Op::Flush => self.db.flush(),
            Op::Sync => self.db.sync(),
            Op::Compact(place, from, to) => {
                let range = script.key(*from.min(to))..script.key(*from.max(to));
                match (place, &self.own) {
                    (Place::Own, Some(own)) => own.compact_range(range),
                    (Place::Shared, _) => self.shared.compact_range(range),
                    _ => self.db.compact_range(range),
                }
            }
        }
    }

    fn space(&self, place: Place) -> Option<&Keyspace> {
        match place {
            Place::Default => Some(&self.default),
            Place::Shared => Some(&self.shared),
            Place::Own => self.own.as_ref(),
        }
    }

    fn write(
        &self,
        script: &Script,
        n: u64,
        parts: &[(Place, u32, How)],
        durability: Durability,
    ) -> ashlardb::Result<()> {
        let mut batch = WriteBatch::new();
        for (place, key, how) in parts {
            let (bytes, value) = (script.key(*key), script.value(*key, n));
            let Some(space) = self.space(*place) else { continue };
            match how {
                How::Put => batch.put_in(space, bytes, value),
                How::PutForATime => batch.put_in_until(space, bytes, value, NEVER_MS),
                How::PutTooLate => batch.put_in_until(space, bytes, value, LONG_AGO_MS),
                How::Merge => batch.merge_in(space, bytes, script.whole(*key, &[n | MERGED])),
                How::Delete => batch.delete_in(space, bytes),
            };
        }
        self.db.write_with(batch, durability)
    }
}

/// What can be read from: a database, a keyspace, a snapshot.
pub trait Source {
    fn read(&self, key: &[u8]) -> ashlardb::Result<Option<Value>>;
    fn read_many(&self, keys: &[Vec<u8>]) -> ashlardb::Result<Vec<Option<Value>>>;
    fn range(&self, from: Vec<u8>, to: Vec<u8>, options: IterOptions) -> RangeIter;
}

macro_rules! source {
    ($($which:ty),*) => {
        $(impl Source for $which {
            fn read(&self, key: &[u8]) -> ashlardb::Result<Option<Value>> {
                self.get(key)
            }
            fn read_many(&self, keys: &[Vec<u8>]) -> ashlardb::Result<Vec<Option<Value>>> {
                self.multi_get(keys)
            }
            fn range(&self, from: Vec<u8>, to: Vec<u8>, options: IterOptions) -> RangeIter {
                self.range_with(from..to, options)
            }
        })*
    };
}

source!(Db, Keyspace, Snapshot);

/// What reading gave that is not a right answer.
#[derive(Debug, Default)]
pub struct Judge {
    /// Whether an error that says that bytes are damaged is as good as a right answer.
    pub damage_allowed: bool,
    /// How many of those there were.
    pub errors: u64,
}

impl Judge {
    /// Whether the error will do instead of an answer.
    fn takes(&mut self, error: &Error, what: &str) -> Result<(), String> {
        self.errors += 1;
        if self.damage_allowed
            && matches!(error.kind(), ErrorKind::Corruption | ErrorKind::Unsupported)
        {
            return Ok(());
        }
        Err(format!("{what} gave {error:?}"))
    }

    /// Reads everything of a writer in one keyspace in every way.
    pub fn read_all(
        &mut self,
        source: &dyn Source,
        script: &Script,
        map: &Map,
    ) -> Result<(), String> {
        self.read_part(source, script, map, 0, script.keys + 3)?;
        let keys: Vec<u32> = (0..script.keys + 3).collect();
        for key in &keys {
            match source.read(&script.key(*key)) {
                Ok(found) => expect(script, map, *key, found.as_deref(), "get")?,
                Err(error) => self.takes(&error, &format!("get of key {key}"))?,
            }
        }
        let bytes: Vec<_> = keys.iter().map(|key| script.key(*key)).collect();
        match source.read_many(&bytes) {
            Ok(found) => {
                for (key, found) in keys.iter().zip(&found) {
                    expect(script, map, *key, found.as_deref(), "multi_get")?;
                }
                if found.len() != keys.len() {
                    return Err(format!("multi_get of {} gave {}", keys.len(), found.len()));
                }
            }
            Err(error) => self.takes(&error, "multi_get")?,
        }
        Ok(())
    }

    /// Walks the keys from `from` up to, but without, `to`, both ways.
    pub fn read_part(
        &mut self,
        source: &dyn Source,
        script: &Script,
        map: &Map,
        from: u32,
        to: u32,
    ) -> Result<(), String> {
        let range = || source.range(script.key(from), script.key(to), IterOptions::default());
        let wanted: Vec<_> = map.range(from..to.max(from)).collect();
        self.walk(script, range(), wanted.iter().copied(), "a range")?;
        self.walk(script, range().rev(), wanted.into_iter().rev(), "a range from its end")
    }

    fn walk<'a>(
        &mut self,
        script: &Script,
        mut found: impl Iterator<Item = ashlardb::Result<(ashlardb::Key, Value)>>,
        mut wanted: impl Iterator<Item = (&'a u32, &'a Vec<u64>)>,
        what: &str,
    ) -> Result<(), String> {
        loop {
            match (found.next(), wanted.next()) {
                (None, None) => return Ok(()),
                (Some(Err(error)), _) => {
                    self.takes(&error, what)?;
                    let rest = found.next();
                    return rest.map_or(Ok(()), |next| {
                        Err(format!("{what} goes on with {next:?} after {error:?}"))
                    });
                }
                (Some(Ok((k, v))), Some((key, n))) => {
                    if k[..] != script.key(*key)[..] || v[..] != script.whole(*key, n)[..] {
                        return Err(format!(
                            "{what} gave {} = {}, not key {key} of operations {n:?}",
                            short(&k),
                            short(&v)
                        ));
                    }
                }
                (Some(Ok((k, _))), None) => {
                    return Err(format!("{what} gave {} behind the end", short(&k)));
                }
                (None, Some((key, n))) => {
                    return Err(format!("{what} ended in front of {key}, which {n:?} wrote"));
                }
            }
        }
    }

    /// Reads everything of a writer. What does not exist must not exist.
    pub fn read_model(&mut self, db: &Db, script: &Script, model: &Model) -> Result<(), String> {
        let writer = script.writer;
        let at = |place: &str, what: String| format!("writer {writer}, {place}: {what}");
        self.read_all(db, script, &model.default).map_err(|what| at("default", what))?;
        let names = db.keyspaces();
        let own_name = script.own_name();
        for (name, map) in [(SHARED, Some(&model.shared)), (&own_name, model.own.as_ref())] {
            match (names.iter().any(|other| other == name), map) {
                (true, Some(map)) => match space(db, name) {
                    Ok(keyspace) => {
                        self.read_all(&keyspace, script, map).map_err(|what| at(name, what))?;
                    }
                    Err(error) => self.takes(&error, "a keyspace")?,
                },
                (true, None) => return Err(at(name, "it exists, although it was dropped".into())),
                (false, Some(map)) if !map.is_empty() || name != SHARED => {
                    return Err(at(name, "it does not exist".into()));
                }
                (false, _) => {}
            }
        }
        Ok(())
    }
}

/// The beginning of some bytes.
fn short(bytes: &[u8]) -> String {
    format!("{} ({} bytes)", bytes[..bytes.len().min(20)].escape_ascii(), bytes.len())
}

fn expect(
    script: &Script,
    map: &Map,
    key: u32,
    found: Option<&[u8]>,
    what: &str,
) -> Result<(), String> {
    let wanted = map.get(&key).map(|history| script.whole(key, history));
    if found == wanted.as_deref() {
        return Ok(());
    }
    let show = |bytes: Option<&[u8]>| {
        bytes.map_or("nothing".to_owned(), |v| match script.parse_whole(key, v) {
            Some(history) => format!("what operations {history:?} wrote"),
            None => short(v),
        })
    };
    Err(format!("{what} of key {key} gave {}, not {}", show(found), show(wanted.as_deref())))
}

/// What a writer's keys are, as the database says.
pub fn load(db: &Db, script: &Script) -> Result<Model, String> {
    let names = db.keyspaces();
    let map = |source: &dyn Source| -> Result<Map, String> {
        let mut map = Map::new();
        let mut end = script.prefix();
        end.push(0xFF);
        for entry in source.range(script.prefix(), end, IterOptions::default()) {
            let (k, v) = entry.map_err(|error| format!("a range gave {error:?}"))?;
            let wrong = || format!("{} = {} was never written", short(&k), short(&v));
            let key = script.parse_key(&k).ok_or_else(wrong)?;
            map.insert(key, script.parse_whole(key, &v).ok_or_else(wrong)?);
        }
        Ok(map)
    };
    let keyspace = |name: &str| -> Result<Option<Map>, String> {
        if !names.iter().any(|other| other == name) {
            return Ok(None);
        }
        let keyspace = space(db, name).map_err(|error| format!("{name:?} gave {error:?}"))?;
        map(&keyspace).map(Some)
    };
    let shared = keyspace(SHARED)?.unwrap_or_default();
    Ok(Model { default: map(db)?, shared, own: keyspace(&script.own_name())? })
}

/// Whether batches are whole: the pair of each writer, as one snapshot sees it.
pub fn check_pairs(db: &Db, shared: &Keyspace, scripts: &[Script]) -> Result<(), String> {
    let snapshot = db.snapshot();
    let other = snapshot.of(shared).map_err(|error| format!("a snapshot gave {error:?}"))?;
    for script in scripts {
        let get = |from: &Snapshot| {
            from.get(script.key(PAIR)).map_err(|error| format!("a snapshot gave {error:?}"))
        };
        let (one, two) = (get(&snapshot)?, get(&other)?);
        let n = |value: &Option<Value>| value.as_ref().and_then(|v| script.parse_whole(PAIR, v));
        if n(&one) != n(&two) {
            return Err(format!(
                "writer {}: a snapshot sees half of a batch: {:?} and {:?}",
                script.writer,
                n(&one),
                n(&two)
            ));
        }
    }
    Ok(())
}

/// Options by chance, small enough that flushes, compactions and new logs come often.
pub fn options(dice: &Dice, builder: Builder, keep_everything: bool) -> Builder {
    let mut builder = builder
        .merge_operator(Append)
        .write_buffer_bytes(dice.pick(&[64 << 10, 64 << 10, 128 << 10, 512 << 10]))
        .write_buffers(2 + dice.below(3) as usize)
        .segment_bytes(dice.pick(&[64 << 10, 128 << 10, 1 << 20]))
        .level1_bytes(dice.pick(&[64 << 10, 256 << 10, 4 << 20]))
        .level0_runs(1 + dice.below(4) as usize)
        .cache_bytes(dice.pick(&[0, 256 << 10, 4 << 20]))
        .max_open_files(dice.pick(&[8, 32, 512]))
        .key_map_bytes(dice.pick(&[0, 1 << 20, 1 << 20, 64 << 20]));
    builder = match dice.below(3) {
        0 if cfg!(feature = "lz4") => builder.compression(Compression::Lz4),
        1 if cfg!(feature = "zstd") => builder.compression(Compression::Zstd(1)),
        _ => builder.compression(Compression::None),
    };
    builder = match dice.below(8) {
        0 | 1 => builder.compaction(Compaction::Leveled),
        2 => builder.compaction(Compaction::Tiered),
        // Without a limit, so that it loses nothing.
        3 if keep_everything => {
            builder.compaction(Compaction::Fifo { max_bytes: 1 << 40, max_age: None })
        }
        _ => builder,
    };
    if dice.one_in(4) {
        builder = builder.hash_runs(false);
    }
    if dice.one_in(4) {
        builder = builder.bloom_bits_per_key(10);
    }
    if dice.one_in(3) {
        builder = builder.separate_values_above(dice.pick(&[20, 200, 2000]));
    }
    builder
}
