//! The keys and values of every workload, and the check that a value read is the one written.
//!
//! A record is named by an index. Its key is either the index scattered over the key space by a
//! bijection, so that rising indexes give distinct keys in random order, or the index itself, rising.
//! A value begins with a tag of its key and the version it was written as; the rest follows from
//! both, half random and half a repetition of it, so that it compresses to about half. So any value
//! can be checked without knowing what was written last.

/// Bytes of a key.
pub const KEY: usize = 16;
/// Bytes of a value in front of its filling.
const HEAD: usize = 16;
/// The smallest value that can be checked.
pub const MIN_VALUE: usize = 2 * HEAD;
/// Indexes from here on are never written: keys that are missing.
pub const MISSING: u64 = 1 << 40;

/// A bijection of 64-bit words whose output looks random (the finalizer of `SplitMix64`).
#[must_use]
pub fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Random words, fast and repeatable.
pub struct Rng(u64);

impl Rng {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Rng(mix(seed ^ 0x5eed))
    }

    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Uniform below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(bound)) >> 64) as u64
    }

    /// Uniform in 0..1.
    pub fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How indexes become keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Scattered over the key space.
    Random,
    /// In the order of the indexes.
    Rising,
}

#[must_use]
pub fn key(order: Order, index: u64) -> [u8; KEY] {
    let (high, low) = match order {
        Order::Random => {
            let high = mix(index ^ 0xa5a5_5a5a_c3c3_3c3c);
            (high, mix(high ^ 0x1234_5678_9abc_def0))
        }
        Order::Rising => (index, u64::from_be_bytes([b'0'; 8])),
    };
    let mut key = [0; KEY];
    key[..8].copy_from_slice(&high.to_be_bytes());
    key[8..].copy_from_slice(&low.to_be_bytes());
    key
}

fn word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    let take = bytes.len().min(8);
    word[..take].copy_from_slice(&bytes[..take]);
    u64::from_le_bytes(word)
}

fn tag(key: &[u8]) -> u64 {
    word(key) ^ word(&key[8..]).rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Fills `value` (at least [`MIN_VALUE`] bytes) with what `key` has in this version.
pub fn fill(key: &[u8], version: u64, value: &mut [u8]) {
    let tag = tag(key);
    value[..8].copy_from_slice(&tag.to_le_bytes());
    value[8..HEAD].copy_from_slice(&version.to_le_bytes());
    let random = (value.len() / 2).saturating_sub(HEAD).max(1);
    let mut rng = Rng::new(tag ^ version.rotate_left(40));
    let (seed, rest) = value[HEAD..].split_at_mut(random);
    for chunk in seed.chunks_mut(8) {
        chunk.copy_from_slice(&rng.word().to_le_bytes()[..chunk.len()]);
    }
    for chunk in rest.chunks_mut(random) {
        chunk.copy_from_slice(&seed[..chunk.len()]);
    }
}

/// Checks values: length and tag always, every byte of one in sixteen.
pub struct Checker {
    expected: Vec<u8>,
    turn: u32,
    previous: Option<u128>,
    /// Values looked at.
    pub seen: u64,
    /// Values that were wrong, or keys out of order.
    pub wrong: u64,
}

impl Checker {
    #[must_use]
    pub fn new(value_bytes: usize) -> Self {
        Checker { expected: vec![0; value_bytes], turn: 0, previous: None, seen: 0, wrong: 0 }
    }

    pub fn value(&mut self, key: &[u8], value: &[u8]) {
        self.seen += 1;
        self.turn = self.turn.wrapping_add(1);
        let mut right = value.len() == self.expected.len() && word(value) == tag(key);
        if right && self.turn.is_multiple_of(16) {
            fill(key, word(&value[8..]), &mut self.expected);
            right = value == self.expected;
        }
        self.wrong += u64::from(!right);
    }

    /// Begins a scan; the entries that follow must be in order.
    pub fn begin(&mut self) {
        self.previous = None;
    }

    /// One entry of a scan.
    pub fn entry(&mut self, key: &[u8], value: &[u8], reverse: bool) {
        let Ok(bytes) = <[u8; KEY]>::try_from(key) else {
            self.wrong += 1;
            return;
        };
        let now = u128::from_be_bytes(bytes);
        let ordered =
            self.previous.is_none_or(|last| if reverse { now < last } else { now > last });
        self.wrong += u64::from(!ordered);
        self.previous = Some(now);
        self.value(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn keys_are_distinct_and_scattered() {
        let keys: Vec<_> = (0..50_000).map(|i| key(Order::Random, i)).collect();
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
        let rising = keys.windows(2).filter(|w| w[0] < w[1]).count();
        assert!((24_000..26_000).contains(&rising), "{rising} of 50000 follow their index");
        for byte in 0..16 {
            let first = keys.iter().filter(|k| usize::from(k[0]) / 16 == byte).count();
            assert!((2_800..3_450).contains(&first), "{first} keys in a sixteenth of the space");
        }
    }

    #[test]
    fn rising_keys_rise() {
        assert!((1..5_000).all(|i| key(Order::Rising, i - 1) < key(Order::Rising, i)));
    }

    #[test]
    fn a_wrong_byte_is_found() {
        let key = key(Order::Random, 7);
        for len in [MIN_VALUE, 33, 100, 1024] {
            let mut value = vec![0; len];
            fill(&key, 3, &mut value);
            let mut checker = Checker::new(len);
            (0..16).for_each(|_| checker.value(&key, &value));
            assert_eq!((checker.seen, checker.wrong), (16, 0));
            checker.value(&key, &value[1..]);
            assert_eq!(checker.wrong, 1, "length");
            checker.value(&super::key(Order::Random, 8), &value);
            assert_eq!(checker.wrong, 2, "the value of another key");
            value[len - 1] ^= 1;
            (0..16).for_each(|_| checker.value(&key, &value));
            assert_eq!(checker.wrong, 3, "one in sixteen is looked at whole");
        }
    }

    #[test]
    fn a_scan_out_of_order_is_found() {
        let mut checker = Checker::new(100);
        let mut value = vec![0; 100];
        for (index, wrong) in [(1, 0), (2, 0), (2, 1), (1, 2)] {
            let key = key(Order::Rising, index);
            fill(&key, 0, &mut value);
            checker.entry(&key, &value, false);
            assert_eq!(checker.wrong, wrong);
        }
    }
}
