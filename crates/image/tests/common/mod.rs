//! A sink that keeps the image in memory, and images to write: a fixed one and arbitrary ones.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;

use ckpt_image::model::{
    Cred, File, FileTable, Fs, Image, Inode, Mm, Object, Process, Sighand, Signal, Thread, Vma, to_details,
};
use ckpt_image::record::{
    self, ARCH_X86_64, ExternalName, FileDesc, FileLock, HEADER_MAGIC, Header, HeaderArch, PAGE_SIZE,
    PidLevel, PipePart, Pty, REV, Record, RestartBlock, Run, Task, Tree, children_pidns, file_kind,
    inode_kind, lock_kind, owner_kind, pipe_part, pty_flags, restart_kind, task_state, unix_flags,
    unix_options, vma_flags, vma_kind,
};
use ckpt_image::{Block, BlockSink, Chunk, Objref, PagesWritten, ReadError, Reader, Writer, ZeroPages};
use zerocopy::{FromBytes, IntoBytes};

/// Keeps the image, and holds the writer to what it promises a sink.
#[derive(Debug, Default)]
pub struct VecSink {
    pub image: Vec<u8>,
    pub ended: bool,
}

impl BlockSink for VecSink {
    fn submit(&mut self, block: Block, last: bool) -> std::io::Result<Option<Block>> {
        assert!(!self.ended, "a block after the last");
        assert!(last || block.len() == block.capacity(), "a block that is not full");
        assert!(!block.is_empty(), "an empty block");
        assert_eq!(block.as_slice().as_ptr().align_offset(PAGE_SIZE), 0);
        self.image.extend_from_slice(block.as_slice());
        self.ended = last;
        Ok((!last).then_some(block))
    }
}

/// Pages to write: whose, from where, contents, and what to do with zero pages.
#[derive(Clone, Debug)]
pub struct Pages {
    pub objref: Objref,
    pub runs: Vec<Run>,
    pub memory: BTreeMap<u64, Vec<u8>>,
    pub zero: ZeroPages,
}

pub fn run(start: u64, nr_pages: u32) -> Run {
    Run { start, nr_pages, flags: 0 }
}

pub fn page_starts(runs: &[Run]) -> impl Iterator<Item = u64> {
    runs.iter().flat_map(|run| (0..u64::from(run.nr_pages)).map(|nr| run.start + nr * PAGE_SIZE as u64))
}

pub fn writer(capacity: usize) -> Writer<VecSink> {
    Writer::new(VecSink::default(), Block::new(capacity))
}

pub fn write_pages(writer: &mut Writer<VecSink>, pages: &Pages) -> PagesWritten {
    let mut fill = |runs: &[Run], buffer: &mut [u8]| {
        let starts = page_starts(runs).collect::<Vec<_>>();
        assert_eq!(starts.len() * PAGE_SIZE, buffer.len());
        assert_eq!(buffer.as_ptr().align_offset(PAGE_SIZE), 0);
        for (start, page) in starts.iter().zip(buffer.chunks_mut(PAGE_SIZE)) {
            page.copy_from_slice(&pages.memory[start]);
        }
        Ok::<_, std::convert::Infallible>(())
    };
    writer.pages(pages.objref, &pages.runs, pages.zero, &mut fill).unwrap()
}

/// The bytes of an image, written through blocks of `capacity`.
pub fn written(image: &Image, pages: &[Pages], capacity: usize) -> Vec<u8> {
    let mut writer = writer(capacity);
    image.write(&mut writer).unwrap();
    pages.iter().for_each(|pages| {
        write_pages(&mut writer, pages);
    });
    let (sink, len) = writer.tail().unwrap();
    assert_eq!(len, sink.image.len() as u64);
    assert!(sink.ended);
    sink.image
}

/// Reads everything there is.
pub fn read_all(bytes: &[u8], chunk: &mut Chunk, mut each: impl FnMut(&Chunk)) -> Result<Image, ReadError> {
    let mut reader = Reader::new(bytes);
    let image = reader.metadata()?;
    while reader.chunk(chunk)? {
        each(chunk);
    }
    assert_eq!(reader.position(), bytes.len() as u64);
    Ok(image)
}

/// Bytes that decide what an arbitrary image looks like; zeros when they have run out.
pub struct Source<'a>(pub &'a [u8]);

impl Source<'_> {
    pub fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.byte() as usize % limit
    }

    pub fn pick(&mut self, from: &[u32]) -> u32 {
        from[self.below(from.len())]
    }

    pub fn bytes(&mut self, limit: usize) -> Vec<u8> {
        (0..self.below(limit + 1)).map(|_| self.byte()).collect()
    }

    pub fn text(&mut self, limit: usize) -> Vec<u8> {
        self.bytes(limit).into_iter().map(|byte| byte.max(1)).collect()
    }

    /// A wire structure of arbitrary bytes.
    pub fn wire<T: FromBytes + IntoBytes>(&mut self) -> T {
        let mut wire = T::new_zeroed();
        wire.as_mut_bytes().iter_mut().for_each(|byte| *byte = self.byte());
        wire
    }

    pub fn many<T>(&mut self, limit: usize, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(limit + 1)).map(|_| one(self)).collect()
    }
}

/// Any image the format allows.
pub fn arbitrary(source: &mut Source<'_>) -> Image {
    let mut image = Image {
        header: Header {
            magic: HEADER_MAGIC,
            rev: REV,
            arch: ARCH_X86_64,
            page_size: PAGE_SIZE as u32,
            ..source.wire()
        },
        uts: [source.text(64), source.text(64), source.text(64)],
        arch: source.wire(),
        ..Image::default()
    };
    let mut builder = Builder { source, image: &mut image, next: 0, begun: Default::default() };
    let nr_processes = 1 + builder.source.below(3);
    let mut next_tid = 1;
    for _ in 0..nr_processes {
        builder.process(&mut next_tid);
    }
    image.tree.nr_tasks = nr_processes as u32;
    image.tree.nr_threads = image.processes.iter().map(|process| process.threads.len() as u32).sum();
    image.tree.root = image.processes[0].task.pid;
    image
}

struct Builder<'a, 'b> {
    source: &'a mut Source<'b>,
    image: &'a mut Image,
    next: Objref,
    /// Pid namespaces that have a process 1.
    begun: std::collections::BTreeSet<u32>,
}

impl Builder<'_, '_> {
    fn add(&mut self, object: Object) -> Objref {
        self.next += 1 + self.source.below(3) as Objref;
        self.image.objects.insert(self.next, object);
        self.next
    }

    /// An object of this kind that exists already, now and then, or a new one.
    fn share(&mut self, objtype: u32, new: fn(&mut Self) -> Objref) -> Objref {
        let old = self.image.objects.iter().find(|(_, object)| object.objtype() == objtype);
        match old.map(|(objref, _)| *objref) {
            Some(objref) if self.source.below(2) == 1 => objref,
            _ => new(self),
        }
    }

    fn process(&mut self, next_tid: &mut i32) {
        let pid = *next_tid;
        let state = self.source.pick(task_state::ALL);
        let zombie = state == task_state::ZOMBIE;
        let nr_threads = if zombie { self.source.below(2) } else { 1 + self.source.below(3) };
        let nr = nr_threads as u32;
        let tty = if self.source.below(2) == 0 { 0 } else { self.share_pty() };
        let wild: Task = self.source.wire();
        let mut task = Task {
            pid,
            state,
            nr_threads: nr,
            tty,
            pad: 0,
            children_pidns: 0,
            tpgid: wild.tpgid & i32::MAX,
            ..wild
        };
        if zombie {
            task.exit_code = if self.source.below(2) == 0 { i32::from(self.source.byte()) << 8 } else { 15 };
            (task.mm, task.files, task.fs, task.sighand, task.signal) = (0, 0, 0, 0, 0);
        } else {
            task.mm = self.share(record::Mm::TYPE, Self::mm);
            task.files = self.share(record::FileTable::TYPE, Self::files);
            task.fs = self.share(record::Fs::TYPE, Self::fs);
            task.sighand = self.share(record::Sighand::TYPE, Self::sighand);
            task.signal = self.share(record::Signal::TYPE, Self::signal);
        }
        *next_tid += 1;
        let threads = (0..nr_threads).map(|nr| {
            let tid = if nr == 0 { pid } else { *next_tid };
            *next_tid += i32::from(nr > 0);
            self.thread(tid)
        });
        let mut threads: Vec<Thread> = threads.collect();
        let code = i32::from(self.source.byte());
        if let [leader, _, ..] = threads.as_mut_slice()
            && code < 64
        {
            (leader.record.state, leader.record.exit_code) = (task_state::ZOMBIE, code << 8);
            leader.xstate.clear();
        }
        let mut process = Process { task, threads };
        self.nest(&mut process);
        self.children_pidns(&mut process);
        self.image.processes.push(process);
    }

    fn thread(&mut self, tid: i32) -> Thread {
        let kind = self.source.pick(restart_kind::ALL);
        let restart = RestartBlock { kind, pad: 0, remaining: self.source.byte().into() };
        let cred = self.share(record::Cred::TYPE, Self::cred);
        let mce_kill = self.source.below(3) as u32;
        let ids = record::Thread { tid, cred, mce_kill, restart, ..self.source.wire() };
        let record = record::Thread { state: task_state::RUNNING, exit_code: 0, pad: 0, ..ids };
        let mut xstate = self.source.bytes(64);
        xstate.resize(576 + self.source.below(200), 7);
        let comm = self.source.text(15);
        let pending = self.source.many(3, Source::wire);
        Thread { record, comm, xstate, pending, affinity: self.source.bytes(32), levels: Vec::new() }
    }

    /// Moves processes into pid namespaces 1, 2 in it, and 3: the first one to get there is process 1.
    fn nest(&mut self, process: &mut Process) {
        const PATHS: [&[u32]; 5] = [&[], &[], &[1], &[1, 2], &[3]];
        let mut path = PATHS[self.source.below(PATHS.len())];
        // Process 1 of each before all others.
        if path == [1, 2] && !self.begun.contains(&1) {
            path = &[1];
        }
        let Some(last) = path.last().filter(|_| !process.threads.is_empty()) else { return };
        let (group, session) = (i32::from(self.source.byte()), i32::from(self.source.byte()));
        let begins = self.begun.insert(*last);
        for (nr, thread) in process.threads.iter_mut().enumerate() {
            let tid = |pidns| if begins && nr == 0 && pidns == *last { 1 } else { thread.record.tid + 1 };
            let level = |pidns: &u32| PidLevel { pidns: *pidns, tid: tid(*pidns), pgid: group, sid: session };
            thread.levels = path.iter().map(level).collect();
        }
        if begins && process.task.state == task_state::ZOMBIE {
            // It would be the only one: it lives.
            process.threads.iter_mut().for_each(|thread| thread.levels.clear());
            self.begun.remove(last);
        }
    }

    /// Whether the children of a process are in a pid namespace below its own.
    fn children_pidns(&mut self, process: &mut Process) {
        let lives = process.task.state != task_state::ZOMBIE;
        if process.threads.len() == 1 && lives && self.source.below(3) == 0 {
            let below = process.levels().is_empty() && self.begun.contains(&1);
            process.task.children_pidns = if below { 1 } else { children_pidns::NEW };
        }
    }

    fn mm(&mut self) -> Objref {
        let exe = if self.source.below(2) == 0 { 0 } else { self.share(record::File::TYPE, Self::file) };
        let (mut at, mut vmas) = (0u64, Vec::new());
        for _ in 0..self.source.below(5) {
            let start = at + self.source.below(3) as u64 * 4096;
            at = start + (1 + self.source.below(9) as u64) * 4096;
            let kind = self.source.pick(vma_kind::ALL);
            let object = match kind {
                vma_kind::ANON_SHARED => self.share(record::Inode::TYPE, Self::inode),
                vma_kind::FILE_PRIVATE | vma_kind::FILE_SHARED => self.share(record::File::TYPE, Self::file),
                _ => 0,
            };
            let wild: record::Vma = self.source.wire();
            let offset = if object == 0 { wild.offset } else { (wild.offset >> 2) & !0xfff };
            let (prot, flags) = (wild.prot & 7, wild.flags & vma_flags::ALL);
            let record = record::Vma { start, end: at, prot, kind, flags, offset, object, pad: 0 };
            vmas.push(Vma { record, anon_name: self.source.text(79) });
        }
        let record = record::Mm { nr_vmas: vmas.len() as u32, exe, pad: 0, ..self.source.wire() };
        let auxv = self.source.bytes(100);
        self.add(Object::Mm(Mm { record, auxv, vmas }))
    }

    fn files(&mut self) -> Objref {
        let (mut fd, mut descs) = (0, Vec::new());
        for _ in 0..self.source.below(5) {
            fd += self.source.byte() as i32;
            let flags = self.source.below(2) as u32;
            descs.push(FileDesc { fd, flags, file: self.share(record::File::TYPE, Self::file), pad: 0 });
            fd += 1;
        }
        self.add(Object::Files(FileTable { descs }))
    }

    fn file(&mut self) -> Objref {
        let kind = self.source.pick(file_kind::ALL);
        let terminal = [file_kind::TTY_CURRENT, file_kind::EXTERNAL_TTY].contains(&kind);
        let settings = terminal && self.source.below(2) == 0;
        let inode = match kind {
            file_kind::UNLINKED | file_kind::PIPE | file_kind::MEMFD => {
                self.share(record::Inode::TYPE, Self::inode)
            }
            file_kind::PTY => self.share_pty(),
            file_kind::TTY_CURRENT if !settings => self.share_pty(),
            _ => 0,
        };
        let record = record::File { kind, inode, pad: 0, pad2: 0, ..self.source.wire() };
        let record = owned(record, self.source.pick(owner_kind::ALL));
        let (path, build_id) = (self.source.text(255), self.source.bytes(20));
        let details = match settings {
            true => self.source.wire::<record::Tty>().as_bytes().to_vec(),
            false => self.file_details(kind, &path),
        };
        let locks = self.source.many(3, lock);
        self.add(Object::File(File { record, path, build_id, details, locks }))
    }

    fn file_details(&mut self, kind: u32, path: &[u8]) -> Vec<u8> {
        match kind {
            file_kind::REGULAR | file_kind::PATH => self.source.text(255),
            file_kind::PROC => {
                let owner = self.source.pick(record::proc_owner::ALL);
                let pid = if owner == record::proc_owner::KERNEL { 0 } else { 7 };
                let (root, tid) = (path.len() as u32, self.source.byte().into());
                record::ProcFile { owner, root, pid, tid, start: 9 }.as_bytes().to_vec()
            }
            file_kind::MQUEUE => {
                let (notify, signal) = (self.source.below(2) as u32, self.source.below(65) as u32);
                let notify_pid = i32::from(self.source.byte());
                record::Mqueue { notify, signal, notify_pid, pad: 0, ..self.source.wire() }
                    .as_bytes()
                    .to_vec()
            }
            file_kind::UNIX => {
                let wild: record::UnixSocket = self.source.wire();
                let (kind, options) = (self.source.pick(&[1, 2, 5]), wild.options & unix_options::ALL);
                let flags = wild.flags & unix_flags::REMOVED;
                let socket = record::UnixSocket { kind, flags, shutdown: wild.shutdown & 3, options, ..wild };
                to_details(&[socket.with_address(&self.source.text(108)).unwrap()])
            }
            file_kind::EXTERNAL_TTY
            | file_kind::EXTERNAL_PIPE
            | file_kind::EXTERNAL_SOCKET
            | file_kind::EXTERNAL_FILE => {
                let name = self.source.text(64);
                let name = Some(name).filter(|name| !name.is_empty());
                name.and_then(|n| ExternalName::new(&n)).map_or(vec![], |n| n.as_bytes().to_vec())
            }
            _ => self.anon_details(kind),
        }
    }

    /// A pty of the image, or a new one.
    fn share_pty(&mut self) -> Objref {
        let is_pty = |object: &Object| matches!(object, Object::Inode(inode) if inode.pty().is_some());
        let known = self.image.objects.iter().find(|(_, object)| is_pty(object)).map(|(objref, _)| *objref);
        known.unwrap_or_else(|| self.inode_of(inode_kind::PTY))
    }

    fn inode_details(&mut self, kind: u32, size: u64) -> Vec<u8> {
        match kind {
            inode_kind::PIPE => {
                let most = size.min(9) as usize;
                let packets = self.source.many(most, |_| PipePart { kind: pipe_part::PACKET, len: 1 });
                let unlinked = PipePart { kind: pipe_part::UNLINKED, len: 0 };
                let parts = packets.into_iter().chain(size.is_multiple_of(2).then_some(unlinked));
                parts.flat_map(|part| part.as_bytes().to_vec()).collect()
            }
            inode_kind::MEMFD => record::Memfd { pad: 0, ..self.source.wire() }.as_bytes().to_vec(),
            _ => Vec::new(),
        }
    }

    /// Details of a file of this kind.
    fn anon_details(&mut self, kind: u32) -> Vec<u8> {
        let source = &mut self.source;
        match kind {
            file_kind::EVENTFD => {
                let count = source.wire::<record::Eventfd>().count >> 1;
                to_details(&[record::Eventfd { count, semaphore: source.below(2) as u32, pad: 0 }])
            }
            file_kind::SIGNALFD => to_details(&[source.wire::<record::Signalfd>()]),
            file_kind::TIMERFD => {
                let wild: record::Timerfd = source.wire();
                let (clock, flags) = (source.pick(&[0, 1, 7, 8, 9]), source.below(4) as u32);
                let [remaining, interval, deadline] =
                    [wild.remaining >> 1, wild.interval >> 1, wild.deadline >> 1];
                to_details(&[record::Timerfd { clock, flags, remaining, interval, deadline, ..wild }])
            }
            file_kind::PIDFD => {
                to_details(&[record::Pidfd { pid: i32::from(source.byte()), ..Default::default() }])
            }
            file_kind::EPOLL => {
                let entries = (0..self.source.below(3)).map(|fd| {
                    let file = self.share(record::File::TYPE, Self::file);
                    record::EpollEntry { fd: fd as i32, file, pad: 0, ..self.source.wire() }
                });
                to_details(&entries.collect::<Vec<_>>())
            }
            file_kind::INOTIFY => {
                let watches = (0..self.source.below(3)).map(|wd| {
                    let file = self.share(record::File::TYPE, Self::file);
                    record::InotifyWatch { wd: wd as i32 + 1, file, pad: 0, ..self.source.wire() }
                });
                to_details(&watches.collect::<Vec<_>>())
            }
            _ => Vec::new(),
        }
    }

    fn inode(&mut self) -> Objref {
        let kind = self.source.pick(inode_kind::ALL);
        self.inode_of(kind)
    }

    fn inode_of(&mut self, kind: u32) -> Objref {
        let wild: record::Inode = self.source.wire();
        let mut size = wild.size >> 1;
        let mut details = self.inode_details(kind, size);
        if kind == inode_kind::PTY {
            let pty: Pty = self.source.wire();
            let flags = pty.flags & pty_flags::ALL;
            let dead = flags & (pty_flags::HUNG_UP | pty_flags::UNOPENED) != 0;
            let [output, input] = [pty.output, pty.input].map(|n| if dead { 0 } else { n & 0xffff });
            size = u64::from(output + input);
            details = Pty { index: pty.index & 0xffff, flags, output, input, ..pty }.as_bytes().to_vec();
        }
        let record = record::Inode { kind, size, ..wild };
        let path = self.source.text(255);
        self.add(Object::Inode(Inode { record, path, details }))
    }

    fn fs(&mut self) -> Objref {
        let record = record::Fs { umask: u32::from(self.source.byte()), pad: 0 };
        let mut path = || [b"/".to_vec(), self.source.text(200)].concat();
        let (cwd, root) = (path(), path());
        self.add(Object::Fs(Fs { record, cwd, root }))
    }

    fn sighand(&mut self) -> Objref {
        let actions = (0..64).map(|_| self.source.wire()).collect();
        self.add(Object::Sighand(Sighand { actions }))
    }

    fn signal(&mut self) -> Objref {
        let record = self.source.wire();
        let (pending, timers) = (self.source.many(3, Source::wire), self.source.many(3, Source::wire));
        self.add(Object::Signal(Box::new(Signal { record, pending, timers })))
    }

    fn cred(&mut self) -> Objref {
        let record = self.source.wire();
        let groups = self.source.many(9, Source::wire);
        self.add(Object::Cred(Cred { record, groups }))
    }
}

/// Any lock.
fn lock(source: &mut Source<'_>) -> FileLock {
    let kind = source.pick(lock_kind::ALL);
    let whole = [lock_kind::FLOCK, lock_kind::LEASE].contains(&kind);
    let (start, len) = if whole { (0, 0) } else { (source.byte().into(), source.byte().into()) };
    FileLock { kind, access: source.below(2) as u32, pid: 1 + i32::from(source.byte()), pad: 0, start, len }
}

/// Where `sample` has memory: two data pages, then one that is zero, then one that is not.
pub const SAMPLE_MEMORY: u64 = 0x40_0000;

/// A fixed image with one of everything: two processes that share an mm, one of them with two
/// threads, and a zombie.
pub fn sample() -> Image {
    let mut numbers = (0u8..=255).cycle();
    let bytes = std::iter::repeat_with(|| numbers.next().unwrap().wrapping_mul(37).wrapping_add(11));
    let bytes = bytes.take(60_000).collect::<Vec<_>>();
    let mut image = Image {
        header: Header {
            magic: HEADER_MAGIC,
            rev: REV,
            arch: ARCH_X86_64,
            kernel: [6, 12, 1],
            comm_len: 16,
            page_size: PAGE_SIZE as u32,
            nr_signals: 64,
            nr_rlimits: 16,
            time: 1_700_000_000_000_000_000,
            uflags: 0,
            id: *b"golden image 100",
            parent: [0; 16],
            clocks: [1, 2],
            boot_id: [7; 16],
            node: [*b"golden-node-0001", [0; 16], [0; 16], [0; 16]],
        },
        uts: [b"6.12.1".to_vec(), b"#1 SMP".to_vec(), b"x86_64".to_vec()],
        arch: HeaderArch {
            xfeatures: 7,
            xsave_size: 832,
            vvar_len: 16384,
            vdso_sum: 9,
            vdso_len: 8192,
            xfeatures_used: 3,
            cpu: [1; 12],
        },
        tree: Tree { nr_tasks: 3, nr_threads: 3, root: 100, pad: 0 },
        ..Image::default()
    };
    let mut source = Source(&bytes);
    sample_objects(&mut image, &mut source);
    let task = Task { mm: 6, files: 4, fs: 7, sighand: 8, signal: 9, pgid: 100, sid: 100, ..Task::default() };
    let thread = |source: &mut Source<'_>, tid| {
        let restart = RestartBlock { kind: restart_kind::FUTEX, pad: 0, remaining: 5 };
        let record = record::Thread { tid, cred: 10, mce_kill: 2, restart, ..source.wire() };
        let record = record::Thread { state: task_state::RUNNING, exit_code: 0, pad: 0, ..record };
        let (comm, xstate) = (b"sample".to_vec(), vec![source.byte(); 576]);
        Thread {
            record,
            comm,
            xstate,
            pending: vec![source.wire()],
            affinity: vec![255, 0, 1],
            levels: vec![],
        }
    };
    let level = PidLevel { pidns: 1, tid: 1, pgid: 0, sid: 0 };
    image.processes = vec![
        Process {
            task: Task { pid: 100, ppid: 1, nr_threads: 2, ..task },
            threads: vec![thread(&mut source, 100), thread(&mut source, 101)],
        },
        Process {
            task: Task { pid: 200, ppid: 100, nr_threads: 1, state: task_state::STOPPED, ..task },
            threads: vec![Thread { levels: vec![level], ..thread(&mut source, 200) }],
        },
        Process {
            task: Task { pid: 300, ppid: 100, state: task_state::ZOMBIE, exit_code: 256, ..Task::default() },
            threads: vec![],
        },
    ];
    image
}

fn sample_objects(image: &mut Image, source: &mut Source<'_>) {
    let vma = |start: u64, pages: u64, kind, object| record::Vma {
        start,
        end: start + pages * PAGE_SIZE as u64,
        prot: 3,
        kind,
        flags: vma_flags::NORESERVE,
        offset: 0,
        object,
        pad: 0,
    };
    let vmas = vec![
        Vma { record: vma(SAMPLE_MEMORY, 4, vma_kind::ANON_PRIVATE, 0), anon_name: b"heap".to_vec() },
        Vma { record: vma(0x50_0000, 1, vma_kind::ANON_SHARED, 1), anon_name: vec![] },
        Vma { record: vma(0x60_0000, 1, vma_kind::FILE_PRIVATE, 2), anon_name: vec![] },
    ];
    let inode =
        record::Inode { kind: inode_kind::SHMEM, mode: 0o100600, uid: 1, gid: 2, size: 4096, capacity: 0 };
    let file = record::File { kind: file_kind::REGULAR, inode: 0, pad: 0, pad2: 0, ..source.wire() };
    let ghost = record::File { kind: file_kind::UNLINKED, inode: 1, pad: 0, pad2: 0, ..source.wire() };
    let desc = |fd, file| FileDesc { fd, flags: 1, file, pad: 0 };
    let mm = record::Mm { nr_vmas: 3, exe: 2, pad: 0, ..source.wire() };
    let objects = [
        (1, Object::Inode(Inode { record: inode, path: b"/tmp/was".to_vec(), ..Inode::default() })),
        (
            2,
            Object::File(File {
                record: owned(file, owner_kind::NONE),
                path: b"/bin/\xff".to_vec(),
                build_id: vec![1, 2, 3],
                ..File::default()
            }),
        ),
        (
            3,
            Object::File(File {
                record: owned(ghost, owner_kind::THREAD),
                path: b"/tmp/was".to_vec(),
                locks: vec![FileLock {
                    kind: lock_kind::POSIX,
                    access: 1,
                    pid: 100,
                    pad: 0,
                    start: 7,
                    len: 5,
                }],
                ..File::default()
            }),
        ),
        (4, Object::Files(FileTable { descs: vec![desc(0, 2), desc(7, 3)] })),
        (6, Object::Mm(Mm { record: mm, auxv: vec![6; 32], vmas })),
        (
            7,
            Object::Fs(Fs {
                record: record::Fs { umask: 18, pad: 0 },
                cwd: b"/a".to_vec(),
                root: b"/".to_vec(),
            }),
        ),
        (8, Object::Sighand(Sighand { actions: (0..64).map(|_| source.wire()).collect() })),
        (
            9,
            Object::Signal(Box::new(Signal {
                record: source.wire(),
                pending: vec![source.wire()],
                timers: vec![source.wire()],
            })),
        ),
        (10, Object::Cred(Cred { record: source.wire(), groups: vec![4, 24, 27] })),
    ];
    image.objects = objects.into_iter().collect();
}

/// The pages of `sample`.
pub fn sample_pages() -> Vec<Pages> {
    let page = |byte: u8| (0..PAGE_SIZE).map(|at| byte.wrapping_add(at as u8 & 15)).collect::<Vec<_>>();
    let at = |nr: u64| SAMPLE_MEMORY + nr * PAGE_SIZE as u64;
    let memory =
        [(at(0), page(1)), (at(1), vec![0; PAGE_SIZE]), (at(2), page(2)), (at(3), vec![0; PAGE_SIZE])];
    let anon = Pages { objref: 6, runs: vec![run(at(0), 4)], memory: memory.into(), zero: ZeroPages::Drop };
    let shared = [(0, vec![0; PAGE_SIZE])];
    let shared = Pages { objref: 1, runs: vec![run(0, 1)], memory: shared.into(), zero: ZeroPages::Describe };
    vec![anon, shared]
}

/// `record` with an owner of this kind.
fn owned(record: record::File, owner_kind: u32) -> record::File {
    let owner = if owner_kind == owner_kind::NONE { 0 } else { 100 };
    record::File { owner_kind, owner, owner_signal: record.owner_signal % 65, ..record }
}
