//! Plans of real histories and of noise, carried out on the model kernel; and shapes of trees.

use super::{
    Ghost, Group, Node, Plan,
    Step::{self, *},
    Terms,
    model::{INIT, Kernel, run},
};
use crate::error::ErrorKind;
use proptest::{prelude::*, sample::Index};

const SIGCHLD: i32 = libc::SIGCHLD;
const ROOT: i32 = 10;

fn node(pid: i32, ppid: i32, pgid: i32, sid: i32) -> Node {
    Node { pid, ppid, pgid, sid, exit_signal: SIGCHLD, ..NOBODY }
}

const NOBODY: Node = Node {
    pid: 0,
    ppid: 0,
    pgid: 0,
    sid: 0,
    exit_signal: 0,
    zombie: false,
    pidns: 0,
    init: false,
    bound: false,
};
const HERE: Terms<'_> = Terms { apart: false, home: None };
const APART: Terms<'_> = Terms { apart: true, home: None };

fn plan(nodes: &[Node]) -> crate::error::Result<Plan> {
    super::plan(nodes, &HERE)
}

/// Plans, carries out, compares.
fn made(nodes: &[Node]) -> Plan {
    made_with(nodes, &HERE)
}

fn made_with(nodes: &[Node], terms: &Terms<'_>) -> Plan {
    let plan = super::plan(nodes, terms).unwrap_or_else(|e| panic!("{e}\n{nodes:#?}"));
    run(nodes, &plan, terms.apart).unwrap_or_else(|e| panic!("{e}\n{nodes:#?}\n{plan:#?}"));
    plan
}

fn refusal(nodes: &[Node]) -> (ErrorKind, String) {
    let error = plan(nodes).unwrap_err();
    (error.kind, error.to_string())
}

fn count(plan: &Plan, is: impl Fn(&Step) -> bool) -> usize {
    plan.steps.iter().filter(|step| is(step)).count()
}

/// One deed of a random history.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Fork { sibling: bool, exit_signal: i32 },
    Daemonize,
    Setsid,
    OwnGroup,
    JoinGroup(Index),
    Subreaper(bool),
    Exit,
    Reap(Index),
}

fn deed() -> impl Strategy<Value = Deed> {
    let signal = prop_oneof![8 => Just(SIGCHLD), 1 => Just(0), 1 => Just(libc::SIGUSR1)];
    prop_oneof![
        10 => (prop::bool::weighted(0.15), signal)
            .prop_map(|(sibling, exit_signal)| Deed::Fork { sibling, exit_signal }),
        2 => Just(Deed::Daemonize),
        4 => Just(Deed::Setsid),
        2 => Just(Deed::OwnGroup),
        3 => any::<Index>().prop_map(Deed::JoinGroup),
        3 => prop::bool::weighted(0.8).prop_map(Deed::Subreaper),
        5 => Just(Deed::Exit),
        4 => any::<Index>().prop_map(Deed::Reap),
    ]
}

fn history() -> impl Strategy<Value = Vec<(Index, Deed)>> {
    prop::collection::vec((any::<Index>(), deed()), 0..70)
}

/// Lives a history below a root that its shell made. With `tame`, a process is a subreaper from its
/// birth or never: an orphan has then not passed by anyone who adopts another one later.
fn live(history: &[(Index, Deed)], tame: bool) -> Vec<Node> {
    live_in(history, tame, false)
}

/// The same; `apart`: nobody who has left the group of the shell joins it again.
fn live_in(history: &[(Index, Deed)], tame: bool, apart: bool) -> Vec<Node> {
    let mut kernel = Kernel::new();
    kernel.fork(INIT, 3, SIGCHLD, false).unwrap();
    kernel.setsid(3).unwrap();
    kernel.fork(3, ROOT, SIGCHLD, false).unwrap();
    for (who, deed) in history {
        let tree = kernel.tree(ROOT);
        let alive: Vec<&Node> = tree.iter().filter(|n| !n.zombie).collect();
        let me = **who.get(&alive);
        let free = |kernel: &Kernel| (ROOT..).find(|pid| !kernel.in_use(*pid)).unwrap();
        // What the kernel refuses has not happened.
        let _ = match deed {
            Deed::Fork { sibling: true, .. } if me.pid == ROOT => Ok(()),
            Deed::Fork { sibling, exit_signal } => {
                let pid = free(&kernel);
                kernel.fork(me.pid, pid, if *sibling { 0 } else { *exit_signal }, *sibling)
            }
            Deed::Daemonize => {
                let child = free(&kernel);
                kernel.fork(me.pid, child, SIGCHLD, false).unwrap();
                kernel.setsid(child).unwrap();
                let daemon = free(&kernel);
                kernel.fork(child, daemon, SIGCHLD, false).unwrap();
                kernel.exit(child).unwrap();
                kernel.reap(me.pid, child)
            }
            Deed::Setsid => kernel.setsid(me.pid),
            Deed::OwnGroup => kernel.setpgid(me.pid, me.pid),
            // If its leader ended, the root's group could not be told from the outside one.
            Deed::JoinGroup(_) if apart && me.pid == ROOT => Ok(()),
            Deed::JoinGroup(other) => match other.get(&tree).pgid {
                3 if apart => Ok(()),
                pgid => kernel.setpgid(me.pid, pgid),
            },
            Deed::Subreaper(on) => {
                let proc = kernel.procs.get_mut(&me.pid).unwrap();
                if !tame || *on && !proc.active {
                    proc.subreaper = *on;
                }
                Ok(())
            }
            Deed::Exit if me.pid == ROOT => Ok(()),
            Deed::Exit => kernel.exit(me.pid),
            Deed::Reap(other) => kernel.reap(me.pid, other.get(&tree).pid),
        };
    }
    kernel.tree(ROOT)
}

/// Few numbers, so that they meet.
fn noise() -> impl Strategy<Value = Vec<Node>> {
    let signal = prop_oneof![4 => Just(SIGCHLD), 1 => Just(0), 1 => Just(99)];
    let numbers = (any::<Index>(), any::<Index>(), any::<Index>(), signal, prop::bool::weighted(0.1));
    prop::collection::vec(numbers, 0..12).prop_map(|all| {
        let node =
            |at: usize, (parent, group, session, exit_signal, zombie): &(Index, Index, Index, i32, bool)| {
                let pid = at as i32 + 1;
                let ppid = parent.index(at + 1) as i32;
                let sid = session.index(16) as i32;
                let pgid = if sid == pid { pid } else { [sid, pid, group.index(16) as i32][group.index(3)] };
                Node { pid, ppid, pgid, sid, exit_signal: *exit_signal, zombie: *zombie, ..NOBODY }
            };
        all.iter().enumerate().map(|(at, numbers)| node(at, numbers)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(500), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tame_histories_are_repeated(history in history()) {
        let nodes = live(&history, true);
        let plan = made(&nodes);
        prop_assert_eq!(count(&plan, |s| matches!(s, Step::Fork { .. })), nodes.len() + plan.ghosts.len());
    }

    #[test]
    fn histories_of_a_namespace_are_repeated_in_another(history in history()) {
        made_with(&live_in(&history, true, true), &APART);
    }

    #[test]
    fn wild_histories_are_repeated_apart_or_refused(history in history()) {
        let nodes = live(&history, false);
        match super::plan(&nodes, &APART) {
            Ok(plan) => run(&nodes, &plan, true).map_err(TestCaseError::fail)?,
            Err(e) => prop_assert_eq!(e.kind, ErrorKind::Unsupported, "{}", e),
        }
    }

    #[test]
    fn wild_histories_are_repeated_or_refused(history in history()) {
        let nodes = live(&history, false);
        match plan(&nodes) {
            Ok(plan) => run(&nodes, &plan, false).map_err(TestCaseError::fail)?,
            Err(e) => prop_assert_eq!(e.kind, ErrorKind::Unsupported, "{}", e),
        }
    }

    #[test]
    fn whatever_is_planned_can_be_done(nodes in noise()) {
        if let Ok(plan) = plan(&nodes) {
            run(&nodes, &plan, false).map_err(TestCaseError::fail)?;
        }
    }
}

const fn fork(maker: usize, task: usize) -> Step {
    Fork { maker: Some(maker), task, sibling: false }
}

const fn clone_parent(maker: usize, task: usize) -> Step {
    Fork { maker: Some(maker), task, sibling: true }
}

/// The coordinator makes it.
const fn spawn(task: usize) -> Step {
    Fork { maker: None, task, sibling: false }
}

const fn exit(ghost: usize, parent: usize) -> Step {
    Exit { ghost, parent: Some(parent) }
}

fn signalling(exit_signal: i32, node: Node) -> Node {
    Node { exit_signal, ..node }
}

/// In the shapes, session 5 and group 6 are outside.
const ROOT_OUTSIDE: Node = Node { pid: ROOT, ppid: 1, pgid: 6, sid: 5, exit_signal: SIGCHLD, ..NOBODY };

fn steps(nodes: &[Node]) -> Vec<Step> {
    made(nodes).steps
}

#[test]
fn a_plain_tree_is_forks_alone() {
    let nodes = [ROOT_OUTSIDE, node(11, 10, 6, 5), node(12, 11, 6, 5), node(13, 10, 6, 5)];
    assert_eq!(steps(&nodes), [spawn(0), fork(0, 1), fork(1, 2), fork(0, 3)]);
}

#[test]
fn a_group_is_inherited_where_possible() {
    let nodes =
        [ROOT_OUTSIDE, node(11, 10, 12, 5), node(12, 10, 12, 5), node(13, 11, 6, 5), node(14, 11, 12, 5)];
    let wanted = [
        spawn(0),
        fork(0, 1),
        fork(1, 3),
        fork(0, 2),
        Setpgid(2, Group::Own),
        Setpgid(1, Group::Of(2)),
        fork(1, 4),
    ];
    assert_eq!(steps(&nodes), wanted);
}

#[test]
fn children_of_the_old_session_come_before_setsid() {
    let nodes = [ROOT_OUTSIDE, node(11, 10, 11, 11), node(12, 11, 11, 11), node(13, 11, 6, 5)];
    assert_eq!(steps(&nodes), [spawn(0), fork(0, 1), fork(1, 3), Setsid(1), fork(1, 2)]);
}

#[test]
fn old_sessions_are_handed_down() {
    // Both leaders must be born in the root's session for the sake of the last process.
    let nodes = [ROOT_OUTSIDE, node(11, 10, 11, 11), node(12, 11, 12, 12), node(13, 12, 6, 5)];
    assert_eq!(steps(&nodes), [spawn(0), fork(0, 1), fork(1, 2), Setsid(1), fork(2, 3), Setsid(2)]);
}

#[test]
fn a_dead_session_leader_is_a_ghost() {
    let nodes = [ROOT_OUTSIDE, node(12, 10, 11, 11), node(13, 10, 13, 11), node(14, 12, 11, 11)];
    let plan = made(&nodes);
    assert_eq!(plan.ghosts, [Ghost { pid: Some(11), exit_signal: SIGCHLD, pidns: 0 }]);
    let wanted = [
        spawn(0),
        fork(0, 4),
        Setsid(4),
        clone_parent(4, 1),
        fork(1, 3),
        clone_parent(4, 2),
        exit(4, 0),
        Setpgid(2, Group::Own),
    ];
    assert_eq!(plan.steps, wanted);
}

#[test]
fn a_dead_group_leader_is_a_ghost() {
    let nodes = [ROOT_OUTSIDE, node(12, 10, 11, 5), node(13, 12, 11, 5), node(14, 10, 11, 5)];
    let plan = made(&nodes);
    assert_eq!(plan.ghosts, [Ghost { pid: Some(11), exit_signal: 0, pidns: 0 }]);
    let joined = count(&plan, |s| matches!(s, Setpgid(_, Group::Of(4))));
    assert_eq!((plan.steps.len(), joined), (4 + 3 + 2, 2));
}

#[test]
fn a_dead_session_and_a_dead_group_in_it_are_two_ghosts() {
    let plan = made(&[ROOT_OUTSIDE, node(13, 10, 12, 11), node(14, 10, 12, 11)]);
    let pids: Vec<Option<i32>> = plan.ghosts.iter().map(|ghost| ghost.pid).collect();
    assert_eq!(pids, [Some(11), Some(12)]);
}

#[test]
fn an_orphan_is_a_sibling_of_its_leader() {
    let nodes = [ROOT_OUTSIDE, node(11, 10, 11, 11), node(12, 10, 11, 11)];
    assert_eq!(steps(&nodes), [spawn(0), fork(0, 1), Setsid(1), clone_parent(1, 2)]);
}

#[test]
fn an_orphan_is_adopted_when_its_leader_is_deeper() {
    let nodes = [ROOT_OUTSIDE, node(11, 10, 6, 5), node(12, 11, 12, 12), node(13, 10, 12, 12)];
    let wanted = [
        spawn(0),
        fork(0, 1),
        fork(1, 2),
        Setsid(2),
        fork(2, 4),
        fork(4, 3),
        Subreaper(0, true),
        exit(4, 2),
        Subreaper(0, false),
    ];
    assert_eq!(steps(&nodes), wanted);
    let [root, middle, leader, orphan] = nodes;
    let (kind, text) = refusal(&[root, middle, leader, signalling(0, orphan)]);
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(text.starts_with("pid 13: "), "{text}");
}

#[test]
fn a_ghost_has_the_exit_signal_of_those_it_makes() {
    let loud = signalling(libc::SIGUSR1, node(12, 10, 11, 11));
    let plan = made(&[ROOT_OUTSIDE, loud, node(13, 10, 11, 11)]);
    let signals: Vec<i32> = plan.ghosts.iter().map(|ghost| ghost.exit_signal).collect();
    assert_eq!(signals, [libc::SIGUSR1, 0], "one makes a sibling, the other an orphan");
}

#[test]
fn a_ghost_is_above_a_leader_born_in_its_session() {
    // Neither child can be an orphan nor can both be siblings of one ghost: the root was there.
    let root = node(ROOT, 1, 10, 10);
    let nodes = [root, signalling(0, node(12, 10, 9, 9)), signalling(12, node(13, 10, 9, 9))];
    let wanted = [
        spawn(3),
        Setsid(3),
        clone_parent(3, 0),
        fork(0, 1),
        fork(0, 2),
        Setsid(0),
        Exit { ghost: 3, parent: None },
    ];
    let plan = made(&nodes);
    assert_eq!(plan.steps.len(), wanted.len());
    assert!(wanted.iter().all(|step| plan.steps.contains(step)), "{plan:#?}");
}

#[test]
fn a_zombie_leads_like_the_living() {
    let zombie = Node { zombie: true, ..node(11, 10, 11, 11) };
    let nodes = [ROOT_OUTSIDE, zombie, node(12, 10, 11, 11)];
    assert_eq!(steps(&nodes), [spawn(0), fork(0, 1), Setsid(1), clone_parent(1, 2)]);
}

#[test]
fn leaders_may_have_swapped_groups() {
    made(&[ROOT_OUTSIDE, node(11, 10, 12, 5), node(12, 10, 11, 5)]);
}

#[test]
fn the_outside_group_is_joined_again() {
    // 12 could not be made before 11 left the outside group: 11 is born in that of its parent.
    let nodes = [ROOT_OUTSIDE, node(11, 10, 11, 5), node(12, 11, 11, 5), node(13, 12, 6, 5)];
    let plan = made(&nodes);
    assert_eq!(count(&plan, |s| *s == Setpgid(3, Group::Restarter)), 1);
}

#[test]
fn apart_the_outside_group_is_not_left_too_early() {
    let nodes = [ROOT_OUTSIDE, node(11, 10, 11, 5), node(12, 11, 11, 5), node(13, 12, 6, 5)];
    let wanted =
        [spawn(0), fork(0, 1), fork(1, 2), Setpgid(1, Group::Own), fork(2, 3), Setpgid(2, Group::Of(1))];
    assert_eq!(made_with(&nodes, &APART).steps, wanted);
    // One that left and came back was not made in it.
    let lost = [ROOT_OUTSIDE, node(11, 10, 11, 11), node(12, 10, 12, 11), node(13, 12, 6, 5)];
    assert_eq!(super::plan(&lost, &APART).unwrap_err().kind, ErrorKind::Unsupported);
}

#[test]
fn the_bound_are_born_in_their_group() {
    // 12 is process 1 of a namespace; it and 14 are in the group of 11, which 13 has left.
    let inner = |node: Node, init| Node { pidns: 1, init, bound: node.pgid == 11, ..node };
    let nodes = [
        ROOT_OUTSIDE,
        node(11, 10, 11, 5),
        inner(node(12, 11, 11, 5), true),
        inner(node(13, 12, 13, 5), false),
        inner(node(14, 13, 11, 5), false),
    ];
    let wanted = [
        spawn(0),
        fork(0, 1),
        Setpgid(1, Group::Own),
        fork(1, 2),
        fork(2, 3),
        fork(3, 4),
        Setpgid(3, Group::Own),
    ];
    assert_eq!(steps(&nodes), wanted);
}

#[test]
fn process_1_comes_before_the_rest_of_its_namespace() {
    let inner = |node: Node, init| Node { pidns: 1, init, ..node };
    let nodes = [ROOT_OUTSIDE, inner(node(11, 10, 6, 5), false), inner(node(12, 10, 6, 5), true)];
    assert_eq!(steps(&nodes), [spawn(0), fork(0, 2), fork(0, 1)]);
}

#[test]
fn outside_numbers_may_be_zero() {
    let root = node(ROOT, 0, 0, 0);
    assert_eq!(steps(&[root, node(11, 10, 0, 0)]), [spawn(0), fork(0, 1)]);
    let moved = node(ROOT, 0, 10, 0);
    assert_eq!(steps(&[moved, node(11, 10, 0, 0)]), [spawn(0), fork(0, 1), Setpgid(0, Group::Own)]);
    let (kind, text) = refusal(&[node(ROOT, 0, 10, 10), node(11, 10, 0, 0)]);
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(text.contains("pid 11"), "{text}");
}

#[test]
fn nobody_is_born_in_two_sessions() {
    // 11 cannot have been in both sessions of its children, which began elsewhere.
    let leader = node(12, 10, 12, 12);
    let nodes = [ROOT_OUTSIDE, leader, node(11, 10, 11, 11), node(13, 11, 12, 12), node(14, 11, 6, 5)];
    assert_eq!(refusal(&nodes).0, ErrorKind::Unsupported);
}

#[test]
fn impossible_numbers_are_a_bad_image() {
    let images: &[&[Node]] = &[
        &[],
        &[node(0, 1, 6, 5)],
        &[node(10, 1, -1, 5)],
        &[signalling(65, ROOT_OUTSIDE)],
        &[ROOT_OUTSIDE, node(10, 10, 6, 5)],
        &[ROOT_OUTSIDE, node(11, 12, 6, 5), node(12, 10, 6, 5)],
        &[ROOT_OUTSIDE, node(11, 11, 6, 5)],
        &[Node { zombie: true, ..ROOT_OUTSIDE }, node(11, 10, 6, 5)],
        &[ROOT_OUTSIDE, node(11, 10, 6, 11)],
        &[ROOT_OUTSIDE, node(11, 10, 6, 10)],
        &[ROOT_OUTSIDE, node(11, 10, 11, 11), node(12, 10, 11, 5)],
        &[ROOT_OUTSIDE, node(12, 10, 11, 11), node(13, 10, 11, 5)],
    ];
    for nodes in images {
        assert_eq!(refusal(nodes).0, ErrorKind::BadImage, "{nodes:?}");
    }
}

/// A root and `count` others made by a function of their pid.
fn many(count: i32, other: impl Fn(i32) -> Node) -> Vec<Node> {
    [ROOT_OUTSIDE].into_iter().chain((ROOT + 1..=ROOT + count).map(other)).collect()
}

#[test]
fn ten_thousand_processes_take_no_time() {
    const COUNT: i32 = 10_000;
    let far = |pid: i32| pid + 2 * COUNT;
    let above = |pid: i32| if pid == ROOT + 1 { 5 } else { pid - 1 };
    let shapes: [(&str, Vec<Node>); 6] = [
        ("chain", many(COUNT, |pid| node(pid, pid - 1, 6, 5))),
        ("star", many(COUNT, |pid| node(pid, ROOT, 6, 5))),
        ("chain of leaders", many(COUNT, |pid| node(pid, pid - 1, pid, pid))),
        ("star of dead sessions", many(COUNT, |pid| node(pid, ROOT, far(pid), far(pid)))),
        ("chain of dead sessions", many(COUNT, |pid| node(pid, pid - 1, far(pid), far(pid)))),
        ("chain of groups", many(COUNT, |pid| node(pid, pid - 1, above(pid).max(6), 5))),
    ];
    for (shape, nodes) in shapes {
        let begin = std::time::Instant::now();
        let plan = plan(&nodes).unwrap();
        assert!(begin.elapsed().as_millis() < 2000, "{shape}: {:?}", begin.elapsed());
        run(&nodes, &plan, false).unwrap_or_else(|e| panic!("{shape}: {e}"));
    }
}
