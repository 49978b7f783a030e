//! redb 4. A put is a write transaction of its own, a read a read transaction. It has no commit
//! that survives the death of the process but not power loss: `Durability::None` keeps the commit in
//! memory until the next durable one, of which one is made every 200 ms, as sled does. So its unsynced
//! writes promise less than those of the others.

use super::{Engine, Key, Outcome, Session, Timer};
use crate::settings::Settings;
use redb::{Database, Durability, ReadableDatabase, TableDefinition};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Mutex;

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("default");

pub struct Redb {
    db: Database,
    timer: Mutex<Timer>,
}

impl Redb {
    pub fn open(dir: &Path, settings: &Settings) -> Outcome<Self> {
        std::fs::create_dir_all(dir)?;
        let db = Database::builder()
            .set_cache_size(settings.cache_bytes())
            .create(dir.join("data.redb"))?;
        let txn = db.begin_write()?;
        txn.open_table(TABLE)?;
        txn.commit()?;
        Ok(Redb { db, timer: Mutex::new(Timer::new()) })
    }

    /// One write transaction around `work`.
    fn write(
        &self,
        sync: bool,
        work: impl FnOnce(&mut redb::Table<'_, &'static [u8], &'static [u8]>) -> Outcome,
    ) -> Outcome {
        let sync = sync || self.timer.lock().map_err(|_| "a writer panicked")?.due();
        let mut txn = self.db.begin_write()?;
        txn.set_durability(if sync { Durability::Immediate } else { Durability::None })?;
        work(&mut txn.open_table(TABLE)?)?;
        Ok(txn.commit()?)
    }
}

impl Engine for Redb {
    fn session(&self) -> Outcome<Box<dyn Session + '_>> {
        Ok(Box::new(Worker(self)))
    }

    fn settle(&self) -> Outcome {
        self.write(true, |_| Ok(()))
    }

    fn stats(&self) -> BTreeMap<&'static str, f64> {
        BTreeMap::new()
    }

    fn close(self: Box<Self>) -> Outcome {
        Ok(self.db.close()?)
    }
}

struct Worker<'a>(&'a Redb);

impl Session for Worker<'_> {
    fn put(&mut self, key: &Key, value: &[u8]) -> Outcome {
        self.0.write(false, |table| {
            table.insert(key.as_slice(), value)?;
            Ok(())
        })
    }

    fn put_sync(&mut self, key: &Key, value: &[u8]) -> Outcome {
        self.0.write(true, |table| {
            table.insert(key.as_slice(), value)?;
            Ok(())
        })
    }

    fn delete(&mut self, key: &Key) -> Outcome {
        self.0.write(false, |table| {
            table.remove(key.as_slice())?;
            Ok(())
        })
    }

    fn write_batch(&mut self, keys: &[Key], values: &[u8], value_bytes: usize) -> Outcome {
        self.0.write(false, |table| {
            for (key, value) in keys.iter().zip(values.chunks_exact(value_bytes)) {
                table.insert(key.as_slice(), value)?;
            }
            Ok(())
        })
    }

    fn get(&mut self, key: &Key, found: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        let table = self.0.db.begin_read()?.open_table(TABLE)?;
        let value = table.get(key.as_slice())?;
        if let Some(value) = &value {
            found(value.value());
        }
        Ok(value.is_some())
    }

    fn scan(
        &mut self,
        start: Option<&Key>,
        limit: u64,
        reverse: bool,
        entry: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Outcome<u64> {
        let from = start.map_or(Bound::Unbounded, |key| Bound::Included(key.as_slice()));
        let bounds: (Bound<&[u8]>, Bound<&[u8]>) =
            if reverse { (Bound::Unbounded, from) } else { (from, Bound::Unbounded) };
        let table = self.0.db.begin_read()?.open_table(TABLE)?;
        let mut range = table.range::<&[u8]>(bounds)?;
        let mut count = 0;
        while count < limit {
            let next = if reverse { range.next_back() } else { range.next() };
            let Some(next) = next else { break };
            let (key, value) = next?;
            entry(key.value(), value.value());
            count += 1;
        }
        Ok(count)
    }
}
