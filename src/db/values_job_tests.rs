//! Values in value segments, and what happens in the middle of a compaction: the filter is where a test can
//! look in. And thresholds that are changed.

use crate::filter::Verdict;
use crate::merge::Append;
use crate::sync::Mutex;
use crate::vfs::{Env, OpenMode};
use crate::{Background, Builder, Compaction, Compression, Db, KeyspaceOptions};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

const DIR: &str = "/db";

fn manual(env: &Env) -> Builder {
    Db::builder(DIR)
        .env(env.clone())
        .background(Background::Manual)
        .compression(Compression::None)
        .write_buffer_bytes(1 << 20)
        .check_key_map(true)
        .separate_values_above(100)
}

fn long(key: u8, time: u8) -> Vec<u8> {
    [[key, time].repeat(500), vec![time]].concat()
}

type All = BTreeMap<Vec<u8>, Vec<u8>>;

fn all(entries: crate::RangeIter) -> All {
    let entries = entries.map(|entry| entry.unwrap());
    entries.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
}

fn files(env: &Env, end: &str) -> usize {
    let names = env.vfs.read_dir(Path::new(DIR)).unwrap();
    names.iter().filter(|name| name.ends_with(end)).count()
}

/// No file is there that nothing refers to.
fn no_strays(db: &Db, env: &Env) {
    let listed: usize = db.stats().keyspaces.iter().map(|keyspace| keyspace.value_segments).sum();
    assert_eq!((files(env, ".val"), files(env, ".seg")), (listed, db.segments().len()));
}

#[test]
fn values_in_segments_follow_the_threshold_and_those_apart_stay() {
    let env = Env::in_memory(1);
    let open = |above| manual(&env).separate_values_above(above).open().unwrap();
    let mut model = All::new();
    for (time, above) in [(0, u64::MAX), (1, 100), (2, u64::MAX), (3, 4096)] {
        let db = open(above);
        for key in 0..20 {
            let key = 4 * key + time;
            db.put([key], long(key, time)).unwrap();
            model.insert(vec![key], long(key, time));
        }
        db.flush().unwrap();
        db.compact_range::<&[u8]>(..).unwrap();
        db.wait_idle().unwrap();
        assert!(all(db.get_range::<&[u8]>(..)) == model);
        let expected = if time == 0 { 0 } else { 40 * 1021 };
        assert_eq!(db.stats().keyspaces[0].referenced_value_bytes, expected, "{time}");
        no_strays(&db, &env);
    }
}

type Hook = Box<dyn FnMut(&Db) + Send>;

/// A database, two keyspaces of which look in the middle of a compaction what a hook does.
fn hooked(env: &Env, compaction: Compaction) -> (Db, crate::Keyspace, Arc<Mutex<Option<Hook>>>) {
    let hook: Arc<Mutex<Option<Hook>>> = Arc::default();
    let handle: Arc<OnceLock<Db>> = Arc::default();
    let (hooks, handles) = (Arc::clone(&hook), Arc::clone(&handle));
    let filter = move |key: &[u8], value: &[u8]| {
        if key == [10]
            && let Some(db) = handles.get()
        {
            let hook = hooks.lock().take();
            if let Some(mut hook) = hook {
                hook(db);
            }
        }
        match value.last() {
            Some(7) => Verdict::Remove,
            Some(8) => Verdict::Change(vec![1]),
            Some(9) => Verdict::Change(vec![2; 3000]),
            _ => Verdict::Keep,
        }
    };
    let db = manual(env).compaction(compaction).open().unwrap();
    let options = KeyspaceOptions::new()
        .separate_values_above(100)
        .merge_operator(Append)
        .compaction_filter(filter);
    let other = db.keyspace_with("other", &options).unwrap();
    // A weak handle would do, but there is none: it is let go of in the end.
    assert!(handle.set(db.clone()).is_ok());
    (db, other, hook)
}

fn fill(other: &crate::Keyspace) -> All {
    let mut model = All::new();
    for time in 0..3 {
        for key in (0..20).skip(time * 6) {
            other.put([key], long(key, time as u8)).unwrap();
            model.insert(vec![key], long(key, time as u8));
        }
        other.flush_all();
    }
    model
}

trait FlushAll {
    fn flush_all(&self);
}

impl FlushAll for crate::Keyspace {
    fn flush_all(&self) {
        // A compaction of an empty range flushes.
        self.compact_range::<&[u8]>(&[255][..]..&[255][..]).unwrap();
    }
}

#[test]
fn a_keyspace_may_go_while_its_values_are_moved() {
    for n in 0..4 {
        let env = Env::in_memory(1);
        let (db, other, hook) = hooked(&env, Compaction::Lazy);
        let model = fill(&other);
        let kept = Arc::new(Mutex::new(Vec::new()));
        let (keeping, expected, keyspace) = (Arc::clone(&kept), model.clone(), other.clone());
        *hook.lock() = Some(Box::new(move |db| {
            let snapshot = db.snapshot().of(&keyspace).unwrap();
            let mut iterator = keyspace.get_range::<&[u8]>(..);
            iterator.next().unwrap().unwrap();
            assert!(all(snapshot.get_range::<&[u8]>(..)) == expected);
            keeping.lock().push((snapshot, iterator));
            match n {
                0 => db.drop_keyspace("other").unwrap(),
                1 => keyspace.clear().unwrap(),
                2 => keyspace.delete_range(&[0][..]..&[200][..]).unwrap(),
                _ => {
                    for key in 0..20 {
                        keyspace.merge([key], "+").unwrap();
                    }
                }
            }
            if n < 3 {
                db.put("k", "v").unwrap();
            }
        }));
        let outcome = other.compact_range::<&[u8]>(..);
        assert!(n == 0 || outcome.is_ok(), "{outcome:?}");
        assert_eq!(kept.lock().len(), 1);
        db.flush().unwrap();
        db.wait_idle().unwrap();
        let (snapshot, iterator) = kept.lock().pop().unwrap();
        if n > 0 {
            assert!(all(snapshot.get_range::<&[u8]>(..)) == model);
            for (key, value) in &model {
                assert!(snapshot.get(key).unwrap().as_deref() == Some(value));
            }
            other.compact_range::<&[u8]>(..).unwrap();
            db.wait_idle().unwrap();
            assert!(all(snapshot.get_range::<&[u8]>(..)) == model);
            let mut now = model.clone();
            if n < 3 {
                now.clear();
            } else {
                for value in now.values_mut() {
                    value.push(b'+');
                }
            }
            assert!(all(other.get_range::<&[u8]>(..)) == now, "{n}");
        }
        assert!(all(iterator).len() == 19);
        drop(snapshot);
        assert_eq!(other.compact_range::<&[u8]>(..).is_ok(), n > 0);
        db.wait_idle().unwrap();
        no_strays(&db, &env);
        assert!(n == 3 || files(&env, ".val") == 0);
    }
}

#[test]
fn a_copy_made_while_values_are_moved_is_whole() {
    let env = Env::in_memory(1);
    let (db, other, hook) = hooked(&env, Compaction::Lazy);
    let mut model = fill(&other);
    other.put([11], [3; 200]).unwrap();
    model.insert(vec![11], vec![3; 200]);
    *hook.lock() = Some(Box::new(move |db| {
        db.checkpoint("/copy", &mut |_, _| {}).unwrap();
        db.backup("/safe", &mut |_, _| {}).unwrap();
    }));
    other.compact_range::<&[u8]>(..).unwrap();
    db.wait_idle().unwrap();
    no_strays(&db, &env);
    db.backup("/safe", &mut |_, _| {}).unwrap();
    let backups = crate::Backups::open_in(&env, "/safe").unwrap();
    for n in 1..=2 {
        assert!(backups.verify(n, &mut |_, _| {}).unwrap().is_empty());
        backups.restore(n, format!("/restored{n}"), &mut |_, _| {}).unwrap();
    }
    for dir in ["/copy", "/restored1", "/restored2"] {
        let copy = Db::builder(dir).env(env.clone()).background(Background::Manual).open().unwrap();
        let options = KeyspaceOptions::new().merge_operator(Append);
        let keyspace = copy.keyspace_with("other", &options).unwrap();
        assert!(all(keyspace.get_range::<&[u8]>(..)) == model, "{dir}");
        assert!(copy.verify(&mut |_, _| {}).unwrap().is_sound());
    }
}

#[test]
fn verdicts_move_values_over_the_threshold_in_both_directions() {
    for compaction in [Compaction::Lazy, Compaction::Leveled, Compaction::Tiered] {
        let env = Env::in_memory(1);
        let (db, other, _) = hooked(&env, compaction);
        for time in 5..10 {
            for key in 0..4 {
                other.put([4 * time + key], long(key, time)).unwrap();
                other.put([4 * time + key, 1], [time]).unwrap();
            }
            other.flush_all();
        }
        let early = db.snapshot().of(&other).unwrap();
        let before = all(early.get_range::<&[u8]>(..));
        other.compact_range::<&[u8]>(..).unwrap();
        assert!(all(other.get_range::<&[u8]>(..)) == before);
        drop(early);
        other.compact_range::<&[u8]>(..).unwrap();
        let expected: All = before
            .into_iter()
            .filter_map(|(key, value)| match value.last() {
                Some(7) => None,
                Some(8) => Some((key, vec![1])),
                Some(9) => Some((key, vec![2; 3000])),
                _ => Some((key, value)),
            })
            .collect();
        assert!(all(other.get_range::<&[u8]>(..)) == expected);
        for (key, value) in &expected {
            assert!(other.get(key).unwrap().as_deref() == Some(value));
        }
        db.wait_idle().unwrap();
        no_strays(&db, &env);
        let stats = db.stats();
        let usage = stats.keyspaces.iter().find(|usage| usage.name == "other").unwrap();
        assert_eq!(usage.referenced_value_bytes, usage.value_bytes);
        assert_eq!(usage.referenced_value_bytes, 8 * 1021 + 8 * 3020);
    }
}

#[test]
fn a_range_goes_on_behind_a_damaged_value_from_both_ends() {
    let env = Env::in_memory(1);
    let db = manual(&env).merge_operator(Append).open().unwrap();
    for key in 0..10 {
        db.put([key], long(key, 1)).unwrap();
    }
    db.flush().unwrap();
    let names = env.vfs.read_dir(Path::new(DIR)).unwrap();
    let name = names.iter().find(|name| name.ends_with(".val")).unwrap();
    let file = env.vfs.open(&Path::new(DIR).join(name), OpenMode::ReadWrite).unwrap();
    file.write_all_at(&[77], 5 * 1021 + 300).unwrap();
    for merged in [false, true] {
        let mut range = db.get_range::<&[u8]>(..);
        assert_eq!(range.by_ref().take_while(Result::is_ok).count(), 5);
        assert!(range.next().is_none() && range.next_back().is_none());
        range.seek([6]);
        assert_eq!(
            range.by_ref().map(|entry| entry.unwrap().0[0]).collect::<Vec<_>>(),
            [6, 7, 8, 9]
        );
        let mut range = db.get_range::<&[u8]>(..);
        let mut back = Vec::new();
        while let Some(entry) = range.next_entry_back() {
            match entry {
                Ok((key, _)) => back.push(key[0]),
                Err(_) => back.push(99),
            }
        }
        assert_eq!(back, [9, 8, 7, 6, 99]);
        range.seek_back([4]);
        assert_eq!(
            range.rev().map(|entry| entry.unwrap().0[0]).collect::<Vec<_>>(),
            [4, 3, 2, 1, 0]
        );
        if !merged {
            for key in 3..8 {
                db.merge([key], "+").unwrap();
            }
        }
    }
    assert_eq!(db.get([6]).unwrap().unwrap(), [&long(6, 1)[..], b"+"].concat());
    assert!(db.get([5]).is_err());
}
