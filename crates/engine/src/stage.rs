//! What is settled from the image before any process is made: where the coordinator's own mappings are in nobody's way,
//! which signal is free, and who is to be whose child, of which `plan.rs` makes an order.

use crate::{
    error::{Error, Result},
    opened::Opened,
    options::{Observer, Pids, RestartOptions},
    plan::{Node, Terms, plan},
    puppets::{Puppets, label},
    resource::{layout, pidns::Namespaces, signal},
    source,
    task::ProcDir,
};
use ckpt_image::{
    Image, Object, Objref, model,
    record::{self, task_state, vma_flags, vma_kind},
};
use ckpt_kernel::{memory::Span, puppet::Puppet, shared::SharedArea};
use ckpt_proc::maps::parse_maps;
use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd, RawFd},
};

/// What every puppet is made with.
pub(crate) struct Stage<'a> {
    /// The processes of the image.
    pub(crate) processes: &'a [model::Process],
    /// Which ids they get.
    pub(crate) pids: Pids,
    /// The root is a child of our parent.
    pub(crate) sibling: bool,
    /// We wait for the root, which is our child.
    pub(crate) stands_in: bool,
    /// The nested pid namespaces they are in.
    pub(crate) namespaces: Namespaces,
    /// They get a /proc of their pid namespace, in their mount namespace.
    pub(crate) own_proc: bool,
    /// Where the slot is.
    pub(crate) slot: Span,
    /// Other mappings of the coordinator that puppets keep.
    pub(crate) areas: Vec<Span>,
    /// Descriptors of ours, which puppets have at first: terminals.
    pub(crate) terminals: BTreeMap<Objref, RawFd>,
    /// They share one descriptor table until all are made.
    pub(crate) one_table: bool,
    /// A signal that is pending nowhere.
    pub(crate) park: i32,
}

/// The address spaces of an image.
fn spaces(image: &Image) -> impl Iterator<Item = (Objref, &model::Mm)> {
    image.objects.iter().filter_map(|(objref, object)| match object {
        Object::Mm(mm) => Some((*objref, mm)),
        _ => None,
    })
}

/// Addresses that are taken here or in any address space of the image.
fn taken(image: &Image) -> Result<Vec<Span>> {
    let own = ProcDir::own()?.parse_long("maps", parse_maps)?;
    let own = own.iter().map(|m| Span { start: m.start, len: m.len() as usize });
    Ok(spaces(image).flat_map(|(_, mm)| layout::taken(mm)).chain(own).collect())
}

/// Maps every object shared anonymously, where it is in nobody's way.
pub(crate) fn areas(image: &Image) -> Result<BTreeMap<Objref, SharedArea>> {
    let vmas = spaces(image).flat_map(|(_, mm)| &mm.vmas).map(|v| v.record);
    // How far the areas of each reach, which may be past its end, and whether swap is reserved for it.
    let mut shared: BTreeMap<Objref, (u64, bool)> = BTreeMap::new();
    for vma in vmas.filter(|r| r.kind == vma_kind::ANON_SHARED) {
        let (end, noreserve) = shared.entry(vma.object).or_default();
        *end = vma.offset.saturating_add(vma.end - vma.start).max(*end);
        *noreserve |= vma.flags & vma_flags::NORESERVE != 0;
    }
    let mut taken = taken(image)?;
    let mut areas = BTreeMap::new();
    for (objref, (end, noreserve)) in shared {
        let Some(inode) = image.inode(objref) else { continue };
        let size = inode.record.size.next_multiple_of(record::PAGE_SIZE as u64);
        let len = size.max(end);
        if size == 0 || len > layout::TASK_SIZE {
            return Err(Error::bad_image(format!("shared object {objref} of {len} bytes")));
        }
        let start = layout::free_range(&mut taken, len as usize)?;
        let span = Span { start, len: len as usize };
        areas.insert(objref, SharedArea::map(span, size as usize, noreserve)?);
    }
    Ok(areas)
}

/// Makes all processes.
pub(crate) fn make(
    image: &Image,
    options: &RestartOptions,
    opened: &Opened,
    areas: &BTreeMap<Objref, SharedArea>,
    reader: &mut source::ImageReader,
    observer: &mut dyn Observer,
) -> Result<Puppets> {
    let namespaces = Namespaces::of(&image.processes);
    let home = |id| namespaces.home(id);
    let terms = Terms { apart: options.pids == Pids::Namespace, home: Some(&home) };
    let plan = plan(&nodes(&image.processes)?, &terms)?;
    let mut threads: BTreeMap<Objref, usize> = BTreeMap::new();
    for process in &image.processes {
        *threads.entry(process.task.mm).or_default() += process.threads.len();
    }
    let len = Puppet::slot_len(threads.into_values().max().unwrap_or(1));
    let start = layout::free_range(&mut taken(image)?, len)?;
    let stage = Stage {
        processes: &image.processes,
        pids: options.pids,
        sibling: options.sibling,
        stands_in: options.stands_in,
        namespaces,
        own_proc: options.mntns && options.pids == Pids::Namespace,
        slot: Span { start, len },
        areas: areas.values().map(SharedArea::span).collect(),
        terminals: opened.inodes.iter().map(|(objref, made)| (*objref, made.fd.as_raw_fd())).collect(),
        one_table: opened.private.is_some(),
        park: park_signal(image)?,
    };
    Puppets::make(&stage, &plan, reader, observer)
}

fn nodes(processes: &[model::Process]) -> Result<Vec<Node>> {
    let by_pid: BTreeMap<i32, &model::Process> = processes.iter().map(|p| (p.task.pid, p)).collect();
    processes.iter().map(|p| node(p, by_pid.get(&p.task.ppid).copied())).collect()
}

fn node(process: &model::Process, parent: Option<&model::Process>) -> Result<Node> {
    let record::Task { pid, ppid, pgid, sid, exit_signal, state, .. } = process.task;
    let (levels, parents) = (process.levels(), parent.map_or(&[][..], |parent| parent.levels()));
    let path = |levels: &[record::PidLevel]| levels.iter().map(|level| level.pidns).collect::<Vec<_>>();
    let depth = levels.len() - usize::from(process.is_init());
    let inside = path(levels).starts_with(&path(parents));
    if !inside || process.is_init() && depth != parents.len() {
        let what = "its pid namespace is not below its parent's";
        return Err(Error::bad_image(what).task(label(process)));
    }
    // Of its group as it is seen by itself and by its parent.
    let seen = |depth: usize| depth.checked_sub(1).and_then(|at| levels.get(at)).map_or(pgid, |l| l.pgid);
    Ok(Node {
        pid,
        ppid,
        pgid,
        sid,
        exit_signal,
        zombie: state == task_state::ZOMBIE,
        pidns: process.pidns(),
        init: process.is_init(),
        bound: !levels.is_empty() && seen(levels.len()) == 0 && seen(parents.len()) == 0,
    })
}

/// A signal that is pending nowhere.
fn park_signal(image: &Image) -> Result<i32> {
    let threads = image.processes.iter().flat_map(|p| &p.threads).flat_map(|t| &t.pending);
    let shared = image.objects.values().filter_map(|object| match object {
        Object::Signal(signal) => Some(&signal.pending),
        _ => None,
    });
    let pending = signal::mask_of(threads.chain(shared.flatten()));
    let never = [libc::SIGKILL, libc::SIGSTOP, libc::SIGCONT, libc::SIGTRAP, libc::SIGSEGV, libc::SIGCHLD];
    [libc::SIGURG, libc::SIGWINCH, libc::SIGUSR1, libc::SIGUSR2, libc::SIGIO, libc::SIGPROF]
        .into_iter()
        .chain(1..32)
        .filter(|signal| !never.contains(signal))
        .find(|signal| pending & 1 << (signal - 1) == 0)
        .ok_or_else(|| Error::unsupported("every signal is pending"))
}
