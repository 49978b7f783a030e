//! The interface that every ordered source of entries offers: memtables, segments, merges of them.
//!
//! Entries are ordered by key, rising, and for one key by sequence number, falling (newest first).
//! A cursor is at one entry or at none ("not valid"). After an error it is not valid until the next
//! `seek`. Owned and `Send`, used by one thread at a time. Implemented by the memtable, segment,
//! version and iterator rooms.

use crate::error::Result;
use crate::types::{Kind, SeqNo};
use bytes::Bytes;

/// Where to go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Seek<'a> {
    /// The first entry of all.
    First,
    /// The first entry whose key is at or after this: the newest version of that key.
    AtOrAfter(&'a [u8]),
    /// The first entry whose key is after this.
    After(&'a [u8]),
    /// The last entry of all: the oldest version of the last key.
    Last,
    /// The last entry whose key is at or before this: the oldest version of that key.
    AtOrBefore(&'a [u8]),
    /// The last entry whose key is before this.
    Before(&'a [u8]),
}

/// A position in an ordered sequence of entries.
pub(crate) trait Cursor: Send {
    /// Goes there, from wherever it is; to none if there is no such entry.
    fn seek(&mut self, to: Seek<'_>) -> Result<()>;
    /// Goes to the following entry, or to none. Does nothing when not valid.
    fn next(&mut self) -> Result<()>;
    /// Goes to the preceding entry, or to none. Does nothing when not valid.
    fn prev(&mut self) -> Result<()>;
    /// Whether it is at an entry. The methods below may be called only then; otherwise they give
    /// empty or arbitrary values, but never panic.
    fn valid(&self) -> bool;
    /// The entry's key.
    fn key(&self) -> &[u8];
    /// The entry's sequence number.
    fn seqno(&self) -> SeqNo;
    /// What the entry says.
    fn kind(&self) -> Kind;
    /// The key, sharing the source's memory.
    fn key_bytes(&self) -> Bytes;
    /// The value, sharing the source's memory. Empty for a tombstone.
    fn value(&self) -> Bytes;
}
