//! Baking beside BuildKit in Docker Engine and buildah.
//!
//! | file | noun |
//! |---|---|
//! | `builder` | those who build |
//! | `works` | the measurements on a context of a thousand files |
//! | `memory` | a daemon's memory while a large file goes into an image |
//! | `base` | a base of packages, beside mmdebstrap |

mod base;
mod builder;
mod memory;
mod works;

use std::path::Path;

use anyhow::{Context, Result};

use super::report::{Report, Row};
use builder::{BuildKit, Buildah, Builder, Kiln};
use works::{WORKS, Workplace};

/// Measures everything whose name holds `only`. `kiln` is the binary.
pub(super) fn bench(kiln: &Path, rounds: usize, only: Option<&str>) -> Result<Report> {
    let wanted = |name: &str| only.is_none_or(|text| name.contains(text));
    let mut rows = Vec::new();
    let mut versions = Vec::new();
    let builders: Vec<Box<dyn Builder>> = vec![
        Box::new(Kiln::start(kiln)?),
        Box::new(BuildKit::start()?),
        Box::new(Buildah::start()?),
    ];
    for builder in &builders {
        versions.push(builder.version()?);
    }
    let folder = tempfile::Builder::new().prefix("kiln-bench-bake-").tempdir()?;
    let works: Vec<_> = WORKS.iter().filter(|work| wanted(work.name)).collect();
    if !works.is_empty() {
        let mut places = Vec::new();
        for (index, builder) in builders.iter().enumerate() {
            let place = Workplace::new(&**builder, &folder.path().join(index.to_string()));
            places.push(place.with_context(|| format!("{}: first build", builder.name()))?);
        }
        for work in works {
            let rounds = rounds.min(work.most_rounds);
            println!("measuring: {} ({rounds} rounds)", work.name);
            let mut columns = vec![Vec::new(); places.len()];
            for round in 0..rounds {
                for (place, column) in places.iter_mut().zip(&mut columns) {
                    let name = place.name();
                    let value = (work.measure)(place);
                    let what = || format!("{name}: {}, round {}", work.name, round + 1);
                    column.push(value.with_context(what)?);
                }
            }
            rows.push(Row::new(work.name, work.unit, work.aim, columns));
        }
    }
    if wanted(memory::NAME) {
        rows.push(memory::measure(&builders, folder.path())?);
    }
    let mut heads: Vec<String> = builders.iter().map(|builder| builder.name().to_owned()).collect();
    drop(builders);
    if base::ROWS.iter().any(|row| wanted(row.0)) {
        let (version, more) = base::measure(kiln, rounds.min(base::MOST_ROUNDS), wanted)?;
        heads.push("mmdebstrap".to_owned());
        versions.push(version);
        rows.extend(more);
    }
    Ok(Report::new(heads, versions, rounds, rows))
}
