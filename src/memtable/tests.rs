//! The skiplist memtable against a `BTreeMap`.

use super::*;
use crate::cursor::Seek;
use std::collections::BTreeMap;

type Model = BTreeMap<(u32, Vec<u8>, std::cmp::Reverse<u64>), (Kind, Vec<u8>)>;

fn random_table(seed: u64) -> (Arc<SkipMemtable>, Model) {
    use crate::vfs::{Entropy, SeededEntropy};
    let rng = SeededEntropy::new(seed);
    let table = Arc::new(SkipMemtable::default());
    let mut model = Model::new();
    for seqno in 1..=2000u64 {
        let r = rng.next_u64();
        let keyspace = [0, 1, u32::MAX][(r % 3) as usize];
        let len = (r >> 8) % 12;
        let key: Vec<u8> = (0..len).map(|i| ((r >> (16 + i)) & 1) as u8 * 255).collect();
        let kind = if r >> 60 == 0 { Kind::Delete } else { Kind::Put };
        let value = if kind == Kind::Put { seqno.to_le_bytes().to_vec() } else { Vec::new() };
        table.insert(KeyspaceId(keyspace), &key, SeqNo(seqno), kind, &value);
        model.insert((keyspace, key, std::cmp::Reverse(seqno)), (kind, value));
    }
    (table, model)
}

#[test]
fn a_get_finds_the_newest_version_at_or_before_its_snapshot() {
    let (table, model) = random_table(1);
    for snapshot in [0u64, 1, 700, 2000, u64::MAX] {
        for keyspace in [0, 1, 2, u32::MAX] {
            for (_, key, _) in model.keys() {
                let want = model
                    .range((keyspace, key.clone(), std::cmp::Reverse(snapshot))..)
                    .next()
                    .filter(|((k, found, _), _)| *k == keyspace && found == key);
                let got = table.get(KeyspaceId(keyspace), key, SeqNo(snapshot));
                assert_eq!(
                    got.map(|e| (e.seqno.0, e.kind, e.value.to_vec())),
                    want.map(|((_, _, seqno), (kind, value))| (seqno.0, *kind, value.clone()))
                );
            }
        }
    }
    assert_eq!(table.keyspaces(), [KeyspaceId(0), KeyspaceId(1), KeyspaceId(u32::MAX)]);
    assert_eq!(table.entries(), 2000);
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
        for key in keys.iter().step_by(5) {
            let from = all.partition_point(|e| e.0 < *key);
            let past = all.partition_point(|e| e.0 <= *key);
            check(Seek::AtOrAfter(key), (from < n).then_some(from));
            check(Seek::After(key), (past < n).then_some(past));
            check(Seek::AtOrBefore(key), past.checked_sub(1));
            check(Seek::Before(key), from.checked_sub(1));
        }
    }
}
