//! RocksDB, as its wiki's "Setup Options and Basic Tuning" and "Block Cache" advise: dynamic level
//! sizes, filters of 10 bits a key, index and filter blocks in the block cache and pinned there, so
//! that the cache budget holds for them too, the `HyperClockCache`, `bytes_per_sync` of 1 MiB. Blocks
//! of 4 KiB, its default and the better for point reads, where the wiki has 16 KiB to save memory.
//! `max_background_jobs = 2` is one flush and one compaction thread. Everything else is the
//! default: the log is written on each put (no manual flush), writes are ordered, checksums checked.

use super::{Engine, Key, Outcome, Session};
use crate::settings::Settings;
use rocksdb::{
    BlockBasedOptions, BlockBasedTablePinningTier, Cache, DB, DBCompressionType, FlushOptions,
    Options, ReadOptions, WaitForCompactOptions, WriteBatch, WriteOptions,
};
use std::collections::BTreeMap;
use std::path::Path;

pub struct Rocks {
    db: DB,
    sync: WriteOptions,
    plain: WriteOptions,
}

impl Rocks {
    pub fn open(dir: &Path, settings: &Settings) -> Outcome<Self> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_max_background_jobs(2);
        options.set_write_buffer_size(settings.write_buffer_bytes());
        options.set_max_write_buffer_number(settings.write_buffers as i32);
        options.set_level_compaction_dynamic_level_bytes(true);
        options.set_bytes_per_sync(1 << 20);
        let compression =
            if settings.lz4() { DBCompressionType::Lz4 } else { DBCompressionType::None };
        options.set_compression_type(compression);
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_hyper_clock_cache(settings.cache_bytes(), 0));
        table.set_bloom_filter(10.0, false);
        table.set_whole_key_filtering(true);
        table.set_cache_index_and_filter_blocks(true);
        table.set_cache_index_and_filter_blocks_with_high_priority(true);
        table.set_unpartitioned_pinning_tier(BlockBasedTablePinningTier::All);
        table.set_optimize_filters_for_memory(true);
        table.set_format_version(FORMAT);
        options.set_block_based_table_factory(&table);
        let mut sync = WriteOptions::default();
        sync.set_sync(true);
        Ok(Rocks { db: DB::open(&options, dir)?, sync, plain: WriteOptions::default() })
    }
}

/// The newest table format of this version.
const FORMAT: i32 = 7;

impl Engine for Rocks {
    fn session(&self) -> Outcome<Box<dyn Session + '_>> {
        Ok(Box::new(Worker { rocks: self, read: ReadOptions::default() }))
    }

    fn settle(&self) -> Outcome {
        let mut flush = FlushOptions::default();
        flush.set_wait(true);
        self.db.flush_opt(&flush)?;
        self.db.wait_for_compact(&WaitForCompactOptions::default())?;
        Ok(())
    }

    fn stats(&self) -> BTreeMap<&'static str, f64> {
        let wanted = [
            ("cache_bytes", "rocksdb.block-cache-usage"),
            ("cache_pinned_bytes", "rocksdb.block-cache-pinned-usage"),
            ("memtable_bytes", "rocksdb.cur-size-all-mem-tables"),
            ("table_readers_bytes", "rocksdb.estimate-table-readers-mem"),
            ("segment_bytes", "rocksdb.total-sst-files-size"),
        ];
        let property = |name| self.db.property_int_value(name).ok().flatten();
        wanted.iter().filter_map(|(as_, name)| Some((*as_, property(*name)? as f64))).collect()
    }

    fn close(self: Box<Self>) -> Outcome {
        self.db.cancel_all_background_work(true);
        Ok(())
    }
}

struct Worker<'a> {
    rocks: &'a Rocks,
    read: ReadOptions,
}

impl Session for Worker<'_> {
    fn put(&mut self, key: &Key, value: &[u8]) -> Outcome {
        Ok(self.rocks.db.put_opt(key, value, &self.rocks.plain)?)
    }

    fn put_sync(&mut self, key: &Key, value: &[u8]) -> Outcome {
        Ok(self.rocks.db.put_opt(key, value, &self.rocks.sync)?)
    }

    fn delete(&mut self, key: &Key) -> Outcome {
        Ok(self.rocks.db.delete_opt(key, &self.rocks.plain)?)
    }

    fn write_batch(&mut self, keys: &[Key], values: &[u8], value_bytes: usize) -> Outcome {
        let mut batch = WriteBatch::default();
        for (key, value) in keys.iter().zip(values.chunks_exact(value_bytes)) {
            batch.put(key, value);
        }
        Ok(self.rocks.db.write_opt(batch, &self.rocks.plain)?)
    }

    fn get(&mut self, key: &Key, found: &mut dyn FnMut(&[u8])) -> Outcome<bool> {
        let value = self.rocks.db.get_pinned_opt(key, &self.read)?;
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
        let mut cursor = self.rocks.db.raw_iterator();
        match (start, reverse) {
            (Some(key), false) => cursor.seek(key),
            (Some(key), true) => cursor.seek_for_prev(key),
            (None, false) => cursor.seek_to_first(),
            (None, true) => cursor.seek_to_last(),
        }
        let mut count = 0;
        while let Some((key, value)) = cursor.item() {
            entry(key, value);
            count += 1;
            if count == limit {
                return Ok(count);
            }
            if reverse { cursor.prev() } else { cursor.next() }
        }
        cursor.status()?;
        Ok(count)
    }
}
