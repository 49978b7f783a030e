//! Ranges of a segment as an iterator: the newest version of each key, tombstones left out.

use super::cursor::{CursorOptions, SegmentCursor};
use super::reader::SegmentReader;
use crate::cursor::{Cursor, Seek};
use crate::error::Result;
use crate::slice::{Key, Value};
use bytes::Bytes;
use std::ops::{Bound, RangeBounds};

/// Stale versions stepped over one by one before searching for the next key instead.
const STEPS_MAX: u32 = 4;

/// The keys and values of a range, from both ends. Owned and `Send`. After an error it ends.
#[derive(Debug)]
pub struct SegmentRange {
    reader: SegmentReader,
    options: CursorOptions,
    /// What is left, between what both ends have handed out.
    lower: Bound<Bytes>,
    upper: Bound<Bytes>,
    front: Option<SegmentCursor>,
    back: Option<SegmentCursor>,
    done: bool,
}

impl SegmentReader {
    /// The keys within a range, with their values, rising; from the other end with `rev` or
    /// `next_back`. A range whose start is after its end is empty. Each step reads at most one
    /// block, sequential ones in larger pieces where no cache is used.
    ///
    /// Items are errors where a block is damaged; then the iterator ends.
    pub fn get_range<K: AsRef<[u8]>>(&self, range: impl RangeBounds<K>) -> SegmentRange {
        let lower = range.start_bound().map(|key| Bytes::copy_from_slice(key.as_ref()));
        let upper = range.end_bound().map(|key| Bytes::copy_from_slice(key.as_ref()));
        let cached = self.has_cache();
        SegmentRange {
            reader: self.clone(),
            options: CursorOptions { fill_cache: true, readahead: !cached },
            done: is_empty(&lower, &upper),
            lower,
            upper,
            front: None,
            back: None,
        }
    }
}

fn is_empty(lower: &Bound<Bytes>, upper: &Bound<Bytes>) -> bool {
    match (lower, upper) {
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (
            Bound::Included(low) | Bound::Excluded(low),
            Bound::Included(high) | Bound::Excluded(high),
        ) => low >= high,
        _ => false,
    }
}

/// From any version of a key to the newest of the next key.
fn next_key(cursor: &mut SegmentCursor) -> Result<()> {
    for _ in 0..STEPS_MAX {
        cursor.next()?;
        if !cursor.same_key() {
            return Ok(());
        }
    }
    let key = cursor.key_bytes();
    cursor.seek(Seek::After(&key))
}

/// From any version of a key to its newest.
fn newest_version(cursor: &mut SegmentCursor) -> Result<()> {
    for _ in 0..STEPS_MAX {
        if !cursor.same_key() {
            return Ok(());
        }
        cursor.prev()?;
    }
    let key = cursor.key_bytes();
    cursor.seek(Seek::AtOrAfter(&key))
}

fn above(key: &[u8], lower: &Bound<Bytes>) -> bool {
    match lower {
        Bound::Unbounded => true,
        Bound::Included(bound) => key >= bound,
        Bound::Excluded(bound) => key > bound,
    }
}

fn below(key: &[u8], upper: &Bound<Bytes>) -> bool {
    match upper {
        Bound::Unbounded => true,
        Bound::Included(bound) => key <= bound,
        Bound::Excluded(bound) => key < bound,
    }
}

impl SegmentRange {
    // A cursor stays at what it handed out until the next call, so that a damaged block is met only
    // by those who ask for its keys. Each step narrows the range, and a key outside of what is left
    // on the side it comes from is an error: so even a file that is out of order behind good
    // checksums gives neither an endless iterator nor one that goes back.

    fn forward(&mut self) -> Result<Option<(Key, Value)>> {
        let cursor = match &mut self.front {
            Some(cursor) => {
                next_key(cursor)?;
                cursor
            }
            None => {
                let mut cursor = self.reader.cursor(self.options);
                match &self.lower {
                    Bound::Unbounded => cursor.seek(Seek::First)?,
                    Bound::Included(key) => cursor.seek(Seek::AtOrAfter(key))?,
                    Bound::Excluded(key) => cursor.seek(Seek::After(key))?,
                }
                self.front.insert(cursor)
            }
        };
        while cursor.valid() && below(cursor.key(), &self.upper) {
            if !above(cursor.key(), &self.lower) {
                return Err(cursor.out_of_order());
            }
            let key = cursor.key_bytes();
            self.lower = Bound::Excluded(key.clone());
            if let Some(value) = self.reader.proper_value(cursor.kind(), cursor.value())? {
                return Ok(Some((Key(key), value)));
            }
            next_key(cursor)?;
        }
        Ok(None)
    }

    fn backward(&mut self) -> Result<Option<(Key, Value)>> {
        let cursor = match &mut self.back {
            Some(cursor) => {
                cursor.prev()?;
                cursor
            }
            None => {
                let mut cursor = self.reader.cursor(self.options);
                match &self.upper {
                    Bound::Unbounded => cursor.seek(Seek::Last)?,
                    Bound::Included(key) => cursor.seek(Seek::AtOrBefore(key))?,
                    Bound::Excluded(key) => cursor.seek(Seek::Before(key))?,
                }
                self.back.insert(cursor)
            }
        };
        while cursor.valid() && above(cursor.key(), &self.lower) {
            let key = cursor.key_bytes();
            newest_version(cursor)?;
            if !below(&key, &self.upper) || cursor.key() != key {
                return Err(cursor.out_of_order());
            }
            self.upper = Bound::Excluded(key.clone());
            if let Some(value) = self.reader.proper_value(cursor.kind(), cursor.value())? {
                return Ok(Some((Key(key), value)));
            }
            cursor.prev()?;
        }
        Ok(None)
    }

    fn finish(&mut self, item: Result<Option<(Key, Value)>>) -> Option<Result<(Key, Value)>> {
        let item = item.transpose();
        if !matches!(item, Some(Ok(_))) {
            self.done = true;
            self.front = None;
            self.back = None;
        }
        item
    }
}

impl Iterator for SegmentRange {
    type Item = Result<(Key, Value)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.forward();
        self.finish(item)
    }
}

impl DoubleEndedIterator for SegmentRange {
    fn next_back(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.backward();
        self.finish(item)
    }
}

impl std::iter::FusedIterator for SegmentRange {}
