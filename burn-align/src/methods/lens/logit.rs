//! The logit lens: any residual stream as if it were the last one.

use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{AlignableTransformer, Component, Site, SiteWidth};

use super::LensError;
use crate::engine::{LogitPositions, Plan, RunOptions, WorldInput};
use crate::interventions::VanillaIntervention;

/// The residual stream before the first layer and after each layer, in order: the usual sites of a
/// lens.
pub fn stream_sites<B: Backend, M: AlignableTransformer<B>>(model: &M) -> Vec<Site> {
    let layers = 0..model.layout().layers().len();
    let outputs = layers.map(|layer| Site::Block(layer, Component::BlockOutput));
    [Site::Embedding].into_iter().chain(outputs).collect()
}

/// The logit lens (nostalgebraist 2020): `W_U · norm_f(h)` for the residual stream `h` at each of
/// these sites, in one pass. At the last site it gives the model's own logits, bit by bit.
///
/// The sites are usually [`stream_sites`]. Any activation as wide as the stream can be read, such
/// as what a sublayer adds to it; [`Site::FinalNorm`] is unembedded without another norm.
///
/// - input: [`TokenBatch`](burn_align_models::TokenBatch), or vectors, `[batch, pos, feature]`
/// - read: what to keep of the logits at a site, `[batch, unit, vocab]`, with a unit for each of
///   the positions. The logits of one site at a time are in memory.
///
/// # When it misleads
/// See the [module](super): early layers may use other directions than the last one.
///
/// # Errors
/// If a site, the positions or the input do not fit the model, or a site is not as wide as the
/// stream.
///
/// ```
/// use burn_align::engine::{LogitPositions, RunOptions};
/// use burn_align::methods::lens::{logit_lens, stream_sites};
/// use burn_align::models::{Decoder, FromPretrained, LoadOptions};
///
/// type B = burn::backend::Flex;
///
/// let device = Default::default();
/// let loaded =
///     Decoder::<B>::from_pretrained("bundled:capitals", &LoadOptions::default(), &device)?;
/// let tokenizer = loaded.tokenizer()?;
/// let tokens = tokenizer.encode_batch(["The capital of Spain is"])?;
/// let sites = stream_sites(&loaded.model);
/// let last = LogitPositions::Last;
/// let options = RunOptions::default();
/// let next = logit_lens(&loaded.model, tokens, &sites, &last, &options, |_site, logits| {
///     tokenizer.top_tokens(logits, 1).remove(0).remove(0)
/// })?;
/// assert_eq!(next.last().expect("a site").text, "Madrid");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn logit_lens<B: Backend, M: AlignableTransformer<B>, R>(
    model: &M,
    input: impl Into<WorldInput<B>>,
    sites: &[Site],
    positions: &LogitPositions,
    options: &RunOptions,
    mut read: impl FnMut(Site, Tensor<B, 3>) -> R,
) -> Result<Vec<R>, LensError> {
    let streams = streams(model, &input.into(), sites, positions, options)?;
    let read = sites.iter().zip(streams).map(|(site, stream)| {
        let logits = lens_logits(model, *site, stream);
        read(*site, logits)
    });
    Ok(read.collect())
}

/// The logits of a residual stream, as if it were the one that leaves the last layer.
///
/// # Shapes
/// - x: `[batch, unit, d_model]`; for [`Site::FinalNorm`], after the norm
/// - output: `[batch, unit, vocab]`
pub fn lens_logits<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    site: Site,
    x: Tensor<B, 3>,
) -> Tensor<B, 3> {
    let [batch, unit, d_model] = x.dims();
    // As the engine unembeds what it has gathered, so that the last site gives the same bits.
    let x = x.reshape([1, batch * unit, d_model]);
    let x = match site {
        Site::FinalNorm => x,
        Site::Embedding | Site::Block(..) => model.final_norm(x),
    };
    let logits = model.unembed(x);
    let [_one, _rows, vocab] = logits.dims();
    logits.reshape([batch, unit, vocab])
}

/// The activations at these sites, `[batch, unit, d_model]`.
pub(super) fn streams<B: Backend, M: AlignableTransformer<B>>(
    model: &M,
    input: &WorldInput<B>,
    sites: &[Site],
    positions: &LogitPositions,
    options: &RunOptions,
) -> Result<Vec<Tensor<B, 3>>, LensError> {
    if sites.is_empty() {
        return Err(LensError::Nothing { what: "site" });
    }
    let d_model = model.dims().d_model;
    for site in sites {
        // A site that the model does not have is found with the plan.
        let Some(dims) = model.layout().site(*site) else {
            continue;
        };
        if (dims.heads, dims.width) != (1, SiteWidth::Features(d_model)) {
            return Err(LensError::NotStream {
                site: *site,
                d_model,
            });
        }
    }
    let units = positions.units(&input.lengths());
    let mut plan = Plan::<B>::new();
    let input = plan.input(input.clone());
    let world = plan.world(input, []);
    let reads = sites.iter();
    let reads: Vec<_> = reads
        .map(|site| plan.read(world, *site, units.clone()))
        .collect();
    let results = plan.run_with(model, &[VanillaIntervention; 0], options)?;
    Ok(reads.into_iter().map(|read| results.get(read)).collect())
}
