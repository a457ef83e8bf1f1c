//! The documents form a whole: every link and anchor resolves, and every page is in the book.

use std::fs;
use std::path::{Path, PathBuf};

/// The root folder of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The text of the file at `path`, relative to the root folder.
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The paths of all files under `folder` with extension `extension`, relative to the root folder.
pub fn files(folder: &str, extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&path, extension));
        } else if Path::new(&path).extension().is_some_and(|is| is == extension) {
            found.push(path);
        }
    }
    found
}

/// The pages: those of the root folder, of `docs/` and of `.github/`.
fn pages() -> Vec<String> {
    let own = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(str::to_owned);
    own.into_iter().chain(files("docs", "md")).chain(files(".github", "md")).collect()
}

/// The lines of `page` outside fenced code blocks.
fn prose(page: &str) -> Vec<&str> {
    let mut in_code = false;
    let mut lines = Vec::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            lines.push(line);
        }
    }
    lines
}

/// The anchors of the headings of `page`, as GitHub and mdBook make them.
fn anchors(page: &str) -> Vec<String> {
    let heading =
        |line: &&str| line.strip_prefix('#').map(|rest| rest.trim_start_matches('#').trim().to_owned());
    let anchor = |text: String| {
        let kept = text.to_lowercase().replace(' ', "-");
        kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    };
    prose(page).iter().filter_map(heading).map(anchor).collect()
}

/// The targets of the links of `page`.
fn links(page: &str) -> Vec<String> {
    let text = prose(page).join("\n");
    // Inline code can contain brackets.
    let text: String = text.split('`').step_by(2).collect::<Vec<_>>().join("code");
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    targets.map(str::to_owned).collect()
}

/// `path` without `.` and `..`.
fn normalized(path: &Path) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.to_str().unwrap().split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[test]
fn every_relative_link_resolves() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for path in pages() {
        let page = read(&path);
        let folder = Path::new(&path).parent().unwrap();
        for link in links(&page) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            count += 1;
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { path.clone() } else { normalized(&folder.join(file)) };
            // The book has only the pages of docs/.
            let leaves_book = path.starts_with("docs/") && !target.starts_with("docs/");
            let exists = root().join(&target).exists();
            let anchored =
                anchor.is_empty() || (exists && anchors(&read(&target)).iter().any(|is| is == anchor));
            if leaves_book || !exists || !anchored {
                wrong.push(format!("{path}: {link}"));
            }
        }
    }
    assert!(count > 80, "{count} links");
    assert!(wrong.is_empty(), "links that do not resolve: {wrong:#?}");
}

#[test]
fn every_page_is_in_the_summary_of_the_book() {
    let summary = links(&read("docs/SUMMARY.md"));
    for path in files("docs", "md") {
        let name = path.strip_prefix("docs/").unwrap();
        let count = summary.iter().filter(|link| *link == name).count();
        assert_eq!(count, usize::from(name != "SUMMARY.md"), "{name}");
    }
}

#[test]
fn every_decision_is_in_the_list_of_decisions() {
    let list = links(&read("docs/adr/README.md"));
    let mut names: Vec<String> = files("docs/adr", "md");
    names.retain(|path| !path.ends_with("README.md"));
    names.sort();
    let names: Vec<&str> = names.iter().filter_map(|path| path.strip_prefix("docs/adr/")).collect();
    assert_eq!(list, names);
    for (name, number) in names.iter().zip(1..) {
        assert!(name.starts_with(&format!("{number:04}-")), "{name}");
        let page = read(&format!("docs/adr/{name}"));
        for heading in ["## Context", "## Decision", "## Consequences"] {
            assert!(prose(&page).contains(&heading), "{name} has no {heading}");
        }
    }
}

#[test]
fn readme_has_at_most_8_kb() {
    let bytes = read("README.md").len();
    assert!(bytes <= 8_192, "{bytes} bytes");
}

#[test]
fn pages_named_in_sources_exist() {
    let folders = ["crates", "bench"];
    let mut sources: Vec<String> = folders.iter().flat_map(|folder| files(folder, "rs")).collect();
    sources.extend([".env.example", "docker-compose.yml", "Makefile", "deny.toml"].map(str::to_owned));
    for path in sources {
        let source = read(&path);
        for (before, _) in source.match_indices("docs/") {
            let rest = source.get(before..).unwrap();
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "/-_.".contains(c)));
            let page = rest.get(..end.unwrap_or(rest.len())).unwrap().trim_end_matches('.');
            if page.ends_with(".md") {
                assert!(root().join(page).exists(), "{path} names {page}");
            }
        }
    }
}

#[test]
fn source_files_named_in_pages_exist() {
    for path in pages() {
        // The changelog names files of its time.
        if path == "CHANGELOG.md" {
            continue;
        }
        let page = read(&path);
        let code = page.split('`').skip(1).step_by(2);
        for file in code.filter(|code| code.starts_with("crates/") && code.ends_with(".rs")) {
            assert!(root().join(file).exists(), "{path} names {file}");
        }
    }
}
