//! Flush: a frozen memtable becomes segments, one run for each keyspace in it.
//!
//! Invariants: memtables are flushed oldest first, one at a time, so that what is in segments is
//! always a prefix of the commit order. The result is committed by the database in one manifest
//! edit for all keyspaces; until then nothing names the new files. Called by background work and by
//! recovery; no shared state.

use crate::compaction::{
    KeyTest, OlderData, Output, OutputSpec, Retention, StopTest, remove_segments, write_run,
};
use crate::error::Result;
use crate::memtable::Memtable;
use crate::sync::Arc;
use crate::types::{KeyspaceId, SegmentId};
use crate::version::{SegmentHome, Tree};

/// How one keyspace's part is to be written.
pub(crate) struct FlushPart<'a> {
    /// The keyspace's segments: where older versions may be.
    pub(crate) tree: &'a Tree,
    pub(crate) retention: Retention,
    pub(crate) spec: OutputSpec,
    /// Whether it is certain that no segment has a key of the keyspace.
    pub(crate) is_absent: Box<KeyTest<'a>>,
}

/// Writes a frozen memtable into segments. `part` says how for each keyspace, or `None` for one
/// that was dropped, whose entries are left behind. Costs one pass over the memtable. On an error
/// all files written are removed.
pub(crate) fn flush_memtable<'a>(
    home: &SegmentHome,
    table: &Arc<dyn Memtable>,
    part: &dyn Fn(KeyspaceId) -> Option<FlushPart<'a>>,
    next_id: &dyn Fn() -> SegmentId,
    stop: &StopTest<'_>,
) -> Result<Vec<Output>> {
    let mut outputs = Vec::new();
    for keyspace in table.keyspaces() {
        let Some(FlushPart { tree, retention, spec, is_absent }) = part(keyspace) else { continue };
        let mut cursor = Arc::clone(table).cursor(keyspace);
        let older = OlderData::new(tree.runs().map(|run| run.segments.clone())).unless(&is_absent);
        match write_run(home, &mut *cursor, &retention, older, &spec, next_id, stop) {
            Ok(output) => outputs.push(output),
            Err(error) => {
                // The flush will be tried again; what it leaves must not add up.
                remove_segments(home, outputs.iter().flat_map(|output| &output.segments));
                return Err(error);
            }
        }
    }
    Ok(outputs)
}
