//! Freezer cgroups, v1 and v2: a frozen tree is checkpointed without running, and restarted without running.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use ckpt_tests::context::Context;
use ckpt_tests::sys::{self, random_below};
use ckpt_tests::target::Ended;
use ckpt_tests::tree::{children, ended, family};
use ckpt_tests::view::raw_maps;
use serde_json::Value;

use crate::common::{Program, Test, ensure, expect_line, nothing_runs_in};

pub(crate) const TESTS: &[Test] = &[
    ("checkpoint_v1", |ctx| checkpoint(ctx, V1, false)),
    ("checkpoint_v2", |ctx| checkpoint(ctx, V2, false)),
    ("checkpoint_below_v1", |ctx| checkpoint(ctx, V1, true)),
    ("checkpoint_below_v2", |ctx| checkpoint(ctx, V2, true)),
    ("checkpoint_fails_v1", |ctx| checkpoint_fails(ctx, V1)),
    ("checkpoint_fails_v2", |ctx| checkpoint_fails(ctx, V2)),
    ("checkpoint_killed_v1", |ctx| checkpoint_killed(ctx, V1)),
    ("checkpoint_killed_v2", |ctx| checkpoint_killed(ctx, V2)),
    ("stop_v1", |ctx| stop(ctx, V1)),
    ("stop_v2", |ctx| stop(ctx, V2)),
    ("kill_and_restart_v1", |ctx| kill_and_restart(ctx, V1)),
    ("kill_and_restart_v2", |ctx| kill_and_restart(ctx, V2)),
    ("restart_waits_v1", |ctx| restart_waits(ctx, V1)),
    ("restart_waits_v2", |ctx| restart_waits(ctx, V2)),
    ("restart_fails_v1", |ctx| restart_fails(ctx, V1)),
    ("restart_fails_v2", |ctx| restart_fails(ctx, V2)),
    ("restart_cannot_move", restart_cannot_move),
];

/// A kind of freezer: its mount, the file that freezes and what is written there to freeze and to thaw.
#[derive(Clone, Copy)]
pub(crate) struct Kind(pub(crate) &'static str, pub(crate) &'static str, [&'static str; 2]);

pub(crate) const V1: Kind = Kind("/sys/fs/cgroup/freezer", "freezer.state", ["FROZEN", "THAWED"]);
pub(crate) const V2: Kind = Kind("/sys/fs/cgroup/unified", "cgroup.freeze", ["1", "0"]);

/// A cgroup of our own. Dropped, it is thawed, emptied and removed.
pub(crate) struct Group {
    kind: Kind,
    pub(crate) path: PathBuf,
}

impl Group {
    /// Makes it below the mount; `None` where there is none.
    pub(crate) fn new(kind: Kind, name: &str) -> Result<Option<Group>> {
        let there = Path::new(kind.0).join("cgroup.procs").exists();
        there.then(|| Group::below(kind, Path::new(kind.0), name)).transpose()
    }

    fn below(kind: Kind, above: &Path, name: &str) -> Result<Group> {
        let path = above.join(format!("ckpt-test-{name}"));
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Group { kind, path })
    }

    pub(crate) fn set(&self, frozen: bool) -> Result<()> {
        Ok(std::fs::write(self.path.join(self.kind.1), self.kind.2[usize::from(!frozen)])?)
    }

    fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.path.join(file)).unwrap_or_default()
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.read("freezer.state") == "FROZEN\n" || self.read("cgroup.events").contains("frozen 1\n")
    }

    /// Whether it is itself told to be frozen.
    pub(crate) fn is_set(&self) -> bool {
        let file = if self.kind.1 == V1.1 { "freezer.self_freezing" } else { "cgroup.freeze" };
        self.read(file) == "1\n"
    }

    pub(crate) fn take(&self, pid: i32) -> Result<()> {
        Ok(std::fs::write(self.path.join("cgroup.procs"), pid.to_string())?)
    }

    pub(crate) fn freeze(&self) -> Result<()> {
        self.set(true)?;
        sys::poll("the cgroup to be frozen", || Ok(self.is_frozen().then_some(())))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.set(false);
        for pid in self.read("cgroup.procs").lines() {
            let _ = std::fs::write(Path::new(self.kind.0).join("cgroup.procs"), pid);
        }
        let gone = || Ok(std::fs::remove_dir(&self.path).is_ok().then_some(()));
        let _ = sys::poll("the cgroup to be removed", gone);
    }
}

/// The counts of both threads.
fn counts(program: &Program) -> Result<[u64; 2]> {
    let raw = std::fs::read(program.path("count"))?;
    let word = |at: usize| u64::from_ne_bytes(raw[at..at + 8].try_into().expect("8 bytes"));
    Ok([word(0), word(8)])
}

fn counts_on(program: &mut Program) -> Result<()> {
    let before = counts(program)?;
    sys::poll("both threads to count on", || {
        program.target.must_live()?;
        let now = counts(program)?;
        Ok((now[0] > before[0] && now[1] > before[1]).then_some(()))
    })
}

/// A `frost` helper that has been frozen.
struct Frozen {
    program: Program,
    // Dropped before the program is killed: v1 holds back even the killed.
    group: Group,
    // Two programs with the same timeouts, interrupted at the same moment, leave doubt about what remains of them.
    _alone: MutexGuard<'static, ()>,
    counts: [u64; 2],
    maps: String,
}

/// Its program is thawed before it is killed.
impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = self.group.set(false);
    }
}

impl Frozen {
    fn start(ctx: &Context, kind: Kind) -> Result<Option<Frozen>> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut program = Program::start(ctx, "frost", &[])?;
        let Some(group) = Group::new(kind, &program.pid())? else {
            ctx.skip(kind.1, &format!("no cgroups are mounted on {}", kind.0))?;
            return Ok(None);
        };
        counts_on(&mut program)?;
        family(program.target.pid()).into_iter().try_for_each(|pid| group.take(pid))?;
        let mut frozen = Frozen { program, group, _alone: alone, counts: [0; 2], maps: String::new() };
        frozen.group.freeze()?;
        frozen.look()?;
        Ok(Some(frozen))
    }

    fn look(&mut self) -> Result<()> {
        self.counts = counts(&self.program)?;
        self.maps = self.maps()?;
        Ok(())
    }

    fn maps(&self) -> Result<String> {
        family(self.program.target.pid()).into_iter().map(raw_maps).collect()
    }

    /// It is frozen, nobody traces it, and it has not run an instruction that counts.
    fn unmoved(&self) -> Result<()> {
        ensure(self.group.is_frozen() && self.group.is_set(), "its cgroup is not frozen")?;
        let counts = counts(&self.program)?;
        ensure(counts == self.counts, format!("it has run: {:?} became {counts:?}", self.counts))?;
        for pid in family(self.program.target.pid()) {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            ensure(status.contains("TracerPid:\t0\n"), format!("{pid} is traced: {status}"))?;
        }
        ensure(self.maps()? == self.maps, "something stayed in its memory")?;
        let files = self.program.files()?;
        ensure(!files.iter().any(|f| f == "usr1" || f == "cont"), format!("it has made a file: {files:?}"))
    }

    /// Thawed, it goes on; its stopped child does not before SIGCONT.
    fn goes_on(&mut self) -> Result<()> {
        self.group.set(false)?;
        counts_on(&mut self.program)?;
        let stopped = self.child(3)?;
        // What v1 thaws comes to its stop only then.
        sys::poll("the stopped child to be stopped", || Ok(is_stopped(stopped).then_some(())))?;
        ensure(!self.program.path("cont").exists(), "the stopped child went on")?;
        kill(stopped, libc::SIGCONT)?;
        self.appears("cont")
    }

    fn appears(&self, name: &str) -> Result<()> {
        sys::poll(name, || Ok(self.program.path(name).exists().then_some(())))
    }

    fn child(&self, number: usize) -> Result<i32> {
        children(self.program.target.pid()).get(number).copied().context("a child is gone")
    }

    /// `checkpoint -o image ARGS`
    fn save(&self, ctx: &Context, args: &[&str]) -> Result<PathBuf> {
        let image = self.program.path("image");
        ctx.run("checkpoint", args).arg("-o").arg(&image).arg(self.program.pid()).finish()?.expect_code(0)?;
        ctx.run("info", &["--verify"]).arg(&image).finish()?.expect_code(0)?;
        Ok(image)
    }

    /// `checkpoint --kill`, reaped when this returns.
    fn save_and_kill(&mut self, ctx: &Context) -> Result<PathBuf> {
        let image = self.save(ctx, &["--kill"])?;
        let ended = self.program.target.wait()?;
        ensure(ended == Ended::Signal(libc::SIGKILL), format!("checkpoint --kill: {ended:?}"))?;
        self.program.target.all_gone(&[])?;
        ensure(counts(&self.program)? == self.counts, "it ran before it was killed")?;
        Ok(image)
    }
}

fn is_stopped(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|s| s.contains("State:\tT (stopped)"))
}

fn kill(pid: i32, signal: i32) -> Result<()> {
    let signal = rustix::process::Signal::from_named_raw(signal).context("signal")?;
    Ok(rustix::process::kill_process(rustix::process::Pid::from_raw(pid).context("pid")?, signal)?)
}

/// The nanoseconds that remain of interrupted calls.
fn remaining(value: &Value, found: &mut Vec<u64>) {
    if let Some(nanoseconds) = value["interrupted_call"]["remaining_ns"].as_u64().filter(|n| *n > 0) {
        found.push(nanoseconds);
    }
    match value {
        Value::Array(list) => list.iter().for_each(|v| remaining(v, found)),
        Value::Object(map) => map.values().for_each(|v| remaining(v, found)),
        _ => {}
    }
}

/// Checkpointed as often as one likes it stays frozen, by its own cgroup or by the one above; what remains of its
/// timeouts is known, a signal sent meanwhile is not lost.
fn checkpoint(ctx: &Context, kind: Kind, below: bool) -> Result<()> {
    let begun = Instant::now();
    let Some(mut frozen) = Frozen::start(ctx, kind)? else { return Ok(()) };
    let slept = Instant::now();
    let inner = if below {
        let inner = Group::below(kind, &frozen.group.path, "inner")?;
        family(frozen.program.target.pid()).into_iter().try_for_each(|pid| inner.take(pid))?;
        Some(inner)
    } else {
        None
    };
    kill(frozen.child(2)?, libc::SIGUSR1)?;
    for _ in 0..3 {
        let asked = Instant::now();
        let image = frozen.save(ctx, &["-f"])?;
        frozen.unmoved()?;
        ensure(!inner.as_ref().is_some_and(Group::is_set), "the cgroup below is frozen itself")?;
        let info = ctx.run("info", &["--json"]).arg(&image).finish()?;
        let mut found = Vec::new();
        remaining(&serde_json::from_slice(&info.stdout)?, &mut found);
        ensure(found.len() == 2, format!("two children wait with a timeout, not {found:?}"))?;
        // Begun between `begun` and `slept`, looked at between `asked` and now.
        let hour = Duration::from_secs(3600);
        let (low, high) = (hour - begun.elapsed(), hour - (asked - slept));
        for left in found.into_iter().map(Duration::from_nanos) {
            ensure((low..=high).contains(&left), format!("{left:?} remain, want {low:?} to {high:?}"))?;
        }
    }
    frozen.goes_on()?;
    frozen.appears("usr1")?;
    drop(inner);
    frozen.program.ends_with(7)
}

/// Whatever the checkpoint fails of, the tree stays frozen; a stranger in the cgroup is named.
fn checkpoint_fails(ctx: &Context, kind: Kind) -> Result<()> {
    let Some(mut frozen) = Frozen::start(ctx, kind)? else { return Ok(()) };
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full")?.into();
    let run = ctx.run("checkpoint", &["--kill", "--output-fd", "5"]).arg(frozen.program.pid());
    expect_line(&run.pass(full, 5).finish()?, "checkpoint", &[1], &["space"])?;
    frozen.unmoved()?;
    let mut stranger = Program::start(ctx, "exits", &["7"])?;
    frozen.group.take(stranger.target.pid())?;
    let image = frozen.program.path("image");
    let outcome = ctx.run("checkpoint", &["--kill", "-o"]).arg(&image).arg(frozen.program.pid()).finish()?;
    expect_line(&outcome, "checkpoint", &[3], &["cgroup", "frozen", &stranger.pid(), "exits"])?;
    ensure(!image.exists(), "a refused checkpoint left an image")?;
    frozen.unmoved()?;
    frozen.goes_on()?;
    stranger.ends_with(7)?;
    frozen.program.ends_with(7)
}

/// SIGKILL of checkpoint at random instants: the guardian freezes it again. It may have run meanwhile.
fn checkpoint_killed(ctx: &Context, kind: Kind) -> Result<()> {
    let Some(mut frozen) = Frozen::start(ctx, kind)? else { return Ok(()) };
    // A process stopped in the middle of a visit would stay there until it is continued.
    frozen.goes_on()?;
    std::fs::remove_file(frozen.program.path("cont"))?;
    frozen.group.freeze()?;
    frozen.look()?;
    let image = frozen.program.path("image");
    let whole = ctx.run("checkpoint", &["-o"]).arg(&image).arg(frozen.program.pid()).finish()?;
    whole.expect_code(0)?;
    let (mut hits, mut still) = (0, 0);
    let mut span = whole.wall;
    for round in 0..20 {
        let _ = std::fs::remove_file(&image);
        let mut run = ctx.run("checkpoint", &["-o"]).arg(&image).arg(frozen.program.pid()).start()?;
        std::thread::sleep(Duration::from_nanos(random_below(u64::try_from(span.as_nanos())?)));
        let guardian = children(run.pid());
        let hit = run.kill();
        hits += u32::from(hit);
        // It may thaw the tree once more, after it has frozen it.
        sys::poll("the guardian to be gone", || Ok(guardian.iter().all(|pid| ended(*pid)).then_some(())))?;
        // It was measured on a machine that may have had more to do, or less.
        span = if hit { (span * 9 / 8).min(whole.wall * 2) } else { span * 3 / 4 };
        let before = frozen.counts;
        let settled = || {
            frozen.counts = counts(&frozen.program)?;
            Ok(frozen.unmoved().is_ok().then_some(()))
        };
        if sys::poll("it to be frozen as before", settled).is_err() {
            bail!("kill {round}: {:?}", frozen.unmoved());
        }
        still += u32::from(frozen.counts == before);
    }
    println!("    {hits} of 20 kills while it ran; {still} times the program had not run");
    ensure(hits > 3, "no kill found checkpoint running: the test tests nothing")?;
    let _ = std::fs::remove_file(&image);
    frozen.save(ctx, &[])?;
    frozen.unmoved()?;
    frozen.group.set(false)?;
    counts_on(&mut frozen.program)?;
    frozen.program.ends_with(7)
}

/// --stop: still frozen, and stopped when it is thawed.
fn stop(ctx: &Context, kind: Kind) -> Result<()> {
    let Some(mut frozen) = Frozen::start(ctx, kind)? else { return Ok(()) };
    frozen.save(ctx, &["--stop"])?;
    frozen.unmoved()?;
    frozen.group.set(false)?;
    let pids = family(frozen.program.target.pid());
    sys::poll("all to be stopped", || Ok(pids.iter().all(|pid| is_stopped(*pid)).then_some(())))?;
    ensure(counts(&frozen.program)? == frozen.counts, "it ran before it stopped")?;
    pids.iter().try_for_each(|pid| kill(*pid, libc::SIGCONT))?;
    frozen.appears("cont")?;
    counts_on(&mut frozen.program)?;
    frozen.program.ends_with(7)
}

/// --kill lets nobody run and leaves the cgroup as it was; restart -F puts all back there, frozen, as often as one likes.
fn kill_and_restart(ctx: &Context, kind: Kind) -> Result<()> {
    let Some(mut frozen) = Frozen::start(ctx, kind)? else { return Ok(()) };
    let pids = family(frozen.program.target.pid());
    kill(frozen.child(2)?, libc::SIGUSR1)?;
    let image = frozen.save_and_kill(ctx)?;
    ensure(frozen.group.is_set() && frozen.group.is_frozen(), "the cgroup is no longer frozen")?;
    for already in [true, false] {
        if !already {
            frozen.group.set(false)?;
            frozen.program.target.kill();
        }
        let before = counts(&frozen.program)?;
        // Relative to the mount, and in full.
        let name = frozen.group.path.strip_prefix(kind.0)?;
        let group = if already { name } else { frozen.group.path.as_path() };
        ctx.run("restart", &["-W", "-i"]).arg(&image).arg("-F").arg(group).finish()?.expect_code(0)?;
        frozen.program.adopt()?;
        frozen.look()?;
        ensure(frozen.counts == before, "it has run")?;
        frozen.unmoved()?;
        let mut there: Vec<i32> =
            frozen.group.read("cgroup.procs").lines().map(str::parse).collect::<Result<_, _>>()?;
        there.sort_unstable();
        let mut all = pids.clone();
        all.sort_unstable();
        ensure(there == all, format!("in the cgroup are {there:?}, not {all:?}"))?;
        frozen.goes_on()?;
        frozen.appears("usr1")?;
        ["usr1", "cont"].iter().try_for_each(|name| std::fs::remove_file(frozen.program.path(name)))?;
    }
    frozen.program.ends_with(7)
}

/// Without -W, restart waits for a program that somebody thaws.
fn restart_waits(ctx: &Context, kind: Kind) -> Result<()> {
    let Some(mut frozen) = Frozen::start(ctx, kind)? else { return Ok(()) };
    let image = frozen.save_and_kill(ctx)?;
    frozen.group.set(false)?;
    for args in [&["--copy-status"][..], &["--copy-status", "--pidns", "--mntns"]] {
        let before = counts(&frozen.program)?;
        let run = ctx.run("restart", args).arg("-i").arg(&image).arg("--freezer").arg(&frozen.group.path);
        let mut running = run.start()?;
        let there = || {
            let held = !frozen.group.read("cgroup.procs").is_empty();
            Ok((held && frozen.group.is_frozen()).then_some(()))
        };
        if let Err(error) = sys::poll("the program to be there, frozen", there) {
            running.kill();
            return Err(error);
        }
        ensure(counts(&frozen.program)? == before, "it has run")?;
        std::fs::write(frozen.program.path("go"), "")?;
        frozen.group.set(false)?;
        running.finish()?.expect_code(7)?;
        std::fs::remove_file(frozen.program.path("go"))?;
    }
    nothing_runs_in(frozen.program.dir.path())
}

/// What is no freezer cgroup, or one with others in it: an error, nothing made, the cgroup as it was.
fn restart_fails(ctx: &Context, kind: Kind) -> Result<()> {
    let Some(mut frozen) = Frozen::start(ctx, kind)? else { return Ok(()) };
    let image = frozen.save_and_kill(ctx)?;
    frozen.group.set(false)?;
    let mut stranger = Program::start(ctx, "exits", &["7"])?;
    frozen.group.take(stranger.target.pid())?;
    let plain = frozen.program.dir.path().to_owned();
    let (none, root) = (frozen.group.path.join("none"), PathBuf::from(kind.0));
    for (group, words) in [
        (&none, &["none", "there is none"][..]),
        (&plain, &["no cgroup"]),
        (&root, &["it has no"]),
        (&frozen.group.path, &[&stranger.pid(), "exits"]),
    ] {
        let outcome = ctx.run("restart", &["-W", "-i"]).arg(&image).arg("-F").arg(group).finish()?;
        expect_line(&outcome, "restart", &[1], words).with_context(|| group.display().to_string())?;
        nothing_runs_in(&plain)?;
        ensure(!frozen.group.is_set(), "the cgroup became frozen")?;
    }
    stranger.unharmed()?;
    stranger.ends_with(7)?;
    frozen.program.back_from(ctx, &image).context("the image still works")?;
    frozen.goes_on()?;
    frozen.program.ends_with(7)
}

/// A cgroup that takes no processes (v2, "domain invalid"): all was made, and all goes again.
fn restart_cannot_move(ctx: &Context) -> Result<()> {
    let Some(mut frozen) = Frozen::start(ctx, V2)? else { return Ok(()) };
    let image = frozen.save_and_kill(ctx)?;
    frozen.group.set(false)?;
    let (threaded, invalid) =
        (Group::below(V2, &frozen.group.path, "threaded")?, Group::below(V2, &frozen.group.path, "invalid")?);
    std::fs::write(threaded.path.join("cgroup.type"), "threaded")?;
    let outcome = ctx.run("restart", &["-W", "-i"]).arg(&image).arg("-F").arg(&invalid.path).finish()?;
    expect_line(&outcome, "restart", &[1], &["cgroup", &frozen.program.pid()])?;
    nothing_runs_in(frozen.program.dir.path())?;
    ensure(!invalid.is_set(), "the cgroup became frozen")?;
    drop((threaded, invalid));
    frozen.program.back_from(ctx, &image).context("the image still works")?;
    frozen.goes_on()?;
    frozen.program.ends_with(7)
}
