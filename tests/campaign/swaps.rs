//! Row 10: blocks, pages and files that are sound, and in the wrong place or of another time.
//!
//! Blocks and pages are exchanged, moved and taken from other segments; segments, logs and
//! manifests are exchanged, taken from another database, or older than the rest. Each is detected, or
//! makes no difference. What cannot be told from a crash is exactly this: the newest log alone, as
//! it was at an earlier moment, is what a crash at that moment would have left; of an older log that
//! holds as long as nothing says that later ones were synced.

use crate::author::{
    Author, Content, Dice, Files, Knobs, Store, env_over, files_of, path_of, with_files,
};
use crate::driver::{Row, Size, Violation};
use crate::logs::{self, Fate, HEADER, Log};
use crate::reading::{pairs_of, read_all, read_segment};
use ashlardb::{Compression, Error, ErrorKind, Recovery, SegmentReader};
use std::collections::BTreeMap;

pub const ROW: Row =
    Row { name: "swaps", counts: "misplaced and stale parts", ci: 10_000, release: 200_000, run };

const PAGE: usize = 4096;

/// A store at one moment of its life, and what was done just before.
struct Moment {
    what: &'static str,
    store: Store,
}

/// Whether the values of this seed are in value segments.
fn separates(seed: u64) -> bool {
    seed.is_multiple_of(3)
}

/// The life of a database: the same steps for the same `seed`, other files for another `world`.
fn live(seed: u64, world: u64) -> Vec<Moment> {
    let dice = Dice::new(seed ^ 0x51A9);
    let compression = [Compression::None, Compression::Lz4][(seed % 2) as usize];
    let hash_runs = !seed.is_multiple_of(5);
    let bloom_bits = if dice.once_in(2) { 10 } else { 0 };
    let separate_above = if separates(seed) { 100 } else { u64::MAX };
    let knobs = Knobs { compression, bloom_bits, hash_runs, separate_above };
    let mut author = Author::new(seed * 2 + world, knobs);
    let mut moments = Vec::new();
    let mut spaces = vec![0];
    let key = |n: u64| format!("{:03}", n * 37 % 200).into_bytes();
    let steps = 14 + dice.roll(10);
    for step in 0..steps {
        let mut moment =
            |author: &Author, what| moments.push(Moment { what, store: author.store() });
        let space = spaces[dice.index(spaces.len())];
        match dice.roll(10) {
            0 | 1 => {
                author.flush();
                moment(&author, "flush");
            }
            2 => {
                author.compact();
                moment(&author, "compaction");
            }
            3 if spaces.len() < 4 => {
                spaces.push(author.create(&format!("space {step}")));
                moment(&author, "create");
            }
            4 if spaces.len() > 1 => {
                let gone = spaces.remove(1 + dice.index(spaces.len() - 1));
                author.drop_space(gone);
                moment(&author, "drop");
            }
            5 => {
                author.clear(space);
                moment(&author, "clear");
            }
            6 => {
                author.reopen();
                moment(&author, "open");
            }
            _ => {
                for i in 0..4 + dice.roll(20) {
                    let len = dice.index(400);
                    let at = key(step * 10 + i);
                    match dice.roll(12) {
                        0 => author.delete(space, at),
                        // No operands: segments are also read alone.
                        2 => author.write_for_a_time(&at, &dice.bytes(len), false),
                        3 if dice.once_in(3) => author.delete_range(&at, b"2"),
                        _ => author.put(space, at, dice.bytes(len)),
                    }
                    if dice.once_in(6) {
                        author.sync();
                        moment(&author, "sync");
                    }
                }
                moment(&author, "write");
            }
        }
    }
    // So that the end has segments and a log with something in it.
    author.put(0, "at last", dice.bytes(3_000));
    author.flush();
    for run in 0..3 {
        author.put(0, format!("one, {run}"), dice.bytes(5_000));
        author.put(0, format!("two, {run}"), dice.bytes(4_000));
        author.flush();
        moments.push(Moment { what: "flush", store: author.store() });
    }
    author.put(0, "logged", "one");
    author.sync();
    author.reopen();
    author.put(0, "logged", "two");
    author.sync();
    author.put(0, "logged", "three");
    author.sync();
    moments.push(Moment { what: "sync", store: author.kill() });
    moments
}

/// A store that is whole, and the means to try it with other files.
struct Case {
    store: Store,
    files: Files,
    content: Content,
    chain: Vec<Log>,
    tried: u64,
}

/// What came of it.
#[derive(Debug)]
enum Outcome {
    /// Refused at open.
    Refused,
    /// Opened, and all was right.
    Same,
    /// Opened, and some keys gave errors; everything else was right.
    Lost,
    /// Something else than what should be there, without an error.
    Wrong(String),
}

impl Case {
    fn new(store: &Store) -> Case {
        let files = store.files();
        Case {
            content: store.content(),
            chain: logs::chain(&files),
            store: store.clone(),
            files,
            tried: 0,
        }
    }

    /// Opens the store with these files, which should hold this.
    fn open_as(&mut self, files: &Files, expected: &Content) -> Result<Outcome, String> {
        self.tried += 1;
        let vfs = with_files(files);
        let db = match self.store.knobs.open(&vfs, Recovery::TolerateTornTail) {
            Ok(db) => db,
            Err(error) => {
                if !matches!(error, Error::Corruption { .. } | Error::NotADatabase { .. }) {
                    return Err(format!("the wrong error: {error}"));
                }
                if files_of(&vfs) != *files {
                    return Err(format!("open changed files, and then gave: {error}"));
                }
                return Ok(Outcome::Refused);
            }
        };
        let met = match read_all(&db, expected) {
            Ok(met) => met,
            Err(what) => return Ok(Outcome::Wrong(what)),
        };
        if let Some(error) = met.errors.iter().find(|error| error.kind() != ErrorKind::Corruption) {
            return Err(format!("the wrong error: {error}"));
        }
        Ok(if met.errors.is_empty() { Outcome::Same } else { Outcome::Lost })
    }

    fn with(&self, changes: &[(&str, &[u8])]) -> Files {
        let mut files = self.files.clone();
        files.extend(changes.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())));
        files
    }

    /// Nothing may come of it but a refusal or keys that give errors.
    fn detects(&mut self, what: &str, changes: &[(&str, &[u8])]) -> Result<Outcome, String> {
        let files = self.with(changes);
        if files == self.files {
            return Ok(Outcome::Same);
        }
        let content = self.content.clone();
        match self.open_as(&files, &content) {
            Ok(Outcome::Wrong(wrong)) => Err(format!("{what}: {wrong}")),
            Ok(outcome) => Ok(outcome),
            Err(wrong) => Err(format!("{what}: {wrong}")),
        }
    }

    /// The same, and it may not be passed over.
    fn refuses(&mut self, what: &str, changes: &[(&str, &[u8])]) -> Result<(), String> {
        if self.with(changes) == self.files {
            return Ok(());
        }
        match self.detects(what, changes)? {
            Outcome::Refused => Ok(()),
            other => Err(format!("{what}: {other:?}")),
        }
    }

    fn names(&self, end: &str) -> Vec<String> {
        self.files.keys().filter(|name| name.ends_with(end)).cloned().collect()
    }
}

fn run(seed: u64, _: Size) -> Result<u64, Violation> {
    let moments = live(seed, 0);
    let other = live(seed, 1).pop().expect("a moment").store.files();
    let dice = Dice::new(!seed);
    let mut case = Case::new(&moments[moments.len() - 1].store);
    swap_blocks(&mut case, &dice)?;
    swap_files(".seg", &mut case, &moments, &other)?;
    if separates(seed) {
        swap_files(".val", &mut case, &moments, &other)?;
        swap_values(&mut case, &dice)?;
    }
    swap_logs(&mut case, &moments, &other)?;
    let mut tried = case.tried;
    // An older manifest with each later state of the rest.
    for (now, moment) in moments.iter().enumerate().skip(1) {
        let mut case = Case::new(&moment.store);
        case.refuses("a manifest of another database", &[("MANIFEST", &other["MANIFEST"])])?;
        roll_back(&mut case, &moments[..=now])?;
        tried += case.tried;
    }
    Ok(tried)
}

/// Blocks and pages within a segment, and from one to another.
fn swap_blocks(case: &mut Case, dice: &Dice) -> Result<(), String> {
    let names = case.names(".seg");
    let blocks_of = |name: &String| -> Vec<(usize, usize)> {
        let reader = SegmentReader::open_in(&env_over(&case.store.vfs, 1), path_of(name));
        let blocks = reader.expect("a sound segment opens").blocks();
        blocks
            .map(|block| block.expect("a sound block"))
            .map(|block| (block.offset as usize, block.pages as usize * PAGE))
            .collect()
    };
    let all: Vec<_> = names.iter().map(|name| (name, blocks_of(name))).collect();
    let mut swapped: Vec<(String, &String, Vec<u8>)> = Vec::new();
    for (name, blocks) in &all {
        let bytes = &case.files[*name];
        for (i, (one, len)) in blocks.iter().enumerate() {
            for (two, other_len) in &blocks[i + 1..] {
                if len == other_len {
                    let mut bytes = bytes.clone();
                    let first = bytes[*one..one + len].to_vec();
                    bytes.copy_within(*two..two + len, *one);
                    bytes[*two..two + len].copy_from_slice(&first);
                    swapped.push((format!("blocks at {one} and {two} exchanged"), name, bytes));
                }
            }
            for (from, blocks) in all.iter().filter(|(from, _)| from != name) {
                if blocks.contains(&(*one, *len)) {
                    let mut bytes = bytes.clone();
                    bytes[*one..one + len].copy_from_slice(&case.files[*from][*one..one + len]);
                    swapped.push((format!("the block at {one} is that of {from}"), name, bytes));
                }
            }
        }
        let pages = bytes.len() / PAGE;
        for _ in 0..2 * pages {
            let (from, to) = (dice.index(pages) * PAGE, dice.index(pages) * PAGE);
            let mut moved = bytes.clone();
            moved.copy_within(from..from + PAGE, to);
            swapped.push((format!("the page at {from} is also at {to}"), name, moved));
        }
    }
    // Exchanging is quadratic: a share of it in each seed.
    let share = (swapped.len() as u64 / 60).max(1);
    swapped.retain(|(_, name, bytes)| case.files[*name] != *bytes && dice.once_in(share));
    for (what, name, bytes) in swapped {
        let what = format!("{name}: {what}");
        case.detects(&what, &[(name, &bytes)])?;
        check_segment(case, name, &bytes).map_err(|wrong| format!("{what}: {wrong}"))?;
    }
    Ok(())
}

/// The segment alone says what is wrong with it.
fn check_segment(case: &Case, name: &str, bytes: &[u8]) -> Result<(), String> {
    let sound = SegmentReader::open_in(&env_over(&case.store.vfs, 1), path_of(name));
    let sound = sound.map_err(|error| error.to_string())?;
    let is_whole = sound.properties().value_segments.is_empty();
    let pairs = if is_whole { pairs_of(&sound) } else { BTreeMap::new() };
    let vfs = with_files(&Files::from([(name.to_owned(), bytes.to_vec())]));
    let Ok(reader) = SegmentReader::open_in(&env_over(&vfs, 1), path_of(name)) else {
        return Ok(());
    };
    let errors = if is_whole { read_segment(&reader, &pairs, 1)? } else { Vec::new() };
    for error in errors {
        if error.kind() != ErrorKind::Corruption {
            return Err(format!("the wrong error: {error}"));
        }
    }
    match reader.verify() {
        Ok(report) if report.is_sound() => Err("verify finds it sound".into()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("verify cannot judge: {error}")),
    }
}

/// Whole segments, or value segments.
fn swap_files(end: &str, case: &mut Case, moments: &[Moment], other: &Files) -> Result<(), String> {
    let names = case.names(end);
    if names.is_empty() {
        return Err(format!("there is no {end} to be swapped"));
    }
    // All that ever were, here and in the other database.
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    let earlier = moments.iter().flat_map(|moment| moment.store.files());
    for (name, bytes) in earlier.chain(other.clone()) {
        if name.ends_with(end) && !all.iter().any(|(_, known)| *known == bytes) {
            all.push((name, bytes));
        }
    }
    for name in &names {
        for (from, bytes) in &all {
            case.refuses(&format!("{name} is {from}"), &[(name, bytes)])?;
        }
        for with in names.iter().filter(|with| *with > name) {
            let (a, b) = (case.files[name].clone(), case.files[with].clone());
            case.refuses(&format!("{name} and {with} exchanged"), &[(name, &b), (with, &a)])?;
        }
    }
    Ok(())
}

/// Values within a value segment, and from one to another.
fn swap_values(case: &mut Case, dice: &Dice) -> Result<(), String> {
    const FOOTER: usize = 96;
    let names = case.names(".val");
    let all: Vec<_> = names
        .into_iter()
        .map(|name| {
            let bytes = case.files[&name].clone();
            let (mut at, mut records) = (0, Vec::<(usize, usize)>::new());
            while at < bytes.len() - FOOTER {
                let stored = bytes[at + 8..at + 12].try_into().expect("four bytes");
                let len = 20 + u32::from_le_bytes(stored) as usize;
                records.push((at, len));
                at += len;
            }
            (name, bytes, records)
        })
        .collect();
    for (name, bytes, records) in &all {
        for (from, source, others) in &all {
            for _ in 0..4 {
                let (to, len) = records[dice.index(records.len())];
                let (start, other_len) = others[dice.index(others.len())];
                let len = len.min(other_len);
                let mut swapped = bytes.clone();
                swapped[to..to + len].copy_from_slice(&source[start..start + len]);
                let what = format!("{name}: at {to} is what is at {start} of {from}");
                case.detects(&what, &[(name, &swapped)])?;
            }
        }
        // What the file of another was, under a footer that is right.
        for (from, source, _) in &all {
            let len = (bytes.len() - FOOTER).min(source.len() - FOOTER);
            let mut swapped = bytes.clone();
            swapped[..len].copy_from_slice(&source[..len]);
            case.detects(&format!("{name} has the values of {from}"), &[(name, &swapped)])?;
        }
    }
    Ok(())
}

fn swap_logs(case: &mut Case, moments: &[Moment], other: &Files) -> Result<(), String> {
    let names = case.names(".wal");
    let others = other.iter().filter(|(name, _)| logs::is_log(name));
    for name in &names {
        for (from, bytes) in others.clone() {
            let what = format!("{name} is {from} of another database");
            // One whose header does not verify is passed over if there is nothing behind it.
            if bytes.len() > HEADER {
                case.refuses(&what, &[(name, bytes)])?;
            }
        }
        for with in names.iter().filter(|with| *with > name) {
            let (a, b) = (case.files[name].clone(), case.files[with].clone());
            case.refuses(&format!("{name} is {with}"), &[(name, &b)])?;
            case.refuses(&format!("{with} is {name}"), &[(with, &a)])?;
            case.refuses(&format!("{name} and {with} exchanged"), &[(name, &b), (with, &a)])?;
        }
    }
    // Each log as it was at an earlier moment.
    for i in 0..case.chain.len() {
        let log = case.chain[i].clone();
        let is_last = i + 1 == case.chain.len();
        let mut states: Vec<Vec<u8>> =
            moments.iter().filter_map(|m| m.store.files().remove(&log.name)).collect();
        states.dedup();
        // And as it was after each record.
        states.extend(log.records.iter().map(|r| case.files[&log.name][..r.offset].to_vec()));
        for state in states {
            let Some(Fate::Damage { .. } | Fate::Torn { .. }) =
                logs::fate(&case.chain, i, state.len(), log.end)
            else {
                continue;
            };
            let what = format!("{} as it was with {} bytes", log.name, state.len());
            match logs::fate(&case.chain, i, state.len(), usize::MAX) {
                Some(Fate::Damage { .. }) => case.refuses(&what, &[(&log.name, &state)])?,
                Some(Fate::Torn { last, .. }) => {
                    if !is_last && last < case.store.synced {
                        return Err(format!("{what}: nothing says that more had been synced"));
                    }
                    // As a crash would have left it, unless the manifest says otherwise.
                    let files = case.with(&[(&log.name, &state)]);
                    let expected = case.store.content_at(last);
                    match case.open_as(&files, &expected).map_err(|e| format!("{what}: {e}"))? {
                        Outcome::Refused | Outcome::Same => {}
                        outcome => return Err(format!("{what}: {outcome:?}")),
                    }
                }
                None => {}
            }
        }
    }
    Ok(())
}

/// The manifest as it was at each earlier moment.
fn roll_back(case: &mut Case, moments: &[Moment]) -> Result<(), String> {
    let mut known = vec![case.files["MANIFEST"].clone()];
    for (then, moment) in moments.iter().enumerate().rev() {
        let manifest = moment.store.files().remove("MANIFEST").expect("a manifest");
        if known.contains(&manifest) {
            continue;
        }
        known.push(manifest.clone());
        let since: Vec<&str> = moments[then + 1..].iter().map(|moment| moment.what).collect();
        let files = case.with(&[("MANIFEST", &manifest)]);
        let content = case.content.clone();
        match case.open_as(&files, &content)? {
            Outcome::Refused | Outcome::Same => {}
            outcome => return Err(format!("a manifest from before {since:?}: {outcome:?}")),
        }
    }
    Ok(())
}
