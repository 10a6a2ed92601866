//! What is printed.

use anyhow::{Context, Result};
use burn_align::methods::circuits::{Circuit, CircuitValues, Edge, EdgeScores, GraphNode, Reader};
use burn_align::paths::Node;
use workbench::out;
use workbench::table::{align_numbers, table};

use super::years::{DIGITS, LaterDigits};

/// Heads and MLPs that are printed.
const NODES: usize = 12;

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The probabilities of digits by the digit of the first year, and the metric of both prompts.
///
/// - answers, others: `[example][digit]`
pub(super) fn answers(
    metric: &LaterDigits,
    answers: &[Vec<f64>],
    others: &[Vec<f64>],
) -> Result<[f64; 2]> {
    let differences = |rows: &[Vec<f64>]| -> Result<Vec<f64>> {
        let rows = rows.iter().enumerate();
        rows.map(|(example, row)| metric.difference(example, row))
            .collect()
    };
    let (own, other) = (differences(answers)?, differences(others)?);
    let mut report = table([
        "from …",
        "prompts",
        "later",
        "not later",
        "from …0: later",
        "not later",
    ]);
    for start in 0..DIGITS {
        let of_start = metric.starts.iter().enumerate();
        let of_start = of_start.filter(|(_, other)| **other == start);
        let examples: Vec<usize> = of_start.map(|(example, _)| example).collect();
        if examples.is_empty() {
            continue;
        }
        let share = |rows: &[Vec<f64>], later: bool| {
            let sums = examples.iter().map(|example| {
                let digits = rows[*example].iter().enumerate();
                let chosen = digits.filter(|(digit, _)| (*digit > start) == later);
                chosen.map(|(_, p)| p).sum::<f64>()
            });
            format!("{:.3}", mean(&sums.collect::<Vec<f64>>()))
        };
        report.add_row([
            format!("…{start}"),
            examples.len().to_string(),
            share(answers, true),
            share(answers, false),
            share(others, true),
            share(others, false),
        ]);
    }
    align_numbers(&mut report);
    let right = own.iter().filter(|difference| **difference > 0.0).count();
    let [own_mean, other_mean] = [mean(&own), mean(&other)];
    out!(
        "Probability of digits that make a later year, by the last digit of the first year\n\
         {report}\n\
         P(later) − P(not later): {own_mean:+.3}, positive for {right} of {} prompts; from a year \
         that ends with 0: {other_mean:+.3}",
        own.len()
    )?;
    Ok([own_mean, other_mean])
}

/// The heads and MLPs whose edges have the largest scores together.
pub(super) fn nodes(scores: &EdgeScores) -> Result<()> {
    let graph = scores.graph();
    let logits = graph.reader(Reader::Logits).context("no logits")?;
    let sums = scores.node_scores();
    let mut order: Vec<usize> = (1..sums.len()).collect();
    order.sort_by(|a, b| sums[*b].abs().total_cmp(&sums[*a].abs()));
    let mut report = table(["node", "all its edges", "to the logits"]);
    for writer in order.into_iter().take(NODES) {
        let edge = Edge {
            writer,
            reader: logits,
        };
        report.add_row([
            graph.node_name(GraphNode::Writer(writer)),
            format!("{:+.4}", sums[writer]),
            format!("{:+.4}", scores.of(edge).unwrap_or_default()),
        ]);
    }
    align_numbers(&mut report);
    out!("\nScores by EAP-IG, in units of probability; positive ones help later years\n{report}")
}

/// What the circuit is made of, and what it answers alone.
pub(super) fn circuit(circuit: &Circuit, values: &CircuitValues) -> Result<()> {
    let graph = circuit.graph();
    let nodes = circuit.nodes();
    let count = |is_counted: fn(Node) -> bool| {
        let writers = nodes.iter().filter_map(|node| match node {
            GraphNode::Writer(writer) => Some(graph.writers()[*writer]),
            GraphNode::Logits => None,
        });
        writers.filter(|node| is_counted(*node)).count()
    };
    let heads = count(|node| matches!(node, Node::Head { .. }));
    let mlps = count(|node| matches!(node, Node::Mlp { .. }));
    let own = values.circuits.first().context("no circuit")?;
    out!(
        "\nThe circuit, pruned: {} of {} edges, {heads} heads and {mlps} MLPs. P(later) − P(not \
         later) of the model {:+.3}, of the circuit alone {:+.3}, without any edge {:+.3}",
        circuit.edge_count(),
        graph.edge_count(),
        mean(&values.base),
        mean(own),
        mean(&values.ablated)
    )
}
