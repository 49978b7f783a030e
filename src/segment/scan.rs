//! Reads a segment once, from its first entry to its last: for merges.
//!
//! Unlike a [`SegmentCursor`](super::SegmentCursor) it goes one way and lends what it shows only
//! until the next step. So it reads 256 KiB at a time into one buffer, over and over, past the
//! cache, and counts no references per entry. Blocks are checked as everywhere. Owned; one thread.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::Block;
use super::block::{Entry, Stored};
use super::reader::{Position, SegmentReader};
use crate::error::Result;
use crate::types::SeqNo;
use bytes::Bytes;

/// How much is read at a time, at least.
const WINDOW: u64 = 256 << 10;

/// See the module's text.
pub(crate) struct SegmentScan {
    reader: SegmentReader,
    at: Option<At>,
    /// Where the bytes read last begin in the file, and they themselves.
    offset: u64,
    window: Bytes,
}

struct At {
    position: Position,
    block: Block,
    i: usize,
    entry: Entry,
}

impl SegmentReader {
    /// All entries, in order. At the first one.
    ///
    /// # Errors
    /// As for reading an entry: [`Error::Io`](crate::Error::Io), damage, or a later version.
    pub(crate) fn scan(&self) -> Result<SegmentScan> {
        let first = self.edge(false)?;
        let reader = self.clone();
        let mut scan = SegmentScan { reader, at: None, offset: 0, window: Bytes::new() };
        scan.enter(first)?;
        Ok(scan)
    }
}

impl SegmentScan {
    /// Goes to the first entry of the block at a position, if there is one.
    fn enter(&mut self, position: Option<Position>) -> Result<()> {
        let Some(position) = position else { return Ok(()) };
        let Some(handle) = position.handle() else { return Ok(()) };
        let (offset, len) = (handle.offset(), handle.len());
        if offset < self.offset || offset + len > self.offset + self.window.len() as u64 {
            // No block is left that shares the buffer, so its memory comes back.
            self.window.truncate(0);
            let mut buffer = Vec::from(std::mem::take(&mut self.window));
            buffer.clear();
            let rest = self.reader.data_bytes().saturating_sub(offset);
            self.reader.read_onto(offset, WINDOW.min(rest).max(len), &mut buffer)?;
            (self.offset, self.window) = (offset, Bytes::from(buffer));
        }
        let start = (offset - self.offset) as usize;
        let bytes = self.window.slice(start..start + len as usize);
        let block = self.reader.decode_block(&handle, Stored::Shared(bytes))?;
        self.at = block.entry(0).map(|entry| At { position, block, i: 0, entry });
        Ok(())
    }

    /// Goes to the next entry, or to none. After an error it is at none.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<()> {
        let Some(at) = &mut self.at else { return Ok(()) };
        if let Some(entry) = at.block.entry(at.i + 1) {
            at.i += 1;
            at.entry = entry;
            return Ok(());
        }
        self.leave()
    }

    /// Goes on to the next block.
    #[cold]
    fn leave(&mut self) -> Result<()> {
        let Some(At { position, .. }) = self.at.take() else { return Ok(()) };
        let next = self.reader.following(position)?;
        self.enter(next)
    }

    /// Whether it is at an entry. Otherwise key and number are arbitrary.
    #[inline]
    pub(crate) fn valid(&self) -> bool {
        self.at.is_some()
    }

    /// The entry's key.
    #[inline]
    pub(crate) fn key(&self) -> &[u8] {
        self.at.as_ref().map_or(&[], |at| at.block.view(&at.entry.key))
    }

    /// The entry's sequence number.
    #[inline]
    pub(crate) fn seqno(&self) -> SeqNo {
        self.at.as_ref().map_or(SeqNo::ZERO, |at| at.entry.seqno)
    }

    /// The entry's key, its value, and all else of it.
    #[inline]
    pub(crate) fn entry(&self) -> Option<(&[u8], &[u8], &Entry)> {
        let At { block, entry, .. } = self.at.as_ref()?;
        Some((block.view(&entry.key), block.view(&entry.value), entry))
    }
}
