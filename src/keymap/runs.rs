//! The hash runs of several segments, read slice by slice with page numbers of the map.
//!
//! Invariants: what is handed on rises by hash, lies in the slice and has a page number; anything
//! else is a [`Doubt`]. Runs are opened on first use and stay open for one edit or build. Not
//! thread-safe: one user. Called by `edit` and `fill`.

use super::extents::vbn;
use super::{MapSegment, Slices};
use crate::error::Error;
use crate::sync::Arc;
use crate::types::SegmentId;

/// Why a shard cannot be resident.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Doubt {
    /// A hash run is absent or cannot be opened: no shard can be built.
    #[error("no hash run of segment {0}: {1}")]
    Open(SegmentId, Error),
    /// A slice cannot be read.
    #[error("a slice of the hash run of segment {0}: {1}")]
    Read(SegmentId, Error),
    /// A slice is not what it must be.
    #[error("the hash run of segment {0} {1}")]
    Malformed(SegmentId, &'static str),
    /// An entry that was to be changed is not there.
    #[error("an entry to change or delete was not found")]
    Missing,
    /// It does not fit in the budget.
    #[error("no room in the budget")]
    NoRoom,
}

/// A live segment as the committer sees it.
#[derive(Debug)]
pub(super) struct Source<S> {
    pub(super) segment: Arc<S>,
    /// Its extents in the order of pages. Empty if there were none left.
    pub(super) extents: Arc<[u32]>,
}

impl<S> Clone for Source<S> {
    fn clone(&self) -> Self {
        Source { segment: Arc::clone(&self.segment), extents: Arc::clone(&self.extents) }
    }
}

/// The low 32 bits of a hash, which tell the hashes of a slice apart, and a page number of the map:
/// one number, so that sorting is sorting integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HashAndPage(u64);

impl HashAndPage {
    fn new(h40: u64, vbn: u32) -> Self {
        HashAndPage((h40 & 0xffff_ffff) << 32 | u64::from(vbn))
    }

    /// The low 32 bits of the hash.
    pub(super) fn low(self) -> u64 {
        self.0 >> 32
    }

    /// The page number.
    pub(super) fn vbn(self) -> u32 {
        self.0 as u32
    }
}

/// The entries of one segment in one slice.
pub(super) struct Run<'a, S> {
    source: &'a Source<S>,
    entries: &'a [(u64, u16)],
    slice: u8,
}

impl<S: MapSegment> Run<'_, S> {
    /// How many.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Gives every entry with its page number.
    pub(super) fn each(&self, mut each: impl FnMut(u64, u32)) -> Result<(), Doubt> {
        let bad = |what| Doubt::Malformed(self.source.segment.id(), what);
        let mut last = 0;
        for (h40, page) in self.entries {
            if h40 >> 32 != u64::from(self.slice) || *h40 < last {
                return Err(bad("is not in order"));
            }
            last = *h40;
            let vbn = vbn(&self.source.extents, *page);
            each(*h40, vbn.ok_or_else(|| bad("names a page that has no number"))?);
        }
        Ok(())
    }
}

/// Hash runs of these segments.
pub(super) struct Runs<'a, S> {
    sources: &'a [Source<S>],
    opened: Option<Result<Vec<Box<dyn Slices>>, Doubt>>,
}

impl<'a, S: MapSegment> Runs<'a, S> {
    pub(super) fn new(sources: &'a [Source<S>]) -> Self {
        Runs { sources, opened: None }
    }

    /// One slice of each.
    pub(super) fn slice(&mut self, slice: u8) -> Result<Vec<Run<'_, S>>, Doubt> {
        let sources = self.sources;
        let opened = match self.opened.get_or_insert_with(|| open(sources)) {
            Ok(opened) => opened,
            Err(doubt) => return Err(doubt.clone()),
        };
        let pairs = sources.iter().zip(opened);
        pairs
            .map(|(source, run)| match run.slice(slice) {
                Ok(entries) => Ok(Run { source, entries, slice }),
                Err(error) => Err(Doubt::Read(source.segment.id(), error)),
            })
            .collect()
    }

    /// By segment, how many of its entries in one slice have a newer one of the same hash in another
    /// segment of its keyspace. `ranks` are those of the segments.
    pub(super) fn superseded(&mut self, slice: u8, ranks: &[u64]) -> Result<Vec<u64>, Doubt> {
        let sources = self.sources;
        let runs = self.slice(slice)?;
        // Hash and segment in one number: sorted, those of one hash are neighbours.
        let mut all = Vec::with_capacity(runs.iter().map(Run::len).sum());
        for (at, run) in runs.iter().enumerate() {
            run.each(|h40, _| all.push(h40 << 24 | at as u64 & 0xff_ffff))?;
        }
        #[expect(clippy::stable_sort_primitive, reason = "it merges the runs that are there")]
        all.sort();
        let mut superseded = vec![0; sources.len()];
        let age = |entry: &u64| {
            let at = (entry & 0xff_ffff) as usize;
            sources.get(at).map(|source| (source.segment.keyspace(), ranks.get(at).copied(), at))
        };
        for same in all.chunk_by(|a, b| a >> 24 == b >> 24).filter(|same| same.len() > 1) {
            let mut ages: Vec<_> = same.iter().filter_map(age).collect();
            ages.sort_unstable();
            for pair in ages.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
                superseded[pair[1].2] += 1;
            }
        }
        Ok(superseded)
    }

    /// The entries of one slice of all, by rising hash.
    pub(super) fn sorted(&mut self, slice: u8) -> Result<Vec<HashAndPage>, Doubt> {
        let runs = self.slice(slice)?;
        let mut all = Vec::with_capacity(runs.iter().map(Run::len).sum());
        for run in &runs {
            run.each(|h40, vbn| all.push(HashAndPage::new(h40, vbn)))?;
        }
        if runs.len() > 1 {
            // A merge sort: it finds the runs by itself.
            all.sort();
        }
        Ok(all)
    }
}

fn open<S: MapSegment>(sources: &[Source<S>]) -> Result<Vec<Box<dyn Slices>>, Doubt> {
    let open = |source: &Source<S>| {
        source.segment.slices().map_err(|error| Doubt::Open(source.segment.id(), error))
    };
    sources.iter().map(open).collect()
}
