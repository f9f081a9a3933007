//! What waits in a pty: output that is to be read from the master, and input that is to be read from the slave.
//!
//! The kernel tells how much waits (FIONREAD), of a line that is not complete not even that, and gives the
//! bytes only to who takes them away. So they are taken and put back, by a process of the tree that has the
//! master, in one program: if we end meanwhile, even by SIGKILL, it runs on to its last call and goes home, as
//! every program of a visit does ([ADR 19](../../../../../docs/adr/0019-what-waits-in-a-pty.md)). Everybody who
//! could come in between stands still.
//!
//! Input is put back by writing it to the master, under settings that neither change nor echo it. To take a
//! line that is not complete, ICANON is switched off for a moment; as nothing waits when it is switched on
//! again, the borders of lines are where they were. Output is put back by writing it to a slave without OPOST.
//!
//! *Refused*, when it is so at several attempts (a program that runs reads within a moment): complete lines
//! that nobody reads, as their ends (Ctrl-D) cannot be told from their bytes; more than [`MOST`] bytes one
//! way; status of packet mode that nobody reads; output that is held up by Ctrl-S; a pty that somebody outside
//! has, too. Not looked for: an incomplete line in a pty that somebody outside has.

use super::pty::{Known, edit, events, literal};
use crate::{
    error::{Context, Doing, Error, Result},
    objects::Objects,
    task::Process,
    tree::Held,
    visiting::visit_again,
};
use ckpt_image::{
    Object, Objref,
    record::{Tty, pty_flags},
};
use ckpt_kernel::{
    procfs,
    program::{Arg, Outcome, Program},
};
use rustix::{event::PollFlags, fs::MemfdFlags, io::ioctl_fionread};
use std::{
    collections::BTreeSet,
    fs::File,
    io::{Seek, Write},
};
use zerocopy::IntoBytes;

/// More than this is not taken: behind it there may be bytes that the kernel has not delivered yet, as its
/// buffer of 4096 is full.
const MOST: u64 = 3900;
/// How much a read asks for.
const ROOM: usize = 4096;
const TCSETS2: u64 = 0x402c_542b;
const TIOCGPTPEER: u64 = 0x5441;
const TIOCSPTLCK: u64 = 0x4004_5431;
const EXTPROC: u32 = 0o200_000;

/// What is to be taken from a pty and put back.
#[derive(Debug)]
struct Flight {
    inode: Objref,
    /// Who does it, and its number and flags of the master.
    pid: i32,
    fd: i32,
    flags: u32,
    settings: Tty,
    packet: bool,
    locked: bool,
    input: bool,
    output: bool,
    /// Something does wait.
    certain: bool,
}

/// Adds what waits in the ptys of a tree that stands still.
pub(crate) fn carry(known: &[Known<'_>], objects: &Objects) -> Result<Flights> {
    let mut flights = Vec::new();
    for pty in known {
        let name = || match objects.table.get(&pty.inode) {
            Some(Object::Inode(inode)) => format!("the terminal {}", crate::task::show(&inode.path)),
            _ => String::new(),
        };
        let looked = look(pty, objects).object(name);
        flights.extend(looked.task(|| pty.master.map_or_else(String::new, |(process, ..)| process.label()))?);
    }
    Ok(Flights(flights))
}

/// What is to be taken from ptys and put back.
#[derive(Debug)]
pub(crate) struct Flights(Vec<Flight>);

impl Flights {
    /// Takes it and puts it back.
    pub(crate) fn take(self, held: &mut Held, objects: &mut Objects) -> Result<()> {
        for flight in self.0 {
            let holder = held.iter_mut().find(|(process, _)| process.pid == flight.pid);
            let Some((process, threads)) = holder else { continue };
            // All stands still: the next descriptor has the lowest number that is free.
            let numbers = process.proc.numbers("fd")?;
            let free =
                (0..).zip(&numbers).find(|(free, fd)| free != *fd).map_or(numbers.len() as i32, |(fd, _)| fd);
            let program = flight.program(free);
            let (back, outcomes) =
                visit_again(process, std::mem::take(threads), |visit| Ok(visit.run(0, program)?))?;
            *threads = back;
            flight.keep(&outcomes, objects).task(|| process.label())?;
        }
        Ok(())
    }
}

/// Whether something waits in a pty, or may, and can be taken.
fn look(known: &Known<'_>, objects: &Objects) -> Result<Option<Flight>> {
    let Some((process, fd, flags)) = known.master else { return Ok(None) };
    let Some(Object::Inode(inode)) = objects.table.get(&known.inode) else { return Ok(None) };
    let Some(pty) = inode.pty() else { return Ok(None) };
    if pty.flags & (pty_flags::UNOPENED | pty_flags::HUNG_UP) != 0 {
        return Ok(None);
    }
    let refused = |what: String| {
        let advice = "try again in a moment, or let the program that should read it do so";
        Err(Error::unsupported(what).advice(advice).passing())
    };
    let master = process.descriptor(fd)?;
    let at_master = events(&master)?;
    let output = ioctl_fionread(&master).doing(|| "FIONREAD".to_owned())?;
    let slave = known.slave.map(|(process, fd)| process.descriptor(fd)).transpose()?;
    let canonical = pty.tty.lflag & libc::ICANON != 0 && pty.tty.lflag & EXTPROC == 0;
    let (mut input, mut writable) = (0, true);
    if let Some(slave) = &slave {
        let at_slave = events(slave)?;
        input = ioctl_fionread(slave).unwrap_or(0);
        writable = at_slave.contains(PollFlags::OUT);
        if canonical && at_slave.contains(PollFlags::IN) {
            return refused("it has complete lines of input that nobody has read".to_owned());
        }
    }
    if output > MOST || input > MOST {
        return refused(format!("{} bytes wait in it that nobody has read", output.max(input)));
    }
    if at_master.contains(PollFlags::PRI) {
        return refused("its packet mode has status that nobody has read".to_owned());
    }
    if output > 0 && !writable {
        return refused("its output is held up (Ctrl-S), and some that nobody has read waits".to_owned());
    }
    let certain = output > 0 || input > 0;
    if !(certain || canonical && slave.is_some()) {
        return Ok(None);
    }
    if pty.tty.lflag & EXTPROC != 0 {
        return refused(format!(
            "{} bytes wait in it, which is in external processing mode",
            output.max(input)
        ));
    }
    if let Some(who) = held_outside(known.identity, &objects.members)? {
        return if certain { refused(format!("bytes wait in it, and {who} has it, too")) } else { Ok(None) };
    }
    let [packet, locked] = [pty_flags::PACKET, pty_flags::LOCKED].map(|flag| pty.flags & flag != 0);
    let (input, output) = (input > 0 || canonical && slave.is_some(), output > 0);
    let (inode, pid, settings) = (known.inode, process.pid, pty.tty);
    Ok(Some(Flight { inode, pid, fd, flags, settings, packet, locked, input, output, certain }))
}

/// Calls of the program that take bytes, and those that put them back.
const INPUT: [(usize, usize); 2] = [(3, 6), (4, 7)];
const OUTPUT: [(usize, usize); 2] = [(13, 15), (14, 16)];
/// The call that opens a slave.
const OPEN: usize = 1;

impl Flight {
    /// The program. No failure ends it: without a slave all else fails, and takes nothing. Both halves are there
    /// always, so that the places of their calls are known. A read that finds nothing makes the kernel deliver
    /// what is on its way, and so does ppoll(2).
    fn program(&self, slave: i32) -> Program {
        let opening = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let mut half = Half { program: Program::whole(), wanted: true };
        half.switch(self.fd, TIOCSPTLCK, self.locked, false);
        half.call("ioctl(TIOCGPTPEER)", self.fd, libc::SYS_ioctl, [TIOCGPTPEER.into(), opening.into()]);
        half.wanted = self.input;
        half.set(slave, &self.with_flow(literal(&Tty { lflag: 0, ..self.settings })));
        INPUT.iter().for_each(|_| half.read(slave));
        half.set(slave, &self.with_flow(literal(&self.settings)));
        INPUT.iter().for_each(|(read, _)| half.write(self.fd, *read));
        half.deliver(slave);
        half.set(slave, &self.settings);
        half.wanted = self.output;
        half.switch(self.fd, libc::TIOCPKT, self.packet, false);
        half.flags(self.fd, self.flags | libc::O_NONBLOCK as u32);
        half.set(slave, &Tty { oflag: 0, ..self.settings });
        OUTPUT.iter().for_each(|_| half.read(self.fd));
        OUTPUT.iter().for_each(|(read, _)| half.write(slave, *read));
        half.deliver(self.fd);
        half.set(slave, &self.settings);
        half.flags(self.fd, self.flags);
        half.switch(self.fd, libc::TIOCPKT, self.packet, true);
        half.wanted = true;
        half.call("close", slave, libc::SYS_close, []);
        half.switch(self.fd, TIOCSPTLCK, self.locked, true);
        half.program
    }

    /// `settings` with flow control as it is: switching it would let output go on that is held up.
    fn with_flow(&self, settings: Tty) -> Tty {
        const VSTART: usize = 9;
        const VSTOP: usize = 10;
        let mut line_cc = settings.line_cc;
        for at in [VSTART, VSTOP] {
            if let (Some(to), Some(from)) = (line_cc.get_mut(at), self.settings.line_cc.get(at)) {
                *to = *from;
            }
        }
        Tty {
            iflag: settings.iflag | self.settings.iflag & libc::IXON,
            oflag: self.settings.oflag,
            line_cc,
            ..settings
        }
    }

    /// What the program found becomes part of the image.
    fn keep(&self, outcomes: &[Outcome], objects: &mut Objects) -> Result<()> {
        if self.certain && !outcomes.get(OPEN).is_some_and(Outcome::ok) {
            let what = "bytes wait in a terminal that it cannot open itself (TIOCEXCL)";
            return Err(Error::unsupported(what).advice("try again in a moment").passing());
        }
        let [input, output] = [INPUT, OUTPUT].map(|calls| {
            let mut bytes = Vec::new();
            for (read, write) in calls {
                let Some((read, write)) = outcomes.get(read).zip(outcomes.get(write)) else { continue };
                if read.result > 0 && read.result != write.result {
                    return Err(Error::failed("bytes that waited in a terminal could not be put back"));
                }
                bytes.extend_from_slice(read.bytes(0).get(..read.result.max(0) as usize).unwrap_or_default());
            }
            Ok(bytes)
        });
        let (input, output) = (input?, output?);
        edit(objects, self.inode, |pty| (pty.input, pty.output) = (input.len() as u32, output.len() as u32));
        if input.is_empty() && output.is_empty() {
            return Ok(());
        }
        let memory =
            rustix::fs::memfd_create("pty", MemfdFlags::CLOEXEC).doing(|| "memfd_create".to_owned())?;
        let mut memory = File::from(memory);
        let written = memory.write_all(&output).and_then(|()| memory.write_all(&input));
        written.and_then(|()| memory.rewind()).doing(|| "copy what waits in a terminal".to_owned())?;
        objects.contents.push((self.inode, memory));
        Ok(())
    }
}

/// Calls that are made only if they are wanted: else they fail on no descriptor.
struct Half {
    program: Program,
    wanted: bool,
}

impl Half {
    fn call<const N: usize>(&mut self, what: &'static str, fd: i32, nr: i64, rest: [Arg; N]) {
        let fd = if self.wanted { fd } else { -1 };
        let mut args = [const { Arg::Value(0) }; 6];
        args.iter_mut().zip(std::iter::once(Arg::from(fd)).chain(rest)).for_each(|(to, arg)| *to = arg);
        self.program.try_call(what, nr, args);
    }

    fn set(&mut self, fd: i32, settings: &Tty) {
        let settings = Arg::In(settings.as_bytes().to_vec());
        self.call("ioctl(TCSETS2)", fd, libc::SYS_ioctl, [TCSETS2.into(), settings]);
    }

    fn read(&mut self, fd: i32) {
        self.call("read", fd, libc::SYS_read, [Arg::Out(ROOM), (ROOM as u64).into()]);
    }

    /// Writes what call `read` has read; if that failed, its result is no length.
    fn write(&mut self, fd: i32, read: usize) {
        self.call("write", fd, libc::SYS_write, [Arg::Output(read), Arg::Result(read)]);
    }

    /// By ppoll(2): poll(2), if somebody interrupts it, takes the place of the call that the program itself was
    /// interrupted in (the kernel's restart_block).
    fn deliver(&mut self, fd: i32) {
        const POLLIN: [u8; 4] = [1, 0, 0, 0];
        let fd = if self.wanted { fd } else { -1 };
        let polled = Arg::In([fd.to_le_bytes(), POLLIN].concat());
        let at_once = Arg::In(vec![0; 16]);
        self.program.try_call(
            "ppoll",
            libc::SYS_ppoll,
            [polled, 1u64.into(), at_once, 0u64.into(), 0u64.into()],
        );
    }

    /// Switches off what is on, or on again.
    fn switch(&mut self, fd: i32, request: u64, is_on: bool, on: bool) {
        let wanted = self.wanted;
        self.wanted = wanted && is_on;
        let on = Arg::In(i32::from(on).to_le_bytes().to_vec());
        self.call("ioctl of a master", fd, libc::SYS_ioctl, [request.into(), on]);
        self.wanted = wanted;
    }

    fn flags(&mut self, fd: i32, flags: u32) {
        self.call("fcntl(F_SETFL)", fd, libc::SYS_fcntl, [libc::F_SETFL.into(), flags.into()]);
    }
}

/// Who outside the tree has a slave of the pty with this identity.
pub(crate) fn held_outside(slave: (u64, u64), members: &BTreeSet<i32>) -> Result<Option<String>> {
    let own = std::process::id() as i32;
    for pid in procfs::numbers(".").doing(|| "list /proc".to_owned())? {
        if pid == own || members.contains(&pid) {
            continue;
        }
        // It may end, or be none of ours to look at.
        let Ok(process) = Process::open(pid) else { continue };
        let Ok(dir) = process.proc.dir("fd") else { continue };
        let fds = dir.numbers(".").unwrap_or_default();
        if fds.iter().any(|fd| dir.identity(&fd.to_string()).is_ok_and(|identity| identity == slave)) {
            return Ok(Some(process.label()));
        }
    }
    Ok(None)
}
