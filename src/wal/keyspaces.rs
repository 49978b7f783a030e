//! What a log says about keyspaces, so that a change feed needs nothing else (FORMAT.md, section 4).
//!
//! ```text
//! all       0 · for each live keyspace: varint id · bytes name · varint last clear
//! one       1 · varint id · bytes name · varint last clear
//! dropped   2 · varint id
//! loaded    3 · varint id · varint number · bytes first key · bytes last key
//! ```
//!
//! Only the manifest counts for recovery; these records are optional and skipped there. Pure functions.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use crate::coding::{Reader, put_bytes, put_varint};
use crate::error::Malformed;
use crate::slice::Key;
use crate::types::{KeyspaceId, SeqNo};
use bytes::Bytes;

const ALL: u8 = 0;
const ONE: u8 = 1;
const DROPPED: u8 = 2;
const LOADED: u8 = 3;

/// A live keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotedKeyspace {
    pub(crate) id: KeyspaceId,
    pub(crate) name: String,
    /// The number of its last clear, as far as it is known; zero if there was none.
    pub(crate) cleared: SeqNo,
}

/// What one record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyspaceNote {
    /// These are live, and no others.
    All(Vec<NotedKeyspace>),
    /// This one was just created or cleared.
    One(NotedKeyspace),
    /// This one was just dropped.
    Dropped(KeyspaceId),
    /// Entries just came into this one past the log.
    Loaded {
        id: KeyspaceId,
        /// Their number.
        seqno: SeqNo,
        first: Key,
        last: Key,
    },
}

impl KeyspaceNote {
    /// Whether it says all that there is to say.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self, KeyspaceNote::All(_))
    }

    /// Appends the payload of the record.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            KeyspaceNote::All(keyspaces) => {
                out.push(ALL);
                for keyspace in keyspaces {
                    encode_live(keyspace, out);
                }
            }
            KeyspaceNote::One(keyspace) => {
                out.push(ONE);
                encode_live(keyspace, out);
            }
            KeyspaceNote::Dropped(id) => {
                out.push(DROPPED);
                put_varint(out, u64::from(id.0));
            }
            KeyspaceNote::Loaded { id, seqno, first, last } => {
                out.push(LOADED);
                put_varint(out, u64::from(id.0));
                put_varint(out, seqno.0);
                put_bytes(out, first);
                put_bytes(out, last);
            }
        }
    }

    /// What a payload says.
    pub(super) fn decode(payload: &[u8]) -> Result<KeyspaceNote, Malformed> {
        let mut reader = Reader::new(payload);
        let note = match reader.u8()? {
            ALL => {
                let mut keyspaces = Vec::new();
                while !reader.is_empty() {
                    keyspaces.push(decode_live(&mut reader)?);
                }
                KeyspaceNote::All(keyspaces)
            }
            ONE => KeyspaceNote::One(decode_live(&mut reader)?),
            DROPPED => KeyspaceNote::Dropped(decode_id(&mut reader)?),
            LOADED => {
                let (id, seqno) = (decode_id(&mut reader)?, SeqNo(reader.varint()?));
                let mut key = || reader.prefixed_bytes().map(Bytes::copy_from_slice).map(Key);
                let (first, last) = (key()?, key()?);
                KeyspaceNote::Loaded { id, seqno, first, last }
            }
            _ => return Err(Malformed::Unsupported("a note on keyspaces of a newer version")),
        };
        if reader.is_empty() {
            Ok(note)
        } else {
            Err(Malformed::Damaged("a note on keyspaces has bytes to spare"))
        }
    }
}

fn encode_live(keyspace: &NotedKeyspace, out: &mut Vec<u8>) {
    put_varint(out, u64::from(keyspace.id.0));
    put_bytes(out, keyspace.name.as_bytes());
    put_varint(out, keyspace.cleared.0);
}

fn decode_live(reader: &mut Reader<'_>) -> Result<NotedKeyspace, Malformed> {
    let id = decode_id(reader)?;
    let name = str::from_utf8(reader.prefixed_bytes()?)
        .map_err(|_| Malformed::Damaged("a keyspace name is not UTF-8"))?;
    let cleared = SeqNo(reader.varint()?);
    Ok(NotedKeyspace { id, name: name.to_owned(), cleared })
}

fn decode_id(reader: &mut Reader<'_>) -> Result<KeyspaceId, Malformed> {
    match u32::try_from(reader.varint()?) {
        Ok(id) => Ok(KeyspaceId(id)),
        Err(_) => Err(Malformed::Damaged("a keyspace id does not fit 32 bits")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyspace(id: u32, name: &str, cleared: u64) -> NotedKeyspace {
        NotedKeyspace { id: KeyspaceId(id), name: name.to_owned(), cleared: SeqNo(cleared) }
    }

    #[test]
    fn notes_are_read_as_they_were_written_and_other_bytes_are_refused() {
        let notes = [
            KeyspaceNote::All(Vec::new()),
            KeyspaceNote::All(vec![keyspace(0, "default", 0), keyspace(300, "ü", u64::MAX)]),
            KeyspaceNote::One(keyspace(7, "", 1 << 40)),
            KeyspaceNote::Dropped(KeyspaceId(u32::MAX)),
            KeyspaceNote::Loaded {
                id: KeyspaceId(8),
                seqno: SeqNo(1 << 40),
                first: Key(Bytes::new()),
                last: Key(Bytes::from(vec![b'k'; 300])),
            },
        ];
        for note in notes {
            let mut bytes = Vec::new();
            note.encode(&mut bytes);
            assert_eq!(KeyspaceNote::decode(&bytes), Ok(note.clone()));
            for len in 0..bytes.len() {
                // Cut between two keyspaces, a list is a shorter one.
                assert!(note.is_whole() || KeyspaceNote::decode(&bytes[..len]).is_err());
            }
            if !note.is_whole() {
                bytes.push(0);
                assert!(matches!(KeyspaceNote::decode(&bytes), Err(Malformed::Damaged(_))));
            }
        }
        assert!(matches!(KeyspaceNote::decode(&[4]), Err(Malformed::Unsupported(_))));
        assert!(matches!(KeyspaceNote::decode(&[]), Err(Malformed::Damaged(_))));
        let too_large = [&[DROPPED][..], &[0xff; 4], &[0x7f]].concat();
        assert!(matches!(KeyspaceNote::decode(&too_large), Err(Malformed::Damaged(_))));
        assert!(KeyspaceNote::decode(&[ONE, 1, 1, 0xff, 0]).is_err(), "not UTF-8");
    }
}
