//! Point reads: the memtables, then one block of one segment.
//!
//! A read loads the read state first and the published sequence number second, asks the memtables
//! of that state, newest first, then the key map for the few places that may hold the key, newest
//! first, and reads a block there until the key turns up. Where the map has nothing resident, each
//! sorted run of the state's version is asked instead.
//!
//! The map is ahead of the state: an edit reaches every shard before readers get the state that
//! knows of it. Hence three rules.
//! - A read without a registered snapshot takes the newest version that it meets in a segment. A
//!   compaction that the state does not know yet may have dropped anything older. Unless that version is
//!   not published: what is taken in from files is in the map before it is. Then the key is looked for in all
//!   runs, for a snapshot, which keeps what is older.
//! - A version that looks cleared, or deleted with its range, is looked up again if the state has
//!   changed meanwhile: once a clear or range tombstone is forgotten, versions newer than it may lose
//!   their numbers.
//! - An error at a candidate is the answer. Older data never stands in for what cannot be read.
//!
//! What was merged is looked up apart, by `fold`: there all versions of the key count, and must be of
//! one state.
//!
//! Readers take one lock, the shard's, shared and briefly, and for a value that lies in a value segment a second
//! one, to find that; never while they read a block or a value.

use super::histogram::Tally;
use super::read::{ReadFrom, fold};
use super::snapshot_list::Moment;
use super::{Inner, ReadState};
use crate::error::{Error, Result};
use crate::hash::key_hash;
use crate::slice::{Lent, Value};
use crate::sync::atomic::Ordering;
use crate::sync::{Arc, stripe};
use crate::types::{Kind, MAX_KEY_LEN, SeqNo, split_expiry};
use crate::version::Tree;
use bytes::Bytes;

/// How many keys of a `multi_get` have their places in the map fetched ahead.
const AHEAD: usize = 64;

/// The counters of point reads: those of [`ReadStats`], and one for each usual case.
pub(super) const READ_COUNTERS: usize = 9;

/// What point reads did, as of one moment, counted since the database was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadStats {
    /// Point reads, one for each key of a `multi_get`.
    pub gets: u64,
    /// Those that a memtable answered.
    pub memtable_hits: u64,
    /// Those that no memtable answered and for which the key map had nothing resident.
    pub unmapped: u64,
    /// Places that the key map named.
    pub candidates: u64,
    /// Blocks read through the key map.
    pub blocks: u64,
    /// Blocks of these that were in the cache.
    pub cached_blocks: u64,
    /// Blocks of these that did not hold the key.
    pub wasted_blocks: u64,
}

impl ReadStats {
    /// Of these gets, which most are, one counter tells all: the first place that the map named was
    /// the right one, and its block was in the cache, or was not.
    const USUAL: [ReadStats; 2] = [
        ReadStats::of([1, 0, 0, 1, 1, 1, 0]), //
        ReadStats::of([1, 0, 0, 1, 1, 0, 0]),
    ];

    const fn of(amounts: [u64; 7]) -> ReadStats {
        let [gets, memtable_hits, unmapped, candidates, blocks, cached_blocks, wasted_blocks] =
            amounts;
        ReadStats {
            gets,
            memtable_hits,
            unmapped,
            candidates,
            blocks,
            cached_blocks,
            wasted_blocks,
        }
    }

    pub(super) fn from_sums(sums: [u64; READ_COUNTERS]) -> ReadStats {
        let mut amounts: [u64; 7] = std::array::from_fn(|i| sums[i]);
        for (class, count) in ReadStats::USUAL.iter().zip(&sums[7..]) {
            for (amount, each) in amounts.iter_mut().zip(class.amounts()) {
                *amount += each * count;
            }
        }
        ReadStats::of(amounts)
    }

    /// What one get adds to the counters.
    #[inline]
    fn counters(&self) -> [u64; READ_COUNTERS] {
        match ReadStats::USUAL.iter().position(|class| class == self) {
            Some(class) => std::array::from_fn(|i| u64::from(i == 7 + class)),
            None => {
                let amounts = self.amounts();
                std::array::from_fn(|i| amounts.get(i).copied().unwrap_or_default())
            }
        }
    }

    fn amounts(&self) -> [u64; 7] {
        [
            self.gets,
            self.memtable_hits,
            self.unmapped,
            self.candidates,
            self.blocks,
            self.cached_blocks,
            self.wasted_blocks,
        ]
    }

    /// What came after an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &ReadStats) -> ReadStats {
        let (now, then) = (self.amounts(), earlier.amounts());
        ReadStats::of(std::array::from_fn(|i| now[i].saturating_sub(then[i])))
    }

    /// Blocks read for each get that no memtable answered and the key map served, or 0 before any.
    #[must_use]
    pub fn blocks_per_get(&self) -> f64 {
        let mapped = self.gets.saturating_sub(self.memtable_hits + self.unmapped);
        if mapped == 0 { 0.0 } else { self.blocks as f64 / mapped as f64 }
    }
}

/// A snapshot for the time of one call.
struct Registered<'a>(&'a Inner, Moment);

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.0.release_snapshot(self.1);
    }
}

/// What is looked up.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    key: &'a [u8],
    hash: u64,
    /// A registered snapshot; none for now.
    registered: Option<Moment>,
    /// Whether a value that lies elsewhere is to be read; if not, it is taken to be empty.
    with_value: bool,
}

/// What a lookup came to.
enum Answer<R> {
    Value(R),
    /// A tombstone, or a version that was cleared or has expired.
    Gone,
    /// A merge operand.
    Operand,
    /// The state has changed in between: look again.
    Again,
    /// The value lies elsewhere and cannot be read.
    Failed(Box<Error>),
    /// It comes from files that are being taken in, and is not published.
    Unpublished,
}

impl ReadFrom<'_> {
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Value>> {
        self.lend(key, |value| Value(value.to_bytes()))
    }

    /// What `take` makes of the value of a key, where it lies. No lock is held meanwhile.
    pub(super) fn lend<R>(
        &self,
        key: &[u8],
        take: impl FnOnce(Lent<'_>) -> R,
    ) -> Result<Option<R>> {
        self.check()?;
        let hash = key_hash(key, self.core.hash_seed);
        self.point(Wanted { key, hash, registered: self.snapshot, with_value: true }, take)
    }

    pub(super) fn contains(&self, key: &[u8]) -> Result<bool> {
        self.check()?;
        let hash = key_hash(key, self.core.hash_seed);
        let wanted = Wanted { key, hash, registered: self.snapshot, with_value: false };
        Ok(self.point(wanted, |_| ())?.is_some())
    }

    pub(super) fn get_into(&self, key: &[u8], buffer: &mut Vec<u8>) -> Result<bool> {
        let fill = |value: Lent<'_>| {
            buffer.clear();
            buffer.extend_from_slice(value.bytes());
        };
        Ok(self.lend(key, fill)?.is_some())
    }

    pub(super) fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<Value>>> {
        self.check()?;
        // Registered, so that no compaction takes half of a batch away between two keys.
        let registered = match self.snapshot {
            Some(_) => None,
            None => Some(Registered(self.inner, self.inner.register_snapshot())),
        };
        let snapshot = self.snapshot.or(registered.as_ref().map(|r| r.1));
        let mut values = Vec::with_capacity(keys.len());
        let mut hashes = [0; AHEAD];
        for chunk in keys.chunks(AHEAD) {
            for (key, hash) in chunk.iter().zip(&mut hashes) {
                *hash = key_hash(key.as_ref(), self.core.hash_seed);
                self.inner.keymap.prefetch(*hash);
            }
            for (key, hash) in chunk.iter().zip(&hashes) {
                let (key, hash) = (key.as_ref(), *hash);
                let wanted = Wanted { key, hash, registered: snapshot, with_value: true };
                values.push(self.point(wanted, |value| Value(value.to_bytes()))?);
            }
        }
        Ok(values)
    }

    fn point<R>(&self, wanted: Wanted<'_>, take: impl FnOnce(Lent<'_>) -> R) -> Result<Option<R>> {
        match &self.inner.read_times {
            None => self.look_up(wanted, take),
            Some(times) => self.time_look_up(times, wanted, take),
        }
    }

    #[cold]
    fn time_look_up<R>(
        &self,
        times: &[Tally],
        wanted: Wanted<'_>,
        take: impl FnOnce(Lent<'_>) -> R,
    ) -> Result<Option<R>> {
        let watch = self.inner.watch();
        // With a closure of its own: so the look-up that is not timed has one caller, and is compiled
        // into that.
        #[allow(clippy::redundant_closure, reason = "it makes this a function of its own")]
        let outcome = self.look_up(wanted, |value| take(value));
        times[stripe()].record_time(watch.elapsed());
        outcome
    }

    fn look_up<R>(
        &self,
        wanted: Wanted<'_>,
        take: impl FnOnce(Lent<'_>) -> R,
    ) -> Result<Option<R>> {
        if wanted.key.len() > MAX_KEY_LEN {
            // No such key can have been written.
            return Ok(None);
        }
        if wanted.registered.is_some() && self.core.is_filtered() {
            let at_moment = ReadFrom { snapshot: wanted.registered, ..*self };
            if at_moment.own_state().is_some() {
                return Ok(at_moment.alone(wanted.key)?.map(|value| take(Lent::whole(&value))));
            }
        }
        self.inner.keymap.prefetch(wanted.hash);
        let mut tally = ReadStats { gets: 1, ..ReadStats::default() };
        let mut take = Some(take);
        let outcome = loop {
            let state = self.inner.state.load();
            let tree = self.tree(&state)?;
            // The number only now: see the module's text.
            let snapshot = match wanted.registered {
                Some(moment) => moment.seqno,
                None => SeqNo(self.inner.visible.load(Ordering::Acquire)),
            };
            let mut judge = |seqno: SeqNo, kind: Kind, value: Lent<'_>| {
                if seqno > snapshot && seqno.0 > self.inner.visible.load(Ordering::Acquire) {
                    return Answer::Unpublished;
                }
                // Only now: keys that are nowhere need no floor.
                let mut floor = tree.floor(snapshot);
                if state.has_range_deletes() {
                    floor = floor.max(state.range_delete(tree, wanted.key, snapshot));
                }
                if floor.is_some_and(|floor| seqno <= floor) {
                    let same = Arc::ptr_eq(&state, &self.inner.state.load());
                    return if same { Answer::Gone } else { Answer::Again };
                }
                let value = match kind {
                    Kind::Put => value,
                    Kind::Delete | Kind::DeleteRange => return Answer::Gone,
                    Kind::Merge | Kind::MergeUntil => return Answer::Operand,
                    Kind::PutUntil => {
                        let now_ms = wanted.registered.map(|moment| moment.now_ms);
                        match unexpired(value, now_ms.unwrap_or_else(|| self.inner.now_ms())) {
                            Some(value) => value,
                            None => return Answer::Gone,
                        }
                    }
                    // While the segment is held, and so what it refers to.
                    Kind::PutAway | Kind::PutAwayUntil => {
                        return self.bring(kind, value, wanted, &mut take);
                    }
                };
                match take.take() {
                    Some(take) => Answer::Value(take(value)),
                    None => Answer::Gone,
                }
            };
            match self.newest(&state, tree, snapshot, wanted, &mut tally, &mut judge) {
                Ok(Some(Answer::Again)) => {}
                Ok(Some(Answer::Unpublished)) => {
                    let outcome = self.beneath(wanted.key);
                    break outcome.map(|value| {
                        value.zip(take.take()).map(|(value, take)| take(Lent::whole(&value)))
                    });
                }
                Ok(Some(Answer::Value(value))) => break Ok(Some(value)),
                Ok(Some(Answer::Failed(error))) => break Err(*error),
                Ok(Some(Answer::Operand)) => match self.folded(&wanted, &state) {
                    Ok(Answer::Value(value)) => {
                        break Ok(take.take().map(|take| take(Lent::whole(&value))));
                    }
                    Ok(Answer::Again) => {}
                    Ok(_) => break Ok(None),
                    Err(error) => break Err(error),
                },
                Ok(Some(Answer::Gone) | None) => break Ok(None),
                Err(error) => break Err(error),
            }
        };
        self.inner.reads.add(tally.counters());
        outcome
    }

    /// The value of a key at the newest number, found without the key map, which has a newer version.
    #[cold]
    fn beneath(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let held = Registered(self.inner, self.inner.register_snapshot());
        ReadFrom { snapshot: Some(held.1), ..*self }.alone(key)
    }

    /// The value of a key at a snapshot that is not read from the newest state.
    #[cold]
    fn alone(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let (state, view) = self.stable_view()?;
        let tree = self.tree(&state)?;
        let folded = fold(&self.inner.home, self.core, &state, tree, &view, key)?;
        Ok(folded.map(|folded| folded.value))
    }

    /// What the versions of a key come to, looked up again from the start in the same state.
    #[cold]
    fn folded(&self, wanted: &Wanted<'_>, state: &Arc<ReadState>) -> Result<Answer<Bytes>> {
        // As of the moment that was asked for, which may be that of a call.
        let from = ReadFrom { snapshot: wanted.registered, ..*self };
        let tree = from.tree(state)?;
        let view = from.view(state, tree);
        // See `stable_view`.
        if !Arc::ptr_eq(state, &self.inner.state.load()) {
            return Ok(Answer::Again);
        }
        let folded = fold(&self.inner.home, self.core, state, tree, &view, wanted.key)?;
        Ok(folded.map_or(Answer::Gone, |folded| Answer::Value(folded.value)))
    }

    /// What `judge` says of the newest version up to a snapshot, tombstones and cleared ones included.
    fn newest<R>(
        &self,
        state: &ReadState,
        tree: &Tree,
        snapshot: SeqNo,
        wanted: Wanted<'_>,
        tally: &mut ReadStats,
        judge: &mut impl FnMut(SeqNo, Kind, Lent<'_>) -> Answer<R>,
    ) -> Result<Option<Answer<R>>> {
        let Wanted { key, hash, registered, .. } = wanted;
        for slot in state.memtables() {
            if let Some(found) = slot.table.get(self.core.id, key, hash, snapshot) {
                tally.memtable_hits += 1;
                return Ok(Some(judge(found.seqno, found.kind, Lent::whole(&found.value))));
            }
        }
        let Some(mut candidates) = self.inner.keymap.get(hash, self.core.id, key) else {
            tally.unmapped += 1;
            let found = tree.get(key, hash, snapshot)?;
            return Ok(found.map(|f| judge(f.seqno, f.kind, Lent::whole(&f.value))));
        };
        let limit = registered.map_or(SeqNo::MAX, |moment| moment.seqno);
        while let Some((segment, page)) = candidates.next_place() {
            let looked = segment.reader().look_up_at(page, key, hash, limit, judge)?;
            tally.candidates += 1;
            tally.blocks += u64::from(looked.blocks);
            tally.cached_blocks += u64::from(looked.cached);
            if let Some(answer) = looked.found {
                return Ok(Some(answer));
            }
            tally.wasted_blocks += u64::from(!looked.key_there);
        }
        Ok(None)
    }

    /// The answer that a put gives whose value lies elsewhere.
    #[cold]
    fn bring<R>(
        &self,
        kind: Kind,
        value: Lent<'_>,
        wanted: Wanted<'_>,
        take: &mut Option<impl FnOnce(Lent<'_>) -> R>,
    ) -> Answer<R> {
        let (expiry, reference) = split_expiry(kind, value.bytes());
        let now_ms = || wanted.registered.map_or_else(|| self.inner.now_ms(), |m| m.now_ms);
        if kind.expires() && expiry <= now_ms() {
            return Answer::Gone;
        }
        let home = &self.inner.home;
        let fetched = if wanted.with_value {
            home.values.fetch(&home.dir, reference)
        } else {
            Ok(Bytes::new())
        };
        match (fetched, take.take()) {
            (Ok(value), Some(take)) => Answer::Value(take(Lent::whole(&value))),
            (Ok(_), None) => Answer::Gone,
            (Err(error), _) => Answer::Failed(Box::new(error)),
        }
    }
}

/// The value of a put that expires, unless it has.
#[cold]
fn unexpired(value: Lent<'_>, now_ms: u64) -> Option<Lent<'_>> {
    let (expiry, proper) = split_expiry(Kind::PutUntil, value.bytes());
    (expiry > now_ms).then(|| value.behind(value.bytes().len() - proper.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_counter_tells_is_added_to_the_others() {
        let cases = [
            [1, 0, 0, 1, 1, 1, 0],
            [1, 0, 0, 1, 1, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [1, 0, 0, 2, 2, 1, 1],
        ];
        let (mut sums, mut expected) = ([0; READ_COUNTERS], [0; 7]);
        for (n, amounts) in cases.into_iter().enumerate() {
            let counters = ReadStats::of(amounts).counters();
            assert!(n >= 3 || counters.iter().sum::<u64>() <= 2);
            for _ in 0..=n {
                sums.iter_mut().zip(counters).for_each(|(sum, more)| *sum += more);
                expected.iter_mut().zip(amounts).for_each(|(sum, more)| *sum += more);
            }
        }
        assert_eq!(ReadStats::from_sums(sums), ReadStats::of(expected));
    }
}
