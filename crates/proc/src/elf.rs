//! The build id of an ELF file (elf(5)): what tells at restart that the mapped library is still the same.

/// Bytes of an ELF64 file header.
const EHDR_LEN: usize = 64;
/// Bytes of an ELF64 program header.
const PHDR_LEN: usize = 56;
/// `p_type` of a segment of notes.
const PT_NOTE: u32 = 4;
/// `n_type` of the build id, of owner `GNU`.
const NT_GNU_BUILD_ID: u32 = 3;
/// The most program headers looked at; real files have about a dozen.
const MAX_PHDRS: u16 = 256;
/// The largest segment of notes looked at; real ones are under a hundred bytes.
const MAX_NOTES: u64 = 1 << 20;
/// The longest build id believed: 20 bytes are usual, a SHA-512 is the most any linker makes.
const MAX_BUILD_ID: usize = 64;

/// The build id of a little-endian ELF64 file of which `file` is the start; 64 KiB do for all that linkers
/// make, and the whole of a vDSO (vdso(7)) does too. `None` when there is none, or it is not within `file`, or
/// that is not ELF (elf(5)).
pub fn build_id(file: &[u8]) -> Option<Vec<u8>> {
    build_id_with(|offset, len| {
        let start = usize::try_from(offset).ok()?;
        file.get(start..start.checked_add(len)?).map(<[u8]>::to_vec)
    })
}

/// The build id of a little-endian ELF64 file read by `read(offset, len)`, which gives exactly `len` bytes or
/// `None`. It is called with at most 1 MiB at a time, and at most once per segment of notes and twice more.
pub fn build_id_with(mut read: impl FnMut(u64, usize) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    let header = read(0, EHDR_LEN)?;
    // Magic, ELFCLASS64, ELFDATA2LSB.
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let phoff = u64_at(&header, 32)?;
    let phentsize = u16_at(&header, 54)?;
    let phnum = u16_at(&header, 56)?.min(MAX_PHDRS);
    if usize::from(phentsize) != PHDR_LEN {
        return None;
    }
    let table = read(phoff, PHDR_LEN * usize::from(phnum))?;
    for phdr in table.chunks_exact(PHDR_LEN) {
        let (offset, len) = (u64_at(phdr, 8)?, u64_at(phdr, 32)?);
        if u32_at(phdr, 0)? != PT_NOTE || len > MAX_NOTES {
            continue;
        }
        let align = if u64_at(phdr, 48)? == 8 { 8 } else { 4 };
        let notes = usize::try_from(len).ok().and_then(|len| read(offset, len));
        if let Some(id) = notes.as_deref().and_then(|notes| find_build_id(notes, align)) {
            return Some(id.to_vec());
        }
    }
    None
}

/// Looks through a segment of notes; names and contents are padded to `align`.
fn find_build_id(mut notes: &[u8], align: usize) -> Option<&[u8]> {
    loop {
        let name_len = usize::try_from(u32_at(notes, 0)?).ok()?;
        let desc_len = usize::try_from(u32_at(notes, 4)?).ok()?;
        let kind = u32_at(notes, 8)?;
        let name_end = 12usize.checked_add(name_len)?;
        let name = notes.get(12..name_end)?;
        let desc_start = name_end.checked_next_multiple_of(align)?;
        let desc_end = desc_start.checked_add(desc_len)?;
        let desc = notes.get(desc_start..desc_end)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" && (1..=MAX_BUILD_ID).contains(&desc_len) {
            return Some(desc);
        }
        notes = notes.get(desc_end.checked_next_multiple_of(align)?..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of one note segment.
    fn elf(notes: &[u8], align: u64) -> Vec<u8> {
        let mut file = vec![0; EHDR_LEN + PHDR_LEN];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32..40].copy_from_slice(&(EHDR_LEN as u64).to_le_bytes());
        file[54..56].copy_from_slice(&(PHDR_LEN as u16).to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        let phdr = &mut file[EHDR_LEN..];
        phdr[..4].copy_from_slice(&PT_NOTE.to_le_bytes());
        phdr[8..16].copy_from_slice(&((EHDR_LEN + PHDR_LEN) as u64).to_le_bytes());
        phdr[32..40].copy_from_slice(&(notes.len() as u64).to_le_bytes());
        phdr[48..56].copy_from_slice(&align.to_le_bytes());
        file.extend_from_slice(notes);
        file
    }

    fn note(kind: u32, name: &[u8], desc: &[u8], align: usize) -> Vec<u8> {
        let mut note = Vec::new();
        note.extend((name.len() as u32).to_le_bytes());
        note.extend((desc.len() as u32).to_le_bytes());
        note.extend(kind.to_le_bytes());
        note.extend(name);
        note.resize(note.len().next_multiple_of(align), 0);
        note.extend(desc);
        note.resize(note.len().next_multiple_of(align), 0);
        note
    }

    #[test]
    fn finds_the_note_behind_others() {
        for align in [4, 8] {
            let notes = [
                note(1, b"GNU\0", b"abi!", align),
                note(3, b"FreeBSD\0", b"no", align),
                note(3, b"GNU\0", b"id", align),
            ]
            .concat();
            let file = elf(&notes, align as u64);
            assert_eq!(build_id(&file).as_deref(), Some(&b"id"[..]));
            for len in 0..file.len() - 8 {
                assert_eq!(build_id(&file[..len]), None, "cut to {len}");
            }
        }
    }

    #[test]
    fn refuses_what_is_not_there() {
        assert_eq!(build_id(b""), None);
        assert_eq!(build_id(&elf(b"", 4)), None);
        assert_eq!(build_id(&elf(&note(3, b"GNU\0", &[0; 65], 4), 4)), None);
        assert_eq!(build_id(&elf(&note(3, b"GNU\0", b"", 4), 4)), None);
        let mut huge = elf(&note(3, b"GNU\0", b"id", 4), 4);
        huge[EHDR_LEN + PHDR_LEN..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(build_id(&huge), None);
        let mut far = elf(&note(3, b"GNU\0", b"id", 4), 4);
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(build_id(&far), None);
    }
}
