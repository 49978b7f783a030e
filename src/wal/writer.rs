//! Writes one log: records at its end, each in one write.
//!
//! ```text
//! 0        64                  durable                     end          ahead
//! | header | record … record   | record … record           | zeros … 0  |
//!            survive power loss  survive the process only
//! ```
//!
//! A log that is synced for single writes has zeros written behind its records
//! ([`LogWriter::write_ahead`]): so the next records change neither the length of the file nor where
//! it lies on the disk, and an fsync writes their bytes alone. Replay takes zeros for the end.
//!
//! Owned by the commit path, one thread at a time. An fsync may run on another thread through
//! [`LogWriter::file`], followed by [`LogWriter::mark_durable`].

use super::format::{
    HEADER_LEN, KIND_GROUP, KIND_KEYSPACES, KIND_MARK, KIND_SKIP, KIND_WITNESS, LogHeader,
    MAX_PAYLOAD_LEN, RECORD_HEADER_LEN, log_file_name, seal_record,
};
use super::keyspaces::KeyspaceNote;
use crate::error::{Error, Result};
use crate::sync::Arc;
use crate::types::{LogId, PAGE, SeqNo};
use crate::vfs::{Env, NoFile, OpenMode, VfsFile};
use std::path::{Path, PathBuf};

/// A record buffer that grew larger than this for one commit is given back afterwards.
const BUFFER_KEPT: usize = 4 << 20;

/// The most that is written ahead at once, in bytes.
const AHEAD_MAX: u64 = 256 << 10;

/// Zeros are written in pieces of a page: small writes into a file that was filled by large ones cost
/// three times as much.
static ZEROS: [u8; PAGE] = [0; PAGE];

/// The end of a log that is being written.
#[derive(Debug)]
pub(crate) struct LogWriter {
    id: LogId,
    path: PathBuf,
    file: Arc<dyn VfsFile>,
    salt: u64,
    end: u64,
    durable: u64,
    /// Up to where zeros were written behind the records, if that is beyond `end`; `None` once it
    /// failed or was given up.
    ahead: Option<u64>,
    /// The furthest durable point that a record mentions.
    mentioned: u64,
    /// The newest edit of the manifest that a record of this log mentions.
    witnessed: u64,
    /// Whether a record of this log says which keyspaces there are.
    tells_keyspaces: bool,
    next_seqno: SeqNo,
    /// The record being built: room for its header, always, then its payload.
    buffer: Vec<u8>,
    /// An append failed: what follows belongs in a new log.
    full_stop: Option<String>,
}

impl LogWriter {
    /// Creates the log, empty and durable: its header and its directory entry survive power loss.
    ///
    /// `database` is the salt that binds it to its database; `predecessor` is the log before and the end of its records; `last_seqno` the last operation
    /// in it. After an error there is no such log, and the one before may go on. Except after
    /// [`Error::Poisoned`], when a sync or the removal of the file failed: then a trace of this log
    /// may be left that says where the one before ends, and nothing may be appended to that.
    ///
    /// Two fsyncs.
    pub(crate) fn create(
        env: &Env,
        dir: &Path,
        database: u64,
        id: LogId,
        predecessor: Option<(LogId, u64)>,
        last_seqno: SeqNo,
    ) -> Result<LogWriter> {
        let path = dir.join(log_file_name(id));
        let next_seqno = seqno_after(last_seqno, 1)?;
        let header = LogHeader { id, salt: env.entropy.next_u64(), predecessor, last_seqno };
        let file = env
            .vfs
            .open(&path, OpenMode::CreateNew)
            .map_err(|error| Error::io("create", &path, error))?;
        if let Err(error) = file.write_all_at(&header.encode(database), 0) {
            let undone = env.vfs.remove_file(&path).and_then(|()| env.vfs.sync_dir(dir));
            return Err(match undone {
                Ok(()) => Error::io("create", &path, error),
                Err(again) => Error::Poisoned {
                    reason: format!(
                        "cannot create {}: {error}, and cannot remove it again: {again}",
                        path.display()
                    ),
                },
            });
        }
        if let Err(error) = file.sync_data().and_then(|()| env.vfs.sync_dir(dir)) {
            // After a failed sync nobody knows what is durable, nor would a second one tell: the
            // file can neither be used nor be removed for sure.
            let reason = format!("cannot sync {}: {error}", path.display());
            return Err(Error::Poisoned { reason });
        }
        Ok(LogWriter {
            id,
            path,
            file,
            salt: header.salt,
            end: HEADER_LEN,
            durable: HEADER_LEN,
            ahead: Some(0),
            mentioned: HEADER_LEN,
            witnessed: 0,
            tells_keyspaces: false,
            next_seqno,
            buffer: vec![0; RECORD_HEADER_LEN],
            full_stop: None,
        })
    }

    /// Stands for the log of a database that is open for reading only: what was replayed ends at `end`
    /// of log `id` with operation `last_seqno`. Takes no records.
    pub(crate) fn refusing(dir: &Path, (id, end): (LogId, u64), last_seqno: SeqNo) -> LogWriter {
        LogWriter {
            id,
            path: dir.join(log_file_name(id)),
            file: Arc::new(NoFile),
            salt: 0,
            end,
            durable: end,
            ahead: None,
            mentioned: end,
            witnessed: u64::MAX,
            tells_keyspaces: true,
            next_seqno: SeqNo(last_seqno.0.saturating_add(1)),
            buffer: vec![0; RECORD_HEADER_LEN],
            full_stop: Some("the database is open for reading only".to_owned()),
        }
    }

    /// Which log this is.
    pub(crate) fn id(&self) -> LogId {
        self.id
    }

    /// The buffer of the next record, emptied: batches are to be pushed behind what is in it
    /// already, and [`LogWriter::append_payload`] writes them.
    pub(crate) fn payload(&mut self) -> &mut Vec<u8> {
        if self.buffer.capacity() > BUFFER_KEPT {
            self.buffer = vec![0; RECORD_HEADER_LEN];
        }
        // The header is filled in when the record is sealed.
        self.buffer.truncate(RECORD_HEADER_LEN);
        &mut self.buffer
    }

    /// Appends whole batches; for tests.
    #[cfg(test)]
    pub(crate) fn append(&mut self, first_seqno: SeqNo, ops: u64, parts: &[&[u8]]) -> Result<()> {
        let payload = self.payload();
        for part in parts {
            payload.extend_from_slice(part);
        }
        self.append_payload(first_seqno, ops)
    }

    /// Appends what was pushed into [`LogWriter::payload`] as a commit group: `ops` operations in
    /// whole batches, numbered from `first_seqno`, which must be [`LogWriter::next_seqno`]. One
    /// write.
    ///
    /// After an error the record is not part of the log, and no other can be appended to it: begin
    /// a new log with this one's [`LogWriter::end`].
    pub(crate) fn append_payload(&mut self, first_seqno: SeqNo, ops: u64) -> Result<()> {
        self.check_open()?;
        if ops == 0 || first_seqno != self.next_seqno {
            // Such a record would make every later one unreadable.
            return Err(Error::Poisoned {
                reason: format!(
                    "{ops} operations from {first_seqno} cannot follow in {}: {} is next",
                    self.path.display(),
                    self.next_seqno
                ),
            });
        }
        let next_seqno = seqno_after(first_seqno, ops)?;
        let bytes = self.buffer.len().saturating_sub(RECORD_HEADER_LEN) as u64;
        if bytes > MAX_PAYLOAD_LEN {
            return Err(Error::BatchTooLarge { bytes, limit: MAX_PAYLOAD_LEN });
        }
        self.write_record(KIND_GROUP)?;
        self.next_seqno = next_seqno;
        Ok(())
    }

    /// Appends a record that says what is durable, unless one has said it already: from then on
    /// damage to what is durable is not mistaken for a torn tail. For the moment after a sync that
    /// nothing may follow for a while. The mark itself need not be synced.
    pub(crate) fn append_mark(&mut self) -> Result<()> {
        self.check_open()?;
        if self.mentioned >= self.durable {
            return Ok(());
        }
        self.payload();
        self.write_record(KIND_MARK)
    }

    /// Appends a record that says that this edit of the manifest is durable, unless one has said so
    /// already: from then on an older manifest, or one that lost its end, is not mistaken for the
    /// newest. It also says what [`LogWriter::append_mark`] says.
    pub(crate) fn append_witness(&mut self, edit: u64) -> Result<()> {
        self.check_open()?;
        if self.witnessed >= edit {
            return Ok(());
        }
        self.payload().extend_from_slice(&edit.to_le_bytes());
        self.write_record(KIND_WITNESS)?;
        self.witnessed = edit;
        Ok(())
    }

    /// The newest edit of the manifest that a record of this log mentions.
    #[inline]
    pub(crate) fn witnessed(&self) -> u64 {
        self.witnessed
    }

    /// Appends a record that says what keyspaces there are, for change feeds. The first one of a log
    /// must say it all, in front of all operations; the others come right behind what they tell of.
    pub(crate) fn append_keyspaces(&mut self, note: &KeyspaceNote) -> Result<()> {
        self.check_open()?;
        note.encode(self.payload());
        self.write_record(KIND_KEYSPACES)?;
        self.tells_keyspaces |= note.is_whole();
        Ok(())
    }

    /// Whether a record of this log says which keyspaces there are.
    pub(crate) fn tells_keyspaces(&self) -> bool {
        self.tells_keyspaces
    }

    /// Makes the log durable together with evidence that all before it is: from then on damage to
    /// the logs before it is not mistaken for a torn tail. To be called only when those are durable to
    /// their ends.
    ///
    /// Two writes with an fsync between them. After [`Error::Poisoned`] nothing may be appended or
    /// synced any more.
    pub(crate) fn append_proof(&mut self) -> Result<()> {
        self.check_open()?;
        self.payload();
        self.write_record(KIND_MARK)?;
        self.file.sync_data().map_err(|error| Error::Poisoned {
            reason: Error::io("sync", &self.path, error).to_string(),
        })?;
        self.mark_durable(self.end);
        self.append_mark()
    }

    /// Appends a record that takes the next sequence number and changes nothing: for a change that
    /// is ordered among the operations and recorded elsewhere.
    pub(crate) fn append_skip(&mut self) -> Result<()> {
        self.check_open()?;
        let next_seqno = seqno_after(self.next_seqno, 1)?;
        self.payload();
        self.write_record(KIND_SKIP)?;
        self.next_seqno = next_seqno;
        Ok(())
    }

    /// Sees to it that there are zeros behind the records, so that syncing the next ones costs less.
    /// For a log that is about to be synced, and will be again: the sync makes the zeros durable too.
    ///
    /// Writes as much as the log has by then, at most 256 KiB, and only when what there was is used
    /// up. Nothing behind a record that would use up much of it at once. If it fails, nothing is lost,
    /// and it is not tried again.
    pub(crate) fn write_ahead(&mut self) {
        let is_large = self.buffer.len() as u64 > AHEAD_MAX / 8;
        let is_there = self.ahead.is_none_or(|ahead| ahead >= self.end);
        if is_there || is_large || self.full_stop.is_some() {
            return;
        }
        const STEP: u64 = PAGE as u64;
        let to = (self.end + self.end.clamp(STEP, AHEAD_MAX)).next_multiple_of(STEP);
        let mut at = self.end;
        while at < to {
            let n = STEP - at % STEP;
            if let Err(error) = self.file.write_all_at(&ZEROS[..n as usize], at) {
                tracing::debug!(%error, "cannot write ahead in the log");
                self.ahead = Some(to);
                self.cut_ahead();
                return;
            }
            at += n;
        }
        self.ahead = Some(to);
    }

    /// Gives the zeros behind the records back; none are written any more. For the end of the log.
    pub(crate) fn cut_ahead(&mut self) {
        if self.ahead.take().is_some_and(|ahead| ahead > self.end)
            && let Err(error) = self.file.set_len(self.end)
        {
            // Zeros do no harm.
            tracing::debug!(%error, "cannot cut the log to its end");
        }
    }

    fn check_open(&self) -> Result<()> {
        match &self.full_stop {
            Some(reason) => Err(Error::Poisoned { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    fn write_record(&mut self, kind: u8) -> Result<()> {
        let (offset, durable) = (self.end, self.durable);
        seal_record(&mut self.buffer, self.salt, kind, self.next_seqno, offset, durable);
        if let Err(error) = self.file.write_all_at(&self.buffer, offset) {
            let error = Error::io("append to", &self.path, error);
            let mut reason = error.to_string();
            // What was written of the record is cut off. If that fails too, the successor's header
            // still says that the log ends here.
            if let Err(again) = self.file.set_len(offset) {
                reason.push_str("; cannot cut it off again: ");
                reason.push_str(&again.to_string());
            }
            self.full_stop = Some(reason);
            return Err(error);
        }
        self.end += self.buffer.len() as u64;
        self.mentioned = durable;
        Ok(())
    }

    /// The number of the next operation.
    pub(crate) fn next_seqno(&self) -> SeqNo {
        self.next_seqno
    }

    /// The number of the last operation in this log, or before it.
    pub(crate) fn last_seqno(&self) -> SeqNo {
        SeqNo(self.next_seqno.0.saturating_sub(1))
    }

    /// Where the records end, in bytes from the start of the file.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Up to where they are known to survive power loss.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    /// The furthest durable point that a record mentions.
    pub(crate) fn mentioned(&self) -> u64 {
        self.mentioned
    }

    /// Whether an append failed, so that a new log must be begun.
    pub(crate) fn must_rotate(&self) -> bool {
        self.full_stop.is_some()
    }

    /// The file, to sync it without holding up appends: note [`LogWriter::end`] first, call
    /// `sync_data`, then [`LogWriter::mark_durable`] with that end. After a failed sync nothing may be
    /// appended or synced any more: the next one might succeed although the bytes are lost.
    pub(crate) fn file(&self) -> Arc<dyn VfsFile> {
        Arc::clone(&self.file)
    }

    /// Notes that everything up to `upto` was synced. To be called only when every older log is
    /// durable to its end: replay takes it as proof of that.
    pub(crate) fn mark_durable(&mut self, upto: u64) {
        self.durable = self.durable.max(upto.min(self.end));
    }
}

/// The number `ops` operations on. The last 64-bit number is not given to any operation.
fn seqno_after(seqno: SeqNo, ops: u64) -> Result<SeqNo> {
    match seqno.0.checked_add(ops) {
        Some(next) => Ok(SeqNo(next)),
        None => Err(Error::Poisoned { reason: "the sequence numbers are used up".into() }),
    }
}
