//! Scratch memory for vectors.

/// Bytes of a cache line, and of the widest vector of a CPU.
const LINE: usize = 64;

/// Elements that begin at a cache line, so that no vector straddles two: otherwise products take
/// about a tenth longer.
#[derive(Default)]
pub(crate) struct Aligned {
    elements: Vec<f32>,
    first: usize,
    length: usize,
}

impl Aligned {
    pub(crate) const fn empty() -> Self {
        let elements = Vec::new();
        Self {
            elements,
            first: 0,
            length: 0,
        }
    }

    pub(crate) fn zeros(length: usize) -> Self {
        let mut aligned = Self::empty();
        aligned.resize(length);
        aligned
    }

    /// The previous contents are lost.
    pub(crate) fn resize(&mut self, length: usize) {
        let spare = LINE / size_of::<f32>();
        if self.elements.len() < length + spare {
            self.elements = vec![0.0; length + spare];
        }
        self.first = self.elements.as_ptr().align_offset(LINE).min(spare);
        self.length = length;
    }

    pub(crate) fn elements(&self) -> &[f32] {
        &self.elements[self.first..][..self.length]
    }

    pub(crate) fn elements_mut(&mut self) -> &mut [f32] {
        &mut self.elements[self.first..][..self.length]
    }
}
