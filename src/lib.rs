//! AshlarDB: an embedded, ordered key-value engine of sorted segments.

mod checksum;
mod coding;
mod compression;
mod cursor;
mod error;
mod hash;
mod slice;
mod sync;
mod types;

pub mod vfs;

pub use compression::Compression;
pub use error::{Error, ErrorKind, Result};
pub use slice::{Key, Value};
pub use types::{KeyspaceId, Kind, LogId, MAX_KEY_LEN, MAX_VALUE_LEN, PAGE, SegmentId, SeqNo};
