//! A pinned image → the store.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use kiln_bake::base::{LockedImage, LockedPlatform};
use kiln_core::{Digest, ImageId};
use kiln_oci::remote::{Fetched, LayerName, Moment, fetch, image_key};
use kiln_oci::{Limits, Platform};

use super::Images;
use super::registry::{reference, told};
use crate::agent::lock as locked;
use crate::agent::session::{Node, Session};
use crate::agent::verbs::carrier;
use crate::report::{Because, Report};
use crate::words::count;

/// Kind of the references that keep images of registries: `refs/images/<manifest>`.
const REF_KIND: &str = "images";

/// How often a layer on its way is told of.
const TELL: Duration = Duration::from_millis(100);

/// Characters of a bar.
const BAR: u64 = 20;

/// An image of a registry, in the store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Pulled {
    #[serde(flatten)]
    pub image: ImageId,
    /// What it was there.
    pub manifest: Digest,
    /// Layers that came; none if all of it was there.
    pub fetched: usize,
    /// Layers that were there.
    pub known: usize,
    /// Packed bytes that came.
    pub bytes: u64,
}

/// The platform of an image that this machine takes.
pub(super) fn here<'a>(name: &str, pin: &'a LockedImage) -> Result<&'a LockedPlatform, Report> {
    let ranked = pin.platforms.iter().filter_map(|offer| {
        let platform: Platform = offer.platform.parse().ok()?;
        Some((platform.rank_here()?, offer))
    });
    ranked.min_by_key(|(rank, _)| *rank).map(|(_, offer)| offer).ok_or_else(|| {
        let there: Vec<&str> = pin.platforms.iter().map(|offer| offer.platform.as_str()).collect();
        let what = format!(
            "image `{name}` is not for this machine, which is {}: it is for {}",
            Platform::host(),
            there.join(", ")
        );
        Report::usage(what).hint("take another image, or deliver on a machine of that platform")
    })
}

impl Images<'_> {
    /// The image of a pin that is in the store already.
    pub(super) fn there(&self, name: &str, pin: &LockedImage) -> Result<Option<ImageId>, Report> {
        Ok(self.agent.store.step_result(&image_key(&here(name, pin)?.manifest)))
    }

    /// The image of a pin, from the store or else from the registry.
    pub(super) fn pull(&self, name: &str, pin: &LockedImage) -> Result<Pulled, Report> {
        let offer = here(name, pin)?;
        let manifest = offer.manifest;
        let store = &self.agent.store;
        let key = image_key(&manifest);
        // Another run may be fetching it.
        let given_up = || self.session.check().is_err();
        let Some(_turn) = store.step_turn(&key, &given_up) else {
            return Err(Report::failed("interrupted"));
        };
        if let Some(image) = store.step_result(&key) {
            if !store.has_ref(REF_KIND, &manifest.hex()).unwrap_or(false) {
                // It came by an import or a layout.
                self.keep(&manifest, image, BTreeSet::new())?;
            }
            return Ok(Pulled { image, manifest, fetched: 0, known: 0, bytes: 0 });
        }
        let node = self.session.begin("pull", name, &pin.reference);
        let fetched = self.fetch_layers(name, pin, offer);
        let fetched = fetched.and_then(|fetched| {
            self.fits(name, fetched.image)?;
            self.keep(&manifest, fetched.image, fetched.listings.clone())?;
            store.set_step_result(&key, &fetched.image).because(|| "keeping the image".into())?;
            Ok(fetched)
        });
        node.end(&fetched, &fetched.as_ref().map(words).unwrap_or_default());
        let Fetched { image, fetched, known, bytes, .. } = fetched?;
        Ok(Pulled { image, manifest, fetched, known, bytes })
    }

    fn fetch_layers(
        &self,
        name: &str,
        pin: &LockedImage,
        offer: &LockedPlatform,
    ) -> Result<Fetched, Report> {
        let reference = reference(&pin.reference)?;
        let at = self.registry.at(&reference)?;
        let limits = carrier::limits(self.agent, self.session);
        let layers = Layers { session: self.session, image: name, nodes: Mutex::default() };
        let told = |layer: &LayerName, moment: Moment| layers.tell(layer, moment);
        let store = &self.agent.store;
        fetch(store, &at, &offer.manifest, offer.size, &limits, &told)
            .map_err(|error| failed(name, pin, &error, limits.unpacked))
    }

    /// An image on which nothing could run is refused before anything names it.
    fn fits(&self, name: &str, image: ImageId) -> Result<(), Report> {
        let tree = self.agent.store.get_tree(&image.tree).because(|| "reading the image".into())?;
        match kiln_core::policy::taken_place(&tree) {
            None => Ok(()),
            Some(place) => {
                let what = format!(
                    "image `{name}` has something else than a folder at `/{place}`: no program \
                     runs on it"
                );
                Err(Report::refused(what).hint("take another image"))
            }
        }
    }

    /// Collection leaves alone what a lock pins, and what says what its layers do.
    fn keep(
        &self,
        manifest: &Digest,
        image: ImageId,
        listings: BTreeSet<Digest>,
    ) -> Result<(), Report> {
        self.agent.flush_objects()?;
        let mut digests = listings;
        digests.extend([image.tree, image.config]);
        let kept = self.agent.store.set_ref(REF_KIND, &manifest.hex(), &digests);
        kept.because(|| "keeping the image".into())
    }
}

fn words(fetched: &Fetched) -> String {
    let tree = fetched.image.tree.short();
    let all = fetched.fetched + fetched.known;
    let layers = count(all, "layer");
    match fetched.fetched {
        0 if all == 1 => format!("{tree}, its one layer known"),
        0 => format!("{tree}, all {layers} known"),
        new if new == all => format!("{tree}, {layers}, {}", megabytes(fetched.bytes)),
        new => format!("{tree}, {new} of {layers}, {}", megabytes(fetched.bytes)),
    }
}

/// What could not be fetched, with what to do. At most `unpacked` bytes were allowed.
fn failed(name: &str, pin: &LockedImage, error: &kiln_oci::Error, unpacked: u64) -> Report {
    let mut report = carrier::report(error);
    let full = causes(error).any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| matches!(io.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded))
    });
    if matches!(error, kiln_oci::Error::Interrupted) {
        return report;
    }
    let asked = told(error);
    // What a registry says names its address, and with that the image once more.
    let why = match asked {
        Some(asked) => asked.without_name(),
        None => report.message,
    };
    if asked.is_some() {
        report.causes.clear();
    }
    report.message = format!("image `{name}` ({}) could not be fetched: {why}", pin.index.short());
    // An image may take nine tenths of what is free.
    let bounded = matches!(error, kiln_oci::Error::TooMuch { .. });
    if full || bounded && unpacked < Limits::default().unpacked {
        report.causes.push("the disk that holds the root folder has no more room".to_owned());
        return report.hint("make room (`kiln gc`), and go on: layers that came whole are kept");
    }
    let Some(asked) = asked else { return report };
    if matches!(asked, kiln_remote::registry::Error::NotFound { .. }) {
        return report.hint(format!(
            "if it is no longer there: kiln lock --update {name}, or `kiln import` it from where \
             somebody has it"
        ));
    }
    let elsewhere = "or `kiln import` the image from where somebody has it";
    match asked.hint() {
        Some(hint) if asked.is_absent() => report.hint(hint),
        Some(hint) => report.hint(format!("{hint}; {elsewhere}")),
        None => report.hint(format!("again when it answers; {elsewhere}")),
    }
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// Layers on their way, each a node with a bar.
struct Layers<'a> {
    session: &'a Session,
    image: &'a str,
    nodes: Mutex<BTreeMap<Digest, (Node<'a>, Instant)>>,
}

impl Layers<'_> {
    fn tell(&self, layer: &LayerName, moment: Moment) {
        let mut nodes = locked(&self.nodes);
        match moment {
            Moment::Known => {}
            Moment::Come(come) => {
                let now = Instant::now();
                if let Some((node, told)) = nodes.get_mut(&layer.digest) {
                    if now.duration_since(*told) >= TELL {
                        node.update(&bar(self.image, come, layer.size));
                        *told = now;
                    }
                    return;
                }
                let detail = bar(self.image, come, layer.size);
                let node = self.session.begin("layer", &layer.digest.short(), &detail);
                nodes.insert(layer.digest, (node, now));
            }
            Moment::Done | Moment::Failed => {
                let Some((node, _)) = nodes.remove(&layer.digest) else { return };
                let words = format!("{}, {}", self.image, megabytes(layer.size));
                match moment {
                    Moment::Done => node.done(&words),
                    _ => node.failed(self.image),
                }
            }
        }
    }
}

fn bar(image: &str, come: u64, size: u64) -> String {
    let full = (come.min(size) * BAR).checked_div(size).unwrap_or(BAR);
    let (full, empty) = (full as usize, (BAR - full) as usize);
    let of = format!("{} of {}", megabytes(come), megabytes(size));
    format!("{}{} {of}  {image}", "█".repeat(full), "░".repeat(empty))
}

fn megabytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1000)),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow() {
        assert_eq!(bar("x", 0, 2_000_000), format!("{} 0 kB of 2.0 MB  x", "░".repeat(20)));
        let half = format!("{}{} 1.0 MB of 2.0 MB  x", "█".repeat(10), "░".repeat(10));
        assert_eq!(bar("x", 1_000_000, 2_000_000), half);
        assert!(bar("x", 5, 0).starts_with(&"█".repeat(20)));
        assert!(bar("x", u64::MAX / 32, 1).starts_with(&"█".repeat(20)));
    }

    #[test]
    fn this_machine_takes_what_every_machine_of_its_kind_runs() {
        let host = Platform::host();
        let offer = |platform: String| LockedPlatform {
            manifest: Digest::of(&platform),
            platform,
            size: 1,
        };
        let pin = |platforms: &[String]| LockedImage {
            reference: "docker.io/library/x:1".into(),
            index: Digest::of("x"),
            size: 1,
            platforms: platforms.iter().cloned().map(offer).collect(),
        };
        let (plain, strange) = (host.to_string(), "linux/s390x".to_owned());
        let all = pin(&[strange.clone(), format!("{host}/v2"), plain.clone()]);
        assert_eq!(here("x", &all).unwrap().platform, plain);
        let report = here("x", &pin(&[strange])).unwrap_err();
        assert!(report.message.contains("it is for linux/s390x"), "{}", report.message);
    }
}
