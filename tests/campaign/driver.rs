//! Runs the rows of the campaign: seed after seed until enough was tried, on all cores, with a
//! progress bar, and prints what came of it.
//!
//! A row is a function of a seed. What it finds wrong it returns as a [`Violation`], reduced as far
//! as it can; a panic counts as one. Nothing but the seed decides what a run does, so that
//! `replay ROW SEED` shows it again. Totals are kept in a file, so that a long campaign can be
//! interrupted, continued and split: they start again when what they were counted on has changed.

use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A row ends after so many violations.
const VIOLATIONS_MAX: usize = 3;

/// Something that must never happen, in words: what was done, what came of it, what should have.
#[derive(Debug)]
pub struct Violation(pub String);

impl<T: Into<String>> From<T> for Violation {
    fn from(what: T) -> Self {
        Violation(what.into())
    }
}

/// How much is to be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// What each change is held against.
    Ci,
    /// What a release is held against.
    Release,
}

/// One row of the table in docs/reliability.md.
pub struct Row {
    /// A short name for the command line.
    pub name: &'static str,
    /// What is counted, in the plural.
    pub counts: &'static str,
    /// At least so many in each run of CI.
    pub ci: u64,
    /// At least so many for a release.
    pub release: u64,
    /// Tries what this seed stands for, and says how much that was.
    pub run: fn(u64, Size) -> Result<u64, Violation>,
}

/// What came of a row.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub next_seed: u64,
    pub total: u64,
    pub seconds: f64,
    pub violations: Vec<(u64, String)>,
}

/// Which part of the seeds is to be run here: those that leave `part` when divided by `of`.
#[derive(Clone, Copy, Debug)]
pub struct Shard {
    pub part: u64,
    pub of: u64,
}

/// Runs one seed; a panic is a violation too.
pub fn run_seed(row: &Row, seed: u64, size: Size) -> Result<u64, Violation> {
    match catch_unwind(AssertUnwindSafe(|| (row.run)(seed, size))) {
        Ok(outcome) => outcome,
        Err(panic) => Err(Violation(format!("panicked: {}", panic_text(&*panic)))),
    }
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "?".to_owned())
}

/// Runs a row from where `before` ended until its target is reached.
pub fn run_row(
    row: &Row,
    size: Size,
    shard: Shard,
    before: Outcome,
    save: &(dyn Fn(&Outcome) + Sync),
) -> Outcome {
    let target = match size {
        Size::Ci => row.ci,
        Size::Release => row.release,
    };
    let bar = ProgressBar::new(target).with_position(before.total);
    let style = "{prefix:<12} {wide_bar} {human_pos} of {human_len} {msg}, {eta} to go";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.set_prefix(row.name);
    bar.set_message(row.counts);
    bar.enable_steady_tick(Duration::from_millis(500));

    let start = Instant::now();
    let seed = AtomicU64::new(before.next_seed);
    let total = AtomicU64::new(before.total);
    // Seeds with a violation come first: perhaps it was mended.
    let again = Mutex::new(before.violations.iter().map(|(seed, _)| *seed).collect::<Vec<_>>());
    let violations = Mutex::new(Vec::new());
    let stop = AtomicBool::new(false);
    // The seeds that are being run: everything below the least of them is done.
    let running = Mutex::new(BTreeMap::<u64, ()>::new());
    let snapshot = || {
        let running = running.lock().unwrap();
        let next = running.keys().next().copied().unwrap_or(seed.load(Ordering::Relaxed));
        Outcome {
            next_seed: next,
            total: total.load(Ordering::Relaxed),
            seconds: before.seconds + start.elapsed().as_secs_f64(),
            violations: violations.lock().unwrap().clone(),
        }
    };
    let is_due = || total.load(Ordering::Relaxed) < target || !again.lock().unwrap().is_empty();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && is_due() {
                    let repeated = again.lock().unwrap().pop();
                    let now = repeated.unwrap_or_else(|| {
                        let mut running = running.lock().unwrap();
                        let now = seed.fetch_add(1, Ordering::Relaxed);
                        running.insert(now, ());
                        now * shard.of + shard.part
                    });
                    let outcome = run_seed(row, now, size);
                    if repeated.is_none() {
                        running.lock().unwrap().remove(&(now / shard.of));
                    }
                    match outcome {
                        Ok(tried) => {
                            let done = total.fetch_add(tried, Ordering::Relaxed) + tried;
                            bar.set_position(done.min(target));
                        }
                        Err(Violation(what)) => {
                            bar.suspend(|| eprintln!("{}", describe(row, now, &what)));
                            let mut violations = violations.lock().unwrap();
                            violations.push((now, what));
                            if violations.len() >= VIOLATIONS_MAX {
                                stop.store(true, Ordering::Relaxed);
                            }
                        }
                    }
                    if now % 16 == 0 {
                        save(&snapshot());
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    let outcome = snapshot();
    save(&outcome);
    outcome
}

/// A violation, with the command that shows it again.
pub fn describe(row: &Row, seed: u64, what: &str) -> String {
    let name = row.name;
    format!(
        "VIOLATION in {name}, seed {seed}: {what}\n\
         again: cargo test --release --test campaign -- replay {name} {seed}\n"
    )
}

/// The table at the end.
pub fn summary(rows: &[(&Row, Outcome)], size: Size) -> String {
    let mut out = String::new();
    let line = |out: &mut String, cells: [&str; 6]| {
        let [name, tried, target, seconds, violations, what] = cells;
        let padded =
            format!("{name:<12} {tried:>12} {target:>12} {seconds:>9} {violations:>10}  {what}");
        writeln!(out, "{}", padded.trim_end()).unwrap();
    };
    line(&mut out, ["row", "tried", "at least", "seconds", "violations", "of what"]);
    for (row, outcome) in rows {
        let target = if size == Size::Ci { row.ci } else { row.release };
        line(
            &mut out,
            [
                row.name,
                &outcome.total.to_string(),
                &target.to_string(),
                &format!("{:.1}", outcome.seconds),
                &outcome.violations.len().to_string(),
                row.counts,
            ],
        );
    }
    out
}

/// The totals of a campaign, kept between runs.
pub struct Totals {
    path: PathBuf,
    fingerprint: String,
    rows: Mutex<BTreeMap<String, Outcome>>,
}

impl Totals {
    /// Those in `path`, if they were counted on the same format, log and recovery, in the same
    /// shard; else none.
    pub fn load(path: &Path, shard: Shard) -> Totals {
        let fingerprint = format!("{}-{}/{}", fingerprint(), shard.part, shard.of);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let mut lines = text.lines();
        let mut rows = BTreeMap::new();
        if lines.next() == Some(&fingerprint) {
            for line in lines {
                let fields: Vec<&str> = line.split('\t').collect();
                let [name, next_seed, total, seconds, again] = fields[..] else { continue };
                let (Ok(next_seed), Ok(total)) = (next_seed.parse(), total.parse()) else {
                    continue;
                };
                let seconds = seconds.parse().unwrap_or(0.0);
                let again = again.split(' ').filter_map(|seed| seed.parse().ok());
                let violations = again.map(|seed| (seed, String::new())).collect();
                let outcome = Outcome { next_seed, total, seconds, violations };
                rows.insert(name.to_owned(), outcome);
            }
        }
        Totals { path: path.to_path_buf(), fingerprint, rows: Mutex::new(rows) }
    }

    /// What a row has so far.
    pub fn of(&self, row: &Row) -> Outcome {
        self.rows.lock().unwrap().get(row.name).cloned().unwrap_or_default()
    }

    /// Keeps what a row has so far. Seeds with a violation are run again next time.
    pub fn save(&self, row: &Row, outcome: &Outcome) {
        let mut rows = self.rows.lock().unwrap();
        rows.insert(row.name.to_owned(), outcome.clone());
        let mut text = format!("{}\n", self.fingerprint);
        for (name, outcome) in rows.iter() {
            let Outcome { next_seed, total, seconds, violations } = outcome;
            let again: Vec<String> = violations.iter().map(|(seed, _)| seed.to_string()).collect();
            let again = again.join(" ");
            writeln!(text, "{name}\t{next_seed}\t{total}\t{seconds:.1}\t{again}").unwrap();
        }
        let new = self.path.with_extension("new");
        let written = self.path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let written = written.and_then(|()| std::fs::write(&new, text));
        if let Err(error) = written.and_then(|()| std::fs::rename(&new, &self.path)) {
            eprintln!("cannot keep the totals in {}: {error}", self.path.display());
        }
    }
}

/// Stands for what the totals count on: the format, the log, the manifest and recovery, as in the
/// source.
fn fingerprint() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("FORMAT.md"), root.join("src/db/open.rs")];
    for dir in ["src/wal", "src/version", "src/segment"] {
        let entries = std::fs::read_dir(root.join(dir)).into_iter().flatten().flatten();
        files.extend(entries.map(|entry| entry.path()).filter(|path| path.is_file()));
    }
    files.sort();
    // FNV-1a: enough to notice a change.
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    for bytes in files.iter().filter_map(|file| std::fs::read(file).ok()) {
        for byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }
    format!("{hash:016x}")
}
