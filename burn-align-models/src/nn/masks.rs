//! Masks of causal attention, made on demand.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use burn::tensor::{Bool, DType, Int, Tensor, backend::Backend};

/// Which keys the queries of one pass must not attend to: those at later positions, and those
/// further back than a window reaches.
///
/// A mask has an entry for each pair of positions, and is not needed at all where attention has its
/// own kernel. So it is made at first use, and then shared by all layers and all clones. So are the
/// parts of it that layers ask for.
#[derive(Clone, Debug)]
pub struct CausalMask<B: Backend> {
    pos: usize,
    window: Option<usize>,
    device: B::Device,
    made: Arc<Made<B>>,
}

/// A part of a mask, with its numbers of queries and keys.
type Part<B> = ([usize; 2], Tensor<B, 4, Bool>);

/// What has been made of a mask.
#[derive(Debug)]
struct Made<B: Backend> {
    whole: OnceLock<Tensor<B, 4, Bool>>,
    /// Together they are no larger than the mask.
    parts: Mutex<Vec<Part<B>>>,
}

impl<B: Backend> CausalMask<B> {
    /// A mask for sequences of `pos` positions, of which a query sees the last `window`.
    pub fn new(pos: usize, window: Option<usize>, device: &B::Device) -> Self {
        Self {
            pos,
            window,
            device: device.clone(),
            made: Arc::new(Made {
                whole: OnceLock::new(),
                parts: Mutex::default(),
            }),
        }
    }

    /// `true` for keys that a query must not attend to, `[1, 1, q_pos, k_pos]`.
    pub fn hidden(&self) -> Tensor<B, 4, Bool> {
        let make = || {
            let [q_pos, k_pos] = self.positions();
            let future = k_pos.clone().greater(q_pos.clone());
            match self.window {
                None => future,
                Some(window) => future.bool_or(k_pos.lower_equal(q_pos - window as i64)),
            }
        };
        self.made.whole.get_or_init(make).clone()
    }

    /// The same for the first `k_pos` keys and the last `q_pos` of their positions, `[1, 1, q_pos,
    /// k_pos]`.
    pub fn hidden_from(&self, q_pos: usize, k_pos: usize) -> Tensor<B, 4, Bool> {
        let whole = self.hidden();
        if [q_pos, k_pos] == [self.pos; 2] {
            return whole;
        }
        let mut parts = self
            .made
            .parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some((_, part)) = parts.iter().find(|(sizes, _)| *sizes == [q_pos, k_pos]) {
            return part.clone();
        }
        let start = k_pos - q_pos;
        let part = whole.slice([0..1, 0..1, start..k_pos, 0..k_pos]);
        let made: usize = parts.iter().map(|([q_pos, k_pos], _)| q_pos * k_pos).sum();
        if made + q_pos * k_pos > self.pos * self.pos {
            parts.clear();
        }
        parts.push(([q_pos, k_pos], part.clone()));
        part
    }

    /// Positions of queries and of keys, at each pair of them.
    fn positions(&self) -> [Tensor<B, 4, Int>; 2] {
        let pos = self.pos;
        let line = Tensor::<B, 1, Int>::arange(0..pos as i64, &self.device);
        [[1, 1, pos, 1], [1, 1, 1, pos]]
            .map(|shape| line.clone().reshape(shape).expand([1, 1, pos, pos]))
    }

    /// Whether it has been made.
    #[cfg(test)]
    pub(crate) fn is_made(&self) -> bool {
        self.made.whole.get().is_some()
    }
}

/// Bytes of the masks that a pass over `pos` positions needs, whose layers have these windows: none
/// if attention in `dtype` has its own kernel.
pub fn mask_bytes<B: Backend>(
    pos: usize,
    windows: impl IntoIterator<Item = Option<usize>>,
    dtype: DType,
    device: &B::Device,
) -> u64 {
    #[cfg(feature = "flex")]
    if super::flex::causal_softmax(Tensor::<B, 4>::zeros([1; 4], (device, dtype)), 1.0, None)
        .is_ok()
    {
        return 0;
    }
    #[cfg(not(feature = "flex"))]
    let _without_kernels = dtype;
    let one = CausalMask::<B>::new(1, None, device).hidden();
    let windows = windows
        .into_iter()
        .map(|window| window.filter(|window| *window < pos));
    let masks = windows.collect::<std::collections::BTreeSet<_>>().len();
    (masks * pos * pos * one.dtype().size()) as u64
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::backend::flex::FlexDevice;
    use serde_json::json;

    use super::*;
    use crate::{AlignableTransformer, Cx, DecoderConfig, ModelInput, NoTap, Pass, Tables};

    type B = Flex;

    #[test]
    fn masks_are_made_when_they_are_asked_for() {
        let rows = |mask: Tensor<B, 4, Bool>| -> Vec<bool> { mask.into_data().iter().collect() };
        let expected = |hidden: fn(usize, usize) -> bool| -> Vec<bool> {
            let pairs = (0..4).flat_map(|q| (0..4).map(move |k| (q, k)));
            pairs.map(|(q, k)| hidden(q, k)).collect()
        };
        let windowed = CausalMask::<B>::new(4, Some(2), &FlexDevice);
        let clone = windowed.clone();
        assert!(!windowed.is_made());
        assert_eq!(
            rows(windowed.hidden()),
            expected(|q, k| k > q || k + 2 <= q)
        );
        assert!(clone.is_made(), "they are shared");
        let plain = CausalMask::<B>::new(4, None, &FlexDevice);
        assert_eq!(rows(plain.hidden()), expected(|q, k| k > q));
        // The last two of three positions, and the whole.
        for _ in 0..2 {
            assert_eq!(
                rows(plain.hidden_from(2, 3)),
                [false, false, true, false, false, false]
            );
            assert_eq!(plain.hidden_from(2, 3).dims(), [1, 1, 2, 3]);
            assert_eq!(rows(plain.hidden_from(4, 4)), rows(plain.hidden()));
        }
        // More parts than there is room for.
        for k_pos in 1..4 {
            let part = plain.hidden_from(k_pos, k_pos);
            assert_eq!(part.dims(), [1, 1, k_pos, k_pos]);
            assert!(!rows(part)[k_pos * k_pos - 1], "a position sees itself");
        }
    }

    #[test]
    fn flex_makes_none_in_f32_and_what_it_makes_is_counted() {
        let tiny = |window: Option<usize>| {
            let mut config = json!({
                "model_type": "mistral",
                "vocab_size": 20,
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": 16,
            });
            config["sliding_window"] = json!(window);
            DecoderConfig::from_json(&config).expect("a valid configuration")
        };
        for (window, dtype, [at_16, at_5]) in [
            (None, DType::F32, [0, 0]),
            (None, DType::BF16, [16 * 16, 5 * 5]),
            (Some(5), DType::F32, [0, 0]),
            (Some(5), DType::BF16, [16 * 16, 5 * 5]),
        ] {
            let model = tiny(window).init_seeded::<B>(0, dtype, &FlexDevice);
            let tables = Tables::new();
            let pass = Pass::new(16, &FlexDevice, &tables);
            let tokens = Tensor::<B, 2, Int>::ones([1, 16], &FlexDevice);
            let x = model.embed(ModelInput::Tokens(tokens), &pass);
            model
                .layer(0, x, &mut Cx::new(&mut NoTap, &pass))
                .into_data();
            assert_eq!(
                pass.mask(window).is_made(),
                at_16 > 0,
                "{window:?} {dtype:?}"
            );
            let bytes = |pos| mask_bytes::<B>(pos, [window], dtype, &FlexDevice);
            assert_eq!([bytes(16), bytes(5)], [at_16, at_5], "{window:?} {dtype:?}");
        }
    }
}
