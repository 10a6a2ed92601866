//! Small trained models that ship with this crate, so that examples and tests need no network.

use std::fmt;
use std::str::FromStr;

use super::LoadError;

/// A small trained model that ships with this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bundled {
    /// A GPT-2 that knows the capitals, languages, continents, currencies and demonyms of
    /// countries: `bundled:capitals`. Made by the example `train_capitals`.
    Capitals,
    /// A two-layer GPT-2 that looks up who comes after whom in a queue of names, with induction
    /// heads: `bundled:induction`. Made by the example `train_induction`.
    Induction,
    /// A three-layer LLaMA that decides whether a price lies within a bracket:
    /// `bundled:price-tagging`. Made by the example `train_price_tagging`.
    PriceTagging,
}

impl Bundled {
    pub(super) fn text(self, file: &str) -> Option<&'static str> {
        match (self, file) {
            (Self::Capitals, "config.json") => {
                Some(include_str!("../../capitals-gpt2/config.json"))
            }
            (Self::Capitals, "tokenizer.json") => {
                Some(include_str!("../../capitals-gpt2/tokenizer.json"))
            }
            (Self::Capitals, "tokenizer_config.json") => {
                Some(include_str!("../../capitals-gpt2/tokenizer_config.json"))
            }
            (Self::Induction, "config.json") => {
                Some(include_str!("../../induction-gpt2/config.json"))
            }
            (Self::Induction, "tokenizer.json") => {
                Some(include_str!("../../induction-gpt2/tokenizer.json"))
            }
            (Self::Induction, "tokenizer_config.json") => {
                Some(include_str!("../../induction-gpt2/tokenizer_config.json"))
            }
            (Self::PriceTagging, "config.json") => {
                Some(include_str!("../../price-tagging-llama/config.json"))
            }
            (Self::PriceTagging, "tokenizer.json") => {
                Some(include_str!("../../price-tagging-llama/tokenizer.json"))
            }
            (Self::PriceTagging, "tokenizer_config.json") => Some(include_str!(
                "../../price-tagging-llama/tokenizer_config.json"
            )),
            _ => None,
        }
    }

    pub(super) fn weights(self) -> &'static [u8] {
        match self {
            Self::Capitals => include_bytes!("../../capitals-gpt2/model.safetensors"),
            Self::Induction => include_bytes!("../../induction-gpt2/model.safetensors"),
            Self::PriceTagging => include_bytes!("../../price-tagging-llama/model.safetensors"),
        }
    }
}

impl fmt::Display for Bundled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capitals => f.write_str("capitals"),
            Self::Induction => f.write_str("induction"),
            Self::PriceTagging => f.write_str("price-tagging"),
        }
    }
}

impl FromStr for Bundled {
    type Err = LoadError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "capitals" => Ok(Self::Capitals),
            "induction" => Ok(Self::Induction),
            "price-tagging" => Ok(Self::PriceTagging),
            name => Err(LoadError::UnknownBundled {
                name: name.to_owned(),
            }),
        }
    }
}
