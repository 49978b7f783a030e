//! What a keyspace is opened with.
//!
//! Unlike the options of a database these are part of the data, all but the compaction filter: the manifest
//! keeps them, because what is written with them means nothing without. Plain values. Called by opening a database or a keyspace.

use super::batch::ttl_ms;
use super::keyspace_core::KeyspaceCore;
use crate::error::{Error, Result};
use crate::filter::CompactionFilter;
use crate::merge::{MergeOperator, caught, ready_made};
use crate::sync::Arc;
use crate::types::MAX_VALUE_LEN;
use crate::version::KeyspaceSettings;
use std::time::Duration;

/// The longest name of a merge operator, in bytes.
const MAX_OPERATOR_NAME: usize = 255;

/// How to open a keyspace. See [`Db::keyspace_with`](crate::Db::keyspace_with).
#[derive(Clone, Default)]
#[must_use]
pub struct KeyspaceOptions {
    merge_operator: Option<Arc<dyn MergeOperator>>,
    compaction_filter: Option<Arc<dyn CompactionFilter>>,
    default_ttl: UsualTtl,
    separate_above: Option<u64>,
}

/// What becomes of the usual time to live.
#[derive(Clone, Copy, Debug, Default)]
enum UsualTtl {
    #[default]
    AsItIs,
    None,
    Some(Duration),
}

impl std::fmt::Debug for KeyspaceOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyspaceOptions")
            .field("merge_operator", &self.merge_operator.as_ref().map(|operator| operator.name()))
            .field("compaction_filter", &self.compaction_filter.is_some())
            .field("default_ttl", &self.default_ttl)
            .field("separate_above", &self.separate_above)
            .finish()
    }
}

impl KeyspaceOptions {
    /// Those of a keyspace as it is, or of a plain new one.
    pub fn new() -> Self {
        Self::default()
    }

    /// What [`merge`](crate::Keyspace::merge) does here. Needed each time that the keyspace is opened, once
    /// it was opened with it. A keyspace without one can be given one; it can never be given another.
    pub fn merge_operator(mut self, operator: impl MergeOperator + 'static) -> Self {
        self.merge_operator = Some(Arc::new(operator));
        self
    }

    /// What compactions of this keyspace ask about values from now on, until it is opened with another one or the
    /// database is closed. Not kept: see [`CompactionFilter`].
    pub fn compaction_filter(mut self, filter: impl CompactionFilter + 'static) -> Self {
        self.compaction_filter = Some(Arc::new(filter));
        self
    }

    /// How long what is put or merged here from now on lives, unless it says otherwise; `None`: for ever.
    /// Kept until it is set anew.
    pub fn default_ttl(mut self, ttl: impl Into<Option<Duration>>) -> Self {
        self.default_ttl = ttl.into().map_or(UsualTtl::None, UsualTtl::Some);
        self
    }

    /// Values of more than so many bytes are written into files of their own from now on, value segments,
    /// when they are flushed; the segments keep references to them, of 32 bytes. So compactions move the references, and
    /// a value is written once, not once for each level: worth it from some kilobytes on. A read of such a value costs
    /// one more read of a file, which the block cache does not keep; ranges with
    /// [`keys_only`](crate::IterOptions::keys_only) and `contains_key` do without. What was removed or overwritten
    /// keeps its room in a value segment until less than half of that is in use, when compactions write the rest
    /// anew; while there is no time to tidy up, until it is less than a quarter, and with
    /// [`Compaction::Fifo`](crate::Compaction::Fifo) until the segments go that refer to it. Kept until it is set anew; [`u64::MAX`], as
    /// at first: none are. Longer values that are in segments, or that [`ingest`](crate::Keyspace::ingest) or a bulk load
    /// brings there, leave them when they are compacted: where nothing else has keys that may be never. Those that are apart stay so until little of their value segment is in use.
    pub fn separate_values_above(mut self, bytes: u64) -> Self {
        self.separate_above = Some(bytes);
        self
    }

    /// What the manifest is to have of a keyspace that has these settings now.
    ///
    /// # Errors
    ///
    /// [`Error::MergeOperator`], [`Error::InvalidTtl`].
    pub(super) fn settings(
        &self,
        keyspace: &str,
        now: KeyspaceSettings,
    ) -> Result<KeyspaceSettings> {
        let refuse =
            |reason: String| Error::MergeOperator { keyspace: keyspace.to_owned(), reason };
        let mut settings = now;
        if let Some(operator) = &self.merge_operator {
            let name = caught(|| operator.name().to_owned()).map_err(|why| {
                refuse(format!("the one given was asked for its name, and {why}"))
            })?;
            if name.is_empty() || name.len() > MAX_OPERATOR_NAME {
                return Err(refuse("the name of a merge operator has 1 to 255 bytes".to_owned()));
            }
            match &settings.merge_operator {
                Some(other) if *other != name => {
                    return Err(refuse(format!(
                        "its merge operator is {other:?}, and {name:?} was given"
                    )));
                }
                _ => settings.merge_operator = Some(name),
            }
        }
        match self.default_ttl {
            UsualTtl::AsItIs => {}
            UsualTtl::None => settings.default_ttl_ms = 0,
            UsualTtl::Some(ttl) => settings.default_ttl_ms = ttl_ms(ttl)?,
        }
        if let Some(above) = self.separate_above {
            // No value is longer than that.
            settings.separate_above = Some(above).filter(|above| *above < MAX_VALUE_LEN as u64);
        }
        Ok(settings)
    }

    /// Whether a keyspace is to stay as it is.
    pub(super) fn changes_nothing(&self) -> bool {
        self.merge_operator.is_none()
            && self.compaction_filter.is_none()
            && self.separate_above.is_none()
            && matches!(self.default_ttl, UsualTtl::AsItIs)
    }

    /// The operator that a keyspace with these settings is to have, if any: one that is open may have it
    /// already. Changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::MergeOperator`] if it needs one that nobody gives.
    pub(super) fn operator(
        &self,
        known: Option<&KeyspaceCore>,
        keyspace: &str,
        settings: &KeyspaceSettings,
        is_ready_made: bool,
    ) -> Result<Option<Arc<dyn MergeOperator>>> {
        let Some(name) = &settings.merge_operator else { return Ok(None) };
        let ready = || is_ready_made.then(|| ready_made(name)).flatten();
        let found = known.and_then(KeyspaceCore::shared_operator);
        match found.or_else(|| self.merge_operator.clone()).or_else(ready) {
            Some(operator) => Ok(Some(operator)),
            None => Err(Error::MergeOperator {
                keyspace: keyspace.to_owned(),
                reason: format!("open it with its merge operator, {name:?}"),
            }),
        }
    }

    /// Gives a keyspace its operator, if any, and the filter, if there is one here.
    pub(super) fn equip(&self, core: &KeyspaceCore, operator: Option<Arc<dyn MergeOperator>>) {
        core.give_operator(operator);
        if let Some(filter) = &self.compaction_filter {
            core.give_filter(filter);
        }
    }
}

/// Gives a keyspace its operator if that is a ready-made one.
pub(super) fn give_ready_made(core: &KeyspaceCore) {
    core.give_operator(core.settings().merge_operator.and_then(|name| ready_made(&name)));
}
