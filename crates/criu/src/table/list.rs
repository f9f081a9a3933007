//! The entries, by the heading of the help they are under.

use super::{Arg, Group, Opt, Status};
use crate::{
    options::{CheckScope, ExtUnix, Options},
    values::{self, Value},
};
use std::{ffi::OsStr, time::Duration};

const fn opt(long: &'static str, arg: Arg, status: Status) -> Opt {
    Opt { long, short: None, arg, on: "", group: Group::General, help: "", status }
}

/// A boolean.
const fn flag(long: &'static str, set: fn(&mut Options, bool)) -> Opt {
    opt(long, Arg::None, Status::Flag(set))
}

/// One that takes a value.
const fn value(
    long: &'static str,
    what: &'static str,
    set: fn(&mut Options, &OsStr) -> Result<(), String>,
) -> Opt {
    opt(long, Arg::Required(what), Status::Value(set))
}

/// One that may take a value.
const fn optional(
    long: &'static str,
    what: &'static str,
    set: fn(&mut Options, Option<&OsStr>) -> Result<(), String>,
) -> Opt {
    opt(long, Arg::Optional(what), Status::Optional(set))
}

/// One for the parser itself.
const fn parser(long: &'static str, arg: Arg) -> Opt {
    opt(long, arg, Status::Parser)
}

/// One that has not been done yet.
const fn later(long: &'static str, arg: Arg, why: &'static str) -> Opt {
    opt(long, arg, Status::Later(why))
}

/// One that will not be.
const fn refused(long: &'static str, arg: Arg, why: &'static str) -> Opt {
    opt(long, arg, Status::Refused(why))
}

impl Opt {
    const fn short(self, short: char) -> Opt {
        Opt { short: Some(short), ..self }
    }

    const fn on(self, on: &'static str) -> Opt {
        Opt { on, ..self }
    }

    const fn says(self, group: Group, help: &'static str) -> Opt {
        Opt { group, help, ..self }
    }
}

/// Puts a value, if it is right, into its place.
fn put<T>(place: &mut T, value: Value<T>) -> Result<(), String> {
    value.map(|value| *place = value)
}

/// The same for what may be missing.
fn some<T>(place: &mut Option<T>, value: Value<T>) -> Result<(), String> {
    value.map(|value| *place = Some(value))
}

/// Adds a value, if it is right, to a list.
fn push<T>(list: &mut Vec<T>, value: Value<T>) -> Result<(), String> {
    value.map(|value| list.push(value))
}

fn verbosity(options: &mut Options, value: Option<&OsStr>) -> Result<(), String> {
    let level = values::verbosity(options.verbosity, value);
    put(&mut options.verbosity, level)
}

fn ext_unix(options: &mut Options, value: Option<&OsStr>) -> Result<(), String> {
    match (value, &mut options.ext_unix_sk) {
        (None, place) => *place = ExtUnix::Any,
        (Some(inode), ExtUnix::These(list)) => list.push(values::number(inode)?),
        (Some(inode), ExtUnix::Refuse) => options.ext_unix_sk = ExtUnix::These(vec![values::number(inode)?]),
        (Some(inode), ExtUnix::Any) => drop(values::number::<u64>(inode)?),
    }
    Ok(())
}

use Arg::{None as Nothing, Required as Takes};
use Group::{Cgroups, Check, Files, General, Memory, Network, Outside, Tasks};

const INCREMENTS: &str = "images are whole so far; leave it out for a whole one";
const REMOTE: &str = "images go to a directory so far; copy it";
const MOUNTS: &str = "mount namespaces are not carried yet";
const CGROUPS: &str = "the properties that are carried cannot be chosen yet";

/// Every option.
pub(crate) static TABLE: &[Opt] = &[
    value("images-dir", "DIR", |o, v| put(&mut o.images_dir, values::path(v)))
        .short('D')
        .says(General, "directory of the image; by default the current one"),
    value("work-dir", "DIR", |o, v| some(&mut o.work_dir, values::path(v)))
        .short('W')
        .says(General, "directory of log, pid file and statistics; by default that of the image"),
    value("log-file", "FILE", |o, v| some(&mut o.log_file, values::path(v)))
        .short('o')
        .says(General, "log, in the work directory; by default standard error"),
    optional("verbosity", "NUM", verbosity).short('v').says(
        General,
        "0 nothing, 1 errors, 2 warnings (the default), 3 information, 4 all; without NUM one more",
    ),
    value("action-script", "COMMAND", |o, v| push(&mut o.action_scripts, values::command(v)))
        .on("dump, restore")
        .says(General, "run at each stage, told which by CRTOOLS_SCRIPT_ACTION; repeatable"),
    value("timeout", "SECONDS", |o, v| put(&mut o.timeout, values::number(v).map(Duration::from_secs)))
        .on("dump, restore")
        .says(General, "how long tasks may take to stop, 0 for ever; by default 10"),
    value("status-fd", "FD", |o, v| some(&mut o.status_fd, values::number(v))).on("dump, restore").says(
        General,
        "one NUL byte is written to this descriptor when the image is complete, or the tasks run",
    ),
    parser("config", Takes("FILE")).says(General, "read options from FILE, too"),
    parser("no-default-config", Nothing).says(General, "read no other configuration files than that"),
    parser("help", Nothing).short('h').says(General, "this text"),
    parser("version", Nothing).short('V').says(General, "the version of CRIU whose interface this is"),
    later("display-stats", Nothing, "stats-dump and stats-restore in the work directory have the numbers")
        .says(General, "print statistics"),
    later("log-pid", Nothing, "there is one log").says(General, "one log for each process"),
    later("close", Takes("FD"), "close it before").says(General, "close a descriptor first"),
    refused("libdir", Takes("DIR"), "there are no plugins").short('L').says(General, "directory of plugins"),
    refused("unprivileged", Nothing, "what may be done follows from the privileges there are; leave it out")
        .says(General, "do with few privileges"),
    value("tree", "PID", |o, v| some(&mut o.tree, values::pid(v)))
        .short('t')
        .on("dump")
        .says(Tasks, "the process whose tree is dumped"),
    flag("leave-running", |o, on| o.leave_running = on)
        .short('R')
        .on("dump")
        .says(Tasks, "the tasks go on after the dump, which would else kill them"),
    flag("leave-stopped", |o, on| o.leave_stopped = on)
        .short('s')
        .on("dump, restore")
        .says(Tasks, "they are stopped afterwards, as by SIGSTOP"),
    flag("restore-detached", |o, on| o.restore_detached = on)
        .short('d')
        .on("restore")
        .says(Tasks, "return when the tasks run, instead of when the root ends"),
    flag("restore-sibling", |o, on| o.restore_sibling = on)
        .short('S')
        .on("restore")
        .says(Tasks, "the root becomes a child of the caller"),
    value("pidfile", "FILE", |o, v| some(&mut o.pidfile, values::path(v)))
        .on("restore")
        .says(Tasks, "made anew, with the pid of the root in it"),
    value("root", "DIR", |o, v| some(&mut o.root, values::path(v)))
        .short('r')
        .on("restore")
        .says(Tasks, "the root directory of the tasks"),
    flag("shell-job", |o, on| o.shell_job = on)
        .short('j')
        .on("dump, restore")
        .says(Tasks, "session and terminal are those of a shell outside; on restore ours"),
    later("exec-cmd", Nothing, "use --restore-detached and a command after it")
        .on("restore")
        .says(Tasks, "run a command when the tasks run"),
    later("lsm-profile", Takes("TYPE:NAME"), "LSM labels are not carried yet")
        .on("restore")
        .says(Tasks, "give the tasks this LSM label"),
    later("lsm-mount-context", Takes("CONTEXT"), MOUNTS)
        .on("restore")
        .says(Tasks, "mount with this LSM context"),
    flag("file-locks", |o, on| o.file_locks = on)
        .short('l')
        .on("dump, restore")
        .says(Files, "carry file locks"),
    flag("link-remap", |o, on| o.link_remap = on)
        .on("dump")
        .says(Files, "carry unlinked files that have other names"),
    value("ghost-limit", "BYTES", |o, v| put(&mut o.ghost_limit, values::size(v)))
        .on("dump")
        .says(Files, "most bytes of an unlinked file; by default 1M"),
    flag("evasive-devices", |o, on| o.evasive_devices = on)
        .on("dump, restore")
        .says(Files, "any path to the same device will do"),
    later("ghost-fiemap", Nothing, "holes of unlinked files are found by SEEK_HOLE, always")
        .on("dump")
        .says(Files, "find holes of unlinked files by FIEMAP"),
    later("skip-file-rwx-check", Nothing, "changed permissions of files are no error")
        .on("restore")
        .says(Files, "do not compare permissions of files"),
    later(
        "file-validation",
        Takes("METHOD"),
        "mapped files are compared by build-id, others by size and time",
    )
    .on("dump, restore")
    .says(Files, "how to compare files"),
    later("force-irmap", Nothing, "watches are carried by the paths they were made with")
        .on("dump")
        .says(Files, "search for the paths of watched inodes"),
    later("irmap-scan-path", Takes("DIR"), "watches are carried by the paths they were made with")
        .on("dump")
        .says(Files, "search here for them, too"),
    later("enable-fs", Takes("NAME"), MOUNTS)
        .on("dump")
        .says(Files, "take mounts of this file system to be restorable"),
    later("skip-mnt", Takes("PATH"), MOUNTS).on("dump").says(Files, "leave out this mount"),
    later("mntns-compat-mode", Nothing, MOUNTS).on("restore").says(Files, "make mounts the older way"),
    value("external", "KIND[ID][:KEY]", |o, v| push(&mut o.external, values::external(v)))
        .on("dump, restore")
        .says(
            Outside,
            "a mount, device, file, terminal, socket, namespace or network device that is outside",
        ),
    value("inherit-fd", "fd[N]:NAME", |o, v| push(&mut o.inherit_fd, values::inherit_fd(v)))
        .on("restore")
        .says(Outside, "this descriptor takes the place of what NAME was"),
    value("ext-mount-map", "KEY:VALUE", |o, v| push(&mut o.ext_mount_map, values::mount_map(v)))
        .short('M')
        .on("dump, restore")
        .says(Outside, "the older form of --external mnt[KEY]:VALUE; auto for those found"),
    flag("enable-external-sharing", |o, on| o.enable_external_sharing = on)
        .on("dump")
        .says(Outside, "mounts found by auto may share with the outside"),
    flag("enable-external-masters", |o, on| o.enable_external_masters = on)
        .on("dump")
        .says(Outside, "mounts found by auto may have masters outside"),
    optional("ext-unix-sk", "INODE", ext_unix)
        .short('x')
        .on("dump")
        .says(Outside, "unix sockets may be connected to the outside; with INODE this one"),
    flag("tcp-established", |o, on| o.tcp_established = on)
        .on("dump, restore")
        .says(Network, "carry TCP connections"),
    flag("tcp-close", |o, on| o.tcp_close = on)
        .on("dump, restore")
        .says(Network, "TCP connections are closed ones afterwards"),
    flag("skip-in-flight", |o, on| o.skip_in_flight = on)
        .on("dump")
        .says(Network, "drop connections that nobody accepted yet"),
    value("network-lock", "METHOD", |o, v| put(&mut o.network_lock, values::network_lock(v)))
        .on("dump, restore")
        .says(Network, "how TCP connections are kept still: iptables (the default), nftables, skip"),
    value("veth-pair", "IN=OUT[@BRIDGE]", |o, v| push(&mut o.external, values::veth_pair(v)))
        .on("restore")
        .says(Network, "the older form of --external veth[IN]:OUT[@BRIDGE]"),
    value("empty-ns", "net", |o, v| put(&mut o.empty_net_ns, values::empty_ns(v)))
        .on("dump, restore")
        .says(Network, "the network namespace is made with nothing in it"),
    later("weak-sysctls", Nothing, "sysctls of networks are not carried yet")
        .on("restore")
        .says(Network, "go on if a sysctl cannot be set"),
    optional("manage-cgroups", "MODE", |o, v| put(&mut o.manage_cgroups, values::manage_cgroups(v)))
        .on("dump, restore")
        .says(
            Cgroups,
            "put the tasks into their cgroups: ignore, none, props, soft (without MODE), full, strict",
        ),
    value("cgroup-root", "[CTRL:]/PATH", |o, v| push(&mut o.cgroup_root, values::cgroup_root(v)))
        .on("restore")
        .says(Cgroups, "their cgroups are below this one"),
    value("freeze-cgroup", "DIR", |o, v| some(&mut o.freeze_cgroup, values::path(v)))
        .on("dump")
        .says(Cgroups, "stop the tasks by this freezer cgroup"),
    value("join-ns", "KIND:PID|FILE[,EXTRA]", |o, v| push(&mut o.join_ns, values::join_ns(v)))
        .short('J')
        .on("restore")
        .says(Cgroups, "put the tasks into this namespace"),
    later("cgroup-props", Takes("TEXT"), CGROUPS).on("dump").says(Cgroups, "which properties are carried"),
    later("cgroup-props-file", Takes("FILE"), CGROUPS).on("dump").says(Cgroups, "the same, from a file"),
    later("cgroup-dump-controller", Takes("NAME"), CGROUPS)
        .on("dump")
        .says(Cgroups, "which controllers are carried"),
    later("cgroup-yard", Takes("DIR"), "cgroups are found where they are mounted")
        .on("dump, restore")
        .says(Cgroups, "where cgroups are mounted"),
    later("track-mem", Nothing, INCREMENTS).on("dump, pre-dump").says(Memory, "watch for pages that change"),
    later("prev-images-dir", Takes("DIR"), INCREMENTS)
        .on("dump, pre-dump")
        .says(Memory, "directory of the parent image"),
    later("pre-dump-mode", Takes("MODE"), INCREMENTS).on("pre-dump").says(Memory, "how pages are read"),
    later("auto-dedup", Nothing, INCREMENTS)
        .on("dump, restore")
        .says(Memory, "drop pages of parents that are replaced"),
    later("page-server", Nothing, REMOTE).on("dump").says(Memory, "send pages to a page server"),
    later("address", Takes("ADDR"), REMOTE).on("dump, page-server").says(Memory, "where it is"),
    later("port", Takes("PORT"), REMOTE).on("dump, page-server").says(Memory, "its port"),
    later("ps-socket", Takes("FD"), REMOTE).on("dump, page-server").says(Memory, "the connection to it"),
    later("lazy-pages", Nothing, "all memory is there before the tasks run")
        .on("dump, restore")
        .says(Memory, "fill memory when it is used"),
    later("stream", Nothing, REMOTE).on("dump, restore").says(Memory, "images by a streamer"),
    later("tls", Nothing, REMOTE).says(Memory, "connections by TLS"),
    later("tls-cacert", Takes("FILE"), REMOTE).says(Memory, "certificate of who signs"),
    later("tls-cacrl", Takes("FILE"), REMOTE).says(Memory, "revoked certificates"),
    later("tls-cert", Takes("FILE"), REMOTE).says(Memory, "our certificate"),
    later("tls-key", Takes("FILE"), REMOTE).says(Memory, "our key"),
    later("tls-no-cn-verify", Nothing, REMOTE).says(Memory, "do not compare names in certificates"),
    value("feature", "NAME", |o, v| push(&mut o.features, values::text(v).map(str::to_owned)))
        .on("check")
        .says(Check, "ask for this feature alone; repeatable; list prints the names"),
    flag("extra", |o, on| o.check_scope = if on { CheckScope::Extra } else { CheckScope::Basic })
        .on("check")
        .says(Check, "ask for what is made use of, too"),
    flag("all", |o, on| o.check_scope = if on { CheckScope::All } else { CheckScope::Basic })
        .on("check")
        .says(Check, "ask for everything that has a name"),
    flag("experimental", |_, _| {}).on("check").says(Check, "ask for what is experimental, too"),
    optional("cpu-cap", "LIST", |o, v| put(&mut o.cpu_cap, values::cpu_cap(v))).on("cpuinfo check").says(
        Check,
        "what is compared: cpu (all of it, the default), ins, fpu, none; ^ before one leaves it out",
    ),
];
