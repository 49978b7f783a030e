//! The keys that the benches write: sixteen bytes, in no order, each from a number.

/// Scatters numbers; one to one. (The finalizer of SplitMix64, Steele, Lea and Flood, OOPSLA 2014.)
pub fn shuffle(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The key of a number.
pub fn key(n: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&shuffle(n).to_be_bytes());
    key[8..].copy_from_slice(&n.to_be_bytes());
    key
}
