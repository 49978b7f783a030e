//! What a killed database has when it is opened again, whatever the sizes of its operations and
//! wherever its logs end.

use super::super::{Background, Db, Durability, WriteBatch};
use crate::vfs::{Entropy, Env, Failure, SeededEntropy, SimVfs};
use std::collections::BTreeMap;
use std::sync::Arc;

fn open(env: &Env, background: Background) -> Db {
    let options = Db::builder("/db").env(env.clone()).background(background);
    options.write_buffer_bytes(64 << 10).durability(Durability::Buffered).open().unwrap()
}

/// Few keys, so that their versions follow each other closely; values around what makes a piece.
#[test]
fn what_is_replayed_is_what_was_written_in_order() {
    for seed in 0..40 {
        let rng = SeededEntropy::new(seed);
        let below = |n: usize| (rng.next_u64() % n as u64) as usize;
        let vfs = SimVfs::new(seed);
        let db = open(&vfs.env(seed), Background::Manual);
        let mut model = BTreeMap::new();
        for n in 0..40 + below(60) {
            let mut batch = WriteBatch::new();
            for at in 0..1 + below(3) {
                let key = vec![b'k'; below(5)];
                let len = [5, 100, 4094, 4098, 20_000][below(5)];
                if below(6) == 0 {
                    batch.delete(&key);
                    model.remove(&key);
                } else {
                    let value = [vec![n as u8, at as u8], vec![7; len]].concat();
                    batch.put(&key, &value);
                    model.insert(key, value);
                }
            }
            db.write(batch).unwrap();
            // Logs of fewer operations than are asked for ahead, too.
            if below(8) == 0 {
                db.inner().rotate(&mut db.inner().writer.lock()).unwrap();
            }
        }
        let killed = || Env { vfs: Arc::new(vfs.process_death()), ..Env::in_memory(seed) };
        check(&open(&killed(), Background::default()), &model);
        // Each memtable has what its logs have, and no more: a flush of the older ones takes nothing
        // of the newer ones with their logs.
        let again = SimVfs::on(&vfs.process_death(), seed);
        let db = open(&again.env(seed), Background::Manual);
        check(&db, &model);
        loop {
            let flushed = db.inner().flush_oldest().unwrap();
            let env = Env { vfs: Arc::new(again.process_death()), ..Env::in_memory(seed) };
            check(&open(&env, Background::Manual), &model);
            if !flushed {
                break;
            }
        }
    }
}

fn check(db: &Db, model: &BTreeMap<Vec<u8>, Vec<u8>>) {
    let found = db.get_range::<&[u8]>(..).map(|entry| entry.unwrap());
    let found: BTreeMap<_, _> = found.map(|entry| (entry.0.to_vec(), entry.1.to_vec())).collect();
    assert!(&found == model);
    for (key, value) in model {
        assert!(db.get(key).unwrap().as_deref() == Some(&**value));
    }
}

/// The log floor moved past numbers that no memtable had, and the database could not be opened again:
/// "operations before this log are nowhere".
#[test]
fn numbers_that_no_memtable_has_do_not_keep_a_database_from_opening() {
    // A log with nothing but a clear, given up because an append failed.
    let vfs = SimVfs::new(1);
    let db = open(&vfs.env(1), Background::Manual);
    db.put("a", "1").unwrap();
    db.inner().rotate(&mut db.inner().writer.lock()).unwrap();
    db.clear().unwrap();
    vfs.fail(0, false, Failure::Refused);
    assert!(db.put("b", "2").is_err());
    db.put("c", "3").unwrap();
    assert!(db.inner().flush_oldest().unwrap());
    let reopened = |vfs: &SimVfs| {
        let env = Env { vfs: Arc::new(vfs.process_death()), ..Env::in_memory(1) };
        open(&env, Background::Manual)
    };
    let keys =
        |db: &Db| db.get_range::<&[u8]>(..).map(|e| e.unwrap().0.to_vec()).collect::<Vec<_>>();
    assert_eq!(keys(&reopened(&vfs)), [b"c"]);

    // A log with nothing but operations of a keyspace that was dropped since, behind one that fills a
    // memtable.
    let vfs = SimVfs::new(1);
    let db = open(&vfs.env(1), Background::Manual);
    db.put("a", vec![7; 100_000]).unwrap();
    let gone = db.keyspace("gone").unwrap();
    gone.put("b", "2").unwrap();
    db.drop_keyspace("gone").unwrap();
    drop((gone, db));
    let again = SimVfs::on(&vfs.process_death(), 1);
    let db = open(&again.env(1), Background::Manual);
    while db.inner().flush_oldest().unwrap() {}
    assert_eq!(keys(&reopened(&again)), [b"a"]);
    db.put("c", "3").unwrap();
    assert_eq!(keys(&reopened(&again)), [b"a", b"c"]);
    db.flush().unwrap();
    assert_eq!(keys(&reopened(&again)), [b"a", b"c"]);
}
