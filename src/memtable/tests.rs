//! The memtable against a `BTreeMap`, and under readers.

use super::*;
use crate::cursor::Seek;
use crate::hash::key_hash;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::vfs::{Entropy, SeededEntropy};
use std::collections::BTreeMap;

/// How many entries random tables have.
const ENTRIES: u64 = if cfg!(miri) { 60 } else { 2000 };

fn insert(table: &SkipMemtable, keyspace: u32, key: &[u8], seqno: u64, kind: Kind, value: &[u8]) {
    table.insert(KeyspaceId(keyspace), key, key_hash(key, 0), SeqNo(seqno), kind, value);
}

fn get(table: &SkipMemtable, keyspace: u32, key: &[u8], snapshot: u64) -> Option<MemEntry> {
    table.get(KeyspaceId(keyspace), key, key_hash(key, 0), SeqNo(snapshot))
}

type Model = BTreeMap<(u32, Vec<u8>, std::cmp::Reverse<u64>), (Kind, Vec<u8>)>;

fn random_table(seed: u64) -> (Arc<SkipMemtable>, Model) {
    let rng = SeededEntropy::new(seed);
    let table = Arc::new(SkipMemtable::default());
    let mut model = Model::new();
    for seqno in 1..=ENTRIES {
        let r = rng.next_u64();
        let keyspace = [0, 1, u32::MAX][(r % 3) as usize];
        let len = (r >> 8) % 16;
        let key: Vec<u8> = (0..len).map(|i| ((r >> (16 + i)) & 1) as u8 * 255).collect();
        let kind = if r >> 60 == 0 { Kind::Delete } else { Kind::Put };
        let value = if kind == Kind::Put { seqno.to_le_bytes().to_vec() } else { Vec::new() };
        insert(&table, keyspace, &key, seqno, kind, &value);
        model.insert((keyspace, key, std::cmp::Reverse(seqno)), (kind, value));
    }
    (table, model)
}

#[test]
fn a_get_finds_the_newest_version_at_or_before_its_snapshot() {
    let (table, model) = random_table(1);
    for snapshot in [0u64, 1, ENTRIES / 3, ENTRIES, u64::MAX] {
        for keyspace in [0, 1, 2, u32::MAX] {
            for (_, key, _) in model.keys().step_by(if cfg!(miri) { 11 } else { 1 }) {
                let want = model
                    .range((keyspace, key.clone(), std::cmp::Reverse(snapshot))..)
                    .next()
                    .filter(|((k, found, _), _)| *k == keyspace && found == key);
                let got = get(&table, keyspace, key, snapshot);
                assert_eq!(
                    got.map(|e| (e.seqno.0, e.kind, e.value.to_vec())),
                    want.map(|((_, _, seqno), (kind, value))| (seqno.0, *kind, value.clone()))
                );
            }
        }
    }
    assert_eq!(table.keyspaces(), [KeyspaceId(0), KeyspaceId(1), KeyspaceId(u32::MAX)]);
    assert_eq!(table.entries() as u64, ENTRIES);
    assert!(get(&table, 0, &[3; 4], u64::MAX).is_none());
}

#[test]
fn cursors_walk_one_keyspace_both_ways_from_every_seek() {
    let (table, model) = random_table(2);
    for keyspace in [0u32, 1, 2, u32::MAX] {
        let all: Vec<(Vec<u8>, u64)> = model
            .keys()
            .filter(|k| k.0 == keyspace)
            .map(|(_, key, seqno)| (key.clone(), seqno.0))
            .collect();
        let mut cursor = Arc::clone(&table).cursor(KeyspaceId(keyspace));
        let mut keys: Vec<Vec<u8>> = all.iter().map(|e| e.0.clone()).collect();
        keys.extend([vec![], vec![7; 3], vec![255; 13]]);
        let n = all.len();
        let mut check = |seek: Seek<'_>, at: Option<usize>| {
            cursor.seek(seek).unwrap();
            let at_now =
                |c: &dyn crate::cursor::Cursor| c.valid().then(|| (c.key().to_vec(), c.seqno().0));
            assert_eq!(at_now(&*cursor), at.map(|i| all[i].clone()), "{seek:?}");
            let Some(mut i) = at else { return };
            // Back and forth, over chunk borders.
            for (steps, forward) in [(3, true), (9, false), (70, true), (1, false), (2, true)] {
                for _ in 0..steps {
                    if forward {
                        cursor.next().unwrap()
                    } else {
                        cursor.prev().unwrap()
                    }
                    let next = if forward { (i + 1 < n).then(|| i + 1) } else { i.checked_sub(1) };
                    assert_eq!(at_now(&*cursor), next.map(|i| all[i].clone()));
                    match next {
                        Some(next) => i = next,
                        None => return,
                    }
                }
            }
        };
        check(Seek::First, (n > 0).then_some(0));
        check(Seek::Last, n.checked_sub(1));
        for key in keys.iter().step_by(if cfg!(miri) { 20 } else { 5 }) {
            let from = all.partition_point(|e| e.0 < *key);
            let past = all.partition_point(|e| e.0 <= *key);
            check(Seek::AtOrAfter(key), (from < n).then_some(from));
            check(Seek::After(key), (past < n).then_some(past));
            check(Seek::AtOrBefore(key), past.checked_sub(1));
            check(Seek::Before(key), from.checked_sub(1));
        }
    }
}

#[test]
fn keys_and_values_of_the_extreme_sizes() {
    let table = Arc::new(SkipMemtable::default());
    let (long, longer) = (vec![0; 65_534], vec![0; 65_535]);
    let huge = vec![0x5a; if cfg!(miri) { 300 << 10 } else { 50 << 20 }];
    let keys: [&[u8]; 6] = [b"", &[0], &[0; 12], &[0; 13], &long, &longer];
    for (n, key) in keys.iter().enumerate().rev() {
        insert(&table, 7, key, 10 + n as u64, Kind::Put, &[n as u8]);
    }
    insert(&table, 7, b"", 20, Kind::Put, &huge);
    insert(&table, 7, &longer, 21, Kind::Delete, b"");
    let mut cursor = Arc::clone(&table).cursor(KeyspaceId(7));
    cursor.seek(Seek::First).unwrap();
    let mut seen = Vec::new();
    while cursor.valid() {
        assert_eq!(cursor.key_bytes(), cursor.key());
        seen.push((cursor.key().len(), cursor.seqno().0, cursor.value().len()));
        cursor.next().unwrap();
    }
    let want = [(0, 20, huge.len()), (0, 10, 1), (1, 11, 1), (12, 12, 1), (13, 13, 1)];
    assert_eq!(seen[..5], want);
    assert_eq!(seen[5..], [(65_534, 14, 1), (65_535, 21, 0), (65_535, 15, 1)]);
    assert_eq!(get(&table, 7, b"", 20).unwrap().value, huge);
    assert_eq!(get(&table, 7, b"", 19).unwrap().value[..], [0]);
    assert!(get(&table, 7, b"", 9).is_none());
    assert_eq!(get(&table, 7, &longer, 21).unwrap().kind, Kind::Delete);
    assert!(get(&table, 6, b"", 20).is_none());
    assert!(table.allocated_bytes() >= huge.len() + 2 * 65_535);
}

#[test]
fn equal_hashes_of_different_keys_do_no_harm() {
    let table = SkipMemtable::default();
    let entries: u64 = if cfg!(miri) { 30 } else { 300 };
    for n in 0..entries {
        let (keyspace, key) = (KeyspaceId(n as u32 % 3), [(n / 3) as u8]);
        table.insert(keyspace, &key, 5, SeqNo(n + 1), Kind::Put, &n.to_le_bytes());
    }
    for n in 0..entries {
        let (keyspace, key) = (KeyspaceId(n as u32 % 3), [(n / 3) as u8]);
        assert_eq!(table.get(keyspace, &key, 5, SeqNo::MAX).unwrap().value[..], n.to_le_bytes());
    }
    assert!(table.get(KeyspaceId(4), &[0], 5, SeqNo::MAX).is_none());
}

#[test]
fn values_and_cursors_outlive_the_memtable() {
    let table = Arc::new(SkipMemtable::default());
    insert(&table, 0, b"a", 1, Kind::Put, &[1; 5000]);
    insert(&table, 0, b"b", 2, Kind::Put, &[2; 50]);
    let values = (get(&table, 0, b"a", 9).unwrap().value, get(&table, 0, b"b", 9).unwrap().value);
    let mut cursor = Arc::clone(&table).cursor(KeyspaceId(0));
    drop(table);
    cursor.seek(Seek::First).unwrap();
    let (key, value) = (cursor.key_bytes(), cursor.value());
    cursor.next().unwrap();
    assert_eq!(cursor.key(), b"b");
    drop(cursor);
    assert_eq!((&key[..], &value[..]), (&b"a"[..], &[1; 5000][..]));
    assert_eq!((&values.0[..], &values.1[..]), (&[1; 5000][..], &[2; 50][..]));
}

/// All entries of a walk, in the cursor's order: key and sequence number.
fn walk(cursor: &mut dyn crate::cursor::Cursor, forward: bool) -> Vec<(Vec<u8>, u64)> {
    let mut all = Vec::new();
    while cursor.valid() {
        all.push((cursor.key().to_vec(), cursor.seqno().0));
        if forward { cursor.next() } else { cursor.prev() }.unwrap();
    }
    all
}

/// Keys whose order, common fronts and lengths differ: the n-th one, some of which come again.
fn shaped(shape: u64, n: u64) -> Vec<u8> {
    let random = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    match shape {
        0 => random.to_be_bytes().to_vec(),
        1 => n.to_be_bytes().to_vec(),
        2 => (u64::MAX - n).to_be_bytes().to_vec(),
        // Almost in order.
        3 => (n ^ 5).to_be_bytes().to_vec(),
        // Long fronts in common, and the twelve bytes of a separator all the same.
        4 => [b"/users/0000000/".to_vec(), (random >> 50).to_string().into_bytes()].concat(),
        5 => {
            [vec![b'a' + (random >> 62) as u8; 40], (random >> 48).to_be_bytes().to_vec()].concat()
        }
        // Fronts of each other.
        6 => vec![0; (random >> 54) as usize],
        7 => vec![255; (random >> 54) as usize],
        // Rising within each of many fronts.
        _ => [(random >> 60).to_be_bytes(), n.to_be_bytes()].concat(),
    }
}

#[test]
fn keys_of_every_shape_are_in_order_while_they_are_added() {
    for shape in (0..9).step_by(if cfg!(miri) { 4 } else { 1 }) {
        let table = Arc::new(SkipMemtable::default());
        let mut model = BTreeMap::new();
        let rng = SeededEntropy::new(shape);
        for n in 1..=ENTRIES {
            let key = shaped(shape, n);
            insert(&table, 3, &key, n, Kind::Put, b"");
            model.insert((key, std::cmp::Reverse(n)), ());
            if n.is_multiple_of(ENTRIES / 4) {
                let want: Vec<_> = model.keys().map(|(key, n)| (key.clone(), n.0)).collect();
                let mut cursor = Arc::clone(&table).cursor(KeyspaceId(3));
                cursor.seek(Seek::First).unwrap();
                assert!(walk(&mut *cursor, true) == want, "shape {shape} at {n}");
                cursor.seek(Seek::Last).unwrap();
                let mut back = walk(&mut *cursor, false);
                back.reverse();
                assert!(back == want, "shape {shape} at {n}, backwards");
            }
            if cfg!(miri) && !n.is_multiple_of(10) {
                continue;
            }
            // Seeks to keys that are there, and beside them.
            let mut key = shaped(shape, rng.next_u64() % (n + 9));
            if n.is_multiple_of(2) {
                key.truncate((rng.next_u64() % 50) as usize);
            }
            let mut cursor = Arc::clone(&table).cursor(KeyspaceId(3));
            let newest = std::cmp::Reverse(u64::MAX);
            let want = model.range((key.clone(), newest)..).next();
            cursor.seek(Seek::AtOrAfter(&key)).unwrap();
            let at = cursor.valid().then(|| (cursor.key().to_vec(), cursor.seqno().0));
            assert_eq!(at, want.map(|((key, n), ())| (key.clone(), n.0)), "shape {shape} at {n}");
            let want = model.range(..(key.clone(), newest)).next_back();
            cursor.seek(Seek::Before(&key)).unwrap();
            let at = cursor.valid().then(|| (cursor.key().to_vec(), cursor.seqno().0));
            assert_eq!(at, want.map(|((key, n), ())| (key.clone(), n.0)), "shape {shape} at {n}");
        }
    }
}

#[test]
fn a_walk_sees_all_that_was_there_although_leaves_split_under_it() {
    let rng = SeededEntropy::new(11);
    for round in 0..if cfg!(miri) { 2 } else { 40 } {
        let table = Arc::new(SkipMemtable::default());
        let mut seqno = 0;
        let mut add = |table: &SkipMemtable| {
            seqno += 1;
            let key = (rng.next_u64() % (ENTRIES / 4)).to_string();
            insert(table, 0, key.as_bytes(), seqno, Kind::Put, b"");
            (key.into_bytes(), seqno)
        };
        let mut there: Vec<_> = (0..ENTRIES / 8).map(|_| add(&table)).collect();
        let last = there.len() as u64;
        there.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        let mut cursor = Arc::clone(&table).cursor(KeyspaceId(0));
        let forward = round % 2 == 0;
        cursor.seek(if forward { Seek::First } else { Seek::Last }).unwrap();
        let mut seen = Vec::new();
        while cursor.valid() {
            seen.push((cursor.key().to_vec(), cursor.seqno().0));
            for _ in 0..rng.next_u64() % 4 {
                add(&table);
            }
            // A step back and forth changes nothing: what is between was seen.
            if rng.next_u64().is_multiple_of(8) {
                let at = (cursor.key().to_vec(), cursor.seqno().0);
                if forward { cursor.prev() } else { cursor.next() }.unwrap();
                while cursor.valid() && (cursor.key(), cursor.seqno().0) != (&at.0[..], at.1) {
                    if forward { cursor.next() } else { cursor.prev() }.unwrap();
                }
                if !cursor.valid() {
                    cursor.seek(if forward { Seek::First } else { Seek::Last }).unwrap();
                    while (cursor.key(), cursor.seqno().0) != (&at.0[..], at.1) {
                        if forward { cursor.next() } else { cursor.prev() }.unwrap();
                    }
                }
            }
            if forward { cursor.next() } else { cursor.prev() }.unwrap();
        }
        if !forward {
            seen.reverse();
        }
        let is_sorted =
            seen.is_sorted_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)) == std::cmp::Ordering::Less);
        assert!(is_sorted, "in order, each once");
        seen.retain(|(_, seqno)| *seqno <= last);
        assert_eq!(seen, there);
    }
}

#[test]
fn versions_of_a_key_take_no_room_in_the_order() {
    let table = Arc::new(SkipMemtable::default());
    let versions: u64 = if cfg!(miri) { 50 } else { 5000 };
    insert(&table, 0, b"a", 1, Kind::Put, b"1");
    insert(&table, 0, b"c", 2, Kind::Put, b"2");
    let mut early = Arc::clone(&table).cursor(KeyspaceId(0));
    early.seek(Seek::First).unwrap();
    insert(&table, 0, b"b", 3, Kind::Put, b"3");
    let bytes = table.leaves.allocated_bytes();
    for n in 1..versions {
        insert(&table, 0, b"b", n + 3, Kind::Put, b"3");
    }
    assert_eq!(table.leaves.allocated_bytes(), bytes);
    let b = (0..versions).rev().map(|n| (b"b".to_vec(), n + 3));
    let want: Vec<_> =
        [(b"a".to_vec(), 1)].into_iter().chain(b).chain([(b"c".to_vec(), 2)]).collect();
    let mut cursor = table.cursor(KeyspaceId(0));
    cursor.seek(Seek::First).unwrap();
    assert_eq!(walk(&mut *cursor, true), want);
    cursor.seek(Seek::Last).unwrap();
    assert_eq!(walk(&mut *cursor, false), want.into_iter().rev().collect::<Vec<_>>());
    assert!(walk(&mut *early, true).ends_with(&[(b"c".to_vec(), 2)]));
}

/// The key and the value of the n-th write: a thousand keys are written over and over, and every other
/// write is of a new key.
fn nth(n: u64) -> (Vec<u8>, Vec<u8>) {
    let id = if n.is_multiple_of(2) { n / 2 % 1000 } else { 1000 + n };
    let key = id.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    (key.to_vec(), [n.to_le_bytes(); 9].concat())
}

/// A value as `nth` makes them, in one piece: the number of the write.
fn whole(value: &[u8]) -> u64 {
    let n: [u8; 8] = value[..8].try_into().unwrap();
    assert!(value.len() == 72 && value.chunks(8).all(|part| part == n), "torn: {value:?}");
    u64::from_le_bytes(n)
}

/// Everything written before a walk began is in it, in order, whole.
fn check_walk(table: &Arc<SkipMemtable>, there: u64, forward: bool) {
    let mut cursor = Arc::clone(table).cursor(KeyspaceId(0));
    cursor.seek(if forward { Seek::First } else { Seek::Last }).unwrap();
    let mut last: Option<(Vec<u8>, u64)> = None;
    let mut seen = 0;
    while cursor.valid() {
        let (key, seqno) = (cursor.key().to_vec(), cursor.seqno().0);
        assert_eq!(whole(&cursor.value()) + 1, seqno);
        if let Some((key_before, seqno_before)) = &last {
            let order = key_before.cmp(&key).then(seqno.cmp(seqno_before));
            assert_eq!(order.is_lt(), forward, "in order");
            assert!(order.is_ne());
        }
        seen += u64::from(seqno <= there);
        last = Some((key, seqno));
        if forward { cursor.next() } else { cursor.prev() }.unwrap();
    }
    assert_eq!(seen, there, "all that was there before");
}

#[test]
fn readers_beside_the_writer_see_all_that_was_written_and_nothing_torn() {
    let writes: u64 = if cfg!(miri) { 80 } else { 40_000 };
    let table = Arc::new(SkipMemtable::default());
    // As the database does: a write counts once its number is stored here.
    let visible = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let start = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for seed in 0..3u64 {
            let (table, visible, done, start) = (&table, &visible, &done, &start);
            scope.spawn(move || {
                let rng = SeededEntropy::new(seed);
                let mut round = 0u64;
                start.wait();
                loop {
                    let last = done.load(Ordering::Acquire);
                    let there = visible.load(Ordering::Acquire);
                    for _ in 0..if there == 0 { 0 } else { 50 } {
                        let n = rng.next_u64() % there;
                        let (key, _) = nth(n);
                        // At its own snapshot it is the newest, later it may be overwritten.
                        let then = get(table, 0, &key, n + 1).unwrap();
                        assert_eq!((then.seqno.0, whole(&then.value)), (n + 1, n));
                        let now = get(table, 0, &key, there).unwrap();
                        assert!((n + 1..=there).contains(&now.seqno.0));
                        assert!(nth(whole(&now.value)).0 == key);
                        assert!(get(table, 1, &key, there).is_none());
                    }
                    if round % 64 == seed || last {
                        check_walk(table, there, round.is_multiple_of(2));
                    }
                    if last {
                        break;
                    }
                    round += 1;
                }
            });
        }
        start.wait();
        for n in 0..writes {
            let (key, value) = nth(n);
            insert(&table, 0, &key, n + 1, Kind::Put, &value);
            visible.store(n + 1, Ordering::Release);
        }
        done.store(true, Ordering::Release);
    });
    check_walk(&table, writes, true);
    check_walk(&table, writes, false);
}

#[test]
fn walks_end_behind_the_last_leaf_however_few_keys_it_has() {
    let table = Arc::new(SkipMemtable::default());
    for n in 0..if cfg!(miri) { 12 } else { 260u64 } {
        // Keys in order: each full leaf gets a neighbour of one key, which is its separator too.
        insert(&table, 4, &n.to_be_bytes(), n + 1, Kind::Put, b"");
        let mut cursor = Arc::clone(&table).cursor(KeyspaceId(4));
        cursor.seek(Seek::First).unwrap();
        for expected in 0..=n {
            assert_eq!(cursor.key(), expected.to_be_bytes());
            cursor.next().unwrap();
        }
        assert!(!cursor.valid());
        cursor.seek(Seek::Last).unwrap();
        for expected in (0..=n).rev() {
            assert_eq!(cursor.key(), expected.to_be_bytes());
            cursor.prev().unwrap();
        }
        assert!(!cursor.valid());
    }
}

#[test]
fn range_tombstones_count_with_the_memory_that_they_take() {
    let table = SkipMemtable::default();
    let empty = table.allocated_bytes();
    const COUNT: u64 = if cfg!(miri) { 50 } else { 1_000 };
    let mut held = Vec::new();
    for n in 0..COUNT {
        let (start, end) = (format!("{n:06}"), format!("{:06}", 2 * COUNT - n));
        insert(&table, 1, start.as_bytes(), n + 1, Kind::DeleteRange, end.as_bytes());
        insert(&table, 2, b"a", n + 1, Kind::DeleteRange, b"");
        held.push(table.range_deletes(KeyspaceId(1)).unwrap());
    }
    let take: usize =
        [1, 2].map(|id| table.range_deletes(KeyspaceId(id)).unwrap().bytes()).iter().sum();
    assert_eq!(table.allocated_bytes() - empty, take);
    // Ranges in each other take more than their keys.
    assert!(take as u64 > 600 * COUNT, "{take}");
    for (held, n) in held.iter().zip(1..) {
        assert_eq!(held.len(), n, "what was held stays as it was");
    }
}
