//! Turns: one at a time, in the order in which they came.
//!
//! Whoever takes a turn waits until all that came before have passed theirs. Invariants: at most
//! one has the turn; nobody is overtaken. Called by exclusive transactions; the model beside it
//! explores the schedules.

use crate::sync::{Condvar, Mutex};

/// See the module's text.
#[derive(Default)]
pub(super) struct Turns {
    state: Mutex<State>,
    passed: Condvar,
}

#[derive(Default)]
struct State {
    /// How many came.
    came: u64,
    /// How many passed their turn.
    gone: u64,
}

impl Turns {
    /// Waits for the turn.
    pub(super) fn take(&self) {
        let mut state = self.state.lock();
        let before = state.came;
        state.came += 1;
        while state.gone != before {
            self.passed.wait(&mut state);
        }
    }

    /// Ends the turn. For the one who has it.
    pub(super) fn pass(&self) {
        self.state.lock().gone += 1;
        // All, since it cannot be said which of them is next.
        self.passed.notify_all();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::Arc;
    use crate::sync::modeled::{Mistake, explore, makes};
    use loom::cell::UnsafeCell;
    use loom::thread;

    /// Three threads that each count up what only the one with the turn may touch.
    fn model() {
        let shared = Arc::new((Turns::default(), UnsafeCell::new(0_u32)));
        let count = |shared: &(Turns, UnsafeCell<u32>)| {
            let takes = !makes(Mistake::OfTheModel);
            if takes {
                shared.0.take();
            }
            shared.1.with_mut(|_| ());
            shared.0.pass();
        };
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || count(&shared))
            })
            .collect();
        count(&shared);
        for thread in threads {
            thread.join().unwrap();
        }
        let state = shared.0.state.lock();
        assert_eq!((state.came, state.gone), (3, 3));
    }

    #[test]
    fn loom_turns_are_taken_one_at_a_time() {
        explore("turns", None, model);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn loom_finds_that_nobody_takes_a_turn() {
        explore("turns, not taken", Some(Mistake::OfTheModel), model);
    }
}
