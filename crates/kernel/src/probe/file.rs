//! Files: what fdinfo says of them, mounts, timers.

use super::{Answer, answer, call, errno, found, in_child, ioctl, unshare};
use crate::error::{Error, Named, Result};
use rustix::{
    fs::{FlockOperation, MemfdFlags},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec},
};
use std::os::fd::{AsRawFd, OwnedFd};

/// /proc/self/fdinfo of `fd`.
fn fdinfo(fd: &impl AsRawFd) -> Result<String> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    std::fs::read_to_string(path).map_err(|e| errno(&e)).named("read(/proc/self/fdinfo)")
}

fn memfd() -> Result<OwnedFd> {
    rustix::fs::memfd_create("probe", MemfdFlags::CLOEXEC).named("memfd_create")
}

/// mnt_id: fdinfo says on which mount a file is.
pub fn mount_id() -> Result<Answer> {
    Ok(found(fdinfo(&memfd()?)?.contains("mnt_id:\t"), "no mnt_id in fdinfo"))
}

/// fdinfo_lock: fdinfo says which locks are held by a description.
pub fn locks() -> Result<Answer> {
    let file = memfd()?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).named("flock")?;
    Ok(found(fdinfo(&file)?.contains("lock:\t"), "no lock in fdinfo of a locked file"))
}

/// timerfd: fdinfo says how a timer is set, and expirations not yet read can be set (TFD_IOC_SET_TICKS).
pub fn timer() -> Result<Answer> {
    const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = match rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags) {
        Ok(timer) => timer,
        refused => return answer("timerfd_create", refused),
    };
    let later = Timespec { tv_sec: 1000, tv_nsec: 0 };
    let setting = Itimerspec { it_interval: later, it_value: later };
    rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &setting).named("timerfd_settime")?;
    let text = fdinfo(&timer)?;
    if !["clockid:", "ticks:", "it_value:"].iter().all(|word| text.contains(word)) {
        return Ok(Answer::Missing("fdinfo of a timer does not say how it is set".to_owned()));
    }
    let two = 2u64;
    let set = ioctl(&timer, TFD_IOC_SET_TICKS, (&raw const two) as u64);
    match set.and_then(|_| {
        let mut ticks = [0; 8];
        rustix::io::read(&timer, &mut ticks).map(|_| u64::from_le_bytes(ticks))
    }) {
        Ok(ticks) => Ok(found(ticks == two, "TFD_IOC_SET_TICKS: not what was set")),
        refused => answer("ioctl(TFD_IOC_SET_TICKS)", refused),
    }
}

/// autofs: it can be mounted, and mountinfo says which pipe it is told by.
pub fn autofs() -> Result<Answer> {
    let work = || {
        unshare(libc::CLONE_NEWNS)?;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let root = c"/".as_ptr() as u64;
        call(libc::SYS_mount, [0, root, 0, private, 0, 0])?;
        let (_read, write) = pipe_with(PipeFlags::empty())?;
        let data = format!("fd={},minproto=5,maxproto=5,direct\0", write.as_raw_fd());
        let (name, place) = (c"autofs".as_ptr() as u64, c"/proc".as_ptr() as u64);
        // It is mounted on /proc, where nothing can be opened then.
        let open = std::fs::File::open("/proc/self/mountinfo").map_err(|e| errno(&e))?;
        call(libc::SYS_mount, [name, place, name, 0, data.as_ptr() as u64, 0])?;
        let text = std::io::read_to_string(open).map_err(|e| errno(&e))?;
        if text.contains("pipe_ino=") { Ok(()) } else { Err(Errno::OPNOTSUPP) }
    };
    answer("mount of autofs", in_child(work))
}

/// move_mount_set_group: a mount can be made one of another's peer group (MOVE_MOUNT_SET_GROUP).
pub fn mount_group() -> Result<Answer> {
    // MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH, MOVE_MOUNT_SET_GROUP.
    const FLAGS: u64 = 0x4 | 0x40 | 0x100;
    let (none, empty) = (u64::MAX, c"".as_ptr() as u64);
    // A kernel that knows the flags goes on to the descriptors, which are none.
    match call(libc::SYS_move_mount, [none, empty, none, empty, FLAGS, 0]) {
        Err(Errno::BADF) => Ok(Answer::Present),
        Ok(_) => Err(Error::Os { call: "move_mount of nothing", errno: Errno::BADF }),
        refused => answer("move_mount(MOVE_MOUNT_SET_GROUP)", refused),
    }
}

/// apparmor_stacking: profiles can be put one upon another.
pub fn apparmor_stacking() -> Result<Answer> {
    let path = "/sys/kernel/security/apparmor/features/domain/stack";
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(found(text.trim() == "yes", "AppArmor does not stack profiles")),
        Err(cause) => answer("AppArmor's features in /sys/kernel/security", Err::<(), _>(errno(&cause))),
    }
}
