//! Descriptors that no kind claims, by name: what each is, and what to do about it.
//!
//! *Refused*, all of them: their state is in the kernel alone, or in a device, or belongs to another program.

use super::Descriptor;
use crate::{advice::Means, error::Error, task::show};
use ckpt_proc::link::FdLink;
use rustix::fs::{FileType, major, minor};

const CLOSE: &str = "let the program close it, or checkpoint at another moment";
const DISABLE: &str = "run the program without it (most have an option or fall back when it is forbidden)";

/// Anonymous inodes by the beginning of their name.
const ANONYMOUS: &[(&[u8], &str, &str)] = &[
    (b"eventpoll", "an epoll descriptor", CLOSE),
    (b"userfaultfd", "a userfaultfd", CLOSE),
    (b"io_uring", "an io_uring", DISABLE),
    (b"perf_event", "a perf event", "end the measurement first"),
    (b"bpf", "a bpf object", "pin it in bpffs and let the program close it"),
    (b"btf", "a bpf type description", CLOSE),
    (b"seccomp notify", "a seccomp notification descriptor", "checkpoint without the supervisor"),
    (b"landlock-ruleset", "a Landlock ruleset", CLOSE),
    (b"kvm", "a KVM virtual machine", "suspend the machine by its own means"),
    (b"sync_file", "a fence of a graphics device (sync_file)", CLOSE),
    (b"iommufd", "an iommufd", CLOSE),
    (b"vfio", "a VFIO device", CLOSE),
    (b"fscontext", "a file system that is being configured (fsopen)", CLOSE),
];

/// Character devices with state, by path.
const DEVICES: &[(&[u8], &str, &str)] = &[
    (b"/dev/kvm", "the KVM device", "suspend the machine by its own means"),
    (b"/dev/fuse", "a FUSE connection", "unmount the file system first"),
    (b"/dev/kmsg", "a reader of the kernel's log", CLOSE),
    (b"/dev/mem", "the machine's memory", CLOSE),
    (b"/dev/port", "the machine's I/O ports", CLOSE),
    (b"/dev/rtc", "a clock", CLOSE),
    (b"/dev/uinput", "a device that it makes", CLOSE),
    (b"/dev/loop-control", "the control of loop devices", CLOSE),
];

/// Those that a program may well have from outside.
const OUTSIDE: &[(&[u8], &str)] = &[
    (b"/dev/net/tun", "a tun/tap interface"),
    (b"/dev/dri/", "a graphics device"),
    (b"/dev/nvidia", "a graphics device"),
    (b"/dev/snd/", "a sound device"),
    (b"/dev/input/", "an input device"),
];

/// How /proc shows memfd_secret(2).
const SECRET: &[u8] = b"/secretmem";

/// Whether a descriptor is one of memfd_secret(2).
pub(super) fn is_secret(descriptor: &Descriptor<'_>) -> bool {
    const SECRETMEM_MAGIC: i64 = 0x5345_434d;
    descriptor.link.starts_with(SECRET) && descriptor.fs == SECRETMEM_MAGIC
}

/// The error for a descriptor that no kind claims.
pub(super) fn refusal(descriptor: &Descriptor<'_>) -> Error {
    let link = show(&descriptor.link);
    let known = |table: &[(&[u8], &str, &'static str)], name: &[u8]| {
        let found = table.iter().find(|(prefix, ..)| name.starts_with(prefix));
        found.map(|(_, what, advice)| (format!("{what} ({link})"), *advice))
    };
    let mut outside = false;
    let (what, advice) = match descriptor.target() {
        FdLink::AnonInode(_) | FdLink::Pipe(_) | FdLink::Socket(_) if descriptor.is_place() => {
            (format!("a place (O_PATH) that no path leads to ({link})"), CLOSE)
        }
        FdLink::AnonInode(name) => {
            known(ANONYMOUS, name).unwrap_or_else(|| (format!("a descriptor of type {link}"), CLOSE))
        }
        FdLink::Memfd(name) => {
            (format!("the memfd {} of huge pages (MFD_HUGETLB)", show(name)), "use a memfd of small pages")
        }
        FdLink::Namespace(kind, _) => (format!("a descriptor of a {} namespace ({link})", show(kind)), CLOSE),
        FdLink::Other(name) if name.starts_with(b"dmabuf:") => (format!("a DMA buffer ({link})"), CLOSE),
        _ if is_secret(descriptor) => {
            ("secret memory (memfd_secret)".to_owned(), "nobody but its program can read it: let it unmap it")
        }
        _ if descriptor.file_type() == FileType::CharacterDevice => {
            let device = descriptor.stat.st_rdev;
            let number = format!("the device {link} ({}:{})", major(device), minor(device));
            known(DEVICES, descriptor.path()).unwrap_or_else(|| {
                outside = true;
                let found = OUTSIDE.iter().find(|(prefix, _)| descriptor.path().starts_with(prefix));
                (found.map_or(number, |(_, what)| format!("{what} ({link})")), "let the program close it")
            })
        }
        _ if descriptor.file_type() == FileType::BlockDevice => {
            let device = descriptor.stat.st_rdev;
            outside = true;
            (
                format!("the block device {link} ({}:{})", major(device), minor(device)),
                "let the program close it",
            )
        }
        _ => (format!("{link} is of a kind that"), CLOSE),
    };
    let error = Error::unsupported(format!("{what} cannot be carried yet")).advice(advice);
    if outside { error.or(Means::External) } else { error }
}
