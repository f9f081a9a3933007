//! The variants a fixture is run in.

use crate::fixture::Fixture;

/// What is done to a fixture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    /// Nothing: it must pass by itself.
    Undisturbed,
    /// Checkpoint to a file, kill, restart from the file; each generation from the one before.
    File,
    /// The same through pipes: image on stdout, image on stdin.
    Pipe,
    /// Checkpoint to a file, kill, restart in a pid namespace of its own: it must pass; `restart` stands in for it.
    Pidns,
    /// As container engines do it: `criu dump`, `criu restore --restore-detached`; one generation a step. Before that a
    /// dump that leaves it stopped.
    Criu,
    /// The same of a job that a shell has started, with a terminal: `--shell-job`. It comes back as a child of ours, stopped.
    Job,
    /// Checkpoints that leave it running: the original passes, and looks untouched.
    Running,
    /// The checkpoint is refused and the program lives on.
    Refused,
}

impl Variant {
    /// The variants a fixture is run in.
    #[must_use]
    pub fn of(fixture: &Fixture) -> &'static [Variant] {
        if fixture.directives.refuse.is_some() {
            &[Variant::Undisturbed, Variant::Refused]
        } else if fixture.directives.can_stand_in() {
            &[
                Variant::Undisturbed,
                Variant::File,
                Variant::Pipe,
                Variant::Pidns,
                Variant::Criu,
                Variant::Job,
                Variant::Running,
            ]
        } else {
            &[
                Variant::Undisturbed,
                Variant::File,
                Variant::Pipe,
                Variant::Criu,
                Variant::Job,
                Variant::Running,
            ]
        }
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Variant::Undisturbed => "undisturbed",
            Variant::File => "file",
            Variant::Pipe => "pipe",
            Variant::Pidns => "pidns",
            Variant::Criu => "criu",
            Variant::Job => "job",
            Variant::Running => "running",
            Variant::Refused => "refused",
        }
    }

    /// Whether it is the front end `criu` that is run.
    pub(super) fn is_criu(self) -> bool {
        [Variant::Criu, Variant::Job].contains(&self)
    }
}
