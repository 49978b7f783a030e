//! The hash run of a segment: from a key's hash to the page of its newest version (FORMAT.md 3.9).
//!
//! ```text
//! partition   n p 0 | dir: 2^p counts | r16: n × u16 | rlo: n × k bytes | pages: n × u16
//! h40         [8 bits, if there are 256 partitions][p bits][16 bits][the rest, rounded up to k bytes]
//! ```
//!
//! One entry for each distinct key, sorted by the top 40 bits of its hash, then by page. Several
//! keys may share 40 bits, so a probe gives a range of entries and the caller compares whole keys.
//! A run of few keys is one partition, a longer one 256. Decoding checks the order, every count and
//! every page once; accessors are total all the same. Immutable, hence shared freely between
//! threads. Built by the segment writer ([`build`](super::hash_run_build::build)); read by point
//! lookups, by `verify`, and slice by slice for whoever rebuilds a map of hashes.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::format::{LAYOUT_PARTITIONED, LAYOUT_SINGLE, PartRef, read_part_refs};
use crate::coding::{Reader, u16_at, u32_at};
use crate::error::Malformed;
use bytes::Bytes;
use std::ops::Range;

/// Partitions of a run that is cut.
pub(crate) const PARTITIONS: usize = 256;
/// The most entries of a partition: counts are 16 bits wide.
pub(crate) const MAX_ENTRIES: usize = 65_535;
/// The most leading bits that index the directory.
pub(super) const MAX_DIR_BITS: u32 = 16;
/// Entry count, directory bits, reserved.
pub(super) const HEADER: usize = 4;
/// A probe narrows a bucket down to so many entries by bisection.
const SCAN_MAX: usize = 16;

const DAMAGED: Malformed = Malformed::Damaged("the hash run's fields are not valid");
const SHORT: Malformed = Malformed::Damaged("a hash run is not as long as its counts say");

/// The bits of a hash that a hash run keeps.
pub(crate) fn h40(hash: u64) -> u64 {
    hash >> 24
}

/// The slice, and in a run of 256 the partition, of a hash.
pub(crate) fn slice_of(h40: u64) -> u8 {
    (h40 >> 32) as u8
}

/// Which hashes a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All.
    All,
    /// Those whose top 8 bits are this.
    Slice(u8),
}

impl Scope {
    fn bits(self) -> u32 {
        if let Scope::Slice(_) = self { 8 } else { 0 }
    }

    /// The first 40-bit hash of the scope.
    fn base(self) -> u64 {
        if let Scope::Slice(slice) = self { u64::from(slice) << 32 } else { 0 }
    }
}

/// Where the arrays of a partition lie in its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) entries: usize,
    pub(super) dir_bits: u32,
    /// Bits of a hash that neither partition, directory nor `r16` hold.
    pub(super) low_bits: u32,
    /// Bytes that those take.
    pub(super) low_len: usize,
    high_at: usize,
    low_at: usize,
    pages_at: usize,
    pub(super) len: usize,
}

impl Shape {
    /// The shape for `entries` up to 65,535 and `dir_bits` up to 16.
    pub(super) fn new(entries: usize, dir_bits: u32, scope: Scope) -> Shape {
        let low_bits = 24u32.saturating_sub(scope.bits() + dir_bits);
        let low_len = low_bits.div_ceil(8) as usize;
        let high_at = HEADER + (2 << dir_bits);
        let low_at = high_at + 2 * entries;
        let pages_at = low_at + low_len * entries;
        let len = pages_at + 2 * entries;
        Shape { entries, dir_bits, low_bits, low_len, high_at, low_at, pages_at, len }
    }

    /// The shape of these bytes, which are then as long as it says.
    fn read(bytes: &[u8], scope: Scope) -> Result<Shape, Malformed> {
        let head = u32_at(bytes, 0).ok_or(SHORT)?;
        let (entries, dir_bits, reserved) = (head & 0xffff, head >> 16 & 0xff, head >> 24);
        if reserved != 0 || dir_bits > MAX_DIR_BITS {
            return Err(DAMAGED);
        }
        let shape = Shape::new(entries as usize, dir_bits, scope);
        if bytes.len() != shape.len {
            return Err(SHORT);
        }
        Ok(shape)
    }
}

/// Checks a partition and hands out its entries, rising: 40-bit hash and page. `pages` is how many
/// pages the data blocks have.
pub(crate) fn read_entries(
    bytes: &[u8],
    scope: Scope,
    pages: u64,
    sink: impl FnMut(u64, u16),
) -> Result<(), Malformed> {
    let shape = Shape::read(bytes, scope)?;
    let low = bytes.get(shape.low_at..shape.pages_at).ok_or(SHORT)?;
    // One copy of the loop for each width of the low bytes.
    match shape.low_len {
        0 => walk(bytes, shape, scope, pages, std::iter::repeat(0), sink),
        1 => walk(bytes, shape, scope, pages, low.iter().map(|byte| u64::from(*byte)), sink),
        2 => {
            let low = low.as_chunks::<2>().0.iter().map(|b| u64::from(u16::from_le_bytes(*b)));
            walk(bytes, shape, scope, pages, low, sink)
        }
        _ => {
            let low = low.as_chunks::<3>().0.iter();
            let low = low.map(|[a, b, c]| u64::from(u32::from_le_bytes([*a, *b, *c, 0])));
            walk(bytes, shape, scope, pages, low, sink)
        }
    }
}

fn walk(
    bytes: &[u8],
    shape: Shape,
    scope: Scope,
    pages: u64,
    low: impl Iterator<Item = u64>,
    mut sink: impl FnMut(u64, u16),
) -> Result<(), Malformed> {
    let u16s = |range: Range<usize>| -> Result<&[[u8; 2]], Malformed> {
        Ok(bytes.get(range).ok_or(SHORT)?.as_chunks::<2>().0)
    };
    let dir = u16s(HEADER..shape.high_at)?;
    let high = u16s(shape.high_at..shape.low_at)?;
    let page = u16s(shape.pages_at..shape.len)?;
    let mut rows = high.iter().zip(low).zip(page);
    let (mut bucket, mut start, mut before) = (scope.base(), 0u16, 0u64);
    let step = 1u64 << (shape.low_bits + 16);
    for end in dir {
        let end = u16::from_le_bytes(*end);
        let count = end
            .checked_sub(start)
            .ok_or(Malformed::Damaged("the counts of a hash run's directory fall"))?;
        start = end;
        for _ in 0..count {
            let Some(((high, low), page)) = rows.next() else { return Err(DAMAGED) };
            if low >> shape.low_bits != 0 {
                return Err(Malformed::Damaged("an unused bit of a hash run is set"));
            }
            let hash = bucket | u64::from(u16::from_le_bytes(*high)) << shape.low_bits | low;
            let page = u16::from_le_bytes(*page);
            let entry = hash << 16 | u64::from(page);
            if entry < before {
                return Err(Malformed::Damaged("the entries of a hash run are out of order"));
            }
            if u64::from(page) >= pages {
                return Err(Malformed::Damaged("a hash run names a page behind the data blocks"));
            }
            before = entry;
            sink(hash, page);
        }
        bucket += step;
    }
    if rows.next().is_some() {
        return Err(Malformed::Damaged("a hash run's directory leaves entries out"));
    }
    Ok(())
}

/// A partition, checked, as point lookups use it.
#[derive(Debug)]
pub(crate) struct HashPartition {
    bytes: Bytes,
    shape: Shape,
}

impl HashPartition {
    /// Checks all of a partition. Costs a pass over its entries.
    pub(crate) fn decode(
        bytes: Bytes,
        scope: Scope,
        pages: u64,
    ) -> Result<HashPartition, Malformed> {
        read_entries(&bytes, scope, pages, |_, _| {})?;
        let shape = Shape::read(&bytes, scope)?;
        Ok(HashPartition { bytes, shape })
    }

    fn high(&self, i: usize) -> u16 {
        u16_at(&self.bytes, self.shape.high_at + 2 * i).unwrap_or_default()
    }

    fn low(&self, i: usize) -> u64 {
        let at = self.shape.low_at + self.shape.low_len * i;
        let bytes = self.bytes.get(at..at + self.shape.low_len).unwrap_or_default();
        bytes.iter().rev().fold(0, |low, byte| low << 8 | u64::from(*byte))
    }

    /// The page of entry `i`; 0 if there is none.
    pub(crate) fn page(&self, i: usize) -> u16 {
        u16_at(&self.bytes, self.shape.pages_at + 2 * i).unwrap_or_default()
    }

    /// The entries of the keys with this hash, which is one of the partition's scope; their pages
    /// rise, and may repeat.
    pub(crate) fn probe(&self, h40: u64) -> Range<usize> {
        let Shape { dir_bits, low_bits, entries, .. } = self.shape;
        let bucket = (h40 >> (low_bits + 16)) as usize & ((1 << dir_bits) - 1);
        let count = |bucket: usize| u16_at(&self.bytes, HEADER + 2 * bucket).map(usize::from);
        let end = count(bucket).unwrap_or_default().min(entries);
        let start = bucket.checked_sub(1).and_then(count).unwrap_or_default();
        let wanted = ((h40 >> low_bits) as u16, h40 & ((1 << low_bits) - 1));
        let (mut first, mut above) = (start, end);
        while above.saturating_sub(first) > SCAN_MAX {
            let middle = first + (above - first) / 2;
            let below = (self.high(middle), self.low(middle)) < wanted;
            if below { first = middle + 1 } else { above = middle }
        }
        let matches = |i: usize| self.high(i) == wanted.0 && self.low(i) == wanted.1;
        // What was passed over is below; the match, if any, starts at `above` at the latest.
        let Some(first) = (first..end.min(above + 1)).find(|i| matches(*i)) else {
            return 0..0;
        };
        let last = (first..end).find(|i| !matches(*i)).unwrap_or(end);
        first..last
    }

    /// What it occupies in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<HashPartition>() + self.bytes.len()
    }
}

/// The section *hash run*, decoded as far as its layout goes.
#[derive(Debug)]
pub(crate) enum HashRoot {
    Single(HashPartition),
    /// 256 of them.
    Partitioned(Vec<PartRef>),
    /// It is damaged or of a later version: then bloom filter and block index serve.
    Unusable,
}

/// The section *hash run*, its single partition not yet looked at.
#[derive(Debug)]
pub(crate) enum HashLayout {
    Single(Bytes),
    Partitioned(Vec<PartRef>),
}

impl HashLayout {
    /// Decodes the section; `partitions_len` is the length of the section of partitions, 0 if there
    /// is none.
    pub(crate) fn decode(section: &Bytes, partitions_len: u64) -> Result<HashLayout, Malformed> {
        let mut reader = Reader::new(section);
        match reader.u8()? {
            LAYOUT_SINGLE => {
                if partitions_len != 0 {
                    return Err(Malformed::Damaged("a single hash run has partitions"));
                }
                Ok(HashLayout::Single(section.slice(reader.position()..)))
            }
            LAYOUT_PARTITIONED => {
                if reader.u32()? as usize != PARTITIONS {
                    return Err(Malformed::Damaged("a hash run has not 256 partitions"));
                }
                let parts = read_part_refs(&mut reader, PARTITIONS, partitions_len)?;
                if !reader.is_empty() {
                    return Err(Malformed::Damaged("bytes are left behind the hash run"));
                }
                Ok(HashLayout::Partitioned(parts))
            }
            _ => Err(Malformed::Unsupported("the hash run's layout is not known")),
        }
    }
}

impl HashRoot {
    /// The same, a single partition checked, for point lookups.
    pub(crate) fn decode(
        section: &Bytes,
        partitions_len: u64,
        pages: u64,
    ) -> Result<HashRoot, Malformed> {
        Ok(match HashLayout::decode(section, partitions_len)? {
            HashLayout::Single(bytes) => {
                HashRoot::Single(HashPartition::decode(bytes, Scope::All, pages)?)
            }
            HashLayout::Partitioned(parts) => HashRoot::Partitioned(parts),
        })
    }

    /// What it occupies in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<HashRoot>()
            + match self {
                HashRoot::Single(partition) => partition.bytes(),
                HashRoot::Partitioned(parts) => size_of_val(parts.as_slice()),
                HashRoot::Unusable => 0,
            }
    }
}
