//! What is measured.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use super::{PATIENCE, quiet};
use crate::{
    failure::{Failure, Outcome},
    run::{self, Target},
    signals::Cancel,
};

/// Makes as many children, threads, full pipes and open files as its arguments say, creates the file that the last
/// one names, then sleeps. Children die with it; the files lie beside that one.
const TINY: &str = r#"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>
static void *idle(void *a) { for (;;) pause(); return a; }
int main(int argc, char **argv) {
    int many = argc > 5, children = many ? atoi(argv[1]) : 0, threads = many ? atoi(argv[2]) : 0;
    int pipes = many ? atoi(argv[3]) : 0, files = many ? atoi(argv[4]) : 0, p[2];
    static char full[65536];
    char name[4096];
    struct rlimit most;
    getrlimit(RLIMIT_NOFILE, &most);
    most.rlim_cur = most.rlim_max;
    if (pipes + files) setrlimit(RLIMIT_NOFILE, &most);
    for (int i = 0; i < files; i++) {
        snprintf(name, sizeof name, "%s.%d", argv[argc - 1], i);
        if (open(name, O_RDWR | O_CREAT, 0600) < 0) return 1;
    }
    for (int i = pipes; i > 0; i--) {
        for (int k = 0; k < 65536; k++) full[k] = k * i;
        if (pipe(p) || write(p[1], full, 65536) != 65536) return 2;
    }
    for (int i = 0; i < children; i++) if (fork() == 0) { prctl(PR_SET_PDEATHSIG, SIGKILL); idle(0); }
    pthread_attr_t small;
    pthread_t thread;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    for (int i = 0; i < threads; i++) if (pthread_create(&thread, &small, idle, 0)) return 1;
    close(open(argv[argc - 1], O_CREAT | O_WRONLY, 0600));
    idle(0);
}
"#;

const PROCESSES: &str = "process";
const THREADS: &str = "thread";
const PIPES: &str = "full pipe";
const FILES: &str = "file";
/// Descriptors that a program with many files, and whoever restarts it, has besides.
const OTHER_FILES: u64 = 64;
/// Name, what there are many of, how many, how often it is measured; fewer before more.
const CROWDS: &[(&str, &str, usize, usize)] = &[
    ("50 processes", PROCESSES, 50, 7),
    ("200 processes", PROCESSES, 200, 7),
    ("1000 processes", PROCESSES, 1000, 3),
    ("2000 processes", PROCESSES, 2000, 3),
    ("100 threads", THREADS, 100, 7),
    ("300 threads", THREADS, 300, 7),
    ("1000 threads", THREADS, 1000, 7),
    ("3000 threads", THREADS, 3000, 3),
    ("1000 full pipes", PIPES, 1000, 7),
    ("1000 files", FILES, 1000, 7),
    ("5000 files", FILES, 5000, 7),
    ("15000 files", FILES, 15000, 3),
    ("50000 files", FILES, 50000, 3),
];
/// The largest of them when it is to be quick.
const QUICK_CROWD: usize = 1000;

/// The same in python.
const PYTHON: &str = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(1e6)";

/// A program that can be started again and again.
pub(super) struct Program {
    /// What the table calls it.
    pub(super) name: &'static str,
    /// How often it is measured.
    pub(super) runs: usize,
    /// Of what there are how many in it, when that is what is measured.
    pub(super) tasks: Option<(&'static str, usize)>,
    /// Executable and arguments; the name of the ready file is added.
    words: Vec<OsString>,
    /// Whether it creates the ready file.
    tells: bool,
}

impl Program {
    /// Starts it and waits until it is ready.
    pub(super) fn start(&self, dir: &Path, cancel: &Cancel) -> Outcome<Target> {
        let ready = dir.join("ready");
        super::remove(&ready)?;
        let (name, rest) = self.words.split_first().ok_or_else(|| Failure::failed("no program"))?;
        let mut command = Command::new(name);
        command.args(rest);
        if self.tells {
            command.arg(&ready);
        }
        let mut target = Target::start(quiet(command))?;
        let limit = Instant::now() + PATIENCE;
        while self.tells && !ready.exists() {
            if Instant::now() > limit || target.wait(Duration::ZERO)?.is_some() {
                return Err(Failure::failed(format!("{} does not get ready", self.name)));
            }
            run::sleep(Duration::from_millis(5), cancel)?;
        }
        // It says it is ready a moment before it sleeps.
        run::sleep(Duration::from_millis(50), cancel)?;
        Ok(target)
    }
}

/// All of them, those that this machine has.
pub(super) fn all(dir: &Path, quick: bool) -> Outcome<Vec<Program>> {
    let exe = std::env::current_exe().map_err(|cause| Failure::os("our own executable", cause))?;
    let memory = |name, runs, size: u64| {
        let size = size.to_string();
        let words = ["bench-target", "--random", "--size", &size, "--ready"].map(OsString::from);
        let words = std::iter::once(exe.clone().into()).chain(words).collect();
        Program { name, runs, tasks: None, words, tells: true }
    };
    let many = compiled(dir);
    let mut programs = vec![tiny(many.as_deref(), if quick { 5 } else { 21 })];
    if quiet(Command::new("python3")).arg("-V").status().is_ok_and(|status| status.success()) {
        let words = ["python3", "-c", PYTHON].map(OsString::from).to_vec();
        let runs = if quick { 3 } else { 11 };
        programs.push(Program { name: "python3", runs, tasks: None, words, tells: true });
    }
    let crowds = CROWDS.iter().filter(|(_, _, count, _)| !quick || *count <= QUICK_CROWD);
    let crowds =
        crowds.filter(|(_, kind, count, _)| *kind != FILES || *count as u64 + OTHER_FILES <= most_files());
    for ((name, kind, count, runs), path) in crowds.zip(std::iter::repeat(&many)) {
        let Some(path) = path else { break };
        let others = |of: &str| (if of == *kind { count - 1 } else { 0 }).to_string();
        let pipes = others(PIPES);
        let files = others(FILES);
        let words =
            [path.into(), others(PROCESSES).into(), others(THREADS).into(), pipes.into(), files.into()];
        let words = words.to_vec();
        let runs = if quick { 3 } else { *runs };
        programs.push(Program { name, runs, tasks: Some((kind, *count)), words, tells: true });
    }
    programs.push(memory("64 MiB", if quick { 3 } else { 7 }, 64 << 20));
    programs.push(if quick { memory("256 MiB", 3, 256 << 20) } else { memory("1 GiB", 5, 1 << 30) });
    Ok(programs)
}

/// The hard limit of open files.
fn most_files() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// What cannot be measured here, and why.
pub(super) fn left_out() -> Option<String> {
    let most =
        CROWDS.iter().filter(|(_, kind, ..)| *kind == FILES).map(|(_, _, count, _)| *count as u64).max()?;
    let limit = most_files();
    (most + OTHER_FILES > limit)
        .then(|| format!("{most} files are not measured: the limit of open files is {limit}"))
}

/// A static program of a few pages if there is a C compiler, else sleep(1).
fn tiny(program: Option<&Path>, runs: usize) -> Program {
    match program {
        Some(path) => {
            let words = vec![path.into()];
            Program { name: "tiny (static C)", runs, tasks: None, words, tells: true }
        }
        None => {
            let words = ["sleep", "1000000"].map(OsString::from).to_vec();
            Program { name: "tiny (sleep)", runs, tasks: None, words, tells: false }
        }
    }
}

fn compiled(dir: &Path) -> Option<PathBuf> {
    let (source, program) = (dir.join("tiny.c"), dir.join("tiny"));
    std::fs::write(&source, TINY).ok()?;
    let mut command = quiet(Command::new("cc"));
    command.args(["-O", "-static", "-pthread", "-o"]).args([&program, &source]);
    command.status().ok()?.success().then_some(program)
}
