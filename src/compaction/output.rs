//! Writing a sorted run: where segments are cut, and what is known of the data outside of a job.
//!
//! Flushes and compactions share this. Which versions are kept [`Versions`] says.

use super::merge::{Entries, LentEntry};
use super::versions::{Retention, Sink, Versions};
use crate::error::{Error, Result};
use crate::segment::{
    Reference, SegmentInfo, SegmentOptions, SegmentWriter, ValueIdentity, ValueWriter,
};
use crate::slice::Key;
use crate::sync::Arc;
use crate::types::{KeyspaceId, Kind, PAGE, REFERENCE_LEN, SegmentId, SeqNo, split_expiry};
use crate::version::{RunNo, Segment, SegmentHome, SegmentMeta, value_file_name};
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};

/// A question about a key.
pub(crate) type KeyTest<'a> = dyn Fn(&[u8]) -> bool + 'a;

/// The runs that may hold older versions than a job's inputs and are not among them.
#[derive(Default)]
pub(crate) struct OlderData<'a> {
    /// Per run its segments, and the first one that does not end before the keys asked about.
    runs: Vec<(Vec<Arc<Segment>>, usize)>,
    /// The last answer of `may_hold`, and up to where it stands.
    answer: Option<(bool, Bound<Key>)>,
    /// Whether it is certain that no segment outside the job has a key.
    is_absent: Option<&'a KeyTest<'a>>,
}

impl<'a> OlderData<'a> {
    /// From the segments of each run, in key order.
    pub(crate) fn new(runs: impl IntoIterator<Item = Vec<Arc<Segment>>>) -> Self {
        let runs = runs.into_iter().map(|segments| (segments, 0)).collect();
        OlderData { runs, answer: None, is_absent: None }
    }

    /// Where every key may have an older version.
    #[cfg(test)]
    pub(super) fn everywhere() -> Self {
        OlderData { answer: Some((true, Bound::Unbounded)), ..OlderData::default() }
    }

    /// With something that knows better than the runs' key ranges: it is asked about tombstones.
    pub(crate) fn unless(self, is_absent: &'a KeyTest<'a>) -> Self {
        OlderData { is_absent: Some(is_absent), ..self }
    }

    /// Whether an older version of `key` may be there, exactly. Keys as for `may_hold`.
    pub(super) fn may_hide(&mut self, key: &[u8]) -> bool {
        self.may_hold(key) && !self.is_absent.is_some_and(|is_absent| is_absent(key))
    }

    /// Whether an older version of `key` may be there. Keys must be asked about in rising order.
    pub(super) fn may_hold(&mut self, key: &[u8]) -> bool {
        match &self.answer {
            Some((found, Bound::Unbounded)) => *found,
            Some((found, Bound::Included(last))) if *key <= last[..] => *found,
            Some((found, Bound::Excluded(next))) if *key < next[..] => *found,
            _ => self.look(key),
        }
    }

    /// Looks into every run, and at how far that goes: to the end of a segment that the key is
    /// within, or else to the next one that begins.
    fn look(&mut self, key: &[u8]) -> bool {
        let (mut within, mut next): (Option<&Key>, Option<&Key>) = (None, None);
        for (segments, at) in &mut self.runs {
            while segments.get(*at).is_some_and(|s| s.meta.last_key[..] < *key) {
                *at += 1;
            }
            let Some(segment) = segments.get(*at) else { continue };
            let (first, last) = (&segment.meta.first_key, &segment.meta.last_key);
            if first[..] <= *key {
                within = within.max(Some(last));
            } else if next.is_none_or(|next| first < next) {
                next = Some(first);
            }
        }
        let until = match (within, next) {
            (Some(last), _) => Bound::Included(last.clone()),
            (None, Some(first)) => Bound::Excluded(first.clone()),
            (None, None) => Bound::Unbounded,
        };
        let found = within.is_some();
        self.answer = Some((found, until));
        found
    }
}

/// What the new run is to be.
#[derive(Clone, Debug)]
pub(crate) struct OutputSpec {
    pub(crate) keyspace: KeyspaceId,
    pub(crate) level: u8,
    pub(crate) segment: SegmentOptions,
    /// A segment is closed at the first key boundary past this many bytes.
    pub(crate) segment_bytes: u64,
    /// Keys, rising, at which a segment is closed before its time, so that it can later be merged
    /// with what starts there and with nothing else.
    pub(crate) cuts: Vec<Key>,
    /// A cut is passed over if the segment would be smaller than this, in bytes.
    pub(crate) min_piece_bytes: u64,
    /// The length, in bytes, above which values go into value segments, if any do.
    pub(crate) separate_above: Option<u64>,
    /// A value segment is closed once it has so many bytes.
    pub(crate) value_segment_bytes: u64,
}

impl OutputSpec {
    /// What `min_piece_bytes` is unless there is a reason: a 64th of a segment, at most a mebibyte
    /// and at least a page, less than which a file cannot take.
    pub(crate) fn smallest_piece(segment_bytes: u64) -> u64 {
        (segment_bytes / 64).clamp(PAGE as u64, 1 << 20)
    }
}

/// What came out. The number of the run is not known before the commit: it is zero here.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) segments: Vec<Arc<SegmentMeta>>,
    pub(crate) entries_in: u64,
    pub(crate) entries_out: u64,
    pub(crate) bytes_written: u64,
    /// The first failure of merge operator or filter. What it was about was kept as it is.
    pub(crate) failure: Option<Error>,
}

/// Values are moved out of a value segment of which less than this part, counted as 1 / n, is referred to.
pub(crate) const LIVE_SHARE: u64 = 2;

/// So many entries pass between two looks at whether to stop, at most.
const CHECK_EVERY: u64 = 1024;
/// And so many bytes, with what entries refer to.
const CHECK_BYTES: u64 = 4 << 20;

/// Whether a run is to stop, asked now and then: with the number of entries that passed since.
pub(crate) type StopTest<'a> = dyn Fn(u64) -> bool + 'a;

/// Writes what must be kept of all that `entries` has into new segments, each synced, and their
/// directory entries too. On an error, or when `stop` says so (`Error::Closed`), the files written
/// so far are removed. Costs one pass over them.
pub(crate) fn write_run<E: Entries + ?Sized>(
    home: &SegmentHome,
    entries: &mut E,
    retention: &Retention,
    older: OlderData<'_>,
    spec: &OutputSpec,
    next_id: &dyn Fn() -> SegmentId,
    stop: &StopTest<'_>,
) -> Result<Output> {
    let mut writer = RunWriter {
        home,
        spec,
        next_id,
        cuts: &spec.cuts,
        open: None,
        values: None,
        finished: Vec::new(),
        emptied: HashMap::new(),
        at_new_key: true,
        output: Output::default(),
    };
    let versions = Versions::new(retention, older).reading(home);
    let outcome = fill(entries, versions, &mut writer, stop);
    match outcome {
        Ok(()) => Ok(writer.output),
        Err(error) => {
            writer.discard();
            Err(error)
        }
    }
}

fn fill<E: Entries + ?Sized>(
    entries: &mut E,
    mut versions: Versions<'_, '_>,
    writer: &mut RunWriter<'_>,
    stop: &StopTest<'_>,
) -> Result<()> {
    let mut key = Vec::new();
    let mut started = false;
    let (mut passed, mut bytes) = (0, 0);
    entries.first()?;
    while let Some(entry) = entries.entry() {
        writer.output.entries_in += 1;
        (passed, bytes) = (passed + 1, bytes + weight(&entry));
        if passed >= CHECK_EVERY || bytes >= CHECK_BYTES {
            if stop(passed) {
                return Err(Error::Closed);
            }
            (passed, bytes) = (0, 0);
        }
        let order = if started { entry.key.cmp(&key) } else { Ordering::Greater };
        if order == Ordering::Less {
            // An input is not sorted. Going on could part a tombstone from what it hides.
            return Err(Error::OutOfOrder { entry: writer.output.entries_in });
        }
        if order == Ordering::Greater {
            versions.end(&key, writer)?;
            key.clear();
            key.extend_from_slice(entry.key);
            writer.at_new_key = true;
            started = true;
        }
        versions.add(&key, &entry, writer)?;
        entries.next()?;
    }
    versions.end(&key, writer)?;
    writer.close()?;
    if !writer.output.segments.is_empty() {
        let dir = &writer.home.dir;
        writer.home.env.vfs.sync_dir(dir).map_err(|e| Error::io("sync", dir, e))?;
    }
    Ok(())
}

/// How many bytes an entry may cost to copy.
#[inline]
fn weight(entry: &LentEntry<'_>) -> u64 {
    let value = entry.value.len() as u64;
    if entry.kind.is_away() { value + referred(entry) } else { value }
}

#[cold]
fn referred(entry: &LentEntry<'_>) -> u64 {
    let reference = Reference::decode(split_expiry(entry.kind, entry.value).1);
    reference.map_or(0, |reference| reference.raw.into())
}

struct RunWriter<'a> {
    home: &'a SegmentHome,
    spec: &'a OutputSpec,
    next_id: &'a dyn Fn() -> SegmentId,
    /// The cuts that are still ahead.
    cuts: &'a [Key],
    open: Option<(SegmentId, PathBuf, SegmentWriter)>,
    /// The value segment that values go to.
    values: Option<ValueWriter>,
    /// Those that were filled since the open segment was begun.
    finished: Vec<(SegmentId, ValueIdentity)>,
    /// Of value segments that entries refer to, whether what they refer to is written anew.
    emptied: HashMap<SegmentId, bool>,
    /// No version of the key that is being decided about was written yet.
    at_new_key: bool,
    output: Output,
}

impl Sink for RunWriter<'_> {
    fn write(&mut self, key: &[u8], seqno: SeqNo, kind: Kind, value: &[u8]) -> Result<()> {
        // All versions of a key stay together, whatever the size.
        let leaves = self.leaves(kind, value);
        if std::mem::take(&mut self.at_new_key) {
            let len = if leaves { kind.away().least_value() } else { value.len() };
            let at_cut = self.pass_cuts(key);
            let full = |w: &SegmentWriter| {
                let bytes = w.estimated_bytes();
                w.is_full()
                    || bytes + len as u64 > self.spec.segment_bytes
                    || at_cut && bytes >= self.spec.min_piece_bytes
            };
            if self.open.as_ref().is_some_and(|(_, _, w)| w.entries() > 0 && full(w)) {
                self.close()?;
            }
        }
        if self.open.is_none() {
            let id = (self.next_id)();
            let path = self.home.path(id);
            let options = self.spec.segment.clone();
            let writer = SegmentWriter::create_in(&self.home.env, &path, options)?;
            self.open = Some((id, path, writer));
        }
        if leaves || kind.is_away() {
            return self.write_away(key, seqno, kind, value);
        }
        self.write_here(key, seqno, kind, value)
    }

    fn failed(&mut self, error: Error) {
        self.output.failure.get_or_insert(error);
    }
}

impl RunWriter<'_> {
    #[inline]
    fn write_here(&mut self, key: &[u8], seqno: SeqNo, kind: Kind, value: &[u8]) -> Result<()> {
        if let Some((_, _, writer)) = &mut self.open {
            writer.add(key, seqno, kind, value)?;
            self.output.entries_out += 1;
        }
        Ok(())
    }

    /// Whether the value of an entry is to go into a value segment.
    #[inline]
    fn leaves(&self, kind: Kind, value: &[u8]) -> bool {
        self.spec.separate_above.is_some_and(|above| {
            matches!(kind, Kind::Put | Kind::PutUntil)
                && split_expiry(kind, value).1.len() as u64 > above
        })
    }

    /// Writes an entry whose value goes, or lies, in a value segment. If little of that is still referred to, the
    /// value goes to another, or back to the entry.
    #[cold]
    fn write_away(&mut self, key: &[u8], seqno: SeqNo, kind: Kind, value: &[u8]) -> Result<()> {
        let (_, proper) = split_expiry(kind, value);
        let (expiry, _) = value.split_at(value.len() - proper.len());
        if !kind.is_away() {
            let reference = self.put_away(proper)?;
            return self.write_here(key, seqno, kind.away(), &[expiry, &reference[..]].concat());
        }
        let Some(fetched) = self.fetch_to_move(proper)? else {
            return self.write_here(key, seqno, kind, value);
        };
        let (kind, whole) = (kind.here(), [expiry, &fetched[..]].concat());
        if self.leaves(kind, &whole) {
            let reference = self.put_away(&fetched)?;
            return self.write_here(key, seqno, kind.away(), &[expiry, &reference[..]].concat());
        }
        self.write_here(key, seqno, kind, &whole)
    }

    /// The value that a reference leads to, if it is to move.
    fn fetch_to_move(&mut self, reference: &[u8]) -> Result<Option<Bytes>> {
        let home = self.home;
        let Ok(Reference { file, .. }) = Reference::decode(reference) else { return Ok(None) };
        let is_low = || home.values.get(file).is_some_and(|file| file.is_below(LIVE_SHARE));
        if !*self.emptied.entry(file).or_insert_with(is_low) {
            return Ok(None);
        }
        match home.values.fetch(&home.dir, reference) {
            Ok(value) => Ok(Some(value)),
            Err(error @ (Error::Io { .. } | Error::DiskFull { .. })) => Err(error),
            Err(error) => {
                // The key stays as unreadable as it is, and the others can still move.
                if let Some(file) = home.values.get(file) {
                    file.note_damage();
                }
                self.failed(error);
                Ok(None)
            }
        }
    }

    /// Appends a value to the value segment; the bytes of the reference to it.
    fn put_away(&mut self, value: &[u8]) -> Result<[u8; REFERENCE_LEN]> {
        if self.values.is_none() {
            let id = (self.next_id)();
            let path = self.home.dir.join(value_file_name(id));
            let (keyspace, compression) = (self.spec.keyspace, self.spec.segment.compression);
            let writer = ValueWriter::create(&self.home.env, path, id, keyspace, compression)?;
            self.values = Some(writer);
        }
        let Some(writer) = &mut self.values else { return Ok([0; REFERENCE_LEN]) };
        let reference = writer.add(value)?;
        if writer.bytes() >= self.spec.value_segment_bytes {
            self.finish_values()?;
        }
        Ok(reference.encode())
    }

    fn finish_values(&mut self) -> Result<()> {
        let Some(writer) = self.values.take() else { return Ok(()) };
        let (id, path) = (writer.id(), writer.path().to_path_buf());
        match writer.finish() {
            Ok(identity) => {
                self.output.bytes_written += identity.file_len;
                self.finished.push((id, identity));
                Ok(())
            }
            Err(error) => {
                remove_file(self.home, &path);
                Err(error)
            }
        }
    }

    /// Whether a cut lies behind the key before and not behind this one.
    fn pass_cuts(&mut self, key: &[u8]) -> bool {
        let mut passed = false;
        while let Some((cut, ahead)) = self.cuts.split_first()
            && cut[..] <= *key
        {
            (self.cuts, passed) = (ahead, true);
        }
        passed
    }

    fn close(&mut self) -> Result<()> {
        if self.open.is_none() {
            return Ok(());
        }
        // The segment says what its value segments are, so they come first.
        self.finish_values()?;
        let Some((id, path, mut writer)) = self.open.take() else { return Ok(()) };
        writer.identify_values(|id| {
            let own = self.finished.iter().find(|(own, _)| *own == id);
            let known = || self.home.values.get(id).map(|file| file.identity());
            own.map(|(_, identity)| *identity).or_else(known)
        });
        let info = match writer.finish_file() {
            Ok(info) => info,
            Err(error) => {
                remove_file(self.home, &path);
                return Err(error);
            }
        };
        self.output.bytes_written += info.file_len;
        let own = std::mem::take(&mut self.finished).into_iter().map(|(id, _)| id).collect();
        self.home.values.note_written(id, own);
        let meta = meta_of(id, self.spec.keyspace, self.spec.level, &info);
        self.output.segments.push(Arc::new(meta));
        Ok(())
    }

    fn discard(&mut self) {
        if let Some((_, path, writer)) = self.open.take() {
            drop(writer);
            remove_file(self.home, &path);
        }
        if let Some(writer) = self.values.take() {
            remove_file(self.home, writer.path());
        }
        for (id, _) in std::mem::take(&mut self.finished) {
            remove_file(self.home, &self.home.dir.join(value_file_name(id)));
        }
        remove_segments(self.home, &std::mem::take(&mut self.output.segments));
    }
}

/// What the manifest will say of a segment that was written, but for its run.
pub(crate) fn meta_of(
    id: SegmentId,
    keyspace: KeyspaceId,
    level: u8,
    info: &SegmentInfo,
) -> SegmentMeta {
    let p = &info.properties;
    SegmentMeta {
        id,
        keyspace,
        level,
        run: RunNo(0),
        file_len: info.file_len,
        checksum: info.footer_checksum,
        entries: p.entries,
        tombstones: p.tombstones,
        smallest: p.smallest_seqno,
        largest: p.largest_seqno,
        first_key: Key(p.first_key.clone().into()),
        last_key: Key(info.last_key.clone().into()),
    }
}

/// Removes segments that were written and that no manifest names, with the value segments that were
/// written for them.
pub(crate) fn remove_segments<'a>(
    home: &SegmentHome,
    segments: impl IntoIterator<Item = &'a Arc<SegmentMeta>>,
) {
    for meta in segments {
        home.files.forget(meta.id);
        remove_file(home, &home.path(meta.id));
        for id in home.values.settle(meta.id) {
            home.files.forget(id);
            remove_file(home, &home.dir.join(value_file_name(id)));
        }
    }
}

fn remove_file(home: &SegmentHome, path: &Path) {
    if let Err(error) = home.env.vfs.remove_file(path) {
        // Nothing names the file; the next open removes it.
        tracing::warn!(path = %path.display(), %error, "cannot remove a segment");
    }
}
