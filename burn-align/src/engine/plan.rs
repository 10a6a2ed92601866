//! A plan: the worlds to run, their inputs, edits and operands, and what to read.
//!
//! A plan is data. It can be checked, explained, cut into parts and moved to another device before
//! anything is computed, which hooks that are registered on a model cannot.

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{Site, TokenBatch};

use super::cache::Continued;
use super::marks::{Mark, Marks, add};
use super::origin::Origin;
use super::past::Past;
use super::stages::Stage;
use super::{Indices, Units};

/// A world of a [`Plan`]. Valid in the plan that gave it, and in what is made from that plan
/// afterwards: a clone, some of its examples, the same on another backend, what freezing leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorldId(pub(super) usize, pub(super) Mark);

impl WorldId {
    /// The number of the world: worlds are counted from 0 in the order in which they are added.
    /// Errors name worlds by it.
    pub fn index(self) -> usize {
        self.0
    }
}

/// An input of a [`Plan`]; valid as a [`WorldId`] is, but not in what freezing leaves, whose worlds
/// resume from other inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InputId(pub(super) usize, pub(super) Mark);

/// A constant operand of a [`Plan`]; valid as a [`WorldId`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConstantId(pub(super) usize, pub(super) Mark);

/// An activation or logits that a [`Plan`] reads; valid as a [`WorldId`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReadId(pub(super) usize, pub(super) Mark);

/// The input of a world.
#[derive(Clone, Debug)]
pub enum WorldInput<B: Backend> {
    /// Token ids.
    Tokens(TokenBatch),
    /// Vectors, `[batch, pos, feature]`.
    Features(Tensor<B, 3>),
    /// The middle of a run: what [`Plan::freeze`] leaves.
    Resumed(Resumed<B>),
    /// A row of an earlier run, with more tokens: from [`CachedRow::then`](super::CachedRow::then).
    Continued(Continued<B>),
}

/// A run that has already reached some layer.
#[derive(Clone, Debug)]
pub struct Resumed<B: Backend> {
    /// The model that it has run on so far.
    pub(super) origin: Origin,
    /// The first stage to run.
    pub(super) stage: Stage,
    /// The residual stream before it, `[batch, pos, d_model]`.
    pub(super) x: Tensor<B, 3>,
    /// Number of positions of each example.
    pub(super) lengths: Vec<usize>,
    /// Keys and values of the first positions, computed once, for all remaining layers.
    pub(super) past: Option<Past<B>>,
}

impl<B: Backend> From<TokenBatch> for WorldInput<B> {
    fn from(tokens: TokenBatch) -> Self {
        Self::Tokens(tokens)
    }
}

impl<B: Backend> From<Tensor<B, 3>> for WorldInput<B> {
    fn from(features: Tensor<B, 3>) -> Self {
        Self::Features(features)
    }
}

impl<B: Backend> WorldInput<B> {
    /// Number of examples.
    pub fn batch(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.batch(),
            Self::Features(features) => features.dims()[0],
            Self::Resumed(resumed) => resumed.x.dims()[0],
            Self::Continued(_) => 1,
        }
    }

    /// Number of positions of the longest example.
    pub fn pos(&self) -> usize {
        match self {
            Self::Tokens(tokens) => tokens.pos(),
            Self::Features(features) => features.dims()[1],
            Self::Resumed(resumed) => resumed.x.dims()[1],
            Self::Continued(continued) => continued.pos(),
        }
    }

    /// The cached keys and values of an input, if it has any.
    pub(super) fn past(&self) -> Option<&Past<B>> {
        match self {
            Self::Resumed(resumed) => resumed.past.as_ref(),
            Self::Tokens(_) | Self::Features(_) | Self::Continued(_) => None,
        }
    }

    /// For each example: the first position that is computed, if earlier ones are cached.
    pub(crate) fn starts(&self) -> Option<Vec<usize>> {
        match self {
            Self::Resumed(resumed) => Some(resumed.past.as_ref()?.starts.clone()),
            Self::Continued(continued) => Some(vec![continued.past.pos()]),
            Self::Tokens(_) | Self::Features(_) => None,
        }
    }

    /// Number of positions of each example.
    pub fn lengths(&self) -> Vec<usize> {
        match self {
            Self::Tokens(tokens) => tokens.lengths(),
            Self::Features(_) => vec![self.pos(); self.batch()],
            Self::Resumed(resumed) => resumed.lengths.clone(),
            Self::Continued(_) => vec![self.pos()],
        }
    }
}

/// What an intervention gets besides the activation it changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// Nothing.
    None,
    /// Another world's activation, after that world's own edits.
    Activation {
        /// The world.
        world: WorldId,
        /// The site. If it is deeper than the edit's, this costs another pass.
        site: Site,
        /// The part of the activation: as many units as the edit changes, of the same width.
        units: Units,
    },
    /// Constant values.
    Constant(ConstantId),
}

/// The identity of an operand: an activation that one part of a plan computes and another uses.
pub(super) type OperandKey<'p> = (WorldId, Site, &'p Units);

impl Operand {
    /// The key of another world's activation.
    pub(super) fn key(&self) -> Option<OperandKey<'_>> {
        match self {
            Self::Activation { world, site, units } => Some((*world, *site, units)),
            Self::None | Self::Constant(_) => None,
        }
    }
}

/// Replaces the activation of some units at a site by `intervention(activation, operand)`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Edit {
    /// The site.
    pub site: Site,
    /// The part of the activation.
    pub units: Units,
    /// The features of each unit to change, of `d_site`; for an intervention in a rotated space,
    /// the rotated features. Examples may have different numbers of them.
    #[doc(alias = "subspace")]
    pub features: Indices,
    /// Index into the interventions given to [`Plan::run`].
    pub intervention: usize,
    /// What the intervention gets.
    pub operand: Operand,
}

impl Edit {
    /// An edit of all features.
    pub fn new(site: Site, units: Units, intervention: usize, operand: Operand) -> Self {
        Self {
            site,
            units,
            features: Indices::All,
            intervention,
            operand,
        }
    }

    /// Restricts the edit to these features.
    pub fn with_features(mut self, features: Indices) -> Self {
        self.features = features;
        self
    }

    /// An edit whose operand is the same part of another world's activation at the same site.
    #[doc(alias = "patch")]
    pub fn from_world(source: WorldId, site: Site, units: Units, intervention: usize) -> Self {
        let operand = Operand::Activation {
            world: source,
            site,
            units: units.clone(),
        };
        Self::new(site, units, intervention, operand)
    }
}

/// A run of the model on one input under edits.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) input: InputId,
    pub(super) edits: Vec<Edit>,
    /// Whether everything that others need from it has been computed, and nothing more can be.
    pub(super) frozen: bool,
}

/// Positions whose logits are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogitPositions {
    /// Every position, padding included.
    All,
    /// The last token of each example.
    Last,
    /// `[batch][unit]`: separate positions for each example; all examples have the same number of
    /// them.
    Each(Vec<Vec<usize>>),
}

impl LogitPositions {
    /// Number of positions of each example.
    ///
    /// - pos: number of positions of the input
    pub(crate) fn count(&self, pos: usize) -> usize {
        match self {
            Self::All => pos,
            Self::Last => 1,
            Self::Each(examples) => examples.first().map_or(0, Vec::len),
        }
    }

    /// The positions as units.
    ///
    /// - lengths: number of positions of each example; that one has none is found with the plan
    pub(crate) fn units(&self, lengths: &[usize]) -> Units {
        Units::positions(match self {
            Self::All => Indices::All,
            Self::Last => {
                let lengths = lengths.iter();
                Indices::one_each(lengths.map(|length| length.saturating_sub(1)))
            }
            Self::Each(examples) => Indices::Each(examples.clone()),
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Read {
    Activation {
        world: WorldId,
        site: Site,
        units: Units,
    },
    Logits {
        world: WorldId,
        positions: LogitPositions,
    },
}

impl Read {
    pub(super) fn world(&self) -> WorldId {
        match self {
            Self::Activation { world, .. } | Self::Logits { world, .. } => *world,
        }
    }
}

/// Worlds to run, and what to read from them.
///
/// ```
/// use burn_align::engine::{Edit, LogitPositions, Plan, Units};
/// use burn_align::interventions::VanillaIntervention;
/// use burn_align::models::Site;
/// use burn_align::models::{Component, Decoder, FromPretrained, LoadOptions};
///
/// type B = burn::backend::Flex;
///
/// let device = Default::default();
/// let loaded =
///     Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
/// let tokenizer = loaded.tokenizer()?;
/// let base = tokenizer.encode_batch(["The capital of Spain is"])?;
/// let source = tokenizer.encode_batch(["The capital of Italy is"])?;
///
/// let mut plan = Plan::<B>::new();
/// let (base, source) = (plan.tokens(&base), plan.tokens(&source));
/// let donor = plan.world(source, []);
/// let site = Site::Block(2, Component::BlockOutput);
/// let swapped = plan.world(base, [Edit::from_world(donor, site, Units::position(4), 0)]);
/// let logits = plan.read_logits(swapped, LogitPositions::Last);
///
/// let results = plan.run(&loaded.model, &[VanillaIntervention])?;
/// let next = tokenizer.top_tokens(results.get(logits), 1); // of `[batch, unit, vocab]`
/// assert_eq!(next[0][0].text, "Rome");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Plan<B: Backend> {
    pub(super) inputs: Vec<WorldInput<B>>,
    pub(super) constants: Vec<Tensor<B, 3>>,
    pub(super) worlds: Vec<World>,
    pub(super) reads: Vec<Read>,
    /// For each read: its value, if it is already known.
    pub(super) known: Vec<Option<Tensor<B, 3>>>,
    pub(super) marks: Marks,
}

impl<B: Backend> Default for Plan<B> {
    fn default() -> Self {
        Self {
            inputs: Vec::new(),
            constants: Vec::new(),
            worlds: Vec::new(),
            reads: Vec::new(),
            known: Vec::new(),
            marks: Marks::default(),
        }
    }
}

impl<B: Backend> Plan<B> {
    /// A plan without worlds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an input. Equal token batches become one input, and what worlds on the same input have
    /// in common is computed once.
    pub fn input(&mut self, input: WorldInput<B>) -> InputId {
        let same = self.inputs.iter().position(|other| match (other, &input) {
            (WorldInput::Tokens(other), WorldInput::Tokens(tokens)) => other == tokens,
            _ => false,
        });
        if let Some(same) = same {
            return self.input_id(same);
        }
        self.inputs.push(input);
        let (index, mark) = add(&mut self.marks.inputs);
        InputId(index, mark)
    }

    /// Adds a batch of token ids as an input.
    pub fn tokens(&mut self, tokens: &TokenBatch) -> InputId {
        self.input(WorldInput::Tokens(tokens.clone()))
    }

    /// Adds values that edits can use as their operand.
    ///
    /// # Shapes
    /// - values: `[batch, unit, d_site]`; batch and unit may be 1, for the same values everywhere
    pub fn constant(&mut self, values: Tensor<B, 3>) -> ConstantId {
        self.constants.push(values);
        let (index, mark) = add(&mut self.marks.constants);
        ConstantId(index, mark)
    }

    /// Adds a world: a run on an input under edits. Edits at the same site apply in the given
    /// order.
    pub fn world(&mut self, input: InputId, edits: impl IntoIterator<Item = Edit>) -> WorldId {
        let edits = edits.into_iter().collect();
        self.world_with(input, |_own| edits)
    }

    /// Adds a world whose edits use earlier sites of the world itself as their source.
    pub fn world_with(
        &mut self,
        input: InputId,
        edits: impl FnOnce(WorldId) -> Vec<Edit>,
    ) -> WorldId {
        let (index, mark) = self.marks.add_world();
        let own = WorldId(index, mark);
        self.worlds.push(World {
            input,
            edits: edits(own),
            frozen: false,
        });
        own
    }

    /// The ids of the worlds that will be added next, so that a world can take from a later one. A
    /// plan that uses such an id is refused until its world is there.
    pub fn upcoming_worlds(&mut self, count: usize) -> Vec<WorldId> {
        let ids = self.marks.upcoming_worlds(count).into_iter();
        ids.map(|(index, mark)| WorldId(index, mark)).collect()
    }

    /// Reads a world's activation at a site, after the world's own edits there.
    pub fn read(&mut self, world: WorldId, site: Site, units: Units) -> ReadId {
        self.add_read(Read::Activation { world, site, units })
    }

    /// Reads a world's logits.
    pub fn read_logits(&mut self, world: WorldId, positions: LogitPositions) -> ReadId {
        self.add_read(Read::Logits { world, positions })
    }

    fn add_read(&mut self, read: Read) -> ReadId {
        self.reads.push(read);
        self.known.push(None);
        let (index, mark) = add(&mut self.marks.reads);
        ReadId(index, mark)
    }

    /// Number of positions that all worlds compute of an example, on average: at most, since what
    /// they have in common is computed once.
    pub(crate) fn computed_positions(&self) -> usize {
        let open = self.worlds.iter().filter(|world| !world.frozen);
        let of_world = open.map(|world| {
            let input = &self.inputs[world.input.0];
            let all: usize = input.lengths().iter().sum();
            let cached: usize = input.starts().iter().flatten().sum();
            (all - cached).div_ceil(input.batch().max(1))
        });
        of_world.sum()
    }

    /// The tokens of an example of a world, cached ones included, as far as its input has them.
    pub(crate) fn tokens_of_example(&self, world: WorldId, example: usize) -> Vec<u32> {
        match self.input_of(world) {
            WorldInput::Tokens(tokens) => tokens.ids()[example].clone(),
            WorldInput::Continued(row) => row.all_tokens(),
            WorldInput::Features(_) | WorldInput::Resumed(_) => Vec::new(),
        }
    }

    /// The values of a constant.
    pub(crate) fn constant_values(&self, constant: ConstantId) -> Tensor<B, 3> {
        self.constants[constant.0].clone()
    }

    /// The reads whose values are not known yet, with their indices.
    pub(super) fn open_reads(&self) -> impl Iterator<Item = (usize, &Read)> {
        let reads = self.reads.iter().enumerate();
        reads.filter(|(index, _)| self.known[*index].is_none())
    }

    /// The id of the world with this index.
    pub(super) fn world_id(&self, index: usize) -> WorldId {
        WorldId(index, self.marks.worlds[index])
    }

    /// The ids of all worlds.
    pub(super) fn world_ids(&self) -> impl Iterator<Item = WorldId> + Clone {
        let marks = self.marks.worlds.iter().enumerate();
        marks.map(|(index, mark)| WorldId(index, *mark))
    }

    pub(super) fn input_id(&self, index: usize) -> InputId {
        InputId(index, self.marks.inputs[index])
    }

    /// The first stage that worlds run.
    pub(super) fn start(&self) -> Stage {
        match self.inputs.first() {
            Some(WorldInput::Resumed(resumed)) => resumed.stage,
            _ => Stage::Embed,
        }
    }

    pub(crate) fn input_of(&self, world: WorldId) -> &WorldInput<B> {
        self.input_of_index(world.0)
    }

    /// The input of the world with this index.
    pub(super) fn input_of_index(&self, world: usize) -> &WorldInput<B> {
        &self.inputs[self.worlds[world].input.0]
    }
}
