//! `restart`: recreates the program, then waits for it and stands in for it.

use std::{
    io::IsTerminal,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::ExitStatus,
};

use crate::{
    args::RestartArgs,
    console::{Console, data, millis, uuid},
    failure::{Failure, Outcome},
    fds, log,
    progress::Progress,
    signals::{self, Cancel, Passing},
    text,
};
use ckpt_engine::{Input, Pids, Place, RestartOptions, RestartReport};
use serde_json::{Value, json};

/// Does what the arguments ask.
pub(crate) fn run(args: RestartArgs, console: &Console) -> Outcome {
    let inherit = inherit(&args)?;
    let input = input(&args)?;
    log::start(&args.log)?;
    let mut passing = if args.no_wait { None } else { Some(Passing::new()?) };
    let options = RestartOptions {
        pids: match (args.new_pids, args.pidns) {
            (true, _) => Pids::New,
            (_, true) => Pids::Namespace,
            _ => Pids::Original,
        },
        root: args.root.clone(),
        mntns: args.mntns,
        inspect: args.inspect,
        force_files: args.force_files,
        truncate_files: args.truncate_files,
        map_files: args.map_file,
        force_cpu: args.force_cpu,
        freezer: args.freezer,
        stopped: false,
        sibling: false,
        stands_in: !args.no_wait,
        inherit,
    };
    let mut report = {
        let cancel = Cancel::new()?;
        let mut progress = Progress::new(console, cancel.flag());
        let done = ckpt_engine::restart(options, input, &mut progress);
        let warnings = progress.end();
        let report = done.map_err(|error| cancel.explain(error))?;
        tracing::info!("{}", words(&report));
        console.report(&json(&report, &warnings))?;
        report
    };
    let Some(passing) = &mut passing else {
        if !console.is_json() {
            data(&format!("{}\n", report.root.pid()))?;
        }
        ckpt_foreground::leave(&report);
        return Ok(0);
    };
    let end = End::of(ckpt_foreground::wait(&mut report, passing, args.signal)?);
    if let Some(terminal) = report.terminal.take() {
        terminal.end(end.exited.is_some());
    }
    let pid = report.root.pid();
    tracing::info!("pid {pid} {}", end.words());
    if args.show_status {
        console.say(&format!("pid {pid} ({}) {}", text::name(&report.comm), end.words()));
        console.report(
            &json!({"status": {"pid": pid, "exited": end.exited, "signal": end.signal, "core": end.core}}),
        )?;
    }
    Ok(if args.copy_status { end.exit_code() } else { 0 })
}

/// The descriptors of ours that external ones become.
fn inherit(args: &RestartArgs) -> Outcome<Vec<(Place, OwnedFd)>> {
    let image_fd = match (&args.input, args.input_fd) {
        (None, fd) => fd.or(Some(0)),
        (Some(path), _) if path.as_os_str() == "-" => Some(0),
        _ => None,
    };
    let mut inherit = Vec::new();
    for (place, mine) in &args.inherit_fd {
        let given = match place {
            Place::Number(task) => format!("{task}={mine}"),
            Place::Name(name) | Place::Link(name) => format!("{mine}:{}", text::name(name)),
            Place::Tty { rdev, dev } => format!("{mine}:tty[{rdev:x}:{dev:x}]"),
        };
        let mine = *mine;
        if Some(mine) == image_fd {
            return Err(Failure::usage(format!(
                "--inherit-fd {given}: descriptor {mine} is where the image comes from"
            )));
        }
        if inherit.iter().any(|(other, _)| other == place) {
            let which = given.split('=').next().unwrap_or_default();
            return Err(Failure::usage(format!("--inherit-fd {which}: given twice")));
        }
        inherit.push((place.clone(), fds::ours("--inherit-fd", mine)?));
    }
    Ok(inherit)
}

/// Where the image comes from. If that is stdin, the program must not read on from it: from here
/// on fd 0 is /dev/null.
fn input(args: &RestartArgs) -> Outcome<Input> {
    let (what, number) = match (&args.input, args.input_fd) {
        (Some(path), _) if path.as_os_str() != "-" => return Ok(Input::File(path.clone())),
        (_, Some(number)) => (format!("--input-fd {number}"), number),
        _ => ("stdin".to_owned(), 0),
    };
    let fd = fds::ours("--input-fd", number)?;
    if fd.is_terminal() {
        return Err(Failure::usage(format!("{what} is a terminal; give -i FILE or pipe an image in")));
    }
    if number == 0 {
        fds::empty_stdin()?;
    }
    Ok(Input::Fd(fd))
}

/// How the program ended.
struct End {
    exited: Option<i32>,
    signal: Option<i32>,
    core: bool,
}

impl End {
    fn of(status: ExitStatus) -> End {
        End { exited: status.code(), signal: status.signal(), core: status.core_dumped() }
    }

    fn words(&self) -> String {
        match (self.exited, self.signal) {
            (Some(code), _) => format!("exited with status {code}"),
            (_, Some(signal)) => {
                let core = if self.core { ", core dumped" } else { "" };
                format!("was killed by signal {signal} ({}){core}", signals::name(signal))
            }
            _ => "ended".to_owned(),
        }
    }

    /// The program's exit status, or 128+N.
    fn exit_code(&self) -> u8 {
        match (self.exited, self.signal) {
            (Some(code), _) => (code & 0xff) as u8,
            (_, Some(signal)) => 128u8.wrapping_add((signal & 0x7f) as u8),
            _ => 1,
        }
    }
}

/// The report in one line.
fn words(report: &RestartReport) -> String {
    format!(
        "pid {} ({}): {}, {} from image {}; {} of page contents; took {}",
        report.root.pid(),
        text::name(&report.comm),
        text::count(report.processes as u64, "process"),
        text::count(report.threads as u64, "thread"),
        uuid(&report.id),
        text::bytes(report.page_bytes),
        text::span(report.total),
    )
}

/// The report as JSON.
fn json(report: &RestartReport, warnings: &[String]) -> Value {
    json!({"restart": {
        "id": uuid(&report.id),
        "pid": report.root.pid(),
        "own_pid": report.root.own_pid(),
        "comm": text::name(&report.comm),
        "processes": report.processes,
        "threads": report.threads,
        "page_bytes": report.page_bytes,
        "total_ms": millis(report.total),
        "warnings": warnings,
    }})
}
