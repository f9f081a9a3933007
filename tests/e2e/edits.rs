//! Images that are sound and say something that cannot be: the call that is to make it so fails, at every phase of a
//! restart, and the error says which task and which object. Nothing is left.
#![allow(clippy::unit_arg)] // a change is an assignment: that it was made is all there is to say

use std::path::Path;

use anyhow::{Result, bail};
use ckpt_image::model::{Mm, Process, Signal, Thread, Vma};
use ckpt_image::record::{
    PosixTimer, file_kind, inode_kind, owner_kind, pipe_part, task_state, vma_flags, vma_kind,
};
use ckpt_image::{Image, Object};
use ckpt_tests::context::Context;
use ckpt_tests::image::{metadata, rewritten};
use ckpt_tests::sys::random_below;

use crate::common::{Test, ensure};
use crate::failures::Scene;

pub(crate) const TESTS: &[Test] = &[("every_phase", every_phase)];

/// Changes something about the process with this index. `None`: it has no such thing.
type Change = fn(&mut Image, usize) -> Option<()>;

/// A name, the change, and what the error must say beside the task (which it names when `true`).
type Edit = (&'static str, Change, bool, &'static str);

fn of(image: &mut Image, at: usize) -> &mut Process {
    &mut image.processes[at]
}

/// Any thread of the process.
fn thread(image: &mut Image, at: usize) -> &mut Thread {
    let threads = &mut of(image, at).threads;
    let any = random_below(threads.len() as u64) as usize;
    &mut threads[any]
}

fn mm(image: &mut Image, at: usize) -> Option<&mut Mm> {
    let objref = of(image, at).task.mm;
    match image.objects.get_mut(&objref)? {
        Object::Mm(mm) => Some(mm),
        _ => None,
    }
}

/// The first area that `fits`.
fn area(image: &mut Image, at: usize, fits: fn(&Vma) -> bool) -> Option<&mut Vma> {
    mm(image, at)?.vmas.iter_mut().find(|vma| fits(vma))
}

fn signal(image: &mut Image, at: usize) -> Option<&mut Signal> {
    let objref = of(image, at).task.signal;
    match image.objects.get_mut(&objref)? {
        Object::Signal(signal) => Some(signal),
        _ => None,
    }
}

fn fs(image: &mut Image, at: usize) -> Option<&mut ckpt_image::model::Fs> {
    let objref = of(image, at).task.fs;
    match image.objects.get_mut(&objref)? {
        Object::Fs(fs) => Some(fs),
        _ => None,
    }
}

/// The file behind the first descriptor of this kind.
fn file(image: &mut Image, at: usize, kind: u32) -> Option<&mut ckpt_image::model::File> {
    let objref = of(image, at).task.files;
    let table = image.files(objref)?.clone();
    let found =
        table.descs.iter().map(|d| d.file).find(|f| image.file(*f).is_some_and(|f| f.record.kind == kind))?;
    match image.objects.get_mut(&found)? {
        Object::File(file) => Some(file),
        _ => None,
    }
}

fn inode(image: &mut Image, kind: u32) -> Option<&mut ckpt_image::model::Inode> {
    image.objects.values_mut().find_map(|object| match object {
        Object::Inode(inode) if inode.record.kind == kind => Some(inode),
        _ => None,
    })
}

/// The number of the last descriptor becomes another.
fn last_fd(image: &mut Image, at: usize, fd: i32) -> Option<()> {
    let objref = of(image, at).task.files;
    match image.objects.get_mut(&objref)? {
        Object::Files(table) => table.descs.last_mut()?.fd = fd,
        _ => return None,
    }
    Some(())
}

/// The credentials of the process, which it may share.
fn cred(image: &mut Image, at: usize) -> Option<&mut ckpt_image::model::Cred> {
    let objref = of(image, at).threads.first()?.record.cred;
    match image.objects.get_mut(&objref)? {
        Object::Cred(cred) => Some(cred),
        _ => None,
    }
}

fn posix_timer(image: &mut Image, at: usize, timer: PosixTimer) -> Option<()> {
    signal(image, at)?.timers = vec![timer];
    Some(())
}

fn pending(image: &mut Image, at: usize, number: i32) -> Option<()> {
    let mut info = [0u8; 128];
    info[..4].copy_from_slice(&number.to_le_bytes());
    info[8..12].copy_from_slice(&(-1i32).to_le_bytes()); // SI_QUEUE
    thread(image, at).pending = vec![info];
    Some(())
}

fn set(change: ()) -> Option<()> {
    Some(change)
}

/// A monotonic timer that is not armed.
const TIMER: PosixTimer = PosixTimer {
    id: 3,
    clockid: 1,
    notify: 1,
    signo: 0,
    tid: 0,
    overrun: 0,
    value: 0,
    interval: 0,
    remaining: 0,
};

/// Those that must fail, about in the order of the phases that find them.
const EDITS: &[Edit] = &[
    // check
    (
        "a processor state nobody has",
        |i, _| set(i.arch.xfeatures_used |= 1 << 40),
        false,
        "processor|cpu state",
    ),
    (
        "a mapped file of another size",
        |i, at| {
            let object = area(i, at, |v| v.record.kind == vma_kind::FILE_PRIVATE)?.record.object;
            match i.objects.get_mut(&object)? {
                Object::File(file) => set(file.record.size += 1),
                _ => None,
            }
        },
        false,
        "size differs",
    ),
    // open
    (
        "a file that is gone",
        |i, at| set(file(i, at, file_kind::REGULAR)?.path.extend(b".gone")),
        false,
        ".gone",
    ),
    (
        "a file that was longer",
        |i, at| set(file(i, at, file_kind::REGULAR)?.record.size += 1 << 40),
        false,
        "bytes and had",
    ),
    (
        "a file that was a directory",
        |i, at| set(file(i, at, file_kind::REGULAR)?.record.flags |= libc::O_DIRECTORY as u32),
        false,
        "directory",
    ),
    (
        "a file of another type",
        |i, at| set(file(i, at, file_kind::REGULAR)?.record.mode = libc::S_IFIFO),
        false,
        "not the kind of file",
    ),
    (
        "an offset beyond all",
        |i, at| set(file(i, at, file_kind::UNLINKED)?.record.pos = u64::MAX),
        false,
        "seek in",
    ),
    ("a directory that is gone", |i, at| set(fs(i, at)?.cwd.extend(b"/gone")), false, "/gone"),
    ("a root that is gone", |i, at| set(fs(i, at)?.root.extend(b"/gone")), false, "/gone"),
    (
        "a nameless file elsewhere",
        |i, _| set(inode(i, inode_kind::UNLINKED)?.path = b"/no/such/name".to_vec()),
        false,
        "/no/such/name",
    ),
    (
        "a nameless file too long",
        |i, _| set(inode(i, inode_kind::UNLINKED)?.record.size = i64::MAX as u64),
        false,
        "nameless",
    ),
    (
        "a pipe too large",
        |i, _| set(inode(i, inode_kind::PIPE)?.record.capacity = 1 << 40),
        false,
        "a pipe of",
    ),
    ("a pipe too full", |i, _| set(inode(i, inode_kind::PIPE)?.record.size = 1 << 20), false, "a pipe of"),
    (
        "a memfd that is none",
        |i, _| set(inode(i, inode_kind::MEMFD)?.path = b"/tmp/memfd".to_vec()),
        false,
        "name of a memfd",
    ),
    (
        "a memfd with a long name",
        |i, _| set(inode(i, inode_kind::MEMFD)?.path.extend([b'x'; 300])),
        false,
        "make /memfd:",
    ),
    ("a descriptor too high", |i, at| last_fd(i, at, 1 << 30), false, "a descriptor above"),
    ("a descriptor as high as can be", |i, at| last_fd(i, at, i32::MAX - 1), false, "a descriptor above"),
    (
        "shared memory too large",
        |i, _| set(inode(i, inode_kind::SHMEM)?.record.size = 1 << 46),
        false,
        "shared|addresses",
    ),
    // locks, fill, seal
    (
        "a lock of nobody",
        |i, at| set(file(i, at, file_kind::UNLINKED)?.locks.first_mut()?.pid = 1 << 30),
        false,
        "a lock of nobody",
    ),
    (
        "a lock its descriptor cannot take",
        |i, at| set(file(i, at, file_kind::UNLINKED)?.record.flags &= !3),
        false,
        "the program's lock on bytes 1 to 2",
    ),
    (
        "packets without room",
        |i, _| {
            let pipe = inode(i, inode_kind::PIPE)?;
            // PipePart: kind and length.
            let packet = [pipe_part::PACKET, 1].map(u32::to_le_bytes).concat();
            pipe.record.capacity = 4096;
            set(pipe.details = packet.repeat(5))
        },
        false,
        "has no room",
    ),
    (
        "a seal nobody knows",
        |i, _| set(inode(i, inode_kind::MEMFD)?.details = vec![0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]),
        false,
        "seal /memfd:clan",
    ),
    // make
    ("an unknown parent", |i, at| (at > 0).then(|| of(i, at).task.ppid = 0x7fff_0000), true, "parent"),
    (
        "a session it does not lead",
        |i, at| (of(i, at).task.pgid != of(i, at).task.pid).then(|| of(i, at).task.sid = of(i, at).task.pid),
        true,
        "group|session|process tree",
    ),
    (
        "a session of a child",
        |i, at| (at > 0).then(|| i.processes[0].task.sid = i.processes[at].task.pid),
        false,
        "session",
    ),
    ("an exit signal too high", |i, at| set(of(i, at).task.exit_signal = 100), true, "exit signal"),
    (
        "a group of another session",
        |i, at| {
            (at > 0 && of(i, at).task.sid != of(i, 0).task.pid)
                .then(|| of(i, at).task.pgid = i.processes[0].task.pgid)
        },
        true,
        "group",
    ),
    (
        "handlers of another",
        |i, at| {
            if at == 0 {
                return None;
            }
            let (own, roots) = (of(i, at).task.sighand, of(i, 0).task.sighand);
            i.objects.remove(&own);
            set(of(i, at).task.sighand = roots)
        },
        true,
        "clone3|shares",
    ),
    (
        "a pid no kernel gives",
        |i, at| {
            let process = of(i, at);
            let old = process.task.pid;
            let new = 0x3000_0000;
            (process.task.pid, process.threads[0].record.tid) = (new, new);
            if at == 0
                || i.processes.iter().any(|p| p.task.ppid == old || p.task.sid == old || p.task.pgid == old)
            {
                return None;
            }
            set(())
        },
        false,
        "too high",
    ),
    // memory
    (
        "an area beyond all",
        |i, at| {
            let vma = Vma {
                record: ckpt_image::record::Vma {
                    start: 1 << 50,
                    end: 1 << 51,
                    kind: vma_kind::ANON_PRIVATE,
                    prot: 3,
                    ..Default::default()
                },
                ..Vma::default()
            };
            let mm = mm(i, at)?;
            mm.vmas.push(vma);
            set(mm.record.nr_vmas += 1)
        },
        false,
        "mmap|addresses",
    ),
    (
        "an area at address 0",
        |i, at| {
            let vma = Vma {
                record: ckpt_image::record::Vma {
                    start: 0,
                    end: 1 << 47,
                    kind: vma_kind::ANON_PRIVATE,
                    prot: 3,
                    ..Default::default()
                },
                ..Vma::default()
            };
            let mm = mm(i, at)?;
            mm.vmas.insert(0, vma);
            let below = mm.vmas[1].record.start;
            mm.vmas[0].record.end = below;
            set(mm.record.nr_vmas += 1)
        },
        false,
        "mmap|addresses",
    ),
    (
        "advice an area cannot take",
        |i, at| {
            set(area(i, at, |v| v.record.kind == vma_kind::FILE_PRIVATE)?.record.flags |=
                vma_flags::WIPEONFORK)
        },
        true,
        "madvise",
    ),
    (
        "a view beyond all addresses",
        |i, at| set(area(i, at, |v| v.record.kind == vma_kind::ANON_SHARED)?.record.offset = 1 << 47),
        false,
        "shared object",
    ),
    ("a vdso elsewhere", |i, _| set(i.arch.vdso_sum ^= 1), false, "vdso"),
    (
        "a break below its start",
        |i, at| {
            let record = &mut mm(i, at)?.record;
            set(record.brk = record.start_brk - 1)
        },
        true,
        "PR_SET_MM_MAP",
    ),
    ("arguments outside", |i, at| set(mm(i, at)?.record.arg_end = u64::MAX), true, "PR_SET_MM_MAP"),
    ("a long auxv", |i, at| set(mm(i, at)?.auxv.resize(4096, 0)), true, "PR_SET_MM_MAP"),
    ("an unknown membarrier", |i, at| set(mm(i, at)?.record.membarrier = 1 << 30), true, "membarrier"),
    // threads
    (
        "a tid no kernel gives",
        |i, at| {
            let thread = of(i, at).threads.get_mut(1)?;
            set(thread.record.tid = 0x3000_0000)
        },
        true,
        "too high",
    ),
    (
        "locks for a future without one",
        |i, at| set(mm(i, at)?.record.mlock_future = libc::MCL_ONFAULT as u32),
        true,
        "mlockall",
    ),
    // restore
    (
        "a soft limit above the hard one",
        |i, at| set(signal(i, at)?.record.rlimits[7] = [10, 5]),
        true,
        "prlimit64",
    ),
    ("a policy nobody knows", |i, at| set(thread(i, at).record.sched_policy = 99), true, "sched_setattr"),
    (
        "a priority too high",
        |i, at| {
            let record = &mut thread(i, at).record;
            (record.sched_policy, record.sched_priority) = (1, 1000);
            set(())
        },
        true,
        "sched_setattr",
    ),
    (
        "a deadline without a runtime",
        |i, at| set(thread(i, at).record.sched_policy = 6),
        true,
        "sched_setattr",
    ),
    ("an I/O class nobody knows", |i, at| set(thread(i, at).record.ioprio = 7 << 13), true, "ioprio_set"),
    (
        "a stack too small",
        |i, at| {
            let record = &mut thread(i, at).record;
            (record.altstack_sp, record.altstack_size, record.altstack_flags) = (4096, 16, 0);
            set(())
        },
        true,
        "sigaltstack",
    ),
    (
        "a robust list of another kind",
        |i, at| {
            let record = &mut thread(i, at).record;
            (record.robust_head, record.robust_len) = (4096, 7);
            set(())
        },
        true,
        "set_robust_list",
    ),
    (
        "an rseq area of another kind",
        |i, at| {
            let record = &mut thread(i, at).record;
            (record.rseq_addr, record.rseq_size) = (4097, 7);
            set(())
        },
        true,
        "rseq",
    ),
    ("a signal too high", |i, at| pending(i, at, 65), true, "sigqueueinfo"),
    ("a signal below all", |i, at| pending(i, at, -7), true, "sigqueueinfo"),
    (
        "a signal for a dead parent too high",
        |i, at| set(thread(i, at).record.pdeath_signal = 200),
        true,
        "PR_SET_PDEATHSIG",
    ),
    (
        "a clock nobody knows",
        |i, at| posix_timer(i, at, PosixTimer { clockid: 77, ..TIMER }),
        true,
        "timer_create",
    ),
    (
        "a clock nobody knows, far away",
        |i, at| posix_timer(i, at, PosixTimer { id: i32::MAX, clockid: 77, ..TIMER }),
        true,
        "timer",
    ),
    ("a timer below all", |i, at| posix_timer(i, at, PosixTimer { id: -5, ..TIMER }), true, "timer"),
    (
        "a timer with a signal too high",
        |i, at| posix_timer(i, at, PosixTimer { notify: 0, signo: 100, ..TIMER }),
        true,
        "timer_create",
    ),
    (
        "a file that signals nobody",
        |i, at| {
            let record = &mut file(i, at, file_kind::REGULAR)?.record;
            (record.owner_kind, record.owner) = (owner_kind::PROCESS, 0x3000_0000);
            set(())
        },
        false,
        "signals a task that is not in the image",
    ),
    ("more effective than permitted", |i, at| set(cred(i, at)?.record.cap_permitted = 0), false, "capset"),
    (
        "a capability above all",
        |i, at| set(cred(i, at)?.record.cap_ambient |= 1 << 63),
        false,
        "PR_CAP_AMBIENT_RAISE",
    ),
    ("a group that is none", |i, at| set(cred(i, at)?.groups = vec![u32::MAX]), false, "setgroups"),
    (
        "securebits nobody knows",
        |i, at| set(thread(i, at).record.securebits = 1 << 20),
        true,
        "PR_SET_SECUREBITS",
    ),
    // registers
    ("registers of the kernel's", |i, at| set(thread(i, at).record.regs.cs = 0x10), true, "NT_PRSTATUS"),
    (
        "a thread pointer out of range",
        |i, at| set(thread(i, at).record.regs.fs_base = 1 << 60),
        true,
        "NT_PRSTATUS",
    ),
    (
        "a processor state out of range",
        |i, at| set(thread(i, at).xstate[512 + 7] |= 0x40),
        true,
        "processor state",
    ),
    (
        "a compacted processor state",
        |i, at| set(thread(i, at).xstate[520 + 7] |= 0x80),
        true,
        "processor state",
    ),
];

/// Each edit, to any process that can have it.
fn every_phase(ctx: &Context) -> Result<()> {
    let mut scene = Scene::new(ctx, "clan", &[])?;
    let sound = std::fs::read(&scene.image)?;
    let whole = metadata(&sound)?;
    // What is written anew says the same.
    let dir = tempfile::tempdir()?;
    let edited = dir.path().join("image");
    std::fs::write(&edited, rewritten(&sound, &whole)?)?;
    scene.restart(ctx, &edited).finish()?.expect_code(0)?;
    scene.clear()?;
    let rounds = (ctx.failures as usize).div_ceil(100);
    let mut mistakes = Vec::new();
    for edit in EDITS.iter().cycle().take(EDITS.len() * rounds) {
        if let Err(mistake) = one(ctx, &mut scene, &sound, &whole, &edited, edit) {
            mistakes.push(format!("{}: {mistake:#}", edit.0));
        }
    }
    ctx.ledger.failed(EDITS.len() * rounds - mistakes.len());
    println!("    {} edits, {} mistakes", EDITS.len() * rounds, mistakes.len());
    ensure(mistakes.is_empty(), mistakes.join("\n"))?;
    scene.still_works(ctx)
}

/// The edit is made, and the restart fails as it should.
fn one(
    ctx: &Context,
    scene: &mut Scene,
    sound: &[u8],
    whole: &Image,
    edited: &Path,
    (_, change, names_task, words): &Edit,
) -> Result<()> {
    let living = whole.processes.iter().enumerate().filter(|(_, p)| p.task.state != task_state::ZOMBIE);
    let mut living: Vec<usize> = living.map(|(at, _)| at).collect();
    let (image, at) = loop {
        ensure(!living.is_empty(), "no process has what is to be changed")?;
        let at = living.swap_remove(random_below(living.len() as u64) as usize);
        let mut image = whole.clone();
        if change(&mut image, at).is_some() {
            break (image, at);
        }
    };
    std::fs::remove_file(edited)?;
    std::fs::write(edited, rewritten(sound, &image)?)?;
    let outcome = scene.restart(ctx, edited).finish()?;
    if outcome.status.success() {
        scene.clear()?;
        bail!("process {} was restarted nevertheless", whole.processes[at].task.pid);
    }
    scene.failed(&outcome, &[])?;
    let line = outcome.stderr.trim().to_lowercase();
    let says = words.split('|').any(|word| line.contains(&word.to_lowercase()));
    ensure(says, format!("it does not say {words:?}: {line}"))?;
    let ids = image.processes[at].threads.iter().map(|t| t.record.tid.to_string());
    let named = ids.into_iter().any(|id| line.contains(&id));
    ensure(named || !names_task, format!("the line does not name the task: {line}"))
}
