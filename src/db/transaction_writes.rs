//! What a transaction has written to one keyspace, as its own reads see it.
//!
//! Only what it comes to is kept: a key that is put twice is written once. A [`Cell`] says all
//! there is to say of its key; keys without one are as the database has them, or gone if they lie
//! in a range that was deleted. Times to live begin with the commit, so nothing here ever expires.
//! Plain values, for the transaction that owns them and the iterators that look at them.

use super::batch::WriteBatch;
use super::keyspace_core::KeyspaceCore;
use super::transaction_reads::Spans;
use crate::deletes::KeySpan;
use crate::error::Result;
use crate::merge::{longest_result, merge};
use crate::sync::Arc;
use crate::types::Kind;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;

/// A value or an operand, and how long it is to live.
#[derive(Clone, Debug)]
pub(super) struct Lasting {
    pub(super) bytes: Bytes,
    pub(super) ttl_ms: Option<u64>,
}

/// What comes before the operands of a cell.
#[derive(Clone, Debug)]
pub(super) enum Base {
    /// What the database has.
    Below,
    Absent,
    Value(Lasting),
}

/// What was written to a key.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    base: Base,
    operands: Vec<Lasting>,
}

impl Cell {
    /// Whether what the database has matters.
    pub(super) fn needs_below(&self) -> bool {
        matches!(self.base, Base::Below)
    }

    /// The value, if the database has this one, which matters only if it is
    /// [needed](Self::needs_below).
    pub(super) fn value(
        &self,
        core: &KeyspaceCore,
        key: &[u8],
        below: Option<&[u8]>,
    ) -> Result<Option<Bytes>> {
        let base = match &self.base {
            Base::Below => below,
            Base::Absent => None,
            Base::Value(value) if self.operands.is_empty() => return Ok(Some(value.bytes.clone())),
            Base::Value(value) => Some(&value.bytes[..]),
        };
        if self.operands.is_empty() {
            return Ok(base.map(Bytes::copy_from_slice));
        }
        let operator = core.operator();
        let operator = operator.ok_or_else(|| core.operator_error("it has no merge operator"))?;
        let operands: Vec<&[u8]> = self.operands.iter().map(|o| &o.bytes[..]).collect();
        Ok(merge(operator, key, base, &operands, longest_result(false))?.map(Bytes::from))
    }
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(super) struct Writes {
    cells: BTreeMap<Bytes, Arc<Cell>>,
    /// The ranges that were deleted. A cell in one of them never needs what the database has.
    deleted: Spans,
}

impl Writes {
    pub(super) fn is_empty(&self) -> bool {
        self.cells.is_empty() && self.deleted.is_empty()
    }

    /// Whatever was there before, this is what there is now.
    pub(super) fn set(&mut self, key: &[u8], base: Base) {
        let cell = Arc::new(Cell { base, operands: Vec::new() });
        match self.cells.get_mut(key) {
            Some(known) => *known = cell,
            None => {
                self.cells.insert(Bytes::copy_from_slice(key), cell);
            }
        }
    }

    pub(super) fn merge(&mut self, key: &[u8], operand: Lasting) {
        if let Some(cell) = self.cells.get_mut(key) {
            Arc::make_mut(cell).operands.push(operand);
            return;
        }
        let base = if self.deleted.have(key) { Base::Absent } else { Base::Below };
        let cell = Arc::new(Cell { base, operands: vec![operand] });
        self.cells.insert(Bytes::copy_from_slice(key), cell);
    }

    pub(super) fn delete_range(&mut self, span: KeySpan) {
        let end = match &span.end[..] {
            [] => Bound::Unbounded,
            end => Bound::Excluded(end),
        };
        let within = self.cells.range::<[u8], _>((Bound::Included(&span.start[..]), end));
        let within: Vec<Bytes> = within.map(|(key, _)| key.clone()).collect();
        for key in &within {
            self.cells.remove(key);
        }
        self.deleted.add(span);
    }

    /// What was written to a key itself.
    pub(super) fn cell(&self, key: &[u8]) -> Option<&Arc<Cell>> {
        self.cells.get(key)
    }

    /// The range in which the database's keys are deleted, if `key` is in one: where it starts and
    /// ends, exclusive; an empty end is none.
    pub(super) fn deleted_around(&self, key: &[u8]) -> Option<(&Bytes, &Bytes)> {
        self.deleted.around(key)
    }

    /// The first or the last key between two bounds, which must be in order, and what was written
    /// to it.
    pub(super) fn outermost(
        &self,
        bounds: (Bound<&[u8]>, Bound<&[u8]>),
        first: bool,
    ) -> Option<(&Bytes, &Cell)> {
        let mut cells = self.cells.range::<[u8], _>(bounds);
        let (key, cell) = if first { cells.next() } else { cells.next_back() }?;
        Some((key, cell))
    }

    /// Adds what is to be done to a batch.
    pub(super) fn add_to(&self, batch: &mut WriteBatch, core: &Arc<KeyspaceCore>) {
        if self.is_empty() {
            return;
        }
        batch.uses(core);
        for (start, end) in self.deleted.iter() {
            batch.push(core.id, Kind::DeleteRange, start, end, None);
        }
        for (key, cell) in &self.cells {
            let Cell { base, operands } = &**cell;
            match base {
                Base::Value(Lasting { bytes, ttl_ms }) => {
                    batch.push(core.id, Kind::Put, key, bytes, *ttl_ms);
                }
                // The range has done it.
                Base::Absent if self.deleted.have(key) => {}
                Base::Absent => {
                    batch.push(core.id, Kind::Delete, key, b"", None);
                }
                Base::Below => {}
            }
            for Lasting { bytes, ttl_ms } in operands {
                batch.push(core.id, Kind::Merge, key, bytes, *ttl_ms);
            }
        }
    }
}
