//! Page-aligned buffers, without `unsafe`: a vector with a page of slack, sliced where it aligns.

use crate::record::PAGE_SIZE;

/// Bytes of the blocks a writer fills, and the longest page chunk.
pub const BLOCK_SIZE: usize = 4 << 20;

/// A page-aligned buffer that is filled from its beginning.
///
/// The memory comes zeroed from the allocator and is reused as it is: bytes beyond the filled part
/// are whatever was there.
#[derive(Debug)]
pub struct Block {
    bytes: Vec<u8>,
    start: usize,
    capacity: usize,
    len: usize,
}

impl Block {
    /// A block of `capacity` bytes, rounded up to whole pages and to no fewer than two (a chunk's
    /// header and one page of data).
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.clamp(2 * PAGE_SIZE, usize::MAX / 4).next_multiple_of(PAGE_SIZE);
        let bytes = vec![0; capacity + PAGE_SIZE];
        let start = bytes.as_ptr().align_offset(PAGE_SIZE).min(PAGE_SIZE);
        Self { bytes, start, capacity, len: 0 }
    }

    /// Stands in for a block that is with the sink; nothing fits in it.
    pub(crate) fn absent() -> Self {
        Self { bytes: Vec::new(), start: 0, capacity: 0, len: 0 }
    }

    /// The filled part.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(self.start..self.start + self.len).unwrap_or_default()
    }

    /// The filled part.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.start + self.len).unwrap_or_default()
    }

    /// What is not filled yet; [`advance`](Self::advance) makes a beginning of it filled.
    pub fn spare_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start + self.len..self.start + self.capacity).unwrap_or_default()
    }

    /// Counts the first `n` spare bytes as filled (at most all of them).
    pub fn advance(&mut self, n: usize) {
        self.len += n.min(self.capacity - self.len);
    }

    /// Makes it empty.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes filled.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is filled.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends what fits of `bytes` and says how many that were.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> usize {
        let spare = self.spare_mut();
        let n = spare.len().min(bytes.len());
        if let (Some(to), Some(from)) = (spare.get_mut(..n), bytes.get(..n)) {
            to.copy_from_slice(from);
        }
        self.advance(n);
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_bounded() {
        for capacity in [0, 1, PAGE_SIZE, 3 * PAGE_SIZE + 1, BLOCK_SIZE] {
            let mut block = Block::new(capacity);
            assert!(block.capacity() >= capacity && block.capacity().is_multiple_of(PAGE_SIZE));
            assert_eq!(block.spare_mut().as_ptr().align_offset(PAGE_SIZE), 0);
            assert_eq!(block.spare_mut().len(), block.capacity());
            assert_eq!(block.append(b"seven b"), 7);
            assert_eq!(block.as_slice(), b"seven b");
            block.advance(usize::MAX);
            assert_eq!(block.len(), block.capacity());
            assert_eq!(block.append(b"x"), 0);
            block.clear();
            assert!(block.is_empty());
        }
    }
}
