//! What a run is made with; handed to the children as JSON and written into every record.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Settings {
    pub preset: String,
    pub records: u64,
    /// Bytes of a value.
    pub value: usize,
    pub cache_mib: usize,
    pub write_buffer_mib: usize,
    pub write_buffers: usize,
    pub compression: String,
    /// How long a time-bounded workload is measured, and runs before that.
    pub seconds: f64,
    pub warmup: f64,
    /// How long nothing must happen for a store to count as settled.
    pub quiet: f64,
    /// Whether the store is for synced writes: an engine that decides at opening opens so.
    pub durable: bool,
}

impl Settings {
    /// The settings of a preset by name.
    #[must_use]
    pub fn preset(name: &str) -> Option<Settings> {
        let primary = Settings {
            preset: name.to_string(),
            records: 5_000_000,
            value: 100,
            cache_mib: 256,
            write_buffer_mib: 64,
            write_buffers: 3,
            compression: "none".to_string(),
            seconds: 5.0,
            warmup: 2.0,
            quiet: 2.5,
            durable: false,
        };
        Some(match name {
            "primary" => primary,
            // 1.5 GiB of values.
            "values1k" => Settings { records: 1_500_000, value: 1024, ..primary },
            "lz4" => Settings { compression: "lz4".to_string(), ..primary },
            // 1.16 GB of entries, more than four times the cache.
            "large" => Settings { records: 10_000_000, ..primary },
            // The cache holds the data.
            "cached" => Settings { cache_mib: 768, ..primary },
            "quick" => Settings {
                records: 200_000,
                write_buffer_mib: 4,
                cache_mib: 16,
                seconds: 1.0,
                warmup: 0.3,
                quiet: 1.5,
                ..primary
            },
            _ => return None,
        })
    }

    pub const PRESETS: [&'static str; 6] =
        ["primary", "values1k", "lz4", "large", "cached", "quick"];

    #[must_use]
    pub fn lz4(&self) -> bool {
        self.compression == "lz4"
    }

    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        self.cache_mib << 20
    }

    #[must_use]
    pub fn write_buffer_bytes(&self) -> usize {
        self.write_buffer_mib << 20
    }
}
