//! What the versions of a key come to.
//!
//! They are looked at from the newest one on. A put says what the key's value is, a removal that there
//! is none, and so does a put that has expired: nothing older matters. A merge operand waits for what it is to be merged
//! into; one that has expired is as if it never had been.

use super::View;
use crate::error::{Error, Result};
use crate::merge::{MergeOperator, longest_result, merge};
use crate::types::{Kind, SeqNo, split_expiry};
use bytes::Bytes;

/// When an entry expires, and its value proper: see [`split_expiry`].
pub(super) fn without_expiry(kind: Kind, value: Bytes) -> (u64, Bytes) {
    let (expiry, proper) = split_expiry(kind, &value);
    let from = value.len() - proper.len();
    (expiry, value.slice(from..))
}

/// What the versions of a key come to.
#[derive(Clone, Debug)]
pub(crate) struct Folded {
    pub(crate) value: Bytes,
    /// When the key is absent, if nothing else is written: when the last part of the value expires.
    pub(crate) expiry: u64,
}

/// Takes the versions of one key that a view may see, from the newest on. A plain value, for one
/// lookup.
pub(crate) struct Fold<'a> {
    view: &'a View,
    /// Newest first.
    operands: Vec<Bytes>,
    base: Option<Bytes>,
    /// The base is a reference to the value.
    is_away: bool,
    /// The latest expiry of these.
    expiry: u64,
}

impl<'a> Fold<'a> {
    pub(crate) fn new(view: &'a View) -> Self {
        Fold { view, operands: Vec::new(), base: None, is_away: false, expiry: 0 }
    }

    /// Takes the next older version, one that the snapshot may see. `true`: no older one matters.
    pub(crate) fn add(&mut self, seqno: SeqNo, kind: Kind, value: Bytes) -> bool {
        if self.view.is_cleared(seqno) {
            return true;
        }
        let (expiry, value) = without_expiry(kind, value);
        let has_expired = expiry <= self.view.now_ms;
        if !has_expired && kind != Kind::Delete {
            self.expiry = self.expiry.max(expiry);
        }
        match kind {
            Kind::Delete | Kind::DeleteRange => true,
            Kind::Put | Kind::PutUntil | Kind::PutAway | Kind::PutAwayUntil => {
                self.base = Some(value).filter(|_| !has_expired);
                self.is_away = kind.is_away();
                true
            }
            Kind::Merge | Kind::MergeUntil => {
                if !has_expired {
                    self.operands.push(value);
                }
                false
            }
        }
    }

    /// Reads the value of the put that was met, if that lies elsewhere. Before the end.
    pub(crate) fn bring(&mut self, fetch: impl FnOnce(&[u8]) -> Result<Bytes>) -> Result<()> {
        if std::mem::take(&mut self.is_away)
            && let Some(base) = &mut self.base
        {
            *base = fetch(base)?;
        }
        Ok(())
    }

    /// The value that they come to, if any.
    ///
    /// # Errors
    ///
    /// [`Error::MergeFailed`]; [`Error::MergeOperator`] if there are operands and no operator.
    pub(crate) fn finish(
        self,
        key: &[u8],
        keyspace: &str,
        operator: Option<&dyn MergeOperator>,
    ) -> Result<Option<Folded>> {
        let Fold { mut operands, base, expiry, .. } = self;
        let folded = |value| Folded { value, expiry };
        if operands.is_empty() {
            return Ok(base.map(folded));
        }
        let operator = operator.ok_or_else(|| Error::MergeOperator {
            keyspace: keyspace.to_owned(),
            reason: "it has merge operands, but no merge operator was given".to_owned(),
        })?;
        operands.reverse();
        let operands: Vec<&[u8]> = operands.iter().map(|operand| &operand[..]).collect();
        let merged = merge(operator, key, base.as_deref(), &operands, longest_result(false))?;
        Ok(merged.map(|value| folded(Bytes::from(value))))
    }
}
