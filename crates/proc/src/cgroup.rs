//! `/proc/PID/cgroup` (cgroups(7), "/proc files").

use crate::ParseError;
use crate::text::{Place, cut, dec, lines, strip_deleted};

/// A line of `/proc/PID/cgroup`: where a process is in one hierarchy (cgroups(7)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// Id of the hierarchy; 0 for the unified one, cgroups version 2.
    pub hierarchy: u32,
    /// Controllers of a version 1 hierarchy (`name=NAME` for one that is only named); none for version 2.
    pub controllers: Vec<Vec<u8>>,
    /// Path below the root of the hierarchy, relative to the reader's cgroup namespace; begins with `/..` for
    /// one outside that.
    pub path: Vec<u8>,
    /// Whether ` (deleted)` was behind the path: the cgroup is removed (version 2, for zombies).
    pub deleted: bool,
}

/// Parses `/proc/PID/cgroup` (cgroups(7)).
///
/// # Errors
/// A line that is not `HIERARCHY:CONTROLLERS:PATH`.
pub fn parse_cgroup(text: &[u8]) -> Result<Vec<Cgroup>, ParseError> {
    lines(text).map(|(line, text)| parse_line(text, Place { file: "cgroup", line })).collect()
}

fn parse_line(text: &[u8], place: Place) -> Result<Cgroup, ParseError> {
    let (hierarchy, rest) = cut(text, b':').ok_or_else(|| place.missing("hierarchy"))?;
    let (controllers, path) = cut(rest, b':').ok_or_else(|| place.missing("controllers"))?;
    let (path, deleted) = strip_deleted(path);
    Ok(Cgroup {
        hierarchy: dec(hierarchy).ok_or_else(|| place.malformed("hierarchy"))?,
        controllers: controllers
            .split(|&b| b == b',')
            .filter(|name| !name.is_empty())
            .map(<[u8]>::to_vec)
            .collect(),
        path: path.to_vec(),
        deleted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions() {
        let got = parse_cgroup(b"9:name=systemd:/\n2:cpu,cpuacct:/a:b c\n0::/gone (deleted)\n").unwrap();
        assert_eq!(got[0].controllers, [b"name=systemd"]);
        assert_eq!(got[1].controllers, [&b"cpu"[..], b"cpuacct"]);
        assert_eq!(got[1].path, b"/a:b c");
        assert_eq!((got[2].hierarchy, got[2].deleted, &got[2].path[..]), (0, true, &b"/gone"[..]));
        assert!(got[2].controllers.is_empty());
        assert!(parse_cgroup(b"0:/\n").is_err());
    }
}
