//! Models of the memtable's parts that take no lock: the index and the arena, one writer and two
//! readers, under every schedule and every order of memory that the language allows. The leaves
//! have models of their own.

use super::arena::{Arena, ArenaWriter, Entry, NewEntry, Ref};
use super::hash_index::HashIndex;
use crate::sync::Arc;
use crate::sync::modeled::{Mistake, explore, makes};
use crate::types::{KeyspaceId, Kind, SeqNo};
use loom::sync::atomic::{AtomicU64, Ordering};

/// What is written: the key, in order. The first is written twice; the later ones make the
/// table double.
const WRITES: [u8; 3] = [0, 0, 1];

/// All in one table, in slots that meet.
fn hash(key: u8) -> u64 {
    u64::from(key) << 50
}

struct Model {
    index: HashIndex,
    arena: Arc<Arena>,
    /// How many writes are published, as the database publishes them.
    visible: AtomicU64,
}

impl Model {
    fn newest(&self, key: u8) -> Option<(Ref, Entry<'_>)> {
        self.index.find(hash(key), |at| {
            let entry = self.arena.entry(at)?;
            (entry.key() == [key]).then_some((at, entry))
        })
    }

    fn write(&self, writer: &mut ArenaWriter, key: u8) {
        let seqno = self.visible.load(Ordering::Relaxed) + 1;
        let is_older = |at| self.arena.entry(at).is_some_and(|entry| entry.key() == [key]);
        let (keyspace, value) = (KeyspaceId(0), &[seqno as u8]);
        let name = [key];
        let entry = |prev| NewEntry {
            keyspace,
            key: &name,
            seqno: SeqNo(seqno),
            kind: Kind::Put,
            prev,
            value,
        };
        if makes(Mistake::OfTheModel) {
            // The index first. Entries of 26 bytes, in the first chunk.
            let at = Ref::from_bits(1 << 20 | ((seqno - 1) * 26)).unwrap();
            let prev = self.newest(key).map(|(at, _)| at);
            self.index.put(hash(key), is_older, |_| at);
            assert_eq!(writer.append(entry(prev)), at);
        } else {
            self.index.put(hash(key), is_older, |prev| writer.append(entry(prev)));
        }
        self.visible.store(seqno, Ordering::Release);
    }

    /// Every key, as of what is published now.
    fn read(&self) {
        let visible = self.visible.load(Ordering::Acquire);
        for key in [0, 1] {
            let written = (1..=visible).rev().find(|n| WRITES[*n as usize - 1] == key);
            let mut found = self.newest(key).map(|(_, entry)| entry);
            while let Some(entry) = found
                && entry.seqno().0 > visible
            {
                found = entry.prev().map(|at| self.arena.entry(at).expect("it was published"));
            }
            assert_eq!(found.map(|entry| entry.seqno().0), written, "of key {key}");
            assert_eq!(found.map(|entry| entry.value()[0]), written.map(|n| n as u8));
        }
    }
}

/// `READERS` threads beside the writer; of the writes, `BEFORE` are made before the readers begin.
fn model<const READERS: usize, const BEFORE: usize>() {
    let mut writer = ArenaWriter::new();
    let arena = Arc::clone(writer.arena());
    let model = Model { index: HashIndex::default(), arena, visible: AtomicU64::new(0) };
    let model = Arc::new(model);
    let (before, beside) = WRITES.split_at(BEFORE);
    before.iter().for_each(|key| model.write(&mut writer, *key));
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let model = Arc::clone(&model);
            loom::thread::spawn(move || model.read())
        })
        .collect();
    beside.iter().for_each(|key| model.write(&mut writer, *key));
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    model.read();
}

#[test]
fn loom_a_reader_finds_what_was_put() {
    explore("memtable: one reader, three puts", None, model::<1, 0>);
}

#[test]
fn loom_two_readers_find_what_was_put() {
    explore("memtable: two readers, an overwrite and a doubling", None, model::<2, 1>);
}

#[test]
#[should_panic(expected = "of key")]
fn loom_finds_that_a_slot_is_stored_without_an_order() {
    explore("", Some(Mistake::Relaxed64), model::<1, 1>);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_finds_that_bytes_are_published_without_an_order() {
    explore("", Some(Mistake::RelaxedSize), model::<1, 1>);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_finds_that_a_table_is_replaced_without_an_order() {
    explore("", Some(Mistake::RelaxedSwap), model::<1, 2>);
}

#[test]
#[should_panic(expected = "of key")]
fn loom_finds_that_a_slot_names_bytes_that_are_not_there() {
    explore("", Some(Mistake::OfTheModel), model::<1, 1>);
}
