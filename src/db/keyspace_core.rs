//! What the handles to one keyspace have in common.

use crate::error::{Error, Result};
use crate::filter::CompactionFilter;
use crate::merge::MergeOperator;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, OnceLock};
use crate::types::KeyspaceId;
use crate::version::KeyspaceSettings;

/// What all handles to one keyspace share.
pub(crate) struct KeyspaceCore {
    pub(crate) id: KeyspaceId,
    pub(crate) name: String,
    pub(crate) hash_seed: u64,
    /// Tells the databases of one process apart.
    pub(crate) database: u64,
    /// Set, under the writer's lock, once the keyspace is dropped.
    pub(crate) dropped: AtomicBool,
    /// What the manifest has. Set under the committer's lock.
    settings: Mutex<KeyspaceSettings>,
    /// Its merge operator, from when it was first given; then no other.
    operator: OnceLock<Arc<dyn MergeOperator>>,
    /// Its compaction filter, the last one given.
    filter: Mutex<Option<Arc<dyn CompactionFilter>>>,
    /// Whether it was given one.
    is_filtered: AtomicBool,
    /// The time to live of the settings.
    default_ttl_ms: AtomicU64,
}

impl std::fmt::Debug for KeyspaceCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyspaceCore").field("id", &self.id).field("name", &self.name).finish()
    }
}

impl KeyspaceCore {
    pub(crate) fn new(
        database: u64,
        hash_seed: u64,
        id: KeyspaceId,
        name: String,
        settings: KeyspaceSettings,
    ) -> Arc<Self> {
        Arc::new(KeyspaceCore {
            id,
            name,
            hash_seed,
            database,
            dropped: AtomicBool::new(false),
            operator: OnceLock::new(),
            filter: Mutex::new(None),
            is_filtered: AtomicBool::new(false),
            default_ttl_ms: AtomicU64::new(settings.default_ttl_ms),
            settings: Mutex::new(settings),
        })
    }

    pub(crate) fn check_live(&self) -> Result<()> {
        if self.dropped.load(Ordering::Acquire) {
            Err(Error::KeyspaceDropped { name: self.name.clone() })
        } else {
            Ok(())
        }
    }

    /// Its merge operator, if it was given.
    pub(crate) fn operator(&self) -> Option<&dyn MergeOperator> {
        self.operator.get().map(|operator| &**operator)
    }

    /// The same, to keep.
    pub(crate) fn shared_operator(&self) -> Option<Arc<dyn MergeOperator>> {
        self.operator.get().cloned()
    }

    /// Gives it its operator, if any, whose name is that of the settings, unless it has it.
    pub(crate) fn give_operator(&self, operator: Option<Arc<dyn MergeOperator>>) {
        if let Some(operator) = operator {
            self.operator.get_or_init(|| operator);
        }
    }

    /// Its compaction filter, if it was given.
    pub(crate) fn filter(&self) -> Option<Arc<dyn CompactionFilter>> {
        self.filter.lock().clone()
    }

    /// Gives it a compaction filter, in the place of another.
    pub(crate) fn give_filter(&self, filter: &Arc<dyn CompactionFilter>) {
        // Before any job can use it, and so before there is a snapshot that it concerns.
        self.is_filtered.store(true, Ordering::SeqCst);
        *self.filter.lock() = Some(Arc::clone(filter));
    }

    /// Whether it was given a compaction filter since the database was opened.
    #[inline]
    pub(crate) fn is_filtered(&self) -> bool {
        self.is_filtered.load(Ordering::SeqCst)
    }

    /// An error for what its operator has to do with.
    pub(crate) fn operator_error(&self, reason: impl Into<String>) -> Error {
        Error::MergeOperator { keyspace: self.name.clone(), reason: reason.into() }
    }

    /// Whether an operand may be written.
    pub(crate) fn check_operand(&self, key: &[u8], operand: &[u8]) -> Result<()> {
        match self.operator() {
            Some(operator) => crate::merge::check(operator, key, operand),
            None => Err(self.operator_error("it has no merge operator: open it with one")),
        }
    }

    /// How long what is written lives that does not say so itself, in milliseconds; `None`: for ever.
    #[inline]
    pub(crate) fn usual_ttl_ms(&self) -> Option<u64> {
        Some(self.default_ttl_ms.load(Ordering::Relaxed)).filter(|ttl_ms| *ttl_ms != 0)
    }

    /// What the manifest has.
    pub(crate) fn settings(&self) -> KeyspaceSettings {
        self.settings.lock().clone()
    }

    /// After the manifest has these.
    pub(crate) fn set_settings(&self, settings: KeyspaceSettings) {
        self.default_ttl_ms.store(settings.default_ttl_ms, Ordering::Relaxed);
        *self.settings.lock() = settings;
    }
}
