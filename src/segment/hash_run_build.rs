//! Builds the hash run of a segment from the hashes and pages of its keys (FORMAT.md 3.9).
//!
//! Called by the segment writer when it finishes; one thread. The entries are packed into a `u64`
//! each, `h40 << 16 | page`, so that sorting is sorting integers: one pass scatters them by their
//! top 8 bits, then each slice, which fits the processor's cache, is sorted by itself. Memory: two
//! words an entry while they are scattered, then one word and the finished bytes.

use super::format::{LAYOUT_PARTITIONED, LAYOUT_SINGLE, PartRef, put_part_ref};
use super::hash_run::{HEADER, MAX_DIR_BITS, MAX_ENTRIES, PARTITIONS, Scope, Shape};
use crate::coding::{put_u16, put_u32};

/// The most entries that stay in one partition.
pub(super) const SINGLE_MAX: usize = 4096;
/// Directory bits are chosen for about so many entries a bucket.
const BUCKET: usize = 8;
/// A directory of so many times the buckets may pay, because each entry then has a byte less.
const EXTRA_DIR_BITS: u32 = 3;

/// The sections of a hash run.
pub(super) struct HashSections {
    pub(super) root: Vec<u8>,
    pub(super) partitions: Option<Vec<u8>>,
}

/// The sections for these entries, `h40 << 16 | page` each, in any order; 256 partitions if there
/// are more than `single_max`. `sum` gives the checksum of a partition at an offset within the
/// partitions section. `None` if a partition would have more than 65,535 entries. Takes about
/// 25 ns an entry.
pub(super) fn build(
    entries: Vec<u64>,
    single_max: usize,
    sum: impl Fn(u64, &[u8]) -> u64,
) -> Option<HashSections> {
    let (mut sorted, ends) = scatter(&entries);
    let total = entries.len();
    drop(entries);
    let mut start = 0;
    for end in ends {
        sorted[start..end].sort_unstable();
        start = end;
    }
    if total <= single_max.min(MAX_ENTRIES) {
        let mut root = vec![LAYOUT_SINGLE];
        encode(&sorted, dir_bits(total, Scope::All), Scope::All, &mut root);
        return Some(HashSections { root, partitions: None });
    }
    let mut root = vec![LAYOUT_PARTITIONED];
    put_u32(&mut root, PARTITIONS as u32);
    let mut partitions = Vec::with_capacity(total * 11 / 2 + PARTITIONS * 32);
    let mut start = 0;
    for (slice, end) in (0..=u8::MAX).zip(ends) {
        if end - start > MAX_ENTRIES {
            return None;
        }
        let (offset, scope) = (partitions.len(), Scope::Slice(slice));
        encode(&sorted[start..end], dir_bits(end - start, scope), scope, &mut partitions);
        let bytes = &partitions[offset..];
        let checksum = sum(offset as u64, bytes);
        let part = PartRef { offset: offset as u64, len: bytes.len() as u32, checksum };
        put_part_ref(&mut root, &part);
        start = end;
    }
    Some(HashSections { root, partitions: Some(partitions) })
}

/// The entries grouped by the top 8 bits of their hashes, and where each group ends.
fn scatter(entries: &[u64]) -> (Vec<u64>, [usize; PARTITIONS]) {
    let slice = |entry: u64| (entry >> 48) as u8 as usize;
    let mut next = [0usize; PARTITIONS];
    for entry in entries {
        next[slice(*entry)] += 1;
    }
    let mut sum = 0;
    for count in &mut next {
        sum += std::mem::replace(count, sum);
    }
    let mut out = vec![0; entries.len()];
    for entry in entries {
        let at = &mut next[slice(*entry)];
        out[*at] = *entry;
        *at += 1;
    }
    (out, next)
}

/// The directory bits that make the partition smallest, for 4 to 16 entries a bucket or fewer.
fn dir_bits(entries: usize, scope: Scope) -> u32 {
    let least = (entries / BUCKET).max(1).ilog2();
    let choices = least..=(least + EXTRA_DIR_BITS).min(MAX_DIR_BITS);
    choices.min_by_key(|bits| Shape::new(entries, *bits, scope).len).unwrap_or(least)
}

/// Appends a partition of these entries, sorted, at most 65,535.
pub(super) fn encode(entries: &[u64], dir_bits: u32, scope: Scope, out: &mut Vec<u8>) {
    let shape = Shape::new(entries.len(), dir_bits, scope);
    let start = out.len();
    out.reserve(shape.len);
    put_u16(out, entries.len() as u16);
    put_u16(out, shape.dir_bits as u16);
    let bucket_at = shape.low_bits + 16 + 16;
    let buckets = 1usize << shape.dir_bits;
    let mut at = 0;
    for bucket in 0..buckets {
        while entries.get(at).is_some_and(|e| (e >> bucket_at) as usize & (buckets - 1) == bucket) {
            at += 1;
        }
        put_u16(out, at as u16);
    }
    for entry in entries {
        put_u16(out, (entry >> (shape.low_bits + 16)) as u16);
    }
    let low_mask = (1u64 << shape.low_bits) - 1;
    for entry in entries {
        let low = entry >> 16 & low_mask;
        out.extend_from_slice(&low.to_le_bytes()[..shape.low_len]);
    }
    for entry in entries {
        put_u16(out, *entry as u16);
    }
    debug_assert_eq!(out.len() - start, shape.len);
    debug_assert!(out.len() - start > HEADER);
}
