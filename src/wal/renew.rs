//! Writes anew what replay found in a log and nobody knows to be durable, and syncs it.
//!
//! After a failed sync the system may go on showing bytes that never reached the device, and the
//! next sync succeeds without them (Rebello et al., "Can Applications Recover from fsync Failures?",
//! USENIX ATC 2020). A database that is opened again, perhaps because of that failure, reads them,
//! shows them to its users and builds on them; so they are written once more, to the same place,
//! and the sync that follows covers them.
//!
//! Invariants: nothing is written but what verified when it was read for that, so that damage is
//! never made durable. What a record says is durable is not touched. Called by `db` at open, through
//! `wal`.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::format::{HEADER_LEN, LogHeader, log_file_name};
use super::replay::{LogFile, Pieces, Uncertain};
use crate::error::{Error, Result};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::vfs::{Env, OpenMode};
use std::path::Path;

/// Makes logs durable to the ends of their records, in any order: all are, or an error comes back. In
/// two threads if that is allowed and can be and there are several, so that one writes while the other
/// one's fsync runs.
pub(crate) fn renew(
    env: &Env,
    dir: &Path,
    database: u64,
    logs: &[Uncertain],
    threads: bool,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(log) = logs.get(next.fetch_add(1, Ordering::Relaxed)) {
            renew_one(env, dir, database, log)?;
        }
        Ok(())
    };
    if !threads || logs.len() < 2 {
        return work();
    }
    std::thread::scope(|scope| {
        // Where there is no thread to be had, one does it all.
        let other = std::thread::Builder::new().spawn_scoped(scope, work);
        let own = work();
        let others = other.map_or(Ok(()), |other| {
            other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        own.and(others)
    })
}

/// Reads and writes what is uncertain of a log once, in pieces; one fsync.
fn renew_one(env: &Env, dir: &Path, database: u64, log: &Uncertain) -> Result<()> {
    let Uncertain { header, from, end } = *log;
    let path = dir.join(log_file_name(header.id));
    let opened = env.vfs.open(&path, OpenMode::ReadWrite).and_then(|file| Ok((file.len()?, file)));
    let (len, file) = opened.map_err(|error| Error::io("open", &path, error))?;
    let log = LogFile { path, file, len };
    let changed = |at| Error::corruption(&log.path, at, "it is not what was replayed just now");
    let write = |bytes: &[u8], at| {
        let written = log.file.write_all_at(bytes, at);
        written.map_err(|error| Error::io("write to", &log.path, error))
    };
    let mut pieces = Pieces::new(&log);
    let mut at = from;
    if at < HEADER_LEN {
        let bytes = pieces.get(0, HEADER_LEN)?.ok_or_else(|| changed(0))?;
        let found = LogHeader::decode(bytes, database).map_err(|wrong| wrong.at(&log.path, 0))?;
        if found.is_none_or(|found| (found.id, found.salt) != (header.id, header.salt)) {
            return Err(changed(0));
        }
        write(bytes, 0)?;
        at = HEADER_LEN;
    }
    while at < end {
        let sound = pieces.records(header.salt, at, end)?.ok_or_else(|| changed(at))?;
        write(sound, at)?;
        at += sound.len() as u64;
    }
    log.file.sync_data().map_err(|error| Error::io("sync", &log.path, error))
}
