//! The segment room as a whole: writer, reader, cursor, ranges and verify against simple models.

use super::{
    BlockCache, CursorOptions, Frames, Part, PointIndex, SegmentInfo, SegmentOptions,
    SegmentReader, SegmentWriter,
};
use crate::compression::Compression;
use crate::cursor::{Cursor, Seek};
use crate::error::{Error, Result};
use crate::hash::{hash_byte, key_hash};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::types::{Kind, PAGE, SeqNo};
use crate::vfs::{Env, MemVfs, OpenMode, Vfs, VfsFile, VfsLock};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

/// A version of a key, as written and as read.
pub(super) type Version = (Vec<u8>, u64, Kind, Vec<u8>);

pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let z = self.0 ^ (self.0 >> 29);
        z.wrapping_mul(0xBF58_476D_1CE4_E5B9) ^ (z >> 32)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

pub(super) fn codecs() -> Vec<Compression> {
    [Compression::None, Compression::Lz4, Compression::Zstd(3)]
        .into_iter()
        .filter(|compression| compression.available().is_ok())
        .collect()
}

pub(super) fn options(compression: Compression) -> SegmentOptions {
    SegmentOptions { compression, ..SegmentOptions::default() }
}

pub(super) const PATH: &str = "test.seg";

pub(super) fn write_in(
    env: &Env,
    options: SegmentOptions,
    partition_len: Option<usize>,
    versions: &[Version],
) -> SegmentInfo {
    let mut writer = SegmentWriter::create_in(env, PATH, options).unwrap();
    if let Some(len) = partition_len {
        writer.set_partition_len(len);
    }
    for (key, seqno, kind, value) in versions {
        writer.add(key, SeqNo(*seqno), *kind, value).unwrap();
    }
    writer.finish().unwrap()
}

pub(super) fn write(options: SegmentOptions, versions: &[Version]) -> (Env, SegmentInfo) {
    let env = Env::in_memory(42);
    let info = write_in(&env, options, None, versions);
    (env, info)
}

pub(super) fn open(env: &Env) -> SegmentReader {
    SegmentReader::open_in(env, PATH).unwrap()
}

pub(super) fn read_file(env: &Env) -> Vec<u8> {
    let file = env.vfs.open(Path::new(PATH), OpenMode::Read).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

pub(super) fn env_with(bytes: &[u8]) -> Env {
    let env = Env::in_memory(7);
    let file = env.vfs.open(Path::new(PATH), OpenMode::CreateNew).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    env
}

/// Keys of very different shapes, several versions of some.
pub(super) fn mixed(random: &mut Random, keys: usize) -> Vec<Version> {
    let mut model: BTreeMap<Vec<u8>, Vec<Version>> = BTreeMap::new();
    for _ in 0..keys {
        let len = random.below(12);
        let mut key = match random.below(3) {
            0 => b"a-long-common-prefix/".to_vec(),
            1 => b"b".to_vec(),
            _ => Vec::new(),
        };
        key.extend((0..len).map(|_| b'a' + random.below(4) as u8));
        let count = if random.below(20) == 0 { random.below(200) } else { 1 + random.below(3) };
        let mut seqno = random.below(3) as u64;
        let mut versions = Vec::new();
        for _ in 0..count.max(1) {
            let kind = if random.below(5) == 0 { Kind::Delete } else { Kind::Put };
            let len = if random.below(30) == 0 { random.below(9000) } else { random.below(120) };
            let half = random.bytes(len / 2);
            let value =
                if kind == Kind::Put { [half, vec![b'.'; len / 2]].concat() } else { vec![] };
            versions.push((key.clone(), seqno, kind, value));
            seqno += 1 + random.below(5) as u64;
        }
        versions.reverse();
        model.insert(key, versions);
    }
    model.into_values().flatten().collect()
}

pub(super) fn plain(keys: usize) -> Vec<Version> {
    (0..keys)
        .map(|i| {
            (format!("key{i:06}").into_bytes(), 0, Kind::Put, format!("value of {i}").into_bytes())
        })
        .collect()
}

pub(super) fn newest(versions: &[Version]) -> BTreeMap<Vec<u8>, Option<Vec<u8>>> {
    let mut model = BTreeMap::new();
    for (key, _, kind, value) in versions {
        model.entry(key.clone()).or_insert((*kind == Kind::Put).then(|| value.clone()));
    }
    model
}

pub(super) fn probes(versions: &[Version], random: &mut Random) -> Vec<Vec<u8>> {
    let mut probes = vec![Vec::new(), vec![0xff; 5], vec![0]];
    for _ in 0..60 {
        let key = &versions[random.below(versions.len())].0;
        probes.push(key.clone());
        probes.push([key.as_slice(), &[0]].concat());
        if !key.is_empty() {
            probes.push(key[..key.len() - 1].to_vec());
        }
    }
    probes
}

fn check_gets(reader: &SegmentReader, versions: &[Version], random: &mut Random) {
    let model = newest(versions);
    let seed = reader.properties().hash_seed;
    for probe in probes(versions, random) {
        let expected = model.get(&probe).cloned().flatten();
        assert_eq!(reader.get(&probe).unwrap().map(Vec::from), expected, "{probe:?}");
        let snapshot = random.below(300) as u64;
        let hash = key_hash(&probe, seed);
        let found = reader.get_at(&probe, hash, SeqNo(snapshot)).unwrap();
        assert_eq!(reader.get_by_filter(&probe, hash, SeqNo(snapshot)).unwrap(), found);
        let expected = versions.iter().find(|v| v.0 == probe && v.1 <= snapshot);
        assert_eq!(
            found.map(|f| (f.seqno.0, f.kind, f.value.to_vec())),
            expected.map(|v| (v.1, v.2, v.3.clone())),
        );
    }
}

fn check_ranges(reader: &SegmentReader, versions: &[Version], random: &mut Random) {
    let model: BTreeMap<Vec<u8>, Vec<u8>> =
        newest(versions).into_iter().filter_map(|(k, v)| Some((k, v?))).collect();
    let probes = probes(versions, random);
    for round in 0..60 {
        let mut bound = |n: usize| {
            let key = probes[n % probes.len()].clone();
            match random.below(4) {
                0 => Bound::Unbounded,
                1 => Bound::Excluded(key),
                _ => Bound::Included(key),
            }
        };
        let range: (Bound<Vec<u8>>, Bound<Vec<u8>>) = (bound(round * 7), bound(round * 13 + 5));
        let reversed = match (&range.0, &range.1) {
            (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => {
                a > b
                    || (a == b && range.0 != range.1)
                    || (a == b && matches!(range.0, Bound::Excluded(_)))
            }
            _ => false,
        };
        let mut expected: std::collections::VecDeque<_> = if reversed {
            std::collections::VecDeque::default()
        } else {
            model.range(range.clone()).collect()
        };
        let mut items = reader.get_range(range);
        let style = random.below(4);
        let mut limit = 200;
        loop {
            let front = match style {
                0 => true,
                1 => false,
                _ => random.below(2) == 0,
            };
            let (item, want) = if front {
                (items.next(), expected.pop_front())
            } else {
                (items.next_back(), expected.pop_back())
            };
            let item = item.map(|item| item.unwrap()).map(|(k, v)| (Vec::from(k), Vec::from(v)));
            assert_eq!(item, want.map(|(k, v)| (k.clone(), v.clone())));
            limit -= 1;
            if item.is_none() || limit == 0 {
                break;
            }
        }
    }
}

fn at(cursor: &impl Cursor) -> Option<Version> {
    cursor.valid().then(|| {
        assert_eq!(cursor.key(), cursor.key_bytes());
        (cursor.key().to_vec(), cursor.seqno().0, cursor.kind(), cursor.value().to_vec())
    })
}

fn check_cursor(reader: &SegmentReader, versions: &[Version], random: &mut Random) {
    let choices = [
        CursorOptions { fill_cache: true, readahead: false },
        CursorOptions { fill_cache: false, readahead: true },
    ];
    for choice in choices {
        let mut cursor = reader.cursor(choice);
        for probe in probes(versions, random) {
            let first_at = versions.partition_point(|v| v.0 < probe);
            let first_after = versions.partition_point(|v| v.0 <= probe);
            let seeks = [
                (Seek::First, Some(0)),
                (Seek::AtOrAfter(&probe), Some(first_at)),
                (Seek::After(&probe), Some(first_after)),
                (Seek::Last, Some(versions.len() - 1)),
                (Seek::AtOrBefore(&probe), first_after.checked_sub(1)),
                (Seek::Before(&probe), first_at.checked_sub(1)),
            ];
            let (seek, mut expected) = seeks[random.below(6)];
            cursor.seek(seek).unwrap();
            for _ in 0..random.below(40) {
                let want = expected.and_then(|i| versions.get(i));
                assert_eq!(at(&cursor).as_ref(), want, "{seek:?}");
                if random.below(3) == 0 {
                    cursor.prev().unwrap();
                    expected = want.and(expected).and_then(|i| i.checked_sub(1));
                } else {
                    cursor.next().unwrap();
                    expected = want.and(expected).map(|i| i + 1);
                }
                if expected.is_none_or(|i| i >= versions.len()) {
                    assert!(!cursor.valid());
                    break;
                }
            }
        }
        cursor.seek(Seek::First).unwrap();
        for version in versions {
            assert_eq!(at(&cursor).as_ref(), Some(version));
            cursor.next().unwrap();
        }
        assert!(!cursor.valid());
        cursor.seek(Seek::Last).unwrap();
        for version in versions.iter().rev() {
            assert_eq!(at(&cursor).as_ref(), Some(version));
            cursor.prev().unwrap();
        }
        assert!(!cursor.valid());
    }
}

pub(super) fn assert_sound(reader: &SegmentReader) {
    let report = reader.verify().unwrap();
    assert_eq!(report.damage, []);
    assert_eq!(report.entries, reader.properties().entries);
    assert_eq!(report.blocks, reader.properties().blocks);
}

#[derive(Default)]
pub(super) struct TestCache(pub(super) Mutex<HashMap<(u64, u64), Part>>);

/// A reader with a cache, as a database has it.
pub(super) fn open_cached(env: &Env, cache: &Arc<TestCache>, points: PointIndex) -> SegmentReader {
    let source = Arc::new(Pool(env.clone()));
    SegmentReader::open_with(source, PATH.into(), Some((cache.clone(), 1)), points).unwrap()
}

/// The pages whose blocks are cached.
pub(super) fn held(reader: &SegmentReader) -> Vec<u64> {
    reader.inner.frames.as_ref().unwrap().pages()
}

impl BlockCache for TestCache {
    fn get(&self, file: u64, offset: u64) -> Option<Part> {
        self.0.lock().get(&(file, offset)).cloned()
    }

    fn insert(&self, file: u64, offset: u64, part: Part) {
        assert!(part.bytes() > 0);
        self.0.lock().insert((file, offset), part);
    }

    fn charge(&self, bytes: u64) {
        assert!(bytes > PAGE as u64 / 2);
    }

    fn admit(&self, _: &Arc<Frames>, _: u64) {}

    fn release(&self, _: u64) {}

    fn grow(&self, _: u64) {}

    fn shrink(&self, _: u64) {}

    fn has_room(&self, _: u64) -> bool {
        true
    }

    fn is_crowded(&self) -> bool {
        false
    }

    fn count(&self, _: u64, _: u64) {}

    fn era(&self) -> Option<u32> {
        None
    }
}

struct Pool(Env);

impl super::FileSource for Pool {
    fn file(&self) -> Result<Arc<dyn crate::vfs::VfsFile>> {
        self.0
            .vfs
            .open(Path::new(PATH), OpenMode::Read)
            .map_err(|e| Error::io("open", Path::new(PATH), e))
    }
}

#[test]
fn every_combination_of_options_reads_back_what_was_written() {
    let mut random = Random(1);
    for compression in codecs() {
        for prefix_width in [0, 2, 4, 8] {
            for (bloom_bits_per_key, partition_len) in [(10, None), (0, Some(300)), (7, Some(300))]
            {
                let versions = mixed(&mut random, 400);
                let env = Env::in_memory(random.next());
                let options = SegmentOptions {
                    compression,
                    bloom_bits_per_key,
                    prefix_width,
                    ..SegmentOptions::default()
                };
                let info = write_in(&env, options, partition_len, &versions);
                let reader = open(&env);
                assert_eq!(reader.properties(), &info.properties);
                assert_eq!(reader.uuid(), info.uuid);
                assert_eq!(reader.file_len(), info.file_len);
                assert_eq!(reader.footer_checksum(), info.footer_checksum);
                assert_eq!(reader.last_key().unwrap(), info.last_key);
                assert_eq!(info.last_key, versions.last().unwrap().0);
                let partitioned = reader.sections().iter().any(|s| s.id == 2);
                assert_eq!(partitioned, partition_len.is_some());
                let bloom_partitioned = reader.sections().iter().any(|s| s.id == 4);
                assert_eq!(bloom_partitioned, partition_len.is_some() && bloom_bits_per_key > 0);
                assert_sound(&reader);
                let cache = Arc::new(TestCache::default());
                let cached = open_cached(&env, &cache, PointIndex::HashRun);
                for reader in [reader, cached] {
                    check_gets(&reader, &versions, &mut random);
                    check_ranges(&reader, &versions, &mut random);
                    check_cursor(&reader, &versions, &mut random);
                }
                assert!(!cache.0.lock().is_empty());
            }
        }
    }
}

#[test]
fn keys_and_values_at_their_limits_round_trip() {
    for compression in codecs() {
        let mut random = Random(3);
        let mut versions: Vec<Version> = vec![
            (vec![], 0, Kind::Put, vec![]),
            (vec![0], 0, Kind::Put, random.bytes(70_000)),
            (vec![0, 1], 9, Kind::Put, vec![7; 300_000]),
            (vec![0, 1], 8, Kind::Delete, vec![]),
            (vec![0, 1], 7, Kind::Put, random.bytes(65_536)),
            (vec![5; 65_534], 1, Kind::Put, vec![1]),
            (vec![5; 65_535], 1, Kind::Put, vec![2; 65_535]),
            (vec![6; 65_535], 1, Kind::Delete, vec![]),
        ];
        for n in 65_440..65_512 {
            versions.push((vec![7, (n >> 8) as u8, n as u8], 0, Kind::Put, random.bytes(n)));
        }
        let (env, info) = write(options(compression), &versions);
        let reader = open(&env);
        assert_sound(&reader);
        for (key, ..) in &versions {
            let expected = versions.iter().find(|v| v.0 == *key).unwrap();
            let value = reader.get(key).unwrap().map(Vec::from);
            assert_eq!(value, (expected.2 == Kind::Put).then(|| expected.3.clone()));
        }
        check_cursor(&reader, &versions, &mut random);
        assert_eq!(info.properties.first_key, b"");
        assert_eq!(info.properties.tombstones, 2);
    }
    let env = Env::in_memory(1);
    let mut writer = SegmentWriter::create_in(&env, PATH, SegmentOptions::default()).unwrap();
    assert!(matches!(writer.put(&[0; 65_536], b""), Err(Error::KeyTooLong { len: 65_536 })));
    writer.put(b"", b"the empty key").unwrap();
    writer.finish().unwrap();
    let reader = open(&env);
    assert_sound(&reader);
    assert_eq!(reader.get(b"").unwrap().unwrap(), b"the empty key");
    assert_eq!(reader.get(&[0; 70_000]).unwrap(), None);
}

#[test]
fn versions_of_a_key_over_many_blocks_are_all_found() {
    let mut versions = vec![(b"before".to_vec(), 5, Kind::Put, vec![1; 50])];
    for seqno in (1..=2000).rev() {
        versions.push((b"hot".to_vec(), seqno, Kind::Put, seqno.to_string().into_bytes()));
    }
    versions.push((b"later".to_vec(), 5, Kind::Put, vec![2; 50]));
    for compression in codecs() {
        let (env, info) = write(options(compression), &versions);
        assert!(info.properties.blocks > 2, "{}", info.properties.blocks);
        let reader = open(&env);
        assert_sound(&reader);
        let hash = key_hash(b"hot", reader.properties().hash_seed);
        for snapshot in (1..=2000).step_by(13) {
            let found = reader.get_at(b"hot", hash, SeqNo(snapshot)).unwrap().unwrap();
            assert_eq!(found.seqno, SeqNo(snapshot));
            assert_eq!(found.value, snapshot.to_string().into_bytes());
        }
        assert_eq!(reader.get_at(b"hot", hash, SeqNo(0)).unwrap(), None);
        let keys: Vec<Vec<u8>> =
            reader.get_range::<&[u8]>(..).rev().map(|item| item.unwrap().0.to_vec()).collect();
        assert_eq!(keys, [b"later".to_vec(), b"hot".to_vec(), b"before".to_vec()]);
        check_cursor(&reader, &versions, &mut Random(9));
    }
}

#[test]
fn entries_out_of_order_are_refused_and_the_writer_goes_on() {
    let env = Env::in_memory(1);
    let mut writer = SegmentWriter::create_in(&env, PATH, SegmentOptions::default()).unwrap();
    writer.add(b"b", SeqNo(5), Kind::Put, b"x").unwrap();
    for (key, seqno) in [(b"a", 9), (b"b", 5), (b"b", 6)] {
        let result = writer.add(key, SeqNo(seqno), Kind::Put, b"y");
        assert!(matches!(result, Err(Error::OutOfOrder { entry: 1 })));
    }
    writer.add(b"b", SeqNo(4), Kind::Put, b"z").unwrap();
    writer.put(b"c", b"").unwrap();
    assert!(matches!(writer.put(b"c", b""), Err(Error::OutOfOrder { entry: 3 })));
    writer.finish().unwrap();
    let reader = open(&env);
    assert_sound(&reader);
    assert_eq!(reader.properties().entries, 3);
    let empty = SegmentWriter::create_in(&env, "empty", SegmentOptions::default()).unwrap();
    assert!(matches!(empty.finish(), Err(Error::InvalidOption { .. })));
    assert!(SegmentWriter::create_in(&env, PATH, SegmentOptions::default()).is_err());
    for bad in [
        SegmentOptions { prefix_width: 3, ..SegmentOptions::default() },
        SegmentOptions { bloom_bits_per_key: 65, ..SegmentOptions::default() },
    ] {
        assert!(matches!(
            SegmentWriter::create_in(&env, "bad", bad),
            Err(Error::InvalidOption { .. })
        ));
    }
}

#[test]
fn padding_is_at_most_six_percent_and_blocks_are_compressed_about_once() {
    for compression in codecs() {
        for half_compressible in [false, true] {
            for sequential in [false, true] {
                let mut random = Random(11);
                let mut keys: Vec<Vec<u8>> = (0..30_000u64)
                    .map(|i| {
                        if sequential { format!("{i:016}").into_bytes() } else { random.bytes(16) }
                    })
                    .collect();
                keys.sort();
                let env = Env::in_memory(1);
                let mut writer =
                    SegmentWriter::create_in(&env, PATH, options(compression)).unwrap();
                for key in &keys {
                    let mut value = random.bytes(100);
                    if half_compressible {
                        value[50..].fill(b' ');
                    }
                    writer.put(key, &value).unwrap();
                }
                let compressions = writer.compressions();
                let info = writer.finish().unwrap();
                let what = format!("{compression:?} {half_compressible} {sequential}");
                let padding = info.padding_ratio();
                assert!(padding <= 0.06, "{what}: {padding}");
                let blocks = info.properties.blocks;
                assert!(compressions <= 2 * blocks, "{what}: {compressions} for {blocks}");
                let reader = open(&env);
                assert_sound(&reader);
                let sum: u64 = reader.blocks().map(|block| block.unwrap().padding).sum();
                assert_eq!(sum, info.data_bytes - info.properties.stored_bytes);
                if half_compressible && compression != Compression::None {
                    assert!(info.data_bytes * 10 < info.properties.raw_bytes * 9, "{what}");
                }
            }
        }
    }
}

#[test]
fn padding_stays_low_for_values_of_any_size_and_changing_compressibility() {
    for compression in codecs() {
        for len in [0, 1, 10, 250, 700, 1000, 1500, 2500] {
            let mut random = Random(13);
            let env = Env::in_memory(1);
            let mut writer = SegmentWriter::create_in(&env, PATH, options(compression)).unwrap();
            for i in 0..(3_000_000 / (len as u32 + 14)) {
                let mut value = random.bytes(len);
                let share = (i / 700) as usize % 5;
                value[..len * share / 5].fill(0);
                writer.put(&i.to_be_bytes(), &value).unwrap();
            }
            let info = writer.finish().unwrap();
            let padding = info.padding_ratio();
            assert!(padding <= 0.065, "{compression:?} {len}: {padding}");
            assert_sound(&open(&env));
        }
    }
}

#[test]
fn a_real_segment_crosses_the_partition_thresholds() {
    let mut random = Random(17);
    let mut versions = Vec::new();
    for i in 0..60_000u64 {
        let mut key = format!("{:024x}", i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).into_bytes();
        key.extend_from_slice(&[b'k'; 20]);
        versions.push((key, 0, Kind::Put, random.bytes(400)));
    }
    versions.sort_by(|a, b| a.0.cmp(&b.0));
    let (env, info) =
        write(SegmentOptions { bloom_bits_per_key: 10, ..options(Compression::None) }, &versions);
    let reader = open(&env);
    let ids: Vec<u16> = reader.sections().iter().map(|s| s.id).collect();
    assert_eq!(ids, [2, 1, 4, 3, 0x8002, 0x8001, 6, 7, 5]);
    assert_sound(&reader);
    for (key, _, _, value) in versions.iter().step_by(101) {
        assert_eq!(reader.get(key).unwrap().unwrap(), *value);
    }
    check_cursor(&reader, &versions[..], &mut random);
    let all = reader.approximate_bytes(Bound::Unbounded, Bound::Unbounded).unwrap();
    assert_eq!(all, info.data_bytes);
    let (low, high) = (&versions[15_000].0, &versions[45_000].0);
    let half = reader.approximate_bytes(Bound::Included(low), Bound::Excluded(high)).unwrap();
    assert!((half as f64 / all as f64 - 0.5).abs() < 0.01, "{half} of {all}");
    let none = reader.approximate_bytes(Bound::Included(high), Bound::Excluded(low)).unwrap();
    assert_eq!(none, 0);
}

#[test]
fn kept_metadata_opens_the_same_file_and_no_other() {
    let (env, _) = write(SegmentOptions::default(), &plain(1000));
    let first = open(&env);
    assert!(first.get(b"key000007").unwrap().is_some());
    let again = SegmentReader::with_metadata_in(&env, PATH, first.metadata()).unwrap();
    assert_eq!(again.get(b"key000007").unwrap().unwrap(), b"value of 7");
    let other = Env::in_memory(43);
    write_in(&other, SegmentOptions::default(), None, &plain(1000));
    let wrong = SegmentReader::with_metadata_in(&other, PATH, first.metadata());
    assert!(matches!(wrong, Err(Error::Corruption { .. })));
}

#[test]
fn huge_blocks_pass_by_the_cache() {
    let versions = vec![
        (b"huge".to_vec(), 0, Kind::Put, Random(1).bytes(200_000)),
        (b"small".to_vec(), 0, Kind::Put, vec![1]),
    ];
    let (env, _) = write(options(Compression::None), &versions);
    let cache = Arc::new(TestCache::default());
    let reader = open_cached(&env, &cache, PointIndex::HashRun);
    reader.get(b"huge").unwrap().unwrap();
    reader.get(b"small").unwrap().unwrap();
    assert_eq!(held(&reader), [49]);
}

#[test]
fn huge_values_that_shrink_pass_by_the_cache_too() {
    for compression in codecs().into_iter().filter(|c| *c != Compression::None) {
        let (env, info) =
            write(options(compression), &[(b"k".to_vec(), 0, Kind::Put, vec![7; 1 << 20])]);
        assert!(info.data_bytes <= 65_536);
        let cache = Arc::new(TestCache::default());
        let reader = open_cached(&env, &cache, PointIndex::HashRun);
        assert_eq!(reader.get(b"k").unwrap().unwrap().len(), 1 << 20);
        assert!(held(&reader).is_empty());
    }
}

#[test]
fn readers_are_shared_and_iterators_are_sent_between_threads() {
    fn shared<T: Send + Sync + Clone>(_: &T) {}
    fn sent<T: Send + 'static>(value: T) -> T {
        value
    }
    let (env, _) = write(SegmentOptions::default(), &plain(5000));
    let reader = open(&env);
    shared(&reader);
    let range = sent(reader.get_range("key001000".."key004000"));
    sent(reader.cursor(CursorOptions::default()));
    let threads: Vec<_> = (0..4)
        .map(|t| {
            let reader = reader.clone();
            std::thread::spawn(move || {
                for i in (t..5000).step_by(7) {
                    let key = format!("key{i:06}");
                    assert_eq!(
                        reader.get(key.as_bytes()).unwrap().unwrap(),
                        format!("value of {i}")
                    );
                }
            })
        })
        .collect();
    assert_eq!(std::thread::spawn(move || range.count()).join().unwrap(), 3000);
    for thread in threads {
        thread.join().unwrap();
    }
}

/// A file system whose files forget what is written, or fail from some write on.
#[derive(Debug)]
struct Sink {
    memory: MemVfs,
    fail_from: usize,
    writes: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct SinkFile {
    fail_from: usize,
    writes: Arc<AtomicUsize>,
}

impl VfsFile for SinkFile {
    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        Ok(0)
    }
    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        if self.writes.fetch_add(1, Ordering::Relaxed) == self.fail_from {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(0)
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Vfs for Sink {
    fn open(&self, _: &Path, _: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        Ok(Arc::new(SinkFile { fail_from: self.fail_from, writes: self.writes.clone() }))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.memory.create_dir_all(path)
    }
    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        self.memory.read_dir(path)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.memory.exists(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.memory.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.memory.remove_file(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.memory.sync_dir(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        self.memory.lock(path)
    }
}

fn sink(fail_from: usize) -> Env {
    let sink = Sink { memory: MemVfs::default(), fail_from, writes: Arc::default() };
    Env { vfs: Arc::new(sink), ..Env::in_memory(1) }
}

#[test]
fn a_full_segment_says_so_in_time_and_can_be_finished() {
    let options = SegmentOptions { bloom_bits_per_key: 0, ..options(Compression::None) };
    for value_len in [0, 3000, 60_000, 1 << 20] {
        let mut writer =
            SegmentWriter::create_in(&sink(usize::MAX), PATH, options.clone()).unwrap();
        let value = vec![1; value_len];
        let mut full_at = None;
        let added = (0u64..)
            .find(|i| {
                if writer.is_full() && full_at.is_none() {
                    full_at = Some(*i);
                }
                let result = writer.put(&i.to_be_bytes(), &value);
                assert!(matches!(result, Ok(()) | Err(Error::SegmentFull { .. })));
                result.is_err()
            })
            .unwrap();
        assert!(full_at.unwrap() < added);
        let info = writer.finish().unwrap();
        assert_eq!(info.properties.entries, added);
        if value_len == 0 {
            assert_eq!(added, 8_388_608);
        } else {
            assert!(info.data_bytes <= 65_536 * PAGE as u64 + (1 << 20));
            assert!(info.data_bytes > 65_000 * PAGE as u64);
        }
    }
}

#[test]
fn versions_of_a_key_stay_together_past_the_page_limit() {
    let options = options(Compression::None);
    let mut writer = SegmentWriter::create_in(&sink(usize::MAX), PATH, options).unwrap();
    let value = vec![1; 1 << 20];
    for seqno in (1..=300).rev() {
        writer.add(b"key", SeqNo(seqno), Kind::Put, &value).unwrap();
    }
    assert!(writer.is_full());
    assert!(matches!(writer.put(b"next", b""), Err(Error::SegmentFull { .. })));
    let info = writer.finish().unwrap();
    assert_eq!((info.properties.entries, info.properties.distinct_keys), (300, 1));
    assert!(info.data_bytes > 65_536 * PAGE as u64);
}

#[test]
fn after_a_failed_write_the_writer_refuses_everything() {
    let mut writer = SegmentWriter::create_in(&sink(1), PATH, options(Compression::None)).unwrap();
    let mut failures = 0;
    for i in 0..2000u32 {
        match writer.put(&i.to_be_bytes(), &[0; 1000]) {
            Ok(()) => assert_eq!(failures, 0),
            Err(Error::DiskFull { .. }) => failures += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(failures > 0);
    assert!(matches!(writer.finish(), Err(Error::DiskFull { .. })));
}

#[test]
fn a_tiny_segment_has_the_bytes_that_the_format_describes() {
    let env = Env::in_memory(1);
    let options = SegmentOptions {
        compression: Compression::None,
        prefix_width: 2,
        hash_seed: Some(99),
        ..SegmentOptions::default()
    };
    let mut writer = SegmentWriter::create_in(&env, PATH, options).unwrap();
    writer.add(b"abc", SeqNo(7), Kind::Put, b"xy").unwrap();
    writer.add(b"abc", SeqNo(3), Kind::Delete, b"").unwrap();
    writer.add(b"abd", SeqNo(0), Kind::Put, b"z").unwrap();
    writer.finish().unwrap();
    let bytes = read_file(&env);
    let block = &bytes[..PAGE];
    let mut header = vec![1, 0, 0, 0];
    for _ in 0..2 {
        header.extend_from_slice(&4064u64.to_le_bytes()[..5]);
    }
    header.extend_from_slice(&[3, 0, 0, 2, 2, 0, 0, 0, 0, 0]);
    assert_eq!(&block[8..32], header);
    let mut entries = vec![3, 0, 2, 0, 0, 0, 0b0000_1001, 7, 0, 0, 0, 0, 0, 0, 0];
    entries.extend_from_slice(b"abcxy");
    entries.extend_from_slice(&[3, 0, 0, 0, 0, 0, 0b0010_1010, 3, 0, 0, 0, 0, 0, 0, 0]);
    entries.extend_from_slice(b"abc");
    entries.extend_from_slice(&[3, 0, 1, 0, 0, 0, 0b0000_0001]);
    entries.extend_from_slice(b"abdz");
    assert_eq!(&block[32..32 + entries.len()], entries);
    let (abc, abd) = (hash_byte(key_hash(b"abc", 99)), hash_byte(key_hash(b"abd", 99)));
    let trailer = [0, b'c', 0, b'c', 0, b'd', 0, 0, 20, 0, 38, 0, abc, abc, abd, 0];
    assert_eq!(&block[PAGE - 16..], trailer);
    assert!(block[32 + entries.len()..PAGE - 16].iter().all(|b| *b == 0));
    // Block index: layout, count, common prefix, prefix array, pages, count of entries, tails.
    let mut index = vec![1, 1, 0, 0, 0, 3, 0, 0, 0];
    index.extend_from_slice(b"abd");
    index.extend_from_slice(&[0; 8]);
    index.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&bytes[PAGE..PAGE + index.len()], index);
    assert_sound(&open(&env));
}
