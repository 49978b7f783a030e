//! Which segments are live, and the durable record of how they came to be: the manifest.
//!
//! ```text
//! MANIFEST    header · edit, edit (its copy) · edit, edit · …      each edit a list of changes
//!                      the whole state          what changed
//! ```
//!
//! Invariants:
//! - The state changes by an [`Edit`] only, and only once that edit is durable.
//! - An edit applies whole or not at all, and is checked against the state before it is written.
//! - After a failed write or sync nothing is written to the manifest again until it is reopened.
//!
//! [`Manifest`] owns the file, [`ManifestState`] is what it says; the caller keeps both behind one
//! lock. Called by `db`, flush and compaction.

mod backup;
mod edit;
mod fuzz;
mod live;
mod manifest;
#[cfg(test)]
mod manifest_tests;
mod run_cursor;
mod salvage;
mod state;
#[cfg(test)]
mod state_tests;
mod values;

pub(crate) use backup::{BackedUpValues, BackupManifest};
pub(crate) use edit::{Change, Edit, KeyspaceSettings, RunNo, SegmentMeta};
pub use fuzz::manifest_bytes;
pub(crate) use live::{
    LEVELS, LiveSegments, Run, Segment, SegmentHome, Tree, Version, parse_segment_file_name,
    remove_leftovers, segment_file_name,
};
pub(crate) use manifest::{MANIFEST_NAME, MANIFEST_NEW_NAME, Manifest, Unsettled};
pub(crate) use run_cursor::RunCursor;
pub(crate) use salvage::{Salvaged, salvage_manifest};
pub(crate) use state::{KeyspaceState, ManifestState};
pub(crate) use values::{ValueFile, parse_value_file_name, value_file_name};
