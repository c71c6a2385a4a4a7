//! Exit codes. They are public: scripts depend on them.

/// How a verb ended. The discriminant is the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Could not: something failed on the way.
    Failed = 1,
    /// Wrong usage or configuration: the user has to edit something.
    Usage = 2,
    /// Drift, difference or divergence found.
    Difference = 3,
    /// Refused by a gate: health, test, quarantine.
    Refused = 4,
    /// A bug in Kiln.
    Bug = 70,
}

impl Exit {
    /// The process exit code.
    pub const fn code(self) -> u8 {
        self as u8
    }
}
