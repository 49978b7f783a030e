//! What can be typed.

use crate::rows::Format;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

const EXIT_CODES: &str = "\
Exit codes: 0 fine, 1 an error in the data, the input or the system, 2 wrong usage, 3 no such key, \
4 verify or backups found damage, or repair could not save everything, 5 the database is open elsewhere.";

const FORMATS: &str = "\
Formats:
  tsv    key, tab, value. In either, \\t \\n \\r \\\\ stand for tab, line feed, carriage return and
         backslash, \\xNN for the byte with that hexadecimal number; export writes control
         characters and bytes that are not UTF-8 that way. Carries any bytes
  csv    key and value as columns, quoted where needed. Carries text only; other columns, see
         import --help
  jsonl  an object a line: {\"key\": \"…\", \"value\": \"…\"}, or \"key_hex\" and \"value_hex\" with the bytes
         in hexadecimal. Carries any bytes. On import a \"value\" that is not a string is stored as
         its JSON text without spaces
  cbor   a sequence of arrays (RFC 8949, RFC 8742) of key and value as byte strings. Carries any bytes

When a row expires, in milliseconds since the Unix epoch, is a last column \\@1700000000000 in TSV, a member
\"expires_ms\" in JSON, and a third element in CBOR. CSV does not carry it.

Without --format the file's name tells: .tsv .tab, .csv, .jsonl .ndjson, .cbor .cborseq.";

/// Look into, fill, empty and check AshlarDB databases.
#[derive(Debug, Parser)]
#[command(name = "ashlar", version, after_help = EXIT_CODES)]
pub struct Args {
    /// Write results as JSON: one document, or one a line for rows. Errors too, on standard error.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Import(Import),
    Export(Export),
    Get(Get),
    Set(Set),
    Rm(Rm),
    Scan(Scan),
    Changes(Changes),
    Stats(Stats),
    Compact(Compact),
    Verify(Verify),
    Repair(Repair),
    Checkpoint(Checkpoint),
    Backup(Backup),
    Backups(BackupList),
    Restore(Restore),
    Segment(Segment),
    /// List, create or drop keyspaces.
    #[command(subcommand)]
    Keyspace(KeyspaceCommand),
}

#[derive(Debug, Subcommand)]
pub enum KeyspaceCommand {
    /// List the keyspaces.
    List(Database),
    /// Create a keyspace. It is no error if it exists.
    Create(Named),
    /// Drop a keyspace with everything in it.
    Drop(Named),
}

/// Show what a database holds and how it is doing.
#[derive(Debug, clap::Args)]
pub struct Stats {
    /// The database directory.
    pub db: PathBuf,
    /// Also draw its levels, runs and segments into this SVG file, which is overwritten.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct Database {
    /// The database directory.
    pub db: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct Named {
    /// The database directory.
    pub db: PathBuf,
    /// The keyspace's name.
    pub name: String,
}

/// Which part of the keys.
#[derive(Debug, clap::Args)]
pub struct Bounds {
    /// Start at this key.
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    pub from: Option<OsString>,
    /// Stop before this key.
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    pub to: Option<OsString>,
    /// Only keys that start with this.
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    pub prefix: Option<OsString>,
}

/// Put rows from a file into a database, which is created if it is missing.
///
/// Rows are committed in batches, so a reader sees either all of a batch or none of it. Into an empty
/// keyspace, many rows that are sorted by key are loaded as a whole instead, unless with --sync: that is faster,
/// and a reader sees all or none of them. At the end everything is made durable. Importing a file again does no harm: rows with the same key replace
/// each other, and the last one stays.
#[derive(Debug, clap::Args)]
#[command(after_help = FORMATS)]
pub struct Import {
    /// The database directory.
    pub db: PathBuf,
    /// The file; `-` is standard input.
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// How rows are written in the file.
    #[arg(long)]
    pub format: Option<Format>,
    /// Put the rows into this keyspace, which is created if it is missing.
    #[arg(long, value_name = "NAME")]
    pub keyspace: Option<String>,
    /// The column that holds the key; the first is 1 [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub key_column: Option<u32>,
    /// The column that holds the value. Without it: all columns but the key's. If these are several, they
    /// are joined by the delimiter (in CSV quoted again where they need it).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub value_column: Option<u32>,
    /// What separates the columns of CSV: one ASCII character, or `\t` [default: ,]
    #[arg(long, value_name = "C")]
    pub delimiter: Option<String>,
    /// The first row names the columns: leave it out.
    #[arg(long)]
    pub header: bool,
    /// Leave out rows that make no sense, and say how many they were. Otherwise the first one
    /// ends the import.
    #[arg(long)]
    pub skip_bad: bool,
    /// How many rows to commit at a time.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: u32,
    /// Make each batch durable before the next, not only all of them at the end.
    #[arg(long)]
    pub sync: bool,
}

/// Write the rows of a database to a file, in the order of their keys.
///
/// What is written is one consistent view, and `ashlar import` reads it back, with when each row expires,
/// unless --drop-expiry. CSV cannot carry that, so a row that expires ends an export to CSV.
#[derive(Debug, clap::Args)]
#[command(after_help = FORMATS)]
pub struct Export {
    /// The database directory.
    pub db: PathBuf,
    /// The file, which is overwritten; `-` is standard output.
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// How to write the rows.
    #[arg(long)]
    pub format: Option<Format>,
    /// The keyspace to write.
    #[arg(long, value_name = "NAME")]
    pub keyspace: Option<String>,
    /// What separates the columns of CSV: one ASCII character, or `\t` [default: ,]
    #[arg(long, value_name = "C")]
    pub delimiter: Option<String>,
    #[command(flatten)]
    pub bounds: Bounds,
    /// Leave out when rows expire: imported again, they never do.
    #[arg(long)]
    pub drop_expiry: bool,
    /// The keys on the command line are in hexadecimal.
    #[arg(long)]
    pub hex: bool,
}

/// Print the value of a key.
///
/// Followed by a line feed, unless --raw. If the key is absent, nothing is printed and the exit
/// code is 3.
#[derive(Debug, clap::Args)]
pub struct Get {
    /// The database directory.
    pub db: PathBuf,
    /// The key.
    pub key: OsString,
    /// The keyspace to look in.
    #[arg(long, value_name = "NAME")]
    pub keyspace: Option<String>,
    /// The key is in hexadecimal; print the value in hexadecimal.
    #[arg(long)]
    pub hex: bool,
    /// Print the bytes of the value and nothing else.
    #[arg(long, conflicts_with_all = ["hex", "json"])]
    pub raw: bool,
}

/// Give a key a value. The database is created if it is missing.
#[derive(Debug, clap::Args)]
pub struct Set {
    /// The database directory.
    pub db: PathBuf,
    /// The key.
    pub key: OsString,
    /// The value; without it, standard input to its end is the value.
    #[arg(allow_hyphen_values = true)]
    pub value: Option<OsString>,
    /// The keyspace to write to, which is created if it is missing.
    #[arg(long, value_name = "NAME")]
    pub keyspace: Option<String>,
    /// Key and value on the command line are in hexadecimal.
    #[arg(long)]
    pub hex: bool,
    /// Return only once the write would survive a power cut.
    #[arg(long)]
    pub sync: bool,
}

/// Remove a key. It is no error if it is absent.
#[derive(Debug, clap::Args)]
pub struct Rm {
    /// The database directory.
    pub db: PathBuf,
    /// The key.
    pub key: OsString,
    /// The keyspace to remove it from.
    #[arg(long, value_name = "NAME")]
    pub keyspace: Option<String>,
    /// The key is in hexadecimal.
    #[arg(long)]
    pub hex: bool,
    /// Return only once the removal would survive a power cut.
    #[arg(long)]
    pub sync: bool,
}

/// Print rows in the order of their keys: key, tab, value, written as in `export --format tsv`.
#[derive(Debug, clap::Args)]
pub struct Scan {
    /// The database directory.
    pub db: PathBuf,
    /// The keyspace to read.
    #[arg(long, value_name = "NAME")]
    pub keyspace: Option<String>,
    #[command(flatten)]
    pub bounds: Bounds,
    /// From the last key to the first.
    #[arg(long)]
    pub reverse: bool,
    /// At most this many rows.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Without the values, which are then not read either.
    #[arg(long)]
    pub keys_only: bool,
    /// Keys on the command line are in hexadecimal; print keys and values in hexadecimal.
    #[arg(long)]
    pub hex: bool,
}

/// Print the changes that were committed after a sequence number, in the order in which they were, also while
/// another process writes.
///
/// A line each: the sequence number, what was done (put, merge, delete, delete-range, clear, loaded for what
/// came in past the log, or keyspaces for which there are from there on), the keyspace, and key and value, or the
/// bounds of the range, or the first and last key of what was loaded, written as in `export --format tsv`; then, of
/// what expires, when, in milliseconds since 1970. A line that says only unknown: perhaps a keyspace was cleared
/// or loaded into there, perhaps nothing happened. Lines of one batch have its last number. They come from the
/// logs, so only for databases that are opened with `keep_log_bytes`. To go on later, give the number of the
/// last line to --since.
#[derive(Debug, clap::Args)]
pub struct Changes {
    /// The database directory.
    pub db: PathBuf,
    /// Only what came after this sequence number.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub since: u64,
    /// Print keys and values in hexadecimal.
    #[arg(long)]
    pub hex: bool,
}

/// Merge segments and drop what was overwritten or removed, until nothing is left to gain.
#[derive(Debug, clap::Args)]
pub struct Compact {
    /// The database directory.
    pub db: PathBuf,
    /// Only this keyspace.
    #[arg(long, value_name = "NAME")]
    pub keyspace: Option<String>,
}

/// Read every byte and check it. Damage gives exit code 4 and a line for each damaged place.
///
/// Nothing is changed, and a database that cannot be opened can be verified too.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// A database directory, or a single segment file.
    pub path: PathBuf,
}

/// Save everything that can be read of a damaged database into a new one.
///
/// The damaged one is not changed. Where newer data is lost, older values are kept, and removed keys may
/// be back: the report says which keys this may concern. Exit code 0 if everything was saved as it
/// was, 4 if something was lost or cannot be known.
#[derive(Debug, clap::Args)]
pub struct Repair {
    /// The damaged database directory.
    pub db: PathBuf,
    /// The directory of the new database, which must be empty or not exist. It cannot be opened before
    /// the repair is complete; after a failure, remove it.
    pub new: PathBuf,
}

/// Copy a database into another directory, by hard links where that is possible.
#[derive(Debug, clap::Args)]
pub struct Checkpoint {
    /// The database directory.
    pub db: PathBuf,
    /// The directory of the copy, which must be empty or not exist. It cannot be opened before the copy
    /// is complete; after a failure, remove it.
    pub new: PathBuf,
}

/// Add a backup of a database to a directory of backups.
///
/// Segments that an earlier backup in the directory has are not copied again; those that are, are
/// looked through for damage.
#[derive(Debug, clap::Args)]
pub struct Backup {
    /// The database directory.
    pub db: PathBuf,
    /// The directory of backups, which is made if it is missing.
    pub dir: PathBuf,
    /// Afterwards, remove all but this many of the newest backups.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: Option<u32>,
}

/// List the backups of a directory. Damage gives exit code 4.
#[derive(Debug, clap::Args)]
pub struct BackupList {
    /// The directory of backups.
    pub dir: PathBuf,
    /// Read every byte of each and check it.
    #[arg(long)]
    pub verify: bool,
}

/// Make a new database out of a backup. Every byte is checked on the way.
#[derive(Debug, clap::Args)]
pub struct Restore {
    /// The directory of backups.
    pub dir: PathBuf,
    /// The directory of the new database, which must be empty or not exist. It cannot be opened before
    /// everything is there; after a failure, remove it.
    pub new: PathBuf,
    /// The number of the backup; without it, the newest.
    #[arg(long, value_name = "N")]
    pub number: Option<u64>,
}

/// Show how a segment file is built: properties, padding, sections, blocks.
#[derive(Debug, clap::Args)]
pub struct Segment {
    /// The segment file.
    pub file: PathBuf,
    /// List the data blocks with their sizes, entries and padding.
    #[arg(long)]
    pub blocks: bool,
    /// List which keys each data block holds, and its separator in the block index.
    #[arg(long)]
    pub index: bool,
}
