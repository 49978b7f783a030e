//! The checksum of every byte on disk: XXH3 (64 bits), bound to a file and to a position in it.
//!
//! A sum that covered only the bytes would accept a block of another file, or a stale block of the
//! same file at another place. Here the file's random *salt* and the offset go into the seed, so
//! flipped, stale and misplaced bytes are all detected (FORMAT.md, "Checksums"). Called by every
//! room that reads or writes a file; pure functions.
//!
//! Source: XXH3 by Yann Collet, <https://github.com/Cyan4973/xxHash>.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// 2^64 divided by the golden ratio, made odd: spreads offsets over the seed space.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The checksum of `bytes` at `position` (a byte offset) of the file with this `salt`.
#[inline]
#[must_use]
pub fn checksum(salt: u64, position: u64, bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, salt.wrapping_add(position.wrapping_mul(GOLDEN)))
}

/// The salt of a segment file: its UUID folded to 64 bits.
#[must_use]
pub fn uuid_salt(uuid: &[u8; 16]) -> u64 {
    let n = u128::from_le_bytes(*uuid);
    (n as u64) ^ ((n >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_position_and_bytes_all_count() {
        let base = checksum(1, 4096, b"block");
        assert_ne!(base, checksum(2, 4096, b"block"));
        assert_ne!(base, checksum(1, 8192, b"block"));
        assert_ne!(base, checksum(1, 4096, b"blocj"));
        assert_eq!(base, checksum(1, 4096, b"block"));
    }

    #[test]
    fn known_answers_of_the_format() {
        assert_eq!(checksum(0, 0, b""), 0x2D06_8005_38D3_94C2);
        assert_eq!(uuid_salt(&[1; 16]), 0);
        assert_eq!(uuid_salt(&[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]), 3);
    }
}
