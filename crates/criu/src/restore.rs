//! `criu restore`: the engine's restart, as container engines ask for it.
//!
//! In the foreground it waits for the root and passes signals on to it; how that ends does not matter then. Detached, the
//! tasks become children of whoever adopts orphans here; as siblings, of whoever started us, who is to wait for
//! them. A file for the pid of the root is made when all is restored, and is gone again if nothing comes of it.
//!
//! As a sibling the root is the child of our parent from the first moment. When a restore fails later than that, it is
//! killed, and our parent sees it: a SIGCHLD, and a child to wait for that was killed by SIGKILL. No system call can
//! take that back.
//!
//! No image of ours has a TCP connection, so `--tcp-established`, `--tcp-close` and `--skip-in-flight` have nothing to do.

use crate::{
    dump::{IMAGE, check_cgroups, check_directories},
    external,
    failure::{Failure, Outcome, told},
    log::Log,
    options::Options,
    ready::{PidFile, Ready, our_fd},
    scripts::Scripts,
    stats,
    watch::{Deadline, Hook, Watch},
};
use ckpt_engine::{Input, Pids, RestartOptions, RestartReport, Stage};
use ckpt_foreground::{Cancel, Passing};

/// Makes the tree of the image in `options.images_dir`.
pub fn run(options: &Options, log: &Log) -> Outcome {
    run_with(options, log, Vec::new()).map(drop)
}

/// The same; `hooks` have a say at each stage, after the action scripts. In the foreground the tree has ended when this
/// returns.
pub fn run_with(options: &Options, log: &Log, hooks: Vec<Box<dyn Hook>>) -> Outcome<RestartReport> {
    check(options)?;
    check_directories(options)?;
    let mut inherit = Vec::new();
    for given in &options.inherit_fd {
        inherit.push((external::place(&given.name), our_fd("--inherit-fd", given.fd)?));
    }
    let pidfile = options.pidfile.as_deref().map(|path| options.in_work_dir(path));
    let pidfile = pidfile.map(PidFile::new).transpose()?;
    let status = options.status_fd.map(|fd| our_fd("--status-fd", fd)).transpose()?;
    let mut all: Vec<Box<dyn Hook>> = Vec::new();
    all.extend(pidfile.clone().map(|file| Box::new(file) as Box<dyn Hook>));
    let scripts = Scripts::new(&options.action_scripts, &options.images_dir);
    all.extend(scripts.map(|scripts| Box::new(scripts) as Box<dyn Hook>));
    all.extend(hooks);
    all.push(Box::new(Ready { fd: status, stage: Stage::PostResume }));
    let restart = RestartOptions {
        pids: Pids::Original,
        root: options.root.clone(),
        inherit,
        stopped: options.leave_stopped,
        sibling: options.restore_sibling,
        stands_in: !options.restore_detached,
        ..RestartOptions::default()
    };
    let image = options.images_dir.join(IMAGE);
    if let Err(cause) = std::fs::metadata(&image) {
        let missing = told(image.display().to_string(), cause);
        let text = format!("{missing}; --images-dir is to be the directory of a dump by this criu");
        return Err(Failure::failed("restore", text));
    }
    log.info(format!("Restoring from {}", image.display()));
    let mut passing = if options.restore_detached { None } else { Some(Passing::new()?) };
    let mut report = {
        let cancel = Cancel::new()?;
        let timeout = Some(options.timeout).filter(|timeout| !timeout.is_zero());
        let deadline = Deadline { timeout, from: Stage::PreRestore, until: Stage::SetupNamespaces };
        let mut watch = Watch::new(log, all, cancel.flag(), deadline);
        let done = ckpt_engine::restart(restart, Input::File(image), &mut watch);
        let report = done.inspect_err(|_| pidfile.iter().for_each(PidFile::remove))?;
        let text = format!(
            "Restored: {} processes, {} threads, {} bytes of pages, root pid {}",
            report.processes,
            report.threads,
            report.page_bytes,
            report.root.pid()
        );
        log.info(text);
        // The tasks run: that nobody can read about it is no failure of theirs.
        if let Err(failure) = stats::write_restore(options.work_dir(), statistics(&report, &watch)) {
            log.warn(failure.place(), failure.to_string());
        }
        report
    };
    log.info("Restore finished successfully. Tasks resumed.");
    if let Some(passing) = &mut passing {
        let status = ckpt_foreground::wait(&mut report, passing, None)?;
        if let Some(terminal) = report.terminal.take() {
            terminal.end(status.code().is_some());
        }
        log.info(format!("pid {}: {status}", report.root.pid()));
    } else {
        ckpt_foreground::leave(&report);
    }
    Ok(report)
}

/// Refuses what cannot be done.
fn check(options: &Options) -> Outcome {
    let refused = |text: &str| Err(Failure::options(text));
    if options.restore_sibling && !options.restore_detached {
        return refused(
            "--restore-sibling: a child of another can only be left to it: give --restore-detached, too",
        );
    }
    if options.empty_net_ns {
        return refused("--empty-ns net: network namespaces are not supported yet");
    }
    if !options.join_ns.is_empty() {
        return refused("--join-ns: not supported yet");
    }
    if !options.cgroup_root.is_empty() {
        return refused("--cgroup-root: cgroups are not managed yet");
    }
    check_cgroups(options)?;
    external::check_restore(options)
}

fn statistics(report: &RestartReport, watch: &Watch<'_>) -> stats::RestoreStats {
    const PAGE: u64 = 4096;
    stats::RestoreStats {
        forking_time: stats::micros(watch.made()),
        restore_time: stats::micros(report.total),
        pages_restored: Some(report.page_bytes / PAGE),
        ..stats::RestoreStats::default()
    }
}
