//! The one error type. Each variant says what happened, where, and what to do next.
//!
//! Errors are cheap to clone, because every writer of a commit group gets the same one. Called by
//! every room.

use crate::types::SeqNo;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of an operation of this library.
pub type Result<T> = std::result::Result<T, Error>;

/// What the caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The argument cannot be accepted; nothing was changed. Mend the call.
    InvalidInput,
    /// Another process has the database, or the thing named does not exist any more.
    Unavailable,
    /// The operating system refused. Writes that failed left nothing behind.
    Io,
    /// Bytes on disk are not what was written. `verify` tells how much is affected.
    Corruption,
    /// The file needs a newer library, or a feature this build lacks.
    Unsupported,
    /// Writes are refused until the database is opened again.
    Poisoned,
    /// Code that the database was given failed: mend that. Nothing was lost.
    UserCode,
    /// Others were faster; nothing was changed. Begin anew.
    Conflict,
}

/// Everything that can go wrong.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb ("read", "append to").
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: Arc<io::Error>,
    },
    /// No room is left on the device. Free some and try again: nothing acknowledged was lost.
    #[error("no space left to {operation} {}: free some and try again", path.display())]
    DiskFull {
        /// What was being done, as a verb.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
    },
    /// Bytes on disk are not what was written there.
    #[error("{} is damaged at byte {offset}: {what}", file.display())]
    Corruption {
        /// The damaged file.
        file: PathBuf,
        /// Where in the file the damaged structure starts, in bytes.
        offset: u64,
        /// What was found.
        what: String,
    },
    /// The file is sound but needs a newer library or a feature that this build lacks.
    #[error("{} cannot be read by this build: {what}", file.display())]
    UnsupportedFormat {
        /// The file.
        file: PathBuf,
        /// What is not supported, and what would support it.
        what: String,
    },
    /// The directory holds something, but no database.
    #[error("{} is not an AshlarDB database: {why}", path.display())]
    NotADatabase {
        /// The directory.
        path: PathBuf,
        /// How that was seen.
        why: String,
    },
    /// A database was to be written into a directory that holds something. Nothing was changed.
    #[error("{} is not empty: name a directory that is empty or does not exist", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The directory holds no backups, or not the one that was asked for.
    #[error("{}: {why}", path.display())]
    NoBackup {
        /// The directory, or the backup's file.
        path: PathBuf,
        /// How that was seen.
        why: String,
    },
    /// Another handle, in this process or another, has the database open.
    #[error("{} is open in another process or handle: close that first", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The key is longer than [`MAX_KEY_LEN`](crate::MAX_KEY_LEN). Nothing was written.
    #[error("a key of {len} bytes is too long: at most 65535 are allowed")]
    KeyTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The value is longer than [`MAX_VALUE_LEN`](crate::MAX_VALUE_LEN). Nothing was written.
    #[error("a value of {len} bytes is too long: at most 4294967295 are allowed")]
    ValueTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The batch holds more than one commit may. Nothing was written.
    #[error("a batch of {bytes} bytes is too large: at most {limit} are allowed; split it")]
    BatchTooLarge {
        /// What the batch holds, in bytes.
        bytes: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// An option, or a combination of options, makes no sense.
    #[error("option {option}: {reason}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A keyspace name is empty or too long.
    #[error("keyspace name {name:?}: {reason}")]
    InvalidKeyspaceName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No keyspace has this name.
    #[error("there is no keyspace {name:?}")]
    KeyspaceNotFound {
        /// The name.
        name: String,
    },
    /// The keyspace behind this handle was dropped.
    #[error("keyspace {name:?} was dropped: get a new handle to use the name again")]
    KeyspaceDropped {
        /// The name it had.
        name: String,
    },
    /// A keyspace handle or snapshot of one database was used with another.
    #[error("a keyspace or snapshot of another database was used")]
    WrongDatabase,
    /// A segment writer was given a key that is not above the one before.
    #[error("entry {entry} is out of order: keys must rise, and versions of a key must fall")]
    OutOfOrder {
        /// Which entry, counted from zero.
        entry: u64,
    },
    /// A segment cannot take more entries or bytes; finish it and begin another.
    #[error("the segment is full: {what}; finish it and begin another")]
    SegmentFull {
        /// Which limit was met.
        what: &'static str,
    },
    /// A file cannot be taken into a keyspace, although it is sound. Nothing was taken in.
    #[error("{} cannot be ingested: {reason}", file.display())]
    NotIngestible {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// An earlier failure made it unsafe to write. Reads go on; open again to recover.
    #[error("writes are refused after a failure ({reason}): reads go on, reopen to recover")]
    Poisoned {
        /// The failure.
        reason: String,
    },
    /// The database was closed through another handle.
    #[error("the database is closed")]
    Closed,
    /// What was opened for reading only is no longer what is there: a writer has removed this file,
    /// or changed the database faster than it could be read. Open it again.
    #[error("{} was changed or removed by a writer meanwhile: open again", path.display())]
    Outdated {
        /// The file that is gone, or the directory of the database.
        path: PathBuf,
    },
    /// The changes since a number cannot be had from the logs. A copy that needs them must start
    /// anew, from a state at or after `oldest`.
    #[error(
        "the logs only have the changes since {oldest}, and up to {newest}: start anew from a copy"
    )]
    ChangesGone {
        /// The first number since which they can be had.
        oldest: SeqNo,
        /// The newest change. A number above it is that of a write that was lost in a crash, or of
        /// another database.
        newest: SeqNo,
    },
    /// A merge operator refused an operand, could not merge, or panicked. Nothing is lost: value and
    /// operands are kept as they are.
    #[error("the merge operator {operator:?} failed: {reason}")]
    MergeFailed {
        /// The operator's name.
        operator: String,
        /// What it said.
        reason: String,
    },
    /// A compaction filter panicked, or gave a value that is too long. The compaction was done without
    /// it from there on: nothing is lost, and what was to be filtered is as it was.
    #[error("the compaction filter of keyspace {keyspace:?} failed: {reason}")]
    FilterFailed {
        /// The keyspace's name.
        keyspace: String,
        /// What went wrong.
        reason: String,
    },
    /// A keyspace lacks the merge operator that a call needs, or has another one.
    #[error("keyspace {keyspace:?}: {reason}")]
    MergeOperator {
        /// The keyspace's name.
        keyspace: String,
        /// What is missing or wrong, and what to do.
        reason: String,
    },
    /// Something that the transaction read was written since it began, or so much was written that this can no
    /// longer be told. Nothing of it was written: begin anew, as [`Db::transact`](crate::Db::transact) does.
    #[error("what the transaction read was written by others meanwhile: begin anew")]
    Conflict,
    /// A time to live is zero, or reaches past what can be written down. Nothing was written.
    #[error("a time to live of {ttl_ms} ms {reason}")]
    InvalidTtl {
        /// The time to live, in milliseconds.
        ttl_ms: u128,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Error {
    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Io { .. } | Error::DiskFull { .. } => ErrorKind::Io,
            Error::Corruption { .. } => ErrorKind::Corruption,
            Error::UnsupportedFormat { .. } => ErrorKind::Unsupported,
            Error::Locked { .. }
            | Error::NotADatabase { .. }
            | Error::NoBackup { .. }
            | Error::KeyspaceNotFound { .. }
            | Error::KeyspaceDropped { .. }
            | Error::Closed
            | Error::Outdated { .. }
            | Error::ChangesGone { .. } => ErrorKind::Unavailable,
            Error::Poisoned { .. } => ErrorKind::Poisoned,
            Error::KeyTooLong { .. }
            | Error::ValueTooLong { .. }
            | Error::BatchTooLarge { .. }
            | Error::InvalidOption { .. }
            | Error::NotEmpty { .. }
            | Error::InvalidKeyspaceName { .. }
            | Error::WrongDatabase
            | Error::OutOfOrder { .. }
            | Error::SegmentFull { .. }
            | Error::NotIngestible { .. }
            | Error::MergeOperator { .. }
            | Error::InvalidTtl { .. } => ErrorKind::InvalidInput,
            Error::MergeFailed { .. } | Error::FilterFailed { .. } => ErrorKind::UserCode,
            Error::Conflict => ErrorKind::Conflict,
        }
    }

    /// An I/O error with what was being done, and to which file.
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Error {
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Error::DiskFull { operation, path: path.to_path_buf() };
        }
        Error::Io { operation, path: path.to_path_buf(), source: Arc::new(source) }
    }

    /// Damage at an offset of a file.
    pub(crate) fn corruption(file: &Path, offset: u64, what: impl Into<String>) -> Error {
        Error::Corruption { file: file.to_path_buf(), offset, what: what.into() }
    }
}

/// What a decoder found wrong, before it is known in which file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// The bytes break the format.
    Damaged(&'static str),
    /// The bytes use a part of the format that this build does not implement.
    Unsupported(&'static str),
}

impl Malformed {
    /// The error for a structure that starts at `offset` of `file`.
    pub(crate) fn at(self, file: &Path, offset: u64) -> Error {
        match self {
            Malformed::Damaged(what) => Error::corruption(file, offset, what),
            Malformed::Unsupported(what) => Error::UnsupportedFormat {
                file: file.to_path_buf(),
                what: format!("at byte {offset}: {what}"),
            },
        }
    }
}
