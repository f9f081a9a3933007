//! `ckpt bench`: whole commands on real programs, medians of several runs, beside dd and criu.

mod programs;
mod table;
pub(crate) mod target;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;

use crate::{
    args::BenchArgs,
    console::{Console, data},
    failure::{Failure, Outcome},
    run::{self, Target, number, time},
    signals::Cancel,
    text,
};
use programs::Program;

/// How long anything may take that is not measured.
const PATIENCE: Duration = Duration::from_secs(60);

/// Images smaller than this are not compared with dd: it would measure its own start.
const DD_FROM: u64 = 16 << 20;

/// Measures, prints the table. A command that fails is a failure, whatever time it takes is not.
pub(crate) fn run(args: &BenchArgs, console: &Console) -> Outcome {
    // What we were started with beside 0, 1 and 2 is not the program's.
    let _ = ckpt_kernel::query::keep_descriptors_to_ourselves();
    let cancel = Cancel::new()?;
    run::adopt_orphans()?;
    let dir = TempDir::with_prefix_in("ckpt-bench-", &args.dir);
    let dir = dir.map_err(|cause| Failure::os(args.dir.display().to_string(), cause))?;
    let bench = Bench { dir: dir.path().to_owned(), peer: args.peer.clone(), cancel };
    let mut programs = programs::all(dir.path(), args.quick)?;
    if let Some(text) = &args.only {
        let names = programs.iter().map(|program| program.name).collect::<Vec<_>>().join(", ");
        programs.retain(|program| program.name.contains(text.as_str()));
        if programs.is_empty() {
            return Err(Failure::failed(format!("no program's name contains {text:?}; there are: {names}")));
        }
    }
    if !console.is_json() {
        data(&table::head(args.peer.is_some()))?;
    }
    if let Some(what) = programs::left_out().filter(|_| !args.quick) {
        console.say(&what);
    }
    let (mut rows, mut failed) = (Vec::new(), 0u32);
    for program in programs {
        let row = bench.program(&program)?;
        if !console.is_json() {
            data(&table::row(&row, args.peer.is_some()))?;
        }
        if let Some(text) = &row.failed {
            console.say(&format!("{}: {text}", row.name));
            failed += 1;
        }
        rows.push(row);
    }
    if console.is_json() {
        console.report(&json!({"bench": rows.iter().map(table::json).collect::<Vec<_>>()}))?;
    } else {
        data(&table::growth(&rows))?;
        data(table::NOTES)?;
    }
    if failed > 0 {
        return Err(Failure::failed(format!("{} failed", text::count(failed.into(), "measurement"))));
    }
    Ok(0)
}

/// The medians of one program.
#[derive(Debug, Default)]
pub(super) struct Row {
    name: &'static str,
    /// See [`Program::tasks`].
    tasks: Option<(&'static str, usize)>,
    runs: usize,
    image_bytes: u64,
    page_bytes: u64,
    max_rss: u64,
    checkpoint: Option<Duration>,
    frozen: Option<Duration>,
    restart: Option<Duration>,
    dd: Option<Duration>,
    dump: Option<Duration>,
    restore: Option<Duration>,
    failed: Option<String>,
}

/// Everything measured so far for one program.
#[derive(Default)]
struct Samples {
    checkpoint: Vec<Duration>,
    frozen: Vec<Duration>,
    restart: Vec<Duration>,
    dd: Vec<Duration>,
    dump: Vec<Duration>,
    restore: Vec<Duration>,
}

struct Bench {
    dir: PathBuf,
    peer: Option<PathBuf>,
    cancel: Cancel,
}

impl Bench {
    /// Measures one program. Only an interruption ends the whole benchmark.
    fn program(&self, program: &Program) -> Outcome<Row> {
        let Program { name, runs, tasks, .. } = *program;
        let mut row = Row { name, runs, tasks, ..Row::default() };
        let mut samples = Samples::default();
        for turn in 0..program.runs {
            run::sleep(Duration::ZERO, &self.cancel)?;
            let mut done = self.ours(program, &mut row, &mut samples);
            if done.is_ok() && self.peer.is_some() {
                done = self.peers(program, turn, row.page_bytes, &mut samples);
            }
            match done {
                Ok(()) => {}
                Err(failure) if self.cancel.signal().is_some() => return Err(self.cancel.blame(failure)),
                Err(failure) => {
                    row.failed = failure.line();
                    break;
                }
            }
        }
        row.checkpoint = median(samples.checkpoint);
        row.frozen = median(samples.frozen);
        row.restart = median(samples.restart);
        row.dd = median(samples.dd);
        row.dump = median(samples.dump);
        row.restore = median(samples.restore);
        Ok(row)
    }

    /// Checkpoint, dd and restart once.
    fn ours(&self, program: &Program, row: &mut Row, samples: &mut Samples) -> Outcome<()> {
        let mut target = program.start(&self.dir, &self.cancel)?;
        let image = self.dir.join("image");
        let mut command = run::ourselves(["checkpoint", "--kill", "--json", "-o"])?;
        command.arg(&image).arg(target.pid().to_string());
        let ran = run::run(command)?;
        let report = ran.report("checkpoint")?;
        ended(&mut target)?;
        row.image_bytes = number(&report, "image_bytes") as u64;
        row.page_bytes = number(&report, "page_bytes") as u64;
        row.max_rss = row.max_rss.max(ran.max_rss);

        // dd must find its source in the page cache; so must the restart, to be comparable.
        cached(&image)?;
        let dd = if row.image_bytes >= DD_FROM { self.dd(&image)? } else { None };
        warm(row.page_bytes)?;
        let mut command = run::ourselves(["restart", "-W", "--json", "-i"])?;
        command.arg(&image);
        let restarted = run::run(command)?;
        let mut again = Target::adopt(number(&restarted.report("restart")?, "pid") as i32)?;
        again.kill();
        run::reap_all();
        row.max_rss = row.max_rss.max(restarted.max_rss);

        samples.checkpoint.push(ran.wall);
        samples.frozen.push(time(&report, "frozen_ms"));
        samples.restart.push(restarted.wall);
        samples.dd.extend(dd);
        remove(&image)
    }

    /// The same bytes to a new file in the same directory by dd; `None` where O_DIRECT is refused.
    fn dd(&self, image: &Path) -> Outcome<Option<Duration>> {
        let to = self.dir.join("dd");
        let mut command = Command::new("dd");
        command.arg(format!("if={}", image.display())).arg(format!("of={}", to.display()));
        command.args(["oflag=direct", "bs=1M", "status=none"]);
        let ran = run::run(command)?;
        remove(&to)?;
        Ok(ran.status.success().then_some(ran.wall))
    }

    /// Dump and restore by criu once.
    fn peers(&self, program: &Program, turn: usize, bytes: u64, samples: &mut Samples) -> Outcome<()> {
        let Some(peer) = &self.peer else { return Ok(()) };
        let mut target = program.start(&self.dir, &self.cancel)?;
        let pid = target.pid();
        let dir = self.dir.join(format!("peer-{turn}"));
        let trouble = |cause| Failure::os(dir.display().to_string(), cause);
        std::fs::create_dir(&dir).map_err(trouble)?;
        let command = |words: &[&str]| {
            let mut command = Command::new(peer);
            command.args(words).arg("-D").arg(&dir).args(["-j", "-v0"]);
            command
        };
        let dumped = run::run(command(&["dump", "-t", &pid.to_string()]))?;
        dumped.check("criu dump")?;
        ended(&mut target)?;
        warm(bytes)?;
        let restored = run::run(command(&["restore", "-d"]))?;
        restored.check("criu restore")?;
        Target::adopt(pid)?.kill();
        run::reap_all();
        samples.dump.push(dumped.wall);
        samples.restore.push(restored.wall);
        std::fs::remove_dir_all(&dir).map_err(trouble)
    }
}

/// Waits for a program that was killed at its checkpoint.
fn ended(target: &mut Target) -> Outcome<()> {
    match target.wait(PATIENCE)? {
        Some(_) => {
            run::reap_all();
            Ok(())
        }
        None => Err(Failure::failed(format!("pid {} lives on after its checkpoint", target.pid()))),
    }
}

fn cached(path: &Path) -> Outcome<()> {
    let trouble = |cause| Failure::os(path.display().to_string(), cause);
    let mut file = std::fs::File::open(path).map_err(trouble)?;
    std::io::copy(&mut file, &mut std::io::sink()).map(|_| ()).map_err(trouble)
}

/// Uses and frees as much memory as a restart will need. A virtual machine's host takes free memory away
/// and is slow to give it back, which would measure the host.
fn warm(bytes: u64) -> Outcome<()> {
    let mut command = Command::new("dd");
    command
        .args(["if=/dev/zero", "of=/dev/null", "count=1", "status=none"])
        .arg(format!("bs={}", bytes.max(1)));
    run::run(command)?.check("dd")
}

fn remove(path: &Path) -> Outcome<()> {
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::os(path.display().to_string(), cause))
        }
        _ => Ok(()),
    }
}

fn median(mut samples: Vec<Duration>) -> Option<Duration> {
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied()
}

/// A program with nothing on its standard descriptors.
fn quiet(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
