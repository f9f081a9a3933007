//! Sockets and networks. Devices and tables are made in network namespaces of children, which end with these.

use super::{
    Answer, answer, call, errno, found, in_child, ioctl,
    link::{ACK, CREATE, DUMP, Link, attribute, message},
    option, unshare,
};
use crate::error::{Error, Named, Result};
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
};
use std::os::fd::{AsRawFd, OwnedFd};

/// NETLINK_ROUTE, NETLINK_SOCK_DIAG, NETLINK_NETFILTER.
const ROUTE: u32 = 0;
const SOCK_DIAG: u32 = 4;
const NETFILTER: u32 = 12;
/// The number a device is made with.
const INDEX: u32 = 77;

fn socket(family: AddressFamily, kind: SocketType) -> Result<OwnedFd, Errno> {
    socket_with(family, kind, SocketFlags::CLOEXEC, None)
}

/// sockopt_buf_lock: that the sizes of buffers were set by hand can be asked and set (SO_BUF_LOCK).
pub fn buffer_lock() -> Result<Answer> {
    const SO_BUF_LOCK: i32 = 72;
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM).named("socket")?;
    match option(&socket, libc::SOL_SOCKET, SO_BUF_LOCK, 3) {
        Ok(now) => Ok(found(now == 3, "SO_BUF_LOCK: not what was set")),
        refused => answer("setsockopt(SO_BUF_LOCK)", refused),
    }
}

/// ipv6_freebind: a socket can be bound to an address of IPv6 that is not there yet (IPV6_FREEBIND).
pub fn ipv6_freebind() -> Result<Answer> {
    const IPV6_FREEBIND: i32 = 78;
    match socket(AddressFamily::INET6, SocketType::STREAM)
        .and_then(|socket| option(&socket, libc::IPPROTO_IPV6, IPV6_FREEBIND, 1))
    {
        Ok(now) => Ok(found(now == 1, "IPV6_FREEBIND: not what was set")),
        refused => answer("setsockopt(IPV6_FREEBIND)", refused),
    }
}

/// sk_unix_file: the file a unix socket is bound to can be opened (SIOCUNIXFILE).
pub fn unix_file() -> Result<Answer> {
    let socket = socket(AddressFamily::UNIX, SocketType::STREAM).named("socket")?;
    match crate::unix::name(&socket).map_err(|error| error.errno().unwrap_or(Errno::IO)) {
        // It is bound to none.
        Err(Errno::NOENT) => Ok(Answer::Present),
        Ok(_) => {
            Err(Error::Os { call: "ioctl(SIOCUNIXFILE) of a socket without a name", errno: Errno::NOENT })
        }
        refused => answer("ioctl(SIOCUNIXFILE)", refused),
    }
}

/// net_diag_raw: raw sockets can be asked about (sock_diag(7)).
pub fn diag_raw() -> Result<Answer> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    // struct inet_diag_req_v2: family, protocol, ext, pad, states, id.
    let mut body = vec![libc::AF_INET as u8, libc::IPPROTO_RAW as u8, 0, 0];
    body.extend(u32::MAX.to_le_bytes());
    body.extend([0; 48]);
    let ask = Link::open(SOCK_DIAG).and_then(|link| link.ask(&message(SOCK_DIAG_BY_FAMILY, DUMP, &body)));
    answer("sock_diag of raw sockets", ask)
}

/// In a network namespace of its own.
fn in_network(work: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    in_child(|| {
        unshare(libc::CLONE_NEWNET)?;
        work()
    })
}

/// The number of the device `name`.
fn index(name: &[u8]) -> Result<u32, Errno> {
    let mut request = [0u8; 40];
    request.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
    let socket = socket(AddressFamily::INET, SocketType::DGRAM)?;
    ioctl(&socket, libc::SIOCGIFINDEX, request.as_mut_ptr() as u64)?;
    Ok(request.get(16..20).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes))
}

/// struct ifinfomsg of the device with this number.
fn ifinfo(index: u32) -> Vec<u8> {
    let mut body = vec![0; 16];
    body.splice(4..8, index.to_le_bytes());
    body
}

/// newifindex: a device can be made with a number of our choice.
pub fn new_ifindex() -> Result<Answer> {
    const RTM_NEWLINK: u16 = 16;
    let work = || {
        let link = Link::open(ROUTE)?;
        let mut last = Err(Errno::OPNOTSUPP);
        // Any kind that this kernel has.
        for kind in [&b"dummy"[..], b"veth", b"bridge", b"ifb"] {
            let mut body = ifinfo(INDEX);
            body.extend(attribute(3, b"probe\0"));
            body.extend(attribute(18, &attribute(1, kind)));
            last = link.ask(&message(RTM_NEWLINK, ACK | CREATE | 0x200, &body)).map(drop);
            if last.is_ok() {
                return if index(b"probe")? == INDEX { Ok(()) } else { Err(Errno::OPNOTSUPP) };
            }
        }
        last
    };
    answer("RTM_NEWLINK with a number", in_network(work))
}

/// link_nsid: devices of another network namespace can be asked about by its id (IFLA_TARGET_NETNSID).
pub fn link_nsid() -> Result<Answer> {
    const RTM_GETLINK: u16 = 18;
    const RTM_NEWNSID: u16 = 88;
    const NSID: u32 = 5;
    let work = || {
        let link = Link::open(ROUTE)?;
        // struct rtgenmsg, padded; NETNSA_NSID, NETNSA_PID.
        let mut body = vec![0; 4];
        body.extend(attribute(1, &NSID.to_le_bytes()));
        body.extend(attribute(2, &std::process::id().to_le_bytes()));
        link.ask(&message(RTM_NEWNSID, ACK, &body))?;
        let mut body = ifinfo(1);
        let target = attribute(46, &NSID.to_le_bytes());
        body.extend(&target);
        let found = link.ask(&message(RTM_GETLINK, 0, &body))?;
        if found.windows(target.len()).any(|part| part == target) { Ok(()) } else { Err(Errno::OPNOTSUPP) }
    };
    answer("RTM_GETLINK by the id of a namespace", in_network(work))
}

/// A message to nftables: struct nfgenmsg, then `attributes`.
fn nft(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    let mut body = vec![family, 0, 0, 0];
    body.extend(attributes);
    message(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, &body)
}

/// nftables: it answers (NFT_MSG_GETGEN).
pub fn nftables() -> Result<Answer> {
    const NFT_MSG_GETGEN: u16 = 16;
    let work = || Link::open(NETFILTER)?.ask(&nft(NFT_MSG_GETGEN, 0, 0, &[])).map(drop);
    answer("NFT_MSG_GETGEN", in_network(work))
}

/// network_lock_nftables: nftables has sets of concatenated keys, as those of connections are.
pub fn nftables_sets() -> Result<Answer> {
    const NFPROTO_INET: u8 = 1;
    const NFT_SET_CONCAT: u32 = 0x80;
    let batch = |kind: u16| message(kind, 0, &[0, 0, 0, 10]);
    let number = |kind: u16, value: u32| attribute(kind, &value.to_be_bytes());
    let work = || {
        let link = Link::open(NETFILTER)?;
        let mut set = attribute(1, b"probe\0");
        set.extend(attribute(2, b"set\0"));
        set.extend(number(3, NFT_SET_CONCAT));
        // An address and a port: each takes whole words.
        set.extend(number(5, 8));
        set.extend(number(10, 1));
        let field = |len| attribute(1 | 0x8000, &number(1, len));
        let fields = [field(4), field(2)].concat();
        set.extend(attribute(9 | 0x8000, &attribute(2 | 0x8000, &fields)));
        let parts = [
            batch(16),
            nft(0, CREATE, NFPROTO_INET, &attribute(1, b"probe\0")),
            nft(9, CREATE | ACK, NFPROTO_INET, &set),
            batch(17),
        ];
        link.ask(&parts.concat()).map(drop)
    };
    answer("a set of concatenated keys in nftables", in_network(work))
}

/// has_ipt_legacy: the kernel's part of the older iptables (IPT_SO_GET_INFO).
pub fn iptables_legacy() -> Result<Answer> {
    const IPT_SO_GET_INFO: u64 = 64;
    let work = || {
        let raw =
            rustix::net::RawProtocol::new(libc::IPPROTO_RAW as u32).map(rustix::net::Protocol::from_raw);
        let socket = socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, raw)?;
        // struct ipt_getinfo: the name of a table first.
        let mut info = [0u8; 84];
        info.iter_mut().zip(b"filter").for_each(|(to, from)| *to = *from);
        let mut len = info.len() as u32;
        let fd = socket.as_raw_fd() as u64;
        let (at, len) = (info.as_mut_ptr() as u64, (&raw mut len) as u64);
        call(libc::SYS_getsockopt, [fd, libc::SOL_IP as u64, IPT_SO_GET_INFO, at, len, 0]).map(drop)
    };
    answer("getsockopt(IPT_SO_GET_INFO)", in_network(work))
}

/// A device of tun in a namespace of its own, with the number [`INDEX`].
fn in_tun(then: impl FnOnce(&std::fs::File) -> Result<(), Errno>) -> Result<(), Errno> {
    const TUNSETIFF: u64 = 0x4004_54ca;
    const TUNSETIFINDEX: u64 = 0x4004_54da;
    in_network(|| {
        let open = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
        let tun = open.map_err(|e| errno(&e))?;
        let number = INDEX;
        ioctl(&tun, TUNSETIFINDEX, (&raw const number) as u64)?;
        let mut request = [0u8; 40];
        request.iter_mut().zip(b"probe").for_each(|(to, from)| *to = *from);
        // IFF_TUN | IFF_NO_PI, behind the name.
        let flags = 0x1001u16.to_le_bytes();
        request.iter_mut().skip(16).zip(flags).for_each(|(to, from)| *to = from);
        ioctl(&tun, TUNSETIFF, request.as_mut_ptr() as u64)?;
        if index(b"probe")? != INDEX {
            return Err(Errno::OPNOTSUPP);
        }
        then(&tun)
    })
}

/// tun: a device of tun can be made, with a number of our choice.
pub fn tun() -> Result<Answer> {
    answer("a device of /dev/net/tun", in_tun(|_| Ok(())))
}

/// tun_ns: the network namespace of a device of tun can be asked for (TUNGETDEVNETNS).
pub fn tun_namespace() -> Result<Answer> {
    const TUNGETDEVNETNS: u64 = 0x54e3;
    answer("ioctl(TUNGETDEVNETNS)", in_tun(|tun| ioctl(tun, TUNGETDEVNETNS, 0).map(drop)))
}
