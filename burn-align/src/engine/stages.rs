//! The steps of a pass, between which the batch can change.
//!
//! The smaller the steps, the later a world must leave the others: one that is first edited at a
//! layer's MLP output shares the layer's attention and MLP with the rest. All of it follows from
//! the model's [`ModelLayout`].

use burn_align_models::{
    Mixing, ModelLayout, Place, Positions, Reads, Site, Sublayer, SublayerOutput,
};

/// A step of a pass. The batch can change only between stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Stage {
    Embed,
    Layer {
        layer: usize,
        sublayer: usize,
        step: Step,
    },
    FinalNorm,
    Unembed,
}

/// A step of a sublayer, in the order in which a pass reaches it.
///
/// The engine itself handles what a sublayer adds to the stream, and the stream afterwards, so a
/// world that is first edited there shares everything before it with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Step {
    /// The model runs the sublayer. In the first one of a layer, starting at the layer's entry.
    Run,
    /// What an attention computes for the querying tokens only. It is not a stage, but a point at
    /// which activations are used.
    Queries,
    /// What the sublayer returns is added to the stream.
    Output,
    /// The stream after the sublayer.
    Exit,
}

impl Stage {
    /// The point at which what only querying tokens have is used, in a stage in which a sublayer is
    /// run.
    pub(super) fn queries(self) -> Self {
        match self {
            Self::Layer {
                layer,
                sublayer,
                step: Step::Run,
            } => Self::Layer {
                layer,
                sublayer,
                step: Step::Queries,
            },
            other => other,
        }
    }
}

/// The stages of a model.
#[derive(Clone, Debug)]
pub(super) struct Stages {
    layout: ModelLayout,
}

impl Stages {
    pub(super) fn new(layout: &ModelLayout) -> Self {
        Self {
            layout: layout.clone(),
        }
    }

    /// The stage that a site belongs to. The model must have the site.
    pub(super) fn of(&self, site: Site) -> Stage {
        self.at(site, |_positions| Step::Run)
    }

    /// Where a site is used: at its stage or, within an attention, after keys and values.
    pub(super) fn of_use(&self, site: Site) -> Stage {
        self.at(site, |positions| match positions {
            Positions::All => Step::Run,
            Positions::Queries => Step::Queries,
        })
    }

    fn at(&self, site: Site, inside: impl Fn(Positions) -> Step) -> Stage {
        let (layer, component) = match site {
            Site::Embedding => return Stage::Embed,
            Site::FinalNorm => return Stage::FinalNorm,
            Site::Block(layer, component) => (layer, component),
        };
        let place = self.layout.layers()[layer].place(component);
        let (sublayer, place) = place.expect("sites are checked when a plan is validated");
        let step = match place {
            Place::Entry => Step::Run,
            Place::Inside(positions) => inside(positions),
            Place::Output => Step::Output,
            Place::Exit => Step::Exit,
        };
        Stage::Layer {
            layer,
            sublayer,
            step,
        }
    }

    /// The sublayer that a stage belongs to.
    pub(super) fn sublayer(&self, stage: Stage) -> Option<&Sublayer> {
        match stage {
            Stage::Layer {
                layer, sublayer, ..
            } => Some(self.layout.sublayer(layer, sublayer)),
            Stage::Embed | Stage::FinalNorm | Stage::Unembed => None,
        }
    }

    /// Whether what a sublayer returns is added to the stream.
    pub(super) fn adds(&self, stage: Stage) -> bool {
        let output = self.sublayer(stage).map(Sublayer::output);
        matches!(output, Some(SublayerOutput::Adds(_)))
    }

    /// How positions depend on each other in a stage.
    pub(super) fn mixing(&self, stage: Stage) -> Mixing {
        match (stage, self.sublayer(stage)) {
            (Stage::Embed, _) => Mixing::Rows,
            (
                Stage::Layer {
                    step: Step::Run, ..
                },
                Some(sublayer),
            ) => sublayer.mixing(),
            _ => Mixing::None,
        }
    }

    /// Whether rows can be suffixes of others: no sublayer needs whole rows.
    pub(super) fn run_suffixes(&self) -> bool {
        let sublayers = self
            .layout
            .layers()
            .iter()
            .flat_map(|layer| layer.sublayers());
        let mut mixing = sublayers.map(Sublayer::mixing);
        mixing.all(|mixing| mixing != Mixing::Rows)
    }

    /// Whether a position is computed differently if its row is longer.
    pub(super) fn depend_on_length(&self) -> bool {
        self.layout.depends_on_length()
    }

    /// Whether a layer's input is used in a stage or after it.
    pub(super) fn needs_layer_input(&self, stage: Stage) -> bool {
        match stage {
            Stage::Layer {
                layer,
                sublayer,
                step: Step::Run,
            } => self.layout.layers()[layer].reads_input_from(sublayer),
            Stage::Layer {
                layer, sublayer, ..
            } => self.layout.layers()[layer].reads_input_from(sublayer + 1),
            Stage::Embed | Stage::FinalNorm | Stage::Unembed => false,
        }
    }

    /// Every stage.
    pub(super) fn all(&self) -> impl Iterator<Item = Stage> + '_ {
        let layers = self.layout.layers().iter().enumerate();
        let layers = layers.flat_map(|(layer, layout)| {
            let sublayers = layout.sublayers().iter().enumerate();
            sublayers.flat_map(move |(index, sublayer)| {
                let adds = matches!(sublayer.output(), SublayerOutput::Adds(_));
                let steps = [
                    Some(Step::Run),
                    adds.then_some(Step::Output),
                    sublayer.exit().map(|_| Step::Exit),
                ];
                steps.into_iter().flatten().map(move |step| Stage::Layer {
                    layer,
                    sublayer: index,
                    step,
                })
            })
        });
        let ends = [Stage::FinalNorm, Stage::Unembed];
        [Stage::Embed].into_iter().chain(layers).chain(ends)
    }

    /// The stages that mix positions, in order.
    pub(super) fn mixing_stages(&self) -> impl Iterator<Item = Stage> + '_ {
        self.all()
            .filter(|stage| self.mixing(*stage) != Mixing::None)
            .skip(1)
    }

    /// Where a run can resume before a stage: at which stage, and with the residual stream of which
    /// site. `None` if the stream is not an activation on the way there.
    pub(super) fn residual_before(&self, stage: Stage) -> Option<(Stage, Site)> {
        let run = |layer, sublayer| Stage::Layer {
            layer,
            sublayer,
            step: Step::Run,
        };
        let exit = |layer: usize, sublayer: usize| {
            let exit = self.layout.sublayer(layer, sublayer).exit();
            exit.map(|component| Site::Block(layer, component))
        };
        let after = |layer: usize| {
            let last = self.layout.layers()[layer]
                .sublayers()
                .len()
                .checked_sub(1)?;
            exit(layer, last)
        };
        match stage {
            Stage::Embed | Stage::Unembed => None,
            Stage::FinalNorm => match self.layout.layers().len() {
                0 => None,
                layers => Some((stage, after(layers - 1)?)),
            },
            Stage::Layer {
                layer,
                sublayer,
                step,
            } => match step {
                // The stream does not have what a later sublayer reads.
                Step::Exit if self.needs_layer_input(stage) => self.residual_before(run(layer, 0)),
                Step::Exit => Some((stage, exit(layer, sublayer)?)),
                Step::Queries | Step::Output => self.residual_before(run(layer, sublayer)),
                Step::Run if sublayer > 0 => match exit(layer, sublayer - 1) {
                    Some(site) if !self.needs_layer_input(stage) => Some((stage, site)),
                    _ => self.residual_before(run(layer, sublayer - 1)),
                },
                Step::Run if layer > 0 => Some((stage, after(layer - 1)?)),
                Step::Run => {
                    let is_activation = self.layout.stream_is_activation();
                    is_activation.then_some((stage, Site::Embedding))
                }
            },
        }
    }

    /// The name of a stage, for people.
    pub(super) fn name(&self, stage: Stage) -> String {
        let (Stage::Layer { layer, step, .. }, Some(sublayer)) = (stage, self.sublayer(stage))
        else {
            return match stage {
                Stage::Embed => Site::Embedding.to_string(),
                Stage::FinalNorm => Site::FinalNorm.to_string(),
                _ => "unembed".to_owned(),
            };
        };
        let component = match (step, sublayer.output()) {
            (Step::Output, SublayerOutput::Adds(component)) => Some(component),
            (Step::Exit, _) => sublayer.exit(),
            _ => None,
        };
        match component {
            Some(component) => Site::Block(layer, component).to_string(),
            None => format!("layer {layer} {}", sublayer.name()),
        }
    }

    /// What a sublayer reads.
    pub(super) fn reads(&self, stage: Stage) -> Reads {
        self.sublayer(stage).map_or(Reads::Stream, Sublayer::reads)
    }
}

/// Things of a plan, by the stage at which they happen.
#[derive(Clone, Debug)]
pub(super) struct ByStage<T> {
    /// The stages in order, each with the end of its things.
    ends: Vec<(Stage, usize)>,
    things: Vec<T>,
}

impl<T> ByStage<T> {
    /// The things of a stage keep their order.
    pub(super) fn new(mut all: Vec<(Stage, T)>) -> Self {
        all.sort_by_key(|(stage, _)| *stage);
        let mut ends: Vec<(Stage, usize)> = Vec::new();
        let mut things = Vec::with_capacity(all.len());
        for (stage, thing) in all {
            things.push(thing);
            match ends.last_mut() {
                Some((last, end)) if *last == stage => *end = things.len(),
                _ => ends.push((stage, things.len())),
            }
        }
        Self { ends, things }
    }

    /// What happens at a stage.
    pub(super) fn at(&self, stage: Stage) -> &[T] {
        let Ok(place) = self.ends.binary_search_by_key(&stage, |(at, _)| *at) else {
            return &[];
        };
        let start = match place {
            0 => 0,
            _ => self.ends[place - 1].1,
        };
        &self.things[start..self.ends[place].1]
    }
}
