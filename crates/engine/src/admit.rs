//! What can never be checkpointed, refused before anything is opened or stopped.

use crate::{
    advice::Means,
    error::{Error, ErrorKind, Result},
    freeze::{FrozenThread, traced},
    resource::{pidns, thread::leader_end},
    task::{ProcDir, Process},
};
use ckpt_kernel::query::{self, Kcmp};
use ckpt_proc::{stat::Stat, status::Status};
use std::time::{Duration, Instant};

/// Namespaces in which a process must be with us, with what they isolate.
const NAMESPACES: [&str; 9] = ["mnt", "net", "uts", "ipc", "cgroup", PIDS, TIME, "user", "time"];
/// How many of them a thread can leave alone.
const OF_THREADS: usize = 7;
/// Of pid namespaces the one children are made in: it is the root's only in one who is there, too.
const PIDS: &str = "pid_for_children";
/// Of time namespaces that one, too: who makes one does not enter it.
const TIME: &str = "time_for_children";

/// What processes are held against.
#[derive(Debug)]
pub(crate) struct Admission {
    /// The namespaces they must be in: name below /proc/self, target of the link.
    namespaces: Vec<(String, Vec<u8>)>,
    /// Their user namespace is one below ours.
    users_apart: bool,
    /// The root of the tree.
    root: i32,
}

impl Admission {
    /// Looks at ourselves, and at the root of the tree: that may be in a pid namespace below ours, and
    /// in such a user namespace as `restart --pidns` makes again.
    pub(crate) fn of(root: &Process) -> Result<Admission> {
        let own = ProcDir::own()?;
        let users_apart =
            has_plain_ids(root) && root.proc.readlink("ns/user").ok() != own.readlink("ns/user").ok();
        let namespace = |kind: &str| {
            let name = format!("ns/{kind}");
            let target = match kind {
                PIDS => root.proc.readlink("ns/pid"),
                "user" if users_apart => root.proc.readlink(&name),
                _ => own.readlink(&name),
            };
            target.ok().map(|target| (name, target))
        };
        let namespaces = NAMESPACES.into_iter().filter_map(namespace).collect();
        Ok(Admission { namespaces, users_apart, root: root.pid })
    }

    /// Refuses a process that has been stopped, for what it may have done since it was admitted, or
    /// when it is new. What else is looked for is found when its threads are visited.
    pub(crate) fn readmit(&self, process: &Process, threads: &[FrozenThread]) -> Result<()> {
        threads.iter().try_for_each(|thread| self.admit_place(process, thread.kept.tid))
    }

    /// Refuses processes that cannot be checkpointed at all. Returns the status of the witness.
    pub(crate) fn admit(&self, process: &Process, stat: &Stat) -> Result<Status> {
        if u32::try_from(process.pid).is_ok_and(|pid| pid == std::process::id()) {
            return Err(Error::unsupported("a process cannot checkpoint itself, or a tree it is in")
                .advice("do it from outside of it"));
        }
        if stat.is_kthread() {
            let error = Error::unsupported("it is a kernel thread");
            return Err(error.advice("only user processes can be checkpointed"));
        }
        if stat.process_has_ended() {
            return Err(Error::unsupported("it has ended and waits for its parent"));
        }
        if stat.state.has_ended() {
            leader_end(stat)?;
        }
        let status = untraced(process)?;
        if self.users_apart && status.cap_permitted != 0 {
            let what = "it has capabilities in a user namespace of its own, which cannot be carried yet";
            return Err(Error::unsupported(what));
        }
        refuse_ia32(process)?;
        Ok(status)
    }

    /// Refuses what its threads are, or where. `stat` and `status` are those [`Admission::admit`] saw.
    pub(crate) fn admit_threads(&self, process: &Process, stat: &Stat, status: &Status) -> Result<()> {
        let ended = (process.witness != process.pid).then_some(process.pid);
        for tid in process.tids_at(stat)?.into_iter().filter(|tid| Some(*tid) != ended) {
            if tid == process.witness {
                refuse_seccomp(process, tid, status)?;
            } else if let Ok(status) = process.thread_status(tid) {
                refuse_seccomp(process, tid, &status)?;
            }
            self.admit_place(process, tid)?;
        }
        Ok(())
    }

    /// Refuses a process that cannot be the root of a container.
    pub(crate) fn admit_init(&self, process: &Process) -> Result<()> {
        // The last of its pids is the one in its own namespace.
        if process.status()?.ns_pid.last() == Some(&1) {
            return Ok(());
        }
        let error = Error::failed("it is not the init (pid 1) of a pid namespace, so it is no container");
        Err(error.advice(Means::Subtree))
    }

    /// Refuses threads in other namespaces than ours, or that do not share with their process what
    /// threads share.
    fn admit_place(&self, process: &Process, tid: i32) -> Result<()> {
        let can_leave = if tid == process.witness { NAMESPACES.len() } else { OF_THREADS };
        for (name, ours) in self.namespaces.iter().take(can_leave) {
            let theirs = match process.proc.readlink(&format!("task/{tid}/{name}")) {
                Err(e) if e.kind == ErrorKind::Permission => {
                    return Err(e.advice("it needs the same user and a dumpable process, or CAP_SYS_PTRACE"));
                }
                other => other.ok(),
            };
            let kind = name.strip_prefix("ns/").unwrap_or(name);
            if kind == PIDS && theirs.as_ref() != Some(ours) {
                pidns::admit(process, tid, self.root)?;
            } else if theirs.is_some_and(|theirs| theirs != *ours) {
                let what = match kind {
                    TIME => "its children would be in another time namespace".to_owned(),
                    _ => format!("it is in another {kind} namespace"),
                };
                return Err(Error::unsupported(what).advice("do it inside its container"));
            }
        }
        refuse_unshared(process, tid)
    }
}

/// The status of a process that nobody traces. The guardian of a checkpoint that was killed is waited for.
fn untraced(process: &Process) -> Result<Status> {
    const PATIENCE: Duration = Duration::from_secs(3);
    let begun = Instant::now();
    loop {
        let status = process.status()?;
        if status.tracer_pid == 0 {
            return Ok(status);
        }
        let error = traced("it", status.tracer_pid);
        if !error.passing || begun.elapsed() > PATIENCE {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether the one user and group that a process's user namespace knows have the numbers they have
/// outside.
fn has_plain_ids(process: &Process) -> bool {
    let plain = |name: &str| {
        let map = process.proc.read(name).unwrap_or_default();
        let words: Vec<&[u8]> = map.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
        matches!(words.as_slice(), [inside, outside, count] if inside == outside && **count == *b"1")
    };
    plain("uid_map") && plain("gid_map")
}

/// Refuses a thread under seccomp, by its status.
pub(crate) fn refuse_seccomp(process: &Process, tid: i32, status: &Status) -> Result<()> {
    if status.seccomp.unwrap_or(0) == 0 {
        return Ok(());
    }
    let whose = if tid == process.pid { String::new() } else { format!("thread {tid}: ") };
    Err(Error::unsupported(format!("{whose}seccomp filters cannot be carried yet")))
}

/// Refuses 32-bit programs.
fn refuse_ia32(process: &Process) -> Result<()> {
    use std::io::Read;
    const ELFCLASS32: u8 = 1;
    let mut ident = [0; 5];
    let exe = process.proc.open("exe", rustix::fs::OFlags::RDONLY);
    let read = exe.is_ok_and(|fd| std::fs::File::from(fd).read_exact(&mut ident).is_ok());
    if read && ident == [0x7f, b'E', b'L', b'F', ELFCLASS32] {
        return Err(ia32());
    }
    Ok(())
}

/// What is said of them, and of a thread whose registers are those of one.
pub(crate) fn ia32() -> Error {
    Error::unsupported("32-bit programs cannot be carried yet")
}

/// Refuses threads that have unshared what threads share.
fn refuse_unshared(process: &Process, tid: i32) -> Result<()> {
    let shared = [(Kcmp::Files, "table of file descriptors"), (Kcmp::Fs, "working directory")];
    for (what, name) in shared.into_iter().filter(|_| tid != process.witness) {
        let differs = query::kcmp(process.witness, tid, what).is_ok_and(|order| order.is_ne());
        // One that has ended meanwhile has none at all.
        if differs && ![process.witness, tid].into_iter().any(|tid| process.thread_has_ended(tid)) {
            let what = format!("thread {tid} has a {name} of its own (unshare), which cannot be carried yet");
            return Err(Error::unsupported(what));
        }
    }
    Ok(())
}
