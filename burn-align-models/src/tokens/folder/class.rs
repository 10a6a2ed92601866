//! The rules that tokenizer classes of `transformers` apply on top of the files.
//!
//! From `tokenization_*_fast.py` of version 4.57.6, and `tokenization_utils_tokenizers.py` of
//! version 5 for the class that exists only there.

use super::super::TokensError;

/// The rules of a tokenizer class.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    /// Its name, without `Fast`.
    pub(super) name: &'static str,
    /// Its special tokens where no file names them.
    pub(super) bos: Option<&'static str>,
    pub(super) eos: Option<&'static str>,
    pub(super) unk: Option<&'static str>,
    pub(super) pad: Option<&'static str>,
    /// Whether it ignores the padding token of tokenizer.json.
    pub(super) decides_pad: bool,
    /// Whether special tokens that are given as plain text are matched before normalization.
    pub(super) exact_specials: bool,
    /// Whether special tokens are added once more, matched before normalization.
    pub(super) adds_all_specials: bool,
    pub(super) ends: Ends,
    pub(super) prefix_space: PrefixSpace,
    pub(super) source: Source,
}

/// What comes before and after each text.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ends {
    /// As in tokenizer.json.
    AsInFile,
    /// Beginning and end of sequence according to `add_bos_token` and `add_eos_token`, with these
    /// defaults, whatever tokenizer.json says. Does not apply to folders written by version 5,
    /// which puts everything into tokenizer.json.
    Rebuilt { bos: bool, eos: bool },
}

/// The effect of `add_prefix_space`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PrefixSpace {
    /// It determines the setting of a byte-level pre-tokenizer, and is false if absent.
    OutermostFalse,
    /// The same, and true also applies to pre-tokenizers inside a sequence.
    Everywhere,
    /// If present, the tokenizer is built from tokenizer.model rather than from tokenizer.json.
    FromSentencePiece,
    /// None: tokenizer.json determines the setting.
    Ignored,
}

/// What a tokenizer without a tokenizer.json is built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Nothing,
    Gpt2,
    Qwen2,
    Llama,
    CodeLlama,
    Gemma,
    T5,
}

const BASE: Class = Class {
    name: "PreTrainedTokenizer",
    bos: None,
    eos: None,
    unk: None,
    pad: None,
    decides_pad: false,
    exact_specials: false,
    adds_all_specials: false,
    ends: Ends::AsInFile,
    prefix_space: PrefixSpace::OutermostFalse,
    source: Source::Nothing,
};

const END: Option<&str> = Some("<|endoftext|>");

const GPT2: Class = Class {
    name: "GPT2Tokenizer",
    bos: END,
    eos: END,
    unk: END,
    source: Source::Gpt2,
    ..BASE
};

const LLAMA: Class = Class {
    name: "LlamaTokenizer",
    bos: Some("<s>"),
    eos: Some("</s>"),
    unk: Some("<unk>"),
    ends: Ends::Rebuilt {
        bos: true,
        eos: false,
    },
    prefix_space: PrefixSpace::FromSentencePiece,
    source: Source::Llama,
    ..BASE
};

const CLASSES: [Class; 11] = [
    BASE,
    // What transformers 5 writes for a tokenizer without a specific class.
    Class {
        name: "TokenizersBackend",
        adds_all_specials: true,
        prefix_space: PrefixSpace::Ignored,
        ..BASE
    },
    GPT2,
    Class {
        name: "CodeGenTokenizer",
        ..GPT2
    },
    Class {
        name: "GPTNeoXTokenizer",
        decides_pad: true,
        ends: Ends::Rebuilt {
            bos: false,
            eos: false,
        },
        source: Source::Nothing,
        ..GPT2
    },
    Class {
        name: "Qwen2Tokenizer",
        bos: None,
        pad: END,
        decides_pad: true,
        exact_specials: true,
        source: Source::Qwen2,
        ..GPT2
    },
    LLAMA,
    Class {
        name: "CodeLlamaTokenizer",
        prefix_space: PrefixSpace::OutermostFalse,
        source: Source::CodeLlama,
        ..LLAMA
    },
    Class {
        name: "GemmaTokenizer",
        bos: Some("<bos>"),
        eos: Some("<eos>"),
        pad: Some("<pad>"),
        decides_pad: true,
        prefix_space: PrefixSpace::OutermostFalse,
        source: Source::Gemma,
        ..LLAMA
    },
    Class {
        name: "CohereTokenizer",
        bos: Some("<BOS_TOKEN>"),
        eos: Some("<|END_OF_TURN_TOKEN|>"),
        unk: Some("<UNK>"),
        prefix_space: PrefixSpace::Everywhere,
        source: Source::Nothing,
        ..LLAMA
    },
    Class {
        name: "T5Tokenizer",
        eos: Some("</s>"),
        unk: Some("<unk>"),
        pad: Some("<pad>"),
        decides_pad: true,
        prefix_space: PrefixSpace::FromSentencePiece,
        source: Source::T5,
        ..BASE
    },
];

impl Class {
    /// The class with this name in tokenizer_config.json or config.json.
    pub(super) fn named(name: &str) -> Result<&'static Self, TokensError> {
        let short = name.strip_suffix("Fast").unwrap_or(name);
        let class = CLASSES.iter().find(|class| class.name == short);
        class.ok_or_else(|| TokensError::UnknownClass {
            class: name.to_owned(),
            expected: CLASSES.map(|class| class.name).join(", "),
        })
    }

    /// The default class for a model of this type, if no file names one.
    pub(super) fn of_model(model_type: &str) -> Option<&'static Self> {
        let name = match model_type {
            "gpt2" | "gpt_bigcode" | "gpt_neo" | "gptj" | "opt" | "starcoder2" | "olmo3"
            | "exaone4" | "granite" => "GPT2Tokenizer",
            "codegen" | "phi" => "CodeGenTokenizer",
            "gpt_neox" | "mamba" | "mpt" | "olmo" | "olmo2" | "olmoe" | "stablelm" => {
                "GPTNeoXTokenizer"
            }
            "llama" | "llama4" | "mistral" | "mixtral" | "ministral" | "phi3" | "phimoe"
            | "persimmon" | "deepseek_v2" | "deepseek_v3" | "arcee" | "ernie4_5" | "jamba"
            | "zamba2" => "LlamaTokenizer",
            "qwen2" | "qwen2_moe" | "qwen3" | "qwen3_moe" | "qwen3_next" => "Qwen2Tokenizer",
            "gemma" | "gemma2" | "gemma3" | "gemma3_text" | "gemma3n" => "GemmaTokenizer",
            "cohere" | "cohere2" => "CohereTokenizer",
            "t5" => "T5Tokenizer",
            "falcon" | "glm" | "glm4" | "gpt_oss" | "helium" | "nemotron" | "smollm3" => {
                "PreTrainedTokenizer"
            }
            _ => return None,
        };
        CLASSES.iter().find(|class| class.name == name)
    }

    /// The class of a tokenizer.json without other files.
    pub(super) fn base() -> &'static Self {
        &CLASSES[0]
    }
}
