//! Holds SUPPORT.md against the code, without a kernel: what the table names exists, and what
//! exists is named.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use ckpt_image::record;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Kinds of values whose every constant has a row, with how many there are.
const KINDS: [(&str, usize); 6] = [
    ("file_kind", record::file_kind::ALL.len()),
    ("inode_kind", record::inode_kind::ALL.len()),
    ("vma_kind", record::vma_kind::ALL.len()),
    ("vma_flags", record::vma_flags::ALL.count_ones() as usize),
    ("restart_kind", record::restart_kind::ALL.len()),
    ("task_state", record::task_state::ALL.len()),
];

/// Extensions of fixtures; `tests/src/fixture.rs` has the same.
const FIXTURES: [&str; 6] = ["c", "py", "sh", "js", "run", "java"];

/// The columns that hold names, and how many columns there are.
const CODE: usize = 1;
const TESTS: usize = 5;
const CELLS: usize = 6;

/// One row of SUPPORT.md.
struct Row {
    resource: String,
    cells: Vec<String>,
}

impl Row {
    /// The words between backquotes in a cell.
    fn names(&self, cell: usize) -> Vec<&str> {
        self.cells[cell].split('`').skip(1).step_by(2).collect()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Names of the files in a directory.
fn files(path: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(root().join(path)).unwrap().map(Result::unwrap);
    let files = entries.filter(|e| e.file_type().unwrap().is_file());
    files.map(|e| e.file_name().into_string().unwrap()).collect()
}

fn rows() -> Vec<Row> {
    let text = read("SUPPORT.md");
    let lines = text.lines().filter(|l| l.starts_with('|'));
    let lines = lines.filter(|l| !l.starts_with("|---") && !l.starts_with("| resource |"));
    let row = |line: &str| {
        let inner = line.strip_prefix('|').and_then(|l| l.strip_suffix('|')).expect(line);
        let cells: Vec<String> = inner.split('|').map(|c| c.trim().to_owned()).collect();
        assert_eq!(cells.len(), CELLS, "cells of {line}");
        assert_eq!(line.matches('`').count() % 2, 0, "backquotes of {line}");
        Row { resource: cells[0].clone(), cells }
    };
    lines.map(row).collect()
}

/// All names in one column, each with a row that has it.
fn named(rows: &[Row], cell: usize) -> BTreeMap<&str, &str> {
    rows.iter().flat_map(|r| r.names(cell).into_iter().map(|n| (n, r.resource.as_str()))).collect()
}

/// Modules of resources: `timers.rs`, `file/regular.rs`.
fn modules() -> BTreeSet<String> {
    let mut modules = files("crates/engine/src/resource");
    assert!(modules.remove("mod.rs"));
    modules.extend(files("crates/engine/src/resource/file").into_iter().map(|f| format!("file/{f}")));
    modules
}

/// `kind::NAME` of every constant of the modules in [`KINDS`].
fn constants() -> BTreeSet<String> {
    let path = "crates/image/src/record";
    let text: String = files(path).iter().map(|f| read(&format!("{path}/{f}"))).collect();
    let mut constants = BTreeSet::new();
    for (kind, count) in KINDS {
        let begin = text.find(&format!("pub mod {kind} {{")).expect(kind);
        let body = &text[begin..begin + text[begin..].find("\n}").expect(kind)];
        let names = body.lines().filter_map(|l| l.trim().strip_prefix("pub const ")?.split(':').next());
        let names: Vec<&str> = names.filter(|n| *n != "ALL").collect();
        assert_eq!(names.len(), count, "constants of {kind}, and those in its ALL");
        constants.extend(names.iter().map(|n| format!("{kind}::{n}")));
    }
    constants
}

/// Cases of a fixture, none for one without cases.
fn cases(file: &str) -> Vec<String> {
    let text = read(&format!("tests/fixtures/{file}"));
    let case = |l: &str| Some(l.split_once("//#Case:")?.1.trim().to_owned());
    text.lines().filter_map(case).collect()
}

#[test]
fn every_row_says_something() {
    let rows = rows();
    assert!(rows.len() > 50, "{} rows: the table was not understood", rows.len());
    for row in &rows {
        let name = &row.resource;
        assert!(!name.is_empty(), "a row without a resource: {:?}", row.cells);
        assert!(row.cells[2..TESTS].iter().any(|c| !c.is_empty()), "{name}: nothing said");
        let tests = row.names(TESTS);
        let cell = &row.cells[TESTS];
        assert_eq!(tests.is_empty(), cell == "none", "{name}: name its tests, or say none");
        let outside: String = cell.split('`').step_by(2).collect();
        assert!(tests.is_empty() || outside.trim().is_empty(), "{name}: a test without backquotes: {cell}");
    }
}

#[test]
fn modules_have_rows() {
    let rows = rows();
    let named = named(&rows, CODE);
    let modules = modules();
    assert!(modules.len() > 12, "{modules:?}");
    for module in &modules {
        assert!(named.contains_key(module.as_str()), "no row names the module {module}");
    }
    for (name, row) in named.iter().filter(|(n, _)| n.ends_with(".rs")) {
        assert!(modules.contains(*name), "{row}: there is no module {name}");
    }
}

#[test]
fn registered_kinds_have_rows() {
    let rows = rows();
    let named = named(&rows, CODE);
    let registry = read("crates/engine/src/registry.rs");
    let entry = |l: &str| Some(l.trim().strip_prefix('&')?.strip_suffix(',')?.to_owned());
    let kinds: Vec<String> = registry.lines().filter_map(entry).collect();
    assert_eq!(kinds.len(), record::file_kind::ALL.len(), "{kinds:?}: one line per file_kind");
    for kind in kinds {
        let (module, _) = kind.split_once("::").expect(&kind);
        let module = format!("file/{module}.rs");
        assert!(named.contains_key(module.as_str()), "no row names {module}, registered as {kind}");
    }
}

#[test]
fn constants_have_rows() {
    let rows = rows();
    let named = named(&rows, CODE);
    let constants = constants();
    for constant in &constants {
        assert!(named.contains_key(constant.as_str()), "no row names {constant}");
    }
    for (name, row) in named.iter().filter(|(n, _)| n.contains("::")) {
        assert!(constants.contains(*name), "{row}: there is no {name}");
    }
    let odd = named.iter().find(|(n, _)| !n.contains("::") && !n.ends_with(".rs"));
    assert!(odd.is_none(), "neither a module nor a constant: {odd:?}");
}

#[test]
fn fixtures_are_claimed() {
    let rows = rows();
    let named = named(&rows, TESTS);
    for file in files("tests/fixtures") {
        let extension = file.rsplit_once('.').map_or("", |(_, e)| e);
        if !FIXTURES.contains(&extension) || named.contains_key(file.as_str()) {
            continue;
        }
        let cases = cases(&file);
        assert!(!cases.is_empty(), "no row claims the fixture {file}");
        for case in cases {
            let name = format!("{file}:{case}");
            assert!(named.contains_key(name.as_str()), "no row claims the fixture {name}");
        }
    }
}

#[test]
fn tests_exist() {
    let rows = rows();
    let fixtures = files("tests/fixtures");
    for (name, row) in named(&rows, TESTS) {
        let (file, part) = name.split_once(':').map_or((name, None), |(f, p)| (f, Some(p)));
        if file.starts_with("e2e/") {
            let part = part.unwrap_or_else(|| panic!("{row}: {name} names no test"));
            let text = read(&format!("tests/{file}"));
            assert!(text.contains(&format!("(\"{part}\", ")), "{row}: there is no test {name}");
            continue;
        }
        assert!(fixtures.contains(file), "{row}: there is no fixture {file}");
        assert!(part.is_none_or(|p| cases(file).iter().any(|c| c == p)), "{row}: there is no case {name}");
    }
}
