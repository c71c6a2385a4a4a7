//! COPY and ADD: flags, sources, destination. Nothing is expanded yet.

use super::instruction::Flags;
use super::lines::{Line, heredoc_word};
use super::{Mistake, words};

/// COPY and ADD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copy {
    /// Whether it is an ADD.
    pub add: bool,
    /// `--from`; COPY only.
    pub from: Option<String>,
    /// `--chown`.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<String>,
    /// `--link`.
    pub link: bool,
    /// `--parents`; COPY only.
    pub parents: bool,
    /// Each `--exclude`, in order.
    pub exclude: Vec<String>,
    /// `--checksum`; ADD only.
    pub checksum: Option<String>,
    /// `--keep-git-dir`; ADD only. `None`: not said.
    pub keep_git_dir: Option<bool>,
    /// `--unpack`; ADD only. `None`: not said, so local archives are unpacked, remote ones are not.
    pub unpack: Option<bool>,
    /// Paths to copy; of an ADD also URLs.
    pub sources: Vec<String>,
    /// Files written in the Dockerfile itself.
    pub documents: Vec<Document>,
    /// Where to.
    pub dest: String,
}

/// A here-document that becomes a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its delimiter, which is the file's name if the destination is a directory.
    pub name: String,
    /// Its content, leading tabs removed where `<<-` asks for it.
    pub content: String,
    /// Whether variables in it are replaced.
    pub expand: bool,
}

/// Reads what follows COPY or ADD.
pub(super) fn parse(
    add: bool,
    rest: &str,
    flags: &mut Flags,
    line: &Line,
) -> Result<Copy, Mistake> {
    let name = if add { "ADD" } else { "COPY" };
    let mut args = words::json(rest).unwrap_or_else(|| Ok(words::blanks(rest)))?;
    let dest = match args.pop() {
        Some(dest) if !args.is_empty() => dest,
        _ => {
            let what = format!(
                "{name} requires at least two arguments, but only one was provided. Destination \
                 could not be determined"
            );
            return Err(Mistake::new(what).hint(format!("write `{name} SOURCE… DESTINATION`")));
        }
    };
    if heredoc_word(&dest).ok().flatten().is_some() {
        let what = format!("{name} cannot accept a heredoc as a destination");
        return Err(Mistake::new(what).hint("end with the path of a file or directory"));
    }
    let mut copy = Copy {
        add,
        chown: flags.take("chown")?,
        chmod: flags.take("chmod")?,
        link: flags.take_bool("link")?.unwrap_or(false),
        exclude: flags.take_all("exclude")?,
        dest,
        ..Copy::default()
    };
    if add {
        copy.checksum = flags.take("checksum")?;
        copy.keep_git_dir = flags.take_bool("keep-git-dir")?;
        copy.unpack = flags.take_bool("unpack")?;
    } else {
        copy.from = flags.take("from")?;
        copy.parents = flags.take_bool("parents")?.unwrap_or(false);
    }
    for source in args {
        let heredoc = if line.heredocs.is_empty() { None } else { heredoc_word(&source)? };
        let found = heredoc.and_then(|it| line.heredocs.iter().rfind(|doc| doc.name == it.name));
        match found {
            Some(doc) => copy.documents.push(Document {
                name: doc.name.clone(),
                content: doc.text(),
                expand: doc.expand,
            }),
            None => copy.sources.push(source),
        }
    }
    Ok(copy)
}
