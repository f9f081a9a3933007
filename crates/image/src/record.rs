//! Every record an image may hold: its type number, its fixed body and its counted fields.
//!
//! A fixed body is a `#[repr(C)]` little-endian structure without implicit padding (zerocopy's
//! `IntoBytes` refuses to compile it otherwise). Bodies evolve as the kernel's extensible
//! structs do: members are only appended; a shorter body on the wire is extended with zeros.
//! The type numbers are those of Linux-CR (`include/linux/checkpoint_hdr.h`); ours use the free
//! space of their group and are never reused.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes in a page of every architecture we write images for.
pub const PAGE_SIZE: usize = 4096;

/// First word of an image, right after the header record's `type` and `len` (Linux-CR).
pub const HEADER_MAGIC: u64 = 0x00fe_ed0c_c0a2_d200;

/// First word of the tail record's body (Linux-CR).
pub const TAIL_MAGIC: u64 = 0x002d_2a0c_c0de_ef00;

/// Format revision this crate writes. 1..=99 belong to Linux-CR.
pub const REV: u32 = 100;

/// `arch` of an x86-64 image (the ELF machine number, `EM_X86_64`).
pub const ARCH_X86_64: u32 = 62;

/// A positive number, unique in an image, that names a shared object. 0 means "none".
pub type Objref = i32;

/// A record body with a type number of its own.
pub trait Record: FromBytes + IntoBytes + KnownLayout + Immutable + Copy {
    /// The record's `type` word.
    const TYPE: u32;
    /// The record's name in messages and in `ckptinfo`.
    const NAME: &'static str;
    /// How many counted byte fields follow the fixed body.
    const FIELDS: usize;
}

/// One member of a wire structure: its name, its offset and its size in bytes.
pub type Member = (&'static str, usize, usize);

/// Declares one wire structure and, with a type number, makes it a [`Record`].
macro_rules! wire {
    ($(#[$meta:meta])* struct $name:ident { $($(#[$doc:meta])* pub $member:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
        #[repr(C)]
        pub struct $name { $($(#[$doc])* pub $member: $type,)* }

        impl $name {
            /// Its members in order, for documentation and listings.
            pub const MEMBERS: &'static [Member] =
                &[$((stringify!($member), std::mem::offset_of!($name, $member), size_of::<$type>())),*];
        }
    };
    ($(#[$meta:meta])* $number:literal $label:literal [$($field:ident),*] struct $name:ident { $($body:tt)* }) => {
        wire! {
            $(#[$meta])*
            struct $name { $($body)* }
        }
        impl Record for $name {
            const TYPE: u32 = $number;
            const NAME: &'static str = $label;
            const FIELDS: usize = <[&str]>::len(Self::FIELD_NAMES);
        }

        impl $name {
            /// Names of its counted byte fields, in order.
            pub const FIELD_NAMES: &'static [&'static str] = &[$(stringify!($field)),*];
        }
    };
}

mod anon;
mod file;
mod mm;
mod task;

pub use anon::*;
pub use file::*;
pub use mm::*;
pub use task::*;

wire! {
    /// First record of an image. `magic`, `rev` and `arch` sit at byte offsets 8, 16 and 20 of the
    /// file for ever. Three [`Buffer`] records follow: uts release, version and machine.
    1 "HEADER" [] struct Header {
        /// [`HEADER_MAGIC`].
        pub magic: u64,
        /// Format revision, [`REV`].
        pub rev: u32,
        /// ELF machine number, [`ARCH_X86_64`].
        pub arch: u32,
        /// Kernel version the image was taken on: major, minor, patch.
        pub kernel: [u16; 3],
        /// `TASK_COMM_LEN`.
        pub comm_len: u16,
        /// Bytes per page.
        pub page_size: u32,
        /// `_NSIG`.
        pub nr_signals: u16,
        /// `RLIM_NLIMITS`.
        pub nr_rlimits: u16,
        /// When the checkpoint began: nanoseconds since the epoch (CLOCK_REALTIME).
        pub time: u64,
        /// Flags the user gave; none are defined yet.
        pub uflags: u64,
        /// Random (RFC 9562 version 4) identity of this image.
        pub id: [u8; 16],
        /// Identity of the parent image, zero when there is none.
        pub parent: [u8; 16],
        /// CLOCK_MONOTONIC and CLOCK_BOOTTIME at the freeze, nanoseconds.
        pub clocks: [u64; 2],
        /// `/proc/sys/kernel/random/boot_id` as 16 bytes.
        pub boot_id: [u8; 16],
        /// uts node name of the machine, zeros behind it; see [`Header::nodename`].
        pub node: [[u8; 16]; 4],
    }
}

impl Header {
    /// The node name of the machine the image was taken on, empty when it is unknown.
    pub fn nodename(&self) -> &[u8] {
        let name = self.node.as_flattened();
        name.split(|b| *b == 0).next().unwrap_or(name)
    }

    /// Sets the node name; no kernel has one of more than 64 bytes.
    pub fn set_nodename(&mut self, name: &[u8]) {
        self.node = Default::default();
        self.node.as_flattened_mut().iter_mut().zip(name).for_each(|(to, from)| *to = *from);
    }
}

wire! {
    /// What the processor must offer for the saved register state to be loaded, and for the program to run.
    2 "HEADER_ARCH" [] struct HeaderArch {
        /// XCR0: xsave components the kernel had enabled.
        pub xfeatures: u64,
        /// Bytes of the widest xsave area in the image.
        pub xsave_size: u32,
        /// Bytes of the vvar mappings before the vdso.
        pub vvar_len: u32,
        /// xxh3 of the vdso's bytes: programs hold pointers into it.
        pub vdso_sum: u64,
        /// Bytes of the vdso.
        pub vdso_len: u64,
        /// Union of the xsave components actually in use (XSTATE_BV) by the saved threads.
        pub xfeatures_used: u64,
        /// CPUID words by which a program may have chosen its code; all zero: unknown. Leaf 1 ecx, edx;
        /// 7.0 ebx, ecx, edx; 7.1 eax, edx; 0xd.1 eax; 0x80000001 ecx, edx; 0x80000008 ebx; 0x1e.1 eax.
        pub cpu: [u32; 12],
    }
}

wire! {
    /// A counted run of bytes whose meaning its place gives.
    4 "BUFFER" [bytes] struct Buffer {}
}

wire! {
    /// A NUL-led text: the message of a preceding [`ErrorMark`].
    5 "STRING" [text] struct Text {}
}

wire! {
    /// Introduces a shared object: the object's records follow at once.
    6 "OBJREF" [] struct ObjrefMark {
        /// Which kind: the `TYPE` of the object's first record.
        pub objtype: u32,
        /// Its number.
        pub objref: i32,
    }
}

/// Type of a padding record: all bytes after `type` and `len` are zero.
pub const PAD_TYPE: u32 = 9;

wire! {
    /// Ends a group of records: the xxh3 of every byte since the previous group's end.
    10 "SUM" [] struct Sum {
        /// xxh3-64 of the group, seed 0.
        pub sum: u64,
    }
}

wire! {
    /// Last record.
    9001 "TAIL" [] struct Tail {
        /// [`TAIL_MAGIC`].
        pub magic: u64,
        /// xxh3-64, seed 0, of the sums (8 bytes LE each) of every group and chunk, in order.
        pub digest: u64,
        /// Bytes of the image, this record included.
        pub len: u64,
        /// Pages stored.
        pub nr_pages: u64,
    }
}

wire! {
    /// The checkpoint failed here; a [`Text`] record follows and ends the stream.
    9999 "ERROR" [] struct ErrorMark {}
}

/// A record type's shape, for the framing, for listings and for documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordType {
    /// The `type` word.
    pub number: u32,
    /// Name in messages and listings.
    pub name: &'static str,
    /// Bytes of the fixed body this crate writes.
    pub fixed_len: usize,
    /// Members of the fixed body.
    pub members: &'static [Member],
    /// Names of the counted byte fields that follow it.
    pub fields: &'static [&'static str],
}

macro_rules! of {
    ($name:ident) => {
        RecordType {
            number: $name::TYPE,
            name: $name::NAME,
            fixed_len: size_of::<$name>(),
            members: $name::MEMBERS,
            fields: $name::FIELD_NAMES,
        }
    };
}

/// Every record type, ascending.
pub const TYPES: &[RecordType] = &[
    of!(Header),
    of!(HeaderArch),
    of!(Buffer),
    of!(Text),
    of!(ObjrefMark),
    RecordType { number: PAD_TYPE, name: "PAD", fixed_len: 0, members: &[], fields: &[] },
    of!(Sum),
    of!(Tree),
    of!(Task),
    of!(Thread),
    of!(Cred),
    of!(FileTable),
    of!(File),
    of!(Inode),
    of!(Mm),
    of!(Vma),
    of!(Pgarr),
    of!(Fs),
    of!(Sighand),
    of!(Signal),
    of!(Tail),
    of!(ErrorMark),
];

/// The name of a record type, if it is known.
pub fn name_of(number: u32) -> Option<&'static str> {
    TYPES.iter().find(|known| known.number == number).map(|known| known.name)
}
