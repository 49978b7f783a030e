//! The golden files of `testdata/v1` are read, today and forever, as their expectations say.
//!
//! They are read twice: by the library, and by readers in `golden/` that were written from FORMAT.md
//! alone. Damaged copies are noticed where and as `damaged.jsonl` says. And today's writer still
//! makes the same bytes, where no compression library has a say in them.
//!
//! `cargo test --test golden -- --ignored regenerate` writes the files anew, with the worked segment
//! in FORMAT.md and the seeds of the fuzz targets. Files of a released format version must not
//! change: it is for adding new ones.

#[path = "golden/bytes.rs"]
mod bytes;
#[path = "golden/damage.rs"]
mod damage;
#[path = "golden/damage_databases.rs"]
mod damage_databases;
#[path = "golden/database.rs"]
mod database;
#[path = "golden/dump.rs"]
mod dump;
#[path = "golden/expected.rs"]
mod expected;
#[path = "golden/make.rs"]
mod make;
#[path = "golden/newer.rs"]
mod newer;
#[path = "golden/segment.rs"]
mod segment;
#[path = "golden/values.rs"]
mod values;

use ashlardb::vfs::Env;
use ashlardb::{Background, Backups, Change, Db, Error, SegmentReader, SeqNo};
use damage::Expected;
use database::{Contents, Files};
use segment::Segment;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn golden_dir() -> PathBuf {
    root().join("testdata/v1")
}

/// All files under a directory, by path relative to it.
fn files_under(dir: &Path) -> Files {
    let mut files = Files::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let name = path.strip_prefix(dir).expect("it is under it").to_str().expect("UTF-8");
            files.insert(name.to_owned(), fs::read(&path).expect("it can be read"));
        }
    }
    files
}

/// Whether this build can read the file.
fn readable(path: &str) -> bool {
    (cfg!(feature = "lz4") || !path.contains("lz4"))
        && (cfg!(feature = "zstd") || !path.contains("zstd"))
}

/// Whether its bytes depend on the version of a compression library.
fn compressed(path: &str) -> bool {
    path.contains("lz4") || path.contains("zstd")
}

/// The golden segments: name and bytes.
fn segments(files: &Files) -> impl Iterator<Item = (&str, &[u8])> {
    files.iter().filter_map(|(path, bytes)| {
        let name = path.strip_prefix("segments/")?.strip_suffix(".seg")?;
        Some((name, bytes.as_slice()))
    })
}

/// The golden databases: name and files.
fn databases(files: &Files) -> BTreeMap<&str, Files> {
    let mut databases: BTreeMap<&str, Files> = BTreeMap::new();
    for (path, bytes) in files {
        let parts: Vec<&str> = path.split('/').collect();
        if let ["databases", database, name] = parts[..] {
            databases.entry(database).or_default().insert(name.to_owned(), bytes.clone());
        }
    }
    databases
}

fn lines_of<'a>(files: &'a Files, path: &str) -> Vec<&'a str> {
    let bytes = files.get(path).unwrap_or_else(|| panic!("{path} is missing"));
    std::str::from_utf8(bytes).expect("UTF-8").lines().collect()
}

fn assert_same_lines(what: &str, found: &[String], expected: &[&str]) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found, expected, "{what}, line {}", i + 1);
    }
    assert_eq!(found.len(), expected.len(), "{what}, number of lines");
}

fn env_with(dir: &str, files: &Files) -> Env {
    let env = make::env_at(1, make::READ_AT_MS);
    make::write_dir(&env, Path::new(dir), files);
    env
}

fn open_segment(bytes: &[u8]) -> Result<SegmentReader, Error> {
    let env = env_with("", &Files::from([("segment".to_owned(), bytes.to_vec())]));
    SegmentReader::open_in(&env, "segment")
}

/// The newest version of each key.
fn newest(segment: &Segment) -> impl Iterator<Item = &segment::Entry> {
    let mut seen = BTreeSet::new();
    segment.entries.iter().filter(move |entry| seen.insert(&entry.key))
}

/// The same, unless it is a tombstone or an operand.
fn live(segment: &Segment) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let puts = newest(segment).filter(|entry| entry.kind == 1);
    puts.map(|entry| (entry.key.clone(), entry.value.clone())).collect()
}

#[test]
fn golden_segments_read_as_expected() {
    let files = files_under(&golden_dir());
    let mut read = 0;
    for (name, bytes) in segments(&files) {
        if !readable(name) {
            assert!(open_segment(bytes).and_then(|r| r.get(b"row/000000")).is_err());
            continue;
        }
        let segment = segment::read(bytes);
        let expected = lines_of(&files, &format!("segments/{name}.expected.jsonl"));
        assert_same_lines(name, &expected::segment(name, &segment), &expected);

        let reader = open_segment(bytes).expect("a sound segment opens");
        assert_eq!(expected::describe(&reader), segment.description, "{name}");
        let report = reader.verify().expect("it can be judged");
        assert!(report.is_sound(), "{name}: {:?}", report.damage);
        assert_eq!(report.entries, segment.entries.len() as u64);
        let live = live(&segment);
        let operands = newest(&segment).filter(|entry| entry.kind == 3);
        let operands: BTreeSet<&[u8]> = operands.map(|entry| &entry.key[..]).collect();
        for entry in &segment.entries {
            if operands.contains(&entry.key[..]) {
                let refused = reader.get(&entry.key);
                assert!(matches!(refused, Err(Error::MergeOperator { .. })), "{name}");
                continue;
            }
            let value = reader.get(&entry.key).expect("a sound segment is read");
            assert_eq!(value.as_deref(), live.get(&entry.key).map(Vec::as_slice), "{name}");
        }
        assert_eq!(reader.get(b"no such key").expect("it is read"), None);
        let pairs = |pair: Result<(ashlardb::Key, ashlardb::Value), Error>| {
            let (key, value) = pair.expect("a sound segment is read");
            (key.to_vec(), value.to_vec())
        };
        if !operands.is_empty() {
            assert!(reader.get_range::<&[u8]>(..).any(|pair| pair.is_err()), "{name}");
            read += 1;
            continue;
        }
        let range = || reader.get_range::<&[u8]>(..).map(pairs);
        assert!(range().eq(live.clone()), "{name}, forwards");
        assert!(range().rev().eq(live.into_iter().rev()), "{name}, backwards");
        read += 1;
    }
    assert!(read >= 12, "only {read} segments were found");
    let rows = |name: &str| segment::read(&files[&format!("segments/{name}.seg")]).entries;
    for name in ["text-lz4", "text-zstd"].into_iter().filter(|name| readable(name)) {
        assert!(rows(name) == rows("text-none"), "{name} has the rows of text-none");
    }
}

fn open_database(env: &Env) -> Result<Db, Error> {
    Db::builder("db")
        .env(env.clone())
        .background(Background::Manual)
        .create_if_missing(false)
        .ready_made_operators(true)
        .open()
}

/// All pairs; the first error ends it.
fn contents(db: &Db) -> Result<Contents, Error> {
    let mut contents = Contents::new();
    for name in db.keyspaces() {
        for pair in db.keyspace(&name)?.get_range::<&[u8]>(..) {
            let (key, value) = pair?;
            contents.insert((name.clone(), key.to_vec()), value.to_vec());
        }
    }
    Ok(contents)
}

/// The changes that the logs of a golden database tell, but for the values.
fn changes(name: &str) -> Vec<String> {
    let golden = files_under(&golden_dir());
    let env = env_with("db", &databases(&golden)[name]);
    let db = Db::builder("db").env(env).open_read_only().expect("it opens");
    let mut found = Vec::new();
    for batch in db.changes_since(SeqNo(0)).expect("the logs are kept") {
        let batch = batch.expect("they are sound");
        let changes = batch.changes.iter().map(|change| match change {
            Change::Put { keyspace, key, .. } => {
                format!("{} in {}", key.escape_ascii(), keyspace.name)
            }
            Change::Clear { keyspace } => format!("{} cleared", keyspace.name),
            Change::Loaded { keyspace, first, last } => {
                let (first, last) = (first.escape_ascii(), last.escape_ascii());
                format!("{first} to {last} loaded into {}", keyspace.name)
            }
            Change::Keyspaces(live) => {
                live.iter().map(|k| format!("{}/{}", k.id, k.name)).collect::<Vec<_>>().join(" ")
            }
            other => format!("{other:?}"),
        });
        found.push(format!("{} {}", batch.last, changes.collect::<Vec<_>>().join(", ")));
    }
    found
}

#[test]
fn golden_logs_give_the_changes_that_were_made() {
    let expected = [
        "0 0/default",
        "1 first in default",
        "1 0/default 1/other",
        "2 gone in other",
        "3 other cleared",
        "3 0/default 1/other 2/dropped",
        "4 a in dropped",
        "4 0/default 1/other",
        "5 kept in other",
        "6 last in default",
    ];
    assert_eq!(changes("feed"), expected);
    let loaded = changes("loaded");
    let loads: Vec<_> = loaded.iter().filter(|change| change.contains("loaded")).collect();
    let expected =
        ["21 key/000 to key/029 loaded into other", "22 key/010 to key/038 loaded into default"];
    assert_eq!(loads, expected);
    assert_eq!(loaded.len(), 1 + 20 + 1 + 2 + 4, "{loaded:?}");
}

#[test]
fn golden_databases_read_as_expected() {
    let files = files_under(&golden_dir());
    let databases = databases(&files);
    assert!(databases.len() >= 7, "{:?}", databases.keys());
    for (name, store) in &databases {
        let found = expected::database(store);
        let path = format!("databases/{name}.expected.jsonl");
        assert_same_lines(name, &found, &lines_of(&files, &path));

        let expected = database::contents(store, make::READ_AT_MS);
        let env = env_with("db", store);
        let torn = *name == "torn";
        // The second time without what recovery has to do at the first; the third after a flush.
        for pass in 0..3 {
            let db = open_database(&env).expect("a golden database opens");
            let notices = db.stats().recovery_notices;
            assert_eq!(notices.len(), usize::from(torn && pass == 0), "{name}: {notices:?}");
            assert_eq!(contents(&db).expect("it is read"), expected, "{name}, pass {pass}");
            let report = db.verify(&mut |_, _| {}).expect("it can be judged");
            assert!(report.is_sound(), "{name}: {report:?}");
            if pass == 0 {
                // Opening changes nothing of what was there.
                let after = make::read_dir(&env, Path::new("db"));
                assert!(after["MANIFEST"].starts_with(&store["MANIFEST"]), "{name}");
                for (file, bytes) in store.iter().filter(|(file, _)| file.ends_with(".seg")) {
                    assert!(after.get(file) == Some(bytes), "{file} of {name}");
                }
            }
            if pass == 1 {
                db.flush().expect("a flush succeeds");
                db.wait_idle().expect("compactions succeed");
                assert_eq!(contents(&db).expect("it is read"), expected, "{name}, flushed");
            }
        }
    }
}

#[test]
fn golden_backups_read_as_expected() {
    let contents = check_backups("backups", 4);
    for (number, expected) in (1..).zip(&contents) {
        let has = |name: &str, key: &str| expected.contains_key(&(name.into(), key.into()));
        assert_eq!(
            (has("cleared", "gone"), has("default", "shared/3")),
            (number == 1, number == 1)
        );
        assert_eq!(has("other", "key"), number == 2);
        assert_eq!(expected.len(), 10 - usize::from(number == 2));
    }
}

#[test]
fn golden_backups_of_value_segments_read_as_expected() {
    let contents = check_backups("backups-values", 6);
    assert_eq!(contents.iter().map(Contents::len).collect::<Vec<_>>(), [7, 13]);
    let both = |at: usize| &contents[at][&("values".into(), b"both".to_vec())];
    assert!(both(0).len() == 100 && both(0) != both(1));
}

/// Reads two backups of a directory with the library and with the second reader; what they hold. Together they
/// have so many copies of files.
fn check_backups(dir: &str, copies: usize) -> Vec<Contents> {
    let files = files_under(&golden_dir());
    let store: Files = files
        .iter()
        .filter_map(|(path, bytes)| {
            let name = path.strip_prefix(dir)?.strip_prefix('/')?;
            Some((name.into(), bytes.clone()))
        })
        .collect();
    let env = env_with("safe", &store);
    let backups = Backups::open_in(&env, "safe").expect("a directory of backups");
    let list = backups.list().expect("it can be listed");
    assert_eq!(list.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2]);
    let (mut named, mut held) = (BTreeSet::new(), Vec::new());
    for (number, info) in list {
        let (expected, names) = database::backup(&store, number);
        let info = info.expect("it can be read");
        assert_eq!((info.created_ms, info.segments), (1_767_225_600_000, names.len()));
        named.extend(names);
        let damage = backups.verify(number, &mut |_, _| {}).expect("it can be judged");
        assert_eq!(damage, []);
        let env = env_with("safe", &store);
        let backups = Backups::open_in(&env, "safe").expect("a directory of backups");
        backups.restore(number, "db", &mut |_, _| {}).expect("it can be restored");
        let db = open_database(&env).expect("a restored database opens");
        assert_eq!(contents(&db).expect("it is read"), expected, "backup {number}");
        held.push(expected);
    }
    let is_copy = |name: &&String| name.ends_with(".seg") || name.ends_with(".val");
    assert!(store.keys().filter(is_copy).eq(&named), "each is named, and some by both");
    assert_eq!(named.len(), copies);
    held
}

/// All that the format has a number for is in some golden file.
#[test]
fn every_kind_is_in_a_golden_file() {
    let files = files_under(&golden_dir());
    let (mut changes, mut operations) = (BTreeSet::new(), BTreeSet::new());
    let (mut entries, mut properties) = (BTreeSet::new(), BTreeSet::new());
    let (mut records, mut notes) = (BTreeSet::new(), BTreeSet::new());
    let (mut operators, mut has_ttl) = (BTreeSet::new(), false);
    let (mut separates, mut lists_values) = (false, false);
    for store in databases(&files).values() {
        let manifest = database::read_manifest(&store["MANIFEST"]);
        changes.extend(manifest.edits.iter().flat_map(|(_, _, kinds)| kinds.clone()));
        for keyspace in manifest.keyspaces.values() {
            operators.extend(keyspace.merge_operator.clone());
            has_ttl |= keyspace.default_ttl.is_some();
            separates |= keyspace.separate_above.is_some();
        }
        // Those that are kept for feeds, too.
        for bytes in store.iter().filter(|(name, _)| name.ends_with(".wal")).map(|(_, b)| b) {
            let log = database::read_log(bytes, database::log_salt(&store["MANIFEST"]));
            records.extend(log.records.iter().map(|record| record.kind));
            notes.extend(log.records.iter().filter_map(|record| record.note));
        }
        for log in database::chain(store, manifest.log_floor) {
            let batches = log.records.into_iter().flat_map(|record| record.batches);
            operations.extend(batches.flatten().map(|op| (op.kind, op.expiry.is_some())));
        }
        for bytes in store.iter().filter(|(name, _)| name.ends_with(".seg")).map(|(_, b)| b) {
            let segment = segment::read(bytes);
            let all = segment.entries.iter();
            entries.extend(all.map(|entry| (entry.kind, entry.expiry.is_some())));
            properties.extend(segment.description.properties.into_keys());
            lists_values |= !segment.value_segments.is_empty();
        }
    }
    assert!(changes.is_superset(&(1..=12).collect()), "{changes:?}");
    let in_blocks = BTreeSet::from([(1, false), (1, true), (2, false), (3, false), (3, true)]);
    let away = [(6, false), (6, true)];
    assert_eq!(entries, in_blocks.iter().copied().chain(away).collect());
    assert_eq!(operations, in_blocks.into_iter().chain([(4, false)]).collect());
    assert!(properties.is_superset(&(0x8010..=0x8013).chain([16]).collect()), "{properties:x?}");
    assert!(lists_values, "property 0x8014");
    assert_eq!((operators.len(), has_ttl), (4, true), "{operators:?}");
    assert!(separates, "option 0x83");
    assert!(records.is_superset(&BTreeSet::from([1, 2, 3, 0x81, 0x82])), "{records:x?}");
    assert_eq!(notes, (0..=3).collect());
}

/// The number behind the first "byte " of a message.
fn offset_in(message: &str) -> u64 {
    let (_, rest) = message.split_once("byte ").expect("it says where");
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

/// Kind, file and offset of what went wrong.
fn judge(error: &Error) -> (&'static str, String, u64) {
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    match error {
        Error::Corruption { file, offset, .. } => ("corruption", name(file), *offset),
        Error::UnsupportedFormat { file, what } => ("unsupported", name(file), offset_in(what)),
        Error::NotADatabase { .. } => ("not_a_database", String::new(), 0),
        other => panic!("neither damage nor a newer format: {other}"),
    }
}

fn outcome(noticed: &str, error: &Error) -> Expected {
    let (kind, file, offset) = judge(error);
    let (noticed, kind) = (noticed.into(), kind.into());
    Expected { noticed, kind, file, offset, keys: None, verify: String::new() }
}

/// What becomes of a damaged segment that was `sound`.
fn observe_segment(bytes: &[u8], sound: &Segment) -> Expected {
    let unnamed = |noticed, error: &Error| {
        let mut found = outcome(noticed, error);
        found.file.clear();
        found
    };
    let reader = match open_segment(bytes) {
        Ok(reader) => reader,
        Err(error) => return unnamed("open", &error),
    };
    let live = live(sound);
    let mut first = None;
    let mut lost = 0;
    for (key, value) in &live {
        match reader.get(key) {
            Ok(found) => {
                assert_eq!(found.as_deref(), Some(value.as_slice()), "never another value");
            }
            Err(error) => {
                lost += 1;
                first = first.or(Some(unnamed("get", &error)));
            }
        }
    }
    // A range gives the same pairs up to an error, from either end.
    let pair = |pair: &(ashlardb::Key, ashlardb::Value)| (pair.0.to_vec(), pair.1.to_vec());
    let range = || reader.get_range::<&[u8]>(..);
    let forwards: Vec<_> = range().map_while(|item| Some(pair(&item.ok()?))).collect();
    let backwards: Vec<_> = range().rev().map_while(|item| Some(pair(&item.ok()?))).collect();
    assert!(live.clone().into_iter().take(forwards.len()).eq(forwards.iter().cloned()));
    assert!(live.into_iter().rev().take(backwards.len()).eq(backwards.iter().cloned()));
    assert_eq!(range().any(|item| item.is_err()), range().rev().any(|item| item.is_err()));

    let verified = reader.verify();
    let verify = match &verified {
        Ok(report) => {
            let offsets: Vec<u64> = report.damage.iter().map(|damage| damage.offset).collect();
            format!("{offsets:?}").replace(' ', "")
        }
        Err(error) => {
            assert_eq!(judge(error).0, "unsupported");
            "\"unsupported\"".to_owned()
        }
    };
    let noticed_last = || {
        let report = match verified {
            Ok(report) => report,
            Err(error) => return unnamed("verify", &error),
        };
        let damage = report.damage.first().expect("damage is never passed over");
        let (noticed, kind) = ("verify".into(), "corruption".into());
        let (file, verify) = (String::new(), String::new());
        Expected { noticed, kind, file, offset: damage.offset, keys: None, verify }
    };
    let found = first.unwrap_or_else(noticed_last);
    Expected { keys: Some([lost, 0, 0]), verify, ..found }
}

/// What becomes of a damaged database that held `sound`.
fn observe_database(store: &Files, sound: &Contents) -> Expected {
    let env = env_with("db", store);
    let db = match open_database(&env) {
        Ok(db) => db,
        Err(error) => {
            let after = make::read_dir(&env, Path::new("db"));
            assert_eq!(after, *store, "what cannot be opened is left as it is");
            return outcome("open", &error);
        }
    };
    let notices = db.stats().recovery_notices;
    let mut found = notices.first().map(|notice| {
        let kind = if notice.contains("torn tail") { "torn" } else { "healed" };
        let name = notice.split([' ', ':']).next().expect("a word");
        let name = name.rsplit('/').next().expect("a name").to_owned();
        let (noticed, kind, verify) = ("open".into(), kind.into(), String::new());
        Expected { noticed, kind, file: name, offset: offset_in(notice), keys: None, verify }
    });
    let [mut lost, mut gone, mut back] = [0; 3];
    for ((keyspace, key), value) in sound {
        match db.keyspace(keyspace).and_then(|keyspace| keyspace.get(key)) {
            Ok(Some(found)) => assert_eq!(*found, *value.as_slice(), "never another value"),
            Ok(None) => gone += 1,
            Err(error) => {
                lost += 1;
                found = found.or(Some(outcome("get", &error)));
            }
        }
    }
    if lost == 0 {
        let contents = contents(&db).expect("every key was read");
        back = contents.keys().filter(|id| !sound.contains_key(*id)).count() as u64;
        drop(db);
        let db = open_database(&env).expect("what was recovered opens again");
        assert_eq!(db.stats().recovery_notices, Vec::<String>::new(), "it is healed");
        assert_eq!(self::contents(&db).expect("it is read"), contents);
    } else {
        assert!(contents(&db).is_err());
        let report = db.verify(&mut |_, _| {}).expect("damage is in the report");
        assert!(!report.is_sound());
    }
    let found = found.expect("damage is never passed over");
    Expected { keys: Some([lost, gone, back]), ..found }
}

/// The text of a field of a line.
fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let start = format!("\"{name}\":\"");
    let (_, rest) = line.split_once(&start).unwrap_or_else(|| panic!("no {name} in {line}"));
    rest.split('"').next().expect("a text")
}

#[test]
fn damage_is_noticed_where_and_as_expected() {
    let files = files_under(&golden_dir());
    let databases = databases(&files);
    let mut covered = BTreeSet::new();
    let mut wrong = Vec::new();
    let lines = lines_of(&files, "damaged.jsonl");
    for line in &lines {
        let (path, base) = (field(line, "file"), field(line, "made_from"));
        let below: Files = files
            .iter()
            .filter_map(|(file, bytes)| {
                let rest =
                    file.strip_prefix(path).filter(|r| r.is_empty() || r.starts_with('/'))?;
                Some((rest.trim_start_matches('/').to_owned(), bytes.clone()))
            })
            .collect();
        covered.extend(below.keys().map(|name| match name.as_str() {
            "" => path.to_owned(),
            name => format!("{path}/{name}"),
        }));
        if !readable(path) {
            continue;
        }
        let found = if path.ends_with(".seg") {
            observe_segment(&below[""], &segment::read(&files[base]))
        } else {
            let sound = base.strip_prefix("databases/").expect("a database");
            observe_database(&below, &database::contents(&databases[sound], make::READ_AT_MS))
        };
        if !line.ends_with(&format!("{}}}", found.line())) {
            wrong.push(format!("expected {line}\n   found {}", found.line()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(lines.len() >= 25);
    let all = files.keys().filter(|path| path.starts_with("damaged/"));
    let unexpected: Vec<&String> = all.filter(|path| !covered.contains(*path)).collect();
    assert!(unexpected.is_empty(), "nothing says what these must give: {unexpected:?}");
}

/// Whether it is one of a golden database that stays as it is.
fn frozen(path: &str) -> bool {
    let name = path.strip_prefix("databases/").and_then(|rest| rest.split_once('/'));
    name.is_some_and(|(name, _)| make::FROZEN.contains(&name))
}

/// All that `regenerate` writes, by path under the repository. Of the golden files that depend on a
/// compression library, those that are there stay, and so do frozen ones.
fn generated() -> Files {
    let present = files_under(&golden_dir());
    let mut golden = make::golden();
    for (path, bytes) in &present {
        if compressed(path)
            && segments(&present).any(|(name, _)| path.ends_with(&format!("/{name}.seg")))
            && path.starts_with("segments/")
            && readable(path)
        {
            golden.insert(path.clone(), bytes.clone());
        }
        if frozen(path) {
            golden.insert(path.clone(), bytes.clone());
        }
    }
    let mut expectations: Files = segments(&golden)
        .map(|(name, bytes)| {
            let lines = expected::segment(name, &segment::read(bytes));
            (format!("segments/{name}.expected.jsonl"), expected::text(&lines))
        })
        .collect();
    for (name, store) in databases(&golden) {
        let path = format!("databases/{name}.expected.jsonl");
        expectations.insert(path, expected::text(&expected::database(&store)));
    }
    let cases = damage::damaged(&golden);
    let lines: Vec<String> = cases.iter().map(damage::Damaged::line).collect();
    expectations.insert("damaged.jsonl".into(), expected::text(&lines));
    let seeds = make::seeds(&golden);
    golden.extend(expectations);
    for case in cases {
        for (name, bytes) in case.files {
            let path =
                if name.is_empty() { case.path.clone() } else { format!("{}/{name}", case.path) };
            golden.insert(path, bytes);
        }
    }
    let golden = golden.into_iter().map(|(path, bytes)| (format!("testdata/v1/{path}"), bytes));
    golden
        .chain(seeds.into_iter().map(|(path, bytes)| (format!("fuzz/seeds/{path}"), bytes)))
        .collect()
}

#[test]
fn the_writer_still_makes_the_same_bytes() {
    let mut checked = 0;
    for (path, bytes) in generated() {
        let on_disk = fs::read(root().join(&path)).unwrap_or_default();
        let differs = on_disk.iter().zip(&bytes).position(|(a, b)| a != b);
        let lengths = (on_disk.len(), bytes.len());
        let fewer_codecs = !readable("lz4 zstd") && path.ends_with("damaged.jsonl");
        if !compressed(&path) && !fewer_codecs {
            assert!(on_disk == bytes, "{path} differs at {differs:?}, lengths {lengths:?}");
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn fuzz_seeds_pass() {
    let seeds = files_under(&root().join("fuzz/seeds"));
    type Target = (&'static str, fn(&[u8]));
    let targets: [Target; 5] = [
        ("segment_reader", ashlardb::fuzzing::segment_bytes),
        ("data_block", ashlardb::fuzzing::data_block),
        ("wal_reader", ashlardb::fuzzing::wal_bytes),
        ("manifest_reader", ashlardb::fuzzing::manifest_bytes),
        ("value_reader", ashlardb::fuzzing::value_bytes),
    ];
    for (target, run) in targets {
        let seeds = seeds.iter().filter(|(path, _)| path.starts_with(target));
        let n = seeds.map(|(_, bytes)| run(bytes)).count();
        assert!(n >= 3, "{target} has {n} seeds");
    }
}

#[test]
fn the_worked_segment_of_the_format_is_the_tiny_one() {
    let text = fs::read_to_string(root().join("FORMAT.md")).expect("FORMAT.md");
    let file = fs::read(golden_dir().join("segments/tiny.seg")).expect("the tiny segment");
    let shown = dump::parse(&text);
    assert!(shown.len() > 30, "the dump was not found");
    let mut covered = vec![false; file.len()];
    for (offset, bytes) in shown {
        assert_eq!(file.get(offset..offset + bytes.len()), Some(&bytes[..]), "at {offset:#x}");
        covered[offset..offset + bytes.len()].fill(true);
    }
    let hidden = (0..file.len()).find(|at| !covered[*at] && file[*at] != 0);
    assert_eq!(hidden, None, "a byte that is not zero is not shown");
}

#[test]
#[ignore = "writes the golden files"]
fn regenerate() {
    let dir = golden_dir();
    let generated = generated();
    for path in files_under(&dir).keys() {
        let stays = compressed(path) && !readable(path);
        if !stays && !generated.contains_key(&format!("testdata/v1/{path}")) {
            fs::remove_file(dir.join(path)).expect("a stale file can be removed");
        }
    }
    let seeds = root().join("fuzz/seeds");
    for path in files_under(&seeds).keys() {
        let stays = !path.contains('/') || !readable(path);
        if !stays && !generated.contains_key(&format!("fuzz/seeds/{path}")) {
            fs::remove_file(seeds.join(path)).expect("a stale file can be removed");
        }
    }
    for (path, bytes) in &generated {
        let path = root().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(&path, bytes).expect("it can be written");
    }
    let tiny = &generated["testdata/v1/segments/tiny.seg"];
    let path = root().join("FORMAT.md");
    let text = fs::read_to_string(&path).expect("FORMAT.md");
    fs::write(&path, dump::replace(&text, tiny)).expect("FORMAT.md can be written");
}
