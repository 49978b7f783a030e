//! The hash of a key, computed once per operation and carried along.
//!
//! Filters, the hash byte beside each entry of a data block and every other hashed structure use
//! bits of this one value (FORMAT.md, "Key hash"). The seed is random per database, so that nobody
//! can prepare keys that collide. Pure functions; called by every room that looks a key up.

use crate::types::KeyspaceId;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The hash of a key under a keyspace's seed.
#[inline]
#[must_use]
pub fn key_hash(key: &[u8], seed: u64) -> u64 {
    xxh3_64_with_seed(key, seed)
}

/// The byte kept beside each entry of a data block: bits 16 to 23 of the key's hash.
#[inline]
#[must_use]
pub fn hash_byte(hash: u64) -> u8 {
    (hash >> 16) as u8
}

/// The seed of one keyspace: the database's seed mixed with the keyspace's id.
#[must_use]
pub fn keyspace_seed(database_seed: u64, keyspace: KeyspaceId) -> u64 {
    xxh3_64_with_seed(&keyspace.0.to_le_bytes(), database_seed)
}
