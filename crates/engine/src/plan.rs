//! The plan of a process tree: who makes whom, in which order.
//!
//! **What the kernel knows.** A process gets its parent, session and process group from the one that
//! forks it, and few calls change them afterwards:
//!
//! | relation | comes from | changes by |
//! |---|---|---|
//! | parent | the forker, or with CLONE_PARENT the forker's parent | orphaned: to the nearest ancestor that is a subreaper |
//! | exit signal | clone3(2), or with CLONE_PARENT the forker's own | orphaned: becomes SIGCHLD |
//! | session | the forker's at that moment | setsid(2): one of its own, unless it leads a group |
//! | group | the forker's at that moment | setpgid(2): its own, or an existing one of its session |
//!
//! So only the session a process was *born* in must be known to make it, and it need not be told:
//! who does not lead a session was born in the one it is in, and of a leader only its children from
//! before setsid(2) tell. [`births`] finds it, [`order`] puts the steps in an order that satisfies
//! the rules. The ways to make a process whose birth session is *s*, the first that is possible:
//!
//! 1. its parent forks it while in *s*: before or after its own setsid(2);
//! 2. the leader of *s*, a child of the same parent, forks it with CLONE_PARENT;
//! 3. the leader of *s*, anywhere below the parent, forks a ghost that forks it and exits, with the
//!    parent as the only subreaper meanwhile.
//!
//! **Ghosts.** A leader that is dead left its number behind: in a session or group, and the number
//! stays in use while anyone is in it. A [`Ghost`] with that pid takes its place. One that leads a
//! session is a child of the deepest process that must adopt a member; one that leads a group is a
//! child of the leader of its session. Their exit signal is 0, so that they end unnoticed (wait for
//! them with `__WALL`), unless those they make as siblings are to have another. The pid of a ghost
//! without a number is anybody's choice, but of a number that is not in the image.
//!
//! **Pid namespaces.** In a nested one (`resource/pidns.rs`) nobody is made before its process 1. And
//! to join a group one must see its leader. Who does not, and whose maker does not either (which
//! could move it), is *bound*: made by one that is in the group at that moment. So its maker is made
//! in that group as well, as far up as need be, and forks it before it leaves. In a namespace of
//! its own all of a tree does not see the restarter's group.
//!
//! **Outside.** When the root does not lead its session and no process of the tree does, the session
//! is the restarter's now, whatever number it had, and likewise its group. Number 0, a leader beyond
//! the pid namespace, is possible only there.
//!
//! **What cannot be made** is refused, with the pid:
//! - a process in a session its parent was never in and that was not begun below its parent (it was
//!   adopted by a process that became a subreaper after it had let the session's leader go by);
//! - a leader that would have to be born in two sessions, for its children's sake;
//! - an adopted process whose exit signal is neither SIGCHLD nor the one of the session's leader;
//! - a session or group with number 0 other than the outside ones;
//! - one bound to a group that its maker was not made in and is not in.
//!
//! Numbers that no kernel can have produced (a leader that is not in its own session, a group in two
//! sessions, children of a zombie) are a bad image. The plan costs O(n log n) and does not recurse.

mod births;
mod family;
mod order;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use crate::error::Result;

/// One process of the tree, as the image has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub pid: i32,
    /// Not looked at in the root, whose parent is outside.
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    /// A task that is forked gets it by clone3(2); a sibling or an orphan by the kernel.
    pub exit_signal: i32,
    /// Made like the others; it dies after all steps, so it may make and lead others before.
    pub zombie: bool,
    /// The number of its pid namespace, 0 for the root's.
    pub pidns: u32,
    /// It is process 1 of a nested one.
    pub init: bool,
    /// Neither it nor its parent sees the leader of its group.
    pub bound: bool,
}

/// What surrounds the nodes.
#[derive(Default)]
pub(crate) struct Terms<'a> {
    /// The restarter's group is not seen from where the tree will be.
    pub apart: bool,
    /// Tells the pid namespace that the dead leader with a number was in.
    pub home: Option<&'a dyn Fn(i32) -> u32>,
}

/// A task of the plan: an index into the nodes, or, beyond them, into [`Plan::ghosts`].
pub(crate) type TaskIndex = usize;

/// A process that exists only while the tree is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ghost {
    /// Its id, when it must be a certain one: a dead leader's. Else any that is not in the image.
    pub pid: Option<i32>,
    pub exit_signal: i32,
    /// The number of its pid namespace.
    pub pidns: u32,
}

/// A process group to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// The one with the task's own pid.
    Own,
    /// The one with the pid of this task, which may itself have moved to another group.
    Of(TaskIndex),
    /// That of the restarter.
    Restarter,
}

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// `maker` makes `task`; `None` is the coordinator.
    Fork {
        maker: Option<TaskIndex>,
        task: TaskIndex,
        /// With CLONE_PARENT and exit signal 0: a child of the maker's parent.
        sibling: bool,
    },
    /// setsid(2) by the task.
    Setsid(TaskIndex),
    /// setpgid(2) by the task itself, or by its parent if it does not see the leader.
    Setpgid(TaskIndex, Group),
    /// PR_SET_CHILD_SUBREAPER on or off, by the task. All begin with off and end with off.
    Subreaper(TaskIndex, bool),
    /// A ghost exits and is reaped by its parent; `None` is the coordinator.
    Exit { ghost: TaskIndex, parent: Option<TaskIndex> },
}

/// How to make a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub ghosts: Vec<Ghost>,
    pub steps: Vec<Step>,
}

/// Plans the tree of `nodes`: the root first, every other one after its parent.
///
/// # Errors
/// The numbers contradict each other, or the tree cannot be made; see the head of this module.
pub(crate) fn plan(nodes: &[Node], terms: &Terms<'_>) -> Result<Plan> {
    let family = family::Family::new(nodes, terms.apart)?;
    let births = births::Births::find(&family)?;
    order::arrange(&family, &births, &|pid| terms.home.map_or(0, |home| home(pid)))
}
