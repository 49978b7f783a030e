//! Models of how events reach a listener: whatever the order in which a job ends, the database is
//! closed and events are told, a job's beginning and end are told both or neither, in order, and
//! nobody is left waiting.

use super::*;
use crate::db::event::FlushInfo;
use crate::sync::modeled::{Mistake, explore};
use loom::thread;
use std::time::Duration;

/// What was heard: job numbers, negative at their end.
type Heard = Arc<std::sync::Mutex<Vec<i64>>>;

fn listened(by_hand: bool) -> (Arc<Events>, Heard) {
    let heard = Heard::default();
    let told = Arc::clone(&heard);
    let listener = move |event: &Event| {
        let number = match event {
            Event::FlushBegin(flush) => flush.job as i64,
            Event::FlushEnd { flush, .. } => -(flush.job as i64),
            _ => 0,
        };
        told.lock().unwrap().push(number);
    };
    (Arc::new(Events::new(Some(Listener(Arc::new(listener))), by_hand)), heard)
}

fn job(events: &Events) {
    let flush = FlushInfo { job: events.next_job(), entries: 1, memory_bytes: 1 };
    let begun = events.begin(|| Event::FlushBegin(flush.clone()));
    begun.end(|| Event::FlushEnd {
        flush,
        outputs: Vec::new(),
        bytes_written: 0,
        duration: Duration::ZERO,
        error: None,
    });
}

fn by_thread() {
    let (events, heard) = listened(false);
    let shared = Arc::clone(&events.shared);
    let teller = thread::spawn(move || shared.tell_all());
    let other = Arc::clone(&events);
    let works = thread::spawn(move || job(&other));
    events.close();
    works.join().unwrap();
    teller.join().unwrap();
    let heard = heard.lock().unwrap().clone();
    assert!(heard.is_empty() || heard == [1, -1], "what began must end: {heard:?}");
    let queue = events.shared.queue.lock();
    assert!(queue.listener.is_none() && queue.open == 0);
}

#[test]
fn loom_what_began_is_told_to_its_end_although_the_database_is_closed() {
    explore("events: a job beside a close", None, by_thread);
}

#[test]
#[should_panic(expected = "what began must end")]
fn loom_finds_that_jobs_under_way_are_not_waited_for() {
    explore("", Some(Mistake::OfTheModel), by_thread);
}

#[test]
fn loom_by_hand_one_of_two_callers_tells_all() {
    explore("events: two callers tell by hand", None, || {
        let (events, heard) = listened(true);
        let other = Arc::clone(&events);
        let works = thread::spawn(move || {
            let _after = other.after();
            job(&other);
        });
        let after = events.after();
        job(&events);
        drop(after);
        works.join().unwrap();
        let heard = heard.lock().unwrap().clone();
        assert_eq!(heard.len(), 4, "{heard:?}");
        for number in [1, 2] {
            let at = |wanted: i64| heard.iter().position(|told| *told == wanted).unwrap();
            assert!(at(number) < at(-number), "{heard:?}");
        }
    });
}
