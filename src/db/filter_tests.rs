//! What compactions remove of their own accord: what filters say, and tombstones that hide nothing.

use crate::filter::Verdict;
use crate::merge::Append;
use crate::vfs::{Env, ManualClock};
use crate::{Background, Builder, Compaction, Db, Error, ErrorKind, KeyspaceOptions, Snapshot};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

fn manual(env: &Env) -> Builder {
    Db::builder("/db")
        .env(env.clone())
        .background(Background::Manual)
        .write_buffer_bytes(64 << 10)
        .check_key_map(true)
}

/// Removes what begins with an `x`, and makes capitals of what begins with a `c`.
fn judge(_: &[u8], value: &[u8]) -> Verdict {
    match value.first() {
        Some(b'x') => Verdict::Remove,
        Some(b'c') => Verdict::Change(value.to_ascii_uppercase()),
        _ => Verdict::Keep,
    }
}

fn all(db: &Db) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    db.get_range::<&[u8]>(..).map(|e| e.map(|(k, v)| (text(&k), text(&v))).unwrap()).collect()
}

fn owned(entries: &[(&str, &str)]) -> Vec<(String, String)> {
    entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn entries(db: &Db) -> (u64, u64) {
    let stats = db.stats();
    let levels = stats.keyspaces.iter().flat_map(|keyspace| &keyspace.levels);
    levels.fold((0, 0), |(all, dead), level| (all + level.entries, dead + level.tombstones))
}

#[test]
fn a_filter_keeps_removes_and_changes() {
    let env = Env::in_memory(1);
    let db = manual(&env).compaction_filter(judge).open().unwrap();
    let other = db.keyspace("other").unwrap();
    for (key, value) in [("a", "x"), ("b", "keep"), ("c", "change"), ("d", "")] {
        db.put(key, value).unwrap();
        other.put(key, value).unwrap();
    }
    db.flush().unwrap();
    assert_eq!(db.get("a").unwrap().unwrap(), "x", "a flush does not ask");
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(all(&db), owned(&[("b", "keep"), ("c", "CHANGE"), ("d", "")]));
    assert_eq!((db.get("a").unwrap(), entries(&db)), (None, (7, 0)), "nothing is left of it");
    assert_eq!(db.get("c").unwrap().unwrap(), "CHANGE");
    assert_eq!(other.get("a").unwrap().unwrap(), "x", "a filter is one keyspace's");
    other.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(other.get_range::<&[u8]>(..).count(), 4);
    // What lies at the bottom is asked about as well, if a compaction is asked for.
    let options = KeyspaceOptions::new().compaction_filter(judge);
    db.keyspace_with("other", &options).unwrap();
    other.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(other.get_range::<&[u8]>(..).count(), 3);
    drop((db, other));
    // It is not kept.
    let db = manual(&env).open().unwrap();
    db.put("a", "x").unwrap();
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(db.get("a").unwrap().unwrap(), "x");
}

#[test]
fn what_a_snapshot_sees_is_not_asked_about() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let filter = {
        let asked = Arc::clone(&asked);
        move |_: &[u8], value: &[u8]| {
            asked.lock().unwrap().push(String::from_utf8(value.to_vec()).unwrap());
            judge(b"", value)
        }
    };
    let env = Env::in_memory(1);
    let db = manual(&env).compaction_filter(filter).open().unwrap();
    db.put("k", "x1").unwrap();
    db.put("l", "x1").unwrap();
    let early = db.snapshot();
    db.put("k", "x2").unwrap();
    let late = db.snapshot();
    db.put("k", "x3").unwrap();
    let iterator = db.get_range::<&[u8]>(..);
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(*asked.lock().unwrap(), ["x3"]);
    let check = |snapshot: &Snapshot, value: &str| {
        assert_eq!(snapshot.get("k").unwrap().as_deref(), Some(value.as_bytes()));
        assert_eq!(snapshot.get("l").unwrap().as_deref(), Some(&b"x1"[..]));
    };
    check(&early, "x1");
    check(&late, "x2");
    assert_eq!(iterator.map(|entry| entry.unwrap().1).collect::<Vec<_>>(), ["x3", "x1"]);
    // The removal hides what the snapshots keep.
    assert_eq!(all(&db), owned(&[("l", "x1")]));
    drop((early, late));
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!((all(&db).len(), entries(&db)), (0, (0, 0)));
}

#[test]
fn a_snapshot_made_while_a_filter_is_at_work_goes_on_seeing_what_it_saw() {
    let made = Arc::new(Mutex::new(Vec::new()));
    let handle: Arc<OnceLock<Db>> = Arc::default();
    let filter = {
        let (made, handle) = (Arc::clone(&made), Arc::clone(&handle));
        move |key: &[u8], value: &[u8]| {
            // In the middle of the job.
            if key == b"b"
                && let Some(db) = handle.get()
            {
                made.lock().unwrap().push((db.snapshot(), all(db)));
                assert_eq!(db.multi_get(&["a", "c"]).unwrap()[0].as_deref(), Some(&b"xa"[..]));
            }
            judge(key, value)
        }
    };
    let env = Env::in_memory(1);
    let db = manual(&env).merge_operator(Append).compaction_filter(filter).open().unwrap();
    for key in ["a", "b", "c"] {
        db.put(key, format!("x{key}")).unwrap();
        db.flush().unwrap();
    }
    db.merge("c", "+").unwrap();
    assert!(handle.set(db.clone()).is_ok());
    db.compact_range::<&[u8]>(..).unwrap();
    // Written later: it is hidden from the snapshot by its number.
    db.put("a", "new").unwrap();
    let late = db.keyspace("late").unwrap();
    late.put("k", "v").unwrap();
    let made = std::mem::take(&mut *made.lock().unwrap());
    let (snapshot, before) = &made[0];
    assert_eq!(*before, owned(&[("a", "xa"), ("b", "xb"), ("c", "xc+")]));
    for _ in 0..2 {
        for (key, value) in before {
            assert_eq!(snapshot.get(key).unwrap().as_deref(), Some(value.as_bytes()), "{key}");
        }
        let seen: Vec<_> = snapshot.get_range::<&[u8]>(..).map(|e| e.unwrap().1).collect();
        assert_eq!(seen, ["xa", "xb", "xc+"]);
        assert_eq!(snapshot.multi_get(&["b"]).unwrap()[0].as_deref(), Some(&b"xb"[..]));
        assert_eq!(snapshot.of(&late).unwrap().get("k").unwrap(), None);
        db.compact_range::<&[u8]>(..).unwrap();
    }
    assert_eq!(all(&db), owned(&[("a", "new")]));
    drop(made);
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!((all(&db), db.stats().snapshots), (owned(&[("a", "new")]), 0));
}

#[test]
fn operands_are_asked_about_once_they_are_merged() {
    let env = Env::in_memory(1);
    let builder = || manual(&env).compaction(Compaction::Tiered).level0_runs(2);
    let db = builder().merge_operator(Append).compaction_filter(judge).open().unwrap();
    db.put("k", "v").unwrap();
    db.compact_range::<&[u8]>(..).unwrap();
    for operand in ["x", "c"] {
        db.merge("k", operand).unwrap();
        db.merge("l", operand).unwrap();
        db.flush().unwrap();
    }
    // Together, but not with what is below; of `l` nothing is below.
    db.wait_idle().unwrap();
    assert_eq!(all(&db), owned(&[("k", "vxc")]));
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!((all(&db), entries(&db)), (owned(&[("k", "vxc")]), (1, 0)));
}

#[test]
fn what_a_filter_removes_hides_what_is_older() {
    let env = Env::in_memory(1);
    let builder = || manual(&env).compaction(Compaction::Tiered).level0_runs(2);
    let db = builder().compaction_filter(judge).open().unwrap();
    db.put("k", "old").unwrap();
    db.put("l", "old").unwrap();
    db.compact_range::<&[u8]>(..).unwrap();
    for value in ["x1", "x2"] {
        db.put("k", value).unwrap();
        db.put("m", value).unwrap();
        db.flush().unwrap();
    }
    db.wait_idle().unwrap();
    let levels = &db.stats().keyspaces[0].levels;
    assert!(levels.iter().filter(|level| level.entries > 0).count() > 1, "not at the bottom yet");
    assert_eq!((db.get("k").unwrap(), entries(&db)), (None, (3, 1)), "a tombstone for `k` alone");
    assert_eq!(all(&db), owned(&[("l", "old")]));
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!((all(&db), entries(&db)), (owned(&[("l", "old")]), (1, 0)));
}

#[test]
fn a_change_leaves_the_time_to_live_as_it_is() {
    let clock = Arc::new(ManualClock::default());
    let env = Env { clock: Arc::clone(&clock) as _, ..Env::in_memory(3) };
    let db = manual(&env).compaction_filter(judge).open().unwrap();
    let ms = Duration::from_millis(1);
    db.put_with_ttl("k", "change", 50 * ms).unwrap();
    db.put_with_ttl("l", "x", 50 * ms).unwrap();
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(all(&db), owned(&[("k", "CHANGE")]));
    clock.advance(49 * ms);
    assert_eq!(db.get("k").unwrap().unwrap(), "CHANGE");
    clock.advance(ms);
    assert_eq!(db.get("k").unwrap(), None);
}

#[test]
fn a_filter_that_panics_fails_the_compaction_and_harms_nothing() {
    let calls = Arc::new(AtomicUsize::new(0));
    let filter = {
        let calls = Arc::clone(&calls);
        move |key: &[u8], _: &[u8]| {
            let call = calls.fetch_add(1, Ordering::Relaxed);
            assert!(call != 1, "not {}", key.escape_ascii());
            if call == 0 { Verdict::Remove } else { Verdict::Keep }
        }
    };
    let env = Env::in_memory(1);
    let db = manual(&env).compaction_filter(filter).open().unwrap();
    for key in ["a", "b", "c", "d"] {
        db.put(key, key).unwrap();
    }
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let failed = db.compact_range::<&[u8]>(..).unwrap_err();
    std::panic::set_hook(hook);
    assert!(matches!(&failed, Error::FilterFailed { .. }), "{failed}");
    assert!(failed.to_string().contains("not b") && failed.to_string().contains("default"));
    assert_eq!(failed.kind(), ErrorKind::UserCode);
    assert_eq!(calls.load(Ordering::Relaxed), 2, "it is not asked again by this job");
    let left = owned(&[("b", "b"), ("c", "c"), ("d", "d")]);
    assert_eq!(all(&db), left);
    db.compact_range::<&[u8]>(..).unwrap();
    assert_eq!(all(&db), left);
    assert!(db.verify(&mut |_, _| {}).unwrap().is_sound());
    drop(db);
    assert_eq!(all(&manual(&env).open().unwrap()), left);
}

/// Why there is no "single delete" (docs/decisions.md).
#[test]
fn a_tombstone_goes_with_the_last_put_that_it_hides_on_any_level() {
    let left_over = |key_map_bytes: u64| {
        let env = Env::in_memory(1);
        let builder = manual(&env).compaction(Compaction::Tiered).level0_runs(2);
        let db = builder.key_map_bytes(key_map_bytes).open().unwrap();
        // Below lie other keys of the same range.
        for n in 0..=200 {
            db.put(format!("{n:04}"), "v").unwrap();
        }
        db.compact_range::<&[u8]>(..).unwrap();
        db.fill_key_map().unwrap();
        for n in 0..200 {
            db.put(format!("{n:04}-"), "v").unwrap();
        }
        db.flush().unwrap();
        for n in 0..200 {
            db.delete(format!("{n:04}-")).unwrap();
        }
        db.flush().unwrap();
        db.wait_idle().unwrap();
        assert_eq!(db.get_range::<&[u8]>(..).count(), 201);
        entries(&db)
    };
    assert_eq!(left_over(512 << 20), (201, 0));
    assert_eq!(left_over(0), (401, 200), "without the map, all go down to the bottom");
}
