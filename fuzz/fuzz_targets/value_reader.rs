//! Any bytes taken for a value segment: opened, verified, and every value read. They give values or a
//! typed error, within a bounded allocation, and never a panic.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ashlardb::fuzzing::value_bytes(data));
