//! Where the descriptors of a table go.
//!
//! A puppet is born with everything the coordinator has opened, by the coordinator's numbers; its own
//! numbers are others. They are moved in the order that overwrites nothing still needed, a cycle by way
//! of one number that nobody has, so that no more numbers are used than there are files: a table may be
//! full up to its limit. What has the right number in the coordinator need not be moved ([`Landing`]).

use ckpt_image::{Image, Object, Objref};
use ckpt_kernel::{Errno, procfs, program::Program};
use rustix::io::fcntl_dupfd_cloexec;
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsRawFd, OwnedFd},
};

/// Which numbers the coordinator gives to what it opens. open(2) takes the lowest that is free: files that are opened in the
/// order of their numbers come to be in their places by themselves, once what is in the way is out of it.
#[derive(Debug)]
pub(crate) struct Landing {
    /// The place of a file, which is no other's.
    places: BTreeMap<Objref, i32>,
    /// All those places.
    taken: BTreeSet<i32>,
    /// Above all places.
    end: i32,
}

impl Landing {
    /// Places from `lowest` on, as many as there are files: every process is born with a copy of the table, which is to be
    /// a short one.
    pub(crate) fn of(image: &Image, lowest: i32) -> Result<Landing, Errno> {
        let ours: BTreeSet<i32> = procfs::numbers("self/fd")?.into_iter().collect();
        let tables = image.objects.values().filter_map(|object| match object {
            Object::Files(table) => Some(&table.descs),
            _ => None,
        });
        let most = ours.len() + image.objects.values().filter(|o| matches!(o, Object::File(_))).count();
        let end = i32::try_from(most).unwrap_or(i32::MAX);
        let (mut places, mut taken) = (BTreeMap::new(), BTreeSet::new());
        for desc in tables.flatten().filter(|desc| (lowest..end).contains(&desc.fd)) {
            if !ours.contains(&desc.fd) && !places.contains_key(&desc.file) && taken.insert(desc.fd) {
                places.insert(desc.file, desc.fd);
            }
        }
        Ok(Landing { places, taken, end })
    }

    /// Sees to it that a file that was just opened is in its place, or not in another's.
    pub(crate) fn land(&self, file: Objref, fd: OwnedFd) -> OwnedFd {
        let at = fd.as_raw_fd();
        if let Some(place) = self.places.get(&file) {
            if *place == at {
                return fd;
            }
            if let Some(there) =
                fcntl_dupfd_cloexec(&fd, *place).ok().filter(|there| there.as_raw_fd() == *place)
            {
                return there;
            }
        }
        // Anywhere is as good, if there is room: it is moved by each who has it.
        match self.taken.contains(&at) {
            true => fcntl_dupfd_cloexec(&fd, self.end).unwrap_or(fd),
            false => fd,
        }
    }
}

/// One descriptor: where it is, where it goes, FD_CLOEXEC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) from: i32,
    pub(crate) to: i32,
    pub(crate) cloexec: bool,
}

/// Puts every descriptor in its place and closes all others, but for `kept`, which is nobody's place.
pub(crate) fn place(program: &mut Program, moves: &[Move], kept: Option<i32>) {
    ordered(moves, kept).into_iter().for_each(|one| put(program, one));
    let places: BTreeSet<i32> = moves.iter().map(|m| m.to).chain(kept).collect();
    let mut next = 0;
    for place in places {
        if place > next {
            close(program, next, place as u32 - 1);
        }
        next = place.saturating_add(1);
    }
    close(program, next, u32::MAX);
}

/// Puts one descriptor in its place.
pub(crate) fn put(program: &mut Program, Move { from, to, cloexec }: Move) {
    if from == to {
        let args = [to.into(), libc::F_SETFD.into(), i32::from(cloexec).into()];
        program.call("fcntl(F_SETFD)", to as u64, libc::SYS_fcntl, args);
    } else {
        let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
        program.call("dup3", to as u64, libc::SYS_dup3, [from.into(), to.into(), flags.into()]);
    }
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

/// The moves in an order in which each finds what it moves. There may be more of them: the cycles, by way of a number that
/// is not `kept`.
fn ordered(moves: &[Move], kept: Option<i32>) -> Vec<Move> {
    // By place, what is still to go there; by number, how many still need what is there now.
    let mut left: BTreeMap<i32, Move> = moves.iter().map(|m| (m.to, *m)).collect();
    let mut needed: BTreeMap<i32, u32> = BTreeMap::new();
    for m in moves.iter().filter(|m| m.from != m.to) {
        *needed.entry(m.from).or_default() += 1;
    }
    let taken: BTreeSet<i32> = moves.iter().flat_map(|m| [m.from, m.to]).chain(kept).collect();
    let spare = (0..).find(|number| !taken.contains(number)).unwrap_or(i32::MAX);
    let mut done = Vec::with_capacity(moves.len());
    let mut ready: Vec<i32> = left.keys().copied().filter(|to| !needed.contains_key(to)).collect();
    loop {
        while let Some(to) = ready.pop() {
            let Some(m) = left.remove(&to) else { continue };
            done.push(m);
            let Some(count) = needed.get_mut(&m.from).filter(|_| m.from != m.to) else { continue };
            *count -= 1;
            if *count == 0 {
                needed.remove(&m.from);
                ready.push(m.from);
            }
        }
        // What is left goes round in cycles.
        let Some(at) = left.first_key_value().map(|(at, _)| *at) else { return done };
        done.push(Move { from: at, to: spare, cloexec: true });
        left.values_mut().filter(|m| m.from == at).for_each(|m| m.from = spare);
        if let Some(count) = needed.remove(&at) {
            needed.insert(spare, count);
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
        let mut table: BTreeMap<i32, (i32, bool)> = BTreeMap::new();
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
