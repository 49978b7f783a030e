//! Which versions of a key a flush or a merge keeps, and in what form.
//!
//! A version is kept if some reader may need it: one at a snapshot, or any later one. Snapshots cut the
//! sequence numbers into stripes; of one key, the newest version in each stripe is kept and the rest
//! shadowed.
//!
//! ```text
//! sequence numbers   ──────●────────●────────────────●──▶
//! boundaries               s1       s2           visible
//! stripe                0  │   1    │        2       │
//! ```
//!
//! Merge operands do not shadow what is below them. Within a stripe they are merged into the put or the
//! removal that they meet, or into nothing where nothing older is left anywhere; else as many as the
//! operator can combine become one. Entries that expire at different times are kept apart, so that what
//! a key is at some time does not depend on what was compacted before. A put that has expired counts as a removal, an
//! operand as nothing.
//!
//! Where the operator is missing or fails, value and operands stay as they are. The operands of one key
//! and stripe are in memory together until they are merged or combined; without an operator none is.
//!
//! What no snapshot sees, and so no reader but those to come, a compaction filter may change or remove: of a
//! key at most one version, that in the last stripe.
//!
//! Plain values, owned by one job; one thread.

use super::merge::LentEntry;
use super::output::OlderData;
use crate::deletes::RangeDeletes;
use crate::error::{Error, Result};
use crate::filter::{CompactionFilter, Verdict, judge};
use crate::merge::{MergeOperator, combine, longest_result, merge};
use crate::sync::Arc;
use crate::types::{Kind, SeqNo, split_expiry};
use crate::version::SegmentHome;
use bytes::Bytes;

/// What readers may still need.
#[derive(Clone)]
pub(crate) struct Retention {
    /// The snapshots, rising, and last the newest published sequence number: every later reader
    /// sees at least that.
    pub(crate) boundaries: Vec<SeqNo>,
    /// Where the keyspace was cleared, rising.
    pub(crate) clears: Vec<SeqNo>,
    /// The range tombstones that may hide something.
    pub(crate) deletes: Arc<RangeDeletes>,
    /// What expires by this time has expired for every reader: in milliseconds since the Unix epoch.
    pub(crate) expired_by: u64,
    /// How operands are merged, if that is known.
    pub(crate) operator: Option<Arc<dyn MergeOperator>>,
    /// What looks at the values, if anything does.
    pub(crate) filter: Option<Filtering>,
}

/// A filter, and what it may look at.
#[derive(Clone)]
pub(crate) struct Filtering {
    pub(crate) filter: Arc<dyn CompactionFilter>,
    /// The name of the keyspace.
    pub(crate) keyspace: String,
    /// The newest snapshot. Up to there everything stays as it is.
    pub(crate) snapshot: Option<SeqNo>,
}

impl std::fmt::Debug for Retention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Retention")
            .field("boundaries", &self.boundaries)
            .field("clears", &self.clears)
            .field("deletes", &self.deletes)
            .field("expired_by", &self.expired_by)
            .field("operator", &self.operator.as_ref().map(|operator| operator.name()))
            .field("filters", &self.filter.is_some())
            .finish()
    }
}

impl Retention {
    /// With nothing expired or deleted by ranges, no operator and no filter.
    pub(crate) fn new(boundaries: Vec<SeqNo>, clears: Vec<SeqNo>) -> Self {
        let deletes = Arc::default();
        Retention { boundaries, clears, deletes, expired_by: 0, operator: None, filter: None }
    }

    fn stripe(&self, seqno: SeqNo) -> usize {
        self.boundaries.partition_point(|boundary| *boundary < seqno)
    }

    /// Whether a clear, or a tombstone of a range with the key, hides the version from every reader of
    /// its stripe. A version that is newer than every boundary is never taken for hidden.
    fn is_hidden(&self, key: &[u8], seqno: SeqNo, stripe: usize, is_covered: bool) -> bool {
        let Some(reader) = self.boundaries.get(stripe) else { return false };
        self.clears.iter().any(|clear| seqno <= *clear && clear <= reader)
            || is_covered && self.deletes.newest(key, *reader).is_some_and(|newest| seqno <= newest)
    }
}

/// Where what is kept goes.
pub(super) trait Sink {
    /// Takes a version: keys rise, and the numbers of one key's versions fall.
    fn write(&mut self, key: &[u8], seqno: SeqNo, kind: Kind, value: &[u8]) -> Result<()>;
    /// Notes that operator or filter failed, and that something therefore stays as it is.
    fn failed(&mut self, error: Error);
}

/// After so many operands of a key, those there are so far are combined.
const MANY: usize = 256;

/// An operand that still looks for what it is to be merged into.
struct Operand {
    seqno: SeqNo,
    kind: Kind,
    expiry: u64,
    /// Without the expiry.
    value: Vec<u8>,
}

/// What operands meet.
#[derive(Clone, Copy)]
enum Base<'a> {
    /// This value, and when that expires.
    Value(u64, &'a [u8]),
    /// Nothing, for certain.
    Absent,
    /// Something that is kept as it is, or is elsewhere.
    Kept,
}

/// How far the versions of a key were looked at.
#[derive(Clone, Copy)]
enum Seen {
    Nothing,
    /// In this stripe there were only operands so far.
    Operands(usize),
    /// What is older in this stripe is shadowed.
    All(usize),
}

/// Decides about the versions of one key after the other, from the newest of each on.
pub(super) struct Versions<'a, 'o> {
    retention: &'a Retention,
    older: OlderData<'o>,
    seen: Seen,
    /// Whether range tombstones cover the key.
    is_covered: bool,
    /// The operands of this key and stripe, newest first.
    chain: Vec<Operand>,
    /// How many there may be before they are combined.
    limit: usize,
    /// As long as it has not failed.
    filter: Option<&'a Filtering>,
    /// Where values are that lie in value segments.
    home: Option<&'a SegmentHome>,
}

impl<'a, 'o> Versions<'a, 'o> {
    pub(super) fn new(retention: &'a Retention, older: OlderData<'o>) -> Self {
        let (seen, chain, filter) = (Seen::Nothing, Vec::new(), retention.filter.as_ref());
        Versions {
            retention,
            older,
            seen,
            is_covered: false,
            chain,
            limit: MANY,
            filter,
            home: None,
        }
    }

    /// With the place where values are that lie in value segments.
    pub(super) fn reading(self, home: &'a SegmentHome) -> Self {
        Versions { home: Some(home), ..self }
    }

    /// Takes the next version of `key`. All versions of a key come one after the other, keys rising.
    #[inline]
    pub(super) fn add(
        &mut self,
        key: &[u8],
        entry: &LentEntry<'_>,
        sink: &mut impl Sink,
    ) -> Result<()> {
        let LentEntry { seqno, kind, value, .. } = *entry;
        let stripe = self.retention.stripe(seqno);
        match self.seen {
            Seen::Nothing if !self.retention.deletes.is_empty() => {
                self.is_covered = self.retention.deletes.covers(key);
            }
            Seen::All(last) if last == stripe => return Ok(()),
            Seen::Operands(last) if last != stripe => {
                // A snapshot lies between: it must go on seeing what is below.
                self.settle(key, last, Base::Kept, sink)?;
            }
            _ => {}
        }
        self.seen = Seen::All(stripe);
        if self.retention.is_hidden(key, seqno, stripe, self.is_covered) {
            self.settle(key, stripe, Base::Absent, sink)?;
            return Ok(());
        }
        let (expiry, proper) = split_expiry(kind, value);
        let has_expired = expiry <= self.retention.expired_by;
        match kind {
            Kind::Put | Kind::PutUntil if !has_expired => {
                if self.settle(key, stripe, Base::Value(expiry, proper), sink)? {
                    return Ok(());
                }
                self.put(key, stripe, seqno, kind, value, sink)
            }
            Kind::PutAway | Kind::PutAwayUntil if !has_expired => {
                if !self.chain.is_empty() && self.settle_away(key, stripe, expiry, proper, sink)? {
                    return Ok(());
                }
                self.put(key, stripe, seqno, kind, value, sink)
            }
            Kind::Put
            | Kind::PutUntil
            | Kind::PutAway
            | Kind::PutAwayUntil
            | Kind::Delete
            | Kind::DeleteRange => {
                if self.settle(key, stripe, Base::Absent, sink)? {
                    return Ok(());
                }
                self.remove(key, stripe, seqno, sink)
            }
            Kind::Merge | Kind::MergeUntil => {
                self.seen = Seen::Operands(stripe);
                if !has_expired && self.retention.operator.is_none() {
                    // Nothing can become of it: it need not wait.
                    return sink.write(key, seqno, kind, value);
                }
                if !has_expired {
                    self.chain.push(Operand { seqno, kind, expiry, value: proper.to_vec() });
                    if self.chain.len() >= self.limit {
                        self.combine(key, sink);
                        self.limit = MANY.max(2 * self.chain.len());
                    }
                }
                Ok(())
            }
        }
    }

    /// Ends with `key`, of which all versions were taken.
    #[inline]
    pub(super) fn end(&mut self, key: &[u8], sink: &mut impl Sink) -> Result<()> {
        if let Seen::Operands(stripe) = self.seen
            && !self.chain.is_empty()
        {
            let base = if self.older.may_hide(key) { Base::Kept } else { Base::Absent };
            self.settle(key, stripe, base, sink)?;
        }
        (self.seen, self.limit) = (Seen::Nothing, MANY);
        Ok(())
    }

    /// A put, if the filter does not say otherwise.
    #[inline]
    fn put(
        &mut self,
        key: &[u8],
        stripe: usize,
        seqno: SeqNo,
        kind: Kind,
        value: &[u8],
        sink: &mut impl Sink,
    ) -> Result<()> {
        match self.filter {
            None => self.put_as_it_is(key, stripe, seqno, kind, value, sink),
            Some(filtering) => self.put_filtered(filtering, key, stripe, seqno, kind, value, sink),
        }
    }

    #[cold]
    #[allow(clippy::too_many_arguments)] // It is a part of `put`, kept out of its way.
    fn put_filtered(
        &mut self,
        filtering: &Filtering,
        key: &[u8],
        stripe: usize,
        seqno: SeqNo,
        kind: Kind,
        value: &[u8],
        sink: &mut impl Sink,
    ) -> Result<()> {
        // What is newer than the last boundary, if anything is, may be seen by a snapshot that is being made.
        let is_seen = filtering.snapshot.is_some_and(|snapshot| seqno <= snapshot)
            || stripe >= self.retention.boundaries.len();
        if is_seen {
            return self.put_as_it_is(key, stripe, seqno, kind, value, sink);
        }
        let (expiry, proper) = split_expiry(kind, value);
        let overhead = value.len() - proper.len();
        let fetched;
        let proper = if kind.is_away() {
            fetched = self.fetch(proper, sink)?;
            let Some(fetched) = &fetched else {
                return self.put_as_it_is(key, stripe, seqno, kind, value, sink);
            };
            &fetched[..]
        } else {
            proper
        };
        match judge(&*filtering.filter, key, proper, overhead) {
            Ok(Verdict::Keep) => self.put_as_it_is(key, stripe, seqno, kind, value, sink),
            Ok(Verdict::Remove) => self.remove(key, stripe, seqno, sink),
            Ok(Verdict::Change(new)) => {
                let kind = kind.here();
                let new = with_expiry(kind, expiry, new);
                self.put_as_it_is(key, stripe, seqno, kind, &new, sink)
            }
            Err(reason) => {
                let keyspace = filtering.keyspace.clone();
                sink.failed(Error::FilterFailed { keyspace, reason });
                self.filter = None;
                self.put_as_it_is(key, stripe, seqno, kind, value, sink)
            }
        }
    }

    /// A put. In the oldest stripe, with nothing older anywhere, it needs no number to be told from an
    /// older one, or from what hides that.
    fn put_as_it_is(
        &mut self,
        key: &[u8],
        stripe: usize,
        seqno: SeqNo,
        kind: Kind,
        value: &[u8],
        sink: &mut impl Sink,
    ) -> Result<()> {
        let elide = stripe == 0
            && self.retention.clears.is_empty()
            && !self.is_covered
            && !self.older.may_hold(key);
        sink.write(key, if elide { SeqNo::ZERO } else { seqno }, kind, value)
    }

    /// A tombstone. In the oldest stripe, with nothing older anywhere, it hides nothing.
    fn remove(
        &mut self,
        key: &[u8],
        stripe: usize,
        seqno: SeqNo,
        sink: &mut impl Sink,
    ) -> Result<()> {
        if stripe == 0 && !self.older.may_hide(key) {
            return Ok(());
        }
        sink.write(key, seqno, Kind::Delete, &[])
    }

    /// The value that a reference leads to; `None` if it cannot be read, which is noted: then everything about
    /// it is to stay as it is.
    ///
    /// # Errors
    ///
    /// The operating system's: they may pass.
    #[cold]
    fn fetch(&self, reference: &[u8], sink: &mut impl Sink) -> Result<Option<Bytes>> {
        let Some(home) = self.home else { return Ok(None) };
        match home.values.fetch(&home.dir, reference) {
            Ok(value) => Ok(Some(value)),
            Err(error @ (Error::Io { .. } | Error::DiskFull { .. })) => Err(error),
            Err(error) => {
                sink.failed(error);
                Ok(None)
            }
        }
    }

    /// `settle` with a value that lies in a value segment.
    #[cold]
    fn settle_away(
        &mut self,
        key: &[u8],
        stripe: usize,
        expiry: u64,
        reference: &[u8],
        sink: &mut impl Sink,
    ) -> Result<bool> {
        let fetched = self.fetch(reference, sink)?;
        let base = fetched.as_ref().map_or(Base::Kept, |value| Base::Value(expiry, value));
        self.settle_chain(key, stripe, base, sink)
    }

    /// Writes the operands that were waiting: merged into their base, and then says so, or else before
    /// it.
    #[inline]
    fn settle(
        &mut self,
        key: &[u8],
        stripe: usize,
        base: Base<'_>,
        sink: &mut impl Sink,
    ) -> Result<bool> {
        if self.chain.is_empty() { Ok(false) } else { self.settle_chain(key, stripe, base, sink) }
    }

    #[cold]
    fn settle_chain(
        &mut self,
        key: &[u8],
        stripe: usize,
        base: Base<'_>,
        sink: &mut impl Sink,
    ) -> Result<bool> {
        let (seqno, expiry) = self.chain.first().map_or((SeqNo::ZERO, 0), |o| (o.seqno, o.expiry));
        match self.merged(key, expiry, base) {
            Some(Ok(Some(value))) => {
                self.chain.clear();
                let kind = if expiry == u64::MAX { Kind::Put } else { Kind::PutUntil };
                let value = with_expiry(kind, expiry, value);
                self.put(key, stripe, seqno, kind, &value, sink)?;
                return Ok(true);
            }
            Some(Ok(None)) => {
                self.chain.clear();
                self.remove(key, stripe, seqno, sink)?;
                return Ok(true);
            }
            Some(Err(error)) => sink.failed(error),
            None => {}
        }
        self.combine(key, sink);
        for Operand { seqno, kind, expiry, value } in self.chain.drain(..) {
            sink.write(key, seqno, kind, &with_expiry(kind, expiry, value))?;
        }
        Ok(false)
    }

    /// What the operator makes of base and operands, if all of them expire together and it is known what
    /// the base is.
    fn merged(&self, key: &[u8], expiry: u64, base: Base<'_>) -> Option<Result<Option<Vec<u8>>>> {
        let operator = self.retention.operator.as_deref()?;
        let existing = match base {
            Base::Kept => return None,
            Base::Value(other, value) => (other == expiry).then_some(Some(value))?,
            Base::Absent => None,
        };
        if self.chain.iter().any(|operand| operand.expiry != expiry) {
            return None;
        }
        let limit = longest_result(expiry != u64::MAX);
        Some(merge(operator, key, existing, &oldest_first(&self.chain), limit))
    }

    /// Makes of operands that stand behind each other, and expire together, one each, where the operator
    /// can.
    fn combine(&mut self, key: &[u8], sink: &mut impl Sink) {
        let Some(operator) = self.retention.operator.as_deref() else { return };
        let mut combined = Vec::new();
        let mut chain = std::mem::take(&mut self.chain).into_iter().peekable();
        while let Some(newest) = chain.next() {
            let expiry = newest.expiry;
            let mut group = vec![newest];
            while let Some(older) = chain.next_if(|older| older.expiry == expiry) {
                group.push(older);
            }
            if group.len() > 1 {
                let limit = longest_result(expiry != u64::MAX);
                match combine(operator, key, &oldest_first(&group), limit) {
                    Ok(Some(value)) => {
                        group.truncate(1);
                        if let Some(newest) = group.first_mut() {
                            newest.value = value;
                        }
                    }
                    Ok(None) => {}
                    Err(error) => sink.failed(error),
                }
            }
            combined.append(&mut group);
        }
        self.chain = combined;
    }
}

fn oldest_first(chain: &[Operand]) -> Vec<&[u8]> {
    chain.iter().rev().map(|operand| &operand.value[..]).collect()
}

/// The value as it is stored.
fn with_expiry(kind: Kind, expiry: u64, value: Vec<u8>) -> Vec<u8> {
    if kind.expires() { [&expiry.to_le_bytes(), &value[..]].concat() } else { value }
}
