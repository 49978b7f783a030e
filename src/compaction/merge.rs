//! What a job reads: its inputs as one sequence of entries, in order.
//!
//! A merge goes forward only and looks at each entry once, so it needs less than a
//! [`MergeCursor`](crate::iter::MergeCursor): keys and values are lent, not shared, and there is
//! nothing to turn around. The next entry is found by a linear minimum over the first eight bytes of
//! the keys behind the prefix that all inputs have in common; while one source stays ahead of the
//! rest it is followed without looking at them.
//!
//! Invariants: every source in the merge is at an entry; one that has none left goes. Owned by one
//! job; one thread.

use crate::cursor::{Cursor, Seek};
use crate::error::Result;
use crate::segment::SegmentScan;
use crate::sync::Arc;
use crate::types::{Kind, SeqNo};
use crate::version::Segment;
use std::cmp::Ordering;

/// An entry on its way into a segment, lent until the next step.
pub(crate) struct LentEntry<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) seqno: SeqNo,
    pub(crate) kind: Kind,
    /// Empty for a tombstone.
    pub(crate) value: &'a [u8],
}

/// Entries in the order of a [`Cursor`], each looked at once. Every cursor is one.
pub(crate) trait Entries {
    /// Goes to the first entry. Called once, before all else.
    fn first(&mut self) -> Result<()>;
    /// Goes to the following entry, or to none. After an error it is at none.
    fn next(&mut self) -> Result<()>;
    /// The entry that it is at, if any.
    fn entry(&self) -> Option<LentEntry<'_>>;
}

impl<C: Cursor + ?Sized> Entries for C {
    fn first(&mut self) -> Result<()> {
        self.seek(Seek::First)
    }

    fn next(&mut self) -> Result<()> {
        Cursor::next(self)
    }

    fn entry(&self) -> Option<LentEntry<'_>> {
        if !self.valid() {
            return None;
        }
        let value = self.value_ref();
        Some(LentEntry { key: self.key(), seqno: self.seqno(), kind: self.kind(), value })
    }
}

/// The inputs of a job, merged.
pub(crate) struct InputMerge {
    /// Newest run first.
    waiting: Vec<Vec<Arc<Segment>>>,
    sources: Vec<Source>,
    /// Of each source the first bytes of its key behind the common prefix, big-endian.
    prefixes: Vec<u64>,
    /// How long the prefix is that all keys have in common.
    common: usize,
    /// The source that is at the entry shown.
    at: usize,
    /// The least prefix of the others.
    second: u64,
}

/// A run: one segment after the other.
struct Source {
    scan: SegmentScan,
    rest: std::vec::IntoIter<Arc<Segment>>,
}

impl Source {
    /// At its first entry; `None` if it has none.
    fn open(segments: Vec<Arc<Segment>>) -> Result<Option<Source>> {
        let mut rest = segments.into_iter();
        let Some(first) = rest.next() else { return Ok(None) };
        let mut source = Source { scan: first.reader().scan()?, rest };
        source.settle()?;
        Ok(source.scan.valid().then_some(source))
    }

    /// From the end of a segment on to the next one that has an entry.
    fn settle(&mut self) -> Result<()> {
        while !self.scan.valid() {
            let Some(next) = self.rest.next() else { break };
            self.scan = next.reader().scan()?;
        }
        Ok(())
    }

    fn cmp(&self, other: &Source) -> Ordering {
        let keys = self.scan.key().cmp(other.scan.key());
        keys.then_with(|| other.scan.seqno().cmp(&self.scan.seqno()))
    }
}

impl InputMerge {
    /// Of runs, newest first, each of segments that do not overlap, in key order. No two runs may
    /// hold the same key with the same sequence number. Reads nothing yet.
    pub(crate) fn new(inputs: Vec<Vec<Arc<Segment>>>) -> Self {
        let metas = || inputs.iter().flatten().map(|segment| &segment.meta);
        let first = metas().map(|meta| &meta.first_key[..]).min().unwrap_or_default();
        let last = metas().map(|meta| &meta.last_key[..]).max().unwrap_or_default();
        // Every key lies between the two, so it begins as both do.
        let common = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        InputMerge {
            waiting: inputs,
            sources: Vec::new(),
            prefixes: Vec::new(),
            common,
            at: 0,
            second: 0,
        }
    }

    fn prefix_of(common: usize, key: &[u8]) -> u64 {
        let rest = key.get(common..).unwrap_or_default();
        match rest.first_chunk::<8>() {
            Some(first) => u64::from_be_bytes(*first),
            None => rest.iter().zip((0..8).rev()).fold(0, |n, (b, i)| n | u64::from(*b) << (8 * i)),
        }
    }

    /// Finds the source to show.
    fn select(&mut self) {
        let mut prefixes = self.prefixes.iter().copied().enumerate();
        let Some((mut at, mut least)) = prefixes.next() else { return };
        let mut second = u64::MAX;
        for (i, prefix) in prefixes {
            if prefix > least {
                second = second.min(prefix);
                continue;
            }
            let ties = prefix == least;
            second = least;
            if !ties || self.sources[i].cmp(&self.sources[at]) == Ordering::Less {
                (at, least) = (i, prefix);
            }
        }
        (self.at, self.second) = (at, second);
    }

    fn step(&mut self) -> Result<()> {
        let Some(source) = self.sources.get_mut(self.at) else { return Ok(()) };
        source.scan.next()?;
        if !source.scan.valid() {
            source.settle()?;
            if !source.scan.valid() {
                // In order, so that what is newer stays in front.
                self.sources.remove(self.at);
                self.prefixes.remove(self.at);
                self.select();
                return Ok(());
            }
        }
        let prefix = Self::prefix_of(self.common, source.scan.key());
        self.prefixes[self.at] = prefix;
        if prefix >= self.second {
            self.select();
        }
        Ok(())
    }
}

impl Entries for InputMerge {
    fn first(&mut self) -> Result<()> {
        for segments in std::mem::take(&mut self.waiting) {
            if let Some(source) = Source::open(segments)? {
                self.prefixes.push(Self::prefix_of(self.common, source.scan.key()));
                self.sources.push(source);
            }
        }
        self.select();
        Ok(())
    }

    fn next(&mut self) -> Result<()> {
        self.step().inspect_err(|_| self.sources.clear())
    }

    fn entry(&self) -> Option<LentEntry<'_>> {
        let (key, value, entry) = self.sources.get(self.at)?.scan.entry()?;
        Some(LentEntry { key, seqno: entry.seqno, kind: entry.kind, value })
    }
}
