//! Operations and batches, as they lie in the payload of a commit group.
//!
//! ```text
//! batch   varint count, at least 1 · that many operations
//! op      u8 kind · varint keyspace · varint length, key · [varint length, value]
//! ```
//!
//! A batch is encoded by whoever collects it, one [`encode_op`] at a time behind the count, and is
//! not touched again: a commit group is the batches back to back.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use crate::coding::{Reader, put_bytes, put_varint, varint_len};
use crate::error::Malformed;
use crate::types::{EXPIRY_LEN, KIND_BITS, KeyspaceId, Kind, MAX_KEY_LEN, MAX_VALUE_LEN};

/// The fewest bytes an operation takes: its kind, a keyspace id, and an empty key's length.
pub(super) const MIN_OP_LEN: u64 = 3;

/// One write to one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Op<'a> {
    /// Whose key it is.
    pub(crate) keyspace: KeyspaceId,
    /// What happens to it.
    pub(crate) kind: Kind,
    /// At most [`MAX_KEY_LEN`] bytes.
    pub(crate) key: &'a [u8],
    /// At most [`MAX_VALUE_LEN`] bytes, expiry included; empty for a delete.
    pub(crate) value: &'a [u8],
}

/// Appends an operation. Its lengths were checked by the caller; the value of a delete is ignored.
pub(crate) fn encode_op(out: &mut Vec<u8>, op: Op<'_>) {
    debug_assert!(op.key.len() <= MAX_KEY_LEN && op.value.len() <= MAX_VALUE_LEN);
    out.push(op.kind as u8);
    put_varint(out, u64::from(op.keyspace.0));
    put_bytes(out, op.key);
    if op.kind != Kind::Delete {
        put_bytes(out, op.value);
    }
}

/// The same for an operation that expires, with its value proper; its kind is that without an expiry.
/// Says where in `out` the expiry begins: the caller may not know it yet.
pub(crate) fn encode_expiring(out: &mut Vec<u8>, op: Op<'_>, expiry: u64) -> usize {
    debug_assert!(op.key.len() <= MAX_KEY_LEN && op.value.len() <= MAX_VALUE_LEN - EXPIRY_LEN);
    out.push(op.kind.expiring() as u8);
    put_varint(out, u64::from(op.keyspace.0));
    put_bytes(out, op.key);
    put_varint(out, (EXPIRY_LEN + op.value.len()) as u64);
    let at = out.len();
    out.extend_from_slice(&expiry.to_le_bytes());
    out.extend_from_slice(op.value);
    at
}

/// How many bytes [`encode_op`] appends.
pub(crate) fn encoded_len(op: &Op<'_>) -> usize {
    let field = |bytes: &[u8]| varint_len(bytes.len() as u64) + bytes.len();
    let value = if op.kind == Kind::Delete { 0 } else { field(op.value) };
    1 + varint_len(u64::from(op.keyspace.0)) + field(op.key) + value
}

fn decode_op<'a>(reader: &mut Reader<'a>) -> Result<Op<'a>, Malformed> {
    let flags = reader.u8()?;
    if flags & !KIND_BITS != 0 {
        return Err(Malformed::Damaged("an operation sets a reserved flag"));
    }
    let number = flags & KIND_BITS;
    let Some(kind) = Kind::from_u8(number).filter(|kind| !kind.is_away()) else {
        return Err(if Kind::is_reserved(number) {
            Malformed::Unsupported("an operation of a kind that a newer version writes")
        } else {
            Malformed::Damaged("an operation has an invalid kind")
        });
    };
    let keyspace = u32::try_from(reader.varint()?)
        .map_err(|_| Malformed::Damaged("a keyspace id does not fit 32 bits"))?;
    let key = reader.prefixed_bytes()?;
    if key.len() > MAX_KEY_LEN {
        return Err(Malformed::Damaged("a key is longer than 65535 bytes"));
    }
    let value = if kind == Kind::Delete { &[] } else { reader.prefixed_bytes()? };
    if value.len() < kind.least_value() {
        return Err(Malformed::Damaged("a value has no room for its expiry"));
    }
    if kind == Kind::DeleteRange && !value.is_empty() && value <= key {
        return Err(Malformed::Damaged("a range delete ends where it starts, or before"));
    }
    if value.len() > MAX_VALUE_LEN {
        return Err(Malformed::Damaged("a value is longer than 4294967295 bytes"));
    }
    Ok(Op { keyspace: KeyspaceId(keyspace), kind, key, value })
}

/// The batches of a commit group. The first error ends the iteration.
pub(crate) fn batches(payload: &[u8]) -> Batches<'_> {
    Batches { rest: payload }
}

/// Iterates over the batches of a commit group; see [`batches`].
#[derive(Clone, Debug)]
pub(crate) struct Batches<'a> {
    rest: &'a [u8],
}

impl<'a> Batches<'a> {
    fn take(&mut self) -> Result<Batch<'a>, Malformed> {
        let mut reader = Reader::new(std::mem::take(&mut self.rest));
        let count = reader.varint()?;
        if count == 0 {
            return Err(Malformed::Damaged("a batch has no operations"));
        }
        let body = reader.bytes(reader.remaining())?;
        let mut ops = Reader::new(body);
        for _ in 0..count {
            decode_op(&mut ops)?;
        }
        let mut parts = Reader::new(body);
        let batch = Batch { count, body: parts.bytes(ops.position())? };
        self.rest = parts.bytes(parts.remaining())?;
        Ok(batch)
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<Batch<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() { None } else { Some(self.take()) }
    }
}

/// One batch, whose operations were all seen to be sound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch<'a> {
    count: u64,
    body: &'a [u8],
}

impl<'a> Batch<'a> {
    /// How many operations it holds, at least one.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Its operations, in order.
    pub(crate) fn ops(&self) -> Ops<'a> {
        Ops::new(self.body, self.count)
    }
}

/// Iterates over the operations of a [`Batch`].
#[derive(Clone, Debug)]
pub(crate) struct Ops<'a> {
    left: u64,
    reader: Reader<'a>,
}

impl<'a> Ops<'a> {
    /// The first `count` operations encoded in `body`.
    pub(crate) fn new(body: &'a [u8], count: u64) -> Self {
        Ops { left: count, reader: Reader::new(body) }
    }
}

impl<'a> Iterator for Ops<'a> {
    type Item = Result<Op<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let op = decode_op(&mut self.reader);
        if op.is_err() {
            self.left = 0;
        }
        Some(op)
    }
}
