//! The table inside one shard: a multiset of (key hash, page number) that forgets most of the hash.
//!
//! A bucket is one cache line ([`Bucket`]). The low 32 bits of a 40-bit hash choose everything:
//! read as a fraction they give the home bucket, so that entries in hash order walk the memory in
//! order; their lowest four bits are the tag, the next `32 - width` bits stand in the entry above
//! the page number (`vbn`, `width` bits, never zero). An entry that finds a bucket full goes on by
//! a step that its tag chooses. Steps are powers of two and the number of buckets is odd, so every
//! path visits every bucket. After [`HOP_CAP`] buckets it goes to a sorted spill list.
//!
//! Invariants: home, tag and step do not depend on the width, so a table can be widened in place.
//! Every bucket on the path before an entry counts it as passed. A search therefore goes on
//! exactly as long as the flag of its class is set. It may go beyond the hop cap: entries with
//! equal tag, fingerprint and page cannot be told apart, and when one of two such entries on
//! crossing paths is removed, what is left may lie further along the other's path. The counts then
//! still cover it, because a removal always takes the first such entry that its search meets.
//!
//! Not synchronized: `shard` holds a table behind a lock. Called by the rest of `keymap`.

use super::bucket::{Bucket, SLOTS};

/// Buckets that an insertion tries before it spills.
pub(super) const HOP_CAP: u32 = 20;

/// The widths a page number may have.
pub(super) const MIN_WIDTH: u32 = 12;
pub(super) const MAX_WIDTH: u32 = 30;

/// Buckets up to which a table is not rebuilt for being too empty.
const SMALL: usize = 64;

/// Spilled entries from which on a rebuild is worth its while.
const SPILL_MAX: usize = 32;

/// Share of displaced entries above which a table is rebuilt, in percent.
const DISPLACED_MAX: usize = 12;

/// The band that a table's load may move in, in percent.
const LOAD_MAX: usize = 86;
const LOAD_MIN: usize = 70;

/// What a table holds and takes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shape {
    /// Entries, spilled ones among them.
    pub(super) entries: usize,
    /// Slots, taken or not.
    pub(super) slots: usize,
    /// Entries that are not in their home bucket, spilled ones among them. An estimate when equal
    /// fingerprints meet on one page.
    pub(super) displaced: usize,
    /// Entries in the spill list.
    pub(super) spilled: usize,
    /// Bytes of the buckets.
    pub(super) table_bytes: u64,
    /// Bytes of the spill list.
    pub(super) spill_bytes: u64,
}

impl Shape {
    /// All bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.table_bytes + self.spill_bytes
    }
}

/// A multiset of (40-bit hash, page number). Hashes of one table share their top 8 bits.
///
/// A table may give back more than was asked for (entries whose hash looks alike), never less.
pub(crate) trait Table: Sized + Send + Sync + 'static {
    /// An empty table of about so many slots. Page numbers up to `top_vbn` are expected.
    /// `fingerprint_bits` is how many bits of a hash tell entries apart; 32 is all.
    fn with_slots(slots: usize, top_vbn: u32, fingerprint_bits: u32) -> Self;

    /// The bytes that [`Table::with_slots`] takes.
    fn bytes_for(slots: usize) -> u64;

    /// Notes that everything known at building time is in.
    fn settle(&mut self);

    /// Adds an entry.
    fn insert(&mut self, h40: u64, vbn: u32);

    /// Gives one entry a new page number. False if it is not there; then nothing changed.
    fn relocate(&mut self, h40: u64, old: u32, new: u32) -> bool;

    /// Takes one entry out. False if it is not there; then nothing changed.
    fn remove(&mut self, h40: u64, vbn: u32) -> bool;

    /// The page numbers of all entries with this hash, and of some that look alike.
    fn candidates(&self, h40: u64, each: impl FnMut(u32));

    /// What it holds and takes.
    fn shape(&self) -> Shape;

    /// Whether so many entries are within the load band.
    fn suits(&self, entries: usize) -> bool;

    /// Whether entries have strayed so far from home that a rebuild pays.
    fn strained(&self) -> bool;

    /// What the table keeps of a hash, but for the place.
    fn fingerprint(&self, h40: u64) -> u64;

    /// All entries: fingerprint and page number, in no order.
    fn dump(&self) -> Vec<(u64, u32)>;

    /// Address and number of the buckets, as a hint for the processor.
    fn hint(&self) -> (usize, u32);
}

/// The table of cache-line buckets. The production [`Table`].
#[derive(Debug)]
pub(crate) struct Buckets {
    lines: Box<[Bucket]>,
    /// Low bits of an entry that are its page number.
    width: u32,
    /// The low bits of a hash that tell entries apart.
    mask: u32,
    entries: usize,
    displaced: usize,
    /// (low 32 bits of the hash, page number), sorted by hash.
    spill: Vec<(u32, u32)>,
    /// Displaced and spilled when the table was built: a rebuild does not do better.
    built: (usize, usize),
}

/// Where a hash leads in a table of a certain width.
#[derive(Clone, Copy)]
struct Probe {
    low: u32,
    home: usize,
    tag: u32,
    /// The fingerprint where it stands in an entry.
    print: u32,
}

/// A place that a search has come to.
#[derive(Clone, Copy)]
struct Place {
    bucket: usize,
    slot: usize,
    hops: u32,
}

/// The narrowest page number that covers this one.
fn width_for(vbn: u32) -> u32 {
    debug_assert!(vbn >> MAX_WIDTH == 0);
    (32 - vbn.leading_zeros()).clamp(MIN_WIDTH, MAX_WIDTH)
}

/// The home bucket, of so many, of a hash with these low 32 bits.
#[inline]
fn home(low: u32, buckets: usize) -> usize {
    ((u64::from(low) * buckets as u64) >> 32) as usize
}

/// The offset in bytes of a hash's home bucket, of so many.
#[inline]
pub(super) fn home_offset(h40: u64, buckets: u32) -> usize {
    home(h40 as u32, buckets as usize) * size_of::<Bucket>()
}

/// The buckets built for so many slots: an odd number.
fn buckets_for(slots: usize) -> usize {
    slots.div_ceil(SLOTS) | 1
}

impl Buckets {
    #[inline]
    fn probe(&self, h40: u64) -> Probe {
        let low = h40 as u32;
        let known = low & self.mask;
        Probe {
            low,
            home: home(low, self.lines.len()),
            tag: known & 15,
            print: (known >> 4) << self.width,
        }
    }

    /// The bucket after this one on the path of a tag.
    #[inline]
    fn next(&self, bucket: usize, tag: u32) -> usize {
        let n = self.lines.len();
        let mut step = 1_usize << (tag >> 1);
        if step >= n {
            step %= n;
        }
        let next = if tag & 1 == 0 { bucket + step } else { bucket + n - step };
        if next >= n { next - n } else { next }
    }

    #[inline]
    fn vbn_mask(&self) -> u32 {
        (1 << self.width) - 1
    }

    /// Buckets that an insertion tries.
    fn cap(&self) -> u32 {
        HOP_CAP.min(self.lines.len() as u32)
    }

    /// Takes back what the first `hops` buckets from `bucket` on counted of an entry.
    fn unpass(&mut self, mut bucket: usize, tag: u32, hops: u32) {
        for _ in 0..hops {
            self.lines[bucket].unpass();
            bucket = self.next(bucket, tag);
        }
    }

    /// The first entry with this fingerprint and page number, and the first empty slot on the way.
    fn find(&self, probe: Probe, vbn: u32) -> Option<(Place, Option<Place>)> {
        // A page number too wide for the table is in no entry, and would look like a fingerprint.
        if vbn > self.vbn_mask() {
            return None;
        }
        let wanted = probe.print | vbn;
        let (mut at, mut hops) = (probe.home, 0);
        let mut free = None;
        loop {
            let bucket = &self.lines[at];
            if let Some(slot) = bucket.tagged(probe.tag).find(|slot| bucket.entry(*slot) == wanted)
            {
                return Some((Place { bucket: at, slot, hops }, free));
            }
            if free.is_none() {
                free = bucket.free().map(|slot| Place { bucket: at, slot, hops });
            }
            hops += 1;
            if !bucket.passed(probe.tag) || hops as usize >= self.lines.len() {
                return None;
            }
            at = self.next(at, probe.tag);
        }
    }

    /// The first empty slot within the cap.
    fn find_free(&self, probe: Probe) -> Option<Place> {
        let (mut at, mut hops) = (probe.home, 0);
        loop {
            if let Some(slot) = self.lines[at].free() {
                return Some(Place { bucket: at, slot, hops });
            }
            hops += 1;
            if hops >= self.cap() {
                return None;
            }
            at = self.next(at, probe.tag);
        }
    }

    /// The spilled entries of a hash.
    fn spilled(&self, low: u32) -> std::ops::Range<usize> {
        let start = self.spill.partition_point(|(l, _)| *l < low);
        let len = self.spill[start..].iter().take_while(|(l, _)| *l == low).count();
        start..start + len
    }

    /// The spilled entry of exactly this hash and page number.
    fn find_spilled(&self, low: u32, vbn: u32) -> Option<usize> {
        if self.spill.is_empty() {
            return None;
        }
        self.spilled(low).find(|i| self.spill[*i].1 == vbn)
    }

    /// Makes room for a page number by dropping the top bits of every fingerprint.
    fn widen(&mut self, vbn: u32) {
        let width = width_for(vbn);
        if width <= self.width {
            return;
        }
        let (old, mask) = (self.width, self.vbn_mask());
        for bucket in &mut self.lines {
            for slot in 0..SLOTS {
                let entry = bucket.entry(slot);
                // The shift to the left drops the bits; an empty slot stays zero.
                bucket.set(slot, ((entry >> old) << width) | (entry & mask));
            }
        }
        self.width = width;
    }

    /// Moves a spilled entry with a new page number into the buckets if there is room by now.
    fn relocate_spilled(&mut self, probe: Probe, spilled: usize, new: u32) {
        let Some(free) = self.find_free(probe) else {
            self.spill[spilled].1 = new;
            return;
        };
        self.spill.remove(spilled);
        self.lines[free.bucket].put(free.slot, probe.tag, probe.print | new);
        self.unpass(free.bucket, probe.tag, self.cap() - free.hops);
        self.undisplace(free.hops == 0);
    }

    /// Notes whether one entry less is displaced.
    fn undisplace(&mut self, one: bool) {
        self.displaced = self.displaced.saturating_sub(usize::from(one));
    }
}

impl Table for Buckets {
    fn with_slots(slots: usize, top_vbn: u32, fingerprint_bits: u32) -> Self {
        Buckets {
            lines: vec![Bucket::EMPTY; buckets_for(slots)].into_boxed_slice(),
            width: width_for(top_vbn),
            mask: u32::MAX.checked_shr(32_u32.saturating_sub(fingerprint_bits)).unwrap_or(0),
            entries: 0,
            displaced: 0,
            spill: Vec::new(),
            built: (0, 0),
        }
    }

    fn bytes_for(slots: usize) -> u64 {
        (buckets_for(slots) * size_of::<Bucket>()) as u64
    }

    fn settle(&mut self) {
        self.spill.shrink_to_fit();
        self.built = (self.displaced, self.spill.len());
    }

    fn insert(&mut self, h40: u64, vbn: u32) {
        debug_assert!(vbn != 0);
        self.widen(vbn);
        let probe = self.probe(h40);
        let mut at = probe.home;
        self.entries += 1;
        for hops in 0..self.cap() {
            if let Some(slot) = self.lines[at].free() {
                self.lines[at].put(slot, probe.tag, probe.print | vbn);
                self.displaced += usize::from(hops > 0);
                return;
            }
            self.lines[at].pass(probe.tag);
            at = self.next(at, probe.tag);
        }
        self.displaced += 1;
        let place = self.spill.partition_point(|(low, _)| *low <= probe.low);
        self.spill.insert(place, (probe.low, vbn));
    }

    fn relocate(&mut self, h40: u64, old: u32, new: u32) -> bool {
        debug_assert!(new != 0);
        self.widen(new);
        let probe = self.probe(h40);
        // The spill list knows whole hashes: what is found there is this key's entry for certain.
        if let Some(spilled) = self.find_spilled(probe.low, old) {
            self.relocate_spilled(probe, spilled, new);
            return true;
        }
        let Some((place, free)) = self.find(probe, old) else { return false };
        match free {
            None => self.lines[place.bucket].set(place.slot, probe.print | new),
            Some(free) => {
                self.lines[free.bucket].put(free.slot, probe.tag, probe.print | new);
                self.lines[place.bucket].put(place.slot, 0, 0);
                self.unpass(free.bucket, probe.tag, place.hops - free.hops);
                self.undisplace(free.hops == 0);
            }
        }
        true
    }

    fn remove(&mut self, h40: u64, vbn: u32) -> bool {
        let probe = self.probe(h40);
        let hops = if let Some(spilled) = self.find_spilled(probe.low, vbn) {
            self.spill.remove(spilled);
            self.cap()
        } else if let Some((place, _)) = self.find(probe, vbn) {
            self.lines[place.bucket].put(place.slot, 0, 0);
            place.hops
        } else {
            return false;
        };
        self.unpass(probe.home, probe.tag, hops);
        self.entries -= 1;
        self.undisplace(hops > 0);
        true
    }

    #[inline]
    fn candidates(&self, h40: u64, mut each: impl FnMut(u32)) {
        let probe = self.probe(h40);
        let mask = self.vbn_mask();
        let (mut at, mut hops) = (probe.home, 0);
        loop {
            let bucket = &self.lines[at];
            for slot in bucket.tagged(probe.tag) {
                let entry = bucket.entry(slot);
                if (entry ^ probe.print) <= mask && entry != 0 {
                    each(entry & mask);
                }
            }
            if !bucket.passed(probe.tag) {
                return;
            }
            hops += 1;
            if hops == self.cap() {
                for spilled in self.spilled(probe.low) {
                    each(self.spill[spilled].1);
                }
            }
            if hops as usize >= self.lines.len() {
                return;
            }
            at = self.next(at, probe.tag);
        }
    }

    fn shape(&self) -> Shape {
        Shape {
            entries: self.entries,
            slots: self.lines.len() * SLOTS,
            displaced: self.displaced,
            spilled: self.spill.len(),
            table_bytes: size_of_val::<[Bucket]>(&self.lines) as u64,
            spill_bytes: (self.spill.capacity() * size_of::<(u32, u32)>()) as u64,
        }
    }

    fn suits(&self, entries: usize) -> bool {
        let slots = self.lines.len() * SLOTS;
        let below = self.lines.len() > SMALL && entries * 100 < LOAD_MIN * slots;
        entries * 100 <= LOAD_MAX * slots && !below
    }

    fn strained(&self) -> bool {
        let (displaced, spilled) = self.built;
        let strayed = self.displaced * 100 > self.entries * DISPLACED_MAX
            && self.displaced > displaced + displaced / 4 + SLOTS;
        strayed || self.spill.len() > SPILL_MAX + 2 * spilled
    }

    fn fingerprint(&self, h40: u64) -> u64 {
        let probe = self.probe(h40);
        u64::from(probe.print >> self.width) << 4 | u64::from(probe.tag)
    }

    fn dump(&self) -> Vec<(u64, u32)> {
        let mut all = Vec::with_capacity(self.entries);
        for bucket in &self.lines {
            for slot in 0..SLOTS {
                let entry = bucket.entry(slot);
                if entry != 0 {
                    let print = u64::from(entry >> self.width) << 4 | u64::from(bucket.tag(slot));
                    all.push((print, entry & self.vbn_mask()));
                }
            }
        }
        all.extend(self.spill.iter().map(|(low, vbn)| (self.fingerprint(u64::from(*low)), *vbn)));
        all
    }

    fn hint(&self) -> (usize, u32) {
        (self.lines.as_ptr().addr(), self.lines.len() as u32)
    }
}

#[cfg(test)]
impl Buckets {
    /// Buckets whose count is not zero: those that stick, and others.
    pub(super) fn counted(&self) -> (usize, usize) {
        let of = |sticky: bool| {
            let stuck = |b: &&Bucket| (b.count() == super::bucket::STICKY) == sticky;
            self.lines.iter().filter(|b| b.count() > 0).filter(stuck).count()
        };
        (of(true), of(false))
    }

    /// The width of a page number.
    pub(super) fn width(&self) -> u32 {
        self.width
    }
}
