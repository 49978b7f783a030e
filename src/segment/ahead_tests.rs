//! Reading ahead over files of which parts cannot be read or are damaged.

use super::tests::{PATH, Random, TestCache, Version, codecs, open as open_sound, options, write};
use super::{BlockInfo, CursorOptions, FileSource, PointIndex, SegmentReader};
use crate::cursor::{Cursor, Seek};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::types::Kind;
use crate::vfs::{Env, OpenMode, VfsFile};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A file with a part that cannot be read. Counts the reads.
#[derive(Debug)]
struct BadDisk {
    file: Arc<dyn VfsFile>,
    bad: Range<u64>,
    reads: Arc<AtomicUsize>,
}

impl VfsFile for BadDisk {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if offset < self.bad.end && self.bad.start < offset + buf.len() as u64 {
            return Err(io::Error::other("a bad place"));
        }
        self.file.read_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

struct Source(Arc<dyn VfsFile>);

impl FileSource for Source {
    fn file(&self) -> Result<Arc<dyn VfsFile>> {
        Ok(Arc::clone(&self.0))
    }
}

fn open(env: &Env, bad: Range<u64>, cached: bool) -> (SegmentReader, Arc<AtomicUsize>) {
    let reads = Arc::new(AtomicUsize::new(0));
    let file = env.vfs.open(Path::new(PATH), OpenMode::Read).unwrap();
    let source = Arc::new(Source(Arc::new(BadDisk { file, bad, reads: Arc::clone(&reads) })));
    let cache = cached.then(|| (Arc::new(TestCache::default()) as _, 1));
    let reader = SegmentReader::open_with(source, PATH.into(), cache, PointIndex::Filter).unwrap();
    (reader, reads)
}

/// Small entries, and every so often one of many pages; some longer than a window.
fn versions() -> Vec<Version> {
    let mut random = Random(3);
    (0..1500u32)
        .map(|n| {
            let len = match n {
                200 | 900 => 300_000,
                _ if n % 150 == 149 => 20_000 + random.below(60_000),
                _ => random.below(400),
            };
            (n.to_be_bytes().to_vec(), 0, Kind::Put, random.bytes(len))
        })
        .collect()
}

const CHOICES: [(bool, CursorOptions); 4] = [
    (false, CursorOptions { fill_cache: false, readahead: true }),
    (false, CursorOptions { fill_cache: false, readahead: false }),
    (true, CursorOptions { fill_cache: false, readahead: false }),
    (true, CursorOptions { fill_cache: true, readahead: false }),
];

/// Walks from one end as far as that goes, keeping views of what it sees.
fn walk(
    reader: &SegmentReader,
    options: CursorOptions,
    forward: bool,
) -> (Vec<Version>, Result<()>) {
    let mut cursor = reader.cursor(options);
    let mut views = Vec::new();
    let mut outcome = cursor.seek(if forward { Seek::First } else { Seek::Last });
    while outcome.is_ok() && cursor.valid() {
        views.push((cursor.key_bytes(), cursor.value()));
        outcome = if forward { cursor.next() } else { cursor.prev() };
    }
    assert!(!cursor.valid());
    let owned =
        |(key, value): (bytes::Bytes, bytes::Bytes)| (key.to_vec(), 0, Kind::Put, value.to_vec());
    let mut seen: Vec<Version> = views.into_iter().map(owned).collect();
    if !forward {
        seen.reverse();
    }
    (seen, outcome)
}

fn blocks(env: &Env) -> Vec<BlockInfo> {
    open_sound(env).blocks().collect::<Result<_>>().unwrap()
}

#[test]
fn windows_hold_what_is_asked_for_in_both_directions() {
    let versions = versions();
    for compression in codecs() {
        let (env, _) = write(options(compression), &versions);
        let blocks = blocks(&env);
        for (cached, choice) in CHOICES {
            for forward in [true, false] {
                let (reader, reads) = open(&env, 0..0, cached);
                let (seen, outcome) = walk(&reader, choice, forward);
                assert!(outcome.is_ok() && seen == versions, "{choice:?} {forward}");
                let reads = reads.load(Ordering::Relaxed);
                assert!(reads < blocks.len() * 2 / 3, "{reads} of {}", blocks.len());
            }
        }
    }
}

#[test]
fn a_bad_place_on_the_disk_costs_only_the_blocks_on_it() {
    let versions = versions();
    for compression in codecs() {
        let (env, _) = write(options(compression), &versions);
        let blocks = blocks(&env);
        for bad in [0, 1, 4, blocks.len() / 2, blocks.len() - 6, blocks.len() - 1] {
            let entries = |blocks: &[BlockInfo]| blocks.iter().map(|b| b.entries as usize).sum();
            let before: usize = entries(&blocks[..bad]);
            let behind = before + blocks[bad].entries as usize;
            let at = blocks[bad].offset + 7..blocks[bad].offset + 8;
            for (cached, choice) in CHOICES {
                let (reader, _) = open(&env, at.clone(), cached);
                let (seen, outcome) = walk(&reader, choice, true);
                assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Io);
                assert!(seen == versions[..before], "forward to {bad}: {} {before}", seen.len());
                let (seen, outcome) = walk(&reader, choice, false);
                assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Io);
                assert!(seen == versions[behind..], "back to {bad}: {} {behind}", seen.len());
                // Behind the bad place it goes on.
                let mut cursor = reader.cursor(choice);
                assert!(cursor.seek(Seek::AtOrAfter(&blocks[bad].first_key)).is_err());
                assert!(!cursor.valid());
                for version in &versions[behind..] {
                    if *version == versions[behind] {
                        cursor.seek(Seek::AtOrAfter(&version.0)).unwrap();
                    }
                    assert!(cursor.key() == version.0 && cursor.value_ref() == version.3);
                    cursor.next().unwrap();
                }
                assert!(!cursor.valid());
            }
        }
    }
}

#[test]
fn a_scan_for_a_merge_reads_all_and_stops_with_an_error_where_it_cannot() {
    let versions = versions();
    for compression in codecs() {
        let (env, _) = write(options(compression), &versions);
        let blocks = blocks(&env);
        for bad in [None, Some(0), Some(blocks.len() / 2), Some(blocks.len() - 1)] {
            let at = bad.map_or(0..0, |bad| blocks[bad].offset + 7..blocks[bad].offset + 8);
            let (reader, _) = open(&env, at, false);
            let mut seen = 0;
            let outcome: Result<()> = (|| {
                let mut scan = reader.scan()?;
                while let Some((key, value, entry)) = scan.entry() {
                    let version = &versions[seen];
                    assert!((key, entry.seqno.0, value) == (&version.0[..], 0, &version.3[..]));
                    seen += 1;
                    scan.next().inspect_err(|_| assert!(!scan.valid()))?;
                }
                Ok(())
            })();
            match bad {
                None => assert!(outcome.is_ok() && seen == versions.len()),
                Some(_) => {
                    assert!(matches!(outcome, Err(Error::Io { .. })) && seen < versions.len())
                }
            }
        }
    }
}
