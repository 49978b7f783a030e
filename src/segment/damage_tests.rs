//! Damaged, foreign and newer files: detected, named, contained, and never a panic.

use super::fuzzing::reseal;
use super::tests::Version;
use super::tests::{
    PATH, Random, codecs, env_with, newest, open, options, plain, read_file, write, write_in,
};
use super::{Damage, FileSource, PointIndex, SegmentOptions, SegmentReader};
use crate::compression::Compression;
use crate::error::{Error, ErrorKind, Result};
use crate::types::{Kind, PAGE};
use crate::vfs::{Env, OpenMode, VfsFile};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Reads a damaged file in every way: the right answer or an error, and damage is reported.
fn check_damaged(bytes: &[u8], model: &BTreeMap<Vec<u8>, Option<Vec<u8>>>, what: &str) {
    let env = env_with(bytes);
    let reader = match SegmentReader::open_in(&env, PATH) {
        Ok(reader) => reader,
        Err(Error::Corruption { .. }) => return,
        Err(error) => panic!("{what}: {error}"),
    };
    let report = reader.verify().unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(!report.is_sound(), "{what}: not reported");
    // The keys of a block take turns, from one damaged file to the next.
    let turn = bytes.iter().map(|b| usize::from(*b)).sum::<usize>() % 3;
    for (key, value) in model.iter().skip(turn).step_by(3) {
        match reader.get(key) {
            Ok(got) => assert_eq!(got.map(Vec::from), *value, "{what}"),
            Err(Error::Corruption { .. }) => {}
            Err(error) => panic!("{what}: {error}"),
        }
    }
    for backwards in [false, true] {
        let mut expected: Vec<_> =
            model.iter().filter_map(|(k, v)| Some((k, v.as_ref()?))).collect();
        let mut range = reader.get_range::<&[u8]>(..);
        if backwards {
            expected.reverse();
        }
        let mut expected = expected.into_iter();
        loop {
            match if backwards { range.next_back() } else { range.next() } {
                Some(Ok((key, value))) => {
                    let (k, v) = expected.next().unwrap();
                    assert!(key == *k && value == *v, "{what}");
                }
                Some(Err(Error::Corruption { .. })) => {
                    assert!(range.next().is_none() && range.next_back().is_none());
                    break;
                }
                Some(Err(error)) => panic!("{what}: {error}"),
                None => {
                    assert_eq!(expected.next(), None, "{what}: a range that ends early");
                    break;
                }
            }
        }
    }
}

fn small(compression: Compression, partition_len: Option<usize>) -> (Vec<u8>, Vec<Version>) {
    let mut versions = Vec::new();
    for i in 0..66u64 {
        let value = format!("{i:0100}").into_bytes();
        versions.push((format!("key{i:03}").into_bytes(), i + 2, Kind::Put, value.clone()));
        if i % 9 == 0 {
            versions.push((format!("key{i:03}").into_bytes(), i + 1, Kind::Delete, vec![]));
        }
    }
    let env = Env::in_memory(5);
    let options = SegmentOptions { prefix_width: 4, ..options(compression) };
    write_in(&env, options, partition_len, &versions);
    (read_file(&env), versions)
}

#[test]
fn every_flipped_bit_is_detected_and_gives_no_wrong_answer() {
    for compression in codecs() {
        for partition_len in [None, Some(64)] {
            let (good, versions) = small(compression, partition_len);
            let model = newest(&versions);
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                check_damaged(
                    &bad,
                    &model,
                    &format!("{compression:?} byte {} bit {}", bit / 8, bit % 8),
                );
            }
        }
    }
}

#[test]
fn a_file_cut_or_extended_at_any_length_does_not_open() {
    let (good, _) = small(Compression::None, None);
    for len in 0..good.len() {
        let result = SegmentReader::open_in(&env_with(&good[..len]), PATH);
        assert!(matches!(result, Err(Error::Corruption { .. })), "{len}");
    }
    for extra in [1, 96, 4096] {
        let mut long = good.clone();
        long.resize(good.len() + extra, 0);
        assert!(matches!(
            SegmentReader::open_in(&env_with(&long), PATH),
            Err(Error::Corruption { .. })
        ));
    }
    let mut doubled = good.clone();
    doubled.extend_from_slice(&good);
    assert!(matches!(
        SegmentReader::open_in(&env_with(&doubled), PATH),
        Err(Error::Corruption { .. })
    ));
}

#[test]
fn blocks_moved_within_a_file_or_from_another_are_detected() {
    let versions = plain(1000);
    let (env, _) = write(options(Compression::None), &versions);
    let model = newest(&versions);
    let good = read_file(&env);
    let blocks: Vec<_> = open(&env).blocks().map(|b| b.unwrap()).collect();
    assert!(blocks.len() > 4 && blocks.iter().all(|b| b.pages == 1));
    let mut swapped = good.clone();
    let (a, b) = (blocks[1].offset as usize, blocks[3].offset as usize);
    swapped[a..a + PAGE].copy_from_slice(&good[b..b + PAGE]);
    swapped[b..b + PAGE].copy_from_slice(&good[a..a + PAGE]);
    check_damaged(&swapped, &model, "swapped");
    let report = open(&env_with(&swapped)).verify().unwrap();
    let numbers: Vec<_> = report.damage.iter().map(|d| (d.block, d.offset)).collect();
    assert_eq!(numbers, [(Some(1), a as u64), (Some(3), b as u64)]);

    let other_env = Env::in_memory(77);
    write_in(&other_env, options(Compression::None), None, &versions);
    let other = read_file(&other_env);
    let mut foreign = good.clone();
    foreign[a..a + PAGE].copy_from_slice(&other[a..a + PAGE]);
    check_damaged(&foreign, &model, "foreign");
}

#[test]
fn a_damaged_block_costs_only_its_own_keys_and_is_named() {
    let versions = plain(2000);
    for partition_len in [None, Some(100)] {
        let env = Env::in_memory(3);
        write_in(&env, options(Compression::None), partition_len, &versions);
        let good = read_file(&env);
        let blocks: Vec<_> = open(&env).blocks().map(|b| b.unwrap()).collect();
        for victim in &blocks {
            let mut bad = good.clone();
            bad[victim.offset as usize + 1000] ^= 4;
            let reader = open(&env_with(&bad));
            let report = reader.verify().unwrap();
            let [Damage { offset, block, key_range: Some((low, high)), .. }] = &report.damage[..]
            else {
                panic!("{:?}", report.damage);
            };
            assert_eq!((*offset, *block), (victim.offset, Some(victim.number)));
            assert!(low.as_slice() <= &*victim.first_key && &*victim.last_key <= high.as_slice());
            assert_eq!(report.blocks as usize, blocks.len() - 1);
            for (key, _, _, value) in &versions {
                let lost =
                    &*victim.first_key <= key.as_slice() && key.as_slice() <= &*victim.last_key;
                match reader.get(key) {
                    Ok(got) => assert!(!lost && got.unwrap() == *value),
                    Err(_) => assert!(lost),
                }
            }
            let before: Vec<_> = reader.get_range::<&[u8]>(..).collect();
            let readable = versions.iter().filter(|v| v.0.as_slice() < &*victim.first_key).count();
            assert_eq!(before.len(), readable + 1);
            assert!(before[readable].is_err());
            assert_eq!(reader.blocks().filter(Result::is_err).count(), 1);
        }
    }
}

#[test]
fn verify_reads_the_blocks_even_when_the_index_is_damaged() {
    let versions = plain(2000);
    for partition_len in [None, Some(100)] {
        let env = Env::in_memory(3);
        write_in(&env, options(Compression::None), partition_len, &versions);
        let reader = open(&env);
        let section = reader.sections().into_iter().find(|s| s.id <= 2).unwrap();
        let mut bad = read_file(&env);
        bad[section.offset as usize + 20] ^= 1;
        let last_page = reader.data_bytes() as usize - 5;
        bad[last_page] ^= 1;
        let report = open(&env_with(&bad)).verify().unwrap();
        assert_eq!(report.damage.len(), 2, "{:?}", report.damage);
        assert_eq!(report.blocks, reader.properties().blocks - 1);
    }
}

#[test]
fn a_damaged_bloom_filter_is_reported_but_hides_no_key() {
    for partition_len in [None, Some(100)] {
        let env = Env::in_memory(3);
        write_in(&env, options(Compression::None), partition_len, &plain(500));
        let reader = open(&env);
        let section = reader.sections().into_iter().find(|s| s.name.starts_with("bloom")).unwrap();
        let mut bad = read_file(&env);
        bad[section.offset as usize + 50] ^= 1;
        let reader = open(&env_with(&bad));
        assert_eq!(reader.verify().unwrap().damage.len(), 1);
        for (key, _, _, value) in plain(500) {
            assert_eq!(reader.get(&key).unwrap().unwrap(), value);
        }
    }
}

#[test]
fn malformed_structures_behind_good_checksums_cause_no_panic() {
    let mut random = Random(23);
    for compression in codecs() {
        for partition_len in [None, Some(64)] {
            let (good, _) = small(compression, partition_len);
            let mut resealed = good.clone();
            reseal(&mut resealed);
            assert!(resealed == good, "resealing a good file changes nothing");
            let meta = open(&env_with(&good)).data_bytes() as usize;
            for round in 0..1500 {
                let mut bad = good.clone();
                for _ in 0..1 + random.below(3) {
                    let at = if round % 2 == 0 {
                        meta + random.below(bad.len() - meta)
                    } else {
                        let page = random.below(meta / PAGE) * PAGE;
                        page + if random.below(2) == 0 {
                            random.below(64)
                        } else {
                            random.below(PAGE)
                        }
                    };
                    bad[at] = match random.below(4) {
                        0 => 0,
                        1 => 0xff,
                        2 => bad[at] ^ (1 << random.below(8)),
                        _ => random.next() as u8,
                    };
                }
                super::fuzzing::segment_bytes(&bad);
            }
            super::fuzzing::data_block(&good[..PAGE]);
            for _ in 0..1500 {
                let mut block = good[..PAGE].to_vec();
                for _ in 0..1 + random.below(4) {
                    let at = random.below(PAGE);
                    block[at] = random.next() as u8;
                }
                super::fuzzing::data_block(&block);
            }
        }
    }
    for len in 0..600 {
        let bytes = random.bytes(len * 20);
        super::fuzzing::segment_bytes(&bytes);
        super::fuzzing::data_block(&bytes);
    }
}

#[test]
fn newer_formats_are_unsupported_not_damaged() {
    let (good, _) = small(Compression::None, None);
    let footer = good.len() - 96;
    let table = u64::from_le_bytes(good[footer + 24..footer + 32].try_into().unwrap()) as usize;
    // Each: offset, value; of the version, a section id, a block's codec, an entry's kind.
    for (at, value) in [(footer + 56, 2), (table + 4 + 1, 1), (24, 9), (32 + 6, 5 | 1 << 3)] {
        let mut newer = good.clone();
        newer[at] = value;
        reseal(&mut newer);
        let outcome = SegmentReader::open_in(&env_with(&newer), PATH)
            .and_then(|reader| reader.get(b"key000"));
        assert!(matches!(outcome, Err(Error::UnsupportedFormat { .. })), "{at}: {outcome:?}");
    }
    let mut version_zero = good.clone();
    version_zero[footer + 56] = 0;
    reseal(&mut version_zero);
    let outcome = SegmentReader::open_in(&env_with(&version_zero), PATH);
    assert!(matches!(outcome, Err(Error::Corruption { .. })));
}

#[cfg(not(feature = "zstd"))]
#[test]
fn a_codec_that_is_not_in_the_build_is_refused_by_name() {
    let env = Env::in_memory(1);
    let result = super::SegmentWriter::create_in(&env, PATH, options(Compression::Zstd(3)));
    assert!(matches!(result, Err(Error::InvalidOption { option: "compression", .. })));
    let (good, _) = small(Compression::None, None);
    let mut zstd = good;
    zstd[24] = 2;
    reseal(&mut zstd);
    let outcome = open(&env_with(&zstd)).get(b"key000");
    assert!(matches!(outcome, Err(Error::UnsupportedFormat { .. })));
}

/// A file of which one sector cannot be read.
#[derive(Debug)]
struct BadSector {
    file: Arc<dyn VfsFile>,
    at: u64,
}

impl VfsFile for BadSector {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if offset <= self.at && self.at < offset + buf.len() as u64 {
            return Err(io::Error::other("medium error"));
        }
        self.file.read_at(buf, offset)
    }
    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

struct BadSource(Env, u64);

impl FileSource for BadSource {
    fn file(&self) -> Result<Arc<dyn VfsFile>> {
        let file = self.0.vfs.open(Path::new(PATH), OpenMode::Read).unwrap();
        Ok(Arc::new(BadSector { file, at: self.1 }))
    }
}

#[test]
fn a_sector_that_cannot_be_read_costs_its_block_and_is_reported() {
    let versions = plain(1000);
    let (env, _) = write(options(Compression::None), &versions);
    let victim = open(&env).blocks().nth(2).unwrap().unwrap();
    let source = Arc::new(BadSource(env, victim.offset + 600));
    let reader =
        SegmentReader::open_with(source, PATH.into(), None, PointIndex::default()).unwrap();
    let report = reader.verify().unwrap();
    let [damage] = &report.damage[..] else { panic!("{:?}", report.damage) };
    assert_eq!((damage.block, damage.offset), (Some(2), victim.offset));
    assert!(damage.what.contains("medium error"));
    for (key, _, _, value) in &versions {
        let lost = *victim.first_key <= **key && **key <= *victim.last_key;
        match reader.get(key) {
            Ok(got) => assert!(!lost && got.unwrap() == *value),
            Err(error) => assert!(lost && error.kind() == ErrorKind::Io),
        }
    }
}

#[test]
fn a_hash_run_that_cannot_be_read_costs_only_speed_and_is_reported() {
    let versions = plain(1000);
    let (env, _) = write(options(Compression::None), &versions);
    let section = open(&env).sections().into_iter().find(|s| s.name == "hash run").unwrap();
    let source = Arc::new(BadSource(env, section.offset + 600));
    let reader =
        SegmentReader::open_with(source, PATH.into(), None, PointIndex::default()).unwrap();
    for (key, _, _, value) in &versions {
        assert_eq!(reader.get(key).unwrap().unwrap(), *value);
    }
    assert_eq!(reader.get(b"no such key").unwrap(), None);
    assert_eq!(reader.hash_slices().unwrap_err().kind(), ErrorKind::Io);
    let report = reader.verify().unwrap();
    let [damage] = &report.damage[..] else { panic!("{:?}", report.damage) };
    assert_eq!(damage.offset, section.offset);
}
