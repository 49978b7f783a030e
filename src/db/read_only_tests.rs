//! What is shown beside a writer is a state that there was, and nothing is changed.

use super::super::{Background, Builder, Db, Keyspace, KeyspaceOptions, ReadOnlyDb, WriteBatch};
use crate::sync::Mutex;
use crate::version::{Change, Edit};
use crate::vfs::{Entropy, Env, MemVfs, OpenMode, SeededEntropy, SimVfs, Vfs, VfsFile, VfsLock};
use crate::wal::{Op, encode_op};
use crate::{Error, ErrorKind, IterOptions, KeyspaceId, Recovery, SeqNo};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const DIR: &str = "/db";

/// Everything in a database: keyspaces by name, keys, values.
type State = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

fn builder(env: &Env) -> Builder {
    Db::builder(DIR)
        .env(env.clone())
        .background(Background::Manual)
        .write_buffer_bytes(64 << 10)
        .level0_runs(2)
}

fn env_on(vfs: impl Vfs + 'static) -> Env {
    Env { vfs: Arc::new(vfs), ..Env::in_memory(7) }
}

/// Reads everything, each key by itself too.
fn state_of(db: &ReadOnlyDb) -> crate::Result<State> {
    let mut state = State::new();
    for name in db.keyspaces() {
        let keyspace = db.keyspace(&name)?;
        let mut entries = BTreeMap::new();
        for entry in keyspace.range_with::<&[u8]>(.., IterOptions::default()) {
            let (key, value) = entry?;
            assert_eq!(keyspace.get(&key)?.as_ref(), Some(&value));
            entries.insert(key.to_vec(), value.to_vec());
        }
        state.insert(name, entries);
    }
    Ok(state)
}

fn state_of_writer(db: &Db) -> State {
    let entries = |keyspace: Keyspace| {
        let entries = keyspace.get_range::<&[u8]>(..).map(|entry| entry.unwrap());
        entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    };
    db.keyspaces()
        .into_iter()
        .map(|name| (name.clone(), entries(db.keyspace(&name).unwrap())))
        .collect()
}

/// All files with their bytes.
fn files(vfs: &dyn Vfs) -> BTreeMap<String, Vec<u8>> {
    let names = vfs.read_dir(Path::new(DIR)).unwrap();
    let read = |name: String| {
        let file = vfs.open(&Path::new(DIR).join(&name), OpenMode::Read).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        (name, bytes)
    };
    names.into_iter().map(read).collect()
}

/// What is called before each call of the reader, with the number of calls before.
type Hook = Box<dyn FnMut(u64) + Send>;

/// A file system for a reader: lets others act between any two of its calls, and panics when it would
/// change anything.
#[derive(Clone)]
struct Between {
    below: MemVfs,
    hook: Arc<Mutex<(u64, Option<Hook>)>>,
}

impl std::fmt::Debug for Between {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Between")
    }
}

impl Between {
    fn new(below: &MemVfs, hook: impl FnMut(u64) + Send + 'static) -> Between {
        let hook = Arc::new(Mutex::new((0, Some(Box::new(hook) as Hook))));
        Between { below: below.clone(), hook }
    }

    fn call(&self) {
        let mut held = self.hook.lock();
        let number = held.0;
        held.0 += 1;
        if let Some(hook) = &mut held.1 {
            hook(number);
        }
    }
}

impl Vfs for Between {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        assert_eq!(mode, OpenMode::Read);
        self.call();
        let file = self.below.open(path, mode)?;
        Ok(Arc::new(BetweenFile { vfs: self.clone(), file }))
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        panic!("it must not change anything")
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        self.call();
        self.below.read_dir(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.call();
        self.below.exists(path)
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        panic!("it must not change anything")
    }

    fn remove_file(&self, _: &Path) -> io::Result<()> {
        panic!("it must not change anything")
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        panic!("it must not change anything")
    }

    fn lock(&self, _: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        panic!("it must not lock anything")
    }
}

#[derive(Debug)]
struct BetweenFile {
    vfs: Between,
    file: Arc<dyn VfsFile>,
}

impl VfsFile for BetweenFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.vfs.call();
        self.file.read_at(buf, offset)
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        panic!("it must not change anything")
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        panic!("it must not change anything")
    }

    fn len(&self) -> io::Result<u64> {
        self.vfs.call();
        self.file.len()
    }

    fn sync_data(&self) -> io::Result<()> {
        panic!("it must not change anything")
    }
}

/// What a writer can do between two calls of a reader.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Write,
    WriteSynced,
    Flush,
    Rotate,
    Compact,
    Clear,
    Load,
    Create,
    Drop,
    /// The manifest is replaced.
    RollOver,
    /// It is closed and opened again.
    Reopen,
    /// Dropped without a close, and opened again.
    Kill,
}

const ACTS: [Act; 12] = [
    Act::Write,
    Act::WriteSynced,
    Act::Flush,
    Act::Rotate,
    Act::Compact,
    Act::Clear,
    Act::Load,
    Act::Create,
    Act::Drop,
    Act::RollOver,
    Act::Reopen,
    Act::Kill,
];

/// A writer, and every state that there was.
struct Writer {
    vfs: MemVfs,
    db: Option<Db>,
    rng: SeededEntropy,
    history: Vec<State>,
    writes: u32,
    created: u32,
}

impl Writer {
    fn new(seed: u64) -> Writer {
        let vfs = MemVfs::default();
        let db = builder(&env_on(vfs.clone())).open().unwrap();
        let history = vec![state_of_writer(&db)];
        let rng = SeededEntropy::new(seed);
        Writer { vfs, db: Some(db), rng, history, writes: 0, created: 0 }
    }

    fn db(&self) -> &Db {
        self.db.as_ref().unwrap()
    }

    fn below(&self, n: usize) -> usize {
        (self.rng.next_u64() % n as u64) as usize
    }

    fn note(&mut self) {
        let state = state_of_writer(self.db());
        self.history.push(state);
    }

    fn other(&self) -> Option<String> {
        self.db().keyspaces().into_iter().find(|name| name != "default")
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Write | Act::WriteSynced => {
                self.writes += 1;
                let count = self.writes.to_string();
                let mut batch = WriteBatch::new();
                batch.put("count", &count);
                for _ in 0..self.below(4) {
                    let key = format!("key {}", self.below(20));
                    if self.below(4) == 0 {
                        batch.delete(key);
                    } else {
                        batch.put(key, vec![self.writes as u8; self.below(300)]);
                    }
                }
                if let Some(name) = self.other() {
                    let keyspace = self.db().keyspace(&name).unwrap();
                    batch.put_in(&keyspace, "count", &count);
                    batch.put_in(&keyspace, format!("key {}", self.below(9)), &count);
                }
                self.db().write(batch).unwrap();
                if act == Act::WriteSynced {
                    self.db().sync().unwrap();
                }
                self.note();
            }
            Act::Flush => self.db().flush().unwrap(),
            Act::Rotate => {
                let inner = self.db().inner();
                inner.rotate(&mut inner.writer.lock()).unwrap();
            }
            Act::Compact => self.db().compact_range::<&[u8]>(..).unwrap(),
            Act::Clear => {
                let name = if self.below(2) == 0 { None } else { self.other() };
                let name = name.unwrap_or_else(|| "default".into());
                self.db().keyspace(&name).unwrap().clear().unwrap();
                self.note();
            }
            Act::Load => {
                self.writes += 1;
                let name = if self.below(2) == 0 { None } else { self.other() };
                let keyspace = self.db().keyspace(&name.unwrap_or_else(|| "default".into()));
                let (from, value) = (self.below(20), self.writes.to_string());
                let mut keys: Vec<_> = (from..from + 9).map(|n| format!("key {n}")).collect();
                keys.sort();
                let entries = keys.iter().map(|key| (key, &value));
                assert_eq!(keyspace.unwrap().bulk_load(entries).unwrap(), 9);
                self.note();
            }
            Act::Create => {
                self.created += 1;
                self.db().keyspace(&format!("keyspace {}", self.created % 3)).unwrap();
                self.note();
            }
            Act::Drop => {
                if let Some(name) = self.other() {
                    self.db().drop_keyspace(&name).unwrap();
                    self.note();
                }
            }
            Act::RollOver => {
                // Says nothing, at length.
                let nothing = Change::ForgetClears { id: KeyspaceId(0), seqno: SeqNo(0) };
                let edit = Edit { changes: vec![nothing; 140_000] };
                let inner = self.db().inner();
                inner.commit_edit(&mut inner.committer.lock(), edit).unwrap();
            }
            Act::Reopen => {
                self.db.take().unwrap().close().unwrap();
                self.open();
            }
            Act::Kill => {
                drop(self.db.take());
                self.open();
            }
        }
    }

    fn open(&mut self) {
        self.db = Some(builder(&env_on(self.vfs.clone())).open().unwrap());
    }

    /// Some of everything.
    fn prepare(&mut self) {
        for act in [Act::Create, Act::Create, Act::Write, Act::Flush, Act::Write, Act::Write] {
            self.act(act);
        }
        for act in [Act::Flush, Act::Write, Act::Rotate, Act::Write, Act::Clear, Act::WriteSynced] {
            self.act(act);
        }
    }
}

/// Opens to read while `acts`, given the number of calls so far, says what the writer does. Checks that
/// what is shown is a state that there was in between, then and later.
fn open_beside(
    writer: &Arc<Mutex<Writer>>,
    mut acts: impl FnMut(u64) -> Option<Act> + Send + 'static,
    what: &str,
) -> u64 {
    let (vfs, first) = {
        let held = writer.lock();
        (held.vfs.clone(), held.history.len() - 1)
    };
    let own = Arc::clone(writer);
    let between = Between::new(&vfs, move |number| {
        if let Some(act) = acts(number) {
            own.lock().act(act);
        }
    });
    let hook = Arc::clone(&between.hook);
    let opened = builder(&env_on(between)).open_read_only();
    let db = opened.unwrap_or_else(|error| panic!("{what}: {error}"));
    let calls = {
        let mut held = hook.lock();
        held.1 = None;
        held.0
    };
    let shown = state_of(&db).unwrap();
    let mut writer = writer.lock();
    assert!(writer.history[first..].contains(&shown), "{what}: {shown:?}");
    // Whatever becomes of the files.
    for act in [Act::Write, Act::Flush, Act::Compact, Act::Clear, Act::Flush, Act::Compact] {
        writer.act(act);
    }
    assert_eq!(state_of(&db).unwrap(), shown, "{what}, later");
    let now = db.reopen().unwrap();
    assert_eq!(&state_of(&now).unwrap(), writer.history.last().unwrap(), "{what}, again");
    calls
}

fn prepared(seed: u64) -> Arc<Mutex<Writer>> {
    let mut writer = Writer::new(seed);
    writer.prepare();
    Arc::new(Mutex::new(writer))
}

#[test]
fn whatever_a_writer_does_between_two_calls_a_state_that_there_was_is_shown() {
    let pairs = [
        &[Act::Flush][..],
        &[Act::Compact],
        &[Act::Flush, Act::Compact, Act::Write],
        &[Act::Rotate, Act::Write],
        &[Act::Clear, Act::Write],
        &[Act::Clear, Act::Compact, Act::Write],
        &[Act::Load],
        &[Act::Load, Act::Write],
        &[Act::Write, Act::Load, Act::Compact, Act::Write],
        &[Act::Create, Act::Write],
        &[Act::Write, Act::Drop, Act::Write],
        &[Act::RollOver, Act::Write],
        &[Act::Write, Act::RollOver, Act::Flush],
        &[Act::Write, Act::Kill, Act::Write],
        &[Act::Reopen, Act::Flush],
    ];
    for acts in pairs {
        let mut at = 0;
        loop {
            let calls = open_beside(
                &prepared(at),
                {
                    let mut left = acts.iter();
                    move |number| if number >= at { left.next().copied() } else { None }
                },
                &format!("{acts:?} from call {at} on"),
            );
            if at >= calls {
                break;
            }
            at += 1;
        }
        assert!(at > 20, "the writer acted nowhere");
    }
}

#[test]
fn a_writer_that_acts_all_the_time_shows_no_state_that_never_was() {
    for seed in 0..150 {
        let rng = SeededEntropy::new(seed);
        let mut left = 1 + rng.next_u64() % 80;
        let one_in = 1 + rng.next_u64() % 6;
        let writer = prepared(seed);
        for _ in 0..2 {
            let rng = SeededEntropy::new(rng.next_u64());
            let acts = move |_| {
                if left == 0 || !rng.next_u64().is_multiple_of(one_in) {
                    return None;
                }
                left -= 1;
                Some(ACTS[(rng.next_u64() % ACTS.len() as u64) as usize])
            };
            open_beside(&writer, acts, &format!("seed {seed}"));
            left = 30;
        }
    }
}

/// Also where no witness in the log tells that the manifest has changed.
#[test]
fn a_keyspace_is_not_shown_beside_what_came_after_it_was_dropped() {
    let mut at = 0;
    loop {
        let vfs = MemVfs::default();
        let db = builder(&env_on(vfs.clone())).open().unwrap();
        db.keyspace("k").unwrap().put("a", "1").unwrap();
        let between = Between::new(&vfs, move |number| {
            if number == at {
                let inner = db.inner();
                let mut writer = inner.writer.lock();
                let edit = Edit { changes: vec![Change::DropKeyspace(KeyspaceId(1))] };
                inner.commit_edit(&mut inner.committer.lock(), edit).unwrap();
                let (keyspace, kind) = (KeyspaceId(0), crate::Kind::Put);
                let mut batch = vec![1];
                encode_op(&mut batch, Op { keyspace, kind, key: b"after", value: b"2" });
                let next = writer.log.next_seqno();
                writer.log.append(next, 1, &[&batch]).unwrap();
            }
        });
        let hook = Arc::clone(&between.hook);
        let reader = builder(&env_on(between)).open_read_only().unwrap();
        let both = reader.keyspace("k").is_ok() && reader.get("after").unwrap().is_some();
        assert!(!both, "at call {at}");
        let mut held = hook.lock();
        held.1 = None;
        if at >= held.0 {
            break;
        }
        at += 1;
    }
    assert!(at > 8);
}

#[test]
fn a_writer_that_clears_all_the_time_is_too_fast() {
    let writer = prepared(1);
    let (vfs, own) = (writer.lock().vfs.clone(), Arc::clone(&writer));
    let between = Between::new(&vfs, move |_| own.lock().act(Act::Clear));
    let opened = builder(&env_on(between)).open_read_only();
    let error = opened.unwrap_err();
    assert!(matches!(&error, Error::Outdated { path } if path == Path::new(DIR)), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

/// A number above which nothing may have been cleared yet is not given as that of the state.
#[test]
fn a_clear_that_is_just_being_made_is_still_to_come() {
    let env = env_on(MemVfs::default());
    let db = builder(&env).open().unwrap();
    db.put("a", "1").unwrap();
    let inner = db.inner();
    inner.writer.lock().log.append_skip().unwrap();
    let reader = builder(&env).open_read_only().unwrap();
    assert_eq!(reader.seqno(), SeqNo(1));
    db.put("a", "2").unwrap();
    let reader = reader.reopen().unwrap();
    assert_eq!((reader.seqno(), &reader.get("a").unwrap().unwrap()[..]), (SeqNo(3), &b"2"[..]));
    db.clear().unwrap();
    let reader = reader.reopen().unwrap();
    assert_eq!((reader.seqno(), reader.get("a").unwrap()), (SeqNo(4), None));
}

/// What is shown with the number of a load has what it brought.
#[test]
fn a_load_that_is_just_being_made_is_still_to_come() {
    for is_flushed in [false, true] {
        let vfs = SimVfs::new(1);
        let db = builder(&vfs.env(1)).open().unwrap();
        db.put("a", "1").unwrap();
        if is_flushed {
            db.flush().unwrap();
        }
        let seen = Arc::new(Mutex::new([0, 0]));
        let counts = Arc::clone(&seen);
        vfs.before_each_change(move |vfs, _| {
            let reader = builder(&env_on(vfs.process_death())).open_read_only().unwrap();
            let is_there = reader.get("b").unwrap().is_some();
            assert_eq!(reader.get("a").unwrap().unwrap(), if is_there { b"2" } else { b"1" });
            assert_eq!(reader.seqno(), SeqNo(1 + u64::from(is_there)));
            counts.lock()[usize::from(is_there)] += 1;
        });
        db.bulk_load([("a", "2"), ("b", "2")]).unwrap();
        vfs.forget_hook();
        assert!(seen.lock().iter().all(|times| *times > 0), "{seen:?}");
    }
}

#[test]
fn files_beyond_the_limit_are_read_or_reported_gone() {
    let env = env_on(MemVfs::default());
    let db = builder(&env).level0_runs(64).open().unwrap();
    for n in 0..30u8 {
        db.put([n], vec![n; 5000]).unwrap();
        db.flush().unwrap();
    }
    let open = |files| builder(&env).cache_bytes(0).max_open_files(files).open_read_only().unwrap();
    let (few, many) = (open(8), open(64));
    assert!(few.stats().open_files <= 8);
    for n in 0..30u8 {
        assert_eq!(few.get([n]).unwrap().unwrap(), vec![n; 5000]);
    }
    db.compact_range::<&[u8]>(..).unwrap();
    let mut gone = 0;
    for n in 0..30u8 {
        assert_eq!(many.get([n]).unwrap().unwrap(), vec![n; 5000]);
        match few.get([n]) {
            Ok(value) => assert_eq!(value.unwrap(), vec![n; 5000]),
            Err(Error::Outdated { .. }) => gone += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!((20..30).contains(&gone), "{gone}");
    assert_eq!(few.reopen().unwrap().get([3]).unwrap().unwrap(), vec![3; 5000]);
}

#[test]
fn what_a_crash_left_is_shown_as_opening_would_recover_it() {
    for seed in 0..60 {
        let sim = SimVfs::new(seed);
        let rng = SeededEntropy::new(seed);
        let db = builder(&sim.env(seed)).open().unwrap();
        for n in 0..20 + rng.next_u64() % 40 {
            let mut batch = WriteBatch::new();
            batch.put([n as u8 % 7], vec![n as u8; (rng.next_u64() % 2000) as usize]);
            batch.put([n as u8 % 5 + 100], [n as u8]);
            db.write(batch).unwrap();
            match rng.next_u64() % 12 {
                0 => db.flush().unwrap(),
                1 => db.sync().unwrap(),
                2 => db.clear().unwrap(),
                3 => drop(db.keyspace(&format!("k{n}")).unwrap()),
                4 => db.inner().rotate(&mut db.inner().writer.lock()).unwrap(),
                _ => {}
            }
        }
        for crash in 0..8 {
            let disk = if crash == 0 { sim.process_death() } else { sim.power_loss(crash) };
            let before = files(&disk);
            let panics = Between::new(&disk, |_| ());
            let shown = builder(&env_on(panics)).open_read_only().map(|db| state_of(&db).unwrap());
            assert_eq!(files(&disk), before, "seed {seed}, crash {crash}");
            let recovered = builder(&env_on(disk)).open().map(|db| state_of_writer(&db));
            match (shown, recovered) {
                (Ok(shown), Ok(recovered)) => assert_eq!(shown, recovered, "{seed}, {crash}"),
                (shown, recovered) => {
                    panic!("seed {seed}, crash {crash}: {shown:?}, {recovered:?}")
                }
            }
        }
    }
}

#[test]
fn torn_tails_and_damage_are_judged_as_at_opening() {
    let mut writer = Writer::new(3);
    writer.prepare();
    drop(writer.db.take());
    let whole = files(&writer.vfs);
    for (name, bytes) in &whole {
        for at in (0..bytes.len()).step_by(if name.ends_with(".wal") { 5 } else { 61 }) {
            for cut in [true, false] {
                let disk = writer.vfs.fork();
                let path = Path::new(DIR).join(name);
                let file = disk.open(&path, OpenMode::ReadWrite).unwrap();
                if cut {
                    file.set_len(at as u64).unwrap();
                } else {
                    file.write_all_at(&[bytes[at] ^ 0x10], at as u64).unwrap();
                }
                for recovery in [Recovery::TolerateTornTail, Recovery::PointInTime] {
                    let read = |env: &Env| builder(env).recovery(recovery).open_read_only();
                    let shown = read(&env_on(disk.fork())).and_then(|db| state_of(&db));
                    let env = env_on(disk.fork());
                    let recovered = builder(&env).recovery(recovery).open();
                    let recovered = recovered.and_then(|db| {
                        drop(db);
                        read(&env).and_then(|db| state_of(&db))
                    });
                    let text = |outcome: crate::Result<State>| outcome.map_err(|e| e.to_string());
                    assert_eq!(
                        text(shown),
                        text(recovered),
                        "{name} at {at}, cut: {cut}, {recovery:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_is_no_database_is_refused_and_stays_as_it_is() {
    let vfs = MemVfs::default();
    let open = || builder(&env_on(Between::new(&vfs, |_| ()))).open_read_only().unwrap_err();
    assert!(matches!(open(), Error::NotADatabase { .. }));
    vfs.create_dir_all(Path::new(DIR)).unwrap();
    assert!(matches!(open(), Error::NotADatabase { .. }));
    assert!(files(&vfs).is_empty());
    let db = builder(&env_on(vfs.clone())).open().unwrap();
    let reader = builder(&env_on(vfs.clone())).open_read_only().unwrap();
    assert!(matches!(reader.keyspace("k"), Err(Error::KeyspaceNotFound { .. })));
    // Neither keeps the other out, in any order.
    drop(db);
    let db = builder(&env_on(vfs.clone())).open().unwrap();
    db.put("a", "1").unwrap();
    assert_eq!(reader.get("a").unwrap(), None);
    assert_eq!(reader.reopen().unwrap().get("a").unwrap().unwrap(), b"1");
}

#[test]
fn nothing_can_be_written_even_from_within() {
    let env = env_on(MemVfs::default());
    let db = builder(&env).open().unwrap();
    db.put("a", "1").unwrap();
    let reader = builder(&env).open_read_only().unwrap();
    let inner = reader.inner();
    let core = &reader.default.core;
    let kind = crate::Kind::Put;
    assert!(matches!(inner.write_one(core, kind, b"a", b"2"), Err(Error::Poisoned { .. })));
    assert!(matches!(inner.clear(core), Err(Error::Poisoned { .. })));
    assert!(matches!(inner.flush(), Err(Error::Poisoned { .. })));
    assert!(matches!(
        inner.open_keyspace("new", &KeyspaceOptions::default()),
        Err(Error::Poisoned { .. })
    ));
    assert!(!inner.flush_oldest().unwrap());
    let edit = Edit { changes: Vec::new() };
    assert!(inner.commit_edit(&mut inner.committer.lock(), edit).is_err());
    assert_eq!(reader.get("a").unwrap().unwrap(), b"1");
}

#[test]
fn readers_in_threads_beside_a_writer_see_whole_batches() {
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("db");
    let open = || Db::builder(&path).write_buffer_bytes(64 << 10).level0_runs(2);
    let db = open().open().unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let (mut reader, mut newest, mut opened) = (None, 0u64, 0);
                    while !done.load(std::sync::atomic::Ordering::Acquire) || opened == 0 {
                        let db: ReadOnlyDb = match reader.take() {
                            None => open().open_read_only().unwrap(),
                            Some(db) => ReadOnlyDb::reopen(&db).unwrap(),
                        };
                        let count = |n: u8| {
                            let value = db.get([n]).unwrap();
                            value.map_or(0, |v| u64::from_le_bytes(v[..8].try_into().unwrap()))
                        };
                        let counts: Vec<u64> = (0..10).map(count).collect();
                        assert!(
                            counts.iter().all(|n| *n == counts[0] && *n >= newest),
                            "{counts:?}"
                        );
                        (newest, opened) = (counts[0], opened + 1);
                        reader = Some(db);
                    }
                })
            })
            .collect();
        for n in 1..=3000u64 {
            let mut batch = WriteBatch::new();
            for key in 0..10u8 {
                batch.put([key], [&n.to_le_bytes()[..], &[key; 90]].concat());
            }
            db.write(batch).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Release);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    let reader = open().open_read_only().unwrap();
    assert_eq!(reader.get([9]).unwrap().unwrap()[..8], 3000u64.to_le_bytes());
}

#[test]
fn merged_expiring_and_deleted_ranges_are_read_as_the_writer_reads_them() {
    let vfs = MemVfs::default();
    let append = || KeyspaceOptions::new().merge_operator(crate::merge::Append);
    let env = env_on(vfs.clone());
    let db = builder(&env).open().unwrap();
    let lists = db.keyspace_with("lists", &append()).unwrap();
    for flush in [true, false] {
        lists.put("a", "1").unwrap();
        lists.merge("a", "2").unwrap();
        lists.merge("b", "3").unwrap();
        lists.put_with_ttl("short", "x", Duration::from_millis(1)).unwrap();
        lists.put_with_ttl("long", "y", Duration::from_secs(3600)).unwrap();
        db.put("gone", "z").unwrap();
        if flush {
            db.flush().unwrap();
        }
        db.delete_range("g".."h").unwrap();
    }
    let reader = builder(&env).open_read_only().unwrap();
    assert!(matches!(reader.keyspace("lists"), Err(Error::MergeOperator { .. })));
    let other = KeyspaceOptions::new().merge_operator(crate::merge::AddI64);
    assert!(matches!(reader.keyspace_with("lists", &other), Err(Error::MergeOperator { .. })));
    let read = reader.keyspace_with("lists", &append()).unwrap();
    env.clock.sleep(Duration::from_millis(2));
    let get = |key: &str| read.get(key).unwrap().map(|value| value.to_vec());
    assert_eq!((get("a"), get("b")), (Some(b"12".to_vec()), Some(b"33".to_vec())));
    assert_eq!((get("short"), get("long")), (None, Some(b"y".to_vec())));
    assert_eq!(reader.get("gone").unwrap(), None);
    assert_eq!(state_of(&reader).unwrap(), state_of_writer_with(&db, &lists));
}

fn state_of_writer_with(db: &Db, opened: &Keyspace) -> State {
    assert_eq!(db.keyspaces(), ["default", opened.name()]);
    state_of_writer(db)
}
