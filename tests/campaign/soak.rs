//! Hours of everything: a child process with random options uses the whole interface from several
//! threads against models, closes and opens again, is killed every so often and goes on; now and
//! then a small disk is filled. Memory, open files and the directory must not grow.
//!
//! Memory and files are looked at within each child that lives long enough (`LONG_LIFE`), since each
//! begins anew, and in this process, which opens what each child left, over all of its life: the
//! median of the last third of the samples, the first fifth of them left out as warm-up, is held
//! against that of the first third. Where there is no `/proc`, nothing is watched.

use crate::child::{Heard, Task, check_left, start};
use crate::driver::Violation;
use crate::process::{Dice, Scratch};
use crate::writers::Model;
use crate::{full, option};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How often samples are taken.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// A child is judged by its own growth if it lived for so long.
const LONG_LIFE: Duration = Duration::from_secs(60);
/// So many samples are needed to judge.
const SAMPLES_MIN: usize = 20;
/// The last third may be larger by a quarter and this: in bytes of resident memory …
const MEMORY_TOLERANCE: u64 = 24 << 20;
/// … in open files …
const FILES_TOLERANCE: u64 = 16;
/// … and in bytes of the directory: what lives is bounded, what waits for compaction is not quite.
const DIRECTORY_TOLERANCE: u64 = 64 << 20;

/// One look at a process and a directory.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    memory: u64,
    files: u64,
}

impl Sample {
    /// Of a process, if there is a way to know.
    fn of(process: u32) -> Option<Sample> {
        let root = Path::new("/proc").join(process.to_string());
        let status = std::fs::read_to_string(root.join("status")).ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: u64 = resident.trim().strip_suffix(" kB")?.parse().ok()?;
        let files = std::fs::read_dir(root.join("fd")).ok()?.count() as u64;
        Some(Sample { memory: kib << 10, files })
    }
}

/// What a series of samples says about growth.
#[derive(Clone, Copy, Debug)]
struct Growth {
    first: u64,
    last: u64,
    tolerance: u64,
}

impl Growth {
    /// `None` if there are too few samples.
    fn of(samples: &[u64], tolerance: u64) -> Option<Growth> {
        let warm = samples.get(samples.len() / 5..)?;
        if warm.len() < SAMPLES_MIN {
            return None;
        }
        let third = warm.len() / 3;
        let median = |part: &[u64]| {
            let mut part = part.to_vec();
            part.sort_unstable();
            part[part.len() / 2]
        };
        let (first, last) = (median(&warm[..third]), median(&warm[warm.len() - third..]));
        Some(Growth { first, last, tolerance })
    }

    fn is_too_much(&self) -> bool {
        self.last > self.first + self.first / 4 + self.tolerance
    }
}

/// What happened so far.
#[derive(Debug, Default)]
struct Totals {
    kills: u64,
    operations: u64,
    full_disks: u64,
    /// Of this process, after each check.
    own: Vec<Sample>,
    /// Of the directory, after each check.
    directory: Vec<u64>,
    /// The growth of each child that lived long: what, and how much.
    judged: Vec<(&'static str, Growth)>,
    /// The most that was ever seen.
    peak: Sample,
}

/// `soak --minutes 60 [--seed N] [--dir D]`.
pub fn main(arguments: &[String]) -> ExitCode {
    let number = |name, default| match option(arguments, name) {
        Some(text) => text.parse().ok(),
        None => Some(default),
    };
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let clock = clock.map_or(1, |since| since.as_secs());
    let (Some(minutes), Some(seed)) = (number("--minutes", 60), number("--seed", clock)) else {
        eprintln!("usage: soak --minutes 60 [--seed N] [--dir D]");
        return ExitCode::from(2);
    };
    let root = option(arguments, "--dir")
        .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    println!("soak of {minutes} minutes, seed {seed}, in {}", root.display());
    let mut totals = Totals::default();
    let outcome = soak(Duration::from_secs(60 * minutes), seed, &root, &mut totals);
    let grown = totals.report();
    match outcome {
        Ok(()) if grown => ExitCode::FAILURE,
        Ok(()) => ExitCode::SUCCESS,
        Err(Violation(what)) => {
            println!("VIOLATION: {what}\nagain: soak --minutes {minutes} --seed {seed}");
            ExitCode::FAILURE
        }
    }
}

fn soak(time: Duration, seed: u64, root: &Path, totals: &mut Totals) -> Result<(), Violation> {
    let start = Instant::now();
    let dice = Dice::of(&[seed, 5]);
    let scratch = Scratch::below(root, "soak")?;
    let writers = 3;
    let mut task = Task {
        dir: scratch.path().join("db"),
        seed,
        round: 0,
        keys: 2000,
        value_len: 600,
        epoch_ms: 0,
        limit: u64::MAX,
        by_hand: false,
        sync_in: 50,
        // It never merges, so the directory would grow.
        fifo: false,
        next: vec![0; writers],
    };
    let mut models = vec![Model::default(); writers];
    let mut told = 0;
    while start.elapsed() < time {
        // From seconds to a quarter of the time, so that some lives are long.
        let life = dice.log_uniform(2_000, (time.as_millis() as u64 / 4).max(4_000));
        let life = Duration::from_millis(life).min(time.saturating_sub(start.elapsed()));
        task.epoch_ms = dice.pick(&[200, 5_000, 20_000]);
        let (heard, samples) = live(&task, models, life, &mut |heard, sample| {
            let minute = start.elapsed().as_secs() / 60;
            if minute > told {
                told = minute;
                totals.line(minute, sample, heard.next.iter().sum(), &task.dir);
            }
        })?;
        totals.kills += 1;
        totals.judge(life, &samples);
        let at = |what: String| {
            let kills = totals.kills;
            Violation(format!("kill {kills}, a child that lived for {life:?}: {what}; {task:?}"))
        };
        if let Some(wrong) = heard.wrong {
            return Err(at(wrong));
        }
        (models, task.next) = check_left(&task, heard, &dice).map_err(at)?;
        totals.operations = task.next.iter().sum();
        totals.own.extend(Sample::of(std::process::id()));
        totals.directory.push(size(&task.dir));
        task.round += 1;
        if dice.one_in(6) && full::real_permitted() {
            let seed = dice.next();
            full::run_real(seed).map_err(|Violation(what)| {
                Violation(format!("{what}; with a full disk, seed {seed}"))
            })?;
            totals.full_disks += 1;
        }
    }
    Ok(())
}

/// Lets a child live for so long and kills it. Returns what it said and its samples.
fn live(
    task: &Task,
    models: Vec<Model>,
    life: Duration,
    each: &mut dyn FnMut(&Heard, Option<Sample>),
) -> Result<(Heard, Vec<Sample>), Violation> {
    let born = Instant::now();
    let (mut child, output) = start(task).map_err(|error| format!("no child: {error}"))?;
    let (lines, inbox) = sync_channel(10_000);
    let listener = std::thread::spawn(move || {
        // In pieces, so that a child that says much does not wait.
        Heard::lines(output, &mut |line| lines.send(line).is_ok());
    });
    let mut heard = Heard::new(task, models);
    let mut samples = Vec::new();
    let mut next_sample = born + SAMPLE_EVERY;
    let mut alive = true;
    while alive && heard.wrong.is_none() && born.elapsed() < life {
        let patience = next_sample.saturating_duration_since(Instant::now());
        match inbox.recv_timeout(patience) {
            Ok(line) => heard.line(&line),
            Err(RecvTimeoutError::Disconnected) => alive = false,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if Instant::now() >= next_sample {
            next_sample += SAMPLE_EVERY;
            let sample = Sample::of(child.id());
            samples.extend(sample);
            each(&heard, sample);
        }
    }
    child.kill().map_err(|error| format!("cannot kill it: {error}"))?;
    while let Ok(line) = inbox.recv() {
        heard.line(&line);
    }
    listener.join().map_err(|_| "nobody listened")?;
    if !alive && heard.wrong.is_none() {
        return Err("the child died by itself".into());
    }
    Ok((heard, samples))
}

/// The length of all files in a directory.
fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl Totals {
    /// The line for a minute.
    fn line(&mut self, minute: u64, sample: Option<Sample>, operations: u64, dir: &Path) {
        let sample = sample.unwrap_or_default();
        println!(
            "{minute:>5} min {operations:>12} operations {:>5} kills {:>4} full disks \
             {:>8.1} MiB resident {:>5} files open {:>8.1} MiB on disk",
            self.kills,
            self.full_disks,
            mib(sample.memory),
            sample.files,
            mib(size(dir)),
        );
    }

    /// Takes in the samples of one child.
    fn judge(&mut self, life: Duration, samples: &[Sample]) {
        for sample in samples {
            self.peak.memory = self.peak.memory.max(sample.memory);
            self.peak.files = self.peak.files.max(sample.files);
        }
        if life < LONG_LIFE {
            return;
        }
        let memory: Vec<u64> = samples.iter().map(|sample| sample.memory).collect();
        let files: Vec<u64> = samples.iter().map(|sample| sample.files).collect();
        let memory = Growth::of(&memory, MEMORY_TOLERANCE).map(|growth| ("child, bytes", growth));
        let files = Growth::of(&files, FILES_TOLERANCE).map(|growth| ("child, files", growth));
        self.judged.extend(memory.into_iter().chain(files));
    }

    /// Prints the table at the end. Returns whether anything grew.
    fn report(&self) -> bool {
        let memory: Vec<u64> = self.own.iter().map(|sample| sample.memory).collect();
        let files: Vec<u64> = self.own.iter().map(|sample| sample.files).collect();
        let mut all = self.judged.clone();
        let own = [
            ("parent, bytes", Growth::of(&memory, MEMORY_TOLERANCE)),
            ("parent, files", Growth::of(&files, FILES_TOLERANCE)),
            ("directory, bytes", Growth::of(&self.directory, DIRECTORY_TOLERANCE)),
        ];
        all.extend(own.into_iter().filter_map(|(what, growth)| Some((what, growth?))));
        println!(
            "\n{} kills, {} operations acknowledged, {} full disks; at most {:.1} MiB resident and \
             {} files open",
            self.kills,
            self.operations,
            self.full_disks,
            mib(self.peak.memory),
            self.peak.files
        );
        println!("{:<18} {:>14} {:>14}", "median of", "first third", "last third");
        let mut worst: BTreeMap<&str, u64> = BTreeMap::new();
        for (what, growth) in &all {
            let verdict = if growth.is_too_much() { "  GREW" } else { "" };
            println!("{what:<18} {:>14} {:>14}{verdict}", growth.first, growth.last);
            *worst.entry(what).or_default() += u64::from(growth.is_too_much());
        }
        if all.is_empty() {
            println!("too short, or no /proc: nothing was judged");
        }
        worst.values().any(|count| *count > 0)
    }
}
