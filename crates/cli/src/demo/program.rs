//! The programs the demo runs, and how a line of theirs reads.
//!
//! Lines are `begin [SUM]`, `THREAD NUMBER [LINK]` and `end [SUM]`. LINK is the thread's hash chain
//! after NUMBER * [`LINKS`] steps, SUM the sha256 of random memory the program holds.

use std::{
    fs::File,
    path::Path,
    process::{Command, Stdio},
};

use crate::failure::{Failure, Outcome};

/// Hash steps per line.
pub(crate) const LINKS: usize = 20;

/// A thread's chain begins with the sha256 of its number in ASCII; a step is the sha256 of the last
/// link and this many bytes 0, 1, 2 .. 255, 0, ..
pub(crate) const BLOCK: usize = 4096;

/// Three hashing threads, a main thread in sigwait, 16 MiB of random memory.
const PYTHON: &str = r#"
import hashlib, os, signal, threading, time

BLOCK = bytes(range(256)) * 16
BALLAST = os.urandom(16 << 20)
ending = threading.Event()

def say(line):
    os.write(1, line.encode() + b"\n")

def work(thread):
    link = hashlib.sha256(b"%d" % thread).digest()
    number = 0
    while not ending.is_set():
        for _ in range(20):
            link = hashlib.sha256(link + BLOCK).digest()
        number += 1
        say(f"{thread} {number} {link.hex()}")
        time.sleep(0.005)

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
say("begin " + hashlib.sha256(BALLAST).hexdigest())
threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
for thread in threads:
    thread.start()
signal.sigwait([signal.SIGTERM])
ending.set()
for thread in threads:
    thread.join()
say("end " + hashlib.sha256(BALLAST).hexdigest())
"#;

/// One counter.
const SHELL: &str = r#"
trap 'echo end; exit 0' TERM
echo begin
number=0
while :; do
    turn=0
    while [ $turn -lt 2000 ]; do turn=$((turn + 1)); done
    number=$((number + 1))
    echo "1 $number"
done
"#;

/// A program to demonstrate on.
pub(crate) struct Program {
    /// Executable.
    pub(crate) name: &'static str,
    /// What it does, in words.
    pub(crate) does: &'static str,
    /// Threads that write lines, numbered from 1.
    pub(crate) writers: usize,
    /// Whether lines carry hashes.
    pub(crate) hashes: bool,
    source: &'static str,
}

/// python3 if it is there, else sh.
pub(crate) fn choose(shell: bool) -> Program {
    let mut probe = Command::new("python3");
    probe.args(["-c", "import hashlib, signal, threading"]);
    probe.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if !shell && probe.status().is_ok_and(|status| status.success()) {
        Program {
            name: "python3",
            does: "3 threads that hash and sleep in turn, 16 MiB of random memory",
            writers: 3,
            hashes: true,
            source: PYTHON,
        }
    } else {
        Program { name: "sh", does: "a counter", writers: 1, hashes: false, source: SHELL }
    }
}

impl Program {
    /// How to start it.
    pub(crate) fn command(&self, output: &Path, errors: &Path) -> Outcome<Command> {
        let open = |path: &Path| {
            let file = File::options().append(true).create(true).open(path);
            file.map_err(|cause| Failure::os(path.display().to_string(), cause))
        };
        let mut command = Command::new(self.name);
        command.args(["-c", self.source]).current_dir("/");
        command.stdin(Stdio::null()).stdout(open(output)?).stderr(open(errors)?);
        Ok(command)
    }

    /// Whether every writer has written, judging by the output so far.
    pub(crate) fn has_begun(&self, output: &[u8]) -> bool {
        let text = String::from_utf8_lossy(output);
        (1..=self.writers).all(|writer| text.lines().any(|line| line.starts_with(&format!("{writer} 1"))))
    }
}
