//! Masks of causal attention, made on demand.

use std::sync::{Arc, OnceLock};

use burn::tensor::{Bool, DType, Int, Tensor, backend::Backend};

/// Which keys the queries of one pass must not attend to.
///
/// A mask has an entry for each pair of positions, and is not needed at all where attention has its
/// own kernel. So each is made at first use, and then shared by all layers and all clones.
#[derive(Clone, Debug)]
pub struct CausalMasks<B: Backend> {
    pos: usize,
    window: Option<usize>,
    device: B::Device,
    made: Arc<Made<B>>,
}

/// `[1, 1, q_pos, k_pos]`, each.
#[derive(Debug)]
struct Made<B: Backend> {
    future: OnceLock<Tensor<B, 4, Bool>>,
    outside_window: OnceLock<Tensor<B, 4, Bool>>,
}

impl<B: Backend> CausalMasks<B> {
    /// Masks for sequences of `pos` positions, of which windowed layers see the last `window`.
    pub fn new(pos: usize, window: Option<usize>, device: &B::Device) -> Self {
        Self {
            pos,
            window,
            device: device.clone(),
            made: Arc::new(Made {
                future: OnceLock::new(),
                outside_window: OnceLock::new(),
            }),
        }
    }

    /// Number of positions.
    pub fn pos(&self) -> usize {
        self.pos
    }

    /// `true` for keys that a query must not attend to: those at later positions. `[1, 1, q_pos,
    /// k_pos]`.
    pub fn future(&self) -> Tensor<B, 4, Bool> {
        let make = || {
            let [q_pos, k_pos] = self.positions();
            k_pos.greater(q_pos)
        };
        self.made.future.get_or_init(make).clone()
    }

    /// [`future`](Self::future), and positions further back than the window reaches; `None` where there
    /// is no window.
    pub fn outside_window(&self) -> Option<Tensor<B, 4, Bool>> {
        let window = self.window? as i64;
        let make = || {
            let [q_pos, k_pos] = self.positions();
            let too_early = k_pos.clone().lower_equal(q_pos.clone() - window);
            k_pos.greater(q_pos).bool_or(too_early)
        };
        Some(self.made.outside_window.get_or_init(make).clone())
    }

    /// Positions of queries and of keys, at each pair of them.
    fn positions(&self) -> [Tensor<B, 4, Int>; 2] {
        let pos = self.pos;
        let line = Tensor::<B, 1, Int>::arange(0..pos as i64, &self.device);
        [[1, 1, pos, 1], [1, 1, 1, pos]]
            .map(|shape| line.clone().reshape(shape).expand([1, 1, pos, pos]))
    }

    /// Whether any has been made.
    #[cfg(test)]
    pub(crate) fn any_made(&self) -> bool {
        self.made.future.get().is_some() || self.made.outside_window.get().is_some()
    }
}

/// Bytes of the masks that a pass over `pos` positions needs: none if attention in `dtype` has its
/// own kernel.
pub(crate) fn mask_bytes<B: Backend>(
    pos: usize,
    window: Option<usize>,
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
    let one = CausalMasks::<B>::new(1, None, device).future();
    // Layers with a window, and some without.
    let masks = if window.is_some_and(|window| window < pos) {
        2
    } else {
        1
    };
    (masks * pos * pos * one.dtype().size()) as u64
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;
    use burn::backend::flex::FlexDevice;
    use serde_json::json;

    use super::*;
    use crate::{AlignableTransformer, DecoderConfig, ModelInput};

    type B = Flex;

    #[test]
    fn masks_are_made_when_they_are_asked_for() {
        let masks = CausalMasks::<B>::new(4, Some(2), &FlexDevice);
        let clone = masks.clone();
        assert!(!masks.any_made());
        let rows = |mask: Tensor<B, 4, Bool>| -> Vec<bool> { mask.into_data().iter().collect() };
        let expected = |masked: fn(usize, usize) -> bool| -> Vec<bool> {
            let pairs = (0..4).flat_map(|q| (0..4).map(move |k| (q, k)));
            pairs.map(|(q, k)| masked(q, k)).collect()
        };
        assert_eq!(rows(masks.future()), expected(|q, k| k > q));
        let outside = masks.outside_window().expect("a window");
        assert_eq!(rows(outside), expected(|q, k| k > q || k + 2 <= q));
        assert!(clone.any_made(), "they are shared");
        assert!(
            CausalMasks::<B>::new(4, None, &FlexDevice)
                .outside_window()
                .is_none()
        );
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
        let tokens = || ModelInput::Tokens(Tensor::<B, 2, Int>::ones([1, 16], &FlexDevice));
        for (window, dtype, [at_16, at_5]) in [
            (None, DType::F32, [0, 0]),
            (None, DType::BF16, [16 * 16, 5 * 5]),
            (Some(5), DType::F32, [0, 0]),
            (Some(5), DType::BF16, [2 * 16 * 16, 5 * 5]),
        ] {
            let model = tiny(window).init_seeded::<B>(0, dtype, &FlexDevice);
            model.forward(tokens()).into_data();
            let pass = model.begin(16, &FlexDevice);
            assert_eq!(pass.masks.any_made(), at_16 > 0, "{window:?} {dtype:?}");
            assert_eq!(model.pass_bytes(16), at_16, "{window:?} {dtype:?}");
            assert_eq!(model.pass_bytes(5), at_5, "{window:?} {dtype:?}");
        }
    }
}
