//! Completion scripts and man pages, made from the grammar.

use std::path::Path;

use crate::{
    args,
    console::data,
    failure::{Failure, Outcome},
};

/// Prints the completion script for `shell`.
pub(crate) fn completions(shell: clap_complete::Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::grammar(), "ckpt", &mut script);
    for name in ["checkpoint", "restart", "ckptinfo"] {
        clap_complete::generate(shell, &mut args::command_of(name), name, &mut script);
    }
    data(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

/// Prints ckpt's man page, or writes the pages of all commands into `dir`.
pub(crate) fn man(dir: Option<&Path>) -> Outcome {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(args::grammar()).render(&mut page);
        rendered.map_err(|cause| Failure::os("man page", cause))?;
        data(&String::from_utf8_lossy(&page))?;
        return Ok(0);
    };
    for name in ["ckpt", "checkpoint", "restart", "ckptinfo"] {
        let grammar = if name == "ckpt" { args::grammar() } else { args::command_of(name) };
        clap_mangen::generate_to(grammar, dir)
            .map_err(|cause| Failure::os(dir.display().to_string(), cause))?;
    }
    Ok(0)
}
