//! Damaged copies of golden databases: their logs, manifests and segments.

use super::bytes::{checksum, put, u64_at};
use super::damage::{Damaged, Expected};
use super::database::{Files, Log, Manifest, contents, contents_without, read_log, read_manifest};
use super::make::{READ_AT_MS, append_edit};
use super::{segment, values};
use crate::database::log_salt;

/// A database that is about to be damaged.
struct Store {
    base: &'static str,
    files: Files,
    manifest: Manifest,
    /// Names and contents of the logs, oldest first.
    logs: Vec<(String, Log)>,
}

const MANIFEST: &str = "MANIFEST";

impl Store {
    fn new(golden: &Files, base: &'static str) -> Store {
        let prefix = format!("databases/{base}/");
        let files: Files = golden
            .iter()
            .filter_map(|(path, bytes)| {
                Some((path.strip_prefix(&prefix)?.to_owned(), bytes.clone()))
            })
            .collect();
        let logs = files.iter().filter(|(name, _)| name.ends_with(".wal"));
        let logs = logs
            .map(|(name, bytes)| (name.clone(), read_log(bytes, log_salt(&files[MANIFEST]))))
            .collect();
        Store { base, manifest: read_manifest(&files[MANIFEST]), logs, files }
    }

    fn case(
        &self,
        name: &str,
        defect: &str,
        mut expected: Expected,
        file: &str,
        damage: impl FnOnce(&mut Files),
    ) -> Damaged {
        let mut files = self.files.clone();
        damage(&mut files);
        assert_ne!(files, self.files, "{name} changes something");
        if expected.kind != "not_a_database" {
            expected.file = file.into();
        }
        Damaged {
            path: format!("damaged/databases/{name}"),
            base: format!("databases/{}", self.base),
            defect: defect.into(),
            files,
            expected,
        }
    }

    /// A case that changes one file.
    fn edited(
        &self,
        name: &str,
        defect: &str,
        expected: Expected,
        file: &str,
        damage: impl FnOnce(&mut Vec<u8>),
    ) -> Damaged {
        self.case(name, defect, expected, file, |files| {
            damage(files.get_mut(file).expect("the file"));
        })
    }
}

pub fn databases(golden: &Files) -> Vec<Damaged> {
    let mut cases = Vec::new();
    damaged_logs(&Store::new(golden, "batches"), &mut cases);
    damaged_chains(&Store::new(golden, "chain"), &mut cases);
    damaged_manifests(&Store::new(golden, "batches"), &mut cases);
    damaged_stores(&Store::new(golden, "unclean"), &mut cases);
    damaged_values(&Store::new(golden, "values"), &mut cases);
    cases
}

fn reseal_record(file: &mut [u8], log: &Log, i: usize) {
    let record = log.groups()[i];
    let sum = checksum(log.salt, record.offset as u64, &file[record.offset + 8..record.end]);
    put(file, record.offset, &sum.to_le_bytes());
}

fn reseal_header(file: &mut [u8], salt: u64) {
    let sum = checksum(salt, 0, &file[..56]);
    put(file, 56, &sum.to_le_bytes());
}

/// One log, closed properly: its last record is a mark that says that all before it is durable.
fn damaged_logs(store: &Store, cases: &mut Vec<Damaged>) {
    let (name, log) = &store.logs[0];
    let salt = log_salt(&store.files[MANIFEST]);
    let at = |i: usize| log.groups()[i].offset;
    let opening = |kind, at| Expected::new("open", kind, at);
    let mut add = |case: &str, defect: &str, expected, damage: &dyn Fn(&mut Vec<u8>)| {
        cases.push(store.edited(case, defect, expected, name, damage));
    };
    let parts = [("checksum", 1, 2), ("length", 2, 8), ("kind", 2, 13), ("seqno", 1, 14)];
    for (part, i, byte) in parts.into_iter().chain([("durable", 1, 22), ("payload", 2, 30)]) {
        let defect = format!("the log, group {i}: a bit flipped at its byte {byte} ({part})");
        let expected = opening("corruption", at(i));
        add(&format!("log-{part}"), &defect, expected, &|file| file[at(i) + byte] ^= 1);
    }
    let resealed: [(&str, usize, u8, &str); 8] = [
        ("record-kind-4", 13, 4, "unsupported"),
        ("op-kind-5", 27, 5, "unsupported"),
        // The key of the operation is "beta", its value is "2".
        ("op-range-reversed", 27, 4, "corruption"),
        ("op-range-expiry", 27, 4 | 1 << 4, "unsupported"),
        ("op-expiry-without-room", 27, 1 | 1 << 4, "corruption"),
        ("op-tombstone-expiry", 27, 2 | 1 << 4, "corruption"),
        ("op-flag", 27, 1 | 1 << 3, "corruption"),
        ("seqno-resealed", 14, 9, "corruption"),
    ];
    for (case, byte, new, kind) in resealed {
        let defect = format!("the log, group 1: {new} at its byte {byte}, the checksum fits");
        add(&format!("log-{case}"), &defect, opening(kind, at(1)), &|file| {
            file[at(1) + byte] = new;
            reseal_record(file, log, 1);
        });
    }
    let header = "a bit flipped in the header of the log";
    add("log-header", header, opening("corruption", 0), &|file| file[25] ^= 1);
    let magic = "a bit flipped in the magic of the log";
    add("log-magic", magic, opening("corruption", 0), &|file| file[0] ^= 1);
    let version = "the log has version 2, the checksum fits";
    add("log-version-2", version, opening("unsupported", 0), &|file| {
        file[8] = 2;
        reseal_header(file, salt);
    });
    let reserved = "a reserved field of the log header is set, the checksum fits";
    add("log-header-reserved", reserved, opening("corruption", 0), &|file| {
        file[12] = 1;
        reseal_header(file, salt);
    });
    add("log-empty", "nothing is left of the log", opening("corruption", 0), &|file| file.clear());
    // What the mark says is gone with it: the promise ends at the last durable point mentioned by a
    // record that survives.
    let last = log.groups().len() - 1;
    let mark = log.records.last().expect("a mark").offset;
    let defect = "the log: cut in the middle of the last record before the marks";
    let expected = opening("torn", at(last)).keys([0, 1, 0]);
    add("torn-without-mark", defect, expected, &|file| file.truncate(at(last) + 40));
    let defect = "the log: the mark at its end was cut";
    let expected = opening("torn", mark).keys([0, 0, 0]);
    add("torn-mark", defect, expected, &|file| file.truncate(log.end - 1));
    cases.push(store.case(
        "log-missing",
        "the log is missing",
        opening("corruption", 0),
        name,
        |files| {
            files.remove(name);
        },
    ));
}

/// Two logs; in the second all records but the last were synced.
fn damaged_chains(store: &Store, cases: &mut Vec<Damaged>) {
    let [(first, older), (second, newer)] = &store.logs[..] else { panic!("two logs") };
    let opening = |kind, at| Expected::new("open", kind, at);
    let at = |i: usize| newer.groups()[i].offset;
    let older_last = older.records.last().expect("a record").offset;
    let last = newer.groups().len() - 1;

    let defect = "the older log: a bit flipped in its header";
    let expected = opening("corruption", 0);
    cases.push(store.edited("chain-header", defect, expected, first, |file| file[30] ^= 1));
    let defect = "the older log is cut in the middle of its last record";
    let expected = opening("corruption", older_last);
    cases.push(store.edited("chain-older-cut", defect, expected, first, |file| {
        file.truncate(older.end - 3);
    }));
    let defect = "the older log: a bit flipped in its last record";
    let expected = opening("corruption", older_last);
    cases.push(store.edited("chain-older-tail", defect, expected, first, |file| {
        file[older.end - 3] ^= 1;
    }));
    let defect = "the older log is missing";
    cases.push(store.case("chain-gap", defect, opening("corruption", 32), second, |files| {
        files.remove(first);
    }));
    let defect = "the names of the two logs are exchanged";
    cases.push(store.case("chain-exchanged", defect, opening("corruption", 16), first, |files| {
        let (a, b) = (files[first].clone(), files[second].clone());
        files.extend([(first.clone(), b), (second.clone(), a)]);
    }));
    let defect = "the newer log: records 1 and 2 swapped";
    let expected = opening("corruption", at(1));
    cases.push(store.edited("records-swapped", defect, expected, second, |file| {
        let [one, two] = [newer.groups()[1], newer.groups()[2]];
        assert_eq!(one.end - one.offset, two.end - two.offset);
        let (front, back) = file.split_at_mut(two.offset);
        front[one.offset..one.end].swap_with_slice(&mut back[..two.end - two.offset]);
    }));
    let defect = "the newer log: record 2 is that of the older log";
    let expected = opening("corruption", at(2));
    cases.push(store.edited("record-of-another-log", defect, expected, second, |file| {
        let (from, to) = (older.groups()[2].offset, older.groups()[2].end);
        let record = &store.files[first][from..to];
        let room = newer.groups()[2].end - at(2);
        put(file, at(2), &record[..record.len().min(room)]);
    }));
    let expected = || opening("torn", at(last)).keys([0, 1, 0]);
    let defect = "the newer log is cut in the middle of its last record, which was not synced";
    cases.push(store.edited("torn-cut", defect, expected(), second, |file| {
        file.truncate(newer.end - 5);
    }));
    let defect = "the newer log: a bit flipped in its last record, which was not synced";
    cases.push(store.edited("torn-flipped", defect, expected(), second, |file| {
        file[newer.end - 5] ^= 1;
    }));
    let defect = "the newer log: 50 bytes that are no record behind its end";
    let expected = opening("torn", newer.end).keys([0, 0, 0]);
    cases.push(store.edited("torn-garbage", defect, expected, second, |file| {
        file.extend([0xa5; 50]);
    }));
    let defect = "the newer log: a bit flipped in its last record but one, which was synced";
    let expected = opening("corruption", at(last - 1));
    cases.push(store.edited("log-last-synced", defect, expected, second, |file| {
        file[newer.groups()[last - 1].end - 2] ^= 1;
    }));
}

fn damaged_manifests(store: &Store, cases: &mut Vec<Damaged>) {
    let file = &store.files[MANIFEST];
    let edits = &store.manifest.edits;
    let end = file.len();
    // Where edit `i`, its second copy and its end are.
    let place = |i: usize| {
        let start = edits[i].1;
        let end = edits.get(i + 1).map_or(end, |next| next.1);
        (start, start + (end - start) / 2, end)
    };
    let last = edits.len() - 1;
    assert_eq!(edits[last].2, [3], "the last edit is a clear");
    let opening = |kind, at| Expected::new("open", kind, at);
    let healed = |at| opening("healed", at).keys([0, 0, 0]);
    let mut add = |case: &str, defect: &str, expected, damage: &dyn Fn(&mut Vec<u8>)| {
        let name = format!("manifest-{case}");
        cases.push(store.edited(&name, defect, expected, MANIFEST, damage));
    };
    let (first, second, next) = place(1);
    let (last_first, last_second, _) = place(last);
    add("first-copy", "edit 1: a bit flipped in its first copy", healed(first), &|file| {
        file[first + 26] ^= 1;
    });
    add("second-copy", "edit 1: a bit flipped in its second copy", healed(second), &|file| {
        file[second + 4] ^= 1;
    });
    let defect = "the last edit: a bit flipped in its second copy";
    add("last-second-copy", defect, healed(last_second), &|file| file[last_second + 9] ^= 1);
    let defect = "the last edit: its second copy is cut";
    add("cut-second-copy", defect, healed(last_second), &|file| file.truncate(end - 1));
    let defect = "edit 1: a bit flipped in both copies";
    add("both-copies", defect, opening("corruption", first), &|file| {
        file[first + 26] ^= 1;
        file[second + 26] ^= 1;
    });
    let defect = "the first edit: a bit flipped in both copies";
    add("first-edit", defect, opening("corruption", 64), &|file| {
        let (one, two, _) = place(0);
        file[one + 26] ^= 1;
        file[two + 26] ^= 1;
    });
    // The log says that the edit was durable, so this is not as if a crash had come before.
    let lost = || opening("corruption", 0);
    let defect = "the last edit, a clear: a bit flipped in both copies";
    add("last-both-copies", defect, lost(), &|file| {
        file[last_first + 26] ^= 1;
        file[last_second + 26] ^= 1;
    });
    let defect = "the last edit, a clear: its first copy is cut";
    add("cut-first-copy", defect, lost(), &|file| file.truncate(last_first + 10));
    let defect = "30 bytes that are no record behind the end";
    add("garbage", defect, opening("torn", end).keys([0, 0, 0]), &|file| file.extend([0x5a; 30]));
    let defect = "edits 1 and 2 swapped";
    add("edits-swapped", defect, opening("corruption", first), &|file| {
        let after = place(2).2;
        file[first..after].rotate_left(next - first);
    });
    let defect = "edit 1: its two copies differ, the checksums fit";
    add("copies-differ", defect, opening("corruption", second), &|file| {
        file[next - 1] ^= 1;
        let sum = checksum(store.manifest.salt, second as u64, &file[second + 8..next]);
        put(file, second, &sum.to_le_bytes());
    });
    let number = edits[last].0 + 1;
    let defect = "an edit with a change of kind 13, which is not known, was appended";
    add("change-13", defect, opening("unsupported", end), &|file| {
        append_edit(file, number, &[13, 1, 0]);
    });
    let bad_edits: [(&str, &str, &str, &[u8]); 7] = [
        ("option-3", "an option that is not known", "unsupported", &[10, 4, 0, 3, 1, b'x']),
        ("options-order", "options out of order", "corruption", &[10, 5, 0, 0x81, 0, 0x80, 0]),
        ("operator-nameless", "a merge operator without a name", "corruption", &[10, 3, 0, 1, 0]),
        ("ttl-short", "a time to live of one byte", "corruption", &[10, 4, 0, 2, 1, 9]),
        ("range-empty", "an empty range tombstone", "corruption", &[11, 6, 0, 9, 1, b'b', 1, b'b']),
        (
            "range-twice",
            "two range tombstones of one number",
            "corruption",
            &[11, 9, 0, 9, 1, b'a', 0, 9, 1, b'b', 0],
        ),
        ("range-missing", "a range tombstone that is not there", "corruption", &[12, 2, 0, 9]),
    ];
    for (case, what, kind, edit) in bad_edits {
        let defect = format!("an edit was appended: {what}");
        add(case, &defect, opening(kind, end), &|file| append_edit(file, number, edit));
    }
    let defect = "an edit that removes a segment that is not there was appended";
    add("change-impossible", defect, opening("corruption", end), &|file| {
        append_edit(file, number, &[5, 1, 77]);
    });
    let defect = "a bit flipped in the header";
    add("header", defect, opening("corruption", 0), &|file| file[20] ^= 1);
    let defect = "a bit flipped in the magic";
    add("magic", defect, opening("corruption", 0), &|file| file[3] ^= 1);
    add("version-2", "version 2, the checksum fits", opening("unsupported", 0), &|file| {
        file[8] = 2;
        reseal_header(file, 0);
    });
    add("empty", "nothing is left of it", opening("corruption", 0), &|file| file.clear());
    let expected = opening("not_a_database", 0);
    let defect = "the manifest is missing";
    cases.push(store.case("manifest-missing", defect, expected, MANIFEST, |files| {
        files.remove(MANIFEST);
    }));
}

/// Damage to the segments of a database.
fn damaged_stores(store: &Store, cases: &mut Vec<Damaged>) {
    let opening = |kind, at| Expected::new("open", kind, at);
    let name = |id: &u64| format!("{id:020}.seg");
    let ids: Vec<&u64> = store.manifest.segments.keys().collect();
    let (first, second) = (name(ids[0]), name(ids[1]));
    let defect = "a segment is missing";
    let expected = opening("corruption", 0);
    cases.push(store.case("segment-missing", defect, expected, &second, |files| {
        files.remove(&second);
    }));
    let defect = "two segments have each other's names";
    let expected = opening("corruption", 0);
    cases.push(store.case("segments-exchanged", defect, expected, &first, |files| {
        let (a, b) = (files[&first].clone(), files[&second].clone());
        files.extend([(first.clone(), b), (second.clone(), a)]);
    }));
    let footer = store.files[&first].len() - segment::FOOTER;
    let defect = "a bit flipped in the footer of a segment";
    let expected = opening("corruption", footer);
    cases.push(store.edited("segment-footer", defect, expected, &first, |file| {
        file[footer + 20] ^= 1;
    }));
    // The segment of the deepest level: what is in newer ones or in the log can still be read.
    let deepest = store.manifest.segments.iter().max_by_key(|(_, s)| (s.level, s.entries));
    let deepest = name(deepest.expect("a segment").0);
    let read = segment::read(&store.files[&deepest]);
    let block = &read.description.blocks[0];
    let before = contents(&store.files, READ_AT_MS);
    let newer = contents_without(&store.files, &deepest, READ_AT_MS);
    let in_block = &read.entries[..block.entries as usize];
    let lost = in_block
        .iter()
        .filter(|entry| {
            let id = ("default".to_owned(), entry.key.clone());
            before.contains_key(&id) && !newer.contains_key(&id)
        })
        .count() as u64;
    assert!(lost > 0 && lost < in_block.len() as u64);
    let expected = Expected::new("get", "corruption", block.offset as usize).lost(lost);
    let defect = "a bit flipped in the first block of the deepest segment";
    let at = block.offset as usize + 1_000;
    cases.push(store.edited("segment-block", defect, expected, &deepest, |file| file[at] ^= 1));
}

/// Value segments: the oldest segment that lists one is opened first, and so that file.
fn damaged_values(store: &Store, cases: &mut Vec<Damaged>) {
    let opening = |at| Expected::new("open", "corruption", at);
    let lists = store.manifest.segments.keys().find_map(|id| {
        let segment = segment::read(&store.files[&format!("{id:020}.seg")]);
        let id = segment.value_segments.first().map(|line| line[0]);
        id.map(|id| (id, segment))
    });
    let (id, segment) = lists.expect("a segment lists one");
    let name = format!("{id:020}.val");
    let defect = "a value segment is missing";
    cases.push(store.case("values-missing", defect, opening(0), &name, |files| {
        files.remove(&name);
    }));
    let other = store.files.keys().find(|file| file.ends_with(".val") && **file != name);
    let other = store.files[other.expect("there are several")].clone();
    let defect = "a value segment has the content of another";
    cases.push(store.case("values-exchanged", defect, opening(0), &name, |files| {
        files.insert(name.clone(), other);
    }));
    let footer = store.files[&name].len() - values::FOOTER;
    let defect = "a bit flipped in the footer of a value segment";
    cases.push(store.edited("values-footer", defect, opening(footer), &name, |file| {
        file[footer + 30] ^= 1;
    }));
    // A value that is the newest of its key: that key alone is lost.
    let read = values::read(&store.files[&name]);
    let live = contents(&store.files, READ_AT_MS);
    let entry = segment.entries.iter().find(|entry| {
        entry.kind == 6 && u64_at(&entry.value, 0) == id && {
            let (_, value) = &read.records[&u64_at(&entry.value, 8)];
            live.get(&("values".to_owned(), entry.key.clone())) == Some(value)
        }
    });
    let at = u64_at(&entry.expect("a live value").value, 8) as usize;
    let expected = Expected::new("get", "corruption", at).lost(1);
    let defect = "a bit flipped in a value of a value segment";
    cases.push(store.edited("values-value", defect, expected, &name, |file| {
        file[at + values::RECORD + 20] ^= 1;
    }));
}
