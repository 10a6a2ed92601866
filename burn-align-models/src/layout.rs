//! What a model is made of, as data: its sublayers in the order in which a pass runs them.
//!
//! Everything that depends on the order of a block is derived from this: the stages of the engine,
//! the plain forward pass, explanations, memory estimates, and where a run can be resumed.

use std::sync::Arc;

use crate::dims::{ModelDims, SiteDims};
use crate::model::InputKinds;
use crate::site::{Component, Site};

/// The sizes of a model, what it reads, and the sublayers of each layer.
///
/// A transformer's is [`ModelLayout::transformer`]. One for a network of three layers, each of
/// which replaces the stream, position by position:
///
/// ```
/// use burn_align_models::{
///     Component, InputKinds, LayerLayout, ModelDims, ModelLayout, Site, Sublayer,
/// };
///
/// let hidden = Sublayer::by_position("hidden layer").followed_by(Component::BlockOutput);
/// let layer = LayerLayout::new([hidden]);
/// let (dims, inputs) = (ModelDims::features(3, 16, 2), InputKinds::features(4));
/// let layout = ModelLayout::new(dims, inputs, vec![layer; 3]);
/// assert!(layout.site(Site::Block(2, Component::BlockOutput)).is_some());
/// assert!(layout.site(Site::Block(2, Component::MlpOutput)).is_none());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ModelLayout {
    dims: ModelDims,
    inputs: InputKinds,
    layers: Arc<[LayerLayout]>,
    stream_is_activation: bool,
    layers_are_steps: bool,
    depends_on_length: bool,
}

/// The sublayers of one layer, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerLayout {
    entry: Option<Component>,
    sublayers: Vec<Sublayer>,
}

/// A part of a layer that the engine runs as one: it reads the residual stream, and what it returns
/// is added to the stream or replaces it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sublayer {
    name: &'static str,
    kind: SublayerKind,
    mixing: Mixing,
    reads: Reads,
    output: SublayerOutput,
    exit: Option<Component>,
    taps: Vec<(Component, Positions)>,
}

/// What a sublayer computes, as far as its cost depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SublayerKind {
    /// Attention, with projections to queries, keys and values.
    Attention,
    /// An MLP with one hidden layer.
    Mlp,
    /// Anything else; its cost is estimated as that of a whole block.
    Other,
}

/// How positions of a row depend on each other in a sublayer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixing {
    /// Each depends on itself alone, so any selection of positions can be computed.
    None,
    /// Each depends on itself and on earlier ones, but not on [how many there
    /// are](ModelLayout::depends_on_length), through [`attend`](crate::nn::attend), so
    /// [`Suffixes`](crate::Suffixes) of rows can be computed.
    Causal {
        /// How many positions each sees, itself included, if fewer than all.
        window: Option<usize>,
    },
    /// In a way that needs whole rows.
    Rows,
}

/// What a sublayer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// The residual stream as the sublayer before has left it.
    Stream,
    /// The residual stream that entered the layer, as in a parallel block.
    LayerInput,
}

/// What becomes of what a sublayer returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SublayerOutput {
    /// It is added to the residual stream, and is the activation of this component.
    Adds(Component),
    /// It is the new residual stream.
    Replaces,
}

/// For which positions an activation within a sublayer is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// All that the sublayer is given.
    All,
    /// Those with a query; see [`Queries`](crate::Queries).
    Queries,
}

impl Sublayer {
    fn new(name: &'static str, kind: SublayerKind, mixing: Mixing) -> Self {
        Self {
            name,
            kind,
            mixing,
            reads: Reads::Stream,
            output: SublayerOutput::Replaces,
            exit: None,
            taps: Vec::new(),
        }
    }

    /// A sublayer that replaces the stream.
    ///
    /// - name: in explanations of plans
    pub fn other(name: &'static str, mixing: Mixing) -> Self {
        Self::new(name, SublayerKind::Other, mixing)
    }

    /// A sublayer that replaces the stream, in which each position depends on itself alone.
    pub fn by_position(name: &'static str) -> Self {
        Self::other(name, Mixing::None)
    }

    /// A sublayer that replaces the stream, and is always run on whole rows.
    pub fn of_rows(name: &'static str) -> Self {
        Self::other(name, Mixing::Rows)
    }

    /// Causal attention through [`attend`](crate::nn::attend), which adds to the stream.
    ///
    /// - window: how many positions a query sees, itself included, if fewer than all
    pub fn attention(window: Option<usize>) -> Self {
        Self::new(
            "attention",
            SublayerKind::Attention,
            Mixing::Causal { window },
        )
        .adds(Component::AttentionOutput)
    }

    /// An MLP, which adds to the stream.
    pub fn mlp() -> Self {
        Self::new("mlp", SublayerKind::Mlp, Mixing::None).adds(Component::MlpOutput)
    }

    /// The same, but what it returns is added to the stream, and is the activation of this
    /// component. The engine taps it.
    pub fn adds(mut self, component: Component) -> Self {
        self.output = SublayerOutput::Adds(component);
        self
    }

    /// The same, but what it returns is the new stream.
    pub fn replaces(mut self) -> Self {
        self.output = SublayerOutput::Replaces;
        self
    }

    /// The same, but it reads the stream that entered the layer.
    pub fn reading_layer_input(mut self) -> Self {
        self.reads = Reads::LayerInput;
        self
    }

    /// The same, with the stream after it as the activation of this component. The engine taps it.
    pub fn followed_by(mut self, component: Component) -> Self {
        self.exit = Some(component);
        self
    }

    /// The same, with activations that the model itself taps in this sublayer.
    pub fn tapping(mut self, components: impl IntoIterator<Item = Component>) -> Self {
        let taps = components
            .into_iter()
            .map(|component| (component, Positions::All));
        self.taps.extend(taps);
        self
    }

    /// The same, with activations that the model itself taps, and that are computed only for the
    /// positions with a [query](crate::Queries).
    pub fn tapping_queries(mut self, components: impl IntoIterator<Item = Component>) -> Self {
        let taps = components
            .into_iter()
            .map(|component| (component, Positions::Queries));
        self.taps.extend(taps);
        self
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it computes.
    pub fn kind(&self) -> SublayerKind {
        self.kind
    }

    /// How positions depend on each other.
    pub fn mixing(&self) -> Mixing {
        self.mixing
    }

    /// What it reads.
    pub fn reads(&self) -> Reads {
        self.reads
    }

    /// What becomes of what it returns.
    pub fn output(&self) -> SublayerOutput {
        self.output
    }

    /// The component of the stream after it, if the stream is an activation there.
    pub fn exit(&self) -> Option<Component> {
        self.exit
    }

    /// The components that the model taps in it.
    pub fn taps(&self) -> &[(Component, Positions)] {
        &self.taps
    }

    /// The component of the keys that meet the queries: the last that is tapped.
    pub fn attended_keys(&self) -> Option<Component> {
        let keys = [
            Component::RotaryKey,
            Component::KeyNorm,
            Component::KeyOutput,
        ];
        let is_tapped = |key: &Component| self.taps.iter().any(|(tapped, _)| tapped == key);
        keys.into_iter().find(is_tapped)
    }

    /// Where in the sublayer a component is, if it is there.
    fn place(&self, component: Component) -> Option<Place> {
        if self.output == SublayerOutput::Adds(component) {
            return Some(Place::Output);
        }
        if self.exit == Some(component) {
            return Some(Place::Exit);
        }
        let tap = self.taps.iter().find(|(tapped, _)| *tapped == component);
        tap.map(|(_, positions)| Place::Inside(*positions))
    }
}

/// Where an activation is, relative to the sublayer that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The stream that enters the layer, before its first sublayer.
    Entry,
    /// Within the sublayer.
    Inside(Positions),
    /// What the sublayer adds to the stream.
    Output,
    /// The stream after the sublayer.
    Exit,
}

impl LayerLayout {
    /// A layer of these sublayers.
    pub fn new(sublayers: impl IntoIterator<Item = Sublayer>) -> Self {
        Self {
            entry: None,
            sublayers: sublayers.into_iter().collect(),
        }
    }

    /// The same, with the stream that enters it as the activation of this component. The engine
    /// taps it.
    pub fn entered_by(mut self, component: Component) -> Self {
        self.entry = Some(component);
        self
    }

    /// The component of the stream that enters the layer.
    pub fn entry(&self) -> Option<Component> {
        self.entry
    }

    /// The sublayers, in order.
    pub fn sublayers(&self) -> &[Sublayer] {
        &self.sublayers
    }

    /// Whether a sublayer from this one on reads the stream that entered the layer.
    pub fn reads_input_from(&self, sublayer: usize) -> bool {
        let mut rest = self.sublayers.iter().skip(sublayer);
        rest.any(|later| later.reads == Reads::LayerInput)
    }

    /// The sublayer that a component belongs to, and where it is there; `None` if the layer has no
    /// such component.
    pub fn place(&self, component: Component) -> Option<(usize, Place)> {
        if self.entry == Some(component) {
            return Some((0, Place::Entry));
        }
        let mut sublayers = self.sublayers.iter().enumerate();
        sublayers.find_map(|(index, sublayer)| Some((index, sublayer.place(component)?)))
    }

    /// A block of a transformer with these sizes: attention, then an MLP.
    fn transformer(dims: &ModelDims, window: Option<usize>) -> Self {
        use Component::*;
        let mut attention = Sublayer::attention(window)
            .adds(dims.added_by_attention())
            .tapping([AttentionInput])
            .tapping_queries([QueryOutput])
            .tapping([KeyOutput, ValueOutput]);
        if dims.qk_norm {
            attention = attention.tapping_queries([QueryNorm]).tapping([KeyNorm]);
        }
        if dims.rotary {
            attention = attention
                .tapping_queries([RotaryQuery])
                .tapping([RotaryKey]);
        }
        attention = attention
            .tapping([AttentionScores, AttentionWeights])
            .tapping_queries([AttentionValueOutput]);
        let mut mlp = Sublayer::mlp()
            .adds(dims.added_by_mlp())
            .tapping([MlpInput, MlpActivation])
            .followed_by(BlockOutput);
        if dims.post_norms {
            attention = attention.tapping_queries([AttentionOutput]);
            mlp = mlp.tapping([MlpOutput]);
        }
        match dims.parallel {
            true => mlp = mlp.reading_layer_input(),
            false => attention = attention.followed_by(ResidualMid),
        }
        Self::new([attention, mlp]).entered_by(BlockInput)
    }
}

impl ModelLayout {
    /// - layers: as many as `dims` says
    ///
    /// # Panics
    /// If there are more or fewer layers, or a component is at two places of a layer.
    pub fn new(
        dims: ModelDims,
        inputs: InputKinds,
        layers: impl IntoIterator<Item = LayerLayout>,
    ) -> Self {
        let layers: Arc<[LayerLayout]> = layers.into_iter().collect();
        assert_eq!(
            layers.len(),
            dims.layers,
            "the sizes say how many layers there are"
        );
        for layer in layers.iter() {
            let sublayers = layer.sublayers.iter();
            let all = layer
                .entry
                .into_iter()
                .chain(sublayers.flat_map(|sublayer| {
                    let added = match sublayer.output {
                        SublayerOutput::Adds(component) => Some(component),
                        SublayerOutput::Replaces => None,
                    };
                    let taps = sublayer.taps.iter().map(|(component, _)| *component);
                    taps.chain(added).chain(sublayer.exit)
                }));
            let mut seen = Vec::new();
            for component in all {
                assert!(
                    !seen.contains(&component),
                    "{component} is at two places of a layer"
                );
                seen.push(component);
            }
        }
        Self {
            dims,
            inputs,
            layers,
            stream_is_activation: true,
            layers_are_steps: false,
            depends_on_length: false,
        }
    }

    /// A decoder-only transformer, which reads token ids, or vectors as wide as its residual
    /// stream.
    ///
    /// - window: for each layer, how many positions a query sees, itself included, if fewer than
    ///   all
    pub fn transformer(dims: ModelDims, window: impl Fn(usize) -> Option<usize>) -> Self {
        let layers: Vec<LayerLayout> = (0..dims.layers)
            .map(|layer| LayerLayout::transformer(&dims, window(layer)))
            .collect();
        let inputs = InputKinds {
            tokens: true,
            features: Some(dims.d_model),
        };
        Self::new(dims, inputs, layers)
    }

    /// The same, for a model whose stream holds more than an activation, such as a recurrent
    /// network that carries its inputs along: it has neither [`Site::Embedding`] nor
    /// [`Site::FinalNorm`].
    pub fn with_opaque_stream(mut self) -> Self {
        self.stream_is_activation = false;
        self
    }

    /// The same, for a recurrent network whose layers are its time steps, so that layer `t`
    /// computes position `t`.
    pub fn with_layers_as_steps(mut self) -> Self {
        self.layers_are_steps = true;
        self
    }

    /// The same, for a model that computes a position differently if its row is longer, as with
    /// rotary embeddings that are scaled by the length. The engine then computes rows up to the end
    /// of their input, whatever is needed of them.
    pub fn depending_on_length(mut self) -> Self {
        self.depends_on_length = true;
        self
    }

    /// The sizes.
    pub fn dims(&self) -> &ModelDims {
        &self.dims
    }

    /// What the model reads. The engine passes no other inputs.
    pub fn inputs(&self) -> InputKinds {
        self.inputs
    }

    /// The layers.
    pub fn layers(&self) -> &[LayerLayout] {
        &self.layers
    }

    /// A sublayer.
    ///
    /// # Panics
    /// If there is none with these indices.
    pub fn sublayer(&self, layer: usize, sublayer: usize) -> &Sublayer {
        &self.layers[layer].sublayers[sublayer]
    }

    /// Whether the stream itself is an activation at its ends: [`Site::Embedding`] and
    /// [`Site::FinalNorm`].
    pub fn stream_is_activation(&self) -> bool {
        self.stream_is_activation
    }

    /// Whether a position is computed differently if its row is longer.
    pub fn depends_on_length(&self) -> bool {
        self.depends_on_length
    }

    /// Whether layers are the time steps of a recurrent network.
    pub fn layers_are_steps(&self) -> bool {
        self.layers_are_steps
    }

    /// The shape of the activation at `site`; `None` if the model has no such site.
    pub fn site(&self, site: Site) -> Option<SiteDims> {
        match site {
            Site::Embedding | Site::FinalNorm => {
                self.stream_is_activation.then(|| self.dims.stream())
            }
            Site::Block(layer, component) => {
                let _exists = self.layers.get(layer)?.place(component)?;
                Some(self.dims.component(component))
            }
        }
    }

    /// What the model lacks, if it has no such site although it has the layer: for messages, after
    /// the number of layers.
    pub fn lacks(&self, site: Site) -> &'static str {
        let Site::Block(layer, component) = site else {
            return "";
        };
        if layer >= self.layers.len() || self.site(site).is_some() {
            return "";
        }
        match component {
            Component::RotaryQuery | Component::RotaryKey => " and no rotary embedding",
            Component::QueryNorm | Component::KeyNorm => " and no norms of queries and keys",
            Component::AttentionPostNorm | Component::MlpPostNorm => {
                " and no norms after attention and MLP"
            }
            Component::ResidualMid if self.layers[layer].reads_input_from(0) => {
                ", and its MLPs read the blocks' inputs"
            }
            _ => "",
        }
    }
}
