//! Row 7: damage in the middle of a log and a torn tail, told apart both ways.
//!
//! Logs of many shapes: single records and groups of batches, small and over many sectors, one log or
//! a chain of them, synced now and then. What was not synced is cut, zeroed and overwritten as a
//! crash may leave it: the store opens with a prefix that has everything synced. What was
//! synced, as a later record says, is damaged: `open` refuses, names the record and changes nothing,
//! and a point-in-time recovery gives what came before it.

use crate::author::{Author, Dice, Files, Knobs, Store, files_of, path_of, with_files};
use crate::driver::{Row, Size, Violation};
use crate::logs::{self, Fate, HEADER, Log};
use crate::reading::read_all;
use ashlardb::{Error, ErrorKind, Recovery};

pub const ROW: Row =
    Row { name: "tails", counts: "damaged ends of logs", ci: 20_000, release: 500_000, run };

const SECTOR: usize = 512;

/// A tail up to this long is cut at every byte.
const EVERY_BYTE: usize = 700;

fn make(seed: u64) -> Store {
    let mut author = Author::new(seed, Knobs::default());
    let other = author.create("other");
    let dice = Dice::new(seed ^ 0x7A11);
    let lens = [8, 60, 300, 2_000][dice.index(4)];
    let syncs = [3, 8, 30][dice.index(3)];
    let steps = 4 + dice.index(30);
    for step in 0..steps {
        let key = |i: u64| format!("{:03}", (step as u64 * 7 + i) % 120).into_bytes();
        let space = if dice.once_in(3) { other } else { 0 };
        match dice.roll(24) {
            0 => author.reopen(),
            // More than a write buffer: the next write begins another log.
            1 => author.put(space, key(0), dice.bytes(70_000)),
            2 => author.flush(),
            3 => author.clear(space),
            4 => author.delete(space, key(0)),
            9 | 10 => author.merge(&key(0), &dice.bytes(lens / 8)),
            11 => author.write_for_a_time(&key(0), &dice.bytes(lens / 8), dice.once_in(2)),
            12 => author.delete_range(&key(0).min(key(9)), &key(0).max(key(9))),
            5..=8 => {
                let op = |i: u64| {
                    let len = dice.index(lens);
                    (i as u32 % 2 * other, key(i), (i % 5 != 4).then(|| dice.bytes(len)))
                };
                let ops: Vec<_> = (0..2 + dice.roll(8)).map(op).collect();
                author.batch(&ops);
            }
            _ => {
                let len = dice.index(lens);
                author.put(space, key(0), dice.bytes(len));
            }
        }
        if dice.once_in(syncs) {
            author.sync();
        }
    }
    author.kill()
}

/// One store, and what the logs in it say.
struct Case {
    store: Store,
    files: Files,
    chain: Vec<Log>,
}

fn run(seed: u64, _: Size) -> Result<u64, Violation> {
    let store = make(seed);
    let files = store.files();
    let chain = logs::chain(&files);
    let case = Case { store, files, chain };
    let dice = Dice::new(!seed);
    let mut tried = 0;
    for i in 0..case.chain.len() {
        tried += case.lose_tail(i, &dice)?;
        tried += case.damage(i, &dice)?;
    }
    Ok(tried.max(1))
}

impl Case {
    /// Loses of log `i` what was not synced, as a crash may. What was not synced of later logs is
    /// there or not.
    fn lose_tail(&self, i: usize, dice: &Dice) -> Result<u64, String> {
        let log = &self.chain[i];
        let bytes = &self.files[&log.name];
        // What a record says is durable is, whoever synced it.
        let said = log.records.iter().map(|record| record.durable).max().unwrap_or(0);
        let durable = self.store.durable[&log.name].max(said);
        let mut tried = 0;
        let tail = bytes.len() - durable;
        let cuts: Vec<usize> = if tail <= EVERY_BYTE {
            (durable..bytes.len()).collect()
        } else {
            let records = log.records.iter().map(|record| record.offset);
            let near = records.flat_map(|at| [at.saturating_sub(1), at, at + 1, at + 26]);
            let sectors = (durable..bytes.len()).filter(|at| at.is_multiple_of(SECTOR));
            let random = (0..40).map(|_| durable + dice.index(tail));
            near.chain(sectors.take(40)).chain(random).collect()
        };
        for cut in cuts.into_iter().filter(|cut| (durable..bytes.len()).contains(cut)) {
            self.check_loss(i, bytes[..cut].to_vec(), &format!("cut at byte {cut}"))?;
            let mut zeroed = bytes.clone();
            zeroed[cut..].fill(0);
            self.check_loss(i, zeroed, &format!("zeros from byte {cut}"))?;
            tried += 2;
        }
        if tail > 0 {
            for _ in 0..24 {
                let mut lost = bytes.clone();
                let mut which = Vec::new();
                let odds = 1 + dice.roll(6);
                for start in (durable / SECTOR * SECTOR..lost.len()).step_by(SECTOR) {
                    if dice.roll(7) < odds {
                        let from = start.max(durable);
                        let to = (start + SECTOR).min(lost.len());
                        let garbage = dice.once_in(2);
                        lost[from..to].fill(if garbage { 0xc3 } else { 0 });
                        which.push((from, garbage));
                    }
                }
                if dice.once_in(3) {
                    lost.truncate(durable + dice.index(tail));
                }
                self.check_loss(i, lost, &format!("sectors lost: {which:?}"))?;
                tried += 1;
            }
        }
        Ok(tried)
    }

    fn check_loss(&self, i: usize, bytes: Vec<u8>, what: &str) -> Result<(), String> {
        let log = &self.chain[i];
        let is_last = i + 1 == self.chain.len();
        let left = logs::read(&log.name, &bytes);
        // What is behind the first record that is gone does not count.
        let kept = left.records.len();
        let last = log.records.get(kept).map(|record| record.before);
        let is_whole = last.is_none();
        let last = match last {
            Some(last) => last,
            None => self.chain.get(i + 1).map_or(self.store.last, |next| next.before),
        };
        let end = log.records.get(kept).map_or(log.end, |record| record.offset);
        let is_clean = bytes[end..].iter().all(|byte| *byte == 0) && is_last;
        let complain = |text: String| {
            let (name, count) = (&log.name, self.chain.len());
            format!("{name}, log {i} of {count}, {what}: {text}")
        };
        if is_whole {
            return Ok(());
        }
        if last < self.store.synced {
            return Err(complain(format!("the test lost what was synced: operation {last}")));
        }
        let mut files = self.files.clone();
        files.insert(log.name.clone(), bytes);
        let knobs = self.store.knobs;

        // Strict: nothing torn.
        let vfs = with_files(&files);
        match knobs.open(&vfs, Recovery::Strict) {
            Ok(_) if is_clean => {}
            Ok(_) => return Err(complain("opened strictly".into())),
            Err(error) if is_clean => return Err(complain(format!("strictly: {error}"))),
            Err(error) => {
                if error.kind() != ErrorKind::Corruption || files_of(&vfs) != files {
                    return Err(complain(format!("strictly, something else happened: {error}")));
                }
            }
        }
        let expected = self.store.content_at(last);
        let vfs = with_files(&files);
        let check = |recovery, notices: bool| {
            let db =
                knobs.open(&vfs, recovery).map_err(|error| format!("{recovery:?}: {error}"))?;
            let found = db.stats().recovery_notices;
            if found.iter().any(|notice| notice.contains("torn tail")) != notices {
                return Err(format!("{recovery:?}: the notices are {found:?}"));
            }
            let met = read_all(&db, &expected)?;
            met.errors.first().map_or(Ok(()), |error| Err(error.to_string()))
        };
        check(Recovery::TolerateTornTail, !is_clean).map_err(complain)?;
        check(Recovery::Strict, false).map_err(|text| complain(format!("again: {text}")))
    }

    /// Damages log `i` where it was synced.
    fn damage(&self, i: usize, dice: &Dice) -> Result<u64, String> {
        let log = &self.chain[i];
        let bytes = &self.files[&log.name];
        let mut tried = 0;
        for record in &log.records {
            let len = record.end - record.offset;
            let mut lost: Vec<(&str, Vec<u8>, usize, usize)> = Vec::new();
            let mut alter = |what, from: usize, to: usize, with: Option<u8>| {
                let mut altered = bytes.clone();
                match with {
                    Some(byte) => altered[from..to].fill(byte),
                    None => altered[from] ^= 1 << dice.roll(8),
                }
                if altered != *bytes {
                    lost.push((what, altered, from, to));
                }
            };
            let flip = record.offset + dice.index(len);
            alter("a bit flipped", flip, flip + 1, None);
            let from = record.offset + dice.index(len);
            let to = from + 1 + dice.index(record.end - from);
            alter("zeroed in part", from, to, Some(0));
            alter("zeroed", record.offset, record.end, Some(0));
            alter("overwritten", record.offset, record.end, Some(0x5a));
            let sector = (from / SECTOR * SECTOR).max(record.offset);
            alter(
                "a sector of it and its neighbours zeroed",
                sector,
                log.end.min(sector + SECTOR),
                Some(0),
            );
            if i + 1 < self.chain.len() {
                // The end of an older log is known from the one behind it.
                lost.push(("cut", bytes[..record.offset].to_vec(), record.offset, log.end));
                lost.push(("cut within", bytes[..flip].to_vec(), flip, log.end));
            }
            for (what, altered, from, to) in lost {
                // What was zero before and is zeroed is not damaged.
                let same = altered.iter().zip(bytes).take_while(|(a, b)| a == b).count();
                let from = from.max(same);
                let (to, fate) = match logs::fate(&self.chain, i, from, to) {
                    Some(fate) => (to, fate),
                    None => continue,
                };
                let complain = |text: String| {
                    let (name, count) = (&log.name, self.chain.len());
                    format!("{name}, log {i} of {count}, {what}, bytes {from} to {to}: {text}")
                };
                match fate {
                    Fate::Damage { offset } => {
                        self.check_damage(i, altered, offset).map_err(complain)?;
                        tried += 1;
                    }
                    // Damage that reaches farther may take what tells of it, too.
                    Fate::Torn { last, .. } if last < self.store.synced && to <= record.end => {
                        return Err(complain(format!(
                            "nothing says that what follows operation {last} was synced"
                        )));
                    }
                    Fate::Torn { .. } => {}
                }
            }
        }
        Ok(tried)
    }

    fn check_damage(&self, i: usize, bytes: Vec<u8>, offset: usize) -> Result<(), String> {
        let log = &self.chain[i];
        let mut files = self.files.clone();
        files.insert(log.name.clone(), bytes);
        let vfs = with_files(&files);
        let knobs = self.store.knobs;
        for recovery in [Recovery::TolerateTornTail, Recovery::Strict] {
            match knobs.open(&vfs, recovery) {
                Ok(_) => return Err(format!("{recovery:?}: opened over damage at {offset}")),
                Err(Error::Corruption { file, offset: found, .. })
                    if file == path_of(&log.name) && found == offset as u64 => {}
                Err(error) => return Err(format!("{recovery:?}: not at byte {offset}: {error}")),
            }
            if files_of(&vfs) != files {
                return Err(format!("{recovery:?}: open was refused and changed files"));
            }
        }
        let record = log.records.iter().find(|record| record.offset == offset);
        let last = record.map_or(log.before, |record| record.before);
        match knobs.open(&vfs, Recovery::PointInTime) {
            // What was flushed is in segments that the manifest has: it cannot be left behind.
            Err(error) if last < self.store.flushed && error.kind() == ErrorKind::Corruption => {
                return if files_of(&vfs) == files {
                    Ok(())
                } else {
                    Err("a point-in-time recovery was refused and changed files".into())
                };
            }
            Err(error) => return Err(format!("a point-in-time recovery gave {error}")),
            Ok(db) => {
                if db.stats().recovery_notices.is_empty() {
                    return Err("a point-in-time recovery without a notice".into());
                }
                let met = read_all(&db, &self.store.content_at(last))?;
                if let Some(error) = met.errors.first() {
                    return Err(format!("after a point-in-time recovery: {error}"));
                }
            }
        }
        // From then on all is as if nothing had happened.
        let db = knobs.open(&vfs, Recovery::Strict).map_err(|e| format!("again: {e}"))?;
        read_all(&db, &self.store.content_at(last)).map_err(|what| format!("again: {what}"))?;
        debug_assert!(offset >= HEADER);
        Ok(())
    }
}
