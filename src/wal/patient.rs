//! A file on a failing disk: pages that cannot be read do not keep the others from being read. For
//! `salvage`.

use crate::sync::Arc;
use crate::types::PAGE;
use crate::vfs::VfsFile;
use std::io;

/// A file that gives `0xff` for pages that the operating system cannot read, so that what stands
/// around them can be had. No checksum confirms those.
#[derive(Debug)]
pub(super) struct Patient(pub(super) Arc<dyn VfsFile>);

impl VfsFile for Patient {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        if let Ok(read) = self.0.read_at(buf, offset) {
            return Ok(read);
        }
        let len = self.0.len()?;
        let wanted = len.saturating_sub(offset).min(buf.len() as u64);
        let mut done = 0;
        for piece in buf.chunks_mut(PAGE) {
            let left = wanted.saturating_sub(done);
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            let Some(piece) = piece.get_mut(..n) else { break };
            if self.0.read_exact_at(piece, offset + done).is_err() {
                piece.fill(0xff);
            }
            done += n as u64;
        }
        Ok(usize::try_from(done).unwrap_or(usize::MAX))
    }

    fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails to read whatever touches its second page.
    #[derive(Debug)]
    struct BadPage;

    impl VfsFile for BadPage {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            let end = (offset + buf.len() as u64).min(10_000);
            if offset < 8192 && end > 4096 {
                return Err(io::Error::other("bad sector"));
            }
            let n = end.saturating_sub(offset) as usize;
            buf[..n].fill(7);
            Ok(n)
        }

        fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Ok(())
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn len(&self) -> io::Result<u64> {
            Ok(10_000)
        }

        fn sync_data(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_page_that_cannot_be_read_costs_itself() {
        let mut bytes = [0; 12_000];
        assert_eq!(Patient(Arc::new(BadPage)).read_at(&mut bytes, 0).unwrap(), 10_000);
        assert!(bytes[..4096].iter().chain(&bytes[8192..10_000]).all(|byte| *byte == 7));
        assert!(bytes[4096..8192].iter().all(|byte| *byte == 0xff));
        assert!(bytes[10_000..].iter().all(|byte| *byte == 0));
    }
}
