//! Where one data block ends and the next begins.
//!
//! Entries wait here, encoded, until enough are there for a block that fills its pages: the fewest
//! pages, 1 to 16, that leave at most 6 % padding. Without compression that is arithmetic. With it,
//! the stored size is known only after compressing, so the ratio of the blocks before predicts how
//! many entries fill the pages, and the prediction is corrected and tried again if it missed; on
//! steady data one compression a block is the rule. A block must save a page and a sixteenth of
//! its size, or it is stored raw.
//!
//! Used by the segment writer alone; one thread. Memory: the waiting entries, at most 64 KiB raw
//! plus one entry, and as much for compressed candidates.

use super::format::{
    BLOCK_HEADER_LEN, BlockHeader, ENTRY_HEADER_LEN, FLAG_SAME_KEY, FLAG_SEQNO, MAX_BLOCK_PAGES,
    MAX_RAW, common_prefix_len, prefix_of, trailer_len,
};
use crate::coding::{put_u16, u16_at};
use crate::compression::{CODEC_NONE, Compression, Compressor};
use crate::types::PAGE;

/// The share of a block that must be used, where that is possible.
const FILL_MIN: f64 = 0.94;
/// What a compressed block is aimed at: safely inside the room that is accepted.
const AIM_MIN: f64 = 0.95;
const AIM_MAX: f64 = 0.985;
/// Compressing must save this share, or the block is not worth decompressing at every read.
const WORTHWHILE: f64 = 15.0 / 16.0;
/// After so many compressions for one block the best so far is taken.
const TRIALS_MAX: u32 = 4;
/// The expected ratio before anything was compressed.
const RATIO_FIRST: f64 = 0.6;

/// A block that is ready to be written.
#[derive(Clone, Copy)]
pub(super) struct Cut {
    pub(super) entries: usize,
    pub(super) pages: usize,
    /// Stored as the compressed candidate that the cutter keeps; otherwise raw.
    pub(super) compressed: bool,
}

enum Choice {
    Cut {
        entries: usize,
        pages: usize,
    },
    /// Not before the waiting entries fill this many bytes.
    Wait(f64),
}

/// The waiting entries and what is known of how they compress.
pub(super) struct Cutter {
    data: Vec<u8>,
    /// Where each entry ends in `data`.
    ends: Vec<usize>,
    hashes: Vec<u8>,
    width: usize,
    codec: u8,
    compressor: Option<Compressor>,
    ratio: f64,
    /// There is nothing to decide below this raw length of the waiting entries.
    next_check: usize,
    trials: u32,
    /// Compressing the next block was tried and did not pay.
    declined: bool,
    /// The best candidate so far; if compressed, its bytes are in `best_bytes`.
    best: Option<Cut>,
    best_bytes: Vec<u8>,
    trial_bytes: Vec<u8>,
    scratch: Vec<u8>,
    /// All compressions made, for tests of their number.
    pub(super) compressions: u64,
}

fn pages_for(bytes: usize) -> usize {
    bytes.div_ceil(PAGE).max(1)
}

impl Cutter {
    pub(super) fn new(compression: Compression, width: u8) -> Result<Cutter, &'static str> {
        let compressor = match compression {
            Compression::None => None,
            other => Some(Compressor::new(other)?),
        };
        Ok(Cutter {
            data: Vec::new(),
            ends: Vec::new(),
            hashes: Vec::new(),
            width: usize::from(width),
            codec: compression.codec(),
            compressor,
            ratio: RATIO_FIRST,
            next_check: 0,
            trials: 0,
            declined: false,
            best: None,
            best_bytes: Vec::new(),
            trial_bytes: Vec::new(),
            scratch: Vec::new(),
            compressions: 0,
        })
    }

    /// Adds an entry; `encode` appends its bytes.
    #[inline]
    pub(super) fn push(&mut self, hash_byte: u8, encode: impl FnOnce(&mut Vec<u8>)) {
        encode(&mut self.data);
        self.ends.push(self.data.len());
        self.hashes.push(hash_byte);
    }

    /// How many entries wait.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// About how many bytes the waiting entries will take in the file.
    pub(super) fn estimated_bytes(&self) -> u64 {
        if self.compressor.is_none() {
            return self.data.len() as u64;
        }
        (self.data.len() as f64 * self.ratio) as u64
    }

    /// The key of waiting entry `i`.
    pub(super) fn key(&self, i: usize) -> &[u8] {
        let start = self.start(i);
        let len = u16_at(&self.data, start).map_or(0, usize::from);
        let flags = self.data.get(start + 6).copied().unwrap_or_default();
        let at = start + ENTRY_HEADER_LEN + if flags & FLAG_SEQNO != 0 { 8 } else { 0 };
        &self.data[at..at + len]
    }

    /// How many keys have their newest version among the first `entries` waiting ones.
    pub(super) fn distinct_keys(&self, entries: usize) -> u32 {
        let flags = |i: usize| self.data.get(self.start(i) + 6).copied().unwrap_or_default();
        (0..entries).filter(|i| flags(*i) & FLAG_SAME_KEY == 0).count() as u32
    }

    fn start(&self, i: usize) -> usize {
        if i == 0 { 0 } else { self.ends[i - 1] }
    }

    /// The raw payload length, without padding, of the first `entries` waiting ones.
    fn raw_len(&self, entries: usize) -> usize {
        self.start(entries) + trailer_len(entries, self.width)
    }

    /// Whether the next block may be decided by now.
    #[inline]
    pub(super) fn is_due(&self) -> bool {
        self.data.len() + trailer_len(self.len(), self.width) >= self.next_check
    }

    /// The next block, if the waiting entries decide it; with `finishing`, always one while any
    /// wait. The caller writes it and calls [`drop_front`](Self::drop_front).
    pub(super) fn next(&mut self, finishing: bool) -> Option<Cut> {
        let total = self.len();
        if total == 0 || (!finishing && !self.is_due()) {
            return None;
        }
        if self.raw_len(1) > MAX_RAW {
            return Some(self.alone());
        }
        loop {
            if self.compressor.is_none() || self.declined || self.ratio > WORTHWHILE {
                let choice = self.choose(finishing, 1.0, FILL_MIN, 1.0);
                let Choice::Cut { entries, pages } = choice else { return self.wait(choice, 1.0) };
                if self.compressor.is_some() && !self.declined {
                    match self.trial(entries) {
                        Some(ratio) if ratio <= WORTHWHILE => {
                            self.ratio = ratio;
                            continue;
                        }
                        _ => self.declined = true,
                    }
                }
                return Some(Cut { entries, pages, compressed: false });
            }
            if self.trials >= TRIALS_MAX {
                if self.best.is_some() {
                    return self.best;
                }
                self.declined = true;
                continue;
            }
            let choice = self.choose(finishing, self.ratio, AIM_MIN, AIM_MAX);
            let Choice::Cut { entries, .. } = choice else {
                return self.wait(choice, self.ratio);
            };
            if self.best.is_some_and(|best| best.entries == entries) {
                return self.best;
            }
            if let Some(cut) = self.try_compressed(entries) {
                return Some(cut);
            }
        }
    }

    fn wait(&mut self, choice: Choice, ratio: f64) -> Option<Cut> {
        if let Choice::Wait(fill) = choice {
            let raw = (fill - BLOCK_HEADER_LEN as f64) / ratio.max(0.001);
            self.next_check = (raw as usize).min(MAX_RAW + 1);
        }
        None
    }

    /// The fewest pages whose use lies between the two shares, if the first entries take their raw
    /// length times `ratio`; if none does, those with the least padding.
    fn choose(&self, finishing: bool, ratio: f64, least: f64, most: f64) -> Choice {
        let fill = |entries: usize| {
            BLOCK_HEADER_LEN as f64 + (self.raw_len(entries) as f64 * ratio).ceil()
        };
        let total = self.len();
        let fitting = |fits: &dyn Fn(usize) -> bool| {
            let (mut low, mut high) = (0, total);
            while low < high {
                let middle = (low + high).div_ceil(2);
                if fits(middle) { low = middle } else { high = middle - 1 }
            }
            low
        };
        let cap = fitting(&|entries| self.raw_len(entries) <= MAX_RAW);
        let mut best = (1, pages_for(fill(1) as usize), 0.0);
        for pages in 1..=MAX_BLOCK_PAGES {
            let room = (pages * PAGE) as f64;
            let entries = fitting(&|entries| fill(entries) <= room * most).min(cap);
            if entries == total && !finishing {
                return Choice::Wait(room * most);
            }
            if entries == 0 {
                continue;
            }
            let used = fill(entries) / room;
            if used > best.2 {
                best = (entries, pages, used);
            }
            // More pages would take no more entries.
            if used >= least || entries == cap || entries == total {
                break;
            }
        }
        Choice::Cut { entries: best.0, pages: best.1 }
    }

    /// Compresses the first `entries` into `trial_bytes`; gives the ratio if they shrank at all.
    fn trial(&mut self, entries: usize) -> Option<f64> {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        scratch.extend_from_slice(&self.data[..self.start(entries)]);
        self.put_trailer(entries, &mut scratch);
        self.trials += 1;
        self.compressions += 1;
        let shrank = self
            .compressor
            .as_mut()
            .is_some_and(|compressor| compressor.compress(&scratch, &mut self.trial_bytes));
        let ratio = self.trial_bytes.len() as f64 / scratch.len() as f64;
        self.scratch = scratch;
        shrank.then_some(ratio)
    }

    /// Compresses the first `entries`; a block if they fill their pages well.
    fn try_compressed(&mut self, entries: usize) -> Option<Cut> {
        let raw_pages = pages_for(BLOCK_HEADER_LEN + self.raw_len(entries));
        let ratio = self.trial(entries).unwrap_or(1.0);
        if ratio > WORTHWHILE {
            self.declined = true;
            self.ratio = 1.0;
            return None;
        }
        // A block that saves no page is stored raw.
        let stored = BLOCK_HEADER_LEN + self.trial_bytes.len();
        let pages = pages_for(stored);
        let compressed = pages < raw_pages;
        let (pages, used) = if compressed {
            (pages, stored)
        } else {
            (raw_pages, BLOCK_HEADER_LEN + self.raw_len(entries))
        };
        // The least room in the file for what it holds is best.
        let cost = |cut: &Cut| (cut.pages * PAGE) as f64 / self.raw_len(cut.entries) as f64;
        let cut = Cut { entries, pages, compressed };
        if self.best.is_none_or(|best| cost(&cut) < cost(&best)) {
            self.best = Some(cut);
            if compressed {
                std::mem::swap(&mut self.best_bytes, &mut self.trial_bytes);
            }
        }
        if used as f64 >= FILL_MIN * (pages * PAGE) as f64 {
            // Smoothed, so that one odd block does not spoil the next prediction.
            self.ratio += (ratio - self.ratio) / 4.0;
            return self.best;
        }
        self.ratio = ratio;
        None
    }

    /// The first entry by itself: it is too long to share a block.
    fn alone(&mut self) -> Cut {
        let raw_pages = pages_for(BLOCK_HEADER_LEN + self.raw_len(1));
        if self.compressor.is_some() && self.trial(1).is_some() {
            let pages = pages_for(BLOCK_HEADER_LEN + self.trial_bytes.len());
            if pages < raw_pages {
                std::mem::swap(&mut self.best_bytes, &mut self.trial_bytes);
                return Cut { entries: 1, pages, compressed: true };
            }
        }
        Cut { entries: 1, pages: raw_pages, compressed: false }
    }

    /// Appends the sealed block that was cut to `out`, to lie at `offset` of a file with this
    /// salt. Gives the bytes used in it: all but padding.
    pub(super) fn write(&self, cut: &Cut, out: &mut Vec<u8>, salt: u64, offset: u64) -> usize {
        let start = out.len();
        let len = cut.pages * PAGE;
        out.reserve(len);
        out.resize(start + BLOCK_HEADER_LEN, 0);
        let raw_len = self.raw_len(cut.entries);
        let (used, stored, raw) = if cut.compressed {
            out.extend_from_slice(&self.best_bytes);
            out.resize(start + len, 0);
            let stored = self.best_bytes.len();
            (BLOCK_HEADER_LEN + stored, stored, raw_len)
        } else {
            out.extend_from_slice(&self.data[..self.start(cut.entries)]);
            out.resize(start + len - trailer_len(cut.entries, self.width), 0);
            self.put_trailer(cut.entries, out);
            let room = len - BLOCK_HEADER_LEN;
            (BLOCK_HEADER_LEN + raw_len, room, room)
        };
        let header = BlockHeader {
            pages: cut.pages as u32,
            stored: stored as u64,
            raw: raw as u64,
            entries: cut.entries as u16,
            codec: if cut.compressed { self.codec } else { CODEC_NONE },
            prefix_width: self.width as u8,
            common: self.common(cut.entries) as u16,
        };
        header.seal(&mut out[start..], salt, offset);
        used
    }

    fn common(&self, entries: usize) -> usize {
        if self.width == 0 {
            return 0;
        }
        common_prefix_len(self.key(0), self.key(entries - 1))
    }

    fn put_trailer(&self, entries: usize, out: &mut Vec<u8>) {
        let end = out.len() + trailer_len(entries, self.width);
        let common = self.common(entries);
        if self.width != 0 {
            for i in 0..entries {
                let prefix = prefix_of(&self.key(i)[common..], self.width).to_le_bytes();
                out.extend_from_slice(&prefix[..self.width]);
            }
        }
        for i in 0..entries {
            put_u16(out, self.start(i) as u16);
        }
        out.extend_from_slice(&self.hashes[..entries]);
        out.resize(end, 0);
    }

    /// Forgets the first `entries`, which were written, and starts on the next block.
    pub(super) fn drop_front(&mut self, entries: usize) {
        let bytes = self.start(entries);
        self.data.drain(..bytes);
        self.hashes.drain(..entries);
        self.ends.drain(..entries);
        for end in &mut self.ends {
            *end -= bytes;
        }
        self.next_check = 0;
        self.trials = 0;
        self.declined = false;
        self.best = None;
        // A huge value must not hold its memory for the rest of the segment.
        for buffer in
            [&mut self.data, &mut self.scratch, &mut self.best_bytes, &mut self.trial_bytes]
        {
            if buffer.capacity() > 1 << 20 {
                buffer.shrink_to(128 << 10);
            }
        }
    }
}
