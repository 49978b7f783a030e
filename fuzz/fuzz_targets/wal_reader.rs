//! Any bytes taken for a write-ahead log: replayed. They give
//! entries or a typed error, within a bounded allocation, and never a panic.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ashlardb::fuzzing::wal_bytes(data));
