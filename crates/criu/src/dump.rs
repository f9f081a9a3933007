//! `criu dump`: the engine's checkpoint, as container engines ask for it.
//!
//! The image is one file, [`IMAGE`], in the directory of images. The tree is killed when it is complete, unless it is to
//! go on or to stay stopped. What cannot be carried is refused before the tree is touched. When anything fails, all of
//! it runs on, and there is no new image; an older one is still there, unless it was an action script for the stage
//! post-dump that failed: that sees the new one in its place.
//!
//! What some options come to with this engine: an unlinked file is always in the image, so `--link-remap` has nothing to
//! link; established TCP connections are refused, so `--network-lock`, `--skip-in-flight` and `--tcp-close` have
//! nothing to keep away, to drop or to close; `--root` is looked at by restore alone.

use crate::{
    external,
    failure::{Failure, Outcome},
    log::Log,
    options::{ExtUnix, ManageCgroups, Options},
    ready::{Ready, our_fd},
    scripts::Scripts,
    stats,
    watch::{Deadline, Hook, Watch},
};
use ckpt_engine::{After, Allowed, CheckpointOptions, CheckpointReport, Output, Policy, Stage};
use ckpt_foreground::Cancel;
use std::time::Duration;

/// The name of the image in its directory.
pub const IMAGE: &str = "checkpoint.img";

/// Dumps the tree below `options.tree`.
pub fn run(options: &Options, log: &Log) -> Outcome {
    run_with(options, log, Vec::new())
}

/// The same; `hooks` have a say at each stage, after the action scripts.
pub fn run_with(options: &Options, log: &Log, hooks: Vec<Box<dyn Hook>>) -> Outcome {
    let pid = options.tree.ok_or_else(|| Failure::options("dump: --tree PID is missing"))?;
    let after = match (options.leave_running, options.leave_stopped) {
        (true, true) => {
            return Err(Failure::options("--leave-running and --leave-stopped do not go together"));
        }
        (true, false) => After::Resume,
        (false, true) => After::Stop,
        (false, false) => After::Kill,
    };
    check(options)?;
    check_directories(options)?;
    let scripts = Scripts::new(&options.action_scripts, &options.images_dir);
    let publish_early = scripts.is_some() || !hooks.is_empty();
    let status = options.status_fd.map(|fd| our_fd("--status-fd", fd)).transpose()?;
    let mut all: Vec<Box<dyn Hook>> = Vec::new();
    all.extend(scripts.map(|scripts| Box::new(scripts) as Box<dyn Hook>));
    all.extend(hooks);
    all.push(Box::new(Ready { fd: status, stage: Stage::PostDump }));
    let checkpoint = CheckpointOptions {
        after,
        policy: Policy::Strict(allowed(options)),
        external: external::of_dump(options)?,
        ghost_limit: Some(options.ghost_limit),
        freezer: options.freeze_cgroup.clone(),
        publish_early,
        ..CheckpointOptions::new(pid)
    };
    let path = options.images_dir.join(IMAGE);
    log.info(format!("Dumping pid {pid} to {}", path.display()));
    let cancel = Cancel::new()?;
    let timeout = Some(options.timeout).filter(|timeout| !timeout.is_zero());
    let deadline = Deadline { timeout, from: Stage::PreDump, until: Stage::NetworkLock };
    let mut watch = Watch::new(log, all, cancel.flag(), deadline);
    let report = ckpt_engine::checkpoint(&checkpoint, Output::File { path, overwrite: true }, &mut watch)?;
    log.info(format!(
        "Dumped: {} processes, {} threads, {} bytes of pages, image of {} bytes, stood still {:?}",
        report.processes, report.threads, report.page_bytes, report.image_bytes, report.frozen
    ));
    // What was to become of the tree has come: that nobody can read about it does not undo that.
    if let Err(failure) = stats::write_dump(options.work_dir(), statistics(&report, watch.still())) {
        log.warn(failure.place(), failure.to_string());
    }
    log.info("Dumping finished successfully");
    Ok(())
}

/// What the tree may have to do with the outside.
fn allowed(options: &Options) -> Allowed {
    Allowed {
        shell_job: options.shell_job,
        ext_unix_sk: options.ext_unix_sk == ExtUnix::Any,
        // Neither option can be served.
        tcp_established: false,
        file_locks: options.file_locks,
    }
}

/// Refuses what cannot be done.
fn check(options: &Options) -> Outcome {
    check_cgroups(options)?;
    if options.empty_net_ns {
        return Err(Failure::options("--empty-ns net: network namespaces are not supported yet"));
    }
    if !options.join_ns.is_empty() {
        return Err(Failure::options("--join-ns: not an option of dump"));
    }
    Ok(())
}

/// Refuses to manage cgroups.
pub(crate) fn check_cgroups(options: &Options) -> Outcome {
    let mode = match options.manage_cgroups {
        ManageCgroups::Ignore => return Ok(()),
        // It would put the tasks into the cgroups they were in.
        ManageCgroups::None => "none",
        ManageCgroups::Props => "props",
        ManageCgroups::Soft => "soft",
        ManageCgroups::Full => "full",
        ManageCgroups::Strict => "strict",
    };
    let text = format!("--manage-cgroups={mode}: not supported yet; give --manage-cgroups=ignore");
    Err(Failure::options(text))
}

/// The directories must be there.
pub(crate) fn check_directories(options: &Options) -> Outcome {
    for (option, dir) in [("--images-dir", options.images_dir.as_path()), ("--work-dir", options.work_dir())]
    {
        let named = format!("{option} {}", dir.display());
        match std::fs::metadata(dir) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(Failure::options(format!("{named}: not a directory"))),
            Err(cause) => return Err(Failure::os("options", named, cause)),
        }
    }
    Ok(())
}

fn statistics(report: &CheckpointReport, freezing: Duration) -> stats::DumpStats {
    const PAGE: u64 = 4096;
    let pages = report.page_bytes / PAGE;
    stats::DumpStats {
        freezing_time: stats::micros(freezing),
        frozen_time: stats::micros(report.frozen),
        memdump_time: 0,
        memwrite_time: stats::micros(report.frozen),
        pages_scanned: pages,
        pages_written: pages,
        shpages_scanned: Some(0),
        shpages_written: Some(0),
        ..stats::DumpStats::default()
    }
}
