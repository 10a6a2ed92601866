//! How a model family describes its Hugging Face checkpoints.

use burn::tensor::{DType, backend::Backend};
use serde_json::Value;

use super::{ConfigError, Fields};
use crate::model::AlignableTransformer;
use crate::nn::Weight;

/// How a model family is stored in the Hugging Face layout.
///
/// A family can be loaded and saved ([`FromPretrained`](super::FromPretrained),
/// [`SavePretrained`](super::SavePretrained)), as strictly as those of this crate.
pub trait Family<B: Backend>: AlignableTransformer<B> {
    /// The family's configuration.
    type Config: PartialEq;

    /// Reads `config.json`. Keys that it does not read are rejected if they may change what the
    /// model computes.
    ///
    /// # Errors
    /// If a value is missing, wrong or not supported.
    fn read_config(fields: &mut Fields) -> Result<Self::Config, ConfigError>;

    /// Writes `config.json`.
    fn write_config(config: &Self::Config) -> Value;

    /// The model of these sizes, with parameters of this dtype. Lazily initialized parameters, such
    /// as those of Burn's modules, cost nothing: the weights replace them.
    fn skeleton(config: &Self::Config, dtype: DType, device: &B::Device) -> Self;

    /// Unties the unembedding from the embedding, for a checkpoint that stores a different one;
    /// `false` if the family can't, and the checkpoint is rejected.
    fn untie_head(config: &mut Self::Config) -> bool {
        let _tied = config;
        false
    }

    /// How the weights are stored.
    fn weight_layout(config: &Self::Config) -> WeightLayout;

    /// The weights that may stay quantised, by the paths of their parameters in the module.
    /// Default: none; quantised weights are then dequantised.
    fn weights_mut(&mut self) -> Vec<(String, &mut Weight<B>)> {
        Vec::new()
    }
}

/// How a family's tensors are named and laid out in a checkpoint.
#[derive(Clone, Debug)]
pub struct WeightLayout {
    /// Prefix of the names of all parameters but the head's; a checkpoint may lack it.
    pub prefix: &'static str,
    /// Modules by their paths, and their names in a checkpoint without the prefix, with `*` for the
    /// index of a layer. Modules without an entry have their path as name.
    pub names: Vec<(&'static str, &'static str)>,
    /// Which matrices are stored transposed, `[d_output, d_input]`, as those of PyTorch's linear
    /// layers are, by the paths of their parameters. Not asked for other parameters than matrices.
    pub is_transposed: fn(&str) -> bool,
    /// Which tensors are not parameters: masks and tables that old versions stored. Names come
    /// without the prefix.
    pub is_ignored: fn(&str) -> bool,
    /// The path of the embedding that the head is tied to, so that a stored copy is not needed;
    /// `None` if the head is not tied.
    pub tied_head: Option<&'static str>,
}

impl WeightLayout {
    /// The path of the unembedding, whose name has no prefix.
    pub const HEAD: &'static str = "lm_head.weight";
    const HEAD_MODULE: &'static str = "lm_head";
    /// The bias of an unembedding that is tied, and so has no module.
    const TIED_HEAD_BIAS: &'static str = "head_bias";

    /// Whether a parameter is stored transposed.
    pub(super) fn transposes(&self, path: &str, dims: usize) -> bool {
        dims == 2 && (self.is_transposed)(path)
    }

    /// Whether a tensor without a parameter may be ignored.
    pub(super) fn may_ignore(&self, name: &str) -> bool {
        let is_head = self.path(name).as_deref() == Some(Self::HEAD);
        (self.is_ignored)(self.stripped(name)) || (self.tied_head.is_some() && is_head)
    }

    /// The name in the checkpoint of the parameter at `path` in the module.
    pub(super) fn name(&self, path: &str) -> String {
        let path = match path {
            Self::TIED_HEAD_BIAS => "lm_head.bias",
            path => path,
        };
        let (module, kind) = path.rsplit_once('.').unwrap_or((path, ""));
        let mut entries = self.names.iter();
        let stored = entries.find_map(|(own, stored)| translated(module, own, stored));
        let stored = stored.unwrap_or_else(|| module.to_owned());
        let prefix = match module {
            Self::HEAD_MODULE => "",
            _ => self.prefix,
        };
        match kind {
            "" => format!("{prefix}{stored}"),
            kind => format!("{prefix}{stored}.{kind}"),
        }
    }

    /// The path in the module of the parameter with this name in the checkpoint; `None` for a name
    /// that is the path of a module with another name.
    pub(super) fn path(&self, name: &str) -> Option<String> {
        let name = self.stripped(name);
        let (module, kind) = name.rsplit_once('.').unwrap_or((name, ""));
        let mut entries = self.names.iter();
        let own = entries.find_map(|(own, stored)| translated(module, stored, own));
        let is_renamed = || {
            let mut entries = self.names.iter();
            entries.any(|(own, _)| translated(module, own, own).is_some())
        };
        let is_tied = self.tied_head.is_some();
        match own {
            Some(own) if is_tied && (own.as_str(), kind) == (Self::HEAD_MODULE, "bias") => {
                Some(Self::TIED_HEAD_BIAS.to_owned())
            }
            Some(own) => Some(format!("{own}.{kind}")),
            None => (!is_renamed()).then(|| name.to_owned()),
        }
    }

    fn stripped<'a>(&self, name: &'a str) -> &'a str {
        name.strip_prefix(self.prefix).unwrap_or(name)
    }
}

/// A module path by another pattern, if it matches the first one; `*` stands for one part.
fn translated(path: &str, from: &str, to: &str) -> Option<String> {
    let mut index = None;
    let (mut parts, mut pattern) = (path.split('.'), from.split('.'));
    loop {
        match (parts.next(), pattern.next()) {
            (None, None) => break,
            (Some(part), Some("*")) => index = Some(part),
            (Some(part), Some(expected)) if part == expected => {}
            _ => return None,
        }
    }
    Some(match index {
        Some(index) => to.replacen('*', index, 1),
        None => to.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_are_inverse() {
        let layout = WeightLayout {
            prefix: "model.",
            names: vec![
                ("embedding", "embed"),
                ("layers.*.mlp.up", "blocks.*.fc"),
                ("lm_head", "embed_out"),
            ],
            is_transposed: |_| false,
            is_ignored: |name| name.ends_with(".mask"),
            tied_head: None,
        };
        for (path, name) in [
            ("embedding.weight", "model.embed.weight"),
            ("layers.12.mlp.up.bias", "model.blocks.12.fc.bias"),
            ("lm_head.weight", "embed_out.weight"),
            ("scale", "model.scale"),
            ("layers.1.norm.weight", "model.layers.1.norm.weight"),
        ] {
            assert_eq!(layout.name(path), name);
            assert_eq!(layout.path(name).as_deref(), Some(path));
        }
        // Without the prefix, and under a path that is not a name.
        let path = layout.path("blocks.0.fc.weight");
        assert_eq!(path.as_deref(), Some("layers.0.mlp.up.weight"));
        assert_eq!(layout.path("layers.0.mlp.up.weight"), None);
        assert!(layout.may_ignore("model.blocks.0.mask"));
        assert!(!layout.may_ignore("embed_out.weight"));
        let tied = WeightLayout {
            tied_head: Some("embedding.weight"),
            ..layout
        };
        assert!(tied.may_ignore("embed_out.weight"));
        assert_eq!(tied.path("embed_out.bias").as_deref(), Some("head_bias"));
        assert_eq!(tied.name("head_bias"), "embed_out.bias");
    }
}
