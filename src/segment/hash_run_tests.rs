//! The hash run: builder and decoder against a plain list, lookups against filter and index,
//! damage.

use super::format::{PartRef, SECTION_HASH_RUN, SECTION_HASH_RUN_PARTITIONS};
use super::fuzzing::reseal;
use super::hash_run::{
    HashLayout, HashPartition, MAX_ENTRIES, PARTITIONS, Scope, h40, read_entries,
};
use super::hash_run_build::{HashSections, SINGLE_MAX, build, encode};
use super::point::PageLookup;
use super::tests::{
    PATH, Random, TestCache, Version, assert_sound, codecs, env_with, held, mixed, newest, open,
    open_cached, options, plain, probes, read_file, write_in,
};
use super::{PointIndex, SegmentOptions, SegmentReader, SegmentWriter};
use crate::compression::Compression;
use crate::error::{Error, Malformed};
use crate::hash::key_hash;
use crate::types::{Kind, PAGE, SeqNo};
use crate::vfs::Env;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;

const PAGES: u64 = 65_536;

fn pack(entries: &[(u64, u16)]) -> Vec<u64> {
    entries.iter().map(|(h40, page)| h40 << 16 | u64::from(*page)).collect()
}

/// The partitions of a built run, each with its scope.
fn partitions(sections: &HashSections) -> Vec<(Scope, Bytes)> {
    let bytes = Bytes::from(sections.partitions.clone().unwrap_or_default());
    let root = Bytes::from(sections.root.clone());
    match HashLayout::decode(&root, bytes.len() as u64).unwrap() {
        HashLayout::Single(partition) => vec![(Scope::All, partition)],
        HashLayout::Partitioned(parts) => {
            let cut = |part: &PartRef| {
                let start = part.offset as usize;
                bytes.slice(start..start + part.len as usize)
            };
            (0..=255).map(Scope::Slice).zip(parts.iter().map(cut)).collect()
        }
    }
}

/// Builds a run and compares everything with the sorted list.
fn check_run(entries: &[(u64, u16)], single_max: usize) -> usize {
    let mut model = entries.to_vec();
    model.sort_unstable();
    let sections = build(pack(entries), single_max, |_, _| 0).unwrap();
    let mut read = Vec::new();
    let mut len = 0;
    for (scope, bytes) in partitions(&sections) {
        len += bytes.len();
        read_entries(&bytes, scope, PAGES, |h40, page| read.push((h40, page))).unwrap();
        let partition = HashPartition::decode(bytes, scope, PAGES).unwrap();
        let mine = |h40: u64| scope == Scope::All || scope == Scope::Slice((h40 >> 32) as u8);
        let pages = |h40| partition.probe(h40).map(|i| partition.page(i)).collect::<Vec<_>>();
        for (h40, _) in model.iter().filter(|entry| mine(entry.0)).step_by(7) {
            let start = model.partition_point(|entry| entry.0 < *h40);
            let same = model[start..].iter().take_while(|entry| entry.0 == *h40);
            assert_eq!(pages(*h40), same.map(|entry| entry.1).collect::<Vec<_>>());
            for near in [h40 ^ 1, h40 ^ 0x100, h40 ^ 0x1_0000, h40 ^ 0x80_0000] {
                let is_there = model.binary_search_by_key(&near, |entry| entry.0).is_ok();
                assert_eq!(!pages(near).is_empty(), is_there, "{near:#x}");
            }
        }
    }
    assert!(read == model);
    assert_eq!(sections.partitions.is_some(), entries.len() > single_max);
    len
}

fn random_entries(random: &mut Random, n: usize, bits: u64) -> Vec<(u64, u16)> {
    (0..n).map(|_| (random.next() >> 24 & bits, random.next() as u16)).collect()
}

#[test]
fn a_run_holds_exactly_the_entries_that_were_put_in() {
    let mut random = Random(11);
    let all = (1 << 40) - 1;
    // All hashes; few of them; all in one slice; all in one bucket of its directory; all the same.
    let patterns = [all, 0x80_c0_00_00_03, 0xff_ffff_ffff >> 8, 0xffff, 0];
    for bits in patterns {
        for n in (0..40).chain([63, 64, 65, 100, 500, 1000, 3000]) {
            for single_max in [0, 100, SINGLE_MAX] {
                check_run(&random_entries(&mut random, n, bits), single_max);
            }
        }
    }
    for n in [SINGLE_MAX - 1, SINGLE_MAX, SINGLE_MAX + 1, MAX_ENTRIES] {
        check_run(&random_entries(&mut random, n, all), SINGLE_MAX);
        check_run(&random_entries(&mut random, n, all >> 8), SINGLE_MAX);
    }
    check_run(&random_entries(&mut random, MAX_ENTRIES, all), usize::MAX);
    let len = check_run(&random_entries(&mut random, 560_000, all), SINGLE_MAX);
    assert!((len as f64) < 5.3 * 560_000.0, "{len}");
}

#[test]
fn a_partition_may_have_a_directory_of_any_size() {
    let mut random = Random(14);
    for (scope, bits) in [(Scope::All, (1 << 40) - 1), (Scope::Slice(0), (1 << 32) - 1)] {
        for n in [0, 1, 2, 30, 700] {
            let mut model = random_entries(&mut random, n, bits);
            model.sort_unstable();
            for dir_bits in 0..=16 {
                let mut bytes = Vec::new();
                encode(&pack(&model), dir_bits, scope, &mut bytes);
                let mut read = Vec::new();
                read_entries(&bytes, scope, PAGES, |h40, page| read.push((h40, page))).unwrap();
                assert!(read == model);
                let partition = HashPartition::decode(bytes.into(), scope, PAGES).unwrap();
                for (at, (h40, page)) in model.iter().enumerate() {
                    assert_eq!(partition.probe(*h40), at..at + 1);
                    assert_eq!(partition.page(at), *page);
                    assert!(partition.probe(h40 ^ 1).is_empty());
                }
            }
        }
    }
}

#[test]
fn a_partition_that_counts_cannot_describe_is_not_written() {
    let mut random = Random(12);
    let mut entries = random_entries(&mut random, MAX_ENTRIES + 1, 0xff_ffff);
    assert!(build(pack(&entries), SINGLE_MAX, |_, _| 0).is_none());
    entries[0].0 |= 1 << 39;
    check_run(&entries, SINGLE_MAX);
}

#[test]
fn partitions_that_break_a_rule_are_refused() {
    let entries: Vec<(u64, u16)> = (0..40).map(|i| (i << 33 | i, i as u16)).collect();
    let root = build(pack(&entries), SINGLE_MAX, |_, _| 0).unwrap().root;
    let good = &root[1..];
    let read = |bytes: &[u8], pages| read_entries(bytes, Scope::All, pages, |_, _| {});
    let refused = |bytes: &[u8], pages| {
        let result = read(bytes, pages);
        assert!(matches!(result, Err(Malformed::Damaged(_))), "{result:?}");
    };
    assert_eq!(read(good, 40), Ok(()));
    refused(good, 39);
    for len in 0..good.len() {
        refused(&good[..len], PAGES);
    }
    refused(&[good, &[0]].concat(), PAGES);
    let dir_bits = u32::from(good[2]);
    assert!(dir_bits > 0 && good[0] == 40);
    let (dir, high) = (4, 4 + (2 << dir_bits));
    // Entry count, directory bits, reserved; the directory falls, ends early, ends late; two
    // entries change places.
    for (at, value) in [(0, 39), (0, 41), (1, 1), (2, 17), (2, 255), (3, 1), (dir, 41)] {
        let mut bad = good.to_vec();
        bad[at] = value;
        refused(&bad, PAGES);
    }
    for value in [39, 41] {
        let mut bad = good.to_vec();
        bad[high - 2] = value;
        refused(&bad, PAGES);
    }
    let mut swapped = good.to_vec();
    let bucket = (0..).find(|b| good[dir + 2 * b] >= 2).unwrap();
    assert_eq!(bucket, 0, "the first bucket has two entries");
    swapped.swap(high, high + 2);
    swapped.swap(high + 1, high + 3);
    refused(&swapped, PAGES);
    // An unused bit: 7 low bits in a byte.
    let few: Vec<(u64, u16)> = (0..1100).map(|i| (i * 0x40_0000, 0)).collect();
    let sections = build(pack(&few), 0, |_, _| 0).unwrap();
    for (scope, bytes) in partitions(&sections) {
        let entries = u16::from_le_bytes([bytes[0], bytes[1]]);
        let low_bits = 16 - u32::from(bytes[2]);
        if entries > 0 && !low_bits.is_multiple_of(8) {
            let mut bad = bytes.to_vec();
            let low_len = low_bits.div_ceil(8) as usize;
            let at = bytes.len() - 2 * usize::from(entries) - 1;
            assert!(low_len > 0);
            bad[at] |= 0x80;
            assert!(read_entries(&bytes, scope, PAGES, |_, _| {}).is_ok());
            assert!(read_entries(&bad, scope, PAGES, |_, _| {}).is_err());
            return;
        }
    }
    panic!("no partition has unused bits");
}

#[test]
fn roots_that_break_a_rule_are_refused_and_newer_ones_are_unsupported() {
    let decode = |bytes: &[u8], len| HashLayout::decode(&Bytes::copy_from_slice(bytes), len);
    let sections = build(pack(&[(5, 6)]), 0, |_, _| 9).unwrap();
    let (root, len) = (sections.root, sections.partitions.unwrap().len() as u64);
    assert!(matches!(decode(&root, len), Ok(HashLayout::Partitioned(p)) if p.len() == PARTITIONS));
    let damaged = |result: Result<HashLayout, Malformed>| {
        assert!(matches!(result, Err(Malformed::Damaged(_))), "{result:?}");
    };
    damaged(decode(&root, len - 1));
    damaged(decode(&[&root[..], &[0]].concat(), len));
    damaged(decode(&root[..root.len() - 1], len));
    damaged(decode(&[], 0));
    let mut bad = root.clone();
    bad[1..5].copy_from_slice(&255u32.to_le_bytes());
    damaged(decode(&bad, len));
    bad[0] = 3;
    assert!(matches!(decode(&bad, len), Err(Malformed::Unsupported(_))));
    damaged(decode(&[1, 0, 0, 0, 0, 0, 0], 1));
}

fn write_run(
    env: &Env,
    options: SegmentOptions,
    single_max: usize,
    versions: &[Version],
) -> SegmentReader {
    let mut writer = SegmentWriter::create_in(env, PATH, options).unwrap();
    writer.set_hash_run_single_max(single_max);
    for (key, seqno, kind, value) in versions {
        writer.add(key, SeqNo(*seqno), *kind, value).unwrap();
    }
    writer.finish().unwrap();
    open(env)
}

/// The block starts: page and keys whose newest version is there.
fn expected_slices(reader: &SegmentReader) -> Vec<(u64, u16)> {
    let mut cursor = reader.cursor(super::CursorOptions { fill_cache: false, readahead: false });
    use crate::cursor::{Cursor, Seek};
    cursor.seek(Seek::First).unwrap();
    let blocks: Vec<_> = reader.blocks().map(|block| block.unwrap()).collect();
    let mut entries = Vec::new();
    let mut last: Option<Vec<u8>> = None;
    for block in blocks {
        for _ in 0..block.entries {
            if last.as_deref() != Some(cursor.key()) {
                let hash = key_hash(cursor.key(), reader.properties().hash_seed);
                entries.push((h40(hash), (block.offset / PAGE as u64) as u16));
                last = Some(cursor.key().to_vec());
            }
            cursor.next().unwrap();
        }
    }
    entries.sort_unstable();
    entries
}

fn all_slices(reader: &SegmentReader) -> Vec<(u64, u16)> {
    let mut slices = reader.hash_slices().unwrap();
    // In any order, and again.
    let mut entries = Vec::new();
    for number in (0..=255u8).rev().chain(0..=255) {
        let slice = slices.slice(number).unwrap();
        assert!(slice.iter().all(|(h40, _)| h40 >> 32 == u64::from(number)));
        entries.extend_from_slice(slice);
    }
    entries.sort_unstable();
    assert!(entries.chunks(2).all(|pair| pair[0] == pair[1]));
    entries.into_iter().step_by(2).collect()
}

fn check_lookups(readers: &[&SegmentReader], versions: &[Version], random: &mut Random) {
    let mut keys = probes(versions, random);
    keys.extend(versions.iter().map(|version| version.0.clone()));
    for key in keys {
        let hash = key_hash(&key, readers[0].properties().hash_seed);
        let snapshot = if random.below(3) == 0 { u64::MAX } else { random.below(300) as u64 };
        let expected = versions.iter().find(|v| v.0 == key && v.1 <= snapshot);
        for reader in readers {
            let found = reader.get_at(&key, hash, SeqNo(snapshot)).unwrap();
            assert_eq!(reader.get_by_filter(&key, hash, SeqNo(snapshot)).unwrap(), found);
            assert_eq!(
                found.map(|f| (f.seqno.0, f.kind, f.value.to_vec())),
                expected.map(|v| (v.1, v.2, v.3.clone())),
            );
        }
    }
}

#[test]
fn lookups_by_hash_run_and_by_filter_give_the_same() {
    let mut random = Random(13);
    for compression in codecs() {
        for single_max in [SINGLE_MAX, 0] {
            for bloom_bits_per_key in [10, 0] {
                let mut versions = mixed(&mut random, 250);
                versions.push((vec![0xfe], 9, Kind::Put, random.bytes(200_000)));
                versions.push((vec![0xfe], 8, Kind::Put, vec![7; 300_000]));
                let hot = (0..300).rev().map(|s| (vec![0xff], s, Kind::Put, random.bytes(40)));
                versions.extend(hot);
                let env = Env::in_memory(random.next());
                let options = SegmentOptions { bloom_bits_per_key, ..options(compression) };
                let reader = write_run(&env, options, single_max, &versions);
                assert!(reader.has_hash_run());
                assert_sound(&reader);
                assert!(all_slices(&reader) == expected_slices(&reader));
                let cache = Arc::new(TestCache::default());
                let cached = open_cached(&env, &cache, PointIndex::HashRun);
                let filter = open_cached(&env, &Arc::default(), PointIndex::Filter);
                check_lookups(&[&reader, &cached, &filter], &versions, &mut random);
                check_pages(&cached, &versions);
            }
        }
    }
}

/// Every key is found at its page and at no other.
fn check_pages(reader: &SegmentReader, versions: &[Version]) {
    let starts: BTreeSet<u32> =
        reader.blocks().map(|block| (block.unwrap().offset / PAGE as u64) as u32).collect();
    let run: Vec<(u64, u16)> = all_slices(reader);
    for (key, value) in newest(versions).iter().step_by(5) {
        let hash = key_hash(key, reader.properties().hash_seed);
        let at = run.binary_search_by_key(&h40(hash), |entry| entry.0).unwrap();
        let home = u32::from(run[at].1);
        for page in &starts {
            let looked = reader.get_at_page(*page, key, hash, SeqNo::MAX).unwrap();
            assert_eq!(looked.key_there, *page == home);
            let found = looked.found.map(|f| (f.kind == Kind::Put).then(|| f.value.to_vec()));
            assert_eq!(found, (*page == home).then(|| value.clone()));
        }
        // No version is as old as that, but the key is there.
        let oldest = versions.iter().rfind(|version| version.0 == *key).unwrap().1;
        if let Some(before) = oldest.checked_sub(1) {
            let looked = reader.get_at_page(home, key, hash, SeqNo(before)).unwrap();
            assert!(looked.key_there && looked.found.is_none());
        }
    }
}

#[test]
fn a_lookup_by_page_counts_its_blocks_and_shares_the_cache_with_others() {
    let mut versions = vec![(b"before".to_vec(), 5, Kind::Put, vec![1; 50])];
    for seqno in (1..=900).rev() {
        versions.push((b"hot".to_vec(), seqno, Kind::Put, vec![2; 30]));
    }
    versions.push((b"later".to_vec(), 5, Kind::Put, vec![3; 50]));
    let env = Env::in_memory(9);
    let plain = write_run(&env, options(Compression::None), SINGLE_MAX, &versions);
    let blocks: Vec<_> = plain.blocks().map(|block| block.unwrap()).collect();
    let pages: Vec<u32> = blocks.iter().map(|b| (b.offset / PAGE as u64) as u32).collect();
    assert!(blocks.len() >= 4);
    let cache = Arc::new(TestCache::default());
    let reader = open_cached(&env, &cache, PointIndex::HashRun);
    let hash = |key: &[u8]| key_hash(key, reader.properties().hash_seed);
    let look = |page, key: &[u8], snapshot| {
        reader.get_at_page(page, key, hash(key), SeqNo(snapshot)).unwrap()
    };
    let counts = |looked: &PageLookup| (looked.blocks, looked.cached, looked.key_there);
    let newest = look(pages[0], b"hot", 900);
    assert_eq!(counts(&newest), (1, 0, true));
    assert_eq!(newest.found.unwrap().seqno, SeqNo(900));
    let oldest = look(pages[0], b"hot", 1);
    assert_eq!(counts(&oldest), (blocks.len() as u32, 1, true));
    assert_eq!(oldest.found.unwrap().seqno, SeqNo(1));
    let none = look(pages[0], b"hot", 0);
    assert_eq!(counts(&none), (blocks.len() as u32, blocks.len() as u32, true));
    assert_eq!(none.found, None);
    // Older versions go on here: not the place to ask.
    let middle = look(pages[1], b"hot", 900);
    assert_eq!(middle, PageLookup { blocks: 1, cached: 1, ..PageLookup::default() });
    let absent = look(pages[0], b"absent", 900);
    assert_eq!(absent, PageLookup { blocks: 1, cached: 1, ..PageLookup::default() });
    // Blocks that lookups by page put there serve lookups by index, and the other way round.
    assert!(cache.0.lock().is_empty(), "the hash run was not needed");
    assert_eq!(held(&reader), pages.iter().map(|page| u64::from(*page)).collect::<Vec<_>>());
    reader.get_by_filter(b"hot", hash(b"hot"), SeqNo(1)).unwrap().unwrap();
    let reader = open_cached(&env, &cache, PointIndex::HashRun);
    let look = |page, key: &[u8], snapshot| {
        reader.get_at_page(page, key, hash(key), SeqNo(snapshot)).unwrap()
    };
    reader.get_by_filter(b"before", hash(b"before"), SeqNo(9)).unwrap().unwrap();
    assert_eq!(counts(&look(pages[0], b"before", 9)), (1, 1, true));
}

#[test]
fn a_page_where_no_block_begins_and_a_header_that_lies_are_corruption() {
    let versions = vec![
        (b"huge".to_vec(), 0, Kind::Put, Random(1).bytes(70_000)),
        (b"small".to_vec(), 0, Kind::Put, vec![1]),
    ];
    let env = Env::in_memory(4);
    let reader = write_run(&env, options(Compression::None), SINGLE_MAX, &versions);
    let pages = (reader.data_bytes() / PAGE as u64) as u32;
    assert_eq!(pages, 19);
    let hash = key_hash(b"huge", reader.properties().hash_seed);
    let look = |reader: &SegmentReader, page| reader.get_at_page(page, b"huge", hash, SeqNo::MAX);
    assert!(look(&reader, 0).unwrap().found.is_some());
    for page in (1..18).chain([19, 20, 65_535, 65_536, u32::MAX]) {
        match look(&reader, page) {
            Err(Error::Corruption { offset, .. }) => {
                assert_eq!(offset, u64::from(page) * PAGE as u64);
            }
            other => panic!("{page}: {other:?}"),
        }
    }
    for lie in [0, 1, 17, 19, 20, u32::MAX] {
        let mut bad = read_file(&env);
        bad[8..12].copy_from_slice(&lie.to_le_bytes());
        let result = look(&open(&env_with(&bad)), 0);
        assert!(matches!(result, Err(Error::Corruption { offset: 0, .. })), "{lie}: {result:?}");
    }
}

#[test]
fn keys_with_the_same_40_bits_are_told_apart() {
    let (seed, [one, two]) = collision();
    assert_eq!(h40(key_hash(&one, seed)), h40(key_hash(&two, seed)));
    let [low, high] = if one < two { [one, two] } else { [two, one] };
    let mut versions = plain(600);
    versions.push((low.clone(), 3, Kind::Put, vec![1; 200_000]));
    versions.push((high.clone(), 4, Kind::Put, vec![4; 60]));
    versions.push((high.clone(), 3, Kind::Put, vec![3; 60]));
    versions.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    for present in [&[&low, &high][..], &[&low], &[&high]] {
        for single_max in [SINGLE_MAX, 0] {
            let versions: Vec<Version> = versions
                .iter()
                .filter(|v| v.0.starts_with(b"key") || present.contains(&&v.0))
                .cloned()
                .collect();
            let options = SegmentOptions { hash_seed: Some(seed), ..options(Compression::None) };
            let reader = write_run(&Env::in_memory(2), options, single_max, &versions);
            assert_sound(&reader);
            for key in [&low, &high] {
                let expected = versions.iter().find(|v| v.0 == *key).map(|v| v.3.clone());
                assert_eq!(reader.get(key).unwrap().map(Vec::from), expected);
            }
        }
    }
}

/// A seed, and two keys whose hashes under it have the same top 40 bits.
fn collision() -> (u64, [Vec<u8>; 2]) {
    (COLLISION.0, COLLISION.1.map(|n: u32| [b"c".as_slice(), &n.to_be_bytes()].concat()))
}

const COLLISION: (u64, [u32; 2]) = (7, [668_118, 836_006]);

fn small(single_max: usize) -> (Env, Vec<Version>) {
    let mut versions = plain(260);
    for i in (0..260).step_by(9) {
        versions.push((versions[i].0.clone(), 5, Kind::Put, b"newer".to_vec()));
    }
    versions.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    let env = Env::in_memory(6);
    let reader = write_run(&env, options(Compression::None), single_max, &versions);
    assert_sound(&reader);
    (env, versions)
}

#[test]
fn a_damaged_byte_costs_only_speed_and_is_named() {
    for single_max in [SINGLE_MAX, 0] {
        let (env, versions) = small(single_max);
        let good = read_file(&env);
        let reader = open(&env);
        let model = newest(&versions);
        let section = |id: u16| reader.inner.meta.section(id).cloned();
        let root = section(SECTION_HASH_RUN).unwrap();
        let parts = section(SECTION_HASH_RUN_PARTITIONS);
        assert_eq!(parts.is_some(), single_max == 0);
        let layout = HashLayout::decode(
            &reader.read_section(&root).unwrap(),
            parts.as_ref().map_or(0, |s| s.len),
        );
        let refs = match layout.unwrap() {
            HashLayout::Single(_) => Vec::new(),
            HashLayout::Partitioned(refs) => refs,
        };
        let root_bytes = root.offset..root.offset + root.len;
        let part_bytes = parts.as_ref().map_or(0..0, |s| s.offset..s.offset + s.len);
        for at in root_bytes.clone().chain(part_bytes) {
            let mut bad = good.clone();
            bad[at as usize] ^= 1 << (at % 8);
            let reader = open(&env_with(&bad));
            let hit = parts.as_ref().filter(|_| !root_bytes.contains(&at)).map(|parts| {
                refs.iter().rposition(|part| parts.offset + part.offset <= at).unwrap()
            });
            let named = match hit {
                None => root.offset,
                Some(number) => parts.as_ref().unwrap().offset + refs[number].offset,
            };
            let report = reader.verify().unwrap();
            let offsets: Vec<u64> = report.damage.iter().map(|damage| damage.offset).collect();
            assert_eq!(offsets, [named], "byte {at}");
            for (key, value) in model.iter().skip(at as usize % 16).step_by(16) {
                assert_eq!(reader.get(key).unwrap().map(Vec::from), *value);
            }
            assert_eq!(reader.get(b"no such key").unwrap(), None);
            let slices = reader.hash_slices();
            let Some(number) = hit else {
                assert!(matches!(slices, Err(Error::Corruption { .. })));
                continue;
            };
            let mut slices = slices.unwrap();
            for slice in [number, (number + 1) % PARTITIONS] {
                let result = slices.slice(slice as u8);
                assert_eq!(
                    matches!(result, Err(Error::Corruption { offset, .. }) if offset == named),
                    slice == number
                );
            }
        }
    }
}

#[test]
fn a_run_that_disagrees_with_the_blocks_is_found_by_verifying() {
    for single_max in [SINGLE_MAX, 0] {
        let (env, versions) = small(single_max);
        let good = read_file(&env);
        let reader = open(&env);
        let root = reader.inner.meta.section(SECTION_HASH_RUN).unwrap().clone();
        let end = match reader.inner.meta.section(SECTION_HASH_RUN_PARTITIONS) {
            None => root.offset + root.len,
            Some(parts) => parts.offset + parts.len,
        };
        // The page of the last entry becomes another one that exists.
        let mut bad = good.clone();
        bad[end as usize - 2] ^= 1;
        reseal(&mut bad);
        assert!(bad != good);
        let reader = open(&env_with(&bad));
        reader.hash_slices().unwrap().slice(255).unwrap();
        let report = reader.verify().unwrap();
        let [damage] = &report.damage[..] else { panic!("{:?}", report.damage) };
        assert_eq!(damage.offset, root.offset);
        // The key is found all the same.
        for (key, value) in newest(&versions) {
            assert_eq!(reader.get(&key).unwrap().map(Vec::from), value);
        }
        // With a block that cannot be read, what the run says of its keys is not judged.
        let mut unread = good.clone();
        unread[100] ^= 1;
        let report = open(&env_with(&unread)).verify().unwrap();
        assert_eq!(report.damage.iter().map(|d| d.offset).collect::<Vec<_>>(), [0]);
    }
}

#[test]
fn without_a_run_that_can_be_used_filter_and_index_serve() {
    let versions = plain(500);
    let env = Env::in_memory(8);
    let without = SegmentOptions { hash_run: false, ..options(Compression::None) };
    write_in(&env, without, None, &versions);
    let reader = open(&env);
    assert!(!reader.has_hash_run());
    assert!(reader.sections().iter().all(|section| !section.name.starts_with("hash")));
    assert!(matches!(reader.hash_slices(), Err(Error::Corruption { .. })));
    assert_sound(&reader);
    for (key, _, _, value) in &versions {
        assert_eq!(reader.get(key).unwrap().unwrap(), *value);
    }
    // A layout of a later version.
    let (env, versions) = small(SINGLE_MAX);
    let root = open(&env).inner.meta.section(SECTION_HASH_RUN).unwrap().clone();
    let mut newer = read_file(&env);
    newer[root.offset as usize] = 3;
    reseal(&mut newer);
    let reader = open(&env_with(&newer));
    assert!(reader.has_hash_run());
    assert!(matches!(reader.hash_slices(), Err(Error::UnsupportedFormat { .. })));
    assert!(matches!(reader.verify(), Err(Error::UnsupportedFormat { .. })));
    for (key, value) in newest(&versions) {
        assert_eq!(reader.get(&key).unwrap().map(Vec::from), value);
    }
}

#[test]
fn partitions_without_a_root_are_no_run() {
    let (env, versions) = small(0);
    let mut bad = read_file(&env);
    let table = open(&env).inner.meta.footer.table_offset as usize;
    let line = (0..)
        .map(|i| table + 4 + 28 * i)
        .find(|at| bad[*at..at + 2] == SECTION_HASH_RUN.to_le_bytes())
        .unwrap();
    bad[line..line + 2].copy_from_slice(&0x8fffu16.to_le_bytes());
    reseal(&mut bad);
    let reader = open(&env_with(&bad));
    assert!(!reader.has_hash_run() && reader.hash_slices().is_err());
    for (key, value) in newest(&versions) {
        assert_eq!(reader.get(&key).unwrap().map(Vec::from), value);
    }
    let parts = reader.inner.meta.section(SECTION_HASH_RUN_PARTITIONS).unwrap();
    let report = reader.verify().unwrap();
    assert_eq!(report.damage.iter().map(|d| d.offset).collect::<Vec<_>>(), [parts.offset]);
}

#[test]
fn a_lookup_is_by_hash_run_alone_where_that_was_asked_for() {
    let (env, versions) = small(SINGLE_MAX);
    let mut bad = read_file(&env);
    let index = open(&env).inner.meta.section(1).unwrap().clone();
    bad[index.offset as usize + 30] ^= 1;
    let env = env_with(&bad);
    let run = open_cached(&env, &Arc::default(), PointIndex::HashRun);
    let filter = open_cached(&env, &Arc::default(), PointIndex::Filter);
    for (key, value) in newest(&versions) {
        assert_eq!(run.get(&key).unwrap().map(Vec::from), value);
        assert!(matches!(filter.get(&key), Err(Error::Corruption { .. })));
    }
}
