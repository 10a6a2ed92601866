//! A language model that counts what it computes, and whose blocks are not split into halves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use burn_align_models::{
    AlignableTransformer, Decoder, InputKinds, ModelDims, ModelInput, NoTap, RunsSuffixes, Tap,
};

/// A model and the number of its stages that have been run. Clones share the count.
#[derive(Module, Debug)]
pub(crate) struct Counted<B: Backend> {
    model: Decoder<B>,
    recurrent: bool,
    silent: bool,
    #[module(skip)]
    stages: Arc<AtomicUsize>,
}

impl<B: Backend> Counted<B> {
    pub(crate) fn new(model: Decoder<B>) -> Self {
        Self {
            model,
            recurrent: false,
            silent: false,
            stages: Arc::default(),
        }
    }

    /// The same, with its layers as time steps.
    pub(crate) fn recurrent(mut self) -> Self {
        self.recurrent = true;
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
    type Pass = <Decoder<B> as AlignableTransformer<B>>::Pass;

    fn dims(&self) -> &ModelDims {
        self.model.dims()
    }

    fn input_kinds(&self) -> InputKinds {
        self.model.input_kinds()
    }

    fn layers_are_steps(&self) -> bool {
        self.recurrent
    }

    fn device(&self) -> B::Device {
        self.model.device()
    }

    fn begin(&self, pos: usize, device: &B::Device) -> Self::Pass {
        self.count().begin(pos, device)
    }

    fn suffixes(&self) -> Option<&dyn RunsSuffixes<B, Self::Pass>> {
        self.model.suffixes()
    }

    fn embed(&self, input: ModelInput<B>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        self.count().embed(input, tap)
    }

    fn block(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        pass: &Self::Pass,
        tap: &mut dyn Tap<B>,
    ) -> Tensor<B, 3> {
        let tap: &mut dyn Tap<B> = if self.silent { &mut NoTap } else { tap };
        self.count().block(layer, x, pass, tap)
    }

    fn final_norm(&self, x: Tensor<B, 3>, tap: &mut dyn Tap<B>) -> Tensor<B, 3> {
        self.count().final_norm(x, tap)
    }

    fn unembed(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.count().unembed(x)
    }
}
