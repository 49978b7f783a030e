//! AshlarDB: an embedded, ordered key-value engine of sorted segments.

mod checksum;
mod coding;
mod compression;
mod error;
mod hash;
mod sync;
mod types;

pub mod vfs;

pub use compression::Compression;
pub use error::{Error, ErrorKind, Result};
pub use types::{KeyspaceId, Kind, LogId, MAX_KEY_LEN, MAX_VALUE_LEN, PAGE, SegmentId, SeqNo};
