//! The `ashlar` command: import, export, look, verify, repair, copy. Thin: everything it does goes through the
//! library's public interface.
//!
//! Each subcommand is a function that takes its arguments and gives `Ok` or a [`failure::Failure`],
//! which knows the exit code. Results go to standard output, everything else to standard error.
//! One thread; the library has its own.

mod args;
mod bytes;
mod changes;
mod copies;
mod export;
mod failure;
mod import;
mod inspect;
mod open;
mod output;
mod plot;
mod point;
mod progress;
mod repair;
mod rows;
mod scan;
mod segment;
mod verify;

use args::{Args, Command, KeyspaceCommand};
use clap::Parser;
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(args.json);
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    let json = args.json;
    match &args.command {
        Command::Import(a) => import::run(a, json),
        Command::Export(a) => export::run(a, json),
        Command::Get(a) => point::get(a, json),
        Command::Set(a) => point::set(a, json),
        Command::Rm(a) => point::rm(a, json),
        Command::Scan(a) => scan::run(a, json),
        Command::Changes(a) => changes::run(a, json),
        Command::Stats(a) => inspect::stats(a, json),
        Command::Compact(a) => inspect::compact(a, json),
        Command::Verify(a) => verify::run(a, json),
        Command::Repair(a) => repair::run(a, json),
        Command::Checkpoint(a) => copies::checkpoint(a, json),
        Command::Backup(a) => copies::backup(a, json),
        Command::Backups(a) => copies::list(a, json),
        Command::Restore(a) => copies::restore(a, json),
        Command::Segment(a) => segment::run(a, json),
        Command::Keyspace(KeyspaceCommand::List(a)) => inspect::list_keyspaces(a, json),
        Command::Keyspace(KeyspaceCommand::Create(a)) => inspect::create_keyspace(a, json),
        Command::Keyspace(KeyspaceCommand::Drop(a)) => inspect::drop_keyspace(a, json),
    }
}
