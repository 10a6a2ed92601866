//! Worlds that are equal so far and therefore share rows.

use std::ops::Range;

use burn::tensor::backend::Backend;

use super::hash::QuickMap;
use super::plan::{Edit, Plan, WorldId};

/// The groups of a stage, in the order of their rows. Worlds and groups are counted in 32 bits: a
/// schedule has a number for each of them in each layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Groups {
    /// The indices of the worlds of all groups, group by group.
    worlds: Vec<u32>,
    /// Where each group ends in them. No group is empty.
    ends: Vec<u32>,
}

impl Groups {
    /// Before the first stage, worlds on the same input are equal.
    ///
    /// - worlds: indices, in order
    pub(super) fn of_inputs(sizes: &Sizes, worlds: &[usize]) -> Self {
        let mut ends = vec![0_u32; sizes.inputs.len()];
        for world in worlds {
            ends[sizes.of_world[*world]] += 1;
        }
        let mut end = 0;
        let mut next: Vec<u32> = Vec::with_capacity(ends.len());
        for count in &mut ends {
            next.push(end);
            end += *count;
            *count = end;
        }
        let mut in_order = vec![0_u32; worlds.len()];
        for world in worlds {
            let next = &mut next[sizes.of_world[*world]];
            in_order[*next as usize] = *world as u32;
            *next += 1;
        }
        // Inputs without worlds end where the one before does.
        ends.dedup();
        ends.retain(|end| *end > 0);
        Self {
            worlds: in_order,
            ends,
        }
    }

    /// Number of groups.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Where the worlds of a group are.
    fn range(&self, group: usize) -> Range<usize> {
        self.start(group)..self.ends[group] as usize
    }

    fn start(&self, group: usize) -> usize {
        match group {
            0 => 0,
            _ => self.ends[group - 1] as usize,
        }
    }

    /// The index of one world of each group.
    pub(super) fn firsts(&self) -> impl Iterator<Item = usize> + '_ {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let first = self.worlds[start];
            start = *end as usize;
            first as usize
        })
    }

    /// The group of each world.
    pub(super) fn by_world(&self) -> GroupOf {
        let worlds = self.worlds.iter().max().map_or(0, |last| last + 1);
        let mut of_world = vec![GroupOf::NONE; worlds as usize];
        for group in 0..self.len() {
            for world in &self.worlds[self.range(group)] {
                of_world[*world as usize] = group as u32;
            }
        }
        GroupOf { of_world }
    }

    /// The indices of all worlds.
    pub(super) fn worlds(&self) -> &[u32] {
        &self.worlds
    }

    /// The groups of the next stage, with the group that each continues: without the worlds that
    /// have ended, and split by their edits there. `None` if they are the same.
    pub(super) fn split(&self, changes: &Changes<'_>) -> Option<(Self, Vec<usize>)> {
        let most = self.len() + changes.edits.len();
        let mut next = Split {
            groups: Self {
                worlds: Vec::with_capacity(self.worlds.len()),
                ends: Vec::with_capacity(most),
            },
            parents: Vec::with_capacity(most),
        };
        let (mut is_same, mut same_from) = (true, 0);
        for group in 0..self.len() {
            let worlds = &self.worlds[self.range(group)];
            let is_changed = match worlds {
                [world] => changes.has_ended(*world),
                _ => worlds.iter().any(|world| changes.concern(*world)),
            };
            if is_changed {
                next.copy(self, same_from..group);
                is_same &= next.parts(worlds, group, changes);
                same_from = group + 1;
            }
        }
        if is_same {
            return None;
        }
        next.copy(self, same_from..self.len());
        Some((next.groups, next.parents))
    }
}

/// Groups being split.
struct Split {
    groups: Groups,
    parents: Vec<usize>,
}

impl Split {
    /// Takes over groups that stay the same.
    fn copy(&mut self, before: &Groups, groups: Range<usize>) {
        let start = before.start(groups.start);
        let end = before.start(groups.end);
        let there = self.groups.worlds.len();
        let ends = before.ends[groups.clone()].iter();
        let moved = ends.map(|end| (*end as usize - start + there) as u32);
        self.groups.ends.extend(moved);
        self.groups
            .worlds
            .extend_from_slice(&before.worlds[start..end]);
        self.parents.extend(groups);
    }

    /// Adds the parts of a group, in the order of their first worlds. Gives whether the group stays
    /// as it is.
    fn parts(&mut self, worlds: &[u32], parent: usize, changes: &Changes<'_>) -> bool {
        const GONE: usize = usize::MAX;
        let mut sizes: Vec<usize> = Vec::new();
        let mut unedited: Option<usize> = None;
        let mut edited: QuickMap<&[u32], usize> = QuickMap::default();
        let mut part_of: Vec<usize> = Vec::with_capacity(worlds.len());
        for world in worlds {
            if changes.has_ended(*world) {
                part_of.push(GONE);
                continue;
            }
            let next = sizes.len();
            let part = match changes.numbers(*world) {
                [] => *unedited.get_or_insert(next),
                numbers => *edited.entry(numbers).or_insert(next),
            };
            if part == next {
                sizes.push(0);
            }
            sizes[part] += 1;
            part_of.push(part);
        }
        // Where each part goes on.
        let mut places = Vec::with_capacity(sizes.len());
        let mut end = self.groups.worlds.len();
        for size in &sizes {
            places.push(end);
            end += size;
            self.groups.ends.push(end as u32);
            self.parents.push(parent);
        }
        let kept = end - self.groups.worlds.len();
        self.groups.worlds.resize(end, 0);
        for (world, part) in worlds.iter().zip(part_of) {
            if part != GONE {
                self.groups.worlds[places[part]] = *world;
                places[part] += 1;
            }
        }
        sizes.len() == 1 && kept == worlds.len()
    }
}

/// The group of each world of a stage.
#[derive(Clone, Debug, Default)]
pub(super) struct GroupOf {
    of_world: Vec<u32>,
}

impl GroupOf {
    const NONE: u32 = u32::MAX;

    /// The group of a world; `None` if it is not in the stage.
    pub(super) fn get(&self, world: WorldId) -> Option<usize> {
        let group = self.of_world.get(world.0).copied();
        group
            .filter(|group| *group != Self::NONE)
            .map(|group| group as usize)
    }

    /// The group of a world that is in the stage.
    pub(super) fn at(&self, world: WorldId) -> usize {
        self.of_world[world.0] as usize
    }
}

/// What happens to worlds before a stage: some have ended, some are edited in it.
pub(super) struct Changes<'p> {
    /// For each world: where its edits begin in `edits`, or one of the constants.
    of_world: Vec<u32>,
    /// The world, the index of the edit there, and the edit; those of a world are adjacent.
    edits: Vec<(usize, usize, &'p Edit)>,
    /// For each of them a number, the same for equal edits.
    numbers: Vec<u32>,
}

impl<'p> Changes<'p> {
    /// The world goes on as it is.
    const NONE: u32 = u32::MAX;
    /// The world has ended, here or earlier.
    const ENDED: u32 = u32::MAX - 1;

    pub(super) fn new(worlds: usize) -> Self {
        Self {
            of_world: vec![Self::NONE; worlds],
            edits: Vec::new(),
            numbers: Vec::new(),
        }
    }

    /// Replaces the changes by those of the next stage. Gives whether there are any.
    ///
    /// - edits: the world, the index of the edit there, and the edit
    /// - ended: worlds whose last stage was the one before
    pub(super) fn set(
        &mut self,
        edits: impl Iterator<Item = (usize, usize, &'p Edit)>,
        ended: impl Iterator<Item = usize>,
    ) -> bool {
        for (world, _, _) in self.edits.drain(..) {
            self.of_world[world] = Self::NONE;
        }
        self.numbers.clear();
        self.edits.extend(edits);
        let mut known: QuickMap<&Edit, u32> = QuickMap::default();
        for (_, _, edit) in &self.edits {
            let next = known.len() as u32;
            self.numbers.push(*known.entry(*edit).or_insert(next));
        }
        for (start, (world, _, _)) in self.edits.iter().enumerate().rev() {
            self.of_world[*world] = start as u32;
        }
        let mut changed = !self.edits.is_empty();
        for world in ended {
            self.of_world[world] = Self::ENDED;
            changed = true;
        }
        changed
    }

    fn has_ended(&self, world: u32) -> bool {
        self.of_world[world as usize] == Self::ENDED
    }

    /// Whether a world ends or is edited.
    fn concern(&self, world: u32) -> bool {
        self.of_world[world as usize] != Self::NONE
    }

    /// Where the edits of a world are.
    fn range(&self, world: usize) -> Range<usize> {
        match self.of_world[world] {
            Self::NONE | Self::ENDED => 0..0,
            start => {
                let start = start as usize;
                let own = self.edits[start..].iter();
                let count = own.take_while(|(other, _, _)| *other == world).count();
                start..start + count
            }
        }
    }

    /// The numbers of the edits of a world.
    fn numbers(&self, world: u32) -> &[u32] {
        &self.numbers[self.range(world as usize)]
    }

    /// All edits: the world, the index of the edit there, and the edit.
    pub(super) fn edits(&self) -> &[(usize, usize, &'p Edit)] {
        &self.edits
    }

    /// The edits that groups make.
    pub(super) fn made_by(&self, groups: &Groups) -> Vec<MadeEdit> {
        if self.edits.is_empty() {
            return Vec::new();
        }
        let mut made = Vec::with_capacity(self.edits.len());
        for (group, world) in groups.firsts().enumerate() {
            let own = &self.edits[self.range(world)];
            made.extend(own.iter().map(|(world, index, _)| MadeEdit {
                group,
                world: *world,
                index: *index,
            }));
        }
        made
    }
}

/// An edit that a group makes, as that of one of its worlds: all of them make the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MadeEdit {
    pub(super) group: usize,
    /// The index of the world.
    pub(super) world: usize,
    /// The index of the edit in the world.
    pub(super) index: usize,
}

/// The sizes of a plan's inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) inputs: Vec<InputSize>,
    /// The index of each world's input.
    pub(super) of_world: Vec<usize>,
    /// Where the examples of each input begin among those of all, and where the last ones end.
    starts: Vec<usize>,
}

/// The sizes of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InputSize {
    /// Number of examples.
    pub(super) batch: usize,
    /// Number of positions of the longest example.
    pub(super) pos: usize,
    /// Number of positions of each example.
    pub(super) lengths: Vec<usize>,
    /// For each example: the first position that is computed, if keys and values of the earlier
    /// ones are cached.
    pub(super) starts: Option<Vec<usize>>,
    /// Whether keys and values of all its positions are kept, so that it can be continued.
    pub(super) is_kept: bool,
}

impl Sizes {
    /// - keeping: worlds whose keys and values are kept
    pub(super) fn new<B: Backend>(plan: &Plan<B>, keeping: &[WorldId]) -> Self {
        let inputs = plan.inputs.iter().map(|input| InputSize {
            batch: input.batch(),
            pos: input.pos(),
            lengths: input.lengths(),
            starts: input.starts(),
            is_kept: false,
        });
        let mut inputs: Vec<InputSize> = inputs.collect();
        for WorldId(world, _) in keeping {
            inputs[plan.worlds[*world].input.0].is_kept = true;
        }
        let mut starts = vec![0];
        for input in &inputs {
            starts.push(starts[starts.len() - 1] + input.batch);
        }
        Self {
            inputs,
            of_world: plan.worlds.iter().map(|world| world.input.0).collect(),
            starts,
        }
    }

    /// The size of the input of the world with this index.
    pub(super) fn of(&self, world: usize) -> &InputSize {
        &self.inputs[self.of_world[world]]
    }

    /// Number of examples of all inputs.
    pub(super) fn examples(&self) -> usize {
        self.starts[self.inputs.len()]
    }

    /// The examples of an input among those of all.
    pub(super) fn examples_of(&self, input: usize) -> Range<usize> {
        self.starts[input]..self.starts[input + 1]
    }
}
