//! Which workloads there are, and which share a store.

use crate::data::Order;

/// Workloads that run one after the other on one store, each from a settled state.
pub struct Group {
    pub name: &'static str,
    pub order: Order,
    /// Whether the store is opened for synced writes.
    pub durable: bool,
    /// Run in this process, the first one always: it makes the store.
    pub steps: &'static [&'static str],
    /// Run in fresh processes on the store that is left.
    pub after: &'static [&'static str],
}

pub const GROUPS: [Group; 4] = [
    Group {
        name: "random",
        order: Order::Random,
        durable: false,
        steps: &[
            "fillrandom",
            "readrandom",
            "readmissing",
            "readhot",
            "readrandom2",
            "seekrandom10",
            "seekrandom100",
            "seekreverse10",
            "readseq",
            "readreverse",
            "overwrite",
            "readwhilewriting",
            "readwhilewriting-free",
            "ycsb-a",
            "ycsb-b",
            "ycsb-c",
            "ycsb-f",
            "ycsb-d",
            "ycsb-e",
        ],
        after: &["open", "open-after-kill"],
    },
    Group { name: "seq", order: Order::Rising, durable: false, steps: &["fillseq"], after: &[] },
    Group {
        name: "batch",
        order: Order::Random,
        durable: false,
        steps: &["fillbatch", "deleterandom"],
        after: &[],
    },
    Group {
        name: "sync",
        order: Order::Random,
        durable: true,
        steps: &["fillsync1", "fillsync4"],
        after: &[],
    },
];

/// Every workload, in the order of the plan.
#[must_use]
pub fn workloads() -> Vec<&'static str> {
    GROUPS.iter().flat_map(|group| group.steps.iter().chain(group.after)).copied().collect()
}

/// Whether a workload writes, so that the store has to settle behind it.
#[must_use]
pub fn writes(workload: &str) -> bool {
    let reads = workload.starts_with("seek") || workload.starts_with("open");
    let plain = workload.starts_with("read") && !workload.contains("writing");
    !(reads || plain || workload == "ycsb-c")
}

impl Group {
    /// The steps and the ones after them that are wanted; none if nothing of the group is.
    #[must_use]
    pub fn chosen(&self, wanted: &[String]) -> Option<(Vec<&'static str>, Vec<&'static str>)> {
        let is_wanted = |name: &&&str| wanted.iter().any(|want| want == **name);
        let after: Vec<_> = self.after.iter().filter(is_wanted).copied().collect();
        let mut steps: Vec<_> = self.steps.iter().filter(is_wanted).copied().collect();
        if steps.is_empty() && after.is_empty() {
            return None;
        }
        // fillsync4 makes its own records; everything else needs what the first step writes.
        if !self.durable && steps.first() != Some(&self.steps[0]) {
            steps.insert(0, self.steps[0]);
        }
        Some((steps, after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_filled_before_it_is_read() {
        let chosen = |names: &[&str]| {
            GROUPS[0].chosen(&names.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(chosen(&["fillseq"]), None);
        assert_eq!(chosen(&["open"]), Some((vec!["fillrandom"], vec!["open"])));
        let want = Some((vec!["fillrandom", "readrandom", "overwrite"], vec![]));
        assert_eq!(chosen(&["overwrite", "readrandom"]), want);
    }

    #[test]
    fn what_writes_is_known() {
        let quiet: Vec<_> = workloads().into_iter().filter(|name| !writes(name)).collect();
        assert_eq!(quiet.len(), 12, "{quiet:?}");
        assert!(writes("readwhilewriting-free") && writes("ycsb-e") && writes("fillsync1"));
    }
}
