//! `kill -9` in the middle of concurrent writes, flushes, compactions, clears, drops and recoveries,
//! again and again in one directory, with other options each time.
//!
//! The parent kills the child at a random moment, opens the database itself and checks that
//! every acknowledged write is there (all of them, since the machine goes on running), that each
//! writer's keys are as after the last acknowledged operation or the one that was under way, that
//! every way of reading agrees with that, that no half of a batch is there, that the key map is what
//! a rebuild makes of it, that every byte verifies and that no file is left over.

use crate::child::{Heard, Task, check_left, start};
use crate::driver::{Size, Violation};
use crate::process::{Dice, Scratch};
use crate::writers::Model;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

static ACKNOWLEDGED: AtomicU64 = AtomicU64::new(0);

/// What the children did so far, in words; nothing if there were none.
pub fn summary() -> Option<String> {
    let acknowledged = ACKNOWLEDGED.load(Ordering::Relaxed);
    (acknowledged > 0).then(|| format!("kill: {acknowledged} operations acknowledged, none lost"))
}

/// How often a child is killed over one directory.
const ROUNDS: u64 = 5;

/// One directory, from the first child to the last check.
pub fn run(seed: u64, _size: Size) -> Result<u64, Violation> {
    let dice = Dice::of(&[seed, 1]);
    let scratch = Scratch::new("kill")?;
    let writers = 1 + dice.below(4) as usize;
    let mut task = Task {
        dir: scratch.path().join("db"),
        seed,
        round: 0,
        keys: dice.pick(&[20, 200, 1000]),
        value_len: dice.pick(&[20, 200, 1000]),
        epoch_ms: dice.pick(&[0, 0, 40]),
        limit: u64::MAX,
        by_hand: false,
        sync_in: dice.pick(&[1, 3, 30]),
        fifo: true,
        next: vec![0; writers],
    };
    let mut models = vec![Model::default(); writers];
    for round in 0..ROUNDS {
        task.round = round;
        let lifetime = Duration::from_millis(dice.log_uniform(2, 400));
        let what = |what: String| {
            Violation(format!("round {round}, killed after {lifetime:?}: {what}; {task:?}"))
        };
        let (mut child, output) = start(&task).map_err(|e| what(format!("no child: {e}")))?;
        let heard = Heard::new(&task, models);
        let listener = std::thread::spawn(|| heard.listen(output));
        std::thread::sleep(lifetime);
        child.kill().map_err(|error| what(format!("cannot kill it: {error}")))?;
        let heard = listener.join().map_err(|_| what("nobody listened".into()))?;
        if let Some(wrong) = heard.wrong {
            return Err(what(wrong));
        }
        let acknowledged = heard.next.iter().sum::<u64>() - task.next.iter().sum::<u64>();
        ACKNOWLEDGED.fetch_add(acknowledged, Ordering::Relaxed);
        (models, task.next) = check_left(&task, heard, &dice).map_err(what)?;
    }
    Ok(ROUNDS)
}
