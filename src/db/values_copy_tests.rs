//! Values in value segments where a database is copied, read beside its writer, or written by transactions.

use super::backup::Backups;
use super::unfinished::Unfinished;
use crate::merge::Append;
use crate::sync::Mutex;
use crate::vfs::{Env, MemVfs, OpenMode, Vfs};
use crate::{
    Background, Builder, Change, CompactionReason, Compression, Db, Error, Event, ReadOnlyDb, SeqNo,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

const DIR: &str = "/db";
const COPY: &str = "/copies/one";
const BACKUPS: &str = "/safe";

type All = BTreeMap<Vec<u8>, Vec<u8>>;

fn manual(env: &Env, dir: &str) -> Builder {
    Db::builder(dir)
        .env(env.clone())
        .background(Background::Manual)
        .compression(Compression::None)
        .write_buffer_bytes(1 << 20)
        .check_key_map(true)
        .separate_values_above(100)
}

fn long(key: u8, time: u8) -> Vec<u8> {
    [[key, time].repeat(500 + usize::from(key)), vec![time]].concat()
}

/// Puts some keys, and flushes.
fn round(db: &Db, keys: impl Iterator<Item = u8>, time: u8) {
    for key in keys {
        db.put([key], long(key, time)).unwrap();
        db.put([key, 0], [time]).unwrap();
    }
    db.flush().unwrap();
}

fn all(db: &Db) -> All {
    let entries = db.get_range::<&[u8]>(..).map(|entry| entry.unwrap());
    entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

/// What a database holds, which is sound and takes writes.
fn opened(env: &Env, dir: &str) -> All {
    let db = manual(env, dir).open().unwrap();
    let found = all(&db);
    assert!(db.verify(&mut |_, _| {}).unwrap().is_sound());
    round(&db, 0..30, 99);
    db.compact_range::<&[u8]>(..).unwrap();
    db.wait_idle().unwrap();
    assert!(found.keys().all(|key| db.contains_key(key).unwrap()));
    found
}

fn names(env: &Env, dir: &str) -> BTreeSet<String> {
    let names = env.vfs.read_dir(Path::new(dir)).unwrap();
    names.into_iter().filter(|name| name.ends_with(".val")).collect()
}

#[test]
fn a_checkpoint_takes_value_segments_along() {
    let env = Env::in_memory(1);
    let db = manual(&env, DIR).open().unwrap();
    round(&db, 0..20, 1);
    round(&db, 5..20, 2);
    let want = all(&db);
    let mut steps = Vec::new();
    db.checkpoint(COPY, &mut |done, total| steps.push((done, total))).unwrap();
    assert!(steps.is_sorted() && steps.iter().all(|(done, total)| done <= total), "{steps:?}");
    assert_eq!(steps.last().map(|(done, total)| done == total), Some(true));
    assert_eq!(names(&env, COPY), names(&env, DIR));
    assert!(!names(&env, COPY).is_empty());
    // The source goes on, and gives up what the copy needs.
    round(&db, 0..20, 3);
    db.compact_range::<&[u8]>(..).unwrap();
    db.wait_idle().unwrap();
    assert!(names(&env, COPY).is_disjoint(&names(&env, DIR)));
    drop(db);
    assert_eq!(opened(&env, COPY), want);
}

#[test]
fn what_is_in_memtables_goes_into_value_segments_of_the_copy() {
    let env = Env::in_memory(2);
    let db = manual(&env, DIR).open().unwrap();
    round(&db, 0..10, 1);
    for key in 5..15 {
        db.put([key], long(key, 2)).unwrap();
    }
    let want = all(&db);
    let moment = db.inner().moment().unwrap();
    db.put([0], "later").unwrap();
    let new = Unfinished::create(&env, Path::new(COPY)).unwrap();
    let content = db.inner().write_tail(moment, &new.home(&env, 16)).unwrap();
    assert_eq!(content.tail_values.len(), 1);
    assert!(content.state.next_segment > content.tail_values[0].id);
    // What is to be copied stays until it is, though the database has no use for it any more.
    round(&db, 0..15, 3);
    db.compact_range::<&[u8]>(..).unwrap();
    db.wait_idle().unwrap();
    let in_use = db.stats().keyspaces.iter().map(|keyspace| keyspace.value_segments).sum::<usize>();
    assert!(names(&env, DIR).len() > in_use);
    let link = |name: String| {
        let (from, to) = (Path::new(DIR).join(&name), Path::new(COPY).join(&name));
        env.vfs.hard_link(&from, &to).unwrap();
    };
    for segment in &content.live {
        link(crate::version::segment_file_name(segment.meta.id));
    }
    content.live_values().into_keys().map(crate::version::value_file_name).for_each(link);
    new.complete(&env, &content.state).unwrap();
    assert_eq!(opened(&env, COPY), want);
}

#[test]
fn backups_share_value_segments_and_restore_them() {
    let vfs = MemVfs::default();
    let env = Env { vfs: Arc::new(vfs.clone()), ..Env::in_memory(3) };
    let db = manual(&env, DIR).open().unwrap();
    round(&db, 0..20, 1);
    let first = all(&db);
    let report = db.backup(BACKUPS, &mut |_, _| {}).unwrap();
    assert_eq!((report.new_segments, report.backup.segments), (2, 2));
    assert_eq!(report.new_bytes, report.backup.bytes);
    assert!(report.new_bytes > 20 * 1000, "{report:?}");
    let report = db.backup(BACKUPS, &mut |_, _| {}).unwrap();
    assert_eq!((report.new_segments, report.new_bytes, report.backup.segments), (0, 0, 2));
    round(&db, 0..20, 2);
    let second = all(&db);
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(db.backup(BACKUPS, &mut |_, _| {}).unwrap().new_segments, 2);
    assert_eq!(names(&env, BACKUPS).len(), 2);
    round(&db, 0..20, 3);
    db.compact_range::<&[u8]>(..).unwrap();
    db.wait_idle().unwrap();
    // Each as it was, whatever the database did since.
    for (number, want) in [(1, &first), (2, &first), (3, &second)] {
        let dir = format!("/restored/{number}");
        let backups = Backups::open_in(&env, BACKUPS).unwrap();
        assert_eq!(backups.verify(number, &mut |_, _| {}).unwrap(), []);
        backups.restore(number, &dir, &mut |_, _| {}).unwrap();
        drop(backups);
        assert_eq!(opened(&env, &dir), *want);
    }
    // A flipped bit and a lost file are found, and not restored.
    let victim = Path::new(BACKUPS).join(names(&env, BACKUPS).pop_first().unwrap());
    for at in [0, 30, 5000, u64::MAX] {
        let vfs = vfs.fork();
        if at == u64::MAX {
            vfs.remove_file(&victim).unwrap();
        } else {
            let file = vfs.open(&victim, OpenMode::ReadWrite).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        }
        let env = Env { vfs: Arc::new(vfs), ..Env::in_memory(4) };
        let backups = Backups::open_in(&env, BACKUPS).unwrap();
        let damage = backups.verify(1, &mut |_, _| {}).unwrap();
        assert!(
            !damage.is_empty() && damage.iter().all(|place| place.file == victim),
            "{damage:?}"
        );
        assert_eq!(backups.verify(3, &mut |_, _| {}).unwrap(), []);
        let refused = backups.restore(1, "/restored/damaged", &mut |_, _| {});
        assert!(matches!(refused, Err(Error::Corruption { .. })), "{refused:?}");
    }
    // What a backup that was cut short left goes, and what only removed backups named.
    let stray = Path::new(BACKUPS).join("00000000000000000077.val");
    vfs.open(&stray, OpenMode::CreateNew).unwrap();
    let mut backups = Backups::open_in(&env, BACKUPS).unwrap();
    assert_eq!(backups.prune(2).unwrap(), [1]);
    assert_eq!(names(&env, BACKUPS).len(), 2, "the second backup has that of the first");
    assert_eq!(backups.prune(1).unwrap(), [2]);
    assert_eq!(names(&env, BACKUPS).len(), 1);
    assert_eq!(backups.verify(3, &mut |_, _| {}).unwrap(), []);
}

#[test]
fn a_damaged_value_segment_is_not_backed_up() {
    let env = Env::in_memory(5);
    let db = manual(&env, DIR).open().unwrap();
    round(&db, 0..20, 1);
    let name = names(&env, DIR).pop_first().unwrap();
    let file = env.vfs.open(&Path::new(DIR).join(name), OpenMode::ReadWrite).unwrap();
    file.write_all_at(b"damage", 700).unwrap();
    let refused = db.backup(BACKUPS, &mut |_, _| {});
    assert!(matches!(refused, Err(Error::Corruption { .. })), "{refused:?}");
    assert!(Backups::open_in(&env, BACKUPS).unwrap().list().unwrap().is_empty());
}

fn read(db: &ReadOnlyDb, keys: u8) -> (u8, u8) {
    let (mut right, mut gone) = (0, 0);
    for key in 0..keys {
        match db.get([key]) {
            Ok(value) => {
                assert_eq!(value.unwrap(), long(key, 1));
                right += 1;
            }
            Err(Error::Outdated { .. }) => gone += 1,
            Err(error) => panic!("{error}"),
        }
    }
    (right, gone)
}

#[test]
fn a_reader_beside_a_writer_keeps_its_value_segments_or_says_that_they_are_gone() {
    let env = Env::in_memory(6);
    let db = manual(&env, DIR).level0_runs(64).open().unwrap();
    for key in 0..20 {
        round(&db, key..=key, 1);
    }
    let open = |files| {
        let builder = manual(&env, DIR).cache_bytes(0).max_open_files(files);
        builder.open_read_only().unwrap()
    };
    let (few, many) = (open(8), open(64));
    assert_eq!((read(&few, 20), read(&many, 20)), ((20, 0), (20, 0)));
    let before = names(&env, DIR);
    round(&db, 0..20, 2);
    db.compact_range::<&[u8]>(..).unwrap();
    db.wait_idle().unwrap();
    assert!(names(&env, DIR).is_disjoint(&before));
    assert_eq!(read(&many, 20), (20, 0));
    let (right, gone) = read(&few, 20);
    assert!(gone > 10, "{right} {gone}");
    assert_eq!(few.reopen().unwrap().get([3]).unwrap().unwrap(), long(3, 2));
    // What only reads removes nothing.
    let files = names(&env, DIR);
    drop((few, many));
    assert_eq!(names(&env, DIR), files);
    assert_eq!(opened_beside(&env), 40);
}

/// How many entries a reader sees of what is there now.
fn opened_beside(env: &Env) -> usize {
    let db = manual(env, DIR).open_read_only().unwrap();
    db.get_range::<&[u8]>(..).inspect(|entry| assert!(entry.is_ok())).count()
}

#[test]
fn transactions_and_change_feeds_have_whole_values() {
    let env = Env::in_memory(7);
    let builder = manual(&env, DIR).merge_operator(Append).keep_log_bytes(1 << 20);
    let db = builder.open().unwrap();
    round(&db, 0..4, 1);
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(names(&env, DIR).len(), 1);
    let tx = db.begin();
    // Others' writes, and what goes with them, do not show.
    round(&db, 0..4, 2);
    db.compact_range::<&[u8]>(..).unwrap();
    db.wait_idle().unwrap();
    for key in 0..4 {
        assert_eq!(tx.get([key]).unwrap().unwrap(), long(key, 1));
    }
    let seen: Vec<_> = tx.get_range::<&[u8]>(..).map(|entry| entry.unwrap().1.len()).collect();
    assert_eq!(seen, [1001, 1, 1003, 1, 1005, 1, 1007, 1]);
    tx.merge([1], "more").unwrap();
    assert_eq!(tx.get([1]).unwrap().unwrap(), [&long(1, 1)[..], b"more"].concat());
    assert!(matches!(tx.commit(), Err(Error::Conflict)));
    let tx = db.begin();
    tx.merge([1], "more").unwrap();
    tx.put([9], long(9, 3)).unwrap();
    tx.commit().unwrap();
    db.flush().unwrap();
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(db.get([1]).unwrap().unwrap(), [&long(1, 2)[..], b"more"].concat());
    let changes = db.changes_since(SeqNo(0)).unwrap().flat_map(|batch| batch.unwrap().changes);
    let puts = changes.filter_map(|change| match change {
        Change::Put { value, .. } => Some(value.len()),
        _ => None,
    });
    assert_eq!(puts.filter(|len| *len > 100).count(), 9);
}

#[test]
fn moves_out_of_a_value_segment_are_told_as_such() {
    let env = Env::in_memory(8);
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let listener = {
        let reasons = Arc::clone(&reasons);
        move |event: &Event| {
            if let Event::CompactionBegin(info) = event {
                reasons.lock().push(info.reason);
            }
        }
    };
    let db = manual(&env, DIR).listener(Arc::new(listener)).open().unwrap();
    round(&db, 0..40, 1);
    round(&db, 0..30, 2);
    db.compact_range::<&[u8]>(..).unwrap();
    assert!(!reasons.lock().contains(&CompactionReason::Unreferenced));
    db.wait_idle().unwrap();
    assert_eq!(reasons.lock().last(), Some(&CompactionReason::Unreferenced));
}
