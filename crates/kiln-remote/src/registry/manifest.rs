//! What kind of manifest a document is.

use serde::Deserialize;

use super::error::{Error, clean};

/// Why a document is no manifest that can be used.
pub(super) enum Wrong {
    Kind(Error),
    What(String),
}

/// What kind of manifest it is: as the server says, which what is in it must not gainsay.
pub(super) fn media_type(name: &str, stated: Option<&str>, bytes: &[u8]) -> Result<String, Wrong> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Outline {
        schema_version: Option<u64>,
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        config: Option<serde::de::IgnoredAny>,
    }
    let outline: Outline = serde_json::from_slice(bytes)
        .map_err(|error| Wrong::What(format!("no manifest: {error}")))?;
    let stated = stated.map(|text| text.split(';').next().unwrap_or_default().trim().to_owned());
    let vague = ["", "application/json", "text/plain", "application/octet-stream"];
    let stated = stated.filter(|stated| !vague.contains(&stated.as_str()));
    let old =
        stated.as_deref().is_some_and(|stated| stated.contains("docker.distribution.manifest.v1+"));
    if old || outline.schema_version == Some(1) {
        let what = "an image by Docker's schema 1, of before 2016".to_owned();
        return Err(Wrong::Kind(Error::Kind { name: name.to_owned(), what }));
    }
    let (list, single) = (outline.manifests.is_some(), outline.layers.is_some());
    let inside = outline.media_type;
    if let (Some(stated), Some(inside)) = (&stated, &inside)
        && stated != inside
    {
        let (stated, inside) = (clean(stated, 100), clean(inside, 100));
        return Err(Wrong::What(format!(
            "the server calls it {stated}, and it calls itself {inside}"
        )));
    }
    let kind = stated.or(inside).map(|kind| clean(&kind, 200));
    let is_list = |kind: &str| kind.contains(".index.") || kind.contains(".manifest.list.");
    match kind {
        // What could be read as either has been used to show one thing and run another.
        _ if list && (single || outline.config.is_some()) => {
            Err(Wrong::What("it is an index and a manifest at once".into()))
        }
        Some(kind) if (is_list(&kind) && single) || (!is_list(&kind) && list) => {
            Err(Wrong::What(format!("it is called {kind}, and is something else")))
        }
        Some(kind) => Ok(kind),
        None if list => Ok("application/vnd.oci.image.index.v1+json".into()),
        None if single => Ok("application/vnd.oci.image.manifest.v1+json".into()),
        None => Err(Wrong::What("it is neither an index nor a manifest".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_manifest_is_not_guessed() {
        let index = "application/vnd.oci.image.index.v1+json";
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        let own = format!(r#"{{"mediaType":"{docker}","layers":[]}}"#);
        for (stated, text, expected) in [
            (Some(index), r#"{"manifests":[]}"#, Ok(index)),
            (Some("application/json; charset=utf-8"), own.as_str(), Ok(docker)),
            (None, r#"{"manifests":[]}"#, Ok(index)),
            (Some("application/x"), r#"{"config":{}}"#, Ok("application/x")),
            (Some(index), own.as_str(), Err("calls itself")),
            (Some(index), r#"{"layers":[]}"#, Err("something else")),
            (Some(docker), r#"{"manifests":[]}"#, Err("something else")),
            (None, r#"{"manifests":[],"layers":[]}"#, Err("at once")),
            (None, "{}", Err("neither")),
            (None, "<html>", Err("no manifest")),
            (None, r#"{"schemaVersion":1}"#, Err("schema 1")),
            (
                Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
                "{}",
                Err("schema 1"),
            ),
        ] {
            let found = media_type("x", stated, text.as_bytes()).map_err(|wrong| match wrong {
                Wrong::Kind(error) => error.to_string(),
                Wrong::What(what) => what,
            });
            match expected {
                Ok(kind) => assert_eq!(found.unwrap(), kind, "{text}"),
                Err(what) => {
                    let error = found.unwrap_err();
                    assert!(error.contains(what), "{text}: {error}");
                }
            }
        }
    }
}
