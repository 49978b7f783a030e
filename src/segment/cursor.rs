//! Walks over the entries of a segment, in both directions.
//!
//! Keys and values handed out are views into the current block. With read-ahead, blocks come out
//! of windows that grow from one block to 256 KiB while the walk stays sequential, bypassing the
//! cache; a view then keeps its window alive.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::Block;
use super::block::Entry;
use super::index::Handle;
use super::reader::{Position, SegmentReader};
use crate::cursor::{Cursor, Seek};
use crate::error::{Error, Result};
use crate::types::{Kind, SeqNo};
use bytes::Bytes;
use std::sync::Arc;

/// How a cursor reads data blocks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CursorOptions {
    /// Put the blocks that were read into the cache. Without effect on `readahead`.
    pub(crate) fill_cache: bool,
    /// For long scans: read many blocks at once, past the cache.
    pub(crate) readahead: bool,
}

const WINDOW_FIRST: u64 = 16 << 10;
const WINDOW_MAX: u64 = 256 << 10;

/// A cursor over all versions of all keys of a segment. Owned.
pub(crate) struct SegmentCursor {
    reader: SegmentReader,
    options: CursorOptions,
    at: Option<At>,
    window: Window,
}

struct At {
    position: Position,
    block: Arc<Block>,
    i: usize,
    entry: Entry,
}

/// Bytes read ahead (or, walking backwards, behind).
#[derive(Default)]
struct Window {
    offset: u64,
    bytes: Bytes,
    /// How much the next read takes; 0: just one block.
    next_len: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

impl std::fmt::Debug for SegmentCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentCursor")
            .field("reader", &self.reader)
            .field("valid", &self.at.is_some())
            .finish_non_exhaustive()
    }
}

impl SegmentCursor {
    pub(super) fn new(reader: SegmentReader, options: CursorOptions) -> SegmentCursor {
        SegmentCursor { reader, options, at: None, window: Window::default() }
    }

    /// Whether the entry is not the newest version of its key.
    pub(super) fn same_key(&self) -> bool {
        self.at.as_ref().is_some_and(|at| at.entry.same_key)
    }

    /// What to report where the order of keys is not what it must be.
    pub(super) fn out_of_order(&self) -> Error {
        let handle = self.at.as_ref().and_then(|at| at.position.handle());
        let offset = handle.map_or(0, |handle| handle.offset());
        Error::corruption(self.reader.path(), offset, "its keys are out of order")
    }

    fn load(&mut self, handle: &Handle, direction: Direction) -> Result<Arc<Block>> {
        if !self.options.readahead {
            return self.reader.load_block(handle, self.options.fill_cache);
        }
        let (offset, len) = (handle.offset(), handle.len());
        if self.window.slice(offset, len).is_none() {
            let data_end = self.reader.data_bytes();
            let read_len = self.window.next_len.max(len);
            let start = match direction {
                Direction::Forward => offset,
                Direction::Backward => (offset + len).saturating_sub(read_len),
            };
            let read_len = read_len.min(data_end.saturating_sub(start)).max(len);
            self.window.bytes = Bytes::from(self.reader.read(start, read_len)?);
            self.window.offset = start;
            self.window.next_len = (self.window.next_len * 2).clamp(WINDOW_FIRST, WINDOW_MAX);
        }
        let bytes = self.window.slice(offset, len).unwrap_or_default();
        self.reader.decode_block(handle, &bytes).map(Arc::new)
    }

    /// Goes to entry `i` of the block at `position`, if both are there.
    fn go(&mut self, position: Option<Position>, place: Place<'_>) -> Result<()> {
        self.at = None;
        let Some(position) = position else { return Ok(()) };
        let Some(handle) = position.handle() else { return Ok(()) };
        let direction = match place {
            Place::Before(_) | Place::AtOrBefore(_) | Place::Last => Direction::Backward,
            _ => Direction::Forward,
        };
        let block = self.load(&handle, direction)?;
        // `None`: the entry is in the neighbouring block.
        let i = match place {
            Place::First => Some(0),
            Place::Last => block.len().checked_sub(1),
            Place::AtOrAfter(key) => Some(block.lower_bound(key)).filter(|i| *i < block.len()),
            Place::After(key) => Some(block.upper_bound(key)).filter(|i| *i < block.len()),
            Place::Before(key) => block.lower_bound(key).checked_sub(1),
            Place::AtOrBefore(key) => block.upper_bound(key).checked_sub(1),
        };
        match i {
            Some(i) => {
                self.at = block.entry(i).map(|entry| At { position, block, i, entry });
                Ok(())
            }
            None => {
                let (next, place) = match direction {
                    Direction::Forward => (self.reader.following(position)?, Place::First),
                    Direction::Backward => (self.reader.preceding(position)?, Place::Last),
                };
                if next.is_none() { Ok(()) } else { self.go(next, place) }
            }
        }
    }

    fn step(&mut self, direction: Direction) -> Result<()> {
        let Some(mut at) = self.at.take() else { return Ok(()) };
        let i = match direction {
            Direction::Forward => Some(at.i + 1).filter(|i| *i < at.block.len()),
            Direction::Backward => at.i.checked_sub(1),
        };
        if let Some(i) = i {
            if let Some(entry) = at.block.entry(i) {
                at.i = i;
                at.entry = entry;
                self.at = Some(at);
            }
            return Ok(());
        }
        match direction {
            Direction::Forward => {
                let next = self.reader.following(at.position)?;
                self.go(next, Place::First)
            }
            Direction::Backward => {
                let next = self.reader.preceding(at.position)?;
                self.go(next, Place::Last)
            }
        }
    }
}

/// A place within a block.
#[derive(Clone, Copy)]
enum Place<'a> {
    First,
    Last,
    AtOrAfter(&'a [u8]),
    After(&'a [u8]),
    Before(&'a [u8]),
    AtOrBefore(&'a [u8]),
}

impl Window {
    fn slice(&self, offset: u64, len: u64) -> Option<Bytes> {
        let start = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        (end <= self.bytes.len()).then(|| self.bytes.slice(start..end))
    }
}

impl Cursor for SegmentCursor {
    fn seek(&mut self, to: Seek<'_>) -> Result<()> {
        self.at = None;
        self.window.next_len = 0;
        // For a place before a key: the block that holds it is the one where the key would be or
        // the one in front; behind the last separator there is no block, and all is before.
        let or_last = |reader: &SegmentReader, found: Option<Position>| match found {
            Some(position) => Ok(Some(position)),
            None => reader.edge(true),
        };
        let (position, place) = match to {
            Seek::First => (self.reader.edge(false)?, Place::First),
            Seek::Last => (self.reader.edge(true)?, Place::Last),
            Seek::AtOrAfter(key) => (self.reader.find(key, false)?, Place::AtOrAfter(key)),
            Seek::After(key) => (self.reader.find(key, true)?, Place::After(key)),
            Seek::Before(key) => {
                (or_last(&self.reader, self.reader.find(key, false)?)?, Place::Before(key))
            }
            Seek::AtOrBefore(key) => {
                (or_last(&self.reader, self.reader.find(key, true)?)?, Place::AtOrBefore(key))
            }
        };
        self.go(position, place)
    }

    fn next(&mut self) -> Result<()> {
        self.step(Direction::Forward)
    }

    fn prev(&mut self) -> Result<()> {
        self.step(Direction::Backward)
    }

    fn valid(&self) -> bool {
        self.at.is_some()
    }

    fn key(&self) -> &[u8] {
        self.at.as_ref().map_or(&[], |at| at.block.view(&at.entry.key))
    }

    fn seqno(&self) -> SeqNo {
        self.at.as_ref().map_or(SeqNo::ZERO, |at| at.entry.seqno)
    }

    fn kind(&self) -> Kind {
        self.at.as_ref().map_or(Kind::Delete, |at| at.entry.kind)
    }

    fn key_bytes(&self) -> Bytes {
        self.at.as_ref().map_or_else(Bytes::new, |at| at.block.share(&at.entry.key))
    }

    fn value(&self) -> Bytes {
        self.at.as_ref().map_or_else(Bytes::new, |at| at.block.share(&at.entry.value))
    }
}
