//! `build`: where an image is baked from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::ComposeError;
use super::files::Shared;
use super::keys;
use super::model::{Build, BuildSecret};
use super::project::Sections;
use super::reader::{At, clean};

/// Reads `build`; its short form was made long before.
pub(super) fn read(at: &At<'_>, sections: &Sections) -> Result<Build, ComposeError> {
    let mut build = Build { context: at.cx.dir.clone(), ..Build::default() };
    let mut dockerfile = None;
    for key in at.entries()? {
        if super::project::is_false(&key) && matches!(key.key(), "privileged" | "no_cache" | "pull")
        {
            key.list();
            continue;
        }
        if !keys::BUILD.admit(&key)? || key.is_unset() {
            continue;
        }
        match key.key() {
            "context" => build.context = context(&key, &key.text()?)?,
            "dockerfile" => dockerfile = Some(key.text()?),
            "dockerfile_inline" => build.inline = Some(key.text()?),
            "args" => build.args = args(&key)?,
            "target" => build.target = Some(key.text()?),
            "labels" => build.labels = labels(&key)?,
            "network" => build.network = network(&key)?,
            "platforms" => platforms(&key)?,
            "secrets" => build.secrets = secrets(&key, &sections.secrets)?,
            "shm_size" => build.shm_size = Some(key.bytes()?),
            "ssh" => build.ssh = ssh(&key)?,
            "ulimits" => build.ulimits = super::limits::ulimits(&key)?,
            _ => build.additional_contexts = additional(&key)?,
        }
    }
    if let (Some(_), Some(at)) = (&dockerfile, at.get("dockerfile_inline"))
        && build.inline.is_some()
    {
        return Err(at
            .refuse("`dockerfile_inline` stands beside `dockerfile`")
            .with_hint("keep one"));
    }
    let dockerfile = dockerfile.as_deref().unwrap_or("Dockerfile");
    build.dockerfile = match build.context.is_absolute() {
        true => clean(&build.context.join(dockerfile)),
        // In what will be fetched.
        false => dockerfile.into(),
    };
    Ok(build)
}

/// Texts that begin so name something that has to be fetched, as in Compose.
const ADDRESSES: [&str; 6] = ["https://", "http://", "git://", "ssh://", "github.com/", "git@"];

/// An absolute directory, or an address as it stands there, which is no absolute path.
fn context(at: &At<'_>, text: &str) -> Result<PathBuf, ComposeError> {
    if ADDRESSES.iter().any(|start| text.starts_with(start)) {
        return Ok(text.into());
    }
    if text.contains("://") {
        return Err(at
            .error(format!(
                "`{text}` is no context: it is neither a path nor an address of Git or HTTP"
            ))
            .with_hint("write `https://….git#ref:folder`, the address of a tar, or a directory"));
    }
    Ok(at.cx.absolute(text))
}

/// An argument without a value takes that of the process environment or `.env`, if there is one.
fn args(at: &At<'_>) -> Result<BTreeMap<String, Option<String>>, ComposeError> {
    let mut args = BTreeMap::new();
    for entry in at.entries()? {
        let value = match entry.optional_text()? {
            Some(value) => Some(value),
            None => at.cx.env.get(entry.key()).cloned(),
        };
        args.insert(entry.key().to_owned(), value);
    }
    Ok(args)
}

fn additional(at: &At<'_>) -> Result<BTreeMap<String, String>, ComposeError> {
    let mut contexts = BTreeMap::new();
    for entry in at.entries()? {
        let text = entry.text()?;
        let value = if text.starts_with("service:") || text.starts_with("docker-image://") {
            text
        } else if let Some(layout) = text.strip_prefix("oci-layout://") {
            // What stands behind the path, `:NAME` or `@DIGEST`, stays there.
            format!("oci-layout://{}", at.cx.absolute(layout).display())
        } else {
            context(&entry, &text)?.display().to_string()
        };
        contexts.insert(entry.key().to_owned(), value);
    }
    Ok(contexts)
}

fn labels(at: &At<'_>) -> Result<BTreeMap<String, String>, ComposeError> {
    at.entries()?
        .map(|entry| Ok((entry.key().to_owned(), entry.optional_text()?.unwrap_or_default())))
        .collect()
}

/// Whether RUNs that do not say have a network. Other than in Compose, they have none if this key
/// does not stand there.
fn network(at: &At<'_>) -> Result<bool, ComposeError> {
    match at.text()?.as_str() {
        "default" => Ok(true),
        "none" => Ok(false),
        "host" => Err(at
            .refuse("`host` is refused: a step would see all that listens on the host")
            .with_hint("write `default`")),
        other => Err(at
            .refuse(format!("`{other}` is no network of a build"))
            .with_hint("write `default` or `none`")),
    }
}

/// Only this machine's own platform can be built for; where it is among them, the others are
/// other machines' business.
fn platforms(at: &At<'_>) -> Result<(), ComposeError> {
    let texts = at.texts()?;
    let (own, others): (Vec<_>, Vec<_>) =
        at.items()?.zip(&texts).partition(|(_, text)| is_own(text));
    for (item, _) in others {
        match own.is_empty() {
            true => at.cx.refuse(platform(&item).err().unwrap_or_else(|| item.expected("text"))),
            false => item.list_as("baked for this machine only"),
        }
    }
    Ok(())
}

/// This machine's architecture, in the words of images.
fn architecture() -> &'static str {
    words_of_images(std::env::consts::ARCH)
}

fn words_of_images(arch: &str) -> &str {
    match arch {
        "x86_64" | "x86-64" => "amd64",
        "aarch64" => "arm64",
        "x86" | "i386" => "386",
        other => other,
    }
}

/// Whether a platform is this machine's own: `linux/amd64`, also `linux/x86_64`, `amd64`, `linux`.
fn is_own(platform: &str) -> bool {
    let lower = platform.to_ascii_lowercase();
    let parts: Vec<&str> = lower.split('/').collect();
    let is_arch = |text: &str| words_of_images(text) == architecture();
    match parts[..] {
        ["" | "linux"] => true,
        [one] => is_arch(one),
        ["linux", arch] => is_arch(arch),
        ["linux", arch, "v8"] => architecture() == "arm64" && is_arch(arch),
        _ => false,
    }
}

/// Only what is for this machine can be run on it.
pub(super) fn platform(item: &At<'_>) -> Result<(), ComposeError> {
    let own = format!("linux/{}", architecture());
    let platform = item.text()?;
    if is_own(&platform) {
        return Ok(());
    }
    Err(item
        .refuse(format!("`{platform}` is not this machine's platform, which is `{own}`"))
        .with_hint("bake on a machine of that platform"))
}

/// The short form is a name; in the long form `target` is the id that the Dockerfile asks for.
fn secrets(at: &At<'_>, shared: &Shared) -> Result<BTreeMap<String, BuildSecret>, ComposeError> {
    let mut secrets = BTreeMap::new();
    for item in at.items()? {
        let (mut name, mut id) = (None, None);
        let (mut uid, mut gid, mut mode) = (None, None, None);
        if item.is_map() {
            for key in item.entries()? {
                if !keys::BUILD_SECRET.admit(&key)? || key.is_unset() {
                    continue;
                }
                match key.key() {
                    "source" => name = Some(key.text()?),
                    "target" => id = Some(key.text()?),
                    "uid" => uid = Some(key.number("a numeric user")?),
                    "gid" => gid = Some(key.number("a numeric group")?),
                    _ => mode = Some(key.mode()?),
                }
            }
        } else {
            name = Some(item.text()?);
        }
        let Some(name) = name else { return Err(item.error("`source` is missing")) };
        let source = super::files::named(&item, shared, &name, true)?.clone();
        // A later file's entry counts before an earlier one's.
        secrets.insert(id.unwrap_or(name), BuildSecret { source, uid, gid, mode });
    }
    Ok(secrets)
}

/// `default`, or `id=path` of a socket.
fn ssh(at: &At<'_>) -> Result<BTreeMap<String, PathBuf>, ComposeError> {
    let mut agents = BTreeMap::new();
    for entry in at.entries()? {
        let id = entry.key();
        let path = match entry.optional_text()? {
            Some(text) if !text.is_empty() => at.cx.absolute(&text),
            _ if id == "default" => {
                let socket = at.cx.env.get("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty());
                // Whoever needs it is told; others can do without.
                socket.map_or_else(|| "$SSH_AUTH_SOCK".into(), |socket| at.cx.absolute(socket))
            }
            _ => {
                return Err(entry
                    .error(format!("the agent `{id}` has no socket"))
                    .with_hint(format!("write `{id}=/path/to/socket`")));
            }
        };
        agents.insert(id.to_owned(), path);
    }
    Ok(agents)
}
