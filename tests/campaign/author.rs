//! Writes the small stores that the damage rows damage, and remembers all that is in them.
//!
//! An [`Author`] does one thing after another to a database in memory; a [`Store`] is what is left
//! when it was closed or killed. Nothing but the seed decides what its files are.

use crate::logs;
use ashlardb::vfs::{Entropy, Env, MemVfs, OpenMode, SeededEntropy, Vfs};
use ashlardb::{
    Background, Builder, Compression, Db, Durability, Error, Keyspace, KeyspaceOptions, Recovery,
    WriteBatch, merge,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where the database is.
pub const DIR: &str = "db";

/// Keys and values of each keyspace.
pub type Content = BTreeMap<String, BTreeMap<Vec<u8>, Vec<u8>>>;

/// The files of a directory, by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A put (with a value) or a delete (without one) of a key in a keyspace.
pub type Write = (u32, Vec<u8>, Option<Vec<u8>>);

/// The path of a file of the database.
pub fn path_of(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// All files of the database.
pub fn files_of(vfs: &MemVfs) -> Files {
    let names = vfs.read_dir(Path::new(DIR)).expect("the directory is there");
    names.into_iter().map(|name| (name.clone(), read_file(vfs, &name))).collect()
}

pub fn read_file(vfs: &MemVfs, name: &str) -> Vec<u8> {
    let file = vfs.open(&path_of(name), OpenMode::Read).expect("the file is there");
    let mut bytes = vec![0; file.len().expect("a length") as usize];
    file.read_exact_at(&mut bytes, 0).expect("it can be read");
    bytes
}

/// Puts these bytes in the place of a file.
pub fn write_file(vfs: &MemVfs, name: &str, bytes: &[u8]) {
    let path = path_of(name);
    let mode = if vfs.exists(&path).expect("it is known") {
        OpenMode::ReadWrite
    } else {
        OpenMode::CreateNew
    };
    let file = vfs.open(&path, mode).expect("it can be opened");
    file.set_len(0).expect("it can be cut");
    file.write_all_at(bytes, 0).expect("it can be written");
}

/// A file system that holds these files.
pub fn with_files(files: &Files) -> MemVfs {
    let vfs = MemVfs::default();
    vfs.create_dir_all(Path::new(DIR)).expect("a directory");
    for (name, bytes) in files {
        write_file(&vfs, name, bytes);
    }
    vfs
}

/// An environment over a file system, always the same one.
pub fn env_over(vfs: &MemVfs, seed: u64) -> Env {
    Env { vfs: Arc::new(vfs.clone()), ..Env::in_memory(seed) }
}

/// Random numbers that follow from a seed.
#[derive(Debug)]
pub struct Dice(SeededEntropy);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Dice(SeededEntropy::new(seed.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ 0xA5A5))
    }

    /// From 0 to `below`, exclusive.
    pub fn roll(&self, below: u64) -> u64 {
        self.0.next_u64() % below.max(1)
    }

    pub fn index(&self, below: usize) -> usize {
        self.roll(below as u64) as usize
    }

    /// Once in `n` times.
    pub fn once_in(&self, n: u64) -> bool {
        self.roll(n) == 0
    }

    /// Bytes that do not compress.
    pub fn bytes(&self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.0.next_u64() as u8).collect()
    }
}

/// How a store is written and read.
#[derive(Clone, Copy, Debug)]
pub struct Knobs {
    pub compression: Compression,
    pub bloom_bits: u8,
    pub hash_runs: bool,
    /// Above how many bytes values go into value segments.
    pub separate_above: u64,
}

impl Default for Knobs {
    fn default() -> Self {
        Knobs {
            compression: Compression::None,
            bloom_bits: 0,
            hash_runs: true,
            separate_above: u64::MAX,
        }
    }
}

impl Knobs {
    pub fn builder(&self, vfs: &MemVfs, seed: u64) -> Builder {
        Db::builder(DIR)
            .env(env_over(vfs, seed))
            .background(Background::Manual)
            .cache_bytes(1 << 20)
            .key_map_bytes(8 << 20)
            .write_buffer_bytes(64 << 10)
            .level0_runs(2)
            .compression(self.compression)
            .bloom_bits_per_key(self.bloom_bits)
            .hash_runs(self.hash_runs)
            .separate_values_above(self.separate_above)
            .merge_operator(merge::Append)
    }

    /// Opens what is there.
    pub fn open(&self, vfs: &MemVfs, recovery: Recovery) -> Result<Db, Error> {
        self.builder(vfs, 7).create_if_missing(false).recovery(recovery).open()
    }
}

#[derive(Clone, Debug)]
enum Change {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    /// Appends to the value, if there is one.
    Merge(Vec<u8>, Vec<u8>),
    /// From the first key to the second, exclusive.
    DeleteRange(Vec<u8>, Vec<u8>),
    Clear,
}

#[derive(Clone, Debug)]
struct Op {
    seqno: u64,
    space: u32,
    change: Change,
}

/// A database that nobody has open, and all that is known of it.
#[derive(Clone, Debug)]
pub struct Store {
    pub knobs: Knobs,
    pub vfs: MemVfs,
    ops: Vec<Op>,
    spaces: BTreeMap<u32, String>,
    /// The last operation.
    pub last: u64,
    /// Everything up to this operation was synced.
    pub synced: u64,
    /// Everything up to this operation is in segments.
    pub flushed: u64,
    /// Up to where each log was synced.
    pub durable: BTreeMap<String, usize>,
    /// Keys written since the last flush, by keyspace.
    pub in_memory: BTreeSet<(String, Vec<u8>)>,
}

impl Store {
    /// What was in it after an operation, in the keyspaces that there are now.
    pub fn content_at(&self, seqno: u64) -> Content {
        let mut content: Content =
            self.spaces.values().map(|name| (name.clone(), BTreeMap::new())).collect();
        for op in self.ops.iter().take_while(|op| op.seqno <= seqno) {
            let Some(space) = self.spaces.get(&op.space).and_then(|name| content.get_mut(name))
            else {
                continue;
            };
            match &op.change {
                Change::Put(key, value) => {
                    space.insert(key.clone(), value.clone());
                }
                Change::Delete(key) => {
                    space.remove(key);
                }
                Change::Merge(key, operand) => {
                    space.entry(key.clone()).or_default().extend_from_slice(operand);
                }
                Change::DeleteRange(start, end) => {
                    space.retain(|key, _| key < start || key >= end);
                }
                Change::Clear => space.clear(),
            }
        }
        content
    }

    pub fn content(&self) -> Content {
        self.content_at(self.last)
    }

    pub fn files(&self) -> Files {
        files_of(&self.vfs)
    }
}

/// A database that is being written.
#[derive(Debug)]
pub struct Author {
    db: Option<Db>,
    store: Store,
    opened: u64,
    seed: u64,
    pub dice: Dice,
}

impl Author {
    pub fn new(seed: u64, knobs: Knobs) -> Author {
        let store = Store {
            knobs,
            vfs: MemVfs::default(),
            ops: Vec::new(),
            spaces: BTreeMap::from([(0, "default".to_owned())]),
            last: 0,
            synced: 0,
            flushed: 0,
            durable: BTreeMap::new(),
            in_memory: BTreeSet::new(),
        };
        let mut author = Author { db: None, store, opened: 0, seed, dice: Dice::new(seed) };
        author.open();
        author
    }

    fn open(&mut self) {
        self.opened += 1;
        let builder = self.store.knobs.builder(&self.store.vfs, self.seed * 1000 + self.opened);
        self.db = Some(builder.open().expect("it opens"));
    }

    pub fn db(&self) -> &Db {
        self.db.as_ref().expect("it is open")
    }

    /// What it would be if the process died now.
    pub fn store(&self) -> Store {
        let mut store = self.store.clone();
        store.vfs = self.store.vfs.fork();
        for name in store.files().into_keys().filter(|name| logs::is_log(name)) {
            store.durable.entry(name).or_insert(logs::HEADER);
        }
        store
    }

    fn space(&self, id: u32) -> Keyspace {
        self.db().keyspace(&self.store.spaces[&id]).expect("a keyspace")
    }

    /// Creates a keyspace, or gives the one that is there.
    pub fn create(&mut self, name: &str) -> u32 {
        let above = self.store.knobs.separate_above;
        let options = KeyspaceOptions::new().separate_values_above(above);
        let id = self.db().keyspace_with(name, &options).expect("it can be created").id().0;
        self.store.spaces.insert(id, name.to_owned());
        self.all_durable();
        id
    }

    pub fn drop_space(&mut self, id: u32) {
        let name = self.store.spaces.remove(&id).expect("it is there");
        self.db().drop_keyspace(&name).expect("it can be dropped");
        self.store.in_memory.retain(|(space, _)| *space != name);
        self.all_durable();
    }

    /// Commits puts (with a value) and deletes (without one) as one batch.
    pub fn batch(&mut self, ops: &[Write]) {
        let mut batch = WriteBatch::new();
        for (space, key, value) in ops {
            let handle = self.space(*space);
            match value {
                Some(value) => batch.put_in(&handle, key, value),
                None => batch.delete_in(&handle, key),
            };
            self.store.last += 1;
            let change = match value {
                Some(value) => Change::Put(key.clone(), value.clone()),
                None => Change::Delete(key.clone()),
            };
            self.store.ops.push(Op { seqno: self.store.last, space: *space, change });
            self.store.in_memory.insert((self.store.spaces[space].clone(), key.clone()));
        }
        self.db().write_with(batch, Durability::Buffered).expect("a write succeeds");
        assert_eq!(self.db().stats().last_seqno, self.store.last, "operations are counted alike");
    }

    pub fn put(&mut self, space: u32, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.batch(&[(space, key.into(), Some(value.into()))]);
    }

    pub fn delete(&mut self, space: u32, key: impl Into<Vec<u8>>) {
        self.batch(&[(space, key.into(), None)]);
    }

    /// Commits one operation on the default keyspace.
    fn one(&mut self, key: &[u8], change: Change, add: impl FnOnce(&mut WriteBatch)) {
        let mut batch = WriteBatch::new();
        add(&mut batch);
        self.db().write_with(batch, Durability::Buffered).expect("a write succeeds");
        self.store.last += 1;
        self.store.ops.push(Op { seqno: self.store.last, space: 0, change });
        self.store.in_memory.insert((self.store.spaces[&0].clone(), key.to_vec()));
        assert_eq!(self.db().stats().last_seqno, self.store.last, "operations are counted alike");
    }

    /// Appends to the value of a key of the default keyspace, or begins one.
    pub fn merge(&mut self, key: &[u8], operand: &[u8]) {
        let change = Change::Merge(key.to_vec(), operand.to_vec());
        self.one(key, change, |batch| {
            batch.merge(key, operand);
        });
    }

    /// A put that expires long after all is over; or of an operand.
    pub fn write_for_a_time(&mut self, key: &[u8], value: &[u8], is_merge: bool) {
        let year = Duration::from_secs(365 * 86_400);
        let (k, v) = (key.to_vec(), value.to_vec());
        if is_merge {
            let add = |batch: &mut WriteBatch| {
                batch.merge_with_ttl(key, value, year);
            };
            self.one(key, Change::Merge(k, v), add);
        } else {
            let add = |batch: &mut WriteBatch| {
                batch.put_with_ttl(key, value, year);
            };
            self.one(key, Change::Put(k, v), add);
        }
    }

    /// Removes what lies between two keys of the default keyspace.
    pub fn delete_range(&mut self, start: &[u8], end: &[u8]) {
        let change = Change::DeleteRange(start.to_vec(), end.to_vec());
        self.one(start, change, |batch| {
            batch.delete_range(start..end);
        });
    }

    pub fn clear(&mut self, space: u32) {
        self.space(space).clear().expect("a clear succeeds");
        self.store.last += 1;
        self.store.ops.push(Op { seqno: self.store.last, space, change: Change::Clear });
        let name = self.store.spaces[&space].clone();
        self.store.in_memory.retain(|(space, _)| *space != name);
        assert_eq!(self.db().stats().last_seqno, self.store.last, "operations are counted alike");
        self.all_durable();
        // But for the last record, which only says so.
        let files = files_of(&self.store.vfs);
        let newest = files.iter().rfind(|(name, _)| logs::is_log(name));
        let log = newest.map(|(name, bytes)| logs::read(name, bytes)).expect("there is a log");
        let durable = log.records.iter().map(|record| record.durable).max();
        self.store.durable.insert(log.name, durable.unwrap_or(logs::HEADER));
    }

    fn all_durable(&mut self) {
        self.store.synced = self.store.last;
        for (name, bytes) in files_of(&self.store.vfs) {
            if logs::is_log(&name) {
                self.store.durable.insert(name, bytes.len());
            }
        }
    }

    pub fn sync(&mut self) {
        self.db().sync().expect("a sync succeeds");
        self.all_durable();
    }

    pub fn flush(&mut self) {
        self.db().flush().expect("a flush succeeds");
        self.store.flushed = self.store.last;
        self.store.synced = self.store.last;
        self.store.in_memory.clear();
    }

    pub fn compact(&mut self) {
        for name in self.store.spaces.values() {
            let space = self.db().keyspace(name).expect("a keyspace");
            space.compact_range::<&[u8]>(..).expect("a compaction succeeds");
        }
        self.store.flushed = self.store.last;
        self.store.synced = self.store.last;
        self.store.in_memory.clear();
    }

    /// Kills it and opens it again, which makes all that is there durable.
    pub fn reopen(&mut self) {
        self.db = None;
        self.all_durable();
        self.open();
    }

    pub fn close(mut self) -> Store {
        self.db.take().expect("it is open").close().expect("it closes");
        self.all_durable();
        self.store()
    }

    /// The process dies; the operating system does not.
    pub fn kill(mut self) -> Store {
        self.db = None;
        self.store()
    }
}
