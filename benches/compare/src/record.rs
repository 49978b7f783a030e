//! One measurement: a line of JSON.

use crate::settings::Settings;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub run: u32,
    /// "machine" for the limits of the machine itself.
    pub engine: String,
    pub version: String,
    /// Which store it ran on; see the plan.
    pub group: String,
    pub workload: String,
    pub settings: Settings,
    pub machine: String,
    /// Operations, or entries for whole scans.
    pub ops: u64,
    pub seconds: f64,
    /// Operations a second; of the reader where there is a writer beside.
    pub rate: f64,
    /// Nanoseconds.
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
    /// How many of the operations were timed.
    pub timed: u64,
    /// Whether unsynced writes survive the death of the process.
    pub survives: bool,
    /// Everything else, by name.
    #[serde(default)]
    pub more: BTreeMap<String, f64>,
}

impl Record {
    #[must_use]
    pub fn get(&self, name: &str) -> Option<f64> {
        self.more.get(name).copied()
    }
}
