//! Files of the segment writer, taken into a keyspace.
//!
//! Each file is checked whole, and its entries are written anew: under the keyspace's seed of hashes and
//! the database's options, without numbers. Then all of them become visible at once: see `new_run`.
//!
//! The files are only read. Called by users.

use super::new_run::NewRun;
use super::observe::Task;
use super::{Db, Keyspace};
use crate::error::{Error, Result};
use crate::segment::SegmentReader;
use crate::slice::Key;
use crate::types::{Kind, split_expiry};
use crate::vfs::Env;
use std::path::{Path, PathBuf};

/// How many entries pass between two reports of progress.
const WATCH_EVERY: u64 = 1024;

/// A file that is to be taken in.
struct Source {
    path: PathBuf,
    first: Key,
    last: Key,
    entries: u64,
    /// The checksum in its footer.
    checksum: u64,
}

impl Source {
    /// Looks at what a file says of itself.
    fn look(env: &Env, path: &Path) -> Result<Source> {
        let reader = SegmentReader::open_in(env, path)?;
        let p = reader.properties();
        let refuse = |reason: &str| not_ingestible(path, reason);
        if p.keyspace.is_some() {
            return Err(refuse("it is a segment of a database, not one by itself"));
        }
        if p.tombstones > 0 || p.merge_operands > 0 || p.range_tombstones > 0 {
            return Err(refuse("it holds other things than keys with their values"));
        }
        if p.largest_seqno.0 > 0 || p.numbered_from.0 > 0 || p.entries != p.distinct_keys {
            return Err(refuse("its entries are versions of keys, with numbers of a database"));
        }
        Ok(Source {
            path: path.to_path_buf(),
            first: Key(p.first_key.clone().into()),
            last: reader.last_key()?,
            entries: p.entries,
            checksum: reader.footer_checksum(),
        })
    }

    /// Copies the entries and checks all of the file. `watch` hears now and then how much is done: each
    /// entry counts when it is copied and when it is checked.
    fn copy(&self, env: &Env, run: &mut NewRun, watch: &dyn Fn(u64)) -> Result<()> {
        let reader = SegmentReader::open_in(env, &self.path)?;
        let damaged = |offset, what: &str| Err(Error::corruption(&self.path, offset, what));
        if reader.footer_checksum() != self.checksum {
            return damaged(0, "it was replaced while it was looked at");
        }
        let mut scan = reader.scan()?;
        let before = run.entries();
        while let Some((key, value, entry)) = scan.entry() {
            if !matches!(entry.kind, Kind::Put | Kind::PutUntil) {
                return damaged(0, "its properties do not say what it holds");
            }
            let (expiry, value) = split_expiry(entry.kind, value);
            match run.put(key, value, entry.kind.expires().then_some(expiry)) {
                Err(Error::OutOfOrder { .. }) => return damaged(0, "its keys are out of order"),
                put => put?,
            }
            if run.entries().is_multiple_of(WATCH_EVERY) {
                watch(before + run.entries());
            }
            scan.next()?;
        }
        let entries = run.entries() - before;
        let mut told = 0;
        let mut progress = |done: u64, all: u64| {
            let checked = u128::from(entries) * u128::from(done) / u128::from(all.max(1));
            let checked = (checked as u64).min(entries);
            if checked - told >= WATCH_EVERY {
                told = checked;
                watch(before + run.entries() + checked);
            }
        };
        match reader.verify_readable(&mut progress)?.damage.first() {
            Some(damage) => damaged(damage.offset, &damage.what),
            None => Ok(()),
        }
    }
}

fn not_ingestible(file: &Path, reason: &str) -> Error {
    Error::NotIngestible { file: file.to_path_buf(), reason: reason.to_owned() }
}

impl Keyspace {
    /// Takes the entries of segment files into the keyspace, all at once: files that
    /// [`SegmentWriter`](crate::SegmentWriter) made, in any order, no two of which share keys. They may lie anywhere
    /// among the keys that are there: an entry counts as put when this returns, over what was there.
    /// Snapshots and iterators made before do not see any of it. Gives how many entries there were.
    ///
    /// It is durable when this returns, whatever the database's durability; after a crash before that it has
    /// happened as a whole or not at all. The files are only read, and not needed any more afterwards.
    /// The keyspace's default time to live applies, counted from the call.
    ///
    /// Costs two reads of the files, one of them to check every byte, and one write, while reads
    /// and writes go on; then a flush of what is in memory, a new log and an edit of the manifest, for which
    /// writers wait. Memory: about 40 bytes a key of the largest segment.
    ///
    /// # Errors
    ///
    /// [`Error::NotIngestible`](crate::Error::NotIngestible) for a file that belongs to a database or shares keys with another one given;
    /// [`Error::Corruption`](crate::Error::Corruption) for one that is damaged, out of order, or no segment at all;
    /// [`Error::UnsupportedFormat`](crate::Error::UnsupportedFormat); [`Error::Io`](crate::Error::Io);
    /// those of [`put`](Self::put). After any of them nothing was taken in. One case is left open: if from then
    /// on writes are refused with [`Error::Poisoned`](crate::Error::Poisoned), nothing of it is seen here, and the
    /// next open finds all of it or nothing.
    pub fn ingest<P: AsRef<Path>>(&self, files: impl IntoIterator<Item = P>) -> Result<u64> {
        let inner = &self.handle.inner;
        let env = &inner.home.env;
        let mut run = NewRun::begin(inner, &self.core)?;
        let files = files.into_iter();
        let mut sources: Vec<Source> =
            files.map(|file| Source::look(env, file.as_ref())).collect::<Result<_>>()?;
        sources.sort_by(|a, b| a.first.cmp(&b.first));
        for (one, next) in sources.iter().zip(sources.iter().skip(1)) {
            if next.first <= one.last {
                let what = format!("it shares keys with {}", one.path.display());
                return Err(not_ingestible(&next.path, &what));
            }
        }
        let _after = inner.events.after();
        // What files say of themselves may be anything.
        let total = sources.iter().map(|source| source.entries).fold(0, u64::saturating_add);
        let total = total.saturating_mul(2);
        let report = |done: u64| inner.report(Task::Ingest, done.min(total), total);
        report(0);
        for source in &sources {
            source.copy(env, &mut run, &report)?;
        }
        let entries = run.finish()?;
        report(2 * entries);
        Ok(entries)
    }
}

impl Db {
    /// Takes the entries of segment files into the default keyspace. See [`Keyspace::ingest`].
    ///
    /// # Errors
    ///
    /// See [`Keyspace::ingest`].
    pub fn ingest<P: AsRef<Path>>(&self, files: impl IntoIterator<Item = P>) -> Result<u64> {
        self.default.ingest(files)
    }
}
