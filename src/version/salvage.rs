//! Reads the manifest of a damaged database, without changing anything.
//!
//! The header stands once, and everything hangs on it: one flipped bit in it is mended. Edits have second
//! copies, which reading falls back to by itself. Called by verifying and by repair.

use super::ManifestState;
use super::manifest::{HEADER_LEN, MANIFEST_NAME, read, read_all};
use crate::checksum::mend_one_bit;
use crate::error::{Error, Result};
use crate::vfs::{Env, OpenMode};
use std::path::Path;

/// What can be read of a manifest.
#[derive(Debug)]
pub(crate) struct Salvaged {
    /// What it says; or why it cannot be read.
    pub(crate) state: Result<ManifestState>,
    /// What was passed over on the way.
    pub(crate) notices: Vec<String>,
    /// The damage to its header that was mended: it keeps the database from being opened.
    pub(crate) mended: Option<Error>,
    /// What names the database, if the state cannot be read: to be trusted only where something
    /// confirms it.
    pub(crate) uuid: Option<[u8; 16]>,
}

/// Reads the manifest of `dir`.
///
/// # Errors
/// [`Error::UnsupportedFormat`]. Damage, and a file that is missing or cannot be read, are in the
/// result.
pub(crate) fn salvage_manifest(env: &Env, dir: &Path) -> Result<Salvaged> {
    let path = dir.join(MANIFEST_NAME);
    let lost = |error, uuid| Salvaged { state: Err(error), notices: vec![], mended: None, uuid };
    let bytes = env
        .vfs
        .open(&path, OpenMode::Read)
        .map_err(|error| Error::io("open", &path, error))
        .and_then(|file| read_all(&*file, &path));
    let bytes = match bytes {
        Ok(bytes) => bytes,
        Err(error) => return Ok(lost(error, None)),
    };
    let uuid = bytes.get(16..).and_then(|rest| rest.first_chunk()).copied();
    let error = match read(&bytes, &path) {
        Ok(read) => {
            let (state, notices) = (Ok(read.state), read.notices);
            return Ok(Salvaged { state, notices, mended: None, uuid });
        }
        Err(error @ Error::Corruption { .. }) => error,
        Err(error) => return Err(error),
    };
    // Only behind a header that verifies the rest is looked at, so that this costs one more read.
    let mended = mend_one_bit(&bytes, HEADER_LEN, |bytes| read(bytes, &path).ok());
    Ok(match mended {
        Some(read) => {
            let (state, notices) = (Ok(read.state), read.notices);
            Salvaged { state, notices, mended: Some(error), uuid }
        }
        None => lost(error, uuid),
    })
}
