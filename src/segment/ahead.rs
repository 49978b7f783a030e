//! Reading ahead of a walk over blocks (or, walking backwards, behind it).
//!
//! A [`Window`] notices a walk: blocks in a row, in one direction, of which several were not cached.
//! Then it reads many at once. It only reads; what it gives is checked block by block by its caller,
//! the segment cursor. Where a whole window cannot be read, it falls back to the one block asked for,
//! so that a bad place on the disk costs only the blocks on it.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::block::Stored;
use super::index::Handle;
use super::reader::SegmentReader;
use crate::error::Result;
use bytes::Bytes;
use std::ops::Range;

/// After so many blocks in a row that were not cached, a walk is a scan.
const MISSES_BEFORE: u32 = 3;
const WINDOW_FIRST: u64 = 16 << 10;
const WINDOW_MAX: u64 = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Forward,
    Backward,
}

/// See the module's text.
#[derive(Default)]
pub(super) struct Window {
    offset: u64,
    bytes: Bytes,
    /// How much the next read takes; 0: just one block.
    next_len: u64,
    /// Blocks in a row, in the direction of the walk, that the cache did not have.
    misses: u32,
    backward: bool,
}

impl Window {
    /// Hears of a seek: what follows is another walk. What was read stays, since it may hold that too.
    pub(super) fn restart(&mut self) {
        (self.next_len, self.misses) = (0, 0);
    }

    /// Hears that the walk goes on into a neighbouring block.
    pub(super) fn walked(&mut self, direction: Direction) {
        let backward = direction == Direction::Backward;
        if self.backward != backward {
            self.restart();
            self.backward = backward;
        }
    }

    /// Hears that a block was not cached. Whether to read ahead.
    pub(super) fn goes_on(&mut self, direction: Direction) -> bool {
        self.walked(direction);
        self.misses = self.misses.saturating_add(1);
        self.misses > MISSES_BEFORE
    }

    /// The stored bytes of a block, from the window or from the file. `shared`: a view of the window
    /// may be kept.
    pub(super) fn take(
        &mut self,
        reader: &SegmentReader,
        handle: &Handle,
        direction: Direction,
        shared: bool,
    ) -> Result<Stored<'_>> {
        let (offset, len) = (handle.offset(), handle.len());
        if self.range(offset, len).is_some() {
            return Ok(self.hand_out(offset, len, shared));
        }
        let wanted = self.next_len.max(len);
        let start = match direction {
            Direction::Forward => offset,
            Direction::Backward => (offset + len).saturating_sub(wanted),
        };
        let wanted = wanted.min(reader.data_bytes().saturating_sub(start)).max(len);
        self.next_len = (self.next_len * 2).clamp(WINDOW_FIRST, WINDOW_MAX);
        if wanted > len {
            match self.read(reader, start, wanted) {
                Ok(()) => return Ok(self.hand_out(offset, len, shared)),
                Err(_) => self.next_len = 0, // Whether this block is readable shows below.
            }
        }
        Ok(Stored::Own(reader.read_space(offset, len)?))
    }

    /// Reads a window, into the memory of the one before if nobody has a view of that.
    fn read(&mut self, reader: &SegmentReader, start: u64, len: u64) -> Result<()> {
        let mut memory = match std::mem::take(&mut self.bytes).try_into_mut() {
            Ok(memory) => Vec::from(memory),
            Err(_) => Vec::new(),
        };
        reader.read_over(start, len, &mut memory)?;
        self.offset = start;
        self.bytes = Bytes::from(memory);
        Ok(())
    }

    /// Where in the window a block is, if it is.
    fn range(&self, offset: u64, len: u64) -> Option<Range<usize>> {
        let start = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        (end <= self.bytes.len()).then_some(start..end)
    }

    /// A block that is in the window.
    fn hand_out(&self, offset: u64, len: u64, shared: bool) -> Stored<'_> {
        let range = self.range(offset, len).unwrap_or_default();
        if shared {
            return Stored::Shared(self.bytes.slice(range));
        }
        Stored::Passing(self.bytes.get(range).unwrap_or_default())
    }
}
