//! The order of the steps.
//!
//! What happens to a task are *events*: it is forked, it founds a group it will leave, it settles
//! (in its final session and group), it exits. Events wait for others; those that wait for none are
//! turned into steps, the latest first, so that a branch of the tree is finished before the next is
//! begun and ghosts are short-lived. Some events had better wait, unless nothing else can be done: a
//! child for its elder siblings, which wait(2) finds first; and, to save a call of setpgid(2), a child
//! that is to be in its parent's group for the parent to settle.

use super::{
    Ghost, Group, Plan, Step, TaskIndex,
    births::{Births, SIGCHLD, SIGNAL, refused},
    family::{COORDINATOR, Family, PerSeat, Seat},
};
use crate::error::Result;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const GROUP: &str = "its process group is led from outside of its pid namespace, and was left by who made it";

/// What happens to a task.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Fork(Seat),
    /// Becomes the leader of a group, though it is to be in another.
    Found(Seat),
    Settle(Seat),
    Exit(Seat),
}

/// When a maker forks: relative to its settling.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum When {
    Before,
    #[default]
    Any,
    RatherAfter,
    After,
}

/// How a task is made.
#[derive(Clone, Copy, Default)]
struct Make {
    maker: Seat,
    sibling: bool,
    when: When,
}

/// How a task settles.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Settled {
    #[default]
    AsBorn,
    InSession,
    InGroup(i32),
}

/// The tasks of the plan, ghosts among them, and what waits for what.
struct Draft<'a> {
    family: &'a Family,
    ghosts: Vec<Ghost>,
    /// Ghosts by their pid.
    leaders: BTreeMap<i32, Seat>,
    makes: PerSeat<Option<Make>>,
    settled: PerSeat<Settled>,
    /// Of a ghost: who adopts what it made.
    adopter: PerSeat<Option<Seat>>,
    /// The group each is born in, where that matters.
    born_in: PerSeat<Option<i32>>,
    /// Those born in a group that their maker leaves.
    left: BTreeMap<Seat, Vec<Seat>>,
    /// Tells the pid namespace of a dead leader.
    home: &'a dyn Fn(i32) -> u32,
    /// Process 1 of each pid namespace.
    inits: BTreeMap<u32, Seat>,
    waits: BTreeMap<Event, usize>,
    next: BTreeMap<Event, Vec<Event>>,
    /// What an event had better wait for.
    rather_after: BTreeMap<Event, Vec<Event>>,
}

/// Puts the making of `family` in order.
pub(super) fn arrange(family: &Family, births: &Births, home: &dyn Fn(i32) -> u32) -> Result<Plan> {
    let mut draft = Draft {
        family,
        ghosts: Vec::new(),
        leaders: BTreeMap::new(),
        makes: PerSeat::default(),
        settled: PerSeat::default(),
        adopter: PerSeat::default(),
        born_in: PerSeat::default(),
        left: BTreeMap::new(),
        home,
        inits: family.nodes().filter(|(_, kin)| kin.init).map(|(seat, kin)| (kin.pidns, seat)).collect(),
        waits: BTreeMap::new(),
        next: BTreeMap::new(),
        rather_after: BTreeMap::new(),
    };
    draft.founders(births);
    draft.adoptions(births)?;
    draft.bind()?;
    draft.children(births);
    draft.siblings();
    draft.settle_nodes();
    draft.groups();
    Run::new(&draft).steps().map(|steps| Plan { ghosts: draft.ghosts, steps })
}

impl Draft<'_> {
    /// Ghosts for dead session leaders.
    fn founders(&mut self, births: &Births) {
        for (sid, founder) in &births.founders {
            let make = Make { maker: founder.parent, ..Make::default() };
            let ghost = self.ghost(Some(*sid), founder.exit_signal, (self.home)(*sid), make);
            self.settled.set(ghost, Settled::InSession);
        }
    }

    /// Processes that the leader of their session makes, as siblings or by a ghost.
    fn adoptions(&mut self, births: &Births) -> Result<()> {
        for ((parent, sid), children) in &births.adopted {
            let Some(maker) = self.leader(*sid) else { continue };
            let (maker_parent, signal) = self.relation(maker);
            let is_sibling =
                |seat: &Seat| *parent == maker_parent && self.family.kin(*seat).exit_signal == signal;
            let (siblings, orphans): (Vec<Seat>, Vec<Seat>) = children.iter().partition(|s| is_sibling(s));
            if let Some(loud) = orphans.iter().find(|s| self.family.kin(**s).exit_signal != SIGCHLD) {
                return Err(refused(self.family, *loud, SIGNAL));
            }
            for seat in siblings {
                self.make(seat, Make { maker, sibling: true, when: When::After });
            }
            if !orphans.is_empty() {
                // The kernel looks for who adopts in the pid namespace of who ends.
                let pidns = self.family.kin(*parent).pidns;
                let ghost = self.ghost(None, 0, pidns, Make { maker, sibling: false, when: When::After });
                self.adopter.set(ghost, Some(*parent));
                for seat in orphans {
                    self.make(seat, Make { maker: ghost, ..Make::default() });
                    self.wait(Event::Settle(seat), Event::Exit(ghost));
                }
            }
        }
        Ok(())
    }

    /// Finds who must be born in a certain group: who is bound to it, and the parents of those unless
    /// they end in it.
    fn bind(&mut self) -> Result<()> {
        for (seat, kin) in self.family.nodes().rev() {
            let group = if kin.bound { Some(kin.pgid) } else { self.born_in.get(seat) };
            let Some(group) = group else { continue };
            self.born_in.set(seat, Some(group));
            if self.in_group(self.makes.get(seat).map_or(kin.parent, |make| make.maker)) == group {
                continue;
            }
            let born = self.born_in.get(kin.parent).unwrap_or(group);
            let parent = self.family.kin(kin.parent);
            if self.makes.get(seat).is_some() || kin.parent == COORDINATOR || parent.bound || born != group {
                return Err(refused(self.family, seat, GROUP));
            }
            self.born_in.set(kin.parent, Some(group));
        }
        Ok(())
    }

    /// The group a maker is in once it has settled.
    fn in_group(&self, seat: Seat) -> i32 {
        let ghost = seat.checked_sub(self.family.len).and_then(|ghost| self.ghosts.get(ghost));
        let Some(ghost) = ghost else { return self.family.kin(seat).pgid };
        let maker = self.makes.get(seat).unwrap_or_default().maker;
        ghost.pid.unwrap_or_else(|| self.family.kin(maker).pgid)
    }

    /// Processes that their parents fork.
    fn children(&mut self, births: &Births) {
        for (seat, kin) in self.family.nodes() {
            if self.makes.get(seat).is_some() {
                continue;
            }
            let parent = self.family.kin(kin.parent);
            let when = match births.born.get(seat) {
                Some(sid) if parent.leads && sid == parent.sid => When::After,
                Some(_) if parent.leads => When::Before,
                _ if self.born_in.get(seat).is_some_and(|group| group != parent.pgid) => When::Before,
                _ if self.born_in.get(seat).is_some() => When::After,
                _ if !kin.leads && kin.pgid == parent.pgid => When::RatherAfter,
                _ => When::Any,
            };
            if when == When::Before && self.born_in.get(seat).is_some() {
                self.left.entry(kin.parent).or_default().push(seat);
            }
            self.make(seat, Make { maker: kin.parent, sibling: false, when });
        }
    }

    /// Children come to their parents in the order in which they stand.
    fn siblings(&mut self) {
        let mut elder: BTreeMap<Seat, Event> = BTreeMap::new();
        for (seat, kin) in self.family.nodes() {
            let maker = self.makes.get(seat).unwrap_or_default().maker;
            let arrival = match self.adopter.get(maker) {
                Some(_) => Event::Exit(maker),
                None => Event::Fork(seat),
            };
            if let Some(elder) = elder.insert(kin.parent, arrival).filter(|elder| *elder != arrival) {
                self.rather_after.entry(arrival).or_default().push(elder);
            }
        }
    }

    fn settle_nodes(&mut self) {
        for (seat, kin) in self.family.nodes() {
            self.settled.set(seat, if kin.leads { Settled::InSession } else { Settled::InGroup(kin.pgid) });
            self.wait(Event::Settle(seat), Event::Fork(seat));
        }
    }

    /// Lets members wait for their group. A leader that is dead, or in another group by now, is
    /// represented by a ghost until all members are in.
    fn groups(&mut self) {
        let outside = self.family.kin(COORDINATOR).pgid;
        let mut groups: BTreeMap<i32, Vec<Seat>> = BTreeMap::new();
        for (seat, kin) in self.family.nodes().filter(|(_, kin)| kin.pgid != outside) {
            groups.entry(kin.pgid).or_default().push(seat);
        }
        for (pgid, members) in groups {
            let Some(sid) = members.first().map(|seat| self.family.kin(*seat).sid) else { continue };
            let (ready, ghost) = match self.leader_of(pgid) {
                Some(leader) if leader >= self.family.len => (Event::Settle(leader), Some(leader)),
                Some(leader) if self.family.kin(leader).pgid == pgid => (Event::Settle(leader), None),
                Some(leader) => self.deputy(leader),
                None => self.group_ghost(pgid, sid),
            };
            for seat in members {
                if ready != Event::Settle(seat) {
                    self.wait(Event::Settle(seat), ready);
                }
                if let Some(ghost) = ghost {
                    self.wait(Event::Exit(ghost), Event::Settle(seat));
                }
            }
        }
    }

    /// A ghost that stays in the group `leader` founds and leaves.
    fn deputy(&mut self, leader: Seat) -> (Event, Option<Seat>) {
        let make = Make { maker: leader, sibling: false, when: When::Before };
        let ghost = self.ghost(None, 0, self.family.kin(leader).pidns, make);
        self.wait(Event::Found(leader), Event::Fork(leader));
        for seat in self.left.remove(&leader).unwrap_or_default() {
            self.wait(Event::Found(leader), Event::Fork(seat));
        }
        self.wait(Event::Fork(ghost), Event::Found(leader));
        (Event::Fork(ghost), Some(ghost))
    }

    /// A ghost that leads a group of session `sid`.
    fn group_ghost(&mut self, pgid: i32, sid: i32) -> (Event, Option<Seat>) {
        let maker = self.leader(sid).unwrap_or(COORDINATOR);
        let make = Make { maker, sibling: false, when: When::After };
        let ghost = self.ghost(Some(pgid), 0, (self.home)(pgid), make);
        self.settled.set(ghost, Settled::InGroup(pgid));
        (Event::Settle(ghost), Some(ghost))
    }

    fn ghost(&mut self, pid: Option<i32>, exit_signal: i32, pidns: u32, make: Make) -> Seat {
        let seat = self.family.len + self.ghosts.len();
        self.ghosts.push(Ghost { pid, exit_signal, pidns });
        if let Some(pid) = pid {
            self.leaders.insert(pid, seat);
        }
        self.make(seat, make);
        self.wait(Event::Settle(seat), Event::Fork(seat));
        self.wait(Event::Exit(seat), Event::Settle(seat));
        seat
    }

    fn make(&mut self, seat: Seat, make: Make) {
        self.makes.set(seat, Some(make));
        self.waits.entry(Event::Fork(seat)).or_default();
        if let Some(init) = self.inits.get(&self.pidns(seat)).copied().filter(|init| *init != seat) {
            self.wait(Event::Fork(seat), Event::Fork(init));
        }
        let maker = make.maker;
        if maker == COORDINATOR {
            return;
        }
        self.wait(Event::Fork(seat), Event::Fork(maker));
        match make.when {
            When::Before => self.wait(Event::Settle(maker), Event::Fork(seat)),
            When::After => self.wait(Event::Fork(seat), Event::Settle(maker)),
            When::RatherAfter => {
                self.rather_after.entry(Event::Fork(seat)).or_default().push(Event::Settle(maker))
            }
            When::Any => {}
        }
        if maker >= self.family.len {
            // A ghost outlives what it makes and reaps the ghosts among its children.
            let is_ghost_child = seat >= self.family.len;
            let last = if is_ghost_child { Event::Exit(seat) } else { Event::Fork(seat) };
            self.wait(Event::Exit(maker), last);
        }
    }

    fn wait(&mut self, event: Event, first: Event) {
        self.waits.entry(first).or_default();
        *self.waits.entry(event).or_default() += 1;
        self.next.entry(first).or_default().push(event);
    }

    /// The pid namespace of a task.
    fn pidns(&self, seat: Seat) -> u32 {
        let ghost = seat.checked_sub(self.family.len).and_then(|ghost| self.ghosts.get(ghost));
        ghost.map_or(self.family.kin(seat).pidns, |ghost| ghost.pidns)
    }

    /// The leader of a session, the coordinator for the outside one.
    fn leader(&self, sid: i32) -> Option<Seat> {
        self.family.leader(sid).or_else(|| self.leaders.get(&sid).copied())
    }

    /// The task a group is named after.
    fn leader_of(&self, pgid: i32) -> Option<Seat> {
        self.family.node(pgid).or_else(|| self.leaders.get(&pgid).copied())
    }

    /// Parent and exit signal of a session's leader.
    fn relation(&self, leader: Seat) -> (Seat, i32) {
        match leader.checked_sub(self.family.len).and_then(|ghost| self.ghosts.get(ghost)) {
            None => (self.family.kin(leader).parent, self.family.kin(leader).exit_signal),
            Some(ghost) => (self.makes.get(leader).map_or(COORDINATOR, |make| make.maker), ghost.exit_signal),
        }
    }
}

/// The events of a draft as they happen.
struct Run<'a> {
    draft: &'a Draft<'a>,
    waits: BTreeMap<Event, usize>,
    ready: Vec<Event>,
    /// Events that could happen but had better wait, and the same by what they wait for.
    reluctant: VecDeque<Event>,
    held: BTreeMap<Event, Vec<Event>>,
    done: BTreeSet<Event>,
    /// The group each task is in.
    groups: PerSeat<i32>,
    steps: Vec<Step>,
    /// One that is bound to a group and is not in it.
    astray: Option<Seat>,
}

impl<'a> Run<'a> {
    fn new(draft: &'a Draft<'a>) -> Self {
        let waits = draft.waits.clone();
        let mut groups = PerSeat::default();
        groups.set(COORDINATOR, draft.family.kin(COORDINATOR).pgid);
        let ready = waits.iter().filter(|(_, waits)| **waits == 0).map(|(event, _)| *event).rev().collect();
        Run {
            draft,
            waits,
            ready,
            reluctant: VecDeque::new(),
            held: BTreeMap::new(),
            done: BTreeSet::new(),
            groups,
            steps: Vec::new(),
            astray: None,
        }
    }

    fn steps(mut self) -> Result<Vec<Step>> {
        while let Some(event) = self.ready.pop().or_else(|| self.reluctant.pop_front()) {
            if self.done.insert(event) {
                self.happen(event);
                self.release(event);
            }
        }
        if let Some(seat) = self.astray {
            return Err(refused(self.draft.family, seat, GROUP));
        }
        if self.done.len() == self.waits.len() {
            return Ok(self.steps);
        }
        let unmade = self.draft.family.nodes().find(|(seat, _)| !self.done.contains(&Event::Fork(*seat)));
        let seat = unmade.map_or(COORDINATOR, |(seat, _)| seat);
        Err(refused(self.draft.family, seat, "what makes it would have to be made by it"))
    }

    fn release(&mut self, event: Event) {
        let mut freed = Vec::new();
        for then in self.draft.next.get(&event).into_iter().flatten() {
            let Some(waits) = self.waits.get_mut(then) else { continue };
            *waits = waits.saturating_sub(1);
            if *waits > 0 {
                continue;
            }
            match self.better_first(*then) {
                Some(first) => {
                    self.reluctant.push_back(*then);
                    self.held.entry(first).or_default().push(*then);
                }
                None => freed.push(*then),
            }
        }
        for then in self.held.remove(&event).into_iter().flatten() {
            match self.better_first(then) {
                Some(first) => self.held.entry(first).or_default().push(then),
                None => freed.push(then),
            }
        }
        self.ready.extend(freed.into_iter().rev());
    }

    /// What had better happen before `event`.
    fn better_first(&self, event: Event) -> Option<Event> {
        self.draft.rather_after.get(&event)?.iter().find(|first| !self.done.contains(first)).copied()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Fork(seat) => self.fork(seat),
            Event::Found(seat) => self.join(seat, self.draft.family.kin(seat).pid),
            Event::Settle(seat) => match self.draft.settled.get(seat) {
                Settled::AsBorn => {}
                Settled::InGroup(pgid) => self.join(seat, pgid),
                Settled::InSession => {
                    self.groups.set(seat, self.pid(seat));
                    self.steps.push(Step::Setsid(task(seat)));
                }
            },
            Event::Exit(ghost) => self.exit(ghost),
        }
    }

    fn fork(&mut self, seat: Seat) {
        let make = self.draft.makes.get(seat).unwrap_or_default();
        self.groups.set(seat, self.groups.get(make.maker));
        let maker = make.maker.checked_sub(1);
        self.steps.push(Step::Fork { maker, task: task(seat), sibling: make.sibling });
    }

    fn join(&mut self, seat: Seat, pgid: i32) {
        if self.groups.get(seat) == pgid {
            return;
        }
        if self.draft.family.kin(seat).bound && self.draft.family.kin(seat).pgid == pgid {
            self.astray = Some(seat);
        }
        self.groups.set(seat, pgid);
        let group = match self.draft.leader_of(pgid) {
            None => Group::Restarter,
            Some(leader) if leader == seat => Group::Own,
            Some(leader) => Group::Of(task(leader)),
        };
        self.steps.push(Step::Setpgid(task(seat), group));
    }

    fn exit(&mut self, ghost: Seat) {
        let parent = self.draft.makes.get(ghost).unwrap_or_default().maker.checked_sub(1);
        let exit = Step::Exit { ghost: task(ghost), parent };
        match self.draft.adopter.get(ghost).map(task) {
            None => self.steps.push(exit),
            Some(adopter) => {
                let (on, off) = (Step::Subreaper(adopter, true), Step::Subreaper(adopter, false));
                self.steps.extend([on, exit, off]);
            }
        }
    }

    fn pid(&self, seat: Seat) -> i32 {
        match seat.checked_sub(self.draft.family.len).and_then(|ghost| self.draft.ghosts.get(ghost)) {
            None => self.draft.family.kin(seat).pid,
            Some(ghost) => ghost.pid.unwrap_or_default(),
        }
    }
}

/// The index of a seat that is not the coordinator's.
fn task(seat: Seat) -> TaskIndex {
    seat.saturating_sub(1)
}
