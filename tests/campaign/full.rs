//! The disk is full: writes are refused with the error that says so, everything else goes on, and
//! when there is room again so do writes, without the database being opened again.
//!
//! One round: some operations; then the disk gets full at some moment, by its size or, simulated, at
//! any call to the file system; operations go on until one is refused. From then on each is either
//! done or refused with [`Error::DiskFull`], and what was refused has changed nothing; reads,
//! ranges and a snapshot from before agree with the model. When there is room again, operations are
//! taken again, everything acknowledged is there, and no file is left over that nobody needs; the
//! same after opening again. Rounds are on a simulated file system, and, where that is permitted, on
//! a small real one in memory, which a child process has to itself.

use crate::child::{check_names, check_whole};
use crate::driver::{Size, Violation, panic_text};
use crate::process::{Dice, Running, Scratch, end_with_parent, tell, tell_wrong, tmpfs_permitted};
use crate::writers::{Hands, Judge, Model, Op, SHARED, Script, check_pairs, load, options, space};
use ashlardb::vfs::{Call, Env, Failure, SimVfs, Vfs};
use ashlardb::{Background, Db, Durability, Error, ErrorKind, Snapshot};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How often the disk of one database gets full.
const ROUNDS: u64 = 4;
/// The size of the real disk, in bytes.
const REAL_BYTES: u64 = 16 << 20;
/// How long room may take to be noticed.
const PATIENCE: Duration = Duration::from_secs(30);

static REFUSALS: AtomicU64 = AtomicU64::new(0);
static ON_TMPFS: AtomicU64 = AtomicU64::new(0);
static POISONED: AtomicU64 = AtomicU64::new(0);

/// What came of the rounds so far, in words; nothing if there were none.
pub fn summary() -> Option<String> {
    let [refusals, real, poisoned] =
        [&REFUSALS, &ON_TMPFS, &POISONED].map(|n| n.load(Ordering::Relaxed));
    (refusals > 0).then(|| {
        format!(
            "full: {refusals} operations refused on simulated disks, {real} rounds on real ones, \
             {poisoned} rounds where a sync failed for want of room"
        )
    })
}

/// One database, on the one or the other disk.
pub fn run(seed: u64, _size: Size) -> Result<u64, Violation> {
    if seed.is_multiple_of(4) && real_permitted() {
        run_real(seed)?;
        ON_TMPFS.fetch_add(ROUNDS, Ordering::Relaxed);
        return Ok(ROUNDS);
    }
    rounds(seed, Disk::simulated(seed))?;
    Ok(ROUNDS)
}

/// Whether a child can have a small disk of its own here.
pub fn real_permitted() -> bool {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED
        .get_or_init(|| Scratch::new("full").is_ok_and(|scratch| tmpfs_permitted(scratch.path())))
}

/// Runs the rounds of a seed in a child that has a small disk of its own.
pub fn run_real(seed: u64) -> Result<(), Violation> {
    let scratch = Scratch::new("full")?;
    let mount = scratch.path();
    let arguments = ["full".to_owned(), mount.display().to_string(), seed.to_string()];
    let (_child, output) = Running::start_on_tmpfs(mount, REAL_BYTES, &arguments)
        .map_err(|error| format!("no child: {error}"))?;
    let lines: Vec<String> = BufReader::new(output).lines().map_while(Result::ok).collect();
    match lines.last() {
        Some(line) if line == "done" => Ok(()),
        Some(line) => Err(Violation(format!("on a real disk: {line}"))),
        None => Err("on a real disk: the child died".into()),
    }
}

/// The child's side.
pub fn child_main(arguments: &[String]) {
    end_with_parent();
    let [mount, seed] = arguments else { tell_wrong("these are no arguments") };
    let disk = Disk::Real { mount: PathBuf::from(mount) };
    let seed = seed.parse().unwrap_or_default();
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| rounds(seed, disk))) {
        Ok(Ok(())) => tell("done"),
        Ok(Err(what)) => tell_wrong(&what),
        Err(panic) => tell_wrong(&format!("panicked: {}", panic_text(&*panic))),
    }
}

/// What gets full.
enum Disk {
    Simulated { vfs: SimVfs, watched: Arc<Watched> },
    Real { mount: PathBuf },
}

/// What was seen of the calls to a simulated disk.
#[derive(Default)]
struct Watched {
    /// From which change on there is no room.
    full_from: AtomicU64,
    /// Whether a sync failed.
    sync_failed: AtomicBool,
    /// How many files were created.
    created: AtomicU64,
}

impl Disk {
    fn simulated(seed: u64) -> Disk {
        let vfs = SimVfs::new(seed);
        let watched = Arc::new(Watched::default());
        watched.full_from.store(u64::MAX, Ordering::Relaxed);
        let seen = Arc::clone(&watched);
        vfs.before_each_change(move |vfs, call| {
            let fails = vfs.changes() >= seen.full_from.load(Ordering::Relaxed);
            if call == Call::Sync && fails {
                seen.sync_failed.store(true, Ordering::Relaxed);
            }
            seen.created.fetch_add(u64::from(call == Call::Create), Ordering::Relaxed);
        });
        Disk::Simulated { vfs, watched }
    }

    fn env(&self, seed: u64) -> Env {
        match self {
            Disk::Simulated { vfs, .. } => {
                // The clock is real, so that waiting threads wait.
                let clock = Env::default().clock;
                Env { vfs: Arc::new(vfs.clone()), clock, ..Env::in_memory(seed) }
            }
            Disk::Real { .. } => Env::default(),
        }
    }

    fn dir(&self) -> PathBuf {
        match self {
            Disk::Simulated { .. } => PathBuf::from("/db"),
            Disk::Real { mount } => mount.join("db"),
        }
    }

    /// Leaves only so many bytes of room.
    fn fill(&self, leave: u64) -> std::io::Result<()> {
        match self {
            Disk::Simulated { vfs, .. } => vfs.set_capacity(vfs.used() + leave),
            Disk::Real { mount } => {
                let path = mount.join("ballast");
                let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
                for piece in [64 << 10, 4 << 10, 1] {
                    let bytes = vec![1; piece];
                    while file.write_all(&bytes).is_ok() {}
                }
                let len = file.metadata()?.len();
                file.set_len(len.saturating_sub(leave))?;
            }
        }
        Ok(())
    }

    /// Lets there be no room from the `k`-th change on; simulated only.
    fn fail_at(&self, k: u64) -> bool {
        let Disk::Simulated { vfs, watched } = self else { return false };
        watched.sync_failed.store(false, Ordering::Relaxed);
        watched.full_from.store(vfs.changes() + k, Ordering::Relaxed);
        vfs.fail(k, true, Failure::NoSpace);
        true
    }

    /// Whether a sync failed: then nobody knows what is durable before the next opening.
    fn sync_failed(&self) -> bool {
        matches!(self, Disk::Simulated { watched, .. }
            if watched.sync_failed.load(Ordering::Relaxed))
    }

    /// Lets there be room again.
    fn make_room(&self) -> std::io::Result<()> {
        match self {
            Disk::Simulated { vfs, watched } => {
                vfs.heal();
                vfs.set_capacity(u64::MAX);
                watched.full_from.store(u64::MAX, Ordering::Relaxed);
            }
            Disk::Real { mount } => match std::fs::remove_file(mount.join("ballast")) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
        }
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>, String> {
        match self {
            Disk::Simulated { vfs, .. } => vfs.read_dir(&self.dir()).map_err(|e| e.to_string()),
            Disk::Real { .. } => {
                let entries = std::fs::read_dir(self.dir()).map_err(|e| e.to_string())?;
                Ok(entries.flatten().map(|e| e.file_name().to_string_lossy().into()).collect())
            }
        }
    }
}

/// What must be in the database.
#[derive(Default)]
struct Kept {
    model: Model,
    /// What there is if the operation whose sync failed shows itself at the next opening, or does not
    /// any more.
    otherwise: Option<Model>,
    /// The next operation.
    n: u64,
    /// The operations that wrote a key of their own.
    extra: Vec<u64>,
}

/// A key, and its value, that only operation `n` writes.
fn extra(n: u64) -> (String, Vec<u8>) {
    (format!("~{n}"), vec![n as u8; 4000])
}

/// A database with one writer.
struct Scene<'a> {
    disk: &'a Disk,
    dice: &'a Dice,
    by_hand: bool,
    script: &'a Script,
    kept: Kept,
    db: Db,
    hands: Hands,
    /// Why the last operation was refused.
    refusal: Option<Error>,
}

fn open(disk: &Disk, dice: &Dice, by_hand: bool) -> Result<Db, String> {
    let background =
        if by_hand { Background::Manual } else { Background::Threads(1 + dice.below(2) as usize) };
    let builder = Db::builder(disk.dir()).env(disk.env(dice.next())).background(background);
    // FIFO never gives room back.
    options(dice, builder, false).open().map_err(|error| format!("open gave {error:?}"))
}

fn rounds(seed: u64, disk: Disk) -> Result<(), String> {
    let dice = Dice::of(&[seed, 4]);
    let by_hand = matches!(disk, Disk::Simulated { .. }) && !dice.one_in(4);
    let script =
        Script { seed, writer: 0, keys: 300, value_len: dice.pick(&[20, 200, 600]), sync_in: 3 };
    let mut kept = Kept::default();
    for round in 0..ROUNDS {
        let at = |what: String| format!("round {round}: {what}");
        let db = open(&disk, &dice, by_hand)?;
        let hands = Hands::new(&db, &script, Durability::Buffered);
        let hands = hands.map_err(|error| at(format!("keyspace gave {error:?}")))?;
        let script = &script;
        let mut scene =
            Scene { disk: &disk, dice: &dice, by_hand, script, kept, db, hands, refusal: None };
        let came = scene.round().map_err(at)?;
        let Scene { db, hands, .. } = scene;
        kept = scene.kept;
        drop(hands);
        if came != Came::Poisoned && dice.one_in(2) {
            db.close().map_err(|error| at(format!("close gave {error:?}")))?;
        } else {
            drop(db);
        }
        again(&disk, &dice, script, &mut kept)
            .map_err(|what| at(format!("after opening again: {what}")))?;
    }
    Ok(())
}

/// What came of an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Came {
    Done,
    Refused,
    /// A sync failed, so that only opening again helps.
    Poisoned,
}

impl Kept {
    /// Finds out whether operation `n`, whose sync failed, can be seen. Opening again may show
    /// otherwise: an edit of the manifest is there or not.
    fn settle(&mut self, db: &Db, script: &Script, op: &Op, n: u64) -> Result<(), String> {
        let mut after = self.model.clone();
        after.apply(n, op);
        if load(db, script)? == after {
            std::mem::swap(&mut self.model, &mut after);
        }
        self.otherwise = Some(after);
        Ok(())
    }

    /// Everything is right in every way of reading.
    fn read(&self, db: &Db, script: &Script) -> Result<(), String> {
        Judge::default().read_model(db, script, &self.model)?;
        for (key, value) in self.extra.iter().map(|n| extra(*n)) {
            let found = db.get(&key).map_err(|error| format!("get gave {error:?}"))?;
            if found.as_deref() != Some(&value[..]) {
                return Err(format!("{key} is lost or wrong"));
            }
        }
        Ok(())
    }
}

impl Scene<'_> {
    /// The next operation.
    fn operate(&mut self) -> Result<Came, String> {
        let n = self.kept.n;
        let (op, durability) = self.script.op(n, &self.kept.model);
        let outcome = self.hands.perform(self.script, n, &op, durability);
        self.kept.n += 1;
        let Err(error) = outcome else {
            self.kept.model.apply(n, &op);
            return Ok(Came::Done);
        };
        REFUSALS.fetch_add(1, Ordering::Relaxed);
        let came = self.judge(&error).map_err(|what| format!("operation {n}, {op:?}: {what}"))?;
        let is_first = !matches!(error, Error::Poisoned { .. });
        self.refusal = Some(error);
        if came == Came::Poisoned && is_first {
            self.kept.settle(&self.db, self.script, &op, n)?;
        }
        Ok(came)
    }

    /// Whether the error may be.
    fn judge(&self, error: &Error) -> Result<Came, String> {
        let poisoned = self.db.stats().poisoned.is_some();
        match error {
            _ if poisoned && self.disk.sync_failed() => Ok(Came::Poisoned),
            Error::DiskFull { .. } if error.kind() == ErrorKind::Io && !poisoned => {
                Ok(Came::Refused)
            }
            _ => Err(format!("a full disk gave {error:?}, poisoned: {poisoned}")),
        }
    }

    /// Background work by hand, some or all that is due.
    fn steps(&mut self) -> Result<Came, String> {
        if !self.by_hand {
            return Ok(Came::Done);
        }
        loop {
            match self.db.step() {
                Ok(true) => {}
                Ok(false) => return Ok(Came::Done),
                Err(error) => return self.judge(&error).map_err(|what| format!("step: {what}")),
            }
        }
    }

    /// Puts keys as long as can be and flushes, so that the manifest grows.
    fn grow_manifest(&mut self) -> Result<(), String> {
        for n in 0..self.dice.below(6) {
            let key = format!("~{n}{}", "m".repeat(60_000));
            let written = self.db.put(&key, b"").and_then(|()| self.db.flush());
            let written = written.and_then(|()| self.db.delete(&key));
            written.map_err(|error| format!("with room, a put gave {error:?}"))?;
        }
        Ok(())
    }

    fn round(&mut self) -> Result<Came, String> {
        for (key, _) in std::mem::take(&mut self.kept.extra).iter().map(|n| extra(*n)) {
            self.db.delete(&key).map_err(|error| format!("with room, delete gave {error:?}"))?;
        }
        if matches!(self.disk, Disk::Simulated { .. }) && self.dice.one_in(4) {
            self.grow_manifest()?;
        }
        for _ in 0..self.dice.log_uniform(1, 1500) {
            let came = self.operate()?;
            if came != Came::Done || self.kept.n.is_multiple_of(16) && self.steps()? != Came::Done {
                return Err("with room, an operation was refused".into());
            }
        }
        let before = (self.db.snapshot(), self.kept.model.clone());
        let by_call = self.dice.one_in(2) && self.disk.fail_at(self.dice.log_uniform(1, 400) - 1);
        if !by_call {
            let leave = self.dice.log_uniform(1, 600_000) - 1;
            self.disk.fill(leave).map_err(|error| format!("cannot fill the disk: {error}"))?;
        }
        let mut came = self.until_refused()?;
        if came == Came::Refused && !by_call {
            // Now without the last free bytes.
            self.disk.fill(0).map_err(|error| format!("cannot fill the disk: {error}"))?;
        }
        for _ in 0..self.dice.below(40) {
            for next in [self.operate()?, self.steps()?] {
                came = if next == Came::Poisoned { next } else { came };
            }
        }
        self.read(&before).map_err(|what| format!("while the disk was full: {what}"))?;
        if !self.by_hand && self.dice.one_in(4) {
            self.check_calm()?;
        }
        self.disk.make_room().map_err(|error| format!("cannot make room: {error}"))?;
        if came == Came::Poisoned {
            POISONED.fetch_add(1, Ordering::Relaxed);
            return Ok(came);
        }
        self.go_on()?;
        self.read(&before).map_err(|what| format!("when there was room again: {what}"))?;
        drop(before);
        self.tidy()?;
        Ok(came)
    }

    /// Goes on until an operation is refused: if overwriting needs no more room, with new keys.
    fn until_refused(&mut self) -> Result<Came, String> {
        for _ in 0..3_000 {
            match self.operate()? {
                Came::Done => {}
                other => return Ok(other),
            }
            if self.kept.n.is_multiple_of(16) && self.steps()? == Came::Poisoned {
                return Ok(Came::Poisoned);
            }
        }
        for n in self.kept.n..self.kept.n + 10_000 {
            let (key, value) = extra(n);
            self.kept.n += 1;
            match self.db.put(&key, value) {
                Ok(()) => self.kept.extra.push(n),
                Err(error) => return self.judge(&error),
            }
            if self.steps()? == Came::Poisoned {
                return Ok(Came::Poisoned);
            }
        }
        Err("nothing was refused".into())
    }

    /// Whether background threads that cannot get anything done rest in between.
    fn check_calm(&self) -> Result<(), String> {
        let Disk::Simulated { vfs, watched } = self.disk else { return Ok(()) };
        let (calls, created) = (vfs.calls(), watched.created.load(Ordering::Relaxed));
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(1200));
        let seconds = start.elapsed().as_secs_f64();
        let calls = (vfs.calls() - calls) as f64 / seconds;
        let created = (watched.created.load(Ordering::Relaxed) - created) as f64 / seconds;
        // Each of at most four threads tries twice a second.
        if calls > 20_000.0 || created > 60.0 {
            return Err(format!("{calls} calls and {created} new files a second, in vain"));
        }
        Ok(())
    }

    /// Operations are taken again.
    fn go_on(&mut self) -> Result<(), String> {
        let start = Instant::now();
        let mut refused = 0;
        let mut done = 0;
        while done < 50 {
            if self.steps()? == Came::Done && self.operate()? == Came::Done {
                done += 1;
                continue;
            }
            refused += 1;
            if self.by_hand && refused > 20 || start.elapsed() > PATIENCE {
                let stats = self.db.stats();
                return Err(format!(
                    "with room again, {refused} operations were refused: {:?}; in the background: \
                     {:?}, poisoned: {:?}",
                    self.refusal, stats.background_error, stats.poisoned
                ));
            }
            if !self.by_hand {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Everything is right, now and in the snapshot.
    fn read(&self, before: &(Snapshot, Model)) -> Result<(), String> {
        self.kept.read(&self.db, self.script)?;
        let (snapshot, model) = before;
        let old = |what| format!("a snapshot: {what}");
        let mut judge = Judge::default();
        judge.read_all(snapshot, self.script, &model.default).map_err(old)?;
        let shared = snapshot.of(&self.hands.shared).map_err(|error| format!("{error:?}"))?;
        judge.read_all(&shared, self.script, &model.shared).map_err(old)
    }

    /// After a flush with room, no file is left over.
    fn tidy(&mut self) -> Result<(), String> {
        let start = Instant::now();
        loop {
            let flushed = self.db.put("~", b"").and_then(|()| self.db.flush());
            let outcome = match flushed.and_then(|()| self.db.wait_idle()) {
                Ok(()) => check_names(&self.db, self.disk.names()?, Some(1)),
                Err(error @ Error::DiskFull { .. }) => Err(format!("still {error:?}")),
                Err(error) => return Err(format!("with room, a flush gave {error:?}")),
            };
            match outcome {
                Ok(()) => return Ok(()),
                Err(what) if self.by_hand || start.elapsed() > PATIENCE => {
                    return Err(format!("after a flush with room: {what}"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

/// Opens the database again, by hand, and looks whether everything is there and nothing else.
fn again(disk: &Disk, dice: &Dice, script: &Script, kept: &mut Kept) -> Result<(), String> {
    let db = open(disk, dice, true)?;
    check_names(&db, disk.names()?, None)?;
    if let Some(otherwise) = kept.otherwise.take()
        && load(&db, script)? == otherwise
    {
        kept.model = otherwise;
    }
    kept.read(&db, script)?;
    let shared = space(&db, SHARED).map_err(|error| format!("{error:?}"))?;
    check_pairs(&db, &shared, std::slice::from_ref(script))?;
    db.fill_key_map().map_err(|error| format!("{error:?}"))?;
    db.check_key_map()?;
    check_whole(&db)
}
