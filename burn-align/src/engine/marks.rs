//! Marks by which a plan knows its own ids.

use std::sync::atomic::{AtomicU64, Ordering};

/// What tells one thing from every other in the program: an id carries the mark of what it names, so
/// that the id of another plan is recognised even where its index is in range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Mark(u64);

impl Mark {
    /// A mark that nothing else has.
    pub(super) fn new() -> Self {
        // A counter and nothing else: no result depends on where it stands.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The marks of all that a plan has. Copies of a plan keep them, so ids stay valid there.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    pub(super) inputs: Vec<Mark>,
    pub(super) constants: Vec<Mark>,
    pub(super) worlds: Vec<Mark>,
    pub(super) reads: Vec<Mark>,
}

/// Marks the next thing: its index and its mark.
pub(super) fn add(marks: &mut Vec<Mark>) -> (usize, Mark) {
    let mark = Mark::new();
    marks.push(mark);
    (marks.len() - 1, mark)
}
