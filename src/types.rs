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

/// The bits of an entry's flags that make a [`Kind`]: its number, and whether it expires.
pub(crate) const KIND_BITS: u8 = 0b1_0111;

/// How many bytes an expiry takes in front of a value.
pub(crate) const EXPIRY_LEN: usize = 8;

/// How many bytes a reference to a separated value takes in the place of the value.
pub(crate) const REFERENCE_LEN: usize = 32;

/// What an entry says about its key. The numbers are those of the file formats (FORMAT.md, "Kinds"),
/// with the flag that an entry expires: of such an entry, the first eight bytes of the value are
/// when it does, in milliseconds since the Unix epoch, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Kind {
    /// The key has this value.
    Put = 1,
    /// The key is absent (a point tombstone).
    Delete = 2,
    /// What was there before is to be merged with this operand.
    Merge = 3,
    /// All keys of a range are absent (a range tombstone). Of an operation in a log only: the key is where
    /// the range starts, the value where it ends, exclusive; an empty value: nowhere.
    DeleteRange = 4,
    /// The key has this value until some time, and is absent from then on.
    PutUntil = 0x11,
    /// The same as `Merge` until some time, and nothing from then on.
    MergeUntil = 0x13,
    /// The key has a value that lies in a value segment: this is a reference to it. In segments of a
    /// database only.
    PutAway = 6,
    /// The same until some time, and absent from then on.
    PutAwayUntil = 0x16,
}

impl Kind {
    /// The kind with this number, if this version of the library implements it.
    #[must_use]
    pub fn from_u8(n: u8) -> Option<Kind> {
        match n {
            1 => Some(Kind::Put),
            2 => Some(Kind::Delete),
            3 => Some(Kind::Merge),
            4 => Some(Kind::DeleteRange),
            6 => Some(Kind::PutAway),
            0x11 => Some(Kind::PutUntil),
            0x13 => Some(Kind::MergeUntil),
            0x16 => Some(Kind::PutAwayUntil),
            _ => None,
        }
    }

    /// Whether FORMAT.md gives this number a meaning that this version of the library does not
    /// implement: such an entry is not damage, it needs a newer library.
    #[must_use]
    pub fn is_reserved(n: u8) -> bool {
        (4..=6).contains(&(n & 0b111))
    }

    /// Whether it is a merge operand.
    #[must_use]
    pub fn is_merge(self) -> bool {
        matches!(self, Kind::Merge | Kind::MergeUntil)
    }

    /// Whether the value begins with an expiry.
    #[must_use]
    pub fn expires(self) -> bool {
        matches!(self, Kind::PutUntil | Kind::MergeUntil | Kind::PutAwayUntil)
    }

    /// Whether it is a put whose value lies in a value segment.
    #[must_use]
    pub fn is_away(self) -> bool {
        matches!(self, Kind::PutAway | Kind::PutAwayUntil)
    }

    /// The fewest bytes that the value of such an entry has; of one whose value lies elsewhere, exactly so
    /// many.
    pub(crate) fn least_value(self) -> usize {
        let expiry = if self.expires() { EXPIRY_LEN } else { 0 };
        if self.is_away() { expiry + REFERENCE_LEN } else { expiry }
    }

    /// Of a put: the same with its value elsewhere.
    pub(crate) fn away(self) -> Kind {
        match self {
            Kind::Put => Kind::PutAway,
            Kind::PutUntil => Kind::PutAwayUntil,
            other => other,
        }
    }

    /// Of a put: the same with its value at hand.
    pub(crate) fn here(self) -> Kind {
        match self {
            Kind::PutAway => Kind::Put,
            Kind::PutAwayUntil => Kind::PutUntil,
            other => other,
        }
    }

    /// The same, without an expiry.
    pub(crate) fn lasting(self) -> Kind {
        match self {
            Kind::PutUntil => Kind::Put,
            Kind::MergeUntil => Kind::Merge,
            Kind::PutAwayUntil => Kind::PutAway,
            other => other,
        }
    }

    /// The same, with an expiry.
    pub(crate) fn expiring(self) -> Kind {
        match self {
            Kind::Put => Kind::PutUntil,
            Kind::Merge => Kind::MergeUntil,
            Kind::PutAway => Kind::PutAwayUntil,
            other => other,
        }
    }
}

/// When an entry expires, and its value proper. One of a kind that does not expire never does; a
/// value that is too short for an expiry, which decoders refuse, expired long ago.
#[inline]
pub(crate) fn split_expiry(kind: Kind, value: &[u8]) -> (u64, &[u8]) {
    if !kind.expires() {
        return (u64::MAX, value);
    }
    match value.split_first_chunk::<EXPIRY_LEN>() {
        Some((expiry, value)) => (u64::from_le_bytes(*expiry), value),
        None => (0, &[]),
    }
}
