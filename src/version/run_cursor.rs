//! A cursor over a sorted run: one segment's cursor at a time.
//!
//! It knows the run by its place in a tree, which it keeps alive, so that making one costs the same
//! however many segments the run has; or it holds a list of segments, for compactions. Owned, `Send`,
//! one thread at a time. Called by range reads and compactions.

use super::{LEVELS, Segment, Tree};
use crate::cursor::{Bounds, Cursor, Hidden, Seek, Shown};
use crate::error::Result;
use crate::segment::{CursorOptions, SegmentCursor};
use crate::sync::Arc;
use crate::types::{Kind, SeqNo};
use bytes::Bytes;
use std::ops::Bound;

/// See the module's text.
pub(crate) struct RunCursor {
    segments: Segments,
    options: CursorOptions,
    bounds: Option<Arc<Bounds>>,
    /// The cursor in use and its segment. It shows an entry unless `off`.
    open: Option<(usize, SegmentCursor)>,
    /// It is at no entry, or only on its way to one.
    off: bool,
    /// Where the seek that was begun leads.
    aimed: Option<Target>,
}

/// The segment that a seek leads to first, if any.
#[derive(Clone, Copy)]
struct Target(Option<usize>);

/// Segments that do not overlap, in key order.
enum Segments {
    #[cfg(test)]
    Listed(Vec<Arc<Segment>>),
    InTree {
        tree: Arc<Tree>,
        level: usize,
        run: usize,
        from: usize,
        to: usize,
    },
}

impl Segments {
    fn all(&self) -> &[Arc<Segment>] {
        match self {
            #[cfg(test)]
            Segments::Listed(segments) => segments,
            Segments::InTree { tree, level, run, from, to } => {
                let run = tree.levels.get(*level).and_then(|runs| runs.get(*run));
                run.and_then(|run| run.segments.get(*from..*to)).unwrap_or_default()
            }
        }
    }
}

impl RunCursor {
    /// A cursor over segments that do not overlap, in key order.
    #[cfg(test)]
    pub(crate) fn new(segments: Vec<Arc<Segment>>, options: CursorOptions) -> Self {
        RunCursor::over(Segments::Listed(segments), options, None)
    }

    /// Cursors over all runs of a tree that have keys between the bounds, newest run first. Beyond
    /// the bounds they may or may not show entries.
    pub(crate) fn of_tree(
        tree: &Arc<Tree>,
        bounds: &Arc<Bounds>,
        options: CursorOptions,
        mut found: impl FnMut(RunCursor),
    ) {
        let lower = match &bounds.lower {
            Bound::Included(key) | Bound::Excluded(key) => Some(&key[..]),
            Bound::Unbounded => None,
        };
        let upper = bounds.upper.as_ref().map(|key| &key[..]);
        for (level, runs) in tree.levels.iter().enumerate() {
            for (at, run) in runs.iter().enumerate() {
                let within = run.span(lower, upper);
                if !within.is_empty() {
                    let segments = Segments::InTree {
                        tree: Arc::clone(tree),
                        level,
                        run: at,
                        from: within.start,
                        to: within.end,
                    };
                    found(RunCursor::over(segments, options, Some(Arc::clone(bounds))));
                }
            }
        }
    }

    /// Notes that a seek leads to a segment that a merge could spare it: one above the bottom.
    fn note_seek(&self, at: usize) {
        if let Segments::InTree { level, .. } = self.segments
            && level < LEVELS - 1
            && let Some(segment) = self.segments.all().get(at)
        {
            segment.note_seek();
        }
    }

    fn over(segments: Segments, options: CursorOptions, bounds: Option<Arc<Bounds>>) -> Self {
        RunCursor { segments, options, bounds, open: None, off: true, aimed: None }
    }

    /// The segment that a seek leads to first.
    fn target(&self, to: Seek<'_>) -> Option<usize> {
        let segments = self.segments.all();
        if segments.is_empty() {
            return None;
        }
        let ends_before = |key: &[u8]| segments.partition_point(|s| s.meta.last_key[..] < *key);
        let starts_by = |key: &[u8]| segments.partition_point(|s| s.meta.first_key[..] <= *key);
        match to {
            Seek::First => Some(0),
            // Where a range begins.
            Seek::AtOrAfter(key) if segments[0].meta.last_key[..] >= *key => Some(0),
            Seek::AtOrAfter(key) | Seek::After(key) => {
                Some(ends_before(key)).filter(|at| *at < segments.len())
            }
            Seek::Last => Some(segments.len() - 1),
            Seek::AtOrBefore(key) | Seek::Before(key) => starts_by(key).checked_sub(1),
        }
    }

    /// The cursor of a segment, somewhere in it.
    fn enter(&mut self, at: usize) -> Option<&mut SegmentCursor> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != at) {
            let cursor = self.segments.all().get(at)?.reader().cursor(self.options);
            let cursor = match &self.bounds {
                Some(bounds) => cursor.within(Arc::clone(bounds)),
                None => cursor,
            };
            self.open = Some((at, cursor));
        }
        self.open.as_mut().map(|(_, cursor)| cursor)
    }

    /// From a segment whose cursor ran out, on to the next that has an entry.
    fn settle(&mut self, forward: bool) -> Result<()> {
        self.off = true;
        while let Some((at, cursor)) = &self.open {
            if cursor.valid() {
                self.off = false;
                break;
            }
            let next = if forward { at.checked_add(1) } else { at.checked_sub(1) };
            let Some(next) = next.filter(|next| *next < self.segments.all().len()) else { break };
            if let Some(cursor) = self.enter(next) {
                cursor.seek(if forward { Seek::First } else { Seek::Last })?;
            }
        }
        Ok(())
    }

    /// The segment's cursor if it is at an entry.
    #[inline]
    fn at(&self) -> Option<&SegmentCursor> {
        match &self.open {
            Some((_, cursor)) if !self.off => Some(cursor),
            _ => None,
        }
    }

    #[inline]
    fn step(&mut self, forward: bool) -> Result<()> {
        if self.off {
            return Ok(());
        }
        let Some((_, cursor)) = &mut self.open else { return Ok(()) };
        let moved = if forward { cursor.next() } else { cursor.prev() };
        if moved.is_ok() && cursor.valid() {
            return Ok(());
        }
        self.off = true;
        moved?;
        self.settle(forward)
    }
}

impl Cursor for RunCursor {
    fn aim(&mut self, to: Seek<'_>) -> Result<()> {
        self.off = true;
        let target = self.target(to);
        if let Some(cursor) = target.and_then(|at| self.enter(at)) {
            cursor.aim(to)?;
        }
        self.aimed = Some(Target(target));
        Ok(())
    }

    fn meet(&mut self) {
        if let (Some(Target(Some(_))), Some((_, cursor))) = (self.aimed, &mut self.open) {
            cursor.meet();
        }
    }

    fn seek(&mut self, to: Seek<'_>) -> Result<()> {
        self.off = true;
        let target = match self.aimed.take() {
            Some(Target(target)) => target,
            None => self.target(to),
        };
        let Some(target) = target else { return Ok(()) };
        self.note_seek(target);
        let Some(cursor) = self.enter(target) else { return Ok(()) };
        cursor.seek(to)?;
        self.settle(matches!(to, Seek::First | Seek::AtOrAfter(_) | Seek::After(_)))
    }

    /// What is older than the tombstone: whole segments, and what the range has of the last one.
    fn pass_hidden(&mut self, hidden: &Hidden<'_>, forward: bool) -> Result<()> {
        let Some(at) = self.open.as_ref().map(|(at, _)| *at).filter(|_| !self.off) else {
            return Ok(());
        };
        let is_old = |s: &Arc<Segment>| s.meta.largest <= hidden.newest;
        let segments = self.segments.all();
        let stop = if forward {
            let goes_on = |s: &Arc<Segment>| is_old(s) && hidden.ends_behind(&s.meta.last_key);
            segments.iter().skip(at).find(|s| !goes_on(s))
        } else {
            let goes_on = |s: &Arc<Segment>| is_old(s) && *hidden.start <= s.meta.first_key[..];
            segments.iter().take(at + 1).rev().find(|s| !goes_on(s))
        };
        let Some(stop) = stop.cloned() else {
            self.off = true;
            return Ok(());
        };
        match (is_old(&stop), forward) {
            (true, true) => self.seek(Seek::AtOrAfter(hidden.end)),
            (true, false) => self.seek(Seek::Before(hidden.start)),
            // It may have something newer, in which the cursor is already, or begins now.
            (false, _) if segments.get(at).is_some_and(|s| s.meta.id == stop.meta.id) => Ok(()),
            (false, true) => self.seek(Seek::AtOrAfter(&stop.meta.first_key)),
            (false, false) => self.seek(Seek::AtOrBefore(&stop.meta.last_key)),
        }
    }

    #[inline]
    fn next(&mut self) -> Result<()> {
        self.step(true)
    }

    #[inline]
    fn prev(&mut self) -> Result<()> {
        self.step(false)
    }

    #[inline]
    fn stride(&mut self, forward: bool) -> Option<Shown<'_>> {
        match &mut self.open {
            Some((_, cursor)) if !self.off => cursor.stride(forward),
            _ => None,
        }
    }

    fn unstride(&mut self, forward: bool) {
        if let Some((_, cursor)) = &mut self.open {
            cursor.unstride(forward);
        }
    }

    #[inline]
    fn valid(&self) -> bool {
        !self.off
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.at().map_or(&[], |cursor| cursor.key())
    }

    #[inline]
    fn seqno(&self) -> SeqNo {
        self.at().map_or(SeqNo::ZERO, |cursor| cursor.seqno())
    }

    #[inline]
    fn kind(&self) -> Kind {
        self.at().map_or(Kind::Delete, |cursor| cursor.kind())
    }

    fn key_bytes(&self) -> Bytes {
        self.at().map_or_else(Bytes::new, |cursor| cursor.key_bytes())
    }

    fn value(&self) -> Bytes {
        self.at().map_or_else(Bytes::new, |cursor| cursor.value())
    }

    #[inline]
    fn value_ref(&self) -> &[u8] {
        self.at().map_or(&[], |cursor| cursor.value_ref())
    }

    #[inline]
    fn shown(&self) -> Shown<'_> {
        let none = Shown { key: &[], seqno: SeqNo::ZERO, kind: Kind::Delete };
        self.at().map_or(none, |cursor| cursor.shown())
    }

    #[inline]
    fn lend(&self) -> (&[u8], &[u8]) {
        self.at().map_or((&[], &[]), |cursor| cursor.lend())
    }

    #[inline]
    fn is_newest(&self) -> bool {
        self.at().is_some_and(|cursor| cursor.is_newest())
    }
}
