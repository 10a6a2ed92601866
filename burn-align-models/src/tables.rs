//! What passes make once for a device: masks, rotary tables, and lists of indices.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Bool, DType, Int, Tensor, TensorData, backend::Backend};

use crate::nn::{CausalMask, Rotary, RotaryConfig};
use crate::uploads::Uploads;

/// Masks and rotary tables, kept by whoever runs passes so that the next pass uses them again.
/// Clones share them.
#[derive(Clone, Default)]
pub struct Tables {
    /// [`Kept`] for each backend. The type does not name the backend, so that one of these can
    /// serve a backend and the same with gradients.
    kept: Arc<Mutex<Vec<Box<dyn Any + Send>>>>,
    /// Whether lists of indices are kept as well.
    keep_indices: bool,
}

/// A window, if there is one, and its mask.
pub(crate) type WindowMask<B> = (Option<usize>, CausalMask<B>);

/// A rotary embedding, the dtype of its tables, and the tables.
pub(crate) type RotaryTables<T> = (RotaryConfig, DType, T);

/// The tables of one backend.
pub(crate) struct Kept<B: Backend> {
    device: B::Device,
    pub(crate) rotary: Vec<RotaryTables<Rotary<B>>>,
    /// For sequences of up to some length, by window.
    pub(crate) masks: (usize, Vec<WindowMask<B>>),
    indices: Uploads<usize, Tensor<B, 1, Int>>,
    choices: Uploads<bool, Tensor<B, 1, Bool>>,
}

impl Tables {
    /// Tables and masks that have become too short grow to a multiple of this number of positions.
    pub(crate) const GROWTH: usize = 128;

    /// No tables yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// No tables yet; lists of [indices](Self::indices) and [choices](Self::choices) will be kept
    /// too. Worth it where runs of the same kind follow one another, as in training: each then
    /// copies to the device only what has changed.
    pub fn keeping_indices() -> Self {
        Self {
            keep_indices: true,
            ..Self::default()
        }
    }

    /// Indices as a tensor, `[index]`: a copy on the device, or the one that was
    /// [kept](Self::keeping_indices) when the same were asked for before.
    pub fn indices<B: Backend>(
        &self,
        indices: Vec<usize>,
        device: &B::Device,
    ) -> Tensor<B, 1, Int> {
        let copy = |indices: &[usize]| {
            let values: Vec<i64> = indices.iter().map(|index| *index as i64).collect();
            Tensor::from_data(TensorData::new(values, [indices.len()]), device)
        };
        match self.keep_indices {
            true => self.with::<B, _>(device, |kept| kept.indices.get(indices, copy)),
            false => copy(&indices),
        }
    }

    /// What is chosen, `[choice]`, kept as [`indices`](Self::indices) are.
    pub fn choices<B: Backend>(&self, chosen: Vec<bool>, device: &B::Device) -> Tensor<B, 1, Bool> {
        let copy = |chosen: &[bool]| {
            Tensor::from_data(TensorData::new(chosen.to_vec(), [chosen.len()]), device)
        };
        match self.keep_indices {
            true => self.with::<B, _>(device, |kept| kept.choices.get(chosen, copy)),
            false => copy(&chosen),
        }
    }

    /// Calls `f` with the tables of a backend and device.
    pub(crate) fn with<B: Backend, T>(
        &self,
        device: &B::Device,
        f: impl FnOnce(&mut Kept<B>) -> T,
    ) -> T {
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = all.iter_mut();
        if let Some(kept) = known.find_map(|kept| kept.downcast_mut::<Kept<B>>()) {
            if kept.device != *device {
                *kept = Kept::new(device);
            }
            return f(kept);
        }
        let mut kept = Kept::new(device);
        let value = f(&mut kept);
        all.push(Box::new(kept));
        value
    }
}

impl<B: Backend> Kept<B> {
    fn new(device: &B::Device) -> Self {
        Self {
            device: device.clone(),
            rotary: Vec::new(),
            masks: (0, Vec::new()),
            indices: Uploads::new(),
            choices: Uploads::new(),
        }
    }

    /// Tables for sequences of `pos` positions; they may have more.
    pub(crate) fn rotary(&mut self, config: &RotaryConfig, dtype: DType, pos: usize) -> Rotary<B> {
        let same =
            |(other, kind, _): &&mut RotaryTables<Rotary<B>>| other == config && *kind == dtype;
        match self.rotary.iter_mut().find(same) {
            Some((_, _, tables)) if tables.pos() == pos => tables.clone(),
            Some((_, _, tables)) if config.depends_on_length() => {
                *tables = config.tables(pos, &self.device).cast(dtype);
                tables.clone()
            }
            Some((_, _, tables)) => {
                if tables.pos() < pos {
                    let longer = pos.next_multiple_of(Tables::GROWTH);
                    *tables = config.tables(longer, &self.device).cast(dtype);
                }
                tables.clone()
            }
            None => {
                let tables = config.tables(pos, &self.device).cast(dtype);
                self.rotary.push((config.clone(), dtype, tables.clone()));
                tables
            }
        }
    }

    /// A mask for sequences of `pos` positions; it may have more.
    pub(crate) fn mask(&mut self, pos: usize, window: Option<usize>) -> CausalMask<B> {
        if self.masks.0 < pos {
            let longer = match self.masks.0 {
                0 => pos,
                _ => pos.next_multiple_of(Tables::GROWTH),
            };
            self.masks = (longer, Vec::new());
        }
        if let Some((_, mask)) = self.masks.1.iter().find(|(other, _)| *other == window) {
            return mask.clone();
        }
        let mask = CausalMask::new(self.masks.0, window, &self.device);
        self.masks.1.push((window, mask.clone()));
        mask
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tables")
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::backend::flex::FlexDevice;

    use super::*;

    #[test]
    fn indices_are_those_asked_for_whether_kept_or_not() {
        for tables in [Tables::new(), Tables::keeping_indices()] {
            for _ in 0..2 {
                let indices = tables.indices::<Flex>(vec![3, 1, 3], &FlexDevice);
                let values: Vec<i64> = indices.into_data().iter().collect();
                assert_eq!(values, [3, 1, 3]);
                let chosen = tables.choices::<Flex>(vec![true, false], &FlexDevice);
                let values: Vec<bool> = chosen.into_data().iter().collect();
                assert_eq!(values, [true, false]);
            }
        }
    }
}
