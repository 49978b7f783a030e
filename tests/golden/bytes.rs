//! Integers, checksums and hexadecimal, from FORMAT.md section 1.

use std::fmt::Write;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub fn checksum(salt: u64, offset: u64, bytes: &[u8]) -> u64 {
    let seed = salt.wrapping_add(offset.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    xxh3_64_with_seed(bytes, seed)
}

fn int_at(bytes: &[u8], at: usize, size: usize) -> u64 {
    let mut n = [0; 8];
    n[..size].copy_from_slice(&bytes[at..at + size]);
    u64::from_le_bytes(n)
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    int_at(bytes, at, 2) as u16
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    int_at(bytes, at, 4) as u32
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    int_at(bytes, at, 8)
}

pub fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    bytes[at..at + new.len()].copy_from_slice(new);
}

pub fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push((n as u8) | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// How many first bytes two strings share.
pub fn shared(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// Walks over bytes that are known to be sound.
pub struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Input { bytes, at: 0 }
    }

    pub fn position(&self) -> usize {
        self.at
    }

    pub fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub fn take(&mut self, n: usize) -> &'a [u8] {
        self.at += n;
        &self.bytes[self.at - n..self.at]
    }

    /// What is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.take(self.bytes.len() - self.at)
    }

    /// An integer of `size` bytes.
    pub fn int(&mut self, size: usize) -> u64 {
        int_at(self.take(size), 0, size)
    }

    pub fn varint(&mut self) -> u64 {
        let (mut n, mut shift) = (0u64, 0);
        loop {
            let byte = self.take(1)[0];
            n |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                assert!(byte != 0 || shift == 0, "shortest form");
                return n;
            }
            shift += 7;
        }
    }

    /// A varint length and that many bytes.
    pub fn bytes(&mut self) -> &'a [u8] {
        let n = self.varint() as usize;
        self.take(n)
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").expect("a string takes everything");
        out
    })
}

/// A key as expectations give it: in hexadecimal; above 64 bytes its length and its XXH3.
pub fn show_key(key: &[u8]) -> String {
    if key.len() <= 64 { hex(key) } else { format!("{}:{:016x}", key.len(), xxh3_64(key)) }
}

/// A value as expectations give it.
pub fn show_value(value: &[u8]) -> String {
    format!("\"length\":{},\"xxh3\":\"{:016x}\"", value.len(), xxh3_64(value))
}
