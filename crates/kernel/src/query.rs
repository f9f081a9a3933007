//! Questions to the kernel about tasks that rustix does not ask.

use crate::{
    error::{Named, Result},
    sys,
};
use rustix::io::Errno;
use std::{
    arch::x86_64::{__cpuid, __cpuid_count, CpuidResult},
    os::fd::{AsFd, AsRawFd},
};

/// What kcmp(2) compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kcmp {
    /// Open file descriptions behind two descriptors.
    File(i32, i32),
    /// Address spaces.
    Vm,
    /// Descriptor tables.
    Files,
    /// Filesystem contexts.
    Fs,
    /// Signal handlers.
    Sighand,
}

/// Orders the objects of two tasks (kcmp(2)): equal means they are one.
pub fn kcmp(a: i32, b: i32, what: Kcmp) -> Result<std::cmp::Ordering> {
    let (kind, x, y) = match what {
        Kcmp::File(x, y) => (0, x, y),
        Kcmp::Vm => (1, 0, 0),
        Kcmp::Files => (2, 0, 0),
        Kcmp::Fs => (3, 0, 0),
        Kcmp::Sighand => (4, 0, 0),
    };
    let args = [a as u64, b as u64, kind, x as u64, y as u64];
    sys::numbers(libc::SYS_kcmp, args).named("kcmp").map(ordering)
}

/// An entry of an epoll, as KCMP_EPOLL_TFD names it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EpollSlot {
    /// Descriptor of the epoll.
    pub epoll: i32,
    /// Number under which the entry was added.
    pub fd: i32,
    /// How many entries with that number are before it, in the order of fdinfo.
    pub before: u32,
}

/// Orders the description behind descriptor `fd` of task `a` and what an entry of an epoll of task `b`
/// watches, as [`kcmp`] does with [`Kcmp::File`] (Linux 4.13). Takes the longer the more entries are before.
pub fn kcmp_epoll((a, fd): (i32, i32), b: i32, slot: EpollSlot) -> Result<std::cmp::Ordering> {
    const KCMP_EPOLL_TFD: i32 = 7;
    // SAFETY: `slot` is a live struct kcmp_epoll_slot, which the kernel reads.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, a, b, KCMP_EPOLL_TFD, fd, &raw const slot) };
    sys::check(order).named("kcmp(KCMP_EPOLL_TFD)").map(ordering)
}

/// What kcmp(2) means.
fn ordering(answer: u64) -> std::cmp::Ordering {
    match answer {
        0 => std::cmp::Ordering::Equal,
        1 => std::cmp::Ordering::Less,
        _ => std::cmp::Ordering::Greater,
    }
}

/// Head and size of a thread's robust futex list (get_robust_list(2)).
pub fn robust_list(tid: i32) -> Result<(u64, u64)> {
    let (mut head, mut len) = (0u64, 0u64);
    // SAFETY: two live words the kernel writes.
    sys::check(unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) })
        .named("get_robust_list")?;
    Ok((head, len))
}

/// `struct sched_attr` (sched_setattr(2)), its first 48 bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable,
)]
#[repr(C)]
pub struct SchedAttr {
    /// Size of the structure.
    pub size: u32,
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// Nice value.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// Nanoseconds.
    pub runtime: u64,
    /// Nanoseconds.
    pub deadline: u64,
    /// Nanoseconds.
    pub period: u64,
}

/// Scheduling attributes of a thread (sched_getattr(2)).
pub fn sched_attr(tid: i32) -> Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    let size = size_of::<SchedAttr>();
    // SAFETY: `attr` is live and of the size passed.
    sys::check(unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, size, 0) })
        .named("sched_getattr")?;
    Ok(attr)
}

/// Nice value of a thread, whatever its policy (getpriority(2)).
pub fn nice(tid: i32) -> Result<i32> {
    const PRIO_PROCESS: u64 = 0;
    // The call gives 40 to 1, not to give what would be an error.
    sys::numbers(libc::SYS_getpriority, [PRIO_PROCESS, tid as u64, 0, 0, 0])
        .named("getpriority")
        .map(|v| 20 - v as i32)
}

/// The slice of a thread of SCHED_OTHER that has asked for none, nanoseconds; 0 before Linux 6.12, which does not tell.
pub fn base_slice() -> Result<u64> {
    let ask = || {
        let own = sched_attr(0)?;
        let attr = SchedAttr { size: own.size, flags: own.flags, nice: nice(0)?, ..SchedAttr::default() };
        // SAFETY: `attr` is a live struct sched_attr, which the kernel reads.
        sys::check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })
            .named("sched_setattr")?;
        sched_attr(0).map(|attr| attr.runtime)
    };
    // By a thread that ends.
    std::thread::scope(|scope| scope.spawn(ask).join().unwrap_or(Ok(0)))
}

/// CPUs a thread may run on, as the kernel's bit array (sched_getaffinity(2)).
pub fn affinity(tid: i32) -> Result<Vec<u8>> {
    let mut mask = vec![0u8; 1024];
    // SAFETY: `mask` is live and of the length passed; the kernel returns how many bytes it wrote.
    let n =
        sys::check(unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, mask.len(), mask.as_mut_ptr()) })
            .named("sched_getaffinity")?;
    mask.truncate(n as usize);
    Ok(mask)
}

/// I/O priority of a thread (ioprio_get(2)).
pub fn ioprio(tid: i32) -> Result<u32> {
    const WHO_PROCESS: u64 = 1;
    sys::numbers(libc::SYS_ioprio_get, [WHO_PROCESS, tid as u64, 0, 0, 0])
        .named("ioprio_get")
        .map(|v| v as u32)
}

/// Whom an open description signals: F_OWNER_TID 0, PID 1, PGRP 2, and the id or 0 (F_GETOWN_EX).
pub fn file_owner(fd: impl AsFd) -> Result<(i32, i32)> {
    const F_GETOWN_EX: i32 = 16;
    let mut owner = [0i32; 2];
    // SAFETY: `owner` is a live struct f_owner_ex (two ints) for the kernel to write.
    let done = unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), F_GETOWN_EX, owner.as_mut_ptr()) };
    sys::check(done.into()).named("fcntl(F_GETOWN_EX)")?;
    let [kind, id] = owner;
    Ok((kind, id))
}

/// With which signal it does, 0 for SIGIO (F_GETSIG).
pub fn file_signal(fd: impl AsFd) -> Result<u32> {
    const F_GETSIG: u64 = 11;
    let args = [fd.as_fd().as_raw_fd() as u64, F_GETSIG, 0, 0, 0];
    sys::numbers(libc::SYS_fcntl, args).named("fcntl(F_GETSIG)").map(|signal| signal as u32)
}

/// Whether a pipe is one of pipe2(O_NOTIFICATION_PIPE). Those alone take a size; 0 is none, so that nothing is set.
pub fn is_notification_pipe(fd: impl AsFd) -> bool {
    const IOC_WATCH_QUEUE_SET_SIZE: u64 = 0x5760;
    let args = [fd.as_fd().as_raw_fd() as u64, IOC_WATCH_QUEUE_SET_SIZE, 0, 0, 0];
    !matches!(sys::numbers(libc::SYS_ioctl, args), Err(Errno::NODEV | Errno::NOTTY))
}

/// XCR0: the xsave components the kernel has enabled, 0 without xsave.
pub fn xfeatures() -> u64 {
    if __cpuid(1).ecx & (1 << 27) == 0 {
        return 0;
    }
    let (low, high): (u32, u32);
    // SAFETY: OSXSAVE (cpuid 1, ecx bit 27) says that xgetbv may be executed; it reads XCR0 only.
    unsafe {
        std::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// The CPUID words of `HeaderArch::cpu`, in its order; a leaf that the processor lacks is zero.
pub fn cpuid_words() -> [u32; 12] {
    const NONE: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
    // Beyond its last leaf a processor answers with anything; a sub-leaf it does not have is zero.
    let leaf = |leaf, sub| if leaf <= __cpuid(leaf & 1 << 31).eax { __cpuid_count(leaf, sub) } else { NONE };
    let (one, seven, seven_1) = (leaf(1, 0), leaf(7, 0), leaf(7, 1));
    let (xsave, amx) = (leaf(0xd, 1), leaf(0x1e, 1));
    let (extended, more) = (leaf(0x8000_0001, 0), leaf(0x8000_0008, 0));
    [
        one.ecx,
        one.edx,
        seven.ebx,
        seven.ecx,
        seven.edx,
        seven_1.eax,
        seven_1.edx,
        xsave.eax,
        extended.ecx,
        extended.edx,
        more.ebx,
        amx.eax,
    ]
}

/// Sends `signal` to process `pid` (kill(2)).
pub fn kill(pid: i32, signal: i32) -> Result<()> {
    sys::numbers(libc::SYS_kill, [pid as u64, signal as u64, 0, 0, 0]).named("kill").map(|_| ())
}

/// Makes every descriptor of ours above 2 close on exec (close_range(2), Linux 5.11), so that
/// programs we start get none of what we were started with.
pub fn keep_descriptors_to_ourselves() -> Result<()> {
    const CLOSE_RANGE_CLOEXEC: u64 = 4;
    let args = [3, u64::from(u32::MAX), CLOSE_RANGE_CLOEXEC, 0, 0];
    sys::numbers(libc::SYS_close_range, args).named("close_range").map(|_| ())
}
