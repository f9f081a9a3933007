//! `criu check`: whether this kernel, and we with our privileges, can do what the engine needs; with
//! `--feature` whether the kernel has what CRIU's callers ask for by name.
//!
//! What is asked for and missing is an error. Without options that is what the engine cannot do without; with `--extra`
//! also what it makes use of; with `--all` also every feature that has a name.

use crate::{
    failure::{Failure, Outcome},
    features::{self, FEATURES},
    log::Log,
    options::{CheckScope, Options},
    say,
};
use ckpt_kernel::{
    Errno, Error,
    probe::{Answer, file, memory, network, process},
};
use ckpt_proc::mountinfo::{Mount, parse_mountinfo};

/// Something of the kernel that the engine uses.
struct Need {
    name: &'static str,
    /// What does not work without it.
    lost: &'static str,
    /// What to do.
    remedy: &'static str,
    probe: fn() -> Result<Answer, Error>,
}

/// What the engine cannot do without.
const NEEDS: &[Need] = &[
    Need {
        name: "ptrace",
        lost: "no task can be stopped or made",
        remedy: "be root or have CAP_SYS_PTRACE; in a container allow ptrace(2)",
        probe: process::trace,
    },
    Need {
        name: "kcmp",
        lost: "what tasks share cannot be told",
        remedy: "the kernel needs CONFIG_KCMP; in a container allow kcmp(2)",
        probe: process::compare,
    },
    Need {
        name: "pidfd",
        lost: "tasks cannot be held on to",
        remedy: "the kernel must be Linux 5.6 or later; in a container allow pidfd_open(2) and pidfd_getfd(2)",
        probe: process::pidfd,
    },
    Need {
        name: "clone3 with set_tid",
        lost: "tasks cannot have their pids again",
        remedy: "be root or have CAP_CHECKPOINT_RESTORE; the kernel must be Linux 5.5 or later",
        probe: process::choose_pid,
    },
    Need {
        name: "/proc",
        lost: "the state of tasks cannot be read",
        remedy: "mount /proc; the kernel needs CONFIG_PROC_PAGE_MONITOR and CONFIG_CHECKPOINT_RESTORE",
        probe: proc_files,
    },
    Need {
        name: "fdinfo_lock",
        lost: "file locks are not seen",
        remedy: "the kernel must be Linux 4.1 or later",
        probe: file::locks,
    },
];

/// What it makes use of.
const USES: &[Need] = &[
    Need {
        name: "/proc/PID/map_files",
        lost: "mapped files that are unlinked cannot be read",
        remedy: "be root or have CAP_CHECKPOINT_RESTORE",
        probe: map_files,
    },
    Need {
        name: "PAGEMAP_SCAN",
        lost: "pages are looked for one by one",
        remedy: "the kernel must be Linux 6.7 or later",
        probe: memory::pagemap_scan,
    },
    Need {
        name: "userfaultfd",
        lost: "memory is filled more slowly",
        remedy: "the kernel needs CONFIG_USERFAULTFD",
        probe: memory::userfault,
    },
    Need {
        name: "sk_unix_file",
        lost: "unix sockets with a name that is gone are refused",
        remedy: "have CAP_NET_ADMIN; the kernel must be Linux 4.12 or later",
        probe: network::unix_file,
    },
    Need {
        name: "timerfd",
        lost: "timerfds are refused, or lose their ticks",
        remedy: "the kernel needs CONFIG_CHECKPOINT_RESTORE",
        probe: file::timer,
    },
    Need {
        name: "pid namespaces",
        lost: "trees with pid namespaces cannot be restored",
        remedy: "be root or have CAP_SYS_ADMIN; the kernel needs CONFIG_PID_NS",
        probe: process::pid_namespace,
    },
    Need {
        name: "a freezer of cgroups",
        lost: "--freeze-cgroup",
        remedy: "mount cgroup2, or the freezer of cgroup version 1",
        probe: freezer,
    },
];

/// Files of /proc that say what a task is.
fn proc_files() -> Result<Answer, Error> {
    let names =
        ["stat", "status", "maps", "smaps", "pagemap", "auxv", "timers", "syscall", "mountinfo", "cgroup"];
    for name in names {
        let path = format!("/proc/self/{name}");
        // pagemap has contents where memory is; to open it is enough.
        let read = match name {
            "pagemap" => std::fs::File::open(&path).map(drop),
            _ => std::fs::read(&path).map(drop),
        };
        if let Err(cause) = read {
            return Ok(Answer::Missing(format!("{path}: {cause}")));
        }
    }
    Ok(Answer::Present)
}

/// The links of map_files can be followed.
fn map_files() -> Result<Answer, Error> {
    let open = || -> std::io::Result<bool> {
        let mut found = false;
        for entry in std::fs::read_dir("/proc/self/map_files")? {
            std::fs::File::open(entry?.path())?;
            found = true;
        }
        Ok(found)
    };
    Ok(match open() {
        Ok(true) => Answer::Present,
        Ok(false) => Answer::Missing("/proc/self/map_files is empty".to_owned()),
        Err(cause) => Answer::Missing(format!("/proc/self/map_files: {cause}")),
    })
}

/// A hierarchy of cgroups that can freeze is mounted.
fn freezer() -> Result<Answer, Error> {
    let failed = |errno| Error::Os { call: "read(/proc/self/mountinfo)", errno };
    let text = std::fs::read("/proc/self/mountinfo");
    let text = text.map_err(|cause| failed(Errno::from_io_error(&cause).unwrap_or(Errno::IO)))?;
    let mounts = parse_mountinfo(&text).map_err(|_| failed(Errno::INVAL))?;
    let freezes = |mount: &Mount| match mount.fstype.as_slice() {
        b"cgroup2" => true,
        b"cgroup" => mount.super_options.split(|byte| *byte == b',').any(|option| option == b"freezer"),
        _ => false,
    };
    Ok(if mounts.iter().any(freezes) {
        Answer::Present
    } else {
        Answer::Missing("none is mounted".to_owned())
    })
}

/// Looks at what `options` ask for.
pub fn run(options: &Options, log: &Log) -> Outcome {
    if options.features.iter().any(|name| name == "list") {
        let names: Vec<_> = FEATURES.iter().map(|feature| feature.name).collect();
        say(&format!("{}\n", names.join(" ")));
        return Ok(());
    }
    let mut missing = Vec::new();
    if options.features.is_empty() {
        needs(options.check_scope, log, &mut missing);
    } else {
        let asked: Result<Vec<_>, _> = options.features.iter().map(|name| features::find(name)).collect();
        for feature in asked.map_err(Failure::Options)? {
            named(feature, log, &mut missing);
        }
    }
    let Some(last) = missing.pop() else {
        say("Looks good.\n");
        return Ok(());
    };
    for line in missing {
        log.error("check", line);
    }
    Err(Failure::failed("check", last))
}

/// All that is in `scope`.
fn needs(scope: CheckScope, log: &Log, missing: &mut Vec<String>) {
    let uses = if scope == CheckScope::Basic { &[][..] } else { USES };
    for need in NEEDS.iter().chain(uses) {
        let Need { name, lost, remedy, probe } = need;
        if let Some(why) = lacking(name, probe(), log) {
            missing.push(format!("{name}: {why}; without it: {lost}; {remedy}"));
        }
    }
    if scope == CheckScope::All {
        FEATURES.iter().for_each(|feature| named(feature, log, missing));
    }
}

/// A feature with a name.
fn named(feature: &features::Feature, log: &Log, missing: &mut Vec<String>) {
    let features::Feature { name, what, .. } = feature;
    if let Some(why) = lacking(name, features::probe(feature), log) {
        missing.push(format!("feature {name} ({what}): {why}"));
    }
}

/// What is missing, if anything is.
fn lacking(name: &str, answer: Result<Answer, Error>, log: &Log) -> Option<String> {
    match answer {
        Ok(Answer::Present) => {
            log.info(format!("{name}: there"));
            None
        }
        Ok(Answer::Missing(why)) => Some(format!("this kernel does not have it: {why}")),
        Err(cause) => Some(format!("it cannot be told whether this kernel has it: {cause}")),
    }
}
