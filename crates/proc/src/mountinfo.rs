//! `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).

use crate::ParseError;
use crate::text::{Fields, Place, cut, dec, lines, signed, unescape_octal};

/// A mount: a line of proc_pid_mountinfo(5). Paths are unescaped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// (1) Id, unique among the mounts there are, and reused.
    pub id: i32,
    /// (2) Id of the mount it is on; its own, or one not in the file, for the root.
    pub parent: i32,
    /// (3) Major and minor number: `st_dev` of the files on it.
    pub dev: (u32, u32),
    /// (4) Directory of the file system that is the root of the mount; ends in `//deleted` when that is unlinked.
    /// For nsfs it is a name like `net:[4026531840]`.
    pub root: Vec<u8>,
    /// (5) Mount point below the reader's root directory.
    pub mount_point: Vec<u8>,
    /// (6) Options of the mount, as printed; see [`Mount::split_options`].
    pub options: Vec<u8>,
    /// (7) Optional fields, `TAG[:VALUE]`.
    pub optional: Vec<Vec<u8>>,
    /// (9) File system type, `TYPE[.SUBTYPE]`.
    pub fstype: Vec<u8>,
    /// (10) Source, specific to the file system; may be empty.
    pub source: Vec<u8>,
    /// (11) Options of the file system, as printed; see [`Mount::split_options`].
    pub super_options: Vec<u8>,
}

impl Mount {
    /// `shared:X`: the peer group the mount is in.
    pub fn shared(&self) -> Option<u32> {
        self.tag(b"shared:")
    }

    /// `master:X`: the peer group the mount is a slave of.
    pub fn master(&self) -> Option<u32> {
        self.tag(b"master:")
    }

    /// `propagate_from:X`: the nearest peer group above that the reader can see.
    pub fn propagate_from(&self) -> Option<u32> {
        self.tag(b"propagate_from:")
    }

    /// `unbindable`.
    pub fn unbindable(&self) -> bool {
        self.optional.iter().any(|field| field == b"unbindable")
    }

    /// The options of [`Mount::options`] or [`Mount::super_options`], one by one, unescaped: a comma within an
    /// option is escaped, so they must be split first.
    pub fn split_options(options: &[u8]) -> impl Iterator<Item = Vec<u8>> {
        options.split(|&b| b == b',').filter(|option| !option.is_empty()).map(unescape_octal)
    }

    fn tag(&self, name: &[u8]) -> Option<u32> {
        self.optional.iter().find_map(|field| dec(field.strip_prefix(name)?))
    }
}

/// Parses `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
///
/// # Errors
/// A line that lacks a field, or whose ids or device are not numbers.
pub fn parse_mountinfo(text: &[u8]) -> Result<Vec<Mount>, ParseError> {
    lines(text).map(|(line, text)| parse_mount(text, Place { file: "mountinfo", line })).collect()
}

fn parse_mount(text: &[u8], place: Place) -> Result<Mount, ParseError> {
    // One blank separates, as a source may be empty.
    let mut fields = Fields::new(text, place);
    let id = signed(fields.column("mount ID")?).ok_or_else(|| place.malformed("mount ID"))?;
    let parent = signed(fields.column("parent ID")?).ok_or_else(|| place.malformed("parent ID"))?;
    let dev = cut(fields.column("major:minor")?, b':')
        .and_then(|(major, minor)| Some((dec(major)?, dec(minor)?)))
        .ok_or_else(|| place.malformed("major:minor"))?;
    let root = unescape_octal(fields.column("root")?);
    let mount_point = unescape_octal(fields.column("mount point")?);
    let options = fields.column("mount options")?.to_vec();
    let mut optional = Vec::new();
    loop {
        match fields.column("separator")? {
            b"-" => break,
            b"" => {}
            field => optional.push(field.to_vec()),
        }
    }
    Ok(Mount {
        id,
        parent,
        dev,
        root,
        mount_point,
        options,
        optional,
        fstype: unescape_octal(fields.column("filesystem type")?),
        source: unescape_octal(fields.column("mount source")?),
        super_options: fields.column("super options")?.to_vec(),
    })
}
