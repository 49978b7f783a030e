//! What the manifest says: the keyspaces, the live segments, and where recovery starts.
//!
//! A plain value. Applying an edit checks it in full, so that neither a damaged manifest nor a
//! mistake of the caller's leads to a state that breaks the rules of FORMAT.md, section 5.

use super::edit::{Change, Edit, KeyspaceSettings, RunNo, SegmentMeta};
use super::live::LEVELS;
use crate::deletes::RangeDeletes;
use crate::error::Malformed;
use crate::sync::Arc;
use crate::types::{KeyspaceId, LogId, SegmentId, SeqNo};
use std::collections::{BTreeMap, BTreeSet};

/// The keyspace id that segments without a database carry.
const STANDALONE: KeyspaceId = KeyspaceId(u32::MAX);

/// A live keyspace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyspaceState {
    /// Unique among the live keyspaces.
    pub(crate) name: String,
    /// The clears still to be minded, rising: what is not newer than one is gone for readers at or
    /// after it.
    pub(crate) clears: Vec<SeqNo>,
    pub(crate) settings: KeyspaceSettings,
    /// The range tombstones still to be minded.
    pub(crate) deletes: Arc<RangeDeletes>,
}

/// The state of a database, as its manifest gives it. Cloning costs a few tens of nanoseconds a
/// segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ManifestState {
    /// Names the database.
    pub(crate) uuid: [u8; 16],
    /// Seeds the hash of every key.
    pub(crate) hash_seed: u64,
    /// The live keyspaces.
    pub(crate) keyspaces: BTreeMap<KeyspaceId, KeyspaceState>,
    /// The live segments.
    pub(crate) segments: BTreeMap<SegmentId, Arc<SegmentMeta>>,
    /// The oldest log that is needed.
    pub(crate) log_floor: LogId,
    /// Every operation up to here is in segments, or was dropped.
    pub(crate) flushed: SeqNo,
    /// Above every segment id used so far. Logs, keyspaces and runs likewise.
    pub(crate) next_segment: SegmentId,
    pub(crate) next_log: LogId,
    pub(crate) next_keyspace: KeyspaceId,
    pub(crate) next_run: RunNo,
    /// The number of the last edit.
    pub(crate) edit_number: u64,
}

/// Names a sorted run.
type RunKey = (KeyspaceId, u8, RunNo);

fn run_of(segment: &SegmentMeta) -> RunKey {
    (segment.keyspace, segment.level, segment.run)
}

impl ManifestState {
    /// The state before the first edit.
    pub(crate) fn empty(uuid: [u8; 16], hash_seed: u64) -> ManifestState {
        ManifestState { uuid, hash_seed, ..ManifestState::default() }
    }

    /// Applies an edit, or fails and changes nothing; for tests.
    #[cfg(test)]
    pub(crate) fn apply(&mut self, edit: &Edit) -> Result<(), Malformed> {
        *self = self.with(edit)?;
        Ok(())
    }

    /// The state after an edit. Cost: a clone, and a pass over the segments if some are added.
    pub(crate) fn with(&self, edit: &Edit) -> Result<ManifestState, Malformed> {
        let mut state = self.clone();
        state.absorb(edit)?;
        state.check_runs(Some(edit))?;
        state.edit_number = state
            .edit_number
            .checked_add(1)
            .ok_or(Malformed::Damaged("the edit numbers are used up"))?;
        Ok(state)
    }

    /// Applies an edit but for its number and [`ManifestState::check_runs`]. After an error the
    /// state is worthless.
    pub(super) fn absorb(&mut self, edit: &Edit) -> Result<(), Malformed> {
        let fresh_keyspaces = self.next_keyspace;
        let mut names_grew = false;
        for change in &edit.changes {
            match change {
                Change::CreateKeyspace { id, name } => {
                    require(*id >= fresh_keyspaces, "a keyspace id is used again")?;
                    require(*id != STANDALONE, "a keyspace has the id of standalone segments")?;
                    let created = KeyspaceState { name: name.clone(), ..KeyspaceState::default() };
                    let twice = self.keyspaces.insert(*id, created).is_some();
                    require(!twice, "a keyspace is created twice")?;
                    names_grew = true;
                }
                Change::DropKeyspace(id) => {
                    let dropped = self.keyspaces.remove(id).is_some();
                    require(dropped, "a keyspace is dropped that does not exist")?;
                    self.segments.retain(|_, segment| segment.keyspace != *id);
                }
                Change::Clear { id, seqno } => {
                    let clears = &mut self.keyspace(*id)?.clears;
                    match clears.last() {
                        Some(last) if last == seqno => {}
                        last => {
                            require(last.is_none_or(|last| last < seqno), "a clear goes back")?;
                            clears.push(*seqno);
                        }
                    }
                }
                Change::ForgetClears { id, seqno } => {
                    self.keyspace(*id)?.clears.retain(|clear| clear > seqno);
                }
                Change::AddRangeDeletes { id, deletes } => {
                    let known = Arc::make_mut(&mut self.keyspace(*id)?.deletes);
                    for (seqno, span) in deletes {
                        let is_new = known.add(*seqno, span.clone());
                        require(is_new, "two range tombstones have the same number")?;
                    }
                }
                Change::ForgetRangeDeletes { id, seqnos } => {
                    let known = Arc::make_mut(&mut self.keyspace(*id)?.deletes);
                    for seqno in seqnos {
                        let was_there = known.remove(*seqno);
                        require(was_there, "a range tombstone is forgotten that is not there")?;
                    }
                }
                Change::SetOptions { id, settings } => {
                    self.keyspace(*id)?.settings = settings.clone();
                }
                Change::AddSegment(segment) => self.add(segment)?,
                Change::RemoveSegment(id) => {
                    let removed = self.segments.remove(id).is_some();
                    require(removed, "a segment is removed that is not there")?;
                }
                Change::LogFloor(floor) => {
                    require(*floor >= self.log_floor, "the log floor goes back")?;
                    self.log_floor = *floor;
                }
                Change::Flushed(seqno) => {
                    require(*seqno >= self.flushed, "the flushed sequence number goes back")?;
                    self.flushed = *seqno;
                }
                Change::Next { segment, log, keyspace, run } => {
                    let rising = *segment >= self.next_segment
                        && *log >= self.next_log
                        && *keyspace >= self.next_keyspace
                        && *run >= self.next_run;
                    require(rising, "the next number of something goes back")?;
                    self.next_segment = *segment;
                    self.next_log = *log;
                    self.next_keyspace = *keyspace;
                    self.next_run = *run;
                }
            }
        }
        self.check_numbers(edit)?;
        if names_grew {
            let names: BTreeSet<_> = self.keyspaces.values().map(|state| &state.name).collect();
            require(names.len() == self.keyspaces.len(), "two keyspaces have the same name")?;
        }
        Ok(())
    }

    fn keyspace(&mut self, id: KeyspaceId) -> Result<&mut KeyspaceState, Malformed> {
        self.keyspaces.get_mut(&id).ok_or(Malformed::Damaged("a change of a missing keyspace"))
    }

    fn add(&mut self, segment: &Arc<SegmentMeta>) -> Result<(), Malformed> {
        self.keyspace(segment.keyspace)?;
        require(segment.first_key <= segment.last_key, "a segment's last key is below its first")?;
        require(segment.smallest <= segment.largest, "a segment's sequence numbers are swapped")?;
        require(segment.entries > 0, "a segment is empty")?;
        require(segment.tombstones <= segment.entries, "a segment has too many tombstones")?;
        require(
            usize::from(segment.level) < LEVELS,
            "a segment is in a level that does not exist",
        )?;
        let twice = self.segments.insert(segment.id, Arc::clone(segment)).is_some();
        require(!twice, "a segment is added twice")
    }

    /// Everything that an edit introduces is below the next numbers, once it is applied.
    fn check_numbers(&self, edit: &Edit) -> Result<(), Malformed> {
        for change in &edit.changes {
            let below = match change {
                Change::CreateKeyspace { id, .. } => *id < self.next_keyspace,
                Change::AddSegment(segment) => {
                    segment.id < self.next_segment && segment.run < self.next_run
                }
                Change::LogFloor(floor) => *floor <= self.next_log,
                _ => true,
            };
            require(below, "a number is used that the next numbers do not cover")?;
        }
        Ok(())
    }

    /// Whether the segments of each sorted run are apart, in the runs that `edit` adds to, or in all.
    pub(super) fn check_runs(&self, edit: Option<&Edit>) -> Result<(), Malformed> {
        let touched: Option<BTreeSet<RunKey>> = edit.map(|edit| {
            let added = edit.changes.iter().filter_map(|change| match change {
                Change::AddSegment(segment) => Some(run_of(segment)),
                _ => None,
            });
            added.collect()
        });
        if touched.as_ref().is_some_and(BTreeSet::is_empty) {
            return Ok(());
        }
        let concerns = |run| touched.as_ref().is_none_or(|touched| touched.contains(&run));
        let mut segments: Vec<&SegmentMeta> = self
            .segments
            .values()
            .map(|segment| &**segment)
            .filter(|segment| concerns(run_of(segment)))
            .collect();
        segments.sort_unstable_by(|a, b| {
            run_of(a).cmp(&run_of(b)).then_with(|| a.first_key.cmp(&b.first_key))
        });
        let apart = segments
            .iter()
            .zip(segments.iter().skip(1))
            .all(|(one, next)| run_of(one) != run_of(next) || one.last_key < next.first_key);
        require(apart, "two segments of a sorted run overlap")
    }

    /// The whole state as one edit on top of [`ManifestState::empty`].
    pub(crate) fn snapshot_edit(&self) -> Edit {
        let mut changes = vec![
            Change::Next {
                segment: self.next_segment,
                log: self.next_log,
                keyspace: self.next_keyspace,
                run: self.next_run,
            },
            Change::LogFloor(self.log_floor),
            Change::Flushed(self.flushed),
        ];
        for (&id, keyspace) in &self.keyspaces {
            changes.push(Change::CreateKeyspace { id, name: keyspace.name.clone() });
            let clears = keyspace.clears.iter();
            changes.extend(clears.map(|&seqno| Change::Clear { id, seqno }));
            if !keyspace.deletes.is_empty() {
                let deletes = keyspace.deletes.iter();
                let deletes = deletes.map(|(seqno, span)| (seqno, span.clone())).collect();
                changes.push(Change::AddRangeDeletes { id, deletes });
            }
            if keyspace.settings != KeyspaceSettings::default() {
                changes.push(Change::SetOptions { id, settings: keyspace.settings.clone() });
            }
        }
        changes
            .extend(self.segments.values().map(|segment| Change::AddSegment(Arc::clone(segment))));
        Edit { changes }
    }
}

fn require(holds: bool, what: &'static str) -> Result<(), Malformed> {
    if holds { Ok(()) } else { Err(Malformed::Damaged(what)) }
}
