//! Transactions, one case at a time. Histories of many threads are in `tests/isolation.rs`, random
//! operations with everything else in `tests/model.rs`.

use crate::merge::{AddI64, Append, MergeFn};
use crate::vfs::{Entropy, Env, Failure, ManualClock, SeededEntropy, SimVfs};
use crate::{
    Background, Builder, Db, Durability, Error, ErrorKind, KeyspaceOptions, Result, Transaction,
    TransactionOptions, WriteBatch,
};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

fn builder(env: &Env) -> Builder {
    Db::builder("/db")
        .env(env.clone())
        .background(Background::Manual)
        .write_buffer_bytes(64 << 10)
        .merge_operator(Append)
}

fn open() -> Db {
    builder(&Env::in_memory(1)).open().unwrap()
}

/// A database with these keys, the value of each its own name.
fn with(keys: &[&str]) -> Db {
    let db = open();
    for key in keys {
        db.put(key, key).unwrap();
    }
    db
}

type Entries = Vec<(Vec<u8>, Vec<u8>)>;

fn entries(range: impl Iterator<Item = Result<(crate::Key, crate::Value)>>) -> Entries {
    range.map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()).collect()
}

fn keys(range: impl Iterator<Item = Result<(crate::Key, crate::Value)>>) -> Vec<String> {
    entries(range).into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect()
}

/// How many open transactions hold anything back, and how much is kept for them.
fn kept(db: &Db) -> (usize, usize) {
    (db.stats().snapshots, db.inner().writer.lock().written.chunks())
}

fn is_conflict(outcome: Result<()>) -> bool {
    match outcome {
        Ok(()) => false,
        Err(Error::Conflict) => true,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn own_writes_are_seen_by_oneself_and_by_others_after_the_commit() {
    let db = with(&["a", "b", "c", "d"]);
    let tx = db.begin();
    tx.put("b", "2").unwrap();
    tx.delete("c").unwrap();
    tx.merge("d", "+").unwrap();
    tx.merge("d", "-").unwrap();
    tx.merge("e", "new").unwrap();
    let mine = ["a", "b", "d", "e"];
    let got = |key: &str| tx.get(key).unwrap().map(|value| value.to_vec());
    assert_eq!(got("a").unwrap(), b"a");
    assert_eq!(got("b").unwrap(), b"2");
    assert_eq!(got("c"), None);
    assert_eq!(got("d").unwrap(), b"d+-");
    assert_eq!(got("e").unwrap(), b"new");
    assert_eq!(keys(tx.get_range::<&[u8]>(..)), mine);
    assert_eq!(keys(tx.get_range("b"..="d").rev()), ["d", "b"]);
    assert_eq!(keys(tx.prefix("d")), ["d"]);
    assert_eq!(keys(db.get_range::<&[u8]>(..)), ["a", "b", "c", "d"]);
    tx.delete_range("b".."e").unwrap();
    assert_eq!(keys(tx.get_range::<&[u8]>(..)), ["a", "e"]);
    assert_eq!(tx.get("d").unwrap(), None);
    tx.merge("d", "again").unwrap();
    tx.put("c", "3").unwrap();
    assert_eq!(tx.get("d").unwrap().unwrap(), "again", "what was deleted is not merged into");
    tx.commit().unwrap();
    let now = [("a", "a"), ("c", "3"), ("d", "again"), ("e", "new")];
    let now = now.map(|(key, value)| (key.into(), value.into()));
    assert_eq!(entries(db.get_range::<&[u8]>(..)), now);
    assert_eq!(kept(&db), (0, 0));
}

#[test]
fn a_transaction_reads_the_moment_of_its_begin() {
    let db = with(&["a", "b"]);
    let tx = db.begin();
    db.put("a", "later").unwrap();
    db.delete("b").unwrap();
    db.put("c", "c").unwrap();
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(tx.get("a").unwrap().unwrap(), "a");
    assert_eq!(keys(tx.get_range::<&[u8]>(..)), ["a", "b"]);
    assert_eq!(tx.get("c").unwrap(), None);
    let began = tx.seqno();
    // It only read, so it happened when it began.
    tx.commit().unwrap();
    assert!(db.begin().seqno() > began);
}

/// What a transaction shows must be what the same operations give when they are done for good.
#[test]
fn random_transactions_show_what_their_commit_gives() {
    const KEYS: u64 = 24;
    let prepend = MergeFn::new("prepend", |_, value, operands| {
        operands.iter().fold(value.map(<[u8]>::to_vec), |value, operand| {
            (operand[0] % 5 != 0).then(|| [operand, &value.unwrap_or_default()[..]].concat())
        })
    });
    for seed in 0..1000 {
        let rng = SeededEntropy::new(seed);
        let below = |n: u64| rng.next_u64() % n;
        let key = || vec![b'k'; below(KEYS) as usize];
        let open = || {
            let builder = Db::builder("/db").env(Env::in_memory(1)).background(Background::Manual);
            builder.merge_operator(prepend).open().unwrap()
        };
        let (here, there) = (open(), open());
        for _ in 0..below(40) {
            let (key, value) = (key(), [below(256) as u8]);
            let is_put = below(2) == 0;
            for db in [&here, &there] {
                if is_put { db.put(&key, value).unwrap() } else { db.merge(&key, value).unwrap() }
            }
        }
        let bounds = || {
            let one = || match below(3) {
                0 => Bound::Included(key()),
                1 => Bound::Excluded(key()),
                _ => Bound::Unbounded,
            };
            (one(), one())
        };
        let tx = here.begin();
        // From before some writes, walked after them.
        let mut earlier = Vec::new();
        for _ in 0..below(60) {
            let (key, value) = (key(), [below(256) as u8]);
            match below(9) {
                0 | 1 => {
                    tx.put(&key, value).unwrap();
                    there.put(&key, value).unwrap();
                }
                2 => {
                    tx.delete(&key).unwrap();
                    there.delete(&key).unwrap();
                }
                3 | 4 => {
                    tx.merge(&key, value).unwrap();
                    there.merge(&key, value).unwrap();
                }
                5 => {
                    let bounds = bounds();
                    tx.delete_range(bounds.clone()).unwrap();
                    there.delete_range(bounds).unwrap();
                }
                6 => assert_eq!(tx.get(&key).unwrap(), there.get(&key).unwrap()),
                7 => {
                    let bounds = bounds();
                    earlier.push((tx.get_range(bounds.clone()), there.get_range(bounds)));
                }
                _ => {
                    let bounds = bounds();
                    let (mut mine, mut theirs) =
                        (tx.get_range(bounds.clone()), there.get_range(bounds));
                    let stop = below(30);
                    let way = below(3);
                    for _ in 0..stop {
                        let forward = way == 0 || way == 2 && below(2) == 0;
                        let (mine, theirs) = if forward {
                            (mine.next(), theirs.next())
                        } else {
                            (mine.next_back(), theirs.next_back())
                        };
                        assert_eq!(
                            mine.transpose().unwrap(),
                            theirs.transpose().unwrap(),
                            "{seed}"
                        );
                    }
                }
            }
        }
        for (mine, theirs) in earlier {
            assert_eq!(entries(mine), entries(theirs), "{seed}");
        }
        let own = entries(tx.get_range::<&[u8]>(..));
        assert_eq!(own, entries(there.get_range::<&[u8]>(..)), "{seed}");
        assert_eq!(own.len(), entries(tx.get_range::<&[u8]>(..).rev()).len());
        tx.commit().unwrap();
        assert_eq!(own, entries(here.get_range::<&[u8]>(..)), "{seed}");
    }
}

/// Whether a transaction that does `work` and writes something conflicts with `other`, which comes
/// between.
fn conflicts(work: impl Fn(&Transaction), other: impl Fn(&Db)) -> bool {
    let db = with(&["b", "d", "f", "h"]);
    let tx = db.begin();
    work(&tx);
    tx.put("written", "x").unwrap();
    other(&db);
    let conflicts = is_conflict(tx.commit());
    assert_eq!(db.get("written").unwrap().is_none(), conflicts);
    assert_eq!(kept(&db), (0, 0));
    conflicts
}

#[test]
fn what_was_read_and_then_written_is_a_conflict() {
    type Other = fn(&Db);
    let others: [(Other, bool); 13] = [
        (|db| db.put("d", "x").unwrap(), true),
        (|db| db.put("d", "d").unwrap(), true),
        (|db| db.put_with_ttl("d", "x", Duration::from_secs(1)).unwrap(), true),
        (|db| db.delete("d").unwrap(), true),
        (|db| db.merge("d", "x").unwrap(), true),
        (|db| db.delete_range("c".."e").unwrap(), true),
        (|db| db.delete_range::<&str>(..).unwrap(), true),
        (|db| db.delete_range("d"..="d").unwrap(), true),
        (|db| db.clear().unwrap(), true),
        (|db| db.transact(|tx| tx.put("d", "x")).unwrap(), true),
        (
            |db| {
                let mut batch = WriteBatch::new();
                batch.put("a", "x").put("d", "x").put("z", "x");
                db.write(batch).unwrap();
            },
            true,
        ),
        (|db| db.delete_range("a".."d").unwrap(), false),
        (|db| db.put("d ", "x").unwrap(), false),
    ];
    for (n, (other, expected)) in others.into_iter().enumerate() {
        assert_eq!(conflicts(|tx| drop(tx.get("d").unwrap()), other), expected, "{n}");
        let walk = |tx: &Transaction| assert_eq!(keys(tx.get_range("d"..="d")), ["d"]);
        assert_eq!(conflicts(walk, other), expected, "{n}: a range");
    }
    // A key that is not there is read no less.
    assert!(conflicts(|tx| assert!(tx.get("e").unwrap().is_none()), |db| db.put("e", "").unwrap()));
}

#[test]
fn what_was_only_written_is_none() {
    let blind = |tx: &Transaction| {
        tx.put("b", "1").unwrap();
        tx.delete("d").unwrap();
        tx.merge("f", "1").unwrap();
        tx.delete_range("g".."i").unwrap();
        // Its own value says what it reads, whatever others do.
        assert_eq!(tx.get("b").unwrap().unwrap(), "1");
        assert_eq!(tx.get("d").unwrap(), None);
        assert_eq!(tx.get("h").unwrap(), None);
        // Never walked.
        assert!(format!("{:?}", tx.get_range("a".."z")).contains("Transaction"));
    };
    let all = |db: &Db| ["b", "d", "f", "h"].iter().for_each(|key| db.put(key, "x").unwrap());
    assert!(!conflicts(blind, all));
    let merged = |tx: &Transaction| {
        blind(tx);
        assert_eq!(tx.get("f").unwrap().unwrap(), "f1");
    };
    assert!(conflicts(merged, |db| db.put("f", "x").unwrap()), "it had to look below");
    assert!(!conflicts(merged, |db| db.put("b", "x").unwrap()));
}

#[test]
fn a_range_counts_as_far_as_it_was_walked() {
    type Walk = fn(&Transaction);
    let put = |key: &'static str| move |db: &Db| db.put(key, "x").unwrap();
    let walks: [(Walk, &[&str], &[&str]); 9] = [
        // To its end, and what is missing counts too.
        (|tx| assert_eq!(tx.get_range("c".."g").count(), 2), &["c", "e", "f", "f~"], &["b~", "g"]),
        (|tx| assert_eq!(tx.get_range("c".."g").rev().count(), 2), &["c", "f~"], &["b~", "g"]),
        // Up to the entry that was given last.
        (|tx| drop(tx.get_range("c"..).next()), &["c", "c~", "d"], &["d~", "e", "b"]),
        (|tx| drop(tx.get_range(.."g").next_back()), &["f", "f~"], &["e~", "a", "g"]),
        (|tx| drop(tx.get_range("a".."z").nth(1)), &["a", "c", "d"], &["d~", "h"]),
        (
            |tx| {
                let mut range = tx.get_range("a".."z");
                assert_eq!(keys(range.by_ref().take(1)), ["b"]);
                assert_eq!(keys(range.by_ref().rev().take(1)), ["h"]);
            },
            &["a", "b", "h", "y"],
            &["b~", "d", "e", "g"],
        ),
        // Its own writes are walked like others.
        (
            |tx| {
                tx.put("c", "mine").unwrap();
                assert_eq!(keys(tx.get_range("b~"..).take(1)), ["c"]);
            },
            &["b~~", "c"],
            &["c~", "d"],
        ),
        // Nothing was looked at.
        (|tx| drop(tx.get_range::<&str>(..)), &[], &["a", "b", "z"]),
        (|tx| assert_eq!(tx.get_range("f".."c").count(), 0), &[], &["c", "d", "f"]),
    ];
    for (n, (walk, read, not_read)) in walks.into_iter().enumerate() {
        for (keys, expected) in [(read, true), (not_read, false)] {
            for key in keys {
                assert_eq!(conflicts(walk, put(key)), expected, "walk {n}, a put of {key}");
                let delete = |db: &Db| db.delete_range(*key..=*key).unwrap();
                assert_eq!(conflicts(walk, delete), expected, "walk {n}, a range delete of {key}");
            }
        }
    }
}

#[test]
fn an_iterator_that_is_never_dropped_counts_as_a_whole() {
    let forget = |tx: &Transaction| {
        let mut range = tx.get_range("a".."e");
        assert_eq!(keys(range.by_ref().take(1)), ["b"]);
        std::mem::forget(range);
    };
    assert!(conflicts(forget, |db| db.put("d", "x").unwrap()));
    assert!(!conflicts(forget, |db| db.put("e", "x").unwrap()));
}

#[test]
fn write_skew_is_prevented() {
    let db = with(&["doctor 1", "doctor 2"]);
    let (one, two) = (db.begin(), db.begin());
    for (tx, own) in [(&one, "doctor 1"), (&two, "doctor 2")] {
        assert_eq!(tx.prefix("doctor").count(), 2);
        tx.delete(own).unwrap();
    }
    assert!(!is_conflict(one.commit()));
    assert!(is_conflict(two.commit()));
    assert_eq!(db.prefix("doctor").count(), 1);
}

#[test]
fn one_may_write_while_one_iterates() {
    let db = open();
    for n in 0..100_u8 {
        db.put([n], "").unwrap();
    }
    let tx = db.begin();
    for (n, entry) in tx.get_range::<&[u8]>(..).enumerate() {
        let (key, _) = entry.unwrap();
        assert_eq!(key, [n as u8]);
        tx.delete(&key).unwrap();
        // Ahead of the iterator, which does not see it.
        tx.put([key[0], 1], "").unwrap();
        tx.put([key[0] + 100], "").unwrap();
    }
    assert_eq!(tx.get_range::<&[u8]>(..).count(), 200);
    tx.commit().unwrap();
    assert_eq!(db.get_range::<&[u8]>(..).count(), 200);
}

#[test]
fn long_deleted_ranges_are_passed_from_either_end() {
    let db = open();
    for n in 0..200_u8 {
        db.put([n], "").unwrap();
    }
    let tx = db.begin();
    tx.delete_range([10]..[90]).unwrap();
    tx.delete_range([90]..[100]).unwrap();
    tx.delete_range([150]..).unwrap();
    tx.put([50], "").unwrap();
    let left: Vec<u8> = (0..10).chain([50]).chain(100..150).collect();
    let numbers = |entries: Entries| entries.iter().map(|(key, _)| key[0]).collect::<Vec<_>>();
    assert_eq!(numbers(entries(tx.get_range::<&[u8]>(..))), left);
    let mut back = numbers(entries(tx.get_range::<&[u8]>(..).rev()));
    back.reverse();
    assert_eq!(back, left);
    let mut both = tx.get_range::<&[u8]>(..);
    let mut met = Vec::new();
    while let Some(entry) = both.next() {
        met.push(entry.unwrap().0[0]);
        met.extend(both.next_back().map(|entry| entry.unwrap().0[0]));
    }
    met.sort_unstable();
    assert_eq!(met, left);
    drop(both);
    tx.commit().unwrap();
    assert_eq!(numbers(entries(db.get_range::<&[u8]>(..))), left);
}

#[test]
fn what_is_dropped_or_rolled_back_never_was() {
    let db = with(&["a"]);
    for is_dropped in [true, false] {
        let tx = db.begin();
        tx.put("a", "x").unwrap();
        tx.put("b", "x").unwrap();
        db.put("c", "kept for it").unwrap();
        assert_eq!(kept(&db), (1, 1));
        if is_dropped {
            drop(tx)
        } else {
            tx.rollback()
        }
        assert_eq!(kept(&db), (0, 0));
        assert_eq!(keys(db.get_range::<&[u8]>(..)), ["a", "c"]);
        assert_eq!(db.get("a").unwrap().unwrap(), "a");
    }
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        db.transact(|tx| -> Result<()> {
            tx.put("b", "x")?;
            std::panic::resume_unwind(Box::new("in the middle"))
        })
    }));
    assert!(panicked.is_err() && db.get("b").unwrap().is_none());
    assert_eq!(kept(&db), (0, 0));
}

#[test]
fn nothing_is_kept_when_no_transaction_is_open() {
    let db = open();
    let (one, two) = (db.begin(), db.begin());
    db.put("a", "1").unwrap();
    let three = db.begin();
    db.put("a", "2").unwrap();
    assert_eq!(kept(&db), (3, 2));
    drop(one);
    assert_eq!(kept(&db), (2, 2), "the second began at the same moment");
    drop(two);
    assert_eq!(kept(&db), (1, 1));
    three.commit().unwrap();
    db.put("a", "3").unwrap();
    assert_eq!(kept(&db), (0, 0));
}

#[test]
fn transact_tries_again_and_gives_up_as_told() {
    let db = with(&["n"]);
    let count = AtomicU32::new(0);
    let disturbed = |tries: u32| {
        count.store(0, Ordering::Relaxed);
        let db = &db;
        let count = &count;
        move |tx: &Transaction| {
            let value = tx.get("n")?.unwrap();
            if count.fetch_add(1, Ordering::Relaxed) + 1 < tries {
                db.put("n", "somebody else")?;
            }
            tx.put("n", "mine")?;
            Ok(value.to_vec())
        }
    };
    assert_eq!(db.transact(disturbed(5)).unwrap(), b"somebody else");
    assert_eq!(count.load(Ordering::Relaxed), 5);
    assert_eq!(db.get("n").unwrap().unwrap(), "mine");
    let outcome = db.transact(disturbed(u32::MAX));
    assert!(matches!(outcome, Err(Error::Conflict)));
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(count.load(Ordering::Relaxed), 100);
    let three = TransactionOptions::new().tries(3);
    assert!(matches!(db.transact_with(&three, disturbed(4)), Err(Error::Conflict)));
    assert_eq!(count.load(Ordering::Relaxed), 3);
    assert!(db.transact_with(&three, disturbed(3)).is_ok());
    let for_ever = TransactionOptions::new().tries(None).exclusive(true);
    assert!(db.transact_with(&for_ever, disturbed(500)).is_ok());
    let never = db.transact_with(&TransactionOptions::new().tries(0), |_| Ok(()));
    assert!(matches!(never, Err(Error::InvalidOption { option: "tries", .. })));
    // Other errors end it at once.
    let mut calls = 0;
    let failed = db.transact(|tx| {
        calls += 1;
        tx.put("n", "never")?;
        tx.put(vec![0; 1 << 16], "")
    });
    assert!(matches!(failed, Err(Error::KeyTooLong { .. })) && calls == 1);
    assert_eq!(db.get("n").unwrap().unwrap(), "mine");
    assert_eq!(kept(&db), (0, 0));
}

#[test]
fn keyspaces_are_one_and_do_not_disturb_each_other() {
    let db = open();
    let stock = db.keyspace_with("stock", &KeyspaceOptions::new().merge_operator(AddI64)).unwrap();
    stock.put("apple", 5_i64.to_le_bytes()).unwrap();
    let order = || {
        let tx = db.begin();
        let left = i64::from_le_bytes(
            tx.get_in(&stock, "apple").unwrap().unwrap()[..].try_into().unwrap(),
        );
        tx.merge_in(&stock, "apple", (-left).to_le_bytes()).unwrap();
        tx.put("order", left.to_string()).unwrap();
        assert_eq!(tx.get_in(&stock, "apple").unwrap().unwrap(), [0; 8]);
        assert_eq!(tx.get_range_in::<&[u8]>(&stock, ..).unwrap().count(), 1);
        assert_eq!(keys(tx.prefix_in(&stock, "a").unwrap()), ["apple"]);
        tx
    };
    let tx = order();
    // The same key elsewhere.
    db.put("apple", "x").unwrap();
    tx.commit().unwrap();
    assert_eq!(stock.get("apple").unwrap().unwrap(), [0; 8]);
    assert_eq!(db.get("order").unwrap().unwrap(), "5");
    let tx = order();
    stock.put_with_ttl("apple", [0; 8], Duration::from_secs(9)).unwrap();
    assert!(is_conflict(tx.commit()));
    let tx = order();
    stock.clear().unwrap();
    assert!(is_conflict(tx.commit()));
    // Blind writes to what was cleared are not touched by that.
    let tx = db.begin();
    tx.put_in(&stock, "pear", [1; 8]).unwrap();
    tx.delete_in(&stock, "plum").unwrap();
    tx.delete_range_in(&stock, "q"..).unwrap();
    stock.clear().unwrap();
    tx.commit().unwrap();
    assert_eq!(keys(stock.get_range::<&[u8]>(..)), ["pear"]);
    let elsewhere = open().keyspace("stock").unwrap();
    let tx = db.begin();
    assert!(matches!(tx.put_in(&elsewhere, "a", ""), Err(Error::WrongDatabase)));
    assert!(matches!(tx.get_in(&elsewhere, "a"), Err(Error::WrongDatabase)));
    assert!(matches!(tx.get_range_in::<&str>(&elsewhere, ..), Err(Error::WrongDatabase)));
}

#[test]
fn a_keyspace_that_is_dropped_meanwhile_is_a_typed_error() {
    let dropped = |outcome| matches!(outcome, Err(Error::KeyspaceDropped { name }) if name == "k");
    for reads in [true, false] {
        let db = open();
        let k = db.keyspace("k").unwrap();
        k.put("a", "a").unwrap();
        let tx = db.begin();
        let mut walk = None;
        if reads {
            assert!(tx.get_in(&k, "a").unwrap().is_some());
            walk = Some(tx.get_range_in::<&str>(&k, ..).unwrap());
        } else {
            tx.put_in(&k, "b", "b").unwrap();
        }
        tx.put("in default", "x").unwrap();
        db.drop_keyspace("k").unwrap();
        let again = db.keyspace("k").unwrap();
        assert!(dropped(tx.put_in(&k, "c", "").map(drop)));
        assert!(dropped(tx.delete_range_in(&k, "x".."a").map(drop)));
        assert!(dropped(tx.get_in(&k, "a").map(drop)));
        // An iterator keeps what it reads.
        assert_eq!(walk.into_iter().flatten().count(), usize::from(reads));
        assert_eq!(tx.get_in(&again, "a").unwrap(), None, "made after the transaction began");
        assert!(dropped(tx.commit()), "{reads}");
        assert_eq!(db.get("in default").unwrap(), None);
        assert_eq!(kept(&db), (0, 0));
    }
}

#[test]
fn merges_are_checked_at_once_and_lose_nothing() {
    let db = builder(&Env::in_memory(1)).open().unwrap();
    let numbers = db.keyspace_with("n", &KeyspaceOptions::new().merge_operator(AddI64)).unwrap();
    let plain = db.keyspace("plain").unwrap();
    let tx = db.begin();
    assert!(matches!(tx.merge_in(&numbers, "n", "no number"), Err(Error::MergeFailed { .. })));
    assert!(matches!(tx.merge_in(&plain, "n", "x"), Err(Error::MergeOperator { .. })));
    let one = 1_i64.to_le_bytes();
    tx.merge_in(&numbers, "n", one).unwrap();
    tx.merge_in(&numbers, "n", one).unwrap();
    numbers.merge("n", one).unwrap();
    assert_eq!(tx.get_in(&numbers, "n").unwrap().unwrap(), 2_i64.to_le_bytes());
    assert!(is_conflict(tx.commit()), "it has read the sum");
    let tx = db.begin();
    tx.merge_in(&numbers, "n", one).unwrap();
    numbers.merge("n", one).unwrap();
    tx.commit().unwrap();
    assert_eq!(numbers.get("n").unwrap().unwrap(), 3_i64.to_le_bytes());
    // What cannot be merged is an error, for the range to its end.
    numbers.put("bad", "seven bytes").unwrap();
    let tx = db.begin();
    tx.merge_in(&numbers, "bad", one).unwrap();
    assert!(matches!(tx.get_in(&numbers, "bad"), Err(Error::MergeFailed { .. })));
    let mut range = tx.get_range_in::<&str>(&numbers, ..).unwrap();
    assert!(matches!(range.next(), Some(Err(Error::MergeFailed { .. }))));
    assert!(range.next().is_none() && range.next_back().is_none());
    drop(range);
    numbers.put("zzz", one).unwrap();
    assert!(is_conflict(tx.commit()));
}

#[test]
fn time_stands_still_for_a_transaction_and_runs_for_what_it_wrote_from_its_commit() {
    let clock = Arc::new(ManualClock::default());
    let env = Env { clock: Arc::clone(&clock) as _, ..Env::in_memory(1) };
    let db = builder(&env).open().unwrap();
    let usual =
        KeyspaceOptions::new().default_ttl(Duration::from_millis(20)).merge_operator(Append);
    let usual = db.keyspace_with("usual", &usual).unwrap();
    let ms = Duration::from_millis;
    db.put_with_ttl("old", "x", ms(10)).unwrap();
    db.put_with_ttl("merged", "1", ms(10)).unwrap();
    let tx = db.begin();
    tx.put_with_ttl("new", "y", ms(10)).unwrap();
    tx.merge_with_ttl("merged", "2", ms(10)).unwrap();
    tx.put_in(&usual, "u", "1").unwrap();
    tx.merge_in(&usual, "u", "2").unwrap();
    tx.put_in_with_ttl(&usual, "long", "1", ms(100)).unwrap();
    tx.merge_in_with_ttl(&usual, "long", "2", ms(10)).unwrap();
    assert!(matches!(tx.put_with_ttl("a", "", ms(0)), Err(Error::InvalidTtl { .. })));
    clock.advance(ms(15));
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(db.get("old").unwrap(), None);
    assert_eq!(tx.get("old").unwrap().unwrap(), "x");
    assert_eq!(tx.get("merged").unwrap().unwrap(), "12");
    assert_eq!(keys(tx.get_range::<&[u8]>(..)), ["merged", "new", "old"]);
    // That time passed is nobody's write.
    tx.commit().unwrap();
    assert_eq!(db.get("merged").unwrap().unwrap(), "2");
    clock.advance(ms(9));
    assert_eq!(db.get("new").unwrap().unwrap(), "y");
    assert_eq!(usual.get("long").unwrap().unwrap(), "12");
    clock.advance(ms(1));
    assert_eq!(db.get_range::<&[u8]>(..).count(), 0);
    assert_eq!(usual.get("u").unwrap().unwrap(), "12");
    assert_eq!(usual.get("long").unwrap().unwrap(), "1");
    clock.advance(ms(10));
    assert_eq!(keys(usual.get_range::<&[u8]>(..)), ["long"]);
    let tx = db.begin();
    tx.put_with_ttl("too long", "", Duration::from_millis(u64::MAX)).unwrap();
    assert!(matches!(tx.commit(), Err(Error::InvalidTtl { .. })));
}

#[test]
fn beyond_the_budget_the_oldest_conflict() {
    let db = builder(&Env::in_memory(1)).transaction_bytes(2000).open().unwrap();
    let reading = |db: &Db| {
        let tx = db.begin();
        assert!(tx.get("read").unwrap().is_none());
        tx.put("mine", "x").unwrap();
        tx
    };
    let (old, only_reads, only_writes) = (reading(&db), db.begin(), db.begin());
    assert!(only_reads.get("read").unwrap().is_none());
    only_writes.put("blind", "x").unwrap();
    let write = |n: u32| (0..n).for_each(|n| db.put(format!("key {n}"), vec![0; 100]).unwrap());
    write(150);
    let young = reading(&db);
    write(10);
    assert!(is_conflict(old.commit()));
    assert!(!is_conflict(young.commit()));
    only_reads.commit().unwrap();
    only_writes.commit().unwrap();
    assert_eq!(kept(&db), (0, 0));
    let nothing = builder(&Env::in_memory(1)).transaction_bytes(0).open().unwrap();
    let tx = reading(&nothing);
    assert!(!is_conflict(tx.commit()));
    let tx = reading(&nothing);
    nothing.put("unrelated", "").unwrap();
    assert!(is_conflict(tx.commit()));
}

#[test]
fn much_that_was_written_since_is_searched_to_the_end() {
    // More than is searched at a time: the key comes first, in the middle, last, or not at all.
    for place in [0, 3000, 5999, 6000] {
        let db = open();
        let tx = db.begin();
        assert!(tx.get("read").unwrap().is_none());
        tx.put("mine", "x").unwrap();
        for n in 0..6000_u32 {
            let key = if n == place { "read".to_owned() } else { format!("another key {n}") };
            db.put(key, "").unwrap();
        }
        assert_eq!(is_conflict(tx.commit()), place < 6000, "{place}");
    }
}

#[test]
fn what_is_written_during_the_search_is_seen() {
    const THREADS: u32 = 3;
    const ROUNDS: u32 = 200;
    let env = Env { clock: Env::default().clock, ..Env::in_memory(1) };
    let db = builder(&env).background(Background::default()).open().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let db = &db;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let counted = TransactionOptions::new().tries(None);
                    let counted: Result<()> = db.transact_with(&counted, |tx| {
                        let count = tx.get("count")?.map_or(0, |value| value.len());
                        // More than is searched under the lock.
                        for n in 0..400 {
                            db.put(format!("another key of thread {thread}, {round}: {n}"), "")?;
                        }
                        tx.put("count", vec![b'|'; count + 1])
                    });
                    counted.unwrap();
                }
            });
        }
    });
    assert_eq!(db.get("count").unwrap().unwrap().len() as u32, THREADS * ROUNDS);
}

#[test]
fn exclusive_transactions_take_turns() {
    let db = builder(&Env::in_memory(1)).background(Background::default()).open().unwrap();
    let count = |key: &str| db.get(key).unwrap().map_or(0, |value| value.len());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let tx = db.begin_exclusive();
                    let n = tx.get("exclusive").unwrap().map_or(0, |value| value.len());
                    std::thread::yield_now();
                    tx.put("exclusive", vec![0; n + 1]).unwrap();
                    tx.commit().expect("nobody else writes this");
                }
            });
        }
        scope.spawn(|| (0..100).for_each(|_| db.merge("others", "x").unwrap()));
    });
    assert_eq!((count("exclusive"), count("others")), (400, 100));
    // With all others they conflict like any.
    let tx = db.begin_exclusive();
    assert!(tx.get("others").unwrap().is_some());
    tx.put("exclusive", "").unwrap();
    db.put("others", "").unwrap();
    assert!(is_conflict(tx.commit()));
    drop(db.begin_exclusive());
    assert_eq!(kept(&db), (0, 0));
}

#[test]
fn transactions_go_on_while_writes_are_held_up() {
    // Small buffers and slow flushes: commits wait for room like other writes, and get it.
    let db = Db::builder("/db")
        .env(Env { clock: Env::default().clock, ..Env::in_memory(1) })
        .write_buffer_bytes(64 << 10)
        .write_buffers(2)
        .level0_runs(1)
        .background(Background::Threads(1))
        .open()
        .unwrap();
    const KEYS: u32 = 8;
    let accounts = |tx: &Transaction| {
        let sum = tx.get_range::<&[u8]>(..).map(|entry| u64::from(entry.unwrap().1[0]));
        sum.sum::<u64>()
    };
    (0..KEYS).for_each(|key| db.put(key.to_be_bytes(), vec![30; 3000]).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let (db, accounts) = (&db, &accounts);
            scope.spawn(move || {
                let rng = SeededEntropy::new(thread);
                for _ in 0..150 {
                    let (from, to) = (rng.next_u64() as u32 % KEYS, rng.next_u64() as u32 % KEYS);
                    let options = TransactionOptions::new().tries(None).exclusive(thread == 0);
                    let moved: Result<()> = db.transact_with(&options, |tx| {
                        let take = |key: u32, by: i16| {
                            let mut value = tx.get(key.to_be_bytes())?.unwrap().to_vec();
                            value[0] = value[0].wrapping_add_signed(by as i8);
                            tx.put(key.to_be_bytes(), value)
                        };
                        take(from, -1)?;
                        take(to, 1)
                    });
                    moved.unwrap();
                }
                assert_eq!(accounts(&db.begin()) % 256, u64::from(KEYS * 30) % 256);
            });
        }
        scope.spawn(|| {
            for n in 0..400_u32 {
                let mut batch = WriteBatch::new();
                batch.put([b"~", &n.to_be_bytes()[..]].concat(), vec![0; 2000]);
                db.write_with(batch, Durability::Sync).unwrap();
            }
        });
    });
    assert_eq!(accounts(&db.begin()) % 256, u64::from(KEYS * 30) % 256);
    assert_eq!(kept(&db), (0, 0));
}

#[test]
fn a_commit_is_as_durable_as_asked_and_fails_like_any_write() {
    let vfs = SimVfs::new(3);
    let env = vfs.env(3);
    let db = builder(&env).open().unwrap();
    let commit = |value: &str, reads: bool, durability| {
        let tx = db.begin();
        assert!(!reads || tx.get("unrelated").unwrap().is_none());
        tx.put("k", value)?;
        tx.commit_with(durability)
    };
    let lost = |vfs: &SimVfs| {
        let disk = SimVfs::on(&vfs.power_loss(1), 1);
        builder(&disk.env(1)).open().unwrap().get("k").unwrap().map(|value| value.to_vec())
    };
    for reads in [true, false] {
        commit("durable", reads, Durability::Sync).unwrap();
        commit("buffered", reads, Durability::Buffered).unwrap();
        assert_eq!(lost(&vfs).unwrap(), b"durable");
        // One that wrote nothing syncs what there is, as an empty batch does.
        let tx = db.begin();
        assert!(tx.get("k").unwrap().is_some());
        tx.commit_with(Durability::Sync).unwrap();
        assert_eq!(lost(&vfs).unwrap(), b"buffered");
    }
    vfs.fail(0, false, Failure::NoSpace);
    let full = commit("nothing of this", true, Durability::Buffered);
    assert!(matches!(full, Err(Error::DiskFull { .. })), "{full:?}");
    assert_eq!(db.get("k").unwrap().unwrap(), "buffered");
    commit("after", true, Durability::Buffered).unwrap();
    // A failed sync: what was committed is visible, and nothing is taken after it.
    let tx = db.begin();
    assert!(tx.get("k").unwrap().is_some());
    tx.put("k", "unsynced").unwrap();
    let only_reads = db.begin();
    vfs.fail(1, true, Failure::Refused);
    assert!(matches!(tx.commit_with(Durability::Sync), Err(Error::Io { .. })));
    vfs.heal();
    assert_eq!(db.get("k").unwrap().unwrap(), "unsynced");
    assert!(matches!(commit("no", true, Durability::Buffered), Err(Error::Poisoned { .. })));
    assert!(matches!(commit("no", false, Durability::Buffered), Err(Error::Poisoned { .. })));
    assert_eq!(only_reads.get("k").unwrap().unwrap(), "after");
    only_reads.commit_with(Durability::Buffered).unwrap();
    assert_eq!(kept(&db), (0, 0));
}

#[test]
fn a_closed_database_says_so_and_a_transaction_keeps_it_open_otherwise() {
    let env = Env::in_memory(1);
    let db = builder(&env).open().unwrap();
    db.put("a", "a").unwrap();
    let tx = db.begin();
    let other = db.begin();
    let clone = db.clone();
    tx.put("b", "b").unwrap();
    other.get("a").unwrap();
    db.close().unwrap();
    assert!(matches!(tx.get("b"), Err(Error::Closed)), "also of its own writes");
    assert!(matches!(tx.get_range::<&str>(..).next(), Some(Err(Error::Closed))));
    assert!(matches!(tx.commit(), Err(Error::Closed)));
    assert!(matches!(other.commit(), Err(Error::Closed)));
    assert!(matches!(clone.begin().commit(), Err(Error::Closed)));
    drop(clone);
    let db = builder(&env).background(Background::default()).open().unwrap();
    let tx = db.begin();
    drop(db);
    assert!(matches!(builder(&env).open(), Err(Error::Locked { .. })));
    assert!(tx.get("a").unwrap().is_some());
    tx.put("b", "b").unwrap();
    tx.commit().unwrap();
    assert!(builder(&env).open().unwrap().get("b").unwrap().is_some());
}

#[test]
fn what_is_too_long_is_refused_at_once() {
    let db = open();
    let tx = db.begin();
    let long = vec![0; crate::MAX_KEY_LEN + 1];
    assert!(matches!(tx.put(&long, ""), Err(Error::KeyTooLong { .. })));
    assert!(matches!(tx.delete(&long), Err(Error::KeyTooLong { .. })));
    assert!(matches!(tx.merge(&long, ""), Err(Error::KeyTooLong { .. })));
    assert!(matches!(tx.delete_range(..&long[..]), Err(Error::KeyTooLong { .. })));
    assert_eq!(tx.get(&long).unwrap(), None);
    assert_eq!(tx.get_range(&long[..]..).count(), 0);
    // The longest and the shortest are keys like others.
    let longest = vec![0xff; crate::MAX_KEY_LEN];
    tx.put(&longest, "last").unwrap();
    tx.put("", "first").unwrap();
    let ends = [(Vec::new(), b"first".to_vec()), (longest.clone(), b"last".to_vec())];
    assert_eq!(entries(tx.get_range::<&[u8]>(..)), ends);
    assert_eq!(entries(tx.get_range(&longest[..]..=&longest[..]).rev()), ends[1..]);
    tx.commit().unwrap();
    assert_eq!(entries(db.get_range::<&[u8]>(..)), ends);
}

#[test]
fn transactions_may_be_shared_between_threads() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Transaction>();
    let db = open();
    let tx = db.begin();
    std::thread::scope(|scope| {
        for n in 0..4_u8 {
            let tx = &tx;
            scope.spawn(move || (0..50).for_each(|i| tx.put([n, i], "").unwrap()));
        }
    });
    assert_eq!(tx.get_range::<&[u8]>(..).count(), 200);
    tx.commit().unwrap();
    assert_eq!(db.get_range::<&[u8]>(..).count(), 200);
}

#[test]
fn what_is_loaded_meanwhile_conflicts_with_what_was_read() {
    type Read = fn(&Transaction) -> usize;
    let range = |t: &Transaction| keys(t.get_range("f".."h")).len();
    let cases: [(Read, bool); 7] = [
        (|t| t.get("d").unwrap().iter().count(), true),
        (|t| t.get("g").unwrap().iter().count(), true),
        (|t| t.get("c").unwrap().iter().count(), false),
        (|t| t.get("g\0").unwrap().iter().count(), false),
        (range, true),
        (|t| keys(t.get_range("a".."d")).len(), false),
        (|t| keys(t.get_range(.."d\0")).len(), true),
    ];
    for (number, (read, conflicts)) in cases.into_iter().enumerate() {
        let db = with(&["a", "d"]);
        let other = db.keyspace("other").unwrap();
        let transaction = db.begin();
        let seen = read(&transaction);
        transaction.put("z", "mine").unwrap();
        other.bulk_load([("a", "x"), ("z", "x")]).unwrap();
        db.bulk_load([("d", "loaded"), ("g", "loaded")]).unwrap();
        assert_eq!(read(&transaction), seen, "case {number}: it sees its own moment");
        assert_eq!(is_conflict(transaction.commit()), conflicts, "case {number}");
        // One that begins afterwards has seen it.
        let transaction = db.begin();
        assert_eq!(transaction.get("g").unwrap().unwrap(), b"loaded");
        transaction.put("g", "mine").unwrap();
        transaction.commit().unwrap();
        assert_eq!(kept(&db), (0, 0));
    }
}
