//! A fixture in the hands of the front end `criu`, as container engines have it.

use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, anyhow, bail};
use regex_lite::Regex;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::{Attempt, RestartFailed, Variant};
use crate::diagnose::diagnose;
use crate::directives::Mode;
use crate::tool::{Outcome, Run};
use crate::tree::{Tree, family};
use crate::view::is_stopped;

/// What an action script is run for by a dump that kills.
const DUMP: &[&str] = &["pre-dump", "network-lock", "post-dump"];
/// And by a restore: the last is beyond failing.
pub const RESTORE: &[&str] = &[
    "pre-restore",
    "setup-namespaces",
    "post-setup-namespaces",
    "post-restore",
    "network-unlock",
    "pre-resume",
    "post-resume",
];

impl Attempt<'_> {
    /// `criu` with the options that both actions take, and a script that notes the stages.
    fn criu(&self, action: &str, log: &str) -> Run {
        let script =
            format!("echo $CRTOOLS_SCRIPT_ACTION >> {}", self.images.path().join("stages").display());
        let mut run = self.ctx.criu(&[action, "-v4", "-o", log, "-D"]).arg(self.images.path());
        run = run.args(&["--action-script", &script]);
        for option in &self.fixture.directives.criu {
            run = run.arg(option);
        }
        run
    }

    fn stages(&self, want: &[&str]) -> Result<()> {
        let found = std::fs::read_to_string(self.images.path().join("stages")).unwrap_or_default();
        if found.lines().ne(want.iter().copied()) {
            bail!("action scripts were run for {found:?}");
        }
        Ok(())
    }

    /// Dumps it, so that it is gone if that succeeds. Before that, what is particular to the variant.
    pub(super) fn criu_dump(&mut self, before: &Tree, only: &[String]) -> Result<Outcome> {
        self.stopped = family(self.target.pid()).into_iter().filter(|pid| is_stopped(*pid)).collect();
        if self.variant == Variant::Job {
            self.job_is_refused()?;
        } else if let Some(outcome) = self.criu_leaves_it_stopped(before, only)? {
            return Ok(outcome);
        }
        let outcome = self.dump(&[]).finish()?;
        if outcome.status.success() {
            self.stages(DUMP)?;
        }
        Ok(outcome)
    }

    /// `criu dump`, with what a job needs.
    fn dump(&self, options: &[&str]) -> Run {
        let job: &[&str] = if self.variant == Variant::Job { &["--shell-job"] } else { &[] };
        let run = self.criu("dump", "dump.log").args(job).args(options);
        run.arg("-t").arg(self.root().to_string())
    }

    /// A dump that stops it. It goes on when it is told to, and looks as before; or, if it would see that or runs freely, ends,
    /// to come back from this image: then this gives what became of the dump. So it does if the dump was refused.
    fn criu_leaves_it_stopped(&mut self, before: &Tree, only: &[String]) -> Result<Option<Outcome>> {
        let outcome = self.dump(&["--leave-stopped"]).finish()?;
        if !outcome.status.success() {
            return Ok(Some(outcome));
        }
        self.stages(DUMP)?;
        self.all_stopped().context("after criu dump -s")?;
        if self.fixture.directives.sees_stops.is_some() || self.fixture.directives.mode == Mode::Free {
            self.target.kill();
            return Ok(Some(outcome));
        }
        std::fs::remove_file(self.images.path().join("stages"))?;
        self.let_go_on()?;
        self.looks_like(before, only).context("after criu dump -s and SIGCONT")?;
        Ok(None)
    }

    /// Nobody of it runs, but for who has ended.
    fn all_stopped(&self) -> Result<()> {
        match family(self.target.pid()).into_iter().find(|pid| !is_stopped(*pid)) {
            Some(pid) => bail!("not every thread of process {pid} is stopped:{}", diagnose(pid)),
            None => Ok(()),
        }
    }

    /// Those that did not stop by themselves.
    fn let_go_on(&self) -> Result<()> {
        for pid in family(self.target.pid()).into_iter().filter(|pid| !self.stopped.contains(pid)) {
            match kill_process(Pid::from_raw(pid).context("pid")?, Signal::CONT) {
                // A zombie that its parent, which goes on already, has waited for.
                Err(Errno::SRCH) => {}
                sent => sent?,
            }
        }
        Ok(())
    }

    /// Without `--shell-job` a dump of a job is refused, and it goes on.
    fn job_is_refused(&mut self) -> Result<()> {
        let run = self.criu("dump", "dump.log").arg("-t");
        let outcome = run.arg(self.root().to_string()).finish()?;
        let log = self.log("dump.log");
        outcome.expect_code(1).context("criu dump of a job without --shell-job")?;
        if !log.contains("--shell-job") && self.fixture.directives.may_refuse.is_none() {
            bail!("the refusal of a job says: {log}");
        }
        std::fs::remove_file(self.images.path().join("stages"))?;
        self.target.must_live()
    }

    /// Dumps it, and it goes on.
    pub(super) fn criu_leaves_it_running(&self) -> Result<()> {
        let outcome = self.dump(&["--leave-running"]).finish()?;
        outcome.expect_code(0).with_context(|| format!("criu dump -R: {}", self.log("dump.log")))?;
        self.stages(&[DUMP, &["network-unlock"]].concat())
    }

    /// Brings it back with `criu restore -d`, and takes it over. A job comes back as a child of ours, stopped unless it
    /// would see that, and is let go on.
    pub(super) fn criu_restore(&mut self) -> Result<()> {
        std::fs::remove_file(self.images.path().join("stages"))?;
        let mut run = self.criu("restore", "restore.log").args(&["-d", "--pidfile", "pid"]);
        let job = self.variant == Variant::Job;
        let stops = job && self.fixture.directives.sees_stops.is_none();
        if job {
            run = run.args(&["--shell-job", "--restore-sibling"]);
        }
        if stops {
            run = run.arg("--leave-stopped");
        }
        if let Some((own, _)) = &self.stdin {
            let link = std::fs::read_link(format!("/proc/self/fd/{}", own.as_raw_fd()))?;
            if self.fixture.directives.stdin_pipe {
                run = run.args(&["--inherit-fd", &format!("fd[0]:{}", link.display())]);
            }
            run = run.stdin_fd(own.try_clone()?);
        }
        let outcome = run.finish()?;
        if !outcome.status.success() {
            let said = format!("{}: {} {}", outcome.status, outcome.stderr.trim(), self.log("restore.log"));
            return Err(anyhow!(RestartFailed(said)));
        }
        let pid = std::fs::read_to_string(self.images.path().join("pid"))?;
        if pid != self.target.pid().to_string() {
            bail!("the pidfile holds {pid:?}, the pid is {}", self.target.pid());
        }
        self.stages(RESTORE)?;
        self.target.come_back().context("after criu restore -d")?;
        if stops {
            self.all_stopped().context("after criu restore -s")?;
            self.let_go_on()?;
        }
        Ok(())
    }

    /// The end of a log of criu.
    pub(super) fn log(&self, name: &str) -> String {
        let log = std::fs::read_to_string(self.images.path().join(name)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(6)..].join("\n")
    }

    pub(super) fn check_criu_refusal(&mut self, pattern: &Regex, before: &Tree) -> Result<()> {
        let log = self.log("dump.log");
        if !pattern.is_match(&log) || !log.ends_with("Dumping FAILED.") {
            bail!("the refusal does not match /{}/: {log}", pattern.as_str());
        }
        if self.images.path().join("checkpoint.img").exists() {
            bail!("a refused dump left an image");
        }
        self.target.must_live()?;
        self.looks_like(before, &[])
    }
}
