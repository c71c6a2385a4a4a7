//! What can go wrong at a registry.

use std::io;

/// Why a registry did not give what was asked for. What strangers say is shortened, and nothing in
/// it controls a terminal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text that names no image.
    #[error("`{text}` names no image: {what}")]
    Reference {
        /// As it was written.
        text: String,
        /// What is wrong with it.
        what: String,
    },
    /// A file of the host that cannot be used.
    #[error("{path}: {what}")]
    Configuration {
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// The host's files forbid it.
    #[error("`{name}` is blocked by {path}")]
    Blocked {
        /// What was asked for.
        name: String,
        /// Where that stands.
        path: String,
    },
    /// The registry does not have it.
    #[error("{name}: {registry} has no such image{said}")]
    NotFound {
        /// What was asked for.
        name: String,
        /// Who was asked.
        registry: String,
        /// What it said, with `: ` in front; or nothing.
        said: String,
    },
    /// The registry does not give it to this user.
    #[error("{name}: {registry} gives no access{said}")]
    Denied {
        /// What was asked for.
        name: String,
        /// Who was asked.
        registry: String,
        /// What it said, with `: ` in front; or nothing.
        said: String,
        /// Whether a name and a password were given.
        with_credentials: bool,
    },
    /// Too much was asked of it.
    #[error("{name}: {registry} is asked too often{said}")]
    Limited {
        /// What was asked for.
        name: String,
        /// Who was asked.
        registry: String,
        /// What it said, with `: ` in front; or nothing.
        said: String,
    },
    /// An answer that is none.
    #[error("{name}: {url}: {what}")]
    Answer {
        /// What was asked for.
        name: String,
        /// The address.
        url: String,
        /// What was answered.
        what: String,
    },
    /// An answer that broke off: another try may go better.
    #[error("{name}: {url}: the answer breaks off: {what}")]
    Broken {
        /// What was asked for.
        name: String,
        /// The address.
        url: String,
        /// How.
        what: String,
    },
    /// Nobody answers.
    #[error("{name}: {url} cannot be reached: {what}")]
    Unreachable {
        /// What was asked for.
        name: String,
        /// The address.
        url: String,
        /// What failed.
        what: String,
    },
    /// Content that is not what it has to be.
    #[error("{name}: {url} gave something else: {what}")]
    Differs {
        /// What was asked for.
        name: String,
        /// The address.
        url: String,
        /// What was found, what was expected.
        what: String,
    },
    /// A kind of manifest that is not supported.
    #[error("{name} is {what}, which Kiln does not read")]
    Kind {
        /// What was asked for.
        name: String,
        /// `an image by Docker's schema 1`.
        what: String,
    },
    /// A credential helper failed.
    #[error("the credentials for {registry}: {what}")]
    Credentials {
        /// Whose.
        registry: String,
        /// What failed.
        what: String,
    },
    /// This very machine failed.
    #[error("{0}")]
    Host(String),
    /// What another process, which looked it up, has said.
    #[error("{what}")]
    Told {
        /// Its words.
        what: String,
        /// Whether the user has to edit a file.
        usage: bool,
    },
    /// None of several places had it.
    #[error("{}", said(.0))]
    Several(Vec<Error>),
    /// Interrupted.
    #[error("interrupted")]
    Cancelled,
}

fn said(errors: &[Error]) -> String {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

impl Error {
    pub(super) fn reference(text: &str, what: impl Into<String>) -> Self {
        Self::Reference { text: clean(text, 300), what: what.into() }
    }

    /// What is wrong, for a sentence that has named the image already.
    pub fn without_name(&self) -> String {
        if let Self::Several(all) = self {
            return all.iter().map(Self::without_name).collect::<Vec<_>>().join("; ");
        }
        let whole = self.to_string();
        let name = match self {
            Self::NotFound { name, .. }
            | Self::Denied { name, .. }
            | Self::Limited { name, .. }
            | Self::Answer { name, .. }
            | Self::Broken { name, .. }
            | Self::Unreachable { name, .. }
            | Self::Differs { name, .. } => name,
            _ => return whole,
        };
        let rest = whole.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix(": "));
        rest.map(str::to_owned).unwrap_or(whole)
    }

    /// The error inside of one that came through a reader.
    pub fn inside(error: &io::Error) -> Option<&Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref())
    }

    /// Whether the user has to edit a file or a command.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Reference { .. } | Self::Configuration { .. } => true,
            Self::Told { usage, .. } => *usage,
            Self::Several(all) => all.iter().any(Self::is_usage),
            _ => false,
        }
    }

    /// Whether the place that was asked simply does not have it, or not for this user.
    pub fn is_absent(&self) -> bool {
        match self {
            Self::NotFound { .. } | Self::Denied { .. } => true,
            Self::Several(all) => all.iter().all(Self::is_absent),
            _ => false,
        }
    }

    /// What to do, where it can be told.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Denied { registry, with_credentials: false, .. } => {
                Some(format!("if it is private, run `kiln login {registry}`; else check its name"))
            }
            Self::Denied { registry, .. } => Some(format!(
                "the name and password that this host has for {registry} do not allow it: check \
                 the image's name, or run `kiln login {registry}` again"
            )),
            Self::NotFound { .. } => Some("check name and tag".to_owned()),
            Self::Limited { registry, .. } => Some(format!(
                "try again later; who has run `kiln login {registry}` may often ask for more"
            )),
            Self::Kind { .. } => Some(
                "push it again with a present-day tool, for example `skopeo copy --format oci`"
                    .to_owned(),
            ),
            Self::Unreachable { what, .. } if what.contains("UnknownIssuer") => Some(
                "if its authority is your own, put its certificate into \
                 /etc/containers/certs.d/HOST:PORT/ca.crt, or name it by SSL_CERT_FILE"
                    .to_owned(),
            ),
            Self::Unreachable { .. } => Some(
                "is the address right, and does this host reach it? Then try again".to_owned(),
            ),
            Self::Answer { .. } | Self::Broken { .. } | Self::Differs { .. } => Some(
                "try again; if that stays so, it is for whoever runs the registry, or a proxy on the \
                 way"
                    .to_owned(),
            ),
            Self::Several(all) => all.iter().find_map(Self::hint),
            _ => None,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}

/// A stranger's text on one line: at most so many characters, and none that controls a terminal.
pub(super) fn clean(text: &str, most: usize) -> String {
    let visible = |letter: char| if letter.is_control() { ' ' } else { letter };
    let mut line: String = text.trim().chars().take(most).map(visible).collect();
    if text.trim().chars().nth(most).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_once() {
        let name = "docker.io/library/nginx:1.27".to_owned();
        let url = "https://registry-1.docker.io/v2/library/nginx/manifests/1.27".to_owned();
        let unreachable =
            Error::Unreachable { name: name.clone(), url: url.clone(), what: "refused".into() };
        assert_eq!(unreachable.without_name(), format!("{url} cannot be reached: refused"));
        let (registry, said) = ("docker.io".to_owned(), String::new());
        let absent = Error::NotFound { name, registry, said };
        assert_eq!(absent.without_name(), "docker.io has no such image");
        let both = Error::Several(vec![absent, unreachable]);
        assert!(!both.without_name().contains("nginx:1.27"), "{}", both.without_name());
        assert!(both.hint().is_some());
        assert_eq!(Error::Cancelled.without_name(), "interrupted");
    }
}
