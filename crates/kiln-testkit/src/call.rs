//! One run of a program, with a deadline.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::output::Output;
use crate::wait::wait_until;

/// How long a program may take to end, if nothing else is said.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(60);
/// How long the pipes may stay open after the program's end.
const PIPE_PATIENCE: Duration = Duration::from_secs(5);

/// A program with its arguments, to be run once or often.
#[derive(Debug, Clone)]
pub struct Call {
    program: PathBuf,
    args: Vec<OsString>,
    dir: Option<PathBuf>,
    env: Vec<(OsString, Option<OsString>)>,
    stdin: Vec<u8>,
    patience: Duration,
}

impl Call {
    /// A call without arguments, with the caller's environment and nothing on standard input.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            dir: None,
            env: Vec::new(),
            stdin: Vec::new(),
            patience: DEFAULT_PATIENCE,
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets the working directory.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Removes an environment variable.
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), None));
        self
    }

    /// Gives bytes on standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Sets how long the program may take.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The command line, for messages.
    pub fn line(&self) -> String {
        let mut words = vec![self.program.to_string_lossy().into_owned()];
        words.extend(self.args.iter().map(|arg| arg.to_string_lossy().into_owned()));
        words.join(" ")
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// If it cannot be started, does not end in time (it is killed then), or leaves its output
    /// open to some other process, for which a shell's `$(…)` would wait for ever.
    pub fn run(&self) -> Result<Output> {
        self.spawn()?.wait()
    }

    /// Runs to the end and demands exit code 0.
    ///
    /// # Errors
    /// As [`Call::run`], and with all that was printed if it ended otherwise.
    pub fn run_ok(&self) -> Result<Output> {
        let output = self.run()?;
        if !output.success() {
            bail!("failed\n{output}");
        }
        Ok(output)
    }

    /// Starts it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self) -> Result<Running> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if self.stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let started = Instant::now();
        let line = self.line();
        let mut child = command.spawn().with_context(|| format!("cannot start {line}"))?;
        if let Some(mut pipe) = child.stdin.take() {
            let bytes = self.stdin.clone();
            // A program that does not read its input to the end is free to do so.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)));
        }
        let stdout = Stream::read(child.stdout.take().context("no standard output")?);
        let stderr = Stream::read(child.stderr.take().context("no standard error")?);
        Ok(Running { line, child, stdout, stderr, started, patience: self.patience })
    }
}

/// A program that was started. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    line: String,
    child: Child,
    stdout: Stream,
    stderr: Stream,
    started: Instant,
    patience: Duration,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Standard output up to now.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Standard error up to now.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until standard output or standard error holds `text`.
    ///
    /// # Panics
    /// With what was printed, if that does not happen in time.
    #[track_caller]
    pub fn wait_for(&self, text: &str, patience: Duration) {
        let both = || format!("{}{}", self.stdout(), self.stderr());
        let what = format!("{text:?} in the output of {}", self.line);
        wait_until(patience, &what, || both().contains(text).then_some(()));
    }

    /// Sends a signal, to this one process only.
    ///
    /// # Errors
    /// If it has ended and was waited for already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        rustix::process::kill_process(self.rustix_pid()?, signal)
            .with_context(|| format!("cannot signal {}", self.line))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// As [`Call::run`].
    pub fn wait(mut self) -> Result<Output> {
        let status = self.wait_status()?;
        let took = self.started.elapsed();
        for (name, stream) in [("output", &self.stdout), ("error", &self.stderr)] {
            if !stream.wait_end(PIPE_PATIENCE) {
                bail!(
                    "{} has ended, but another process still holds its standard {name} open",
                    self.line
                );
            }
        }
        Ok(Output {
            command: self.line.clone(),
            code: status.code(),
            signal: status.signal(),
            stdout: self.stdout(),
            stderr: self.stderr(),
            took,
        })
    }

    /// Waits for its end, at most this long from now.
    ///
    /// # Errors
    /// As [`Call::run`].
    pub fn wait_within(mut self, patience: Duration) -> Result<Output> {
        self.patience = self.started.elapsed() + patience;
        self.wait()
    }

    fn rustix_pid(&self) -> Result<Pid> {
        Pid::from_raw(self.child.id().cast_signed()).context("process id 0")
    }

    fn wait_status(&mut self) -> Result<ExitStatus> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let pidfd = rustix::process::pidfd_open(self.rustix_pid()?, PidfdFlags::empty())?;
        let deadline = self.started + self.patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                self.child.kill()?;
                self.child.wait()?;
                let (out, err) = (self.stdout(), self.stderr());
                bail!("{} did not end within {:?}\n{out}{err}", self.line, self.patience);
            };
            let timeout = Timespec::try_from(left)?;
            match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// A pipe that a thread reads as it fills.
#[derive(Debug)]
struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    ended: Receiver<()>,
}

impl Stream {
    fn read(pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = channel::<()>();
        let target = Arc::clone(&bytes);
        std::thread::spawn(move || {
            let _end = end; // dropped with the thread, which is what `ended` waits for
            let mut reader = BufReader::new(pipe);
            while let Ok(chunk) = reader.fill_buf().map(<[u8]>::to_vec) {
                if chunk.is_empty() {
                    break;
                }
                reader.consume(chunk.len());
                target.lock().unwrap_or_else(|poison| poison.into_inner()).extend(chunk);
            }
        });
        Self { bytes, ended }
    }

    fn text(&self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(|poison| poison.into_inner());
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn wait_end(&self, patience: Duration) -> bool {
        matches!(self.ended.recv_timeout(patience), Err(RecvTimeoutError::Disconnected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Call {
        Call::new("/bin/sh").args(["-c", script])
    }

    #[test]
    fn tells_output_and_code_apart() {
        let output = sh("echo out; echo err >&2; cat; exit 3").stdin("in").run().unwrap();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("out\nin", "err\n"));
        assert_eq!((output.code, output.signal), (Some(3), None));
        let output = sh("kill -9 $$").run().unwrap();
        assert_eq!((output.code, output.signal), (None, Some(9)));
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let call = sh("echo begun; exec sleep 1000").patience(Duration::from_millis(200));
        let error = call.run().unwrap_err().to_string();
        assert!(error.contains("did not end within") && error.contains("begun"), "{error}");
    }

    #[test]
    fn a_pipe_that_stays_open_is_told() {
        let error = sh("sleep 7 & echo done").run().unwrap_err().to_string();
        assert!(error.contains("holds its standard output open"), "{error}");
    }

    #[test]
    fn output_can_be_awaited_while_it_runs() {
        let running = sh("echo ready; exec cat").stdin("more").spawn().unwrap();
        running.wait_for("more", Duration::from_secs(5));
        assert!(running.wait().unwrap().stdout.starts_with("ready\n"));
        let running = sh("echo ready; exec sleep 1000").spawn().unwrap();
        running.wait_for("ready", Duration::from_secs(5));
        running.signal(Signal::TERM).unwrap();
        assert_eq!(running.wait().unwrap().signal, Some(15));
    }
}
