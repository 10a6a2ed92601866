//! A language model that counts what it computes, and whose blocks are one sublayer each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{
    AlignableTransformer, Component, Cx, Decoder, LayerLayout, Mixing, ModelInput, ModelLayout,
    NoTap, Pass, Site, Sublayer, Tap,
};

/// A model and the number of its stages that have been run. Clones share the count.
#[derive(Module, Debug)]
pub(crate) struct Counted<B: Backend> {
    model: Decoder<B>,
    silent: bool,
    #[module(skip)]
    layout: ModelLayout,
    #[module(skip)]
    stages: Arc<AtomicUsize>,
}

impl<B: Backend> Counted<B> {
    pub(crate) fn new(model: Decoder<B>) -> Self {
        let inner = model.layout();
        let there = |component: &Component| inner.site(Site::Block(0, *component)).is_some();
        let taps = Component::ALL.into_iter().filter(there);
        let block = Sublayer::other("block", Mixing::Causal { window: None })
            .tapping(taps.filter(|component| *component != Component::BlockOutput))
            .followed_by(Component::BlockOutput);
        let blocks = vec![LayerLayout::new([block]); inner.layers().len()];
        Self {
            layout: ModelLayout::new(inner.dims().clone(), inner.inputs(), blocks),
            model,
            silent: false,
            stages: Arc::default(),
        }
    }

    /// The same, with its layers as time steps.
    pub(crate) fn recurrent(mut self) -> Self {
        self.layout = self.layout.with_layers_as_steps();
        self
    }

    /// The same, with blocks that tap nothing.
    pub(crate) fn silent(mut self) -> Self {
        self.silent = true;
        self
    }

    /// Number of stages that have been run.
    pub(crate) fn stages(&self) -> usize {
        self.stages.load(Ordering::Relaxed)
    }

    fn count(&self) -> &Decoder<B> {
        self.stages.fetch_add(1, Ordering::Relaxed);
        &self.model
    }
}

impl<B: Backend> AlignableTransformer<B> for Counted<B> {
    fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    fn device(&self) -> B::Device {
        self.model.device()
    }

    fn embed(&self, input: ModelInput<B>, pass: &Pass<B>) -> Tensor<B, 3> {
        self.count().embed(input, pass)
    }

    fn sublayer(
        &self,
        layer: usize,
        _: usize,
        x: Tensor<B, 3>,
        cx: &mut Cx<'_, B>,
    ) -> Tensor<B, 3> {
        let pass = cx.pass();
        if self.silent {
            return self.count().layer(layer, x, &mut Cx::new(&mut NoTap, pass));
        }
        let mut tap = Inside(cx.tap());
        self.count().layer(layer, x, &mut Cx::new(&mut tap, pass))
    }

    fn final_norm(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.count().final_norm(x)
    }

    fn unembed(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.count().unembed(x)
    }
}

/// Leaves the block's output to the caller.
struct Inside<'a, B: Backend>(&'a mut dyn Tap<B>);

impl<B: Backend> Tap<B> for Inside<'_, B> {
    fn wants(&self, site: Site) -> bool {
        !matches!(site, Site::Block(_, Component::BlockOutput)) && self.0.wants(site)
    }

    fn visit(&mut self, site: Site, activation: Tensor<B, 4>) -> Tensor<B, 4> {
        self.0.visit(site, activation)
    }
}
