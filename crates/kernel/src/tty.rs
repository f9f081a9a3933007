//! ioctls of terminals that rustix does not have, on descriptors of ours; see ioctl_tty(2).

use crate::{
    error::{Named, Result},
    sys,
};
use ckpt_image::record::Tty;
use rustix::{process::Pid, termios::Winsize};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use zerocopy::{FromBytes, IntoBytes};

/// `struct termios2`.
const TERMIOS: usize = 44;
const TCGETS2: u64 = 0x802c_542a;
const TCSETS2: u64 = 0x402c_542b;
const TIOCGPTN: u64 = 0x8004_5430;
const TIOCSPTLCK: u64 = 0x4004_5431;
const TIOCGDEV: u64 = 0x8004_5432;
const TIOCGPKT: u64 = 0x8004_5438;
const TIOCGPTLCK: u64 = 0x8004_5439;
const TIOCGEXCL: u64 = 0x8004_5440;
const TIOCGPTPEER: u64 = 0x5441;

/// Makes the descriptor's terminal the caller's controlling one.
pub const TIOCSCTTY: u64 = 0x540e;
/// Makes a group the foreground one.
pub const TIOCSPGRP: u64 = 0x5410;
/// The caller gives its controlling terminal up.
pub const TIOCNOTTY: u64 = 0x5422;

/// Something that is on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// The slave cannot be opened (TIOCSPTLCK).
    Locked,
    /// Packet mode, of a master (TIOCPKT).
    Packet,
    /// It cannot be opened again (TIOCEXCL).
    Exclusive,
}

impl Switch {
    /// Whether it is on.
    pub fn get(self, fd: impl AsFd) -> Result<bool> {
        let request = match self {
            Switch::Locked => TIOCGPTLCK,
            Switch::Packet => TIOCGPKT,
            Switch::Exclusive => TIOCGEXCL,
        };
        number(fd, request, 0).map(|on| on != 0)
    }

    /// Switches it.
    pub fn set(self, fd: impl AsFd, on: bool) -> Result<()> {
        let request = match self {
            Switch::Locked => TIOCSPTLCK,
            Switch::Packet => libc::TIOCPKT,
            Switch::Exclusive if on => libc::TIOCEXCL,
            Switch::Exclusive => libc::TIOCNXCL,
        };
        number(fd, request, i32::from(on)).map(|_| ())
    }
}

/// An ioctl on a number that it reads or writes, or does not care for.
fn number(fd: impl AsFd, request: u64, mut number: i32) -> Result<i32> {
    // SAFETY: the requests of this file that come here take a pointer to an int, which is live, or nothing.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, &raw mut number) };
    sys::check(done.into()).named("ioctl of a terminal")?;
    Ok(number)
}

/// The number of a master's pty (TIOCGPTN).
pub fn index(master: impl AsFd) -> Result<u32> {
    number(master, TIOCGPTN, 0).map(|index| index as u32)
}

/// Major and minor number of the terminal itself, where a descriptor says only "the current one" (TIOCGDEV).
pub fn device(tty: impl AsFd) -> Result<(u32, u32)> {
    number(tty, TIOCGDEV, 0).map(|word| split_device(word as u32))
}

/// Major and minor of a device number as /proc/PID/stat and TIOCGDEV have it.
pub fn split_device(word: u32) -> (u32, u32) {
    (word >> 8 & 0xfff, word & 0xff | word >> 12 & 0xf_ff00)
}

/// The session a terminal controls, through a master or by a member of it (TIOCGSID).
pub fn session(tty: impl AsFd) -> Result<i32> {
    number(tty, libc::TIOCGSID, 0)
}

/// A description of a master's slave with exactly these flags, O_CLOEXEC among them, which are shown as the
/// description's (TIOCGPTPEER, Linux 4.13). It never becomes a controlling terminal.
pub fn peer(master: impl AsFd, flags: u32) -> Result<OwnedFd> {
    let flags = flags | libc::O_NOCTTY as u32;
    // SAFETY: TIOCGPTPEER takes a number.
    let fd = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), TIOCGPTPEER, u64::from(flags)) };
    let fd = sys::check(fd.into()).named("ioctl(TIOCGPTPEER)")?;
    // SAFETY: it is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The settings of a terminal, those of the slave through either end.
pub fn settings(tty: impl AsFd) -> Result<Tty> {
    let mut bytes = [0u8; size_of::<Tty>()];
    // SAFETY: TCGETS2 writes the 44 bytes of a struct termios2 to `bytes`, which is longer.
    let done = unsafe { libc::ioctl(tty.as_fd().as_raw_fd(), TCGETS2, bytes.as_mut_ptr()) };
    sys::check(done.into()).named("ioctl(TCGETS2)")?;
    let size = rustix::termios::tcgetwinsize(tty).named("ioctl(TIOCGWINSZ)")?;
    let window = [size.ws_row, size.ws_col, size.ws_xpixel, size.ws_ypixel];
    let tty = Tty::read_from_bytes(&bytes).unwrap_or_default();
    Ok(Tty { window, ..tty })
}

/// Sets all settings but the window, also from the background.
pub fn set_modes(tty: impl AsFd, settings: &Tty) -> Result<()> {
    const { assert!(size_of::<Tty>() >= TERMIOS) };
    let (fd, bytes) = (tty.as_fd().as_raw_fd(), settings.as_bytes());
    // SAFETY: TCSETS2 reads the 44 bytes of a struct termios2, with which a Tty begins.
    let done = unquestioned(|| sys::check(unsafe { libc::ioctl(fd, TCSETS2, bytes.as_ptr()) }.into()));
    done.named("ioctl(TCSETS2)").map(|_| ())
}

/// Makes a process group of our session the foreground one, also from the background.
pub fn set_foreground(tty: impl AsFd, group: Pid) -> Result<()> {
    unquestioned(|| rustix::termios::tcsetpgrp(&tty, group)).named("ioctl(TIOCSPGRP)")
}

/// Does something with our terminal that stops a process in its background that does not block SIGTTOU.
fn unquestioned<T>(act: impl FnOnce() -> T) -> T {
    let old = sys::set_mask(!0);
    let done = act();
    sys::set_mask(old);
    done
}

/// Sets the size of the window.
pub fn set_window(tty: impl AsFd, settings: &Tty) -> Result<()> {
    let [ws_row, ws_col, ws_xpixel, ws_ypixel] = settings.window;
    let size = Winsize { ws_row, ws_col, ws_xpixel, ws_ypixel };
    rustix::termios::tcsetwinsize(tty, size).named("ioctl(TIOCSWINSZ)")
}
