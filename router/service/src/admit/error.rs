//! Why a request cannot be admitted, in TGI's words and in OpenAI's.

use anaphora_text::TemplateError;

/// Why a request cannot be admitted. [`Display`](std::fmt::Display) gives TGI's sentences where TGI has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// A value is out of range, or does not go with another.
    #[error("{message}")]
    Invalid {
        /// The path of the field, as in `messages[0].role`.
        param: String,
        /// The whole sentence.
        message: String,
    },
    /// A value asks for something that this server does not do.
    #[error("{message}")]
    Unsupported {
        /// The path of the field.
        param: String,
        /// The whole sentence.
        message: String,
    },
    /// The prompt has too many tokens.
    #[error("`inputs` must have less than {limit} tokens. Given: {given}")]
    PromptTooLong {
        /// The most it may have.
        limit: u32,
        /// What it has.
        given: usize,
        /// What prompt and output may have together.
        context: u32,
    },
    /// The prompt is so long that it must have too many tokens; it was not tokenised.
    #[error(
        "`inputs` must have less than {limit} tokens. Given: {bytes} bytes, more than so few tokens can be"
    )]
    PromptTooManyBytes {
        /// The most tokens it may have.
        limit: u32,
        /// What it has.
        bytes: usize,
        /// What prompt and output may have together.
        context: u32,
    },
    /// Prompt and output together have too many tokens.
    #[error(
        "`inputs` tokens + `max_new_tokens` must be <= {context}. Given: {prompt} `inputs` tokens and {max_new_tokens} \
         `max_new_tokens`"
    )]
    TotalTooLong {
        /// What they may have together.
        context: u32,
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of the output.
        max_new_tokens: u32,
    },
    /// The model has no chat template.
    #[error(
        "the model has no chat template: use /v1/completions, or serve it with --tokenizer-config-path FILE"
    )]
    NoTemplate,
    /// The chat template refused the messages, or failed.
    #[error("{0}")]
    Template(String),
    /// The chat template needs a variable that it was not given.
    #[error("{0}")]
    TemplateVariable(String),
    /// The tokenizer failed.
    #[error("tokenizer error {0}")]
    Tokenizer(String),
}

// === impl AdmitError ===

/// A value out of range: `message` is the whole sentence.
pub(super) fn invalid(param: impl Into<String>, message: impl Into<String>) -> AdmitError {
    AdmitError::Invalid { param: param.into(), message: message.into() }
}

impl From<TemplateError> for AdmitError {
    fn from(error: TemplateError) -> Self {
        match error {
            TemplateError::Undefined(message) => Self::TemplateVariable(message),
            other => Self::Template(other.to_string()),
        }
    }
}

impl AdmitError {
    /// The field to blame.
    #[must_use]
    pub fn param(&self) -> Option<String> {
        match self {
            Self::Invalid { param, .. } | Self::Unsupported { param, .. } => Some(param.clone()),
            Self::NoTemplate | Self::Template(_) | Self::TemplateVariable(_) => Some("messages".to_owned()),
            _ => None,
        }
    }

    /// OpenAI's sentences, which clients search for the numbers in them.
    #[must_use]
    pub fn openai_message(&self) -> String {
        let too_long = |context: u32, what: String| {
            format!(
                "This model's maximum context length is {context} tokens. However, {what}. Please reduce the length of the \
                 messages or completion."
            )
        };
        match self {
            Self::PromptTooLong { limit, given, context } => too_long(
                *context,
                format!("your messages resulted in {given} tokens, of which there may be {limit}"),
            ),
            Self::PromptTooManyBytes { limit, bytes, context } => {
                let what =
                    format!("your messages have {bytes} bytes, which is more than {limit} tokens can be");
                too_long(*context, what)
            }
            Self::TotalTooLong { context, prompt, max_new_tokens } => {
                let total = *prompt as u64 + u64::from(*max_new_tokens);
                let parts = format!("{prompt} in the messages, {max_new_tokens} in the completion");
                too_long(*context, format!("you requested {total} tokens ({parts})"))
            }
            Self::Template(message) | Self::TemplateVariable(message) => {
                format!("the chat template refused the messages: {message}")
            }
            other => other.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openai_names_the_numbers() {
        let error = AdmitError::TotalTooLong { context: 12, prompt: 9, max_new_tokens: 4 };
        assert_eq!(
            error.openai_message(),
            "This model's maximum context length is 12 tokens. However, you requested 13 tokens (9 in the messages, 4 in the \
             completion). Please reduce the length of the messages or completion."
        );
    }
}
