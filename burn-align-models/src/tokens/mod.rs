//! From text to token ids and back.
//!
//! A [`Tokenizer`] is read from the files of a model folder ([`TokenizerFiles`]) and gives the same
//! ids as `AutoTokenizer` in Python's `transformers` for that folder, whichever file determines
//! them. It also finds words in prompts, displays tokens, and renders chats.

mod batch;
mod chat;
mod error;
mod files;
mod folder;
mod marks;
mod pieces;
mod tokenizer;
mod words;

pub use batch::TokenBatch;
pub use chat::{Chat, ChatMessage, ChatOptions, ChatTurn};
pub use error::TokensError;
pub use files::TokenizerFiles;
pub use tokenizer::{SpecialTokens, Tokenizer};
