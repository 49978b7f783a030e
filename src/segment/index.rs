//! The block index: which block can hold a key (FORMAT.md 3.4).
//!
//! Each block has a separator, at or above its keys and below those of the next block; the first
//! block whose separator is not below a key is the first that can hold it. A search compares
//! 8-byte prefixes of the separators (after the prefix common to all) and looks at whole
//! separators only for ties. An index above 64 KiB is cut into partitions under a top level.
//!
//! A partition stays as read, one shared buffer, checked once; the accessors are total. Immutable.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::format::{
    LAYOUT_PARTITIONED, LAYOUT_SINGLE, PartRef, common_prefix_len, prefix_of, put_part_ref,
    read_part_refs,
};
use crate::coding::{Reader, put_u16, put_u32, put_u64, u16_at, u32_at, u64_at};
use crate::error::Malformed;
use crate::types::PAGE;
use bytes::Bytes;
use std::cmp::Ordering;
use std::hint::select_unpredictable;
use std::sync::Arc;

/// Where a data block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handle {
    pub(crate) first_page: u32,
    pub(crate) pages: u32,
    pub(crate) entries: u16,
}

impl Handle {
    /// Its offset in the file.
    pub(crate) fn offset(&self) -> u64 {
        u64::from(self.first_page) * PAGE as u64
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> u64 {
        u64::from(self.pages) * PAGE as u64
    }
}

/// The index of adjacent blocks (or, as a top level, of adjacent partitions).
#[derive(Debug)]
pub(crate) struct IndexPartition {
    bytes: Bytes,
    blocks: usize,
    common: usize,
    prefixes: usize,
    pages: usize,
    counts: usize,
    tail_offsets: usize,
    tails: usize,
}

const SHORT: Malformed = Malformed::Damaged("the block index ends too early");

impl IndexPartition {
    /// Decodes and checks a partition.
    pub(crate) fn decode(bytes: Bytes) -> Result<IndexPartition, Malformed> {
        let blocks = u32_at(&bytes, 0).ok_or(SHORT)? as usize;
        let common = usize::from(u16_at(&bytes, 4).ok_or(SHORT)?);
        if u16_at(&bytes, 6).ok_or(SHORT)? != 0 {
            return Err(Malformed::Damaged("a reserved field of the block index is not zero"));
        }
        // A block takes 18 bytes at least, so this bounds everything computed below.
        if blocks == 0 || blocks > bytes.len() / 18 {
            return Err(Malformed::Damaged("the block index does not fit its count"));
        }
        let prefixes = 8 + common;
        let pages = prefixes + 8 * blocks;
        let counts = pages + 4 * (blocks + 1);
        let tail_offsets = counts + 2 * blocks;
        let tails = tail_offsets + 4 * (blocks + 1);
        let index =
            IndexPartition { bytes, blocks, common, prefixes, pages, counts, tail_offsets, tails };
        index.check()?;
        Ok(index)
    }

    fn check(&self) -> Result<(), Malformed> {
        let tail_bytes = self.bytes.len().checked_sub(self.tails).ok_or(SHORT)?;
        let tail_offset = |i: usize| u32_at(&self.bytes, self.tail_offsets + 4 * i);
        if tail_offset(0) != Some(0)
            || tail_offset(self.blocks).map(|end| end as usize) != Some(tail_bytes)
        {
            return Err(Malformed::Damaged("the block index's separators do not fill it"));
        }
        let mut before: &[u8] = &[];
        for i in 0..self.blocks {
            if self.page(i) >= self.page(i + 1) {
                return Err(Malformed::Damaged("the block index's pages do not rise"));
            }
            if tail_offset(i) > tail_offset(i + 1) {
                return Err(Malformed::Damaged("the block index's separators overlap"));
            }
            let tail = self.tail(i);
            if tail < before {
                return Err(Malformed::Damaged("the block index's separators are out of order"));
            }
            if self.prefix(i) != prefix_of(tail, 8) {
                return Err(Malformed::Damaged("a prefix in the block index is wrong"));
            }
            before = tail;
        }
        Ok(())
    }

    /// How many blocks it covers; at least one.
    pub(crate) fn len(&self) -> usize {
        self.blocks
    }

    /// What it occupies in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len() + size_of::<IndexPartition>()
    }

    fn page(&self, i: usize) -> u32 {
        u32_at(&self.bytes, self.pages + 4 * i).unwrap_or_default()
    }

    /// The page of its first block, and that after its last.
    pub(crate) fn page_range(&self) -> (u32, u32) {
        (self.page(0), self.page(self.blocks))
    }

    fn prefixes(&self) -> &[[u8; 8]] {
        let bytes = self.bytes.get(self.prefixes..self.prefixes + 8 * self.blocks);
        bytes.unwrap_or_default().as_chunks().0
    }

    fn prefix(&self, i: usize) -> u64 {
        u64_at(&self.bytes, self.prefixes + 8 * i).unwrap_or_default()
    }

    fn tail(&self, i: usize) -> &[u8] {
        let at =
            |i: usize| Some(self.tails + u32_at(&self.bytes, self.tail_offsets + 4 * i)? as usize);
        match (at(i), at(i + 1)) {
            (Some(start), Some(end)) if i < self.blocks => {
                self.bytes.get(start..end).unwrap_or_default()
            }
            _ => &[],
        }
    }

    fn common(&self) -> &[u8] {
        self.bytes.get(8..8 + self.common).unwrap_or_default()
    }

    /// The separator of block `i`.
    pub(crate) fn separator(&self, i: usize) -> Vec<u8> {
        [self.common(), self.tail(i)].concat()
    }

    /// How the separator of block `i` compares to a key.
    pub(crate) fn cmp_separator(&self, i: usize, key: &[u8]) -> Ordering {
        let (head, rest) = key.split_at(self.common.min(key.len()));
        self.common().cmp(head).then_with(|| self.tail(i).cmp(rest))
    }

    /// Block `i`, if there is one.
    pub(crate) fn block(&self, i: usize) -> Option<Handle> {
        if i >= self.blocks {
            return None;
        }
        let first_page = self.page(i);
        let pages = self.page(i + 1).checked_sub(first_page)?;
        Some(Handle { first_page, pages, entries: u16_at(&self.bytes, self.counts + 2 * i)? })
    }

    /// The first block whose separator is at or after `key` (with `after`: after `key`); the number
    /// of blocks if there is none.
    pub(crate) fn find(&self, key: &[u8], after: bool) -> usize {
        let (head, rest) = key.split_at(self.common.min(key.len()));
        match head.cmp(self.common()) {
            Ordering::Less => return 0,
            Ordering::Greater => return self.blocks,
            Ordering::Equal => {}
        }
        let target = match rest.first_chunk() {
            Some(first) => u64::from_be_bytes(*first),
            None => prefix_of(rest, 8),
        };
        let mut low = lower_bound(self.prefixes(), target);
        if low == self.blocks || self.prefix(low) != target {
            return low;
        }
        // Ties: the separators of one prefix, in order of their tails.
        let behind = target.checked_add(1);
        let mut high = behind.map_or(self.blocks, |next| lower_bound(self.prefixes(), next));
        while low < high {
            let middle = low + (high - low) / 2;
            let order = self.tail(middle).cmp(rest);
            if order == Ordering::Less || (after && order == Ordering::Equal) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// The first of these rising numbers that is not below `target`; how many there are if all are. Every
/// search takes the same steps, without a branch that depends on the numbers.
fn lower_bound(prefixes: &[[u8; 8]], target: u64) -> usize {
    let is_below =
        |at: usize| prefixes.get(at).is_some_and(|prefix| u64::from_le_bytes(*prefix) < target);
    let (mut from, mut len) = (0, prefixes.len());
    while len > 1 {
        let half = len / 2;
        from = select_unpredictable(is_below(from + half - 1), from + half, from);
        len -= half;
    }
    from + usize::from(is_below(from))
}

/// The top level of a partitioned index.
#[derive(Debug)]
pub(crate) struct TopLevel {
    parts: Vec<PartRef>,
    index: IndexPartition,
}

impl TopLevel {
    /// Decodes a top level over a partitions section of this length.
    pub(crate) fn decode(bytes: &Bytes, section_len: u64) -> Result<TopLevel, Malformed> {
        let mut reader = Reader::new(bytes);
        let count = reader.u32()? as usize;
        let parts = read_part_refs(&mut reader, count, section_len)?;
        let index = IndexPartition::decode(bytes.slice(reader.position()..))?;
        if index.len() != parts.len() || parts.is_empty() {
            return Err(Malformed::Damaged("the index's top level does not fit its count"));
        }
        if (0..index.len()).any(|i| index.block(i).is_none_or(|block| block.entries != 0)) {
            return Err(Malformed::Damaged("the index's top level counts entries"));
        }
        Ok(TopLevel { parts, index })
    }

    /// How many partitions there are; at least one.
    pub(crate) fn len(&self) -> usize {
        self.parts.len()
    }

    /// Partition `i`.
    pub(crate) fn part(&self, i: usize) -> Option<PartRef> {
        self.parts.get(i).copied()
    }

    /// One "block" for each partition.
    pub(crate) fn index(&self) -> &IndexPartition {
        &self.index
    }

    /// What it occupies in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.index.bytes() + self.parts.len() * size_of::<PartRef>()
    }

    /// Checks that partition `i`, once loaded, is the one that this level describes.
    pub(crate) fn check_part(&self, i: usize, part: &IndexPartition) -> Result<(), Malformed> {
        let pages = self.index.block(i).map(|b| (b.first_page, b.first_page + b.pages));
        if pages != Some(part.page_range())
            || self.index.separator(i) != part.separator(part.len() - 1)
        {
            return Err(Malformed::Damaged("a partition of the block index does not fit in"));
        }
        Ok(())
    }
}

/// The root section, decoded as far as its layout goes.
#[derive(Debug)]
pub(crate) enum IndexRoot {
    Single(Arc<IndexPartition>),
    Partitioned(TopLevel),
}

impl IndexRoot {
    /// Decodes the section *block index*; `partitions_len` is the length of the section of
    /// partitions, 0 if there is none; `end_page` the page after the last block.
    pub(crate) fn decode(
        section: &Bytes,
        partitions_len: u64,
        end_page: u64,
    ) -> Result<IndexRoot, Malformed> {
        let layout = *section.first().ok_or(SHORT)?;
        let body = section.slice(1..);
        let (root, range) = match layout {
            LAYOUT_SINGLE => {
                if partitions_len != 0 {
                    return Err(Malformed::Damaged("a single block index has partitions"));
                }
                let index = IndexPartition::decode(body)?;
                let range = index.page_range();
                (IndexRoot::Single(Arc::new(index)), range)
            }
            LAYOUT_PARTITIONED => {
                let top = TopLevel::decode(&body, partitions_len)?;
                let range = top.index.page_range();
                (IndexRoot::Partitioned(top), range)
            }
            _ => return Err(Malformed::Unsupported("the block index's layout is not known")),
        };
        if range.0 != 0 || u64::from(range.1) != end_page {
            return Err(Malformed::Damaged("the block index does not cover the data blocks"));
        }
        Ok(root)
    }
}

/// Collects the index while a segment is written.
#[derive(Debug, Default)]
pub(crate) struct IndexBuilder {
    separators: Vec<u8>,
    ends: Vec<usize>,
    pages: Vec<u32>,
    counts: Vec<u16>,
}

#[cfg_attr(not(test), expect(clippy::indexing_slicing, reason = "it writes its own bytes"))]
impl IndexBuilder {
    /// Adds a block; its separator follows by [`separator`](Self::separator).
    pub(crate) fn block(&mut self, first_page: u32, entries: u16) {
        self.pages.push(first_page);
        self.counts.push(entries);
    }

    /// The separator of the block added last.
    pub(crate) fn separator(&mut self, separator: &[u8]) {
        self.separators.extend_from_slice(separator);
        self.ends.push(self.separators.len());
    }

    /// How many blocks were added.
    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }

    fn sep(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.separators[start..self.ends[i]]
    }

    /// The encoded length of a partition of blocks `from..to`.
    fn partition_len(&self, from: usize, to: usize) -> usize {
        let n = to - from;
        let common = common_prefix_len(self.sep(from), self.sep(to - 1));
        let start = if from == 0 { 0 } else { self.ends[from - 1] };
        16 + common + 18 * n + (self.ends[to - 1] - start) - common * n
    }

    /// The two sections: partitions (if there are any) and root. `end_page` is the page after the
    /// last block; a single partition of more than `limit` bytes is cut. `sum` gives the checksum
    /// of a partition at an offset within the partitions section.
    pub(crate) fn finish(
        &self,
        end_page: u32,
        limit: usize,
        sum: impl Fn(u64, &[u8]) -> u64,
    ) -> (Option<Vec<u8>>, Vec<u8>) {
        let n = self.len();
        if self.partition_len(0, n) <= limit {
            let mut root = vec![LAYOUT_SINGLE];
            let seps: Vec<&[u8]> = (0..n).map(|i| self.sep(i)).collect();
            encode_partition(&mut root, &seps, &self.pages, end_page, &self.counts);
            return (None, root);
        }
        let mut partitions = Vec::new();
        let (mut refs, mut tops, mut firsts) = (Vec::new(), Vec::new(), Vec::new());
        let mut from = 0;
        while from < n {
            let mut to = from + 1;
            while to < n && self.partition_len(from, to + 1) <= limit {
                to += 1;
            }
            let start = partitions.len();
            let seps: Vec<&[u8]> = (from..to).map(|i| self.sep(i)).collect();
            let end = self.pages.get(to).copied().unwrap_or(end_page);
            encode_partition(
                &mut partitions,
                &seps,
                &self.pages[from..to],
                end,
                &self.counts[from..to],
            );
            let bytes = &partitions[start..];
            refs.push(PartRef {
                offset: start as u64,
                len: bytes.len() as u32,
                checksum: sum(start as u64, bytes),
            });
            tops.push(self.sep(to - 1));
            firsts.push(self.pages[from]);
            from = to;
        }
        let mut root = vec![LAYOUT_PARTITIONED];
        put_u32(&mut root, refs.len() as u32);
        for part in &refs {
            put_part_ref(&mut root, part);
        }
        encode_partition(&mut root, &tops, &firsts, end_page, &vec![0; refs.len()]);
        (Some(partitions), root)
    }
}

#[cfg_attr(not(test), expect(clippy::indexing_slicing, reason = "it writes its own bytes"))]
fn encode_partition(
    out: &mut Vec<u8>,
    separators: &[&[u8]],
    pages: &[u32],
    end_page: u32,
    counts: &[u16],
) {
    let first = separators.first().copied().unwrap_or_default();
    let last = separators.last().copied().unwrap_or_default();
    let common = common_prefix_len(first, last).min(usize::from(u16::MAX));
    put_u32(out, separators.len() as u32);
    put_u16(out, common as u16);
    put_u16(out, 0);
    out.extend_from_slice(&first[..common]);
    for separator in separators {
        put_u64(out, prefix_of(&separator[common..], 8));
    }
    for page in pages {
        put_u32(out, *page);
    }
    put_u32(out, end_page);
    for count in counts {
        put_u16(out, *count);
    }
    let mut end = 0u32;
    put_u32(out, end);
    for separator in separators {
        end += (separator.len() - common) as u32;
        put_u32(out, end);
    }
    for separator in separators {
        out.extend_from_slice(&separator[common..]);
    }
}

#[cfg_attr(not(test), expect(clippy::indexing_slicing, reason = "it writes its own bytes"))]
/// The shortest string `s` with `last ≤ s < first`; `last` itself if the two are equal.
pub(crate) fn shortest_separator(last: &[u8], first: &[u8]) -> Vec<u8> {
    let shared = common_prefix_len(last, first);
    let (Some(low), Some(high)) = (last.get(shared), first.get(shared)) else {
        return last.to_vec();
    };
    if last.len() == shared + 1 {
        return last.to_vec();
    }
    // One byte more than the shared prefix is the least that can work: `low + 1` if that is still
    // below `high`, or else `high` itself, if `first` goes on behind it.
    if low + 1 < *high || first.len() > shared + 1 {
        let mut separator = last[..shared].to_vec();
        separator.push(low + 1);
        return separator;
    }
    // Otherwise keep `low` and raise the first byte behind it that can be raised.
    match last.iter().skip(shared + 1).position(|byte| *byte != 0xff) {
        Some(at) => {
            let mut separator = last[..=shared + 1 + at].to_vec();
            if separator.len() < last.len()
                && let Some(byte) = separator.last_mut()
            {
                *byte += 1;
            }
            separator
        }
        None => last.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_are_between_and_no_longer_than_either_needs() {
        let alphabet = [0u8, 1, 2, 0xfe, 0xff];
        let mut strings: Vec<Vec<u8>> = vec![vec![]];
        for _ in 0..4 {
            let longer: Vec<Vec<u8>> = strings
                .iter()
                .flat_map(|s| alphabet.iter().map(move |b| [s.as_slice(), &[*b]].concat()))
                .collect();
            strings.extend(longer);
            strings.sort();
            strings.dedup();
        }
        for (i, a) in strings.iter().enumerate().step_by(7) {
            for b in &strings[i..] {
                let s = shortest_separator(a, b);
                assert!(a <= &s && (&s < b || a == b), "{a:?} {s:?} {b:?}");
                let shorter = strings.iter().any(|c| c.len() < s.len() && a <= c && c < b);
                assert!(!shorter, "{s:?} is not the shortest between {a:?} and {b:?}");
            }
        }
    }

    #[test]
    fn a_search_agrees_with_the_separators_also_outside_their_common_prefix() {
        let mut builder = IndexBuilder::default();
        let separators: Vec<Vec<u8>> = [
            &b"common/a"[..],
            b"common/a\0",
            b"common/aaaaaaaab",
            b"common/aaaaaaaac",
            b"common/b",
            b"common/b",
            b"common/zz",
        ]
        .iter()
        .map(|s| s.to_vec())
        .collect();
        for (i, separator) in separators.iter().enumerate() {
            builder.block(i as u32 * 2, 5);
            builder.separator(separator);
        }
        let (none, root) = builder.finish(14, 65_536, |_, _| 0);
        assert!(none.is_none());
        let Ok(IndexRoot::Single(index)) = IndexRoot::decode(&Bytes::from(root), 0, 14) else {
            panic!("a single partition was written");
        };
        let mut probes = separators.clone();
        for s in &separators {
            probes.push([s.as_slice(), b"\0"].concat());
            probes.push(s[..s.len() - 1].to_vec());
        }
        for probe in ["", "c", "common", "common/", "comnon", "d", "a", "common/aaaaaaaabzzz"] {
            probes.push(probe.as_bytes().to_vec());
        }
        for probe in probes {
            assert_eq!(index.find(&probe, false), separators.partition_point(|s| *s < probe));
            assert_eq!(index.find(&probe, true), separators.partition_point(|s| *s <= probe));
        }
        assert_eq!(index.block(6), Some(Handle { first_page: 12, pages: 2, entries: 5 }));
        assert_eq!(index.block(7), None);
        assert_eq!(index.separator(2), b"common/aaaaaaaab");
    }
}
