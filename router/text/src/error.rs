//! What can go wrong between text and tokens.

use std::path::PathBuf;

/// Why text and tokens could not be turned into each other, or why a model's text files could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's own words.
        source: std::io::Error,
    },

    /// There is no tokenizer where one was looked for.
    #[error("{}: no tokenizer here: {found}. {hint}", path.display())]
    NoTokenizer {
        /// The path that was given.
        path: PathBuf,
        /// What is there instead.
        found: String,
        /// What to do about it.
        hint: String,
    },

    /// A file that describes the tokenizer says something that cannot be used.
    #[error("{}: {item}: expected {expected}, found {found}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// The key or thing in it.
        item: String,
        /// What would do.
        expected: String,
        /// What is there.
        found: String,
    },

    /// The head of a GGUF file is damaged.
    #[error(transparent)]
    Model(#[from] anaphora_model::ModelError),

    /// The chat template of the model does not compile.
    #[error("{}: the chat template does not compile: {source}", file.display())]
    Template {
        /// The file that it is in.
        file: PathBuf,
        /// What is wrong with it.
        source: TemplateError,
    },

    /// The tokenizer refused its input.
    #[error("the tokenizer failed: {0}")]
    Tokenizer(String),
}

/// Why a chat could not be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template is not valid Jinja.
    #[error("{0}")]
    Syntax(String),

    /// The template itself refused the chat, through `raise_exception`.
    #[error("{0}")]
    Raised(String),

    /// The template read a variable, or an attribute of one, that was not given.
    #[error("{0}")]
    Undefined(String),

    /// The template ran for longer than any sensible template does on such a chat.
    #[error("the chat template took more than {0} steps")]
    OutOfFuel(u64),

    /// The rendering is longer than any prompt may be.
    #[error("the chat template rendered more than {0} bytes")]
    TooLong(usize),

    /// The final message cannot be continued; the text says why.
    #[error("{0}")]
    CannotContinue(String),

    /// Anything else: a wrong type, an unknown filter or method.
    #[error("{0}")]
    Render(String),
}
