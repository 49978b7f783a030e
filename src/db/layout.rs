//! The live segments, one by one: for people and tools that look at how a store is built.

use super::{Db, Inner};
use crate::slice::Key;
use crate::types::SegmentId;

/// A live segment: where it stands and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentSummary {
    /// Its number, which is also in its file's name.
    pub id: SegmentId,
    /// The name of its keyspace.
    pub keyspace: String,
    /// The level it is in; 0 takes flushes.
    pub level: usize,
    /// Which of the level's sorted runs it belongs to, 0 for the newest.
    pub run: usize,
    /// The length of its file, in bytes.
    pub file_bytes: u64,
    /// Entries, tombstones and old versions included.
    pub entries: u64,
    /// Point tombstones among them.
    pub tombstones: u64,
    /// The first key.
    pub first_key: Key,
    /// The last key.
    pub last_key: Key,
}

impl Db {
    /// Every live segment: by keyspace, then level, run (newest first) and key. Costs a walk over
    /// the list of segments.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentSummary> {
        self.inner().segments()
    }
}

impl Inner {
    pub(super) fn segments(&self) -> Vec<SegmentSummary> {
        let version = self.state.load_full().version.clone();
        let mut cores: Vec<_> = self.keyspaces.lock().values().cloned().collect();
        cores.sort_by(|a, b| a.name.cmp(&b.name));
        let mut found = Vec::new();
        for core in cores {
            let Some(tree) = version.trees.get(&core.id) else { continue };
            for (level, runs) in tree.levels.iter().enumerate() {
                for (run, segments) in runs.iter().map(|run| &run.segments).enumerate() {
                    found.extend(segments.iter().map(|segment| SegmentSummary {
                        id: segment.meta.id,
                        keyspace: core.name.clone(),
                        level,
                        run,
                        file_bytes: segment.meta.file_len,
                        entries: segment.meta.entries,
                        tombstones: segment.meta.tombstones,
                        first_key: segment.meta.first_key.clone(),
                        last_key: segment.meta.last_key.clone(),
                    }));
                }
            }
        }
        found
    }
}
