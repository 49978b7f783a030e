//! Looks on while a database uses a [`SimVfs`]: lists the calls, and sees a file synced again whose
//! sync failed.

use ashlardb::vfs::{Call, Env, Failure, OpenMode, SimVfs, Vfs, VfsFile, VfsLock};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A file system that passes everything on.
#[derive(Clone, Debug)]
pub struct Watch {
    sim: SimVfs,
    calls: Arc<Mutex<Vec<Call>>>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Files whose sync failed since the database was opened.
    suspect: BTreeSet<PathBuf>,
    wrong: Option<String>,
    /// From this call on changes fail, and only these.
    changes_fail_from: Option<(u64, Failure)>,
}

impl Watch {
    pub fn new(sim: &SimVfs) -> Watch {
        Watch { sim: sim.clone(), calls: Arc::default(), seen: Arc::default() }
    }

    pub fn env(&self, seed: u64) -> Env {
        Env { vfs: Arc::new(self.clone()), ..self.sim.env(seed) }
    }

    /// All calls so far, in the order in which the simulator counts them.
    pub fn calls(&self) -> Arc<Mutex<Vec<Call>>> {
        Arc::clone(&self.calls)
    }

    /// Lets every change fail from the call number `k` on, counted in all calls.
    pub fn spare_reads(&self, k: u64, failure: Failure) {
        self.seen.lock().unwrap().changes_fail_from = Some((self.sim.calls() + k, failure));
    }

    /// Forgets that.
    pub fn spare_nothing(&self) {
        self.seen.lock().unwrap().changes_fail_from = None;
    }

    /// What was done that must not be done.
    pub fn verdict(&self) -> Result<(), String> {
        self.seen.lock().unwrap().wrong.take().map_or(Ok(()), Err)
    }

    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
        let mut seen = self.seen.lock().unwrap();
        if let Some((from, failure)) = seen.changes_fail_from
            && self.sim.calls() >= from
        {
            seen.changes_fail_from = None;
            self.sim.fail(0, true, failure);
        }
    }
}

impl Vfs for Watch {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        let is_new = mode == OpenMode::CreateNew;
        self.note(if is_new { Call::Create } else { Call::Open });
        let file = self.sim.open(path, mode)?;
        if is_new {
            self.seen.lock().unwrap().suspect.remove(path);
        }
        Ok(Arc::new(WatchedFile { watch: self.clone(), path: path.to_path_buf(), file }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.sim.create_dir_all(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        self.note(Call::Read);
        self.sim.read_dir(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.note(Call::Read);
        self.sim.exists(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note(Call::Rename);
        self.sim.rename(from, to)?;
        let mut seen = self.seen.lock().unwrap();
        let is_suspect = seen.suspect.remove(from);
        seen.suspect.remove(to);
        if is_suspect {
            seen.wrong = Some(format!("{} is put in place, but its sync failed", to.display()));
        }
        Ok(())
    }

    fn hard_link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        self.note(Call::Link);
        self.sim.hard_link(existing, new)?;
        let mut seen = self.seen.lock().unwrap();
        if seen.suspect.contains(existing) {
            seen.wrong = Some(format!("{} is linked, but its sync failed", existing.display()));
        }
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.note(Call::Remove);
        self.sim.remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.note(Call::SyncDir);
        self.sim.sync_dir(path)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        // The database is opened, and may write anew what it cannot count on.
        let dir = path.parent();
        self.seen.lock().unwrap().suspect.retain(|file| file.parent() != dir);
        self.sim.lock(path)
    }
}

#[derive(Debug)]
struct WatchedFile {
    watch: Watch,
    path: PathBuf,
    file: Arc<dyn VfsFile>,
}

impl VfsFile for WatchedFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.watch.note(Call::Read);
        self.file.read_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.watch.note(Call::Write);
        self.file.write_all_at(buf, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.watch.note(Call::SetLen);
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.watch.note(Call::Read);
        self.file.len()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.watch.note(Call::Sync);
        let outcome = self.file.sync_data();
        let mut seen = self.watch.seen.lock().unwrap();
        if seen.suspect.contains(&self.path) {
            let what = format!("{} is synced again after a sync failed", self.path.display());
            seen.wrong.get_or_insert(what);
        }
        if outcome.is_err() {
            seen.suspect.insert(self.path.clone());
        }
        outcome
    }
}
