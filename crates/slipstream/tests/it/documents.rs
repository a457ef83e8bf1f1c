//! The generated parts of `docs/configuration.md` and `docs/metrics.md` equal the declarations in the
//! code. With `SLIPSTREAM_BLESS=1` the tests rewrite the pages instead.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use service::Variable;

use crate::pages::{read, root};

const ENV_EXAMPLE: &str = include_str!("../../../../.env.example");
const BLESS: &str = "SLIPSTREAM_BLESS";
const COMMAND: &str = "SLIPSTREAM_BLESS=1 cargo test -p slipstream --test it documents";
const END: &str = "<!-- generated: end -->\n";

/// The text between the marker `begin` and the next end marker of `page`.
fn generated<'a>(page: &'a str, begin: &str) -> &'a str {
    let (_, rest) = page.split_once(begin).unwrap_or_else(|| panic!("the page has no {begin}"));
    rest.split_once(END).unwrap_or_else(|| panic!("{begin} has no end")).0
}

/// Compares `right` with the page at `path`, or rewrites the page.
#[track_caller]
fn assert_page(path: &str, right: &str) {
    if std::env::var_os(BLESS).is_some() {
        fs::write(root().join(path), right).unwrap();
    }
    let page = read(path);
    let wrong = page.lines().zip(right.lines()).find(|(is, right)| is != right);
    assert!(page == right, "{path} differs from the code, at {wrong:?}; this rewrites it: {COMMAND}");
}

fn processes() -> [(&'static str, &'static [Variable]); 4] {
    [
        ("Producer", producer::Settings::VARIABLES),
        ("Consumer", consumer::Settings::VARIABLES),
        ("Poller", poller::Settings::VARIABLES),
        ("Every process", service::config::COMMON),
    ]
}

fn variables_table(variables: &[Variable]) -> String {
    let row = |variable: &Variable| {
        let or_file = if variable.kind.is_secret() {
            format!(", or `{}_FILE`", variable.name())
        } else {
            String::new()
        };
        let doc = variable.doc.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("| `{}`{or_file} | {} | {doc} |\n", variable.name(), variable.kind.default_text())
    };
    let rows: String = variables.iter().map(row).collect();
    format!("| variable | default | meaning |\n|---|---|---|\n{rows}")
}

#[test]
fn configuration_page_equals_the_declared_variables() {
    let path = "docs/configuration.md";
    let page = read(path);
    let begin = "<!-- generated: begin -->\n";
    let mut right = String::new();
    for (process, variables) in processes() {
        write!(right, "## {process}\n\n{}\n", variables_table(variables)).unwrap();
    }
    let is = format!("{begin}{}{END}", generated(&page, begin));
    assert_page(path, &page.replace(&is, &format!("{begin}{right}{END}")));
}

/// A metric of an exposition: name as it is shown, type, help text, and labels.
struct Metric {
    name: String,
    kind: String,
    help: String,
    labels: Vec<String>,
}

/// The labels of a sample line, without those of histogram buckets.
fn labels(sample: &str) -> Vec<String> {
    let Some((_, labels)) = sample.split_once('{') else { return Vec::new() };
    let names = labels.split("=\"").filter_map(|part| part.rsplit([',', '{', '"']).next());
    let names = names.map(str::to_owned).filter(|name| name != "le");
    names.filter(|name| !name.is_empty() && !name.contains(['}', ' '])).collect()
}

/// The metrics of an OpenMetrics text, sorted by name.
fn metrics(exposition: &str) -> BTreeMap<String, Metric> {
    let mut all = BTreeMap::new();
    for (name, help) in exposition.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' ')) {
        let kind = format!("# TYPE {name} ");
        let kind = exposition.lines().find_map(|line| line.strip_prefix(&kind)).unwrap().to_owned();
        let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        let sampled = if kind == "histogram" { format!("{name}_count") } else { name.clone() };
        let is_sample =
            |line: &&str| line.strip_prefix(&sampled).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let labels =
            labels(exposition.lines().find(is_sample).unwrap_or_else(|| panic!("{name} has no sample")));
        let help = help.trim_end_matches('.').to_owned();
        all.insert(name.clone(), Metric { name, kind, help, labels });
    }
    all
}

/// The last column of the row of each metric in a table.
fn details(table: &str) -> BTreeMap<String, String> {
    let row = |line: &str| {
        let name = line.strip_prefix("| `")?.split(['`', '{']).next()?.to_owned();
        let (_, details) = line.strip_suffix(" |")?.rsplit_once(" | ")?;
        Some((name, details.trim().to_owned()))
    };
    table.lines().filter_map(row).collect()
}

fn metrics_table(exposition: &str, details: &BTreeMap<String, String>) -> String {
    let mut table =
        String::from("| metric | type | meaning | details; what to alert on |\n|---|---|---|---|\n");
    for Metric { name, kind, help, labels } in metrics(exposition).values() {
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let details = details.get(name).map_or("", String::as_str);
        writeln!(table, "| `{name}{labels}` | {kind} | {help} | {details} |").unwrap();
    }
    table
}

#[test]
fn metrics_page_equals_the_registries() {
    let path = "docs/metrics.md";
    let mut page = read(path);
    let processes = [
        ("producer", producer::metrics_reference()),
        ("consumer", consumer::metrics_reference()),
        ("poller", poller::metrics_reference()),
    ];
    for (process, exposition) in processes {
        assert!(metrics(&exposition).len() >= 4, "{exposition}");
        let begin = format!("<!-- generated: {process} -->\n");
        let is = generated(&page, &begin).to_owned();
        let right = metrics_table(&exposition, &details(&is));
        page = page.replace(&format!("{begin}{is}{END}"), &format!("{begin}{right}{END}"));
    }
    assert_page(path, &page);
}

#[test]
fn metrics_page_lists_every_rejection_reason_once() {
    let page = read("docs/metrics.md");
    let (_, section) = page.split_once("\n### Reasons of rejected events\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `") && !line.starts_with("| `reason`"));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    let mut listed: Vec<&str> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    let mut right = producer::REJECTION_REASONS.to_vec();
    listed.sort_unstable();
    right.sort_unstable();
    assert_eq!(listed, right);
}

#[test]
fn env_example_names_only_existing_variables() {
    // Read by Compose or by the servers that it runs.
    let own = [
        "COMPOSE_PROFILES",
        "KAFKA_HEAP_OPTS",
        "MONGO_INITDB_ROOT_PASSWORD",
        "MONGO_INITDB_ROOT_USERNAME",
        "PRODUCER_PORT",
        // Read by the example of a sources file.
        "SIMULATOR_URL",
    ];
    let known: Vec<String> =
        processes().iter().flat_map(|(_, variables)| variables.iter().map(Variable::name)).collect();
    let lines = ENV_EXAMPLE.lines().map(|line| line.trim_start_matches(['#', ' ']));
    let names = lines.filter_map(|line| line.split_once('=')).map(|(name, _)| name);
    let names: Vec<&str> =
        names.filter(|name| name.chars().all(|c| c.is_ascii_uppercase() || c == '_')).collect();
    assert!(names.len() > 5, "{names:?}");
    for name in names {
        assert!(own.contains(&name) || known.iter().any(|known| known == name), "{name} is no variable");
    }
}

/// The help text of a command.
fn help(command: &[&str]) -> String {
    let mut run = Command::new(env!("CARGO_BIN_EXE_slipstream"));
    let output = run.args(command).arg("--help").output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The subcommands of a help text.
fn subcommands(help: &str) -> Vec<String> {
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return Vec::new() };
    let lines = list.lines().take_while(|line| line.starts_with("  "));
    let names =
        lines.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn command_line_page_names_every_command_and_no_other_option() {
    let page = read("docs/cli.md");
    let mut helps = vec![help(&[])];
    let commands = subcommands(&help(&[]));
    assert!(commands.len() >= 8, "{commands:?}");
    for command in &commands {
        assert!(page.contains(command.as_str()), "docs/cli.md does not name {command}");
        helps.push(help(&[command]));
        for sub in subcommands(&help(&[command])) {
            assert!(page.contains(&sub), "docs/cli.md does not name {command} {sub}");
            helps.push(help(&[command, &sub]));
        }
    }
    let all = helps.concat();
    let in_code = page.split('`').skip(1).step_by(2).filter(|code| code.starts_with("--"));
    let in_commands = page.lines().filter(|line| line.trim_start().starts_with("$ slipstream "));
    let mut count = 0;
    for option in in_code.chain(in_commands).flat_map(str::split_whitespace) {
        // `docker compose run` and `cargo run` have options of their own.
        if !option.starts_with("--") || option == "--" || option == "--build" {
            continue;
        }
        count += 1;
        assert!(all.contains(option), "no command has {option}");
    }
    assert!(count > 15, "{count} options");
}
