//! The manifest file: reads it, appends edits, replaces it when it has grown (FORMAT.md, section 5).
//!
//! ```text
//! 0        64
//! | header | edit n | edit n | edit n+1 | edit n+1 | …
//!            the whole state, twice  a change, twice
//! ```
//!
//! One damaged copy of an edit loses nothing. Both copies of the last edit damaged look like an
//! edit that was being written, and are dropped; both copies of an earlier one are reported.
//!
//! A manifest with anything but whole pairs of copies is replaced as soon as it is opened, so that
//! nothing is ever appended behind garbage and every edit keeps its two copies.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::edit::Edit;
use super::state::ManifestState;
use crate::checksum::checksum;
use crate::coding::{put_u64, u32_at, u64_at};
use crate::error::{Error, Malformed, Result};
use crate::sync::Arc;
use crate::vfs::{Env, OpenMode, VfsFile};
use std::io;
use std::path::{Path, PathBuf};

pub(crate) const MANIFEST_NAME: &str = "MANIFEST";
pub(crate) const MANIFEST_NEW_NAME: &str = "MANIFEST.new";

const MAGIC: &[u8; 8] = b"ASHLRMAN";
const VERSION: u32 = 1;
pub(super) const HEADER_LEN: usize = 64;
const RECORD_HEADER_LEN: usize = 24;

/// A manifest shorter than this is not worth replacing, in bytes.
const ROLL_MIN: u64 = 1 << 20;

/// A manifest is replaced when it is this many times as long as its replacement would be.
const ROLL_RATIO: u64 = 4;

/// How many times its own length of a manifest may be hashed in search of the next sound record.
const HASHED_MAX: u64 = 64;

/// The open manifest of a database.
#[derive(Debug)]
pub(crate) struct Manifest {
    env: Env,
    dir: PathBuf,
    path: PathBuf,
    file: Arc<dyn VfsFile>,
    salt: u64,
    end: u64,
    /// The length at which to see whether the file should be replaced.
    roll_at: u64,
    poison: Option<String>,
}

impl Manifest {
    /// Whether the directory has a manifest, that is, holds a database.
    pub(crate) fn exists(env: &Env, dir: &Path) -> Result<bool> {
        let path = dir.join(MANIFEST_NAME);
        env.vfs.exists(&path).map_err(|error| Error::io("look for", &path, error))
    }

    /// Creates the manifest of a new database, whose state `initial` gives. It is durable when this
    /// returns. After an error there is no manifest, unless one of the last steps failed, the rename
    /// and the sync of the directory.
    pub(crate) fn create(
        env: &Env,
        dir: &Path,
        uuid: [u8; 16],
        hash_seed: u64,
        initial: &Edit,
    ) -> Result<(Manifest, ManifestState)> {
        let path = dir.join(MANIFEST_NAME);
        if Manifest::exists(env, dir)? {
            return Err(Error::io("create", &path, io::ErrorKind::AlreadyExists.into()));
        }
        let state = ManifestState::empty(uuid, hash_seed)
            .with(initial)
            .map_err(|wrong| refusal(wrong, &path, 0))?;
        let manifest = Manifest::replace(env, dir, &state)?;
        Ok((manifest, state))
    }

    /// Reads the manifest and changes nothing: not before all else that a database needs was found
    /// sound is it opened, by [`Unsettled::settle`]. The strings say what was found damaged or torn
    /// and will be healed then.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] also if there is none; [`Error::Corruption`], [`Error::UnsupportedFormat`].
    pub(crate) fn load(env: &Env, dir: &Path) -> Result<(Unsettled, ManifestState, Vec<String>)> {
        Manifest::load_in(env, dir, OpenMode::ReadWrite)
    }

    /// The same without opening the file for writing, for [`Unsettled::for_reading`]. A writer may be
    /// at work meanwhile: what is read is as of some moment.
    pub(crate) fn load_to_read(
        env: &Env,
        dir: &Path,
    ) -> Result<(Unsettled, ManifestState, Vec<String>)> {
        Manifest::load_in(env, dir, OpenMode::Read)
    }

    fn load_in(
        env: &Env,
        dir: &Path,
        mode: OpenMode,
    ) -> Result<(Unsettled, ManifestState, Vec<String>)> {
        let path = dir.join(MANIFEST_NAME);
        let file = env.vfs.open(&path, mode).map_err(|error| Error::io("open", &path, error))?;
        let bytes = read_all(&*file, &path)?;
        let loaded = read(&bytes, &path)?;
        let manifest = Manifest {
            env: env.clone(),
            dir: dir.to_path_buf(),
            path,
            file,
            salt: loaded.salt,
            end: loaded.end,
            roll_at: ROLL_MIN,
            poison: None,
        };
        let last = (loaded.last as u64, bytes.get(loaded.last..).unwrap_or_default().to_vec());
        let (whole, last_seen) = (loaded.whole, loaded.last_seen);
        let unsettled = Unsettled { manifest, whole, last, last_seen };
        Ok((unsettled, loaded.state, loaded.notices))
    }

    /// Loads and settles; for tests.
    #[cfg(test)]
    pub(crate) fn open(env: &Env, dir: &Path) -> Result<(Manifest, ManifestState, Vec<String>)> {
        let (unsettled, state, notices) = Manifest::load(env, dir)?;
        Ok((unsettled.settle(&state)?, state, notices))
    }

    /// Reads the state without changing anything; for tests. The strings are as for `open`.
    #[cfg(test)]
    pub(crate) fn inspect(env: &Env, dir: &Path) -> Result<(ManifestState, Vec<String>)> {
        let path = dir.join(MANIFEST_NAME);
        let file =
            env.vfs.open(&path, OpenMode::Read).map_err(|error| Error::io("open", &path, error))?;
        let loaded = read(&read_all(&*file, &path)?, &path)?;
        Ok((loaded.state, loaded.notices))
    }

    /// Makes an edit durable and then applies it to `state`, which must be the manifest's.
    ///
    /// An edit that does not fit the state is refused before anything is written. What was written of
    /// one when the write failed is cut off again, durably: there is no trace of it then. If that
    /// fails too, or the sync of the edit does, the edit may or may not be there when the manifest
    /// is opened next: what it adds or removes must be left alone until then, and every later commit
    /// fails with [`Error::Poisoned`]. [`Manifest::is_poisoned`] tells which.
    ///
    /// One write and one fsync, seldom a new file.
    pub(crate) fn commit(&mut self, state: &mut ManifestState, edit: &Edit) -> Result<()> {
        if let Some(reason) = &self.poison {
            return Err(Error::Poisoned { reason: reason.clone() });
        }
        let next = state.with(edit).map_err(|wrong| refusal(wrong, &self.path, self.end))?;
        let mut bytes = Vec::new();
        encode_pair(&mut bytes, self.end, self.salt, next.edit_number, edit);
        if let Err(error) = self.file.write_all_at(&bytes, self.end) {
            let error = Error::io("append to", &self.path, error);
            let cut = self.file.set_len(self.end).and_then(|()| self.file.sync_data());
            if let Err(again) = cut {
                self.poison = Some(format!("{error}; cannot cut it off again: {again}"));
            }
            return Err(error);
        }
        if let Err(error) = self.file.sync_data() {
            let error = Error::io("sync", &self.path, error);
            self.poison = Some(error.to_string());
            return Err(error);
        }
        self.end += bytes.len() as u64;
        *state = next;
        if self.end >= self.roll_at {
            self.roll_over(state);
        }
        Ok(())
    }

    /// Whether it is unknown what the file holds, so that nothing can be committed any more.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poison.is_some()
    }

    /// Replaces the file if that makes it much shorter. The state is durable either way, so that a
    /// failure is no failure of the commit; one that leaves open which file is in place poisons.
    fn roll_over(&mut self, state: &ManifestState) {
        let bytes = encode_file(state, 0);
        self.roll_at = ROLL_MIN.max(ROLL_RATIO * bytes.len() as u64);
        if self.end < self.roll_at {
            return;
        }
        let new = match write_new(&self.env, &self.dir, state) {
            Ok(new) => new,
            Err(error) => {
                tracing::warn!(%error, "the manifest could not be shortened; it goes on growing");
                self.roll_at = self.end.saturating_mul(2);
                return;
            }
        };
        match install(&self.env, &self.dir) {
            Ok(()) => (self.file, self.salt, self.end) = (new.file, new.salt, new.end),
            Err(error) => {
                tracing::warn!(%error, "the manifest could not be replaced; writes are refused");
                self.poison = Some(error.to_string());
            }
        }
    }

    /// Writes a manifest with this state in the place of the one there, if any.
    fn replace(env: &Env, dir: &Path, state: &ManifestState) -> Result<Manifest> {
        let new = write_new(env, dir, state)?;
        install(env, dir)?;
        Ok(Manifest {
            env: env.clone(),
            dir: dir.to_path_buf(),
            path: dir.join(MANIFEST_NAME),
            file: new.file,
            salt: new.salt,
            end: new.end,
            roll_at: ROLL_MIN,
            poison: None,
        })
    }
}

/// A manifest that was read, and must be made durable and whole before it is used.
#[derive(Debug)]
pub(crate) struct Unsettled {
    manifest: Manifest,
    whole: bool,
    /// The last edit, both copies, and where it is.
    last: (u64, Vec<u8>),
    last_seen: u64,
}

impl Unsettled {
    /// Lets [`Unsettled::settle`] write the whole state anew, even if nothing is damaged: because it
    /// is not what was loaded.
    pub(crate) fn rewrite(&mut self) {
        self.whole = false;
    }

    /// The number of the last edit that created, dropped or cleared a keyspace, as far as the file
    /// tells: if it does not, that of its first edit, which is the whole state.
    pub(crate) fn last_seen(&self) -> u64 {
        self.last_seen
    }

    /// Takes the manifest as it is. Nothing can be committed to it.
    pub(crate) fn for_reading(self) -> Manifest {
        let poison = Some("it is open for reading only".to_owned());
        Manifest { poison, ..self.manifest }
    }

    /// Makes what was read durable, heals what was damaged, and removes what is left of a manifest
    /// that was being written. `state` is what was loaded, unless [`Unsettled::rewrite`] was called.
    pub(crate) fn settle(self, state: &ManifestState) -> Result<Manifest> {
        let manifest = self.manifest;
        let (env, dir) = (&manifest.env, &manifest.dir);
        remove_new(env, dir)?;
        if !self.whole {
            return Manifest::replace(env, dir, state);
        }
        // The process may have died between writing the last edit and syncing it. What opening does
        // because of that edit, removing files above all, must not outlive it. If the sync failed,
        // the bytes may be in the system's memory only, and a second sync would not care: so they
        // are written again.
        let (at, last) = &self.last;
        let written = manifest.file.write_all_at(last, *at);
        written.map_err(|error| Error::io("write to", &manifest.path, error))?;
        manifest.file.sync_data().map_err(|error| Error::io("sync", &manifest.path, error))?;
        env.vfs.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?;
        Ok(manifest)
    }
}

/// The error for an edit that does not fit the state: writing it would damage the manifest.
fn refusal(wrong: Malformed, path: &Path, offset: u64) -> Error {
    let (Malformed::Damaged(what) | Malformed::Unsupported(what)) = wrong;
    Error::corruption(path, offset, format!("an edit was refused, and not written: {what}"))
}

/// A manifest that is written and synced, but not in its place yet.
struct New {
    file: Arc<dyn VfsFile>,
    salt: u64,
    end: u64,
}

fn write_new(env: &Env, dir: &Path, state: &ManifestState) -> Result<New> {
    remove_new(env, dir)?;
    let path = dir.join(MANIFEST_NEW_NAME);
    let salt = env.entropy.next_u64();
    let bytes = encode_file(state, salt);
    let file = env
        .vfs
        .open(&path, OpenMode::CreateNew)
        .map_err(|error| Error::io("create", &path, error))?;
    if let Err(error) = file.write_all_at(&bytes, 0).and_then(|()| file.sync_data()) {
        if let Err(again) = env.vfs.remove_file(&path) {
            tracing::warn!(%again, "{} is left over; the next open removes it", path.display());
        }
        return Err(Error::io("write", &path, error));
    }
    Ok(New { file, salt, end: bytes.len() as u64 })
}

/// Puts the new manifest in its place, durably.
fn install(env: &Env, dir: &Path) -> Result<()> {
    let (from, to) = (dir.join(MANIFEST_NEW_NAME), dir.join(MANIFEST_NAME));
    env.vfs.rename(&from, &to).map_err(|error| Error::io("replace", &to, error))?;
    env.vfs.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))
}

fn remove_new(env: &Env, dir: &Path) -> Result<()> {
    let path = dir.join(MANIFEST_NEW_NAME);
    match env.vfs.remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", &path, error))
        }
        _ => Ok(()),
    }
}

pub(super) fn read_all(file: &dyn VfsFile, path: &Path) -> Result<Vec<u8>> {
    let read = || {
        let len = usize::try_from(file.len()?).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    read().map_err(|error: io::Error| Error::io("read", path, error))
}

/// The bytes of a manifest that holds nothing but this state.
fn encode_file(state: &ManifestState, salt: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&state.uuid);
    put_u64(&mut out, state.hash_seed);
    put_u64(&mut out, salt);
    put_u64(&mut out, state.edit_number);
    let sum = checksum(0, 0, &out);
    put_u64(&mut out, sum);
    encode_pair(&mut out, 0, salt, state.edit_number, &state.snapshot_edit());
    out
}

/// Appends both copies of an edit to `out`, whose first byte is at `start` of the file.
pub(super) fn encode_pair(out: &mut Vec<u8>, start: u64, salt: u64, number: u64, edit: &Edit) {
    let mut payload = Vec::new();
    edit.encode(&mut payload);
    for _ in 0..2 {
        encode_record(out, start, salt, number, &payload);
    }
}

/// Appends a record to `out`, whose first byte is at `start` of the file.
#[cfg_attr(not(test), expect(clippy::indexing_slicing, reason = "it writes its own bytes"))]
pub(super) fn encode_record(out: &mut Vec<u8>, start: u64, salt: u64, number: u64, payload: &[u8]) {
    let at = out.len();
    put_u64(out, 0);
    // The three reserved bytes behind the length are the top ones of this number.
    put_u64(out, payload.len() as u64);
    put_u64(out, number);
    out.extend_from_slice(payload);
    let sum = checksum(salt, start + at as u64, &out[at + 8..]);
    out[at..at + 8].copy_from_slice(&sum.to_le_bytes());
}

/// What the bytes of a manifest say.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) state: ManifestState,
    salt: u64,
    end: u64,
    /// Where the last edit starts.
    last: usize,
    /// See [`Unsettled::last_seen`].
    last_seen: u64,
    /// What was passed over.
    pub(super) notices: Vec<String>,
    /// Whether there are both copies of every edit, and nothing else.
    pub(super) whole: bool,
}

/// Reads a manifest.
pub(super) fn read(bytes: &[u8], path: &Path) -> Result<Loaded> {
    let header = Header::decode(bytes).map_err(|wrong| wrong.at(path, 0))?;
    let mut state = ManifestState::empty(header.uuid, header.hash_seed);
    let records = Records { bytes, salt: header.salt, first: header.first };
    let mut notices = Vec::new();
    let mut whole = true;
    let mut at = HEADER_LEN;
    // The edit that comes next, and what is known of the one before: its payload, and how many
    // copies of it verified.
    let mut expected = header.first;
    let mut last: Option<(&[u8], u32)> = None;
    let mut last_start = at;
    let mut last_seen = header.first;
    while at < bytes.len() {
        let found = match records.at(at) {
            Some(record) => Some((at, record)),
            None => records.find(at + 1, expected).map_err(|wrong| wrong.at(path, at as u64))?,
        };
        let Some((start, record)) = found else { break };
        if record.number > expected {
            let what = format!("edit {expected} is missing, but {} follows", record.number);
            return Err(Error::corruption(path, at as u64, what));
        }
        if start != at {
            whole = false;
            notices.push(format!(
                "{}: {} bytes from byte {at} on are damaged; they held a copy of an edit whose \
                 other copy is sound",
                path.display(),
                start - at
            ));
        }
        let malformed = |wrong: Malformed| wrong.at(path, start as u64);
        if !record.sound {
            return Err(malformed(Malformed::Damaged("a reserved field of a record is set")));
        }
        if record.number == expected {
            if start == at && last.is_some_and(|(_, copies)| copies < 2) {
                whole = false;
                notices.push(format!("{}: edit {expected} follows on one copy", path.display()));
            }
            let edit = Edit::decode(record.payload).map_err(malformed)?;
            state.absorb(&edit).map_err(malformed)?;
            state.edit_number = expected;
            if expected == header.first || edit.is_seen() {
                last_seen = expected;
            }
            last_start = start;
            // A copy that was passed over counts: it was noted already.
            last = Some((record.payload, if start == at { 1 } else { 2 }));
            expected = expected
                .checked_add(1)
                .ok_or_else(|| malformed(Malformed::Damaged("the edit numbers are used up")))?;
        } else if let Some((payload, copies)) = &mut last
            && record.number + 1 == expected
        {
            if *payload != record.payload {
                return Err(malformed(Malformed::Damaged("the two copies of an edit differ")));
            }
            *copies += 1;
        }
        at = start + record.len();
    }
    let Some((_, copies)) = last else {
        return Err(Error::corruption(path, HEADER_LEN as u64, "no edit can be read"));
    };
    if at < bytes.len() || copies < 2 {
        whole = false;
        let left = bytes.len() - at;
        notices.push(if copies < 2 {
            format!(
                "{}: the second copy of edit {}, at byte {at}, is damaged or was not written; the \
                 first is sound",
                path.display(),
                state.edit_number
            )
        } else {
            format!("{}: a torn tail of {left} bytes from byte {at} on was dropped", path.display())
        });
    }
    // Overlaps are looked for once here, not after each edit: an edit that makes one is never
    // written, so that this is about damage and mistakes only.
    state.check_runs(None).map_err(|wrong| wrong.at(path, HEADER_LEN as u64))?;
    let (salt, end) = (header.salt, at as u64);
    Ok(Loaded { state, salt, end, last: last_start, last_seen, notices, whole })
}

struct Header {
    uuid: [u8; 16],
    hash_seed: u64,
    salt: u64,
    /// The number of the first edit.
    first: u64,
}

impl Header {
    fn decode(bytes: &[u8]) -> std::result::Result<Header, Malformed> {
        let short = Malformed::Damaged("it is not a manifest, or cut short");
        let header = bytes.get(..HEADER_LEN).ok_or(short)?;
        let word = |at| u64_at(header, at).ok_or(short);
        if !header.starts_with(MAGIC) {
            return Err(short);
        }
        if checksum(0, 0, header.get(..56).ok_or(short)?) != word(56)? {
            return Err(Malformed::Damaged("the header does not match its checksum"));
        }
        match u32_at(header, 8) {
            Some(VERSION) => {}
            Some(0) | None => return Err(Malformed::Damaged("its format version is 0")),
            Some(_) => {
                return Err(Malformed::Unsupported("a manifest that a newer version writes"));
            }
        }
        if u32_at(header, 12) != Some(0) {
            return Err(Malformed::Damaged("a reserved field of the header is set"));
        }
        let uuid = *header.get(16..).and_then(|rest| rest.first_chunk()).ok_or(short)?;
        Ok(Header { uuid, hash_seed: word(32)?, salt: word(40)?, first: word(48)? })
    }
}

/// The records of a manifest.
struct Records<'a> {
    bytes: &'a [u8],
    salt: u64,
    /// The number of the first edit.
    first: u64,
}

struct Record<'a> {
    number: u64,
    payload: &'a [u8],
    /// Whether the reserved field is zero.
    sound: bool,
}

impl Record<'_> {
    fn len(&self) -> usize {
        RECORD_HEADER_LEN + self.payload.len()
    }
}

impl<'a> Records<'a> {
    /// What a record at this offset would be, if it fits the file.
    fn shape(&self, at: usize) -> Option<Record<'a>> {
        const LEN_BITS: u32 = 40;
        let bytes = self.bytes.get(at..)?;
        let word = u64_at(bytes, 8)?;
        let len = usize::try_from(word & ((1 << LEN_BITS) - 1)).ok()?;
        let payload = bytes.get(RECORD_HEADER_LEN..)?.get(..len)?;
        Some(Record { number: u64_at(bytes, 16)?, payload, sound: word >> LEN_BITS == 0 })
    }

    /// The record at this offset, if one verifies there.
    fn at(&self, at: usize) -> Option<Record<'a>> {
        let record = self.shape(at)?;
        let bytes = self.bytes.get(at..)?.get(..record.len())?;
        let sum = checksum(self.salt, at as u64, bytes.get(8..)?);
        (u64_at(bytes, 0)? == sum).then_some(record)
    }

    /// The first record that verifies at or behind `from`. Only what can be one is hashed: its
    /// number is not below the first of the file, nor farther past `expected` than there is room
    /// for edits.
    fn find(
        &self,
        from: usize,
        expected: u64,
    ) -> std::result::Result<Option<(usize, Record<'a>)>, Malformed> {
        let room = (self.bytes.len() / RECORD_HEADER_LEN) as u64;
        let numbers = self.first..=expected.saturating_add(room);
        let mut hashed = 0u64;
        for at in from..self.bytes.len() {
            let Some(shape) = self.shape(at) else { continue };
            if !shape.sound || !numbers.contains(&shape.number) {
                continue;
            }
            hashed += shape.len() as u64;
            if hashed / HASHED_MAX > self.bytes.len() as u64 {
                return Err(Malformed::Damaged("what follows is neither records nor a torn tail"));
            }
            if let Some(record) = self.at(at) {
                return Ok(Some((at, record)));
            }
        }
        Ok(None)
    }
}
