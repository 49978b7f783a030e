//! Merges and times to live, through the whole database. Random operations are in `tests/model.rs`, what
//! compactions keep in `compaction::versions_tests`.

use crate::merge::{AddI64, Append, Max, MergeFn, MergeOperator, SetUnion};
use crate::vfs::{Env, ManualClock, MemVfs};
use crate::{Background, Builder, Db, Error, ErrorKind, KeyspaceOptions, Kind, WriteBatch};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn manual(env: &Env) -> Builder {
    Db::builder("/db").env(env.clone()).background(Background::Manual).write_buffer_bytes(64 << 10)
}

fn with_clock() -> (Env, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    (Env { clock: Arc::clone(&clock) as _, ..Env::in_memory(3) }, clock)
}

const MS: Duration = Duration::from_millis(1);

fn range(db: &Db) -> Vec<(Vec<u8>, Vec<u8>)> {
    let forth: Vec<_> = db
        .get_range::<&[u8]>(..)
        .map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap())
        .collect();
    let mut back: Vec<_> = db
        .get_range::<&[u8]>(..)
        .rev()
        .map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap())
        .collect();
    back.reverse();
    assert_eq!(forth, back);
    let mut lent = Vec::new();
    let mut entries = db.get_range::<&[u8]>(..);
    while let Some(entry) = entries.next_entry() {
        let (key, value) = entry.unwrap();
        lent.push((key.to_vec(), value.to_vec()));
    }
    assert_eq!(forth, lent);
    forth
}

#[test]
fn operands_are_applied_in_order_and_a_later_put_wins() {
    // Each step ends in another place: the memtable, a segment, a merged segment, another process.
    for places in 0..4_u32.pow(4) {
        let env = Env::in_memory(u64::from(places));
        let mut db = manual(&env).merge_operator(Append).open().unwrap();
        let mut left = places;
        let mut settle = |db: &mut Db| {
            match left % 4 {
                0 => {}
                1 => db.flush().unwrap(),
                2 => db.compact_range::<&[u8]>(..).unwrap(),
                _ => {
                    drop(std::mem::replace(
                        db,
                        Db::builder("/x").env(Env::in_memory(1)).open().unwrap(),
                    ));
                    *db = manual(&env).merge_operator(Append).open().unwrap();
                }
            }
            left /= 4;
        };
        db.put("k", [0]).unwrap();
        db.merge("other", [9]).unwrap();
        settle(&mut db);
        db.merge("k", [1]).unwrap();
        settle(&mut db);
        db.merge("k", [2]).unwrap();
        settle(&mut db);
        assert_eq!(db.get("k").unwrap().unwrap(), [0, 1, 2], "{places}");
        let both = [(b"k".to_vec(), vec![0, 1, 2]), (b"other".to_vec(), vec![9])];
        assert_eq!(range(&db), both, "{places}");
        db.put("k", [3]).unwrap();
        settle(&mut db);
        assert_eq!(db.get("k").unwrap().unwrap(), [3], "{places}");
        db.delete("k").unwrap();
        db.merge("k", [4]).unwrap();
        assert_eq!(db.multi_get(&["k", "none"]).unwrap()[0].as_deref(), Some(&[4][..]), "{places}");
        db.compact_range::<&[u8]>(..).unwrap();
        assert_eq!(db.get("k").unwrap().unwrap(), [4], "{places}");
    }
}

#[test]
fn a_snapshot_does_not_see_later_operands() {
    let env = Env::in_memory(1);
    let db = manual(&env).merge_operator(AddI64).open().unwrap();
    let number = |n: i64| n.to_le_bytes();
    let mut snapshots = Vec::new();
    for n in 1..=20 {
        db.merge("n", number(n)).unwrap();
        snapshots.push((db.snapshot(), n * (n + 1) / 2));
        if n % 3 == 0 {
            db.flush().unwrap();
        }
        if n % 7 == 0 {
            db.compact_range::<&[u8]>(..).unwrap();
        }
    }
    db.compact_range::<&[u8]>(..).unwrap();
    for (snapshot, sum) in &snapshots {
        assert_eq!(snapshot.get("n").unwrap().unwrap(), number(*sum));
        let last = snapshot.get_range::<&[u8]>(..).next_back().unwrap().unwrap();
        assert_eq!(last.1, number(*sum));
    }
    drop(snapshots);
    db.compact_range::<&[u8]>(..).unwrap();
    let stats = db.stats();
    assert_eq!(stats.snapshots, 0);
    assert_eq!(db.get("n").unwrap().unwrap(), number(210));
}

#[test]
fn concurrent_merges_lose_nothing() {
    let env = Env::in_memory(1);
    let db = Db::builder("/db")
        .env(env)
        .write_buffer_bytes(64 << 10)
        .level0_runs(1)
        .merge_operator(AddI64)
        .open()
        .unwrap();
    const EACH: i64 = if cfg!(miri) { 20 } else { 5_000 };
    std::thread::scope(|scope| {
        for thread in 0..4_i64 {
            let db = &db;
            scope.spawn(move || {
                for n in 0..EACH {
                    db.merge("all", 1_i64.to_le_bytes()).unwrap();
                    db.merge((n % 7).to_le_bytes(), thread.to_le_bytes()).unwrap();
                    if n % 50 == 0 {
                        // Between two reads nothing is taken away.
                        let read = || db.get("all").unwrap().unwrap();
                        let (one, two) = (read(), read());
                        let number = |v: &[u8]| i64::from_le_bytes(v.try_into().unwrap());
                        assert!(number(&one) <= number(&two));
                    }
                }
            });
        }
    });
    assert_eq!(db.get("all").unwrap().unwrap(), (4 * EACH).to_le_bytes());
    let sum: i64 = (0..7_i64)
        .map(|n| db.get(n.to_le_bytes()).unwrap().unwrap())
        .map(|value| i64::from_le_bytes(value[..].try_into().unwrap()))
        .sum();
    assert_eq!(sum, 6 * EACH);
}

#[test]
fn a_keyspace_wants_the_operator_that_it_was_written_with() {
    let env = Env::in_memory(1);
    let union = KeyspaceOptions::new().merge_operator(SetUnion);
    {
        let db = manual(&env).open().unwrap();
        assert!(matches!(db.merge("k", "v"), Err(Error::MergeOperator { .. })));
        let mut batch = WriteBatch::new();
        batch.put("p", "q").merge("k", "v");
        assert!(matches!(db.write(batch), Err(Error::MergeOperator { .. })));
        assert_eq!(db.get("p").unwrap(), None, "all or nothing");
        let sets = db.keyspace_with("sets", &union).unwrap();
        sets.merge("k", SetUnion::encode(["b", "a"])).unwrap();
        assert!(matches!(sets.merge("k", "no set"), Err(Error::MergeFailed { .. })));
        let mut batch = WriteBatch::new();
        batch.put("p", "q").merge_in(&sets, "k", "no set");
        assert!(matches!(db.write(batch), Err(Error::MergeFailed { .. })));
        assert_eq!(db.get("p").unwrap(), None, "all or nothing");
        // Once given it is known as long as the database is open.
        let again = db.keyspace("sets").unwrap();
        assert_eq!(again.get("k").unwrap().unwrap(), SetUnion::encode(["a", "b"]));
    }
    let db = manual(&env).open().unwrap();
    let refused = db.keyspace("sets");
    assert!(matches!(&refused, Err(Error::MergeOperator { .. })), "{refused:?}");
    assert!(refused.unwrap_err().to_string().contains("ashlar.set-union"));
    let other = KeyspaceOptions::new().merge_operator(Max);
    let refused = db.keyspace_with("sets", &other).unwrap_err();
    assert!(refused.to_string().contains("ashlar.max"), "{refused}");
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    // Nobody gave it yet: flushes and compactions leave the operands alone.
    db.flush().unwrap();
    let sets = db.keyspace_with("sets", &union).unwrap();
    sets.merge("k", SetUnion::encode(["c"])).unwrap();
    assert_eq!(sets.get("k").unwrap().unwrap(), SetUnion::encode(["a", "b", "c"]));
    drop((db, sets));
    // One that had none can be given one, and from then on needs it.
    let db = manual(&env).merge_operator(Append).open().unwrap();
    db.merge("k", "v").unwrap();
    drop(db);
    assert!(matches!(manual(&env).open(), Err(Error::MergeOperator { .. })));
    assert!(matches!(manual(&env).merge_operator(Max).open(), Err(Error::MergeOperator { .. })));
    let db = manual(&env).merge_operator(Append).open().unwrap();
    assert_eq!(db.get("k").unwrap().unwrap(), "v");
    for name in ["", &"x".repeat(256)] {
        let nameless = Named(name.to_owned());
        let options = KeyspaceOptions::new().merge_operator(nameless);
        assert!(matches!(db.keyspace_with("new", &options), Err(Error::MergeOperator { .. })));
    }
    assert_eq!(db.keyspaces(), ["default", "sets"]);
}

struct Named(String);

impl MergeOperator for Named {
    fn name(&self) -> &str {
        &self.0
    }

    fn merge(
        &self,
        _: &[u8],
        _: Option<&[u8]>,
        _: &[&[u8]],
    ) -> Result<Option<Vec<u8>>, crate::merge::MergeError> {
        Ok(None)
    }
}

#[test]
fn an_operator_that_panics_fails_the_read_and_harms_nothing() {
    let env = Env::in_memory(1);
    let is_angry = Arc::new(AtomicBool::new(true));
    let operator = || {
        let is_angry = Arc::clone(&is_angry);
        MergeFn::associative("moody", move |_, value, operands| {
            assert!(!is_angry.load(Ordering::Relaxed), "not today");
            Some([value.unwrap_or_default(), &operands.concat()].concat())
        })
    };
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let db = manual(&env).merge_operator(operator()).open().unwrap();
    db.put("k", "a").unwrap();
    db.flush().unwrap();
    db.merge("k", "b").unwrap();
    db.merge("k", "c").unwrap();
    db.put("l", "x").unwrap();
    let failed = db.get("k").unwrap_err();
    assert!(matches!(&failed, Error::MergeFailed { .. }) && failed.kind() == ErrorKind::UserCode);
    let items: Vec<_> = db.get_range::<&[u8]>(..).collect();
    assert!(matches!(&items[..], [Err(Error::MergeFailed { .. })]), "{items:?}");
    db.flush().unwrap();
    let compacted = db.compact_range::<&[u8]>(..);
    assert!(matches!(compacted, Err(Error::MergeFailed { .. })), "{compacted:?}");
    assert_eq!(db.get("l").unwrap().unwrap(), "x");
    is_angry.store(false, Ordering::Relaxed);
    std::panic::set_hook(hook);
    assert_eq!(db.get("k").unwrap().unwrap(), "abc");
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(range(&db), [(b"k".to_vec(), b"abc".to_vec()), (b"l".to_vec(), b"x".to_vec())]);
    assert!(db.verify(&mut |_, _| {}).unwrap().is_sound());
}

/// Panics wherever it is told to.
#[derive(Default)]
struct Touchy {
    at_name: AtomicBool,
    at_check: AtomicBool,
}

impl MergeOperator for Touchy {
    fn name(&self) -> &'static str {
        assert!(!self.at_name.load(Ordering::Relaxed), "do not ask");
        "touchy"
    }

    fn merge(
        &self,
        _: &[u8],
        existing: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> Result<Option<Vec<u8>>, crate::merge::MergeError> {
        Ok(Some([existing.unwrap_or_default(), &operands.concat()].concat()))
    }

    fn check(&self, _: &[u8], _: &[u8]) -> Result<(), crate::merge::MergeError> {
        assert!(!self.at_check.load(Ordering::Relaxed), "do not touch");
        Ok(())
    }
}

#[test]
fn an_operator_that_panics_at_a_write_fails_the_write_and_harms_nothing() {
    let env = Env::in_memory(1);
    let operator = Arc::new(Touchy::default());
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let db = manual(&env).merge_operator(Arc::clone(&operator)).open().unwrap();
    db.merge("k", "a").unwrap();
    operator.at_check.store(true, Ordering::Relaxed);
    for at_name in [false, true] {
        operator.at_name.store(at_name, Ordering::Relaxed);
        let mut batch = WriteBatch::new();
        batch.put("l", "x").merge("k", "b");
        let tx = db.begin();
        for refused in [db.merge("k", "b"), db.write(batch), tx.merge("k", "b")] {
            let error = refused.unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, Error::MergeFailed { .. }), "{text}");
            assert!(text.contains("do not touch") && text.contains("do not ask") == at_name);
        }
        tx.put("other", "1").unwrap();
        tx.commit().unwrap();
    }
    assert!(matches!(
        db.keyspace_with("new", &KeyspaceOptions::new().merge_operator(Arc::clone(&operator))),
        Err(Error::MergeOperator { .. })
    ));
    operator.at_check.store(false, Ordering::Relaxed);
    operator.at_name.store(false, Ordering::Relaxed);
    std::panic::set_hook(hook);
    db.merge("k", "c").unwrap();
    let all = [(b"k".to_vec(), b"ac".to_vec()), (b"other".to_vec(), b"1".to_vec())];
    assert_eq!(range(&db), all, "nothing was written of what was refused");
    drop(db);
    let db = manual(&env).merge_operator(operator).open().unwrap();
    assert_eq!((range(&db), db.keyspaces()), (all.to_vec(), vec!["default".to_owned()]));
}

#[test]
fn an_operator_may_remove() {
    let env = Env::in_memory(1);
    let operator = MergeFn::new("gone-at-zero", |_, value: Option<&[u8]>, operands: &[&[u8]]| {
        operands.iter().fold(value.map(<[u8]>::to_vec), |_, operand| {
            (**operand != [0]).then(|| operand.to_vec())
        })
    });
    let db = manual(&env).merge_operator(operator).open().unwrap();
    db.put("k", [1]).unwrap();
    db.flush().unwrap();
    db.merge("k", [0]).unwrap();
    assert_eq!((db.get("k").unwrap(), range(&db).len()), (None, 0));
    let snapshot = db.snapshot();
    db.merge("k", [5]).unwrap();
    assert_eq!(db.get("k").unwrap().unwrap(), [5]);
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(snapshot.get("k").unwrap(), None);
    assert_eq!(db.get("k").unwrap().unwrap(), [5]);
    db.merge("k", [0]).unwrap();
    drop(snapshot);
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!((db.get("k").unwrap(), range(&db).len()), (None, 0));
    let left: u64 = db.stats().keyspaces[0].levels.iter().map(|level| level.entries).sum();
    assert_eq!(left, 0, "nothing is left of it");
}

#[test]
fn what_has_expired_is_absent_and_goes() {
    let (env, clock) = with_clock();
    let db = manual(&env).open().unwrap();
    clock.advance(1000 * MS);
    db.put("k", "old").unwrap();
    db.put_with_ttl("k", "new", 50 * MS).unwrap();
    db.put_with_ttl("short", "1", 50 * MS + Duration::from_nanos(1)).unwrap();
    let mut batch = WriteBatch::new();
    batch.put_with_ttl("batch", "2", 10 * MS).put("stays", "3");
    clock.advance(5 * MS);
    db.write(batch).unwrap();
    assert_eq!(range(&db).len(), 4);
    clock.advance(10 * MS);
    let (early, mut iterator) = (db.snapshot(), db.get_range::<&[u8]>(..));
    for (reader, there) in [(db.get("batch").unwrap(), None), (db.get("k").unwrap(), Some("new"))] {
        assert_eq!(reader.as_deref(), there.map(str::as_bytes));
    }
    clock.advance(35 * MS);
    // At 50 ms sharp the one is gone; the other was rounded up by a millisecond.
    assert_eq!(db.get("k").unwrap(), None, "what was there before does not come back");
    assert_eq!(db.get("short").unwrap().unwrap(), "1");
    clock.advance(MS);
    assert_eq!(db.get("short").unwrap(), None);
    assert_eq!(range(&db), [(b"stays".to_vec(), b"3".to_vec())]);
    // Those who began before go on seeing it, whatever is flushed and compacted.
    db.flush().unwrap();
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(iterator.next().unwrap().unwrap().1, "new");
    assert_eq!(early.get("k").unwrap().unwrap(), "new");
    assert_eq!(early.get_range::<&[u8]>(..).count(), 3);
    drop((early, iterator));
    db.compact_range::<&[u8]>(..).unwrap();
    let left: u64 = db.stats().keyspaces[0].levels.iter().map(|level| level.entries).sum();
    assert_eq!(left, 1, "what nobody sees any more is not kept");
    assert_eq!(range(&db), [(b"stays".to_vec(), b"3".to_vec())]);
}

#[test]
fn a_keyspace_may_have_a_usual_time_to_live() {
    let (env, clock) = with_clock();
    let open = |builder: Builder| builder.open().unwrap();
    let hour = Duration::from_secs(3600);
    let sessions = KeyspaceOptions::new().default_ttl(hour);
    {
        let db = open(manual(&env).default_ttl(50 * MS));
        let keyspace = db.keyspace_with("sessions", &sessions).unwrap();
        keyspace.put("a", "1").unwrap();
        db.put("k", "1").unwrap();
        let mut batch = WriteBatch::new();
        batch.put("l", "2").put_with_ttl("m", "3", hour).put_in(&keyspace, "b", "4").delete("x");
        db.write(batch).unwrap();
        assert_eq!(range(&db).len(), 3);
    }
    // It is the keyspace's, not the handle's.
    let db = open(manual(&env));
    db.put("n", "5").unwrap();
    clock.advance(50 * MS);
    assert_eq!(range(&db), [(b"m".to_vec(), b"3".to_vec())]);
    let keyspace = db.keyspace("sessions").unwrap();
    assert_eq!(keyspace.get_range::<&[u8]>(..).count(), 2);
    let forever = KeyspaceOptions::new().default_ttl(None);
    db.keyspace_with("sessions", &forever).unwrap();
    keyspace.put("c", "6").unwrap();
    clock.advance(hour);
    assert_eq!(keyspace.get_range::<&[u8]>(..).count(), 1);
    assert_eq!(range(&db).len(), 0);
}

#[test]
fn operands_expire_one_by_one() {
    let (env, clock) = with_clock();
    let db = manual(&env).merge_operator(AddI64).open().unwrap();
    let one = 1_i64.to_le_bytes();
    let sum = || db.get("k").unwrap().map(|v| i64::from_le_bytes(v[..].try_into().unwrap()));
    for n in 0..10 {
        db.merge_with_ttl("k", one, 100 * MS).unwrap();
        clock.advance(10 * MS);
        match n % 3 {
            0 => {}
            1 => db.flush().unwrap(),
            _ => db.compact_range::<&[u8]>(..).unwrap(),
        }
    }
    assert_eq!(sum(), Some(9));
    clock.advance(30 * MS);
    assert_eq!(sum(), Some(6));
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(sum(), Some(6));
    db.merge("k", one).unwrap();
    clock.advance(1000 * MS);
    assert_eq!(sum(), Some(1));
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(sum(), Some(1));
}

#[test]
fn a_time_to_live_that_cannot_be_is_refused() {
    let (env, clock) = with_clock();
    let db = manual(&env).merge_operator(Append).open().unwrap();
    clock.advance(MS);
    let past_the_end = Duration::from_millis(u64::MAX);
    for ttl in [Duration::ZERO, past_the_end, Duration::MAX] {
        let refused = db.put_with_ttl("k", "v", ttl).unwrap_err();
        assert!(matches!(&refused, Error::InvalidTtl { .. }), "{refused}");
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        assert!(matches!(db.merge_with_ttl("k", "v", ttl), Err(Error::InvalidTtl { .. })));
        let mut batch = WriteBatch::new();
        batch.put("p", "q").put_with_ttl("k", "v", ttl);
        assert!(matches!(db.write(batch), Err(Error::InvalidTtl { .. })));
    }
    assert_eq!(range(&db).len(), 0);
    for ttl in [Duration::ZERO, Duration::MAX] {
        let options = KeyspaceOptions::new().default_ttl(ttl);
        assert!(matches!(db.keyspace_with("new", &options), Err(Error::InvalidTtl { .. })));
    }
    assert_eq!(db.keyspaces(), ["default"]);
}

#[test]
fn a_clock_that_runs_backwards_loses_nothing() {
    let vfs = Arc::new(MemVfs::default());
    let at = |ms: u32| {
        let clock = ManualClock::default();
        clock.advance(ms * MS);
        Env { vfs: Arc::clone(&vfs) as _, clock: Arc::new(clock), ..Env::in_memory(1) }
    };
    let db = manual(&at(10_000)).open().unwrap();
    db.put_with_ttl("k", "1", 100 * MS).unwrap();
    db.put("l", "2").unwrap();
    drop(db);
    let db = manual(&at(500)).open().unwrap();
    assert_eq!(db.get("k").unwrap().unwrap(), "1");
    db.put_with_ttl("k", "3", 100 * MS).unwrap();
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(db.get("k").unwrap().unwrap(), "3");
    drop(db);
    // The newer one has expired; the older one, which has not, stays hidden all the same.
    let db = manual(&at(700)).open().unwrap();
    assert_eq!(range(&db), [(b"l".to_vec(), b"2".to_vec())]);
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(range(&db), [(b"l".to_vec(), b"2".to_vec())]);
}

#[test]
fn a_segment_alone_says_what_it_cannot() {
    assert_eq!(Kind::from_u8(3), Some(Kind::Merge));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let db = Db::builder(&path).merge_operator(Append).open().unwrap();
    db.put("a", "1").unwrap();
    db.put_with_ttl("b", "2", Duration::from_secs(1)).unwrap();
    db.flush().unwrap();
    let snapshot = db.snapshot();
    db.merge("a", "3").unwrap();
    db.flush().unwrap();
    drop(snapshot);
    drop(db);
    let mut readers: Vec<_> = std::fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "seg"))
        .map(|path| crate::SegmentReader::open(path).unwrap())
        .collect();
    readers.sort_by_key(|reader| reader.properties().merge_operands);
    assert_eq!(readers[0].get(b"b").unwrap().unwrap(), "2");
    assert_eq!(readers[0].get_range::<&[u8]>(..).count(), 2);
    assert!(matches!(readers[1].get(b"a"), Err(Error::MergeOperator { .. })));
    assert!(readers[1].get_range::<&[u8]>(..).any(|item| item.is_err()));
    assert!(readers.iter().all(|reader| reader.verify().unwrap().is_sound()));
}
