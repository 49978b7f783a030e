//! Entries go into the arena and come out as they were, wherever they lie; other places do not.

use super::*;
use crate::types::{KeyspaceId, Kind, SeqNo};
use crate::vfs::{Entropy, SeededEntropy};

fn entry<'a>(key: &'a [u8], value: &'a [u8], prev: Option<Ref>) -> NewEntry<'a> {
    let (keyspace, seqno) = (KeyspaceId(0x0403_0201), SeqNo(u64::MAX - 1));
    NewEntry { keyspace, key, seqno, kind: Kind::Put, prev, value }
}

#[test]
fn entries_of_all_sizes_come_back_as_they_went_in() {
    let mut writer = ArenaWriter::new();
    let arena = Arc::clone(writer.arena());
    let mut sizes = vec![(0, 0), (65_535, 0), (0, 1), (12, 1 << 18), (1, 1 << 20), (3, 5 << 20)];
    if cfg!(miri) {
        sizes.truncate(4);
    }
    let rounds = if cfg!(miri) { 2 } else { 40 };
    let mut stored: Vec<(Ref, usize, usize, Option<Ref>)> = Vec::new();
    for round in 0..rounds {
        for (key_len, value_len) in &sizes {
            let (key_len, value_len) = (*key_len, value_len + round);
            let (key, value) = (vec![round as u8; key_len], vec![!(round as u8); value_len]);
            let prev = stored.last().map(|s| s.0);
            stored.push((writer.append(entry(&key, &value, prev)), key_len, value_len, prev));
        }
    }
    for (n, (at, key_len, value_len, prev)) in stored.iter().enumerate() {
        let round = (n / sizes.len()) as u8;
        let found = arena.entry(*at).unwrap();
        assert_eq!(found.key(), vec![round; *key_len]);
        assert_eq!(found.value(), vec![!round; *value_len]);
        assert_eq!(arena.value(*at), vec![!round; *value_len]);
        assert_eq!((found.keyspace(), found.seqno()), (KeyspaceId(0x0403_0201), SeqNo(!1)));
        assert_eq!((found.kind(), found.prev()), (Kind::Put, *prev));
    }
    let bytes: usize = stored.iter().map(|s| HEADER + s.1 + s.2).sum();
    assert!((bytes..bytes + bytes / 4 + (1 << 20)).contains(&arena.allocated_bytes()));
}

#[test]
fn a_place_that_was_not_given_out_reaches_no_other_memory() {
    let mut writer = ArenaWriter::new();
    let arena = Arc::clone(writer.arena());
    assert!(arena.entry(Ref::new(0, 0)).is_none());
    let mut last = None;
    for n in 0..200u8 {
        last = Some(writer.append(entry(&[n; 20], &[n; 50], last)));
    }
    let last = last.unwrap();
    assert!(arena.entry(Ref::new(last.chunk().unwrap() + 1, 0)).is_none());
    let end = last.offset() + HEADER + 70;
    assert!(arena.entry(Ref::new(last.chunk().unwrap(), end)).is_none());
    let rng = SeededEntropy::new(3);
    for _ in 0..if cfg!(miri) { 200 } else { 100_000 } {
        let chunk = rng.next_u64() as usize % 10;
        let offset = rng.next_u64() as usize % Ref::OFFSETS;
        if let Some(found) = arena.entry(Ref::new(chunk, offset)) {
            // Reads all of it: Miri and sanitizers see what it touches.
            assert!(found.bytes().iter().map(|b| u64::from(*b)).sum::<u64>() < u64::MAX);
        }
    }
    for bits in [1, u64::MAX, u64::MAX >> 1, 1 << 40, (1 << 40) - 1, (1 << 20) - 1] {
        assert!(arena.entry(Ref::from_bits(bits).unwrap()).is_none(), "{bits:x}");
    }
    assert_eq!(Ref::from_bits(0), None);
    assert_eq!(Ref::from_bits(last.to_bits()), Some(last));
}

#[test]
fn values_outlive_the_arena() {
    let mut writer = ArenaWriter::new();
    let small = writer.append(entry(b"s", &[1; COPY_MAX], None));
    let large = writer.append(entry(b"l", &[2; COPY_MAX + 1], None));
    let arena = Arc::clone(writer.arena());
    let (small, large) = (arena.value(small), arena.value(large));
    let kept = Arc::downgrade(&arena);
    drop((arena, writer));
    assert!(kept.upgrade().is_some(), "the large one keeps the arena");
    let large = std::thread::spawn(move || large.slice(1..)).join().unwrap();
    assert_eq!((&small[..], &large[..]), (&[1; COPY_MAX][..], &[2; COPY_MAX][..]));
    drop(large);
    assert!(kept.upgrade().is_none());
}

#[test]
fn every_number_of_a_chunk_has_one_place() {
    use super::chunks::{Chunk, ChunkList};
    let list = ChunkList::default();
    // The last one's bucket is of 32 MiB, which takes Miri too long.
    let last = if cfg!(miri) { 100 } else { Ref::CHUNKS - 1 };
    for number in (0..100).chain(last.min(2000)..last.min(2100)).chain([last]) {
        assert!(list.get(number).is_none(), "{number}");
        list.add(number, Chunk::new(number % 7));
        assert!(list.get(number).is_some(), "{number}");
    }
}

#[test]
fn chunks_of_a_pair_lie_apart_and_the_second_outlives_the_first() {
    use super::chunks::Chunk;
    let [first, second] = Chunk::pair(8192).unwrap();
    for n in 0..64u8 {
        // SAFETY: nobody else has them.
        unsafe {
            first.append([&[n; 100], &[], &[n; 28]]);
            second.append([&[!n; 60], &[!n; 68], &[]]);
        }
    }
    let expected = |n: fn(u8) -> u8| (0..64).flat_map(|at| [n(at); 128]).collect::<Vec<_>>();
    assert_eq!(first.published(), expected(|n| n));
    drop(first);
    assert_eq!(second.published(), expected(|n| !n));
}
