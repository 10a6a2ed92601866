//! Scores by three methods side by side, and the curves of circuits that they choose.

use std::time::Instant;

use anyhow::{Context, Result};
use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use burn_align::methods::attribution::{Agreement, LogitDifference, Patching};
use burn_align::methods::circuits::{
    Circuit, CircuitError, CircuitFile, CurveOptions, Edge, EdgeChoice, EdgeGraph, EdgeOptions,
    EdgeProvenance, EdgeRanking, EdgeScores, FaithfulnessCurve, Reader, eap, eap_ig_inputs,
    faithfulness_curves, patch_all_edges, patch_edges,
};
use burn_align::models::Decoder;
use burn_align::paths::Node;
use workbench::circuit_curves::{check_curves, plot_curves, print_curves};
use workbench::circuit_requests::ranking_name;
use workbench::ioi::Ioi;
use workbench::out;
use workbench::plot::write_diagram;
use workbench::table::{align_numbers, table};

use super::Args;

/// Heads that are printed.
const HEADS: usize = 10;
/// The name of the last method.
const EXACT: &str = "exact";
/// Edges that are printed.
const MISSES: usize = 8;

/// Scores of one method, and how long they took.
struct Scored {
    name: &'static str,
    scores: EdgeScores,
    seconds: f64,
}

/// The edges that have been patched.
enum Patched {
    None,
    Some(Vec<Edge>),
    All,
}

impl Patched {
    /// The edges whose scores are compared: those that were patched, or else all.
    fn compared(&self, graph: &EdgeGraph) -> Vec<Edge> {
        match self {
            Self::Some(edges) => edges.clone(),
            Self::None | Self::All => graph.edges().collect(),
        }
    }

    /// What the circuits are called that scores choose.
    fn name(&self, method: &Scored) -> &'static str {
        match (self, method.name) {
            (Self::Some(_), EXACT) => "refined",
            (_, name) => name,
        }
    }
}

/// Runs the experiment.
pub(super) fn compare<A: AutodiffBackend>(args: &Args, device: &A::Device) -> Result<()> {
    // 1. The model and the prompts.
    let model = args
        .model
        .or_smollm2("a model whose tokenizer knows English names")?;
    let dtype = args.backend.dtype.dtype();
    let loaded = args.model.load::<A, Decoder<A>>(&model, dtype, device)?;
    let plain = loaded.model.valid();
    let ioi = Ioi::draw(loaded.tokenizer()?, args.prompts, args.seed)?;
    let metric = LogitDifference::new(ioi.indirect_objects, ioi.subjects);
    let patching = Patching::<A::InnerBackend>::noising(ioi.prompts, ioi.others);

    // 2. A score for each edge, by each method.
    let run = args.backend.run_options();
    let options = EdgeOptions::default()
        .with_steps(args.steps)
        .with_run(run.clone());
    let tracked = &loaded.model;
    let mut methods = vec![
        timed("EAP", || eap(tracked, &patching, &metric, &options))?,
        timed("EAP-IG", || {
            eap_ig_inputs(tracked, &patching, &metric, &options)
        })?,
    ];
    let patched = match (args.no_exact, args.exact_edges) {
        (true, _) => Patched::None,
        (false, None) => Patched::All,
        (false, Some(count)) => Patched::Some(candidates(&methods[1].scores, count)),
    };
    let exact = match &patched {
        Patched::None => None,
        Patched::All => Some(timed(EXACT, || {
            patch_all_edges(&plain, &patching, &metric, &options)
        })?),
        Patched::Some(edges) => Some(timed(EXACT, || {
            let exact = patch_edges(&plain, &patching, edges, &metric, &options)?;
            with_exact(&methods[1].scores, edges, &exact)
        })?),
    };
    methods.extend(exact);
    print_heads(&methods)?;
    print_agreement(&methods, &patched)?;
    print_misses(&methods, &patched)?;

    // 3. Circuits of ten sizes, in both rankings.
    let rankings = [EdgeRanking::Signed, EdgeRanking::Absolute];
    let options = CurveOptions::default().with_run(run);
    let mut curves: Vec<(&str, Vec<FaithfulnessCurve>)> = Vec::new();
    for method in &methods {
        let found = faithfulness_curves(
            &plain,
            &patching,
            &method.scores,
            &rankings,
            &metric,
            &options,
        )?;
        curves.push((patched.name(method), found));
    }
    let named = curves.iter().flat_map(|(method, curves)| {
        let own = curves.iter();
        own.map(move |curve| (format!("{method}, {}", ranking_name(curve.by)), curve))
    });
    let named: Vec<(String, &FaithfulnessCurve)> = named.collect();
    print_curves("circuit", &named, args.seed)?;

    // 4. The circuit.
    let best = methods.iter().find(|method| method.name == "EAP-IG");
    let best = best.context("EAP-IG is always computed")?;
    let choice = EdgeChoice::TopN {
        edges: args.edges,
        by: EdgeRanking::Absolute,
    };
    let circuit = Circuit::choose(&best.scores, choice)?.pruned();
    if let Some(file) = &args.graph {
        write_diagram(file, &circuit.diagram())?;
    }
    if let Some(file) = &args.plot {
        plot_curves(file, "faithfulness of circuits", &named)?;
    }
    if let Some(folder) = &args.output {
        CircuitFile::new(&circuit).save(folder.join("circuit.json"))?;
    }

    // 5. Check the claims that hold for every model: all edges are the model.
    check_curves(&named)
}

fn timed<E: std::error::Error + Send + Sync + 'static>(
    name: &'static str,
    score: impl FnOnce() -> Result<EdgeScores, E>,
) -> Result<Scored> {
    let started = Instant::now();
    let scores = score().context(name)?;
    Ok(Scored {
        name,
        scores,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The edges from heads to the logits, each with its head as text.
fn to_logits(graph: &EdgeGraph) -> Vec<(String, Edge)> {
    let Some(reader) = graph.reader(Reader::Logits) else {
        return Vec::new();
    };
    let writers = graph.writers().iter().enumerate();
    let heads = writers.filter_map(|(writer, node)| match node {
        Node::Head { layer, head } => Some((format!("{layer}.{head}"), Edge { writer, reader })),
        _ => None,
    });
    heads.collect()
}

/// The place of each edge by the magnitude of its score, from 1.
fn places(scores: &EdgeScores, edges: &[Edge]) -> Vec<usize> {
    let magnitude = |edge: &Edge| scores.of(*edge).map_or(0.0, f64::abs);
    let place = |edge: &Edge| {
        let above = edges.iter();
        1 + above
            .filter(|other| magnitude(other) > magnitude(edge))
            .count()
    };
    edges.iter().map(place).collect()
}

/// The heads whose edges to the logits matter most by the last method, with their places by all.
fn print_heads(methods: &[Scored]) -> Result<()> {
    let Some(last) = methods.last() else {
        return Ok(());
    };
    let heads = to_logits(last.scores.graph());
    let edges: Vec<Edge> = heads.iter().map(|(_, edge)| *edge).collect();
    let places: Vec<Vec<usize>> = methods
        .iter()
        .map(|method| places(&method.scores, &edges))
        .collect();
    let mut order: Vec<usize> = (0..heads.len()).collect();
    order.sort_by_key(|index| places.last().map(|places| places[*index]));
    let columns = ["head → logits".to_owned()].into_iter();
    let named = methods.iter();
    let columns = columns.chain(named.flat_map(|it| [it.name.to_owned(), "place".to_owned()]));
    let mut report = table(columns);
    for index in order.into_iter().take(HEADS) {
        let (head, edge) = &heads[index];
        let cells = methods.iter().zip(&places).flat_map(|(method, places)| {
            let score = method.scores.of(*edge).unwrap_or_default();
            [format!("{score:+.4}"), places[index].to_string()]
        });
        report.add_row([head.clone()].into_iter().chain(cells));
    }
    align_numbers(&mut report);
    out!(
        "Scores of the heads' edges to the logits, and their places among {} heads\n{report}",
        heads.len()
    )
}

/// The edges to patch: those of the largest magnitudes, and those from heads to the logits.
fn candidates(scores: &EdgeScores, count: usize) -> Vec<Edge> {
    let ranked = scores.ranked(EdgeRanking::Absolute).into_iter();
    let mut edges: Vec<Edge> = ranked.take(count).map(|(edge, _)| edge).collect();
    let others = to_logits(scores.graph()).into_iter().map(|(_, edge)| edge);
    let others: Vec<Edge> = others.filter(|edge| !edges.contains(edge)).collect();
    edges.extend(others);
    edges
}

/// Scores of which some are replaced by exact ones.
fn with_exact(
    scores: &EdgeScores,
    edges: &[Edge],
    exact: &[f64],
) -> Result<EdgeScores, CircuitError> {
    let graph = scores.graph();
    let mut values = scores.values().to_vec();
    for (edge, exact) in edges.iter().zip(exact) {
        if let Some(index) = graph.index(*edge) {
            values[index] = *exact;
        }
    }
    EdgeScores::new(graph.clone(), values, EdgeProvenance::GIVEN)
}

/// The scores of some edges.
fn of(scores: &EdgeScores, edges: &[Edge]) -> Vec<f64> {
    let values = edges.iter().filter_map(|edge| scores.of(*edge));
    values.collect()
}

/// How the scores of the patched edges agree with the exact ones; of all edges, if none were
/// patched, with those of the last method.
fn print_agreement(methods: &[Scored], patched: &Patched) -> Result<()> {
    let Some(last) = methods.last() else {
        return Ok(());
    };
    let graph = last.scores.graph();
    let edges = patched.compared(graph);
    let top = |scores: &EdgeScores| {
        let edges = graph.edge_count() / 100;
        let by = EdgeRanking::Absolute;
        Circuit::choose(scores, EdgeChoice::TopN { edges, by })
    };
    let effects = of(&last.scores, &edges);
    let shared = "Jaccard of the top 1 %";
    let columns = ["method", "seconds", "rank correlation", "of magnitudes"];
    let (is_partial, chosen) = match patched {
        Patched::Some(_) => (true, " that were patched one by one"),
        Patched::None | Patched::All => (false, ""),
    };
    let columns = columns.into_iter().chain((!is_partial).then_some(shared));
    let mut report = table(columns);
    let reference = top(&last.scores)?;
    for method in methods {
        let agreement = Agreement::of(&of(&method.scores, &edges), &effects);
        let number = |value: Option<f64>| value.map_or("—".to_owned(), |it| format!("{it:.2}"));
        let mut cells = vec![
            method.name.to_owned(),
            format!("{:.1}", method.seconds),
            number(agreement.spearman),
            number(agreement.spearman_of_magnitudes),
        ];
        if !is_partial {
            let shared = top(&method.scores)?.jaccard(&reference)?;
            cells.push(format!("{shared:.2}"));
        }
        report.add_row(cells);
    }
    align_numbers(&mut report);
    out!(
        "\nHow the scores of {} edges{chosen} agree with those by {}\n{report}",
        edges.len(),
        last.name
    )
}

/// The edges whose exact effects EAP-IG misses by most.
fn print_misses(methods: &[Scored], patched: &Patched) -> Result<()> {
    let [eap, integrated, exact] = methods else {
        return Ok(());
    };
    let graph = exact.scores.graph();
    let edges = patched.compared(graph);
    let effects = of(&exact.scores, &edges);
    let agreement = Agreement::of(&of(&integrated.scores, &edges), &effects);
    let mut report = table(["edge", eap.name, integrated.name, exact.name]);
    for miss in agreement.misses.iter().take(MISSES) {
        let edge = edges[miss.index];
        let score = |method: &Scored| format!("{:+.4}", method.scores.of(edge).unwrap_or_default());
        report.add_row([
            graph.name(edge),
            score(eap),
            score(integrated),
            score(exact),
        ]);
    }
    align_numbers(&mut report);
    out!("\nWhere EAP-IG misses most\n{report}")
}
