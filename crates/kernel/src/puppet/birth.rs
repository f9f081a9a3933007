//! How processes are made: by the coordinator, and by each other.

use super::midwife::Midwives;
use crate::{
    error::{Named, Result},
    memory::Span,
    pidns::PidNamespace,
    program::{Arg, Program},
    sys,
};
use rustix::io::Errno;
use std::{
    arch::asm,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

/// A mapping of the coordinator at a chosen address, gone when dropped.
pub(super) struct Slot(pub(super) Span);

impl Slot {
    pub(super) fn map(span: Span) -> Result<Slot> {
        let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: a new anonymous mapping; NOREPLACE makes it fail instead of touching another.
        let at = unsafe { libc::mmap(span.start as *mut libc::c_void, span.len, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(sys::check(-1).err().unwrap_or(Errno::NOMEM)).named("mmap of the slot");
        }
        let slot = Slot(Span { start: at as u64, len: span.len });
        if slot.0 == span { Ok(slot) } else { Err(Errno::EXIST).named("mmap of the slot") }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping `map` made; nobody else knows its address.
        unsafe { libc::munmap(self.0.start as *mut libc::c_void, self.0.len) };
    }
}

/// A child that waits to be seized, and ends if the pipe is closed before.
pub(super) struct Waiting {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) pipe: OwnedFd,
}

/// clone3(2) of a child that waits.
pub(super) fn clone_waiting(set_tid: &[i32], flags: i32) -> Result<Waiting, Errno> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut pidfd: RawFd = -1;
    let mut args = libc::clone_args {
        flags: (libc::CLONE_PIDFD | flags) as u64,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        // A sibling has that of its maker, and must not ask for one.
        exit_signal: if flags & libc::CLONE_PARENT == 0 { libc::SIGCHLD as u64 } else { 0 },
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: if set_tid.is_empty() { 0 } else { set_tid.as_ptr() as u64 },
        set_tid_size: set_tid.len() as u64,
        cgroup: 0,
    };
    let mut result: i64;
    // SAFETY: `args` and what it points to live through the call. In the parent this is an
    // ordinary system call. The child, a copy of this process, leaves the block never: it closes
    // its copy of the pipe's write end, reads from the pipe, which ends when we let it or have ended,
    // and exits then; of memory it touches nothing but the red zone of its own copy of the stack.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 3f",
            "mov eax, 3", "mov edi, r12d", "syscall",
            "xor eax, eax", "mov edi, r13d", "lea rsi, [rsp - 64]", "mov edx, 1", "syscall",
            "mov eax, 231", "mov edi, 1", "syscall",
            "3:",
            inlateout("rax") libc::SYS_clone3 => result,
            inlateout("rdi") &raw mut args => _,
            inlateout("rsi") size_of::<libc::clone_args>() => _,
            in("r12") write.as_raw_fd(),
            in("r13") read.as_raw_fd(),
            out("rcx") _, out("r11") _,
        );
    }
    if result < 0 {
        return Err(Errno::from_raw_os_error(result.unsigned_abs() as i32));
    }
    // SAFETY: CLONE_PIDFD stored a new descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Waiting { pid: result as i32, pidfd, pipe: write })
}

/// The pid namespace that a process is made in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// Its maker's.
    #[default]
    Same,
    /// A new one (CLONE_NEWPID), below its maker's. Its own pid there is the first of `set_tid`.
    New,
    /// That of the process with this pid, as the maker sees it; its own pid likewise.
    Of(i32),
}

/// How a puppet makes another process.
#[derive(Clone, Debug, Default)]
pub struct Fork {
    /// The pids it gets, in its own pid namespace first, then in those around it. Of the outermost it
    /// may be given any.
    pub set_tid: Vec<i32>,
    /// The pid namespace it is in.
    pub place: Place,
    /// What its parent is sent when it ends; with `sibling` it is the maker's and not asked for.
    pub exit_signal: i32,
    /// As a child of the maker's parent (CLONE_PARENT).
    pub sibling: bool,
    /// What it shares with the maker: CLONE_VM, CLONE_FILES, CLONE_FS, CLONE_SIGHAND.
    pub share: i32,
}

/// Arguments of a clone3(2) that makes a task which is traced from birth.
pub fn clone_args(flags: i32, exit_signal: i32, set_tid: &[i32]) -> [Arg; 2] {
    // struct clone_args, and behind it the tids.
    const ARGS: usize = 88;
    const EXIT_SIGNAL: usize = 32;
    const SET_TID: usize = 64;
    const SET_TID_SIZE: usize = 72;
    let mut args = vec![0u8; ARGS];
    let words = [
        (0, (flags | libc::CLONE_PTRACE) as u64),
        (EXIT_SIGNAL, exit_signal as u64),
        (SET_TID_SIZE, set_tid.len() as u64),
    ];
    for (at, word) in words {
        args.splice(at..at + 8, word.to_le_bytes());
    }
    args.extend(set_tid.iter().flat_map(|tid| tid.to_le_bytes()));
    let links = if set_tid.is_empty() { Vec::new() } else { vec![(SET_TID, ARGS)] };
    [Arg::Linked(args, links), (ARGS as u64).into()]
}

/// Whose child a puppet of the coordinator's is, and who is to wait for it.
#[derive(Clone, Copy, Debug)]
pub enum Parent<'a> {
    /// The coordinator.
    We,
    /// The coordinator's parent (CLONE_PARENT).
    Ours,
    /// One who leaves before we end.
    Midwife(&'a Midwives),
}

/// How the coordinator makes a puppet.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The pids it gets, as of a [`Fork`].
    pub set_tid: &'a [i32],
    /// New namespaces that begin with it: CLONE_NEWPID, CLONE_NEWUSER.
    pub namespaces: i32,
    /// Whose child it is. It is ours to trace in any case.
    pub parent: Parent<'a>,
    /// The pid namespace it is made in, if not ours or a new one.
    pub inside: Option<&'a PidNamespace>,
    /// Where its slot is.
    pub slot: Span,
    /// The park signal: any that is not pending in what is to be restored.
    pub signal: i32,
}

/// Lets the children of whoever runs `program` be made in the pid namespace of process `pid`.
pub fn children_in(program: &mut Program, pid: i32) {
    let fd = program.call("pidfd_open", pid as u64, libc::SYS_pidfd_open, [pid.into(), 0u64.into()]);
    program.call("setns", pid as u64, libc::SYS_setns, [Arg::Result(fd), libc::CLONE_NEWPID.into()]);
    program.call("close", pid as u64, libc::SYS_close, [Arg::Result(fd)]);
}
