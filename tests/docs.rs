//! What the documents name is there: each test in the table of known mistakes, each deliberate defect.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn collect(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, names);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            // A name counts if it is a test's.
            for part in text.split("#[test]").skip(1) {
                let name = part.split("fn ").nth(1).and_then(|rest| rest.split('(').next());
                names.extend(name.map(str::to_owned));
            }
        }
    }
}

#[test]
fn the_tests_and_defects_that_the_documents_name_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known = BTreeSet::new();
    collect(&root.join("src"), &mut known);
    collect(&root.join("tests"), &mut known);
    for entry in fs::read_dir(root.join("tests/defects")).unwrap() {
        let path = entry.unwrap().path();
        known.insert(path.file_stem().unwrap().to_str().unwrap().to_owned());
    }
    let mut checked = 0;
    for document in ["docs/reliability.md", "docs/decisions.md"] {
        let text = fs::read_to_string(root.join(document)).unwrap();
        // Every other piece between backticks is quoted.
        for name in text.split('`').skip(1).step_by(2) {
            let is_name = |parts: usize, separator| {
                name.split(separator).count() >= parts
                    && name
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == separator)
            };
            if is_name(4, '_') || is_name(3, '-') {
                assert!(known.contains(name), "{document} names {name}, which is nowhere");
                checked += 1;
            }
        }
    }
    assert!(checked > 40, "{checked}");
}
