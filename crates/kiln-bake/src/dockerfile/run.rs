//! RUN: its flags and its command. Nothing is expanded yet.

use super::instruction::{self, Flags};
use super::lines::Line;
use super::mount::{self, MountFlag};
use super::{CommandLine, Heredoc, Mistake};

/// RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The command.
    pub command: CommandLine,
    /// Here-documents, raw.
    pub heredocs: Vec<Heredoc>,
    /// `--network`: whether the step may use the network. `None`: not said.
    pub network: Option<bool>,
    /// Each `--mount`, in order.
    pub mounts: Vec<MountFlag>,
}

/// Reads what follows RUN.
pub(super) fn parse(rest: &str, flags: &mut Flags, line: &Line) -> Result<Run, Mistake> {
    let network = match flags.take("network")?.as_deref() {
        None => None,
        Some("none") => Some(false),
        Some("default") => Some(true),
        Some("host") => {
            let what = "RUN --network=host is refused: a step would see all that listens on the \
                        host";
            return Err(Mistake::new(what).hint("use --network=default"));
        }
        Some(other) => {
            return Err(Mistake::new(format!("`--network={other}` is no network of a step"))
                .hint("use --network=default, or none, which is what a step has without it"));
        }
    };
    match flags.take("security")?.as_deref() {
        None | Some("sandbox") => {}
        Some("insecure") => {
            let what = "RUN --security=insecure is refused: steps run in the sandbox of instances";
            return Err(Mistake::new(what).hint("do without; there is no privileged step"));
        }
        Some(other) => {
            return Err(Mistake::new(format!("`--security={other}` is no security of a step"))
                .hint("use --security=sandbox, which is what a step has without it"));
        }
    }
    for device in flags.take_all("device")? {
        mount::device(&device)?;
    }
    let mounts = flags.take_all("mount")?;
    let mounts = mounts.into_iter().map(MountFlag::read).collect::<Result<_, _>>()?;
    let command = instruction::command(rest)?;
    if matches!(&command, CommandLine::Exec(args) if args.is_empty()) {
        return Err(Mistake::new("RUN has no command"));
    }
    Ok(Run { command, heredocs: line.heredocs.clone(), network, mounts })
}
