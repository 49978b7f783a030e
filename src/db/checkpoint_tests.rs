//! Checkpoints: one moment, whole or not openable, and the source as it was. What the tests of
//! backups need too is public.

use crate::version::salvage_manifest;
use crate::vfs::{Call, Env, Failure, MemVfs, OpenMode, SimVfs, Vfs};
use crate::{Background, Builder, Compression, Db, Error, WriteBatch};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub const DIR: &str = "/db";
pub const COPY: &str = "/copies/one";

pub fn env_on(vfs: &MemVfs) -> Env {
    Env { vfs: Arc::new(vfs.clone()), ..Env::in_memory(9) }
}

pub fn builder(env: &Env, dir: &str) -> Builder {
    Db::builder(dir)
        .env(env.clone())
        .background(Background::Manual)
        .compression(Compression::None)
        .level0_runs(64)
        .segment_bytes(64 << 10)
        .write_buffer_bytes(1 << 20)
}

pub type Contents = BTreeMap<(String, Vec<u8>), Vec<u8>>;

pub fn contents(db: &Db) -> Contents {
    let mut found = Contents::new();
    for name in db.keyspaces() {
        found.insert((name.clone(), b"is there".to_vec()), Vec::new());
        for entry in db.keyspace(&name).unwrap().get_range::<&[u8]>(..) {
            let (key, value) = entry.unwrap();
            found.insert((name.clone(), key.to_vec()), value.to_vec());
        }
    }
    found
}

/// What is in a database that must exist and be sound.
pub fn opened(env: &Env, dir: &str) -> Contents {
    let report = builder(env, dir).verify(&mut |_, _| {}).unwrap();
    assert!(report.is_sound() && report.notices.is_empty(), "{report:?}");
    contents(&builder(env, dir).create_if_missing(false).open().unwrap())
}

pub fn bytes_of(vfs: &dyn Vfs, dir: &str) -> BTreeMap<String, Vec<u8>> {
    let read = |path: &Path| {
        let file = vfs.open(path, OpenMode::Read).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    let names = vfs.read_dir(Path::new(dir)).unwrap();
    names.into_iter().map(|name| (name.clone(), read(&Path::new(dir).join(name)))).collect()
}

/// Runs, clears, removals, dropped keyspaces, and something in two memtables.
pub fn fill(db: &Db) {
    let [stock, gone] = ["stock", "gone"].map(|name| db.keyspace(name).unwrap());
    for round in 0..2u32 {
        for n in (0..300u32).filter(|n| n % (round + 1) == 0) {
            let mut batch = WriteBatch::new();
            let value = format!("{round} {n} {:200}", "");
            batch.put(n.to_be_bytes(), &value).put_in(&stock, (n * 3).to_be_bytes(), &value);
            batch.put_in(&gone, n.to_be_bytes(), &value);
            db.write(batch).unwrap();
        }
        if round == 0 {
            stock.clear().unwrap();
        }
        db.flush().unwrap();
    }
    db.drop_keyspace("gone").unwrap();
    // Where nothing is, and over what is there: segments whose entries carry no number.
    db.bulk_load((1000..1100u32).map(|n| (n.to_be_bytes(), "loaded"))).unwrap();
    stock.bulk_load((0..300u32).map(|n| (n.to_be_bytes(), "loaded"))).unwrap();
    stock.delete(7u32.to_be_bytes()).unwrap();
    for n in 0..20u32 {
        db.put(n.to_be_bytes(), "overwritten").unwrap();
        db.delete((n + 20).to_be_bytes()).unwrap();
        stock.put(format!("late {n}"), "x").unwrap();
    }
}

/// What a database and the copies of it have in common and what not: UUID, hash seed.
fn identity(env: &Env, dir: &str) -> ([u8; 16], u64) {
    let state = salvage_manifest(env, Path::new(dir)).unwrap().state.unwrap();
    (state.uuid, state.hash_seed)
}

#[test]
fn a_copy_has_everything_and_goes_its_own_way() {
    for links in [true, false] {
        let vfs = SimVfs::new(1);
        if !links {
            vfs.refuse_links();
        }
        let env = vfs.env(1);
        let db = builder(&env, DIR).open().unwrap();
        fill(&db);
        let segments = db.segments().len();
        let (before, used) = (contents(&db), vfs.used());
        let mut steps = Vec::new();
        db.checkpoint(COPY, &mut |done, total| steps.push((done, total))).unwrap();
        assert!(db.segments().len() > segments, "it flushes");
        assert!(steps.is_sorted() && steps.iter().all(|(done, total)| done <= total), "{steps:?}");
        assert_eq!(steps.last().map(|(done, total)| total - done), Some(0));
        assert!(opened(&env, COPY) == before, "links {links}");
        // A link takes no room.
        assert_eq!(vfs.used() < used + 60_000, links, "{} {used}", vfs.used());
        assert!(!bytes_of(&vfs, COPY).contains_key("UNFINISHED"));

        let (one, other) = (identity(&env, DIR), identity(&env, COPY));
        assert!(one.0 != other.0 && one.1 == other.1);
        let copy = builder(&env, COPY).open().unwrap();
        assert_eq!(copy.stats().last_seqno, db.stats().last_seqno);
        copy.put("new", "in the copy").unwrap();
        copy.keyspace("stock").unwrap().clear().unwrap();
        copy.compact_range::<&[u8]>(..).unwrap();
        copy.close().unwrap();
        assert!(contents(&db) == before);
        db.put("new", "in the source").unwrap();
        db.compact_range::<&[u8]>(..).unwrap();
        let copy = builder(&env, COPY).open().unwrap();
        assert_eq!(copy.get("new").unwrap().unwrap(), b"in the copy");
        assert!(copy.keyspace("stock").unwrap().get_range::<&[u8]>(..).next().is_none());
    }
}

#[test]
fn an_empty_database_can_be_copied_and_so_can_a_copy() {
    let vfs = MemVfs::default();
    let env = env_on(&vfs);
    let db = builder(&env, DIR).open().unwrap();
    vfs.create_dir_all(Path::new(COPY)).unwrap();
    db.checkpoint(COPY, &mut |_, _| {}).unwrap();
    let copy = builder(&env, COPY).open().unwrap();
    copy.put("a", "1").unwrap();
    copy.checkpoint("/third", &mut |_, _| {}).unwrap();
    assert_eq!(opened(&env, "/third").len(), 2);
}

#[test]
fn an_unsynced_log_is_in_the_copy_and_survives_there() {
    let vfs = SimVfs::new(3);
    let env = vfs.env(3);
    let db = builder(&env, DIR).open().unwrap();
    fill(&db);
    let before = contents(&db);
    db.checkpoint(COPY, &mut |_, _| {}).unwrap();
    for seed in 0..50 {
        assert!(opened(&env_on(&vfs.power_loss(seed)), COPY) == before, "seed {seed}");
    }
}

#[test]
fn a_target_that_holds_anything_is_left_as_it_is() {
    let vfs = MemVfs::default();
    let env = env_on(&vfs);
    let db = builder(&env, DIR).open().unwrap();
    fill(&db);
    vfs.create_dir_all(Path::new(COPY)).unwrap();
    vfs.open(&Path::new(COPY).join("notes"), OpenMode::CreateNew).unwrap();
    let (source, target) = (bytes_of(&vfs, DIR), bytes_of(&vfs, COPY));
    for dir in [COPY, DIR] {
        let error = db.checkpoint(dir, &mut |_, _| {}).unwrap_err();
        assert!(matches!(&error, Error::NotEmpty { path } if path == Path::new(dir)), "{error}");
    }
    assert!(source == bytes_of(&vfs, DIR) && target == bytes_of(&vfs, COPY));
    // What is in the way of a directory.
    let error = db.checkpoint("/copies/one/notes", &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    db.clone().close().unwrap();
    assert!(matches!(db.checkpoint("/other", &mut |_, _| {}), Err(Error::Closed)));
}

/// While the flush writes, the source is written to, a keyspace is cleared, one dropped and one created: the
/// manifest knows all of that before any of the writes is in a segment. And it is written to while these
/// writes go into segments of the copy.
#[test]
fn what_happens_beside_the_flush_is_in_the_copy_in_its_order() {
    let vfs = SimVfs::new(4);
    let env = vfs.env(4);
    let db = builder(&env, DIR).open().unwrap();
    let [cleared, _] = ["cleared", "dropped"].map(|name| db.keyspace(name).unwrap());
    let put_all = |db: &Db, value: &str| {
        let mut batch = WriteBatch::new();
        batch.put("k", value);
        for name in db.keyspaces() {
            batch.put_in(&db.keyspace(&name).unwrap(), "k", value);
        }
        db.write(batch).unwrap();
    };
    put_all(&db, "before");
    let created = AtomicU64::new(0);
    let moment = Arc::new(Mutex::new(None));
    {
        let (db, cleared, moment) = (db.clone(), cleared.clone(), Arc::clone(&moment));
        vfs.before_each_change(move |vfs, call| {
            // The first is a log, begun under the writer's lock, the second the first segment.
            if call == Call::Create && created.fetch_add(1, Ordering::Relaxed) == 1 {
                put_all(&db, "beside");
                db.delete("gone").unwrap();
                cleared.clear().unwrap();
                db.drop_keyspace("dropped").unwrap();
                db.keyspace("created").unwrap().put("k", "late").unwrap();
            }
            let is_begun = vfs.exists(&Path::new(COPY).join("LOCK")).unwrap();
            if call == Call::Create && is_begun && moment.lock().unwrap().is_none() {
                *moment.lock().unwrap() = Some(contents(&db));
                put_all(&db, "too late");
                db.put("z", "too late").unwrap();
            }
        });
    }
    db.checkpoint(COPY, &mut |_, _| {}).unwrap();
    vfs.forget_hook();
    let found = opened(&env, COPY);
    assert!(Some(&found) == moment.lock().unwrap().as_ref());
    assert!(found != contents(&db));
    // Nor does it come to light when the copy's own operations have the numbers of what was left out.
    let copy = builder(&env, COPY).open().unwrap();
    (0..20).for_each(|n| copy.put("later", [n]).unwrap());
    let mut later = contents(&copy);
    later.remove(&("default".to_owned(), b"later".to_vec()));
    assert!(later == found);
    let get = |name: &str| found.get(&(name.into(), b"k".to_vec())).map(|v| &v[..]);
    assert_eq!(get("default"), Some(&b"beside"[..]));
    assert_eq!((get("cleared"), get("created")), (None, Some(&b"late"[..])));
}

/// Compactions beside a checkpoint replace the segments that it is about to link.
#[test]
fn segments_that_are_replaced_meanwhile_are_in_the_copy() {
    for links in [true, false] {
        let vfs = SimVfs::new(5);
        if !links {
            vfs.refuse_links();
        }
        let env = vfs.env(5);
        let db = builder(&env, DIR).open().unwrap();
        fill(&db);
        let before = contents(&db);
        let mut compacted = false;
        db.checkpoint(COPY, &mut |_, _| {
            if !std::mem::replace(&mut compacted, true) {
                db.put("meanwhile", "x").unwrap();
                for name in db.keyspaces() {
                    db.keyspace(&name).unwrap().compact_range::<&[u8]>(..).unwrap();
                }
            }
        })
        .unwrap();
        assert!(opened(&env, COPY) == before, "links {links}");
    }
}

#[test]
fn a_copy_is_one_moment_while_writers_write() {
    let env = Env::in_memory(6);
    let db = Db::builder(DIR)
        .env(env.clone())
        .background(Background::Threads(1))
        .compression(Compression::None)
        .level0_runs(2)
        .segment_bytes(64 << 10)
        .write_buffer_bytes(64 << 10)
        .open()
        .unwrap();
    let [left, right, list] = ["left", "right", "list"].map(|name| db.keyspace(name).unwrap());
    let stop = AtomicBool::new(false);
    let acknowledged = [const { AtomicU64::new(0) }; 2];
    let value = |n: u64| [&n.to_be_bytes()[..], &[7; 300]].concat();
    std::thread::scope(|scope| {
        for (thread, acknowledged) in acknowledged.iter().enumerate() {
            let (db, left, right, list, stop) = (&db, &left, &right, &list, &stop);
            scope.spawn(move || {
                for n in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let mut batch = WriteBatch::new();
                    for key in [format!("last {thread}"), format!("{thread} {}", n % 512)] {
                        batch.put_in(left, &key, value(n)).put_in(right, &key, value(n));
                    }
                    if thread == 0 {
                        batch.put_in(list, "n", value(n));
                    }
                    db.write(batch).unwrap();
                    acknowledged.store(n, Ordering::SeqCst);
                    if thread == 0 && n % 16 == 0 {
                        db.put("cleared", value(n)).unwrap();
                        list.clear().unwrap();
                    }
                }
            });
        }
        for round in 0..12 {
            let least = acknowledged.each_ref().map(|n| n.load(Ordering::SeqCst));
            let dir = format!("/copies/{round}");
            db.checkpoint(&dir, &mut |_, _| {}).unwrap();
            let copy = builder(&env, &dir).create_if_missing(false).open().unwrap();
            let all = |name| {
                let range = copy.keyspace(name).unwrap().get_range::<&[u8]>(..);
                range.collect::<crate::Result<Vec<_>>>().unwrap()
            };
            assert!(all("left") == all("right"), "round {round}: half a batch");
            let number = |bytes: &[u8]| u64::from_be_bytes(bytes[..8].try_into().unwrap());
            for (thread, least) in least.into_iter().enumerate() {
                let last = copy.keyspace("left").unwrap().get(format!("last {thread}")).unwrap();
                let last = last.map_or(0, |v| number(&v));
                assert!(last >= least, "round {round}: {least} was acknowledged, {last} is there");
                let own = format!("{thread} ");
                for (key, v) in all("left") {
                    let Some(slot) = key.strip_prefix(own.as_bytes()) else { continue };
                    let slot: u64 = std::str::from_utf8(slot).unwrap().parse().unwrap();
                    let newest = last - (last + 512 - slot) % 512;
                    assert_eq!(number(&v), newest, "round {round}: a hole");
                }
            }
            // A clear never without what was written before it.
            let last = copy.keyspace("left").unwrap().get("last 0").unwrap();
            let last = last.map_or(0, |v| number(&v));
            let cleared = copy.get("cleared").unwrap().map_or(0, |v| number(&v));
            match copy.keyspace("list").unwrap().get("n").unwrap() {
                Some(n) => assert_eq!(number(&n), last),
                None => assert_eq!(cleared, last),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// A small source, with something in its log that is synced.
fn small(vfs: &MemVfs) -> Contents {
    let db = builder(&env_on(vfs), DIR).open().unwrap();
    let other = db.keyspace("other").unwrap();
    for n in 0..150u32 {
        db.put(n.to_be_bytes(), [n as u8; 600]).unwrap();
        other.put(n.to_be_bytes(), "x").unwrap();
    }
    db.flush().unwrap();
    other.delete(7u32.to_be_bytes()).unwrap();
    db.put("late", "y").unwrap();
    let all = contents(&db);
    db.close().unwrap();
    all
}

/// Whether the target is a database; then it is complete.
pub fn is_complete(image: &MemVfs, dir: &str, expected: &Contents) -> bool {
    let is_marked = image.read_dir(Path::new(dir)).is_ok_and(|names| !names.is_empty());
    if !is_marked {
        return false;
    }
    match builder(&env_on(image), dir).create_if_missing(false).open() {
        Ok(db) => {
            assert!(contents(&db) == *expected, "half a database can be opened");
            true
        }
        Err(Error::NotADatabase { .. }) => {
            // Nor can it be taken for one that is being created, but while there is nothing in it.
            let names = image.read_dir(Path::new(dir)).unwrap();
            let again = builder(&env_on(image), dir).open();
            assert!(again.is_err() || names == ["LOCK"], "{names:?}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn whichever_call_fails_the_source_is_sound_and_the_copy_complete_or_none() {
    let vfs = MemVfs::default();
    let expected = small(&vfs);
    for links in [true, false] {
        for (failure, sticky) in [
            (Failure::Refused, true),
            (Failure::Refused, false),
            (Failure::Half, false),
            (Failure::Done, false),
            (Failure::NoSpace, true),
            (Failure::Interrupted, false),
        ] {
            for k in 0.. {
                let faulty = SimVfs::on(&vfs.fork(), k);
                if !links {
                    faulty.refuse_links();
                }
                let env = faulty.env(k);
                let db = builder(&env, DIR).open().unwrap();
                let calls = faulty.calls();
                faulty.fail_any(k, sticky, failure);
                let outcome = db.checkpoint(COPY, &mut |_, _| {});
                let was_struck = faulty.calls() - calls > k;
                faulty.heal();
                assert!(contents(&db) == expected, "{failure:?} at call {k}");
                drop(db);
                let complete = is_complete(&faulty.process_death(), COPY, &expected);
                match &outcome {
                    Ok(()) => assert!(complete, "{failure:?} at call {k}"),
                    Err(Error::Io { .. } | Error::DiskFull { .. } | Error::Poisoned { .. }) => {}
                    Err(error) => panic!("{failure:?} at call {k}: {error:?}"),
                }
                for image in [faulty.process_death(), faulty.power_loss(k)] {
                    let source = builder(&env_on(&image), DIR).create_if_missing(false).open();
                    assert!(contents(&source.unwrap()) == expected, "{failure:?} at call {k}");
                    is_complete(&image, COPY, &expected);
                }
                if !was_struck {
                    assert!(outcome.is_ok() && k > 20);
                    break;
                }
            }
        }
    }
}

#[test]
fn power_loss_at_any_change_leaves_the_source_and_a_complete_copy_or_none() {
    let disk = MemVfs::default();
    let expected = small(&disk);
    for links in [true, false] {
        let vfs = SimVfs::on(&disk.fork(), 8);
        if !links {
            vfs.refuse_links();
        }
        let env = vfs.env(8);
        let db = builder(&env, DIR).open().unwrap();
        let images = Arc::new(Mutex::new(Vec::new()));
        {
            let images = Arc::clone(&images);
            vfs.before_each_change(move |vfs, _| {
                let mut images = images.lock().unwrap();
                images.push(vfs.process_death());
                let seeds = 0..6;
                images.extend(seeds.map(|seed| vfs.power_loss(vfs.changes() * 100 + seed)));
            });
        }
        db.checkpoint(COPY, &mut |_, _| {}).unwrap();
        vfs.forget_hook();
        let images = std::mem::take(&mut *images.lock().unwrap());
        assert!(images.len() > 100, "{}", images.len());
        let mut complete = 0;
        for image in images {
            let source = builder(&env_on(&image), DIR).create_if_missing(false).open().unwrap();
            assert!(contents(&source) == expected);
            complete += usize::from(is_complete(&image, COPY, &expected));
        }
        assert!(complete > 0);
        for seed in 0..100 {
            assert!(is_complete(&vfs.power_loss(seed), COPY, &expected), "it is durable");
        }
    }
}

#[test]
fn a_database_that_refuses_writes_refuses_to_be_copied() {
    let vfs = SimVfs::new(10);
    let db = builder(&vfs.env(10), DIR).open().unwrap();
    db.put("a", "1").unwrap();
    vfs.fail(0, true, Failure::Refused);
    db.sync().unwrap_err();
    vfs.heal();
    assert!(matches!(db.checkpoint(COPY, &mut |_, _| {}), Err(Error::Poisoned { .. })));
    assert!(vfs.read_dir(Path::new(COPY)).is_err(), "nothing was made");
}

#[test]
fn merges_expiries_and_range_deletes_are_copied() {
    let env = env_on(&MemVfs::default());
    let options = |dir| builder(&env, dir).merge_operator(crate::merge::Append);
    let db = options(DIR).open().unwrap();
    for key in ["a", "b", "c", "d"] {
        db.put(key, "1").unwrap();
    }
    db.flush().unwrap();
    // One range tombstone in the manifest, one in a frozen memtable, one in the active one.
    let held = db.snapshot();
    db.delete_range("a".."b").unwrap();
    db.flush().unwrap();
    db.delete_range("b".."c").unwrap();
    db.merge("d", "2").unwrap();
    db.inner().freeze().unwrap();
    db.put_with_ttl("e", "short", std::time::Duration::from_millis(5)).unwrap();
    db.put_with_ttl("f", "long", std::time::Duration::from_secs(60)).unwrap();
    db.delete_range("c".."d").unwrap();
    db.merge("d", "3").unwrap();
    let read = |db: &Db| -> Vec<(Vec<u8>, Vec<u8>)> {
        let entries = db.get_range::<&[u8]>(..).map(|entry| entry.unwrap());
        entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    };
    let moment = db.inner().moment().unwrap();
    // What comes after the moment is not in it.
    db.delete_range::<&str>(..).unwrap();
    db.merge("d", "4").unwrap();
    let new = super::Unfinished::create(&env, Path::new(COPY)).unwrap();
    let home = new.home(&env, 16);
    let content = db.inner().write_tail(moment, &home).unwrap();
    for segment in &content.live {
        env.vfs.hard_link(&segment.path(), &home.path(segment.meta.id)).unwrap();
    }
    new.complete(&env, &content.state).unwrap();
    let copy = options(COPY).open().unwrap();
    let pair = |key: &str, value: &str| (key.into(), value.into());
    assert_eq!(read(&copy), [pair("d", "123"), pair("e", "short"), pair("f", "long")]);
    env.clock.sleep(std::time::Duration::from_millis(6));
    copy.put("a", "new").unwrap();
    copy.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(read(&copy), [pair("a", "new"), pair("d", "123"), pair("f", "long")]);
    drop(held);
    // And by the front door.
    db.checkpoint("/copies/two", &mut |_, _| {}).unwrap();
    assert_eq!(read(&options("/copies/two").open().unwrap()), [pair("d", "4")]);
    assert_eq!(read(&db), [pair("d", "4")]);
}
