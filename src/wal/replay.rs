//! Reads logs back at open, and tells a torn tail from damage (FORMAT.md, "Replay").
//!
//! 1. **The chain.** The newest log with a readable header names its predecessor, that one its own,
//!    down to the floor. What no later log names is a stray: left over from a creation that failed
//!    or a removal that power loss undid. It is not replayed.
//! 2. **Each log**, oldest first, a record at a time, up to the end that its successor's header
//!    gives. Memory: one record.
//! 3. **At the first record that does not verify**, evidence decides: if a record behind it, or in a
//!    later log, was written after the place had been synced, the place is damaged. If none was, the
//!    tail is torn: it was never acknowledged as durable, and ends the replay.
//!
//! Nothing is changed on disk. The caller acts on [`Replayed`].

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::format::{
    HEADER_LEN, KIND_GROUP, KIND_MARK, KIND_OPTIONAL, KIND_SKIP, KIND_WITNESS, LogHeader,
    RECORD_HEADER_LEN, RecordHeader, log_file_name, parse_log_file_name, verifies, witnessed,
};
use super::ops::{Op, batches};
use crate::error::{Error, Malformed, Result};
use crate::sync::Arc;
use crate::types::{LogId, SeqNo};
use crate::vfs::{Env, OpenMode, VfsFile};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// How much of a log is read at once, in bytes; more for a longer record.
pub(super) const PIECE: u64 = 256 * 1024;

/// How many times its own length of a log may be hashed in search of evidence. An honest log needs
/// far less than once; values that imitate record headers could ask for the square.
pub(super) const HASHED_MAX: u64 = 64;

/// What opening a database does about a write-ahead log that does not end cleanly.
///
/// A crash may leave a *torn tail*: writes that were under way and never acknowledged as durable.
/// *Damage* is something else: bytes that had been synced and are not what was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Recovery {
    /// A torn tail is dropped, as after any crash. Damage is an error, and nothing is changed.
    #[default]
    TolerateTornTail,
    /// Damage too ends the replay, and what follows it is given up, even if it was acknowledged:
    /// the database is as it was at some earlier moment. For getting at the data when there is no
    /// better copy. A log of a newer format version is still an error.
    PointInTime,
    /// A torn tail is an error as well. For files that were closed properly, such as a backup.
    Strict,
}

/// A torn tail: where a log ended too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Torn {
    /// Which log.
    pub(crate) log: LogId,
    /// Where its sound records end, in bytes from the start of the file.
    pub(crate) offset: u64,
    /// How many bytes follow in the file; zero if its end is what is missing.
    pub(crate) bytes: u64,
}

/// What was replayed.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    /// The operations after this one were replayed: the last one before the floor log. Zero if no
    /// log was readable.
    pub(crate) base: SeqNo,
    /// The last operation replayed, or `base`.
    pub(crate) last_seqno: SeqNo,
    /// The last log replayed and the end of its records: the predecessor of the next log. `None` if
    /// there is none; then the manifest's floor must be moved to the next log before that is
    /// created.
    pub(crate) last_log: Option<(LogId, u64)>,
    /// The logs replayed, oldest first.
    pub(crate) logs: Vec<LogId>,
    /// The records in them, and their bytes.
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// What of each of them is not known to be durable: to be made so by
    /// [`renew`](super::renew).
    pub(crate) uncertain: Vec<Uncertain>,
    /// Logs that are no part of the chain or lie behind its end, newest first: to be removed by
    /// [`remove_logs`] before a new log is created.
    pub(crate) discarded: Vec<LogId>,
    /// The torn tail that ended the replay, if one did.
    pub(crate) torn: Option<Torn>,
    /// The newest edit of the manifest that a record mentions as durable; zero if none does.
    pub(crate) manifest_edit: u64,
    /// The damage that ended it, if [`Recovery::PointInTime`] let it.
    pub(crate) damage: Option<Error>,
    /// Whether the last operation is a skip.
    pub(crate) ends_in_skip: bool,
}

/// Replays the logs of `dir` from `floor` on: calls `sink` with each operation, in order of sequence
/// number. `database` is the salt of the database that they must belong to. A batch is delivered whole or not at all, unless `sink` fails, which ends the replay with
/// its error.
///
/// # Errors
///
/// [`Error::Corruption`] for what `recovery` does not tolerate, [`Error::UnsupportedFormat`],
/// [`Error::Io`].
pub(crate) fn replay(
    env: &Env,
    dir: &Path,
    database: u64,
    floor: LogId,
    recovery: Recovery,
    sink: &mut dyn FnMut(LogId, SeqNo, Op<'_>) -> Result<()>,
) -> Result<Replayed> {
    let logs = Logs::open(env, dir, database, floor, recovery)?;
    let mut done = Replayed::default();
    let chain = match logs.chain(dir, floor, recovery) {
        Ok(chain) => chain,
        Err(error @ Error::Corruption { .. }) if recovery == Recovery::PointInTime => {
            done.damage = Some(error);
            logs.chain_from(floor)
        }
        Err(error) => return Err(error),
    };
    if let Some((first, _)) = chain.first() {
        done.base = first.last_seqno;
        done.last_seqno = first.last_seqno;
    }
    for (at, (header, log)) in chain.iter().enumerate() {
        let later = chain.get(at + 1..).unwrap_or_default();
        done.logs.push(header.id);
        let stop = replay_log(header, log, later, &mut done, sink)?;
        done.last_log = Some((header.id, stop.offset));
        if stop.durable > HEADER_LEN {
            // What is said of a log holds for all before it.
            done.uncertain.iter_mut().for_each(|older| older.from = older.end);
        }
        let from = if stop.durable > HEADER_LEN { stop.durable.min(stop.offset) } else { 0 };
        done.uncertain.push(Uncertain { header: *header, from, end: stop.offset });
        match stop.why {
            Why::End => continue,
            Why::Torn if recovery == Recovery::Strict => {
                let what = "the log ends in a torn tail, which strict recovery does not accept";
                return Err(Error::corruption(&log.path, stop.offset, what));
            }
            Why::Torn => {
                let bytes = log.len.saturating_sub(stop.offset);
                done.torn = Some(Torn { log: header.id, offset: stop.offset, bytes });
            }
            Why::Damage(error) if recovery == Recovery::PointInTime => done.damage = Some(error),
            Why::Damage(error) => return Err(error),
        }
        break;
    }
    done.discarded = logs.all.keys().filter(|id| !done.logs.contains(id)).rev().copied().collect();
    Ok(done)
}

/// Removes logs, in the order given, each durably before the next: so a crash leaves a chain without
/// a gap. One directory sync a log.
pub(crate) fn remove_logs(env: &Env, dir: &Path, ids: &[LogId]) -> Result<()> {
    for id in ids {
        let path = dir.join(log_file_name(*id));
        match env.vfs.remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", &path, error));
            }
            _ => env.vfs.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?,
        }
    }
    Ok(())
}

/// A part of a log that was replayed, perhaps out of the system's memory, and is not known to be on
/// the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Uncertain {
    pub(super) header: LogHeader,
    /// Where it starts: zero, so that the header is part of it, or the end of a record.
    pub(super) from: u64,
    pub(super) end: u64,
}

/// A log file and its length when it was opened.
#[derive(Debug)]
pub(super) struct LogFile {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn VfsFile>,
    pub(super) len: u64,
}

/// The logs from the floor on. Without a header: the header does not verify.
struct Logs {
    all: BTreeMap<LogId, (Option<LogHeader>, LogFile)>,
}

type Chain<'a> = Vec<(LogHeader, &'a LogFile)>;

impl Logs {
    fn open(
        env: &Env,
        dir: &Path,
        database: u64,
        floor: LogId,
        recovery: Recovery,
    ) -> Result<Logs> {
        let mut all = BTreeMap::new();
        let mut names = env.vfs.read_dir(dir).map_err(|error| Error::io("list", dir, error))?;
        // By rising id, so that of several bad headers always the same one is reported.
        names.sort_unstable();
        for name in names {
            let Some(id) = parse_log_file_name(&name).filter(|id| *id >= floor) else { continue };
            let log = LogFile::open(env, dir.join(name))?;
            let header = match log.header(id, database).transpose() {
                // Read wrong, perhaps: what the device says the second time counts.
                None => log.header(id, database),
                Some(header) => header.map(Some),
            };
            let header = match header {
                Err(Error::Corruption { .. }) if recovery == Recovery::PointInTime => None,
                header => header?,
            };
            all.insert(id, (header, log));
        }
        Ok(Logs { all })
    }

    /// The logs that the newest one descends from, oldest first.
    fn chain(&self, dir: &Path, floor: LogId, recovery: Recovery) -> Result<Chain<'_>> {
        let mut chain = Chain::new();
        for (id, (header, log)) in self.all.iter().rev() {
            if let Some(header) = header {
                chain.push((*header, log));
                break;
            }
            // A log is durable before it is used, so one that was just being created is empty.
            let used = !log.is_zero_from(HEADER_LEN)?;
            if used || recovery == Recovery::Strict {
                let what = format!("the header of log {id} cannot be read");
                return Err(Error::corruption(&log.path, 0, what));
            }
        }
        while let Some((newest, log)) = chain.last().filter(|(newest, _)| newest.id > floor) {
            let before = newest.predecessor.map(|(id, _)| id).filter(|id| *id >= floor);
            match before.and_then(|id| self.all.get(&id)) {
                Some((Some(header), before)) => chain.push((*header, before)),
                Some((None, before)) => {
                    let what = format!("its header cannot be read, but log {} follows", newest.id);
                    return Err(Error::corruption(&before.path, 0, what));
                }
                None => {
                    let missing = match before {
                        Some(before) => format!("log {before}, which it follows, is missing"),
                        None => format!("it does not descend from log {floor}, the floor"),
                    };
                    return Err(Error::corruption(&log.path, 32, missing));
                }
            }
        }
        if chain.is_empty() && !self.all.is_empty() && !self.all.contains_key(&floor) {
            let path = dir.join(log_file_name(floor));
            return Err(Error::corruption(&path, 0, "the log is missing, but later ones exist"));
        }
        chain.reverse();
        Ok(chain)
    }

    /// What can be had when there is no sound chain: the floor log, and each log that follows
    /// directly on the one before.
    fn chain_from(&self, floor: LogId) -> Chain<'_> {
        let mut chain = Chain::new();
        for (id, (header, log)) in &self.all {
            let follows = match (header, chain.last()) {
                (Some(_), None) => *id == floor,
                (Some(header), Some((before, _))) => {
                    header.predecessor.is_some_and(|(id, _)| id == before.id)
                }
                (None, _) => false,
            };
            match header {
                Some(header) if follows => chain.push((*header, log)),
                _ => break,
            }
        }
        chain
    }
}

/// Where the replay of a log stopped, and why.
pub(super) struct Stop {
    offset: u64,
    why: Why,
    /// Up to where records in front of that say that the log is durable.
    durable: u64,
}

pub(super) enum Why {
    /// The log is at its end.
    End,
    /// The log ends too early, as a crash leaves it.
    Torn,
    Damage(Error),
}

/// Replays one log, and notes in `done` what was replayed. `later` is the rest of the chain.
fn replay_log(
    header: &LogHeader,
    log: &LogFile,
    later: &[(LogHeader, &LogFile)],
    done: &mut Replayed,
    sink: &mut dyn FnMut(LogId, SeqNo, Op<'_>) -> Result<()>,
) -> Result<Stop> {
    let last = &mut done.last_seqno;
    let successor = later.first();
    let limit = successor.and_then(|(header, _)| header.predecessor).map(|(_, end)| end);
    let mut pieces = Pieces::new(log);
    let mut offset = HEADER_LEN;
    let mut durable = 0;
    let mut read_again = None;
    let damage = |offset, durable, what: String| {
        let why = Why::Damage(Error::corruption(&log.path, offset, what));
        Ok(Stop { offset, why, durable })
    };
    while limit.is_none_or(|limit| offset < limit) {
        let Some((record, bytes)) = pieces.record(header.salt, offset)? else {
            // Read wrong, perhaps: what the device says the second time counts.
            if read_again != Some(offset) {
                read_again = Some(offset);
                pieces = Pieces::new(log);
                continue;
            }
            return Ok(Stop { offset, why: judge(header, log, later, offset, *last)?, durable });
        };
        let end = offset + record.len();
        if limit.is_some_and(|limit| end > limit) {
            return damage(
                offset,
                durable,
                "a record runs past the end that the next log gives".into(),
            );
        }
        match decode_record(&record, bytes, offset, *last) {
            Ok(ops) => {
                let mut seqno = *last;
                if ops > 0 {
                    done.ends_in_skip = record.kind == KIND_SKIP;
                }
                if record.kind == KIND_SKIP {
                    seqno.0 += 1;
                } else if record.kind == KIND_WITNESS {
                    let edit = witnessed(bytes);
                    done.manifest_edit = done.manifest_edit.max(edit);
                } else if ops > 0 {
                    for batch in batches(bytes) {
                        for op in batch.map_err(|wrong| wrong.at(&log.path, offset))?.ops() {
                            seqno.0 += 1;
                            let op = op.map_err(|wrong| wrong.at(&log.path, offset))?;
                            sink(header.id, seqno, op)?;
                        }
                    }
                }
                *last = seqno;
            }
            Err(Malformed::Damaged(what)) => return damage(offset, durable, what.into()),
            Err(wrong @ Malformed::Unsupported(_)) => return Err(wrong.at(&log.path, offset)),
        }
        durable = durable.max(record.durable(offset).unwrap_or(0));
        done.records += 1;
        done.bytes += record.len();
        offset = end;
    }
    match successor {
        Some((next, _)) if limit != Some(offset) || next.last_seqno != *last => {
            let (next, noted) = (next.id, next.last_seqno);
            damage(
                offset,
                durable,
                format!("it ends at operation {last}, but log {next} notes {noted}"),
            )
        }
        _ => Ok(Stop { offset, why: Why::End, durable }),
    }
}

/// How many operations a record that verifies holds, if they follow operation `last` and are all
/// sound: nothing is delivered before that is known.
pub(super) fn decode_record(
    record: &RecordHeader,
    payload: &[u8],
    offset: u64,
    last: SeqNo,
) -> std::result::Result<u64, Malformed> {
    if record.durable(offset).is_none() {
        return Err(Malformed::Damaged("a record's durable point lies in front of the log"));
    }
    match record.kind {
        KIND_GROUP | KIND_MARK | KIND_SKIP => {}
        kind if kind & KIND_OPTIONAL != 0 => return Ok(0),
        _ => return Err(Malformed::Unsupported("a record of a kind that a newer version writes")),
    }
    if last.0.checked_add(1) != Some(record.seqno.0) {
        return Err(Malformed::Damaged("a record does not follow on the operation before it"));
    }
    if record.kind != KIND_GROUP && !payload.is_empty() {
        return Err(Malformed::Damaged("a record that has no payload has one"));
    }
    match record.kind {
        KIND_MARK => return Ok(0),
        KIND_SKIP if record.seqno.0 == u64::MAX => {
            return Err(Malformed::Damaged("the sequence numbers run over"));
        }
        KIND_SKIP => return Ok(1),
        _ => {}
    }
    let mut ops = 0u64;
    for batch in batches(payload) {
        // Each operation takes bytes of the payload, so that their number cannot overflow.
        ops += batch?.count();
    }
    match (ops, last.0.checked_add(ops)) {
        (0, _) => Err(Malformed::Damaged("a commit group has no batch")),
        (_, None | Some(u64::MAX)) => Err(Malformed::Damaged("the sequence numbers run over")),
        _ => Ok(ops),
    }
}

/// Decides what it means that no record verifies at `offset` of a log, where one is expected or the
/// log may end.
pub(super) fn judge(
    header: &LogHeader,
    log: &LogFile,
    later: &[(LogHeader, &LogFile)],
    offset: u64,
    last: SeqNo,
) -> Result<Why> {
    if later.is_empty() && log.is_zero_from(offset)? {
        return Ok(Why::End);
    }
    let mut proof = log.proof(header.salt, offset, offset, last)?.map(|at| (log, at));
    for (header, log) in later {
        if proof.is_none() {
            let found = log.proof(header.salt, HEADER_LEN, HEADER_LEN, header.last_seqno)?;
            proof = found.map(|at| (*log, at));
        }
    }
    let Some((witness, at)) = proof else {
        if !log.reads_the_same_again(offset)? {
            let what = "it reads differently each time: the device is failing";
            return Err(Error::corruption(&log.path, offset, what));
        }
        return Ok(Why::Torn);
    };
    let what = format!(
        "no sound record is here, but what byte {at} of {} shows that it had been synced",
        witness.path.display()
    );
    Ok(Why::Damage(Error::corruption(&log.path, offset, what)))
}

impl LogFile {
    /// Opens a log, to its length as of now.
    pub(super) fn open(env: &Env, path: PathBuf) -> Result<LogFile> {
        let opened = env.vfs.open(&path, OpenMode::Read).and_then(|file| Ok((file.len()?, file)));
        let (len, file) = opened.map_err(|error| Error::io("open", &path, error))?;
        Ok(LogFile { path, file, len })
    }

    /// The header; `None` if it does not verify, an error if it is not that of log `id`.
    pub(super) fn header(&self, id: LogId, database: u64) -> Result<Option<LogHeader>> {
        let mut pieces = Pieces::new(self);
        let Some(bytes) = pieces.get(0, HEADER_LEN)? else { return Ok(None) };
        let header = LogHeader::decode(bytes, database).map_err(|wrong| wrong.at(&self.path, 0))?;
        match header {
            Some(header) if header.id != id => {
                let what = format!("the header is that of log {}", header.id);
                Err(Error::corruption(&self.path, 16, what))
            }
            header => Ok(header),
        }
    }

    /// Whether there are only zeros from `offset` to the end of the file.
    pub(super) fn is_zero_from(&self, mut offset: u64) -> Result<bool> {
        let mut pieces = Pieces::new(self);
        while offset < self.len {
            let n = PIECE.min(self.len - offset);
            if pieces.get(offset, n)?.is_some_and(|bytes| bytes.iter().any(|byte| *byte != 0)) {
                return Ok(false);
            }
            offset += n;
        }
        Ok(true)
    }

    /// Whether two readings of what is from `offset` on agree: on a device that reads wrong, nothing
    /// can be said about a tail.
    fn reads_the_same_again(&self, mut offset: u64) -> Result<bool> {
        let (mut one, mut two) = (Pieces::new(self), Pieces::new(self));
        while offset < self.len {
            let n = PIECE.min(self.len - offset);
            if one.get(offset, n)? != two.get(offset, n)? {
                return Ok(false);
            }
            offset += n;
        }
        Ok(true)
    }

    /// Looks for a record at or behind `from` that was written when the log was known to be durable
    /// to somewhere past `past`. The operation at `from` comes after `last`. Returns where it is.
    ///
    /// Reads the rest of the file once. Only what looks like such a record is hashed; if that adds
    /// up to [`HASHED_MAX`] times the file, the search gives up and reports the last candidate,
    /// because damage may be refused in error, but not passed over.
    fn proof(&self, salt: u64, from: u64, past: u64, last: SeqNo) -> Result<Option<u64>> {
        let Some(next) = last.0.checked_add(1).map(SeqNo) else { return Ok(None) };
        let mut headers = Pieces::new(self);
        let mut records = Pieces::new(self);
        let mut hashed = 0;
        let mut start = from;
        loop {
            let n = PIECE.min(self.len.saturating_sub(start));
            let Some(piece) = headers.get(start, n)? else { return Ok(None) };
            let candidates = piece.windows(RECORD_HEADER_LEN).zip(start..);
            for (bytes, offset) in candidates {
                let Some(record) = RecordHeader::decode(bytes) else { break };
                let tells = record.is_plausible(offset, from, next)
                    && record.durable(offset).is_some_and(|durable| durable > past)
                    && record.len() <= self.len - offset;
                if !tells {
                    continue;
                }
                hashed += record.len();
                if hashed / HASHED_MAX > self.len || records.record(salt, offset)?.is_some() {
                    return Ok(Some(offset));
                }
            }
            if n < PIECE {
                return Ok(None);
            }
            // The last bytes of a piece are too few for a header: they begin the next piece.
            start += n - (RECORD_HEADER_LEN as u64 - 1);
        }
    }
}

/// Reads a file in pieces, so that small records cost no call each and large ones fit.
pub(super) struct Pieces<'a> {
    log: &'a LogFile,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(log: &'a LogFile) -> Self {
        Pieces { log, start: 0, bytes: Vec::new() }
    }

    /// The `n` bytes at `offset`; `None` if the file is too short.
    pub(super) fn get(&mut self, offset: u64, n: u64) -> Result<Option<&[u8]>> {
        let Some(end) = offset.checked_add(n).filter(|end| *end <= self.log.len) else {
            return Ok(None);
        };
        if offset < self.start || end > self.start + self.bytes.len() as u64 {
            let want = n.max(PIECE).min(self.log.len - offset);
            let path = &self.log.path;
            let want = usize::try_from(want)
                .map_err(|_| Error::io("read", path, io::ErrorKind::OutOfMemory.into()))?;
            // Taken, so that after an error there is nothing that looks as if it had been read.
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.resize(want, 0);
            self.log
                .file
                .read_exact_at(&mut bytes, offset)
                .map_err(|error| Error::io("read", path, error))?;
            self.bytes = bytes;
            self.start = offset;
        }
        let skip = (offset - self.start) as usize;
        Ok(self.bytes.get(skip..).and_then(|rest| rest.get(..n as usize)))
    }

    /// The header and payload of the record at `offset`, if one verifies there.
    pub(super) fn record(
        &mut self,
        salt: u64,
        offset: u64,
    ) -> Result<Option<(RecordHeader, &[u8])>> {
        let Some(bytes) = self.get(offset, RECORD_HEADER_LEN as u64)? else { return Ok(None) };
        let Some(header) = RecordHeader::decode(bytes) else { return Ok(None) };
        let Some(bytes) = self.get(offset, header.len())? else { return Ok(None) };
        if !verifies(bytes, salt, offset) {
            return Ok(None);
        }
        Ok(bytes.get(RECORD_HEADER_LEN..).map(|payload| (header, payload)))
    }

    /// The record at `offset` and those behind it, up to `end`, that were read with it: as they stand
    /// in the file, and each verifies. `None` if the first one does not.
    pub(super) fn records(&mut self, salt: u64, offset: u64, end: u64) -> Result<Option<&[u8]>> {
        let Some((first, _)) = self.record(salt, offset)? else { return Ok(None) };
        let read = self.bytes.get((offset - self.start) as usize..).unwrap_or_default();
        let mut len = first.len();
        while offset + len < end {
            let rest = read.get(len as usize..).unwrap_or_default();
            let Some(record) = RecordHeader::decode(rest) else { break };
            let Ok(n) = usize::try_from(record.len()) else { break };
            let Some(bytes) = rest.get(..n) else { break };
            if !verifies(bytes, salt, offset + len) {
                break;
            }
            len += record.len();
        }
        Ok(read.get(..len as usize))
    }
}
