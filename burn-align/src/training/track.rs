//! Parameters that autodiff tracks anew.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, backend::AutodiffBackend};

/// A module with its parameters tracked anew.
///
/// Each backward pass needs parameters of its own. Burn 0.21's autodiff forgets a parameter after
/// its first backward pass. A graph without a parameter that it knows can be swept while it is
/// built, when another thread finishes a backward pass; gradients are then silently wrong
/// (tracel-ai/burn#5573).
pub(crate) fn track<A: AutodiffBackend, N: Module<A>>(module: N) -> N {
    struct Track;
    impl<A: AutodiffBackend> ModuleMapper<A> for Track {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<A, D>>) -> Param<Tensor<A, D>> {
            param.map(|tensor| tensor.detach().require_grad())
        }
    }
    module.map(&mut Track)
}
