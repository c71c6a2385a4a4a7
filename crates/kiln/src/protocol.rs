//! What client and agent say to each other: one JSON object a line over a Unix socket.
//!
//! The client sends one [`Request`]; the agent answers with any number of [`Event`]s, the last of
//! which is [`Event::Done`] or [`Event::Failed`]. A client that hangs up cancels what has not
//! passed its point of no return. See `docs/formats.md`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kiln_core::compose::Protocol;
use kiln_core::exit::Exit;
use kiln_remote::registry::{Credential, Registries};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::report::Report;

/// Version of this protocol; other versions are refused.
pub(crate) const VERSION: u32 = 1;

/// One request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// Identity of the client's binary; an agent of another build replaces itself first.
    pub build: String,
    /// The client's binary.
    pub exe: PathBuf,
    /// Working directory of the client.
    pub cwd: PathBuf,
    /// Environment of the client, for interpolation.
    pub env: BTreeMap<String, String>,
    /// What is asked.
    pub verb: Verb,
}

/// Where the project is.
#[derive(Debug, Clone, Default, Serialize, Deserialize, clap::Args)]
pub(crate) struct ProjectArgs {
    /// Compose file; several are merged in this order
    #[arg(short, long = "file", value_name = "FILE")]
    #[serde(default)]
    pub file: Vec<PathBuf>,
    /// Activate a profile
    #[arg(long, value_name = "NAME")]
    #[serde(default)]
    pub profile: Vec<String>,
    /// Project name, instead of the one in the file
    #[arg(short, long, value_name = "NAME")]
    #[serde(default)]
    pub project_name: Option<String>,
    /// Folder of the project, instead of that of its first file
    #[arg(long, value_name = "DIR")]
    #[serde(default)]
    pub project_directory: Option<PathBuf>,
    /// File of variables instead of .env; several count in this order
    #[arg(long, value_name = "FILE")]
    #[serde(default)]
    pub env_file: Vec<PathBuf>,
    /// What standard input holds, where `-f -` asks for it.
    #[arg(skip)]
    #[serde(default)]
    pub stdin: Option<String>,
    /// Services that the command names: their profiles are on.
    #[arg(skip)]
    #[serde(default)]
    pub named: Vec<String>,
}

impl ProjectArgs {
    /// What was said before the verb and after it, together.
    pub(crate) fn and(mut self, later: Self) -> Self {
        self.file.extend(later.file);
        self.profile.extend(later.profile);
        self.project_name = later.project_name.or(self.project_name);
        self.project_directory = later.project_directory.or(self.project_directory);
        self.env_file.extend(later.env_file);
        if self.file.iter().any(|file| file.as_os_str() == "-") {
            self.stdin = Some(crate::compose::standard_input());
        }
        self
    }

    /// With the profiles on of the services that the command names.
    pub(crate) fn naming(self, services: &[String]) -> Self {
        Self { named: services.to_vec(), ..self }
    }
}

/// What is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub(crate) enum Verb {
    /// Says that the agent is there.
    Ping,
    /// Replace the running agent by the client's binary.
    Replace,
    /// `kiln lock`.
    Lock {
        project: ProjectArgs,
        update: bool,
        /// What is updated; all, if it is empty.
        #[serde(default)]
        names: Vec<String>,
        /// Get what the lock names.
        #[serde(default)]
        fetch: bool,
    },
    /// `kiln pull`.
    Pull { project: ProjectArgs, services: Vec<String> },
    /// `kiln bake`.
    Bake { project: ProjectArgs, services: Vec<String> },
    /// `kiln export`. What is written to follows as a file descriptor: an empty or new folder, or a
    /// file; `output` is for messages. What the agent makes in a folder belongs to `owner`.
    Export {
        project: ProjectArgs,
        services: Vec<String>,
        image: Option<String>,
        release: Option<String>,
        name: Option<String>,
        format: kiln_oci::Format,
        compression: kiln_oci::Compression,
        output: PathBuf,
        owner: kiln_oci::Owner,
    },
    /// `kiln import`. What is read follows as a file descriptor; `path` is for messages.
    Import { path: PathBuf, select: Option<String>, name: Option<String> },
    /// `kiln import --remove`.
    Forget { name: String },
    /// `kiln verify`. What is compared `against` follows as a file descriptor; the path is for messages.
    Verify {
        project: ProjectArgs,
        services: Vec<String>,
        deep: bool,
        against: Option<PathBuf>,
        #[serde(default)]
        strict: bool,
    },
    /// `kiln release`.
    Release { project: ProjectArgs, commit: Option<String>, env: Vec<String> },
    /// `kiln diff`. What is folded is the client's business.
    Diff { project: ProjectArgs, names: Vec<String>, text: bool, files: bool, all: bool },
    /// `kiln up`.
    Up {
        project: ProjectArgs,
        timeout: Option<u64>,
        #[serde(default)]
        renew: bool,
        #[serde(default)]
        take_over: bool,
        #[serde(default)]
        strict: bool,
        /// Only these, with what they depend on.
        #[serde(default)]
        services: Vec<String>,
    },
    /// `kiln up --learn`.
    Learn { project: ProjectArgs, service: String, timeout: Option<u64> },
    /// `kiln plan`.
    Plan { project: ProjectArgs, stage: String },
    /// `kiln rollback`.
    Rollback { project: ProjectArgs, stage: String, release: Option<String>, timeout: Option<u64> },
    /// `kiln releases`.
    Releases { project: ProjectArgs, stage: String },
    /// `kiln ps`.
    Ps { project: ProjectArgs, all: bool },
    /// `kiln status`.
    Status { project: ProjectArgs, stage: String },
    /// `kiln logs`.
    Logs {
        project: ProjectArgs,
        stage: String,
        services: Vec<String>,
        follow: bool,
        /// Only the last lines of each service.
        tail: Option<usize>,
        /// Nothing from before, and nothing from after: nanoseconds since the Unix epoch.
        #[serde(default)]
        since: Option<u64>,
        #[serde(default)]
        until: Option<u64>,
        /// The client shows times.
        #[serde(default)]
        timestamps: bool,
    },
    /// `kiln cp`. A pipe follows as a file descriptor; [`CopiedEntry`]s are written into it.
    Copy { project: ProjectArgs, stage: String, service: String, path: String },
    /// `kiln port`.
    Port {
        project: ProjectArgs,
        stage: String,
        service: String,
        target: Option<u16>,
        protocol: Option<Protocol>,
    },
    /// `kiln ls`. With `quiet`, the client shows names only.
    Ls { all: bool, quiet: bool },
    /// `kiln wait`.
    Wait { project: ProjectArgs, stage: String, services: Vec<String> },
    /// `kiln stats`: a table each second, or one.
    Stats { project: ProjectArgs, services: Vec<String>, all: bool, stream: bool },
    /// `kiln restart`.
    Restart { project: ProjectArgs, stage: String, services: Vec<String>, timeout: Option<u64> },
    /// `kiln exec`. The ends of three pipes follow as file descriptors: for standard input, output
    /// and error. With `terminal` (rows, columns), the command gets one, relayed over the first two.
    Exec {
        project: ProjectArgs,
        stage: String,
        service: String,
        argv: Vec<String>,
        env: Vec<String>,
        user: Option<String>,
        workdir: Option<String>,
        terminal: Option<(u16, u16)>,
    },
    /// `kiln run`. As for `exec`; without `argv` it is the service's own.
    Run {
        project: ProjectArgs,
        /// Nothing is started that it depends on.
        #[serde(default)]
        no_deps: bool,
        stage: String,
        service: String,
        argv: Vec<String>,
        env: Vec<String>,
        user: Option<String>,
        workdir: Option<String>,
        terminal: Option<(u16, u16)>,
    },
    /// `kiln history`.
    History { project: ProjectArgs, stage: Option<String>, limit: Option<usize>, all: bool },
    /// `kiln down`.
    Down { project: ProjectArgs, stage: String, volumes: bool },
    /// `kiln images`.
    Images,
    /// `kiln fsck`.
    Fsck { repair: bool },
    /// `kiln gc`.
    Gc {
        dry_run: bool,
        /// For how many days what nothing needs stays.
        unused: Option<u64>,
    },
    /// `kiln shutdown`.
    Shutdown,
}

impl Verb {
    /// How many file descriptors follow the request.
    pub(crate) fn descriptors(&self) -> usize {
        match self {
            Self::Exec { .. } | Self::Run { .. } => 3,
            Self::Copy { .. } => 1,
            Self::Export { .. } | Self::Import { .. } | Self::Verify { against: Some(_), .. } => 1,
            _ => 0,
        }
    }
}

/// What `kiln cp` sends through its pipe, a line each. Behind the line of a file comes its content in
/// pieces: the length in four bytes, little endian, then as many bytes; a length of 0 is the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum CopiedEntry {
    /// A folder; its entries follow. Paths are bytes, and relative to what is copied.
    Folder { path: Vec<u8>, mode: u32, seconds: i64 },
    /// A file.
    File { path: Vec<u8>, mode: u32, seconds: i64, length: u64 },
    /// A symbolic link.
    Link { path: Vec<u8>, target: Vec<u8> },
    /// All is said.
    End,
}

/// What a client may say while its request is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub(crate) enum Order {
    /// The terminal has another size now.
    Resize { rows: u16, columns: u16 },
    /// The answer to the question with this number.
    Reply { number: u64, reply: Box<Reply> },
}

/// What the agent asks of its client while a request is under way: what only the user's own process
/// may look up, for the agent opens no file of a user's and runs no program of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "about", rename_all = "snake_case")]
pub(crate) enum Question {
    /// What the host's files say about registries.
    Registries,
    /// With which name and password the user has logged in there.
    Credential { registry: String, repository: String },
}

/// The answer to a [`Question`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    Registries(Registries),
    Credential(Option<Credential>),
    /// It could not be looked up.
    Failed {
        what: String,
        /// Whether the user has to edit a file.
        usage: bool,
    },
}

/// One line of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// Something on the way has begun, gone on or ended.
    Progress(Progress),
    /// A sentence for the user: a notice or a warning.
    Notice { text: String },
    /// One object of a stream (`logs`, `history`).
    Item { item: Value },
    /// Something that the client has to answer, by [`Order::Reply`].
    Ask { number: u64, question: Question },
    /// The end: done.
    Done { exit: Exit, data: Value },
    /// The end: not done.
    Failed(Report),
}

/// One node of the tree that a person watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// The phase: `bake`, `start`, `switch` …
    pub phase: String,
    /// What it is about: a service, a base.
    pub name: String,
    /// How it stands.
    pub state: State,
    /// In words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Milliseconds since it began, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
}

/// How a [`Progress`] stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Under way.
    Running,
    /// Done.
    Done,
    /// There was nothing to do.
    Kept,
    /// Failed.
    Failed,
}
