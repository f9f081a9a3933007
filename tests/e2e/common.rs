//! What the special tests share: a helper program running in a directory of its own, and its image.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::compile_c;
use ckpt_tests::sys;
use ckpt_tests::target::{Ended, Session, Start, Target, own_children, reap_strays};
use ckpt_tests::tool::Outcome;
use ckpt_tests::tree;
use ckpt_tests::view::working_directory;
use tempfile::TempDir;

/// A named test.
pub(crate) type Test = (&'static str, fn(&Context) -> Result<()>);

/// A helper program under way.
pub(crate) struct Program {
    pub(crate) target: Target,
    pub(crate) dir: TempDir,
}

impl Program {
    /// Starts `tests/helpers/NAME.c` and waits until it says it is ready.
    pub(crate) fn start(ctx: &Context, name: &str, args: &[&str]) -> Result<Program> {
        Program::start_with(ctx, name, args, None)
    }

    pub(crate) fn start_with(
        ctx: &Context,
        name: &str,
        args: &[&str],
        stdin: Option<OwnedFd>,
    ) -> Result<Program> {
        let binary = compile_c(ctx, &ctx.helpers.join(format!("{name}.c")), &["-pthread".to_owned()])?;
        let mut argv: Vec<OsString> = vec![binary.into()];
        argv.extend(args.iter().map(OsString::from));
        Program::start_argv(&argv, tempfile::Builder::new().prefix("ckpt-special-").tempdir()?, stdin)
    }

    /// Starts any command that prints `ready 1` first.
    pub(crate) fn start_argv(argv: &[OsString], dir: TempDir, stdin: Option<OwnedFd>) -> Result<Program> {
        let target =
            Target::start(Start { argv, dir: dir.path(), stdin, stdout: None, session: Session::Own })?;
        let mut program = Program { target, dir };
        let path = program.path("out");
        sys::poll("the helper to be ready", || {
            program.target.must_live()?;
            Ok(std::fs::read_to_string(&path)?.starts_with("ready 1\n").then_some(()))
        })?;
        Ok(program)
    }

    pub(crate) fn pid(&self) -> String {
        self.target.pid().to_string()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `checkpoint --kill` into `image` in its directory; reaped when this returns.
    pub(crate) fn save_and_kill(&mut self, ctx: &Context) -> Result<PathBuf> {
        self.save_and_kill_with(ctx, &[])
    }

    /// The same with options.
    pub(crate) fn save_and_kill_with(&mut self, ctx: &Context, options: &[&str]) -> Result<PathBuf> {
        let image = self.path("image");
        let mut members = self.target.members();
        let run = ctx.run("checkpoint", &["--kill"]).args(options).arg("-o");
        run.arg(&image).arg(self.pid()).finish()?.expect_code(0)?;
        let ended = self.target.wait()?;
        members.retain(|(pid, _)| *pid != self.target.pid());
        self.target.all_gone(&members)?;
        if ended != Ended::Signal(libc::SIGKILL) {
            bail!("checkpoint --kill: it ended with {ended:?}");
        }
        Ok(image)
    }

    /// `restart -W` from `image`, and takes the process over.
    pub(crate) fn back_from(&mut self, ctx: &Context, image: &Path) -> Result<Outcome> {
        let outcome = ctx.run("restart", &["-W", "-i"]).arg(image).finish()?;
        outcome.expect_code(0)?;
        self.adopt()?;
        Ok(outcome)
    }

    /// Takes over the process that now has its pid.
    pub(crate) fn adopt(&mut self) -> Result<()> {
        self.target.come_back()
    }

    /// It and its descendants live, and nobody traces them.
    pub(crate) fn unharmed(&mut self) -> Result<()> {
        self.target.must_live()?;
        for pid in tree::family(self.target.pid()) {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            if !status.contains("TracerPid:\t0\n")
                || ["T", "t", "Z"].iter().any(|s| status.contains(&format!("State:\t{s}")))
            {
                bail!("process {pid} is traced or stopped: {status}");
            }
        }
        Ok(())
    }

    /// Lets an `exits` helper go, and expects its exit code.
    pub(crate) fn ends_with(&mut self, code: i32) -> Result<()> {
        std::fs::write(self.path("go"), "")?;
        let ended = self.target.wait().context("after go")?;
        if ended != Ended::Exit(code) {
            bail!("it ended with {ended:?}, not exit code {code}");
        }
        Ok(())
    }

    /// The names in its directory, sorted.
    pub(crate) fn files(&self) -> Result<Vec<String>> {
        names_in(self.dir.path())
    }
}

/// The names in a directory, sorted.
pub(crate) fn names_in(dir: &Path) -> Result<Vec<String>> {
    let name =
        |entry: std::io::Result<std::fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = std::fs::read_dir(dir)?.map(name).collect::<std::io::Result<_>>()?;
    names.sort();
    Ok(names)
}

/// No process works in this directory, which is unique to a test.
pub(crate) fn nothing_runs_in(dir: &Path) -> Result<()> {
    reap_strays();
    for pid in ckpt_tests::target::all_pids() {
        if working_directory(pid).is_some_and(|cwd| cwd.starts_with(dir)) {
            bail!("process {pid} was created (children now: {:?})", own_children());
        }
    }
    Ok(())
}

/// One error line with one of several exit codes, holding all of `words`.
pub(crate) fn expect_line(outcome: &Outcome, name: &str, codes: &[i32], words: &[&str]) -> Result<()> {
    let code = outcome.status.code().unwrap_or(-1);
    if !codes.contains(&code) {
        bail!("ended with {}, want one of {codes:?}; stderr: {}", outcome.status, outcome.stderr.trim());
    }
    let line = outcome.expect_error(name, code)?;
    match words.iter().find(|w| !line.to_lowercase().contains(&w.to_lowercase())) {
        Some(word) => bail!("the line does not say {word:?}: {line}"),
        None => Ok(()),
    }
}

/// Fails unless `ok`.
pub(crate) fn ensure(ok: bool, what: impl Into<String>) -> Result<()> {
    if ok { Ok(()) } else { Err(anyhow::Error::msg(what.into())) }
}
