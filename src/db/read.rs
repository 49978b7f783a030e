//! The read path of ranges, and what users call: memtables and sorted runs, merged. Point reads are
//! in `point`.
//!
//! A read loads the read state first and the published sequence number second. What it then holds
//! cannot change under it: state objects are immutable and keep their memtables and files alive, so
//! readers never wait for writers, flushes or compactions.

use super::keyspace_core::KeyspaceCore;
use super::options::IterOptions;
use super::snapshot_list::Moment;
use super::{Inner, ReadState};
use crate::cursor::{Bounds, Cursor, Seek};
use crate::error::{Error, Result};
use crate::hash::key_hash;
use crate::iter::{CursorSource, Fold, Folded, RangeIter, RangeSource, View, owned_bounds};
use crate::memtable::MemEntry;
use crate::segment::CursorOptions;
use crate::slice::{Key, Value};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::types::SeqNo;
use crate::version::{RunCursor, Segment, SegmentHome, Tree};
use bytes::Bytes;
use std::ops::{Bound, RangeBounds};

/// One keyspace of one database, now or at a snapshot.
pub(super) struct ReadFrom<'a> {
    pub(super) inner: &'a Arc<Inner>,
    pub(super) core: &'a Arc<KeyspaceCore>,
    pub(super) snapshot: Option<Moment>,
}

impl ReadFrom<'_> {
    pub(super) fn check(&self) -> Result<()> {
        self.core.check_live()?;
        // A snapshot may outlive every handle, but not a close.
        if self.inner.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        Ok(())
    }

    /// The state first, then the number: see the module's text.
    #[inline]
    pub(super) fn view(&self, state: &ReadState, tree: &Tree) -> View {
        let Moment { seqno, now_ms } = self.snapshot.unwrap_or_else(|| Moment {
            seqno: SeqNo(self.inner.visible.load(Ordering::Acquire)),
            now_ms: if state.has_expiring() { self.inner.now_ms() } else { 0 },
        });
        View { snapshot: seqno, floor: tree.floor(seqno), now_ms }
    }

    pub(super) fn tree<'s>(&self, state: &'s ReadState) -> Result<&'s Arc<Tree>> {
        let tree = state.version.trees.get(&self.core.id);
        tree.ok_or_else(|| Error::KeyspaceDropped { name: self.core.name.clone() })
    }

    /// A state and a view of it that belong together, for an iterator.
    ///
    /// A clear is in the state before its number is published. If the state is still the same once
    /// the number was read, no clear up to that number is missing from it: so none is seen in part.
    pub(super) fn stable_view(&self) -> Result<(Arc<ReadState>, View)> {
        if let Some(state) = self.own_state()
            && let Ok(tree) = self.tree(&state)
        {
            let view = self.view(&state, tree);
            return Ok((state, view));
        }
        loop {
            let state = self.inner.state.load_full();
            let view = self.view(&state, self.tree(&state)?);
            if Arc::ptr_eq(&state, &self.inner.state.load()) {
                return Ok((state, view));
            }
        }
    }

    /// The state that the snapshot is to be read from, if not from the newest.
    #[inline]
    pub(super) fn own_state(&self) -> Option<Arc<ReadState>> {
        let moment = self.snapshot.filter(|_| self.core.is_filtered())?;
        self.inner.snapshots.state(moment)
    }

    pub(super) fn range(
        &self,
        bounds: (Bound<Bytes>, Bound<Bytes>),
        options: IterOptions,
    ) -> RangeIter {
        let outcome = self.check().and_then(|()| {
            let (state, view) = self.stable_view()?;
            let tree = Arc::clone(self.tree(&state)?);
            let (inner, core) = (Arc::clone(self.inner), Arc::clone(self.core));
            Ok((Sources { inner, core, state, tree, options }, view))
        });
        match outcome {
            Ok((sources, view)) => {
                let deletes = sources.state.range_deletes(&sources.tree);
                RangeIter::new(Arc::new(sources), view, deletes, bounds, options.keys_only)
            }
            Err(error) => {
                let view = View { snapshot: SeqNo::ZERO, floor: None, now_ms: 0 };
                let failed = Arc::new(Failed(error));
                RangeIter::new(failed, view, Vec::new(), bounds, options.keys_only)
            }
        }
    }
}

/// What the versions of a key come to, operands merged. Costs a lookup in every memtable and sorted run
/// down to the first that says it all: not by the key map, whose places belong to the newest state, while
/// the versions must all be of this one, or an operand would be missed or counted twice. In a segment the
/// second version and those behind it are walked over, each once.
pub(super) fn fold(
    home: &SegmentHome,
    core: &KeyspaceCore,
    state: &ReadState,
    tree: &Tree,
    view: &View,
    key: &[u8],
) -> Result<Option<Folded>> {
    let hash = key_hash(key, core.hash_seed);
    let hidden_by =
        if state.has_range_deletes() { state.range_delete(tree, key, view.snapshot) } else { None };
    let view = &View { floor: view.floor.max(hidden_by), ..*view };
    let mut fold = Fold::new(view);
    let finish = |mut fold: Fold<'_>| {
        fold.bring(|reference| home.values.fetch(&home.dir, reference))?;
        fold.finish(key, &core.name, core.operator())
    };
    for slot in state.memtables() {
        let mut take = |entry: MemEntry| fold.add(entry.seqno, entry.kind, entry.value);
        if slot.table.versions(core.id, key, hash, view.snapshot, &mut take) {
            return finish(fold);
        }
    }
    for run in tree.runs() {
        let Some(segment) = run.segment_for(key) else { continue };
        let Some(newest) = segment.reader().get_at(key, hash, view.snapshot)? else { continue };
        let seqno = newest.seqno;
        if fold.add(seqno, newest.kind, newest.value)
            || segment.holds_versions() && add_older(&mut fold, segment, key, seqno)?
        {
            return finish(fold);
        }
    }
    finish(fold)
}

/// Adds the versions of a key that a segment has before the one of a number. `true`: no older one matters.
fn add_older(fold: &mut Fold<'_>, segment: &Segment, key: &[u8], seqno: SeqNo) -> Result<bool> {
    let mut older = segment.reader().cursor(CursorOptions { fill_cache: true, readahead: false });
    older.seek(Seek::AtOrAfter(key))?;
    while older.valid() && older.key() == key {
        if older.seqno() < seqno && fold.add(older.seqno(), older.kind(), older.value()) {
            return Ok(true);
        }
        older.next()?;
    }
    Ok(false)
}

/// What an iterator reads from, kept alive as long as it is.
struct Sources {
    /// Keeps the directory locked.
    inner: Arc<Inner>,
    core: Arc<KeyspaceCore>,
    state: Arc<ReadState>,
    tree: Arc<Tree>,
    options: IterOptions,
}

impl CursorSource for Sources {
    fn cursors(&self, bounds: &Arc<Bounds>) -> Result<Vec<RangeSource>> {
        if self.inner.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let options = CursorOptions { fill_cache: self.options.fill_cache, readahead: false };
        let memtables = || self.state.memtables().filter(|slot| slot.table.entries() > 0);
        // They are large: the heap has short vectors at hand, and long ones not.
        let mut sources = Vec::with_capacity(memtables().count() + self.tree.runs().count());
        // What comes into an empty memtable from now on is not for this view.
        for slot in memtables() {
            sources.push(RangeSource::Memtable(Arc::clone(&slot.table).cursor(self.tree.id)));
        }
        RunCursor::of_tree(&self.tree, bounds, options, |run| sources.push(RangeSource::Run(run)));
        Ok(sources)
    }

    fn fetch(&self, reference: &[u8]) -> Result<Bytes> {
        self.inner.home.values.fetch(&self.inner.home.dir, reference)
    }

    fn fold(&self, key: &[u8], view: &View) -> Result<Option<Folded>> {
        fold(&self.inner.home, &self.core, &self.state, &self.tree, view, key)
    }

    fn out_of_order(&self) -> Error {
        let what = "a segment of it does not have its keys in order; `verify` says which";
        Error::corruption(&self.inner.home.dir, 0, what)
    }
}

/// An iterator that cannot be made gives its error as its only item.
struct Failed(Error);

impl CursorSource for Failed {
    fn cursors(&self, _: &Arc<Bounds>) -> Result<Vec<RangeSource>> {
        Err(self.0.clone())
    }

    fn fetch(&self, _: &[u8]) -> Result<Bytes> {
        Err(self.0.clone())
    }

    fn fold(&self, _: &[u8], _: &View) -> Result<Option<Folded>> {
        Err(self.0.clone())
    }

    fn out_of_order(&self) -> Error {
        self.0.clone()
    }
}

/// The bounds of all keys that start with `prefix`.
pub(super) fn prefix_bounds(prefix: &[u8]) -> (Bound<Bytes>, Bound<Bytes>) {
    let lower = Bound::Included(Bytes::copy_from_slice(prefix));
    // The smallest key above all of them: the last byte that can be raised is, the rest goes.
    let upper = match prefix.iter().rposition(|byte| *byte != 0xff) {
        Some(at) => {
            let mut above = prefix[..=at].to_vec();
            above[at] += 1;
            Bound::Excluded(Bytes::from(above))
        }
        None => Bound::Unbounded,
    };
    (lower, upper)
}

pub(super) fn range_bounds<K: AsRef<[u8]>>(
    range: &impl RangeBounds<K>,
) -> (Bound<Bytes>, Bound<Bytes>) {
    owned_bounds(range)
}

pub(super) type Entry = (Key, Value);

/// The reads that a database, a keyspace and a snapshot offer alike, on top of `read_from`.
macro_rules! forward_reads {
    () => {
        /// The value of a key, or `None` if it is not there. A value of more than 256 bytes from a
        /// cached block shares the block's memory; a shorter one is copied. Costs one block read of one segment for a key that is there,
        /// however many segments there are, and none for one that is not; while the key map is not
        /// resident (just after opening, or beyond `key_map_bytes`) up to one more for each sorted
        /// run.
        ///
        /// # Errors
        ///
        /// [`Error::KeyspaceDropped`](crate::Error::KeyspaceDropped),
        /// [`Error::Closed`](crate::Error::Closed),
        /// [`Error::Corruption`](crate::Error::Corruption) if a block that may hold the key is
        /// damaged (older data is never given instead), [`Error::Io`](crate::Error::Io).
        pub fn get(&self, key: impl AsRef<[u8]>) -> $crate::Result<Option<$crate::Value>> {
            self.read_from().get(key.as_ref())
        }

        /// What `look` makes of the value of a key, where the value lies: nothing is copied or
        /// allocated for it. `None` if the key is not there; then `look` is not called.
        ///
        /// Costs as for [`get`](Self::get), less the copy. `look` may call the database. No lock
        /// is held while it runs, but block, files and memtables of that moment are: it should
        /// neither wait for anything nor take long.
        ///
        /// # Errors
        ///
        /// As for [`get`](Self::get).
        pub fn get_with<R>(
            &self,
            key: impl AsRef<[u8]>,
            look: impl FnOnce(&[u8]) -> R,
        ) -> $crate::Result<Option<R>> {
            self.read_from().lend(key.as_ref(), |value| look(value.bytes()))
        }

        /// Replaces what is in `buffer` by the value of a key and says whether it is there. If it
        /// is not, or after an error, `buffer` is as it was. Costs as for [`get`](Self::get);
        /// allocates only if the buffer is too short.
        ///
        /// # Errors
        ///
        /// As for [`get`](Self::get).
        pub fn get_into(
            &self,
            key: impl AsRef<[u8]>,
            buffer: &mut Vec<u8>,
        ) -> $crate::Result<bool> {
            self.read_from().get_into(key.as_ref(), buffer)
        }

        /// Whether a key is there. Costs as for [`get_with`](Self::get_with), but a value in a value
        /// segment is not read.
        ///
        /// # Errors
        ///
        /// As for [`get`](Self::get).
        pub fn contains_key(&self, key: impl AsRef<[u8]>) -> $crate::Result<bool> {
            self.read_from().contains(key.as_ref())
        }

        /// The values of several keys, all as of one moment, in the order asked. Costs a little less
        /// than one [`get`](Self::get) each.
        ///
        /// # Errors
        ///
        /// As for [`get`](Self::get). If one key cannot be read, its error is the answer of the whole
        /// call; without that key, the others can be had as ever.
        pub fn multi_get<K: AsRef<[u8]>>(
            &self,
            keys: &[K],
        ) -> $crate::Result<Vec<Option<$crate::Value>>> {
            self.read_from().multi_get(keys)
        }

        /// The entries of a range of keys, in order, from either end, as of now. A reversed range
        /// is empty. Errors come as items.
        pub fn get_range<K: AsRef<[u8]>>(
            &self,
            range: impl std::ops::RangeBounds<K>,
        ) -> $crate::RangeIter {
            self.range_with(range, $crate::IterOptions::default())
        }

        /// [`get_range`](Self::get_range) with options.
        pub fn range_with<K: AsRef<[u8]>>(
            &self,
            range: impl std::ops::RangeBounds<K>,
            options: $crate::IterOptions,
        ) -> $crate::RangeIter {
            self.read_from().range($crate::db::read::range_bounds(&range), options)
        }

        /// The entries whose keys start with `prefix`, in order, from either end.
        pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> $crate::RangeIter {
            let bounds = $crate::db::read::prefix_bounds(prefix.as_ref());
            self.read_from().range(bounds, $crate::IterOptions::default())
        }

        /// The entry with the smallest key.
        ///
        /// # Errors
        ///
        /// As for [`get`](Self::get).
        pub fn first(&self) -> $crate::Result<Option<$crate::db::read::Entry>> {
            self.get_range::<&[u8]>(..).next().transpose()
        }

        /// The entry with the largest key.
        ///
        /// # Errors
        ///
        /// As for [`get`](Self::get).
        pub fn last(&self) -> $crate::Result<Option<$crate::db::read::Entry>> {
            self.get_range::<&[u8]>(..).next_back().transpose()
        }
    };
}
pub(super) use forward_reads;
