//! A stage for the process tests: a directory with a tiny model, a scripted child, and what the launcher said.

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

/// Longer than anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory of its own for each test.
pub(crate) struct Stage {
    directory: TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let model = directory.path().join("tiny");
        fs::create_dir(&model).unwrap();
        fs::write(model.join("config.json"), include_str!("config.json")).unwrap();
        fs::write(model.join("tokenizer.json"), "{}").unwrap(); // what it says is the router's business
        fs::write(directory.path().join("notes"), "").unwrap();
        Self { directory }
    }

    /// What every child named `part` does, as shell commands; see `child.sh` for the words that it may use.
    pub(crate) fn script(self, part: &str, commands: &str) -> Self {
        fs::write(self.path(&format!("{part}.sh")), commands).unwrap();
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command line `anaphora serve` with `args`; `MODEL` and the port are the caller's.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_anaphora-launcher"));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("STAGE", self.directory.path());
        command.current_dir(self.directory.path());
        command.arg("--child-command").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/child.sh"));
        command.args(["serve", "--device=cpu", "--shard-uds-path=run"]).args(args);
        command
    }

    /// Starts a launcher that serves the tiny model on any port.
    pub(crate) fn serve(&self, args: &[&str]) -> Launcher {
        Launcher::start(self.command(&["tiny", "--load-format=dummy", "--port=0"]).args(args))
    }

    /// What the children have noted, one line each: name, what happened.
    pub(crate) fn notes(&self) -> Vec<String> {
        let notes = fs::read_to_string(self.path("notes")).unwrap();
        notes.lines().map(str::to_owned).collect()
    }

    /// The notes without process ids.
    pub(crate) fn happenings(&self) -> Vec<String> {
        let without_id = |note: String| {
            note.split_once(" start ").map_or(note.clone(), |(name, _)| format!("{name} start"))
        };
        self.notes().into_iter().map(without_id).collect()
    }

    /// The process ids of all that were started as `name`, in order.
    pub(crate) fn pids(&self, name: &str) -> Vec<i32> {
        let prefix = format!("{name} start ");
        self.notes().iter().filter_map(|note| note.strip_prefix(&prefix)?.parse().ok()).collect()
    }

    /// Waits until `name` has been started `times` times, and returns its last process id.
    pub(crate) fn wait_start(&self, name: &str, times: usize) -> i32 {
        wait_until(&format!("{name} starts {times} times"), || self.pids(name).len() >= times);
        self.pids(name)[times - 1]
    }

    /// The run directories that exist.
    pub(crate) fn run_directories(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("run")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Nothing is left of a launcher that has ended: no process, no directory.
    pub(crate) fn assert_clean(&self) {
        wait_until("the run directory is gone", || self.run_directories().is_empty());
        let ids = self.notes().into_iter().filter_map(|note| note.split_once(" start ")?.1.parse().ok());
        for id in ids {
            wait_until(&format!("process {id} is gone"), || !runs(id));
        }
    }
}

/// A launcher that runs, and what it has said.
pub(crate) struct Launcher {
    child: Child,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    /// That collect the two.
    collectors: [JoinHandle<()>; 2],
}

impl Launcher {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, first) = collect(child.stdout.take().unwrap());
        let (stderr, second) = collect(child.stderr.take().unwrap());
        Self { child, stdout, stderr, collectors: [first, second] }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn stdout(&self) -> String {
        self.stdout.lock().unwrap().clone()
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    pub(crate) fn wait_stdout(&self, text: &str) {
        wait_until(&format!("stdout has {text:?}"), || self.stdout().contains(text));
    }

    pub(crate) fn wait_stderr(&self, text: &str) {
        wait_until(&format!("stderr has {text:?}: {}", self.stderr()), || self.stderr().contains(text));
    }

    /// Waits until all that it and its children have said is collected, which is when none of them is left.
    pub(crate) fn wait_output(&self) {
        wait_until("its output ends", || self.collectors.iter().all(JoinHandle::is_finished));
    }

    /// Stops it as a user does, and waits for its clean end.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.wait(), 0, "{}", self.stderr());
    }

    /// Waits for its end: the exit code, or the negated signal.
    pub(crate) fn wait(&mut self) -> i32 {
        let mut status: Option<ExitStatus> = None;
        wait_until("the launcher ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let status = status.unwrap();
        status.code().unwrap_or_else(|| -status.signal().unwrap())
    }
}

impl Drop for Launcher {
    /// A test that fails leaves nothing running.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends SIGKILL, or another signal, to any process.
pub(crate) fn kill(id: i32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
}

/// Whether the process exists and is no zombie.
pub(crate) fn runs(id: i32) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(id.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, state)| !state.trim_start().starts_with(['Z', 'X']))
}

/// Waits for `condition`, looking often.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> (Arc<Mutex<String>>, JoinHandle<()>) {
    let text = Arc::new(Mutex::new(String::new()));
    let collected = Arc::clone(&text);
    let collector = thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut piece) {
            collected.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..length]));
        }
    });
    (text, collector)
}
