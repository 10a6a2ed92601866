//! Lists that have been copied to a device, so that they need not be copied again.

use std::collections::HashMap;
use std::hash::Hash;

/// Lists and their tensors, up to some total length.
#[derive(Debug)]
pub(crate) struct Uploads<T, X> {
    known: HashMap<Box<[T]>, X>,
    /// Total length of the lists.
    length: usize,
}

impl<T: Eq + Hash, X: Clone> Uploads<T, X> {
    /// Most entries of all lists together. A step of training has a few lists with an entry for
    /// each position of its batch.
    const MOST: usize = 1 << 16;

    pub(crate) fn new() -> Self {
        Self {
            known: HashMap::new(),
            length: 0,
        }
    }

    /// The tensor of a list, made by `copy` if it is not there yet.
    pub(crate) fn get(&mut self, list: Vec<T>, copy: impl FnOnce(&[T]) -> X) -> X {
        if let Some(known) = self.known.get(&list[..]) {
            return known.clone();
        }
        let new = copy(&list);
        if list.len() > Self::MOST {
            return new;
        }
        if self.length + list.len() > Self::MOST {
            self.known.clear();
            self.length = 0;
        }
        self.length += list.len();
        self.known.insert(list.into_boxed_slice(), new.clone());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_copied_once_while_there_is_room() {
        let mut uploads = Uploads::new();
        let mut copies = 0;
        let mut get = |list: Vec<usize>| {
            let length = list.len();
            let found = uploads.get(list, |list| {
                copies += 1;
                list.len()
            });
            assert_eq!(found, length);
            copies
        };
        assert_eq!(get(vec![1, 2]), 1);
        assert_eq!(get(vec![1, 2]), 1);
        assert_eq!(get(vec![2, 1]), 2);
        // Longer than all that is kept.
        let most = Uploads::<usize, usize>::MOST;
        assert_eq!(get(vec![0; most + 1]), 3);
        assert_eq!(get(vec![0; most + 1]), 4);
        assert_eq!(get(vec![1, 2]), 4);
        // Fills the room, so that the others have to go.
        assert_eq!(get(vec![0; most]), 5);
        assert_eq!(get(vec![0; most]), 5);
        assert_eq!(get(vec![1, 2]), 6);
    }
}
