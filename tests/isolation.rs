//! Transactions of many threads, judged by a checker that knows nothing of this engine.
//!
//! A history is what some threads asked for and were told: transactions that append numbers to a
//! few lists and read such lists, some of which conflict. `adya` infers from the lists which
//! transaction saw what of which other, and looks for circles that no serial order explains, real
//! time included. So that every kind of read and write takes part, the lists are kept in different
//! ways: as a value, by merges, as rows that are walked and counted from either end, as rows that
//! are deleted as a range and written anew. Beside the transactions there are plain merges, batches
//! and snapshots.
//!
//! The same with conflicts ignored must be found to be broken, else the judgement means nothing.
//!
//! `ASHLAR_HISTORIES` sets how many histories there are.

use adya::history::{Interner, Mop, Op, OpType, ReadValue, Scalar};
use adya::{History, Opts, Report, Valid, Workload, check};
use ashlardb::merge::Append;
use ashlardb::vfs::{Entropy, Env, SeededEntropy};
use ashlardb::{
    Background, Builder, Db, Durability, Error, Keyspace, KeyspaceOptions, Result, Snapshot,
    Transaction, WriteBatch,
};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

const THREADS: u64 = 4;
const TRANSACTIONS: usize = 8;
const LISTS: u32 = 5;
/// More elements no history has.
const ELEMENTS: u32 = 1000;

/// How a list is kept.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// A value that is read and put.
    Value,
    /// A value that is merged into, unread.
    Merged,
    /// A row for each element; the next one is found from the last.
    Rows,
    /// The same in another keyspace; the rows are counted.
    Counted,
    /// The same; each append deletes the range and puts all rows again.
    Rewritten,
}

/// The list that is merged into.
const MERGED: u32 = 1;

fn form(list: u32) -> Form {
    let forms = [Form::Value, Form::Merged, Form::Rows, Form::Counted, Form::Rewritten];
    forms[list as usize % forms.len()]
}

struct Store {
    db: Db,
    other: Keyspace,
}

/// The lists of one history.
struct Lists<'a> {
    store: &'a Store,
    history: u64,
    ops: Mutex<Vec<Op>>,
    elements: AtomicU32,
}

fn bytes(element: u32) -> [u8; 4] {
    element.to_be_bytes()
}

fn elements(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(4).map(|four| u32::from_be_bytes(four.try_into().expect("whole"))).collect()
}

impl Lists<'_> {
    fn key(&self, list: u32) -> Vec<u8> {
        [&self.history.to_be_bytes()[..], &bytes(list)].concat()
    }

    fn row(&self, list: u32, n: usize) -> Vec<u8> {
        [self.key(list), bytes(n as u32).to_vec()].concat()
    }

    fn read(&self, tx: &Transaction, list: u32) -> Result<Vec<u32>> {
        let (key, other) = (self.key(list), &self.store.other);
        let whole = |rows: Vec<Result<(_, ashlardb::Value)>>| -> Result<Vec<u32>> {
            let values = rows.into_iter().map(|row| Ok(row?.1.to_vec()));
            Ok(elements(&values.collect::<Result<Vec<_>>>()?.concat()))
        };
        match form(list) {
            Form::Value | Form::Merged => Ok(elements(&tx.get(key)?.unwrap_or_default())),
            Form::Rows => whole(tx.prefix(key).collect()),
            Form::Counted => {
                let (first, end) = (self.row(list, 0), self.key(list + 1));
                let mut rows: Vec<_> = tx.get_range_in(other, first..end)?.rev().collect();
                rows.reverse();
                whole(rows)
            }
            Form::Rewritten => whole(tx.prefix_in(other, key)?.collect()),
        }
    }

    fn append(&self, tx: &Transaction, list: u32, element: u32) -> Result<()> {
        let (key, other) = (self.key(list), &self.store.other);
        match form(list) {
            Form::Value => {
                let value = tx.get(&key)?.unwrap_or_default();
                tx.put(&key, [&value[..], &bytes(element)].concat())
            }
            Form::Merged => tx.merge(key, bytes(element)),
            Form::Rows => {
                let last = tx.prefix(&key).next_back().transpose()?;
                let next = last.map_or(0, |(row, _)| elements(&row[key.len()..])[0] as usize + 1);
                tx.put(self.row(list, next), bytes(element))
            }
            Form::Counted => {
                let rows = tx.prefix_in(other, &key)?.count();
                tx.put_in(other, self.row(list, rows), bytes(element))
            }
            Form::Rewritten => {
                let mut all = self.read(tx, list)?;
                all.push(element);
                tx.delete_range_in(other, &key[..]..&self.key(list + 1)[..])?;
                let mut rows = all.into_iter().enumerate();
                rows.try_for_each(|(n, element)| {
                    tx.put_in(other, self.row(list, n), bytes(element))
                })
            }
        }
    }

    /// What a snapshot has of a list.
    fn look(&self, snapshot: &Snapshot, list: u32) -> Result<Vec<u32>> {
        let view = snapshot.of(&self.store.other)?;
        let view = match form(list) {
            Form::Value | Form::Merged | Form::Rows => snapshot,
            Form::Counted | Form::Rewritten => &view,
        };
        let rows = view.prefix(self.key(list)).map(|row| Ok(row?.1.to_vec()));
        Ok(elements(&rows.collect::<Result<Vec<_>>>()?.concat()))
    }

    fn note(&self, thread: u64, kind: OpType, value: Vec<Mop>) {
        let mut ops = self.ops.lock().expect("nobody panics with it");
        let index = ops.len() as u64;
        ops.push(Op { index, kind, process: Some(thread.cast_signed()), value, time: None });
    }

    fn element(&self) -> u32 {
        let element = self.elements.fetch_add(1, Ordering::Relaxed);
        assert!(element < ELEMENTS);
        element
    }

    /// One transaction of a thread; whether it conflicted.
    fn transaction(&self, thread: u64, rng: &SeededEntropy) -> bool {
        let below = |n: u32| (rng.next_u64() % u64::from(n)) as u32;
        let list = || below(LISTS);
        let style = below(8);
        let mut plan: Vec<Mop> = (0..1 + below(4))
            .map(|_| match (style, below(2)) {
                // Without a read nor anything that could conflict.
                (0, _) => Mop::Append { key: MERGED, value: self.element() },
                (1, _) | (_, 0) => Mop::Read { key: list(), value: ReadValue::Nil },
                _ => Mop::Append { key: list(), value: self.element() },
            })
            .collect();
        self.note(thread, OpType::Invoke, plan.clone());
        let outcome = match style {
            0 => self.batch(&plan),
            1 => self.snapshot(&mut plan, below),
            2 => self.in_transaction(self.store.db.begin_exclusive(), &mut plan, below),
            _ => self.in_transaction(self.store.db.begin(), &mut plan, below),
        };
        let kind = match outcome {
            Ok(()) => OpType::Ok,
            Err(Error::Conflict) => OpType::Fail,
            Err(error) => panic!("{error}"),
        };
        self.note(thread, kind, plan);
        kind == OpType::Fail
    }

    fn batch(&self, plan: &[Mop]) -> Result<()> {
        let mut batch = WriteBatch::new();
        for mop in plan {
            if let Mop::Append { key, value } = mop {
                batch.merge(self.key(*key), bytes(*value));
            }
        }
        self.store.db.write(batch)
    }

    fn snapshot(&self, plan: &mut [Mop], below: impl Fn(u32) -> u32) -> Result<()> {
        let snapshot = self.store.db.snapshot();
        for mop in plan {
            dawdle(&below);
            if let Mop::Read { key, value } = mop {
                *value = ReadValue::List(self.look(&snapshot, *key)?);
            }
        }
        Ok(())
    }

    fn in_transaction(
        &self,
        tx: Transaction,
        plan: &mut [Mop],
        below: impl Fn(u32) -> u32,
    ) -> Result<()> {
        for mop in plan {
            dawdle(&below);
            match mop {
                Mop::Read { key, value } => *value = ReadValue::List(self.read(&tx, *key)?),
                Mop::Append { key, value } | Mop::Write { key, value } => {
                    self.append(&tx, *key, *value)?;
                }
            }
        }
        dawdle(&below);
        tx.commit()
    }
}

/// Lets others come in between, now and then.
fn dawdle(below: &impl Fn(u32) -> u32) {
    if below(3) == 0 {
        std::thread::yield_now();
    }
}

fn open(builder: impl FnOnce(Builder) -> Builder) -> Store {
    let builder = builder(Db::builder("/db").env(Env::in_memory(1)).merge_operator(Append));
    let db = builder.open().expect("open");
    let options = KeyspaceOptions::new().merge_operator(Append);
    let other = db.keyspace_with("other", &options).expect("keyspace");
    Store { db, other }
}

/// A history; how many of its transactions conflicted.
fn record(store: &Store, history: u64) -> (History, usize) {
    let (ops, elements) = (Mutex::default(), AtomicU32::new(0));
    let lists = Lists { store, history, ops, elements };
    let conflicts = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let lists = &lists;
                let rng = SeededEntropy::new(history * THREADS + thread);
                scope.spawn(move || {
                    (0..TRANSACTIONS).filter(|_| lists.transaction(thread, &rng)).count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    // Numbers stand for themselves.
    let mut interner = Interner::default();
    (0..ELEMENTS).for_each(|n| assert_eq!(interner.intern(Scalar::Int(i64::from(n))), n));
    (History::from_ops(lists.ops.into_inner().expect("no panic"), interner), conflicts)
}

fn judge(history: &History) -> Report {
    let strictly = Opts { models: vec!["strict-serializable".to_owned()], ..Opts::default() };
    check(history, Workload::ListAppend, &strictly)
}

fn histories(usual: u64) -> u64 {
    std::env::var("ASHLAR_HISTORIES").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// As many histories, all of which must be strictly serializable.
fn all_are_serializable(name: &str, usual: u64, builder: impl FnOnce(Builder) -> Builder) {
    let store = open(builder);
    let (mut conflicts, mut committed, all) = (0, 0, histories(usual));
    for n in 0..all {
        let (history, of_this) = record(&store, n);
        let report = judge(&history);
        let explained: Vec<_> =
            report.anomalies.values().flatten().map(|a| &a.explanation).collect();
        assert_eq!(report.valid, Valid::True, "{name}: history {n}: {explained:#?}");
        conflicts += of_this;
        committed += THREADS as usize * TRANSACTIONS - of_this;
        if n % 20 == 0 {
            store.db.flush().expect("flush");
        }
    }
    println!("{name}: {all} histories, {committed} transactions and {conflicts} conflicts");
    // If nobody comes in between, this proves nothing.
    assert!(conflicts as u64 > all, "{name}: only {conflicts} conflicts");
}

#[test]
fn histories_are_strictly_serializable() {
    all_are_serializable("at rest", 1500, |builder| builder);
}

#[test]
fn histories_are_strictly_serializable_while_everything_moves() {
    all_are_serializable("moving", 1500, |builder| {
        builder
            .write_buffer_bytes(64 << 10)
            .segment_bytes(64 << 10)
            .level0_runs(2)
            .cache_bytes(64 << 10)
            .durability(Durability::Sync)
            .background(Background::Threads(1))
    });
}

#[test]
fn without_the_check_for_conflicts_histories_are_not() {
    let store = open(|builder| builder.ignore_conflicts(true));
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    let (mut broken, all) = (0, histories(300));
    for n in 0..all {
        let (history, conflicts) = record(&store, n);
        assert_eq!(conflicts, 0);
        let report = judge(&history);
        broken += u64::from(report.valid == Valid::False);
        report.anomaly_types.iter().for_each(|kind| *found.entry(kind.clone()).or_default() += 1);
    }
    println!("unchecked: {broken} of {all} histories are broken: {found:?}");
    assert!(broken > all / 4, "only {broken} of {all}");
    // What a snapshot alone does not prevent: write skew, and updates that are lost.
    for kind in ["G2-item", "lost-update"] {
        assert!(found.contains_key(kind), "no {kind}: {found:?}");
    }
}
