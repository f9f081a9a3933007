//! An image in words and tables.

use std::{collections::BTreeMap, fmt::Write};

use ckpt_image::{
    Image, Object,
    model::{File, FileTable, Mm, Process, Thread, details},
    record::{ExternalName, PAGE_SIZE, file_kind, inode_kind, task_state, vma_flags, vma_kind},
};

use super::{Contents, Pages};
use crate::{
    console::uuid,
    text::{bytes, count, date, name},
};

/// Everything.
pub(super) fn image(contents: &Contents) -> String {
    let mut out = String::new();
    header(&mut out, contents);
    let image = &contents.image;
    out.push_str("\nTasks\n");
    out.push_str(&tree(image));
    // What processes share is shown with the first of them.
    let (mut spaces, mut tables) = (BTreeMap::new(), BTreeMap::new());
    for process in &image.processes {
        let (pid, objref) = (process.task.pid, process.task.mm);
        let owner = *spaces.entry(objref).or_insert(pid);
        match image.mm(objref) {
            Some(mm) if owner == pid => memory(&mut out, contents, process, mm),
            Some(_) => drop(writeln!(out, "\nMemory of {pid}: that of {owner}")),
            None => {}
        }
        let owner = *tables.entry(process.task.files).or_insert(pid);
        match image.files(process.task.files) {
            Some(table) if owner == pid => files(&mut out, image, process, table),
            Some(_) => drop(writeln!(out, "\nFiles of {pid}: those of {owner}")),
            None => {}
        }
    }
    unnamed(&mut out, contents);
    out
}

/// The process tree with its threads.
pub(super) fn tree(image: &Image) -> String {
    let mut out = String::from("     PID    PPID    PGID     SID  STATE    NAME\n");
    // Parents precede their children.
    let mut depths = BTreeMap::new();
    for process in &image.processes {
        let task = &process.task;
        let comm = process.threads.first().map(|leader| name(&leader.comm)).unwrap_or_default();
        let has_ended = process.threads.first().is_some_and(Thread::has_ended);
        let ended = if has_ended { " (its main thread has ended)" } else { "" };
        let depth = depths.get(&task.ppid).map_or(0, |above: &usize| (above + 1).min(32));
        depths.insert(task.pid, depth);
        let _ = writeln!(
            out,
            "{:8}{:8}{:8}{:8}  {:8} {}{comm}{ended}",
            task.pid,
            task.ppid,
            task.pgid,
            task.sid,
            state(task.state),
            "  ".repeat(depth)
        );
        for thread in process.threads.iter().skip(1) {
            let indent = "  ".repeat(depth + 1);
            let _ =
                writeln!(out, "{:8}{:24}  thread   {indent}{}", thread.record.tid, "", name(&thread.comm));
        }
    }
    out
}

pub(super) fn state(state: u32) -> &'static str {
    match state {
        task_state::RUNNING => "running",
        task_state::STOPPED => "stopped",
        task_state::ZOMBIE => "zombie",
        _ => "?",
    }
}

fn header(out: &mut String, contents: &Contents) {
    let Contents { image, metadata_bytes, bytes: all, .. } = contents;
    let (head, pages) = (&image.header, contents.pages());
    let [release, version, machine] = &image.uts;
    let _ = writeln!(out, "Image    {}", uuid(&head.id));
    if head.parent != [0; 16] {
        let _ = writeln!(out, "Parent   {}", uuid(&head.parent));
    }
    let _ = writeln!(out, "Format   {}, x86-64", head.rev);
    let _ = writeln!(out, "Taken    {}", date(head.time));
    if !head.nodename().is_empty() {
        let _ = writeln!(out, "Host     {}", name(head.nodename()));
    }
    let _ = writeln!(out, "Kernel   {} {} ({})", name(release), name(machine), name(version));
    let _ = writeln!(out, "Boot     {}", uuid(&head.boot_id));
    let _ = writeln!(
        out,
        "CPU      xsave components {:#x}, in use {:#x}",
        image.arch.xfeatures, image.arch.xfeatures_used
    );
    let (processes, threads) = (u64::from(image.tree.nr_tasks), u64::from(image.tree.nr_threads));
    let _ = writeln!(
        out,
        "Tree     root {}, {}, {}",
        image.tree.root,
        count(processes, "process"),
        count(threads, "thread")
    );
    let _ = writeln!(
        out,
        "Size     {}: {} of state, {} of page contents; {} more are zero",
        bytes(*all),
        bytes(*metadata_bytes),
        bytes(page_bytes(pages.stored)),
        bytes(page_bytes(pages.zero)),
    );
}

/// One table row per area. Unchanged: not in the image, because the file or a fresh mapping gives
/// the same.
fn memory(out: &mut String, contents: &Contents, process: &Process, mm: &Mm) {
    let _ = writeln!(out, "\nMemory of {} ({})", process.task.pid, count(mm.vmas.len() as u64, "area"));
    let none = Vec::new();
    let areas = contents.areas.get(&process.task.mm).unwrap_or(&none);
    let _ = writeln!(
        out,
        "           START              END PROT       SIZE     STORED       ZERO  UNCHANGED  WHAT"
    );
    let (mut size_all, mut all) = (0u64, Pages::default());
    for (at, vma) in mm.vmas.iter().enumerate() {
        let pages = areas.get(at).copied().unwrap_or_default();
        let size = vma.record.end.saturating_sub(vma.record.start);
        let elsewhere = matches!(contents.image.objects.get(&vma.record.object), Some(Object::Inode(_)));
        let _ = writeln!(
            out,
            "{:16x} {:16x} {} {}  {}",
            vma.record.start,
            vma.record.end,
            prot(vma.record.prot, vma.record.kind),
            if elsewhere { counted_elsewhere(size) } else { sizes(size, pages) },
            what(&contents.image, mm, at)
        );
        if elsewhere {
            continue;
        }
        size_all = size_all.saturating_add(size);
        all = Pages {
            stored: all.stored.saturating_add(pages.stored),
            zero: all.zero.saturating_add(pages.zero),
        };
    }
    let _ = writeln!(out, "{:>33} {:4} {}", "all (without objects)", "", sizes(size_all, all));
}

fn sizes(size: u64, pages: Pages) -> String {
    let (stored, zero) = (page_bytes(pages.stored), page_bytes(pages.zero));
    let unchanged = size.saturating_sub(stored).saturating_sub(zero);
    format!("{:>10} {:>10} {:>10} {:>10}", bytes(size), bytes(stored), bytes(zero), bytes(unchanged))
}

/// Sizes of an area whose contents belong to an object that is listed by itself.
fn counted_elsewhere(size: u64) -> String {
    format!("{:>10} {:>10} {:>10} {:>10}", bytes(size), "-", "-", "-")
}

pub(super) fn page_bytes(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_SIZE as u64)
}

/// As in /proc/PID/maps: `rw-p`.
pub(super) fn prot(prot: u32, kind: u32) -> String {
    let bit = |bit: u32, letter: char| if prot & bit == 0 { '-' } else { letter };
    let shared = matches!(kind, vma_kind::ANON_SHARED | vma_kind::FILE_SHARED);
    format!("{}{}{}{}", bit(1, 'r'), bit(2, 'w'), bit(4, 'x'), if shared { 's' } else { 'p' })
}

/// What an area is.
pub(super) fn what(image: &Image, mm: &Mm, at: usize) -> String {
    let Some(vma) = mm.vmas.get(at) else { return String::new() };
    let record = &vma.record;
    let inside = |address: u64| record.start <= address && address < record.end;
    match (record.kind, image.objects.get(&record.object)) {
        (vma_kind::VDSO, _) => "[vdso]".to_owned(),
        (vma_kind::VVAR, _) => "[vvar]".to_owned(),
        (_, Some(Object::File(file))) => format!("{} at {:#x}", name(&file.path), record.offset),
        (_, Some(Object::Inode(inode))) if inode.path.is_empty() => {
            format!("[shared memory, object {}]", record.object)
        }
        (_, Some(Object::Inode(inode))) => {
            format!("{} (unlinked, object {})", name(&inode.path), record.object)
        }
        _ if !vma.anon_name.is_empty() => format!("[anon:{}]", name(&vma.anon_name)),
        _ if inside(mm.record.start_stack) || record.flags & vma_flags::GROWSDOWN != 0 => {
            "[stack]".to_owned()
        }
        _ if record.start < mm.record.brk && mm.record.start_brk < record.end => "[heap]".to_owned(),
        _ => String::new(),
    }
}

fn files(out: &mut String, image: &Image, process: &Process, table: &FileTable) {
    let _ =
        writeln!(out, "\nFiles of {} ({})", process.task.pid, count(table.descs.len() as u64, "descriptor"));
    let _ = writeln!(out, "    FD  OBJECT  MODE  CLOEXEC      OFFSET  KIND         PATH");
    for desc in &table.descs {
        let Some(file) = image.file(desc.file) else { continue };
        let _ = writeln!(
            out,
            "{:6} {:7}  {:4}  {:7} {:11}  {:11}  {}",
            desc.fd,
            desc.file,
            mode(file),
            if desc.flags & 1 == 1 { "yes" } else { "no" },
            file.record.pos,
            kind(file.record.kind),
            described(file)
        );
    }
    if let Some(fs) = image.fs(process.task.fs) {
        let _ =
            writeln!(out, "  cwd {}, root {}, umask {:04o}", name(&fs.cwd), name(&fs.root), fs.record.umask);
    }
}

/// Path, name of what is outside, and how many locks are held.
fn described(file: &File) -> String {
    let mut text = name(&file.path);
    if let Some(outside) = outside(file) {
        let _ = write!(text, " (named {outside})");
    }
    if !file.locks.is_empty() {
        let _ = write!(text, " ({})", count(file.locks.len() as u64, "lock"));
    }
    text
}

/// What the checkpoint called a file from outside.
pub(super) fn outside(file: &File) -> Option<String> {
    let external = [
        file_kind::EXTERNAL_TTY,
        file_kind::EXTERNAL_PIPE,
        file_kind::EXTERNAL_SOCKET,
        file_kind::EXTERNAL_FILE,
    ];
    let names = details::<ExternalName>(&file.details).filter(|_| external.contains(&file.record.kind))?;
    names.first().map(|external| name(external.bytes()))
}

/// Access mode, and `a` for O_APPEND.
fn mode(file: &File) -> String {
    let access = match file.record.flags & 3 {
        0 => "r",
        1 => "w",
        2 => "rw",
        _ => "-",
    };
    let append = if file.record.flags & 0o2000 == 0 { "" } else { "a" };
    format!("{access}{append}")
}

pub(super) fn kind(kind: u32) -> &'static str {
    match kind {
        file_kind::REGULAR => "file",
        file_kind::DIRECTORY => "directory",
        file_kind::PATH => "path",
        file_kind::CHARDEV => "device",
        file_kind::UNLINKED => "unlinked",
        file_kind::PIPE => "pipe",
        file_kind::MEMFD => "memfd",
        file_kind::MQUEUE => "mqueue",
        file_kind::EXTERNAL_FILE => "ext. file",
        file_kind::PROC => "kernel file",
        file_kind::PTY => "pty",
        file_kind::TTY_CURRENT => "/dev/tty",
        file_kind::EVENTFD => "eventfd",
        file_kind::EPOLL => "epoll",
        file_kind::SIGNALFD => "signalfd",
        file_kind::TIMERFD => "timerfd",
        file_kind::PIDFD => "pidfd",
        file_kind::INOTIFY => "inotify",
        file_kind::UNIX => "unix socket",
        file_kind::EXTERNAL_TTY => "ext. tty",
        file_kind::EXTERNAL_PIPE => "ext. pipe",
        file_kind::EXTERNAL_SOCKET => "ext. socket",
        _ => "?",
    }
}

/// Unlinked and embedded files, pipes, memory shared anonymously: their contents are in the image.
fn unnamed(out: &mut String, contents: &Contents) {
    let inodes = contents.image.objects.iter().filter_map(|(objref, object)| match object {
        Object::Inode(inode) => Some((objref, inode)),
        _ => None,
    });
    for (nr, (objref, inode)) in inodes.enumerate() {
        if nr == 0 {
            out.push_str(
                "\nContents besides memory\n  OBJECT           SIZE     STORED       ZERO  UNCHANGED  WHAT\n",
            );
        }
        let pages = contents.objects.get(objref).copied().unwrap_or_default();
        let what = match inode.record.kind {
            inode_kind::UNLINKED => format!("unlinked file, once {}", name(&inode.path)),
            inode_kind::EMBEDDED => format!("embedded file {}", name(&inode.path)),
            inode_kind::PIPE => format!("pipe, {}", name(&inode.path)),
            inode_kind::MEMFD => format!("memfd, {}", name(&inode.path)),
            inode_kind::PTY => format!("what waits in the terminal {}", name(&inode.path)),
            inode_kind::UNIX if inode.path.is_empty() => "what waits in a unix socket".to_owned(),
            inode_kind::UNIX => format!("unix socket {}", name(&inode.path)),
            _ => "shared memory".to_owned(),
        };
        let _ = writeln!(out, "{objref:8}     {}  {what}", sizes(inode.record.size, pages));
    }
}
