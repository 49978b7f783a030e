//! Writing a sorted run: where segments are cut, and what is known of the data outside of a job.
//!
//! Flushes and compactions share this. Which versions are kept [`Versions`] says.

use super::merge::Entries;
use super::versions::{Retention, Sink, Versions};
use crate::error::{Error, Result};
use crate::segment::{SegmentOptions, SegmentWriter};
use crate::slice::Key;
use crate::sync::Arc;
use crate::types::{KeyspaceId, Kind, PAGE, SegmentId, SeqNo};
use crate::version::{RunNo, Segment, SegmentHome, SegmentMeta};
use std::cmp::Ordering;
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

/// How many entries pass between two looks at whether to stop: so it is also how far a run is.
pub(crate) const CHECK_EVERY: u64 = 1024;

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
    stop: &dyn Fn() -> bool,
) -> Result<Output> {
    let mut writer = RunWriter {
        home,
        spec,
        next_id,
        cuts: &spec.cuts,
        open: None,
        at_new_key: true,
        output: Output::default(),
    };
    let outcome = fill(entries, Versions::new(retention, older), &mut writer, stop);
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
    stop: &dyn Fn() -> bool,
) -> Result<()> {
    let mut key = Vec::new();
    let mut started = false;
    entries.first()?;
    while let Some(entry) = entries.entry() {
        writer.output.entries_in += 1;
        if writer.output.entries_in.is_multiple_of(CHECK_EVERY) && stop() {
            return Err(Error::Closed);
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

struct RunWriter<'a> {
    home: &'a SegmentHome,
    spec: &'a OutputSpec,
    next_id: &'a dyn Fn() -> SegmentId,
    /// The cuts that are still ahead.
    cuts: &'a [Key],
    open: Option<(SegmentId, PathBuf, SegmentWriter)>,
    /// No version of the key that is being decided about was written yet.
    at_new_key: bool,
    output: Output,
}

impl Sink for RunWriter<'_> {
    fn write(&mut self, key: &[u8], seqno: SeqNo, kind: Kind, value: &[u8]) -> Result<()> {
        // All versions of a key stay together, whatever the size.
        if std::mem::take(&mut self.at_new_key) {
            let at_cut = self.pass_cuts(key);
            let full = |w: &SegmentWriter| {
                let bytes = w.estimated_bytes();
                w.is_full()
                    || bytes + value.len() as u64 > self.spec.segment_bytes
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
        if let Some((_, _, writer)) = &mut self.open {
            writer.add(key, seqno, kind, value)?;
            self.output.entries_out += 1;
        }
        Ok(())
    }

    fn failed(&mut self, error: Error) {
        self.output.failure.get_or_insert(error);
    }
}

impl RunWriter<'_> {
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
        let Some((id, path, writer)) = self.open.take() else { return Ok(()) };
        let info = match writer.finish_file() {
            Ok(info) => info,
            Err(error) => {
                remove_file(self.home, &path);
                return Err(error);
            }
        };
        self.output.bytes_written += info.file_len;
        let p = &info.properties;
        self.output.segments.push(Arc::new(SegmentMeta {
            id,
            keyspace: self.spec.keyspace,
            level: self.spec.level,
            run: RunNo(0),
            file_len: info.file_len,
            checksum: info.footer_checksum,
            entries: p.entries,
            tombstones: p.tombstones,
            smallest: p.smallest_seqno,
            largest: p.largest_seqno,
            first_key: Key(p.first_key.clone().into()),
            last_key: Key(info.last_key.clone().into()),
        }));
        Ok(())
    }

    fn discard(&mut self) {
        if let Some((_, path, writer)) = self.open.take() {
            drop(writer);
            remove_file(self.home, &path);
        }
        remove_segments(self.home, &std::mem::take(&mut self.output.segments));
    }
}

/// Removes segments that were written and that no manifest names.
pub(crate) fn remove_segments<'a>(
    home: &SegmentHome,
    segments: impl IntoIterator<Item = &'a Arc<SegmentMeta>>,
) {
    for meta in segments {
        home.files.forget(meta.id);
        remove_file(home, &home.path(meta.id));
    }
}

fn remove_file(home: &SegmentHome, path: &Path) {
    if let Err(error) = home.env.vfs.remove_file(path) {
        // Nothing names the file; the next open removes it.
        tracing::warn!(path = %path.display(), %error, "cannot remove a segment");
    }
}
