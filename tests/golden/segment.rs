//! A reader of segments written from FORMAT.md section 3 alone: it shares no code with the library.
//! It reads sound files only, checks every rule of the text, and panics where one is broken.

use super::bytes::{Input, checksum, shared, u16_at, u32_at, u64_at};
use std::collections::BTreeMap;
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub const PAGE: usize = 4096;
pub const FOOTER: usize = 96;
pub const INDEX: u16 = 1;
pub const INDEX_PARTITIONS: u16 = 2;
pub const BLOOM: u16 = 3;
pub const BLOOM_PARTITIONS: u16 = 4;
pub const PROPERTIES: u16 = 5;
pub const TAG: u16 = 6;
pub const LAST_KEY: u16 = 7;
pub const HASH_RUN: u16 = 0x8001;
pub const HASH_RUN_PARTITIONS: u16 = 0x8002;

/// The property of a segment whose entries carry no numbers.
pub const NUMBERED_FROM: u16 = 16;

/// The names of the properties with an integer value, by id.
pub const PROPERTY_NAMES: &[(u16, &str)] = &[
    (1, "created_ms"),
    (2, "entries"),
    (3, "point_tombstones"),
    (4, "merge_operands"),
    (5, "data_blocks"),
    (7, "smallest_seqno"),
    (8, "largest_seqno"),
    (9, "raw_bytes"),
    (10, "stored_bytes"),
    (11, "keyspace"),
    (12, "key_hash_seed"),
    (13, "distinct_keys"),
    (14, "range_tombstones"),
];

/// Those that may be missing: then they are 0.
pub const OPTIONAL_PROPERTY_NAMES: &[(u16, &str)] = &[
    (NUMBERED_FROM, "numbered_from"),
    (0x8010, "range_tombstones_applied"),
    (0x8011, "expiring_entries"),
    (0x8012, "first_expiry"),
    (0x8013, "last_expiry"),
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Vec<u8>,
    /// 0 if it carries none.
    pub seqno: u64,
    /// Whether it carries one.
    pub numbered: bool,
    pub kind: u8,
    /// Milliseconds since the Unix epoch.
    pub expiry: Option<u64>,
    /// What follows the expiry.
    pub value: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockLine {
    pub offset: u64,
    pub pages: u64,
    pub entries: u64,
    pub codec: u8,
    pub separator: Vec<u8>,
}

/// What a segment is, as far as the library tells it too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub uuid: [u8; 16],
    pub file_length: u64,
    pub data_bytes: u64,
    pub footer_checksum: u64,
    pub first_key: Vec<u8>,
    pub last_key: Vec<u8>,
    pub codec: u8,
    pub level: i32,
    /// By id, the first key left out.
    pub properties: BTreeMap<u16, u64>,
    /// Id, offset, length.
    pub sections: Vec<(u16, u64, u64)>,
    pub blocks: Vec<BlockLine>,
}

#[derive(Clone, Debug)]
pub struct Segment {
    pub description: Description,
    pub entries: Vec<Entry>,
    /// The value segments that it lists: id, file length, checksum, entries, bytes.
    pub value_segments: Vec<[u64; 5]>,
}

/// Footer and section table.
#[derive(Clone, Debug)]
pub struct Layout {
    pub salt: u64,
    pub meta_offset: usize,
    pub table_offset: usize,
    pub table_length: usize,
    pub sections: Vec<Section>,
}

#[derive(Clone, Debug)]
pub struct Section {
    pub id: u16,
    pub offset: usize,
    pub length: usize,
    pub checksum: u64,
    /// Where its line of the table starts in the file.
    pub line: usize,
}

impl Layout {
    pub fn section(&self, id: u16) -> Option<&Section> {
        self.sections.iter().find(|section| section.id == id)
    }
}

/// Where everything is, read without any check.
pub fn layout(file: &[u8]) -> Layout {
    let footer = file.len() - FOOTER;
    let field = |at: usize| u64_at(file, footer + at) as usize;
    let (table_offset, table_length) = (field(24), field(32));
    let count = u32_at(file, table_offset) as usize;
    let section = |i: usize| {
        let line = table_offset + 4 + 28 * i;
        Section {
            id: u16_at(file, line),
            offset: u64_at(file, line + 4) as usize,
            length: u64_at(file, line + 12) as usize,
            checksum: u64_at(file, line + 20),
            line,
        }
    };
    Layout {
        salt: u64_at(file, footer) ^ u64_at(file, footer + 8),
        meta_offset: field(16),
        table_offset,
        table_length,
        sections: (0..count).map(section).collect(),
    }
}

/// Reads and checks a whole segment.
pub fn read(file: &[u8]) -> Segment {
    let footer = &file[file.len() - FOOTER..];
    assert_eq!(&footer[80..88], b"ASHLRSEG");
    assert_eq!(u64_at(footer, 88), checksum(0, file.len() as u64, &footer[..88]), "footer");
    assert_eq!(u32_at(footer, 56), 1, "version");
    assert_eq!(u64_at(footer, 48), file.len() as u64, "length");
    assert!(footer[60..80].iter().all(|byte| *byte == 0), "reserved");
    let layout = layout(file);
    assert!(layout.meta_offset.is_multiple_of(PAGE) && layout.meta_offset <= layout.table_offset);
    assert_eq!(layout.table_offset + layout.table_length, file.len() - FOOTER);
    assert_eq!(layout.table_length, 4 + 28 * layout.sections.len());
    let table = &file[layout.table_offset..][..layout.table_length];
    assert_eq!(u64_at(footer, 40), checksum(layout.salt, layout.table_offset as u64, table));
    let mut at = layout.meta_offset;
    for section in &layout.sections {
        assert_eq!(section.offset, at, "sections lie back to back");
        at += section.length;
        assert_eq!(u16_at(file, section.line + 2), 0, "reserved");
        let bytes = &file[section.offset..at];
        if matches!(section.id, INDEX_PARTITIONS | BLOOM_PARTITIONS) {
            assert_eq!(section.checksum, 0);
        } else {
            let sum = checksum(layout.salt, section.offset as u64, bytes);
            assert_eq!(section.checksum, sum, "section {}", section.id);
        }
        assert!((1..=7).contains(&section.id) || section.id & 0x8000 != 0);
    }
    assert_eq!(at, layout.table_offset);
    let bytes_of = |id| layout.section(id).map(|s| &file[s.offset..][..s.length]);

    let (properties, first_key, value_segments) =
        properties(bytes_of(PROPERTIES).expect("properties"));
    let tag = bytes_of(TAG).expect("tag");
    assert_eq!(tag.len(), 5);
    let last_key = bytes_of(LAST_KEY).expect("last key").to_vec();
    let index = index(file, &layout);
    let filters = filters(file, &layout);
    let hash_run = hash_run(file, &layout);

    let mut hashes = Vec::new();
    let mut totals: BTreeMap<u16, u64> = properties.clone();
    for id in [2, 3, 4, 5, 8, 9, 10, 13, 14] {
        totals.insert(id, 0);
    }
    totals.insert(7, u64::MAX);
    let mut expiries = Vec::new();
    let mut entries: Vec<Entry> = Vec::new();
    let mut blocks = Vec::new();
    for (i, line) in index.iter().enumerate() {
        let (offset, length) = (line.offset as usize, line.pages as usize * PAGE);
        let block = Block::read(&file[offset..][..length], offset, layout.salt, properties[&12]);
        assert_eq!(block.entries.len() as u64, line.entries);
        let (first, last) = (&block.entries[0].0.key, &block.entries.last().expect("one").0.key);
        assert!(last <= &line.separator);
        if let Some(before) = i.checked_sub(1).map(|before| &index[before].separator) {
            let goes_on = entries.last().is_some_and(|entry| entry.key == *first);
            assert!(before < first || (before == first && goes_on), "separator");
        }
        assert!(line.offset / (PAGE as u64) < 65_536);
        *totals.get_mut(&5).expect("set") += 1;
        *totals.get_mut(&10).expect("set") += block.stored;
        for (entry, same_key) in block.entries {
            let before = entries.last();
            assert_eq!(same_key, before.is_some_and(|before| before.key == entry.key));
            assert!(before.is_none_or(|before| {
                before.key < entry.key || (before.key == entry.key && before.seqno > entry.seqno)
            }));
            let mut add = |id: u16, n: u64| *totals.get_mut(&id).expect("set") += n;
            add(2, 1);
            add(3, u64::from(entry.kind == 2));
            add(4, u64::from(entry.kind == 3));
            let expiry_length = if entry.expiry.is_some() { 8 } else { 0 };
            add(9, (entry.key.len() + expiry_length + entry.value.len()) as u64);
            expiries.extend(entry.expiry);
            add(13, u64::from(!same_key));
            totals.insert(7, totals[&7].min(entry.seqno));
            totals.insert(8, totals[&8].max(entry.seqno));
            let hash = xxh3_64_with_seed(&entry.key, properties[&12]);
            assert!(filters.is_empty() || may_contain(&filters, hash), "bloom filter");
            if !same_key {
                hashes.push((hash >> 24, line.offset / PAGE as u64));
            }
            entries.push(entry);
        }
        blocks.push(BlockLine { codec: block.codec, ..line.clone() });
    }
    let first_and_last = [expiries.iter().min(), expiries.iter().max()];
    let [first, last] = first_and_last.map(|expiry| expiry.copied().unwrap_or(0));
    for (id, n) in [(0x8011, expiries.len() as u64), (0x8012, first), (0x8013, last)] {
        if n != 0 || properties.contains_key(&id) {
            totals.insert(id, n);
        }
    }
    assert_eq!(totals, properties, "properties");
    let carries_none = entries.iter().all(|entry| !entry.numbered);
    assert!(carries_none || !properties.contains_key(&NUMBERED_FROM), "numbers");
    hashes.sort_unstable();
    assert!(hash_run.is_none_or(|run| run == hashes), "hash run");
    assert_eq!(entries[0].key, first_key);
    assert_eq!(entries.last().expect("an entry").key, last_key);
    assert_eq!(blocks.last().expect("a block").separator, last_key);
    let description = Description {
        uuid: footer[..16].try_into().expect("16 bytes"),
        file_length: file.len() as u64,
        data_bytes: layout.meta_offset as u64,
        footer_checksum: u64_at(footer, 88),
        first_key,
        last_key,
        codec: tag[0],
        level: i32::from_le_bytes(tag[1..].try_into().expect("4 bytes")),
        properties,
        sections: layout
            .sections
            .iter()
            .map(|s| (s.id, s.offset as u64, s.length as u64))
            .collect(),
        blocks,
    };
    Segment { description, entries, value_segments }
}

fn properties(section: &[u8]) -> (BTreeMap<u16, u64>, Vec<u8>, Vec<[u64; 5]>) {
    let mut input = Input::new(section);
    let (mut integers, mut first_key, mut last_id) = (BTreeMap::new(), None, 0);
    let mut value_segments = Vec::new();
    while !input.is_empty() {
        let id = input.int(2) as u16;
        let length = input.int(4) as usize;
        assert!(id > last_id, "properties rise");
        last_id = id;
        match id {
            6 => first_key = Some(input.take(length).to_vec()),
            11 => {
                assert_eq!(length, 4);
                integers.insert(id, input.int(4));
            }
            1..=14 | NUMBERED_FROM | 0x8010..=0x8013 => {
                assert_eq!(length, 8);
                integers.insert(id, input.int(8));
            }
            0x8014 => {
                assert!(length > 0 && length.is_multiple_of(40));
                let line = |_| std::array::from_fn(|_| input.int(8));
                value_segments = (0..length / 40).map(line).collect();
                assert!(value_segments.windows(2).all(|pair| pair[0][0] < pair[1][0]));
            }
            _ => {
                assert!(id & 0x8000 != 0, "unknown property");
                input.take(length);
            }
        }
    }
    assert_eq!(integers.keys().filter(|id| **id <= 14).count(), 13);
    assert_ne!(integers.get(&NUMBERED_FROM), Some(&0));
    (integers, first_key.expect("a first key"), value_segments)
}

struct Block {
    codec: u8,
    /// Header, stored payload, without padding.
    stored: u64,
    /// And whether its key is flagged as that of the entry before.
    entries: Vec<(Entry, bool)>,
}

impl Block {
    fn read(block: &[u8], offset: usize, salt: u64, hash_seed: u64) -> Block {
        assert_eq!(u64_at(block, 0), checksum(salt, offset as u64, &block[8..]), "block");
        let mut input = Input::new(&block[8..]);
        assert_eq!(input.int(4) as usize * PAGE, block.len());
        let (stored, raw) = (input.int(5) as usize, input.int(5) as usize);
        let (n, codec, width) = (input.int(2) as usize, input.int(1) as u8, input.int(1) as usize);
        let common = input.int(2) as usize;
        assert_eq!(input.int(4), 0, "reserved");
        assert!(n >= 1 && (raw <= 65_504 || n == 1) && matches!(width, 0 | 2 | 4 | 8));
        assert!(width != 0 || common == 0);
        let (payload, rest) = block[32..].split_at(stored);
        assert!(rest.iter().all(|byte| *byte == 0));
        let payload = match codec {
            0 => {
                assert!(stored == raw && rest.is_empty());
                payload.to_vec()
            }
            _ => decompress(codec, payload, raw),
        };
        let trailer = raw - ((width + 3) * n).next_multiple_of(8);
        let offsets = trailer + width * n;
        let hashes = offsets + 2 * n;
        assert!(payload[hashes + n..].iter().all(|byte| *byte == 0));
        let mut entries = Vec::new();
        let mut at = 0;
        for i in 0..n {
            assert_eq!(u16_at(&payload, offsets + 2 * i) as usize, at, "offset");
            let mut input = Input::new(&payload[at..trailer]);
            let (key_length, value_length) = (input.int(2) as usize, input.int(4) as usize);
            let flags = input.int(1) as u8;
            assert_eq!(flags & 0b1100_0000, 0, "nothing reserved");
            let (kind, expires) = (flags & 7, flags & 16 != 0);
            assert!(matches!((kind, expires), (1 | 3 | 6, _) | (2, false)), "kind {kind}");
            assert!(kind != 2 || value_length == 0, "a point tombstone has no value");
            let numbered = flags & 8 != 0;
            let seqno = if numbered { input.int(8) } else { 0 };
            let key = input.take(key_length).to_vec();
            let expiry = expires.then(|| input.int(8));
            let value = input.take(value_length - if expires { 8 } else { 0 }).to_vec();
            at += input.position();
            let hash = xxh3_64_with_seed(&key, hash_seed);
            assert_eq!(payload[hashes + i], (hash >> 16) as u8, "hash byte");
            let mut prefix = key[common..].iter().copied().chain(std::iter::repeat(0));
            let stored = payload[trailer + width * i..][..width].iter().rev();
            assert!(stored.eq(prefix.by_ref().take(width).collect::<Vec<_>>().iter()), "prefix");
            entries.push((Entry { key, seqno, numbered, kind, expiry, value }, flags & 32 != 0));
        }
        assert!(payload[at..trailer].iter().all(|byte| *byte == 0));
        assert!(codec == 0 || at == trailer);
        let keys = (&entries[0].0.key, &entries[n - 1].0.key);
        assert!(shared(keys.0, keys.1) >= common);
        let used = if codec == 0 { at + raw - trailer } else { stored };
        Block { codec, stored: 32 + used as u64, entries }
    }
}

pub fn decompress(codec: u8, stored: &[u8], raw: usize) -> Vec<u8> {
    let out: Option<Vec<u8>> = match codec {
        #[cfg(feature = "lz4")]
        1 => Some(lz4_flex::block::decompress(stored, raw).expect("LZ4")),
        #[cfg(feature = "zstd")]
        2 => Some(zstd::bulk::decompress(stored, raw).expect("Zstandard")),
        _ => None,
    };
    let out = out.unwrap_or_else(|| panic!("codec {codec}, {} bytes", stored.len()));
    assert_eq!(out.len(), raw);
    out
}

/// The blocks as the index gives them; the codecs are not in it.
fn index(file: &[u8], layout: &Layout) -> Vec<BlockLine> {
    let root = layout.section(INDEX).expect("a block index");
    let bytes = &file[root.offset..][..root.length];
    let end_page = layout.meta_offset / PAGE;
    if bytes[0] == 1 {
        assert!(layout.section(INDEX_PARTITIONS).is_none());
        return index_partition(&bytes[1..], 0, end_page);
    }
    assert_eq!(bytes[0], 2, "layout");
    let parts = layout.section(INDEX_PARTITIONS).expect("partitions");
    let count = u32_at(bytes, 1) as usize;
    let top = index_partition(&bytes[5 + 20 * count..], 0, end_page);
    assert_eq!(top.len(), count);
    let mut lines = Vec::new();
    let mut at = 0;
    for (i, part) in top.iter().enumerate() {
        let partition = partition(file, layout, parts, &bytes[5 + 20 * i..], &mut at);
        let first = part.offset as usize / PAGE;
        let some = index_partition(partition, first, first + part.pages as usize);
        assert_eq!(part.entries, 0);
        assert_eq!(part.separator, some.last().expect("a block").separator);
        lines.extend(some);
    }
    assert_eq!(at, parts.length);
    lines
}

/// A partition by its line in a top level; `at` runs through the section.
fn partition<'a>(
    file: &'a [u8],
    layout: &Layout,
    parts: &Section,
    line: &[u8],
    at: &mut usize,
) -> &'a [u8] {
    let (offset, length) = (u64_at(line, 0) as usize, u32_at(line, 8) as usize);
    assert_eq!(offset, *at, "partitions are adjacent");
    *at += length;
    let start = parts.offset + offset;
    let bytes = &file[start..][..length];
    assert_eq!(u64_at(line, 12), checksum(layout.salt, start as u64, bytes), "partition");
    bytes
}

fn index_partition(bytes: &[u8], first_page: usize, end_page: usize) -> Vec<BlockLine> {
    let mut input = Input::new(bytes);
    let n = input.int(4) as usize;
    let common_length = input.int(2) as usize;
    assert_eq!(input.int(2), 0, "reserved");
    let common = input.take(common_length).to_vec();
    let prefixes: Vec<u64> = (0..n).map(|_| input.int(8)).collect();
    let pages: Vec<usize> = (0..=n).map(|_| input.int(4) as usize).collect();
    let counts: Vec<u64> = (0..n).map(|_| input.int(2)).collect();
    let ends: Vec<usize> = (0..=n).map(|_| input.int(4) as usize).collect();
    let tails = input.take(ends[n]).to_vec();
    assert!(input.is_empty() && n >= 1 && ends[0] == 0);
    assert_eq!((pages[0], pages[n]), (first_page, end_page));
    (0..n)
        .map(|i| {
            let tail = &tails[ends[i]..ends[i + 1]];
            let mut padded = tail.to_vec();
            padded.resize(tail.len().max(8), 0);
            assert_eq!(prefixes[i].to_be_bytes(), padded[..8]);
            BlockLine {
                offset: (pages[i] * PAGE) as u64,
                pages: (pages[i + 1] - pages[i]) as u64,
                entries: counts[i],
                codec: 0,
                separator: [&common, tail].concat(),
            }
        })
        .collect()
}

/// The filters, one for each partition; none without a bloom filter.
fn filters<'a>(file: &'a [u8], layout: &Layout) -> Vec<&'a [u8]> {
    let Some(root) = layout.section(BLOOM) else { return Vec::new() };
    let bytes = &file[root.offset..][..root.length];
    if bytes[0] == 1 {
        assert!(layout.section(BLOOM_PARTITIONS).is_none());
        return vec![&bytes[1..]];
    }
    assert_eq!(bytes[0], 2, "layout");
    let parts = layout.section(BLOOM_PARTITIONS).expect("partitions");
    let count = u32_at(bytes, 1) as usize;
    assert!(count >= 2 && count.is_power_of_two() && bytes.len() == 5 + 20 * count);
    let mut at = 0;
    let filters =
        (0..count).map(|i| partition(file, layout, parts, &bytes[5 + 20 * i..], &mut at)).collect();
    assert_eq!(at, parts.length);
    filters
}

/// The hash run: top 40 bits of the hash and page of each key.
pub fn hash_run(file: &[u8], layout: &Layout) -> Option<Vec<(u64, u64)>> {
    let parts = layout.section(HASH_RUN_PARTITIONS);
    let Some(root) = layout.section(HASH_RUN) else {
        assert!(parts.is_none(), "hash run partitions without a hash run");
        return None;
    };
    let bytes = &file[root.offset..][..root.length];
    let mut entries = Vec::new();
    if bytes[0] == 1 {
        assert!(parts.is_none_or(|parts| parts.length == 0));
        hash_partition(&bytes[1..], None, &mut entries);
    } else {
        assert_eq!(bytes[0], 2, "layout");
        assert_eq!((u32_at(bytes, 1), bytes.len()), (256, 5 + 20 * 256));
        let parts = parts.expect("partitions");
        let mut at = 0;
        for i in 0..256 {
            let line = &bytes[5 + 20 * i..];
            let partition = partition(file, layout, parts, line, &mut at);
            hash_partition(partition, Some(i as u64), &mut entries);
        }
        assert_eq!(at, parts.length);
    }
    assert!(entries.is_sorted(), "hash run");
    Some(entries)
}

/// Appends the entries of a hash partition; `number` is that of one of 256.
fn hash_partition(bytes: &[u8], number: Option<u64>, entries: &mut Vec<(u64, u64)>) {
    let mut input = Input::new(bytes);
    let (n, p) = (input.int(2), input.int(1) as u32);
    assert_eq!(input.int(1), 0, "reserved");
    assert!(p <= 16);
    let r = 24 - if number.is_some() { 8 } else { 0 } - p;
    let directory: Vec<u64> = (0..1 << p).map(|_| input.int(2)).collect();
    let middle: Vec<u64> = (0..n).map(|_| input.int(2)).collect();
    let last: Vec<u64> = (0..n).map(|_| input.int(r.div_ceil(8) as usize)).collect();
    let pages: Vec<u64> = (0..n).map(|_| input.int(2)).collect();
    assert!(input.is_empty() && directory.is_sorted() && directory.last() == Some(&n));
    for i in 0..n {
        let first = directory.iter().filter(|count| **count <= i).count() as u64;
        let i = i as usize;
        assert!(last[i] < 1 << r);
        let top = number.unwrap_or(0) << 32;
        let h40 = top | first << (16 + r) | middle[i] << r | last[i];
        entries.push((h40, pages[i]));
    }
}

fn may_contain(filters: &[&[u8]], hash: u64) -> bool {
    let number = match filters.len() {
        1 => 0,
        many => (hash >> (64 - many.ilog2())) as usize,
    };
    let filter = filters[number];
    assert_eq!(filter[0], 1, "filter version");
    let (m, k) = (u64_at(filter, 1), u64::from(u32_at(filter, 9)));
    assert!(m >= 1 && (1..=64).contains(&k) && filter.len() as u64 == 45 + m);
    let (a, b) = (siphash13(&filter[13..29], hash), siphash13(&filter[29..45], hash));
    (0..k).all(|j| {
        let probe = match j {
            0 => a,
            1 => b,
            _ => a.wrapping_add(j.wrapping_mul(b)) % 0xFFFF_FFFF_FFFF_FFC5,
        };
        let bit = probe % (8 * m);
        filter[45 + (bit / 8) as usize] >> (bit % 8) & 1 == 1
    })
}

/// SipHash-1-3 of the eight bytes of `x` (Aumasson and Bernstein, 2012).
fn siphash13(key: &[u8], x: u64) -> u64 {
    let (k0, k1) = (u64_at(key, 0), u64_at(key, 8));
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
