//! Processor features that a program may have chosen its code by, and what another machine lacks of them.
//!
//! Only features with instructions of their own are named: those of the kernel, and those that
//! merely say what is fast, may differ. The names are those of /proc/cpuinfo.

use crate::{
    frame::{head, sum},
    record::{HeaderArch, Record},
};
use zerocopy::{FromBytes, IntoBytes};

/// First bytes of a file that says what a processor offers.
const FILE_MAGIC: &[u8; 8] = b"ckptcpu\x01";

/// A word of [`HeaderArch::cpu`]: the bits of it that are compared, with their names.
type Word = &'static [(u32, &'static str)];

/// The words in the order of [`HeaderArch::cpu`].
const WORDS: [Word; 12] = [
    &[
        (0, "pni"),
        (1, "pclmulqdq"),
        (9, "ssse3"),
        (12, "fma"),
        (13, "cx16"),
        (19, "sse4_1"),
        (20, "sse4_2"),
        (22, "movbe"),
        (23, "popcnt"),
        (25, "aes"),
        (26, "xsave"),
        (28, "avx"),
        (29, "f16c"),
        (30, "rdrand"),
    ],
    &[(4, "tsc"), (8, "cx8"), (15, "cmov"), (19, "clflush"), (23, "mmx"), (25, "sse"), (26, "sse2")],
    &[
        (0, "fsgsbase"),
        (3, "bmi1"),
        (5, "avx2"),
        (8, "bmi2"),
        (11, "rtm"),
        (16, "avx512f"),
        (17, "avx512dq"),
        (18, "rdseed"),
        (19, "adx"),
        (21, "avx512ifma"),
        (23, "clflushopt"),
        (24, "clwb"),
        (26, "avx512pf"),
        (27, "avx512er"),
        (28, "avx512cd"),
        (29, "sha_ni"),
        (30, "avx512bw"),
        (31, "avx512vl"),
    ],
    &[
        (1, "avx512vbmi"),
        (4, "ospke"),
        (5, "waitpkg"),
        (6, "avx512_vbmi2"),
        (8, "gfni"),
        (9, "vaes"),
        (10, "vpclmulqdq"),
        (11, "avx512_vnni"),
        (12, "avx512_bitalg"),
        (14, "avx512_vpopcntdq"),
        (22, "rdpid"),
        (27, "movdiri"),
        (28, "movdir64b"),
        (29, "enqcmd"),
    ],
    &[
        (2, "avx512_4vnniw"),
        (3, "avx512_4fmaps"),
        (8, "avx512_vp2intersect"),
        (14, "serialize"),
        (16, "tsxldtrk"),
        (22, "amx_bf16"),
        (23, "avx512_fp16"),
        (24, "amx_tile"),
        (25, "amx_int8"),
    ],
    &[
        (0, "sha512"),
        (1, "sm3"),
        (2, "sm4"),
        (4, "avx_vnni"),
        (5, "avx512_bf16"),
        (7, "cmpccxadd"),
        (21, "amx_fp16"),
        (23, "avx_ifma"),
    ],
    &[
        (4, "avx_vnni_int8"),
        (5, "avx_ne_convert"),
        (8, "amx_complex"),
        (10, "avx_vnni_int16"),
        (19, "avx10"),
        (21, "apx"),
    ],
    &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1")],
    &[(0, "lahf_lm"), (5, "abm"), (6, "sse4a"), (11, "xop"), (16, "fma4"), (21, "tbm"), (29, "mwaitx")],
    &[(22, "mmxext"), (27, "rdtscp"), (30, "3dnowext"), (31, "3dnow")],
    &[(0, "clzero"), (4, "rdpru")],
    &[(4, "amx_fp8"), (5, "amx_transpose"), (6, "amx_tf32"), (7, "amx_avx512"), (8, "amx_movrs")],
];

/// Features that the kernel takes away by not enabling their xsave components.
const COMPONENTS: [(u64, &str); 4] =
    [(1 << 2, "avx"), (7 << 5, "avx512f"), (1 << 9, "ospke"), (3 << 17, "amx_tile")];

impl HeaderArch {
    /// A file with this record alone: magic, `type` and `len`, body, and the xxh3-64 of all that.
    pub fn to_file(&self) -> Vec<u8> {
        let body = self.as_bytes();
        let mut bytes = FILE_MAGIC.to_vec();
        bytes.extend(head(Self::TYPE, 8 + body.len() as u32));
        bytes.extend(body);
        bytes.extend(sum(&bytes).to_le_bytes());
        bytes
    }

    /// What [`HeaderArch::to_file`] wrote.
    ///
    /// # Errors
    /// It is no such file, another version's, or damaged: which.
    pub fn from_file(bytes: &[u8]) -> Result<HeaderArch, &'static str> {
        let rest = bytes.strip_prefix(FILE_MAGIC).ok_or("it is no description of a processor")?;
        let (content, end) = bytes.split_last_chunk::<8>().ok_or("it is cut off")?;
        if sum(content).to_le_bytes() != *end {
            return Err("it is damaged: its checksum is wrong");
        }
        let want = head(Self::TYPE, 8 + size_of::<HeaderArch>() as u32);
        let body = rest.strip_prefix(&want).and_then(|rest| rest.get(..rest.len().saturating_sub(8)));
        let read = body.and_then(|body| HeaderArch::read_from_bytes(body).ok());
        read.ok_or("it was written by another version")
    }

    /// Names of the features in `cpu`.
    pub fn features(&self) -> Vec<&'static str> {
        let bits = |(word, names): (&u32, &Word)| {
            let word = *word;
            names.iter().filter(move |(bit, _)| word >> bit & 1 != 0).map(|(_, name)| *name)
        };
        self.cpu.iter().zip(&WORDS).flat_map(bits).collect()
    }

    /// Names of the features that were there when the image was taken and that `here` lacks. An
    /// image that does not say what there was (all zero) lacks nothing.
    pub fn lacking(&self, here: &HeaderArch) -> Vec<&'static str> {
        let known = self.cpu != [0; 12];
        let taken =
            |(components, _): &&(u64, &str)| known && self.xfeatures & !here.xfeatures & components != 0;
        let there = here.features();
        let mut lacking: Vec<_> = self.features().into_iter().filter(|name| !there.contains(name)).collect();
        for (_, name) in COMPONENTS.iter().filter(taken) {
            if !lacking.contains(name) {
                lacking.push(name);
            }
        }
        lacking
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_ascending_and_names_unique() {
        assert!(WORDS.iter().all(|word| word.is_sorted_by(|a, b| a.0 < b.0 && b.0 < 32)));
        let mut names: Vec<_> = WORDS.iter().flat_map(|word| word.iter().map(|(_, name)| name)).collect();
        names.sort_unstable();
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
    }

    #[test]
    fn files_come_back_and_damage_is_seen() {
        let mut there = HeaderArch { xfeatures: 7, ..HeaderArch::default() };
        there.cpu[0] = 1 << 28;
        let file = there.to_file();
        assert_eq!(HeaderArch::from_file(&file), Ok(there));
        for at in 0..file.len() {
            let mut wrong = file.clone();
            wrong[at] ^= 0x10;
            assert!(HeaderArch::from_file(&wrong).is_err(), "{at}");
            assert!(HeaderArch::from_file(&file[..at]).is_err(), "{at}");
        }
    }

    #[test]
    fn only_what_is_less_is_lacking() {
        let mut here = HeaderArch { xfeatures: 7, ..HeaderArch::default() };
        let mut there = HeaderArch { xfeatures: 7 | 7 << 5, ..HeaderArch::default() };
        assert!(there.lacking(&here).is_empty(), "nothing is known of it");
        there.cpu[0] = 1 << 28 | 1 << 27;
        here.cpu[0] = 1 << 30;
        assert_eq!(there.lacking(&here), ["avx", "avx512f"]);
        here.xfeatures = there.xfeatures;
        here.cpu[0] |= 1 << 28;
        assert!(there.lacking(&here).is_empty(), "OSXSAVE has no instruction of its own");
    }
}
