//! POSIX message queues (mq_overview(7)).
//!
//! A queue has a name in an ipc namespace, and what is in it belongs to that as the contents of a file belong to a
//! file system: the queue is opened again, not made again. *Saved*: name, flags, attributes (mq_getattr(3)), and who is
//! told of a message (mq_notify(3)), which the queue's own file shows. *Restored*: mq_open; mq_notify by that process.
//! *Refused*: a queue without a name (its messages cannot be read without taking them out), notification by a thread
//! (SIGEV_THREAD: a netlink socket). An error at restart: a queue that is not there, or has other attributes; a
//! notification that another has asked for meanwhile. *Lost*: the value that comes with the signal of a notification.

use super::{Descriptor, FileKind, OpenContext};
use crate::{
    advice::Means,
    error::{Error, Result},
    objects::Objects,
    restore::Parts,
    task::show,
};
use ckpt_image::{
    Image,
    model::{self, details},
    record::{self, file_kind},
};
use ckpt_kernel::{
    mqueue,
    program::{Arg, Program},
};
use ckpt_proc::link::FdLink;
use rustix::fs::{FileType, OFlags};
use std::{collections::BTreeSet, os::fd::OwnedFd};
use zerocopy::IntoBytes;

/// See the module.
pub(crate) struct Mqueue;

/// statfs(2) f_type.
const MQUEUE_MAGIC: i64 = 0x1980_0202;
/// st_size of every queue.
const SIZE: i64 = 80;
const SIGEV_NONE: u32 = 1;

/// Whether a descriptor is one that mq_open(3) gave: its path has one component, as that of its own file system.
pub(crate) fn is_queue(descriptor: &Descriptor<'_>) -> bool {
    descriptor.file_type() == FileType::RegularFile
        && descriptor.stat.st_size == SIZE
        && descriptor.link.iter().filter(|byte| **byte == b'/').count() == 1
        && matches!(descriptor.target(), FdLink::Path { .. })
        && descriptor.fs == MQUEUE_MAGIC
}

impl FileKind for Mqueue {
    fn kind(&self) -> u32 {
        file_kind::MQUEUE
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        !descriptor.is_place() && is_queue(descriptor)
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, objects: &mut Objects) -> Result<model::File> {
        let path = show(descriptor.path());
        if descriptor.stat.st_nlink == 0 {
            let what = format!("the POSIX message queue {path} was unlinked: it cannot be carried yet");
            return Err(Error::unsupported(what).advice("let the program close it"));
        }
        let attributes = mqueue::attributes(descriptor.copy()?)?;
        let (notify, signal, pid) = notification(&descriptor.process.proc.read(&descriptor.name)?)
            .ok_or_else(|| Error::failed(format!("read the state of the message queue {path}")))?;
        let notify_pid = if objects.members.contains(&pid) { pid } else { 0 };
        if notify_pid != 0 && notify > SIGEV_NONE {
            let what =
                format!("a thread is told of messages in {path} (SIGEV_THREAD): it cannot be carried yet");
            return Err(Error::unsupported(what).advice("checkpoint when that has not been asked for"));
        }
        let (notify, signal) = if notify_pid == 0 { (0, 0) } else { (notify, signal) };
        let mut file = descriptor.record(file_kind::MQUEUE)?;
        let (max_messages, message_size) = (attributes.max_messages, attributes.message_size);
        let queue = record::Mqueue { max_messages, message_size, notify_pid, notify, signal, pad: 0 };
        file.details = queue.as_bytes().to_vec();
        Ok(file)
    }

    fn open(&self, file: &model::File, context: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        let path = show(&file.path);
        let forbidden = OFlags::CREATE | OFlags::EXCL | OFlags::TRUNC | OFlags::LARGEFILE;
        let flags = OFlags::from_bits_retain(file.record.flags) & !forbidden;
        let name = file.path.strip_prefix(b"/").unwrap_or(&file.path);
        let fd = mqueue::open(name, flags.bits()).map_err(|e| {
            let error = Error::from(e).object(format!("the POSIX message queue {path}"));
            error.advice("make it again (mq_open(3)), with its messages")
        })?;
        let now = mqueue::attributes(&fd)?;
        let was = queue(file);
        let same = (now.max_messages, now.message_size) == (was.max_messages, was.message_size);
        if !same && !context.options.force_files {
            let what = format!(
                "the POSIX message queue {path} is of {} messages of {} bytes and was of {} of {}",
                now.max_messages, now.message_size, was.max_messages, was.message_size
            );
            return Err(Error::failed(what).advice("put the original back").or(Means::ForceFiles));
        }
        Ok(Some(fd))
    }
}

/// The details of a queue.
fn queue(file: &model::File) -> record::Mqueue {
    details::<record::Mqueue>(&file.details).and_then(|all| all.first().copied()).unwrap_or_default()
}

/// How, by which signal and which process is told of a message, from `QSIZE:0 NOTIFY:0 SIGNO:10 NOTIFY_PID:7`.
fn notification(text: &[u8]) -> Option<(u32, u32, i32)> {
    let text = std::str::from_utf8(text).ok()?;
    let value = |key: &str| {
        let mut words = text.split_whitespace();
        words.find_map(|word| word.strip_prefix(key)?.strip_prefix(':')?.parse::<i32>().ok())
    };
    let unsigned = |key| value(key).and_then(|v| u32::try_from(v).ok());
    Some((unsigned("NOTIFY")?, unsigned("SIGNO")?, value("NOTIFY_PID")?))
}

/// Asks to be told of messages again, where the process of `parts` had.
pub(crate) fn restore(program: &mut Program, image: &Image, parts: &Parts<'_>) {
    const SIGEVENT: usize = 64;
    let mut asked = BTreeSet::new();
    for desc in &parts.table.descs {
        let Some(file) = image.file(desc.file).filter(|f| f.record.kind == file_kind::MQUEUE) else {
            continue;
        };
        let queue = queue(file);
        let own = queue.notify_pid == parts.process.task.pid;
        if !own || !asked.insert((file.record.dev, file.record.ino)) {
            continue;
        }
        // struct sigevent: sigev_value, sigev_signo, sigev_notify.
        let mut event =
            [0u64.to_le_bytes().as_slice(), queue.signal.as_bytes(), queue.notify.as_bytes()].concat();
        event.resize(SIGEVENT, 0);
        program.call("mq_notify", desc.fd as u64, libc::SYS_mq_notify, [desc.fd.into(), Arg::In(event)]);
    }
}

/// Gives the process that is told of messages another name.
pub(crate) fn rename(file: &mut model::File, name: impl Fn(i32) -> i32) {
    if file.record.kind == file_kind::MQUEUE {
        let was = queue(file);
        let queue = record::Mqueue { notify_pid: name(was.notify_pid), ..was };
        file.details = queue.as_bytes().to_vec();
    }
}

#[cfg(test)]
mod tests {
    use super::notification;

    #[test]
    fn who_is_told() {
        let text = b"QSIZE:129     NOTIFY:0     SIGNO:10    NOTIFY_PID:8260  \n";
        assert_eq!(notification(text), Some((0, 10, 8260)));
        assert_eq!(notification(b"QSIZE:0 NOTIFY:0 SIGNO:0 NOTIFY_PID:0"), Some((0, 0, 0)));
        assert_eq!(notification(b"QSIZE:0 NOTIFY:-1 SIGNO:0 NOTIFY_PID:0"), None);
        assert_eq!(notification(b""), None);
    }
}
