//! TGI's flags that are not ours: accepted with a warning where they do nothing here, refused where ignoring them would
//! change what is served. Both are tables.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches};

/// What the help of `serve` says of these flags.
pub(super) const HELP: &str = "\
Each flag of Text Generation Inference that is listed above can also be given by TGI's environment variable of the same
name, e.g. MAX_TOTAL_TOKENS. TGI's other flags are accepted with a warning where they have no meaning here, and refused
where ignoring them would change what is served.";

/// A flag that is accepted and does nothing. Its environment variable is not looked at.
struct Ignored {
    flag: &'static str,
    takes_value: bool,
    why: &'static str,
}

/// A flag for something that we do not have.
struct Refused {
    flag: &'static str,
    variable: &'static str,
    takes_value: bool,
    why: &'static str,
}

const fn ignored(flag: &'static str, takes_value: bool, why: &'static str) -> Ignored {
    Ignored { flag, takes_value, why }
}

const fn refused(
    flag: &'static str,
    variable: &'static str,
    takes_value: bool,
    why: &'static str,
) -> Refused {
    Refused { flag, variable, takes_value, why }
}

const NO_NGROK: &str = "there is no tunnel; listen with --hostname, behind a proxy of yours";
const OWN_QUEUE: &str = "waiting requests join at every step, as far as the token budget allows";

const IGNORED: &[Ignored] = &[
    ignored("validation-workers", true, "the router sizes its tokenizer pool by the cores"),
    ignored("waiting-served-ratio", true, OWN_QUEUE),
    ignored("max-waiting-tokens", true, OWN_QUEUE),
    ignored("disable-custom-kernels", false, "kernels are chosen by what the device supports"),
    ignored("usage-stats", true, "anaphora sends no usage statistics anywhere"),
    ignored("ngrok", false, NO_NGROK),
    ignored("ngrok-authtoken", true, NO_NGROK),
    ignored("ngrok-edge", true, NO_NGROK),
    ignored("master-addr", true, "the ranks meet through a file in the run directory"),
    ignored("master-port", true, "the ranks meet through a file in the run directory"),
    ignored("huggingface-hub-cache", true, "models are not fetched from the hub"),
    ignored("weights-cache-override", true, "models are not fetched from the hub"),
    ignored("prometheus-port", true, "metrics are at /metrics of the main port"),
    ignored("disable-grammar-support", false, "there are no grammars to switch off yet"),
];

const NO_HUB: &str = "models are not fetched from the hub; give a directory that holds the revision";
const NO_WATERMARK: &str = "watermarking is not supported";
const NO_ROPE: &str = "the scaling is the model's own; set rope_scaling in its config.json";

const REFUSED: &[Refused] = &[
    refused("speculate", "SPECULATE", true, "speculative decoding is not supported yet"),
    refused("lora-adapters", "LORA_ADAPTERS", true, "LoRA adapters are not supported yet"),
    refused("revision", "REVISION", true, NO_HUB),
    refused("trust-remote-code", "TRUST_REMOTE_CODE", false, "code from a model's directory is never run"),
    refused("watermark-gamma", "WATERMARK_GAMMA", true, NO_WATERMARK),
    refused("watermark-delta", "WATERMARK_DELTA", true, NO_WATERMARK),
    refused("rope-scaling", "ROPE_SCALING", true, NO_ROPE),
    refused("rope-factor", "ROPE_FACTOR", true, NO_ROPE),
    refused(
        "enable-prefill-logprobs",
        "ENABLE_PREFILL_LOGPROBS",
        false,
        "log probabilities of prompt tokens are not supported yet",
    ),
];

/// Both tables as hidden clap arguments.
pub(super) fn args() -> Vec<Arg> {
    let ignored = IGNORED.iter().map(|entry| hidden(entry.flag, entry.takes_value));
    let refused = REFUSED.iter().map(|entry| hidden(entry.flag, entry.takes_value).env(entry.variable));
    ignored.chain(refused).collect()
}

fn hidden(flag: &'static str, takes_value: bool) -> Arg {
    // A switch takes an optional value too, since TGI's variables say `true` and `false`.
    let arg = Arg::new(flag).long(flag).hide(true).action(ArgAction::Set);
    if takes_value { arg } else { arg.num_args(0..=1).require_equals(true).default_missing_value("true") }
}

/// One line for each flag given that does nothing here.
pub(super) fn warnings(matches: &ArgMatches) -> Vec<String> {
    IGNORED
        .iter()
        .filter(|entry| matches.value_source(entry.flag).is_some())
        .map(|entry| format!("--{} does nothing here: {}", entry.flag, entry.why))
        .collect()
}

/// Why the command line cannot be honoured, if it names something that we do not have.
pub(super) fn refusal(matches: &ArgMatches) -> Option<String> {
    REFUSED.iter().find_map(|entry| {
        let value = matches.get_one::<String>(entry.flag)?;
        if matches!(value.as_str(), "" | "0" | "false") {
            return None;
        }
        let given = match matches.value_source(entry.flag)? {
            ValueSource::EnvVariable => format!("${} (= {value})", entry.variable),
            _ => format!("--{}", entry.flag),
        };
        Some(format!("{given}: {}", entry.why))
    })
}
