//! A table that keeps whole hashes in a standard map: what [`super::table::Buckets`] is held
//! against, and what the map can run over instead.

use super::table::{Shape, Table};
use std::collections::HashMap;

#[derive(Debug, Default)]
pub(super) struct Oracle {
    entries: HashMap<u64, Vec<u32>>,
    len: usize,
}

impl Table for Oracle {
    fn with_slots(_: usize, _: u32, _: u32) -> Self {
        Oracle::default()
    }

    fn bytes_for(_: usize) -> u64 {
        64
    }

    fn settle(&mut self) {}

    fn insert(&mut self, h40: u64, vbn: u32) {
        self.entries.entry(h40).or_default().push(vbn);
        self.len += 1;
    }

    fn relocate(&mut self, h40: u64, old: u32, new: u32) -> bool {
        let vbns = self.entries.get_mut(&h40).map_or(&mut [][..], |vbns| &mut vbns[..]);
        let found = vbns.iter_mut().find(|vbn| **vbn == old);
        found.map(|vbn| *vbn = new).is_some()
    }

    fn remove(&mut self, h40: u64, vbn: u32) -> bool {
        let Some(vbns) = self.entries.get_mut(&h40) else { return false };
        let Some(at) = vbns.iter().position(|v| *v == vbn) else { return false };
        vbns.swap_remove(at);
        self.len -= 1;
        true
    }

    fn candidates(&self, h40: u64, each: impl FnMut(u32)) {
        self.entries.get(&h40).into_iter().flatten().copied().for_each(each);
    }

    fn shape(&self) -> Shape {
        Shape { entries: self.len, slots: self.len, table_bytes: 64, ..Shape::default() }
    }

    fn suits(&self, _: usize) -> bool {
        true
    }

    fn strained(&self) -> bool {
        false
    }

    fn fingerprint(&self, h40: u64) -> u64 {
        h40
    }

    fn dump(&self) -> Vec<(u64, u32)> {
        let all = self.entries.iter();
        all.flat_map(|(h40, vbns)| vbns.iter().map(|vbn| (*h40, *vbn))).collect()
    }

    fn hint(&self) -> (usize, u32) {
        (0, 0)
    }
}
