//! Zeros that cost memory only where something was written.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// Numbers that are 0 until they are written. The system gives them page by page: an allocator may reuse memory instead, which it
/// would have to fill with zeros at once.
pub(crate) struct Zeroed {
    map: MmapMut,
    len: usize,
}

impl Zeroed {
    /// So many, or nothing where the address space has no room.
    pub(crate) fn new(len: usize) -> Option<Zeroed> {
        let bytes = len.checked_mul(size_of::<f32>())?;
        // A map of nothing is refused.
        let map = MmapMut::map_anon(bytes.max(1)).ok()?;
        Some(Zeroed { map, len })
    }
}

impl Deref for Zeroed {
    type Target = [f32];

    #[inline]
    fn deref(&self) -> &[f32] {
        #[expect(unsafe_code, reason = "the bytes of a map are seen as numbers")]
        // SAFETY: a map is aligned to pages and has `len` numbers of four bytes; every four bytes are a number.
        unsafe {
            core::slice::from_raw_parts(self.map.as_ptr().cast(), self.len)
        }
    }
}

impl DerefMut for Zeroed {
    #[inline]
    fn deref_mut(&mut self) -> &mut [f32] {
        #[expect(unsafe_code, reason = "the bytes of a map are seen as numbers")]
        // SAFETY: as above, and nobody else has the map.
        unsafe {
            core::slice::from_raw_parts_mut(self.map.as_mut_ptr().cast(), self.len)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_written_is_zero() {
        let mut numbers = Zeroed::new(100_000).unwrap();
        numbers[7] = 1.5;
        numbers[99_999] = 2.0;
        assert_eq!((numbers.len(), numbers.iter().sum::<f32>()), (100_000, 3.5));
        assert!(Zeroed::new(0).unwrap().is_empty());
        assert!(Zeroed::new(usize::MAX / 2).is_none());
        assert!(Zeroed::new(1 << 58).is_none());
    }
}
