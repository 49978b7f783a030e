//! The live segments: what the manifest names, opened and arranged for reading.
//!
//! A [`Version`] is immutable; each edit makes a new one that shares the segments. A segment's file
//! is removed when the last version, iterator or job that holds it lets go, never before.

use super::values::{ValueFile, ValueFiles, count};
use super::{ManifestState, RunNo, SegmentMeta};
use crate::cache::{FilePool, PooledFile, SharedCache};
use crate::deletes::RangeDeletes;
use crate::error::{Error, Result};
use crate::hash::keyspace_seed;
use crate::keymap::{MapSegment, Slices};
use crate::segment::{BlockCache, Found, HashSlices, PointIndex, SegmentReader, ValueUse};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, OnceLock};
use crate::types::{KeyspaceId, PAGE, SegmentId, SeqNo};
use crate::vfs::Env;
use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, Range};
use std::path::{Path, PathBuf};

/// How many levels there can be. The last one is the bottom.
pub(crate) const LEVELS: usize = 7;

/// The name of a segment file.
pub(crate) fn segment_file_name(id: SegmentId) -> String {
    format!("{:020}.seg", id.0)
}

/// The id in a segment file's name.
pub(crate) fn parse_segment_file_name(name: &str) -> Option<SegmentId> {
    let digits = name.strip_suffix(".seg").filter(|d| d.len() == 20)?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok().map(SegmentId))?
}

/// What segments of one database share.
#[derive(Clone)]
pub(crate) struct SegmentHome {
    pub(crate) env: Env,
    pub(crate) dir: PathBuf,
    pub(crate) cache: Arc<SharedCache>,
    pub(crate) files: Arc<FilePool>,
    /// How point reads without the key map find a block.
    pub(crate) points: PointIndex,
    pub(crate) values: Arc<ValueFiles>,
}

impl SegmentHome {
    /// Where a segment's file is.
    pub(crate) fn path(&self, id: SegmentId) -> PathBuf {
        self.dir.join(segment_file_name(id))
    }
}

/// One live segment: a file, and where the manifest puts it.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) meta: Arc<SegmentMeta>,
    file: Arc<SegmentFile>,
}

/// A segment's file. Several [`Segment`]s share it when the segment moved to another level.
struct SegmentFile {
    id: SegmentId,
    reader: SegmentReader,
    home: SegmentHome,
    /// Set once the manifest no longer names it: then the file goes with this object.
    obsolete: AtomicBool,
    /// About how many of its entries newer segments supersede.
    garbage: AtomicU64,
    /// About how many seeks of range reads had to look into it.
    seeks: AtomicU64,
    /// Its hash run is missing or damaged, and writing the segment anew would mend that.
    hash_run_lost: AtomicBool,
    /// The value segments that its entries refer to.
    values: Vec<(ValueUse, Arc<ValueFile>)>,
    /// The same file, opened with the number that its entries have now: it is not to go while this is read.
    numbered: OnceLock<Arc<SegmentFile>>,
}

impl std::fmt::Debug for Segment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Segment").field(&self.meta).finish()
    }
}

impl Segment {
    /// Opens the segment that `meta` describes and checks that the file is that one: its length
    /// and its footer's checksum; likewise the value segments that it lists. Reads footer, section table and
    /// properties, and of each value segment that no other segment object lists the footer.
    /// `is_new` says that it was written by this handle of the database.
    pub(crate) fn open(
        home: &SegmentHome,
        meta: Arc<SegmentMeta>,
        is_new: bool,
    ) -> Result<Arc<Segment>> {
        let path = home.path(meta.id);
        let source = Arc::new(PooledFile::new(Arc::clone(&home.files), meta.id, path.clone()));
        let cache = Arc::clone(&home.cache) as Arc<dyn BlockCache>;
        let reader = match SegmentReader::open_with(
            source,
            path.clone(),
            Some((cache, meta.id.0)),
            home.points,
        ) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::corruption(
                    &path,
                    0,
                    "the manifest needs it, and it is missing",
                ));
            }
            opened => opened?.numbered(meta.smallest),
        };
        if reader.file_len() != meta.file_len || reader.footer_checksum() != meta.checksum {
            return Err(Error::corruption(
                &path,
                0,
                "it is not the segment that the manifest names (swapped or overwritten)",
            ));
        }
        let values = home.open_values(&reader.properties().value_segments)?;
        let lacks_hash_run = home.points == PointIndex::HashRun && !reader.has_hash_run();
        let file = SegmentFile {
            id: meta.id,
            reader,
            home: home.clone(),
            obsolete: AtomicBool::new(false),
            garbage: AtomicU64::new(0),
            seeks: AtomicU64::new(0),
            // One that was written without a hash run will not get one by being written again.
            hash_run_lost: AtomicBool::new(!is_new && lacks_hash_run),
            values,
            numbered: OnceLock::new(),
        };
        Ok(Arc::new(Segment { meta, file: Arc::new(file) }))
    }

    /// The same file under changed metadata (moved to another level).
    pub(crate) fn with_meta(&self, meta: Arc<SegmentMeta>) -> Arc<Segment> {
        debug_assert_eq!(self.meta.id, meta.id);
        Arc::new(Segment { meta, file: Arc::clone(&self.file) })
    }

    /// Says that `by` is the same file, opened again under another number: readers of this one keep it.
    pub(crate) fn superseded(&self, by: &Segment) {
        debug_assert_eq!(self.meta.id, by.meta.id);
        self.file.numbered.get_or_init(|| Arc::clone(&by.file));
    }

    /// The same file under any metadata, so that tests can lay out many segments.
    #[cfg(test)]
    pub(crate) fn renamed(&self, meta: Arc<SegmentMeta>) -> Arc<Segment> {
        Arc::new(Segment { meta, file: Arc::clone(&self.file) })
    }

    /// The reader of the file.
    pub(crate) fn reader(&self) -> &SegmentReader {
        &self.file.reader
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> PathBuf {
        self.file.home.path(self.meta.id)
    }

    /// Says that the manifest names the file. Once for each, before anything of the edit is marked obsolete.
    pub(crate) fn mark_live(&self) {
        count(&self.file.values, true);
    }

    /// Says that the manifest no longer names the file. Once for each that was marked live.
    pub(crate) fn mark_obsolete(&self) {
        self.file.obsolete.store(true, Ordering::Release);
        count(&self.file.values, false);
    }

    /// The value segments that its entries refer to, and what of them.
    pub(crate) fn values(&self) -> &[(ValueUse, Arc<ValueFile>)] {
        &self.file.values
    }

    /// The length of its file and what it refers to in value segments, in bytes.
    pub(crate) fn bytes_with_values(&self) -> u64 {
        self.meta.file_len + self.values().iter().map(|(used, _)| used.bytes).sum::<u64>()
    }

    /// Says that newer segments supersede so many more of its entries: an estimate, which steers
    /// compaction and nothing else. It stays with the file when the segment moves.
    pub(crate) fn add_garbage(&self, entries: u64) {
        self.file.garbage.fetch_add(entries, Ordering::Relaxed);
    }

    /// The share of the file that superseded entries take, in bytes, as far as is known.
    pub(crate) fn garbage_bytes(&self) -> u64 {
        let entries = self.meta.entries.max(1);
        let superseded = self.file.garbage.load(Ordering::Relaxed).min(entries);
        (self.meta.file_len as f64 * (superseded as f64 / entries as f64)) as u64
    }

    /// Notes that a seek of a range read had to look into it. A hint, which steers compaction: of what
    /// two threads note at once, one may be lost.
    #[inline]
    pub(crate) fn note_seek(&self) {
        let seeks = &self.file.seeks;
        seeks.store(seeks.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// How many seeks were noted. They stay with the file when the segment moves.
    pub(crate) fn seeks(&self) -> u64 {
        self.file.seeks.load(Ordering::Relaxed)
    }

    /// Whether its hash run is missing or damaged, so that writing the segment anew makes it whole.
    pub(crate) fn needs_rewrite(&self) -> bool {
        self.file.hash_run_lost.load(Ordering::Relaxed)
    }

    /// The range tombstones, by number, that may hide something in it: some of them several times.
    pub(crate) fn hidden_by<'a>(
        &'a self,
        deletes: &'a RangeDeletes,
    ) -> impl Iterator<Item = SeqNo> {
        let applied = self.reader().properties().deletes_applied;
        let within = deletes.within(&self.meta.first_key, &self.meta.last_key);
        within.filter(move |seqno| self.meta.smallest <= *seqno && applied < *seqno)
    }

    /// Whether all that it holds has expired by a time, but for tombstones.
    pub(crate) fn has_expired(&self, by_ms: u64) -> bool {
        self.reader().properties().have_expired(by_ms)
    }

    /// Whether something in it has expired by a time.
    pub(crate) fn holds_expired(&self, by_ms: u64) -> bool {
        let p = self.reader().properties();
        p.expiring > 0 && p.first_expiry_ms <= by_ms
    }

    /// Whether about half of it or more has expired by a time, if what expires does so evenly.
    pub(crate) fn is_half_expired(&self, by_ms: u64) -> bool {
        let p = self.reader().properties();
        let passed = by_ms.min(p.last_expiry_ms).saturating_sub(p.first_expiry_ms) as f64;
        let all = (p.last_expiry_ms - p.first_expiry_ms.min(p.last_expiry_ms)) as f64;
        let share = if all == 0.0 { 1.0 } else { passed / all };
        self.holds_expired(by_ms) && share * p.expiring as f64 * 2.0 >= p.entries as f64
    }

    /// Whether it has several versions of some key.
    pub(crate) fn holds_versions(&self) -> bool {
        self.meta.entries > self.reader().properties().distinct_keys
    }

    /// Whether it has merge operands.
    pub(crate) fn has_operands(&self) -> bool {
        self.reader().properties().merge_operands > 0
    }

    /// Its age, for comparing with others of its keyspace: lower is newer.
    pub(crate) fn rank(&self) -> u64 {
        u64::from(self.meta.level) << 56 | (u64::MAX >> 8).saturating_sub(self.meta.run.0)
    }

    fn covers(&self, key: &[u8]) -> bool {
        self.meta.first_key[..] <= *key && *key <= self.meta.last_key[..]
    }

    /// Whether any key between the two (both inclusive) may be in it.
    pub(crate) fn overlaps(&self, first: &[u8], last: &[u8]) -> bool {
        self.meta.first_key[..] <= *last && *first <= self.meta.last_key[..]
    }
}

impl MapSegment for Segment {
    fn id(&self) -> SegmentId {
        self.meta.id
    }

    fn keyspace(&self) -> KeyspaceId {
        self.meta.keyspace
    }

    fn covers(&self, key: &[u8]) -> bool {
        Segment::covers(self, key)
    }

    fn pages(&self) -> u32 {
        u32::try_from(self.reader().data_bytes() / PAGE as u64).unwrap_or(u32::MAX)
    }

    fn keys(&self) -> u64 {
        self.reader().properties().distinct_keys
    }

    fn slices(&self) -> Result<Box<dyn Slices>> {
        let slices = self.reader().hash_slices();
        let slices = slices.inspect_err(|error| self.file.note_hash_run(error))?;
        Ok(Box::new(CheckedSlices { file: Arc::clone(&self.file), slices }))
    }

    fn add_garbage(&self, entries: u64) {
        Segment::add_garbage(self, entries);
    }
}

/// The slices of a hash run; damage is noted.
struct CheckedSlices {
    file: Arc<SegmentFile>,
    slices: HashSlices,
}

impl Slices for CheckedSlices {
    fn slice(&mut self, slice: u8) -> Result<&[(u64, u16)]> {
        let read = self.slices.slice(slice);
        read.inspect_err(|error| self.file.note_hash_run(error))
    }
}

impl SegmentFile {
    fn note_hash_run(&self, error: &Error) {
        // One that is absent was looked at when the segment was opened.
        if matches!(error, Error::Corruption { .. }) && self.reader.has_hash_run() {
            self.hash_run_lost.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for SegmentFile {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Acquire) {
            self.home.files.forget(self.id);
            let path = self.home.path(self.id);
            if let Err(error) = self.home.env.vfs.remove_file(&path) {
                // The file is a leftover now; the next open removes it.
                tracing::warn!(path = %path.display(), %error, "cannot remove an old segment");
            }
        }
    }
}

/// Segments whose key ranges do not overlap, in key order.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) segments: Vec<Arc<Segment>>,
}

impl Run {
    /// The only segment that may hold the key.
    pub(crate) fn segment_for(&self, key: &[u8]) -> Option<&Arc<Segment>> {
        let at = self.segments.partition_point(|s| s.meta.last_key[..] < *key);
        self.segments.get(at).filter(|s| s.covers(key))
    }

    /// Its number.
    pub(crate) fn number(&self) -> RunNo {
        self.segments.first().map_or(RunNo(0), |s| s.meta.run)
    }

    /// The segments that share keys with a range, as a part of the run.
    pub(crate) fn within(&self, lower: Option<&[u8]>, upper: Bound<&[u8]>) -> &[Arc<Segment>] {
        self.segments.get(self.span(lower, upper)).unwrap_or(&[])
    }

    /// Where in the run those stand.
    pub(crate) fn span(&self, lower: Option<&[u8]>, upper: Bound<&[u8]>) -> Range<usize> {
        let from =
            lower.map_or(0, |key| self.segments.partition_point(|s| s.meta.last_key[..] < *key));
        let to = self.segments.partition_point(|s| match upper {
            Bound::Included(key) => s.meta.first_key[..] <= *key,
            Bound::Excluded(key) => s.meta.first_key[..] < *key,
            Bound::Unbounded => true,
        });
        from..to.max(from)
    }

    /// The length of its files together.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.meta.file_len).sum()
    }
}

/// One keyspace's segments: per level the runs, newest first.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) id: KeyspaceId,
    pub(crate) hash_seed: u64,
    /// The sequence numbers at which the keyspace was cleared, rising.
    pub(crate) clears: Vec<SeqNo>,
    /// Those that the manifest has: not those that are still in memtables.
    pub(crate) deletes: Arc<RangeDeletes>,
    pub(crate) levels: Vec<Vec<Run>>,
}

impl Tree {
    /// The last clear at or before a snapshot: versions up to it are gone for that snapshot.
    pub(crate) fn floor(&self, snapshot: SeqNo) -> Option<SeqNo> {
        self.clears.iter().rev().copied().find(|clear| *clear <= snapshot)
    }

    /// All runs, newest first.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.levels.iter().flatten()
    }

    /// All segments, newest run first.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.runs().flat_map(|run| &run.segments)
    }

    /// The newest version of a key at or before `snapshot` in any segment.
    pub(crate) fn get(&self, key: &[u8], hash: u64, snapshot: SeqNo) -> Result<Option<Found>> {
        for run in self.runs() {
            if let Some(segment) = run.segment_for(key)
                && let Some(found) = segment.reader().get_at(key, hash, snapshot)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// All live segments at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Version {
    pub(crate) trees: BTreeMap<KeyspaceId, Arc<Tree>>,
    /// The edit of the manifest that made it: no two of a database have the same.
    pub(crate) edit: u64,
    /// Whether anything in it expires.
    pub(crate) has_expiring: bool,
    /// Every operation up to here is in it, or was dropped.
    pub(crate) flushed: SeqNo,
}

/// The live segments by id, as the committer keeps them.
pub(crate) type LiveSegments = HashMap<SegmentId, Arc<Segment>>;

impl Version {
    /// Arranges the segments that `state` names; `live` has each of them.
    pub(crate) fn build(state: &ManifestState, live: &LiveSegments) -> Version {
        let mut trees = BTreeMap::new();
        for (id, keyspace) in &state.keyspaces {
            trees.insert(
                *id,
                Tree {
                    id: *id,
                    hash_seed: keyspace_seed(state.hash_seed, *id),
                    clears: keyspace.clears.clone(),
                    deletes: Arc::clone(&keyspace.deletes),
                    levels: vec![Vec::new(); LEVELS],
                },
            );
        }
        let mut runs: BTreeMap<(KeyspaceId, usize, std::cmp::Reverse<RunNo>), Run> =
            BTreeMap::new();
        for meta in state.segments.values() {
            let segment = Arc::clone(&live[&meta.id]);
            // The state takes no other levels; so this changes nothing, but cannot be out of bounds.
            let level = usize::from(meta.level).min(LEVELS - 1);
            runs.entry((meta.keyspace, level, std::cmp::Reverse(meta.run)))
                .or_insert_with(|| Run { segments: Vec::new() })
                .segments
                .push(segment);
        }
        for ((keyspace, level, _), mut run) in runs {
            run.segments.sort_by(|a, b| a.meta.first_key.cmp(&b.meta.first_key));
            if let Some(tree) = trees.get_mut(&keyspace) {
                tree.levels[level].push(run);
            }
        }
        let trees: BTreeMap<_, _> =
            trees.into_iter().map(|(id, tree)| (id, Arc::new(tree))).collect();
        let expires = |segment: &Arc<Segment>| segment.reader().properties().expiring > 0;
        let has_expiring = trees.values().any(|tree| tree.segments().any(expires));
        Version { trees, edit: state.edit_number, has_expiring, flushed: state.flushed }
    }
}

/// Removes files that a manifest does not name: segments of an interrupted job, logs that are no
/// longer needed, a manifest that was never finished. Only for names that are this format's own.
pub(crate) fn remove_leftovers(
    env: &Env,
    dir: &Path,
    is_leftover: impl Fn(&str) -> bool,
) -> Result<usize> {
    let mut removed = 0;
    for name in env.vfs.read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        if is_leftover(&name) {
            let path = dir.join(&name);
            env.vfs.remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            tracing::info!(path = %path.display(), "removed a leftover file");
            removed += 1;
        }
    }
    Ok(removed)
}
