//! What an instance has written beside its volumes, in words.

use std::fmt::Write as _;

use kiln_core::written::{Kind, Line, Written};

use super::{size, table};
use crate::answers;
use crate::words::count;

pub(super) fn written(service: &str, written: &Written) -> String {
    let mut out = format!("{service} has written into its layer, which goes with the instance:\n");
    let rows: Vec<Vec<String>> =
        written.lines.iter().map(|line| vec![format!("  {}", line.path), what(line)]).collect();
    out.push_str(&table(&rows));
    if written.more > 0 {
        let _ = writeln!(out, "  and {} more", written.more);
    }
    if written.cut {
        out.push_str("  and further names, which were not looked at\n");
    }
    if !written.cures.is_empty() {
        out.push_str("to keep it, or to need no layer, write into the service:\n");
        out.extend(written.cures.iter().map(|cure| format!("  {cure}\n")));
    }
    if !written.volumes.is_empty() {
        let names: Vec<String> =
            written.volumes.iter().map(|name| format!("{name}: {{}}")).collect();
        let _ = writeln!(out, "and at the top of the file:\n  volumes: {{ {} }}", names.join(", "));
    }
    out
}

pub(super) fn learnt(learnt: &answers::Learnt) -> String {
    let mut out = format!("{}: {}\n", learnt.service, learnt.ended);
    out.extend(learnt.log.iter().map(|line| format!("  | {line}\n")));
    match learnt.written.is_empty() {
        true => {
            out.push_str(
                "meanwhile it wrote nothing beside its volumes and tmpfs: try `read_only: true`, \
                 with `tmpfs: [/tmp, /run, /var/tmp]` if it writes there\n",
            );
        }
        false => out.push_str(&written(&learnt.service, &learnt.written)),
    }
    out
}

fn what(line: &Line) -> String {
    let files = count(line.files, "file");
    match line.kind {
        Kind::Data | Kind::System | Kind::Passing if line.path.ends_with('/') => {
            format!("{files}, {}", size(line.bytes))
        }
        Kind::Data | Kind::System | Kind::Passing => size(line.bytes),
        Kind::Cache => format!("caches, here and elsewhere: {files}, {}", size(line.bytes)),
        Kind::Removed => "removed".to_owned(),
        Kind::Owner => format!("only owners or modes: {files}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_cures_are_told() {
        let line = |path: &str, kind, files, bytes| Line { path: path.into(), kind, files, bytes };
        let told = written(
            "web",
            &Written {
                lines: vec![
                    line("/app/db.sqlite", Kind::Data, 1, 12_288),
                    line("/app/__pycache__/", Kind::Cache, 12, 40_000),
                ],
                more: 0,
                cut: false,
                cures: vec!["read_only: true".into()],
                volumes: vec!["web-app".into()],
            },
        );
        assert_eq!(
            told,
            "web has written into its layer, which goes with the instance:\n  \
             /app/db.sqlite     12.2 kB\n  \
             /app/__pycache__/  caches, here and elsewhere: 12 files, 40.0 kB\n\
             to keep it, or to need no layer, write into the service:\n  \
             read_only: true\n\
             and at the top of the file:\n  \
             volumes: { web-app: {} }\n"
        );
    }
}
