//! The end-to-end suite. `cargo test --workspace` runs it; `cargo test --test e2e -- NAME` a part of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

mod bad_image;
mod common;
mod criu;
mod criu_cli;
mod criu_outside;
mod edits;
mod errors;
mod failures;
mod files;
mod frozen;
mod info;
mod kernel_files;
mod leaks;
mod ordinary_user;
mod otherwise;
mod outside;
mod pidns;
mod races;
mod rights;
mod sockets;
mod sweep;
mod terminal;
mod tree;
mod waiting;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock};

use ckpt_tests::context::Context;
use ckpt_tests::fixture::Fixture;
use ckpt_tests::runner::{self, Variant};
use ckpt_tests::target::left_behind;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // Two at a time: the machine has two cores, and several tests measure time.
    args.test_threads = args.test_threads.or(Some(2));
    // Tasks brought back by `restart -W` become our children when it ends, so that we can wait for them.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("subreaper");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fixtures");
    let ctx = Arc::new(Context::new(&cache).expect("set up"));
    let mut trials = fixture_trials(&ctx);
    if ctx.ckpt.is_some() {
        for (area, tests) in SPECIAL {
            trials.extend(tests.iter().map(|test| special_trial(&ctx, area, *test)));
        }
    }
    trials.sort_by(|a, b| a.name().cmp(b.name()));
    let conclusion = libtest_mimic::run(&args, trials);
    ctx.ledger.print();
    let left = left_behind();
    if !left.is_empty() {
        println!("FAILED: processes left behind: {left:?}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

const SPECIAL: &[(&str, &[common::Test])] = &[
    ("bad_image", bad_image::TESTS),
    ("criu", criu::TESTS),
    ("criu_cli", criu_cli::TESTS),
    ("criu_outside", criu_outside::TESTS),
    ("edits", edits::TESTS),
    ("errors", errors::TESTS),
    ("failures", failures::TESTS),
    ("files", files::TESTS),
    ("frozen", frozen::TESTS),
    ("info", info::TESTS),
    ("kernel_files", kernel_files::TESTS),
    ("leaks", leaks::TESTS),
    ("otherwise", otherwise::TESTS),
    ("outside", outside::TESTS),
    ("ordinary_user", ordinary_user::TESTS),
    ("pidns", pidns::TESTS),
    ("races", races::TESTS),
    ("rights", rights::TESTS),
    ("sockets", sockets::TESTS),
    ("sweep", sweep::TESTS),
    ("terminal", terminal::TESTS),
    ("tree", tree::TESTS),
    ("waiting", waiting::TESTS),
];

/// Trials that leave nothing of the machine to others: no other runs beside them.
const ALONE: &[&str] = &["tree::fork_bomb"];

/// Runs a trial beside others, or alone.
fn beside<T>(name: &str, run: impl FnOnce() -> T) -> T {
    static MACHINE: RwLock<()> = RwLock::new(());
    if ALONE.contains(&name) {
        let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
        run()
    } else {
        let _shared = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
        run()
    }
}

fn special_trial(ctx: &Arc<Context>, area: &str, (name, test): common::Test) -> Trial {
    let ctx = Arc::clone(ctx);
    let name = format!("{area}::{name}");
    Trial::test(name.clone(), move || {
        let result = beside(&name, || match test(&ctx) {
            Err(e) if runner::pid_was_taken(&e) => {
                ctx.ledger.retry(format!("{name}: {e:#}"));
                test(&ctx)
            }
            result => result,
        });
        result.map_err(|e| Failed::from(format!("{e:#}")))
    })
}

fn fixture_trials(ctx: &Arc<Context>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for fixture in Fixture::all(&ctx.fixtures).expect("fixtures") {
        let fixture = Arc::new(fixture);
        for variant in Variant::of(&fixture) {
            if ctx.ckpt.is_none() && *variant != Variant::Undisturbed {
                continue;
            }
            let (ctx, fixture) = (Arc::clone(ctx), Arc::clone(&fixture));
            let name = format!("{}::{}", fixture.name, variant.name());
            let trial = name.clone();
            let run = move || {
                let result = beside(&trial, || runner::run(&ctx, &fixture, *variant));
                result.map_err(|e| Failed::from(format!("{e:#}")))
            };
            trials.push(Trial::test(name, run).with_kind("fixture"));
        }
    }
    trials
}
