//! What the files of one stage may say: how services run there, never what they are.

use super::error::ComposeErrors;
use super::model::Project;
use super::reader::At;

/// That `there`, which was read from `root`, the project with the files of `stage` over it, has the
/// services, images, builds and bases of `project`.
///
/// # Errors
/// Each that differs, at its place.
pub(super) fn same_images(
    root: &At<'_>,
    stage: &str,
    project: &Project,
    there: &Project,
) -> Result<(), ComposeErrors> {
    const HINT: &str =
        "a release has the same bits in every stage: say it in the project's own files";
    let mut refused = Vec::new();
    let mut refuse = |way: &[&str], what: String| {
        refused.push(at(root, way, &what).with_hint(HINT));
    };
    for (name, service) in &there.services {
        let Some(own) = project.services.get(name) else {
            let what = format!("the stage `{stage}` has a service more, `{name}`");
            refuse(&["services", name], what);
            continue;
        };
        for (key, same) in
            [("image", own.image == service.image), ("build", own.build == service.build)]
        {
            if !same {
                let what = format!("the stage `{stage}` has another `{key}` for `{name}`");
                refuse(&["services", name, key], what);
            }
        }
    }
    for name in project.services.keys().filter(|name| !there.services.contains_key(*name)) {
        let what = format!("the stage `{stage}` lacks the service `{name}`");
        refuse(&["services", name, "profiles"], what);
    }
    if there.kiln.bases != project.kiln.bases {
        refuse(&["x-kiln", "bases"], format!("the stage `{stage}` has other bases"));
    }
    match refused.is_empty() {
        true => Ok(()),
        false => Err(refused.into()),
    }
}

/// An error at the end of `way`, or as near to it as the tree goes.
fn at(root: &At<'_>, way: &[&str], what: &str) -> super::error::ComposeError {
    let next = way.split_first().and_then(|(key, rest)| Some((root.get(key)?, rest)));
    match next {
        Some((next, rest)) => at(&next, rest, what),
        None => root.refuse(what),
    }
}
