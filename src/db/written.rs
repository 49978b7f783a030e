//! What was written while transactions are open, for them to see whether it touches what they read.
//!
//! ```text
//! chunk 7        chunk 8      chunk 9       chunk 10, still growing
//!           ↑ two transactions began here        ↑ the newest one will begin here
//! ```
//!
//! A list of the keys and ranges that commits wrote to, in the order of the commits, cut where a
//! transaction begins: so what was written since is whole chunks, and what lies before the oldest
//! transaction is let go of without a look. Chunks are as the log encodes operations, each key as a
//! delete. Beyond a budget the oldest chunks go, and the transactions that would need them can no
//! longer be told that nothing they read was written.
//!
//! Invariant: every operation that was published since an open transaction began is in the chunks
//! from its start on, or its start lies before the first chunk. Belongs to the writer, under whose
//! lock transactions begin and all commits are made; while none is open it holds nothing, and a
//! write costs one look at that.

use crate::sync::Arc;
use crate::types::{KeyspaceId, Kind};
use crate::wal::{Op, Ops, encode_op};
use std::collections::{BTreeMap, VecDeque};

/// A chunk is closed at this size.
const CHUNK_BYTES: usize = 64 << 10;
/// About what a chunk takes beside what is in it.
const CHUNK_OVERHEAD: usize = 96;

/// Operations, encoded.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    ops: Vec<u8>,
    count: u64,
}

impl Chunk {
    /// What they take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.ops.len()
    }

    /// The keys and ranges written to.
    pub(super) fn writes(&self) -> Ops<'_> {
        Ops::new(&self.ops, self.count)
    }

    fn memory(&self) -> usize {
        CHUNK_OVERHEAD + self.ops.capacity()
    }
}

/// The number of a chunk; they rise, and none is ever reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ChunkNo(u64);

/// See the module's text.
#[derive(Debug)]
pub(super) struct Written {
    /// The number of the first chunk that is kept.
    first: ChunkNo,
    closed: VecDeque<Arc<Chunk>>,
    /// The chunk that grows.
    growing: Chunk,
    /// What the closed ones take, in bytes.
    memory: usize,
    budget: usize,
    /// How many transactions need all chunks from one on.
    starts: BTreeMap<ChunkNo, usize>,
}

impl Written {
    /// With a budget in bytes.
    pub(super) fn new(budget: usize) -> Self {
        Written {
            first: ChunkNo(0),
            closed: VecDeque::new(),
            growing: Chunk::default(),
            memory: 0,
            budget,
            starts: BTreeMap::new(),
        }
    }

    /// A transaction begins, which sees all that was written before; the first chunk that it does
    /// not see.
    pub(super) fn begin(&mut self) -> ChunkNo {
        let start = self.end();
        *self.starts.entry(start).or_default() += 1;
        start
    }

    /// A transaction that began there needs nothing more.
    pub(super) fn release(&mut self, start: ChunkNo) {
        // Not there if it was given up.
        if let Some(count) = self.starts.get_mut(&start) {
            *count -= 1;
            if *count == 0 {
                self.starts.remove(&start);
                self.forget_unneeded();
            }
        }
    }

    /// Something is written to a key, or, with [`Kind::DeleteRange`], to the range from `key` to
    /// `value`.
    #[inline]
    pub(super) fn note(&mut self, op: &Op<'_>) {
        if !self.starts.is_empty() {
            self.keep(op);
        }
    }

    /// A whole keyspace is emptied.
    pub(super) fn note_all(&mut self, keyspace: KeyspaceId) {
        self.note(&Op { keyspace, kind: Kind::DeleteRange, key: &[], value: &[] });
    }

    /// Something may be written to each of the keys from `first` to `last`, both included.
    pub(super) fn note_span(&mut self, keyspace: KeyspaceId, first: &[u8], last: &[u8]) {
        if !self.starts.is_empty() {
            let end = [last, &[0]].concat();
            self.note(&Op { keyspace, kind: Kind::DeleteRange, key: first, value: &end });
        }
    }

    /// What was written from a chunk on; `None` if that is no longer known.
    pub(super) fn since(&mut self, start: ChunkNo) -> Option<Vec<Arc<Chunk>>> {
        self.close();
        let skipped = start.0.checked_sub(self.first.0)?;
        Some(self.closed.iter().skip(usize::try_from(skipped).ok()?).cloned().collect())
    }

    /// The number of the chunk that what comes goes to.
    pub(super) fn end(&mut self) -> ChunkNo {
        self.close();
        ChunkNo(self.first.0 + self.closed.len() as u64)
    }

    #[cold]
    fn keep(&mut self, op: &Op<'_>) {
        let kind = if op.kind == Kind::DeleteRange { op.kind } else { Kind::Delete };
        encode_op(&mut self.growing.ops, Op { kind, ..*op });
        self.growing.count += 1;
        if self.growing.ops.len() >= CHUNK_BYTES {
            self.close();
        }
        if self.memory + self.growing.memory() > self.budget {
            self.give_up_oldest();
        }
    }

    fn close(&mut self) {
        if self.growing.count > 0 {
            let chunk = std::mem::take(&mut self.growing);
            self.memory += chunk.memory();
            self.closed.push_back(Arc::new(chunk));
        }
    }

    fn forget_first(&mut self) {
        if let Some(chunk) = self.closed.pop_front() {
            self.first.0 += 1;
            self.memory -= chunk.memory();
        }
    }

    /// Keeps to the budget, at the cost of the transactions that began first.
    #[cold]
    fn give_up_oldest(&mut self) {
        self.close();
        while self.memory > self.budget && !self.closed.is_empty() {
            self.forget_first();
        }
        self.starts = self.starts.split_off(&self.first);
        self.forget_unneeded();
    }

    fn forget_unneeded(&mut self) {
        let Some((oldest, _)) = self.starts.first_key_value() else {
            // Numbers that were given out are not given out again.
            self.close();
            self.first.0 += self.closed.len() as u64;
            (self.closed, self.memory) = (VecDeque::new(), 0);
            return;
        };
        let oldest = *oldest;
        while self.first < oldest && !self.closed.is_empty() {
            self.forget_first();
        }
    }

    /// How many chunks there are, for tests.
    #[cfg(test)]
    pub(super) fn chunks(&self) -> usize {
        self.closed.len() + usize::from(self.growing.count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::{Entropy, SeededEntropy};

    fn put(key: &[u8]) -> Op<'_> {
        Op { keyspace: KeyspaceId(0), kind: Kind::Put, key, value: b"a value" }
    }

    fn keys(chunks: &[Arc<Chunk>]) -> Vec<Vec<u8>> {
        chunks.iter().flat_map(|chunk| chunk.writes()).map(|op| op.unwrap().key.to_vec()).collect()
    }

    #[test]
    fn each_transaction_is_told_what_came_after_it() {
        let rng = SeededEntropy::new(9);
        let mut given_up = [0, 0];
        for round in 0..200 {
            let below = |n: u64| rng.next_u64() % n;
            let budget = [usize::MAX, 2000][round % 2];
            let mut written = Written::new(budget);
            let mut all: Vec<Vec<u8>> = Vec::new();
            let mut open: Vec<(ChunkNo, usize)> = Vec::new();
            for n in 0..300_u64 {
                match below(6) {
                    0 => open.push((written.begin(), all.len())),
                    1 if !open.is_empty() => {
                        let (start, from) = open.swap_remove(below(open.len() as u64) as usize);
                        match written.since(start) {
                            Some(chunks) => assert_eq!(keys(&chunks), all[from..]),
                            None => given_up[round % 2] += 1,
                        }
                        written.release(start);
                    }
                    _ => {
                        let key = n.to_le_bytes().repeat(1 + below(9) as usize);
                        written.note(&put(&key));
                        all.push(key);
                    }
                }
                assert!(written.memory + written.growing.ops.len() <= budget);
                assert_eq!(written.memory, written.closed.iter().map(|c| c.memory()).sum());
                if open.is_empty() {
                    assert_eq!(written.chunks(), 0, "with nobody to read it nothing is kept");
                }
            }
        }
        assert!(given_up[0] == 0 && given_up[1] > 100, "{given_up:?}");
    }

    #[test]
    fn what_lies_before_the_oldest_goes() {
        let mut written = Written::new(usize::MAX);
        let starts: Vec<ChunkNo> = (0..10_u8)
            .map(|n| {
                let start = written.begin();
                written.note(&put(&[n]));
                start
            })
            .collect();
        assert_eq!(written.chunks(), 10);
        written.release(starts[4]);
        assert_eq!(written.chunks(), 10);
        for (at, left) in [(0, 9), (1, 8), (3, 8), (2, 5)] {
            written.release(starts[at]);
            assert_eq!(written.chunks(), left);
        }
        let again = written.begin();
        for start in &starts[5..] {
            written.release(*start);
        }
        assert_eq!(written.chunks(), 0);
        assert_eq!(keys(&written.since(again).unwrap()), Vec::<Vec<u8>>::new());
        // Values are not kept.
        let value = vec![0; 1 << 20];
        written.note(&Op { value: &value, ..put(b"large") });
        assert!(written.since(again).unwrap()[0].bytes() < 20);
        // Long ones are kept in pieces.
        for _ in 0..100 {
            written.note(&put(&[1; 10_000]));
        }
        assert!(written.chunks() > 10);
    }

    #[test]
    fn a_budget_for_nothing_gives_up_whoever_is_open() {
        let mut written = Written::new(0);
        let start = written.begin();
        assert!(written.since(start).is_some());
        written.note(&put(b"k"));
        assert!(written.since(start).is_none());
        let next = written.begin();
        assert!(next > start);
        written.release(start);
        assert!(written.since(next).is_some());
        written.note_all(KeyspaceId(3));
        assert!(written.since(next).is_none());
    }

    #[test]
    fn a_span_ends_behind_its_last_key() {
        let mut written = Written::new(usize::MAX);
        written.note_span(KeyspaceId(3), b"a", b"c");
        assert_eq!(written.chunks(), 0);
        let start = written.begin();
        let longest = vec![0xff; crate::types::MAX_KEY_LEN];
        written.note_span(KeyspaceId(3), b"a", b"c");
        written.note_span(KeyspaceId(3), b"", &longest);
        let chunks = written.since(start).unwrap();
        let ends = |op: Op<'_>| (op.kind, op.key.to_vec(), op.value.to_vec());
        let found: Vec<_> =
            chunks.iter().flat_map(|chunk| chunk.writes()).map(|op| ends(op.unwrap())).collect();
        let span =
            |first: &[u8], last: &[u8]| (Kind::DeleteRange, first.to_vec(), [last, &[0]].concat());
        assert_eq!(found, [span(b"a", b"c"), span(b"", &longest)]);
    }
}
