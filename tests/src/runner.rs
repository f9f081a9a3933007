//! Runs one fixture in one variant.
//!
//! Pids: a restart takes the original pids, and between the kill and the restart another process may be given one of
//! them. Allocation is sequential over 32768, so this is rare; an attempt that fails with exactly that error is made
//! again from the start (at most twice), and the retry is counted and printed.

pub mod criu;
mod variant;

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use regex_lite::Regex;
use tempfile::TempDir;

use crate::context::Context;
use crate::directives::Mode;
use crate::fixture::Fixture;
use crate::sys;
use crate::target::{Ended, Session, Start, Target};
use crate::tool::Outcome;
use crate::tree::Tree;
pub use variant::Variant;

/// How an attempt came out.
enum Verdict {
    Passed,
    Skipped(String),
}

/// Runs `fixture` in `variant`.
///
/// # Errors
/// Whatever is not as it should be.
pub fn run(ctx: &Context, fixture: &Fixture, variant: Variant) -> Result<()> {
    let name = format!("{} ({})", fixture.name, variant.name());
    if let Some(missing) = fixture.missing() {
        return ctx.skip(&name, &missing);
    }
    for attempt in 0..3 {
        match Attempt::new(ctx, fixture, variant).and_then(|mut a| a.run()) {
            Ok(Verdict::Passed) => return Ok(()),
            Ok(Verdict::Skipped(why)) => return ctx.skip(&name, &why),
            Err(e) if attempt < 2 && pid_was_taken(&e) => {
                ctx.ledger.retry(format!("{name}: {e:#}"));
            }
            Err(e) => return Err(e),
        }
    }
    unreachable!("the last attempt returns")
}

/// Whether a restart failed because another process has been given one of the pids.
#[must_use]
pub fn pid_was_taken(error: &anyhow::Error) -> bool {
    let taken =
        Regex::new(r"restart(?s:.*)\b(pid|tid|process id)\b.*\b(taken|in use|occupied|exists)\b").unwrap();
    taken.is_match(&format!("{error:#}"))
}

/// A restart that did not succeed, with what it said.
#[derive(Debug)]
struct RestartFailed(String);
impl std::fmt::Display for RestartFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "restart failed: {}", self.0)
    }
}
impl std::error::Error for RestartFailed {}

struct Attempt<'a> {
    ctx: &'a Context,
    fixture: &'a Fixture,
    variant: Variant,
    target: Target, // dropped, and so killed, before its directory goes
    dir: TempDir,
    images: TempDir,
    /// What it has as its stdin, if that is not /dev/null, and the other end.
    stdin: Option<(OwnedFd, OwnedFd)>,
    /// Bytes of stdout already looked at.
    seen: usize,
    /// Bounds of the time the target was not running.
    down: (Duration, Duration),
    checkpoints: u32,
    /// In a pid namespace of its own: the pid by which we know the root, while restart stands in for it.
    inside: Option<i32>,
    /// Those of its processes that were stopped by themselves before the last dump.
    stopped: Vec<i32>,
}

impl<'a> Attempt<'a> {
    fn new(ctx: &'a Context, fixture: &'a Fixture, variant: Variant) -> Result<Attempt<'a>> {
        let dir = tempfile::Builder::new().prefix(&format!("ckpt-{}-", fixture.name)).tempdir()?;
        let mode = if fixture.directives.open_dir { 0o777 } else { 0o755 };
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(dir.path(), permissions)?;
        for line in &fixture.directives.setup {
            let done = Command::new("sh").args(["-c", line]).current_dir(dir.path()).status()?;
            if !done.success() {
                bail!("setup failed: {line}");
            }
        }
        let argv = fixture.argv(ctx)?;
        let stdin = if fixture.directives.stdin_pipe {
            Some(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
        } else if variant == Variant::Job {
            let (master, slave) = sys::pty()?;
            Some((sys::open_terminal(&slave)?, master))
        } else {
            None
        };
        let for_target = stdin.as_ref().map(|(read, _)| read.try_clone()).transpose()?;
        let session = if variant == Variant::Job { Session::Job } else { Session::Own };
        let start = Start { argv: &argv, dir: dir.path(), stdin: for_target, stdout: None, session };
        let target = Target::start(start)?;
        let images = tempfile::tempdir()?;
        let down = (Duration::ZERO, Duration::ZERO);
        Ok(Attempt {
            ctx,
            fixture,
            variant,
            target,
            dir,
            images,
            stdin,
            seen: 0,
            down,
            checkpoints: 0,
            inside: None,
            stopped: Vec::new(),
        })
    }

    fn run(&mut self) -> Result<Verdict> {
        let result = match self.fixture.directives.mode {
            Mode::Step => self.run_steps(),
            Mode::Free => self.run_free(),
        };
        let result =
            result.and_then(|verdict| self.target.all_gone(&[]).context("after its end").map(|()| verdict));
        result.map_err(|e| {
            let said = std::fs::read_to_string(self.dir.path().join("err")).unwrap_or_default();
            let out = self.tail();
            let failed = out.lines().find(|l| l.starts_with("FAIL")).unwrap_or_default();
            if said.is_empty() && failed.is_empty() {
                return e;
            }
            e.context(format!("the target wrote: {failed} {}", said.trim()))
        })
    }

    fn run_steps(&mut self) -> Result<Verdict> {
        loop {
            let line = self.next_line()?;
            if let Some(step) = line.strip_prefix("ready ") {
                let refused = self.at_step().with_context(|| format!("at step {step}"))?;
                self.go_on(step)?;
                if refused {
                    self.variant = Variant::Undisturbed; // it said no: the rest just has to work
                }
            } else if let Some(why) = line.strip_prefix("skip ") {
                return Ok(Verdict::Skipped(why.to_owned()));
            } else if line == "ok" {
                let want = Ended::Exit(self.fixture.directives.expect_exit);
                let ended = self.target.wait()?;
                if ended != want {
                    bail!("it ended with {ended:?}, not {want:?}");
                }
                return Ok(Verdict::Passed);
            } else {
                bail!("the fixture says: {line}");
            }
        }
    }

    /// The next whole line of the target's stdout.
    fn next_line(&mut self) -> Result<String> {
        let path = self.dir.path().join("out");
        let (target, seen) = (&mut self.target, &mut self.seen);
        let pid = target.pid();
        sys::poll_task("the target's next line", pid, || {
            let ended = target.ended()?;
            let out = std::fs::read(&path)?;
            if let Some(len) = out[*seen..].iter().position(|b| *b == b'\n') {
                let line = String::from_utf8_lossy(&out[*seen..*seen + len]).into_owned();
                *seen += len + 1;
                return Ok(Some(line));
            }
            ended.map_or(Ok(None), |e| bail!("the target ended with {e:?} before it said ok"))
        })
    }

    fn generations(&self) -> u32 {
        if self.variant.is_criu() { 1 } else { self.fixture.directives.generations }
    }

    /// Tells the target to go on from `step`.
    fn go_on(&mut self, step: &str) -> Result<()> {
        let text = format!("{} {}\n", self.down.0.as_millis(), self.down.1.as_millis());
        let (draft, path) = (self.dir.path().join("go.draft"), self.dir.path().join(format!("go.{step}")));
        std::fs::write(&draft, text)?;
        std::fs::rename(draft, path)?;
        if let Some(signal) = self.fixture.directives.signal {
            self.target.signal(signal)?;
        }
        if let (Some(say), Some((_, write))) = (&self.fixture.directives.say, &self.stdin) {
            rustix::io::write(write, say.as_bytes())?;
        }
        Ok(())
    }

    /// Does what the variant says at a step. True when the checkpoint was refused as the fixture allows.
    fn at_step(&mut self) -> Result<bool> {
        let directives = &self.fixture.directives;
        match self.variant {
            Variant::Undisturbed => return Ok(false),
            Variant::Refused => {
                let pattern = directives.refuse.as_ref().context("no Refuse directive")?;
                self.refused(pattern)?;
                return Ok(true);
            }
            _ => {}
        }
        for generation in 1..=self.generations() {
            std::thread::sleep(directives.delay);
            let context = || format!("generation {generation}");
            if self.generation(&[]).with_context(context)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn run_free(&mut self) -> Result<Verdict> {
        let directives = &self.fixture.directives;
        if self.variant == Variant::Undisturbed {
            let want = self.fixture.undisturbed_output(self.ctx)?;
            self.target.wait()?;
            if std::fs::read(self.dir.path().join("out"))? != *want {
                bail!("two undisturbed runs differ in their output");
            }
            return Ok(Verdict::Passed);
        }
        let only =
            if directives.compare.is_empty() { &["static".to_owned()][..] } else { &directives.compare[..] };
        for generation in 1..=self.generations() {
            let delay = u64::try_from(directives.delay.as_millis())?;
            let jitter = if directives.random { sys::random_below(delay) } else { delay / 2 };
            std::thread::sleep(Duration::from_millis(delay / 2 + jitter));
            if self.target.ended()?.is_some() && generation > 1 {
                break; // a fast machine
            }
            if let Err(e) = self.generation(only) {
                if generation > 1 && self.has_ended_by_itself() {
                    break; // it came to its end while we looked; status and output are checked below
                }
                return Err(e.context(format!("generation {generation}")));
            }
        }
        let ended = self.target.wait()?;
        if ended != Ended::Exit(directives.expect_exit) {
            bail!("it ended with {ended:?}; output: {}", self.tail());
        }
        self.same_output()?;
        Ok(Verdict::Passed)
    }

    fn same_output(&self) -> Result<()> {
        let want = self.fixture.undisturbed_output(self.ctx)?;
        let got = std::fs::read(self.dir.path().join("out"))?;
        if got != *want {
            let at = got.iter().zip(want).position(|(a, b)| a != b).unwrap_or(got.len().min(want.len()));
            bail!(
                "its output differs from an undisturbed run at byte {at} ({} and {} bytes)",
                got.len(),
                want.len()
            );
        }
        Ok(())
    }

    fn tail(&self) -> String {
        let out = std::fs::read(self.dir.path().join("out")).unwrap_or_default();
        String::from_utf8_lossy(&out[out.len().saturating_sub(300)..]).into_owned()
    }

    /// One checkpoint, and but for `Running` one kill and restart, with the views compared.
    fn generation(&mut self, only: &[String]) -> Result<bool> {
        let pid = self.root();
        let before = if self.fixture.directives.mode == Mode::Step {
            settled(pid, self.seen)?
        } else {
            Tree::of(pid)?
        };
        let image = self.images.path().join("image.ckpt");
        let start = Instant::now();
        let kill = self.variant != Variant::Running;
        let mut members = self.target.members();
        let (outcome, bytes) = match self.variant {
            Variant::Criu | Variant::Job => (self.criu_dump(&before, only)?, Vec::new()),
            _ => self.checkpoint(kill, &image)?,
        };
        if let Some(pattern) = &self.fixture.directives.may_refuse
            && outcome.status.code() == Some(if self.variant.is_criu() { 1 } else { 3 })
        {
            if self.variant.is_criu() {
                self.check_criu_refusal(pattern, &before)?;
                return Ok(true);
            }
            self.check_refusal(&outcome, pattern, &before, &image)?;
            return Ok(true);
        }
        outcome.expect_code(0).with_context(|| format!("checkpoint {}", self.log("dump.log")))?;
        self.checkpoints += 1;
        self.only_the_image(self.variant != Variant::Pipe)?;
        if kill {
            let ended = self.target.wait().context("the target after checkpoint --kill")?;
            // restart --copy-status, which stands in for it in a pid namespace, says it in its own way.
            if ended != Ended::Signal(libc::SIGKILL)
                && (self.inside.is_none() || ended != Ended::Exit(128 + 9))
            {
                bail!("checkpoint --kill: the target ended with {ended:?}");
            }
            // What came after this look has nobody left to be hidden behind: it is found by its directory or session.
            members.retain(|(pid, _)| *pid != self.target.pid());
            self.target.all_gone(&members).context("after checkpoint --kill")?;
            let gone = Instant::now();
            std::thread::sleep(self.fixture.directives.downtime);
            self.down.0 += gone.elapsed();
            if self.variant == Variant::Pidns {
                self.restart_in_pidns(&image)?;
                self.down.1 += start.elapsed();
                std::fs::remove_file(&image)?;
                return Ok(false);
            }
            match self.variant {
                Variant::Criu | Variant::Job => self.criu_restore()?,
                _ => self.restart(&image, bytes)?,
            }
            self.down.1 += start.elapsed();
        } else {
            if self.checkpoints == 1 {
                self.criu_leaves_it_running()?;
            }
            self.down.1 += start.elapsed();
            self.target.must_live().context("the original after a checkpoint")?;
        }
        self.looks_like(&before, only)?;
        for entry in std::fs::read_dir(self.images.path())?.flatten() {
            std::fs::remove_file(entry.path())?;
        }
        Ok(false)
    }

    /// It looks as before, at once or soon: a thread that has just been let go may still be on its way
    /// back into the call it waits in, and a timer may tick while we look.
    fn looks_like(&mut self, before: &Tree, only: &[String]) -> Result<()> {
        const SOON: Duration = Duration::from_secs(20);
        let start = Instant::now();
        loop {
            let after = Tree::of(self.target.pid())?;
            match self.compare(before, &after, only) {
                // It ran to its end while we looked: its status and output are compared, too.
                Err(_) if self.fixture.directives.mode == Mode::Free && self.has_ended_by_itself() => {
                    return Ok(());
                }
                Err(_) if start.elapsed() < SOON => std::thread::sleep(Duration::from_millis(10)),
                result => return result,
            }
        }
    }

    fn has_ended_by_itself(&mut self) -> bool {
        matches!(self.target.ended(), Ok(Some(Ended::Exit(_))))
    }

    fn compare(&self, before: &Tree, after: &Tree, only: &[String]) -> Result<()> {
        let directives = &self.fixture.directives;
        let only = if only.is_empty() { &directives.compare } else { only };
        let free = directives.mode == Mode::Free;
        let found = before.differences(after, free, |view| view.restricted(only, &directives.ignore));
        if found.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        for line in found.iter().take(20) {
            let _ = write!(text, "\n  {line}");
        }
        bail!("/proc shows {} differences:{text}", found.len())
    }

    /// The pid by which we know the root.
    fn root(&self) -> i32 {
        self.inside.unwrap_or(self.target.pid())
    }

    fn checkpoint(&self, kill: bool, image: &Path) -> Result<(Outcome, Vec<u8>)> {
        let pid = self.root().to_string();
        let mut run = self.ctx.run("checkpoint", if kill { &["--kill"] } else { &[] });
        if self.variant != Variant::Pipe {
            run = run.arg("-o").arg(image);
        }
        let mut outcome = run.arg(&pid).finish()?;
        let bytes = std::mem::take(&mut outcome.stdout);
        if self.variant != Variant::Pipe && !bytes.is_empty() {
            bail!("checkpoint -o wrote {} bytes to stdout", bytes.len());
        }
        Ok((outcome, bytes))
    }

    /// Brings it back with `restart -W`, and takes it over.
    fn restart(&mut self, image: &PathBuf, bytes: Vec<u8>) -> Result<()> {
        let mut run = self.ctx.run("restart", &["-W"]);
        if let Some((read, _)) = &self.stdin {
            run = run.stdin_fd(read.try_clone()?);
        }
        run = match (self.variant, self.stdin.is_some()) {
            (Variant::Pipe, false) => run.stdin_bytes(bytes),
            (Variant::Pipe, true) => run.arg("--input-fd").arg("5").pass(fed_pipe(bytes)?, 5),
            _ => run.arg("-i").arg(image),
        };
        let outcome = run.finish()?;
        if !outcome.status.success() {
            return Err(anyhow!(RestartFailed(format!("{}: {}", outcome.status, outcome.stderr.trim()))));
        }
        let printed = String::from_utf8_lossy(&outcome.stdout).trim().to_owned();
        if printed != self.target.pid().to_string() {
            bail!("restart -W printed {printed:?}, the pid is {}", self.target.pid());
        }
        self.target.come_back().context("after restart -W")
    }

    /// Brings it back in a pid namespace of its own. The target is the command from now on, which ends as it does.
    fn restart_in_pidns(&mut self, image: &Path) -> Result<()> {
        let mut run = self.ctx.run("restart", &["--pidns", "--copy-status", "--json", "-i"]).arg(image);
        if let Some((read, _)) = &self.stdin {
            run = run.stdin_fd(read.try_clone()?);
        }
        let dir = self.dir.path();
        let stand_in = run.stand_in(dir)?;
        std::mem::replace(&mut self.target, stand_in).release();
        let (target, err) = (&mut self.target, dir.join("restart.err"));
        // Its report is printed when it has let the tasks go.
        let report = Regex::new(r#"^\{"restart":.*"pid":([0-9]+),"#).unwrap();
        let pid = sys::poll("restart --pidns to succeed", || {
            let said = std::fs::read_to_string(&err)?;
            if let Some(found) = report.captures(&said) {
                return Ok(Some(found[1].parse()?));
            }
            match target.ended()? {
                Some(ended) => bail!(RestartFailed(format!("{ended:?}: {}", said.trim()))),
                None => Ok(None),
            }
        });
        self.inside = Some(pid?);
        Ok(())
    }

    /// Nothing but the image (or nothing at all) lies where images are written.
    fn only_the_image(&self, expected: bool) -> Result<()> {
        let mut names: Vec<_> =
            std::fs::read_dir(self.images.path())?.flatten().map(|e| e.file_name()).collect();
        names.sort();
        let want: &[&str] = match (self.variant, expected) {
            (Variant::Criu | Variant::Job, _) => &["checkpoint.img", "dump.log", "stages", "stats-dump"],
            (_, true) => &["image.ckpt"],
            (_, false) => &[],
        };
        if names != want {
            bail!("the image directory holds {names:?}, want {want:?}");
        }
        Ok(())
    }

    fn refused(&mut self, pattern: &Regex) -> Result<()> {
        let before = settled(self.target.pid(), self.seen)?;
        let image = self.images.path().join("image.ckpt");
        let (outcome, _) = self.checkpoint(true, &image)?;
        self.check_refusal(&outcome, pattern, &before, &image)
    }

    fn check_refusal(
        &mut self,
        outcome: &Outcome,
        pattern: &Regex,
        before: &Tree,
        image: &Path,
    ) -> Result<()> {
        let line = outcome.expect_error("checkpoint", 3)?;
        if !pattern.is_match(line) {
            bail!("the refusal does not match /{}/: {line}", pattern.as_str());
        }
        if image.exists() || !outcome.stdout.is_empty() {
            bail!("a refused checkpoint left an image");
        }
        self.only_the_image(false)?;
        self.target.must_live()?;
        self.looks_like(before, &[])
    }
}

/// The view of a target's tree that has said "ready", once it looks the same twice and its stdout stands at `written`: what it
/// writes is seen a moment before the descriptor's offset moves.
fn settled(pid: i32, written: usize) -> Result<Tree> {
    let (mut last, at) = (Tree::of(pid)?, format!("/out pos: {written} "));
    sys::poll("the target to settle", || {
        let now = Tree::of(pid)?;
        let stdout = now.root().0.get("fd.1");
        let same = now == last && stdout.is_none_or(|fd| !fd.contains("/out pos:") || fd.contains(&at));
        last = now.clone();
        Ok(same.then_some(now))
    })
}

/// A pipe that is being filled with `bytes`: its read end.
fn fed_pipe(bytes: Vec<u8>) -> Result<OwnedFd> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    std::thread::spawn(move || {
        let _ = std::io::Write::write_all(&mut std::fs::File::from(write), &bytes);
    });
    Ok(read)
}

impl Fixture {
    /// The output of a run that nobody disturbs, made once.
    ///
    /// # Errors
    /// The program fails by itself.
    pub fn undisturbed_output(&self, ctx: &Context) -> Result<&Vec<u8>> {
        let make = || -> Result<Vec<u8>> {
            let mut attempt = Attempt::new(ctx, self, Variant::Undisturbed)?;
            let ended = attempt.target.wait()?;
            if ended != Ended::Exit(self.directives.expect_exit) {
                bail!("undisturbed, it ends with {ended:?}: {}", attempt.tail());
            }
            Ok(std::fs::read(attempt.dir.path().join("out"))?)
        };
        self.undisturbed
            .get_or_init(|| make().map_err(|e| format!("{e:#}")))
            .as_ref()
            .map_err(|e| anyhow!("{e}"))
    }
}
