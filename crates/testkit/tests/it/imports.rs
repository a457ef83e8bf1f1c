//! No files of a crate import each other in a circle.
//!
//! A module imports another if a `use` or a path that begins with `crate`, `super` or `self` leads
//! to it. Test modules do not count. Paths that end at the crate root are re-exports and do not
//! count either.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

type Module = Vec<String>;

/// The sources of a crate without its test modules and comments, by module.
fn modules(folder: &Path, prefix: &[String], found: &mut BTreeMap<Module, String>) {
    for entry in std::fs::read_dir(folder).expect("a source folder").map(|entry| entry.expect("an entry")) {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let mut module = prefix.to_vec();
        if path.is_dir() {
            module.push(name);
            modules(&path, &module, found);
            continue;
        }
        let Some(stem) = name.strip_suffix(".rs") else { continue };
        if stem == "tests" || prefix.is_empty() && (stem == "lib" || stem == "main") {
            continue;
        }
        if stem != "mod" {
            module.push(stem.to_owned());
        }
        let text = std::fs::read_to_string(&path).expect("a source file");
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let without_comments = text.lines().map(|line| line.split("//").next().unwrap_or_default());
        found.insert(module, without_comments.collect::<Vec<_>>().join("\n"));
    }
}

/// The paths of a use tree: `a::{b, c::d}` has the paths `a::b` and `a::c::d`.
fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((before, rest)) = tree.split_once('{') else { return vec![tree.to_owned()] };
    let inner = rest.trim_end().strip_suffix('}').unwrap_or(rest);
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in inner.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().expect("a part").push(c);
    }
    let parts = parts.iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| expand(part)).map(|part| format!("{}{part}", before.trim())).collect()
}

/// The paths that a source names.
fn paths(source: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for (at, _) in source.match_indices("use ") {
        let starts_a_word = !source[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        if let (true, Some(end)) = (starts_a_word, source[at..].find(';')) {
            paths.extend(expand(&source[at + 4..at + end]));
        }
    }
    for start in ["crate::", "super::"] {
        for (at, _) in source.match_indices(start) {
            let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            let end = source[at..].find(|c| !is_path(c)).unwrap_or(source.len() - at);
            paths.push(source[at..at + end].to_owned());
        }
    }
    paths
}

/// The module that a path leads to from `module`.
fn target(path: &str, module: &Module, all: &BTreeMap<Module, String>) -> Option<Module> {
    let segments = path.split("::").map(str::trim).filter(|segment| !segment.is_empty());
    let segments: Vec<String> = segments.map(str::to_owned).collect();
    let child = |name: &String| [module.as_slice(), std::slice::from_ref(name)].concat();
    let mut full: Module = match segments.first()?.as_str() {
        "crate" => segments[1..].to_vec(),
        "self" => [module.as_slice(), &segments[1..]].concat(),
        "super" => {
            let levels = segments.iter().take_while(|segment| *segment == "super").count();
            let base = &module[..module.len().saturating_sub(levels)];
            [base, &segments[levels..]].concat()
        }
        _ if all.contains_key(&child(&segments[0])) => [module.as_slice(), &segments].concat(),
        _ => return None,
    };
    while !full.is_empty() && !all.contains_key(&full) {
        full.pop();
    }
    (!full.is_empty() && full != *module).then_some(full)
}

/// The modules of `folder` that lie on a circle of imports.
fn on_circles(folder: &Path) -> BTreeSet<String> {
    let mut all = BTreeMap::new();
    modules(folder, &[], &mut all);
    let imports: BTreeMap<&Module, BTreeSet<Module>> = all
        .iter()
        .map(|(module, source)| {
            let targets = paths(source).into_iter().filter_map(|path| target(&path, module, &all));
            (module, targets.collect())
        })
        .collect();
    let reaches_itself = |start: &Module| {
        let (mut seen, mut open) = (BTreeSet::new(), imports[start].iter().collect::<Vec<_>>());
        while let Some(next) = open.pop() {
            if next == start {
                return true;
            }
            if seen.insert(next) {
                open.extend(&imports[next]);
            }
        }
        false
    };
    all.keys().filter(|module| reaches_itself(module)).map(|module| module.join("::")).collect()
}

#[test]
fn files_of_a_crate_do_not_import_each_other_in_a_circle() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the folder of the crates");
    let mut checked = 0;
    for entry in std::fs::read_dir(crates).expect("the crates").map(|entry| entry.expect("a crate")) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let circles = on_circles(&entry.path().join("src"));
        assert!(circles.is_empty(), "files of {name} import each other in a circle: {circles:?}");
        checked += 1;
    }
    assert!(checked >= 10, "{checked} crates");
}

#[test]
fn circles_through_every_kind_of_path_are_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    };
    write("lib.rs", "mod a; mod b; mod c; mod d;");
    write("a.rs", "use crate::{b::{self, X}, d::Y};\n#[cfg(test)]\nmod tests { use crate::c; }");
    write("b/mod.rs", "fn f() { super::a::g() } // crate::c");
    write("c.rs", "use crate::a::Z;");
    write("d.rs", "use std::fmt;");
    assert_eq!(on_circles(folder.path()), ["a", "b"].map(str::to_owned).into());
    write("b/mod.rs", "mod inner;\nuse inner::T;");
    write("b/inner.rs", "pub(in crate::b) use super::U;");
    assert_eq!(on_circles(folder.path()), ["b", "b::inner"].map(str::to_owned).into());
}
