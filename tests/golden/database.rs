//! Readers of logs and manifests written from FORMAT.md sections 4 and 5 alone, and of a whole
//! database: they share no code with the library, take sound files (a log may have a torn tail), and
//! panic where a rule is broken.

use super::bytes::{Input, checksum, u32_at, u64_at};
use super::segment;
use super::values::References;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// The files of a directory by name.
pub type Files = BTreeMap<String, Vec<u8>>;

#[derive(Clone, Debug)]
pub struct Op {
    pub kind: u8,
    pub keyspace: u64,
    pub key: Vec<u8>,
    /// Milliseconds since the Unix epoch.
    pub expiry: Option<u64>,
    /// What follows the expiry; of a range tombstone its end.
    pub value: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct Record {
    pub offset: usize,
    /// Where it ends.
    pub end: usize,
    pub kind: u8,
    pub seqno: u64,
    /// What was known durable; `None` if that is too far back.
    pub durable: Option<usize>,
    pub batches: Vec<Vec<Op>>,
    /// The edit of the manifest that it says is durable.
    pub edit: u64,
    /// What it says of keyspaces, if it does: from "all" to "loaded".
    pub note: Option<u8>,
}

#[derive(Clone, Debug)]
pub struct Log {
    pub id: u64,
    pub salt: u64,
    pub predecessor: u64,
    pub predecessor_end: u64,
    /// The last operation before this log.
    pub before: u64,
    pub records: Vec<Record>,
    /// Where the sound records end.
    pub end: usize,
    /// The last operation.
    pub last: u64,
    /// Whether anything but zeros follows.
    pub torn: bool,
}

impl Log {
    /// The commit groups.
    pub fn groups(&self) -> Vec<&Record> {
        self.records.iter().filter(|record| record.kind == 1).collect()
    }
}

/// The salt that binds logs to their database: the UUID in its manifest, folded.
pub fn log_salt(manifest: &[u8]) -> u64 {
    u64_at(manifest, 16) ^ u64_at(manifest, 24)
}

pub fn read_log(file: &[u8], database: u64) -> Log {
    assert_eq!(&file[..8], b"ASHLRWAL");
    assert_eq!(u64_at(file, 56), checksum(database, 0, &file[..56]), "header");
    assert_eq!((u32_at(file, 8), u32_at(file, 12)), (1, 0));
    let before = u64_at(file, 48);
    let mut log = Log {
        id: u64_at(file, 16),
        salt: u64_at(file, 24),
        predecessor: u64_at(file, 32),
        predecessor_end: u64_at(file, 40),
        before,
        records: Vec::new(),
        end: 64,
        last: before,
        torn: false,
    };
    while let Some((record, end)) = read_record(file, log.salt, log.end) {
        if record.kind & 0x80 == 0 {
            assert_eq!(record.seqno, log.last + 1, "no gap");
        }
        log.last += match record.kind {
            1 => record.batches.iter().map(|batch| batch.len() as u64).sum(),
            3 => 1,
            _ => 0,
        };
        log.records.push(record);
        log.end = end;
    }
    log.torn = file[log.end..].iter().any(|byte| *byte != 0);
    log
}

fn read_record(file: &[u8], salt: u64, offset: usize) -> Option<(Record, usize)> {
    let head = file.get(offset..offset + 26)?;
    let mut input = Input::new(&head[8..]);
    let length = input.int(5) as usize;
    let (kind, seqno, back) = (input.int(1) as u8, input.int(8), input.int(4));
    let end = offset.checked_add(26)?.checked_add(length)?;
    let covered = file.get(offset + 8..end)?;
    if checksum(salt, offset as u64, covered) != u64_at(head, 0) {
        return None;
    }
    let durable = (back != u64::from(u32::MAX))
        .then(|| offset.checked_sub(back as usize).expect("not before the file"));
    let mut batches = Vec::new();
    let (mut edit, mut note) = (0, None);
    if kind == 1 {
        let mut input = Input::new(&file[offset + 26..end]);
        while !input.is_empty() {
            let count = input.varint();
            assert!(count >= 1);
            batches.push((0..count).map(|_| read_op(&mut input)).collect());
        }
        assert!(!batches.is_empty());
    } else if kind == 0x81 && length == 8 {
        edit = u64_at(file, offset + 26);
    } else if kind == 0x82 {
        note = Some(read_note(&mut Input::new(&file[offset + 26..end])));
    } else {
        assert!(kind & 0x80 != 0 || (matches!(kind, 2 | 3) && length == 0));
    }
    Some((Record { offset, end, kind, seqno, durable, batches, edit, note }, end))
}

/// What a record says about keyspaces: its kind.
fn read_note(input: &mut Input<'_>) -> u8 {
    let what = input.int(1) as u8;
    assert!(what <= 3);
    if what == 3 {
        let (_id, number) = (input.varint(), input.varint());
        let (first, last) = (input.bytes().to_vec(), input.bytes().to_vec());
        assert!(number > 0 && first <= last && input.is_empty());
        return what;
    }
    let mut before = None;
    while !input.is_empty() {
        let id = input.varint();
        assert!(before.is_none_or(|before| before < id), "by rising id");
        before = Some(id);
        if what < 2 {
            let name = input.bytes().to_vec();
            assert!(String::from_utf8(name).is_ok());
            input.varint();
        }
        assert!(what == 0 || input.is_empty(), "nothing to spare");
    }
    assert!(before.is_some());
    what
}

fn read_op(input: &mut Input<'_>) -> Op {
    let flags = input.int(1) as u8;
    assert_eq!(flags & 0b1110_1000, 0, "nothing reserved");
    let (kind, expires) = (flags & 7, flags & 16 != 0);
    assert!(matches!((kind, expires), (1 | 3, _) | (2 | 4, false)), "kind {kind}");
    let keyspace = input.varint();
    let key = input.bytes().to_vec();
    let mut value = if kind == 2 { Input::new(&[]) } else { Input::new(input.bytes()) };
    let expiry = expires.then(|| value.int(8));
    let value = value.rest().to_vec();
    assert!(kind != 4 || value.is_empty() || key < value, "the range is not empty");
    Op { kind, keyspace, key, expiry, value }
}

#[derive(Clone, Debug)]
pub struct SegmentLine {
    pub keyspace: u64,
    pub level: u64,
    pub run: u64,
    pub file_length: u64,
    pub checksum: u64,
    pub entries: u64,
    pub tombstones: u64,
    pub smallest: u64,
    pub largest: u64,
    pub first_key: Vec<u8>,
    pub last_key: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
pub struct Keyspace {
    pub name: String,
    pub clears: Vec<u64>,
    pub merge_operator: Option<String>,
    /// In milliseconds.
    pub default_ttl: Option<u64>,
    pub separate_above: Option<u64>,
    pub range_tombstones: RangeTombstones,
}

/// Start and end by number; an empty end is none.
pub type RangeTombstones = BTreeMap<u64, (Vec<u8>, Vec<u8>)>;

#[derive(Clone, Debug, Default)]
pub struct Manifest {
    pub uuid: Vec<u8>,
    pub hash_seed: u64,
    pub salt: u64,
    /// Number, offset of the first copy, and the kinds of change in it.
    pub edits: Vec<(u64, usize, Vec<u8>)>,
    pub keyspaces: BTreeMap<u64, Keyspace>,
    pub segments: BTreeMap<u64, SegmentLine>,
    pub log_floor: u64,
    pub flushed: u64,
    /// Segment, log, keyspace, run.
    pub next: [u64; 4],
}

pub fn read_manifest(file: &[u8]) -> Manifest {
    assert_eq!(&file[..8], b"ASHLRMAN");
    assert_eq!(u64_at(file, 56), checksum(0, 0, &file[..56]), "header");
    assert_eq!((u32_at(file, 8), u32_at(file, 12)), (1, 0));
    let mut manifest = Manifest {
        uuid: file[16..32].to_vec(),
        hash_seed: u64_at(file, 32),
        salt: u64_at(file, 40),
        ..Manifest::default()
    };
    let mut number = u64_at(file, 48);
    let mut at = 64;
    while at < file.len() {
        let (first, copy) = manifest_record(file, manifest.salt, at, number);
        let (second, next) = manifest_record(file, manifest.salt, copy, number);
        assert_eq!(first, second, "both copies are the same");
        let kinds = manifest.apply(first);
        manifest.edits.push((number, at, kinds));
        number += 1;
        at = next;
    }
    manifest
}

fn manifest_record(file: &[u8], salt: u64, at: usize, number: u64) -> (&[u8], usize) {
    let mut input = Input::new(&file[at + 8..]);
    let length = input.int(5) as usize;
    assert_eq!((input.int(3), input.int(8)), (0, number));
    let end = at + 24 + length;
    assert_eq!(u64_at(file, at), checksum(salt, at as u64, &file[at + 8..end]), "record");
    (&file[at + 24..end], end)
}

impl Manifest {
    /// The one whose id comes next.
    fn keyspace(&mut self, body: &mut Input<'_>) -> &mut Keyspace {
        self.keyspaces.get_mut(&body.varint()).expect("a live keyspace")
    }

    fn apply(&mut self, edit: &[u8]) -> Vec<u8> {
        let mut input = Input::new(edit);
        let mut kinds = Vec::new();
        while !input.is_empty() {
            let kind = input.int(1) as u8;
            let mut body = Input::new(input.bytes());
            kinds.push(kind);
            match kind {
                1 => {
                    let id = body.varint();
                    let name = String::from_utf8(body.bytes().to_vec()).expect("UTF-8");
                    let keyspace = Keyspace { name, ..Keyspace::default() };
                    assert!(self.keyspaces.insert(id, keyspace).is_none());
                }
                2 => {
                    let id = body.varint();
                    self.keyspaces.remove(&id).expect("a keyspace");
                    self.segments.retain(|_, segment| segment.keyspace != id);
                }
                3 => {
                    let keyspace = self.keyspace(&mut body);
                    keyspace.clears.push(body.varint());
                }
                4 => {
                    let id = body.varint();
                    let line = SegmentLine {
                        keyspace: body.varint(),
                        level: body.int(1),
                        run: body.varint(),
                        file_length: body.varint(),
                        checksum: body.int(8),
                        entries: body.varint(),
                        tombstones: body.varint(),
                        smallest: body.varint(),
                        largest: body.varint(),
                        first_key: body.bytes().to_vec(),
                        last_key: body.bytes().to_vec(),
                    };
                    assert!(self.segments.insert(id, line).is_none());
                }
                5 => assert!(self.segments.remove(&body.varint()).is_some()),
                6 => self.log_floor = body.varint(),
                7 => self.flushed = body.varint(),
                8 => self.next = std::array::from_fn(|_| body.varint()),
                9 => {
                    let keyspace = self.keyspace(&mut body);
                    let upto = body.varint();
                    keyspace.clears.retain(|clear| *clear > upto);
                }
                10 => {
                    let keyspace = self.keyspace(&mut body);
                    (keyspace.merge_operator, keyspace.default_ttl) = (None, None);
                    keyspace.separate_above = None;
                    let mut last = 0;
                    while !body.is_empty() {
                        let (id, value) = (body.int(1) as u8, body.bytes());
                        assert!(last < id, "options rise");
                        last = id;
                        match id {
                            1 => {
                                let name = String::from_utf8(value.to_vec()).expect("UTF-8");
                                assert!(!name.is_empty());
                                keyspace.merge_operator = Some(name);
                            }
                            2 => {
                                assert_eq!(value.len(), 8);
                                keyspace.default_ttl = Some(u64_at(value, 0));
                                assert_ne!(keyspace.default_ttl, Some(0));
                            }
                            0x83 => {
                                assert_eq!(value.len(), 8);
                                keyspace.separate_above = Some(u64_at(value, 0));
                            }
                            _ => assert!(id & 0x80 != 0, "unknown option"),
                        }
                    }
                }
                11 => {
                    let keyspace = self.keyspace(&mut body);
                    while !body.is_empty() {
                        let seqno = body.varint();
                        let range = (body.bytes().to_vec(), body.bytes().to_vec());
                        assert!(range.1.is_empty() || range.0 < range.1, "it is not empty");
                        assert!(keyspace.range_tombstones.insert(seqno, range).is_none());
                    }
                }
                12 => {
                    let keyspace = self.keyspace(&mut body);
                    while !body.is_empty() {
                        let gone = keyspace.range_tombstones.remove(&body.varint());
                        assert!(gone.is_some(), "it is there");
                    }
                }
                _ => {
                    assert!(kind & 0x80 != 0, "unknown change");
                    continue;
                }
            }
            assert!(body.is_empty(), "nothing to spare");
        }
        kinds
    }
}

/// The logs that count, oldest first.
pub fn chain(files: &Files, floor: u64) -> Vec<Log> {
    let mut logs: Vec<Log> = files
        .iter()
        .filter(|(name, _)| name.ends_with(".wal"))
        .map(|(name, file)| {
            let log = read_log(file, log_salt(&files["MANIFEST"]));
            assert_eq!(*name, format!("{:020}.wal", log.id));
            log
        })
        .filter(|log| log.id >= floor)
        .collect();
    logs.sort_by_key(|log| log.id);
    assert_eq!(logs[0].id, floor);
    for pair in logs.windows(2) {
        assert_eq!(pair[1].predecessor, pair[0].id);
        assert_eq!(pair[1].predecessor_end, pair[0].end as u64);
        assert_eq!(pair[1].before, pair[0].last);
    }
    logs
}

/// By keyspace name and key.
pub type Contents = BTreeMap<(String, Vec<u8>), Vec<u8>>;

/// A version of a key.
struct Version {
    kind: u8,
    expiry: Option<u64>,
    value: Vec<u8>,
}

/// Where a version is: its number, greatest first, then its source, newest first.
type Place = (Reverse<u64>, u64, Reverse<u64>);

/// The versions of the keys of a database.
#[derive(Default)]
struct Versions(BTreeMap<(u64, Vec<u8>), BTreeMap<Place, Version>>);

impl Versions {
    fn see(&mut self, keyspace: u64, key: Vec<u8>, place: Place, version: Version) {
        let twice = self.0.entry((keyspace, key)).or_default().insert(place, version).is_some();
        assert!(!twice, "no source has two versions with one number");
    }

    fn see_segment(&mut self, line: &SegmentLine, file: &[u8], references: &mut References<'_>) {
        let segment = segment::read(file);
        let description = &segment.description;
        assert_eq!(description.footer_checksum, line.checksum);
        assert_eq!(description.file_length, line.file_length);
        assert_eq!(description.properties[&2], line.entries);
        assert_eq!(description.properties[&3], line.tombstones);
        assert_eq!(
            (&description.first_key, &description.last_key),
            (&line.first_key, &line.last_key)
        );
        let mut listed: BTreeMap<u64, [u64; 2]> = BTreeMap::new();
        let least = description.properties.get(&segment::NUMBERED_FROM);
        assert!(least.is_none_or(|least| *least <= line.smallest));
        for segment::Entry { key, seqno, numbered, mut kind, expiry, mut value } in segment.entries
        {
            let seqno = if numbered { seqno } else { line.smallest };
            assert!((line.smallest..=line.largest).contains(&seqno));
            if kind == 6 {
                let (fetched, bytes) = references.value(&value);
                let [entries, sum] = listed.entry(u64_at(&value, 0)).or_default();
                (*entries, *sum) = (*entries + 1, *sum + bytes);
                (kind, value) = (1, fetched);
            }
            let place = (Reverse(seqno), 1 + line.level, Reverse(line.run));
            self.see(line.keyspace, key, place, Version { kind, expiry, value });
        }
        let listed = listed.into_iter().map(|(id, [entries, bytes])| {
            let file = references.file(id);
            [id, file.file_length, file.footer_checksum, entries, bytes]
        });
        assert!(listed.eq(segment.value_segments), "the value segments it lists");
    }

    fn live(self, manifest: &Manifest, now: u64) -> Contents {
        let mut contents = Contents::new();
        for ((id, key), versions) in self.0 {
            let Some(keyspace) = manifest.keyspaces.get(&id) else { continue };
            if let Some(value) = value_of(keyspace, &key, versions, now) {
                contents.insert((keyspace.name.clone(), key), value);
            }
        }
        contents
    }
}

/// All pairs that are live at a time, in milliseconds since the Unix epoch.
pub fn contents(files: &Files, now: u64) -> Contents {
    contents_without(files, "", now)
}

/// What would be live if this segment were empty.
pub fn contents_without(files: &Files, missing: &str, now: u64) -> Contents {
    let mut manifest = read_manifest(&files["MANIFEST"]);
    let mut versions = Versions::default();
    let mut references = References::new(files);
    for (id, line) in &manifest.segments {
        let name = format!("{id:020}.seg");
        if name != missing {
            versions.see_segment(line, &files[&name], &mut references);
        }
    }
    for log in chain(files, manifest.log_floor) {
        let mut seqno = log.before;
        for record in log.records {
            assert!(
                record.edit <= manifest.edits.last().map_or(0, |last| last.0),
                "no edit is lost"
            );
            seqno += u64::from(record.kind == 3);
            for op in record.batches.into_iter().flatten() {
                seqno += 1;
                if seqno <= manifest.flushed {
                    continue;
                }
                let Op { kind, keyspace, key, expiry, value } = op;
                if kind == 4 {
                    if let Some(keyspace) = manifest.keyspaces.get_mut(&keyspace) {
                        let new = keyspace.range_tombstones.insert(seqno, (key, value)).is_none();
                        assert!(new, "what is in the manifest is not replayed");
                    }
                    continue;
                }
                let place = (Reverse(seqno), 0, Reverse(0));
                versions.see(keyspace, key, place, Version { kind, expiry, value });
            }
        }
    }
    versions.live(&manifest, now)
}

/// What a backup of a directory holds, from FORMAT.md section 9 alone; and the names of its copies.
pub fn backup(files: &Files, number: u64) -> (Contents, Vec<String>) {
    let file = &files[&format!("{number:020}.backup")];
    assert_eq!(&file[..8], b"ASHLRBAK");
    assert_eq!((u32_at(file, 8), u32_at(file, 12)), (1, 0));
    assert_eq!(u64_at(file, 80), checksum(0, 0, &file[..80]), "header");
    assert_eq!(u64_at(file, 48), number);
    assert_eq!(u64_at(file, 64), file.len() as u64 - 88);
    assert_eq!(u64_at(file, 72), checksum(u64_at(file, 40), 88, &file[88..]), "payload");
    let mut manifest = Manifest {
        uuid: file[16..32].to_vec(),
        hash_seed: u64_at(file, 32),
        ..Manifest::default()
    };
    let mut payload = Input::new(&file[88..]);
    manifest.apply(payload.bytes());
    assert_eq!((manifest.log_floor, manifest.next[1]), (1, 2));
    let mut names = Vec::new();
    for (id, line) in &manifest.segments {
        let name = format!("{id:020}-{:016x}.seg", line.checksum);
        assert!(line.largest <= manifest.flushed);
        assert_eq!(payload.int(8), checksum(0, 0, &files[&name]), "{name}");
        names.push(name);
    }
    // Value segments, by the names that they have in a database.
    let mut values = Files::new();
    let count = if payload.is_empty() { 0 } else { payload.int(8).max(1) };
    let mut last = 0;
    for _ in 0..count {
        let [id, length, sum, hash] = std::array::from_fn(|_| payload.int(8));
        assert!(last < id && id < manifest.next[0] && !manifest.segments.contains_key(&id));
        last = id;
        let name = format!("{id:020}-{sum:016x}.val");
        let file = &files[&name];
        assert_eq!((length, hash), (file.len() as u64, checksum(0, 0, file)), "{name}");
        values.insert(format!("{id:020}.val"), file.clone());
        names.push(name);
    }
    assert!(payload.is_empty(), "nothing to spare");
    let (mut versions, mut references) = (Versions::default(), References::new(&values));
    for (line, name) in manifest.segments.values().zip(&names) {
        versions.see_segment(line, &files[name], &mut references);
    }
    assert_eq!(references.seen(), values.len(), "those that segments list, and no others");
    (versions.live(&manifest, 0), names)
}

/// What the versions of a key come to.
fn value_of(
    keyspace: &Keyspace,
    key: &[u8],
    versions: BTreeMap<Place, Version>,
    now: u64,
) -> Option<Vec<u8>> {
    let covers =
        |(start, end): &(Vec<u8>, Vec<u8>)| start[..] <= *key && (end.is_empty() || *key < end[..]);
    let deletes = keyspace.range_tombstones.iter().filter(|(_, range)| covers(range));
    let hidden = deletes.map(|(seqno, _)| seqno).chain(&keyspace.clears).max();
    let (mut operands, mut base) = (Vec::new(), None);
    let mut last = None;
    for ((Reverse(seqno), ..), version) in versions {
        if last.replace(seqno) == Some(seqno) {
            // The newer source hides it.
            continue;
        }
        if hidden.is_some_and(|hidden| seqno <= *hidden) {
            break;
        }
        let expired = version.expiry.is_some_and(|expiry| expiry <= now);
        match version.kind {
            3 if expired => {}
            3 => operands.push(version.value),
            1 if !expired => {
                base = Some(version.value);
                break;
            }
            _ => break,
        }
    }
    if operands.is_empty() {
        return base;
    }
    operands.reverse();
    Some(merged(keyspace.merge_operator.as_deref().expect("an operator"), base, operands))
}

/// The ready-made operators, from section 5.
fn merged(operator: &str, base: Option<Vec<u8>>, operands: Vec<Vec<u8>>) -> Vec<u8> {
    let all = || base.iter().chain(&operands);
    match operator {
        "ashlar.append" => all().flatten().copied().collect(),
        "ashlar.add-i64" => {
            let sum = all().fold(0, |sum: u64, n| sum.wrapping_add(u64_at(n, 0)));
            sum.to_le_bytes().to_vec()
        }
        "ashlar.max" => all().max().expect("an operand").clone(),
        "ashlar.set-union" => {
            let mut union = BTreeSet::new();
            for set in all() {
                let mut input = Input::new(set);
                while !input.is_empty() {
                    let length = input.int(4) as usize;
                    union.insert(input.take(length).to_vec());
                }
            }
            let element = |e: Vec<u8>| [&(e.len() as u32).to_le_bytes()[..], &e].concat();
            union.into_iter().flat_map(element).collect()
        }
        other => panic!("{other} is not ready-made"),
    }
}
