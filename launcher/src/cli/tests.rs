use super::args::Dtype;
use super::*;

fn line(args: &[&str]) -> Vec<OsString> {
    ["anaphora", "serve"].iter().chain(args).map(OsString::from).collect()
}

/// The message and exit code of a command line that is refused.
fn refused(args: &[&str]) -> String {
    let error = parse(line(args), &Environment::default()).expect_err("refused");
    assert_eq!(error.exit_code(), 2, "{args:?}");
    error.to_string()
}

#[test]
fn definition() {
    Cli::command().mut_subcommand("serve", |serve| serve.args(tgi::args())).debug_assert();
}

#[test]
fn defaults() {
    let args = serve_args(&["m"]);
    assert_eq!(args.model.name(), Some("m"));
    assert_eq!((args.http.hostname.as_str(), args.http.port), ("127.0.0.1", 3000));
    assert_eq!(args.http.graceful_termination_timeout, 90);
    assert_eq!(args.placement.device, DeviceChoice::Auto);
    assert_eq!((args.placement.num_shard, args.placement.sharded), (None, None));
    assert_eq!((args.model.dtype, args.model.load_format), (Dtype::Auto, LoadFormat::Auto));
    assert!(
        args.limits.max_total_tokens.is_none() && !args.limits.no_prefix_cache && !args.observe.json_output
    );
}

#[test]
fn flags_of_tgi() {
    let args = serve_args(&[
        "--model-id=m",
        "--sharded=true",
        "--num-shard=2",
        "--dtype=bfloat16",
        "--max-input-length=7",
        "--max-total-tokens=9",
        "-p=80",
        "--cuda-memory-fraction=0.5",
        "--json-output",
        "--cors-allow-origin=http://a",
        "--cors-allow-origin=http://b",
        "-g=3",
        "--shard-uds-path=/run/x",
        "--log-level=warn",
    ]);
    assert_eq!(args.model.name(), Some("m"));
    assert_eq!((args.placement.sharded, args.placement.num_shard), (Some(true), Some(2)));
    assert_eq!(args.model.dtype, Dtype::Bfloat16);
    assert_eq!((args.limits.max_input_tokens, args.limits.max_total_tokens), (Some(7), Some(9)));
    assert_eq!((args.http.port, args.http.graceful_termination_timeout), (80, 3));
    assert_eq!(args.limits.gpu_memory_utilization, Some(0.5));
    assert_eq!(args.http.cors_allow_origin, ["http://a", "http://b"]);
    assert_eq!(args.placement.shard_uds_path, Some(PathBuf::from("/run/x")));
    assert_eq!(args.observe.log_level, LogLevel::Warning);
    assert!(args.observe.json_output);
    assert_eq!(serve_args(&["--sharded", "--model-id", "m"]).placement.sharded, Some(true));
}

#[test]
fn the_positional_model_goes_first() {
    assert_eq!(serve_args(&["a", "--model-id", "b"]).model.name(), Some("a"));
}

#[test]
fn mistakes() {
    let check = |args: &[&str], expect: &str| {
        let message = refused(args);
        assert!(message.contains(expect), "{args:?}: {message}");
    };
    check(&[], "a MODEL is required");
    check(&[""], "a MODEL is required");
    check(&["m", "--port", "70000"], "--port");
    check(&["m", "--num-shard", "0"], "--num-shard");
    check(&["m", "--num-shard=-1"], "--num-shard");
    check(&["m", "--num-shard", "2", "--sharded", "false"], "contradicts");
    check(&["m", "--gpu-memory-utilization", "0"], "0 < x <= 1");
    check(&["m", "--gpu-memory-utilization", "1.5"], "0 < x <= 1");
    check(&["m", "--gpu-memory-utilization", "NaN"], "0 < x <= 1");
    check(&["m", "--max-input-tokens", "8", "--max-total-tokens", "8"], "--max-input-tokens (8)");
    check(&["m", "--dtype", "int4"], "possible values: auto, float32, bfloat16, float16");
    check(&["m", "--quantize", "awq"], "possible values: auto, none, gguf, int8");
    check(&["m", "--kv-cache-dtype", "fp8_e5m2"], "possible values");
    check(&["m", "--no-such-flag"], "--no-such-flag");
    check(&["m", "n"], "unexpected argument 'n'");
}

#[test]
fn what_we_do_not_have_is_refused() {
    let check = |args: &[&str], expect: &str| {
        let message = refused(&[&["m"], args].concat());
        assert!(message.contains(expect), "{args:?}: {message}");
    };
    check(&["--speculate", "3"], "--speculate");
    check(&["--lora-adapters", "a,b"], "--lora-adapters");
    check(&["--revision", "main"], "--revision");
    check(&["--trust-remote-code"], "--trust-remote-code: code from a model's directory is never run");
    check(&["--watermark-gamma", "0.5"], "--watermark-gamma");
    check(&["--rope-factor", "2.0"], "--rope-factor");
    check(&["--enable-prefill-logprobs"], "--enable-prefill-logprobs");
    serve_args(&["m", "--trust-remote-code=false", "--speculate=0"]);
}

#[test]
fn what_does_nothing_is_said() {
    let args = [
        "m",
        "--validation-workers=2",
        "--waiting-served-ratio=1.2",
        "--max-waiting-tokens=20",
        "--disable-custom-kernels",
        "--usage-stats=off",
        "--ngrok",
        "--ngrok-authtoken=x",
        "--ngrok-edge=x",
        "--master-addr=localhost",
        "--master-port=29500",
        "--huggingface-hub-cache=/data",
        "--weights-cache-override=/data",
        "--prometheus-port=9000",
        "--disable-grammar-support",
    ];
    let warnings = parse(line(&args), &Environment::default()).unwrap().warnings;
    assert_eq!(warnings.len(), args.len() - 1);
    for (warning, arg) in warnings.iter().zip(&args[1..]) {
        let flag = arg.split('=').next().unwrap();
        assert!(warning.starts_with(&format!("{flag} does nothing here: ")), "{warning}");
    }
    let graphs = |value| parse(line(&["m", value]), &Environment::default()).unwrap().warnings;
    let does_nothing = "--cuda-graphs 1,2 does nothing here: the shards choose the sizes themselves";
    assert_eq!(graphs("--cuda-graphs=1,2"), [does_nothing]);
    assert!(graphs("--cuda-graphs=0").is_empty());
    // A switch leaves the argument after it alone.
    assert_eq!(serve_args(&["--disable-custom-kernels", "m"]).model.name(), Some("m"));
}

#[test]
fn hostnames() {
    let check = |flag: &[&str], variable: Option<&str>, expect: &str| {
        let environment = Environment { hostname: variable.map(str::to_owned), ..Environment::default() };
        let cli = parse(line(&[&["m"], flag].concat()), &environment).unwrap().cli;
        let Command::Serve(args) = cli.command else { panic!("serve") };
        assert_eq!(args.http.hostname, expect, "{flag:?} {variable:?}");
    };
    check(&[], None, "127.0.0.1");
    check(&[], Some("0.0.0.0"), "0.0.0.0");
    check(&[], Some("::"), "::");
    check(&[], Some("a9d1f0c3b2e7"), "127.0.0.1"); // what Docker sets
    check(&["--hostname", "localhost"], Some("0.0.0.0"), "localhost");
}

#[test]
fn other_programs_get_their_arguments_untouched() {
    let parsed = parse(
        ["anaphora", "shard", "--help", "--rank=1", "x"].map(OsString::from).into(),
        &Environment::default(),
    );
    let Command::Shard(passed_on) = parsed.unwrap().cli.command else { panic!("shard") };
    assert_eq!(passed_on.args, ["--help", "--rank=1", "x"]);
}

#[test]
fn help_names_all_commands_and_exit_codes() {
    let help = parse(["anaphora", "--help"].map(OsString::from).into(), &Environment::default()).unwrap_err();
    assert_eq!(help.exit_code(), 0);
    let text = help.to_string();
    for word in ["serve", "router", "shard", "fetch", "Exit codes:", "  3  the model's files"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}
