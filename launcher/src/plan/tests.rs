use super::*;
use crate::cli::serve_args;

const HEADS: Heads = Heads { num_attention_heads: 32, num_key_value_heads: 8 };

fn host(num_cores: u32, num_gpus: usize) -> Host {
    Host { num_cores, gpus: (0..num_gpus).map(|gpu| gpu.to_string()).collect() }
}

/// The devices and threads chosen for `args`, or the message.
fn place(args: &[&str], heads: Heads, host: &Host) -> String {
    let args = serve_args(&[&["m"], args].concat());
    match Placement::choose(&args, heads, host) {
        Ok(Placement { device: Device::Cpu { world_size }, num_threads }) => {
            format!("cpu x{world_size} t{num_threads}")
        }
        Ok(Placement { device: Device::Cuda { gpus }, num_threads }) => {
            format!("cuda {} t{num_threads}", gpus.join(","))
        }
        Err(error) => {
            assert_eq!(error.exit(), crate::error::Exit::Usage);
            error.to_string()
        }
    }
}

#[test]
fn placement() {
    let check =
        |args: &[&str], host: &Host, expect: &str| assert_eq!(place(args, HEADS, host), expect, "{args:?}");
    check(&[], &host(8, 0), "cpu x1 t0");
    check(&[], &host(8, 4), "cuda 0 t0");
    check(&["--device", "cpu"], &host(8, 4), "cpu x1 t0");
    check(&["--num-shard", "2"], &host(8, 0), "cpu x2 t4");
    check(&["--num-shard", "8"], &host(2, 0), "cpu x8 t1");
    check(&["--num-shard", "2", "--num-threads", "3"], &host(8, 0), "cpu x2 t1");
    check(&["--num-threads", "3"], &host(8, 0), "cpu x1 t3");
    check(&["--num-shard", "2"], &host(8, 4), "cuda 0,1 t4");
    check(&["--sharded"], &host(8, 8), "cuda 0,1,2,3,4,5,6,7 t1");
    check(&["--sharded"], &host(8, 7), "cuda 0,1,2,3 t2"); // the most that divide 8 KV heads
    check(&["--sharded", "false"], &host(8, 7), "cuda 0 t0");
}

#[test]
fn placements_refused() {
    let check = |args: &[&str], heads: Heads, host: &Host, expect: &str| {
        let message = place(args, heads, host);
        assert!(message.contains(expect), "{args:?}: {message}");
    };
    let smollm2 = Heads { num_attention_heads: 9, num_key_value_heads: 3 };
    check(
        &["--num-shard", "2"],
        smollm2,
        &host(2, 0),
        "--num-shard 2 does not divide this model: it has 9 attention heads and 3 KV heads",
    );
    check(&["--num-shard", "9"], smollm2, &host(2, 0), "Possible here: 1, 3");
    check(&["--num-shard", "8"], HEADS, &host(2, 4), "needs as many GPUs; 4 visible");
    check(&["--device", "cuda"], HEADS, &host(2, 0), "no NVIDIA GPU is visible");
    check(&["--sharded"], HEADS, &host(2, 1), "there are 1");
    check(&["--sharded"], HEADS, &host(2, 0), "there are 0");
}

/// Every command of a plan, one argument per line.
fn commands(args: &[&str], host: &Host, restart: u32, port: Option<u16>) -> String {
    let args = serve_args(args);
    let child = ["/usr/bin/python3", "-m", "anaphora._cli"].map(OsString::from);
    let placement = Placement::choose(&args, HEADS, host).unwrap();
    let plan = Plan {
        args: &args,
        child: &child,
        model_path: Path::new("/models/llama"),
        served_name: "llama",
        placement,
        run_directory: Path::new("/run/user/0/anaphora-1-abc"),
    };
    plan.check().unwrap();
    let ranks = 0..plan.placement.world_size();
    let commands = ranks.map(|rank| plan.shard_command(rank, restart)).chain([plan.router_command(port)]);
    commands.map(|command| show(&command)).collect::<Vec<_>>().join("\n\n")
}

fn show(command: &ChildCommand) -> String {
    let unset = command.variables.iter().filter(|(_, value)| value.is_none());
    let unset = unset.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ");
    let set = command.variables.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    let set = set.map(|(name, value)| format!("{name}={}", value.display()));
    let args = std::iter::once(&command.program).chain(&command.args).map(|arg| arg.display().to_string());
    std::iter::once(format!("unset: {unset}")).chain(set).chain(args).collect::<Vec<_>>().join("\n  ")
}

#[test]
fn minimal() {
    insta::assert_snapshot!(commands(&["/models/llama"], &host(8, 0), 0, None));
}

#[test]
fn two_gpus_after_a_restart() {
    let args = ["/models/llama", "--num-shard=2", "--port=0", "--dtype=bfloat16", "--api-key=secret"];
    insta::assert_snapshot!(commands(&args, &host(8, 4), 3, Some(41234)));
}

#[test]
fn every_flag() {
    let args = [
        "/models/llama",
        "--load-format=dummy",
        "--dtype=float16",
        "--kv-cache-dtype=fp8_e4m3fn",
        "--attention-backend=flash_attention",
        "--cuda-graphs=0",
        "--tokenizer=/tok",
        "--tokenizer-config-path=/tok/tokenizer_config.json",
        "--num-threads=6",
        "--max-concurrent-requests=1",
        "--max-best-of=2",
        "--max-stop-sequences=3",
        "--max-top-n-tokens=4",
        "--max-input-tokens=5",
        "--max-total-tokens=6",
        "--max-batch-prefill-tokens=7",
        "--max-batch-total-tokens=8",
        "--max-batch-size=9",
        "--max-client-batch-size=10",
        "--payload-limit=11",
        "--block-size=12",
        "--gpu-memory-utilization=0.13",
        "--no-prefix-cache",
        "--api-key-file=/etc/keys",
        "--hostname=0.0.0.0",
        "--port=14",
        "--cors-allow-origin=http://a",
        "--cors-allow-origin=http://b",
        "--graceful-termination-timeout=15",
        "--step-timeout=16",
        "--json-output",
        "--log-level=warning",
        "--otlp-endpoint=http://127.0.0.1:4317",
        "--otlp-service-name=name",
    ];
    insta::assert_snapshot!(commands(&args, &host(8, 0), 0, None));
}

#[test]
fn a_run_directory_too_deep_for_sockets_is_refused() {
    let args = serve_args(&["m"]);
    let child = [OsString::from("anaphora")];
    let check = |length: usize, fits: bool| {
        let directory = PathBuf::from(format!("/{}", "d".repeat(length - 1)));
        let placement = Placement { device: Device::Cpu { world_size: 1 }, num_threads: 0 };
        let plan = Plan {
            args: &args,
            child: &child,
            model_path: Path::new("m"),
            served_name: "m",
            placement,
            run_directory: &directory,
        };
        assert_eq!(plan.check().is_ok(), fits, "{length}");
    };
    let of_socket = "/shard-0.sock".len();
    check(107 - of_socket, true);
    check(108 - of_socket, false);
}
