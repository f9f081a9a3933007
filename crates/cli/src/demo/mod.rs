//! `ckpt demo`: checkpoints, kills and restarts a real program with the real commands, and proves
//! from what the program wrote that it went on where it was.

mod program;
mod verify;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{process::Signal, thread::CapabilitySet};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    args::DemoArgs,
    console::{Console, data},
    failure::{Failure, Outcome},
    run::{self, Target, number, time},
    signals::Cancel,
    text,
};
use program::Program;

/// How long the program may take to begin, and to end.
const PATIENCE: Duration = Duration::from_secs(120);

/// Shows it.
pub(crate) fn run(args: &DemoArgs, _: &Console) -> Outcome {
    // What we were started with beside 0, 1 and 2 is not the program's.
    let _ = ckpt_kernel::query::keep_descriptors_to_ourselves();
    let begun = Instant::now();
    let run = Duration::try_from_secs_f64(args.seconds).ok().filter(|run| *run <= Duration::from_secs(3600));
    let run = run.ok_or_else(|| Failure::usage("--seconds takes a number from 0 to 3600"))?;
    let cancel = Cancel::new()?;
    run::adopt_orphans()?;
    let dir =
        TempDir::with_prefix("ckpt-demo-").map_err(|cause| Failure::os("temporary directory", cause))?;
    let demo = Demo { dir, program: program::choose(args.shell), run, cancel };
    let proof = demo.show().map_err(|failure| demo.cancel.blame(failure))?;
    data(&format!(
        "4. It ran {} more, ended when asked to, and its output is checked:\n{proof}\
         It went on exactly where it was. ({} in all; nothing is left behind.)\n",
        text::span(run),
        text::span(begun.elapsed())
    ))?;
    Ok(0)
}

/// One demonstration.
struct Demo {
    dir: TempDir,
    program: Program,
    run: Duration,
    cancel: Cancel,
}

/// The first life of the program.
struct First {
    pid: i32,
    threads: f64,
    len: usize,
}

impl Demo {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// All steps; the last one's findings.
    fn show(&self) -> Outcome<String> {
        let (first, mut target) = self.until_killed()?;
        self.restarted(&first, &mut target)?;
        verify::check(&self.program, &self.end(&mut target)?, first.len)
    }

    /// Steps 1 and 2: start, run, checkpoint and kill.
    fn until_killed(&self) -> Outcome<(First, Target)> {
        let output = self.path("output");
        let mut target = Target::start(self.program.command(&output, &self.path("errors"))?)?;
        let pid = target.pid();
        self.wait_for_begin(&output, &mut target)?;
        data(&format!("1. {} runs: pid {pid}, {}.\n", self.program.name, self.program.does))?;
        run::sleep(self.run, &self.cancel)?;

        let image = self.path("image.ckpt");
        let mut command = run::ourselves(["checkpoint", "--kill", "--json", "-o"])?;
        command.arg(&image).arg(pid.to_string());
        let ran = run::run(command)?;
        let report = ran.report("checkpoint")?;
        if target.wait(PATIENCE)?.is_none() {
            return Err(Failure::failed(format!("pid {pid} lives although it was checkpointed with --kill")));
        }
        let written = read(&output)?;
        data(&format!(
            "2. In {} it wrote {}. `ckpt checkpoint -o image.ckpt --kill {pid}` while it ran:\n   {} for the whole command ({} of it the program stood still), {}, image {}.\n   It is killed: pid {pid} is gone.\n",
            text::span(self.run),
            text::count(lines(&written), "line"),
            text::span(ran.wall),
            text::span(time(&report, "frozen_ms")),
            text::count(number(&report, "threads") as u64, "thread"),
            text::bytes(number(&report, "image_bytes") as u64),
        ))?;
        Ok((First { pid, threads: number(&report, "threads"), len: written.len() }, target))
    }

    /// Waits until every thread has written something.
    fn wait_for_begin(&self, output: &Path, target: &mut Target) -> Outcome<()> {
        let limit = Instant::now() + PATIENCE;
        while !self.program.has_begun(&read(output)?) {
            if Instant::now() > limit {
                return Err(Failure::failed(format!("{} does not begin", self.program.name)));
            }
            if target.wait(Duration::ZERO)?.is_some() {
                let errors = read(&self.path("errors"))?;
                let last = String::from_utf8_lossy(&errors).lines().last().unwrap_or_default().to_owned();
                return Err(Failure::failed(format!("{} ended by itself: {last}", self.program.name)));
            }
            run::sleep(Duration::from_millis(10), &self.cancel)?;
        }
        Ok(())
    }

    /// Step 3: restart. `target` becomes the new process.
    fn restarted(&self, first: &First, target: &mut Target) -> Outcome<()> {
        run::sleep(Duration::from_secs(1), &self.cancel)?;
        if read(&self.path("output"))?.len() != first.len {
            return Err(Failure::failed("something wrote to the output although the program was gone"));
        }
        let (report, line) = if may_choose_pids() { self.back(target)? } else { self.apart(target)? };
        let pid = number(&report, "own_pid") as i32;
        if pid != first.pid || number(&report, "threads") != first.threads {
            let made = text::count(number(&report, "threads") as u64, "thread");
            return Err(Failure::failed(format!(
                "restarted as pid {pid} with {made}; it was another program before"
            )));
        }
        data(&format!(
            "3. One second later, `ckpt restart -i image.ckpt {line}\n   pid {pid} runs again, with its {}.\n",
            text::count(first.threads as u64, "thread"),
        ))
    }

    /// Brings it back with the pids it had. The report, and how the command goes on.
    fn back(&self, target: &mut Target) -> Outcome<(Value, String)> {
        let mut command = run::ourselves(["restart", "-W", "--json", "-i"])?;
        command.arg(self.path("image.ckpt"));
        let ran = run::run(command)?;
        let report = ran.report("restart")?;
        *target = Target::adopt(number(&report, "pid") as i32)?;
        Ok((report, format!("-W`: {} for the whole command.", text::span(ran.wall))))
    }

    /// Brings it back in a pid namespace, where everybody may have any pids. The command stands in for
    /// it from now on.
    fn apart(&self, target: &mut Target) -> Outcome<(Value, String)> {
        let said = self.path("said");
        let trouble = |cause| Failure::os(said.display().to_string(), cause);
        let mut command = run::ourselves(["restart", "--pidns", "--copy-status", "--json", "-i"])?;
        command.arg(self.path("image.ckpt")).stderr(std::fs::File::create(&said).map_err(trouble)?);
        *target = Target::start(command)?;
        let begun = Instant::now();
        loop {
            let text = String::from_utf8_lossy(&read(&said)?).into_owned();
            let all = text.lines().find_map(|line| serde_json::from_str::<Value>(line).ok());
            if let Some(report) = all.as_ref().and_then(|all| all.get("restart")) {
                let took = text::span(time(report, "total_ms"));
                return Ok((report.clone(), format!("--pidns`, as pids are not ours to choose: {took}.")));
            }
            if target.wait(Duration::from_millis(2))?.is_some() || begun.elapsed() > PATIENCE {
                return Err(Failure::failed(format!("restart --pidns: {}", text.trim())));
            }
        }
    }

    /// Lets it run on, asks it to end, returns all it wrote in both lives.
    fn end(&self, target: &mut Target) -> Outcome<Vec<u8>> {
        run::sleep(self.run, &self.cancel)?;
        let pid = target.pid();
        target.signal(Signal::TERM)?;
        match target.wait(PATIENCE)? {
            Some(status) if status.exit_status() == Some(0) => read(&self.path("output")),
            Some(status) => Err(Failure::failed(match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("pid {pid} exited with status {code} after its restart"),
                (_, signal) => {
                    format!("pid {pid} was killed by signal {} after its restart", signal.unwrap_or(0))
                }
            })),
            None => Err(Failure::failed(format!("pid {pid} does not answer SIGTERM after its restart"))),
        }
    }
}

/// Whether a restart can give its processes the pids they had.
fn may_choose_pids() -> bool {
    let enough = CapabilitySet::CHECKPOINT_RESTORE | CapabilitySet::SYS_ADMIN;
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.intersects(enough))
}

fn lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

fn read(path: &Path) -> Outcome<Vec<u8>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(cause) => Err(Failure::os(path.display().to_string(), cause)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the programs write when nobody checkpoints them passes, whole and with a line changed it does not.
    #[test]
    fn undisturbed_programs_pass() {
        for shell in [true, false] {
            let program = program::choose(shell);
            let dir = TempDir::new().unwrap();
            let output = dir.path().join("output");
            let mut target =
                Target::start(program.command(&output, &dir.path().join("errors")).unwrap()).unwrap();
            let begun = Instant::now();
            while !program.has_begun(&read(&output).unwrap()) {
                assert!(begun.elapsed() < PATIENCE, "{} does not begin", program.name);
                std::thread::sleep(Duration::from_millis(10));
            }
            let before = read(&output).unwrap().len();
            std::thread::sleep(Duration::from_millis(300));
            target.signal(Signal::TERM).unwrap();
            assert_eq!(target.wait(PATIENCE).unwrap().unwrap().exit_status(), Some(0), "{}", program.name);
            let all = read(&output).unwrap();
            let proof = verify::check(&program, &all, before).unwrap();
            assert!(proof.contains("thread 1: lines 1 to "), "{proof}");
            let spoilt = String::from_utf8(all).unwrap().replacen("\n1 2", "\n1 3", 1);
            assert!(verify::check(&program, spoilt.as_bytes(), before).is_err());
        }
    }
}
