//! A step through a block: the entry that begins where the one before ends.
//!
//! That they do lie so is checked when a block is decoded; this reads an entry's header once, without
//! the table of offsets. Total, like all that reads a block. Called by the segment cursor.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::block::{Block, Entry};
use super::format::{ENTRY_HEADER_LEN, FLAG_KIND, FLAG_SAME_KEY, FLAG_SEQNO};
use crate::coding::u64_at;
use crate::types::{Kind, SeqNo};

/// The entry that begins at `start` in the block's payload; one must begin there.
#[inline]
pub(super) fn entry_at(block: &Block, start: usize) -> Option<Entry> {
    let bytes = block.view(&(start..block.payload_len()));
    let [k0, k1, v0, v1, v2, v3, flags] = *bytes.first_chunk::<ENTRY_HEADER_LEN>()?;
    let key = start + ENTRY_HEADER_LEN;
    let (key, seqno) = match flags & FLAG_SEQNO {
        0 => (key, block.unnumbered()),
        _ => (key + 8, SeqNo(u64_at(bytes, ENTRY_HEADER_LEN)?)),
    };
    let value = key + usize::from(u16::from_le_bytes([k0, k1]));
    Some(Entry {
        key: key..value,
        value: value..value + u32::from_le_bytes([v0, v1, v2, v3]) as usize,
        seqno,
        kind: Kind::from_u8(flags & FLAG_KIND)?,
        same_key: flags & FLAG_SAME_KEY != 0,
    })
}
