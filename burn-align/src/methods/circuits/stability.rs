//! How stable a circuit is over resamples of its examples, and how well scores find a known one.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::circuit::check_graph;
use super::select::rank;
use super::{Circuit, CircuitError, EdgeRanking, EdgeScores};

/// How often the same edges are chosen when the examples are drawn anew.
#[derive(Clone, Debug, PartialEq)]
pub struct CircuitStability {
    /// The Jaccard similarity of each pair of circuits, in the order (0, 1), (0, 2), …, (1, 2), ….
    pub jaccard: Vec<f64>,
    /// For each edge of the graph, the share of circuits that have it.
    pub frequency: Vec<f64>,
}

impl CircuitStability {
    /// The mean over pairs.
    pub fn mean_jaccard(&self) -> f64 {
        self.jaccard.iter().sum::<f64>() / self.jaccard.len().max(1) as f64
    }
}

/// Draws examples with replacement, as many as there are: the indices of each resample (Efron
/// 1979).
pub fn bootstrap_resamples(examples: usize, resamples: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut one = || -> Vec<usize> {
        let drawn = (0..examples).map(|_| rng.random_range(0..examples));
        drawn.collect()
    };
    (0..resamples).map(|_| one()).collect()
}

/// Chooses a circuit for each resample of the examples, and compares all pairs (arXiv 2510.00845,
/// who find means of .67 for EAP on GPT-2 and .39 on Llama 3.2 1B, and ask for .8 over 100
/// resamples).
///
/// - choose: the circuit of some of the examples, each of which may be named several times
///
/// # When it misleads
/// Circuits of more edges overlap more, whatever was measured: two halves of all edges, drawn at
/// random, have a similarity of 1/3. Compare circuits of the same size.
///
/// # Errors
/// If there are fewer than two resamples or no examples, if choosing fails, or if circuits are of
/// different graphs.
pub fn circuit_stability(
    examples: usize,
    resamples: usize,
    seed: u64,
    mut choose: impl FnMut(&[usize]) -> Result<Circuit, CircuitError>,
) -> Result<CircuitStability, CircuitError> {
    if examples == 0 {
        return Err(CircuitError::Nothing { what: "example" });
    }
    if resamples < 2 {
        return Err(CircuitError::Setting {
            what: "resamples",
            expected: "at least 2",
            found: resamples.to_string(),
        });
    }
    let drawn = bootstrap_resamples(examples, resamples, seed);
    let circuits: Vec<Circuit> = drawn
        .iter()
        .map(|examples| choose(examples))
        .collect::<Result<_, _>>()?;
    let pairs = (0..resamples).flat_map(|a| (a + 1..resamples).map(move |b| (a, b)));
    let jaccard = pairs.map(|(a, b)| circuits[a].jaccard(&circuits[b]));
    let jaccard = jaccard.collect::<Result<_, _>>()?;
    let mut frequency = vec![0.0; circuits[0].graph().edge_count()];
    for circuit in &circuits {
        for (share, member) in frequency.iter_mut().zip(circuit.members()) {
            *share += f64::from(u8::from(*member)) / resamples as f64;
        }
    }
    Ok(CircuitStability { jaccard, frequency })
}

/// The area under the ROC curve of scores that should tell the edges of a known circuit from the
/// others: the probability that an edge of it ranks above one outside, where equal ranks count
/// half. `None` if all edges are in the circuit, or none.
///
/// MIB's figure for InterpBench is a trapezoid over circuits of ten sizes, chosen greedily; this
/// one takes all sizes into account, and needs no choice.
///
/// # Errors
/// If both are of different graphs.
#[doc(alias = "roc_auc")]
pub fn auroc(
    scores: &EdgeScores,
    by: EdgeRanking,
    known: &Circuit,
) -> Result<Option<f64>, CircuitError> {
    check_graph(scores.graph(), known.graph())?;
    let edges = scores.values().iter().zip(known.members());
    let edges = edges.map(|(score, member)| (rank(*score, by), *member));
    let mut edges: Vec<(f64, bool)> = edges.collect();
    edges.sort_by(|a, b| a.0.total_cmp(&b.0));
    let inside = edges.iter().filter(|(_, member)| *member).count();
    let outside = edges.len() - inside;
    if inside == 0 || outside == 0 {
        return Ok(None);
    }
    // Mann and Whitney 1947: pairs that are in order, equal ones half.
    let (mut below, mut ordered) = (0.0, 0.0);
    for equal in edges.chunk_by(|a, b| a.0 == b.0) {
        let members = equal.iter().filter(|(_, member)| *member).count() as f64;
        let others = equal.len() as f64 - members;
        ordered += members * (below + 0.5 * others);
        below += others;
    }
    Ok(Some(ordered / (inside as f64 * outside as f64)))
}
