//! The reliability campaign: everything that docs/reliability.md promises, tried until it breaks.
//!
//! ```text
//! cargo test --release --test campaign                      what CI runs, a few minutes
//! cargo test --release --test campaign -- release           what a release needs; goes on where it ended
//! cargo test --release --test campaign -- release --rows power,faults --shard 0/4
//! cargo test --release --test campaign -- replay power 17   one seed again, with what it found
//! cargo test --release --test campaign -- list
//! cargo test --release --test campaign -- soak --minutes 60   [--seed N] [--dir D]
//! ```
//!
//! The totals of a release are in `target/campaign-PART-of-SHARDS.tsv`, and begin again when the format,
//! the log or recovery changed, or with `--fresh`.

mod author;
mod blocks;
mod child;
mod copies;
mod driver;
mod faults;
mod flips;
mod full;
mod heap;
mod kill;
mod kill_flip;
mod logs;
mod power;
mod process;
mod reading;
mod same;
mod same_ops;
mod separated;
mod soak;
mod swaps;
mod tails;
mod watch;
mod workload;
mod writers;

use driver::{Outcome, Row, Shard, Size, Totals, describe, run_row, run_seed, summary};
use std::path::PathBuf;
use std::process::ExitCode;

/// The rows, cheapest first.
const ROWS: &[Row] = &[
    blocks::ROW,
    swaps::ROW,
    tails::ROW,
    flips::ROW,
    power::RECOVERY,
    power::ROW,
    faults::ROW,
    faults::FSYNC,
    same::ROW,
    Row {
        name: "kill",
        counts: "kills of a writing process",
        ci: 40,
        release: 1_000,
        run: kill::run,
    },
    Row {
        name: "kill-flip",
        counts: "bits flipped in a killed store",
        ci: 150,
        release: 2_500,
        run: kill_flip::run,
    },
    Row { name: "full", counts: "times the disk was full", ci: 40, release: 2_000, run: full::run },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("release") => campaign(Size::Release, &arguments[1..]),
        Some("ci") => campaign(Size::Ci, &arguments[1..]),
        Some("replay") => replay(&arguments[1..]),
        Some("soak") => soak::main(&arguments[1..]),
        // What the rows start as processes of their own.
        Some("child") => child_main(&arguments[1..]),
        Some("list") => {
            for row in ROWS {
                println!("{:<12} {:>12} {}", row.name, row.release, row.counts);
            }
            ExitCode::SUCCESS
        }
        // What the test runner is told when it runs all tests, or some by name.
        _ if arguments.iter().any(|a| a == "--list") => {
            println!("campaign: test");
            ExitCode::SUCCESS
        }
        _ if arguments.iter().any(|a| a == "--ignored") => ExitCode::SUCCESS,
        Some(filter) if !filter.starts_with('-') && !"campaign".contains(filter) => {
            ExitCode::SUCCESS
        }
        _ => campaign(Size::Ci, &[]),
    }
}

fn child_main(arguments: &[String]) -> ExitCode {
    match arguments.first().map(String::as_str) {
        Some("write") => child::main(&arguments[1..]),
        Some("full") => full::child_main(&arguments[1..]),
        _ => return ExitCode::from(2),
    }
    ExitCode::SUCCESS
}

/// The value behind an option.
pub fn option<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    let at = arguments.iter().position(|argument| argument == name)?;
    arguments.get(at + 1).map(String::as_str)
}

fn campaign(size: Size, arguments: &[String]) -> ExitCode {
    let wanted = option(arguments, "--rows");
    let is_wanted = |row: &&Row| wanted.is_none_or(|names| names.split(',').any(|n| n == row.name));
    let shard = option(arguments, "--shard").map_or(Some(Shard { part: 0, of: 1 }), |text| {
        let (part, of) = text.split_once('/')?;
        let shard = Shard { part: part.parse().ok()?, of: of.parse().ok()? };
        (shard.part < shard.of).then_some(shard)
    });
    let Some(shard) = shard else {
        eprintln!("--shard wants PART/OF, such as 0/4");
        return ExitCode::from(2);
    };
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target");
    path.push(format!("campaign-{}-of-{}.tsv", shard.part, shard.of));
    let totals = Totals::load(&path, shard);
    let goes_on = size == Size::Release && !arguments.iter().any(|a| a == "--fresh");
    let mut outcomes = Vec::new();
    for row in ROWS.iter().filter(is_wanted) {
        let before = if goes_on { totals.of(row) } else { Outcome::default() };
        let save = |outcome: &Outcome| {
            if size == Size::Release {
                totals.save(row, outcome);
            }
        };
        let counts = separated::Counts::now();
        let mut outcome = run_row(row, size, shard, before, &save);
        match separated::Counts::of_row(row.name, counts) {
            Some(Err(what)) if size == Size::Ci => outcome.violations.push((0, what)),
            Some(Ok(text)) => eprintln!("{text}"),
            _ => {}
        }
        eprintln!("{:<12} {} {}", row.name, outcome.total, row.counts);
        outcomes.push((row, outcome));
    }
    println!("\n{}", summary(&outcomes, size));
    for line in [kill::summary(), kill_flip::summary(), full::summary()].iter().flatten() {
        println!("{line}");
    }
    let mut violations = 0;
    for (row, outcome) in &outcomes {
        for (seed, what) in &outcome.violations {
            violations += 1;
            println!("{}", describe(row, *seed, what));
        }
    }
    if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay(arguments: &[String]) -> ExitCode {
    let row = arguments.first().and_then(|name| ROWS.iter().find(|row| row.name == name));
    let seed = arguments.get(1).and_then(|seed| seed.parse().ok());
    let (Some(row), Some(seed)) = (row, seed) else {
        eprintln!("usage: replay ROW SEED; `list` shows the rows");
        return ExitCode::from(2);
    };
    match run_seed(row, seed, Size::Release) {
        Ok(tried) => {
            println!("{}, seed {seed}: {tried} {}, all well", row.name, row.counts);
            ExitCode::SUCCESS
        }
        Err(violation) => {
            println!("{}", describe(row, seed, &violation.0));
            ExitCode::FAILURE
        }
    }
}
