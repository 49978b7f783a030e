//! One bit flipped at random in a database that was killed, not closed, after every write of it was
//! acknowledged as durable.
//!
//! Then either it cannot be opened, and the error says so, or each answer is right or an error that
//! says that bytes are damaged: no write is lost in silence, nothing wrong is read, nothing panics.
//! A notice in the statistics does not excuse a loss. The same holds after flushes, compactions and
//! a second opening. The files are made by a real process; the flips happen to copies in memory.

use crate::child::{Heard, Task, start};
use crate::driver::{Size, Violation};
use crate::process::{Dice, Scratch};
use crate::writers::{Judge, Model, Script, options};
use ashlardb::vfs::{Env, MemVfs, OpenMode, Vfs};
use ashlardb::{Background, Db, Durability, ErrorKind, WriteBatch};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many flips are tried on one store.
const TRIALS: u64 = 30;

static HARMLESS: AtomicU64 = AtomicU64::new(0);
static OPEN_REFUSED: AtomicU64 = AtomicU64::new(0);
static READ_REFUSED: AtomicU64 = AtomicU64::new(0);

/// What came of the flips so far, in words; nothing if there were none.
pub fn summary() -> Option<String> {
    let [harmless, opens, reads] =
        [&HARMLESS, &OPEN_REFUSED, &READ_REFUSED].map(|n| n.load(Ordering::Relaxed));
    (harmless + opens + reads > 0).then(|| {
        format!(
            "kill-flip: {harmless} flips did no harm, {reads} gave errors on reading, {opens} on \
             opening"
        )
    })
}

/// A store as the killed process left it, and what must be in it.
struct Store {
    task: Task,
    files: Vec<(String, Vec<u8>)>,
    scripts: Vec<Script>,
    models: Vec<Model>,
}

/// Makes a store and tries flips on it.
pub fn run(seed: u64, _size: Size) -> Result<u64, Violation> {
    let store = make(seed)?;
    for trial in 0..TRIALS {
        let dice = Dice::of(&[seed, 3, trial]);
        let flip = Flip::random(&dice, &store.files);
        let (name, _) = &store.files[flip.file];
        let kept = |what: String| {
            let dir = keep(&store, &flip, seed, trial);
            format!("bit {} of byte {} of {name} flipped: {what}; {dir}", flip.bit, flip.byte)
        };
        let tried = std::panic::catch_unwind(|| try_flip(&store, &flip, &dice));
        match tried {
            Ok(outcome) => outcome.map_err(kept)?,
            Err(panic) => return Err(kept(crate::driver::panic_text(&*panic)).into()),
        }
    }
    Ok(TRIALS)
}

fn make(seed: u64) -> Result<Store, Violation> {
    let dice = Dice::of(&[seed, 2]);
    let scratch = Scratch::new("flip")?;
    let by_hand = dice.one_in(2);
    // Writers share a sync, so that many take less time.
    let writers = if by_hand { 1 } else { 3 + dice.below(6) };
    let task = Task {
        dir: scratch.path().join("db"),
        seed,
        round: 0,
        keys: (2000 / writers) as u32,
        value_len: dice.pick(&[20, 100, 400]),
        epoch_ms: 0,
        limit: if by_hand { 400 } else { dice.pick(&[1000, 2500]) / writers },
        by_hand,
        sync_in: 1,
        fifo: true,
        next: vec![0; writers as usize],
    };
    let (mut child, output) = start(&task).map_err(|e| format!("no child: {e}"))?;
    let heard = Heard::new(&task, vec![Model::default(); writers as usize]).listen(output);
    child.kill().map_err(|error| format!("cannot kill it: {error}"))?;
    if let Some(wrong) = heard.wrong {
        return Err(Violation(wrong));
    }
    if !heard.done {
        return Err("the child ended early".into());
    }
    let mut files = Vec::new();
    let entries = std::fs::read_dir(&task.dir).map_err(|error| error.to_string())?;
    for entry in entries.flatten() {
        let bytes = std::fs::read(entry.path()).map_err(|error| error.to_string())?;
        files.push((entry.file_name().to_string_lossy().into_owned(), bytes));
    }
    files.sort();
    let Heard { scripts, models, .. } = heard;
    Ok(Store { task, files, scripts, models })
}

/// A bit of a file.
struct Flip {
    file: usize,
    byte: usize,
    bit: u32,
}

impl Flip {
    fn random(dice: &Dice, files: &[(String, Vec<u8>)]) -> Flip {
        let ending = dice.pick(&["", "", ".wal", ".seg", ".val", "MANIFEST"]);
        let fits = |name: &str| name.ends_with(ending);
        let total: usize = files.iter().filter(|(name, _)| fits(name)).map(|f| f.1.len()).sum();
        if total == 0 {
            return Flip::random(dice, files);
        }
        let mut at = dice.below(total as u64) as usize;
        // As many bits behind the first 64 bytes of a file as in them would be few: some more.
        let near_start = dice.one_in(8);
        for (file, (_, bytes)) in files.iter().enumerate().filter(|(_, f)| fits(&f.0)) {
            if at < bytes.len() {
                let byte = if near_start { at % 64.min(bytes.len()) } else { at };
                return Flip { file, byte, bit: dice.below(8) as u32 };
            }
            at -= bytes.len();
        }
        unreachable!("{at} is below the total")
    }
}

/// The files with a bit flipped, in memory.
fn disk(store: &Store, flip: &Flip) -> std::io::Result<MemVfs> {
    let vfs = MemVfs::default();
    vfs.create_dir_all(dir())?;
    for (at, (name, bytes)) in store.files.iter().enumerate() {
        let file = vfs.open(&dir().join(name), OpenMode::CreateNew)?;
        file.write_all_at(bytes, 0)?;
        if at == flip.file {
            let byte = bytes[flip.byte] ^ (1 << flip.bit);
            file.write_all_at(&[byte], flip.byte as u64)?;
        }
    }
    Ok(vfs)
}

fn dir() -> &'static Path {
    Path::new("/db")
}

/// Writes the damaged store out, for whoever looks into the violation.
fn keep(store: &Store, flip: &Flip, seed: u64, trial: u64) -> String {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let dir: PathBuf = root.join(format!("kept-kill-flip-{seed}-{trial}"));
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(&dir)?;
        for (at, (name, bytes)) in store.files.iter().enumerate() {
            let mut bytes = bytes.clone();
            if at == flip.file {
                bytes[flip.byte] ^= 1 << flip.bit;
            }
            std::fs::write(dir.join(name), bytes)?;
        }
        Ok(())
    };
    match write() {
        Ok(()) => format!("the store is kept in {}; {:?}", dir.display(), store.task),
        Err(error) => format!("the store could not be kept: {error}"),
    }
}

fn open(vfs: &MemVfs, dice: &Dice) -> ashlardb::Result<Db> {
    let env = Env { vfs: Arc::new(vfs.clone()), ..Env::in_memory(dice.next()) };
    let builder = Db::builder(dir()).env(env).background(Background::Manual);
    options(dice, builder, false).open()
}

/// Whether an error is one that damage may give.
fn tells_of_damage(error: &ashlardb::Error) -> Result<(), String> {
    match error.kind() {
        ErrorKind::Corruption | ErrorKind::Unsupported | ErrorKind::Unavailable => Ok(()),
        _ => Err(format!("damage gave {error:?}")),
    }
}

fn try_flip(store: &Store, flip: &Flip, dice: &Dice) -> Result<(), String> {
    let vfs = disk(store, flip).map_err(|error| error.to_string())?;
    let db = match open(&vfs, dice) {
        Ok(db) => db,
        Err(error) => {
            OPEN_REFUSED.fetch_add(1, Ordering::Relaxed);
            return tells_of_damage(&error).map_err(|what| format!("open: {what}"));
        }
    };
    let mut judge = Judge { damage_allowed: true, errors: 0 };
    let mut read = |db: &Db| {
        let pairs = store.scripts.iter().zip(&store.models);
        pairs.into_iter().try_for_each(|(script, model)| judge.read_model(db, script, model))
    };
    if let Err(what) = read(&db) {
        let notices = db.stats().recovery_notices;
        return Err(format!("{what}; notices: {notices:?}"));
    }
    // What is damaged must not spread.
    let mut written = false;
    if dice.one_in(2) {
        let mut batch = WriteBatch::new();
        batch.put("later", "on");
        written = note(db.write_with(batch, Durability::Sync), "write")?.is_some();
        note(db.flush(), "flush")?;
        note(db.compact_range::<&[u8]>(..), "compact_range")?;
        note(db.wait_idle(), "wait_idle")?;
        read(&db).map_err(|what| format!("after a compaction: {what}"))?;
    }
    note(db.verify(&mut |_, _| {}), "verify")?;
    drop(db);
    match open(&vfs, dice) {
        Ok(db) => {
            read(&db).map_err(|what| format!("after a second opening: {what}"))?;
            let later = note(db.get("later"), "get")?;
            if written && later.is_some_and(|found| found.as_deref() != Some(b"on")) {
                return Err("what was written after the damage is lost".into());
            }
        }
        Err(error) => {
            judge.errors += 1;
            tells_of_damage(&error).map_err(|what| format!("the second open: {what}"))?;
        }
    }
    let counter = if judge.errors > 0 { &READ_REFUSED } else { &HARMLESS };
    counter.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// A result, or nothing if damage was the reason.
fn note<T>(result: ashlardb::Result<T>, what: &str) -> Result<Option<T>, String> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match tells_of_damage(&error) {
            Ok(()) => Ok(None),
            Err(wrong) => Err(format!("{what}: {wrong}")),
        },
    }
}
