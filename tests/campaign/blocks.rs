//! Row 3: a damaged data block costs its own keys and nothing else.
//!
//! Every data block of a store is damaged in turn. The store opens; keys beside the block and ranges
//! that do not touch it are read; its keys, and only these, give an error that names file and block;
//! `verify` names it with its number and its keys; a repair saves everything else; a compaction that meets it fails once, and the
//! segment is left alone from then on.

use crate::author::{Author, Content, Dice, Knobs, Store, env_over, files_of, path_of, read_file};
use crate::driver::{Row, Size, Violation};
use crate::reading::{pairs_of, read_all, read_sound_part};
use ashlardb::vfs::{MemVfs, OpenMode, Vfs};
use ashlardb::{Background, Compression, DamagedPlace, Db, Error, Recovery, SegmentReader};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::Path;

pub const ROW: Row =
    Row { name: "blocks", counts: "damaged data blocks", ci: 1_000, release: 20_000, run };

/// One data block of one segment.
#[derive(Debug)]
struct Place {
    file: String,
    space: String,
    number: u32,
    offset: u64,
    len: u64,
    /// All keys that may be in it are above the first and not above the second.
    range: (Vec<u8>, Vec<u8>),
    /// Whether it is the first block: then the lower end belongs to it.
    is_first: bool,
    /// The keys in it that are there in the segment, and those whose newest version this is.
    keys: BTreeSet<Vec<u8>>,
    newest: BTreeSet<Vec<u8>>,
    /// Keys of the segment that are in other blocks.
    others: BTreeSet<Vec<u8>>,
}

impl Place {
    fn may_hold(&self, key: &[u8]) -> bool {
        let (low, high) = &self.range;
        key <= &high[..] && (key > &low[..] || self.is_first)
    }
}

fn make(seed: u64) -> Store {
    let dice = Dice::new(seed);
    let compression =
        [Compression::None, Compression::Lz4, Compression::Zstd(1)][(seed % 3) as usize];
    let hash_runs = !seed.is_multiple_of(4);
    let bloom_bits = if dice.once_in(2) { 10 } else { 0 };
    let mut author =
        Author::new(seed, Knobs { compression, bloom_bits, hash_runs, ..Knobs::default() });
    let other = author.create("other");
    let write = |author: &mut Author, keys: u64| {
        for _ in 0..keys {
            let space = if dice.once_in(5) { other } else { 0 };
            let key = format!("{:04}", dice.roll(400)).into_bytes();
            match dice.roll(12) {
                0 => author.delete(space, key),
                1 => author.put(space, key, dice.bytes(5_000)),
                _ => {
                    let len = dice.index(400);
                    author.put(space, key, dice.bytes(len));
                }
            }
        }
    };
    write(&mut author, 150);
    author.flush();
    author.compact();
    for _ in 0..1 + dice.roll(2) {
        write(&mut author, 60);
        author.flush();
    }
    write(&mut author, 20);
    if dice.once_in(2) { author.close() } else { author.kill() }
}

fn segments_of(store: &Store) -> Vec<(String, SegmentReader)> {
    let names = store.files().into_keys().filter(|name| name.ends_with(".seg"));
    let open = |name: &String| SegmentReader::open_in(&env_over(&store.vfs, 1), path_of(name));
    names.map(|name| (name.clone(), open(&name).expect("a sound segment opens"))).collect()
}

/// All data blocks of a store. Its segments are newer the higher their number, since one was
/// compacted and the others came later.
fn places_of(store: &Store, content: &Content) -> Vec<Place> {
    let segments = segments_of(store);
    let space_of = |reader: &SegmentReader| {
        let id = reader.properties().keyspace.map_or(0, |id| id.0);
        if id == 0 { "default" } else { "other" }.to_owned()
    };
    // Where the newest version of each key is.
    let mut homes: BTreeMap<(String, Vec<u8>), &str> = BTreeMap::new();
    for (name, reader) in &segments {
        for key in pairs_of(reader).into_keys() {
            homes.insert((space_of(reader), key), name);
        }
    }
    let mut places = Vec::new();
    for (name, reader) in &segments {
        let space = space_of(reader);
        let all: BTreeSet<Vec<u8>> = pairs_of(reader).into_keys().collect();
        let mut low = reader.properties().first_key.clone();
        for block in reader.blocks() {
            let block = block.expect("a sound block");
            let keys = all.range(block.first_key.to_vec()..=block.last_key.to_vec());
            let keys: BTreeSet<Vec<u8>> = keys.cloned().collect();
            let is_newest = |key: &&Vec<u8>| {
                let id = (space.clone(), (*key).clone());
                content[&space].contains_key(*key)
                    && homes.get(&id) == Some(&name.as_str())
                    && !store.in_memory.contains(&id)
            };
            places.push(Place {
                file: name.clone(),
                space: space.clone(),
                number: block.number,
                offset: block.offset,
                len: u64::from(block.pages) * 4096,
                range: (std::mem::replace(&mut low, block.separator.to_vec()), low.clone()),
                is_first: block.number == 0,
                newest: keys.iter().filter(is_newest).cloned().collect(),
                others: all.difference(&keys).cloned().collect(),
                keys,
            });
        }
    }
    places
}

fn run(seed: u64, _: Size) -> Result<u64, Violation> {
    let store = make(seed);
    let content = store.content();
    let dice = Dice::new(!seed);
    let places = places_of(&store, &content);
    for place in &places {
        let vfs = store.vfs.fork();
        let at = place.offset + dice.roll(place.len);
        let byte = read_file(&vfs, &place.file)[at as usize] ^ (1 << dice.roll(8));
        let file = vfs.open(&path_of(&place.file), OpenMode::ReadWrite).expect("it is there");
        file.write_all_at(&[byte], at).expect("it can be written");
        check(&store, &content, &vfs, place).map_err(|what| {
            let Place { file, space, number, .. } = place;
            format!("a bit flipped at byte {at} of {file}, in block {number} of {space:?}: {what}")
        })?;
    }
    if places.is_empty() { Err("the store has no blocks".into()) } else { Ok(places.len() as u64) }
}

fn check(store: &Store, content: &Content, vfs: &MemVfs, place: &Place) -> Result<(), String> {
    let open = || {
        let db = store.knobs.open(vfs, Recovery::Strict);
        db.map_err(|error| format!("open: {error}"))
    };
    let db = open()?;
    check_reads(store, content, &db, place)?;
    db.fill_key_map().map_err(|error| format!("filling the key map: {error}"))?;
    check_reads(store, content, &db, place)?;
    check_verify(&db, place)?;
    check_repair(store, content, vfs, place)?;
    check_compaction(store, content, &db, place)?;
    drop(db);
    check_reads(store, content, &open()?, place).map_err(|what| format!("opened again: {what}"))
}

fn is_blamed(error: &Error, place: &Place) -> Result<(), String> {
    match error {
        Error::Corruption { file, offset, .. }
            if *file == path_of(&place.file) && *offset == place.offset =>
        {
            Ok(())
        }
        other => Err(format!("the wrong error: {other}")),
    }
}

fn check_reads(store: &Store, content: &Content, db: &Db, place: &Place) -> Result<(), String> {
    let met = read_all(db, content)?;
    for error in &met.errors {
        is_blamed(error, place)?;
    }
    for (space, key) in &met.lost {
        // A filter may be wrong about a key of an older segment, which costs a look into the block.
        let is_here = if store.knobs.hash_runs { place.newest.contains(key) } else { true };
        if *space != place.space || !place.may_hold(key) || !is_here {
            return Err(format!("{:?} is beside the block, and lost", key.escape_ascii()));
        }
    }
    for key in &place.newest {
        if !met.lost.contains(&(place.space.clone(), key.clone())) {
            return Err(format!("{:?} was read from the block", key.escape_ascii()));
        }
    }
    let space = db.keyspace(&place.space).map_err(|error| error.to_string())?;
    let pairs = &content[&place.space];
    // A walk looks at the entry behind the last one that it gives, so it must end where that is in
    // another block.
    let low = place.keys.first().unwrap_or(&place.range.0);
    if let Some(before) = place.others.range(..low.clone()).next_back() {
        let part = pairs.range(..before.clone());
        read_sound_part(|| space.get_range::<&[u8]>(..&before[..]), part)?;
    }
    let high = Bound::Excluded(&place.range.1);
    if let Some(behind) = place.others.range::<Vec<u8>, _>((high, Bound::Unbounded)).next() {
        let bounds = (Bound::Excluded(behind), Bound::Unbounded);
        read_sound_part(|| space.get_range::<Vec<u8>>(bounds), pairs.range::<Vec<u8>, _>(bounds))?;
    }
    Ok(())
}

fn check_verify(db: &Db, place: &Place) -> Result<(), String> {
    let report = db.verify(&mut |_, _| {}).map_err(|error| format!("verify: {error}"))?;
    let [damage] = &report.damage[..] else {
        return Err(format!("verify reports {:?}", report.damage));
    };
    is_told(damage, place).map_err(|what| format!("verify: {what}"))
}

/// Whether a report tells of the block, and of its keys and no others.
fn is_told(damage: &DamagedPlace, place: &Place) -> Result<(), String> {
    if damage.file != path_of(&place.file)
        || damage.offset != place.offset
        || damage.block != Some(place.number)
        || damage.keyspace.as_ref() != Some(&place.space)
    {
        return Err(format!("it blames {damage:?}"));
    }
    let Some((low, high)) = &damage.key_range else {
        return Err("it does not say which keys are lost".into());
    };
    let is_covered = |key: &Vec<u8>| key <= high && (key > low || place.is_first && key == low);
    if let Some(key) = place.keys.iter().find(|key| !is_covered(key)) {
        return Err(format!("it does not report {:?} as lost", key.escape_ascii()));
    }
    if let Some(key) = place.others.iter().find(|key| is_covered(key)) {
        return Err(format!("it reports {:?} as lost", key.escape_ascii()));
    }
    Ok(())
}

/// A repair saves everything but the newest values of the block's keys.
fn check_repair(
    store: &Store,
    content: &Content,
    vfs: &MemVfs,
    place: &Place,
) -> Result<(), String> {
    let vfs = vfs.fork();
    let before = files_of(&vfs);
    let target = Path::new("/repaired");
    let report = store.knobs.builder(&vfs, 5).repair_into(target, &mut |_, _| {});
    let report = report.map_err(|error| format!("repair: {error}"))?;
    if files_of(&vfs) != before {
        return Err("repair changed the damaged database".into());
    }
    let [lost] = &report.lost[..] else {
        return Err(format!("repair reports {:?} as lost", report.lost));
    };
    is_told(&lost.place, place).map_err(|what| format!("repair: {what}"))?;
    let db = Db::builder(target).env(env_over(&vfs, 6)).create_if_missing(false);
    let db = db.ready_made_operators(true);
    let db = db.background(Background::Manual).open();
    let db = db.map_err(|error| format!("what was repaired does not open: {error}"))?;
    let whole = db.verify(&mut |_, _| {}).map_err(|error| format!("verify: {error}"))?;
    if !whole.is_sound() {
        return Err(format!("what was repaired is damaged: {:?}", whole.damage));
    }
    for (name, pairs) in content {
        let space = db.keyspace(name).map_err(|error| error.to_string())?;
        let is_lost = |key: &[u8]| *name == place.space && place.may_hold(key);
        for (key, value) in pairs {
            let found = space.get(key).map_err(|error| error.to_string())?;
            let is_saved = found.as_deref() == Some(&value[..]);
            if !(is_saved || is_lost(key) && place.newest.contains(key)) {
                return Err(format!("repair lost {:?} of {name}", key.escape_ascii()));
            }
        }
        for entry in space.get_range::<&[u8]>(..) {
            let (key, _) = entry.map_err(|error| error.to_string())?;
            // A removal may have been in the block.
            if !pairs.contains_key(&key[..]) && !is_lost(&key) {
                return Err(format!("repair brought {:?} of {name} back", key.escape_ascii()));
            }
        }
    }
    Ok(())
}

fn check_compaction(
    store: &Store,
    content: &Content,
    db: &Db,
    place: &Place,
) -> Result<(), String> {
    let space = db.keyspace(&place.space).map_err(|error| error.to_string())?;
    let outcome = space.compact_range::<&[u8]>(..);
    let quarantined = db.stats().quarantined;
    match &outcome {
        Ok(()) if quarantined.is_empty() => {}
        Ok(()) => return Err(format!("compaction succeeds, and puts aside {quarantined:?}")),
        Err(error) => {
            is_blamed(error, place)?;
            match &quarantined[..] {
                [one] => is_blamed(one, place)?,
                _ => return Err(format!("compaction fails, and puts aside {quarantined:?}")),
            }
        }
    }
    // It is not tried again, and nothing else is held up.
    if let Err(error) = db.wait_idle() {
        is_blamed(&error, place)?;
        db.wait_idle().map_err(|error| format!("it was tried again: {error}"))?;
    }
    let met = read_all(db, content).map_err(|what| format!("after a compaction: {what}"))?;
    for error in &met.errors {
        is_blamed(error, place).map_err(|what| format!("after a compaction: {what}"))?;
    }
    // What was in the memtables is in segments now: no key is lost that was not.
    match met.lost.iter().find(|(space, key)| *space != place.space || !place.may_hold(key)) {
        Some((_, key)) => Err(format!("{:?} is lost after a compaction", key.escape_ascii())),
        None if outcome.is_ok() && !store.knobs.hash_runs => Ok(()),
        None if outcome.is_ok() && met.lost.len() != place.newest.len() => {
            Err("a compaction that met no damage changed what is lost".into())
        }
        None => Ok(()),
    }
}
