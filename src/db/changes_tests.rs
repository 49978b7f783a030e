//! What a feed gives, against what was done; and what it does when it cannot.

use super::super::{Background, Builder, Change, ChangeBatch, ChangeIter, Db, WriteBatch};
use crate::vfs::{Entropy, Env, Failure, MemVfs, OpenMode, SeededEntropy, SimVfs, Vfs};
use crate::{Error, KeyspaceId, SeqNo};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const DIR: &str = "/db";

fn builder(env: &Env) -> Builder {
    Db::builder(DIR)
        .env(env.clone())
        .background(Background::Manual)
        .write_buffer_bytes(64 << 10)
        .keep_log_bytes(1 << 30)
        .level0_runs(2)
}

fn env_on(vfs: impl Vfs + 'static) -> Env {
    Env { vfs: Arc::new(vfs), ..Env::in_memory(3) }
}

fn all(feed: &mut ChangeIter) -> Vec<ChangeBatch> {
    feed.map(|batch| batch.unwrap()).collect()
}

fn since(db: &Db, seqno: u64) -> Vec<ChangeBatch> {
    all(&mut db.changes_since(SeqNo(seqno)).unwrap())
}

/// A batch in short: its numbers, and its changes.
fn shown(batch: &ChangeBatch) -> String {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let change = |change: &Change| match change {
        Change::Put { keyspace, key, value, expires_ms } => {
            let until = expires_ms.map_or(String::new(), |at| format!("@{at}"));
            format!("{}:{}={}{until}", keyspace.name, text(key), text(value))
        }
        Change::Merge { keyspace, key, operand, expires_ms } => {
            let until = expires_ms.map_or(String::new(), |at| format!("@{at}"));
            format!("{}:{}+{}{until}", keyspace.name, text(key), text(operand))
        }
        Change::DeleteRange { keyspace, start, end } => {
            let end = end.as_ref().map_or(String::new(), |end| text(end));
            format!("{}:{}..{end}-", keyspace.name, text(start))
        }
        Change::Delete { keyspace, key } => format!("{}:{}-", keyspace.name, text(key)),
        Change::Clear { keyspace } => format!("{} cleared", keyspace.name),
        Change::Loaded { keyspace, first, last } => {
            format!("{} loaded from {} to {}", keyspace.name, text(first), text(last))
        }
        Change::Keyspaces(keyspaces) => {
            let names: Vec<_> = keyspaces.iter().map(|k| format!("{}/{}", k.id, k.name)).collect();
            format!("[{}]", names.join(" "))
        }
        Change::Unknown => "?".to_owned(),
    };
    let changes: Vec<_> = batch.changes.iter().map(change).collect();
    format!("{}-{} {}", batch.first, batch.last, changes.join(" "))
}

fn all_shown(batches: &[ChangeBatch]) -> Vec<String> {
    batches.iter().map(shown).collect()
}

type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// A copy that is kept by a feed.
#[derive(Clone, Debug, Default, PartialEq)]
struct Replica {
    keyspaces: BTreeMap<KeyspaceId, (String, Entries)>,
    at: SeqNo,
    /// A feed said that it does not know.
    unsure: bool,
}

impl Replica {
    fn apply(&mut self, batch: &ChangeBatch) {
        assert!(batch.first <= batch.last && batch.last >= self.at, "{batch:?} at {}", self.at);
        let takes = |change: &Change| matches!(change, Change::Put { .. } | Change::Delete { .. });
        if batch.changes.iter().all(takes) {
            assert_eq!(batch.first.0, self.at.0 + 1, "{batch:?}");
            assert_eq!(batch.last.0 - batch.first.0 + 1, batch.changes.len() as u64);
        }
        self.at = batch.last;
        for change in &batch.changes {
            match change {
                Change::Merge { .. } | Change::DeleteRange { .. } | Change::Loaded { .. } => {
                    unreachable!("not done here")
                }
                Change::Put { keyspace, key, value, .. } => {
                    let (name, entries) = self.keyspaces.get_mut(&keyspace.id).unwrap();
                    assert_eq!(**name, *keyspace.name);
                    entries.insert(key.to_vec(), value.to_vec());
                }
                Change::Delete { keyspace, key } => {
                    self.keyspaces.get_mut(&keyspace.id).unwrap().1.remove(&key[..]);
                }
                Change::Clear { keyspace } => {
                    self.keyspaces.get_mut(&keyspace.id).unwrap().1.clear();
                }
                Change::Keyspaces(live) => {
                    self.keyspaces.retain(|id, _| live.iter().any(|k| k.id == *id));
                    for k in live {
                        let fresh = || (k.name.to_string(), BTreeMap::new());
                        self.keyspaces.entry(k.id).or_insert_with(fresh);
                    }
                }
                Change::Unknown => self.unsure = true,
            }
        }
    }

    fn of(db: &Db) -> Replica {
        let entries = |name: String| {
            let keyspace = db.keyspace(&name).unwrap();
            let entries = keyspace.get_range::<&[u8]>(..).map(|entry| entry.unwrap());
            let entries = entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
            (keyspace.id(), (name, entries))
        };
        let keyspaces = db.keyspaces().into_iter().map(entries).collect();
        Replica { keyspaces, at: db.snapshot().seqno(), unsure: false }
    }
}

#[test]
fn everything_comes_in_its_place() {
    let db = builder(&Env::in_memory(1)).open().unwrap();
    db.put("a", "1").unwrap();
    let fruit = db.keyspace("fruit").unwrap();
    let mut batch = WriteBatch::new();
    batch.put_in(&fruit, "b", "2").delete("a").put("a", "3");
    db.write(batch).unwrap();
    fruit.clear().unwrap();
    db.flush().unwrap();
    fruit.put("c", "").unwrap();
    db.drop_keyspace("fruit").unwrap();
    db.keyspace("fruit").unwrap().put("d", "4").unwrap();
    db.delete("a").unwrap();
    let expected = [
        "0-0 [0/default]",
        "1-1 default:a=1",
        "1-1 [0/default 1/fruit]",
        "2-4 fruit:b=2 default:a- default:a=3",
        "5-5 fruit cleared",
        "6-6 fruit:c=",
        "6-6 [0/default]",
        "6-6 [0/default 2/fruit]",
        "7-7 fruit:d=4",
        "8-8 default:a-",
    ];
    assert_eq!(all_shown(&since(&db, 0)), expected);
    assert_eq!(all_shown(&since(&db, 1)[..2]), ["1-1 [0/default]", "1-1 [0/default 1/fruit]"]);
    // In the middle of a batch: all of it.
    assert_eq!(all_shown(&since(&db, 2)[..2]), ["2-2 [0/default 1/fruit]", expected[3]]);
    assert_eq!(all_shown(&since(&db, 5)[..2]), ["5-5 [0/default 1/fruit]", expected[5]]);
    assert_eq!(all_shown(&since(&db, 8)), ["8-8 [0/default 2/fruit]"]);
    let beyond = db.changes_since(SeqNo(9)).unwrap_err();
    assert!(
        matches!(beyond, Error::ChangesGone { oldest: SeqNo(0), newest: SeqNo(8) }),
        "{beyond}"
    );
}

#[test]
fn a_feed_goes_on_when_there_is_more() {
    let db = builder(&Env::in_memory(1)).open().unwrap();
    let mut feed = db.changes_since(SeqNo(0)).unwrap();
    assert!(feed.next().is_none() && !feed.wait(Duration::from_millis(100)).unwrap());
    for n in 1..=50u8 {
        if n % 7 == 0 {
            db.flush().unwrap();
        }
        db.put([n], "v").unwrap();
        assert!(feed.wait(Duration::from_secs(1)).unwrap());
        let given: Vec<_> = all(&mut feed).iter().map(|batch| batch.last.0).collect();
        let expected = if n == 1 { vec![0, 1] } else { vec![u64::from(n)] };
        assert_eq!(given, expected);
        assert_eq!(feed.position(), SeqNo(u64::from(n)));
        assert!(feed.next().is_none());
    }
    let other = db.clone();
    db.close().unwrap();
    assert!(matches!(feed.next(), Some(Err(Error::Closed))));
    assert!(matches!(feed.wait(Duration::ZERO), Err(Error::Closed)));
    assert!(matches!(other.changes_since(SeqNo(0)), Err(Error::Closed)));
}

#[test]
fn what_was_written_without_feeds_is_not_given_later() {
    let env = Env::in_memory(1);
    let db = builder(&env).keep_log_bytes(0).open().unwrap();
    db.keyspace("k").unwrap().put("a", "1").unwrap();
    db.clear().unwrap();
    let error = db.changes_since(SeqNo(0)).unwrap_err();
    assert!(matches!(error, Error::InvalidOption { option: "keep_log_bytes", .. }));
    let reader = builder(&env).open_read_only().unwrap();
    assert!(matches!(reader.changes_since(SeqNo(0)), Err(Error::ChangesGone { .. })));
    drop(db);
    // What was written without is not given later: it does not say which keyspaces there were.
    let db = builder(&env).open().unwrap();
    let Err(Error::ChangesGone { oldest, newest }) = db.changes_since(SeqNo(0)) else {
        panic!("it cannot know")
    };
    assert_eq!((oldest, newest), (SeqNo(2), SeqNo(2)));
    db.put("b", "2").unwrap();
    let now = since(&db, 2);
    assert_eq!(all_shown(&now), ["2-2 [0/default 1/k]", "3-3 default:b=2"]);
}

/// Does something at random.
fn act(db: &Db, rng: &SeededEntropy, n: u64) {
    let below = |n: u64| rng.next_u64() % n;
    let names = db.keyspaces();
    let some = || db.keyspace(&names[below(names.len() as u64) as usize]).unwrap();
    match below(24) {
        0 => db.flush().unwrap(),
        1 => db.inner().rotate(&mut db.inner().writer.lock()).unwrap(),
        2 => {
            db.step().unwrap();
        }
        3 => some().clear().unwrap(),
        4 => drop(db.keyspace(&format!("k{}", below(4))).unwrap()),
        5 => {
            if let Some(name) = names.iter().find(|name| *name != "default") {
                db.drop_keyspace(name).unwrap();
            }
        }
        6 => db.sync().unwrap(),
        7 => db.compact_range::<&[u8]>(..).unwrap(),
        _ => {
            let mut batch = WriteBatch::new();
            for _ in 0..1 + below(4) {
                let (keyspace, key) = (some(), [below(30) as u8]);
                if below(4) == 0 {
                    batch.delete_in(&keyspace, key);
                } else {
                    let len = if below(60) == 0 { 300_000 } else { below(60) };
                    batch.put_in(
                        &keyspace,
                        key,
                        [&n.to_le_bytes()[..], &vec![7; len as usize][..]].concat(),
                    );
                }
            }
            db.write(batch).unwrap();
        }
    }
}

#[test]
fn a_copy_is_the_database_wherever_it_goes_on() {
    for seed in 0..40 {
        let env = Env::in_memory(seed);
        let rng = SeededEntropy::new(seed);
        let mut db = Some(builder(&env).open().unwrap());
        let (mut copy, mut copies) = (Replica::default(), Vec::new());
        let mut feed = db.as_ref().map(|db| db.changes_since(SeqNo(0)).unwrap());
        for n in 0..200 {
            act(db.as_ref().unwrap(), &rng, n);
            if rng.next_u64().is_multiple_of(3) {
                let mut given = 0;
                for batch in feed.as_mut().unwrap() {
                    copy.apply(&batch.unwrap());
                    given += 1;
                }
                let mut now = Replica::of(db.as_ref().unwrap());
                // Before the first write nothing is told of keyspaces.
                if given > 0 {
                    now.at = copy.at;
                    assert_eq!(copy, now, "seed {seed}, step {n}");
                    copies.push(copy.clone());
                }
            }
            if rng.next_u64().is_multiple_of(40) {
                drop(feed.take());
                let closing = db.take().unwrap();
                if rng.next_u64().is_multiple_of(2) {
                    closing.close().unwrap();
                } else {
                    drop(closing);
                }
                db = Some(builder(&env).open().unwrap());
                feed = db.as_ref().map(|db| db.changes_since(copy.at).unwrap());
            }
        }
        let db = db.unwrap();
        db.put("last", "").unwrap();
        let mut now = Replica::of(&db);
        for mut copy in copies {
            for batch in since(&db, copy.at.0) {
                copy.apply(&batch);
            }
            now.at = copy.at;
            assert_eq!(copy, now, "seed {seed}");
        }
        // From any number on: what comes after it, as it came before.
        let whole = since(&db, 0);
        let numbered = |batch: &&ChangeBatch| !matches!(batch.changes[0], Change::Keyspaces(_));
        for from in (0..=db.snapshot().seqno().0).step_by(1 + seed as usize % 5) {
            let expected = whole.iter().filter(numbered).filter(|batch| batch.last.0 > from);
            let given = since(&db, from);
            assert!(matches!(given[0].changes[0], Change::Keyspaces(_)));
            assert!(given.iter().filter(numbered).eq(expected), "seed {seed}, from {from}");
        }
        // A process that only reads has the same.
        let reader = builder(&env).open_read_only().unwrap();
        let mut feed = reader.changes_since(SeqNo(0)).unwrap();
        assert_eq!(all(&mut feed), whole);
        db.put("more", "").unwrap();
        assert!(feed.next().is_none());
        let next = reader.reopen().unwrap().changes_since(feed.position()).unwrap();
        assert_eq!(next.filter(|batch| numbered(&batch.as_ref().unwrap())).count(), 1);
    }
}

/// The logs in a directory, with their lengths.
fn logs(env: &Env) -> Vec<u64> {
    let mut names = env.vfs.read_dir(Path::new(DIR)).unwrap();
    names.retain(|name| name.ends_with(".wal"));
    names.sort();
    let len = |name: &String| {
        env.vfs.open(&Path::new(DIR).join(name), OpenMode::Read).unwrap().len().unwrap()
    };
    names.iter().map(len).collect()
}

#[test]
fn logs_are_kept_up_to_the_budget_and_what_is_gone_is_said() {
    const BUDGET: u64 = 5000;
    let env = Env::in_memory(1);
    let open = |keep| builder(&env).keep_log_bytes(keep).open().unwrap();
    let mut db = open(BUDGET);
    let mut slow = db.changes_since(SeqNo(0)).unwrap();
    for n in 0..40u64 {
        db.put(n.to_le_bytes(), [5; 900]).unwrap();
        if n == 0 {
            assert_eq!(slow.next().unwrap().unwrap().last, SeqNo(0));
            assert_eq!(slow.next().unwrap().unwrap().last, SeqNo(1));
        }
        db.flush().unwrap();
        let lens = logs(&env);
        let (_, kept) = lens.split_last().unwrap();
        assert!(kept.iter().sum::<u64>() <= BUDGET, "{lens:?}");
        assert!(n < 4 || lens.len() == 5, "{lens:?}");
    }
    for reopened in [false, true] {
        if reopened {
            drop(slow);
            drop(db);
            db = open(BUDGET);
            slow = db.changes_since(SeqNo(40)).unwrap();
        }
        let Err(Error::ChangesGone { oldest, newest }) = db.changes_since(SeqNo(1)) else {
            panic!("that is long gone")
        };
        assert!(oldest >= SeqNo(34) && newest == SeqNo(40), "{oldest} {newest}");
        assert!(db.changes_since(SeqNo(oldest.0 - 1)).is_err());
        let given: Vec<_> = since(&db, oldest.0).iter().map(|batch| batch.last.0).collect();
        assert_eq!(given, (oldest.0..=40).collect::<Vec<_>>());
        if !reopened {
            for _ in 0..2 {
                assert!(matches!(slow.next(), Some(Err(Error::ChangesGone { .. }))));
            }
        }
    }
    drop(slow);
    drop(db);
    // Replayed is no more than without.
    let logs_before = logs(&env).len();
    drop(open(0));
    assert_eq!((logs_before > 4, logs(&env).len()), (true, 1));
}

#[test]
fn damage_is_an_error_where_it_is_and_recovery_does_not_mind() {
    let vfs = MemVfs::default();
    let db = builder(&env_on(vfs.clone())).open().unwrap();
    for n in 0..12u8 {
        db.put([n], [n; 40]).unwrap();
        if n % 4 == 3 {
            db.keyspace(&format!("k{n}")).unwrap().clear().unwrap();
            db.flush().unwrap();
        }
    }
    let whole = since(&db, 0);
    let copy = Replica::of(&db);
    drop(db);
    for id in 2..=4 {
        let path = Path::new(DIR).join(format!("{id:020}.wal"));
        let len = vfs.open(&path, OpenMode::Read).unwrap().len().unwrap();
        for at in 0..len {
            let disk = vfs.fork();
            let file = disk.open(&path, OpenMode::ReadWrite).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 4], at).unwrap();
            let db = builder(&env_on(disk.clone())).open().unwrap();
            assert_eq!(Replica::of(&db), copy);
            let mut given = Vec::new();
            let error = match db.changes_since(SeqNo(0)) {
                // The header: the log is not to be had.
                Err(error @ Error::ChangesGone { .. }) => error,
                Err(error) => panic!("log {id} at {at}: {error}"),
                Ok(mut feed) => loop {
                    match feed.next() {
                        Some(Ok(batch)) => given.push(batch),
                        Some(Err(error)) => break error,
                        None => panic!("log {id} at {at}: it ends in silence"),
                    }
                },
            };
            assert_eq!(given[..], whole[..given.len()], "log {id} at {at}");
            match error {
                Error::ChangesGone { .. } => assert!(given.is_empty()),
                Error::Corruption { file, .. } => assert_eq!(file, path),
                error => panic!("log {id} at {at}: {error}"),
            }
        }
    }
}

#[test]
fn a_copy_is_the_database_or_knows_better_whatever_fails() {
    let (mut compared, mut unsure) = (0, 0);
    for seed in 0..300 {
        let sim = SimVfs::new(seed);
        let rng = SeededEntropy::new(seed);
        let mut db = builder(&sim.env(seed)).open().unwrap();
        let mut copy = Replica::default();
        for n in 0..30u64 {
            if rng.next_u64().is_multiple_of(4) {
                let failures = [Failure::Refused, Failure::Half, Failure::Done, Failure::NoSpace];
                let failure = failures[(rng.next_u64() % 4) as usize];
                sim.fail(rng.next_u64() % 8, rng.next_u64().is_multiple_of(3), failure);
            }
            let key = [n as u8 % 9];
            // What fails, fails.
            let done = match rng.next_u64() % 8 {
                0 => db.clear(),
                1 => db.keyspace("k").and_then(|k| k.clear()),
                2 => db.drop_keyspace("k"),
                3 => db.flush(),
                4 => db.keyspace("k").and_then(|k| k.put(key, n.to_le_bytes())),
                _ => db.put(key, n.to_le_bytes()),
            };
            sim.heal();
            let crashes = done.is_err() && rng.next_u64().is_multiple_of(3);
            if crashes || db.inner().check_writable().is_err() {
                drop(db);
                db = builder(&sim.env(seed + n)).open().unwrap();
            }
            if rng.next_u64().is_multiple_of(3) {
                // Also forgets clears that hide nothing any more.
                db.wait_idle().unwrap();
            }
            // With the next operation everything is told, whatever failed before.
            db.put("step", n.to_le_bytes()).unwrap();
            for batch in db.changes_since(copy.at).unwrap() {
                copy.apply(&batch.unwrap());
            }
            let now = Replica::of(&db);
            if copy.unsure {
                unsure += 1;
                copy = now;
            } else {
                compared += 1;
                assert_eq!(copy, now, "seed {seed}, step {n}");
            }
        }
    }
    assert!(compared > 5000 && unsure > 20, "{compared} {unsure}");
}

#[test]
fn what_came_in_past_the_log_is_told_by_its_keys() {
    let env = Env::in_memory(1);
    let db = builder(&env).open().unwrap();
    let other = db.keyspace("other").unwrap();
    db.put("a", "1").unwrap();
    let mut feed = db.changes_since(SeqNo(0)).unwrap();
    assert_eq!(other.bulk_load([("k", "2"), ("m", "2"), ("q", "2")]).unwrap(), 3);
    assert_eq!(other.bulk_load([("n", "3")]).unwrap(), 1);
    assert_eq!(other.bulk_load::<&str, &str>([]).unwrap(), 0);
    db.put("b", "4").unwrap();
    let expected = [
        "0-0 [0/default 1/other]",
        "1-1 default:a=1",
        "2-2 other loaded from k to q",
        "3-3 other loaded from n to n",
        "4-4 default:b=4",
    ];
    assert_eq!(all_shown(&all(&mut feed)), expected);
    // Also after a flush, in another process, and from the middle.
    db.flush().unwrap();
    drop((feed, other));
    db.close().unwrap();
    let db = builder(&env).open().unwrap();
    let reader = builder(&env).open_read_only().unwrap();
    for at in 1..=4 {
        let given = since(&db, at as u64);
        // The keyspaces come in front of what there is.
        let shown: Vec<_> = all_shown(&given).into_iter().skip(1).collect();
        assert_eq!(shown, expected[at + 1..], "since {at}");
        assert_eq!(all(&mut reader.changes_since(SeqNo(at as u64)).unwrap()), given);
    }
}

#[test]
fn a_load_of_which_it_is_not_known_whether_it_was_done_is_said_to_be_so() {
    let (mut unsure, mut told) = (0, 0);
    for k in 0..40 {
        let sim = SimVfs::new(k);
        let db = builder(&sim.env(k)).open().unwrap();
        db.put("a", "1").unwrap();
        sim.fail(k, true, Failure::Done);
        let loaded = db.bulk_load([("a", "2"), ("b", "2")]);
        sim.heal();
        drop(db);
        let db = builder(&sim.env(k)).open().unwrap();
        let is_there = db.get("b").unwrap().is_some();
        assert!(is_there || loaded.is_err());
        db.put("c", "3").unwrap();
        let shown = all_shown(&since(&db, 1));
        let is_told = shown.iter().any(|batch| batch.ends_with("default loaded from a to b"));
        let is_unsure = shown.iter().any(|batch| batch.ends_with('?'));
        assert!(!is_there || is_told || is_unsure, "{k}: {shown:?}");
        assert!(is_there || !is_told, "{k}: {shown:?}");
        assert!(shown.last().unwrap().ends_with("default:c=3"), "{k}: {shown:?}");
        unsure += u32::from(is_unsure);
        told += u32::from(is_told);
    }
    assert!(unsure > 0 && told > 0, "{unsure} {told}");
}

#[test]
fn a_clear_of_which_it_is_not_known_whether_it_was_done_is_said_to_be_so() {
    let env = Env::in_memory(1);
    let db = builder(&env).open().unwrap();
    db.put("a", "1").unwrap();
    db.inner().writer.lock().log.append_skip().unwrap();
    let mut feed = db.changes_since(SeqNo(0)).unwrap();
    assert_eq!(all_shown(&all(&mut feed)), ["0-0 [0/default]", "1-1 default:a=1"]);
    db.put("b", "2").unwrap();
    assert_eq!(all_shown(&all(&mut feed)), ["2-2 ?", "3-3 default:b=2"]);
    // Its record was lost: the next log tells.
    let seqno = {
        let inner = db.inner();
        let mut writer = inner.writer.lock();
        let seqno = writer.log.next_seqno();
        writer.log.append_skip().unwrap();
        let edit = crate::version::Change::Clear { id: KeyspaceId(0), seqno };
        let edit = crate::version::Edit { changes: vec![edit] };
        inner.commit_edit(&mut inner.committer.lock(), edit).unwrap();
        seqno
    };
    assert_eq!(seqno, SeqNo(4));
    drop((feed, db));
    let db = builder(&env).open().unwrap();
    assert_eq!(db.get("a").unwrap(), None);
    db.put("c", "3").unwrap();
    assert_eq!(
        all_shown(&since(&db, 3)),
        ["3-3 [0/default]", "4-4 default cleared", "5-5 default:c=3"]
    );
}

#[test]
fn feeds_beside_writers_give_every_batch_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Db::builder(dir.path()).write_buffer_bytes(64 << 10).keep_log_bytes(1 << 30);
    let db = open().open().unwrap();
    db.put("first", "").unwrap();
    const WRITERS: u64 = 3;
    const WRITES: u64 = 1500;
    let copies: Vec<Replica> = std::thread::scope(|scope| {
        let feeds: Vec<_> = (0..2)
            .map(|_| {
                let mut feed = db.changes_since(SeqNo(0)).unwrap();
                scope.spawn(move || {
                    let mut copy = Replica::default();
                    let mut ended = 0;
                    while ended < WRITERS {
                        feed.wait(Duration::from_secs(60)).unwrap();
                        for batch in &mut feed {
                            let batch = batch.unwrap();
                            copy.apply(&batch);
                            let end = |change: &Change| {
                                matches!(change, Change::Put { key, .. } if key.starts_with(b"end"))
                            };
                            ended += batch.changes.iter().filter(|change| end(change)).count() as u64;
                        }
                    }
                    copy
                })
            })
            .collect();
        for writer in 0..WRITERS {
            let db = db.clone();
            scope.spawn(move || {
                let own = db.keyspace(&format!("w{writer}")).unwrap();
                for n in 0..WRITES {
                    let mut batch = WriteBatch::new();
                    for key in 0..n % 4 + 1 {
                        let value = [&n.to_le_bytes()[..], &[9; 60]].concat();
                        batch.put_in(&own, (n * key % 97).to_le_bytes(), &value);
                        batch.put((n * key % 89).to_le_bytes(), value);
                    }
                    db.write(batch).unwrap();
                    if n % 500 == 250 {
                        own.clear().unwrap();
                    }
                    if n % 400 == 300 {
                        db.keyspace(&format!("new{writer}")).unwrap();
                    }
                    if n % 700 == 600 {
                        db.drop_keyspace(&format!("new{writer}")).unwrap();
                    }
                }
                db.put(format!("end{writer}"), "").unwrap();
            });
        }
        feeds.into_iter().map(|feed| feed.join().unwrap()).collect()
    });
    let now = Replica::of(&db);
    for copy in copies {
        assert!(copy == now && !copy.unsure);
    }
}

#[test]
fn merges_range_deletes_and_expiries_are_told() {
    let env = Env::in_memory(3);
    let db = Db::builder(DIR)
        .env(env.clone())
        .background(Background::Manual)
        .keep_log_bytes(1 << 20)
        .merge_operator(crate::merge::Append)
        .open()
        .unwrap();
    let now = env.clock.unix_ms();
    db.put("a", "1").unwrap();
    db.merge("a", "2").unwrap();
    db.put_with_ttl("b", "3", Duration::from_secs(1)).unwrap();
    db.merge_with_ttl("b", "4", Duration::from_secs(2)).unwrap();
    db.delete_range("a"..="b").unwrap();
    db.delete_range::<&str>(..).unwrap();
    let told = all_shown(&since(&db, 0));
    let (one, two) = (now + 1000, now + 2000);
    let expected = [
        "0-0 [0/default]".to_owned(),
        "1-1 default:a=1".to_owned(),
        "2-2 default:a+2".to_owned(),
        format!("3-3 default:b=3@{one}"),
        format!("4-4 default:b+4@{two}"),
        "5-5 default:a..b\\x00-".to_owned(),
        "6-6 default:..-".to_owned(),
    ];
    assert_eq!(told, expected);
}
