//! Ranges stepped in every way, while the database changes and over damage, against a model.

use super::*;
use crate::segment::SegmentReader;
use crate::vfs::{Entropy, Env, OpenMode, SeededEntropy};
use crate::{Background, Compression, ErrorKind, IterOptions, Key, RangeIter, Value};
use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

const DIR: &str = "/db";

type Model = BTreeMap<Vec<u8>, Rc<Vec<u8>>>;

struct Random(SeededEntropy);

impl Random {
    fn below(&self, n: u64) -> u64 {
        (self.0.next_u64() >> 8) % n
    }

    fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn one_of<'a, T>(&self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len() as u64) as usize]
    }
}

/// Keys that are hard to tell apart: by trailing zeros, behind sixteen equal bytes, by length.
fn names(random: &Random) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    let bytes = [0, 1, b'a', 0xff];
    let mut family = |which: u64| match which {
        0 => names.extend((0..40).map(|n| vec![0; n])),
        1 => names.extend((0..22).map(|n| [&b"a"[..], &vec![0; n][..]].concat())),
        2 => {
            for len in 14..18 {
                for a in bytes {
                    names.push([&vec![b'p'; len][..], &[a]].concat());
                    names.extend(bytes.map(|b| [&vec![b'p'; len][..], &[a, b]].concat()));
                }
            }
        }
        3 => names.extend((0..150u16).map(|n| {
            let [a, b] = (n * 7).to_be_bytes();
            [&b"sixteen bytes are"[..16], &[a, b]].concat()
        })),
        4 => {
            for a in bytes {
                names.push(vec![a]);
                for b in bytes {
                    names.push(vec![a, b]);
                    names.extend(bytes.map(|c| vec![a, b, c]));
                }
            }
        }
        5 => names.extend((0..20).map(|n| vec![0xff; n])),
        _ => names.extend((0..250).map(|n| format!("k{n:04}").into_bytes())),
    };
    loop {
        family(random.below(7));
        if random.one_in(3) {
            break;
        }
    }
    names.sort();
    names.dedup();
    names
}

/// An iterator and what it is to give yet.
struct Walk {
    iter: RangeIter,
    rows: Vec<(Vec<u8>, Rc<Vec<u8>>)>,
    from: usize,
    to: usize,
    done: bool,
    forward: bool,
    keys_only: bool,
    /// What it gave to keep.
    kept: Vec<(Key, Value, usize)>,
    what: String,
}

impl Walk {
    fn start(
        make: impl FnOnce((Bound<Vec<u8>>, Bound<Vec<u8>>), IterOptions) -> RangeIter,
        model: &Model,
        names: &[Vec<u8>],
        random: &Random,
    ) -> Walk {
        let bound = || match random.below(6) {
            0 | 1 => Bound::Included(random.one_of(names).clone()),
            2 | 3 => Bound::Excluded(random.one_of(names).clone()),
            _ => Bound::Unbounded,
        };
        let (mut lower, mut upper) = (bound(), bound());
        if let (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) =
            (&lower, &upper)
            && a > b
            && !random.one_in(8)
        {
            std::mem::swap(&mut lower, &mut upper);
        }
        let bounds = (lower, upper);
        let rows: Vec<_> = model
            .iter()
            .filter(|(key, _)| bounds.contains(*key))
            .map(|(key, value)| (key.clone(), Rc::clone(value)))
            .collect();
        let keys_only = random.one_in(6);
        let options = IterOptions { keys_only, fill_cache: random.one_in(2) };
        Walk {
            what: format!("{bounds:?}"),
            iter: make(bounds, options),
            to: rows.len(),
            rows,
            from: 0,
            done: false,
            forward: random.one_in(2),
            keys_only,
            kept: Vec::new(),
        }
    }

    /// Where it is to be seeked: to a key, or between two.
    fn probe(names: &[Vec<u8>], random: &Random) -> Vec<u8> {
        let mut probe = random.one_of(names).clone();
        match random.below(4) {
            0 => probe.push(0),
            1 => drop(probe.pop()),
            _ => {}
        }
        probe
    }

    /// A step or a seek; whether it met damage.
    fn go(&mut self, names: &[Vec<u8>], random: &Random) -> bool {
        if random.one_in(25) || self.done && random.one_in(2) {
            let probe = Walk::probe(names, random);
            if random.one_in(2) {
                self.iter.seek(&probe);
                self.from = self.rows.partition_point(|(key, _)| *key < probe);
            } else {
                self.iter.seek_back(&probe);
                self.to = self.rows.partition_point(|(key, _)| *key <= probe);
            }
            self.done = false;
        }
        if random.one_in(8) {
            self.forward = !self.forward;
        }
        let at = if self.forward { self.from } else { self.to.wrapping_sub(1) };
        let want = (!self.done && self.from < self.to).then(|| {
            let (key, value) = &self.rows[at];
            (key.clone(), if self.keys_only { Vec::new() } else { value.to_vec() })
        });
        let got = if random.one_in(2) {
            let step = if self.forward { self.iter.next() } else { self.iter.next_back() };
            step.map(|item| {
                item.map(|(key, value)| {
                    let row = (key.to_vec(), value.to_vec());
                    self.kept.push((key, value, at));
                    row
                })
            })
        } else {
            let step =
                if self.forward { self.iter.next_entry() } else { self.iter.next_entry_back() };
            step.map(|item| item.map(|(key, value)| (key.to_vec(), value.to_vec())))
        };
        match got {
            Some(Err(error)) => {
                assert!(!self.done, "an error where all was over: {error}, {}", self.what);
                assert_eq!(error.kind(), ErrorKind::Corruption, "{error}");
                self.done = true;
                return true;
            }
            got => assert_eq!(got.map(Result::unwrap), want, "{}", self.what),
        }
        match (want.is_some(), self.forward) {
            (false, _) => self.done = true,
            (true, true) => self.from += 1,
            (true, false) => self.to -= 1,
        }
        false
    }

    /// What was handed out is still what it was.
    fn end(self) {
        drop(self.iter);
        for (key, value, at) in &self.kept {
            let (wanted, content) = &self.rows[*at];
            assert_eq!(&key[..], &wanted[..]);
            assert!(self.keys_only && value.is_empty() || value[..] == content[..]);
        }
    }
}

/// A random life of a database, with walks that go on meanwhile.
struct Life {
    random: Random,
    env: Env,
    names: Vec<Vec<u8>>,
    options: (usize, usize, u64, Compression, usize),
    value_len: u64,
    model: Model,
}

impl Life {
    fn new(seed: u64) -> Life {
        let random = Random(SeededEntropy::new(seed));
        let names = names(&random);
        let compression = if random.one_in(3) { Compression::default() } else { Compression::None };
        let options = (
            *random.one_of(&[0, 60_000, 8 << 20]),
            *random.one_of(&[64 << 10, 128 << 10, 4 << 20]),
            *random.one_of(&[64 << 10, 64 << 10, 64 << 20]),
            compression,
            2 + random.below(6) as usize,
        );
        let value_len = *random.one_of(&[1, 40, 400, 2000, 2000]);
        let env = Env::in_memory(seed);
        Life { random, env, names, options, value_len, model: Model::new() }
    }

    fn open(&self) -> Db {
        let (cache, buffer, segment, compression, runs) = self.options;
        Db::builder(DIR)
            .env(self.env.clone())
            .background(Background::Manual)
            .cache_bytes(cache)
            .write_buffer_bytes(buffer)
            .write_buffers(16)
            .segment_bytes(segment)
            .level0_runs(runs)
            .compression(compression)
            .open()
            .unwrap()
    }

    fn write(&mut self, db: &Db) {
        let random = &self.random;
        let key = random.one_of(&self.names).clone();
        if random.one_in(5) {
            db.delete(&key).unwrap();
            self.model.remove(&key);
        } else {
            let byte = random.below(256) as u8;
            let value = vec![byte; random.below(self.value_len) as usize];
            db.put(&key, &value).unwrap();
            self.model.insert(key, Rc::new(value));
        }
    }

    /// Everything that may happen beside a write.
    fn happen(&mut self, db: &Db) {
        match self.random.below(40) {
            0..6 => db.flush().unwrap(),
            6..10 => drop(db.step().unwrap()),
            10 => while db.step().unwrap() {},
            11 => {
                let (a, b) = (self.random.one_of(&self.names), self.random.one_of(&self.names));
                db.compact_range::<&Vec<u8>>(a.min(b)..=a.max(b)).unwrap();
            }
            12 if self.random.one_in(3) => {
                db.clear().unwrap();
                self.model.clear();
            }
            _ => {}
        }
    }

    fn run(&mut self, rounds: u64) {
        let db = self.open();
        let mut held: Vec<(Snapshot, Model)> = Vec::new();
        let mut walks: Vec<Walk> = Vec::new();
        for _ in 0..rounds {
            for _ in 0..self.random.below(60) {
                self.write(&db);
            }
            self.happen(&db);
            let random = &self.random;
            if random.one_in(3) {
                held.push((db.snapshot(), self.model.clone()));
            }
            if held.len() > 12 {
                held.swap_remove(random.below(12) as usize);
            }
            for _ in 0..random.below(4) {
                let walk = if random.one_in(2) && !held.is_empty() {
                    let (snapshot, model) = random.one_of(&held);
                    let make = |bounds, options| snapshot.range_with(bounds, options);
                    Walk::start(make, model, &self.names, random)
                } else {
                    let make = |bounds, options| db.range_with(bounds, options);
                    Walk::start(make, &self.model, &self.names, random)
                };
                walks.push(walk);
            }
            while walks.len() > 6 {
                walks.swap_remove(random.below(walks.len() as u64) as usize).end();
            }
            for walk in &mut walks {
                for _ in 0..random.below(60) {
                    assert!(!walk.go(&self.names, random), "damage in a sound database");
                }
            }
        }
        walks.into_iter().for_each(Walk::end);
    }

    /// Damages some blocks, and walks over what is left.
    fn run_over_damage(&mut self, rounds: u64) -> (u64, u64) {
        let db = self.open();
        db.flush().unwrap();
        drop(db);
        let mut names = self.env.vfs.read_dir(Path::new(DIR)).unwrap();
        names.retain(|name| name.ends_with(".seg"));
        for name in names {
            let path = Path::new(DIR).join(name);
            let reader = SegmentReader::open_in(&self.env, &path).unwrap();
            let blocks = reader.blocks().collect::<Result<Vec<_>>>().unwrap();
            let file = self.env.vfs.open(&path, OpenMode::ReadWrite).unwrap();
            for block in blocks.iter().filter(|_| self.random.one_in(9)) {
                let mut byte = [0];
                file.read_exact_at(&mut byte, block.offset + 20).unwrap();
                file.write_all_at(&[byte[0] ^ 8], block.offset + 20).unwrap();
            }
        }
        let db = self.open();
        let (mut met, mut steps) = (0, 0);
        for _ in 0..rounds {
            let make = |bounds, options| db.range_with(bounds, options);
            let mut walk = Walk::start(make, &self.model, &self.names, &self.random);
            for _ in 0..self.random.below(120) {
                met += u64::from(walk.go(&self.names, &self.random));
                steps += 1;
            }
            walk.end();
        }
        (met, steps)
    }
}

#[test]
fn walks_that_live_while_the_database_changes_give_what_was_there() {
    for seed in 0..16 {
        Life::new(seed).run(40);
    }
}

#[test]
fn walks_over_damage_give_what_is_there_or_an_error() {
    let (mut met, mut steps) = (0, 0);
    for seed in 100..116 {
        let mut life = Life::new(seed);
        life.run(15);
        let (bad, all) = life.run_over_damage(60);
        met += bad;
        steps += all;
    }
    assert!(met > 500 && met < steps / 4, "{met} of {steps}");
}

#[test]
fn walks_beside_writers_see_one_moment() {
    for seed in 0..3 {
        let random = Random(SeededEntropy::new(seed));
        let names = names(&random);
        let db = Db::builder(DIR)
            .env(Env::in_memory(seed))
            .background(Background::Threads(1))
            .write_buffer_bytes(64 << 10)
            .segment_bytes(64 << 10)
            .open()
            .unwrap();
        let put_all = |round: u32| {
            let mut batch = WriteBatch::new();
            let odd = round % 2 == 1;
            for (i, name) in names.iter().enumerate() {
                // Every third key is there in every other round only.
                if i % 3 == 1 && odd {
                    batch.delete(name);
                } else {
                    batch.put(name, round.to_le_bytes());
                }
            }
            db.write(batch).unwrap();
        };
        put_all(2);
        let stop = AtomicBool::new(false);
        let walk = |seed: u64| {
            let random = Random(SeededEntropy::new(seed));
            for _ in 0..300 {
                let mut iter = db.get_range::<&[u8]>(..);
                let mut found = Vec::new();
                let mut behind = Vec::new();
                let mut forward = random.one_in(2);
                loop {
                    if random.one_in(12) {
                        forward = !forward;
                    }
                    let step = if forward { iter.next_entry() } else { iter.next_entry_back() };
                    let Some((key, value)) = step.transpose().unwrap() else { break };
                    let row = (key.to_vec(), value.to_vec());
                    if forward { found.push(row) } else { behind.push(row) }
                }
                found.extend(behind.into_iter().rev());
                let round = found[0].1.clone();
                let odd = round[0] % 2 == 1;
                let there = names.iter().enumerate().filter(|(i, _)| i % 3 != 1 || !odd);
                let expected: Vec<_> =
                    there.map(|(_, name)| (name.clone(), round.clone())).collect();
                assert!(found == expected, "{round:?}\n{found:?}\n{expected:?}");
            }
        };
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                (3..).take_while(|_| !stop.load(Ordering::Relaxed)).for_each(put_all);
            });
            let other = scope.spawn(|| walk(seed + 1000));
            walk(seed);
            other.join().unwrap();
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap();
        });
    }
}
