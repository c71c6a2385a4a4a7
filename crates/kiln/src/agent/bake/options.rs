//! Compose's `build` → what a bake is told beside the Dockerfile.

use kiln_bake::{BuildOptions, Secret, SecretSource};
use kiln_core::compose::{Build, BuildSecret, FileSource, Project};

/// What `build` of `project` says.
pub(super) fn options(project: &Project, build: &Build) -> BuildOptions {
    let secret = |(id, given): (&String, &BuildSecret)| {
        let source = match &given.source {
            FileSource::File(path) => SecretSource::File(path.clone()),
            FileSource::Content(text) => SecretSource::Text(text.clone()),
        };
        let BuildSecret { uid, gid, mode, .. } = *given;
        (id.clone(), Secret { source, uid, gid, mode })
    };
    BuildOptions {
        project: project.name.clone(),
        secrets: build.secrets.iter().map(secret).collect(),
        ssh: build.ssh.clone(),
        network: build.network,
        shm_size: build.shm_size,
        ulimits: build.ulimits.clone(),
        labels: build.labels.clone(),
    }
}
