//! Plans of separate runs as one plan, so that one pass computes them all.

use burn::tensor::backend::Backend;

use super::plan::{ConstantId, Edit, Operand, Plan, Read, ReadId, WorldId};

/// The reads of one of several plans that have been put together.
pub(crate) struct ReadsBeside(Vec<ReadId>);

impl ReadsBeside {
    /// The read of the whole that a read of the plan has become.
    pub(crate) fn of(&self, read: ReadId) -> ReadId {
        self.0[read.0]
    }
}

impl<B: Backend> Plan<B> {
    /// Whether this plan and another one begin at the same point of the model, so that they can run
    /// [beside](Self::beside) each other.
    pub(crate) fn begins_like(&self, other: &Self) -> bool {
        self.start() == other.start()
    }

    /// Plans of as many examples, that [begin](Self::begins_like) alike, as one, and the reads of
    /// each. Equal inputs of token ids become one.
    ///
    /// - plans: with the number of interventions that each runs with; the whole runs with those of
    ///   all plans, one after another
    pub(crate) fn beside<'p>(
        plans: impl IntoIterator<Item = (&'p Self, usize)>,
    ) -> (Self, Vec<ReadsBeside>) {
        let (mut whole, mut reads, mut interventions) = (Self::new(), Vec::new(), 0);
        for (plan, count) in plans {
            reads.push(ReadsBeside(whole.add(plan, interventions)));
            interventions += count;
        }
        (whole, reads)
    }

    /// Adds everything of another plan: for each of its reads, the read here.
    ///
    /// - first: where its interventions begin among all
    fn add(&mut self, other: &Self, first: usize) -> Vec<ReadId> {
        let begins_alike = self.inputs.is_empty() || self.begins_like(other);
        assert!(begins_alike, "checked by those who put plans together");
        let inputs = other.inputs.iter().map(|input| self.input(input.clone()));
        let inputs: Vec<_> = inputs.collect();
        let constants = other.constants.iter();
        let constants = constants.map(|values| self.constant(values.clone()));
        let constants: Vec<ConstantId> = constants.collect();
        let worlds = self.upcoming_worlds(other.worlds.len());
        let moved = |edit: &Edit| {
            let operand = match &edit.operand {
                Operand::None => Operand::None,
                Operand::Constant(values) => Operand::Constant(constants[values.0]),
                Operand::Activation { world, site, units } => Operand::Activation {
                    world: worlds[world.0],
                    site: *site,
                    units: units.clone(),
                },
            };
            Edit {
                intervention: first + edit.intervention,
                operand,
                ..edit.clone()
            }
        };
        for world in &other.worlds {
            let WorldId(own, _) = self.world(inputs[world.input.0], world.edits.iter().map(moved));
            self.worlds[own].frozen = world.frozen;
        }
        let reads = other.reads.iter().zip(&other.known).map(|(read, known)| {
            let id = match read.clone() {
                Read::Activation { world, site, units } => self.read(worlds[world.0], site, units),
                Read::Logits { world, positions } => self.read_logits(worlds[world.0], positions),
            };
            self.known[id.0].clone_from(known);
            id
        });
        reads.collect()
    }
}
