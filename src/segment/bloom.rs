//! The bloom filter of a segment: is a key surely absent? (FORMAT.md 3.5)
//!
//! The bits are those of the `bloomfilter` crate, seeded from the segment's UUID and fed the key's
//! 64-bit hash as little-endian bytes, so that they depend on neither platform nor chance. A filter
//! above 64 KiB is cut into partitions by the top bits of the hash. Decoders check the fields that
//! the crate trusts. Immutable once built, hence shared freely between threads.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::format::{LAYOUT_PARTITIONED, LAYOUT_SINGLE, PartRef, put_part_ref, read_part_refs};
use crate::coding::{Reader, put_u32, u32_at, u64_at};
use crate::error::Malformed;
use bloomfilter::Bloom;

/// Version, length, probes, two keys.
const HEADER: usize = 45;

/// One filter, or one partition of a filter.
#[derive(Debug)]
pub(crate) enum Filter {
    Bits(Bloom<u64>),
    /// It is damaged: then it excludes nothing, and the data blocks answer.
    Unusable,
}

impl Filter {
    /// Decodes a filter.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Filter, Malformed> {
        const DAMAGED: Malformed = Malformed::Damaged("the bloom filter's fields are not valid");
        match bytes.first() {
            Some(1) => {}
            Some(0) | None => return Err(DAMAGED),
            _ => return Err(Malformed::Unsupported("the bloom filter's version is not known")),
        }
        let len = u64_at(bytes, 1).ok_or(DAMAGED)?;
        let probes = u32_at(bytes, 9).ok_or(DAMAGED)?;
        if bytes.len() <= HEADER
            || len != (bytes.len() - HEADER) as u64
            || !(1..=64).contains(&probes)
        {
            return Err(DAMAGED);
        }
        Bloom::from_slice(bytes).map(Filter::Bits).map_err(|_| DAMAGED)
    }

    /// Whether a key with this hash may be there.
    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        match self {
            Filter::Bits(bloom) => bloom.check(&hash.to_le()),
            Filter::Unusable => true,
        }
    }

    /// What it occupies in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Filter>()
            + match self {
                Filter::Bits(bloom) => HEADER + (bloom.len() / 8) as usize,
                Filter::Unusable => 0,
            }
    }
}

/// The root section, decoded as far as its layout goes.
#[derive(Debug)]
pub(crate) enum FilterRoot {
    Single(Filter),
    Partitioned(Vec<PartRef>),
}

impl FilterRoot {
    /// Decodes the section *bloom filter*; `partitions_len` is the length of the section of
    /// partitions, 0 if there is none.
    pub(crate) fn decode(section: &[u8], partitions_len: u64) -> Result<FilterRoot, Malformed> {
        let mut reader = Reader::new(section);
        match reader.u8()? {
            LAYOUT_SINGLE => {
                if partitions_len != 0 {
                    return Err(Malformed::Damaged("a single bloom filter has partitions"));
                }
                Filter::decode(reader.bytes(reader.remaining())?).map(FilterRoot::Single)
            }
            LAYOUT_PARTITIONED => {
                let count = reader.u32()? as usize;
                if count < 2 || !count.is_power_of_two() {
                    return Err(Malformed::Damaged(
                        "the bloom filter's number of partitions is no power of two",
                    ));
                }
                let parts = read_part_refs(&mut reader, count, partitions_len)?;
                if !reader.is_empty() {
                    return Err(Malformed::Damaged("bytes are left behind the bloom filter"));
                }
                Ok(FilterRoot::Partitioned(parts))
            }
            _ => Err(Malformed::Unsupported("the bloom filter's layout is not known")),
        }
    }

    /// What it occupies in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            FilterRoot::Single(filter) => filter.bytes(),
            FilterRoot::Partitioned(parts) => size_of::<Self>() + size_of_val(parts.as_slice()),
        }
    }
}

/// The partition, of `count` (a power of two, at least 2), of a key with this hash.
pub(crate) fn partition_of(hash: u64, count: usize) -> usize {
    (hash >> (64 - count.trailing_zeros())) as usize
}

#[cfg_attr(not(test), expect(clippy::indexing_slicing, reason = "it writes its own bytes"))]
/// The two sections, partitions (if there are any) and root, for these hashes of distinct keys. A
/// filter of more than `limit` bytes is cut. `sum` gives the checksum of a partition at an offset
/// within the partitions section.
pub(crate) fn build(
    hashes: &[u64],
    bits_per_key: u8,
    uuid: &[u8; 16],
    limit: usize,
    sum: impl Fn(u64, &[u8]) -> u64,
) -> (Option<Vec<u8>>, Vec<u8>) {
    let mut seed = [0u8; 32];
    seed[..16].copy_from_slice(uuid);
    for (to, from) in seed[16..].iter_mut().zip(uuid) {
        *to = from ^ 0x5c;
    }
    let bytes_for = |keys: usize| (keys * usize::from(bits_per_key)).div_ceil(8).max(1);
    let empty = |keys: usize| Bloom::<u64>::new_with_seed(bytes_for(keys), keys.max(1), &seed);
    let total = HEADER + bytes_for(hashes.len());
    if total <= limit {
        let mut root = vec![LAYOUT_SINGLE];
        if let Ok(mut bloom) = empty(hashes.len()) {
            for hash in hashes {
                bloom.set(&hash.to_le());
            }
            root.extend_from_slice(bloom.as_slice());
        }
        return (None, root);
    }
    let count = total.div_ceil(limit).next_power_of_two().max(2);
    let mut keys = vec![0usize; count];
    for hash in hashes {
        keys[partition_of(*hash, count)] += 1;
    }
    let mut filters: Vec<Bloom<u64>> = keys.iter().flat_map(|keys| empty(*keys)).collect();
    for hash in hashes {
        filters[partition_of(*hash, count)].set(&hash.to_le());
    }
    let mut partitions = Vec::new();
    let mut root = vec![LAYOUT_PARTITIONED];
    put_u32(&mut root, count as u32);
    for filter in filters {
        let offset = partitions.len() as u64;
        let bytes = filter.as_slice();
        let part = PartRef { offset, len: bytes.len() as u32, checksum: sum(offset, bytes) };
        put_part_ref(&mut root, &part);
        partitions.extend_from_slice(bytes);
    }
    (Some(partitions), root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_excluded_and_few_others_pass_at_either_layout() {
        let hash = |i: u64| crate::hash::key_hash(&i.to_le_bytes(), 7);
        let hashes: Vec<u64> = (0..20_000).map(hash).collect();
        for limit in [65_536, 4096] {
            let (partitions, root) = build(&hashes, 10, &[3; 16], limit, |_, _| 0);
            let len = partitions.as_ref().map_or(0, Vec::len) as u64;
            let filters: Vec<Filter> = match FilterRoot::decode(&root, len).unwrap() {
                FilterRoot::Single(filter) => vec![filter],
                FilterRoot::Partitioned(parts) => {
                    let bytes = partitions.unwrap();
                    parts
                        .iter()
                        .map(|part| {
                            let start = part.offset as usize;
                            Filter::decode(&bytes[start..start + part.len as usize]).unwrap()
                        })
                        .collect()
                }
            };
            assert_eq!(filters.len() == 1, limit == 65_536);
            let may = |hash: u64| match filters.as_slice() {
                [filter] => filter.may_contain(hash),
                many => many[partition_of(hash, many.len())].may_contain(hash),
            };
            assert!(hashes.iter().all(|hash| may(*hash)));
            let passed = (20_000..40_000).filter(|i| may(hash(*i))).count();
            assert!(passed < 400, "{passed} of 20000 passed, 1 % expected");
        }
    }

    #[test]
    fn fields_that_the_crate_would_trust_are_refused() {
        let (_, root) = build(&[1, 2, 3], 10, &[3; 16], 65_536, |_, _| 0);
        let good = &root[1..];
        assert!(Filter::decode(good).is_ok());
        for (at, value) in [(0, 0), (1, 0), (1, 99), (9, 0), (9, 65), (10, 1)] {
            let mut bad = good.to_vec();
            bad[at] = value;
            assert!(matches!(Filter::decode(&bad), Err(Malformed::Damaged(_))), "{at} {value}");
        }
        let mut newer = good.to_vec();
        newer[0] = 2;
        assert!(matches!(Filter::decode(&newer), Err(Malformed::Unsupported(_))));
        let mut no_bits = good[..HEADER].to_vec();
        no_bits[1..9].fill(0);
        assert!(Filter::decode(&no_bits).is_err());
        assert!(Filter::decode(&good[..20]).is_err());
    }

    #[test]
    fn the_probes_are_those_that_the_format_describes() {
        // SipHash-1-3 written from its paper, to pin the crate's bytes.
        fn siphash13(key: &[u8], x: u64) -> u64 {
            let k0 = u64_at(key, 0).unwrap();
            let k1 = u64_at(key, 8).unwrap();
            let mut v = [
                k0 ^ 0x736f_6d65_7073_6575,
                k1 ^ 0x646f_7261_6e64_6f6d,
                k0 ^ 0x6c79_6765_6e65_7261,
                k1 ^ 0x7465_6462_7974_6573,
            ];
            let round = |v: &mut [u64; 4]| {
                v[0] = v[0].wrapping_add(v[1]);
                v[1] = v[1].rotate_left(13) ^ v[0];
                v[0] = v[0].rotate_left(32);
                v[2] = v[2].wrapping_add(v[3]);
                v[3] = v[3].rotate_left(16) ^ v[2];
                v[0] = v[0].wrapping_add(v[3]);
                v[3] = v[3].rotate_left(21) ^ v[0];
                v[2] = v[2].wrapping_add(v[1]);
                v[1] = v[1].rotate_left(17) ^ v[2];
                v[2] = v[2].rotate_left(32);
            };
            for word in [x, 8 << 56] {
                v[3] ^= word;
                round(&mut v);
                v[0] ^= word;
            }
            v[2] ^= 0xff;
            for _ in 0..3 {
                round(&mut v);
            }
            v[0] ^ v[1] ^ v[2] ^ v[3]
        }
        let hash = 0x0123_4567_89ab_cdef;
        let (_, root) = build(&[hash], 64, &[9; 16], 65_536, |_, _| 0);
        let filter = &root[1..];
        let m = u64_at(filter, 1).unwrap();
        let k = u64::from(u32_at(filter, 9).unwrap());
        let (a, b) = (siphash13(&filter[13..29], hash), siphash13(&filter[29..45], hash));
        let mut bits = vec![0u8; m as usize];
        for j in 0..k {
            let probe = match j {
                0 => a,
                1 => b,
                _ => a.wrapping_add(j.wrapping_mul(b)) % 0xFFFF_FFFF_FFFF_FFC5,
            };
            let bit = probe % (8 * m);
            bits[(bit / 8) as usize] |= 1 << (bit % 8);
        }
        assert_eq!(bits, &filter[45..]);
    }
}
