//! `ckpt`: checkpoint and restart of running programs.
//!
//! One binary, five names: called as `checkpoint`, `restart` or `ckptinfo` (links to it) it is that
//! command; as `criu` it has CRIU's command line; as anything else it is `ckpt`, which has them as subcommands. Arguments are parsed
//! without acting ([`args`]), then acted on by one module per command.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod args;
mod bench;
mod checkpoint;
mod console;
mod demo;
mod docs;
mod failure;
mod fds;
mod info;
mod log;
mod progress;
mod restart;
mod run;
mod signals;
mod text;

use std::process::ExitCode;

use args::Command;
use console::Console;

fn main() -> ExitCode {
    ckpt_engine::hear_of_children();
    let words: Vec<_> = std::env::args_os().collect();
    if let Some(words) = args::criu(&words) {
        return ExitCode::from(ckpt_criu::main(&words));
    }
    let command = match args::parse(words) {
        Ok(command) => command,
        Err(refusal) => return ExitCode::from(refusal.tell()),
    };
    let console = Console::for_command(&command);
    let done = match command {
        Command::Checkpoint(args) => checkpoint::run(args, &console),
        Command::Restart(args) => restart::run(args, &console),
        Command::Info(args) => info::run(&args, &console),
        Command::Demo(args) => demo::run(&args, &console),
        Command::Bench(args) => bench::run(&args, &console),
        Command::BenchTarget(args) => bench::target::run(&args),
        Command::Completions { shell } => docs::completions(shell),
        Command::Man { dir } => docs::man(dir.as_deref()),
    };
    ExitCode::from(match done {
        Ok(code) => code,
        Err(failure) => console.fail(&failure),
    })
}
