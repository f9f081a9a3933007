//! /dev/tty: the controlling terminal of whoever opened it.
//!
//! *Saved*: which terminal that was (TIOCGDEV), its settings. *Restored*: of a pty with its master inside, by a
//! process that takes it as its terminal for a moment, opens /dev/tty and gives it up; the description is
//! shared like any other. Of a terminal outside: /dev/tty of `restart`, see `external.rs`.

use super::{Descriptor, FileKind, OpenContext, pty};
use crate::{
    error::{Error, Result},
    objects::Objects,
    resource::layout,
    task::{ProcDir, Process, show},
};
use ckpt_image::{model, record::file_kind};
use ckpt_kernel::{
    Errno,
    memory::Span,
    program::{Arg, Program},
    puppet::{Parent, Puppet, Spawn},
    tty::{self, TIOCNOTTY, TIOCSCTTY},
};
use ckpt_proc::maps::parse_maps;
use rustix::fs::{FileType, OFlags, makedev};
use std::os::fd::{AsRawFd, OwnedFd};
use zerocopy::IntoBytes;

/// See the module.
pub(crate) struct Current;

/// Its device.
const DEVICE: (u32, u32) = (5, 0);

impl FileKind for Current {
    fn kind(&self) -> u32 {
        file_kind::TTY_CURRENT
    }

    fn claims(&self, descriptor: &Descriptor<'_>) -> bool {
        !descriptor.is_place()
            && descriptor.file_type() == FileType::CharacterDevice
            && descriptor.stat.st_rdev == makedev(DEVICE.0, DEVICE.1)
    }

    fn checkpoint(&self, descriptor: &Descriptor<'_>, objects: &mut Objects) -> Result<model::File> {
        match tty::settings(descriptor.copy()?) {
            Ok(settings) => {
                let details = settings.as_bytes().to_vec();
                Ok(model::File { details, ..descriptor.record(file_kind::TTY_CURRENT)? })
            }
            Err(error) if error.errno() == Some(Errno::IO) => pty::hung_up(descriptor, objects),
            Err(error) => Err(error.into()),
        }
    }

    fn open(&self, file: &model::File, context: &OpenContext<'_>) -> Result<Option<OwnedFd>> {
        if file.record.inode == 0 {
            return Ok(None);
        }
        let made = context.inodes.get(&file.record.inode);
        let made = made.ok_or_else(|| Error::bad_image(format!("{}: no pty", show(&file.path))))?;
        open_through(&made.fd, file.record.flags).map(Some)
    }
}

/// Opens /dev/tty as one whose terminal is `slave`.
fn open_through(slave: &OwnedFd, flags: u32) -> Result<OwnedFd> {
    let own = ProcDir::own()?.parse("maps", parse_maps)?;
    let mut taken = own.iter().map(|m| Span { start: m.start, len: m.len() as usize }).collect();
    let len = Puppet::slot_len(1);
    let slot = Span { start: layout::free_range(&mut taken, len)?, len };
    let parent = Parent::We;
    let spawn = Spawn { set_tid: &[], namespaces: 0, parent, inside: None, slot, signal: libc::SIGURG };
    let mut helper = Puppet::spawn(&spawn)?;
    let fd = slave.as_raw_fd();
    let kept = OFlags::RWMODE | OFlags::NONBLOCK | OFlags::LARGEFILE | OFlags::DSYNC | OFlags::SYNC;
    let flags = OFlags::from_bits_retain(flags) & kept | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut program = Program::new();
    program.call("setsid", 0, libc::SYS_setsid, []);
    program.call("ioctl(TIOCSCTTY)", 0, libc::SYS_ioctl, [fd.into(), TIOCSCTTY.into(), 0u64.into()]);
    let path = Arg::In(b"/dev/tty\0".to_vec());
    program.call("open /dev/tty", 0, libc::SYS_open, [path, flags.bits().into(), 0u64.into()]);
    // Else its end would hang the terminal up.
    program.call("ioctl(TIOCNOTTY)", 0, libc::SYS_ioctl, [fd.into(), TIOCNOTTY.into(), 0u64.into()]);
    let outcomes = helper.run(0, program)?;
    let opened = outcomes.get(2).map_or(-1, |outcome| outcome.result as i32);
    Process::open(helper.pid())?.descriptor(opened)
}
