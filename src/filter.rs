//! Compaction filters: a look at each value that a compaction is about to write anew.
//!
//! A filter says of a key's value whether it stays, goes, or becomes another. Nothing of it is kept with the
//! keyspace: it may be given at one opening and not at the next.
//!
//! Invariants: a filter changes nothing that an open snapshot or iterator sees, and its code never takes
//! the database down: after a panic ([`Error::FilterFailed`](crate::Error::FilterFailed)) what is left of
//! the compaction goes on without it. Filters are `Send + Sync` and may be called by several threads at once,
//! while no lock is held that a reader or writer could need. Called by compactions.

use crate::merge::caught;
use crate::types::MAX_VALUE_LEN;

/// What becomes of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Keep,
    /// The key is removed, as by a delete in the place of the value: what is older stays hidden.
    Remove,
    /// The key gets this value. If it expires, it does when the old one would have.
    Change(Vec<u8>),
}

/// Looks at values while compactions write them anew. Functions of key and value are filters.
///
/// A filter is asked about the value that newer readers would find among what is being compacted: not about
/// removed or expired ones, nor about merge operands that have not met their value yet, nor about anything
/// that a snapshot still sees. It may be asked about a value that a newer write supersedes already, or
/// into which operands are yet to be merged, if those are not part of the compaction; and about one value
/// several times, at each compaction. Flushes do not ask. So what it says should depend on key and value,
/// and perhaps on time, and a value that it would remove may be read until a compaction comes by.
/// [`compact_range`](crate::Keyspace::compact_range) makes one, but not with
/// [`Compaction::Fifo`](crate::Compaction::Fifo), with which nothing is ever asked about. A value in a
/// [value segment](crate::KeyspaceOptions::separate_values_above) is read for it each time.
///
/// A get may see what a filter did a moment before ranges and snapshots that are begun just then do; each of
/// these sees one thing throughout.
///
/// ```
/// # use ashlardb::{Db, filter::Verdict};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let filter = |_key: &[u8], value: &[u8]| match value {
///     b"obsolete" => Verdict::Remove,
///     _ => Verdict::Keep,
/// };
/// let db = Db::builder(dir.path().join("db")).compaction_filter(filter).open()?;
/// db.put("a", "obsolete")?;
/// db.put("b", "of use")?;
/// db.compact_range::<&[u8]>(..)?;
/// assert_eq!(db.get("a")?, None);
/// assert!(db.contains_key("b")?);
/// # Ok(())
/// # }
/// ```
pub trait CompactionFilter: Send + Sync {
    /// What becomes of this value of `key`.
    fn judge(&self, key: &[u8], value: &[u8]) -> Verdict;
}

impl<F: Fn(&[u8], &[u8]) -> Verdict + Send + Sync> CompactionFilter for F {
    fn judge(&self, key: &[u8], value: &[u8]) -> Verdict {
        self(key, value)
    }
}

/// [`CompactionFilter::judge`], guarded; what went wrong as a clause. A new value is
/// stored with so many bytes more.
pub(crate) fn judge(
    filter: &dyn CompactionFilter,
    key: &[u8],
    value: &[u8],
    overhead: usize,
) -> Result<Verdict, String> {
    match caught(|| filter.judge(key, value))? {
        Verdict::Change(new) if new.len() > MAX_VALUE_LEN - overhead => {
            Err(format!("its new value of {} bytes is too long", new.len()))
        }
        verdict => Ok(verdict),
    }
}
