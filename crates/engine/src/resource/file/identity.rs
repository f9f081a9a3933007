//! Whether the files with a name are those they were, and which names they have now.
//!
//! The file system has their contents: what the program finds there is what it goes on with. The image
//! has path, inode, size and time of modification, and of programs and libraries the build-id.
//!
//! | the file is | smaller | larger | of the same size, another time |
//! |---|---|---|---|
//! | program, library, mapped MAP_PRIVATE | error | error | error, unless the build-id is the same |
//! | open for writing, mapped MAP_SHARED | error | fine: a log that grew, `-v` says so | fine: `-v` says so |
//! | open for reading | error | fine if it is the same inode, else error | warning if it is the same inode, else error |
//!
//! Inode numbers are given again: one whose file was born after the checkpoint (statx(2) stx_btime) is another.
//!
//! Errors are those that `--force-files` goes on with. `--truncate-files` cuts what is open for writing and grew back to
//! its size, at the very end, when nothing can fail any more but that. `--map-file OLD=NEW` says where a file
//! or a directory is now; that is another inode on purpose.

use super::{Files, Made, external};
use crate::{
    advice::Means,
    error::{Doing, Error, Result},
    options::{Observer, RestartOptions},
    resource::mm,
    task::show,
};
use ckpt_image::{
    Image, Object, Objref, model,
    record::{self, file_kind, vma_kind},
};
use rustix::fs::{AtFlags, OFlags, Stat, StatxFlags};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::PathBuf,
};

/// What a program does with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Pages that were not stored come from it.
    Private,
    Write,
    Read,
}

/// What became of a file.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    /// It only grew, by so many bytes.
    Grown(u64),
    /// Somebody may have written to it.
    Touched,
    Changed(String),
}

/// Holds the regular files that were opened to the table above. Returns those that are written to and
/// grew.
pub(crate) fn check(
    image: &Image,
    files: &Files,
    inodes: &BTreeMap<Objref, Made>,
    options: &RestartOptions,
    observer: &mut dyn Observer,
) -> Result<Vec<Objref>> {
    let private = private(image);
    let supplied = external::supplied(image, &options.inherit);
    let mut grown = Vec::new();
    let mut touched = BTreeSet::new();
    for (objref, fd) in files.iter().filter(|(objref, _)| !files.is_unchanged(**objref)) {
        let Some(file) = image.file(*objref).filter(|f| f.record.kind == file_kind::REGULAR) else {
            continue;
        };
        if inodes.contains_key(&file.record.inode) || supplied.contains_key(objref) {
            // It is made from the image, or not to be the same.
            continue;
        }
        let path = || show(&file.path);
        let stat = rustix::fs::fstat(fd).doing(|| format!("stat {}", path()))?;
        let usage = match file.record.flags & OFlags::RWMODE.bits() {
            _ if private.contains(objref) => Use::Private,
            0 => Use::Read,
            _ => Use::Write,
        };
        let same_inode = || stat.st_ino == file.record.ino && !born_since(fd, image.header.time);
        match verdict(file, &stat, usage, same_inode) {
            Verdict::Same => {}
            Verdict::Changed(_) if options.force_files => {}
            Verdict::Changed(why) => {
                let what = format!("{} has changed since the checkpoint", path());
                let error = Error::failed(what).why(why).advice("put the original back");
                return Err(error.or(Means::MapFiles).or(Means::ForceFiles));
            }
            Verdict::Grown(by) => {
                tracing::info!("{} has grown by {by} bytes since the checkpoint", path());
                if usage == Use::Write {
                    grown.push(*objref);
                }
            }
            Verdict::Touched if usage == Use::Read => drop(touched.insert(path())),
            Verdict::Touched => tracing::info!("{} was written to since the checkpoint", path()),
        }
    }
    warn_of(&touched, observer);
    Ok(grown)
}

/// Names the first of the files that may have been written to.
fn warn_of(touched: &BTreeSet<String>, observer: &mut dyn Observer) {
    const NAMED: usize = 3;
    if touched.is_empty() {
        return;
    }
    let mut names = touched.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if touched.len() > NAMED {
        names.push_str(&format!(" and {} more", touched.len() - NAMED));
    }
    observer.warn(&format!("modified since the checkpoint, though of the same size: {names}"));
}

/// The files that privately mapped pages come from, and programs.
fn private(image: &Image) -> BTreeSet<Objref> {
    let spaces = image.objects.values().filter_map(|object| match object {
        Object::Mm(mm) => Some(mm),
        _ => None,
    });
    let of_space = |mm: &model::Mm| {
        let private = mm.vmas.iter().map(|v| v.record).filter(|r| r.kind == vma_kind::FILE_PRIVATE);
        private.map(|r| r.object).chain([mm.record.exe]).collect::<Vec<Objref>>()
    };
    spaces.flat_map(of_space).collect()
}

/// Whether a file was made after `time` (in nanoseconds), as far as its file system says.
pub(super) fn born_since(fd: &OwnedFd, time: u64) -> bool {
    let found = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME);
    found.is_ok_and(|stat| {
        let born = stat.stx_btime.tv_sec.max(0) as u64 * 1_000_000_000 + u64::from(stat.stx_btime.tv_nsec);
        stat.stx_mask & StatxFlags::BTIME.bits() != 0 && born > time
    })
}

/// Whether a file is what it was, whatever a program does with it.
pub(super) fn is_same(record: &record::File, stat: &Stat) -> bool {
    let time = (stat.st_mtime, stat.st_mtime_nsec as u32);
    time == (record.mtime_sec, record.mtime_nsec) && stat.st_size.max(0) as u64 == record.size
}

fn verdict(file: &model::File, stat: &Stat, usage: Use, same_inode: impl Fn() -> bool) -> Verdict {
    let record = &file.record;
    if is_same(record, stat) {
        return Verdict::Same;
    }
    let size = stat.st_size.max(0) as u64;
    let same_build =
        || !file.build_id.is_empty() && mm::build_id(&file.path).as_ref() == Some(&file.build_id);
    let sizes = || Verdict::Changed(format!("its size differs, it has {size} bytes and had {}", record.size));
    match (usage, size.cmp(&record.size)) {
        (Use::Private, Ordering::Equal) if same_build() => Verdict::Same,
        (Use::Private, Ordering::Equal) => {
            Verdict::Changed("modification time and build-id differ".to_owned())
        }
        (Use::Private, _) | (_, Ordering::Less) => sizes(),
        (Use::Read, Ordering::Greater) if !same_inode() => sizes(),
        (_, Ordering::Greater) => Verdict::Grown(size - record.size),
        (Use::Read, Ordering::Equal) if !same_inode() && record.ino != MOVED => {
            Verdict::Changed("it is another file, modified at another time".to_owned())
        }
        (_, Ordering::Equal) => Verdict::Touched,
    }
}

/// Cuts files back to the size they had.
pub(crate) fn truncate(image: &Image, grown: &[Objref], files: &Files) -> Result<()> {
    for (file, fd) in grown.iter().filter_map(|objref| Some((image.file(*objref)?, files.get(objref)?))) {
        rustix::fs::ftruncate(fd, file.record.size)
            .map_err(|e| Error::os(format!("truncate {} to what it was", show(&file.path)), e))?;
    }
    Ok(())
}

/// The inode number of a file that is somewhere else now.
const MOVED: u64 = 0;

/// Gives files and directories the names that they have now: what is at or below OLD is at or below NEW.
/// The longest OLD counts.
pub(crate) fn rename(image: &mut Image, names: &[(PathBuf, PathBuf)]) -> Result<()> {
    let mut used = vec![false; names.len()];
    let mut new = |path: &mut Vec<u8>| {
        let below = |old: &[u8]| {
            let rest = path.strip_prefix(old)?;
            (rest.is_empty() || rest.starts_with(b"/")).then(|| rest.to_vec())
        };
        let trimmed = |path: &PathBuf| path.as_os_str().as_bytes().to_vec();
        let found = names.iter().enumerate().filter_map(|(at, (old, new))| {
            let old = trimmed(old);
            Some((old.len(), at, below(&old)?, new))
        });
        let Some((_, at, rest, to)) = found.max_by_key(|(len, ..)| *len) else { return false };
        *path = [trimmed(to), rest].concat();
        if let Some(used) = used.get_mut(at) {
            *used = true;
        }
        true
    };
    for object in image.objects.values_mut() {
        match object {
            Object::File(file) if file.record.kind != file_kind::PROC => {
                let moved = new(&mut file.path);
                let renamed = match file.record.kind {
                    file_kind::REGULAR | file_kind::PATH => new(&mut file.details),
                    _ => false,
                };
                if file.record.kind == file_kind::REGULAR && (renamed || moved) {
                    file.record.ino = MOVED;
                }
            }
            Object::Inode(inode) => drop(new(&mut inode.path)),
            Object::Fs(fs) => {
                new(&mut fs.cwd);
                new(&mut fs.root);
            }
            _ => {}
        }
    }
    match used.iter().position(|used| !used).and_then(|at| names.get(at)) {
        Some((old, new)) => {
            let what = format!("--map-file {}={}: the image has nothing there", old.display(), new.display());
            Err(Error::failed(what).advice("`ckptinfo IMAGE` shows the paths it has"))
        }
        None => Ok(()),
    }
}
