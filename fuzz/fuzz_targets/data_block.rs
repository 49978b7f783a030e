//! Any bytes taken for the payload of a data block. They give
//! entries or a typed error, within a bounded allocation, and never a panic.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ashlardb::fuzzing::data_block(data));
