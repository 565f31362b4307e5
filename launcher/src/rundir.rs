//! The run directory: where the sockets are. It is there exactly as long as the launcher.

use std::fs::Permissions;
use std::io::PipeWriter;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::cli::{Environment, ServeArgs};
use crate::error::LaunchError;

/// A directory of mode 0700 that is removed when this is dropped, and also if the launcher is killed.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    directory: Option<TempDir>,
    sweeper: Option<(Child, PipeWriter)>,
}

impl RunDirectory {
    /// Makes `anaphora-<process id>-<random>` in the directory that `args` and `environment` name.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn create(args: &ServeArgs, environment: &Environment) -> Result<Self, LaunchError> {
        let parent = parent(args, environment);
        let failed = |source| LaunchError::RunDirectory { parent: parent.clone(), source };
        let absolute = std::path::absolute(&parent).map_err(failed)?;
        if args.placement.shard_uds_path.is_some() {
            std::fs::create_dir_all(&absolute).map_err(failed)?;
        }
        let directory = tempfile::Builder::new()
            .prefix(&format!("anaphora-{}-", std::process::id()))
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(absolute)
            .map_err(failed)?;
        let sweeper = sweeper(directory.path()).ok();
        Ok(Self { directory: Some(directory), sweeper })
    }

    /// Its absolute path.
    pub(crate) fn path(&self) -> &Path {
        self.directory.as_ref().expect("present until it is dropped. This is a bug.").path()
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        drop(self.directory.take());
        if let Some((mut child, pipe)) = self.sweeper.take() {
            drop(pipe);
            let _ = child.wait();
        }
    }
}

/// $XDG_RUNTIME_DIR may be set and yet be absent, as in a container that took over the host's variables.
fn parent(args: &ServeArgs, environment: &Environment) -> PathBuf {
    let runtime_dir = environment.runtime_dir.clone().filter(|directory| directory.is_dir());
    let default = || runtime_dir.unwrap_or_else(|| environment.temporary_dir.clone());
    args.placement.shard_uds_path.clone().unwrap_or_else(default)
}

/// Removes `directory` when the launcher is gone without having done so (SIGKILL): a shell that waits for the end of a pipe
/// that only the launcher holds open, ignoring the signals that end the launcher in good order.
fn sweeper(directory: &Path) -> std::io::Result<(Child, PipeWriter)> {
    let (reader, writer) = std::io::pipe()?;
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "trap '' HUP INT TERM; read -r _; rm -rf -- \"$1\"", "anaphora-sweeper"])
        .arg(directory);
    command.process_group(0).current_dir("/");
    let child = command.stdin(reader).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    Ok((child, writer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exists_while_held() {
        let parent = tempfile::tempdir().unwrap();
        let environment =
            Environment { runtime_dir: Some(parent.path().to_owned()), ..Environment::default() };
        let held = RunDirectory::create(&crate::cli::serve_args(&["m"]), &environment).unwrap();
        let path = held.path().to_owned();
        assert_eq!(path.parent(), Some(parent.path()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::write(path.join("shard-0.sock"), "").unwrap();
        drop(held);
        assert!(!path.exists());
    }
}
