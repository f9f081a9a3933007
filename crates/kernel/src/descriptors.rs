//! Thousands of descriptors: closed together, and opened side by side.

use crate::{
    error::{Error, Named},
    sys,
};
use rustix::{
    io::{Errno, fcntl_dupfd_cloexec, retry_on_intr},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, shutdown,
    },
    thread::{sched_getaffinity, sched_getcpu, sched_setaffinity, sched_yield},
};
use std::{
    collections::VecDeque,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread::{Builder, Scope},
};

/// Closes descriptors, those with numbers in a row by one close_range(2) (Linux 5.9).
pub fn close_all(fds: impl IntoIterator<Item = OwnedFd>) {
    let mut numbers: Vec<RawFd> = fds.into_iter().map(IntoRawFd::into_raw_fd).collect();
    numbers.sort_unstable();
    for run in numbers.chunk_by(|a, b| a + 1 == *b) {
        if let (Some(first), Some(last)) = (run.first(), run.last()) {
            // SAFETY: exactly descriptors that were owned by what was given to us.
            if unsafe { libc::syscall(libc::SYS_close_range, *first, *last, 0) } != 0 {
                // SAFETY: the same; close_range(2) closes all or, as here, none: it is refused.
                run.iter().for_each(|fd| drop(unsafe { OwnedFd::from_raw_fd(*fd) }));
            }
        }
    }
}

/// Gives the calling thread a descriptor table of its own (unshare(CLONE_FILES)), a copy: what it opens from here on is
/// nobody else's to use or to close, and it waits for no other thread.
pub fn unshare() -> Result<(), Error> {
    sys::numbers(libc::SYS_unshare, [libc::CLONE_FILES as u64, 0, 0, 0, 0]).named("unshare").map(drop)
}

/// Descriptors that one message takes, at most (SCM_MAX_FD is 253).
pub const AT_ONCE: usize = 250;

/// Files to be opened, in batches of [`AT_ONCE`] at most, and who has taken which of them on himself.
#[derive(Debug)]
pub struct Batches<I> {
    all: Vec<Vec<I>>,
    takers: Mutex<Vec<Option<Taker>>>,
}

/// Who opens a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taker {
    We,
    Thread(usize),
}

impl<I: Copy> Batches<I> {
    /// Nobody has any yet.
    pub fn new(all: Vec<Vec<I>>) -> Self {
        let takers = Mutex::new(vec![None; all.len()]);
        Self { all, takers }
    }

    fn items(&self, at: usize) -> impl Iterator<Item = I> {
        self.all.get(at).into_iter().flatten().copied()
    }

    /// Takes a batch for ourselves, unless a thread has it. `None`: there is no such batch.
    fn take(&self, at: usize) -> Option<Taker> {
        let mut takers = self.takers.lock().unwrap_or_else(PoisonError::into_inner);
        takers.get_mut(at).map(|taker| *taker.get_or_insert(Taker::We))
    }

    /// Takes the last batch that nobody has for a thread.
    fn take_last(&self, thread: usize) -> Option<usize> {
        let mut takers = self.takers.lock().unwrap_or_else(PoisonError::into_inner);
        let at = takers.iter().rposition(Option::is_none)?;
        if let Some(taker) = takers.get_mut(at) {
            *taker = Some(Taker::Thread(thread));
        }
        Some(at)
    }
}

/// Files that are opened side by side. We open them from the first on, as they are asked for. Threads open them from the last
/// on, and hand them over as soon as nothing is left to be taken: each has a descriptor table of its own, as those who share one
/// would wait for each other, and get numbers in no order. What is handed over gets the lowest numbers that are free, batch by
/// batch, when the first of the batch is asked for.
#[derive(Debug)]
pub struct SideBySide<'a, I, T, E, F> {
    batches: &'a Batches<I>,
    open: &'a F,
    threads: Vec<Thread<T, E>>,
    /// The batch whose turn is next.
    next: usize,
    /// What is left of ours.
    own: VecDeque<I>,
    /// What was handed over.
    here: VecDeque<Result<(OwnedFd, T), E>>,
}

impl<'a, I, T, E, F> SideBySide<'a, I, T, E, F>
where
    I: Copy + Send + Sync,
    T: Send,
    E: Send,
    F: Fn(I) -> Result<(OwnedFd, T), E> + Sync,
{
    /// Starts up to `threads` threads. Each takes two descriptors, with the number `lowest` or above, until it has a table of its
    /// own, then one. They can do no more than open files by absolute paths: of our descriptors they have the standard ones.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        threads: usize,
        lowest: RawFd,
        batches: &'a Batches<I>,
        open: &'a F,
    ) -> Self
    where
        'a: 'scope,
        T: 'scope,
        E: 'scope,
    {
        let start = |number| {
            let work = move |socket: &OwnedFd, tell: &Sender<Told<T, E>>| {
                hand_over(socket, number, batches, open, tell);
            };
            Thread::start(scope, lowest, work)
        };
        // Whoever cannot be started is not missed.
        let threads = (0..threads).map_while(|number| start(number).ok()).collect();
        Self { batches, open, threads, next: 0, own: VecDeque::new(), here: VecDeque::new() }
    }
}

/// The files in the order of the batches, each opened as it is asked for, or waited for.
impl<I, T, E, F> Iterator for SideBySide<'_, I, T, E, F>
where
    I: Copy,
    F: Fn(I) -> Result<(OwnedFd, T), E>,
{
    type Item = Result<(OwnedFd, T), E>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(item) = self.own.pop_front() {
                return Some((self.open)(item));
            }
            if let Some(opened) = self.here.pop_front() {
                return Some(opened);
            }
            let handed_over = match self.batches.take(self.next)? {
                Taker::We => None,
                Taker::Thread(number) => self.threads.get_mut(number).and_then(Thread::receive),
            };
            match handed_over {
                Some(opened) => self.here = opened,
                // It could not hand them over.
                None => self.own = self.batches.items(self.next).collect(),
            }
            self.next += 1;
        }
    }
}

/// Whoever wants no more lets threads begin no other batch.
impl<I, T, E, F> Drop for SideBySide<'_, I, T, E, F> {
    fn drop(&mut self) {
        let mut takers = self.batches.takers.lock().unwrap_or_else(PoisonError::into_inner);
        takers.iter_mut().for_each(|taker| *taker = taker.or(Some(Taker::We)));
    }
}

/// What is told of a batch: of each file what it came to, but for the descriptor.
type Told<T, E> = Vec<Result<T, E>>;

/// Our end of a thread.
#[derive(Debug)]
struct Thread<T, E> {
    socket: OwnedFd,
    /// The other end, of which we have a copy as soon as the tables are two: an empty message says that they are.
    theirs: Option<RawFd>,
    told: Receiver<Told<T, E>>,
}

impl<T, E> Thread<T, E> {
    fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        lowest: RawFd,
        work: impl FnOnce(&OwnedFd, &Sender<Told<T, E>>) + Send + 'scope,
    ) -> Result<Self, Errno>
    where
        T: Send + 'scope,
        E: Send + 'scope,
    {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (ours, theirs) = rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None)?;
        let (ours, theirs) = (fcntl_dupfd_cloexec(ours, lowest)?, fcntl_dupfd_cloexec(theirs, lowest)?);
        let number = theirs.as_raw_fd();
        let (tell, told) = channel();
        let here = sched_getcpu();
        let work = move || {
            keep_off(here);
            work(&theirs, &tell);
        };
        Builder::new().spawn_scoped(scope, work).map_err(|_| Errno::AGAIN)?;
        // It may wait for us to leave this processor, to leave it then.
        sched_yield();
        Ok(Self { socket: ours, theirs: Some(number), told })
    }

    /// The next batch that it hands over, if it can.
    fn receive(&mut self) -> Option<VecDeque<Result<(OwnedFd, T), E>>> {
        self.part();
        let told = self.told.recv().ok()?;
        let opened = told.iter().filter(|one| one.is_ok()).count();
        let Ok(fds) = receive(&self.socket, opened) else {
            // What follows would be taken for this.
            self.refuse();
            self.told = channel().1;
            return None;
        };
        let mut fds = fds.into_iter();
        let with_fd = |one: Result<T, E>| one.map(|told| Some((fds.next()?, told))).transpose();
        Some(told.into_iter().filter_map(with_fd).collect())
    }

    /// Takes nothing more: a thread that waits to hand something over goes on.
    fn refuse(&self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
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

impl<T, E> Drop for Thread<T, E> {
    fn drop(&mut self) {
        self.part();
        self.refuse();
    }
}

/// Keeps the calling thread off a processor, if there are others. A new thread often begins where its maker runs, and it takes the
/// scheduler some ticks, longer than thousands of files take, to part them.
fn keep_off(processor: usize) {
    if let Ok(mut others) = sched_getaffinity(None) {
        others.unset(processor);
        if others.count() > 0 {
            let _ = sched_setaffinity(None, &others);
        }
    }
}

/// Closes all but the standard descriptors and one, in a table that is nobody else's: what its maker closes is closed.
fn keep_only(one: &OwnedFd) {
    let number = u64::from(one.as_raw_fd().unsigned_abs());
    for (first, last) in [(3, number.saturating_sub(1)), (number + 1, u32::MAX.into())] {
        if first <= last {
            let _ = sys::numbers(libc::SYS_close_range, [first, last, 0, 0, 0]);
        }
    }
}

/// What a thread does. It ends early when it cannot have a table of its own, or hand anything over.
fn hand_over<I: Copy, T, E>(
    socket: &OwnedFd,
    number: usize,
    batches: &Batches<I>,
    open: impl Fn(I) -> Result<(OwnedFd, T), E>,
    tell: &Sender<Told<T, E>>,
) {
    if unshare().is_err() {
        return;
    }
    keep_only(socket);
    if tell.send(Vec::new()).is_err() {
        return;
    }
    let mut opened = Vec::new();
    while let Some(at) = batches.take_last(number) {
        let mut fds = Vec::with_capacity(AT_ONCE);
        let mut keep = |(fd, told)| {
            fds.push(fd);
            told
        };
        let told = batches.items(at).map(&open).map(|one| one.map(&mut keep)).collect();
        opened.push((fds, told));
    }
    for (fds, told) in opened.into_iter().rev() {
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

    /// One after the other: the table is everybody's.
    #[test]
    fn side_by_side() {
        opened_by_all();
        opened_by_us_in_the_end();
        no_more_wanted();
    }

    /// What comes is what was asked for, in order and at ascending numbers, whoever has opened it; a failure is one item's alone.
    fn opened_by_all() {
        let path = |item: usize| if item == 300 { "/nowhere" } else { "/dev/null" };
        let open = |item: usize| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::open(path(item), flags, Mode::empty()).map(|fd| (fd, item))
        };
        let items: Vec<usize> = (0..600).collect();
        for threads in [0, 1, 3] {
            let batches = Batches::new(items.chunks(50).map(<[usize]>::to_vec).collect());
            let mut seen = Vec::new();
            std::thread::scope(|scope| {
                let mut opened = SideBySide::start(scope, threads, 700, &batches, &open);
                seen.extend(opened.by_ref().take(1));
                // Those that can take all the others.
                while threads > 0 && batches.takers.lock().unwrap().contains(&None) {
                    std::thread::yield_now();
                }
                seen.extend(opened);
            });
            assert_eq!(seen.len(), 600);
            let null = rustix::fs::stat("/dev/null").unwrap();
            for (item, one) in seen.iter().enumerate() {
                match one {
                    Ok((fd, told)) => assert_eq!((*told, fstat(fd).unwrap().st_ino), (item, null.st_ino)),
                    Err(error) => assert_eq!((*error, item), (Errno::NOENT, 300)),
                }
            }
            let numbers = seen.iter().filter_map(|one| one.as_ref().ok()).map(|(fd, _)| fd.as_raw_fd());
            assert!(numbers.collect::<Vec<RawFd>>().is_sorted());
            let taken = |taker| batches.takers.lock().unwrap().iter().filter(|one| **one == taker).count();
            assert_eq!(taken(Some(Taker::We)) == 12, threads == 0);
            close_all(seen.into_iter().filter_map(|one| one.ok().map(|(fd, _)| fd)));
        }
    }

    /// What a thread cannot hand over is opened by us.
    /// A thread that has more to hand over than a socket takes does not wait for ever.
    fn no_more_wanted() {
        let open =
            |_: usize| rustix::fs::open("/dev/null", OFlags::CLOEXEC, Mode::empty()).map(|fd| (fd, ()));
        let batches = Batches::new((0..900).map(|item| vec![item]).collect());
        std::thread::scope(|scope| {
            let mut opened = SideBySide::start(scope, 2, 1000, &batches, &open);
            assert!(opened.next().is_some_and(|one| one.is_ok()));
            while batches.takers.lock().unwrap().contains(&None) {
                std::thread::yield_now();
            }
            // So that it waits, most likely.
            std::thread::sleep(std::time::Duration::from_millis(50));
        });
    }

    fn opened_by_us_in_the_end() {
        let open =
            |_: usize| rustix::fs::open("/dev/null", OFlags::CLOEXEC, Mode::empty()).map(|fd| (fd, ()));
        let batches = Batches::new(vec![vec![0; 3], vec![1; AT_ONCE + 10], vec![2; 3]]);
        std::thread::scope(|scope| {
            let mut opened = SideBySide::start(scope, 1, 700, &batches, &open);
            assert!(opened.by_ref().take(1).all(|one| one.is_ok()));
            while batches.takers.lock().unwrap().contains(&None) {
                std::thread::yield_now();
            }
            assert_eq!(opened.filter(Result::is_ok).count(), 2 + AT_ONCE + 10 + 3);
        });
    }
}
