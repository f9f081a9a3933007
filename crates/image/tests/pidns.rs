//! The rules for pid namespaces below that of the tree's root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod common;

use ckpt_image::model::{Image, Process};
use ckpt_image::record::{PidLevel, Task, children_pidns, task_state};
use common::*;

fn level(pidns: u32, tid: i32) -> PidLevel {
    PidLevel { pidns, tid, pgid: 0, sid: 0 }
}

/// The sample: 100 with two threads, 200 that is process 1 of namespace 1, and a zombie; and 400, which
/// is like 200 but for its ids.
fn tree(change: impl FnOnce(&mut [Process])) -> Result<(), String> {
    let mut image: Image = sample();
    let mut another = image.processes[1].clone();
    another.task = Task { pid: 400, ..another.task };
    another.threads[0].record.tid = 400;
    another.threads[0].levels = vec![level(1, 2)];
    image.processes.push(another);
    (image.tree.nr_tasks, image.tree.nr_threads) = (4, 4);
    change(&mut image.processes);
    image.check().map_err(|fault| fault.to_string())
}

fn refused(text: &str, change: impl FnOnce(&mut [Process])) {
    assert_eq!(tree(change).unwrap_err(), text);
}

#[test]
fn rules() {
    tree(|_| {}).unwrap();
    tree(|p| p[3].threads[0].levels = vec![level(1, 2), level(7, 1)]).unwrap();
    tree(|p| p[1].task.children_pidns = children_pidns::NEW).unwrap();
    tree(|p| {
        p[3].threads[0].levels = vec![level(7, 1)];
        p[3].task.children_pidns = children_pidns::NEW;
    })
    .unwrap();
    refused("process 400: a pid namespace without process 1", |p| p[3].threads[0].levels = vec![level(7, 2)]);
    refused("process 400: its id in a pid namespace is taken", |p| p[3].threads[0].levels[0].tid = 1);
    refused("process 400: an id in a pid namespace is none", |p| p[3].threads[0].levels[0].tid = 0);
    refused("process 400: an id in a pid namespace is none", |p| p[3].threads[0].levels[0].pgid = -1);
    for number in [children_pidns::OWN, children_pidns::NEW] {
        refused("process 400: a pid namespace without a number", |p| {
            p[3].threads[0].levels[0].pidns = number;
        });
    }
    refused("process 400: a pid namespace is in two others", |p| {
        p[3].threads[0].levels = vec![level(7, 1), level(1, 2)];
    });
    refused("process 400: it is in too many pid namespaces", |p| {
        p[3].threads[0].levels = (10..43).map(|pidns| level(pidns, 1)).collect();
    });
    refused("process 100: its threads are in different pid namespaces", |p| {
        p[0].threads[1].levels = vec![level(1, 3)];
    });
    refused("process 100: its threads are in different pid namespaces", |p| {
        p[0].threads[0].levels = vec![level(1, 3)];
        p[0].threads[1].levels = vec![PidLevel { sid: 5, ..level(1, 4) }];
    });
}

#[test]
fn ends() {
    let end = |process: &mut Process, exit_code| {
        (process.task.state, process.task.exit_code) = (task_state::ZOMBIE, exit_code);
        process.threads[0].record.exit_code = 0;
    };
    refused("process 200: process 1 of its pid namespace has ended", |p| end(&mut p[1], 256));
    let alone = |exit_code| {
        tree(|p| {
            p[3].threads[0].levels.clear();
            end(&mut p[1], exit_code);
        })
    };
    alone(256).unwrap();
    alone(9).unwrap();
    assert_eq!(alone(15).unwrap_err(), "process 200: process 1 has ended as it cannot");
}

#[test]
fn children() {
    let elsewhere = "its children are in a pid namespace that is not below its own";
    refused(&format!("process 200: {elsewhere}"), |p| p[1].task.children_pidns = 1);
    refused(&format!("process 200: {elsewhere}"), |p| p[1].task.children_pidns = 8);
    refused("process 100: it has threads, and its children are in another pid namespace", |p| {
        p[0].task.children_pidns = 1;
    });
    refused("process 300: it has threads, and its children are in another pid namespace", |p| {
        p[2].task.children_pidns = children_pidns::NEW;
    });
}
