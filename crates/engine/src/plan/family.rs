//! The processes of an image as a family: checked, with the coordinator as the root's parent.

use super::Node;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// A member of the family: the coordinator, then the nodes in order, then ghosts.
pub(super) type Seat = usize;

/// Makes the root and, as a place to be born in, stands for all that is outside of the tree.
pub(super) const COORDINATOR: Seat = 0;

/// The number of a session or group that no process of the image is in.
const NONE: i32 = -1;

/// The largest signal.
const SIGRTMAX: i32 = 64;

/// A value for every seat: the default where none was set.
#[derive(Default)]
pub(super) struct PerSeat<T>(Vec<T>);

impl<T: Copy + Default> PerSeat<T> {
    pub(super) fn get(&self, seat: Seat) -> T {
        self.0.get(seat).copied().unwrap_or_default()
    }

    pub(super) fn set(&mut self, seat: Seat, value: T) {
        if self.0.len() <= seat {
            self.0.resize(seat + 1, T::default());
        }
        if let Some(slot) = self.0.get_mut(seat) {
            *slot = value;
        }
    }
}

/// What a seat is to have in the end. Of the coordinator: the outside session and group.
#[derive(Clone, Copy, Default)]
pub(super) struct Kin {
    pub(super) pid: i32,
    pub(super) parent: Seat,
    pub(super) sid: i32,
    pub(super) pgid: i32,
    pub(super) exit_signal: i32,
    /// Leads its session.
    pub(super) leads: bool,
    /// The number of its pid namespace.
    pub(super) pidns: u32,
    /// Is process 1 of it.
    pub(super) init: bool,
    /// Cannot join its group, it must be made in it.
    pub(super) bound: bool,
}

/// All processes of the image.
pub(super) struct Family {
    kin: PerSeat<Kin>,
    by_pid: BTreeMap<i32, Seat>,
    /// Place in the preorder, and the place after the last descendant.
    span: PerSeat<(usize, usize)>,
    /// How many seats there are, the coordinator's included.
    pub(super) len: usize,
}

impl Family {
    /// Checks the numbers: what comes out is a tree, and could have been a real one.
    pub(super) fn new(nodes: &[Node], apart: bool) -> Result<Self> {
        let len = nodes.len() + 1;
        let mut family =
            Family { kin: PerSeat::default(), by_pid: BTreeMap::new(), span: PerSeat::default(), len };
        let mut zombies = BTreeSet::new();
        for (index, node) in nodes.iter().enumerate() {
            let parent = if index == 0 {
                COORDINATOR
            } else {
                let before = family.by_pid.get(&node.ppid);
                *before.ok_or_else(|| bad(node.pid, "its parent does not come before it"))?
            };
            if zombies.contains(&parent) {
                return Err(bad(node.pid, "its parent is a zombie"));
            }
            family.seat(index + 1, parent, node)?;
            if node.zombie {
                zombies.insert(index + 1);
            }
        }
        family.set_outside(nodes.first().ok_or_else(|| Error::bad_image("the process tree is empty"))?);
        if apart {
            family.bind_outside();
        }
        family.check_sessions()?;
        family.check_groups()?;
        family.measure();
        Ok(family)
    }

    fn seat(&mut self, seat: Seat, parent: Seat, node: &Node) -> Result<()> {
        let Node { pid, pgid, sid, exit_signal, pidns, init, bound, .. } = *node;
        if pid <= 0 || pgid < 0 || sid < 0 || !(0..=SIGRTMAX).contains(&exit_signal) {
            return Err(bad(pid, "its pid, process group, session or exit signal is no such number"));
        }
        if self.by_pid.insert(pid, seat).is_some() {
            return Err(bad(pid, "another process has the same pid"));
        }
        let leads = sid == pid;
        self.kin.set(seat, Kin { pid, parent, sid, pgid, exit_signal, leads, pidns, init, bound });
        Ok(())
    }

    /// Finds what of the root's session and group lies outside of the tree.
    fn set_outside(&mut self, root: &Node) {
        let inside = |number| self.by_pid.contains_key(number);
        let (sid, pgid) = match (inside(&root.sid), inside(&root.pgid)) {
            (true, _) => (NONE, NONE),
            (false, true) => (root.sid, 0),
            (false, false) => (root.sid, root.pgid),
        };
        self.kin.set(COORDINATOR, Kin { sid, pgid, ..Kin::default() });
    }

    /// Binds all members of the outside group to it.
    fn bind_outside(&mut self) {
        let Kin { sid, pgid, .. } = self.kin(COORDINATOR);
        self.kin.0.iter_mut().skip(1).for_each(|kin| kin.bound |= (kin.sid, kin.pgid) == (sid, pgid));
    }

    fn check_sessions(&self) -> Result<()> {
        for (_, kin) in self.nodes() {
            if kin.leads && kin.pgid != kin.pid {
                return Err(bad(kin.pid, "it leads its session, but not its process group"));
            }
            match self.leader(kin.sid) {
                Some(COORDINATOR) => {}
                Some(leader) if self.kin(leader).leads => {}
                Some(_) => return Err(bad(kin.pid, "the process its session is named after is not in it")),
                None if kin.sid == 0 => return Err(beyond(kin.pid, "session")),
                None => {}
            }
        }
        Ok(())
    }

    fn check_groups(&self) -> Result<()> {
        let outside = self.kin(COORDINATOR);
        let sids: BTreeSet<i32> = self.nodes().map(|(_, kin)| kin.sid).collect();
        let mut groups = BTreeMap::new();
        for (_, kin) in self.nodes() {
            if (kin.sid, kin.pgid) != (outside.sid, outside.pgid) && kin.pgid == 0 {
                return Err(beyond(kin.pid, "process group"));
            }
            let elsewhere = *groups.entry(kin.pgid).or_insert(kin.sid) != kin.sid
                || self.node(kin.pgid).is_some_and(|leader| self.kin(leader).sid != kin.sid)
                || sids.contains(&kin.pgid) && kin.pgid != kin.sid;
            if elsewhere {
                return Err(bad(kin.pid, "its process group belongs to another session"));
            }
        }
        Ok(())
    }

    /// Sets the spans: sizes from the last to the first, then places from the first to the last.
    fn measure(&mut self) {
        let mut size: PerSeat<usize> = PerSeat::default();
        for seat in (0..self.len).rev() {
            let own = size.get(seat) + 1;
            size.set(seat, own);
            if seat != COORDINATOR {
                let parent = self.kin(seat).parent;
                size.set(parent, size.get(parent) + own);
            }
        }
        let (mut span, mut free) = (PerSeat::default(), PerSeat::<usize>::default());
        span.set(COORDINATOR, (0, self.len));
        free.set(COORDINATOR, 1);
        for (seat, kin) in self.nodes() {
            let begin = free.get(kin.parent);
            let end = begin + size.get(seat);
            span.set(seat, (begin, end));
            free.set(seat, begin + 1);
            free.set(kin.parent, end);
        }
        self.span = span;
    }

    pub(super) fn kin(&self, seat: Seat) -> Kin {
        self.kin.get(seat)
    }

    /// The nodes in order: parents before their children.
    pub(super) fn nodes(&self) -> impl DoubleEndedIterator<Item = (Seat, Kin)> + '_ {
        self.kin.0.iter().copied().enumerate().skip(1)
    }

    /// The node with this pid.
    pub(super) fn node(&self, pid: i32) -> Option<Seat> {
        self.by_pid.get(&pid).copied()
    }

    /// The leader of a session: a node, or the coordinator for the outside one; `None` when dead.
    pub(super) fn leader(&self, sid: i32) -> Option<Seat> {
        self.node(sid).or((self.kin(COORDINATOR).sid == sid).then_some(COORDINATOR))
    }

    /// Place in the preorder, and the place after the last descendant.
    pub(super) fn span(&self, seat: Seat) -> (usize, usize) {
        self.span.get(seat)
    }

    /// Whether `upper` is `lower` or an ancestor of it.
    pub(super) fn above(&self, upper: Seat, lower: Seat) -> bool {
        let (begin, end) = self.span(upper);
        (begin..end).contains(&self.span(lower).0)
    }
}

fn bad(pid: i32, what: &str) -> Error {
    Error::bad_image(what).task(format!("pid {pid}"))
}

fn beyond(pid: i32, what: &str) -> Error {
    Error::unsupported(format!("its {what} is led from outside of the pid namespace"))
        .task(format!("pid {pid}"))
}
