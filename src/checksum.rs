//! The checksum of every byte on disk: XXH3 (64 bits), bound to a file and to a position in it.
//!
//! A sum that covered only the bytes would accept a block of another file, or a stale block of the
//! same file at another place. Here the file's random *salt* and the offset go into the seed, so
//! flipped, stale and misplaced bytes are all detected (FORMAT.md, "Checksums"). Called by every
//! room that reads or writes a file; pure functions.
//!
//! Source: XXH3 by Yann Collet, <https://github.com/Cyan4973/xxHash>.

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

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

/// The hash of a whole file, fed piece by piece: XXH3 with the seed 0.
#[derive(Clone, Default)]
pub struct FileHash(Xxh3);

impl FileHash {
    /// What follows in the file.
    pub fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of what was added.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.digest()
    }
}

/// Flips each bit of the first `len` of these bytes in turn until `accept` takes them. Where a 64-bit
/// checksum covers these, what is accepted is what was written: one flipped bit is mended. Costs a call
/// for each bit, so it is for headers.
pub fn mend_one_bit<T>(
    bytes: &[u8],
    len: usize,
    mut accept: impl FnMut(&[u8]) -> Option<T>,
) -> Option<T> {
    let mut copy = bytes.to_vec();
    for at in 0..len {
        for bit in 0..8 {
            copy.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << bit);
            if let Some(accepted) = accept(&copy) {
                return Some(accepted);
            }
            copy.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << bit);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_flipped_bit_is_mended_and_two_are_not() {
        let sum = checksum(7, 0, b"header");
        let accept = |bytes: &[u8]| (checksum(7, 0, bytes) == sum).then(|| bytes.to_vec());
        assert_eq!(mend_one_bit(b"heaeer", 6, accept).as_deref(), Some(&b"header"[..]));
        assert_eq!(mend_one_bit(b"heaeeq", 6, accept), None);
        assert_eq!(mend_one_bit(b"headeq", 5, accept), None);
    }

    #[test]
    fn file_position_and_bytes_all_count() {
        let base = checksum(1, 4096, b"block");
        assert_ne!(base, checksum(2, 4096, b"block"));
        assert_ne!(base, checksum(1, 8192, b"block"));
        assert_ne!(base, checksum(1, 4096, b"blocj"));
        assert_eq!(base, checksum(1, 4096, b"block"));
    }

    #[test]
    fn the_hash_of_a_file_does_not_depend_on_its_pieces() {
        let bytes: Vec<u8> = (0..5000u32).map(|n| (n * n) as u8).collect();
        for piece in [1, 7, 255, 256, 1024, 5000] {
            let mut hash = FileHash::default();
            bytes.chunks(piece).for_each(|part| hash.add(part));
            assert_eq!(hash.value(), checksum(0, 0, &bytes));
        }
        assert_eq!(FileHash::default().value(), checksum(0, 0, b""));
    }

    #[test]
    fn known_answers_of_the_format() {
        assert_eq!(checksum(0, 0, b""), 0x2D06_8005_38D3_94C2);
        assert_eq!(uuid_salt(&[1; 16]), 0);
        assert_eq!(uuid_salt(&[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]), 3);
    }
}
