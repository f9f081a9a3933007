//! An image as JSON. Addresses and masks are hexadecimal strings (JSON numbers lose bits beyond
//! 2^53); names and paths are escaped as in the text output; sizes are bytes, times nanoseconds
//! unless named otherwise.

use ckpt_image::{
    Image, Object,
    model::{File, Inode, Mm, Process, Signal, Thread},
    record::{FileLock, Header, Regs, lock_kind},
};
use serde_json::{Map, Value, json};

use super::{Contents, show};
use crate::{
    console::uuid,
    text::{date, name},
};

/// Everything.
pub(super) fn image(contents: &Contents) -> Value {
    let Contents { image, bytes, metadata_bytes, .. } = contents;
    let pages = contents.pages();
    let objects: Map<String, Value> = image
        .objects
        .iter()
        .map(|(objref, object)| (objref.to_string(), object_of(contents, *objref, object)))
        .collect();
    json!({
        "header": header(image, &image.header),
        "size": {
            "image": bytes,
            "metadata": metadata_bytes,
            "stored": show::page_bytes(pages.stored),
            "zero": show::page_bytes(pages.zero),
        },
        "tree": {"root": image.tree.root, "processes": image.tree.nr_tasks, "threads": image.tree.nr_threads},
        "processes": processes(image),
        "objects": objects,
    })
}

fn header(image: &Image, head: &Header) -> Value {
    let [release, version, machine] = &image.uts;
    json!({
        "id": uuid(&head.id),
        "parent": (head.parent != [0; 16]).then(|| uuid(&head.parent)),
        "format": head.rev,
        "elf_machine": head.arch,
        "time_ns": head.time,
        "time": date(head.time),
        "monotonic_ns": head.clocks.first(),
        "boottime_ns": head.clocks.last(),
        "boot_id": uuid(&head.boot_id),
        "uts": {"nodename": name(head.nodename()), "release": name(release), "version": name(version), "machine": name(machine)},
        "cpu_features": image.arch.features(),
        "xsave": {
            "enabled": hex(image.arch.xfeatures),
            "in_use": hex(image.arch.xfeatures_used),
            "size": image.arch.xsave_size,
        },
        "vdso": {"size": image.arch.vdso_len, "vvar_size": image.arch.vvar_len, "sum": hex(image.arch.vdso_sum)},
    })
}

/// The process tree.
pub(super) fn processes(image: &Image) -> Value {
    let one = |process: &Process| {
        let task = &process.task;
        json!({
            "pid": task.pid,
            "ppid": task.ppid,
            "pgid": task.pgid,
            "sid": task.sid,
            "state": show::state(task.state),
            "exit_signal": task.exit_signal,
            "exit_code": task.exit_code,
            "mm": task.mm,
            "files": task.files,
            "fs": task.fs,
            "sighand": task.sighand,
            "signal": task.signal,
            "threads": process.threads.iter().map(thread).collect::<Vec<_>>(),
        })
    };
    image.processes.iter().map(one).collect()
}

fn thread(thread: &Thread) -> Value {
    let record = &thread.record;
    json!({
        "tid": record.tid,
        "comm": name(&thread.comm),
        "state": if thread.has_ended() { "ended" } else { "living" },
        "exit_code": record.exit_code,
        "registers": registers(&record.regs),
        "xstate_size": thread.xstate.len(),
        "blocked": hex(record.sigmask),
        "pending": thread.pending.iter().map(signo).collect::<Vec<_>>(),
        "altstack": {"address": hex(record.altstack_sp), "size": record.altstack_size, "flags": record.altstack_flags},
        "scheduling": {"policy": record.sched_policy, "nice": record.nice, "priority": record.sched_priority},
        "affinity": thread.affinity.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>(),
        "personality": hex(record.personality.into()),
        "no_new_privs": record.no_new_privs != 0,
        "cred": record.cred,
        "interrupted_call": {"kind": record.restart.kind, "remaining_ns": record.restart.remaining},
    })
}

fn registers(regs: &Regs) -> Value {
    json!({
        "rax": hex(regs.rax), "rbx": hex(regs.rbx), "rcx": hex(regs.rcx), "rdx": hex(regs.rdx),
        "rsi": hex(regs.rsi), "rdi": hex(regs.rdi), "rbp": hex(regs.rbp), "rsp": hex(regs.rsp),
        "r8": hex(regs.r8), "r9": hex(regs.r9), "r10": hex(regs.r10), "r11": hex(regs.r11),
        "r12": hex(regs.r12), "r13": hex(regs.r13), "r14": hex(regs.r14), "r15": hex(regs.r15),
        "rip": hex(regs.rip), "eflags": hex(regs.eflags), "orig_rax": hex(regs.orig_rax),
        "fs_base": hex(regs.fs_base), "gs_base": hex(regs.gs_base),
    })
}

fn object_of(contents: &Contents, objref: i32, object: &Object) -> Value {
    let mut value = match object {
        Object::Mm(mm) => memory(contents, objref, mm),
        Object::Files(table) => json!({
            "descriptors": table.descs.iter()
                .map(|desc| json!({"fd": desc.fd, "cloexec": desc.flags & 1 == 1, "file": desc.file}))
                .collect::<Vec<_>>(),
        }),
        Object::File(file) => file_of(file),
        Object::Inode(inode) => inode_of(contents, objref, inode),
        Object::Fs(fs) => {
            json!({"cwd": name(&fs.cwd), "root": name(&fs.root), "umask": format!("{:04o}", fs.record.umask)})
        }
        Object::Sighand(sighand) => json!({
            "handlers": sighand.actions.iter().enumerate().filter(|(_, action)| action.handler != 0)
                .map(|(at, action)| json!({
                    "signal": at + 1,
                    "handler": if action.handler == 1 { json!("ignore") } else { hex(action.handler) },
                    "flags": hex(action.flags),
                    "mask": hex(action.mask),
                }))
                .collect::<Vec<_>>(),
        }),
        Object::Signal(signal) => signal_of(signal),
        Object::Cred(cred) => json!({
            "uid": cred.record.uid,
            "gid": cred.record.gid,
            "groups": cred.groups,
            "capabilities": {
                "inheritable": hex(cred.record.cap_inheritable),
                "permitted": hex(cred.record.cap_permitted),
                "effective": hex(cred.record.cap_effective),
                "bounding": hex(cred.record.cap_bounding),
                "ambient": hex(cred.record.cap_ambient),
            },
        }),
    };
    if let Some(members) = value.as_object_mut() {
        members.insert("type".to_owned(), json!(object.name()));
    }
    value
}

fn memory(contents: &Contents, objref: i32, mm: &Mm) -> Value {
    let counted = contents.areas.get(&objref);
    let area = |(at, vma): (usize, &ckpt_image::model::Vma)| {
        let record = &vma.record;
        let pages = counted.and_then(|areas| areas.get(at)).copied().unwrap_or_default();
        let size = record.end.saturating_sub(record.start);
        let (stored, zero) = (show::page_bytes(pages.stored), show::page_bytes(pages.zero));
        // Contents that belong to an object are counted with it.
        let own = !matches!(contents.image.objects.get(&record.object), Some(Object::Inode(_)));
        json!({
            "start": hex(record.start),
            "end": hex(record.end),
            "prot": show::prot(record.prot, record.kind),
            "kind": record.kind,
            "flags": hex(record.flags),
            "object": record.object,
            "offset": record.offset,
            "what": show::what(&contents.image, mm, at),
            "size": size,
            "stored": own.then_some(stored),
            "zero": own.then_some(zero),
            "unchanged": own.then_some(size.saturating_sub(stored).saturating_sub(zero)),
        })
    };
    json!({
        "exe": mm.record.exe,
        "brk": [hex(mm.record.start_brk), hex(mm.record.brk)],
        "code": [hex(mm.record.start_code), hex(mm.record.end_code)],
        "data": [hex(mm.record.start_data), hex(mm.record.end_data)],
        "arguments": [hex(mm.record.arg_start), hex(mm.record.arg_end)],
        "environment": [hex(mm.record.env_start), hex(mm.record.env_end)],
        "stack": hex(mm.record.start_stack),
        "dumpable": mm.record.dumpable,
        "areas": mm.vmas.iter().enumerate().map(area).collect::<Vec<_>>(),
    })
}

fn file_of(file: &File) -> Value {
    let record = &file.record;
    json!({
        "kind": show::kind(record.kind),
        "path": name(&file.path),
        "external_name": show::outside(file),
        "locks": file.locks.iter().map(lock).collect::<Vec<_>>(),
        "flags": format!("{:#o}", record.flags),
        "offset": record.pos,
        "inode": record.inode,
        "mode": format!("{:#o}", record.mode),
        "dev": record.dev,
        "ino": record.ino,
        "size": record.size,
        "mtime": [json!(record.mtime_sec), json!(record.mtime_nsec)],
        "build_id": file.build_id.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
    })
}

fn lock(lock: &FileLock) -> Value {
    let kind = match lock.kind {
        lock_kind::POSIX => "posix",
        lock_kind::OFD => "ofd",
        lock_kind::FLOCK => "flock",
        _ => "lease",
    };
    json!({
        "kind": kind,
        "access": if lock.access == 0 { "read" } else { "write" },
        "pid": lock.pid,
        "start": lock.start,
        "length": lock.len,
    })
}

fn inode_of(contents: &Contents, objref: i32, inode: &Inode) -> Value {
    let pages = contents.objects.get(&objref).copied().unwrap_or_default();
    json!({
        "kind": inode.record.kind,
        "path": name(&inode.path),
        "mode": format!("{:#o}", inode.record.mode),
        "uid": inode.record.uid,
        "gid": inode.record.gid,
        "size": inode.record.size,
        "stored": show::page_bytes(pages.stored),
        "zero": show::page_bytes(pages.zero),
    })
}

fn signal_of(signal: &Signal) -> Value {
    let timers = signal.timers.iter().map(|timer| {
        json!({
            "id": timer.id,
            "clock": timer.clockid,
            "notify": timer.notify,
            "signal": timer.signo,
            "interval_ns": timer.interval,
            "remaining_ns": timer.remaining,
        })
    });
    json!({
        "rlimits": signal.record.rlimits,
        "itimers_us": signal.record.itimers,
        "oom_score_adj": signal.record.oom_score_adj,
        "pending": signal.pending.iter().map(signo).collect::<Vec<_>>(),
        "timers": timers.collect::<Vec<_>>(),
    })
}

/// The signal number of a siginfo.
fn signo(info: &[u8; 128]) -> Option<i32> {
    info.first_chunk().map(|word| i32::from_le_bytes(*word))
}

fn hex(value: u64) -> Value {
    json!(format!("{value:#x}"))
}
