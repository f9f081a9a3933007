//! Features of the kernel by the names that CRIU's callers ask for, each answered by a probe.
//!
//! An answer says what the kernel has, whether or not the engine has a use for it.

use ckpt_kernel::{
    Error,
    probe::{Answer, file, memory, network, process},
};

/// A feature with a name.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    probe: fn() -> Result<Answer, Error>,
}

/// Asks the kernel for `feature`.
///
/// # Errors
/// It could not be asked: a privilege or a resource is missing.
pub fn probe(feature: &Feature) -> Result<Answer, Error> {
    (feature.probe)()
}

/// The feature called `name`.
///
/// # Errors
/// There is none: a line that says so, with the name that is most like it.
pub fn find(name: &str) -> Result<&'static Feature, String> {
    if let Some(feature) = FEATURES.iter().find(|feature| feature.name == name) {
        return Ok(feature);
    }
    let near = FEATURES.iter().map(|feature| (strsim::levenshtein(name, feature.name), feature.name)).min();
    let near = near.filter(|(far, near)| *far <= near.len() / 3);
    let near = near.map_or(String::new(), |(_, near)| format!(" (is {near} meant?)"));
    Err(format!("feature {name}: unknown{near}; criu check --feature list prints the names"))
}

const fn feature(name: &'static str, probe: fn() -> Result<Answer, Error>, what: &'static str) -> Feature {
    Feature { name, what, probe }
}

/// All of them.
pub const FEATURES: &[Feature] = &[
    feature("aio_remap", memory::aio_remap, "rings of asynchronous I/O can be moved"),
    feature("apparmor_stacking", file::apparmor_stacking, "profiles of AppArmor can be stacked"),
    feature("autofs", file::autofs, "autofs, with its pipe in mountinfo"),
    feature("cgroupns", process::cgroup_namespace, "cgroup namespaces"),
    feature("fdinfo_lock", file::locks, "file locks in fdinfo"),
    feature("get_rseq_conf", process::rseq_configuration, "where a thread has its restartable sequence"),
    feature("has_ipt_legacy", network::iptables_legacy, "the kernel's part of iptables-legacy"),
    feature("ipv6_freebind", network::ipv6_freebind, "IPV6_FREEBIND"),
    feature("link_nsid", network::link_nsid, "network devices by the id of their namespace"),
    feature("loginuid", process::loginuid, "login uids can be read and set"),
    feature("mem_dirty_track", memory::dirty_tracking, "pages that were written to are marked"),
    feature("memfd_hugetlb", memory::memfd_hugetlb, "memfds of huge pages"),
    feature("mnt_id", file::mount_id, "the mount of a file in fdinfo"),
    feature("move_mount_set_group", file::mount_group, "mounts can be put into a peer group"),
    feature("net_diag_raw", network::diag_raw, "raw sockets can be asked about"),
    feature("network_lock_nftables", network::nftables_sets, "sets of connections in nftables"),
    feature("newifindex", network::new_ifindex, "network devices with a number of our choice"),
    feature("nftables", network::nftables, "nftables"),
    feature("ns_pid", process::ns_pid, "the pid in each namespace in /proc/PID/status"),
    feature("pagemap_scan_guard_pages", memory::guard_pages, "PAGEMAP_SCAN sees guard pages"),
    feature("pidfd_store", process::pidfd, "pidfds, by which descriptors are fetched"),
    feature("seccomp_filters", process::seccomp_filters, "seccomp filters can be read"),
    feature("seccomp_suspend", process::seccomp_suspend, "seccomp filters can be suspended"),
    feature("sk_unix_file", network::unix_file, "the file a unix socket is bound to can be opened"),
    feature("sockopt_buf_lock", network::buffer_lock, "SO_BUF_LOCK"),
    feature("timens", process::time_namespace, "time namespaces"),
    feature("timerfd", file::timer, "timerfds in fdinfo, their ticks can be set"),
    feature("tun", network::tun, "devices of tun"),
    feature("tun_ns", network::tun_namespace, "the network namespace of a device of tun"),
    feature("uffd", memory::userfault, "userfaultfd(2)"),
    feature("uffd-noncoop", memory::userfault_noncooperative, "userfaultfd(2) for others' memory"),
    feature("userns", process::user_namespace, "user namespaces"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_contract_is_there_once() {
        let names = "mem_dirty_track uffd uffd-noncoop userns aio_remap apparmor_stacking autofs cgroupns fdinfo_lock \
            get_rseq_conf has_ipt_legacy ipv6_freebind link_nsid loginuid memfd_hugetlb mnt_id move_mount_set_group \
            net_diag_raw network_lock_nftables newifindex nftables ns_pid pagemap_scan_guard_pages pidfd_store \
            seccomp_filters seccomp_suspend sk_unix_file sockopt_buf_lock timens timerfd tun tun_ns";
        let mut want: Vec<_> = names.split_whitespace().collect();
        want.sort_unstable();
        let mut found: Vec<_> = FEATURES.iter().map(|feature| feature.name).collect();
        found.sort_unstable();
        assert_eq!(found, want);
    }

    #[test]
    fn names_like_one() {
        assert!(find("memdirty_track").unwrap_err().contains("(is mem_dirty_track meant?)"));
        assert!(!find("nonsense").unwrap_err().contains("meant"));
    }
}
