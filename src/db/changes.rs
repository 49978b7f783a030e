//! The change feed: committed batches since a sequence number, in commit order, out of the logs.
//!
//! ```text
//! shelf     log 4 ──────── log 5 ──────── log 7 (being written)
//!             keyspaces      keyspaces      keyspaces
//!             batch batch    batch skip     batch ┊ batch on its way
//!                   ↑ since                       ↑ published
//! ```
//!
//! A feed loads the published sequence number first, asks the shelf for the end of its log second, and
//! then reads records up to that number: all of these were written in full before the number was
//! published. So what does not verify there is damage, and nothing is ever taken for a torn tail. Behind
//! that number only records without operations are taken, if they verify.
//!
//! A clear takes a number (a skip record) and is told by the note on keyspaces that follows; so is what
//! comes in past the log, of which there is nothing else to tell. If another operation follows instead,
//! nobody knows whether it was done, and the feed says so.
//!
//! Invariants: batches are given whole, in order, none twice and none left out; what keyspaces an
//! operation may name is known before it. A feed takes no lock of the writer's and holds none up; it keeps
//! no log: one that falls behind the shelf ends with [`Error::ChangesGone`].

use super::log_shelf::{LogShelf, Shelved};
use super::{Db, Inner};
use crate::error::{Error, Result};
use crate::slice::{Key, Value};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::types::{KeyspaceId, Kind, SeqNo, split_expiry};
use crate::wal::{
    Followed, FollowedWhat, KeyspaceNote, LogTail, NotedKeyspace, Op, Peeked, batches,
};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

/// A keyspace, as a [`Change`] names it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ChangedKeyspace {
    /// Its id: never reused. A keyspace that was dropped and created again has the same name and
    /// another id.
    pub id: KeyspaceId,
    /// Its name.
    pub name: Arc<str>,
}

/// One change, as a [`ChangeIter`] gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A key was set.
    Put {
        /// In which keyspace.
        keyspace: ChangedKeyspace,
        /// The key. Shares memory with what else its batch was committed with.
        key: Key,
        /// Its value; likewise.
        value: Value,
        /// When it expires, if it does, in milliseconds since the Unix epoch.
        expires_ms: Option<u64>,
    },
    /// An operand was merged, by the keyspace's [merge operator](crate::merge).
    Merge {
        /// In which keyspace.
        keyspace: ChangedKeyspace,
        /// The key.
        key: Key,
        /// The operand.
        operand: Value,
        /// When it expires, if it does, in milliseconds since the Unix epoch.
        expires_ms: Option<u64>,
    },
    /// All keys of a range were removed.
    DeleteRange {
        /// From which keyspace.
        keyspace: ChangedKeyspace,
        /// Where the range starts.
        start: Key,
        /// Where it ends, exclusive; `None`: nowhere.
        end: Option<Key>,
    },
    /// A key was removed, if it was there.
    Delete {
        /// From which keyspace.
        keyspace: ChangedKeyspace,
        /// The key.
        key: Key,
    },
    /// All keys of a keyspace were removed that were there before this number.
    Clear {
        /// Which keyspace.
        keyspace: ChangedKeyspace,
    },
    /// From here on these are the keyspaces, by rising id: one that is missing was dropped, with all that
    /// was in it, and one that was not there before was created, empty. Comes first of all, so that a copy
    /// can bring its own in line, and then after each keyspace that is created or dropped.
    Keyspaces(Vec<ChangedKeyspace>),
    /// Entries came in past the log: from [files](crate::Keyspace::ingest), or
    /// [sorted](crate::Keyspace::bulk_load). The feed does not have them. Each is a put, of one of the keys
    /// from `first` to `last`, both included; the other keys between these are as they were.
    ///
    /// A cache forgets the range. A copy has to get it elsewhere: it starts anew from a
    /// [`Snapshot`](crate::Snapshot), or a checkpoint, and its number. Or, if nothing is merged in this
    /// keyspace, it only replaces what it has in the range by what a snapshot has there, and goes on: what
    /// was written until that snapshot comes again, and does not harm; the copy is as the database was
    /// once it has come to the snapshot's number.
    Loaded {
        /// Into which keyspace.
        keyspace: ChangedKeyspace,
        /// The least of their keys.
        first: Key,
        /// The greatest.
        last: Key,
    },
    /// A keyspace may have been cleared at this number, or entries may have come in past the log, or
    /// nothing: a clear or a load that failed, or one whose record was lost in a crash. A copy that must be
    /// exact starts anew from a state behind it.
    Unknown,
}

/// What took effect together: a batch that was written, or one event.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChangeBatch {
    /// The sequence number of the first operation. The others of a batch have those that follow.
    /// [`Change::Keyspaces`] takes no number: this is then that of the operation before.
    pub first: SeqNo,
    /// That of the last one: with it, [`Db::changes_since`] goes on behind this batch.
    pub last: SeqNo,
    /// The changes, in order, at least one. Within a batch the later one to a key wins.
    pub changes: Vec<Change>,
}

/// The committed batches since a sequence number, in commit order: see [`Db::changes_since`].
///
/// [`next`](Iterator::next) gives `None` when there is nothing more *for now*, and goes on once there is:
/// call it again, or [`wait`](Self::wait) first. After an error it stands where it stood, and gives the
/// same error again as long as the cause is there: so end at the first.
///
/// Each log is opened when it is come to. Costs a read of the log in pieces of 256 KiB, and memory for one
/// piece and the batches of one commit. `Send`; reading needs `&mut`. Keeps the directory locked as the
/// other iterators do, but no log from being removed.
pub struct ChangeIter {
    inner: Arc<Inner>,
    shelf: Arc<LogShelf>,
    since: SeqNo,
    tail: LogTail,
    /// The keyspaces at the place; not known before the first note.
    keyspaces: Option<BTreeMap<KeyspaceId, Known>>,
    /// Whether the keyspaces at the beginning were told.
    has_begun: bool,
    /// A skip of which it is not known yet what it stands for.
    skipped: Option<SeqNo>,
    /// What was read and not given yet.
    pending: VecDeque<ChangeBatch>,
    /// The end of what was given.
    given: SeqNo,
}

#[derive(Clone, PartialEq, Eq)]
struct Known {
    name: Arc<str>,
    cleared: SeqNo,
}

impl Db {
    /// The committed batches that come after a sequence number, in commit order, with those that are
    /// committed from now on: for replicas and caches. Zero stands for the beginning; a
    /// [`Snapshot::seqno`](crate::Snapshot::seqno) for what came after that snapshot; the
    /// [`last`](ChangeBatch::last) of a batch for what came after that. A batch of which any operation
    /// comes after the number is given whole.
    ///
    /// They are read from the logs, of which [`Builder::keep_log_bytes`](crate::Builder::keep_log_bytes)
    /// keeps the newest. What is given is committed and visible, and as durable as it was written: with
    /// [`Durability::Buffered`](crate::Durability::Buffered) a loss of power may take back what a copy
    /// elsewhere already has, and other writes get its numbers. A copy that must not be ahead calls
    /// [`Db::sync`] between taking a batch and applying it. Opening with
    /// [`Recovery::PointInTime`](crate::Recovery::PointInTime) may take back anything: start copies anew.
    ///
    /// First comes a [`Change::Keyspaces`]. Clears, and keyspaces that are created or dropped, come in
    /// their place among the batches; so do loads of files and of sorted entries, but of these only that
    /// there was one: see [`Change::Loaded`]. Costs opening one log.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`] if the database was opened without
    /// [`keep_log_bytes`](crate::Builder::keep_log_bytes); [`Error::ChangesGone`] if the log that has
    /// the next batch is gone, or was written without that option, or if the number is above every one
    /// that was given out; [`Error::Corruption`] if the log's header is damaged; [`Error::Io`];
    /// [`Error::Closed`]. The items have these too, and [`Error::Corruption`] where a record is damaged.
    pub fn changes_since(&self, seqno: SeqNo) -> Result<ChangeIter> {
        let inner = self.inner();
        if !inner.shelf.is_used() {
            let reason =
                "must be above 0 for change feeds: logs go as soon as they are flushed".into();
            return Err(Error::InvalidOption { option: "keep_log_bytes", reason });
        }
        ChangeIter::new(inner, Arc::clone(&inner.shelf), seqno)
    }
}

impl ChangeIter {
    /// What comes after `since`, up to what `inner` shows, from the logs on the shelf.
    pub(super) fn new(
        inner: &Arc<Inner>,
        shelf: Arc<LogShelf>,
        since: SeqNo,
    ) -> Result<ChangeIter> {
        inner.check_open()?;
        let visible = SeqNo(inner.visible.load(Ordering::Acquire));
        let log = shelf.log_since(since).filter(|_| since <= visible);
        let tail = match log {
            Some(log) => open_log(inner, &shelf, log)?,
            None => return Err(gone(inner, &shelf)),
        };
        Ok(ChangeIter {
            inner: Arc::clone(inner),
            shelf,
            since,
            tail,
            keyspaces: None,
            has_begun: false,
            skipped: None,
            pending: VecDeque::new(),
            given: since,
        })
    }

    /// The end of what was given so far: with it, [`Db::changes_since`] goes on here.
    #[must_use]
    pub fn position(&self) -> SeqNo {
        self.given
    }

    /// Waits until there is something to give, and says so, or until the time is over. Looks every few
    /// milliseconds, so that it costs writers nothing.
    ///
    /// # Errors
    ///
    /// As for [`Db::changes_since`].
    pub fn wait(&mut self, timeout: Duration) -> Result<bool> {
        const LONGEST: Duration = Duration::from_millis(20);
        let clock = Arc::clone(&self.inner.home.env.clock);
        let start = clock.monotonic();
        let mut pause = Duration::from_millis(1);
        loop {
            self.fill()?;
            if !self.pending.is_empty() {
                return Ok(true);
            }
            let left = timeout.saturating_sub(clock.monotonic().saturating_sub(start));
            if left.is_zero() {
                return Ok(false);
            }
            clock.sleep(pause.min(left));
            pause = (pause * 2).min(LONGEST);
        }
    }

    /// Reads until there is something to give, or nothing more for now.
    fn fill(&mut self) -> Result<()> {
        self.inner.check_open()?;
        while self.pending.is_empty() {
            if !self.has_begun && self.keyspaces.is_some() && self.tail.last() >= self.since {
                self.begin();
                break;
            }
            // The number first, then the end: a log that has no end yet has all up to that number.
            let upto = SeqNo(self.inner.visible.load(Ordering::Acquire));
            let found = self.shelf.find(self.tail.id());
            let Some((log, next)) = found else { return Err(gone(&self.inner, &self.shelf)) };
            match self.tail.peek(upto, log.end)? {
                Peeked::Record(record) => {
                    self.take(&record)?;
                    self.tail.pass(&record);
                }
                Peeked::End => {
                    let Some(next) = next else { return Ok(()) };
                    self.tail = self.follow_on(next)?;
                }
                Peeked::Nothing if log.end.is_some() || self.tail.last() < upto => {
                    return Err(self.tail.damage("no sound record is here"));
                }
                Peeked::Beyond | Peeked::Nothing => return Ok(()),
            }
        }
        Ok(())
    }

    /// Opens the log behind one that was read to its end.
    fn follow_on(&self, next: Shelved) -> Result<LogTail> {
        let tail = open_log(&self.inner, &self.shelf, next)?;
        let (last, noted) = (self.tail.last(), tail.last());
        if last == noted {
            return Ok(tail);
        }
        let what = format!("it ends at operation {last}, but log {} notes {noted}", next.id);
        Err(self.tail.damage(what))
    }

    /// Makes batches of a record.
    fn take(&mut self, record: &Followed) -> Result<()> {
        match &record.what {
            FollowedWhat::Other => {}
            FollowedWhat::Keyspaces(KeyspaceNote::Loaded { id, seqno, first, last }) => {
                self.note_loaded(*id, *seqno, first, last);
            }
            FollowedWhat::Keyspaces(note) => self.note(note, record.before),
            FollowedWhat::Skip => {
                self.check_known()?;
                self.operations_follow();
                self.skipped = Some(record.last).filter(|skipped| *skipped > self.since);
            }
            FollowedWhat::Group(payload) => {
                self.check_known()?;
                let (mut given, mut before) = (VecDeque::new(), record.before);
                for batch in batches(payload) {
                    let batch = batch.map_err(|wrong| self.tail.wrong(wrong))?;
                    let first = SeqNo(before.0.saturating_add(1));
                    before = SeqNo(before.0.saturating_add(batch.count()));
                    if before <= self.since {
                        continue;
                    }
                    let changes = batch.ops().map(|op| {
                        let op = op.map_err(|wrong| self.tail.wrong(wrong))?;
                        self.change(&op, payload)
                    });
                    let changes = changes.collect::<Result<_>>()?;
                    given.push_back(ChangeBatch { first, last: before, changes });
                }
                self.operations_follow();
                if !self.has_begun && !given.is_empty() {
                    // The number lies within this commit.
                    self.begin();
                }
                self.pending.append(&mut given);
            }
        }
        Ok(())
    }

    /// Whether it was told which keyspaces there are, as it must be in front of operations.
    fn check_known(&self) -> Result<()> {
        // A log of a database that had no feeds then.
        if self.keyspaces.is_none() { Err(gone(&self.inner, &self.shelf)) } else { Ok(()) }
    }

    /// An operation comes next: what a skip before it stood for will not be told any more.
    fn operations_follow(&mut self) {
        if let Some(skipped) = self.skipped.take() {
            self.pending.push_back(event(skipped, Change::Unknown));
        }
    }

    /// Tells the keyspaces in front of everything.
    fn begin(&mut self) {
        if let Some(keyspaces) = &self.keyspaces {
            self.has_begun = true;
            self.pending.push_back(event(self.since, list(keyspaces)));
        }
    }

    /// Takes in what a note says of entries that came in past the log.
    fn note_loaded(&mut self, id: KeyspaceId, seqno: SeqNo, first: &Key, last: &Key) {
        let known = self.keyspaces.as_ref().and_then(|keyspaces| keyspaces.get(&id));
        if let Some(known) = known.filter(|_| self.skipped == Some(seqno)) {
            let keyspace = ChangedKeyspace { id, name: Arc::clone(&known.name) };
            let (first, last) = (first.clone(), last.clone());
            self.skipped = None;
            self.pending.push_back(event(seqno, Change::Loaded { keyspace, first, last }));
        }
    }

    /// Takes in what a note says at a place behind operation `at`.
    fn note(&mut self, note: &KeyspaceNote, at: SeqNo) {
        let before = self.keyspaces.take();
        let mut now = before.clone().unwrap_or_default();
        let known = |keyspace: &NotedKeyspace| {
            let (name, cleared) = (Arc::from(keyspace.name.as_str()), keyspace.cleared);
            (keyspace.id, Known { name, cleared })
        };
        match note {
            KeyspaceNote::All(all) => now = all.iter().map(known).collect(),
            // In front of a whole list these say nothing.
            KeyspaceNote::One(_) | KeyspaceNote::Dropped(_) if before.is_none() => return,
            KeyspaceNote::One(one) => now.extend([known(one)]),
            KeyspaceNote::Dropped(id) => drop(now.remove(id)),
            KeyspaceNote::Loaded { .. } => {}
        }
        let is_same = |a: &BTreeMap<KeyspaceId, Known>| {
            a.len() == now.len()
                && a.iter().zip(&now).all(|(a, b)| a.0 == b.0 && a.1.name == b.1.name)
        };
        if self.has_begun && !before.as_ref().is_some_and(is_same) {
            self.pending.push_back(event(at, list(&now)));
        }
        if let Some(skipped) = self.skipped
            && let Some((id, known)) = now.iter().find(|(_, known)| known.cleared == skipped)
        {
            self.skipped = None;
            let keyspace = ChangedKeyspace { id: *id, name: Arc::clone(&known.name) };
            self.pending.push_back(event(skipped, Change::Clear { keyspace }));
        }
        self.keyspaces = Some(now);
    }

    /// A change, whose key and value lie in `payload`.
    fn change(&self, op: &Op<'_>, payload: &Bytes) -> Result<Change> {
        let known = self.keyspaces.as_ref().and_then(|known| known.get(&op.keyspace));
        let Some(known) = known else {
            let what = format!("it writes to keyspace {}, which is not there", op.keyspace);
            return Err(self.tail.damage(what));
        };
        let keyspace = ChangedKeyspace { id: op.keyspace, name: Arc::clone(&known.name) };
        let key = Key(payload.slice_ref(op.key));
        let (expires_ms, value) = split_expiry(op.kind, op.value);
        let expires_ms = op.kind.expires().then_some(expires_ms);
        let value = || Value(payload.slice_ref(value));
        Ok(match op.kind {
            Kind::Put | Kind::PutUntil => Change::Put { keyspace, key, value: value(), expires_ms },
            Kind::Delete => Change::Delete { keyspace, key },
            Kind::Merge | Kind::MergeUntil => {
                Change::Merge { keyspace, key, operand: value(), expires_ms }
            }
            Kind::DeleteRange => {
                let end = Some(Key(value().0)).filter(|end| !end.is_empty());
                Change::DeleteRange { keyspace, start: key, end }
            }
            // Nor does the log's decoder let them pass: a log has its values whole.
            Kind::PutAway | Kind::PutAwayUntil => {
                return Err(self.tail.damage("it refers to a value".to_owned()));
            }
        })
    }
}

impl Iterator for ChangeIter {
    type Item = Result<ChangeBatch>;

    /// The next batch; `None` if there is none for now.
    fn next(&mut self) -> Option<Result<ChangeBatch>> {
        if let Err(error) = self.fill() {
            return Some(Err(error));
        }
        let batch = self.pending.pop_front()?;
        self.given = batch.last;
        Some(Ok(batch))
    }
}

impl std::fmt::Debug for ChangeIter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChangeIter").field("position", &self.given).finish_non_exhaustive()
    }
}

fn event(at: SeqNo, change: Change) -> ChangeBatch {
    ChangeBatch { first: at, last: at, changes: vec![change] }
}

fn list(keyspaces: &BTreeMap<KeyspaceId, Known>) -> Change {
    let keyspaces = keyspaces.iter();
    let named = |(id, known): (&KeyspaceId, &Known)| ChangedKeyspace {
        id: *id,
        name: Arc::clone(&known.name),
    };
    Change::Keyspaces(keyspaces.map(named).collect())
}

fn open_log(inner: &Inner, shelf: &LogShelf, log: Shelved) -> Result<LogTail> {
    let home = &inner.home;
    match LogTail::open(&home.env, &home.dir, inner.log_salt, log.id) {
        // Removed just now; or by a writer in another process.
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err(gone(inner, shelf))
        }
        tail => tail,
    }
}

fn gone(inner: &Inner, shelf: &LogShelf) -> Error {
    let newest = SeqNo(inner.visible.load(Ordering::Acquire));
    // With nothing on the shelf, only what is still to come can be had.
    let oldest = shelf.oldest().unwrap_or(newest);
    Error::ChangesGone { oldest, newest }
}

#[cfg(all(test, not(loom)))]
#[path = "changes_tests.rs"]
mod tests;
