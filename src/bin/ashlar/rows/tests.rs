use super::*;

const TWO: Columns = Columns { key: 0, value: None };

/// The rows of a text that must all be sound.
fn rows(lines: Lines<'_>) -> Vec<(u64, String, String)> {
    let text = |bytes| String::from_utf8(bytes).expect("the tests use UTF-8");
    lines
        .map(|line| {
            let line = line.expect("memory can be read");
            let row = line.row.unwrap_or_else(|e| panic!("line {}: {e}", line.number));
            (line.number, text(row.key), text(row.value))
        })
        .collect()
}

/// The numbers and complaints of the lines that are not.
fn complaints(lines: Lines<'_>) -> Vec<(u64, String)> {
    lines
        .map(|line| line.expect("memory can be read"))
        .filter_map(|line| line.row.err().map(|what| (line.number, what)))
        .collect()
}

fn row(line: u64, key: &str, value: &str) -> (u64, String, String) {
    (line, key.to_owned(), value.to_owned())
}

#[test]
fn lines_are_counted_through_blank_lines_and_quoted_line_ends() {
    let csv = "\u{feff}a,1\r\n\n\r\n\"b\nb\",\"2\r\n\n\"\nc,\"3\"\"\"\n\nd,4";
    assert_eq!(
        rows(csv::read(csv.as_bytes(), b',', TWO)),
        [row(1, "a", "1"), row(4, "b\nb", "2\r\n\n"), row(8, "c", "3\""), row(10, "d", "4")]
    );
    let tsv = "a\t1\r\n\nb\\t\t\\x32\n\nc\t3";
    assert_eq!(
        rows(tsv::read(tsv.as_bytes(), TWO)),
        [row(1, "a", "1"), row(3, "b\t", "2"), row(5, "c", "3")]
    );
    let json =
        "{\"key\":\"a\",\"value\":\"1\"}\n\n {\"value_hex\":\"32\", \"key\" : \"\\u0062\"} \n";
    assert_eq!(rows(jsonl::read(json.as_bytes())), [row(1, "a", "1"), row(3, "b", "2")]);
}

#[test]
fn a_quote_that_is_never_closed_spoils_only_its_own_row() {
    let text = "a,1\nb,\"2\nc,3\nd,4\n";
    let found = complaints(csv::read(text.as_bytes(), b',', TWO));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, 2);
    assert!(found[0].1.contains("never closed"), "{found:?}");
    // A quote inside a field that is not quoted is a character like others.
    assert_eq!(
        rows(csv::read("a,5\" disk\nb,\"\"\n".as_bytes(), b',', TWO)),
        [row(1, "a", "5\" disk"), row(2, "b", "")]
    );
}

#[test]
fn columns_are_picked_and_the_rest_is_joined() {
    let text = "k;1;2\nl;\"a;b\";\n";
    assert_eq!(
        rows(csv::read(text.as_bytes(), b';', TWO)),
        [row(1, "k", "1;2"), row(2, "l", "\"a;b\";")]
    );
    let swapped = Columns { key: 2, value: Some(0) };
    assert_eq!(
        rows(csv::read(text.as_bytes(), b';', swapped)),
        [row(1, "2", "k"), row(2, "", "l")]
    );
    assert_eq!(rows(tsv::read("k\t1\t2\n".as_bytes(), TWO)), [row(1, "k", "1\t2")]);

    let middle = Columns { key: 1, value: None };
    assert_eq!(rows(csv::read("a;b;c\n".as_bytes(), b';', middle)), [row(1, "b", "a;c")]);
    for columns in [Columns { key: 3, value: None }, Columns { key: 0, value: Some(3) }] {
        let found = complaints(csv::read("a;b;c\n".as_bytes(), b';', columns));
        assert!(found[0].1.contains("no column 4, only 3"), "{found:?}");
    }
    let found = complaints(tsv::read("alone\n".as_bytes(), TWO));
    assert!(found[0].1.contains("only one column"), "{found:?}");
}

#[test]
fn json_values_that_are_not_strings_keep_their_digits_and_order() {
    for (written, stored) in [
        ("{ \"z\" : 1,\t\"a\" : [ 1.0 , \"x  y\\\" \" ] }", "{\"z\":1,\"a\":[1.0,\"x  y\\\" \"]}"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        (" 0.10000000000000000000001 ", "0.10000000000000000000001"),
        ("null", "null"),
        ("true", "true"),
    ] {
        let line = format!("{{\"key\":\"k\",\"value\":{written}}}");
        assert_eq!(rows(jsonl::read(line.as_bytes())), [row(1, "k", stored)]);
    }
}

#[test]
fn json_that_would_lose_something_is_refused() {
    for line in [
        "[]",
        "{}",
        "\"k\"",
        "{\"key\":\"k\"}",
        "{\"value\":\"v\"}",
        "{\"key\":1,\"value\":\"v\"}",
        "{\"key\":\"k\",\"value\":\"v\",\"more\":1}",
        "{\"key\":\"k\",\"value\":\"v\",\"value\":\"w\"}",
        "{\"key\":\"k\",\"key_hex\":\"00\",\"value\":\"v\"}",
        "{\"key_hex\":\"0\",\"value\":\"v\"}",
        "{\"key\":\"k\",\"value\":\"v\"} x",
        "{\"key\":\"k\",\"value\":\"v\"}{}",
        "{\"key\":\"k\" \"value\":\"v\"}",
        "{\"key\":\"k\",\"value\":\"v\",}",
        "{\"key\":\"k\",\"value\":",
        "{\"key\":\"k\",\"value\":[1,}",
        "{1:\"k\",\"value\":\"v\"}",
        "{\"key\":\"\\ud800\",\"value\":\"v\"}",
    ] {
        let found = complaints(jsonl::read(line.as_bytes()));
        assert_eq!(found.len(), 1, "{line}");
    }
}

#[test]
fn what_writers_write_their_readers_read() {
    let every_byte: Vec<u8> = (0..=255).collect();
    let text = "tab\t cr\r lf\n crlf\r\n quote\" comma, backslash\\ ünïcödé \u{feff} \\n \\x41";
    let all: &[&[u8]] = &[b"", text.as_bytes(), &every_byte, b"\"", b" ", b"\r", b"\xff", b"\\"];
    for key in all {
        for value in all {
            let (key_, value_) = (key.to_vec(), value.to_vec());
            let expected = Row { key: key_, value: value_, expires_ms: None };
            let (mut tsv, mut json, mut csv) = (Vec::new(), Vec::new(), Vec::new());
            let mut cbor = Vec::new();
            for _ in 0..2 {
                tsv::write(&mut tsv, key, value, None).expect("memory can be written");
                jsonl::write(&mut json, key, value, None).expect("memory can be written");
                cbor::write(&mut cbor, key, value, None).expect("memory can be written");
            }
            let carried = csv::write(&mut csv, b';', key, value).expect("memory can be written");
            let is_text = str::from_utf8(key).is_ok() && str::from_utf8(value).is_ok();
            assert_eq!(carried.is_ok(), is_text);
            let mut read: Vec<Line> = tsv::read(&tsv[..], TWO)
                .chain(jsonl::read(&json[..]))
                .chain(cbor::read(&cbor[..]))
                .map(|line| line.expect("memory can be read"))
                .collect();
            assert_eq!(read.len(), 6, "one line a row");
            if is_text {
                let lines: Result<Vec<Line>, _> = csv::read(&csv[..], b';', TWO).collect();
                read.extend(lines.expect("memory can be read"));
                assert_eq!(read.len(), 7, "one row: {:?}", csv.escape_ascii().to_string());
            }
            for line in read {
                assert_eq!(line.row.as_ref(), Ok(&expected));
            }
        }
    }
    let mut csv = Vec::new();
    let carried = csv::write(&mut csv, b',', "\u{feff}k".as_bytes(), b"v");
    assert!(carried.expect("memory can be written").is_err());
}

#[test]
fn when_a_row_expires_is_carried_too() {
    for expiry in [0, 1, 1_700_000_000_000, u64::MAX] {
        let (key, value) = (&b"a key"[..], &b"\\@5\tvalue"[..]);
        let (mut tsv, mut json, mut cbor) = (Vec::new(), Vec::new(), Vec::new());
        tsv::write(&mut tsv, key, value, Some(expiry)).expect("memory can be written");
        jsonl::write(&mut json, key, value, Some(expiry)).expect("memory can be written");
        cbor::write(&mut cbor, key, value, Some(expiry)).expect("memory can be written");
        let lines =
            tsv::read(&tsv[..], TWO).chain(jsonl::read(&json[..])).chain(cbor::read(&cbor[..]));
        let expires_ms = Some(expiry);
        let expected = Row { key: key.to_vec(), value: value.to_vec(), expires_ms };
        let rows: Vec<_> = lines.map(|line| line.expect("memory can be read").row).collect();
        assert!(rows.len() == 3 && rows.iter().all(|row| *row == Ok(expected.clone())), "{rows:?}");
    }
    for line in ["k\tv\t\\@", "k\tv\t\\@-1", "k\tv\t\\@18446744073709551616", "k\t\\@5"] {
        assert_eq!(complaints(tsv::read(line.as_bytes(), TWO)).len(), 1, "{line}");
    }
    for expiry in ["-1", "\"5\"", "1.5", "18446744073709551616", "5,\"expires_ms\":5"] {
        let line = format!("{{\"key\":\"k\",\"value\":\"v\",\"expires_ms\":{expiry}}}");
        assert_eq!(complaints(jsonl::read(line.as_bytes())).len(), 1, "{line}");
    }
}

#[test]
fn cbor_is_as_the_standard_says() {
    // [h'01', h'', 5], then ["a", "b"] of indefinite length.
    let bytes = b"\x83\x41\x01\x40\x05\x9f\x61a\x61b\xff";
    let lines: Vec<_> = cbor::read(&bytes[..]).map(|line| line.expect("it is sound")).collect();
    let row = |key: &[u8], value: &[u8], expires_ms| Row {
        key: key.to_vec(),
        value: value.to_vec(),
        expires_ms,
    };
    assert_eq!(lines[0].row, Ok(row(b"\x01", b"", Some(5))));
    assert_eq!((lines.len(), &lines[1].row), (2, &Ok(row(b"a", b"b", None))));
    let mut written = Vec::new();
    cbor::write(&mut written, b"\x01", b"", Some(5)).expect("memory can be written");
    assert_eq!(written, bytes[..5]);
    // Well-formed, and not a row: the next one is read.
    for item in [
        &b"\x05"[..],
        b"\x80",
        b"\x81\x41a",
        b"\x82\x05\x41a",
        b"\x83\x41a\x41b\x20",
        b"\x84\x41a\x41b\x05\x05",
        b"\xa1\x41a\x41b",
        b"\xf6",
    ] {
        let both = [item, &bytes[..5]].concat();
        let lines: Vec<_> = cbor::read(&both[..]).map(|line| line.expect("it is sound")).collect();
        assert!(lines.len() == 2 && lines[0].row.is_err() && lines[1].row.is_ok(), "{item:?}");
    }
    // Not well-formed: nobody knows where the next one begins.
    for item in [&b"\xff"[..], b"\x1c", b"\x82\x41a", b"\x82\x5b\x7f\xff\xff\xff\xff\xff\xff\xff"] {
        let lines: Vec<_> = cbor::read(item).collect();
        assert!(lines.len() == 1 && lines[0].is_err(), "{item:?}: {lines:?}");
    }
    // Arrays within arrays do not use up the stack, nor do their lengths the memory.
    assert!(cbor::read(&vec![0x81; 1 << 20][..]).next().is_some_and(|line| line.is_err()));
    let long = b"\x9b\x7f\xff\xff\xff\xff\xff\xff\xff\x41a";
    assert!(cbor::read(&long[..]).next().is_some_and(|line| line.is_err()));
}
