//! The `//#Key: value` lines inside a fixture.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use regex_lite::Regex;

/// How a fixture tells the harness where it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// It prints `ready STEP`, waits to be told to go on, checks itself.
    Step,
    /// It runs freely; its output must equal that of an undisturbed run.
    Free,
}

/// What one case of a fixture asks for.
#[derive(Clone, Debug)]
pub struct Directives {
    pub case: Option<String>,
    pub args: Vec<String>,
    pub cflags: Vec<String>,
    pub generations: u32,
    pub needs: Vec<String>,
    pub stdin_pipe: bool,
    pub say: Option<String>,
    pub signal: Option<i32>,
    pub compare: Vec<String>,
    pub ignore: Vec<String>,
    pub setup: Vec<String>,
    pub delay: Duration,
    pub downtime: Duration,
    pub random: bool,
    pub open_dir: bool,
    pub expect_exit: i32,
    pub mode: Mode,
    pub refuse: Option<Regex>,
    pub may_refuse: Option<Regex>,
    /// Why it cannot pass in a pid namespace of its own.
    pub no_pidns: Option<String>,
    /// How it shows that it was stopped by SIGSTOP, and told to go on.
    pub sees_stops: Option<String>,
    /// Options it needs of `criu`.
    pub criu: Vec<String>,
}

impl Default for Directives {
    fn default() -> Self {
        Directives {
            case: None,
            args: Vec::new(),
            cflags: Vec::new(),
            generations: 3,
            needs: Vec::new(),
            stdin_pipe: false,
            say: None,
            signal: None,
            compare: Vec::new(),
            ignore: Vec::new(),
            setup: Vec::new(),
            delay: Duration::ZERO,
            downtime: Duration::ZERO,
            random: false,
            open_dir: false,
            expect_exit: 0,
            mode: Mode::Step,
            refuse: None,
            may_refuse: None,
            no_pidns: None,
            sees_stops: None,
            criu: Vec::new(),
        }
    }
}

impl Directives {
    /// All cases in a fixture's text: one when there is no `Case:` line.
    ///
    /// # Errors
    /// An unknown key or a bad value; nothing is ignored silently.
    pub fn parse(text: &str) -> Result<Vec<Directives>> {
        let mut common = Directives::default();
        let mut cases: Vec<Directives> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let Some(rest) = line.strip_prefix("//#").or_else(|| line.strip_prefix("#//#")) else { continue };
            let (key, value) =
                rest.split_once(':').with_context(|| format!("line {}: no colon", number + 1))?;
            let value = value.trim();
            if key == "Case" {
                let args = if common.args.is_empty() { vec![value.to_owned()] } else { common.args.clone() };
                cases.push(Directives { case: Some(value.to_owned()), args, ..common.clone() });
                continue;
            }
            let current = cases.last_mut().unwrap_or(&mut common);
            current.set(key, value).with_context(|| format!("line {}: {line}", number + 1))?;
        }
        Ok(if cases.is_empty() { vec![common] } else { cases })
    }

    /// Whether `restart --pidns` can stand in for it: it passes on few signals.
    #[must_use]
    pub fn can_stand_in(&self) -> bool {
        let passed_on = self.signal.is_none_or(|signal| signal == libc::SIGTERM);
        self.mode == Mode::Step && passed_on && self.no_pidns.is_none()
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let words = || value.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let millis = || value.parse().map(Duration::from_millis);
        match key {
            "Args" => self.args = words(),
            "Cflags" => self.cflags = words(),
            "Generations" => self.generations = value.parse()?,
            "Needs" => self.needs = words(),
            "Stdin" => self.stdin_pipe = one_of(value, &["null", "pipe"])? == 1,
            "Say" => self.say = Some(value.to_owned()),
            "Signal" => self.signal = Some(signal(value)?),
            "Compare" => self.compare = words(),
            "Ignore" => self.ignore = words(),
            "Setup" => self.setup.push(value.to_owned()),
            "Delay" => self.delay = millis()?,
            "Downtime" => self.downtime = millis()?,
            "Random" => self.random = one_of(value, &["no", "yes"])? == 1,
            "Open-dir" => self.open_dir = one_of(value, &["no", "yes"])? == 1,
            "Expect-exit" => self.expect_exit = value.parse()?,
            "Mode" => {
                self.mode = if one_of(value, &["step", "free"])? == 1 { Mode::Free } else { Mode::Step }
            }
            "Refuse" => self.refuse = Some(Regex::new(value)?),
            "No-pidns" => self.no_pidns = Some(value.to_owned()),
            "Sees-stops" => self.sees_stops = Some(value.to_owned()),
            "Criu" => self.criu = words(),
            "May-refuse" => self.may_refuse = Some(Regex::new(value)?),
            _ => bail!("unknown directive {key}"),
        }
        Ok(())
    }
}

fn one_of(value: &str, choices: &[&str]) -> Result<usize> {
    choices.iter().position(|c| *c == value).with_context(|| format!("want one of {choices:?}"))
}

fn signal(name: &str) -> Result<i32> {
    Ok(match name {
        "USR1" => libc::SIGUSR1,
        "USR2" => libc::SIGUSR2,
        "TERM" => libc::SIGTERM,
        _ => bail!("unknown signal {name}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_inherit_what_stands_above_them() {
        let all =
            Directives::parse("//#Delay: 5\n//#Case: a\n//#Case: b\n//#Refuse: fd \\d\nint x;").unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].args, ["a"]);
        assert_eq!(all[1].delay, Duration::from_millis(5));
        assert!(all[0].refuse.is_none() && all[1].refuse.is_some());
    }

    #[test]
    fn an_unknown_directive_is_an_error() {
        assert!(Directives::parse("#//#Delai: 5").is_err());
        assert!(Directives::parse("//#Mode: fee").is_err());
    }
}
