//! Edits: what the committer keeps, and how a change of the live segments reaches every shard.
//!
//! An edit publishes the new segments' page numbers, then takes the shards one by one: it reads
//! what comes and goes outside the shard's lock, joins the two by hash (an old and a new entry of
//! one hash become a single store) and applies the result in one critical section. A shard that
//! would leave its load band, or whose entries have strayed, is built anew from the hash runs of
//! all live segments and swapped in. Then the table without the removed segments is published.
//!
//! Invariants: only the holder of the committer's lock changes shards. The bytes it keeps for each
//! shard are those of the table that is in it; `None` where none is. Called by the database; calls
//! are serialized by the lock.

use super::extents::{Allocator, Extents, vbn};
use super::runs::{Doubt, HashAndPage, Run, Runs, Source};
use super::table::Table;
use super::{KeyMap, MapEdit, MapSegment, SHARDS};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::types::SegmentId;
use std::collections::BTreeMap;

/// A live segment and its age.
struct Live<S> {
    source: Source<S>,
    rank: u64,
}

/// What the committer knows. Behind a lock of its own.
pub(super) struct Committer<S> {
    live: BTreeMap<SegmentId, Live<S>>,
    allocator: Allocator,
    /// Edits so far.
    pub(super) edits: u64,
    /// Grows when builds that failed may succeed: a segment went or changed, or room was made.
    pub(super) epoch: u64,
    /// By shard: the epoch in which its build failed.
    pub(super) failed: Vec<Option<u64>>,
    /// Whether one of them failed for a reason that may pass by itself.
    pub(super) retry: bool,
    /// By shard: the bytes of its table.
    pub(super) bytes: Vec<Option<u64>>,
    /// By shard: whether segments have heard what of them is superseded in it.
    pub(super) counted: Vec<bool>,
}

/// What an edit changes, and what is live after it.
struct Change<S> {
    added: Vec<Source<S>>,
    removed: Vec<Source<S>>,
    live: Vec<Source<S>>,
}

impl<S: MapSegment> Committer<S> {
    pub(super) fn new() -> Self {
        Committer {
            live: BTreeMap::new(),
            allocator: Allocator::new(),
            edits: 0,
            epoch: 0,
            failed: vec![None; SHARDS],
            retry: false,
            bytes: vec![None; SHARDS],
            counted: vec![false; SHARDS],
        }
    }

    /// The extent table of all segments it knows.
    pub(super) fn extents(&self) -> Extents<S> {
        let live = self.live.values();
        let segments = live.map(|l| (&l.source.segment, l.rank, &*l.source.extents));
        Extents::new(segments, self.allocator.end())
    }

    /// The segments it knows.
    pub(super) fn sources(&self) -> Vec<Source<S>> {
        self.live.values().map(|live| live.source.clone()).collect()
    }

    /// Their ranks, in the same order.
    pub(super) fn ranks(&self) -> Vec<u64> {
        self.live.values().map(|live| live.rank).collect()
    }

    /// Distinct keys of each segment, summed.
    pub(super) fn keys(&self) -> u64 {
        let keys = self.live.values().map(|live| live.source.segment.keys());
        // What segments say of themselves may be anything.
        keys.fold(0, u64::saturating_add)
    }

    /// The highest page number that may be in use.
    pub(super) fn top_vbn(&self) -> u32 {
        self.allocator.top_vbn()
    }

    /// Bytes of all tables.
    pub(super) fn table_bytes(&self) -> u64 {
        self.bytes.iter().flatten().sum()
    }

    /// Takes an edit in. What it removes stays known until [`Committer::retire`].
    fn admit(&mut self, edit: &MapEdit<'_, S>) -> Change<S> {
        self.edits += 1;
        if !edit.removed.is_empty() || !edit.moved.is_empty() {
            self.epoch += 1;
        }
        let mut added = Vec::with_capacity(edit.added.len());
        for (pairs, expected) in [(edit.moved, true), (edit.added, false)] {
            for (segment, rank) in pairs {
                let id = segment.id();
                let known = self.live.get_mut(&id);
                if known.is_some() != expected {
                    tracing::warn!(segment = %id, known = !expected, "unexpected map edit");
                }
                if let Some(live) = known {
                    live.source.segment = Arc::clone(segment);
                    live.rank = *rank;
                    continue;
                }
                // Without page numbers it is live all the same: then no shard can be built.
                let extents = self.allocator.allocate(segment.pages()).unwrap_or_default();
                let source = Source { segment: Arc::clone(segment), extents };
                added.push(source.clone());
                self.live.insert(id, Live { source, rank: *rank });
            }
        }
        let gone = |id: &SegmentId| edit.removed.contains(id);
        let mut removed = Vec::with_capacity(edit.removed.len());
        let mut live = Vec::with_capacity(self.live.len());
        for (id, segment) in &self.live {
            let side = if gone(id) { &mut removed } else { &mut live };
            side.push(segment.source.clone());
        }
        Change { added, removed, live }
    }

    /// Forgets removed segments and frees their page numbers.
    fn retire(&mut self, removed: &[Source<S>]) {
        for source in removed {
            self.live.remove(&source.segment.id());
            self.allocator.free(&source.extents);
        }
    }
}

/// One change of one entry. Zero as old or new page number: there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Op {
    h40: u64,
    old: u32,
    new: u32,
}

/// An edit on its way over the shards.
struct Sweep<'a, S> {
    added: Runs<'a, S>,
    removed: Runs<'a, S>,
    live: Runs<'a, S>,
    /// The table with everything in it.
    extents: &'a Extents<S>,
    top_vbn: u32,
    /// By slot: how many of its entries turned out to have a newer version.
    superseded: Vec<u64>,
    /// By slot: whether the edit removes the segment.
    goes: Vec<bool>,
    is_flush: bool,
}

impl<S: MapSegment, T: Table> KeyMap<S, T> {
    /// Makes a change of the live segments known. On return, lookups know all that was added and
    /// nothing that was removed.
    ///
    /// The first edit after the start may add all live segments: nothing is read while no shard is
    /// resident. Never fails: see the invariants of the module. Reads the hash runs of what comes
    /// and goes, and of all live segments for shards that must be rebuilt. Lookups wait for one
    /// shard at a time, while its entries are changed.
    pub(crate) fn apply(&self, edit: MapEdit<'_, S>) {
        if self.is_off() {
            return;
        }
        let mut committer = self.committer.lock();
        let change = committer.admit(&edit);
        let extents = Arc::new(committer.extents());
        self.extents.store(Arc::clone(&extents));
        self.sweep(&mut committer, &change, &extents, edit.is_flush);
        if !change.removed.is_empty() {
            committer.retire(&change.removed);
            self.extents.store(Arc::new(committer.extents()));
        }
        self.fit(&mut committer);
    }

    /// Takes a change to every resident shard.
    fn sweep(
        &self,
        committer: &mut Committer<S>,
        change: &Change<S>,
        extents: &Extents<S>,
        is_flush: bool,
    ) {
        if change.added.is_empty() && change.removed.is_empty() {
            return;
        }
        let mut sweep = Sweep {
            added: Runs::new(&change.added),
            removed: Runs::new(&change.removed),
            live: Runs::new(&change.live),
            extents,
            top_vbn: committer.top_vbn(),
            superseded: vec![0; extents.slots()],
            goes: vec![false; extents.slots()],
            is_flush,
        };
        for first in change.removed.iter().filter_map(|source| vbn(&source.extents, 0)) {
            if let Some((slot, _)) = extents.resolve(first) {
                sweep.goes[slot as usize] = true;
            }
        }
        let mut lost: Option<(Doubt, u32)> = None;
        for shard in 0..SHARDS {
            if committer.bytes[shard].is_none() {
                continue;
            }
            if let Err(doubt) = self.sweep_shard(committer, shard, &mut sweep) {
                self.clear(committer, shard);
                lost.get_or_insert((doubt, 0)).1 += 1;
            }
        }
        if let Some((doubt, shards)) = lost {
            self.dropped.fetch_add(u64::from(shards), Ordering::Relaxed);
            tracing::warn!(shards, reason = %doubt, "shards of the key map given up");
        }
        for (slot, entries) in sweep.superseded.into_iter().enumerate() {
            if let (1.., Some(slot)) = (entries, extents.slot(slot as u32)) {
                slot.segment.add_garbage(entries);
            }
        }
    }

    /// Takes a change to one resident shard. After an error its content is not to be used.
    fn sweep_shard(
        &self,
        committer: &mut Committer<S>,
        shard: usize,
        sweep: &mut Sweep<'_, S>,
    ) -> Result<(), Doubt> {
        let old = sweep.removed.sorted(shard as u8)?;
        let new = sweep.added.sorted(shard as u8)?;
        let ops = join(shard as u8, &old, &new);
        if ops.is_empty() {
            return Ok(());
        }
        let suits = {
            let table = self.shards[shard].table.read();
            let Some(table) = &*table else { return Err(Doubt::Missing) };
            sweep.count_superseded(table, &ops);
            // Fewer than none would mean that entries are missing: applying will tell.
            table.suits((table.shape().entries + new.len()).saturating_sub(old.len()))
        };
        if suits && !self.change(committer, shard, &ops)? {
            return Ok(());
        }
        let room = self.room(committer) + committer.bytes[shard].unwrap_or(0);
        let bits = self.options.fingerprint_bits;
        let grows = !suits && new.len() > old.len();
        let load = if grows { LOAD_GROWN } else { load_of(shard) };
        let table = build::<_, T>(&mut sweep.live, shard, load, sweep.top_vbn, bits, room);
        let table = match table {
            // It has strayed, but it is right.
            Err(Doubt::NoRoom) if suits => return Ok(()),
            built => built?,
        };
        self.rebuilds.fetch_add(1, Ordering::Relaxed);
        self.install(committer, shard, table);
        Ok(())
    }

    /// Changes a shard in place. Gives back whether it ought to be rebuilt.
    fn change(
        &self,
        committer: &mut Committer<S>,
        shard: usize,
        ops: &[Op],
    ) -> Result<bool, Doubt> {
        #[cfg(test)]
        let ops = &*self.tear(shard, ops);
        let mut place = self.shards[shard].table.write();
        let Some(table) = &mut *place else { return Err(Doubt::Missing) };
        if !ops.iter().all(|op| change_entry(table, *op)) {
            // In this critical section, so that nobody sees half of it.
            *place = None;
            return Err(Doubt::Missing);
        }
        committer.bytes[shard] = Some(table.shape().bytes());
        Ok(table.strained())
    }

    /// If edits are to be torn: deletes in a critical section of its own, and leaves the rest.
    #[cfg(test)]
    fn tear<'a>(&self, shard: usize, ops: &'a [Op]) -> std::borrow::Cow<'a, [Op]> {
        if !self.torn.load(Ordering::Relaxed) {
            return ops.into();
        }
        let mut place = self.shards[shard].table.write();
        let table = place.as_mut().unwrap();
        for op in ops.iter().filter(|op| op.old != 0) {
            assert!(table.remove(op.h40, op.old));
        }
        drop(place);
        std::thread::yield_now();
        ops.iter().filter(|op| op.new != 0).map(|op| Op { old: 0, ..*op }).collect()
    }

    /// Puts a table into a shard.
    pub(super) fn install(&self, committer: &mut Committer<S>, shard: usize, table: T) {
        committer.bytes[shard] = Some(table.shape().bytes());
        committer.failed[shard] = None;
        let complete = committer.bytes.iter().all(Option::is_some);
        self.complete.store(complete, Ordering::Relaxed);
        let place = &self.shards[shard];
        place.hint(table.hint());
        let old = place.table.write().replace(table);
        place.wanted.store(false, Ordering::Relaxed);
        // Freed only now, outside the lock.
        drop(old);
    }

    /// Makes a shard non-resident.
    pub(super) fn clear(&self, committer: &mut Committer<S>, shard: usize) {
        committer.bytes[shard] = None;
        self.complete.store(false, Ordering::Relaxed);
        self.shards[shard].hint((0, 0));
        let old = self.shards[shard].table.write().take();
        drop(old);
    }

    /// The bytes that the budget leaves.
    pub(super) fn room(&self, committer: &Committer<S>) -> u64 {
        let used = committer.table_bytes() + self.extents.load().bytes();
        self.options.budget_bytes.saturating_sub(used)
    }

    /// Gives shards up until the budget holds: spill lists and the extent table may have grown.
    fn fit(&self, committer: &mut Committer<S>) {
        let extents = self.extents.load().bytes();
        while committer.table_bytes() + extents > self.options.budget_bytes {
            let Some(shard) = committer.bytes.iter().rposition(Option::is_some) else { return };
            self.clear(committer, shard);
            committer.failed[shard] = Some(committer.epoch);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(shard, reason = %Doubt::NoRoom, "a shard of the key map given up");
        }
    }
}

/// Joins what goes and what comes by hash. Both rise by hash, and so does the result.
///
/// Entries of one hash are paired as far as they go: the shard is a multiset, so which of them
/// becomes which makes no difference, and a store is cheaper than an insertion and a deletion.
fn join(shard: u8, old: &[HashAndPage], new: &[HashAndPage]) -> Vec<Op> {
    let mut ops = Vec::with_capacity(old.len().max(new.len()));
    let (mut old, mut new) = (old.iter().copied(), new.iter().copied());
    let (mut goes, mut comes) = (old.next(), new.next());
    loop {
        // Of entries of one hash those that go and those that come are taken in pairs.
        let (has_old, has_new) = match (goes, comes) {
            (Some(a), Some(b)) => (a.low() <= b.low(), b.low() <= a.low()),
            (a, b) => (a.is_some(), b.is_some()),
        };
        let a = if has_old { std::mem::replace(&mut goes, old.next()) } else { None };
        let b = if has_new { std::mem::replace(&mut comes, new.next()) } else { None };
        let Some(low) = a.or(b).map(HashAndPage::low) else { return ops };
        let h40 = u64::from(shard) << 32 | low;
        let vbn = |side: Option<HashAndPage>| side.map_or(0, HashAndPage::vbn);
        ops.push(Op { h40, old: vbn(a), new: vbn(b) });
    }
}

/// Makes one change. False if the old entry is not there.
fn change_entry<T: Table>(table: &mut T, op: Op) -> bool {
    match (op.old, op.new) {
        (0, new) => {
            table.insert(op.h40, new);
            true
        }
        (old, 0) => table.remove(op.h40, old),
        (old, new) => table.relocate(op.h40, old, new),
    }
}

impl<S: MapSegment> Sweep<'_, S> {
    /// Looks for versions of the keys that come. What a flush brings supersedes the newest that was
    /// there; what a merge brings may itself be superseded by what was not merged.
    fn count_superseded<T: Table>(&mut self, table: &T, ops: &[Op]) {
        let slot_of = |vbn| {
            let (at, _) = self.extents.resolve(vbn)?;
            self.extents.slot(at).map(|slot| (at, slot))
        };
        for op in ops.iter().filter(|op| op.new != 0) {
            let Some((own, new)) = slot_of(op.new) else { continue };
            let mut newest: Option<(u64, u32)> = None;
            table.candidates(op.h40, |vbn| {
                if let Some((at, slot)) = slot_of(vbn)
                    && slot.keyspace == new.keyspace
                    && !self.goes[at as usize]
                    && newest.is_none_or(|(rank, _)| slot.rank < rank)
                {
                    newest = Some((slot.rank, at));
                }
            });
            match newest {
                Some((_, at)) if self.is_flush => self.superseded[at as usize] += 1,
                Some((rank, _)) if rank < new.rank => self.superseded[own as usize] += 1,
                _ => {}
            }
        }
    }
}

/// The load, in percent, that a table is built for when it outgrew the one before. While a database
/// is loaded, each new entry pays for `1 / ln(LOAD_MAX / LOAD_GROWN)` entries built anew: 5.6 at this
/// load, 8.1 at 76. A lower one would cost more memory than a loaded database promises.
const LOAD_GROWN: usize = 72;

/// The least load that a shard's table is built for otherwise.
const LOAD_USUAL: usize = 76;

/// The load that a shard's table is built for otherwise. They differ, so that shards that fill
/// alike do not all outgrow their tables at the same edit.
pub(super) fn load_of(shard: usize) -> usize {
    LOAD_USUAL + shard * 3 % 10
}

/// Builds the table of a shard from hash runs, for a load in percent, within so many bytes.
pub(super) fn build<S: MapSegment, T: Table>(
    runs: &mut Runs<'_, S>,
    shard: usize,
    load: usize,
    top_vbn: u32,
    fingerprint_bits: u32,
    room: u64,
) -> Result<T, Doubt> {
    let runs = runs.slice(shard as u8)?;
    let entries: usize = runs.iter().map(Run::len).sum();
    let slots = (entries * 100).div_ceil(load);
    if T::bytes_for(slots) > room {
        return Err(Doubt::NoRoom);
    }
    let mut table = T::with_slots(slots, top_vbn, fingerprint_bits);
    for run in &runs {
        run.each(|h40, vbn| table.insert(h40, vbn))?;
    }
    table.settle();
    if table.shape().bytes() > room { Err(Doubt::NoRoom) } else { Ok(table) }
}
