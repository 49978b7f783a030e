//! Whether a history of calls could have been made one after the other, each at some moment between its
//! invocation and its return (Herlihy, Wing, "Linearizability: A Correctness Condition for Concurrent
//! Objects", TOPLAS 1990).
//!
//! A search over orders that takes the calls one by one and goes back where a read does not fit (Wing,
//! Gong, "Testing and Verifying Concurrent Objects", JPDC 1993), and that visits no configuration twice
//! (Lowe, "Testing for Linearizability", CCPE 2017). Since each thread waits for its calls, a
//! configuration is how far each thread came, and what the store holds. A read that fits is taken at
//! once: it changes nothing, so whatever order there is, there is one in which it comes now.

use std::collections::HashSet;

/// Keys and values; zero stands for no value.
pub type Values = Vec<(usize, u64)>;

#[derive(Clone, Debug)]
pub enum Effect {
    /// All at once.
    Write(Values),
    /// All as of one moment.
    Read(Values),
}

#[derive(Clone, Debug)]
pub struct Call {
    pub invoked: u64,
    pub returned: u64,
    pub effect: Effect,
}

/// How many configurations are visited before the judge gives up.
const LIMIT: usize = 5_000_000;

/// Judges the calls of some threads, each in the order of the thread, on a store that held `start`. How
/// many configurations it took.
///
/// # Errors
///
/// Where every order comes to an end, for the longest one.
pub fn judge(threads: &[Vec<Call>], start: &[u64]) -> Result<usize, String> {
    let mut seen: HashSet<(Vec<u32>, Vec<u64>)> = HashSet::new();
    let mut pending = vec![(vec![0_u32; threads.len()], start.to_vec())];
    let mut longest = (0, String::new());
    while let Some((mut next, mut state)) = pending.pop() {
        take_reads(threads, &mut next, &state);
        let mut enabled: Vec<(usize, &Call)> = enabled(threads, &next).collect();
        if enabled.is_empty() {
            return Ok(seen.len());
        }
        if seen.len() >= LIMIT {
            return Err(format!("undecided after {LIMIT} configurations"));
        }
        if !seen.insert((next.clone(), state.clone())) {
            continue;
        }
        let length: u32 = next.iter().sum();
        if length >= longest.0 {
            longest = (length, format!("{state:?} after {length} calls, then none of {enabled:?}"));
        }
        // The one that returned first is the likeliest, and is popped first.
        enabled.sort_by_key(|(_, call)| std::cmp::Reverse(call.returned));
        for (thread, call) in enabled {
            let Effect::Write(values) = &call.effect else { continue };
            let before: Values = values.iter().map(|(key, _)| (*key, state[*key])).collect();
            for (key, value) in values {
                state[*key] = *value;
            }
            next[thread] += 1;
            pending.push((next.clone(), state.clone()));
            next[thread] -= 1;
            for (key, value) in before.iter().rev() {
                state[*key] = *value;
            }
        }
    }
    Err(longest.1)
}

/// The next calls of the threads, as far as one may come first.
fn enabled<'a>(
    threads: &'a [Vec<Call>],
    next: &[u32],
) -> impl Iterator<Item = (usize, &'a Call)> + use<'a> {
    let heads: Vec<(usize, &Call)> = threads
        .iter()
        .zip(next)
        .enumerate()
        .filter_map(|(i, (calls, at))| Some((i, calls.get(*at as usize)?)))
        .collect();
    let first_return = heads.iter().map(|(_, call)| call.returned).min().unwrap_or(0);
    heads.into_iter().filter(move |(_, call)| call.invoked < first_return)
}

fn take_reads(threads: &[Vec<Call>], next: &mut [u32], state: &[u64]) {
    let fits = |call: &Call| match &call.effect {
        Effect::Read(values) => values.iter().all(|(key, value)| state[*key] == *value),
        Effect::Write(_) => false,
    };
    loop {
        let taken: Vec<usize> =
            enabled(threads, next).filter(|(_, call)| fits(call)).map(|(i, _)| i).collect();
        if taken.is_empty() {
            return;
        }
        for i in taken {
            next[i] += 1;
        }
    }
}

/// What the calls did to one key: a history of one register.
pub fn of_key(threads: &[Vec<Call>], key: usize) -> Vec<Vec<Call>> {
    let only = |values: &Values| values.iter().filter(|(k, _)| *k == key).copied().collect();
    let project = |call: &Call| {
        let effect = match &call.effect {
            Effect::Write(values) => Effect::Write(only(values)),
            Effect::Read(values) => Effect::Read(only(values)),
        };
        let (Effect::Write(values) | Effect::Read(values)) = &effect;
        (!values.is_empty()).then(|| Call { effect: effect.clone(), ..*call })
    };
    threads.iter().map(|calls| calls.iter().filter_map(project).collect()).collect()
}

mod tests {
    use super::*;

    fn call(invoked: u64, returned: u64, effect: Effect) -> Call {
        Call { invoked, returned, effect }
    }

    fn write(invoked: u64, returned: u64, values: &[(usize, u64)]) -> Call {
        call(invoked, returned, Effect::Write(values.to_vec()))
    }

    fn read(invoked: u64, returned: u64, values: &[(usize, u64)]) -> Call {
        call(invoked, returned, Effect::Read(values.to_vec()))
    }

    #[test]
    fn the_judge_takes_what_has_an_order() {
        // A write that is seen before it returns, and a slow read of what was there before.
        let slow = vec![read(0, 9, &[(0, 0)])];
        let writer = vec![write(1, 8, &[(0, 7)])];
        let fast = vec![read(2, 3, &[(0, 7)]), read(4, 5, &[(0, 7)])];
        assert!(judge(&[slow, writer, fast], &[0]).is_ok());
        // Concurrent writes, in the order that the later read demands, not that of their returns.
        let writes = [vec![write(0, 3, &[(0, 1)])], vec![write(1, 2, &[(0, 2)])]];
        for last in [1, 2] {
            let history = [writes[0].clone(), writes[1].clone(), vec![read(4, 5, &[(0, last)])]];
            assert!(judge(&history, &[0]).is_ok(), "{last}");
        }
    }

    #[test]
    fn the_judge_refuses_what_has_none() {
        let wrong = [
            // Stale.
            vec![vec![write(0, 1, &[(0, 1)]), write(2, 3, &[(0, 2)])], vec![read(4, 5, &[(0, 1)])]],
            // Never written.
            vec![vec![write(0, 1, &[(0, 1)])], vec![read(2, 3, &[(0, 9)])]],
            // Seen, and then no more.
            vec![vec![write(0, 9, &[(0, 1)])], vec![read(1, 2, &[(0, 1)]), read(3, 4, &[(0, 0)])]],
            // Two readers see two writes in opposite orders.
            vec![
                vec![write(0, 9, &[(0, 1)])],
                vec![write(0, 9, &[(0, 2)])],
                vec![read(1, 2, &[(0, 1)]), read(5, 6, &[(0, 2)])],
                vec![read(1, 2, &[(0, 2)]), read(5, 6, &[(0, 1)])],
            ],
        ];
        for history in wrong {
            assert!(judge(&history, &[0, 0]).is_err(), "{history:?}");
            assert!(judge(&of_key(&history, 0), &[0, 0]).is_err(), "{history:?}");
        }
    }

    #[test]
    fn the_judge_sees_what_no_single_key_shows() {
        // Half of a batch; and two snapshots that cannot both be states of one order.
        let torn = vec![vec![write(0, 9, &[(0, 1), (1, 1)])], vec![read(1, 8, &[(0, 1), (1, 0)])]];
        let crossed = vec![
            vec![write(0, 9, &[(0, 1)])],
            vec![write(0, 9, &[(1, 1)])],
            vec![read(1, 8, &[(0, 1), (1, 0)])],
            vec![read(1, 8, &[(0, 0), (1, 1)])],
        ];
        for history in [torn, crossed] {
            for key in 0..2 {
                assert!(judge(&of_key(&history, key), &[0, 0]).is_ok());
            }
            assert!(judge(&history, &[0, 0]).is_err(), "{history:?}");
        }
    }
}
