//! The workloads themselves. Each runs on an open store and checks everything that it reads.

use crate::child::Job;
use crate::data::{Checker, MISSING, Order, Rng, fill, key};
use crate::drive::{ALL, Measured, READS, Until, run, threads};
use crate::engines::{Engine, Outcome, Session};
use crate::machine::RawSync;
use crate::settings::Settings;
use crate::zipf::{THETA, Zipf};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Entries of a batch of fillbatch.
const BATCH: usize = 1000;
/// Zipfian draws made beforehand.
const DRAWS: usize = 1 << 20;

/// The store that a child works on.
pub struct Store<'a> {
    pub engine: &'a dyn Engine,
    pub settings: &'a Settings,
    pub order: Order,
    /// Indexes below this are written.
    pub written: AtomicU64,
    /// Of values, so that each write is another value.
    pub version: AtomicU64,
    pub zipf: OnceLock<Zipf>,
    /// A file that may be made beside the store.
    pub scratch: PathBuf,
}

/// What a workload did.
#[derive(Default)]
pub struct Done {
    pub measured: Measured,
    /// Keys and values written.
    pub user_bytes: u64,
    pub more: BTreeMap<String, f64>,
}

/// Makes keys and values, and checks them.
struct Hand {
    order: Order,
    rng: Rng,
    value: Vec<u8>,
    checker: Checker,
    version: u64,
    absent: u64,
}

impl Hand {
    fn put(&mut self, session: &mut dyn Session, index: u64) -> Outcome {
        let key = key(self.order, index);
        self.version += 1;
        fill(&key, self.version, &mut self.value);
        session.put(&key, &self.value)
    }

    fn get(&mut self, session: &mut dyn Session, index: u64) -> Outcome {
        let key = key(self.order, index);
        let checker = &mut self.checker;
        let there = session.get(&key, &mut |value| checker.value(&key, value))?;
        self.absent += u64::from(!there);
        Ok(())
    }

    fn scan(
        &mut self,
        session: &mut dyn Session,
        index: u64,
        limit: u64,
        reverse: bool,
    ) -> Outcome<u64> {
        let key = key(self.order, index);
        let checker = &mut self.checker;
        checker.begin();
        let mut first = true;
        let mut missed = false;
        let count = session.scan(Some(&key), limit, reverse, &mut |found, value| {
            missed |= std::mem::take(&mut first) && found != key.as_slice();
            checker.entry(found, value, reverse);
        })?;
        self.absent += u64::from(missed || count == 0);
        Ok(count)
    }
}

impl<'a> Store<'a> {
    pub fn new(engine: &'a dyn Engine, job: &'a Job, order: Order, written: u64) -> Self {
        let settings = &job.settings;
        Store {
            engine,
            settings,
            order,
            written: AtomicU64::new(written),
            version: AtomicU64::new(1),
            zipf: OnceLock::new(),
            scratch: job.dir.with_extension("raw"),
        }
    }

    fn hand(&self, thread: usize) -> Hand {
        // Versions of different hands do not meet.
        let version = self.version.fetch_add(1 << 36, Ordering::Relaxed);
        Hand {
            order: self.order,
            rng: Rng::new(version ^ (thread as u64) << 8),
            value: vec![0; self.settings.value],
            checker: Checker::new(self.settings.value),
            version,
            absent: 0,
        }
    }

    fn timed(&self) -> Until {
        Until::Time {
            warmup: Duration::from_secs_f64(self.settings.warmup),
            measured: Duration::from_secs_f64(self.settings.seconds),
        }
    }

    fn entry_bytes(&self) -> u64 {
        (crate::data::KEY + self.settings.value) as u64
    }

    fn zipf(&self) -> &Zipf {
        self.zipf.get_or_init(|| Zipf::new(self.settings.records, THETA))
    }

    pub fn run(&self, workload: &str) -> Outcome<Done> {
        let records = self.settings.records;
        let present = self.written.load(Ordering::Relaxed);
        match workload {
            "fillseq" | "fillrandom" => self.fill(),
            "fillbatch" => self.fill_batch(),
            "fillsync1" => self.fill_sync_by_turns(),
            "fillsync4" => self.fill_sync(4, Duration::from_secs_f64(self.settings.seconds)),
            "overwrite" | "dirty" => {
                let ops = if workload == "dirty" { records / 5 } else { records };
                self.write(ops, |hand, session| {
                    let index = hand.rng.below(records);
                    hand.put(session, index)
                })
            }
            "deleterandom" => {
                let mut done = self.write(records, |hand, session| {
                    let index = hand.rng.below(records);
                    session.delete(&key(hand.order, index))
                })?;
                done.user_bytes = records * crate::data::KEY as u64;
                Ok(done)
            }
            "readrandom" | "readrandom2" => {
                let count = if workload == "readrandom" { 1 } else { 2 };
                self.read(count, |hand, session, _| {
                    let index = hand.rng.below(present);
                    hand.get(session, index)
                })
            }
            "readmissing" => self.read_missing(),
            "readhot" => {
                let draws = self.zipf().scattered(DRAWS, &mut Rng::new(41));
                self.read(1, |hand, session, turn| {
                    hand.get(session, u64::from(draws[turn % DRAWS]))
                })
            }
            "seekrandom10" => self.seek(10, false),
            "seekrandom100" => self.seek(100, false),
            "seekreverse10" => self.seek(10, true),
            "readseq" => self.scan_all(false),
            "readreverse" => self.scan_all(true),
            "readwhilewriting" => self.read_while_writing(Some(50_000.0)),
            "readwhilewriting-free" => self.read_while_writing(None),
            name if name.starts_with("ycsb-") => self.ycsb(&name[5..]),
            _ => Err(format!("there is no workload {workload}").into()),
        }
    }

    /// Writes every record once, in the order of the indexes.
    fn fill(&self) -> Outcome<Done> {
        let mut next = 0;
        let done = self.write(self.settings.records, |hand, session| {
            next += 1;
            hand.put(session, next - 1)
        })?;
        self.written.store(self.settings.records, Ordering::Relaxed);
        Ok(done)
    }

    /// So many writes in this thread.
    fn write(
        &self,
        ops: u64,
        mut operation: impl FnMut(&mut Hand, &mut dyn Session) -> Outcome,
    ) -> Outcome<Done> {
        let mut hand = self.hand(0);
        let mut session = self.engine.session()?;
        let stop = AtomicBool::new(false);
        let work = |session: &mut dyn Session| operation(&mut hand, session);
        let measured = run(&mut *session, Until::Ops(ops), ALL, None, &stop, work)?;
        let user_bytes = measured.ops * self.entry_bytes();
        Ok(Done { measured, user_bytes, more: BTreeMap::new() })
    }

    fn fill_batch(&self) -> Outcome<Done> {
        let (records, value_bytes) = (self.settings.records, self.settings.value);
        let batches = records.div_ceil(BATCH as u64);
        let mut next = 0;
        let mut keys = Vec::with_capacity(BATCH);
        let mut values = Vec::with_capacity(BATCH * value_bytes);
        let mut done = self.write(batches, |hand, session| {
            keys.clear();
            values.clear();
            for index in (next..records).take(BATCH) {
                let key = key(hand.order, index);
                fill(&key, hand.version, &mut hand.value);
                keys.push(key);
                values.extend_from_slice(&hand.value);
            }
            next += BATCH as u64;
            session.write_batch(&keys, &values, value_bytes)
        })?;
        done.measured.ops = records;
        done.measured.rate = records as f64 / done.measured.seconds;
        done.user_bytes = records * self.entry_bytes();
        self.written.store(records, Ordering::Relaxed);
        Ok(done)
    }

    /// One thread, by turns with the same number of bytes overwritten and synced in a plain file: what a
    /// sync takes drifts within seconds.
    fn fill_sync_by_turns(&self) -> Outcome<Done> {
        const TURNS: u32 = 20;
        let turn = Duration::from_secs_f64(self.settings.seconds) / TURNS;
        let mut raw = RawSync::new(&self.scratch)?;
        let mut done = Done::default();
        let mut all = (0, 0.0);
        for _ in 0..TURNS {
            let Done { measured, user_bytes, .. } = self.fill_sync(1, turn)?;
            done.measured.ops += measured.ops;
            done.measured.seconds += measured.seconds;
            done.measured.latencies.merge(&measured.latencies);
            done.user_bytes += user_bytes;
            let (ops, seconds) = raw.run(turn)?;
            all = (all.0 + ops, all.1 + seconds);
        }
        done.measured.rate = done.measured.ops as f64 / done.measured.seconds;
        done.more.insert("raw_rate".to_string(), all.0 as f64 / all.1);
        Ok(done)
    }

    fn fill_sync(&self, count: usize, measured: Duration) -> Outcome<Done> {
        let until = Until::Time { warmup: Duration::ZERO, measured };
        let (measured, _) = threads(self.engine, count, until, ALL, |thread| {
            let mut hand = self.hand(thread);
            move |session: &mut dyn Session| {
                let key = key(hand.order, self.written.fetch_add(1, Ordering::Relaxed));
                fill(&key, hand.version, &mut hand.value);
                session.put_sync(&key, &hand.value)
            }
        })?;
        let user_bytes = measured.ops * self.entry_bytes();
        Ok(Done { measured, user_bytes, more: BTreeMap::new() })
    }

    /// Reads for a time in so many threads; all of them must find what they look for.
    fn read(
        &self,
        count: usize,
        operation: impl Fn(&mut Hand, &mut dyn Session, usize) -> Outcome + Sync,
    ) -> Outcome<Done> {
        let operation = &operation;
        let tally = AtomicU64::new(0);
        let (measured, _) = threads(self.engine, count, self.timed(), READS, |thread| {
            let mut hand = Counted { hand: self.hand(thread), bad: &tally };
            let mut turn = thread * DRAWS / 2;
            move |session: &mut dyn Session| {
                turn += 1;
                operation(&mut hand.hand, session, turn)
            }
        })?;
        expect_none(&tally)?;
        Ok(Done { measured, ..Done::default() })
    }

    fn read_missing(&self) -> Outcome<Done> {
        let found = AtomicU64::new(0);
        let done = self.read(1, |hand, session, _| {
            let key = key(hand.order, MISSING + hand.rng.below(1 << 36));
            if session.get(&key, &mut |_| ())? {
                found.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })?;
        expect_none(&found)?;
        Ok(done)
    }

    fn seek(&self, limit: u64, reverse: bool) -> Outcome<Done> {
        let present = self.written.load(Ordering::Relaxed);
        self.read(1, |hand, session, _| {
            let index = hand.rng.below(present);
            hand.scan(session, index, limit, reverse).map(drop)
        })
    }

    /// Scans the whole store until the time is up, after one scan that warms up. Operations are
    /// entries, latencies those of a whole scan.
    fn scan_all(&self, reverse: bool) -> Outcome<Done> {
        let present = self.written.load(Ordering::Relaxed);
        let mut session = self.engine.session()?;
        let mut hand = self.hand(0);
        let mut scan = |session: &mut dyn Session| -> Outcome {
            let checker = &mut hand.checker;
            checker.begin();
            let count = session.scan(None, u64::MAX, reverse, &mut |key, value| {
                checker.entry(key, value, reverse);
            })?;
            if count == present && hand.checker.wrong == 0 {
                return Ok(());
            }
            let wrong = hand.checker.wrong;
            Err(format!("{count} entries of {present}, {wrong} of them wrong").into())
        };
        if self.settings.warmup > 0.0 {
            scan(&mut *session)?;
        }
        let measured = Duration::from_secs_f64(self.settings.seconds);
        let until = Until::Time { warmup: Duration::ZERO, measured };
        let stop = AtomicBool::new(false);
        let mut measured = run(&mut *session, until, ALL, None, &stop, scan)?;
        measured.ops *= present;
        measured.rate = measured.ops as f64 / measured.seconds;
        Ok(Done { measured, ..Done::default() })
    }

    /// One reader, measured, beside one writer that overwrites at random, held to a rate or not.
    fn read_while_writing(&self, pace: Option<f64>) -> Outcome<Done> {
        let present = self.settings.records;
        let stop = AtomicBool::new(false);
        let (done, writer) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| -> Outcome<Measured> {
                let mut session = self.engine.session()?;
                let mut hand = self.hand(9);
                run(&mut *session, Until::Told, ALL, pace, &stop, |session| {
                    let index = hand.rng.below(present);
                    hand.put(session, index)
                })
            });
            let done = self.read(1, |hand, session, _| {
                let index = hand.rng.below(present);
                hand.get(session, index)
            });
            stop.store(true, Ordering::Relaxed);
            (done, writer.join())
        });
        let (mut done, writer) = (done?, writer.map_err(|_| "the writer panicked")??);
        done.user_bytes = writer.ops * self.entry_bytes();
        done.more = BTreeMap::from([
            ("writer_rate".to_string(), writer.rate),
            ("writer_p99".to_string(), writer.latencies.quantile(0.99) as f64),
            ("writer_max".to_string(), writer.latencies.max() as f64),
        ]);
        Ok(done)
    }

    /// The core workloads of YCSB, in one thread.
    fn ycsb(&self, letter: &str) -> Outcome<Done> {
        let scattered = self.zipf().scattered(DRAWS, &mut Rng::new(42));
        let latest = self.zipf().ranks(DRAWS, &mut Rng::new(43));
        let writes = AtomicU64::new(0);
        // The share of operations that only read, in percent.
        let reads = match letter {
            "a" | "f" => 50,
            "b" | "d" | "e" => 95,
            "c" => 100,
            _ => return Err(format!("there is no YCSB {letter}").into()),
        };
        let mut done = self.read(1, |hand, session, turn| {
            let index = u64::from(scattered[turn % DRAWS]);
            let only_read = hand.rng.below(100) < reads;
            if !only_read {
                writes.fetch_add(1, Ordering::Relaxed);
            }
            match (letter, only_read) {
                ("e", true) => {
                    let limit = 1 + hand.rng.below(100);
                    hand.scan(session, index, limit, false).map(drop)
                }
                ("d", true) => {
                    let newest = self.written.load(Ordering::Relaxed) - 1;
                    let back = u64::from(latest[turn % DRAWS]);
                    hand.get(session, newest.saturating_sub(back))
                }
                (_, true) => hand.get(session, index),
                ("d" | "e", false) => {
                    let new = self.written.load(Ordering::Relaxed);
                    hand.put(session, new)?;
                    self.written.store(new + 1, Ordering::Relaxed);
                    Ok(())
                }
                ("f", false) => {
                    hand.get(session, index)?;
                    hand.put(session, index)
                }
                (_, false) => hand.put(session, index),
            }
        })?;
        done.user_bytes = writes.load(Ordering::Relaxed) * self.entry_bytes();
        Ok(done)
    }
}

/// A hand that tells what went wrong when it is dropped.
struct Counted<'a> {
    hand: Hand,
    bad: &'a AtomicU64,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.bad.fetch_add(self.hand.absent + self.hand.checker.wrong, Ordering::Relaxed);
    }
}

fn expect_none(bad: &AtomicU64) -> Outcome {
    match bad.load(Ordering::Relaxed) {
        0 => Ok(()),
        bad => Err(format!("{bad} reads did not give what was written").into()),
    }
}
