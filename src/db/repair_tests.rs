//! Damage to a database: contained, named, and repaired but for what is lost.

use crate::cursor::{Cursor, Seek};
use crate::segment::CursorOptions;
use crate::types::Kind;
use crate::vfs::{Entropy, Env, Failure, MemVfs, OpenMode, SeededEntropy, SimVfs, Vfs};
use crate::{
    Background, Builder, Compression, DatabaseReport, Db, Durability, Error, RepairReport,
    SegmentReader,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const DIR: &str = "/db";
const NEW: &str = "/new";

fn env_on(vfs: &MemVfs) -> Env {
    Env { vfs: Arc::new(vfs.clone()), ..Env::in_memory(5) }
}

fn builder(vfs: &MemVfs, dir: &str) -> Builder {
    Db::builder(dir)
        .env(env_on(vfs))
        .background(Background::Manual)
        .compression(Compression::None)
        .level0_runs(64)
        .segment_bytes(64 << 10)
        .write_buffer_bytes(1 << 20)
}

fn verify(vfs: &MemVfs) -> DatabaseReport {
    builder(vfs, DIR).verify(&mut |_, _| {}).unwrap()
}

fn repair(vfs: &MemVfs) -> RepairReport {
    let before = bytes_of(vfs, DIR);
    let report = builder(vfs, DIR).repair_into(NEW, &mut |_, _| {}).unwrap();
    assert!(before == bytes_of(vfs, DIR), "a repair changes nothing");
    assert!(builder(vfs, NEW).verify(&mut |_, _| {}).unwrap().is_sound());
    report
}

fn read(vfs: &MemVfs, path: &Path) -> Vec<u8> {
    let file = vfs.open(path, OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn bytes_of(vfs: &MemVfs, dir: &str) -> BTreeMap<String, Vec<u8>> {
    let names = vfs.read_dir(Path::new(dir)).unwrap();
    names.into_iter().map(|name| (name.clone(), read(vfs, &Path::new(dir).join(name)))).collect()
}

fn files(vfs: &MemVfs, ending: &str) -> Vec<PathBuf> {
    let mut names = vfs.read_dir(Path::new(DIR)).unwrap();
    names.retain(|name| name.ends_with(ending));
    names.sort();
    names.iter().map(|name| Path::new(DIR).join(name)).collect()
}

/// A copy of everything with some bytes of a file changed.
fn with(vfs: &MemVfs, path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> MemVfs {
    let vfs = vfs.fork();
    let mut bytes = read(&vfs, path);
    change(&mut bytes);
    vfs.remove_file(path).unwrap();
    vfs.open(path, OpenMode::CreateNew).unwrap().write_all_at(&bytes, 0).unwrap();
    vfs
}

fn flipped(vfs: &MemVfs, path: &Path, at: usize, bit: usize) -> MemVfs {
    with(vfs, path, |bytes| bytes[at] ^= 1 << (bit % 8))
}

type Contents = BTreeMap<(String, Vec<u8>), Vec<u8>>;

fn contents(db: &Db) -> Contents {
    let mut found = Contents::new();
    for name in db.keyspaces() {
        for entry in db.keyspace(&name).unwrap().get_range::<&[u8]>(..) {
            let (key, value) = entry.unwrap();
            found.insert((name.clone(), key.to_vec()), value.to_vec());
        }
    }
    found
}

fn repaired(vfs: &MemVfs) -> Contents {
    contents(&builder(vfs, NEW).create_if_missing(false).open().unwrap())
}

/// Three runs in each of two keyspaces, several segments and blocks each, and something in the log.
fn store() -> MemVfs {
    let vfs = MemVfs::default();
    let db = builder(&vfs, DIR).open().unwrap();
    let stock = db.keyspace("stock").unwrap();
    for round in 0..3u32 {
        for n in (0..900u32).filter(|n| round == 0 || n % (round + 2) == 0) {
            let value = format!("{round} {n} {:80}", "");
            if round == 2 && n % 28 == 0 {
                db.delete(n.to_be_bytes()).unwrap();
            } else {
                db.put(n.to_be_bytes(), &value).unwrap();
            }
            stock.put((n * 3).to_be_bytes(), &value).unwrap();
        }
        db.flush().unwrap();
    }
    for n in 0..20u32 {
        db.put_in_log(n);
    }
    db.close().unwrap();
    vfs
}

impl Db {
    fn put_in_log(&self, n: u32) {
        self.put(format!("log {n:02}"), format!("value {n}")).unwrap();
        self.sync().unwrap();
    }
}

/// Where a version of a key is: the age of its run (0 is the newest), segment and block.
struct Place {
    age: usize,
    file: PathBuf,
    block: usize,
    value: Option<Vec<u8>>,
}

/// All versions in segments of all keys, newest first, and the blocks of each segment.
#[expect(clippy::type_complexity, reason = "it is taken apart at once")]
fn layout(
    vfs: &MemVfs,
) -> (BTreeMap<(String, Vec<u8>), Vec<Place>>, Vec<(PathBuf, String, Vec<(usize, usize)>)>) {
    let (mut versions, mut segments) = (BTreeMap::<_, Vec<Place>>::new(), Vec::new());
    let copy = vfs.fork();
    let db = builder(&copy, DIR).open().unwrap();
    for summary in db.segments() {
        let file = Path::new(DIR).join(format!("{:020}.seg", summary.id.0));
        let reader = SegmentReader::open_in(&env_on(&copy), &file).unwrap();
        let blocks: Vec<_> = reader.blocks().map(|block| block.unwrap()).collect();
        let mut cursor = reader.cursor(CursorOptions::default());
        cursor.seek(Seek::First).unwrap();
        for (number, block) in blocks.iter().enumerate() {
            for _ in 0..block.entries {
                let value = (cursor.kind() == Kind::Put).then(|| cursor.value().to_vec());
                let age = summary.level * 100 + summary.run;
                let place = Place { age, file: file.clone(), block: number, value };
                let key = (summary.keyspace.clone(), cursor.key().to_vec());
                versions.entry(key).or_default().push(place);
                cursor.next().unwrap();
            }
        }
        let extents = blocks.iter().map(|b| (b.offset as usize, b.pages as usize * 4096));
        segments.push((file, summary.keyspace, extents.collect()));
    }
    for places in versions.values_mut() {
        places.sort_by_key(|place| place.age);
    }
    (versions, segments)
}

#[test]
fn one_bad_block_costs_its_keys_and_is_named_and_everything_else_is_repaired() {
    let vfs = store();
    assert!(verify(&vfs).is_sound());
    let sound = contents(&builder(&vfs.fork(), DIR).open().unwrap());
    let (versions, segments) = layout(&vfs);
    assert!(segments.len() >= 8, "{}", segments.len());
    let mut tried = 0;
    for (file, keyspace, blocks) in &segments {
        assert!(blocks.len() > 1);
        for (number, (offset, len)) in blocks.iter().enumerate() {
            tried += 1;
            let damaged = flipped(&vfs, file, offset + (tried * 997) % len, tried);
            let is_lost = |place: &Place| place.file == *file && place.block == number;

            let db = builder(&damaged, DIR).open().unwrap();
            for ((name, key), places) in &versions {
                let got = db.keyspace(name).unwrap().get(key);
                match places.iter().position(is_lost) {
                    Some(0) => assert!(matches!(got, Err(Error::Corruption { .. })), "{key:?}"),
                    _ => {
                        let want = sound.get(&(name.clone(), key.clone()));
                        assert_eq!(got.unwrap().map(|v| v.to_vec()).as_ref(), want);
                    }
                }
            }
            let open = db.verify(&mut |_, _| {}).unwrap();
            db.close().unwrap();

            let report = verify(&damaged);
            assert_eq!(report.damage, open.damage);
            let [place] = &report.damage[..] else { panic!("{:?}", report.damage) };
            assert_eq!((&place.file, place.offset), (file, *offset as u64));
            assert_eq!(
                (place.block, place.keyspace.as_ref()),
                (Some(number as u32), Some(keyspace))
            );
            let (above, up_to) = place.key_range.as_ref().unwrap();
            for ((name, key), places) in &versions {
                for place in places.iter().filter(|p| p.file == *file && name == keyspace) {
                    let is_inside = (key > above || number == 0 && key == above) && key <= up_to;
                    assert_eq!(is_inside, place.block == number, "{key:?}");
                }
            }

            let report = repair(&damaged);
            assert_eq!(report.lost.iter().map(|l| &l.place).collect::<Vec<_>>(), [place]);
            let lost_age = versions.values().flatten().find(|p| is_lost(p)).map(|p| p.age);
            let mut older = 0;
            let mut expected = sound.clone();
            for (id, places) in versions.iter().filter(|(_, p)| p.iter().any(is_lost)) {
                if !is_lost(&places[0]) {
                    continue;
                }
                expected.remove(id);
                if let Some(Place { value: Some(value), .. }) = places.get(1) {
                    expected.insert(id.clone(), value.clone());
                }
            }
            for (id, places) in &versions {
                let newest = places.iter().find(|place| !is_lost(place));
                let is_inside = id.0 == *keyspace
                    && (id.1 > *above || number == 0 && id.1 == *above)
                    && id.1 <= *up_to;
                if is_inside && newest.is_some_and(|n| n.value.is_some() && Some(n.age) > lost_age)
                {
                    older += 1;
                }
            }
            assert!(repaired(&damaged) == expected, "{} block {number}", file.display());
            assert_eq!(report.lost[0].older, older);
            assert_eq!(report.uncertain.len(), usize::from(older > 0));
            assert!(!report.is_complete());
        }
    }
    assert!(tried > 50, "{tried}");
}

#[test]
fn damage_behind_the_blocks_of_a_segment_loses_nothing() {
    let vfs = store();
    let sound = contents(&builder(&vfs.fork(), DIR).open().unwrap());
    for file in files(&vfs, ".seg").iter().step_by(3) {
        let reader = SegmentReader::open_in(&env_on(&vfs), file).unwrap();
        let mut places: Vec<usize> = reader
            .sections()
            .iter()
            .flat_map(|s| [s.offset as usize, (s.offset + s.len / 2) as usize])
            .collect();
        let end = reader.file_len() as usize;
        // In the section table, and in each field of the footer.
        places.extend([end - 100, end - 96, end - 80, end - 70, end - 60, end - 50, end - 40]);
        places.extend([end - 16, end - 12, end - 5]);
        for (n, at) in places.into_iter().enumerate() {
            let damaged = flipped(&vfs, file, at, n);
            let report = verify(&damaged);
            assert!(!report.is_sound(), "byte {at}");
            assert!(report.damage.iter().all(|place| place.file == *file), "{report:?}");
            let report = repair(&damaged);
            assert!(report.is_complete(), "byte {at}: {report:?}");
            assert!(repaired(&damaged) == sound, "byte {at}");
        }
    }
}

#[test]
fn a_missing_or_foreign_segment_costs_its_keys_only() {
    let vfs = store();
    let (versions, segments) = layout(&vfs);
    let sound = contents(&builder(&vfs.fork(), DIR).open().unwrap());
    let other = read(&vfs, &segments[1].0);
    for (file, keyspace, _) in segments.iter().step_by(2) {
        let missing = vfs.fork();
        missing.remove_file(file).unwrap();
        let foreign = with(&vfs, file, |bytes| bytes.clone_from(&other));
        for damaged in [missing, foreign] {
            assert!(matches!(builder(&damaged, DIR).open(), Err(Error::Corruption { .. })));
            let report = verify(&damaged);
            let [place] = &report.damage[..] else { panic!("{:?}", report.damage) };
            assert_eq!((&place.file, place.keyspace.as_ref()), (file, Some(keyspace)));
            let (first, last) = place.key_range.clone().unwrap();
            let held: Vec<_> = versions
                .iter()
                .filter(|(_, places)| places.iter().any(|place| place.file == *file))
                .map(|((_, key), _)| key.clone())
                .collect();
            assert_eq!((held.first(), held.last()), (Some(&first), Some(&last)));

            let report = repair(&damaged);
            assert_eq!(report.lost.len(), 1);
            let mut expected = sound.clone();
            for (id, places) in versions.iter().filter(|(_, p)| p[0].file == *file) {
                expected.remove(id);
                if let Some(Place { value: Some(value), .. }) = places.get(1) {
                    expected.insert(id.clone(), value.clone());
                }
            }
            assert!(repaired(&damaged) == expected, "{}", file.display());
        }
    }
}

#[test]
fn without_a_manifest_all_segments_and_logs_count() {
    let vfs = store();
    let manifest = Path::new(DIR).join("MANIFEST");
    let mut sound = contents(&builder(&vfs.fork(), DIR).open().unwrap());
    // A flipped bit in the header keeps it from being opened, and is mended.
    let damaged = flipped(&vfs, &manifest, 33, 2);
    assert!(builder(&damaged, DIR).open().is_err());
    assert_eq!(verify(&damaged).damage[0].file, manifest);
    assert_eq!(verify(&damaged).damage.len(), 1);
    assert!(repair(&damaged).is_complete());
    assert!(repaired(&damaged) == sound);

    // Both copies of the first edit.
    let mut damaged = with(&vfs, &manifest, |bytes| bytes[64..].fill(0x55));
    assert!(builder(&damaged, DIR).open().is_err());
    let report = verify(&damaged);
    let [place] = &report.damage[..] else { panic!("{:?}", report.damage) };
    assert_eq!(place.file, manifest);
    assert_eq!(report.segments.len(), files(&vfs, ".seg").len());
    sound = sound
        .into_iter()
        .map(|((name, key), value)| {
            let name = if name == "stock" { "keyspace-1".to_owned() } else { name };
            ((name, key), value)
        })
        .collect();
    for _ in 0..2 {
        let report = repair(&damaged);
        assert_eq!((report.lost.len(), report.uncertain.len()), (1, 1), "{report:?}");
        assert!(report.uncertain[0].what.contains("may be back"));
        let names: Vec<_> = report.keyspaces.iter().map(|k| &k.name[..]).collect();
        assert_eq!(names, ["default", "keyspace-1"]);
        assert!(repaired(&damaged) == sound);
        let keys: u64 = report.keyspaces.iter().map(|keyspace| keyspace.keys).sum();
        assert_eq!(keys, sound.len() as u64);
        // The same with no manifest at all.
        damaged = vfs.fork();
        damaged.remove_file(&manifest).unwrap();
        assert!(!verify(&damaged).is_sound());
    }
}

#[test]
fn damage_in_the_logs_is_named_and_what_is_behind_it_is_saved() {
    let vfs = store();
    let log = files(&vfs, ".wal").pop().unwrap();
    let sound = contents(&builder(&vfs.fork(), DIR).open().unwrap());
    let bytes = read(&vfs, &log);
    let at = bytes.windows(6).position(|w| w == b"log 07").unwrap();
    let damaged = flipped(&vfs, &log, at + 2, 3);
    assert!(matches!(builder(&damaged, DIR).open(), Err(Error::Corruption { .. })));
    let report = verify(&damaged);
    let [place] = &report.damage[..] else { panic!("{:?}", report.damage) };
    assert!(place.file == log && (at - 60..at).contains(&(place.offset as usize)), "{place:?}");
    let report = repair(&damaged);
    assert_eq!((report.lost.len(), report.uncertain.len()), (1, 1), "{report:?}");
    assert_eq!(report.lost[0].place.offset, place.offset);
    let mut expected = sound.clone();
    assert!(expected.remove(&("default".to_owned(), b"log 07".to_vec())).is_some());
    assert!(repaired(&damaged) == expected);

    // One flipped bit anywhere in the header, and a header of which only the salt is left.
    for at in (0..64).step_by(3) {
        let damaged = flipped(&vfs, &log, at, at);
        assert!(builder(&damaged, DIR).open().is_err());
        assert_eq!(verify(&damaged).damage[0].file, log);
        assert!(repair(&damaged).is_complete(), "byte {at}");
        assert!(repaired(&damaged) == sound, "byte {at}");
    }
    let damaged = with(&vfs, &log, |bytes| bytes[32..64].fill(0));
    repair(&damaged);
    assert!(repaired(&damaged) == sound);

    // A header that is gone, and with it what only the log has.
    let damaged = with(&vfs, &log, |bytes| bytes[..64].fill(0x33));
    assert_eq!(verify(&damaged).damage[0].file, log);
    assert!(!repair(&damaged).is_complete());
    let segments: Contents = sound
        .iter()
        .filter(|((_, k), _)| !k.starts_with(b"log"))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    assert!(repaired(&damaged) == segments);
    let missing = vfs.fork();
    missing.remove_file(&log).unwrap();
    assert!(!verify(&missing).is_sound());
    assert!(!repair(&missing).is_complete());
    assert!(repaired(&missing) == segments);
}

#[test]
fn an_open_database_knows_where_its_logs_end() {
    let vfs = MemVfs::default();
    let db = builder(&vfs, DIR).open().unwrap();
    for n in 0..5 {
        db.put(format!("k{n}"), "v").unwrap();
    }
    assert!(db.verify(&mut |_, _| {}).unwrap().is_sound());
    // Nothing was synced: after a crash this were a torn tail.
    let log = files(&vfs, ".wal").pop().unwrap();
    let file = vfs.open(&log, OpenMode::ReadWrite).unwrap();
    let end = file.len().unwrap();
    let mut byte = [0];
    for at in [end - 1, 70, 20] {
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        let report = db.verify(&mut |_, _| {}).unwrap();
        let [place] = &report.damage[..] else { panic!("{:?}", report.damage) };
        assert!(place.file == log && place.offset <= at, "{place:?}");
        file.write_all_at(&byte, at).unwrap();
    }
    file.set_len(end - 10).unwrap();
    assert_eq!(db.verify(&mut |_, _| {}).unwrap().damage.len(), 1);
}

#[test]
fn a_torn_tail_is_a_notice_and_a_healthy_database_has_none() {
    let vfs = store();
    let before = bytes_of(&vfs, DIR);
    let report = verify(&vfs);
    assert_eq!((report.damage, report.notices), (vec![], vec![]));
    assert!(before == bytes_of(&vfs, DIR));
    let sound = contents(&builder(&vfs.fork(), DIR).open().unwrap());
    let report = repair(&vfs);
    assert!(report.is_complete() && report.notices.is_empty(), "{report:?}");
    assert!(repaired(&vfs) == sound);

    let vfs = MemVfs::default();
    let db = builder(&vfs, DIR).open().unwrap();
    db.write_with(
        {
            let mut b = crate::WriteBatch::new();
            b.put("a", "1");
            b
        },
        Durability::Sync,
    )
    .unwrap();
    db.put("b", "2").unwrap();
    let log = files(&vfs, ".wal").pop().unwrap();
    // In front of the zeros that follow the last record.
    let last = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let torn = with(&vfs, &log, |bytes| bytes.truncate(last(bytes)));
    let report = verify(&torn);
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.notices.len(), 1);
    let report = repair(&torn);
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(repaired(&torn).len(), 1);
}

#[test]
fn an_unfinished_repair_cannot_be_taken_for_a_finished_one() {
    let vfs = MemVfs::default();
    let db = builder(&vfs, DIR).open().unwrap();
    for n in 0..5000u32 {
        db.put(n.to_be_bytes(), [7; 50]).unwrap();
    }
    db.close().unwrap();
    let forks = std::cell::RefCell::new(Vec::new());
    let progress = &mut |_, _| forks.borrow_mut().push(vfs.fork());
    builder(&vfs, DIR).repair_into(NEW, progress).unwrap();
    assert!(forks.borrow().len() > 4);
    for fork in forks.take() {
        assert!(builder(&fork, NEW).open().is_err());
        let again = builder(&fork, DIR).repair_into(NEW, &mut |_, _| {});
        assert!(matches!(again, Err(Error::NotEmpty { .. })));
    }
    for target in [NEW, DIR] {
        let again = builder(&vfs, DIR).repair_into(target, &mut |_, _| {});
        assert!(matches!(again, Err(Error::NotEmpty { .. } | Error::Locked { .. })));
    }
    let nothing = builder(&vfs, "/nothing").repair_into("/x", &mut |_, _| {});
    assert!(matches!(nothing, Err(Error::NotADatabase { .. })));
    let db = builder(&vfs, DIR).open().unwrap();
    assert!(matches!(builder(&vfs, DIR).verify(&mut |_, _| {}), Err(Error::Locked { .. })));
    drop(db);
}

#[test]
fn a_repair_that_fails_anywhere_leaves_no_half_database() {
    let vfs = store();
    let before = bytes_of(&vfs, DIR);
    let sound = contents(&builder(&vfs.fork(), DIR).open().unwrap());
    for fault in [Failure::Refused, Failure::Half, Failure::Done] {
        for k in 0.. {
            let faulty = SimVfs::on(&vfs.fork(), 0);
            faulty.fail(k, true, fault);
            let repair = builder(&vfs, DIR).env(faulty.env(5));
            let outcome = repair.repair_into(NEW, &mut |_, _| {});
            let left = faulty.process_death();
            assert!(before == bytes_of(&left, DIR), "change {k}");
            let is_marked = left.read_dir(Path::new(NEW)).is_ok_and(|names| !names.is_empty());
            match builder(&left, NEW).create_if_missing(is_marked).open() {
                Ok(db) => assert!(contents(&db) == sound, "change {k}"),
                Err(_) => assert!(outcome.is_err(), "change {k}"),
            }
            if outcome.is_ok() {
                assert!(k > 20);
                break;
            }
        }
    }
}

#[test]
fn whatever_is_damaged_it_is_noticed_and_only_what_was_written_is_saved() {
    let vfs = store();
    let (versions, _) = layout(&vfs);
    let sound = contents(&builder(&vfs.fork(), DIR).open().unwrap());
    let was_written = |name: &str, key: &[u8], value: &[u8]| {
        let id = (if name == "keyspace-1" { "stock" } else { name }.to_owned(), key.to_vec());
        let old = versions.get(&id).into_iter().flatten().filter_map(|place| place.value.as_ref());
        old.chain(sound.get(&id)).any(|written| written == value)
    };
    let all = [files(&vfs, ".seg"), files(&vfs, ".wal"), vec![Path::new(DIR).join("MANIFEST")]];
    let random = SeededEntropy::new(3);
    for round in 0..120 {
        let mut damaged = vfs.fork();
        for _ in 0..1 + random.next_u64() % 6 {
            let kind = &all[(random.next_u64() % 3) as usize];
            let file = &kind[random.next_u64() as usize % kind.len()];
            damaged = with(&damaged, file, |bytes| {
                let at = random.next_u64() as usize % bytes.len();
                let end = bytes.len().min(at + 1 + (random.next_u64() % 90) as usize);
                match random.next_u64() % 8 {
                    0 => bytes.truncate(at),
                    1 => bytes[at..end].fill(0),
                    _ => bytes[at] ^= 1 + (random.next_u64() % 255) as u8,
                }
            });
        }
        // The end of the log is what nobody can tell from a torn tail.
        let changed = all.iter().flatten().any(|file| {
            file.extension().is_none_or(|e| e != "wal") && read(&damaged, file) != read(&vfs, file)
        });
        let found = verify(&damaged);
        assert!(!changed || !found.is_sound() || !found.notices.is_empty(), "round {round}");
        let report = repair(&damaged);
        let saved = repaired(&damaged);
        for ((name, key), value) in &saved {
            assert!(was_written(name, key, value), "round {round}: {}", key.escape_ascii());
        }
        if report.is_complete() {
            let in_log = |key: &[u8]| key.starts_with(b"log");
            let all = sound.iter().all(|(id, v)| in_log(&id.1) || saved.get(id) == Some(v));
            assert!(all, "round {round}: {report:?}");
        }
    }
}

#[test]
fn clears_and_drops_are_heeded() {
    let vfs = MemVfs::default();
    let db = builder(&vfs, DIR).open().unwrap();
    let (kept, dropped) = (db.keyspace("kept").unwrap(), db.keyspace("dropped").unwrap());
    for keyspace in [&kept, &dropped] {
        keyspace.put("a", "1").unwrap();
    }
    db.put("a", "1").unwrap();
    db.flush().unwrap();
    kept.put("b", "2").unwrap();
    dropped.put("b", "2").unwrap();
    let view = db.snapshot();
    kept.clear().unwrap();
    kept.put("c", "3").unwrap();
    db.drop_keyspace("dropped").unwrap();
    let sound = contents(&db);
    drop(view);
    drop((kept, dropped));
    db.close().unwrap();
    assert!(repair(&vfs).is_complete());
    assert_eq!(repaired(&vfs), sound);
    assert_eq!(builder(&vfs, NEW).open().unwrap().keyspaces(), ["default", "kept"]);
}

/// A store in which runs are merged by hand only, with `Append`.
fn appending(vfs: &MemVfs, dir: &str) -> Db {
    builder(vfs, dir).merge_operator(crate::merge::Append).open().unwrap()
}

fn newest_segment(vfs: &MemVfs) -> PathBuf {
    files(vfs, ".seg").pop().unwrap()
}

#[test]
fn operands_whose_base_may_be_lost_are_named() {
    let vfs = MemVfs::default();
    let db = appending(&vfs, DIR);
    let mut segments = Vec::new();
    let mut flush = |db: &Db| {
        db.flush().unwrap();
        segments.push(newest_segment(&vfs));
    };
    // The base of `kept` lies in the oldest run, `whole` is set in the middle, `gone` is removed there.
    for key in ["gone", "kept", "whole"] {
        db.put(key, "a").unwrap();
    }
    flush(&db);
    db.delete("gone").unwrap();
    db.merge("kept", "b").unwrap();
    db.put("whole", "b").unwrap();
    flush(&db);
    for key in ["gone", "kept", "whole"] {
        db.merge(key, "c").unwrap();
    }
    flush(&db);
    db.close().unwrap();
    let older = |damaged: &MemVfs| {
        let report = repair(damaged);
        let places: Vec<u64> = report.lost.iter().map(|place| place.older).collect();
        let [older] = places[..] else { panic!("{report:?}") };
        assert_eq!(report.uncertain.len(), usize::from(older > 0), "{report:?}");
        (older, report.keyspaces[0].keys, appending(damaged, NEW))
    };
    let value = |db: &Db, key: &str| db.get(key).unwrap().map(|v| v.to_vec());
    let lost = |which: usize| with(&vfs, &segments[which], |bytes| bytes[32..40].fill(0x55));
    // The oldest: of `kept` it is not known what its operands belong to.
    let (count, keys, db) = older(&lost(0));
    assert_eq!((count, keys), (1, 3));
    assert_eq!(value(&db, "kept").unwrap(), b"bc");
    assert_eq!(value(&db, "gone").unwrap(), b"c");
    assert_eq!(value(&db, "whole").unwrap(), b"bc");
    // The middle: it may have had something between for all three.
    let (count, keys, db) = older(&lost(1));
    assert_eq!((count, keys), (3, 3));
    assert_eq!(value(&db, "kept").unwrap(), b"ac");
    // The newest: what is left is older than it was.
    let (count, keys, db) = older(&lost(2));
    assert_eq!((count, keys), (2, 2));
    assert_eq!(value(&db, "kept").unwrap(), b"ab");
    assert_eq!(value(&db, "gone"), None);
}

#[test]
fn without_a_manifest_what_may_be_merged_twice_is_named() {
    let vfs = MemVfs::default();
    let db = appending(&vfs, DIR);
    db.keyspace("plain").unwrap().put("k", "v").unwrap();
    let options = crate::KeyspaceOptions::new().merge_operator(crate::merge::Append);
    let logged = db.keyspace_with("logged", &options).unwrap();
    logged.put("k", "x").unwrap();
    db.put("k", "x").unwrap();
    db.flush().unwrap();
    db.merge("k", "a").unwrap();
    db.flush().unwrap();
    logged.merge("k", "a").unwrap();
    drop(logged);
    db.close().unwrap();
    let repair = |vfs: &MemVfs| {
        let lost = with(vfs, &Path::new(DIR).join("MANIFEST"), |bytes| bytes[64..].fill(0x55));
        (repair(&lost), lost)
    };
    let named = |report: &RepairReport| -> Vec<String> {
        report.uncertain.iter().filter_map(|uncertain| uncertain.keyspace.clone()).collect()
    };
    let (report, after) = repair(&vfs);
    assert_eq!(named(&report), ["default", "keyspace-2"], "{report:?}");
    assert_eq!(appending(&after, NEW).get("k").unwrap().unwrap(), "xa");
    assert_eq!(named(&self::repair(&vfs)), [""; 0], "the manifest tells");
    assert_eq!(named(&repair(&store()).0), [""; 0], "nothing was merged");
}

#[test]
fn without_a_manifest_what_was_merged_comes_before_what_the_log_has_of_it() {
    let vfs = MemVfs::default();
    let db = appending(&vfs, DIR);
    // Because of the clear, what is merged keeps its number.
    db.put("k", "gone").unwrap();
    db.flush().unwrap();
    db.clear().unwrap();
    db.put("k", "x").unwrap();
    db.merge("k", "a").unwrap();
    db.flush().unwrap();
    db.merge("k", "b").unwrap();
    db.sync().unwrap();
    let logs: Vec<_> = files(&vfs, ".wal").into_iter().map(|log| (read(&vfs, &log), log)).collect();
    db.compact_range::<&[u8]>(..).unwrap();
    db.close().unwrap();
    // As if it had died before the log was removed of which all is in a segment.
    for (bytes, log) in logs {
        if vfs.exists(&log).unwrap() {
            continue;
        }
        vfs.open(&log, OpenMode::CreateNew).unwrap().write_all_at(&bytes, 0).unwrap();
    }
    let damaged = with(&vfs, &Path::new(DIR).join("MANIFEST"), |bytes| bytes[64..].fill(0x55));
    repair(&damaged);
    assert_eq!(appending(&damaged, NEW).get("k").unwrap().unwrap(), "xab");
}
