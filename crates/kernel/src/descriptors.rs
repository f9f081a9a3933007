//! Thousands of descriptors: closed together, and opened side by side.

use crate::{
    error::{Error, Named},
    sys,
};
use rustix::{
    io::{Errno, retry_on_intr},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    },
};
use std::{
    collections::VecDeque,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
    sync::mpsc::{Receiver, Sender, channel},
    thread::{Builder, Scope},
};

/// Closes descriptors, those with numbers in a row by one close_range(2) (Linux 5.9).
pub fn close_all(fds: impl IntoIterator<Item = OwnedFd>) {
    let mut numbers: Vec<RawFd> = fds.into_iter().map(IntoRawFd::into_raw_fd).collect();
    numbers.sort_unstable();
    for run in numbers.chunk_by(|a, b| a + 1 == *b) {
        if let (Some(first), Some(last)) = (run.first(), run.last()) {
            // SAFETY: exactly descriptors that were owned by what was given to us.
            unsafe { libc::syscall(libc::SYS_close_range, *first, *last, 0) };
        }
    }
}

/// Descriptors that one message takes, at most (SCM_MAX_FD is 253).
pub const AT_ONCE: usize = 250;

/// A thread with a descriptor table of its own, which opens files and hands them over. Those who share a table would wait for
/// each other, and get numbers in no order.
#[derive(Debug)]
pub struct Aside<T, E> {
    socket: OwnedFd,
    /// The other end, of which we have a copy as soon as the tables are two: an empty message says that they are.
    theirs: Option<RawFd>,
    told: Receiver<Vec<Result<T, E>>>,
    /// What it has told, and the descriptors for that.
    here: VecDeque<Result<(OwnedFd, T), E>>,
}

impl<T, E> Aside<T, E> {
    /// Starts one that opens the items of `batches`, in their order. A batch has [`AT_ONCE`] items at most. Until it is dropped two
    /// descriptors are taken, with the number `lowest` or above.
    pub fn start<'scope, I: Send + 'scope>(
        scope: &'scope Scope<'scope, '_>,
        lowest: RawFd,
        batches: Vec<Vec<I>>,
        open: impl Fn(I) -> Result<(OwnedFd, T), E> + Send + 'scope,
    ) -> Result<Self, Error>
    where
        T: Send + 'scope,
        E: Send + 'scope,
    {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (ours, theirs) =
            rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None).named("socketpair")?;
        let above = |fd: OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, lowest).named("fcntl(F_DUPFD_CLOEXEC)");
        let (ours, theirs) = (above(ours)?, above(theirs)?);
        let number = theirs.as_raw_fd();
        let (tell, told) = channel();
        let work = move || hand_over(&theirs, batches, &open, &tell);
        Builder::new().spawn_scoped(scope, work).map_err(|_| Errno::AGAIN).named("start a thread")?;
        Ok(Self { socket: ours, theirs: Some(number), told, here: VecDeque::new() })
    }

    /// Waits until the tables are two, and closes our copy of the other end. If the thread ends before that, it has closed the
    /// only one.
    fn part(&mut self) {
        if let Some(theirs) = self.theirs.take()
            && self.told.recv().is_ok()
        {
            // SAFETY: the thread's descriptor is of its own table by now, and nobody else knows that number in ours.
            drop(unsafe { OwnedFd::from_raw_fd(theirs) });
        }
    }
}

/// The items, each waited for. The first of a batch brings all of it: they get the lowest numbers that are free, in their order.
/// If they end early, it could not go on, and what is left is to be opened by whoever asks.
impl<T, E> Iterator for Aside<T, E> {
    type Item = Result<(OwnedFd, T), E>;

    fn next(&mut self) -> Option<Self::Item> {
        self.part();
        while self.here.is_empty() {
            let told = self.told.recv().ok()?;
            let opened = told.iter().filter(|one| one.is_ok()).count();
            let Ok(fds) = receive(&self.socket, opened) else {
                // Those that follow would be taken for these.
                self.told = channel().1;
                return None;
            };
            let mut fds = fds.into_iter();
            let with_fd = |one: Result<T, E>| one.map(|told| Some((fds.next()?, told))).transpose();
            self.here = told.into_iter().filter_map(with_fd).collect();
        }
        self.here.pop_front()
    }
}

impl<T, E> Drop for Aside<T, E> {
    fn drop(&mut self) {
        self.part();
    }
}

/// What the thread does. It ends early when it cannot have a table of its own, or hand anything over.
fn hand_over<I, T, E>(
    socket: &OwnedFd,
    batches: Vec<Vec<I>>,
    open: &impl Fn(I) -> Result<(OwnedFd, T), E>,
    tell: &Sender<Vec<Result<T, E>>>,
) {
    let parted = sys::numbers(libc::SYS_unshare, [libc::CLONE_FILES as u64, 0, 0, 0, 0]);
    if parted.is_err() || tell.send(Vec::new()).is_err() {
        return;
    }
    for batch in batches {
        let mut fds = Vec::with_capacity(batch.len());
        let mut keep = |(fd, told)| {
            fds.push(fd);
            told
        };
        let told = batch.into_iter().map(open).map(|one| one.map(&mut keep)).collect();
        let sent = send(socket, &fds);
        close_all(fds);
        if sent.is_err() || tell.send(told).is_err() {
            return;
        }
    }
}

fn send(socket: &OwnedFd, fds: &[OwnedFd]) -> Result<(), Errno> {
    if fds.is_empty() {
        return Ok(());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::INVAL);
    }
    let send =
        || rustix::net::sendmsg(socket, &[IoSlice::new(b"f")], &mut ancillary, SendFlags::NOSIGNAL).map(drop);
    retry_on_intr(send)
}

/// Takes `count` descriptors out of a message.
fn receive(socket: &OwnedFd, count: usize) -> Result<Vec<OwnedFd>, Errno> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let receive = || {
        let mut bytes = [IoSliceMut::new(&mut byte)];
        rustix::net::recvmsg(socket, &mut bytes, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    };
    retry_on_intr(receive)?;
    let fds: Vec<OwnedFd> = ancillary
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
            _ => Vec::new(),
        })
        .collect();
    // Fewer came if there was no room for them here.
    if fds.len() == count { Ok(fds) } else { Err(Errno::MFILE) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, OFlags, fstat};

    /// What is handed over is what was asked for, in order and at the lowest numbers; a failure is one item's alone.
    #[test]
    fn opened_aside() {
        let path = |item: usize| if item == 300 { "/nowhere" } else { "/dev/null" };
        let open = |item: usize| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::open(path(item), flags, Mode::empty()).map(|fd| (fd, item))
        };
        let items: Vec<usize> = (0..600).collect();
        let batches = items.chunks(AT_ONCE).map(<[usize]>::to_vec).collect();
        let mut seen = Vec::new();
        std::thread::scope(|scope| {
            seen.extend(Aside::start(scope, 1000, batches, open).unwrap());
        });
        assert_eq!(seen.len(), 600);
        let null = rustix::fs::stat("/dev/null").unwrap();
        for (item, one) in seen.iter().enumerate() {
            match one {
                Ok((fd, told)) => assert_eq!((*told, fstat(fd).unwrap().st_ino), (item, null.st_ino)),
                Err(error) => assert_eq!((*error, item), (Errno::NOENT, 300)),
            }
        }
        let fds: Vec<OwnedFd> = seen.into_iter().filter_map(|one| one.ok().map(|(fd, _)| fd)).collect();
        let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        assert!(numbers.is_sorted());
        close_all(fds);
        // SAFETY: asks only.
        assert!(numbers.iter().all(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } < 0));
    }
}
