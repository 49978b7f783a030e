//! Measurements of which only the latest are kept: `cargo run --example time_series`.
//!
//! Keys are a sensor and a time, big-endian, so that a range is a span of time. Nothing is ever merged:
//! the oldest segments go as a whole, by age or when all of it takes too much room, so each measurement is
//! written once to the log and once to a segment.

use ashlardb::{Compaction, Db, Result, WriteBatch};
use std::time::Duration;

const SENSORS: [&str; 3] = ["cellar", "hall", "roof"];

fn key(sensor: &str, second: u64) -> Vec<u8> {
    [sensor.as_bytes(), b"/", &second.to_be_bytes()].concat()
}

fn value(bytes: &[u8]) -> f64 {
    bytes.try_into().map_or(f64::NAN, f64::from_le_bytes)
}

fn main() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("ashlardb-series-{}", std::process::id()));
    let db = Db::builder(&dir)
        .compaction(Compaction::Fifo {
            max_bytes: 8 << 20,
            max_age: Some(Duration::from_secs(86_400)),
        })
        .write_buffer_bytes(1 << 20)
        .open()?;

    // A day of measurements, one batch a minute.
    for minute in 0..24 * 60 {
        let mut batch = WriteBatch::new();
        for second in minute * 60..(minute + 1) * 60 {
            for (n, sensor) in SENSORS.iter().enumerate() {
                let degrees = 10.0 * n as f64 + (second as f64 / 86_400.0).sin();
                batch.put(key(sensor, second), degrees.to_le_bytes());
            }
        }
        db.write(batch)?;
    }
    db.flush()?;

    // The mean of an hour, and the last measurement.
    let hour = db.get_range(key("hall", 23 * 3600)..key("hall", 24 * 3600));
    let values = hour.map(|entry| entry.map(|(_, v)| value(&v))).collect::<Result<Vec<f64>>>()?;
    println!("hall, last hour: {:.2} degrees", values.iter().sum::<f64>() / values.len() as f64);
    if let Some(entry) = db.prefix("roof/").next_back() {
        println!("roof, last: {:.2} degrees", value(&entry?.1));
    }
    assert_eq!(values.len(), 3600);

    let stats = db.stats();
    println!("{} bytes in {} segments", stats.segment_bytes(), db.segments().len());
    db.close()?;
    std::fs::remove_dir_all(&dir).expect("what was made can be removed");
    Ok(())
}
