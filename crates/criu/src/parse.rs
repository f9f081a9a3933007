//! The command line: words become an action and options. Nothing is acted on here but configuration files, which
//! are read.
//!
//! The rules are those of getopt_long: options before, between and after the other words, `--` ends them, long names
//! by unique prefixes, short ones in clusters, values of the kind that may be missing only in the same word.

use crate::{
    config::Places,
    failure::{Failure, Outcome},
    options::{Action, Options},
    table::{self, Arg, Opt, Status},
    values,
};
use lexopt::Arg as Word;
use std::{
    ffi::{OsStr, OsString},
    path::Path,
};

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The help.
    Help,
    /// The version.
    Version,
    /// Nothing: there was no action.
    Nothing,
    /// An action.
    Act(Action, Box<Options>),
}

/// An option as it was given.
struct Given {
    opt: &'static Opt,
    off: bool,
    value: Option<OsString>,
}

/// Parses `words`, those after the name of the program; `places` says which configuration files there are.
///
/// # Errors
/// A line that says which word is wrong.
pub fn parse(words: &[OsString], places: &Places) -> Outcome<Request> {
    let (given, rest) = split(words).map_err(Failure::Options)?;
    let asked = |name: &str| given.iter().rev().find(|given| given.opt.long == name);
    if asked("help").is_some() {
        return Ok(Request::Help);
    }
    if asked("version").is_some() {
        return Ok(Request::Version);
    }
    let Some(action) = action(&rest).map_err(Failure::Options)? else { return Ok(Request::Nothing) };
    let mut options = Options::default();
    let config = asked("config").and_then(|given| given.value.as_deref()).map(Path::new);
    places.apply(asked("no-default-config").is_none(), config, &mut options)?;
    for given in given.iter().filter(|given| !matches!(given.opt.status, Status::Parser)) {
        given.opt.apply(&mut options, given.off, given.value.as_deref()).map_err(Failure::Options)?;
    }
    if matches!(action, Action::Dump | Action::PreDump) && options.tree.is_none() {
        return Err(Failure::options(format!("{}: which process? give --tree PID", action.word())));
    }
    Ok(Request::Act(action, Box::new(options)))
}

/// Tells options from other words.
fn split(words: &[OsString]) -> Result<(Vec<Given>, Vec<OsString>), String> {
    let mut parser = lexopt::Parser::from_args(words);
    let (mut given, mut rest) = (Vec::new(), Vec::new());
    while let Some(word) = parser.next().map_err(|error| error.to_string())? {
        let (opt, off) = match word {
            Word::Value(word) => {
                rest.push(word);
                continue;
            }
            Word::Long(name) => table::find(name)?,
            Word::Short(name) => (table::find_short(name)?, false),
        };
        let value = match opt.arg {
            Arg::None => None,
            Arg::Required(what) => {
                Some(parser.value().map_err(|_| format!("--{}: needs a value, {what}", opt.long))?)
            }
            Arg::Optional(_) => parser.optional_value(),
        };
        // With no value expected, one after = is left, and lexopt's next() says so; after a short name it is
        // the next of a cluster.
        given.push(Given { opt, off, value });
    }
    Ok((given, rest))
}

/// The action that the words which are no options name.
fn action(words: &[OsString]) -> Result<Option<Action>, String> {
    let mut words = words.iter().map(OsString::as_os_str);
    let Some(word) = words.next() else { return Ok(None) };
    let shown = word.as_encoded_bytes().escape_ascii();
    let action = match word.to_str().unwrap_or_default() {
        "dump" => Action::Dump,
        "pre-dump" => Action::PreDump,
        "restore" => Action::Restore,
        "check" => Action::Check,
        "page-server" => Action::PageServer,
        "lazy-pages" => Action::LazyPages,
        "service" => Action::Service,
        "dedup" => Action::Dedup,
        "swrk" => {
            let fd = words.next().ok_or("swrk: which descriptor? give its number")?;
            Action::Swrk(values::number(fd).map_err(|why| format!("swrk: {why}"))?)
        }
        "cpuinfo" => match words.next().and_then(OsStr::to_str) {
            Some("dump") => Action::CpuinfoDump,
            Some("check") => Action::CpuinfoCheck,
            _ => return Err("cpuinfo: want dump or check after it".to_owned()),
        },
        _ => return Err(format!("{shown}: unknown action; criu --help lists them")),
    };
    match words.next() {
        None => Ok(Some(action)),
        Some(extra) => {
            Err(format!("{}: unexpected after {}", extra.as_encoded_bytes().escape_ascii(), action.word()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<Request, String> {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        parse(&words, &Places::default()).map_err(|failure| failure.to_string())
    }

    fn options(line: &str) -> Options {
        match asked(line) {
            Ok(Request::Act(_, options)) => *options,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn options_are_anywhere_and_long_names_may_be_short() {
        for line in [
            "dump -t 7 -D /d -R",
            "-t 7 dump --images-dir=/d --leave-running",
            "--tree=7 -D/d dump --leave-r",
            "-Rt7 --images-dir /d -- dump",
        ] {
            let options = options(line);
            assert_eq!((options.tree, options.leave_running), (Some(7), true), "{line}");
            assert_eq!(options.images_dir, Path::new("/d"));
        }
    }

    #[test]
    fn levels_as_engines_write_them() {
        let level = |line: &str| options(&format!("check {line}")).verbosity;
        assert_eq!(level(""), 2);
        assert_eq!(level("-v"), 3);
        assert_eq!(level("-v -v"), 4);
        assert_eq!(level("-vv"), 4);
        assert_eq!(level("-vvvvvv"), 4);
        assert_eq!(level("-v4"), 4);
        assert_eq!(level("-v0"), 0);
        assert_eq!(level("--verbosity=1"), 1);
        assert_eq!(level("--verb -v1 -v"), 2);
        assert!(
            asked("check -v 4").unwrap_err().starts_with("4: unexpected"),
            "a word of its own is no value"
        );
    }

    #[test]
    fn actions() {
        let action = |line: &str| match asked(line) {
            Ok(Request::Act(action, _)) => Ok(action),
            Ok(other) => panic!("{other:?}"),
            Err(why) => Err(why),
        };
        assert_eq!(action("cpuinfo check"), Ok(Action::CpuinfoCheck));
        assert_eq!(action("swrk 3"), Ok(Action::Swrk(3)));
        assert_eq!(action("restore"), Ok(Action::Restore));
        for (line, words) in [
            ("exec", "exec: unknown action"),
            ("swrk", "which descriptor"),
            ("swrk x", "want a number"),
            ("cpuinfo", "dump or check"),
            ("cpuinfo odd", "dump or check"),
            ("dump", "--tree"),
            ("dump 7", "7: unexpected"),
            ("check restore", "restore: unexpected"),
        ] {
            let why = action(line).unwrap_err();
            assert!(why.contains(words), "{line}: {why}");
        }
        assert_eq!(asked(""), Ok(Request::Nothing));
        assert_eq!(asked("dump --help"), Ok(Request::Help));
        assert_eq!(asked("-V"), Ok(Request::Version));
    }

    #[test]
    fn wrong_options_are_errors_that_name_them() {
        for (line, words) in [
            ("check --nonsense", "--nonsense: unknown"),
            ("check -z", "-z: unknown"),
            ("check --leave", "--leave: ambiguous"),
            ("check --tree", "--tree: needs a value, PID"),
            ("check -t", "--tree: needs a value"),
            ("check -t x", "--tree: want a number"),
            ("check --leave-running=1", "leave-running"),
            ("dump -t 1 --lazy-pages", "--lazy-pages: not supported yet: "),
            ("dump -t 1 -L /x", "--libdir: not supported: "),
            ("dump -t 1 --prev-images-dir ..", "--prev-images-dir: not supported yet: "),
        ] {
            let why = asked(line).unwrap_err();
            assert!(why.contains(words), "{line}: {why}");
        }
    }

    #[test]
    fn no_takes_back_and_lists_grow() {
        assert!(!options("check -R --no-leave-running").leave_running);
        assert!(
            !options("check --no-lazy-pages").leave_running,
            "to turn off what is not there asks for nothing"
        );
        assert_eq!(options("check --feature a --feature b").features, ["a", "b"]);
        assert_eq!(options("check --action-script a --action-script b").action_scripts.len(), 2);
    }

    #[test]
    fn the_command_line_counts_more_than_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "timeout 5\nfeature a\nleave-running\n").unwrap();
        let options = options(&format!("check --config {} --timeout 6 --feature b", path.display()));
        assert_eq!((options.timeout.as_secs(), options.leave_running), (6, true));
        assert_eq!(options.features, ["a", "b"]);
    }
}
