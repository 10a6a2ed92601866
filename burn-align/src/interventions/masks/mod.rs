//! How much of each feature's change is made, learned.
//!
//! DAS needs the size of the subspace in advance. A mask that is trained with the rotation finds
//! the size instead. While the temperature is high, the mask is soft and the swap mixes base and
//! source; results count only at the low temperature that training ends with.
//!
//! To add a mask: a file, its `mod` line, and a row of the table.

mod boundary;
mod sigmoid;
mod unmasked;

use burn::module::{Module, ModuleDisplay, ParamId};
use burn::tensor::{Tensor, backend::Backend};

/// Takes a share of each feature's change.
pub trait Mask<B: Backend>: Module<B> + ModuleDisplay {
    /// The share of each feature, `[1, feature]`; `None` if everything is changed.
    fn shares(&self) -> Option<Tensor<B, 2>>;

    /// The number of features; `None` if any.
    fn width(&self) -> Option<usize>;

    /// Its parameters, which have their own learning rate.
    fn parameters(&self) -> Vec<ParamId>;

    /// The temperature; 1 for a mask without one.
    fn temperature(&self) -> f64 {
        1.0
    }

    /// Sets the temperature.
    fn set_temperature(&mut self, temperature: f64) {
        let _without = temperature;
    }

    /// What training adds to the loss to swap less, `[1]`: a boundary, or the mean of a mask.
    fn penalty(&self) -> Option<Tensor<B, 1>> {
        None
    }
}

super::parts::table! {
    ($)
    /// The masks that come with this crate.
    BuiltinMask "mask" {
        unmasked::Unmasked => "none",
        sigmoid::SigmoidMask<B> => "sigmoid",
        boundary::Boundary<B> => "boundary",
    }
}

impl<B: Backend> Mask<B> for BuiltinMask<B> {
    fn shares(&self) -> Option<Tensor<B, 2>> {
        each!(self, it => it.shares())
    }

    fn width(&self) -> Option<usize> {
        each!(self, it => Mask::<B>::width(it))
    }

    fn parameters(&self) -> Vec<ParamId> {
        each!(self, it => Mask::<B>::parameters(it))
    }

    fn temperature(&self) -> f64 {
        each!(self, it => Mask::<B>::temperature(it))
    }

    fn set_temperature(&mut self, temperature: f64) {
        each!(self, it => Mask::<B>::set_temperature(it, temperature));
    }

    fn penalty(&self) -> Option<Tensor<B, 1>> {
        each!(self, it => it.penalty())
    }
}
