//! Repair: a new database with everything that can be read of a damaged one.
//!
//! ```text
//! logs, past damage ──── memtable ─┐
//! segments of each run, past ──────┼─ MergeCursor ── Newest ── write_run ── new database
//! damage, one cursor a run ────────┘      │
//!                                 Book: what was lost, and which keys older data stood in for
//! ```
//!
//! The new database has one sorted run a keyspace, at the bottom, with the newest versions and no
//! tombstones; the clears of the old one are applied and gone. Until it is complete it cannot be opened:
//! see [`unfinished`](super::unfinished).
//!
//! Without a manifest every segment file counts, and of two versions of a key the greater sequence number,
//! then the greater file number, wins; the logs come last, because a segment has an operation merged perhaps.
//! That may bring back what was removed, merge something twice, and take in what a load that failed left
//! behind, which the report says.
//!
//! Invariants: the old database is only read; nothing is taken that no checksum confirms; whatever is
//! passed over is in the report.

use super::observe::Watch;
use super::options::Options;
use super::repair_cursor::{Newest, OldValues, Piece, SalvagedRun};
use super::repair_report::{SavedKeyspace, SharedBook, Uncertainty};
use super::unfinished::{FIRST_LOG, NEXT_LOG, Unfinished};
use super::verify::{Closed, DamagedPlace, len_of, lost_name};
use super::{DEFAULT_ID, LostPlace, RepairReport};
use crate::cache::{FilePool, PooledFile};
use crate::compaction::{OlderData, OutputSpec, Retention, write_run};
use crate::cursor::Cursor;
use crate::deletes::RangeDeletes;
use crate::error::Result;
use crate::hash::{key_hash, keyspace_seed};
use crate::iter::{MergeCursor, View};
use crate::memtable::{Memtable, SkipMemtable};
use crate::segment::{Salvage, SegmentOptions};
use crate::sync::Arc;
use crate::types::{KeyspaceId, SegmentId, SeqNo};
use crate::version::{
    KeyspaceSettings, KeyspaceState, LEVELS, MANIFEST_NAME, ManifestState, RunNo, SegmentMeta,
    segment_file_name,
};
use crate::vfs::Env;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use tracing::field::Empty;

/// What is known of a keyspace of the old database.
struct Source {
    name: String,
    settings: KeyspaceSettings,
    hash_seed: u64,
    floor: Option<SeqNo>,
    deletes: Arc<RangeDeletes>,
    /// The runs, newest first, each of segments in key order.
    runs: Vec<Vec<Piece>>,
    /// Whether there are merge operands in segments that no manifest names, or in logs beside these.
    has_operands: bool,
    /// Whether there are segments that no manifest names and that were to come in past the log.
    has_loads: bool,
}

/// The old database.
struct Old<'a> {
    env: &'a Env,
    dir: &'a Path,
    files: Arc<FilePool>,
    keyspaces: BTreeMap<KeyspaceId, Source>,
    /// What is in the logs and not in segments.
    table: Arc<SkipMemtable>,
    /// Whether the manifest can be read, so that the order of the runs is their age.
    has_manifest: bool,
}

/// See [`crate::Builder::repair_into`].
pub(super) fn repair(
    dir: &Path,
    options: &Options,
    target: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<RepairReport> {
    let env = &options.env;
    let span = tracing::info_span!(
        "repair",
        dir = %dir.display(),
        target = %target.display(),
        keys = Empty,
        lost = Empty,
        micros = Empty,
    );
    let _entered = span.enter();
    let watch = Watch::start(&*env.clock);
    let mut closed = Closed::open(env, dir)?;
    let mut report = RepairReport::default();
    let new = Unfinished::create(env, target)?;
    let mut old = Old {
        env,
        dir,
        files: Arc::new(FilePool::new(Arc::clone(&env.vfs), options.max_open_files)),
        keyspaces: BTreeMap::new(),
        table: Arc::new(SkipMemtable::default()),
        has_manifest: closed.manifest.state.is_ok(),
    };
    old.read_manifest(&mut closed, &mut report)?;
    old.read_logs(&mut closed, &mut report)?;
    report.notices.append(&mut closed.notices);
    let state = old.write(options, &new, &mut report, progress)?;
    new.complete(env, &state)?;
    span.record("keys", report.keyspaces.iter().map(|k| k.keys).sum::<u64>());
    span.record("lost", report.lost.len());
    watch.note(&span);
    Ok(report)
}

impl Old<'_> {
    /// Learns which keyspaces and segments there are.
    fn read_manifest(&mut self, closed: &mut Closed, report: &mut RepairReport) -> Result<()> {
        let path = self.dir.join(MANIFEST_NAME);
        if let Some(error) = closed.manifest.mended.take() {
            report.notices.push(format!("{error}; a bit is flipped there, and nothing is lost"));
        }
        match &closed.manifest.state {
            Ok(state) => {
                self.arrange(state);
                let unnamed = closed.segments.iter().filter(|id| !state.segments.contains_key(id));
                for id in unnamed {
                    let path = self.dir.join(segment_file_name(*id));
                    report.left_out(&path, "the manifest does not name it");
                }
            }
            Err(error) => {
                let place = DamagedPlace::from_error(&path, error.clone())?;
                report.lost.push(LostPlace { place, older: 0 });
                let what = "the manifest is lost: keys that were removed or cleared, and keyspaces \
                            that were dropped, may be back, values may be older than they were, \
                            the names of keyspaces are made up, and their merge operators and times \
                            to live are to be given anew";
                let (keyspace, key_range) = (None, None);
                report.uncertain.push(Uncertainty { keyspace, key_range, what: what.into() });
                // What merges left over has the lower number, so the later file is asked first.
                for id in closed.segments.iter().rev() {
                    self.adopt(*id, report)?;
                }
                self.doubt_loads(report);
            }
        }
        self.keyspace(DEFAULT_ID);
        Ok(())
    }

    fn arrange(&mut self, state: &ManifestState) {
        for (id, keyspace) in &state.keyspaces {
            let source = Source {
                name: keyspace.name.clone(),
                settings: keyspace.settings.clone(),
                hash_seed: keyspace_seed(state.hash_seed, *id),
                floor: keyspace.clears.last().copied(),
                deletes: Arc::clone(&keyspace.deletes),
                runs: Vec::new(),
                has_operands: false,
                has_loads: false,
            };
            self.keyspaces.insert(*id, source);
        }
        let mut runs: BTreeMap<_, Vec<Arc<SegmentMeta>>> = BTreeMap::new();
        for meta in state.segments.values() {
            let run = (meta.keyspace, meta.level, std::cmp::Reverse(meta.run));
            runs.entry(run).or_default().push(Arc::clone(meta));
        }
        for ((keyspace, _, _), mut run) in runs {
            run.sort_by(|a, b| a.first_key.cmp(&b.first_key));
            let run = run.into_iter().map(Piece::Named).collect();
            self.keyspace(keyspace).runs.push(run);
        }
    }

    /// Takes a segment that no manifest describes.
    fn adopt(&mut self, id: SegmentId, report: &mut RepairReport) -> Result<()> {
        let path = self.dir.join(segment_file_name(id));
        let segment = match self.open(id, &path) {
            Ok(segment) => segment,
            Err(error) => {
                let place = DamagedPlace::from_error(&path, error)?;
                report.lost.push(LostPlace { place, older: 0 });
                return Ok(());
            }
        };
        let Some(properties) = &segment.properties else {
            let damage = segment.damage.into_iter().next_back();
            let what = damage.map_or_else(String::new, |damage| damage.what);
            let what = format!("it does not tell to which keyspace it belongs: {what}");
            let place = DamagedPlace::new(&path, 0, what);
            report.lost.push(LostPlace { place, older: 0 });
            return Ok(());
        };
        let Some(keyspace) = properties.keyspace else {
            report.left_out(&path, "it is a standalone segment");
            return Ok(());
        };
        let (hash_seed, has_operands) = (properties.hash_seed, properties.merge_operands > 0);
        let is_loaded = properties.numbered_from > SeqNo::ZERO;
        let source = self.keyspace(keyspace);
        source.hash_seed = hash_seed;
        source.has_operands |= has_operands;
        source.has_loads |= is_loaded;
        source.runs.push(vec![Piece::Opened(id, Box::new(segment))]);
        Ok(())
    }

    /// The keyspace with this id, with a made-up name if it is not known yet.
    fn keyspace(&mut self, id: KeyspaceId) -> &mut Source {
        let mut name = lost_name(id);
        while self.keyspaces.iter().any(|(other, known)| *other != id && known.name == name) {
            name.push('_');
        }
        self.keyspaces.entry(id).or_insert(Source {
            name,
            settings: KeyspaceSettings::default(),
            hash_seed: 0,
            floor: None,
            deletes: Arc::default(),
            runs: Vec::new(),
            has_operands: false,
            has_loads: false,
        })
    }

    fn open(&self, id: SegmentId, path: &Path) -> Result<Salvage> {
        let (pool, path) = (Arc::clone(&self.files), path.to_path_buf());
        Salvage::open(Arc::new(PooledFile::new(pool, id, path.clone())), path)
    }

    /// Reads what is in the logs into memory.
    fn read_logs(&mut self, closed: &mut Closed, report: &mut RepairReport) -> Result<()> {
        let state = closed.manifest.state.as_ref().ok();
        let flushed = state.map_or(SeqNo::ZERO, |state| state.flushed);
        let next = state.map(|state| state.next_keyspace);
        let known: Vec<KeyspaceId> = self.keyspaces.keys().copied().collect();
        let table = Arc::clone(&self.table);
        let (mut unknown, mut merged) = (Vec::new(), Vec::new());
        let walk = closed.walk_logs(self.dir, &mut |seqno, op| {
            // What was written to a keyspace that was dropped since is gone with it.
            let was_dropped =
                next.is_some_and(|next| op.keyspace < next) && !known.contains(&op.keyspace);
            if seqno <= flushed || was_dropped {
                return Ok(());
            }
            if !known.contains(&op.keyspace) && !unknown.contains(&op.keyspace) {
                unknown.push(op.keyspace);
            }
            if op.kind.is_merge() && !merged.contains(&op.keyspace) {
                merged.push(op.keyspace);
            }
            let hash = key_hash(op.key, u64::from(op.keyspace.0));
            table.insert(op.keyspace, op.key, hash, seqno, op.kind, op.value);
            Ok(())
        })?;
        for id in unknown {
            let name = self.keyspace(id).name.clone();
            if self.has_manifest {
                let what = "the manifest does not know this keyspace: its name is made up, and \
                            what it held besides the logs is lost";
                let (keyspace, key_range) = (Some(name), None);
                report.uncertain.push(Uncertainty { keyspace, key_range, what: what.into() });
            }
        }
        if !self.has_manifest {
            for id in merged {
                self.keyspace(id).has_operands = true;
            }
            self.doubt_operands(report);
        }
        let mut has_hole = false;
        for hole in &walk.holes {
            let (file, at, what) = (hole.file.display(), hole.offset, &hole.what);
            if !hole.loses {
                report.notices.push(format!("{file}: damaged at byte {at}: {what}"));
            } else if hole.torn && !hole.goes_on {
                report
                    .notices
                    .push(format!("{file}: a torn tail from byte {at} on, as after a crash"));
            } else {
                has_hole = true;
                let place = DamagedPlace::new(&hole.file, hole.offset, hole.what.clone());
                report.lost.push(LostPlace { place, older: 0 });
            }
        }
        if !has_hole && let Some(place) = closed.missing_operations(self.dir, &walk) {
            has_hole = true;
            report.lost.push(LostPlace { place, older: 0 });
        }
        if has_hole {
            let what = "records of the log are lost: any key that is not written in what follows \
                        them may have an older value, or may have been removed";
            let (keyspace, key_range) = (None, None);
            report.uncertain.push(Uncertainty { keyspace, key_range, what: what.into() });
        }
        Ok(())
    }

    /// Notes, where no manifest says which loads came to their end, and when, what may be there of them.
    fn doubt_loads(&self, report: &mut RepairReport) {
        for source in self.keyspaces.values().filter(|source| source.has_loads) {
            let what = "what was to come in past the log counts from the beginning of that on, also if it                         did not come to its end: keys may be here that never were, and what was written                         meanwhile may be in the place of what came in, or the other way round";
            let (keyspace, key_range) = (Some(source.name.clone()), None);
            report.uncertain.push(Uncertainty { keyspace, key_range, what: what.into() });
        }
    }

    /// Notes, where no manifest says which segments count, what operands may have come to.
    fn doubt_operands(&self, report: &mut RepairReport) {
        let doubtful = |source: &&Source| source.has_operands && !source.runs.is_empty();
        for source in self.keyspaces.values().filter(doubtful) {
            let what = "segments and logs that were replaced may be here beside what replaced them: \
                        what was merged into a value, or into another operand, may be merged once more";
            let (keyspace, key_range) = (Some(source.name.clone()), None);
            report.uncertain.push(Uncertainty { keyspace, key_range, what: what.into() });
        }
    }

    /// Writes everything into segments of the new database, and gives the state that it is to be in.
    fn write(
        self,
        options: &Options,
        new: &Unfinished,
        report: &mut RepairReport,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<ManifestState> {
        let Old { env, dir, files, keyspaces, table, has_manifest } = self;
        let home = new.home(env, options.max_open_files);
        let total = keyspaces.values().flat_map(|source| source.runs.iter().flatten());
        let total: u64 = total.map(|piece| len_of(env, &dir.join(piece.file_name()))).sum();
        let mut state = ManifestState::empty([0; 16], env.entropy.next_u64());
        (state.log_floor, state.next_log) = (FIRST_LOG, NEXT_LOG);
        (state.next_keyspace, state.next_run) = (KeyspaceId(1), RunNo(1));
        let next_segment = Cell::new(1);
        // Operands keep their numbers, so that what is written from now on is newer.
        let mut last_seqno = SeqNo::ZERO;
        let mut before = 0;
        for (id, source) in keyspaces {
            let book: SharedBook = Arc::default();
            let logged = Arc::clone(&table).cursor(id);
            let mut cursors: Vec<Box<dyn Cursor>> = Vec::new();
            let (name, hash_seed) = (source.name, source.hash_seed);
            for (at, pieces) in source.runs.into_iter().enumerate() {
                // In the merge the memtable comes first.
                let age = if has_manifest { at + 1 } else { 0 };
                cursors.push(Box::new(SalvagedRun {
                    dir: dir.to_path_buf(),
                    files: Arc::clone(&files),
                    book: Arc::clone(&book),
                    keyspace: name.clone(),
                    hash_seed,
                    age,
                    waiting: pieces.into(),
                    open: None,
                }));
            }
            cursors.insert(if has_manifest { 0 } else { cursors.len() }, logged);
            // What has expired is left to the new database, which has a clock.
            let view = View { snapshot: SeqNo::MAX, floor: source.floor, now_ms: 0 };
            let mut deletes = source.deletes;
            if let Some(own) = table.range_deletes(id) {
                Arc::make_mut(&mut deletes).add_all(&own);
            }
            let merge = MergeCursor::new(cursors);
            let mut newest = {
                let values = OldValues::new(dir.to_path_buf(), Arc::clone(&files));
                Newest::new(merge, view, deletes, Arc::clone(&book), values)
            };
            let spec = OutputSpec {
                separate_above: source.settings.separate_above,
                ..spec(options, id, keyspace_seed(state.hash_seed, id))
            };
            let retention = Retention::new(vec![SeqNo::ZERO], Vec::new());
            let older = OlderData::default();
            let progress = RefCell::new(&mut *progress);
            let next_id = || SegmentId(next_segment.replace(next_segment.get() + 1));
            let stop = |_| {
                (progress.borrow_mut())((before + book.lock().read).min(total), total);
                false
            };
            let run = write_run(&home, &mut newest, &retention, older, &spec, &next_id, &stop)?;
            let Newest { keys, bytes, .. } = newest;
            last_seqno = last_seqno.max(newest.highest);
            before += book.lock().read;
            report.add_book(&mut book.lock());
            state.next_keyspace = state.next_keyspace.max(KeyspaceId(id.0.saturating_add(1)));
            let settings = source.settings;
            let keyspace =
                KeyspaceState { name: name.clone(), settings, ..KeyspaceState::default() };
            state.keyspaces.insert(id, keyspace);
            report.keyspaces.push(SavedKeyspace { name, keys, bytes });
            for meta in run.segments {
                let meta = SegmentMeta { run: state.next_run, ..meta.as_ref().clone() };
                state.segments.insert(meta.id, Arc::new(meta));
            }
            state.next_run.0 += 1;
        }
        progress(total, total);
        state.next_segment = SegmentId(next_segment.get());
        state.flushed = last_seqno;
        Ok(state)
    }
}

/// How the run of a keyspace is written: to the bottom, as a full compaction would.
fn spec(options: &Options, keyspace: KeyspaceId, hash_seed: u64) -> OutputSpec {
    let segment = SegmentOptions {
        compression: options.compression,
        bloom_bits_per_key: options.bloom_bits(),
        hash_run: options.hash_runs,
        keyspace: Some(keyspace),
        hash_seed: Some(hash_seed),
        ..SegmentOptions::default()
    };
    let segment_bytes = options.segment_bytes;
    let min_piece_bytes = OutputSpec::smallest_piece(segment_bytes);
    let level = (LEVELS - 1) as u8;
    OutputSpec {
        keyspace,
        level,
        segment,
        segment_bytes,
        cuts: Vec::new(),
        min_piece_bytes,
        separate_above: None,
        value_segment_bytes: segment_bytes,
    }
}
