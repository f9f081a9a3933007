//! As much of the image format as a black-box test may know (docs/image-format.md): framing and checksums; and, to
//! make images that are sound but say something else, the product's own reader and writer.

use anyhow::{Context as _, Result, bail};
use ckpt_image::{BLOCK_SIZE, Block, BlockSink, Image, Reader, Writer};
use twox_hash::XxHash3_64;

/// The offset of `arch` in every image of every revision.
pub const ARCH_OFFSET: usize = 20;

/// Where the boot id begins.
pub const BOOT_ID: usize = 104;

/// The offsets at which records begin, and the end.
///
/// # Errors
/// The lengths do not add up to the whole.
pub fn boundaries(image: &[u8]) -> Result<Vec<usize>> {
    let mut at = 0;
    let mut found = vec![0];
    while at < image.len() {
        let Some(header) = image.get(at..at + 8) else { bail!("half a header at byte {at}") };
        let len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        if len < 8 || !len.is_multiple_of(8) || at + len > image.len() {
            bail!("a record of {len} bytes at byte {at}");
        }
        at += len;
        found.push(at);
    }
    Ok(found)
}

/// Type of the record that says what the processor must offer.
pub const HEADER_ARCH: u32 = 2;
/// Where its CPUID words begin.
pub const CPU_WORDS: usize = 48;
const PAD: u32 = 9;
const SUM: u32 = 10;
const PGARR: u32 = 403;
const TAIL: u32 = 9001;

fn kind(image: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]])
}

/// Where the first record of a type begins.
///
/// # Errors
/// There is none.
pub fn record_of_type(image: &[u8], wanted: u32) -> Result<usize> {
    let records = boundaries(image)?;
    let found = records.iter().find(|at| **at < image.len() && kind(image, **at) == wanted);
    found.copied().with_context(|| format!("no record of type {wanted}"))
}

/// Makes all sums right again, after a change to the contents.
///
/// # Errors
/// The framing is broken.
pub fn reseal(image: &mut [u8]) -> Result<()> {
    let (mut sums, mut group) = (Vec::new(), 0);
    for pair in boundaries(image)?.windows(2) {
        let (at, end) = (pair[0], pair[1]);
        let put = |image: &mut [u8], offset: usize, sum: u64| -> Result<()> {
            let place = image[at..end].get_mut(offset..offset + 8).context("a record too short")?;
            place.copy_from_slice(&sum.to_le_bytes());
            Ok(())
        };
        match kind(image, at) {
            SUM => {
                let sum = XxHash3_64::oneshot(&image[group..at]);
                put(image, 8, sum)?;
                sums.extend(sum.to_le_bytes());
                group = end;
            }
            PGARR => {
                put(image, 32, 0)?;
                let sum = XxHash3_64::oneshot(&image[at..end]);
                put(image, 32, sum)?;
                sums.extend(sum.to_le_bytes());
                group = end;
            }
            TAIL => put(image, 16, XxHash3_64::oneshot(&sums))?,
            PAD => group = end,
            _ => {}
        }
    }
    Ok(())
}

/// The metadata of an image.
///
/// # Errors
/// It is damaged.
pub fn metadata(image: &[u8]) -> Result<Image> {
    Ok(Reader::new(image).metadata()?)
}

/// An image of `metadata` with the pages of `image`, copied as they are.
///
/// # Errors
/// The metadata breaks a rule of the format, or `image` is damaged.
pub fn rewritten(image: &[u8], metadata: &Image) -> Result<Vec<u8>> {
    const TAIL_LEN: usize = 40;
    const PAGE: usize = 4096;
    let mut writer = Writer::new(Blocks(Vec::new()), Block::new(BLOCK_SIZE));
    metadata.write(&mut writer)?;
    let (Blocks(mut bytes), _) = writer.tail()?;
    bytes.truncate(bytes.len() - TAIL_LEN);
    let pad = (bytes.len() + 8).next_multiple_of(PAGE) - bytes.len();
    bytes.extend(PAD.to_le_bytes());
    bytes.extend(u32::try_from(pad)?.to_le_bytes());
    bytes.resize(bytes.len() + pad - 8, 0);
    bytes.extend(&image[record_of_type(image, PGARR)?..]);
    let (len, tail) = (bytes.len() as u64, record_of_type(&bytes, TAIL)?);
    bytes[tail + 24..tail + 32].copy_from_slice(&len.to_le_bytes());
    reseal(&mut bytes)?;
    Ok(bytes)
}

/// Takes blocks into memory.
struct Blocks(Vec<u8>);

impl BlockSink for Blocks {
    fn submit(&mut self, block: Block, _: bool) -> std::io::Result<Option<Block>> {
        self.0.extend(block.as_slice());
        Ok(Some(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_record() {
        let mut image = Vec::new();
        for (kind, len) in [(1u32, 16u32), (9001, 8)] {
            image.extend(kind.to_le_bytes());
            image.extend(len.to_le_bytes());
            image.resize(image.len() + len as usize - 8, 0);
        }
        assert_eq!(boundaries(&image).unwrap(), [0, 16, 24]);
        assert!(boundaries(&image[..20]).is_err());
    }
}
