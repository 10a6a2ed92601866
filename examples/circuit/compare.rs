//! Scores by three methods side by side, and the curves of circuits that they choose.

use std::time::Instant;

use anyhow::{Context, Result};
use burn::module::AutodiffModule;
use burn::tensor::backend::AutodiffBackend;
use burn_align::methods::attribution::{LogitDifference, Patching};
use burn_align::methods::circuits::{
    Circuit, CircuitFile, CurveOptions, Edge, EdgeChoice, EdgeGraph, EdgeOptions, EdgeRanking,
    EdgeScores, FaithfulnessCurve, Reader, eap, eap_ig_inputs, faithfulness_curves,
    patch_all_edges,
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

/// Scores of one method, and how long they took.
struct Scored {
    name: &'static str,
    scores: EdgeScores,
    seconds: f64,
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
    if !args.no_exact {
        methods.push(timed("exact", || {
            patch_all_edges(&plain, &patching, &metric, &options)
        })?);
    }
    print_heads(&methods)?;
    print_agreement(&methods)?;

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
        curves.push((method.name, found));
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

/// How the scores of all edges agree with those of the last method.
fn print_agreement(methods: &[Scored]) -> Result<()> {
    let Some(last) = methods.last() else {
        return Ok(());
    };
    let count = last.scores.graph().edge_count();
    let top = |scores: &EdgeScores| {
        let edges = count / 100;
        let by = EdgeRanking::Absolute;
        Circuit::choose(scores, EdgeChoice::TopN { edges, by })
    };
    let against = format!("top 1 % shared with {}", last.name);
    let mut report = table(["method", "seconds", &against]);
    let reference = top(&last.scores)?;
    for method in methods {
        let shared = top(&method.scores)?.jaccard(&reference)?;
        report.add_row([
            method.name.to_owned(),
            format!("{:.1}", method.seconds),
            format!("{shared:.2}"),
        ]);
    }
    align_numbers(&mut report);
    out!("\n{count} edges; Jaccard similarity of the 1 % with the largest magnitudes\n{report}")
}
