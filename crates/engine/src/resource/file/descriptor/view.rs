//! Looking at many descriptors: at a glance, to confirm what the survey saw, or closely.

use super::{
    Descriptor,
    numbers::{Name, Number, Numbers, dev_of},
};
use crate::{
    error::{Context, Doing, Result},
    objects::Objects,
    resource::file::{FileKind, directory::Directory, regular::Regular},
    task::{ProcDir, Process},
};
use ckpt_kernel::{descriptors, query};
use ckpt_proc::link::FdLink;
use rustix::fs::{AtFlags, CWD, FileType, OFlags, Stat, Statx};
use std::{
    cell::OnceCell,
    os::fd::{AsRawFd, OwnedFd},
    thread,
};

/// Looks at all descriptors of a process, and has each told by `tell`, with its FD_* flags, in the order of their numbers. When
/// it is guessed which are the same, `numbers` are a guess, too, and are put right; and there is nothing to tell of a regular file
/// where its name says.
pub(crate) fn look_at_all(
    process: &Process,
    numbers: &mut Numbers,
    objects: &mut Objects,
    mut tell: impl FnMut(i32, u32, &Descriptor<'_>, &mut Objects) -> Result<()>,
) -> Result<()> {
    let view = View::of(process)?;
    if !objects.is_guessing() {
        objects.locked.expect(numbers.len());
        let first = view.side_by_side(&mut numbers.fds, descriptors::unshare, |number| view.confirm(number));
        return view.tell(&mut numbers.fds, first, objects, &mut tell);
    }
    let mut glance_at = |numbers: &mut Vec<Number>, objects: &mut Objects| -> Result<bool> {
        // While the program runs nobody may have copies for longer than he looks at them.
        let first = view.side_by_side(numbers, || Ok(()), |number| view.glance(number));
        view.tell(numbers, first, objects, &mut tell)?;
        let before = numbers.len();
        numbers.retain(|number| number.open);
        Ok(numbers.len() == before)
    };
    let beyond = numbers.fds.last().map_or(0, |number| number.fd + 1);
    if !glance_at(&mut numbers.fds, objects)? {
        let mut others = Numbers::of(process)?.fds;
        others.retain(|number| number.fd >= beyond);
        glance_at(&mut others, objects)?;
        numbers.fds.append(&mut others);
    }
    Ok(())
}

/// As many descriptors as are worth a thread.
const MANY: usize = 512;

/// Where the descriptors of a process are seen.
struct View<'a> {
    process: &'a Process,
    /// /proc/PID/fd.
    links: ProcDir,
    /// /proc/self/fd, where copies are.
    own: ProcDir,
    /// The status of some file: the pattern of others.
    pattern: Stat,
}

/// What was seen of a descriptor.
struct Seen {
    fd: i32,
    link: Vec<u8>,
    stat: Stat,
    look: Look,
}

/// How it was looked at.
enum Look {
    /// Where its name leads.
    Glance,
    /// The same, and at a copy: its flags and offset.
    Confirmed(u32, u64),
    /// At a copy, which is here, and its flags.
    Close(OwnedFd, u32),
}

impl<'a> View<'a> {
    fn of(process: &'a Process) -> Result<View<'a>> {
        let pattern = process.proc.stat("fd")?;
        Ok(View { process, links: process.proc.dir("fd")?, own: ProcDir::own()?.dir("fd")?, pattern })
    }

    /// Has a first look at some, on as many processors as there are; what that gave of each, share by share. Before that
    /// each thread may `part` from our descriptor table: in one, copies are made and closed one after the other.
    fn side_by_side(
        &self,
        numbers: &mut [Number],
        part: impl Fn() -> Result<(), ckpt_kernel::Error> + Sync,
        look: impl Fn(&mut Number) -> Option<Seen> + Sync,
    ) -> Vec<Vec<Option<Seen>>> {
        let look_at =
            |numbers: &mut [Number]| -> Vec<Option<Seen>> { numbers.iter_mut().map(&look).collect() };
        if numbers.len() < 2 * MANY {
            return vec![look_at(numbers)];
        }
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let mut shares = numbers.chunks_mut(numbers.len().div_ceil(processors).max(MANY));
        let first = shares.next().unwrap_or_default();
        let nothing = |len: usize| (0..len).map(|_| None).collect::<Vec<_>>();
        let apart = |share: &mut [Number]| match part() {
            Ok(()) => look_at(share),
            Err(_) => nothing(share.len()),
        };
        thread::scope(|scope| {
            let others: Vec<_> = shares
                .map(|share| (share.len(), thread::Builder::new().spawn_scoped(scope, || apart(share))))
                .collect();
            let first = look_at(first);
            let others = others.into_iter().map(|(len, other)| {
                let seen = other.ok().and_then(|other| other.join().ok());
                seen.unwrap_or_else(|| nothing(len))
            });
            std::iter::once(first).chain(others).collect()
        })
    }

    /// Has each told that is open, of which `first` was seen at a first look.
    fn tell(
        &self,
        numbers: &mut [Number],
        first: Vec<Vec<Option<Seen>>>,
        objects: &mut Objects,
        tell: &mut impl FnMut(i32, u32, &Descriptor<'_>, &mut Objects) -> Result<()>,
    ) -> Result<()> {
        let first = first.into_iter().flatten();
        for (number, seen) in numbers.iter_mut().zip(first).filter(|(number, _)| number.open) {
            let fd = number.fd;
            let seen = seen.map_or_else(|| self.look(fd), Ok);
            seen.and_then(|seen| seen.descriptor(self, objects))
                .and_then(|descriptor| {
                    if !descriptor.is_glance() || !Regular.claims(&descriptor) {
                        tell(fd, number.cloexec.into(), &descriptor, objects)?;
                    }
                    number.name = Name::of(descriptor);
                    Ok(())
                })
                .object(|| format!("fd {fd}"))?;
        }
        Ok(())
    }

    /// Looks at one closely: at a copy, so that all is of one file, even if the process runs.
    fn look(&self, fd: i32) -> Result<Seen> {
        let copy = self.process.descriptor(fd)?;
        let link = self.own.readlink(&copy.as_raw_fd().to_string())?;
        let stat = rustix::fs::fstat(&copy).doing(|| format!("stat fd {fd}"))?;
        let flags = rustix::fs::fcntl_getfl(&copy).doing(|| format!("fcntl(F_GETFL) of fd {fd}"))?;
        Ok(Seen { fd, link, stat, look: Look::Close(copy, (flags - OFlags::CLOEXEC).bits()) })
    }

    /// Looks at one whose name the survey saw: if that is right, and nobody owns the description, all there is to know of a
    /// regular file but its locks.
    fn confirm(&self, number: &mut Number) -> Option<Seen> {
        let (name, fd) = (number.name.as_mut()?, number.fd);
        let copy = self.process.descriptor(fd).ok()?;
        let file = rustix::fs::statx(&copy, c"", AtFlags::EMPTY_PATH, Name::WANTED).ok()?;
        let there = rustix::fs::statx(CWD, &*name.path, AtFlags::SYMLINK_NOFOLLOW, Name::WANTED).ok()?;
        if !name.is_of(&file, &there) {
            return None;
        }
        let flags = rustix::fs::fcntl_getfl(&copy).ok()? - OFlags::CLOEXEC;
        if flags.contains(OFlags::PATH) {
            return None;
        }
        let (_, owner) = query::file_owner(&copy).ok()?;
        if owner != 0 || query::file_signal(&copy).ok()? != 0 {
            return None;
        }
        let look = Look::Confirmed(flags.bits(), rustix::fs::tell(&copy).ok()?);
        Some(Seen { fd, link: std::mem::take(&mut name.path), stat: self.stat(&file), look })
    }

    /// What fstat(2) would say.
    fn stat(&self, file: &Statx) -> Stat {
        let mut stat = self.pattern;
        stat.st_dev = dev_of(file);
        stat.st_ino = file.stx_ino;
        stat.st_nlink = file.stx_nlink.into();
        stat.st_mode = file.stx_mode.into();
        stat.st_uid = file.stx_uid;
        stat.st_gid = file.stx_gid;
        stat.st_rdev = rustix::fs::makedev(file.stx_rdev_major, file.stx_rdev_minor);
        stat.st_size = file.stx_size as i64;
        stat.st_blksize = file.stx_blksize.into();
        stat.st_blocks = file.stx_blocks as i64;
        (stat.st_atime, stat.st_atime_nsec) = (file.stx_atime.tv_sec, file.stx_atime.tv_nsec.into());
        (stat.st_mtime, stat.st_mtime_nsec) = (file.stx_mtime.tv_sec, file.stx_mtime.tv_nsec.into());
        (stat.st_ctime, stat.st_ctime_nsec) = (file.stx_ctime.tv_sec, file.stx_ctime.tv_nsec.into());
        stat
    }

    /// Has a glance at one: enough for a file or directory where its name says, of which there may be thousands.
    fn glance(&self, number: &mut Number) -> Option<Seen> {
        let name = number.fd.to_string();
        let Ok(link) = self.links.readlink(&name) else {
            number.open = self.links.has_link(&name);
            return None;
        };
        let FdLink::Path { path, deleted: false } = FdLink::parse(&link) else { return None };
        let stat = rustix::fs::lstat(path).ok()?;
        [FileType::RegularFile, FileType::Directory]
            .contains(&FileType::from_raw_mode(stat.st_mode))
            .then_some(Seen { fd: number.fd, link, stat, look: Look::Glance })
    }
}

impl Seen {
    fn descriptor<'a>(self, view: &View<'a>, objects: &mut Objects) -> Result<Descriptor<'a>> {
        let Seen { fd, link, stat, look } = self;
        let name = format!("fd/{fd}");
        let process = view.process;
        let (copy, flags, pos) = match look {
            Look::Glance => (None, 0, None),
            Look::Confirmed(flags, pos) => (None, flags, Some(pos)),
            Look::Close(copy, flags) => (Some(copy), flags, None),
        };
        let by_path = copy.is_none();
        let fs = objects.file_system(stat.st_dev, || match &copy {
            Some(copy) => rustix::fs::fstatfs(copy).doing(|| format!("statfs {name}")),
            None => process.proc.statfs(&name),
        });
        let info = OnceCell::new();
        let descriptor = Descriptor { process, name, link, stat, flags, info, fs, copy, by_path, pos };
        if !by_path || Regular.claims(&descriptor) || Directory.claims(&descriptor) {
            return Ok(descriptor);
        }
        view.look(fd)?.descriptor(view, objects)
    }
}

/// Looks at descriptor `fd` closely.
#[cfg(test)]
pub(crate) fn look<'a>(process: &'a Process, fd: i32, objects: &mut Objects) -> Result<Descriptor<'a>> {
    let view = View::of(process)?;
    view.look(fd)?.descriptor(&view, objects)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::CheckpointOptions;
    use ckpt_kernel::program::Outcome;
    use rustix::fs::{Mode, StatxFlags, open};
    use std::{
        collections::BTreeSet,
        fs::{hard_link, remove_file, rename},
        path::Path,
    };

    fn create(path: &Path) -> OwnedFd {
        open(path, OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR).unwrap()
    }

    fn own() -> Process {
        Process::open(std::process::id() as i32).unwrap()
    }

    fn statx_of(file: &OwnedFd) -> Statx {
        rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, Name::WANTED).unwrap()
    }

    /// Whether the name of a file is found right after `change`, given it and its directory. If so, it is what a close look
    /// finds.
    fn confirmed_after(change: impl FnOnce(&mut OwnedFd, &Path)) -> bool {
        let directory = tempfile::tempdir().unwrap();
        let mut file = create(&directory.path().join("a"));
        let (process, fd) = (own(), file.as_raw_fd());
        let (view, objects) = (View::of(&process).unwrap(), &mut Objects::default());
        let mut descriptor = |seen: Seen| seen.descriptor(&view, objects).unwrap();
        let name = Name::of(descriptor(view.look(fd).unwrap()));
        change(&mut file, directory.path());
        let Some(seen) = view.confirm(&mut Number { name, ..Number::new(fd) }) else { return false };
        let close = view.look(fd).unwrap();
        assert_eq!(format!("{:?}", seen.stat), format!("{:?}", close.stat));
        let (confirmed, close) = (descriptor(seen), descriptor(close));
        assert!(confirmed.by_path && !close.by_path);
        assert_eq!(confirmed.record(1).unwrap(), close.record(1).unwrap());
        true
    }

    #[test]
    fn a_name_is_right_where_it_leads_to_the_file() {
        assert!(confirmed_after(|_, _| {}));
        assert!(confirmed_after(|file, _| {
            rustix::io::write(&*file, b"more").unwrap();
            rustix::fs::fcntl_setfl(&*file, OFlags::APPEND).unwrap();
        }));
        assert!(confirmed_after(|_, at| {
            rename(at.join("a"), at.join("b")).unwrap();
            rename(at.join("b"), at.join("a")).unwrap();
        }));
        // Its number is that of another description.
        assert!(confirmed_after(|file, at| {
            let path = at.join("a");
            let other = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
            rustix::io::dup2(&other, file).unwrap();
        }));
    }

    #[test]
    fn a_name_is_looked_for_again_where_it_may_have_changed() {
        let changes: [fn(&mut OwnedFd, &Path); 7] = [
            |_, at| rename(at.join("a"), at.join("b")).unwrap(),
            |_, at| remove_file(at.join("a")).unwrap(),
            |_, at| hard_link(at.join("a"), at.join("b")).unwrap(),
            |_, at| {
                rename(at.join("a"), at.join("b")).unwrap();
                create(&at.join("a"));
            },
            |_, at| {
                rename(at.join("a"), at.join("b")).unwrap();
                std::os::unix::fs::symlink("b", at.join("a")).unwrap();
            },
            |file, at| rustix::io::dup2(create(&at.join("b")), file).unwrap(),
            |file, at| {
                let place = open(at.join("a"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
                rustix::io::dup2(&place, file).unwrap();
            },
        ];
        for (index, change) in changes.into_iter().enumerate() {
            assert!(!confirmed_after(change), "change {index}");
        }
    }

    /// The mount, too: by another the file has another path.
    #[test]
    fn a_name_leads_to_the_file_by_the_mount_it_was_opened_in() {
        let directory = tempfile::tempdir().unwrap();
        let file = statx_of(&create(&directory.path().join("a")));
        let name = Name { path: Vec::new(), dev: dev_of(&file), ino: file.stx_ino };
        let with = |change: fn(&mut Statx)| {
            let mut file = file;
            change(&mut file);
            file
        };
        assert!(name.is_of(&file, &file));
        let others: [fn(&mut Statx); 4] = [
            |file| file.stx_mnt_id += 1,
            |file| file.stx_ino += 1,
            |file| file.stx_dev_minor += 1,
            |file| file.stx_mask &= !StatxFlags::MNT_ID.bits(),
        ];
        for other in others {
            assert!(!name.is_of(&file, &with(other)));
            assert!(!name.is_of(&with(other), &file));
        }
        let moved = with(|file| file.stx_ino += 1);
        assert!(!name.is_of(&moved, &moved));
        assert!(!name.is_of(&with(|file| file.stx_nlink = 2), &file));
        assert!(!name.is_of(&with(|file| file.stx_mode = 0o040_755), &file));
    }

    fn numbers(fds: &[i32]) -> Numbers {
        Numbers { fds: fds.iter().copied().map(Number::new).collect() }
    }

    fn fds(numbers: &Numbers) -> Vec<i32> {
        numbers.fds.iter().map(|number| number.fd).collect()
    }

    /// A process that has descriptors 0, 1, 2 and, besides others maybe, one of 90 or more.
    struct Child(std::process::Child, Process);

    impl Child {
        fn new() -> Child {
            let far = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 90).unwrap();
            rustix::io::fcntl_setfd(&far, rustix::io::FdFlags::empty()).unwrap();
            let child =
                std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
            let process = Process::open(child.id() as i32).unwrap();
            Child(child, process)
        }
    }

    impl Drop for Child {
        fn drop(&mut self) {
            self.0.kill().and_then(|()| self.0.wait()).unwrap();
        }
    }

    /// A set of numbers is taken for the one it was only if the process has as many, and each of them.
    #[test]
    fn a_set_of_numbers_is_not_mistaken() {
        let child = Child::new();
        let Child(_, process) = &child;
        let listed = fds(&Numbers::of(process).unwrap());
        assert!(listed.starts_with(&[0, 1, 2]));
        let again = |surveyed| fds(&Numbers::again(process, surveyed).unwrap());
        assert_eq!(again(None), listed);
        assert_eq!(again(Some(numbers(&[]))), listed);
        assert_eq!(again(Some(numbers(&listed[1..]))), listed);
        assert_eq!(again(Some(numbers(&[&listed[..], &[777]].concat()))), listed);
        // As many, but others: that the process says.
        let mut others = listed.clone();
        others[2] = 777;
        let closed = Outcome { result: -9, ..Outcome::default() };
        let open = Outcome { result: 1, ..Outcome::default() };
        let mut mistaken = Numbers::again(process, Some(numbers(&others))).unwrap();
        assert!(!mistaken.take(&[&vec![open.clone(); listed.len() - 1][..], &[closed]].concat()));
        assert!(!mistaken.take(&[]));
        assert_eq!(fds(&mistaken.relist(process).unwrap()), listed);
        let mut right = Numbers::of(process).unwrap();
        assert!(right.take(&vec![open; listed.len()]));
        assert!(right.fds.iter().all(|number| number.cloexec));
    }

    #[test]
    fn a_guess_is_put_right() {
        let child = Child::new();
        let Child(_, process) = &child;
        let listed = fds(&Numbers::of(process).unwrap());
        let right = |mut guess: Numbers| {
            let mut objects = Objects::guessing(BTreeSet::new(), &CheckpointOptions::new(process.pid));
            let mut told = Vec::new();
            let tell = |fd, _: u32, _: &Descriptor<'_>, _: &mut Objects| {
                told.push(fd);
                Ok(())
            };
            look_at_all(process, &mut guess, &mut objects, tell).unwrap();
            let regular = |number: &&Number| number.name.is_some();
            told.extend(guess.fds.iter().filter(regular).map(|number| number.fd));
            told.sort_unstable();
            assert_eq!(told, fds(&guess));
            told
        };
        let guess = Numbers::guess(process).unwrap();
        // Before Linux 6.2 it is the list.
        assert!([(0..listed.len() as i32).collect(), listed.clone()].contains(&fds(&guess)));
        assert_eq!(right(guess), listed);
        assert_eq!(right(numbers(&listed)), listed);
        let (near, far): (Vec<i32>, Vec<i32>) = listed.iter().partition(|fd| **fd < 3 || **fd > 77);
        assert_eq!(right(numbers(&[0, 1, 2, 77])), near, "without {far:?}");
    }
}
