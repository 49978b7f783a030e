//! Row 2: every bit of every file of small stores flipped, one at a time, padding included.
//!
//! A flip is harmless, or a typed error that names the file, at open or at the reads concerned; what
//! is delivered beside it is right, and nothing is missing without an error. In a segment `verify`
//! reports every one. What is refused is left as it was.
//!
//! In CI a seed spreads its flips evenly over all files of one store, so that small files get as
//! many as large ones. For a release a seed stands for a slice of all bits of all stores, and when
//! these are used up, of stores with other keys and values.

use crate::author::{
    Author, Content, DIR, Dice, Files, Knobs, Store, env_over, files_of, path_of, with_files,
};
use crate::driver::{Row, Size, Violation, panic_text};
use crate::heap::{PIECE_MAX, largest_piece};
use crate::logs::{self, Fate, Log};
use crate::reading::{Met, pairs_of, read_all, read_segment};
use ashlardb::vfs::{MemVfs, OpenMode, Vfs};
use ashlardb::{Compression, Db, Error, Recovery, SegmentOptions, SegmentReader, SegmentWriter};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex};

pub const ROW: Row =
    Row { name: "flips", counts: "flipped bits", ci: 100_000, release: 2_000_000, run };

/// How many bits a seed of a release stands for, and of those that a sample is taken of.
const SLICE: u64 = 512;
const SAMPLE: u64 = 1;

/// How many flips a seed of CI makes.
const SPREAD: usize = 128;

/// A store that is to be damaged.
struct Patient {
    name: &'static str,
    knobs: Knobs,
    files: Files,
    /// What is in it, if it is a database.
    store: Option<(Store, Content)>,
    chain: Vec<Log>,
    /// What is in each of its segments.
    pairs: BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>,
    /// Too large for every bit: a sample.
    is_large: bool,
}

impl Patient {
    fn new(name: &'static str, store: Store) -> Patient {
        let files = store.files();
        let chain = logs::chain(&files);
        let knobs = store.knobs;
        let content = store.content();
        let mut patient = Patient {
            name,
            knobs,
            pairs: BTreeMap::new(),
            chain,
            store: Some((store, content)),
            files,
            is_large: false,
        };
        patient.read_pairs();
        patient
    }

    fn segment(name: &'static str, options: SegmentOptions, pairs: &[(Vec<u8>, Vec<u8>)]) -> Self {
        let vfs = with_files(&Files::new());
        let file = format!("{:020}.seg", 1);
        let env = env_over(&vfs, pairs.len() as u64);
        let mut writer =
            SegmentWriter::create_in(&env, path_of(&file), options).expect("it can be created");
        for (key, value) in pairs {
            writer.put(key, value).expect("it can be written");
        }
        writer.finish().expect("it can be finished");
        let mut patient = Patient {
            name,
            knobs: Knobs::default(),
            files: files_of(&vfs),
            store: None,
            chain: Vec::new(),
            pairs: BTreeMap::new(),
            is_large: pairs.len() > 1_000 || pairs[0].0.len() > 1_000,
        };
        patient.read_pairs();
        patient
    }

    fn read_pairs(&mut self) {
        let vfs = with_files(&self.files);
        for name in self.files.keys().filter(|name| name.ends_with(".seg")) {
            let reader = SegmentReader::open_in(&env_over(&vfs, 1), path_of(name));
            let reader = reader.expect("a sound segment opens");
            // By itself it has no operator and no value segments: then it is read through the database.
            let properties = reader.properties();
            if properties.merge_operands == 0 && properties.value_segments.is_empty() {
                self.pairs.insert(name.clone(), pairs_of(&reader));
            }
        }
    }

    /// For those that are about values in value segments: there must be some.
    fn with_values(self) -> Self {
        assert!(self.files.keys().filter(|name| is_values(name)).count() > 1, "{}", self.name);
        self
    }

    fn bits(&self) -> u64 {
        self.files.values().map(|bytes| bytes.len() as u64 * 8).sum()
    }

    /// The file with a bit, and the bit in that file.
    fn place(&self, mut bit: u64) -> (&str, u64) {
        for (name, bytes) in &self.files {
            let bits = bytes.len() as u64 * 8;
            if bit < bits {
                return (name, bit);
            }
            bit -= bits;
        }
        unreachable!("the bit is one of this store")
    }
}

fn is_values(name: &str) -> bool {
    name.ends_with(".val")
}

/// A text that compresses a little.
fn text(dice: &Dice, len: usize) -> Vec<u8> {
    const WORDS: [&str; 8] =
        ["granite ", "lime", "slate, ", "marl ", "chalk", "basalt ", "; ", "x"];
    let mut text = Vec::new();
    while text.len() < len {
        match dice.roll(4) {
            0 => text.extend(dice.bytes(3)),
            _ => text.extend_from_slice(WORDS[dice.index(WORDS.len())].as_bytes()),
        }
    }
    text.truncate(len);
    text
}

fn key(n: u64) -> Vec<u8> {
    format!("key/{:05}", n * 7919 % 100_000).into_bytes()
}

/// Writes some keys, a few twice, and removes some.
fn scribble(author: &mut Author, space: u32, from: u64, keys: u64, len: u64) {
    for n in from..from + keys {
        let len = author.dice.roll(len) as usize;
        let value = text(&author.dice, len);
        author.put(space, key(n), value);
        if n % 9 == 4 {
            author.delete(space, key(from + author.dice.roll(keys)));
        }
    }
}

/// Merges into some keys, for ever and for a time, and removes some ranges.
fn blend(author: &mut Author, from: u64, keys: u64) {
    for n in from..from + keys {
        let operand = text(&author.dice, 1 + author.dice.roll(30) as usize);
        match author.dice.roll(8) {
            0 => author.write_for_a_time(&key(n), &operand, false),
            1 => author.write_for_a_time(&key(n), &operand, true),
            2 if n % 5 == 0 => author.delete_range(&key(n), &[&key(n)[..], b"~"].concat()),
            3 if n % 5 == 0 => author.delete_range(b"key/3", b"key/4"),
            _ => author.merge(&key(n), &operand),
        }
    }
}

fn make(round: u64, which: usize) -> Option<Patient> {
    let seed = round * 100 + which as u64 + 1;
    let knobs = |compression, bloom_bits, hash_runs| Knobs {
        compression,
        bloom_bits,
        hash_runs,
        ..Knobs::default()
    };
    let author = |knobs| Author::new(seed, knobs);
    let dice = Dice::new(seed);
    let lz4 = Compression::Lz4;
    let zstd = Compression::Zstd(3);
    let options = |prefix_width| SegmentOptions {
        compression: Compression::None,
        bloom_bits_per_key: 10,
        prefix_width,
        ..SegmentOptions::default()
    };
    Some(match which {
        0 => {
            let mut author = author(knobs(Compression::None, 0, true));
            for run in 0..3 {
                scribble(&mut author, 0, run * 12, 24, 160);
                author.flush();
            }
            scribble(&mut author, 0, 200, 4, 60);
            author.sync();
            scribble(&mut author, 0, 210, 3, 60);
            author.sync();
            Patient::new("runs, killed", author.kill())
        }
        1 => {
            let mut author = author(knobs(lz4, 10, true));
            let other = author.create("other");
            scribble(&mut author, 0, 0, 60, 300);
            scribble(&mut author, other, 0, 40, 100);
            author.flush();
            scribble(&mut author, other, 20, 40, 200);
            author.compact();
            scribble(&mut author, 0, 30, 40, 200);
            author.flush();
            Patient::new("two keyspaces, lz4, closed", author.close())
        }
        2 => {
            let mut author = author(knobs(zstd, 12, false));
            scribble(&mut author, 0, 0, 80, 500);
            author.flush();
            scribble(&mut author, 0, 40, 30, 300);
            author.flush();
            scribble(&mut author, 0, 10, 12, 50);
            Patient::new("filters, zstd, closed", author.close())
        }
        3 => {
            let mut author = author(knobs(zstd, 0, true));
            let other = author.create("other");
            scribble(&mut author, other, 0, 10, 100);
            author.sync();
            author.reopen();
            scribble(&mut author, 0, 0, 12, 100);
            author.sync();
            author.reopen();
            let both: Vec<_> =
                (0..8).map(|n| (n % 2 * other, key(u64::from(n)), Some(vec![7; 90]))).collect();
            author.batch(&both);
            author.sync();
            author.put(0, "key/8", vec![b'z'; 1_500]);
            author.sync();
            Patient::new("a chain of logs, killed", author.kill())
        }
        4 => {
            let mut author = author(knobs(Compression::None, 8, true));
            let gone = author.create("gone");
            let stays = author.create("stays");
            scribble(&mut author, gone, 0, 5, 100);
            scribble(&mut author, stays, 0, 30, 200);
            scribble(&mut author, 0, 0, 20, 200);
            author.flush();
            author.drop_space(gone);
            author.clear(0);
            scribble(&mut author, 0, 10, 10, 100);
            author.sync();
            scribble(&mut author, stays, 10, 3, 100);
            Patient::new("a clear and a drop, killed, not all synced", author.kill())
        }
        5 => {
            let mut author = author(knobs(lz4, 0, true));
            for run in 0..2 {
                scribble(&mut author, 0, run * 30, 60, 400);
                author.flush();
            }
            author.compact();
            scribble(&mut author, 0, 20, 8, 100);
            author.sync();
            author.reopen();
            Patient::new("compacted, lz4, killed after opening", author.kill())
        }
        6 => {
            let mut author = author(knobs(Compression::None, 0, false));
            author.put(0, "key/2", dice.bytes(20_000));
            scribble(&mut author, 0, 0, 40, 100);
            author.put(0, "", "the empty key");
            author.flush();
            Patient::new("a big value, closed", author.close())
        }
        7 => {
            let mut author = author(knobs(lz4, 0, true));
            scribble(&mut author, 0, 0, 4, 100);
            author.put(0, "key/5", vec![b'y'; 66_000]);
            author.flush();
            Patient::new("a value of 66,000 bytes, closed", author.close())
        }
        8 => {
            let mut author = author(knobs(Compression::None, 0, true));
            for run in 0..3 {
                scribble(&mut author, 0, run * 10, 20, 60);
                blend(&mut author, run * 10, 20);
                author.flush();
            }
            blend(&mut author, 0, 30);
            author.sync();
            blend(&mut author, 10, 10);
            Patient::new("merges, expiries and ranges, killed", author.kill())
        }
        9 => {
            let mut author = author(knobs(lz4, 10, true));
            scribble(&mut author, 0, 0, 30, 60);
            author.flush();
            blend(&mut author, 0, 40);
            author.flush();
            author.compact();
            blend(&mut author, 20, 20);
            author.flush();
            Patient::new("merges, expiries and ranges, closed", author.close())
        }
        10..=12 => {
            let width = [2, 4, 8][which - 10];
            let name = ["prefixes of 2", "prefixes of 4", "prefixes of 8"][which - 10];
            let mut pairs: Vec<_> =
                (0..120).map(|n| (key(n), text(&dice, (n * 31 % 130) as usize))).collect();
            pairs.sort();
            Patient::segment(name, options(width), &pairs)
        }
        13 => {
            // Separators so long that the index is partitioned, of keys that hardly differ.
            let key = |n: u8| {
                let mut key = vec![b'a' + n / 2; 30_000];
                key.push(n);
                key
            };
            let pairs: Vec<_> = (0..6).map(|n| (key(n), vec![n; 66_000])).collect();
            let options = SegmentOptions { compression: lz4, ..SegmentOptions::default() };
            Patient::segment("a partitioned index", options, &pairs)
        }
        14 => {
            let pairs: Vec<_> =
                (0..4_400u32).map(|n| ((n * 5).to_be_bytes().to_vec(), Vec::new())).collect();
            let options = SegmentOptions { bloom_bits_per_key: 0, ..options(0) };
            Patient::segment("a partitioned hash run", options, &pairs)
        }
        15 => {
            let pairs: Vec<_> =
                (0..8_400u32).map(|n| ((n * 3).to_be_bytes().to_vec(), Vec::new())).collect();
            let options = SegmentOptions {
                compression: lz4,
                bloom_bits_per_key: 64,
                hash_run: false,
                ..SegmentOptions::default()
            };
            Patient::segment("a partitioned filter", options, &pairs)
        }
        16 => {
            let mut author =
                author(Knobs { separate_above: 50, ..knobs(Compression::None, 0, true) });
            for run in 0..3 {
                scribble(&mut author, 0, run * 8, 20, 160);
                author.flush();
            }
            scribble(&mut author, 0, 10, 6, 160);
            author.sync();
            Patient::new("values in value segments, killed", author.kill()).with_values()
        }
        17 => {
            let mut author = author(Knobs { separate_above: 10, ..knobs(lz4, 10, true) });
            let other = author.create("other");
            scribble(&mut author, other, 0, 30, 300);
            scribble(&mut author, 0, 0, 30, 200);
            blend(&mut author, 0, 30);
            author.flush();
            scribble(&mut author, other, 5, 25, 300);
            blend(&mut author, 10, 30);
            author.compact();
            blend(&mut author, 20, 20);
            author.flush();
            Patient::new("values in value segments, lz4, closed", author.close()).with_values()
        }
        _ => return None,
    })
}

/// All stores of a round.
struct Ward {
    patients: Vec<Patient>,
    /// The bits of those of which every one is flipped.
    bits: u64,
}

fn ward(round: u64) -> Arc<Ward> {
    static WARDS: Mutex<BTreeMap<u64, Arc<Ward>>> = Mutex::new(BTreeMap::new());
    let mut wards = WARDS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let ward = wards.entry(round).or_insert_with(|| {
        let patients: Vec<Patient> = (0..).map_while(|which| make(round, which)).collect();
        let bits = patients.iter().filter(|p| !p.is_large).map(Patient::bits).sum();
        Arc::new(Ward { patients, bits })
    });
    let ward = Arc::clone(ward);
    while wards.len() > 2 {
        wards.pop_first();
    }
    ward
}

fn run(seed: u64, size: Size) -> Result<u64, Violation> {
    let mut tried = 0;
    match size {
        Size::Ci => {
            let ward = ward(0);
            let dice = Dice::new(seed);
            let patient = &ward.patients[(seed % ward.patients.len() as u64) as usize];
            // Those without anything in them have no bits.
            let files: Vec<_> = patient.files.iter().filter(|(_, b)| !b.is_empty()).collect();
            let spread = if patient.is_large { SPREAD / 8 } else { SPREAD };
            for i in 0..spread {
                let (name, bytes) = files[i % files.len()];
                try_flip(patient, name, dice.roll(bytes.len() as u64 * 8))?;
                tried += 1;
            }
        }
        Size::Release => {
            let slices = ward(0).bits.div_ceil(SLICE);
            let ward = ward(seed / slices);
            let dice = Dice::new(seed);
            let start = seed % slices * SLICE;
            let mut before = 0;
            for patient in &ward.patients {
                if patient.is_large {
                    for _ in 0..SAMPLE {
                        let (name, bit) = patient.place(dice.roll(patient.bits()));
                        try_flip(patient, name, bit)?;
                        tried += 1;
                    }
                    continue;
                }
                let from = start.max(before) - before;
                let to = (start + SLICE).min(before + patient.bits()).max(before) - before;
                for bit in from..to {
                    let (name, bit) = patient.place(bit);
                    try_flip(patient, name, bit)?;
                    tried += 1;
                }
                before += patient.bits();
            }
        }
    }
    Ok(tried)
}

fn try_flip(patient: &Patient, name: &str, bit: u64) -> Result<(), String> {
    let vfs = with_flip(patient, name, bit);
    let attempt = || {
        if patient.store.is_some() {
            check_database(patient, &vfs, name, bit)?;
        }
        if name.ends_with(".seg") { check_segment(patient, &vfs, name, bit) } else { Ok(()) }
    };
    let (outcome, largest) = largest_piece(|| catch_unwind(AssertUnwindSafe(attempt)));
    let outcome = match outcome {
        Ok(Ok(())) if largest > PIECE_MAX => Err(format!("{largest} bytes were allocated at once")),
        Ok(outcome) => outcome,
        Err(panic) => Err(format!("panicked: {}", panic_text(&*panic))),
    };
    let (byte, bit, patient) = (bit / 8, bit % 8, patient.name);
    outcome.map_err(|what| format!("bit {bit} of byte {byte} of {name} of {patient:?}: {what}"))
}

fn with_flip(patient: &Patient, name: &str, bit: u64) -> MemVfs {
    let vfs = match &patient.store {
        Some((store, _)) => store.vfs.fork(),
        None => with_files(&patient.files),
    };
    let file = vfs.open(&path_of(name), OpenMode::ReadWrite).expect("it is there");
    let byte = patient.files[name][(bit / 8) as usize] ^ (1 << (bit % 8));
    file.write_all_at(&[byte], bit / 8).expect("it can be written");
    vfs
}

/// Errors are damage, and of the right file.
fn check_blame<'a>(errors: impl IntoIterator<Item = &'a Error>, name: &str) -> Result<(), String> {
    for error in errors {
        match error {
            Error::Corruption { file, .. } if *file == path_of(name) => {}
            other => return Err(format!("the wrong error: {other}")),
        }
    }
    Ok(())
}

fn check_database(patient: &Patient, vfs: &MemVfs, name: &str, bit: u64) -> Result<(), String> {
    let Some((store, content)) = &patient.store else { return Ok(()) };
    let damaged = || {
        let mut files = patient.files.clone();
        files.get_mut(name).expect("it is there")[(bit / 8) as usize] ^= 1 << (bit % 8);
        files
    };
    // Each byte is read in all ways: with the key map, without it, by filters and indexes alone.
    let way = bit % 8;
    let knobs = Knobs { hash_runs: patient.knobs.hash_runs && way != 6, ..patient.knobs };
    let at = (bit / 8) as usize;
    let fate = patient.chain.iter().position(|log| log.name == name);
    let fate = fate.and_then(|i| logs::fate(&patient.chain, i, at, at + 1));
    let db = match knobs.open(vfs, Recovery::TolerateTornTail) {
        Ok(db) => db,
        Err(error) => {
            if files_of(vfs) != damaged() {
                return Err(format!("open changed files, and then gave: {error}"));
            }
            if let (Some(Fate::Damage { offset }), Error::Corruption { offset: found, .. }) =
                (fate, &error)
                && *found != offset as u64
            {
                return Err(format!("the damage is at byte {offset}, but {error}"));
            }
            return check_blame([&error], name);
        }
    };
    let torn = match fate {
        Some(Fate::Damage { offset }) => {
            return Err(format!("the record at byte {offset} was synced, and nobody objects"));
        }
        Some(Fate::Torn { last, .. }) if last < store.synced => {
            return Err(format!("lost what was synced behind operation {last}"));
        }
        Some(Fate::Torn { last, .. }) => Some(store.content_at(last)),
        None => None,
    };
    let expected = torn.as_ref().unwrap_or(content);
    let is_segment = name.ends_with(".seg") || is_values(name);
    if patient.chain.iter().any(|log| log.name == name) || name == "MANIFEST" {
        let is_zero_log = patient.files[name].len() <= logs::HEADER;
        if db.stats().recovery_notices.is_empty() && !is_zero_log {
            return Err("open passed over it without a notice".into());
        }
    }
    if way < 2 || way == 7 {
        db.fill_key_map().map_err(|error| format!("filling the key map: {error}"))?;
    }
    let met = read_all(&db, expected)?;
    check_blame(&met.errors, name)?;
    if !is_segment && !met.errors.is_empty() {
        return Err(format!("opened, but not all can be read: {}", met.errors[0]));
    }
    // Of a segment that is beside it, `check_segment` sees to that.
    if way == 7 && is_segment || is_values(name) {
        check_verify(&db, name)?;
    }
    drop(db);
    if is_segment {
        return Ok(());
    }
    // What was healed or cut off stays so.
    let db = knobs.open(vfs, Recovery::Strict).map_err(|error| format!("opened again: {error}"))?;
    let notices = db.stats().recovery_notices;
    if !notices.is_empty() {
        return Err(format!("opened again, there is something to notice: {notices:?}"));
    }
    let Met { errors, .. } = read_all(&db, expected).map_err(|what| format!("again: {what}"))?;
    errors.first().map_or(Ok(()), |error| Err(format!("opened again: {error}")))
}

fn check_verify(db: &Db, name: &str) -> Result<(), String> {
    let report = db.verify(&mut |_, _| {}).map_err(|error| format!("verify: {error}"))?;
    let is_known = report.damage.iter().any(|damage| damage.file == path_of(name));
    if !is_known || report.damage.iter().any(|d| d.file != path_of(name)) {
        return Err(format!("verify of the database found {:?}", report.damage));
    }
    Ok(())
}

/// The segment alone: read, and verified.
fn check_segment(patient: &Patient, vfs: &MemVfs, name: &str, bit: u64) -> Result<(), String> {
    let reader = match SegmentReader::open_in(&env_over(vfs, 1), Path::new(DIR).join(name)) {
        Ok(reader) => reader,
        Err(error) => return check_blame([&error], name),
    };
    let step = if patient.is_large { 61 } else { 1 };
    if let Some(pairs) = patient.pairs.get(name) {
        check_blame(&read_segment(&reader, pairs, step)?, name)?;
    }
    let report = reader.verify().map_err(|error| format!("verify cannot judge: {error}"))?;
    match report.damage.first() {
        None => Err("verify finds the segment sound".into()),
        Some(damage) if damage.offset > bit / 8 => {
            Err(format!("verify finds the damage too far behind: {damage:?}"))
        }
        Some(_) => Ok(()),
    }
}
