//! The sources of a range: known types, so that a step over an entry of a run is no virtual call.

use crate::cursor::{Cursor, Hidden, Seek, Shown};
use crate::error::Result;
use crate::types::{Kind, SeqNo};
use crate::version::RunCursor;
use bytes::Bytes;

/// One source of a range.
#[allow(clippy::large_enum_variant)] // Nearly all are runs.
pub(crate) enum RangeSource {
    Memtable(Box<dyn Cursor>),
    Run(RunCursor),
}

macro_rules! forward {
    ($self:ident, $cursor:ident => $call:expr) => {
        match $self {
            RangeSource::Run($cursor) => $call,
            RangeSource::Memtable($cursor) => $call,
        }
    };
}

impl Cursor for RangeSource {
    fn aim(&mut self, to: Seek<'_>) -> Result<()> {
        forward!(self, cursor => cursor.aim(to))
    }

    fn meet(&mut self) {
        forward!(self, cursor => cursor.meet())
    }

    fn seek(&mut self, to: Seek<'_>) -> Result<()> {
        forward!(self, cursor => cursor.seek(to))
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        forward!(self, cursor => cursor.next())
    }

    #[inline]
    fn prev(&mut self) -> Result<()> {
        forward!(self, cursor => cursor.prev())
    }

    // Left to itself the compiler keeps it apart since range tombstones came: 4 % of a scan backwards.
    #[expect(clippy::inline_always, reason = "measured")]
    #[inline(always)]
    fn stride(&mut self, forward: bool) -> Option<Shown<'_>> {
        forward!(self, cursor => cursor.stride(forward))
    }

    fn unstride(&mut self, forward: bool) {
        forward!(self, cursor => cursor.unstride(forward))
    }

    #[inline]
    fn valid(&self) -> bool {
        forward!(self, cursor => cursor.valid())
    }

    #[inline]
    fn key(&self) -> &[u8] {
        forward!(self, cursor => cursor.key())
    }

    #[inline]
    fn seqno(&self) -> SeqNo {
        forward!(self, cursor => cursor.seqno())
    }

    #[inline]
    fn kind(&self) -> Kind {
        forward!(self, cursor => cursor.kind())
    }

    fn key_bytes(&self) -> Bytes {
        forward!(self, cursor => cursor.key_bytes())
    }

    fn value(&self) -> Bytes {
        forward!(self, cursor => cursor.value())
    }

    #[inline]
    fn value_ref(&self) -> &[u8] {
        forward!(self, cursor => cursor.value_ref())
    }

    #[inline]
    fn shown(&self) -> Shown<'_> {
        forward!(self, cursor => cursor.shown())
    }

    #[inline]
    fn lend(&self) -> (&[u8], &[u8]) {
        forward!(self, cursor => cursor.lend())
    }

    #[inline]
    fn is_newest(&self) -> bool {
        forward!(self, cursor => cursor.is_newest())
    }

    fn pass_hidden(&mut self, hidden: &Hidden<'_>, forward: bool) -> Result<()> {
        forward!(self, cursor => cursor.pass_hidden(hidden, forward))
    }

    fn skip_newer(&mut self, key: &[u8], snapshot: SeqNo) -> Result<()> {
        forward!(self, cursor => cursor.skip_newer(key, snapshot))
    }
}
