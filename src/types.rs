//! The vocabulary shared by every room: identifiers, sequence numbers, entry kinds, limits.
//!
//! Invariants: identifiers are newtypes, so that one cannot be passed for another; none is ever
//! reused within a database. Called by every room; plain values, so thread safety is no question.

use std::fmt;

/// The longest key, in bytes.
pub const MAX_KEY_LEN: usize = 65_535;

/// The longest value, in bytes.
pub const MAX_VALUE_LEN: usize = 4_294_967_295;

/// The size of a page: data blocks are whole pages, and page numbers address them.
pub const PAGE: usize = 4096;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// The place of a write in the commit order of the whole database. Grows by one per operation.
    /// Zero is "before everything": what compaction leaves when no snapshot can need the number.
    SeqNo(u64)
);
id!(
    /// Names a segment file. Never reused.
    SegmentId(u64)
);
id!(
    /// Names a write-ahead log file. Never reused; logs are replayed in this order.
    LogId(u64)
);
id!(
    /// Names a keyspace. Never reused, not even after the keyspace was dropped.
    KeyspaceId(u32)
);

impl SeqNo {
    /// Before everything.
    pub const ZERO: SeqNo = SeqNo(0);
    /// Later than every write: a read at this number sees all of them.
    pub const MAX: SeqNo = SeqNo(u64::MAX);
}

/// What an entry says about its key. The numbers are those of the file formats (FORMAT.md, "Kinds").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The key has this value.
    Put = 1,
    /// The key is absent (a point tombstone).
    Delete = 2,
}

impl Kind {
    /// The kind with this number, if this version of the library implements it.
    #[must_use]
    pub fn from_u8(n: u8) -> Option<Kind> {
        match n {
            1 => Some(Kind::Put),
            2 => Some(Kind::Delete),
            _ => None,
        }
    }

    /// Whether FORMAT.md gives this number a meaning that this version of the library does not
    /// implement: such an entry is not damage, it needs a newer library.
    #[must_use]
    pub fn is_reserved(n: u8) -> bool {
        (3..=6).contains(&n)
    }
}
