//! Reads logs as a change feed does: also those that are flushed, and the one that is being written.
//!
//! Recovery needs the logs from the floor on; those before it are kept only for feeds, and the chain
//! leads to them: each header names its predecessor and where that ends. Nothing here changes a file or
//! judges a torn tail: a reader is told how far it may read, and up to there everything must be
//! sound.
//!
//! Invariants: no record is given before its last operation is known to be published; a record that
//! was given is never given again. Called by `db`; a [`LogTail`] belongs to one thread at a time.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::format::{
    HEADER_LEN, KIND_GROUP, KIND_KEYSPACES, KIND_SKIP, LogHeader, RECORD_HEADER_LEN, RecordHeader,
    log_file_name, verifies,
};
use super::keyspaces::KeyspaceNote;
use super::replay::{LogFile, PIECE, Pieces, decode_record};
use crate::error::{Error, Malformed, Result};
use crate::types::{LogId, SeqNo};
use crate::vfs::Env;
use bytes::Bytes;
use std::io;
use std::path::Path;

/// What lies in a log that was written to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogSpan {
    pub(crate) id: LogId,
    /// The last operation before it.
    pub(crate) base: SeqNo,
    /// Where its records end, in bytes from the start of the file.
    pub(crate) end: u64,
}

/// The logs that a feed can read, oldest first: of the chain down from `newest`, which is given with its
/// end, those that can be read and say which keyspaces there are, without a gap. Of the logs below
/// `floor` as many as fit into `budget` bytes.
///
/// Opens each log and reads its beginning. Whatever is wrong with one ends the chain there.
pub(crate) fn feed_logs(
    env: &Env,
    dir: &Path,
    database: u64,
    newest: (LogId, u64),
    floor: LogId,
    budget: u64,
) -> Vec<LogSpan> {
    let mut found: Vec<LogSpan> = Vec::new();
    let mut next = Some(newest);
    let mut kept = 0u64;
    while let Some((id, end)) = next {
        if id < floor {
            kept = kept.saturating_add(end);
            if kept > budget {
                break;
            }
        }
        let header = LogFile::open(env, dir.join(log_file_name(id))).and_then(|log| {
            let header = log.header(id, database)?.filter(|_| end <= log.len);
            Ok(header.filter(|header| log.tells_keyspaces(header, end).is_ok_and(|tells| tells)))
        });
        let Ok(Some(header)) = header else { break };
        let base = header.last_seqno;
        if found.last().is_some_and(|later| later.base < base) {
            break;
        }
        found.push(LogSpan { id, base, end });
        next = header.predecessor;
    }
    found.reverse();
    found
}

impl LogFile {
    /// Whether the log says which keyspaces there are before its first operation.
    fn tells_keyspaces(&self, header: &LogHeader, end: u64) -> Result<bool> {
        let mut pieces = Pieces::new(self);
        let mut at = HEADER_LEN;
        while at < end {
            let Some((record, payload)) = pieces.record(header.salt, at)? else { return Ok(false) };
            match record.kind {
                KIND_KEYSPACES => return Ok(matches!(payload.first(), Some(0))),
                KIND_GROUP | KIND_SKIP => return Ok(false),
                _ => at += record.len(),
            }
        }
        Ok(true)
    }
}

/// What is at a place of a log.
pub(crate) enum Peeked {
    /// This record.
    Record(Followed),
    /// One whose operations are beyond the number that was asked for.
    Beyond,
    /// The end that was given.
    End,
    /// No record that verifies.
    Nothing,
}

/// A record that was read.
pub(crate) struct Followed {
    /// The last operation before it.
    pub(crate) before: SeqNo,
    /// Its last operation, or the same.
    pub(crate) last: SeqNo,
    pub(crate) what: FollowedWhat,
    /// Where it ends.
    end: u64,
}

/// What a record is, for a feed.
pub(crate) enum FollowedWhat {
    /// Batches, all found sound: see [`super::batches`].
    Group(Bytes),
    /// One number was taken.
    Skip,
    Keyspaces(KeyspaceNote),
    /// Nothing of interest.
    Other,
}

/// One log and how far it was read.
#[derive(Debug)]
pub(crate) struct LogTail {
    log: LogFile,
    id: LogId,
    salt: u64,
    at: u64,
    last: SeqNo,
    /// What was read of the file last, from `start` on.
    buffer: Vec<u8>,
    start: u64,
}

impl LogTail {
    /// Opens the log of the database with this salt, to be read from its first record on.
    ///
    /// # Errors
    /// [`Error::Corruption`] if its header is not sound; [`Error::Io`].
    pub(crate) fn open(env: &Env, dir: &Path, database: u64, id: LogId) -> Result<LogTail> {
        let log = LogFile::open(env, dir.join(log_file_name(id)))?;
        let Some(header) = log.header(id, database)? else {
            return Err(Error::corruption(&log.path, 0, "the header of the log cannot be read"));
        };
        let (salt, last) = (header.salt, header.last_seqno);
        Ok(LogTail { log, id, salt, at: HEADER_LEN, last, buffer: Vec::new(), start: 0 })
    }

    /// Which log it is.
    pub(crate) fn id(&self) -> LogId {
        self.id
    }

    /// The last operation that was passed, or the last before the log.
    pub(crate) fn last(&self) -> SeqNo {
        self.last
    }

    /// The next record, if it has no operation above `upto` and lies in front of `end`, where that is
    /// known. [`LogTail::pass`] goes on behind it.
    ///
    /// Costs nothing more while records are in what was read last, else one read of up to 256 KiB, or of
    /// the record.
    ///
    /// # Errors
    /// [`Error::Corruption`] or [`Error::UnsupportedFormat`] if it verifies and is none that can be here;
    /// [`Error::Io`].
    pub(crate) fn peek(&mut self, upto: SeqNo, end: Option<u64>) -> Result<Peeked> {
        if end.is_some_and(|end| self.at >= end) {
            return Ok(Peeked::End);
        }
        let record = match self.buffered() {
            Some(record) => record,
            // It was not written when that was read, or only in part.
            None => {
                self.read()?;
                match self.buffered() {
                    Some(record) => record,
                    None => return Ok(Peeked::Nothing),
                }
            }
        };
        let wrong = |wrong: Malformed| wrong.at(&self.log.path, self.at);
        let payload = self.payload(&record);
        let ops = decode_record(&record, payload, self.at, self.last).map_err(wrong)?;
        let last = SeqNo(self.last.0.saturating_add(ops));
        if last > upto {
            return Ok(Peeked::Beyond);
        }
        let stops = self.at + record.len();
        if end.is_some_and(|end| stops > end) {
            let what = "a record runs past the end of its log";
            return Err(Error::corruption(&self.log.path, self.at, what));
        }
        let what = match record.kind {
            KIND_GROUP => FollowedWhat::Group(Bytes::copy_from_slice(payload)),
            KIND_SKIP => FollowedWhat::Skip,
            KIND_KEYSPACES => {
                FollowedWhat::Keyspaces(KeyspaceNote::decode(payload).map_err(wrong)?)
            }
            _ => FollowedWhat::Other,
        };
        Ok(Peeked::Record(Followed { before: self.last, last, what, end: stops }))
    }

    /// Goes on behind a record that [`LogTail::peek`] gave last.
    pub(crate) fn pass(&mut self, record: &Followed) {
        (self.at, self.last) = (record.end, record.last);
    }

    /// The error for a place where a record must be and no sound one is.
    pub(crate) fn damage(&self, what: impl Into<String>) -> Error {
        Error::corruption(&self.log.path, self.at, what)
    }

    /// The error for something wrong in the record at the place.
    pub(crate) fn wrong(&self, wrong: Malformed) -> Error {
        wrong.at(&self.log.path, self.at)
    }

    /// The record at the place, if one verifies in the buffer.
    fn buffered(&self) -> Option<RecordHeader> {
        let bytes = self.buffer.get(usize::try_from(self.at.checked_sub(self.start)?).ok()?..)?;
        let record = RecordHeader::decode(bytes)?;
        let bytes = bytes.get(..usize::try_from(record.len()).ok()?)?;
        verifies(bytes, self.salt, self.at).then_some(record)
    }

    /// The payload of the record at the place, which is in the buffer.
    fn payload(&self, record: &RecordHeader) -> &[u8] {
        let from = (self.at - self.start) as usize;
        let record = self.buffer.get(from..from + record.len() as usize).unwrap_or_default();
        record.get(RECORD_HEADER_LEN..).unwrap_or_default()
    }

    /// Reads the file from the place on: a piece, or more if the record there is longer.
    fn read(&mut self) -> Result<()> {
        let path = &self.log.path;
        let failed = |error| Error::io("read", path, error);
        let len = self.log.file.len().map_err(failed)?;
        let left = len.saturating_sub(self.at);
        let mut want = left.min(PIECE);
        for _ in 0..2 {
            let bytes =
                usize::try_from(want).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
            // Taken, so that after an error there is nothing that looks as if it had been read.
            let mut buffer = std::mem::take(&mut self.buffer);
            buffer.resize(bytes, 0);
            // Less than that if the zeros at the end were cut off in between.
            let read = self.log.file.read_at(&mut buffer, self.at).map_err(failed)?;
            buffer.truncate(read);
            (self.buffer, self.start) = (buffer, self.at);
            let whole = RecordHeader::decode(&self.buffer).map_or(0, |record| record.len());
            if whole <= want || whole > left {
                break;
            }
            want = whole;
        }
        Ok(())
    }
}
