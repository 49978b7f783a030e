//! Value segments in use: which there are, how much of each is still referred to, and when each goes.
//!
//! Nothing but the live segments says which value segments a database has: each segment lists those that its
//! entries refer to, and what of them. So a value segment lives as long as a live segment lists it, and how much of
//! it lives is the sum over these; neither the manifest nor the log knows of it.
//!
//! Invariants: whoever holds a segment object may read what its entries refer to, since that object holds its value
//! segments. A file is removed when no live segment lists it and the last object that does is dropped. Nobody
//! begins to refer to a value segment but the job that wrote it, or one whose inputs refer to it. Thread-safe; no lock is
//! held while a file is read, opened or removed.

use super::live::SegmentHome;
use crate::cache::PooledFile;
use crate::error::{Error, Malformed, Result};
use crate::segment::{Reference, ValueIdentity, ValueReader, ValueReport, ValueUse};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, Weak};
use crate::types::SegmentId;
use bytes::Bytes;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The name of a value segment's file.
pub(crate) fn value_file_name(id: SegmentId) -> String {
    format!("{:020}.val", id.0)
}

/// The id in such a name.
pub(crate) fn parse_value_file_name(name: &str) -> Option<SegmentId> {
    let digits = name.strip_suffix(".val").filter(|d| d.len() == 20)?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok().map(SegmentId))?
}

/// A value segment that some segment object lists.
pub(crate) struct ValueFile {
    pub(crate) id: SegmentId,
    reader: ValueReader,
    home: SegmentHome,
    /// How many live segments list it.
    live_segments: AtomicU64,
    /// What they refer to, in bytes.
    live_bytes: AtomicU64,
    /// Set once the last of them is gone: then the file goes with this object.
    obsolete: AtomicBool,
    /// Something in it cannot be read, so that nobody should try to empty it.
    damaged: AtomicBool,
}

impl std::fmt::Debug for ValueFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ValueFile").field("id", &self.id).finish_non_exhaustive()
    }
}

impl ValueFile {
    /// What tells it from other files.
    pub(crate) fn identity(&self) -> ValueIdentity {
        self.reader.identity()
    }

    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        self.home.dir.join(value_file_name(self.id))
    }

    /// What its values take, and what of that is referred to, in bytes. What older versions refer to
    /// counts as well, so this is at least what lives.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.reader.bytes(), self.live_bytes.load(Ordering::Relaxed))
    }

    /// Whether less than the `n`th part of it is referred to, so that the rest should be written anew. Not if
    /// some of it is damaged: then it cannot be emptied.
    pub(crate) fn is_below(&self, n: u64) -> bool {
        let (all, live) = self.bytes();
        live.saturating_mul(n) < all && !self.damaged.load(Ordering::Relaxed)
    }

    /// Notes that something in it cannot be read.
    pub(crate) fn note_damage(&self) {
        self.damaged.store(true, Ordering::Relaxed);
    }

    /// Reads and checks all of it.
    pub(crate) fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<ValueReport> {
        self.reader.verify(progress)
    }

    fn retain(&self, used: &ValueUse) {
        self.live_segments.fetch_add(1, Ordering::Relaxed);
        self.live_bytes.fetch_add(used.bytes, Ordering::Relaxed);
    }

    fn release(&self, used: &ValueUse) {
        self.live_bytes.fetch_sub(used.bytes, Ordering::Relaxed);
        if self.live_segments.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.obsolete.store(true, Ordering::Release);
        }
    }
}

impl Drop for ValueFile {
    fn drop(&mut self) {
        self.home.values.forget(self.id);
        if self.obsolete.load(Ordering::Acquire) {
            self.home.files.forget(self.id);
            let path = self.path();
            if let Err(error) = self.home.env.vfs.remove_file(&path) {
                // The file is a leftover now; the next open removes it.
                tracing::warn!(path = %path.display(), %error, "cannot remove an old value segment");
            }
        }
    }
}

/// The value segments of one database by id, as far as a segment object lists them.
#[derive(Default)]
pub(crate) struct ValueFiles {
    files: Mutex<HashMap<SegmentId, Weak<ValueFile>>>,
    /// Those that were written with a segment that is not in the manifest yet.
    pending: Mutex<HashMap<SegmentId, Vec<SegmentId>>>,
}

impl ValueFiles {
    /// One that a segment object lists.
    pub(crate) fn get(&self, id: SegmentId) -> Option<Arc<ValueFile>> {
        self.files.lock().get(&id)?.upgrade()
    }

    /// The value that an entry of kind [`PutAway`](crate::Kind::PutAway) stands for; `reference` is the
    /// entry's value without its expiry. The caller holds the segment that has the entry. Costs one read of a file.
    pub(crate) fn fetch(&self, dir: &Path, reference: &[u8]) -> Result<Bytes> {
        let reference = Reference::decode(reference).map_err(|malformed| malformed.at(dir, 0))?;
        match self.get(reference.file) {
            Some(file) => file.reader.get(&reference),
            None => {
                let what =
                    "an entry refers to this value segment, and its segment does not list it";
                let path = dir.join(value_file_name(reference.file));
                Err(Malformed::Damaged(what).at(&path, reference.offset))
            }
        }
    }

    fn forget(&self, id: SegmentId) {
        let mut files = self.files.lock();
        // It may have been opened anew since.
        if files.get(&id).is_some_and(|file| file.strong_count() == 0) {
            files.remove(&id);
        }
    }

    /// Notes value segments that were written with a segment.
    pub(crate) fn note_written(&self, segment: SegmentId, values: Vec<SegmentId>) {
        if !values.is_empty() {
            self.pending.lock().insert(segment, values);
        }
    }

    /// The value segments that were written with a segment, which is now in the manifest, or else is given
    /// up with them.
    pub(crate) fn settle(&self, segment: SegmentId) -> Vec<SegmentId> {
        self.pending.lock().remove(&segment).unwrap_or_default()
    }
}

impl SegmentHome {
    /// Opens the value segments that a segment lists, and checks that they are those.
    pub(super) fn open_values(&self, uses: &[ValueUse]) -> Result<Vec<(ValueUse, Arc<ValueFile>)>> {
        uses.iter().map(|used| Ok((*used, self.open_value_file(used)?))).collect()
    }

    fn open_value_file(&self, used: &ValueUse) -> Result<Arc<ValueFile>> {
        let path = self.dir.join(value_file_name(used.id));
        let file = match self.values.get(used.id) {
            Some(file) => file,
            None => {
                let pool = Arc::clone(&self.files);
                let source = Arc::new(PooledFile::new(pool, used.id, path.clone()));
                let reader = match ValueReader::open(source, path.clone()) {
                    Err(Error::Io { source, .. })
                        if source.kind() == std::io::ErrorKind::NotFound =>
                    {
                        let what = "a segment needs it for its values, and it is missing";
                        return Err(Error::corruption(&path, 0, what));
                    }
                    opened => opened?,
                };
                let file = Arc::new(ValueFile {
                    id: used.id,
                    reader,
                    home: self.clone(),
                    live_segments: AtomicU64::new(0),
                    live_bytes: AtomicU64::new(0),
                    obsolete: AtomicBool::new(false),
                    damaged: AtomicBool::new(false),
                });
                let mut files = self.values.files.lock();
                // Another segment that lists it may have been opened meanwhile.
                match files.get(&used.id).and_then(Weak::upgrade) {
                    Some(other) => {
                        drop(files);
                        other
                    }
                    None => {
                        files.insert(used.id, Arc::downgrade(&file));
                        drop(files);
                        file
                    }
                }
            }
        };
        let wanted = ValueIdentity { file_len: used.file_len, checksum: used.checksum };
        if file.identity() == wanted {
            return Ok(file);
        }
        let what = "it is not the value segment that a segment refers to (swapped or overwritten)";
        Err(Error::corruption(&path, 0, what))
    }
}

/// Counts a segment as live, or no longer.
pub(super) fn count(values: &[(ValueUse, Arc<ValueFile>)], is_live: bool) {
    for (used, file) in values {
        if is_live { file.retain(used) } else { file.release(used) }
    }
}
