//! Filling memtables again from the logs, beside the reading of them.
//!
//! Inserting takes longer than reading and checking, so a thread of its own does it, and goes on while what
//! was read is made durable. It touches nothing but memory: a database that is refused is left as it is.
//! Under manual background work all of it happens in the thread that reads, with the same outcome.
//!
//! Invariants: operations are inserted in the order in which they were read; what is on the way is at
//! most [`ON_THE_WAY`] bytes, or one operation. Called by `open`.

use super::MemSlot;
use crate::sync::atomic::Ordering;
use crate::sync::{Arc, Condvar, Mutex};
use crate::types::{KeyspaceId, Kind, LogId, SeqNo};
use crate::wal::Op;
use std::collections::VecDeque;
use std::thread::JoinHandle;

/// A recovered memtable is flushed rather than filled on once it stands for so many logs.
pub(super) const MAX_REPLAYED_LOGS: usize = 8;

/// An insert begins with a load that misses the processor's caches; it is asked for so many
/// operations earlier.
const AHEAD: usize = 8;

/// Bytes of keys and values from which on a piece is handed over.
const PIECE: usize = if cfg!(test) { 4 << 10 } else { 256 << 10 };

/// Bytes that may wait for the other thread.
const ON_THE_WAY: usize = 64 * PIECE;

/// What the logs gave.
pub(super) struct Memtables {
    pub(super) active: Arc<MemSlot>,
    pub(super) frozen: Vec<Arc<MemSlot>>,
    pub(super) logs_in_active: usize,
}

/// Operations in the order in which they were read.
#[derive(Default)]
struct Piece {
    items: Vec<Item>,
    /// The keys and values of the operations, one behind the other.
    bytes: Vec<u8>,
}

enum Item {
    /// A log begins, with this number.
    Log(LogId, SeqNo),
    Op {
        keyspace: KeyspaceId,
        kind: Kind,
        seqno: SeqNo,
        hash: u64,
        key: usize,
        value: usize,
    },
}

/// Puts pieces into memtables.
struct Refill {
    write_buffer_bytes: usize,
    memtables: Memtables,
}

impl Refill {
    fn take(&mut self, piece: &Piece) {
        let mut rest = &piece.bytes[..];
        for (at, item) in piece.items.iter().enumerate() {
            if let Some(Item::Op { hash, .. }) = piece.items.get(at + AHEAD) {
                self.memtables.active.table.prefetch(*hash);
            }
            match *item {
                Item::Log(log, seqno) => self.begin_log(log, seqno),
                Item::Op { keyspace, kind, seqno, hash, key, value } => {
                    let (op, behind) = rest.split_at(key + value);
                    let (key, value) = op.split_at(key);
                    rest = behind;
                    let table = &self.memtables.active.table;
                    table.insert(keyspace, key, hash, seqno, kind, value);
                }
            }
        }
    }

    /// Only between logs does another memtable begin: a batch must not be flushed in part.
    fn begin_log(&mut self, log: LogId, first: SeqNo) {
        let Memtables { active, frozen, logs_in_active } = &mut self.memtables;
        *logs_in_active += 1;
        let full = active.table.allocated_bytes() >= self.write_buffer_bytes;
        if full || *logs_in_active > MAX_REPLAYED_LOGS {
            active.last_seqno.store(first.0 - 1, Ordering::Release);
            frozen.insert(0, std::mem::replace(active, MemSlot::new(log)));
            *logs_in_active = 1;
        }
    }
}

/// Takes what is read of the logs. If it is dropped, because that is refused, the thread ends by itself.
pub(super) struct Filler {
    piece: Piece,
    current: LogId,
    work: Work,
}

enum Work {
    Here(Refill),
    Beside { queue: Putter, thread: JoinHandle<Refill> },
}

impl Filler {
    /// For logs from `floor` on; in a thread of its own, if that is allowed and can be had.
    pub(super) fn new(floor: LogId, write_buffer_bytes: usize, threads: bool) -> Filler {
        let refill = || {
            let (active, frozen) = (MemSlot::new(floor), Vec::new());
            let memtables = Memtables { active, frozen, logs_in_active: 1 };
            Refill { write_buffer_bytes, memtables }
        };
        let queue = Arc::new(Queue::default());
        let start = || {
            let (queue, mut refill) = (Taker(Arc::clone(&queue)), refill());
            let work = move || {
                while let Some(piece) = queue.0.take() {
                    refill.take(&piece);
                }
                refill
            };
            std::thread::Builder::new().name("ashlar-refill".to_owned()).spawn(work)
        };
        let work = match threads.then(start) {
            Some(Ok(thread)) => Work::Beside { queue: Putter(queue), thread },
            _ => Work::Here(refill()),
        };
        Filler { piece: Piece::default(), current: floor, work }
    }

    /// Hears from which log the next operation is, and its number.
    pub(super) fn at(&mut self, log: LogId, seqno: SeqNo) {
        if log != self.current {
            self.current = log;
            self.piece.items.push(Item::Log(log, seqno));
        }
    }

    /// Takes an operation.
    pub(super) fn push(&mut self, op: &Op<'_>, hash: u64, seqno: SeqNo) {
        let Op { keyspace, kind, key, value } = *op;
        self.piece.bytes.extend_from_slice(key);
        self.piece.bytes.extend_from_slice(value);
        let (key, value) = (key.len(), value.len());
        self.piece.items.push(Item::Op { keyspace, kind, seqno, hash, key, value });
        if self.piece.bytes.len() >= PIECE || self.piece.items.len() >= PIECE {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        match &mut self.work {
            Work::Here(refill) => {
                refill.take(&self.piece);
                self.piece.items.clear();
                self.piece.bytes.clear();
                self.piece.bytes.shrink_to(2 * PIECE);
            }
            Work::Beside { queue, .. } => queue.0.put(std::mem::take(&mut self.piece)),
        }
    }

    /// Everything was read: the memtables, once all is in them.
    pub(super) fn finish(mut self) -> Memtables {
        self.hand_over();
        match self.work {
            Work::Here(refill) => refill.memtables,
            Work::Beside { queue, thread } => {
                drop(queue);
                let joined = thread.join();
                joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).memtables
            }
        }
    }
}

/// Pieces on their way from one thread to another.
#[derive(Default)]
struct Queue {
    pieces: Mutex<Pieces>,
    changed: Condvar,
}

#[derive(Default)]
struct Pieces {
    waiting: VecDeque<Piece>,
    bytes: usize,
    /// No more will come.
    closed: bool,
    /// Nobody takes any more.
    abandoned: bool,
}

impl Queue {
    /// Adds a piece, when there is room for it.
    fn put(&self, piece: Piece) {
        let mut pieces = self.pieces.lock();
        let bytes = piece.bytes.len();
        while !pieces.waiting.is_empty() && pieces.bytes + bytes > ON_THE_WAY && !pieces.abandoned {
            self.changed.wait(&mut pieces);
        }
        if !pieces.abandoned {
            pieces.bytes += bytes;
            pieces.waiting.push_back(piece);
            self.changed.notify_all();
        }
    }

    /// The next piece; `None` once there is none and none will come.
    fn take(&self) -> Option<Piece> {
        let mut pieces = self.pieces.lock();
        loop {
            if let Some(piece) = pieces.waiting.pop_front() {
                pieces.bytes -= piece.bytes.len();
                self.changed.notify_all();
                return Some(piece);
            }
            if pieces.closed {
                return None;
            }
            self.changed.wait(&mut pieces);
        }
    }
}

/// The end of a queue where pieces go in. Once it is gone, no more come.
struct Putter(Arc<Queue>);

impl Drop for Putter {
    fn drop(&mut self) {
        self.0.pieces.lock().closed = true;
        self.0.changed.notify_all();
    }
}

/// The end where they come out. Once it is gone, whoever puts one need not wait.
struct Taker(Arc<Queue>);

impl Drop for Taker {
    fn drop(&mut self) {
        let mut pieces = self.0.pieces.lock();
        pieces.abandoned = true;
        pieces.waiting.clear();
        drop(pieces);
        self.0.changed.notify_all();
    }
}
