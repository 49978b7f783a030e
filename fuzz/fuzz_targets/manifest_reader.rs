//! Any bytes taken for a manifest: replayed. They give
//! entries or a typed error, within a bounded allocation, and never a panic.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ashlardb::fuzzing::manifest_bytes(data));
