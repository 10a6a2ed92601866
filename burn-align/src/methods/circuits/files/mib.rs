//! The JSON of a circuit in MIB.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use burn_align_models::files::Replacement;

use super::CircuitFileError;
use super::json::{Json, value_of};
use crate::methods::circuits::{
    Circuit, CircuitError, Edge, EdgeGraph, EdgeProvenance, EdgeScores, GraphNode, Reader,
};
use crate::paths::HeadInput;

/// A circuit as in the files of MIB's circuit localisation track (arXiv 2504.13151) and of EAP-IG
/// (arXiv 2403.17806): whether each edge is in the circuit, its score, or both.
///
/// ```json
/// {"cfg": {"n_layers": 12, "n_heads": 12, "parallel_attn_mlp": false, "d_model": 768},
///  "nodes": {"input": {"in_graph": true}, …, "logits": {"in_graph": true}},
///  "edges": {"input->a0.h0<q>": {"score": -0.0017, "in_graph": false}, …}}
/// ```
///
/// A file that was read is written as it was, to the byte if Python's `json.dump` wrote it: the
/// order of keys, scores and neurons of nodes, and fields that are not known here.
///
/// ```
/// use burn_align::methods::circuits::{Circuit, CircuitFile, EdgeGraph};
///
/// let circuit = Circuit::full(EdgeGraph::new(1, 1, false, 8));
/// let json = CircuitFile::new(&circuit).to_json();
/// assert!(json.contains(r#""a0.h0->m0": {"in_graph": true}"#));
/// let read = CircuitFile::parse(&json)?;
/// assert_eq!(read.circuit(), &circuit);
/// assert_eq!(read.to_json(), json);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct CircuitFile {
    document: Json,
    circuit: Circuit,
    scores: Option<EdgeScores>,
    nodes: Vec<CircuitFileNode>,
}

/// What a file says about a node.
#[derive(Clone, Debug, PartialEq)]
pub struct CircuitFileNode {
    /// The node.
    pub node: GraphNode,
    /// Whether it is in the circuit.
    pub in_graph: bool,
    /// Its score, if it has one. NaN says that it was not scored.
    pub score: Option<f64>,
    /// For each feature of the residual stream, whether what the node writes to it is in the
    /// circuit.
    pub neurons: Option<Vec<bool>>,
    /// Their scores.
    pub neurons_scores: Option<Vec<f64>>,
}

impl CircuitFile {
    /// A circuit, with the scores that it was chosen by if it has any.
    pub fn new(circuit: &Circuit) -> Self {
        let graph = circuit.graph();
        let own = circuit.nodes();
        let nodes = graph.nodes().map(|node| CircuitFileNode {
            node,
            in_graph: own.contains(&node),
            score: None,
            neurons: None,
            neurons_scores: None,
        });
        let nodes: Vec<CircuitFileNode> = nodes.collect();
        let scores = circuit.scores().and_then(|scores| {
            EdgeScores::new(graph.clone(), scores.to_vec(), EdgeProvenance::GIVEN).ok()
        });
        Self {
            document: document(circuit, &nodes),
            circuit: circuit.clone(),
            scores,
            nodes,
        }
    }

    /// Scores without a circuit: no edge is in it.
    pub fn of_scores(scores: &EdgeScores) -> Self {
        let none = Circuit::empty(scores.graph().clone());
        // Scores of the same graph.
        let circuit = none.clone().with_scores(scores).unwrap_or(none);
        let mut file = Self::new(&circuit);
        file.scores = Some(scores.clone());
        file
    }

    /// The circuit, with its scores if the file has any.
    pub fn circuit(&self) -> &Circuit {
        &self.circuit
    }

    /// The scores, if the file has any. Edges without one have NaN.
    pub fn scores(&self) -> Option<&EdgeScores> {
        self.scores.as_ref()
    }

    /// What the file says about nodes, in its order.
    pub fn nodes(&self) -> &[CircuitFileNode] {
        &self.nodes
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// If it is not JSON, or not a circuit: the graph must have exactly the edges of a transformer
    /// of the sizes in `cfg`.
    pub fn parse(json: &str) -> Result<Self, CircuitFileError> {
        let document = Json::parse(json).map_err(|reason| CircuitFileError::Json { reason })?;
        let top = object("the file", &document)?;
        let (cfg, nodes, edges) = (
            field("the file", top, "cfg")?,
            field("the file", top, "nodes")?,
            field("the file", top, "edges")?,
        );
        let edges = object("edges", edges)?;
        let graph = read_graph(object("cfg", cfg)?, edges.len())?;
        let (circuit, scores) = read_edges(graph, edges)?;
        let nodes = object("nodes", nodes)?.iter();
        let nodes = nodes.map(|(name, value)| read_node(circuit.graph(), name, value));
        Ok(Self {
            nodes: nodes.collect::<Result<_, _>>()?,
            document,
            circuit,
            scores,
        })
    }

    /// The text of a file.
    pub fn to_json(&self) -> String {
        let mut json = String::new();
        self.document.write(&mut json);
        json
    }

    /// Reads a file.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), or if the file cannot be read.
    pub fn load(file: impl AsRef<Path>) -> Result<Self, CircuitFileError> {
        let file = file.as_ref();
        let text = fs::read_to_string(file).map_err(|cause| CircuitFileError::Io {
            file: file.to_owned(),
            cause,
        })?;
        Self::parse(&text).map_err(|cause| CircuitFileError::File {
            file: file.to_owned(),
            cause: Box::new(cause),
        })
    }

    /// Writes a file. An existing one is replaced once everything is written, and left as it was
    /// if writing fails. The folder is created if it does not exist.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, file: impl AsRef<Path>) -> Result<(), CircuitFileError> {
        let file = file.as_ref();
        let name = file.file_name().and_then(|name| name.to_str());
        let Some(name) = name else {
            let cause = std::io::Error::other("expected the name of a file");
            return Err(CircuitFileError::Io {
                file: file.to_owned(),
                cause,
            });
        };
        let folder = file.parent().filter(|folder| folder.as_os_str() != "");
        let mut files = Replacement::new(folder.unwrap_or(Path::new(".")))?;
        files.write(name, self.to_json().as_bytes())?;
        Ok(files.finish()?)
    }
}

/// The document of a circuit, in the order of the reference code.
fn document(circuit: &Circuit, nodes: &[CircuitFileNode]) -> Json {
    let graph = circuit.graph();
    let whole = |number: usize| Json::Number(number.to_string());
    let cfg = [
        ("n_layers", whole(graph.layers())),
        ("n_heads", whole(graph.heads())),
        ("parallel_attn_mlp", Json::Bool(graph.parallel())),
        ("d_model", whole(graph.d_model())),
    ];
    let nodes = nodes.iter().map(|node| {
        let fields = vec![("in_graph".to_owned(), Json::Bool(node.in_graph))];
        (graph.node_name(node.node), Json::Object(fields))
    });
    let edges = reference_order(graph).into_iter().map(|edge| {
        let mut fields = Vec::with_capacity(2);
        if let (Some(scores), Some(index)) = (circuit.scores(), graph.index(edge)) {
            fields.push(("score".to_owned(), Json::number(scores[index])));
        }
        fields.push(("in_graph".to_owned(), Json::Bool(circuit.contains(edge))));
        (graph.name(edge), Json::Object(fields))
    });
    let cfg = cfg.map(|(key, value)| (key.to_owned(), value));
    Json::Object(vec![
        ("cfg".to_owned(), Json::Object(cfg.into())),
        ("nodes".to_owned(), Json::Object(nodes.collect())),
        ("edges".to_owned(), Json::Object(edges.collect())),
    ])
}

/// All edges: layer by layer, and writer by writer.
fn reference_order(graph: &EdgeGraph) -> Vec<Edge> {
    let mut edges = Vec::with_capacity(graph.edge_count());
    let mut add = |writer: usize, reader: Reader| {
        let reader = graph.reader(reader);
        edges.extend(reader.map(|reader| Edge { writer, reader }));
    };
    for layer in 0..graph.layers() {
        let before = 1 + layer * (graph.heads() + 1);
        for writer in 0..before {
            for head in 0..graph.heads() {
                for input in HeadInput::ALL {
                    add(writer, Reader::of_head(layer, head, input));
                }
            }
            if graph.parallel() {
                add(writer, Reader::Mlp { layer });
            }
        }
        if !graph.parallel() {
            (0..before + graph.heads()).for_each(|writer| add(writer, Reader::Mlp { layer }));
        }
    }
    (0..graph.writers().len()).for_each(|writer| add(writer, Reader::Logits));
    edges
}

type Fields = [(String, Json)];

fn wrong(place: &str, expected: &str, found: &Json) -> CircuitFileError {
    CircuitFileError::Content {
        place: place.to_owned(),
        expected: expected.to_owned(),
        found: found.kind().to_owned(),
    }
}

fn object<'a>(place: &str, value: &'a Json) -> Result<&'a Fields, CircuitFileError> {
    match value {
        Json::Object(fields) => Ok(fields),
        other => Err(wrong(place, "an object", other)),
    }
}

fn find<'a>(fields: &'a Fields, key: &str) -> Option<&'a Json> {
    let found = fields.iter().find(|(other, _)| other == key);
    found.map(|(_, value)| value)
}

fn field<'a>(place: &str, fields: &'a Fields, key: &str) -> Result<&'a Json, CircuitFileError> {
    find(fields, key).ok_or_else(|| CircuitFileError::Content {
        place: place.to_owned(),
        expected: format!("the key `{key}`"),
        found: "none".to_owned(),
    })
}

fn boolean(place: &str, value: &Json) -> Result<bool, CircuitFileError> {
    match value {
        Json::Bool(value) => Ok(*value),
        other => Err(wrong(place, "true or false", other)),
    }
}

fn number(place: &str, value: &Json) -> Result<f64, CircuitFileError> {
    match value {
        Json::Number(text) => Ok(value_of(text)),
        other => Err(wrong(place, "a number", other)),
    }
}

fn list<T>(
    place: &str,
    value: &Json,
    width: usize,
    item: impl Fn(&str, &Json) -> Result<T, CircuitFileError>,
) -> Result<Vec<T>, CircuitFileError> {
    let Json::List(values) = value else {
        return Err(wrong(place, "a list", value));
    };
    if values.len() != width {
        return Err(CircuitFileError::Content {
            place: place.to_owned(),
            expected: format!("{width} values, one for each feature of the stream"),
            found: values.len().to_string(),
        });
    }
    values.iter().map(|value| item(place, value)).collect()
}

/// The graph of these sizes, which has so many edges.
fn read_graph(cfg: &Fields, edges: usize) -> Result<EdgeGraph, CircuitFileError> {
    let size = |key: &str| {
        let value = field("cfg", cfg, key)?;
        let size = match value {
            Json::Number(text) => text.parse::<u32>().ok().filter(|size| *size > 0),
            _ => None,
        };
        let place = format!("cfg.{key}");
        size.ok_or_else(|| wrong(&place, "a positive whole number", value))
    };
    let (layers, heads, d_model) = (size("n_layers")?, size("n_heads")?, size("d_model")?);
    let parallel = boolean(
        "cfg.parallel_attn_mlp",
        field("cfg", cfg, "parallel_attn_mlp")?,
    )?;
    let expected = edge_count(layers.into(), heads.into(), parallel);
    if expected != edges as u128 {
        return Err(CircuitFileError::Content {
            place: "edges".to_owned(),
            expected: format!("the {expected} edges of {layers} layers of {heads} heads"),
            found: edges.to_string(),
        });
    }
    let [layers, heads, d_model] = [layers, heads, d_model].map(|size| size as usize);
    Ok(EdgeGraph::new(layers, heads, parallel, d_model))
}

/// The number of edges, before the graph is built.
fn edge_count(layers: u128, heads: u128, parallel: bool) -> u128 {
    // Writers before each layer, summed over layers.
    let before = layers + (heads + 1) * (layers * (layers - 1) / 2);
    let to_mlps = if parallel { 0 } else { layers * heads };
    (3 * heads + 1) * before + to_mlps + 1 + layers * (heads + 1)
}

fn read_edges(
    graph: EdgeGraph,
    edges: &Fields,
) -> Result<(Circuit, Option<EdgeScores>), CircuitFileError> {
    let count = graph.edge_count();
    let mut members = vec![false; count];
    let mut values = vec![f64::NAN; count];
    let mut seen = HashSet::with_capacity(count);
    let mut has_scores = false;
    for (name, value) in edges {
        let place = format!("edges.{name}");
        let index = graph.parse(name).and_then(|edge| graph.index(edge));
        let index = index.filter(|index| seen.insert(*index));
        let Some(index) = index else {
            return Err(CircuitFileError::Content {
                place: "edges".to_owned(),
                expected: "each edge of the graph once".to_owned(),
                found: format!("`{name}`, which is none, or is there twice"),
            });
        };
        let fields = object(&place, value)?;
        let (score, member) = (find(fields, "score"), find(fields, "in_graph"));
        if score.is_none() && member.is_none() {
            field(&place, fields, "in_graph")?;
        }
        if let Some(score) = score {
            values[index] = number(&format!("{place}.score"), score)?;
            has_scores = true;
        }
        if let Some(member) = member {
            members[index] = boolean(&format!("{place}.in_graph"), member)?;
        }
    }
    let content = |error: CircuitError| CircuitFileError::Content {
        place: "edges".to_owned(),
        expected: "an entry for each edge".to_owned(),
        found: error.to_string(),
    };
    let scores = has_scores.then(|| EdgeScores::new(graph.clone(), values, EdgeProvenance::GIVEN));
    let scores = scores.transpose().map_err(content)?;
    let circuit = Circuit::from_members(graph, members).map_err(content)?;
    let circuit = match &scores {
        Some(scores) => circuit.with_scores(scores).map_err(content)?,
        None => circuit,
    };
    Ok((circuit, scores))
}

fn read_node(
    graph: &EdgeGraph,
    name: &str,
    value: &Json,
) -> Result<CircuitFileNode, CircuitFileError> {
    let place = format!("nodes.{name}");
    let node = graph
        .parse_node(name)
        .ok_or_else(|| CircuitFileError::Content {
            place: "nodes".to_owned(),
            expected: "nodes of the graph".to_owned(),
            found: format!("`{name}`"),
        })?;
    let fields = object(&place, value)?;
    let at = |key: &str| find(fields, key).map(|value| (format!("{place}.{key}"), value));
    let width = graph.d_model();
    Ok(CircuitFileNode {
        node,
        in_graph: match at("in_graph") {
            Some((place, value)) => boolean(&place, value)?,
            None => false,
        },
        score: at("score")
            .map(|(place, value)| number(&place, value))
            .transpose()?,
        neurons: at("neurons")
            .map(|(place, value)| list(&place, value, width, boolean))
            .transpose()?,
        neurons_scores: at("neurons_scores")
            .map(|(place, value)| list(&place, value, width, number))
            .transpose()?,
    })
}
