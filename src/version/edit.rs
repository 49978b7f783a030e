//! Edits of the manifest and their bytes (FORMAT.md, section 5).
//!
//! ```text
//! edit    change · change · …
//! change  u8 kind · varint length · body
//! ```

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use crate::coding::{Reader, put_bytes, put_u64, put_varint};
use crate::deletes::KeySpan;
use crate::error::Malformed;
use crate::slice::Key;
use crate::sync::Arc;
use crate::types::{KeyspaceId, LogId, MAX_KEY_LEN, SegmentId, SeqNo};
use bytes::Bytes;
use std::fmt;

/// Change kinds with this bit may be skipped by a reader that does not know them.
const OPTIONAL: u8 = 0x80;

const CREATE_KEYSPACE: u8 = 1;
const DROP_KEYSPACE: u8 = 2;
const CLEAR: u8 = 3;
const ADD_SEGMENT: u8 = 4;
const REMOVE_SEGMENT: u8 = 5;
const LOG_FLOOR: u8 = 6;
const FLUSHED: u8 = 7;
const NEXT: u8 = 8;
const FORGET_CLEARS: u8 = 9;
const SET_OPTIONS: u8 = 10;
const ADD_RANGE_DELETES: u8 = 11;
const FORGET_RANGE_DELETES: u8 = 12;

const MERGE_OPERATOR: u8 = 1;
const DEFAULT_TTL: u8 = 2;
/// Who does not know it reads what was written with it all the same, or is told so by an entry.
const SEPARATE_ABOVE: u8 = OPTIONAL | 3;

/// Numbers the sorted runs of a database. Within a keyspace and level, the run with the greater
/// number is newer. Never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RunNo(pub(crate) u64);

impl fmt::Display for RunNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A live segment. Keyspace and sequence numbers override what the segment's properties say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentMeta {
    pub(crate) id: SegmentId,
    pub(crate) keyspace: KeyspaceId,
    /// Zero is the newest level.
    pub(crate) level: u8,
    /// The sorted run that it belongs to.
    pub(crate) run: RunNo,
    /// In bytes.
    pub(crate) file_len: u64,
    /// The checksum in the segment's footer, by which a swapped file is noticed.
    pub(crate) checksum: u64,
    /// Entries of all kinds, at least one.
    pub(crate) entries: u64,
    /// Point tombstones among them.
    pub(crate) tombstones: u64,
    pub(crate) smallest: SeqNo,
    pub(crate) largest: SeqNo,
    pub(crate) first_key: Key,
    pub(crate) last_key: Key,
}

/// What a keyspace is opened with, because what is written in it means nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyspaceSettings {
    /// The name of its merge operator, of at least one byte.
    pub(crate) merge_operator: Option<String>,
    /// How long what is written lives unless it says otherwise, in milliseconds; 0: for ever.
    pub(crate) default_ttl_ms: u64,
    /// Above how many bytes values go into value segments; `None`: none do.
    pub(crate) separate_above: Option<u64>,
}

impl KeyspaceSettings {
    fn encode(&self, out: &mut Vec<u8>) {
        if let Some(name) = &self.merge_operator {
            out.push(MERGE_OPERATOR);
            put_bytes(out, name.as_bytes());
        }
        if self.default_ttl_ms != 0 {
            out.push(DEFAULT_TTL);
            put_bytes(out, &self.default_ttl_ms.to_le_bytes());
        }
        if let Some(above) = self.separate_above {
            out.push(SEPARATE_ABOVE);
            put_bytes(out, &above.to_le_bytes());
        }
    }

    fn decode(body: &mut Reader<'_>) -> Result<Self, Malformed> {
        let mut settings = KeyspaceSettings::default();
        let mut last = 0;
        while !body.is_empty() {
            let id = body.u8()?;
            let value = body.prefixed_bytes()?;
            if id <= last {
                return Err(Malformed::Damaged("the options of a keyspace are out of order"));
            }
            last = id;
            match id {
                MERGE_OPERATOR => {
                    let name = std::str::from_utf8(value).ok().filter(|name| !name.is_empty());
                    let name = name.ok_or(Malformed::Damaged("a merge operator has no name"))?;
                    settings.merge_operator = Some(name.to_owned());
                }
                DEFAULT_TTL => {
                    let ttl = value.try_into().map(u64::from_le_bytes).ok().filter(|ttl| *ttl > 0);
                    settings.default_ttl_ms =
                        ttl.ok_or(Malformed::Damaged("a time to live is not a number above 0"))?;
                }
                SEPARATE_ABOVE => {
                    let above = value.try_into().map(u64::from_le_bytes).map_err(|_| {
                        Malformed::Damaged("a length above which values are separated is none")
                    })?;
                    settings.separate_above = Some(above);
                }
                _ if id & OPTIONAL != 0 => {}
                _ => {
                    return Err(Malformed::Unsupported(
                        "an option of a keyspace that a newer version knows",
                    ));
                }
            }
        }
        Ok(settings)
    }
}

/// One step from a state of the database to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    CreateKeyspace {
        id: KeyspaceId,
        name: String,
    },
    /// Drops the keyspace and removes its segments.
    DropKeyspace(KeyspaceId),
    /// Hides the keyspace's entries up to this number from readers at or after it.
    Clear {
        id: KeyspaceId,
        seqno: SeqNo,
    },
    AddSegment(Arc<SegmentMeta>),
    RemoveSegment(SegmentId),
    /// Logs before this one are not needed.
    LogFloor(LogId),
    /// Every operation up to this one is in segments, or was dropped.
    Flushed(SeqNo),
    /// No number below these is used for anything new.
    Next {
        segment: SegmentId,
        log: LogId,
        keyspace: KeyspaceId,
        run: RunNo,
    },
    /// Nothing is left that the keyspace's clears up to this number hide.
    ForgetClears {
        id: KeyspaceId,
        seqno: SeqNo,
    },
    /// These hide what is older and within them.
    AddRangeDeletes {
        id: KeyspaceId,
        deletes: Vec<(SeqNo, KeySpan)>,
    },
    /// Nothing is left that these hide.
    ForgetRangeDeletes {
        id: KeyspaceId,
        seqnos: Vec<SeqNo>,
    },
    /// From now on these are the keyspace's.
    SetOptions {
        id: KeyspaceId,
        settings: KeyspaceSettings,
    },
}

/// Changes that happen together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Edit {
    /// In the order in which they apply.
    pub(crate) changes: Vec<Change>,
}

impl Edit {
    /// Whether it creates, drops or clears a keyspace, gives it an operator, without which a log cannot
    /// be read, or adds segments with what was in no log, which come behind the flushed number: what its
    /// other changes do, reads do not see.
    pub(super) fn is_seen(&self) -> bool {
        let mut is_flushed = false;
        let is_seen = |change: &Change| match change {
            Change::CreateKeyspace { .. }
            | Change::DropKeyspace(_)
            | Change::Clear { .. }
            | Change::SetOptions { .. } => true,
            Change::AddSegment(_) => is_flushed,
            Change::Flushed(_) => {
                is_flushed = true;
                false
            }
            Change::RemoveSegment(_)
            | Change::LogFloor(_)
            | Change::Next { .. }
            | Change::ForgetClears { .. }
            | Change::AddRangeDeletes { .. }
            | Change::ForgetRangeDeletes { .. } => false,
        };
        self.changes.iter().any(is_seen)
    }

    /// Appends the edit's bytes.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        for change in &self.changes {
            body.clear();
            out.push(change.encode(&mut body));
            put_bytes(out, &body);
        }
    }

    /// Decodes all of `bytes`. Optional changes that this version does not know are left out.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Edit, Malformed> {
        let mut reader = Reader::new(bytes);
        let mut changes = Vec::new();
        while !reader.is_empty() {
            let kind = reader.u8()?;
            let mut body = Reader::new(reader.prefixed_bytes()?);
            if kind & OPTIONAL != 0 {
                continue;
            }
            changes.push(Change::decode(kind, &mut body)?);
            if !body.is_empty() {
                return Err(Malformed::Damaged("a change has bytes to spare"));
            }
        }
        Ok(Edit { changes })
    }
}

impl Change {
    /// Appends the body and returns the kind.
    fn encode(&self, out: &mut Vec<u8>) -> u8 {
        match self {
            Change::CreateKeyspace { id, name } => {
                put_varint(out, u64::from(id.0));
                put_bytes(out, name.as_bytes());
                CREATE_KEYSPACE
            }
            Change::DropKeyspace(id) => {
                put_varint(out, u64::from(id.0));
                DROP_KEYSPACE
            }
            Change::Clear { id, seqno } => {
                put_varint(out, u64::from(id.0));
                put_varint(out, seqno.0);
                CLEAR
            }
            Change::AddSegment(segment) => {
                segment.encode(out);
                ADD_SEGMENT
            }
            Change::RemoveSegment(id) => {
                put_varint(out, id.0);
                REMOVE_SEGMENT
            }
            Change::LogFloor(id) => {
                put_varint(out, id.0);
                LOG_FLOOR
            }
            Change::Flushed(seqno) => {
                put_varint(out, seqno.0);
                FLUSHED
            }
            Change::Next { segment, log, keyspace, run } => {
                put_varint(out, segment.0);
                put_varint(out, log.0);
                put_varint(out, u64::from(keyspace.0));
                put_varint(out, run.0);
                NEXT
            }
            Change::ForgetClears { id, seqno } => {
                put_varint(out, u64::from(id.0));
                put_varint(out, seqno.0);
                FORGET_CLEARS
            }
            Change::AddRangeDeletes { id, deletes } => {
                put_varint(out, u64::from(id.0));
                for (seqno, span) in deletes {
                    put_varint(out, seqno.0);
                    put_bytes(out, &span.start);
                    put_bytes(out, &span.end);
                }
                ADD_RANGE_DELETES
            }
            Change::ForgetRangeDeletes { id, seqnos } => {
                put_varint(out, u64::from(id.0));
                for seqno in seqnos {
                    put_varint(out, seqno.0);
                }
                FORGET_RANGE_DELETES
            }
            Change::SetOptions { id, settings } => {
                put_varint(out, u64::from(id.0));
                settings.encode(out);
                SET_OPTIONS
            }
        }
    }

    fn decode(kind: u8, body: &mut Reader<'_>) -> Result<Change, Malformed> {
        Ok(match kind {
            CREATE_KEYSPACE => {
                let id = keyspace_id(body)?;
                let name = std::str::from_utf8(body.prefixed_bytes()?)
                    .map_err(|_| Malformed::Damaged("a keyspace name is not UTF-8"))?;
                Change::CreateKeyspace { id, name: name.to_owned() }
            }
            DROP_KEYSPACE => Change::DropKeyspace(keyspace_id(body)?),
            CLEAR => Change::Clear { id: keyspace_id(body)?, seqno: SeqNo(body.varint()?) },
            ADD_SEGMENT => Change::AddSegment(Arc::new(SegmentMeta::decode(body)?)),
            REMOVE_SEGMENT => Change::RemoveSegment(SegmentId(body.varint()?)),
            LOG_FLOOR => Change::LogFloor(LogId(body.varint()?)),
            FLUSHED => Change::Flushed(SeqNo(body.varint()?)),
            NEXT => Change::Next {
                segment: SegmentId(body.varint()?),
                log: LogId(body.varint()?),
                keyspace: keyspace_id(body)?,
                run: RunNo(body.varint()?),
            },
            FORGET_CLEARS => {
                Change::ForgetClears { id: keyspace_id(body)?, seqno: SeqNo(body.varint()?) }
            }
            ADD_RANGE_DELETES => {
                let (id, mut deletes) = (keyspace_id(body)?, Vec::new());
                while !body.is_empty() {
                    let seqno = SeqNo(body.varint()?);
                    let start = key(body)?.0;
                    // It may lie right behind the longest key.
                    let end = Bytes::copy_from_slice(body.prefixed_bytes()?);
                    let span = KeySpan::new(start, end);
                    let span = span.ok_or(Malformed::Damaged("a range tombstone is empty"))?;
                    deletes.push((seqno, span));
                }
                Change::AddRangeDeletes { id, deletes }
            }
            FORGET_RANGE_DELETES => {
                let (id, mut seqnos) = (keyspace_id(body)?, Vec::new());
                while !body.is_empty() {
                    seqnos.push(SeqNo(body.varint()?));
                }
                Change::ForgetRangeDeletes { id, seqnos }
            }
            SET_OPTIONS => Change::SetOptions {
                id: keyspace_id(body)?,
                settings: KeyspaceSettings::decode(body)?,
            },
            _ => {
                return Err(Malformed::Unsupported(
                    "a change of a kind that a newer version writes",
                ));
            }
        })
    }
}

impl SegmentMeta {
    fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.id.0);
        put_varint(out, u64::from(self.keyspace.0));
        out.push(self.level);
        put_varint(out, self.run.0);
        put_varint(out, self.file_len);
        put_u64(out, self.checksum);
        put_varint(out, self.entries);
        put_varint(out, self.tombstones);
        put_varint(out, self.smallest.0);
        put_varint(out, self.largest.0);
        put_bytes(out, &self.first_key);
        put_bytes(out, &self.last_key);
    }

    fn decode(body: &mut Reader<'_>) -> Result<SegmentMeta, Malformed> {
        Ok(SegmentMeta {
            id: SegmentId(body.varint()?),
            keyspace: keyspace_id(body)?,
            level: body.u8()?,
            run: RunNo(body.varint()?),
            file_len: body.varint()?,
            checksum: body.u64()?,
            entries: body.varint()?,
            tombstones: body.varint()?,
            smallest: SeqNo(body.varint()?),
            largest: SeqNo(body.varint()?),
            first_key: key(body)?,
            last_key: key(body)?,
        })
    }
}

fn keyspace_id(body: &mut Reader<'_>) -> Result<KeyspaceId, Malformed> {
    match u32::try_from(body.varint()?) {
        Ok(id) => Ok(KeyspaceId(id)),
        Err(_) => Err(Malformed::Damaged("a keyspace id does not fit 32 bits")),
    }
}

fn key(body: &mut Reader<'_>) -> Result<Key, Malformed> {
    let key = body.prefixed_bytes()?;
    if key.len() > MAX_KEY_LEN {
        return Err(Malformed::Damaged("a key is longer than 65535 bytes"));
    }
    Ok(Key(Bytes::copy_from_slice(key)))
}
