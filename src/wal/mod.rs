//! The write-ahead log: every commit, in order, before it is acknowledged (FORMAT.md, section 4).
//!
//! ```text
//! 00000000000000000007.wal      header (64): id, salt, predecessor and its end, last seqno before
//!                               record: sum · length · kind · first seqno · how far back is durable
//!                                 batch: count · op · op …       a commit group is several batches
//!                               record …
//! ```
//!
//! Invariants:
//! - Operations are numbered on without a gap, from record to record and from log to log.
//! - A log is durable, header and directory entry, before its first record is written. So a header
//!   that cannot be read in front of records is damage, and nothing else.
//! - Zeros may follow the last record, written ahead of those to come. They are its end, as the end
//!   of the file is.
//! - Nothing is appended behind a record that failed, or behind a torn tail: a new log is begun,
//!   and its header says where the old one ends.
//! - Each record says how far the log was durable when it was written. That is how a torn tail,
//!   which is normal, is told from damage to what had been synced, which is an error.
//!   **The limit of that:** damage to records behind the last durable point that a surviving record
//!   mentions looks like a torn tail. So after each sync [`LogWriter::append_mark`] moves that point.
//! - Records say which edit of the manifest was durable ([`LogWriter::append_witness`]): an older
//!   manifest is not taken for the newest.
//!
//! - Where change feeds are wanted, each log says in front of its operations which keyspaces there are
//!   ([`LogWriter::append_keyspaces`]), and behind each change of that what changed.
//!
//! [`LogWriter`] writes one log, [`replay`] reads them back at open, [`renew`] makes durable what was
//! read, [`LogFiles`] reads past damage, to verify and to repair, [`LogTail`] follows a log while it is
//! written. Called by `db`. A writer belongs to
//! one thread at a time; its file may be synced from another (see [`LogWriter::file`]).

#[cfg(test)]
mod ahead_tests;
#[cfg(test)]
mod fault_tests;
mod follow;
mod format;
mod fuzz;
mod keyspaces;
mod ops;
mod patient;
mod renew;
#[cfg(test)]
mod renew_tests;
mod replay;
mod salvage;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use follow::{Followed, FollowedWhat, LogSpan, LogTail, Peeked, feed_logs};
pub(crate) use format::{
    HEADER_LEN as LOG_HEADER_LEN, RECORD_HEADER_LEN, log_file_name, parse_log_file_name,
};
pub use fuzz::wal_bytes;
pub(crate) use keyspaces::{KeyspaceNote, NotedKeyspace};
pub(crate) use ops::{Op, Ops, batches, encode_expiring, encode_op, encoded_len};
pub(crate) use renew::renew;
pub use replay::Recovery;
pub(crate) use replay::{Replayed, remove_logs, replay};
pub(crate) use salvage::{LogFiles, Walk, open_logs};
pub(crate) use writer::LogWriter;
