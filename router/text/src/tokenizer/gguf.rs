//! A tokenizer from the metadata of a GGUF file, as the same pipeline that a `tokenizer.json` would give.
//!
//! Two kinds exist for the models that we serve: `gpt2`, byte-level BPE with a merge table, and `llama`, SentencePiece
//! BPE, whose merges follow from the scores of its pieces.

use std::collections::HashMap;

use anaphora_model::Gguf;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::utils::Sequence as NormalizerSequence;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, NormalizerWrapper};

use super::pretokenize::PreTokenizer;
use super::tokenizer_error;
use crate::error::TextError;

type Pipeline = tokenizers::Tokenizer;

/// `tokenizer.ggml.token_type`, as far as it matters here.
mod token_type {
    pub(super) const UNKNOWN: i64 = 2;
    pub(super) const CONTROL: i64 = 3;
    pub(super) const USER_DEFINED: i64 = 4;
}

/// The mark that SentencePiece writes for a space.
const SPACE_MARK: &str = "▁";

/// What both kinds of vocabulary have.
struct Vocabulary<'a> {
    file: &'a Gguf,
    tokens: Vec<&'a str>,
    types: Vec<i64>,
}

pub(super) fn build(file: &Gguf) -> Result<Pipeline, TextError> {
    let vocabulary = Vocabulary::read(file)?;
    match file.metadata.string("tokenizer.ggml.model") {
        Some("gpt2") => byte_level(&vocabulary),
        Some("llama") => sentence_piece(&vocabulary),
        other => Err(vocabulary.invalid("tokenizer.ggml.model", "gpt2 or llama", other.unwrap_or("nothing"))),
    }
}

/// Byte-level BPE, as GPT-2 and Llama 3 have it.
fn byte_level(vocabulary: &Vocabulary<'_>) -> Result<Pipeline, TextError> {
    let key = "tokenizer.ggml.pre";
    let name = vocabulary.file.metadata.string(key).unwrap_or("default");
    let pre_tokenizer = PreTokenizer::from_name(name)
        .ok_or_else(|| vocabulary.invalid(key, format!("one of {}", PreTokenizer::names()), name))?;
    let ids = vocabulary.ids();
    let merges = read_merges(vocabulary, &ids)?;
    let model = BPE::builder()
        .vocab_and_merges(
            ids.into_iter().map(|(token, id)| (token.to_owned(), id)).collect::<Vocab>(),
            merges,
        )
        .ignore_merges(pre_tokenizer.ignores_merges)
        .build()
        .map_err(tokenizer_error)?;
    let mut pipeline = Pipeline::new(model);
    pipeline.with_normalizer(pre_tokenizer.normalizer()).map_err(tokenizer_error)?;
    pipeline.with_pre_tokenizer(Some(pre_tokenizer.build().map_err(tokenizer_error)?));
    pipeline.with_decoder(Some(ByteLevel::default()));
    finish(vocabulary, pipeline, pre_tokenizer.adds_bos, false)
}

fn read_merges(
    vocabulary: &Vocabulary<'_>,
    ids: &HashMap<&str, u32>,
) -> Result<Vec<(String, String)>, TextError> {
    let key = "tokenizer.ggml.merges";
    let lines = vocabulary.file.metadata.strings(key);
    let lines = lines.ok_or_else(|| vocabulary.invalid(key, "an array of strings", "none"))?;
    let mut merges = Vec::with_capacity(lines.len());
    for line in lines {
        let pair = line.split_once(' ').filter(|(left, right)| {
            ids.contains_key(left)
                && ids.contains_key(right)
                && ids.contains_key(format!("{left}{right}").as_str())
        });
        let Some((left, right)) = pair else {
            return Err(vocabulary.invalid(key, "pairs of tokens that make a token", format!("`{line}`")));
        };
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}

/// SentencePiece BPE, as Llama 2, the first Mistral and Gemma have it.
fn sentence_piece(vocabulary: &Vocabulary<'_>) -> Result<Pipeline, TextError> {
    let key = "tokenizer.ggml.scores";
    let scores = vocabulary.file.metadata.get(key).and_then(|value| value.as_array());
    let scores =
        scores.and_then(|values| values.iter().map(|value| value.as_f64()).collect::<Option<Vec<_>>>());
    let scores = scores.filter(|scores| scores.len() == vocabulary.tokens.len());
    let scores = scores.ok_or_else(|| vocabulary.invalid(key, "one number per token", "something else"))?;
    let ids = vocabulary.ids();
    let merges = merges_from_scores(vocabulary, &ids, &scores);
    let unknown = vocabulary.types.iter().position(|&kind| kind == token_type::UNKNOWN);
    let mut builder = BPE::builder()
        .vocab_and_merges(
            ids.into_iter().map(|(token, id)| (token.to_owned(), id)).collect::<Vocab>(),
            merges,
        )
        .byte_fallback(true)
        .fuse_unk(true);
    if let Some(id) = unknown {
        builder = builder.unk_token(vocabulary.tokens[id].to_owned());
    }
    let mut pipeline = Pipeline::new(builder.build().map_err(tokenizer_error)?);
    let adds_space = vocabulary.file.metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let mut decoders = vec![
        Replace::new(SPACE_MARK, " ").map_err(tokenizer_error)?.into(),
        ByteFallback::new().into(),
        Fuse::new().into(),
    ];
    if adds_space {
        normalizers.push(Prepend::new(SPACE_MARK.to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    normalizers.push(Replace::new(" ", SPACE_MARK).map_err(tokenizer_error)?.into());
    pipeline.with_normalizer(Some(NormalizerSequence::new(normalizers))).map_err(tokenizer_error)?;
    pipeline.with_decoder(Some(DecoderSequence::new(decoders)));
    finish(vocabulary, pipeline, true, !adds_space)
}

/// Every way to make a piece of two pieces, best score first: the order in which SentencePiece would merge. Ties go to
/// the longer left and then the longer right part, as in `transformers`' conversion.
fn merges_from_scores(
    vocabulary: &Vocabulary<'_>,
    ids: &HashMap<&str, u32>,
    scores: &[f64],
) -> Vec<(String, String)> {
    let mut merges = Vec::new();
    for (id, &piece) in vocabulary.tokens.iter().enumerate() {
        let mut splits = Vec::new();
        for (middle, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(middle);
            if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                splits.push((left_id, right_id, left, right));
            }
        }
        splits.sort_by_key(|&(left_id, right_id, ..)| (left_id, right_id));
        merges.extend(splits.into_iter().map(|(_, _, left, right)| (scores[id], left, right)));
    }
    merges.sort_by(|(score, left, right), (other_score, other_left, other_right)| {
        let lengths = (left.chars().count(), right.chars().count());
        let other_lengths = (other_left.chars().count(), other_right.chars().count());
        other_score.total_cmp(score).then(other_lengths.cmp(&lengths))
    });
    merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
}

/// Special tokens, and those that go around every text. `folds_spaces`: tokens of the user are looked for where spaces
/// are marks already, so that Gemma's runs of spaces are found in either spelling.
fn finish(
    vocabulary: &Vocabulary<'_>,
    mut pipeline: Pipeline,
    adds_bos: bool,
    folds_spaces: bool,
) -> Result<Pipeline, TextError> {
    let added = vocabulary.tokens.iter().zip(&vocabulary.types).filter_map(|(&token, &kind)| match kind {
        token_type::CONTROL | token_type::UNKNOWN => Some(AddedToken::from(token, true)),
        token_type::USER_DEFINED => Some(AddedToken::from(token, false).normalized(folds_spaces)),
        _ => None,
    });
    pipeline.add_tokens(added.collect::<Vec<_>>()).map_err(tokenizer_error)?;
    let mut pattern = vec!["$A".to_owned()];
    let mut around = Vec::new();
    let bos_key = "tokenizer.ggml.bos_token_id";
    let adds_bos = adds_bos && vocabulary.file.metadata.contains_key(bos_key);
    if vocabulary.flag("tokenizer.ggml.add_bos_token", adds_bos) {
        let bos = vocabulary.special(bos_key)?;
        pattern.insert(0, bos.0.clone());
        around.push(bos);
    }
    if vocabulary.flag("tokenizer.ggml.add_eos_token", false) {
        let eos = vocabulary.special("tokenizer.ggml.eos_token_id")?;
        pattern.push(eos.0.clone());
        around.push(eos);
    }
    if !around.is_empty() {
        let processor = TemplateProcessing::builder()
            .try_single(pattern)
            .map_err(tokenizer_error)?
            .special_tokens(around)
            .build()
            .map_err(tokenizer_error)?;
        pipeline.with_post_processor(Some(processor));
    }
    Ok(pipeline)
}

// === impl Vocabulary ===

impl<'a> Vocabulary<'a> {
    fn read(file: &'a Gguf) -> Result<Self, TextError> {
        let mut vocabulary = Self { file, tokens: Vec::new(), types: Vec::new() };
        let key = "tokenizer.ggml.tokens";
        let tokens = file.metadata.strings(key).filter(|tokens| !tokens.is_empty());
        vocabulary.tokens = tokens.ok_or_else(|| vocabulary.invalid(key, "an array of strings", "none"))?;
        let key = "tokenizer.ggml.token_type";
        vocabulary.types = match file.metadata.get(key) {
            None => vec![1; vocabulary.tokens.len()],
            Some(value) => value
                .as_array()
                .and_then(|values| {
                    values.iter().map(|kind| kind.as_u64()?.try_into().ok()).collect::<Option<_>>()
                })
                .filter(|types: &Vec<i64>| types.len() == vocabulary.tokens.len())
                .ok_or_else(|| vocabulary.invalid(key, "one integer per token", "something else"))?,
        };
        Ok(vocabulary)
    }

    fn ids(&self) -> HashMap<&'a str, u32> {
        self.tokens.iter().zip(0..).map(|(&token, id)| (token, id)).collect()
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        self.file.metadata.bool(key).unwrap_or(default)
    }

    fn special(&self, key: &str) -> Result<(String, u32), TextError> {
        let id = self.file.metadata.u32(key).ok_or_else(|| self.invalid(key, "a token id", "none"))?;
        match self.tokens.get(id as usize) {
            Some(&token) => Ok((token.to_owned(), id)),
            None => Err(self.invalid(key, format!("an id below {}", self.tokens.len()), id.to_string())),
        }
    }

    fn invalid(&self, key: &str, expected: impl Into<String>, found: impl Into<String>) -> TextError {
        TextError::Invalid {
            file: self.file.path.clone(),
            item: format!("`{key}`"),
            expected: expected.into(),
            found: found.into(),
        }
    }
}
