//! Snapshots: all keyspaces as of one moment.

use super::keyspace::Keyspace;
use super::keyspace_core::KeyspaceCore;
use super::read::{ReadFrom, forward_reads};
use super::snapshot_list::Moment;
use super::{Db, Inner};
use crate::error::{Error, Result};
use crate::sync::Arc;
use crate::types::SeqNo;

/// All keyspaces as of one moment. Cheap to clone, `Send + Sync`; readers of it never wait. What had
/// not expired at that moment does not expire for it.
///
/// While it lives, the versions that it sees stay on disk, and the database's directory stays
/// locked, even when all other handles are gone. It reads the default keyspace;
/// [`of`](Self::of) gives the same moment of another.
#[derive(Clone)]
pub struct Snapshot {
    registration: Arc<Registration>,
    core: Arc<KeyspaceCore>,
}

/// Keeps a sequence number on the list of those that compactions respect.
struct Registration {
    inner: Arc<Inner>,
    moment: Moment,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.inner.release_snapshot(self.moment);
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("seqno", &self.seqno())
            .field("keyspace", &self.core.name)
            .finish()
    }
}

impl Snapshot {
    pub(super) fn new(db: &Db) -> Self {
        let inner = Arc::clone(&db.default.handle.inner);
        let moment = inner.register_snapshot();
        Snapshot {
            registration: Arc::new(Registration { inner, moment }),
            core: Arc::clone(&db.default.core),
        }
    }

    /// The sequence number up to which it sees.
    #[must_use]
    pub fn seqno(&self) -> SeqNo {
        self.registration.moment.seqno
    }

    /// The same moment of another keyspace.
    ///
    /// # Errors
    ///
    /// [`Error::WrongDatabase`] if the keyspace belongs to another database.
    pub fn of(&self, keyspace: &Keyspace) -> Result<Snapshot> {
        if keyspace.core.database != self.core.database {
            return Err(Error::WrongDatabase);
        }
        let (registration, core) = (Arc::clone(&self.registration), Arc::clone(&keyspace.core));
        Ok(Snapshot { registration, core })
    }

    pub(super) fn read_from(&self) -> ReadFrom<'_> {
        ReadFrom {
            inner: &self.registration.inner,
            core: &self.core,
            snapshot: Some(self.registration.moment),
        }
    }

    forward_reads!();
}
