//! A fixture in the hands of the front end `criu`, as container engines have it.

use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, anyhow, bail};
use regex_lite::Regex;

use super::{Attempt, RestartFailed};
use crate::tool::{Outcome, Run};
use crate::tree::Tree;

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

    /// Dumps it, so that it is gone if that succeeds.
    pub(super) fn criu_dump(&self) -> Result<Outcome> {
        let outcome = self.criu("dump", "dump.log").arg("-t").arg(self.root().to_string()).finish()?;
        if outcome.status.success() {
            self.stages(DUMP)?;
        }
        Ok(outcome)
    }

    /// Dumps it, and it goes on.
    pub(super) fn criu_leaves_it_running(&self) -> Result<()> {
        let run = self.criu("dump", "dump.log").arg("--leave-running");
        let outcome = run.arg("-t").arg(self.root().to_string()).finish()?;
        outcome.expect_code(0).with_context(|| format!("criu dump -R: {}", self.log("dump.log")))?;
        self.stages(&[DUMP, &["network-unlock"]].concat())
    }

    /// Brings it back with `criu restore -d`, as a child of ours if the name of the fixture is of even length, and takes
    /// it over.
    pub(super) fn criu_restore(&mut self) -> Result<()> {
        std::fs::remove_file(self.images.path().join("stages"))?;
        let mut run = self.criu("restore", "restore.log").args(&["-d", "--pidfile", "pid"]);
        if self.fixture.name.len().is_multiple_of(2) {
            run = run.arg("--restore-sibling");
        }
        if let Some((read, _)) = &self.stdin {
            let pipe = std::fs::read_link(format!("/proc/self/fd/{}", read.as_raw_fd()))?;
            let inherit = format!("fd[0]:{}", pipe.display());
            run = run.args(&["--inherit-fd", &inherit]).stdin_fd(read.try_clone()?);
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
        self.target.come_back().context("after criu restore -d")
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
