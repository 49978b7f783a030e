//! Walks over all logs, past damage: what is sound is handed on, what is not is told.
//!
//! [`replay`](super::replay) stops at the first damage; this goes on. A header with one flipped bit is
//! mended; of one that is damaged further the salt is taken as it stands. Behind a damaged record the
//! next sound one is looked for, byte by byte. Nothing is handed on that a checksum does not confirm.
//!
//! The judgement is that of replay: a place where no sound record is, is damage if something shows that it
//! had been synced, and else a torn tail. Where the ends of the logs are known, because the database is
//! open, every such place is damage.
//!
//! Nothing is changed on disk. Called by verifying and by repair. Memory: the longest record.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::format::{
    HEADER_LEN, KIND_SKIP, KIND_WITNESS, LogHeader, RECORD_HEADER_LEN, RecordHeader, log_file_name,
    parse_log_file_name, witnessed,
};
use super::ops::{Op, batches};
use super::patient::Patient;
use super::replay::{HASHED_MAX, LogFile, PIECE, Pieces, Why, decode_record, judge};
use crate::checksum::mend_one_bit;
use crate::coding::u64_at;
use crate::error::{Error, Malformed, Result};
use crate::sync::Arc;
use crate::types::{LogId, SeqNo};
use crate::vfs::{Env, OpenMode};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A place in a log where a sound record should be, and none is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hole {
    pub(crate) file: PathBuf,
    /// Where it begins, in bytes from the start of the file.
    pub(crate) offset: u64,
    /// Whether it is what a crash may leave, and lies behind everything that is known to have been
    /// synced.
    pub(crate) torn: bool,
    /// Whether records may be lost here. Not so for a header whose records can be read.
    pub(crate) loses: bool,
    /// Whether sound records were found behind it.
    pub(crate) goes_on: bool,
    pub(crate) what: String,
}

/// A log that was walked over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Walked {
    pub(crate) file: PathBuf,
    /// How many sound records it has.
    pub(crate) records: u64,
    /// What they and the header take, in bytes.
    pub(crate) bytes: u64,
}

/// The outcome of a walk.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// The logs of the chain, oldest first.
    pub(crate) logs: Vec<Walked>,
    pub(crate) holes: Vec<Hole>,
    /// Logs that are no part of the chain.
    pub(crate) strays: Vec<PathBuf>,
    /// The last operation before the oldest log, if its header can be read.
    pub(crate) base: Option<SeqNo>,
    /// The last operation in front of the torn tail, if there is one, or `base`.
    pub(crate) last_seqno: SeqNo,
    /// The newest edit of the manifest that a record mentions as durable; zero if none does.
    pub(crate) manifest_edit: u64,
    /// Where the last log ends.
    pub(crate) end: Option<(PathBuf, u64)>,
}

/// The logs of a database, open, so that they can be read even once they are removed.
pub(crate) struct LogFiles {
    all: BTreeMap<LogId, LogFile>,
}

/// Opens the logs of `dir` from `floor` to `newest`. Reads the directory.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn open_logs(env: &Env, dir: &Path, floor: LogId, newest: LogId) -> Result<LogFiles> {
    let names = env.vfs.read_dir(dir).map_err(|error| Error::io("list", dir, error))?;
    let mut all = BTreeMap::new();
    for name in names {
        let id = parse_log_file_name(&name).filter(|id| (floor..=newest).contains(id));
        let Some(id) = id else { continue };
        let path = dir.join(name);
        let opened = env.vfs.open(&path, OpenMode::Read).and_then(|file| {
            let len = file.len()?;
            Ok(LogFile { path: path.clone(), file: Arc::new(Patient(file)), len })
        });
        all.insert(id, opened.map_err(|error| Error::io("open", &path, error))?);
    }
    Ok(LogFiles { all })
}

/// A log as a link of the chain.
struct Link<'a> {
    id: LogId,
    log: &'a LogFile,
    header: Option<LogHeader>,
    /// The salt of its records; `None` if nothing can be read.
    salt: Option<u64>,
}

/// What the first bytes of a log gave.
enum Head {
    Sound(LogHeader),
    /// It could be mended.
    Mended(LogHeader),
    /// Only this may be the salt.
    Salt(u64),
    Nothing(String),
}

impl LogFiles {
    /// Notes where the records of the newest log end. What is behind them may be cut off at any time
    /// while the database is open, so it is not read.
    pub(crate) fn end_at(&mut self, end: u64) {
        if let Some(mut newest) = self.all.last_entry() {
            let log = newest.get_mut();
            log.len = log.len.min(end);
        }
    }

    /// The length of all of them, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.all.values().map(|log| log.len).sum()
    }

    /// Whether any log has a sound header of the database with this salt.
    pub(crate) fn belong_to(&self, database: u64) -> bool {
        self.all.iter().any(|(id, log)| {
            matches!(log.head(*id, Some(database)), Ok(Head::Sound(_) | Head::Mended(_)))
        })
    }

    /// Walks over the chain, oldest log first, and calls `sink` with each operation of each sound
    /// record, in rising order. `database` is the salt of their headers and `floor` the oldest log
    /// needed, if these are known. `end` is where the newest log ends, if that is known.
    ///
    /// # Errors
    /// Those of `sink`, and [`Error::UnsupportedFormat`]. What cannot be read is told as damage.
    pub(crate) fn walk(
        &self,
        dir: &Path,
        database: Option<u64>,
        floor: Option<LogId>,
        end: Option<u64>,
        sink: &mut dyn FnMut(SeqNo, Op<'_>) -> Result<()>,
    ) -> Result<Walk> {
        let mut walk = Walk::default();
        let chain = self.chain(dir, database, floor, end.is_some(), &mut walk)?;
        let mut walker =
            Walker { walk, last: None, has_hole: false, torn: false, known: end.is_some(), sink };
        for (at, link) in chain.iter().enumerate() {
            let later = chain.get(at + 1..).unwrap_or_default();
            walker.log(link, later, end)?;
        }
        let Walker { mut walk, last, torn, .. } = walker;
        if !torn {
            walk.last_seqno = last.unwrap_or_default();
        }
        Ok(walk)
    }

    /// The chain, oldest log first. Where the header that would say what comes before cannot be read,
    /// the next lower log is taken.
    fn chain(
        &self,
        dir: &Path,
        database: Option<u64>,
        floor: Option<LogId>,
        known: bool,
        walk: &mut Walk,
    ) -> Result<Vec<Link<'_>>> {
        let mut chain: Vec<Link<'_>> = Vec::new();
        let mut next = self.all.keys().next_back().copied();
        let damage = |file: &Path, offset, loses, what: String| Hole {
            file: file.to_path_buf(),
            offset,
            torn: false,
            loses,
            goes_on: true,
            what,
        };
        while let Some((id, log)) = next.and_then(|id| self.all.get_key_value(&id)) {
            let id = *id;
            let below = self.all.range(..id).next_back().map(|(id, _)| *id);
            let mut link = Link { id, log, header: None, salt: None };
            match log.head(id, database)? {
                Head::Sound(header) => link.header = Some(header),
                Head::Mended(header) => {
                    link.header = Some(header);
                    let what = "a bit of the log's header is flipped; its records can be read";
                    walk.holes.push(damage(&log.path, 0, false, what.into()));
                }
                // A log is durable before it is used, so one that was just being created is empty.
                _ if !known && chain.is_empty() && log.is_zero_from(HEADER_LEN)? => {
                    walk.strays.push(log.path.clone());
                    next = below;
                    continue;
                }
                Head::Salt(salt) => {
                    link.salt = Some(salt);
                    // Without the database's identity no header can be judged.
                    if database.is_some() {
                        let what = "the log's header cannot be read; its records are read without";
                        walk.holes.push(damage(&log.path, 0, false, what.into()));
                    }
                }
                Head::Nothing(what) => walk.holes.push(damage(&log.path, 0, true, what)),
            }
            link.salt = link.header.map(|header| header.salt).or(link.salt);
            let header = link.header;
            chain.push(link);
            if floor == Some(id) {
                break;
            }
            let Some(header) = header else {
                next = below;
                continue;
            };
            let before = header.predecessor.map(|(id, _)| id);
            next = before.filter(|id| self.all.contains_key(id));
            if next.is_none()
                && let Some(floor) = floor
            {
                let what = match before.filter(|id| *id >= floor) {
                    Some(before) => format!("log {before}, which it follows, is missing"),
                    None => format!("it does not descend from log {floor}, the floor"),
                };
                walk.holes.push(damage(&log.path, 32, true, what));
                next = below;
            }
        }
        chain.reverse();
        let floor = floor.filter(|floor| chain.first().is_none_or(|link| link.id != *floor));
        if let Some(floor) = floor {
            let what = "the manifest needs this log, and it is missing";
            let path = dir.join(log_file_name(floor));
            walk.holes.push(damage(&path, 0, true, what.into()));
        }
        let strays = self.all.iter().filter(|(id, _)| !chain.iter().any(|link| link.id == **id));
        let strays = strays.map(|(_, log)| log.path.clone());
        let new: Vec<_> = strays.filter(|path| !walk.strays.contains(path)).collect();
        walk.strays.extend(new);
        Ok(chain)
    }
}

impl LogFile {
    fn head(&self, id: LogId, database: Option<u64>) -> Result<Head> {
        let mut pieces = Pieces::new(self);
        let Some(bytes) = pieces.get(0, HEADER_LEN)?.map(<[u8]>::to_vec) else {
            return Ok(Head::Nothing("the file ends before its header does".into()));
        };
        if let Some(database) = database {
            match LogHeader::decode(&bytes, database) {
                Ok(Some(header)) if header.id == id => return Ok(Head::Sound(header)),
                Ok(Some(header)) => {
                    return Ok(Head::Nothing(format!("the header is that of log {}", header.id)));
                }
                Ok(None) => {}
                Err(wrong @ Malformed::Unsupported(_)) => return Err(wrong.at(&self.path, 0)),
                Err(Malformed::Damaged(what)) => return Ok(Head::Nothing(what.into())),
            }
            let accept = |bytes: &[u8]| {
                let header = LogHeader::decode(bytes, database).ok().flatten();
                header.filter(|header| header.id == id)
            };
            if let Some(header) = mend_one_bit(&bytes, bytes.len(), accept) {
                return Ok(Head::Mended(header));
            }
        }
        let salt = u64_at(&bytes, 24).unwrap_or_default();
        // The first record tells whether a bit of the salt is flipped.
        let mut fits = |salt| pieces.record(salt, HEADER_LEN).map(|record| record.is_some());
        if !fits(salt)? {
            for bit in 0..64 {
                if fits(salt ^ 1 << bit)? {
                    return Ok(Head::Salt(salt ^ 1 << bit));
                }
            }
        }
        Ok(Head::Salt(salt))
    }

    /// The first sound record behind `from` and in front of `limit`, where operation `next` is the
    /// first one at or behind `from`, if that is known. Hashes as much as replay would.
    fn resume(&self, salt: u64, from: u64, limit: u64, next: Option<SeqNo>) -> Result<Option<u64>> {
        let mut headers = Pieces::new(self);
        let mut records = Pieces::new(self);
        let mut hashed = 0;
        let mut start = from + 1;
        loop {
            let n = PIECE.min(limit.saturating_sub(start));
            let Some(piece) = headers.get(start, n)? else { return Ok(None) };
            for (bytes, offset) in piece.windows(RECORD_HEADER_LEN).zip(start..) {
                let Some(record) = RecordHeader::decode(bytes) else { break };
                let next = next.unwrap_or(record.seqno);
                if !record.is_plausible(offset, from, next) || record.len() > limit - offset {
                    continue;
                }
                hashed += record.len();
                if hashed / HASHED_MAX > self.len {
                    return Ok(None);
                }
                if records.record(salt, offset)?.is_some() {
                    return Ok(Some(offset));
                }
            }
            if n < PIECE {
                return Ok(None);
            }
            start += n - (RECORD_HEADER_LEN as u64 - 1);
        }
    }
}

struct Walker<'a> {
    walk: Walk,
    /// The last operation so far, if it is known which.
    last: Option<SeqNo>,
    /// Operations may be missing since the last sound record.
    has_hole: bool,
    /// A torn tail was met: what follows was never known to be durable.
    torn: bool,
    /// Whether the logs' ends are known, so that no tail can be torn.
    known: bool,
    sink: &'a mut dyn FnMut(SeqNo, Op<'_>) -> Result<()>,
}

impl Walker<'_> {
    fn log(&mut self, link: &Link<'_>, later: &[Link<'_>], end: Option<u64>) -> Result<()> {
        let log = link.log;
        let successor = later.first().and_then(|next| next.header);
        let named = successor.and_then(|next| next.predecessor).filter(|(id, _)| *id == link.id);
        let limit = named.map(|(_, end)| end).or(if later.is_empty() { end } else { None });
        self.enter(link);
        let mut walked = Walked { file: log.path.clone(), records: 0, bytes: HEADER_LEN };
        let (mut offset, mut end_of_records) = (HEADER_LEN, HEADER_LEN);
        let mut pieces = Pieces::new(log);
        while let Some(salt) = link.salt
            && limit.is_none_or(|limit| offset < limit)
        {
            let found = pieces.record(salt, offset)?;
            let found = found.filter(|(r, _)| limit.is_none_or(|limit| offset + r.len() <= limit));
            let taken = match &found {
                Some((record, payload)) => {
                    let next = successor.map(|next| next.last_seqno);
                    self.record(link, record, payload, offset, next)?
                }
                // The end of the file. Whether operations are missing, the next log tells.
                None if limit.is_none() && log.is_zero_from(offset)? => break,
                None => Taken::No("no sound record is here".into()),
            };
            let stop = match taken {
                Taken::Yes => {
                    let len = found.map_or(0, |(record, _)| record.len());
                    offset += len;
                    (walked.records, walked.bytes) = (walked.records + 1, walked.bytes + len);
                    end_of_records = offset;
                    continue;
                }
                Taken::No(what) => what,
            };
            let resumed = {
                let next = self.last.and_then(|last| last.0.checked_add(1)).map(SeqNo);
                log.resume(salt, offset, limit.unwrap_or(log.len).min(log.len), next)?
            };
            self.stopped(link, later, offset, resumed, limit, stop)?;
            match resumed {
                Some(at) => offset = at,
                None => break,
            }
        }
        if let (Some(next), Some(last)) = (successor, self.last)
            && named.is_some()
            && last != next.last_seqno
            && !self.has_hole
            && !self.torn
        {
            let (id, noted) = (next.id, next.last_seqno);
            let what = format!("it ends at operation {last}, but log {id} notes {noted}");
            self.hole(log, offset, true, what);
        }
        self.walk.end = Some((log.path.clone(), end_of_records));
        self.walk.logs.push(walked);
        Ok(())
    }

    /// Takes note of what the header of a log says about the operations before it.
    fn enter(&mut self, link: &Link<'_>) {
        let Some(header) = link.header else {
            self.has_hole = true;
            return;
        };
        match self.last {
            None => {
                self.walk.base = self.walk.base.or(Some(header.last_seqno));
                (self.last, self.has_hole) = (Some(header.last_seqno), false);
            }
            Some(last) if last < header.last_seqno => self.last = Some(header.last_seqno),
            Some(_) => {}
        }
        if self.last == Some(header.last_seqno) {
            self.has_hole = false;
        }
    }

    /// Hands a record on, if it follows on what was handed on before. `bound` is the last operation
    /// that can be in this log.
    fn record(
        &mut self,
        link: &Link<'_>,
        record: &RecordHeader,
        payload: &[u8],
        offset: u64,
        bound: Option<SeqNo>,
    ) -> Result<Taken> {
        let path = &link.log.path;
        let Some(before) = record.seqno.0.checked_sub(1).map(SeqNo) else {
            return Ok(Taken::No("a record has an impossible number".into()));
        };
        let ops = match decode_record(record, payload, offset, before) {
            Ok(ops) => ops,
            Err(Malformed::Damaged(what)) => return Ok(Taken::No(what.into())),
            Err(wrong @ Malformed::Unsupported(_)) => return Err(wrong.at(path, offset)),
        };
        if record.kind == KIND_WITNESS {
            let edit = witnessed(payload);
            self.walk.manifest_edit = self.walk.manifest_edit.max(edit);
        }
        if ops == 0 {
            // A mark, or a record of a kind that may be skipped: it says nothing about operations.
            return Ok(Taken::Yes);
        }
        let last = SeqNo(before.0 + ops);
        if self.last.is_some_and(|known| before < known) || bound.is_some_and(|bound| last > bound)
        {
            return Ok(Taken::No("a record does not follow on the operation before it".into()));
        }
        if let Some(known) = self.last.filter(|known| *known < before)
            && !self.has_hole
        {
            let what = format!("operations {} to {before} are missing in front", known.0 + 1);
            self.hole(link.log, offset, true, what);
        }
        (self.last, self.has_hole) = (Some(last), false);
        if record.kind == KIND_SKIP {
            return Ok(Taken::Yes);
        }
        let mut seqno = before;
        for batch in batches(payload) {
            for op in batch.map_err(|wrong| wrong.at(path, offset))?.ops() {
                seqno.0 += 1;
                (self.sink)(seqno, op.map_err(|wrong| wrong.at(path, offset))?)?;
            }
        }
        Ok(Taken::Yes)
    }

    /// Tells that no sound record is at `offset`, and what follows.
    fn stopped(
        &mut self,
        link: &Link<'_>,
        later: &[Link<'_>],
        offset: u64,
        resumed: Option<u64>,
        limit: Option<u64>,
        mut what: String,
    ) -> Result<()> {
        let log = link.log;
        let mut is_torn = self.torn;
        if !self.known && !self.torn {
            let sound = later.iter().filter_map(|link| Some((link.header?, link.log)));
            let sound: Vec<_> = sound.collect();
            let last = self.last.unwrap_or_default();
            // Only the salt of the header counts here.
            let header = link.header.or_else(|| {
                let salt = link.salt?;
                Some(LogHeader { id: link.id, salt, predecessor: None, last_seqno: last })
            });
            if let Some(header) = header {
                match judge(&header, log, &sound, offset, last)? {
                    Why::End => return Ok(()),
                    Why::Torn => is_torn = true,
                    Why::Damage(Error::Corruption { what: why, .. }) => what = why,
                    Why::Damage(_) => {}
                }
            }
        }
        if is_torn && !self.torn {
            self.walk.last_seqno = self.last.unwrap_or_default();
        }
        self.torn = is_torn;
        self.has_hole = true;
        let end = limit.unwrap_or(log.len);
        match resumed {
            Some(at) => what.push_str(&format!("; sound records go on at byte {at}")),
            None => what.push_str(&format!("; none follows up to byte {end}")),
        }
        self.walk.holes.push(Hole {
            file: log.path.clone(),
            offset,
            torn: is_torn,
            loses: true,
            goes_on: resumed.is_some() || later.iter().any(|link| link.salt.is_some()),
            what,
        });
        Ok(())
    }

    fn hole(&mut self, log: &LogFile, offset: u64, loses: bool, what: String) {
        let (file, torn) = (log.path.clone(), self.torn);
        self.walk.holes.push(Hole { file, offset, torn, loses, goes_on: true, what });
    }
}

/// Whether a record was taken, and if not, why.
enum Taken {
    Yes,
    No(String),
}
