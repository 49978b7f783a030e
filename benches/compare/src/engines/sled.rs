//! sled 1.0 alpha, with its default fanout of leaves and its default flush every 200 ms: an
//! unsynced write of the last moments is lost when the process dies, so it promises less than the
//! others. It compresses with Zstandard always; level 1 is the least.

use super::{Engine, Key, Outcome, Session};
use crate::settings::Settings;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Mutex;

type Db = sled::Db<1024>;

/// A handle is used by one thread at a time: each session has a clone.
pub struct Sled(Mutex<Db>);

impl Sled {
    fn handle(&self) -> Outcome<Db> {
        Ok(self.0.lock().map_err(|_| "a thread panicked")?.clone())
    }
}

impl Sled {
    pub fn open(dir: &Path, settings: &Settings) -> Outcome<Self> {
        let config = sled::Config::default()
            .path(dir)
            .cache_capacity_bytes(settings.cache_bytes())
            .zstd_compression_level(1);
        Ok(Sled(Mutex::new(config.open()?)))
    }
}

impl Engine for Sled {
    fn session(&self) -> Outcome<Box<dyn Session + '_>> {
        Ok(Box::new(Worker(self.handle()?)))
    }

    fn settle(&self) -> Outcome {
        self.handle()?.flush()?;
        Ok(())
    }

    fn stats(&self) -> BTreeMap<&'static str, f64> {
        BTreeMap::new()
    }

    fn close(self: Box<Self>) -> Outcome {
        self.handle()?.flush()?;
        Ok(())
    }
}

struct Worker(Db);

impl Session for Worker {
    fn put(&mut self, key: &Key, value: &[u8]) -> Outcome {
        self.0.insert(key, value)?;
        Ok(())
    }

    fn put_sync(&mut self, key: &Key, value: &[u8]) -> Outcome {
        self.0.insert(key, value)?;
        self.0.flush()?;
        Ok(())
    }

    fn delete(&mut self, key: &Key) -> Outcome {
        self.0.remove(key)?;
        Ok(())
    }

    fn write_batch(&mut self, keys: &[Key], values: &[u8], value_bytes: usize) -> Outcome {
        let mut batch = sled::Batch::default();
        for (key, value) in keys.iter().zip(values.chunks_exact(value_bytes)) {
            batch.insert(key.as_slice(), value);
        }
        Ok(self.0.apply_batch(batch)?)
    }

    fn get(&mut self, key: &Key, found: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        let value = self.0.get(key)?;
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
        let mut range = self.0.range::<&[u8], _>(bounds);
        let mut count = 0;
        while count < limit {
            let next = if reverse { range.next_back() } else { range.next() };
            let Some(next) = next else { break };
            let (key, value) = next?;
            entry(&key, &value);
            count += 1;
        }
        Ok(count)
    }
}
