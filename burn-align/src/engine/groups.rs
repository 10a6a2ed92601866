//! Worlds that are equal so far and therefore share rows.

use std::collections::HashMap;

use burn::tensor::backend::Backend;

use super::plan::{Edit, InputId, Plan, WorldId};

/// The groups of a stage, in the order of their rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Groups {
    /// The worlds of all groups, group by group.
    worlds: Vec<WorldId>,
    /// Where each group ends in them. No group is empty.
    ends: Vec<usize>,
}

impl Groups {
    /// Before the first stage, worlds on the same input are equal.
    pub(super) fn of_inputs(sizes: &Sizes, worlds: &[WorldId]) -> Self {
        let mut on_input: Vec<Vec<WorldId>> = vec![Vec::new(); sizes.inputs.len()];
        for world in worlds {
            on_input[sizes.of_world[world.0].0].push(*world);
        }
        let mut groups = Self::empty();
        for worlds in on_input {
            groups.push(worlds);
        }
        groups
    }

    fn empty() -> Self {
        Self {
            worlds: Vec::new(),
            ends: Vec::new(),
        }
    }

    fn push(&mut self, worlds: impl IntoIterator<Item = WorldId>) {
        self.worlds.extend(worlds);
        if self.worlds.len() > self.ends.last().copied().unwrap_or(0) {
            self.ends.push(self.worlds.len());
        }
    }

    /// Number of groups.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The worlds of each group.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[WorldId]> {
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.worlds[start..*end])
    }

    /// One world of each group.
    pub(super) fn firsts(&self) -> impl Iterator<Item = WorldId> + '_ {
        self.iter().map(|worlds| worlds[0])
    }

    /// The group of each world.
    pub(super) fn by_world(&self) -> HashMap<WorldId, usize> {
        let groups = self.iter().enumerate();
        groups
            .flat_map(|(index, worlds)| worlds.iter().map(move |world| (*world, index)))
            .collect()
    }

    /// All worlds.
    pub(super) fn worlds(&self) -> &[WorldId] {
        &self.worlds
    }

    /// The groups of the next stage, with the group that each continues: without the worlds that are
    /// no longer `needed`, and split by their `edits` there.
    pub(super) fn split<'p>(
        &self,
        needed: impl Fn(WorldId) -> bool,
        edits: impl Fn(WorldId) -> Vec<&'p Edit>,
    ) -> (Self, Vec<usize>) {
        let (mut groups, mut parents) = (Self::empty(), Vec::new());
        groups.worlds.reserve(self.worlds.len());
        for (parent, worlds) in self.iter().enumerate() {
            if let [world] = worlds {
                groups.push(Some(*world).filter(|world| needed(*world)));
                parents.resize(groups.len(), parent);
                continue;
            }
            let mut parts: Vec<Vec<WorldId>> = Vec::new();
            let mut unedited: Option<usize> = None;
            let mut part_of: HashMap<Vec<&Edit>, usize> = HashMap::new();
            for world in worlds.iter().filter(|world| needed(**world)) {
                let edits = edits(*world);
                let part = match edits.is_empty() {
                    true => *unedited.get_or_insert(parts.len()),
                    false => *part_of.entry(edits).or_insert(parts.len()),
                };
                match parts.get_mut(part) {
                    Some(part) => part.push(*world),
                    None => parts.push(vec![*world]),
                }
            }
            for part in parts {
                groups.push(part);
            }
            parents.resize(groups.len(), parent);
        }
        (groups, parents)
    }
}

/// The sizes of a plan's inputs.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    pub(super) inputs: Vec<InputSize>,
    pub(super) of_world: Vec<InputId>,
}

/// The sizes of an input.
#[derive(Clone, Debug)]
pub(super) struct InputSize {
    /// Number of examples.
    pub(super) batch: usize,
    /// Number of positions of the longest example.
    pub(super) pos: usize,
    /// Number of positions of each example.
    pub(super) lengths: Vec<usize>,
    /// For each example: the first position that is computed, if keys and values of the earlier ones
    /// are cached.
    pub(super) starts: Option<Vec<usize>>,
}

impl Sizes {
    pub(super) fn new<B: Backend>(plan: &Plan<B>) -> Self {
        let inputs = plan.inputs.iter().map(|input| InputSize {
            batch: input.batch(),
            pos: input.pos(),
            lengths: input.lengths(),
            starts: input.starts(),
        });
        Self {
            inputs: inputs.collect(),
            of_world: plan.worlds.iter().map(|world| world.input).collect(),
        }
    }

    /// The size of a world's input.
    pub(super) fn of(&self, world: WorldId) -> &InputSize {
        &self.inputs[self.of_world[world.0].0]
    }
}
