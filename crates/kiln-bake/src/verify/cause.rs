//! Why a step does not give the same bits twice, in plain words, and what usually cures it.

use serde::{Deserialize, Serialize};

/// A probable cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The clock: a date, seconds since the epoch, the time that something took.
    Time,
    /// A random value: a UUID, a nonce, the name of a temporary file.
    Random,
    /// A key or certificate that the step makes.
    Key,
    /// A log.
    Log,
    /// A cache that a program keeps for itself.
    Cache,
    /// The order in which a directory lists its names.
    DirectoryOrder,
    /// What the file system gives: an inode, the size of a folder, room that is free.
    FileSystem,
    /// What the machine is: its memory, its processors, its kernel, its boot.
    Machine,
    /// The order of a hash table with a random seed, or of work that is done in parallel.
    Order,
    /// A process id.
    Pid,
    /// The number of processors.
    Cores,
    /// A build id: a digest over something else that differs.
    BuildId,
    /// Words, numbers or an order as a locale has them.
    Locale,
    /// An address in memory.
    Address,
    /// A race: it depends on the load of the machine.
    Race,
    /// The step succeeded once and failed once.
    Failure,
    /// Kiln itself gave two answers.
    Kiln,
    /// Nothing that is known.
    Unknown,
}

impl Cause {
    /// What it is, as a person says it.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Time => "time stamp",
            Self::Random => "random value",
            Self::Key => "key or certificate",
            Self::Log => "log",
            Self::Cache => "cache",
            Self::DirectoryOrder => "directory order",
            Self::FileSystem => "what the file system gives",
            Self::Machine => "what the machine is",
            Self::Order => "order of a hash table or of parallel work",
            Self::Pid => "process id",
            Self::Cores => "number of cores",
            Self::BuildId => "build id",
            Self::Locale => "locale",
            Self::Address => "address in memory",
            Self::Race => "race",
            Self::Failure => "fails now and then",
            Self::Kiln => "a bug in Kiln",
            Self::Unknown => "unknown: here are the bytes",
        }
    }

    /// What usually cures it.
    pub const fn cure(self) -> &'static str {
        match self {
            Self::Time => {
                "have it take the time from SOURCE_DATE_EPOCH, which every step sees, or leave it \
                 out: `date -d @$SOURCE_DATE_EPOCH`, `gzip -n`, `ar D`, `zip -X` after `touch -d \
                 @$SOURCE_DATE_EPOCH`, `tar --mtime=@$SOURCE_DATE_EPOCH`, GIT_AUTHOR_DATE and \
                 GIT_COMMITTER_DATE for a commit, no __DATE__ and __TIME__"
            }
            Self::Random => {
                "derive it from what is built (a digest, a fixed seed), or make it when an \
                 instance first starts; temporary files belong into /tmp and are removed"
            }
            Self::Key => {
                "make it when an instance first starts, or give it as a secret: a key in an image \
                 is everybody's key"
            }
            Self::Log => "remove it at the end of the step, or write it to /dev/stdout",
            Self::Cache => {
                "remove it at the end of the step, or switch it off: PYTHONDONTWRITEBYTECODE=1, \
                 `pip --no-cache-dir`, `npm --cache /tmp/npm`"
            }
            Self::DirectoryOrder => {
                "sort: `find … | sort`, `tar --sort=name`, `$(sort $(wildcard *.c))` in make, \
                 `sorted(os.listdir())`; a shell's `*` is sorted already"
            }
            Self::FileSystem => {
                "do not write down inode numbers, the sizes of folders or the room that is left: \
                 no `ls -l` of a folder, `stat`, `du` or `df` into a file; sort what lists a folder"
            }
            Self::Machine => {
                "do not write down what /proc tells of the machine, or what follows from it: give \
                 the number instead"
            }
            Self::Order => {
                "fix the seed (PYTHONHASHSEED=0, PERL_HASH_SEED=0), sort what is written, or do \
                 the work one after the other (`make -j1`)"
            }
            Self::Pid => "no `$$` and no getpid() in names or contents: use a fixed name",
            Self::Cores => {
                "give the number instead of asking for it (`make -j4`, `--threads=4`), and see \
                 that it does not get into what is built"
            }
            Self::BuildId => {
                "find what it is taken over: mostly paths or times in debugging information \
                 (-ffile-prefix-map=$PWD=., -g0); or leave it out: -Wl,--build-id=none"
            }
            Self::Locale => {
                "say which locale: every step has LC_ALL=C.UTF-8 unless it sets another"
            }
            Self::Address => {
                "do not write pointers down: no `%p`, no default repr() of an object; order by \
                 name, not by address"
            }
            Self::Race => {
                "let things wait for one another: `wait`, or `make -j1` to see whether the rules \
                 lack a dependency"
            }
            Self::Failure => "find out why it fails: its last lines are shown",
            Self::Kiln => "please report it, with the Dockerfile",
            Self::Unknown => "compare the two values, and what the step's program puts there",
        }
    }
}

/// A cause and how it was recognised.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The cause.
    pub cause: Cause,
    /// What shows it, in one clause: `both are the second in which the step ran`.
    pub evidence: String,
}

impl Finding {
    pub(crate) fn new(cause: Cause, evidence: impl Into<String>) -> Self {
        Self { cause, evidence: evidence.into() }
    }

    /// With words in front of the evidence.
    pub(crate) fn within(mut self, what: &str) -> Self {
        self.evidence = format!("{what}: {}", self.evidence);
        self
    }
}
