//! Runs an operation again and again, in one or more threads, and measures.

use crate::engines::{Engine, Outcome, Session};
use crate::hist::Histogram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// When to stop.
#[derive(Clone, Copy)]
pub enum Until {
    /// After so many operations in each thread, all measured.
    Ops(u64),
    /// After a warm-up that is not measured and so much time.
    Time { warmup: Duration, measured: Duration },
    /// When it is told to.
    Told,
}

#[derive(Default)]
pub struct Measured {
    pub ops: u64,
    /// Wall time of the longest thread.
    pub seconds: f64,
    /// Sum of the threads' rates.
    pub rate: f64,
    pub latencies: Histogram,
}

impl Measured {
    fn merge(&mut self, other: &Measured) {
        self.ops += other.ops;
        self.seconds = self.seconds.max(other.seconds);
        self.rate += other.rate;
        self.latencies.merge(&other.latencies);
    }
}

/// How one operation in `every` is timed. A clock is read twice for it; where every operation is
/// timed, once, since the end of one is the beginning of the next.
pub const READS: u32 = 8;
pub const ALL: u32 = 1;

/// Runs `operation` in this thread. `pace` holds it to so many a second.
pub fn run(
    session: &mut dyn Session,
    until: Until,
    every: u32,
    pace: Option<f64>,
    stop: &AtomicBool,
    mut operation: impl FnMut(&mut dyn Session) -> Outcome,
) -> Outcome<Measured> {
    if let Until::Time { warmup, .. } = until {
        let end = Instant::now() + warmup;
        while !warmup.is_zero() && Instant::now() < end {
            for _ in 0..every {
                operation(session)?;
            }
        }
    }
    let mut latencies = Histogram::default();
    let mut ops = 0u64;
    let start = Instant::now();
    let end = match until {
        Until::Time { measured, .. } => start + measured,
        _ => start + Duration::from_secs(1 << 32),
    };
    let most = if let Until::Ops(ops) = until { ops } else { u64::MAX };
    let mut before = start;
    while ops < most {
        operation(session)?;
        ops += 1;
        let now = Instant::now();
        latencies.add((now - before).as_nanos() as u64);
        if now >= end || stop.load(Ordering::Relaxed) {
            break;
        }
        before = now;
        if let Some(rate) = pace {
            let due = ((now - start).as_secs_f64() * rate) as u64;
            if ops > due {
                std::thread::sleep(Duration::from_micros(300));
                before = Instant::now();
            }
        }
        if every > 1 {
            for _ in 1..u64::from(every).min(most - ops + 1) {
                operation(session)?;
                ops += 1;
            }
            before = Instant::now();
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(Measured { ops, seconds, rate: ops as f64 / seconds, latencies })
}

/// Runs an operation in so many threads, each with a session and an operation of its own.
pub fn threads<F>(
    engine: &dyn Engine,
    count: usize,
    until: Until,
    every: u32,
    make: impl Fn(usize) -> F + Sync,
) -> Outcome<(Measured, Vec<F>)>
where
    F: FnMut(&mut dyn Session) -> Outcome + Send,
{
    let stop = AtomicBool::new(false);
    let one = |thread: usize| -> Outcome<(Measured, F)> {
        let mut operation = make(thread);
        let mut session = engine.session()?;
        let measured = run(&mut *session, until, every, None, &stop, &mut operation)?;
        Ok((measured, operation))
    };
    if count == 1 {
        let (measured, operation) = one(0)?;
        return Ok((measured, vec![operation]));
    }
    let one = &one;
    let results: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..count).map(|thread| scope.spawn(move || one(thread))).collect();
        handles.into_iter().map(|handle| handle.join()).collect()
    });
    let (mut all, mut operations) = (Measured::default(), Vec::new());
    for result in results {
        let (measured, operation) = result.map_err(|_| "a worker panicked")??;
        all.merge(&measured);
        operations.push(operation);
    }
    Ok((all, operations))
}
