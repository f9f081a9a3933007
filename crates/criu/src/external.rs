//! What `--external` and `--inherit-fd` name, in the engine's terms.
//!
//! | word | engine |
//! |---|---|
//! | `file[MOUNT:INODE]` (hexadecimal) | a file by the mount it was opened through and its number |
//! | `tty[RDEV:DEV]` (hexadecimal) | a terminal by its own device number and that of its file system |
//! | `pipe[INODE]`, `unix[INODE]` | a pipe, a socket by the number that /proc/PID/fd shows |
//! | `net[INODE]:KEY`, `pid[INODE]:KEY` | nothing to do if that is the namespace we are in ourselves |
//! | `mnt[PATH]:KEY` | nothing to do: the tasks are in our mount namespace, or are refused |
//!
//! What was external is called by the word that named it. `fd[N]:NAME` gives it back under that name, and
//! whatever else came from outside by what /proc/PID/fd showed: `pipe:[7]`, `socket:[7]`, `dev/null`.

use crate::{
    failure::{Failure, Outcome},
    options::{self, ExtUnix, Options, Outside},
};
use ckpt_engine::{External, Identity, Outside as Kind, Place};
use std::path::Path;

/// What a dump is told is outside.
pub(crate) fn of_dump(options: &Options) -> Outcome<Vec<External>> {
    let mut all = Vec::new();
    for external in &options.external {
        all.extend(one_of_dump(external)?);
    }
    if let ExtUnix::These(inodes) = &options.ext_unix_sk {
        all.extend(
            inodes
                .iter()
                .map(|inode| named(Kind::Socket, bracketed(*inode), format!("unix[{inode}]").as_bytes())),
        );
    }
    Ok(all)
}

fn one_of_dump(external: &options::External) -> Outcome<Option<External>> {
    let refused = |why: &str| refused(external, why);
    let (kind, id) = match &external.what {
        Outside::File { mount, inode } => match i32::try_from(*mount) {
            Ok(mount) => (Kind::File, Identity::Inode { mount, ino: *inode }),
            Err(_) => return refused("there is no such mount"),
        },
        Outside::Tty { rdev, dev } => (Kind::Tty, Identity::Device { rdev: *rdev, dev: *dev }),
        Outside::Unix { inode } => (Kind::Socket, bracketed(*inode)),
        Outside::Pipe { inode } => (Kind::Pipe, bracketed(*inode)),
        Outside::Mount { .. } | Outside::MountAuto { .. } => return Ok(None),
        // The tasks are in our namespaces, or are refused: there is nothing to do about ours.
        Outside::Net { inode, .. } if is_own_namespace("net", *inode) => return Ok(None),
        Outside::Pid { inode, .. } if is_own_namespace("pid", *inode) => return Ok(None),
        Outside::Net { .. } | Outside::Pid { .. } => {
            return refused("tasks in another namespace than criu are not supported yet");
        }
        Outside::Device { .. } => return refused("block devices are not supported yet"),
        Outside::DevicePath { .. }
        | Outside::Veth { .. }
        | Outside::Macvlan { .. }
        | Outside::Netdev { .. } => return refused("not an option of dump"),
    };
    Ok(Some(named(kind, id, &external.word)))
}

/// In the image it has the name that the option has, too.
fn named(kind: Kind, id: Identity, word: &[u8]) -> External {
    External { kind, id, name: word.to_vec(), word: String::from_utf8_lossy(word).into_owned() }
}

/// As /proc/PID/fd shows it between brackets.
fn bracketed(inode: u64) -> Identity {
    Identity::Name(inode.to_string().into_bytes())
}

fn is_own_namespace(kind: &str, inode: u64) -> bool {
    let own = std::fs::read_link(format!("/proc/self/ns/{kind}"));
    own.is_ok_and(|link| link == Path::new(&format!("{kind}:[{inode}]")))
}

fn refused<T>(external: &options::External, why: &str) -> Outcome<T> {
    Err(Failure::options(format!("--external {}: {why}", external.word.escape_ascii())))
}

/// What a restore is told is outside: only what needs nothing can be had.
pub(crate) fn check_restore(options: &Options) -> Outcome {
    let cannot = |external: &&options::External| {
        matches!(
            external.what,
            Outside::Veth { .. }
                | Outside::Macvlan { .. }
                | Outside::Netdev { .. }
                | Outside::DevicePath { .. }
        )
    };
    match options.external.iter().find(cannot) {
        Some(external) => refused(external, "not supported yet"),
        // The tasks have our mounts, and what else is named is supplied by --inherit-fd.
        None => Ok(()),
    }
}

/// Whose place a name of `--inherit-fd` is.
pub(crate) fn place(name: &[u8]) -> Place {
    let tty = || {
        let id = name.strip_prefix(b"tty[")?.strip_suffix(b"]")?;
        let (rdev, dev) = str::from_utf8(id).ok()?.split_once(':')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(Place::Tty { rdev: number(rdev)?, dev: number(dev)? })
    };
    tty().unwrap_or_else(|| Place::Link(name.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn external_words() {
        let of = |word: &str, what| {
            let external = options::External { word: word.as_bytes().to_vec(), what };
            one_of_dump(&external).map_err(|e| e.to_string())
        };
        let is = |kind, id, name: &str| Ok(Some(named(kind, id, name.as_bytes())));
        let number = Identity::Name(b"78".to_vec());
        assert_eq!(of("unix[78]", Outside::Unix { inode: 78 }), is(Kind::Socket, number.clone(), "unix[78]"));
        assert_eq!(of("pipe[78]", Outside::Pipe { inode: 78 }), is(Kind::Pipe, number, "pipe[78]"));
        let inode = Identity::Inode { mount: 0x1d, ino: 0xab };
        let file = Outside::File { mount: 0x1d, inode: 0xab };
        assert_eq!(of("file[1d:ab]", file), is(Kind::File, inode, "file[1d:ab]"));
        let device = Identity::Device { rdev: 0x8801, dev: 0x18 };
        let tty = Outside::Tty { rdev: 0x8801, dev: 0x18 };
        assert_eq!(of("tty[8801:18]", tty), is(Kind::Tty, device, "tty[8801:18]"));
        assert_eq!(of("mnt[]", Outside::MountAuto { sharing: false, masters: false }), Ok(None));
        let refused = of("net[1]:x", Outside::Net { inode: 1, name: b"x".to_vec() }).unwrap_err();
        assert!(refused.starts_with("--external net[1]:x: "), "{refused}");
    }

    #[test]
    fn inherited_words() {
        for name in ["pipe:[77]", "socket:[7]", "/dev/null", "file[1d:ab]", "unix[7]", "extRootNetNS"] {
            assert_eq!(place(name.as_bytes()), Place::Link(name.as_bytes().to_vec()), "{name}");
        }
        assert_eq!(place(b"tty[8801:18]"), Place::Tty { rdev: 0x8801, dev: 0x18 });
    }
}
