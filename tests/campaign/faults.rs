//! A call to the file system fails, each in turn, in each way that there is.
//!
//! A short workload is run once to see which calls it makes, and then again for each call and each
//! kind of failure. Whatever fails, the database must say so with a proper error; what failed must
//! not be seen, and what is read must be right. Then either writes are refused, reads go on and
//! opening again helps, or everything goes on as before. In the end, and in the moment of the
//! failure, the process dies and the power goes: everything acknowledged as durable must be there, also what was
//! acknowledged after the failure.
//!
//! A file whose sync failed forgets what was not durable, as on Linux, though it can still be read:
//! every later acknowledgement that counts on it is found out as a lost state. The row `fsync` does
//! this for each sync, and asks for every kind of acknowledgement afterwards.

use crate::driver::{Row, Violation, panic_text};
use crate::watch::Watch;
use crate::workload::{
    Change, Config, History, Op, Rng, Runner, State, Trouble, operations, reduce,
};
use ashlardb::vfs::{Call, Env, Failure, MemVfs, SimVfs};
use ashlardb::{Durability, Error, ErrorKind, WriteBatch};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

pub const ROW: Row = Row {
    name: "faults",
    counts: "failed calls, from every call of a workload",
    ci: 20_000,
    release: 100_000,
    run: |seed, _| run(seed, &any_call),
};

pub const FSYNC: Row = Row {
    name: "fsync",
    counts: "failed syncs, with every acknowledgement after them",
    ci: 2_000,
    release: 20_000,
    run: |seed, _| run(seed ^ FSYNC_SEEDS, &each_sync),
};

/// So that the two rows do not do the same work.
const FSYNC_SEEDS: u64 = 1 << 41;

/// What fails, and for how long.
#[derive(Clone, Copy, Debug)]
struct Fault {
    /// Which call, all counted from zero.
    k: u64,
    call: Call,
    failure: Failure,
    lasts: Lasts,
    /// Ask for every kind of acknowledgement once writes are refused.
    nags: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lasts {
    Once,
    /// This one and all behind it that can fail so, until the disk is mended.
    On,
    /// The same, but reads go on.
    OnForChanges,
}

/// What may happen to a call.
fn any_call(call: Call) -> Vec<(Failure, Lasts, bool)> {
    use Failure::{Done, FlippedRead, Half, Interrupted, MisplacedRead, NoSpace, Refused};
    let kinds: &[Failure] = match call {
        Call::Open => &[Refused, Interrupted],
        Call::Read => &[Refused, Interrupted, FlippedRead, MisplacedRead],
        Call::Write => &[Refused, NoSpace, Interrupted, Half, Done],
        Call::Create | Call::SetLen | Call::Sync => &[Refused, NoSpace, Interrupted, Done],
        _ => &[Refused, Interrupted, Done],
    };
    let mut all: Vec<_> = kinds.iter().map(|kind| (*kind, Lasts::Once, false)).collect();
    let lying = |kind: &Failure| matches!(kind, FlippedRead | MisplacedRead | Interrupted);
    for kind in kinds.iter().filter(|kind| !lying(kind)) {
        all.push((*kind, Lasts::On, false));
        if call.is_change() {
            all.push((*kind, Lasts::OnForChanges, false));
        }
    }
    all
}

fn each_sync(call: Call) -> Vec<(Failure, Lasts, bool)> {
    use Failure::{Interrupted, NoSpace, Refused};
    match call {
        Call::Sync => [Refused, NoSpace, Interrupted]
            .into_iter()
            .flat_map(|kind| [(kind, Lasts::Once, true), (kind, Lasts::OnForChanges, true)])
            .collect(),
        Call::SyncDir => vec![(Refused, Lasts::Once, true), (Refused, Lasts::OnForChanges, true)],
        _ => Vec::new(),
    }
}

type Kinds = dyn Fn(Call) -> Vec<(Failure, Lasts, bool)>;

fn run(seed: u64, kinds: &Kinds) -> Result<u64, Violation> {
    let rng = Rng::new(seed ^ 0x6661_756C);
    let mut ops = operations(seed, 6 + rng.below(22) as usize);
    for _ in 0..ops.len() / 5 {
        ops.insert(rng.below(ops.len() as u64) as usize, Op::Read);
    }
    let config = Config::from_seed(seed);
    let calls = calls(&ops, seed, &config)?;
    let mut tried = 0;
    for (k, call) in calls.into_iter().enumerate() {
        for (failure, lasts, nags) in kinds(call) {
            let fault = Fault { k: k as u64, call, failure, lasts, nags };
            tried += 1;
            if let Err(what) = guarded(&ops, seed, &config, fault) {
                return Err(reduced(&ops, seed, &config, fault, what));
            }
        }
    }
    Ok(tried)
}

/// The calls that the work makes when none fails.
fn calls(ops: &[Op], seed: u64, config: &Config) -> Result<Vec<Call>, String> {
    let vfs = SimVfs::new(seed);
    let watch = Watch::new(&vfs);
    let calls = watch.calls();
    let mut runner = Runner::new(watch.env(seed), config.clone(), History::default());
    let failed = |trouble| format!("without any failure: {trouble}");
    runner.open().map_err(failed)?;
    for op in ops {
        runner.apply(op).map_err(failed)?;
    }
    drop(runner.drop_db());
    let calls = std::mem::take(&mut *calls.lock().unwrap());
    Ok(calls)
}

fn reduced(ops: &[Op], seed: u64, config: &Config, fault: Fault, what: String) -> Violation {
    // With fewer operations the same failure strikes elsewhere: at some call of the same sort.
    let last = Mutex::new((fault, what));
    let fails = |ops: &[Op]| {
        let calls = calls(ops, seed, config).ok()?;
        let same = calls.into_iter().enumerate().filter(|(_, call)| *call == fault.call);
        for (k, _) in same {
            let fault = Fault { k: k as u64, ..fault };
            if let Err(what) = guarded(ops, seed, config, fault) {
                *last.lock().unwrap() = (fault, what.clone());
                return Some(what);
            }
        }
        None
    };
    let (ops, _) = reduce(ops, &fails);
    let (fault, what) = last.into_inner().unwrap();
    Violation(format!("{fault:?}: {what}\n  options: {config:?}\n  operations: {ops:?}"))
}

/// Turns a panic into what is wrong.
fn guarded(ops: &[Op], seed: u64, config: &Config, fault: Fault) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| Case::new(seed, config, fault).run(ops)))
        .unwrap_or_else(|panic| Err(format!("panicked: {}", panic_text(&*panic))))
}

/// One failure, and the work around it.
struct Case {
    vfs: SimVfs,
    watch: Watch,
    runner: Runner,
    fault: Fault,
    rng: Rng,
    /// How many more operations may fail before the disk is mended.
    patience: u64,
    mended: bool,
    /// A flush or a compaction failed, and none succeeded since.
    work_failed: bool,
}

impl Case {
    fn new(seed: u64, config: &Config, fault: Fault) -> Case {
        let vfs = SimVfs::new(seed);
        let watch = Watch::new(&vfs);
        let runner = Runner::new(watch.env(seed), config.clone(), History::default());
        let rng = Rng::new(seed ^ fault.k << 8 ^ fault.failure as u64);
        let patience = if fault.lasts == Lasts::Once { 0 } else { rng.below(4) };
        let (mended, work_failed) = (false, false);
        let case = Case { vfs, watch, runner, fault, rng, patience, mended, work_failed };
        case.strike_from(fault.k);
        case
    }

    fn strike_from(&self, k: u64) {
        match self.fault.lasts {
            Lasts::Once => self.vfs.fail_any(k, false, self.fault.failure),
            Lasts::On => self.vfs.fail_any(k, true, self.fault.failure),
            Lasts::OnForChanges if k == 0 => self.vfs.fail(0, true, self.fault.failure),
            // Counted in all calls until it strikes; reads are spared from then on.
            Lasts::OnForChanges => self.watch.spare_reads(k, self.fault.failure),
        }
    }

    /// Whether the call that is to fail was made.
    fn struck(&self) -> bool {
        self.vfs.calls() > self.fault.k
    }

    fn mend(&mut self) {
        self.watch.spare_nothing();
        self.vfs.heal();
        self.mended = true;
    }

    /// Does something while nothing fails.
    fn unharmed<T>(&mut self, action: impl FnOnce(&mut Self) -> T) -> T {
        debug_assert!(self.struck(), "this would shift or take away the failure");
        self.vfs.heal();
        let outcome = action(self);
        if !self.mended && self.fault.lasts != Lasts::Once {
            self.strike_from(0);
        }
        outcome
    }

    fn run(mut self, ops: &[Op]) -> Result<(), String> {
        self.open()?;
        for op in ops {
            if self.runner.db.is_none() {
                self.open()?;
                if self.runner.db.is_none() {
                    continue;
                }
            }
            self.apply(op)?;
        }
        self.mend();
        if self.is_refused() {
            drop(self.runner.drop_db());
        }
        self.open()?;
        self.crash("at the end")?;
        let change = |key| Change::put(0, key, 1 << 20, 300);
        let last = [
            Op::Write(vec![change(3), change(30)], true),
            Op::Flush,
            Op::Write(vec![change(4)], false),
            Op::Sync,
            Op::Idle,
            Op::Read,
        ];
        for op in &last {
            self.apply(op)?;
        }
        self.crash("after the last work")?;
        self.watch.verdict()
    }

    /// Opens it, if it is not open. While the disk is broken that may fail.
    fn open(&mut self) -> Result<(), String> {
        while self.runner.db.is_none() {
            let was_well = self.is_well();
            match self.runner.open() {
                Ok(()) => self.settle()?,
                Err(Trouble::Error(error)) => {
                    self.check_error(&error, was_well, "open")?;
                    drop(self.runner.drop_db());
                    if self.patience > 0 {
                        self.patience -= 1;
                        return Ok(());
                    }
                    self.mend();
                }
                Err(wrong) => return Err(format!("open: {wrong}")),
            }
        }
        Ok(())
    }

    /// After opening: what failed before is now there for good, or not.
    fn settle(&mut self) -> Result<(), String> {
        self.work_failed = false;
        if !self.struck() {
            return Ok(());
        }
        let found = self.unharmed(|case| case.look("after opening"))?;
        let mut history = self.runner.history.lock().unwrap();
        let settled = history.outlives_process(&found);
        *history = settled.ok_or_else(|| format!("after opening: {}", history.describe(&found)))?;
        Ok(())
    }

    /// Whether nothing can fail any more.
    fn is_well(&self) -> bool {
        self.mended || self.fault.lasts == Lasts::Once && self.struck()
    }

    fn apply(&mut self, op: &Op) -> Result<(), String> {
        let was_well = self.is_well();
        let was_refused = self.is_refused();
        match self.runner.apply(op) {
            Ok(()) => {
                if matches!(op, Op::Close | Op::Kill) {
                    self.settle()?;
                }
                if matches!(op, Op::Flush | Op::Idle | Op::Load(..)) {
                    self.work_failed = false;
                }
                Ok(())
            }
            Err(Trouble::Wrong(what)) => Err(format!("{op:?}: {what}")),
            Err(Trouble::Error(error)) => {
                // Work in the background that failed may hold up writes until it succeeds.
                let excused = was_refused
                    || self.work_failed
                    || matches!(error, Error::Poisoned { .. })
                    // What was read wrong once is left alone until the next opening.
                    || self.has_lied() && matches!(op, Op::Compact(_) | Op::Step | Op::Idle);
                self.check_error(&error, was_well && !excused, &format!("{op:?}"))?;
                self.failed(op, was_refused)
            }
        }
    }

    fn has_lied(&self) -> bool {
        matches!(self.fault.failure, Failure::FlippedRead | Failure::MisplacedRead)
    }

    fn check_error(&self, error: &Error, was_well: bool, what: &str) -> Result<(), String> {
        if was_well {
            return Err(format!("{what} fails after the disk was mended: {error}"));
        }
        let proper = match error.kind() {
            ErrorKind::Io | ErrorKind::Poisoned => true,
            ErrorKind::Corruption => self.has_lied(),
            _ => false,
        };
        let full = matches!(error, Error::DiskFull { .. });
        if !proper || full && self.fault.failure != Failure::NoSpace {
            return Err(format!("{what} gives a wrong error: {error:?}"));
        }
        Ok(())
    }

    /// Whether writes are refused. Asks with an empty write.
    fn is_refused(&self) -> bool {
        let nothing = || self.runner.db().write_with(WriteBatch::new(), Durability::Buffered);
        self.runner.db.is_some() && matches!(nothing(), Err(Error::Poisoned { .. }))
    }

    /// An operation gave a proper error: what can be seen of it now, and what is left of it?
    fn failed(&mut self, op: &Op, was_refused: bool) -> Result<(), String> {
        self.crash(&format!("when {op:?} failed"))?;
        if matches!(
            op,
            Op::Flush | Op::Step | Op::Idle | Op::Compact(_) | Op::Copy(_) | Op::Load(..)
        ) {
            self.work_failed = true;
        }
        if self.runner.db.is_none() {
            self.runner.history.lock().unwrap().failed();
        } else {
            let found = self.unharmed(|case| case.look(&format!("after {op:?} failed")))?;
            let refused = self.is_refused();
            let mut history = self.runner.history.lock().unwrap();
            let is_new = history.pending().is_some_and(|next| **next == found);
            if found == **history.newest() {
                if was_refused { history.undone() } else { history.failed() }
            } else if is_new && refused && matches!(op, Op::Write(_, true) | Op::Transact(_, true))
            {
                history.seen();
            } else if is_new {
                return Err(format!("{op:?} failed, but it can be seen"));
            } else {
                return Err(format!("after {op:?} failed: {}", history.describe(&found)));
            }
            drop(history);
            if refused {
                self.check_refusal()?;
            }
        }
        if self.patience > 0 {
            self.patience -= 1;
            return Ok(());
        }
        self.mend();
        if self.is_refused() {
            // What is wrong with the disk is over: but only opening again helps.
            self.check_refusal()?;
            if self.fault.nags && self.rng.one_in(2) {
                self.runner.history.lock().unwrap().failed();
                let closed = self.runner.drop_db().map(ashlardb::Db::close);
                if matches!(closed, Some(Ok(()))) {
                    return Err(format!("closing succeeds although {op:?} failed"));
                }
            }
            drop(self.runner.drop_db());
        }
        Ok(())
    }

    /// Writes are refused: none of them may happen, or be acknowledged.
    fn check_refusal(&mut self) -> Result<(), String> {
        let before = self.unharmed(|case| case.look("while writes are refused"))?;
        let db = self.runner.db();
        let mut asked = vec![
            ("put", db.put("refused", "x")),
            ("sync", db.sync()),
            ("clear", db.clear()),
            ("a batch", db.write(WriteBatch::new())),
        ];
        if self.fault.nags {
            let mut batch = WriteBatch::new();
            batch.put("refused", "x");
            asked.push(("a synced batch", db.write_with(batch, Durability::Sync)));
            let nothing = WriteBatch::new();
            asked.push(("an empty synced batch", db.write_with(nothing, Durability::Sync)));
            asked.push(("flush", db.flush()));
            asked.push(("create", db.keyspace("refused").map(drop)));
            asked.push(("step", db.step().map(drop)));
            asked.push(("compact_range", db.compact_range::<&[u8]>(..)));
        }
        for (what, answer) in asked {
            if !matches!(answer, Err(Error::Poisoned { .. })) {
                return Err(format!("writes are refused, but {what} gives {answer:?}"));
            }
        }
        if self.unharmed(|case| case.look("while writes are refused"))? != before {
            return Err("what was refused can be seen".into());
        }
        Ok(())
    }

    /// Reads everything; nothing fails now.
    fn look(&self, when: &str) -> Result<State, String> {
        let found = self.runner.contents().map_err(|trouble| format!("{when}: {trouble}"))?;
        let db = self.runner.db();
        if db.keyspaces().len() != found.len() {
            return Err(format!("{when}: there are the keyspaces {:?}", db.keyspaces()));
        }
        Ok(found)
    }

    /// Opens what the death of the process and the loss of power would leave now.
    fn crash(&self, when: &str) -> Result<(), String> {
        let history = self.runner.history.lock().unwrap().clone();
        let mut images = vec![self.vfs.process_death()];
        let powers = if self.fault.nags { 3 } else { 1 };
        images.extend((0..powers).map(|_| self.vfs.power_loss(self.rng.next())));
        for (n, image) in images.into_iter().enumerate() {
            let found = self.recover(image, &history);
            let found = found.map_err(|what| format!("crash {n} {when}: {what}"))?;
            let allowed =
                if n == 0 { history.outlives_process(&found) } else { history.admits(&found) };
            if allowed.is_none() {
                return Err(format!("crash {n} {when}: {}", history.describe(&found)));
            }
        }
        Ok(())
    }

    fn recover(&self, image: MemVfs, history: &History) -> Result<State, String> {
        let env = Env { vfs: Arc::new(image), ..Env::in_memory(1) };
        let mut runner = Runner::new(env, self.runner.config.clone(), history.clone());
        runner.open().map_err(|trouble| format!("open: {trouble}"))?;
        runner.check().map_err(|trouble| trouble.to_string())
    }
}
