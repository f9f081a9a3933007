//! The session every process is born in, and who takes in those their parents cannot make.
//!
//! A process that leads no session is born in its own. A leader may be born in any, so it is given
//! to a child that needs it: one from before its setsid(2), which it can only fork there. The need
//! is then the leader's: it *climbs* to the leader's parent, and ends at one that is in the session
//! anyway or *adopts* the process, because the session begins below it.
//!
//! Where a session begins is known when its leader lives. A dead leader may be placed anywhere, as
//! long as all who need it can be reached: as deep as possible, as this disturbs no births above.

use super::family::{COORDINATOR, Family, PerSeat, Seat};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

pub(super) const SIGCHLD: i32 = libc::SIGCHLD;

/// The ghost that begins a session in place of its dead leader.
pub(super) struct Founder {
    pub(super) parent: Seat,
    pub(super) exit_signal: i32,
}

#[derive(Default)]
pub(super) struct Births {
    /// The session each is born in. `None`: any will do.
    pub(super) born: PerSeat<Option<i32>>,
    /// By parent and session of birth, those whose parent is never in that session.
    pub(super) adopted: BTreeMap<(Seat, i32), Vec<Seat>>,
    /// By session.
    pub(super) founders: BTreeMap<i32, Founder>,
}

impl Births {
    pub(super) fn find(family: &Family) -> Result<Self> {
        let mut births = Births::default();
        let mut dead: BTreeMap<i32, Need> = BTreeMap::new();
        // Children come first: their needs are known when their parents' are asked for.
        for (seat, kin) in family.nodes().rev() {
            if !kin.leads {
                births.born.set(seat, Some(kin.sid));
            }
            let Some(sid) = births.born.get(seat) else { continue };
            if family.kin(kin.parent).sid == sid {
                continue;
            }
            match family.leader(sid) {
                None => dead.entry(sid).or_default().add(family, seat),
                Some(leader) if kin.parent != COORDINATOR && family.above(kin.parent, leader) => {
                    births.adopted.entry((kin.parent, sid)).or_default().push(seat);
                }
                Some(_) if births.may_be_born(family, kin.parent, sid) => {
                    births.born.set(kin.parent, Some(sid));
                }
                Some(_) => return Err(refused(family, seat, ELSEWHERE)),
            }
        }
        for (sid, need) in dead {
            births.place_founder(family, sid, need)?;
        }
        births.adopted.values_mut().for_each(|children| children.sort_unstable());
        Ok(births)
    }

    /// Whether a process may be born in a session it does not end in.
    fn may_be_born(&self, family: &Family, seat: Seat, sid: i32) -> bool {
        family.kin(seat).leads && self.born.get(seat).is_none_or(|born| born == sid)
    }

    /// Finds the parent for the ghost that begins session `sid`, given the parents that need it.
    /// They must be above the ghost or climb, that is, be born in the session themselves. The last
    /// one (in preorder, so the lowest comes before those above it) climbs until the others are
    /// above it; one that cannot climb has the ghost as a child.
    fn place_founder(&mut self, family: &Family, sid: i32, mut need: Need) -> Result<()> {
        let mut place = None;
        while let Some((parent, children)) = need.pop(family) {
            let signals = loud(family, &children);
            let above = match place {
                Some(place) => family.above(parent, place),
                None => !need.made_below(family, parent),
            };
            let adopts = above && signals.len() <= usize::from(place.is_none());
            let climbs = if place.is_none() { !adopts || !need.all_above(family, parent) } else { !above };
            if climbs && self.may_be_born(family, parent, sid) {
                self.born.set(parent, Some(sid));
                let next = family.kin(parent).parent;
                if family.kin(next).sid != sid && self.born.get(next) != Some(sid) {
                    need.add(family, parent);
                }
                continue;
            }
            if !adopts {
                let child = children.first().copied().unwrap_or(parent);
                return Err(refused(family, child, if above { SIGNAL } else { ELSEWHERE }));
            }
            if place.is_none() {
                place = Some(parent);
                let exit_signal = signals.first().copied().unwrap_or(SIGCHLD);
                self.founders.insert(sid, Founder { parent, exit_signal });
            }
            self.adopted.insert((parent, sid), children);
        }
        Ok(())
    }
}

/// The parents that must adopt members of a session whose leader is dead, or be born in it.
#[derive(Default)]
struct Need {
    /// By place in the preorder.
    parents: BTreeMap<usize, (Seat, Vec<Seat>)>,
    /// The ends of their spans.
    ends: BTreeSet<(usize, Seat)>,
    /// Spans of children, without those inside of others.
    spans: BTreeMap<usize, usize>,
    /// Those with a child that cannot be an orphan.
    loud: BTreeSet<Seat>,
}

impl Need {
    fn add(&mut self, family: &Family, child: Seat) {
        let parent = family.kin(child).parent;
        let (begin, end) = family.span(parent);
        self.parents.entry(begin).or_insert_with(|| (parent, Vec::new())).1.push(child);
        self.ends.insert((end, parent));
        if family.kin(child).exit_signal != SIGCHLD {
            self.loud.insert(parent);
        }
        if !self.made_below(family, child) {
            let (begin, end) = family.span(child);
            while let Some(inner) = self.spans.range(begin..end).next().map(|(begin, _)| *begin) {
                self.spans.remove(&inner);
            }
            self.spans.insert(begin, end);
        }
    }

    /// Whether one of the children is `seat` or above it: the session begins before `seat` is made.
    fn made_below(&self, family: &Family, seat: Seat) -> bool {
        let place = family.span(seat).0;
        self.spans.range(..=place).next_back().is_some_and(|(_, end)| *end > place)
    }

    /// The last one in preorder, with the children in question.
    fn pop(&mut self, family: &Family) -> Option<(Seat, Vec<Seat>)> {
        let (_, (parent, children)) = self.parents.pop_last()?;
        self.ends.remove(&(family.span(parent).1, parent));
        self.loud.remove(&parent);
        Some((parent, children))
    }

    /// Whether the others are ancestors of `last`, which was popped, and can adopt orphans of it.
    fn all_above(&self, family: &Family, last: Seat) -> bool {
        let begin = family.span(last).0;
        self.loud.is_empty() && self.ends.first().is_none_or(|(end, _)| *end > begin)
    }
}

/// The different exit signals among `seats` that an orphan cannot have.
fn loud(family: &Family, seats: &[Seat]) -> BTreeSet<i32> {
    seats.iter().map(|seat| family.kin(*seat).exit_signal).filter(|signal| *signal != SIGCHLD).collect()
}

const ELSEWHERE: &str = "its session is not its parent's and did not begin below its parent";
pub(super) const SIGNAL: &str = "an adopted process with this exit signal cannot be made";

pub(super) fn refused(family: &Family, seat: Seat, why: &str) -> Error {
    let kin = family.kin(seat);
    let born = format!(
        "parent {}, session {}, exit signal {}",
        family.kin(kin.parent).pid,
        kin.sid,
        kin.exit_signal
    );
    Error::unsupported(format!("its place in the process tree ({born}) cannot be made"))
        .why(why)
        .task(format!("pid {}", kin.pid))
}
