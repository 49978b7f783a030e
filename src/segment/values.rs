//! Value segments: immutable files of long values, which entries of segments refer to (FORMAT.md section 10).
//!
//! ```text
//! 0            record · record · …      checksum, lengths, codec, the value as stored
//! end - 96     footer
//! ```
//!
//! [`ValueWriter`] appends values and says of each where it lies; [`ValueReader`] reads one by such a
//! [`Reference`], in one read, or all to verify them. A reference has the checksum of its record, so that a
//! file that was swapped, or a reference that leads astray, is found without looking at the footer.
//!
//! Invariants: every byte is covered by a checksum that binds it to the file and its place; any bytes at all
//! give a value or a typed error; a length whose checksum was not tested yet asks for no more memory than the
//! file is long. Which values are still referred to, nothing in here knows. A writer belongs to one thread at a
//! time; a reader is `Send + Sync`. Called by flush, compaction, repair and the version room.

#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::unwrap_used))]

use super::block::raw_limit;
use super::metadata::{file_len, read_at};
use super::reader::open_file;
use super::verify::Unreadable;
use super::{Damage, FileSource};
use crate::checksum::{checksum, mend_one_bit, uuid_salt};
use crate::coding::{Reader, put_u32, put_u64};
use crate::compression::{CODEC_NONE, Compression, Compressor, decompress};
use crate::error::{Error, Malformed, Result};
use crate::types::{KeyspaceId, REFERENCE_LEN, SegmentId};
use crate::vfs::{Env, OpenMode, VfsFile};
use bytes::Bytes;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// In front of each value.
const RECORD_HEADER_LEN: usize = 20;
const FOOTER_LEN: usize = 96;
const MAGIC: &[u8; 8] = b"ASHLRVAL";
const VERSION: u32 = 1;
/// What was appended is written to the file in pieces of at least this many bytes.
const WRITE_LEN: usize = 256 << 10;
/// A value must shrink by this share, or it is not worth decompressing at every read.
const WORTHWHILE: usize = 16;

/// Where a value lies, as an entry has it in the place of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// The value segment.
    pub(crate) file: SegmentId,
    /// Where in it the record starts.
    pub(crate) offset: u64,
    /// How many bytes the value takes as stored.
    pub(crate) stored: u32,
    /// The length of the value.
    pub(crate) raw: u32,
    /// The record's checksum.
    pub(crate) checksum: u64,
}

impl Reference {
    pub(crate) fn encode(&self) -> [u8; REFERENCE_LEN] {
        let mut out = Vec::with_capacity(REFERENCE_LEN);
        put_u64(&mut out, self.file.0);
        put_u64(&mut out, self.offset);
        put_u32(&mut out, self.stored);
        put_u32(&mut out, self.raw);
        put_u64(&mut out, self.checksum);
        // It is exactly so long.
        out.first_chunk().copied().unwrap_or([0; REFERENCE_LEN])
    }

    /// Of the value of an entry, without its expiry.
    pub(crate) fn decode(bytes: &[u8]) -> std::result::Result<Reference, Malformed> {
        let mut reader = Reader::new(bytes);
        let reference = Reference {
            file: SegmentId(reader.u64()?),
            offset: reader.u64()?,
            stored: reader.u32()?,
            raw: reader.u32()?,
            checksum: reader.u64()?,
        };
        if reader.is_empty() {
            Ok(reference)
        } else {
            Err(Malformed::Damaged("a reference to a value has the wrong length"))
        }
    }

    /// How many bytes of the value segment it takes.
    pub(crate) fn record_len(&self) -> u64 {
        RECORD_HEADER_LEN as u64 + u64::from(self.stored)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ValueFooter {
    uuid: [u8; 16],
    /// Where the records end.
    end: u64,
    values: u64,
    raw_bytes: u64,
    created_ms: u64,
    keyspace: KeyspaceId,
}

impl ValueFooter {
    fn encode(&self) -> (Vec<u8>, u64) {
        let mut out = self.uuid.to_vec();
        let len = self.end + FOOTER_LEN as u64;
        for number in [self.end, self.values, self.raw_bytes, self.created_ms, len] {
            put_u64(&mut out, number);
        }
        put_u32(&mut out, VERSION);
        put_u32(&mut out, self.keyspace.0);
        out.resize(80, 0);
        out.extend_from_slice(MAGIC);
        let sum = checksum(0, len, &out);
        put_u64(&mut out, sum);
        (out, sum)
    }

    /// Of the last bytes of a file of this length; with its checksum.
    fn decode(bytes: &[u8], len: u64) -> std::result::Result<(ValueFooter, u64), Malformed> {
        const CUT: Malformed = Malformed::Damaged("it is not a value segment, or was cut short");
        let covered = bytes.get(..88).filter(|_| bytes.len() == FOOTER_LEN).ok_or(CUT)?;
        let mut reader = Reader::new(bytes);
        let uuid: [u8; 16] = reader.bytes(16)?.try_into().map_err(|_| CUT)?;
        let (end, values) = (reader.u64()?, reader.u64()?);
        let (raw_bytes, created_ms, recorded) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let (version, keyspace) = (reader.u32()?, KeyspaceId(reader.u32()?));
        let reserved = reader.bytes(16)?;
        if reader.bytes(8)? != MAGIC {
            return Err(CUT);
        }
        let sum = reader.u64()?;
        if checksum(0, recorded, covered) != sum {
            return Err(Malformed::Damaged("the footer's checksum does not match"));
        }
        match version {
            VERSION => {}
            0 => return Err(Malformed::Damaged("format version 0 never was")),
            _ => return Err(Malformed::Unsupported("a newer version of the library wrote it")),
        }
        if reserved.iter().any(|byte| *byte != 0) {
            return Err(Malformed::Damaged("a reserved field of the footer is not zero"));
        }
        if recorded != len || end.checked_add(FOOTER_LEN as u64) != Some(len) {
            return Err(Malformed::Damaged("the file is not as long as its footer says"));
        }
        // A record has twenty bytes at least.
        if values == 0 || values > end / RECORD_HEADER_LEN as u64 {
            return Err(Malformed::Damaged("the number of values cannot be right"));
        }
        Ok((ValueFooter { uuid, end, values, raw_bytes, created_ms, keyspace }, sum))
    }
}

/// A value segment as those that refer to it know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ValueIdentity {
    /// In bytes.
    pub(crate) file_len: u64,
    /// The checksum in its footer.
    pub(crate) checksum: u64,
}

/// Writes one value segment. If it is given up, the file is left as it is: remove it.
pub(crate) struct ValueWriter {
    id: SegmentId,
    path: PathBuf,
    file: Arc<dyn VfsFile>,
    salt: u64,
    footer: ValueFooter,
    compressor: Option<Compressor>,
    codec: u8,
    compressed: Vec<u8>,
    out: Vec<u8>,
    /// What was written to the file, in bytes.
    written: u64,
}

impl ValueWriter {
    /// Creates the file, which must not exist.
    pub(crate) fn create(
        env: &Env,
        path: PathBuf,
        id: SegmentId,
        keyspace: KeyspaceId,
        compression: Compression,
    ) -> Result<ValueWriter> {
        let compressor = match compression {
            Compression::None => None,
            other => Some(Compressor::new(other).map_err(|reason| Error::InvalidOption {
                option: "compression",
                reason: reason.to_owned(),
            })?),
        };
        let file = env
            .vfs
            .open(&path, OpenMode::CreateNew)
            .map_err(|error| Error::io("create", &path, error))?;
        let uuid = env.uuid();
        let created_ms = env.clock.unix_ms();
        let footer = ValueFooter { uuid, end: 0, values: 0, raw_bytes: 0, created_ms, keyspace };
        Ok(ValueWriter {
            id,
            path,
            file,
            salt: uuid_salt(&uuid),
            footer,
            compressor,
            codec: compression.codec(),
            compressed: Vec::new(),
            out: Vec::new(),
            written: 0,
        })
    }

    /// Its number.
    pub(crate) fn id(&self) -> SegmentId {
        self.id
    }

    /// Its file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How long it is so far, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.footer.end
    }

    /// Appends a value of at most [`MAX_VALUE_LEN`](crate::MAX_VALUE_LEN) bytes. An error is final.
    pub(crate) fn add(&mut self, value: &[u8]) -> Result<Reference> {
        let raw =
            u32::try_from(value.len()).map_err(|_| Error::ValueTooLong { len: value.len() })?;
        let shrank = self.compressor.as_mut().is_some_and(|compressor| {
            compressor.compress(value, &mut self.compressed)
                && self.compressed.len() <= value.len() - value.len() / WORTHWHILE
        });
        let stored = if shrank { &self.compressed[..] } else { value };
        let (start, offset) = (self.out.len(), self.footer.end);
        let stored_len = stored.len() as u32;
        put_u64(&mut self.out, 0);
        put_u32(&mut self.out, stored_len);
        put_u32(&mut self.out, raw);
        self.out.extend_from_slice(&[if shrank { self.codec } else { CODEC_NONE }, 0, 0, 0]);
        self.out.extend_from_slice(stored);
        let sum = checksum(self.salt, offset, self.out.get(start + 8..).unwrap_or_default());
        if let Some(place) = self.out.get_mut(start..start + 8) {
            place.copy_from_slice(&sum.to_le_bytes());
        }
        let reference = Reference { file: self.id, offset, stored: stored_len, raw, checksum: sum };
        self.footer.end += reference.record_len();
        self.footer.values += 1;
        self.footer.raw_bytes += u64::from(raw);
        if self.out.len() >= WRITE_LEN {
            self.flush()?;
        }
        Ok(reference)
    }

    fn flush(&mut self) -> Result<()> {
        let written = self.file.write_all_at(&self.out, self.written);
        written.map_err(|error| Error::io("write", &self.path, error))?;
        self.written += self.out.len() as u64;
        self.out.clear();
        // A huge value must not hold its memory for the rest of the file.
        self.out.shrink_to(8 * WRITE_LEN);
        self.compressed.shrink_to(8 * WRITE_LEN);
        Ok(())
    }

    /// Writes what is left and makes the file durable; its entry in the directory is for the caller.
    pub(crate) fn finish(mut self) -> Result<ValueIdentity> {
        let (footer, sum) = self.footer.encode();
        self.out.extend_from_slice(&footer);
        self.flush()?;
        self.file.sync_data().map_err(|error| Error::io("sync", &self.path, error))?;
        Ok(ValueIdentity { file_len: self.written, checksum: sum })
    }
}

/// What was found in a value segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ValueReport {
    /// Values that were read and found sound.
    pub(crate) values: u64,
    pub(crate) damage: Vec<Damage>,
}

/// Reads one value segment.
pub(crate) struct ValueReader {
    source: Arc<dyn FileSource>,
    path: PathBuf,
    salt: u64,
    footer: ValueFooter,
    identity: ValueIdentity,
}

impl std::fmt::Debug for ValueReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ValueReader")
            .field("path", &self.path)
            .field("footer", &self.footer)
            .finish_non_exhaustive()
    }
}

impl ValueReader {
    /// Opens a value segment: one read of its end.
    pub(crate) fn open(source: Arc<dyn FileSource>, path: PathBuf) -> Result<ValueReader> {
        let (bytes, at, len) = read_footer(source.as_ref(), &path)?;
        let (footer, checksum) =
            ValueFooter::decode(&bytes, len).map_err(|malformed| malformed.at(&path, at))?;
        Ok(ValueReader::with(source, path, footer, ValueIdentity { file_len: len, checksum }))
    }

    /// The same in an environment, without a pool of files.
    pub(crate) fn open_in(env: &Env, path: &Path) -> Result<ValueReader> {
        ValueReader::open(open_file(env, path)?, path.to_path_buf())
    }

    /// The same, past a flipped bit in the footer; then what is wrong comes with it.
    pub(crate) fn salvage(
        source: Arc<dyn FileSource>,
        path: PathBuf,
    ) -> Result<(ValueReader, Option<Error>)> {
        let (bytes, at, len) = read_footer(source.as_ref(), &path)?;
        let decode = |bytes: &[u8]| ValueFooter::decode(bytes, len);
        let ((footer, checksum), wrong) = match decode(&bytes) {
            Ok(decoded) => (decoded, None),
            Err(malformed @ Malformed::Unsupported(_)) => return Err(malformed.at(&path, at)),
            Err(malformed) => {
                let error = malformed.at(&path, at);
                let mended = mend_one_bit(&bytes, FOOTER_LEN, |bytes| decode(bytes).ok());
                (mended.ok_or_else(|| error.clone())?, Some(error))
            }
        };
        let identity = ValueIdentity { file_len: len, checksum };
        Ok((ValueReader::with(source, path, footer, identity), wrong))
    }

    fn with(
        source: Arc<dyn FileSource>,
        path: PathBuf,
        footer: ValueFooter,
        identity: ValueIdentity,
    ) -> ValueReader {
        ValueReader { source, path, salt: uuid_salt(&footer.uuid), footer, identity }
    }

    /// What tells it from other files.
    pub(crate) fn identity(&self) -> ValueIdentity {
        self.identity
    }

    /// How many bytes its values take, as stored.
    pub(crate) fn bytes(&self) -> u64 {
        self.footer.end
    }

    /// Reads a value: one read of the file, a checksum, and its decompression.
    pub(crate) fn get(&self, reference: &Reference) -> Result<Bytes> {
        let Reference { offset, stored, raw, .. } = *reference;
        let malformed = |malformed: Malformed| malformed.at(&self.path, offset);
        let damaged = |what| malformed(Malformed::Damaged(what));
        if offset.checked_add(reference.record_len()).is_none_or(|end| end > self.footer.end) {
            return Err(damaged("a reference leads past the values of the file"));
        }
        let mut record = Vec::new();
        self.source.with(&mut |file| {
            record =
                read_at(file, &self.path, offset, reference.record_len(), self.identity.file_len)?;
            Ok(())
        })?;
        let (header, sum) = RecordHeader::decode(&record, self.salt, offset).map_err(malformed)?;
        if sum != reference.checksum || (header.stored, header.raw) != (stored, raw) {
            return Err(damaged("it is not the value that the reference means"));
        }
        header.value(record).map_err(malformed)
    }

    /// Reads everything and checks it. `progress` is called with the bytes done. What the operating system
    /// cannot read is damage.
    pub(crate) fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<ValueReport> {
        self.verify_all(progress, Unreadable::Damage)
    }

    /// The same, but what the operating system cannot read is an error.
    pub(crate) fn verify_readable(&self, progress: &mut dyn FnMut(u64)) -> Result<ValueReport> {
        self.verify_all(progress, Unreadable::Failure)
    }

    fn verify_all(
        &self,
        progress: &mut dyn FnMut(u64),
        unreadable: Unreadable,
    ) -> Result<ValueReport> {
        let mut report = ValueReport::default();
        let damage = |offset, what: String| Damage { offset, block: None, key_range: None, what };
        let file = self.source.file()?;
        let (mut at, mut raw_bytes) = (0, 0);
        while at < self.footer.end {
            let outcome = self.verify_record(file.as_ref(), at);
            match outcome {
                Ok((len, raw)) => {
                    report.values += 1;
                    raw_bytes += u64::from(raw);
                    at += len;
                }
                Err(Error::Corruption { offset, what, .. }) => {
                    report.damage.push(damage(offset, what));
                    at = self.next_record(file.as_ref(), at);
                }
                Err(error @ Error::Io { .. }) if unreadable == Unreadable::Damage => {
                    report.damage.push(damage(at, error.to_string()));
                    break;
                }
                Err(other) => return Err(other),
            }
            progress(at);
        }
        let footer = &self.footer;
        if report.damage.is_empty()
            && (report.values, raw_bytes) != (footer.values, footer.raw_bytes)
        {
            let what = "the footer does not agree with the values";
            report.damage.push(damage(footer.end, what.to_owned()));
        }
        // It was sound when it was opened, perhaps long ago.
        match self.footer_now() {
            Ok(now) if now == *footer => {}
            Ok(_) => {
                let what = "the footer is not the one that was there when the file was opened";
                report.damage.push(damage(footer.end, what.to_owned()));
            }
            Err(Error::Corruption { what, .. } | Error::UnsupportedFormat { what, .. }) => {
                report.damage.push(damage(footer.end, what));
            }
            Err(error @ Error::Io { .. }) if unreadable == Unreadable::Damage => {
                report.damage.push(damage(footer.end, error.to_string()));
            }
            Err(other) => return Err(other),
        }
        Ok(report)
    }

    fn footer_now(&self) -> Result<ValueFooter> {
        let (bytes, at, len) = read_footer(self.source.as_ref(), &self.path)?;
        let decoded = ValueFooter::decode(&bytes, len);
        decoded.map(|(footer, _)| footer).map_err(|malformed| malformed.at(&self.path, at))
    }

    /// The length of the record at an offset, and of its value.
    fn verify_record(&self, file: &dyn VfsFile, at: u64) -> Result<(u64, u32)> {
        let malformed = |malformed: Malformed| malformed.at(&self.path, at);
        let len = self.footer.end;
        let head = read_at(file, &self.path, at, (RECORD_HEADER_LEN as u64).min(len - at), len)?;
        let stored = crate::coding::u32_at(&head, 8)
            .ok_or_else(|| malformed(Malformed::Damaged("a value is cut short")))?;
        let record_len = RECORD_HEADER_LEN as u64 + u64::from(stored);
        if record_len > len - at {
            return Err(malformed(Malformed::Damaged("a value is longer than the file")));
        }
        let record = read_at(file, &self.path, at, record_len, len)?;
        let (header, _) = RecordHeader::decode(&record, self.salt, at).map_err(malformed)?;
        header.value(record).map_err(malformed)?;
        Ok((record_len, header.raw))
    }

    /// Where the next record that verifies starts behind a damaged one: the one that its length leads to, or
    /// else the end of the file, since nothing tells where others begin but those that refer to them.
    fn next_record(&self, file: &dyn VfsFile, at: u64) -> u64 {
        let len = self.footer.end;
        let head = read_at(file, &self.path, at, (RECORD_HEADER_LEN as u64).min(len - at), len);
        let stored = head.ok().and_then(|head| crate::coding::u32_at(&head, 8));
        let next = stored.map(|stored| at + RECORD_HEADER_LEN as u64 + u64::from(stored));
        match next.filter(|next| *next < len) {
            Some(next) if self.verify_record(file, next).is_ok() => next,
            _ => len,
        }
    }
}

fn read_footer(source: &dyn FileSource, path: &Path) -> Result<(Vec<u8>, u64, u64)> {
    let file = source.file()?;
    let len = file_len(file.as_ref(), path)?;
    let at = len.saturating_sub(FOOTER_LEN as u64);
    Ok((read_at(file.as_ref(), path, at, len - at, len)?, at, len))
}

/// What stands in front of a value.
struct RecordHeader {
    stored: u32,
    raw: u32,
    codec: u8,
}

impl RecordHeader {
    /// Of a whole record that starts at `offset`; with its checksum, which is tested first.
    fn decode(
        record: &[u8],
        salt: u64,
        offset: u64,
    ) -> std::result::Result<(RecordHeader, u64), Malformed> {
        let mut reader = Reader::new(record);
        let sum = reader.u64()?;
        if checksum(salt, offset, record.get(8..).unwrap_or_default()) != sum {
            return Err(Malformed::Damaged("the value's checksum does not match"));
        }
        let (stored, raw, codec) = (reader.u32()?, reader.u32()?, reader.u8()?);
        if reader.bytes(3)?.iter().any(|byte| *byte != 0) {
            return Err(Malformed::Damaged("a reserved field of a value is not zero"));
        }
        if reader.remaining() as u64 != u64::from(stored) {
            return Err(Malformed::Damaged("the value is not as long as it says"));
        }
        Ok((RecordHeader { stored, raw, codec }, sum))
    }

    /// The value of a record that was checked.
    fn value(&self, record: Vec<u8>) -> std::result::Result<Bytes, Malformed> {
        if self.codec == CODEC_NONE {
            if self.stored != self.raw {
                return Err(Malformed::Damaged("stored and raw length of a value differ"));
            }
            let record = Bytes::from(record);
            return Ok(record.slice(RECORD_HEADER_LEN.min(record.len())..));
        }
        let (stored, raw) = (u64::from(self.stored), u64::from(self.raw));
        if raw_limit(self.codec, stored).is_some_and(|limit| raw > limit) {
            return Err(Malformed::Damaged("the value's raw length cannot be right"));
        }
        let stored = record.get(RECORD_HEADER_LEN..).unwrap_or_default();
        // An unknown codec is said to be unknown before anything is allocated for it.
        let len = if raw_limit(self.codec, 0).is_some() { raw as usize } else { 0 };
        let mut value = vec![0; len];
        decompress(self.codec, stored, &mut value)?;
        Ok(Bytes::from(value))
    }
}

#[cfg(test)]
#[path = "values_tests.rs"]
mod tests;
