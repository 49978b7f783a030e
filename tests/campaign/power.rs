//! Loss of power at each change of a workload, and again at each change of the recovery from it.
//!
//! Before each change that the database makes to its files, several possible leavings of a power
//! loss are opened. What is found there must be a state that the database went through, not before
//! the last durable one, or what the operation under way makes of it; batches whole, the key map as
//! a rebuild gives it, every way of reading the same. Some are then worked on, closed and opened
//! again, since damage may show late.

use crate::driver::{Row, Violation, panic_text};
use crate::workload::{
    Change, Config, DIR, History, Op, Rng, Runner, State, Trouble, operations, reduce,
};
use ashlardb::vfs::{Call, Env, MemVfs, SimVfs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub const ROW: Row = Row {
    name: "power",
    counts: "crash images, from every change of a workload",
    ci: 50_000,
    release: 1_000_000,
    run: |seed, _| run(seed, &Plan { images: 3, depth: 0 }),
};

pub const RECOVERY: Row = Row {
    name: "recovery",
    counts: "crashes during recovery, to depth 3",
    ci: 5_000,
    release: 100_000,
    run: |seed, _| run(seed ^ RECOVERY_SEEDS, &Plan { images: 1, depth: 3 }),
};

/// So that the two rows do not do the same work.
const RECOVERY_SEEDS: u64 = 1 << 40;

/// How much is tried at each change.
struct Plan {
    /// Leavings of the workload.
    images: u64,
    /// How often recovery crashes, one within the other. With 0 recoveries are not crashed, and
    /// leavings are counted; otherwise crashed recoveries are counted.
    depth: u32,
}

fn run(seed: u64, plan: &Plan) -> Result<u64, Violation> {
    let count = 30 + Rng::new(seed).below(90) as usize;
    let ops = operations(seed, count);
    let config = Config::from_seed(seed);
    let tried = AtomicU64::new(0);
    match crash_everywhere(&ops, seed, &config, plan, &tried) {
        None => Ok(tried.load(Ordering::Relaxed)),
        Some(what) => {
            let again = |ops: &[Op]| crash_everywhere(ops, seed, &config, plan, &AtomicU64::new(0));
            let (ops, shorter) = reduce(&ops, &again);
            let what = shorter.unwrap_or(what);
            Err(Violation(format!("{what}\n  options: {config:?}\n  operations: {ops:?}")))
        }
    }
}

/// Does the work and crashes it before each change; what is wrong, if anything is.
fn crash_everywhere(
    ops: &[Op],
    seed: u64,
    config: &Config,
    plan: &Plan,
    tried: &AtomicU64,
) -> Option<String> {
    let found = Arc::new(Mutex::new(None::<String>));
    let images = Arc::new(AtomicU64::new(0));
    let vfs = SimVfs::new(seed);
    let mut runner = Runner::new(vfs.env(seed), config.clone(), History::default());
    {
        let (found, images) = (Arc::clone(&found), Arc::clone(&images));
        let (history, config) = (Arc::clone(&runner.history), config.clone());
        let plan = Plan { ..*plan };
        vfs.before_each_change(move |vfs, call| {
            if found.lock().unwrap().is_some() {
                return;
            }
            let history = history.lock().unwrap().clone();
            let changes = vfs.changes();
            for n in 0..plan.images {
                let crash = Rng::new(seed ^ changes << 20 ^ n << 8).next();
                let image = vfs.power_loss(crash);
                let (outcome, count) = guarded(|| recover(image, &history, crash, &config, &plan));
                images.fetch_add(count, Ordering::Relaxed);
                if let Some(what) = outcome {
                    *found.lock().unwrap() = Some(format!(
                        "crash before change {changes} ({call:?}), image {n}: {what}"
                    ));
                    return;
                }
            }
        });
    }
    let worked = guarded(|| (work(&mut runner, ops), 0)).0;
    vfs.forget_hook();
    drop(runner.drop_db());
    tried.fetch_add(images.load(Ordering::Relaxed), Ordering::Relaxed);
    let crashed = found.lock().unwrap().take();
    crashed.or(worked)
}

fn work(runner: &mut Runner, ops: &[Op]) -> Option<String> {
    let failed =
        |what: &str, trouble: Trouble| Some(format!("without any crash, {what}: {trouble}"));
    if let Err(trouble) = runner.open() {
        return failed("open", trouble);
    }
    for op in ops {
        let done = runner.apply(op).and_then(|()| match op {
            // The map must be right where edits have changed it, too.
            Op::Read | Op::Idle => runner.check().map(drop),
            _ => Ok(()),
        });
        if let Err(trouble) = done {
            return failed(&format!("{op:?}"), trouble);
        }
    }
    None
}

/// Turns a panic into what is wrong.
fn guarded(action: impl FnOnce() -> (Option<String>, u64)) -> (Option<String>, u64) {
    catch_unwind(AssertUnwindSafe(action))
        .unwrap_or_else(|panic| (Some(format!("panicked: {}", panic_text(&*panic))), 1))
}

/// Opens what a crash left and holds it against the history. How many leavings were looked at.
fn recover(
    image: MemVfs,
    history: &History,
    seed: u64,
    config: &Config,
    plan: &Plan,
) -> (Option<String>, u64) {
    if plan.depth == 0 {
        let env = Env { vfs: Arc::new(image), ..Env::in_memory(seed) };
        return (open_and_check(env, history, seed, config).err(), 1);
    }
    crash_recovery(&image, history, seed, config, plan.depth)
}

/// Opens it, reads all there is; at times goes on working with it.
fn open_and_check(env: Env, history: &History, seed: u64, config: &Config) -> Result<(), String> {
    let mut runner = Runner::new(env, config.clone(), history.clone());
    runner.open().map_err(|trouble| format!("open: {trouble}"))?;
    let state = runner.check().map_err(|trouble| format!("after recovery: {trouble}"))?;
    let admitted = history.admits(&state).ok_or_else(|| history.describe(&state))?;
    if !seed.is_multiple_of(8) {
        return Ok(());
    }
    // Life goes on; and what is wrong may show at the next open only.
    *runner.history.lock().unwrap() = admitted;
    let change = |key| Change::put(0, key, 1 << 20 | u32::from(key), 9);
    let ops = match seed / 8 % 4 {
        0 => vec![Op::Kill, Op::Read],
        1 => vec![Op::Write(vec![change(2)], true), Op::Close, Op::Read],
        2 => vec![Op::Write(vec![change(2)], false), Op::Flush, Op::Idle, Op::Kill, Op::Read],
        _ => vec![Op::Idle, Op::Write(vec![change(9)], false), Op::Compact(0), Op::Kill, Op::Read],
    };
    for op in &ops {
        runner.apply(op).map_err(|trouble| format!("after recovery, {op:?}: {trouble}"))?;
    }
    runner.check().map_err(|trouble| format!("after recovery and {ops:?}: {trouble}"))?;
    Ok(())
}

/// Crashes the recovery before one of its changes, and the recovery from that, and so on; then
/// lets one run to its end.
fn crash_recovery(
    image: &MemVfs,
    history: &History,
    seed: u64,
    config: &Config,
    depth: u32,
) -> (Option<String>, u64) {
    let rng = Rng::new(seed);
    let vfs = SimVfs::on(image, seed);
    let crashes = Arc::new(Mutex::new(Vec::<MemVfs>::new()));
    {
        let crashes = Arc::clone(&crashes);
        let seed = rng.next();
        vfs.before_each_change(move |vfs, call| {
            let seed = Rng::new(seed ^ vfs.changes()).next();
            // After a sync more is decided than before it, so that is where most crashes are.
            if matches!(call, Call::Sync | Call::SyncDir) || seed.is_multiple_of(2) {
                crashes.lock().unwrap().push(vfs.power_loss(seed));
            }
        });
    }
    let mut runner = Runner::new(vfs.env(rng.next()), config.clone(), history.clone());
    let opened = runner.open().map_err(|trouble| format!("open: {trouble}"));
    vfs.forget_hook();
    let state = match opened.and_then(|()| runner.check().map_err(|trouble| trouble.to_string())) {
        Ok(state) => state,
        Err(what) => return (Some(format!("{depth} crashes from the end: {what}")), 1),
    };
    let Some(admitted) = history.admits(&state) else {
        return (Some(format!("{depth} crashes from the end: {}", history.describe(&state))), 1);
    };
    // What the user sees after recovery must stay, whatever happens now.
    let mut images = std::mem::take(&mut *crashes.lock().unwrap());
    let after = vfs.power_loss(rng.next());
    drop(runner.drop_db());
    if let Some(what) = must_be(after, &state, admitted, rng.next(), config) {
        return (Some(format!("power loss right after recovery: {what}")), 1);
    }
    let mut count = 1;
    let all = images.len() as u64;
    // One chain of crashes in each recovery goes deeper; the others end here.
    let deeper = if all == 0 { 0 } else { rng.below(all) };
    for (n, image) in images.drain(..).enumerate() {
        let seed = rng.next();
        let (outcome, more) = if n as u64 == deeper && depth > 1 {
            crash_recovery(&image, history, seed, config, depth - 1)
        } else {
            let env = Env { vfs: Arc::new(image), ..Env::in_memory(seed) };
            (open_and_check(env, history, seed, config).err(), 1)
        };
        count += more;
        if let Some(what) = outcome {
            return (Some(format!("crash {n} of {all} in a recovery: {what}")), count);
        }
    }
    (None, count)
}

fn must_be(
    image: MemVfs,
    state: &State,
    history: History,
    seed: u64,
    config: &Config,
) -> Option<String> {
    let names = || ashlardb::vfs::Vfs::read_dir(&image, Path::new(DIR));
    let listing = format!("{:?}", names());
    let env = Env { vfs: Arc::new(image.clone()), ..Env::in_memory(seed) };
    let mut runner = Runner::new(env, config.clone(), history);
    let found = runner.open().and_then(|()| runner.check());
    match found {
        Err(trouble) => Some(format!("{trouble}; {listing}")),
        Ok(found) if found != *state => Some(format!("it is not what recovery showed; {listing}")),
        Ok(_) => None,
    }
}
