//! The `ashlar` command, run as users run it: what it prints, what it leaves behind, how it exits.

#![cfg(feature = "cli")]

use serde_json::{Value, json};
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

const UNICODE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/unicode/UnicodeData.txt");
const UNICODE_ROWS: usize = 34_924;

/// A directory with a database in it (or not yet), and the command to run on it.
struct Place {
    directory: TempDir,
}

/// What a run of the command left.
struct Run {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl fmt::Debug for Run {
    /// Short enough for a message, however much was printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = self.out[..self.out.len().min(200)].escape_ascii();
        write!(f, "exit code {}, {:?}, {} bytes: {start}", self.code, self.err, self.out.len())
    }
}

impl Place {
    fn new() -> Place {
        Place { directory: tempfile::tempdir().expect("a temporary directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).expect("the file can be written");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ashlar"));
        command.current_dir(self.directory.path()).args(arguments);
        command
    }

    fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Run {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command runs");
        let mut stdin = child.stdin.take().expect("it is piped");
        // A command that does not read its input may end before it is written.
        if let Err(error) = stdin.write_all(input) {
            assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        }
        drop(stdin);
        let output = child.wait_with_output().expect("the command ends");
        Run {
            code: output.status.code().expect("it exits by itself"),
            out: output.stdout,
            err: String::from_utf8(output.stderr).expect("messages are UTF-8"),
        }
    }

    fn run(&self, arguments: &[&str]) -> Run {
        self.run_with_input(arguments, b"")
    }

    /// Runs, expects success and silence on standard error, gives the output.
    fn ok(&self, arguments: &[&str]) -> String {
        let run = self.run(arguments);
        assert_eq!((run.code, run.err.as_str()), (0, ""), "{arguments:?}");
        String::from_utf8(run.out).expect("this output is UTF-8")
    }

    /// Runs, expects this exit code, gives the message.
    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let run = self.run(arguments);
        assert_eq!(run.code, code, "{arguments:?}: {run:?}");
        assert!(!run.err.is_empty(), "{arguments:?}: no message");
        run.err
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.ok(&[arguments, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {text}"))
    }

    /// The segment files of the database `db`.
    fn segments(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("db")).expect("the database is a directory");
        let paths = entries.map(|entry| entry.expect("it can be listed").path());
        paths.filter(|path| path.extension().is_some_and(|e| e == "seg")).collect()
    }

    fn import_unicode(&self) {
        let args = ["import", "db", UNICODE, "--format", "csv", "--delimiter", ";"];
        assert_eq!(self.ok(&args), format!("{UNICODE_ROWS} rows imported\n"));
    }
}

#[test]
fn the_unicode_database_goes_in_and_comes_out() {
    let place = Place::new();
    place.import_unicode();
    assert_eq!(place.ok(&["get", "db", "1F600"]), "GRINNING FACE;So;0;ON;;;;;N;;;;;\n");
    let rows = place.ok(&["scan", "db"]);
    let rows: Vec<&str> = rows.lines().collect();
    assert_eq!(rows.len(), UNICODE_ROWS);
    assert!(rows.is_sorted_by_key(|row| row.split('\t').next()));

    // Every row of the file, no more and no fewer.
    let file = fs::read_to_string(UNICODE).expect("the test data is there");
    let mut expected: Vec<String> = file.lines().map(|row| row.replacen(';', "\t", 1)).collect();
    expected.sort_unstable_by(|a, b| a.split('\t').next().cmp(&b.split('\t').next()));
    assert!(rows == expected, "what went in comes out");

    let first = place.ok(&["scan", "db", "--prefix", "1F60", "--keys-only", "--limit", "2"]);
    assert_eq!(first, "1F60\n1F600\n");
    let last = place.ok(&["scan", "db", "--reverse", "--limit", "1", "--keys-only"]);
    assert_eq!(last, "FFFFD\n");
    let some = place.ok(&["scan", "db", "--from", "0041", "--to", "0043", "--keys-only"]);
    assert_eq!(some, "0041\n0042\n");
    assert_eq!(place.ok(&["scan", "db", "--from", "2", "--to", "1"]), "");
}

#[test]
fn any_bytes_survive_export_and_import() {
    let place = Place::new();
    let every_byte: String = (0..=255).map(|byte| format!("{byte:02x}")).collect();
    let awkward = ["", "00", "09", "0a", "0d0a", "5c", "5c6e", "22", "2c", "ff", "efbbbf"];
    for key in awkward.iter().chain([&every_byte.as_str()]) {
        for value in ["", "0a09", &every_byte] {
            place.ok(&["set", "db", &format!("{key}{value}"), value, "--hex"]);
        }
    }
    let rows = place.ok(&["scan", "db", "--hex"]);
    for format in ["tsv", "jsonl", "cbor"] {
        let file = format!("rows.{format}");
        place.ok(&["export", "db", &file]);
        place.ok(&["import", format, &file]);
        assert_eq!(place.ok(&["scan", format, "--hex"]), rows, "{format}");

        let piped = place.run(&["export", "db", "--format", format]);
        assert_eq!(piped.out, fs::read(place.path(&file)).expect("it was written"));
        place.run_with_input(&["import", "piped", "-", "--format", format], &piped.out);
        assert_eq!(place.ok(&["scan", "piped", "--hex"]), rows, "{format}");
    }
    let message = place.fails(1, &["export", "db", "rows.csv"]);
    assert!(message.contains("--format jsonl"), "{message}");
}

#[test]
fn text_survives_export_and_import_as_csv() {
    let place = Place::new();
    for (key, value) in [("", ""), ("a,b", "\"q\""), ("line\nend\r\n", "\t"), ("ü", " x ")] {
        place.ok(&["set", "db", key, value]);
    }
    place.ok(&["export", "db", "rows.csv"]);
    place.ok(&["import", "again", "rows.csv"]);
    assert_eq!(place.ok(&["scan", "again"]), place.ok(&["scan", "db"]));
}

#[test]
fn when_rows_expire_survives_export_and_import() {
    let place = Place::new();
    let hour = std::time::Duration::from_secs(3600);
    let expiries = |name: &str| {
        let db = ashlardb::Db::open(place.path(name)).expect("it opens");
        let (mut rows, mut found) = (db.get_range::<&[u8]>(..), Vec::new());
        while let Some(row) = rows.next() {
            let (key, value) = row.expect("it can be read");
            found.push((key.to_vec(), value.to_vec(), rows.expires_ms()));
        }
        found
    };
    let db = ashlardb::Db::open(place.path("db")).expect("it is created");
    db.put("never", "v").expect("it is written");
    db.put_with_ttl("later", "\\@5", hour).expect("it is written");
    db.put_with_ttl([0xff, 9], [0xfe, 9], 2 * hour).expect("it is written");
    db.close().expect("it is closed");
    let expected = expiries("db");
    assert_eq!(expected.iter().filter(|row| row.2.is_some()).count(), 2);
    for format in ["tsv", "jsonl", "cbor"] {
        let file = format!("rows.{format}");
        place.ok(&["export", "db", &file]);
        place.ok(&["import", format, &file]);
        assert_eq!(expiries(format), expected, "{format}");
        place.ok(&["export", "db", &file, "--drop-expiry"]);
        place.ok(&["import", format, &file]);
        let found = expiries(format);
        assert!(found.len() == 3 && found.iter().all(|row| row.2.is_none()), "{format}");
    }
    let message = place.fails(1, &["export", "db", "rows.csv"]);
    assert!(message.contains("--drop-expiry"), "{message}");
    place.ok(&["export", "db", "rows.csv", "--drop-expiry", "--to", "z"]);
    assert_eq!(place.ok(&["import", "csv", "rows.csv"]), "2 rows imported\n");
}

#[test]
fn the_help_says_what_becomes_of_expiry_and_what_changes_there_are() {
    let place = Place::new();
    let help = place.ok(&["export", "--help"]);
    assert!(help.contains("with when each row expires, unless --drop-expiry"), "{help}");
    let help = place.ok(&["changes", "--help"]);
    for kind in
        ["put", "merge", "delete", "delete-range", "clear", "loaded", "keyspaces", "unknown"]
    {
        assert!(help.split([' ', ',', '(', ':']).any(|word| word == kind), "{kind}: {help}");
    }
}

#[test]
fn many_sorted_rows_are_loaded_as_a_whole() {
    let place = Place::new();
    let row = |n: u32| format!("{n:08}\t{}\n", format!("{n}").repeat(40));
    let sorted: String = (0..50_000).map(row).collect();
    assert!(sorted.len() > 9 << 20);
    place.file("rows.tsv", &sorted);
    assert_eq!(place.ok(&["import", "db", "rows.tsv"]), "50000 rows imported\n");
    assert!(!place.segments().is_empty(), "past the log");
    let rows = place.ok(&["scan", "db"]);
    assert!(rows == sorted);
    let verified = place.run(&["verify", "db"]);
    assert_eq!(verified.code, 0, "{verified:?}");
    // Not empty any more: by batches, with the same outcome.
    assert_eq!(place.ok(&["import", "db", "rows.tsv"]), "50000 rows imported\n");
    assert!(place.ok(&["scan", "db"]) == sorted);

    // Sorted for long, then not, with a key for the second time; and a line that makes no sense.
    let later = format!("{sorted}{}00000007\tagain\nbroken\n00000009\tnot read\n", row(49_999));
    place.file("later.tsv", later);
    let message = place.fails(1, &["import", "later", "later.tsv"]);
    assert!(message.contains("50002 rows imported"), "{message}");
    assert_eq!(place.ok(&["get", "later", "00000007"]), "again\n");
    assert!(place.ok(&["scan", "later"]) == sorted.replacen(&row(7), "00000007\tagain\n", 1));
    // Broken while it is loaded.
    place.file("broken.tsv", format!("{sorted}broken\n"));
    let message = place.fails(1, &["import", "broken", "broken.tsv"]);
    assert!(message.contains("50000 rows imported"), "{message}");
    assert!(place.ok(&["scan", "broken"]) == sorted);
    let from = place.ok(&["scan", "broken", "--from", "00049998", "--keys-only"]);
    assert_eq!(from, "00049998\n00049999\n");
}

#[test]
fn cbor_that_is_cut_short_is_named() {
    let place = Place::new();
    place.file("rows.cbor", b"\x82\x41a\x411\x05\x82\x41b\x412\x82\x41c");
    let message = place.fails(1, &["import", "db", "rows.cbor"]);
    assert!(message.contains("line 2") && message.contains("1 row imported"), "{message}");
    let message = place.fails(1, &["import", "db", "rows.cbor", "--skip-bad"]);
    assert!(message.contains("item 4 is cut short"), "{message}");
    assert_eq!(place.ok(&["scan", "db"]), "a\t1\nb\t2\n");
}

#[test]
fn a_malformed_line_is_named_and_the_rows_before_it_are_kept() {
    let place = Place::new();
    place.file("rows.tsv", "a\t1\nb\t2\nbroken\nc\t3\n\nd\t\\q\n");
    for arguments in [&["import", "db", "rows.tsv"][..], &["import", "db", "rows.tsv", "--sync"]] {
        let message = place.fails(1, arguments);
        for part in ["rows.tsv", "line 3", "--skip-bad", "2 rows imported"] {
            assert!(message.contains(part), "{message}");
        }
        assert_eq!(place.ok(&["scan", "db", "--keys-only"]), "a\nb\n");
    }

    let run = place.run(&["import", "db", "rows.tsv", "--skip-bad", "--batch", "1"]);
    assert_eq!((run.code, run.out.as_slice()), (0, &b"3 rows imported\n"[..]));
    for part in ["2 rows left out", "line 3", "line 6"] {
        assert!(run.err.contains(part), "{run:?}");
    }
    assert_eq!(place.ok(&["scan", "db", "--keys-only"]), "a\nb\nc\n");

    let report = place.json(&["import", "db", "rows.tsv", "--skip-bad"]);
    assert_eq!((&report["rows"], &report["skipped"]), (&json!(3), &json!(2)));
    assert_eq!(report["bad"][1]["line"], json!(6));
}

#[test]
fn a_key_that_is_too_long_is_a_malformed_line() {
    let place = Place::new();
    let longest = "k".repeat(65_535);
    place.file("rows.tsv", format!("{longest}\t1\n{longest}k\t2\n"));
    let message = place.fails(1, &["import", "db", "rows.tsv"]);
    assert!(message.contains("line 2") && message.contains("65536"), "{message}");
    assert_eq!(place.ok(&["get", "db", &longest]), "1\n");
}

#[test]
fn commands_that_only_look_create_nothing() {
    let place = Place::new();
    fs::create_dir(place.path("empty")).expect("a directory");
    for command in ["get", "rm", "scan", "export", "stats", "compact", "verify", "keyspace"] {
        for directory in ["missing", "empty"] {
            let arguments: &[&str] = match command {
                "get" | "rm" => &[command, directory, "k"],
                "export" => &[command, directory, "rows.tsv"],
                "keyspace" => &[command, "list", directory],
                _ => &[command, directory],
            };
            let message = place.fails(1, arguments);
            assert!(message.contains("not an AshlarDB database"), "{arguments:?}: {message}");
        }
    }
    let message = place.fails(1, &["import", "missing", "rows.tsv"]);
    assert!(message.contains("rows.tsv"), "{message}");
    assert!(!place.path("missing").exists());
    assert!(!place.path("rows.tsv").exists());
    assert_eq!(fs::read_dir(place.path("empty")).expect("it is there").count(), 0);
}

#[test]
fn exit_codes_tell_what_happened() {
    let place = Place::new();
    assert_eq!(place.ok(&["set", "db", "k", "v"]), "");
    assert_eq!(place.ok(&["get", "db", "k"]), "v\n");
    assert_eq!(place.ok(&["get", "db", "k", "--raw"]), "v");
    assert_eq!(place.ok(&["rm", "db", "absent"]), "");
    let message = place.fails(3, &["get", "db", "absent"]);
    assert!(message.contains("absent"), "{message}");
    assert_eq!(place.ok(&["rm", "db", "k"]), "");
    place.fails(3, &["get", "db", "k"]);

    place.file("rows", "a\t1\n");
    for arguments in [
        &["frobnicate"][..],
        &["get", "db"],
        &["get", "db", "xyz", "--hex"],
        &["import", "db", "rows"],
        &["import", "db"],
        &["import", "db", "rows", "--format", "tsv", "--delimiter", ";"],
        &["import", "db", "rows", "--format", "csv", "--delimiter", ";;"],
        &["import", "db", "rows", "--format", "jsonl", "--key-column", "2"],
        &["import", "db", "rows", "--format", "tsv", "--batch", "0"],
        &["import", "db", "rows", "--format", "tsv", "--key-column", "0"],
    ] {
        place.fails(2, arguments);
    }
}

#[test]
fn a_database_that_is_open_elsewhere_gives_exit_code_5() {
    let place = Place::new();
    let db = ashlardb::Db::open(place.path("db")).expect("it opens");
    for arguments in [&["rm", "db", "k"][..], &["set", "db", "k", "v"], &["verify", "db"]] {
        place.fails(5, arguments);
    }
    let message = place.fails(5, &["rm", "db", "k", "--json"]);
    let report: Value = serde_json::from_str(&message).expect("a JSON document");
    assert_eq!(report["code"], json!(5));
    db.close().expect("it closes");
    place.fails(3, &["get", "db", "k"]);
}

#[test]
fn commands_that_only_read_do_so_beside_a_writer_and_leave_no_trace() {
    let place = Place::new();
    let db =
        ashlardb::Db::builder(place.path("db")).keep_log_bytes(1 << 20).open().expect("it opens");
    db.put("a", "1").expect("a write");
    db.flush().expect("a flush");
    let mut batch = ashlardb::WriteBatch::new();
    batch.delete("a").put("b\t", "2").put_in(&db.keyspace("fruit").expect("a keyspace"), "c", "3");
    db.write(batch).expect("a write");
    let before = files(&place.path("db"));
    assert_eq!(place.ok(&["get", "db", "c", "--keyspace", "fruit"]), "3\n");
    assert_eq!(place.ok(&["scan", "db"]), "b\\t\t2\n");
    assert_eq!(place.ok(&["export", "db", "-", "--format", "tsv"]), "b\\t\t2\n");
    assert_eq!(place.ok(&["keyspace", "list", "db"]), "default\nfruit\n");
    assert!(place.ok(&["stats", "db"]).contains("keyspace fruit"));
    let changes = "0\tkeyspaces\tdefault\n1\tput\tdefault\ta\t1\n1\tkeyspaces\tdefault\tfruit\n\
                   4\tdelete\tdefault\ta\n4\tput\tdefault\tb\\t\t2\n4\tput\tfruit\tc\t3\n";
    assert_eq!(place.ok(&["changes", "db"]), changes);
    let json = place.ok(&["changes", "db", "--since", "1", "--json"]);
    let last: Value = serde_json::from_str(json.lines().last().expect("a line")).expect("JSON");
    assert_eq!(last["changes"][2], json!({ "put": "fruit", "key": "c", "value": "3" }));
    assert!(place.fails(1, &["changes", "db", "--since", "9"]).contains("up to 4"));
    assert_eq!(files(&place.path("db")), before);
    db.close().expect("it closes");
}

/// The files of a directory, with their bytes.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(directory).expect("a directory");
    let paths = entries.map(|entry| entry.expect("it can be listed").path());
    let mut files: Vec<_> = paths.map(|p| (p.clone(), fs::read(p).expect("readable"))).collect();
    files.sort();
    files
}

#[test]
fn values_come_from_standard_input_and_hexadecimal() {
    let place = Place::new();
    let run = place.run_with_input(&["set", "db", "k"], b"two\nlines\n\xff");
    assert_eq!(run.code, 0, "{run:?}");
    assert_eq!(place.run(&["get", "db", "k", "--raw"]).out, b"two\nlines\n\xff");
    assert_eq!(place.ok(&["get", "db", "6b", "--hex"]), "74776f0a6c696e65730aff\n");
    place.ok(&["set", "db", "FF00", "-5"]);
    assert_eq!(place.ok(&["get", "db", "FF00"]), "-5\n");
}

#[test]
fn a_store_can_be_drawn() {
    let place = Place::new();
    place.ok(&["set", "db", "a", "1"]);
    place.ok(&["stats", "db", "--plot", "empty.svg"]);
    let empty = fs::read_to_string(place.path("empty.svg")).expect("a drawing");
    assert!(empty.contains("no segments"), "{empty}");
    // Keys that XML and terminals do not take as they are.
    place.ok(&["set", "db", "3c0a26ff", "31", "--hex"]);
    place.ok(&["compact", "db"]);
    place.ok(&["stats", "db", "--plot", "out.svg"]);
    let drawing = fs::read_to_string(place.path("out.svg")).expect("a drawing");
    assert!(drawing.starts_with("<svg ") && drawing.ends_with("</svg>\n"), "{drawing}");
    assert_eq!(drawing.matches("<title>segment ").count(), 1, "{drawing}");
    assert!(drawing.contains(r"keys &lt;\n&amp;\xff to a<"), "{drawing}");
    let place = Place::new();
    place.fails(1, &["stats", "db", "--plot", "out.svg"]);
    assert!(!place.path("out.svg").exists());
}

#[test]
fn json_is_one_document_or_one_a_line() {
    let place = Place::new();
    assert_eq!(place.json(&["set", "db", "k", "v\n"]), json!({ "ok": true }));
    place.ok(&["set", "db", "ff", "00ff", "--hex"]);
    assert_eq!(place.json(&["get", "db", "k"]), json!({ "key": "k", "value": "v\n" }));
    let rows = place.ok(&["scan", "db", "--json"]);
    let rows: Vec<Value> =
        rows.lines().map(|row| serde_json::from_str(row).expect("a document a line")).collect();
    assert_eq!(
        rows,
        [json!({ "key": "k", "value": "v\n" }), json!({ "key_hex": "ff", "value_hex": "00ff" })]
    );
    assert_eq!(place.json(&["export", "db", "rows.tsv"]), json!({ "rows": 2 }));
    assert_eq!(place.json(&["compact", "db"]), json!({ "ok": true }));
    assert!(place.json(&["stats", "db"]).is_object());
    assert_eq!(place.json(&["verify", "db"])["damaged"], json!(false));

    let message = place.fails(3, &["get", "db", "absent", "--json"]);
    let report: Value = serde_json::from_str(&message).expect("a JSON document");
    assert_eq!(report["code"], json!(3));
}

#[test]
fn keyspaces_are_apart() {
    let place = Place::new();
    place.ok(&["set", "db", "k", "default"]);
    place.ok(&["set", "db", "k", "fruit", "--keyspace", "fruit"]);
    place.ok(&["keyspace", "create", "db", "empty"]);
    assert_eq!(place.json(&["keyspace", "list", "db"]), json!(["default", "empty", "fruit"]));
    assert_eq!(place.ok(&["get", "db", "k"]), "default\n");
    assert_eq!(place.ok(&["get", "db", "k", "--keyspace", "fruit"]), "fruit\n");
    assert_eq!(place.ok(&["scan", "db", "--keyspace", "empty"]), "");

    // Looking into a keyspace that is not there is an error, and does not create it.
    let message = place.fails(1, &["scan", "db", "--keyspace", "typo"]);
    assert!(message.contains("keyspace list"), "{message}");
    place.ok(&["keyspace", "drop", "db", "fruit"]);
    place.fails(1, &["keyspace", "drop", "db", "fruit"]);
    assert_eq!(place.ok(&["keyspace", "list", "db"]), "default\nempty\n");

    place.file("rows.jsonl", "{\"key\": \"k\", \"value\": {\"b\": 1.0, \"a\": []}}\n");
    place.ok(&["import", "db", "rows.jsonl", "--keyspace", "new"]);
    assert_eq!(place.ok(&["get", "db", "k", "--keyspace", "new"]), "{\"b\":1.0,\"a\":[]}\n");
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    let place = Place::new();
    place.import_unicode();
    for arguments in [&["scan", "db"][..], &["export", "db", "--format", "jsonl"]] {
        let mut child = place
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command runs");
        let mut first = String::new();
        let mut out = BufReader::with_capacity(16, child.stdout.take().expect("it is piped"));
        out.read_line(&mut first).expect("it can be read");
        drop(out);
        let output = child.wait_with_output().expect("the command ends");
        assert!(first.contains("0000"), "{first}");
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    }
}

#[test]
fn verify_finds_a_damaged_block_and_the_rest_stays_readable() {
    let place = Place::new();
    place.import_unicode();
    place.ok(&["compact", "db"]);
    let sound = place.ok(&["verify", "db"]);
    assert!(sound.contains("no damage"), "{sound}");

    let segment = place.segments().pop().expect("compacting leaves a segment");
    let name = segment.file_name().expect("it has a name").to_string_lossy().into_owned();
    let mut bytes = fs::read(&segment).expect("it can be read");
    bytes[100] ^= 1;
    fs::write(&segment, &bytes).expect("it can be written");

    let run = place.run(&["verify", "db"]);
    let out = String::from_utf8_lossy(&run.out);
    assert_eq!(run.code, 4, "{run:?}");
    assert!(out.contains(&name) && out.contains("damaged at byte 0"), "{run:?}");
    let path = segment.to_str().expect("the path is UTF-8");
    place.fails(4, &["verify", path]);
    let run = place.run(&["verify", "db", "--json"]);
    let report: Value = serde_json::from_slice(&run.out).expect("a JSON document");
    assert_eq!((run.code, &report["damaged"]), (4, &json!(true)));

    let message = place.fails(1, &["scan", "db"]);
    assert!(message.contains(&name) && message.contains("ashlar verify"), "{message}");
    let rest = place.run(&["scan", "db", "--reverse"]);
    let rows = rest.out.iter().filter(|byte| **byte == b'\n').count();
    assert!(rows > UNICODE_ROWS * 9 / 10, "{rows} rows can be read");
}

/// The files of the database `db` with their content.
fn files_of(place: &Place) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(place.path("db")).expect("the database is a directory");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("it can be listed").path())
        .map(|path| (path.clone(), fs::read(&path).expect("it can be read")))
        .collect();
    files.sort();
    files
}

#[test]
fn verify_reads_logs_and_manifest_and_changes_nothing() {
    let place = Place::new();
    for n in 0..9 {
        place.ok(&["set", "db", &format!("key {n}"), "value", "--sync"]);
    }
    let before = files_of(&place);
    let sound = place.json(&["verify", "db"]);
    assert_eq!((&sound["damaged"], &sound["damage"]), (&json!(false), &json!([])));
    assert!(sound["logs"][0]["sound_records"].as_u64() > Some(0), "{sound}");
    assert!(files_of(&place) == before, "verifying changes nothing");

    let log = before.iter().find(|(path, _)| path.extension().is_some_and(|e| e == "wal"));
    let (log, mut bytes) = log.expect("there is a log").clone();
    let at = bytes.windows(3).position(|part| part == b"key").expect("a record");
    bytes[at] ^= 1;
    fs::write(&log, &bytes).expect("it can be written");
    place.fails(1, &["scan", "db"]);
    let run = place.run(&["verify", "db", "--json"]);
    let report: Value = serde_json::from_slice(&run.out).expect("a JSON document");
    assert_eq!((run.code, &report["damaged"]), (4, &json!(true)));
    let damaged = &report["damage"][0];
    assert_eq!(damaged["file"], json!(Path::new("db").join(log.file_name().expect("a name"))));
    assert!(damaged["offset"].as_u64().is_some_and(|offset| (offset as usize) < at), "{damaged}");

    fs::write(place.path("db/MANIFEST"), "x").expect("it can be written");
    let run = place.run(&["verify", "db"]);
    let out = String::from_utf8_lossy(&run.out);
    assert!(run.code == 4 && out.contains("MANIFEST: damaged at byte 0"), "{run:?}");
    place.fails(1, &["verify", "nothing"]);
}

#[test]
fn repair_saves_everything_but_the_damaged_block() {
    let place = Place::new();
    place.import_unicode();
    place.ok(&["set", "db", "k", "v", "--keyspace", "other"]);
    place.ok(&["compact", "db"]);
    let all = place.ok(&["scan", "db"]);
    let whole = place.json(&["repair", "db", "whole"]);
    assert_eq!(whole["complete"], json!(true));
    assert!(place.ok(&["scan", "whole"]) == all);

    let segment = place.segments().into_iter().max_by_key(|path| fs::metadata(path).unwrap().len());
    let segment = segment.expect("compacting leaves a segment");
    let mut bytes = fs::read(&segment).expect("it can be read");
    bytes[5 * 4096 + 100] ^= 1;
    fs::write(&segment, &bytes).expect("it can be written");
    let before = files_of(&place);
    let run = place.run(&["repair", "db", "new", "--json"]);
    let report: Value = serde_json::from_slice(&run.out).expect("a JSON document");
    assert_eq!((run.code, &report["complete"]), (4, &json!(false)), "{run:?}");
    assert!(files_of(&place) == before, "repair changes nothing");
    let lost = report["lost"].as_array().expect("a list");
    assert_eq!(lost.len(), 1);
    let key = |name: &str| lost[0][name].as_str().expect("a key").to_owned();
    let (above, up_to) = (key("above_key"), key("up_to_key"));
    let expected: String = all
        .lines()
        .filter(|row| {
            let key = row.split('\t').next().expect("a key");
            key <= above.as_str() || key > up_to.as_str()
        })
        .map(|row| format!("{row}\n"))
        .collect();
    assert!(place.ok(&["scan", "new"]) == expected && expected.len() < all.len());
    let saved = report["keyspaces"][0]["keys"].as_u64();
    assert_eq!(saved, Some(expected.lines().count() as u64));
    assert_eq!(place.ok(&["get", "new", "k", "--keyspace", "other"]), "v\n");
    place.ok(&["verify", "new"]);

    let run = place.run(&["repair", "db", "third"]);
    let out = String::from_utf8_lossy(&run.out);
    assert!(run.code == 4 && out.contains("lost: db") && out.contains("keys saved"), "{run:?}");
    let message = place.fails(1, &["repair", "db", "third"]);
    assert!(message.contains("empty"), "{message}");
    place.fails(2, &["repair", "db"]);
}

#[test]
fn a_checkpoint_is_a_database_with_the_same_content() {
    let place = Place::new();
    place.import_unicode();
    assert_eq!(place.ok(&["checkpoint", "db", "copy"]), "copied to copy\n");
    place.ok(&["set", "db", "new", "x"]);
    let mut rows = place.ok(&["scan", "db"]);
    rows = rows.replace("new\tx\n", "");
    assert!(place.ok(&["scan", "copy"]) == rows);
    place.ok(&["verify", "copy"]);
    let message = place.fails(1, &["checkpoint", "db", "copy"]);
    assert!(message.contains("copy is not empty"), "{message}");
    assert_eq!(place.json(&["checkpoint", "db", "another"]), json!({ "copy": "another" }));
    place.fails(1, &["checkpoint", "nothing", "third"]);
    assert!(!place.path("third").exists());
}

#[test]
fn backups_are_made_listed_pruned_and_restored() {
    let place = Place::new();
    place.import_unicode();
    let first = place.json(&["backup", "db", "safe"]);
    assert_eq!((&first["number"], &first["bytes"]), (&json!(1), &first["new_bytes"]));
    let before = place.ok(&["scan", "db"]);
    place.ok(&["set", "db", "new", "x"]);
    let second = place.json(&["backup", "db", "safe"]);
    assert_eq!((&second["number"], &second["new_segments"]), (&json!(2), &json!(1)));
    let text = place.ok(&["backups", "safe", "--verify"]);
    assert_eq!(text.matches("no damage found").count(), 2, "{text}");

    assert_eq!(place.ok(&["restore", "safe", "new"]), "backup 2 restored to new\n");
    assert!(place.ok(&["scan", "new"]) == place.ok(&["scan", "db"]));
    place.ok(&["restore", "safe", "old", "--number", "1"]);
    assert!(place.ok(&["scan", "old"]) == before);
    assert!(place.fails(1, &["restore", "safe", "old"]).contains("not empty"));
    place.fails(1, &["restore", "safe", "third", "--number", "9"]);
    place.fails(1, &["restore", "db", "third"]);
    place.fails(2, &["backup", "db", "safe", "--keep", "0"]);

    let entries = fs::read_dir(place.path("safe")).expect("a directory");
    let segments = entries.map(|entry| entry.expect("it can be listed").path());
    let segment = segments.filter(|path| path.extension().is_some_and(|e| e == "seg")).min();
    let segment = segment.expect("there is a segment");
    let mut bytes = fs::read(&segment).expect("it can be read");
    bytes[5 * 4096 + 100] ^= 1;
    fs::write(&segment, &bytes).expect("it can be written");
    let run = place.run(&["backups", "safe", "--verify", "--json"]);
    let lines: Vec<Value> = String::from_utf8_lossy(&run.out)
        .lines()
        .map(|line| serde_json::from_str(line).expect("a JSON document"))
        .collect();
    assert_eq!((run.code, lines.len()), (4, 2), "{run:?}");
    let offset = lines[0]["damage"][0]["offset"].as_u64().expect("a number");
    assert!(offset > 0 && offset <= 5 * 4096, "{offset}");
    let message = place.fails(1, &["restore", "safe", "third"]);
    assert!(message.contains("ashlar backups --verify"), "{message}");
    fs::remove_file(&segment).expect("it can be removed");
    let third = place.json(&["backup", "db", "safe", "--keep", "1"]);
    assert_eq!((&third["number"], &third["removed"]), (&json!(3), &json!([1, 2])));
    place.ok(&["restore", "safe", "fourth"]);
    assert!(place.ok(&["scan", "fourth"]) == place.ok(&["scan", "db"]));
    assert_eq!(place.ok(&["backups", "safe"]).lines().count(), 1);
}

#[test]
fn a_segment_shows_how_it_is_built() {
    let place = Place::new();
    place.import_unicode();
    place.ok(&["compact", "db"]);
    let mut entries = 0;
    for segment in place.segments() {
        let path = segment.to_str().expect("the path is UTF-8");
        place.ok(&["verify", path]);
        let text = place.ok(&["segment", path, "--blocks", "--index"]);
        for part in ["block index", "properties", "padding", "first key"] {
            assert!(text.contains(part), "{text}");
        }
        let report = place.json(&["segment", path, "--blocks", "--index"]);
        let padding = report["padding_ratio"].as_f64().expect("a number");
        assert!((0.0..0.1).contains(&padding), "{report}");
        let blocks = report["block_list"].as_array().expect("a list");
        assert_eq!(json!(blocks.len()), report["blocks"]);
        assert!(
            blocks.iter().all(|block| block["offset"].as_u64().is_some_and(|at| at % 4096 == 0))
        );
        let count = |block: &Value| block["entries"].as_u64().expect("a number");
        assert_eq!(json!(blocks.iter().map(count).sum::<u64>()), report["entries"]);
        entries += report["entries"].as_u64().expect("a number");
    }
    assert_eq!(entries, UNICODE_ROWS as u64);
    place.file("no.seg", "x");
    let message = place.fails(1, &["segment", "no.seg"]);
    assert!(message.contains("no.seg"), "{message}");
}

#[test]
fn nothing_is_said_but_the_answer_when_nobody_is_watching() {
    let place = Place::new();
    place.file("rows.tsv", "a\t1\n");
    assert_eq!(place.ok(&["import", "db", "rows.tsv"]), "1 row imported\n");
    assert_eq!(place.ok(&["export", "db", "out.tsv"]), "1 row exported\n");
    assert_eq!(place.ok(&["export", "db", "-", "--format", "tsv"]), "a\t1\n");
    assert!(Path::new(&place.path("out.tsv")).exists());
}

#[test]
fn what_was_merged_by_an_operator_that_is_not_known_does_not_hide_the_rest() {
    use ashlardb::{Db, KeyspaceOptions, merge};
    let place = Place::new();
    let own = || merge::MergeFn::new("own", |_, _, operands| operands.last().map(|o| o.to_vec()));
    let options = |other: bool| {
        let options = KeyspaceOptions::new();
        if other { options.merge_operator(merge::AddI64) } else { options.merge_operator(own()) }
    };
    {
        let db = Db::builder(place.path("db")).merge_operator(own()).open().expect("it opens");
        db.put("plain", "1").expect("a put");
        db.merge("merged", "2").expect("a merge");
        let counts = db.keyspace_with("counts", &options(true)).expect("a keyspace");
        counts.merge("n", 5i64.to_le_bytes()).expect("a merge");
        counts.merge("n", 6i64.to_le_bytes()).expect("a merge");
        let more = db.keyspace_with("more", &options(false)).expect("a keyspace");
        more.merge("k", "3").expect("a merge");
        db.keyspace("third").expect("a keyspace").put("k", "v").expect("a put");
        let hour = std::time::Duration::from_secs(3_600);
        db.keyspace("third").expect("it").put_with_ttl("l", "w", hour).expect("a put");
        db.flush().expect("a flush");
        db.merge("merged", "4").expect("a merge");
        db.close().expect("it closes");
    }
    assert!(place.ok(&["verify", "db"]).contains("no damage found"));
    for db in ["db", "new"] {
        let stats = place.json(&["stats", db]);
        assert_eq!(stats["keyspaces"].as_array().map(Vec::len), Some(4), "{stats}");
        assert_eq!(place.ok(&["keyspace", "list", db]), "counts\ndefault\nmore\nthird\n");
        for arguments in [
            &["get", db, "merged"][..],
            &["get", db, "plain"],
            &["scan", db],
            &["export", db, "rows.tsv"],
            &["compact", db],
            &["set", db, "plain", "2"],
            &["get", db, "k", "--keyspace", "more"],
            &["scan", db, "--keyspace", "more"],
        ] {
            let message = place.fails(1, arguments);
            assert!(message.contains("merge operator, \"own\""), "{arguments:?}: {message}");
        }
        // The others are as ever.
        assert_eq!(
            place.ok(&["get", db, "6e", "--keyspace", "counts", "--hex"]),
            "0b00000000000000\n"
        );
        assert_eq!(place.ok(&["scan", db, "--keyspace", "third"]), "k\tv\nl\tw\n");
        if db == "db" {
            assert!(place.ok(&["repair", "db", "new"]).contains("2 keys saved"));
        }
    }
    let db = Db::builder(place.path("new")).merge_operator(own()).open().expect("it opens");
    assert_eq!(db.get("merged").expect("it is read").expect("it is there"), "4");
    let more = db.keyspace_with("more", &options(false)).expect("a keyspace");
    assert_eq!(more.get("k").expect("it is read").expect("it is there"), "3");
}
