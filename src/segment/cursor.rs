//! Walks over the entries of a segment, in both directions.
//!
//! Keys and values handed out are views into the current block. A walk that goes on over several
//! blocks that are not cached reads ahead: in windows that grow to 256 KiB, past the cache but for what
//! room is free there. A cursor for long scans does so from its first block, and then a view keeps
//! its window alive; else each block is copied out of the window, and a view keeps its block.
//!
//! Blocks are checked one by one, when the walk comes to them, never for being in a window: damage is
//! met by those who ask for its keys. With bounds, a block that lies beyond is not looked at.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::Block;
use super::ahead::{Direction, Window};
use super::block::Entry;
use super::index::Handle;
use super::reader::{Position, SegmentReader};
use super::step::entry_at;
use crate::cursor::{Bounds, Cursor, Seek, Shown};
use crate::error::{Error, Result};
use crate::types::{Kind, SeqNo};
use bytes::Bytes;
use std::sync::Arc;

/// How a cursor reads data blocks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CursorOptions {
    /// Put the blocks that were read into the cache; those that were read ahead only where that has
    /// free room.
    pub(crate) fill_cache: bool,
    /// For long scans: read ahead from the first block on, do not fill the cache.
    pub(crate) readahead: bool,
}

/// How many bytes ahead a walk asks for memory.
const AHEAD: usize = 512;

/// A cursor over all versions of all keys of a segment. Owned.
pub(crate) struct SegmentCursor {
    reader: SegmentReader,
    options: CursorOptions,
    /// Blocks that hold no key within these are not read.
    bounds: Option<Arc<Bounds>>,
    at: Option<At>,
    /// Where the seek that was begun leads, and the block there if it is cached.
    aimed: Option<Aimed>,
    window: Window,
}

#[derive(Default)]
struct Aimed {
    position: Option<Position>,
    block: Option<Arc<Block>>,
    /// Whether the block's memory was asked for.
    asked: bool,
}

struct At {
    position: Position,
    block: Arc<Block>,
    i: usize,
    entry: Entry,
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
        let window = Window::default();
        SegmentCursor { reader, options, bounds: None, at: None, aimed: None, window }
    }

    /// Shows no more than these bounds need: beyond them, it may or may not show entries.
    pub(crate) fn within(mut self, bounds: Arc<Bounds>) -> SegmentCursor {
        self.bounds = Some(bounds);
        self
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

    /// The block where a seek leads.
    fn locate(&self, to: Seek<'_>) -> Result<Option<Position>> {
        // For a place before a key: the block that holds it is the one where the key would be or
        // the one in front; behind the last separator there is no block, and all is before.
        let or_last = |found: Option<Position>| match found {
            Some(position) => Ok(Some(position)),
            None => self.reader.edge(true),
        };
        match to {
            Seek::First => self.reader.edge(false),
            Seek::Last => self.reader.edge(true),
            Seek::AtOrAfter(key) => self.reader.find(key, false),
            Seek::After(key) => self.reader.find(key, true),
            Seek::Before(key) => or_last(self.reader.find(key, false)?),
            Seek::AtOrBefore(key) => or_last(self.reader.find(key, true)?),
        }
    }

    fn load(&mut self, handle: &Handle, direction: Direction) -> Result<Arc<Block>> {
        let CursorOptions { fill_cache, readahead } = self.options;
        if !readahead {
            if let Some(block) = self.reader.cached_block(handle) {
                return Ok(block);
            }
            if !self.window.goes_on(direction) {
                return self.reader.read_block(handle, fill_cache);
            }
        }
        let bytes = self.window.take(&self.reader, handle, direction, readahead)?;
        let block = Arc::new(self.reader.decode_block(handle, bytes)?);
        if fill_cache && !readahead {
            self.reader.offer_block(handle, &block);
        }
        Ok(block)
    }

    /// The block after or before the one at this position, unless it lies beyond the bounds.
    fn neighbour(
        &self,
        position: Position,
        block: &Block,
        direction: Direction,
    ) -> Result<Option<Position>> {
        match (direction, &self.bounds) {
            (Direction::Forward, bounds) => {
                let last = || block.key(block.len() - 1);
                if bounds.as_ref().is_some_and(|bounds| position.ends(bounds, last())) {
                    return Ok(None);
                }
                self.reader.following(position)
            }
            (Direction::Backward, bounds) => {
                let before = self.reader.preceding(position)?;
                let is_within =
                    |before: &Position| bounds.as_ref().is_none_or(|bounds| !before.begins(bounds));
                Ok(before.filter(is_within))
            }
        }
    }

    /// Goes to a place in the block at `position`, or in the neighbouring one if it is there.
    fn go(
        &mut self,
        position: Option<Position>,
        loaded: Option<Arc<Block>>,
        place: Place<'_>,
    ) -> Result<()> {
        self.at = None;
        let direction = place.direction();
        let (mut position, mut loaded, mut place) = (position, loaded, place);
        loop {
            let Some(here) = position else { return Ok(()) };
            let Some(handle) = here.handle() else { return Ok(()) };
            let block = match loaded.take() {
                Some(block) => block,
                None => {
                    let block = self.load(&handle, direction)?;
                    if !matches!(place, Place::First | Place::Last) {
                        block.foresee_search();
                    }
                    block
                }
            };
            if let Some(i) = place.find(&block) {
                block.foresee_walk(i, direction == Direction::Forward);
                self.at = block.entry(i).map(|entry| At { position: here, block, i, entry });
                return Ok(());
            }
            position = self.neighbour(here, &block, direction)?;
            place = if direction == Direction::Forward { Place::First } else { Place::Last };
        }
    }

    /// Goes on into the neighbouring block.
    #[cold]
    #[inline(never)]
    fn turn_page(&mut self, direction: Direction) -> Result<()> {
        let Some(at) = self.at.take() else { return Ok(()) };
        let place = if direction == Direction::Forward { Place::First } else { Place::Last };
        self.window.walked(direction);
        let next = self.neighbour(at.position, &at.block, direction)?;
        self.go(next, None, place)?;
        // This is a walk: the block behind will probably be wanted too.
        if let Some(at) = &self.at {
            let behind = match direction {
                Direction::Forward => Some(at.position.block + 1),
                Direction::Backward => at.position.block.checked_sub(1),
            };
            if let Some(handle) = behind.and_then(|block| at.position.index.block(block)) {
                self.reader.foresee_block(&handle);
            }
        }
        Ok(())
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

impl<'a> Place<'a> {
    fn of(seek: Seek<'a>) -> Self {
        match seek {
            Seek::First => Place::First,
            Seek::Last => Place::Last,
            Seek::AtOrAfter(key) => Place::AtOrAfter(key),
            Seek::After(key) => Place::After(key),
            Seek::Before(key) => Place::Before(key),
            Seek::AtOrBefore(key) => Place::AtOrBefore(key),
        }
    }

    fn direction(self) -> Direction {
        match self {
            Place::Before(_) | Place::AtOrBefore(_) | Place::Last => Direction::Backward,
            _ => Direction::Forward,
        }
    }

    /// The entry; `None` if it is in the neighbouring block.
    fn find(self, block: &Block) -> Option<usize> {
        match self {
            Place::First => Some(0),
            Place::Last => block.len().checked_sub(1),
            Place::AtOrAfter(key) => Some(block.lower_bound(key)).filter(|i| *i < block.len()),
            Place::After(key) => Some(block.upper_bound(key)).filter(|i| *i < block.len()),
            Place::Before(key) => block.lower_bound(key).checked_sub(1),
            Place::AtOrBefore(key) => block.upper_bound(key).checked_sub(1),
        }
    }
}

impl Cursor for SegmentCursor {
    fn aim(&mut self, to: Seek<'_>) -> Result<()> {
        self.aimed = None;
        let position = self.locate(to)?;
        if let Some(handle) = position.as_ref().and_then(Position::handle) {
            self.reader.approach_block(&handle);
        }
        self.aimed = Some(Aimed { position, ..Aimed::default() });
        Ok(())
    }

    fn meet(&mut self) {
        let Some(aimed) = &mut self.aimed else { return };
        let Some(handle) = aimed.position.as_ref().and_then(Position::handle) else { return };
        if !aimed.asked {
            aimed.asked = true;
            self.reader.foresee_search(&handle);
        } else if aimed.block.is_none() {
            aimed.block = self.reader.cached_block(&handle);
            if let Some(block) = &aimed.block {
                block.foresee_search();
            }
        }
    }

    fn seek(&mut self, to: Seek<'_>) -> Result<()> {
        self.at = None;
        self.window.restart();
        let (position, loaded) = match self.aimed.take() {
            Some(aimed) => (aimed.position, aimed.block),
            None => {
                let position = self.locate(to)?;
                if let Some(handle) = position.as_ref().and_then(Position::handle) {
                    self.reader.foresee_search(&handle);
                }
                (position, None)
            }
        };
        self.go(position, loaded, Place::of(to))
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        let Some(at) = &mut self.at else { return Ok(()) };
        if at.i + 1 < at.block.len()
            && let Some(entry) = entry_at(&at.block, at.entry.value.end)
        {
            at.i += 1;
            at.entry = entry;
            return Ok(());
        }
        self.turn_page(Direction::Forward)
    }

    #[inline]
    fn prev(&mut self) -> Result<()> {
        let Some(at) = &mut self.at else { return Ok(()) };
        if let Some(i) = at.i.checked_sub(1)
            && let Some(entry) = at.block.entry(i)
        {
            at.i = i;
            at.entry = entry;
            return Ok(());
        }
        self.turn_page(Direction::Backward)
    }

    #[inline]
    fn stride(&mut self, forward: bool) -> Option<Shown<'_>> {
        let at = self.at.as_mut()?;
        let (i, entry) = if forward {
            let i = at.i + 1;
            (i, if i < at.block.len() { entry_at(&at.block, at.entry.value.end) } else { None })
        } else {
            let i = at.i.checked_sub(1)?;
            (i, at.block.entry(i))
        };
        let entry = entry.filter(|entry| !entry.same_key)?;
        at.block.foresee(entry.value.end + AHEAD);
        let Entry { seqno, kind, .. } = entry;
        (at.i, at.entry) = (i, entry);
        Some(Shown { key: at.block.view(&at.entry.key), seqno, kind })
    }

    fn unstride(&mut self, forward: bool) {
        if let Some(at) = &mut self.at
            && let Some(i) = if forward { at.i.checked_sub(1) } else { at.i.checked_add(1) }
            && let Some(entry) = at.block.entry(i)
        {
            (at.i, at.entry) = (i, entry);
        }
    }

    #[inline]
    fn valid(&self) -> bool {
        self.at.is_some()
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.at.as_ref().map_or(&[], |at| at.block.view(&at.entry.key))
    }

    #[inline]
    fn seqno(&self) -> SeqNo {
        self.at.as_ref().map_or(SeqNo::ZERO, |at| at.entry.seqno)
    }

    #[inline]
    fn kind(&self) -> Kind {
        self.at.as_ref().map_or(Kind::Delete, |at| at.entry.kind)
    }

    fn key_bytes(&self) -> Bytes {
        self.at.as_ref().map_or_else(Bytes::new, |at| at.block.share(&at.entry.key))
    }

    fn value(&self) -> Bytes {
        self.at.as_ref().map_or_else(Bytes::new, |at| at.block.share(&at.entry.value))
    }

    #[inline]
    fn value_ref(&self) -> &[u8] {
        self.at.as_ref().map_or(&[], |at| at.block.view(&at.entry.value))
    }

    #[inline]
    fn shown(&self) -> Shown<'_> {
        let none = Shown { key: &[], seqno: SeqNo::ZERO, kind: Kind::Delete };
        self.at.as_ref().map_or(none, |At { block, entry, .. }| Shown {
            key: block.view(&entry.key),
            seqno: entry.seqno,
            kind: entry.kind,
        })
    }

    #[inline]
    fn lend(&self) -> (&[u8], &[u8]) {
        let Some(At { block, entry, .. }) = &self.at else { return (&[], &[]) };
        // The value stands right behind the key.
        let both = block.view(&(entry.key.start..entry.value.end));
        both.split_at_checked(entry.key.len()).unwrap_or_default()
    }

    #[inline]
    fn is_newest(&self) -> bool {
        !self.same_key()
    }
}
