//! What programs say when they cannot write to a read-only root: their words → the path that they
//! mean, and the line that cures it.

/// Words by which C libraries, Go, Node and Java name EROFS.
const WORDS: [&str; 3] = ["read-only file system", "erofs", "[errno 30]"];
/// SQLite's own words, which name no path.
const WITHOUT_PATH: [&str; 2] =
    ["attempt to write a readonly database", "unable to open database file"];
/// The longest path that is believed.
const LONGEST: usize = 300;

/// Something that a log says cannot be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// Which path, if the log names one.
    pub path: Option<String>,
    /// Line for the service in the Compose file.
    pub cure: Option<String>,
}

/// The first complaint in the last lines of a log.
pub fn complaint(lines: &[String]) -> Option<Complaint> {
    let mut without = None;
    for line in lines {
        let lower = line.to_lowercase();
        if WORDS.iter().any(|word| lower.contains(word)) {
            if let Some(path) = path(line) {
                let cure = Some(cure(&path));
                return Some(Complaint { path: Some(path), cure });
            }
            without = Some(Complaint { path: None, cure: None });
        }
        if WITHOUT_PATH.iter().any(|word| lower.contains(word)) {
            without = Some(Complaint { path: None, cure: None });
        }
    }
    without
}

/// The last absolute path of a line: programs name themselves first, and then what they do.
fn path(line: &str) -> Option<String> {
    let around =
        |letter: char| letter.is_whitespace() || "'\"`()[]<>,;=\u{2018}\u{2019}".contains(letter);
    line.split(around)
        .map(|word| word.trim_end_matches([':', '.']))
        .filter(|word| word.starts_with('/') && word.len() > 1 && word.len() <= LONGEST)
        .filter(|word| word.chars().all(|letter| !letter.is_control()))
        .rfind(|word| !word.starts_with("/dev/") && !word.starts_with("/proc/"))
        .map(str::to_owned)
}

/// Folders of which a file system of its own would hide too much of the image.
const TOPS: [&str; 11] = [
    "/var",
    "/etc",
    "/usr",
    "/opt",
    "/home",
    "/root",
    "/lib",
    "/bin",
    "/sbin",
    "/var/lib",
    "/usr/local",
];

fn cure(path: &str) -> String {
    let folder = match path.rsplit_once('/') {
        Some(("", _)) | None => path,
        Some((folder, _)) => folder,
    };
    if TOPS.contains(&folder) {
        return format!("x-kiln: {{ volatile: [\"{path}\"] }}");
    }
    let data = ["/var/lib/", "/data", "/srv/"].iter().any(|data| path.starts_with(data));
    let database = [".db", ".sqlite", ".sqlite3", ".rdb", ".aof"];
    if data || database.iter().any(|end| path.ends_with(end)) {
        return format!("volumes: [\"data:{folder}\"]");
    }
    let system = ["/etc/", "/usr/", "/opt/", "/app/", "/home/"];
    if system.iter().any(|system| path.starts_with(system)) {
        // What the image has there has to stay visible.
        return format!("x-kiln: {{ volatile: [\"{folder}\"] }}");
    }
    format!("tmpfs: [\"{folder}\"]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_name_the_path() {
        for (line, path, cure) in [
            (
                "mkdir: cannot create directory \u{2018}/var/cache/nginx\u{2019}: Read-only file system",
                "/var/cache/nginx",
                "tmpfs: [\"/var/cache\"]",
            ),
            (
                "chown: changing ownership of '/var/www': Read-only file system",
                "/var/www",
                "x-kiln: { volatile: [\"/var/www\"] }",
            ),
            (
                "nginx: [emerg] open() \"/var/lib/nginx/body\" failed (30: Read-only file system)",
                "/var/lib/nginx/body",
                "volumes: [\"data:/var/lib/nginx\"]",
            ),
            (
                "OSError: [Errno 30] Read-only file system: '/app/uploads/a.txt'",
                "/app/uploads/a.txt",
                "x-kiln: { volatile: [\"/app/uploads\"] }",
            ),
            (
                "Error: EROFS: read-only file system, open '/app/db.sqlite'",
                "/app/db.sqlite",
                "volumes: [\"data:/app\"]",
            ),
            (
                "sed: couldn't open temporary file /etc/nginx/sedX1: Read-only file system",
                "/etc/nginx/sedX1",
                "x-kiln: { volatile: [\"/etc/nginx\"] }",
            ),
            (
                "/docker-entrypoint.sh: 12: cannot create /var/run/x.pid: Read-only file system",
                "/var/run/x.pid",
                "tmpfs: [\"/var/run\"]",
            ),
            (
                "open /data/x.lock: read-only file system",
                "/data/x.lock",
                "volumes: [\"data:/data\"]",
            ),
        ] {
            let found = complaint(&["starting".to_owned(), line.to_owned()]).unwrap();
            assert_eq!(found.path.as_deref(), Some(path), "{line}");
            assert_eq!(found.cure.as_deref(), Some(cure), "{line}");
        }
    }

    #[test]
    fn a_line_without_a_path_and_one_about_something_else() {
        let of = |line: &str| complaint(&[line.to_owned()]);
        let bare = Some(Complaint { path: None, cure: None });
        assert_eq!(of("sqlite3.OperationalError: attempt to write a readonly database"), bare);
        assert_eq!(of("touch: read-only file system"), bare);
        assert_eq!(of("cannot open /etc/shadow: permission denied"), None);
        assert_eq!(of(&format!("/{}: read-only file system", "x".repeat(5_000))), bare);
    }
}
