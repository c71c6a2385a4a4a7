use std::io::Write as _;

use serde_json::json;

use super::*;
use kiln_core::Digest;

use crate::Error;

fn open(dir: &Path) -> Ledger {
    fs::create_dir_all(dir.join("ledger")).unwrap();
    fs::create_dir_all(dir.join("stages")).unwrap();
    Ledger::open(dir).unwrap()
}

fn record(kind: &str, nth: u64) -> Record {
    let stage = Some(if nth.is_multiple_of(2) { "dev" } else { "prod" }.to_owned());
    let project = Some("shop".to_owned());
    let data = json!({ "nth": nth, "text": "two\nlines" });
    Record { time: 1000 + nth, kind: kind.to_owned(), project, stage, data }
}

fn all(ledger: &Ledger) -> Vec<Entry> {
    ledger.read().unwrap().collect::<Result<_>>().unwrap()
}

#[test]
fn what_is_appended_is_read_back_and_chained() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    assert_eq!(
        ledger.append(&[record("intent", 1), record("outcome", 2)], Durability::Now).unwrap(),
        2
    );
    assert_eq!(ledger.append(&[record("intent", 3)], Durability::Later).unwrap(), 3);
    assert_eq!(ledger.append(&[], Durability::Now).unwrap(), 3);
    let entries = all(&open(dir.path()));
    assert_eq!(entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(entries[1].data, record("", 2).data);
    assert_eq!(entries[0].prev, line::NONE);
    assert_eq!(ledger.verify().unwrap(), 3);
}

#[test]
fn a_log_that_cannot_be_looked_at_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    ledger.append(&[record("intent", 1)], Durability::Now).unwrap();
    let (folder, away) = (dir.path().join("ledger"), dir.path().join("away"));
    fs::rename(&folder, &away).unwrap();
    // It leads to itself: nobody can say what is there.
    std::os::unix::fs::symlink("ledger", &folder).unwrap();
    assert!(matches!(ledger.faults(), Err(Error::Io { .. })), "{:?}", ledger.faults());
    fs::remove_file(&folder).unwrap();
    fs::rename(&away, &folder).unwrap();
    assert_eq!(ledger.faults().unwrap(), []);
    assert_eq!(ledger.append(&[record("outcome", 2)], Durability::Now).unwrap(), 2);
    // One that is not there is.
    fs::rename(&folder, &away).unwrap();
    assert!(matches!(ledger.faults().unwrap()[..], [Fault::Lost { .. }]));
}

#[test]
fn filters_select() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let records: Vec<Record> =
        (1..=6).map(|nth| record(if nth < 4 { "intent" } else { "outcome" }, nth)).collect();
    ledger.append(&records, Durability::Later).unwrap();
    let seqs = |filter: Filter| {
        let entries = ledger.select(filter).unwrap();
        entries.map(|entry| entry.unwrap().seq).collect::<Vec<_>>()
    };
    assert_eq!(seqs(Filter { stage: Some("dev".into()), ..Filter::default() }), [2, 4, 6]);
    assert_eq!(seqs(Filter { kinds: vec!["outcome".into()], ..Filter::default() }), [4, 5, 6]);
    assert_eq!(seqs(Filter { from: 3, until: Some(1004), ..Filter::default() }), [3, 4]);
    assert_eq!(seqs(Filter { since: 1005, ..Filter::default() }), [5, 6]);
    assert_eq!(seqs(Filter { project: Some("other".into()), ..Filter::default() }), [0; 0]);
}

/// A crash can cut the log anywhere: at every length the whole lines stay, the rest is set aside,
/// and the log goes on.
#[test]
fn a_log_cut_anywhere_opens_whole() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    ledger
        .append(&(1..=4).map(|nth| record("intent", nth)).collect::<Vec<_>>(), Durability::Later)
        .unwrap();
    let text = fs::read(ledger.path()).unwrap();
    // In memory, where the syncs of some thousand openings cost nothing.
    let memory = Path::new("/dev/shm");
    for cut in 0..=text.len() {
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let dir = dir.unwrap();
        fs::create_dir_all(dir.path().join("ledger")).unwrap();
        fs::write(dir.path().join("ledger/log.jsonl"), &text[..cut]).unwrap();
        let ledger = open(dir.path());
        let whole = text[..cut].iter().filter(|byte| **byte == b'\n').count() as u64;
        let kept = text[..cut].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let torn = cut - kept;
        let entries = all(&ledger);
        assert_eq!(ledger.verify().unwrap(), entries.len() as u64);
        if torn == 0 {
            assert_eq!(entries.len() as u64, whole);
        } else {
            assert_eq!(entries.len() as u64, whole + 1);
            let note = entries.last().unwrap();
            assert_eq!((note.kind.as_str(), &note.data["bytes"]), ("torn", &json!(torn)));
            let aside = dir.path().join(format!("ledger/torn-{}", whole + 1));
            assert_eq!(fs::read(aside).unwrap(), &text[kept..cut]);
        }
        ledger.append(&[record("outcome", 9)], Durability::Later).unwrap();
        assert_eq!(open(dir.path()).verify().unwrap(), entries.len() as u64 + 1);
    }
}

#[test]
fn garbage_and_zeros_at_the_end_are_set_aside() {
    for tail in [&b"\0\0\0\0\0\0"[..], b"{\"seq\":3,\n\0\0\n", b"{}\n"] {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        ledger.append(&[record("intent", 1)], Durability::Later).unwrap();
        File::options().append(true).open(ledger.path()).unwrap().write_all(tail).unwrap();
        // The same process goes on as well as the next one.
        assert_eq!(ledger.append(&[record("outcome", 2)], Durability::Later).unwrap(), 3);
        assert_eq!(fs::read(dir.path().join("ledger/torn-2")).unwrap(), tail);
        assert_eq!(open(dir.path()).verify().unwrap(), 3);
    }
}

#[test]
fn a_changed_line_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    ledger
        .append(&(1..=5).map(|nth| record("intent", nth)).collect::<Vec<_>>(), Durability::Later)
        .unwrap();
    let text = fs::read_to_string(ledger.path()).unwrap();
    let cases = [
        // The hash of line 2 no longer fits what line 3 says.
        (text.replace("\"nth\":2", "\"nth\":7"), 3),
        (text.replace("\"seq\":4", "\"seq\":8"), 4),
        (
            text.lines()
                .filter(|line| !line.contains("\"seq\":3"))
                .map(|line| format!("{line}\n"))
                .collect(),
            3,
        ),
        (text.replacen("{\"seq\":2", "?", 1), 2),
    ];
    for (changed, expected) in cases {
        fs::write(ledger.path(), &changed).unwrap();
        let opened = open(dir.path());
        match opened.verify() {
            Err(Error::Ledger { line, .. }) => assert_eq!(line, expected),
            other => panic!("{other:?}"),
        }
        assert!(faults(&opened)[0].contains(&format!("line {expected}")), "{:?}", faults(&opened));
        // Evidence is not a torn tail: nothing was moved.
        assert_eq!(fs::read_to_string(ledger.path()).unwrap(), changed);
    }
}

#[test]
fn several_ledgers_and_threads_append_to_one_log() {
    let dir = tempfile::tempdir().unwrap();
    let ledgers = [open(dir.path()), open(dir.path())];
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let ledger = &ledgers[(thread % 2) as usize];
            scope.spawn(move || {
                for nth in 0..150 {
                    ledger
                        .append(&[record("intent", nth), record("outcome", nth)], Durability::Later)
                        .unwrap();
                }
            });
        }
    });
    assert_eq!(ledgers[0].verify().unwrap(), 1200);
    assert_eq!(ledgers[0].last_seq().unwrap(), 1200);
    assert_eq!(ledgers[1].last_seq().unwrap(), 1200);
}

fn faults(ledger: &Ledger) -> Vec<String> {
    ledger.faults().unwrap().iter().map(ToString::to_string).collect()
}

#[test]
fn a_log_that_somebody_cut_is_told_and_nothing_is_taken_for_granted() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    ledger.append(&[record("intent", 1), record("intent", 2)], Durability::Later).unwrap();
    let text = fs::read(ledger.path()).unwrap();
    let first = text.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    // Between lines, and within one, which looks as if a crash had torn it.
    for cut in [first, first + 40, text.len() - 1] {
        fs::write(ledger.path(), &text[..cut]).unwrap();
        let found = faults(&open(dir.path()));
        assert!(found[0].contains("entry 2 was recorded"), "{cut}: {found:?}");
        assert_eq!(fs::read(ledger.path()).unwrap().len(), cut, "nothing was moved");
    }
    fs::write(ledger.path(), &text[..first]).unwrap();
    assert!(!faults(&ledger).is_empty(), "whoever has it open notices too");
    // What is found is written down all the same, and the break stays for all to see.
    assert_eq!(ledger.append(&[record("outcome", 3)], Durability::Later).unwrap(), 3);
    assert!(ledger.verify().is_err());
}

#[test]
fn a_last_line_that_was_changed_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    ledger.append(&[record("intent", 1), record("intent", 2)], Durability::Now).unwrap();
    let text = fs::read_to_string(ledger.path()).unwrap();
    // It still reads as an entry, so the chain alone would not tell.
    fs::write(ledger.path(), text.replace("\"nth\":2", "\"nth\":7")).unwrap();
    for ledger in [&ledger, &open(dir.path())] {
        assert!(faults(ledger)[0].contains("entry 2 is not the one"), "{:?}", faults(ledger));
    }
    fs::remove_file(ledger.path()).unwrap();
    assert!(faults(&ledger).iter().any(|fault| fault.contains("was removed")));
    assert!(faults(&open(dir.path()))[0].contains("entry 2 was recorded"));
}

#[test]
fn what_somebody_has_taken_note_of_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    ledger
        .append(&(1..=5).map(|nth| record("intent", nth)).collect::<Vec<_>>(), Durability::Now)
        .unwrap();
    let text = fs::read_to_string(ledger.path()).unwrap();
    let half = &text[..text.len() - 30];
    for damaged in [
        text.replace("\"nth\":2", "\"nth\":7"),
        text.replacen("{\"seq\":2", "?", 1),
        text.replace("\"nth\":5", "\"nth\":6"),
        half.to_owned(),
    ] {
        fs::write(ledger.path(), &damaged).unwrap();
        let ledger = open(dir.path());
        let found = ledger.faults().unwrap();
        assert!(!found.is_empty());
        assert_eq!(ledger.mend().unwrap(), found);
        for ledger in [ledger, open(dir.path())] {
            assert_eq!(ledger.faults().unwrap(), []);
            ledger.append(&[record("outcome", 9)], Durability::Now).unwrap();
            ledger.verify().unwrap();
            let said = ledger.read().unwrap().filter_map(Result::ok);
            let said: Vec<_> = said.filter(|entry| entry.kind == MENDED).collect();
            assert_eq!(said[0].data["found"][0], found[0].to_string());
        }
        // It is not a free pass for what is damaged later.
        let now = fs::read_to_string(dir.path().join("ledger/log.jsonl")).unwrap();
        fs::write(dir.path().join("ledger/log.jsonl"), now.replace("\"nth\":3", "\"nth\":8"))
            .unwrap();
        assert!(!open(dir.path()).faults().unwrap().is_empty());
        fs::remove_file(dir.path().join("ledger/head")).unwrap();
        fs::write(dir.path().join("ledger/log.jsonl"), &text).unwrap();
        assert_eq!(faults(&open(dir.path())), [""; 0]);
    }
}

#[test]
fn of_another_boot_only_what_was_synced_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    ledger.append(&[record("intent", 1)], Durability::Now).unwrap();
    let synced = fs::read(ledger.path()).unwrap();
    ledger.append(&[record("intent", 2)], Durability::Later).unwrap();
    let beside = dir.path().join("ledger/head");
    let line = fs::read_to_string(&beside).unwrap();
    let (text, _) = line.trim_end().rsplit_once(' ').unwrap();
    let text = format!("00000000 {}", text.split_once(' ').unwrap().1);
    fs::write(ledger.path(), &synced).unwrap();
    assert!(!open(dir.path()).faults().unwrap().is_empty());
    fs::write(&beside, format!("{text} {}\n", Digest::of(&text).hex())).unwrap();
    assert_eq!(faults(&open(dir.path())), [""; 0], "the power cut took it");
    fs::write(ledger.path(), &synced[..synced.len() - 5]).unwrap();
    assert!(!open(dir.path()).faults().unwrap().is_empty(), "nothing takes what was synced");
}
