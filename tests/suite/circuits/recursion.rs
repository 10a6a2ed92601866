//! What a circuit computes, as a plain recursion: every reader's input is summed anew, from the
//! outputs of all writers before it.

use burn::tensor::{Tensor, backend::Backend};
use burn_align::methods::circuits::{Circuit, Edge, Reader};
use burn_align_models::{
    AlignableTransformer, ByHead, Component, Cx, Decoder, ModelInput, NoTap, Pass, Readout, Site,
    Tables, Tap, TokenBatch,
};

/// What each writer writes, in the order of the graph, and for each layer what its attention adds
/// beside its heads.
struct Written<B: Backend> {
    outputs: Vec<Tensor<B, 3>>,
    biases: Vec<Tensor<B, 3>>,
}

struct Heads<B: Backend> {
    layer: usize,
    mixed: Option<Tensor<B, 4>>,
    output: Option<Tensor<B, 4>>,
}

impl<B: Backend> Tap<B> for Heads<B> {
    fn wants(&self, site: Site) -> bool {
        [Component::AttentionValueOutput, Component::AttentionOutput]
            .map(|component| Site::Block(self.layer, component))
            .contains(&site)
    }

    fn visit(&mut self, site: Site, activation: Tensor<B, 4>) -> Tensor<B, 4> {
        let kept = match site {
            Site::Block(_, Component::AttentionOutput) => &mut self.output,
            _ => &mut self.mixed,
        };
        *kept = Some(activation.clone());
        activation
    }
}

/// A plain run.
fn run<B: Backend>(model: &Decoder<B>, tokens: &TokenBatch, pass: &Pass<B>) -> Written<B> {
    let dims = model.dims();
    let mut x = model.embed(ModelInput::Tokens(tokens.to_tensor(pass.device())), pass);
    let mut written = Written {
        outputs: vec![x.clone()],
        biases: Vec::new(),
    };
    for layer in 0..dims.layers {
        let mut tap = Heads {
            layer,
            mixed: None,
            output: None,
        };
        let added = model.sublayer(layer, 0, x.clone(), &mut Cx::new(&mut tap, pass));
        let mixed = tap.mixed.expect("tapped");
        let mut rest = match tap.output {
            // Before the norm that follows.
            Some(output) => output.squeeze_dim(1),
            None => added.clone(),
        };
        for head in 0..dims.heads {
            let own = mixed.clone().narrow(1, head, 1).squeeze_dim(1);
            let output = model.head_output(layer, head, own);
            rest = rest - output.clone();
            written.outputs.push(output);
        }
        written.biases.push(rest);
        let after = x.clone() + added;
        let read = if dims.parallel { x } else { after.clone() };
        let mlp = model.sublayer(layer, 1, read, &mut Cx::new(&mut NoTap, pass));
        written.outputs.push(mlp.clone());
        x = after + mlp;
    }
    written
}

/// The logits of the circuit, `[batch, pos, vocab]`.
pub(super) fn recursion<B: Backend>(
    model: &Decoder<B>,
    [base, source]: [&TokenBatch; 2],
    circuit: &Circuit,
) -> Tensor<B, 3> {
    let graph = circuit.graph();
    let (dims, heads) = (model.dims().clone(), graph.heads());
    let pass = Pass::new(base.pos(), &model.device(), &Tables::new());
    let ablated = run(model, source, &pass);
    let embedding = run(model, base, &pass).outputs.swap_remove(0);
    let mut current = vec![embedding];

    // The input of a reader.
    let input = |current: &[Tensor<B, 3>], reader: Reader| {
        let reader = graph.reader(reader).expect("of the graph");
        let taken = |writer: usize| match circuit.contains(Edge { writer, reader }) {
            true => current[writer].clone(),
            false => ablated.outputs[writer].clone(),
        };
        let mut sum = taken(0);
        let before = graph.before(reader);
        for layer in 0..dims.layers {
            let first = 1 + layer * (heads + 1);
            if first >= before {
                break;
            }
            let own = (first..first + heads).map(taken);
            let attention = own.reduce(|a, b| a + b).expect("there are heads");
            let attention = attention + ablated.biases[layer].clone();
            sum = sum
                + match model.post_norm(layer, 0) {
                    Some(norm) => norm.forward(attention),
                    None => attention,
                };
            if first + heads < before {
                sum = sum + taken(first + heads);
            }
        }
        sum
    };
    for layer in 0..dims.layers {
        let mut written = Vec::new();
        for head in 0..heads {
            let streams = [
                Reader::Query { layer, head },
                Reader::Key { layer, head },
                Reader::Value { layer, head },
            ]
            .map(|reader| input(&current, reader));
            let mixed = model.head_mixed(layer, head, streams, &pass);
            written.push(model.head_output(layer, head, mixed));
        }
        if dims.parallel {
            // The MLP does not see the heads of its layer.
            let read = input(&current, Reader::Mlp { layer });
            let mlp = model.sublayer(layer, 1, read, &mut Cx::new(&mut NoTap, &pass));
            current.extend(written);
            current.push(mlp);
            continue;
        }
        current.extend(written);
        let read = input(&current, Reader::Mlp { layer });
        current.push(model.sublayer(layer, 1, read, &mut Cx::new(&mut NoTap, &pass)));
    }
    let last = input(&current, Reader::Logits);
    model.unembed(model.final_norm(last))
}
