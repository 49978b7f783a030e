//! Backups: each moment whole, each segment once, whatever fails, and nothing restored that is not as it
//! was.

use super::Backups;
use crate::db::copy::tests::{Contents, builder, bytes_of, contents, fill, is_complete, opened};
use crate::vfs::{Env, Failure, MemVfs, OpenMode, SimVfs, Vfs};
use crate::{Db, Error};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

const DIR: &str = "/db";
const BACKUPS: &str = "/safe/backups";
const NEW: &str = "/restored";

fn env_on(vfs: &MemVfs) -> Env {
    Env { vfs: Arc::new(vfs.clone()), ..Env::in_memory(12) }
}

fn backup(db: &Db) -> super::BackupReport {
    db.backup(BACKUPS, &mut |_, _| {}).unwrap()
}

fn restored(env: &Env, number: u64, target: &str) -> Contents {
    let backups = Backups::open_in(env, BACKUPS).unwrap();
    backups.restore(number, target, &mut |_, _| {}).unwrap();
    opened(env, target)
}

/// The numbers of the backups that can be read.
fn numbers(env: &Env) -> Vec<u64> {
    let list = Backups::open_in(env, BACKUPS).unwrap().list().unwrap();
    list.into_iter().filter_map(|(number, info)| info.is_ok().then_some(number)).collect()
}

fn segments(vfs: &dyn Vfs) -> BTreeSet<String> {
    let names = vfs.read_dir(Path::new(BACKUPS)).unwrap();
    names.into_iter().filter(|name| name.ends_with(".seg")).collect()
}

/// A copy of everything with a bit of a file flipped.
fn flipped(vfs: &MemVfs, path: &Path, at: usize) -> MemVfs {
    let vfs = vfs.fork();
    let file = vfs.open(path, OpenMode::ReadWrite).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << (at % 8)], at as u64).unwrap();
    vfs
}

#[test]
fn a_second_backup_copies_only_what_is_new_and_both_can_be_restored() {
    let vfs = MemVfs::default();
    let env = env_on(&vfs);
    let db = builder(&env, DIR).open().unwrap();
    fill(&db);
    let first = contents(&db);
    let mut steps = Vec::new();
    let report = db.backup(BACKUPS, &mut |done, total| steps.push((done, total))).unwrap();
    assert!(steps.is_sorted() && steps.iter().all(|(done, total)| done <= total), "{steps:?}");
    assert_eq!(steps.last().map(|(done, total)| total - done), Some(0));
    assert_eq!(steps.last().map(|(done, _)| *done), Some(2 * report.new_bytes));
    assert_eq!((report.backup.number, report.backup.segments), (1, db.segments().len()));
    assert_eq!((report.new_segments, report.new_bytes), (db.segments().len(), report.backup.bytes));
    assert_eq!(report.backup.keyspaces, ["default", "stock"]);
    let before = bytes_of(&vfs, BACKUPS);

    // Nothing happened since.
    let report = backup(&db);
    assert_eq!((report.backup.number, report.new_segments, report.new_bytes), (2, 0, 0));
    db.put("new", "x").unwrap();
    db.keyspace("third").unwrap().put("new", "x").unwrap();
    let third = contents(&db);
    let report = backup(&db);
    assert_eq!((report.backup.number, report.new_segments), (3, 2));
    assert_eq!(report.backup.last_seqno.0, db.stats().last_seqno);
    let after = bytes_of(&vfs, BACKUPS);
    assert!(before.iter().all(|(name, bytes)| after.get(name) == Some(bytes)));
    assert_eq!(after.len(), before.len() + 4, "two manifests and two segments");

    // Compactions write nearly everything anew: what they replace is in the earlier backups.
    for name in db.keyspaces() {
        db.keyspace(&name).unwrap().compact_range::<&[u8]>(..).unwrap();
    }
    let report = backup(&db);
    assert!(report.new_segments > 0 && !segments(&vfs).is_empty());
    drop(db);
    for (number, expected) in [(1, &first), (2, &first), (3, &third), (4, &third)] {
        let backups = Backups::open_in(&env, BACKUPS).unwrap();
        assert_eq!(backups.verify(number, &mut |_, _| {}).unwrap(), []);
        drop(backups);
        assert!(restored(&env, number, &format!("/restored/{number}")) == *expected);
    }
    assert_eq!(numbers(&env), [1, 2, 3, 4]);
}

#[test]
fn a_restored_database_goes_on_with_the_same_backups() {
    let vfs = MemVfs::default();
    let env = env_on(&vfs);
    let db = builder(&env, DIR).open().unwrap();
    fill(&db);
    backup(&db);
    let first = contents(&db);
    assert!(restored(&env, 1, NEW) == first);
    let restored_db = builder(&env, NEW).open().unwrap();
    // Both go on: their segments have the same numbers, and are not the same.
    for (db, value) in [(&db, "one"), (&restored_db, "other")] {
        db.put("k", value).unwrap();
        let report = backup(db);
        assert_eq!(report.new_segments, 1);
    }
    for (number, db, target) in [(2, &db, "/a"), (3, &restored_db, "/b")] {
        assert!(restored(&env, number, target) == contents(db));
    }
    // A checkpoint is the same database to its backups.
    db.checkpoint("/copy", &mut |_, _| {}).unwrap();
    assert_eq!(backup(&builder(&env, "/copy").open().unwrap()).new_segments, 0);
}

#[test]
fn a_backup_survives_damage_to_the_database_and_takes_none_of_it_in() {
    let vfs = MemVfs::default();
    let db = builder(&env_on(&vfs), DIR).open().unwrap();
    fill(&db);
    let expected = contents(&db);
    backup(&db);
    db.put("new", [1; 5000]).unwrap();
    db.flush().unwrap();
    drop(db);
    let names = vfs.read_dir(Path::new(DIR)).unwrap();
    let mut names: Vec<_> = names.into_iter().filter(|name| name.ends_with(".seg")).collect();
    names.sort();
    for (at, name) in names.iter().enumerate() {
        let path = Path::new(DIR).join(name);
        let damaged = flipped(&vfs, &path, 100 + at);
        let env = env_on(&damaged);
        let db = builder(&env, DIR).open().unwrap();
        let outcome = db.backup(BACKUPS, &mut |_, _| {});
        if at + 1 == names.len() {
            let error = outcome.unwrap_err();
            let is_named = matches!(&error, Error::Corruption { file, .. } if *file == path);
            assert!(is_named, "{error}");
            assert_eq!(numbers(&env), [1]);
        } else {
            // It is in the first one, sound.
            assert_eq!(outcome.unwrap().new_segments, 1);
        }
        assert!(restored(&env, 1, NEW) == expected);
    }
}

#[test]
fn a_flipped_bit_is_found_by_verify_and_by_restore() {
    let vfs = MemVfs::default();
    let db = builder(&env_on(&vfs), DIR).open().unwrap();
    db.put("first", "x").unwrap();
    backup(&db);
    fill(&db);
    backup(&db);
    let expected = contents(&db);
    drop(db);
    let shared = bytes_of(&vfs, BACKUPS);
    let mut tried = 0;
    for (name, bytes) in &shared {
        let path = Path::new(BACKUPS).join(name);
        for at in (0..bytes.len()).step_by(bytes.len() / 9 + 1) {
            tried += 1;
            let damaged = flipped(&vfs, &path, at);
            let env = env_on(&damaged);
            let backups = Backups::open_in(&env, BACKUPS).unwrap();
            let verified = backups.verify(2, &mut |_, _| {});
            let outcome = backups.restore(2, NEW, &mut |_, _| {});
            if name.ends_with("1.backup") {
                assert_eq!(verified.unwrap(), []);
                outcome.unwrap();
                assert!(matches!(&backups.list().unwrap()[..], [(1, Err(_)), (2, Ok(_))]));
            } else {
                let error = outcome.unwrap_err();
                assert!(
                    matches!(&error, Error::Corruption { file, .. } if *file == path),
                    "{name} at {at}: {error}"
                );
                assert!(!is_complete(&damaged, NEW, &expected), "{name} at {at}");
                if name.ends_with(".seg") {
                    let damage = verified.unwrap();
                    assert!(!damage.is_empty() && damage.iter().all(|place| place.file == path));
                    assert!(damage.iter().all(|place| place.offset <= at as u64));
                } else {
                    assert!(matches!(verified, Err(Error::Corruption { .. })));
                }
            }
            drop(backups);
            // A backup that cannot be read takes nothing from the next one, nor that from it.
            let before = segments(&damaged);
            let db = builder(&env, DIR).open().unwrap();
            backup(&db);
            assert!(segments(&damaged).is_superset(&before), "{name}");
        }
    }
    assert!(tried > 50, "{tried}");
}

#[test]
fn what_is_missing_or_too_short_is_found_and_a_removed_copy_is_made_again() {
    let vfs = MemVfs::default();
    let env = env_on(&vfs);
    let db = builder(&env, DIR).open().unwrap();
    fill(&db);
    backup(&db);
    let name = segments(&vfs).pop_first().unwrap();
    let path = Path::new(BACKUPS).join(&name);
    let before = bytes_of(&vfs, BACKUPS);
    for is_missing in [true, false] {
        if is_missing {
            vfs.remove_file(&path).unwrap();
        } else {
            vfs.open(&path, OpenMode::ReadWrite).unwrap().set_len(5000).unwrap();
        }
        let backups = Backups::open_in(&env, BACKUPS).unwrap();
        let damage = backups.verify(1, &mut |_, _| {}).unwrap();
        assert!(!damage.is_empty() && damage.iter().all(|p| p.file == path), "{damage:?}");
        let target = format!("/spoiled/{is_missing}");
        let error = backups.restore(1, &target, &mut |_, _| {}).unwrap_err();
        assert!(matches!(&error, Error::Corruption { file, .. } if *file == path), "{error}");
        drop(backups);
        assert_eq!(backup(&db).new_segments, 1);
        assert_eq!(bytes_of(&vfs, BACKUPS).get(&name), before.get(&name));
    }
    assert!(restored(&env, 1, NEW) == contents(&db));
}

#[test]
fn directories_of_others_are_left_alone() {
    let vfs = MemVfs::default();
    let env = env_on(&vfs);
    let db = builder(&env, DIR).open().unwrap();
    fill(&db);
    let other = builder(&env, "/other").open().unwrap();
    other.put("a", "1").unwrap();
    other.flush().unwrap();
    let refused = |dir: &str, db: &Db| {
        let before = bytes_of(&vfs, dir);
        let error = db.backup(dir, &mut |_, _| {}).unwrap_err();
        assert!(bytes_of(&vfs, dir) == before, "{dir}");
        error
    };
    // A database, open or not, is no place for backups.
    assert!(matches!(refused(DIR, &db), Error::NoBackup { .. }));
    other.close().unwrap();
    assert!(matches!(refused("/other", &db), Error::NoBackup { .. }));
    let other = builder(&env, "/other").open().unwrap();
    backup(&db);
    assert!(matches!(refused(BACKUPS, &other), Error::NoBackup { .. }));
    {
        let backups = Backups::open_in(&env, BACKUPS).unwrap();
        assert!(matches!(refused(BACKUPS, &db), Error::Locked { .. }));
        assert!(matches!(Backups::open_in(&env, BACKUPS), Err(Error::Locked { .. })));
        let missing = backups.restore(7, NEW, &mut |_, _| {});
        assert!(matches!(missing, Err(Error::NoBackup { .. })));
        assert!(!vfs.exists(Path::new(NEW)).unwrap());
        let occupied = backups.restore(1, DIR, &mut |_, _| {});
        assert!(matches!(occupied, Err(Error::NotEmpty { .. })));
    }
    for dir in ["/nowhere", DIR] {
        assert!(matches!(Backups::open_in(&env, dir), Err(Error::NoBackup { .. })));
    }
    db.clone().close().unwrap();
    assert!(matches!(db.backup(BACKUPS, &mut |_, _| {}), Err(Error::Closed)));
}

/// A disk with a database of which there is one backup, and which has gone on since; what is in the
/// backup, and what is in the database.
fn with_one_backup() -> (MemVfs, Contents, Contents) {
    let vfs = MemVfs::default();
    let db = builder(&env_on(&vfs), DIR).open().unwrap();
    for n in 0..150u32 {
        db.put(n.to_be_bytes(), [n as u8; 600]).unwrap();
    }
    backup(&db);
    let first = contents(&db);
    db.keyspace("other").unwrap().put("k", "v").unwrap();
    db.put("flushed", [3; 3000]).unwrap();
    db.flush().unwrap();
    db.put("late", "y").unwrap();
    let second = contents(&db);
    db.close().unwrap();
    (vfs, first, second)
}

/// Holds the backups against what may be there; the numbers of those that are.
fn check_backups(image: &MemVfs, expected: &BTreeMap<u64, &Contents>) -> Vec<u64> {
    let env = env_on(image);
    let backups = Backups::open_in(&env, BACKUPS).unwrap();
    let list = backups.list().unwrap();
    for (number, info) in &list {
        info.as_ref().unwrap();
        assert_eq!(backups.verify(*number, &mut |_, _| {}).unwrap(), []);
        let target = format!("/check/{number}");
        backups.restore(*number, &target, &mut |_, _| {}).unwrap();
        assert!(opened(&env, &target) == *expected[number], "backup {number}");
    }
    list.into_iter().map(|(number, _)| number).collect()
}

/// What is left of a backup that was cut short goes with the next one.
fn check_going_on(image: &MemVfs, second: &Contents) {
    let env = env_on(image);
    let db = builder(&env, DIR).open().unwrap();
    assert!(contents(&db) == *second);
    let number = backup(&db).backup.number;
    drop(db);
    assert!(restored(&env, number, "/again") == *second);
    let files = bytes_of(image, BACKUPS);
    let named: usize = Backups::open_in(&env, BACKUPS).unwrap().named().unwrap().files.len();
    let others = files.keys().filter(|name| !name.ends_with(".seg") && !name.ends_with(".backup"));
    assert_eq!(others.collect::<Vec<_>>(), ["BACKUPS", "LOCK"]);
    assert_eq!(segments(image).len(), named);
}

#[test]
fn a_backup_that_is_cut_short_by_an_error_leaves_those_before() {
    let (disk, first, second) = with_one_backup();
    let expected = BTreeMap::from([(1, &first), (2, &second)]);
    for (failure, sticky) in [
        (Failure::Refused, true),
        (Failure::Refused, false),
        (Failure::Half, true),
        (Failure::Done, false),
        (Failure::NoSpace, true),
    ] {
        for k in 0.. {
            let faulty = SimVfs::on(&disk.fork(), k);
            let env = faulty.env(k);
            let db = builder(&env, DIR).open().unwrap();
            let calls = faulty.calls();
            faulty.fail_any(k, sticky, failure);
            let outcome = db.backup(BACKUPS, &mut |_, _| {});
            let was_struck = faulty.calls() - calls > k;
            faulty.heal();
            // What could not be read is not damaged.
            let is_damage = matches!(outcome, Err(Error::Corruption { .. }));
            assert!(!is_damage, "{failure:?} at call {k}: {outcome:?}");
            assert!(contents(&db) == second, "{failure:?} at call {k}");
            drop(db);
            let left = check_backups(&faulty.process_death(), &expected);
            assert!(left.starts_with(&[1]), "{failure:?} at call {k}: {left:?}");
            assert!(outcome.is_err() || left == [1, 2], "{failure:?} at call {k}: {left:?}");
            check_backups(&faulty.power_loss(k), &expected);
            check_going_on(&faulty.process_death(), &second);
            if !was_struck {
                assert!(outcome.is_ok() && k > 20);
                break;
            }
        }
    }
}

#[test]
fn power_loss_during_a_backup_leaves_those_before_and_the_new_one_whole_or_not_at_all() {
    let (disk, first, second) = with_one_backup();
    let vfs = SimVfs::on(&disk, 5);
    let db = builder(&vfs.env(5), DIR).open().unwrap();
    let images = Arc::new(Mutex::new(Vec::new()));
    {
        let images = Arc::clone(&images);
        vfs.before_each_change(move |vfs, _| {
            let mut images = images.lock().unwrap();
            images.push(vfs.process_death());
            images.extend((0..5).map(|seed| vfs.power_loss(vfs.changes() * 100 + seed)));
        });
    }
    backup(&db);
    vfs.forget_hook();
    let expected = BTreeMap::from([(1, &first), (2, &second)]);
    let images = std::mem::take(&mut *images.lock().unwrap());
    assert!(images.len() > 100, "{}", images.len());
    let mut seen = BTreeSet::new();
    for (n, image) in images.into_iter().enumerate() {
        seen.insert(check_backups(&image, &expected));
        if n % 5 == 0 {
            check_going_on(&image, &second);
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [vec![1], vec![1, 2]]);
    for seed in 0..50 {
        assert_eq!(check_backups(&vfs.power_loss(seed), &expected), [1, 2], "it is durable");
    }
}

#[test]
fn the_first_backup_may_be_cut_short_as_well() {
    let disk = MemVfs::default();
    let db = builder(&env_on(&disk), DIR).open().unwrap();
    fill(&db);
    let expected = contents(&db);
    db.close().unwrap();
    let vfs = SimVfs::on(&disk, 6);
    let db = builder(&vfs.env(6), DIR).open().unwrap();
    let images = Arc::new(Mutex::new(Vec::new()));
    {
        let images = Arc::clone(&images);
        vfs.before_each_change(move |vfs, _| {
            let mut images = images.lock().unwrap();
            images.extend((0..4).map(|seed| vfs.power_loss(vfs.changes() * 100 + seed)));
        });
    }
    backup(&db);
    vfs.forget_hook();
    let images = std::mem::take(&mut *images.lock().unwrap());
    for image in images {
        match Backups::open_in(&env_on(&image), BACKUPS) {
            Ok(backups) => {
                drop(backups);
                check_backups(&image, &BTreeMap::from([(1, &expected)]));
            }
            Err(error) => assert!(matches!(error, Error::NoBackup { .. }), "{error}"),
        }
        check_going_on(&image, &expected);
    }
}

#[test]
fn pruning_keeps_the_newest_and_what_they_need() {
    let vfs = MemVfs::default();
    let env = env_on(&vfs);
    let db = builder(&env, DIR).open().unwrap();
    let mut states = BTreeMap::new();
    for number in 1..=5u64 {
        db.put(format!("k{number}"), [number as u8; 500]).unwrap();
        if number == 4 {
            db.compact_range::<&[u8]>(..).unwrap();
        }
        assert_eq!(backup(&db).backup.number, number);
        states.insert(number, contents(&db));
    }
    drop(db);
    let expected: BTreeMap<u64, &Contents> = states.iter().map(|(n, s)| (*n, s)).collect();
    let mut backups = Backups::open_in(&env, BACKUPS).unwrap();
    assert!(matches!(backups.prune(0), Err(Error::InvalidOption { .. })));
    assert_eq!(backups.prune(5).unwrap(), Vec::<u64>::new());
    assert_eq!(segments(&vfs).len(), 5);
    drop(backups);

    // Power is lost at any change.
    let sim = SimVfs::on(&vfs, 7);
    let images = Arc::new(Mutex::new(Vec::new()));
    {
        let images = Arc::clone(&images);
        sim.before_each_change(move |sim, _| {
            let mut images = images.lock().unwrap();
            images.extend((0..20).map(|seed| sim.power_loss(sim.changes() * 100 + seed)));
        });
    }
    let mut backups = Backups::open_in(&sim.env(7), BACKUPS).unwrap();
    assert_eq!(backups.prune(2).unwrap(), [1, 2, 3]);
    sim.forget_hook();
    let mut images = std::mem::take(&mut *images.lock().unwrap());
    images.push(sim.power_loss(0));
    for image in images {
        let left = check_backups(&image, &expected);
        assert!(left.ends_with(&[4, 5]), "{left:?}");
        let mut backups = Backups::open_in(&env_on(&image), BACKUPS).unwrap();
        backups.prune(2).unwrap();
        assert_eq!((backups.numbers().unwrap(), segments(&image).len()), (vec![4, 5], 2));
    }

    // A backup that cannot be read does not count, and keeps what it may need if it is newer.
    let damaged = flipped(&vfs, &Path::new(BACKUPS).join(format!("{:020}.backup", 5)), 90);
    let mut backups = Backups::open_in(&env_on(&damaged), BACKUPS).unwrap();
    assert_eq!(backups.prune(1).unwrap(), [1, 2, 3]);
    assert_eq!((backups.numbers().unwrap(), segments(&damaged).len()), (vec![4, 5], 5));
    let damaged = flipped(&vfs, &Path::new(BACKUPS).join(format!("{:020}.backup", 2)), 90);
    let mut backups = Backups::open_in(&env_on(&damaged), BACKUPS).unwrap();
    assert_eq!(backups.prune(1).unwrap(), [1, 2, 3, 4]);
    assert_eq!((backups.numbers().unwrap(), segments(&damaged).len()), (vec![5], 2));
}

#[test]
fn a_restore_that_fails_anywhere_leaves_no_half_database() {
    let (disk, first, _) = with_one_backup();
    for failure in [Failure::Refused, Failure::Half, Failure::Done, Failure::NoSpace] {
        for k in 0.. {
            let faulty = SimVfs::on(&disk.fork(), k);
            let env = faulty.env(k);
            let backups = Backups::open_in(&env, BACKUPS).unwrap();
            let calls = faulty.calls();
            faulty.fail_any(k, true, failure);
            let outcome = backups.restore(1, NEW, &mut |_, _| {});
            let was_struck = faulty.calls() - calls > k;
            faulty.heal();
            drop(backups);
            let complete = is_complete(&faulty.process_death(), NEW, &first);
            is_complete(&faulty.power_loss(k), NEW, &first);
            assert!(complete || outcome.is_err(), "{failure:?} at call {k}");
            if !was_struck {
                assert!(outcome.is_ok() && k > 10);
                assert!(is_complete(&faulty.power_loss(k), NEW, &first), "it is durable");
                break;
            }
        }
    }
}

#[test]
fn names_are_told_apart() {
    use super::{is_copy_name, parse_manifest_name};
    assert_eq!(parse_manifest_name("00000000000000000012.backup"), Some(12));
    for name in
        ["12.backup", "0000000000000000001x.backup", "00000000000000000012.seg", "BACKUP.new"]
    {
        assert_eq!(parse_manifest_name(name), None);
    }
    assert!(is_copy_name("00000000000000000012-0123456789abcdef.seg"));
    for name in [
        "00000000000000000012.seg",
        "00000000000000000012-0123456789abcdeF.seg",
        "00000000000000000012-0123456789abcde.seg",
        "000000000000000000+2-0123456789abcdef.seg",
        "notes-0123456789abcdef.seg",
    ] {
        assert!(!is_copy_name(name), "{name}");
    }
}
