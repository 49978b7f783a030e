//! What the handles to one keyspace have in common.

use crate::error::{Error, Result};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::types::KeyspaceId;

/// What all handles to one keyspace share.
#[derive(Debug)]
pub(crate) struct KeyspaceCore {
    pub(crate) id: KeyspaceId,
    pub(crate) name: String,
    pub(crate) hash_seed: u64,
    /// Tells the databases of one process apart.
    pub(crate) database: u64,
    /// Set, under the writer's lock, once the keyspace is dropped.
    pub(crate) dropped: AtomicBool,
}

impl KeyspaceCore {
    pub(crate) fn check_live(&self) -> Result<()> {
        if self.dropped.load(Ordering::Acquire) {
            Err(Error::KeyspaceDropped { name: self.name.clone() })
        } else {
            Ok(())
        }
    }
}
