//! Two JSON values, key by key.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::answers::differing::KeyChange;

/// Every key at which two values differ. Maps are walked, everything else is compared whole.
pub(super) fn diff(old: &Value, new: &Value) -> Vec<KeyChange> {
    let mut found = Vec::new();
    walk("", Some(old), Some(new), &mut found);
    found
}

fn walk(key: &str, old: Option<&Value>, new: Option<&Value>, found: &mut Vec<KeyChange>) {
    // What is null is not set.
    let (old, new) = (old.filter(|v| !v.is_null()), new.filter(|v| !v.is_null()));
    if old == new {
        return;
    }
    let map = |value: Option<&Value>| match value {
        Some(Value::Object(map)) => Some(map.clone()),
        None => Some(Map::new()),
        Some(_) => None,
    };
    let both_missing_or_maps = map(old).zip(map(new));
    // A map that comes or goes as a whole is shown as a whole, unless it is only a grouping.
    if let Some((old_map, new_map)) =
        both_missing_or_maps.filter(|_| old.is_some() && new.is_some())
    {
        let keys: BTreeSet<&String> = old_map.keys().chain(new_map.keys()).collect();
        for part in keys {
            let full = if key.is_empty() { part.clone() } else { format!("{key}.{part}") };
            walk(&full, old_map.get(part), new_map.get(part), found);
        }
        return;
    }
    let (key, old, new) = (key.to_owned(), old.cloned(), new.cloned());
    found.push(KeyChange { key, old, new, ..KeyChange::default() });
}

/// `["A=1", "B=2"]` → `{"A": "1", "B": "2"}`.
pub(super) fn name_pairs(value: &mut Value) {
    let pairs = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    let map: Map<_, _> = pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    *value = map.into();
}

/// A list of maps → a map of them by their member `name`, which they lose.
pub(super) fn name_by(value: &mut Value, name: &str) {
    let items = value.as_array_mut().map(std::mem::take).unwrap_or_default();
    let map: Map<_, _> = items
        .into_iter()
        .filter_map(|mut item| {
            let key = item.as_object_mut()?.remove(name)?.as_str()?.to_owned();
            Some((key, item))
        })
        .collect();
    *value = map.into();
}

/// `["a", "b"]` → `{"a": true, "b": true}`, so that each comes and goes by itself.
pub(super) fn name_items(value: &mut Value) {
    let items = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    let map: Map<_, _> = items.map(|item| (item.to_owned(), json!(true))).collect();
    *value = map.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_walked_and_the_rest_is_compared_whole() {
        let old = json!({ "a": { "b": 1, "c": [1] }, "gone": true, "unset": null, "same": [1, 2] });
        let new = json!({ "a": { "b": 2, "c": [1, 2] }, "come": { "x": 1 }, "same": [1, 2] });
        assert_eq!(
            serde_json::to_value(diff(&old, &new)).unwrap(),
            json!([
                { "key": "a.b", "old": 1, "new": 2 },
                { "key": "a.c", "old": [1], "new": [1, 2] },
                { "key": "come", "new": { "x": 1 } },
                { "key": "gone", "old": true },
            ])
        );
        assert!(diff(&old, &old).is_empty());
    }

    #[test]
    fn lists_of_named_things_become_maps() {
        let mut env = json!(["A=1", "B=x=y"]);
        name_pairs(&mut env);
        assert_eq!(env, json!({ "A": "1", "B": "x=y" }));
        let mut mounts = json!([{ "target": "/a", "read_only": true }]);
        name_by(&mut mounts, "target");
        assert_eq!(mounts, json!({ "/a": { "read_only": true } }));
        let mut items = json!(["x"]);
        name_items(&mut items);
        assert_eq!(items, json!({ "x": true }));
    }
}
