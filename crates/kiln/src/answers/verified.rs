//! What `verify` answers. The document is described in `docs/verify.md`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kiln_bake::verify::{Conditions, Difference, StepReport, Verdict};
use kiln_core::ImageId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `kiln verify`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Verified {
    /// With `--against`.
    Against(Box<AgainstImage>),
    Steps(Box<Steps>),
}

/// One service's image beside another one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct AgainstImage {
    pub project: String,
    pub verdict: Verdict,
    /// Where the other one is.
    pub path: PathBuf,
    pub against: Against,
}

/// What differs between the two.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Against {
    pub service: String,
    pub here: ImageId,
    pub there: ImageId,
    pub verdict: Verdict,
    /// What differs in the tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
    /// What differs in the configuration: key, here, there.
    pub config: Vec<(String, Value, Value)>,
}

/// Every step, made twice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Steps {
    pub project: String,
    /// Baked twice from nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deep: bool,
    pub verdict: Verdict,
    pub conditions: Varied,
    /// What the two bakes made, where they were `deep`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<BakedTwice>,
    pub bases: BTreeMap<String, StepReport>,
    pub services: BTreeMap<String, Service>,
    pub ms: u64,
}

/// Under what conditions the two were made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Varied {
    pub first: Conditions,
    pub second: Conditions,
    /// What was the same for both, in words.
    pub not_varied: Vec<String>,
}

/// Images by service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct BakedTwice {
    pub first: BTreeMap<String, ImageId>,
    pub second: BTreeMap<String, ImageId>,
}

/// A service, verified step by step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Service {
    pub image: ImageId,
    pub verdict: Verdict,
    /// Number of the first step that diverged or whose inputs differ.
    pub first: Option<usize>,
    pub steps: Vec<StepReport>,
}

#[cfg(test)]
mod tests {
    use kiln_bake::verify::{Failure, Run};
    use kiln_core::Digest;
    use serde_json::json;

    use super::super::tests::pinned;
    use super::*;

    fn image() -> ImageId {
        let digest = Digest::from_bytes([0xab; 32]);
        ImageId { tree: digest, config: digest }
    }

    /// As `docs/verify.md` has it.
    fn difference() -> Value {
        json!({
            "between": ["the first run", "the second run"], "count": 2,
            "kinds": { "content": 1, "only-first": 1 }, "causes": { "time stamp": 1 },
            "first": {
                "path": "/a", "kind": "content", "offset": 4,
                "first": { "text": "x", "hex": "78", "at": 0, "size": 9 },
                "second": { "text": "y", "hex": "79", "at": 0, "size": 9 },
                "cause": "time", "evidence": "both are seconds", "words": "time stamp",
                "cure": "SOURCE_DATE_EPOCH",
            },
            "condition": "load", "left_behind": 0,
            "paths": [["/a", "content"], ["/b", "only-first"]],
        })
    }

    fn conditions() -> (Conditions, Value) {
        let conditions = Conditions { cores: vec![0, 1], ..Conditions::default() };
        let document = json!({ "cores": [0, 1], "uptime": 0, "other_lower": false,
            "upper_in_memory": false, "load": false, "other_machine": false });
        (conditions, document)
    }

    #[test]
    fn steps() {
        let (conditions, conditions_as) = conditions();
        let run = Run { conditions: conditions.clone(), began: 5, ended: 9 };
        let run_as = json!({ "conditions": conditions_as, "began": 5, "ended": 9 });
        let step = StepReport {
            number: 2,
            text: "RUN date > /a".into(),
            file: "web/Dockerfile".into(),
            line: 3,
            verdict: Verdict::Diverged,
            why: Some("because".into()),
            notes: vec!["a note".into()],
            runs: vec![run],
            difference: Some(serde_json::from_value(difference()).unwrap()),
            failure: Some(Failure { run: 2, how: "signal 9".into(), output: vec!["x".into()] }),
        };
        let step_as = json!({
            "number": 2, "text": "RUN date > /a", "file": "web/Dockerfile", "line": 3,
            "verdict": "diverged", "why": "because", "notes": ["a note"], "runs": [run_as],
            "difference": difference(),
            "failure": { "run": 2, "how": "signal 9", "output": ["x"] },
        });
        let same_as = json!({ "number": 0, "text": "", "file": "", "line": 0, "verdict": "same" });
        let service = Service {
            image: image(),
            verdict: Verdict::Diverged,
            first: Some(2),
            steps: vec![step],
        };
        let varied = Varied {
            first: conditions.clone(),
            second: Conditions { first_pid: Some(20_000), ..conditions },
            not_varied: vec!["the kernel".into()],
        };
        let mut second = conditions_as.clone();
        second["first_pid"] = json!(20_000);
        let mut expected = json!({
            "project": "shop", "verdict": "left-behind",
            "conditions": { "first": conditions_as, "second": second,
                "not_varied": ["the kernel"] },
            "bases": { "py": same_as },
            "services": { "web": { "image": { "tree": image().tree, "config": image().config },
                "verdict": "diverged", "first": 2, "steps": [step_as] } },
            "ms": 12,
        });
        let steps = Steps {
            project: "shop".into(),
            deep: false,
            verdict: Verdict::LeftBehind,
            conditions: varied,
            images: None,
            bases: BTreeMap::from([("py".into(), StepReport::same())]),
            services: BTreeMap::from([("web".into(), service)]),
            ms: 12,
        };
        pinned(&Verified::Steps(Box::new(steps.clone())), &expected);
        let one = BTreeMap::from([("web".to_owned(), image())]);
        let images = Some(BakedTwice { first: one.clone(), second: one.clone() });
        expected["deep"] = json!(true);
        expected["images"] = json!({ "first": one, "second": one });
        pinned(&Verified::Steps(Box::new(Steps { deep: true, images, ..steps })), &expected);
    }

    #[test]
    fn against_an_image() {
        let against = Against {
            service: "web".into(),
            here: image(),
            there: image(),
            verdict: Verdict::Diverged,
            difference: None,
            config: vec![("Cmd".into(), json!(["a"]), Value::Null)],
        };
        let document = AgainstImage {
            project: "shop".into(),
            verdict: Verdict::Diverged,
            path: "/x.tar".into(),
            against,
        };
        let id = json!({ "tree": image().tree, "config": image().config });
        pinned(
            &Verified::Against(Box::new(document)),
            &json!({
                "project": "shop", "verdict": "diverged", "path": "/x.tar",
                "against": { "service": "web", "here": id, "there": id, "verdict": "diverged",
                    "config": [["Cmd", ["a"], null]] },
            }),
        );
    }
}
