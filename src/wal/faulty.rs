//! A file system for tests whose k-th change fails.

use crate::sync::{Arc, Mutex};
use crate::vfs::{Env, MemVfs, OpenMode, Vfs, VfsFile, VfsLock};
use std::io;
use std::path::Path;

/// How the chosen change fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing was done.
    Refused,
    /// Half of a write was done; otherwise nothing.
    Half,
    /// All of it was done, although an error is reported.
    Done,
}

#[derive(Debug)]
struct Plan {
    changes: u64,
    fail_at: Option<u64>,
    sticky: bool,
    fault: Fault,
}

/// Wraps a file system in memory. Creations, writes, cuts, syncs, renames and removals count as
/// changes, and one of them, or all from one on, fail. Clones share the plan.
#[derive(Clone, Debug)]
pub(crate) struct FaultyVfs {
    pub(crate) inner: MemVfs,
    plan: Arc<Mutex<Plan>>,
}

impl FaultyVfs {
    pub(crate) fn new(inner: MemVfs) -> Self {
        let plan = Plan { changes: 0, fail_at: None, sticky: false, fault: Fault::Refused };
        FaultyVfs { inner, plan: Arc::new(Mutex::new(plan)) }
    }

    /// An environment over this file system.
    pub(crate) fn env(&self, seed: u64) -> Env {
        Env { vfs: Arc::new(self.clone()), ..Env::in_memory(seed) }
    }

    /// Lets the change number `k` from now, counted from zero, fail; all from there on if `sticky`.
    pub(crate) fn fail(&self, k: u64, sticky: bool, fault: Fault) {
        let mut plan = self.plan.lock();
        plan.fail_at = Some(plan.changes + k);
        plan.sticky = sticky;
        plan.fault = fault;
    }

    /// Lets nothing fail any more.
    pub(crate) fn heal(&self) {
        self.plan.lock().fail_at = None;
    }

    /// How many changes were made or tried so far.
    pub(crate) fn changes(&self) -> u64 {
        self.plan.lock().changes
    }

    fn fault(&self) -> Option<Fault> {
        let mut plan = self.plan.lock();
        let now = plan.changes;
        plan.changes += 1;
        let due = plan.fail_at.is_some_and(|at| now == at || (plan.sticky && now > at));
        due.then_some(plan.fault)
    }

    fn change(&self, action: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self.fault() {
            None => action(),
            Some(Fault::Done) => action().and(Err(broken())),
            Some(Fault::Refused | Fault::Half) => Err(broken()),
        }
    }
}

fn broken() -> io::Error {
    io::Error::other("injected")
}

impl Vfs for FaultyVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        if mode == OpenMode::CreateNew {
            self.change(|| Ok(()))?;
        }
        Ok(Arc::new(FaultyFile { inner: self.inner.open(path, mode)?, vfs: self.clone() }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir_all(path)
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        self.inner.read_dir(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.inner.exists(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|| self.inner.rename(from, to))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.change(|| self.inner.remove_file(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.change(|| self.inner.sync_dir(path))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        self.inner.lock(path)
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Arc<dyn VfsFile>,
    vfs: FaultyVfs,
}

impl VfsFile for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        match self.vfs.fault() {
            None => self.inner.write_all_at(buf, offset),
            Some(Fault::Refused) => Err(broken()),
            Some(Fault::Half) => {
                self.inner.write_all_at(&buf[..buf.len() / 2], offset).and(Err(broken()))
            }
            Some(Fault::Done) => self.inner.write_all_at(buf, offset).and(Err(broken())),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.vfs.change(|| self.inner.set_len(len))
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.vfs.change(|| self.inner.sync_data())
    }
}
