//! Zipfian ranks: rank `k` (from 0) is drawn with a chance that falls as `1 / (k + 1) ^ theta`.
//!
//! By the closed-form approximation of Gray et al., "Quickly generating billion-record synthetic
//! databases" (SIGMOD 1994), as YCSB has it too: exact for the first two ranks.

use crate::data::{Rng, mix};

/// The skew that YCSB uses.
pub const THETA: f64 = 0.99;

pub struct Zipf {
    items: u64,
    zeta: f64,
    alpha: f64,
    eta: f64,
    second: f64,
}

impl Zipf {
    /// Costs a pass over `items`.
    #[must_use]
    pub fn new(items: u64, theta: f64) -> Self {
        let items = items.max(2);
        let zeta: f64 = (1..=items).map(|rank| (rank as f64).powf(-theta)).sum();
        let second = 1.0 + 0.5f64.powf(theta);
        let eta = (1.0 - (2.0 / items as f64).powf(1.0 - theta)) / (1.0 - second / zeta);
        Zipf { items, zeta, alpha: 1.0 / (1.0 - theta), eta, second }
    }

    pub fn rank(&self, rng: &mut Rng) -> u64 {
        let unit = rng.unit();
        let reached = unit * self.zeta;
        if reached < 1.0 {
            return 0;
        }
        if reached < self.second {
            return 1;
        }
        let share = (self.eta * unit - self.eta + 1.0).powf(self.alpha);
        ((self.items as f64 * share) as u64).min(self.items - 1)
    }

    /// So many indexes, hot ones scattered over all of them. Drawn beforehand, since a draw costs as
    /// much as a read from a cache.
    #[must_use]
    pub fn scattered(&self, draws: usize, rng: &mut Rng) -> Vec<u32> {
        (0..draws).map(|_| (mix(self.rank(rng) ^ 0x77) % self.items) as u32).collect()
    }

    /// So many ranks, as they are.
    #[must_use]
    pub fn ranks(&self, draws: usize, rng: &mut Rng) -> Vec<u32> {
        (0..draws).map(|_| self.rank(rng) as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn ranks_have_their_share() {
        let items = 10_000;
        let zipf = Zipf::new(items, THETA);
        let mut rng = Rng::new(1);
        let draws = 400_000;
        let mut counts = vec![0u32; items as usize];
        (0..draws).for_each(|_| counts[zipf.rank(&mut rng) as usize] += 1);
        let share = |upto: usize| f64::from(counts[..upto].iter().sum::<u32>()) / f64::from(draws);
        let want = |upto: usize| {
            (1..=upto).map(|rank| (rank as f64).powf(-THETA)).sum::<f64>() / zipf.zeta
        };
        for (upto, slack) in [(1, 0.03), (2, 0.03), (100, 0.06), (1000, 0.06)] {
            assert!((share(upto) / want(upto) - 1.0).abs() < slack, "{upto}: {}", share(upto));
        }
        assert!((share(10_000) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn scattered_ones_are_as_skewed_but_elsewhere() {
        let zipf = Zipf::new(1000, THETA);
        let mut counts = HashMap::new();
        for index in zipf.scattered(50_000, &mut Rng::new(2)) {
            assert!(index < 1000);
            *counts.entry(index).or_insert(0u32) += 1;
        }
        let (hot, most) = counts.iter().max_by_key(|(_, count)| **count).unwrap();
        assert!(*hot != 0 && *most > 5_000, "{hot} has {most}");
    }
}
