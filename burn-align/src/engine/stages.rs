//! The steps of a pass, between which the batch can change.
//!
//! The smaller the steps, the later a world must leave the others: one that is first edited at a
//! layer's MLP output shares the layer's attention and MLP with the rest.

use burn::tensor::backend::Backend;
use burn_align_models::{AlignableTransformer, Component, Site};

/// A step of a pass. The batch can change only between stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    Embed,
    Layer(usize, Part),
    FinalNorm,
    Unembed,
}

/// A part of a layer, in the order in which a pass reaches it.
///
/// Where the engine itself handles the output of a block, or of one of its halves, a world that is
/// first edited there shares everything before it with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// The block, if the model does not split it into halves.
    Block,
    /// The attention, starting at the block's input.
    Attention,
    /// What an attention computes for the querying tokens only. It is not a stage, but a point at
    /// which activations are used.
    Queries,
    /// What attention adds to the residual stream.
    AttentionOutput,
    /// The residual stream between the halves.
    ResidualMid,
    /// The MLP.
    Mlp,
    /// What the MLP adds to the residual stream.
    MlpOutput,
    /// The residual stream after the block.
    BlockOutput,
}

impl Stage {
    /// Whether each position depends on itself alone.
    pub(super) fn is_by_position(self) -> bool {
        !matches!(
            self,
            Self::Embed | Self::Layer(_, Part::Block | Part::Attention)
        )
    }
}

/// The stages of a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stages {
    layers: usize,
    /// Whether a block returns exactly the activation at its output.
    outputs: bool,
    /// Whether blocks accept suffixes of rows.
    pub(super) suffixes: bool,
    /// Whether blocks are split into halves.
    halves: bool,
    /// Whether both halves read the block's input.
    parallel: bool,
    /// Whether halves have norms on their outputs.
    post_norms: bool,
}

impl Stages {
    pub(super) fn new<B: Backend, M: AlignableTransformer<B>>(model: &M) -> Self {
        let outputs = model.block_output_is_stream();
        Self {
            layers: model.dims().layers,
            outputs,
            suffixes: model.suffixes().is_some(),
            halves: outputs && model.halves().is_some(),
            parallel: model.dims().parallel,
            post_norms: model.dims().post_norms,
        }
    }

    /// The stage that a site belongs to.
    pub(super) fn of(self, site: Site) -> Stage {
        match site {
            Site::Embedding => Stage::Embed,
            Site::Block(layer, component) => Stage::Layer(layer, self.part_of(component)),
            Site::FinalNorm => Stage::FinalNorm,
        }
    }

    /// Where a site is used: at its stage or, within an attention, after keys and values.
    pub(super) fn of_use(self, site: Site) -> Stage {
        match (self.of(site), site) {
            (
                Stage::Layer(layer, Part::Attention),
                Site::Block(
                    _,
                    Component::QueryOutput
                    | Component::QueryNorm
                    | Component::RotaryQuery
                    | Component::AttentionValueOutput
                    | Component::AttentionOutput,
                ),
            ) => Stage::Layer(layer, Part::Queries),
            (stage, _) => stage,
        }
    }

    fn part_of(self, component: Component) -> Part {
        match component {
            Component::BlockOutput if self.outputs => Part::BlockOutput,
            _ if !self.halves => Part::Block,
            Component::BlockInput
            | Component::AttentionInput
            | Component::QueryOutput
            | Component::KeyOutput
            | Component::ValueOutput
            | Component::QueryNorm
            | Component::KeyNorm
            | Component::RotaryQuery
            | Component::RotaryKey
            | Component::AttentionScores
            | Component::AttentionWeights
            | Component::AttentionValueOutput => Part::Attention,
            Component::AttentionOutput if self.post_norms => Part::Attention,
            Component::AttentionOutput | Component::AttentionPostNorm => Part::AttentionOutput,
            Component::ResidualMid => Part::ResidualMid,
            Component::MlpInput | Component::MlpActivation => Part::Mlp,
            Component::MlpOutput if self.post_norms => Part::Mlp,
            Component::MlpOutput | Component::MlpPostNorm => Part::MlpOutput,
            Component::BlockOutput => Part::BlockOutput,
        }
    }

    /// Every stage.
    pub(super) fn all(self) -> impl Iterator<Item = Stage> {
        const WHOLE: [Part; 2] = [Part::Block, Part::BlockOutput];
        const HALVES: [Part; 6] = [
            Part::Attention,
            Part::AttentionOutput,
            Part::ResidualMid,
            Part::Mlp,
            Part::MlpOutput,
            Part::BlockOutput,
        ];
        const PARALLEL: [Part; 5] = [
            Part::Attention,
            Part::AttentionOutput,
            Part::Mlp,
            Part::MlpOutput,
            Part::BlockOutput,
        ];
        let parts: &[Part] = match (self.halves, self.parallel) {
            (false, _) => &WHOLE,
            (true, false) => &HALVES,
            (true, true) => &PARALLEL,
        };
        let layers = (0..self.layers)
            .flat_map(move |layer| parts.iter().map(move |part| Stage::Layer(layer, *part)));
        [Stage::Embed]
            .into_iter()
            .chain(layers)
            .chain([Stage::FinalNorm, Stage::Unembed])
    }

    /// The next stage after this one that mixes positions.
    pub(super) fn next_attention(self, stage: Stage) -> Option<Stage> {
        let attention = match self.halves {
            true => Part::Attention,
            false => Part::Block,
        };
        let layer = match stage {
            Stage::Embed => 0,
            Stage::Layer(layer, _) => layer + 1,
            Stage::FinalNorm | Stage::Unembed => return None,
        };
        (layer < self.layers).then_some(Stage::Layer(layer, attention))
    }

    /// Where a run can resume before a stage: at which stage, and with the residual stream of which
    /// site.
    pub(super) fn residual_before(self, stage: Stage) -> Option<(Stage, Site)> {
        let after = |layer| Site::Block(layer, Component::BlockOutput);
        let before = |layer: usize| layer.checked_sub(1).map_or(Site::Embedding, after);
        let (start, site) = match stage {
            Stage::Embed | Stage::Unembed => return None,
            Stage::Layer(layer, Part::Block | Part::Attention) => (stage, before(layer)),
            Stage::Layer(layer, Part::Queries | Part::AttentionOutput) => {
                (Stage::Layer(layer, Part::Attention), before(layer))
            }
            // The stream between the halves does not have what the second one reads.
            Stage::Layer(layer, Part::ResidualMid | Part::Mlp | Part::MlpOutput)
                if self.parallel =>
            {
                (Stage::Layer(layer, Part::Attention), before(layer))
            }
            Stage::Layer(layer, Part::ResidualMid | Part::Mlp) => {
                (stage, Site::Block(layer, Component::ResidualMid))
            }
            Stage::Layer(layer, Part::MlpOutput) => (
                Stage::Layer(layer, Part::Mlp),
                Site::Block(layer, Component::ResidualMid),
            ),
            Stage::Layer(layer, Part::BlockOutput) => (stage, after(layer)),
            Stage::FinalNorm => (stage, after(self.layers.checked_sub(1)?)),
        };
        self.outputs.then_some((start, site))
    }

    /// The first layer whose keys and values are computed when starting from a stage.
    pub(super) fn first_attention(self, start: Stage) -> Option<usize> {
        let first = match start {
            Stage::Layer(layer, Part::Block | Part::Attention) => layer,
            _ => match self.next_attention(start)? {
                Stage::Layer(layer, _) => layer,
                _ => return None,
            },
        };
        (first < self.layers).then_some(first)
    }
}
