//! Keys and values as they are handed out: reference-counted views, not copies.
//!
//! A [`Key`] or [`Value`] that comes from a block of a segment may share the block's memory and keep
//! the whole block alive (4 KiB to 64 KiB, or the value's own size if that is larger); call `to_vec`
//! to keep a small one for long. Values of up to 256 bytes that a point read gives are copies. Cheap to clone, `Send + Sync`. Called by every room that hands
//! entries on.

use bytes::Bytes;
use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;

macro_rules! slice {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Default, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub(crate) Bytes);

        impl $name {
            /// The bytes, still shared, as a [`bytes::Bytes`].
            #[must_use]
            pub fn into_bytes(self) -> Bytes {
                self.0
            }
        }

        impl Deref for $name {
            type Target = [u8];
            #[inline]
            fn deref(&self) -> &[u8] {
                &self.0
            }
        }

        impl AsRef<[u8]> for $name {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }

        impl Borrow<[u8]> for $name {
            fn borrow(&self) -> &[u8] {
                &self.0
            }
        }

        impl From<$name> for Vec<u8> {
            fn from(slice: $name) -> Vec<u8> {
                slice.0.into()
            }
        }

        impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for $name {
            fn eq(&self, other: &T) -> bool {
                *self.0 == *other.as_ref()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "b\"{}\"", self.0.escape_ascii())
            }
        }
    };
}

/// Values up to this length are copied rather than shared: two threads that read the same block would
/// pass the cache line with its reference count to and fro, which takes longer than the copy, and a
/// small value would keep a whole block alive.
const COPIED: usize = 256;

/// A value where it lies, before anyone takes it along.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lent<'a> {
    bytes: &'a [u8],
    /// Shared memory that it is part of.
    owner: Option<&'a Bytes>,
}

impl<'a> Lent<'a> {
    /// Bytes that will soon be others.
    pub(crate) fn passing(bytes: &'a [u8]) -> Self {
        Lent { bytes, owner: None }
    }

    /// Bytes that are part of `owner`.
    pub(crate) fn within(bytes: &'a [u8], owner: &'a Bytes) -> Self {
        Lent { bytes, owner: Some(owner) }
    }

    /// All of `owner`.
    pub(crate) fn whole(owner: &'a Bytes) -> Self {
        Lent::within(owner, owner)
    }

    /// The value.
    #[inline]
    pub(crate) fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// The same without its first bytes.
    pub(crate) fn behind(self, bytes: usize) -> Self {
        Lent { bytes: self.bytes.get(bytes..).unwrap_or_default(), owner: self.owner }
    }

    /// A value of one's own: a copy or a share.
    #[inline]
    pub(crate) fn to_bytes(self) -> Bytes {
        match self.owner {
            Some(owner) if owner.len() == self.bytes.len() => owner.clone(),
            Some(owner) if self.bytes.len() > COPIED => owner.slice_ref(self.bytes),
            _ => Bytes::copy_from_slice(self.bytes),
        }
    }
}

slice!(
    /// A key, as read. Derefs to `[u8]`.
    Key
);
slice!(
    /// A value, as read. Derefs to `[u8]`.
    Value
);
