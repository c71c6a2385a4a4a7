//! What a source of ADD names: a URL, or a repository with reference and folder. The forms are
//! those of BuildKit's `dfgitutil` and `gitutil`.

use std::collections::BTreeMap;

use crate::error::RemoteError;

/// What is to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A file behind `http:` or `https:`.
    Url(String),
    /// A repository.
    Git(GitReference),
}

/// A repository, and what of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitReference {
    /// What Git is told.
    pub remote: String,
    /// Branch, tag, full reference or commit; empty for the default branch.
    pub name: String,
    /// Folder inside of it, clean and without slashes around it; empty for all.
    pub subdir: String,
    /// Beginning of the commit's (or tag's) hash that it has to have, in lower case.
    pub checksum: Option<String>,
    /// Whether `.git` is kept, where the text says so.
    pub keep_git_dir: Option<bool>,
    /// Whether submodules are left out.
    pub no_submodules: bool,
    /// Whether `checksum` says which commit it is, and the name is but a name.
    pub fetch_by_commit: bool,
}

impl Reference {
    /// Reads a source; `None` if it is a path.
    ///
    /// # Errors
    /// [`RemoteError::Reference`].
    pub fn parse(text: &str) -> Result<Option<Self>, RemoteError> {
        let Some((scheme, rest)) = scheme(text) else {
            return scp(text)?.map(|git| Ok(Self::Git(git))).transpose();
        };
        let web = matches!(scheme.as_str(), "http" | "https");
        if !web && !matches!(scheme.as_str(), "git" | "ssh") {
            return Ok(None);
        }
        let path = rest.split(['?', '#']).next().unwrap_or_default();
        if web && !(path.contains('/') && path.ends_with(".git")) {
            return Ok(Some(Self::Url(text.to_owned())));
        }
        git(text, format!("{scheme}://{rest}")).map(|git| Some(Self::Git(git)))
    }
}

/// Scheme in lower case, and what follows `://`.
fn scheme(text: &str) -> Option<(String, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let valid = !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
    valid.then(|| (scheme.to_ascii_lowercase(), rest))
}

/// `user@host:path`, as scp writes it.
fn scp(text: &str) -> Result<Option<GitReference>, RemoteError> {
    let Some((user, rest)) = text.split_once('@') else { return Ok(None) };
    let Some((host, _)) = rest.split_once(':') else { return Ok(None) };
    let fits = |text: &str, more: &str| {
        let known = |letter: char| letter.is_ascii_alphanumeric() || more.contains(letter);
        !text.is_empty() && text.chars().all(known)
    };
    if !fits(user, "-_") || !fits(host, "-.") {
        return Ok(None);
    }
    git(text, text.to_owned()).map(Some)
}

fn git(text: &str, whole: String) -> Result<GitReference, RemoteError> {
    let fail = |what: String| RemoteError::reference(text, what);
    let (rest, fragment) = whole.split_once('#').unwrap_or((&whole, ""));
    let (remote, query) = rest.split_once('?').unwrap_or((rest, ""));
    if remote.starts_with('-') || remote.chars().any(char::is_control) {
        return Err(fail("that is no address".into()));
    }
    let (name, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    let decoded = |text: &str| decode(text).ok_or_else(|| fail(format!("`{text}` is not UTF-8")));
    let mut git = GitReference {
        remote: remote.to_owned(),
        name: decoded(name)?,
        subdir: clean(&decoded(subdir)?),
        ..GitReference::default()
    };
    git.query(query).map_err(fail)?;
    let bad =
        |letter: char| letter.is_whitespace() || letter.is_control() || "~^:?*[\\".contains(letter);
    if git.name.starts_with('-') || git.name.contains("..") || git.name.contains(bad) {
        return Err(fail(format!("`{}` is no name of a branch, tag or commit", git.name)));
    }
    Ok(git)
}

impl GitReference {
    fn query(&mut self, query: &str) -> Result<(), String> {
        let mut keys: BTreeMap<String, String> = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(&value.replace('+', " ")).ok_or("the query is not UTF-8")?;
            if keys.insert(key.to_owned(), value).is_some() {
                return Err(format!("query \"{key}\" has multiple values"));
            }
        }
        let mut full: Option<String> = None;
        for (key, value) in keys {
            let truth = || match value.as_str() {
                "" | "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
                "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
                other => Err(format!("invalid {key} value: \"{other}\"")),
            };
            let bare = ["keep-git-dir", "submodules", "fetch-by-commit"];
            if value.is_empty() && !bare.contains(&key.as_str()) {
                return Err(format!("query \"{key}\" has no value"));
            }
            match key.as_str() {
                "ref" => conflict("ref", &mut self.name, value)?,
                "subdir" => conflict("subdir", &mut self.subdir, clean(&value))?,
                "checksum" | "commit" => self.checksum = Some(checksum(&value)?),
                "keep-git-dir" => self.keep_git_dir = Some(truth()?),
                "submodules" => self.no_submodules = !truth()?,
                "fetch-by-commit" => self.fetch_by_commit = truth()?,
                // Times are no part of an image.
                "mtime" if matches!(value.as_str(), "checkout" | "commit") => {}
                "mtime" => {
                    return Err(format!(
                        "invalid mtime value: \"{value}\" (must be \"checkout\" or \"commit\")"
                    ));
                }
                "tag" | "branch" => {
                    let prefix = if key == "tag" { "refs/tags/" } else { "refs/heads/" };
                    let name = value.strip_prefix(prefix).unwrap_or(&value);
                    if full.replace(format!("{prefix}{name}")).is_some() {
                        return Err("branch conflicts with tag".into());
                    }
                }
                _ => return Err(format!("unexpected query \"{key}\"")),
            }
        }
        match full {
            Some(full) => conflict("ref", &mut self.name, full),
            None => Ok(()),
        }
    }

    /// The commit that the text itself pins, with the full name of its branch or tag, which is
    /// empty if there is none: a name that is a whole hash, or `fetch-by-commit`.
    ///
    /// # Errors
    /// `fetch-by-commit` without a whole hash.
    pub fn own_commit(&self) -> Result<Option<(String, String)>, RemoteError> {
        if is_hash(&self.name) {
            return Ok(Some((self.name.clone(), String::new())));
        }
        if !self.fetch_by_commit {
            return Ok(None);
        }
        let fail = |what: String| RemoteError::reference(&self.remote, what);
        let Some(commit) = self.checksum.clone() else {
            return Err(fail("fetch-by-commit requires a checksum or a commit SHA ref".into()));
        };
        if !is_hash(&commit) {
            let what =
                format!("fetch-by-commit requires a full commit SHA checksum, got \"{commit}\"");
            return Err(fail(what));
        }
        let full = match self.name.as_str() {
            "" => String::new(),
            full if full.starts_with("refs/") => full.to_owned(),
            branch => format!("refs/heads/{branch}"),
        };
        Ok(Some((commit, full)))
    }
}

/// A whole SHA-1 or SHA-256 in hex.
pub fn is_hash(text: &str) -> bool {
    let hex = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    hex && matches!(text.len(), 40 | 64)
}

/// The beginning of a commit's hash.
///
/// # Errors
/// It is none.
pub fn checksum(text: &str) -> Result<String, String> {
    let hex = !text.is_empty() && text.len() <= 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    if hex {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!("invalid checksum `{text}` for a Git repository, expected a hex commit hash"))
}

fn conflict(what: &str, old: &mut String, new: String) -> Result<(), String> {
    if !old.is_empty() && *old != new {
        return Err(format!("{what} conflicts: `{old}` and `{new}`"));
    }
    *old = new;
    Ok(())
}

/// A path below a top that it cannot leave: without empty parts, `.` and `..`.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Undoes percent-encoding.
pub fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(out).ok()
}

/// The file's name that a URL ends with.
pub fn file_name(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once('/').map_or("", |(_, path)| path);
    let clean = clean(&decode(path).unwrap_or_default());
    match clean.rsplit('/').next() {
        Some(name) if !name.is_empty() && name.len() <= 255 && !name.contains('\0') => name.into(),
        _ => "__unnamed__".into(),
    }
}

/// Without the password in front of the host, if there is one.
pub fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    match authority.rsplit_once('@').and_then(|(user, host)| Some((user.split_once(':')?.0, host)))
    {
        Some((user, host)) => format!("{scheme}://{user}:xxxxx@{host}{path}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Option<Reference>, String> {
        Reference::parse(text).map_err(|error| error.to_string())
    }

    fn git(text: &str) -> GitReference {
        match parsed(text) {
            Ok(Some(Reference::Git(git))) => git,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn what_is_what() {
        for path in ["a/b.git", "./x", "file:///x.git", "oci://x", "a@b", "C:x", "github.com/a/b"] {
            assert_eq!(parsed(path), Ok(None), "{path}");
        }
        for url in
            ["https://h/x", "http://h/.gitx", "https://h/x.git/y", "HTTP://h", "https://x.git"]
        {
            assert_eq!(parsed(url), Ok(Some(Reference::Url(url.into()))));
        }
        for (text, remote, name, subdir) in [
            ("https://h/x.git", "https://h/x.git", "", ""),
            ("https://h/.git#v1", "https://h/.git", "v1", ""),
            ("https://h/x.git#a/b:/c/../d/", "https://h/x.git", "a/b", "d"),
            ("git://h/x#:y", "git://h/x", "", "y"),
            ("ssh://git@h:22/x", "ssh://git@h:22/x", "", ""),
            ("git@h.org:a/b.git#main", "git@h.org:a/b.git", "main", ""),
            ("me@h:x?ref=dev", "me@h:x", "dev", ""),
            ("https://h/x.git?tag=v1&subdir=../d", "https://h/x.git", "refs/tags/v1", "d"),
            ("https://h/x.git?branch=a%2Fb", "https://h/x.git", "refs/heads/a/b", ""),
            ("https://h/x.git?tag=v1#refs/tags/v1", "https://h/x.git", "refs/tags/v1", ""),
        ] {
            let git = git(text);
            let found = (git.remote.as_str(), git.name.as_str(), git.subdir.as_str());
            assert_eq!(found, (remote, name, subdir), "{text}");
        }
    }

    #[test]
    fn options() {
        let all = git("https://h/x.git?commit=ABC1&keep-git-dir&submodules=false&mtime=commit");
        assert_eq!(all.checksum.as_deref(), Some("abc1"));
        assert_eq!((all.keep_git_dir, all.no_submodules), (Some(true), true));
        for (text, what) in [
            ("https://h/x.git?tag=a&branch=b", "conflicts"),
            ("https://h/x.git?tag=v1#refs/heads/m", "ref conflicts"),
            ("https://h/x.git?ref=a&ref=b", "has multiple values"),
            ("https://h/x.git?ref=", "query \"ref\" has no value"),
            ("https://h/x.git?depth=1", "unexpected query \"depth\""),
            ("https://h/x.git?mtime=now", "invalid mtime value"),
            ("https://h/x.git?fetch-by-commit=now", "invalid fetch-by-commit value"),
            ("https://h/x.git?commit=xyz", "invalid checksum"),
            ("https://h/x.git#-upload-pack", "no name of a branch"),
            ("https://h/x.git#a b", "no name of a branch"),
            ("https://h/x.git?keep-git-dir=2", "invalid keep-git-dir value"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }

    #[test]
    fn commits_that_pin_themselves() {
        let hash = "a".repeat(40);
        let own = |rest: &str| {
            let own = git(&format!("https://h/x.git{rest}")).own_commit();
            own.map_err(|error| error.to_string())
        };
        assert_eq!(own("#main"), Ok(None));
        assert_eq!(own(&format!("#{hash}")), Ok(Some((hash.clone(), String::new()))));
        let by_commit = format!("?fetch-by-commit&checksum={hash}");
        assert_eq!(own(&by_commit), Ok(Some((hash.clone(), String::new()))));
        let named = Ok(Some((hash, "refs/heads/b".to_owned())));
        assert_eq!(own(&format!("{by_commit}#b")), named);
        assert!(own("?fetch-by-commit#b").unwrap_err().contains("requires a checksum"));
        let short = own("?fetch-by-commit=1&commit=abc").unwrap_err();
        assert!(short.contains("requires a full commit SHA checksum, got \"abc\""), "{short}");
    }

    #[test]
    fn names_and_passwords() {
        for (url, name) in [
            ("http://h/a/foo.tgz?x=/y#z", "foo.tgz"),
            ("http://h/a%20b", "a b"),
            ("http://h", "__unnamed__"),
            ("http://h/", "__unnamed__"),
            ("http://h/a/", "a"),
            ("http://h/a/..", "__unnamed__"),
            ("http://h/%2e%2e%2fetc%2fpasswd", "passwd"),
        ] {
            assert_eq!(file_name(url), name, "{url}");
        }
        assert_eq!(redacted("https://me:pw@h/x@y"), "https://me:xxxxx@h/x@y");
        assert_eq!(redacted("https://me@h/x:y@z"), "https://me@h/x:y@z");
    }
}
