//! Ashlardb beside other embedded engines, in one run on one machine. See README.md.

mod child;
mod data;
mod drive;
mod engines;
mod hist;
mod machine;
mod plan;
mod plot;
mod proc;
mod record;
mod run;
mod settings;
mod summary;
mod table;
mod targets;
mod work;
mod zipf;

use clap::{Args, Parser, Subcommand};
use engines::Outcome;
use settings::Settings;
use std::path::PathBuf;

#[derive(Parser)]
#[command(about = "Embedded key-value engines side by side")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures, and appends a line of JSON for each measurement.
    Run(Box<RunArgs>),
    /// Prints Markdown tables of measurements.
    Table { files: Vec<PathBuf> },
    /// Draws bar charts of measurements, as SVG.
    Plot {
        files: Vec<PathBuf>,
        #[arg(long, default_value = ".")]
        out: PathBuf,
    },
    /// Measures one engine's workloads; started by `run`.
    #[command(hide = true)]
    Child { job: String },
}

#[derive(Args)]
struct RunArgs {
    /// What is not given otherwise: primary, values1k, lz4, large, cached or quick.
    #[arg(long, default_value = "primary")]
    preset: String,
    #[arg(long)]
    records: Option<u64>,
    /// Bytes of a value.
    #[arg(long)]
    value: Option<usize>,
    #[arg(long)]
    cache_mib: Option<usize>,
    #[arg(long)]
    write_buffer_mib: Option<usize>,
    /// none or lz4, for the engines that have the choice.
    #[arg(long)]
    compression: Option<String>,
    /// Comma-separated; all without it.
    #[arg(long, value_delimiter = ',')]
    engines: Vec<String>,
    /// Comma-separated; all without it. What fills their store is run too.
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// How long a time-bounded workload is measured.
    #[arg(long)]
    seconds: Option<f64>,
    #[arg(long)]
    warmup: Option<f64>,
    /// How long nothing must happen for a store to count as settled.
    #[arg(long)]
    quiet: Option<f64>,
    /// Leave out the limits of the machine.
    #[arg(long)]
    no_limits: bool,
    /// Where the stores are made, on the disk to be measured. Its subdirectory `store` is deleted.
    #[arg(long, default_value = "target/compare")]
    dir: PathBuf,
    #[arg(long, default_value = "compare.jsonl")]
    out: PathBuf,
}

fn or_all(given: Vec<String>, all: &[&str], what: &str) -> Outcome<Vec<String>> {
    if let Some(odd) = given.iter().find(|name| !all.contains(&name.as_str())) {
        return Err(format!("no {what} is called {odd}; there are {}", all.join(", ")).into());
    }
    let all = || all.iter().map(ToString::to_string).collect();
    Ok(if given.is_empty() { all() } else { given })
}

fn start(args: Box<RunArgs>) -> Outcome {
    let presets = Settings::PRESETS.join(", ");
    let preset = Settings::preset(&args.preset)
        .ok_or_else(|| format!("no preset is called {}; there are {presets}", args.preset))?;
    let seconds = args.seconds.unwrap_or(preset.seconds);
    let settings = Settings {
        records: args.records.unwrap_or(preset.records),
        value: args.value.unwrap_or(preset.value),
        cache_mib: args.cache_mib.unwrap_or(preset.cache_mib),
        write_buffer_mib: args.write_buffer_mib.unwrap_or(preset.write_buffer_mib),
        compression: args.compression.unwrap_or(preset.compression.clone()),
        seconds,
        warmup: args.warmup.unwrap_or(preset.warmup.min(seconds)),
        quiet: args.quiet.unwrap_or(preset.quiet),
        ..preset
    };
    if settings.value < data::MIN_VALUE || settings.records < 100 {
        return Err(format!("values of {} bytes and 100 records at least", data::MIN_VALUE).into());
    }
    if !["none", "lz4"].contains(&settings.compression.as_str()) {
        return Err("compression is none or lz4".into());
    }
    let run = run::Run {
        settings,
        engines: or_all(args.engines, engines::NAMES, "engine")?,
        workloads: or_all(args.workloads, &plan::workloads(), "workload")?,
        runs: args.runs,
        dir: args.dir,
        out: args.out,
        limits: !args.no_limits,
    };
    match run.all()? {
        0 => Ok(()),
        failed => Err(format!("{failed} groups of workloads failed").into()),
    }
}

fn main() -> std::process::ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => start(args),
        Command::Table { files } => {
            run::read(&files).map(|records| print!("{}", table::markdown(&records)))
        }
        Command::Plot { files, out } => {
            run::read(&files).and_then(|records| plot::write(&records, &out))
        }
        Command::Child { job } => child::main(&job),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
