//! The launcher with real processes: a scripted child plays router and shards.
#![expect(clippy::unwrap_used, reason = "a test that unwraps says where it failed")]

mod common;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::{Launcher, Stage, kill, runs, wait_until};
use rustix::process::Signal;

const BLOCK_END: &str = "/v1/completions -H";

/// Runs `anaphora serve` with `args` to its end: exit code, stdout, stderr.
fn run(stage: &Stage, args: &[&str]) -> (i32, String, String) {
    let mut launcher = Launcher::start(&mut stage.command(args));
    let code = launcher.wait();
    launcher.wait_output();
    (code, launcher.stdout(), launcher.stderr())
}

#[test]
fn it_starts_shows_its_phases_and_stops_in_order() {
    let stage = Stage::new();
    let mut launcher = stage.serve(&["--num-shard=2"]);
    launcher.wait_stdout(BLOCK_END);
    let stdout = launcher.stdout();
    for phase in
        ["resolve   ", "verify   ", "load   ", "warm up   ", "size the KV cache  91,024 tokens", "ready   "]
    {
        assert!(stdout.lines().any(|line| line.starts_with(phase)), "{phase}: {stdout}");
    }
    let block = stdout.lines().skip_while(|line| !line.starts_with("ready ")).skip(1).count();
    assert!(block <= 15, "{block} lines: {stdout}");
    launcher.wait_stderr("shard-0 | loading\n");
    launcher.wait_stderr("shard-1 | loading\n");
    assert_eq!(stage.run_directories().len(), 1);

    launcher.signal(Signal::TERM);
    assert_eq!(launcher.wait(), 0, "{}", launcher.stderr());
    let mut ends: Vec<_> = stage.happenings().into_iter().filter(|note| note.ends_with("term")).collect();
    assert_eq!(ends.remove(0), "router term");
    ends.sort();
    assert_eq!(ends, ["shard-0 term", "shard-1 term"]);
    stage.assert_clean();
}

#[test]
fn interrupt_stops_too() {
    let stage = Stage::new();
    let mut launcher = stage.serve(&[]);
    launcher.wait_stdout(BLOCK_END);
    launcher.signal(Signal::INT);
    assert_eq!(launcher.wait(), 0);
    stage.assert_clean();
}

#[test]
fn the_ranks_of_a_dead_shard_are_started_again_and_the_router_stays() {
    let stage = Stage::new();
    let mut launcher = stage.serve(&["--num-shard=2"]);
    launcher.wait_stdout(BLOCK_END);
    let survivor = stage.wait_start("shard-0", 1);
    kill(stage.wait_start("shard-1", 1), Signal::KILL);
    stage.wait_start("shard-0", 2);
    stage.wait_start("shard-1", 2);
    assert!(!runs(survivor));
    assert_eq!(stage.pids("router").len(), 1);
    launcher
        .wait_stderr("launcher | shard-1 died (killed by SIGKILL); starting all ranks of the replica again");
    launcher.stop();
    stage.assert_clean();
}

#[test]
fn a_dead_router_returns_to_its_port() {
    let router = r#"note "port $port"; [ "$port" = 0 ] && port=41999; ready; stay"#;
    let stage = Stage::new().script("router", router);
    let mut launcher = stage.serve(&[]);
    launcher.wait_stdout(BLOCK_END);
    kill(stage.wait_start("router", 1), Signal::KILL);
    launcher.wait_stderr("serving again at http://127.0.0.1:41999");
    assert!(stage.notes().contains(&"router port 41999".to_owned()));
    assert_eq!(stage.pids("shard-0").len(), 1);
    assert_eq!(launcher.stdout().matches("anaphora serves").count(), 1);
    launcher.stop();
}

#[test]
fn a_stalled_shard_is_killed_and_started_again() {
    let router =
        r#"ready; while [ ! -f "$STAGE/stall" ]; do sleep 0.02; done; event '"shard_stalled"'; stay"#;
    let stage = Stage::new().script("router", router);
    let mut launcher = stage.serve(&[]);
    launcher.wait_stdout("size the KV cache");
    let stalled = stage.wait_start("shard-0", 1);
    kill(stalled, Signal::STOP);
    std::fs::write(stage.path("stall"), "").unwrap();
    stage.wait_start("shard-0", 2);
    assert!(!runs(stalled));
    launcher.wait_stderr("launcher | the replica makes no progress");
    launcher.stop();
    stage.assert_clean();
}

#[test]
fn a_shard_that_keeps_dying_spends_the_budget() {
    let stage = Stage::new().script("shard", "echo 'no such kernel' >&2; exit 1");
    let mut launcher = stage.serve(&[]);
    assert_eq!(launcher.wait(), 5);
    assert_eq!(stage.pids("shard-0").len(), 5);
    assert_eq!(stage.pids("router").len(), 1);
    launcher.wait_stderr(
        "error: shard-0 died (exit code 1): 5 deaths within 5 minutes, giving up:\nno such kernel\n",
    );
    stage.assert_clean();
}

#[test]
fn a_child_that_refuses_to_run_ends_everything_with_its_code() {
    for (part, code) in [("shard", 2), ("shard", 3), ("router", 2), ("router", 4)] {
        let stage = Stage::new().script(part, &format!("echo 'a: bad thing' >&2; exit {code}"));
        let mut launcher = stage.serve(&[]);
        assert_eq!(launcher.wait(), code, "{part} {}", launcher.stderr());
        launcher.wait_stderr(&format!("refused to run (exit code {code}):\na: bad thing\n"));
        assert_eq!(
            stage.notes().iter().filter(|note| note.starts_with(part) && note.contains("start")).count(),
            1
        );
        stage.assert_clean();
    }
}

#[test]
fn what_can_be_refused_is_refused_before_anything_is_spawned() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("--port={}", taken.local_addr().unwrap().port());
    let check = |args: &[&str], code: i32, expect: &str| {
        let stage = Stage::new();
        let (found, stdout, stderr) = run(&stage, args);
        assert_eq!(found, code, "{args:?}: {stdout}{stderr}");
        assert!(stderr.contains(expect), "{args:?}: {stderr}");
        assert!(stage.notes().is_empty(), "{args:?} spawned {:?}", stage.notes());
        stage.assert_clean();
    };
    check(&["tiny", "--load-format=dummy", &port], 4, &port["--port=".len()..]);
    check(&["tiny", "--port=0", "--hostname=nowhere.invalid"], 4, "cannot listen on nowhere.invalid:0");
    check(&["no/such/model", "--port=0"], 3, "no/such/model: no such file or directory");
    check(&["tiny", "--port=0"], 3, "tiny"); // a configuration, but no weights
    check(
        &["tiny", "--load-format=dummy", "--port=0", "--num-shard=3"],
        2,
        "4 attention heads and 2 KV heads",
    );
    check(&["tiny", "--port=0", "--quantize=awq"], 2, "--quantize");
    check(&["--port=0"], 2, "a MODEL is required");
}

#[test]
fn a_second_signal_ends_everything_at_once() {
    let stage =
        Stage::new().script("router", "trap 'note ignored' TERM; ready; while :; do sleep 0.02; done");
    let mut launcher = stage.serve(&[]);
    launcher.wait_stdout(BLOCK_END);
    launcher.signal(Signal::TERM);
    wait_until("the router is told", || stage.notes().contains(&"router ignored".to_owned()));
    let began = Instant::now();
    launcher.stop();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    stage.assert_clean();
}

#[test]
fn nobody_outlives_a_launcher_that_is_killed() {
    let stage = Stage::new().script("shard", "load; exec sleep 30").script("router", "ready; exec sleep 30");
    let mut launcher = stage.serve(&["--num-shard=2"]);
    launcher.wait_stdout(BLOCK_END);
    stage.wait_start("shard-1", 1);
    launcher.signal(Signal::KILL);
    assert_eq!(launcher.wait(), -9);
    stage.assert_clean();
}

#[test]
fn what_a_shard_left_behind_is_killed() {
    let shard = r#"load; sleep 30 & echo "$!" >"$STAGE/grandchild"; wait"#;
    let stage = Stage::new().script("shard", shard);
    let mut launcher = stage.serve(&[]);
    launcher.wait_stdout(BLOCK_END);
    wait_until("a grandchild", || {
        std::fs::read_to_string(stage.path("grandchild")).is_ok_and(|id| id.ends_with('\n'))
    });
    let grandchild = std::fs::read_to_string(stage.path("grandchild")).unwrap().trim().parse().unwrap();
    kill(stage.wait_start("shard-0", 1), Signal::KILL);
    wait_until("the grandchild is gone", || !runs(grandchild));
    launcher.stop();
}

#[test]
fn log_lines_have_their_origin_and_an_end() {
    let shard = r#"echo 'not an event'; head -c 100000 /dev/zero | tr '\0' x >&2; echo >&2; load; stay"#;
    let stage = Stage::new().script("shard", shard);
    let mut launcher = stage.serve(&[]);
    launcher.wait_stdout(BLOCK_END);
    launcher.wait_stderr("shard-0 | not an event\n");
    launcher.wait_stderr("xxx … (83616 more bytes)\n");
    launcher.stop();
}

#[test]
fn with_json_output_every_line_is_json() {
    let router = r#"echo '{"level":"INFO","message":"up"}' >&2; echo plain >&2; ready; stay"#;
    let stage = Stage::new().script("router", router);
    let mut launcher = stage.serve(&["--json-output", "--ngrok"]);
    launcher.wait_stderr(BLOCK_END);
    launcher.wait_stderr("plain");
    launcher.stop();
    assert_eq!(launcher.stdout(), "");
    let stderr = launcher.stderr();
    assert!(stderr.contains(r#"{"level":"INFO","message":"up","origin":"router"}"#), "{stderr}");
    for line in stderr.lines() {
        assert!(serde_json::from_str::<serde_json::Value>(line).unwrap()["origin"].is_string(), "{line}");
    }
}

#[test]
fn output_that_nobody_reads_stops_nothing() {
    let shard = "load; i=0; while [ $i -lt 20000 ]; do echo 'a line that nobody reads, again and again' >&2; \
                 i=$((i+1)); done; note written; stay";
    let stage = Stage::new().script("shard", shard);
    let mut command = stage.command(&["tiny", "--load-format=dummy", "--port=0"]);
    let (_stdout, out) = std::io::pipe().unwrap();
    let (_stderr, err) = std::io::pipe().unwrap();
    let mut child = command.stdout(out).stderr(err).spawn().unwrap();
    drop(command);
    wait_until("the shard has written all", || stage.notes().contains(&"shard-0 written".to_owned()));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    let mut status = None;
    wait_until("it ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(0));
    stage.assert_clean();
}

#[test]
fn the_environment_stands_in_for_flags_and_keys_stay_out_of_arguments() {
    let router = r#"note "key $API_KEY"; note "arguments $*"; ready; stay"#;
    let shard = r#"note "key ${API_KEY-none}"; load; stay"#;
    let stage = Stage::new().script("router", router).script("shard", shard);
    let variables = [
        ("MODEL_ID", "tiny"),
        ("PORT", "0"),
        ("API_KEY", "s3cret"),
        ("MAX_TOTAL_TOKENS", "100"),
        ("MAX_INPUT_LENGTH", "50"),
        ("JSON_OUTPUT", "0"),
        ("HOSTNAME", "3f2a91"),
        ("TRUST_REMOTE_CODE", "false"),
    ];
    let mut launcher = Launcher::start(stage.command(&["--load-format=dummy"]).envs(variables));
    launcher.wait_stdout("Authorization: Bearer $API_KEY");
    stage.wait_start("shard-0", 1);
    wait_until("notes", || stage.notes().iter().filter(|note| note.contains(" key ")).count() == 2);
    let notes = stage.notes().join("\n");
    assert!(notes.contains("router key s3cret") && notes.contains("shard-0 key none"), "{notes}");
    let arguments = notes.lines().find(|line| line.starts_with("router arguments")).unwrap();
    for expect in ["--hostname=127.0.0.1", "--port=0", "--max-total-tokens=100", "--max-input-tokens=50"] {
        assert!(arguments.contains(expect), "{expect}: {arguments}");
    }
    assert!(!arguments.contains("s3cret"));
    launcher.stop();

    let (code, _, stderr) = {
        let mut launcher = Launcher::start(stage.command(&["tiny"]).env("SPECULATE", "2"));
        (launcher.wait(), launcher.stdout(), launcher.stderr())
    };
    assert_eq!(code, 2);
    assert!(stderr.contains("$SPECULATE (= 2)"), "{stderr}");
}

#[test]
fn a_known_name_is_fetched_first() {
    let fetch = r#"
        event '"phase","phase":"resolve","done":1000000,"total":2000000,"unit":"bytes"'
        event '"model","path":"'"$STAGE"'/tiny"'"#;
    let stage = Stage::new().script("fetch", fetch);
    let mut launcher =
        Launcher::start(&mut stage.command(&["smollm2-135m", "--load-format=dummy", "--port=0"]));
    launcher.wait_stdout(BLOCK_END);
    assert!(launcher.stdout().contains(&format!("resolve            {}", stage.path("tiny").display())));
    launcher.stop();
    assert_eq!(stage.happenings()[0], "fetch start");

    let stage = Stage::new().script("fetch", "echo 'the index is not reachable' >&2; exit 1");
    let (code, _, stderr) = run(&stage, &["smollm2-135m", "--port=0"]);
    assert_eq!(code, 1);
    assert!(
        stderr.contains("error: cannot fetch smollm2-135m: exit code 1:\nthe index is not reachable"),
        "{stderr}"
    );

    let stage = Stage::new().script("fetch", "exec sleep 30");
    let mut launcher = Launcher::start(&mut stage.command(&["smollm2-135m", "--port=0"]));
    stage.wait_start("fetch", 1);
    launcher.stop();
    stage.assert_clean();
}

#[test]
fn a_child_command_that_is_none_is_named() {
    let stage = Stage::new();
    let mut command = stage.command(&["tiny", "--load-format=dummy", "--port=0"]);
    let args: Vec<_> = command.get_args().skip(2).map(ToOwned::to_owned).collect();
    let mut command = {
        let mut other = std::process::Command::new(command.get_program());
        other.args(["--child-command", "/no/such/program"]).args(args).current_dir(stage.path(""));
        command = other;
        command
    };
    let mut launcher = Launcher::start(&mut command);
    assert_eq!(launcher.wait(), 1);
    launcher.wait_stderr("error: cannot start `/no/such/program`: No such file");
    stage.assert_clean();
}

#[test]
fn other_commands_are_handed_over() {
    let stage = Stage::new().script("shard", r#"echo "[$*]"; exit 7"#);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_anaphora-launcher"));
    let child = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/child.sh");
    command.args(["--child-command", child, "shard", "--help", "--rank=1"]).env("STAGE", stage.path(""));
    let output = command.output().unwrap();
    assert_eq!(
        (output.status.code(), output.stdout.as_slice()),
        (Some(7), b"[--help --rank=1]\n".as_slice())
    );
}
