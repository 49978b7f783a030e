//! The cursors of a repair: a run of segments past what is damaged, and the newest versions of a merge.
//!
//! Both go forward only. What a cursor over a segment meets is entered in the book before an entry behind
//! it is shown, so that [`Newest`] knows of a key whether something newer may be lost. Called by `repair`.

use super::repair_report::{Book, Lost, SharedBook, enter_found, enter_whole, entering};
use super::verify::DamagedPlace;
use crate::cache::{FilePool, PooledFile};
use crate::cursor::{Cursor, Seek};
use crate::deletes::RangeDeletes;
use crate::error::{Error, Result};
use crate::iter::{MergeCursor, View};
use crate::segment::{Reference, Salvage, SalvageCursor, ValueReader};
use crate::sync::Arc;
use crate::types::{Kind, SegmentId, SeqNo, split_expiry};
use crate::version::{SegmentMeta, segment_file_name, value_file_name};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};

/// A segment of the old database.
pub(super) enum Piece {
    /// As the manifest describes it.
    Named(Arc<SegmentMeta>),
    /// As it describes itself.
    Opened(SegmentId, Box<Salvage>),
}

impl Piece {
    pub(super) fn file_name(&self) -> String {
        match self {
            Piece::Named(meta) => segment_file_name(meta.id),
            Piece::Opened(id, _) => segment_file_name(*id),
        }
    }
}

/// A cursor over the segments of a run, forward only, one open at a time.
pub(super) struct SalvagedRun {
    pub(super) dir: PathBuf,
    pub(super) files: Arc<FilePool>,
    pub(super) book: SharedBook,
    pub(super) keyspace: String,
    pub(super) hash_seed: u64,
    pub(super) age: usize,
    pub(super) waiting: VecDeque<Piece>,
    pub(super) open: Option<SalvageCursor>,
}

impl SalvagedRun {
    /// Goes on to the next segment that has an entry, unless the one that is open is at one.
    fn settle(&mut self) -> Result<()> {
        while !self.valid() {
            self.open = None;
            let Some(piece) = self.waiting.pop_front() else { return Ok(()) };
            let Some(mut cursor) = self.cursor(piece)? else { continue };
            cursor.seek(Seek::First)?;
            self.open = Some(cursor);
        }
        Ok(())
    }

    /// A cursor over a segment; `None` if it is lost as a whole.
    fn cursor(&self, piece: Piece) -> Result<Option<SalvageCursor>> {
        let path = self.dir.join(piece.file_name());
        let (salvage, span) = match piece {
            Piece::Opened(_, salvage) => {
                let first = salvage.properties.as_ref().map(|p| p.first_key.clone());
                let last = salvage.last_key();
                (*salvage, (first, last))
            }
            Piece::Named(meta) => {
                let span = (meta.first_key.to_vec(), meta.last_key.to_vec());
                let pool = Arc::clone(&self.files);
                let file = PooledFile::new(pool, meta.id, path.clone());
                let place = match Salvage::open(Arc::new(file), path.clone()) {
                    Ok(salvage) if salvage.is(meta.checksum) => {
                        let salvage = salvage.numbered(meta.smallest);
                        let span = (Some(span.0), Some(span.1));
                        return Ok(Some(self.enter(&path, salvage, span)));
                    }
                    Ok(salvage) => {
                        let damage = salvage.damage.into_iter().next();
                        let what = damage.map_or_else(
                            || "it is not the segment that the manifest names".to_owned(),
                            |damage| damage.what,
                        );
                        DamagedPlace::new(&path, 0, what)
                    }
                    Err(error) => DamagedPlace::from_error(&path, error)?,
                };
                enter_whole(&self.book, place, &self.keyspace, self.age, Some(span));
                return Ok(None);
            }
        };
        Ok(Some(self.enter(&path, salvage, span)))
    }

    fn enter(
        &self,
        path: &Path,
        mut salvage: Salvage,
        span: (Option<Vec<u8>>, Option<Vec<u8>>),
    ) -> SalvageCursor {
        let damage = std::mem::take(&mut salvage.damage);
        enter_found(&self.book, path, &self.keyspace, damage);
        let tell = entering(&self.book, path, &self.keyspace, self.age, span.0.clone());
        salvage.cursor(self.hash_seed, span, tell)
    }
}

impl Cursor for SalvagedRun {
    fn seek(&mut self, to: Seek<'_>) -> Result<()> {
        debug_assert!(matches!(to, Seek::First), "what was passed is gone");
        self.settle()
    }

    fn next(&mut self) -> Result<()> {
        if let Some(cursor) = &mut self.open {
            cursor.next()?;
        }
        self.settle()
    }

    fn prev(&mut self) -> Result<()> {
        self.open = None;
        Ok(())
    }

    fn valid(&self) -> bool {
        self.open.as_ref().is_some_and(SalvageCursor::valid)
    }

    fn key(&self) -> &[u8] {
        self.open.as_ref().map_or(&[], SalvageCursor::key)
    }

    fn seqno(&self) -> SeqNo {
        self.open.as_ref().map_or(SeqNo::ZERO, SalvageCursor::seqno)
    }

    fn kind(&self) -> Kind {
        self.open.as_ref().map_or(Kind::Delete, SalvageCursor::kind)
    }

    fn key_bytes(&self) -> Bytes {
        self.open.as_ref().map_or_else(Bytes::new, SalvageCursor::key_bytes)
    }

    fn value(&self) -> Bytes {
        self.open.as_ref().map_or_else(Bytes::new, SalvageCursor::value)
    }

    fn value_ref(&self) -> &[u8] {
        self.open.as_ref().map_or(&[], SalvageCursor::value_ref)
    }
}

/// The newest version of each key that is neither removed, alone or with a range, nor cleared, without its
/// number; if that is a merge operand, with its number, and with those below it down to what they are to be
/// merged into. Forward only. It counts the keys, and which of them stand in for something that was lost:
/// what was newer than the last version that says something of the key.
pub(super) struct Newest {
    merge: MergeCursor,
    view: View,
    deletes: Arc<RangeDeletes>,
    book: SharedBook,
    /// The last key that was decided about.
    decided: Option<Bytes>,
    /// The number under which the version is shown.
    shown: SeqNo,
    /// What is shown of the key is an operand, which wants what is below it.
    is_open: bool,
    /// The greatest number shown.
    pub(super) highest: SeqNo,
    /// The lost places that may still concern a key: those from here on, and these.
    seen: usize,
    near: Vec<usize>,
    pub(super) keys: u64,
    pub(super) bytes: u64,
    values: OldValues,
    /// The value that is shown, if it is one that lay elsewhere.
    fetched: Option<Bytes>,
}

/// The value segments of the old database.
pub(super) struct OldValues {
    pub(super) dir: PathBuf,
    pub(super) files: Arc<FilePool>,
    open: HashMap<SegmentId, Result<ValueReader>>,
}

impl OldValues {
    pub(super) fn new(dir: PathBuf, files: Arc<FilePool>) -> OldValues {
        OldValues { dir, files, open: HashMap::new() }
    }

    /// The value of an entry, its expiry in front; or why it is lost.
    fn fetch(
        &mut self,
        kind: Kind,
        value: &[u8],
        book: &SharedBook,
    ) -> Result<std::result::Result<Bytes, DamagedPlace>> {
        let (_, proper) = split_expiry(kind, value);
        let reference = Reference::decode(proper).map_err(|m| m.at(&self.dir, 0))?;
        let path = self.dir.join(value_file_name(reference.file));
        let OldValues { files, open, .. } = self;
        let reader = open.entry(reference.file).or_insert_with(|| {
            let file = PooledFile::new(Arc::clone(files), reference.file, path.clone());
            let (reader, wrong) = ValueReader::salvage(Arc::new(file), path.clone())?;
            if let Some(error) = wrong {
                book.lock().found.push(DamagedPlace::from_error(&path, error)?);
            }
            Ok(reader)
        });
        // What the reference says of the value is tested: so it does not matter whose file this was.
        let fetched = reader.as_ref().map_err(Error::clone);
        let fetched = match fetched.and_then(|reader| reader.get(&reference)) {
            Ok(fetched) => fetched,
            Err(error) => return DamagedPlace::from_error(&path, error).map(Err),
        };
        let (expiry, _) = value.split_at(value.len() - proper.len());
        Ok(Ok(if expiry.is_empty() { fetched } else { [expiry, &fetched[..]].concat().into() }))
    }
}

impl Newest {
    pub(super) fn new(
        merge: MergeCursor,
        view: View,
        deletes: Arc<RangeDeletes>,
        book: SharedBook,
        values: OldValues,
    ) -> Newest {
        let (decided, near) = (None, Vec::new());
        let (shown, highest) = (SeqNo::ZERO, SeqNo::ZERO);
        let (is_open, seen) = (false, 0);
        let (keys, bytes) = (0, 0);
        Newest {
            merge,
            view,
            deletes,
            book,
            decided,
            shown,
            is_open,
            highest,
            seen,
            near,
            keys,
            bytes,
            values,
            fetched: None,
        }
    }

    /// Goes on to the next version that is to be shown, from one that may be.
    fn settle(&mut self) -> Result<()> {
        self.fetched = None;
        while self.merge.valid() {
            let (seqno, kind) = (self.merge.seqno(), self.merge.kind());
            let is_older = self.decided.as_ref().is_some_and(|key| *key == self.merge.key());
            if !is_older {
                self.end_open();
                self.decided = Some(self.merge.key_bytes());
            }
            // Of the same number are copies, if segments that were replaced are here too.
            if !is_older || self.is_open && seqno < self.shown {
                let deleted = self.deletes.newest(self.merge.key(), SeqNo::MAX);
                let is_gone = kind == Kind::Delete
                    || self.view.is_cleared(seqno)
                    || deleted.is_some_and(|deleted| seqno <= deleted);
                let was_open = is_older && self.is_open;
                if !is_gone && kind.is_away() && !self.bring(was_open)? {
                    self.merge.next()?;
                    continue;
                }
                self.is_open = !is_gone && kind.is_merge();
                if !is_gone && !was_open {
                    self.keys += 1;
                    self.bytes += self.merge.key().len() as u64;
                }
                if !self.is_open && (was_open || !is_gone) {
                    // Nothing that is older matters.
                    self.count_lost(self.merge.source().unwrap_or(usize::MAX));
                }
                if !is_gone {
                    self.shown = if was_open || self.is_open { seqno } else { SeqNo::ZERO };
                    self.highest = self.highest.max(self.shown);
                    self.bytes += self.value_ref().len() as u64;
                    return Ok(());
                }
            }
            self.merge.next()?;
        }
        self.end_open();
        Ok(())
    }

    /// Reads the value that the version refers to. If it is lost, an older version stands in for it, as for one
    /// in a block that is lost.
    fn bring(&mut self, was_open: bool) -> Result<bool> {
        let (kind, value) = (self.merge.kind(), self.merge.value());
        let mut place = match self.values.fetch(kind, &value, &self.book)? {
            Ok(value) => {
                self.fetched = Some(value);
                return Ok(true);
            }
            Err(place) => place,
        };
        let key = self.merge.key().to_vec();
        place.key_range = Some((key.clone(), key));
        let age = self.merge.source().unwrap_or(usize::MAX);
        let lost = Lost { place, age, older: 0, with_low: true, with_high: true };
        self.book.lock().lost.push(lost);
        if !was_open {
            self.decided = None;
        }
        Ok(false)
    }

    /// Ends with a key of which there are only operands: what they were merged into may be lost,
    /// however old it was.
    fn end_open(&mut self) {
        if std::mem::take(&mut self.is_open) {
            self.count_lost(usize::MAX);
        }
    }

    /// Counts the key that was decided about with the lost places that may have had something of it that
    /// is not older than what a source has.
    fn count_lost(&mut self, source: usize) {
        let Some(key) = &self.decided else { return };
        let mut book = self.book.lock();
        let Book { lost, .. } = &mut *book;
        self.near.extend(self.seen..lost.len());
        self.seen = lost.len();
        self.near.retain(|at| {
            let Some(lost) = lost.get_mut(*at) else { return false };
            // The versions of a key in one run stand behind each other, newest first: so what was lost
            // of the same run may have been newer.
            if lost.age <= source && lost.may_hold(key) {
                lost.older += 1;
            }
            !lost.is_behind(key)
        });
    }
}

impl Cursor for Newest {
    fn seek(&mut self, to: Seek<'_>) -> Result<()> {
        self.merge.seek(to)?;
        self.settle()
    }

    fn next(&mut self) -> Result<()> {
        self.merge.next()?;
        self.settle()
    }

    fn prev(&mut self) -> Result<()> {
        self.merge.prev()
    }

    fn valid(&self) -> bool {
        self.merge.valid()
    }

    fn key(&self) -> &[u8] {
        self.merge.key()
    }

    fn seqno(&self) -> SeqNo {
        self.shown
    }

    fn kind(&self) -> Kind {
        self.merge.kind().here()
    }

    fn key_bytes(&self) -> Bytes {
        self.merge.key_bytes()
    }

    fn value(&self) -> Bytes {
        self.fetched.clone().unwrap_or_else(|| self.merge.value())
    }

    fn value_ref(&self) -> &[u8] {
        self.fetched.as_deref().unwrap_or(self.merge.value_ref())
    }
}
