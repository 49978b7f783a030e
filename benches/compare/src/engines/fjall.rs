//! fjall 3. As its documentation advises: a shared block cache of the budget, two workers (a flush
//! and a compaction can run together), 4 KiB blocks and filters as they are by default (0.01 % false
//! positives in level 0, 10 bits a key below), index and filter blocks pinned in every level, which
//! is outside of the cache budget and in its favour. The journal goes to the operating system with
//! each write (its default).

use super::{Engine, Key, Outcome, Session};
use crate::settings::Settings;
use fjall::config::{CompressionPolicy, PinningPolicy};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::time::Duration;

pub struct Fjall {
    db: Database,
    keys: Keyspace,
}

impl Fjall {
    pub fn open(dir: &Path, settings: &Settings) -> Outcome<Self> {
        let lz4 = settings.lz4();
        let compression = if lz4 { CompressionType::Lz4 } else { CompressionType::None };
        let db = Database::builder(dir)
            .cache_size(settings.cache_bytes() as u64)
            .worker_threads(2)
            .journal_compression(CompressionType::None)
            .open()?;
        let keys = db.keyspace("default", || {
            KeyspaceCreateOptions::default()
                .max_memtable_size(settings.write_buffer_bytes() as u64)
                .data_block_compression_policy(CompressionPolicy::all(compression))
                .index_block_pinning_policy(PinningPolicy::all(true))
                .filter_block_pinning_policy(PinningPolicy::all(true))
        })?;
        Ok(Fjall { db, keys })
    }
}

impl Engine for Fjall {
    fn session(&self) -> Outcome<Box<dyn Session + '_>> {
        Ok(Box::new(Worker(self)))
    }

    fn settle(&self) -> Outcome {
        self.keys.rotate_memtable_and_wait()?;
        while self.db.outstanding_flushes() > 0 || self.db.active_compactions() > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn stats(&self) -> BTreeMap<&'static str, f64> {
        BTreeMap::from([
            ("cache_bytes", self.db.cache_size() as f64),
            ("memtable_bytes", self.db.write_buffer_size() as f64),
            ("segment_bytes", self.keys.disk_space() as f64),
            ("tables", self.keys.table_count() as f64),
        ])
    }

    fn close(self: Box<Self>) -> Outcome {
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }
}

struct Worker<'a>(&'a Fjall);

impl Session for Worker<'_> {
    fn put(&mut self, key: &Key, value: &[u8]) -> Outcome {
        Ok(self.0.keys.insert(key.as_slice(), value)?)
    }

    fn put_sync(&mut self, key: &Key, value: &[u8]) -> Outcome {
        self.0.keys.insert(key.as_slice(), value)?;
        Ok(self.0.db.persist(PersistMode::SyncData)?)
    }

    fn delete(&mut self, key: &Key) -> Outcome {
        Ok(self.0.keys.remove(key.as_slice())?)
    }

    fn write_batch(&mut self, keys: &[Key], values: &[u8], value_bytes: usize) -> Outcome {
        let mut batch = self.0.db.batch().durability(Some(PersistMode::Buffer));
        for (key, value) in keys.iter().zip(values.chunks_exact(value_bytes)) {
            batch.insert(&self.0.keys, key.as_slice(), value);
        }
        Ok(batch.commit()?)
    }

    fn get(&mut self, key: &Key, found: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        let value = self.0.keys.get(key)?;
        if let Some(value) = &value {
            found(value);
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
        let mut range = self.0.keys.range::<&[u8], _>(bounds);
        let mut count = 0;
        while count < limit {
            let next = if reverse { range.next_back() } else { range.next() };
            let Some(guard) = next else { break };
            let (key, value) = guard.into_inner()?;
            entry(&key, &value);
            count += 1;
        }
        Ok(count)
    }
}
