//! Damaged copies of golden files, each with one defect, and what must be noticed of it.

use super::bytes::{checksum, hex, put, u16_at, u32_at, u64_at};
use super::damage_databases;
use super::database::Files;
use super::segment::{
    self, BLOOM, BLOOM_PARTITIONS, HASH_RUN, HASH_RUN_PARTITIONS, INDEX, INDEX_PARTITIONS,
    LAST_KEY, Layout, PAGE,
};
use super::segment::{PROPERTIES, TAG};
use std::fmt::Write;

/// What a reader must make of a damaged file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// `open`, `get` or `verify`: the first of them that notices.
    pub noticed: String,
    /// `corruption`, `unsupported`, `torn`, `healed` or `not_a_database`.
    pub kind: String,
    /// The file of a database.
    pub file: String,
    /// Where in it.
    pub offset: u64,
    /// Keys that cannot be read, those that are gone without an error, and those that came back.
    pub keys: Option<[u64; 3]>,
    /// Where `verify` reports damage; "unsupported" if it does not judge. Segments only.
    pub verify: String,
}

impl Expected {
    pub fn new(noticed: &str, kind: &str, offset: usize) -> Expected {
        Expected {
            noticed: noticed.into(),
            kind: kind.into(),
            file: String::new(),
            offset: offset as u64,
            keys: None,
            verify: String::new(),
        }
    }

    pub fn verify(mut self, offsets: &[usize]) -> Expected {
        self.verify = format!("{offsets:?}").replace(' ', "");
        self
    }

    pub fn unjudged(mut self) -> Expected {
        self.verify = "\"unsupported\"".into();
        self
    }

    pub fn lost(mut self, keys: u64) -> Expected {
        self.keys = Some([keys, 0, 0]);
        self
    }

    pub fn keys(mut self, keys: [u64; 3]) -> Expected {
        self.keys = Some(keys);
        self
    }

    /// The fields of a line of `damaged.jsonl`.
    pub fn line(&self) -> String {
        let mut line = format!("\"noticed\":\"{}\",\"kind\":\"{}\"", self.noticed, self.kind);
        if !self.file.is_empty() {
            write!(line, ",\"in\":\"{}\"", self.file).expect("a string");
        }
        write!(line, ",\"offset\":{}", self.offset).expect("a string");
        if let Some([lost, gone, back]) = self.keys {
            write!(line, ",\"lost\":{lost},\"gone\":{gone},\"back\":{back}").expect("a string");
        }
        if !self.verify.is_empty() {
            write!(line, ",\"verify\":{}", self.verify).expect("a string");
        }
        line
    }
}

/// A damaged copy: its path under `testdata/v1`, what it was made from, what was done, its files (a
/// segment has one, without a name).
pub struct Damaged {
    pub path: String,
    pub base: String,
    pub defect: String,
    pub files: Files,
    pub expected: Expected,
}

impl Damaged {
    pub fn line(&self) -> String {
        format!(
            "{{\"file\":\"{}\",\"made_from\":\"{}\",\"defect\":\"{}\",{}}}",
            self.path,
            self.base,
            self.defect,
            self.expected.line()
        )
    }
}

pub fn damaged(golden: &Files) -> Vec<Damaged> {
    let mut cases = segments(golden);
    cases.extend(damage_databases::databases(golden));
    cases
}

/// A segment that is about to be damaged.
struct Patient {
    base: &'static str,
    file: Vec<u8>,
    layout: Layout,
    /// Offset, length and entries of each block.
    blocks: Vec<(usize, usize, u64)>,
    keys: u64,
}

impl Patient {
    fn new(golden: &Files, base: &'static str) -> Patient {
        let file = golden[&format!("segments/{base}.seg")].clone();
        let layout = segment::layout(&file);
        let read = segment::read(&file);
        let blocks = read.description.blocks.iter();
        let blocks = blocks.map(|b| (b.offset as usize, b.pages as usize * PAGE, b.entries));
        let (blocks, keys) = (blocks.collect(), read.entries.len() as u64);
        Patient { base, file, layout, blocks, keys }
    }

    fn section(&self, id: u16) -> usize {
        self.layout.section(id).expect("a section").offset
    }

    fn footer(&self) -> usize {
        self.file.len() - segment::FOOTER
    }

    fn case(&self, name: &str, defect: &str, expected: Expected, file: Vec<u8>) -> Damaged {
        assert_ne!(file, self.file, "{name} changes something");
        Damaged {
            path: format!("damaged/segments/{name}.seg"),
            base: format!("segments/{}.seg", self.base),
            defect: defect.into(),
            files: Files::from([(String::new(), file)]),
            expected,
        }
    }

    fn flipped(&self, at: usize) -> Vec<u8> {
        let mut file = self.file.clone();
        file[at] ^= 0x10;
        file
    }

    /// With other bytes in block `i` and a checksum that fits them.
    fn block_resealed(&self, i: usize, at: usize, new: &[u8]) -> Vec<u8> {
        let mut file = self.file.clone();
        let (offset, length, _) = self.blocks[i];
        put(&mut file, offset + at, new);
        let sum = checksum(self.layout.salt, offset as u64, &file[offset + 8..offset + length]);
        put(&mut file, offset, &sum.to_le_bytes());
        file
    }

    /// With other bytes in a section and checksums that fit them, up to the footer's.
    fn section_resealed(&self, id: u16, at: usize, new: &[u8]) -> Vec<u8> {
        let mut file = self.file.clone();
        let section = self.layout.section(id).expect("a section").clone();
        put(&mut file, section.offset + at, new);
        let bytes = &file[section.offset..section.offset + section.length];
        let sum = checksum(self.layout.salt, section.offset as u64, bytes);
        put(&mut file, section.line + 20, &sum.to_le_bytes());
        self.reseal_table(file)
    }

    fn reseal_table(&self, mut file: Vec<u8>) -> Vec<u8> {
        let offset = self.layout.table_offset;
        let table = &file[offset..offset + self.layout.table_length];
        let sum = checksum(self.layout.salt, offset as u64, table);
        let footer = self.footer();
        put(&mut file, footer + 40, &sum.to_le_bytes());
        reseal_footer(file)
    }

    fn footer_resealed(&self, at: usize, new: &[u8]) -> Vec<u8> {
        let mut file = self.file.clone();
        put(&mut file, self.footer() + at, new);
        reseal_footer(file)
    }
}

fn reseal_footer(mut file: Vec<u8>) -> Vec<u8> {
    let footer = file.len() - segment::FOOTER;
    let sum = checksum(0, u64_at(&file, footer + 48), &file[footer..footer + 88]);
    put(&mut file, footer + 88, &sum.to_le_bytes());
    file
}

fn segments(golden: &Files) -> Vec<Damaged> {
    let plain = Patient::new(golden, "plain");
    let mut cases = Vec::new();
    damaged_blocks(&plain, &mut cases);
    resealed_blocks(&plain, &mut cases);
    misplaced_blocks(golden, &plain, &mut cases);
    damaged_meta(&plain, &mut cases);
    damaged_ends(&plain, &mut cases);
    damaged_partitions(golden, &mut cases);
    damaged_hash_runs(golden, &mut cases);
    for base in ["text-lz4", "text-zstd"] {
        if !golden.contains_key(&format!("segments/{base}.seg")) {
            continue;
        }
        let patient = Patient::new(golden, base);
        let (offset, _, entries) = patient.blocks[1];
        let raw = u32_at(&patient.file, offset + 17) + 8;
        let file = patient.block_resealed(1, 17, &raw.to_le_bytes());
        let expected = Expected::new("get", "corruption", offset).lost(entries).verify(&[offset]);
        let defect = "block 1: the raw length is 8 more, the checksum fits";
        cases.push(patient.case(&format!("{base}-raw-length"), defect, expected, file));
    }
    cases
}

/// One bit flipped in each part of a block.
fn damaged_blocks(plain: &Patient, cases: &mut Vec<Damaged>) {
    let (offset, length, entries) = plain.blocks[1];
    let n = entries as usize;
    let trailer = length - ((4 + 3) * n).next_multiple_of(8);
    let last = 32 + usize::from(u16_at(&plain.file, offset + trailer + 4 * n + 2 * (n - 1)));
    let end = last + 7 + 10 + 60;
    assert!(end < trailer, "there is padding");
    let parts = [
        ("checksum", 3),
        ("pages", 8),
        ("stored", 13),
        ("raw", 18),
        ("entry-count", 22),
        ("codec", 24),
        ("prefix-width", 25),
        ("common-prefix", 26),
        ("reserved", 29),
        ("key-length", 32),
        ("value-length", 34),
        ("flags", 38),
        ("key", 41),
        ("value", 60),
        ("padding", end),
        ("prefix", trailer + 5),
        ("offset", trailer + 4 * n + 3),
        ("hash-byte", trailer + 6 * n),
        ("last-byte", length - 1),
    ];
    for (name, at) in parts {
        let expected = Expected::new("get", "corruption", offset).lost(entries).verify(&[offset]);
        let defect = format!("block 1: a bit flipped at its byte {at} ({name})");
        let file = plain.flipped(offset + at);
        cases.push(plain.case(&format!("block-{name}"), &defect, expected, file));
    }
}

/// Other bytes in a block under a checksum that fits: what a wrong or a newer writer would leave.
fn resealed_blocks(plain: &Patient, cases: &mut Vec<Damaged>) {
    let (offset, length, entries) = plain.blocks[1];
    let damage = || Expected::new("get", "corruption", offset).lost(entries).verify(&[offset]);
    let newer = || Expected::new("get", "unsupported", offset).lost(entries).unjudged();
    let n = entries as usize;
    let trailer = length - (7 * n).next_multiple_of(8);
    let parts: [(&str, usize, &[u8], Expected); 11] = [
        ("reserved", 28, &[1], damage()),
        ("codec-3", 24, &[3], newer()),
        ("prefix-width-3", 25, &[3], damage()),
        ("kind-4", 38, &[4], newer()),
        ("kind-5", 38, &[5], newer()),
        ("kind-7", 38, &[7], damage()),
        ("expiry-without-room", 34, &[7, 0, 0, 0, 3 | 1 << 4], damage()),
        ("tombstone-expiry", 38, &[2 | 1 << 4], damage()),
        ("flag-6", 38, &[1 | 1 << 6], damage()),
        ("offset", trailer + 4 * n + 2, &[1, 0], damage()),
        // Nothing that a lookup uses is wrong.
        ("padding", trailer - 1, &[1], Expected::new("verify", "corruption", offset).lost(0)),
    ];
    for (name, at, new, mut expected) in parts {
        if expected.verify.is_empty() {
            expected = expected.verify(&[offset]);
        }
        let defect = format!("block 1: {} at its byte {at}, the checksum fits", hex(new));
        let file = plain.block_resealed(1, at, new);
        cases.push(plain.case(&format!("resealed-{name}"), &defect, expected, file));
    }
}

fn misplaced_blocks(golden: &Files, plain: &Patient, cases: &mut Vec<Damaged>) {
    let [(one, length, n), (two, other_length, m)] = [plain.blocks[1], plain.blocks[2]];
    assert_eq!(length, other_length);
    let mut file = plain.file.clone();
    file.copy_within(one..one + length, two);
    put(&mut file, one, &plain.file[two..two + length]);
    let expected = Expected::new("get", "corruption", one).lost(n + m).verify(&[one, two]);
    cases.push(plain.case("blocks-swapped", "blocks 1 and 2 swapped", expected, file));

    let other = Patient::new(golden, "prefix-2");
    let (offset, other_length, _) = other.blocks[1];
    assert_eq!((offset, length), (one, other_length), "it would fit");
    let mut file = plain.file.clone();
    put(&mut file, one, &other.file[one..one + length]);
    let expected = Expected::new("get", "corruption", one).lost(n).verify(&[one]);
    let defect = "block 1 is block 1 of segments/prefix-2.seg";
    cases.push(plain.case("block-of-another-segment", defect, expected, file));
}

fn damaged_meta(plain: &Patient, cases: &mut Vec<Damaged>) {
    let mut add = |name: &str, defect: &str, expected: Expected, file: Vec<u8>| {
        cases.push(plain.case(name, defect, expected, file));
    };
    let [index, bloom, properties] = [INDEX, BLOOM, PROPERTIES].map(|id| plain.section(id));
    let [tag, last_key] = [TAG, LAST_KEY].map(|id| plain.section(id));
    let (table, footer) = (plain.layout.table_offset, plain.footer());
    let all = plain.keys;
    let opening = |kind, at| Expected::new("open", kind, at);
    let verifying = |at| Expected::new("verify", "corruption", at).lost(0).verify(&[at]);

    let expected = Expected::new("get", "corruption", index).lost(all).verify(&[index]);
    add("index", "a bit flipped in the block index", expected, plain.flipped(index + 20));
    let file = plain.section_resealed(INDEX, 0, &[3]);
    let expected = Expected::new("get", "unsupported", index).lost(all).unjudged();
    add("index-layout", "the block index has layout 3, all checksums fit", expected, file);
    // The filter is left out of account: nothing but speed is lost.
    let file = plain.flipped(bloom + 60);
    add("bloom", "a bit flipped in the bloom filter", verifying(bloom), file);
    let file = plain.section_resealed(BLOOM, 1, &[2]);
    let expected = Expected::new("get", "unsupported", bloom).lost(all).unjudged();
    add("bloom-version", "the bloom filter has version 2, all checksums fit", expected, file);
    let file = plain.flipped(tag + 1);
    add("tag", "a bit flipped in the compression tag", verifying(tag), file);
    let file = plain.flipped(last_key + 2);
    add("last-key", "a bit flipped in the last key", verifying(last_key), file);
    let file = plain.flipped(properties + 30);
    let defect = "a bit flipped in the properties";
    add("properties", defect, opening("corruption", properties), file);
    let length = plain.layout.section(PROPERTIES).expect("it").length;
    let file = plain.section_resealed(PROPERTIES, length - 14, &[15]);
    let defect = "property 14 became 15, which is not known; all checksums fit";
    add("property-15", defect, opening("unsupported", properties), file);
    let file = plain.section_resealed(PROPERTIES, 20, &[1]);
    let defect = "property 2, entries, is wrong; all checksums fit";
    add("property-wrong", defect, verifying(properties), file);

    let defect = "a bit flipped in the section table";
    add("table", defect, opening("corruption", table), plain.flipped(table + 15));
    let line = plain.layout.section(TAG).expect("it").line;
    let mut file = plain.file.clone();
    put(&mut file, line, &[8]);
    let defect = "the compression tag became section 8, which is not known; all checksums fit";
    add("section-8", defect, opening("unsupported", table), plain.reseal_table(file));
    let mut file = plain.file.clone();
    put(&mut file, line + 2, &[1]);
    let defect = "a reserved field of the section table is set, all checksums fit";
    add("table-reserved", defect, opening("corruption", table), plain.reseal_table(file));
    let mut file = plain.file.clone();
    put(&mut file, line, &[LAST_KEY as u8]);
    let defect = "the last key is there twice and the tag is not, all checksums fit";
    add("section-twice", defect, opening("corruption", table), plain.reseal_table(file));

    let flips = [
        ("uuid", 5),
        ("meta-offset", 17),
        ("table-checksum", 41),
        ("length", 49),
        ("reserved", 70),
        ("magic", 83),
        ("checksum", 90),
    ];
    for (name, at) in flips {
        let defect = format!("a bit flipped at byte {at} of the footer ({name})");
        let file = plain.flipped(footer + at);
        add(&format!("footer-{name}"), &defect, opening("corruption", footer), file);
    }
    let resealed: [(&str, usize, &[u8], &str); 4] = [
        ("version-2", 56, &[2], "unsupported"),
        ("version-0", 56, &[0], "corruption"),
        ("reserved-resealed", 60, &[1], "corruption"),
        ("meta-offset-resealed", 16, &[1], "corruption"),
    ];
    for (name, at, new, kind) in resealed {
        let defect = format!("{} at byte {at} of the footer, its checksum fits", hex(new));
        let file = plain.footer_resealed(at, new);
        add(&format!("footer-{name}"), &defect, opening(kind, footer), file);
    }
}

/// Files that are too short or too long.
fn damaged_ends(plain: &Patient, cases: &mut Vec<Damaged>) {
    let file = &plain.file;
    let mut longer = file.clone();
    longer.push(0);
    let ends = [
        ("cut-by-1", "the last byte is missing", file[..file.len() - 1].to_vec()),
        ("cut-to-half", "the second half is missing", file[..file.len() / 2].to_vec()),
        ("cut-to-95", "only 95 bytes are left", file[..95].to_vec()),
        ("cut-to-0", "nothing is left", Vec::new()),
        ("longer", "a zero was appended", longer),
        ("without-front", "the first block is missing", file[PAGE..].to_vec()),
        ("doubled", "the file twice", [&file[..], file].concat()),
    ];
    for (name, defect, file) in ends {
        let footer = file.len().saturating_sub(segment::FOOTER);
        cases.push(plain.case(name, defect, Expected::new("open", "corruption", footer), file));
    }
}

fn damaged_partitions(golden: &Files, cases: &mut Vec<Damaged>) {
    let index = Patient::new(golden, "partitioned-index");
    // The second partition covers the blocks behind the first one's.
    let root = index.section(INDEX);
    let parts = index.section(INDEX_PARTITIONS);
    assert_eq!(u32_at(&index.file, root + 1), 2);
    let first = u32_at(&index.file, parts) as usize;
    let second = parts + u64_at(&index.file, root + 5 + 20) as usize;
    let lost = index.blocks[first..].iter().map(|(_, _, entries)| entries).sum();
    let expected = Expected::new("get", "corruption", second).lost(lost).verify(&[second]);
    let file = index.flipped(second + 100);
    let defect = "a bit flipped in the second partition of the block index";
    cases.push(index.case("index-partition", defect, expected, file));

    let bloom = Patient::new(golden, "partitioned-bloom");
    let parts = bloom.section(BLOOM_PARTITIONS);
    let expected = Expected::new("verify", "corruption", parts).lost(0).verify(&[parts]);
    let file = bloom.flipped(parts + 1_000);
    let defect = "a bit flipped in the first partition of the bloom filter";
    cases.push(bloom.case("bloom-partition", defect, expected, file));
}

/// Nothing but speed is lost with a hash run: verifying notices.
fn damaged_hash_runs(golden: &Files, cases: &mut Vec<Damaged>) {
    let verifying = |at| Expected::new("verify", "corruption", at).lost(0).verify(&[at]);
    let single = Patient::new(golden, "hash-run");
    let root = single.section(HASH_RUN);
    let length = single.layout.section(HASH_RUN).expect("it").length;
    let defect = "a bit flipped in the hash run";
    let file = single.flipped(root + 100);
    cases.push(single.case("hash-run", defect, verifying(root), file));
    let resealed: [(&str, usize, &[u8], &str); 4] = [
        ("layout-3", 0, &[3], "layout 3"),
        ("reserved", 4, &[1], "its reserved field set"),
        ("count", 1, &[139], "an entry fewer than there is room for"),
        ("page", length - 2, &[0xff, 0xff], "a page behind the data blocks"),
    ];
    for (name, at, new, what) in resealed {
        let mut expected = verifying(root);
        if name == "layout-3" {
            expected = Expected::new("verify", "unsupported", root).lost(0).unjudged();
        }
        let defect = format!("the hash run has {what}, all checksums fit");
        let file = single.section_resealed(HASH_RUN, at, new);
        cases.push(single.case(&format!("hash-run-{name}"), &defect, expected, file));
    }
    // The last key of the run in another block, which exists.
    let page = u16_at(&single.file, root + length - 2) ^ 1;
    let file = single.section_resealed(HASH_RUN, length - 2, &page.to_le_bytes());
    let defect = "the hash run names the wrong page for a key, all checksums fit";
    cases.push(single.case("hash-run-wrong-page", defect, verifying(root), file));

    let cut = Patient::new(golden, "hash-run-cut");
    let root = cut.section(HASH_RUN);
    let parts = cut.section(HASH_RUN_PARTITIONS);
    let second = parts + u64_at(&cut.file, root + 5 + 20) as usize;
    let defect = "a bit flipped in the second partition of the hash run";
    let file = cut.flipped(second + 4);
    cases.push(cut.case("hash-run-partition", defect, verifying(second), file));
    let defect = "a bit flipped in the list of partitions of the hash run";
    let file = cut.flipped(root + 30);
    cases.push(cut.case("hash-run-partitions", defect, verifying(root), file));
    let line = cut.layout.section(HASH_RUN_PARTITIONS).expect("it").line;
    let mut file = cut.file.clone();
    file[line + 20] ^= 1;
    let defect = "the checksum of the hash run partitions in the section table is another one";
    let file = cut.reseal_table(file);
    cases.push(cut.case("hash-run-partitions-sum", defect, verifying(parts), file));
}
