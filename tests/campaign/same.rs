//! One list of operations, many configurations, all answers the same, though the disk fails.
//!
//! The operations follow from a seed, and so do the answers: a model gives them, a sorted map for
//! each keyspace. A configuration decides how the database stores things, when background work is
//! done and which calls to the file system fail: about one in each 200 operations, in any way. What
//! fails is dealt with as a user would: the disk is mended, the database opened again if it refuses
//! writes, and the operation done once more, which is harmless since doing it twice is doing it
//! once. No answer may differ from the model's, so that no two configurations differ either.
//!
//! That a difference is found is tried too: with the first configuration of each list, a database
//! that forgets a delete must be told from one that does not.

use crate::copies::Copying;
use crate::driver::{Row, Violation, panic_text};
use crate::same_ops::{
    Effect, Expected, FILTERED, K, NAMES, Op, Read, V, answers, judge, operations,
};
use crate::separated;
use crate::workload::{DIR, LIFE, Rng, pass_ages, reduce};
use ashlardb::vfs::{Env, Failure, SimVfs};
use ashlardb::{
    Background, Backups, Builder, Compaction, Compression, Db, Durability, Error, Keyspace,
    KeyspaceOptions, ReadOnlyKeyspace, Result, SegmentOptions, SegmentWriter, Snapshot, WriteBatch,
    merge,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a list is.
const OPERATIONS: usize = 10_000;

/// How many configurations a list is run under.
const CONFIGURATIONS: u64 = 30;

pub const ROW: Row = Row {
    name: "same",
    counts: "operations, 10,000 under each of 30 configurations",
    ci: 2 * CONFIGURATIONS * OPERATIONS as u64,
    release: 100 * CONFIGURATIONS * OPERATIONS as u64,
    run: |seed, _| run(seed / CONFIGURATIONS, seed % CONFIGURATIONS),
};

fn run(list: u64, number: u64) -> std::result::Result<u64, Violation> {
    let ops = operations(list, OPERATIONS);
    if number == 0 {
        let forgetful = Setup { forgets: true, ..Setup::numbered(number) };
        let found = guarded(&ops[..OPERATIONS / 4], list, &forgetful);
        if !found.is_err_and(|(_, what)| what.contains("instead of")) {
            return Err("a database that forgets deletes passed".into());
        }
    }
    let setup = Setup::numbered(number);
    let Err((at, what)) = guarded(&ops, list, &setup) else { return Ok(ops.len() as u64) };
    let until = Instant::now() + Duration::from_secs(60);
    let last = RefCell::new(what);
    let fails = |ops: &[Op]| {
        if Instant::now() > until {
            return None;
        }
        let (_, what) = guarded(ops, list, &setup).err()?;
        last.replace(what.clone());
        Some(what)
    };
    let (ops, _) = reduce(&ops[..=at.min(ops.len() - 1)], &fails);
    let what = last.into_inner();
    let shown = &ops[ops.len().saturating_sub(60)..];
    Err(Violation(format!(
        "list {list}, configuration {number}: {what}\n  {setup:?}\n  the last of {} operations: \
         {shown:?}",
        ops.len()
    )))
}

/// Turns a panic into what is wrong, with the number of the operation.
fn guarded(ops: &[Op], list: u64, setup: &Setup) -> std::result::Result<(), (usize, String)> {
    let at = RefCell::new(0);
    let outcome = catch_unwind(AssertUnwindSafe(|| Run::new(list, setup).all(ops, &at)));
    let outcome = outcome.unwrap_or_else(|p| Err(format!("panicked: {}", panic_text(&*p))));
    let at = at.into_inner();
    outcome.map_err(|what| (at, format!("operation {at}, {:?}: {what}", ops.get(at))))
}

/// A configuration.
#[derive(Clone, Debug)]
struct Setup {
    number: u64,
    compaction: Compaction,
    compression: Compression,
    hash_runs: bool,
    key_map_bytes: u64,
    fingerprint_bits: u32,
    bloom_bits: u8,
    level0_runs: usize,
    write_buffer_bytes: usize,
    write_buffers: usize,
    segment_bytes: u64,
    level1_bytes: u64,
    cache_bytes: usize,
    max_open_files: usize,
    durability: Durability,
    /// The key map is filled at once when the database is opened.
    fills_map: bool,
    /// Above how many bytes values go into value segments.
    separate_above: u64,
    /// A step of background work is done once in so many operations.
    steps: u64,
    /// Leaves out one delete in three: to see that such things are found.
    forgets: bool,
    /// How many bytes of logs are kept for change feeds.
    keep_log_bytes: u64,
}

impl Setup {
    fn numbered(number: u64) -> Setup {
        let rng = Rng::new(number ^ 0x7361_6D65);
        let mut codecs = vec![Compression::None];
        #[cfg(feature = "lz4")]
        codecs.push(Compression::Lz4);
        #[cfg(feature = "zstd")]
        codecs.push(Compression::Zstd(1));
        let compactions = [Compaction::Lazy, Compaction::Leveled, Compaction::Tiered];
        // The first nine are all pairs of these two; what else there is follows from the number.
        let compaction = compactions[number as usize % 3];
        let compression = codecs[number as usize / 3 % codecs.len()];
        let hash_runs = number % 5 != 4;
        Setup {
            number,
            compaction,
            compression,
            hash_runs,
            key_map_bytes: [512 << 20, 1500, 0][number as usize / 2 % 3],
            fingerprint_bits: rng.pick(&[32, 32, 8, 2]),
            bloom_bits: if hash_runs { rng.pick(&[0, 0, 8]) } else { rng.pick(&[0, 3, 10]) },
            level0_runs: rng.pick(&[1, 2, 3, 8]),
            write_buffer_bytes: rng.pick(&[64 << 10, 64 << 10, 256 << 10, 4 << 20]),
            write_buffers: rng.pick(&[2, 3, 8]),
            segment_bytes: rng.pick(&[64 << 10, 64 << 10, 1 << 20]),
            level1_bytes: rng.pick(&[64 << 10, 256 << 10]),
            cache_bytes: rng.pick(&[0, 32 << 10, 16 << 20]),
            max_open_files: rng.pick(&[8, 8, 512]),
            durability: rng.pick(&[Durability::Buffered, Durability::Buffered, Durability::Sync]),
            steps: rng.pick(&[2, 10, 50, 400]),
            fills_map: rng.one_in(2),
            separate_above: rng.pick(&[u64::MAX, u64::MAX, 20, 300]),
            forgets: false,
            keep_log_bytes: rng.pick(&[0, 0, 100 << 10]),
        }
    }

    fn open(&self, vfs: &SimVfs, seed: u64, ages: u32) -> Result<(Db, Env)> {
        let env = vfs.env(seed);
        pass_ages(&env, ages);
        Ok((self.builder(DIR, &env).open()?, env))
    }

    fn builder(&self, dir: &str, env: &Env) -> Builder {
        separated::watched(Db::builder(dir))
            .env(env.clone())
            .merge_operator(merge::SetUnion)
            .background(Background::Manual)
            .compaction(self.compaction)
            .compression(self.compression)
            .hash_runs(self.hash_runs)
            .key_map_bytes(self.key_map_bytes)
            .key_map_fingerprint_bits(self.fingerprint_bits)
            .bloom_bits_per_key(self.bloom_bits)
            .level0_runs(self.level0_runs)
            .write_buffer_bytes(self.write_buffer_bytes)
            .write_buffers(self.write_buffers)
            .segment_bytes(self.segment_bytes)
            .level1_bytes(self.level1_bytes)
            .cache_bytes(self.cache_bytes)
            .max_open_files(self.max_open_files)
            .durability(self.durability)
            .separate_values_above(self.separate_above)
            .keep_log_bytes(self.keep_log_bytes)
    }
}

/// A database under one configuration, on a disk that fails.
struct Run<'a> {
    setup: &'a Setup,
    rng: Rng,
    list: u64,
    vfs: SimVfs,
    db: Option<Db>,
    handles: BTreeMap<u8, Keyspace>,
    snapshots: BTreeMap<u8, Snapshot>,
    /// How much time has passed.
    ages: u32,
    /// What the database was opened with: its clock.
    env: Option<Env>,
    /// The next failure, once it is set up; and at which operation the next one is.
    armed: Option<Failure>,
    next_fault: usize,
    /// A read may have been wrong since the database was opened.
    lied_to: bool,
    /// So that the answers can be read.
    expected: Option<Expected>,
}

impl<'a> Run<'a> {
    fn new(list: u64, setup: &'a Setup) -> Run<'a> {
        let rng = Rng::new(list << 8 ^ setup.number);
        let vfs = SimVfs::new(rng.next());
        let (handles, snapshots) = (BTreeMap::new(), BTreeMap::new());
        Run {
            setup,
            rng,
            list,
            vfs,
            db: None,
            handles,
            snapshots,
            ages: 0,
            env: None,
            armed: None,
            next_fault: 0,
            lied_to: false,
            expected: None,
        }
    }

    fn all(&mut self, ops: &[Op], now: &RefCell<usize>) -> std::result::Result<(), String> {
        let expected = answers(ops);
        for (at, (op, expected)) in ops.iter().zip(&expected).enumerate() {
            *now.borrow_mut() = at;
            self.expected = *expected;
            if at >= self.next_fault {
                self.arm(at);
            }
            if self.rng.one_in(self.setup.steps) {
                self.insist(|run| run.db().step().map(drop), "a step")?;
            }
            // `None`: it makes no sense at this place.
            let Some(expected) = expected else { continue };
            if self.setup.forgets
                && matches!(op, Op::Change(_, _, Effect::Delete))
                && self.rng.one_in(3)
            {
                continue;
            }
            let given = self.insist(|run| run.apply(op), "it")?;
            if given.is_some_and(|given| given != expected.hash) {
                return Err(format!(
                    "gives {given:x?} instead of {:x}: {}",
                    expected.hash,
                    self.explain(op)
                ));
            }
        }
        Ok(())
    }

    /// What it answers, in short, and what the model has at this place.
    fn explain(&mut self, op: &Op) -> String {
        let Op::Read(from, space, read) = op else { return String::new() };
        let Some(handle) = self.handles.get(space) else { return String::new() };
        let text = match from {
            None => read.trace(handle),
            Some(slot) => match self.snapshots.get(slot).map(|snapshot| snapshot.of(handle)) {
                Some(Ok(snapshot)) => read.trace(&snapshot),
                _ => return String::new(),
            },
        };
        format!("again, it gives {text:?}")
    }

    fn db(&self) -> &Db {
        self.db.as_ref().expect("the database is open")
    }

    /// Chooses what fails next, and when to choose again.
    fn arm(&mut self, at: usize) {
        self.mend();
        let failure = self.rng.pick(&[
            Failure::Refused,
            Failure::Refused,
            Failure::NoSpace,
            Failure::Interrupted,
            Failure::Half,
            Failure::Done,
            Failure::FlippedRead,
            Failure::MisplacedRead,
        ]);
        let sticky = self.rng.one_in(6);
        if self.rng.one_in(2) {
            self.vfs.fail(self.rng.below(80), sticky, failure);
        } else {
            self.vfs.fail_any(self.rng.below(300), sticky, failure);
        }
        self.armed = Some(failure);
        self.lied_to |= is_lie(failure);
        self.next_fault = at + 1 + self.rng.below(300) as usize;
    }

    fn mend(&mut self) {
        self.vfs.heal();
        self.armed = None;
    }

    /// Does it again until it succeeds, as a patient user would.
    fn insist<T>(
        &mut self,
        action: impl Fn(&mut Self) -> Result<T>,
        what: &str,
    ) -> std::result::Result<T, String> {
        for attempt in 0.. {
            let outcome = match self.db {
                None => self.open(),
                Some(_) => Ok(()),
            };
            let error = match outcome.and_then(|()| action(self)) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let is_proper = match &error {
                Error::Io { .. } | Error::DiskFull { .. } | Error::Poisoned { .. } => true,
                Error::Corruption { .. } => self.lied_to,
                _ => false,
            };
            if !is_proper || attempt >= 4 {
                return Err(format!("{what} fails, time {attempt}: {error}"));
            }
            self.mend();
            if attempt > 0 || matches!(error, Error::Poisoned { .. }) {
                self.let_go();
            }
        }
        unreachable!("the loop has no end")
    }

    fn let_go(&mut self) {
        self.handles.clear();
        self.snapshots.clear();
        self.db = None;
    }

    fn open(&mut self) -> Result<()> {
        self.lied_to = self.armed.is_some_and(is_lie);
        let (db, env) = self.setup.open(&self.vfs, self.list, self.ages)?;
        for name in db.keyspaces() {
            if let Some(space) = NAMES.iter().position(|n| *n == name) {
                self.handles.insert(space as u8, open_space(&db, space as u8, self.setup)?);
            }
        }
        if self.setup.fills_map {
            db.fill_key_map()?;
        }
        (self.db, self.env) = (Some(db), Some(env));
        Ok(())
    }

    /// Makes changes in a transaction that reads what it changes.
    fn transact(&self, changes: &[(u8, K, Effect)], durability: Durability) -> Result<()> {
        // Nobody else writes, so it is the same which one it is.
        let transaction =
            if self.rng.one_in(4) { self.db().begin_exclusive() } else { self.db().begin() };
        for (space, key, effect) in changes {
            let Some(handle) = self.handles.get(space) else { continue };
            let key = key.bytes();
            transaction.get_in(handle, &key)?;
            match effect {
                Effect::Put(value, false) => transaction.put_in(handle, key, value.set())?,
                Effect::Put(value, true) => {
                    transaction.put_in_with_ttl(handle, key, value.set(), LIFE)?;
                }
                Effect::Merge(value, false) => transaction.merge_in(handle, key, value.set())?,
                Effect::Merge(value, true) => {
                    transaction.merge_in_with_ttl(handle, key, value.set(), LIFE)?;
                }
                Effect::Delete => transaction.delete_in(handle, key)?,
                Effect::DeleteTo(end) => transaction.delete_range_in(handle, key..end.bytes())?,
            }
        }
        transaction.commit_with(durability)
    }

    /// Loads puts: from files if none expires and it happens so, else sorted.
    fn load(&self, handle: &Keyspace, puts: &[(K, V, bool)]) -> Result<u64> {
        let sorted: BTreeMap<_, _> = puts
            .iter()
            .map(|(key, value, expires)| (key.bytes(), (value.set(), *expires)))
            .collect();
        let env = self.env.as_ref().expect("it was opened");
        let from_files = self.rng.one_in(2) && puts.iter().all(|(.., expires)| !expires);
        if !from_files {
            let expiry = env.clock.unix_ms() + LIFE.as_millis() as u64;
            let mut loader = handle.bulk_loader()?;
            for (key, (value, expires)) in &sorted {
                match expires {
                    true => loader.put_until(key, value, expiry)?,
                    false => loader.put(key, value)?,
                }
            }
            return loader.finish();
        }
        // Each run has names of its own, as one that failed may be left.
        let name = self.rng.next();
        let mut files = Vec::new();
        let all: Vec<_> = sorted.iter().collect();
        for (n, piece) in all.chunks(all.len().div_ceil(2)).enumerate() {
            let path = PathBuf::from(format!("/{name:x}-{n}"));
            let options =
                SegmentOptions { compression: self.setup.compression, ..Default::default() };
            let mut writer = SegmentWriter::create_in(env, &path, options)?;
            piece.iter().try_for_each(|(key, (value, _))| writer.put(key, value))?;
            writer.finish()?;
            files.push(path);
        }
        // The order does not matter.
        files.reverse();
        let loaded = handle.ingest(&files)?;
        // They are not needed any more; nor does it matter if they stay.
        for path in &files {
            drop(env.vfs.remove_file(path));
        }
        Ok(loaded)
    }

    /// Reads what a copy has.
    fn ask_copy(&self, copying: Copying, space: u8, read: &Read) -> Result<u64> {
        let env = self.env.as_ref().expect("it was opened");
        // A name of its own, as a copy that failed may be left.
        let dir = format!("/copy-{:x}", self.rng.next());
        match copying {
            Copying::Checkpoint => self.db().checkpoint(&dir, &mut |_, _| {})?,
            Copying::Backup => {
                let number = self.db().backup("/backups", &mut |_, _| {})?.backup.number;
                let backups = Backups::open_in(env, "/backups")?;
                backups.restore(number, &dir, &mut |_, _| {})?;
            }
            Copying::Reader => {
                let reader = self.setup.builder(DIR, env).open_read_only()?;
                let name = NAMES[usize::from(space)];
                return read.ask(&reader.keyspace_with(name, &space_options(space, self.setup))?);
            }
        }
        let copy = self.setup.builder(&dir, env).create_if_missing(false).open()?;
        let answer = read.ask(&open_space(&copy, space, self.setup)?)?;
        copy.close()?;
        // Not needed any more; nor does it matter if it stays.
        for name in env.vfs.read_dir(Path::new(&dir)).unwrap_or_default() {
            drop(env.vfs.remove_file(&Path::new(&dir).join(name)));
        }
        Ok(answer)
    }

    /// What the operation answers. `None`: its snapshot was lost when the database had to be opened
    /// again.
    fn apply(&mut self, op: &Op) -> Result<Option<u64>> {
        let nothing = Ok(Some(0));
        match op {
            Op::Change(space, key, effect) => {
                let (handle, key) = (&self.handles[space], key.bytes());
                match effect {
                    Effect::Put(value, false) => handle.put(key, value.set())?,
                    Effect::Put(value, true) => handle.put_with_ttl(key, value.set(), LIFE)?,
                    Effect::Merge(value, false) => handle.merge(key, value.set())?,
                    Effect::Merge(value, true) => handle.merge_with_ttl(key, value.set(), LIFE)?,
                    Effect::Delete => handle.delete(key)?,
                    Effect::DeleteTo(end) => handle.delete_range(key..end.bytes())?,
                }
            }
            Op::Batch(changes, sync) => {
                let sync = if *sync { Durability::Sync } else { Durability::Buffered };
                // Which way it is done is the configuration's.
                if self.rng.one_in(3) {
                    self.transact(changes, sync)?;
                    return nothing;
                }
                let mut batch = WriteBatch::new();
                for (space, key, effect) in changes {
                    let Some(handle) = self.handles.get(space) else { continue };
                    let key = key.bytes();
                    match effect {
                        Effect::Put(value, false) => batch.put_in(handle, key, value.set()),
                        Effect::Put(value, true) => {
                            batch.put_in_with_ttl(handle, key, value.set(), LIFE)
                        }
                        Effect::Merge(value, false) => batch.merge_in(handle, key, value.set()),
                        Effect::Merge(value, true) => {
                            batch.merge_in_with_ttl(handle, key, value.set(), LIFE)
                        }
                        Effect::Delete => batch.delete_in(handle, key),
                        Effect::DeleteTo(end) => batch.delete_range_in(handle, key..end.bytes()),
                    };
                }
                self.db().write_with(batch, sync)?;
            }
            Op::Load(space, puts) => drop(self.load(&self.handles[space], puts)?),
            Op::Read(None, space, read) => return read.ask(&self.handles[space]).map(Some),
            Op::Read(Some(slot), space, read) => {
                let Some(snapshot) = self.snapshots.get(slot) else { return Ok(None) };
                return read.ask(&snapshot.of(&self.handles[space])?).map(Some);
            }
            Op::ReadCopy(copying, space, read) => {
                return self.ask_copy(*copying, *space, read).map(Some);
            }
            Op::Take(slot) => {
                let snapshot = self.db().snapshot();
                self.snapshots.insert(*slot, snapshot);
            }
            Op::LetGo(slot) => drop(self.snapshots.remove(slot)),
            Op::Create(space) => {
                let handle = open_space(self.db(), *space, self.setup)?;
                self.handles.insert(*space, handle);
            }
            Op::Drop(space) => {
                match self.db().drop_keyspace(NAMES[usize::from(*space)]) {
                    // It failed the first time, but opening again showed it done.
                    Err(Error::KeyspaceNotFound { .. }) => {}
                    outcome => outcome?,
                }
                self.handles.remove(space);
            }
            Op::Clear(space) => self.handles[space].clear()?,
            Op::Pass => {
                self.ages += 1;
                self.env.iter().for_each(|env| pass_ages(env, self.ages));
            }
            Op::Flush => {
                self.db().flush()?;
                separated::flushed(self.db());
            }
            Op::Idle => self.db().wait_idle()?,
            Op::Sync => self.db().sync()?,
            Op::Compact(space, first, last) => {
                let (first, last) = (first.bytes(), last.bytes());
                if self.rng.one_in(2) {
                    self.handles[space].compact_range::<&[u8]>(..)?;
                } else {
                    self.handles[space].compact_range(first..last)?;
                }
            }
            Op::Close => {
                let db = self.db.clone();
                self.let_go();
                db.map_or(Ok(()), Db::close)?;
                self.open()?;
            }
            Op::Kill => {
                self.let_go();
                self.open()?;
            }
            Op::Crash => {
                self.db().sync()?;
                self.let_go();
                self.mend();
                let image = self.vfs.power_loss(self.rng.next());
                self.vfs = SimVfs::on(&image, self.rng.next());
                self.open()?;
            }
        }
        nothing
    }
}

fn open_space(db: &Db, space: u8, setup: &Setup) -> Result<Keyspace> {
    db.keyspace_with(NAMES[usize::from(space)], &space_options(space, setup))
}

fn space_options(space: u8, setup: &Setup) -> KeyspaceOptions {
    let mut options = KeyspaceOptions::new()
        .merge_operator(merge::SetUnion)
        .separate_values_above(setup.separate_above);
    if space == FILTERED {
        options = options.compaction_filter(judge);
    }
    options
}

fn is_lie(failure: Failure) -> bool {
    matches!(failure, Failure::FlippedRead | Failure::MisplacedRead)
}

/// Keeps [`Read`] in one place for keyspaces and snapshots.
pub trait Reads {
    fn get(&self, key: &[u8]) -> Result<Option<ashlardb::Value>>;
    fn multi_get(&self, keys: &[&[u8]]) -> Result<Vec<Option<ashlardb::Value>>>;
    fn range(
        &self,
        bounds: (std::ops::Bound<&[u8]>, std::ops::Bound<&[u8]>),
        keys_only: bool,
    ) -> ashlardb::RangeIter;
    fn prefix(&self, prefix: &[u8]) -> ashlardb::RangeIter;
    fn first(&self) -> Result<Option<(ashlardb::Key, ashlardb::Value)>>;
    fn last(&self) -> Result<Option<(ashlardb::Key, ashlardb::Value)>>;
}

macro_rules! reads {
    ($($type:ty),*) => {$(
        impl Reads for $type {
            fn get(&self, key: &[u8]) -> Result<Option<ashlardb::Value>> {
                self.get(key)
            }
            fn multi_get(&self, keys: &[&[u8]]) -> Result<Vec<Option<ashlardb::Value>>> {
                self.multi_get(keys)
            }
            fn range(
                &self,
                bounds: (std::ops::Bound<&[u8]>, std::ops::Bound<&[u8]>),
                keys_only: bool,
            ) -> ashlardb::RangeIter {
                let options = ashlardb::IterOptions { keys_only, ..Default::default() };
                self.range_with::<&[u8]>(bounds, options)
            }
            fn prefix(&self, prefix: &[u8]) -> ashlardb::RangeIter {
                self.prefix(prefix)
            }
            fn first(&self) -> Result<Option<(ashlardb::Key, ashlardb::Value)>> {
                self.first()
            }
            fn last(&self) -> Result<Option<(ashlardb::Key, ashlardb::Value)>> {
                self.last()
            }
        }
    )*};
}
reads!(Keyspace, Snapshot, ReadOnlyKeyspace);

impl Read {
    fn trace(&self, of: &impl Reads) -> String {
        let mut text = String::new();
        let mut note = |key: &[u8], value: Option<&[u8]>| {
            let value = value.map_or("-".into(), |v| {
                format!(
                    "{}x{}",
                    v.iter().take(4).map(|b| format!("{b:02x}")).collect::<String>(),
                    v.len()
                )
            });
            text += &format!("{}={value} ", key.escape_ascii());
        };
        match self.each(of, &mut note) {
            Ok(()) => text,
            Err(error) => error.to_string(),
        }
    }
}
