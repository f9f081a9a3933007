//! Processes: namespaces, ptrace(2) and what it says, pidfds.

use super::{Answer, answer, call, errno, found, in_child, unshare, wait};
use crate::{
    error::{Named, Result},
    query::{Kcmp, kcmp},
    sys,
};
use rustix::{
    io::Errno,
    process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open},
};

/// userns: a user namespace can be made.
pub fn user_namespace() -> Result<Answer> {
    answer("unshare(CLONE_NEWUSER)", in_child(|| unshare(libc::CLONE_NEWUSER)))
}

/// cgroupns: a cgroup namespace can be made.
pub fn cgroup_namespace() -> Result<Answer> {
    answer("unshare(CLONE_NEWCGROUP)", in_child(|| unshare(libc::CLONE_NEWCGROUP)))
}

/// A pid namespace can be made.
pub fn pid_namespace() -> Result<Answer> {
    answer("unshare(CLONE_NEWPID)", in_child(|| unshare(libc::CLONE_NEWPID)))
}

/// timens: a time namespace can be made, with clocks set forth.
pub fn time_namespace() -> Result<Answer> {
    const CLONE_NEWTIME: i32 = 0x80;
    let work = || {
        unshare(CLONE_NEWTIME)?;
        std::fs::write("/proc/self/timens_offsets", "monotonic 1 0\n").map_err(|e| errno(&e))
    };
    answer("unshare(CLONE_NEWTIME)", in_child(work))
}

/// ns_pid: /proc/PID/status has the pid in each namespace.
pub fn ns_pid() -> Result<Answer> {
    let status = std::fs::read_to_string("/proc/self/status").map_err(|e| errno(&e));
    let status = status.named("read(/proc/self/status)")?;
    Ok(found(status.contains("\nNSpid:\t"), "no NSpid in /proc/PID/status"))
}

/// pidfd_store: pidfd_open(2), and pidfd_getfd(2) by which descriptors are fetched.
pub fn pidfd() -> Result<Answer> {
    let fetch = || {
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&own);
        pidfd_getfd(&own, number, PidfdGetfdFlags::empty())
    };
    answer("pidfd_getfd", fetch())
}

/// kcmp(2): objects of tasks can be told apart.
pub fn compare() -> Result<Answer> {
    let own = getpid().as_raw_nonzero().get();
    match kcmp(own, own, Kcmp::Vm) {
        Ok(order) => Ok(found(order.is_eq(), "kcmp: a task is not itself")),
        Err(error) => answer("kcmp", Err::<(), _>(error.errno().unwrap_or(Errno::IO))),
    }
}

/// A child can be made with a pid of our choice (clone3(2) with set_tid).
pub fn choose_pid() -> Result<Answer> {
    let work = || {
        // The pid of a child that has ended is free.
        let ended = sys::check({
            // SAFETY: the child does nothing but end.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) };
            }
            pid.into()
        })? as i32;
        wait(ended, 0)?;
        // SAFETY: all of it is numbers, and zero is none.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.exit_signal = libc::SIGCHLD as u64;
        args.set_tid = (&raw const ended) as u64;
        args.set_tid_size = 1;
        let size = size_of::<libc::clone_args>() as u64;
        let pid = call(libc::SYS_clone3, [(&raw mut args) as u64, size, 0, 0, 0, 0])? as i32;
        if pid == 0 {
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        wait(pid, 0)?;
        if pid == ended { Ok(()) } else { Err(Errno::OPNOTSUPP) }
    };
    answer("clone3(set_tid)", in_child(work))
}

/// Asks about a child that is traced and stopped, and then ends. With `filtered` it has a seccomp filter.
fn traced<T>(filtered: bool, options: u64, ask: impl FnOnce(i32) -> Result<T, Errno>) -> Result<T, Errno> {
    // SAFETY: the child makes system calls, and waits to be killed.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let code = if filtered { allow_all().err().map_or(0, Errno::raw_os_error) } else { 0 };
        // SAFETY: ends the child, or waits for its end.
        unsafe {
            if code != 0 {
                libc::_exit(code);
            }
            // It does not stay behind, stopped, should we be killed.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            libc::raise(libc::SIGSTOP);
            libc::_exit(0);
        }
    }
    let pid = sys::check(pid.into())? as i32;
    match wait(pid, libc::WUNTRACED)? {
        status if libc::WIFEXITED(status) => return Err(Errno::from_raw_os_error(libc::WEXITSTATUS(status))),
        status if libc::WIFSIGNALED(status) => return Err(Errno::IO),
        _ => {}
    }
    let stopped = || {
        sys::ptrace(libc::PTRACE_SEIZE, pid, 0, options)?;
        sys::ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0)?;
        wait(pid, libc::__WALL)
    };
    let asked = stopped().and_then(|_| ask(pid));
    // SAFETY: a child of ours that nobody else waits for.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    while wait(pid, libc::__WALL).is_ok_and(|status| !libc::WIFEXITED(status) && !libc::WIFSIGNALED(status)) {
    }
    asked
}

/// A filter for ourselves that allows everything.
fn allow_all() -> Result<(), Errno> {
    let code = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW }];
    let program = libc::sock_fprog { len: 1, filter: code.as_ptr().cast_mut() };
    call(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0, 0])?;
    let mode = libc::SECCOMP_SET_MODE_FILTER.into();
    call(libc::SYS_seccomp, [mode, 0, (&raw const program) as u64, 0, 0, 0]).map(drop)
}

/// A child can be seized and stopped (ptrace(2)).
pub fn trace() -> Result<Answer> {
    answer("ptrace(PTRACE_SEIZE)", traced(false, 0, |_| Ok(())))
}

/// seccomp_filters: the filters of a task can be read (PTRACE_SECCOMP_GET_FILTER).
pub fn seccomp_filters() -> Result<Answer> {
    const PTRACE_SECCOMP_GET_FILTER: u32 = 0x420c;
    let ask = |pid| sys::ptrace(PTRACE_SECCOMP_GET_FILTER, pid, 0, 0);
    match traced(true, 0, ask) {
        Ok(instructions) => {
            Ok(found(instructions == 1, "PTRACE_SECCOMP_GET_FILTER: not the filter that was set"))
        }
        refused => answer("ptrace(PTRACE_SECCOMP_GET_FILTER)", refused),
    }
}

/// seccomp_suspend: filters can be suspended for a while (PTRACE_O_SUSPEND_SECCOMP).
pub fn seccomp_suspend() -> Result<Answer> {
    const PTRACE_O_SUSPEND_SECCOMP: u64 = 1 << 21;
    answer("ptrace(PTRACE_O_SUSPEND_SECCOMP)", traced(true, PTRACE_O_SUSPEND_SECCOMP, |_| Ok(())))
}

/// get_rseq_conf: where a thread has its restartable sequence (PTRACE_GET_RSEQ_CONFIGURATION).
pub fn rseq_configuration() -> Result<Answer> {
    const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
    let ask = |pid| {
        let mut configuration = [0u64; 3];
        sys::ptrace_buffer(PTRACE_GET_RSEQ_CONFIGURATION, pid, 24, &mut configuration)
    };
    answer("ptrace(PTRACE_GET_RSEQ_CONFIGURATION)", traced(false, 0, ask))
}

/// loginuid: that of a task can be read, and set.
pub fn loginuid() -> Result<Answer> {
    let work = || {
        let path = "/proc/self/loginuid";
        let now = std::fs::read(path).map_err(|e| errno(&e))?;
        std::fs::write(path, now).map_err(|e| errno(&e))
    };
    answer("/proc/PID/loginuid", in_child(work))
}
