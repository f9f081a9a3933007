//! The outside view of a process with all its descendants: each by itself, and what they share with each other.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::compare::differences;
use crate::sys::{self, Kcmp};
use crate::target::field_of_stat;
use crate::view::{Inodes, View, living_threads};

/// What a descendant keeps while it runs freely, but for an exec.
const LASTING: &[&str] = &[
    "auxv",
    "cwd",
    "environ",
    "exe",
    "owner",
    "root",
    "status.Gid",
    "status.Groups",
    "status.Tgid",
    "status.TracerPid",
    "status.Uid",
];

/// A process, told from a later one with its pid by its start time.
pub type Member = (i32, i64);

/// Views of a process and of all that descend from it. `shared.*` of a member names the first one it shares with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tree {
    root: i32,
    members: BTreeMap<i32, View>,
}

/// A process and its descendants, the parents first.
#[must_use]
pub fn family(root: i32) -> Vec<i32> {
    let mut found = vec![root];
    let mut at = 0;
    while let Some(pid) = found.get(at).copied() {
        for child in children(pid) {
            if !found.contains(&child) {
                found.push(child);
            }
        }
        at += 1;
    }
    found
}

/// The directory of a process; 0 is the harness.
pub(crate) fn proc_dir(pid: i32) -> String {
    if pid == 0 { "/proc/self".to_owned() } else { format!("/proc/{pid}") }
}

/// Whether nothing of a process runs any more: it is gone or waits to be waited for.
#[must_use]
pub fn ended(pid: i32) -> bool {
    living_threads(pid).is_empty()
}

/// The children of all threads of a process; 0 is the harness.
#[must_use]
pub fn children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = std::fs::read_dir(format!("{}/task", proc_dir(pid))) else { return Vec::new() };
    let list = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).ok();
    let lists: Vec<String> = tasks.flatten().filter_map(list).collect();
    lists.iter().flat_map(|l| l.split_whitespace()).filter_map(|p| p.parse().ok()).collect()
}

/// The same with start times; one that has gone meanwhile is left out.
#[must_use]
pub fn members(root: i32) -> Vec<Member> {
    family(root).into_iter().filter_map(|pid| Some((pid, field_of_stat(pid, 22)?))).collect()
}

impl Tree {
    /// Looks at `root` and its descendants; one that goes meanwhile is left out.
    ///
    /// # Errors
    /// The root is gone.
    pub fn of(root: i32) -> Result<Tree> {
        let pids: BTreeSet<i32> = family(root).into_iter().collect();
        let (mut members, mut inodes) = (BTreeMap::new(), Inodes::default());
        for pid in pids {
            match View::within(pid, &mut inodes) {
                Ok(view) => drop(members.insert(pid, view)),
                Err(e) if pid == root => return Err(e),
                Err(_) => {}
            }
        }
        let mut tree = Tree { root, members };
        tree.note_sharing();
        Ok(tree)
    }

    #[must_use]
    pub fn root(&self) -> &View {
        &self.members[&self.root]
    }

    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        self.members.keys().copied().collect()
    }

    /// Which processes share memory, tables and open files: only the kernel tells, by comparing two.
    fn note_sharing(&mut self) {
        let mut first: BTreeMap<String, Vec<(i32, i32, u32)>> = BTreeMap::new();
        for (pid, view) in &mut self.members {
            let Some(tid) = living_threads(*pid).first().copied() else { continue };
            let tables =
                [("vm", Kcmp::Vm), ("files", Kcmp::Files), ("fs", Kcmp::Fs), ("sighand", Kcmp::Sighand)];
            let tables = tables.map(|(name, what)| (format!("shared.{name}"), name.to_owned(), what, 0));
            let file = |(fd, link)| (format!("shared.fd.{fd}"), link, Kcmp::File, fd);
            let files: Vec<_> = view.descriptor_names().into_iter().map(file).collect();
            for (name, bucket, what, fd) in tables.into_iter().chain(files) {
                let known = first.entry(bucket).or_default();
                let same = known.iter().find(|(_, other, theirs)| sys::same(what, *other, tid, *theirs, fd));
                match same {
                    Some((other, _, theirs)) if what == Kcmp::File => {
                        view.put(&name, format!("with fd {theirs} of {other}"));
                    }
                    Some((other, ..)) => view.put(&name, format!("with {other}")),
                    None => known.push((*pid, tid, fd)),
                }
            }
        }
    }

    /// One line per difference, restricted by `pick`. `free`: the processes ran on between the two looks, so that
    /// only those there in both, running the same program, are held against each other, by what they keep.
    pub fn differences(&self, after: &Tree, free: bool, pick: impl Fn(&View) -> View) -> Vec<String> {
        let lasting: Vec<String> = LASTING.iter().map(|n| (*n).to_owned()).collect();
        let mut found = Vec::new();
        for pid in self.members.keys().chain(after.members.keys().filter(|p| !self.members.contains_key(p))) {
            let (was, is) = match (self.members.get(pid), after.members.get(pid)) {
                (Some(was), Some(is)) => (was, is),
                (was, _) if !free => {
                    let change = if was.is_some() { "is gone" } else { "is new" };
                    found.push(format!("process {pid} {change}"));
                    continue;
                }
                _ => continue,
            };
            if *pid == self.root {
                found.extend(differences(&pick(was), &pick(is)));
                continue;
            }
            let same_program = was.0.get("cmdline") == is.0.get("cmdline");
            if free && !(same_program && was.0.get("state") == is.0.get("state")) {
                continue;
            }
            let keep = |view: &View| if free { pick(view).restricted(&lasting, &[]) } else { pick(view) };
            let name = was.0.get("status.Name").map_or("?", String::as_str);
            let lines = differences(&keep(was), &keep(is));
            found.extend(lines.into_iter().map(|line| format!("{pid} ({name}) {line}")));
        }
        found
    }
}
