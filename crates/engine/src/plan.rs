use crate::error::Result;
pub(crate) struct Node {
    pub pid: i32,
    pub ppid: i32,
    pub pgid: i32,
    pub sid: i32,
    pub exit_signal: i32,
    pub zombie: bool,
}
pub(crate) type TaskIndex = usize;
pub(crate) struct Ghost {
    pub pid: Option<i32>,
    pub exit_signal: i32,
}
pub(crate) enum Group {
    Own,
    Of(TaskIndex),
    Restarter,
}
pub(crate) enum Step {
    Fork { maker: Option<TaskIndex>, task: TaskIndex, sibling: bool },
    Setsid(TaskIndex),
    Setpgid(TaskIndex, Group),
    Subreaper(TaskIndex, bool),
    Exit { ghost: TaskIndex, parent: Option<TaskIndex> },
}
pub(crate) struct Plan {
    pub ghosts: Vec<Ghost>,
    pub steps: Vec<Step>,
}
pub(crate) fn plan(nodes: &[Node]) -> Result<Plan> {
    let by: std::collections::BTreeMap<i32, usize> = nodes.iter().map(|n| n.pid).zip(0..).collect();
    let mut steps = Vec::new();
    for (task, n) in nodes.iter().enumerate() {
        steps.push(Step::Fork {
            maker: if task == 0 { None } else { by.get(&n.ppid).copied() },
            task,
            sibling: false,
        });
        if n.sid == n.pid {
            steps.push(Step::Setsid(task));
        } else if n.pgid == n.pid {
            steps.push(Step::Setpgid(task, Group::Own));
        }
    }
    Ok(Plan { ghosts: Vec::new(), steps })
}
