//! A histogram of latencies: 64 buckets for each power of two, so that a quantile is off by less than
//! 1.6 %. Fixed size, no allocation when a value is added.

const BITS: u32 = 6;
const SUB: u64 = 1 << BITS;
const BUCKETS: usize = (SUB as usize) * 40;

pub struct Histogram {
    counts: Vec<u64>,
    count: u64,
    max: u64,
}

fn bucket(value: u64) -> usize {
    if value < SUB {
        return value as usize;
    }
    let shift = 63 - value.leading_zeros() - BITS;
    let bucket = u64::from(shift + 1) * SUB + ((value >> shift) - SUB);
    (bucket as usize).min(BUCKETS - 1)
}

/// The middle of the values of a bucket.
fn value_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * SUB {
        return bucket;
    }
    let shift = bucket / SUB - 1;
    ((SUB + bucket % SUB) << shift) + (1 << (shift - 1))
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; BUCKETS], count: 0, max: 0 }
    }
}

impl Histogram {
    pub fn add(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.count += 1;
        self.max = self.max.max(value);
    }

    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value that a share of `quantile` of all values does not exceed; 0 if there are none.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> u64 {
        let rank = ((self.count as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return value_of(bucket).min(self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_close() {
        let mut last = 0;
        for value in (0..3_000_000u64).step_by(7).chain([1 << 32, 1 << 40]) {
            let bucket = bucket(value);
            assert!(bucket >= last, "{value}");
            last = bucket;
            let off = value_of(bucket).abs_diff(value) as f64;
            assert!(off <= value as f64 / 64.0, "{value} became {}", value_of(bucket));
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_of_known_values() {
        let (mut low, mut high) = (Histogram::default(), Histogram::default());
        (1..=5_000).for_each(|v| low.add(v));
        (5_001..=10_000).for_each(|v| high.add(v));
        low.merge(&high);
        assert_eq!((low.count(), low.max()), (10_000, 10_000));
        for (quantile, want) in [(0.5, 5_000.0), (0.99, 9_900.0), (0.999, 9_990.0)] {
            let got = low.quantile(quantile) as f64;
            assert!((got / want - 1.0).abs() < 0.016, "{quantile}: {got}");
        }
        assert_eq!(Histogram::default().quantile(0.5), 0);
    }
}
