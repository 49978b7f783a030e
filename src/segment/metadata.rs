//! What a reader knows of its segment besides data blocks. It can outlive the reader and open the
//! same file again at the price of one read of the footer.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::format::{FOOTER_LEN, Footer, SECTION_PROPERTIES, Section, decode_table};
use super::{Part, Properties};
use crate::checksum::checksum;
use crate::error::{Error, Malformed, Result};
use crate::sync::RwLock;
use crate::types::PAGE;
use crate::vfs::VfsFile;
use std::collections::HashMap;
use std::io;
use std::path::Path;

/// Footer, sections and properties of a segment, and whatever of its index, bloom filter and
/// hash run was loaded by readers without a cache. `Send + Sync`.
pub struct SegmentMetadata {
    pub(super) footer: Footer,
    pub(super) footer_checksum: u64,
    pub(super) salt: u64,
    pub(super) sections: Vec<Section>,
    pub(super) properties: Properties,
    /// By offset in the file.
    pub(super) parts: RwLock<HashMap<u64, Part>>,
}

impl std::fmt::Debug for SegmentMetadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SegmentMetadata")
            .field("footer", &self.footer)
            .field("properties", &self.properties)
            .finish_non_exhaustive()
    }
}

impl SegmentMetadata {
    /// The properties.
    #[must_use]
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// The identity of the segment.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.footer.uuid
    }

    /// The section with this id.
    pub(super) fn section(&self, id: u16) -> Option<&Section> {
        self.sections.iter().find(|section| section.id == id)
    }

    /// Reads footer, section table and properties.
    pub(super) fn read(file: &dyn VfsFile, path: &Path) -> Result<SegmentMetadata> {
        let len = file_len(file, path)?;
        // Usually one read is enough: what is needed lies at the end.
        let tail_len = len.min(PAGE as u64);
        let tail = read_at(file, path, len - tail_len, tail_len, len)?;
        let footer_at = tail.len().saturating_sub(FOOTER_LEN);
        let (footer, footer_checksum) =
            Footer::decode(tail.get(footer_at..).unwrap_or_default(), len)
                .map_err(|malformed| malformed.at(path, len - (tail.len() - footer_at) as u64))?;
        let read = |offset: u64, wanted: u64| -> Result<Vec<u8>> {
            let within = offset
                .checked_sub(len - tail_len)
                .and_then(|start| usize::try_from(start).ok())
                .and_then(|start| tail.get(start..)?.get(..usize::try_from(wanted).ok()?));
            match within {
                Some(bytes) => Ok(bytes.to_vec()),
                None => read_at(file, path, offset, wanted, len),
            }
        };
        let table = read(footer.table_offset, footer.table_len)?;
        let sections = decode_table(&table, &footer)
            .map_err(|malformed| malformed.at(path, footer.table_offset))?;
        let salt = footer.salt();
        let section = sections.iter().find(|section| section.id == SECTION_PROPERTIES);
        let Some(section) = section else {
            return Err(Error::corruption(path, footer.table_offset, "it has no properties"));
        };
        let bytes = read(section.offset, section.len)?;
        let properties = check_section(&bytes, section, salt)
            .and_then(|()| Properties::decode(&bytes))
            .map_err(|malformed| malformed.at(path, section.offset))?;
        Ok(SegmentMetadata {
            footer,
            footer_checksum,
            salt,
            sections,
            properties,
            parts: RwLock::default(),
        })
    }

    /// Checks by its footer that the file is the one that this describes.
    pub(super) fn check_same(&self, file: &dyn VfsFile, path: &Path) -> Result<()> {
        let len = file_len(file, path)?;
        let footer_len = len.min(FOOTER_LEN as u64);
        let bytes = read_at(file, path, len - footer_len, footer_len, len)?;
        let (footer, checksum) = Footer::decode(&bytes, len)
            .map_err(|malformed| malformed.at(path, len - footer_len))?;
        if footer != self.footer || checksum != self.footer_checksum {
            return Err(Error::corruption(
                path,
                len - footer_len,
                "it is not the segment that the metadata describes",
            ));
        }
        Ok(())
    }
}

/// Checks the checksum of a section that has one.
pub(super) fn check_section(
    bytes: &[u8],
    section: &Section,
    salt: u64,
) -> std::result::Result<(), Malformed> {
    if checksum(salt, section.offset, bytes) != section.checksum {
        return Err(Malformed::Damaged("a section's checksum does not match"));
    }
    Ok(())
}

pub(super) fn file_len(file: &dyn VfsFile, path: &Path) -> Result<u64> {
    file.len().map_err(|error| Error::io("measure", path, error))
}

/// Reads `len` bytes at `offset` of a file that is `file_len` bytes long. Nothing is allocated for
/// a range that is not within the file.
pub(super) fn read_at(
    file: &dyn VfsFile,
    path: &Path,
    offset: u64,
    len: u64,
    file_len: u64,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; check_range(path, offset, len, file_len)?];
    fill(file, path, offset, &mut bytes)?;
    Ok(bytes)
}

/// The same, behind what the buffer holds.
pub(super) fn read_onto(
    file: &dyn VfsFile,
    path: &Path,
    offset: u64,
    len: u64,
    file_len: u64,
    bytes: &mut Vec<u8>,
) -> Result<()> {
    let start = bytes.len();
    bytes.resize(start + check_range(path, offset, len, file_len)?, 0);
    fill(file, path, offset, bytes.get_mut(start..).unwrap_or_default())
}

/// The same, in the place of what the buffer holds. After an error that is arbitrary.
pub(super) fn read_over(
    file: &dyn VfsFile,
    path: &Path,
    offset: u64,
    len: u64,
    file_len: u64,
    bytes: &mut Vec<u8>,
) -> Result<()> {
    bytes.resize(check_range(path, offset, len, file_len)?, 0);
    fill(file, path, offset, bytes)
}

/// Fills a buffer from `offset` of a file that is `file_len` bytes long.
pub(super) fn read_into(
    file: &dyn VfsFile,
    path: &Path,
    offset: u64,
    file_len: u64,
    bytes: &mut [u8],
) -> Result<()> {
    check_range(path, offset, bytes.len() as u64, file_len)?;
    fill(file, path, offset, bytes)
}

const CUT: &str = "the file ends before it";

/// The length, if the range is within the file and fits memory.
fn check_range(path: &Path, offset: u64, len: u64, file_len: u64) -> Result<usize> {
    if offset.checked_add(len).is_none_or(|end| end > file_len) {
        return Err(Error::corruption(path, offset, CUT));
    }
    usize::try_from(len).map_err(|_| {
        Error::io("read", path, io::Error::other("it does not fit this machine's memory"))
    })
}

fn fill(file: &dyn VfsFile, path: &Path, offset: u64, bytes: &mut [u8]) -> Result<()> {
    file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::corruption(path, offset, CUT),
        _ => Error::io("read", path, error),
    })
}
