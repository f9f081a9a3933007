//! `checkpoint`.

use std::{io::IsTerminal, os::unix::ffi::OsStringExt};

use ckpt_engine::{After, CheckpointOptions, CheckpointReport, Embed, Holder, Leak, Output, Policy, Scope};
use serde_json::{Value, json};

use crate::{
    args::CheckpointArgs,
    console::{Console, millis, uuid},
    failure::{Failure, Outcome},
    fds, log,
    progress::Progress,
    signals::Cancel,
    text,
};

/// Does what the arguments ask.
pub(crate) fn run(args: CheckpointArgs, console: &Console) -> Outcome {
    let output = output(&args)?;
    log::start(&args.log)?;
    let after = match (args.kill, args.stop) {
        (true, _) => After::Kill,
        (_, true) => After::Stop,
        _ => After::Resume,
    };
    let cancel = Cancel::new()?;
    let mut progress = Progress::new(console, cancel.flag());
    let options = CheckpointOptions {
        pid: args.pid,
        after,
        scope: if args.container { Scope::Container } else { Scope::Subtree },
        report_shared: args.log.verbose > 0,
        external: args.external,
        ghost_limit: args.ghost_limit,
        embed: match args.embed_files {
            None => Embed::None,
            Some(None) => Embed::Open,
            Some(Some(pattern)) => Embed::Matching(pattern.into_vec()),
        },
        policy: Policy::Permissive,
        freezer: None,
        publish_early: false,
    };
    let done = ckpt_engine::checkpoint(&options, output, &mut progress);
    let warnings = progress.end();
    let report = done.map_err(|error| cancel.explain(error))?;
    tracing::info!("{}", words(&report));
    console.report(&json(&report, &warnings))?;
    Ok(0)
}

/// Where the image goes.
fn output(args: &CheckpointArgs) -> Outcome<Output> {
    let (what, fd) = match (&args.output, args.output_fd) {
        _ if args.to_stdout() => ("stdout".to_owned(), fds::ours("stdout", 1)?),
        (_, Some(number)) => (format!("--output-fd {number}"), fds::ours("--output-fd", number)?),
        (Some(path), None) => return Ok(Output::File { path: path.clone(), overwrite: args.force }),
        (None, None) => return Err(Failure::usage("no output")),
    };
    if args.force {
        return Err(Failure::usage("--force is about a file that exists: it needs --output FILE"));
    }
    if fd.is_terminal() {
        return Err(Failure::usage(format!(
            "{what} is a terminal and an image is not text; give -o FILE or pipe it on"
        )));
    }
    Ok(Output::Fd(fd))
}

/// The report in one line.
fn words(report: &CheckpointReport) -> String {
    let files = |(files, bytes): (usize, u64), what: &str| match files {
        0 => String::new(),
        n => format!("; {} in {}", text::bytes(bytes), text::count(n as u64, what)),
    };
    let files = files(report.unlinked, "unlinked file") + &files(report.embedded, "embedded file");
    format!(
        "pid {} ({}): {}, {}; image {} of {}, {} of page contents{files}; stood still {}, took {}",
        report.pid,
        text::name(&report.comm),
        text::count(report.processes as u64, "process"),
        text::count(report.threads as u64, "thread"),
        uuid(&report.id),
        text::bytes(report.image_bytes),
        text::bytes(report.page_bytes),
        text::span(report.frozen),
        text::span(report.total),
    )
}

/// The report as JSON.
fn json(report: &CheckpointReport, warnings: &[String]) -> Value {
    let mut value = json!({"checkpoint": {
        "id": uuid(&report.id),
        "pid": report.pid,
        "comm": text::name(&report.comm),
        "processes": report.processes,
        "threads": report.threads,
        "page_bytes": report.page_bytes,
        "image_bytes": report.image_bytes,
        "unlinked_files": report.unlinked.0,
        "unlinked_bytes": report.unlinked.1,
        "embedded_files": report.embedded.0,
        "embedded_bytes": report.embedded.1,
        "frozen_ms": millis(report.frozen),
        "total_ms": millis(report.total),
        "warnings": warnings,
    }});
    if let (Some(leaks), Some(report)) = (&report.shared_outside, value.get_mut("checkpoint")) {
        report["shared_outside"] = leaks.iter().map(leak).collect();
    }
    value
}

/// Something shared with the outside as JSON.
fn leak(leak: &Leak) -> Value {
    let holder = |h: &Holder| json!({"pid": h.pid, "comm": text::name(&h.comm), "place": h.place});
    json!({"what": leak.what, "inside": holder(&leak.inside), "outside": holder(&leak.outside)})
}
