//! Which images a project names: services, Dockerfiles and named contexts; names of bases win.

use std::collections::{BTreeMap, BTreeSet};

use kiln_bake::base::locked_image::lock_name;
use kiln_bake::{BuildOptions, BuildRequest};
use kiln_core::compose::{Build, Project};

use crate::agent::bake::bake_report;
use crate::report::Report;

/// Names of all images of registries that `only` these services need (all, if it is empty), with
/// the services that need each.
///
/// # Errors
/// A Dockerfile that cannot be read.
pub(crate) fn named(
    project: &Project,
    only: &[String],
) -> Result<BTreeMap<String, BTreeSet<String>>, Report> {
    let mut found = BTreeMap::new();
    let wanted = project.services.keys().filter(|name| only.is_empty() || only.contains(name));
    for service in wanted {
        let mut seen = BTreeSet::new();
        of_service(project, service, service, &mut seen, &mut found)?;
    }
    Ok(found)
}

/// Notes for `wanted` what `name`, the same service or one that it builds on, takes.
fn of_service(
    project: &Project,
    wanted: &str,
    name: &str,
    seen: &mut BTreeSet<String>,
    found: &mut BTreeMap<String, BTreeSet<String>>,
) -> Result<(), Report> {
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let Some(service) = project.services.get(name) else { return Ok(()) };
    let mut note = |image: &str| {
        if image != "scratch" && !is_base(project, image) {
            found.entry(lock_name(image)).or_default().insert(wanted.to_owned());
        }
    };
    let Some(build) = &service.build else {
        service.image.iter().for_each(|image| note(image));
        return Ok(());
    };
    outside(name, build)?.iter().for_each(|image| note(image));
    let contexts = || build.additional_contexts.values();
    contexts().filter_map(|source| source.strip_prefix("docker-image://")).for_each(&mut note);
    for other in contexts().filter_map(|source| source.strip_prefix("service:")) {
        of_service(project, wanted, other, seen, found)?;
    }
    Ok(())
}

/// Whether a name is a base's, also as an image of the default registry would be written.
pub(crate) fn is_base(project: &Project, name: &str) -> bool {
    let bases = &project.kiln.bases;
    bases.contains_key(name) || bases.contains_key(kiln_bake::plan::familiar(name))
}

/// What a Dockerfile takes from outside.
fn outside(name: &str, build: &Build) -> Result<BTreeSet<String>, Report> {
    let fetched = kiln_bake::outside::is_address(&build.context);
    let inside = build.dockerfile.starts_with(&build.context) && build.context.is_file();
    if build.inline.is_none() && (fetched || inside) {
        // Nobody has seen that Dockerfile yet: the bake pins what it names.
        return Ok(BTreeSet::new());
    }
    let is_image = |source: &str| {
        ["docker-image://", "oci-layout://", "service:"].iter().any(|s| source.starts_with(s))
    };
    let named = || build.additional_contexts.iter();
    let request = BuildRequest {
        name: name.to_owned(),
        context: build.context.clone(),
        dockerfile: build.dockerfile.clone(),
        inline: build.inline.clone(),
        args: build.args.clone(),
        target: build.target.clone(),
        contexts: named()
            .filter(|(_, source)| !is_image(source))
            .map(|(alias, source)| (alias.clone(), source.into()))
            .collect(),
        images: named()
            .filter(|(_, source)| is_image(source))
            .map(|(alias, _)| alias.clone())
            .collect(),
        bases: &|_| None,
        options: BuildOptions::default(),
    };
    request.outside().map_err(|error| bake_report(&error))
}
