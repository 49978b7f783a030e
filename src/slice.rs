//! Keys and values as they are handed out: reference-counted views, not copies.
//!
//! A [`Key`] or [`Value`] that comes from a cached block shares the block's memory and keeps the
//! whole block alive (4 KiB to 64 KiB, or the value's own size if that is larger); call `to_vec`
//! to keep a small one for long. Cheap to clone, `Send + Sync`. Called by every room that hands
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

slice!(
    /// A key, as read. Derefs to `[u8]`.
    Key
);
slice!(
    /// A value, as read. Derefs to `[u8]`.
    Value
);
