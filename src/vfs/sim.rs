//! A file system in memory that can crash, fail and lie: for testing what a database, or a program
//! on top of one, does then.
//!
//! ```text
//!          written                       durable                  a crash leaves
//! file     bytes as every reader         bytes at the last sync   durable bytes, and of the changes
//!          sees them                     + changes since          since any, 512 bytes by 512 bytes
//! entries  names as everybody sees them  names at the last sync   durable names, and of the changes
//!                                        + changes since          since any
//! ```
//!
//! Invariants: everything random follows from a seed, so that with one thread everything can be
//! repeated. A sector of 512 bytes is never torn: it is as some change left it, and changes to one
//! sector happen in order. A length is one that the file has had since the last sync. Names may
//! change in any order, or not at all; a rename is done whole or not at all. A sync that fails
//! leaves any part of the changes durable and forgets the others: a later sync that succeeds says
//! nothing about them (as on Linux; Rebello et al., "Can Applications Recover from fsync Failures?",
//! USENIX ATC 2020).
//! Called by tests, of this library and of others.

use super::mem::missing;
use super::{Entropy, Env, MemVfs, OpenMode, SeededEntropy, Vfs, VfsFile, VfsLock};
use crate::sync::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a device writes whole or not at all, in bytes.
const SECTOR: u64 = 512;

/// What a call to a [`SimVfs`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Call {
    /// A file is created.
    Create,
    /// Bytes are written.
    Write,
    /// A file is cut or extended.
    SetLen,
    /// A file is synced.
    Sync,
    /// A directory is synced.
    SyncDir,
    /// A file is renamed.
    Rename,
    /// A file is removed.
    Remove,
    /// A file is given a second name.
    Link,
    /// A file is opened that exists.
    Open,
    /// Bytes, a length or a directory are read.
    Read,
}

impl Call {
    /// Whether it changes what is written or what is durable.
    #[must_use]
    pub fn is_change(self) -> bool {
        !matches!(self, Call::Open | Call::Read)
    }
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure {
    /// An input/output error. Nothing was done, but for a sync: see the module's text.
    Refused,
    /// No space is left. Creations, links, writes and syncs fail; if it lasts, only syncs of files that
    /// have grown since the last one. Nothing was done, but for a sync: see the module's text.
    NoSpace,
    /// A signal came. Of a write, any part was done.
    Interrupted,
    /// Half of a write was done and the rest was refused; other calls are refused.
    Half,
    /// All of it was done, and an error is reported all the same.
    Done,
    /// A read succeeds, with one bit flipped. Other calls do not fail.
    FlippedRead,
    /// A read succeeds, with what is somewhere else in the file. Other calls do not fail.
    MisplacedRead,
}

impl Failure {
    fn applies_to(self, call: Call) -> bool {
        match self {
            Failure::Refused | Failure::Interrupted | Failure::Half => true,
            Failure::Done => call.is_change(),
            Failure::NoSpace => {
                matches!(call, Call::Create | Call::Link | Call::Write | Call::Sync)
            }
            Failure::FlippedRead | Failure::MisplacedRead => call == Call::Read,
        }
    }

    fn error(self) -> io::Error {
        match self {
            Failure::NoSpace => io::ErrorKind::StorageFull.into(),
            Failure::Interrupted => io::ErrorKind::Interrupted.into(),
            _ => io::Error::other("a simulated input/output error"),
        }
    }
}

/// What is called before each change; see [`SimVfs::before_each_change`].
type Hook = Arc<dyn Fn(&SimVfs, Call) + Send + Sync>;

/// A file system in memory that keeps apart what is written and what is durable, and can fail at any
/// call. Clones share it. Any number of threads may use it, but only with one is it repeatable.
#[derive(Clone)]
pub struct SimVfs {
    state: Arc<Mutex<State>>,
    hook: Arc<Mutex<Option<Hook>>>,
}

impl std::fmt::Debug for SimVfs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimVfs").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct State {
    files: HashMap<u64, Inode>,
    names: BTreeMap<PathBuf, u64>,
    dirs: BTreeSet<PathBuf>,
    durable_names: BTreeMap<PathBuf, u64>,
    durable_dirs: BTreeSet<PathBuf>,
    name_changes: Vec<NameChange>,
    next: u64,
    locks: Arc<Mutex<BTreeSet<PathBuf>>>,
    entropy: SeededEntropy,
    calls: u64,
    changes: u64,
    fault: Option<Fault>,
    capacity: u64,
    /// Whether files may have second names.
    links: bool,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    written: Vec<u8>,
    durable: Vec<u8>,
    changes: Vec<Change>,
}

/// A change to a file that is not durable.
#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    SetLen { before: u64, after: u64 },
}

#[derive(Clone, Debug)]
enum NameChange {
    Put { path: PathBuf, file: u64 },
    Rename { from: PathBuf, to: PathBuf, file: u64 },
    Remove { path: PathBuf },
    MakeDir { path: PathBuf },
}

impl NameChange {
    fn parent(&self) -> Option<&Path> {
        match self {
            NameChange::Put { path, .. }
            | NameChange::Remove { path }
            | NameChange::MakeDir { path } => path.parent(),
            NameChange::Rename { to, .. } => to.parent(),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>, dirs: &mut BTreeSet<PathBuf>) {
        match self {
            NameChange::Put { path, file } => {
                names.insert(path.clone(), *file);
            }
            NameChange::Rename { from, to, file } => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
            NameChange::Remove { path } => {
                names.remove(path);
            }
            NameChange::MakeDir { path } => {
                dirs.insert(path.clone());
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    /// Which call fails, counted from zero among the changes or among all calls.
    at: u64,
    only_changes: bool,
    sticky: bool,
    failure: Failure,
}

/// A source of choices with a leaning, so that crashes are not all alike.
struct Dice {
    entropy: SeededEntropy,
    leaning: u64,
}

impl Dice {
    fn new(seed: u64) -> Self {
        let entropy = SeededEntropy::new(seed);
        let leaning = entropy.next_u64() % 8;
        Dice { entropy, leaning }
    }

    /// A number below `n`, which is not zero.
    fn below(&self, n: u64) -> u64 {
        self.entropy.next_u64() % n
    }

    /// How many of `n` changes to one thing happened.
    fn happened(&self, n: u64) -> u64 {
        match (self.leaning, self.below(16)) {
            // All: as when only the process dies. None: as with a lazy system. Nearly all or none.
            (0, _) | (2, 1..) => n,
            (1, _) | (3, 1..) => 0,
            (4, 4..) => n,
            (5, 4..) => 0,
            _ => self.below(n + 1),
        }
    }

    fn flip(&self) -> bool {
        self.happened(1) == 1
    }
}

impl Inode {
    fn durable(bytes: Vec<u8>) -> Self {
        Inode { durable: bytes.clone(), written: bytes, changes: Vec::new() }
    }

    /// Makes the changes durable, sector by sector as they are now. What an earlier sync forgot
    /// stays forgotten.
    fn sync(&mut self) {
        self.durable.resize(self.written.len(), 0);
        for change in std::mem::take(&mut self.changes) {
            let (start, end) = change.span();
            let from = (start / SECTOR * SECTOR) as usize;
            let to = (end.div_ceil(SECTOR) * SECTOR).min(self.written.len() as u64) as usize;
            if from < to {
                self.durable[from..to].copy_from_slice(&self.written[from..to]);
            }
        }
    }

    /// What a crash leaves.
    fn crashed(&self, dice: &Dice) -> Vec<u8> {
        if self.changes.is_empty() {
            return self.durable.clone();
        }
        // A length is as it was after some of the changes.
        let mut lengths = vec![self.durable.len() as u64];
        for change in &self.changes {
            let before = *lengths.last().unwrap_or(&0);
            let after = match change {
                Change::Write { offset, bytes } => before.max(offset + bytes.len() as u64),
                Change::SetLen { after, .. } => *after,
            };
            lengths.push(after);
        }
        let len = lengths[dice.happened(self.changes.len() as u64) as usize];
        let most = lengths.iter().copied().max().unwrap_or(0);
        let mut bytes = self.durable.clone();
        bytes.resize(most as usize, 0);
        // So is each sector, independently.
        let mut touched: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (number, change) in self.changes.iter().enumerate() {
            let (start, end) = change.span();
            for sector in start / SECTOR..end.div_ceil(SECTOR) {
                touched.entry(sector).or_default().push(number);
            }
        }
        for (sector, changes) in touched {
            let happened = dice.happened(changes.len() as u64) as usize;
            for number in changes.iter().take(happened) {
                self.changes[*number].apply(&mut bytes, sector);
            }
        }
        bytes.truncate(len as usize);
        bytes
    }
}

impl Change {
    fn span(&self) -> (u64, u64) {
        match self {
            Change::Write { offset, bytes } => (*offset, offset + bytes.len() as u64),
            // What is cut off reads as zeros if the file grows again.
            Change::SetLen { before, after } => (*before.min(after), *before),
        }
    }

    /// Changes the part of `file` that lies in one sector.
    fn apply(&self, file: &mut [u8], sector: u64) {
        let (start, end) = self.span();
        let from = start.max(sector * SECTOR);
        let to = end.min((sector + 1) * SECTOR).min(file.len() as u64);
        if from >= to {
            return;
        }
        let target = &mut file[from as usize..to as usize];
        match self {
            Change::Write { offset, bytes } => {
                let skip = (from - offset) as usize;
                target.copy_from_slice(&bytes[skip..skip + target.len()]);
            }
            Change::SetLen { .. } => target.fill(0),
        }
    }
}

impl SimVfs {
    /// An empty one. What is random when a call fails follows from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::on(&MemVfs::default(), seed)
    }

    /// One that begins with a copy of everything in `disk`, all of it durable.
    #[must_use]
    pub fn on(disk: &MemVfs, seed: u64) -> Self {
        let (contents, dirs) = disk.contents();
        let mut files = HashMap::new();
        let mut names = BTreeMap::new();
        for (file, (path, bytes)) in (0..).zip(contents) {
            files.insert(file, Inode::durable(bytes));
            names.insert(path, file);
        }
        let state = State {
            next: files.len() as u64,
            files,
            durable_names: names.clone(),
            names,
            durable_dirs: dirs.clone(),
            dirs,
            name_changes: Vec::new(),
            locks: Arc::default(),
            entropy: SeededEntropy::new(seed),
            calls: 0,
            changes: 0,
            fault: None,
            capacity: u64::MAX,
            links: true,
        };
        SimVfs { state: Arc::new(Mutex::new(state)), hook: Arc::default() }
    }

    /// An environment over this file system, with a clock that stands at zero and random numbers
    /// from `seed`.
    #[must_use]
    pub fn env(&self, seed: u64) -> Env {
        Env { vfs: Arc::new(self.clone()), ..Env::in_memory(seed) }
    }

    /// What a loss of power at this moment leaves on the disk; `seed` chooses among the
    /// possibilities.
    #[must_use]
    pub fn power_loss(&self, seed: u64) -> MemVfs {
        let state = self.state.lock();
        let dice = Dice::new(seed);
        let mut names = state.durable_names.clone();
        let mut dirs = state.durable_dirs.clone();
        for change in &state.name_changes {
            if dice.flip() {
                change.apply(&mut names, &mut dirs);
            }
        }
        let is_there = |path: &Path| path.ancestors().skip(1).all(|dir| dirs.contains(dir));
        // Under all of its names a file is the same.
        let mut left: HashMap<u64, Vec<u8>> = HashMap::new();
        let mut bytes = |file: &u64| {
            let inode = state.files.get(file)?;
            Some(left.entry(*file).or_insert_with(|| inode.crashed(&dice)).clone())
        };
        let contents = names
            .iter()
            .filter(|(path, _)| is_there(path))
            .filter_map(|(path, file)| Some((path.clone(), bytes(file)?)))
            .collect();
        let dirs = dirs.iter().filter(|dir| is_there(dir)).cloned().collect();
        MemVfs::from_contents(contents, dirs)
    }

    /// What the death of the process at this moment leaves: everything written.
    #[must_use]
    pub fn process_death(&self) -> MemVfs {
        let state = self.state.lock();
        let contents = state
            .names
            .iter()
            .filter_map(|(path, file)| Some((path.clone(), state.files.get(file)?.written.clone())))
            .collect();
        MemVfs::from_contents(contents, state.dirs.clone())
    }

    /// Calls `hook` before each change: the moment for [`SimVfs::power_loss`]. Not while it is
    /// running.
    pub fn before_each_change(&self, hook: impl Fn(&SimVfs, Call) + Send + Sync + 'static) {
        *self.hook.lock() = Some(Arc::new(hook));
    }

    /// Calls no hook any more.
    pub fn forget_hook(&self) {
        *self.hook.lock() = None;
    }

    /// Lets the change number `k` from now, counted from zero, fail, or the first behind it that can
    /// fail in this way; and all that can from there on, if `sticky`.
    pub fn fail(&self, k: u64, sticky: bool, failure: Failure) {
        let mut state = self.state.lock();
        let at = state.changes.saturating_add(k);
        state.fault = Some(Fault { at, only_changes: true, sticky, failure });
    }

    /// The same, with reads counted and failing as well.
    pub fn fail_any(&self, k: u64, sticky: bool, failure: Failure) {
        let mut state = self.state.lock();
        let at = state.calls.saturating_add(k);
        state.fault = Some(Fault { at, only_changes: false, sticky, failure });
    }

    /// Lets nothing fail any more.
    pub fn heal(&self) {
        self.state.lock().fault = None;
    }

    /// How many changes were made or tried so far.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// How many calls were made or tried so far, reads included.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// Lets there be room for so many bytes in all files together. Writes beyond that fail as on a
    /// full disk.
    pub fn set_capacity(&self, bytes: u64) {
        self.state.lock().capacity = bytes;
    }

    /// Lets there be no hard links from now on, as between two devices.
    pub fn refuse_links(&self) {
        self.state.lock().links = false;
    }

    /// The bytes of all files that have a name.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.state.lock().used()
    }

    /// Whether, and how, the call that is about to be made fails.
    fn next_call(&self, call: Call, file: Option<u64>) -> Option<Failure> {
        if call.is_change() {
            let hook = self.hook.lock().clone();
            if let Some(hook) = hook {
                hook(self, call);
            }
        }
        let mut state = self.state.lock();
        let all = state.calls;
        let changes = state.changes;
        state.calls += 1;
        state.changes += u64::from(call.is_change());
        let fault = state.fault?;
        let now = if fault.only_changes { changes } else { all };
        let counts = call.is_change() || !fault.only_changes;
        if now < fault.at || !counts || !fault.failure.applies_to(call) {
            return None;
        }
        let has_grown = |file: &u64| {
            state.files.get(file).is_some_and(|inode| inode.written.len() > inode.durable.len())
        };
        let needs_space = call != Call::Sync || !fault.sticky || file.iter().any(has_grown);
        if fault.failure == Failure::NoSpace && !needs_space {
            return None;
        }
        if !fault.sticky {
            state.fault = None;
        }
        Some(fault.failure)
    }

    fn call<T>(
        &self,
        call: Call,
        action: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        match self.next_call(call, None) {
            // Only bytes can be read wrong.
            None | Some(Failure::FlippedRead | Failure::MisplacedRead) => {
                action(&mut self.state.lock())
            }
            Some(failure @ Failure::Done) => {
                action(&mut self.state.lock())?;
                Err(failure.error())
            }
            Some(failure) => Err(failure.error()),
        }
    }
}

impl State {
    fn used(&self) -> u64 {
        let len = |file: &u64| self.files.get(file).map_or(0, |inode| inode.written.len() as u64);
        let files: BTreeSet<u64> = self.names.values().copied().collect();
        files.iter().map(len).sum()
    }

    /// Whether there is a directory for a file to be in.
    fn check_parent(&self, path: &Path) -> io::Result<()> {
        let there = |dir: &Path| dir.as_os_str().is_empty() || self.dirs.contains(dir);
        if path.parent().is_none_or(there) { Ok(()) } else { Err(missing()) }
    }

    fn change_name(&mut self, change: NameChange) {
        change.apply(&mut self.names, &mut self.dirs);
        self.name_changes.push(change);
    }

    fn inode(&mut self, file: u64) -> &mut Inode {
        self.files.entry(file).or_default()
    }

    fn resize(&mut self, file: u64, len: u64) -> io::Result<()> {
        let before = self.inode(file).written.len() as u64;
        if len > before && self.used().saturating_add(len - before) > self.capacity {
            return Err(Failure::NoSpace.error());
        }
        let size = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.inode(file).written.resize(size, 0);
        Ok(())
    }

    fn write(&mut self, file: u64, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        if end > self.inode(file).written.len() as u64 {
            self.resize(file, end)?;
        }
        let inode = self.inode(file);
        inode.written[offset as usize..end as usize].copy_from_slice(bytes);
        inode.changes.push(Change::Write { offset, bytes: bytes.to_vec() });
        Ok(())
    }
}

impl Vfs for SimVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        let is_new = mode == OpenMode::CreateNew;
        let file =
            self.call(if is_new { Call::Create } else { Call::Open }, |state| {
                match state.names.get(path) {
                    Some(_) if is_new => Err(io::ErrorKind::AlreadyExists.into()),
                    Some(file) => Ok(*file),
                    None if !is_new => Err(missing()),
                    None => {
                        state.check_parent(path)?;
                        let file = state.next;
                        state.next += 1;
                        state.files.insert(file, Inode::default());
                        state.change_name(NameChange::Put { path: path.to_path_buf(), file });
                        Ok(file)
                    }
                }
            })?;
        let writable = mode != OpenMode::Read;
        Ok(Arc::new(SimFile { vfs: self.clone(), file, writable }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        let missing: Vec<PathBuf> = path
            .ancestors()
            .filter(|dir| !state.dirs.contains(*dir))
            .map(Path::to_path_buf)
            .collect();
        for path in missing.into_iter().rev() {
            if state.names.contains_key(&path) {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            let is_root = path.parent().is_none_or(|parent| parent.as_os_str().is_empty());
            state.change_name(NameChange::MakeDir { path: path.clone() });
            if is_root {
                // There is no directory above that could be synced.
                state.durable_dirs.insert(path);
            }
        }
        Ok(())
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        self.call(Call::Read, |state| {
            if !state.dirs.contains(path) {
                return Err(missing());
            }
            let entries = state.names.keys().chain(&state.dirs);
            let entries = entries.filter(|entry| entry.parent() == Some(path));
            Ok(entries.filter_map(|entry| Some(entry.file_name()?.to_str()?.to_owned())).collect())
        })
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let found =
            |state: &mut State| Ok(state.names.contains_key(path) || state.dirs.contains(path));
        self.call(Call::Read, found)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(Call::Rename, |state| {
            let file = *state.names.get(from).ok_or_else(missing)?;
            let (from, to) = (from.to_path_buf(), to.to_path_buf());
            state.change_name(NameChange::Rename { from, to, file });
            Ok(())
        })
    }

    fn hard_link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        self.call(Call::Link, |state| {
            if !state.links {
                return Err(io::ErrorKind::CrossesDevices.into());
            }
            let file = *state.names.get(existing).ok_or_else(missing)?;
            if state.names.contains_key(new) || state.dirs.contains(new) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            state.check_parent(new)?;
            state.change_name(NameChange::Put { path: new.to_path_buf(), file });
            Ok(())
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.call(Call::Remove, |state| {
            if !state.names.contains_key(path) {
                return Err(missing());
            }
            state.change_name(NameChange::Remove { path: path.to_path_buf() });
            Ok(())
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.call(Call::SyncDir, |state| {
            if !path.as_os_str().is_empty() && !state.dirs.contains(path) {
                return Err(missing());
            }
            for change in std::mem::take(&mut state.name_changes) {
                if change.parent() == Some(path) {
                    change.apply(&mut state.durable_names, &mut state.durable_dirs);
                } else {
                    state.name_changes.push(change);
                }
            }
            Ok(())
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        let mut state = self.state.lock();
        if !state.names.contains_key(path) {
            let file = state.next;
            state.next += 1;
            state.files.insert(file, Inode::default());
            state.change_name(NameChange::Put { path: path.to_path_buf(), file });
        }
        Ok(super::mem::take_lock(&state.locks, path))
    }
}

#[derive(Debug)]
struct SimFile {
    vfs: SimVfs,
    file: u64,
    writable: bool,
}

impl SimFile {
    fn check_writable(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }
}

impl VfsFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let failure = self.vfs.next_call(Call::Read, Some(self.file));
        let mut state = self.vfs.state.lock();
        let chance = failure.map_or(0, |_| state.entropy.next_u64());
        let written = &state.inode(self.file).written;
        let mut start = usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        match failure {
            None | Some(Failure::FlippedRead) => {}
            Some(Failure::MisplacedRead) => {
                // As many bytes, from another place.
                let room = written.len().saturating_sub(buf.len()) + 1;
                start = chance as usize % room;
            }
            Some(failure) => return Err(failure.error()),
        }
        let rest = written.get(start..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        if failure == Some(Failure::FlippedRead) && n > 0 {
            let bit = chance as usize % (n * 8);
            buf[bit / 8] ^= 1 << (bit % 8);
        }
        Ok(n)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check_writable()?;
        let failure = self.vfs.next_call(Call::Write, Some(self.file));
        let mut state = self.vfs.state.lock();
        let part = match failure {
            None | Some(Failure::Done) => buf.len(),
            Some(Failure::Half) => buf.len() / 2,
            Some(Failure::Interrupted) => {
                (state.entropy.next_u64() % (buf.len() as u64 + 1)) as usize
            }
            Some(_) => 0,
        };
        if part > 0 || buf.is_empty() {
            state.write(self.file, &buf[..part], offset)?;
        }
        failure.map_or(Ok(()), |failure| Err(failure.error()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.vfs.call(Call::SetLen, |state| {
            let before = state.inode(self.file).written.len() as u64;
            state.resize(self.file, len)?;
            state.inode(self.file).changes.push(Change::SetLen { before, after: len });
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.vfs.call(Call::Read, |state| Ok(state.inode(self.file).written.len() as u64))
    }

    fn sync_data(&self) -> io::Result<()> {
        let failure = self.vfs.next_call(Call::Sync, Some(self.file));
        let mut state = self.vfs.state.lock();
        let seed = state.entropy.next_u64();
        let inode = state.inode(self.file);
        match failure {
            None | Some(Failure::Done) => inode.sync(),
            Some(_) => {
                inode.durable = inode.crashed(&Dice::new(seed));
                inode.changes.clear();
            }
        }
        failure.map_or(Ok(()), |failure| Err(failure.error()))
    }
}

#[cfg(test)]
mod tests;
