//! Reading all of a database to see whether it is sound: while it is open, and while it is not.
//!
//! The two differ in the logs. Of an open database it is known where each log ends, and everything in
//! front of that must be sound. Of a closed one, the end may be torn by a crash, and what is damage is
//! judged as at opening. Nothing is changed either way.
//!
//! What costs nothing and the next opening mends is a notice: a torn tail, a damaged copy of an edit of the
//! manifest whose other copy is sound. Everything else is damage, whether keys are lost by it or not.

use super::observe::Watch;
use super::open::LOCK_NAME;
use super::{DEFAULT_ID, DEFAULT_KEYSPACE, Inner};
use crate::checksum::uuid_salt;
use crate::error::{Error, Result};
use crate::segment::{
    Damage, SegmentReader, ValueIdentity, ValueReader, ValueReport, ValueUse, VerifyReport,
};
use crate::types::{KeyspaceId, LogId, SegmentId, SeqNo};
use crate::version::{
    MANIFEST_NAME, ManifestState, Salvaged, SegmentMeta, parse_segment_file_name,
    parse_value_file_name, salvage_manifest, segment_file_name, value_file_name,
};
use crate::vfs::{Env, OpenMode, VfsLock};
use crate::wal::{LogFiles, Walk, open_logs, parse_log_file_name};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use tracing::field::Empty;

/// What [`Db::verify`](crate::Db::verify) or [`Builder::verify`](crate::Builder::verify) found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DatabaseReport {
    /// Everything that is wrong: in the manifest, then in the logs, then in the segments. Empty: every
    /// byte that is needed is as it was written.
    pub damage: Vec<DamagedPlace>,
    /// What is worth knowing, costs nothing, and goes away when the database is opened: a torn tail of
    /// the logs, a damaged copy of an edit whose other copy is sound, files that nothing names. Each
    /// names the file.
    pub notices: Vec<String>,
    /// The logs that were read, oldest first.
    pub logs: Vec<LogReport>,
    /// The segments that were read, sound and damaged ones. What is wrong with them is in `damage`
    /// too; those that could not be opened are only there.
    pub segments: Vec<SegmentReport>,
    /// The value segments that were read, likewise.
    pub value_segments: Vec<ValueSegmentReport>,
}

/// What was found in one value segment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ValueSegmentReport {
    /// The file.
    pub file: PathBuf,
    /// The name of its keyspace.
    pub keyspace: String,
    /// Values that were read and found sound, also such that nothing refers to any more.
    pub values: u64,
}

impl DatabaseReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty()
    }
}

/// Something that is wrong in a file of a database.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DamagedPlace {
    /// The file.
    pub file: PathBuf,
    /// Where in the file the damaged structure starts, in bytes.
    pub offset: u64,
    /// The number of the data block, if it is one and the index could be read up to it.
    pub block: Option<u32>,
    /// The name of the keyspace, in a segment.
    pub keyspace: Option<String>,
    /// The keys that cannot be read: above the first and up to the second (the first key of a segment
    /// counts as lost with its block 0 or with the whole segment). `None` if no keys are lost, or it is
    /// not known which.
    pub key_range: Option<(Vec<u8>, Vec<u8>)>,
    /// What was found.
    pub what: String,
}

/// What was found in one log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogReport {
    /// The file.
    pub file: PathBuf,
    /// Records that were read and found sound.
    pub records: u64,
    /// What they and the header take, in bytes.
    pub bytes: u64,
}

/// What was found in one segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentReport {
    /// The file.
    pub file: PathBuf,
    /// The name of its keyspace.
    pub keyspace: String,
    /// What was read and what was damaged.
    pub report: VerifyReport,
}

impl DamagedPlace {
    /// A place in something else than a segment.
    pub(super) fn new(file: &Path, offset: u64, what: impl Into<String>) -> DamagedPlace {
        let (file, what) = (file.to_path_buf(), what.into());
        DamagedPlace { file, offset, block: None, keyspace: None, key_range: None, what }
    }

    /// What was damaged in a segment.
    pub(super) fn in_segment(file: &Path, keyspace: &str, damage: Damage) -> DamagedPlace {
        let Damage { offset, block, key_range, what } = damage;
        let (file, keyspace) = (file.to_path_buf(), Some(keyspace.to_owned()));
        DamagedPlace { file, offset, block, keyspace, key_range, what }
    }

    /// What an error says about the state of a file. Others are given back.
    pub(super) fn from_error(path: &Path, error: Error) -> Result<DamagedPlace> {
        match error {
            Error::Corruption { file, offset, what } => Ok(DamagedPlace::new(&file, offset, what)),
            Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Ok(DamagedPlace::new(path, 0, "it is needed, and it is missing"))
            }
            Error::Io { operation: "open", .. } => Err(error),
            Error::Io { .. } => Ok(DamagedPlace::new(path, 0, error.to_string())),
            other => Err(other),
        }
    }
}

/// What a keyspace is called whose name is lost.
pub(super) fn lost_name(id: KeyspaceId) -> String {
    if id == DEFAULT_ID { DEFAULT_KEYSPACE.to_owned() } else { format!("keyspace-{id}") }
}

/// A database that is locked and not open, as far as it can be read.
pub(super) struct Closed {
    pub(super) manifest: Salvaged,
    pub(super) logs: LogFiles,
    /// The segment files in the directory, in order.
    pub(super) segments: Vec<SegmentId>,
    /// The value segment files likewise.
    pub(super) values: Vec<SegmentId>,
    pub(super) notices: Vec<String>,
    _lock: Option<Box<dyn VfsLock>>,
}

impl Closed {
    /// Locks the directory and reads its manifest.
    pub(super) fn open(env: &Env, dir: &Path) -> Result<Closed> {
        let refuse = |why: &str| {
            let (path, why) = (dir.to_path_buf(), why.to_owned());
            Err(Error::NotADatabase { path, why })
        };
        if !env.vfs.exists(dir).map_err(|error| Error::io("look for", dir, error))? {
            return refuse("there is no such directory");
        }
        let names = env.vfs.read_dir(dir).map_err(|error| Error::io("list", dir, error))?;
        let is_ours = |name: &String| {
            name == MANIFEST_NAME
                || parse_segment_file_name(name).is_some()
                || parse_log_file_name(name).is_some()
        };
        if !names.iter().any(is_ours) {
            return refuse("it has neither a MANIFEST nor logs nor segments");
        }
        let path = dir.join(LOCK_NAME);
        let lock = match env.vfs.lock(&path) {
            Ok(None) => return Err(Error::Locked { path: dir.to_path_buf() }),
            // Nobody can have opened it here, and nobody can.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => None,
            lock => lock.map_err(|error| Error::io("lock", &path, error))?,
        };
        let mut manifest = salvage_manifest(env, dir)?;
        let floor = manifest.state.as_ref().map_or(LogId(0), |state| state.log_floor);
        let logs = open_logs(env, dir, floor, LogId(u64::MAX))?;
        let mut segments: Vec<_> =
            names.iter().filter_map(|name| parse_segment_file_name(name)).collect();
        segments.sort_unstable();
        let mut values: Vec<_> =
            names.iter().filter_map(|name| parse_value_file_name(name)).collect();
        values.sort_unstable();
        let notices = std::mem::take(&mut manifest.notices);
        Ok(Closed { manifest, logs, segments, values, notices, _lock: lock })
    }

    /// Walks over the logs; the places are damage, and torn tails are added to the notices.
    pub(super) fn walk_logs(
        &mut self,
        dir: &Path,
        sink: &mut dyn FnMut(SeqNo, crate::wal::Op<'_>) -> Result<()>,
    ) -> Result<Walk> {
        let state = self.manifest.state.as_ref().ok();
        let uuid = state.map(|state| state.uuid).or(self.manifest.uuid);
        let floor = state.map(|state| state.log_floor);
        let salt = uuid.map(|uuid| uuid_salt(&uuid));
        // A uuid out of a manifest that cannot be read is right if it fits the logs.
        let salt = salt.filter(|salt| state.is_some() || self.logs.belong_to(*salt));
        let mut walk = self.logs.walk(dir, salt, floor, None, sink)?;
        for stray in std::mem::take(&mut walk.strays) {
            let stray = stray.display();
            self.notices.push(format!("{stray}: it is no part of the chain of logs"));
        }
        Ok(walk)
    }

    /// What opening would miss although each record is sound.
    pub(super) fn missing_operations(&self, dir: &Path, walk: &Walk) -> Option<DamagedPlace> {
        let state = self.manifest.state.as_ref().ok()?;
        if walk.manifest_edit > state.edit_number {
            let (found, noted) = (state.edit_number, walk.manifest_edit);
            let what =
                format!("it ends at edit {found}, but the log notes edit {noted} as durable");
            return Some(DamagedPlace::new(&dir.join(MANIFEST_NAME), 0, what));
        }
        let (file, end) = walk.end.as_ref()?;
        let clear = state.keyspaces.values().filter_map(|keyspace| keyspace.clears.last()).max();
        let what = if walk.base.is_some_and(|base| base > state.flushed) {
            let first = walk.logs.first().map_or(file, |log| &log.file);
            return Some(DamagedPlace::new(first, 48, "operations before this log are nowhere"));
        } else if walk.last_seqno < state.flushed {
            "the logs end before what was flushed from them"
        } else if clear.is_some_and(|clear| *clear > walk.last_seqno) {
            "the log ends before a clear that the manifest has: its end was damaged"
        } else {
            return None;
        };
        Some(DamagedPlace::new(file, *end, what))
    }
}

impl DatabaseReport {
    fn add_walk(&mut self, walk: &Walk) {
        for hole in &walk.holes {
            if hole.torn {
                let (file, at, what) = (hole.file.display(), hole.offset, &hole.what);
                self.notices.push(format!("{file}: a torn tail from byte {at} on: {what}"));
            } else {
                self.damage.push(DamagedPlace::new(&hole.file, hole.offset, hole.what.clone()));
            }
        }
        for log in &walk.logs {
            let (file, records, bytes) = (log.file.clone(), log.records, log.bytes);
            self.logs.push(LogReport { file, records, bytes });
        }
    }

    fn note(&self, span: &tracing::Span, bytes: u64, watch: &Watch<'_>) {
        span.record("bytes_in", bytes);
        span.record("damage", self.damage.len());
        watch.note(span);
    }

    fn add_segment(&mut self, file: PathBuf, keyspace: String, report: VerifyReport) {
        let places = report.damage.iter().cloned();
        self.damage.extend(places.map(|damage| DamagedPlace::in_segment(&file, &keyspace, damage)));
        self.segments.push(SegmentReport { file, keyspace, report });
    }

    fn add_values(&mut self, file: PathBuf, keyspace: String, report: ValueReport) {
        let places = report.damage.into_iter();
        self.damage.extend(places.map(|damage| DamagedPlace::in_segment(&file, &keyspace, damage)));
        let values = report.values;
        self.value_segments.push(ValueSegmentReport { file, keyspace, values });
    }

    /// Verifies a value segment that a segment lists.
    fn read_values(
        &mut self,
        env: &Env,
        path: PathBuf,
        listed: Listed,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let Listed { used, keyspace, key_range } = listed;
        let wanted = ValueIdentity { file_len: used.file_len, checksum: used.checksum };
        let opened = ValueReader::open_in(env, &path).and_then(|reader| {
            let what =
                "it is not the value segment that a segment refers to (swapped or overwritten)";
            let is_that = reader.identity() == wanted;
            if is_that { Ok(reader) } else { Err(Error::corruption(&path, 0, what)) }
        });
        match opened {
            Ok(reader) => {
                let found = reader.verify(progress)?;
                self.add_values(path, keyspace, found);
            }
            Err(error) => {
                let mut place = DamagedPlace::from_error(&path, error)?;
                (place.keyspace, place.key_range) = (Some(keyspace), Some(key_range));
                self.damage.push(place);
            }
        }
        Ok(())
    }

    /// Verifies a segment; `named` is what the manifest says of it.
    pub(super) fn read_segment(
        &mut self,
        env: &Env,
        path: PathBuf,
        named: Option<(&SegmentMeta, &ManifestState)>,
        lists: &mut BTreeMap<SegmentId, Listed>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let name = named.and_then(|(meta, state)| state.keyspaces.get(&meta.keyspace));
        let name = name.map(|keyspace| keyspace.name.clone());
        let opened = SegmentReader::open_in(env, &path).and_then(|reader| {
            let is_that = named.is_none_or(|(meta, _)| {
                meta.file_len == reader.file_len() && meta.checksum == reader.footer_checksum()
            });
            let what = "it is not the segment that the manifest names (swapped or overwritten)";
            if is_that { Ok(reader) } else { Err(Error::corruption(&path, 0, what)) }
        });
        match opened {
            Ok(reader) => {
                let id = reader.properties().keyspace;
                let name = name.or(id.map(lost_name)).unwrap_or_default();
                let report = reader.verify_with(progress)?;
                let last = reader.last_key().map_or_else(|_| Vec::new(), |key| key.to_vec());
                for used in &reader.properties().value_segments {
                    let first = reader.properties().first_key.clone();
                    let key_range = (first, last.clone());
                    let own = Listed { used: *used, keyspace: name.clone(), key_range };
                    lists.entry(used.id).or_insert_with(|| own.clone()).widen(&own);
                }
                self.add_segment(path, name, report);
            }
            Err(error) => {
                let mut place = DamagedPlace::from_error(&path, error)?;
                place.keyspace = name;
                place.key_range =
                    named.map(|(meta, _)| (meta.first_key.to_vec(), meta.last_key.to_vec()));
                self.damage.push(place);
            }
        }
        Ok(())
    }
}

/// A value segment, as those segments know it that list it, and the keys between which theirs lie.
#[derive(Clone)]
pub(super) struct Listed {
    used: ValueUse,
    keyspace: String,
    key_range: (Vec<u8>, Vec<u8>),
}

impl Listed {
    fn widen(&mut self, other: &Listed) {
        let (first, last) = &mut self.key_range;
        if other.key_range.0 < *first {
            first.clone_from(&other.key_range.0);
        }
        if other.key_range.1 > *last {
            last.clone_from(&other.key_range.1);
        }
    }
}

/// The length of a file, or nothing if it cannot be had: for progress only.
pub(super) fn len_of(env: &Env, path: &Path) -> u64 {
    env.vfs.open(path, OpenMode::Read).and_then(|file| file.len()).unwrap_or_default()
}

/// See [`crate::Builder::verify`].
pub(super) fn verify_closed(
    dir: &Path,
    env: &Env,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<DatabaseReport> {
    let span = verify_span(dir);
    let _entered = span.enter();
    let watch = Watch::start(&*env.clock);
    let mut closed = Closed::open(env, dir)?;
    let mut report = DatabaseReport::default();
    let manifest = dir.join(MANIFEST_NAME);
    if let Some(error) = closed.manifest.mended.take() {
        report.damage.push(DamagedPlace::from_error(&manifest, error)?);
    }
    let mut paths = Vec::new();
    match &closed.manifest.state {
        Ok(state) => {
            paths.extend(state.segments.keys().map(|id| dir.join(segment_file_name(*id))));
            for id in closed.segments.iter().filter(|id| !state.segments.contains_key(id)) {
                let path = dir.join(segment_file_name(*id));
                let path = path.display();
                closed.notices.push(format!("{path}: the manifest does not name it"));
            }
        }
        Err(error) => {
            report.damage.push(DamagedPlace::from_error(&manifest, error.clone())?);
            paths.extend(closed.segments.iter().map(|id| dir.join(segment_file_name(*id))));
        }
    }
    let values: Vec<_> = closed.values.iter().map(|id| dir.join(value_file_name(*id))).collect();
    let files = paths.iter().chain(&values);
    let total = closed.logs.bytes() + files.map(|path| len_of(env, path)).sum::<u64>();
    let walk = closed.walk_logs(dir, &mut |_, _| Ok(()))?;
    report.add_walk(&walk);
    if report.logs.is_empty() || walk.holes.iter().all(|hole| !hole.loses || hole.torn) {
        report.damage.extend(closed.missing_operations(dir, &walk));
    }
    let mut done = closed.logs.bytes();
    progress(done, total);
    let state = closed.manifest.state.as_ref().ok();
    let metas: Vec<_> = state.iter().flat_map(|state| state.segments.values()).collect();
    let mut lists = BTreeMap::new();
    for (at, path) in paths.into_iter().enumerate() {
        let len = len_of(env, &path);
        let named = state.and_then(|state| Some((metas.get(at)?.as_ref(), state)));
        let mut inside = |inside, _| progress(done + inside, total);
        report.read_segment(env, path, named, &mut lists, &mut inside)?;
        done += len;
        progress(done, total);
    }
    for id in closed.values.iter().filter(|id| !lists.contains_key(id)) {
        let path = dir.join(value_file_name(*id));
        let path = path.display();
        closed.notices.push(format!("{path}: no segment that can be read refers to it"));
    }
    for (id, listed) in lists {
        let path = dir.join(value_file_name(id));
        let len = len_of(env, &path);
        report.read_values(env, path, listed, &mut |inside| progress(done + inside, total))?;
        done += len;
    }
    progress(total, total);
    report.notices.append(&mut closed.notices);
    report.note(&span, total, &watch);
    Ok(report)
}

/// For all that is read to be verified.
fn verify_span(dir: &Path) -> tracing::Span {
    let dir = dir.display();
    tracing::info_span!("verify", %dir, bytes_in = Empty, damage = Empty, micros = Empty)
}

impl Inner {
    /// See [`crate::Db::verify`].
    pub(super) fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<DatabaseReport> {
        self.check_open()?;
        let (env, dir) = (&self.home.env, &self.home.dir);
        let span = verify_span(dir);
        let _entered = span.enter();
        let watch = self.watch();
        let mut report = DatabaseReport::default();
        let (logs, floor, end) = {
            // No log is begun or appended to, and none is given up, while these are opened.
            let writer = self.writer.lock();
            let committer = self.committer.lock();
            let floor = committer.state.log_floor;
            let mut logs = open_logs(env, dir, floor, writer.log.id())?;
            logs.end_at(writer.log.end());
            (logs, floor, writer.log.end())
        };
        {
            // No edit is appended while the manifest is read.
            let _committer = self.committer.lock();
            let manifest = salvage_manifest(env, dir)?;
            let damage = manifest.mended.or(manifest.state.err());
            let damage = damage.map(|e| DamagedPlace::from_error(&dir.join(MANIFEST_NAME), e));
            report.damage.extend(damage.transpose()?);
            report.notices.extend(manifest.notices);
        }
        let state = self.state.load_full();
        let all: Vec<_> =
            state.version.trees.values().flat_map(|t| t.segments().cloned()).collect();
        let values: BTreeMap<_, _> = all
            .iter()
            .flat_map(|s| s.values().iter().map(|(used, file)| (used.id, (file, s.meta.keyspace))))
            .collect();
        let value_bytes: u64 = values.values().map(|(file, _)| file.identity().file_len).sum();
        let segment_bytes: u64 = all.iter().map(|s| s.meta.file_len).sum();
        let total = logs.bytes() + segment_bytes + value_bytes;
        report.add_walk(&logs.walk(
            dir,
            Some(self.log_salt),
            Some(floor),
            Some(end),
            &mut |_, _| Ok(()),
        )?);
        let mut done = logs.bytes();
        progress(done, total);
        let names = self.keyspaces.lock().clone();
        let name = |id| names.values().find(|c| c.id == id).map_or("", |c| &c.name).to_owned();
        for segment in &all {
            let mut inside = |at: u64, _| progress(done + at, total);
            let found = segment.reader().verify_with(&mut inside)?;
            done += segment.meta.file_len;
            progress(done, total);
            report.add_segment(segment.path(), name(segment.meta.keyspace), found);
        }
        for (file, keyspace) in values.into_values() {
            let found = file.verify(&mut |at| progress(done + at, total))?;
            done += file.identity().file_len;
            progress(done, total);
            report.add_values(file.path(), name(keyspace), found);
        }
        report.note(&span, total, &watch);
        Ok(report)
    }
}
