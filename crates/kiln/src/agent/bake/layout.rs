//! A named context that is an image: `oci-layout://PATH[:NAME|@DIGEST]`.

use std::path::Path;

use kiln_core::ImageId;
use kiln_oci::remote::image_key;
use kiln_oci::{Limits, Selector, Source};
use kiln_store::Store;

use crate::agent::verbs::carrier;
use crate::report::Report;

/// The image that `text`, without its scheme, names. What comes of a manifest is remembered by the
/// manifest's digest, so an unchanged layout is not read again.
pub(super) fn image(store: &Store, text: &str, limits: &Limits<'_>) -> Result<ImageId, Report> {
    let (path, selector) = split(text);
    let read = || -> kiln_oci::Result<ImageId> {
        let source = Source::open(Path::new(path), store, limits)?;
        let found = source.find(&selector)?;
        let key = image_key(&found.manifest);
        if let Some(image) = store.step_result(&key) {
            return Ok(image);
        }
        let image = found.load(store, limits)?.image;
        store.set_step_result(&key, &image)?;
        Ok(image)
    };
    read().map_err(|error| {
        let mut report = carrier::report(&error);
        report.message = format!("named context `oci-layout://{text}`: {}", report.message);
        report
    })
}

/// Path, and which image there. A colon in a folder's name is no tag.
fn split(text: &str) -> (&str, Selector) {
    if let Some((path, digest)) = text.rsplit_once('@')
        && let Ok(digest) = digest.parse()
    {
        return (path, Selector::Digest(digest));
    }
    match text.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Selector::Name(tag.to_owned())),
        _ => (text, Selector::Any),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_behind_the_path() {
        let digest = kiln_core::Digest::of("x");
        assert_eq!(split("/a/b"), ("/a/b", Selector::Any));
        assert_eq!(split("/a/b:v1.2"), ("/a/b", Selector::Name("v1.2".into())));
        assert_eq!(split("/a:b/c"), ("/a:b/c", Selector::Any));
        assert_eq!(split(&format!("/a/b@{digest}")), ("/a/b", Selector::Digest(digest)));
        assert_eq!(split("/a@b/c"), ("/a@b/c", Selector::Any));
    }
}
