//! Running the tool under test: always with a deadline, all output kept.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::context::Context;
use crate::sys;
use crate::target;

/// What a run of the tool came to.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub wall: Duration,
}

/// One run of the tool, being put together.
pub struct Run {
    command: Command,
    stdin: Input,
    stdout: Option<OwnedFd>,
    pass: Vec<(OwnedFd, i32)>,
    label: String,
}

enum Input {
    Null,
    Bytes(Vec<u8>),
    Fd(OwnedFd),
}

impl Context {
    /// `ckpt SUBCOMMAND ARGS...`
    #[must_use]
    pub fn run(&self, subcommand: &str, args: &[&str]) -> Run {
        let mut command = Command::new(self.ckpt.as_ref().expect("no binary in an undisturbed run"));
        command.arg(subcommand).args(args);
        Run::new(command)
    }
}

impl Context {
    /// The same binary by another name: `criu ARGS...`
    #[must_use]
    pub fn criu(&self, args: &[&str]) -> Run {
        let mut command = Command::new(self.criu_link());
        command.args(args);
        Run::new(command)
    }
}

impl Run {
    #[must_use]
    pub fn new(command: Command) -> Run {
        let label = format!("{command:?}");
        Run { command, stdin: Input::Null, stdout: None, pass: Vec::new(), label }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Run {
        self.command.arg(arg);
        self
    }

    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Run {
        self.command.args(args);
        self
    }

    #[must_use]
    pub fn stdin_bytes(mut self, bytes: Vec<u8>) -> Run {
        self.stdin = Input::Bytes(bytes);
        self
    }

    #[must_use]
    pub fn stdin_fd(mut self, fd: OwnedFd) -> Run {
        self.stdin = Input::Fd(fd);
        self
    }

    #[must_use]
    pub fn stdout_fd(mut self, fd: OwnedFd) -> Run {
        self.stdout = Some(fd);
        self
    }

    /// Hands `fd` to the tool under the number `as_number`.
    #[must_use]
    pub fn pass(mut self, fd: OwnedFd, as_number: i32) -> Run {
        self.pass.push((fd, as_number));
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut self) -> Result<Running> {
        let mut feed = None;
        self.command.stdin(match self.stdin {
            Input::Null => Stdio::null(),
            Input::Fd(fd) => Stdio::from(fd),
            Input::Bytes(bytes) => {
                feed = Some(bytes);
                Stdio::piped()
            }
        });
        self.command.stdout(self.stdout.map_or_else(Stdio::piped, Stdio::from)).stderr(Stdio::piped());
        sys::prepare(&mut self.command, false, self.pass);
        let mut child =
            target::spawn(&mut self.command).with_context(|| format!("cannot start {}", self.label))?;
        drop(self.command); // and with it our copies of the descriptors passed
        if let (Some(bytes), Some(mut stdin)) = (feed, child.stdin.take()) {
            std::thread::spawn(move || {
                let _ = stdin.write_all(&bytes); // a tool that refuses early closes its end
            });
        }
        let stdout = child.stdout.take().map(collect);
        let stderr = collect(child.stderr.take().context("stderr")?);
        Ok(Running { child, stdout, stderr, label: self.label, start: Instant::now(), reaped: false })
    }

    /// Starts it as a target in its own right; what it says on stderr goes to `restart.err` in `dir`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn stand_in(mut self, dir: &std::path::Path) -> Result<target::Target> {
        self.command.stdin(match self.stdin {
            Input::Fd(fd) => Stdio::from(fd),
            _ => Stdio::null(),
        });
        let err = std::fs::File::create(dir.join("restart.err"))?;
        self.command.stdout(Stdio::null()).stderr(err);
        sys::prepare(&mut self.command, false, self.pass);
        let child =
            target::spawn(&mut self.command).with_context(|| format!("cannot start {}", self.label))?;
        target::Target::stand_in(i32::try_from(child.id())?, dir)
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started or does not end; it is killed then.
    pub fn finish(self) -> Result<Outcome> {
        self.start()?.finish()
    }
}

/// A run of the tool under way; killed when dropped.
pub struct Running {
    child: Child,
    stdout: Option<Receiver<Vec<u8>>>,
    stderr: Receiver<Vec<u8>>,
    label: String,
    start: Instant,
    reaped: bool,
}

impl Running {
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("pid")
    }

    /// Kills it with SIGKILL and reaps it. True when it was still running.
    pub fn kill(&mut self) -> bool {
        let running = matches!(self.child.try_wait(), Ok(None));
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.reaped = true;
        running
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// Somebody else has waited for it.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        self.reaped |= status.is_some();
        Ok(status)
    }

    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        let signal = rustix::process::Signal::from_named_raw(signal).context("signal")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end, or somebody else keeps its output open.
    pub fn finish(mut self) -> Result<Outcome> {
        let what = format!("{} to end", self.label);
        let pid = self.pid();
        let status = sys::poll_task(&what, pid, || Ok(self.child.try_wait()?))?;
        self.reaped = true;
        let wall = self.start.elapsed();
        let take = |from: &Receiver<Vec<u8>>, name: &str| {
            from.recv_timeout(sys::PATIENCE).with_context(|| format!("{}: its {name} stays open", self.label))
        };
        let stdout = self.stdout.as_ref().map_or(Ok(Vec::new()), |r| take(r, "stdout"))?;
        let stderr = String::from_utf8_lossy(&take(&self.stderr, "stderr")?).into_owned();
        Ok(Outcome { status, stdout, stderr, wall })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill();
        }
        target::forget(self.pid());
    }
}

fn collect(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        let _ = send.send(bytes);
    });
    receive
}

impl Outcome {
    /// # Errors
    /// The exit code was not `code`.
    pub fn expect_code(&self, code: i32) -> Result<&Outcome> {
        if self.status.code() != Some(code) {
            bail!("ended with {} instead of exit code {code}; stderr: {}", self.status, self.stderr.trim());
        }
        Ok(self)
    }

    /// Exit code `code` and exactly one line on stderr that begins with `NAME: `; gives the line.
    ///
    /// # Errors
    /// Anything else.
    pub fn expect_error(&self, name: &str, code: i32) -> Result<&str> {
        self.expect_code(code)?;
        let line = self.stderr.trim_end_matches('\n');
        if line.contains('\n') || !line.starts_with(&format!("{name}: ")) || line.len() < name.len() + 10 {
            bail!("want one line on stderr beginning with '{name}: ', got:\n{}", self.stderr);
        }
        if !self.stderr.ends_with('\n') {
            bail!("the error line has no end: {:?}", self.stderr);
        }
        Ok(line)
    }
}
