//! Backups: a directory that holds many moments of a database, each segment once.
//!
//! ```text
//! BACKUPS                        marks the directory as one for backups
//! LOCK                           one handle at a time
//! NNN.backup, NNN.backup, …      the manifests: a moment each, and the files that hold it
//! NNN-CCC.seg, NNN-CCC.val, …    copies of segments and value segments, shared between the backups that
//!                                name them
//! BACKUP.new, NNN.seg, NNN.val   of a backup that is being made
//! ```
//!
//! A segment never changes, so a backup copies those that no earlier one has. The footer's checksum, which
//! covers the random UUID that each segment has, is in the name of a copy: so copies of databases that have
//! gone apart since (one of them restored from here, say) do not meet.
//!
//! Invariants: a manifest appears by rename, when all that it names is durable, and is durably gone before
//! a file is removed that it named; what no manifest names was left by a backup that was cut short, and
//! goes with the next one; while some manifest cannot be read, no copy of a segment goes. One process
//! and one handle at a time, by the lock.

use super::copy::{copy_file, read_file};
use super::open::{LOCK_NAME, create_dirs};
use super::unfinished::{Unfinished, writing_home};
use super::verify::{DamagedPlace, DatabaseReport};
use super::{Db, Inner};
use crate::error::{Error, Result};
use crate::segment::{SegmentReader, ValueIdentity, ValueReader};
use crate::types::{SegmentId, SeqNo};
use crate::version::{
    BackedUpValues, BackupManifest, ManifestState, SegmentMeta, parse_segment_file_name,
    parse_value_file_name, segment_file_name, value_file_name,
};
use crate::vfs::{Env, OpenMode, VfsLock};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

/// Marks a directory as one for backups.
const MARKER_NAME: &str = "BACKUPS";
/// A manifest that is being written.
const NEW_NAME: &str = "BACKUP.new";
/// As for a database that is written: files are open one at a time.
const MAX_OPEN_FILES: usize = 8;

/// What one backup holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupInfo {
    /// Its number: backups of a directory are numbered in the order in which they were made.
    pub number: u64,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// The last operation that is in it.
    pub last_seqno: SeqNo,
    /// The names of the keyspaces, in order.
    pub keyspaces: Vec<String>,
    /// How many segments it holds, value segments included.
    pub segments: usize,
    /// Their length in bytes: what restoring it takes.
    pub bytes: u64,
}

/// What [`Db::backup`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupReport {
    /// The new backup.
    pub backup: BackupInfo,
    /// How many segments no earlier backup had, value segments included.
    pub new_segments: usize,
    /// Their length in bytes.
    pub new_bytes: u64,
}

/// A directory of backups, made by [`Db::backup`]. `Send + Sync`; the directory is
/// locked as long as this lives.
///
/// A directory is for one database, and those restored from it.
#[derive(Debug)]
pub struct Backups {
    env: Env,
    dir: PathBuf,
    _lock: Option<Box<dyn VfsLock>>,
}

/// A segment or a value segment, and what tells it from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    has_values: bool,
    id: SegmentId,
    len: u64,
    /// Of its footer.
    checksum: u64,
}

impl Piece {
    fn segment(meta: &SegmentMeta) -> Piece {
        Piece { has_values: false, id: meta.id, len: meta.file_len, checksum: meta.checksum }
    }

    fn values(id: SegmentId, len: u64, checksum: u64) -> Piece {
        Piece { has_values: true, id, len, checksum }
    }

    /// Of its file in a database.
    fn file_name(&self) -> String {
        if self.has_values { value_file_name(self.id) } else { segment_file_name(self.id) }
    }

    /// Of its copy in a directory of backups.
    fn copy_name(&self) -> String {
        let kind = if self.has_values { "val" } else { "seg" };
        format!("{:020}-{:016x}.{kind}", self.id.0, self.checksum)
    }
}

/// What a backup consists of, each with its hash.
fn pieces(manifest: &BackupManifest) -> Vec<(Piece, Option<u64>)> {
    let segments = manifest.state.segments.iter();
    let segments = segments.map(|(id, m)| (Piece::segment(m), manifest.hashes.get(id).copied()));
    let values = manifest.values.iter();
    let values = values.map(|(id, v)| (Piece::values(*id, v.file_len, v.checksum), Some(v.hash)));
    segments.chain(values).collect()
}

/// What the backups of a directory name.
#[derive(Default)]
struct Named {
    /// The segments and value segments, and the hashes of their files.
    hashes: BTreeMap<Piece, u64>,
    /// Their files.
    files: BTreeSet<String>,
    /// Whether there is a manifest that cannot be read, so that it may name others.
    is_partial: bool,
}

fn manifest_name(number: u64) -> String {
    format!("{number:020}.backup")
}

fn parse_manifest_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".backup").filter(|d| d.len() == 20)?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn is_copy_name(name: &str) -> bool {
    let stem = name.strip_suffix(".seg").or_else(|| name.strip_suffix(".val"));
    let parts = stem.and_then(|name| name.split_once('-'));
    parts.is_some_and(|(id, sum)| {
        let is_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        id.len() == 20
            && sum.len() == 16
            && id.bytes().all(|b| b.is_ascii_digit())
            && sum.bytes().all(is_hex)
    })
}

fn info(manifest: &BackupManifest) -> BackupInfo {
    let state = &manifest.state;
    let mut keyspaces: Vec<String> = state.keyspaces.values().map(|k| k.name.clone()).collect();
    keyspaces.sort();
    BackupInfo {
        number: manifest.number,
        created_ms: manifest.created_ms,
        last_seqno: state.flushed,
        keyspaces,
        segments: state.segments.len() + manifest.values.len(),
        bytes: bytes_of(&pieces(manifest)),
    }
}

fn bytes_of(pieces: &[(Piece, Option<u64>)]) -> u64 {
    pieces.iter().map(|(piece, _)| piece.len).sum()
}

impl Backups {
    /// Opens a directory of backups on the operating system's file system. Reads its list of files.
    ///
    /// # Errors
    /// [`Error::NoBackup`] if there is no such directory, or it is not one for backups;
    /// [`Error::Locked`] if another handle has it, or a backup is being made; [`Error::Io`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Backups> {
        Backups::open_in(&Env::default(), dir)
    }

    /// The same in another environment.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_in(env: &Env, dir: impl AsRef<Path>) -> Result<Backups> {
        let dir = dir.as_ref();
        let refuse = |why: &str| Err(no_backup(dir, why));
        if !env.vfs.exists(dir).map_err(|error| Error::io("look for", dir, error))? {
            return refuse("there is no such directory");
        }
        let names = env.vfs.read_dir(dir).map_err(|error| Error::io("list", dir, error))?;
        if !names.iter().any(|name| name == MARKER_NAME) {
            return refuse("it is no directory of backups");
        }
        Ok(Backups { env: env.clone(), dir: dir.to_path_buf(), _lock: lock(env, dir)? })
    }

    /// Opens a directory of backups, or makes one.
    fn open_or_create(env: &Env, dir: &Path) -> Result<Backups> {
        let mut names = Vec::new();
        if env.vfs.exists(dir).map_err(|error| Error::io("look for", dir, error))? {
            names = env.vfs.read_dir(dir).map_err(|error| Error::io("list", dir, error))?;
        } else {
            create_dirs(env, dir)?;
        }
        // What is in a directory of somebody's is not left over from a backup, whatever its name.
        let is_marked = names.iter().any(|name| name == MARKER_NAME);
        if !is_marked && names.iter().any(|name| name != LOCK_NAME) {
            return Err(no_backup(dir, "it is not empty, and no directory of backups"));
        }
        let backups = Backups { env: env.clone(), dir: dir.to_path_buf(), _lock: lock(env, dir)? };
        let marker = dir.join(MARKER_NAME);
        // Another may have made it meanwhile.
        if !env.vfs.exists(&marker).map_err(|error| Error::io("look for", &marker, error))? {
            // The directory first: where there is a marker, it is durable.
            if let Some(parent) = dir.parent() {
                env.vfs.sync_dir(parent).map_err(|error| Error::io("sync", parent, error))?;
            }
            env.vfs
                .open(&marker, OpenMode::CreateNew)
                .and_then(|file| file.sync_data())
                .map_err(|error| Error::io("create", &marker, error))?;
            backups.sync()?;
        }
        Ok(backups)
    }

    /// The backups, oldest first: the number of each, and what it holds or why it cannot be read. Reads
    /// all manifests, of about a hundred bytes a segment.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be listed.
    pub fn list(&self) -> Result<Vec<(u64, Result<BackupInfo>)>> {
        let numbers = self.numbers()?.into_iter();
        Ok(numbers.map(|n| (n, self.read(n).map(|manifest| info(&manifest)))).collect())
    }

    /// Reads every byte of a backup and holds it against the checksums that the manifest has of the
    /// files, and of a file that fails, each of its parts. Gives what is damaged; nothing: it can be
    /// restored as it was made. `progress` is called with the bytes read and the bytes in all.
    ///
    /// # Errors
    /// [`Error::NoBackup`] if there is none with this number; [`Error::Corruption`] or
    /// [`Error::UnsupportedFormat`] if its manifest cannot be read; [`Error::Io`] if a file cannot be.
    pub fn verify(
        &self,
        number: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Vec<DamagedPlace>> {
        let manifest = self.read(number)?;
        let pieces = pieces(&manifest);
        let (mut done, total) = (0, bytes_of(&pieces));
        let mut report = DatabaseReport::default();
        progress(done, total);
        for (piece, wanted) in pieces {
            let path = self.dir.join(piece.copy_name());
            let hash = read_file(&self.env, &path, piece.len, &mut |at, bytes| {
                progress(done + at + bytes.len() as u64, total);
                Ok(())
            });
            let wrong = match hash {
                Ok(hash) if wanted == Some(hash) => None,
                Ok(_) => Some(not_as_made(&path)),
                Err(error @ Error::Corruption { .. }) => Some(error),
                Err(error) => return Err(error),
            };
            if let Some(error) = wrong {
                let before = report.damage.len();
                self.look_closer(&piece, &path, &manifest.state, &mut report)?;
                if report.damage.len() == before {
                    report.damage.push(DamagedPlace::from_error(&path, error)?);
                }
            }
            done += piece.len;
            progress(done, total);
        }
        Ok(report.damage)
    }

    /// Looks what is damaged of a copy.
    fn look_closer(
        &self,
        piece: &Piece,
        path: &Path,
        state: &ManifestState,
        report: &mut DatabaseReport,
    ) -> Result<()> {
        if let Some(meta) = state.segments.get(&piece.id).filter(|_| !piece.has_values) {
            let (named, mut lists) = (Some((meta.as_ref(), state)), BTreeMap::new());
            let path = path.to_path_buf();
            return report.read_segment(&self.env, path, named, &mut lists, &mut |_, _| {});
        }
        if let Ok(reader) = ValueReader::open_in(&self.env, path) {
            for damage in reader.verify(&mut |_| {})?.damage {
                let error = Error::corruption(path, damage.offset, damage.what);
                report.damage.push(DamagedPlace::from_error(path, error)?);
            }
        }
        Ok(())
    }

    /// Makes a new database at `target` out of a backup. `target` must not exist, or be an empty directory.
    /// Every byte is held against its checksum on the way, and the database is synced and closed when this
    /// returns. Until then it has a file `UNFINISHED` and no manifest, and cannot be opened: so it is after
    /// an error or a crash, and then to be removed by hand. It has a UUID of its own, so it can be written
    /// to beside the one that it was made from. `progress` is called with the bytes copied and the bytes
    /// in all.
    ///
    /// # Errors
    /// As [`verify`](Self::verify), and: [`Error::NotEmpty`] if the target holds anything, with nothing
    /// changed; [`Error::Corruption`] with the file if the backup is damaged; [`Error::Io`] or
    /// [`Error::DiskFull`] if the target cannot be written.
    pub fn restore(
        &self,
        number: u64,
        target: impl AsRef<Path>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let (env, target) = (&self.env, target.as_ref());
        let manifest = self.read(number)?;
        let new = Unfinished::create(env, target)?;
        let pieces = pieces(&manifest);
        let (mut done, total) = (0, bytes_of(&pieces));
        progress(done, total);
        for (piece, wanted) in pieces {
            let (from, to) = (self.dir.join(piece.copy_name()), target.join(piece.file_name()));
            let mut copied = |bytes: u64| progress(done + bytes, total);
            let hash = copy_file(env, &from, &to, piece.len, &mut copied)?;
            if wanted != Some(hash) {
                return Err(not_as_made(&from));
            }
            done += piece.len;
            progress(done, total);
        }
        new.complete(env, &manifest.state)
    }

    /// Removes all but the newest backups, and the segments that only the removed ones had. Gives the
    /// numbers of those that were removed. Backups whose manifest cannot be read do not count as kept; they
    /// go if they are older than those, else they stay, and with them all segments that they may need.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if `keep_last` is 0; [`Error::Io`]. What was not removed then goes the
    /// next time.
    pub fn prune(&mut self, keep_last: usize) -> Result<Vec<u64>> {
        if keep_last == 0 {
            let (option, reason) = ("keep_last", "must be at least 1".to_owned());
            return Err(Error::InvalidOption { option, reason });
        }
        let mut numbers = self.numbers()?;
        let readable = numbers.iter().rev().filter(|number| self.read(**number).is_ok());
        let oldest_kept = readable.take(keep_last).last().copied();
        numbers.retain(|number| oldest_kept.is_some_and(|oldest| *number < oldest));
        for number in &numbers {
            self.remove(&manifest_name(*number))?;
        }
        // Before the segments that they name.
        self.sync()?;
        let named = self.named()?;
        self.sweep(&named)?;
        Ok(numbers)
    }

    /// The numbers of the backups, rising.
    fn numbers(&self) -> Result<Vec<u64>> {
        let names = self.names()?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|n| parse_manifest_name(n)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn names(&self) -> Result<Vec<String>> {
        self.env.vfs.read_dir(&self.dir).map_err(|error| Error::io("list", &self.dir, error))
    }

    fn read(&self, number: u64) -> Result<BackupManifest> {
        let path = self.dir.join(manifest_name(number));
        let read = || {
            let file = self.env.vfs.open(&path, OpenMode::Read)?;
            let len = usize::try_from(file.len()?).map_err(|_| io::ErrorKind::OutOfMemory)?;
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => no_backup(&path, "there is no backup with this number"),
            _ => Error::io("read", &path, error),
        })?;
        let manifest = BackupManifest::decode(&bytes, &path)?;
        if manifest.number != number {
            return Err(Error::corruption(&path, 0, "it is the manifest of another backup"));
        }
        Ok(manifest)
    }

    /// What the backups name that there are.
    fn named(&self) -> Result<Named> {
        let mut named = Named::default();
        for number in self.numbers()? {
            match self.read(number) {
                Ok(manifest) => named.add(&manifest),
                Err(error @ (Error::Corruption { .. } | Error::UnsupportedFormat { .. })) => {
                    tracing::warn!(%error, "the manifest of a backup cannot be read");
                    named.is_partial = true;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(named)
    }

    /// Removes what a backup that was cut short left, and what only removed ones named.
    fn sweep(&self, named: &Named) -> Result<()> {
        for name in self.names()? {
            let is_temporary = name == NEW_NAME
                || parse_segment_file_name(&name).is_some()
                || parse_value_file_name(&name).is_some();
            let is_unnamed = is_copy_name(&name) && !named.files.contains(&name);
            if is_temporary || is_unnamed && !named.is_partial {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        self.env.vfs.remove_file(&path).map_err(|error| Error::io("remove", &path, error))
    }

    fn sync(&self) -> Result<()> {
        self.env.vfs.sync_dir(&self.dir).map_err(|error| Error::io("sync", &self.dir, error))
    }

    /// Whether there is a copy of a segment, as long as it should be.
    fn has(&self, piece: &Piece) -> Result<bool> {
        let path = self.dir.join(piece.copy_name());
        match self.env.vfs.open(&path, OpenMode::Read).and_then(|file| file.len()) {
            Ok(len) => Ok(len == piece.len),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io("read", &path, error)),
        }
    }

    /// Copies a segment, and looks whether the copy is sound, or the backup would be no better than the
    /// database: `progress` gets to twice its length. Gives the file's hash.
    fn take(&self, from: &Path, piece: &Piece, progress: &mut dyn FnMut(u64)) -> Result<u64> {
        let to = self.dir.join(piece.copy_name());
        if self.env.vfs.exists(&to).map_err(|error| Error::io("look for", &to, error))? {
            // Half of it, perhaps.
            self.remove(&piece.copy_name())?;
        }
        let hash = copy_file(&self.env, from, &to, piece.len, progress)?;
        let mut looked = |done: u64| progress(piece.len + done);
        if let Err(error) = look(&self.env, &to, piece, &mut looked) {
            // Is it the copy that is damaged, or already what was copied?
            look(&self.env, from, piece, &mut |_| {})?;
            return Err(error);
        }
        Ok(hash)
    }

    /// Makes a manifest appear, and with it the backup. Everything that it names is synced, but for
    /// the directory.
    fn install(&self, manifest: &BackupManifest) -> Result<()> {
        let path = self.dir.join(NEW_NAME);
        let bytes = manifest.encode(self.env.entropy.next_u64());
        self.env
            .vfs
            .open(&path, OpenMode::CreateNew)
            .and_then(|file| file.write_all_at(&bytes, 0).and_then(|()| file.sync_data()))
            .map_err(|error| Error::io("write", &path, error))?;
        self.sync()?;
        let to = self.dir.join(manifest_name(manifest.number));
        self.env.vfs.rename(&path, &to).map_err(|error| Error::io("rename to", &to, error))?;
        self.sync()
    }
}

impl Named {
    fn add(&mut self, manifest: &BackupManifest) {
        for (piece, hash) in pieces(manifest) {
            self.files.insert(piece.copy_name());
            self.hashes.extend(hash.map(|hash| (piece, hash)));
        }
    }
}

impl Db {
    /// Adds a backup to the directory `dir`, which is made if it is missing, while the database is used.
    /// `progress` is called with the bytes copied and checked, and those in all: twice the bytes that
    /// are new.
    ///
    /// The backup shows one moment, as a [`checkpoint`](Self::checkpoint) does. Segments that an earlier
    /// backup in the directory has are not copied again; the others are, never linked, so that a backup
    /// survives what happens to the database's files. Each is looked through for damage, once. The backup
    /// is durable when this returns; after an error or a crash it is there whole or not at all, those before
    /// are as they were, and what else is left goes with the next backup. [`Backups`] lists, verifies,
    /// restores and prunes them.
    ///
    /// What is in the directory already is trusted: [`Backups::verify`] reads it. Where that finds a
    /// damaged copy, remove the file: the next backup copies the segment again, if the database still has it.
    ///
    /// Costs a flush, a read of the directory's manifests, and two reads and a write of the new segments.
    ///
    /// # Errors
    ///
    /// [`Error::NoBackup`] if the directory holds anything else, or the backups of another database, with
    /// nothing changed; [`Error::Locked`] if a [`Backups`] of it is open or another backup is being made;
    /// [`Error::Corruption`] if a segment of the database is damaged: `verify` tells how much is, `repair`
    /// saves the rest; [`Error::Io`] or [`Error::DiskFull`] if the directory cannot be written; the error
    /// of a flush that failed; [`Error::Poisoned`], [`Error::Closed`]. None of them harms this database.
    pub fn backup(
        &self,
        dir: impl AsRef<Path>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<BackupReport> {
        self.inner().backup(dir.as_ref(), progress)
    }
}

impl Inner {
    /// See [`Db::backup`].
    pub(super) fn backup(
        &self,
        dir: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<BackupReport> {
        let span = tracing::info_span!("backup", dir = %dir.display());
        let _entered = span.enter();
        self.check_writable()?;
        let env = &self.home.env;
        let backups = Backups::open_or_create(env, dir)?;
        let numbers = backups.numbers()?;
        let newest = numbers.iter().rev().find_map(|number| backups.read(*number).ok());
        if newest.is_some_and(|newest| newest.state.hash_seed != self.hash_seed) {
            return Err(no_backup(dir, "it holds backups of another database"));
        }
        self.flush()?;
        let moment = self.moment()?;
        let named = backups.named()?;
        backups.sweep(&named)?;
        let home = writing_home(env, dir, MAX_OPEN_FILES);
        let content = self.write_tail(moment, &home)?;

        let (mut found, mut missing) = (Vec::new(), Vec::new());
        let segments = content.live.iter().map(|s| (s.path(), Piece::segment(&s.meta)));
        let values = content.live_values().into_iter().map(|(id, file)| {
            let ValueIdentity { file_len, checksum } = file.identity();
            (file.path(), Piece::values(id, file_len, checksum))
        });
        for (path, piece) in segments.chain(values) {
            match named.hashes.get(&piece) {
                Some(hash) if backups.has(&piece)? => found.push((piece, *hash)),
                _ => missing.push((path, piece)),
            }
        }
        let values = content.tail_values.iter();
        let values = values.map(|used| Piece::values(used.id, used.file_len, used.checksum));
        let tail: Vec<Piece> =
            content.tail.iter().map(|meta| Piece::segment(meta)).chain(values).collect();
        missing.extend(tail.iter().map(|piece| (dir.join(piece.file_name()), *piece)));
        let new_segments = missing.len();
        let new_bytes = missing.iter().map(|(_, piece)| piece.len).sum::<u64>();
        let (mut done, total) = (0, 2 * new_bytes);
        progress(done, total);
        for (from, piece) in missing {
            self.check_open()?;
            let hash = backups.take(&from, &piece, &mut |bytes| progress(done + bytes, total))?;
            found.push((piece, hash));
            done += 2 * piece.len;
            progress(done, total);
        }
        for piece in &tail {
            backups.remove(&piece.file_name())?;
        }
        let number = numbers.last().map_or(1, |last| last.saturating_add(1));
        let created_ms = env.clock.unix_ms();
        let (values, segments): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|(piece, _)| piece.has_values);
        let hashes = segments.into_iter().map(|(piece, hash)| (piece.id, hash)).collect();
        let values = values.into_iter().map(|(Piece { id, len, checksum, .. }, hash)| {
            (id, BackedUpValues { file_len: len, checksum, hash })
        });
        let (state, values) = (content.state, values.collect());
        let manifest = BackupManifest { number, created_ms, state, hashes, values };
        backups.install(&manifest)?;
        Ok(BackupReport { backup: info(&manifest), new_segments, new_bytes })
    }
}

fn no_backup(path: &Path, why: &str) -> Error {
    Error::NoBackup { path: path.to_path_buf(), why: why.to_owned() }
}

/// Looks whether a file is what it is taken for, and sound.
fn look(env: &Env, path: &Path, piece: &Piece, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let wanted = (piece.len, piece.checksum);
    let check = |is_that: bool| {
        let what = "it is not the segment that the manifest names (swapped or overwritten)";
        if is_that { Ok(()) } else { Err(Error::corruption(path, 0, what)) }
    };
    let damage = if piece.has_values {
        let reader = ValueReader::open_in(env, path)?;
        let ValueIdentity { file_len, checksum } = reader.identity();
        check((file_len, checksum) == wanted)?;
        reader.verify_readable(progress)?.damage
    } else {
        let reader = SegmentReader::open_in(env, path)?;
        check((reader.file_len(), reader.footer_checksum()) == wanted)?;
        reader.verify_readable(&mut |done, _| progress(done))?.damage
    };
    match damage.into_iter().next() {
        Some(damage) => Err(Error::corruption(path, damage.offset, damage.what)),
        None => Ok(()),
    }
}

fn not_as_made(path: &Path) -> Error {
    Error::corruption(path, 0, "it is not the file that was backed up")
}

/// Locks a directory of backups; nobody can change one on a medium that cannot be written.
fn lock(env: &Env, dir: &Path) -> Result<Option<Box<dyn VfsLock>>> {
    let path = dir.join(LOCK_NAME);
    match env.vfs.lock(&path) {
        Ok(None) => Err(Error::Locked { path: dir.to_path_buf() }),
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(None),
        lock => lock.map_err(|error| Error::io("lock", &path, error)),
    }
}

#[cfg(test)]
#[path = "backup_tests.rs"]
mod tests;
