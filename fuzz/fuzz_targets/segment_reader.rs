//! Any bytes taken for a segment file: opened, read in both directions, searched and verified.
//! They give entries or a typed error, within a bounded allocation, and never a panic.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ashlardb::fuzzing::segment_bytes(data));
