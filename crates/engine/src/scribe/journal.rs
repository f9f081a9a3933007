//! What a scribe has made or is about to make, step by step, and how each is undone.
//!
//! The scribe tells of a step before it takes it, with the directory as a descriptor, and waits for nothing: what it has
//! sent can still be read when it is dead. So scribe and coordinator have the same journal, and whoever lives undoes what
//! is in it, the last step first, wherever paths lead by then.

use ckpt_kernel::{Errno, servant::Line};
use rustix::fs::{AtFlags, FileType, RenameFlags, Stat};
use std::{
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
};

/// In place of the outcome of a request: a step of it.
const STEP: i32 = -1;
const WORD: usize = size_of::<u64>();

/// By what a thing that was made is told from any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Likeness {
    format: FileType,
    /// Its device and inode, once they are known. Until then a regular file is an empty one.
    dev_ino: Option<(u64, u64)>,
}

impl Likeness {
    /// Something new.
    pub(super) fn new(format: FileType) -> Likeness {
        Likeness { format, dev_ino: None }
    }

    /// Exactly this.
    pub(super) fn of(stat: &Stat) -> Likeness {
        let format = FileType::from_raw_mode(stat.st_mode);
        Likeness { format, dev_ino: Some((stat.st_dev, stat.st_ino)) }
    }

    fn is(&self, stat: &Stat) -> bool {
        let there = Likeness::of(stat);
        let empty = there.format != FileType::RegularFile || stat.st_size == 0;
        there.format == self.format && self.dev_ino.map_or(empty, |_| there.dev_ino == self.dev_ino)
    }
}

/// A name that is made.
#[derive(Debug)]
pub(super) struct Step {
    dir: Rc<OwnedFd>,
    name: Vec<u8>,
    pub(super) likeness: Likeness,
    /// The name that it had in the same directory, when it is put aside: it gets that back.
    former: Option<Vec<u8>>,
}

impl Step {
    /// Something new under a name.
    pub(super) fn new(dir: &Rc<OwnedFd>, name: &[u8], likeness: Likeness) -> Step {
        Step { dir: Rc::clone(dir), name: name.to_vec(), likeness, former: None }
    }

    /// What has the name `former`, put aside under another one.
    pub(super) fn aside(dir: &Rc<OwnedFd>, name: &[u8], former: &[u8], stat: &Stat) -> Step {
        Step { former: Some(former.to_vec()), ..Step::new(dir, name, Likeness::of(stat)) }
    }

    /// What is there under the name.
    pub(super) fn look(&self) -> Result<Stat, Errno> {
        rustix::fs::statat(&self.dir, self.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn remove(&self) -> Result<(), Errno> {
        let directory = self.likeness.format == FileType::Directory;
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(&self.dir, self.name.as_slice(), flags)
    }

    /// Takes it back, unless the name is gone or somebody else's.
    fn undo(&self) -> Result<(), Errno> {
        match (self.look(), &self.former) {
            (Err(Errno::NOENT), _) => Ok(()),
            (Err(error), _) => Err(error),
            (Ok(stat), _) if !self.likeness.is(&stat) => Ok(()),
            (Ok(_), None) => self.remove(),
            (Ok(_), Some(former)) => {
                let (from, to) = (self.name.as_slice(), former.as_slice());
                rustix::fs::renameat_with(&self.dir, from, &self.dir, to, RenameFlags::NOREPLACE)
            }
        }
    }

    /// What was made in place of another stays, so that one does not.
    fn keep(&self) {
        if self.former.is_some() && self.look().is_ok_and(|stat| self.likeness.is(&stat)) {
            let _ = self.remove();
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let (dev, ino) = self.likeness.dev_ino.unwrap_or_default();
        let words = [self.likeness.format.as_raw_mode().into(), dev, ino].map(u64::to_le_bytes);
        let names = [self.name.as_slice(), self.former.as_deref().unwrap_or_default()].join(&0);
        [words.as_flattened(), &names].concat()
    }

    fn of_bytes(bytes: &[u8], dir: OwnedFd) -> Option<Step> {
        let (words, names) = bytes.split_at_checked(3 * WORD)?;
        let mut words = words.as_chunks::<WORD>().0.iter().map(|word| u64::from_le_bytes(*word));
        let (format, dev, ino) = (words.next()? as u32, words.next()?, words.next()?);
        let mut names = names.splitn(2, |byte| *byte == 0);
        let (name, former) = (names.next()?.to_vec(), names.next()?.to_vec());
        let likeness =
            Likeness { format: FileType::from_raw_mode(format), dev_ino: (ino != 0).then_some((dev, ino)) };
        let former = Some(former).filter(|former| !former.is_empty());
        Some(Step { dir: Rc::new(dir), name, likeness, former })
    }
}

/// The steps that were taken, but for those undone.
#[derive(Debug, Default)]
pub(super) struct Journal(Vec<Step>);

impl Journal {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Undoes all but the first `len` steps, the last first. Returns the first failure.
    pub(super) fn undo(&mut self, len: usize) -> Result<(), Errno> {
        let mut result = Ok(());
        while self.len() > len
            && let Some(step) = self.0.pop()
        {
            result = result.and(step.undo());
        }
        result
    }

    /// At the end: what was made stays, or it does not.
    pub(super) fn settle(&mut self, stays: bool) {
        if stays {
            self.0.drain(..).for_each(|step| step.keep());
        } else {
            let _ = self.undo(0);
        }
    }

    /// Adds a step that is about to be taken, and tells the coordinator.
    pub(super) fn note(&mut self, step: Step, line: &Line) -> Result<(), Errno> {
        let message = [self.head(STEP).as_slice(), &step.bytes()].concat();
        let told = line.send(&message, Some(step.dir.as_fd()));
        self.0.push(step);
        told
    }

    /// Takes the last step out, which made nothing after all. The coordinator hears of it with the next message.
    pub(super) fn withdraw(&mut self) -> Option<Step> {
        self.0.pop()
    }

    /// What each message begins with: how much of the journal holds, and the outcome.
    fn head(&self, outcome: i32) -> [u8; WORD] {
        let word = self.len() as u64 | u64::from(outcome.cast_unsigned()) << 32;
        word.to_le_bytes()
    }

    /// The scribe's answer to a request.
    pub(super) fn answer(&self, made: &Result<OwnedFd, Errno>, line: &Line) -> Result<(), Errno> {
        match made {
            Ok(fd) => line.send(&self.head(0), Some(fd.as_fd())),
            Err(error) => line.send(&self.head(error.raw_os_error()), None),
        }
    }

    /// On the coordinator's side: takes in what the scribe says, and gives its answer if it is one.
    pub(super) fn hear(&mut self, message: &[u8], fd: Option<OwnedFd>) -> Option<Result<OwnedFd, Errno>> {
        let (head, rest) = message.split_first_chunk().unwrap_or((&[u8::MAX; WORD], &[]));
        let head = u64::from_le_bytes(*head);
        self.0.truncate((head & u64::from(u32::MAX)) as usize);
        match ((head >> 32) as i32, fd) {
            // Without the directory, for which we had no number left, the answer is an error, too.
            (STEP, dir) => {
                self.0.extend(dir.and_then(|dir| Step::of_bytes(rest, dir)));
                None
            }
            (0, fd) => Some(fd.ok_or(Errno::MFILE)),
            (code, _) => Some(Err(Errno::from_raw_os_error(code))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{MetadataExt, symlink},
        path::Path,
    };

    fn open(path: &Path) -> Rc<OwnedFd> {
        Rc::new(fs::File::open(path).unwrap().into())
    }

    fn new(dir: &Rc<OwnedFd>, name: &str, format: FileType) -> Step {
        Step::new(dir, name.as_bytes(), Likeness::new(format))
    }

    /// What the scribe notes and answers is the coordinator's journal, although it died since.
    #[test]
    fn told() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("old"), "old").unwrap();
        let dir = open(place.path());
        let (ours, theirs) = Line::pair().unwrap();
        let (mut scribe, mut coordinator) = (Journal::default(), Journal::default());
        let stat = new(&dir, "old", FileType::RegularFile).look().unwrap();
        scribe.note(Step::aside(&dir, b"old.1", b"old", &stat), &theirs).unwrap();
        scribe.note(new(&dir, "gone", FileType::Directory), &theirs).unwrap();
        scribe.withdraw().unwrap();
        scribe.note(new(&dir, "made", FileType::Socket), &theirs).unwrap();
        scribe.answer(&Err(Errno::LOOP), &theirs).unwrap();
        drop(theirs);
        let mut answer = None;
        while let Ok((message, fd)) = ours.receive() {
            if message.is_empty() {
                break;
            }
            answer = coordinator.hear(&message, fd);
        }
        assert_eq!(answer.unwrap().unwrap_err(), Errno::LOOP);
        let seen = |journal: &Journal| -> Vec<(Vec<u8>, Likeness, Option<Vec<u8>>)> {
            journal.0.iter().map(|s| (s.name.clone(), s.likeness, s.former.clone())).collect()
        };
        assert_eq!(seen(&coordinator), seen(&scribe));
        assert_eq!(coordinator.len(), 2);
        // By the descriptor it got.
        fs::rename(place.path().join("old"), place.path().join("old.1")).unwrap();
        coordinator.settle(false);
        assert_eq!(fs::read(place.path().join("old")).unwrap(), b"old");
    }

    /// Only what it was to make goes.
    #[test]
    fn undone() {
        let place = tempfile::tempdir().unwrap();
        let (path, dir) = (|name: &str| place.path().join(name), open(place.path()));
        fs::write(path("empty"), "").unwrap();
        fs::write(path("full"), "somebody's").unwrap();
        fs::write(path("other"), "").unwrap();
        fs::create_dir(path("dir")).unwrap();
        fs::create_dir(path("used")).unwrap();
        fs::write(path("used/file"), "").unwrap();
        symlink("full", path("link")).unwrap();
        let before = fs::metadata(path("other")).unwrap().ino();
        fs::write(path("new"), "").unwrap();
        fs::rename(path("new"), path("other")).unwrap();
        assert_ne!(fs::metadata(path("other")).unwrap().ino(), before);
        let mut other = new(&dir, "other", FileType::RegularFile);
        other.likeness.dev_ino = Some((other.look().unwrap().st_dev, before));
        let file = |name: &str| new(&dir, name, FileType::RegularFile);
        let steps = vec![other, file("full"), file("link"), file("dir"), file("missing")];
        Journal(steps).undo(0).unwrap();
        for name in ["empty", "full", "other", "dir", "used", "link"] {
            assert!(fs::symlink_metadata(path(name)).is_ok(), "{name}");
        }
        let mut full = file("full");
        full.likeness = Likeness::of(&full.look().unwrap());
        let directory = |name: &str| new(&dir, name, FileType::Directory);
        let mut journal = Journal(vec![full, directory("used"), directory("dir"), file("empty")]);
        assert_eq!(journal.undo(1), Err(Errno::NOTEMPTY));
        assert!(!path("empty").exists() && !path("dir").exists() && path("full").exists());
        journal.settle(false);
        assert!(!path("full").exists() && path("used/file").exists());
    }

    /// What was put aside comes back, if nothing else has come, or goes.
    #[test]
    fn put_aside() {
        let place = tempfile::tempdir().unwrap();
        let (path, dir) = (|name: &str| place.path().join(name), open(place.path()));
        fs::write(path("b"), "b").unwrap();
        let stat = new(&dir, "b", FileType::RegularFile).look().unwrap();
        let journal = || Journal(vec![Step::aside(&dir, b"b", b"a", &stat)]);
        fs::write(path("a"), "a").unwrap();
        assert_eq!(journal().undo(0), Err(Errno::EXIST));
        fs::remove_file(path("a")).unwrap();
        journal().settle(false);
        assert!(path("a").exists() && !path("b").exists());
        journal().settle(true);
        assert!(path("a").exists());
        fs::rename(path("a"), path("b")).unwrap();
        journal().settle(true);
        assert!(!path("a").exists() && !path("b").exists());
    }
}
