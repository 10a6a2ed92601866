//! What the sublayers of one pass have in common.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Tensor, backend::Backend};

use crate::nn::{CausalMask, Rotary, RotaryConfig};
use crate::site::Site;
use crate::suffixes::{Queries, Suffixes};
use crate::tap::Tap;

/// Masks and rotary tables, kept by whoever runs passes so that the next pass over equally many positions
/// uses them again. Clones share them.
#[derive(Clone, Default)]
pub struct Tables {
    /// [`Kept`] for each backend. The type does not name the backend, so that one of these can serve a
    /// backend and the same with gradients.
    kept: Arc<Mutex<Vec<Box<dyn Any + Send>>>>,
}

/// The tables of one backend, for sequences of one length.
struct Kept<B: Backend> {
    pos: usize,
    device: B::Device,
    rotary: Vec<(RotaryConfig, DType, Rotary<B>)>,
    masks: Vec<(Option<usize>, CausalMask<B>)>,
}

impl Tables {
    /// No tables yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `f` with the tables for sequences of `pos` positions.
    fn with<B: Backend, T>(
        &self,
        pos: usize,
        device: &B::Device,
        f: impl FnOnce(&mut Kept<B>) -> T,
    ) -> T {
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = all.iter_mut();
        if let Some(kept) = known.find_map(|kept| kept.downcast_mut::<Kept<B>>()) {
            if (kept.pos, &kept.device) != (pos, device) {
                *kept = Kept::new(pos, device);
            }
            return f(kept);
        }
        let mut kept = Kept::new(pos, device);
        let value = f(&mut kept);
        all.push(Box::new(kept));
        value
    }
}

impl<B: Backend> Kept<B> {
    fn new(pos: usize, device: &B::Device) -> Self {
        Self {
            pos,
            device: device.clone(),
            rotary: Vec::new(),
            masks: Vec::new(),
        }
    }
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tables")
    }
}

/// One pass through a model: how long its rows are, which of their positions are computed, and the
/// tables that its layers share.
#[derive(Clone, Debug)]
pub struct Pass<B: Backend> {
    pos: usize,
    device: B::Device,
    tables: Tables,
    suffixes: Option<Arc<Suffixed<B>>>,
}

#[derive(Debug)]
struct Suffixed<B: Backend> {
    suffixes: Suffixes<B>,
    /// Tables of the suffixes' tokens, and of those with a query.
    rotary: Mutex<Vec<(RotaryConfig, DType, [Rotary<B>; 2])>>,
}

impl<B: Backend> Pass<B> {
    /// A pass over whole rows of `pos` positions.
    pub fn new(pos: usize, device: &B::Device, tables: &Tables) -> Self {
        Self {
            pos,
            device: device.clone(),
            tables: tables.clone(),
            suffixes: None,
        }
    }

    /// The same pass for suffixes of its rows, as `[1, token, d_model]`.
    pub fn with_suffixes(&self, suffixes: Suffixes<B>) -> Self {
        Self {
            suffixes: Some(Arc::new(Suffixed {
                suffixes,
                rotary: Mutex::default(),
            })),
            ..self.clone()
        }
    }

    /// Number of positions of the longest row.
    pub fn pos(&self) -> usize {
        self.pos
    }

    /// Where the pass is run.
    pub fn device(&self) -> &B::Device {
        &self.device
    }

    /// Which positions of which rows are computed, if not all.
    pub fn suffixes(&self) -> Option<&Suffixes<B>> {
        self.suffixes.as_ref().map(|suffixed| &suffixed.suffixes)
    }

    /// The tokens with a query, if not all have one.
    pub fn queries(&self) -> Option<&Queries<B>> {
        self.suffixes()?.queries.as_ref()
    }

    /// The tokens with a query, of all tokens.
    ///
    /// # Shapes
    /// - x: `[batch, token, d_model]`
    /// - output: `[batch, query, d_model]`
    pub fn querying(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match self.queries() {
            Some(queries) => x.select(1, queries.tokens.clone()),
            None => x,
        }
    }

    /// The rotary tables of the tokens with a query, and of all tokens.
    pub fn rotary(&self, config: &RotaryConfig, dtype: DType) -> [Rotary<B>; 2] {
        let Some(suffixed) = &self.suffixes else {
            let tables = self.rotary_of_rows(config, dtype);
            return [tables.clone(), tables];
        };
        let mut known = suffixed
            .rotary
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut same = known
            .iter()
            .filter(|(other, kind, _)| other == config && *kind == dtype);
        if let Some((_, _, tables)) = same.next() {
            return tables.clone();
        }
        let rows = self.rotary_of_rows(config, dtype);
        let all = rows.at(&suffixed.suffixes.positions);
        let tables = match &suffixed.suffixes.queries {
            Some(queries) => [rows.at(&queries.positions), all],
            None => [all.clone(), all],
        };
        known.push((config.clone(), dtype, tables.clone()));
        tables
    }

    fn rotary_of_rows(&self, config: &RotaryConfig, dtype: DType) -> Rotary<B> {
        self.tables.with(self.pos, &self.device, |kept| {
            let mut same = kept
                .rotary
                .iter()
                .filter(|(other, kind, _)| other == config && *kind == dtype);
            if let Some((_, _, tables)) = same.next() {
                return tables.clone();
            }
            let tables = config.tables(self.pos, &self.device).cast(dtype);
            kept.rotary.push((config.clone(), dtype, tables.clone()));
            tables
        })
    }

    /// Which keys queries must not see.
    ///
    /// - window: how many positions a query sees, itself included, if fewer than all
    pub fn mask(&self, window: Option<usize>) -> CausalMask<B> {
        let window = window.filter(|window| *window < self.pos);
        self.tables.with(self.pos, &self.device, |kept| {
            if let Some((_, mask)) = kept.masks.iter().find(|(other, _)| *other == window) {
                return mask.clone();
            }
            let mask = CausalMask::new(self.pos, window, &self.device);
            kept.masks.push((window, mask.clone()));
            mask
        })
    }
}

/// What a sublayer runs with: the pass, and the tap that sees its activations.
pub struct Cx<'a, B: Backend> {
    tap: &'a mut dyn Tap<B>,
    pass: &'a Pass<B>,
}

impl<'a, B: Backend> Cx<'a, B> {
    /// - tap: [`NoTap`](crate::NoTap) for none
    pub fn new(tap: &'a mut dyn Tap<B>, pass: &'a Pass<B>) -> Self {
        Self { tap, pass }
    }

    /// The pass.
    pub fn pass(&self) -> &'a Pass<B> {
        self.pass
    }

    /// The tap.
    pub fn tap(&mut self) -> &mut (dyn Tap<B> + 'a) {
        self.tap
    }

    /// Whether the activation at `site` is seen or changed.
    pub fn wants(&self, site: Site) -> bool {
        self.tap.wants(site)
    }

    /// Whether attention scores or weights of this layer are seen or changed.
    pub fn wants_attention_pattern(&self, layer: usize) -> bool {
        self.tap.wants_attention_pattern(layer)
    }

    /// Passes an activation without heads, `[batch, pos, width]`, to the tap, and gives the one to
    /// continue with.
    pub fn stream(&mut self, site: Site, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.tap.stream(site, x)
    }

    /// Passes an activation with heads, `[batch, head, pos, width]`, to the tap, and gives the one to
    /// continue with.
    pub fn heads(&mut self, site: Site, x: Tensor<B, 4>) -> Tensor<B, 4> {
        self.tap.heads(site, x)
    }
}

impl<B: Backend> fmt::Debug for Cx<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx")
            .field("pass", &self.pass)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::backend::flex::FlexDevice;

    use super::*;
    use crate::nn::RotaryScaling;

    #[test]
    fn tables_are_made_once_for_passes_of_one_length() {
        let config = RotaryConfig {
            d_head: 4,
            theta: 10.0,
            max_positions: 8,
            scaling: RotaryScaling::Default,
        };
        let tables = Tables::new();
        let made =
            || tables.with::<Flex, _>(3, &FlexDevice, |kept| (kept.rotary.len(), kept.masks.len()));
        for _ in 0..2 {
            let pass = Pass::<Flex>::new(3, &FlexDevice, &tables);
            pass.rotary(&config, DType::F32);
            pass.rotary(&config, DType::F32);
            pass.mask(None);
            pass.mask(Some(3)); // sees everything
            pass.mask(Some(2));
            assert_eq!(made(), (1, 2));
        }
        let other = RotaryConfig {
            theta: 100.0,
            ..config.clone()
        };
        Pass::<Flex>::new(3, &FlexDevice, &tables).rotary(&other, DType::F32);
        assert_eq!(made(), (2, 2));
        Pass::<Flex>::new(4, &FlexDevice, &tables).rotary(&config, DType::F32);
        assert_eq!(made(), (0, 0), "another length");
    }
}
