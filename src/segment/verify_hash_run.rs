//! Verifies a hash run against the keys that the data blocks hold.
//!
//! The verifier notes hash and page of each distinct key as it reads the blocks; here the notes are
//! sorted and held against the run, partition by partition. Memory: 8 bytes a key and one
//! partition. Called by `verify` alone.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::format::{PartRef, SECTION_HASH_RUN, SECTION_HASH_RUN_PARTITIONS};
use super::hash_run::{HashLayout, Scope, h40, read_entries};
use super::reader::SegmentReader;
use crate::error::{Error, Result};

/// What the data blocks say that the hash run should hold.
pub(super) struct HashNotes {
    /// `h40 << 16 | page` of each distinct key.
    entries: Vec<u64>,
    wanted: bool,
    /// A key starts where no hash run can say so.
    beyond: bool,
}

/// Something that is wrong with a hash run: the error of the part that was read, or a difference
/// between the run as a whole and the blocks.
pub(super) enum HashDamage {
    Part(u64, Error),
    Whole(u64, &'static str),
}

impl HashNotes {
    /// Takes no notes if the segment has no hash run.
    pub(super) fn new(reader: &SegmentReader) -> HashNotes {
        HashNotes { entries: Vec::new(), wanted: reader.has_hash_run(), beyond: false }
    }

    /// Notes a key whose newest version is in the block at `page`.
    pub(super) fn add(&mut self, hash: u64, page: u32) {
        if !self.wanted {
            return;
        }
        match u16::try_from(page) {
            Ok(page) => self.entries.push(h40(hash) << 16 | u64::from(page)),
            Err(_) => self.beyond = true,
        }
    }

    /// Reads the run and compares. With `all_read`, the notes are of every key; else the run may
    /// hold more. A root that fails its checksum was reported among the sections.
    pub(super) fn compare(mut self, reader: &SegmentReader, all_read: bool) -> Vec<HashDamage> {
        let mut damage = Vec::new();
        let meta = &reader.inner.meta;
        let partitions = meta.section(SECTION_HASH_RUN_PARTITIONS);
        self.entries.sort_unstable();
        let compared = match meta.section(SECTION_HASH_RUN) {
            None => Ok(true),
            Some(section) => match reader.read_section(section) {
                Err(_) => Ok(true),
                Ok(bytes) => HashLayout::decode(&bytes, partitions.map_or(0, |s| s.len))
                    .map_err(|malformed| reader.malformed(malformed, section.offset))
                    .and_then(|layout| match layout {
                        HashLayout::Single(bytes) => {
                            self.compare_part(reader, &bytes, Scope::All, section.offset, all_read)
                        }
                        HashLayout::Partitioned(parts) => {
                            let base = partitions.map_or(0, |s| s.offset);
                            Ok(self.compare_parts(reader, base, &parts, all_read, &mut damage))
                        }
                    }),
            },
        };
        let at = meta.section(SECTION_HASH_RUN).map_or(0, |section| section.offset);
        match compared {
            Err(error) => damage.push(HashDamage::Part(at, error)),
            Ok(same) if !same || self.beyond => {
                let what = "the hash run is not that of the keys in the data blocks";
                damage.push(HashDamage::Whole(at, what));
            }
            Ok(_) => {}
        }
        let Some(section) = partitions else { return damage };
        if !self.wanted {
            let what = "hash run partitions without a hash run";
            damage.push(HashDamage::Whole(section.offset, what));
        }
        // The section has a checksum besides those of the partitions, for readers that do not know
        // it. It is of interest if nothing in the section was found wrong.
        let end = section.offset.saturating_add(section.len);
        let named = damage.iter().any(|damage| {
            let (HashDamage::Part(at, _) | HashDamage::Whole(at, _)) = damage;
            (section.offset..end).contains(at)
        });
        if !named && let Err(error) = reader.read_section(section) {
            damage.push(HashDamage::Part(section.offset, error));
        }
        damage
    }

    /// Whether all partitions that can be read are right.
    fn compare_parts(
        &self,
        reader: &SegmentReader,
        base: u64,
        parts: &[PartRef],
        all_read: bool,
        damage: &mut Vec<HashDamage>,
    ) -> bool {
        let mut same = true;
        for (slice, part) in (0..=u8::MAX).zip(parts) {
            let offset = base.saturating_add(part.offset);
            let compared = reader
                .read_checked(offset, u64::from(part.len), part.checksum)
                .and_then(|b| self.compare_part(reader, &b, Scope::Slice(slice), offset, all_read));
            match compared {
                Ok(is_same) => same &= is_same,
                Err(error) => damage.push(HashDamage::Part(offset, error)),
            }
        }
        same
    }

    /// Whether the partition holds the notes of its scope, and with `all_read` nothing else.
    fn compare_part(
        &self,
        reader: &SegmentReader,
        bytes: &[u8],
        scope: Scope,
        offset: u64,
        all_read: bool,
    ) -> Result<bool> {
        let notes = match scope {
            Scope::All => self.entries.as_slice(),
            Scope::Slice(slice) => {
                let below = |limit: u64| self.entries.partition_point(|e| e >> 48 < limit);
                let range = below(u64::from(slice))..below(u64::from(slice) + 1);
                self.entries.get(range).unwrap_or_default()
            }
        };
        let mut notes = notes.iter().peekable();
        let mut extra = false;
        read_entries(bytes, scope, reader.data_pages(), |hash, page| {
            let entry = hash << 16 | u64::from(page);
            extra |= notes.next_if_eq(&&entry).is_none();
        })
        .map_err(|malformed| reader.malformed(malformed, offset))?;
        Ok(notes.next().is_none() && !(extra && all_read))
    }
}
