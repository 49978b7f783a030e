//! Filling: makes shards resident from the hash runs of the live segments, and gives them up.
//!
//! Invariants: a build reads outside the committer's lock and is thrown away if an edit was made
//! meanwhile, because that edit passed over the shard while it was not resident. A build that
//! failed is not tried again before a segment goes or changes, or a shard is dropped; or, if the
//! operating system refused a read, the next time that there is nothing else to fill. Called by the
//! database: background work, `fill_key_map`, tests; any thread.

use super::edit::{Committer, build, load_of};
use super::runs::{Doubt, HashAndPage, Runs};
use super::table::Table;
use super::{KeyMap, MapSegment, SHARDS};
use crate::error::Error;
use crate::sync::atomic::Ordering;

/// How many shards a call of [`KeyMap::fill_next`] builds at most.
const FILL_AT_ONCE: usize = 16;

impl<S: MapSegment, T: Table> KeyMap<S, T> {
    /// Builds some shards that are not resident: first those that lookups missed. False if there is
    /// nothing to do: all are resident, or failed, or there is no room.
    ///
    /// Edits wait only for a shard whose first build was overtaken by an edit.
    pub(crate) fn fill_next(&self) -> bool {
        if self.is_off() {
            return false;
        }
        let committer = self.committer.lock();
        let (sources, ranks) = (committer.sources(), committer.ranks());
        let (edits, top_vbn) = (committer.edits, committer.top_vbn());
        drop(committer);
        // Opened once for all of them.
        let mut runs = Runs::new(&sources);
        let mut filled = false;
        let mut span = None;
        for done in 0..FILL_AT_ONCE {
            let mut committer = self.committer.lock();
            if done > 0 && committer.edits != edits {
                break;
            }
            let Some(shard) = self.next_to_fill(&committer) else {
                // What the operating system refused it may grant the next time.
                committer.epoch += u64::from(std::mem::take(&mut committer.retry));
                return filled;
            };
            let room = self.room(&committer);
            let counted = committer.counted[shard];
            drop(committer);
            span.get_or_insert_with(|| tracing::debug_span!("key_map_fill", shard).entered());

            let bits = self.options.fingerprint_bits;
            let built = build::<_, T>(&mut runs, shard, load_of(shard), top_vbn, bits, room);
            let superseded = if counted { None } else { runs.superseded(shard as u8, &ranks).ok() };

            let mut committer = self.committer.lock();
            if committer.bytes[shard].is_some() {
                filled = true;
                continue;
            }
            let overtaken = committer.edits != edits;
            let built = if overtaken { self.build_now(&committer, shard) } else { built };
            if !self.settle(&mut committer, shard, built) {
                continue;
            }
            filled = true;
            if !committer.counted[shard] {
                committer.counted[shard] = true;
                // An edit more or less makes little difference to an estimate.
                for (source, entries) in sources.iter().zip(superseded.into_iter().flatten()) {
                    if entries > 0 {
                        source.segment.add_garbage(entries);
                    }
                }
            }
        }
        true
    }

    /// Makes a shard non-resident. A later [`KeyMap::fill_next`] may build it again.
    #[cfg(test)]
    pub(crate) fn drop_shard(&self, shard: u8) {
        let mut committer = self.committer.lock();
        self.clear(&mut committer, usize::from(shard));
        committer.epoch += 1;
    }

    /// Builds a shard anew, resident or not, while edits wait. Gives back whether it is resident
    /// then.
    #[cfg(test)]
    pub(crate) fn rebuild_shard(&self, shard: u8) -> bool {
        if self.is_off() {
            return false;
        }
        let shard = usize::from(shard);
        let mut committer = self.committer.lock();
        let built = self.build_now(&committer, shard);
        self.settle(&mut committer, shard, built)
    }

    /// Builds a shard while the committer is held.
    fn build_now(&self, committer: &Committer<S>, shard: usize) -> Result<T, Doubt> {
        let sources = committer.sources();
        let room = self.room(committer) + committer.bytes[shard].unwrap_or(0);
        let bits = self.options.fingerprint_bits;
        let top_vbn = committer.top_vbn();
        build(&mut Runs::new(&sources), shard, load_of(shard), top_vbn, bits, room)
    }

    /// Puts the outcome of a build into its shard, if it fits by now.
    fn settle(&self, committer: &mut Committer<S>, shard: usize, built: Result<T, Doubt>) -> bool {
        let own = committer.bytes[shard];
        let room = self.room(committer) + own.unwrap_or(0);
        let fits = |table: &T| table.shape().bytes() <= room;
        let doubt = match built {
            Ok(table) if fits(&table) => {
                self.rebuilds.fetch_add(u64::from(own.is_some()), Ordering::Relaxed);
                self.install(committer, shard, table);
                return true;
            }
            Ok(_) => Doubt::NoRoom,
            Err(doubt) => doubt,
        };
        if own.is_some() {
            self.clear(committer, shard);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        // Without one of the runs no shard can be built.
        let all = matches!(doubt, Doubt::Open(..));
        let failed = if all { 0..SHARDS } else { shard..shard + 1 };
        committer.failed[failed].fill(Some(committer.epoch));
        committer.retry |= matches!(&doubt, Doubt::Open(_, e) | Doubt::Read(_, e) if matches!(e, Error::Io { .. }));
        if !matches!(doubt, Doubt::NoRoom) {
            tracing::warn!(shard, all, reason = %doubt, "a shard of the key map cannot be built");
        }
        false
    }

    /// The shard to build next.
    fn next_to_fill(&self, committer: &Committer<S>) -> Option<usize> {
        let mean = committer.keys() / SHARDS as u64;
        if T::bytes_for(mean as usize * 100 / 86) > self.room(committer) {
            return None;
        }
        let open = |shard: &usize| {
            let failed = committer.failed[*shard] == Some(committer.epoch);
            committer.bytes[*shard].is_none() && !failed
        };
        let wanted = |shard: &usize| self.shards[*shard].wanted.load(Ordering::Relaxed);
        let first = || (0..SHARDS).find(open);
        (0..SHARDS).filter(open).find(wanted).or_else(first)
    }

    /// Holds every resident shard against the hash runs of all live segments: as a multiset, and
    /// by looking every entry up. Reads all hash runs; edits wait.
    ///
    /// # Errors
    ///
    /// What was found wrong, or why it could not be told.
    pub(crate) fn check(&self) -> Result<(), String> {
        let committer = self.committer.lock();
        let sources = committer.sources();
        let mut runs = Runs::new(&sources);
        for (shard, place) in self.shards.iter().enumerate() {
            let table = place.table.read();
            let Some(table) = &*table else {
                if committer.bytes[shard].is_some() {
                    return Err(format!("shard {shard}: resident for the committer only"));
                }
                continue;
            };
            let sorted = runs.sorted(shard as u8).map_err(|doubt| doubt.to_string())?;
            let hash = |entry: &HashAndPage| (shard as u64) << 32 | entry.low();
            let expected: Vec<_> = sorted.iter().map(|e| (hash(e), e.vbn())).collect();
            if committer.bytes[shard] != Some(table.shape().bytes()) {
                return Err(format!("shard {shard}: its bytes are not those on the books"));
            }
            check_table(table, &expected).map_err(|what| format!("shard {shard}: {what}"))?;
        }
        Ok(())
    }
}

/// Holds a table against the entries that it must have, which rise by hash.
pub(super) fn check_table<T: Table>(table: &T, expected: &[(u64, u32)]) -> Result<(), String> {
    let entries = table.shape().entries;
    if entries != expected.len() {
        return Err(format!("{entries} entries are counted, not {}", expected.len()));
    }
    let mut dumped = table.dump();
    let mut wanted: Vec<_> =
        expected.iter().map(|(h40, vbn)| (table.fingerprint(*h40), *vbn)).collect();
    dumped.sort_unstable();
    wanted.sort_unstable();
    if dumped != wanted {
        return Err("its entries are not those of the live segments".to_owned());
    }
    for same in expected.chunk_by(|a, b| a.0 == b.0) {
        let h40 = same[0].0;
        let mut found = Vec::new();
        table.candidates(h40, |vbn| found.push(vbn));
        for (_, vbn) in same {
            // Each takes one away, so that two equal entries need two.
            let Some(at) = found.iter().position(|f| f == vbn) else {
                return Err(format!("hash {h40:#x} is not found on page number {vbn}"));
            };
            found.swap_remove(at);
        }
    }
    Ok(())
}
