//! Which logs change feeds can read, and which of the flushed ones are kept for them.
//!
//! Recovery needs the logs from the manifest's floor on. Those before it are kept here, newest first, as
//! long as they fit into the budget; without a budget there are no feeds, and nothing is noted. Nothing of
//! this is in the manifest: at open the chain of the logs leads to those that are still there.
//!
//! Invariants: the logs are consecutive links of the chain, oldest first; all but the last have an end.
//! What is not on the shelf is removed as soon as recovery does not need it. One lock, under which no other
//! is taken. Called by `open`, `commit`, `background` and `changes`.

use crate::sync::Mutex;
use crate::types::{LogId, SeqNo};
use crate::wal::LogSpan;
use std::collections::VecDeque;

/// See the module's text.
pub(super) struct LogShelf {
    /// How many bytes the logs below the floor may take.
    budget: u64,
    logs: Mutex<VecDeque<Shelved>>,
}

/// A log on the shelf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shelved {
    pub(super) id: LogId,
    /// The last operation before it.
    pub(super) base: SeqNo,
    /// Where its records end; not known while it is written.
    pub(super) end: Option<u64>,
}

impl LogShelf {
    /// With the logs that were found.
    pub(super) fn new(budget: u64, found: Vec<LogSpan>) -> LogShelf {
        let shelve = |LogSpan { id, base, end }| Shelved { id, base, end: Some(end) };
        LogShelf { budget, logs: Mutex::new(found.into_iter().map(shelve).collect()) }
    }

    /// Whether there are feeds.
    pub(super) fn is_used(&self) -> bool {
        self.budget > 0
    }

    /// Notes that a log is written from now on, whose operations follow `base`, and that the one before,
    /// if there is one, ends at `end`. Before the first operation of the new one is published.
    pub(super) fn begin(&self, id: LogId, base: SeqNo, end: u64) {
        if !self.is_used() {
            return;
        }
        let mut logs = self.logs.lock();
        if let Some(before) = logs.back_mut() {
            before.end.get_or_insert(end);
        }
        logs.push_back(Shelved { id, base, end: None });
    }

    /// Lets go of the oldest logs below the floor that are over the budget. Those below it that stay are
    /// returned; they must not be removed.
    pub(super) fn retire(&self, floor: LogId) -> Vec<LogId> {
        let mut logs = self.logs.lock();
        let below = logs.iter().take_while(|log| log.id < floor).count();
        let (mut bytes, mut kept) = (0u64, 0);
        for log in logs.iter().take(below).rev() {
            bytes = bytes.saturating_add(log.end.unwrap_or(u64::MAX));
            if bytes > self.budget {
                break;
            }
            kept += 1;
        }
        logs.drain(..below - kept);
        logs.iter().take(kept).map(|log| log.id).collect()
    }

    /// The log in which the changes since a number begin; `None` if it is gone, or there is none yet.
    pub(super) fn log_since(&self, since: SeqNo) -> Option<Shelved> {
        self.logs.lock().iter().rev().find(|log| log.base <= since).copied()
    }

    /// A log, and the one behind it if there is one. `None` if it is no longer here.
    pub(super) fn find(&self, id: LogId) -> Option<(Shelved, Option<Shelved>)> {
        let logs = self.logs.lock();
        let at = logs.binary_search_by_key(&id, |log| log.id).ok()?;
        Some((*logs.get(at)?, logs.get(at + 1).copied()))
    }

    /// The first number since which the changes can be had.
    pub(super) fn oldest(&self) -> Option<SeqNo> {
        self.logs.lock().front().map(|log| log.base)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn span(id: u64, base: u64, end: u64) -> LogSpan {
        LogSpan { id: LogId(id), base: SeqNo(base), end }
    }

    fn ids(shelf: &LogShelf) -> Vec<u64> {
        shelf.logs.lock().iter().map(|log| log.id.0).collect()
    }

    #[test]
    fn the_newest_logs_below_the_floor_stay_as_long_as_they_fit() {
        let shelf = LogShelf::new(250, vec![span(1, 0, 100), span(2, 9, 100), span(5, 9, 100)]);
        shelf.begin(LogId(6), SeqNo(20), 7);
        assert_eq!(shelf.find(LogId(5)).unwrap().0.end, Some(100), "it was known");
        shelf.begin(LogId(7), SeqNo(30), 120);
        assert_eq!(shelf.find(LogId(6)).unwrap().0.end, Some(120));
        // What recovery needs stays, however much it is.
        assert_eq!(shelf.retire(LogId(1)), []);
        assert_eq!(ids(&shelf), [1, 2, 5, 6, 7]);
        assert_eq!(shelf.retire(LogId(6)), [LogId(2), LogId(5)]);
        assert_eq!(shelf.retire(LogId(7)), [LogId(5), LogId(6)]);
        assert_eq!(ids(&shelf), [5, 6, 7]);
        assert_eq!(shelf.oldest(), Some(SeqNo(9)));
        // A large one leaves no room for those before it.
        shelf.begin(LogId(8), SeqNo(40), 240);
        assert_eq!(shelf.retire(LogId(8)), [LogId(7)]);
        shelf.begin(LogId(9), SeqNo(50), 251);
        assert_eq!(shelf.retire(LogId(9)), []);
        assert_eq!(ids(&shelf), [9]);
    }

    #[test]
    fn changes_begin_in_the_last_log_that_begins_before_them() {
        let shelf = LogShelf::new(1000, vec![span(2, 9, 100), span(4, 12, 100), span(5, 12, 64)]);
        shelf.begin(LogId(6), SeqNo(20), 64);
        let at = |since| shelf.log_since(SeqNo(since)).map(|log| log.id.0);
        assert_eq!(
            [8, 9, 11, 12, 19, 20, 99].map(at),
            [None, Some(2), Some(2), Some(5), Some(5), Some(6), Some(6)]
        );
        let (log, next) = shelf.find(LogId(4)).unwrap();
        assert_eq!((log.end, next.map(|next| next.id)), (Some(100), Some(LogId(5))));
        assert!(shelf.find(LogId(3)).is_none());
        assert!(shelf.find(LogId(6)).unwrap().1.is_none());
    }

    #[test]
    fn without_a_budget_nothing_is_kept() {
        let shelf = LogShelf::new(0, Vec::new());
        shelf.begin(LogId(1), SeqNo(0), 0);
        assert!(!shelf.is_used() && shelf.oldest().is_none() && shelf.retire(LogId(9)).is_empty());
    }
}
