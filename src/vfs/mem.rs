//! A file system in memory, for tests and for databases that need not outlive the process.

use super::{OpenMode, Vfs, VfsFile, VfsLock};
use crate::sync::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file system in memory. Clones share it. A removed file lives on while it is open.
#[derive(Clone, Debug, Default)]
pub struct MemVfs {
    tree: Arc<Mutex<Tree>>,
}

#[derive(Debug, Default)]
struct Tree {
    files: BTreeMap<PathBuf, Arc<RwLock<Vec<u8>>>>,
    dirs: BTreeSet<PathBuf>,
    locks: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Tree {
    /// Whether there is a directory for a file to be in.
    fn check_parent(&self, path: &Path) -> io::Result<()> {
        let there = |dir: &Path| dir.as_os_str().is_empty() || self.dirs.contains(dir);
        if path.parent().is_none_or(there) { Ok(()) } else { Err(missing()) }
    }
}

impl MemVfs {
    /// A copy of everything as it stands, sharing nothing: what a process that died now would
    /// leave. Locks are not copied, and files with two names become two.
    #[must_use]
    pub fn fork(&self) -> MemVfs {
        let tree = self.tree.lock();
        let files = tree
            .files
            .iter()
            .map(|(path, data)| (path.clone(), Arc::new(RwLock::new(data.read().clone()))))
            .collect();
        MemVfs {
            tree: Arc::new(Mutex::new(Tree {
                files,
                dirs: tree.dirs.clone(),
                locks: Arc::default(),
            })),
        }
    }

    /// All files with their bytes, and all directories.
    pub(super) fn contents(&self) -> (Vec<(PathBuf, Vec<u8>)>, BTreeSet<PathBuf>) {
        let tree = self.tree.lock();
        let files = tree.files.iter().map(|(path, data)| (path.clone(), data.read().clone()));
        (files.collect(), tree.dirs.clone())
    }

    /// One that holds these.
    pub(super) fn from_contents(files: Vec<(PathBuf, Vec<u8>)>, dirs: BTreeSet<PathBuf>) -> MemVfs {
        let files = files.into_iter().map(|(path, data)| (path, Arc::new(RwLock::new(data))));
        let tree = Tree { files: files.collect(), dirs, locks: Arc::default() };
        MemVfs { tree: Arc::new(Mutex::new(tree)) }
    }
}

pub(super) fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Vfs for MemVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        let mut tree = self.tree.lock();
        let data = match (mode, tree.files.get(path)) {
            (OpenMode::CreateNew, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (OpenMode::CreateNew, None) => {
                tree.check_parent(path)?;
                let data = Arc::default();
                tree.files.insert(path.to_path_buf(), Arc::clone(&data));
                data
            }
            (_, found) => Arc::clone(found.ok_or_else(missing)?),
        };
        Ok(Arc::new(MemFile { data, writable: mode != OpenMode::Read }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut tree = self.tree.lock();
        for dir in path.ancestors() {
            if tree.files.contains_key(dir) {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            tree.dirs.insert(dir.to_path_buf());
        }
        Ok(())
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let tree = self.tree.lock();
        if !tree.dirs.contains(path) {
            return Err(missing());
        }
        Ok(tree
            .files
            .keys()
            .chain(&tree.dirs)
            .filter(|entry| entry.parent() == Some(path))
            .filter_map(|entry| Some(entry.file_name()?.to_str()?.to_owned()))
            .collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let tree = self.tree.lock();
        Ok(tree.files.contains_key(path) || tree.dirs.contains(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut tree = self.tree.lock();
        let data = tree.files.remove(from).ok_or_else(missing)?;
        tree.files.insert(to.to_path_buf(), data);
        Ok(())
    }

    fn hard_link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        let mut tree = self.tree.lock();
        let data = Arc::clone(tree.files.get(existing).ok_or_else(missing)?);
        if tree.files.contains_key(new) || tree.dirs.contains(new) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        tree.check_parent(new)?;
        tree.files.insert(new.to_path_buf(), data);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.tree.lock().files.remove(path).map(|_| ()).ok_or_else(missing)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        if self.tree.lock().dirs.contains(path) || path.as_os_str().is_empty() {
            Ok(())
        } else {
            Err(missing())
        }
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        let mut tree = self.tree.lock();
        tree.files.entry(path.to_path_buf()).or_default();
        Ok(take_lock(&tree.locks, path))
    }
}

/// Takes the lock of a path, unless it is held.
pub(super) fn take_lock(
    locks: &Arc<Mutex<BTreeSet<PathBuf>>>,
    path: &Path,
) -> Option<Box<dyn VfsLock>> {
    if !locks.lock().insert(path.to_path_buf()) {
        return None;
    }
    Some(Box::new(MemLock { held: Arc::clone(locks), path: path.to_path_buf() }))
}

#[derive(Debug)]
struct MemLock {
    held: Arc<Mutex<BTreeSet<PathBuf>>>,
    path: PathBuf,
}

impl VfsLock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        self.held.lock().remove(&self.path);
    }
}

#[derive(Debug)]
struct MemFile {
    data: Arc<RwLock<Vec<u8>>>,
    writable: bool,
}

impl MemFile {
    fn check_writable(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl VfsFile for MemFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let data = self.data.read();
        let rest = data.get(position(offset)?..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check_writable()?;
        let start = position(offset)?;
        let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::InvalidInput)?;
        let mut data = self.data.write();
        if data.len() < end {
            data.resize(end, 0);
        }
        data[start..end].copy_from_slice(buf);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.data.write().resize(position(len)?, 0);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.data.read().len() as u64)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_live_while_open_and_forks_share_nothing() {
        let vfs = MemVfs::default();
        let dir = Path::new("/db");
        let path = dir.join("a");
        assert!(vfs.open(&path, OpenMode::CreateNew).is_err(), "the directory is missing");
        vfs.create_dir_all(dir).unwrap();
        let file = vfs.open(&path, OpenMode::CreateNew).unwrap();
        assert!(vfs.open(&path, OpenMode::CreateNew).is_err());
        file.write_all_at(b"abc", 2).unwrap();
        let fork = vfs.fork();
        vfs.remove_file(&path).unwrap();
        let mut buf = [9; 8];
        assert_eq!(file.read_at(&mut buf, 1).unwrap(), 4);
        assert_eq!(&buf[..4], b"\0abc");
        assert_eq!(vfs.read_dir(dir).unwrap(), Vec::<String>::new());
        assert_eq!(fork.read_dir(dir).unwrap(), ["a"]);
        let reader = fork.open(&path, OpenMode::Read).unwrap();
        assert!(reader.write_all_at(b"x", 0).is_err());
        assert!(reader.read_exact_at(&mut [0; 6], 0).is_err());
    }

    #[test]
    fn a_file_with_two_names_stays_until_both_are_gone() {
        let vfs = MemVfs::default();
        let dir = Path::new("/db");
        vfs.create_dir_all(dir).unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.join(name));
        assert!(vfs.hard_link(&a, &b).is_err(), "there is nothing to link");
        vfs.open(&a, OpenMode::CreateNew).unwrap().write_all_at(b"abc", 0).unwrap();
        vfs.hard_link(&a, &b).unwrap();
        assert!(vfs.hard_link(&a, &b).is_err(), "a link replaces nothing");
        assert!(vfs.hard_link(&a, Path::new("/nowhere/c")).is_err());
        vfs.open(&a, OpenMode::ReadWrite).unwrap().write_all_at(b"x", 1).unwrap();
        vfs.remove_file(&a).unwrap();
        let mut bytes = [0; 3];
        vfs.open(&b, OpenMode::Read).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"axc");
    }

    #[test]
    fn a_lock_has_one_holder() {
        let vfs = MemVfs::default();
        let held = vfs.lock(Path::new("/l")).unwrap();
        assert!(held.is_some());
        assert!(vfs.lock(Path::new("/l")).unwrap().is_none());
        drop(held);
        assert!(vfs.lock(Path::new("/l")).unwrap().is_some());
    }
}
