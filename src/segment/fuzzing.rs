//! Entry points for fuzzing the decoders of this room: any bytes must give a value or an error.

use super::format::{
    BLOCK_HEADER_LEN, FOOTER_LEN, LAYOUT_PARTITIONED, SECTION_BLOOM, SECTION_BLOOM_PARTITIONS,
    SECTION_HASH_RUN, SECTION_HASH_RUN_PARTITIONS, SECTION_INDEX, SECTION_INDEX_PARTITIONS,
};
use super::hash_run::{HashPartition, Scope, Shape, read_entries};
use super::{Block, Reference, SegmentReader, ValueReader};
use crate::checksum::{checksum, uuid_salt};
use crate::coding::{u16_at, u32_at, u64_at};
use crate::hash::key_hash;
use crate::types::{PAGE, SegmentId, SeqNo};
use crate::vfs::{Env, OpenMode};
use bytes::Bytes;
use std::hint::black_box;
use std::path::Path;

/// Treats the bytes as a segment file and reads it in every way: as it is, and again with all
/// checksums made good, so that what lies behind them is reached; and as a partition of a hash run.
pub fn segment_bytes(data: &[u8]) {
    exercise(data);
    hash_partition(data);
    let mut sealed = data.to_vec();
    reseal(&mut sealed);
    exercise(&sealed);
}

/// Treats the bytes as a value segment and reads it in every way: as it is, and again with its
/// checksums made good; and as a reference to a value.
pub fn value_bytes(data: &[u8]) {
    if let Ok(reference) = Reference::decode(data) {
        assert_eq!(reference.encode(), data);
    }
    exercise_values(data);
    let mut sealed = data.to_vec();
    let Some(footer) = sealed.len().checked_sub(FOOTER_LEN) else { return };
    let len = (sealed.len() as u64).to_le_bytes();
    sealed[footer + 48..footer + 56].copy_from_slice(&len);
    sealed[footer + 16..footer + 24].copy_from_slice(&(footer as u64).to_le_bytes());
    sealed[footer + 80..footer + 88].copy_from_slice(b"ASHLRVAL");
    let sum = checksum(0, sealed.len() as u64, &sealed[footer..footer + 88]);
    sealed[footer + 88..].copy_from_slice(&sum.to_le_bytes());
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&sealed[footer..footer + 16]);
    let (salt, mut at) = (uuid_salt(&uuid), 0);
    while let Some(stored) = u32_at(&sealed[..footer], at + 8) {
        let end = (at + 20).saturating_add(stored as usize).min(footer);
        let sum = checksum(salt, at as u64, sealed.get(at + 8..end).unwrap_or_default());
        sealed[at..at + 8].copy_from_slice(&sum.to_le_bytes());
        at = end;
    }
    exercise_values(&sealed);
}

fn exercise_values(data: &[u8]) {
    let env = Env::in_memory(1);
    let path = Path::new("fuzzed");
    let Ok(file) = env.vfs.open(path, OpenMode::CreateNew) else { return };
    if file.write_all_at(data, 0).is_err() {
        return;
    }
    let Ok(reader) = ValueReader::open_in(&env, path) else { return };
    let Ok(report) = reader.verify(&mut |_| {}) else { return };
    let mut at = 0;
    while let (Some(checksum), Some(stored), Some(raw)) =
        (u64_at(data, at), u32_at(data, at + 8), u32_at(data, at + 12))
    {
        let reference = Reference { file: SegmentId(1), offset: at as u64, stored, raw, checksum };
        let read = reader.get(&reference);
        assert!(read.as_ref().map_or(true, |value| value.len() == raw as usize));
        let is_within = at as u64 + reference.record_len() <= reader.bytes();
        assert!(read.is_ok() || !report.damage.is_empty() || !is_within);
        at = at.saturating_add(20).saturating_add(stored as usize);
    }
}

/// Treats the bytes as a data block: pads them to whole pages, makes length and checksum good,
/// decodes the block and uses it in every way.
pub fn data_block(data: &[u8]) {
    let mut block = data.to_vec();
    block.resize(data.len().max(BLOCK_HEADER_LEN).next_multiple_of(PAGE), 0);
    seal_block(&mut block, 0, 0);
    let bytes = Bytes::from(block);
    let Ok((block, header)) = Block::decode(&bytes, 0, 0) else { return };
    let checked = block.check(&bytes, &header, None, false, 0);
    for i in 0..=block.len() {
        let key = block.key(i);
        if let Some(entry) = block.entry(i) {
            assert_eq!(block.view(&entry.key), key);
            assert_eq!(block.share(&entry.value), block.view(&entry.value));
        }
        let (lower, upper) = (block.lower_bound(key), block.upper_bound(key));
        assert!(lower <= block.len() && upper <= block.len());
        if checked.is_ok() && i < block.len() {
            assert!(lower <= i && i < upper);
        }
        black_box(block.peek().lookup(key, u64::from(i as u8) << 16, SeqNo(i as u64)).is_ok());
    }
    assert!(block.used_bytes(&header) <= bytes.len() as u64);
}

/// Treats the bytes as a partition of a hash run, made as long as its counts say.
fn hash_partition(data: &[u8]) {
    let Some([entries, more, dir_bits, scope]) = data.first_chunk::<4>() else { return };
    let entries = usize::from(u16::from_le_bytes([*entries, *more])) % 4096;
    let dir_bits = dir_bits % 17;
    let scope = if scope & 1 == 0 { Scope::All } else { Scope::Slice(*scope) };
    let mut bytes = (entries as u16).to_le_bytes().to_vec();
    bytes.extend_from_slice(&[dir_bits, 0]);
    bytes.extend_from_slice(&data[4..]);
    bytes.resize(Shape::new(entries, u32::from(dir_bits), scope).len, 0);
    let mut all = Vec::new();
    let read = read_entries(&bytes, scope, 60_000, |h40, page| all.push((h40, page)));
    let partition = HashPartition::decode(Bytes::from(bytes), scope, 60_000);
    assert_eq!(read.is_ok(), partition.is_ok());
    let Ok(partition) = partition else { return };
    assert!(all.len() == entries && all.is_sorted());
    for (i, (h40, page)) in all.iter().enumerate().step_by(1 + entries / 64) {
        assert!(partition.probe(*h40).contains(&i));
        assert_eq!(partition.page(i), *page);
        let near = h40 ^ 1;
        let expected = all.iter().filter(|entry| entry.0 == near).count();
        assert_eq!(partition.probe(near).len(), expected);
    }
}

fn exercise(data: &[u8]) {
    let env = Env::in_memory(1);
    let path = Path::new("fuzzed");
    let Ok(file) = env.vfs.open(path, OpenMode::CreateNew) else { return };
    if file.write_all_at(data, 0).is_err() {
        return;
    }
    let Ok(reader) = SegmentReader::open_in(&env, path) else { return };
    let sound = reader.verify().is_ok_and(|report| report.is_sound());
    let mut keys = vec![Vec::new(), b"key".to_vec(), reader.properties().first_key.clone()];
    let mut forward = 0u64;
    for item in reader.get_range::<&[u8]>(..) {
        let Ok((key, value)) = item else { break };
        forward += 1;
        if keys.len() < 20 {
            keys.push(key.to_vec());
        }
        let got = reader.get(&key);
        let hash = key_hash(&key, reader.properties().hash_seed);
        let by_filter = reader.get_by_filter(&key, hash, SeqNo::MAX);
        if sound {
            assert_eq!(got.ok().flatten().as_deref(), Some(&*value));
            let found = by_filter.ok().flatten().map(|found| found.value);
            assert_eq!(found.as_deref(), Some(&*value));
        }
    }
    let backward = reader.get_range::<&[u8]>(..).rev().take_while(Result::is_ok).count() as u64;
    if sound {
        assert_eq!(forward, backward);
    }
    exercise_hash_run(&reader, &keys, sound);
    for pair in keys.windows(2) {
        let [low, high] = pair else { continue };
        black_box(reader.get(low).is_ok());
        black_box(reader.get_range::<Vec<u8>>(low..high).next());
        black_box(reader.get_range::<Vec<u8>>(low..=high).next_back());
    }
    black_box(reader.last_key().is_ok());
    for block in reader.blocks() {
        black_box(block.is_ok());
    }
}

/// Every slice of the hash run, and the lookups that it leads to.
fn exercise_hash_run(reader: &SegmentReader, keys: &[Vec<u8>], sound: bool) {
    let mut slices = reader.hash_slices();
    let (mut entries, mut pages) = (0, vec![0, u16::MAX]);
    for number in 0..=u8::MAX {
        let Ok(slices) = &mut slices else { break };
        let Ok(slice) = slices.slice(number) else { continue };
        assert!(slice.is_sorted() && slice.iter().all(|(h40, _)| h40 >> 32 == u64::from(number)));
        assert!(slice.iter().all(|(_, page)| u64::from(*page) < reader.data_bytes() / PAGE as u64));
        entries += slice.len() as u64;
        pages.extend(slice.iter().take(2).map(|(_, page)| *page));
    }
    if sound && reader.has_hash_run() {
        assert_eq!(entries, reader.properties().distinct_keys);
    }
    for (key, page) in keys.iter().zip(pages.iter().cycle()) {
        let hash = key_hash(key, reader.properties().hash_seed);
        black_box(reader.get_at_page(u32::from(*page), key, hash, SeqNo::MAX).is_ok());
    }
}

pub(super) fn seal_block(block: &mut [u8], salt: u64, offset: u64) {
    let pages = (block.len() / PAGE) as u32;
    block[8..12].copy_from_slice(&pages.to_le_bytes());
    let sum = checksum(salt, offset, &block[8..]);
    block[..8].copy_from_slice(&sum.to_le_bytes());
}

/// Recomputes every checksum of a file that has roughly the structure of a segment.
pub(crate) fn reseal(data: &mut [u8]) {
    let len = data.len();
    let Some(footer) = len.checked_sub(FOOTER_LEN) else { return };
    data[footer + 48..footer + 56].copy_from_slice(&(len as u64).to_le_bytes());
    data[footer + 80..footer + 88].copy_from_slice(b"ASHLRSEG");
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&data[footer..footer + 16]);
    let salt = uuid_salt(&uuid);
    let field = |data: &[u8], at: usize| u64_at(data, at).and_then(|n| usize::try_from(n).ok());
    reseal_blocks(data, field(data, footer + 16).unwrap_or(0).min(footer), salt);
    let table = field(data, footer + 24).unwrap_or(len);
    let table_len = field(data, footer + 32).unwrap_or(len);
    if let Some(end) = table.checked_add(table_len).filter(|end| *end <= footer) {
        let mut sections = Vec::new();
        let mut at = table + 4;
        while at + 28 <= end {
            let id = u16_at(data, at).unwrap_or_default();
            let (start, len) = (field(data, at + 4), field(data, at + 12));
            if let (Some(start), Some(len)) = (start, len)
                && start.checked_add(len).is_some_and(|end| end <= footer)
            {
                sections.push((id, start, len, at + 20));
            }
            at += 28;
        }
        reseal_partitions(data, &sections, SECTION_INDEX, SECTION_INDEX_PARTITIONS, salt);
        reseal_partitions(data, &sections, SECTION_BLOOM, SECTION_BLOOM_PARTITIONS, salt);
        reseal_partitions(data, &sections, SECTION_HASH_RUN, SECTION_HASH_RUN_PARTITIONS, salt);
        for (id, start, len, sum_at) in sections {
            // The partitions have checksums of their own.
            if matches!(id, SECTION_INDEX_PARTITIONS | SECTION_BLOOM_PARTITIONS) {
                continue;
            }
            let sum = checksum(salt, start as u64, &data[start..start + len]);
            data[sum_at..sum_at + 8].copy_from_slice(&sum.to_le_bytes());
        }
        let sum = checksum(salt, table as u64, &data[table..end]);
        data[footer + 40..footer + 48].copy_from_slice(&sum.to_le_bytes());
    }
    let sum = checksum(0, len as u64, &data[footer..footer + 88]);
    data[footer + 88..].copy_from_slice(&sum.to_le_bytes());
}

fn reseal_blocks(data: &mut [u8], end: usize, salt: u64) {
    let mut at = 0;
    while at + PAGE <= end {
        let pages = u32_at(data, at + 8).unwrap_or(1).max(1) as usize;
        let len = pages.saturating_mul(PAGE);
        let len = if len > end - at { PAGE } else { len };
        let block = &mut data[at..at + len];
        let sum = checksum(salt, at as u64, &block[8..]);
        block[..8].copy_from_slice(&sum.to_le_bytes());
        at += len;
    }
}

/// The checksums in the top level of a partitioned section.
fn reseal_partitions(
    data: &mut [u8],
    sections: &[(u16, usize, usize, usize)],
    root: u16,
    partitions: u16,
    salt: u64,
) {
    let find = |wanted| sections.iter().find(|(id, ..)| *id == wanted).copied();
    let (Some((_, root, root_len, _)), Some((_, base, base_len, _))) =
        (find(root), find(partitions))
    else {
        return;
    };
    if root_len < 5 || data[root] != LAYOUT_PARTITIONED {
        return;
    }
    let count = u32_at(data, root + 1).unwrap_or_default() as usize;
    for i in 0..count {
        let at = root + 5 + 20 * i;
        if at + 20 > root + root_len {
            return;
        }
        let offset = u64_at(data, at).and_then(|n| usize::try_from(n).ok()).unwrap_or(base_len);
        let len = u32_at(data, at + 8).unwrap_or_default() as usize;
        if offset.checked_add(len).is_none_or(|end| end > base_len) {
            continue;
        }
        let start = base + offset;
        let sum = checksum(salt, start as u64, &data[start..start + len]);
        data[at + 12..at + 20].copy_from_slice(&sum.to_le_bytes());
    }
}
