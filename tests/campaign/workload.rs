//! Random work on a database, what must come of it, and how to make a failing piece of work short.
//!
//! Everything follows from a seed: the operations, the options, and with `Background::Manual` over a
//! file system in memory also what the database does. A [`History`] knows each state that the
//! database went through and how much of that is durable; a [`Runner`] keeps it while it works.

use crate::copies::{Copying, Follower};
use crate::separated;
use ashlardb::filter::Verdict;
use ashlardb::vfs::{Entropy, Env, SeededEntropy};
use ashlardb::{
    Background, Builder, Compaction, Compression, DEFAULT_KEYSPACE, Db, Durability, Error,
    Keyspace, KeyspaceOptions, SegmentOptions, SegmentWriter, Snapshot, Transaction, WriteBatch,
    merge,
};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Where the database is.
pub const DIR: &str = "/db";

/// How many keys there are in a keyspace.
const KEYS: u8 = 24;

const NAMES: [&str; 3] = [DEFAULT_KEYSPACE, "k1", "k2"];

/// The keyspace without a merge operator, in which everything expires, and compactions filter.
const FLEETING: u8 = 2;

/// How long lives what expires. What stalls and retries take is nothing against it.
pub const LIFE: Duration = Duration::from_secs(100 * 3600);

/// Puts the clock where it is after so many ages, each of which outlives what was written before it.
pub fn pass_ages(env: &Env, ages: u32) {
    let start = Env::in_memory(0).clock.unix_ms();
    let then = start + u64::from(2 * ages) * LIFE.as_millis() as u64;
    env.clock.sleep(Duration::from_millis(then.saturating_sub(env.clock.unix_ms())));
}

/// Random numbers of a seed.
pub struct Rng(SeededEntropy);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(SeededEntropy::new(seed))
    }

    pub fn next(&self) -> u64 {
        self.0.next_u64()
    }

    pub fn below(&self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// A change to one key, or to all from one on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub keyspace: u8,
    pub key: u8,
    pub effect: Effect,
}

/// What is done to a key. A value is one that no other change has, of so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Put(u32, u16),
    PutForATime(u32, u16),
    Merge(u32, u16),
    MergeForATime(u32, u16),
    Delete,
    /// The keys up to this one go, exclusive.
    DeleteTo(u8),
}

impl Change {
    pub fn put(keyspace: u8, key: u8, id: u32, len: u16) -> Change {
        Change { keyspace, key, effect: Effect::Put(id, len) }
    }

    fn add_to(self, batch: &mut WriteBatch, handle: &Keyspace) {
        let key = key_bytes(self.key);
        match self.effect {
            Effect::Put(id, len) => batch.put_in(handle, key, value_bytes(id, len)),
            Effect::PutForATime(id, len) => {
                batch.put_in_with_ttl(handle, key, value_bytes(id, len), LIFE)
            }
            Effect::Merge(id, len) => batch.merge_in(handle, key, value_bytes(id, len)),
            Effect::MergeForATime(id, len) => {
                batch.merge_in_with_ttl(handle, key, value_bytes(id, len), LIFE)
            }
            Effect::Delete => batch.delete_in(handle, key),
            Effect::DeleteTo(end) => batch.delete_range_in(handle, key..key_bytes(end)),
        };
    }

    fn add_to_transaction(self, to: &Transaction, handle: &Keyspace) -> Result<(), Error> {
        let key = key_bytes(self.key);
        match self.effect {
            Effect::Put(id, len) => to.put_in(handle, key, value_bytes(id, len)),
            Effect::PutForATime(id, len) => {
                to.put_in_with_ttl(handle, key, value_bytes(id, len), LIFE)
            }
            Effect::Merge(id, len) => to.merge_in(handle, key, value_bytes(id, len)),
            Effect::MergeForATime(id, len) => {
                to.merge_in_with_ttl(handle, key, value_bytes(id, len), LIFE)
            }
            Effect::Delete => to.delete_in(handle, key),
            Effect::DeleteTo(end) => to.delete_range_in(handle, key..key_bytes(end)),
        }
    }

    fn apply_to(self, contents: &mut BTreeMap<Vec<u8>, Value>) {
        let key = key_bytes(self.key);
        let piece = |id, len, expires| {
            vec![Piece {
                bytes: value_bytes(id, len),
                expires: expires || self.keyspace == FLEETING,
            }]
        };
        match self.effect {
            Effect::Put(id, _) | Effect::PutForATime(id, _)
                if self.keyspace == FLEETING && is_unwanted(id) =>
            {
                contents.remove(&key);
            }
            Effect::Put(id, len) => drop(contents.insert(key, Value(piece(id, len, false)))),
            Effect::PutForATime(id, len) => drop(contents.insert(key, Value(piece(id, len, true)))),
            Effect::Merge(id, len) => {
                contents.entry(key).or_default().0.extend(piece(id, len, false));
            }
            Effect::MergeForATime(id, len) => {
                contents.entry(key).or_default().0.extend(piece(id, len, true));
            }
            Effect::Delete => drop(contents.remove(&key)),
            Effect::DeleteTo(end) => {
                let end = key_bytes(end);
                contents.retain(|k, _| *k < key || *k >= end);
            }
        }
    }
}

/// Something to do to a database.
#[derive(Clone, PartialEq, Eq)]
pub enum Op {
    /// A batch, synced or not.
    Write(Vec<Change>, bool),
    /// The same in a transaction, which reads what it changes.
    Transact(Vec<Change>, bool),
    /// So much time passes that all expires that can.
    Pass,
    Sync,
    Flush,
    /// One piece of background work.
    Step,
    /// All background work that is due.
    Idle,
    Compact(u8),
    /// Values for some keys, sorted and loaded at once; or written into two files, which are taken in.
    Load(Vec<Change>, bool),
    Create(u8),
    Drop(u8),
    Clear(u8),
    /// Reads everything.
    Read,
    /// Takes a snapshot, or compares it and lets go of it if there is one.
    Snapshot,
    /// Makes a copy and compares it.
    Copy(Copying),
    /// Closes the database and opens it again.
    Close,
    /// Drops it without closing it, and opens it again.
    Kill,
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Write(changes, sync) | Op::Transact(changes, sync) => {
                let what = if matches!(self, Op::Write(..)) { "Write" } else { "Transact" };
                write!(f, "{what}{}[", if *sync { "Sync" } else { "" })?;
                for (at, Change { keyspace, key, effect }) in changes.iter().enumerate() {
                    let space = if at > 0 { " " } else { "" };
                    write!(f, "{space}{keyspace}:{key}")?;
                    match effect {
                        Effect::Put(id, len) => write!(f, "={id}x{len}")?,
                        Effect::PutForATime(id, len) => write!(f, "={id}x{len}~")?,
                        Effect::Merge(id, len) => write!(f, "+{id}x{len}")?,
                        Effect::MergeForATime(id, len) => write!(f, "+{id}x{len}~")?,
                        Effect::Delete => write!(f, "-")?,
                        Effect::DeleteTo(end) => write!(f, "..{end}-")?,
                    }
                }
                write!(f, "]")
            }
            Op::Load(changes, from_files) => {
                let values = Op::Write(changes.clone(), false);
                write!(f, "{}{values:?}", if *from_files { "Ingest" } else { "Load" })
            }
            Op::Compact(k) => write!(f, "Compact({k})"),
            Op::Create(k) => write!(f, "Create({k})"),
            Op::Drop(k) => write!(f, "Drop({k})"),
            Op::Clear(k) => write!(f, "Clear({k})"),
            Op::Pass => write!(f, "Pass"),
            Op::Sync => write!(f, "Sync"),
            Op::Flush => write!(f, "Flush"),
            Op::Step => write!(f, "Step"),
            Op::Idle => write!(f, "Idle"),
            Op::Read => write!(f, "Read"),
            Op::Snapshot => write!(f, "Snapshot"),
            Op::Copy(copying) => write!(f, "{copying:?}"),
            Op::Close => write!(f, "Close"),
            Op::Kill => write!(f, "Kill"),
        }
    }
}

/// So many random operations.
pub fn operations(seed: u64, count: usize) -> Vec<Op> {
    let rng = Rng::new(seed ^ 0x6F70_7321);
    // Where most of it happens.
    let home = if rng.one_in(4) { FLEETING } else { 0 };
    let mut id = 0;
    let mut change = |rng: &Rng| {
        id += 1;
        let len = match rng.below(60) {
            0..3 => 0,
            3..6 => rng.below(6000) as u16,
            // Two of these fill a write buffer, so that a log is begun and a memtable waits.
            6 => 30_000 + rng.below(30_000) as u16,
            7..18 => rng.below(700) as u16,
            _ => rng.below(60) as u16,
        };
        let keyspace = if rng.one_in(3) { rng.below(3) as u8 } else { home };
        let key = rng.below(u64::from(KEYS)) as u8;
        let effect = match rng.below(40) {
            0..7 => Effect::Delete,
            7..9 => Effect::DeleteTo(rng.below(u64::from(KEYS)) as u8),
            9..18 if keyspace != FLEETING => Effect::Merge(id, len),
            18..20 if keyspace != FLEETING => Effect::MergeForATime(id, len),
            20..24 => Effect::PutForATime(id, len),
            _ => Effect::Put(id, len),
        };
        Change { keyspace, key, effect }
    };
    let space = |rng: &Rng| rng.below(3) as u8;
    let create = (home > 0).then_some(Op::Create(home));
    let rest = (0..count).map(|_| match rng.below(100) {
        0..38 => Op::Write(vec![change(&rng)], rng.one_in(4)),
        38..55 => {
            let n = 1 + rng.below(8);
            let make = if rng.one_in(3) { Op::Transact } else { Op::Write };
            make((0..n).map(|_| change(&rng)).collect(), rng.one_in(4))
        }
        55..60 => Op::Sync,
        60..69 => Op::Flush,
        69..77 => Op::Step,
        77..79 => {
            let (keyspace, n) = (space(&rng), 1 + rng.below(12));
            let changes = (0..n).map(|_| Change { keyspace, ..change(&rng) });
            let changes = changes.filter(|change| matches!(change.effect, Effect::Put(..)));
            Op::Load(changes.collect(), rng.one_in(2))
        }
        79..81 => Op::Idle,
        81..83 => Op::Compact(space(&rng)),
        83..87 => Op::Create(1 + rng.below(2) as u8),
        87..88 => Op::Drop(1 + rng.below(2) as u8),
        88..91 => Op::Clear(space(&rng)),
        91..93 => Op::Read,
        93..95 => Op::Snapshot,
        95 if rng.one_in(2) => Op::Pass,
        95..96 => Op::Copy(rng.pick(&[Copying::Checkpoint, Copying::Backup, Copying::Reader])),
        96..97 => Op::Close,
        _ => Op::Kill,
    });
    create.into_iter().chain(rest).take(count).collect()
}

/// The bytes of a key.
pub fn key_bytes(key: u8) -> Vec<u8> {
    match key {
        0 => Vec::new(),
        1..8 => vec![b'k', key],
        8..16 => format!("a/rather/long/prefix/that/many/keys/share/{key:03}").into_bytes(),
        _ => vec![b'x'; usize::from(key) * 3],
    }
}

fn value_bytes(id: u32, len: u16) -> Arc<[u8]> {
    let rng = Rng::new(u64::from(id));
    // Compresses a little, and no two are alike unless they are very short.
    let word = rng.next().to_le_bytes();
    let tail =
        (0..usize::from(len)).map(|i| if i % 3 == 0 { rng.next() as u8 } else { word[i % 8] });
    id.to_le_bytes().into_iter().chain(tail).collect()
}

/// Whether the compaction filter removes such a value.
fn is_unwanted(id: u32) -> bool {
    id.is_multiple_of(5)
}

/// Whether the compaction filter writes something behind such a value.
fn is_marked(id: u32) -> bool {
    id % 5 == 1
}

/// What the compaction filter writes behind values: longer than what they end with by chance.
const MARK: &[u8] = b"seen by the filter";

/// The compaction filter of the keyspace [`FLEETING`].
fn judge(_: &[u8], value: &[u8]) -> Verdict {
    let id = value.first_chunk().map_or(2, |id| u32::from_le_bytes(*id));
    if is_unwanted(id) {
        Verdict::Remove
    } else if is_marked(id) && !value.ends_with(MARK) {
        Verdict::Change([value, MARK].concat())
    } else {
        Verdict::Keep
    }
}

/// What is in the keyspaces that there are, and no filter has removed or yet will.
pub type State = BTreeMap<u8, BTreeMap<Vec<u8>, Value>>;

/// A value, as what was put and merged one behind the other. Equal if the bytes are: these tell
/// all that was done.
#[derive(Clone, Debug, Default)]
pub struct Value(Vec<Piece>);

#[derive(Clone, Debug)]
struct Piece {
    bytes: Arc<[u8]>,
    expires: bool,
}

impl Value {
    /// What was read in a keyspace, if the filter lets it stay; without what that has written behind it.
    pub fn read(space: u8, bytes: &[u8]) -> Option<Value> {
        let mut bytes = bytes;
        if space == FLEETING {
            let id = bytes.first_chunk().map_or(2, |id| u32::from_le_bytes(*id));
            if is_unwanted(id) {
                return None;
            }
            if is_marked(id) {
                bytes = bytes.strip_suffix(MARK).unwrap_or(bytes);
            }
        }
        Some(Value(vec![Piece { bytes: bytes.into(), expires: false }]))
    }

    /// The same, which expires if there is a time when it does.
    pub fn expiring(mut self, expires_ms: Option<u64>) -> Value {
        self.0.iter_mut().for_each(|piece| piece.expires = expires_ms.is_some());
        self
    }

    pub fn append(&mut self, other: Value) {
        self.0.extend(other.0);
    }

    fn bytes(&self) -> impl Iterator<Item = &u8> {
        self.0.iter().flat_map(|piece| piece.bytes.iter())
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        self.bytes().eq(other.bytes())
    }
}

impl Eq for Value {}

/// The same when everything that expires has expired.
pub fn after_an_age(state: &State) -> Arc<State> {
    let mut state = state.clone();
    for contents in state.values_mut() {
        for value in contents.values_mut() {
            value.0.retain(|piece| !piece.expires);
        }
        contents.retain(|_, value| !value.0.is_empty());
    }
    Arc::new(state)
}

/// The states that a database went through.
#[derive(Clone, Debug)]
pub struct History {
    states: Vec<Arc<State>>,
    /// This one or a later one must survive.
    durable: usize,
    /// What comes of the operation that is under way, perhaps.
    pending: Option<Arc<State>>,
    /// What would have come of operations that failed since the newest state: a crash may bring one
    /// of them to light, until another change is acknowledged.
    failed: Vec<Arc<State>>,
    /// How much time has passed.
    ages: u32,
}

impl Default for History {
    fn default() -> Self {
        let empty = Arc::new(State::from([(0, BTreeMap::new())]));
        History { states: vec![empty], durable: 0, pending: None, failed: Vec::new(), ages: 0 }
    }
}

impl History {
    pub fn newest(&self) -> &Arc<State> {
        self.states.last().expect("there is always a state")
    }

    /// Whether a crash now may leave this; and if so, the history that it would then have.
    pub fn admits(&self, state: &State) -> Option<History> {
        self.admits_from(self.durable, state)
    }

    /// Whether opening now would show this.
    pub fn may_recover(&self, state: &State) -> bool {
        self.outlives_process(state).is_some()
    }

    /// Whether the death of the process may leave this: it loses nothing.
    pub fn outlives_process(&self, state: &State) -> Option<History> {
        self.admits_from(self.states.len() - 1, state)
    }

    fn admits_from(&self, first: usize, state: &State) -> Option<History> {
        let is_it = |s: &&Arc<State>| ***s == *state;
        let known = self.states[first..].iter().find(is_it);
        let found = known.or_else(|| self.pending.iter().chain(&self.failed).find(is_it))?;
        let states = vec![Arc::clone(found)];
        Some(History { states, durable: 0, pending: None, failed: Vec::new(), ages: self.ages })
    }

    /// All that expires is gone from all states.
    fn pass(&mut self) {
        self.ages += 1;
        for state in self.states.iter_mut().chain(&mut self.pending).chain(&mut self.failed) {
            *state = after_an_age(state);
        }
    }

    fn begin(&mut self, next: State) {
        self.pending = Some(Arc::new(next));
    }

    /// The operation that was under way is done.
    fn done(&mut self) {
        // What changes nothing may not even have been written: it says nothing of what failed.
        if let Some(state) = self.pending.take().filter(|next| *next != *self.newest()) {
            self.states.push(state);
            self.failed.clear();
        }
    }

    /// What the operation that is under way would make, if it changes anything.
    pub fn pending(&self) -> Option<&Arc<State>> {
        self.pending.as_ref()
    }

    /// It failed, and cannot be seen; but a crash may bring it to light.
    pub fn failed(&mut self) {
        self.failed.extend(self.pending.take());
    }

    /// It failed, and left nothing.
    pub fn undone(&mut self) {
        self.pending = None;
    }

    /// It failed, but it can be seen.
    pub fn seen(&mut self) {
        self.done();
    }

    pub fn all_durable(&mut self) {
        self.durable = self.states.len() - 1;
    }

    /// In words, for a report.
    pub fn describe(&self, found: &State) -> String {
        let newest = self.newest();
        let mut differences = Vec::new();
        for (space, contents) in newest.iter() {
            let Some(other) = found.get(space) else {
                differences.push(format!("keyspace {space} is missing"));
                continue;
            };
            let keys =
                contents.keys().chain(other.keys()).collect::<std::collections::BTreeSet<_>>();
            for key in keys {
                let (want, got) = (contents.get(key), other.get(key));
                if want != got {
                    let show = |v: Option<&Value>| {
                        v.map_or("absent".into(), |v| {
                            let mut id = [0; 4];
                            id.iter_mut().zip(v.bytes()).for_each(|(to, byte)| *to = *byte);
                            format!("{}x{}", u32::from_le_bytes(id), v.bytes().count())
                        })
                    };
                    let key = key.escape_ascii();
                    differences.push(format!(
                        "{space}:{key} is {}, last {}",
                        show(got),
                        show(want)
                    ));
                }
            }
        }
        let extra = found.keys().filter(|space| !newest.contains_key(space));
        differences.extend(extra.map(|space| format!("keyspace {space} exists")));
        format!(
            "the state is none of the {} that are allowed; against the newest: {}",
            self.states.len() - self.durable
                + usize::from(self.pending.is_some())
                + self.failed.len(),
            differences.join(", ")
        )
    }
}

/// The options of a database.
#[derive(Clone, Debug)]
pub struct Config {
    compaction: Compaction,
    compression: Compression,
    hash_runs: bool,
    key_map_bytes: u64,
    fingerprint_bits: u32,
    level0_runs: usize,
    write_buffers: usize,
    cache_bytes: usize,
    durability: Durability,
    /// Above how many bytes values go into value segments.
    separate_above: u64,
    /// How many bytes of logs are kept for feeds.
    keep_log_bytes: u64,
}

impl Config {
    pub fn from_seed(seed: u64) -> Self {
        let rng = Rng::new(seed ^ 0x636F_6E66);
        let mut codecs = vec![Compression::None];
        #[cfg(feature = "lz4")]
        codecs.push(Compression::Lz4);
        #[cfg(feature = "zstd")]
        codecs.push(Compression::Zstd(3));
        Config {
            compaction: rng.pick(&[
                Compaction::Lazy,
                Compaction::Lazy,
                Compaction::Leveled,
                Compaction::Tiered,
            ]),
            compression: rng.pick(&codecs),
            hash_runs: !rng.one_in(5),
            key_map_bytes: rng.pick(&[512 << 20, 512 << 20, 4096, 0]),
            fingerprint_bits: rng.pick(&[32, 32, 2]),
            level0_runs: rng.pick(&[1, 2, 2, 3, 8]),
            write_buffers: rng.pick(&[2, 3, 8]),
            cache_bytes: rng.pick(&[0, 32 << 10, 1 << 20]),
            durability: Durability::Buffered,
            // Of every second seed, so that a row of few seeds has some.
            separate_above: if seed.is_multiple_of(2) { rng.pick(&[40, 500]) } else { u64::MAX },
            keep_log_bytes: rng.pick(&[0, 0, 20 << 10, 1 << 20]),
        }
    }

    pub fn builder(&self, env: &Env) -> Builder {
        self.builder_in(DIR, env)
    }

    /// Whether there are change feeds.
    pub fn keeps_logs(&self) -> bool {
        self.keep_log_bytes > 0
    }

    pub fn builder_in(&self, dir: &str, env: &Env) -> Builder {
        separated::watched(Db::builder(dir))
            .env(env.clone())
            .background(Background::Manual)
            .compaction(self.compaction)
            .compression(self.compression)
            .hash_runs(self.hash_runs)
            .key_map_bytes(self.key_map_bytes)
            .key_map_fingerprint_bits(self.fingerprint_bits)
            .level0_runs(self.level0_runs)
            .level1_bytes(64 << 10)
            .segment_bytes(64 << 10)
            .write_buffer_bytes(64 << 10)
            .write_buffers(self.write_buffers)
            .cache_bytes(self.cache_bytes)
            .durability(self.durability)
            .max_open_files(8)
            .merge_operator(merge::Append)
            .separate_values_above(self.separate_above)
            .keep_log_bytes(self.keep_log_bytes)
    }
}

/// A database at work.
pub struct Runner {
    pub env: Env,
    pub config: Config,
    pub history: Arc<Mutex<History>>,
    pub db: Option<Db>,
    pub handles: BTreeMap<u8, Keyspace>,
    snapshot: Option<(Snapshot, Arc<State>)>,
    /// How many copies were begun.
    pub copies: u64,
    pub follower: Option<Follower>,
}

/// What is wrong, or an error that the database gave.
#[derive(Debug)]
pub enum Trouble {
    Error(Error),
    Wrong(String),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Trouble::Error(error)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Error(error) => write!(f, "{error}"),
            Trouble::Wrong(what) => write!(f, "{what}"),
        }
    }
}

impl Runner {
    /// A runner whose database is not open yet.
    pub fn new(env: Env, config: Config, history: History) -> Self {
        let history = Arc::new(Mutex::new(history));
        let (handles, snapshot) = (BTreeMap::new(), None);
        Runner { env, config, history, db: None, handles, snapshot, copies: 0, follower: None }
    }

    pub fn open(&mut self) -> Result<(), Trouble> {
        pass_ages(&self.env, self.history.lock().unwrap().ages);
        let db = self.config.builder(&self.env).open()?;
        self.handles = handles(&db, &self.config)?;
        self.db = Some(db);
        self.history.lock().unwrap().all_durable();
        Ok(())
    }

    pub fn db(&self) -> &Db {
        self.db.as_ref().expect("the database is open")
    }

    /// Lets go of the database as it is.
    pub fn drop_db(&mut self) -> Option<Db> {
        self.snapshot = None;
        self.handles.clear();
        self.db.take()
    }

    /// Does it, and keeps the history. After an error the history says that it may have happened.
    pub fn apply(&mut self, op: &Op) -> Result<(), Trouble> {
        let outcome = self.do_it(op);
        if outcome.is_err() {
            // What could be seen may be gone after the next opening.
            self.follower = None;
        }
        outcome
    }

    fn do_it(&mut self, op: &Op) -> Result<(), Trouble> {
        let now = Arc::clone(self.history.lock().unwrap().newest());
        let history = Arc::clone(&self.history);
        let begin = |next: State| history.lock().unwrap().begin(next);
        let durable = || {
            let mut history = history.lock().unwrap();
            history.done();
            history.all_durable();
        };
        match op {
            Op::Write(changes, sync) => {
                let mut next = State::clone(&now);
                let mut batch = WriteBatch::new();
                for change in changes {
                    let Some(handle) = self.handles.get(&change.keyspace) else { continue };
                    change.add_to(&mut batch, handle);
                    change.apply_to(next.entry(change.keyspace).or_default());
                }
                begin(next);
                let durability = if *sync { Durability::Sync } else { Durability::Buffered };
                self.db().write_with(batch, durability)?;
                history.lock().unwrap().done();
                if *sync {
                    history.lock().unwrap().all_durable();
                }
            }
            Op::Transact(changes, sync) => {
                let mut next = State::clone(&now);
                let db = self.db();
                // By what is written, so that it is the same each time.
                let is_exclusive = changes.len() % 4 == 1;
                let transaction = if is_exclusive { db.begin_exclusive() } else { db.begin() };
                for change in changes {
                    let Some(handle) = self.handles.get(&change.keyspace) else { continue };
                    let key = key_bytes(change.key);
                    let contents = next.entry(change.keyspace).or_default();
                    check_own(&transaction, change.keyspace, handle, &key, contents)?;
                    change.add_to_transaction(&transaction, handle)?;
                    change.apply_to(contents);
                    check_own(&transaction, change.keyspace, handle, &key, contents)?;
                }
                begin(next);
                let durability = if *sync { Durability::Sync } else { Durability::Buffered };
                transaction.commit_with(durability)?;
                history.lock().unwrap().done();
                if *sync {
                    history.lock().unwrap().all_durable();
                }
            }
            Op::Pass => {
                let mut history = history.lock().unwrap();
                history.pass();
                pass_ages(&self.env, history.ages);
                self.follower.iter_mut().for_each(Follower::pass);
            }
            Op::Sync => {
                self.db().sync()?;
                durable();
            }
            Op::Flush => {
                self.db().flush()?;
                separated::flushed(self.db());
                durable();
            }
            Op::Step => drop(self.db().step()?),
            Op::Idle => {
                self.db().wait_idle()?;
                self.check_held()?;
            }
            Op::Compact(space) => {
                if let Some(handle) = self.handles.get(space) {
                    handle.compact_range::<&[u8]>(..)?;
                    durable();
                }
                self.check_held()?;
            }
            Op::Load(changes, from_files) => {
                let handle = changes.first().and_then(|c| self.handles.get(&c.keyspace));
                let (Some(first), Some(handle)) = (changes.first(), handle) else { return Ok(()) };
                let put = |change: &Change| match change.effect {
                    Effect::Put(id, len) => Some((key_bytes(change.key), value_bytes(id, len))),
                    _ => None,
                };
                let loaded: BTreeMap<_, _> = changes.iter().filter_map(put).collect();
                let mut next = State::clone(&now);
                let contents = next.entry(first.keyspace).or_default();
                for change in changes {
                    change.apply_to(contents);
                }
                begin(next);
                if *from_files {
                    handle.ingest(self.files(first, &loaded)?)?;
                } else {
                    handle.bulk_load(loaded)?;
                }
                durable();
            }
            Op::Create(space) if self.handles.contains_key(space) => {
                open_space(self.db(), *space, &self.config)?;
            }
            Op::Create(space) => {
                let mut next = State::clone(&now);
                next.entry(*space).or_default();
                begin(next);
                let handle = open_space(self.db(), *space, &self.config)?;
                self.handles.insert(*space, handle);
                durable();
            }
            Op::Drop(space) => {
                if self.handles.contains_key(space) {
                    let mut next = State::clone(&now);
                    next.remove(space);
                    begin(next);
                    self.db().drop_keyspace(NAMES[usize::from(*space)])?;
                    self.handles.remove(space);
                    durable();
                }
            }
            Op::Clear(space) => {
                if let Some(handle) = self.handles.get(space) {
                    let mut next = State::clone(&now);
                    next.entry(*space).or_default().clear();
                    begin(next);
                    handle.clear()?;
                    durable();
                }
            }
            Op::Read => {
                let found = self.contents()?;
                if found != *now {
                    let what = self.history.lock().unwrap().describe(&found);
                    return Err(Trouble::Wrong(what));
                }
                self.check_held()?;
                self.follow(&now)?;
            }
            Op::Snapshot => match self.snapshot.take() {
                None => self.snapshot = Some((self.db().snapshot(), now)),
                Some((snapshot, then)) => self.check_snapshot(&snapshot, &then)?,
            },
            Op::Copy(copying) => {
                if self.copy(*copying, &now)? {
                    durable();
                }
            }
            Op::Close => {
                if let Some(db) = self.drop_db() {
                    db.close()?;
                    durable();
                }
                self.open()?;
            }
            Op::Kill => {
                drop(self.drop_db());
                self.open()?;
            }
        }
        Ok(())
    }

    /// The snapshot that is held, if one is.
    fn check_held(&self) -> Result<(), Trouble> {
        self.snapshot
            .as_ref()
            .map_or(Ok(()), |(snapshot, then)| self.check_snapshot(snapshot, then))
    }

    /// Two files with these values, or one.
    fn files(
        &self,
        first: &Change,
        values: &BTreeMap<Vec<u8>, Arc<[u8]>>,
    ) -> Result<Vec<PathBuf>, Error> {
        let mut paths = Vec::new();
        let half = values.len().div_ceil(2);
        let id = if let Effect::Put(id, _) = first.effect { id } else { 0 };
        for (at, (key, value)) in values.iter().enumerate() {
            if at % half == 0 {
                // In the database's directory there are only its own.
                let path = PathBuf::from(format!("/part-{id}-{at}"));
                let options = SegmentOptions::default();
                paths.push((SegmentWriter::create_in(&self.env, &path, options)?, path));
            }
            let (writer, _) = paths.last_mut().expect("one was begun");
            writer.put(key, value)?;
        }
        let finish = |(writer, path): (SegmentWriter, PathBuf)| writer.finish().map(|_| path);
        paths.into_iter().map(finish).collect()
    }

    fn check_snapshot(&self, snapshot: &Snapshot, then: &State) -> Result<(), Trouble> {
        for (space, handle) in &self.handles {
            // One that was dropped and created again meanwhile is another.
            let Some(contents) = then.get(space).filter(|_| *space == 0) else { continue };
            let mut found = BTreeMap::new();
            for entry in snapshot.of(handle)?.get_range::<&[u8]>(..) {
                let (key, value) = entry?;
                found.extend(Value::read(*space, &value).map(|value| (key.to_vec(), value)));
            }
            if found != *contents {
                return Err(Trouble::Wrong(format!("a snapshot of keyspace {space} has changed")));
            }
        }
        Ok(())
    }

    /// Reads everything that is in the database, in each way there is.
    pub fn contents(&self) -> Result<State, Trouble> {
        contents(self.db(), &self.handles)
    }

    /// Holds the key map against one that is built anew, and everything against `history`.
    pub fn check(&self) -> Result<State, Trouble> {
        let db = self.db();
        db.fill_key_map()?;
        db.check_key_map().map_err(|what| Trouble::Wrong(format!("the key map: {what}")))?;
        self.contents()
    }
}

/// A transaction sees what it wrote, and under that what there was.
fn check_own(
    transaction: &Transaction,
    space: u8,
    handle: &Keyspace,
    key: &[u8],
    contents: &BTreeMap<Vec<u8>, Value>,
) -> Result<(), Trouble> {
    let found = transaction.get_in(handle, key)?;
    let found = found.and_then(|found| Value::read(space, &found));
    if found.as_ref() == contents.get(key) {
        return Ok(());
    }
    let what = format!("a transaction reads {found:?} at {}", key.escape_ascii());
    Err(Trouble::Wrong(what))
}

/// The keyspaces that there are.
pub fn handles(db: &Db, config: &Config) -> Result<BTreeMap<u8, Keyspace>, Trouble> {
    let mut handles = BTreeMap::new();
    for name in db.keyspaces() {
        let space = space_of(&name)?;
        handles.insert(space, open_space(db, space, config)?);
    }
    Ok(handles)
}

pub fn space_of(name: &str) -> Result<u8, Trouble> {
    let space = NAMES.iter().position(|n| *n == name);
    let space = space.ok_or_else(|| Trouble::Wrong(format!("there is a keyspace {name:?}")))?;
    Ok(space as u8)
}

pub fn space_options(space: u8) -> KeyspaceOptions {
    if space == FLEETING {
        KeyspaceOptions::new().default_ttl(LIFE).compaction_filter(judge)
    } else {
        KeyspaceOptions::new().merge_operator(merge::Append)
    }
}

/// A keyspace with its options, created if it is missing.
fn open_space(db: &Db, space: u8, config: &Config) -> Result<Keyspace, Error> {
    let options = space_options(space).separate_values_above(config.separate_above);
    db.keyspace_with(NAMES[usize::from(space)], &options)
}

pub fn contents(db: &Db, handles: &BTreeMap<u8, Keyspace>) -> Result<State, Trouble> {
    let wrong = |what: String| Err(Trouble::Wrong(what));
    let keys: Vec<Vec<u8>> = (0..=KEYS).map(key_bytes).collect();
    let mut state = State::new();
    let snapshot = db.snapshot();
    for (space, handle) in handles {
        let mut found: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for entry in handle.get_range::<&[u8]>(..) {
            let (key, value) = entry?;
            if found.last_key_value().is_some_and(|(last, _)| last[..] >= key[..]) {
                return wrong(format!("a range of {space} is out of order at {key:?}"));
            }
            found.insert(key.to_vec(), value.to_vec());
        }
        let mut backwards = found.iter().rev();
        for entry in handle.get_range::<&[u8]>(..).rev() {
            let (key, value) = entry?;
            let expected = backwards.next();
            if expected.is_none_or(|(k, v)| k[..] != key[..] || v[..] != value[..]) {
                return wrong(format!("keyspace {space} read backwards differs at {key:?}"));
            }
        }
        if backwards.next().is_some() {
            return wrong(format!("keyspace {space} read backwards ends too early"));
        }
        let many = handle.multi_get(&keys)?;
        for (key, many) in keys.iter().zip(many) {
            let expected = found.get(key).map(|value| &value[..]);
            let ways = [handle.get(key)?, many, snapshot.of(handle)?.get(key)?];
            if ways.iter().any(|got| got.as_deref() != expected) {
                return wrong(format!(
                    "key {} of {space}: a get gives {:?}, a range {:?}",
                    key.escape_ascii(),
                    ways.map(|way| way.map(|v| v.len())),
                    expected.map(<[u8]>::len)
                ));
            }
        }
        let shown = |(key, value): (Vec<u8>, Vec<u8>)| Some((key, Value::read(*space, &value)?));
        let found = found.into_iter().filter_map(shown).collect();
        state.insert(*space, found);
    }
    Ok(state)
}

/// A shorter list of operations that `fails` too, by leaving out ever smaller pieces (Zeller and
/// Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 2002).
pub fn reduce<T: Clone>(
    ops: &[T],
    fails: &dyn Fn(&[T]) -> Option<String>,
) -> (Vec<T>, Option<String>) {
    let mut best = ops.to_vec();
    let mut what = None;
    let mut attempts = 600;
    let mut piece = best.len().div_ceil(2).max(1);
    while attempts > 0 {
        let mut at = 0;
        let mut shorter = false;
        while at < best.len() && attempts > 0 {
            let mut fewer = best.clone();
            fewer.drain(at..(at + piece).min(best.len()));
            attempts -= 1;
            match fails(&fewer) {
                Some(text) => {
                    best = fewer;
                    what = Some(text);
                    shorter = true;
                }
                None => at += piece,
            }
        }
        if piece == 1 && !shorter {
            break;
        }
        piece = if shorter { piece } else { piece.div_ceil(2) };
        piece = piece.min(best.len().max(1));
    }
    (best, what)
}
