//! The commands from outside: exit codes, where output goes, one line per error, `ckptinfo` on the
//! image crate's golden image.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::{
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// Runs `line`, the first word being the name the binary is called by.
fn run(line: &str, input: &[u8]) -> Output {
    let (name, args) = line.split_once(' ').unwrap_or((line, ""));
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckpt"));
    command.arg0(name).args(args.split_whitespace());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Refused arguments leave the input unread.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../image/tests/golden/rev100.ckpt")
}

fn image() -> Vec<u8> {
    std::fs::read(golden()).unwrap()
}

/// Exactly one line, which begins with the command's name.
fn one_line(output: &Output, name: &str) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(text.starts_with(&format!("{name}: ")), "{text:?}");
    assert_eq!(text.find('\n'), Some(text.len() - 1), "{text:?}");
    text
}

#[test]
fn wrong_usage_is_2_and_one_line() {
    for line in [
        "checkpoint",
        "checkpoint 0",
        "checkpoint -1",
        "checkpoint --kill --stop 1",
        "checkpoint -f 1",
        "checkpoint --output-fd 777 1",
        "restart --bad",
        "restart --inherit-fd 5=0",
        "restart --inherit-fd x",
        "restart --inherit-fd 777",
        "restart --input-fd 777",
        "restart -i x --input-fd 3",
        "restart -W --copy-status",
        "ckptinfo",
        "ckptinfo -e -p x",
        "ckpt nothing",
    ] {
        let output = run(line, b"");
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(output.stdout.is_empty(), "{line}");
        one_line(&output, line.split_once(' ').map_or(line, |(name, _)| name));
    }
}

#[test]
fn help_says_the_exit_codes() {
    for line in ["ckpt --help", "checkpoint --help", "restart -h", "ckptinfo --help", "ckpt restart --help"] {
        let output = run(line, b"");
        assert_eq!(output.status.code(), Some(0), "{line}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("5  bad image"), "{line}: {text}");
    }
}

#[test]
fn errors_are_json_where_asked() {
    for (line, code, kind) in [
        ("checkpoint --json --kill --stop 1", 2, "usage"),
        ("ckptinfo --json /nonexistent", 1, "failed"),
        ("ckptinfo --json --verify -", 5, "bad-image"),
    ] {
        let output = run(line, b"");
        assert_eq!(output.status.code(), Some(code), "{line}");
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(value["error"]["kind"], kind, "{line}");
        assert_eq!(value["error"]["exit_code"], code, "{line}");
        one_line(&output, line.split(' ').next().unwrap());
    }
}

#[test]
fn info_reads_files_and_pipes() {
    let path = golden().display().to_string();
    for option in ["", "-p", "--verify", "--records", "--json", "-p --json", "--verify --json"] {
        let file = run(&format!("ckptinfo {option} {path}"), b"");
        let pipe = run(&format!("ckpt info {option} -"), &image());
        assert_eq!(file.status.code(), Some(0), "{option}: {file:?}");
        assert_eq!(pipe.status.code(), Some(0), "{option}: {pipe:?}");
        if !option.starts_with("--verify") {
            assert_eq!(file.stdout, pipe.stdout, "{option}");
        }
        assert!(file.stderr.is_empty() && pipe.stderr.is_empty());
    }
}

#[test]
fn info_counts_what_is_stored() {
    let output = run("ckptinfo --json -", &image());
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["header"]["format"], 100);
    assert_eq!(value["tree"]["threads"], 3);
    assert_eq!(value["size"]["image"], image().len());
    assert_eq!(value["size"]["stored"], 8192);
    let area = &value["objects"]["6"]["areas"][0];
    assert_eq!(
        (&area["size"], &area["stored"], &area["unchanged"]),
        (&16384.into(), &8192.into(), &8192.into())
    );
    assert_eq!(value["objects"]["2"]["path"], "/bin/\\xff");
}

#[test]
fn a_damaged_image_is_5() {
    let whole = image();
    let (mut flipped, mut longer) = (whole.clone(), whole.clone());
    flipped[20_000] ^= 1;
    longer.push(0);
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in
        [("cut", &whole[..whole.len() - 8]), ("flipped", &flipped), ("longer", &longer), ("empty", &[])]
    {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let output = run(&format!("ckptinfo --verify {}", path.display()), b"");
        assert_eq!(output.status.code(), Some(5), "{name}");
        assert!(one_line(&output, "ckptinfo").contains(name));
    }
    // What is before the damage is shown.
    let output = run("ckptinfo -", &flipped);
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8(output.stdout).unwrap().contains("Tasks"));
    let output = run("ckptinfo --json -", &flipped);
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&value["tree"]["root"], &value["error"]["kind"]), (&100.into(), &"bad-image".into()));
}

#[test]
fn an_error_is_found_from_either_end() {
    let whole = image();
    let mut reader = ckpt_image::Reader::new(whole.as_slice());
    // The metadata ends where the pages, or the padding that aligns them, begin.
    let metadata = loop {
        let info = reader.next_record().unwrap().expect("the golden image has pages");
        if ["PAD", "PGARR"].contains(&info.name) {
            break info.offset as usize;
        }
    };
    let mut failed = whole[..metadata].to_vec();
    let text = b"\0pid 7 (x), fd 3: no";
    let padded = text.len().next_multiple_of(8);
    for word in [9999u32, 8, 5, 24 + padded as u32, 0, 1, text.len() as u32, 0] {
        failed.extend(word.to_le_bytes());
    }
    failed.extend(text);
    failed.resize(failed.len() + padded - text.len(), 0);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("failed");
    std::fs::write(&path, &failed).unwrap();
    for output in [run(&format!("ckptinfo -e {}", path.display()), b""), run("ckptinfo -e -", &failed)] {
        assert_eq!(String::from_utf8_lossy(&output.stdout), "pid 7 (x), fd 3: no\n", "{output:?}");
        assert_eq!(output.status.code(), Some(0));
    }
    let output = run("ckptinfo -", &failed);
    assert_eq!(output.status.code(), Some(5));
    assert!(one_line(&output, "ckptinfo").contains("fd 3: no"));
    // Without an error there is nothing to print; an image that just ends is damaged.
    for output in [run("ckptinfo -e -", &whole), run(&format!("ckptinfo -e {}", golden().display()), b"")] {
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    }
    let output = run("ckptinfo -e --json -", &whole);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value, serde_json::json!({"checkpoint_error": null}));
    std::fs::write(&path, &whole[..metadata]).unwrap();
    for output in
        [run("ckptinfo -e -", &whole[..metadata]), run(&format!("ckptinfo -e {}", path.display()), b"")]
    {
        assert_eq!(output.status.code(), Some(5), "{output:?}");
        one_line(&output, "ckptinfo");
    }
}

#[test]
fn a_closed_stdout_is_no_failure() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ckpt"));
    command.args(["info", "--records"]).arg(golden()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{said}");
    assert_eq!(said, "");
}

#[test]
fn pages_and_completions_are_made() {
    let dir = tempfile::tempdir().unwrap();
    assert!(run(&format!("ckpt man --dir {}", dir.path().display()), b"").status.success());
    for page in ["ckpt.1", "checkpoint.1", "restart.1", "ckptinfo.1"] {
        assert!(dir.path().join(page).exists(), "{page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&format!("ckpt completions {shell}"), b"").stdout.len() > 1000);
    }
}
