//! Files with a name whose contents are in the image as well (`--embed-files`).
//!
//! *Saved*: contents, mode, owner, size, of the regular files that are open, or, with a pattern, of those open
//! or mapped whose path matches it. Never of a program itself: the kernel lets nobody run what is still being written.
//! *Restored*: one that is missing is made again at its path, and taken away again if the restart fails; one
//! that is there is left alone and must be what it was: see `identity.rs`. *Lost*: extended attributes, other names
//! of it, times but that of modification.

use super::{Made, unlinked};
use crate::{
    error::{Doing, Error, Result},
    objects::Objects,
    scribe::Scribe,
    task::show,
};
use ckpt_image::{
    Object, Objref, model,
    record::{self, file_kind, inode_kind},
};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeSet;

/// Whether a path matches a glob: `*` is any bytes, `?` any byte, `[a-z]` and `[!a-z]` one of a set, `\\` takes the next
/// literally. A pattern without a slash is matched against the last name.
pub(crate) fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    glob(pattern, if pattern.contains(&b'/') { path } else { name })
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // Where the last star was, and what it has taken so far: no other needs to be tried again.
    let (mut at, mut from, mut star) = (0, 0, None);
    while from < text.len() {
        let step = match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
                continue;
            }
            _ => one(pattern.get(at..).unwrap_or_default(), text.get(from).copied().unwrap_or_default()),
        };
        match (step, star) {
            (Some(len), _) => (at, from) = (at + len, from + 1),
            (None, Some((of, taken))) => {
                star = Some((of, taken + 1));
                (at, from) = (of + 1, taken + 1);
            }
            (None, None) => return false,
        }
    }
    pattern.get(at..).unwrap_or_default().iter().all(|byte| *byte == b'*')
}

/// How long the beginning of a pattern is that matches one byte.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [b'[', rest @ ..] => {
            let negated = rest.first() == Some(&b'!');
            let set = rest.get(usize::from(negated)..).unwrap_or_default();
            // A bracket right at the beginning is one of the set.
            let end = set.iter().skip(1).position(|byte| *byte == b']')? + 1;
            let mut set_left = set.get(..end).unwrap_or_default();
            let mut found = false;
            while let Some((first, rest)) = set_left.split_first() {
                (found, set_left) = match rest {
                    [b'-', last, more @ ..] => (found || (first..=last).contains(&&byte), more),
                    _ => (found || *first == byte, rest),
                };
            }
            (found != negated).then_some(1 + usize::from(negated) + end + 1)
        }
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

/// Embeds files of a tree that has been captured. Without a pattern: those that are open.
pub(crate) fn adopt(pattern: Option<&[u8]>, objects: &mut Objects) -> Result<()> {
    let (mut open, mut programs) = (BTreeSet::new(), BTreeSet::new());
    for object in objects.table.values() {
        match object {
            Object::Files(table) => open.extend(table.descs.iter().map(|desc| desc.file)),
            Object::Mm(mm) => drop(programs.insert(mm.record.exe)),
            _ => {}
        }
    }
    let identity = |file: &model::File| (file.record.dev, file.record.ino);
    let programs: BTreeSet<(u64, u64)> = programs
        .iter()
        .filter_map(|exe| match objects.table.get(exe) {
            Some(Object::File(file)) => Some(identity(file)),
            _ => None,
        })
        .collect();
    let wanted = |(objref, object): (&Objref, &Object)| match object {
        Object::File(file) if file.record.kind == file_kind::REGULAR && file.details.is_empty() => {
            let asked = pattern.map_or(open.contains(objref), |pattern| matches(pattern, &file.path));
            (asked && !programs.contains(&identity(file))).then_some(*objref)
        }
        _ => None,
    };
    let wanted: Vec<Objref> = objects.table.iter().filter_map(wanted).collect();
    wanted.into_iter().try_for_each(|objref| adopt_one(objref, objects))
}

fn adopt_one(objref: Objref, objects: &mut Objects) -> Result<()> {
    let Some(Object::File(file)) = objects.table.get(&objref) else { return Ok(()) };
    let (dev_ino, path) = ((file.record.dev, file.record.ino), file.path.clone());
    let doing = || format!("embed {}", show(&path));
    let fd =
        rustix::fs::open(path.as_slice(), OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty());
    let fd = fd.doing(doing)?;
    let stat = rustix::fs::fstat(&fd).doing(doing)?;
    if (stat.st_dev, stat.st_ino) != dev_ino {
        return Err(Error::failed(format!("{} was replaced just now", show(&path))).advice("try again"));
    }
    let record = record::Inode {
        kind: inode_kind::EMBEDDED,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size.max(0) as u64,
        capacity: 0,
    };
    let inode = model::Inode { record, path, ..model::Inode::default() };
    let (inode, new) = objects.inode(dev_ino, || Object::Inode(inode));
    if new {
        objects.contents.push((inode, fd.into()));
    }
    if let Some(Object::File(file)) = objects.table.get_mut(&objref) {
        file.record.inode = inode;
    }
    Ok(())
}

/// Makes an embedded file again, if it is missing.
pub(crate) fn make(inode: &model::Inode, scribe: &Scribe) -> Result<Option<Made>> {
    let path = show(&inode.path);
    if rustix::fs::lstat(inode.path.as_slice()).is_ok() {
        return Ok(None);
    }
    let Some(fd) = scribe.lasting(&inode.path)? else { return Ok(None) };
    unlinked::prepare(&fd, &inode.record).doing(|| format!("prepare {path}"))?;
    tracing::info!("{path} is missing, and made from the image");
    Ok(Some(Made::new(fd)))
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn globs() {
        for (pattern, path) in [
            ("*", "/a/b"),
            ("b", "/a/b"),
            ("*.log", "/var/x.log"),
            ("/var/*", "/var/a/b"),
            ("/*/x?[0-9].d*", "/v/xy7.dat"),
            ("[!a]*[]]", "/b]"),
            ("a\\*", "/a*"),
            ("*a*b*c", "/xaxbxxbc"),
            ("[a-", "/["),
        ] {
            assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), pattern != "[a-", "{pattern} {path}");
        }
        for (pattern, path) in
            [("", "/a"), ("?", "/"), ("/a", "/a/b"), ("[!b]", "/b"), ("[a-c]x", "/dx"), ("a\\*", "/ab")]
        {
            assert!(!matches(pattern.as_bytes(), path.as_bytes()), "{pattern} {path}");
        }
    }
}
