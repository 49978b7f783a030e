//! Models of the writers' queue: every batch is committed once, by one writer at a time, in the order
//! of its thread, and no writer is left waiting (which loom reports as a deadlock). Each writer goes
//! the way of the lone writer first, as `commit` does, and queues if that fails.

use super::*;
use crate::sync::MutexGuard;
use crate::sync::modeled::{Mistake, explore, makes};
use loom::thread;

/// Batches are numbers: a thread's number times ten and a number that rises.
struct Log<const BYTES: u64> {
    /// Locked by the one that commits.
    writer: Mutex<()>,
    committed: Mutex<Vec<u64>>,
    /// Held while a group is committed.
    committing: loom::sync::Mutex<()>,
    queue: CommitQueue<u64, Result<u64, u64>>,
    /// The batch for which there is no room.
    refused: Option<u64>,
    /// Once, the room that a leader waited for is gone when it enters.
    loses_room: Mutex<bool>,
}

impl<const BYTES: u64> Commits<u64> for Log<BYTES> {
    type Outcome = Result<u64, u64>;
    type Entered<'a> = MutexGuard<'a, ()>;

    fn bytes(_: &u64) -> u64 {
        BYTES
    }

    fn wait_for_room(&self, own: &u64) -> Result<(), Self::Outcome> {
        if self.refused == Some(*own) { Err(Err(*own)) } else { Ok(()) }
    }

    fn enter(&self) -> Option<MutexGuard<'_, ()>> {
        let entered = self.writer.lock();
        let is_gone = std::mem::take(&mut *self.loses_room.lock());
        (!is_gone).then_some(entered)
    }

    fn commit_group(&self, _entered: MutexGuard<'_, ()>, group: &[u64]) -> Vec<Self::Outcome> {
        let _committing = self.committing.try_lock().expect("one commits at a time");
        self.committed.lock().extend(group);
        group.iter().map(|batch| Ok(*batch)).collect()
    }
}

impl<const BYTES: u64> Log<BYTES> {
    /// As `commit` does it.
    fn write(&self, batch: u64) -> Result<u64, u64> {
        let without_lock = makes(Mistake::RelaxedSize);
        let alone = || match without_lock {
            true => Some(None),
            false => self.writer.try_lock().map(Some),
        };
        // Who is refused must queue, and hears it if it leads.
        let alone = if self.refused == Some(batch) { None } else { self.queue.alone(alone) };
        match alone {
            Some(_entered) => {
                let _committing = self.committing.try_lock().expect("one commits at a time");
                self.committed.lock().push(batch);
                Ok(batch)
            }
            None => self.queue.commit(batch, self),
        }
    }
}

fn model<const BYTES: u64>(each: &[u64], refused: Option<u64>) {
    let log = Arc::new(Log::<BYTES> {
        writer: Mutex::default(),
        committed: Mutex::default(),
        committing: loom::sync::Mutex::default(),
        queue: CommitQueue::default(),
        refused,
        loses_room: Mutex::new(refused.is_some()),
    });
    let write = |thread: u64, count: u64| {
        let log = Arc::clone(&log);
        move || {
            for n in 0..count {
                let batch = thread * 10 + n;
                let outcome = log.write(batch);
                let committed = log.committed.lock().contains(&batch);
                assert_eq!(outcome, if committed { Ok(batch) } else { Err(batch) });
                assert!(committed || refused == Some(batch));
            }
        }
    };
    let others: Vec<_> =
        each.iter().enumerate().skip(1).map(|(i, n)| thread::spawn(write(i as u64, *n))).collect();
    write(0, each[0])();
    others.into_iter().for_each(|other| other.join().unwrap());
    let committed = log.committed.lock().clone();
    for (thread, count) in each.iter().enumerate() {
        let of_thread = committed.iter().copied().filter(|b| b / 10 == thread as u64);
        let all = (0..*count).map(|n| thread as u64 * 10 + n);
        // Refused only if it led itself.
        let expected = all.filter(|b| Some(*b) != refused || committed.contains(b));
        assert!(of_thread.eq(expected), "{committed:?}");
    }
    let state = log.queue.state.lock();
    let at_rest = !state.leading && state.waiting.is_empty();
    let at_rest = at_rest && !log.queue.is_led.load(Ordering::Relaxed);
    drop(state);
    assert!(at_rest);
}

#[test]
fn loom_writers_are_committed_in_groups() {
    explore("queue: three writers", None, || model::<1>(&[1, 1, 1], None));
}

#[test]
fn loom_writers_come_again() {
    explore("queue: two writers, two batches each", None, || model::<1>(&[2, 2], None));
}

#[test]
fn loom_full_groups_hand_the_lead_on() {
    explore("queue: three writers, a group each", None, || {
        model::<GROUP_BYTES>(&[1, 1, 1], None);
    });
}

#[test]
fn loom_a_leader_without_room_hands_the_lead_on() {
    explore("queue: a leader is refused", None, || model::<1>(&[1, 2, 1], Some(10)));
}

#[test]
#[should_panic(expected = "deadlock")]
fn loom_finds_that_looking_and_leaving_are_two_steps() {
    explore("", Some(Mistake::OfTheModel), || model::<1>(&[1, 1, 1], None));
}

#[test]
#[should_panic(expected = "one commits at a time")]
fn loom_finds_that_a_lone_writer_takes_no_lock() {
    explore("", Some(Mistake::RelaxedSize), || model::<1>(&[1, 1], None));
}
