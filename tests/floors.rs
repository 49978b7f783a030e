//! Keeps the house standing: each room of `src/` may use rooms on floors below its own and, without
//! going in a circle, on its own floor; only `vfs` may touch files, clocks and sleep.
//!
//! The source is read as tokens: comments, strings and code for tests do not count. Every path
//! that starts with `crate`, or leaves its room by `super`, is checked, in `use` declarations and in the
//! middle of code alike; names that the crate root re-exports count for the room they come from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The floor of each room, that is, of each module of the crate root. What users name (batch, snapshot
/// and so on) is part of the room `db`: its handles point at the engine, and the engine hands them out.
const ROOMS: &[(u8, &str)] = &[
    (0, "types"),
    (0, "coding"),
    (0, "checksum"),
    (0, "compression"),
    (0, "hash"),
    (0, "error"),
    (0, "sync"),
    (0, "slab"),
    (0, "slice"),
    (0, "cursor"),
    (0, "prefetch"),
    (0, "merge"),
    (0, "filter"),
    (0, "deletes"),
    (1, "vfs"),
    (2, "segment"),
    (3, "memtable"),
    (3, "wal"),
    (3, "cache"),
    (3, "keymap"),
    (4, "version"),
    (5, "flush"),
    (5, "compaction"),
    (5, "iter"),
    (6, "db"),
    (7, "fuzzing"),
    (7, "bin"),
];

/// Rooms that may reach the operating system by themselves.
const OUTDOORS: &[&str] = &["vfs", "bin"];

/// What only those may use.
const FORBIDDEN_PATHS: &[&[&str]] = &[
    &["std", "fs"],
    &["std", "net"],
    &["std", "time", "Instant"],
    &["std", "time", "SystemTime"],
    &["std", "thread", "sleep"],
];

/// The same, reached through a module imported before.
const FORBIDDEN_TAILS: &[&[&str]] =
    &[&["fs", "::"], &["Instant"], &["SystemTime"], &["thread", "::", "sleep"]];

#[test]
fn rooms_use_only_what_lies_below_them() {
    let sources = read_sources(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").as_path());
    assert!(sources.len() > 5, "the source was not found");
    let offences = check(&sources);
    assert!(offences.is_empty(), "\n{}\n", offences.join("\n"));
}

/// One source file: its path below `src/`, and its text.
struct Source {
    path: PathBuf,
    text: String,
}

fn read_sources(root: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("src is readable") {
            let path = entry.expect("src is readable").path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("source is UTF-8");
                let path = path.strip_prefix(root).expect("below src").to_path_buf();
                sources.push(Source { path, text });
            }
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

/// All offences, each as a line that names file and line.
fn check(sources: &[Source]) -> Vec<String> {
    let mut offences = Vec::new();
    let mut parsed = Vec::new();
    let mut test_only = Vec::new();
    for source in sources {
        let mut tokens = tokenize(&source.text);
        for name in strip_tests(&mut tokens) {
            test_only.push(module_directory(&source.path).join(name));
        }
        parsed.push((&source.path, tokens));
    }
    let root_names = parsed
        .iter()
        .find(|(path, _)| path.as_path() == Path::new("lib.rs"))
        .map(|(_, tokens)| reexports(tokens))
        .unwrap_or_default();

    let mut same_floor: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (path, tokens) in &parsed {
        let modules = module_path(path);
        let excluded = modules.iter().any(|m| m == "tests")
            || test_only.iter().any(|t| path.starts_with(t) || path.with_extension("") == *t);
        // The crate root only declares and re-exports.
        let Some(module) = modules.first() else { continue };
        if excluded {
            continue;
        }
        let Some((floor, room)) = place(module) else {
            offences.push(format!(
                "src/{}: the module `{module}` has no floor: place it in tests/floors.rs",
                path.display()
            ));
            continue;
        };
        if !OUTDOORS.contains(&room) {
            for (line, what) in forbidden(tokens) {
                offences.push(format!(
                    "src/{}:{line}: `{what}` is for the rooms {OUTDOORS:?} only: go through `vfs`",
                    path.display()
                ));
            }
        }
        // The command is a crate of its own: its `crate` is not the library.
        if room == "bin" {
            continue;
        }
        for (line, name) in root_uses(tokens, modules.len()) {
            let target = root_names.get(&name).unwrap_or(&name);
            match place(target) {
                None => offences.push(format!(
                    "src/{}:{line}: `crate::{name}` belongs to no room known to tests/floors.rs",
                    path.display()
                )),
                Some((other_floor, other)) if other_floor > floor => offences.push(format!(
                    "src/{}:{line}: `{room}` on floor {floor} uses `{other}` on floor {other_floor}",
                    path.display()
                )),
                Some((other_floor, other)) if other_floor == floor && other != room => {
                    same_floor.entry(room).or_default().insert(other);
                }
                Some(_) => {}
            }
        }
    }
    if let Some(cycle) = find_cycle(&same_floor) {
        offences.push(format!("rooms of one floor use each other: {}", cycle.join(" -> ")));
    }
    offences
}

fn place(module: &str) -> Option<(u8, &'static str)> {
    ROOMS.iter().find(|(_, room)| *room == module).copied()
}

/// The module that a file is: none for the crate root, `["db", "open"]` for `db/open.rs`.
fn module_path(path: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        path.with_extension("").iter().map(|p| p.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod" || (parts.len() == 1 && last == "lib")) {
        parts.pop();
    }
    parts
}

/// Where the files of the modules lie that the file declares.
fn module_directory(path: &Path) -> PathBuf {
    module_path(path).iter().collect()
}

/// An identifier, `::`, or one other character, and the line it is on.
#[derive(Clone, Debug, PartialEq)]
struct Token {
    text: String,
    line: usize,
}

/// The tokens of a source, without comments, literals and lifetimes.
fn tokenize(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let (mut i, mut line) = (0, 1);
    while i < chars.len() {
        let start = i;
        let c = at(i);
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && at(i) != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            while i < chars.len() {
                match (at(i), at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 {
                    break;
                }
            }
        } else if let Some(end) = literal_end(&chars, i) {
            i = end;
        } else if is_word(c) {
            while is_word(at(i)) {
                i += 1;
            }
            if !c.is_numeric() {
                tokens.push(Token { text: chars[start..i].iter().collect(), line });
            }
        } else if c == ':' && at(i + 1) == ':' {
            tokens.push(Token { text: "::".into(), line });
            i += 2;
        } else {
            if !c.is_whitespace() {
                tokens.push(Token { text: c.into(), line });
            }
            i += 1;
        }
        line += chars[start..i.min(chars.len())].iter().filter(|&&c| c == '\n').count();
    }
    tokens
}

/// Where the string, character or lifetime that starts at `i` ends, if one does.
fn literal_end(chars: &[char], i: usize) -> Option<usize> {
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut start = i;
    if matches!(at(start), 'b' | 'c') && matches!(at(start + 1), '"' | '\'' | 'r') {
        start += 1;
    }
    if at(start) == 'r' && matches!(at(start + 1), '"' | '#') {
        let hashes = (start + 1..).take_while(|&j| at(j) == '#').count();
        let open = start + 1 + hashes;
        // `r#name` is an identifier.
        if at(open) != '"' {
            return None;
        }
        let closes = |j: &usize| at(*j) == '"' && (1..=hashes).all(|k| at(j + k) == '#');
        let close = (open + 1..chars.len()).find(closes).unwrap_or(chars.len());
        return Some((close + 1 + hashes).min(chars.len()));
    }
    let quote = at(start);
    let lifetime = quote == '\'' && at(start + 1) != '\\' && at(start + 2) != '\'';
    if lifetime {
        let rest = (start + 1..).take_while(|&j| at(j).is_alphanumeric() || at(j) == '_').count();
        return Some(start + 1 + rest);
    }
    if quote != '"' && quote != '\'' {
        return None;
    }
    let mut j = start + 1;
    while j < chars.len() && at(j) != quote {
        j += if at(j) == '\\' { 2 } else { 1 };
    }
    Some((j + 1).min(chars.len()))
}

/// Removes what is compiled for tests only. Gives the names of modules declared for tests whose
/// text is in another file.
fn strip_tests(tokens: &mut Vec<Token>) -> Vec<String> {
    let mut kept: Vec<Token> = Vec::new();
    let mut modules = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        let Some(end) = attribute_end(tokens, i) else {
            kept.push(tokens[i].clone());
            i += 1;
            continue;
        };
        let inner: Vec<&str> = tokens[i..end].iter().map(|t| t.text.as_str()).collect();
        let for_tests =
            inner.contains(&"cfg") && inner.contains(&"test") && !inner.contains(&"not");
        if !for_tests {
            kept.extend_from_slice(&tokens[i..end]);
            i = end;
            continue;
        }
        if inner[1] == "!" {
            // The whole file is for tests.
            kept.clear();
            break;
        }
        i = end;
        while let Some(end) = attribute_end(tokens, i) {
            i = end;
        }
        let item = i;
        let mut depth = 0_i32;
        while i < tokens.len() {
            match tokens[i].text.as_str() {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                _ => {}
            }
            let ends = (depth == 0 && matches!(tokens[i].text.as_str(), ";" | "}")) || depth < 0;
            // An unmatched bracket belongs to what is around.
            i += usize::from(depth >= 0);
            if ends {
                break;
            }
        }
        let item: Vec<&str> = tokens[item..i].iter().map(|t| t.text.as_str()).collect();
        if let Some(at) = item.iter().position(|t| *t == "mod")
            && item.get(at + 2) == Some(&";")
        {
            modules.push(item[at + 1].to_owned());
        }
    }
    *tokens = kept;
    modules
}

/// Where the attribute ends that starts at `i`, if one does.
fn attribute_end(tokens: &[Token], i: usize) -> Option<usize> {
    let is = |i: usize, text: &str| tokens.get(i).is_some_and(|t| t.text == text);
    if !is(i, "#") {
        return None;
    }
    let open = if is(i + 1, "!") { i + 2 } else { i + 1 };
    if !is(open, "[") {
        return None;
    }
    let mut depth = 0;
    for (j, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "[" => depth += 1,
            "]" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(j + 1);
        }
    }
    None
}

/// The paths that start at token `i`, groups in braces written out. A path ends where it stops
/// being `name::name`; globs end in `*`.
fn expand(tokens: &[Token], i: usize) -> Vec<Vec<String>> {
    let mut prefix = Vec::new();
    let mut paths = Vec::new();
    expand_into(tokens, i, &mut prefix, &mut paths);
    paths
}

fn expand_into(
    tokens: &[Token],
    mut i: usize,
    prefix: &mut Vec<String>,
    paths: &mut Vec<Vec<String>>,
) -> usize {
    let depth = prefix.len();
    while let Some(token) = tokens.get(i) {
        if token.text == "{" {
            i += 1;
            while tokens.get(i).is_some_and(|t| t.text != "}") {
                i = expand_into(tokens, i, prefix, paths);
                // A rename and the comma.
                while tokens.get(i).is_some_and(|t| t.text != "," && t.text != "}") {
                    i += 1;
                }
                i += usize::from(tokens.get(i).is_some_and(|t| t.text == ","));
            }
            prefix.truncate(depth);
            return i + 1;
        }
        prefix.push(token.text.clone());
        i += 1;
        if tokens.get(i).is_none_or(|t| t.text != "::") {
            break;
        }
        i += 1;
    }
    paths.push(prefix.clone());
    prefix.truncate(depth);
    i
}

/// The modules and names of the crate root that a file uses, `depth` modules below the root.
fn root_uses(tokens: &[Token], depth: usize) -> Vec<(usize, String)> {
    let mut uses = Vec::new();
    // For each open brace, whether a module was opened by it.
    let mut braces = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "{" => braces.push(i >= 2 && tokens[i - 2].text == "mod"),
            "}" => {
                braces.pop();
            }
            "crate" | "super" if tokens.get(i + 1).is_some_and(|t| t.text == "::") => {
                if i >= 1 && tokens[i - 1].text == "::" {
                    continue; // The second of `super::super`.
                }
                let depth = depth + braces.iter().filter(|module| **module).count();
                for path in expand(tokens, i) {
                    let ups = path.iter().take_while(|p| *p == "super").count();
                    let rest = if path[0] == "crate" {
                        &path[1..]
                    } else if ups >= depth {
                        &path[ups..]
                    } else {
                        continue;
                    };
                    match rest.first() {
                        Some(name) if name != "self" => uses.push((token.line, name.clone())),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    uses.dedup();
    uses
}

/// What the crate root re-exports: name to module.
fn reexports(tokens: &[Token]) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for (i, token) in tokens.iter().enumerate() {
        if token.text != "use" {
            continue;
        }
        for mut path in expand(tokens, i + 1) {
            path.retain(|p| p != "crate" && p != "self");
            if let [module, .., name] = path.as_slice() {
                names.insert(name.clone(), module.clone());
            }
        }
    }
    names
}

/// Uses of the operating system that bypass `vfs`.
fn forbidden(tokens: &[Token]) -> Vec<(usize, String)> {
    let mut found = BTreeSet::new();
    for (i, token) in tokens.iter().enumerate() {
        let inside_path = i >= 1 && tokens[i - 1].text == "::";
        if token.text == "std" && !inside_path {
            for path in expand(tokens, i) {
                let path: Vec<&str> = path.iter().map(String::as_str).collect();
                let glob = path.last() == Some(&"*");
                let stem = if glob { &path[..path.len() - 1] } else { &path[..] };
                for bad in FORBIDDEN_PATHS {
                    if stem.starts_with(bad) || (glob && bad.starts_with(stem)) {
                        found.insert((token.line, path.join("::")));
                    }
                }
            }
        }
        for tail in FORBIDDEN_TAILS {
            if tail.iter().enumerate().all(|(k, t)| tokens.get(i + k).is_some_and(|x| x.text == *t))
            {
                found.insert((token.line, tail.concat()));
            }
        }
    }
    found.into_iter().collect()
}

/// Rooms that lead back to the first, which is named at both ends.
fn find_cycle<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> Option<Vec<&'a str>> {
    fn walk<'a>(
        edges: &BTreeMap<&'a str, BTreeSet<&'a str>>,
        room: &'a str,
        path: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<Vec<&'a str>> {
        if let Some(start) = path.iter().position(|r| *r == room) {
            let mut cycle = path[start..].to_vec();
            cycle.push(room);
            return Some(cycle);
        }
        if !done.insert(room) {
            return None;
        }
        path.push(room);
        for next in edges.get(room).into_iter().flatten() {
            if let Some(cycle) = walk(edges, next, path, done) {
                return Some(cycle);
            }
        }
        path.pop();
        None
    }
    let mut done = BTreeSet::new();
    edges.keys().find_map(|room| walk(edges, room, &mut Vec::new(), &mut done))
}

fn offences_in(files: &[(&str, &str)]) -> Vec<String> {
    let sources: Vec<Source> = files
        .iter()
        .map(|(path, text)| Source { path: path.into(), text: (*text).to_owned() })
        .collect();
    check(&sources)
}

#[test]
fn the_checker_sees_every_way_up() {
    let lib = "pub use db::{Db, Other as Renamed}; pub use types::SeqNo;";
    for (path, text) in [
        ("wal/mod.rs", "use crate::db::Db;"),
        ("wal/mod.rs", "use crate::{types::SeqNo, db::{self, open}};"),
        ("wal/mod.rs", "use crate::{\n    types::{SeqNo, Kind as K},\n    db as d,\n};"),
        ("wal/mod.rs", "fn f() { crate::version::Version::new() }"),
        ("wal/mod.rs", "use crate::Db;"),
        ("wal/reader.rs", "use super::super::db;"),
        ("wal.rs", "use super::{types, db};"),
        ("wal.rs", "mod inner { use super::super::db; }"),
        ("wal.rs", "pub(in crate::db) fn f() {}"),
        ("wal.rs", "fn f<'a>(c: char) -> bool { c == '\"' } use crate::db; // '\""),
    ] {
        let offences = offences_in(&[("lib.rs", lib), (path, text)]);
        assert_eq!(offences.len(), 1, "{text}: {offences:?}");
        assert!(offences[0].contains("`wal` on floor 3 uses"), "{text}: {offences:?}");
    }
}

#[test]
fn the_checker_leaves_comments_strings_and_tests_alone() {
    let lib = "pub use types::SeqNo;";
    for (path, text) in [
        ("wal/mod.rs", "/// [`crate::db`]\n/* use crate::db; /* nested */ use crate::db; */"),
        (
            "wal/mod.rs",
            "const S: &str = \"crate::db \\\" std::fs\"; const R: &str = r#\"crate::db\"#;",
        ),
        ("wal/mod.rs", "#[cfg(test)]\nmod tests { use crate::db; fn f() { std::fs::read(); } }"),
        ("wal/mod.rs", "#[cfg(all(test, feature = \"x\"))] #[rustfmt::skip] use crate::db;"),
        ("wal/tests.rs", "use crate::db;"),
        ("wal/mod.rs", "use crate::{types, SeqNo}; use super::vfs; use std::time::Duration;"),
        ("wal/reader.rs", "use super::writer; use crate::wal::db;"),
        ("wal.rs", "mod inner { use super::db; }"),
        ("vfs/os.rs", "use std::{fs, thread}; fn f() { thread::sleep(d) }"),
        ("db/mod.rs", "use batch::WriteBatch; use crate::db::stats;"),
        ("db/batch.rs", "use super::Db; use crate::wal::Recovery;"),
    ] {
        let offences = offences_in(&[("lib.rs", lib), (path, text)]);
        assert!(offences.is_empty(), "{text}: {offences:?}");
    }
    let oracle = [("wal/mod.rs", "#[cfg(test)] mod oracle;"), ("wal/oracle.rs", "use crate::db;")];
    assert!(offences_in(&oracle).is_empty());
}

#[test]
fn the_checker_sees_the_operating_system() {
    for text in [
        "use std::fs;",
        "use std::{io, fs::File};",
        "fn f() { std::fs::read(p); }",
        "use std::time::{Duration, Instant};",
        "use std::time::*;",
        "use std::{thread}; fn f() { thread::sleep(d) }",
        "fn f(time: u8) { time::SystemTime::now(); }",
    ] {
        let offences = offences_in(&[("flush.rs", text)]);
        assert!(!offences.is_empty(), "{text}");
        assert!(offences.iter().all(|o| o.contains("go through `vfs`")), "{text}: {offences:?}");
    }
}

#[test]
fn the_checker_sees_circles_and_strangers() {
    let circle = [
        ("flush.rs", "use crate::iter;"),
        ("iter/mod.rs", "use crate::compaction::x;"),
        ("compaction/mod.rs", "use crate::flush;"),
    ];
    let offences = offences_in(&circle);
    assert_eq!(offences.len(), 1, "{offences:?}");
    assert!(offences[0].contains("compaction -> flush -> iter -> compaction"), "{offences:?}");
    assert!(offences_in(&circle[..2]).is_empty());

    let offences = offences_in(&[("attic.rs", "")]);
    assert!(offences[0].contains("place it in tests/floors.rs"), "{offences:?}");
    let offences = offences_in(&[("db/mod.rs", "use crate::attic;")]);
    assert!(offences[0].contains("belongs to no room"), "{offences:?}");
}
