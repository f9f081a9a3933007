//! The command line of `criu`: words, files of options, logs, directories, `check` and `cpuinfo`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use ckpt_tests::context::Context;
use ckpt_tests::tool::{Outcome, Run};
use tempfile::TempDir;
use twox_hash::XxHash3_64;

use crate::common::{Test, ensure, expect_line, names_in};
use crate::criu::Case;

pub(crate) const TESTS: &[Test] = &[
    ("help_and_version", help_and_version),
    ("words", words),
    ("wrong_words", wrong_words),
    ("config_order", config_order),
    ("wrong_config", wrong_config),
    ("log", log),
    ("directories", directories),
    ("read_only", read_only),
    ("no_image", no_image),
    ("check", check),
    ("check_without_privileges", check_without_privileges),
    ("features", features),
    ("cpuinfo", cpuinfo),
];

fn directory() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("ckpt-special-").tempdir()?)
}

fn text(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stdout).into_owned()
}

/// Help on standard output, on standard error without an action; the version in one line.
fn help_and_version(ctx: &Context) -> Result<()> {
    for args in [&["--help"][..], &["-h"], &["dump", "-h", "-t", "1"]] {
        let outcome = ctx.criu(args).finish()?;
        outcome.expect_code(0)?;
        let help = text(&outcome);
        ensure(outcome.stderr.is_empty() && help.starts_with("criu: "), format!("{args:?}: {help}"))?;
        for word in ["criu dump", "criu restore", "criu check", "criu cpuinfo", "--images-dir", "--feature"] {
            ensure(help.contains(word), format!("the help does not say {word}"))?;
        }
    }
    let nothing = ctx.criu(&[]).finish()?;
    nothing.expect_code(1)?;
    ensure(nothing.stdout.is_empty() && nothing.stderr.contains("criu dump"), "no action: no help")?;
    for args in [&["--version"][..], &["-V"], &["check", "--vers"]] {
        let outcome = ctx.criu(args).finish()?;
        outcome.expect_code(0)?;
        ensure(text(&outcome) == "Version: 4.2\n", format!("{args:?}: {}", text(&outcome)))?;
    }
    Ok(())
}

/// Prefixes, `--no-`, any order, clusters, levels of verbosity.
fn words(ctx: &Context) -> Result<()> {
    let said = "timerfd: there";
    for (args, level) in [
        (&["check", "--feature", "timerfd"][..], 2),
        (&["--feat=timerfd", "check", "-v"], 3),
        (&["-v4", "check", "--feat", "timerfd"], 4),
        (&["--verbosity=4", "--feat", "timerfd", "--", "check"], 4),
        (&["check", "-vv", "--feature=timerfd"], 4),
        (&["check", "-v4", "-v1", "--feature=timerfd"], 1),
        (&["check", "--verb=0", "--feature=timerfd"], 0),
        (&["check", "-Rv4", "--no-leave-r", "--no-lazy-pages", "--feature=timerfd"], 4),
    ] {
        let outcome = ctx.criu(args).finish()?;
        outcome.expect_code(0)?;
        ensure(text(&outcome) == "Looks good.\n", format!("{args:?}: {}", text(&outcome)))?;
        ensure(outcome.stderr.contains(said) == (level >= 3), format!("{args:?}: {}", outcome.stderr))?;
    }
    let dir = directory()?;
    let dump = |args: &[&str]| -> Result<String> {
        let outcome = ctx.criu(args).args(&["dump", "-t", "999999999", "-D"]).arg(dir.path()).finish()?;
        outcome.expect_code(1)?;
        Ok(outcome.stderr)
    };
    ensure(dump(&["-R", "-s"])?.contains("do not go together"), "-R and -s")?;
    let off = dump(&["-R", "-s", "--no-leave-running"])?;
    ensure(off.contains("999999999") && !off.contains("together"), off)
}

/// A wrong word is an error that names it, before anything is done.
fn wrong_words(ctx: &Context) -> Result<()> {
    for (args, words) in [
        (&["check", "--nonsense"][..], &["--nonsense", "unknown"][..]),
        (&["check", "-z"], &["-z", "unknown"]),
        (&["check", "--leave"], &["ambiguous", "--leave-running", "--leave-stopped"]),
        (&["check", "--feature"], &["--feature", "needs a value"]),
        (&["check", "--leave-running=1"], &["leave-running"]),
        (&["check", "--timeout", "x"], &["--timeout"]),
        (&["check", "-v", "4"], &["4", "unexpected"]),
        (&["check", "--no-tree"], &["no-tree", "unknown"]),
        (&["check", "--lazy-pages"], &["--lazy-pages", "not supported yet"]),
        (&["check", "--libdir", "/"], &["--libdir", "not supported", "plugins"]),
        (&["check", "-M", "data"], &["--ext-mount-map", "KEY:VALUE", "'data'"]),
        (&["check", "-M", "/data:"], &["--ext-mount-map", "KEY:VALUE"]),
        (&["check", "--action-script="], &["--action-script", "want a command"]),
        (&["check", "--cgroup-root", ":/a"], &["--cgroup-root", "CONTROLLER"]),
        (&["check", "--manage-cgroups=default"], &["--manage-cgroups", "soft", "'default'"]),
        (&["check", "--cpu-cap=odd"], &["--cpu-cap", "odd"]),
        (&["nonsense"], &["nonsense", "unknown action"]),
        (&["cpuinfo"], &["dump or check"]),
        (&["dump"], &["--tree"]),
    ] {
        let outcome = ctx.criu(args).finish()?;
        expect_line(&outcome, "criu", &[1], words).with_context(|| format!("{args:?}"))?;
        ensure(outcome.stdout.is_empty(), format!("{args:?} says {}", text(&outcome)))?;
    }
    let later = ctx.criu(&["dedup"]).finish()?;
    later.expect_code(1)?;
    ensure(later.stderr.contains("dedup: not supported yet"), later.stderr)
}

/// `criu check` with these words where the machine, the user, a variable and an option name files, each of which names
/// another log; gives the log there is.
fn configured(ctx: &Context, dir: &Path, files: &[&str], args: &[&str]) -> Result<Vec<String>> {
    let logs = dir.join("logs");
    let _ = std::fs::remove_dir_all(&logs);
    std::fs::create_dir(&logs)?;
    std::fs::create_dir_all(dir.join("home/.criu"))?;
    let write = |name: &str, path: &str| -> Result<()> {
        let _ = std::fs::remove_file(dir.join(path));
        if files.contains(&name) {
            std::fs::write(dir.join(path), format!("# {name}\nlog-file = \"{name}.log\" # its log\n"))?;
        }
        Ok(())
    };
    for (name, path) in
        [("system", "system"), ("user", "home/.criu/default.conf"), ("env", "env"), ("given", "given")]
    {
        write(name, path)?;
    }
    // /etc/criu is there for this process alone.
    let script = "mount -t tmpfs none /etc && mkdir /etc/criu || exit 9
test ! -e system || cp system /etc/criu/default.conf
exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(ctx.criu_link()).current_dir(dir);
    command.env("HOME", dir.join("home")).env_remove("CRIU_CONFIG_FILE");
    if files.contains(&"env") {
        command.env("CRIU_CONFIG_FILE", dir.join("env"));
    }
    command.args(["check", "-W"]).arg(&logs).args(args);
    if files.contains(&"given") {
        command.arg("--config").arg(dir.join("given"));
    }
    Run::new(command).finish()?.expect_code(0)?;
    names_in(&logs)
}

/// What comes later counts: the machine's file, the user's, the variable's, the option's, the command line.
fn config_order(ctx: &Context) -> Result<()> {
    let dir = directory()?;
    let order = ["system", "user", "env", "given"];
    for last in 1..=order.len() {
        let found = configured(ctx, dir.path(), &order[..last], &[])?;
        ensure(found == [format!("{}.log", order[last - 1])], format!("of {last} files: {found:?}"))?;
    }
    for (files, args, want) in [
        (&order[..], &["-o", "word.log"][..], "word.log"),
        (&order[..], &["--no-default-config"], "given.log"),
        (&order[..1], &["-o", "word.log", "--no-default-config"], "word.log"),
    ] {
        let found = configured(ctx, dir.path(), files, args)?;
        ensure(found == [want], format!("{args:?}: {found:?}"))?;
    }
    let found = configured(ctx, dir.path(), &order[..3], &["--no-default-config"])?;
    ensure(found.is_empty(), format!("--no-default-config: {found:?}"))
}

/// A wrong line is named by file and number; a file that was named must be there, the others need not.
fn wrong_config(ctx: &Context) -> Result<()> {
    let dir = directory()?;
    let path = dir.path().join("conf");
    let shown = path.to_str().context("path")?;
    for (line, words) in [
        ("nonsense", &["--nonsense", "unknown"][..]),
        ("timeout", &["--timeout", "needs a value"]),
        ("timeout = ", &["timeout", "no value"]),
        ("log-file \"a", &["quote"]),
        ("log-file a b", &["after the value"]),
        ("stream", &["--stream", "not supported yet"]),
        ("config /x", &["--config"]),
    ] {
        std::fs::write(&path, format!("# first\n{line}\n"))?;
        let place = format!("{shown}:2");
        let words = [words, &[&place]].concat();
        let outcome = ctx.criu(&["check", "--config", shown]).finish()?;
        expect_line(&outcome, "criu", &[1], &words).with_context(|| line.to_owned())?;
    }
    std::fs::remove_file(&path)?;
    let outcome = ctx.criu(&["check", "--config", shown]).finish()?;
    expect_line(&outcome, "criu", &[1], &[shown, "No such file"])?;
    let mut command = Command::new(ctx.criu_link());
    command.arg("check").env("CRIU_CONFIG_FILE", &path);
    expect_line(&Run::new(command).finish()?, "criu", &[1], &[shown, "No such file"])?;
    Ok(())
}

/// Whether `line` is `(SECONDS.MICROSECONDS) text`.
fn stamped(line: &str) -> bool {
    let parts = line.strip_prefix('(').and_then(|rest| rest.split_once(") "));
    let parts = parts.and_then(|(stamp, text)| Some((stamp.split_once('.')?, text)));
    parts.is_some_and(|((seconds, micros), text)| {
        let digits = |part: &str, len| part.len() >= len && part.bytes().all(|b| b.is_ascii_digit());
        digits(seconds, 2) && digits(micros, 6) && micros.len() == 6 && !text.is_empty()
    })
}

/// The log is in the work directory, else in that of images; truncated in place; every line is stamped.
fn log(ctx: &Context) -> Result<()> {
    let dir = directory()?;
    let (images, work) = (dir.path().join("images"), dir.path().join("work"));
    std::fs::create_dir(&images)?;
    std::fs::create_dir(&work)?;
    std::fs::write(images.join("log"), "an old line that is gone then\n".repeat(1000))?;
    let old = std::fs::File::open(images.join("log"))?;
    let run = || ctx.criu(&["check", "--all", "-v4", "-o", "log", "-D"]).arg(&images);
    let outcome = run().finish()?;
    ensure(outcome.stderr.is_empty(), outcome.stderr)?;
    let lines = std::io::read_to_string(&old)?;
    ensure(!lines.contains("an old line") && lines.lines().count() > 30, "not in place")?;
    ensure(lines.lines().all(stamped), format!("a line without a stamp: {lines}"))?;
    for line in lines.lines().filter(|line| line.contains("Error")) {
        ensure(line.contains(") Error (check): feature "), line)?;
    }
    run().arg("-W").arg(&work).finish()?;
    ensure(names_in(&work)? == ["log"] && names_in(&images)? == ["log"], "the work directory")?;
    // There, though nothing is said.
    ctx.criu(&["check", "-v0", "-o", "silent", "-D"]).arg(&images).finish()?.expect_code(0)?;
    ensure(std::fs::read(images.join("silent"))?.is_empty(), "-v0 says something")?;
    let nowhere = ctx.criu(&["check", "-o", "log", "-W"]).arg(dir.path().join("nowhere")).finish()?;
    expect_line(&nowhere, "criu", &[1], &["log file", "nowhere", "No such file"])?;
    Ok(())
}

/// Runs a command with no privilege at all, though as root.
fn powerless(ctx: &Context, args: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(ctx.criu_link()).args(args);
    command
}

/// A directory of images that is missing, none, or not to be read.
fn directories(ctx: &Context) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let dir = directory()?;
    let (file, closed) = (dir.path().join("file"), dir.path().join("closed"));
    std::fs::write(&file, "")?;
    std::fs::create_dir(&closed)?;
    for action in [&["dump", "-t", "1"][..], &["restore"], &["cpuinfo", "dump"], &["cpuinfo", "check"]] {
        for (path, why) in [(dir.path().join("nowhere"), "No such file"), (file.clone(), "not a directory")] {
            let outcome = ctx.criu(action).args(&["-W"]).arg(dir.path()).arg("-D").arg(&path).finish()?;
            outcome.expect_code(1)?;
            let shown = path.to_str().context("path")?;
            let line = outcome.stderr.lines().next().unwrap_or_default();
            ensure(line.contains("Error (options): --images-dir") && line.contains(shown), line)?;
            ensure(line.to_lowercase().contains(&why.to_lowercase()), format!("{action:?}: {line}"))?;
        }
    }
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o0))?;
    for action in [&["restore"][..], &["cpuinfo", "check"], &["cpuinfo", "dump"]] {
        let mut command = powerless(ctx, action);
        command.arg("-D").arg(&closed);
        let outcome = Run::new(command).finish()?;
        outcome.expect_code(1)?;
        ensure(outcome.stderr.contains("Permission denied"), outcome.stderr)?;
    }
    Ok(())
}

/// A directory that cannot be written to: the tree goes on.
fn read_only(ctx: &Context) -> Result<()> {
    let mut case = Case::start(ctx, "exits", &["7"])?;
    let script = "mount -t tmpfs -o ro none \"$1\" || exit 9; shift; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, "sh"]).arg(case.images()).arg(ctx.criu_link());
    command.args(["dump", "-t", &case.program.pid(), "-D"]).arg(case.images());
    let outcome = Run::new(command).finish()?;
    outcome.expect_code(1)?;
    ensure(outcome.stderr.contains("Read-only file system"), &*outcome.stderr)?;
    ensure(outcome.stderr.trim_end().ends_with("Error (dump): Dumping FAILED."), &*outcome.stderr)?;
    ensure(names_in(&case.images())?.is_empty(), "something was written")?;
    case.program.unharmed()?;
    case.program.ends_with(7)
}

/// A directory without an image.
fn no_image(ctx: &Context) -> Result<()> {
    let dir = directory()?;
    let outcome = ctx.criu(&["restore", "-o", "log", "-D"]).arg(dir.path()).finish()?;
    outcome.expect_code(1)?;
    let log = std::fs::read_to_string(dir.path().join("log"))?;
    let words = ["checkpoint.img", "No such file", "--images-dir", "of a dump by this criu"];
    ensure(words.iter().all(|word| log.contains(word)), &*log)?;
    ensure(log.ends_with("Error (restore): Restoring FAILED.\n"), &*log)?;
    ensure(names_in(dir.path())? == ["log"], "something else was made")
}

/// What a probe could leave behind: its device, its mount. (Other tests mount and unmount
/// meanwhile.)
fn surroundings() -> Result<Vec<String>> {
    let devices = std::fs::read_to_string("/proc/net/dev")?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let lines = devices.lines().filter(|line| line.trim_start().starts_with("probe"));
    Ok(lines.chain(mounts.lines().filter(|line| line.contains(" autofs "))).map(str::to_owned).collect())
}

/// What the engine needs is here, or none of these tests would be.
fn check(ctx: &Context) -> Result<()> {
    let before = surroundings()?;
    let outcome = ctx.criu(&["check"]).finish()?;
    outcome.expect_code(0)?;
    ensure(text(&outcome) == "Looks good.\n" && outcome.stderr.is_empty(), outcome.stderr)?;
    // Each scope holds the one before.
    let mut lines = 0;
    for scope in [&[][..], &["--experimental"], &["--extra"], &["--all"]] {
        let outcome = ctx.criu(&["check", "-v4"]).args(scope).finish()?;
        let now = outcome.stderr.lines().count();
        ensure(now >= lines && outcome.stderr.contains("ptrace: there"), outcome.stderr)?;
        lines = now;
    }
    ensure(lines > 40, format!("--all: {lines} lines"))?;
    ensure(surroundings()? == before, "something is left behind")
}

/// Without privileges: what is missing, what is lost by it, and what to do.
fn check_without_privileges(ctx: &Context) -> Result<()> {
    let outcome = Run::new(powerless(ctx, &["check"])).finish()?;
    outcome.expect_code(1)?;
    ensure(outcome.stdout.is_empty(), text(&outcome))?;
    for word in
        ["Error (check): clone3 with set_tid", "not permitted", "their pids", "CAP_CHECKPOINT_RESTORE"]
    {
        ensure(outcome.stderr.contains(word), format!("{word}: {}", outcome.stderr))?;
    }
    let outcome = Run::new(powerless(ctx, &["check", "--feature", "timens"])).finish()?;
    outcome.expect_code(1)?;
    ensure(outcome.stderr.contains("cannot be told"), outcome.stderr)
}

/// Options of the kernel's configuration that a feature is there by, and only by.
const CONFIGURED: &[(&str, &str)] = &[
    ("autofs", "CONFIG_AUTOFS_FS"),
    ("mem_dirty_track", "CONFIG_MEM_SOFT_DIRTY"),
    ("memfd_hugetlb", "CONFIG_HUGETLBFS"),
    ("net_diag_raw", "CONFIG_INET_RAW_DIAG"),
    ("nftables", "CONFIG_NF_TABLES"),
    ("seccomp_filters", "CONFIG_SECCOMP_FILTER"),
    ("timens", "CONFIG_TIME_NS"),
    ("tun", "CONFIG_TUN"),
    ("uffd", "CONFIG_USERFAULTFD"),
    ("userns", "CONFIG_USER_NS"),
];

/// Each name is answered; what the kernel was configured with is there, what it was not is missing.
fn features(ctx: &Context) -> Result<()> {
    let before = surroundings()?;
    let list = text(ctx.criu(&["check", "--feature", "list"]).finish()?.expect_code(0)?);
    let config = Command::new("zcat").arg("/proc/config.gz").output()?;
    let config = String::from_utf8_lossy(&config.stdout).into_owned();
    let (mut here, mut gone) = (Vec::new(), Vec::new());
    for name in list.split_whitespace() {
        let outcome = ctx.criu(&["check", "--feature", name]).finish()?;
        match outcome.status.code() {
            Some(0) if text(&outcome) == "Looks good.\n" && outcome.stderr.is_empty() => here.push(name),
            Some(1) if outcome.stdout.is_empty() => {
                let want = format!("Error (check): feature {name} (");
                ensure(outcome.stderr.contains(&want), &*outcome.stderr)?;
                ensure(outcome.stderr.contains("this kernel does not have it: "), &*outcome.stderr)?;
                gone.push(name);
            }
            _ => bail!("{name}: {outcome:?}"),
        }
    }
    ensure(here.len() + gone.len() == 32, format!("{here:?} {gone:?}"))?;
    ensure(surroundings()? == before, "something is left behind")?;
    let both: Vec<&str> = here.iter().take(2).flat_map(|name| ["--feature", name]).collect();
    ctx.criu(&["check"]).args(&both).finish()?.expect_code(0)?;
    if let Some(name) = gone.first() {
        ctx.criu(&["check"]).args(&both).args(&["--feature", name]).finish()?.expect_code(1)?;
    }
    let unknown = ctx.criu(&["check", "--feature", "memdirty_track"]).finish()?;
    unknown.expect_code(1)?;
    for word in ["memdirty_track: unknown", "is mem_dirty_track meant?"] {
        ensure(unknown.stderr.contains(word), &*unknown.stderr)?;
    }
    if config.is_empty() {
        return ctx.skip("criu_cli::features", "this kernel has no /proc/config.gz to compare with");
    }
    for (name, option) in CONFIGURED {
        let there = ["y", "m"].iter().any(|how| config.lines().any(|l| l == format!("{option}={how}")));
        ensure(here.contains(name) == there, format!("{name}: {option} is {there}"))?;
    }
    Ok(())
}

/// Written and compared; a damaged file, one of another kind, and one of a processor with more.
fn cpuinfo(ctx: &Context) -> Result<()> {
    let dir = directory()?;
    let path = dir.path().join("cpuinfo.img");
    let run = |args: &[&str]| ctx.criu(&["cpuinfo"]).args(args).arg("-D").arg(dir.path()).finish();
    let fails = |args: &[&str], words: &[&str]| -> Result<()> {
        let outcome = run(args)?;
        outcome.expect_code(1)?;
        let word = words.iter().find(|word| !outcome.stderr.contains(**word));
        word.map_or(Ok(()), |word| bail!("it does not say {word}: {}", outcome.stderr))
    };
    fails(&["check"], &["cpuinfo.img", "No such file", "criu cpuinfo dump"])?;
    run(&["dump"])?.expect_code(0)?;
    ensure(names_in(dir.path())? == ["cpuinfo.img"], "something else was made")?;
    for cap in ["--cpu-cap", "--cpu-cap=ins", "--cpu-cap=fpu", "--cpu-cap=none", "--cpu-cap=cpu"] {
        let outcome = run(&["check", cap])?;
        outcome.expect_code(0)?;
        ensure(text(&outcome) == "Looks good.\n", format!("{cap}: {}", text(&outcome)))?;
    }
    let good = std::fs::read(&path)?;
    for at in [0, 9, 16, good.len() - 1] {
        let mut wrong = good.clone();
        wrong[at] ^= 1;
        std::fs::write(&path, &wrong)?;
        fails(&["check"], &["Error (cpuinfo)", "cpuinfo.img"])?;
    }
    std::fs::write(&path, &good[..good.len() - 1])?;
    fails(&["check"], &["Error (cpuinfo)", "damaged"])?;
    // A processor with every feature and every component, which none has.
    let mut more = good.clone();
    let end = good.len() - 8;
    more[end - 48..end].fill(0xff);
    more[16..24].fill(0xff);
    let sum = XxHash3_64::oneshot(&more[..end]);
    more[end..].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&path, &more)?;
    fails(&["check"], &["lacks", "fma4", "register state"])?;
    fails(&["check", "--cpu-cap=ins"], &["lacks", "fma4"])?;
    fails(&["check", "--cpu-cap=fpu"], &["lacks", "register state"])?;
    run(&["check", "--cpu-cap=none"])?.expect_code(0)?;
    run(&["dump"])?.expect_code(0)?;
    run(&["check"])?.expect_code(0)?;
    Ok(())
}
