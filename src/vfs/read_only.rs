//! A file system through which nothing can be changed, whatever calls it.

use super::{OpenMode, Vfs, VfsFile, VfsLock};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Another file system, for reading: every call that would change something is refused before it
/// gets there. Locks are refused too, since they make files.
#[derive(Debug)]
pub(crate) struct ReadOnlyVfs(pub(crate) Arc<dyn Vfs>);

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Vfs for ReadOnlyVfs {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn VfsFile>> {
        if mode == OpenMode::Read { self.0.open(path, mode) } else { refused() }
    }

    fn create_dir_all(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        self.0.read_dir(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.0.exists(path)
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        refused()
    }

    fn remove_file(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn lock(&self, _: &Path) -> io::Result<Option<Box<dyn VfsLock>>> {
        refused()
    }
}

/// Stands where a file would be that is never written.
#[derive(Debug)]
pub(crate) struct NoFile;

impl VfsFile for NoFile {
    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        Ok(0)
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        refused()
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        refused()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn sync_data(&self) -> io::Result<()> {
        refused()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::MemVfs;

    #[test]
    fn nothing_can_be_changed() {
        let below = Arc::new(MemVfs::default());
        let (dir, file) = (Path::new("/d"), Path::new("/d/f"));
        below.create_dir_all(dir).unwrap();
        below.open(file, OpenMode::CreateNew).unwrap().write_all_at(b"abc", 0).unwrap();
        let vfs = ReadOnlyVfs(Arc::clone(&below) as Arc<dyn Vfs>);
        let refused = |outcome: io::Result<()>| {
            assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        };
        refused(vfs.open(file, OpenMode::ReadWrite).map(|_| ()));
        refused(vfs.open(Path::new("/d/g"), OpenMode::CreateNew).map(|_| ()));
        refused(vfs.create_dir_all(Path::new("/e")));
        refused(vfs.rename(file, Path::new("/d/g")));
        refused(vfs.remove_file(file));
        refused(vfs.sync_dir(dir));
        refused(vfs.lock(Path::new("/d/LOCK")).map(|_| ()));
        let read = vfs.open(file, OpenMode::Read).unwrap();
        assert!(read.write_all_at(b"x", 0).is_err() && read.set_len(0).is_err());
        assert_eq!(vfs.read_dir(dir).unwrap(), ["f"]);
        assert!(vfs.exists(file).unwrap() && !vfs.exists(Path::new("/e")).unwrap());
        refused(NoFile.write_all_at(b"", 0));
        refused(NoFile.set_len(0));
        refused(NoFile.sync_data());
    }
}
