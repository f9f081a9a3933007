//! The one table of options: parsing, configuration files, `--help`, docs/criu.md and the refusal of what
//! is not supported all come from it.
//!
//! An option of CRIU that has no entry in `table/list.rs` does not exist. One that is not supported is there with the
//! reason; to ask for it is an error that gives it, in whatever place it is asked for. An option that the action at
//! hand has no use for is no error: CRIU's callers and shared configuration files give them.

mod list;

use crate::options::Options;
use std::{ffi::OsStr, fmt::Write as _};

pub(crate) use list::TABLE;

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arg {
    /// Nothing: it is on, or with `--no-` off.
    None,
    /// A value, `--opt VALUE` or `--opt=VALUE`.
    Required(&'static str),
    /// A value or none, `--opt=VALUE`.
    Optional(&'static str),
}

/// What is done about an option.
#[derive(Clone, Copy)]
pub(crate) enum Status {
    /// Turned on or off.
    Flag(fn(&mut Options, bool)),
    /// Set to a value; an error says what is wanted.
    Value(fn(&mut Options, &OsStr) -> Result<(), String>),
    /// Set to a value or to what stands for none.
    Optional(fn(&mut Options, Option<&OsStr>) -> Result<(), String>),
    /// Read by the parser itself: it has no meaning in a configuration file.
    Parser,
    /// Refused, with the reason: it makes no sense here.
    Refused(&'static str),
    /// Refused, with the reason: it has not been done yet.
    Later(&'static str),
}

/// Heading of the help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the titles say it")]
pub(crate) enum Group {
    General,
    Tasks,
    Files,
    Outside,
    Network,
    Cgroups,
    Memory,
    Check,
}

impl Group {
    const ALL: [(Group, &'static str); 8] = [
        (Group::General, "In general"),
        (Group::Tasks, "Tasks"),
        (Group::Files, "Files, locks and mounts"),
        (Group::Outside, "What is outside"),
        (Group::Network, "Sockets and networks"),
        (Group::Cgroups, "Cgroups and namespaces"),
        (Group::Memory, "Memory, increments and other machines"),
        (Group::Check, "Checks"),
    ];
}

/// An option.
#[derive(Clone, Copy)]
pub(crate) struct Opt {
    /// Long name, without dashes.
    pub(crate) long: &'static str,
    /// Short name.
    pub(crate) short: Option<char>,
    /// What it takes.
    pub(crate) arg: Arg,
    /// Which actions have a use for it; all if none is named.
    pub(crate) on: &'static str,
    /// Where the help has it.
    pub(crate) group: Group,
    /// What it means.
    pub(crate) help: &'static str,
    /// What is done about it.
    pub(crate) status: Status,
}

impl Opt {
    /// Whether `--no-NAME` exists.
    pub(crate) fn negates(&self) -> bool {
        self.arg == Arg::None && !matches!(self.status, Status::Parser)
    }

    /// Why it is refused, if it is.
    pub(crate) fn refusal(&self) -> Option<String> {
        match self.status {
            Status::Refused(why) => Some(format!("--{}: not supported: {why}", self.long)),
            Status::Later(why) => Some(format!("--{}: not supported yet: {why}", self.long)),
            _ => None,
        }
    }

    /// Does what it says to `options`. `off` is that of `--no-NAME`.
    ///
    /// # Errors
    /// It is refused, or its value is wrong: a line that names it.
    pub(crate) fn apply(
        &self,
        options: &mut Options,
        off: bool,
        value: Option<&OsStr>,
    ) -> Result<(), String> {
        let named = |why: String| format!("--{}: {why}", self.long);
        match (self.arg, value) {
            (Arg::None, Some(_)) => return Err(named("takes no value".to_owned())),
            (Arg::Required(what), None) => return Err(named(format!("needs a value, {what}"))),
            _ => {}
        }
        match (self.status, value) {
            // To turn off what is not there asks for nothing.
            (Status::Refused(_) | Status::Later(_), _) if off => Ok(()),
            (Status::Flag(set), _) => {
                set(options, !off);
                Ok(())
            }
            (Status::Value(set), Some(value)) => set(options, value).map_err(named),
            (Status::Optional(set), value) => set(options, value).map_err(named),
            (Status::Parser, _) => Err(named("is for the command line only".to_owned())),
            _ => Err(self.refusal().unwrap_or_else(|| named("needs a value".to_owned()))),
        }
    }

    /// `-o, --log-file FILE`.
    fn usage(&self) -> String {
        let mut usage = self.short.map_or_else(|| "    ".to_owned(), |short| format!("-{short}, "));
        let no = if self.negates() { "[no-]" } else { "" };
        let _ = write!(usage, "--{no}{}", self.long);
        match self.arg {
            Arg::None => {}
            Arg::Required(what) => usage.extend([" ", what]),
            Arg::Optional(what) => usage.extend(["[=", what, "]"]),
        }
        usage
    }

    /// What becomes of it.
    #[cfg(test)]
    fn state(&self) -> String {
        match self.status {
            Status::Refused(why) => format!("refused: {why}"),
            Status::Later(why) => format!("not yet: {why}"),
            _ => limits(self.long).map_or("works".to_owned(), |limits| format!("works: {limits}")),
        }
    }
}

/// How far an option works that does so in part, or has nothing to do.
#[cfg(test)]
fn limits(long: &str) -> Option<&'static str> {
    Some(match long {
        "timeout" => "bounds the stopping of the tree, of a restore the making of its processes",
        "link-remap" => "nothing to do, unlinked files are in the image",
        "evasive-devices" => "no other path than the one it had is looked for",
        "external" => {
            "file, tty, unix, pipe; net and pid of one's own namespace; mnt has nothing to do; others are refused"
        }
        "ext-mount-map" | "enable-external-sharing" | "enable-external-masters" => {
            "nothing to do, tasks with mounts of their own are refused"
        }
        "tcp-established" => "accepted, but a dump of an established connection is refused",
        "tcp-close" | "skip-in-flight" | "network-lock" => {
            "nothing to do, no connection of the network is carried yet"
        }
        "empty-ns" => "refused by the action: network namespaces are not carried yet",
        "join-ns" => "refused by the action: namespaces are not carried yet",
        "manage-cgroups" => "ignore; other modes are refused by the action: cgroups are not managed yet",
        "veth-pair" => "refused by restore: network namespaces are not carried yet",
        "experimental" => "nothing to do, nothing is experimental",
        "cgroup-root" => "refused by restore: cgroups are not managed yet",
        _ => return None,
    })
}

/// The option called `name`, whole or by a prefix that no other has, and whether it is its `--no-` form.
///
/// # Errors
/// There is none, or there are several: a line that says so.
pub(crate) fn find(name: &str) -> Result<(&'static Opt, bool), String> {
    let negated = name.strip_prefix("no-");
    let exact = |name: &str| TABLE.iter().find(|opt| opt.long == name);
    if let Some(opt) = exact(name) {
        return Ok((opt, false));
    }
    if let Some(opt) = negated.and_then(exact).filter(|opt| opt.negates()) {
        return Ok((opt, true));
    }
    let mut found = Vec::new();
    for opt in TABLE {
        if opt.long.starts_with(name) {
            found.push((opt, false));
        }
        if opt.negates() && format!("no-{}", opt.long).starts_with(name) {
            found.push((opt, true));
        }
    }
    match *found.as_slice() {
        [one] => Ok(one),
        [] => Err(format!("--{name}: unknown option; criu --help lists them")),
        ref many => {
            let names =
                many.iter().map(|(opt, off)| format!("--{}{}", if *off { "no-" } else { "" }, opt.long));
            Err(format!("--{name}: ambiguous: {}", names.collect::<Vec<_>>().join(", ")))
        }
    }
}

/// The option whose short name is `short`.
///
/// # Errors
/// There is none: a line that says so.
pub(crate) fn find_short(short: char) -> Result<&'static Opt, String> {
    let found = TABLE.iter().find(|opt| opt.short == Some(short));
    found.ok_or_else(|| format!("-{short}: unknown option; criu --help lists them"))
}

/// The actions, with what they do.
const USAGE: &str = "\
criu: checkpoint and restore of running programs, as CRIU's command line has it

  criu dump -t PID [OPTION]...       write an image of the tree below PID, then kill it
  criu restore [OPTION]...           make the tree of an image
  criu check [OPTION]...             say whether the kernel has what is needed, or features by name
  criu cpuinfo dump|check            write what this processor has; compare it with what was written
  criu pre-dump|page-server|lazy-pages|service|swrk FD|dedup
                                     not supported yet

Options may come before and after the action, may be shortened as long as they stay unambiguous, and may be in
/etc/criu/default.conf, ~/.criu/default.conf, $CRIU_CONFIG_FILE and the --config file; what comes later counts.
Exit code: 0 done, 1 failed.
";

/// `--help`.
pub(crate) fn help() -> String {
    let mut text = USAGE.to_owned();
    for (group, title) in Group::ALL {
        let mut opts = TABLE.iter().filter(|opt| opt.group == group && opt.refusal().is_none()).peekable();
        if opts.peek().is_some() {
            let _ = write!(text, "\n{title}:\n");
        }
        for opt in opts {
            let usage = opt.usage();
            let gap = if usage.len() < 34 { "" } else { "\n                                    " };
            let on = if opt.on.is_empty() { String::new() } else { format!(" ({})", opt.on) };
            let _ = writeln!(text, "  {usage:34}{gap}{}{on}", opt.help);
        }
    }
    let refused: Vec<_> = TABLE.iter().filter(|opt| opt.refusal().is_some()).map(|opt| opt.long).collect();
    let _ = write!(text, "\nKnown, and refused with the reason:\n");
    let mut width = usize::MAX;
    for name in refused {
        width = width.saturating_add(name.len() + 3);
        if width > 100 {
            text.push_str(if width == usize::MAX { "  " } else { "\n  " });
            width = name.len() + 3;
        }
        let _ = write!(text, "--{name} ");
    }
    text.push('\n');
    text
}

/// The table of docs/criu.md.
#[cfg(test)]
pub(crate) fn markdown() -> String {
    let mut text = "| option | actions | meaning | state |\n|---|---|---|---|\n".to_owned();
    for (group, _) in Group::ALL {
        for opt in TABLE.iter().filter(|opt| opt.group == group) {
            let on = if opt.on.is_empty() { "all" } else { opt.on };
            let cells = [opt.usage().trim().to_owned(), opt.state()].map(|cell| cell.replace('|', "\\|"));
            let [usage, state] = cells;
            let _ = writeln!(text, "| `{usage}` | {on} | {} | {state} |", opt.help);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The option names of the contract; none may be unknown.
    const NAMES: &str = "tree images-dir work-dir log-file verbosity pidfile root leave-running leave-stopped \
        restore-detached restore-sibling shell-job tcp-established tcp-close skip-in-flight ext-unix-sk file-locks \
        link-remap ghost-limit external inherit-fd ext-mount-map enable-external-sharing enable-external-masters \
        manage-cgroups cgroup-root freeze-cgroup empty-ns join-ns evasive-devices action-script timeout network-lock \
        config no-default-config feature status-fd track-mem prev-images-dir pre-dump-mode auto-dedup page-server \
        address port ps-socket lazy-pages tls-cacert tls-cacrl tls-cert tls-key tls tls-no-cn-verify stream cpu-cap \
        lsm-profile lsm-mount-context skip-file-rwx-check file-validation unprivileged weak-sysctls mntns-compat-mode \
        enable-fs skip-mnt force-irmap irmap-scan-path cgroup-props cgroup-props-file cgroup-dump-controller \
        cgroup-yard exec-cmd display-stats ghost-fiemap close help version all extra experimental";

    #[test]
    fn every_option_of_the_contract_is_known_and_names_are_unique() {
        for name in NAMES.split_whitespace() {
            assert!(TABLE.iter().any(|opt| opt.long == name), "{name}");
        }
        let mut longs: Vec<_> = TABLE.iter().map(|opt| opt.long).collect();
        let mut shorts: Vec<_> = TABLE.iter().filter_map(|opt| opt.short).collect();
        longs.sort_unstable();
        shorts.sort_unstable();
        assert!(longs.is_sorted_by(|a, b| a < b) && shorts.is_sorted_by(|a, b| a < b));
        let contract: Vec<char> = "DJLMRSVWdhjlorstvx".chars().collect();
        assert_eq!(shorts, contract);
    }

    #[test]
    fn kinds_of_arguments_and_of_setters_agree() {
        for opt in TABLE {
            let agree = match opt.status {
                Status::Flag(_) => opt.arg == Arg::None,
                Status::Value(_) => matches!(opt.arg, Arg::Required(_)),
                Status::Optional(_) => matches!(opt.arg, Arg::Optional(_)),
                _ => true,
            };
            assert!(agree && !opt.help.is_empty(), "{}", opt.long);
        }
    }

    #[test]
    fn prefixes_find_one() {
        let long = |name| find(name).map(|(opt, off)| (opt.long, off));
        assert_eq!(long("leave-r"), Ok(("leave-running", false)));
        assert_eq!(long("no-leave-r"), Ok(("leave-running", true)));
        assert_eq!(long("tls"), Ok(("tls", false)), "whole before a prefix");
        assert_eq!(long("no-default-config"), Ok(("no-default-config", false)));
        assert!(long("leave").unwrap_err().contains("--leave-running, --leave-stopped"));
        assert!(long("nonsense").unwrap_err().contains("unknown"));
        assert!(long("no-tree").unwrap_err().contains("unknown"), "no boolean");
    }

    #[test]
    fn what_is_refused_gives_its_reason_and_is_never_ignored() {
        for opt in TABLE {
            let Some(refusal) = opt.refusal() else { continue };
            let value = (opt.arg != Arg::None).then_some(OsStr::new("1"));
            let mut options = Options::default();
            assert_eq!(opt.apply(&mut options, false, value), Err(refusal.clone()));
            assert!(refusal.len() > opt.long.len() + 30, "{refusal}");
        }
    }

    /// `CKPT_BLESS=1 cargo test -p ckpt-criu` writes the table into the document.
    #[test]
    fn the_document_has_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/criu.md");
        let text = std::fs::read_to_string(path).unwrap();
        let (before, rest) = text.split_once("<!-- options -->\n").unwrap();
        let (table, after) = rest.split_once("<!-- end of options -->").unwrap();
        if std::env::var_os("CKPT_BLESS").is_some() {
            let new = format!("{before}<!-- options -->\n{}<!-- end of options -->{after}", markdown());
            return std::fs::write(path, new).unwrap();
        }
        assert!(table == markdown(), "docs/criu.md is not what the table says: CKPT_BLESS=1 writes it");
    }
}
