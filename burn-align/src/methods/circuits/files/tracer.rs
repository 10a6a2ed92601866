//! A circuit as circuit-tracer's graph JSON, for its viewer and Neuronpedia's.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use burn_align_models::files::Replacement;

use super::CircuitFileError;
use super::json::Json;
use crate::methods::circuits::{Circuit, EdgeGraph, GraphNode};
use crate::paths::Node;

/// Where the viewer finds what graphs there are.
const REGISTRY: &str = "graph-metadata.json";

/// What a graph says beside its nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct TracerPrompt {
    /// Name of the graph and of its file: letters, digits, `-` and `_`.
    pub slug: String,
    /// The model. Neuronpedia takes it as its id of the model, such as `gpt2-small`.
    pub scan: String,
    /// One of the prompts.
    pub text: String,
    /// Its tokens: ids and texts.
    pub tokens: Vec<(u32, String)>,
    /// What the circuit predicts.
    pub target: TracerTarget,
}

/// The token whose logit the circuit is about. Of a difference of two, the first.
#[derive(Clone, Debug, PartialEq)]
pub struct TracerTarget {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Its probability after the prompt.
    pub probability: f64,
}

/// A circuit as a graph of circuit-tracer (its `frontend/graph_models.py`, version 1 of the schema;
/// Neuronpedia reads it, too): nodes, links with weights, and a prompt.
///
/// A node `layer_index_position` is a head, or the MLP of a layer, whose index follows that of the
/// heads. The logits are the target token. A link is an edge, with its score as weight, or 1 in a
/// circuit without scores. The circuit is [pruned](Circuit::pruned) first, and its nodes are
/// pinned, so that the viewer shows its links at once.
///
/// # What does not fit
/// The format is made for attribution graphs, whose nodes are features of transcoders at single
/// positions of one prompt. A circuit has none of this:
/// - **Nodes** are heads and MLPs, which such graphs do not have: there, attention is frozen, and
///   MLPs are features. They get feature types of their own, `attention head` and `mlp`, which
///   viewers draw like features, without examples. `influence` and `activation` are null, and
///   `transcoder_list` is empty.
/// - **Positions**: an edge is summed over positions, so all nodes are at the last token. The
///   tokens are there as embeddings without links, and the embedding of all of them is a node of
///   its own.
/// - **Prompts**: a score is a mean over examples, of which a graph names one.
/// - **Inputs of heads**: a link enters a node as a whole, so its weight is the sum over queries,
///   keys and values.
/// - **Weights** are what a source adds to the activation of a target there, so that what enters a
///   node sums to something. Here they are the effect of an edge on the metric, positive where
///   corrupting it hurts. Shares that a viewer computes compare edges into the same node only.
///
/// For a file without these losses, see [`CircuitFile`](super::CircuitFile).
///
/// ```
/// use burn_align::methods::circuits::{
///     Circuit, EdgeGraph, TracerGraph, TracerPrompt, TracerTarget,
/// };
///
/// let circuit = Circuit::full(EdgeGraph::new(1, 1, false, 8));
/// let tokens = [(464, "The"), (3139, " capital"), (286, " of")];
/// let prompt = TracerPrompt {
///     slug: "capital".to_owned(),
///     scan: "gpt2-small".to_owned(),
///     text: "The capital of".to_owned(),
///     tokens: tokens.map(|(id, text)| (id, text.to_owned())).into(),
///     target: TracerTarget { id: 262, text: " the".to_owned(), probability: 0.25 },
/// };
/// let json = TracerGraph::new(&circuit, &prompt)?.to_json();
/// assert!(json.contains(r#"{"source": "0_0_2", "target": "0_1_2", "weight": 1.0}"#));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct TracerGraph {
    slug: String,
    metadata: Json,
    document: Json,
}

impl TracerGraph {
    /// A circuit, with its scores if it has any.
    ///
    /// # Errors
    /// If the slug is no name of a file, the prompt has fewer than two tokens (viewers hide nodes
    /// that occur at more than two thirds of them), the probability is none, or a score is not
    /// finite.
    pub fn new(circuit: &Circuit, prompt: &TracerPrompt) -> Result<Self, CircuitFileError> {
        check(prompt)?;
        let circuit = circuit.pruned();
        let position = prompt.tokens.len() - 1;
        let tokens = prompt.tokens.iter().enumerate();
        let embeddings = tokens.map(|(position, (id, _))| token(*id, position));
        let own = circuit.nodes().into_iter();
        let own: Vec<TracerNode> = own
            .map(|node| described(circuit.graph(), node, position, prompt))
            .collect();
        let pinned = own.iter().map(|node| text(&node.id)).collect();
        let nodes = embeddings.chain(own.iter().cloned());
        let nodes = nodes.map(|node| node.to_json()).collect();
        let metadata = metadata(prompt);
        Ok(Self {
            slug: prompt.slug.clone(),
            document: object([
                ("metadata", metadata.clone()),
                (
                    "qParams",
                    object([
                        ("pinnedIds", Json::List(pinned)),
                        ("supernodes", Json::List(Vec::new())),
                        ("linkType", text("both")),
                        ("clickedId", text("")),
                        ("sg_pos", text("")),
                    ]),
                ),
                ("nodes", Json::List(nodes)),
                ("links", Json::List(links(&circuit, position, prompt)?)),
            ]),
            metadata,
        })
    }

    /// The text of the graph's file.
    pub fn to_json(&self) -> String {
        let mut json = String::new();
        self.document.write(&mut json);
        json
    }

    /// Writes the graph as `slug.json`, and adds it to the list of graphs in
    /// `graph-metadata.json`, from which circuit-tracer's server takes what it offers. A graph of
    /// the same slug is replaced. The folder is created if it does not exist.
    ///
    /// # Errors
    /// If a file cannot be written, or the list of graphs is none.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<(), CircuitFileError> {
        let folder = folder.as_ref();
        let registry = self.registered(&folder.join(REGISTRY))?;
        let mut files = Replacement::new(folder)?;
        files.write(&format!("{}.json", self.slug), self.to_json().as_bytes())?;
        files.write(REGISTRY, registry.as_bytes())?;
        Ok(files.finish()?)
    }

    /// The list of graphs with this one in it.
    fn registered(&self, file: &Path) -> Result<String, CircuitFileError> {
        let wrong = |found: String| CircuitFileError::File {
            file: file.to_owned(),
            cause: Box::new(content("the file", "an object with a list `graphs`", found)),
        };
        let mut fields = match fs::read_to_string(file) {
            Ok(text) => match Json::parse(&text).map_err(wrong)? {
                Json::Object(fields) => fields,
                other => return Err(wrong(other.kind().to_owned())),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                vec![("graphs".to_owned(), Json::List(Vec::new()))]
            }
            Err(cause) => {
                return Err(CircuitFileError::Io {
                    file: file.to_owned(),
                    cause,
                });
            }
        };
        let graphs = fields.iter_mut().find(|(key, _)| key == "graphs");
        let Some((_, Json::List(graphs))) = graphs else {
            return Err(wrong("none".to_owned()));
        };
        let own = ("slug".to_owned(), text(&self.slug));
        graphs.retain(|graph| !matches!(graph, Json::Object(fields) if fields.contains(&own)));
        graphs.push(self.metadata.clone());
        let mut json = String::new();
        Json::Object(fields).write(&mut json);
        Ok(json)
    }
}

/// A node as in the file.
#[derive(Clone)]
struct TracerNode {
    id: String,
    js_id: String,
    feature: usize,
    layer: String,
    position: usize,
    kind: &'static str,
    label: String,
    /// Of the target's logit only.
    probability: Option<f64>,
}

impl TracerNode {
    /// In the order of circuit-tracer's own files.
    fn to_json(&self) -> Json {
        object([
            ("node_id", text(&self.id)),
            ("feature", whole(self.feature)),
            ("layer", text(&self.layer)),
            ("ctx_idx", whole(self.position)),
            ("feature_type", text(self.kind)),
            ("token_prob", Json::number(self.probability.unwrap_or(0.0))),
            ("is_target_logit", Json::Bool(self.probability.is_some())),
            ("run_idx", whole(0)),
            ("reverse_ctx_idx", whole(0)),
            ("jsNodeId", text(&self.js_id)),
            ("clerp", text(&self.label)),
            ("influence", Json::Null),
            ("activation", Json::Null),
        ])
    }
}

/// A token of the prompt. Viewers label it themselves.
fn token(id: u32, position: usize) -> TracerNode {
    TracerNode {
        id: format!("E_{id}_{position}"),
        js_id: format!("E_{id}-{position}"),
        feature: position,
        layer: "E".to_owned(),
        position,
        kind: "embedding",
        label: String::new(),
        probability: None,
    }
}

/// A node of the circuit, at the last position.
fn described(
    graph: &EdgeGraph,
    node: GraphNode,
    position: usize,
    prompt: &TracerPrompt,
) -> TracerNode {
    let heads = graph.heads();
    let of_layer = |layer: usize, index: usize, kind: &'static str, label: String| TracerNode {
        id: node_id(graph, node, position, prompt),
        js_id: format!("{layer}_{index}-0"),
        feature: paired(layer, index),
        layer: layer.to_string(),
        position,
        kind,
        label,
        probability: None,
    };
    let writer = match node {
        GraphNode::Writer(writer) => graph.writers()[writer],
        GraphNode::Logits => {
            let TracerTarget {
                id,
                text,
                probability,
            } = &prompt.target;
            return TracerNode {
                id: node_id(graph, node, position, prompt),
                js_id: format!("L_{id}-{position}"),
                feature: *id as usize,
                layer: (graph.layers() + 1).to_string(),
                position,
                kind: "logit",
                label: format!("Output \"{text}\" (p={probability:.3})"),
                probability: Some(*probability),
            };
        }
    };
    match writer {
        Node::Head { layer, head } => of_layer(
            layer,
            head,
            "attention head",
            format!("Head {layer}.{head}"),
        ),
        Node::Mlp { layer } => of_layer(layer, heads, "mlp", format!("MLP {layer}")),
        // The graph has no attention as a whole.
        Node::Embedding | Node::Attention { .. } => TracerNode {
            id: node_id(graph, node, position, prompt),
            js_id: format!("E_all-{position}"),
            feature: position + 1, // those before are tokens
            layer: "E".to_owned(),
            position,
            kind: "all embeddings",
            label: "Embeddings of all tokens".to_owned(),
            probability: None,
        },
    }
}

/// `layer_index_position`: unique, since the logits are in a layer of their own.
fn node_id(graph: &EdgeGraph, node: GraphNode, position: usize, prompt: &TracerPrompt) -> String {
    let (layer, index) = match node {
        GraphNode::Logits => (graph.layers() + 1, prompt.target.id as usize),
        GraphNode::Writer(writer) => match graph.writers()[writer] {
            Node::Head { layer, head } => (layer, head),
            Node::Mlp { layer } => (layer, graph.heads()),
            Node::Embedding | Node::Attention { .. } => return format!("E_all_{position}"),
        },
    };
    format!("{layer}_{index}_{position}")
}

/// Cantor's number of a pair, from which viewers take layer and index.
fn paired(layer: usize, index: usize) -> usize {
    let sum = layer + index;
    sum * (sum + 1) / 2 + index
}

/// The edges of a circuit, as many as there are pairs of nodes.
fn links(
    circuit: &Circuit,
    position: usize,
    prompt: &TracerPrompt,
) -> Result<Vec<Json>, CircuitFileError> {
    let graph = circuit.graph();
    let mut weights: BTreeMap<[GraphNode; 2], f64> = BTreeMap::new();
    for edge in circuit.edges() {
        let ends = [
            GraphNode::Writer(edge.writer),
            graph.reading_node(edge.reader),
        ];
        let index = graph.index(edge);
        let score = circuit.scores().zip(index).map(|(all, index)| all[index]);
        if let Some(score) = score.filter(|score| !score.is_finite()) {
            let found = format!("{score} for {}", graph.name(edge));
            return Err(content("links", "finite scores", found));
        }
        match score {
            Some(score) => *weights.entry(ends).or_default() += score,
            None => *weights.entry(ends).or_default() = 1.0,
        }
    }
    let links = weights.into_iter().map(|([source, target], weight)| {
        let id = |node| text(&node_id(graph, node, position, prompt));
        object([
            ("source", id(source)),
            ("target", id(target)),
            ("weight", Json::number(weight)),
        ])
    });
    Ok(links.collect())
}

fn metadata(prompt: &TracerPrompt) -> Json {
    let tokens = prompt.tokens.iter().map(|(_, token)| text(token));
    let generator = object([
        ("name", text("burn-align")),
        ("version", text(env!("CARGO_PKG_VERSION"))),
    ]);
    let description = "A circuit of attention heads and MLPs. Weights are effects of edges on a \
                       metric, summed over positions and over queries, keys and values.";
    object([
        ("slug", text(&prompt.slug)),
        ("scan", text(&prompt.scan)),
        ("transcoder_list", Json::List(Vec::new())),
        ("prompt_tokens", Json::List(tokens.collect())),
        ("prompt", text(&prompt.text)),
        ("schema_version", whole(1)),
        (
            "info",
            object([("description", text(description)), ("generator", generator)]),
        ),
    ])
}

fn check(prompt: &TracerPrompt) -> Result<(), CircuitFileError> {
    let is_name =
        |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_');
    let slug = &prompt.slug;
    let is_registry = format!("{slug}.json") == REGISTRY;
    if slug.is_empty() || !slug.chars().all(is_name) || is_registry {
        let expected = "a name of letters, digits, `-` and `_`, other than `graph-metadata`";
        return Err(content("slug", expected, format!("{slug:?}")));
    }
    if prompt.tokens.len() < 2 {
        let found = prompt.tokens.len().to_string();
        return Err(content("tokens", "at least 2", found));
    }
    let probability = prompt.target.probability;
    if !(0.0..=1.0).contains(&probability) {
        let found = probability.to_string();
        return Err(content("target.probability", "a number from 0 to 1", found));
    }
    Ok(())
}

fn content(place: &str, expected: &str, found: String) -> CircuitFileError {
    CircuitFileError::Content {
        place: place.to_owned(),
        expected: expected.to_owned(),
        found,
    }
}

fn text(value: &str) -> Json {
    Json::Text(value.to_owned())
}

fn whole(value: usize) -> Json {
    Json::Number(value.to_string())
}

fn object<const N: usize>(fields: [(&str, Json); N]) -> Json {
    let fields = fields.map(|(key, value)| (key.to_owned(), value));
    Json::Object(fields.into())
}
