//! The arguments of the command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use kiln_core::compose::Protocol;

use crate::protocol::{ProjectArgs, Verb};

/// Immutable delivery: source → image → release → running, tested, switched.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, about, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Folder that holds all of Kiln's state
    #[arg(
        long,
        env = "KILN_ROOT",
        default_value = "/var/lib/kiln",
        hide_env_values = true,
        value_name = "DIR",
        global = true
    )]
    pub root: PathBuf,
    /// One JSON document (or one object a line) on standard output
    #[arg(long, global = true)]
    pub json: bool,
    #[command(flatten)]
    pub project: ProjectArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a commented starter compose.yaml for this directory
    Init,
    /// Print the project in Compose's normal form
    Config(ConfigArgs),
    /// Resolve bases and images into kiln.lock
    Lock {
        #[command(flatten)]
        project: ProjectArgs,
        /// Take what is newest, also of what is locked already: of everything, or of these images
        /// and bases
        #[arg(long, value_name = "NAME", num_args = 0..)]
        update: Option<Vec<String>>,
        /// Get all that the lock names into the store
        #[arg(long)]
        fetch: bool,
    },
    /// Get the images that kiln.lock names into the store
    Pull {
        #[command(flatten)]
        project: ProjectArgs,
        /// Only those that these services need
        #[arg(value_name = "SERVICE")]
        services: Vec<String>,
    },
    /// Source → images; prints digests
    #[command(visible_alias = "build")]
    Bake {
        #[command(flatten)]
        project: ProjectArgs,
        /// Only these services
        #[arg(value_name = "SERVICE")]
        services: Vec<String>,
    },
    /// Log in to a registry of images, and keep that where Docker keeps it
    Login {
        /// Host, with a port perhaps; docker.io if none is named
        registry: Option<String>,
        /// The user's name there
        #[arg(short, long, value_name = "NAME")]
        username: Option<String>,
        /// Read the password from standard input
        #[arg(long, requires = "username")]
        password_stdin: bool,
    },
    /// Forget the name and password for a registry
    Logout {
        /// Host, with a port perhaps; docker.io if none is named
        registry: Option<String>,
    },
    /// Write images as standard OCI: a layout folder, or an archive for `podman` and `docker load`
    Export {
        #[command(flatten)]
        project: ProjectArgs,
        /// Only these services
        #[arg(value_name = "SERVICE")]
        services: Vec<String>,
        /// Where to: a folder for `oci`, else a file, or `-` for standard output
        #[arg(short, long, value_name = "PATH")]
        output: PathBuf,
        /// oci, oci-archive or docker-archive
        #[arg(long, value_name = "FORMAT", default_value = "oci")]
        format: kiln_oci::Format,
        /// gzip, zstd or none
        #[arg(long, value_name = "HOW", default_value = "gzip")]
        compression: kiln_oci::Compression,
        /// The images of this release instead of the working tree's
        #[arg(long, value_name = "DIGEST")]
        release: Option<String>,
        /// One image: TREE,CONFIG, the beginning of its tree digest, or the name of an import
        #[arg(long, value_name = "DIGEST", conflicts_with_all = ["services", "release"])]
        image: Option<String>,
        /// What that image is called in the export
        #[arg(long, value_name = "NAME", requires = "image")]
        name: Option<String>,
    },
    /// Read an image that anybody wrote: OCI layout folder, OCI archive or `docker save` archive
    Import {
        /// The folder or file, or `-` for standard input
        #[arg(required_unless_present = "remove")]
        path: Option<PathBuf>,
        /// Which image of several: its name there, or the digest of its manifest
        #[arg(long, value_name = "IMAGE")]
        select: Option<String>,
        /// Keep it under this name
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Keep an image no longer
        #[arg(long, value_name = "NAME", conflicts_with_all = ["path", "select", "name"])]
        remove: Option<String>,
    },
    /// Bake each step again under varied conditions and compare; exit 3 if any differs
    Verify {
        #[command(flatten)]
        project: ProjectArgs,
        /// Only these services
        #[arg(value_name = "SERVICE")]
        services: Vec<String>,
        /// Bake everything twice from nothing, bases too, and compare the images
        #[arg(long)]
        deep: bool,
        /// Compare with an exported image (OCI layout folder or archive) baked elsewhere
        #[arg(long, value_name = "PATH", conflicts_with = "deep")]
        against: Option<PathBuf>,
        /// What differs and stays behind in a stage ends with 3 as well
        #[arg(long)]
        strict: bool,
    },
    /// Cut a release from a clean Git commit; prints its digest
    Release {
        #[command(flatten)]
        project: ProjectArgs,
        /// This revision, whatever the working tree looks like
        #[arg(long, value_name = "REV")]
        commit: Option<String>,
        /// Let a variable of the environment count
        #[arg(long, value_name = "NAME")]
        env: Vec<String>,
    },
    /// Bake, cut a release and deploy it to the stage `dev`; returns when it serves
    Up {
        #[command(flatten)]
        project: ProjectArgs,
        /// Only these services and what they depend on; what else runs stays as it is
        #[arg(conflicts_with = "learn")]
        #[arg(value_name = "SERVICE")]
        services: Vec<String>,
        /// Seconds that a service may take to get healthy
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        timeout: Option<u64>,
        /// Volumes without a name begin anew, as their images have them
        #[arg(short = 'V', long)]
        renew_anon_volumes: bool,
        /// Replace what another folder of the same project name deployed
        #[arg(long)]
        take_over: bool,
        /// Root file systems are read-only where no service states otherwise, as in other stages
        #[arg(long)]
        strict: bool,
        /// Start only this service, once and without traffic, and list what it writes
        #[arg(long, value_name = "SERVICE", conflicts_with_all = ["strict", "take_over", "renew_anon_volumes"])]
        learn: Option<String>,
        /// Accepted for the habit: Kiln always returns when the release serves
        #[arg(short, long)]
        detach: bool,
    },
    /// Say what differs between two images or releases; exit code 3 if anything does
    #[command(after_help = DIFF_NAMES)]
    Diff {
        #[command(flatten)]
        project: ProjectArgs,
        /// The old one; without any, what serves in `dev`
        #[arg(value_name = "A")]
        old: Option<String>,
        /// The new one; without it, the working tree
        #[arg(value_name = "B")]
        new: Option<String>,
        /// Compare small texts line by line
        #[arg(long)]
        text: bool,
        /// Also list files of packages that differ
        #[arg(long)]
        files: bool,
        /// Everything, folded nowhere
        #[arg(long)]
        all: bool,
    },
    /// Say what `up` would do, and whether it needs a pause; changes nothing that runs
    Plan {
        #[command(flatten)]
        project: ProjectArgs,
        #[arg(default_value = "dev")]
        stage: String,
    },
    /// Switch back to the release before
    Rollback {
        #[command(flatten)]
        project: ProjectArgs,
        #[arg(default_value = "dev")]
        stage: String,
        /// Digest or its beginning; without it, the one before
        release: Option<String>,
        /// Seconds that a service may take to get healthy
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        timeout: Option<u64>,
    },
    /// List the releases that can be restored
    Releases {
        #[command(flatten)]
        project: ProjectArgs,
        #[arg(default_value = "dev")]
        stage: String,
    },
    /// What runs
    Ps {
        #[command(flatten)]
        project: ProjectArgs,
        /// All projects and stages of this root
        #[arg(short, long)]
        all: bool,
    },
    /// The stage at a glance
    Status {
        #[command(flatten)]
        project: ProjectArgs,
        #[arg(default_value = "dev")]
        stage: String,
    },
    /// What instances write
    Logs {
        #[command(flatten)]
        project: LogsProject,
        /// Only these services
        #[arg(value_name = "SERVICE")]
        services: Vec<String>,
        /// Go on as more is written
        #[arg(short, long)]
        follow: bool,
        /// Only so many of the last lines of each service, or all
        #[arg(short = 'n', long, value_name = "LINES", value_parser = last_lines)]
        tail: Option<Lines>,
        /// Nothing from before: 10m, 1h30m, 2d, 2026-11-28T09:00:00Z or Unix seconds
        #[arg(long, value_name = "MOMENT", value_parser = super::moment::parse)]
        since: Option<u64>,
        /// Nothing from after
        #[arg(long, value_name = "MOMENT", value_parser = super::moment::parse, conflicts_with = "follow")]
        until: Option<u64>,
        /// Show when each line was written
        #[arg(short, long)]
        timestamps: bool,
        #[arg(long, default_value = "dev")]
        stage: String,
    },
    /// Where clients reach a port of a service
    Port {
        #[command(flatten)]
        project: ProjectArgs,
        service: String,
        /// Port of the instance: 8080, 53/udp; without it, all that are published
        #[arg(value_name = "PORT", value_parser = port)]
        target: Option<(u16, Option<Protocol>)>,
        /// tcp or udp; without it, of a port without a word, tcp
        #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
        protocol: Option<Protocol>,
        #[arg(long, default_value = "dev")]
        stage: String,
    },
    /// Copy files out of an instance; into one nothing is copied
    Cp {
        #[command(flatten)]
        project: ProjectArgs,
        #[arg(value_name = "SERVICE:PATH")]
        from: String,
        /// A folder, or another name
        #[arg(value_name = "DEST")]
        to: String,
        #[arg(long, default_value = "dev")]
        stage: String,
    },
    /// All projects of this root
    Ls {
        /// Also those that are down
        #[arg(short, long)]
        all: bool,
        /// Names only
        #[arg(short, long)]
        quiet: bool,
    },
    /// Wait until the instances of these services have ended; the exit code is the first one's
    Wait {
        #[command(flatten)]
        project: ProjectArgs,
        #[arg(required = true)]
        #[arg(value_name = "SERVICE")]
        services: Vec<String>,
        #[arg(long, default_value = "dev")]
        stage: String,
    },
    /// What instances use: processor, memory, processes, network
    Stats {
        #[command(flatten)]
        project: ProjectArgs,
        /// Only these services
        #[arg(value_name = "SERVICE")]
        services: Vec<String>,
        /// All projects and stages of this root
        #[arg(short, long)]
        all: bool,
        /// Once, instead of each second
        #[arg(long)]
        no_stream: bool,
    },
    /// Fresh instances of these services, or of all, through the switch
    Restart {
        #[command(flatten)]
        project: ProjectArgs,
        #[arg(value_name = "SERVICE")]
        services: Vec<String>,
        /// Seconds that a service may take to get healthy
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        timeout: Option<u64>,
        #[arg(long, default_value = "dev")]
        stage: String,
    },
    /// Run a command in an instance, which taints it
    Exec {
        #[command(flatten)]
        project: ProjectArgs,
        service: String,
        #[arg(
            required = true,
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "CMD"
        )]
        argv: Vec<String>,
        /// As this user
        #[arg(short, long)]
        user: Option<String>,
        /// Set an environment variable
        #[arg(short, long, value_name = "NAME=VALUE")]
        env: Vec<String>,
        /// In this folder of the instance
        #[arg(short, long, value_name = "DIR")]
        workdir: Option<String>,
        /// Without a terminal, even where there is one
        #[arg(short = 'T', long)]
        no_tty: bool,
        /// For fingers that know Docker: input is always passed on
        #[arg(short, long, hide = true)]
        interactive: bool,
        /// For fingers that know Docker: there is a terminal where there is one here
        #[arg(short, long, hide = true)]
        tty: bool,
        #[arg(long, default_value = "dev")]
        stage: String,
    },
    /// Run a command in an instance of its own, beside what serves; gone when it ends
    Run {
        #[command(flatten)]
        project: ProjectArgs,
        service: String,
        /// Without it, the service's own
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
        argv: Vec<String>,
        /// As this user
        #[arg(short, long)]
        user: Option<String>,
        /// Set an environment variable
        #[arg(short, long, value_name = "NAME=VALUE")]
        env: Vec<String>,
        /// In this folder of the instance
        #[arg(short, long, value_name = "DIR")]
        workdir: Option<String>,
        /// Without a terminal, even where there is one
        #[arg(short = 'T', long)]
        no_tty: bool,
        /// Start nothing that it depends on
        #[arg(long)]
        no_deps: bool,
        /// For fingers that know Docker: it is always removed when it has ended
        #[arg(long, hide = true)]
        rm: bool,
        #[arg(long, default_value = "dev")]
        stage: String,
    },
    /// The ledger: every intent, outcome and pointer move
    History {
        #[command(flatten)]
        project: ProjectArgs,
        /// Only the newest entries
        #[arg(short = 'n', long, value_name = "ENTRIES")]
        limit: Option<usize>,
        /// All projects and stages of this root
        #[arg(short, long)]
        all: bool,
        #[arg(long)]
        stage: Option<String>,
    },
    /// Stop the stage; records, artifacts and volumes stay
    Down {
        #[command(flatten)]
        project: ProjectArgs,
        #[arg(default_value = "dev")]
        stage: String,
        /// Remove the volumes too that the project declares, and those without a name
        #[arg(short, long)]
        volumes: bool,
    },
    /// Images in the store
    Images,
    /// Read and hash everything that is stored, and say what is damaged
    Fsck {
        /// Heal what can be made again
        #[arg(long)]
        repair: bool,
    },
    /// Collect what no release, slot or lock names
    Gc {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
        /// Packages, bases and downloads that no lock needs any more stay for so many days on
        /// which this root was used (30)
        #[arg(long, value_name = "DAYS")]
        unused: Option<u64>,
    },
    /// Completions for a shell, on standard output
    Completions { shell: clap_complete::Shell },
    /// Write pages for `man` into a folder
    Man {
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Take every stage of this root down, then end front and agent
    Shutdown,
    /// The agent in the foreground, for systemd
    Serve,
    /// The agent as a verb starts it: leaves when nothing is left to look after
    #[command(hide = true)]
    Agent,
}

const DIFF_NAMES: &str = "\
A and B are each one of
  DIGEST           a release's or a tree's, or its beginning (4 digits or more)
  STAGE            its active release; also STAGE:active, STAGE:standby, STAGE:previous
  SERVICE          its image as the working tree gives it
  .                the working tree as a release
  RELEASE:SERVICE  the image of one service of any of these releases";

/// How many lines of a log; nothing: all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lines(Option<usize>);

fn last_lines(text: &str) -> Result<Lines, String> {
    match text {
        "all" => Ok(Lines(None)),
        number => match number.parse() {
            Ok(number) => Ok(Lines(Some(number))),
            Err(_) => Err("give a number of lines, or all".to_owned()),
        },
    }
}

fn seconds(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "give a number of seconds: 90".to_owned())
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err("give tcp or udp".to_owned()),
    }
}

/// `8080`, `53/udp`.
fn port(text: &str) -> Result<(u16, Option<Protocol>), String> {
    let (number, word) = match text.split_once('/') {
        Some((number, word)) => (number, Some(protocol(word)?)),
        None => (text, None),
    };
    match number.parse() {
        Ok(number @ 1..) => Ok((number, word)),
        _ => Err("give a port from 1 to 65535, with its protocol perhaps: 53/udp".to_owned()),
    }
}

/// `kiln config`.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    pub project: ProjectArgs,
    /// Only these services, and what they depend on
    #[arg(value_name = "SERVICE")]
    pub names: Vec<String>,
    /// yaml or json
    #[arg(long, value_name = "FORMAT", value_parser = ["yaml", "json"])]
    pub format: Option<String>,
    /// Write it to this file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub part: ConfigPart,
}

/// What of the project is printed instead of the whole.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
#[expect(clippy::struct_excessive_bools, reason = "these are the flags of a command line")]
pub(crate) struct ConfigPart {
    /// The names of the services, one a line
    #[arg(long)]
    pub services: bool,
    /// The names of their images
    #[arg(long)]
    pub images: bool,
    /// The names of the volumes that they use
    #[arg(long)]
    pub volumes: bool,
    /// The names of the networks that they use
    #[arg(long)]
    pub networks: bool,
    /// The names of all profiles
    #[arg(long)]
    pub profiles: bool,
    /// The variables that are there for the files' ${…}
    #[arg(long)]
    pub environment: bool,
    /// The variables that the files name, and their defaults
    #[arg(long)]
    pub variables: bool,
    /// The hash by which Compose knows the configuration of a service; `*` is every service
    #[arg(long, value_name = "SERVICE")]
    pub hash: Option<String>,
    /// Nothing: only say what is wrong
    #[arg(short, long)]
    pub quiet: bool,
}

/// [`ProjectArgs`] where `-f` means follow, as it does for Compose.
#[derive(Debug, clap::Args)]
pub(crate) struct LogsProject {
    /// Compose file; several are merged in this order
    #[arg(long, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Activate a profile
    #[arg(long, value_name = "NAME")]
    profile: Vec<String>,
    /// Project name, instead of the one in the file
    #[arg(short, long, value_name = "NAME")]
    project_name: Option<String>,
    /// Folder of the project, instead of that of its first file
    #[arg(long, value_name = "DIR")]
    project_directory: Option<PathBuf>,
    /// File of variables instead of .env
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
}

impl From<LogsProject> for ProjectArgs {
    fn from(from: LogsProject) -> Self {
        let LogsProject { file, profile, project_name, project_directory, env_file } = from;
        let (stdin, named) = (None, Vec::new());
        Self { file, profile, project_name, project_directory, env_file, stdin, named }
    }
}

impl Command {
    /// The request for the agent. What is no request gives a ping.
    pub(crate) fn verb(self, before: ProjectArgs) -> Verb {
        let project = before;
        match self {
            Self::Init
            | Self::Config(_)
            | Self::Serve
            | Self::Agent
            | Self::Login { .. }
            | Self::Logout { .. }
            | Self::Cp { .. }
            | Self::Completions { .. }
            | Self::Man { .. } => Verb::Ping,
            Self::Lock { project: p, update, fetch } => {
                let (update, names) = (update.is_some(), update.unwrap_or_default());
                Verb::Lock { project: project.and(p), update, names, fetch }
            }
            Self::Pull { project: p, services } => {
                Verb::Pull { project: project.and(p).naming(&services), services }
            }
            Self::Bake { project: p, services } => {
                Verb::Bake { project: project.and(p).naming(&services), services }
            }
            Self::Verify { project: p, services, deep, against, strict } => {
                let project = project.and(p).naming(&services);
                Verb::Verify { project, services, deep, against, strict }
            }
            Self::Diff { project: p, old, new, text, files, all } => {
                let names = old.into_iter().chain(new).collect();
                Verb::Diff { project: project.and(p), names, text, files, all }
            }
            Self::Release { project: p, commit, env } => {
                Verb::Release { project: project.and(p), commit, env }
            }
            Self::Export {
                project: p,
                services,
                output,
                format,
                compression,
                release,
                image,
                name,
            } => Verb::Export {
                project: project.and(p).naming(&services),
                services,
                image,
                release,
                name,
                format,
                compression,
                output,
                owner: super::carrier::wanted_owner(),
            },
            Self::Import { remove: Some(name), .. } => Verb::Forget { name },
            Self::Import { path, select, name, remove: None } => {
                Verb::Import { path: path.unwrap_or_default(), select, name }
            }
            Self::Up { project: p, timeout, learn: Some(service), .. } => {
                let project = project.and(p).naming(std::slice::from_ref(&service));
                Verb::Learn { project, service, timeout }
            }
            Self::Up {
                project: p,
                timeout,
                learn: None,
                renew_anon_volumes: renew,
                take_over,
                strict,
                services,
                detach: _,
            } => {
                let project = project.and(p).naming(&services);
                Verb::Up { project, timeout, renew, take_over, strict, services }
            }
            Self::Plan { project: p, stage } => Verb::Plan { project: project.and(p), stage },
            Self::Rollback { project: p, stage, release, timeout } => {
                Verb::Rollback { project: project.and(p), stage, release, timeout }
            }
            Self::Releases { project: p, stage } => {
                Verb::Releases { project: project.and(p), stage }
            }
            Self::Ps { project: p, all } => Verb::Ps { project: project.and(p), all },
            Self::Status { project: p, stage } => Verb::Status { project: project.and(p), stage },
            Self::Logs { project: p, services, follow, tail, since, until, timestamps, stage } => {
                let project = project.and(p.into());
                let tail = tail.and_then(|lines| lines.0);
                Verb::Logs { project, stage, services, follow, tail, since, until, timestamps }
            }
            Self::Port { project: p, service, target, protocol, stage } => {
                let (target, word) = (target.map(|it| it.0), target.and_then(|it| it.1));
                let protocol = word.or(protocol);
                Verb::Port { project: project.and(p), stage, service, target, protocol }
            }
            Self::Ls { all, quiet } => Verb::Ls { all, quiet },
            Self::Wait { project: p, services, stage } => {
                Verb::Wait { project: project.and(p), stage, services }
            }
            Self::Stats { project: p, services, all, no_stream } => {
                Verb::Stats { project: project.and(p), services, all, stream: !no_stream }
            }
            Self::Restart { project: p, services, timeout, stage } => {
                Verb::Restart { project: project.and(p), stage, services, timeout }
            }
            Self::Exec { project: p, service, argv, user, env, workdir, no_tty, stage, .. } => {
                let terminal = super::exec::wanted_terminal(no_tty);
                let project = project.and(p);
                Verb::Exec { project, stage, service, argv, env, user, workdir, terminal }
            }
            Self::Run {
                project: p,
                service,
                argv,
                user,
                env,
                workdir,
                no_tty,
                no_deps,
                stage,
                rm: _,
            } => {
                let terminal = super::exec::wanted_terminal(no_tty);
                let project = project.and(p).naming(std::slice::from_ref(&service));
                Verb::Run { project, no_deps, stage, service, argv, env, user, workdir, terminal }
            }
            Self::History { project: p, limit, all, stage } => {
                Verb::History { project: project.and(p), stage, limit, all }
            }
            Self::Down { project: p, stage, volumes } => {
                Verb::Down { project: project.and(p), stage, volumes }
            }
            Self::Images => Verb::Images,
            Self::Fsck { repair } => Verb::Fsck { repair },
            Self::Gc { dry_run, unused } => Verb::Gc { dry_run, unused },
            Self::Shutdown => Verb::Shutdown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
