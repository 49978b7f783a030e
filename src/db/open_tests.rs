//! What a killed database has when it is opened again, whatever the sizes of its operations and
//! wherever its logs end.

use super::super::{Background, Db, Durability, WriteBatch};
use crate::vfs::{Entropy, Env, SeededEntropy, SimVfs};
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
