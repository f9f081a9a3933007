//! The grammar of every command. Nothing here acts: parsing yields a [`Command`] or a [`Refusal`].

use std::{
    ffi::{OsStr, OsString},
    io::Write,
    path::{Path, PathBuf},
};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind as ClapKind};

use ckpt_engine::{External, Identity, Outside, Place};

use crate::{failure::usage_json, signals};

/// What `--help` says about exit codes.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  usage: a wrong option or argument
  3  unsupported: the program holds state that cannot be carried
  4  permission: a privilege or a kernel feature is missing
  5  bad image: damaged, incomplete, or made for another machine
A command that was interrupted cleans up and dies by the signal (128+N in a shell).";

/// What `restart --help` adds.
const RESTART_NOTES: &str = "\
With --copy-status the exit code is the restarted program's own: its exit status, or 128+N if signal N killed it.
While it waits, restart passes SIGINT, SIGTERM, SIGHUP and SIGQUIT on to the program, except a Ctrl-C or Ctrl-\\ \
that the terminal has sent to the program as well because both are in its foreground process group.";

/// `ckpt` and its subcommands.
#[derive(Parser)]
#[command(name = "ckpt", version, about = "Checkpoint and restart of running programs", after_help = EXIT_CODES)]
struct Ckpt {
    #[command(subcommand)]
    command: Command,
}

/// One command with its arguments.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write an image of a running program; it goes on undisturbed
    #[command(after_help = EXIT_CODES)]
    Checkpoint(CheckpointArgs),
    /// Recreate a program from its image; it goes on where it was
    #[command(after_help = EXIT_CODES, after_long_help = format!("{EXIT_CODES}\n\n{RESTART_NOTES}"))]
    Restart(RestartArgs),
    /// Show or verify an image
    #[command(after_help = EXIT_CODES)]
    Info(InfoArgs),
    /// Checkpoint, kill and restart a real program, and prove that it went on where it was
    #[command(after_help = EXIT_CODES)]
    Demo(DemoArgs),
    /// Measure checkpoint and restart, against dd and (with --peer) against criu
    #[command(after_help = EXIT_CODES)]
    Bench(BenchArgs),
    /// Hold memory and wait: what `bench` measures
    #[command(hide = true)]
    BenchTarget(BenchTargetArgs),
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the man page of ckpt, or write those of all commands into a directory
    Man {
        /// Where the pages go
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// Where the log goes and how much of it there is.
#[derive(Args, Clone, Default)]
pub(crate) struct LogArgs {
    /// Write a log to FILE (replacing it)
    #[arg(short = 'l', long = "log", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Log more; without -l to stderr. Twice: debug, three times: every step
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// `checkpoint`.
#[derive(Args)]
pub(crate) struct CheckpointArgs {
    /// Write the image to FILE (complete or not at all); `-` or none: to stdout
    #[arg(short, long, value_name = "FILE", conflicts_with = "output_fd")]
    pub(crate) output: Option<PathBuf>,
    /// Write the image to open descriptor N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) output_fd: Option<i32>,
    /// Replace FILE if it exists
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Kill the program once the image is complete
    #[arg(long, conflicts_with = "stop")]
    pub(crate) kill: bool,
    /// Leave the program stopped (as by SIGSTOP) once the image is complete
    #[arg(long)]
    pub(crate) stop: bool,
    /// PID is the init of a container: refuse whatever it shares with a process outside
    #[arg(short, long)]
    pub(crate) container: bool,
    /// What is outside, whatever it looks like.
    #[arg(
        long,
        value_name = "KIND[ID]:NAME",
        value_parser = external,
        help = "What is outside the program, whatever it looks like, and what restart --inherit-fd calls it: pipe[ID]:NAME, \
                socket[ID]:NAME, tty[ID]:NAME or file[ID]:NAME; ID is a path, or the number that /proc/PID/fd shows"
    )]
    pub(crate) external: Vec<External>,
    /// Refuse an unlinked file that holds more than SIZE (bytes, or with K, M, G), holes not counted; default: no limit
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) ghost_limit: Option<u64>,
    /// Store the contents of open regular files, too; with PATTERN (a glob) of those open or mapped whose path matches it,
    /// or their last name if there is no slash in it
    #[arg(long, value_name = "PATTERN", num_args = 0..=1, require_equals = true)]
    pub(crate) embed_files: Option<Option<OsString>>,
    /// Report as JSON: on stdout, or on stderr when the image goes to stdout
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) log: LogArgs,
    /// The program's process id; it is taken with everything below it
    #[arg(value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) pid: i32,
}

impl CheckpointArgs {
    /// Whether the image goes to stdout.
    pub(crate) fn to_stdout(&self) -> bool {
        match (&self.output, self.output_fd) {
            (Some(path), _) => path == Path::new("-"),
            (None, Some(fd)) => fd == 1,
            (None, None) => true,
        }
    }
}

/// `restart`.
#[derive(Args)]
pub(crate) struct RestartArgs {
    /// Read the image from FILE; `-` or none: from stdin
    #[arg(short, long, value_name = "FILE", conflicts_with = "input_fd")]
    pub(crate) input: Option<PathBuf>,
    /// Read the image from open descriptor N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) input_fd: Option<i32>,
    /// Wait until the program ends (the default)
    #[arg(short, long, overrides_with = "no_wait")]
    pub(crate) wait: bool,
    /// Return as soon as the program runs; print its pid
    #[arg(short = 'W', long, overrides_with = "wait")]
    pub(crate) no_wait: bool,
    /// Exit as the program did: with its exit status, or 128+N if signal N killed it
    #[arg(long, conflicts_with = "no_wait")]
    pub(crate) copy_status: bool,
    /// Say on stderr how the program ended
    #[arg(long, conflicts_with = "no_wait")]
    pub(crate) show_status: bool,
    /// Take new process ids instead of the original ones
    #[arg(long, conflicts_with = "pidns")]
    pub(crate) new_pids: bool,
    /// Restart in a new pid namespace, where the original process ids are free; needs no privilege
    #[arg(short = 'p', long, overrides_with = "no_pidns")]
    pub(crate) pidns: bool,
    /// Restart in this pid namespace (the default)
    #[arg(short = 'P', long, overrides_with = "pidns")]
    pub(crate) no_pidns: bool,
    /// Restart in a new mount namespace; with --pidns, with a /proc of its own
    #[arg(long)]
    pub(crate) mntns: bool,
    /// Restart in DIR as the root of the file system
    #[arg(short, long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// When interrupted while waiting, send the program SIG (name or number) instead of what came
    #[arg(long, value_name = "SIG", value_parser = signals::parse, conflicts_with = "no_wait")]
    pub(crate) signal: Option<i32>,
    /// Prove the whole image before making the first process
    #[arg(long)]
    pub(crate) inspect: bool,
    /// Go on although files changed since the checkpoint
    #[arg(long)]
    pub(crate) force_files: bool,
    /// What was at or below OLD (a file or directory of the image) is at or below NEW; may be repeated
    #[arg(long, value_name = "OLD=NEW", value_parser = renamed)]
    pub(crate) map_file: Vec<(PathBuf, PathBuf)>,
    /// Cut files that the program writes to and that have grown since the checkpoint back to the size they had
    #[arg(long)]
    pub(crate) truncate_files: bool,
    /// Go on although this CPU lacks features that the program may use
    #[arg(long)]
    pub(crate) force_cpu: bool,
    /// Leave the program frozen, before its first instruction, in this freezer cgroup (v1 or v2): a path, or one below
    /// the freezer's mount
    #[arg(short = 'F', long, value_name = "CGROUP")]
    pub(crate) freezer: Option<PathBuf>,
    /// The program's descriptor TASKFD, whose other end was outside, becomes our MYFD (default: the same number); with
    /// MYFD:NAME, all that checkpoint --external called NAME
    #[arg(long, value_name = "TASKFD[=MYFD]|MYFD:NAME", value_parser = inherit)]
    pub(crate) inherit_fd: Vec<(Place, i32)>,
    /// Report as JSON: on stdout with -W, else (stdout being the program's) on stderr
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// `ckptinfo`.
#[derive(Args)]
pub(crate) struct InfoArgs {
    /// Print only the error that ended a failed checkpoint's image; nothing if it did not fail
    #[arg(short = 'e', long, conflicts_with_all = ["tree", "verify", "records"])]
    pub(crate) error: bool,
    /// Print only the process tree
    #[arg(short = 'p', long, conflicts_with_all = ["verify", "records"])]
    pub(crate) tree: bool,
    /// Prove the image whole: every record, every checksum
    #[arg(long, conflicts_with = "records")]
    pub(crate) verify: bool,
    /// List the records
    #[arg(long)]
    pub(crate) records: bool,
    /// Report as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The image; `-` is stdin
    pub(crate) image: PathBuf,
}

/// `ckpt demo`.
#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Seconds the program runs before the checkpoint, and again after the restart
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub(crate) seconds: f64,
    /// Use the shell counter even if python3 is there
    #[arg(long)]
    pub(crate) shell: bool,
}

/// `ckpt bench`.
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Run this criu binary on the same programs
    #[arg(long, value_name = "PATH")]
    pub(crate) peer: Option<PathBuf>,
    /// Fewer runs, no more than 1000 tasks, and 256 MiB instead of 1 GiB
    #[arg(long)]
    pub(crate) quick: bool,
    /// Measure only the programs whose name contains TEXT, such as "threads"
    #[arg(long, value_name = "TEXT")]
    pub(crate) only: Option<String>,
    /// Directory the images go to
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `ckpt bench-target`.
#[derive(Args)]
pub(crate) struct BenchTargetArgs {
    /// Bytes of memory to hold
    #[arg(long)]
    pub(crate) size: usize,
    /// Fill them with random bytes (else with ones)
    #[arg(long)]
    pub(crate) random: bool,
    /// File to create once they are filled
    #[arg(long)]
    pub(crate) ready: PathBuf,
}

/// Parses `KIND[ID]:NAME`.
fn external(text: &str) -> Result<External, String> {
    const LONGEST: usize = 64;
    let parts = || {
        let (kind, rest) = text.split_once('[')?;
        let (id, name) = rest.rsplit_once("]:")?;
        Some((kind, id, name)).filter(|(_, id, name)| !id.is_empty() && !name.is_empty())
    };
    let (kind, id, name) = parts().ok_or_else(|| format!("{text:?} is not of the form KIND[ID]:NAME"))?;
    let kind = match kind {
        "pipe" => Outside::Pipe,
        "socket" => Outside::Socket,
        "tty" => Outside::Tty,
        "file" => Outside::File,
        _ => return Err(format!("{kind:?} is not pipe, socket, tty or file")),
    };
    if name.len() > LONGEST {
        return Err(format!("a name has {LONGEST} bytes at most"));
    }
    let (id, name) = (Identity::Name(id.as_bytes().to_vec()), name.as_bytes().to_vec());
    Ok(External { kind, id, name, word: text.to_owned() })
}

/// Parses `TASKFD[=MYFD]` and `MYFD:NAME`.
fn inherit(text: &str) -> Result<(Place, i32), String> {
    let (task, mine) = text.split_once('=').unwrap_or((text, text));
    let number = |word: &str| match word.parse::<i32>() {
        Ok(n) if n >= 0 => Ok(n),
        _ => Err(format!("{word:?} is not a descriptor number")),
    };
    match text.split_once(':') {
        Some((mine, name)) if !name.is_empty() => Ok((Place::Name(name.as_bytes().to_vec()), number(mine)?)),
        _ => Ok((Place::Number(number(task)?), number(mine)?)),
    }
}

/// Parses a number of bytes: `4096`, `64K`, `1M`, `2G`.
fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (text.get(..at), 1 << 10),
        Some((at, 'm' | 'M')) => (text.get(..at), 1 << 20),
        Some((at, 'g' | 'G')) => (text.get(..at), 1 << 30),
        _ => (Some(text), 1),
    };
    let bytes =
        number.and_then(|number| number.parse::<u64>().ok()).and_then(|number| number.checked_mul(unit));
    bytes.ok_or_else(|| format!("{text:?} is not a number of bytes"))
}

/// Parses `OLD=NEW`: two absolute paths.
fn renamed(text: &str) -> Result<(PathBuf, PathBuf), String> {
    let path = |text: &str| {
        let path = text.trim_end_matches('/');
        path.starts_with('/').then(|| PathBuf::from(path)).ok_or(format!("{text:?} is not an absolute path"))
    };
    let (old, new) = text.split_once('=').ok_or("want OLD=NEW")?;
    Ok((path(old)?, path(new)?))
}

/// What stands instead of a [`Command`]: a usage error, or help that was asked for.
pub(crate) struct Refusal {
    name: &'static str,
    /// The command that would tell more, but for `--help`.
    help: String,
    error: clap::Error,
    json: bool,
}

impl Refusal {
    /// Prints it and returns the exit code.
    pub(crate) fn tell(&self) -> u8 {
        if matches!(self.error.kind(), ClapKind::DisplayHelp | ClapKind::DisplayVersion) {
            // A reader that has seen enough closes the pipe; that is not our failure.
            let _ = self.error.print();
            return 0;
        }
        if self.error.kind() == ClapKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let _ = self.error.print();
            return 2;
        }
        let line = one_line(&self.error.render().to_string());
        let advice = format!("try `{} --help`", self.help);
        if self.json {
            let _ = writeln!(std::io::stdout(), "{}", usage_json(&line, Some(&advice)));
        }
        let _ = writeln!(std::io::stderr(), "{}: {line}; {advice}", self.name);
        2
    }
}

/// The first paragraph of clap's message as one line.
fn one_line(rendered: &str) -> String {
    let first = rendered.split("\n\n").next().unwrap_or_default();
    let joined = first.split_whitespace().collect::<Vec<_>>().join(" ");
    joined.strip_prefix("error: ").unwrap_or(&joined).to_owned()
}

/// The command line `words` (beginning with the name we are called by) as a command.
pub(crate) fn parse(words: Vec<OsString>) -> Result<Command, Refusal> {
    let json = words.iter().any(|word| word == "--json");
    let called = words.first().map(Path::new).and_then(Path::file_name).and_then(OsStr::to_str);
    let sub =
        words.get(1).and_then(|word| word.to_str()).filter(|word| grammar().find_subcommand(word).is_some());
    let long = sub.map(|sub| format!("ckpt {sub}"));
    let (name, parsed) = match called {
        Some("checkpoint") => ("checkpoint", single("checkpoint", words)),
        Some("restart") => ("restart", single("restart", words)),
        Some("ckptinfo") => ("ckptinfo", single("ckptinfo", words)),
        _ => ("ckpt", Ckpt::try_parse_from(&words).map(|ckpt| ckpt.command)),
    };
    let help = long.filter(|_| name == "ckpt").unwrap_or_else(|| name.to_owned());
    parsed.map_err(|error| Refusal { name, help, error, json })
}

/// The words of the front end `criu`, its name the first, if it is what was called: by that name, or as `ckpt criu`.
pub(crate) fn criu(words: &[OsString]) -> Option<Vec<OsString>> {
    let called = words.first().map(Path::new).and_then(Path::file_name).and_then(OsStr::to_str);
    match called {
        Some("criu") => Some(words.to_vec()),
        Some("checkpoint" | "restart" | "ckptinfo") => None,
        _ => words.get(1..).filter(|rest| rest.first().is_some_and(|word| word == "criu")).map(<[_]>::to_vec),
    }
}

/// Parses a command called by its own name.
fn single(name: &'static str, words: Vec<OsString>) -> Result<Command, clap::Error> {
    let mut command = command_of(name);
    let matches = command.try_get_matches_from_mut(words)?;
    let parsed = match name {
        "checkpoint" => CheckpointArgs::from_arg_matches(&matches).map(Command::Checkpoint),
        "restart" => RestartArgs::from_arg_matches(&matches).map(Command::Restart),
        _ => InfoArgs::from_arg_matches(&matches).map(Command::Info),
    };
    parsed.map_err(|error| error.format(&mut command))
}

/// The grammar of `checkpoint`, `restart` or `ckptinfo` standing alone.
pub(crate) fn command_of(name: &'static str) -> clap::Command {
    let sub = if name == "ckptinfo" { "info" } else { name };
    let all = grammar();
    let found = all.find_subcommand(sub).cloned().unwrap_or(all);
    found.name(name).bin_name(name).display_name(name).version(env!("CARGO_PKG_VERSION"))
}

/// The whole grammar.
pub(crate) fn grammar() -> clap::Command {
    Ckpt::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_grammar_is_consistent() {
        grammar().debug_assert();
        for name in ["checkpoint", "restart", "ckptinfo"] {
            command_of(name).debug_assert();
        }
    }

    #[test]
    fn a_link_is_its_subcommand() {
        for line in ["/usr/bin/checkpoint -o x 7", "ckpt checkpoint -o x 7"] {
            let Ok(Command::Checkpoint(args)) = parse(words(line)) else { panic!("{line}") };
            assert_eq!((args.pid, args.to_stdout()), (7, false));
        }
        assert!(matches!(parse(words("./ckptinfo -p x")), Ok(Command::Info(_))));
        assert!(matches!(parse(words("ckpt info --json -")), Ok(Command::Info(_))));
    }

    #[test]
    fn the_last_of_wait_and_no_wait_wins() {
        let Ok(Command::Restart(args)) = parse(words("restart -W -w -W")) else { panic!() };
        assert!(args.no_wait && !args.wait);
        let Ok(Command::Restart(args)) = parse(words("restart -W -w --copy-status")) else { panic!() };
        assert!(!args.no_wait);
    }

    #[test]
    fn the_last_of_pidns_and_no_pidns_wins() {
        let Ok(Command::Restart(args)) = parse(words("restart -p -P")) else { panic!() };
        assert!(!args.pidns);
        let Ok(Command::Restart(args)) = parse(words("restart -P -p --signal TERM")) else { panic!() };
        assert_eq!((args.pidns, args.signal), (true, Some(15)));
    }

    #[test]
    fn inherit_fd_takes_one_number_or_two() {
        assert_eq!(inherit("5"), Ok((Place::Number(5), 5)));
        assert_eq!(inherit("5=9"), Ok((Place::Number(5), 9)));
        assert_eq!(inherit("5:log"), Ok((Place::Name(b"log".to_vec()), 5)));
        for bad in ["", "x", "5=", "=5", "-1", "5=-1", "5=6=7", "5:", ":log", "x:log"] {
            assert!(inherit(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn external_takes_kind_id_and_name() {
        let (id, name) = (Identity::Name(b"/a[1]".to_vec()), b"log".to_vec());
        assert_eq!(
            external("file[/a[1]]:log"),
            Ok(External { kind: Outside::File, id, name, word: "file[/a[1]]:log".to_owned() })
        );
        for bad in ["", "pipe", "pipe[1]", "pipe[1]:", "pipe[]:x", "pope[1]:x", "[1]:x", "pipe:x"] {
            assert!(external(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn help_is_that_of_the_subcommand() {
        for (line, help) in [
            ("ckpt restart --bogus", "ckpt restart"),
            ("ckpt checkpoint", "ckpt checkpoint"),
            ("/usr/bin/restart --bogus", "restart"),
            ("ckptinfo --bogus", "ckptinfo"),
            ("ckpt bogus", "ckpt"),
            ("ckpt --bogus restart", "ckpt"),
        ] {
            let Err(refusal) = parse(words(line)) else { panic!("{line}") };
            assert_eq!(refusal.help, help, "{line}");
        }
    }

    #[test]
    fn sizes_and_names() {
        assert_eq!([size("0"), size("7k"), size("3G")], [Ok(0), Ok(7 << 10), Ok(3 << 30)]);
        for bad in ["", "k", "-1", "1T", "99999999999999999999", "1.5G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(renamed("/a/=/b"), Ok(("/a".into(), "/b".into())));
        for bad in ["/a", "a=/b", "/a=b", "=", "/=/b"] {
            assert!(renamed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn wrong_usage_is_one_line() {
        for line in [
            "checkpoint",
            "checkpoint 0",
            "checkpoint --kill --stop 5",
            "restart -i a --input-fd 3",
            "ckpt x",
        ] {
            let Err(refusal) = parse(words(line)) else { panic!("{line}") };
            let text = one_line(&refusal.error.render().to_string());
            assert!(!text.contains('\n') && !text.is_empty() && !text.starts_with("error"), "{line}: {text}");
        }
    }
}
