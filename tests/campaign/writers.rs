//! Writers whose every operation follows from a seed and a number, and models of what they wrote.
//!
//! Each writer owns the keys that begin with its number, in the default keyspace and in a shared
//! one, and a keyspace of its own that it clears, drops and creates. So whatever it reads of its own
//! is known exactly, whatever the others do. Operation `n` of a writer changes its [`Model`] in a
//! way that everybody can work out who has the model before it: the process that does it, and
//! the one that hears it was acknowledged. A value says which operation wrote it.

use crate::process::Dice;
use ashlardb::{
    Builder, Compaction, Compression, Db, Durability, Error, ErrorKind, IterOptions, Keyspace,
    RangeIter, Snapshot, Value, WriteBatch,
};
use std::collections::BTreeMap;

/// The keyspace that all writers share, besides the default one.
pub const SHARED: &str = "shared";
/// Each batch sets this key in both shared keyspaces, to the same operation.
const PAIR: u32 = 0;

/// Keys, and the operations that wrote them.
pub type Map = BTreeMap<u32, u64>;

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

#[derive(Clone, Debug)]
pub enum Op {
    Put(Place, u32),
    Delete(Place, u32),
    /// Puts, and deletions where the flag is not set.
    Batch(Vec<(Place, u32, bool)>),
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

    /// What operation `n` changes.
    pub fn apply(&mut self, n: u64, op: &Op) {
        let mut change = |place, key, is_put| {
            if let Some(map) = self.map(place) {
                if is_put {
                    map.insert(key, n)
                } else {
                    map.remove(&key)
                };
            }
        };
        match op {
            Op::Put(place, key) => change(*place, *key, true),
            Op::Delete(place, key) => change(*place, *key, false),
            Op::Batch(parts) => {
                for (place, key, is_put) in parts {
                    change(*place, *key, *is_put);
                }
            }
            Op::Load(place, first, count, step) => {
                (0..*count).for_each(|i| change(*place, first + i * step, true));
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
            23..700 => {
                let mut parts: Vec<_> =
                    (0..dice.below(8)).map(|_| (place(), key(), !dice.one_in(4))).collect();
                parts.push((Place::Default, PAIR, true));
                parts.push((Place::Shared, PAIR, true));
                Op::Batch(parts)
            }
            700..1000 => Op::Delete(place(), key()),
            _ => Op::Put(place(), key()),
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

    fn parse_value(&self, key: u32, bytes: &[u8]) -> Option<u64> {
        let n = u64::from_be_bytes(*bytes.first_chunk()?);
        (self.value(key, n) == bytes).then_some(n)
    }
}

/// An open database, as one writer uses it.
pub struct Hands {
    pub db: Db,
    pub shared: Keyspace,
    pub own: Option<Keyspace>,
    /// What the database was opened with.
    pub durability: Durability,
}

impl Hands {
    /// Takes hold of what is there, and creates what all writers need.
    pub fn new(db: &Db, script: &Script, durability: Durability) -> ashlardb::Result<Hands> {
        let shared = db.keyspace(SHARED)?;
        let name = script.own_name();
        let own = db.keyspaces().contains(&name).then(|| db.keyspace(&name)).transpose()?;
        Ok(Hands { db: db.clone(), shared, own, durability })
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
            Op::Put(Place::Default, key) if durability == self.durability => {
                self.db.put(script.key(*key), script.value(*key, n))
            }
            Op::Delete(Place::Shared, key) if durability == self.durability => {
                self.shared.delete(script.key(*key))
            }
            Op::Put(place, key) => self.write(script, n, &[(*place, *key, true)], durability),
            Op::Delete(place, key) => self.write(script, n, &[(*place, *key, false)], durability),
            Op::Batch(parts) => self.write(script, n, parts, durability),
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
                self.own = Some(self.db.keyspace(&script.own_name())?);
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

    fn write(
        &self,
        script: &Script,
        n: u64,
        parts: &[(Place, u32, bool)],
        durability: Durability,
    ) -> ashlardb::Result<()> {
        let mut batch = WriteBatch::new();
        for (place, key, is_put) in parts {
            let (bytes, value) = (script.key(*key), script.value(*key, n));
            match (place, &self.own, is_put) {
                (Place::Default, _, true) => batch.put(bytes, value),
                (Place::Default, _, false) => batch.delete(bytes),
                (Place::Shared, _, true) => batch.put_in(&self.shared, bytes, value),
                (Place::Shared, _, false) => batch.delete_in(&self.shared, bytes),
                (Place::Own, Some(own), true) => batch.put_in(own, bytes, value),
                (Place::Own, Some(own), false) => batch.delete_in(own, bytes),
                (Place::Own, None, _) => continue,
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
        let wanted: Vec<(u32, u64)> =
            map.range(from..to.max(from)).map(|(k, n)| (*k, *n)).collect();
        self.walk(script, range(), wanted.iter(), "a range")?;
        self.walk(script, range().rev(), wanted.iter().rev(), "a range from its end")
    }

    fn walk<'a>(
        &mut self,
        script: &Script,
        mut found: impl Iterator<Item = ashlardb::Result<(ashlardb::Key, Value)>>,
        mut wanted: impl Iterator<Item = &'a (u32, u64)>,
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
                    if k[..] != script.key(*key)[..] || v[..] != script.value(*key, *n)[..] {
                        return Err(format!(
                            "{what} gave {} = {}, not key {key} of operation {n}",
                            short(&k),
                            short(&v)
                        ));
                    }
                }
                (Some(Ok((k, _))), None) => {
                    return Err(format!("{what} gave {} behind the end", short(&k)));
                }
                (None, Some((key, n))) => {
                    return Err(format!("{what} ended in front of {key}, which {n} wrote"));
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
                (true, Some(map)) => match db.keyspace(name) {
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
    let wanted = map.get(&key).map(|n| script.value(key, *n));
    if found == wanted.as_deref() {
        return Ok(());
    }
    let show = |bytes: Option<&[u8]>| {
        bytes.map_or("nothing".to_owned(), |v| match script.parse_value(key, v) {
            Some(n) => format!("what operation {n} wrote"),
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
            map.insert(key, script.parse_value(key, &v).ok_or_else(wrong)?);
        }
        Ok(map)
    };
    let keyspace = |name: &str| -> Result<Option<Map>, String> {
        if !names.iter().any(|other| other == name) {
            return Ok(None);
        }
        let keyspace = db.keyspace(name).map_err(|error| format!("{name:?} gave {error:?}"))?;
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
        let n = |value: &Option<Value>| value.as_ref().and_then(|v| script.parse_value(PAIR, v));
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
