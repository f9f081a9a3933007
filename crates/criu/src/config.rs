//! Configuration files: options as lines.
//!
//! A line is `option`, `option value` or `option=value`, the option by its long name without dashes. What follows a
//! `#` that begins a word is a comment. A value in quotes (`"` or `'`) may hold spaces and `#`; between double quotes a backslash
//! takes the meaning from `"` and itself. A wrong line is an error that names file and line.
//!
//! Files, in order: /etc/criu/default.conf, ~/.criu/default.conf, `$CRIU_CONFIG_FILE`, the `--config` file. The
//! first two need not be there; `--no-default-config` leaves out the first three.

use crate::{
    failure::{Failure, Outcome},
    options::Options,
    table,
};
use std::{
    ffi::OsString,
    io::ErrorKind,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// Where the files are that nobody names on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The machine's.
    pub system: PathBuf,
    /// The user's home directory.
    pub home: Option<PathBuf>,
    /// That of `$CRIU_CONFIG_FILE`.
    pub named: Option<PathBuf>,
}

impl Places {
    /// As the environment has them.
    pub fn of_environment() -> Places {
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Places {
            system: PathBuf::from("/etc/criu/default.conf"),
            home: path("HOME"),
            named: path("CRIU_CONFIG_FILE"),
        }
    }

    /// Sets what the files say, these first and `given` (that of `--config`) last.
    ///
    /// # Errors
    /// One cannot be read, or has a wrong line.
    pub fn apply(&self, defaults: bool, given: Option<&Path>, options: &mut Options) -> Outcome {
        if defaults {
            let home = self.home.as_ref().map(|home| home.join(".criu/default.conf"));
            for path in [Some(self.system.clone()), home].into_iter().flatten() {
                match std::fs::read(&path) {
                    Err(cause) if matches!(cause.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                    read => apply(&path, read, options)?,
                }
            }
        }
        let named = self.named.as_deref().filter(|_| defaults);
        [named, given].into_iter().flatten().try_for_each(|path| apply(path, std::fs::read(path), options))
    }
}

fn apply(path: &Path, read: std::io::Result<Vec<u8>>, options: &mut Options) -> Outcome {
    let text =
        read.map_err(|cause| Failure::os("config", format!("configuration file {}", path.display()), cause))?;
    for (line, number) in text.split(|byte| *byte == b'\n').zip(1..) {
        set(line, options).map_err(|why| Failure::options(format!("{}:{number}: {why}", path.display())))?;
    }
    Ok(())
}

/// Sets what `line` says.
fn set(line: &[u8], options: &mut Options) -> Result<(), String> {
    let Some((name, value)) = parse(line)? else { return Ok(()) };
    let name = String::from_utf8(name).map_err(|_| "the option is not UTF-8")?;
    let (opt, off) = table::find(&name)?;
    opt.apply(options, off, value.as_deref())
}

/// The option of a line, and its value.
type Line = (Vec<u8>, Option<OsString>);

/// Option and value of `line`; nothing if it is empty or a comment.
fn parse(line: &[u8]) -> Result<Option<Line>, String> {
    let line = line.trim_ascii();
    if line.is_empty() || line.starts_with(b"#") {
        return Ok(None);
    }
    let end = line.iter().position(|byte| byte.is_ascii_whitespace() || *byte == b'=').unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let rest = rest.trim_ascii();
    let (given, rest) = rest.strip_prefix(b"=").map_or((false, rest), |rest| (true, rest.trim_ascii()));
    let value = if rest.is_empty() || rest.starts_with(b"#") { None } else { Some(word(rest)?) };
    match value {
        None if given => Err(format!("{}: no value after =", name.escape_ascii())),
        value => Ok(Some((name.to_vec(), value.map(OsString::from_vec)))),
    }
}

/// The one word of `text`, without quotes; a comment may follow.
fn word(text: &[u8]) -> Result<Vec<u8>, String> {
    let (quote, body) = match text.split_first() {
        Some((quote @ (b'"' | b'\''), body)) => (Some(*quote), body),
        _ => (None, text),
    };
    let mut value = Vec::new();
    let mut bytes = body.iter().copied();
    let closed = loop {
        match (bytes.next(), quote) {
            (None, _) => break quote.is_none(),
            (Some(byte), None) if byte.is_ascii_whitespace() => break true,
            (Some(byte), Some(quote)) if byte == quote => break true,
            (Some(b'\\'), Some(b'"')) => match bytes.next() {
                Some(byte @ (b'"' | b'\\')) => value.push(byte),
                Some(byte) => value.extend([b'\\', byte]),
                None => break false,
            },
            (Some(byte), _) => value.push(byte),
        }
    };
    if !closed {
        return Err("a quote without an end".to_owned());
    }
    let rest: Vec<u8> = bytes.collect();
    let rest = rest.trim_ascii();
    if rest.is_empty() || rest.starts_with(b"#") {
        return Ok(value);
    }
    Err(format!("something after the value: '{}'; quote a value that has spaces", rest.escape_ascii()))
}

/// What `line` says, for a test.
#[cfg(test)]
fn said(line: &str) -> Result<Option<(String, Option<String>)>, String> {
    let text = |value: OsString| value.into_string().unwrap();
    Ok(parse(line.as_bytes())?.map(|(name, value)| (String::from_utf8(name).unwrap(), value.map(text))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let pair = |name: &str, value: Option<&str>| Ok(Some((name.to_owned(), value.map(str::to_owned))));
        for nothing in ["", "   ", "# a", "\t# b = c"] {
            assert_eq!(said(nothing), Ok(None));
        }
        assert_eq!(said("leave-running"), pair("leave-running", None));
        assert_eq!(said("leave-running # yes"), pair("leave-running", None));
        assert_eq!(said("  log-file a.log "), pair("log-file", Some("a.log")));
        assert_eq!(said("log-file=a.log"), pair("log-file", Some("a.log")));
        assert_eq!(said("log-file = a.log#1 # c"), pair("log-file", Some("a.log#1")));
        assert_eq!(said("log-file \"a b # c\" # d"), pair("log-file", Some("a b # c")));
        assert_eq!(said(r#"log-file "a \"b\" \c \\""#), pair("log-file", Some(r#"a "b" \c \"#)));
        assert_eq!(said(r"log-file='a \'"), pair("log-file", Some(r"a \")));
        assert_eq!(said("log-file ''"), pair("log-file", Some("")));
        for wrong in ["log-file \"a", "log-file a b", "log-file=", "log-file = # c", "log-file 'a'b"] {
            assert!(said(wrong).is_err(), "{wrong}");
        }
    }

    fn places(dir: &Path, files: &[(&str, &str)]) -> Places {
        for (name, text) in files {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Places { system: dir.join("system"), home: Some(dir.join("home")), named: Some(dir.join("named")) }
    }

    #[test]
    fn what_comes_later_counts() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            ("system", "log-file a\ntimeout 1\nleave-running\nghost-limit 1\n"),
            ("home/.criu/default.conf", "log-file b\ntimeout 2\nno-leave-running"),
            ("named", "log-file c"),
            ("given", "log-file d\r\nverbosity=4"),
        ];
        let places = places(dir.path(), &files);
        let mut options = Options::default();
        places.apply(true, Some(&dir.path().join("given")), &mut options).unwrap();
        assert_eq!(options.log_file, Some("d".into()));
        assert_eq!((options.timeout.as_secs(), options.ghost_limit, options.verbosity), (2, 1, 4));
        assert!(!options.leave_running);
        let mut options = Options::default();
        places.apply(false, Some(&dir.path().join("given")), &mut options).unwrap();
        assert_eq!(options.timeout.as_secs(), 10);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::default();
        for (text, words) in [
            ("\n# x\nnonsense", ":3: --nonsense: unknown"),
            ("tree", ":1: --tree: needs a value"),
            ("tree x", ":1: --tree: want a number"),
            ("leave-running 1", ":1: --leave-running: takes no value"),
            ("lazy-pages", ":1: --lazy-pages: not supported yet"),
            ("config x", ":1: --config: is for the command line"),
            ("leave", ":1: --leave: ambiguous"),
            ("log-file \"a", ":1: a quote"),
        ] {
            let path = dir.path().join("given");
            std::fs::write(&path, text).unwrap();
            let failure = places.apply(false, Some(&path), &mut Options::default()).unwrap_err().to_string();
            assert!(failure.contains("given") && failure.contains(words), "{failure}");
        }
        let missing = places.apply(false, Some(&dir.path().join("no")), &mut Options::default());
        assert!(missing.unwrap_err().to_string().contains("No such file"));
    }
}
