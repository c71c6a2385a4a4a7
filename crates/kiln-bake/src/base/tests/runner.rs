//! A plain runner for tests: a mount namespace, `unshare` and `chroot`. The product's sandbox is
//! another crate's.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use kiln_store::mount::{Upper, attach, bind, mount_image};

use crate::runner::{StepExit, StepRunner, StepSpec};

pub(crate) struct Chroot;

impl StepRunner for Chroot {
    fn run(&self, spec: &StepSpec, output: &mut dyn FnMut(&[u8])) -> Result<StepExit, String> {
        let (reader, writer) = std::io::pipe().map_err(|error| error.to_string())?;
        std::thread::scope(|scope| {
            // The mounts live in the thread's own namespace and vanish with the last process.
            let running = scope.spawn(|| in_namespace(spec, writer));
            let mut reader = reader;
            let mut buffer = [0; 8192];
            while let Ok(count) = reader.read(&mut buffer) {
                if count == 0 {
                    break;
                }
                output(&buffer[..count]);
            }
            running.join().unwrap().map_err(|error| error.to_string())
        })
    }
}

fn in_namespace(spec: &StepSpec, writer: std::io::PipeWriter) -> std::io::Result<StepExit> {
    // SAFETY: changes the namespace of this thread alone, which ends with this function.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
    )?;
    let at = spec.upper_dir.join("merged");
    std::fs::create_dir_all(&at)?;
    attach(mount_image(&spec.lower, Some(&Upper::whole(spec.upper_dir.clone())))?, &at)?;
    attach(bind(Path::new("/dev"), false, false)?, at.join("dev"))?;
    let mut command = Command::new("/usr/bin/unshare");
    command.args(["--pid", "--fork", "--kill-child", "--net", "--uts", "--ipc"]);
    command.arg(format!("--mount-proc={}", at.join("proc").display()));
    command.arg("/usr/sbin/chroot").arg(&at).args(&spec.argv);
    command.env_clear();
    for pair in &spec.env {
        if let Some((name, value)) = pair.split_once('=') {
            command.env(name, value);
        }
    }
    let status = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .current_dir("/")
        .status()?;
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    Ok(StepExit { code: status.code().unwrap_or(-1), signal, ..StepExit::default() })
}
