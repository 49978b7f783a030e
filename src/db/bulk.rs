//! Loading of sorted entries: past log and memtable, straight into segments. See `new_run`.

use super::new_run::NewRun;
use super::{Db, Keyspace};
use crate::error::Result;

/// Loads entries that come in the order of their keys: made by [`Keyspace::bulk_loader`].
///
/// What is put is written into segment files at once, and seen by nobody before
/// [`finish`](Self::finish), which makes all of it part of the keyspace in one step. Dropped before
/// that, nothing was loaded. Reads and writes go on meanwhile. For one thread at a time; `Send`.
///
/// Memory: about 40 bytes a key of the segment that is being written, and a write buffer.
#[derive(Debug)]
pub struct BulkLoader {
    /// Gone after an error.
    run: Result<NewRun>,
    /// Keeps the database open.
    _keyspace: Keyspace,
}

impl BulkLoader {
    /// Adds a key, which must be above the one before, and its value. The keyspace's default time to live
    /// applies, counted from when the loader was made.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfOrder`](crate::Error::OutOfOrder) if the key is not above the one before; [`Error::KeyTooLong`](crate::Error::KeyTooLong),
    /// [`Error::ValueTooLong`](crate::Error::ValueTooLong), [`Error::KeyspaceDropped`](crate::Error::KeyspaceDropped), [`Error::Closed`](crate::Error::Closed), [`Error::Poisoned`](crate::Error::Poisoned), [`Error::DiskFull`](crate::Error::DiskFull),
    /// [`Error::Io`](crate::Error::Io). After any of them nothing is loaded: every later call gives the same error.
    pub fn put(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.add(key.as_ref(), value.as_ref(), None)
    }

    /// The same for a key that is absent from some time on, given in milliseconds since the Unix epoch;
    /// `u64::MAX`: never. See [`Keyspace::put_until`].
    ///
    /// # Errors
    ///
    /// As for [`put`](Self::put).
    pub fn put_until(
        &mut self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        expires_ms: u64,
    ) -> Result<()> {
        self.add(key.as_ref(), value.as_ref(), Some(expires_ms))
    }

    fn add(&mut self, key: &[u8], value: &[u8], expires_ms: Option<u64>) -> Result<()> {
        let added = match &mut self.run {
            Ok(run) => run.put(key, value, expires_ms),
            Err(error) => return Err(error.clone()),
        };
        // The files go with the run.
        added.inspect_err(|error| self.run = Err(error.clone()))
    }

    /// How many entries were added.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.run.as_ref().map_or(0, NewRun::entries)
    }

    /// Makes everything that was added part of the keyspace: at once, durably, and over what was
    /// there. Snapshots and iterators made before see none of it. Where the keyspace has nothing between the
    /// first and the last key, it goes where compaction would bring it in the end, and is not written
    /// again. Gives how many entries there were.
    ///
    /// Costs a flush of what is in memory, a new log and an edit of the manifest, for which writers wait.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put). Nothing was loaded then. One case is left open: if from then on writes
    /// are refused with [`Error::Poisoned`](crate::Error::Poisoned), nothing of it is seen here, and the next open
    /// finds all of it or nothing.
    pub fn finish(self) -> Result<u64> {
        self.run?.finish()
    }
}

impl Keyspace {
    /// A loader for entries that come in the order of their keys.
    ///
    /// # Errors
    ///
    /// [`Error::KeyspaceDropped`](crate::Error::KeyspaceDropped), [`Error::Poisoned`](crate::Error::Poisoned), [`Error::Closed`](crate::Error::Closed);
    /// [`Error::InvalidTtl`](crate::Error::InvalidTtl) if the default time to live reaches past the end of time.
    pub fn bulk_loader(&self) -> Result<BulkLoader> {
        let run = NewRun::begin(&self.handle.inner, &self.core)?;
        Ok(BulkLoader { run: Ok(run), _keyspace: self.clone() })
    }

    /// Loads entries whose keys rise, all at once, and gives how many there were. See [`BulkLoader`]
    /// and its [`finish`](BulkLoader::finish).
    ///
    /// # Errors
    ///
    /// [`Error::OutOfOrder`](crate::Error::OutOfOrder) if a key is not above the one before; else as for
    /// [`bulk_loader`](Self::bulk_loader), [`BulkLoader::put`] and [`BulkLoader::finish`].
    pub fn bulk_load<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Result<u64> {
        let mut loader = self.bulk_loader()?;
        for (key, value) in entries {
            loader.put(key, value)?;
        }
        loader.finish()
    }
}

impl Db {
    /// A loader for the default keyspace. See [`Keyspace::bulk_loader`].
    ///
    /// # Errors
    ///
    /// See [`Keyspace::bulk_loader`].
    pub fn bulk_loader(&self) -> Result<BulkLoader> {
        self.default.bulk_loader()
    }

    /// Loads entries whose keys rise into the default keyspace. See [`Keyspace::bulk_load`].
    ///
    /// # Errors
    ///
    /// See [`Keyspace::bulk_load`].
    pub fn bulk_load<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        entries: impl IntoIterator<Item = (K, V)>,
    ) -> Result<u64> {
        self.default.bulk_load(entries)
    }
}
