//! What every test is given: where things are, how much to do, and the ledger of skips, retries and injected failures.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, bail};

/// Skips, retries and injected failures, printed and counted at the end.
#[derive(Default)]
pub struct Ledger {
    skips: Mutex<Vec<String>>,
    retries: Mutex<Vec<String>>,
    failures: AtomicUsize,
}

impl Ledger {
    pub fn retry(&self, what: String) {
        self.retries.lock().unwrap().push(what);
    }

    /// So many restarts failed as they were made to, and nothing was left of any.
    pub fn failed(&self, restarts: usize) {
        self.failures.fetch_add(restarts, Ordering::Relaxed);
    }

    /// Prints what was skipped and retried, and how many failures there were.
    pub fn print(&self) {
        let (skips, retries) = (self.skips.lock().unwrap(), self.retries.lock().unwrap());
        for skip in skips.iter() {
            println!("SKIP {skip}");
        }
        for retry in retries.iter() {
            println!("RETRY {retry}");
        }
        let failures = self.failures.load(Ordering::Relaxed);
        if failures > 0 {
            println!("restarts that were made to fail, none of which left anything: {failures}");
        }
        println!("skipped: {}, retried for a taken pid: {}", skips.len(), retries.len());
    }
}

/// The suite's settings and paths.
pub struct Context {
    /// The binary under test; absent only in an undisturbed run (`CKPT_TEST_UNDISTURBED=1`).
    pub ckpt: Option<PathBuf>,
    /// Compiled fixtures.
    pub cache: PathBuf,
    pub fixtures: PathBuf,
    pub helpers: PathBuf,
    pub kills: u32,
    pub flips: u32,
    pub failures: u32,
    no_skip: bool,
    pub ledger: Ledger,
    /// Held while something is compiled into the cache: a binary must not be replaced under a running target.
    pub(crate) compiling: Mutex<()>,
}

impl Context {
    /// Reads the environment and builds the binary under test.
    ///
    /// # Errors
    /// The binary cannot be built, or a setting is not a number.
    pub fn new(cache: &Path) -> Result<Context> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty() && v != "0");
        let number = |name: &str, default: u32| match std::env::var(name) {
            Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
            Err(_) => Ok(default),
        };
        std::fs::create_dir_all(cache)?;
        Ok(Context {
            ckpt: if set("CKPT_TEST_UNDISTURBED") { None } else { Some(binary()?) },
            cache: cache.to_owned(),
            fixtures: here.join("fixtures"),
            helpers: here.join("helpers"),
            kills: number("CKPT_TEST_KILLS", 60)?,
            flips: number("CKPT_TEST_FLIPS", 300)?,
            failures: number("CKPT_TEST_FAILURES", 100)?,
            no_skip: set("CKPT_TEST_NO_SKIP"),
            ledger: Ledger::default(),
            compiling: Mutex::new(()),
        })
    }

    /// A link named `criu` to the binary under test.
    ///
    /// # Panics
    /// In an undisturbed run, and when it cannot be made.
    #[must_use]
    pub fn criu_link(&self) -> PathBuf {
        let _one_at_a_time = self.compiling.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let ckpt = self.ckpt.as_ref().expect("no binary in an undisturbed run");
        let link = self.cache.join("criu");
        if std::fs::read_link(&link).ok().as_ref() != Some(ckpt) {
            let draft = self.cache.join(format!("criu.{}", std::process::id()));
            std::os::unix::fs::symlink(ckpt, &draft).expect("a link");
            std::fs::rename(draft, &link).expect("a link named criu");
        }
        link
    }

    /// Records a skip; with `CKPT_TEST_NO_SKIP=1` it is a failure, unless this very kernel or CPU is why:
    /// nothing that could be installed helps then.
    ///
    /// # Errors
    /// Skips are forbidden.
    pub fn skip(&self, what: &str, why: &str) -> Result<()> {
        let machine = ["this kernel", "this CPU"].iter().any(|it| why.starts_with(it));
        if self.no_skip && !machine {
            bail!("skipped, and CKPT_TEST_NO_SKIP is set: {why}");
        }
        self.ledger.skips.lock().unwrap().push(format!("{what}: {why}"));
        Ok(())
    }
}

/// `CKPT_BIN`, or the release binary, built here so that `cargo test --workspace` is all there is to run.
fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("CKPT_BIN") {
        return PathBuf::from(path).canonicalize().context("CKPT_BIN");
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--release", "-p", "ckpt-cli", "--message-format=json-render-diagnostics"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo build --release -p ckpt-cli failed");
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let path = PathBuf::from(message["executable"].as_str()?);
        (path.file_name()? == "ckpt").then_some(path)
    };
    messages.lines().find_map(executable).context("the build of ckpt-cli gave no executable named ckpt")
}
