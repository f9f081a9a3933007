//! Values of options: text becomes meaning. An error says what is wanted; who called adds the option's name.

use crate::options::{
    CgroupRoot, CpuCap, External, InheritFd, JoinNs, ManageCgroups, MountMap, NetworkLock, NsKind, NsPlace,
    Outside,
};
use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
    str::FromStr,
};

/// A value, or what was wanted.
pub(crate) type Value<T> = Result<T, String>;

/// Text that has to be UTF-8.
pub(crate) fn text(value: &OsStr) -> Value<&str> {
    value.to_str().ok_or_else(|| "not UTF-8".to_owned())
}

/// A file or directory.
pub(crate) fn path(value: &OsStr) -> Value<PathBuf> {
    match value.is_empty() {
        true => Err("want a name, got nothing".to_owned()),
        false => Ok(PathBuf::from(value)),
    }
}

/// A command for the shell.
pub(crate) fn command(value: &OsStr) -> Value<OsString> {
    match value.is_empty() {
        true => Err("want a command, got nothing".to_owned()),
        false => Ok(value.to_owned()),
    }
}

/// A decimal number.
pub(crate) fn number<T: FromStr>(value: &OsStr) -> Value<T> {
    let digits = text(value)?;
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.parse().ok().filter(|_| plain);
    number.ok_or_else(|| format!("want a number, got '{digits}'"))
}

/// A process id.
pub(crate) fn pid(value: &OsStr) -> Value<i32> {
    match number(value)? {
        0 => Err("want a process id, got '0'".to_owned()),
        pid => Ok(pid),
    }
}

/// A number of bytes: suffix K, M or G.
pub(crate) fn size(value: &OsStr) -> Value<u64> {
    let word = text(value)?;
    let wrong = || format!("want a number of bytes (suffix K, M or G), got '{word}'");
    let (digits, shift) = match word.as_bytes().last() {
        Some(b'K' | b'k') => (word.get(..word.len() - 1), 10),
        Some(b'M' | b'm') => (word.get(..word.len() - 1), 20),
        Some(b'G' | b'g') => (word.get(..word.len() - 1), 30),
        _ => (Some(word), 0),
    };
    let count: u64 = number(OsStr::new(digits.unwrap_or_default())).map_err(|_| wrong())?;
    count.checked_mul(1 << shift).ok_or_else(wrong)
}

/// A level of the log: a number, or more `v`s (of `-vvv`). What is above the highest is the highest.
pub(crate) fn verbosity(now: u8, value: Option<&OsStr>) -> Value<u8> {
    let level = match value.map(OsStr::as_bytes) {
        None => now.saturating_add(1),
        Some(more) if !more.is_empty() && more.iter().all(|byte| *byte == b'v') => {
            now.saturating_add(u8::try_from(more.len() + 1).unwrap_or(u8::MAX))
        }
        Some(digits) => {
            number(OsStr::from_bytes(digits)).map_err(|_| "want a number from 0 to 4".to_owned())?
        }
    };
    Ok(level.min(4))
}

/// `none`, `props`, ...; without one it is `soft`.
pub(crate) fn manage_cgroups(value: Option<&OsStr>) -> Value<ManageCgroups> {
    Ok(match value.map(OsStr::as_bytes) {
        None | Some(b"soft") => ManageCgroups::Soft,
        Some(b"ignore") => ManageCgroups::Ignore,
        Some(b"none") => ManageCgroups::None,
        Some(b"props") => ManageCgroups::Props,
        Some(b"full") => ManageCgroups::Full,
        Some(b"strict") => ManageCgroups::Strict,
        Some(other) => return Err(want("ignore, none, props, soft, full or strict", other)),
    })
}

/// `iptables`, `nftables` or `skip`.
pub(crate) fn network_lock(value: &OsStr) -> Value<NetworkLock> {
    Ok(match value.as_bytes() {
        b"iptables" => NetworkLock::Iptables,
        b"nftables" => NetworkLock::Nftables,
        b"skip" => NetworkLock::Skip,
        other => return Err(want("iptables, nftables or skip", other)),
    })
}

/// `net`.
pub(crate) fn empty_ns(value: &OsStr) -> Value<bool> {
    if value == "net" { Ok(true) } else { Err(want("net", value.as_bytes())) }
}

/// Comma-separated `cpu`, `fpu`, `ins`, `all`, `none`; `^` before one takes it away. None at all is `cpu`.
pub(crate) fn cpu_cap(value: Option<&OsStr>) -> Value<CpuCap> {
    let Some(value) = value else { return Ok(CpuCap::default()) };
    let list = text(value)?;
    let mut cap = CpuCap { features: list.starts_with('^'), state: list.starts_with('^') };
    for word in list.split(',') {
        let (on, name) = word.strip_prefix('^').map_or((true, word), |name| (false, name));
        match name {
            "all" | "cpu" => cap = CpuCap { features: on, state: on },
            "none" if on => cap = CpuCap { features: false, state: false },
            "ins" => cap.features = on,
            "fpu" => cap.state = on,
            _ => return Err(want("a list of all, cpu, fpu, ins, none", word.as_bytes())),
        }
    }
    Ok(cap)
}

/// `[CONTROLLER:]/PATH`.
pub(crate) fn cgroup_root(value: &OsStr) -> Value<CgroupRoot> {
    let bytes = value.as_bytes();
    let (controller, path) = match bytes.first() {
        Some(b'/') => (None, bytes),
        _ => split(bytes, b':')
            .map_or((None, &b""[..]), |(controller, path)| (Some(controller.to_vec()), path)),
    };
    if path.first() != Some(&b'/') || controller.as_ref().is_some_and(Vec::is_empty) {
        return Err(want("[CONTROLLER:]/PATH", bytes));
    }
    Ok(CgroupRoot { controller, path: PathBuf::from(OsStr::from_bytes(path)) })
}

/// `fd[N]:NAME`.
pub(crate) fn inherit_fd(value: &OsStr) -> Value<InheritFd> {
    let wrong = || want("fd[N]:NAME", value.as_bytes());
    let (kind, id, name) = bracketed(value.as_bytes()).ok_or_else(wrong)?;
    match (kind, name) {
        (b"fd", Some(name)) if !name.is_empty() => {
            let fd = number(OsStr::from_bytes(id)).map_err(|_| wrong())?;
            Ok(InheritFd { fd, name: name.to_vec() })
        }
        _ => Err(wrong()),
    }
}

/// `auto` or `KEY:VALUE`.
pub(crate) fn mount_map(value: &OsStr) -> Value<MountMap> {
    match (value.as_bytes(), split(value.as_bytes(), b':')) {
        (b"auto", _) => Ok(MountMap::Auto),
        (_, Some((key, value))) if !key.is_empty() && !value.is_empty() => {
            Ok(MountMap::Pair(key.to_vec(), value.to_vec()))
        }
        (other, _) => Err(want("auto or KEY:VALUE", other)),
    }
}

/// `KIND:PID` or `KIND:FILE`, `,EXTRA` after it.
pub(crate) fn join_ns(value: &OsStr) -> Value<JoinNs> {
    let bytes = value.as_bytes();
    let wrong = || want("KIND:PID or KIND:FILE, then ,EXTRA or nothing", bytes);
    let (kind, rest) = split(bytes, b':').ok_or_else(wrong)?;
    let kind = match kind {
        b"net" => NsKind::Net,
        b"uts" => NsKind::Uts,
        b"ipc" => NsKind::Ipc,
        b"time" => NsKind::Time,
        b"pid" => NsKind::Pid,
        b"user" => NsKind::User,
        b"mnt" => NsKind::Mnt,
        b"cgroup" => NsKind::Cgroup,
        other => return Err(want("net, uts, ipc, time, pid, user, mnt or cgroup", other)),
    };
    let (place, extra) = split(rest, b',').map_or((rest, None), |(place, extra)| (place, Some(extra)));
    let place = OsStr::from_bytes(place);
    let place = match pid(place) {
        Ok(pid) => NsPlace::Process(pid),
        Err(_) if place.as_bytes().contains(&b'/') => NsPlace::File(PathBuf::from(place)),
        Err(_) => return Err(wrong()),
    };
    let extra = extra.map(|extra| text(OsStr::from_bytes(extra)).map(str::to_owned)).transpose()?;
    Ok(JoinNs { kind, place, extra })
}

/// `IN=OUT[@BRIDGE]`, the older form of `--external veth[IN]:OUT[@BRIDGE]`.
pub(crate) fn veth_pair(value: &OsStr) -> Value<External> {
    let (inner, outer) = split(value.as_bytes(), b'=').ok_or_else(|| want("IN=OUT", value.as_bytes()))?;
    let word = [b"veth[", inner, b"]:", outer].concat();
    external(&OsString::from_vec(word))
}

/// `KIND[ID]` or `KIND[ID]:KEY`.
pub(crate) fn external(value: &OsStr) -> Value<External> {
    let word = value.as_bytes();
    let (kind, id, key) = bracketed(word).ok_or_else(|| want("KIND[ID] or KIND[ID]:KEY", word))?;
    let what = match (kind, key) {
        (b"mnt", key) if id.is_empty() => mount_auto(key.unwrap_or_default())?,
        (b"mnt", key) => Outside::Mount { key: id.to_vec(), value: key.unwrap_or_default().to_vec() },
        (b"dev", Some(key)) if !key.is_empty() => device(id, key)?,
        (b"file", None) => pair(id).map(|(mount, inode)| Outside::File { mount, inode })?,
        (b"tty", None) => pair(id).map(|(rdev, dev)| Outside::Tty { rdev, dev })?,
        (b"unix", None) => Outside::Unix { inode: inode(id)? },
        (b"pipe", None) => Outside::Pipe { inode: inode(id)? },
        (b"net", Some(key)) if !key.is_empty() => Outside::Net { inode: inode(id)?, name: key.to_vec() },
        (b"pid", Some(key)) if !key.is_empty() => Outside::Pid { inode: inode(id)?, name: key.to_vec() },
        (b"veth" | b"macvlan" | b"netdev", Some(key)) if !id.is_empty() && !key.is_empty() => {
            device_of_network(kind, id, key)
        }
        (b"file" | b"tty" | b"unix" | b"pipe", Some(_)) => {
            return Err(want("nothing after the bracket", word));
        }
        (b"dev" | b"net" | b"pid" | b"veth" | b"macvlan" | b"netdev", _) => {
            return Err(want("KIND[ID]:KEY", word));
        }
        (other, _) => {
            let kinds = "mnt, dev, file, tty, unix, pipe, net, pid, veth, macvlan or netdev";
            return Err(want(kinds, other));
        }
    };
    Ok(External { word: word.to_vec(), what })
}

fn mount_auto(flags: &[u8]) -> Value<Outside> {
    if !flags.iter().all(|flag| b"ms".contains(flag)) {
        return Err(want("mnt[]:FLAGS with flags m and s", flags));
    }
    Ok(Outside::MountAuto { sharing: flags.contains(&b's'), masters: flags.contains(&b'm') })
}

fn device(id: &[u8], key: &[u8]) -> Value<Outside> {
    let numbers = split(id, b'/').and_then(|(major, minor)| {
        Some((number(OsStr::from_bytes(major)).ok()?, number(OsStr::from_bytes(minor)).ok()?))
    });
    match numbers {
        Some((major, minor)) => Ok(Outside::Device { major, minor, name: key.to_vec() }),
        None if !id.is_empty() && key.first() == Some(&b'/') => {
            Ok(Outside::DevicePath { name: id.to_vec(), path: PathBuf::from(OsStr::from_bytes(key)) })
        }
        None => Err(want("dev[MAJOR/MINOR]:NAME or dev[NAME]:/PATH", id)),
    }
}

fn device_of_network(kind: &[u8], id: &[u8], key: &[u8]) -> Outside {
    let inner = id.to_vec();
    match (kind, split(key, b'@')) {
        (b"veth", Some((outer, bridge))) => {
            Outside::Veth { inner, outer: outer.to_vec(), bridge: Some(bridge.to_vec()) }
        }
        (b"veth", None) => Outside::Veth { inner, outer: key.to_vec(), bridge: None },
        (b"macvlan", _) => Outside::Macvlan { inner, outer: key.to_vec() },
        _ => Outside::Netdev { inner, outer: key.to_vec() },
    }
}

/// Two hexadecimal numbers, a colon between them.
fn pair(id: &[u8]) -> Value<(u64, u64)> {
    let hex = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).ok()?;
        u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16).ok()
    };
    let numbers = split(id, b':').and_then(|(a, b)| Some((hex(a)?, hex(b)?)));
    numbers.ok_or_else(|| want("two hexadecimal numbers, a colon between them", id))
}

fn inode(id: &[u8]) -> Value<u64> {
    number(OsStr::from_bytes(id)).map_err(|_| want("an inode number between the brackets", id))
}

/// The parts of `KIND[ID]:KEY`.
type Bracketed<'a> = (&'a [u8], &'a [u8], Option<&'a [u8]>);

/// What is before the first bracket, inside the brackets, and after the colon that follows the last if there is one.
fn bracketed(word: &[u8]) -> Option<Bracketed<'_>> {
    let (kind, rest) = split(word, b'[')?;
    let end = rest.windows(2).position(|two| two == b"]:");
    match end {
        Some(end) => Some((kind, rest.get(..end)?, rest.get(end + 2..))),
        None => Some((kind, rest.strip_suffix(b"]")?, None)),
    }
}

/// What is before and after the first `at`.
fn split(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let place = bytes.iter().position(|byte| *byte == at)?;
    Some((bytes.get(..place)?, bytes.get(place + 1..)?))
}

fn want(what: &str, got: &[u8]) -> String {
    format!("want {what}, got '{}'", got.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn os(text: &str) -> &OsStr {
        OsStr::new(text)
    }

    #[test]
    fn numbers_and_sizes() {
        assert_eq!(number::<u32>(os("17")), Ok(17));
        for wrong in ["", "+1", "-1", "1x", "4294967296", " 1"] {
            assert!(number::<u32>(os(wrong)).is_err(), "{wrong}");
        }
        assert_eq!(size(os("12")), Ok(12));
        assert_eq!(size(os("2K")), Ok(2048));
        assert_eq!(size(os("3M")), Ok(3 << 20));
        assert_eq!(size(os("1g")), Ok(1 << 30));
        for wrong in ["", "K", "1T", "99999999999G"] {
            assert!(size(os(wrong)).is_err(), "{wrong}");
        }
        assert!(pid(os("0")).is_err());
    }

    #[test]
    fn levels() {
        assert_eq!(verbosity(2, None), Ok(3));
        assert_eq!(verbosity(2, Some(os("v"))), Ok(4));
        assert_eq!(verbosity(2, Some(os("vvvvv"))), Ok(4));
        assert_eq!(verbosity(2, Some(os("0"))), Ok(0));
        assert_eq!(verbosity(2, Some(os("9"))), Ok(4));
        assert!(verbosity(2, Some(os("x"))).is_err());
        assert!(verbosity(2, Some(os(""))).is_err());
    }

    #[test]
    fn externals() {
        let what = |word: &str| external(os(word)).map(|external| external.what);
        assert_eq!(what("mnt[/a]:b"), Ok(Outside::Mount { key: b"/a".to_vec(), value: b"b".to_vec() }));
        assert_eq!(what("mnt[]"), Ok(Outside::MountAuto { sharing: false, masters: false }));
        assert_eq!(what("mnt[]:ms"), Ok(Outside::MountAuto { sharing: true, masters: true }));
        assert_eq!(what("file[1f:2a]"), Ok(Outside::File { mount: 0x1f, inode: 0x2a }));
        assert_eq!(what("tty[8800:0x16]"), Ok(Outside::Tty { rdev: 0x8800, dev: 0x16 }));
        assert_eq!(what("net[40]:x"), Ok(Outside::Net { inode: 40, name: b"x".to_vec() }));
        assert_eq!(what("dev[8/1]:d"), Ok(Outside::Device { major: 8, minor: 1, name: b"d".to_vec() }));
        let path = PathBuf::from("/dev/sda");
        assert_eq!(what("dev[d]:/dev/sda"), Ok(Outside::DevicePath { name: b"d".to_vec(), path }));
        let (inner, outer) = (b"eth0".to_vec(), b"v1".to_vec());
        let bridge = Some(b"br".to_vec());
        let veth = Outside::Veth { inner, outer, bridge };
        assert_eq!(what("veth[eth0]:v1@br").as_ref(), Ok(&veth));
        assert_eq!(veth_pair(os("eth0=v1@br")).unwrap().what, veth);
        for wrong in ["", "mnt", "mnt[", "mnt[]:x", "file[1]", "unix[a]", "net[4]", "odd[1]:2", "tty[1:2]:3"]
        {
            assert!(what(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn places() {
        let name = b"file[1:2]".to_vec();
        assert_eq!(inherit_fd(os("fd[7]:file[1:2]")), Ok(InheritFd { fd: 7, name }));
        assert_eq!(inherit_fd(os("fd[7]:pipe:[12]")).unwrap().name, b"pipe:[12]");
        for wrong in ["fd[7]", "fd[x]:y", "7:y", "fd[7]:"] {
            assert!(inherit_fd(os(wrong)).is_err(), "{wrong}");
        }
        assert_eq!(cgroup_root(os("/a")).unwrap().controller, None);
        assert_eq!(
            cgroup_root(os("cpu,cpuacct:/a")).unwrap().controller.as_deref(),
            Some(&b"cpu,cpuacct"[..])
        );
        assert!(cgroup_root(os("a")).is_err() && cgroup_root(os("cpu:a")).is_err());
        assert_eq!(mount_map(os("auto")), Ok(MountMap::Auto));
        assert!(mount_map(os("a")).is_err() && mount_map(os("a:")).is_err());
        let join = join_ns(os("user:/proc/7/ns/user,0,1")).unwrap();
        assert_eq!((join.kind, join.extra.as_deref()), (NsKind::User, Some("0,1")));
        assert_eq!(join_ns(os("net:7")).unwrap().place, NsPlace::Process(7));
        assert!(join_ns(os("net:x")).is_err() && join_ns(os("odd:7")).is_err());
    }

    #[test]
    fn words_of_a_set() {
        assert_eq!(manage_cgroups(None), Ok(ManageCgroups::Soft));
        assert_eq!(manage_cgroups(Some(os("full"))), Ok(ManageCgroups::Full));
        assert!(manage_cgroups(Some(os("odd"))).unwrap_err().contains("strict"));
        assert!(network_lock(os("odd")).unwrap_err().contains("nftables"));
        let caps = |list: &str| cpu_cap(Some(os(list))).map(|cap| (cap.features, cap.state));
        assert_eq!(caps("ins"), Ok((true, false)));
        assert_eq!(caps("^fpu"), Ok((true, false)));
        assert_eq!(caps("none"), Ok((false, false)));
        assert_eq!(caps("all"), Ok((true, true)));
        assert!(caps("odd").is_err() && caps("^none").is_err());
    }
}
