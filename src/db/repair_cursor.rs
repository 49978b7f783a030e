//! The cursors of a repair: a run of segments past what is damaged, and the newest versions of a merge.
//!
//! Both go forward only. What a cursor over a segment meets is entered in the book before an entry behind
//! it is shown, so that [`Newest`] knows of a key whether something newer may be lost. Called by `repair`.

use super::repair_report::{Book, SharedBook, enter_found, enter_whole, entering};
use super::verify::DamagedPlace;
use crate::cache::{FilePool, PooledFile};
use crate::cursor::{Cursor, Seek};
use crate::deletes::RangeDeletes;
use crate::error::Result;
use crate::iter::{MergeCursor, View};
use crate::segment::{Salvage, SalvageCursor};
use crate::sync::Arc;
use crate::types::{Kind, SegmentId, SeqNo};
use crate::version::{SegmentMeta, segment_file_name};
use bytes::Bytes;
use std::collections::VecDeque;
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
}

impl Newest {
    pub(super) fn new(
        merge: MergeCursor,
        view: View,
        deletes: Arc<RangeDeletes>,
        book: SharedBook,
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
        }
    }

    /// Goes on to the next version that is to be shown, from one that may be.
    fn settle(&mut self) -> Result<()> {
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
                    self.bytes += self.merge.value_ref().len() as u64;
                    return Ok(());
                }
            }
            self.merge.next()?;
        }
        self.end_open();
        Ok(())
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
        self.merge.kind()
    }

    fn key_bytes(&self) -> Bytes {
        self.merge.key_bytes()
    }

    fn value(&self) -> Bytes {
        self.merge.value()
    }

    fn value_ref(&self) -> &[u8] {
        self.merge.value_ref()
    }
}
