//! What the sublayers of one pass have in common.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Tensor, backend::Backend};

use crate::nn::{CausalMask, Rotary, RotaryConfig};
use crate::site::Site;
use crate::suffixes::{KeysValues, Queries, Suffixes};
use crate::tables::{RotaryTables, Tables};
use crate::tap::Tap;

/// One pass through a model: how long its rows are, which of their positions are computed, and the
/// tables that its layers share.
#[derive(Clone, Debug)]
pub struct Pass<B: Backend> {
    pos: usize,
    device: B::Device,
    tables: Tables,
    /// Tables of whole rows.
    rotary: Arc<Mutex<Vec<RotaryTables<Rotary<B>>>>>,
    suffixes: Option<Arc<Suffixed<B>>>,
    /// Where attention leaves its keys and values, if they are kept.
    kept: Option<Arc<Mutex<Vec<KeysValues<B>>>>>,
}

#[derive(Debug)]
struct Suffixed<B: Backend> {
    suffixes: Suffixes<B>,
    /// Tables of the suffixes' tokens, and of those with a query.
    rotary: Mutex<Vec<RotaryTables<[Rotary<B>; 2]>>>,
}

impl<B: Backend> Pass<B> {
    /// A pass over whole rows of `pos` positions.
    pub fn new(pos: usize, device: &B::Device, tables: &Tables) -> Self {
        Self {
            pos,
            device: device.clone(),
            tables: tables.clone(),
            rotary: Arc::default(),
            suffixes: None,
            kept: None,
        }
    }

    /// The same pass, in which attention keeps its keys and values.
    pub fn keeping_keys_values(mut self) -> Self {
        self.kept = Some(Arc::default());
        self
    }

    /// The keys and values kept so far, in the order of layers: those of all tokens, in the shapes
    /// in which attention got them.
    pub fn take_keys_values(&self) -> Vec<KeysValues<B>> {
        let kept = self.kept.as_ref().map(|kept| {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *kept)
        });
        kept.unwrap_or_default()
    }

    /// Keeps the keys and values of a layer, if they are kept.
    pub(crate) fn keep(&self, layer: usize, [keys, values]: [&Tensor<B, 4>; 2]) {
        if let Some(kept) = &self.kept {
            let (keys, values) = (keys.clone(), values.clone());
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push(KeysValues {
                layer,
                keys,
                values,
            });
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
        let of_rows = || {
            self.tables
                .with(&self.device, |kept| kept.rotary(config, dtype, self.pos))
        };
        let Some(suffixed) = &self.suffixes else {
            let first = || of_rows().first(self.pos);
            let tables = once(&self.rotary, config, dtype, first);
            return [tables.clone(), tables];
        };
        once(&suffixed.rotary, config, dtype, || {
            let rows = of_rows();
            let all = rows.at(&suffixed.suffixes.positions);
            match &suffixed.suffixes.queries {
                Some(queries) => [rows.at(&queries.positions), all],
                None => [all.clone(), all],
            }
        })
    }

    /// Which keys queries must not see, for the positions of this pass and perhaps more.
    ///
    /// - window: how many positions a query sees, itself included, if fewer than all
    pub fn mask(&self, window: Option<usize>) -> CausalMask<B> {
        let window = window.filter(|window| *window < self.pos);
        let pos = self.pos;
        self.tables
            .with(&self.device, |kept| kept.mask(pos, window))
    }
}

/// What has been made for a rotary embedding and a dtype, or is made now.
fn once<T: Clone>(
    known: &Mutex<Vec<RotaryTables<T>>>,
    config: &RotaryConfig,
    dtype: DType,
    make: impl FnOnce() -> T,
) -> T {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let same = |(other, kind, _): &&RotaryTables<T>| other == config && *kind == dtype;
    if let Some((_, _, tables)) = known.iter().find(same) {
        return tables.clone();
    }
    let tables = make();
    known.push((config.clone(), dtype, tables.clone()));
    tables
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

    /// Passes an activation with heads, `[batch, head, pos, width]`, to the tap, and gives the one
    /// to continue with.
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
    fn tables_are_made_once() {
        let config = RotaryConfig {
            d_head: 4,
            theta: 10.0,
            max_positions: 8,
            scaling: RotaryScaling::Default,
        };
        let tables = Tables::new();
        let made = || {
            tables.with::<Flex, _>(&FlexDevice, |kept| {
                let rotary = kept.rotary.iter().map(|(_, _, tables)| tables.pos());
                (rotary.collect::<Vec<_>>(), kept.masks.1.len())
            })
        };
        let pass = |pos| Pass::<Flex>::new(pos, &FlexDevice, &tables);
        for _ in 0..2 {
            pass(3).rotary(&config, DType::F32);
            pass(3).rotary(&config, DType::F32);
            pass(3).mask(None);
            pass(3).mask(Some(3)); // sees everything
            pass(3).mask(Some(2));
            assert_eq!(made(), (vec![3], 2));
        }
        let other = RotaryConfig {
            theta: 100.0,
            ..config.clone()
        };
        pass(3).rotary(&other, DType::F32);
        assert_eq!(made(), (vec![3, 3], 2));
        // Longer ones serve all shorter sequences.
        let [long, _] = pass(4).rotary(&config, DType::F32);
        let [short, _] = pass(2).rotary(&config, DType::F32);
        assert_eq!(made(), (vec![Tables::GROWTH, 3], 2));
        assert_eq!([long.pos(), short.pos()], [4, 2]);
        // So do longer masks.
        pass(4).mask(None);
        pass(2).mask(None);
        assert_eq!(made().1, 1);
        // Angles that depend on the length are never those of another one.
        let dynamic = RotaryConfig {
            scaling: RotaryScaling::Dynamic { factor: 2.0 },
            ..config
        };
        for pos in [12, 9, 12] {
            pass(pos).rotary(&dynamic, DType::F32);
            assert_eq!(made().0[2], pos);
        }
    }
}
