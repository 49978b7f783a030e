//! How far long work is, how long it took, and the spans that cover it.

use super::*;
use crate::db::event::tests::{builder, key, script};
use crate::vfs::Env;
use crate::{Background, Compaction, Durability, SegmentOptions, SegmentWriter, WriteBatch};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};

#[test]
fn long_calls_tell_how_far_they_are() {
    for background in [Background::Manual, Background::Threads(1)] {
        let env = Env::in_memory(1);
        let told: Arc<Mutex<Vec<Progress>>> = Arc::default();
        let (telling, caller) = (Arc::clone(&told), std::thread::current().id());
        let builder = builder(&env, background)
            .compaction(Compaction::Leveled)
            .write_buffer_bytes(8 << 20)
            .on_progress(move |progress| {
                assert_eq!(std::thread::current().id(), caller);
                telling.lock().unwrap().push(progress);
            });
        let take = |task: Task| {
            let told = std::mem::take(&mut *told.lock().unwrap());
            if told.is_empty() && task == Task::Flush && background != Background::Manual {
                // It was done before there was anything to wait for.
                return 0;
            }
            for pair in told.windows(2) {
                assert!(pair[0].done <= pair[1].done && pair[0].total <= pair[1].total);
            }
            assert!(told.iter().all(|p| p.task == task && p.done <= p.total), "{told:?}");
            let last = told.last().copied().expect("something is told");
            assert!(last.done == last.total, "{last:?}");
            assert!(last.total > 0 || task == Task::Flush, "{last:?}");
            told.len()
        };
        let db = builder.clone().open().unwrap();
        take(Task::Recovery);
        for n in 0..10_000 {
            db.put(key(n * 7 % 10_000), [1; 100]).unwrap();
        }
        assert!(told.lock().unwrap().is_empty(), "writes tell nothing");
        drop(db);
        let db = builder.clone().open().unwrap();
        assert!(take(Task::Recovery) > 50);
        db.flush().unwrap();
        let times = take(Task::Flush);
        assert!(times >= 10 || background != Background::Manual, "{times}");
        for n in 0..5000 {
            db.put(key(n * 2), [2; 100]).unwrap();
        }
        db.flush().unwrap();
        take(Task::Flush);
        db.fill_key_map().unwrap();
        take(Task::KeyMap);
        db.compact_range::<&[u8]>(..).unwrap();
        assert!(take(Task::Compaction) > 10);
        let options = SegmentOptions::default();
        let mut file = SegmentWriter::create_in(&env, "/file", options).unwrap();
        for n in 0..5000 {
            file.put(&key(n), b"from a file").unwrap();
        }
        file.finish().unwrap();
        assert_eq!(db.ingest(["/file"]).unwrap(), 5000);
        let (copying, ends) = (5000 / 1024, 2);
        let times = take(Task::Ingest);
        assert!(times > ends + copying && times <= ends + 2 * copying, "{times}");
        assert_eq!(db.stats().callback_panics, 0);
        db.close().unwrap();
        let reader = builder.open_read_only().unwrap();
        take(Task::Recovery);
        reader.fill_key_map();
        take(Task::KeyMap);
    }
}

#[test]
fn a_progress_callback_that_panics_harms_nothing() {
    for background in [Background::Manual, Background::Threads(1)] {
        let builder = builder(&Env::in_memory(1), background);
        let db = builder.on_progress(|progress| panic!("on purpose: {progress:?}")).open().unwrap();
        script(&db).unwrap();
        assert_eq!(db.get(key(5)).unwrap().unwrap(), [5; 40]);
        assert!(db.stats().callback_panics >= 6);
        db.close().unwrap();
    }
}

/// Runs on by a microsecond each time it is looked at.
#[derive(Debug, Default)]
struct TickingClock(AtomicU64);

impl Clock for TickingClock {
    fn unix_ms(&self) -> u64 {
        0
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.0.fetch_add(1, Ordering::Relaxed))
    }

    fn sleep(&self, _: Duration) {}
}

#[test]
fn times_and_sizes_are_in_the_histograms() {
    for on in [false, true] {
        let env = Env { clock: Arc::new(TickingClock::default()), ..Env::in_memory(1) };
        let db = builder(&env, Background::Manual).read_histograms(on).open().unwrap();
        let mut batch = WriteBatch::new();
        for n in 0..10 {
            batch.put(key(n), "x");
        }
        db.write(batch).unwrap();
        for n in 0..5 {
            db.put(key(n), "y").unwrap();
        }
        let mut batch = WriteBatch::new();
        batch.put("a", "1").delete("b").put("c", "3");
        db.write_with(batch, Durability::Sync).unwrap();
        db.flush().unwrap();
        for n in 0..20 {
            assert_eq!(db.get(key(n)).unwrap().is_some(), n < 10);
        }
        db.multi_get(&[key(1), key(2), key(3)]).unwrap();
        let stats = db.stats();
        let told = &stats.histograms;
        let sizes = &told.batch_operations;
        assert_eq!((sizes.count(), sizes.sum(), sizes.max()), (7, 18, 10));
        assert_eq!(sizes.buckets().collect::<Vec<_>>(), [(1, 5), (3, 1), (10, 1)]);
        assert_eq!((told.sync_ns.count(), told.sync_ns.sum()), (stats.syncs, stats.syncs * 1000));
        assert_eq!(told.flush_ns.count(), 1);
        assert!(told.flush_ns.max() >= 1000);
        assert_eq!(told.get_ns.count(), if on { 23 } else { 0 });
        assert_eq!(told.get_ns.max(), if on { 1000 } else { 0 });
        assert_eq!(stats.to_string().contains("each get"), on);
        assert!(stats.to_string().contains("each sync"));
    }
}

/// The names of spans, and of the fields that were given a value, as `span.field`.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<(Vec<&'static str>, BTreeSet<String>)>>);

struct Fields<'a>(&'static str, &'a mut BTreeSet<String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        assert!(!format!("{value:?}").is_empty());
        self.1.insert(format!("{}.{field}", self.0));
    }
}

impl Subscriber for Spans {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut held = self.0.lock().unwrap();
        let (names, fields) = &mut *held;
        names.push(span.metadata().name());
        span.record(&mut Fields(span.metadata().name(), fields));
        Id::from_u64(names.len() as u64)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let mut held = self.0.lock().unwrap();
        let (names, fields) = &mut *held;
        values.record(&mut Fields(names[span.into_u64() as usize - 1], fields));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &tracing::Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn what_takes_long_has_a_span_that_says_how_much_it_was() {
    let spans = Spans::default();
    // With only one, what another test's thread enters first would be off for all.
    let _second = tracing::Dispatch::new(Spans::default());
    tracing::subscriber::with_default(spans.clone(), || {
        let env = Env::in_memory(1);
        let db = builder(&env, Background::Manual).open().unwrap();
        script(&db).unwrap();
        drop(db);
        let db = builder(&env, Background::Manual).open().unwrap();
        db.fill_key_map().unwrap();
        db.verify(&mut |_, _| {}).unwrap();
        db.close().unwrap();
        let builder = builder(&env, Background::Manual);
        builder.clone().verify(&mut |_, _| {}).unwrap();
        builder.repair_into("/new", &mut |_, _| {}).unwrap();
    });
    let (names, fields) = std::mem::take(&mut *spans.0.lock().unwrap());
    for name in ["open", "recovery", "flush", "compaction", "key_map_fill", "verify", "repair"] {
        assert!(names.contains(&name), "{name}");
        assert!(name == "key_map_fill" || fields.contains(&format!("{name}.micros")), "{name}");
    }
    for field in [
        "open.segments",
        "recovery.logs",
        "recovery.records",
        "recovery.operations",
        "recovery.bytes_in",
        "flush.entries",
        "flush.bytes_in",
        "flush.bytes_out",
        "compaction.keyspace",
        "compaction.level",
        "compaction.bytes_in",
        "compaction.bytes_out",
        "compaction.entries_in",
        "compaction.entries_out",
        "verify.bytes_in",
        "verify.damage",
        "repair.keys",
    ] {
        assert!(fields.contains(field), "{field} is not in {fields:?}");
    }
    // Writes and reads have none, or there would be thousands.
    assert!(names.len() < 200, "{names:?}");
}
