//! Merges and times to live: what is of one moment stays that, whatever the clock, the operator or a job
//! does meanwhile. The rest is in `merge_tests`.

use crate::merge::{Append, MergeError, MergeFn, MergeOperator, SetUnion};
use crate::vfs::{Clock, Env};
use crate::{Background, Builder, Db, Error, KeyspaceOptions, WriteBatch};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn manual(env: &Env) -> Builder {
    Db::builder("/db").env(env.clone()).background(Background::Manual)
}

const MS: Duration = Duration::from_millis(1);

/// What the operator does once, at its next call.
type Hook = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// Appends.
fn hooked(hook: &Hook) -> impl MergeOperator + use<> {
    let hook = Arc::clone(hook);
    MergeFn::associative("hooked", move |_, value: Option<&[u8]>, operands: &[&[u8]]| {
        let todo = hook.lock().unwrap().take();
        if let Some(todo) = todo {
            todo();
        }
        Some([value.unwrap_or_default(), &operands.concat()].concat())
    })
}

#[test]
fn a_multi_get_merges_as_of_one_moment() {
    for is_flushed in [false, true] {
        let (env, hook) = (Env::in_memory(1), Hook::default());
        let db = manual(&env).merge_operator(hooked(&hook)).open().unwrap();
        let both = |n: u8| {
            let mut batch = WriteBatch::new();
            batch.merge("a", [n]).merge("b", [n]);
            batch
        };
        db.put("b", [0]).unwrap();
        db.write(both(1)).unwrap();
        if is_flushed {
            db.flush().unwrap();
            db.write(both(2)).unwrap();
        }
        let (writing, batch) = (db.clone(), both(3));
        *hook.lock().unwrap() = Some(Box::new(move || writing.write(batch).unwrap()));
        let got = db.multi_get(&["a", "b"]).unwrap();
        let values: Vec<&[u8]> = got.iter().map(|value| &**value.as_ref().unwrap()).collect();
        let expected: [&[u8]; 2] = if is_flushed { [&[1, 2], &[0, 1, 2]] } else { [&[1], &[0, 1]] };
        assert_eq!(values, expected, "both, or neither, of a batch that came between");
        assert_eq!(db.get("b").unwrap().unwrap().last(), Some(&3));
    }
}

/// A clock that is set, also back.
#[derive(Debug, Default)]
struct SetClock(AtomicU64);

impl Clock for SetClock {
    fn unix_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep(&self, _: Duration) {}
}

#[test]
fn a_clock_that_steps_back_beside_a_job_changes_no_snapshot() {
    let (clock, hook) = (Arc::new(SetClock::default()), Hook::default());
    let env = Env { clock: Arc::clone(&clock) as _, ..Env::in_memory(1) };
    let db = manual(&env).merge_operator(hooked(&hook)).open().unwrap();
    clock.0.store(1000, Ordering::Relaxed);
    db.put_with_ttl("t", "1", 100 * MS).unwrap();
    db.put("m", "2").unwrap();
    db.flush().unwrap();
    db.merge("m", "3").unwrap();
    db.flush().unwrap();
    clock.0.store(1200, Ordering::Relaxed);
    let early = Arc::new(Mutex::new(None));
    let (snapshot, reading, set) = (Arc::clone(&early), db.clone(), Arc::clone(&clock));
    // The job has looked at the clock and is in the middle of its work.
    *hook.lock().unwrap() = Some(Box::new(move || {
        set.0.store(1050, Ordering::Relaxed);
        let made = reading.snapshot();
        let seen = (made.get("t").unwrap(), made.get_range::<&[u8]>(..).count());
        *snapshot.lock().unwrap() = Some((made, seen, reading.get("t").unwrap()));
    }));
    db.compact_range::<&[u8]>(..).unwrap();
    let (snapshot, seen, outside) = early.lock().unwrap().take().unwrap();
    assert_eq!((snapshot.get("t").unwrap(), snapshot.get_range::<&[u8]>(..).count()), seen);
    assert_eq!(db.get("t").unwrap(), outside);
    // Nor is what is written now gone as soon as it is there.
    db.put_with_ttl("u", "4", 100 * MS).unwrap();
    assert_eq!(db.get("u").unwrap().unwrap(), "4");
    clock.0.store(1299, Ordering::Relaxed);
    assert_eq!(db.get("u").unwrap().unwrap(), "4");
    clock.0.store(1300, Ordering::Relaxed);
    assert_eq!(db.get("u").unwrap(), None);
}

/// Fails for some keys, and remembers for which.
#[derive(Clone, Default)]
struct Failing(Arc<Mutex<BTreeSet<Vec<u8>>>>);

impl MergeOperator for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn merge(
        &self,
        key: &[u8],
        existing: Option<&[u8]>,
        operands: &[&[u8]],
    ) -> Result<Option<Vec<u8>>, MergeError> {
        if key.first() == Some(&b'x') {
            self.0.lock().unwrap().insert(key.to_vec());
            return Err(MergeError::new("no"));
        }
        Append.merge(key, existing, operands)
    }

    fn combine(&self, key: &[u8], operands: &[&[u8]]) -> Result<Option<Vec<u8>>, MergeError> {
        self.merge(key, None, operands)
    }
}

#[test]
fn what_an_operator_fails_on_keeps_no_work_from_being_done() {
    let (env, operator) = (Env::in_memory(1), Failing::default());
    let db = manual(&env)
        .merge_operator(operator.clone())
        .level0_runs(1)
        .segment_bytes(64 << 10)
        .compression(crate::Compression::None)
        .open()
        .unwrap();
    for n in 0..100 {
        db.put(format!("x{n:02}"), [7; 3000]).unwrap();
    }
    db.flush().unwrap();
    db.compact_range::<&[u8]>(..).unwrap();
    let before = db.stats().compactions;
    for _ in 0..4 {
        db.merge("x01", "1").unwrap();
        db.merge("x99", "2").unwrap();
        db.flush().unwrap();
    }
    // The job was done: that is no failure of the step.
    while db.step().unwrap() {}
    db.wait_idle().unwrap();
    let stats = db.stats();
    assert!(stats.compactions > before);
    assert!(matches!(stats.background_error, Some(Error::MergeFailed { .. })));
    let compact = || {
        let outcome = db.compact_range::<&[u8]>(..);
        assert!(matches!(outcome, Err(Error::MergeFailed { .. })), "{outcome:?}");
    };
    compact();
    // Both segments that have operands are looked at, though the first one's fail.
    operator.0.lock().unwrap().clear();
    compact();
    assert_eq!(*operator.0.lock().unwrap(), [b"x01".to_vec(), b"x99".to_vec()].into());
    assert_eq!(db.get("x50").unwrap().unwrap(), [7; 3000]);
    assert!(db.get("x99").is_err());
    // A job without them clears the error.
    db.delete_range("x01".."x02").unwrap();
    db.put("x99", "3").unwrap();
    db.compact_range::<&[u8]>(..).unwrap();
    assert!(db.stats().background_error.is_none());
}

#[test]
fn who_lacks_the_operator_changes_nothing() {
    let clock = Arc::new(SetClock::default());
    let env = Env { clock: Arc::clone(&clock) as _, ..Env::in_memory(1) };
    let union = KeyspaceOptions::new().merge_operator(SetUnion);
    let shortly = KeyspaceOptions::new().default_ttl(10 * MS);
    let db = manual(&env).open().unwrap();
    db.keyspace_with("sets", &union).unwrap();
    drop(db);
    let db = manual(&env).open().unwrap();
    let refused = db.keyspace_with("sets", &shortly).unwrap_err();
    assert!(matches!(refused, Error::MergeOperator { .. }), "{refused}");
    drop(db);
    // Neither now nor in what the manifest says.
    for _ in 0..2 {
        let db = manual(&env).open().unwrap();
        let sets = db.keyspace_with("sets", &union).unwrap();
        sets.put("k", "v").unwrap();
        clock.0.fetch_add(20, Ordering::Relaxed);
        assert_eq!(sets.get("k").unwrap().unwrap(), "v");
    }
    // With the operator at hand, also given before, it is changed.
    let db = manual(&env).open().unwrap();
    db.keyspace_with("sets", &union).unwrap();
    let sets = db.keyspace_with("sets", &shortly).unwrap();
    sets.merge("k", SetUnion::encode(["a"])).unwrap();
    sets.put("l", "v").unwrap();
    clock.0.fetch_add(20, Ordering::Relaxed);
    assert_eq!(sets.get("l").unwrap(), None);
}

#[test]
fn many_operands_are_read_in_one_pass() {
    let env = Env::in_memory(1);
    let operator = MergeFn::new("count", |_, value: Option<&[u8]>, operands: &[&[u8]]| {
        Some([value.unwrap_or_default(), &[operands.len() as u8; 1]].concat())
    });
    let db =
        manual(&env).merge_operator(operator).compression(crate::Compression::None).open().unwrap();
    db.put("k", "base").unwrap();
    db.flush().unwrap();
    const MANY: u64 = 1000;
    let mut snapshot = None;
    for n in 0..MANY {
        db.merge("k", [n as u8; 100]).unwrap();
        if n == MANY / 2 {
            snapshot = Some(db.snapshot());
        }
    }
    db.flush().unwrap();
    let looks = || {
        let stats = db.stats();
        stats.cache_hits + stats.cache_misses
    };
    let blocks = MANY * 130 / 4096;
    for round in 0..2 {
        let before = looks();
        assert_eq!(db.get("k").unwrap().unwrap()[..], *b"base\xe8");
        let after = looks();
        assert!(after - before < 3 * blocks, "{round}: {} looks at blocks", after - before);
    }
    assert_eq!(snapshot.unwrap().get("k").unwrap().unwrap()[..], *b"base\xf5");
}
