//! Point reads in every form, through the cache, past it, and over damage.

use super::*;
use crate::vfs::{Env, OpenMode};
use crate::{Background, Compression, ErrorKind};

const DIR: &str = "/db";

fn open(env: &Env, cache_bytes: usize, compression: Compression) -> Db {
    Db::builder(DIR)
        .env(env.clone())
        .background(Background::Manual)
        .compression(compression)
        .cache_bytes(cache_bytes)
        .open()
        .unwrap()
}

fn key(n: u32) -> Vec<u8> {
    format!("key {n:05}").into_bytes()
}

fn value(n: u32) -> Vec<u8> {
    let len = [0, 5, 100, 256, 257, 900, 6000, 70_000][n as usize % 8];
    (0..len).map(|i: u32| (i ^ n) as u8).collect()
}

/// Every form of read gives the same, twice.
fn check(db: &Db, n: u32, expected: Option<&[u8]>) {
    let (snapshot, keyspace) = (db.snapshot(), db.keyspace(DEFAULT_KEYSPACE).unwrap());
    let mut buffer = b"before".to_vec();
    for _ in 0..2 {
        assert_eq!(db.get(key(n)).unwrap().as_deref(), expected);
        assert_eq!(db.get_with(key(n), <[u8]>::to_vec).unwrap().as_deref(), expected);
        assert_eq!(snapshot.get_with(key(n), <[u8]>::to_vec).unwrap().as_deref(), expected);
        assert_eq!(db.contains_key(key(n)).unwrap(), expected.is_some());
        assert_eq!(keyspace.get_into(key(n), &mut buffer).unwrap(), expected.is_some());
        assert_eq!(buffer, expected.unwrap_or(b"before"));
    }
}

#[test]
fn every_form_of_read_sees_the_same() {
    for compression in [Compression::None, Compression::default()] {
        for cache_bytes in [0, 40_000, 8 << 20] {
            let env = Env::in_memory(1);
            let db = open(&env, cache_bytes, compression);
            for n in 0..600 {
                db.put(key(n), value(n)).unwrap();
            }
            db.flush().unwrap();
            let old = db.snapshot();
            for n in (0..600).step_by(3) {
                db.delete(key(n)).unwrap();
            }
            for n in (1..600).step_by(3) {
                db.put(key(n), b"new").unwrap();
            }
            for flushed in [false, true] {
                for n in 0..620 {
                    let expected = match n % 3 {
                        _ if n >= 600 => None,
                        0 => None,
                        1 => Some(b"new".to_vec()),
                        _ => Some(value(n)),
                    };
                    check(&db, n, expected.as_deref());
                    let before = old.get_with(key(n), <[u8]>::to_vec).unwrap();
                    assert_eq!(before, (n < 600).then(|| value(n)));
                }
                if !flushed {
                    db.flush().unwrap();
                    db.fill_key_map().unwrap();
                }
            }
            db.clear().unwrap();
            check(&db, 2, None);
        }
    }
}

#[test]
fn the_closure_runs_once_and_may_use_the_database() {
    for cache_bytes in [0, 8 << 20] {
        let env = Env::in_memory(2);
        let db = open(&env, cache_bytes, Compression::None);
        for n in 0..100 {
            db.put(key(n), value(2)).unwrap();
        }
        db.flush().unwrap();
        db.fill_key_map().unwrap();
        for n in 0..100 {
            let mut ran = 0;
            let inner = db.get_with(key(n), |outer| {
                ran += 1;
                // Another block goes through the buffers, and the state changes.
                let inner = db.get_with(key(99 - n), |inner| inner.to_vec()).unwrap().unwrap();
                db.put(key(1000 + n), outer).unwrap();
                if n % 25 == 0 {
                    db.flush().unwrap();
                }
                assert_eq!(outer, value(2));
                inner
            });
            assert_eq!((inner.unwrap().unwrap(), ran), (value(2), 1));
            check(&db, 1000 + n, Some(&value(2)));
        }
        db.get_with(key(5000), |_| panic!("it is not there")).unwrap();
    }
}

#[test]
fn damage_is_the_answer_with_and_without_room_in_the_cache() {
    for compression in [Compression::None, Compression::default()] {
        for cache_bytes in [0, 8 << 20] {
            let env = Env::in_memory(3);
            let db = open(&env, cache_bytes, compression);
            for round in [b"old", b"new"] {
                for n in 0..500 {
                    db.put(key(n), [&round[..], &[n as u8; 60]].concat()).unwrap();
                }
                db.flush().unwrap();
            }
            drop(db);
            let mut names = env.vfs.read_dir(Path::new(DIR)).unwrap();
            names.retain(|name| name.ends_with(".seg"));
            names.sort();
            let newest = Path::new(DIR).join(names.last().unwrap());
            let file = env.vfs.open(&newest, OpenMode::ReadWrite).unwrap();
            for at in [100, 8, 4096 + 3] {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
                let db = open(&env, cache_bytes, compression);
                if at > 8 {
                    db.fill_key_map().unwrap();
                }
                let mut damaged = 0;
                for n in 0..500 {
                    for _ in 0..3 {
                        let mut buffer = b"before".to_vec();
                        let got = db.get(key(n));
                        let into = db.get_into(key(n), &mut buffer);
                        match got {
                            Ok(value) => {
                                let value = value.unwrap();
                                assert!(value.starts_with(b"new") && into.unwrap());
                                assert_eq!(buffer, *value);
                            }
                            Err(error) => {
                                assert_eq!(error.kind(), ErrorKind::Corruption);
                                assert_eq!(into.unwrap_err().kind(), ErrorKind::Corruption);
                                assert_eq!(buffer, b"before");
                                let closure = db.get_with(key(n), |_| panic!("it is damaged"));
                                assert!(closure.is_err() && db.contains_key(key(n)).is_err());
                                damaged += 1;
                            }
                        }
                    }
                }
                assert!(damaged > 0 && damaged < 1500, "{damaged}");
                drop(db);
                file.write_all_at(&byte, at).unwrap();
            }
        }
    }
}

#[test]
fn what_was_read_is_counted() {
    let env = Env::in_memory(4);
    let db = open(&env, 8 << 20, Compression::None);
    (0..300).for_each(|n| db.put(key(n), [1; 100]).unwrap());
    db.flush().unwrap();
    db.fill_key_map().unwrap();
    let before = db.stats();
    (0..300).for_each(|n| assert!(db.contains_key(key(n)).unwrap()));
    (300..400).for_each(|n| assert!(!db.contains_key(key(n)).unwrap()));
    let after = db.stats();
    let reads = after.reads.since(&before.reads);
    assert_eq!((reads.gets, reads.blocks - reads.wasted_blocks), (400, 300));
    let (hits, misses) =
        (after.cache_hits - before.cache_hits, after.cache_misses - before.cache_misses);
    assert_eq!((hits, misses), (reads.cached_blocks, reads.blocks - reads.cached_blocks));
    assert!(misses < 20 && hits > 250, "{hits} {misses}");
}
