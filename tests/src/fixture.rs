//! Fixtures: found, compiled, run once undisturbed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, bail};

use crate::context::Context;
use crate::directives::Directives;

/// One case of one fixture file.
pub struct Fixture {
    pub name: String,
    pub path: PathBuf,
    pub directives: Directives,
    /// The output of an undisturbed run, made on first use.
    pub(crate) undisturbed: OnceLock<Result<Vec<u8>, String>>,
}

impl Fixture {
    /// All cases of all files in the fixture directory, in order of name.
    ///
    /// # Errors
    /// A file cannot be read or has a bad directive.
    pub fn all(dir: &Path) -> Result<Vec<Fixture>> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)?.flatten().map(|e| e.path()).collect();
        paths.sort();
        let mut fixtures = Vec::new();
        for path in paths {
            let kind = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
            if !["c", "py", "sh", "js", "run", "java"].contains(&kind) {
                continue;
            }
            let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&path)?;
            let stem = if kind == "c" { stem } else { format!("{stem}.{kind}") };
            for directives in Directives::parse(&text).with_context(|| path.display().to_string())? {
                let name =
                    directives.case.as_ref().map_or_else(|| stem.clone(), |case| format!("{stem}-{case}"));
                fixtures.push(Fixture { name, path: path.clone(), directives, undisturbed: OnceLock::new() });
            }
        }
        Ok(fixtures)
    }

    /// What is missing on this machine, if anything.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let lacks = |need: &&String| match need.as_str() {
            "root" => !rustix::process::geteuid().is_root(),
            program => find_program(program).is_none(),
        };
        self.directives.needs.iter().find(lacks).map(|need| format!("needs {need}"))
    }

    /// The command line, compiling first what has to be compiled.
    ///
    /// # Errors
    /// It does not compile, or an interpreter is missing.
    pub fn argv(&self, ctx: &Context) -> Result<Vec<OsString>> {
        let args = self.directives.args.iter().map(OsString::from);
        let file = self.path.clone().into_os_string();
        let program = |name: &str| {
            find_program(name).map(PathBuf::into_os_string).with_context(|| format!("no {name}"))
        };
        let mut argv = Vec::new();
        match self.path.extension().and_then(|e| e.to_str()) {
            Some("c") => {
                argv.push(compile_c(ctx, &self.path, &self.directives.cflags)?.into_os_string());
                argv.extend(args);
            }
            Some("py") => {
                argv.extend([python()?.clone(), "-B".into(), file]);
                argv.extend(args);
            }
            Some("sh") => {
                argv.extend([program("bash")?, file]);
                argv.extend(args);
            }
            Some("js") => {
                argv.extend([program("node")?, file]);
                argv.extend(args);
            }
            Some("run") => {
                let text = std::fs::read_to_string(&self.path)?;
                let line = text
                    .lines()
                    .find(|l| !l.starts_with('#') && !l.trim().is_empty())
                    .context("no command")?;
                let mut words = line.split_whitespace();
                argv.push(program(words.next().context("no command")?)?);
                argv.extend(words.map(OsString::from));
            }
            Some("java") => {
                argv.push(program("java")?);
                argv.extend(args);
                let class = self.path.file_stem().unwrap().to_owned();
                argv.extend(["-cp".into(), compile_java(ctx, &self.path)?.into_os_string(), class]);
            }
            _ => bail!("unknown kind of fixture {}", self.path.display()),
        }
        Ok(argv)
    }
}

/// Finds a program on PATH.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Path::new(name).exists().then(|| PathBuf::from(name));
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|p| p.is_file())
}

/// The real interpreter: a `python3` on PATH may be a wrapper script.
fn python() -> Result<&'static OsString> {
    static PYTHON: OnceLock<Result<OsString, String>> = OnceLock::new();
    let find = || -> Result<OsString> {
        let output =
            Command::new("python3").args(["-c", "import sys; print(sys.executable, end='')"]).output()?;
        Ok(String::from_utf8(output.stdout)?.into())
    };
    PYTHON
        .get_or_init(|| find().map_err(|e| format!("{e:#}")))
        .as_ref()
        .map_err(|e| anyhow!("no python3: {e}"))
}

/// Compiles a C program into the cache unless it is there and newer than its sources.
///
/// # Errors
/// What the compiler says.
pub fn compile_c(ctx: &Context, source: &Path, cflags: &[String]) -> Result<PathBuf> {
    let stem = source.file_stem().unwrap().to_string_lossy();
    let linked = if cflags.iter().any(|flag| flag == "-static") { ".static" } else { "" };
    let output = ctx.cache.join(format!("{stem}{linked}"));
    let headers = ["fixture.h", "tree.h"].map(|name| ctx.fixtures.join(name));
    let _one_at_a_time = ctx.compiling.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if newer(&output, &[source, &headers[0], &headers[1]]) {
        return Ok(output);
    }
    let build = tempfile::tempdir_in(&ctx.cache)?;
    let made = build.path().join("program");
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&made);
    let result = cc.args(cflags).arg(source).output().context("cannot run cc")?;
    if !result.status.success() {
        bail!("{} does not compile:\n{}", source.display(), String::from_utf8_lossy(&result.stderr));
    }
    std::fs::rename(&made, &output)?;
    Ok(output)
}

fn compile_java(ctx: &Context, source: &Path) -> Result<PathBuf> {
    let stem = source.file_stem().unwrap().to_string_lossy();
    let output = ctx.cache.join(format!("{stem}.classes"));
    let _one_at_a_time = ctx.compiling.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if newer(&output.join(format!("{stem}.class")), &[source]) {
        return Ok(output);
    }
    let result =
        Command::new("javac").arg("-d").arg(&output).arg(source).output().context("cannot run javac")?;
    if !result.status.success() {
        bail!("{} does not compile:\n{}", source.display(), String::from_utf8_lossy(&result.stderr));
    }
    Ok(output)
}

fn newer(output: &Path, sources: &[&Path]) -> bool {
    let time = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    let Some(made) = time(output) else { return false };
    sources.iter().all(|s| time(s).is_some_and(|t| t < made))
}
