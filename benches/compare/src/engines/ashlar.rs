//! ashlardb, with its defaults but for the budgets that all engines share.

use super::{Engine, Key, Outcome, Session};
use crate::settings::Settings;
use ashlardb::{Compression, Db, Durability, WriteBatch};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;

pub struct Ashlar(Db);

impl Ashlar {
    pub fn open(dir: &Path, settings: &Settings) -> Outcome<Self> {
        let compression = if settings.lz4() { Compression::Lz4 } else { Compression::None };
        let db = Db::builder(dir)
            .cache_bytes(settings.cache_bytes())
            .write_buffer_bytes(settings.write_buffer_bytes())
            .write_buffers(settings.write_buffers)
            .compression(compression)
            .open()?;
        Ok(Ashlar(db))
    }
}

impl Engine for Ashlar {
    fn session(&self) -> Outcome<Box<dyn Session + '_>> {
        Ok(Box::new(Worker(&self.0)))
    }

    fn settle(&self) -> Outcome {
        self.0.flush()?;
        self.0.wait_idle()?;
        Ok(())
    }

    fn stats(&self) -> BTreeMap<&'static str, f64> {
        let stats = self.0.stats();
        let runs: usize = stats.keyspaces.iter().map(|keyspace| keyspace.range_runs).sum();
        BTreeMap::from([
            ("key_map_bytes", stats.key_map.bytes as f64),
            ("cache_bytes", stats.cache_bytes as f64),
            ("memtable_bytes", stats.memtable_bytes as f64),
            ("range_runs", runs as f64),
            ("segment_bytes", stats.segment_bytes() as f64),
            ("flushed_bytes", stats.flushed_bytes as f64),
            ("compacted_bytes", stats.compacted_bytes as f64),
            ("stalled_seconds", stats.stalled.as_secs_f64()),
        ])
    }

    fn close(self: Box<Self>) -> Outcome {
        Ok(self.0.close()?)
    }
}

struct Worker<'a>(&'a Db);

impl Session for Worker<'_> {
    fn put(&mut self, key: &Key, value: &[u8]) -> Outcome {
        Ok(self.0.put(key, value)?)
    }

    fn put_sync(&mut self, key: &Key, value: &[u8]) -> Outcome {
        let mut batch = WriteBatch::new();
        batch.put(key, value);
        Ok(self.0.write_with(batch, Durability::Sync)?)
    }

    fn delete(&mut self, key: &Key) -> Outcome {
        Ok(self.0.delete(key)?)
    }

    fn write_batch(&mut self, keys: &[Key], values: &[u8], value_bytes: usize) -> Outcome {
        let mut batch = WriteBatch::new();
        for (key, value) in keys.iter().zip(values.chunks_exact(value_bytes)) {
            batch.put(key, value);
        }
        Ok(self.0.write(batch)?)
    }

    fn get(&mut self, key: &Key, found: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        Ok(self.0.get_with(key, |value| found(value))?.is_some())
    }

    fn scan(
        &mut self,
        start: Option<&Key>,
        limit: u64,
        reverse: bool,
        entry: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Outcome<u64> {
        let from = start.map_or(Bound::Unbounded, Bound::Included);
        let mut count = 0;
        if reverse {
            let mut range = self.0.get_range::<&Key>((Bound::Unbounded, from));
            while count < limit {
                let Some(next) = range.next_entry_back() else { break };
                let (key, value) = next?;
                entry(key, value);
                count += 1;
            }
        } else {
            let mut range = self.0.get_range::<&Key>((from, Bound::Unbounded));
            while count < limit {
                let Some(next) = range.next_entry() else { break };
                let (key, value) = next?;
                entry(key, value);
                count += 1;
            }
        }
        Ok(count)
    }
}
