//! Histograms of fixed size: how often values of about each size came.
//!
//! ```text
//! value     0 1 2 … 31 │ 32-33 34-35 … 62-63 │ 64-67 … │ …
//! bucket    0 1 2 … 31 │   32    33  …   47  │   48  … │ … 975
//! ```
//!
//! Below 32 each value has a bucket; above, each power of two is cut into sixteen of the same width.
//! So a bucket is at most a sixteenth as wide as its values are large, and what is said of a value by its
//! bucket's middle is at most a thirty-second off. (After Tene's `HdrHistogram`.)
//!
//! [`Tally`] is what threads record into: relaxed atomics and no lock. [`Histogram`] is what users get.
//! Called by `stats` and by those that count for it.

use crate::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The buckets of a power of two, as a power of two.
const FINE: u32 = 4;
/// Buckets in all.
const BUCKETS: usize = (64 - FINE as usize + 1) << FINE;

/// The bucket of a value.
#[inline]
fn bucket(value: u64) -> usize {
    let shift = 63 - FINE - (value | (1 << FINE)).leading_zeros();
    ((shift as usize) << FINE) + (value >> shift) as usize
}

/// The smallest value of a bucket, and how many values it is for, less one.
fn bounds(bucket: usize) -> (u64, u64) {
    let shift = (bucket >> FINE).saturating_sub(1);
    let start = (bucket - (shift << FINE)) as u64;
    (start << shift, (1 << shift) - 1)
}

/// Nanoseconds, or as many as there can be.
pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Counts values while others do. Takes 8 KiB.
#[derive(Debug)]
pub(super) struct Tally {
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
    max: AtomicU64,
}

impl Default for Tally {
    fn default() -> Self {
        let counts = (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Tally { counts, sum: AtomicU64::new(0), max: AtomicU64::new(0) }
    }
}

impl Tally {
    /// Counts a value. Costs two additions to shared memory, and a third if there is none as large.
    pub(super) fn record(&self, value: u64) {
        if value > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(value, Ordering::Relaxed);
        }
        self.sum.fetch_add(value, Ordering::Relaxed);
        if let Some(count) = self.counts.get(bucket(value)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a time, in nanoseconds.
    pub(super) fn record_time(&self, time: Duration) {
        self.record(nanoseconds(time));
    }

    /// What was counted so far. While others count, a value may be in it in part.
    pub(super) fn load(&self) -> Histogram {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let counts: Vec<u64> = counts.collect();
        Histogram {
            sum: self.sum.load(Ordering::Relaxed),
            max: self.max.load(Ordering::Relaxed),
            counts,
        }
    }
}

/// How often values of about each size came: times in nanoseconds, or numbers of things.
///
/// A quantile is at most 1/32 off; `max` and `mean` are exact. Takes at most 8 KiB of memory,
/// whatever was counted. Those of several databases can be [merged](Self::merge).
///
/// ```
/// use ashlardb::Histogram;
///
/// let mut times = Histogram::default();
/// for value in 1..=1000 {
///     times.record(value);
/// }
/// assert_eq!((times.count(), times.max(), times.mean()), (1000, 1000, 500.5));
/// assert!(times.p50().abs_diff(500) <= 500 / 32);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Histogram {
    /// By bucket; none at all if nothing was counted yet.
    counts: Vec<u64>,
    sum: u64,
    max: u64,
}

impl PartialEq for Histogram {
    fn eq(&self, other: &Self) -> bool {
        (self.sum, self.max) == (other.sum, other.max) && self.buckets().eq(other.buckets())
    }
}

impl Eq for Histogram {}

impl Histogram {
    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_many(value, 1);
    }

    /// Counts a value so many times.
    pub fn record_many(&mut self, value: u64, times: u64) {
        if times == 0 {
            return;
        }
        self.counts.resize(BUCKETS, 0);
        if let Some(count) = self.counts.get_mut(bucket(value)) {
            *count = count.saturating_add(times);
        }
        self.sum = self.sum.saturating_add(value.saturating_mul(times));
        self.max = self.max.max(value);
    }

    /// Adds what another counted.
    pub fn merge(&mut self, other: &Histogram) {
        if !other.counts.is_empty() {
            self.counts.resize(BUCKETS, 0);
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// How many values were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of all values.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// The largest value; 0 if there is none.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean of the values; 0 if there are none.
    #[must_use]
    pub fn mean(&self) -> f64 {
        match self.count() {
            0 => 0.0,
            count => self.sum as f64 / count as f64,
        }
    }

    /// The value that this share of the values, from 0 to 1, does not exceed: at most 1/32 off. 0 if
    /// there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> u64 {
        let count = self.count();
        let rank = ((share.clamp(0.0, 1.0) * count as f64).ceil() as u64).max(1);
        if rank >= count {
            return self.max;
        }
        let mut passed = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            passed += count;
            if passed >= rank {
                let (start, width) = bounds(bucket);
                return (start + width / 2).min(self.max);
            }
        }
        self.max
    }

    /// The median.
    #[must_use]
    pub fn p50(&self) -> u64 {
        self.quantile(0.5)
    }

    /// What 99 of 100 do not exceed.
    #[must_use]
    pub fn p99(&self) -> u64 {
        self.quantile(0.99)
    }

    /// What 999 of 1000 do not exceed.
    #[must_use]
    pub fn p999(&self) -> u64 {
        self.quantile(0.999)
    }

    /// The buckets that hold anything, rising: the largest value of each, and how many are in it.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let taken = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        taken.map(|(bucket, count)| {
            let (start, width) = bounds(bucket);
            (start + width, *count)
        })
    }

    /// What was counted since an earlier look at the same.
    #[cfg(feature = "metrics")]
    pub(super) fn since(&self, earlier: &Histogram) -> impl Iterator<Item = (u64, u64)> {
        let then = |bucket| earlier.counts.get(bucket).copied().unwrap_or_default();
        self.counts.iter().enumerate().filter_map(move |(bucket, count)| {
            let (start, width) = bounds(bucket);
            let more = count.saturating_sub(then(bucket));
            (more > 0).then(|| ((start + width / 2).min(self.max), more))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Arc;
    use crate::vfs::{Entropy, SeededEntropy};

    #[test]
    fn every_value_is_in_the_bucket_that_says_so() {
        let mut next = 0;
        for bucket_number in 0..BUCKETS {
            let (start, width) = bounds(bucket_number);
            assert_eq!(start, next, "no gap and no overlap in front of bucket {bucket_number}");
            for value in [start, start + width / 2, start + width] {
                assert_eq!(bucket(value), bucket_number, "{value}");
            }
            assert!(start < 32 || width < start / 16, "bucket {bucket_number} is too wide");
            next = (start + width).wrapping_add(1);
        }
        assert_eq!(next, 0, "the last bucket ends with the largest number");
    }

    #[test]
    fn quantiles_are_a_thirty_second_off_at_most() {
        let chance = SeededEntropy::new(7);
        for bits in [4, 10, 20, 40, 50] {
            let tally = Tally::default();
            let value = |_| chance.next_u64() >> (63 - chance.next_u64() % bits);
            let mut values: Vec<u64> = (0..10_007).map(value).collect();
            for value in &values {
                tally.record(*value);
            }
            values.sort_unstable();
            let found = tally.load();
            assert_eq!(found.count(), values.len() as u64);
            assert_eq!(found.max(), *values.last().unwrap());
            assert_eq!(found.sum(), values.iter().sum::<u64>());
            for share in [0.0, 0.001, 0.1, 0.25, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0] {
                let rank = ((share * values.len() as f64).ceil() as usize).max(1);
                let exact = values[rank - 1];
                let off = found.quantile(share).abs_diff(exact);
                assert!(off <= exact / 32, "{bits} bits, share {share}: {off} off {exact}");
            }
        }
    }

    #[test]
    fn of_few_values_or_none_it_says_what_there_is() {
        let mut histogram = Histogram::default();
        let all = |h: &Histogram| (h.p50(), h.p99(), h.p999(), h.max());
        assert_eq!(all(&histogram), (0, 0, 0, 0));
        assert!(histogram.mean().abs() < f64::EPSILON);
        histogram.record(u64::MAX);
        assert_eq!(all(&histogram), (u64::MAX, u64::MAX, u64::MAX, u64::MAX));
        let mut histogram = Histogram::default();
        histogram.record_many(0, 98);
        histogram.record_many(31, 2);
        histogram.record_many(5, 0);
        assert_eq!(all(&histogram), (0, 31, 31, 31));
        assert_eq!(histogram.count(), 100);
    }

    #[test]
    fn merged_it_is_as_if_one_had_counted_all() {
        let (mut one, mut other, mut all) =
            (Histogram::default(), Histogram::default(), Histogram::default());
        for value in 0..1000_u64 {
            let part = if value % 3 == 0 { &mut one } else { &mut other };
            part.record(value * value);
            all.record(value * value);
        }
        one.merge(&other);
        one.merge(&Histogram::default());
        assert_eq!(one, all);
        let mut fresh = Histogram::default();
        fresh.merge(&all);
        assert_eq!(fresh, all);
        assert_ne!(fresh, Histogram::default());
    }

    #[test]
    fn what_threads_count_beside_each_other_is_all_there() {
        let tally = Arc::new(Tally::default());
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let tally = Arc::clone(&tally);
                scope.spawn(move || (0..5000).for_each(|n| tally.record(n * 4 + thread)));
            }
        });
        let found = tally.load();
        assert_eq!((found.count(), found.max()), (20_000, 19_999));
        assert_eq!(found.sum(), (0..20_000).sum::<u64>());
    }
}
