//! Makes the golden files, in memory and from fixed seeds, so that they come out the same each time.

use super::bytes::{checksum, hex, put_varint, u32_at, u64_at};
use super::database::{Files, read_log, read_manifest};
use super::segment::{self, HASH_RUN, HASH_RUN_PARTITIONS, Layout, PROPERTIES};
use crate::database::log_salt;
use ashlardb::vfs::{Entropy, Env, ManualClock, MemVfs, OpenMode, SeededEntropy};
use ashlardb::{
    Background, Builder, Compaction, Compression, Db, Durability, KeyspaceId, KeyspaceOptions,
    SegmentOptions, SegmentWriter, WriteBatch, merge,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Golden databases whose segments have no hash run. Databases are not made like that any more, so
/// these files stay as they are.
pub const FROZEN: [&str; 3] = ["history", "versions", "unclean"];

/// Midnight of 1 January 2026, in seconds since the Unix epoch: when all golden files were made.
const MADE_AT: u64 = 1_767_225_600;

/// A minute later, in milliseconds: when they are read. What expires is meant to do so clearly before
/// or clearly after this.
pub const READ_AT_MS: u64 = (MADE_AT + 60) * 1000;

fn env(seed: u64) -> Env {
    env_at(seed, MADE_AT * 1000)
}

pub fn env_at(seed: u64, now_ms: u64) -> Env {
    let clock = ManualClock::default();
    clock.advance(Duration::from_millis(now_ms));
    Env {
        vfs: Arc::new(MemVfs::default()),
        clock: Arc::new(clock),
        entropy: Arc::new(SeededEntropy::new(seed)),
    }
}

pub fn read_file(env: &Env, path: &Path) -> Vec<u8> {
    let file = env.vfs.open(path, OpenMode::Read).expect("it is there");
    let mut bytes = vec![0; file.len().expect("a length") as usize];
    file.read_exact_at(&mut bytes, 0).expect("it can be read");
    bytes
}

/// The files of a directory, but for the lock.
pub fn read_dir(env: &Env, dir: &Path) -> Files {
    let names = env.vfs.read_dir(dir).expect("a directory");
    let names = names.into_iter().filter(|name| name != "LOCK");
    names.map(|name| (name.clone(), read_file(env, &dir.join(name)))).collect()
}

/// Puts files into a directory.
pub fn write_dir(env: &Env, dir: &Path, files: &Files) {
    env.vfs.create_dir_all(dir).expect("a directory");
    for (name, bytes) in files {
        let file = env.vfs.open(&dir.join(name), OpenMode::CreateNew).expect("a new file");
        file.write_all_at(bytes, 0).expect("it can be written");
    }
}

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

fn write_segment(seed: u64, options: SegmentOptions, rows: &Rows) -> Vec<u8> {
    let env = env(seed);
    let path = Path::new("golden");
    let mut writer = SegmentWriter::create_in(&env, path, options).expect("a writer");
    for (key, value) in rows {
        writer.put(key, value).expect("rows are in order");
    }
    writer.finish().expect("the segment is written");
    read_file(&env, path)
}

/// Random bytes that follow from the seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let entropy = SeededEntropy::new(seed);
    let words = std::iter::repeat_with(|| entropy.next_u64().to_le_bytes());
    words.flatten().take(length).collect()
}

fn numbered(count: u32, value: impl Fn(u32) -> Vec<u8>) -> Rows {
    (0..count).map(|i| (format!("row/{:06}", i * 7).into_bytes(), value(i))).collect()
}

fn text(i: u32) -> Vec<u8> {
    let noise = hex(&noise(u64::from(i), 12));
    format!("value {i} of the golden segment, the same words again, {noise}").into()
}

fn raw(prefix_width: u8) -> SegmentOptions {
    SegmentOptions {
        compression: Compression::None,
        bloom_bits_per_key: 10,
        prefix_width,
        // The first golden files were made before there were hash runs.
        hash_run: false,
        ..SegmentOptions::default()
    }
}

/// The standalone segments, by name, each with what was put into it.
fn standalone() -> Vec<(&'static str, Vec<u8>, Rows)> {
    let row = |key: &[u8], value: &[u8]| (key.to_vec(), value.to_vec());
    let tiny = vec![row(b"ant", b"one"), row(b"antler", b"two"), row(b"anvil", b"")];
    let plain = numbered(140, |i| noise(u64::from(i), 60));
    let texts = numbered(300, text);
    let few = numbered(110, |i| noise(u64::from(i), 24));
    let huge = vec![
        row(b"before", b"small"),
        row(b"huge", &noise(9, 70_000)),
        row(b"later", b"small again"),
    ];
    let empty = vec![row(b"", b""), row(b"\0", b""), row(b"\0\0", b"zeros"), row(b"\xff", b"ff")];
    // Ten keys with one long prefix and ten with another: long separators, and nothing common to all.
    let long = |first: u8, last: u8| [&[first][..], &vec![first; 3_998], &[last]].concat();
    let long_keys: Rows =
        (0..20).map(|i| (long(b'p' + i / 10, b'0' + i % 10), vec![i; 20])).collect();
    let short_keys: Rows = (0..8_200u16).map(|i| (i.to_be_bytes().to_vec(), vec![])).collect();
    let codec = |compression| SegmentOptions { compression, ..raw(0) };
    let bloom = |bits| SegmentOptions { bloom_bits_per_key: bits, ..raw(0) };
    let with_run = SegmentOptions { hash_run: true, ..raw(0) };
    let run_alone = SegmentOptions { hash_run: true, ..bloom(0) };
    let many_keys: Rows = (0..16_400u16).map(|i| (i.to_be_bytes().to_vec(), vec![])).collect();
    let keyspace = SegmentOptions {
        keyspace: Some(KeyspaceId(7)),
        hash_seed: Some(xxhash_rust::xxh3::xxh3_64_with_seed(&7u32.to_le_bytes(), 0xD1CE)),
        ..raw(2)
    };
    let mut segments = vec![
        ("tiny", raw(4), tiny),
        ("plain", raw(4), plain.clone()),
        ("text-none", raw(0), texts.clone()),
        ("prefix-2", raw(2), few.clone()),
        ("prefix-8", raw(8), few.clone()),
        ("huge-value", raw(0), huge.clone()),
        ("empty-key", raw(4), empty),
        ("no-bloom", bloom(0), few.clone()),
        ("partitioned-index", raw(0), long_keys),
        ("partitioned-bloom", bloom(64), short_keys),
        ("keyspace", keyspace, few),
    ];
    let with_runs = vec![
        ("hash-run", with_run, plain),
        ("hash-run-alone", run_alone.clone(), huge),
        ("hash-run-partitioned", run_alone, many_keys),
    ];
    if cfg!(feature = "lz4") {
        segments.push(("text-lz4", codec(Compression::Lz4), texts.clone()));
    }
    if cfg!(feature = "zstd") {
        segments.push(("text-zstd", codec(Compression::Zstd(3)), texts));
    }
    let segments = segments.into_iter().zip(1..);
    let written =
        segments.chain(with_runs.into_iter().zip(51..)).map(|((name, options, rows), seed)| {
            let bytes = write_segment(seed, options, &rows);
            (name, bytes, rows)
        });
    written.collect()
}

struct Database {
    env: Env,
    db: Db,
}

const DIR: &str = "db";

fn builder(env: &Env) -> Builder {
    Db::builder(DIR)
        .env(env.clone())
        .background(Background::Manual)
        .compression(Compression::None)
        // What makes other files by default is no concern of the format.
        .compaction(Compaction::Leveled)
        .level0_runs(2)
}

fn open(env: &Env) -> Db {
    builder(env).open().expect("a healthy database opens")
}

impl Database {
    fn new(seed: u64) -> Database {
        let env = env(seed);
        Database { db: open(&env), env }
    }

    /// With a merge operator.
    fn appending(seed: u64) -> Database {
        let env = env(seed);
        let db = builder(&env).merge_operator(merge::Append).open();
        Database { db: db.expect("a healthy database opens"), env }
    }

    /// The files, logs without the zeros ahead that synced ones have behind their records: how many
    /// there are is no concern of the format, and these files were made before there were any.
    fn files(&self) -> Files {
        let mut files = read_dir(&self.env, Path::new(DIR));
        let salt = log_salt(&files["MANIFEST"]);
        for (_, log) in files.iter_mut().filter(|(name, _)| name.ends_with(".wal")) {
            let end = read_log(log, salt).end as usize;
            if log[end..].iter().all(|byte| *byte == 0) {
                log.truncate(end);
            }
        }
        files
    }

    fn put(&self, key: &str, value: &str) {
        self.db.put(key, value).expect("a put succeeds");
    }

    fn put_synced(&self, key: &str, value: &str) {
        let mut batch = WriteBatch::new();
        batch.put(key, value);
        self.db.write_with(batch, Durability::Sync).expect("a write succeeds");
    }

    /// As if the process had died.
    fn reopen(self) -> Database {
        let Database { env, db } = self;
        drop(db);
        Database { db: open(&env), env }
    }

    fn close(self) -> Files {
        let Database { env, db } = self;
        db.close().expect("closing succeeds");
        read_dir(&env, Path::new(DIR))
    }
}

/// One log: batches of one and several operations, two keyspaces, a skip and a mark.
fn batches() -> Files {
    let database = Database::new(101);
    let db = &database.db;
    let other = db.keyspace("other").expect("a keyspace");
    database.put("alpha", "1");
    database.put_synced("beta", "2");
    let mut batch = WriteBatch::new();
    batch.put("gamma", "3").put_in(&other, "gamma", "three").delete("alpha");
    batch.put_in(&other, "", "the empty key").put("delta", "");
    db.write(batch).expect("a batch succeeds");
    other.put("gone", "by the clear").expect("a put succeeds");
    other.clear().expect("a clear succeeds");
    other.put("after", "the clear").expect("a put succeeds");
    other.delete("nothing").expect("a delete succeeds");
    database.put_synced("epsilon", &"long ".repeat(40));
    database.close()
}

/// Two logs, both needed: the database was reopened with everything still in the first.
fn chain() -> Files {
    let database = Database::new(102);
    for i in 0..6 {
        database.put_synced(&format!("first/{i}"), &format!("value {i}"));
    }
    let database = database.reopen();
    for i in 0..6 {
        database.put_synced(&format!("second/{i}"), &format!("value {i}"));
    }
    database.put("second/last", "not synced");
    database.files()
}

/// Logs below the floor, kept for feeds, with records of every kind on keyspaces.
fn feed() -> Files {
    let env = env(108);
    let db = builder(&env).keep_log_bytes(1 << 20).open().expect("a healthy database opens");
    let database = Database { env, db };
    let db = &database.db;
    database.put("first", "1");
    let other = db.keyspace("other").expect("a keyspace");
    other.put("gone", "by the clear").expect("a put succeeds");
    other.clear().expect("a clear succeeds");
    db.flush().expect("a flush succeeds");
    db.keyspace("dropped").expect("a keyspace").put("a", "2").expect("a put succeeds");
    db.drop_keyspace("dropped").expect("it is dropped");
    other.put("kept", "3").expect("a put succeeds");
    db.flush().expect("a flush succeeds");
    database.put("last", "4");
    drop(other);
    database.close()
}

/// One log whose last record, never synced, was cut by a crash.
fn torn() -> Files {
    let database = Database::new(103);
    database.put_synced("kept/1", "synced");
    database.put_synced("kept/2", "synced");
    database.put("kept/3", "written only");
    database.put("lost", "half of this record is missing");
    let mut files = database.files();
    let log = files.iter_mut().find(|(name, _)| name.ends_with(".wal")).expect("a log").1;
    log.truncate(log.len() - 20);
    files
}

/// A manifest with every kind of change, levels, runs and a dropped keyspace.
fn history() -> Files {
    let database = Database::new(104);
    let db = &database.db;
    let [kept, dropped] = ["kept", "dropped"].map(|name| db.keyspace(name).expect("a keyspace"));
    for round in 0..4 {
        for i in 0..30 {
            database.put(&format!("key/{:03}", i * (round + 1)), &format!("round {round}"));
        }
        kept.put(format!("round/{round}"), "kept").expect("a put succeeds");
        dropped.put(format!("round/{round}"), "dropped").expect("a put succeeds");
        db.flush().expect("a flush succeeds");
        if round == 1 {
            kept.clear().expect("a clear succeeds");
        }
        if round == 2 {
            db.wait_idle().expect("compactions succeed");
        }
    }
    drop(dropped);
    db.drop_keyspace("dropped").expect("it can be dropped");
    database.put("key/000", "in the log");
    database.put_synced("key/001", "in the log");
    database.files()
}

/// Many versions of some keys, tombstones among them, as snapshots that were held at the flush
/// keep them.
fn versions() -> Files {
    let database = Database::new(105);
    let db = &database.db;
    let mut snapshots = Vec::new();
    for i in 0..130 {
        database.put("hot", &format!("version {i:03} {}", "of the hot key ".repeat(3)));
        snapshots.push(db.snapshot());
        if i % 10 == 0 {
            let key = format!("cold/{:02}", i / 10);
            database.put(&key, "first");
            snapshots.push(db.snapshot());
            db.delete(&key).expect("a delete succeeds");
            if i % 20 == 0 {
                snapshots.push(db.snapshot());
                database.put(&key, "third");
            }
        }
        if i == 100 {
            db.delete("hot").expect("a delete succeeds");
            snapshots.push(db.snapshot());
        }
    }
    db.flush().expect("a flush succeeds");
    let files = database.files();
    drop(snapshots);
    files
}

/// Segments in several levels and keyspaces, and two logs to replay: the process was killed.
fn unclean() -> Files {
    let database = Database::new(106);
    let other = database.db.keyspace("other").expect("a keyspace");
    for i in 0..300u32 {
        database.put(&format!("user/{i:05}"), &format!("name {i}"));
        if i % 3 == 0 {
            other.put(i.to_be_bytes(), noise(u64::from(i), 10)).expect("a put succeeds");
        }
        if i % 75 == 74 {
            database.db.flush().expect("a flush succeeds");
        }
        if i == 160 {
            database.db.wait_idle().expect("compactions succeed");
        }
    }
    for i in (0..300).step_by(11) {
        database.db.delete(format!("user/{i:05}")).expect("a delete succeeds");
    }
    database.db.flush().expect("a flush succeeds");
    drop(other);
    for i in 0..20 {
        database.put(&format!("user/{:05}", i * 13), "renamed");
    }
    database.put_synced("user/99999", "synced");
    let database = database.reopen();
    database.db.delete("user/00001").expect("a delete succeeds");
    database.put("last", "write");
    database.files()
}

/// Expires before it is read, and after.
const SOON: Duration = Duration::from_secs(10);
const LATER: Duration = Duration::from_secs(86_400);

/// One log with operations of every kind, in keyspaces with options of every kind.
fn operations() -> Files {
    let database = Database::appending(108);
    let db = &database.db;
    let options = KeyspaceOptions::new().merge_operator(merge::AddI64).default_ttl(LATER);
    let counts = db.keyspace_with("counts", &options).expect("a keyspace");
    let options = KeyspaceOptions::new().default_ttl(SOON);
    let brief = db.keyspace_with("brief", &options).expect("a keyspace");
    database.put("chain", "a");
    database.put("range/1", "gone");
    database.put_synced("range/3", "stays");
    db.merge("chain", "b").expect("a merge succeeds");
    db.merge("alone", "x").expect("a merge succeeds");
    db.merge_with_ttl("chain", "not any more", SOON).expect("a merge succeeds");
    db.merge_with_ttl("chain", "c", LATER).expect("a merge succeeds");
    db.put_with_ttl("soon", "gone", SOON).expect("a put succeeds");
    db.put_with_ttl("later", "there", LATER).expect("a put succeeds");
    db.put_with_ttl("empty", "", LATER).expect("a put succeeds");
    counts.put("n", 40i64.to_le_bytes()).expect("a put succeeds");
    counts.merge("n", 2i64.to_le_bytes()).expect("a merge succeeds");
    brief.put("k", "gone").expect("a put succeeds");
    brief.put_with_ttl("l", "there", LATER).expect("a put succeeds");
    let mut batch = WriteBatch::new();
    batch.delete_range("range/1".."range/3").put("range/2", "behind the range tombstone");
    batch.merge("range/1", "alone again").delete_range_in(&counts, "x"..).delete("nothing");
    batch.merge_in(&counts, "y", 7i64.to_le_bytes());
    db.write(batch).expect("a batch succeeds");
    db.delete_range("soon"..="soon").expect("a delete succeeds");
    database.put_synced("last", "write");
    drop((counts, brief));
    database.files()
}

/// Operands, expiries and range tombstones in segments, manifest and logs, some of them kept for a
/// snapshot.
fn merges() -> Files {
    let database = Database::appending(109);
    let db = &database.db;
    let options = KeyspaceOptions::new().merge_operator(merge::SetUnion);
    let sets = db.keyspace_with("sets", &options).expect("a keyspace");
    let options = KeyspaceOptions::new().merge_operator(merge::Max);
    let max = db.keyspace_with("max", &options).expect("a keyspace");
    let key = |i: u32| format!("key/{i:03}");
    let flush = || db.flush().expect("a flush succeeds");
    for i in 0..60 {
        database.put(&key(i), &format!("value {i}"));
    }
    sets.put("s", merge::SetUnion::encode(["b", "d"])).expect("a put succeeds");
    max.put("m", "middle").expect("a put succeeds");
    flush();
    // These come into the manifest, and nothing is left of what they hide in the end.
    db.delete_range(key(10)..key(14)).expect("a delete succeeds");
    db.delete_range(key(12)..=key(17)).expect("a delete succeeds");
    flush();
    db.wait_idle().expect("compactions succeed");
    let snapshot = db.snapshot();
    for i in (0..60).step_by(3) {
        db.merge(key(i), " and more").expect("a merge succeeds");
        db.merge_with_ttl(key(i), " for a time", if i % 2 == 0 { SOON } else { LATER })
            .expect("a merge succeeds");
    }
    for i in (1..60).step_by(3) {
        let ttl = if i % 2 == 0 { SOON } else { LATER };
        db.put_with_ttl(key(i), format!("until {i}"), ttl).expect("a put succeeds");
    }
    db.delete(key(5)).expect("a delete succeeds");
    sets.merge("s", merge::SetUnion::encode(["a", "b"])).expect("a merge succeeds");
    max.merge("m", "largest").expect("a merge succeeds");
    max.merge("m", "last").expect("a merge succeeds");
    db.delete_range(key(20)..key(25)).expect("a delete succeeds");
    flush();
    db.wait_idle().expect("compactions succeed");
    // What these hide, the snapshot sees.
    db.delete_range(key(50)..).expect("a delete succeeds");
    max.delete_range(.."a").expect("a delete succeeds");
    db.merge(key(51), "behind it").expect("a merge succeeds");
    flush();
    db.merge(key(0), " in the log").expect("a merge succeeds");
    db.delete_range(key(30)..key(33)).expect("a delete succeeds");
    database.put_synced(&key(31), "in the log");
    drop((sets, max));
    let files = database.files();
    drop(snapshot);
    files
}

/// Segments whose entries carry no numbers, over others and under, in the top level and the bottom,
/// and logs that tell feeds of them.
fn loaded() -> Files {
    let env = env(110);
    let db = builder(&env).keep_log_bytes(1 << 20).open().expect("a healthy database opens");
    let database = Database { env, db };
    let db = &database.db;
    let key = |i: u32| format!("key/{i:03}");
    for i in 0..20 {
        database.put(&key(i), &format!("value {i}"));
    }
    let other = db.keyspace("other").expect("a keyspace");
    let mut loader = other.bulk_loader().expect("a loader");
    for i in 0..30 {
        let (key, value) = (key(i), format!("loaded {i}"));
        match i % 3 {
            0 => loader.put(key, value),
            1 => loader.put_until(key, value, READ_AT_MS - 30_000),
            _ => loader.put_until(key, value, READ_AT_MS + 30_000),
        }
        .expect("keys rise");
    }
    assert_eq!(loader.finish().expect("a load succeeds"), 30);
    let path = Path::new("file");
    let mut file = SegmentWriter::create_in(&database.env, path, raw(0)).expect("a writer");
    for i in (10..40).step_by(2) {
        file.put(key(i).as_bytes(), format!("from a file, {i}").as_bytes()).expect("in order");
    }
    file.finish().expect("the segment is written");
    assert_eq!(db.ingest([path]).expect("it is taken in"), 15);
    // Newer than what was loaded, in a segment and in the log.
    db.delete(key(12)).expect("a delete succeeds");
    other.put(key(3), "put again").expect("a put succeeds");
    db.flush().expect("a flush succeeds");
    other.delete_range(key(20)..key(25)).expect("a delete succeeds");
    database.put_synced(&key(14), "in the log");
    drop(other);
    database.files()
}

/// A record at the end of a log.
fn append_record(log: &mut Vec<u8>, kind: u8, seqno: u64, payload: &[u8]) {
    let (salt, offset) = (u64_at(log, 24), log.len());
    let mut rest = (payload.len() as u64).to_le_bytes()[..5].to_vec();
    rest.push(kind);
    rest.extend_from_slice(&seqno.to_le_bytes());
    rest.extend_from_slice(&u32::MAX.to_le_bytes());
    rest.extend_from_slice(payload);
    log.extend_from_slice(&checksum(salt, offset as u64, &rest).to_le_bytes());
    log.extend_from_slice(&rest);
}

fn op(out: &mut Vec<u8>, kind: u8, key: &[u8], value: &[u8]) {
    out.extend_from_slice(&[kind, 0]);
    put_varint(out, key.len() as u64);
    out.extend_from_slice(key);
    if kind == 1 {
        put_varint(out, value.len() as u64);
        out.extend_from_slice(value);
    }
}

/// Both copies of an edit at the end of a manifest.
pub fn append_edit(manifest: &mut Vec<u8>, number: u64, edit: &[u8]) {
    let salt = u64_at(manifest, 40);
    for _ in 0..2 {
        let offset = manifest.len();
        let mut rest = (edit.len() as u64).to_le_bytes().to_vec();
        rest.extend_from_slice(&number.to_le_bytes());
        rest.extend_from_slice(edit);
        manifest.extend_from_slice(&checksum(salt, offset as u64, &rest).to_le_bytes());
        manifest.extend_from_slice(&rest);
    }
}

/// Values in value segments, some of which nothing refers to any more; old versions that a snapshot
/// kept; values in the log that will be separated.
fn values() -> Files {
    let database = Database::new(108);
    let options = KeyspaceOptions::new().separate_values_above(40);
    let space = database.db.keyspace_with("values", &options).expect("a keyspace");
    space.put_with_ttl("later", noise(900, 120), LATER).expect("a put succeeds");
    space.put_with_ttl("soon", noise(901, 120), SOON).expect("a put succeeds");
    let mut snapshot = None;
    for round in 0..4u32 {
        for i in (0..40).filter(|i| round == 0 || i % (round + 1) == 0) {
            let length = if i % 5 == 0 { 8 + i } else { 41 + i * 11 };
            let value = noise(u64::from(round * 100 + i), length as usize);
            space.put(format!("key/{i:03}"), value).expect("a put succeeds");
        }
        if round < 3 {
            database.db.flush().expect("a flush succeeds");
        }
        if round == 1 {
            snapshot = Some(database.db.snapshot());
        }
        if round == 2 {
            space.delete("key/007").expect("a delete succeeds");
            database.db.flush().expect("a flush succeeds");
            database.db.wait_idle().expect("compactions succeed");
        }
    }
    drop(space);
    let files = database.files();
    drop(snapshot);
    files
}

/// What the format allows and our writer never does: a commit group of two batches, a record and a
/// change of optional kinds, zeros behind the log.
fn allowed() -> Files {
    let database = Database::new(107);
    database.put_synced("key", "value");
    let mut files = database.files();
    let manifest = files.get_mut("MANIFEST").expect("a manifest");
    let number = read_manifest(manifest).edits.last().expect("an edit").0 + 1;
    append_edit(manifest, number, &[0x80, 3, b'n', b'e', b'w', 0xff, 0]);
    let database = log_salt(manifest);
    let log = files.iter_mut().find(|(name, _)| name.ends_with(".wal")).expect("a log").1;
    let next = read_log(log, database).last + 1;
    append_record(log, 0x80, next, b"of a later version");
    let mut group = vec![2];
    op(&mut group, 1, b"first batch", b"1");
    op(&mut group, 2, b"key", b"");
    group.push(1);
    op(&mut group, 1, b"second batch", b"2");
    append_record(log, 1, next, &group);
    append_record(log, 0xff, next + 3, b"");
    append_record(log, 3, next + 3, b"");
    append_record(log, 1, next + 4, &{
        let mut one = vec![1];
        op(&mut one, 1, b"", b"behind the skip");
        one
    });
    log.resize(log.len() + 500, 0);
    files
}

/// A segment with an unknown optional section and an unknown optional property.
fn optional(tiny: &[u8]) -> Vec<u8> {
    let layout = segment::layout(tiny);
    let property = [&0x8001u16.to_le_bytes()[..], &4u32.to_le_bytes(), b"news"].concat();
    let extra = b"a section of a later version";
    // Properties are the last section: the new property and section go behind them.
    let mut file = tiny[..layout.table_offset].to_vec();
    file.extend_from_slice(&property);
    let mut lines = Vec::new();
    for section in &layout.sections {
        let mut line = tiny[section.line..][..28].to_vec();
        if section.id == PROPERTIES {
            assert_eq!(section.offset + section.length, layout.table_offset);
            let sum = checksum(layout.salt, section.offset as u64, &file[section.offset..]);
            let length = (section.length + property.len()) as u64;
            line[12..20].copy_from_slice(&length.to_le_bytes());
            line[20..28].copy_from_slice(&sum.to_le_bytes());
        }
        lines.push(line);
    }
    let offset = file.len() as u64;
    let mut line = 0x8fffu32.to_le_bytes().to_vec();
    line.extend_from_slice(&offset.to_le_bytes());
    line.extend_from_slice(&(extra.len() as u64).to_le_bytes());
    line.extend_from_slice(&checksum(layout.salt, offset, extra).to_le_bytes());
    lines.push(line);
    file.extend_from_slice(extra);
    let table = [&(lines.len() as u32).to_le_bytes()[..], &lines.concat()].concat();
    end_file(tiny, layout.salt, file, &table)
}

/// A segment of one hash partition, cut into 256 as our writer does only if there are more keys.
fn cut_hash_run(single: &[u8]) -> Vec<u8> {
    let layout = segment::layout(single);
    let old = layout.section(HASH_RUN).expect("a hash run");
    assert_eq!(single[old.offset], 1);
    let mut entries = segment::hash_run(single, &layout).expect("a hash run");
    entries.sort_unstable();
    let mut root = [&[2u8][..], &256u32.to_le_bytes()].concat();
    let mut partitions = Vec::new();
    for number in 0..256 {
        let mine: Vec<_> = entries.iter().filter(|entry| entry.0 >> 32 == number).collect();
        // Directories of many sizes; with the larger ones the last bits take one byte, not two.
        let p = match number {
            77 => 11,
            n if n % 32 == 5 => 8,
            n => n as u32 % 4,
        };
        let r = 16 - p;
        let first = |h40: u64| (h40 & 0xffff_ffff) >> (16 + r);
        let mut bytes = (mine.len() as u16).to_le_bytes().to_vec();
        bytes.extend_from_slice(&[p as u8, 0]);
        for j in 0..1u64 << p {
            let count = mine.iter().filter(|entry| first(entry.0) <= j).count() as u16;
            bytes.extend_from_slice(&count.to_le_bytes());
        }
        for (h40, _) in &mine {
            bytes.extend_from_slice(&((h40 >> r) as u16).to_le_bytes());
        }
        for (h40, _) in &mine {
            let last = h40 & ((1 << r) - 1);
            bytes.extend_from_slice(&last.to_le_bytes()[..u32::div_ceil(r, 8) as usize]);
        }
        for (_, page) in &mine {
            bytes.extend_from_slice(&(*page as u16).to_le_bytes());
        }
        let offset = partitions.len() as u64;
        root.extend_from_slice(&offset.to_le_bytes());
        root.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        let sum = checksum(layout.salt, old.offset as u64 + offset, &bytes);
        root.extend_from_slice(&sum.to_le_bytes());
        partitions.extend_from_slice(&bytes);
    }
    let mut sections = Vec::new();
    for section in &layout.sections {
        let bytes = single[section.offset..][..section.length].to_vec();
        if section.id == HASH_RUN {
            // They start where the single one did.
            sections.push((HASH_RUN_PARTITIONS, partitions.clone()));
            sections.push((HASH_RUN, root.clone()));
        } else {
            sections.push((section.id, bytes));
        }
    }
    with_sections(single, &layout, &sections)
}

/// The data blocks of a file, none of whose other sections has partitions, under these sections.
fn with_sections(file: &[u8], layout: &Layout, sections: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut out = file[..layout.meta_offset].to_vec();
    let mut table = (sections.len() as u32).to_le_bytes().to_vec();
    for (id, bytes) in sections {
        let offset = out.len() as u64;
        table.extend_from_slice(&u32::from(*id).to_le_bytes());
        table.extend_from_slice(&offset.to_le_bytes());
        table.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        table.extend_from_slice(&checksum(layout.salt, offset, bytes).to_le_bytes());
        out.extend_from_slice(bytes);
    }
    end_file(file, layout.salt, out, &table)
}

/// Section table and footer of `like`, behind the sections.
fn end_file(like: &[u8], salt: u64, mut file: Vec<u8>, table: &[u8]) -> Vec<u8> {
    let table_offset = file.len();
    file.extend_from_slice(table);
    let mut footer = like[like.len() - 96..].to_vec();
    footer[24..32].copy_from_slice(&(table_offset as u64).to_le_bytes());
    footer[32..40].copy_from_slice(&(table.len() as u64).to_le_bytes());
    footer[40..48].copy_from_slice(&checksum(salt, table_offset as u64, table).to_le_bytes());
    let length = (file.len() + 96) as u64;
    footer[48..56].copy_from_slice(&length.to_le_bytes());
    let sum = checksum(0, length, &footer[..88]);
    footer[88..].copy_from_slice(&sum.to_le_bytes());
    file.extend(footer);
    file
}

/// All golden files but the frozen ones, by path under `testdata/v1`.
pub fn golden() -> Files {
    let mut files = Files::new();
    for (name, bytes, rows) in standalone() {
        let read = segment::read(&bytes);
        let entries = read.entries.into_iter().map(|entry| (entry.key, entry.value));
        assert!(entries.eq(rows), "{name} holds what was put into it");
        files.insert(format!("segments/{name}.seg"), bytes);
    }
    let optional = optional(&files["segments/tiny.seg"]);
    files.insert("segments/optional.seg".into(), optional);
    let cut = cut_hash_run(&files["segments/hash-run.seg"]);
    files.insert("segments/hash-run-cut.seg".into(), cut);
    let databases = [
        ("batches", batches()),
        ("chain", chain()),
        ("torn", torn()),
        ("history-hash-run", history()),
        ("versions-hash-run", versions()),
        ("unclean-hash-run", unclean()),
        ("allowed", allowed()),
        ("feed", feed()),
        ("operations", operations()),
        ("merges", merges()),
        ("values", values()),
        ("loaded", loaded()),
    ];
    for (name, database) in databases {
        for (file, bytes) in database {
            files.insert(format!("databases/{name}/{file}"), bytes);
        }
    }
    let of_merges = |(path, _): &(&String, &Vec<u8>)| {
        path.starts_with("databases/merges/") && path.ends_with(".seg")
    };
    let largest = files.iter().filter(of_merges).max_by_key(|(_, bytes)| bytes.len());
    let largest = largest.expect("a segment").1.clone();
    files.insert("segments/merges.seg".into(), largest);
    for (dir, made) in [("backups", backups()), ("backups-values", backups_of_values())] {
        files.extend(made.into_iter().map(|(name, bytes)| (format!("{dir}/{name}"), bytes)));
    }
    files
}

/// A directory of two backups, which share segments: the second has a keyspace more and a clear.
fn backups() -> Files {
    const SAFE: &str = "safe";
    let database = Database::new(108);
    let db = &database.db;
    let back_up = || db.backup(SAFE, &mut |_, _| {}).expect("a backup succeeds");
    for i in 0..9 {
        database.put(&format!("shared/{i}"), &format!("value {i}"));
    }
    let cleared = db.keyspace("cleared").expect("a keyspace");
    cleared.put("gone", "by the clear").expect("a put succeeds");
    back_up();
    cleared.clear().expect("a clear succeeds");
    let other = db.keyspace("other").expect("a keyspace");
    other.put("key", "in another keyspace").expect("a put succeeds");
    db.delete("shared/3").expect("a delete succeeds");
    back_up();
    read_dir(&database.env, Path::new(SAFE))
}

/// Two backups that share a value segment; each has one that the other does not.
fn backups_of_values() -> Files {
    const SAFE: &str = "safe";
    let database = Database::new(109);
    let options = KeyspaceOptions::new().separate_values_above(40);
    let space = database.db.keyspace_with("values", &options).expect("a keyspace");
    for round in 0..2u32 {
        for i in 0..6 {
            let length = if i == 0 { 40 } else { 41 + i * 30 };
            let key = format!("{round}/{i}");
            space
                .put(key, noise(u64::from(round * 10 + i), length as usize))
                .expect("a put succeeds");
        }
        if round == 0 {
            database.db.flush().expect("a flush succeeds");
        }
        space.put("both", noise(u64::from(50 + round), 100)).expect("a put succeeds");
        database.db.backup(SAFE, &mut |_, _| {}).expect("a backup succeeds");
    }
    read_dir(&database.env, Path::new(SAFE))
}

/// Whether the logs of a golden database are seeds.
fn is_for_logs(database: &str) -> bool {
    matches!(database, "batches" | "allowed" | "torn" | "operations")
}

/// Seeds for the fuzz targets, by path under `fuzz/seeds`.
pub fn seeds(golden: &Files) -> Files {
    let mut seeds = Files::new();
    let names = [
        "tiny",
        "empty-key",
        "optional",
        "keyspace",
        "no-bloom",
        "hash-run",
        "text-lz4",
        "text-zstd",
    ];
    let cut = golden["segments/hash-run-cut.seg"].clone();
    seeds.insert("segment_reader/hash-run-cut".into(), cut);
    for name in names {
        let Some(file) = golden.get(&format!("segments/{name}.seg")) else { continue };
        let first = u32_at(file, 8) as usize * segment::PAGE;
        seeds.insert(format!("data_block/{name}"), file[..first].to_vec());
        if file.len() < 20_000 {
            seeds.insert(format!("segment_reader/{name}"), file.clone());
        }
    }
    for (path, file) in golden {
        let parts: Vec<&str> = path.split('/').collect();
        if let [dir @ ("backups" | "backups-values"), name] = parts[..]
            && let Some(number) = name.strip_suffix(".backup")
        {
            // The target reads its input as the payload, too.
            let name = dir.replacen("backups", "backup", 1);
            let number = number.trim_start_matches('0');
            seeds.insert(format!("manifest_reader/{name}-{number}"), file.clone());
            seeds.insert(format!("manifest_reader/{name}-{number}-payload"), file[88..].to_vec());
        }
        let ["databases", database, name] = parts[..] else { continue };
        if matches!(database, "versions" | "versions-hash-run" | "merges") && name.ends_with(".seg")
        {
            seeds.insert(format!("segment_reader/{database}"), file.clone());
            seeds.insert(format!("data_block/{database}"), file[..segment::PAGE].to_vec());
        } else if name.ends_with(".val") {
            let id = name.trim_start_matches('0').trim_end_matches(".val");
            seeds.insert(format!("value_reader/{database}-{id}"), file.clone());
        } else if name == "MANIFEST" && file.len() < 8_000 {
            seeds.insert(format!("manifest_reader/{database}"), file.clone());
            // The target reads its input as a single edit, too.
            let (_, at, _) = *read_manifest(file).edits.last().expect("an edit");
            let length = u32_at(file, at + 8) as usize;
            let edit = file[at + 24..][..length].to_vec();
            if edit.len() > 12 || database == "allowed" {
                seeds.insert(format!("manifest_reader/{database}-edit"), edit);
            }
        } else if name.ends_with(".wal") && is_for_logs(database) {
            // The target takes its input for log 1 with salt 0, for the records of that log, and
            // for the payload of one.
            let log = read_log(file, log_salt(&golden[&format!("databases/{database}/MANIFEST")]));
            let mut again = file[..64].to_vec();
            again[16..48].fill(0);
            again[16] = 1;
            again[48..56].copy_from_slice(&0u64.to_le_bytes());
            let sum = checksum(0, 0, &again[..56]);
            again[56..].copy_from_slice(&sum.to_le_bytes());
            for (i, record) in log.records.iter().enumerate() {
                let end = log.records.get(i + 1).map_or(log.end, |next| next.offset);
                let payload = file[record.offset + 26..end].to_vec();
                if record.kind == 1 && i < 3 && database != "torn" {
                    seeds.insert(format!("wal_reader/{database}-payload-{i}"), payload.clone());
                }
                let seqno = record.seqno - log.before;
                append_record(&mut again, record.kind, seqno, &payload);
            }
            if log.torn {
                again.extend_from_slice(&file[log.end..]);
            }
            seeds.insert(format!("wal_reader/{database}-records"), again[64..].to_vec());
            seeds.insert(format!("wal_reader/{database}"), again);
        }
    }
    seeds
}
