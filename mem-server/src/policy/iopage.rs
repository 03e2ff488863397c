//! Hot I/O pages: which pages a device with an address limit keeps forcing into bounce buffers.
//!
//! Waldspurger 2002, section 7: copies are counted per page in a small cache on the way to the device; a page copied
//! often enough is moved to memory the device reaches, and its copies end.

/// Pages counted at once.
pub const SETS: usize = 256;

/// Copies of one page.
#[derive(Clone, Copy, Debug)]
struct Line {
    vm: u8,
    index: u32,
    copies: u32,
}

const EMPTY: Line = Line { vm: u8::MAX, index: 0, copies: 0 };

/// The cache of copied pages: direct mapped; a page that loses its line starts counting anew.
#[derive(Clone, Debug)]
pub struct HotPages {
    lines: [Line; SETS],
    threshold: u32,
}

impl HotPages {
    /// Pages are hot from `threshold` copies on.
    pub const fn new(threshold: u32) -> Self {
        Self { lines: [EMPTY; SETS], threshold }
    }

    /// Page `index` of `vm` was copied to a bounce buffer. True if it should be moved now.
    pub const fn copied(&mut self, vm: u8, index: u32) -> bool {
        let line = &mut self.lines[(index as usize ^ ((vm as usize) << 4)) % SETS];
        if line.vm != vm || line.index != index {
            *line = Line { vm, index, copies: 0 };
        }
        line.copies += 1;
        if line.copies < self.threshold {
            return false;
        }
        *line = EMPTY;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_hot_exactly_at_the_threshold() {
        let mut pages = HotPages::new(3);
        assert_eq!([0, 1, 2, 3].map(|_| pages.copied(1, 9)), [false, false, true, false]);
        assert!(!pages.copied(2, 9));
        // Another page in the same line pushes it out.
        assert!(!pages.copied(1, 9 + SETS as u32));
        assert_eq!([0, 1].map(|_| pages.copied(1, 9)), [false, false]);
    }
}
