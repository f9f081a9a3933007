//! Restarts by one that is not as others are: the program is as it was, not as `restart` is. What nobody can take
//! back is said.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use ckpt_tests::context::Context;
use ckpt_tests::fixture::compile_c;
use ckpt_tests::tool::{Outcome, Run};
use ckpt_tests::tree::Tree;

use crate::common::{Program, Test, ensure};

pub(crate) const TESTS: &[Test] = &[("undone", undone), ("kept", kept)];

/// What `restart` may have about it that the program did not have.
const CHANGES: [&str; 11] = [
    "nice",
    "real-time",
    "slice",
    "io",
    "slack",
    "memory-errors",
    "thp",
    "personality",
    "securebits",
    "inheritable",
    "ambient",
];

/// The same that cannot be undone: what is said, and what is different then.
const FOR_GOOD: [(&str, &str, &str); 2] = [
    ("no_new_privs", "has no_new_privs now", "NoNewPrivs"),
    ("bounding", "lacks 0x10000 in its capability bounding set now", "CapBnd"),
];

/// A program that has been checkpointed, as it looked before.
struct Scene {
    program: Program,
    otherwise: PathBuf,
    image: PathBuf,
    before: Tree,
}

impl Scene {
    /// Of one that is started by `launcher`.
    fn new(ctx: &Context, launcher: &[&str]) -> Result<Scene> {
        let [otherwise, plain] =
            ["otherwise", "plain"].map(|name| compile_c(ctx, &ctx.helpers.join(format!("{name}.c")), &[]));
        let dir = tempfile::Builder::new().prefix("ckpt-special-").tempdir()?;
        // The build directory may be closed to its user.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
        let copies = ["otherwise", "plain"].map(|name| dir.path().join(name));
        for (binary, copy) in [otherwise?, plain?].iter().zip(&copies) {
            std::fs::copy(binary, copy)?;
        }
        let [otherwise, plain] = copies;
        let launcher = launcher.iter().map(|word| match *word {
            "otherwise" => otherwise.clone().into(),
            word => word.into(),
        });
        let argv: Vec<OsString> = launcher.chain([plain.into()]).collect();
        let mut program = Program::start_argv(&argv, dir, None)?;
        let before = Tree::of(program.target.pid())?;
        let image = program.save_and_kill(ctx)?;
        Ok(Scene { program, otherwise, image, before })
    }

    /// `restart -W` by one with this change; what of the program is different then. It is alive.
    fn restart(&mut self, ctx: &Context, change: &str) -> Result<(Outcome, Vec<String>)> {
        let mut command = Command::new(&self.otherwise);
        command.arg(change).arg(ctx.ckpt.as_ref().context("binary")?).args(["restart", "-W", "-i"]);
        let outcome = Run::new(command).arg(&self.image).finish()?;
        outcome.expect_code(0)?;
        self.program.adopt()?;
        let after = Tree::of(self.program.target.pid())?;
        Ok((outcome, self.before.differences(&after, false, Clone::clone)))
    }

    fn ends(&mut self) -> Result<()> {
        let ended = self.program.ends_with(7);
        std::fs::remove_file(self.program.path("go"))?;
        ended
    }
}

fn undone(ctx: &Context) -> Result<()> {
    // What is inheritable may be ambient.
    let mut scene = Scene::new(ctx, &["otherwise", "inheritable"])?;
    let mut wrong = Vec::new();
    for change in CHANGES {
        let (outcome, differences) = scene.restart(ctx, change).context(change)?;
        wrong.extend(differences.iter().map(|line| format!("{change}: {line}")));
        if !outcome.stderr.is_empty() {
            wrong.push(format!("{change}: it said {}", outcome.stderr.trim()));
        }
        if let Err(error) = scene.ends() {
            wrong.push(format!("{change}: {error:#}"));
        }
    }
    ensure(wrong.is_empty(), wrong.join("\n"))
}

fn kept(ctx: &Context) -> Result<()> {
    // Without capabilities, so that none of them is beyond what is given up.
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let mut scene = Scene::new(ctx, &nobody)?;
    for (change, words, different) in FOR_GOOD {
        let (outcome, differences) = scene.restart(ctx, change).context(change)?;
        let [line] = differences.as_slice() else { bail!("{change}: {differences:?}") };
        ensure(line.contains(different), format!("{change}: {line}"))?;
        let said = outcome.stderr.trim();
        let warned = said.starts_with("restart: warning: ") && said.contains(words);
        ensure(warned && said.lines().count() == 1, format!("{change}: it said {said}"))?;
        scene.ends().context(change)?;
    }
    Ok(())
}
