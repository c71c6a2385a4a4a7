//! `--against`: the image that was baked here, and one that was baked elsewhere and exported.

use kiln_bake::verify::{Verdict, compare_trees};
use kiln_core::{ImageConfig, ImageId};
use kiln_oci::{Error, Selector};
use kiln_store::Store;
use serde_json::{Map, Value};

use super::failed;
use crate::agent::verbs::carrier::{Opened, report};
use crate::answers::verified::Against;
use crate::report::{Because, Report};

/// Compares the image of `service` with the one that is open. Of several there, the one that has the
/// service's name is taken.
pub(super) fn against(
    store: &Store,
    service: &str,
    here: ImageId,
    there: &Opened<'_>,
) -> Result<Against, Report> {
    let doing = || "reading the images".to_owned();
    let there = match there.load(&Selector::Any) {
        Err(Error::Select(_)) => there.load(&Selector::Name(service.to_owned())),
        any => any,
    };
    let there = there.map_err(|error| report(&error))?.image;
    let trees = [here, there].map(|image| store.get_tree(&image.tree).because(doing));
    let [first, second] = trees;
    let (first, second) = (first?, second?);
    let difference = compare_trees(
        ["the image baked here", "the image baked elsewhere"],
        [&first, &second],
        [store, store],
        [None, None],
    )
    .map_err(|error| failed(&error))?;
    let configs = [here, there].map(|image| store.get_config(&image.config).because(doing));
    let [first, second] = configs;
    let config = of_configs(&first?, &second?);
    let same = difference.is_none() && config.is_empty();
    let verdict = if same { Verdict::Same } else { Verdict::Diverged };
    Ok(Against { service: service.to_owned(), here, there, verdict, difference, config })
}

/// Keys with two values.
fn of_configs(here: &ImageConfig, there: &ImageConfig) -> Vec<(String, Value, Value)> {
    let object = |config: &ImageConfig| -> Map<String, Value> {
        serde_json::from_slice(&config.canonical()).unwrap_or_default()
    };
    let (here, there) = (object(here), object(there));
    let mut keys: Vec<&String> = here.keys().chain(there.keys()).collect();
    keys.sort();
    keys.dedup();
    let value = |object: &Map<String, Value>, key: &String| object.get(key).cloned();
    keys.into_iter()
        .filter(|key| here.get(*key) != there.get(*key))
        .map(|key| {
            let (a, b) = (value(&here, key), value(&there, key));
            (key.clone(), a.unwrap_or(Value::Null), b.unwrap_or(Value::Null))
        })
        .collect()
}
