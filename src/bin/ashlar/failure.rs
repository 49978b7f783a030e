//! How a command fails: with which exit code, and what it says.

use ashlardb::Error;
use std::fmt;
use std::io;
use std::path::Path;

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// Whoever reads our output has seen enough. Not an error, and nothing to say.
    OutputClosed,
    /// The arguments make no sense together.
    Usage(String),
    /// Something about the data, the input or the system.
    Data(String),
    /// The key is not there.
    NotFound(String),
    /// `verify` or `backups` found damage, or `repair` could not save everything; it has said where.
    Damaged(String),
    /// From the library.
    Database(Error),
}

impl Failure {
    /// The exit code, as promised in `--help`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::OutputClosed => 0,
            Failure::Data(_) => 1,
            Failure::Usage(_) => 2,
            Failure::NotFound(_) => 3,
            Failure::Damaged(_) => 4,
            Failure::Database(Error::Locked { .. }) => 5,
            Failure::Database(_) => 1,
        }
    }

    /// Says it on standard error.
    pub fn report(&self, json: bool) {
        if matches!(self, Failure::OutputClosed) {
            return;
        }
        if json {
            let report = serde_json::json!({ "error": self.to_string(), "code": self.exit_code() });
            eprintln!("{report}");
        } else {
            eprintln!("ashlar: {self}");
        }
    }

    /// A failed write to standard output.
    pub fn output(error: io::Error) -> Failure {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Failure::OutputClosed
        } else {
            Failure::Data(format!("cannot write to standard output: {error}"))
        }
    }

    /// A failed operation on a file that is not the database's.
    pub fn file(operation: &str, path: &Path, error: &io::Error) -> Failure {
        Failure::Data(format!("cannot {operation} {}: {error}", path.display()))
    }
}

/// Whether a file is a backup's, by its name: its manifest, or a segment with a checksum behind the number.
fn is_of_backup(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let number = |digits: &str| digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
    let is_copy = |name: &str| name.split_once('-').is_some_and(|(digits, _)| number(digits));
    name.strip_suffix(".backup").is_some_and(number)
        || name.strip_suffix(".seg").is_some_and(is_copy)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Database(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::OutputClosed => Ok(()),
            Failure::Usage(what)
            | Failure::Data(what)
            | Failure::NotFound(what)
            | Failure::Damaged(what) => f.write_str(what),
            Failure::Database(error) => {
                error.fmt(f)?;
                match error {
                    Error::Corruption { file, .. } if is_of_backup(file) => {
                        f.write_str("; `ashlar backups --verify` tells which backups are whole")
                    }
                    Error::Corruption { .. } => {
                        f.write_str(
                            "; `ashlar verify` tells how much is affected, and `ashlar repair` saves the \
                             rest",
                        )
                    }
                    Error::KeyspaceNotFound { .. } => {
                        f.write_str("; `ashlar keyspace list` names those there are")
                    }
                    Error::MergeOperator { .. } => {
                        f.write_str("; this command has only the operators of the library")
                    }
                    Error::NotADatabase { .. } => {
                        f.write_str("; check the path, or create one with `ashlar import` or `set`")
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}
