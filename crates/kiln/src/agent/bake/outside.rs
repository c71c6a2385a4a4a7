//! Where a build finds its context: in a folder of the user's, or in one that is made of what was
//! fetched or unpacked.

use std::fs;
use std::path::{Path, PathBuf};

use kiln_bake::archive::{Limits, UNPACK_LIMIT};
use kiln_bake::outside::{Outside, is_address};
use kiln_bake::remote::{FETCH_BYTES, FETCH_LIMIT, Options, Proxies};
use kiln_core::compose::Build;

use super::bake_report;
use super::bases::Bases;
use crate::agent::session::Session;
use crate::report::{Because, Report};

/// The folder of the context at `path`, and the Dockerfile in it or beside it.
pub(super) fn context(
    session: &Session,
    bases: &Bases<'_, '_>,
    build: &Build,
) -> Result<(PathBuf, PathBuf), Report> {
    let folder = folder(session, bases, build, &build.context)?;
    if folder == build.context {
        return Ok((folder, build.dockerfile.clone()));
    }
    stays_inside(&folder, &folder.join(".dockerignore"))?;
    let within = build.dockerfile.strip_prefix(&build.context).unwrap_or(&build.dockerfile);
    let dockerfile = folder.join(within);
    // Beside an archive there may be a Dockerfile of the user's own.
    if is_address(&build.context) || within.is_relative() {
        stays_inside(&folder, &dockerfile)?;
        stays_inside(&folder, &ignore_file_of(&dockerfile))?;
    }
    Ok((folder, dockerfile))
}

/// The folder of a named context.
pub(super) fn named(
    session: &Session,
    bases: &Bases<'_, '_>,
    build: &Build,
    source: &str,
) -> Result<PathBuf, Report> {
    let folder = folder(session, bases, build, Path::new(source))?;
    if folder != Path::new(source) {
        stays_inside(&folder, &folder.join(".dockerignore"))?;
    }
    Ok(folder)
}

fn folder(
    session: &Session,
    bases: &Bases<'_, '_>,
    build: &Build,
    context: &Path,
) -> Result<PathBuf, Report> {
    let address = is_address(context);
    if !address && !fs::metadata(context).is_ok_and(|meta| meta.is_file()) {
        return Ok(context.to_owned());
    }
    let shown = context.display().to_string();
    let size = |name| kiln_bake::size_argument(&build.args, name).map_err(Report::usage);
    let node = session.begin("context", &shown, "");
    let told = |what: &str| node.update(&format!("fetching {what}"));
    let options = Options {
        proxies: Proxies::of(&build.args),
        limit: size(FETCH_LIMIT)?.unwrap_or(FETCH_BYTES),
        told: &told,
    };
    let outside = Outside {
        store: bases.oven.store,
        remotes: bases.remotes,
        options: &options,
        limits: size(UNPACK_LIMIT)?.map_or_else(Limits::default, Limits::of_bytes),
        cancel: session.cancelled(),
    };
    let folder = match address {
        true => outside.fetch(&shown),
        false => outside.unpack(context),
    };
    let folder = folder.map_err(|error| bake_report(&error));
    node.end(&folder, "");
    folder
}

fn ignore_file_of(dockerfile: &Path) -> PathBuf {
    let mut own = dockerfile.as_os_str().to_owned();
    own.push(".dockerignore");
    own.into()
}

/// What a stranger's context has for a Dockerfile is read by root: a link must not lead out of it.
fn stays_inside(folder: &Path, path: &Path) -> Result<(), Report> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    let doing = || format!("looking at {}", path.display());
    let real = folder.canonicalize().because(doing)?;
    match path.canonicalize() {
        Ok(path) if path.starts_with(&real) => Ok(()),
        _ => {
            let name = path.strip_prefix(folder).unwrap_or(path);
            Err(Report::usage(format!("`{}` leads out of the build context", name.display()))
                .hint("a context that was fetched can only use its own files"))
        }
    }
}
