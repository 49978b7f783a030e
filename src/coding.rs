//! Integers and byte strings on disk: little-endian, lengths checked before anything is read.
//!
//! [`Reader`] walks over bytes that may be anything; every method gives a value or
//! [`Malformed`], never a panic. Called by every room with a format. Pure functions.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use crate::error::Malformed;
use byteorder::{ByteOrder, LittleEndian};

/// Appends a `u16`.
pub(crate) fn put_u16(out: &mut Vec<u8>, n: u16) {
    out.extend_from_slice(&n.to_le_bytes());
}

/// Appends a `u32`.
pub(crate) fn put_u32(out: &mut Vec<u8>, n: u32) {
    out.extend_from_slice(&n.to_le_bytes());
}

/// Appends a `u64`.
pub(crate) fn put_u64(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(&n.to_le_bytes());
}

/// Appends a LEB128 variable-length integer: 7 bits a byte, least significant first, the top bit of
/// each byte but the last set. One byte up to 127, at most ten.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push((n as u8) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// How many bytes [`put_varint`] appends for `n`.
pub(crate) fn varint_len(n: u64) -> usize {
    (63 - (n | 1).leading_zeros() as usize) / 7 + 1
}

/// Appends a byte string: its length as a varint, then the bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The `u16` at `at`, if it lies within `bytes`.
#[inline]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}

/// The `u32` at `at`, if it lies within `bytes`.
#[inline]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

/// The `u64` at `at`, if it lies within `bytes`.
#[inline]
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

/// Walks over untrusted bytes.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

const SHORT: Malformed = Malformed::Damaged("it ends too early");

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, at: 0 }
    }

    /// How many bytes were consumed.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// How many bytes are left.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.remaining() == 0
    }

    /// The next `n` bytes.
    #[inline]
    pub(crate) fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(n).ok_or(SHORT)?;
        let taken = self.bytes.get(self.at..end).ok_or(SHORT)?;
        self.at = end;
        Ok(taken)
    }

    /// The next byte.
    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        let n = *self.bytes.get(self.at).ok_or(SHORT)?;
        self.at += 1;
        Ok(n)
    }

    /// The next two bytes as an integer.
    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.bytes(2).map(LittleEndian::read_u16)
    }

    /// The next four bytes as an integer.
    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.bytes(4).map(LittleEndian::read_u32)
    }

    /// The next eight bytes as an integer.
    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.bytes(8).map(LittleEndian::read_u64)
    }

    /// The next LEB128 integer, in its shortest form only.
    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            n |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    break;
                }
                return Ok(n);
            }
        }
        Err(Malformed::Damaged("an integer is not in its shortest form"))
    }

    /// The next byte string with its varint length in front.
    pub(crate) fn prefixed_bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let n = self.varint()?;
        self.bytes(usize::try_from(n).map_err(|_| SHORT)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_at_every_width() {
        for shift in 0..64 {
            for n in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                put_varint(&mut out, n);
                assert_eq!(out.len(), varint_len(n));
                let mut reader = Reader::new(&out);
                assert_eq!(reader.varint(), Ok(n));
                assert!(reader.is_empty());
            }
        }
    }

    #[test]
    fn overlong_and_overflowing_varints_are_refused() {
        for bytes in [&[0x80, 0][..], &[0xff; 10], &[0xff; 3], &[]] {
            assert!(Reader::new(bytes).varint().is_err(), "{bytes:?}");
        }
        let mut huge = vec![0xff; 9];
        huge.push(1);
        assert_eq!(Reader::new(&huge).varint(), Ok(u64::MAX));
        huge[9] = 2;
        assert!(Reader::new(&huge).varint().is_err());
    }

    #[test]
    fn a_reader_never_runs_past_the_end() {
        let mut reader = Reader::new(&[1, 2, 3]);
        assert!(reader.u32().is_err());
        assert_eq!(reader.u16(), Ok(0x0201));
        assert!(reader.bytes(usize::MAX).is_err());
        assert_eq!(reader.remaining(), 1);
        assert!(Reader::new(&[200, 1, 0]).prefixed_bytes().is_err());
    }
}
