//! Marks by which a plan recognises its own ids.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

/// A unique mark. An id carries the mark of what it refers to, so that an id of another plan is
/// recognised even if its index is in range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Mark(u64);

impl Mark {
    /// A new, unique mark.
    pub(super) fn new() -> Self {
        // Only a counter: no result depends on its value.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The marks of everything in a plan. Copies of a plan keep them, so ids stay valid there.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    pub(super) inputs: Vec<Mark>,
    pub(super) constants: Vec<Mark>,
    pub(super) worlds: Vec<Mark>,
    /// Of the worlds that will be added next, where their ids have been handed out already.
    pub(super) upcoming: VecDeque<Mark>,
    pub(super) reads: Vec<Mark>,
}

impl Marks {
    /// Marks the next world: its index and its mark.
    pub(super) fn add_world(&mut self) -> (usize, Mark) {
        let mark = self.upcoming.pop_front().unwrap_or_else(Mark::new);
        self.worlds.push(mark);
        (self.worlds.len() - 1, mark)
    }

    /// The indices and marks of the worlds that will be added next.
    pub(super) fn upcoming_worlds(&mut self, count: usize) -> Vec<(usize, Mark)> {
        while self.upcoming.len() < count {
            self.upcoming.push_back(Mark::new());
        }
        let marks = self.upcoming.iter().take(count).copied();
        (self.worlds.len()..).zip(marks).collect()
    }
}

/// Marks the next thing: its index and its mark.
pub(super) fn add(marks: &mut Vec<Mark>) -> (usize, Mark) {
    let mark = Mark::new();
    marks.push(mark);
    (marks.len() - 1, mark)
}
