//! Where the descriptors of a table go.
//!
//! A puppet is born with everything the coordinator has opened, by the coordinator's numbers; its own
//! numbers are others. They are moved in the order that overwrites nothing still needed, a cycle by way
//! of one number that nobody has, so that no more numbers are used than there are files: a table may be
//! full up to its limit. What has the right number in the coordinator need not be moved ([`Landing`]).

use crate::error::{Doing, Error, Result};
use ckpt_image::{Image, Object, Objref, Table};
use ckpt_kernel::{procfs, program::Program};
use rustix::io::{DupFlags, fcntl_dupfd_cloexec};
use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsRawFd, OwnedFd},
};

/// Which numbers the coordinator gives to what it opens. open(2) takes the lowest that is free: files that are opened in the
/// order of their numbers come to be in their places by themselves, once what is in the way is out of it.
#[derive(Debug)]
pub(crate) struct Landing {
    /// The place of a file, which is no other's.
    places: Table<i32>,
    /// Whether a number is such a place.
    taken: Vec<bool>,
    /// Placeholders, at numbers that only those whose places they are may get.
    reserved: BTreeMap<i32, OwnedFd>,
}

/// Where descriptions go that are opened.
pub(crate) trait Place {
    /// The number a file is to have, if it is to have one.
    fn number(&self, file: Objref) -> Option<i32>;
    /// Above all these numbers; `None` if they are to ascend in the order in which files are opened, so that nobody but us
    /// may open them.
    fn end(&self) -> Option<i32>;
    /// Has the description of a file where the tasks will have it.
    fn place(&mut self, file: Objref, fd: OwnedFd) -> Result<OwnedFd>;
}

/// Numbers below are those of standard descriptors.
pub(crate) const LOWEST: i32 = 3;

impl Landing {
    /// Places as many as there are files: every process is born with a copy of the table, which is to be a short one. Who has
    /// one in `own` gets that.
    pub(crate) fn of(
        image: &Image,
        own: impl IntoIterator<Item = (Objref, i32)>,
        reserved: BTreeMap<i32, OwnedFd>,
    ) -> Result<Landing> {
        let ours = procfs::numbers("self/fd").doing(|| "list our descriptors".to_owned())?;
        let mut places: Vec<(Objref, i32)> = own
            .into_iter()
            .filter(|(_, number)| *number >= LOWEST && reserved.contains_key(number))
            .collect();
        let position = |file| image.objects.position(file);
        let mut placed = vec![false; image.objects.len()];
        for at in places.iter().filter_map(|(file, _)| position(*file)) {
            placed.get_mut(at).into_iter().for_each(|placed| *placed = true);
        }
        let ours: BTreeSet<i32> = ours.into_iter().collect();
        let tables = image.objects.values().filter_map(|object| match object {
            Object::Files(table) => Some(&table.descs),
            _ => None,
        });
        let most = ours.len() + image.objects.values().filter(|o| matches!(o, Object::File(_))).count();
        let mut taken = vec![false; most];
        for desc in tables.flatten().filter(|desc| desc.fd >= LOWEST) {
            let Some(taken) = taken.get_mut(desc.fd as usize).filter(|taken| !**taken) else { continue };
            let placed = position(desc.file).and_then(|at| placed.get_mut(at)).filter(|placed| !**placed);
            if let Some(placed) = placed.filter(|_| !ours.contains(&desc.fd)) {
                places.push((desc.file, desc.fd));
                (*taken, *placed) = (true, true);
            }
        }
        Ok(Landing { places: places.into_iter().collect(), taken, reserved })
    }

    fn is_taken(&self, number: i32) -> bool {
        self.taken.get(number as usize).copied().unwrap_or(false)
    }
}

impl Place for Landing {
    fn number(&self, file: Objref) -> Option<i32> {
        self.places.get(&file).copied()
    }

    fn end(&self) -> Option<i32> {
        Some(self.taken.len() as i32)
    }

    /// Sees to it that a file that was just opened is in its place, or not in another's.
    fn place(&mut self, file: Objref, fd: OwnedFd) -> Result<OwnedFd> {
        let at = fd.as_raw_fd();
        let place = self.number(file);
        if place == Some(at) {
            return Ok(fd);
        }
        if let Some(mut there) = place.and_then(|place| self.reserved.remove(&place)) {
            rustix::io::dup3(&fd, &mut there, DupFlags::CLOEXEC).doing(|| "dup3".to_owned())?;
            return Ok(there);
        }
        let moved = place.and_then(|place| fcntl_dupfd_cloexec(&fd, place).ok());
        if let Some(there) = moved.filter(|there| Some(there.as_raw_fd()) == place) {
            return Ok(there);
        }
        // Anywhere is as good, if there is room: it is moved by each who has it.
        let fd = match self.is_taken(at) {
            true => fcntl_dupfd_cloexec(&fd, self.taken.len() as i32).unwrap_or(fd),
            false => fd,
        };
        park(fd)
    }
}

/// Moves a descriptor out of the way of the standard ones: ours may be what the task inherits.
pub(crate) fn park(fd: OwnedFd) -> Result<OwnedFd> {
    if fd.as_raw_fd() >= LOWEST {
        return Ok(fd);
    }
    above(&fd, LOWEST)
}

/// A copy of a descriptor, at `lowest` or above.
pub(crate) fn above(fd: &OwnedFd, lowest: i32) -> Result<OwnedFd> {
    fcntl_dupfd_cloexec(fd, lowest).map_err(|e| {
        Error::os(format!("a descriptor with the number {lowest} or above"), e)
            .advice("raise the limit of open files (ulimit -n)")
    })
}

/// One descriptor: where it is, where it goes, FD_CLOEXEC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) from: i32,
    pub(crate) to: i32,
    pub(crate) cloexec: bool,
}

impl Move {
    /// Whether it is in its place.
    fn is_there(&self) -> bool {
        self.from == self.to
    }
}

/// Puts every descriptor in its place and closes all others, but for `kept`, which is nobody's place.
pub(crate) fn place(program: &mut Program, moves: &[Move], kept: Option<i32>) {
    ordered(moves, kept).into_iter().for_each(|one| put(program, one));
    let there: Vec<&Move> = moves.iter().filter(|m| m.is_there()).collect();
    for run in there.chunk_by(|a, b| a.to + 1 == b.to && a.cloexec == b.cloexec) {
        let Some(first) = run.first() else { continue };
        let (from, count) = (first.to as u64, run.len() as u64);
        let others = [libc::F_SETFD.into(), i32::from(first.cloexec).into()];
        program.call_each("fcntl(F_SETFD)", from, count, libc::SYS_fcntl, others);
    }
    let mut places: Vec<i32> = moves.iter().map(|m| m.to).chain(kept).collect();
    places.sort_unstable();
    let mut next = 0;
    for place in places {
        if place > next {
            close(program, next, place as u32 - 1);
        }
        next = place.saturating_add(1);
    }
    close(program, next, u32::MAX);
}

/// Puts one descriptor in its place, where it is not.
pub(crate) fn put(program: &mut Program, Move { from, to, cloexec }: Move) {
    let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
    program.call("dup3", to as u64, libc::SYS_dup3, [from.into(), to.into(), flags.into()]);
}

/// Closes a range of numbers.
pub(crate) fn close(program: &mut Program, from: i32, to: u32) {
    close_range(program, from, to, 0);
}

/// Gives whoever shares the table with others one of its own, a copy of what is below `end` (Linux 5.9).
pub(crate) fn part(program: &mut Program, end: i32) {
    close_range(program, end, u32::MAX, libc::CLOSE_RANGE_UNSHARE);
}

fn close_range(program: &mut Program, from: i32, to: u32, flags: u32) {
    program.call("close_range", from as u64, libc::SYS_close_range, [from.into(), to.into(), flags.into()]);
}

/// The moves of what is not in its place, in an order in which each finds what it moves. There may be more of them: the
/// cycles, by way of a number that is not `kept`.
fn ordered(moves: &[Move], kept: Option<i32>) -> Vec<Move> {
    // By place, what is still to go there; by number, how many still need what is there now.
    let mut left: BTreeMap<i32, Move> = moves.iter().filter(|m| !m.is_there()).map(|m| (m.to, *m)).collect();
    if left.is_empty() {
        return Vec::new();
    }
    let mut needed: BTreeMap<i32, u32> = BTreeMap::new();
    for m in left.values() {
        *needed.entry(m.from).or_default() += 1;
    }
    let spare = LazyCell::new(|| {
        let taken: BTreeSet<i32> = moves.iter().flat_map(|m| [m.from, m.to]).chain(kept).collect();
        (0..).find(|number| !taken.contains(number)).unwrap_or(i32::MAX)
    });
    let mut done = Vec::with_capacity(moves.len());
    let mut ready: Vec<i32> = left.keys().copied().filter(|to| !needed.contains_key(to)).collect();
    loop {
        while let Some(to) = ready.pop() {
            let Some(m) = left.remove(&to) else { continue };
            done.push(m);
            let Some(count) = needed.get_mut(&m.from) else { continue };
            *count -= 1;
            if *count == 0 {
                needed.remove(&m.from);
                ready.push(m.from);
            }
        }
        // What is left goes round in cycles.
        let Some(at) = left.first_key_value().map(|(at, _)| *at) else { return done };
        done.push(Move { from: at, to: *spare, cloexec: true });
        left.values_mut().filter(|m| m.from == at).for_each(|m| m.from = *spare);
        if let Some(count) = needed.remove(&at) {
            needed.insert(*spare, count);
        }
        ready.push(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What each number holds after the moves, `from` being what number `from` held at first.
    fn run(moves: &[Move]) -> BTreeMap<i32, (i32, bool)> {
        let there = moves.iter().filter(|m| m.is_there()).map(|m| (m.to, (m.from, m.cloexec)));
        let mut table: BTreeMap<i32, (i32, bool)> = there.collect();
        for m in ordered(moves, None) {
            let what = table.get(&m.from).map_or(m.from, |(what, _)| *what);
            table.insert(m.to, (what, m.cloexec));
        }
        table
    }

    proptest! {
        #[test]
        fn everything_arrives(sources in proptest::collection::vec((0..12i32, any::<bool>()), 0..12), skip in 0..3i32) {
            let place = |(at, (from, cloexec)): (usize, (i32, bool))| Move { from, to: at as i32 * (1 + skip), cloexec };
            let moves: Vec<Move> = sources.into_iter().enumerate().map(place).collect();
            let table = run(&moves);
            for m in &moves {
                prop_assert_eq!(table.get(&m.to), Some(&(m.from, m.cloexec)));
            }
            let numbers = moves.iter().flat_map(|m| [m.from, m.to]).collect::<BTreeSet<_>>();
            let more = table.keys().filter(|number| !numbers.contains(number)).count();
            prop_assert!(more <= 1, "{} more numbers than need be", more);
        }
    }

    #[test]
    fn a_cycle_goes_by_way_of_one_number() {
        let to = |from, to| Move { from, to, cloexec: false };
        let table = run(&[to(4, 3), to(3, 4), to(6, 5), to(5, 6), to(3, 9)]);
        assert_eq!([3, 4, 5, 6, 9].map(|n| table[&n].0), [4, 3, 6, 5, 3]);
        assert_eq!(table.len(), 6);
    }
}
