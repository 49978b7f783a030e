//! The child process that writes until it is killed, and its parent's side.
//!
//! Each writer is a thread that does the operations of its script, tells each one that was
//! acknowledged, and checks what it reads of its own keys between them. One more thread looks at
//! the database as a whole. From time to time everything is closed and opened again with other
//! options, if so wished.

use crate::process::{Dice, Running, end_with_parent, tell, tell_wrong};
use crate::writers::{
    Hands, Judge, Map, Model, SHARED, Script, Source, check_pairs, load, options, space,
};
use ashlardb::vfs::{Env, SeededEntropy};
use ashlardb::{Background, Db, Durability, Keyspace, Snapshot};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ChildStdout;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What a child is to do.
#[derive(Clone, Debug)]
pub struct Task {
    pub dir: PathBuf,
    pub seed: u64,
    /// Chooses the options.
    pub round: u64,
    pub keys: u32,
    pub value_len: u64,
    /// How long the database is open at a time; 0: as long as the child lives.
    pub epoch_ms: u64,
    /// Each writer ends in front of this operation; then the child says so, and waits.
    pub limit: u64,
    /// Background work by hand and randomness from the seed: with one writer, everything can be
    /// repeated.
    pub by_hand: bool,
    /// One in so many writes is durable before it is acknowledged.
    pub sync_in: u64,
    /// Whether nothing is given up to FIFO's limit; if not, there is no FIFO, which never merges.
    pub fifo: bool,
    /// The next operation of each writer.
    pub next: Vec<u64>,
}

impl Task {
    pub fn scripts(&self) -> Vec<Script> {
        let script = |writer| Script {
            seed: self.seed,
            writer,
            keys: self.keys,
            value_len: self.value_len,
            sync_in: self.sync_in,
        };
        (0..self.next.len() as u64).map(script).collect()
    }

    fn arguments(&self) -> Vec<String> {
        let numbers = [
            self.seed,
            self.round,
            u64::from(self.keys),
            self.value_len,
            self.epoch_ms,
            self.limit,
            u64::from(self.by_hand),
            self.sync_in,
            u64::from(self.fifo),
        ];
        let numbers = numbers.iter().chain(&self.next).map(u64::to_string);
        let dir = self.dir.to_string_lossy().into_owned();
        ["write".to_owned(), dir].into_iter().chain(numbers).collect()
    }

    fn parse(arguments: &[String]) -> Option<Task> {
        let (dir, numbers) = arguments.split_first()?;
        let numbers: Option<Vec<u64>> = numbers.iter().map(|n| n.parse().ok()).collect();
        let numbers = numbers?;
        let [seed, round, keys, value_len, epoch_ms, limit, by_hand, sync_in, fifo] =
            *numbers.first_chunk()?;
        Some(Task {
            dir: PathBuf::from(dir),
            seed,
            round,
            keys: keys as u32,
            value_len,
            epoch_ms,
            limit,
            by_hand: by_hand != 0,
            sync_in,
            fifo: fifo != 0,
            next: numbers[9..].to_vec(),
        })
    }
}

/// What a child has said so far.
#[derive(Debug)]
pub struct Heard {
    pub scripts: Vec<Script>,
    /// What was acknowledged of each writer.
    pub models: Vec<Model>,
    pub next: Vec<u64>,
    /// Whether each writer reached its limit.
    pub done: bool,
    /// What the child found wrong.
    pub wrong: Option<String>,
}

impl Heard {
    pub fn new(task: &Task, models: Vec<Model>) -> Heard {
        let (scripts, next) = (task.scripts(), task.next.clone());
        Heard { scripts, models, next, done: false, wrong: None }
    }

    /// Takes in a line; one that was cut off counts as not said.
    pub fn line(&mut self, line: &str) {
        if let Some(what) = line.strip_prefix("WRONG ") {
            self.wrong.get_or_insert(what.to_owned());
        } else if line == "done" {
            self.done = true;
        } else if let Some((writer, n)) = line.split_once(' ')
            && let (Ok(writer), Ok(n)) = (writer.parse::<usize>(), n.parse::<u64>())
            && self.next.get(writer) == Some(&n)
        {
            let (op, _) = self.scripts[writer].op(n, &self.models[writer]);
            self.models[writer].apply(n, &op);
            self.next[writer] = n + 1;
        }
    }

    /// Takes in what a child says until it ends, or is done.
    pub fn listen(mut self, output: ChildStdout) -> Heard {
        Heard::lines(output, &mut |line| {
            self.line(&line);
            !self.done
        });
        self
    }

    /// Calls `each` for each whole line until that does not want any more.
    pub fn lines(output: ChildStdout, each: &mut dyn FnMut(String) -> bool) {
        let mut output = BufReader::with_capacity(1 << 16, output);
        loop {
            let mut line = String::new();
            match output.read_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if !line.ends_with('\n') => return,
                Ok(_) => line.truncate(line.len() - 1),
            }
            if !each(line) {
                return;
            }
        }
    }
}

/// Starts the child.
pub fn start(task: &Task) -> io::Result<(Running, ChildStdout)> {
    Running::start(&task.arguments())
}

/// The child's side.
pub fn main(arguments: &[String]) {
    end_with_parent();
    let Some(task) = Task::parse(arguments) else { tell_wrong("these are no arguments") };
    std::panic::set_hook(Box::new(|info| tell_wrong(&format!("panicked: {info}"))));
    let scripts = task.scripts();
    let mut next = task.next.clone();
    let mut models: Option<Vec<Model>> = None;
    for epoch in 0.. {
        let dice = Dice::of(&[task.seed, task.round, epoch]);
        let (db, durability) = open(&task, &dice);
        let read = || scripts.iter().map(|script| load(&db, script)).collect();
        let found: Result<Vec<Model>, String> = read();
        let found = found.unwrap_or_else(|what| tell_wrong(&format!("at open: {what}")));
        if models.as_ref().is_some_and(|models| *models != found) {
            tell_wrong("after closing and opening again other keys are there");
        }
        let (after, ends) = work(&task, &scripts, &db, durability, found, &next, &dice);
        for (next, (_, n)) in next.iter_mut().zip(&after) {
            *next = *n;
        }
        models = Some(after.into_iter().map(|(model, _)| model).collect());
        if ends {
            tell("done");
            loop {
                std::thread::park();
            }
        }
        if dice.one_in(3)
            && let Err(error) = db.wait_idle()
        {
            tell_wrong(&format!("wait_idle gave {error:?}"));
        }
        if dice.one_in(2)
            && let Err(error) = db.close()
        {
            tell_wrong(&format!("close gave {error:?}"));
        }
    }
}

fn open(task: &Task, dice: &Dice) -> (Db, Durability) {
    let durability = dice.pick(&[Durability::Buffered, Durability::Sync]);
    let mut builder = options(dice, Db::builder(&task.dir), task.fifo).durability(durability);
    builder = if task.by_hand {
        let entropy = Arc::new(SeededEntropy::new(task.seed));
        builder.background(Background::Manual).env(Env { entropy, ..Env::default() })
    } else {
        builder.background(Background::Threads(1 + dice.below(2) as usize))
    };
    match builder.open() {
        Ok(db) => (db, durability),
        Err(error) => tell_wrong(&format!("open gave {error:?}")),
    }
}

/// Lets all writers work on an open database for a while. Returns their models and next operations,
/// and whether all reached their limit.
fn work(
    task: &Task,
    scripts: &[Script],
    db: &Db,
    durability: Durability,
    models: Vec<Model>,
    next: &[u64],
    dice: &Dice,
) -> (Vec<(Model, u64)>, bool) {
    let stop = AtomicBool::new(false);
    let deadline = (task.epoch_ms > 0)
        .then(|| Instant::now() + Duration::from_millis(1 + dice.below(task.epoch_ms)));
    let after = std::thread::scope(|scope| {
        if !task.by_hand {
            scope.spawn(|| watch(db, scripts, &stop, deadline));
        }
        let writers: Vec<_> = models
            .into_iter()
            .zip(scripts)
            .zip(next)
            .map(|((model, script), next)| {
                let hands = Hands::new(db, script, durability);
                let hands = hands.unwrap_or_else(|e| tell_wrong(&format!("keyspace gave {e:?}")));
                let stop = &stop;
                scope.spawn(move || write(task, hands, script, model, *next, stop, deadline))
            })
            .collect();
        let after = writers.into_iter().map(|writer| writer.join().expect("a writer")).collect();
        stop.store(true, Ordering::Relaxed);
        after
    });
    let ends = |after: &Vec<(Model, u64)>| after.iter().all(|(_, next)| *next >= task.limit);
    let ended = ends(&after);
    (after, ended)
}

fn write(
    task: &Task,
    mut hands: Hands,
    script: &Script,
    mut model: Model,
    mut n: u64,
    stop: &AtomicBool,
    deadline: Option<Instant>,
) -> (Model, u64) {
    let reads = Dice::of(&[script.seed, script.writer, task.round, n, 1]);
    let mut reader = Reader::default();
    while n < task.limit
        && !stop.load(Ordering::Relaxed)
        && deadline.is_none_or(|deadline| Instant::now() < deadline)
    {
        let (op, durability) = script.op(n, &model);
        if let Err(error) = hands.perform(script, n, &op, durability) {
            tell_wrong(&format!("operation {n}, {op:?}, gave {error:?}"));
        }
        model.apply(n, &op);
        tell(&format!("{} {n}", script.writer));
        if task.by_hand && n.is_multiple_of(16) {
            while hands.db.step().unwrap_or_else(|e| tell_wrong(&format!("step gave {e:?}"))) {}
        }
        if let Err(what) = reader.look(&reads, &hands, script, &model) {
            tell_wrong(&format!("writer {} behind operation {n}: {what}", script.writer));
        }
        n += 1;
    }
    (model, n)
}

/// A writer as a reader of its own keys.
#[derive(Default)]
struct Reader {
    /// A moment, what it must show for as long as it is held, and for how many more looks.
    held: Option<(Snapshot, Snapshot, Model, u64)>,
    judge: Judge,
}

impl Reader {
    /// Reads something, sometimes.
    fn look(
        &mut self,
        dice: &Dice,
        hands: &Hands,
        script: &Script,
        model: &Model,
    ) -> Result<(), String> {
        let key = || dice.below(u64::from(script.keys)) as u32;
        let judge = &mut self.judge;
        match dice.below(1000) {
            0..200 => {
                let at = key();
                let (map, source): (_, &dyn Source) = if dice.one_in(2) {
                    (&model.default, &hands.db)
                } else {
                    (&model.shared, &hands.shared)
                };
                let wanted = map.get(&at).map(|history| script.whole(at, history));
                let found = source.read(&script.key(at)).map_err(|e| format!("get gave {e:?}"))?;
                if found.as_deref() != wanted.as_deref() {
                    return Err(format!("get of key {at} gave {found:?}, not {wanted:?}"));
                }
            }
            200..240 => {
                let from = key();
                let to = from + 1 + dice.below(20) as u32;
                judge.read_part(&hands.db, script, &model.default, from, to)?;
                judge.read_part(&hands.shared, script, &model.shared, from, to)?;
            }
            240 => judge.read_all(&hands.db, script, &model.default)?,
            241 => judge.read_all(&hands.shared, script, &model.shared)?,
            242 => {
                if let (Some(own), Some(map)) = (&hands.own, &model.own) {
                    judge.read_all(own, script, map)?;
                }
            }
            243..246 if self.held.is_none() => {
                let now = hands.db.snapshot();
                let shared = now.of(&hands.shared).map_err(|e| format!("of gave {e:?}"))?;
                self.held = Some((now, shared, model.clone(), dice.below(5000)));
            }
            _ => {}
        }
        if let Some((default, shared, then, looks)) = &mut self.held {
            if *looks == 0 {
                judge.read_all(default, script, &then.default)?;
                judge.read_all(shared, script, &then.shared)?;
                self.held = None;
            } else {
                *looks -= 1;
            }
        }
        Ok(())
    }
}

/// Looks at the database as a whole.
fn watch(db: &Db, scripts: &[Script], stop: &AtomicBool, deadline: Option<Instant>) {
    let shared = space(db, SHARED);
    let shared = shared.unwrap_or_else(|error| tell_wrong(&format!("keyspace gave {error:?}")));
    let dice = Dice::of(&[scripts.len() as u64, std::process::id().into()]);
    while !stop.load(Ordering::Relaxed) && deadline.is_none_or(|at| Instant::now() < at) {
        if let Err(what) = look_around(db, &shared, scripts, &dice) {
            tell_wrong(&what);
        }
        std::thread::sleep(Duration::from_millis(dice.below(60)));
    }
}

fn look_around(db: &Db, shared: &Keyspace, scripts: &[Script], dice: &Dice) -> Result<(), String> {
    check_pairs(db, shared, scripts)?;
    let stats = db.stats();
    if stats.background_error.is_some() || stats.poisoned.is_some() || !stats.quarantined.is_empty()
    {
        return Err(format!(
            "stats show {:?} {:?} {:?}",
            stats.background_error, stats.poisoned, stats.quarantined
        ));
    }
    if dice.one_in(20) {
        check_whole(db)?;
    }
    if dice.one_in(20) {
        db.fill_key_map().map_err(|error| format!("fill_key_map gave {error:?}"))?;
        db.check_key_map()?;
    }
    shared.approximate_size::<&[u8]>(..).map_err(|e| format!("approximate_size gave {e:?}"))?;
    Ok(())
}

/// Whether verification finds nothing.
pub fn check_whole(db: &Db) -> Result<(), String> {
    let report = db.verify(&mut |_, _| {}).map_err(|error| format!("verify gave {error:?}"))?;
    match report.damage.first() {
        Some(damage) => Err(format!("verify found {damage:?}")),
        None => Ok(()),
    }
}

/// Opens what a killed child left, with other options, and holds it against what was acknowledged.
/// What was under way may have happened. Returns the models and next operations as they are now.
pub fn check_left(
    task: &Task,
    heard: Heard,
    dice: &Dice,
) -> Result<(Vec<Model>, Vec<u64>), String> {
    let by_hand = dice.one_in(2);
    let background = if by_hand { Background::Manual } else { Background::default() };
    let builder = options(dice, Db::builder(&task.dir), task.fifo).background(background);
    let db = builder.open().map_err(|error| format!("open gave {error:?}"))?;
    if by_hand {
        check_files(&db, &task.dir)?;
    }
    let Heard { scripts, mut models, mut next, .. } = heard;
    for ((script, model), next) in scripts.iter().zip(&mut models).zip(&mut next) {
        let writer = script.writer;
        let found = load(&db, script).map_err(|what| format!("writer {writer}: {what}"))?;
        if found != *model {
            let (op, _) = script.op(*next, model);
            let before = model.clone();
            model.apply(*next, &op);
            if found != *model {
                return Err(format!(
                    "writer {writer}: {next} operations were acknowledged, and {op:?} was perhaps \
                     under way; but {}",
                    difference(script, &before, &found)
                ));
            }
            *next += 1;
        }
        Judge::default().read_model(&db, script, model)?;
    }
    let shared = db.keyspaces().contains(&SHARED.to_owned()).then(|| space(&db, SHARED));
    if let Some(shared) = shared.transpose().map_err(|error| format!("{error:?}"))? {
        check_pairs(&db, &shared, &scripts)?;
    }
    db.fill_key_map().map_err(|error| format!("fill_key_map gave {error:?}"))?;
    db.check_key_map().map_err(|what| format!("the key map: {what}"))?;
    check_whole(&db)?;
    Ok((models, next))
}

/// Where two models differ, in words.
pub fn difference(script: &Script, wanted: &Model, found: &Model) -> String {
    let own = script.own_name();
    if wanted.own.is_some() != found.own.is_some() {
        return format!("keyspace {own:?} exists: {}", found.own.is_some());
    }
    let none = Map::default();
    let own_maps = (wanted.own.as_ref().unwrap_or(&none), found.own.as_ref().unwrap_or(&none));
    let places = [
        ("default", &wanted.default, &found.default),
        (SHARED, &wanted.shared, &found.shared),
        (&own, own_maps.0, own_maps.1),
    ];
    let mut all = Vec::new();
    for (name, wanted, found) in places {
        let keys: std::collections::BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
        all.extend(keys.into_iter().filter(|k| wanted.get(k) != found.get(k)).map(|key| {
            format!("{name} key {key}: {:?}, not {:?}", found.get(key), wanted.get(key))
        }));
    }
    let (count, first) = (all.len(), all.into_iter().take(5).collect::<Vec<_>>());
    format!("{count} keys differ, as operations that wrote them: {}", first.join("; "))
}

/// Whether there are files that nobody needs, in a database without background threads.
pub fn check_files(db: &Db, dir: &Path) -> Result<(), String> {
    let entries = std::fs::read_dir(dir).map_err(|error| format!("read_dir gave {error:?}"))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    check_names(db, names.collect(), None)
}

/// Whether these files are the live segments, so many logs, the manifest and the lock.
pub fn check_names(db: &Db, names: Vec<String>, logs: Option<usize>) -> Result<(), String> {
    let stats = db.stats();
    let levels = stats.keyspaces.iter().flat_map(|keyspace| &keyspace.levels);
    let live: usize = levels.map(|level| level.segments).sum();
    let values: usize = stats.keyspaces.iter().map(|keyspace| keyspace.value_segments).sum();
    let count = |ending: &str| names.iter().filter(|name| name.ends_with(ending)).count();
    let others = names.iter().filter(|name| {
        let is_ours = [".seg", ".val", ".wal"].iter().any(|ending| name.ends_with(ending));
        !is_ours && *name != "MANIFEST" && *name != "LOCK"
    });
    if count(".seg") != live
        || count(".val") != values
        || logs.is_some_and(|logs| count(".wal") != logs)
        || others.count() > 0
    {
        let names = names.join(" ");
        return Err(format!(
            "there are {live} live segments, {values} of values, and of files: {names}"
        ));
    }
    Ok(())
}
