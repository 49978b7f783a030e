//! Models of leaves that fill, split and lead to newer versions beside readers, under every schedule
//! and every order of memory that the language allows. A linked list stands in for the skiplist.

use super::*;
use crate::memtable::arena::{ArenaWriter, NewEntry};
use crate::sync::modeled::{Mistake, explore, makes};
use crate::types::{Kind, SeqNo};
use loom::sync::atomic::AtomicU64;

const KEYSPACE: KeyspaceId = KeyspaceId(7);

/// What is written: the keys, in order. The fifth one splits the leaf of four.
const WRITES: [u8; 7] = [2, 1, 8, 4, 6, 8, 7];

struct Model {
    leaves: Arc<Leaves>,
    /// How many writes are published, as the database publishes them.
    visible: AtomicU64,
}

struct Writer {
    arena: ArenaWriter,
    leaves: LeafWriter,
    newest: [Option<Ref>; 9],
}

impl Model {
    fn write(&self, writer: &mut Writer, key: u8) {
        let seqno = self.visible.load(Ordering::Relaxed) + 1;
        let prev = writer.newest[usize::from(key)];
        let (seqno, kind, value) = (SeqNo(seqno), Kind::Put, &[][..]);
        let entry = NewEntry { keyspace: KEYSPACE, key: &[key], seqno, kind, prev, value };
        let at = writer.arena.append(entry);
        writer.newest[usize::from(key)] = Some(at);
        if makes(Mistake::OfTheModel) && seqno.0 == 5 {
            // The left half first.
            let node = self.leaves.index.at_or_before(&Place::new(KEYSPACE, &[key][..])).unwrap();
            let split = node.leaf().load().split(&self.leaves.arena, (&[key], at), (&[], None));
            node.leaf().store(Arc::new(split.left.unwrap()));
            let separator = Separator::new(KEYSPACE, split.separator);
            self.leaves.index.add(separator, Arc::new(split.right));
        } else {
            writer.leaves.put(KEYSPACE, &[key], prev, at);
        }
        self.visible.store(seqno.0, Ordering::Release);
    }

    /// The keys in the order of a walk.
    fn read(&self, forward: bool) {
        let visible = self.visible.load(Ordering::Acquire);
        let arena = &self.leaves.arena;
        let (mut run, mut found) = (Vec::new(), Vec::new());
        if forward {
            // A key that moves when its leaf splits.
            self.leaves.forward(KEYSPACE, Part::AtOrAfter(&[8]), &mut run);
            let first = run.first().and_then(|slot| arena.entry(slot.newest));
            assert_eq!(first.map(|entry| entry.key()), Some(&[8][..]), "the walk at {visible}");
            self.leaves.forward(KEYSPACE, Part::AtOrAfter(&[]), &mut run);
        } else {
            self.leaves.backward(KEYSPACE, Part::All, &mut run);
        }
        while !run.is_empty() {
            if !forward {
                run.reverse();
            }
            for slot in &run {
                let mut entry = arena.entry(slot.newest);
                assert!(entry.is_some(), "a key leads to what is published");
                while let Some(newer) = entry.filter(|entry| entry.seqno().0 > visible) {
                    entry = newer.prev().and_then(|at| arena.entry(at));
                }
                found.extend(entry.map(|entry| (entry.key()[0], entry.seqno().0)));
            }
            let last = super::super::leaf::key_at(arena, run.last().unwrap().newest);
            if forward {
                self.leaves.following(KEYSPACE, last, &mut run);
            } else {
                self.leaves.backward(KEYSPACE, Part::Before(last), &mut run);
            }
        }
        if !forward {
            found.reverse();
        }
        let newest = |key| (1..=visible).rev().find(|n| WRITES[*n as usize - 1] == key);
        let want: Vec<_> = (0..9).filter_map(|key| Some((key, newest(key)?))).collect();
        assert_eq!(found, want, "the walk at {visible}");
    }
}

/// One thread that reads beside the writer; of the writes up to `END`, `BEFORE` are made before.
fn model<const FORWARD: bool, const BEFORE: usize, const END: usize>() {
    let arena = ArenaWriter::new();
    let leaves = LeafWriter::new(Arc::clone(arena.arena()));
    let model = Arc::new(Model { leaves: Arc::clone(leaves.leaves()), visible: AtomicU64::new(0) });
    let mut writer = Writer { arena, leaves, newest: [None; 9] };
    WRITES[..BEFORE].iter().for_each(|key| model.write(&mut writer, *key));
    let reader = {
        let model = Arc::clone(&model);
        loom::thread::spawn(move || model.read(FORWARD))
    };
    WRITES[BEFORE..END].iter().for_each(|key| model.write(&mut writer, *key));
    reader.join().unwrap();
    model.read(FORWARD);
}

#[test]
fn loom_a_walk_beside_a_leaf_that_fills_and_splits() {
    explore("leaves: forwards, an append and a split", None, model::<true, 3, 5>);
}

#[test]
fn loom_a_walk_back_beside_a_leaf_that_fills_and_splits() {
    explore("leaves: backwards, an append and a split", None, model::<false, 3, 5>);
}

#[test]
fn loom_a_walk_beside_a_split_a_newer_version_and_an_append() {
    explore("leaves: forwards, a split, a version, an append", None, model::<true, 4, 7>);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn loom_finds_that_a_leaf_is_replaced_without_an_order() {
    explore("", Some(Mistake::RelaxedSwap), model::<true, 4, 5>);
}

#[test]
#[should_panic(expected = "leads to what is published")]
fn loom_finds_that_a_newer_version_is_put_without_an_order() {
    explore("", Some(Mistake::Relaxed64), model::<true, 5, 6>);
}

#[test]
#[should_panic(expected = "the walk at")]
fn loom_finds_that_the_left_half_is_published_first() {
    explore("", Some(Mistake::OfTheModel), model::<true, 4, 5>);
}
