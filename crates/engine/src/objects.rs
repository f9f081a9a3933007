//! Shared objects: identity at checkpoint, one objref each.

use crate::options::CheckpointOptions;
use crate::{
    error::{Error, ErrorKind, Result},
    options::External,
    policy::Policy,
    resource::file::lock::Locked,
};
use ckpt_image::{Object, Objref, Table, model::Cred};
use ckpt_kernel::query::{Kcmp, kcmp};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fs::File,
};

/// What makes two open descriptions candidates for being one: device, inode, flags.
pub(crate) type FileKey = (u64, u64, u32);

/// Objects in kcmp(2) order: each with one that has it.
pub(crate) type Ordered<T> = Vec<(T, Objref)>;

/// The objects found so far.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    /// The processes of the tree, by pid.
    pub(crate) members: BTreeSet<i32>,
    /// What the caller said is outside, and whether it has been found.
    pub(crate) external: Vec<(External, bool)>,
    /// What is refused.
    pub(crate) policy: Policy,
    /// Unlinked files with more contents than this are refused.
    pub(crate) ghost_limit: Option<u64>,
    /// Which files are locked.
    pub(crate) locked: Locked,
    /// statfs(2) f_type by st_dev.
    file_systems: BTreeMap<u64, i64>,
    /// By objref.
    pub(crate) table: Table<Object>,
    /// The kinds of files that were added.
    kinds: BTreeSet<u32>,
    /// What tasks share, by kind, with one that has it.
    shared: BTreeMap<Kcmp, Ordered<i32>>,
    /// Open file descriptions by key, with a task and descriptor that hold it.
    descriptions: BTreeMap<FileKey, Ordered<(i32, i32)>>,
    /// Mapped files by key.
    mapped: BTreeMap<FileKey, Objref>,
    /// Contents without a name, by device and inode.
    inodes: BTreeMap<(u64, u64), Objref>,
    /// Credentials, all different.
    creds: Vec<Objref>,
    /// Where the contents of inodes are read from.
    pub(crate) contents: Vec<(Objref, File)>,
    /// Which are the same is not asked: what tasks share is taken for several objects, descriptions with
    /// the same key under the same number for one.
    guess: bool,
}

impl Objects {
    /// None yet, of these processes.
    pub(crate) fn of(members: BTreeSet<i32>, options: &CheckpointOptions) -> Objects {
        let external = options.external.iter().map(|external| (external.clone(), false)).collect();
        let CheckpointOptions { policy, ghost_limit, .. } = *options;
        Objects { members, external, policy, ghost_limit, ..Objects::default() }
    }

    /// For a look at the kinds of objects alone: which are the same is guessed.
    pub(crate) fn guessing(members: BTreeSet<i32>, options: &CheckpointOptions) -> Objects {
        Objects { guess: true, ..Objects::of(members, options) }
    }

    /// Whether which are the same is guessed.
    pub(crate) fn is_guessing(&self) -> bool {
        self.guess
    }

    /// The type of the file system with this st_dev, asked for once. 0 is none.
    pub(crate) fn file_system(&mut self, dev: u64, ask: impl FnOnce() -> Result<rustix::fs::StatFs>) -> i64 {
        if let Some(known) = self.file_systems.get(&dev) {
            return *known;
        }
        let Ok(fs) = ask() else { return 0 };
        self.file_systems.insert(dev, fs.f_type);
        fs.f_type
    }

    /// Adds an object.
    pub(crate) fn add(&mut self, object: Object) -> Objref {
        let objref = self.table.len() as Objref + 1;
        if let Object::File(file) = &object {
            self.kinds.insert(file.record.kind);
        }
        self.table.insert(objref, object);
        objref
    }

    /// Whether there is a file of one of these kinds.
    pub(crate) fn has_file(&self, kinds: &[u32]) -> bool {
        kinds.iter().any(|kind| self.kinds.contains(kind))
    }

    /// The address space, descriptor table, ... (`kind`) of task `tid`: one that is known by
    /// another process, else made; whether it was made.
    pub(crate) fn task(
        &mut self,
        kind: Kcmp,
        tid: i32,
        make: impl FnOnce(&mut Objects) -> Result<Object>,
    ) -> Result<(Objref, bool)> {
        if self.guess {
            let object = make(self)?;
            return Ok((self.add(object), true));
        }
        let known = self.shared.entry(kind).or_default();
        match position(known, |other| kcmp(*other, tid, kind))? {
            Ok((_, objref)) => Ok((objref, false)),
            Err(at) => {
                let object = make(self)?;
                let objref = self.add(object);
                self.shared.entry(kind).or_default().insert(at, (tid, objref));
                Ok((objref, true))
            }
        }
    }

    /// The description behind descriptor `fd` of task `tid`: found among those with the same
    /// key, else made.
    pub(crate) fn description(
        &mut self,
        tid: i32,
        fd: i32,
        key: FileKey,
        make: impl FnOnce(&mut Objects) -> Result<Object>,
    ) -> Result<Objref> {
        let guess = self.guess;
        let known = self.descriptions.entry(key).or_default();
        let compare = |(other, there): &(i32, i32)| match guess {
            // Inherited, most likely.
            true => Ok(there.cmp(&fd)),
            false => kcmp(*other, tid, Kcmp::File(*there, fd)),
        };
        match position(known, compare)? {
            Ok((_, objref)) => Ok(objref),
            Err(at) => {
                let object = make(self)?;
                let objref = self.add(object);
                self.descriptions.entry(key).or_default().insert(at, ((tid, fd), objref));
                Ok(objref)
            }
        }
    }

    /// The mapped file with this key, made when new.
    pub(crate) fn mapped(
        &mut self,
        key: FileKey,
        make: impl FnOnce(&mut Objects) -> Result<Object>,
    ) -> Result<Objref> {
        if let Some(objref) = self.mapped.get(&key) {
            return Ok(*objref);
        }
        let object = make(self)?;
        let objref = self.add(object);
        self.mapped.insert(key, objref);
        Ok(objref)
    }

    /// The contents of an inode without a name, made when new; whether it was.
    pub(crate) fn inode(&mut self, dev_ino: (u64, u64), make: impl FnOnce() -> Object) -> (Objref, bool) {
        if let Some(objref) = self.inodes.get(&dev_ino) {
            return (*objref, false);
        }
        let objref = self.add(make());
        self.inodes.insert(dev_ino, objref);
        (objref, true)
    }

    /// The contents of an inode without a name, if they are known.
    pub(crate) fn known_inode(&self, dev_ino: (u64, u64)) -> Option<Objref> {
        self.inodes.get(&dev_ino).copied()
    }

    /// The address spaces, descriptor tables, ... (`kind`) of the tree in the order they were found, each
    /// with the first process that has it.
    pub(crate) fn holders(&self, kind: Kcmp) -> Ordered<i32> {
        let mut holders = self.shared.get(&kind).cloned().unwrap_or_default();
        holders.sort_unstable_by_key(|(_, objref)| *objref);
        holders
    }

    /// The process of the tree that has the same address space, descriptor table, ... (`kind`) as task
    /// `tid`, wherever that is.
    pub(crate) fn holder(&self, kind: Kcmp, tid: i32) -> Result<Option<i32>> {
        let known = self.shared.get(&kind).map_or(&[][..], Vec::as_slice);
        Ok(search(known, |other| kcmp(*other, tid, kind))?.map(|(pid, _)| pid))
    }

    /// The process, descriptor and objref in the tree of the description behind descriptor `fd` of task
    /// `tid`, wherever that is, whose file is `dev_ino`.
    pub(crate) fn same_description(
        &self,
        (dev, ino): (u64, u64),
        tid: i32,
        fd: i32,
    ) -> Result<Option<(i32, i32, Objref)>> {
        for (_, known) in self.descriptions.range((dev, ino, 0)..=(dev, ino, u32::MAX)) {
            let found = search(known, |(other, there)| kcmp(*other, tid, Kcmp::File(*there, fd)))?;
            if let Some(((pid, inside), objref)) = found {
                return Ok(Some((pid, inside, objref)));
            }
        }
        Ok(None)
    }

    /// The description for which `compare`, given task and descriptor that have one, says that it is it; looked for
    /// first among those of inode `ino`, where file systems agree on its number.
    pub(crate) fn description_by(
        &self,
        ino: Option<u64>,
        compare: impl Fn((i32, i32)) -> ckpt_kernel::Result<Ordering>,
    ) -> Result<Option<Objref>> {
        let here = |key: &FileKey| ino.is_none_or(|ino| key.1 == ino);
        let likely = self.descriptions.iter().filter(|(key, _)| here(key));
        for (_, known) in likely.chain(self.descriptions.iter().filter(|(key, _)| !here(key))) {
            // Guessed ones are in the order of their numbers.
            let is = |(place, _): &&((i32, i32), Objref)| compare(*place).is_ok_and(Ordering::is_eq);
            let found = match self.guess {
                true => known.iter().find(is).copied(),
                false => search(known, |place| compare(*place))?,
            };
            if let Some((_, objref)) = found {
                return Ok(Some(objref));
            }
        }
        Ok(None)
    }

    /// Contents without a name, with device and inode.
    pub(crate) fn inodes(&self) -> impl Iterator<Item = (Objref, (u64, u64))> + '_ {
        self.inodes.iter().map(|(dev_ino, objref)| (*objref, *dev_ino))
    }

    /// Credentials equal to `cred`, added when new.
    pub(crate) fn cred(&mut self, cred: Cred) -> Objref {
        let same =
            |objref: &&Objref| matches!(self.table.get(objref), Some(Object::Cred(known)) if *known == cred);
        if let Some(objref) = self.creds.iter().find(same) {
            return *objref;
        }
        let objref = self.add(Object::Cred(cred));
        self.creds.push(objref);
        objref
    }
}

/// What an ordered list has of something. In a tree that runs some of the list may have ended: it is then
/// gone through one by one.
fn search<T: Copy + Default>(
    known: &[(T, Objref)],
    compare: impl Fn(&T) -> ckpt_kernel::Result<Ordering>,
) -> Result<Option<(T, Objref)>> {
    match position(known, &compare) {
        Err(error) if error.kind == ErrorKind::Permission => Err(error),
        Err(_) => Ok(known.iter().find(|(other, _)| compare(other).is_ok_and(Ordering::is_eq)).copied()),
        Ok(found) => Ok(found.ok()),
    }
}

/// What an ordered list has of something, or where it would have to be inserted.
fn position<T: Copy + Default>(
    known: &[(T, Objref)],
    compare: impl Fn(&T) -> ckpt_kernel::Result<Ordering>,
) -> Result<Result<(T, Objref), usize>> {
    let mut failure = None;
    let found = known.binary_search_by(|(other, _)| {
        compare(other).unwrap_or_else(|error| {
            failure = Some(error);
            Ordering::Equal
        })
    });
    if let Some(error) = failure {
        return Err(Error::from(error).advice("kcmp(2) needs CONFIG_KCMP and the right to ptrace the task"));
    }
    Ok(found.map(|at| known.get(at).copied().unwrap_or_default()))
}
