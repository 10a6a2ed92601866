//! Reading from bytes that may be damaged.

use super::GgufError;

/// A position in the bytes of a file. Nothing is read past the end, and nothing is allocated for
/// more elements than the bytes can hold.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, count: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let left = self.left();
        let within = usize::try_from(count).ok().filter(|count| *count <= left);
        let count = within.ok_or(GgufError::CutOff {
            what,
            at: self.at,
            expected: count,
            found: left as u64,
        })?;
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], GgufError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length, followed by UTF-8.
    pub(super) fn text(&mut self, what: &'static str) -> Result<&'a str, GgufError> {
        let length = self.u64(what)?;
        let at = self.at;
        let bytes = self.take(length, what)?;
        str::from_utf8(bytes).map_err(|_| {
            let shown: String = String::from_utf8_lossy(bytes).chars().take(40).collect();
            GgufError::damaged(format!("{what} at byte {at}"), "UTF-8", shown)
        })
    }

    /// The number of items that follow, each of which takes at least `smallest` bytes.
    pub(super) fn count(
        &mut self,
        what: &'static str,
        smallest: usize,
    ) -> Result<usize, GgufError> {
        let count = self.u64(what)?;
        let most = self.left() / smallest;
        let within = usize::try_from(count).ok().filter(|count| *count <= most);
        within.ok_or_else(|| {
            let expected = format!("at most {most} in the bytes that are left");
            GgufError::damaged(what, expected, count)
        })
    }
}
