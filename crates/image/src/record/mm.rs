//! Address spaces and page contents: the records of 401-449.

use super::*;

wire! {
    /// An address space. [`Vma`] records follow, ascending. Field: auxv.
    401 "MM" [auxv] struct Mm {
        /// Vmas that follow.
        pub nr_vmas: u32,
        /// File of /proc/PID/exe, [`File`].
        pub exe: i32,
        /// Start of the program text. This and the members up to `env_end` are those of
        /// `struct prctl_mm_map` (PR_SET_MM_MAP).
        pub start_code: u64,
        /// End of the program text.
        pub end_code: u64,
        /// Start of initialised data.
        pub start_data: u64,
        /// End of initialised data.
        pub end_data: u64,
        /// Where the heap begins.
        pub start_brk: u64,
        /// The program break.
        pub brk: u64,
        /// Bottom of the stack at exec.
        pub start_stack: u64,
        /// First byte of argv strings.
        pub arg_start: u64,
        /// One past the argv strings.
        pub arg_end: u64,
        /// First byte of the environment strings.
        pub env_start: u64,
        /// One past the environment strings.
        pub env_end: u64,
        /// PR_GET_DUMPABLE.
        pub dumpable: u32,
        /// /proc/PID/coredump_filter.
        pub coredump_filter: u32,
        /// PR_GET_THP_DISABLE: the switch, and its flags (Linux 6.18).
        pub thp_disable: u32,
        /// membarrier(MEMBARRIER_CMD_GET_REGISTRATIONS).
        pub membarrier: u32,
        /// Zero.
        pub pad: u32,
        /// mlockall(2) flags in force for future mappings (MCL_*).
        pub mlock_future: u32,
    }
}

wire! {
    /// One virtual memory area. Field: name given by PR_SET_VMA_ANON_NAME (may be empty).
    402 "VMA" [anon_name] struct Vma {
        /// First byte.
        pub start: u64,
        /// One past the last byte.
        pub end: u64,
        /// PROT_READ | PROT_WRITE | PROT_EXEC.
        pub prot: u32,
        /// [`vma_kind`].
        pub kind: u32,
        /// [`vma_flags`].
        pub flags: u64,
        /// Offset in the file or shared object, bytes.
        pub offset: u64,
        /// Mapped file ([`File`]) or shared object ([`Inode`]), or 0.
        pub object: i32,
        /// Zero.
        pub pad: u32,
    }
}

/// Values of [`Vma::kind`].
pub mod vma_kind {
    /// MAP_PRIVATE | MAP_ANONYMOUS (heap and stack too).
    pub const ANON_PRIVATE: u32 = 1;
    /// MAP_SHARED | MAP_ANONYMOUS; `object` is an Inode.
    pub const ANON_SHARED: u32 = 2;
    /// MAP_PRIVATE of a file.
    pub const FILE_PRIVATE: u32 = 3;
    /// MAP_SHARED of a file.
    pub const FILE_SHARED: u32 = 4;
    /// The kernel's vdso.
    pub const VDSO: u32 = 5;
    /// The kernel's vvar or vvar_vclock.
    pub const VVAR: u32 = 6;
    /// Every value above; a reader refuses any other.
    pub const ALL: &[u32] = &[ANON_PRIVATE, ANON_SHARED, FILE_PRIVATE, FILE_SHARED, VDSO, VVAR];
}

/// Bits of [`Vma::flags`]; the two letters are those of VmFlags in /proc/PID/smaps.
pub mod vma_flags {
    /// `gd` MAP_GROWSDOWN.
    pub const GROWSDOWN: u64 = 1 << 0;
    /// `nr` MAP_NORESERVE.
    pub const NORESERVE: u64 = 1 << 1;
    /// `ac` accounted: was writable once.
    pub const ACCOUNTED: u64 = 1 << 2;
    /// `lo` locked.
    pub const LOCKED: u64 = 1 << 3;
    /// `lf` locked on fault.
    pub const LOCK_ON_FAULT: u64 = 1 << 4;
    /// `dc` MADV_DONTFORK.
    pub const DONTFORK: u64 = 1 << 5;
    /// `dd` MADV_DONTDUMP.
    pub const DONTDUMP: u64 = 1 << 6;
    /// `wf` MADV_WIPEONFORK.
    pub const WIPEONFORK: u64 = 1 << 7;
    /// `hg` MADV_HUGEPAGE.
    pub const HUGEPAGE: u64 = 1 << 8;
    /// `nh` MADV_NOHUGEPAGE.
    pub const NOHUGEPAGE: u64 = 1 << 9;
    /// `mg` MADV_MERGEABLE.
    pub const MERGEABLE: u64 = 1 << 10;
    /// `sr` MADV_SEQUENTIAL.
    pub const SEQUENTIAL: u64 = 1 << 11;
    /// `rr` MADV_RANDOM.
    pub const RANDOM: u64 = 1 << 12;
    /// `sl` mseal(2)ed.
    pub const SEALED: u64 = 1 << 13;
    /// Every bit above; a reader refuses any other.
    pub const ALL: u64 = GROWSDOWN
        | NORESERVE
        | ACCOUNTED
        | LOCKED
        | LOCK_ON_FAULT
        | DONTFORK
        | DONTDUMP
        | WIPEONFORK
        | HUGEPAGE
        | NOHUGEPAGE
        | MERGEABLE
        | SEQUENTIAL
        | RANDOM
        | SEALED;
}

wire! {
    /// Begins a chunk of page contents. The whole record is page-aligned in the image: one page
    /// that holds `type`, `len`, this body and the array of [`Run`], zero-filled, then the data.
    403 "PGARR" [] struct Pgarr {
        /// Whose pages: [`Mm`] (runs are addresses) or [`Inode`] (runs are file offsets).
        pub objref: i32,
        /// [`codec`].
        pub codec: u32,
        /// Runs in the array, at most [`MAX_RUNS`].
        pub nr_runs: u32,
        /// Pages stored: those of all runs without [`run_flags::ZERO`].
        pub nr_pages: u32,
        /// Bytes of data after the first page.
        pub data_len: u64,
        /// xxh3-64 of the whole record with this member zero, seed 0.
        pub sum: u64,
    }
}

wire! {
    /// Consecutive pages of a chunk.
    struct Run {
        /// First address, or file offset: a multiple of the page size.
        pub start: u64,
        /// Pages.
        pub nr_pages: u32,
        /// [`run_flags`].
        pub flags: u32,
    }
}

/// Bits of [`Run::flags`].
pub mod run_flags {
    /// The pages are all zero and no data is stored for them.
    pub const ZERO: u32 = 1;
}

/// Values of [`Pgarr::codec`].
pub mod codec {
    /// Stored as they are.
    pub const NONE: u32 = 0;
}

/// Most runs in one chunk: what fits in its first page.
pub const MAX_RUNS: usize = (PAGE_SIZE - 8 - size_of::<Pgarr>()) / size_of::<Run>();
