//! Where in a model a dictionary reads and writes.

use burn_align_models::{Component, Site};

/// The activation that a dictionary reads or reconstructs, as its publisher names it and as a site
/// of this crate's models.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HookPoint {
    /// The publisher's name, usually of TransformerLens, such as `blocks.5.hook_resid_pre`.
    pub name: String,
    /// The site, if it is one of ours. If the activation has heads, a row holds all of them, head
    /// by head, unless there is a [`head`](Self::head).
    pub site: Option<Site>,
    /// The only head that is read.
    pub head: Option<usize>,
    /// Whether the activation is taken before the norm's gain (and bias) is applied, as
    /// TransformerLens' `hook_normalized` is. The site is after it: divide by the gain, or multiply
    /// the encoder's rows by it.
    pub before_gain: bool,
}

impl HookPoint {
    /// A site, under the name that TransformerLens has for it.
    pub fn at(site: Site) -> Self {
        Self {
            name: transformer_lens(site).unwrap_or_else(|| site.to_string()),
            site: Some(site),
            head: None,
            before_gain: false,
        }
    }

    /// A hook of TransformerLens, or a module of `transformers` with `.input` or `.output`.
    ///
    /// The name of the model decides whether what a layer adds to the residual stream is read after
    /// a second norm: that is so for Gemma 2 and 3 and OLMo 2. Names without a site of ours
    /// are kept without one; `hook_mlp_in` is the residual stream before the MLP's norm, as it is
    /// in TransformerLens.
    pub fn parse(name: &str, model: Option<&str>) -> Self {
        let post_norms = model.is_some_and(has_post_norms);
        let (site, before_gain) = match site(name, post_norms) {
            Some((site, before_gain)) => (Some(site), before_gain),
            None => (None, false),
        };
        Self {
            name: name.to_owned(),
            site,
            head: None,
            before_gain,
        }
    }

    /// The name in TransformerLens, if the site has one, and otherwise the publisher's.
    pub(super) fn transformer_lens(&self) -> String {
        let known = self.site.filter(|_| !self.before_gain);
        match known.and_then(transformer_lens) {
            Some(name) if !self.name.starts_with("blocks.") => name,
            _ => self.name.clone(),
        }
    }
}

fn has_post_norms(model: &str) -> bool {
    let model = model.to_lowercase();
    let families = [
        "gemma-2", "gemma-3", "gemma-v3", "gemma2", "gemma3", "olmo-2", "olmo2",
    ];
    families.iter().any(|family| model.contains(family))
}

/// The site, and whether the activation is taken before the gain.
fn site(name: &str, post_norms: bool) -> Option<(Site, bool)> {
    let (layer, rest) = layer_and_rest(name)?;
    let (attention, mlp) = match post_norms {
        true => (Component::AttentionPostNorm, Component::MlpPostNorm),
        false => (Component::AttentionOutput, Component::MlpOutput),
    };
    let component = match rest {
        "hook_resid_pre" | "input" => Component::BlockInput,
        "hook_resid_mid" | "hook_mlp_in" => Component::ResidualMid,
        "hook_resid_post" | "output" | "" => Component::BlockOutput,
        "hook_attn_out" => attention,
        "hook_mlp_out" => mlp,
        "attn.hook_z" | "self_attn.o_proj.input" => Component::AttentionValueOutput,
        "mlp.hook_in" | "mlp.input" | "pre_feedforward_layernorm.output" => Component::MlpInput,
        "mlp" | "mlp.output" | "mlp.hook_out" => Component::MlpOutput,
        "attn" | "self_attn" | "attention" | "self_attn.output" => Component::AttentionOutput,
        "post_feedforward_layernorm.output" => Component::MlpPostNorm,
        "ln1.hook_normalized" => Component::AttentionInput,
        "ln2.hook_normalized" => Component::MlpInput,
        _ => return None,
    };
    let before_gain = rest.ends_with("hook_normalized");
    Some((Site::Block(layer, component), before_gain))
}

/// The layer and what comes after it: `blocks.3.hook_z`, `model.layers.3.mlp`, `h.3`, `layers_3`.
fn layer_and_rest(name: &str) -> Option<(usize, &str)> {
    const BEFORE: [&str; 4] = ["blocks.", "layers.", "layers_", "h."];
    let starts = BEFORE.iter().filter_map(|before| {
        let at = name.find(before)?;
        let whole = at == 0 || name[..at].ends_with('.');
        whole.then_some(at + before.len())
    });
    let rest = &name[starts.min()?..];
    let digits = rest.find(|c: char| !c.is_ascii_digit());
    let (layer, rest) = rest.split_at(digits.unwrap_or(rest.len()));
    let rest = rest.strip_prefix('.').or(rest.is_empty().then_some(""))?;
    Some((layer.parse().ok()?, rest))
}

fn transformer_lens(site: Site) -> Option<String> {
    let Site::Block(layer, component) = site else {
        return None;
    };
    let hook = match component {
        Component::BlockInput => "hook_resid_pre",
        Component::ResidualMid => "hook_resid_mid",
        Component::BlockOutput => "hook_resid_post",
        Component::AttentionOutput | Component::AttentionPostNorm => "hook_attn_out",
        Component::MlpOutput | Component::MlpPostNorm => "hook_mlp_out",
        Component::AttentionValueOutput => "attn.hook_z",
        Component::MlpInput => "mlp.hook_in",
        _ => return None,
    };
    Some(format!("blocks.{layer}.{hook}"))
}

#[cfg(test)]
mod tests {
    use burn_align_models::{Component, Site};

    use super::HookPoint;

    #[test]
    fn hooks_are_sites() {
        let cases = [
            ("blocks.5.hook_resid_pre", Component::BlockInput),
            ("blocks.5.hook_resid_mid", Component::ResidualMid),
            ("blocks.5.hook_mlp_in", Component::ResidualMid),
            ("blocks.5.hook_resid_post", Component::BlockOutput),
            ("blocks.5.hook_mlp_out", Component::MlpOutput),
            ("blocks.5.hook_attn_out", Component::AttentionOutput),
            ("blocks.5.attn.hook_z", Component::AttentionValueOutput),
            ("blocks.5.mlp.hook_in", Component::MlpInput),
            ("model.layers.5.output", Component::BlockOutput),
            ("model.layers.5", Component::BlockOutput),
            ("layers.5.mlp", Component::MlpOutput),
            ("gpt_neox.layers.5", Component::BlockOutput),
            ("layers_5", Component::BlockOutput),
            ("transformer.h.5.mlp", Component::MlpOutput),
            (
                "model.layers.5.self_attn.o_proj.input",
                Component::AttentionValueOutput,
            ),
        ];
        for (name, component) in cases {
            let hook = HookPoint::parse(name, Some("gpt2"));
            assert_eq!(hook.site, Some(Site::Block(5, component)), "{name}");
            assert!(!hook.before_gain);
        }
    }

    #[test]
    fn a_norm_after_the_mlp_is_included() {
        for model in ["gemma-2-2b", "google/gemma-3-1b-pt", "allenai/OLMo-2-7B"] {
            let hook = HookPoint::parse("blocks.0.hook_mlp_out", Some(model));
            assert_eq!(hook.site, Some(Site::Block(0, Component::MlpPostNorm)));
        }
        let hook = HookPoint::parse("blocks.0.ln2.hook_normalized", Some("gemma-2-2b"));
        assert_eq!(hook.site, Some(Site::Block(0, Component::MlpInput)));
        assert!(hook.before_gain);
    }

    #[test]
    fn other_names_are_kept_without_a_site() {
        for name in [
            "hook_embed",
            "blocks.x.hook_resid_pre",
            "blocks.3.attn.hook_q",
            "",
        ] {
            let hook = HookPoint::parse(name, None);
            assert_eq!((hook.name.as_str(), hook.site), (name, None));
        }
    }

    #[test]
    fn a_site_has_its_name_in_transformer_lens() {
        let hook = HookPoint::at(Site::Block(2, Component::BlockOutput));
        assert_eq!(hook.name, "blocks.2.hook_resid_post");
        let hook = HookPoint::parse("model.layers.2.output", None);
        assert_eq!(hook.transformer_lens(), "blocks.2.hook_resid_post");
    }
}
