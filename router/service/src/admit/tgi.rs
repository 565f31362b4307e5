//! What a TGI request asks for, with TGI's own sentences about what it must not.
//!
//! Wider than TGI where TGI is needlessly narrow: temperature 0 is greedy, and `top_p` and `typical_p` may be 1.

use anaphora_core::request::Sampling;

use super::{AdmitError, Prompt, Spec, Stop, invalid};
use crate::{
    api::types::{
        OneOrMany,
        tgi::{GenerateParameters, GenerateRequest},
    },
    config::Limits,
};

/// A lowered TGI request.
#[derive(Debug)]
pub struct Lowered {
    /// What to generate.
    pub spec: Spec,
    /// Whether chance has a part in it: only then do answers name the seed.
    pub is_sampling: bool,
}

/// Checks `request` and says what to generate.
///
/// # Errors
/// The first value that cannot be.
pub fn lower(request: GenerateRequest, limits: &Limits) -> Result<Lowered, AdmitError> {
    // Without any parameters TGI samples; with some, only if one of them asks for it.
    let parameters = request
        .parameters
        .unwrap_or_else(|| GenerateParameters { do_sample: Some(true), ..GenerateParameters::default() });
    refuse_unsupported(&parameters)?;
    let num_sequences = best_of(&parameters, limits)?;
    let sampling = sampling(&parameters, limits)?;
    let is_sampling = sampling.temperature > 0.0;
    let stop = stop(parameters.stop, limits)?;
    let max_new_tokens = match parameters.max_new_tokens {
        Some(0) => {
            return Err(invalid("parameters.max_new_tokens", "`max_new_tokens` must be strictly positive"));
        }
        other => other.map(|count| u32::try_from(count).unwrap_or(u32::MAX)),
    };
    if request.inputs.is_empty() {
        return Err(invalid("inputs", "`inputs` cannot be empty"));
    }
    let spec = Spec {
        prompts: vec![Prompt::Text {
            text: request.inputs,
            add_special_tokens: request.add_special_tokens.unwrap_or(true),
        }],
        truncate: parameters.truncate.map(|count| u32::try_from(count).unwrap_or(u32::MAX)),
        num_sequences,
        sampling,
        seed: parameters.seed,
        max_new_tokens,
        stop: Stop { strings: stop, include_in_output: true, ..Stop::default() },
        skip_special_tokens: true,
        priority: parameters.priority,
        cache_salt: parameters.cache_salt.unwrap_or_default(),
    };
    Ok(Lowered { spec, is_sampling })
}

/// Checks what streams do not do.
///
/// # Errors
/// If the answer could not be streamed.
pub fn check_stream(parameters: &GenerateParameters) -> Result<(), AdmitError> {
    if parameters.best_of.is_some_and(|best_of| best_of != 1) {
        return Err(invalid("parameters.best_of", "`best_of` != 1 is not supported when streaming tokens"));
    }
    if parameters.decoder_input_details == Some(true) {
        let message = "`decoder_input_details` == true is not supported when streaming tokens";
        return Err(invalid("parameters.decoder_input_details", message));
    }
    Ok(())
}

fn refuse_unsupported(parameters: &GenerateParameters) -> Result<(), AdmitError> {
    let unsupported = |name: &str, message: String| {
        Err(AdmitError::Unsupported { param: format!("parameters.{name}"), message })
    };
    if parameters.grammar.as_ref().is_some_and(|grammar| !grammar.is_null()) {
        return unsupported("grammar", "grammar is not supported".to_owned());
    }
    if parameters.watermark == Some(true) {
        return unsupported("watermark", "`watermark` is not supported".to_owned());
    }
    match &parameters.adapter_id {
        Some(id) => {
            unsupported("adapter_id", format!("`adapter_id` is not supported: there is no adapter `{id}`"))
        }
        None => Ok(()),
    }
}

fn best_of(parameters: &GenerateParameters, limits: &Limits) -> Result<u32, AdmitError> {
    let refuse = |message: String| Err(invalid("parameters.best_of", message));
    let best_of = parameters.best_of.unwrap_or(1);
    if limits.max_best_of == 1 && best_of != 1 {
        return refuse("`best_of` != 1 is not allowed for this endpoint".to_owned());
    }
    let Some(count) = u32::try_from(best_of).ok().filter(|count| (1..=limits.max_best_of).contains(count))
    else {
        return refuse(format!("`best_of` must be > 0 and <= {}. Given: {best_of}", limits.max_best_of));
    };
    let asks_to_sample = parameters.do_sample == Some(true)
        || parameters.temperature.is_some_and(|temperature| temperature != 0.0)
        || parameters.top_k.is_some()
        || parameters.top_p.is_some()
        || parameters.typical_p.is_some();
    if count > 1 && !asks_to_sample {
        return refuse("you must use sampling when `best_of` is > 1".to_owned());
    }
    if count > 1 && parameters.seed.is_some() {
        return Err(invalid("parameters.seed", "`seed` must not be set when `best_of` > 1"));
    }
    Ok(count)
}

fn sampling(parameters: &GenerateParameters, limits: &Limits) -> Result<Sampling, AdmitError> {
    let refuse =
        |name: &str, rule: &str| Err(invalid(format!("parameters.{name}"), format!("`{name}` {rule}")));
    let temperature = parameters.temperature.unwrap_or(1.0);
    if !in_range(temperature, 0.0, f32::MAX.into()) {
        return refuse("temperature", "must be strictly positive");
    }
    let repetition_penalty = parameters.repetition_penalty.unwrap_or(1.0);
    if !in_range(repetition_penalty, f32::MIN_POSITIVE.into(), f32::MAX.into()) {
        return refuse("repetition_penalty", "must be strictly positive");
    }
    let frequency_penalty = parameters.frequency_penalty.unwrap_or(0.0);
    if !in_range(frequency_penalty, -2.0, 2.0) {
        return refuse("frequency_penalty", "must be >= -2.0 and <= 2.0");
    }
    let (top_p, typical_p) = (parameters.top_p.unwrap_or(1.0), parameters.typical_p.unwrap_or(1.0));
    for (name, value) in [("top_p", top_p), ("typical_p", typical_p)] {
        if !in_range(value, f32::MIN_POSITIVE.into(), 1.0) {
            return refuse(name, "must be > 0.0 and < 1.0");
        }
    }
    let top_k = match parameters.top_k {
        None => 0,
        Some(count) if count > 0 => u32::try_from(count).unwrap_or(u32::MAX),
        Some(_) => return refuse("top_k", "must be strictly positive"),
    };
    let top_n_tokens = parameters.top_n_tokens.unwrap_or(0);
    let Some(num_top_logprobs) =
        u32::try_from(top_n_tokens).ok().filter(|count| *count <= limits.max_top_n_tokens)
    else {
        let rule = format!("must be >= 0 and <= {}. Given: {top_n_tokens}", limits.max_top_n_tokens);
        return refuse("top_n_tokens", &rule);
    };
    let is_sampling = parameters.do_sample == Some(true)
        || temperature != 1.0
        || top_k > 0
        || parameters.top_p.is_some_and(|p| p < 1.0)
        || parameters.typical_p.is_some_and(|p| p < 1.0);
    Ok(Sampling {
        temperature: if is_sampling { temperature as f32 } else { 0.0 },
        top_k,
        top_p: top_p as f32,
        typical_p: typical_p as f32,
        repetition_penalty: repetition_penalty as f32,
        frequency_penalty: frequency_penalty as f32,
        num_top_logprobs,
        ..Sampling::default()
    })
}

/// The strings that end the text.
///
/// # Errors
/// If they are too many, too long, or empty, which would end every text at once.
pub(super) fn stop(stop: Option<OneOrMany>, limits: &Limits) -> Result<Vec<String>, AdmitError> {
    let OneOrMany(strings) = stop.unwrap_or_default();
    if strings.len() > limits.max_stop_sequences {
        let (limit, given) = (limits.max_stop_sequences, strings.len());
        return Err(invalid("stop", format!("`stop` supports up to {limit} stop sequences. Given: {given}")));
    }
    for (index, string) in strings.iter().enumerate() {
        let param = format!("stop[{index}]");
        if string.is_empty() {
            return Err(invalid(param, "a stop sequence cannot be empty"));
        }
        if string.len() > limits.max_stop_bytes {
            let (limit, given) = (limits.max_stop_bytes, string.len());
            return Err(invalid(param, format!("a stop sequence may have {limit} bytes. Given: {given}")));
        }
    }
    Ok(strings)
}

/// Whether `value` is a number within `low..=high`.
pub(super) fn in_range(value: f64, low: f64, high: f64) -> bool {
    (low..=high).contains(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(parameters: &str, expect: &str) {
        let body = format!(r#"{{"inputs":"a","parameters":{parameters}}}"#);
        let request: GenerateRequest = serde_json::from_str(&body).unwrap();
        let verdict = match lower(request, &Limits::default()) {
            Ok(lowered) => {
                let Sampling { temperature, top_k, top_p, .. } = lowered.spec.sampling;
                format!(
                    "temperature {temperature} top_k {top_k} top_p {top_p} sampling {}",
                    lowered.is_sampling
                )
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(verdict, expect, "{parameters}");
    }

    #[test]
    fn what_turns_sampling_on() {
        let greedy = "temperature 0 top_k 0 top_p 1 sampling false";
        let sampled = "temperature 1 top_k 0 top_p 1 sampling true";
        for (parameters, expect) in [
            ("null", sampled),
            ("{}", greedy),
            (r#"{"do_sample":false,"temperature":null,"top_p":null,"stop":null}"#, greedy),
            (r#"{"do_sample":true}"#, sampled),
            (r#"{"temperature":1.0}"#, greedy),
            (r#"{"temperature":0.5}"#, "temperature 0.5 top_k 0 top_p 1 sampling true"),
            (r#"{"temperature":0}"#, greedy),
            (r#"{"temperature":0,"do_sample":true}"#, greedy),
            (r#"{"top_p":1.0}"#, greedy),
            (r#"{"top_p":0.5}"#, "temperature 1 top_k 0 top_p 0.5 sampling true"),
            (r#"{"top_k":5}"#, "temperature 1 top_k 5 top_p 1 sampling true"),
            (r#"{"typical_p":0.5}"#, sampled),
        ] {
            check(parameters, expect);
        }
    }

    #[test]
    fn tgis_sentences() {
        let long = format!(r#"{{"stop":["{}"]}}"#, "a".repeat(257));
        for (parameters, expect) in [
            (r#"{"best_of":0}"#, "`best_of` must be > 0 and <= 8. Given: 0"),
            (r#"{"best_of":9}"#, "`best_of` must be > 0 and <= 8. Given: 9"),
            (r#"{"best_of":2}"#, "you must use sampling when `best_of` is > 1"),
            (r#"{"best_of":2,"do_sample":true,"seed":1}"#, "`seed` must not be set when `best_of` > 1"),
            (r#"{"temperature":-0.1}"#, "`temperature` must be strictly positive"),
            (r#"{"temperature":1e39}"#, "`temperature` must be strictly positive"),
            (r#"{"repetition_penalty":0}"#, "`repetition_penalty` must be strictly positive"),
            (r#"{"frequency_penalty":2.1}"#, "`frequency_penalty` must be >= -2.0 and <= 2.0"),
            (r#"{"top_p":0}"#, "`top_p` must be > 0.0 and < 1.0"),
            (r#"{"top_p":1.1}"#, "`top_p` must be > 0.0 and < 1.0"),
            (r#"{"typical_p":-1}"#, "`typical_p` must be > 0.0 and < 1.0"),
            (r#"{"top_k":0}"#, "`top_k` must be strictly positive"),
            (r#"{"top_k":-1}"#, "`top_k` must be strictly positive"),
            (r#"{"max_new_tokens":0}"#, "`max_new_tokens` must be strictly positive"),
            (r#"{"top_n_tokens":21}"#, "`top_n_tokens` must be >= 0 and <= 20. Given: 21"),
            (
                r#"{"stop":["1","2","3","4","5","6","7","8","9","10","11","12","13","14","15","16","17"]}"#,
                "`stop` supports up to 16 stop sequences. Given: 17",
            ),
            (r#"{"stop":"  "}"#, "temperature 0 top_k 0 top_p 1 sampling false"),
            (r#"{"stop":[""]}"#, "a stop sequence cannot be empty"),
            (&long, "a stop sequence may have 256 bytes. Given: 257"),
            (r#"{"grammar":{"type":"regex","value":"a"}}"#, "grammar is not supported"),
            (r#"{"watermark":true}"#, "`watermark` is not supported"),
            (r#"{"adapter_id":"x"}"#, "`adapter_id` is not supported: there is no adapter `x`"),
        ] {
            check(parameters, expect);
        }
        let empty: GenerateRequest = serde_json::from_str(r#"{"inputs":""}"#).unwrap();
        assert_eq!(lower(empty, &Limits::default()).unwrap_err().to_string(), "`inputs` cannot be empty");
    }
}
