//! A visit: threads of a stopped process run syscall programs for us and end up exactly as they
//! were.
//!
//! The order of steps is such that the coordinator may die between any two of them: whenever a
//! thread's RIP is in our code, that code's data words lead it home.
//! 1. The stub is written into a zeroed tail of executable memory and run in the leader: it blocks
//!    signals *itself* (PTRACE_SETSIGMASK would strand the mask) and maps the *slot*.
//! 2. Each thread gets a *bay* in the slot: the loop, its data words, descriptors, data.
//! 3. Leaving: RIP to the part of home behind the flags, mask, then the raw registers; the leader
//!    last, after its stub has unmapped the slot. The stub's bytes are restored.
//!
//! No program of a visit issues a call with a restart block of its own (poll, nanosleep, clock_nanosleep, a
//! futex wait): the thread has one, with the call it was interrupted in, and whoever interrupts it in our code,
//! after our death, would have it replaced.
//!
//! A slot that a dead coordinator left is recognised by [`code::MAGIC`] and unmapped by the next
//! visit.

mod foothold;

pub use foothold::Traces;

use crate::{
    code::{self, Code, DESC_SIZE, MAGIC},
    error::{Error, Result},
    memory::{self, Span},
    pidns::Ids,
    program::{Batch, Outcome, Program},
    tracee::Stopped,
};
use ckpt_image::record::Regs;
use foothold::Foothold;
use rustix::io::Errno;

/// Bytes of a thread's bay.
pub const BAY_SIZE: usize = 4096;
/// Bytes of the leader's bay.
pub const LEADER_BAY_SIZE: usize = 64 << 10;
/// `orig_rax` of a task that is in no system call.
pub(crate) const NO_SYSCALL: u64 = u64::MAX;
/// The kernel's private "restart me" results and EINTR, as they stand in rax.
const ERESTARTSYS: u64 = -512i64 as u64;
const ERESTARTNOINTR: u64 = -513i64 as u64;
const ERESTARTNOHAND: u64 = -514i64 as u64;
pub(crate) const ERESTART_RESTARTBLOCK: u64 = -516i64 as u64;
const NR_RESTART_SYSCALL: u64 = 219;

/// Picks a signal whose delivery to an untraced task does nothing: neither caught, nor blocked,
/// nor pending. The arguments are masks as in /proc/PID/status.
/// `stopped`: a job-control signal has stopped the process.
pub fn park_signal(caught: u64, ignored: u64, blocked: u64, pending: u64, stopped: bool) -> Option<i32> {
    let bit = |signal: i32| 1u64 << (signal - 1);
    let harmless = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];
    let explicitly = (1..32).filter(|s| ignored & bit(*s) != 0 && *s != libc::SIGCONT);
    // That one does something as soon as it is sent, to a process that is stopped or about to be.
    let stops = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
    let stopped = stopped || stops.into_iter().any(|s| pending & bit(s) != 0);
    let last = (!stopped).then_some(libc::SIGCONT);
    let usable = |s: &i32| (caught | pending) & bit(*s) == 0;
    let candidates: Vec<i32> = harmless.into_iter().chain(explicitly).chain(last).filter(usable).collect();
    candidates.iter().find(|s| blocked & bit(**s) == 0).or(candidates.first()).copied()
}

/// The registers with which user mode would go on from `raw` (what the kernel's signal return
/// path makes of an interrupted call).
pub fn home_regs(raw: &Regs) -> Regs {
    let mut regs = *raw;
    if regs.orig_rax as i64 >= 0 {
        match regs.rax {
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
                regs.rax = regs.orig_rax;
                regs.rip = regs.rip.wrapping_sub(2);
            }
            ERESTART_RESTARTBLOCK => {
                regs.rax = NR_RESTART_SYSCALL;
                regs.rip = regs.rip.wrapping_sub(2);
            }
            _ => {}
        }
    }
    regs
}

/// The data words of a code image (see `code.rs`), behind the magic.
fn words(raw: &Regs, mask: u64, own: Ids, signal: i32) -> [u64; 24] {
    let home = home_regs(raw);
    let block = !(1u64 << (signal - 1));
    let mut words = [
        MAGIC,
        block,
        mask,
        own.pid as u64,
        own.tid as u64,
        signal as u64,
        home.eflags,
        home.rsp,
        home.rip,
        home.rax,
        home.rbx,
        home.rcx,
        home.rdx,
        home.rsi,
        home.rdi,
        home.rbp,
        home.r8,
        home.r9,
        home.r10,
        home.r11,
        home.r12,
        home.r13,
        home.r14,
        home.r15,
    ];
    // RF and TF would trap on the way home.
    if let Some(flags) = words.get_mut(6) {
        *flags &= !0x10100;
    }
    words
}

/// A code image with its data words filled in.
fn image(code: Code, words: &[u64], extra: &[u64]) -> Vec<u8> {
    let mut bytes = code.bytes.to_vec();
    let tail = words.iter().chain(extra).flat_map(|w| w.to_le_bytes());
    for (byte, new) in bytes.iter_mut().skip(code.words).zip(tail) {
        *byte = new;
    }
    bytes
}

/// Where a thread runs programs.
#[derive(Clone, Copy, Debug)]
pub struct Bay {
    /// First address.
    pub address: u64,
    /// Bytes.
    pub size: usize,
}

impl Bay {
    /// Offset of the descriptors: after the code and its words, 16-aligned.
    fn descs(code: &Code) -> usize {
        code.bytes.len().next_multiple_of(16)
    }

    /// Address at which a parked thread stands.
    pub fn parked(&self) -> u64 {
        self.address + code::bay().parked
    }

    /// Address of a `syscall` instruction.
    pub fn syscall(&self) -> u64 {
        self.address + code::bay().syscall
    }

    /// Address of memory that programs use and nothing else does, when no program runs.
    pub fn scratch(&self) -> u64 {
        self.address + Self::descs(&code::bay()) as u64
    }

    /// Writes the loop and the way home of thread `tid`.
    pub fn furnish(&self, tid: i32, own: Ids, raw: &Regs, mask: u64, signal: i32) -> Result<()> {
        let code = code::bay();
        let words = words(raw, mask, own, signal);
        memory::write(tid, self.address, &image(code, &words, &[self.scratch(), 0, 0]))
    }

    /// Runs `program` in `thread`, whose registers are `base` but for RIP; leaves it parked. Stops
    /// at the first call that fails and must not.
    pub fn run(&self, thread: &mut Stopped, base: &Regs, program: Program) -> Result<Vec<Outcome>> {
        let pending = self.start(thread, base, program)?;
        self.finish(thread, base, pending)
    }

    /// The first half of [`Bay::run`]: the program is under way when this returns.
    pub fn start(&self, thread: &mut Stopped, base: &Regs, program: Program) -> Result<Pending> {
        let mut pending = Pending { program, batch: None, results: Vec::new() };
        self.send(thread, base, &mut pending)?;
        Ok(pending)
    }

    /// The second half.
    pub fn finish(&self, thread: &mut Stopped, base: &Regs, mut pending: Pending) -> Result<Vec<Outcome>> {
        while let Some(batch) = pending.batch.take() {
            thread.wait_at(self.parked())?;
            self.receive(thread.tid(), &batch, &mut pending)?;
            self.send(thread, base, &mut pending)?;
        }
        Ok(pending.results)
    }

    /// Sends what comes next of a program, if anything, and sets the thread going.
    fn send(&self, thread: &mut Stopped, base: &Regs, pending: &mut Pending) -> Result<()> {
        let Pending { program, batch, results } = pending;
        if results.len() >= program.len() {
            return Ok(());
        }
        let room = self.size.saturating_sub(Self::descs(&code::bay()));
        let next = Batch::build(program, results.len(), results, self.scratch(), room)
            .map_err(|need| Error::TooBig { need, have: room })?;
        if program.is_whole() && next.count < program.len() {
            return Err(Error::TooBig { need: next.bytes.len() + DESC_SIZE, have: room });
        }
        let control: Vec<u8> =
            [self.scratch(), next.count as u64, 0].iter().flat_map(|w| w.to_le_bytes()).collect();
        let spans = [
            Span { start: self.control(), len: control.len() },
            Span { start: self.scratch(), len: next.bytes.len() },
        ];
        let sent = [&control[..], &next.bytes].concat();
        // The leader of its process may have ended, and has no memory then: that of the thread.
        if memory::write_spans(thread.tid(), &spans, &sent)? != sent.len() {
            return Err(Error::Os { call: "process_vm_writev", errno: Errno::FAULT });
        }
        thread.set_regs(&Regs { rip: self.address, orig_rax: NO_SYSCALL, ..*base })?;
        thread.set_going()?;
        *batch = Some(next);
        Ok(())
    }

    /// Takes the results of a batch that has been run in thread `tid`.
    fn receive(&self, tid: i32, batch: &Batch, pending: &mut Pending) -> Result<()> {
        let len = if batch.has_outputs() { batch.bytes.len() } else { batch.count * DESC_SIZE };
        let mut back = vec![0; 8 + len];
        let spans = [Span { start: self.control() + 16, len: 8 }, Span { start: self.scratch(), len }];
        memory::read_spans(tid, &spans, &mut back)?;
        let (failed, after) = back.split_at(8);
        let outcomes = batch.outcomes(after);
        let failed = failed.try_into().map_or(0, u64::from_le_bytes);
        if failed != 0 {
            let at = (failed.saturating_sub(self.scratch()) as usize) / DESC_SIZE;
            let (what, object) = pending.program.label(pending.results.len() + at);
            let errno = outcomes.get(at).map_or(0, |o| o.result.unsigned_abs() as i32);
            let errno = Errno::from_raw_os_error(errno);
            return Err(Error::Call { tid, what, object, errno });
        }
        pending.results.extend(outcomes);
        Ok(())
    }

    /// Where the loop finds its descriptors' address and count, and tells which one failed.
    fn control(&self) -> u64 {
        self.address + (code::bay().words + 192) as u64
    }
}

/// A program under way in a bay.
#[derive(Debug)]
pub struct Pending {
    program: Program,
    /// What the thread is running now; nothing when it is done.
    batch: Option<Batch>,
    results: Vec<Outcome>,
}

/// One thread of a visit, with what it must get back.
#[derive(Debug)]
struct Guest {
    thread: Stopped,
    own: Ids,
    raw: Regs,
    mask: u64,
    signal: i32,
    bay: Bay,
    /// RIP is, or may be, in our code.
    inside: bool,
    /// What it is running.
    pending: Option<Pending>,
}

impl Guest {
    /// Begins to run `program`; [`Guest::finish`] waits for its end.
    fn start(&mut self, program: Program) -> Result<()> {
        self.finish()?;
        let base = home_regs(&self.raw);
        self.go_in(self.bay.address)?;
        self.pending = Some(self.bay.start(&mut self.thread, &base, program)?);
        Ok(())
    }

    /// Waits for what it is running; the answers.
    fn finish(&mut self) -> Result<Vec<Outcome>> {
        let Some(pending) = self.pending.take() else { return Ok(Vec::new()) };
        self.bay.finish(&mut self.thread, &home_regs(&self.raw), pending)
    }

    /// Goes to our code. Signals are blocked before it runs, lest one that is pending be taken out
    /// of its queue; that code leads home should we die, and home gives the mask back.
    fn go_in(&mut self, address: u64) -> Result<()> {
        if std::mem::replace(&mut self.inside, true) {
            return Ok(());
        }
        let home = home_regs(&self.raw);
        self.thread.set_regs(&Regs { rip: address, orig_rax: NO_SYSCALL, ..home })?;
        self.thread.set_sigmask(!(1 << (self.signal - 1)))
    }

    /// Gives registers and mask back, from a park in the code image at `address`.
    fn put_back(&mut self, address: u64, settled: u64) -> Result<()> {
        if !self.inside {
            return Ok(());
        }
        let home = home_regs(&self.raw);
        self.thread.set_regs(&Regs { rip: address + settled, orig_rax: NO_SYSCALL, ..home })?;
        self.thread.set_sigmask(self.mask)?;
        self.thread.set_regs(&self.raw)?;
        self.inside = false;
        self.thread.requeue();
        Ok(())
    }
}

/// Threads of one process, parked in our code between programs.
#[derive(Debug)]
pub struct Visit {
    pid: i32,
    guests: Vec<Guest>,
    foothold: Foothold,
    slot: Option<Span>,
}

/// A thread to be visited.
#[derive(Debug)]
pub struct Visitor {
    /// The thread.
    pub thread: Stopped,
    /// What it calls itself.
    pub own: Ids,
    /// Its registers, which it gets back.
    pub raw: Regs,
    /// Its blocked signals, which it gets back.
    pub mask: u64,
    /// See [`park_signal`].
    pub signal: i32,
}

impl Visit {
    /// Gets a foothold in process `pid`, whose living threads (the one to do the work first) are all
    /// stopped. `texts` are its executable private mappings, the vdso first; at `address` there are
    /// [`Visit::slot_len`] free bytes.
    pub fn enter(pid: i32, visitors: Vec<Visitor>, texts: &[Span], address: u64) -> Result<Visit> {
        let first = visitors.first().map_or(pid, |visitor| visitor.thread.tid());
        let foothold = Foothold::find(first, texts)?;
        let nowhere = Bay { address: 0, size: BAY_SIZE };
        let guest = |v: Visitor| Guest {
            thread: v.thread,
            own: v.own,
            raw: v.raw,
            mask: v.mask,
            signal: v.signal,
            bay: nowhere,
            inside: false,
            pending: None,
        };
        let guests: Vec<Guest> = visitors.into_iter().map(guest).collect();
        let mut visit = Visit { pid, guests, foothold, slot: None };
        visit.map_slot(address)?;
        Ok(visit)
    }

    /// Bytes of slot for a visit to `threads` threads.
    pub fn slot_len(threads: usize) -> usize {
        LEADER_BAY_SIZE + threads.saturating_sub(1) * BAY_SIZE
    }

    /// Maps the slot at a place of our choice: the stub's words say where, so that it is found
    /// even if we die before anything is written to it.
    fn map_slot(&mut self, address: u64) -> Result<()> {
        let len = Self::slot_len(self.guests.len());
        let Some(leader) = self.guests.first_mut() else { return Err(Error::Gone { tid: self.pid }) };
        let prot = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        let args = [address, len as u64, prot, flags, u64::MAX, 0];
        let start = self.foothold.syscall(leader, libc::SYS_mmap, args)?;
        self.slot = Some(Span { start, len });
        let mut at = start;
        for (i, guest) in self.guests.iter_mut().enumerate() {
            let size = if i == 0 { LEADER_BAY_SIZE } else { BAY_SIZE };
            guest.bay = Bay { address: at, size };
            at += size as u64;
            guest.bay.furnish(guest.thread.tid(), guest.own, &guest.raw, guest.mask, guest.signal)?;
        }
        Ok(())
    }

    /// Threads visited.
    pub fn len(&self) -> usize {
        self.guests.len()
    }

    /// Whether nobody is visited.
    pub fn is_empty(&self) -> bool {
        self.guests.is_empty()
    }

    /// Our mapping in the process.
    pub fn slot(&self) -> Option<Span> {
        self.slot
    }

    /// Runs `program` in thread number `index`.
    pub fn run(&mut self, index: usize, program: Program) -> Result<Vec<Outcome>> {
        self.start(index, program)?;
        self.finish(index)
    }

    /// Begins to run `program` in thread number `index`. Others may begin meanwhile.
    pub fn start(&mut self, index: usize, program: Program) -> Result<()> {
        self.guest(index)?.start(program)
    }

    /// Waits for the end of what thread number `index` has begun; its answers.
    pub fn finish(&mut self, index: usize) -> Result<Vec<Outcome>> {
        self.guest(index)?.finish()
    }

    fn guest(&mut self, index: usize) -> Result<&mut Guest> {
        let pid = self.pid;
        self.guests.get_mut(index).ok_or(Error::Gone { tid: pid })
    }

    /// Lets thread number `index` go on with the call in which it was interrupted, up to where it sleeps
    /// again, which `asleep` tells, and interrupts it there. Returns its registers as they are now:
    /// with -516 in rax as before, or with the result if the call has ended.
    pub fn resume_call(&mut self, index: usize, asleep: &mut dyn FnMut() -> bool) -> Result<Regs> {
        let pid = self.pid;
        let Some(guest) = self.guests.get_mut(index) else { return Err(Error::Gone { tid: pid }) };
        let Guest { raw, mask, signal, bay, .. } = *guest;
        guest.go_in(bay.address)?;
        // Behind that instruction is the way home: nothing need be sent to the bay.
        let at =
            Regs { rip: bay.syscall(), rax: NR_RESTART_SYSCALL, orig_rax: NO_SYSCALL, ..home_regs(&raw) };
        guest.thread.set_regs(&at)?;
        guest.thread.run_into_sleep(asleep)?;
        let result = guest.thread.regs()?.rax;
        if result != ERESTART_RESTARTBLOCK {
            guest.raw = Regs { rax: result, orig_rax: NO_SYSCALL, ..raw };
            bay.furnish(guest.thread.tid(), guest.own, &guest.raw, mask, signal)?;
        }
        Ok(guest.raw)
    }

    /// Unmaps a slot left by a coordinator that died.
    pub fn unmap_stale(&mut self, stale: &[Span]) -> Result<()> {
        let in_use =
            |s: &&Span| !self.guests.iter().any(|g| (s.start..s.start + s.len as u64).contains(&g.raw.rip));
        let mut program = Program::new();
        for span in stale.iter().filter(in_use) {
            let len = span.len as u64;
            program.call(
                "munmap of a stale slot",
                span.start,
                libc::SYS_munmap,
                [span.start.into(), len.into()],
            );
        }
        if !program.is_empty() {
            self.run(0, program)?;
        }
        Ok(())
    }

    /// Leaves no trace, and gives the threads back, stopped as they were.
    pub fn leave(mut self) -> Result<Vec<Stopped>> {
        self.put_back()?;
        Ok(std::mem::take(&mut self.guests).into_iter().map(|g| g.thread).collect())
    }

    fn put_back(&mut self) -> Result<()> {
        // Something is under way only if an error came in between; whatever it says is of no interest.
        self.guests.iter_mut().for_each(|guest| drop(guest.finish()));
        let settled = code::bay().settled;
        let mut others = self.guests.iter_mut();
        let Some(leader) = others.next() else { return Ok(()) };
        for guest in others {
            let address = guest.bay.address;
            guest.put_back(address, settled)?;
        }
        if let Some(slot) = self.slot.take() {
            let args = [slot.start, slot.len as u64, 0, 0, 0, 0];
            self.foothold.syscall(leader, libc::SYS_munmap, args)?;
        }
        leader.put_back(self.foothold.address, code::stub().settled)?;
        self.foothold.write(&self.foothold.saved)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let _ = self.put_back();
    }
}
