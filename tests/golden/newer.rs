//! Every format version that there was is read, and a newer one is refused cleanly: as unsupported,
//! with the name of the file, whatever else it holds, and without a change to anything.

use super::bytes::{checksum, put, u64_at};
use super::database::{Files, chain, read_manifest};
use super::{databases, env_with, files_under, golden_dir, judge, root, segments};
use ashlardb::{Background, Db, Error, Recovery, SegmentReader};
use std::collections::BTreeSet;
use std::path::Path;

/// The version that is written, of all kinds of file.
const CURRENT: u32 = 1;

/// Where its version is in a file of a database or in a segment; `None` if it has none.
fn version_at(name: &str, file: &[u8]) -> Option<usize> {
    match name.rsplit(['/', '.']).next() {
        Some("MANIFEST" | "wal") => Some(8),
        Some("seg" | "val") => Some(file.len() - 40),
        _ => None,
    }
}

/// Writes into the part of a file that opening looks at first, and lets its checksum fit.
fn altered(name: &str, file: &[u8], manifest: &[u8], changes: &[(usize, u8)]) -> Vec<u8> {
    let mut file = file.to_vec();
    let at = version_at(name, &file).expect("it has a version");
    for (behind, byte) in changes {
        file[at + behind] = *byte;
    }
    if name.ends_with(".seg") || name.ends_with(".val") {
        let footer = file.len() - 96;
        let sum = checksum(0, u64_at(&file, footer + 48), &file[footer..footer + 88]);
        put(&mut file, footer + 88, &sum.to_le_bytes());
    } else {
        let is_log = name.ends_with(".wal");
        let salt = if is_log { u64_at(manifest, 16) ^ u64_at(manifest, 24) } else { 0 };
        let sum = checksum(salt, 0, &file[..56]);
        put(&mut file, 56, &sum.to_le_bytes());
    }
    file
}

/// Newer versions, with and without something where this one wants zeros; and version 0.
fn versions() -> [(&'static str, Vec<(usize, u8)>); 4] {
    let newest = (0..4).map(|i| (i, 0xff)).collect();
    [
        ("unsupported", vec![(0, CURRENT as u8 + 1)]),
        ("unsupported", vec![(0, CURRENT as u8 + 1), (4, 9), (7, 1)]),
        ("unsupported", newest),
        ("corruption", vec![(0, 0)]),
    ]
}

#[test]
fn there_are_golden_files_of_every_version() {
    let testdata = files_under(&root().join("testdata"));
    for version in 1..=CURRENT {
        let kinds: BTreeSet<&str> = testdata
            .iter()
            .filter(|(path, _)| path.starts_with(&format!("v{version}/")))
            .filter(|(path, _)| !path.contains("/damaged/"))
            .filter_map(|(path, file)| {
                let at = version_at(path, file)?;
                let found = u32::from_le_bytes(file[at..at + 4].try_into().expect("four bytes"));
                assert_eq!(found, version, "{path}");
                path.rsplit(['/', '.']).next()
            })
            .collect();
        assert_eq!(kinds, BTreeSet::from(["MANIFEST", "seg", "val", "wal"]), "version {version}");
    }
    let next = format!("v{}/", CURRENT + 1);
    assert!(!testdata.keys().any(|path| path.starts_with(&next)), "{next} is not read here");
}

#[test]
fn segments_of_other_versions_are_refused() {
    let files = files_under(&golden_dir());
    let mut tried = 0;
    for (name, bytes) in segments(&files) {
        for (kind, changes) in versions() {
            let file = altered("segment.seg", bytes, &[], &changes);
            let env = env_with("", &Files::from([("segment.seg".to_owned(), file)]));
            let error = SegmentReader::open_in(&env, "segment.seg").expect_err("it is refused");
            let (found, file, offset) = judge(&error);
            assert_eq!(
                (found, &*file, offset),
                (kind, "segment.seg", bytes.len() as u64 - 96),
                "{name}, {changes:?}"
            );
            tried += 1;
        }
    }
    assert!(tried >= 40, "{tried}");
}

#[test]
fn databases_with_a_file_of_another_version_are_refused_and_left_alone() {
    let files = files_under(&golden_dir());
    let mut tried = 0;
    for (database, store) in databases(&files) {
        let needed = chain(&store, read_manifest(&store["MANIFEST"]).log_floor);
        let needed: BTreeSet<_> = needed.iter().map(|log| format!("{:020}.wal", log.id)).collect();
        for (name, bytes) in &store {
            // What is kept for change feeds is nothing that opening reads.
            let is_kept = name.ends_with(".wal") && !needed.contains(name);
            if version_at(name, bytes).is_none() || is_kept {
                continue;
            }
            for (kind, changes) in versions() {
                let mut altered_store = store.clone();
                let file = altered(name, bytes, &store["MANIFEST"], &changes);
                altered_store.insert(name.clone(), file);
                let is_log = name.ends_with(".wal");
                for recovery in
                    [Recovery::TolerateTornTail, Recovery::Strict, Recovery::PointInTime]
                {
                    if is_log && kind == "corruption" && recovery == Recovery::PointInTime {
                        // Damage, which it may pass over.
                        continue;
                    }
                    let env = env_with("db", &altered_store);
                    let builder = Db::builder("db").env(env.clone()).recovery(recovery);
                    let refused: Error = builder
                        .background(Background::Manual)
                        .open()
                        .expect_err(&format!("{name} of {database} is refused"));
                    let (found, blamed, _) = judge(&refused);
                    assert_eq!(
                        (found, &blamed),
                        (kind, name),
                        "{database}, {changes:?}, {recovery:?}: {refused}"
                    );
                    let mut after = super::make::read_dir(&env, Path::new("db"));
                    after.retain(|name, _| name != "LOCK" || altered_store.contains_key("LOCK"));
                    assert_eq!(after, altered_store, "{name} of {database} is left alone");
                    tried += 1;
                }
            }
        }
    }
    assert!(tried >= 200, "{tried}");
}
