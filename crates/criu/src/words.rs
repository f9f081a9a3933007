//! The words of `dump` and `restore`, for as long as the whole grammar is not there.

use crate::{
    failure::{Failure, Outcome},
    options::{Action, ExtUnix, External, InheritFd, ManageCgroups, NetworkLock, Options, Outside},
};
use lexopt::{
    Arg::{Long, Short, Value},
    Parser, ValueExt,
};
use std::{ffi::OsString, os::unix::ffi::OsStringExt, time::Duration};

/// What the arguments ask for.
pub(crate) fn parse(words: Vec<OsString>) -> Outcome<(Action, Options)> {
    let mut parser = Parser::from_iter(words);
    let (mut options, mut action) = (Options::default(), None);
    while let Some(arg) = parser.next().map_err(wrong)? {
        match arg {
            Value(word) => {
                action = Some(match word.to_str() {
                    Some("dump") => Action::Dump,
                    Some("restore") => Action::Restore,
                    _ => return Err(Failure::options(format!("{}: not supported yet", word.display()))),
                });
            }
            Short(short) => one_short(short, &mut parser, &mut options)?,
            Long(long) => {
                let long = long.to_owned();
                one_long(&long, &mut parser, &mut options)?;
            }
        }
    }
    let action = action.ok_or_else(|| Failure::options("an action is missing: dump, restore"))?;
    Ok((action, options))
}

fn wrong(cause: lexopt::Error) -> Failure {
    Failure::options(cause.to_string())
}

/// A short option is another name of a long one.
fn one_short(short: char, parser: &mut Parser, options: &mut Options) -> Outcome {
    let long = match short {
        't' => "tree",
        'D' => "images-dir",
        'W' => "work-dir",
        'o' => "log-file",
        'r' => "root",
        'R' => "leave-running",
        's' => "leave-stopped",
        'd' => "restore-detached",
        'S' => "restore-sibling",
        'j' => "shell-job",
        'x' => "ext-unix-sk",
        'l' => "file-locks",
        'v' => "verbosity",
        _ => return Err(Failure::options(format!("-{short}: not supported yet"))),
    };
    one_long(long, parser, options)
}

fn one_long(long: &str, parser: &mut Parser, options: &mut Options) -> Outcome {
    let mut text = || parser.value().and_then(|value| value.string()).map_err(wrong);
    let number = |text: String| text.parse::<u64>().map_err(|_| Failure::options(format!("--{long} {text}")));
    match long {
        "tree" => options.tree = i32::try_from(number(text()?)?).ok(),
        "images-dir" => options.images_dir = text()?.into(),
        "work-dir" => options.work_dir = Some(text()?.into()),
        "log-file" => options.log_file = Some(text()?.into()),
        "verbosity" => options.verbosity = number(text()?)?.min(4) as u8,
        "root" => options.root = Some(text()?.into()),
        "pidfile" => options.pidfile = Some(text()?.into()),
        "freeze-cgroup" => options.freeze_cgroup = Some(text()?.into()),
        "action-script" => options.action_scripts.push(text()?.into()),
        "timeout" => options.timeout = Duration::from_secs(number(text()?)?),
        "status-fd" => options.status_fd = i32::try_from(number(text()?)?).ok(),
        "ghost-limit" => options.ghost_limit = number(text()?)?,
        "leave-running" => options.leave_running = true,
        "leave-stopped" => options.leave_stopped = true,
        "restore-detached" => options.restore_detached = true,
        "restore-sibling" => options.restore_sibling = true,
        "shell-job" => options.shell_job = true,
        "file-locks" => options.file_locks = true,
        "link-remap" => options.link_remap = true,
        "ext-unix-sk" => options.ext_unix_sk = ExtUnix::Any,
        "tcp-established" => options.tcp_established = true,
        "empty-ns" if text()? == "net" => options.empty_net_ns = true,
        "network-lock" if text()? == "skip" => options.network_lock = NetworkLock::Skip,
        "manage-cgroups" => {
            options.manage_cgroups = match parser.optional_value().as_ref().map(|mode| mode.to_string_lossy())
            {
                Some(mode) if mode == "ignore" => ManageCgroups::Ignore,
                Some(mode) if mode == "none" => ManageCgroups::None,
                Some(mode) if mode == "full" => ManageCgroups::Full,
                _ => ManageCgroups::Soft,
            }
        }
        "external" => options.external.push(external(text()?)?),
        "inherit-fd" => options.inherit_fd.push(inherit(text()?)?),
        _ => return Err(Failure::options(format!("--{long}: not supported yet"))),
    }
    Ok(())
}

fn external(word: String) -> Outcome<External> {
    let what = || {
        let (kind, rest) = word.split_once('[')?;
        let (id, key) = rest.rsplit_once(']')?;
        let name = key.strip_prefix(':').unwrap_or(key).as_bytes().to_vec();
        let pair = || {
            let (one, other) = id.split_once(':')?;
            Some((u64::from_str_radix(one, 16).ok()?, u64::from_str_radix(other, 16).ok()?))
        };
        let inode = || id.parse().ok();
        Some(match kind {
            "file" => pair().map(|(mount, inode)| Outside::File { mount, inode })?,
            "tty" => pair().map(|(rdev, dev)| Outside::Tty { rdev, dev })?,
            "unix" => Outside::Unix { inode: inode()? },
            "pipe" => Outside::Pipe { inode: inode()? },
            "net" => Outside::Net { inode: inode()?, name },
            "pid" => Outside::Pid { inode: inode()?, name },
            _ => return None,
        })
    };
    match what() {
        Some(what) => Ok(External { word: word.into_bytes(), what }),
        None => Err(Failure::options(format!("--external {word}: not understood"))),
    }
}

fn inherit(word: String) -> Outcome<InheritFd> {
    let parsed = word.strip_prefix("fd[").and_then(|rest| rest.split_once("]:"));
    let parsed = parsed.and_then(|(fd, name)| Some((fd.parse().ok()?, name)));
    match parsed {
        Some((fd, name)) => Ok(InheritFd { fd, name: OsString::from(name).into_vec() }),
        None => Err(Failure::options(format!("--inherit-fd {word}: want fd[N]:NAME"))),
    }
}
