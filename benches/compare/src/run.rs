//! The parent: goes through the plan, one child at a time, and collects the records.

use crate::child::{Job, READY};
use crate::data::Order;
use crate::engines::Outcome;
use crate::plan::{GROUPS, Group};
use crate::record::Record;
use crate::settings::Settings;
use crate::{machine, proc};
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How often a store is opened to measure that.
const OPENS: usize = 3;

pub struct Run {
    pub settings: Settings,
    pub engines: Vec<String>,
    pub workloads: Vec<String>,
    pub runs: u32,
    pub dir: PathBuf,
    pub out: PathBuf,
    pub limits: bool,
}

impl Run {
    /// Measures everything. What fails is said and left out; gives how much failed.
    pub fn all(&self) -> Outcome<usize> {
        fs::create_dir_all(&self.dir)?;
        let machine = proc::machine();
        eprintln!("{machine}");
        let mut failed = 0;
        for run in 0..self.runs {
            if self.limits {
                for record in machine::limits(&self.dir, run, &self.settings, &machine)? {
                    self.keep(&record)?;
                }
            }
            for group in &GROUPS {
                let Some((steps, after)) = group.chosen(&self.workloads) else { continue };
                for turn in 0..self.engines.len() {
                    // Each run begins with another engine.
                    let engine = &self.engines[(turn + run as usize) % self.engines.len()];
                    let job = self.job(engine, group, run, &machine);
                    if let Err(error) = self.group(&job, &steps, &after) {
                        eprintln!("FAILED: {engine}, {}: {error}", group.name);
                        failed += 1;
                    }
                    drop(fs::remove_dir_all(&job.dir));
                    proc::sync_file_system(&self.dir);
                    std::thread::sleep(Duration::from_millis(500));
                }
            }
        }
        Ok(failed)
    }

    fn job(&self, engine: &str, group: &Group, run: u32, machine: &str) -> Job {
        Job {
            engine: engine.to_string(),
            dir: self.dir.join("store"),
            group: group.name.to_string(),
            rising: group.order == Order::Rising,
            steps: Vec::new(),
            settings: Settings { durable: group.durable, ..self.settings.clone() },
            run,
            machine: machine.to_string(),
        }
    }

    /// One engine's way through a group, on a fresh store.
    fn group(&self, job: &Job, steps: &[&str], after: &[&str]) -> Outcome {
        if job.dir.exists() {
            fs::remove_dir_all(&job.dir)?;
        }
        self.child(job, steps)?;
        for workload in after {
            match *workload {
                "open-after-kill" => {
                    self.killed(job)?;
                    self.child(job, &[workload])?;
                }
                _ => (0..OPENS).try_for_each(|_| self.child(job, &[workload]))?,
            }
        }
        Ok(())
    }

    fn start(job: &Job, steps: &[&str]) -> Outcome<Child> {
        let steps = steps.iter().map(ToString::to_string).collect();
        let job = serde_json::to_string(&Job { steps, ..job.clone() })?;
        let mut command = Command::new(std::env::current_exe()?);
        Ok(command.arg("child").arg(job).stdout(Stdio::piped()).spawn()?)
    }

    /// Runs a child to its end and keeps what it prints.
    fn child(&self, job: &Job, steps: &[&str]) -> Outcome {
        let mut child = Self::start(job, steps)?;
        let out = child.stdout.take().ok_or("no output")?;
        for line in BufReader::new(out).lines() {
            self.keep(&serde_json::from_str(&line?)?)?;
        }
        let status = child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the child ended with {status}").into()) }
    }

    /// Lets a child write and kills it with the last writes unsettled.
    fn killed(&self, job: &Job) -> Outcome {
        let mut child = Self::start(job, &["dirty"])?;
        let out = child.stdout.take().ok_or("no output")?;
        let ready = BufReader::new(out).lines().next().transpose();
        child.kill()?;
        child.wait()?;
        if ready?.is_some_and(|line| line == READY) {
            Ok(())
        } else {
            Err("the child that was to be killed ended by itself".into())
        }
    }

    fn keep(&self, record: &Record) -> Outcome {
        eprintln!(
            "run {} {:<9} {:<22} {:>13.0}/s  p50 {:>9} p99 {:>10} p99.9 {:>10} ns",
            record.run,
            record.engine,
            record.workload,
            record.rate,
            record.p50,
            record.p99,
            record.p999
        );
        let mut out = OpenOptions::new().create(true).append(true).open(&self.out)?;
        writeln!(out, "{}", serde_json::to_string(record)?)?;
        Ok(())
    }
}

/// Reads the records of several files.
pub fn read(files: &[PathBuf]) -> Outcome<Vec<Record>> {
    let mut records = Vec::new();
    for (nth, file) in files.iter().enumerate() {
        for record in read_one(file)? {
            // Runs of different files are different runs.
            records.push(Record { run: record.run + 1000 * nth as u32, ..record });
        }
    }
    Ok(records)
}

fn read_one(file: &Path) -> Outcome<Vec<Record>> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let lines = text.lines().filter(|line| !line.is_empty());
    Ok(lines.map(serde_json::from_str).collect::<Result<_, _>>()?)
}
